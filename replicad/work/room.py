"""Room: how many bytes of a store nothing would need any more once some snapshots were let go. Reads, never writes.

The same passes that a run makes, over the rows as they would be then: which files still have a name that a kept
snapshot shows, and which blocks stand in those; every other block is unused. **Owns** that reckoning. Memory is
bounded: files and blocks are marked in filters that can take something unused for used, and never the other way round,
so every number is a lower bound; about one unused block in sixteen goes unseen at most.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Sequence
from contextlib import closing
from pathlib import Path

import msgspec

from replicad.db.inventory import Inventory
from replicad.db.listing import Listing, SnapshotRow
from replicad.model.marks import Marks
from replicad.store.format import HEADER_BYTES
from replicad.work.archive import catalog_path
from replicad.work.outlook import WORTHWHILE, count_blocks, is_old

_FILE_BYTES = 8
_END = 1 << 62


class Room(msgspec.Struct, frozen=True):
    """Bytes in segments, frames' headers included; each is a lower bound."""

    unused_bytes: int
    """What nothing needs now already."""
    frees_bytes: int
    """What nothing else needs: unused as well, once the snapshots are gone."""
    returns_bytes: int
    """What the next run would give back of both: of segments that are old and empty enough."""


def room(directory: Path, going: Collection[int], before_ns: int) -> Room:
    """What letting the snapshots `going` go would free. Segments that were full before `before_ns` are old enough.

    Raises BookDamagedError, ReplicadError."""
    with closing(Listing(catalog_path(directory))) as listing:
        rows = list(listing.snapshots())
    if any(row.lost for row in rows):
        return Room(0, 0, 0)  # pieces of the record that are missing may have named anything, and nothing is compacted
    present = [row for row in rows if not row.dropped_ns]
    kept = [row for row in present if row.number not in going]
    blocks = count_blocks(directory)
    with closing(Inventory.open(catalog_path(directory))) as inventory, inventory.at_one_moment():
        now = _Need(rows, [row.ordinal for row in present], blocks)
        then = _Need(rows, [row.ordinal for row in kept], blocks)
        for need in (now, then):
            need.mark(inventory)
        return _reckon(inventory, now.blocks, then.blocks, before_ns)


class _Need:
    """What some snapshots need."""

    def __init__(self, rows: Sequence[SnapshotRow], ordinals: Sequence[int], blocks: int) -> None:
        self._ordinals = ordinals
        self._judged = max((row.ordinal for row in rows if row.complete), default=0)
        """Names that ended later may be about to come back: a rename that a partial snapshot parted."""
        self._files, self.blocks = Marks(blocks, 0), Marks(blocks, 1)

    def mark(self, inventory: Inventory) -> None:
        """Go through all names and all blocks of files."""
        for names in inventory.file_names():
            self._mark_files(one.file for one in names if self._shows(one.born, one.died) or self._waits(one.died))
        self._mark_files(inventory.nameless_since(self._judged))
        for page in inventory.file_blocks():
            self.blocks.add(one.id for one in page if self._shows(one.born, one.died) and self._has_name(one.file))

    def _shows(self, born: int, died: int | None) -> bool:
        """Whether one of the snapshots shows a row."""
        at = bisect_left(self._ordinals, born)
        return at < len(self._ordinals) and (died is None or self._ordinals[at] < died)

    def _waits(self, died: int | None) -> bool:
        return died is not None and died > self._judged

    def _mark_files(self, files: Iterable[int]) -> None:
        self._files.add(map(_key, files))

    def _has_name(self, file: int) -> bool:
        return _key(file) in self._files


def _key(file: int) -> bytes:
    """A file's number as what `Marks` marks."""
    return file.to_bytes(_FILE_BYTES, "little")


def _reckon(inventory: Inventory, now: Marks, then: Marks, before_ns: int) -> Room:
    unused = frees = returns = 0
    last = inventory.checkpoint.segment
    for number in range(1, last + 1):
        free_now = free_then = total = 0
        for item in inventory.expected(number, 0, _END):
            size = HEADER_BYTES + item.stored
            total += size
            free_now += size if item.id and item.id not in now else 0
            free_then += size if item.id and item.id not in then else 0
        unused += free_now
        frees += max(0, free_then - free_now)
        if number < last and free_then >= WORTHWHILE * max(1, total) and is_old(inventory, number, before_ns):
            returns += free_then
    return Room(unused, frees, returns)
