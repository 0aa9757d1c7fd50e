"""Account: a record as a whole in a few numbers, the same from both books, whatever order they are read in.

Each entry, and each block of a file that is not all-zero, is one BLAKE3; a sum of them modulo 2**256 does not depend on
their order. The record is divided into BUCKETS parts, entries by their path and blocks by their file's number, so that
a difference is narrowed down before anything is listed. Blocks count once for each name of their file.

Both books are read in short pieces and bounded memory: the catalog as the listing of its last snapshot, the ledger
page by page in its own order. **Never** compares what the replica was not told yet: such parts are left out.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field

import msgspec

from replicad.db.ledger import ZERO, Known, Ledger, put_of
from replicad.db.whole import FIRST_PLACE, Place, entries_from, is_named, note_named
from replicad.link.messages import BUCKETS
from replicad.model.block import ID_BYTES, block_count, block_id
from replicad.model.entry import Map, Op, Put
from replicad.work.dataset import Dataset
from replicad.work.record import UNREAD_SIZE

PIECE_ENTRIES = 500
"""Entries summed in one visit to the ledger's thread: a few milliseconds, behind which a pass waits."""
PIECE_BLOCKS = 4096
"""Block rows read at once."""
_MODULUS: int = 2 ** (8 * ID_BYTES)
_FILE_BYTES = 8

_encode = msgspec.msgpack.Encoder().encode


class Lacking(Exception):
    """The replica was not told of this yet: there is nothing to compare."""


@dataclass(slots=True)
class Sums:
    """What a record amounts to."""

    entries: int = 0
    parts: list[int] = field(default_factory=lambda: [0] * BUCKETS)
    lacking: set[int] = field(default_factory=set)
    """Parts with something that the other side was not told yet, since it cannot be read: they mean nothing."""

    def add(self, ops: Iterable[Op]) -> None:
        """Count the operations of a listing: puts, each followed by its maps."""
        for op in ops:
            if isinstance(op, Put):
                self.entries += 1
                self._add(bucket_of_path(op.path), entry_token(op))
            if isinstance(op, Put | Map) and op.ids:
                self._add(bucket_of_file(op.file), blocks_token(op.file, op.blocks, op.ids))

    def leave_out(self, path: bytes, file: int) -> None:
        """An entry that the other side was not told of."""
        self.lacking |= {bucket_of_path(path), bucket_of_file(file)} if file else {bucket_of_path(path)}

    def encoded(self) -> list[bytes]:
        """The parts as they travel."""
        return [part.to_bytes(ID_BYTES, "big") for part in self.parts]

    def _add(self, bucket: int, token: int) -> None:
        self.parts[bucket] = (self.parts[bucket] + token) % _MODULUS


def bucket_of_path(path: bytes) -> int:
    """The part in which an entry counts."""
    return block_id(path)[0]


def bucket_of_file(file: int) -> int:
    """The part in which a file's blocks count."""
    return block_id(file.to_bytes(_FILE_BYTES, "big"))[0]


def entry_token(put: Put) -> int:
    """What an entry adds, its blocks apart."""
    meta = put.meta
    told = (
        put.path, int(put.kind), meta.mode, meta.uid, meta.gid, meta.mtime_ns, meta.xattrs,
        put.size, put.file, put.block_bytes, put.flags, put.target, put.device,
    )  # fmt: skip
    return int.from_bytes(block_id(b"entry" + _encode(told)), "big")


def blocks_token(file: int, numbers: Sequence[int], ids: bytes) -> int:
    """What these blocks of a file add; `ids` are theirs, one behind the other."""
    head = b"block" + file.to_bytes(_FILE_BYTES, "big")
    total = 0
    for i, number in enumerate(numbers):
        name = ids[i * ID_BYTES : (i + 1) * ID_BYTES]
        total += int.from_bytes(block_id(head + number.to_bytes(_FILE_BYTES, "big") + name), "big")
    return total % _MODULUS


async def account_of_ledger(dataset: Dataset, covered: int) -> Sums:
    """The account of what a replica that has everything up to `covered` was told. Nothing else may write the ledger
    meanwhile (`Dataset.turn`)."""
    sums = Sums()
    place: Place | None = FIRST_PLACE
    while place:
        place = await dataset.in_ledger(_add_page, dataset.ledger, place, covered, sums)
    return sums


