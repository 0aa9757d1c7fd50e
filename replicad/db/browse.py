"""Browse: what somebody who looks around in one snapshot asks of the catalog, each question answered at once.

Unlike a listing nothing is under way between two questions: whoever browses may take hours over it. Every answer was
read while the snapshot was kept, or is an error: rows of a dropped snapshot go, and what is not listed would be zero.
"""

from __future__ import annotations

from collections.abc import Callable

from replicad.db.database import Database
from replicad.db.entries import ENTRY_COLUMNS, in_batches, length_of, put_of
from replicad.db.paths import directory_of, place_of
from replicad.model.entry import Put

_SHOWN = "born <= ? AND (died IS NULL OR died > ?)"


class Browse:
    """Questions to one catalog about snapshots, named by ordinal. `check_kept` raises for one that is dropped."""

    def __init__(self, database: Database, check_kept: Callable[[int], None]) -> None:
        self._db, self._check_kept = database, check_kept

    def entry(self, ordinal: int, path: bytes) -> Put | None:
        """What stood at a path, without its blocks; None when nothing did."""
        place = place_of(self._db, path)
        query = f"SELECT {ENTRY_COLUMNS} FROM entry WHERE directory = ? AND name = ? AND {_SHOWN}"
        row = place and self._db.one(query, (*place, ordinal, ordinal))
        self._check_kept(ordinal)
        return put_of(path, row) if row else None

    def page(self, ordinal: int, path: bytes, after: bytes, limit: int) -> list[tuple[bytes, Put]]:
        """The next names in a directory behind `after`, sorted by their bytes, with what stood there: `limit` at most,
        fewer where they are long; none at the end."""
        directory = directory_of(self._db, path)
        if directory is None:
            return []
        prefix = path + b"/" if path else b""
        rows = self._db.rows(
            f"SELECT {ENTRY_COLUMNS}, name FROM entry WHERE directory = ? AND name > ? AND {_SHOWN}"
            " ORDER BY name LIMIT ?",
            (directory, after, ordinal, ordinal, limit),
        )
        found = ((row[-1], put_of(prefix + row[-1], row)) for row in rows)
        page = next(in_batches(found, lambda one: length_of(one[1])), [])
        self._check_kept(ordinal)
        return page

    def blocks(self, ordinal: int, file: int, first: int, count: int) -> dict[int, bytes]:
        """Ids of those of `count` blocks of a file that are not zero, by their number."""
        rows = self._db.all(
            f"SELECT number, id FROM file_block WHERE file = ? AND number >= ? AND number < ? AND {_SHOWN}",
            (file, first, first + count, ordinal, ordinal),
        )
        self._check_kept(ordinal)
        return dict(rows)
