"""Expiry: snapshots that are not kept any more, and the rows that no kept snapshot shows.

A row of `entry` or `file_block` holds for the ordinals from `born` up to, not including, `died`. Between two kept
snapshots with others dropped in between, a row that was born behind the first and died up to the second is shown by
nothing any more. **Owns** that rule and the list of such gaps (`expired`), which outlives a crash: rows go a bounded
number at a time. The line of a dropped snapshot stays, with the time it was dropped: the chain of commits stays whole.

**Never** drops the newest snapshot, and never a row of what the dataset is now (`died` is NULL).
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from replicad.db.database import Database

_TABLES = ("entry", "directory", "name", b""), ("file_block", "file", "number", -1)
"""Each table, the first two columns of its key, and what lies below every value of the second."""


class _Place(msgspec.Struct, frozen=True, array_like=True):
    """How far a gap has been purged: table, and the row that was looked at last."""

    table: int
    died: int
    one: int
    two: int | bytes
    born: int


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Place).decode


def drop_snapshots(database: Database, numbers: Sequence[int], at_ns: int) -> int:
    """Keep these snapshots no more, within the caller's transaction; how many were kept so far. Unknown ones and the
    newest are passed over."""
    newest = database.value("SELECT max(ordinal) FROM snapshot")
    dropped: list[int] = []
    for number in numbers:
        found = database.value("SELECT ordinal FROM snapshot WHERE number = ? AND dropped_ns = 0", (number,))
        if found is not None and found != newest:
            database.execute("UPDATE snapshot SET dropped_ns = ? WHERE ordinal = ?", (max(1, at_ns), found))
            dropped.append(found)
    for ordinal in dropped:
        after = "SELECT max(ordinal) FROM snapshot WHERE dropped_ns = 0 AND ordinal < ?1"
        until = "SELECT min(ordinal) FROM snapshot WHERE dropped_ns = 0 AND ordinal > ?1"
        database.execute(f"INSERT OR IGNORE INTO expired SELECT coalesce(({after}), 0), ({until}), x''", (ordinal,))
    return len(dropped)


def last_drop_ns(database: Database) -> int:
    """When snapshots were last dropped; 0 = never."""
    return int(database.value("SELECT max(dropped_ns) FROM snapshot") or 0)


def is_purged(database: Database) -> bool:
    """Whether nothing is left that no snapshot shows."""
    return database.value("SELECT 1 FROM expired LIMIT 1") is None


def purge(database: Database, limit: int) -> bool:
    """Take rows away that no snapshot shows, looking at `limit` at most; whether there may be more. Within the caller's
    transaction."""
    while limit > 0 and (gap := database.one("SELECT after, until, place FROM expired LIMIT 1")):
        after, until = gap[:2]
        place: _Place | None = _decode(gap[2]) if gap[2] else _begin(0, after)
        looked, place = _purge_rows(database, after, until, place, limit) if place else (0, None)
        limit -= max(1, looked)
        key = (after, until)
        if place:
            values = (_encode(place), *key)
            database.execute("UPDATE expired SET place = ? WHERE after = ? AND until = ?", values)
        else:
            database.execute("DELETE FROM expired WHERE after = ? AND until = ?", key)
    return not is_purged(database)


def _begin(table: int, died: int) -> _Place | None:
    """Before the first row of a table that died then; None behind the last table."""
    return _Place(table, died, -1, _TABLES[table][3], -1) if table < len(_TABLES) else None


def _purge_rows(database: Database, after: int, until: int, place: _Place, limit: int) -> tuple[int, _Place | None]:
    """Look at up to `limit` rows that died at one ordinal; how many there were and where to go on."""
    name, one, two, _ = _TABLES[place.table]
    rows = database.all(
        f"SELECT {one}, {two}, born FROM {name} WHERE died = ? AND ({one}, {two}, born) > (?, ?, ?)"
        f" ORDER BY {one}, {two}, born LIMIT ?",
        (place.died, place.one, place.two, place.born, limit),
    )
    gone = [row for row in rows if row[2] > after]
    database.executemany(f"DELETE FROM {name} WHERE {one} = ? AND {two} = ? AND born = ?", gone)
    if len(rows) == limit:
        return limit, _Place(place.table, place.died, *rows[-1])
    values = (place.died, until)
    died: int | None = database.value(f"SELECT min(died) FROM {name} WHERE died > ? AND died <= ?", values)
    return len(rows), _begin(place.table, died) if died else _begin(place.table + 1, after)
