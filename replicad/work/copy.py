"""Copy: one pass of one dataset to one replica.

    catch up   what the ledger has recorded and this replica lacks (after a cut, a crash, or on a new replica)
    survey     walk the dataset against the ledger; guards judge the whole change before any of it is sent
    copy       read what changed, record it in the ledger, ship it
    seal       make it a snapshot

Reading runs one batch ahead of recording, recording ahead of the link; each stage is bounded in bytes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import NamedTuple, ParamSpec, TypeVar

from msgspec.structs import replace

from replicad.db.ledger import BlockRow, Known
from replicad.db.plan import Action, Step
from replicad.db.unnamed import end_walk
from replicad.model.block import block_size_for
from replicad.model.entry import FUZZY, Drop, Kind, Op, Put
from replicad.model.errors import ReplicadError
from replicad.model.order import encode_order
from replicad.model.snapshot import MAX_RECORDS, Commit, Head
from replicad.source.large import LargeRead, Slab, open_large
from replicad.source.meta import Described, describe
from replicad.source.read import SMALL_BYTES, Candidate, FileRead, Outgrown
from replicad.source.root import Root, Trouble
from replicad.source.scan import Soon, still_drifted
from replicad.status import DatasetStatus
from replicad.system.clock import Clock
from replicad.work.dataset import Dataset
from replicad.work.half_read import half_read, read_whole
from replicad.work.known import KnownEntries
from replicad.work.met import drift, known_as, recorded_names, report
from replicad.work.outcome import Outcome
from replicad.work.record import Recorder, given
from replicad.work.renumbered import follow_renumbered
from replicad.work.scout import Book
from replicad.work.scouts import Scouts, Small
from replicad.work.shared_walk import SharedWalk
from replicad.work.shipping import Shipping, Unit, load_nothing
from replicad.work.survey import PHASES, Survey, survey

Given = ParamSpec("Given")
Result = TypeVar("Result")
Entry = TypeVar("Entry", FileRead, Described)

BATCH_FILES = 256
"""Small files read in one call of a worker thread: a hop costs more than a file."""
BATCH_BYTES = 2 * 1024 * 1024
"""Bytes of small files in one batch; a few batches are under way at once."""
AHEAD_BATCHES = 3
"""Batches that are read while an earlier one is recorded and sent: a cold disk answers several at once."""
PLAN_STEPS = 2048
"""Steps of the plan taken from the ledger at once."""
CHECKPOINT_BYTES = 4 * 1024**3
"""A long pass is sealed as a partial snapshot after this many shipped bytes: restorable as it progresses, and what the
replica has to replay after a crash stays short."""
CAUGHT_UP_S = 1.0
"""What took this long to tell again, after a pass that was cut short, is sealed before anything else is looked at:
where every pass is cut short, none would come to its end otherwise."""
CHECKPOINT_RECORDS = MAX_RECORDS // 4
"""The same after so many records, of names that bring few bytes: what is in the pipeline, and the list of one file's
blocks, which is never divided, come on top before the seal."""
MOVED = "kept changing while it was read; it will be tried again"

Work = Callable[[], Awaitable[None]]


class LastSeal(NamedTuple):
    """The replica's last snapshot, as far as it matters for the next."""

    complete: bool
    is_old: bool
    """Whether one is due although nothing changed."""


class _SlabRead(NamedTuple):
    """A slab, the blocks that it covers, and what was recorded of them before."""

    numbers: range
    existing: dict[int, BlockRow]
    slab: Slab


