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
from replicad.model.entry import Kind, Map, Op, Put
from replicad.work.drill_choice import InBook
from replicad.work.reader import Answer, Reader
from replicad.work.target import split


class ChosenReader:
    """Reads what `book` has chosen."""

    def __init__(self, reader: Reader, book: Drills, in_book: InBook) -> None:
        self.name = reader.name
        self._reader, self._book, self._in_book = reader, book, in_book
        self._above: list[tuple[Put, bool]] = []
        """The directories down to where the record is, and whether each was shown."""
        self._whole: bytes | None = None
        """The directory that is shown as a whole, while the record is in it."""
        self._shows = False
        """Whether the file whose blocks come is shown."""

    async def snapshots(self) -> list[SnapshotLine]:
        """See `Reader`."""
        return await self._reader.snapshots()

    async def record(self, snapshot: int, globs: Sequence[bytes] = ()) -> AsyncIterator[list[Op]]:
        """See `Reader`."""
        async for ops in self._reader.record(snapshot, globs):
            shown = await self._in_book(partial(self._filtered, ops))
            if shown:
                yield shown

    def fetch(self, ids: bytes) -> AsyncIterator[list[Answer]]:
        """See `Reader`."""
        return self._reader.fetch(ids)

    async def close(self) -> None:
        """See `Reader`."""
        await self._reader.close()

    def _filtered(self, ops: Sequence[Op]) -> list[Op]:
        """What is shown of these operations. In the book's thread."""
        shown: list[Op] = []
        for op in ops:
            if isinstance(op, Map):
                if self._shows:
                    shown.append(op)
            elif isinstance(op, Put):
                self._enter(op)
                self._shows = self._is_wanted(op)
                if self._shows:
                    self._show_above(shown)
                    shown.append(op)
                if op.kind is Kind.DIRECTORY:
                    self._above.append((op, self._shows))
            else:
                shown.append(op)  # no snapshot's record has one: the restore says so
        return shown

    def _enter(self, put: Put) -> None:
        """Leave the directories that this entry does not stand in."""
        directory = split(put.path)[0]
        while self._above and not _is_in(directory, self._above[-1][0].path):
            self._above.pop()
        if self._whole is not None and not _is_in(put.path, self._whole):
            self._whole = None

    def _is_wanted(self, put: Put) -> bool:
        if self._whole is not None:
            return True
        if put.kind is Kind.DIRECTORY and self._book.has_subject(put.path):
            self._whole = put.path
            return True
        return put.kind is Kind.FILE and self._book.is_chosen(put.path)

    def _show_above(self, shown: list[Op]) -> None:
        for depth, (put, is_shown) in enumerate(self._above):
            if not is_shown:
                shown.append(put)
                self._above[depth] = (put, True)


def _is_in(path: bytes, directory: bytes) -> bool:
    """Whether `path` is `directory` or below it; everything is below the root."""
    return not directory or path == directory or path.startswith(directory + b"/")
