"""Read: the bytes of regular files, cut into hashed blocks, each file between two looks at its identity.

**Owns** the sandwich: status, bytes, status. Only when both agree are the bytes one state of the file. **Never**
writes, waits for a FIFO, or follows a symlink; never says that a file is fine when it could not be read.

Here: what all readers share, and small files, which come in batches, since the hop into a worker thread costs more
than the file. Times are coarse: a file changed within the last clock tick could change again without a trace in its
status, so such a file is given time to settle.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from operator import attrgetter

import msgspec

from replicad.model.block import BlockId, Checksum, block_count, block_id, checksum, is_zero
from replicad.model.entry import Stamp
from replicad.source.meta import Description, describe_open_file
from replicad.source.root import Root, Trail, Trouble, is_regular, let_settle, split, trouble
from replicad.system.clock import Clock
from replicad.system.direct import DirectReader, settle_content

SMALL_BYTES = 1024 * 1024
"""Files up to this size are read whole; larger ones are a `LargeRead`."""
BATCH_FILES = 256
BATCH_BYTES = 8 * 1024 * 1024
"""One batch of small files at most: what one call holds in memory, and a few milliseconds of work."""
READ_TRIES = 3
"""How often a small file is read anew when it changes meanwhile, before that is the caller's to decide."""
AHEAD_FILES = 128
"""Small files held open while the kernel fetches them side by side: enough to fill a disk's queue, which makes cold
files several times faster, and few beside the usual limit of 1024 descriptors."""

_STAMPED = attrgetter(
    "st_mode", "st_uid", "st_gid", "st_dev", "st_ino", "st_size", "st_mtime_ns", "st_ctime_ns"
)  # fmt: skip
"""All of a status that a stamp speaks of: where these are equal, so are the stamps of one open file."""
_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class Access:
    """How bytes come from a file: the seam where tests put a failing disk, or somebody who writes just then."""

    def read(self, fd: int, size: int, offset: int) -> bytes:
        """At most `size` bytes from `offset`; fewer only at the end of the file. Raises OSError."""
        return os.pread(fd, size, offset)

    def read_into(self, fd: int, direct: DirectReader | None, buffer: memoryview, offset: int) -> int:
        """Fill `buffer` from `offset`; fewer bytes only at the end of the file. Raises OSError."""
        if direct:
            return direct.read_into(buffer, offset)
        done = 0
        while done < len(buffer):
            count = os.preadv(fd, [buffer[done:]], offset + done)
            if not count:
                break
            done += count
        return done

    def before_second_look(self, path: bytes) -> None:
        """Called when a file was read and its identity is about to be looked at again."""


REAL = Access()


