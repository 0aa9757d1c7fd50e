"""Coverage notes: how verification goes, written into the findings book now and then, for the report's history.

A scrub notes its own side; the tending loop notes what a replica says of its side, and keeps the map that it gives.
**Owns** how often. **Never** notes anything about a side that could not be looked at: that day stays unknown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import msgspec

from replicad.db.age_map import of_ledger, of_segments
from replicad.db.inventory import Inventory
from replicad.model.coverage import AgeMap, Day, day_of
from replicad.model.divergence import Divergence, Part, State
from replicad.status import ScrubStatus
from replicad.store.segments import segment_path
from replicad.work.archive import catalog_path

NOTE_EVERY_S = 900.0
"""Between two looks at one side: a bad quarter of an hour is seen, and a book of 400 days has as many rows."""
MAP_EVERY_S = 3600.0
"""Between two maps that a replica is asked for: some ten kilobytes each."""

MOST = 2**62
"""No number of bytes, nanoseconds or findings is greater; the books could keep twice as much."""


def look_of(status: ScrubStatus, now_ns: int) -> Day:
    """How a scrub stands, as one look at a day. What a peer says may be anything: it is brought within bounds."""
    return Day(
        day=day_of(now_ns),
        at_ns=now_ns,
        looks=1,
        total_bytes=_bounded(status.total_bytes),
        never_bytes=_bounded(status.never_bytes),
        overdue_bytes=_bounded(status.overdue_bytes),
        open=_bounded(sum(status.divergent.values())),
        lost=_bounded(status.lost),
    )


def map_of_primary(ledger: Path, found: Iterable[Divergence], at_ns: int) -> AgeMap:
    """The primary's side, with its open divergences. Raises BookDamagedError, ReplicadError."""
    bad = Counter((one.file, one.number) for one in found if one.part is Part.BLOCK and one.state is State.OPEN)
    return of_ledger(ledger, bad, at_ns)


def map_of_store(directory: Path, found: Iterable[Divergence], at_ns: int) -> AgeMap:
    """A store's side, with its open divergences. Raises BookDamagedError, ReplicadError."""
    inventory = Inventory.open(catalog_path(directory))
    try:
        verified = {number: (size, verified_ns) for number, size, verified_ns in inventory.scrubbed()}
        end = inventory.checkpoint
    finally:
        inventory.close()
    sizes = {number: _size_of(directory, number) for number in range(1, end.segment)}
    if end.segment:
        sizes[end.segment] = end.offset
    bad = Counter(one.number for one in found if one.state is State.OPEN and one.part is not Part.BOOK)
    return of_segments(sizes, verified, bad, at_ns)


def received(said: AgeMap, cells: int, at_ns: int) -> AgeMap:
    """A map that a peer has given at `at_ns`, with no more cells than one has, and every number within bounds."""
    kept = [
        msgspec.structs.replace(cell, **{name: _bounded(getattr(cell, name)) for name in cell.__struct_fields__})
        for cell in said.cells[:cells]
    ]
    return AgeMap(at_ns, _bounded(said.total_bytes), kept)


def _bounded(number: int) -> int:
    return max(0, min(number, MOST))


def _size_of(directory: Path, number: int) -> int:
    try:
        return segment_path(directory, number).stat().st_size
    except OSError:
        return 0  # a missing segment is a finding of the scrub's; on the map it has no room
