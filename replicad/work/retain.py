"""Retain: carry out what the rules say about one store: let snapshots go, take out their rows, compact segments.

**Owns** the order of a run, and the way between threads: reading goes on in a worker thread beside everything else;
archive and findings are worked on in the store's own thread, a short step at a time, only while no session has unsealed
work. A run may end at any point: the next one goes on from what it finds. **Never** lets anything go when the findings
(pins, suspects) cannot be read, or when the clock was set while the daemon ran.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor, Future
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import msgspec

from replicad.db.expiry import last_drop_ns
from replicad.db.findings import MAX_LISTED, Findings
from replicad.model.divergence import Divergence, Part, Side
from replicad.model.errors import ReplicadError, StoreDamagedError
from replicad.model.marks import Marks
from replicad.model.retention import Rules
from replicad.status import RetentionStatus
from replicad.system.clock import Clock
from replicad.system.disk import Disk
from replicad.system.logs import logger
from replicad.work.archive import Archive
from replicad.work.compact import RECORDS_MISSING, Compacted, compact_segment
from replicad.work.expire import NUMBERS_PER_FRAME, drop, purge_step
from replicad.work.lease import letting_go
from replicad.work.outlook import Outlook, count_blocks, look, mark_used, worthwhile

log = logger("work.retain")

EVERY_S = 3600.0
"""How often a store is looked at without being asked: the finest rule counts hours."""
JUMP_S = 3600.0
"""A clock that went this much more or less than time did was set; slower drift is what clocks do."""
PATIENCE_S = 600.0
"""How long a step waits for the seal of a pass under way, which comes within an rpo, before it is given up until the
next run."""
REST = 1.0
"""After each segment nothing is compacted for this many times as long as that took: half of the time is the session's
and the scrub's."""
COMPACT_EVERY_NS = 86_400 * 1_000_000_000
"""How often segments are looked through although nothing was let go since: what was too young grows old."""
COMPACTED, COMPACTED_AT = "compacted", "compacted_at"
"""What is remembered in the findings: up to which drop (its time) segments were looked through, and when that was."""

Result = TypeVar("Result")


class InStore(Protocol):
    """Runs something on a store's archive and findings, in the thread that they belong to."""

    def __call__(self, work: Callable[[Archive, Findings], Result], /) -> Awaitable[Result]: ...


class Retained(msgspec.Struct, frozen=True):
    """What one run did with one store."""

    client: str
    dataset: str
    hold: str = ""
    """Why nothing was let go; "" when the rules decided."""
    kept: int = 0
    dropped: list[int] = []
    """Numbers of the snapshots that were let go."""
    compacted: int = 0
    """Segments that were laid anew without what is unused."""
    reclaimed_bytes: int = 0
    left: list[str] = []
    """Segments that are worth compacting and were left as they are, and why."""


class Place(NamedTuple):
    """Which store it is."""

    client: str
    dataset: str
    directory: Path

    @property
    def store(self) -> str:
        """As it is called in logs."""
        return f"{self.client}/{self.dataset}"


class _UnsealedError(ReplicadError):
    """A session has unsealed work; nothing was done."""


