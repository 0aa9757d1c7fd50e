"""The disk: what is synced is there, what fails says so, and nothing is left half done."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit_store import FaultyDisk
from replicad.model.block import Buffer
from replicad.model.errors import DiskFullError, LockedError, ReplicadError
from replicad.system import disk as disk_module
from replicad.system.disk import ALIGN_BYTES, AlignedBuffer, Disk, Lock, align_down, align_up, read_at, set_direct

MEMORY = Path("/dev/shm")


@pytest.fixture(params=[Disk, FaultyDisk], ids=["real", "simulated"])
def disk(request: pytest.FixtureRequest) -> Disk:
    """The real disk and the simulated one keep the same contract."""
    made: Disk = request.param()
    return made


@pytest.fixture(params=["disk", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A directory on a file system with O_DIRECT, and on tmpfs."""
    if request.param == "disk":
        yield tmp_path
        return
    if not MEMORY.is_dir():
        pytest.skip("no tmpfs here")
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        yield Path(name)


def test_appended_is_read_back(disk: Disk, place: Path) -> None:
    """What is appended in pieces of any size is in the file after a sync, and an unaligned end can be continued."""
    path = place / "file"
    pieces = [os.urandom(n) for n in (1, 4095, 70_000, 3_000_000, 5)]
    appender = disk.create(path)
    for piece in pieces:
        appender.append(piece)
    whole = b"".join(pieces)
    appender.append(bytes(-len(whole) % ALIGN_BYTES))
    appender.sync()
    appender.close()
    assert path.read_bytes()[: len(whole)] == whole
    disk.truncate(path, len(whole))
    again = disk.open_append(path, len(whole))
    again.append(b"x" * (-len(whole) % ALIGN_BYTES))
    again.sync()
    again.close()
    assert path.read_bytes() == whole + b"x" * (-len(whole) % ALIGN_BYTES)


def test_a_sync_needs_an_aligned_end(disk: Disk, tmp_path: Path) -> None:
    """Syncing an unaligned end is our own mistake: a page would be written twice."""
    appender = disk.create(tmp_path / "file")
    appender.append(b"x")
    with pytest.raises(AssertionError):
        appender.sync()
    appender.close()
    assert (tmp_path / "file").read_bytes() == b""


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30_000), st.integers(0, 30_000)), max_size=8), st.integers(0, 20_000))
def test_reads_at_any_place(reads: list[tuple[int, int]], size: int) -> None:
    """A read gives the bytes of the file at any offset and size, and less at and behind its end."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "file"
        data = os.urandom(size)
        path.write_bytes(data)
        reader = Disk().open_read(path)
        assert reader.size == size
        for offset, count in reads:
            assert bytes(reader.read_at(offset, count)) == data[offset : offset + count]
        reader.close()


def test_reads_on_tmpfs_and_through_the_cache(place: Path) -> None:
    """Where O_DIRECT is refused, or switched off, the same bytes come back, and the reader says which it was."""
    path = place / "file"
    data = os.urandom(10_000)
    path.write_bytes(data)
    fd = os.open(path, os.O_RDONLY)
    buffer = AlignedBuffer(20_000)
    for wanted in (True, False):
        direct = set_direct(fd, wanted)
        assert not direct or wanted
        assert bytes(read_at(fd, buffer, 5000, 4000)) == data[5000:9000]
    os.close(fd)
    reader = Disk().open_read(path)
    assert bytes(reader.read_at(9_999, 100)) == data[9_999:]
    assert reader.direct in (True, False)
    reader.close()


def test_a_file_system_that_refuses_the_transfer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some file systems take the O_DIRECT flag and refuse the transfer: reads and writes go on without it."""

    class Picky(Disk):
        def pwrite(self, fd: int, data: Buffer, offset: int) -> int:
            if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
                raise OSError(errno.EINVAL, "Invalid argument")
            return super().pwrite(fd, data, offset)

    appender = Picky().create(tmp_path / "file")
    appender.append(bytes(range(256)) * 16)
    appender.sync()
    appender.close()
    assert (tmp_path / "file").read_bytes() == bytes(range(256)) * 16

    real = os.preadv

    def picky(fd: int, buffers: list[memoryview], offset: int) -> int:
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", picky)
    reader = Disk().open_read(tmp_path / "file")
    assert bytes(reader.read_at(1, 3)) == b"\1\2\3" and not reader.direct
    reader.close()


def test_a_full_disk(tmp_path: Path) -> None:
    """A write that finds no room raises DiskFullError with the path, and the appender refuses to go on."""
    disk = FaultyDisk()
    appender = disk.create(tmp_path / "file")
    disk.room = 3 * ALIGN_BYTES
    appender.append(os.urandom(10 * ALIGN_BYTES))
    with pytest.raises(DiskFullError, match="no room while writing") as caught:
        appender.sync()
    assert caught.value.where == str(tmp_path / "file")
    with pytest.raises(ReplicadError, match="after an error"):
        appender.sync()
    appender.close()
    assert (tmp_path / "file").stat().st_size == 3 * ALIGN_BYTES


