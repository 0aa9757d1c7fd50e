"""Holdings: what the primary's own medium holds of some blocks now, proven by their ids.

**Owns** the search for a block that a replica lost: at the file and number where it should be, and in every other
recorded file that has one with the same id. **Never** says that a block is absent while it could not be looked for:
what cannot be read, or was written since it was recorded, is UNREADABLE or UNKNOWN.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import NamedTuple

from replicad.db.ledger import BlockRow, Known, Ledger, stamp_of
from replicad.db.whole import FIRST_BLOCK, BlockPlace, blocks_named, files_numbered
from replicad.link.messages import MAX_TESTIMONY_BYTES, Want
from replicad.model.block import block_id
from replicad.model.entry import Kind
from replicad.model.verdict import Sight
from replicad.source.reread import Ask, Moved, Reread, reread
from replicad.source.root import Root, Trouble
from replicad.source.whereabouts import whereabouts
from replicad.store.format import HEADER_BYTES, MAX_EXPANSION, FrameType, encode_frame
from replicad.system.compress import compress
from replicad.work.dataset import Dataset
from replicad.work.medium import is_medium
from replicad.work.where_now import inodes_above

BATCH_BLOCKS = 16
"""Blocks read in one visit to a thread: 16 MiB of the largest."""
SEARCHED_ROWS = 50_000
"""Block rows searched in one visit to the ledger's thread: some 10 ms, behind which a pass waits."""
OTHER_PLACES = 4
"""Other places of a block that are tried."""
PIECE_BYTES = 1024 * 1024
"""Blocks messages are filled up to this."""


class Place(NamedTuple):
    """Where a block is recorded."""

    path: bytes
    above: Sequence[int]
    """Recorded inodes of the directories above it."""
    known: Known
    number: int


class Held(NamedTuple):
    """What was found of one wanted block."""

    sight: Sight
    frame: bytes = b""
    """The proven block, when it is sent along."""


class Holdings:
    """Looks at one dataset's own copy."""

    def __init__(self, dataset: Dataset, root: Root, pool: Executor) -> None:
        self._dataset, self._root, self._pool = dataset, root, pool

    async def look(self, wants: Sequence[Want]) -> list[Held]:
        """What this side holds of these blocks, in their order; frames of as many as one testimony takes."""
        places = await self._places(wants)
        held: list[Held] = []
        left = MAX_TESTIMONY_BYTES
        for at in range(0, len(wants), BATCH_BLOCKS):
            group = wants[at : at + BATCH_BLOCKS]
            held += await self._read(group, places, left)
            left -= sum(len(one.frame) for one in held[at:])
        return held

    async def _read(self, wants: Sequence[Want], places: dict[bytes, list[Place]], left: int) -> list[Held]:
        work = partial(_look, self._root, wants, places, self._dataset.config.compression, left)
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    async def _places(self, wants: Sequence[Want]) -> dict[bytes, list[Place]]:
        """Where these blocks are recorded: first where they are wanted, then elsewhere."""
        ledger = self._dataset.ledger
        found = await self._dataset.in_ledger(_recorded, ledger, wants)
        lost = [want.id for want in wants if want.id not in found]
        after: BlockPlace | None = FIRST_BLOCK
        while lost and after:
            rows, after = await self._dataset.in_ledger(blocks_named, ledger, lost, after, SEARCHED_ROWS)
            if rows:
                await self._dataset.in_ledger(_add_places, ledger, rows, found)
        return found


def _recorded(ledger: Ledger, wants: Iterable[Want]) -> dict[bytes, list[Place]]:
    """Blocks that the ledger names where they are wanted."""
    rows: list[BlockRow] = []
    for want in wants:
        row = ledger.blocks(want.file, want.number, want.number + 1).get(want.number) if want.file else None
        if row and row.id == want.id:
            rows.append(row)
    found: dict[bytes, list[Place]] = {}
    _add_places(ledger, rows, found)
    return found


def _add_places(ledger: Ledger, rows: Sequence[BlockRow], found: dict[bytes, list[Place]]) -> None:
    files = files_numbered(ledger, (row.file for row in rows))
    for row in rows:
        places = found.setdefault(row.id, [])
        if row.file in files and len(places) < OTHER_PLACES:
            path, known = files[row.file]
            places.append(Place(path, inodes_above(ledger, path), known, row.number))


def _look(
    root: Root, wants: Sequence[Want], places: dict[bytes, list[Place]], compression: int, left: int
) -> list[Held]:
    """In a thread."""
    held: list[Held] = []
    for want in wants:
        sight, data = look_for(root, want.id, places.get(want.id, ()))
        frame = b""
        if sight is Sight.MATCHES and len(data) + HEADER_BYTES + MAX_EXPANSION <= left:
            codec, stored = compress(data, compression)
            frame = encode_frame(FrameType.BLOCK, data, want.id, stored, codec)
            left -= len(frame)
        held.append(Held(sight, frame))
    return held


def look_for(root: Root, name: bytes, places: Iterable[Place]) -> tuple[Sight, bytes]:
    """The block's bytes from the first place whose medium gives them, proven; else the best that is known of it."""
    sight = Sight.ABSENT
    for place in places:
        seen, data = _look_at(root, name, place)
        if seen is Sight.MATCHES:
            return seen, data
        sight = max(sight, seen, key=_SAYS_MORE.index)
    return sight, b""


_SAYS_MORE = (Sight.ABSENT, Sight.UNREADABLE, Sight.DIFFERS, Sight.UNKNOWN)
"""Of several places: what is not known anywhere is not known; what differs is more than nothing."""


def _look_at(root: Root, name: bytes, place: Place) -> tuple[Sight, bytes]:
    stamp = stamp_of(place.known)
    path = whereabouts(root, place.path, place.above)
    ask = Ask(path, (place.number,), place.known.block_bytes, stamp.identity)
    (answer,) = reread(root, [ask], medium=True)
    if isinstance(answer, Moved) and answer.stamp.kind == Kind.FILE:
        (again,) = reread(root, [Ask(*_fields(ask), answer.stamp.identity)], medium=True)
        if isinstance(again, Reread) and block_id(again.blocks[0]) == name:
            return Sight.MATCHES, again.blocks[0]  # recorded bytes are a proof, whoever wrote them
        return Sight.UNKNOWN, b""
    if isinstance(answer, Moved):
        return Sight.UNKNOWN, b""
    if isinstance(answer, Trouble):
        return (Sight.UNREADABLE if is_medium(answer) else Sight.UNKNOWN), b""
    if block_id(answer.blocks[0]) == name:
        return Sight.MATCHES, answer.blocks[0]
    (second,) = reread(root, [ask], medium=True)
    same = isinstance(second, Reread) and second.blocks == answer.blocks
    return (Sight.DIFFERS if same else Sight.UNKNOWN), b""


def _fields(ask: Ask) -> tuple[bytes, tuple[int, ...], int]:
    return ask.path, ask.indexes, ask.block_bytes


def pieces_of(held: Iterable[Held]) -> list[bytes]:
    """The frames among them, joined into Blocks messages."""
    pieces: list[bytes] = []
    frames: list[bytes] = []
    size = 0
    for one in held:
        if size and size + len(one.frame) > PIECE_BYTES:
            pieces.append(b"".join(frames))
            frames, size = [], 0
        if one.frame:
            frames.append(one.frame)
            size += len(one.frame)
    return [*pieces, b"".join(frames)] if frames else pieces
