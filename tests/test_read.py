"""Reading files: right blocks of one state of the file, or a plain word about why not."""

from __future__ import annotations

import errno
import itertools
import os
import stat
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kit_faults import needs_root, small_disk
from kit_source import BadDisk, KnownTree, LaterClock, Meddler, survey
from kit_tree import as_nobody, build_tree, describe_tree, is_root, make_deep, set_acl
from replicad.model.block import block_id, checksum
from replicad.model.entry import (
    MAP_BLOCKS,
    MAX_XATTR_BYTES,
    MAX_XATTRS_BYTES,
    SPARSE,
    Identity,
    Kind,
    Put,
    Stamp,
    op_problem,
)
from replicad.source import large as large_reading
from replicad.source import read as reading
from replicad.source.large import SLAB_BYTES, SPAN_BLOCKS, LargeRead, Slab, open_large
from replicad.source.meta import Described, describe
from replicad.source.read import (
    BATCH_BYTES,
    BATCH_FILES,
    READ_TRIES,
    REAL,
    SMALL_BYTES,
    Access,
    Block,
    Candidate,
    FileRead,
    Outgrown,
    batches,
    read_small,
)
from replicad.source.reread import Ask, Judgement, Moved, Reread, judge_reread, reread
from replicad.source.root import SETTLE_NS, Root, Trouble
from replicad.system.clock import Clock
from replicad.work.untrusted import check_put

KIB = 1024
BLOCK = 64 * KIB
CLOCK = LaterClock()


def read_one(root: Path, name: str, *, access: Access = REAL, clock: Clock = CLOCK) -> FileRead | Outgrown | Trouble:
    with Root(os.fsencode(root)) as opened:
        (result,) = read_small(opened, [Candidate(name.encode(), 0, BLOCK)], clock=clock, access=access)
    return result


