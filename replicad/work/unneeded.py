"""Unneeded: damaged blocks that no snapshot names, so that nothing is lost with them.

A pass that was cut short had brought them, or the snapshots that named them were let go since.

**Owns** the proof: from a moment in which no session has unsealed work, marks tell of every block that a client is told
of or names; the catalog as it stood then is looked through; and at another such moment what neither knows of is taken
out of the catalog, so that a client that needs it again is asked for it. **Never** lets go what it cannot prove.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from contextlib import closing
from pathlib import Path

from replicad.db.catalog import BlockPlace
from replicad.db.inventory import Inventory
from replicad.model.divergence import Divergence
from replicad.model.errors import ReplicadError
from replicad.model.marks import Marks
from replicad.system.clock import Clock
from replicad.system.logs import logger
from replicad.work.archive import Archive, catalog_path
from replicad.work.rest import Rest

log = logger("work.unneeded")

MARKED_BLOCKS = 1_000_000
"""So many are told of between the two moments, or fewer: of more, some more count as needed."""


class Unneeded:
    """Of one store. In the shelf's thread, but for `look`."""

    def __init__(self, directory: Path, archive: Archive, clock: Clock) -> None:
        self._directory, self._archive, self._clock = directory, archive, clock
        self._rest = Rest(clock)
        self._marks: Marks | None = None
        self._proven: tuple[Marks, frozenset[bytes]] | None = None

    def begin(self) -> None:
        """Mark from the next settled moment on; a look counts only after that."""
        if self._marks is None or not self._archive.is_marking(self._marks):
            self._marks = self._proven = None
            self._archive.when_settled(self._begin_marking)

    def look(self, ids: frozenset[bytes]) -> None:
        """Look through the whole catalog for these. Not while nothing is marked, or when it was done not long ago."""
        marks = self._marks
        if marks is None or not self._rest.is_over:
            return
        began_s = self._clock.monotonic_s()
        with closing(Inventory.open(catalog_path(self._directory))) as inventory:
            self._proven = marks, ids - inventory.named(ids)
        self._rest.begin(began_s)

    def let_go(self, found: Divergence, places: Collection[BlockPlace]) -> bool:
        """Take the blocks of a finding, which stand at these damaged places, out of the catalog; nothing is said of its
        range any more. False, with nothing done, unless it is proven that nobody needs them."""
        if not self._is_proven(found.blocks):
            return False
        try:
            with self._archive.upkeep() as (store, catalog):
                catalog.drop_blocks(places)
                catalog.add_mended(found.number, found.offset, found.length, store.now_ns())
        except ReplicadError as error:  # of the disk: whoever has sealed need not meet it for this
            log.warning("what nobody needs could not be let go", divergence=found.id, reason=str(error))
            return False
        self._archive.forget(found.blocks)
        return True

    def _is_proven(self, ids: Collection[bytes]) -> bool:
        if self._proven is None or not self._archive.is_settled or self._archive.inventory.lost:
            return False
        marks, unnamed = self._proven
        return self._archive.is_marking(marks) and all(name in unnamed and name not in marks for name in ids)

    def _begin_marking(self) -> None:
        if self._archive.is_amid:
            self._archive.at_seal(self._begin_marking)  # what the pass has brought so far is in no marks
        else:
            self._marks = self._archive.begin_marking(MARKED_BLOCKS, os.urandom(1)[0])