class Pass:
    """One pass. `run` does it once."""

    def __init__(
        self,
        dataset: Dataset,
        replica: str,
        shipping: Shipping,
        status: DatasetStatus,
        pool: Executor,
        scouts: Scouts,
        clock: Clock,
    ) -> None:
        self._dataset, self._replica, self._shipping = dataset, replica, shipping
        self._status, self._pool, self._scouts, self._clock = status, pool, scouts, clock
        self._outcome = Outcome()
        self._started_ns = clock.now_ns()
        self._sealed_s, self._sealed_bytes = clock.monotonic_s(), shipping.shipped_bytes
        self._unrecorded: set[bytes] = set()
        """New directories that went away before they were described: nothing below them may be recorded, because no
        walk looks below a directory that is not recorded, and so nothing would ever drop it."""

    async def run(self, only: frozenset[bytes] | None, last: LastSeal) -> Outcome:
        """Do it; with `only` just these directories are walked, and where a catch-up met something. Everything is
        acknowledged when this returns.

        Without changes a snapshot is made only when the `last` one is old, or not complete and this one is. Raises
        HeldError, SourceError, and whatever ended the session.
        """
        root = await self._in_pool(Root, self._dataset.root)
        try:
            await self._begin(root)
            await self._catch_up()
            only = self._outcome.widened(only)
            async with self._scouts.borrow(root, self._dataset.config.compression) as scout:
                self._scout = scout
                found = await self._survey(only)
                if found.puts or found.drops:
                    self._status.state = "copying"
                    await self._copy()
                if only is None:
                    await self._dataset.in_ledger(end_walk, self._dataset.ledger)
            await self._finish(last)
        finally:
            await self._in_pool(root.close)
        return self._outcome

    async def _begin(self, root: Root) -> None:
        ledger = self._dataset.ledger
        await self._dataset.in_ledger(self._dataset.check_root, root.identity)
        standing = await self._dataset.in_ledger(ledger.standing, self._replica)
        seq = await self._dataset.in_ledger(ledger.take_seq)
        self._root = root
        self._outcome.head = standing.head
        self._recorder = Recorder(ledger, standing.covered, seq, root.look)
        self._known = KnownEntries(
            self._dataset, self._recorder, self._shipping, root, self._outcome, self._pool, self._clock,
            lambda: self._checkpoint(self._recorder.covered),
        )  # fmt: skip
        await follow_renumbered(self._dataset)

    async def _catch_up(self) -> None:
        if await self._dataset.in_ledger(self._dataset.ledger.lacks_something, self._recorder.covered):
            self._status.state = "catching-up"
            await self._known.catch_up()
            await self._checkpoint(self._recorder.seq, min(CAUGHT_UP_S, self._dataset.config.rpo_s))

    # survey and guard

    async def _survey(self, only: frozenset[bytes] | None) -> Survey:
        self._status.state = "survey"
        loop = asyncio.get_running_loop()

        def soon(directories: Sequence[bytes]) -> None:
            loop.call_soon_threadsafe(self._scout.look_ahead, directories)

        config, excluded = self._dataset.config, self._dataset.excluded
        book = Book(str(self._dataset.ledger.path), excluded.patterns, config.one_filesystem)
        found = await self._dataset.in_ledger(self._walk, only, soon, SharedWalk(self._scout, book, loop))
        if reason := await self._dataset.in_ledger(self._guard, found):
            raise self._dataset.held_error(reason)
        for trouble in found.troubles:
            self._outcome.trouble(trouble.path, trouble.reason)
        self._outcome.unread += found.trouble_count - len(found.troubles)
        await self._tell_drift(found)
        self._status.pending_files = self._status.total_files = found.files
        self._status.pending_bytes = self._status.total_bytes = found.size
        return found

    async def _tell_drift(self, found: Survey) -> None:
        """Make findings of entries that changed though nobody changed them: they are not copied."""
        if not found.drifted:
            return
        dataset, now_ns = self._dataset, self._clock.now_ns()
        still = await self._in_pool(still_drifted, self._root, found.drifted)
        for one in found.drifted:
            if one not in still:
                self._outcome.look_again(one.path)
        if not still:
            return
        names = await dataset.in_ledger(recorded_names, dataset.ledger, still)
        fields = await self._in_pool(known_as, self._root, names, self._clock)
        drifted = [drift(one, dataset.config.name, now_ns, fields.get(one.path)) for one in still]
        try:
            await dataset.open_findings()
            await dataset.in_findings(report, dataset.findings, drifted)
        except ReplicadError as error:
            self._outcome.trouble(found.drifted[0].path, f"has drifted, and that could not be written down: {error}")
        if found.drift_count > len(found.drifted):
            text = f"first of {found.drift_count} entries whose metadata changed without a write: other mount options?"
            self._outcome.trouble(found.drifted[0].path, text)

    def _walk(self, only: frozenset[bytes] | None, soon: Soon, companion: SharedWalk) -> Survey:
        dataset = self._dataset
        with companion:
            return survey(
                self._root,
                dataset.ledger,
                dataset.excluded,
                one_filesystem=dataset.config.one_filesystem,
                only=only,
                stopped=dataset.stopping.is_set,
                soon=soon,
                companion=companion,
                canary=dataset.config.canary.encode(),
            )

    def _guard(self, found: Survey) -> str:
        """Why this change must be held, or "". A release lets one pass through."""
        reason = found.held_because(self._dataset.config.max_change)
        if reason and not self._dataset.ledger.get("released"):
            self._dataset.ledger.put("held", reason)
            return reason
        self._dataset.ledger.put("released", None)
        return ""

    # copying

    async def _copy(self) -> None:
        """Read some batches ahead, record and ship them in the plan's order."""
        ahead: deque[asyncio.Task[Work]] = deque()
        try:
            for phase in PHASES:
                async for action, steps in self._planned(phase):
                    ahead.append(asyncio.create_task(self._prepared(action, steps)))
                    if len(ahead) > AHEAD_BATCHES:
                        await self._do(await ahead.popleft())
            while ahead:
                await self._do(await ahead.popleft())
        finally:
            for task in ahead:
                task.cancel()
            await asyncio.gather(*ahead, return_exceptions=True)

    async def _do(self, work: Work) -> None:
        await work()
        await self._checkpoint(self._recorder.seq)

    async def _prepared(self, action: Action, steps: list[Step]) -> Work:
        """What remains to be done about these steps, once what can be read ahead was read."""
        if action is Action.READ:
            if steps[0].size > SMALL_BYTES:
                return partial(self._large, steps[0])
            return partial(self._small, await self._read_small(steps))
        if action in (Action.DESCRIBE, Action.AGAIN):
            described = self._described if action is Action.DESCRIBE else self._again
            return partial(described, steps, await self._describe(steps))
        return partial(self._same if action is Action.SAME else self._dropped, steps)

    async def _planned(self, phase: int) -> AsyncIterator[tuple[Action, list[Step]]]:
        """The phase's steps in order, those of one action in batches, each large file by itself."""
        after = 0
        while steps := await self._dataset.in_ledger(self._dataset.ledger.plan.steps, phase, after, PLAN_STEPS):
            after = steps[-1].number
            for batch in batches(steps):
                yield batch[0].action, batch

    # small files

    async def _read_small(self, steps: list[Step]) -> tuple[list[Step], Small]:
        sizes = await self._block_sizes(steps)
        candidates = [
            Candidate(step.path, step.size, sizes.get(step.path) or self._block_bytes(step.size)) for step in steps
        ]
        return steps, await self._scout.read_small(candidates)

    async def _block_sizes(self, steps: Sequence[Step]) -> dict[bytes, int]:
        """Block sizes of files that have one already: it never changes."""
        paths = [step.path for step in steps if step.known]
        if not paths:
            return {}
        known = await self._dataset.in_ledger(lambda: [(path, self._dataset.ledger.known(path)) for path in paths])
        return {path: entry.block_bytes for path, entry in known if entry}

    def _block_bytes(self, size: int) -> int:
        return self._dataset.config.block_bytes or block_size_for(size)

    async def _small(self, planned: tuple[list[Step], Small]) -> None:
        steps, small = planned
        good: list[tuple[Step, FileRead]] = []
        done: list[Step] = []
        for step, read in zip(steps, small.read.files, strict=True):
            if self._is_adrift(step.path):
                done.append(step)
                continue
            if isinstance(read, Outgrown):
                await self._large(step)
                continue
            done.append(step)
            if isinstance(read, FileRead) and self._is_good(read):
                good.append((step, _under_its_stamp(read)))
            elif isinstance(read, Trouble):
                self._outcome.unreadable(read)
        self._all_done(done)
        if good:
            await self._shipping.ship(await self._dataset.in_ledger(self._recorder.small, good, small))
            self._status.read_bytes += sum(read.size for _, read in good)
            self._status.copied_files += len(good)

    def _is_good(self, read: FileRead) -> bool:
        """Whether what was read is recorded."""
        if read.moved and not self._accepted(read.path, moved=True):
            return False
        if read.description.troubles:
            self._outcome.attributes(read.path, read.description.troubles)
        return True

    def _accepted(self, path: bytes, *, moved: bool) -> bool:
        """Whether a file is recorded though it kept changing; the policy decides."""
        if moved and self._dataset.config.on_change == "skip":
            self._outcome.trouble(path, MOVED)
            return False
        if moved:
            self._outcome.fuzzy += 1
            self._outcome.look_again(path)
        return True

    # large files

    async def _large(self, step: Step) -> None:
        if self._is_adrift(step.path) or (step.links > 1 and await self._linked(step)):
            self._done(step, 0)
            return
        block_bytes = (await self._block_sizes([step])).get(step.path) or self._block_bytes(step.size)
        large = await self._in_pool(open_large, self._root, step.path, block_bytes, clock=self._clock)
        if isinstance(large, Trouble):
            self._outcome.unreadable(large)
            self._done(step, 0)
            return
        try:
            await self._read_large(large, step, block_bytes)
        finally:
            await self._in_pool(large.close)

    async def _linked(self, step: Step) -> bool:
        """Whether this large file is another name of one recorded with exactly this identity; ships it then."""
        ((_, known),) = await self._ship_same([step])
        return known is not None

    async def _read_large(self, large: LargeRead, step: Step, block_bytes: int) -> None:
        recorder, in_ledger, description = self._recorder, self._dataset.in_ledger, large.description
        file = await in_ledger(recorder.begin_large, step.path, large.stamp, large.links, description.meta, block_bytes)
        done = 0
        reading = asyncio.create_task(self._read_slab(large, file))
        try:
            while read := await _unharmed(reading):
                reading = asyncio.create_task(self._read_slab(large, file))
                if isinstance(read, Trouble):
                    self._outcome.unreadable(read)
                    self._done(step, done)
                    return
                await self._shipping.ship(await in_ledger(recorder.slab, file, read.existing, read.slab))
                covered = len(read.numbers) * block_bytes
                done += covered
                self._status.pending_bytes = max(0, self._status.pending_bytes - covered)
                self._status.read_bytes += read.slab.read_bytes
                await self._checkpoint(recorder.seq)
        finally:
            # whoever closes the file must not meet the thread that reads it
            await asyncio.gather(asyncio.shield(reading), return_exceptions=True)
        after = await self._in_pool(large.finish)
        self._done(step, done)
        if isinstance(after, Trouble):
            self._outcome.unreadable(after)
        elif self._accepted(step.path, moved=after != large.stamp):
            self._outcome.attributes(step.path, description.troubles)
            flags = description.flags | (FUZZY if after != large.stamp else 0)
            put = Put(step.path, Kind.FILE, description.meta, large.size, file, block_bytes, flags)
            stamp = half_read(large.stamp) if description.again else large.stamp
            puts = await in_ledger(recorder.end_large, put, stamp)
            self._status.copied_files += 1
            await self._ship_after(puts)

    async def _read_slab(self, large: LargeRead, file: int) -> _SlabRead | Trouble | None:
        """The next slab, None at the end; it is read while the one before is recorded and sent."""
        if not (numbers := large.upcoming):
            return None
        existing = await self._dataset.in_ledger(self._recorder.expected, file, numbers)
        slab = await self._in_pool(large.read, self._recorder.agreed(existing))
        return _SlabRead(numbers, existing, slab) if isinstance(slab, Slab) else slab

    async def _ship_after(self, puts: Sequence[Put]) -> None:
        """Ship a file's operations, one entry for each of its names, behind its blocks, which are on their way."""

        async def follow(complete: bool) -> AsyncIterator[Sequence[Op]]:
            *others, last = puts
            cleared = await self._dataset.in_ledger(self._recorder.cleared, last.file, last.size, last.block_bytes)
            yield [*others, replace(last, zeros=tuple(cleared))]
            async for ops in self._known.maps(last.file):
                yield ops

        await self._shipping.ship(Unit(b"", load_nothing, follow, 0))

    # everything else

    async def _same(self, steps: Sequence[Step]) -> None:
        """Ship new names of recorded files; a file that was rewritten since the survey is read like any other."""
        for step, known in await self._ship_same([step for step in steps if not self._is_adrift(step.path)]):
            if known is None:
                await self._read(step)

    async def _ship_same(self, steps: Sequence[Step]) -> list[tuple[Step, Known | None]]:
        """Ship these as names of recorded files with exactly their identity; None with those that are none."""
        found = await self._dataset.in_ledger(self._same_or_none, steps, await self._describe(steps))
        await follow_renumbered(self._dataset)
        await self._known.ship([(step.path, known) for step, known in found if known])
        return found

    async def _read(self, step: Step) -> None:
        if step.size > SMALL_BYTES:
            await self._large(step)
        else:
            await self._small(await self._read_small([step]))

    def _same_or_none(
        self, steps: Sequence[Step], described: Sequence[Described | Trouble]
    ) -> list[tuple[Step, Known | None]]:
        seen = [
            (step, item.stamp) for step, item in zip(steps, described, strict=True) if not isinstance(item, Trouble)
        ]
        known = {step.path: known for (step, _), known in zip(seen, self._recorder.same(seen), strict=True)}
        return [(step, known.get(step.path)) for step in steps]

    async def _described(self, steps: Sequence[Step], items: Sequence[Described | Trouble]) -> None:
        good: list[Described] = []
        for step, item in zip(steps, items, strict=True):
            if self._is_adrift(step.path):
                continue
            if isinstance(item, Trouble):
                self._outcome.unreadable(item)
                self._leave_out(step)
            elif item.stamp.kind == Kind.FILE:
                self._outcome.trouble(item.path, "became a regular file during the pass; it will be read in the next")
                self._leave_out(step)
            else:
                self._outcome.attributes(item.path, item.description.troubles)
                if not await self._is_half_read(item):
                    good.append(_under_its_stamp(item))
        if good:
            await self._ship_ops(await self._dataset.in_ledger(self._recorder.described, good))

    async def _again(self, steps: Sequence[Step], items: Sequence[Described | Trouble]) -> None:
        """Files that lack nothing but an attribute that could not be read: it is recorded once it can be. One that
        somebody has written since the survey is read like any other."""
        for step, item in zip(steps, items, strict=True):
            if self._is_adrift(step.path):
                continue
            if isinstance(item, Trouble):
                self._outcome.unreadable(item)
            elif await self._is_half_read(item):
                self._outcome.attributes(item.path, item.description.troubles)
            elif known := await self._dataset.in_ledger(read_whole, self._dataset.ledger, item, self._recorder.seq):
                self._outcome.attributes(item.path, item.description.troubles)
                await self._known.ship([(item.path, known)])
            else:
                await self._read(step)

    async def _is_half_read(self, item: Described) -> bool:
        """Whether an attribute still cannot be read of an entry that is recorded without it."""
        if not item.description.again:
            return False
        return await self._dataset.in_ledger(self._dataset.ledger.entry, item.path) == half_read(item.stamp)

    def _leave_out(self, step: Step) -> None:
        if not step.known:
            self._unrecorded.add(step.path)

    def _is_adrift(self, path: bytes) -> bool:
        """Whether a directory above `path` is not recorded. The next walk finds it under its new name."""
        above = path.rpartition(b"/")[0] if self._unrecorded else b""
        while above:
            if above in self._unrecorded:
                return True
            above = above.rpartition(b"/")[0]
        return False

    async def _dropped(self, steps: Sequence[Step]) -> None:
        paths = [step.path for step in steps]
        await self._dataset.in_ledger(self._dataset.ledger.drop, paths, self._recorder.seq)
        await self._ship_ops([Drop(path) for path in paths])

    async def _ship_ops(self, ops: Sequence[Op]) -> None:
        await self._shipping.ship(Unit(b"", load_nothing, given(ops), 0))

    # sealing

    async def _checkpoint(self, covered: int, every_s: float | None = None) -> None:
        """Seal a partial snapshot when the pass has run for long (an rpo, unless `every_s` is given), or sent much.

        `covered` is the number up to which the replica then has everything: in a catch-up nothing more than before.
        """
        shipping, passed_s = self._shipping, self._clock.monotonic_s() - self._sealed_s
        much = shipping.shipped_bytes - self._sealed_bytes >= CHECKPOINT_BYTES or shipping.records >= CHECKPOINT_RECORDS
        if not much and passed_s < (self._dataset.config.rpo_s if every_s is None else every_s):
            return
        await self._shipping.flushed()
        if self._shipping.recorded:
            await self._seal(complete=False, covered=covered)
        self._sealed_s, self._sealed_bytes = self._clock.monotonic_s(), self._shipping.shipped_bytes

    async def _finish(self, last: LastSeal) -> None:
        await self._shipping.flushed()
        complete = self._outcome.unread == 0
        if self._shipping.recorded or last.is_old or (complete and not last.complete):
            self._status.state = "committing"
            await self._seal(complete=complete, covered=self._recorder.seq)
        self._status.pending_files = self._status.pending_bytes = 0

    async def _seal(self, *, complete: bool, covered: int) -> None:
        dataset, ledger = self._dataset, self._dataset.ledger
        totals = await dataset.in_ledger(ledger.totals)
        parent, unread = self._outcome.head, self._outcome.unread

        def build(records: int, digest: bytes) -> Commit:
            return Commit(
                parent.number + 1, self._started_ns, complete, parent.digest, records, digest,
                totals.entries, totals.size, unread, encode_order(dataset.config.restore_order),
            )  # fmt: skip

        async def before(sent: Head) -> None:
            await dataset.durably(ledger.set_sent, self._replica, sent, covered)

        self._outcome.head = await self._shipping.seal(build, before)
        acknowledged_ns = self._clock.now_ns()
        await dataset.in_ledger(self._acked, complete, covered)
        dataset.acknowledged(self._replica).note(self._outcome.head.number, acknowledged_ns)
        self._status.last_snapshot = self._outcome.head.number
        self._status.last_snapshot_ns = self._started_ns
        self._status.entries, self._status.size = totals.entries, totals.size

    def _acked(self, complete: bool, covered: int) -> None:
        ledger = self._dataset.ledger
        ledger.set_acked(self._replica)
        ledger.forget_drops(self._dataset.replicas)
        ledger.put(f"complete:{self._replica}", int(complete))
        ledger.put(f"sealed_ns:{self._replica}", self._started_ns)
        if complete:
            ledger.put(f"complete_ns:{self._replica}", self._started_ns)
        if covered == self._recorder.seq:
            self._recorder.advance()

    def _done(self, step: Step, counted: int) -> None:
        """One planned file needs no more reading; `counted` of its bytes were already taken off the backlog."""
        self._status.pending_files = max(0, self._status.pending_files - 1)
        self._status.pending_bytes = max(0, self._status.pending_bytes - max(0, step.size - counted))

    def _all_done(self, steps: Sequence[Step]) -> None:
        """Small files that need no more reading."""
        self._status.pending_files = max(0, self._status.pending_files - len(steps))
        self._status.pending_bytes = max(0, self._status.pending_bytes - sum(step.size for step in steps))

    async def _describe(self, steps: Sequence[Step]) -> list[Described | Trouble]:
        return await self._in_pool(describe, self._root, [step.path for step in steps], clock=self._clock)

    async def _in_pool(self, work: Callable[Given, Result], *args: Given.args, **kwargs: Given.kwargs) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._pool, partial(work, *args, **kwargs))


def _under_its_stamp(one: Entry) -> Entry:
    """What was read, as it is to be recorded."""
    return replace(one, stamp=half_read(one.stamp)) if one.description.again else one


async def _unharmed(task: asyncio.Task[Result]) -> Result:
    """Its result. Who waits may be cancelled; the task goes on, as its thread would in any case."""
    await asyncio.wait((task,))
    return task.result()


def batches(steps: Sequence[Step]) -> list[list[Step]]:
    """Neighbouring steps of one action together; small files up to BATCH_FILES and BATCH_BYTES, large ones alone."""
    found: list[list[Step]] = []
    size = 0
    for step in steps:
        large = step.action is Action.READ and step.size > SMALL_BYTES
        size += step.size
        fits = found and found[-1][0].action is step.action and len(found[-1]) < BATCH_FILES and size <= BATCH_BYTES
        if fits and not large and found[-1][-1].size <= SMALL_BYTES:
            found[-1].append(step)
        else:
            found.append([step])
            size = step.size
    return found
