"""Outlook: what retention would do with one store, and which segments are worth compacting. Reads, never writes.

**Owns** what is protected besides by the rules: pins, what is being read, the version before each suspect change that
waits for a person, and everything that has not been examined for such changes yet. Asked of connections of its own, so
for any thread, and beside a daemon or without one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import msgspec

from replicad.db.findings import Findings
from replicad.db.inventory import Inventory
from replicad.db.listing import Listing, SnapshotRow
from replicad.model.errors import ReplicadError
from replicad.model.marks import Marks
from replicad.model.retention import Plan, Received, Rules, plan
from replicad.store.format import HEADER_BYTES, FrameError, decode_segment_header, parse_frame
from replicad.work.archive import catalog_path
from replicad.work.lease import leased
from replicad.work.suspect import EXAMINED

READ = "being read"
UNEXAMINED = "not examined for suspect changes yet"
COMPARED = "the next one is examined against it"
SUSPECT = "the version before a suspect change"
WORTHWHILE = 0.25
"""Share of a segment that must be unused: each byte given back costs three others to be copied, at most."""
_END = 1 << 62


class Fate(msgspec.Struct, frozen=True):
    """What becomes of one snapshot."""

    number: int
    created_ns: int
    received_ns: int
    complete: bool
    reason: str
    """Why it stays; "" when it goes."""


class Outlook(msgspec.Struct, frozen=True):
    """What retention would do with one store now."""

    client: str
    dataset: str
    hold: str
    """Why nothing goes, whatever the rules say; "" when they decide."""
    snapshots: list[Fate]

    @property
    def going(self) -> list[int]:
        """Numbers of the snapshots that go."""
        return [one.number for one in self.snapshots if not one.reason]


def look(client: str, dataset: str, directory: Path, findings: Findings, rules: Rules, now_ns: int) -> Outlook:
    """What would go now. Raises BookDamagedError, ReplicadError: then nothing may go."""
    with closing(Listing(catalog_path(directory))) as listing:
        rows = list(listing.snapshots())
    examined = int(findings.get(EXAMINED) or 0)
    kept = dict.fromkeys((row.number for row in rows if row.number > examined), UNEXAMINED)
    kept[examined] = COMPARED
    kept |= dict.fromkeys(findings.pinned(), SUSPECT)
    kept |= {pin.snapshot: f"pin {pin.name}" for pin in findings.pins()}
    found = plan(list(_received(rows)), rules, kept, now_ns)
    read = leased(directory, [choice.number for choice in found.choices if not choice.reason])
    return Outlook(client, dataset, found.hold, _fates(rows, found, read))


def _received(rows: list[SnapshotRow]) -> Iterator[Received]:
    """One that damage took something from, and those after it, are not complete."""
    lost = 0
    for row in rows:
        lost += row.lost
        yield Received(row.number, row.received_ns, row.complete and not lost, bool(row.dropped_ns))


def _fates(rows: list[SnapshotRow], found: Plan, read: Collection[int]) -> list[Fate]:
    """Who reads a snapshot keeps it from going and has no other say: the rules were applied without it, so that nobody
    can make one snapshot go by reading another."""
    reasons = {choice.number: choice.reason or (READ if choice.number in read else "") for choice in found.choices}
    return [
        Fate(row.number, row.created_ns, row.received_ns, row.complete, reasons[row.number])
        for row in rows
        if not row.dropped_ns
    ]


# compaction


@dataclass(frozen=True, slots=True)
class Usage:
    """How much of one segment is unused."""

    number: int
    unused_bytes: int
    total_bytes: int


def count_blocks(directory: Path) -> int:
    """How many places of files name a block: that many marks are made at most."""
    with closing(Inventory.open(catalog_path(directory))) as inventory:
        return int(inventory.database.value("SELECT count(*) FROM file_block"))


def mark_used(directory: Path, marks: Marks) -> None:
    """Mark every block that a kept snapshot, or the dataset as it is now, names."""
    with closing(Inventory.open(catalog_path(directory))) as inventory:
        for page in inventory.file_blocks():
            marks.add(row.id for row in page)


def worthwhile(directory: Path, marks: Marks, before_ns: int) -> list[Usage]:
    """Segments that are worth compacting, the emptiest first; of those that were full before `before_ns`, for what is
    young may be a first copy that was cut short and goes on."""
    with closing(Inventory.open(catalog_path(directory))) as inventory:
        last = inventory.checkpoint.segment
        found = [_usage(inventory, number, marks) for number in range(1, last) if is_old(inventory, number, before_ns)]
    chosen = [one for one in found if one.unused_bytes >= WORTHWHILE * max(1, one.total_bytes)]
    return sorted(chosen, key=lambda one: one.unused_bytes / one.total_bytes, reverse=True)


def _usage(inventory: Inventory, number: int, marks: Marks) -> Usage:
    unused = total = 0
    for item in inventory.expected(number, 0, _END):
        size = HEADER_BYTES + item.stored
        total += size
        unused += size if item.id and item.id not in marks else 0
    return Usage(number, unused, total)


def is_old(inventory: Inventory, number: int, before_ns: int) -> bool:
    """Whether the next segment was begun before that."""
    copy = inventory.copy(number + 1, 0)
    try:
        return copy is not None and decode_segment_header(parse_frame(copy.frame, 0)).created_ns < before_ns
    except (FrameError, ReplicadError):
        return False  # what cannot be known is left alone