def test_a_failed_sync(tmp_path: Path) -> None:
    """A sync that fails is never taken for one that worked, not even when tried again."""
    disk = FaultyDisk()
    appender = disk.create(tmp_path / "file")
    appender.append(bytes(ALIGN_BYTES))
    disk.fail_sync = True
    with pytest.raises(ReplicadError, match="error while syncing"):
        appender.sync()
    disk.fail_sync = False
    with pytest.raises(ReplicadError, match="after an error"):
        appender.sync()
    appender.close()


def test_write_durable_is_all_or_nothing(disk: Disk, tmp_path: Path) -> None:
    """A file is replaced whole, with its mode, and nothing else is left; a failed write leaves the old one."""
    path = tmp_path / "key"
    path.write_bytes(b"old")
    disk.write_durable(path, b"new", 0o640)
    assert path.read_bytes() == b"new" and path.stat().st_mode & 0o7777 == 0o640
    assert os.listdir(tmp_path) == ["key"]
    full = FaultyDisk()
    full.room = 0
    with pytest.raises(DiskFullError):
        full.write_durable(path, b"newer")
    assert path.read_bytes() == b"new"
    disk.write_durable(path, b"newest")
    assert path.read_bytes() == b"newest" and os.listdir(tmp_path) == ["key"]


def test_directories(disk: Disk, tmp_path: Path) -> None:
    """Directories are made with their parents; renaming replaces; both are no error when done twice."""
    disk.make_directory(tmp_path / "a" / "b")
    disk.make_directory(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700
    (tmp_path / "a" / "file").write_bytes(b"1")
    disk.rename_durable(tmp_path / "a" / "file", tmp_path / "a" / "b" / "file")
    assert (tmp_path / "a" / "b" / "file").read_bytes() == b"1"
    (tmp_path / "plain").write_bytes(b"")
    with pytest.raises((ReplicadError, FileExistsError)):
        disk.make_directory(tmp_path / "plain" / "x")


def test_free_bytes(disk: Disk, tmp_path: Path) -> None:
    """Free space is what an ordinary user may still write."""
    found = os.statvfs(tmp_path)
    assert abs(disk.free_bytes(tmp_path) - found.f_bavail * found.f_frsize) < 2**30
    with pytest.raises(FileNotFoundError):
        disk.free_bytes(tmp_path / "absent")


def test_the_lock_names_its_holder(tmp_path: Path) -> None:
    """A lock held by another process, or by this one, is refused with the holder's process id; then it is free."""
    path = tmp_path / "lock"
    code = "import fcntl,os,sys; f=open(sys.argv[1],'w'); fcntl.flock(f,fcntl.LOCK_EX); f.write(str(os.getpid()));"
    code += "f.flush(); print('held',flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout and other.stdout.readline() == b"held\n"
        with pytest.raises(LockedError, match=f"process {other.pid} already works here"):
            Lock(path)
    lock = Lock(path)
    with pytest.raises(LockedError, match=str(os.getpid())):
        Lock(path)
    lock.release()
    lock.release()
    Lock(path).release()
    with pytest.raises(FileNotFoundError):
        Lock(tmp_path / "absent" / "lock")


@given(st.integers(0, 10**6))
def test_alignment(position: int) -> None:
    """Aligned positions are the nearest multiples on both sides."""
    assert align_down(position) <= position <= align_up(position) < position + ALIGN_BYTES
    assert align_down(position) % ALIGN_BYTES == 0 == align_up(position) % ALIGN_BYTES


def test_a_lock_that_cannot_be_written_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk: who tries again once there is room is not told that he himself works there."""

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(DiskFullError):
        Lock(tmp_path / "lock")
    monkeypatch.undo()
    Lock(tmp_path / "lock").release()


def test_a_file_that_cannot_be_gone_on_with_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often it is tried, no descriptor stays open."""

    def fail(*_: object) -> memoryview:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    (tmp_path / "file").write_bytes(bytes(5000))
    before = os.listdir("/proc/self/fd")
    monkeypatch.setattr(disk_module, "read_at", fail)
    with pytest.raises(ReplicadError, match="Input/output error"):
        Disk().open_append(tmp_path / "file", 5000)
    monkeypatch.setattr(Disk, "sync_directory", fail)
    with pytest.raises(OSError):
        Disk().create(tmp_path / "new")
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_what_could_not_be_written_takes_no_room(tmp_path: Path) -> None:
    """A half-written file beside the one that was to be replaced would fill a full disk for good."""

    class Full(Disk):
        def pwrite(self, fd: int, data: Buffer, offset: int) -> int:
            if offset:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().pwrite(fd, data[:100], offset)

    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(DiskFullError):
        Full().write_durable(tmp_path / "file", bytes(5000))
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("file", b"old")]
