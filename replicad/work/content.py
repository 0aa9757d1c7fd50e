"""Content: the bytes of one file of a snapshot, in order, each block proven before it is given.

Fetches are under way while earlier pieces are taken, so a round trip is paid once. What is held is bounded by
AHEAD_BYTES. **Never** gives a byte that is not what the record names: in the place of a block that cannot be proven
stands why.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from replicad.link.messages import Lost
from replicad.model.block import Buffer, block_count
from replicad.model.entry import Drop, Op, Put
from replicad.model.errors import PeerError
from replicad.work.reader import Answer, Reader, open_block, split_ids

FETCH_BYTES = 1024 * 1024
"""Plain bytes asked for at once."""
AHEAD_BYTES = 16 * 1024 * 1024
"""Plain bytes asked for and not yet taken: 1 Gbit/s over 100 ms."""
ZEROS = bytes(4 * 1024 * 1024)
"""The longest run of zeros in one piece: whoever takes a hole of terabytes can stop in it."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of bytes of a file."""

    offset: int
    size: int
    data: Buffer | Lost | None
    """The bytes; None where all of them are zero (no more than ZEROS has); Lost where they cannot be proven."""


@dataclass(frozen=True, slots=True)
class _Part:
    """Blocks that were asked for together: their numbers, and the answers to come."""

    numbers: Sequence[int]
    answers: asyncio.Task[list[Buffer | Lost]]


async def entry_of(visited: AsyncIterator[list[Op]]) -> tuple[Put | None, AsyncIterator[Op]]:
    """The entry that a visit found, None when there is none, and the operations that tell of it, itself included."""
    nothing: list[Op] = []
    first = await anext(visited, nothing)

    async def operations() -> AsyncIterator[Op]:
        for op in first:
            yield op
        async for ops in visited:
            for op in ops:
                yield op

    put = first[0] if first else None
    return (put if isinstance(put, Put) else None), operations()


async def pieces(reader: Reader, put: Put, told: AsyncIterator[Op]) -> AsyncGenerator[Piece, None]:
    """The content of a file, whole and in order, with what `entry_of` gave.

    Raises PeerError when the operations are not those of a file, other ReplicadErrors when reading cannot go on.
    """
    position = 0
    async with aclosing(_blocks(reader, put, told)) as blocks:
        async for number, data in blocks:
            offset = number * put.block_bytes
            for zeros in _zeros(position, offset):
                yield zeros
            position = min(offset + put.block_bytes, put.size)
            yield Piece(offset, position - offset, data)
    for zeros in _zeros(position, put.size):
        yield zeros


def _zeros(start: int, end: int) -> Iterator[Piece]:
    for offset in range(start, end, len(ZEROS)):
        yield Piece(offset, min(len(ZEROS), end - offset), None)


async def _blocks(reader: Reader, put: Put, told: AsyncIterator[Op]) -> AsyncGenerator[tuple[int, Buffer | Lost], None]:
    """(number, bytes) of the listed blocks in order."""
    parts: deque[_Part] = deque()
    try:
        async for numbers, names in _runs(put, told, reader.name):
            parts.append(_Part(numbers, asyncio.create_task(_fetch(reader, put, numbers, names))))
            if len(parts) >= AHEAD_BYTES // FETCH_BYTES:
                for block in await _taken(parts.popleft()):
                    yield block
        while parts:
            for block in await _taken(parts.popleft()):
                yield block
    finally:
        for part in parts:
            part.answers.cancel()
        await asyncio.gather(*(part.answers for part in parts), return_exceptions=True)


async def _taken(part: _Part) -> list[tuple[int, Buffer | Lost]]:
    return list(zip(part.numbers, await part.answers, strict=True))


async def _runs(put: Put, told: AsyncIterator[Op], source: str) -> AsyncIterator[tuple[Sequence[int], Sequence[bytes]]]:
    """The file's blocks as numbers and ids that are fetched together."""
    at_once = max(1, FETCH_BYTES // put.block_bytes)
    end, last = block_count(put.size, put.block_bytes), -1
    async for op in told:
        if isinstance(op, Drop) or op.file != put.file or (isinstance(op, Put) and op is not put):
            raise PeerError("lists something else than the blocks of the file", where=source)
        if not op.blocks:
            continue
        if op.blocks[0] <= last or op.blocks[-1] >= end:
            raise PeerError("lists blocks that the file does not have, or twice", where=source)
        last = op.blocks[-1]
        names = split_ids(op.ids)
        for at in range(0, len(names), at_once):
            yield op.blocks[at : at + at_once], names[at : at + at_once]


async def _fetch(reader: Reader, put: Put, numbers: Sequence[int], names: Sequence[bytes]) -> list[Buffer | Lost]:
    """These blocks, proven in a thread: decompressing and hashing must not hold up the link."""
    found: list[Buffer | Lost] = []
    async for answers in reader.fetch(b"".join(names)):
        at = len(found)
        sizes = [min(put.block_bytes, put.size - number * put.block_bytes) for number in numbers[at:]]
        found += await asyncio.to_thread(_proven, answers, names[at:], sizes)
    return found


def _proven(answers: Sequence[Answer], names: Sequence[bytes], sizes: Sequence[int]) -> list[Buffer | Lost]:
    return [open_block(answer, name, size) for answer, name, size in zip(answers, names, sizes, strict=False)]
