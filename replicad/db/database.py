"""Database: SQLite with a checksum on every page. Sole owner of apsw.

The books of the judge are under judgement too: the `cksumvfs` extension (compiled into apsw's extras) writes an
8-byte checksum at the end of each page and verifies it at each read. A page that fails, or a file that is no
database, is a BookDamagedError naming the file; a full disk is a DiskFullError; nothing of apsw escapes.

One `Database` belongs to one thread at a time. Writes go through `transaction()`; the write-ahead log makes
readers on other connections see the last committed state.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import apsw
import apsw.sqlite_extra

from replicad.model.errors import BookDamagedError, DiskFullError, LockedError, ReplicadError

Value = None | int | float | str | bytes
Row = tuple[Any, ...]

PAGE_BYTES = 8192
CACHE_KIB = 16 * 1024
"""SQLite page cache of one connection; with one writer and a few readers a daemon stays within its memory bound."""
LOG_BYTES = 1000 * PAGE_BYTES
"""What is left of a write-ahead log that was longer, once all of it stands in the database: SQLite moves it at 1000
pages."""
BUSY_MS = 30_000
INSERT_ROWS = 64
"""Rows that one statement inserts; beyond it statements become too long to be kept prepared."""
STOP_STEPS = 100_000
"""SQLite's steps between two looks whether to go on: some milliseconds."""
_RESERVED_BYTES = 8
"""What cksumvfs needs at the end of each page; it verifies databases with exactly this reservation."""

REBUILD = "rebuild it: replicad rebuild"
_ERRORS = (apsw.Error, OverflowError)
"""What apsw raises; the second for a number that SQLite's 64 bits do not hold."""

_loading = threading.Lock()
_loaded = False


def _load_checksums() -> None:
    """Register cksumvfs as the process's default VFS, once."""
    global _loaded
    with _loading:
        if not _loaded:
            apsw.sqlite_extra.load(apsw.Connection(":memory:"), "cksumvfs")
            _loaded = True


