"""Surfaces: how the two kinds of surface that a scrub can work on are opened."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass

from replicad.system.clock import Clock
from replicad.work.dataset import Dataset
from replicad.work.lookouts import Lookouts
from replicad.work.scrub_primary import PrimarySurface
from replicad.work.shelves import Shelves
from replicad.work.surface import Surface


@dataclass(frozen=True, slots=True)
class Surfaces:
    """What scrubs work on, by side. Opened anew after each failure; they raise ReplicadError when they cannot be."""

    primary: Callable[[Dataset, Executor, Lookouts, Clock], Awaitable[Surface]]
    replica: Callable[[Shelves, str, str], Awaitable[Surface]]
    """Of client and dataset."""


async def _primary_surface(dataset: Dataset, pool: Executor, lookouts: Lookouts, clock: Clock) -> Surface:
    await dataset.open()
    await dataset.open_findings()
    return PrimarySurface(dataset, pool, lookouts, clock)


async def _replica_surface(shelves: Shelves, client: str, dataset: str) -> Surface:
    return await shelves.surface(client, dataset)


SURFACES = Surfaces(_primary_surface, _replica_surface)
"""The real ones."""
