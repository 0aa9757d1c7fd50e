"""Quarantine: bad bytes are kept within bounds, by several threads at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from replicad.system.disk import Disk
from replicad.work import quarantine as module
from replicad.work.quarantine import Quarantine


def test_several_threads_keep_bytes_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None stumbles over what another is just writing, or has just made room of; the bound holds for what is left."""
    monkeypatch.setattr(module, "MAX_KEPT_FILES", 5)
    quarantine = Quarantine(tmp_path, Disk())
    with ThreadPoolExecutor(8) as pool:
        kept = list(pool.map(lambda number: quarantine.keep(f"{number}.bad", b"%d" % number), range(200)))
    assert kept == [f"quarantine/{number}.bad" for number in range(200)]
    last = quarantine.keep("last.bad", b"last")
    assert quarantine.read(last, 9) == b"last"
    assert len(list(quarantine.directory.iterdir())) <= 5
