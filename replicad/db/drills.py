"""Drills: the book of one dataset's drills: their history, when each file was drilled last, and what is chosen now.

**Owns** one database, a book of its own beside ledger and findings. Files go by the ledger's file number, so that a
rename is no new file; each replica has its own times, because each holds a copy of its own. What a running drill has
chosen stands in tables too: a million files need no memory.

**Never** gives a time to a file that was not proven; one that was found wrong loses the one it had.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec

from replicad.db.database import Database
from replicad.model.drill import Amount, DrillRecord, Outcome, failure_of

REMEDY = "move the file away: drills begin anew, and so does their history"
MAX_KEPT = 10_000
"""Drills in the history; a drill a day for 27 years."""
PAGE_ROWS = 500
"""Chosen files that are given at once."""
WRONG_NS = -1
"""In place of its last time where a drill found a file wrong: the next sample takes it before all others, so that none
is proven, and makes up for the failure, without having looked at it."""
_SPREAD = 2654435761
"""Multiplier that scatters file numbers, so that of many files never drilled a drill takes some from everywhere."""

MIGRATIONS = (
    """
    CREATE TABLE meta(key TEXT PRIMARY KEY, value) WITHOUT ROWID;
    CREATE TABLE drill(
        number INTEGER PRIMARY KEY, replica TEXT NOT NULL, ended_ns INTEGER NOT NULL, outcome TEXT NOT NULL,
        estimate_s REAL NOT NULL, body BLOB NOT NULL);
    CREATE INDEX drill_replica ON drill(replica, outcome);
    CREATE TABLE file(
        replica TEXT, file INTEGER, size INTEGER NOT NULL, drilled_ns INTEGER NOT NULL, seen INTEGER NOT NULL,
        PRIMARY KEY(replica, file)) WITHOUT ROWID;
    CREATE TABLE chosen(
        path BLOB PRIMARY KEY, file INTEGER NOT NULL, size INTEGER NOT NULL, block_bytes INTEGER NOT NULL,
        digest BLOB NOT NULL, is_proven INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
    CREATE TABLE subject(
        path BLOB, validator INTEGER, is_directory INTEGER NOT NULL, PRIMARY KEY(path, validator)) WITHOUT ROWID;
    """,
)
"""Version history: 1 = first."""

Result = TypeVar("Result")
_encode = msgspec.msgpack.Encoder().encode
_record = msgspec.msgpack.Decoder(DrillRecord)


class Chosen(NamedTuple):
    """A file that a drill has chosen, and what the ledger expects of it (work/drill_digest.py)."""

    path: bytes
    file: int
    size: int
    block_bytes: int
    digest: bytes


class Subject(NamedTuple):
    """What a validator looks at; `validator` is its place in the configuration."""

    path: bytes
    validator: int
    is_directory: bool


class Coverage(NamedTuple):
    """How far drills have come through a dataset on one replica."""

    total: Amount
    never: int
    """Files that were never drilled, or found wrong when they were."""
    oldest_ns: int
    """Every file but those was drilled after this; 0 = none was."""


class Drills:
    """One dataset's drills. One thread at a time; other processes may read it too."""

    def __init__(self, path: Path, *, readonly: bool = False) -> None:
        """Open or create. Raises BookDamagedError, DiskFullError, LockedError."""
        self.path = path
        self._db = Database(path, MIGRATIONS, readonly=readonly, remedy=REMEDY)

    def close(self) -> None:
        """Close the book."""
        self._db.close()

    # remembered values

    def get(self, key: str) -> int:
        """A remembered number, 0 when absent."""
        return int(self._db.value("SELECT value FROM meta WHERE key = ?", (key,)) or 0)

    def put(self, key: str, value: int) -> None:
        """Remember a number."""
        self._durably(lambda: self._db.execute("INSERT OR REPLACE INTO meta VALUES(?, ?)", (key, value)))

    # history

    def add(self, record: DrillRecord) -> DrillRecord:
        """Remember a drill; the record with its number. What the drill had proven counts as drilled with it."""

        def write() -> DrillRecord:
            number = int(self._db.value("SELECT coalesce(max(number), 0) + 1 FROM drill"))
            numbered = msgspec.structs.replace(record, number=number)
            self._db.execute(
                "INSERT INTO drill VALUES(?, ?, ?, ?, ?, ?)",
                (
                    number, record.replica, record.ended_ns, record.outcome.value, record.estimate_s,
                    _encode(numbered),
                ),
            )  # fmt: skip
            self._db.execute("DELETE FROM drill WHERE number <= ?", (number - MAX_KEPT,))
            return numbered

        return self._durably(write)

    def history(self, replica: str | None = None, limit: int = MAX_KEPT) -> list[DrillRecord]:
        """The last drills, oldest first, of one replica or of all."""
        rows = self._db.all(
            "SELECT body FROM drill WHERE ? IS NULL OR replica = ? ORDER BY number DESC LIMIT ?",
            (replica, replica, limit),
        )
        return [_record.decode(body) for (body,) in reversed(rows)]

    def record(self, number: int) -> DrillRecord | None:
        """The drill with this number, None when it is not in the history."""
        body = self._db.value("SELECT body FROM drill WHERE number = ?", (number,))
        return _record.decode(body) if body else None

    def proven(self, replica: str, limit: int) -> list[DrillRecord]:
        """The last drills of the dataset that were proven, oldest first. Of paths that a person chose nothing follows
        for the dataset."""
        found: list[DrillRecord] = []
        query = "SELECT body FROM drill WHERE replica = ? AND outcome = ? ORDER BY number DESC"
        for (body,) in self._db.rows(query, (replica, Outcome.PROVEN.value)):
            record = _record.decode(body)
            if record.kind != "paths":
                found.append(record)
            if len(found) == limit:
                break
        return found[::-1]

    def failure(self, replica: str) -> DrillRecord | None:
        """The failure that stands, however many drills found nothing out since."""
        query = "SELECT body FROM drill WHERE replica = ? AND outcome <> ? ORDER BY number DESC"
        rows = self._db.rows(query, (replica, Outcome.INCONCLUSIVE.value))
        return failure_of(_record.decode(body) for (body,) in rows)

    def counts(self, replica: str) -> dict[str, int]:
        """How many drills had each outcome."""
        return dict(self._db.all("SELECT outcome, count(*) FROM drill WHERE replica = ? GROUP BY outcome", (replica,)))

    # when each file was drilled

    def see(self, replica: str, files: Sequence[tuple[int, int]], round_number: int) -> None:
        """These (file, size) are in the dataset, as a look that is called `round_number` finds."""
        rows = [(replica, file, size, 0, round_number) for file, size in files]

        def write() -> None:
            self._db.executemany(
                "INSERT INTO file VALUES(?, ?, ?, ?, ?)"
                " ON CONFLICT DO UPDATE SET size = excluded.size, seen = excluded.seen",
                rows,
            )

        self._at_once(write)

    def forget_unseen(self, replica: str, round_number: int) -> None:
        """Forget the files that the look did not find."""
        self._at_once(
            lambda: self._db.execute("DELETE FROM file WHERE replica = ? AND seen <> ?", (replica, round_number))
        )

    def coverage(self, replica: str) -> Coverage:
        """How far drills have come."""
        row = self._db.one(
            "SELECT count(*), coalesce(sum(size), 0), coalesce(sum(drilled_ns <= 0), 0),"
            " coalesce(min(iif(drilled_ns > 0, drilled_ns, NULL)), 0) FROM file WHERE replica = ?",
            (replica,),
        )
        assert row is not None
        return Coverage(Amount(row[0], row[1]), row[2], row[3])

    def by_age(self, replica: str, now_ns: int) -> Iterator[tuple[int, int, int]]:
        """(file, size, drilled_ns), what was found wrong first, then least recently drilled. A time after `now_ns` is
        that of a clock that has been put right since, and counts as none. Nothing may be written before its end."""
        yield from self._db.rows(
            "SELECT file, size, iif(drilled_ns > ?, 0, drilled_ns) AS at FROM file WHERE replica = ?"
            f" ORDER BY at, (file * {_SPREAD}) % 4294967296, file",
            (now_ns, replica),
        )

    def wrong_left(self, replica: str) -> int:
        """How many files that were found wrong are not chosen now."""
        return int(
            self._db.value(
                "SELECT count(*) FROM file WHERE replica = ? AND drilled_ns < 0"
                " AND file NOT IN (SELECT file FROM chosen)",
                (replica,),
            )
        )

    # what the drill under way has chosen

    def begin_choice(self) -> None:
        """Forget what an earlier drill had chosen."""

        def write() -> None:
            self._db.execute("DELETE FROM chosen")
            self._db.execute("DELETE FROM subject")

        self._at_once(write)

    def choose(self, files: Sequence[Chosen]) -> None:
        """These files are to be drilled; one that is chosen already stays as it is."""
        self._at_once(
            lambda: self._db.executemany(
                "INSERT OR IGNORE INTO chosen(path, file, size, block_bytes, digest) VALUES(?, ?, ?, ?, ?)", files
            )
        )

    def add_subject(self, subject: Subject) -> None:
        """This is to be validated."""
        self._at_once(lambda: self._db.execute("INSERT OR IGNORE INTO subject VALUES(?, ?, ?)", subject))

    def is_subject(self, subject: Subject) -> bool:
        """Whether it is to be validated already."""
        query = "SELECT 1 FROM subject WHERE path = ? AND validator = ?"
        return self._db.value(query, (subject.path, subject.validator)) is not None

    def is_chosen(self, path: bytes) -> bool:
        """Whether this file is to be drilled."""
        return self._db.value("SELECT 1 FROM chosen WHERE path = ?", (path,)) is not None

    def has_subject(self, path: bytes) -> bool:
        """Whether a validator looks at this directory as a whole."""
        found = self._db.value("SELECT 1 FROM subject WHERE path = ? AND is_directory LIMIT 1", (path,))
        return found is not None

    def amount(self) -> Amount:
        """How much is chosen; a file with several names counts with each, as it is read back by each."""
        row = self._db.one("SELECT count(*), coalesce(sum(size), 0) FROM chosen")
        assert row is not None
        return Amount(row[0], row[1])

    def room_bytes(self) -> int:
        """What the chosen files take; a file with several names takes it once."""
        return int(self._db.value("SELECT coalesce(sum(size), 0) FROM (SELECT DISTINCT file, size FROM chosen)"))

    def chosen(self, after: bytes | None) -> list[Chosen]:
        """The next chosen files by path."""
        rows = self._db.all(
            "SELECT path, file, size, block_bytes, digest FROM chosen"
            " WHERE ? IS NULL OR path > ? ORDER BY path LIMIT ?",
            (after, after, PAGE_ROWS),
        )
        return [Chosen._make(row) for row in rows]

    def subjects(self, after: Subject | None) -> list[Subject]:
        """The next subjects, the deepest first of those that lie in one another."""
        rows = self._db.all(
            "SELECT path, validator, is_directory FROM subject WHERE ? IS NULL OR (path, validator) < (?, ?)"
            " ORDER BY path DESC, validator DESC LIMIT ?",
            (after and after.path, after and after.path, after and after.validator, PAGE_ROWS),
        )
        return [Subject(path, validator, bool(is_directory)) for path, validator, is_directory in rows]

    def mark_proven(self, paths: Sequence[bytes]) -> None:
        """These came back and are what the ledger says."""
        self._at_once(
            lambda: self._db.executemany("UPDATE chosen SET is_proven = 1 WHERE path = ?", [(p,) for p in paths])
        )

    def mark_wrong(self, paths: Sequence[bytes]) -> None:
        """These did not come back, or are not what the ledger says."""
        self._at_once(
            lambda: self._db.executemany("UPDATE chosen SET is_proven = -1 WHERE path = ?", [(p,) for p in paths])
        )

    def unprove(self, path: bytes, *, is_wrong: bool) -> None:
        """A validator found this file, or what is below this directory, wrong, or could not say."""
        self._at_once(
            lambda: self._db.execute(
                "UPDATE chosen SET is_proven = min(is_proven, ?) WHERE path = ? OR (path >= ? AND path < ?)",
                (-1 if is_wrong else 0, path, path + b"/", path + b"0"),
            )
        )

    def settle(self, replica: str, at_ns: int) -> None:
        """What was proven counts as drilled at `at_ns`, what was found wrong as never."""

        def write() -> None:
            for at, mark in ((at_ns, 1), (WRONG_NS, -1)):
                self._db.execute(
                    "UPDATE file SET drilled_ns = ? WHERE replica = ? AND file IN"
                    " (SELECT file FROM chosen GROUP BY file HAVING min(is_proven) = ?)",
                    (at, replica, mark),
                )

        self._durably(write)

    # below: how

    def _at_once(self, write: Callable[[], Result]) -> Result:
        with self._db.transaction():
            return write()

    def _durably(self, write: Callable[[], Result]) -> Result:
        with self._db.transaction(durable=True):
            return write()