def assemble(size: int, block_bytes: int, blocks: list[Block], zeros: list[tuple[int, int]]) -> bytes:
    """The file that blocks and zero runs describe; checks that every block is there once, with the right hashes."""
    data = bytearray(b"\xee" * size)
    covered: list[int] = []
    for block in blocks:
        assert (block.id, block.checksum) == (block_id(block.data), checksum(block.data))
        assert any(block.data)
        data[block.index * block_bytes : block.index * block_bytes + len(block.data)] = block.data
        covered.append(block.index)
    for first, count in zeros:
        start, end = first * block_bytes, min((first + count) * block_bytes, size)
        data[start:end] = bytes(end - start)
        covered += range(first, first + count)
    assert sorted(covered) == list(range(-(-size // block_bytes)))
    assert len(data) == size
    return bytes(data)


def content_of(result: object) -> bytes:
    assert isinstance(result, FileRead), result
    return assemble(result.size, result.block_bytes, result.blocks, result.zeros)


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, SMALL_BYTES])
def test_a_small_file_is_cut_into_hashed_blocks(tmp_path: Path, size: int) -> None:
    """Every size up to the limit comes out whole, under its identity."""
    data = os.urandom(size)
    (tmp_path / "file").write_bytes(data)
    result = read_one(tmp_path, "file")
    assert content_of(result) == data
    assert isinstance(result, FileRead) and not result.moved
    status = (tmp_path / "file").stat()
    assert result.stamp.identity == Identity(0, status.st_ino, size, status.st_mtime_ns, status.st_ctime_ns)


def test_zero_blocks_are_runs(tmp_path: Path) -> None:
    """All-zero blocks are no blocks but runs; a single other byte makes a block."""
    (tmp_path / "file").write_bytes(bytes(2 * BLOCK) + b"\0" * (BLOCK - 1) + b"x" + bytes(BLOCK + 5))
    result = read_one(tmp_path, "file")
    assert isinstance(result, FileRead)
    assert result.zeros == [(0, 2), (3, 2)] and [block.index for block in result.blocks] == [2]


def test_every_file_of_a_tree_is_read_and_described(tmp_path: Path) -> None:
    """Content, metadata and extended attributes of all entries equal what plain calls say."""
    build_tree(tmp_path)
    known = KnownTree()
    survey(os.fsencode(tmp_path), known)
    files = [p for p, s in known.stamps.items() if s.kind == Kind.FILE and s.size <= SMALL_BYTES]
    others = [path for path, stamp in known.stamps.items() if stamp.kind != Kind.FILE]
    expected = describe_tree(tmp_path)
    with Root(os.fsencode(tmp_path)) as root:
        results = read_small(root, [Candidate(path, 0, BLOCK) for path in files], clock=CLOCK)
        described = describe(root, others)
    for path, result in [*zip(files, results, strict=True), *zip(others, described, strict=True)]:
        assert isinstance(result, (FileRead, Described)), result
        entry, meta = expected[path], result.description.meta
        assert result.stamp == known.stamps[path] and result.path == path and not result.description.troubles
        assert (meta.mode, (meta.uid, meta.gid), meta.mtime_ns) == (entry["mode"], entry["owner"], entry["mtime_ns"])
        assert dict(meta.xattrs) == entry["xattrs"] and list(meta.xattrs) == sorted(meta.xattrs)
        assert result.description.target == entry.get("target", b"")
        assert result.description.device == entry.get("device", 0)
        assert result.stamp.kind == Kind.DIRECTORY or (result.links > 1) == ("same_as" in entry)
        assert not isinstance(result, FileRead) or content_of(result) == entry["content"]


def test_a_file_with_holes_is_marked_sparse(tmp_path: Path) -> None:
    """A file that occupies less than its size is sparse, one full of written bytes is not."""
    (tmp_path / "full").write_bytes(b"x" * 5000)
    with open(tmp_path / "holes", "wb") as file:
        file.truncate(500_000)
    for name, flags in (("full", 0), ("holes", SPARSE)):
        result = read_one(tmp_path, name)
        assert isinstance(result, FileRead) and result.description.flags == flags


def test_an_attribute_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unreadable extended attribute does not stop the file, and is not passed over in silence."""
    (tmp_path / "file").write_bytes(b"x")
    os.setxattr(tmp_path / "file", "user.open", b"1")
    os.setxattr(tmp_path / "file", "user.secret", b"2")
    real = os.getxattr

    def getxattr(of: int, name: str) -> bytes:
        if name == "user.secret":
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        return real(of, name)

    monkeypatch.setattr(os, "getxattr", getxattr)
    result = read_one(tmp_path, "file")
    assert isinstance(result, FileRead)
    assert result.description.meta.xattrs == ((b"user.open", b"1"),)
    assert result.description.troubles == ("extended attribute user.secret cannot be read: Operation not permitted",)


def test_attributes_beyond_what_a_record_holds_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more than an entry may have those are recorded that fit, by name, and never more is held; what a replica would
    refuse is left out as well. The number of the others is told."""
    (tmp_path / "file").write_bytes(b"x")
    names = ["user.long", *(f"user.{n:03d}" for n in range(100, 0, -1)), "user.short"]
    sizes = {"user.long": MAX_XATTR_BYTES + 1, "user.short": 10}
    monkeypatch.setattr(os, "listxattr", lambda of: names)
    monkeypatch.setattr(os, "getxattr", lambda of, name: bytes(sizes.get(name, 50_000)))
    tracemalloc.start()
    result = read_one(tmp_path, "file")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(result, FileRead)
    kept = result.description.meta.xattrs
    assert [name for name, _ in kept] == [*(b"user.%03d" % n for n in range(1, 21)), b"user.short"]
    (told,) = result.description.troubles
    assert told.startswith("extended attribute user.021 and 80 more are left out") and peak < 2 * MAX_XATTRS_BYTES
    put = Put(b"file", Kind.FILE, result.description.meta, 1, 1, 4096)
    check_put(put)
    assert op_problem(put) == ""


def test_a_symlink_whose_target_no_record_holds_is_a_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system may hand out a target that no other one takes: the link is left out and named."""
    (tmp_path / "link").symlink_to("there")
    monkeypatch.setattr(os, "readlink", lambda name, dir_fd: b"x" * 4096)
    with Root(os.fsencode(tmp_path)) as root:
        (found,) = describe(root, [b"link"], clock=CLOCK)
    assert isinstance(found, Trouble) and "longer than 4095 bytes" in found.reason


def test_access_control_lists_are_extended_attributes(tmp_path: Path) -> None:
    """An ACL comes along, in the kernel's own notation."""
    (tmp_path / "file").write_bytes(b"x")
    if not set_acl(tmp_path / "file", "u:12345:r"):
        pytest.skip("no setfacl here")
    result = read_one(tmp_path, "file")
    assert isinstance(result, FileRead)
    assert [name for name, _ in result.description.meta.xattrs] == [b"system.posix_acl_access"]


def _append(path: Path) -> None:
    with open(path, "ab") as file:
        file.write(b"more")


def _replace(path: Path) -> None:
    path.with_name("next").write_bytes(b"another file")
    path.with_name("next").rename(path)


def _same_size(path: Path) -> None:
    path.write_bytes(path.read_bytes()[::-1])


DEEDS: dict[str, Callable[[Path], object]] = {
    "grows": _append,
    "shrinks": lambda path: os.truncate(path, 3),
    "is replaced": _replace,
    "is rewritten": _same_size,
    "gets another mode": lambda path: path.chmod(path.stat().st_mode ^ 0o100),
}


@pytest.mark.parametrize("deed", DEEDS)
def test_a_small_file_that_changes_once_while_read_is_read_again(tmp_path: Path, deed: str) -> None:
    """A write between bytes and second look costs another attempt, whose result is whole."""
    path = tmp_path / "file"
    path.write_bytes(b"first content")
    result = read_one(tmp_path, "file", access=Meddler(lambda: DEEDS[deed](path)))
    assert content_of(result) == path.read_bytes()
    assert isinstance(result, FileRead) and not result.moved and result.stamp.inode == path.stat().st_ino


@pytest.mark.parametrize("deed", DEEDS)
def test_a_small_file_that_keeps_changing_is_reported_as_moved(tmp_path: Path, deed: str) -> None:
    """After the last attempt the data come with the word that they moved, and with a size that they really have."""
    path = tmp_path / "file"
    path.write_bytes(b"first content")
    meddler = Meddler(lambda: DEEDS[deed](path), times=100)
    result = read_one(tmp_path, "file", access=meddler)
    assert isinstance(result, FileRead) and result.moved
    assert meddler.left == 100 - READ_TRIES
    assert len(content_of(result)) == result.size <= result.stamp.size


def test_a_file_that_shrank_or_grew_before_its_bytes_were_read_is_never_misreported(tmp_path: Path) -> None:
    """Also between first look and bytes: the next attempt sees one state, whatever happened in the first."""
    path = tmp_path / "file"
    for before, now in ((b"long content", b"short"), (b"short", b"much longer content")):
        path.write_bytes(before)

        class Early(Access):
            done = False

            def read(self, fd: int, size: int, offset: int) -> bytes:
                if not self.done:
                    self.done = True
                    path.write_bytes(now)  # noqa: B023 - used within this round
                return super().read(fd, size, offset)

        result = read_one(tmp_path, "file", access=Early())
        assert content_of(result) == now and isinstance(result, FileRead) and not result.moved


def test_a_file_that_is_deleted_while_read_has_vanished(tmp_path: Path) -> None:
    """Its name leads nowhere at the second attempt: that is a trouble of the passing kind."""
    path = tmp_path / "file"
    path.write_bytes(b"x")
    result = read_one(tmp_path, "file", access=Meddler(path.unlink))
    assert result == Trouble(b"file", "was removed or replaced during the pass", vanished=True)


def test_a_file_that_outgrew_the_batch_is_handed_back(tmp_path: Path) -> None:
    """A file that is large by now is not read into memory but named, with its stamp."""
    (tmp_path / "file").write_bytes(bytes(SMALL_BYTES + 1))
    result = read_one(tmp_path, "file")
    assert isinstance(result, Outgrown) and result.stamp.size == SMALL_BYTES + 1


def _socket(path: Path) -> None:
    os.mknod(path, 0o600 | stat.S_IFSOCK)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, _socket, lambda path: os.symlink("/etc/passwd", path), None])
