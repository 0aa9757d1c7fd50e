"""Remembered: what a restore has to know again later, on disk, so that memory does not grow with the tree.

Hard links are made and directories get their times when everything else is done: both wait here, and so do the names
that belong in directories which existed before (what else is in them is extra). A temporary database, gone at the end.
For one thread at a time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from replicad.db.database import Database, Row
from replicad.model.entry import Op, Put, decode_ops, encode_ops
from replicad.source.root import signed
from replicad.work.account import Fate

PAGE_ROWS = 1000
"""Rows taken at a time when walking through what was remembered."""
FILE_BITS = 2**26
"""Bits of the map that tells whether a file number was seen (8 MiB). Numbers are dense, so up to 67 million files it is
exact; beyond, a hit is looked up."""

SCHEMA = """
CREATE TABLE first (file INTEGER PRIMARY KEY, path BLOB NOT NULL);
CREATE TABLE link (number INTEGER PRIMARY KEY, path BLOB NOT NULL, file INTEGER NOT NULL);
CREATE TABLE directory (number INTEGER PRIMARY KEY, put BLOB NOT NULL, existed INTEGER NOT NULL,
    place INTEGER NOT NULL);
CREATE TABLE listed (path BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE replaced (path BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE belongs (path BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE inode (device INTEGER, inode INTEGER, file INTEGER NOT NULL, PRIMARY KEY (device, inode)) WITHOUT ROWID;
CREATE TABLE fate (file INTEGER PRIMARY KEY, fate INTEGER NOT NULL);
"""


class Remembered:
    """One restore's memory."""

    def __init__(self, directory: Path | None = None) -> None:
        """`directory` is where the temporary database lives; None: where the system wants temporary files."""
        self._place = tempfile.TemporaryDirectory(prefix="replicad-restore-", dir=directory)
        self._book = Database(Path(self._place.name) / "restore.db", [SCHEMA])
        self._book.begin()
        self._seen = bytearray(FILE_BITS // 8)
        self._first: list[tuple[int, bytes]] = []
        self._belongs: list[tuple[bytes]] = []
        self._linked = 0
        """The last link that was given out to be made."""

    def close(self) -> None:
        """Forget everything."""
        self._book.close()
        self._place.cleanup()

    def is_first(self, file: int, path: bytes) -> bool:
        """Whether this is the first path of the file; remembers it then."""
        bit = file % FILE_BITS
        if self._seen[bit >> 3] >> (bit & 7) & 1 and self.first_path(file) is not None:
            return False
        self._seen[bit >> 3] |= 1 << (bit & 7)
        self._first.append((file, path))
        if len(self._first) >= PAGE_ROWS:
            self._flush()
        return True

    def first_path(self, file: int) -> bytes | None:
        """The first path of a file, None when it has none."""
        self._flush()
        path: bytes | None = self._book.value("SELECT path FROM first WHERE file = ?", (file,))
        return path

    def add_link(self, put: Put) -> None:
        """One more path of a file that has a first one."""
        self._book.execute("INSERT INTO link (path, file) VALUES (?, ?)", (put.path, put.file))

    def is_listed(self, path: bytes) -> bool:
        """Whether this directory came before, where a record is gone through several times; it has come now."""
        self._book.execute("INSERT OR IGNORE INTO listed VALUES (?)", (path,))
        return not self._book.changes()

    def add_directory(self, put: Put, existed: bool, place: int = 0) -> None:
        """A directory, parents before children. `place`: the class of a restore order at which it came."""
        values = (encode_ops([put]), existed, place)
        self._book.execute("INSERT INTO directory (put, existed, place) VALUES (?, ?, ?)", values)

    def add_belonging(self, path: bytes) -> None:
        """An entry of a directory that existed before."""
        self._belongs.append((path,))
        if len(self._belongs) >= PAGE_ROWS:
            self._flush()

    def belongs(self, path: bytes) -> bool:
        """Whether the record has this entry."""
        self._flush()
        return self._book.one("SELECT 1 FROM belongs WHERE path = ?", (path,)) is not None

    def claim(self, device: int, inode: int, file: int) -> bool:
        """Let an existing inode with several names stand for `file`; False when it stands for another file already."""
        key = (device, signed(inode))
        holder = self._book.value("SELECT file FROM inode WHERE device = ? AND inode = ?", key)
        if holder is None:
            self._book.execute("INSERT INTO inode VALUES (?, ?, ?)", (*key, file))
        return holder in (None, file)

    def add_fates(self, files: Sequence[tuple[int, Fate]]) -> None:
        """What became of these files."""
        self._book.executemany("INSERT OR REPLACE INTO fate VALUES (?, ?)", files)

    def fate(self, file: int) -> Fate | None:
        """What became of a file; None when it is simply there."""
        found = self._book.value("SELECT fate FROM fate WHERE file = ?", (file,))
        return None if found is None else Fate(found)

    def links(self) -> Iterator[tuple[bytes, int]]:
        """(path, file) of all further paths that were not given out yet, in the order of the record."""
        page = "SELECT number, path, file FROM link WHERE number > ? ORDER BY number LIMIT ?"
        for number, path, file in self._walk(page, self._linked):
            self._linked = number
            yield path, file

    @property
    def directory_count(self) -> int:
        """How many directories there are so far."""
        return int(self._book.value("SELECT max(number) FROM directory") or 0)

    def directories(self, after: int = 0) -> Iterator[tuple[Put, bool, int]]:
        """All directories but the first `after` ones, with whether they existed before and at which place they came,
        children before parents."""
        page = f"SELECT number, put, existed, place FROM directory WHERE number < ? AND number > {after:d}"
        page += " ORDER BY number DESC LIMIT ?"
        for _, data, existed, place in self._walk(page, self.directory_count + 1):
            put: Op = decode_ops(data)[0]
            assert isinstance(put, Put)
            yield put, bool(existed), place

    def add_replaced(self, paths: Sequence[bytes]) -> None:
        """Files of the target whose content a restore would replace or remove."""
        self._book.executemany("INSERT OR IGNORE INTO replaced VALUES (?)", [(path,) for path in paths])

    def is_replaced(self, path: bytes) -> bool:
        """Whether this is such a file."""
        return self._book.one("SELECT 1 FROM replaced WHERE path = ?", (path,)) is not None

    def has_replaced(self) -> bool:
        """Whether there are any that were not settled."""
        return self._book.one("SELECT 1 FROM replaced LIMIT 1") is not None

    def has_replaced_name(self) -> bool:
        """Whether one of them stands where a further path of a file belongs."""
        return self._book.one("SELECT 1 FROM link WHERE path IN (SELECT path FROM replaced) LIMIT 1") is not None

    def settle_replaced(self, path: bytes) -> None:
        """The history has what this file holds now."""
        self._book.execute("DELETE FROM replaced WHERE path = ?", (path,))

    def replaced(self) -> Iterator[bytes]:
        """Those that were not settled, by path."""
        after = b""
        while rows := self._book.all(
            "SELECT path FROM replaced WHERE path > ? ORDER BY path LIMIT ?", (after, PAGE_ROWS)
        ):
            yield from (path for (path,) in rows)
            after = rows[-1][0]

    def _walk(self, page: str, last: int) -> Iterator[Row]:
        while rows := self._book.all(page, (last, PAGE_ROWS)):
            yield from rows
            last = rows[-1][0]

    def _flush(self) -> None:
        if self._first:
            self._book.executemany("INSERT OR IGNORE INTO first VALUES (?, ?)", self._first)
            self._first.clear()
        if self._belongs:
            self._book.executemany("INSERT OR IGNORE INTO belongs VALUES (?)", self._belongs)
            self._belongs.clear()
