"""LocalReader: a `Reader` over an archive in this process.

**Owns** the threads in which everything is asked of the archive, so that the event loop never waits for a disk. One
answers questions in the order they come; blocks are fetched in FETCHERS others, so that the disk has something to do
while what it gave is checked. Each hop into a thread brings back about RUN_BYTES, whatever was asked for.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from replicad.link.messages import Lost, SnapshotLine
from replicad.model.entry import Op
from replicad.model.errors import LinkError, ReplicadError
from replicad.model.travel import Difference, Version
from replicad.system.disk import Disk
from replicad.work.archive_reader import FETCHING, ArchiveReader
from replicad.work.reader import Answer, Stored, answers_of

RUN_BYTES = 4 * 1024 * 1024
"""Frames read in one hop into the thread: enough for what a restore asks for at once (planner.PARCEL_BYTES), so that
hops cost next to nothing, and little enough to be held a few times for each session."""

FETCHERS = 2
"""Fetches that are read at a time. A third gave nothing."""

Result = TypeVar("Result")


class _Fetcher:
    """A thread that fetches blocks, with an archive reader of its own."""

    def __init__(self, first: ArchiveReader) -> None:
        self._first = first
        self._archive: ArchiveReader | None = None
        self.thread = ThreadPoolExecutor(1, "fetcher")

    def fetch(self, ids: bytes) -> Iterator[Stored]:
        """See `ArchiveReader`. In the thread, where the first call opens the reader; no other starts before it."""
        self._archive = self._archive or self._first.another(FETCHING)
        yield from self._archive.fetch(ids)

    def close(self) -> None:
        """In the thread."""
        if self._archive:
            self._archive.close()


class LocalReader:
    """Reads one dataset's store in this process; keeps the contract of `Reader`."""

    def __init__(self, archive: ArchiveReader, name: str) -> None:
        """Takes the archive over and closes it. `name` is for messages."""
        self.name = name
        self._archive = archive
        self._thread = ThreadPoolExecutor(1, "reader")
        self._fetchers = tuple(_Fetcher(archive) for _ in range(FETCHERS))
        self._idle = list(self._fetchers)
        self._turn = asyncio.Semaphore(FETCHERS)
        """First come, first served: who sends answers in the order asked must not wait for one that was overtaken."""
        self._closed = False

    @classmethod
    async def open(
        cls,
        directory: Path,
        name: str = "",
        *,
        disk: Disk | None = None,
        mend: bool = False,
        catalog: Path | None = None,
    ) -> LocalReader:
        """The reader of a store directory; the arguments are those of `ArchiveReader`, and so are the errors."""
        archive = await asyncio.to_thread(lambda: ArchiveReader(directory, disk, mend=mend, catalog=catalog))
        return cls(archive, name or str(directory))

    async def snapshots(self) -> list[SnapshotLine]:
        """See `Reader`."""
        return await self._ask(self._archive.snapshots)

    async def newest_gone(self) -> bool:
        """See `ArchiveReader`."""
        return await self._ask(self._archive.newest_gone)

    async def order(self) -> bytes:
        """See `HistoryReader`."""
        return await self._ask(self._archive.order)

    async def record(self, snapshot: int, globs: Sequence[bytes] = ()) -> AsyncIterator[list[Op]]:
        """See `Reader`."""
        async for batch in self._batches(lambda: self._archive.record(snapshot, globs)):
            yield batch

    async def visit(
        self, snapshot: int, path: bytes, depth: int = 0, *, blocks: bool = False
    ) -> AsyncIterator[list[Op]]:
        """See `Reader`."""
        async for batch in self._batches(lambda: self._archive.visit(snapshot, path, depth, blocks=blocks)):
            yield batch

    async def trace(self, path: bytes) -> AsyncIterator[list[Version]]:
        """See `Reader`."""
        async for batch in self._batches(lambda: self._archive.trace(path)):
            yield batch

    async def compare(self, before: int, after: int, globs: Sequence[bytes] = ()) -> AsyncIterator[list[Difference]]:
        """See `Reader`. Lists may be empty."""
        async for batch in self._batches(lambda: self._archive.compare(before, after, globs)):
            yield batch

    async def fetch(self, ids: bytes) -> AsyncIterator[list[Answer]]:
        """See `Reader`."""
        async for run in self.fetch_stored(ids):
            answers: list[Answer] = []
            for item in run:
                answers.extend(answers_of(item))
            yield answers

    async def fetch_stored(self, ids: bytes) -> AsyncIterator[list[Stored]]:
        """As `fetch`, with the frames as stored, not taken apart."""
        async with self._turn:
            fetcher = self._idle.pop()
            try:
                found, more = fetcher.fetch(ids), True  # nothing is read before the first item is taken
                while more:
                    run, more = await self._ask(lambda: _take(found), fetcher.thread)
                    yield run
            finally:
                self._idle.append(fetcher)

    async def close(self) -> None:
        """See `Reader`."""
        if not self._closed:
            self._closed = True
            for fetcher in self._fetchers:
                await _ended(fetcher.thread, fetcher.close)
            await _ended(self._thread, self._archive.close)

    async def _batches(self, begin: Callable[[], Iterator[Result]]) -> AsyncIterator[Result]:
        batches = await self._ask(begin)
        while (batch := await self._ask(lambda: next(batches, None))) is not None:
            yield batch

    async def _ask(self, question: Callable[[], Result], thread: ThreadPoolExecutor | None = None) -> Result:
        if self._closed:
            raise LinkError("the reader was closed", where=self.name)
        try:
            return await asyncio.get_running_loop().run_in_executor(thread or self._thread, question)
        except OSError as error:
            raise ReplicadError(f"cannot be read: {error.strerror}", where=self.name) from error


async def _ended(thread: ThreadPoolExecutor, close: Callable[[], None]) -> None:
    """End a thread, once `close` was called in it."""
    await asyncio.get_running_loop().run_in_executor(thread, close)
    thread.shutdown()


def _take(found: Iterator[Stored]) -> tuple[list[Stored], bool]:
    """The next items, about RUN_BYTES of them; whether there may be more."""
    run: list[Stored] = []
    size = 0
    for item in found:
        run.append(item)
        length = len(item.reason if isinstance(item, Lost) else item)
        size += length
        if size + length > RUN_BYTES:  # one more like this one would be too many
            return run, True
    return run, False
