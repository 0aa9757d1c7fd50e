"""Shared walk: a survey's companion. The walk runs in the ledger's thread, its scout compares some of the directories.

Both see the same ledger: the survey itself writes nothing but its plan, and all before it is committed. The scout has
it open for as long as the walk takes: whoever closes a ledger for good must be the last, or its log stays behind.
**Never** waits on the event loop: it is asked from the walk's thread.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, wait
from types import TracebackType

from replicad.source.scan import Compared
from replicad.work.scout import Book
from replicad.work.scouts import Scouting

UNDER_WAY = 2
"""Questions at once: while one is answered the next one waits there already."""


class SharedWalk:
    """The walk's side: what was given to the scout, in order. See `source.scan.Companion`."""

    def __init__(self, scout: Scouting, book: Book, loop: asyncio.AbstractEventLoop) -> None:
        self._scout, self._book, self._loop = scout, book, loop
        self._asked: deque[Future[Compared]] = deque()

    def __enter__(self) -> SharedWalk:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Wait until the scout has let go of the ledger."""
        wait(self._asked)
        asyncio.run_coroutine_threadsafe(self._scout.close_book(), self._loop).result()

    @property
    def is_busy(self) -> bool:
        """Whether something was given and not taken back yet."""
        return bool(self._asked)

    def give(self, directories: Sequence[bytes]) -> bool:
        """Have the scout compare these, unless it has enough to do."""
        if len(self._asked) >= UNDER_WAY:
            return False
        asking = self._scout.compare(directories, self._book)
        self._asked.append(asyncio.run_coroutine_threadsafe(asking, self._loop))
        return True

    def done(self, *, wait: bool) -> list[Compared]:
        """What it has compared. Raises ReplicadError when it died, or found the ledger damaged."""
        found: list[Compared] = []
        while self._asked and (self._asked[0].done() or (wait and not found)):
            found.append(self._asked.popleft().result())
        return found
