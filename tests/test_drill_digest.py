"""The digest of a file on disk is that of its record exactly when the bytes are the same."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from replicad.db.drills import Chosen
from replicad.model.block import block_id
from replicad.work.drill_digest import NOTHING, chain, digest_of_file

BLOCK = 4096
CONTENT = st.lists(st.sampled_from([b"\0" * BLOCK, b"a" * BLOCK, b"b" * BLOCK, b"c" * 100, b"\0" * 7]), max_size=6).map(
    b"".join
)


def recorded(content: bytes) -> Chosen:
    """What a ledger would expect of a file with this content."""
    blocks = [content[at : at + BLOCK] for at in range(0, len(content), BLOCK)]
    ids = [(number, block_id(block) if block.strip(b"\0") else NOTHING) for number, block in enumerate(blocks)]
    return Chosen(b"f", 1, len(content), BLOCK, chain(NOTHING, ids))


def digest(path: Path, chosen: Chosen) -> bytes | None:
    fd = os.open(path, os.O_RDONLY)
    try:
        return digest_of_file(fd, chosen, lambda: False)
    finally:
        os.close(fd)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(CONTENT, CONTENT, st.booleans())
def test_a_digest_tells_files_apart(tmp_path: Path, content: bytes, other: bytes, is_sparse: bool) -> None:
    """Holes, zeros, short ends and lengths included; how zeros are stored does not matter."""
    path = tmp_path / "f"
    if is_sparse:
        with path.open("wb") as file:
            for at in range(0, len(content), BLOCK):
                if content[at : at + BLOCK].strip(b"\0"):
                    file.seek(at)
                    file.write(content[at : at + BLOCK])
            file.truncate(len(content))
    else:
        path.write_bytes(content)
    assert digest(path, recorded(content)) == recorded(content).digest
    assert (digest(path, recorded(other)) == recorded(other).digest) == (content == other)


def test_a_digest_can_be_stopped(tmp_path: Path) -> None:
    """A drill that is given up does not read a large file to its end."""
    (tmp_path / "f").write_bytes(b"a" * BLOCK)
    fd = os.open(tmp_path / "f", os.O_RDONLY)
    with pytest.raises(InterruptedError):
        digest_of_file(fd, recorded(b"a" * BLOCK), lambda: True)
    os.close(fd)
