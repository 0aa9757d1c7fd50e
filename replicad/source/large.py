"""Large: read one large file slab by slab, past the page cache unless it is in there, its holes unread.

**Owns** the choice between direct and buffered reading, and the holes. **Never** holds more of a file than one slab.

The one idea: a plan comes first. `upcoming` says which blocks the next `read` covers, so that the caller can look up
what it knows of them; blocks that still have the known id are hashed and counted, but not copied out.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from types import TracebackType

import msgspec

from replicad.model.block import block_count, block_id, checksum, is_zero
from replicad.model.entry import MAP_BLOCKS, Stamp
from replicad.source.meta import Description, describe_open_file
from replicad.source.read import (
    REAL,
    Access,
    Block,
    add_zeros,
    misreported,
    open_file,
    replaced,
    settled_status,
)
from replicad.source.root import Root, Trail, Trouble, is_regular, trouble
from replicad.system.clock import Clock
from replicad.system.direct import (
    BUFFER_BYTES,
    DirectReader,
    aligned,
    borrow_buffer,
    is_cached,
    is_refusal,
    return_buffer,
    settle_content,
)

SLAB_BYTES = BUFFER_BYTES
"""Bytes that one call reads."""
SPAN_BLOCKS = MAP_BLOCKS
"""Blocks that one call covers, holes included: a caller may look up all of them, and none is left out."""
MAX_FILE_BLOCKS = 2**30
"""Blocks of one file at most: 1 PiB in blocks of 1 MiB, 4 TiB in the smallest ones. What is longer is nearly all hole,
and a pass that goes through it would come to nothing else for days."""


class Slab(msgspec.Struct, frozen=True):
    """The next part of a large file."""

    blocks: list[Block]
    """Those that are neither all-zero nor known to be the same."""
    zeros: list[tuple[int, int]]
    """Runs (first index, count) of all-zero blocks, holes among them."""
    same: int
    """Blocks left out because they have the id that the caller knows."""
    read_bytes: int
    direct: bool
    """Whether all of it was read from the medium, past the page cache."""


class LargeRead:
    """One large file from its beginning to its end; made by `open_large`. One thread at a time.

    for slab in iter(large.read, None): ...
    """

    def __init__(self, root: Root, fd: int, path: bytes, stamp: Stamp, status: os.stat_result, block_bytes: int,
                 access: Access) -> None:  # fmt: skip
        self.path = path
        self.stamp = stamp
        """From before it was read: what the blocks may be recorded under when `finish` confirms it."""
        self.links = status.st_nlink
        self.block_bytes = block_bytes
        self.description: Description = describe_open_file(fd, stamp, status)
        self.size = status.st_size
        """Bytes it has; fewer than the stamp says once reading showed that it shrank."""
        self.upcoming = range(0)
        """Indexes of the blocks that the next `read` covers, holes included, SPAN_BLOCKS at most; empty at the end.
        Each block of the file is in exactly one of these ranges."""
        self._root, self._fd, self._access = root, fd, access
        self._sparse = bool(self.description.flags)
        self._direct: DirectReader | None = None
        self._refused = self._bypassed = False
        self._buffer = borrow_buffer()
        self._view = memoryview(self._buffer)
        self._next = 0
        self._plan: list[_Run] = []
        self._make_plan()

    def __enter__(self) -> LargeRead:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let the file and its buffer go; harmless when that was done before."""
        if self._fd < 0:
            return
        self._view.release()
        return_buffer(self._buffer)
        if self._direct:
            self._direct.close()
        os.close(self._fd)
        self._fd = -1

    def read(self, known: Mapping[int, bytes] | None = None) -> Slab | Trouble | None:
        """The next slab, None at the end. `known`: block ids by index, as far as the caller has them for `upcoming`;
        blocks that still have that id are counted, not returned. A Trouble means that the file cannot be read to its
        end; there is nothing to read after it."""
        if not self._plan:
            return None
        blocks: list[Block] = []
        zeros: list[tuple[int, int]] = []
        same, read_bytes, self._bypassed = 0, 0, True
        try:
            for run in self._plan:
                if run.is_hole:
                    add_zeros(zeros, run.first, run.count)
                    continue
                count = self._fill(run)
                read_bytes += count
                same += self._cut(run.first, count, known or {}, blocks, zeros)
            self._make_plan()
        except OSError as error:
            self._plan = []
            return trouble(self.path, f"cannot be read near byte {run.first * self.block_bytes}", error)
        return Slab(blocks, zeros, same, read_bytes, self._bypassed)

    def finish(self) -> Stamp | Trouble:
        """Look at the file's status again and close it. The blocks are one state of the file if, and only if, this
        is the `stamp` from before."""
        try:
            self._access.before_second_look(self.path)
            after = self._root.stamp(os.fstat(self._fd), self._fd)
        except OSError as error:
            return trouble(self.path, "status cannot be read", error)
        finally:
            self.close()
        if after == self.stamp and self.size != after.size:
            return misreported(self.path, self.size, after.size)
        return after

    def _make_plan(self) -> None:
        """Choose what the next `read` covers: data for one buffer, with the holes before, between and behind."""
        self._plan = plan = []
        first = self._next
        end = min(block_count(self.size, self.block_bytes), first + SPAN_BLOCKS)
        room = SLAB_BYTES // self.block_bytes
        while self._next < end and room:
            data, data_end = self._extent(self._next, end)
            if data > self._next:
                plan.append(_Run(self._next, data - self._next, True))
            self._next = min(data_end, data + room)
            if self._next > data:
                plan.append(_Run(data, self._next - data, False))
                room -= self._next - data
        self.upcoming = range(first, self._next)

    def _extent(self, first: int, end: int) -> tuple[int, int]:
        """First block at or behind `first` that holds data, and the end of that data: blocks; (end, end) if none."""
        if not self._sparse:
            return first, end
        try:
            data = os.lseek(self._fd, first * self.block_bytes, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return end, end
        hole = os.lseek(self._fd, data, os.SEEK_HOLE)
        return min(data // self.block_bytes, end), min(block_count(hole, self.block_bytes), end)

    def _fill(self, run: _Run) -> int:
        """Read one run of data into the buffer; the number of bytes. Notes when the file turns out to be shorter."""
        offset = run.first * self.block_bytes
        wanted = min(run.count * self.block_bytes, self.size - offset)
        if wanted <= 0:
            return 0
        count = self._read_at(offset, wanted)
        if count < wanted:
            self.size = offset + count
        return min(count, wanted)

    def _read_at(self, offset: int, wanted: int) -> int:
        if not self._refused and not is_cached(self._fd, offset + wanted // 2):
            self._direct = self._direct or DirectReader.of(self._fd)
            self._refused = self._direct is None
            try:
                if self._direct:
                    return self._access.read_into(self._fd, self._direct, self._view[: aligned(wanted)], offset)
            except OSError as error:
                if not is_refusal(error):
                    raise
                self._refused = True
        self._bypassed = False
        settle_content(self._fd, offset, wanted)  # a direct read does that by itself
        return self._access.read_into(self._fd, None, self._view[:wanted], offset)

    def _cut(
        self, first: int, size: int, known: Mapping[int, bytes], blocks: list[Block], zeros: list[tuple[int, int]]
    ) -> int:
        """Hash what is in the buffer; the number of blocks that have the id that is known."""
        same = 0
        for index in range(block_count(size, self.block_bytes)):
            begin = index * self.block_bytes
            with self._view[begin : min(begin + self.block_bytes, size)] as piece:
                if not (piece[0] or piece[-1]) and is_zero(bytes(piece)):
                    add_zeros(zeros, first + index, 1)
                    continue
                found = block_id(piece)
                if known.get(first + index) == found:
                    same += 1
                else:
                    blocks.append(Block(first + index, found, checksum(piece), bytes(piece)))
        return same


class _Run(msgspec.Struct, frozen=True):
    """Blocks of a large file that are all data, or all hole."""

    first: int
    count: int
    is_hole: bool


def open_large(
    root: Root, path: bytes, block_bytes: int, *, clock: Clock, access: Access = REAL
) -> LargeRead | Trouble:
    """Begin to read the regular file at `path`, of any size. The file never makes it raise."""
    try:
        with Trail(root) as trail:
            fd = open_file(trail, path)
        try:
            status = settled_status(fd, clock)
            if block_count(status.st_size, block_bytes) > MAX_FILE_BLOCKS:
                text = f"has {status.st_size:,} bytes, more than {MAX_FILE_BLOCKS:,} blocks of {block_bytes:,}"
                return Trouble(path, f"{text}: it is not replicated")
            if is_regular(status):
                large = LargeRead(root, fd, path, root.stamp(status, fd), status, block_bytes, access)
                fd = -1
                return large
        finally:
            if fd >= 0:
                os.close(fd)
    except OSError as error:
        return trouble(path, "cannot be read", error)
    return replaced(path)
