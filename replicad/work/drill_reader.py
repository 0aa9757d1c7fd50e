"""Drill reader: a `Reader` that shows only what a drill has chosen of a snapshot, so that the same restore restores it.

A chosen file comes with the directories above it; a directory that a validator looks at as a whole comes with
everything in it, links and empty directories too. All else is the reader's behind it: what is asked for goes over the
same link, and is proven by the same code.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from functools import partial

from replicad.db.drills import Drills
from replicad.link.messages import SnapshotLine
from replicad.model.entry import Kind, Op, Put
from replicad.work.drill_choice import InBook
from replicad.work.reader import Answer, Reader
from replicad.work.sieve import Sieve, is_in


class ChosenReader:
    """Reads what `book` has chosen."""

    def __init__(self, reader: Reader, book: Drills, in_book: InBook) -> None:
        self.name = reader.name
        self._reader, self._book, self._in_book = reader, book, in_book
        self._whole: bytes | None = None
        """The directory that is shown as a whole, while the record is in it."""

    async def snapshots(self) -> list[SnapshotLine]:
        """See `Reader`."""
        return await self._reader.snapshots()

    async def record(self, snapshot: int, globs: Sequence[bytes] = ()) -> AsyncIterator[list[Op]]:
        """See `Reader`."""
        sieve = Sieve(self._is_wanted)
        async for ops in self._reader.record(snapshot, globs):
            shown = await self._in_book(partial(sieve, ops))
            if shown:
                yield shown

    def fetch(self, ids: bytes) -> AsyncIterator[list[Answer]]:
        """See `Reader`."""
        return self._reader.fetch(ids)

    async def close(self) -> None:
        """See `Reader`."""
        await self._reader.close()

    def _is_wanted(self, put: Put) -> bool:
        """In the book's thread."""
        if self._whole is not None and not is_in(put.path, self._whole):
            self._whole = None
        if self._whole is not None:
            return True
        if put.kind is Kind.DIRECTORY and self._book.has_subject(put.path):
            self._whole = put.path
            return True
        return put.kind is Kind.FILE and self._book.is_chosen(put.path)
