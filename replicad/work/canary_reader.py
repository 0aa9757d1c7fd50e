"""Canary reader: a `Reader` that shows one file of a snapshot, so that the same restore restores it.

It asks for that path alone, where a record with a pattern would have the replica go through the whole snapshot.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from replicad.link.messages import SnapshotLine
from replicad.model.entry import Op
from replicad.work.reader import Answer, HistoryReader


class OneFileReader:
    """Reads the file at `path`, below the root."""

    def __init__(self, reader: HistoryReader, path: bytes) -> None:
        self.name = reader.name
        self._reader, self._path = reader, path

    async def snapshots(self) -> list[SnapshotLine]:
        """See `Reader`."""
        return await self._reader.snapshots()

    async def record(self, snapshot: int, globs: Sequence[bytes] = ()) -> AsyncIterator[list[Op]]:
        """See `Reader`; patterns are not asked for."""
        async for ops in self._reader.visit(snapshot, b""):
            yield ops
        async for ops in self._reader.visit(snapshot, self._path, blocks=True):
            yield ops

    def fetch(self, ids: bytes) -> AsyncIterator[list[Answer]]:
        """See `Reader`."""
        return self._reader.fetch(ids)

    async def close(self) -> None:
        """See `Reader`."""
        await self._reader.close()
