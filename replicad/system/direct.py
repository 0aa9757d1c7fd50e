"""Direct: read a file from the medium, past the page cache, into aligned memory (O_DIRECT).

**Owns** the aligned reader, its buffers, and what there is to know of the page cache: what is in it, how to leave it as
it was, how to see the last state of a file. **Never** changes a byte. Reading a file that is not cached this way takes
almost no CPU time, where a buffered read spends a whole core on filling the page cache; and it is the only way to know
that bytes came from the medium. A file that is cached already is read faster through the cache: `is_cached` tells.

Some file systems refuse O_DIRECT; `DirectReader.of` then gives None and the caller reads through the cache.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
from itertools import groupby
from types import TracebackType

ALIGN_BYTES = 4096
"""Offsets, lengths and memory addresses are multiples of this; it covers every common sector size."""
BUFFER_BYTES = 4 * 1024 * 1024
"""Long enough for the disk's full speed, short enough to hold several."""
MAX_SPARE_BUFFERS = 8
"""Buffers kept for reuse; the kernel takes longer to hand out fresh memory than to fill it from the disk."""

DIRECT_FLAG = os.O_DIRECT
"""For open(2): the descriptor reads past the page cache, or EINVAL where the file system refuses."""

_spare: list[mmap.mmap] = []


def aligned(size: int) -> int:
    """`size` rounded up to what a direct read takes."""
    return -(-size // ALIGN_BYTES) * ALIGN_BYTES


def borrow_buffer() -> mmap.mmap:
    """Aligned memory of BUFFER_BYTES with arbitrary content. Thread-safe."""
    try:
        return _spare.pop()
    except IndexError:
        return mmap.mmap(-1, BUFFER_BYTES)


def return_buffer(buffer: mmap.mmap) -> None:
    """Give memory back that `borrow_buffer` lent; no view of it may be in use any more."""
    if len(_spare) < MAX_SPARE_BUFFERS:
        _spare.append(buffer)
    else:
        buffer.close()


class DirectReader:
    """One open file, read past the page cache."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @classmethod
    def of(cls, fd: int) -> DirectReader | None:
        """A reader of the very file that `fd` has open; None where the file system or kernel refuses O_DIRECT."""
        try:
            return cls(os.open(b"/proc/self/fd/%d" % fd, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC))
        except OSError:
            return None

    def __enter__(self) -> DirectReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close; what was opened by the caller stays open."""
        os.close(self._fd)

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """Fill `buffer` from `offset` on; the number of bytes read, less than its length only at the end of the file.

        `buffer` is aligned memory, its length and `offset` multiples of ALIGN_BYTES. Raises OSError; with EINVAL the
        file system wants another alignment (`is_refusal`), anything else is the medium's answer.
        """
        assert len(buffer) % ALIGN_BYTES == 0 and offset % ALIGN_BYTES == 0, (len(buffer), offset)
        done = 0
        while done < len(buffer):
            count = os.preadv(self._fd, [buffer[done:]], offset + done)
            done += count
            if count % ALIGN_BYTES or not count:
                break
        return done


def is_refusal(error: OSError) -> bool:
    """Whether a direct read failed because it was direct, so that a buffered one may do."""
    return error.errno == errno.EINVAL


def is_cached(fd: int, offset: int) -> bool:
    """Whether the byte at `offset` is in the page cache; False also when that cannot be found out. `fd` is a buffered
    descriptor. A miss makes the kernel fetch a few pages, not more."""
    try:
        return os.preadv(fd, [bytearray(1)], offset, os.RWF_NOWAIT) == 1
    except OSError:
        return False


def set_buffered(fd: int) -> None:
    """Let `fd` read through the page cache again."""
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_DIRECT)


def storage_read_bytes() -> int | None:
    """Bytes that this thread has had storage deliver so far, as the kernel counts them; None when it does not count.

    The proof that a direct read came from the medium: some file systems (tmpfs, inline or encrypted files) accept the
    flag and serve it from memory all the same."""
    try:
        with open("/proc/thread-self/io", "rb") as file:
            for line in file:
                if line.startswith(b"read_bytes:"):
                    return int(line.split()[1])
    except OSError:
        pass  # the kernel was built without this accounting
    return None


