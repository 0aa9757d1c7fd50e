"""Restore: a snapshot out of a reader, into a directory. The one restore path that everything shares.

    record -> plan (compare, make) -> parcels -> fetch -> prove -> write -> links, extra entries, directories -> sync

Plan, fetch and write run at the same time; what is under way is bounded in bytes and hides the round trip. Every
block is proven by its BLAKE3 id before a byte of it is written. Damage stops nothing: it is named in the account.
Run again, a restore compares what is there and fetches only the rest, so that is also how one is resumed.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from replicad.link.messages import Lost, SnapshotLine
from replicad.model.entry import Op, show_path
from replicad.model.errors import DiskFullError, PeerError, ReplicadError, UsageError
from replicad.model.glob import compile_globs
from replicad.model.show import counted
from replicad.model.when import show_time
from replicad.system.clock import Clock
from replicad.system.disk import Disk
from replicad.work.account import PATTERNS, Account, ClassDone, Fate, Finding, Tally
from replicad.work.choice import Choice
from replicad.work.closing import Closing
from replicad.work.filling import Site
from replicad.work.handing import Handing
from replicad.work.parcel import Parcel, write_parts
from replicad.work.planner import Planner, Rules
from replicad.work.reader import Answer, Reader
from replicad.work.remembered import Remembered
from replicad.work.target import Target
from replicad.work.together import to_its_end

IN_FLIGHT_BYTES = 32 * 1024 * 1024
"""Plain bytes asked for and not yet written: more than twice what 1 Gbit/s carries in a round trip of 100 ms, because
what has arrived and is being written counts as well."""
IN_FLIGHT_PARCELS = 32
"""Parcels under way: where files are tiny, a parcel is full of blocks long before it is full of bytes."""
MAX_THREADS = 4
"""Threads that compare, prove and write: more would only queue up behind one disk and the interpreter's lock."""

Result = TypeVar("Result")
Step = Parcel | None
"""What one step of the planner or of the closing yields."""


def ignore(finding: Finding) -> None:
    """For those who read the account only."""


def ignore_class(done: ClassDone) -> None:
    """The same."""


