"""Job: the shape of every loop in the daemon, and the runner that keeps one alive.

A job has three methods. `step` does one piece of work and may be cancelled at any await; `wait` returns when there
may be something to do again; `name` says what to call it in logs and metrics. The runner owns backoff, failure
counts and shutdown, so that all loops fail and recover alike.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Protocol

from replicad.model.errors import LinkError, ReplicadError
from replicad.status import JobStatus
from replicad.system.clock import Clock
from replicad.system.logs import logger

log = logger("daemon")

FIRST_RETRY_S = 1.0
LAST_RETRY_S = 60.0
"""Retries back off from one to the other; a minute is short against any rpo and long against a crash loop."""


class Job(Protocol):
    """One loop."""

    @property
    def name(self) -> str:
        """What it is called in logs and metrics."""

    async def step(self) -> None:
        """Do one piece of work. Raises ReplicadError when it could not."""

    async def wait(self) -> None:
        """Return when there may be work again."""


Log = Callable[[str, str, float, Exception | None], None]
"""Told of each failure: job, text, seconds until the next try, and the exception when it is a defect of ours."""


class Runner:
    """Runs one job for ever: step, wait, step …; after a failure it waits with backoff and jitter and goes on."""

    def __init__(self, job: Job, status: JobStatus, clock: Clock, log: Log, *, seed: int | None = None) -> None:
        self._job, self._status, self._clock, self._log = job, status, clock, log
        self._random = random.Random(seed)
        self._nudge = asyncio.Event()

    def nudge(self) -> None:
        """Do not wait for the backoff to end: something changed."""
        self._nudge.set()

    async def run(self) -> None:
        """Until cancelled. A failure that is no ReplicadError is a defect of ours: it is logged as such and counted."""
        self._status.running = True
        failures = 0
        try:
            while True:
                try:
                    await self._job.step()
                    failures = self._status.failures_in_row = 0
                    self._status.last_success_ns = self._clock.now_ns()
                    self._status.last_error = ""
                    await self._job.wait()
                except asyncio.CancelledError:
                    if _is_being_ended():
                        raise
                    failures += 1  # something else was, for which it waited
                    await self._failed(RuntimeError("what it waited for was cancelled"), failures)
                except Exception as error:  # a defect must not end a job, this one or others; it is counted and shown
                    failures += 1
                    await self._failed(error, failures)
        finally:
            self._status.running = False

    async def _failed(self, error: Exception, failures: int) -> None:
        text = words_of(error)
        delay = self.retry_delay_s(failures)
        self._status.last_error = text
        self._status.next_try_ns = self._clock.now_ns() + int(delay * 1e9)
        if not isinstance(error, LinkError):  # an unreachable peer is a state that the job shows, not a failure of it
            self._status.failures += 1
            self._status.failures_in_row += 1
        self._log(self._job.name, text, delay, None if isinstance(error, ReplicadError) else error)
        if _is_being_ended():
            raise asyncio.CancelledError from error  # it failed at ending, as a post hook may; there is no next try
        await self._pause(delay)
        self._status.next_try_ns = 0

    def retry_delay_s(self, failures: int) -> float:
        """Exponential backoff with jitter: between half and the whole of the nominal delay."""
        nominal = min(LAST_RETRY_S, FIRST_RETRY_S * 2.0 ** min(failures - 1, 16))
        return nominal * (0.5 + 0.5 * self._random.random())

    async def _pause(self, delay_s: float) -> None:
        sleeping = asyncio.ensure_future(self._clock.sleep(delay_s))
        nudged = asyncio.ensure_future(self._nudge.wait())
        try:
            await asyncio.wait((sleeping, nudged), return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleeping.cancel()
            nudged.cancel()
            self._nudge.clear()


def _is_being_ended() -> bool:
    """Whether somebody has cancelled the task that runs."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def words_of(error: Exception) -> str:
    """What is shown of a failure; what is no ReplicadError is a defect of ours, and said to be one."""
    return str(error) if isinstance(error, ReplicadError) else f"defect: {type(error).__name__}: {error}"


def log_session_end(error: ReplicadError) -> None:
    """A client's session ended badly."""
    level = log.info if isinstance(error, LinkError) else log.warning
    level("session ended", peer=error.where, reason=error.what, hint=error.hint)


def log_failure(job: str, text: str, delay_s: float, defect: Exception | None) -> None:
    """A job failed and will be tried again."""
    if defect:
        log.error("job failed", job=job, error=text, retry_in_s=round(delay_s, 1), exc_info=defect)
    else:
        log.warning("job failed", job=job, error=text, retry_in_s=round(delay_s, 1))
