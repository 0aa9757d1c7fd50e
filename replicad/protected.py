"""Protected: one dataset of this node, and all that runs for it: a pass a replica, tending, scrub, drill, canary.

**Owns** their life together: the `Daemon` builds, starts and closes a dataset as one thing. What the jobs share
(ledger, watch, findings) is in `work/dataset.py`; here is only what has to begin and to end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from replicad.config import Config, DatasetConfig
from replicad.db.findings import Findings
from replicad.http.contract import SyncRequest
from replicad.link.ssh import Dialler
from replicad.model.divergence import Side
from replicad.model.errors import ReplicadError
from replicad.model.gate import Demands
from replicad.status import DatasetStatus, JobStatus, PolicyStatus, ScrubStatus
from replicad.system.clock import Clock
from replicad.system.disk import Disk
from replicad.system.logs import logger
from replicad.work import gate
from replicad.work.canaries import Canaries
from replicad.work.dataset import Dataset
from replicad.work.drill_loops import DrillLoops
from replicad.work.job import Runner, log_failure
from replicad.work.replicate import Replication
from replicad.work.scouts import Scouts
from replicad.work.scratch import Live
from replicad.work.scrub import Scrubbing, Turns, policy_of
from replicad.work.scrubs import Scrubs
from replicad.work.surface import Surface
from replicad.work.tendings import Tendings

log = logger("daemon")

Result = TypeVar("Result")
RELEASE_S = 3.0
"""How long whoever releases a dataset waits until that is written down: another replica's pass may be walking."""
CLEAN_UP_S = 8.0
"""What a post hook gets to clean up when its dataset is stopped. With its ending and that of a session on a dead line
(5 s each) a stop stays well below what service managers wait."""


@dataclass(slots=True)
class _Loop:
    """One running job."""

    job: Replication
    runner: Runner

    def wake(self) -> None:
        """Have it look again now."""
        self.job.wake()
        self.runner.nudge()


class Protected:
    """One dataset, its books and its jobs."""

    def __init__(
        self,
        config: Config,
        dataset: DatasetConfig,
        diallers: Sequence[Dialler],
        pool: ThreadPoolExecutor,
        scouts: Scouts,
        clock: Clock,
        disk: Disk,
    ) -> None:
        self.config, self.replicas = dataset, tuple(dialler.replica for dialler in diallers)
        self.statuses = [DatasetStatus(dataset.name, replica.name) for replica in self.replicas]
        self.jobs: list[JobStatus] = []
        self.scrubs = Scrubs(clock, log_failure)
        self._clock = clock
        self._scrub_job: Scrubbing | None = None
        self.policy = PolicyStatus(dataset.name, dataset.objectives, config.node.place)
        self._dataset = Dataset(dataset, tuple(replica.name for replica in self.replicas), config.node.state)
        self.canaries = Canaries(self._dataset, config.node.state, clock, disk, log_failure)
        self.tendings = Tendings(self._dataset, pool, clock, disk, log_failure, lambda name: self.drills.notes(name))
        self._loops: list[_Loop] = []
        for dialler, status in zip(diallers, self.statuses, strict=True):
            job = Replication(self._dataset, dialler.replica.name, dialler.dial, status, pool, scouts, clock)
            self.jobs.append(JobStatus(job.name))
            self._loops.append(_Loop(job, Runner(job, self.jobs[-1], clock, log_failure)))
            self.canaries.add(dialler.replica.name, dialler.dial)
            self.tendings.add(dialler.replica.name, dialler.replica.place, dialler.dial, self._loops[-1].wake)
        self._tasks: list[asyncio.Task[None]] = []

    def job_lines(self) -> list[JobStatus]:
        """How all its loops are."""
        return [*self.jobs, *self.scrubs.jobs, *self.tendings.jobs, *self.drills.jobs, *self.canaries.jobs]

    def start(self) -> None:
        """Start watching and replicating."""
        self._tasks = [asyncio.create_task(loop.runner.run()) for loop in self._loops]
        self._tasks.append(asyncio.create_task(self._dataset.watch_forever()))
        self.tendings.start()
        self.drills.start()
        self.canaries.start()
        if self._scrub_job:
            self.scrubs.start(self._scrub_job)

    @property
    def dataset(self) -> Dataset:
        """What its jobs share."""
        return self._dataset

    def scrub(self, open_surface: Callable[[], Awaitable[Surface]], turns: Turns) -> None:
        """Scrub it as well, once it is started."""

        async def in_book(work: Callable[[Findings], Result]) -> Result:
            await self._dataset.open_findings()
            return await self._dataset.in_findings(lambda: work(self._dataset.findings))

        status = ScrubStatus(self.config.name, Side.PRIMARY, "")
        policy = policy_of(self.config)
        self._scrub_job = Scrubbing(open_surface, in_book, status, lambda: policy, self._clock, turns=turns)

    def drill(self, state: Path, diallers: Sequence[Dialler], live: Live, turnstile: asyncio.Lock) -> None:
        """Drill it as well, once it is started."""
        self.drills = DrillLoops(self._dataset, state, live, self._clock, log_failure, turnstile)
        for dialler in diallers:
            self.drills.add(dialler.replica.name, dialler.dial)

    def take_over(self, before: Protected) -> None:
        """Go on in place of a part that was configured otherwise: who waits for a pass of that one gets one of this."""
        asked = {status.replica: status for status in before.statuses}
        for status in self.statuses:
            if old := asked.get(status.replica):
                status.pass_requested, status.pass_served = old.pass_requested, old.pass_served
        if self._scrub_job and before._scrub_job:
            self._scrub_job.take_over(before._scrub_job)
        self.drills.take_over(before.drills)

    def request(self) -> list[SyncRequest]:
        """Ask for a pass to every replica."""
        requests = []
        for loop, status in zip(self._loops, self.statuses, strict=True):
            number = loop.job.request()
            loop.runner.nudge()
            requests.append(SyncRequest(dataset=status.dataset, replica=status.replica, number=number))
        return requests

    def gated(self, wanted: Demands) -> list[tuple[gate.Copy, Demands]]:
        """Its copies before the gate, and what is demanded of them."""
        copies = ((line, self.tendings.of(line.replica)) for line in self.statuses)
        return [(gate.Copy(self._dataset, line, tending, self._clock), wanted) for line, tending in copies]

    async def release(self) -> None:
        """Let the dataset go on; where its books are busy it does as soon as they are not. Raises ReplicadError."""
        if any(status.held for status in self.statuses):
            task = asyncio.create_task(self._release())
            self._tasks.append(task)
            await asyncio.wait({task}, timeout=RELEASE_S)
            if task.done():
                self._tasks.remove(task)
                task.result()

    async def close(self) -> None:
        """Stop the jobs, their sessions and the ledger."""
        left: Collection[asyncio.Task[None]] = self._tasks
        while left:
            for task in left:
                task.cancel()
            left = (await asyncio.wait(left, timeout=CLEAN_UP_S))[1]
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for group in (self.scrubs, self.tendings, self.drills, self.canaries):
            await group.close()
        for loop in self._loops:
            await loop.job.close()
        await self._dataset.close()

    async def _release(self) -> None:
        try:
            await self._dataset.open()
            await self._dataset.durably(self._dataset.release)
        except ReplicadError as error:
            log.error("a dataset could not be released", dataset=self.config.name, reason=str(error))
            raise
        for loop in self._loops:
            loop.wake()
