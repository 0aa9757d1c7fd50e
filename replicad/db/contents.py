"""Contents: in how many blocks two states of files differ, by their ids and without reading a block.

Each question is one statement along the order in which the rows of a file stand, so that nothing of a large file is
held in memory. What is in no row is zero.
"""

from __future__ import annotations

from typing import NamedTuple

from replicad.db.database import Database
from replicad.model.block import block_count
from replicad.model.entry import Kind, Put
from replicad.model.travel import UNKNOWN

_ALIVE = "born <= {0} AND (died IS NULL OR died > {0})"
_SAME_FILE = f"""
    SELECT count(*), max(number) FROM (
        SELECT number,
            max(CASE WHEN {_ALIVE.format("?2")} AND number < ?3 THEN id END) AS old,
            max(CASE WHEN {_ALIVE.format("?4")} AND number < ?5 THEN id END) AS new
        FROM file_block WHERE file = ?1 GROUP BY number HAVING old IS NOT new)"""
_OTHER_FILE = f"""
    SELECT count(*), max(number) FROM (
        SELECT number, max(one) AS old, max(other) AS new FROM (
            SELECT number, id AS one, NULL AS other FROM file_block
            WHERE file = ?1 AND {_ALIVE.format("?2")} AND number < ?3
            UNION ALL SELECT number, NULL, id FROM file_block
            WHERE file = ?6 AND {_ALIVE.format("?4")} AND number < ?5)
        GROUP BY number HAVING old IS NOT new)"""
_WRITTEN = """
    SELECT at, count(*), max(number) FROM (
        SELECT born AS at, number FROM file_block WHERE file = ?1
        UNION ALL SELECT died, number FROM file_block a WHERE file = ?1 AND died IS NOT NULL AND NOT EXISTS (
            SELECT 1 FROM file_block b WHERE b.file = a.file AND b.number = a.number AND b.born = a.died))
    GROUP BY at"""


class Changed(NamedTuple):
    """How much of a content is not what it was."""

    blocks: int
    bytes: int


NOTHING = Changed(0, 0)
NOT_KNOWN = Changed(UNKNOWN, UNKNOWN)


def changed(database: Database, before: tuple[Put, int], after: tuple[Put, int], most_blocks: int = 2**62) -> Changed:
    """What differs between two states of files, each with the ordinal of a snapshot that shows it. NOT_KNOWN where
    their blocks cannot be compared or are more than `most_blocks`."""
    (old, at), (new, then) = before, after
    if old.kind is not Kind.FILE or new.kind is not Kind.FILE:
        return NOTHING
    ends = [block_count(put.size, put.block_bytes) for put in (old, new)]
    if old.block_bytes != new.block_bytes or (sum(ends) > most_blocks):
        return NOT_KNOWN
    values = (old.file, at, ends[0], then, ends[1])
    if old.file == new.file:
        row = database.one(_SAME_FILE, values)
    else:
        row = database.one(_OTHER_FILE, (*values, new.file))
    assert row is not None
    return sized(row[0], row[1], old, new)


def written(database: Database, file: int) -> dict[int, tuple[int, int]]:
    """In how many blocks a file was changed by each snapshot (ordinal), and the highest number of these blocks."""
    return {at: (count, highest) for at, count, highest in database.all(_WRITTEN, (file,))}


def sized(count: int, highest: int | None, old: Put, new: Put) -> Changed:
    """That many blocks and their bytes: the last block of a file may be a short one."""
    if not count or highest is None:
        return NOTHING
    beyond = max(0, (highest + 1) * new.block_bytes - max(old.size, new.size))
    return Changed(count, count * new.block_bytes - min(beyond, new.block_bytes - 1))
