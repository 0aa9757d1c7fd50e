"""Differences: what is not the same in two snapshots of a catalog, sorted by path.

A walk over directories, not over entries: in each only the rows are read that began or ended between the two. Order is
that of db/listing.py. Nothing grows with the number of differences; a list may be empty, so that whoever asks can stop.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from heapq import merge
from itertools import groupby
from operator import itemgetter

from replicad.db.catalog import ROOT
from replicad.db.contents import NOTHING, changed
from replicad.db.database import Database, Row
from replicad.db.entries import BATCH_BYTES, BATCH_OPS, CUT_COLUMNS, is_cut, length_of, put_of, whole
from replicad.db.paths import page_rows, subdirectories
from replicad.model.entry import Put
from replicad.model.glob import Globs
from replicad.model.travel import Difference, has_changed

DIRECTORIES_AT_ONCE = 500
"""Directories walked before a list is given, though it may be empty: some milliseconds."""
_Node = tuple[bytes, list[Row], int | None]
"""A path, the rows of it that one snapshot shows and the other does not, and the number of the directory that it is or
was."""


def differences(database: Database, before: int, after: int, globs: Globs) -> Iterator[list[Difference]]:
    """What differs at paths that match `globs`, from the snapshot with the ordinal `before` to that with `after`."""
    walk = _Walk(database, before, after, globs)
    batch: list[Difference] = []
    size = directories = 0
    for path, rows, directory in walk.nodes():
        directories += directory is not None
        if rows and (difference := walk.difference(path, rows)):
            batch.append(difference)
            size += sum(length_of(put) for put in (difference.before, difference.after) if put)
        if len(batch) >= BATCH_OPS or size >= BATCH_BYTES or directories >= DIRECTORIES_AT_ONCE:
            yield batch
            batch, size, directories = [], 0, 0
    yield batch


class _Walk:
    def __init__(self, database: Database, before: int, after: int, globs: Globs) -> None:
        self._db, self._globs = database, globs
        self._before, self._after = before, after

    def nodes(self) -> Iterator[_Node]:
        """Depth first; directories also where nothing differs."""
        stack = [self._directory(ROOT, b"")]
        while stack:
            node = next(stack[-1], None)
            if node is None:
                stack.pop()
                continue
            yield node
            path, _, directory = node
            if directory is not None and self._globs.below(path):
                stack.append(self._directory(directory, path))

    def difference(self, path: bytes, rows: Sequence[Row]) -> Difference | None:
        """What differs at a path of which these are the rows; None when nothing does that counts."""
        before, after = (self._at(path, rows, ordinal) for ordinal in (self._before, self._after))
        if before is None or after is None:
            return Difference(path, before, after, *NOTHING) if before or after else None
        counts = changed(self._db, (before, self._before), (after, self._after))
        return Difference(path, before, after, *counts) if has_changed(before, after, counts.blocks) else None

    def _at(self, path: bytes, rows: Sequence[Row], ordinal: int) -> Put | None:
        for row in rows:
            directory, name, born, died = row[10:]
            if born <= ordinal and (died is None or died > ordinal):
                put = put_of(path, row)
                return whole(self._db, put, (directory, name, born)) if is_cut(row) else put
        return None

    def _directory(self, directory: int, path: bytes) -> Iterator[_Node]:
        prefix = path + b"/" if path else b""
        both = merge(self._differing(directory, prefix), self._subdirectories(directory, prefix), key=itemgetter(0))
        for name, same in groupby(both, itemgetter(0)):  # stable: what differs comes before the directory
            nodes = list(same)
            yield name, nodes[0][1], nodes[-1][2]

    def _differing(self, directory: int, prefix: bytes) -> Iterator[_Node]:
        for name, rows in groupby(self._rows(directory, page_rows(prefix)), itemgetter(11)):
            if self._globs(prefix + name):
                yield prefix + name, list(rows), None

    def _rows(self, directory: int, limit: int) -> Iterator[Row]:
        """The rows of a directory that one of the two snapshots shows and the other does not, by name."""
        low, high = sorted((self._before, self._after))
        name, born = b"", -1
        while True:
            rows = self._db.all(
                f"SELECT {CUT_COLUMNS}, directory, name, born, died"
                " FROM entry WHERE directory = ?1 AND (name, born) > (?2, ?3)"
                " AND ((born <= ?4 AND died > ?4 AND died <= ?5)"
                " OR (born > ?4 AND born <= ?5 AND (died IS NULL OR died > ?5))) ORDER BY name, born LIMIT ?6",
                (directory, name, born, low, high, limit),
            )
            yield from rows
            if len(rows) < limit:
                return
            name, born = rows[-1][11:13]

    def _subdirectories(self, directory: int, prefix: bytes) -> Iterator[_Node]:
        found = subdirectories(self._db, directory, page_rows(prefix))
        return ((prefix + name, [], number) for name, number in found)