class Database:
    """One connection to one page-checksummed SQLite file."""

    def __init__(
        self,
        path: Path,
        migrations: Sequence[str],
        *,
        readonly: bool = False,
        oldest: int | None = None,
        remedy: str = REBUILD,
        cache_kib: int = CACHE_KIB,
    ) -> None:
        """Open `path`, creating it when absent, and bring its schema to version `len(migrations)`.

        `migrations[i]` is the SQL script from version i to i+1. With `readonly` the file must exist and have the
        current version, or at least `oldest`: the first one that has all that this reader asks for. `remedy` tells
        the operator what to do about damage. Raises BookDamagedError, DiskFullError, LockedError, ReplicadError
        (newer version).
        """
        _load_checksums()
        self.path, self._remedy = path, remedy
        try:
            self._connection = self._open(path, readonly, cache_kib)
            self._migrate(migrations, readonly, len(migrations) if oldest is None else oldest)
        except apsw.Error as error:
            raise self._mapped(error) from error

    def _open(self, path: Path, readonly: bool, cache_kib: int) -> apsw.Connection:
        flags = apsw.SQLITE_OPEN_READONLY if readonly else apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE
        fresh = not readonly and (not path.exists() or path.stat().st_size == 0)
        connection = apsw.Connection(str(path), flags=flags)
        connection.set_busy_timeout(BUSY_MS)
        if fresh:
            self._reserve(connection)
            connection.execute("PRAGMA journal_mode = wal")
            connection.close()  # cksumvfs starts to verify when a database is opened that has the reservation
            connection = apsw.Connection(str(path), flags=flags)
            connection.set_busy_timeout(BUSY_MS)
        connection.execute(f"PRAGMA cache_size = -{cache_kib}")
        connection.execute(f"PRAGMA journal_size_limit = {LOG_BYTES}")
        connection.execute("PRAGMA synchronous = normal")
        connection.execute("PRAGMA temp_store = file")
        if str(connection.execute("PRAGMA checksum_verification").get) != "1":
            raise BookDamagedError("pages carry no checksums", where=str(path), hint=self._remedy)
        return connection

    @staticmethod
    def _reserve(connection: apsw.Connection) -> None:
        reserved = ctypes.c_int(_RESERVED_BYTES)
        connection.file_control("main", apsw.SQLITE_FCNTL_RESERVE_BYTES, ctypes.addressof(reserved))
        connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        connection.execute("VACUUM")

    def _migrate(self, migrations: Sequence[str], readonly: bool, oldest: int) -> None:
        version = self.value("PRAGMA user_version")
        if version > len(migrations) or (readonly and version < oldest):
            raise ReplicadError(
                f"has schema version {version}, this replicad knows {len(migrations)}",
                where=str(self.path),
                hint="use the replicad that wrote it, or a newer one",
            )
        for number in range(len(migrations) if readonly else version, len(migrations)):
            with self.transaction():
                self._connection.execute(migrations[number])
                self._connection.execute(f"PRAGMA user_version = {number + 1}")

    def close(self) -> None:
        """Close the connection; uncommitted changes are rolled back."""
        self._connection.close()

    @property
    def has_moved(self) -> bool:
        """Whether the file is not at its path any more: somebody moved or removed it while it was open."""
        moved = ctypes.c_int(0)
        self._connection.file_control("main", apsw.SQLITE_FCNTL_HAS_MOVED, ctypes.addressof(moved))
        return bool(moved.value)

    @contextmanager
    def transaction(self, *, durable: bool = False) -> Iterator[None]:
        """All or nothing. Not nested. `durable` as in `begin`."""
        self.begin(durable=durable)
        try:
            yield
        except BaseException:
            self.rollback()
            raise
        self.commit()

    def begin(self, *, durable: bool = False) -> None:
        """Start a write transaction that `commit` or `rollback` ends.

        `durable`: it is on the disk when `commit` returns, and everything committed before it too; else it may still
        be in the operating system's cache.
        """
        self.execute(f"PRAGMA synchronous = {'full' if durable else 'normal'}")
        self.execute("BEGIN IMMEDIATE")

    def begin_reading(self) -> None:
        """Have all questions up to `rollback` answered from one state; whoever writes does not wait for it."""
        self.execute("BEGIN")

    def commit(self) -> None:
        """Make the transaction's changes visible."""
        self.execute("COMMIT")

    def rollback(self) -> None:
        """Undo the transaction, if one is open."""
        if self.in_transaction:
            self.execute("ROLLBACK")

    def empty_log(self) -> None:
        """Give back what the write-ahead log takes, where that can be done at once."""
        self._connection.set_busy_timeout(0)
        try:
            self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        except apsw.Error:
            pass  # somebody reads from it, or there is no room to move it: it stays as long as it is, and works
        finally:
            self._connection.set_busy_timeout(BUSY_MS)

    @property
    def in_transaction(self) -> bool:
        """Whether `begin` was called and not yet ended."""
        return self._connection.in_transaction

    def execute(self, sql: str, values: Sequence[Value] = ()) -> None:
        """Run one statement for its effect."""
        try:
            self._connection.execute(sql, values)
        except _ERRORS as error:
            raise self._mapped(error) from error

    def executemany(self, sql: str, rows: Iterable[Sequence[Value]]) -> None:
        """Run one statement for each row of values."""
        try:
            self._connection.executemany(sql, rows)
        except _ERRORS as error:
            raise self._mapped(error) from error

    def insert(self, into: str, marks: str, rows: Sequence[Sequence[Value]]) -> int:
        """Insert rows, many with one statement: `into` is the statement up to VALUES, `marks` one row's, as in (?, ?).
        How many were.

        Each step of a statement gives up the interpreter's lock; where another thread is busy, a step for each row
        costs more than the row."""
        before = self._connection.total_changes()
        whole = len(rows) - len(rows) % INSERT_ROWS
        if whole:
            statement = f"{into} VALUES {','.join([marks] * INSERT_ROWS)}"
            for at in range(0, whole, INSERT_ROWS):
                self.execute(statement, list(chain.from_iterable(rows[at : at + INSERT_ROWS])))
        if whole < len(rows):
            self.executemany(f"{into} VALUES {marks}", rows[whole:])
        return self._connection.total_changes() - before

    def changes(self) -> int:
        """Rows changed by the last statement."""
        return self._connection.changes()

    def stamp(self) -> tuple[int, int]:
        """A value that is another one after any change of the database, by whomever."""
        return int(self.value("PRAGMA data_version")), self._connection.total_changes()

    def rows(self, sql: str, values: Sequence[Value] = ()) -> Iterator[Row]:
        """The result rows, one by one."""
        try:
            yield from self._connection.execute(sql, values)
        except _ERRORS as error:
            raise self._mapped(error) from error

    def all(self, sql: str, values: Sequence[Value] = ()) -> list[Row]:
        """All result rows; for results known to be small."""
        try:
            return self._connection.execute(sql, values).fetchall()
        except _ERRORS as error:
            raise self._mapped(error) from error

    def each(self, sql: str, rows: Iterable[Sequence[Value]]) -> list[Row]:
        """The result rows of one statement for all rows of values, in their order: a statement of its own for each
        would cost more than what it finds. For results known to be small."""
        try:
            return self._connection.executemany(sql, rows).fetchall()
        except _ERRORS as error:
            raise self._mapped(error) from error

    def one(self, sql: str, values: Sequence[Value] = ()) -> Row | None:
        """The first result row, or None."""
        try:
            row: Row | None = self._connection.execute(sql, values).fetchone()
        except _ERRORS as error:
            raise self._mapped(error) from error
        return row

    def value(self, sql: str, values: Sequence[Value] = ()) -> Any:
        """The first column of the first row, or None."""
        row = self.one(sql, values)
        return row[0] if row else None

    def stop_when(self, stopped: Callable[[], bool]) -> None:
        """End a question that takes long, with ReplicadError, once `stopped` says so."""
        self._connection.set_progress_handler(stopped, STOP_STEPS)

    def verify(self) -> list[str]:
        """Read every page and check the structure; what is wrong in words, empty when sound."""
        try:
            found = [str(text) for (text,) in self._connection.execute("PRAGMA integrity_check(20)")]
        except apsw.Error as error:
            mapped = self._mapped(error)
            if isinstance(mapped, BookDamagedError):
                return [mapped.what]
            raise mapped from error
        return [] if found == ["ok"] else [_named(text) for text in found]

    def _mapped(self, error: apsw.Error | OverflowError) -> ReplicadError:
        """apsw's errors as ours: the one table."""
        where, code = str(self.path), getattr(error, "extendedresult", 0)
        if isinstance(error, (apsw.CorruptError, apsw.NotADBError)):
            return BookDamagedError(f"database is damaged: {error}", where=where, hint=self._remedy)
        if code == apsw.SQLITE_IOERR_DATA:
            return BookDamagedError("a page fails its checksum", where=where, hint=self._remedy)
        if isinstance(error, apsw.FullError) or code == apsw.SQLITE_IOERR_SHMSIZE:  # the log's index found no room
            return DiskFullError("no room left for the book", where=where, hint="free space on this file system")
        if isinstance(error, (apsw.BusyError, apsw.LockedError)):
            return LockedError("another process holds the book", where=where, hint="stop the other replicad first")
        if isinstance(error, apsw.InterruptError):
            return ReplicadError("the question was not answered to its end: the daemon is stopping", where=where)
        return ReplicadError(f"database error: {error}", where=where)


def foreign_problems(path: Path) -> list[str]:
    """What SQLite's integrity check says of a database that is none of ours, empty when it is sound. A journal beside
    it is rolled back. For a process that opens no book: the check is SQLite's own, without our page checksums.

    Raises ReplicadError when it could not be found out."""
    try:
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
        try:
            found = [str(text) for (text,) in connection.execute("PRAGMA integrity_check(20)")]
        finally:
            connection.close()
    except (apsw.CorruptError, apsw.NotADBError) as error:
        return [str(error)]
    except apsw.Error as error:
        raise ReplicadError(f"SQLite cannot check it: {error}", where=str(path)) from error
    return [] if found == ["ok"] else found


def _named(problem: str) -> str:
    """What the integrity check says, with its number for a failed checksum in words."""
    return problem.replace(f"error code={apsw.SQLITE_IOERR_DATA}", "it fails its checksum")