def test_what_is_no_file_any_more_is_never_read(tmp_path: Path, make: Callable[[Path], object] | None) -> None:
    """A FIFO that nobody writes, a directory, a socket, a symlink or nothing in a file's place: no hanging, no data."""
    if make:
        make(tmp_path / "file")
    result = read_one(tmp_path, "file")
    assert isinstance(result, Trouble) and result.vanished
    with Root(os.fsencode(tmp_path)) as root:
        large = open_large(root, b"file", BLOCK, clock=CLOCK)
        (again,) = reread(root, [Ask(b"file", (0,), BLOCK, Identity(0, 0, 0, 0, 0))])
    assert isinstance(large, Trouble) and large.vanished
    assert isinstance(again, Moved) or (isinstance(again, Trouble) and again.vanished)


def test_a_directory_swapped_for_a_symlink_does_not_lead_outside(tmp_path: Path) -> None:
    """A file below what is a symlink by now is not read, though the path would lead to one."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_bytes(b"secret")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "dir").symlink_to(tmp_path / "outside")
    result = read_one(tmp_path / "root", "dir/file")
    assert isinstance(result, Trouble) and result.vanished


def test_a_file_without_permission_is_a_trouble(tmp_path: Path) -> None:
    """Permission denied is named, and not taken for a deletion; the rest of the batch is read."""
    tmp_path.chmod(0o755)
    (tmp_path / "closed").write_bytes(b"x")
    (tmp_path / "closed").chmod(0)
    (tmp_path / "open").write_bytes(b"y")
    with Root(os.fsencode(tmp_path)) as root, as_nobody():
        closed, opened = read_small(root, [Candidate(b"closed", 1, BLOCK), Candidate(b"open", 1, BLOCK)], clock=CLOCK)
        large = open_large(root, b"closed", BLOCK, clock=CLOCK)
    assert closed == Trouble(b"closed", "cannot be read: Permission denied") == large
    assert content_of(opened) == b"y"


def test_reading_leaves_the_access_time_alone(tmp_path: Path) -> None:
    """The owner's (or root's) replicad does not move access times."""
    path = tmp_path / "file"
    path.write_bytes(b"x")
    os.utime(path, ns=(1, path.stat().st_mtime_ns))
    assert content_of(read_one(tmp_path, "file")) == b"x"
    assert path.stat().st_atime_ns == 1


def test_an_io_error_is_a_trouble(tmp_path: Path) -> None:
    """A disk that cannot read says so for that file, not by an exception and not by short data."""
    (tmp_path / "file").write_bytes(b"x")
    assert read_one(tmp_path, "file", access=BadDisk()) == Trouble(b"file", "cannot be read: Input/output error")


def test_a_file_whose_status_lies_is_a_trouble() -> None:
    """Files as in /proc, which give more bytes than their size says, are not recorded as empty."""
    result = read_one(Path("/proc/self"), "cmdline")
    assert isinstance(result, Trouble) and "0" in result.reason and not result.vanished


def test_a_file_changed_in_this_very_moment_is_given_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file whose last change is within the clock's coarseness is looked at only when the next would show."""
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    (tmp_path / "file").write_bytes(b"x")

    class FileTime(Clock):
        def now_ns(self) -> int:
            return (tmp_path / "file").stat().st_ctime_ns + 1

    assert content_of(read_one(tmp_path, "file", clock=FileTime())) == b"x"
    assert waits == [SETTLE_NS / 1e9]
    assert content_of(read_one(tmp_path, "file")) == b"x"
    assert len(waits) == 1


