"""Reading ahead gives the very bytes of the file, wherever they are asked for, and no more memory than two buffers."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from kit_store import PAGE, FaultyDisk
from replicad.model.errors import ReplicadError
from replicad.system import ahead as module
from replicad.system.ahead import ReadAhead

LONGEST = 20_000


@pytest.fixture
def data(tmp_path: Path) -> bytes:
    content = random.Random(1).randbytes(300_123)
    (tmp_path / "file").write_bytes(content)
    return content


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyDisk]:
    monkeypatch.setattr(module, "PIECE_BYTES", 32_768)
    monkeypatch.setattr(module, "_spare", [])
    yield FaultyDisk()


def test_every_window_holds_what_the_file_holds(tmp_path: Path, data: bytes, disk: FaultyDisk) -> None:
    """From front to back in steps of any length, and anew from anywhere, up to a given end."""
    for seed in range(20):
        choose = random.Random(seed)
        reader = disk.open_read(tmp_path / "file")
        end = choose.choice([len(data), 200_001, 65_536])
        ahead = ReadAhead(reader, end, LONGEST + PAGE)
        at = 0
        while at < end:
            needed = choose.randrange(1, LONGEST)
            view = ahead.window(at, needed)
            assert len(view) >= min(needed, end - at)
            assert view == data[at : at + len(view)] and at + len(view) <= end
            at += choose.randrange(1, len(view) + 1)
            if choose.random() < 0.05:
                at = choose.randrange(end)
        ahead.close()
        reader.close()


def test_an_error_is_told_where_it_is_and_reading_goes_on_behind_it(
    tmp_path: Path, data: bytes, disk: FaultyDisk
) -> None:
    """A bad page fails the piece it is in; what is asked for elsewhere is there."""
    disk.unreadable = {("file", 20)}
    reader = disk.open_read(tmp_path / "file")
    ahead = ReadAhead(reader, len(data), LONGEST + PAGE)
    assert ahead.window(0, 100)[:100] == data[:100]
    with pytest.raises(ReplicadError):
        ahead.window(20 * PAGE - 50, LONGEST)
    behind = 30 * PAGE + 7
    assert ahead.window(behind, 1000)[:1000] == data[behind : behind + 1000]
    ahead.close()
    reader.close()
