"""Drill loops: the drilling loops of one dataset, one for each replica, which share the dataset's book of drills."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from replicad.model.attestation import DrillNote
from replicad.status import DrillStatus, JobStatus
from replicad.system.clock import Clock
from replicad.work.dataset import Dataset
from replicad.work.drill_book import DrillBook, drills_path
from replicad.work.drilling import Drilling
from replicad.work.elsewhere import Dial
from replicad.work.job import Log, Runner
from replicad.work.scratch import Live


@dataclass(frozen=True, slots=True)
class _Loop:
    job: Drilling
    runner: Runner
    line: JobStatus


class DrillLoops:
    """All drilling loops of one dataset."""

    def __init__(
        self,
        dataset: Dataset,
        state: Path,
        live: Live,
        clock: Clock,
        log: Log,
        turnstile: asyncio.Lock,
    ) -> None:
        self._dataset, self._live, self._clock, self._log = dataset, live, clock, log
        self._turnstile = turnstile
        self._book = DrillBook(drills_path(state, dataset.config.name))
        self._loops: list[_Loop] = []
        self._tasks: list[asyncio.Task[None]] = []

    def add(self, replica: str, dial: Dial) -> None:
        """One more replica, before `start`."""
        job = Drilling(self._dataset, replica, dial, self._book, self._live, self._clock, self._turnstile)
        line = JobStatus(job.name)
        self._loops.append(_Loop(job, Runner(job, line, self._clock, self._log), line))

    @property
    def statuses(self) -> list[DrillStatus]:
        """One for each replica."""
        return [loop.job.status for loop in self._loops]

    @property
    def jobs(self) -> list[JobStatus]:
        """One for each replica."""
        return [loop.line for loop in self._loops]

    def notes(self, replica: str) -> tuple[DrillNote, ...]:
        """What a replica is to know of its drills."""
        return next((loop.job.notes for loop in self._loops if loop.job.status.replica == replica), ())

    def start(self) -> None:
        """Begin."""
        self._tasks = [asyncio.create_task(loop.runner.run()) for loop in self._loops]

    def take_over(self, before: DrillLoops) -> None:
        """Go on in place of loops that were configured otherwise."""
        old = {loop.job.status.replica: loop.job for loop in before._loops}
        for loop in self._loops:
            if job := old.get(loop.job.status.replica):
                loop.job.take_over(job)

    def request(self, kind: str, globs: Sequence[bytes]) -> list[DrillStatus]:
        """Ask for a drill from each replica; their lines, whose `requested` is the number to wait for. Raises
        UsageError."""
        for loop in self._loops:
            loop.job.check_request()
        for loop in self._loops:
            loop.job.request(kind, globs)
            loop.runner.nudge()
        return self.statuses

    async def close(self) -> None:
        """Stop them: a drill under way is given up, and its scratch directory removed."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._book.close()
