"""Canaries: the canary jobs of one dataset, one for each replica; none where no canary is configured."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from replicad.status import CanaryStatus, JobStatus
from replicad.system.clock import Clock
from replicad.system.disk import Disk
from replicad.work.canary import Following
from replicad.work.canary_book import CanaryBook
from replicad.work.dataset import Dataset
from replicad.work.elsewhere import Dial
from replicad.work.job import Log, Runner


def canary_scratch(state: Path, dataset: str, replica: str) -> Path:
    """Where canaries of a dataset are restored from a replica."""
    return state / "canary" / dataset / replica


class Canaries:
    """All canary jobs of one dataset."""

    def __init__(self, dataset: Dataset, state: Path, clock: Clock, disk: Disk, log: Log) -> None:
        self._dataset, self._state, self._clock, self._log = dataset, state, clock, log
        self._book = CanaryBook(dataset, clock, disk)
        self._following: list[Following] = []
        self.jobs: list[JobStatus] = []
        """One for each replica."""
        self._tasks: list[asyncio.Task[None]] = []

    def add(self, replica: str, dial: Dial) -> None:
        """One more replica, before `start`."""
        if self._dataset.config.canary:
            scratch = canary_scratch(self._state, self._dataset.config.name, replica)
            self._following.append(Following(self._dataset, replica, dial, self._book, scratch, self._clock))
            self.jobs.append(JobStatus(self._following[-1].name))

    @property
    def statuses(self) -> Sequence[CanaryStatus]:
        """One for each replica."""
        return [job.status for job in self._following]

    def start(self) -> None:
        """Begin."""
        for job, line in zip(self._following, self.jobs, strict=True):
            self._tasks.append(asyncio.create_task(Runner(job, line, self._clock, self._log).run()))

    async def close(self) -> None:
        """Stop them; what is in scratch space is removed."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
