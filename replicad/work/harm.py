"""Harm: which files, in which snapshots, damaged blocks belong to.

There is no index from a block to its files: it would cost more than all else in the catalog, for a question that is
asked when something is broken. **Owns** the answer: the two tables are read once, page by page, for all damaged blocks
together, by SQLite, which leaves the interpreter to others. **Never** looks at more than MAX_PLACES of files.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import chain, islice
from pathlib import Path

from replicad.db.inventory import FileBlock, FileName, Inventory
from replicad.model.block import block_count
from replicad.model.divergence import MAX_AFFECTED, Affected
from replicad.system.clock import Clock
from replicad.work.rest import Rest

MAX_PLACES = 20_000
"""Places of damaged blocks in files that are looked at (3 MiB)."""


@dataclass(slots=True)
class Harm:
    """Where blocks are used."""

    affected: dict[bytes, list[Affected]] = field(default_factory=dict)
    """By block: live places first, MAX_AFFECTED at most."""
    counts: dict[bytes, int] = field(default_factory=dict)
    """By block: how many places there are."""
    live: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    """By block: file and number of a place that the newest snapshot shows."""
    is_cut: bool = False
    """Whether there were more places than are looked at."""

    def __or__(self, other: Harm) -> Harm:
        """Of these blocks and of others."""
        return Harm(
            self.affected | other.affected,
            self.counts | other.counts,
            self.live | other.live,
            self.is_cut or other.is_cut,
        )

    def of(self, ids: Iterable[bytes]) -> tuple[tuple[Affected, ...], int]:
        """What these blocks touch, adjacent ranges joined, and how many such ranges there are."""
        names = list(dict.fromkeys(ids))
        every = [one for name in names for one in self.affected.get(name, ())]
        joined = _joined(every)
        count = sum(self.counts.get(name, 0) for name in names) - (len(every) - len(joined))
        return tuple(joined[:MAX_AFFECTED]), count


class KnownHarm:
    """Harm of all damaged blocks, looked up together. A look takes all names and blocks of a catalog, and heads change
    all the time, so one is believed for a while: a live place that is one no more costs whoever goes there a look
    elsewhere. May be asked by several threads."""

    def __init__(self, catalog: Path, clock: Clock) -> None:
        self._catalog, self._clock, self._rest = catalog, clock, Rest(clock)
        self._known: tuple[frozenset[bytes], Harm] = frozenset(), Harm()
        """Blocks that were looked up, and what was found."""

    def of(self, ids: frozenset[bytes]) -> Harm | None:
        """The harm of these, and perhaps of others; None when `look` has to come first."""
        known, harm = self._known
        return harm if ids <= known and not self._rest.is_over else None

    def look(self, ids: frozenset[bytes]) -> Harm:
        """Look up those that are not known; after a rest all of them."""
        known, harm = self._known
        if self._rest.is_over:
            began_s = self._clock.monotonic_s()
            known, harm = ids, self._look_up(ids)
            self._rest.begin(began_s)
        elif fresh := ids - known:
            known, harm = known | ids, harm | self._look_up(fresh)
        self._known = known, harm
        return harm

    def _look_up(self, ids: frozenset[bytes]) -> Harm:
        inventory = Inventory.open(self._catalog)
        try:
            return harm_of(inventory, ids)
        finally:
            inventory.close()


def harm_of(inventory: Inventory, ids: Collection[bytes]) -> Harm:
    """Look up all places of these blocks. Goes through both tables once: two seconds for five million rows."""
    harm = Harm()
    rows = _rows_of(inventory, ids) if ids else {}
    harm.is_cut = sum(map(len, rows.values())) == MAX_PLACES
    number_at = cache(inventory.number_at)
    for names in inventory.names_of(rows) if rows else ():
        for name in names:
            for row in rows[name.file]:
                _add(harm, inventory, number_at, name, row)
    for found in harm.affected.values():
        found.sort(key=lambda one: (not one.is_live, one.path, one.offset))
    return harm


def _rows_of(inventory: Inventory, ids: Collection[bytes]) -> dict[int, list[FileBlock]]:
    found: dict[int, list[FileBlock]] = {}
    for row in islice(chain.from_iterable(inventory.uses(ids)), MAX_PLACES):
        found.setdefault(row.file, []).append(row)
    return found


def _add(harm: Harm, inventory: Inventory, number_at: Callable[[int], int], name: FileName, row: FileBlock) -> None:
    """One name of a file with one block of it, if there was a snapshot that showed both."""
    born = max(name.born, row.born)
    died = min((end for end in (name.died, row.died) if end is not None), default=None)
    if (died is not None and died <= born) or row.number >= block_count(name.size, name.block_bytes):
        return
    first = number_at(born)
    if not first:
        return  # of a pass under way
    harm.counts[row.id] = harm.counts.get(row.id, 0) + 1
    if died is None:
        harm.live.setdefault(row.id, (row.file, row.number))
    found = harm.affected.setdefault(row.id, [])
    if len(found) < MAX_AFFECTED:
        offset = row.number * name.block_bytes
        length = min(name.block_bytes, name.size - offset)
        last = 0 if died is None else number_at(died - 1)
        found.append(Affected(inventory.path(name.directory, name.name), offset, length, first, last))


def _joined(places: Sequence[Affected]) -> list[Affected]:
    """Ranges that lie side by side in one file and one span of snapshots as one."""
    joined: list[Affected] = []
    for one in sorted(places, key=lambda one: (not one.is_live, one.path, one.first, one.last, one.offset)):
        before = joined[-1] if joined else None
        if before and _follows(before, one):
            joined[-1] = Affected(one.path, before.offset, before.length + one.length, one.first, one.last)
        else:
            joined.append(one)
    return joined


def _follows(before: Affected, one: Affected) -> bool:
    same = (before.path, before.first, before.last) == (one.path, one.first, one.last)
    return same and before.offset + before.length == one.offset
