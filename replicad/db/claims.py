"""Claims: which inode each file number stands for, while a record is adopted.

Owns a temporary table beside the ledger. Hard links that were made or broken while there was no ledger would have two
inodes share a number; a number belongs to the inode that claims it first.
"""

from __future__ import annotations

from replicad.db.database import Database


class Claims:
    """The claims of one adoption. Belongs to the ledger's thread."""

    def __init__(self, database: Database) -> None:
        """Begin with none."""
        self._db = database
        database.execute("DROP TABLE IF EXISTS temp.claim")
        database.execute("CREATE TEMP TABLE claim(file INTEGER PRIMARY KEY, device INTEGER, inode INTEGER)")

    def claim(self, file: int, device: int, inode: int) -> bool:
        """Whether the number `file` stands for this inode: the first one that asks has it."""
        self._db.execute("INSERT OR IGNORE INTO temp.claim VALUES (?, ?, ?)", (file, device, inode))
        return self._db.one("SELECT device, inode FROM temp.claim WHERE file = ?", (file,)) == (device, inode)
