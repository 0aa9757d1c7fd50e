"""Layout: where the frames of one segment stand, written anew as a whole when the segment is compacted.

Within one transaction of the catalog's, the new rows are first kept under the negative number of the segment, so that
the old ones can still be read; `finish` lets them take the old ones' place. **Owns** nothing else: the transaction is
the caller's, and whoever reads on another connection sees the old layout or the new one.
"""

from __future__ import annotations

from collections.abc import Sequence

from replicad.db.catalog import BlockPlace, FrameCopy
from replicad.db.database import Database


class Layout:
    """The new layout of one segment."""

    def __init__(self, database: Database, segment: int) -> None:
        self._db, self._segment = database, segment

    def add(self, blocks: Sequence[BlockPlace], copies: Sequence[FrameCopy]) -> None:
        """Frames at their new places."""
        under = -self._segment
        rows = [place._replace(segment=under) for place in blocks]
        self._db.insert("INSERT OR REPLACE INTO block", "(?,?,?,?,?)", rows)
        kept = [copy._replace(segment=under) for copy in copies]
        self._db.executemany("INSERT INTO frame_copy VALUES(?, ?, ?, ?, ?)", kept)

    def finish(self) -> None:
        """What was not added is in this segment no more."""
        for table in ("block", "frame_copy", "mended"):
            self._db.execute(f"DELETE FROM {table} WHERE segment = ?", (self._segment,))
        for table in ("block", "frame_copy"):
            self._db.execute(f"UPDATE {table} SET segment = ? WHERE segment = ?", (self._segment, -self._segment))

    def set_verified(self, size: int, at_ns: int, source: str) -> None:
        """All of the new file was read and compared with these rows."""
        values = (self._segment, size, at_ns, source)
        self._db.execute("INSERT OR REPLACE INTO scrubbed VALUES(?, ?, ?, ?, x'')", values)