def test_a_file_of_holes_without_end_is_a_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is longer than any real file is named, and read no more than that."""
    monkeypatch.setattr(large_reading, "MAX_FILE_BLOCKS", 100)
    for name, size in (("long", 100 * BLOCK), ("endless", 100 * BLOCK + 1)):
        (tmp_path / name).touch()
        os.truncate(tmp_path / name, size)
    with Root(os.fsencode(tmp_path)) as root:
        large = open_large(root, b"long", BLOCK, clock=CLOCK)
        assert isinstance(large, LargeRead)
        large.close()
        text = "has 6,553,601 bytes, more than 100 blocks of 65,536: it is not replicated"
        assert open_large(root, b"endless", BLOCK, clock=CLOCK) == Trouble(b"endless", text)


def test_a_file_that_changes_again_while_it_is_given_time_is_given_time_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is recorded in the end is never so young that the next change would not show in its times."""
    path, waits = tmp_path / "file", itertools.count()
    path.write_bytes(b"one")
    monkeypatch.setattr(time, "sleep", lambda _: next(waits) or path.write_bytes(b"two"))

    class FileTime(Clock):
        def now_ns(self) -> int:
            return path.stat().st_ctime_ns + 1

    read = read_one(tmp_path, "file", clock=FileTime())
    assert content_of(read) == b"two" and isinstance(read, FileRead) and not read.moved
    assert next(waits) == 2


@needs_root
def test_a_write_shows_where_times_are_whole_seconds(tmp_path: Path) -> None:
    """On a file system that stamps whole seconds, a write right after a file was read is no less a write."""
    with small_disk(tmp_path / "disk", 8, "ext4", "-I", "128") as disk:
        path = disk / "file"
        while time.time() % 1 > 0.1:  # else the two writes might fall into two seconds by themselves
            time.sleep(0.01)
        path.write_bytes(b"one")
        before = read_one(disk, "file", clock=Clock())
        path.write_bytes(b"two")
        with Root(os.fsencode(disk)) as root:
            assert isinstance(before, FileRead) and before.stamp != root.look(b"file")


