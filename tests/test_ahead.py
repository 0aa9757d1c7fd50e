"""Reading ahead gives the very bytes of the file, wherever they are asked for, and no more memory than two buffers."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from kit_store import PAGE, FaultyDisk
from replicad.model.block import checksum
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


def test_the_sum_is_of_what_was_read_from_front_to_back(tmp_path: Path, data: bytes, disk: FaultyDisk) -> None:
    """Of all of it, whatever the steps; of nothing as long as a part is missing, and never after a jump."""
    for seed in range(20):
        choose = random.Random(seed)
        reader = disk.open_read(tmp_path / "file")
        end = choose.choice([len(data), 200_001, 65_536])
        ahead = ReadAhead(reader, end, LONGEST + PAGE)
        at = 0
        while at < end:
            assert ahead.content is None or ahead.content == checksum(data[:end])
            at += choose.randrange(1, len(ahead.window(at, choose.randrange(1, LONGEST))) + 1)
        assert ahead.content == checksum(data[:end])
        ahead.window(0, 1)
        while (at := at - 9000) > 0:
            ahead.window(end - at, 1)
        assert ahead.content is None
        ahead.close()
        reader.close()


def test_there_is_no_sum_of_what_could_not_be_read(tmp_path: Path, data: bytes, disk: FaultyDisk) -> None:
    """Not even when the place is read at the second try, or the file is shorter than it should be."""
    reader = disk.open_read(tmp_path / "file")
    ahead = ReadAhead(reader, len(data) + 1, LONGEST + PAGE)
    at = 0
    while view := ahead.window(at, 1):
        at += len(view)
    assert at == len(data) and ahead.content is None
    ahead.close()
    reader.close()
    disk.unreadable = {("file", 20)}
    reader = disk.open_read(tmp_path / "file")
    ahead = ReadAhead(reader, len(data), LONGEST + PAGE)
    at = 0
    with pytest.raises(ReplicadError):
        while view := ahead.window(at, 1):
            at += len(view)
    reader._bad.clear()  # type: ignore[attr-defined]
    while view := ahead.window(at, 1):
        at += len(view)
    assert at == len(data) and ahead.content is None
    ahead.close()
    reader.close()
