"""Tendings: the tending loops of one dataset, one for each replica, and what a person orders of them.

**Owns** the choice of the replica that a repair is made with: for a finding of a replica's that one, for one of this
side whichever has the block. **Never** raises for a replica that is out of reach: what waits for it is a result.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial

from replicad.model.attestation import DrillNote
from replicad.model.divergence import Divergence, Side, State
from replicad.model.errors import LinkError, ReplicadError
from replicad.model.place import Place
from replicad.model.remedy import remedy_of
from replicad.status import CopyStatus, JobStatus, ScrubStatus
from replicad.system.clock import Clock
from replicad.system.disk import Disk
from replicad.work.breaker import close_breaker
from replicad.work.confirm import Opinions
from replicad.work.dataset import Dataset
from replicad.work.elsewhere import Dial, Elsewhere
from replicad.work.job import Log, Runner
from replicad.work.mend_primary import PrimaryMender
from replicad.work.mended import Mended
from replicad.work.tend import Tending

SETTLED = frozenset({"planned", "repaired", "nothing", "refused"})
"""Results after which no other replica is asked."""


@dataclass(slots=True)
class _Loop:
    """One running job."""

    job: Tending
    runner: Runner
    line: JobStatus
    status: ScrubStatus
    copy: CopyStatus


class Tendings:
    """All tending loops of one dataset."""

    def __init__(
        self,
        dataset: Dataset,
        pool: Executor,
        clock: Clock,
        disk: Disk,
        log: Log,
        notes: Callable[[str], Sequence[DrillNote]],
    ) -> None:
        """`notes` gives the drills that a replica is to know of."""
        self._notes = notes
        self._dataset, self._pool, self._clock, self._disk, self._log = dataset, pool, clock, disk, log
        self._opinions = Opinions()
        self._dials: dict[str, Dial] = {}
        self._elsewhere = Elsewhere(dataset.config.name, self._dials, pool)
        self._mender = PrimaryMender(dataset, pool, clock, disk)
        self._loops: list[_Loop] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._ordered: set[asyncio.Task[Mended]] = set()
        """What persons have ordered and is under way."""
        self._is_closed = False

    def add(self, replica: str, place: Place, dial: Dial, tell_anew: Callable[[], None]) -> None:
        """One more replica, which stands there, before `start`."""
        status = ScrubStatus(self._dataset.config.name, Side.REPLICA, replica, mirrored=True)
        copy = CopyStatus(self._dataset.config.name, replica, place)
        job = Tending(
            self._dataset,
            replica,
            dial,
            status,
            self._pool,
            self._clock,
            disk=self._disk,
            opinions=self._opinions,
            elsewhere=self._elsewhere,
            tell_anew=tell_anew,
            copy=copy,
            notes=partial(self._notes, replica),
        )
        self._dials[replica] = dial
        line = JobStatus(job.name)
        self._loops.append(_Loop(job, Runner(job, line, self._clock, self._log), line, status, copy))

    @property
    def statuses(self) -> list[ScrubStatus]:
        """How the replicas' scrubs stand, as those said last."""
        return [loop.status for loop in self._loops]

    @property
    def copies(self) -> list[CopyStatus]:
        """What the replicas said last of their copies."""
        return [loop.copy for loop in self._loops]

    def of(self, replica: str) -> Tending:
        """The loop of one replica."""
        return next(loop.job for loop in self._loops if loop.job.replica == replica)

    @property
    def jobs(self) -> list[JobStatus]:
        """One for each replica."""
        return [loop.line for loop in self._loops]

    def start(self) -> None:
        """Run them."""
        self._tasks = [asyncio.create_task(loop.runner.run()) for loop in self._loops]

    async def close(self) -> None:
        """Stop them, and end their sessions. A repair that a person has ordered is ended as well, before the books are
        closed and whoever comes after looks at the file that it writes to."""
        self._is_closed = True
        tasks = [*self._tasks, *self._ordered]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for loop in self._loops:
            await loop.job.close()

    async def start_scrub(self, replica: str) -> int:
        """Have a replica scrub its side now; the number that `served` of its line reaches when that has ended. Raises
        LinkError, ReplicadError."""
        return await self.of(replica).start_scrub()

    # orders of a person

    async def meant(self, prefix: str | None) -> list[Divergence]:
        """The findings whose ids begin so, two at most; all that are open for None."""
        await self._dataset.open_findings()
        findings = self._dataset.findings
        work = findings.listed if prefix is None else partial(findings.beginning_with, prefix)
        return await self._dataset.in_findings(work)

    async def close_breaker(self) -> None:
        """A person has ordered all repairs."""
        await self._dataset.open_findings()
        await self._dataset.in_findings(close_breaker, self._dataset.findings)

    async def repair(self, found: Divergence, *, dry_run: bool) -> Mended:
        """Repair a finding of either side, or say what that would do. Raises ReplicadError when the dataset is closed
        meanwhile."""
        return await self._until_closed(self._repair(found, dry_run=dry_run))

    async def undo(self, found: Divergence) -> Mended:
        """Put back what a repair of this side's data took away. Raises as `repair`."""
        return await self._until_closed(self._undo(found))

    async def _until_closed(self, order: Coroutine[None, None, Mended]) -> Mended:
        task = asyncio.create_task(order)
        self._ordered.add(task)
        task.add_done_callback(self._ordered.discard)
        if self._is_closed:
            task.cancel()
        await asyncio.wait({task})
        if task.cancelled():
            hint = "the daemon stops, or its configuration has changed; see: replicad divergence list"
            raise ReplicadError("the repair was ended", where=self._dataset.config.name, hint=hint)
        return task.result()

    async def _repair(self, found: Divergence, *, dry_run: bool) -> Mended:
        if found.state is not State.OPEN:
            return Mended(remedy_of(found), "nothing", f"it is {found.state.value} already")
        jobs = self._jobs_for(found)
        if not jobs:
            return Mended(remedy_of(found), "refused", f"{found.peer} is no replica of this dataset any more")
        outcome = Mended(remedy_of(found), "waiting", "no replica was asked")
        for job in jobs:
            outcome = await self._with(job, found, dry_run)
            if outcome.result in SETTLED:
                break
        return outcome

    async def _undo(self, found: Divergence) -> Mended:
        if found.side is not Side.PRIMARY:
            return Mended(remedy_of(found), "refused", "what is appended to a store stays there")
        await self._dataset.open()
        return await self._mender.undo(found)

    def _jobs_for(self, found: Divergence) -> Sequence[Tending]:
        jobs = [loop.job for loop in self._loops if found.peer in ("", loop.job.replica)]
        return sorted(jobs, key=lambda job: not self._opinions.holds(found.id, job.replica))

    async def _with(self, job: Tending, found: Divergence, dry_run: bool) -> Mended:
        try:
            await self._dataset.open()
            return await job.repair(found, dry_run=dry_run)
        except LinkError as error:
            return Mended(remedy_of(found), "waiting", f"{job.replica} is out of reach: {error.what}")
        except ReplicadError as error:
            return Mended(remedy_of(found), "failed", str(error))