class Retaining:
    """Retention of one store. Its `step` is the daemon's job; `run` is for whoever asks."""

    def __init__(
        self,
        place: Place,
        in_store: InStore,
        rules: Callable[[], Rules],
        status: RetentionStatus,
        pool: Executor,
        clock: Clock,
        disk: Disk,
        turn: asyncio.Lock,
    ) -> None:
        """`turn` is held during a run: whoever shares it takes turns."""
        self._place, self._in_store, self._rules, self.status = place, in_store, rules, status
        self._pool, self._clock, self._disk = pool, clock, disk
        self._turn = turn
        self._set_watch()

    @property
    def name(self) -> str:
        """What it is called in logs and metrics."""
        return f"retain {self._place.dataset} of {self._place.client}"

    async def step(self) -> None:
        """One run, unless the clock was set meanwhile and there are rules that go by it. Raises ReplicadError."""
        if (jumped_s := self._jumped_s()) and not self._rules().is_off:
            text = f"the clock was set by {jumped_s:.0f} s while the daemon ran"
            self.status.hold = f"{text}; when it is right: replicad retain run"
            return
        await self.run(asked=False)

    async def wait(self) -> None:
        """Until it is time to look again."""
        await self._clock.sleep(EVERY_S)

    async def outlook(self) -> Outlook:
        """What would go now. Raises BookDamagedError, ReplicadError."""
        rules, now_ns = self._rules(), self._clock.now_ns()
        return await self._in_store(lambda _, findings: look(*self._place, findings, rules, now_ns))

    async def run(self, *, asked: bool = True) -> Retained:
        """Let go what goes, and give its room back. `asked`: by order of a person; then the clock counts as right from
        here on, and segments are looked through in any case.

        Raises ReplicadError: what was done stays done, and the next run goes on."""
        async with self._turn:
            if asked:
                self._set_watch()
            self.status.state = "running"
            try:
                return await self._run(asked)
            finally:
                self.status.state = "idle"

    async def _run(self, asked: bool) -> Retained:
        if not self.status.last_run_ns:  # whatever a daemon was letting go when it was killed stays
            await self._in_store(lambda _, findings: findings.retire([]))
        found = await self.outlook()
        self.status.hold = found.hold
        dropped = await self._let_go(found.going)
        self.status.kept = len(found.snapshots) - len(dropped)
        self.status.dropped += len(dropped)
        while await self._when_settled(lambda archive, _: purge_step(archive)):
            pass
        compacted, left = await self._compact(asked)
        self.status.last_run_ns = self._clock.now_ns()
        saved = sum(one.before_bytes - one.after_bytes for one in compacted)
        if dropped or compacted:
            log.info("retention", store=self._place.store, dropped=len(dropped), saved=saved)
        return Retained(
            self._place.client, self._place.dataset, found.hold, self.status.kept, dropped, len(compacted), saved, left
        )

    async def _let_go(self, numbers: list[int]) -> list[int]:
        gone: list[int] = []
        for start in range(0, len(numbers), NUMBERS_PER_FRAME):
            gone += await self._when_settled(partial(_let_go, numbers[start : start + NUMBERS_PER_FRAME]))
        return gone

    # compaction

    async def _compact(self, asked: bool) -> tuple[list[Compacted], list[str]]:
        """All segments that are worth it; those that were compacted, and why others were not."""
        now_ns = self._clock.now_ns()
        dropped_ns, is_due = await self._in_store(partial(_due, now_ns))
        if not (is_due or (asked and dropped_ns)):
            return [], []
        if await self._in_store(lambda archive, _: archive.inventory.lost):
            log.warning("nothing is compacted", store=self._place.store, reason=RECORDS_MISSING)
            return [], [f"all segments: {RECORDS_MISSING}"]
        blocks = await self._in_pool(partial(count_blocks, self._place.directory))
        marks = await self._when_settled(partial(_begin_marking, blocks))
        try:
            await self._in_pool(partial(mark_used, self._place.directory, marks))
            before_ns = self._clock.now_ns() - int(self._rules().younger_than_s * 1e9)
            usages = await self._in_pool(partial(worthwhile, self._place.directory, marks, before_ns))
            done = [await self._compact_one(usage.number, marks) for usage in usages]
        finally:
            await self._in_store(lambda archive, _: archive.end_marking(marks))
        await self._in_store(partial(_remember, dropped_ns, now_ns))
        left = [f"segment {one.number}: {one.skipped}" for one in done if one.skipped]
        return [one for one in done if not one.skipped], left

    async def _compact_one(self, number: int, marks: Marks) -> Compacted:
        began_s = self._clock.monotonic_s()
        try:
            done = await self._when_settled(partial(_compact_one, self._disk, number, marks))
        except StoreDamagedError as error:  # of one segment: it is left, and the others go on
            log.warning("a segment was not compacted", segment=number, reason=str(error))
            done = Compacted(number, skipped=str(error))
        if not done.skipped:
            self.status.reclaimed_bytes += done.before_bytes - done.after_bytes
        await self._clock.sleep(REST * (self._clock.monotonic_s() - began_s))
        return done

    # how

    async def _when_settled(self, work: Callable[[Archive, Findings], Result]) -> Result:
        """Run a step while no session has unsealed work: now, or behind the seal of the pass under way."""
        done: Future[Result] = Future()
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self._in_store(partial(_do_settled, work, done))
                return await asyncio.wrap_future(done)
        except TimeoutError:
            where = str(self._place.directory)
            raise ReplicadError("a session has unsealed work", where=where, hint="the next run goes on") from None
        finally:
            done.cancel()

    async def _in_pool(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def _set_watch(self) -> None:
        """From here on the wall clock is compared with time itself."""
        self._watch = self._clock.now_ns() / 1e9 - self._clock.monotonic_s()

    def _jumped_s(self) -> float:
        """By how much the clock was set; 0 when it was not."""
        jumped_s = self._clock.now_ns() / 1e9 - self._clock.monotonic_s() - self._watch
        return jumped_s if abs(jumped_s) > JUMP_S else 0.0


# in the store's thread


def _do_settled(
    work: Callable[[Archive, Findings], Result], done: Future[Result], archive: Archive, findings: Findings
) -> None:
    """Do it as soon as it may be done, unless nobody waits for it any more."""

    def do() -> None:
        if done.cancelled():
            return
        try:
            result = work(archive, findings)
        except _UnsealedError:
            archive.at_seal(do)
        except Exception as error:  # a defect of ours too: whoever waits is to meet it, not the session that has sealed
            _give(done, partial(done.set_exception, error))
        else:
            _give(done, partial(done.set_result, result))

    archive.when_settled(do)


def _give(done: Future[Result], give: Callable[[], None]) -> None:
    if done.set_running_or_notify_cancel():
        give()


def _let_go(numbers: list[int], archive: Archive, findings: Findings) -> list[int]:
    """What nobody has pinned meanwhile, or reads, goes; while it does, nobody can begin to. The next run asks again."""
    try:
        with letting_go(archive.store.directory, findings.retire(numbers)) as going:
            if going:
                drop(archive, going)
    finally:
        findings.retire([])
    return going


def _due(now_ns: int, archive: Archive, findings: Findings) -> tuple[int, bool]:
    """The time of the last drop (0: none), and whether segments are to be looked through."""
    dropped_ns = last_drop_ns(archive.inventory.database)
    is_news = dropped_ns != int(findings.get(COMPACTED) or 0)
    is_long_ago = abs(now_ns - int(findings.get(COMPACTED_AT) or 0)) > COMPACT_EVERY_NS
    return dropped_ns, bool(dropped_ns) and (is_news or is_long_ago)


def _remember(dropped_ns: int, now_ns: int, archive: Archive, findings: Findings) -> None:
    findings.put(COMPACTED, dropped_ns)
    findings.put(COMPACTED_AT, now_ns)


def _begin_marking(blocks: int, archive: Archive, findings: Findings) -> Marks:
    marks = archive.begin_marking(blocks, os.urandom(1)[0])
    if marks is None:
        raise _UnsealedError("a session was told of blocks that it has not named yet", hint="tried again")
    return marks


def _compact_one(disk: Disk, number: int, marks: Marks, archive: Archive, findings: Findings) -> Compacted:
    listed = findings.listed(side=Side.REPLICA)
    if len(listed) >= MAX_LISTED or any(found.part is Part.BOOK for found in listed):
        return Compacted(number, skipped="findings about the whole store are open")
    return compact_segment(archive, disk, number, marks, _barred(archive, listed))


def _barred(archive: Archive, listed: list[Divergence]) -> set[int]:
    """Segments that an open finding is about: where it was found, and where its blocks are now."""
    places = archive.inventory.places([name for found in listed for name in found.blocks])
    return {found.number for found in listed} | {place.segment for place in places.values()}
