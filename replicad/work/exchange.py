"""Exchange: put a book that was made anew in the place of the old one, which is kept beside it.

**Owns** the order: the new book is complete and durable, then the old one steps aside, then the new one takes its name.
At no moment is a stale log beside a book that it does not belong to. **Never** throws the old one away.
"""

from __future__ import annotations

import os
from pathlib import Path

from replicad.system.disk import Disk

_LOG, _INDEX = "-wal", "-shm"
"""What SQLite keeps beside a database. The log is part of it, the index of the log is made anew when it is missing."""


def exchange(fresh: Path, book: Path, owner: Path, disk: Disk) -> Path | None:
    """Let `fresh`, which nobody has open, become `book`, owned by whom the directory `owner` belongs to.

    Returns where the old book is now, None when there was none. Raises DiskFullError, ReplicadError."""
    if os.geteuid() == 0:  # whoever the books belong to has to write this one too, also when root has made it
        status = owner.stat()
        os.chown(fresh, status.st_uid, status.st_gid)
    disk.sync_file(fresh)
    kept = _set_aside(book, disk)
    disk.rename_durable(fresh, book)
    return kept


def remove(book: Path) -> None:
    """Remove a book that was never finished, if there is one."""
    for suffix in (_LOG, _INDEX, ""):
        book.with_name(book.name + suffix).unlink(missing_ok=True)


def _set_aside(book: Path, disk: Disk) -> Path | None:
    """Move the old book and what belongs to it out of the way; its files before it, so that no stale log is ever beside
    the new one."""
    if not book.exists():
        remove(book)
        return None
    kept = book.with_name(book.name + ".old")
    remove(kept)
    book.with_name(book.name + _INDEX).unlink(missing_ok=True)
    for suffix in (_LOG, ""):
        if (side := book.with_name(book.name + suffix)).exists():
            disk.rename_durable(side, kept.with_name(kept.name + suffix))
    return kept
