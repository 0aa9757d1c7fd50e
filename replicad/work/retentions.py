"""Retentions: retention of all stores of a node, one job each, and what a person orders.

They take turns: each run reads a whole catalog and lays segments anew, and stores share a disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from functools import partial
from typing import TypeVar

from replicad.db.findings import Findings
from replicad.model.errors import ReplicadError, UsageError
from replicad.model.retention import Rules
from replicad.status import RetentionStatus
from replicad.system.clock import Clock
from replicad.system.disk import Disk
from replicad.work.archive import Archive
from replicad.work.retain import Place, Retained, Retaining
from replicad.work.shelves import Shelves

Result = TypeVar("Result")


class Retentions:
    """All of them."""

    def __init__(
        self, shelves: Shelves, rules_of: Callable[[str], Rules], pool: Executor, clock: Clock, disk: Disk
    ) -> None:
        """`rules_of` a client, as they are in force when a run begins."""
        self._shelves, self._rules_of, self._pool, self._clock, self._disk = shelves, rules_of, pool, clock, disk
        self._jobs: dict[tuple[str, str], Retaining] = {}
        self._turn = asyncio.Lock()

    @property
    def statuses(self) -> list[RetentionStatus]:
        """One for each store, by name."""
        return [self._jobs[key].status for key in sorted(self._jobs)]

    def add(self, place: Place) -> Retaining:
        """The job of one more store."""

        def in_store(work: Callable[[Archive, Findings], Result]) -> Awaitable[Result]:
            return self._shelves.in_store(place.client, place.dataset, work)

        status = RetentionStatus(place.client, place.dataset)
        rules = partial(self._rules_of, place.client)
        job = Retaining(place, in_store, rules, status, self._pool, self._clock, self._disk, self._turn)
        self._jobs[place.client, place.dataset] = job
        return job

    async def run(self, dataset: str | None) -> list[tuple[tuple[str, str], Retained | ReplicadError]]:
        """Run those of one dataset (DATASET or CLIENT/DATASET) or all now, one after the other; what ends one early
        does not stop the others. Raises UsageError when there is none of that name."""
        chosen = {key: job for key, job in sorted(self._jobs.items()) if dataset in (None, key[1], "/".join(key))}
        if dataset is not None and not chosen:
            names = ", ".join("/".join(key) for key in sorted(self._jobs)) or "none"
            raise UsageError(f"there is no store of {dataset!r} here", hint=f"stores of this node: {names}")
        return [(key, await _tried(job)) for key, job in chosen.items()]


async def _tried(job: Retaining) -> Retained | ReplicadError:
    try:
        return await job.run()
    except ReplicadError as error:
        return error
