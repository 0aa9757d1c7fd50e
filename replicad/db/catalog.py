"""Catalog: the replica's index of one dataset: where blocks are, and which names existed in which snapshot.

Owns `catalog.db`. It is an index: the segments are the truth and `rebuild` makes it anew. Entries and block maps
are versioned: a row holds for the snapshots from `born` up to, not including, `died` (NULL: still). Both count
*ordinals*, 1, 2, 3 …, because rows are written before the commit says which number the snapshot has.

Blocks and operations go into one open transaction that only `commit` and `keep` end; readers on other
connections (db/listing.py) see nothing of it before.
**Never** decides what is damaged or acceptable: it is told.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec

from replicad.db.database import Database
from replicad.model.block import ID_BYTES, block_count
from replicad.model.entry import Drop, Kind, Map, Meta, Op, Put
from replicad.model.errors import BookDamagedError
from replicad.model.position import Position
from replicad.model.snapshot import Commit, Head

MIGRATIONS = (
    """
    CREATE TABLE meta(key TEXT PRIMARY KEY, value) WITHOUT ROWID;
    CREATE TABLE snapshot(
        ordinal INTEGER PRIMARY KEY, number INTEGER NOT NULL UNIQUE, digest BLOB NOT NULL,
        created_ns INTEGER NOT NULL, received_ns INTEGER NOT NULL, complete INTEGER NOT NULL,
        entries INTEGER NOT NULL, size INTEGER NOT NULL, unread INTEGER NOT NULL,
        lost INTEGER NOT NULL);
    CREATE TABLE block(
        id BLOB PRIMARY KEY, segment INTEGER NOT NULL, offset INTEGER NOT NULL,
        stored INTEGER NOT NULL, plain INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE directory(
        id INTEGER PRIMARY KEY, parent INTEGER NOT NULL, name BLOB NOT NULL, UNIQUE(parent, name));
    CREATE TABLE entry(
        directory INTEGER NOT NULL, name BLOB NOT NULL, born INTEGER NOT NULL, died INTEGER,
        kind INTEGER NOT NULL, mode INTEGER NOT NULL, uid INTEGER NOT NULL, gid INTEGER NOT NULL,
        mtime_ns INTEGER NOT NULL, size INTEGER NOT NULL, file INTEGER NOT NULL, block_bytes INTEGER NOT NULL,
        flags INTEGER NOT NULL, extra BLOB,
        PRIMARY KEY(directory, name, born)) WITHOUT ROWID;
    CREATE TABLE file_block(
        file INTEGER NOT NULL, number INTEGER NOT NULL, born INTEGER NOT NULL, died INTEGER, id BLOB NOT NULL,
        PRIMARY KEY(file, number, born)) WITHOUT ROWID;
    CREATE TABLE damage(
        segment INTEGER NOT NULL, offset INTEGER NOT NULL, length INTEGER NOT NULL, reason TEXT NOT NULL,
        PRIMARY KEY(segment, offset)) WITHOUT ROWID;
    INSERT INTO directory VALUES(1, 0, x'');
    """,
    """
    CREATE INDEX block_place ON block(segment, offset, stored, plain);
    CREATE TABLE frame_copy(
        segment INTEGER NOT NULL, offset INTEGER NOT NULL, stored INTEGER NOT NULL, head BLOB NOT NULL, payload BLOB,
        UNIQUE(segment, offset));
    CREATE TABLE mended(
        segment INTEGER NOT NULL, offset INTEGER NOT NULL, length INTEGER NOT NULL, at_ns INTEGER NOT NULL,
        PRIMARY KEY(segment, offset)) WITHOUT ROWID;
    CREATE TABLE scrubbed(
        segment INTEGER PRIMARY KEY, size INTEGER NOT NULL, at_ns INTEGER NOT NULL, source TEXT NOT NULL);
    CREATE INDEX entry_died ON entry(died) WHERE died IS NOT NULL;
    CREATE INDEX file_block_died ON file_block(died) WHERE died IS NOT NULL;
    INSERT INTO meta SELECT 'uncopied_' || key, value FROM meta WHERE key IN ('segment', 'offset');
    """,
    "ALTER TABLE scrubbed ADD COLUMN imprint BLOB NOT NULL DEFAULT x''",
    """
    ALTER TABLE snapshot ADD COLUMN dropped_ns INTEGER NOT NULL DEFAULT 0;
    CREATE INDEX snapshot_kept ON snapshot(ordinal) WHERE dropped_ns = 0;
    CREATE TABLE expired(
        after INTEGER NOT NULL, until INTEGER NOT NULL, place BLOB NOT NULL, PRIMARY KEY(after, until)) WITHOUT ROWID;
    CREATE TABLE orphan(file INTEGER PRIMARY KEY, died INTEGER NOT NULL, state INTEGER NOT NULL);
    CREATE INDEX orphan_open ON orphan(state, died) WHERE state < 2;
    CREATE TABLE forgotten(file INTEGER PRIMARY KEY);
    """,
)
"""Version history: 1 = first; 2 = copies of the frames that are no blocks, places of blocks by segment, what was mended
and when each segment was verified, and what a snapshot ended (only ended rows are indexed); 3 = what a segment
was when nothing was wrong with it (work/imprint.py); 4 = which snapshots are not kept any more, and what is to go with
them (db/expiry.py)."""

MENDED = "SELECT offset, length FROM mended WHERE segment = ? ORDER BY offset"
ROOT = 1
"""Id of the dataset's root directory; its own entry stands in it with an empty name."""
LOOKUP_ROWS = 128
"""Rows looked up with one statement: a hundred statements of their own would each take and give up a read lock."""
LOOKUP_MARKS = ",".join("?" * LOOKUP_ROWS)
CACHED_DIRECTORIES = 8192
"""Directory ids kept in memory: a walk writes a directory's entries together."""


class BlockPlace(NamedTuple):
    """Where a block's frame is."""

    id: bytes
    segment: int
    offset: int
    stored: int
    plain: int


class FrameCopy(NamedTuple):
    """A frame that is no block, bit for bit, so that the store's own structure can be laid anew."""

    segment: int
    offset: int
    stored: int
    """Bytes of the payload."""
    head: bytes
    payload: bytes | None
    """None: zeros, as in a pad."""

    @property
    def frame(self) -> bytes:
        """The whole frame."""
        return self.head + (bytes(self.stored) if self.payload is None else self.payload)


class Extra(msgspec.Struct, frozen=True, array_like=True):
    """What few entries have."""

    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    target: bytes = b""
    device: int = 0


_encoder = msgspec.msgpack.Encoder()


class Catalog:
    """The writing connection. One thread at a time."""

    def __init__(self, path: Path) -> None:
        """Open or create. Raises BookDamagedError, LockedError, DiskFullError, ReplicadError."""
        self.path = path
        self._db = Database(path, MIGRATIONS)
        self._directories: dict[bytes, int] = {}
        try:
            self._load()
        except BaseException:
            self._db.close()
            raise

    def close(self) -> None:
        """Close; what is not committed is forgotten."""
        self._db.close()

    @property
    def head(self) -> Head:
        """The last snapshot."""
        return self._head

    @property
    def checkpoint(self) -> Position:
        """Up to here the segments are in the catalog."""
        return self._checkpoint

    @property
    def laying(self) -> int:
        """The segment whose compacted file is to take its place: the catalog speaks of that file. 0 = none."""
        return int(self._db.value("SELECT value FROM meta WHERE key = 'laying'") or 0)

    def set_laying(self, segment: int) -> None:
        """From the next `keep` on, a segment's compacted file is the one that counts; 0 = it has its name."""
        self._begin()
        self._set_meta(laying=segment)

    @property
    def owner(self) -> tuple[bytes, str, str] | None:
        """Store uuid, client and dataset; None in a new catalog."""
        meta = self._meta()
        return (meta["store"], meta["client"], meta["dataset"]) if "store" in meta else None

    def set_owner(self, store: bytes, client: str, dataset: str) -> None:
        """Say once, durably, whose catalog it is."""
        self._db.execute("PRAGMA synchronous = full")
        with self._db.transaction():
            self._set_meta(store=store, client=client, dataset=dataset)
        self._db.execute("PRAGMA synchronous = normal")

    def known(self, ids: Sequence[bytes]) -> set[bytes]:
        """Which of these blocks are in the store."""
        found: set[bytes] = set()
        for group in lookup_groups(ids):
            found.update(row[0] for row in self._db.all(f"SELECT id FROM block WHERE id IN ({LOOKUP_MARKS})", group))
        return found

    def forgotten(self, files: Sequence[int]) -> set[int]:
        """Which of these file numbers stood for files that no kept snapshot shows and that are gone for good."""
        found: set[int] = set()
        if files and self._db.value("SELECT 1 FROM forgotten LIMIT 1"):
            for group in lookup_groups(files):
                rows = self._db.all(f"SELECT file FROM forgotten WHERE file IN ({LOOKUP_MARKS})", group)
                found.update(row[0] for row in rows)
        return found

    def add_blocks(self, places: Sequence[BlockPlace]) -> None:
        """Index blocks; a later frame of the same block takes the place of an earlier one."""
        self._begin()
        # nearly all are new; a statement that may replace has SQLite set a copy of each page that it touches aside, and
        # ids lie all over the table
        if self._db.insert("INSERT OR IGNORE INTO block", "(?,?,?,?,?)", places) < len(places):
            self._db.insert("INSERT OR REPLACE INTO block", "(?,?,?,?,?)", places)

    def drop_blocks(self, places: Iterable[BlockPlace]) -> None:
        """Forget blocks, unless they stand somewhere else by now."""
        self._begin()
        self._db.executemany(
            "DELETE FROM block WHERE id = ? AND segment = ? AND offset = ?",
            [(place.id, place.segment, place.offset) for place in places],
        )

    def apply(self, ops: Sequence[Op], current: Put | None = None) -> Put | None:
        """Operations in order, for the snapshot that the next commit makes.

        `current` is the file whose maps may come first; returns the one whose maps may come next.
        """
        self._begin()
        batch = _Batch()
        for op in ops:
            if isinstance(op, Map):
                assert current is not None and current.file == op.file, "map without its put"
                if op.zeros and batch.blocks:  # zeros end what was listed before them
                    self._write(batch)
                    batch = _Batch()
                batch.add_map(op)
                continue
            if not batch.has_room_for(op):
                self._write(batch)
                batch = _Batch()
            batch.add(op, *self._place(op.path))
            current = op if isinstance(op, Put) else None
        self._write(batch)
        return current

    def add_damage(self, segment: int, offset: int, length: int, reason: str) -> None:
        """Remember damage found in a segment."""
        self._begin()
        self._db.execute("INSERT OR REPLACE INTO damage VALUES(?, ?, ?, ?)", (segment, offset, length, reason))

    def drop_damage(self, segment: int, offset: int, length: int) -> None:
        """Damage that begins within these bytes is settled."""
        self._begin()
        where = "segment = ? AND offset >= ? AND offset < ?"
        self._db.execute(f"DELETE FROM damage WHERE {where}", (segment, offset, offset + max(1, length)))

    def add_copies(self, copies: Sequence[FrameCopy]) -> None:
        """Keep frames that are no blocks."""
        self._begin()
        self._db.executemany("INSERT OR REPLACE INTO frame_copy VALUES(?, ?, ?, ?, ?)", copies)

    def add_mended(self, segment: int, offset: int, length: int, at_ns: int) -> None:
        """What is damaged in these bytes stands elsewhere or is needed by nobody: nothing is said of them any more."""
        self._begin()
        self._db.execute("INSERT OR REPLACE INTO mended VALUES(?, ?, ?, ?)", (segment, offset, length, at_ns))
        self.drop_damage(segment, offset, length)

    def mended(self, segment: int) -> list[tuple[int, int]]:
        """(offset, length) of what was mended in a segment, ascending."""
        return [(o, n) for o, n in self._db.all(MENDED, (segment,))]

    def begin_durably(self) -> None:
        """What is written from here on is on the disk when `keep` returns."""
        self._db.begin(durable=True)

    def set_scrubbed(self, rows: Sequence[tuple[int, int, int, str, bytes]]) -> None:
        """Remember (segment, size, at_ns, source, imprint) of verifications."""
        self._begin()
        self._db.executemany("INSERT OR REPLACE INTO scrubbed VALUES(?, ?, ?, ?, ?)", rows)

    @property
    def database(self) -> Database:
        """The connection, for questions of db/inventory.py that must see what is not committed yet."""
        return self._db

    def damage(self) -> list[tuple[int, int, int, str]]:
        """(segment, offset, length, reason) of all damage remembered."""
        return [(s, o, n, r) for s, o, n, r in self._db.rows("SELECT segment, offset, length, reason FROM damage")]

    def commit(self, commit: Commit, digest: bytes, *, received_ns: int, checkpoint: Position, lost: int = 0) -> None:
        """Make the applied operations a snapshot. `lost`: record frames that belong to it and could not be applied."""
        self._begin()
        line = (
            self._ordinal, commit.number, digest, commit.created_ns, received_ns, commit.complete,
            commit.entries, commit.size, commit.unread, lost,
        )  # fmt: skip
        self._db.execute("INSERT INTO snapshot VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0)", line)
        self.keep(checkpoint)
        self._head = Head(commit.number, digest)
        self._ordinal += 1

    def keep(self, checkpoint: Position) -> None:
        """Commit what was written, without a snapshot: anything but operations may have been."""
        self._begin()
        at = checkpoint
        self._set_meta(
            segment=at.segment, offset=at.offset, frames=at.frames, running=at.digest, top_file=self._top_file
        )
        self._db.commit()
        self._checkpoint = checkpoint
        self._settled_directory = self._top_directory()

    def rollback(self) -> None:
        """Forget everything since the last commit, and give back the room that it took in the log."""
        self._db.rollback()
        self._db.empty_log()
        self._directories.clear()
        self._load()

    def verify(self) -> list[str]:
        """Read every page; what is wrong in words, empty when sound."""
        return self._db.verify()

    # below: how

    def _load(self) -> None:
        meta = self._meta()
        self._checkpoint = Position()
        if "running" in meta:
            self._checkpoint = Position(meta["segment"], meta["offset"], meta["frames"], meta["running"])
        self._top_file: int = meta.get("top_file", 0)
        last = self._db.one("SELECT ordinal, number, digest FROM snapshot ORDER BY ordinal DESC LIMIT 1")
        self._head = Head(last[1], last[2]) if last else Head()
        self._ordinal: int = last[0] + 1 if last else 1
        self._settled_directory = self._top_directory()
        if self._settled_directory < ROOT:
            raise BookDamagedError("has no root directory", where=str(self.path), hint="rebuild it: replicad rebuild")

    def _meta(self) -> dict[str, Any]:
        return dict(self._db.all("SELECT key, value FROM meta"))

    def _top_directory(self) -> int:
        return int(self._db.value("SELECT max(id) FROM directory") or 0)

    def _begin(self) -> None:
        if not self._db.in_transaction:
            self._db.begin()

    def _set_meta(self, **values: int | bytes | str) -> None:
        self._db.executemany("INSERT OR REPLACE INTO meta VALUES(?, ?)", list(values.items()))

    def _place(self, path: bytes) -> tuple[int, bytes]:
        """Directory id and name of an entry."""
        if not path:
            return ROOT, b""
        directory, _, name = path.rpartition(b"/")
        return self._directories.get(directory) or self._intern(directory), name

    def _intern(self, path: bytes) -> int:
        """The id of a directory path, made when it is new, its parents too."""
        if not path:
            return ROOT
        if len(self._directories) >= CACHED_DIRECTORIES:
            self._directories.clear()
        parent, name = self._place(path)
        found = self._db.value("SELECT id FROM directory WHERE parent = ? AND name = ?", (parent, name))
        if found is None:
            self._db.execute("INSERT INTO directory(parent, name) VALUES(?, ?)", (parent, name))
            found = self._db.value("SELECT last_insert_rowid()")
        self._directories[path] = found
        return int(found)

    def _write(self, batch: _Batch) -> None:
        """Close what a batch replaces, then insert what it says. Rows of new directories and files replace nothing."""
        now, db = self._ordinal, self._db
        db.executemany(
            "UPDATE entry SET died = ? WHERE directory = ? AND name = ? AND died IS NULL AND born < ?",
            [(now, d, name, now) for d, name in batch.names if d <= self._settled_directory],
        )
        db.executemany("DELETE FROM entry WHERE directory = ? AND name = ? AND born = ?", batch.dropped(now))
        db.insert("INSERT OR REPLACE INTO entry", f"(?,?,{now},NULL,?,?,?,?,?,?,?,?,?,?)", batch.entries)
        self._close_blocks(batch)
        db.insert("INSERT OR REPLACE INTO file_block", f"(?,?,{now},NULL,?)", batch.blocks)
        self._top_file = max(self._top_file, batch.top_file)

    def _close_blocks(self, batch: _Batch) -> None:
        """End the rows beyond a file's end, in its zero runs and of blocks that are replaced."""
        now, top = self._ordinal, self._top_file
        ends = [(now, file, count) for file, count in batch.ends if file <= top]
        self._db.executemany("UPDATE file_block SET died = ? WHERE file = ? AND number >= ? AND died IS NULL", ends)
        zeros = [(now, file, first, last) for file, first, last in batch.zeros if file <= top]
        self._db.executemany(
            "UPDATE file_block SET died = ? WHERE file = ? AND number BETWEEN ? AND ? AND died IS NULL", zeros
        )
        replaced = [(now, file, number, now) for file, number, _ in batch.blocks if file <= top]
        self._db.executemany(
            "UPDATE file_block SET died = ? WHERE file = ? AND number = ? AND died IS NULL AND born < ?", replaced
        )


Key = TypeVar("Key", bytes, int)


def lookup_groups(keys: Sequence[Key]) -> Iterator[list[Key]]:
    """`keys` in groups of exactly LOOKUP_ROWS, the last filled up with its first: one prepared statement for all."""
    for start in range(0, len(keys), LOOKUP_ROWS):
        group = list(keys[start : start + LOOKUP_ROWS])
        yield group + group[:1] * (LOOKUP_ROWS - len(group))


class _Batch:
    """Operations that can be written together: no path and no file twice, apart from a put and its maps."""

    __slots__ = ("blocks", "drops", "ends", "entries", "files", "names", "paths", "top_file", "zeros")

    def __init__(self) -> None:
        self.paths: set[bytes] = set()
        self.files: set[int] = set()
        self.names: list[tuple[int, bytes]] = []
        self.drops: list[tuple[int, bytes]] = []
        self.entries: list[tuple[int | bytes | None, ...]] = []
        self.ends: list[tuple[int, int]] = []
        self.zeros: list[tuple[int, int, int]] = []
        self.blocks: list[tuple[int, int, bytes]] = []
        self.top_file = 0

    def has_room_for(self, op: Put | Drop) -> bool:
        return op.path not in self.paths and not (isinstance(op, Put) and op.file in self.files)

    def add(self, op: Put | Drop, directory: int, name: bytes) -> None:
        self.paths.add(op.path)
        self.names.append((directory, name))
        if isinstance(op, Drop):
            self.drops.append((directory, name))
            return
        meta = op.meta
        self.entries.append(
            (
                directory, name, op.kind, meta.mode, meta.uid, meta.gid, meta.mtime_ns,
                op.size, op.file, op.block_bytes, op.flags, _extra(op, meta),
            )
        )  # fmt: skip
        if op.kind is Kind.FILE:
            self.top_file = max(self.top_file, op.file)
            self.ends.append((op.file, block_count(op.size, op.block_bytes)))
            self.add_map(op)

    def add_map(self, op: Put | Map) -> None:
        file, ids = op.file, op.ids
        self.files.add(file)
        if len(ids) == ID_BYTES:
            self.blocks.append((file, op.blocks[0], ids))
        elif ids:
            self.blocks += [
                (file, number, ids[i * ID_BYTES : (i + 1) * ID_BYTES]) for i, number in enumerate(op.blocks)
            ]
        for first, count in op.zeros:
            self.zeros.append((file, first, first + count - 1))

    def dropped(self, now: int) -> Iterable[tuple[int, bytes, int]]:
        return [(directory, name, now) for directory, name in self.drops]


def _extra(op: Put, meta: Meta) -> bytes | None:
    if not (meta.xattrs or op.target or op.device):
        return None
    return _encoder.encode(Extra(meta.xattrs, op.target, op.device))
