"""Direct: read a file from the medium, past the page cache, into aligned memory (O_DIRECT).

**Owns** the aligned reader and its buffers. **Never** writes. Reading a file that is not cached this way takes almost
no CPU time, where a buffered read spends a whole core on filling the page cache; and it is the only way to know that
bytes came from the medium. A file that is cached already is read faster through the cache: `is_cached` tells.

Some file systems refuse O_DIRECT; `DirectReader.of` then gives None and the caller reads through the cache.
"""

from __future__ import annotations

import errno
import mmap
import os
from types import TracebackType

ALIGN_BYTES = 4096
"""Offsets, lengths and memory addresses are multiples of this; it covers every common sector size."""
BUFFER_BYTES = 4 * 1024 * 1024
"""Long enough for the disk's full speed, short enough to hold several."""
MAX_SPARE_BUFFERS = 8
"""Buffers kept for reuse; the kernel takes longer to hand out fresh memory than to fill it from the disk."""

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
