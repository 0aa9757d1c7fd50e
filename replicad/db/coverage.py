"""Coverage: the part of a findings book that remembers how verification went, day by day.

**Owns** two small tables: one row for each side and day, MAX_DAYS of them a side at most, and the last map that another
node gave of its side. Bounded by count, not by age: a clock that jumped neither empties the history nor fills the disk.

**Never** invents a day: one on which nobody looked has no row.
"""

from __future__ import annotations

import msgspec

from replicad.db.database import Database
from replicad.model.coverage import MAX_DAYS, AgeMap, Day
from replicad.model.divergence import Side

SCHEMA = """
    CREATE TABLE coverage(
        side TEXT NOT NULL, peer TEXT NOT NULL, day INTEGER NOT NULL, body BLOB NOT NULL,
        PRIMARY KEY(side, peer, day)) WITHOUT ROWID;
    CREATE TABLE age_map(side TEXT NOT NULL, peer TEXT NOT NULL, body BLOB NOT NULL,
        PRIMARY KEY(side, peer)) WITHOUT ROWID;
    """
"""Of the findings book's migration from version 2."""

_encode = msgspec.msgpack.Encoder().encode
_day = msgspec.msgpack.Decoder(Day)
_map = msgspec.msgpack.Decoder(AgeMap)


class Coverage:
    """The history in one findings book; `peer` is "" for the book's own side."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def note(self, side: Side, peer: str, look: Day) -> None:
        """Remember one more look at that day."""
        with self._db.transaction():
            key = (side.value, peer, look.day)
            body = self._db.value("SELECT body FROM coverage WHERE side = ? AND peer = ? AND day = ?", key)
            day = _day.decode(body).with_look(look) if body else look
            self._db.execute("INSERT OR REPLACE INTO coverage VALUES(?, ?, ?, ?)", (*key, _encode(day)))
            self._db.execute(
                "DELETE FROM coverage WHERE side = ?1 AND peer = ?2 AND day <= (SELECT day FROM coverage"
                " WHERE side = ?1 AND peer = ?2 ORDER BY day DESC LIMIT 1 OFFSET ?3)",
                (side.value, peer, MAX_DAYS),
            )

    def days(self, side: Side, peer: str, first: int, last: int) -> list[Day]:
        """The days from `first` to `last`, ascending; those of which nothing is known are not in it."""
        rows = self._db.all(
            "SELECT body FROM coverage WHERE side = ? AND peer = ? AND day >= ? AND day <= ? ORDER BY day",
            (side.value, peer, first, last),
        )
        return [_day.decode(body) for (body,) in rows]

    def keep_map(self, side: Side, peer: str, found: AgeMap) -> None:
        """Remember how another node's side looked."""
        with self._db.transaction():
            self._db.execute("INSERT OR REPLACE INTO age_map VALUES(?, ?, ?)", (side.value, peer, _encode(found)))

    def map(self, side: Side, peer: str) -> AgeMap | None:
        """How it looked last, None when that was never told."""
        body = self._db.value("SELECT body FROM age_map WHERE side = ? AND peer = ?", (side.value, peer))
        return _map.decode(body) if body else None
