"""Drilling: the loop that drills one dataset from one replica when that is due, and when somebody asks for it.

A drill is due `drill_every` after the last one; one that failed is repeated after a day and one that could not find out
after an hour. Its result is a state of the dataset, shown and counted; only what keeps the loop from working at all (a
book that cannot be opened) is a failure of the job.

**Never** moves the last success for anything but a proven drill. Drills of a dataset take turns, since they share its
book; restores of a node do, since they share scratch space and link.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from replicad.db.drills import Drills
from replicad.model.attestation import DrillNote, note_of, says_something
from replicad.model.drill import TREND_POINTS, DrillRecord, Outcome, next_ns, trend
from replicad.model.errors import ReplicadError, UsageError
from replicad.status import DrillStatus, printable
from replicad.system.clock import Clock
from replicad.system.logs import logger
from replicad.work.dataset import Dataset
from replicad.work.drill import Drill
from replicad.work.drill_book import DrillBook
from replicad.work.elsewhere import Dial
from replicad.work.scratch import Live, apart, sweep
from replicad.work.together import first_of

log = logger("work.drill")

LOOK_S = 30.0
"""How often it looks whether a drill is due, and whether there is a first snapshot."""
RECENT = 50
"""Drills among which the last one that was no person's choice of paths is looked for."""
SHOWN_REASONS = 10
NO_SCRATCH = "no drill_scratch is set"


@dataclass(frozen=True, slots=True)
class Asked:
    """A drill that somebody asked for."""

    number: int
    kind: str
    globs: tuple[bytes, ...]


