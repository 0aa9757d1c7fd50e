"""Drill book: the book of one dataset's drills on its primary, with the thread that it belongs to."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from replicad.db.drills import Drills
from replicad.work.together import to_its_end

Result = TypeVar("Result")


def drills_path(state: Path, dataset: str) -> Path:
    """Where the book of a dataset's drills is."""
    return state / "drills" / f"{dataset}.db"


class DrillBook:
    """The book of one dataset's drills and its thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._executor = ThreadPoolExecutor(1, "drill")
        self._book: Drills | None = None
        self.turn = asyncio.Lock()
        """One drill at a time chooses in it."""
        self.stopping = threading.Event()
        """Set when work in the thread should end early."""

    async def __call__(self, work: Callable[[], Result]) -> Result:
        """Run `work` in the book's thread; when cancelled, have it stop, and wait for its end."""
        call = asyncio.get_running_loop().run_in_executor(self._executor, work)
        return await to_its_end(call, self.stopping.set)

    async def opened(self) -> Drills:
        """The book, opened at first need. Raises ReplicadError."""
        return await self(self._open)

    async def close(self) -> None:
        """Close the book."""
        self.stopping.set()
        await self(self._close)
        self._executor.shutdown()

    def _open(self) -> Drills:
        if self._book is None:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._book = Drills(self._path)
        return self._book

    def _close(self) -> None:
        if self._book is not None:
            self._book.close()
            self._book = None
