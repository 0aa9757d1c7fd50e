"""Age map: when each part of one side was verified last, drawn as a map of its whole extent.

The primary's parts come from the ledger in the order of file numbers (db/due.py), a store's from the catalog in the
order of its segments. **Owns** these two questions. SQLite sums up a million parts in half a second; what comes out is
GROUPS rows at most. **Never** counts a part as verified that has no moment of verification.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from replicad.db.database import Database
from replicad.db.due import STRETCH_BLOCKS
from replicad.db.ledger_schema import MIGRATIONS
from replicad.model.coverage import CELLS, AgeMap, Mapper

GROUPS = 8 * CELLS
"""Stretches that SQLite sums up: eight in a cell, so that hardly anything is counted in its neighbour."""

_TOTAL = "SELECT (SELECT coalesce(sum(bytes), 0) FROM tally) + (SELECT coalesce(sum(bytes), 0) FROM fresh)"
_GROUPED = """
    WITH every AS (
        SELECT file, stretch, at_ns, bytes FROM part UNION ALL SELECT first, 0, 0, bytes FROM fresh),
    placed AS (
        SELECT file, stretch, at_ns, bytes,
            sum(bytes) OVER (ORDER BY file, stretch ROWS UNBOUNDED PRECEDING) - bytes AS start FROM every)
    SELECT sum(bytes), coalesce(sum(bytes) FILTER (WHERE at_ns = 0), 0), coalesce(min(nullif(at_ns, 0)), 0),
        coalesce(sum(bad.count), 0)
    FROM placed LEFT JOIN bad USING(file, stretch) GROUP BY start / ? ORDER BY start / ?
    """


def of_ledger(path: Path, bad_blocks: Mapping[tuple[int, int], int], at_ns: int) -> AgeMap:
    """The primary's side, read beside a running daemon; `bad_blocks` counts open divergences by file and block.

    Raises BookDamagedError, ReplicadError."""
    database = Database(path, MIGRATIONS, readonly=True)
    try:
        database.execute("CREATE TEMP TABLE bad(file, stretch, count, PRIMARY KEY(file, stretch)) WITHOUT ROWID")
        database.executemany(
            "INSERT INTO bad VALUES(?, ?, ?) ON CONFLICT DO UPDATE SET count = count + excluded.count",
            [(file, block // STRETCH_BLOCKS, count) for (file, block), count in bad_blocks.items()],
        )
        database.begin_reading()
        total = int(database.value(_TOTAL))
        mapper, step = Mapper(total), max(1, total // GROUPS)
        for size, never_bytes, oldest_ns, bad in database.rows(_GROUPED, (step, step)):
            mapper.add(size, never_bytes, oldest_ns, bad)
        return mapper.finish(at_ns)
    finally:
        database.close()


def of_segments(
    sizes: Mapping[int, int], verified: Mapping[int, tuple[int, int]], bad: Mapping[int, int], at_ns: int
) -> AgeMap:
    """A store's side: sizes of its segments, (bytes, moment) of what was verified of each, open divergences in each."""
    mapper = Mapper(sum(sizes.values()))
    for number, size in sorted(sizes.items()):
        known, verified_ns = verified.get(number, (0, 0))
        never = size - min(size, known) if verified_ns else size
        mapper.add(size, never, verified_ns, bad.get(number, 0))
    return mapper.finish(at_ns)
