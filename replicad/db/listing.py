"""Listing: what a dataset held in one snapshot, read from the catalog beside its writer.

Owns the read-only connection. Every question is answered in pages, so that neither memory nor a read transaction
grows with the tree: rows of a finished snapshot never change in a way that this snapshot could see, so pages read
at different moments fit together.

Order: depth first, names compared as bytes within a directory: a, a/b, a/c, a.txt. So parents come before their
children, and a directory is complete when the first path outside of it appears.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from heapq import merge
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple, TypeVar

from replicad.db.browse import Browse
from replicad.db.catalog import LOOKUP_MARKS, MIGRATIONS, ROOT, BlockPlace, FrameCopy, lookup_groups
from replicad.db.database import CACHE_KIB, Database, Row
from replicad.db.differences import differences
from replicad.db.entries import CUT_COLUMNS, ENTRY_COLUMNS, Place, in_batches, is_cut, length_of, put_of, whole
from replicad.db.inventory import Inventory
from replicad.db.paths import directory_of, page_rows, place_of, subdirectories
from replicad.db.versions import Versions
from replicad.model.block import block_count
from replicad.model.entry import INLINE_BLOCKS, MAP_BLOCKS, Kind, Map, Op, Put
from replicad.model.errors import ReplicadError
from replicad.model.glob import EVERYTHING, Globs
from replicad.model.travel import Difference

Batch = TypeVar("Batch")

OLDEST_LISTED = 1
"""Version of the catalog that has every table and column that is asked for here: a store on a read-only medium, which
nobody can bring up to date, is listed as it is."""
MAX_BEHIND_COMMIT = 10_000
"""Frames that are no blocks and stand behind the last commit, at most: of a pass over a hundred million entries."""


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
    dropped_ns: int = 0
    """When it was dropped; 0 = it is kept."""


class Listing:
    """Reads one catalog. For one thread at a time; may be another one than the writer's."""

    def __init__(self, path: Path, cache_kib: int = CACHE_KIB) -> None:
        """Raises BookDamagedError, ReplicadError (also when there is no catalog)."""
        self._db = Database(path, MIGRATIONS, readonly=True, oldest=OLDEST_LISTED, cache_kib=cache_kib)

    def close(self) -> None:
        """Close the connection."""
        self._db.close()

    def snapshots(self) -> Iterator[SnapshotRow]:
        """All snapshots there ever were, oldest first."""
        for row in self._db.rows("SELECT * FROM snapshot ORDER BY ordinal"):
            yield SnapshotRow(*row)._replace(complete=bool(row[5]))

    def find(self, number: int) -> SnapshotRow | None:
        """A snapshot, kept or dropped; None when there never was one."""
        row = self._db.one("SELECT * FROM snapshot WHERE number = ?", (number,))
        return SnapshotRow(*row) if row else None

    def newest_commit(self) -> bytes:
        """The frame of the last commit, from its copy; b"" where there is none: an older catalog has no copies."""
        if self._db.value("SELECT 1 FROM sqlite_master WHERE name = 'frame_copy'") is None:
            return b""
        digest = self._db.value("SELECT digest FROM snapshot ORDER BY ordinal DESC LIMIT 1")
        page = "SELECT rowid, head FROM frame_copy ORDER BY segment DESC, offset DESC LIMIT ?"
        for row, head in self._db.rows(page, (MAX_BEHIND_COMMIT,)) if digest else ():
            if digest in head:
                found = self._db.one(
                    "SELECT segment, offset, stored, head, payload FROM frame_copy WHERE rowid = ?", (row,)
                )
                return FrameCopy._make(found).frame if found else b""
        return b""

    def places(self, ids: Sequence[bytes]) -> dict[bytes, BlockPlace]:
        """Where these blocks are; those that are not in the store are left out."""
        found: dict[bytes, BlockPlace] = {}
        for group in lookup_groups(ids):
            rows = self._db.all(f"SELECT * FROM block WHERE id IN ({LOOKUP_MARKS})", group)
            found.update((row[0], BlockPlace(*row)) for row in rows)
        return found

    def inventory(self) -> Inventory:
        """Questions about the segments."""
        return Inventory(self._db)

    def operations(self, ordinal: int, globs: Globs) -> Iterator[list[Op]]:
        """The tree at a snapshot as operations, in order, in short lists.

        Entries that match `globs` and the directories above them. A file's blocks stand in its `Put` when the file
        has at most INLINE_BLOCKS, else in the `Map` operations behind it; what is not listed is zero.
        """
        return self._kept([ordinal], in_batches(self._walk(ordinal, globs), length_of))

    def visit(self, ordinal: int, path: bytes, depth: int, *, blocks: bool) -> Iterator[list[Op]]:
        """What stood at `path` in a snapshot, and up to `depth` levels below it, found without a walk; nothing at all
        when nothing stood there. Order and form are those of `operations`, without the directories above; files are
        listed without their blocks unless `blocks` is asked for.
        """
        return self._kept([ordinal], in_batches(self._visit(ordinal, path, depth, blocks), length_of))

    def versions(self) -> Versions:
        """Questions about one path over all snapshots."""
        return Versions(self._db)

    def browse(self) -> Browse:
        """Questions about one place in one snapshot."""
        return Browse(self._db, self._check_kept)

    def differences(self, before: int, after: int, globs: Globs) -> Iterator[list[Difference]]:
        """What differs between two snapshots (ordinals); db/differences.py has order and form."""
        return self._kept([before, after], differences(self._db, before, after, globs))

    def _visit(self, ordinal: int, path: bytes, depth: int, blocks: bool) -> Iterator[Op]:
        place = place_of(self._db, path)
        row = place and self._db.one(
            f"SELECT {ENTRY_COLUMNS} FROM entry WHERE directory = ? AND name = ?"
            " AND born <= ? AND (died IS NULL OR died > ?)",
            (*place, ordinal, ordinal),
        )
        put = put_of(path, row) if row else None
        if put:
            if blocks:
                put = _with_blocks(put, self._inline([put], ordinal))
            yield put
            if blocks and block_count_of(put) > INLINE_BLOCKS:
                yield from self._maps(put, ordinal)
        directory = directory_of(self._db, path) if depth and (put is None or put.kind is Kind.DIRECTORY) else None
        if directory is not None:
            yield from self._below(ordinal, directory, path, depth, blocks)

    def _below(self, ordinal: int, directory: int, path: bytes, depth: int, blocks: bool) -> Iterator[Op]:
        stack = [self._directory(ordinal, directory, path, EVERYTHING, blocks)]
        while stack:
            node = next(stack[-1], None)
            if node is None:
                stack.pop()
            elif node.path != path:  # the root stands in itself
                if node.put:
                    yield self._told(node)
                    if blocks and block_count_of(node.put) > INLINE_BLOCKS:
                        yield from self._maps(node.put, ordinal)
                if node.directory is not None and len(stack) < depth:
                    stack.append(self._directory(ordinal, node.directory, node.path, EVERYTHING, blocks))

    def _kept(self, ordinals: Sequence[int], batches: Iterable[Batch]) -> Iterator[Batch]:
        """What was read of these snapshots while they were kept."""
        for batch in batches:
            for ordinal in ordinals:
                self._check_kept(ordinal)
            yield batch
        for ordinal in ordinals:
            self._check_kept(ordinal)

    def _check_kept(self, ordinal: int) -> None:
        """Whether the snapshot was still kept when what was read of it was read: the rows of one that is dropped go."""
        row = self._db.one("SELECT * FROM snapshot WHERE ordinal = ?", (ordinal,))
        if row and SnapshotRow(*row).dropped_ns:
            text = f"snapshot {row[1]} was dropped by the replica's retention while it was listed"
            raise ReplicadError(text, where=str(self._db.path), hint="take a snapshot that is kept, and pin it")

    def _walk(self, ordinal: int, globs: Globs) -> Iterator[Op]:
        """Depth first, with a stack of open directories."""
        waiting: list[_Node] = []  # directories on the way down, told once something in them matches
        stack = [self._directory(ordinal, ROOT, b"", globs)]
        while stack:
            node = next(stack[-1], None)
            if node is None:
                stack.pop()
                continue
            while waiting and not _holds(waiting[-1].path, node.path):
                waiting.pop()
            if node.put and node.matches:
                yield from map(self._told, (*waiting, node))
                waiting.clear()
                if block_count_of(node.put) > INLINE_BLOCKS:
                    yield from self._maps(node.put, ordinal)
            elif node.put and node.put.kind is Kind.DIRECTORY:
                waiting.append(node)
            if node.directory is not None and globs.below(node.path):
                stack.append(self._directory(ordinal, node.directory, node.path, globs))

    def _directory(
        self, ordinal: int, directory: int, path: bytes, globs: Globs, blocks: bool = True
    ) -> Iterator[_Node]:
        """What stands in one directory by name: entries, and directories that have or had something in them.

        Such a directory may have no entry of its own (that could not be copied); what it holds is told all the same.
        """
        prefix = path + b"/" if path else b""
        both = merge(
            self._entries(ordinal, directory, prefix, globs, blocks),
            self._subdirectories(directory, prefix),
            key=_path,
        )
        for _, same in groupby(both, _path):
            node, *others = same  # the merge is stable: an entry comes before the directory of its name
            yield node._replace(directory=others[0].directory) if others else node

    def _entries(self, ordinal: int, directory: int, prefix: bytes, globs: Globs, with_blocks: bool) -> Iterator[_Node]:
        after, first, limit = b"", directory == ROOT, page_rows(prefix)
        while True:
            rows = self._db.all(
                f"SELECT {CUT_COLUMNS}, born, name FROM entry"
                f" WHERE directory = ? AND name {'>=' if first else '>'} ?"
                " AND born <= ? AND (died IS NULL OR died > ?) ORDER BY name LIMIT ?",
                (directory, after, ordinal, ordinal, limit),
            )
            puts = [(put_of(prefix + row[-1], row), globs(prefix + row[-1])) for row in rows]
            wanted = [put for put, matches in puts if matches] if with_blocks else []
            blocks = self._inline(wanted, ordinal)
            for row, (put, matches) in zip(rows, puts, strict=True):
                rest = (directory, row[-1], row[-2]) if is_cut(row) else None
                yield _Node(put.path, _with_blocks(put, blocks) if matches else put, matches, None, rest)
            if len(rows) < limit:
                return
            after, first = rows[-1][-1], False

    def _subdirectories(self, directory: int, prefix: bytes) -> Iterator[_Node]:
        found = subdirectories(self._db, directory, page_rows(prefix))
        return (_Node(prefix + name, None, False, number) for name, number in found)

    def _told(self, node: _Node) -> Put:
        assert node.put
        return whole(self._db, node.put, node.rest) if node.rest else node.put

    def _inline(self, puts: list[Put], ordinal: int) -> dict[int, list[Row]]:
        """(file, number, id) of the blocks of those files that list them in their `Put`, by file."""
        files = list({put.file for put in puts if 0 < block_count_of(put) <= INLINE_BLOCKS})
        found: dict[int, list[Row]] = {}
        for group in lookup_groups(files):
            rows = self._db.all(
                f"SELECT file, number, id FROM file_block WHERE file IN ({LOOKUP_MARKS}) AND number < ?"
                " AND born <= ? AND (died IS NULL OR died > ?) ORDER BY file, number",
                (*group, INLINE_BLOCKS, ordinal, ordinal),
            )
            for row in rows:
                found.setdefault(row[0], []).append(row)
        return found

    def _maps(self, put: Put, ordinal: int) -> Iterator[Map]:
        after, end = -1, block_count_of(put)
        while True:
            rows = self._db.all(
                "SELECT number, id FROM file_block WHERE file = ? AND number > ? AND number < ?"
                " AND born <= ? AND (died IS NULL OR died > ?) ORDER BY number LIMIT ?",
                (put.file, after, end, ordinal, ordinal, MAP_BLOCKS),
            )
            if rows:
                yield Map(put.file, tuple(row[0] for row in rows), b"".join(row[1] for row in rows))
                after = rows[-1][0]
            if len(rows) < MAP_BLOCKS:
                return


def block_count_of(put: Put) -> int:
    """Blocks of the file; 0 for what is no file."""
    return block_count(put.size, put.block_bytes) if put.kind is Kind.FILE else 0


class _Node(NamedTuple):
    """One name in a directory."""

    path: bytes
    put: Put | None
    matches: bool
    directory: int | None
    """Where to look for what is in it."""
    rest: Place | None = None
    """Where to look for what is long in the entry."""


_path = attrgetter("path")


def _holds(directory: bytes, path: bytes) -> bool:
    return not directory or path.startswith(directory + b"/")


def _with_blocks(put: Put, blocks: dict[int, list[Row]]) -> Put:
    count = block_count_of(put)
    rows = blocks.get(put.file) if count <= INLINE_BLOCKS else None
    if not rows:
        return put
    if rows[-1][1] >= count:  # another name of the file is longer: a pass is under way
        rows = [row for row in rows if row[1] < count]
    numbers, ids = tuple(row[1] for row in rows), b"".join([row[2] for row in rows])
    head = (put.path, put.kind, put.meta, put.size, put.file, put.block_bytes, put.flags, put.target, put.device)
    return Put(*head, numbers, ids)
