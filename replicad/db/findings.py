"""Findings: the book of what was found wrong on one side of one dataset, and of what was done about it.

**Owns** one database: divergences, receipts of repairs, suspect changes, pins, and a few remembered values (pauses, the
breaker). It is a book of its own, beside ledger or catalog, because those two are judged like everything else: a
finding about a damaged ledger must not be lost with it. Every change is durable when the call returns: a finding
outlives a crash of either side (guarantee 8).

**Never** decides anything: `report` only joins what is found again with what is known of it already.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from string import hexdigits
from typing import TypeVar

import msgspec

from replicad.db.coverage import SCHEMA as COVERAGE
from replicad.db.coverage import Coverage
from replicad.db.database import Database
from replicad.model.attestation import MAX_ASKED_PINS
from replicad.model.divergence import (
    Divergence,
    Part,
    Receipt,
    Side,
    State,
    Suspect,
    block_key,
    divergence_id,
    metadata_key,
    undone_key,
)
from replicad.model.errors import UsageError
from replicad.model.retention import Pin
from replicad.model.verdict import Verdict

REMEDY = (
    "move the file away: what is still wrong is found again by the next scrub; its history is lost, and so are the pins"
)
MAX_LISTED = 10_000
"""Divergences that one question gives."""

MIGRATIONS = (
    """
    CREATE TABLE meta(key TEXT PRIMARY KEY, value) WITHOUT ROWID;
    CREATE TABLE divergence(
        id TEXT PRIMARY KEY, key TEXT NOT NULL, side TEXT NOT NULL, peer TEXT NOT NULL, verdict TEXT NOT NULL,
        state TEXT NOT NULL, found_ns INTEGER NOT NULL, changed_ns INTEGER NOT NULL, body BLOB NOT NULL) WITHOUT ROWID;
    CREATE UNIQUE INDEX divergence_open ON divergence(side, peer, key) WHERE state = 'open';
    CREATE INDEX divergence_key ON divergence(side, peer, key);
    CREATE INDEX divergence_found ON divergence(found_ns);
    CREATE TABLE given(id TEXT, side TEXT, verdict TEXT, PRIMARY KEY(id, verdict)) WITHOUT ROWID;
    CREATE TABLE receipt(
        number INTEGER PRIMARY KEY, divergence TEXT NOT NULL, at_ns INTEGER NOT NULL, result TEXT NOT NULL,
        body BLOB NOT NULL);
    CREATE INDEX receipt_divergence ON receipt(divergence);
    CREATE TABLE suspect(
        number INTEGER PRIMARY KEY, snapshot INTEGER NOT NULL, before INTEGER NOT NULL, kind TEXT NOT NULL,
        path BLOB NOT NULL, released_ns INTEGER NOT NULL, body BLOB NOT NULL);
    CREATE UNIQUE INDEX suspect_once ON suspect(snapshot, kind, path);
    """,
    """
    CREATE TABLE pin(
        name TEXT PRIMARY KEY, snapshot INTEGER NOT NULL, at_ns INTEGER NOT NULL, reason TEXT NOT NULL) WITHOUT ROWID;
    """,
    "ALTER TABLE pin ADD COLUMN asked_by TEXT NOT NULL DEFAULT ''",
    COVERAGE,
    "ALTER TABLE given ADD COLUMN at_ns INTEGER NOT NULL DEFAULT 0",
)
"""Version history: 1 = first; 2 = pins; 3 = pins that a client asked for; 4 = how verification went (db/coverage.py);
5 = when each verdict was given."""

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
        self.coverage = Coverage(self._db)

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
        """Remember a finding. One that is open already (same side, peer and key) keeps id, moment and history, and what
        the other side said about the same damage. Damage that a person has acknowledged stays so as long as it is the
        same. What is returned stands in the book."""

        def write() -> Divergence:
            if known := self.open_at(found.side, found.peer, found.key):
                return self._write(known.found_again(found))
            noted = self._latest(found.side, found.peer, found.key, State.ACKNOWLEDGED)
            if noted and found.state is State.OPEN and noted.is_same_damage(found):
                return noted
            return self._write(msgspec.structs.replace(found, id=self._free_id(found)))

        return self._durably(write)

    def update(self, found: Divergence) -> None:
        """Write a divergence that has changed; it must have been reported. One that a person has acknowledged meanwhile
        is not opened again by somebody who did not know."""

        def write() -> None:
            known = self.get_exactly(found.id)
            assert known is not None, f"{found.id} was never reported"
            if known.state is State.ACKNOWLEDGED and found.state is State.OPEN:
                self._write(msgspec.structs.replace(known.found_again(found), state=State.ACKNOWLEDGED))
            else:
                self._write(found)

        self._durably(write)

    def revise(self, before: Divergence, after: Divergence) -> Divergence:
        """Write what `before` has become, unless somebody else has changed it meanwhile; what stands in the book."""

        def write() -> Divergence:
            known = self.get_exactly(before.id)
            assert known is not None, f"{before.id} was never reported"
            return self._write(after) if known == before else known

        return self._durably(write)

    def get_exactly(self, name: str) -> Divergence | None:
        """The divergence with this id, None when there is none."""
        body = self._db.value("SELECT body FROM divergence WHERE id = ?", (name,))
        return _divergence.decode(body) if body else None

    def open_at(self, side: Side, peer: str, key: str) -> Divergence | None:
        """The open divergence of that place, however many others there are."""
        return self._latest(side, peer, key, State.OPEN)

    def count_open(self, side: Side, peer: str) -> int:
        """How many are open of that side and peer."""
        query = "SELECT count(*) FROM divergence WHERE state = 'open' AND side = ? AND peer = ?"
        return int(self._db.value(query, (side, peer)))

    def find(self, prefix: str) -> Divergence:
        """The one divergence whose id begins with `prefix`. Raises UsageError when there is none or more than one."""
        found = self.beginning_with(prefix)
        if len(found) != 1 or not prefix:
            text = f"more than one divergence begins with {prefix!r}" if found else f"there is no divergence {prefix!r}"
            raise UsageError(text, hint="replicad divergence list names them")
        return found[0]

    def beginning_with(self, prefix: str) -> list[Divergence]:
        """The first two divergences whose id begins so: enough to know whether it names one."""
        low, high = prefix.lower(), prefix.lower() + "g"
        if set(low) - set(hexdigits):  # ids are hex digits
            return []
        rows = self._db.all("SELECT body FROM divergence WHERE id >= ? AND id < ? LIMIT 2", (low, high))
        return [_divergence.decode(body) for (body,) in rows]

    def listed(self, *, side: Side | None = None, state: State | None = State.OPEN) -> list[Divergence]:
        """Divergences, oldest first; `side` and `state` None mean all. What is open costs nothing for what is not."""
        of_state = "divergence WHERE (? IS NULL OR state = ?)"
        values: tuple[State | None, ...] = (state, state)
        if state is State.OPEN:
            of_state, values = "divergence INDEXED BY divergence_open WHERE state = 'open'", ()
        rows = self._db.all(
            f"SELECT body FROM {of_state} AND (? IS NULL OR side = ?) ORDER BY found_ns, id LIMIT ?",
            (*values, side, side, MAX_LISTED),
        )
        return [_divergence.decode(body) for (body,) in rows]

    def open_counts(self, side: Side) -> dict[Verdict, tuple[int, int]]:
        """How many open divergences of this side have each verdict, and when the oldest of those was first judged: what
        is inconclusive counts from when it was found."""
        rows = self._db.all(
            "SELECT verdict, count(*), min(CASE verdict WHEN ?1 THEN found_ns ELSE max(found_ns, ("
            " SELECT min(at_ns) FROM given WHERE given.id = divergence.id AND given.verdict <> ?1)) END)"
            " FROM divergence WHERE side = ?2 AND state = 'open' GROUP BY verdict",
            (Verdict.INCONCLUSIVE, side),
        )
        return {Verdict(verdict): (count, oldest_ns) for verdict, count, oldest_ns in rows}

    def open_keys(self, side: Side, peer: str, limit: int) -> list[str]:
        """Keys of open divergences, `limit` at most: many more are told apart this way than can be listed."""
        rows = self._db.all(
            "SELECT key FROM divergence WHERE side = ? AND peer = ? AND state = 'open' LIMIT ?", (side, peer, limit)
        )
        return [key for (key,) in rows]

    def settled(self, since_ns: int, limit: int) -> tuple[list[Divergence], int]:
        """The last divergences that changed since then and are not open, the latest first, and how many there are."""
        where = "FROM divergence WHERE state != ? AND changed_ns >= ?"
        values = (State.OPEN, since_ns)
        rows = self._db.all(f"SELECT body {where} ORDER BY changed_ns DESC, id LIMIT ?", (*values, limit))
        count = int(self._db.value(f"SELECT count(*) {where}", values))
        return [_divergence.decode(body) for (body,) in rows], count

    def news(self, side: Side) -> tuple[int, int]:
        """Something that changes whenever an open divergence of this side comes, goes or changes."""
        row = self._db.one(
            "SELECT count(*), coalesce(sum(changed_ns % 4294967291), 0) FROM divergence"
            " WHERE state = 'open' AND side = ?",
            (side,),
        )
        assert row is not None
        return row[0], row[1]

    def totals(self) -> dict[tuple[str, str], int]:
        """How many divergences were ever given each (side, verdict); one that changes to and fro counts once."""
        rows = self._db.all("SELECT side, verdict, count(*) FROM given GROUP BY side, verdict")
        return {(side, verdict): count for side, verdict, count in rows}

    def about(self, files: Collection[int]) -> list[Divergence]:
        """All that was ever found of these files on the primary's own disk."""
        beginnings = [metadata_key(b""), *(block_key(file, 0)[:-1] for file in files)]
        query = "SELECT body FROM divergence WHERE side = ? AND peer = '' AND key >= ? AND key < ?"
        found = [
            _divergence.decode(body)
            for begin in beginnings  # hex digits follow, or decimal ones
            for (body,) in self._db.rows(query, (Side.PRIMARY, begin, begin + "g"))
        ]
        return [one for one in found if one.file in files]

    def renumber(self, files: Mapping[int, int]) -> None:
        """Have all that was found of files speak of the numbers that they have now, by those that they had, and so what
        a person has undone. An open finding stays what it was where another one is open under the new number."""

        def write() -> None:
            for found in self.about(files):
                now = msgspec.structs.replace(found, file=files[found.file])
                if found.part is Part.BLOCK:
                    now = msgspec.structs.replace(now, key=block_key(now.file, now.number))
                    if found.state is State.OPEN and self.open_at(now.side, now.peer, now.key):
                        continue
                    names = undone_key(now.key), undone_key(found.key)
                    self._db.execute("UPDATE OR REPLACE meta SET key = ? WHERE key = ?", names)
                self._write(now)

        self._durably(write)

    # repairs

    def add_receipt(self, receipt: Receipt) -> Receipt:
        """Remember what a repair did; the receipt with its number."""

        def write() -> Receipt:
            number = self.last_receipt() + 1
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

    def repaired_since(self, at_ns: int, after: int = 0) -> int:
        """Repairs made since then, well or not, with a number above `after`; to undo one is none."""
        query = "SELECT count(*) FROM receipt WHERE at_ns >= ? AND number > ? AND result != 'undone'"
        return int(self._db.value(query, (at_ns, after)))

    def last_receipt(self) -> int:
        """The number of the last receipt, 0 when there is none."""
        return int(self._db.value("SELECT coalesce(max(number), 0) FROM receipt"))

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

    def suspects_like(self, suspects: Sequence[Suspect], since_ns: int) -> list[Suspect]:
        """Known suspect changes of the same kinds and paths that wait for a person, or were released since then,
        however many others there are."""
        wanted = {(one.kind, one.path) for one in suspects}
        rows = self._db.rows(
            "SELECT kind, path, body, released_ns FROM suspect WHERE released_ns = 0 OR released_ns > ?", (since_ns,)
        )
        return [
            msgspec.structs.replace(_suspect.decode(body), released_ns=at)
            for kind, path, body, at in rows
            if (kind, path) in wanted
        ]

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

    # pins

    def add_pin(self, pin: Pin) -> None:
        """Keep a snapshot under a name. Raises UsageError when the name is taken for another snapshot, retention is
        just dropping that one, or a client asks for more than MAX_ASKED_PINS. What a client asks for again, or a person
        has pinned so already, stays as it is."""

        def write() -> None:
            if pin.snapshot in self._retiring():
                raise UsageError(f"snapshot {pin.snapshot} is just being dropped", hint="pin another one")
            taken = self._db.value("SELECT snapshot FROM pin WHERE name = ?", (pin.name,))
            if taken not in (None, pin.snapshot):
                hint = "remove that pin first, or take another name"
                raise UsageError(f"the name {pin.name!r} pins snapshot {taken} already", hint=hint)
            if pin.asked_by and taken is not None:
                return
            if pin.asked_by and self.asked_pins() >= MAX_ASKED_PINS:
                hint = "on the replica: replicad pin list, replicad pin remove"
                raise UsageError(
                    f"{MAX_ASKED_PINS} pins were asked for over the link, the most there may be", hint=hint
                )
            values = (pin.name, pin.snapshot, pin.at_ns, pin.reason, pin.asked_by)
            self._db.execute("INSERT OR REPLACE INTO pin VALUES(?, ?, ?, ?, ?)", values)

        self._durably(write)

    def remove_pin(self, name: str) -> bool:
        """Keep it under this name no more; whether there was such a pin."""

        def write() -> bool:
            self._db.execute("DELETE FROM pin WHERE name = ?", (name,))
            return bool(self._db.changes())

        return self._durably(write)

    def pins(self) -> list[Pin]:
        """All pins, by name."""
        query = "SELECT name, snapshot, at_ns, reason, asked_by FROM pin ORDER BY name"
        return [Pin(*row) for row in self._db.rows(query)]

    def asked_pins(self) -> int:
        """How many of them a client has asked for."""
        return int(self._db.value("SELECT count(*) FROM pin WHERE asked_by <> ''"))

    def retire(self, numbers: Iterable[int]) -> list[int]:
        """Those of these snapshots that nothing pins, in one step: from here on no pin can be set on them."""

        def write() -> list[int]:
            pinned = self.pinned() | {pin.snapshot for pin in self.pins()}
            going = [number for number in numbers if number not in pinned]
            self._db.execute("INSERT OR REPLACE INTO meta VALUES('retiring', ?)", (_encode(going),))
            return going

        return self._durably(write)

    def _retiring(self) -> list[int]:
        going = self._db.value("SELECT value FROM meta WHERE key = 'retiring'")
        return msgspec.msgpack.decode(going, type=list[int]) if going else []

    # below: how

    def _latest(self, side: Side, peer: str, key: str, state: State) -> Divergence | None:
        body = self._db.value(
            "SELECT body FROM divergence WHERE side = ? AND peer = ? AND key = ? AND state = ?"
            " ORDER BY changed_ns DESC LIMIT 1",
            (side, peer, key, state),
        )
        return _divergence.decode(body) if body else None

    def _free_id(self, found: Divergence) -> str:
        """The id that it came with, or a new one; never that of another finding, which would be overwritten."""
        taken = self.get_exactly(found.id) if found.id else None
        if found.id and (taken is None or (taken.side, taken.peer, taken.key) == (found.side, found.peer, found.key)):
            return found.id
        moments = itertools.count(found.found_ns)
        names = (divergence_id(found.dataset, found.side, found.peer, found.key, at_ns) for at_ns in moments)
        return next(name for name in names if self.get_exactly(name) is None)

    def _write(self, found: Divergence) -> Divergence:
        """Write it and count its verdict, once for each that it is ever given; what was written."""
        self._db.execute(
            "INSERT OR REPLACE INTO divergence VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                found.id, found.key, found.side.value, found.peer, found.verdict.value,
                found.state.value, found.found_ns, found.changed_ns, _encode(found),
            ),
        )  # fmt: skip
        self._db.execute(
            "INSERT OR IGNORE INTO given VALUES(?, ?, ?, ?)",
            (found.id, found.side.value, found.verdict.value, found.changed_ns),
        )
        return found

    def _durably(self, write: Callable[[], Result]) -> Result:
        with self._db.transaction(durable=True):
            return write()
