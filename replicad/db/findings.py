"""Findings: the book of what was found wrong on one side of one dataset, and of what was done about it.

**Owns** one database: divergences, receipts of repairs, suspect changes, and a few remembered values (pauses, the
breaker). It is a book of its own, beside ledger or catalog, because those two are judged like everything else: a
finding about a damaged ledger must not be lost with it. Every change is durable when the call returns: a finding
outlives a crash of either side (guarantee 8).

**Never** decides anything: `report` only joins what is found again with what is known of it already.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from replicad.db.database import Database
from replicad.model.divergence import Divergence, Receipt, Side, State, Suspect, divergence_id
from replicad.model.errors import UsageError

REMEDY = "move the file away: what is still wrong is found again by the next scrub; its history is lost"
MAX_LISTED = 10_000
"""Divergences that one question gives."""

MIGRATIONS = (
    """
    CREATE TABLE meta(key TEXT PRIMARY KEY, value) WITHOUT ROWID;
    CREATE TABLE divergence(
        id TEXT PRIMARY KEY, key TEXT NOT NULL, side TEXT NOT NULL, peer TEXT NOT NULL, verdict TEXT NOT NULL,
        state TEXT NOT NULL, found_ns INTEGER NOT NULL, changed_ns INTEGER NOT NULL, body BLOB NOT NULL) WITHOUT ROWID;
    CREATE UNIQUE INDEX divergence_open ON divergence(side, peer, key) WHERE state = 'open';
    CREATE INDEX divergence_found ON divergence(found_ns);
    CREATE TABLE total(side TEXT, verdict TEXT, count INTEGER NOT NULL, PRIMARY KEY(side, verdict)) WITHOUT ROWID;
    CREATE TABLE receipt(
        number INTEGER PRIMARY KEY, divergence TEXT NOT NULL, at_ns INTEGER NOT NULL, result TEXT NOT NULL,
        body BLOB NOT NULL);
    CREATE INDEX receipt_divergence ON receipt(divergence);
    CREATE TABLE suspect(
        number INTEGER PRIMARY KEY, snapshot INTEGER NOT NULL, before INTEGER NOT NULL, kind TEXT NOT NULL,
        path BLOB NOT NULL, released_ns INTEGER NOT NULL, body BLOB NOT NULL);
    CREATE UNIQUE INDEX suspect_once ON suspect(snapshot, kind, path);
    """,
)
"""Version history: 1 = first."""

Result = TypeVar("Result")
_encode = msgspec.msgpack.Encoder().encode
_divergence = msgspec.msgpack.Decoder(Divergence)
_receipt = msgspec.msgpack.Decoder(Receipt)
_suspect = msgspec.msgpack.Decoder(Suspect)


class Findings:
    """One side's findings about one dataset. One thread at a time; other processes may have it open too."""

    def __init__(self, path: Path, *, readonly: bool = False) -> None:
        """Open or create. Raises BookDamagedError, DiskFullError, LockedError."""
        self.path = path
        self._db = Database(path, MIGRATIONS, readonly=readonly, remedy=REMEDY)

    def close(self) -> None:
        """Close the book."""
        self._db.close()

    def verify(self) -> list[str]:
        """Read every page; what is wrong, in words."""
        return self._db.verify()

    def stamp(self) -> tuple[int, int]:
        """A value that is another one after any change of the book, by whomever: counts are to be made anew then."""
        return self._db.stamp()

    # remembered values

    def get(self, key: str) -> str | int | bytes | None:
        """A remembered value, None when absent."""
        value: str | int | bytes | None = self._db.value("SELECT value FROM meta WHERE key = ?", (key,))
        return value

    def put(self, key: str, value: str | int | bytes | None) -> None:
        """Remember a value; None forgets it."""

        def write() -> None:
            if value is None:
                self._db.execute("DELETE FROM meta WHERE key = ?", (key,))
            else:
                self._db.execute("INSERT OR REPLACE INTO meta VALUES(?, ?)", (key, value))

        self._durably(write)

    # divergences

    def report(self, found: Divergence) -> Divergence:
        """Remember a finding. One that is open already (same side, peer and key) keeps id, moment and history.

        What is returned stands in the book."""

        def write() -> Divergence:
            known = self._open_one(found)
            if known:
                joined = msgspec.structs.replace(
                    found, id=known.id, found_ns=known.found_ns, events=(*known.events, *found.events)
                )
            else:
                name = found.id or divergence_id(found.dataset, found.side, found.peer, found.key, found.found_ns)
                joined = msgspec.structs.replace(found, id=name)
            self._write(joined)
            self._count(known, joined)
            return joined

        return self._durably(write)

    def update(self, found: Divergence) -> None:
        """Write a divergence that has changed; it must have been reported."""

        def write() -> None:
            known = self.get_exactly(found.id)
            assert known is not None, f"{found.id} was never reported"
            self._write(found)
            self._count(known, found)

        self._durably(write)

    def get_exactly(self, name: str) -> Divergence | None:
        """The divergence with this id, None when there is none."""
        body = self._db.value("SELECT body FROM divergence WHERE id = ?", (name,))
        return _divergence.decode(body) if body else None

    def find(self, prefix: str) -> Divergence:
        """The one divergence whose id begins with `prefix`. Raises UsageError when there is none or more than one."""
        low, high = prefix.lower(), prefix.lower() + "g"  # ids are hex digits
        rows = self._db.all("SELECT body FROM divergence WHERE id >= ? AND id < ? LIMIT 2", (low, high))
        if len(rows) != 1 or not prefix:
            text = f"more than one divergence begins with {prefix!r}" if rows else f"there is no divergence {prefix!r}"
            raise UsageError(text, hint="replicad divergence list names them")
        return _divergence.decode(rows[0][0])

    def listed(self, *, side: Side | None = None, state: State | None = State.OPEN) -> list[Divergence]:
        """Divergences, oldest first; `side` and `state` None mean all."""
        rows = self._db.all(
            "SELECT body FROM divergence WHERE (? IS NULL OR side = ?) AND (? IS NULL OR state = ?)"
            " ORDER BY found_ns, id LIMIT ?",
            (side, side, state, state, MAX_LISTED),
        )
        return [_divergence.decode(body) for (body,) in rows]

    def totals(self) -> dict[tuple[str, str], int]:
        """How many divergences were ever given each (side, verdict)."""
        return {(side, verdict): count for side, verdict, count in self._db.all("SELECT * FROM total")}

    # repairs

    def add_receipt(self, receipt: Receipt) -> Receipt:
        """Remember what a repair did; the receipt with its number."""

        def write() -> Receipt:
            number = int(self._db.value("SELECT coalesce(max(number), 0) + 1 FROM receipt"))
            numbered = msgspec.structs.replace(receipt, number=number)
            self._db.execute(
                "INSERT INTO receipt VALUES(?, ?, ?, ?, ?)",
                (number, receipt.divergence, receipt.at_ns, receipt.result, _encode(numbered)),
            )
            return numbered

        return self._durably(write)

    def receipts(self, divergence: str) -> list[Receipt]:
        """Receipts of one divergence, oldest first."""
        rows = self._db.all("SELECT body FROM receipt WHERE divergence = ? ORDER BY number", (divergence,))
        return [_receipt.decode(body) for (body,) in rows]

    def repaired_since(self, at_ns: int) -> int:
        """Repairs made since then, well or not."""
        return int(self._db.value("SELECT count(*) FROM receipt WHERE at_ns >= ?", (at_ns,)))

    def repair_totals(self) -> dict[str, int]:
        """How many repairs had each result."""
        return dict(self._db.all("SELECT result, count(*) FROM receipt GROUP BY result"))

    # suspect changes

    def add_suspects(self, suspects: Sequence[Suspect]) -> None:
        """Remember suspect changes; one that is known (same snapshot, kind and path) stays as it is."""

        def write() -> None:
            number = int(self._db.value("SELECT coalesce(max(number), 0) FROM suspect"))
            for suspect in suspects:
                number += 1
                numbered = msgspec.structs.replace(suspect, number=number)
                self._db.execute(
                    "INSERT OR IGNORE INTO suspect VALUES(?, ?, ?, ?, ?, ?, ?)",
                    (number, suspect.snapshot, suspect.before, suspect.kind, suspect.path, 0, _encode(numbered)),
                )

        self._durably(write)

    def suspects(self, *, released: bool = False) -> list[Suspect]:
        """Suspect changes, oldest first: those that wait for a person, or all."""
        rows = self._db.all(
            "SELECT body, released_ns FROM suspect WHERE ? OR released_ns = 0 ORDER BY number LIMIT ?",
            (released, MAX_LISTED),
        )
        return [msgspec.structs.replace(_suspect.decode(body), released_ns=at) for body, at in rows]

    def release_suspects(self, numbers: Sequence[int] | None, at_ns: int) -> int:
        """A person has looked at these (None: all); how many were waiting. Their pins are gone."""

        def write() -> int:
            if numbers is None:
                self._db.execute("UPDATE suspect SET released_ns = ? WHERE released_ns = 0", (at_ns,))
                return self._db.changes()
            count = 0
            for number in numbers:
                self._db.execute(
                    "UPDATE suspect SET released_ns = ? WHERE number = ? AND released_ns = 0", (at_ns, number)
                )
                count += self._db.changes()
            return count

        return self._durably(write)

    def pinned(self) -> set[int]:
        """Snapshots that retention must keep: the version before each suspect change that nobody has released."""
        return {before for (before,) in self._db.all("SELECT DISTINCT before FROM suspect WHERE released_ns = 0")}

    # below: how

    def _open_one(self, found: Divergence) -> Divergence | None:
        body = self._db.value(
            "SELECT body FROM divergence WHERE side = ? AND peer = ? AND key = ? AND state = 'open'",
            (found.side, found.peer, found.key),
        )
        return _divergence.decode(body) if body else None

    def _write(self, found: Divergence) -> None:
        self._db.execute(
            "INSERT OR REPLACE INTO divergence VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                found.id, found.key, found.side.value, found.peer, found.verdict.value,
                found.state.value, found.found_ns, found.changed_ns, _encode(found),
            ),
        )  # fmt: skip

    def _count(self, before: Divergence | None, now: Divergence) -> None:
        """Count a verdict when it is first given to a divergence."""
        if before is None or before.verdict is not now.verdict:
            self._db.execute(
                "INSERT INTO total VALUES(?, ?, 1) ON CONFLICT(side, verdict) DO UPDATE SET count = count + 1",
                (now.side.value, now.verdict.value),
            )

    def _durably(self, write: Callable[[], Result]) -> Result:
        self._db.begin(durable=True)
        try:
            result = write()
        except BaseException:
            self._db.rollback()
            raise
        self._db.commit()
        return result
