"""Unnamed: files of a ledger that lost their last name, and may have one again.

A walk is no snapshot: what moves from where it has not been to where it was looks dropped, and new when it is found.
So a dropped file is set aside with all that is recorded of it (`Ledger.set_aside`), and one that is found with its
identity is held against that record; rot in it would count as written else. **Never** keeps one for ever: after
KEPT_WALKS full walks that did not find it, it is gone. For the ledger's thread.
"""

from __future__ import annotations

from replicad.db.ledger import ENTRY_COLUMNS, Known, Ledger
from replicad.model.entry import Stamp

KEPT_WALKS = 2
"""Full walks after the one that missed a file's last name for which it is remembered: it may slip past one of them,
hardly past two."""


def has_unnamed(ledger: Ledger) -> bool:
    """Whether any file is set aside."""
    return ledger.database.value("SELECT 1 FROM unnamed LIMIT 1") is not None


def is_unnamed(ledger: Ledger, file: int) -> bool:
    """Whether this file is set aside."""
    return ledger.database.value("SELECT 1 FROM unnamed WHERE file = ?", (file,)) is not None


def same_unnamed(ledger: Ledger, stamp: Stamp) -> Known | None:
    """The file that is set aside and has exactly this identity: the same bytes, not rewritten."""
    row = ledger.database.one(
        f"SELECT {ENTRY_COLUMNS} FROM unnamed WHERE inode = ? AND device = ? AND size = ?"
        " AND mtime_ns = ? AND ctime_ns = ? LIMIT 1",
        (stamp.inode, stamp.device, stamp.size, stamp.mtime_ns, stamp.ctime_ns),
    )
    return Known._make(row) if row else None


def take_back(ledger: Ledger, known: Known, seq: int) -> Known:
    """A file that was set aside is to have a name again: under a new number, for its old one was dropped."""
    fresh = known._replace(file=ledger.next_file())
    execute = ledger.database.execute
    execute("UPDATE block SET file = ?, seq = ? WHERE file = ?", (fresh.file, seq, known.file))
    execute("DELETE FROM cut WHERE file = ?", (known.file,))
    execute("DELETE FROM unnamed WHERE file = ?", (known.file,))
    return fresh


def end_walk(ledger: Ledger) -> None:
    """Everything was walked: what was set aside KEPT_WALKS walks ago is gone for good."""
    if not has_unnamed(ledger):
        return  # nothing to count for
    walks = int(ledger.get("walks") or 0) + 1
    ledger.put("walks", walks)
    for table in ("block", "cut"):
        ledger.database.execute(
            f"DELETE FROM {table} WHERE file IN (SELECT file FROM unnamed WHERE walk < ?)", (walks - KEPT_WALKS,)
        )
    ledger.database.execute("DELETE FROM unnamed WHERE walk < ?", (walks - KEPT_WALKS,))
