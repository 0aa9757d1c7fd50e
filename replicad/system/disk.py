"""Disk: durable writes, aligned reads and writes past the page cache, locks and free space.

Owns fsync, fdatasync, rename and O_DIRECT: durability is reviewed here once, and crash tests have one place to
cut. Everything goes through a `Disk`, whose few primitive calls a simulated disk overrides. Why past the cache:
filling fresh cache pages costs more CPU than anything else here, and a scrub that reads the cache proves nothing.

Never leaves a half-written file under its final name. Errors of the system come out as DiskFullError (no room),
LockedError or ReplicadError with the path; FileNotFoundError and FileExistsError pass as they are.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from replicad.model.block import Buffer
from replicad.model.errors import DiskFullError, LockedError, ReplicadError

ALIGN_BYTES = 4096
"""Offsets, lengths and addresses of O_DIRECT transfers are multiples of this: the largest logical sector in use."""
APPEND_BUFFER_BYTES = 1024 * 1024
"""Filled before a write: a device reaches its full rate with transfers of this size, and each open store costs one."""
READ_BUFFER_BYTES = 8 * 1024 * 1024
"""Largest single aligned read of a `Reader`: any frame fits, and a scan reads little twice."""

_syncfs = ctypes.CDLL(None, use_errno=True).syncfs  # Python offers sync(2) only, which waits for every disk there is
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def errors_at(path: Path, doing: str) -> Iterator[None]:
    """Map what the operating system says about `path` to our errors."""
    try:
        yield
    except (FileNotFoundError, FileExistsError):
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in _NO_ROOM:
            hint = "free space on this file system"
            raise DiskFullError(f"no room while {doing}: {reason}", where=str(path), hint=hint) from error
        hint = "look at the disk (dmesg, smartctl)" if error.errno == errno.EIO else "check rights and mount"
        raise ReplicadError(f"error while {doing}: {reason}", where=str(path), hint=hint) from error


class AlignedBuffer:
    """Page-aligned memory of a fixed size, usable for O_DIRECT. `view` is writable."""

    def __init__(self, size_bytes: int) -> None:
        """`size_bytes` is rounded up to ALIGN_BYTES."""
        self.view = memoryview(mmap.mmap(-1, align_up(size_bytes)))

    @classmethod
    def of(cls, view: memoryview) -> AlignedBuffer:
        """A part of a buffer as one of its own; it begins and ends at multiples of ALIGN_BYTES."""
        part = cls.__new__(cls)
        part.view = view
        return part

    def __len__(self) -> int:
        return len(self.view)


def align_down(position: int) -> int:
    """The multiple of ALIGN_BYTES at or before `position`."""
    return position - position % ALIGN_BYTES


def align_up(position: int) -> int:
    """The multiple of ALIGN_BYTES at or after `position`."""
    return position + -position % ALIGN_BYTES


def set_direct(fd: int, direct: bool) -> bool:
    """Switch O_DIRECT of an open file; whether it is on now (some file systems, such as tmpfs, refuse it)."""
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT if direct else flags & ~os.O_DIRECT)
    except OSError:
        return False
    return direct


def read_at(fd: int, buffer: AlignedBuffer, offset: int, size: int) -> memoryview:
    """Up to `size` bytes from `offset`, less at the end of the file; works with and without O_DIRECT on `fd`.

    The result is a view into `buffer`, valid until its next use; `size` plus alignment must fit into it.
    Raises OSError as the system gives it. A file system that takes the O_DIRECT flag but refuses the transfer gets
    the flag removed (`set_direct` tells).
    """
    first, last = align_down(offset), align_up(offset + size)
    assert last - first <= len(buffer), "read does not fit into the buffer"
    got = 0
    while first + got < last:
        try:
            count = os.preadv(fd, [buffer.view[got : last - first]], first + got)
        except OSError as error:
            if error.errno != errno.EINVAL or not fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
                raise
            set_direct(fd, False)
            continue
        got += count
        if count == 0 or got % ALIGN_BYTES:  # the end of the file; going on there would not be aligned
            break
    start = offset - first
    return buffer.view[start : max(start, min(got, start + size))]


class Lock:
    """An exclusive lock on a file, held until `release` or the process ends."""

    def __init__(self, path: Path) -> None:
        """Raises LockedError naming the holder's process id, ReplicadError when the file cannot be made."""
        with errors_at(path, "locking"):
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(self._fd)
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise ReplicadError(f"cannot lock: {error.strerror}", where=str(path)) from error
            text = f"process {holder} already works here"
            raise LockedError(text, where=str(path), hint="stop it, or use another directory") from None
        try:
            with errors_at(path, "writing the lock"):
                os.ftruncate(self._fd, 0)
                os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)
        except BaseException:
            self.release()  # else nobody could lock it again before this process ends
            raise

    def release(self) -> None:
        """Let others in. The file stays: removing it would let two processes lock two files of one name."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Disk:
    """The real disk. The methods of the second group are what a simulated disk overrides."""

    def write_durable(self, path: Path, data: bytes, mode: int = 0o600) -> None:
        """Replace `path` by a file with `data`: after a crash there is the old file or the new one, whole."""
        temporary = path.with_name(f".{path.name}.new")
        try:
            with errors_at(path, "writing"):
                self._write_whole(temporary, data, mode)
        except ReplicadError:
            with suppress(OSError):
                temporary.unlink()  # where there was no room, it takes none
            raise
        self.rename_durable(temporary, path)

    def _write_whole(self, path: Path, data: bytes, mode: int) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
        try:
            os.fchmod(fd, mode)
            done = 0
            while done < len(data):
                done += self.pwrite(fd, data[done:], done)
            self.sync(fd)
        finally:
            os.close(fd)

    def rename_durable(self, source: Path, target: Path) -> None:
        """Rename within one directory or between two, replacing `target`; on the disk when this returns."""
        with errors_at(target, "renaming"):
            os.replace(source, target)
        for directory in {source.parent, target.parent}:
            self.sync_directory(directory)

    def make_directory(self, path: Path, mode: int = 0o700) -> None:
        """Make `path` and its missing parents, each durably; one that exists stays as it is."""
        if path.is_dir():
            return
        self.make_directory(path.parent, mode)
        with errors_at(path, "making a directory"):
            path.mkdir(mode, exist_ok=True)
        self.sync_directory(path.parent)

    def truncate(self, path: Path, size: int) -> None:
        """Cut a file to `size` bytes, durably."""
        with errors_at(path, "cutting"):
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.ftruncate(fd, size)
                self.sync(fd)
            finally:
                os.close(fd)

    def sync_file(self, path: Path) -> None:
        """Make what anybody wrote to a file durable."""
        with errors_at(path, "syncing"):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                self.sync(fd)
            finally:
                os.close(fd)

    def open_read(self, path: Path) -> Reader:
        """Open a file for aligned reads past the page cache."""
        return Reader(path)

    def create(self, path: Path) -> Appender:
        """A new, empty file to append to; its name is durable when this returns. Raises FileExistsError."""
        appender = Appender(self, path, os.O_CREAT | os.O_EXCL, 0)
        try:
            self.sync_directory(path.parent)
        except BaseException:
            appender.close()
            raise
        return appender

    def open_append(self, path: Path, position: int) -> Appender:
        """Go on appending to a file at `position`, which must be its end."""
        return Appender(self, path, 0, position)

    # primitives: every byte, sync and question goes through these

    def pwrite(self, fd: int, data: Buffer, offset: int) -> int:
        """Write at `offset`; how much was written. Raises OSError."""
        return os.pwrite(fd, data, offset)

    def sync(self, fd: int) -> None:
        """Make the written bytes and the length of the file durable. Raises OSError."""
        os.fdatasync(fd)

    def sync_with_times(self, fd: int) -> None:
        """The same, and its times and rights as well. Raises OSError."""
        os.fsync(fd)

    def sync_directory(self, path: Path) -> None:
        """Make the names in a directory durable."""
        with errors_at(path, "syncing a directory"):
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def rename_at(self, old: bytes, new: bytes, directory: int) -> None:
        """Rename within the open directory `directory`, replacing `new`; not durable by itself. Raises OSError."""
        os.rename(old, new, src_dir_fd=directory, dst_dir_fd=directory)

    def move_at(self, old: bytes, source: int, new: bytes, target: int) -> None:
        """Rename from one open directory into another on the same file system; not durable. Raises OSError."""
        os.rename(old, new, src_dir_fd=source, dst_dir_fd=target)

    def sync_file_system(self, fd: int, path: Path) -> None:
        """Make everything written to the file system of `fd` durable: one call for a whole restored tree.

        Raises DiskFullError, ReplicadError naming `path` when anything could not be written."""
        with errors_at(path, "syncing the file system"):
            if _syncfs(fd) != 0:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number))

    def free_bytes(self, path: Path) -> int:
        """Bytes that may still be written to the file system of `path` by an ordinary user."""
        with errors_at(path, "asking for free space"):
            found = os.statvfs(path)
        return found.f_bavail * found.f_frsize


class Appender:
    """Appends to one file in large aligned writes past the page cache.

    Bytes wait in a buffer until it is full or `sync` is called; only `sync` makes them durable, and needs the
    position to be aligned (the caller pads), so that no page is ever written twice. After any error the file is
    in an unknown state behind its last sync and the appender refuses to go on: close it and look what is there.
    """

    def __init__(self, disk: Disk, path: Path, flags: int, position: int) -> None:
        self.path, self.position = path, position
        self._disk, self._flags = disk, flags
        self._buffer = AlignedBuffer(APPEND_BUFFER_BYTES)
        self._start = align_down(position)
        """Offset in the file of the buffer's first byte."""
        self._broken = False
        with errors_at(path, "opening"):
            self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | flags, 0o600)
        try:
            with errors_at(path, "reading"):
                self._take_up(position)
        except BaseException:
            self.close()
            raise

    def _take_up(self, position: int) -> None:
        set_direct(self._fd, True)
        if position > self._start:
            kept = read_at(self._fd, self._buffer, self._start, position - self._start)
            assert len(kept) == position - self._start, "position is not the end of the file"

    def append(self, data: Buffer) -> None:
        """Add `data` at the end. Raises DiskFullError, ReplicadError."""
        view = memoryview(data)
        done, size, room = 0, len(view), len(self._buffer)
        while done < size:
            used = self.position - self._start
            count = min(size - done, room - used)
            self._buffer.view[used : used + count] = view[done : done + count]
            self.position += count
            done += count
            if used + count == room:
                self._write(room)

    def sync(self) -> None:
        """Make what was appended so far durable; the position must be aligned. Raises DiskFullError, ReplicadError."""
        self.flush()
        with self._guarded("syncing"):
            self._disk.sync(self._fd)

    def flush(self) -> None:
        """Hand everything appended so far to the system, without waiting for the medium. Aligned, as `sync`."""
        assert self.position % ALIGN_BYTES == 0, "sync at an unaligned position"
        if self.position > self._start:
            self._write(self.position - self._start)

    def close(self) -> None:
        """Close the file; what was not flushed is dropped."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _write(self, size: int) -> None:
        with self._guarded("writing"):
            done = 0
            while done < size:
                done += self._pwrite(self._buffer.view[done:size], self._start + done)
        self._start += size

    def _pwrite(self, data: memoryview, offset: int) -> int:
        try:
            return self._disk.pwrite(self._fd, data, offset)
        except OSError as error:
            direct = fcntl.fcntl(self._fd, fcntl.F_GETFL) & os.O_DIRECT
            if error.errno != errno.EINVAL or not direct:
                raise
            set_direct(self._fd, False)  # refused at the transfer rather than at the flag, or a short write
            return self._disk.pwrite(self._fd, data, offset)

    @contextmanager
    def _guarded(self, doing: str) -> Iterator[None]:
        if self._broken or self._fd < 0:
            raise ReplicadError(f"{doing} after an error", where=str(self.path), hint="reopen the store")
        try:
            with errors_at(self.path, doing):
                yield
        except BaseException:
            self._broken = True
            raise


class Reader:
    """Aligned reads of one file, past the page cache where the file system allows it. For one thread at a time."""

    def __init__(self, path: Path) -> None:
        """Raises FileNotFoundError, ReplicadError."""
        self.path = path
        self._buffer: AlignedBuffer | None = None
        with errors_at(path, "opening"):
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        set_direct(self._fd, True)

    @property
    def direct(self) -> bool:
        """Whether reads come from the medium rather than from the page cache."""
        return bool(fcntl.fcntl(self._fd, fcntl.F_GETFL) & os.O_DIRECT)

    @property
    def size(self) -> int:
        """Bytes in the file now."""
        return os.fstat(self._fd).st_size

    def read_at(self, offset: int, size: int) -> memoryview:
        """Up to `size` bytes (at most READ_BUFFER_BYTES) from `offset`, less at the end of the file.

        A view that is valid until the next read. Raises ReplicadError when the medium cannot be read.
        """
        assert size <= READ_BUFFER_BYTES
        needed = align_up(size) + ALIGN_BYTES
        if self._buffer is None or len(self._buffer) < needed:
            self._buffer = AlignedBuffer(needed)
        with errors_at(self.path, "reading"):
            return read_at(self._fd, self._buffer, offset, size)

    def read_into(self, buffer: AlignedBuffer, start: int, offset: int, size: int) -> int:
        """Read `size` bytes from `offset` to `start` in the buffer, all three multiples of ALIGN_BYTES (but `size` at
        the end of the file); how many there were. Raises ReplicadError when the medium cannot be read."""
        room = AlignedBuffer.of(buffer.view[start : start + align_up(size)])
        with errors_at(self.path, "reading"):
            return len(read_at(self._fd, room, offset, size))

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
