"""Expiry: snapshots that are not kept any more, and the rows that no kept snapshot shows.

A row of `entry` or `file_block` holds for the ordinals from `born` up to, not including, `died`. Between two kept
snapshots with others dropped in between, a row that was born behind the first and died up to the second is shown by
nothing any more. Blocks of a file whose last name was dropped stay open (docs/FORMATS.md); once no entry is left that
names the file, and a complete snapshot has shown that the primary has no name for it either, they go as well, and its
number is remembered as forgotten. **Owns** these rules; what is to go outlives a crash, and goes a bounded number of
rows at a time. The line of a dropped snapshot stays: the chain of commits stays whole.

**Never** drops the newest snapshot, and never a row of what the dataset is now.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from replicad.db.database import Database, Row

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
_Sweep = tuple[int, bytes, int, int]
"""The key of the entry that was looked at last, and the ordinal of a complete snapshot: of which files it judges."""
_decode_sweep = msgspec.msgpack.Decoder(_Sweep).decode
_NO_PLACE: _Sweep = (-1, b"", -1, 0)
"""Before the first entry."""
_UNKNOWN, _NAMELESS, _NAMED = range(3)
"""Of a file that lost a name in the history: whether it has any left is not known yet; it has none; it has one."""
_IN_QUESTION = f"state = {_UNKNOWN} AND died <= ?"


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
    if dropped:
        _set_sweep(database, _NO_PLACE)  # rows of names go: whoever counts them begins again
    return len(dropped)


def last_drop_ns(database: Database) -> int:
    """When snapshots were last dropped; 0 = never."""
    return int(database.value("SELECT max(dropped_ns) FROM snapshot") or 0)


def is_purged(database: Database) -> bool:
    """Whether nothing is left that no snapshot shows."""
    return database.value("SELECT 1 FROM expired LIMIT 1") is None


def has_rows_to_go(database: Database) -> bool:
    """Whether `purge` would find something to look at; files that wait for a complete snapshot are nothing yet."""
    return not is_purged(database) or _has_unknown(database) or _forgettable(database) is not None


def purge(database: Database, limit: int) -> bool:
    """Take rows away that no snapshot shows, looking at about `limit` at most; whether there may be more. Within the
    caller's transaction."""
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
    if not is_purged(database):
        return True
    return _sweep(database, limit) or _forget(database, limit)


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
    if name == "entry":
        _note_orphans(database, place.died, gone)
    database.executemany(f"DELETE FROM {name} WHERE {one} = ? AND {two} = ? AND born = ?", gone)
    if len(rows) == limit:
        return limit, _Place(place.table, place.died, *rows[-1])
    values = (place.died, until)
    died: int | None = database.value(f"SELECT min(died) FROM {name} WHERE died > ? AND died <= ?", values)
    return len(rows), _begin(place.table, died) if died else _begin(place.table + 1, after)


# files without a name


def _note_orphans(database: Database, died: int, gone: list[Row]) -> None:
    """Files that are about to lose a name in the history: perhaps their last."""
    keys = [row[:3] for row in gone]
    database.executemany(
        f"INSERT INTO orphan SELECT file, ?, {_UNKNOWN} FROM entry"
        " WHERE directory = ? AND name = ? AND born = ? AND file > 0"
        f" ON CONFLICT DO UPDATE SET died = max(died, excluded.died), state = {_UNKNOWN}",
        [(died, *key) for key in keys],
    )


def _sweep(database: Database, limit: int) -> bool:
    """Read on through all entries for names of the files in question; whether it goes on.

    Only of files that a complete snapshot since then could have named, and it begins after that one: before, a rename
    may be under way, whose old name has gone and whose new one is still to come."""
    if limit <= 0:
        return True
    directory, name, born, upto = _sweep_place(database)
    if upto == 0:
        upto = _newest_complete(database)
        if database.value(f"SELECT 1 FROM orphan WHERE {_IN_QUESTION} LIMIT 1", (upto,)) is None:
            return False
    rows = database.all(
        "SELECT directory, name, born, file FROM entry WHERE (directory, name, born) > (?, ?, ?)"
        " ORDER BY directory, name, born LIMIT ?",
        (directory, name, born, limit),
    )
    named = [(row[3], upto) for row in rows if row[3]]
    database.executemany(f"UPDATE orphan SET state = {_NAMED} WHERE file = ? AND {_IN_QUESTION}", named)
    if len(rows) == limit:
        _set_sweep(database, (*rows[-1][:3], upto))
    else:
        _set_sweep(database, _NO_PLACE)
        database.execute(f"UPDATE orphan SET state = {_NAMELESS} WHERE {_IN_QUESTION}", (upto,))
    return True


def _forget(database: Database, limit: int) -> bool:
    """Take away the blocks of a file that nothing names, up to `limit`; whether there may be more."""
    found = _forgettable(database)
    if found is None:
        return False
    rows = database.all("SELECT file, number, born FROM file_block WHERE file = ? LIMIT ?", (found, limit))
    database.executemany("DELETE FROM file_block WHERE file = ? AND number = ? AND born = ?", rows)
    if len(rows) < limit:
        database.execute("DELETE FROM orphan WHERE file = ?", (found,))
        database.execute("INSERT OR IGNORE INTO forgotten VALUES(?)", (found,))
    return True


def _has_unknown(database: Database) -> bool:
    upto = _newest_complete(database)
    return database.value(f"SELECT 1 FROM orphan WHERE {_IN_QUESTION} LIMIT 1", (upto,)) is not None


def _newest_complete(database: Database) -> int:
    return int(database.value("SELECT coalesce(max(ordinal), 0) FROM snapshot WHERE complete"))


def _forgettable(database: Database) -> int | None:
    """A file that has no name for good. After a loss of records nothing is sure: they may have named it."""
    if database.value("SELECT 1 FROM snapshot WHERE lost > 0 LIMIT 1"):
        return None
    found: int | None = database.value(f"SELECT file FROM orphan WHERE state = {_NAMELESS} LIMIT 1")
    return found


def _sweep_place(database: Database) -> _Sweep:
    found = database.value("SELECT value FROM meta WHERE key = 'sweep'")
    return _decode_sweep(found) if found else _NO_PLACE


def _set_sweep(database: Database, place: _Sweep) -> None:
    database.execute("INSERT OR REPLACE INTO meta VALUES('sweep', ?)", (_encode(place),))
