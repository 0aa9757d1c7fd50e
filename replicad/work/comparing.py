"""Comparing: which blocks of a file that is there are what the record says, proven by their BLAKE3 ids.

**Owns** one open file while it is compared. Holes are not read: a hole is zero. A block that the disk cannot read
counts as different: it will be written anew.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from replicad.model.block import block_count, block_id, is_zero
from replicad.model.entry import Put
from replicad.system.disk import ALIGN_BYTES, AlignedBuffer, read_at
from replicad.work.medium import OF_THE_MEDIUM

SLAB_BYTES = 2 * 1024 * 1024
"""Compared or written in one go; what one thread's buffer holds."""


class Wanted(NamedTuple):
    """A block that a file needs."""

    block: int
    id: bytes


class Piece(NamedTuple):
    """A run of a file's blocks as the record tells it: `first` up to, without, `end`; those not listed are zero."""

    first: int
    end: int
    listed: list[Wanted]


class Compared(NamedTuple):
    """What came of one slab."""

    missing: list[Wanted]
    """Listed blocks that are not what they should be."""
    wrong_zeros: list[int]
    """Blocks that should be zero and are not."""
    right_bytes: int


class _Memory(threading.local):
    """An aligned buffer for each thread."""

    def __init__(self) -> None:
        self.buffer = AlignedBuffer(SLAB_BYTES + 2 * ALIGN_BYTES)


_memory = _Memory()


def thread_buffer() -> AlignedBuffer:
    """This thread's buffer, a little larger than SLAB_BYTES; what is in it holds until somebody else asks for it."""
    return _memory.buffer


def block_length(put: Put, index: int) -> int:
    """Bytes of block `index` of a file; the last may be short."""
    return min(put.block_bytes, put.size - index * put.block_bytes)


def seek_data(fd: int, position: int, end: int) -> int:
    """Where data begins from `position` on; `end` when there is none before it."""
    try:
        return min(end, os.lseek(fd, position, os.SEEK_DATA))
    except OSError as error:
        if error.errno == errno.ENXIO:
            return end
        return position  # a file system that knows no holes


class Comparison:
    """Compares an open file, which it closes in the end, and remembers what came of it."""

    def __init__(self, put: Put, fd: int) -> None:
        self.fd = fd
        self.unread: set[int] = set()
        """Blocks that the disk cannot read."""
        self._put = put
        self._wrong: list[tuple[int, int]] = []
        """Runs of blocks that are not right, first and end."""

    def close(self) -> None:
        """Close the file."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def slabs(self, piece: Piece) -> Iterator[Compared]:
        """Compare a piece, slab by slab. Raises OSError."""
        size = self._put.block_bytes
        slab = max(1, SLAB_BYTES // size)
        listed = iter(piece.listed)
        upcoming = next(listed, None)
        first = piece.first
        while first < piece.end:
            data = seek_data(self.fd, first * size, piece.end * size) // size
            end = data if data > first else min(first + slab, piece.end)
            wanted: dict[int, bytes] = {}
            while upcoming is not None and upcoming.block < end:
                wanted[upcoming.block] = upcoming.id
                upcoming = next(listed, None)
            for compared in [self._hole(first, end, wanted)] if data > first else self._slab(first, end, wanted):
                self._remember(compared)
                yield compared
            first = end

    def worth_keeping(self, lost: Iterable[int]) -> Iterator[tuple[int, int]]:
        """Runs of blocks, first and end, of which the file has what there is to have: those that were found right, and
        of those that are `lost` elsewhere the ones that can be read. Everything has been compared."""
        first = 0
        for wrong, end in [*self._wrong, (block_count(self._put.size, self._put.block_bytes), 0)]:
            if first < wrong:
                yield first, wrong
            first = end
        for index in lost:
            if index not in self.unread:
                yield index, index + 1

    def _remember(self, compared: Compared) -> None:
        for index in sorted([*compared.wrong_zeros, *(wanted.block for wanted in compared.missing)]):
            if self._wrong and self._wrong[-1][1] == index:
                self._wrong[-1] = self._wrong[-1][0], index + 1
            else:
                self._wrong.append((index, index + 1))

    def _hole(self, first: int, end: int, wanted: dict[int, bytes]) -> Compared:
        length = min(end * self._put.block_bytes, self._put.size) - first * self._put.block_bytes
        needed = sum(block_length(self._put, index) for index in wanted)
        return Compared([Wanted(*item) for item in wanted.items()], [], length - needed)

    def _slab(self, first: int, end: int, wanted: dict[int, bytes]) -> Iterator[Compared]:
        size = self._put.block_bytes
        try:
            view = read_at(self.fd, thread_buffer(), first * size, (end - first) * size)
        except OSError as error:
            if error.errno not in OF_THE_MEDIUM:
                raise
            yield from self._bad_slab(first, end, wanted)
            return
        missing: list[Wanted] = []
        wrong_zeros: list[int] = []
        right = 0
        for index in range(first, end):
            length, start = block_length(self._put, index), (index - first) * size
            block, expected = view[start : start + length], wanted.get(index)
            if expected is None and not is_zero(block):
                wrong_zeros.append(index)
            elif expected is not None and (len(block) != length or block_id(block) != expected):
                missing.append(Wanted(index, expected))
            else:
                right += length
        yield Compared(missing, wrong_zeros, right)

    def _bad_slab(self, first: int, end: int, wanted: dict[int, bytes]) -> Iterator[Compared]:
        """Something in it cannot be read: block by block, so that the others are not given up with it."""
        if end - first > 1:
            for index in range(first, end):
                yield from self._slab(index, index + 1, wanted)
            return
        self.unread.add(first)
        expected = wanted.get(first)
        yield Compared([], [first], 0) if expected is None else Compared([Wanted(first, expected)], [], 0)
