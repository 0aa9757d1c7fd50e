"""Changes: what one snapshot replaced or ended, read from the catalog beside its writer.

Owns a read-only connection. Only what was there before is listed: new entries and appended blocks replace nothing.
Every question is answered in pages, through the indexes of ended rows, so that its cost is that of the change and not
of the history.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from replicad.db.catalog import MIGRATIONS
from replicad.db.database import Database
from replicad.db.paths import path_of


class Made(NamedTuple):
    """A snapshot and the one before it."""

    ordinal: int
    number: int
    before: int
    """Number of the snapshot before; 0 = it is the first."""
    before_created_ns: int
    """When the pass of the snapshot before began."""


class Version(NamedTuple):
    """One version of an entry."""

    kind: int
    mtime_ns: int
    size: int
    file: int
    block_bytes: int
    flags: int


class Ended(NamedTuple):
    """An entry whose version ended, and the version that took its place, if any."""

    directory: int
    name: bytes
    old: Version
    new: Version | None


class Replaced(NamedTuple):
    """A block that ended. `new_id` is None where it is all-zero now, or behind the end; sizes are 0 where the catalog
    has no such block."""

    number: int
    id: bytes
    stored: int
    plain: int
    new_id: bytes | None
    new_stored: int
    new_plain: int


class Changes:
    """Reads one catalog. For one thread at a time; may be another one than the writer's."""

    def __init__(self, path: Path) -> None:
        """Raises BookDamagedError, ReplicadError (also when there is no catalog)."""
        self._db = Database(path, MIGRATIONS, readonly=True)

    def close(self) -> None:
        """Close the connection."""
        self._db.close()

    def next_after(self, number: int) -> Made | None:
        """The first snapshot with a number above `number`."""
        row = self._db.one(
            "SELECT s.ordinal, s.number, coalesce(b.number, 0), coalesce(b.created_ns, 0) FROM snapshot s"
            " LEFT JOIN snapshot b ON b.ordinal = s.ordinal - 1 WHERE s.number > ? ORDER BY s.number LIMIT 1",
            (number,),
        )
        return Made._make(row) if row else None

    def ended(self, ordinal: int, after: tuple[int, bytes], limit: int) -> list[Ended]:
        """Up to `limit` entries whose versions the snapshot ended, (directory, name) above `after`, in that order."""
        rows = self._db.all(
            "SELECT o.directory, o.name, o.kind, o.mtime_ns, o.size, o.file, o.block_bytes, o.flags,"
            " n.kind, n.mtime_ns, n.size, n.file, n.block_bytes, n.flags FROM entry o"
            " LEFT JOIN entry n ON n.directory = o.directory AND n.name = o.name AND n.born = o.died"
            " WHERE o.died = ? AND (o.directory, o.name) > (?, ?) ORDER BY o.directory, o.name LIMIT ?",
            (ordinal, *after, limit),
        )
        return [
            Ended(row[0], row[1], Version(*row[2:8]), Version(*row[8:14]) if row[8] is not None else None)
            for row in rows
        ]

    def begun(self, ordinal: int, limit: int) -> dict[int, Version]:
        """By number, up to `limit` files with a name that begins in the snapshot. Reads all entries once."""
        rows = self._db.all(
            "SELECT kind, mtime_ns, size, file, block_bytes, flags FROM entry WHERE born = ? AND file > 0 LIMIT ?",
            (ordinal, limit),
        )
        return {version.file: version for version in map(Version._make, rows)}

    def replaced(self, ordinal: int, file: int, after: int, limit: int) -> list[Replaced]:
        """Up to `limit` blocks of a file that the snapshot ended, numbers above `after`, ascending."""
        rows = self._db.all(
            "SELECT o.number, o.id, coalesce(a.stored, 0), coalesce(a.plain, 0),"
            " n.id, coalesce(b.stored, 0), coalesce(b.plain, 0) FROM file_block o"
            " LEFT JOIN file_block n ON n.file = o.file AND n.number = o.number AND n.born = o.died"
            " LEFT JOIN block a ON a.id = o.id LEFT JOIN block b ON b.id = n.id"
            " WHERE o.died = ? AND o.file = ? AND o.number > ? ORDER BY o.number LIMIT ?",
            (ordinal, file, after, limit),
        )
        return [Replaced._make(row) for row in rows]

    def count_replaced(self, ordinal: int) -> int:
        """How many blocks the snapshot ended."""
        return int(self._db.value("SELECT count(*) FROM file_block WHERE died = ?", (ordinal,)))

    def sizes(self, ordinal: int, file: int, limit: int) -> list[tuple[int, int]]:
        """(stored, plain) of up to `limit` of the blocks that the file had in that snapshot."""
        return self._db.all(
            "SELECT b.stored, b.plain FROM file_block f JOIN block b ON b.id = f.id"
            " WHERE f.file = ? AND f.born <= ? AND (f.died IS NULL OR f.died > ?) LIMIT ?",
            (file, ordinal, ordinal, limit),
        )

    def path(self, directory: int, name: bytes) -> bytes:
        """The path of an entry."""
        return path_of(self._db, directory, name)
