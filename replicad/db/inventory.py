"""Inventory: what should stand where in a store's segments, and which files a damaged block belongs to.

The catalog read from the side of the disk: readers ask it where a block is, a scrub asks what belongs at a place.
**Owns** those questions, each answered in pages so that nothing grows with the store. It has a read-only connection of
its own and so sees what is committed, or borrows the writer's. **Never** writes and never judges.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from replicad.db.catalog import LOOKUP_MARKS, MENDED, MIGRATIONS, BlockPlace, FrameCopy, lookup_groups
from replicad.db.database import Database, Row
from replicad.db.paths import path_of
from replicad.model.entry import Kind
from replicad.model.position import Position

PAGE_ROWS = 10_000
"""Rows read with one statement: some milliseconds, so that nobody who writes has to wait."""
SCAN_CACHE_KIB = 4 * 1024
"""Page cache of a connection of its own: most questions go through a table once, and several threads ask at a time."""

_LAST = 1 << 62

FilePlace = tuple[int, int, int]
"""Key of a row of file_block: file, number, born."""


class Expected(NamedTuple):
    """One frame that should stand in a segment."""

    offset: int
    stored: int
    """Bytes of its payload."""
    plain: int
    id: bytes
    """Of a block; b"" for all other frames."""
    head: bytes
    """The frame's header; b"" for a block."""


class FileBlock(NamedTuple):
    """One block of one file through some snapshots: ordinals `born` up to, not including, `died`."""

    file: int
    number: int
    born: int
    died: int | None
    id: bytes


class FileName(NamedTuple):
    """One name of a file through some snapshots."""

    directory: int
    name: bytes
    born: int
    died: int | None
    file: int
    size: int
    block_bytes: int


class _Paged(NamedTuple):
    """A table that is gone through page by page, by its key."""

    name: str
    key: str
    before: Row
    """Before every key."""
    end: Row
    """Behind every key."""

    @property
    def page(self) -> str:
        """That a row lies in a page; its values say behind which key the page begins, and at which it ends."""
        return f"({self.key}) > (?, ?, ?) AND ({self.key}) <= (?, ?, ?)"


_FILE_BLOCKS = _Paged("file_block", "file, number, born", (-1, -1, -1), (_LAST, 0, 0))
_ENTRIES = _Paged("entry", "directory, name, born", (0, b"", -1), (_LAST, b"", 0))


class CommitRow(NamedTuple):
    """What the catalog says of a snapshot."""

    ordinal: int
    number: int
    digest: bytes
    lost: int


