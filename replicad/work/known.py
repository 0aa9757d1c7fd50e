"""Known: ship entries that the ledger has recorded already: in a catch-up, and for renamed files.

Their blocks are listed from the ledger and read again from the source only if the replica needs them. What is read
again is judged: the identity must be the recorded one and the checksum must match. **Never** ships anything else:
a file that was written meanwhile is left to the survey, a rotten block keeps its file lacking and is counted.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Sequence
from concurrent.futures import Executor
from typing import NamedTuple

from msgspec.structs import replace

from replicad.db.ledger import UNSETTLED, ZERO, BlockRow, Known, left_out, put_of
from replicad.model.block import Buffer, Checksum, block_id, checksum
from replicad.model.entry import INLINE_BLOCKS, MAP_BLOCKS, Drop, Op
from replicad.model.errors import ReplicadError
from replicad.model.show import counted
from replicad.source.reread import Ask, Judgement, Moved, Reread, judge_reread, reread
from replicad.source.root import Root, Trouble
from replicad.system.clock import Clock
from replicad.work.dataset import Dataset
from replicad.work.half_read import content_identity, is_half_read
from replicad.work.met import Rotten, look_again, report
from replicad.work.outcome import Outcome
from replicad.work.record import UNREAD_SIZE, Recorder, given, listed_of, maps, operations
from replicad.work.shipping import Shipping, Unit, load_nothing

UNIT_BLOCKS = 256
"""Blocks that one unit reads again, at most: 16 MiB of 64 KiB blocks, less than shipping may hold."""
UNIT_BYTES = 8 * 1024 * 1024
"""Their bytes, at most, unless one block is larger."""
MAX_TOLD = 256
"""Rotten blocks of one file that become findings at once; what a rotten disk has beyond that is found by the scrub."""
WRITTEN = "was written while it was sent; it will be tried again"
LIST_ENTRIES = 1024
"""Entries taken from the ledger at once."""


class Entry(NamedTuple):
    """A recorded entry on its way."""

    path: bytes
    known: Known
    rows: Sequence[BlockRow] = ()
    """The file's blocks that the replica lacks."""
    cleared: Sequence[tuple[int, int]] = ()
    """What the replica has to take for zeros before that."""


