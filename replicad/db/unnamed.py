"""Unnamed: files of a ledger that lost their last name, and may have one again.

A walk is no snapshot: what moves from where it has not been to where it was looks dropped, and new when it is found.
So a dropped file is set aside with all that is recorded of it (`Ledger.set_aside`), and one that is found with its
identity is held against that record; rot in it would count as written else. It has a new number then, and both are
noted until what was found of it speaks of the new one (work/renumbered.py). **Never** keeps one for ever: after
KEPT_WALKS full walks that did not find it, it is gone. For the ledger's thread.
"""

from __future__ import annotations

from collections.abc import Iterable

from replicad.db.ledger import ENTRY_COLUMNS, Known, Ledger
from replicad.model.entry import Stamp

KEPT_WALKS = 2
"""Full walks after the one that missed a file's last name for which it is remembered: it may slip past one of them,
hardly past two."""
_RENUMBERED = "renumbered:"
"""What the note about a file that was taken back is remembered under, with its old number behind; it is the new one."""


def has_unnamed(ledger: Ledger) -> bool:
    """Whether any file is set aside."""
    return ledger.database.value("SELECT 1 FROM unnamed LIMIT 1") is not None


def is_unnamed(ledger: Ledger, file: int) -> bool:
    """Whether this file is set aside, or was until now: what was found of it does not speak of its new number yet."""
    is_aside = ledger.database.value("SELECT 1 FROM unnamed WHERE file = ?", (file,)) is not None
    return is_aside or ledger.get(f"{_RENUMBERED}{file}") is not None


def same_unnamed(ledger: Ledger, stamp: Stamp) -> Known | None:
    """The file that is set aside and has exactly this identity: the same bytes, not rewritten."""
    row = ledger.database.one(
        f"SELECT {ENTRY_COLUMNS} FROM unnamed WHERE inode = ? AND device = ? AND size = ?"
        " AND mtime_ns = ? AND ctime_ns = ? LIMIT 1",
        (stamp.inode, stamp.device, stamp.size, stamp.mtime_ns, stamp.ctime_ns),
    )
    return Known._make(row) if row else None


def take_back(ledger: Ledger, known: Known, seq: int) -> Known:
    """A file that was set aside is to have a name again: under a new number, which is noted. Its old one was dropped: a
    replica may have forgotten it, and takes it no more."""
    fresh = known._replace(file=ledger.next_file())
    ledger.put(f"{_RENUMBERED}{known.file}", fresh.file)
    execute = ledger.database.execute
    execute("UPDATE block SET file = ?, seq = ? WHERE file = ?", (fresh.file, seq, known.file))
    execute("DELETE FROM cut WHERE file = ?", (known.file,))
    execute("DELETE FROM unnamed WHERE file = ?", (known.file,))
    return fresh


def renumbered(ledger: Ledger) -> dict[int, int]:
    """Files that were taken back, by the numbers that they had, with those that they have now."""
    rows = ledger.database.all("SELECT key, value FROM meta WHERE key GLOB ?", (f"{_RENUMBERED}*",))
    files = {int(key.removeprefix(_RENUMBERED)): int(file) for key, file in rows}
    for old in files:
        while files[old] in files:  # it was taken back once more
            files[old] = files[files[old]]
    return files


def forget_renumbered(ledger: Ledger, files: Iterable[int]) -> None:
    """What was found of the files that had these numbers speaks of their new ones."""
    for file in files:
        ledger.put(f"{_RENUMBERED}{file}", None)


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
