"""Audit: does a ledger make sense? What hashing cannot see: its pages, and whether its rows fit together.

**Owns** a connection of its own, read-only, so that the ledger's thread is never held up: a large ledger takes minutes.
**Never** changes anything. It asks in small questions that each see one committed state; rows of a pass under way are
either complete, or marked as unsettled and passed over.

Every byte of a file is covered exactly once if its rows have numbers within its size: a row is one block, a number
stands once, and what has no row is zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from replicad.db.database import Database
from replicad.db.ledger import UNSETTLED
from replicad.db.ledger_schema import MIGRATIONS
from replicad.model.block import ID_BYTES, LARGEST_BLOCK_BYTES, block_count
from replicad.model.entry import Kind, show_path
from replicad.model.errors import BookDamagedError

PAGE_FILES = 1000
"""Files looked at in one read transaction: milliseconds."""
PAGE_BLOCKS = 10_000
"""The same for blocks; files are never parted."""
MAX_PROBLEMS = 100
"""Problems that are told; a ledger with more is no better."""


def audit(path: Path, stopped: Callable[[], bool]) -> list[str]:
    """Everything wrong with the ledger at `path`, in words; empty when it is sound. For a worker thread.

    Raises ReplicadError when that cannot be found out, or once `stopped` says so."""
    try:
        book = Database(path, MIGRATIONS, readonly=True)
    except BookDamagedError as error:
        return [error.what]
    book.stop_when(stopped)
    try:
        problems = book.verify()
        return problems or list(_limited(_Audit(book).problems()))
    except BookDamagedError as error:
        return [error.what]
    finally:
        book.close()


def _limited(problems: Iterator[str]) -> Iterator[str]:
    for _, problem in zip(range(MAX_PROBLEMS), problems, strict=False):
        yield problem


class _Audit:
    """Questions to one ledger. Each skips along an index, from one key to the next."""

    def __init__(self, book: Database) -> None:
        self._book = book

    def problems(self) -> Iterator[str]:
        """All of them."""
        yield from self._files()
        yield from self._orphans()
        yield from self._lost_directories()

    def _files(self) -> Iterator[str]:
        """Sizes, block sizes, and the last block of each file, of those that the entry was recorded with or after: a
        name that was removed, while the file grew under another one, stays recorded as it was until its directory is
        walked, also when the other one is gone by then."""
        file = 0
        while rows := self._book.all(
            "SELECT e.file, e.size, e.block_bytes, e.kind,"
            " (SELECT max(number) FROM block b WHERE b.file = e.file AND b.seq <= e.seq AND e.seq <> ?), d.path, e.name"
            " FROM entry e LEFT JOIN directory d ON d.id = e.directory"
            " WHERE e.file > ? ORDER BY e.file LIMIT ?",
            (UNSETTLED, file, PAGE_FILES),
        ):
            file = rows[-1][0]
            for _, size, block_bytes, kind, last, *where in rows:
                yield from _file_problems(size, block_bytes, kind, last, *where)

    def _orphans(self) -> Iterator[str]:
        """Blocks of files that no entry names; and what no block may be."""
        after, last = -(2**62), self._page_of_blocks(-(2**62))
        while last is not None:
            for file, is_orphan, is_bad in self._book.all(
                "SELECT b.file, NOT EXISTS(SELECT 1 FROM entry e WHERE e.file = b.file)"
                " AND NOT EXISTS(SELECT 1 FROM unnamed u WHERE u.file = b.file) AS orphan,"
                " max(b.number < 0 OR length(b.id) NOT IN (0, ?)) AS bad"
                " FROM block b WHERE b.file > ? AND b.file <= ? GROUP BY b.file HAVING orphan OR bad LIMIT ?",
                (ID_BYTES, after, last, MAX_PROBLEMS),
            ):
                if is_orphan:
                    yield f"blocks of file {file}, which no entry names"
                if is_bad:
                    yield f"blocks of file {file} with impossible numbers or ids"
            after, last = last, self._page_of_blocks(last)

    def _page_of_blocks(self, after: int) -> int | None:
        """The last file of the next PAGE_BLOCKS blocks behind a file; None when there are none."""
        found: int | None = self._book.value(
            "SELECT max(file) FROM (SELECT file FROM block WHERE file > ? ORDER BY file LIMIT ?)", (after, PAGE_BLOCKS)
        )
        return found

    def _lost_directories(self) -> Iterator[str]:
        """Entries that stand in a directory which has no name."""
        number = self._book.value("SELECT min(directory) FROM entry WHERE directory <> 0")
        while number is not None:
            if not self._book.value(
                "SELECT 1 FROM directory WHERE id = ? UNION ALL"
                " SELECT 1 WHERE NOT EXISTS(SELECT 1 FROM entry WHERE directory = ?) LIMIT 1",
                (number, number),
            ):
                yield f"entries in directory {number}, which has no name"
            number = self._book.value("SELECT min(directory) FROM entry WHERE directory > ?", (number,))


def _file_problems(
    size: int, block_bytes: int, kind: int, last: int | None, directory: bytes | None, name: bytes
) -> Iterator[str]:
    where = show_path(directory + b"/" + name if directory else name)
    if kind != Kind.FILE:
        yield f"{where} has a file number, but is no regular file"
    elif not 0 < block_bytes <= LARGEST_BLOCK_BYTES:
        yield f"{where} has blocks of {block_bytes} bytes"
    elif size >= 0 and last is not None and last >= block_count(size, block_bytes):
        yield f"{where} is {size} bytes long, but has block {last} of {block_bytes} bytes"