def test_batches_are_bounded_by_number_and_by_bytes() -> None:
    """No batch has too many files, or goes on when it has enough bytes; none is lost, the order stays."""
    sizes = [1] * 600 + [SMALL_BYTES] * 20 + [0]
    candidates = [Candidate(b"%d" % number, size, BLOCK) for number, size in enumerate(sizes)]
    cut = list(batches(candidates))
    assert list(itertools.chain(*cut)) == candidates
    assert all(len(batch) <= BATCH_FILES for batch in cut)
    assert all(sum(c.size for c in batch) <= BATCH_BYTES + SMALL_BYTES for batch in cut)


def test_a_batch_whose_files_have_grown_holds_no_more_than_it_may(tmp_path: Path) -> None:
    """Files that were small when they were walked are read whole as far as there is room; the others are outgrown."""
    for number in range(20):
        (tmp_path / f"{number}").write_bytes(bytes([number + 1]) * SMALL_BYTES)
    with Root(os.fsencode(tmp_path)) as root:
        found = read_small(root, [Candidate(b"%d" % number, 1, BLOCK) for number in range(20)], clock=CLOCK)
    read = [one for one in found if isinstance(one, FileRead)]
    assert BATCH_BYTES <= sum(one.size for one in read) <= BATCH_BYTES + SMALL_BYTES
    assert all(isinstance(one, Outgrown) for one in found[len(read) :])


def test_a_batch_of_any_length_keeps_its_order_and_closes_its_files(tmp_path: Path) -> None:
    """More files than are held open at a time, with some missing: results in order, descriptors given back."""
    candidates = []
    for number in range(3 * reading.AHEAD_FILES + 1):
        if number % 7:
            (tmp_path / str(number)).write_bytes(b"%d" % number)
        candidates.append(Candidate(b"%d" % number, 0, BLOCK))
    before = len(os.listdir("/proc/self/fd"))
    with Root(os.fsencode(tmp_path)) as root:
        results = read_small(root, candidates, clock=CLOCK)
    for number, result in enumerate(results):
        assert isinstance(result, FileRead if number % 7 else Trouble)
        assert not isinstance(result, FileRead) or content_of(result) == b"%d" % number
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_longest_possible_path_can_be_read(tmp_path: Path) -> None:
    """A file whose relative path has 4095 bytes is read, read again and described, wherever the root lies."""
    deep = make_deep(os.fsencode(tmp_path), 4095)
    with Root(os.fsencode(tmp_path)) as root:
        (result,) = read_small(root, [Candidate(deep, 0, BLOCK)], clock=CLOCK)
        assert content_of(result) == b"deep down"
        assert isinstance(result, FileRead)
        (again,) = reread(root, [Ask(deep, (0,), BLOCK, result.stamp.identity)])
        (above,) = describe(root, [deep.rpartition(b"/")[0]])
    assert isinstance(again, Reread) and again.blocks == [b"deep down"]
    assert isinstance(above, Described)


def test_entries_of_any_kind_are_described_unread(tmp_path: Path) -> None:
    """A regular file is described by its stamp and metadata alone; a missing entry has vanished."""
    with open(tmp_path / "file", "wb") as file:
        file.truncate(100_000)
    (tmp_path / "file").chmod(0)
    with Root(os.fsencode(tmp_path)) as root:
        found, missing = describe(root, [b"file", b"missing"], clock=CLOCK)
    assert isinstance(missing, Trouble) and missing.vanished
    assert isinstance(found, Described) and found.stamp.kind == Kind.FILE and found.description.flags == SPARSE
    assert found.stamp.identity == Identity(0, *_identity(tmp_path / "file"))


def _identity(path: Path) -> tuple[int, int, int, int]:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


# Large files


def read_large(root: Path, name: str, *, block_bytes: int = BLOCK, access: Access = REAL) -> tuple[LargeRead, bytes]:
    """A large file read to its end, not yet finished, and its content."""
    opened = Root(os.fsencode(root))
    large = open_large(opened, name.encode(), block_bytes, clock=CLOCK, access=access)
    assert isinstance(large, LargeRead), large
    opened.close()
    blocks: list[Block] = []
    zeros: list[tuple[int, int]] = []
    while (slab := large.read()) is not None:
        assert isinstance(slab, Slab), slab
        assert slab.same == 0 and slab.read_bytes <= SLAB_BYTES and len(slab.zeros) <= MAP_BLOCKS
        blocks += slab.blocks
        zeros += slab.zeros
    return large, assemble(large.size, block_bytes, blocks, zeros)


@pytest.mark.parametrize("block_bytes", [4096, BLOCK, 1024 * KIB])
@pytest.mark.parametrize("size", [0, 1, SLAB_BYTES, 2 * SLAB_BYTES + 4097])
def test_a_large_file_comes_whole(tmp_path: Path, size: int, block_bytes: int) -> None:
    """Slab by slab, every byte of every size is there, and an undisturbed file keeps its stamp."""
    data = os.urandom(size)
    (tmp_path / "file").write_bytes(data)
    large, content = read_large(tmp_path, "file", block_bytes=block_bytes)
    assert content == data and large.read() is None
    assert large.finish() == large.stamp


