"""Scouts: the processes that read for the passes, lent out.

**Owns** how many there are: one for each pass that runs, up to a limit, and then they are shared; the first stays for
the next pass. A pass speaks to its scout through a `Scouting`, which has its root open there.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple

from replicad.model.errors import ReplicadError
from replicad.source.read import Candidate
from replicad.source.root import Root
from replicad.source.scan import Compared
from replicad.system.child import Child, Doer
from replicad.work.crew import Crew
from replicad.work.scout import (
    CLOSE,
    CLOSE_BOOK,
    COMPARE,
    LOOK_AHEAD,
    OPEN,
    READ_SMALL,
    Book,
    Next,
    Place,
    Share,
    SmallRead,
    Wanted,
)

MAX_SCOUTS = 4
"""Processes at once. Each holds a few batches (40 MiB); a pass on a dead network mount holds up only those it shares
with."""
KEPT_SCOUTS = 1
"""Kept without a pass: starting one takes longer than a pass over a small dataset."""
MODULE = "replicad.work.scout"


class Scouts:
    """All scouts of one daemon."""

    def __init__(self, start: Callable[[], Doer] = lambda: Child(MODULE)) -> None:
        self._crew = Crew(start, MAX_SCOUTS)
        self._numbers = itertools.count(1)

    @asynccontextmanager
    async def borrow(self, root: Root, compression: int) -> AsyncIterator[Scouting]:
        """A scout that has `root` open, for the length of a pass. Raises SourceError, ReplicadError."""
        lent = self._crew.choose()
        lent.tasks += 1
        try:
            scouting = Scouting(lent.child, next(self._numbers), compression)
            try:
                place = Place(scouting.root, root.path, root.identity, root.device)
                await lent.child.call(OPEN, place)
                yield scouting
            finally:  # also of a pass that was ended while it waited: what is open there cannot be unmounted
                scouting.is_over = True
                lent.child.post(CLOSE, scouting.root)
        finally:
            lent.tasks -= 1
            await self._crew.thin_out(KEPT_SCOUTS)

    async def close(self) -> None:
        """End all of them."""
        await self._crew.close()

    @property
    def pids(self) -> list[int]:
        """Process ids of those that run."""
        return self._crew.pids


class Small(NamedTuple):
    """A batch of small files that were read, and the frames of their blocks, one behind the other."""

    read: SmallRead
    frames: bytes


class Scouting:
    """A pass's own view of its scout."""

    def __init__(self, child: Doer, root: int, compression: int) -> None:
        self._child, self.root, self._compression = child, root, compression
        self.is_over = False
        """Whether the pass has ended; a walk in a thread may go on for a moment."""

    def look_ahead(self, directories: Sequence[bytes]) -> None:
        """A walk will come to these directories."""
        self._child.post(LOOK_AHEAD, Next(self.root, directories))

    async def compare(self, directories: Sequence[bytes], book: Book) -> Compared:
        """Compare directories with the ledger. Raises ReplicadError, also when the scout died or the pass has ended."""
        if self.is_over:
            raise ReplicadError("the pass has ended")
        return await self._child.call(COMPARE, Share(self.root, directories, book))

    async def close_book(self) -> None:
        """Have the ledger closed that `compare` opened; a scout that died has it no longer."""
        if not self.is_over:
            with suppress(ReplicadError):
                await self._child.call(CLOSE_BOOK, self.root)

    async def read_small(self, files: Sequence[Candidate]) -> Small:
        """Read and pack small files. Raises ReplicadError when the scout died."""
        wanted = Wanted(self.root, files, self._compression)
        return Small._make(await self._child.call_for_bulk(READ_SMALL, wanted))
