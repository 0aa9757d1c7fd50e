"""The rot of the test kit is real: it comes from below the file system, and does what its name says, nothing else."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from kit_rot import FS_BLOCK_BYTES, CannotRot, Disk, Kind, decay, needs_disks, real_disk
from kit_tree import describe_tree

SIZE = 300_001


@pytest.fixture(params=["ext4", "xfs", "btrfs"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    """A real file system with two files that do not compress."""
    with real_disk(tmp_path, request.param) as made:
        source = random.Random(7)
        (made.top / "www").mkdir()
        for name in ("victim", "neighbour"):
            (made.top / "www" / name).write_bytes(source.randbytes(SIZE))
        yield made


def stamp(path: Path) -> tuple[int, ...]:
    """What a file system would have to move when somebody writes."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_blocks


@needs_disks
@pytest.mark.parametrize("kind", list(Kind))
def test_rot_changes_these_bytes_and_no_stamp(disk: Disk, kind: Kind) -> None:
    """ext4 and xfs return the wrong bytes and btrfs an error; stamps, other bytes and other files stay as they were."""
    path = disk.top / "www" / "victim"
    good, before, others = path.read_bytes(), stamp(path), describe_tree(disk.top / "www")
    for offset in (0, 65_536 + 100, SIZE - 1):
        rotten = disk.rot(path, offset, kind, seed=offset)
        assert rotten.is_readable == (disk.kind != "btrfs")
        assert stamp(path) == before
        if rotten.is_readable:
            end = rotten.offset + rotten.length
            assert path.read_bytes() == good[: rotten.offset] + rotten.after + good[end:]
            assert rotten.before == good[rotten.offset : end] != rotten.after
        else:
            with pytest.raises(OSError) as caught:
                path.read_bytes()
            assert caught.value.errno == errno.EIO
        disk.heal(rotten)
        assert path.read_bytes() == good
    assert describe_tree(disk.top / "www") == others


@needs_disks
def test_a_warm_file_rots_too(disk: Disk) -> None:
    """Bytes that are in the page cache, or not on the disk at all yet, are damaged on the disk and seen as damaged."""
    path = disk.top / "www" / "fresh"
    data = random.Random(8).randbytes(10 * FS_BLOCK_BYTES)
    path.write_bytes(data)  # neither written back nor allocated
    rotten = disk.rot(path, 5000, Kind.BIT)
    assert rotten.offset == 5000 and rotten.length == 1
    if rotten.is_readable:
        assert path.read_bytes()[5000] == rotten.after[0] != data[5000]


@needs_disks
def test_what_has_no_place_on_the_disk_is_refused(disk: Disk) -> None:
    """Holes, allocated and unwritten ranges, and bytes behind the end are refused with a reason; nothing is damaged."""
    path = disk.top / "www" / "sparse"
    with path.open("wb") as file:
        file.write(b"data")
        file.truncate(SIZE)
        os.posix_fallocate(file.fileno(), 0, 200_000)
    for offset, reason in ((SIZE - 10, "hole"), (100_000, "not written"), (SIZE + 5000, "no byte")):
        with pytest.raises(CannotRot, match=reason):
            disk.rot(path, offset, Kind.BIT)
    assert path.read_bytes() == b"data".ljust(SIZE, b"\0")


@needs_disks
def test_inline_data_is_refused(tmp_path: Path) -> None:
    """A tiny file that btrfs keeps in its metadata is refused, since its bytes are not data on the disk."""
    with real_disk(tmp_path, "btrfs", options="noatime") as disk:
        path = disk.top / "tiny"
        path.write_bytes(b"tiny")
        with pytest.raises(CannotRot, match="inline"):
            disk.rot(path, 0)
        assert path.read_bytes() == b"tiny"


@needs_disks
def test_a_stale_block_is_the_version_before(disk: Disk) -> None:
    """A lost write: the block shows what stood there before the file was written in place."""
    path = disk.top / "www" / "victim"
    old = disk.block(path, 65_536)
    with path.open("r+b") as file:
        file.seek(65_536)
        file.write(random.Random(9).randbytes(FS_BLOCK_BYTES))
    rotten = disk.rot(path, 65_536, Kind.STALE, other=old)
    assert rotten.after in old
    if rotten.is_readable:
        assert disk.block(path, 65_536) == old


@needs_disks
def test_disks_leave_nothing_behind(tmp_path: Path) -> None:
    """The loop device and the mount are gone when the context ends, also when it ends with an error."""
    with pytest.raises(ZeroDivisionError), real_disk(tmp_path, "ext4") as disk:
        raise ZeroDivisionError
    assert disk.device not in Path("/proc/mounts").read_text()
    assert not disk.image.exists() and not Path(f"/sys/block/{Path(disk.device).name}/loop").exists()


@pytest.mark.parametrize("kind", list(Kind))
def test_decay_is_repeatable_and_changes_something(kind: Kind) -> None:
    """The same seed gives the same damage, of the size that its name promises."""
    before = random.Random(1).randbytes(FS_BLOCK_BYTES)
    other = random.Random(2).randbytes(FS_BLOCK_BYTES)
    after = decay(before, 1000, kind, 5, other)
    assert after == decay(before, 1000, kind, 5, other) != before and len(after) == len(before)
    bits = (int.from_bytes(before, "big") ^ int.from_bytes(after, "big")).bit_count()
    assert (bits == 1) == (kind is Kind.BIT)
    places = [i for i in range(FS_BLOCK_BYTES) if before[i] != after[i]]
    allowed = {Kind.BIT: (1000, 1001), Kind.BURST: (1000, 1048), Kind.ZERO: (512, 1024)}.get(kind, (0, FS_BLOCK_BYTES))
    assert allowed[0] <= places[0] and places[-1] < allowed[1]


def test_damage_that_would_change_nothing_is_refused() -> None:
    """A zeroed sector of zeros is no damage."""
    with pytest.raises(CannotRot, match="stay what they are"):
        decay(bytes(FS_BLOCK_BYTES), 0, Kind.ZERO, 1)
