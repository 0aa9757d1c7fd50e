"""Look up: what a scrub and a pass ask of the ledger about many entries and blocks at once.

**Owns** these questions, each answered along an index and bounded in rows. **Never** changes what the ledger expects:
`learn` adds a checksum where none is known. Belongs to the ledger's thread, inside its transactions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from replicad.db.catalog import LOOKUP_MARKS, lookup_groups
from replicad.db.database import Database
from replicad.db.ledger import ENTRY_COLUMNS, UNSETTLED, BlockRow, Known, join
from replicad.model.entry import Kind


class LookUp:
    """Questions to one ledger."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def named(self, file: int, limit: int) -> list[tuple[bytes, Known]]:
        """Up to `limit` recorded names of the file with this number."""
        rows = self._db.all(
            f"SELECT d.path, e.name, {ENTRY_COLUMNS} FROM entry e JOIN directory d ON d.id = e.directory"
            " WHERE e.file = ? LIMIT ?",
            (file, limit),
        )
        return [(join(row[0], row[1]), Known._make(row[2:])) for row in rows]

    def named_all(self, files: Sequence[int], limit: int) -> dict[int, list[tuple[bytes, Known]]]:
        """The same for many files at once."""
        found: dict[int, list[tuple[bytes, Known]]] = {}
        for group in lookup_groups(files):
            rows = self._db.all(
                f"SELECT d.path, e.name, {ENTRY_COLUMNS} FROM entry e JOIN directory d ON d.id = e.directory"
                f" WHERE e.file IN ({LOOKUP_MARKS}) LIMIT ?",
                (*group, limit * len(group)),
            )
            if len(rows) == limit * len(group):  # some have very many names
                found.update((file, self.named(file, limit)) for file in group)
                continue
            for row in rows:
                known = Known._make(row[2:])
                found.setdefault(known.file, []).append((join(row[0], row[1]), known))
        return found

    def first_blocks(self, files: Sequence[int], end: int) -> dict[int, dict[int, BlockRow]]:
        """Recorded blocks with numbers below `end` of many files at once."""
        found: dict[int, dict[int, BlockRow]] = {}
        for group in lookup_groups(files):
            rows = self._db.all(
                f"SELECT file, number, id, checksum, seq FROM block WHERE file IN ({LOOKUP_MARKS}) AND number < ?",
                (*group, end),
            )
            for row in rows:
                found.setdefault(row[0], {})[row[1]] = BlockRow._make(row)
        return found

    def lacking(self, files: Iterable[int], covered: int, limit: int) -> dict[int, list[BlockRow]]:
        """The first `limit` of each file's blocks that a replica which has everything up to `covered` may not have, by
        number."""
        found: dict[int, list[BlockRow]] = {}
        rows = self._db.each(
            "SELECT file, number, id, checksum, seq FROM block WHERE file = ? AND seq > ? ORDER BY number LIMIT ?",
            [(file, covered, limit) for file in files],
        )
        for row in map(BlockRow._make, rows):
            found.setdefault(row.file, []).append(row)
        return found

    def longer(self, ends: Iterable[tuple[int, int]]) -> set[tuple[int, int]]:
        """Those of these (file, number) from whose number on blocks of the file are recorded, and settled."""
        question = "SELECT ?1, ?2 FROM block WHERE file = ?1 AND number >= ?2 AND seq <> ?3 LIMIT 1"
        return {(file, end) for file, end in self._db.each(question, [(*one, UNSETTLED) for one in ends])}

    def cut(self, files: Iterable[int], covered: int) -> set[int]:
        """Those of these files that were cut, which a replica that has everything up to `covered` may not know."""
        question = "SELECT file FROM cut WHERE file = ? AND seq > ? LIMIT 1"
        return {file for (file,) in self._db.each(question, [(file, covered) for file in files])}

    def files(self, after: tuple[int, bytes], limit: int) -> list[tuple[tuple[int, bytes], bytes, Known]]:
        """The next described regular files, as the table lies: where to go on, path, what is recorded."""
        rows = self._db.all(
            f"SELECT e.directory, d.path, e.name, {ENTRY_COLUMNS} FROM entry e JOIN directory d ON d.id = e.directory"
            " WHERE (e.directory, e.name) > (?, ?) AND +e.file > 0 AND e.size >= 0"
            " ORDER BY e.directory, e.name LIMIT ?",
            (*after, limit),
        )
        return [((row[0], row[2]), join(row[1], row[2]), Known._make(row[3:])) for row in rows]

    def files_below(
        self, path: bytes, after: tuple[bytes, bytes], limit: int
    ) -> list[tuple[tuple[bytes, bytes], bytes, Known]]:
        """The next described regular files below a directory: where to go on, path, what is recorded."""
        rows = self._db.all(
            f"SELECT d.path, e.name, {ENTRY_COLUMNS} FROM directory d JOIN entry e ON e.directory = d.id"
            " WHERE (d.path = ? OR (d.path >= ? AND d.path < ?)) AND (d.path, e.name) > (?, ?)"
            " AND +e.file > 0 AND e.size >= 0 ORDER BY d.path, e.name LIMIT ?",
            (path, path + b"/", path + b"0", *after, limit),
        )
        return [((row[0], row[1]), join(row[0], row[1]), Known._make(row[2:])) for row in rows]

    def size_below(self, path: bytes) -> int:
        """Bytes of the regular files below a directory."""
        size = self._db.value(
            "SELECT coalesce(sum(e.size), 0) FROM directory d JOIN entry e ON e.directory = d.id"
            " WHERE (d.path = ? OR (d.path >= ? AND d.path < ?)) AND +e.file > 0",
            (path, path + b"/", path + b"0"),
        )
        return int(size)

    def name_count(self, file: int) -> int:
        """How many names the file with this number has."""
        return int(self._db.value("SELECT count(*) FROM entry WHERE file = ?", (file,)))

    def without_blocks(self, directory: int, after: bytes | None, limit: int) -> list[tuple[bytes, Known]]:
        """Up to `limit` entries, by name, that are no regular files and were described, directly in the directory with
        this number; their names sort after `after`."""
        path = self._db.value("SELECT path FROM directory WHERE id = ?", (directory,))
        rows = self._db.all(
            f"SELECT name, {ENTRY_COLUMNS} FROM entry WHERE directory = ? AND file = 0 AND kind <> ? AND size >= 0"
            f" AND {'name > ?' if after is not None else '? IS NULL'} ORDER BY name LIMIT ?",
            (directory, Kind.FILE, after, limit),
        )
        return [(join(path, row[0]) if path is not None else b"", Known._make(row[1:])) for row in rows]

    def learn(self, rows: Sequence[BlockRow], checksums: Sequence[bytes]) -> None:
        """Note the checksums of blocks of which only the id was known: bytes that had this id were read. What is
        expected of them does not change."""
        self._db.executemany(
            "UPDATE block SET checksum = ? WHERE file = ? AND number = ? AND id = ? AND checksum = x''",
            [(found, row.file, row.number, row.id) for row, found in zip(rows, checksums, strict=True)],
        )
