"""Whole looks: what only a look at all of a catalog, or all of a segment, can say.

Each rests for many times as long as it took (work/rest.py): what it is about may last for months.

**Owns** when each was looked at last. **Never** changes anything.
"""

from __future__ import annotations

from collections.abc import Container
from contextlib import closing
from pathlib import Path

from replicad.db.inventory import Inventory
from replicad.model.errors import BookDamagedError
from replicad.store.segments import segment_path
from replicad.system.clock import Clock
from replicad.system.disk import Disk
from replicad.work.archive import catalog_path
from replicad.work.rest import Rest
from replicad.work.segment_check import SegmentCheck, Wrong, looked_at_twice
from replicad.work.structure_check import check_structure, is_covered


class WholeLooks:
    """Looks at one dataset's store. One thread at a time; where a session ended amid a look, two may look at the same
    for a moment."""

    def __init__(self, directory: Path, disk: Disk, clock: Clock) -> None:
        self._directory, self._disk, self._clock = directory, disk, clock
        self._segments: dict[int, Rest] = {}
        self._book, self._coverage, self._names = Rest(clock), Rest(clock), Rest(clock)

    def segment(self, inventory: Inventory, number: int, store: bytes) -> list[Wrong] | None:
        """What is wrong in a segment of `store`; None when it was looked at not long ago. Raises FileNotFoundError."""
        rest = self._segments.setdefault(number, Rest(self._clock))
        if not rest.is_over:
            return None
        began_s = self._clock.monotonic_s()
        path = segment_path(self._directory, number)
        checked = looked_at_twice(lambda: SegmentCheck(inventory, self._disk, path, number, store, size=0).run())
        rest.begin(began_s)
        return checked.wrongs

    def is_book_well(self) -> bool | None:
        """Whether the catalog can be read and contradicts nothing; None when it was looked at not long ago."""
        if not self._book.is_over:
            return None
        began_s = self._clock.monotonic_s()
        try:
            with closing(Inventory.open(catalog_path(self._directory))) as inventory:
                structure = check_structure(inventory)
                return not (structure.pages or structure.false)
        except BookDamagedError:
            return False
        finally:
            self._book.begin(began_s)

    def is_covered(self, inventory: Inventory, told: Container[bytes]) -> bool:
        """Whether every block that a snapshot names stands somewhere or is among those `told` of; that it is not so is
        believed for a while."""
        if not self._coverage.is_over:
            return False
        began_s = self._clock.monotonic_s()
        if is_covered(inventory, told):
            return True
        self._coverage.begin(began_s)
        return False

    def unnamed(self, missing: frozenset[bytes]) -> frozenset[bytes]:
        """Those of blocks that stand nowhere which nothing names any more; none when it was looked not long ago.

        Raises BookDamagedError."""
        if not self._names.is_over:
            return frozenset()
        began_s = self._clock.monotonic_s()
        with closing(Inventory.open(catalog_path(self._directory))) as inventory:
            unnamed = missing - inventory.named(missing)
        self._names.begin(began_s)
        return unnamed
