"""Gate: ask every replica of a dataset what it holds, put it beside what this node's books say, and judge.

Each replica is asked now, over the link; what the primary remembers of it counts for nothing. The ledger is read before
and after, so a pass that ends meanwhile makes no false alarm. **Never** raises for a replica that is out of reach or
refuses: that is an answer too, and the gate is shut. What is pinned is the very snapshot that was judged, by number and
digest, on every replica, and only where all of them are well.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from functools import partial
from typing import TypeVar

from replicad.model.attestation import Attestation
from replicad.model.divergence import Side, count_open
from replicad.model.drill import OVERDUE_FACTOR
from replicad.model.errors import LinkError, ReplicadError, UsageError
from replicad.model.gate import Demands, Judged, Seen, judge
from replicad.model.policy import Objectives
from replicad.model.snapshot import Head
from replicad.status import DatasetStatus
from replicad.system.clock import Clock, format_ns
from replicad.work.dataset import Dataset
from replicad.work.tend import Tending

ASK_S = 30.0
"""How long a replica may take to answer; whoever stands before a gate waits for this."""

Answer = TypeVar("Answer")


def demands(
    wanted: Objectives,
    asked_ns: int,
    lag_s: float | None = None,
    scrub_age_s: float | None = None,
    drill_age_s: float | None = None,
) -> Demands:
    """What a gate demands of a dataset with these objectives, unless it is told otherwise."""
    every_s = wanted.drill_every_s or Objectives().drill_every_s  # that it is never drilled by itself is no excuse here
    return Demands(
        lag_s=wanted.rpo_s if lag_s is None else lag_s,
        scrub_age_s=wanted.scrub_every_s if scrub_age_s is None else scrub_age_s,
        drill_age_s=every_s * OVERDUE_FACTOR if drill_age_s is None else drill_age_s,
        asked_ns=asked_ns,
    )


class Copy:
    """One dataset's copy on one replica, before the gate."""

    def __init__(self, dataset: Dataset, line: DatasetStatus, tending: Tending, clock: Clock) -> None:
        self._dataset, self._line, self._tending, self._clock = dataset, line, tending, clock
        self.judged = Judged(line.dataset, line.replica)
        self._complete = Head()

    async def judge(self, wanted: Demands) -> None:
        """Look at both sides now."""
        try:
            seen = await self._look()
        except ReplicadError as error:
            self.judged.unknown = str(error)
            return
        self._complete = seen.said.complete
        self.judged.snapshot, self.judged.digest = self._complete.number, self._complete.digest.hex()
        self.judged.checks = judge(wanted, seen)

    async def pin(self, name: str) -> None:
        """Have the replica keep what was judged."""
        now_ns = self._clock.now_ns()
        try:
            asking = self._tending.keep(name, self._complete, f"gate at {format_ns(now_ns)}")
            self.judged.pin_problem = await self._in_time(asking)
        except ReplicadError as error:
            self.judged.pin_problem = str(error)
        if not self.judged.pin_problem:
            self.judged.pinned = name

    async def _look(self) -> Seen:
        dataset, line = self._dataset, self._line
        await dataset.open()
        await dataset.open_findings()
        complete_ns, walked_ns, before = line.last_complete_ns, line.last_walked_ns, await self._head()
        said = await self._asked()
        open_here = await dataset.in_findings(partial(dataset.findings.listed, side=Side.PRIMARY))
        return Seen(
            now_ns=self._clock.now_ns(),
            complete_ns=complete_ns,
            walked_ns=walked_ns,
            heads=(before, await self._head()),
            held=line.reason or "for a person to look" if line.held else "",
            said=said,
            open_here=count_open(open_here),
        )

    async def _asked(self) -> Attestation:
        try:
            return await self._in_time(self._tending.attest())
        except UsageError:
            return Attestation()  # it has no copy of this dataset: it holds nothing, which is an answer

    async def _head(self) -> Head:
        dataset = self._dataset
        return (await dataset.in_ledger(dataset.ledger.standing, self._line.replica)).head

    async def _in_time(self, asking: Awaitable[Answer]) -> Answer:
        try:
            async with asyncio.timeout(ASK_S):
                return await asking
        except TimeoutError:
            raise LinkError(f"did not answer within {ASK_S:.0f} s", where=self._line.replica) from None


async def pass_through(copies: Sequence[tuple[Copy, Demands]], pin: str) -> list[Judged]:
    """Judge all copies side by side; where all are well, pin each under this name unless it is empty."""
    await asyncio.gather(*(copy.judge(wanted) for copy, wanted in copies))
    if pin and all(copy.judged.is_open for copy, _ in copies):
        await asyncio.gather(*(copy.pin(pin) for copy, _ in copies))
    return [copy.judged for copy, _ in copies]