class Restore:
    """One restore. `account` may be read at any time; it is final when `run` has returned or raised."""

    def __init__(
        self,
        reader: Reader,
        line: SnapshotLine,
        target: Path,
        *,
        dataset: str = "",
        globs: Sequence[bytes] = (),
        rules: Rules | None = None,
        clock: Clock | None = None,
        disk: Disk | None = None,
        heard: Callable[[Finding], None] = ignore,
        told: Callable[[ClassDone], None] = ignore_class,
        held: int | None = None,
        newest_gone: bool = False,
    ) -> None:
        """`line` is one of the reader's snapshots, `globs` restricts it to paths (model/glob.py); `heard` is told each
        finding as it is made, `told` each class of the order that is complete, on the event loop. `held`: the target,
        open and locked by whoever asks. `newest_gone`: as in the account. Raises UsageError for a bad pattern."""
        self._reader, self._line, self._path, self._globs = reader, line, target, tuple(globs)
        self._heard, self._told, self._held = heard, told, held
        try:
            self._rules = replace(rules or Rules(), wanted=compile_globs(globs), spare_extra=_spare_extra(line))
            self._choice = Choice(self._rules.order, globs)
        except ValueError as error:
            raise UsageError(str(error)) from None
        self._clock, self._disk = clock or Clock(), disk or Disk()
        self._has_hand = disk is None  # which writes to the disk itself
        self._handing: Handing | None = None
        self._room = asyncio.Condition()
        self._in_flight = self._parcels = 0
        self._fates: list[tuple[int, Fate]] = []
        self._replaced: list[bytes] = []
        self.account = Account(
            dataset=dataset,
            source=reader.name,
            target=str(target),
            snapshot=line.number,
            created=show_time(line.created_ns),
            complete_snapshot=line.complete,
            unread=line.unread,
            lost_records=line.lost,
            newest_gone=newest_gone,
            dry_run=self._rules.dry_run,
        )

    async def run(self) -> Account:
        """Restore everything that can be had. May be called once.

        Raises UsageError and LockedError before anything is changed; DiskFullError, LinkError, PeerError or another
        ReplicadError when it cannot go on. What was done so far stays, and the next run goes on from it.
        """
        account, started_s = self.account, self._clock.monotonic_s()
        self._started_s = started_s
        try:
            async with (
                AsyncExitStack() as stack
            ):  # closed from the last to the first: no thread works any more when files close
                rules = self._rules
                target = Target(self._path, self._disk, dry=rules.dry_run, held=self._held, aside=rules.aside)
                stack.callback(target.close)
                stack.callback(self._note_kept, target)
                self._remembered = Remembered()
                stack.callback(self._remembered.close)
                site = Site(target, self._clock.now_ns(), self._line.created_ns if rules.plan else 0)
                planner = Planner(site, self._remembered, self._rules)
                stack.callback(planner.close)
                self._pool = ThreadPoolExecutor(min(MAX_THREADS, (os.cpu_count() or 1) + 1), "restore")
                stack.callback(self._pool.shutdown, cancel_futures=True)
                if self._has_hand and not rules.dry_run:
                    self._handing = Handing(target, site.now_ns)
                    stack.push_async_callback(self._handing.close)
                self._tell_what_is_lost()
                closing = Closing(site, self._remembered, self._rules)
                for place in self._choice.places:
                    await self._restore_class(place, planner, closing, target)
                self._tell_unmatched(target)
                await self._drive(closing.steps, None)
                await self._in_thread(target.sync)
                self._end_class(len(rules.order.classes))
                await self._foresee(target)
            account.finished = True
        finally:
            account.duration_s = self._clock.monotonic_s() - started_s
            account.rate_bytes_s = account.restored_bytes / account.duration_s if account.duration_s > 0 else 0.0
        return account

    def _tell_what_is_lost(self) -> None:
        """What no path stands for. A block that no record names is zero; where records are lost, that cannot be told
        from a lost block."""
        tally = Tally()
        if self._line.lost:
            text = f"the store has lost {counted(self._line.lost, 'piece')} of the record: "
            tally.note("damaged", b"", text + "entries and ranges of files may be missing or old that nothing can name")
        if self.account.newest_gone:
            number = self._line.number
            text = f"the store's newest segment is missing or empty, and a newer snapshot than {number} may be lost"
            tally.note("damaged", b"", f"{text} (another replica may have it; --at {number} takes this one)")
        self._add(tally)

    def _tell_unmatched(self, target: Target) -> None:
        """Patterns that nothing in the snapshot matches: a slip of the finger must not look like success."""
        unmatched = self._choice.unmatched()
        if unmatched and len(unmatched) == len(set(self._globs)):
            target.discard()
            names = ", ".join(map(show_path, unmatched))
            hint = "replicad ls DATASET@WHEN shows what is in it; nothing was changed"
            raise UsageError(f"nothing in snapshot {self._line.number} matches {names}", hint=hint)
        tally = Tally()
        for glob in unmatched:
            tally.fail(PATTERNS, glob, "nothing in the snapshot matches this pattern")
        self._add(tally)

    def _note_kept(self, target: Target) -> None:
        self.account.set_aside = target.kept

    async def _foresee(self, target: Target) -> None:
        """A plan has more to look for (work/restore_plan.py)."""

    # the order

    async def _restore_class(self, place: int, planner: Planner, closing: Closing, target: Target) -> None:
        """Everything of one class, so that it can be used while the others still come."""
        self._begin_class()
        planner.place = place
        await self._fill(planner, place)
        if place < len(self._rules.order.classes):
            await self._drive(closing.steps_of_class, None)
            await self._in_thread(target.sync)
            self._end_class(place)

    def _begin_class(self) -> None:
        self._before = (self.account.right_files, self.account.done_bytes, self.account.wrong)

    def _end_class(self, place: int) -> None:
        if not self._rules.order:
            return
        account, (files, size, wrong) = self.account, self._before
        done = ClassDone(
            self._rules.order.names()[place],
            account.right_files - files,
            account.done_bytes - size,
            account.wrong - wrong,
            self._clock.monotonic_s() - self._started_s,
        )
        account.classes.append(done)
        self._told(done)

    # the pipeline

    async def _fill(self, planner: Planner, place: int) -> None:
        """Plan, fetch and write until all files of a class are in place. Raises the error that matters most."""
        sieve = self._choice.sieve(place)
        try:
            async with asyncio.TaskGroup() as deliveries:
                async for ops in self._record(place):
                    shown = ops if sieve is None else sieve(ops)
                    if shown:
                        await self._drive(partial(planner.feed, shown), deliveries)
                await self._drive(planner.end, deliveries)
        except BaseExceptionGroup as group:
            raise _gravest(group) from group

    def _record(self, place: int) -> AsyncIterator[list[Op]]:
        return self._reader.record(self._line.number, self._choice.asked(place))

    async def _drive(self, begin: Callable[[Tally], Iterator[Step]], deliveries: asyncio.TaskGroup | None) -> None:
        """Take steps in a thread until there are none left; send off the parcels that they give."""
        tally = Tally()
        steps = begin(tally)
        while True:
            ended, parcel = await self._in_thread(lambda: self._step(steps))
            self._add(tally)
            tally.clear()
            if ended:
                return
            if parcel is not None:
                assert deliveries is not None
                await self._take_room(parcel)
                deliveries.create_task(self._deliver(parcel))

    def _step(self, steps: Iterator[Step]) -> tuple[bool, Step]:
        """One step; whether it was beyond the last, and the parcel that it gave. In a thread."""
        self._note_fates()
        for parcel in steps:
            return False, parcel
        return True, None

    def _note_fates(self) -> None:
        """Remember what became of files, and what would be replaced."""
        if self._fates:
            fates, self._fates = self._fates, []
            self._remembered.add_fates(fates)
        if self._replaced:
            replaced, self._replaced = self._replaced, []
            self._remembered.add_replaced(replaced)

    async def _deliver(self, parcel: Parcel) -> None:
        """Fetch the blocks of a parcel, write them, make room."""
        answers: list[Answer] = []
        async for run in self._reader.fetch(b"".join(parcel.lengths)):
            answers.extend(run)
        if len(answers) != len(parcel.lengths):
            raise PeerError(f"answered {len(parcel.lengths)} blocks with {len(answers)}", where=self._reader.name)
        await self._write(parcel, answers)
        async with self._room:
            self._in_flight -= parcel.size
            self._parcels -= 1
            self._room.notify_all()

    async def _write(self, parcel: Parcel, answers: Sequence[Answer]) -> None:
        """Write what has come, part of it by the hand if that has room."""
        tally = Tally()
        for answer in answers:
            if not isinstance(answer, Lost):
                tally.blocks += 1
                tally.stored_bytes += answer.stored
        left = await self._handing.take(parcel, answers, tally) if self._handing else parcel.parts
        if left:
            await self._in_thread(lambda: write_parts(left, parcel.lengths, answers, tally))
        self._add(tally)

    async def _take_room(self, parcel: Parcel) -> None:
        async with self._room:
            await self._room.wait_for(
                lambda: self._parcels < IN_FLIGHT_PARCELS and self._in_flight + parcel.size <= IN_FLIGHT_BYTES
            )
            self._in_flight += parcel.size
            self._parcels += 1

    def _add(self, tally: Tally) -> None:
        self._fates.extend(tally.fates)
        self._replaced.extend(tally.replaced)
        self.account.add(tally, self._heard)

    async def _in_thread(self, call: Callable[[], Result]) -> Result:
        return await to_its_end(asyncio.get_running_loop().run_in_executor(self._pool, call))


def _spare_extra(line: SnapshotLine) -> str:
    """Why what a snapshot does not have may be of its time all the same; "" when it has everything."""
    if line.lost:
        return "the record is damaged and may have had it"
    return "the snapshot is partial and may lack it" if line.unread or not line.complete else ""


def _gravest(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Of several failures at once the one that tells most: a defect of ours, a full disk, any other error."""

    def rank(error: BaseException) -> tuple[bool, bool]:
        return isinstance(error, ReplicadError), not isinstance(error, DiskFullError)

    return min(group.exceptions, key=rank)
