"""Touched: a recorded entry that we ourselves have touched: its times moved, and nothing else counts as changed.

**Never** changes a row's number: no replica is told anything, for nothing that a replica knows has changed.
"""

from __future__ import annotations

from replicad.db.ledger import Ledger, split
from replicad.model.entry import Stamp


def restamp(ledger: Ledger, path: bytes, before: Stamp, now: Stamp) -> None:
    """What stands at `path` and was recorded under `before` has the times of `now`; so has every name of a file."""
    directory, name = split(path)
    place = "directory = (SELECT id FROM directory WHERE path = ?)" if path else "directory = 0 AND ? = x''"
    ledger.database.execute(
        f"UPDATE entry SET mtime_ns = ?, ctime_ns = ? WHERE (({place} AND name = ?) OR (file > 0 AND inode = ?))"
        " AND device = ? AND inode = ? AND size = ? AND mtime_ns = ? AND ctime_ns = ?",
        (now.mtime_ns, now.ctime_ns, directory, name, before.inode, *before[4:]),
    )
