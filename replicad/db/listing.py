"""Listing: what a dataset held in one snapshot, read from the catalog beside its writer.

Owns the read-only connection. Every question is answered in pages, so that neither memory nor a read transaction
grows with the tree: rows of a finished snapshot never change in a way that this snapshot could see, so pages read
at different moments fit together.

Order: depth first, names compared as bytes within a directory: a, a/b, a/c, a.txt. So parents come before their
children, and a directory is complete when the first path outside of it appears.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import msgspec

from replicad.db.catalog import MIGRATIONS, ROOT, BlockPlace, Extra
from replicad.db.database import Database, Row
from replicad.model.block import block_count
from replicad.model.entry import INLINE_BLOCKS, MAP_BLOCKS, Kind, Map, Meta, Op, Put
from replicad.model.glob import Globs
from replicad.model.position import Position

PAGE_ROWS = 1000
"""Entries of one directory read at once."""
BATCH_OPS = 1000
BATCH_BYTES = 512 * 1024
"""A list of operations ends when it is about this long; with one more operation it stays well below a message."""


class SnapshotRow(NamedTuple):
    """One snapshot. `lost` counts the record frames that are missing in it."""

    ordinal: int
    number: int
    digest: bytes
    created_ns: int
    received_ns: int
    complete: bool
    entries: int
    size: int
    unread: int
    lost: int


class Listing:
    """Reads one catalog. For one thread at a time; may be another one than the writer's."""

    def __init__(self, path: Path) -> None:
        """Raises BookDamagedError, ReplicadError (also when there is no catalog)."""
        self._db = Database(path, MIGRATIONS, readonly=True)

    def close(self) -> None:
        """Close the connection."""
        self._db.close()

    def snapshots(self) -> Iterator[SnapshotRow]:
        """All snapshots, oldest first."""
        for row in self._db.rows("SELECT * FROM snapshot ORDER BY ordinal"):
            yield SnapshotRow(*row)._replace(complete=bool(row[5]))

    def ordinal(self, number: int) -> int | None:
        """The ordinal of a snapshot; None when there is no such snapshot."""
        found: int | None = self._db.value("SELECT ordinal FROM snapshot WHERE number = ?", (number,))
        return found

    def places(self, ids: Sequence[bytes]) -> dict[bytes, BlockPlace]:
        """Where these blocks are; those that are not in the store are left out."""
        rows = self._db.each("SELECT * FROM block WHERE id = ?", [(id_,) for id_ in ids])
        return {row[0]: BlockPlace(*row) for row in rows}

    def damage(self) -> list[tuple[int, int, int, str]]:
        """(segment, offset, length, reason) of all damage that the writer found."""
        return [(s, o, n, r) for s, o, n, r in self._db.rows("SELECT segment, offset, length, reason FROM damage")]

    def checkpoint(self) -> Position:
        """Up to here the segments are in the catalog."""
        meta = dict[str, bytes | int](self._db.all("SELECT key, value FROM meta"))
        if "running" not in meta:
            return Position()
        return Position(int(meta["segment"]), int(meta["offset"]), int(meta["frames"]), bytes(meta["running"]))

    def operations(self, ordinal: int, globs: Globs) -> Iterator[list[Op]]:
        """The tree at a snapshot as operations, in order, in short lists.

        Entries that match `globs` and the directories above them. A file's blocks stand in its `Put` when the file
        has at most INLINE_BLOCKS, else in the `Map` operations behind it; what is not listed is zero.
        """
        batch: list[Op] = []
        size = 0
        for op in self._walk(ordinal, globs):
            batch.append(op)
            size += _length(op)
            if len(batch) >= BATCH_OPS or size >= BATCH_BYTES:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    def _walk(self, ordinal: int, globs: Globs) -> Iterator[Op]:
        """Depth first with a stack of open directories: one page of entries each."""
        waiting: list[Put] = []
        """Directories on the way down that are told only once something in them matches."""
        stack = [self._directory(ordinal, ROOT, b"")]
        while stack:
            node = next(stack[-1], None)
            if node is None:
                stack.pop()
                continue
            while waiting and not _holds(waiting[-1].path, node.path):
                waiting.pop()
            if node.put is not None:
                if globs(node.path):
                    yield from waiting
                    waiting.clear()
                    yield node.put
                    yield from self._maps(node.put, ordinal)
                elif node.put.kind is Kind.DIRECTORY:
                    waiting.append(node.put)
            if node.directory is not None and globs.below(node.path):
                stack.append(self._directory(ordinal, node.directory, node.path))

    def _directory(self, ordinal: int, directory: int, path: bytes) -> Iterator[_Node]:
        """The entries of one directory by name, each with the directory of that name if there ever was one.

        A directory may have entries without having one itself (its own could not be copied): they are told too.
        """
        prefix = path + b"/" if path else b""
        after = b"" if directory != ROOT else None
        while True:
            rows = self._page(ordinal, directory, after)
            blocks = self._inline(rows, ordinal)
            for row in rows:
                put = None if row[1] is None else _put(prefix + row[0], row, blocks)
                yield _Node(prefix + row[0], put, row[-1])
            if len(rows) < PAGE_ROWS:
                return
            after = rows[-1][0]

    def _page(self, ordinal: int, directory: int, after: bytes | None) -> list[Row]:
        entries = self._db.all(
            "SELECT e.name, e.kind, e.mode, e.uid, e.gid, e.mtime_ns, e.size, e.file, e.block_bytes, e.flags, e.extra,"
            " CASE WHEN e.kind = ? THEN d.id END FROM entry e"
            " LEFT JOIN directory d ON e.kind = ? AND d.parent = e.directory AND d.name = e.name AND d.id != ?"
            " WHERE e.directory = ? AND e.name > ? AND e.born <= ? AND (e.died IS NULL OR e.died > ?)"
            " ORDER BY e.name LIMIT ?",
            (Kind.DIRECTORY, Kind.DIRECTORY, ROOT, directory, after, ordinal, ordinal, PAGE_ROWS),
        )
        return entries
