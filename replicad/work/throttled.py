"""Throttled: a `HistoryReader` that fetches no more bytes a second than it was told, as replication sends no more.

What counts is what comes over the line: blocks as stored. The limit holds on average, and a few parcels are asked for
ahead, so that a round trip does not cost what the limit has left. Listings are not counted: they are a thousandth.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from replicad.link.bandwidth import Bandwidth
from replicad.link.messages import Lost, SnapshotLine
from replicad.model.entry import Op
from replicad.model.travel import Difference, Version
from replicad.system.clock import Clock
from replicad.work.reader import Answer, HistoryReader

AHEAD = 4
"""Fetches under way at a time, of 2 MiB at most each: with more, the beginning would overshoot what was asked for."""


class ThrottledReader:
    """Reads from `reader`, which it does not close: whoever opened that does."""

    def __init__(self, reader: HistoryReader, rate_bytes: int, clock: Clock | None = None) -> None:
        self.name = reader.name
        self._reader, self._bandwidth, self._clock = reader, Bandwidth(lambda: rate_bytes), clock or Clock()
        self._ahead = asyncio.Semaphore(AHEAD)

    async def snapshots(self) -> list[SnapshotLine]:
        """See `Reader`."""
        return await self._reader.snapshots()

    async def order(self) -> bytes:
        """See `HistoryReader`."""
        return await self._reader.order()

    def record(self, snapshot: int, globs: Sequence[bytes] = ()) -> AsyncIterator[list[Op]]:
        """See `Reader`."""
        return self._reader.record(snapshot, globs)

    async def fetch(self, ids: bytes) -> AsyncIterator[list[Answer]]:
        """See `Reader`."""
        async with self._ahead:
            async for run in self._reader.fetch(ids):
                size = sum(len(one.reason) if isinstance(one, Lost) else one.stored for one in run)
                await self._clock.sleep(self._bandwidth.reserve_s(size, self._clock.monotonic_s()))
                yield run

    def visit(self, snapshot: int, path: bytes, depth: int = 0, *, blocks: bool = False) -> AsyncIterator[list[Op]]:
        """See `HistoryReader`."""
        return self._reader.visit(snapshot, path, depth, blocks=blocks)

    def trace(self, path: bytes) -> AsyncIterator[list[Version]]:
        """See `HistoryReader`."""
        return self._reader.trace(path)

    def compare(self, before: int, after: int, globs: Sequence[bytes] = ()) -> AsyncIterator[list[Difference]]:
        """See `HistoryReader`."""
        return self._reader.compare(before, after, globs)

    async def close(self) -> None:
        """See `Reader`."""
        await self._reader.close()