def settle_content(fd: int, offset: int = 0, size: int = 0) -> None:
    """Make sure that whatever is written from now on shows in the file's times (size 0: to its end). Raises OSError.

    Two kinds of writers change bytes after the times have moved for the last time. One that has a dirty page mapped:
    its next store moves the times only once that page was handed to write-back, so that is started here. And one
    long write(2): it moves them when it begins, and holds the inode's lock, which looking for data waits for."""
    try:
        os.lseek(fd, offset, os.SEEK_DATA)
    except OSError as error:
        if error.errno not in (errno.ENXIO, errno.EINVAL):
            raise
    if _libc.sync_file_range(fd, offset, size, _WAIT_BEFORE | _WRITE) != 0:
        number = ctypes.get_errno()
        if number not in (errno.ENOSYS, errno.EINVAL, errno.ESPIPE):
            raise OSError(number, os.strerror(number))


def resident_pages(fd: int, offset: int, size: int) -> bytes:
    """Which pages of that range (`offset` a multiple of the page size) are in the page cache: one byte each, its lowest
    bit set. b"" when the kernel will not tell, as for files that we neither own nor may write."""
    if size <= 0:
        return b""
    address = _memory.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, fd, offset)
    if address == _MAP_FAILED:
        return b""
    pages = ctypes.create_string_buffer(-(-size // mmap.PAGESIZE))
    told = _memory.mincore(address, size, pages) == 0
    _memory.munmap(address, size)
    return pages.raw if told else b""


class CacheGauge:
    """Tells how many pages of a file are in the page cache. For one thread."""

    def __init__(self) -> None:
        self._asked = (ctypes.c_uint64 * 2)()
        self._told = (ctypes.c_uint64 * 5)()
        self._where = ctypes.addressof(self._asked), ctypes.addressof(self._told)

    def pages(self, fd: int, offset: int, size: int) -> int:
        """Cached pages of that range; 0 also when the kernel will not tell."""
        global _has_cachestat
        if _has_cachestat:
            self._asked[0], self._asked[1] = offset, size
            if _memory.syscall(_CACHESTAT, fd, *self._where, 0) == 0:
                return self._told[0]
            if ctypes.get_errno() in (errno.EPERM, errno.EOPNOTSUPP):
                return 0
            _has_cachestat = False  # an older kernel, or a filter of system calls that does not know it
        return sum(page & 1 for page in resident_pages(fd, offset - offset % mmap.PAGESIZE, size))


def drop_pages_not_in(before: bytes, fd: int, offset: int, size: int) -> None:
    """Give up what reading brought into the page cache and was not there `before` (a `resident_pages` of the range)."""
    at = offset
    for was_resident, run in groupby(before, lambda page: page & 1):
        length = sum(1 for _ in run) * mmap.PAGESIZE
        if not was_resident:
            drop_pages(fd, at, min(length, offset + size - at))
        at += length


def drop_pages(fd: int, offset: int = 0, size: int = 0) -> None:
    """Give up clean cached pages of that range (size 0: to the end); a hint that no file system has to take."""
    try:
        os.posix_fadvise(fd, offset, size, os.POSIX_FADV_DONTNEED)
    except OSError:
        pass  # then they stay


_WAIT_BEFORE, _WRITE = 1, 2  # SYNC_FILE_RANGE_*, which the os module has no names for
_CACHESTAT = 451  # Linux 6.5; the number is the same on every architecture
_has_cachestat = True
_MAP_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)

_memory = ctypes.PyDLL(
    None, use_errno=True
)  # these calls take less time than giving up the interpreter's lock around them
_memory.mmap.restype = ctypes.c_void_p
_memory.mmap.argtypes = (
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64,
)  # fmt: skip
_memory.syscall.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint)
_memory.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)
_memory.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