def _add_page(ledger: Ledger, after: Place, covered: int, sums: Sums) -> Place | None:
    page = entries_from(ledger, after, PIECE_ENTRIES)
    blocks = 0
    for place, path, known in page:
        try:
            for ops in told_of(ledger, path, known, covered):
                sums.add(ops)
                blocks += sum(len(op.blocks) for op in ops if isinstance(op, Map))
        except Lacking:
            sums.leave_out(path, known.file)
        if blocks > PIECE_BLOCKS:
            return place
    return page[-1][0] if page else None


def told_of(ledger: Ledger, path: bytes, known: Known, covered: int) -> Iterable[list[Op]]:
    """What a replica was told of one entry, as its listing says it: a put, then maps. Raises Lacking."""
    if known.seq > covered or known.size == UNREAD_SIZE:
        raise Lacking(path)
    yield [put_of(path, known)]
    if not known.file:
        return
    after, end = -1, block_count(known.size, known.block_bytes)
    while rows := ledger.lacking_blocks(known.file, -1, after, PIECE_BLOCKS):
        after = rows[-1].number
        if any(row.seq > covered for row in rows):
            raise Lacking(path)
        live = [row for row in rows if row.id != ZERO and row.number < end]
        yield [Map(known.file, tuple(row.number for row in live), b"".join(row.id for row in live))]


def differing(ours: Sequence[bytes], theirs: Sequence[bytes]) -> frozenset[int]:
    """The parts in which two accounts differ."""
    return frozenset(i for i, (one, other) in enumerate(zip(ours, theirs, strict=True)) if one != other)


@dataclass(frozen=True, slots=True)
class Difference:
    """A path of which the two books do not say the same."""

    path: bytes
    reason: str


@dataclass(slots=True)
class Narrowing:
    """Finds the paths in which two books differ, a bounded number of them. Nothing else may write the ledger."""

    dataset: Dataset
    covered: int
    parts: frozenset[int]
    """Where the accounts differ."""
    limit: int
    found: list[Difference] = field(default_factory=list)

    async def run(self, listing: AsyncIterator[list[Op]]) -> list[Difference]:
        """Compare with the replica's listing, which is read to its end. Raises Lacking, ReplicadError."""
        await self.dataset.in_ledger(note_named, self.dataset.ledger, None)
        current: tuple[Put, int] | None = None
        async for ops in listing:
            ended: list[tuple[Put, int]] = []
            for op in ops:
                if isinstance(op, Put):
                    ended += [current] if current else []
                    current = (op, _token([op]))
                elif isinstance(op, Map) and current:
                    current = (current[0], (current[1] + _token([op])) % _MODULUS)
            await self._compare(ended)
        await self._compare([current] if current else [])
        await self._find_unnamed()
        return self.found

    async def _compare(self, ended: Sequence[tuple[Put, int]]) -> None:
        suspects = [(put.path, token) for put, token in ended if self._concerns(put.path, put.file)]
        if suspects:
            await self.dataset.in_ledger(self._compare_page, suspects)

    def _compare_page(self, suspects: Sequence[tuple[bytes, int]]) -> None:
        ledger = self.dataset.ledger
        note_named(ledger, [path for path, _ in suspects])
        for path, token in suspects:
            known = ledger.known(path)
            if known is None:
                self._add(path, "the replica's record has it, this ledger has not")
            elif self._ours(path, known) != token:
                self._add(path, "the two records say different things about it")

    def _ours(self, path: bytes, known: Known) -> int:
        tokens = [_token(ops) for ops in told_of(self.dataset.ledger, path, known, self.covered)]
        return sum(tokens) % _MODULUS

    async def _find_unnamed(self) -> None:
        place: Place | None = FIRST_PLACE
        while place:
            place = await self.dataset.in_ledger(self._unnamed_page, place)

    def _unnamed_page(self, after: Place) -> Place | None:
        ledger = self.dataset.ledger
        page = entries_from(ledger, after, PIECE_ENTRIES)
        for _, path, known in page:
            if self._concerns(path, known.file) and not is_named(ledger, path):
                self._add(path, "this ledger has it, the replica's record has not")
        return page[-1][0] if page else None

    def _concerns(self, path: bytes, file: int) -> bool:
        return bucket_of_path(path) in self.parts or (file > 0 and bucket_of_file(file) in self.parts)

    def _add(self, path: bytes, reason: str) -> None:
        if len(self.found) < self.limit:
            self.found.append(Difference(path, reason))


def _token(ops: Iterable[Op]) -> int:
    """What these operations add in all."""
    total = 0
    for op in ops:
        total += entry_token(op) if isinstance(op, Put) else 0
        total += blocks_token(op.file, op.blocks, op.ids) if isinstance(op, Put | Map) and op.ids else 0
    return total % _MODULUS
