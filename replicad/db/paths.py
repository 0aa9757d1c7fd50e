"""Paths: from a path to its place in the catalog and back, one indexed question for each directory on the way."""

from __future__ import annotations

from collections.abc import Iterator

from replicad.db.catalog import ROOT
from replicad.db.database import Database

PAGE_ROWS = 256
"""Rows of one directory asked for at once."""
DEEP = 32
"""Directories above that may all have a page of their own."""
DEEP_ROWS = 8
"""Rows asked for at once below them: a walk holds a page of each directory on the way, which may be thousands."""


def directory_of(database: Database, path: bytes) -> int | None:
    """The id of a directory; None when nothing ever stood in a directory of that path."""
    number: int | None = ROOT
    for name in path.split(b"/") if path else ():
        number = database.value("SELECT id FROM directory WHERE parent = ? AND name = ?", (number, name))
        if number is None:
            return None
    return number


def place_of(database: Database, path: bytes) -> tuple[int, bytes] | None:
    """Directory id and name of a path; None when nothing ever stood in its directory."""
    if not path:
        return ROOT, b""
    parent, _, name = path.rpartition(b"/")
    directory = directory_of(database, parent)
    return None if directory is None else (directory, name)


def page_rows(prefix: bytes) -> int:
    """How many rows of a directory to ask for at once; `prefix` is what stands before a name in it."""
    return PAGE_ROWS if prefix.count(b"/") <= DEEP else DEEP_ROWS


def subdirectories(database: Database, directory: int, limit: int) -> Iterator[tuple[bytes, int]]:
    """(name, id) of every directory that ever stood in one, by name, `limit` asked for at once."""
    after = b""
    while True:
        rows = database.all(
            "SELECT name, id FROM directory WHERE parent = ? AND name > ? ORDER BY name LIMIT ?",
            (directory, after, limit),
        )
        yield from rows
        if len(rows) < limit:
            return
        after = rows[-1][0]


def path_of(database: Database, directory: int, name: bytes) -> bytes:
    """The path of a name in a directory."""
    parts = [name] if name else []
    while directory != ROOT:
        row = database.one("SELECT parent, name FROM directory WHERE id = ?", (directory,))
        if row is None:
            break  # a catalog that lost a directory: what is left of the path is better than nothing
        directory, part = row
        parts.append(part)
    return b"/".join(reversed(parts))