class Drilling:
    """The job of one dataset and one replica."""

    def __init__(
        self,
        dataset: Dataset,
        replica: str,
        dial: Dial,
        in_book: DrillBook,
        live: Live,
        clock: Clock,
        turnstile: asyncio.Lock,
    ) -> None:
        """`live` names what the scratch directory must stay away from."""
        config = dataset.config
        self._dataset, self._replica, self._dial, self._in_book, self._live = dataset, replica, dial, in_book, live
        self._clock, self._turnstile = clock, turnstile
        self.status = DrillStatus(
            config.name,
            replica,
            drill_every_s=config.drill_every_s,
            drill_within_s=config.drill_within_s,
            rto_s=config.rto_s,
        )
        self._asked: Asked | None = None
        self._made = 0
        """The number in the book of the last drill that this daemon has made."""
        self._is_swept = False
        self.notes: tuple[DrillNote, ...] = ()
        """What the replica is to know of its drills: the last proven one, the failure that stands, and the last one."""
        self._poked = asyncio.Event()

    @property
    def name(self) -> str:
        """What it is called in logs and metrics."""
        return f"drill {self._dataset.config.name} from {self._replica}"

    def request(self, kind: str, globs: Sequence[bytes]) -> int:
        """Ask for a drill now; the number that `served` reaches when it has ended. Raises UsageError when one that was
        asked for has not ended, or when none is possible."""
        self.check_request()
        status = self.status
        status.requested += 1
        self._asked = Asked(status.requested, kind, tuple(globs))
        self._poked.set()
        return status.requested

    def check_request(self) -> None:
        """Raises UsageError when no drill can be asked for now."""
        dataset = self.status.dataset
        if self._dataset.config.drill_scratch is None:
            raise UsageError(NO_SCRATCH, where=dataset, hint="set drill_scratch, then: systemctl reload replicad")
        if self._asked:
            raise UsageError(f"a drill of {dataset} from {self._replica} was asked for and runs", hint="let it end")

    def take_over(self, before: Drilling) -> None:
        """Go on in place of a loop that was configured otherwise: who waits for a drill of that gets one of this."""
        self.status.requested, self.status.served = before.status.requested, before.status.served
        self._asked, self._made = before._asked, before._made

    async def wait(self) -> None:
        """Until a drill may be due or is asked for."""
        until_s = (self.status.next_ns - self._clock.now_ns()) / 1e9
        await first_of(self._poked.wait(), self._clock.sleep(min(LOOK_S, max(1.0, until_s))))

    async def step(self) -> None:
        """Drill, if one is asked for or due. Raises ReplicadError when the book or what a killed drill left is in the
        way."""
        self._poked.clear()
        try:
            await self._step()
        except ReplicadError as error:
            self._show("failed", str(error))
            self._served()
            raise

    async def _step(self) -> None:
        book = await self._in_book.opened()
        await self._in_book(lambda: self._recall(book))
        base = self._dataset.config.drill_scratch
        if base is None:
            self._show("off", NO_SCRATCH)
            self._served()  # whoever asked before the configuration was changed hears that there is none
            return
        if not self._is_swept:
            await self._sweep(base)
        if self._asked or self._is_due():
            if not await self._has_snapshot():
                if self._asked:
                    self._served()
                self._show("waiting", "nothing has been replicated yet")
                return
            async with self._in_book.turn:
                await self._drill(book, base)
            await self._in_book(lambda: self._recall(book))
        if self.status.drill_every_s:
            self._show("idle", "")
        else:
            self._show("off", "drill_every is 0: a drill only when it is asked for")

    def _is_due(self) -> bool:
        status = self.status
        return status.drill_every_s > 0 and self._clock.now_ns() >= status.next_ns

    async def _has_snapshot(self) -> bool:
        await self._dataset.open()
        standing = await self._dataset.in_ledger(lambda: self._dataset.ledger.standing(self._replica))
        return bool(standing.head.number)

    async def _sweep(self, base: Path) -> None:
        """Remove what a killed drill left. A directory that is not there, or is refused, is the next drill's matter."""
        try:
            await apart(base, self._live())
            for path in await asyncio.to_thread(sweep, base):
                log.warning("removed what a killed drill left", directory=path)
        except UsageError as error:
            self._show("waiting", str(error))
        self._is_swept = True

    async def _drill(self, book: Drills, base: Path) -> None:
        asked, status = self._asked, self.status
        self._in_book.stopping.clear()
        status.started_ns = self._clock.now_ns()
        drill = Drill(
            self._dataset,
            self._replica,
            self._dial,
            book,
            self._in_book,
            status,
            self._in_book.stopping.is_set,
            self._turnstile,
        )
        record = await drill.run(asked.kind if asked else "sampled", asked.globs if asked else (), base, self._live())
        record.request = asked.number if asked else 0
        await self._in_book(lambda: self._remember(book, record))
        level = log.info if record.outcome is Outcome.PROVEN else log.warning
        level(
            "drill ended",
            dataset=record.dataset,
            replica=record.replica,
            outcome=record.outcome.value,
            files=record.files,
            bytes=record.bytes,
            reason=printable(record.reasons[0]) if record.reasons else "",
        )
        status.started_ns = 0
        if asked:  # one that was asked for meanwhile is still to come
            self._served()

    def _remember(self, book: Drills, record: DrillRecord) -> None:
        """In the book's thread."""
        book.settle(self._replica, record.ended_ns)
        self._made = book.add(record).number
        self._recall(book)

    def _recall(self, book: Drills) -> None:
        """What the book knows, into the status. In the book's thread."""
        status, config = self.status, self._dataset.config
        since = f"since:{self._replica}"
        if not book.get(since):
            book.put(since, self._clock.now_ns())
        status.since_ns = book.get(since)
        history = book.history(self._replica, limit=RECENT)
        status.last = self._as_answer(_short(history[-1])) if history else None
        regular = [record for record in history if record.kind != "paths"]
        status.next_ns = next_ns(regular[-1] if regular else None, config.drill_every_s, self._clock.now_ns())
        status.drills = book.counts(self._replica)
        proven = book.proven(self._replica, TREND_POINTS)
        status.last_success_ns = proven[-1].ended_ns if proven else 0
        status.estimate_s = proven[-1].estimate_s if proven else 0.0
        failure = book.failure(self._replica)
        status.failure = _short(failure) if failure else None
        self.notes = _worth_telling(history, proven, failure)
        status.trend = trend([(record.ended_ns, record.estimate_s) for record in proven])
        coverage = book.coverage(self._replica)
        status.files, status.never_files, status.oldest_ns = coverage.total.files, coverage.never, coverage.oldest_ns

    def _as_answer(self, record: DrillRecord) -> DrillRecord:
        """Requests are counted from a daemon's start: a drill of an earlier one answers none of this one."""
        return record if record.number == self._made else msgspec.structs.replace(record, request=0)

    def _served(self) -> None:
        """Whoever asked for a drill hears that it has ended."""
        if self._asked:
            self.status.served, self._asked = self._asked.number, None
        self.status.started_ns = 0

    def _show(self, state: str, reason: str) -> None:
        self.status.state, self.status.reason = state, reason
        self.status.done_bytes = self.status.total_bytes = 0


def _worth_telling(
    history: Sequence[DrillRecord], proven: Sequence[DrillRecord], failure: DrillRecord | None
) -> tuple[DrillNote, ...]:
    """Oldest first."""
    telling = [record for record in history if says_something(record.kind, record.outcome)]
    told = {record.number: record for record in (*proven[-1:], failure, *telling[-1:]) if record}
    return tuple(note_of(told[number]) for number in sorted(told))


def _short(record: DrillRecord) -> DrillRecord:
    """A record for the status, which is given out often; the book has all of it."""
    return msgspec.structs.replace(record, reasons=record.reasons[:SHOWN_REASONS], validated=[])