class Candidate(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A regular file to be read."""

    path: bytes
    size: int
    """As walked; only for cutting batches."""
    block_bytes: int


class Block(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One block that is not all-zero."""

    index: int
    id: BlockId
    checksum: Checksum
    data: bytes = b""
    """Left out where the bytes take another way."""


class FileRead(msgspec.Struct, frozen=True, array_like=True, tag=2, gc=False):
    """A small file: everything of it."""

    path: bytes
    stamp: Stamp
    """From before it was read: what these bytes and this description may be recorded under."""
    moved: bool
    """Whether it was another one after: it was written during each of READ_TRIES attempts, and the blocks are the last
    one's and may stem from different moments."""
    links: int
    description: Description
    block_bytes: int
    size: int
    """Bytes that the blocks cover: `stamp.size`, or fewer when it `moved` and shrank."""
    blocks: list[Block]
    zeros: list[tuple[int, int]]
    """Runs (first index, count) of all-zero blocks."""


class Outgrown(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """A file that is too large by now to be read whole: open it as a `LargeRead`."""

    path: bytes
    stamp: Stamp


def batches(candidates: Iterable[Candidate]) -> Iterator[list[Candidate]]:
    """Cut small files into batches of at most BATCH_FILES files and, one file more or less, BATCH_BYTES bytes."""
    batch: list[Candidate] = []
    size = 0
    for candidate in candidates:
        batch.append(candidate)
        size += candidate.size
        if len(batch) >= BATCH_FILES or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def read_small(
    root: Root, batch: Sequence[Candidate], *, clock: Clock, access: Access = REAL
) -> list[FileRead | Outgrown | Trouble]:
    """Read whole files of at most SMALL_BYTES; the results in the order of `batch`. What has grown so much meanwhile
    that there is no room for all of it is Outgrown. No file makes it raise."""
    results: list[FileRead | Outgrown | Trouble] = []
    ahead: deque[tuple[Candidate, int | Trouble]] = deque()
    room = BATCH_BYTES + SMALL_BYTES
    with Trail(root) as trail:

        def read_first() -> None:
            nonlocal room
            candidate, fd = ahead.popleft()
            most = min(SMALL_BYTES, room)
            read = fd if isinstance(fd, Trouble) else _read_small(root, trail, candidate, fd, most, clock, access)
            room -= read.size if isinstance(read, FileRead) else 0
            results.append(read)

        try:
            for candidate in batch:
                ahead.append((candidate, _open_ahead(trail, candidate.path)))
                if len(ahead) == AHEAD_FILES:
                    read_first()
            while ahead:
                read_first()
        finally:  # left over only when something unforeseen was raised
            for _, fd in ahead:
                if isinstance(fd, int):
                    os.close(fd)
    return results


def _open_ahead(trail: Trail, path: bytes) -> int | Trouble:
    try:
        fd = open_file(trail, path)
    except OSError as error:
        return trouble(path, "cannot be read", error)
    try:
        os.posix_fadvise(fd, 0, SMALL_BYTES, os.POSIX_FADV_WILLNEED)
    except OSError:
        pass  # a hint, and no file system has to take it
    return fd


def _read_small(
    root: Root, trail: Trail, candidate: Candidate, fd: int, most: int, clock: Clock, access: Access
) -> FileRead | Outgrown | Trouble:
    """Read the open file, of `most` bytes, or once that moved what its path leads to then. Closes `fd`."""
    try:
        for attempt in range(1, READ_TRIES + 1):
            try:
                result = _read_open(root, fd, candidate, most, clock, access)
            finally:
                os.close(fd)
            if not isinstance(result, FileRead) or not result.moved or attempt == READ_TRIES:
                break
            fd = open_file(trail, candidate.path)
    except OSError as error:
        return trouble(candidate.path, "cannot be read", error)
    return result


def open_file(trail: Trail, path: bytes, flags: int = 0) -> int:
    """Descriptor of the file at `path`, leaving its access time alone where we may. Raises OSError."""
    above, name = split(path)
    directory = trail.enter(above)
    try:
        return os.open(name, _FILE_FLAGS | os.O_NOATIME | flags, dir_fd=directory)
    except PermissionError as error:
        if error.errno != errno.EPERM:
            raise
        return os.open(
            name, _FILE_FLAGS | flags, dir_fd=directory
        )  # not our file: only its owner may read it unnoticed


def _read_open(
    root: Root, fd: int, candidate: Candidate, most: int, clock: Clock, access: Access
) -> FileRead | Outgrown | Trouble:
    path, block_bytes = candidate.path, candidate.block_bytes
    status = settled_status(fd, clock)
    if not is_regular(status):
        return replaced(path)
    stamp, size = root.stamp(status, fd), status.st_size
    if size > most:
        return Outgrown(path, stamp)
    settle_content(fd)
    data = _read_whole(fd, size, access)
    description = describe_open_file(fd, stamp, status)
    access.before_second_look(path)
    moved = _STAMPED(os.fstat(fd)) != _STAMPED(status)
    if not moved and len(data) != size:
        return misreported(path, len(data), size)
    blocks, zeros = cut_blocks(data[:size], block_bytes)
    return FileRead(path, stamp, moved, status.st_nlink, description, block_bytes, min(len(data), size), blocks, zeros)


def _read_whole(fd: int, size: int, access: Access) -> bytes:
    """`size` bytes, one more when the file has grown, or fewer when it has shrunk."""
    data = access.read(fd, size + 1, 0)
    while len(data) < size:
        more = access.read(fd, size + 1 - len(data), len(data))
        if not more:
            break
        data += more
    return data


def settled_status(fd: int, clock: Clock) -> os.stat_result:
    """Status of an open file, given when its last change is old enough for the next one to show in its times."""
    status = os.fstat(fd)
    let_settle(status, clock)
    return status


def replaced(path: bytes) -> Trouble:
    """The trouble of a path that is no regular file any more."""
    return Trouble(path, "was replaced by something that is no regular file", vanished=True)


def misreported(path: bytes, seen: int, size: int) -> Trouble:
    """The trouble of a file whose bytes and status disagree although nothing changed, as in /proc."""
    return Trouble(path, f"gives {seen} bytes where its status says {size}: not a file that can be copied")


def cut_blocks(data: bytes, block_bytes: int) -> tuple[list[Block], list[tuple[int, int]]]:
    """A whole file's blocks that are not all-zero, and the runs of those that are."""
    blocks: list[Block] = []
    zeros: list[tuple[int, int]] = []
    for index in range(block_count(len(data), block_bytes)):
        piece = data if len(data) <= block_bytes else data[index * block_bytes : (index + 1) * block_bytes]
        if is_zero(piece):
            add_zeros(zeros, index, 1)
        else:
            blocks.append(Block(index, block_id(piece), checksum(piece), piece))
    return blocks, zeros


def add_zeros(zeros: list[tuple[int, int]], first: int, count: int) -> None:
    """Add a run of blocks, joining it to the last one when it follows that directly."""
    if zeros and sum(zeros[-1]) == first:
        zeros[-1] = (zeros[-1][0], zeros[-1][1] + count)
    else:
        zeros.append((first, count))