@pytest.mark.parametrize("cached", [True, False])
def test_cached_and_uncached_files_read_the_same(tmp_path: Path, cached: bool) -> None:
    """A file that is not in the page cache is read past it where possible, with the same result."""
    data = os.urandom(3 * SLAB_BYTES // 2)
    with open(tmp_path / "file", "wb") as file:
        file.write(data)
        os.fsync(file.fileno())
        if not cached:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with Root(os.fsencode(tmp_path)) as root:
        large = open_large(root, b"file", BLOCK, clock=CLOCK)
        assert isinstance(large, LargeRead)
        slabs = list(iter(large.read, None))
        assert large.finish() == large.stamp
    assert all(isinstance(slab, Slab) for slab in slabs)
    if cached:
        assert not any(slab.direct for slab in slabs if isinstance(slab, Slab))
    assert b"".join(b.data for slab in slabs if isinstance(slab, Slab) for b in slab.blocks) == data


def test_a_file_system_that_refuses_direct_reads_is_read_through_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused when opened or when read: either way the file comes whole, and is labelled as read from the cache."""
    data = os.urandom(SLAB_BYTES + 5)
    (tmp_path / "file").write_bytes(data)
    monkeypatch.setattr("replicad.source.large.is_cached", lambda fd, offset: False)
    large, content = read_large(tmp_path, "file", access=BadDisk(direct_errno=errno.EINVAL))
    assert content == data
    large.close()
    monkeypatch.setattr("replicad.source.large.DirectReader.of", lambda fd: None)
    large, content = read_large(tmp_path, "file")
    assert content == data and large.finish() == large.stamp


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pieces=st.lists(st.tuples(st.integers(0, 300), st.integers(1, 3 * 4096), st.booleans()), max_size=8),
    size=st.integers(1, 300 * 4096),
)
def test_holes_are_found_and_not_read(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[tuple[int, int, bool]], size: int
) -> None:
    """Whatever the layout of data, written zeros and holes, the content comes out the same."""
    path = tmp_path_factory.mktemp("sparse") / "file"
    with open(path, "wb") as file:
        for block, length, written_zeros in pieces:
            piece = bytes(length) if written_zeros else os.urandom(length)
            os.pwrite(file.fileno(), piece, block * 4096 + length % 512)
        file.truncate(size)
    large, content = read_large(path.parent, "file", block_bytes=4096)
    assert content == path.read_bytes()
    assert large.finish() == large.stamp


def test_a_huge_hole_costs_next_to_nothing(tmp_path: Path) -> None:
    """Of a terabyte with a few bytes in it only their block is read, and no call covers more than so many blocks."""
    mib = 1024 * KIB
    with open(tmp_path / "file", "wb") as file:
        file.truncate(2**40)
        os.pwrite(file.fileno(), b"here", 2**39)
    with Root(os.fsencode(tmp_path)) as root:
        large = open_large(root, b"file", mib, clock=CLOCK)
        assert isinstance(large, LargeRead)
        slabs = [slab for slab in iter(large.read, None) if isinstance(slab, Slab)]
        assert large.finish() == large.stamp
    assert len(slabs) <= 2**40 // mib // SPAN_BLOCKS + 1 and sum(slab.read_bytes for slab in slabs) == mib
    assert sum(count for slab in slabs for _, count in slab.zeros) == 2**40 // mib - 1
    assert [(b.index, b.data[:5]) for slab in slabs for b in slab.blocks] == [(2**39 // mib, b"here\0")]


@pytest.mark.parametrize("data_at", [(), (0,), (9,), (4, 5), (0, 3, 9)])
def test_upcoming_covers_every_block_holes_included(tmp_path: Path, data_at: tuple[int, ...]) -> None:
    """Whoever looks up what is known of `upcoming` sees each block once: no hole, at either end, is left out."""
    with open(tmp_path / "file", "wb") as file:
        file.truncate(10 * BLOCK - 1)
        for index in data_at:
            os.pwrite(file.fileno(), b"x" * 4096, index * BLOCK)
    seen: list[int] = []
    with Root(os.fsencode(tmp_path)) as root:
        large = open_large(root, b"file", BLOCK, clock=CLOCK)
        assert isinstance(large, LargeRead)
        while upcoming := large.upcoming:
            slab = large.read()
            assert isinstance(slab, Slab)
            covered = [b.index for b in slab.blocks] + [i for first, n in slab.zeros for i in range(first, first + n)]
            assert sorted(covered) == list(upcoming)
            seen += upcoming
        assert large.read() is None and large.finish() == large.stamp
    assert seen == list(range(10))


def test_blocks_with_the_known_id_are_left_out(tmp_path: Path) -> None:
    """With the ids of `upcoming` given, only blocks that differ come back; all others are counted."""
    data = bytearray(os.urandom(SLAB_BYTES + 3 * BLOCK + 7))
    ids = {i: block_id(bytes(data[i * BLOCK : (i + 1) * BLOCK])) for i in range(-(-len(data) // BLOCK))}
    data[5] ^= 1
    data[-1] ^= 1
    (tmp_path / "file").write_bytes(data)
    with Root(os.fsencode(tmp_path)) as root:
        large = open_large(root, b"file", BLOCK, clock=CLOCK)
        assert isinstance(large, LargeRead)
        seen: list[int] = []
        different: list[int] = []
        while upcoming := large.upcoming:
            slab = large.read({index: ids[index] for index in upcoming})
            assert isinstance(slab, Slab) and slab.same + len(slab.blocks) == len(upcoming)
            seen += upcoming
            different += [block.index for block in slab.blocks]
        assert large.read() is None and large.finish() == large.stamp
    assert seen == sorted(ids) and different == [0, max(ids)]


LARGE_DEEDS: dict[str, Callable[[Path], object]] = {
    "grows": _append,
    "shrinks": lambda path: os.truncate(path, SLAB_BYTES + 10),
    "shrinks to nothing": lambda path: os.truncate(path, 0),
    "is written in place": lambda path: path.open("r+b").write(b"!") and None,
    "is deleted": lambda path: path.unlink(),
    "is replaced": _replace,
}


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("deed", LARGE_DEEDS)
def test_a_large_file_that_changes_while_read_is_seen_to_move(tmp_path: Path, deed: str) -> None:
    """Whatever happens after the first slab, reading ends in order and the second stamp differs."""
    path = tmp_path / "file"
    path.write_bytes(os.urandom(3 * SLAB_BYTES))
    with Root(os.fsencode(tmp_path)) as root:
        large = open_large(root, b"file", BLOCK, clock=CLOCK)
        assert isinstance(large, LargeRead)
        covered = 0
        slab = large.read()
        assert isinstance(slab, Slab)
        LARGE_DEEDS[deed](path)
        while isinstance(slab, Slab):
            covered += sum(len(block.data) for block in slab.blocks)
            slab = large.read()
        assert slab is None
        after = large.finish()
    assert isinstance(after, Stamp) and after != large.stamp
    assert covered <= max(large.size, SLAB_BYTES)


def test_an_io_error_in_a_large_file_is_a_trouble_that_names_the_place(tmp_path: Path) -> None:
    """The file cannot be read to its end; where, is said, and nothing comes after."""
    (tmp_path / "file").write_bytes(os.urandom(2 * SLAB_BYTES))
    with Root(os.fsencode(tmp_path)) as root:
        access = BadDisk(SLAB_BYTES + 5)
        large = open_large(root, b"file", BLOCK, clock=CLOCK, access=access)
        assert isinstance(large, LargeRead)
        with large:
            assert isinstance(large.read(), Slab)
            failed = large.read()
            assert large.read() is None
    assert isinstance(failed, Trouble)
    assert failed.reason == f"cannot be read near byte {SLAB_BYTES}: Input/output error"


def test_a_large_read_gives_back_what_it_holds(tmp_path: Path) -> None:
    """Finished, left early or failed, no descriptor stays open."""
    (tmp_path / "file").write_bytes(os.urandom(2 * SLAB_BYTES))
    before = len(os.listdir("/proc/self/fd"))
    with Root(os.fsencode(tmp_path)) as root:
        for _ in range(3):
            large = open_large(root, b"file", BLOCK, clock=CLOCK)
            assert isinstance(large, LargeRead)
            with large:
                large.read()
        open_large(root, b"missing", BLOCK, clock=CLOCK)
    assert len(os.listdir("/proc/self/fd")) == before


# Single blocks again


@pytest.mark.parametrize("medium", [False, True])
def test_single_blocks_are_read_again(tmp_path: Path, medium: bool) -> None:
    """Blocks come in the order asked, the short last one too, from the medium where that was asked and is possible."""
    data = os.urandom(2 * BLOCK + 100)
    (tmp_path / "file").write_bytes(data)
    first = read_one(tmp_path, "file")
    assert isinstance(first, FileRead)
    ask = Ask(b"file", (2, 0), BLOCK, first.stamp.identity)
    with Root(os.fsencode(tmp_path)) as root:
        (result,) = reread(root, [ask], medium=medium)
    assert isinstance(result, Reread) and result.blocks == [data[2 * BLOCK :], data[:BLOCK]]
    assert medium or not result.medium


def test_a_refused_direct_read_is_not_labelled_as_from_the_medium(tmp_path: Path) -> None:
    """Where the file system refuses, the bytes come through the cache, and that is said."""
    (tmp_path / "file").write_bytes(b"x" * 100)
    first = read_one(tmp_path, "file")
    assert isinstance(first, FileRead)
    with Root(os.fsencode(tmp_path)) as root:
        ask = Ask(b"file", (0,), BLOCK, first.stamp.identity)
        (result,) = reread(root, [ask], medium=True, access=BadDisk(direct_errno=errno.EINVAL))
        (failed,) = reread(root, [ask], medium=True, access=BadDisk(direct_errno=errno.EIO))
    assert result == Reread(b"file", [b"x" * 100], False)
    assert failed == Trouble(b"file", "cannot be read: Input/output error")


def test_blocks_of_a_written_file_are_not_returned(tmp_path: Path) -> None:
    """Written before or during the read, deleted, or replaced: the old record's blocks are not to be had."""
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100)
    first = read_one(tmp_path, "file")
    assert isinstance(first, FileRead)
    ask = Ask(b"file", (0,), BLOCK, first.stamp.identity)
    with Root(os.fsencode(tmp_path)) as root:
        (during,) = reread(root, [ask], access=Meddler(lambda: path.write_bytes(b"y" * 100)))
        (before,) = reread(root, [ask])
        assert isinstance(during, Moved) and during == before
        path.unlink()
        (gone,) = reread(root, [ask])
    assert isinstance(gone, Trouble) and gone.vanished