class Inventory:
    """Questions about one catalog. For one thread at a time."""

    def __init__(self, database: Database) -> None:
        self._db = database

    @classmethod
    def open(cls, catalog: Path, cache_kib: int = SCAN_CACHE_KIB) -> Inventory:
        """A connection of its own. Raises BookDamagedError, ReplicadError."""
        return cls(Database(catalog, MIGRATIONS, readonly=True, cache_kib=cache_kib))

    def close(self) -> None:
        """Close the connection."""
        self._db.close()

    @property
    def database(self) -> Database:
        """The connection, for the questions of other modules of this room."""
        return self._db

    def verify(self) -> list[str]:
        """Read every page and check the structure; what is wrong, in words."""
        return self._db.verify()

    # segments

    @property
    def checkpoint(self) -> Position:
        """Up to here the segments are in the catalog, and durable."""
        rows = self._db.all("SELECT key, value FROM meta WHERE key IN ('segment', 'offset', 'frames', 'running')")
        meta: dict[str, Any] = dict(rows)
        return Position(meta["segment"], meta["offset"], meta["frames"], meta["running"]) if meta else Position()

    @property
    def uncopied(self) -> tuple[int, int]:
        """Segment and offset up to which an older replicad wrote: frames before it may have no copy yet."""
        meta: dict[str, Any] = dict(self._db.all("SELECT key, value FROM meta WHERE key LIKE 'uncopied_%'"))
        return meta.get("uncopied_segment", 0), meta.get("uncopied_offset", 0)

    @contextmanager
    def at_one_moment(self) -> Iterator[None]:
        """All answers within speak of the catalog as it was at the first; with a connection of its own only."""
        self._db.begin_reading()
        try:
            yield
        finally:
            self._db.rollback()

    def imprint(self, segment: int) -> bytes:
        """What the segment was when nothing was wrong with it (work/imprint.py); b"" = not known."""
        return bytes(self._db.value("SELECT imprint FROM scrubbed WHERE segment = ?", (segment,)) or b"")

    def scrubbed(self) -> list[tuple[int, int, int]]:
        """(segment, size, at_ns) of every segment that was verified: one row for 64 MiB."""
        return [(s, n, t) for s, n, t in self._db.rows("SELECT segment, size, at_ns FROM scrubbed")]

    def mended(self, segment: int) -> list[tuple[int, int]]:
        """(offset, length) of damage that needs no word any more, ascending."""
        return [(o, n) for o, n in self._db.all(MENDED, (segment,))]

    def all_mended(self) -> list[tuple[int, int, int, int]]:
        """(segment, offset, length, at_ns) of all of it."""
        return [(s, o, n, t) for s, o, n, t in self._db.all("SELECT segment, offset, length, at_ns FROM mended")]

    def damage(self) -> list[tuple[int, int, int, str]]:
        """(segment, offset, length, reason) of what replays have found."""
        return [(s, o, n, r) for s, o, n, r in self._db.all("SELECT segment, offset, length, reason FROM damage")]

    def expected(self, segment: int, start: int, stop: int) -> Iterator[Expected]:
        """Frames that should begin from `start` up to, not including, `stop`, ascending."""
        while True:
            rows = self._db.all(
                "SELECT offset, stored, plain, id, x'' FROM block WHERE segment = ?1 AND offset >= ?2 AND offset < ?3"
                " UNION ALL SELECT offset, stored, 0, x'', head FROM frame_copy"
                " WHERE segment = ?1 AND offset >= ?2 AND offset < ?3 ORDER BY offset LIMIT ?4",
                (segment, start, stop, PAGE_ROWS),
            )
            yield from map(Expected._make, rows)
            if len(rows) < PAGE_ROWS:
                return
            start = rows[-1][0] + 1

    def last_expected(self, segment: int) -> Expected | None:
        """The last frame that should stand in a segment; None when nothing should."""
        found = [
            self._db.one(f"SELECT offset, stored, 0, {what} WHERE segment = ? ORDER BY offset DESC LIMIT 1", (segment,))
            for what in ("id, x'' FROM block", "x'', head FROM frame_copy")
        ]
        return max((Expected._make(row) for row in found if row), default=None)

    def copy(self, segment: int, offset: int) -> FrameCopy | None:
        """The copy of a frame."""
        row = self._db.one("SELECT * FROM frame_copy WHERE segment = ? AND offset = ?", (segment, offset))
        return FrameCopy._make(row) if row else None

    def heads(self, after: tuple[int, int] = (0, -1)) -> Iterator[tuple[int, int, bytes]]:
        """(segment, offset, head) of all copies, in order."""
        while True:
            rows = self._db.all(
                "SELECT segment, offset, head FROM frame_copy WHERE (segment, offset) > (?, ?)"
                " ORDER BY segment, offset LIMIT ?",
                (*after, PAGE_ROWS),
            )
            yield from ((s, o, h) for s, o, h in rows)
            if len(rows) < PAGE_ROWS:
                return
            after = rows[-1][:2]

    # blocks and the files they belong to

    def places(self, ids: Sequence[bytes]) -> dict[bytes, BlockPlace]:
        """Where these blocks are; those that are not in the store are left out."""
        found: dict[bytes, BlockPlace] = {}
        for group in lookup_groups(ids):
            rows = self._db.all(f"SELECT * FROM block WHERE id IN ({LOOKUP_MARKS})", group)
            found.update((row[0], BlockPlace(*row)) for row in rows)
        return found

    def file_blocks(self) -> Iterator[list[FileBlock]]:
        """Every row that says which block stands in a file, in pages."""
        after: FilePlace = (-1, -1, -1)
        while True:
            rows = self._db.all(
                "SELECT file, number, born, died, id FROM file_block WHERE (file, number, born) > (?, ?, ?)"
                " ORDER BY file, number, born LIMIT ?",
                (*after, PAGE_ROWS),
            )
            if rows:
                yield [FileBlock._make(row) for row in rows]
                after = rows[-1][:3]
            if len(rows) < PAGE_ROWS:
                return

    def file_names(self) -> Iterator[list[FileName]]:
        """Every name that a file has or had, in pages."""
        after: tuple[int, bytes, int] = (0, b"", -1)
        while True:
            rows = self._db.all(
                "SELECT directory, name, born, died, file, size, block_bytes, kind FROM entry"
                " WHERE (directory, name, born) > (?, ?, ?) ORDER BY directory, name, born LIMIT ?",
                (*after, PAGE_ROWS),
            )
            yield [FileName._make(row[:7]) for row in rows if row[7] == Kind.FILE]
            if len(rows) < PAGE_ROWS:
                return
            after = rows[-1][:3]

    def uses(self, ids: Collection[bytes]) -> Iterator[list[FileBlock]]:
        """Which files these blocks stand in, in pages of any length. Goes through the whole table, inside SQLite."""
        self._want(ids)
        for span in self._spans(_FILE_BLOCKS):
            rows = self._db.all(
                f"SELECT file, number, born, died, id FROM file_block WHERE {_FILE_BLOCKS.page} AND id IN temp.wanted",
                span,
            )
            yield [FileBlock._make(row) for row in rows]

    def named(self, ids: frozenset[bytes]) -> frozenset[bytes]:
        """Those of these blocks that stand in any file. Goes through the whole table, as `uses`."""
        return ids.intersection(row.id for page in self.uses(ids) for row in page)

    def names_of(self, files: Collection[int]) -> Iterator[list[FileName]]:
        """Every name that these files have or had, in pages of any length. Goes through the whole table, as `uses`."""
        self._want(files)
        for span in self._spans(_ENTRIES):
            rows = self._db.all(
                "SELECT directory, name, born, died, file, size, block_bytes FROM entry"
                f" WHERE {_ENTRIES.page} AND kind = ? AND file IN temp.wanted",
                (*span, Kind.FILE),
            )
            yield [FileName._make(row) for row in rows]

    def _want(self, keys: Collection[bytes] | Collection[int]) -> None:
        self._db.execute("CREATE TEMP TABLE IF NOT EXISTS wanted(key PRIMARY KEY) WITHOUT ROWID")
        self._db.execute("DELETE FROM temp.wanted")
        self._db.insert("INSERT OR IGNORE INTO temp.wanted", "(?)", [(key,) for key in keys])

    def nameless_since(self, ordinal: int) -> Iterator[int]:
        """Files that lost a name in the history behind this snapshot, and whose rows have gone: they may be named
        again."""
        for (file,) in self._db.rows("SELECT file FROM orphan WHERE died > ?", (ordinal,)):
            yield file

    def unplaced(self) -> Iterator[list[bytes]]:
        """Blocks that files name and that are nowhere, in pages; each as often as it is named."""
        for span in self._spans(_FILE_BLOCKS):
            rows = self._db.all(
                f"SELECT id FROM file_block WHERE {_FILE_BLOCKS.page}"
                " AND NOT EXISTS (SELECT 1 FROM block WHERE block.id = file_block.id)",
                span,
            )
            yield [row[0] for row in rows]

    def beyond_end(self) -> Iterator[list[tuple[int, int]]]:
        """(file, number) of the last block of files whose names, those of one page, all end before it."""
        for span in self._spans(_ENTRIES):
            rows = self._db.all(
                "SELECT file, number FROM (SELECT file, max((size + block_bytes - 1) / block_bytes) AS count,"
                " (SELECT number FROM file_block b WHERE b.file = entry.file AND died IS NULL"
                " ORDER BY number DESC LIMIT 1) AS number"
                f" FROM entry WHERE {_ENTRIES.page} AND died IS NULL AND kind = ?"
                " GROUP BY file) WHERE number >= count",
                (*span, Kind.FILE),
            )
            yield [(file, number) for file, number in rows]

    def _spans(self, table: _Paged) -> Iterator[Row]:
        """A table in pages: the values of `table.page` for each. What is asked of whole pages is answered by SQLite
        alone, which leaves the interpreter to others."""
        name, key, after, end = table
        while after != end:
            last = self._db.one(
                f"SELECT {key} FROM {name} WHERE ({key}) > (?, ?, ?) ORDER BY {key} LIMIT 1 OFFSET {PAGE_ROWS - 1}",
                after,
            )
            yield (*after, *(last or end))
            after = last or end

    def path(self, directory: int, name: bytes) -> bytes:
        """The path of a name in a directory."""
        return path_of(self._db, directory, name)

    # snapshots

    def commits(self) -> Iterator[CommitRow]:
        """All snapshots, oldest first."""
        after = 0
        while True:
            rows = self._db.all(
                "SELECT ordinal, number, digest, lost FROM snapshot WHERE ordinal > ? ORDER BY ordinal LIMIT ?",
                (after, PAGE_ROWS),
            )
            yield from map(CommitRow._make, rows)
            if len(rows) < PAGE_ROWS:
                return
            after = rows[-1][0]

    def number_at(self, ordinal: int) -> int:
        """The number of the snapshot with this ordinal; 0 when there is none (yet)."""
        return int(self._db.value("SELECT number FROM snapshot WHERE ordinal = ?", (ordinal,)) or 0)

    @property
    def lost(self) -> int:
        """Record frames that are missing in all snapshots together."""
        return int(self._db.value("SELECT coalesce(sum(lost), 0) FROM snapshot"))
