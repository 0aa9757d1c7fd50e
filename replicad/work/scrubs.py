"""Scrubs: the scrub loops of one part of a node, and what a person tells them.

Each loop runs under a runner of its own; they read one turn after the other, so that many datasets on one disk disturb
no more than one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from replicad.status import JobStatus, ScrubStatus
from replicad.system.clock import Clock
from replicad.work.job import Log, Runner
from replicad.work.scrub import LONGEST_PAUSE_S, Scrubbing


@dataclass(frozen=True, slots=True)
class _Loop:
    job: Scrubbing
    runner: Runner
    line: JobStatus
    task: asyncio.Task[None]


@dataclass(frozen=True, slots=True)
class Answer:
    """What one scrub made of a command."""

    status: ScrubStatus
    number: int
    """Of the request, for "start"; else of the last one."""
    until_ns: int = 0


class Scrubs:
    """All loops of one part."""

    def __init__(self, clock: Clock, log: Log) -> None:
        self._clock, self._log = clock, log
        self._loops: list[_Loop] = []

    @property
    def statuses(self) -> list[ScrubStatus]:
        """One for each, in the order in which they began."""
        return [loop.job.status for loop in self._loops]

    @property
    def jobs(self) -> list[JobStatus]:
        """One for each."""
        return [loop.line for loop in self._loops]

    def find(self, dataset: str, peer: str) -> Scrubbing | None:
        """The scrub of that line."""
        lines = (loop.job for loop in self._loops)
        return next((job for job in lines if (job.status.dataset, job.status.peer) == (dataset, peer)), None)

    def start(self, job: Scrubbing) -> None:
        """Run one more."""
        line = JobStatus(job.name)
        runner = Runner(job, line, self._clock, self._log)
        self._loops.append(_Loop(job, runner, line, asyncio.create_task(runner.run())))

    async def direct(self, action: str, for_s: float, wanted: Callable[[ScrubStatus], bool]) -> list[Answer]:
        """Have those that are wanted start, pause for so long (0: as long as possible) or resume. Raises ReplicadError
        when one of them cannot remember it."""
        answers = [await self._direct(loop, action, for_s) for loop in self._loops if wanted(loop.job.status)]
        return [answer for answer in answers if answer]

    async def _direct(self, loop: _Loop, action: str, for_s: float) -> Answer | None:
        job, until_ns = loop.job, 0
        if action == "start":
            await job.request()
        elif action == "pause":
            until_ns = await job.pause(self._clock.now_ns() + int(min(for_s or LONGEST_PAUSE_S, LONGEST_PAUSE_S) * 1e9))
        elif not await job.resume():
            return None
        loop.runner.nudge()
        return Answer(job.status, job.status.requested, until_ns)

    async def close(self) -> None:
        """Stop them all: a turn of reading under way is given up, and so is a check of a structure."""
        tasks = [loop.task for loop in self._loops]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for loop in self._loops:
            await loop.job.close()