def test_a_block_behind_the_end_is_empty(tmp_path: Path) -> None:
    """A question about a block that the file never had is answered by no bytes, not by an error."""
    (tmp_path / "file").write_bytes(b"x")
    first = read_one(tmp_path, "file")
    assert isinstance(first, FileRead)
    with Root(os.fsencode(tmp_path)) as root:
        assert reread(root, [Ask(b"file", (7,), BLOCK, first.stamp.identity)]) == [Reread(b"file", [b""], False)]


def test_rot_is_told_from_writing_by_the_identity_alone() -> None:
    """All combinations: only other bytes under the same identity are rot, and every part of the identity counts."""
    identity = Identity(0, 1, 2, 3, 4)
    others = [Identity(*(9 if i == j else i for i in range(5))) for j in range(5)]
    good, bad = checksum(b"good"), checksum(b"bad")
    assert judge_reread(good, identity, good, identity) is Judgement.SAME
    assert judge_reread(good, identity, bad, identity) is Judgement.ROT
    for other, seen in itertools.product(others, (good, bad)):
        assert judge_reread(good, identity, seen, other) is Judgement.WRITTEN


def test_rot_on_the_disk_is_judged_as_rot(tmp_path: Path) -> None:
    """A bit that flips under an unchanged identity, as on a failing disk, is rot when the block is read again."""
    (tmp_path / "file").write_bytes(b"x" * 100)
    first = read_one(tmp_path, "file")
    assert isinstance(first, FileRead)

    class Rotten(Access):
        def read(self, fd: int, size: int, offset: int) -> bytes:
            data = bytearray(super().read(fd, size, offset))
            data[50] ^= 4
            return bytes(data)

    identity = first.stamp.identity
    with Root(os.fsencode(tmp_path)) as root:
        (again,) = reread(root, [Ask(b"file", (0,), BLOCK, identity)], access=Rotten())
    assert isinstance(again, Reread)
    assert judge_reread(first.blocks[0].checksum, identity, checksum(again.blocks[0]), identity) is Judgement.ROT


def test_nobody_reads_foreign_files_without_their_owners_right(tmp_path: Path) -> None:
    """A file of somebody else, whose access time only its owner may leave alone, is read all the same."""
    if not is_root():
        pytest.skip("needs root, to have a file of somebody else")
    tmp_path.chmod(0o755)
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "file").chmod(0o644)
    with Root(os.fsencode(tmp_path)) as root, as_nobody():
        (result,) = read_small(root, [Candidate(b"file", 1, BLOCK)], clock=CLOCK)
    assert content_of(result) == b"x"
