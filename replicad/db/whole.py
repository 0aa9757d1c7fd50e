"""Whole: questions about a ledger as a whole: all its entries in turn, files by number, blocks by id.

**Owns** ways through the tables that have no index: each answers in short pieces, or looks at everything once.
**Never** writes anything but a temporary table. For the ledger's thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from replicad.db.ledger import ENTRY_COLUMNS, BlockRow, Known, Ledger, join

Place = tuple[int, bytes]
"""Where an entry stands in the ledger: directory number and name."""
FIRST_PLACE: Place = (-1, b"")
"""Before every entry."""
BlockPlace = tuple[int, int]
"""File number and block number."""
FIRST_BLOCK: BlockPlace = (-1, -1)
ASKED_FILES = 500
"""File numbers in one question, below SQLite's limit for values."""
_END: BlockPlace = (2**63 - 1, 2**63 - 1)


def entries_from(ledger: Ledger, after: Place, limit: int) -> list[tuple[Place, bytes, Known]]:
    """The next entries of all, in the table's own order: a place to go on after, path, what is recorded."""
    rows = ledger.database.all(
        f"SELECT e.directory, e.name, d.path, {ENTRY_COLUMNS} FROM entry e"
        " LEFT JOIN directory d ON d.id = e.directory WHERE (e.directory, e.name) > (?, ?)"
        " ORDER BY e.directory, e.name LIMIT ?",
        (*after, limit),
    )
    return [
        ((row[0], row[1]), join(row[2], row[1]) if row[2] is not None else b"", Known._make(row[3:])) for row in rows
    ]


def files_numbered(ledger: Ledger, numbers: Iterable[int]) -> dict[int, tuple[bytes, Known]]:
    """The recorded files with these numbers, each with one of its paths. Looks at every entry."""
    found: dict[int, tuple[bytes, Known]] = {}
    wanted = sorted(set(numbers))
    for at in range(0, len(wanted), ASKED_FILES):
        group = wanted[at : at + ASKED_FILES]
        rows = ledger.database.all(
            f"SELECT d.path, e.name, {ENTRY_COLUMNS} FROM entry e JOIN directory d ON d.id = e.directory"
            f" WHERE e.file IN ({','.join('?' * len(group))})",
            group,
        )
        for row in rows:
            known = Known._make(row[2:])
            found[known.file] = (join(row[0], row[1]), known)
    return found


def blocks_named(
    ledger: Ledger, ids: Sequence[bytes], after: BlockPlace, rows: int
) -> tuple[list[BlockRow], BlockPlace | None]:
    """Blocks with one of these ids among the next `rows` rows of all; and where to go on, None at the end."""
    end = ledger.database.one(
        "SELECT file, number FROM block WHERE (file, number) > (?, ?) ORDER BY file, number LIMIT 1 OFFSET ?",
        (*after, rows),
    )
    found = ledger.database.all(
        "SELECT file, number, id, checksum, seq FROM block"
        " WHERE (file, number) > (?, ?) AND (file, number) <= (?, ?)"
        f" AND id IN ({','.join('?' * len(ids))})",
        (*after, *(end or _END), *ids),
    )
    return list(map(BlockRow._make, found)), (end[0], end[1]) if end else None


def note_named(ledger: Ledger, paths: Sequence[bytes] | None) -> None:
    """Remember, for as long as the ledger is open, that another book names these paths; None begins anew."""
    if paths is None:
        ledger.database.execute("DROP TABLE IF EXISTS temp.named")
        ledger.database.execute("CREATE TEMP TABLE named(path BLOB PRIMARY KEY) WITHOUT ROWID")
    else:
        ledger.database.executemany("INSERT OR IGNORE INTO temp.named VALUES(?)", [(path,) for path in paths])


def is_named(ledger: Ledger, path: bytes) -> bool:
    """Whether the path was remembered."""
    return ledger.database.value("SELECT 1 FROM temp.named WHERE path = ?", (path,)) is not None