class KnownEntries:
    """Ships recorded entries of one pass."""

    def __init__(
        self,
        dataset: Dataset,
        recorder: Recorder,
        shipping: Shipping,
        root: Root,
        outcome: Outcome,
        pool: Executor,
        clock: Clock,
        checkpoint: Callable[[], Awaitable[None]],
    ) -> None:
        """`checkpoint` is awaited now and then; what is covered is the same behind it as before."""
        self._dataset, self._recorder, self._shipping = dataset, recorder, shipping
        self._root, self._outcome, self._pool, self._clock = root, outcome, pool, clock
        self._checkpoint = checkpoint
        self._survey_follows = False

    async def catch_up(self) -> None:
        """Ship everything that the ledger has recorded and the replica lacks; a survey follows, which has to look where
        the outcome says."""
        ledger, covered = self._dataset.ledger, self._recorder.covered
        self._survey_follows = True
        await self._dataset.in_ledger(ledger.list_lacking, covered)
        after = 0
        while batch := await self._dataset.in_ledger(ledger.listed, after, LIST_ENTRIES):
            after = batch[-1][0]
            await self.ship([(path, known) for _, path, known in batch])
            await self._checkpoint()
        before = b"\xff" * (MAX_SORT_BYTES)
        while paths := await self._dataset.in_ledger(ledger.lacking_drops, covered, before, LIST_ENTRIES):
            before = paths[-1]
            await self._shipping.ship(Unit(b"", load_nothing, given([Drop(path) for path in paths]), 0))
            await self._checkpoint()
        await self._shipping.flushed()
        self._survey_follows = False
        await self._dataset.in_ledger(ledger.note_settled)

    async def ship(self, entries: Sequence[tuple[bytes, Known]]) -> None:
        """Ship these. Where one is recorded as something that nobody has seen, or not all of, a walk says more."""
        shown = await self._dataset.in_ledger(self._with_rows, entries)
        told = {entry.path for entry in shown}
        for path, known in entries:
            if path not in told or is_half_read(known):
                self._outcome.look_again(path)
        few: list[Entry] = []
        blocks = size = 0
        for entry in shown:
            path, known, rows, _ = entry
            if reason := left_out(known):
                self._outcome.attributes(path, [reason])
            if len(rows) > INLINE_BLOCKS:
                await self._ship_large(path, known)
                await self._checkpoint()
                continue
            held = len(rows) * known.block_bytes
            if few and (blocks + len(rows) > UNIT_BLOCKS or size + held > UNIT_BYTES):
                await self._ship_few(few)
                few, blocks, size = [], 0, 0
            few.append(entry)
            blocks, size = blocks + len(rows), size + held
        if few:
            await self._ship_few(few)

    def _with_rows(self, entries: Sequence[tuple[bytes, Known]]) -> list[Entry]:
        """Those of these that were read, and are as they are recorded for all that is known, with what of their blocks
        has to be told."""
        outgrown = self._recorder.outgrown(entries)
        read = [(path, known) for path, known in entries if known.size != UNREAD_SIZE and path not in outgrown]
        files = {known.file: known for _, known in read if known.file}
        rows, cleared = self._recorder.all_lacking(files, INLINE_BLOCKS + 1), self._recorder.all_cleared(files.values())
        return [Entry(path, known, rows.get(known.file, ()), cleared.get(known.file, ())) for path, known in read]

    def _cleared(self, known: Known) -> list[tuple[int, int]]:
        return self._recorder.cleared(known.file, known.size, known.block_bytes)

    async def _ship_few(self, entries: list[Entry]) -> None:
        """Entries with few lacking blocks: one unit for many."""
        reading = _Rereading(self._root, entries)
        await self._check(reading.failed, entries)

        async def follow(complete: bool) -> AsyncIterator[Sequence[Op]]:
            await self._note(reading.failed, entries)
            await self._settle(reading.failed, entries)
            yield [
                op
                for path, known, rows, cleared in entries
                if path not in reading.failed
                for op in operations(put_of(path, known), listed_of(rows, cleared))
            ]

        await self._shipping.ship(Unit(reading.ids, reading.load, follow, reading.held_bytes))

    async def _ship_large(self, path: bytes, known: Known) -> None:
        """One file with many lacking blocks: unit after unit of blocks, its operations last."""
        failed: dict[bytes, Failure] = {}
        await self._check(failed, [Entry(path, known, await self._lacking(known.file, -1, 1))])
        step = max(1, min(UNIT_BLOCKS, UNIT_BYTES // known.block_bytes))
        after = -1
        while rows := await self._lacking(known.file, after, step):
            after = rows[-1].number
            reading = _Rereading(self._root, [Entry(path, known, rows)], failed)
            await self._shipping.ship(Unit(reading.ids, reading.load, _nothing, reading.held_bytes))

        async def follow(complete: bool) -> AsyncIterator[Sequence[Op]]:
            await self._note(failed, [Entry(path, known)])
            if not failed:
                cleared = await self._dataset.in_ledger(self._cleared, known)
                yield [replace(put_of(path, known), zeros=tuple(cleared))]
                async for ops in self.maps(known.file):
                    yield ops
                ledger = self._dataset.ledger
                await self._dataset.in_ledger(ledger.settle_entry, path, known.file, self._recorder.seq)

        await self._shipping.ship(Unit(b"", load_nothing, follow, 0))

    async def maps(self, file: int) -> AsyncIterator[Sequence[Op]]:
        """The file's lacking blocks as operations, a bounded number at a time."""
        after = -1
        while rows := await self._lacking(file, after, MAP_BLOCKS):
            after = rows[-1].number
            yield maps(file, listed_of(rows))

    async def _check(self, failed: dict[bytes, Failure], entries: Sequence[Entry]) -> None:
        """Files with lacking blocks must be as recorded, whether or not the replica needs the bytes."""
        places = [(path, known, rows[0]) for path, known, rows, _ in entries if rows]
        asks = [_ask(place, []) for place in places]
        if asks:
            answers = await asyncio.get_running_loop().run_in_executor(self._pool, reread, self._root, asks)
            failed.update(
                {place[0]: _failure(a) for place, a in zip(places, answers, strict=True) if not isinstance(a, Reread)}
            )

    async def _lacking(self, file: int, after: int, limit: int) -> list[BlockRow]:
        return await self._dataset.in_ledger(self._recorder.lacking, file, after, limit)

    async def _note(self, failed: dict[bytes, Failure], entries: Sequence[Entry]) -> None:
        """What could not be read again stays lacking, and is counted."""
        for path, known, *_ in entries:
            if failure := failed.get(path):
                ledger, covered = self._dataset.ledger, self._recorder.covered
                await self._dataset.in_ledger(ledger.unsettle, path, known.file, covered)
                self._outcome.rotten += failure.count
                if failure.reason:
                    self._outcome.trouble(path, failure.reason)
                elif failure.was_written and not self._survey_follows:
                    self._outcome.trouble(path, WRITTEN)
                else:
                    self._outcome.look_again(path)
                await self._tell(path, failure.rotten.values())

    async def _settle(self, failed: Collection[bytes], entries: Sequence[Entry]) -> None:
        """What could not be sent before and is now does not lack any more."""
        ledger, seq = self._dataset.ledger, self._recorder.seq
        for path, known, rows, _ in entries:
            if path not in failed and (known.seq == UNSETTLED or any(row.seq == UNSETTLED for row in rows)):
                await self._dataset.in_ledger(ledger.settle_entry, path, known.file, seq)

    async def _tell(self, path: bytes, rotten: Iterable[Rotten]) -> None:
        """Make findings of rotten blocks, each read once more from the medium before."""
        dataset, loop, found = self._dataset, asyncio.get_running_loop(), []
        for block in rotten:
            seen = await loop.run_in_executor(
                self._pool, look_again, self._root, block, dataset.config.name, self._clock.now_ns()
            )
            found += [seen] if seen else []
        if not found:
            return
        try:
            await dataset.open_findings()
            await dataset.in_findings(report, dataset.findings, found)
        except ReplicadError as error:
            self._outcome.trouble(path, f"is rotten, and that could not be written down: {error}")


class Failure:
    """Why a recorded file could not be read again. One that was written, or is gone, has no reason: a walk sees it."""

    def __init__(self, reason: str = "", *, was_written: bool = False) -> None:
        self.reason, self.was_written = reason, was_written
        self.rotten: dict[int, Rotten] = {}
        """Rotten blocks by number, the first MAX_TOLD."""
        self.count = 0
        """All of them."""

    def add(self, block: Rotten) -> None:
        """One more rotten block; one that was read again counts once."""
        if block.number in self.rotten:
            return
        self.count += 1
        if len(self.rotten) < MAX_TOLD:
            self.rotten[block.number] = block
        blocks = counted(self.count, "block differs", "blocks differ")
        self.reason = f"{blocks} from the ledger though the file was not written: not sent"


Place = tuple[bytes, Known, BlockRow]
"""Where a block stands: path, its recorded entry, the block's row."""


class _Rereading:
    """The blocks of some recorded files, read again when they are needed. `load` runs in a thread."""

    def __init__(self, root: Root, entries: Sequence[Entry], failed: dict[bytes, Failure] | None = None) -> None:
        self._root = root
        self.failed: dict[bytes, Failure] = {} if failed is None else failed
        self._places: dict[bytes, list[Place]] = {}
        for path, known, rows, _ in entries:
            for row in rows:
                if row.id != ZERO:
                    self._places.setdefault(row.id, []).append((path, known, row))
        self.ids = b"".join(self._places)
        self.held_bytes = sum(places[0][1].block_bytes for places in self._places.values())

    def load(self, positions: Sequence[int]) -> list[Buffer | None]:
        """The bytes of the blocks at these positions of `ids`; None where no place holds what is recorded."""
        choices = list(self._places.values())
        found = self._read([choices[position][0] for position in positions])
        for order, position in enumerate(positions):
            for place in choices[position][1:]:
                if found[order] is None:
                    found[order] = self._read([place])[0]
        return found

    def _read(self, places: Sequence[Place]) -> list[Buffer | None]:
        wanted: dict[bytes, list[tuple[int, Place]]] = {}
        for order, place in enumerate(places):
            wanted.setdefault(place[0], []).append((order, place))
        found: list[Buffer | None] = [None] * len(places)
        asks = [_ask(parts[0][1], [place[2].number for _, place in parts]) for parts in wanted.values()]
        for parts, answer in zip(wanted.values(), reread(self._root, asks), strict=True):
            if isinstance(answer, Moved | Trouble):
                self._fail(parts[0][1][0], _failure(answer))
                continue
            for (order, place), data in zip(parts, answer.blocks, strict=True):
                found[order] = self._judged(place, data)
        return found

    def _fail(self, path: bytes, failure: Failure) -> None:
        """The file could not be read. What was found rotten of it before is told as well, unless it was written."""
        before = self.failed.get(path)
        if before is None or not before.rotten or not failure.reason:
            self.failed[path] = failure
        elif failure.reason not in before.reason:
            before.reason = f"{before.reason}; {failure.reason}"

    def _judged(self, place: Place, data: bytes) -> bytes | None:
        path, known, row = place
        identity = content_identity(known)
        verdict = judge_reread(Checksum(row.checksum), identity, checksum(data), identity)
        if verdict is Judgement.SAME and block_id(data) == row.id:
            return data
        seen = Rotten(
            path, identity, known.file, row.number, known.block_bytes, len(data), row.id, row.checksum, checksum(data)
        )
        self.failed.setdefault(path, Failure()).add(seen)
        return None


def _failure(answer: Moved | Trouble) -> Failure:
    if isinstance(answer, Moved):
        return Failure(was_written=True)
    return Failure() if answer.vanished else Failure(answer.reason)


def _ask(place: Place, numbers: Sequence[int]) -> Ask:
    path, known, _ = place
    return Ask(path, tuple(numbers), known.block_bytes, content_identity(known))


async def _nothing(complete: bool) -> AsyncIterator[Sequence[Op]]:
    return
    yield


MAX_SORT_BYTES = 4096
"""A path of this many 0xff bytes sorts after every path."""
