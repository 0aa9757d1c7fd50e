"""Expire: let go the snapshots that retention does not keep: in the log, in the catalog, row by row.

The decision is a frame of its own in the segments, durable before the catalog follows: a rebuild from the segments
comes to the same. **Owns** the steps, each in the archive's own thread while it `is_settled`, each bounded, each
leaving a store that is whole at whatever point it ends. Blocks stay where they are: work/compact.py frees their room.
"""

from __future__ import annotations

from collections.abc import Sequence

from replicad.db.expiry import drop_snapshots, has_rows_to_go, purge
from replicad.store.format import Retention, encode_retention, parse_frame
from replicad.work.archive import Archive
from replicad.work.replay import PURGED_ROWS, copy_of

NUMBERS_PER_FRAME = 1000
"""Numbers of snapshots that one frame names: some KiB."""


def drop(archive: Archive, numbers: Sequence[int]) -> int:
    """Keep these snapshots no more; how many were kept until now. Durable when it returns.

    The newest is never dropped. Needs no room beyond the reserve: refusing it would free nothing. Raises ReplicadError,
    DiskFullError: then all of a frame's snapshots are dropped or none."""
    newest = archive.head.number
    going = sorted({number for number in numbers if number != newest})
    return sum(
        _drop(archive, going[start : start + NUMBERS_PER_FRAME]) for start in range(0, len(going), NUMBERS_PER_FRAME)
    )


def _drop(archive: Archive, numbers: Sequence[int]) -> int:
    decision = Retention(archive.store.now_ns(), tuple(numbers))
    frame = encode_retention(decision)
    with archive.upkeep() as (store, catalog):
        segment, offset = store.append(frame, [parse_frame(frame, 0).checksum])
        catalog.add_copies([copy_of(segment, offset, frame)])
        store.sync()
        return drop_snapshots(catalog.database, decision.dropped, decision.at_ns)


def purge_step(archive: Archive) -> bool:
    """Take away some of the rows that no snapshot shows; whether there may be more."""
    if not has_rows_to_go(archive.inventory.database):
        return False
    with archive.upkeep() as (_, catalog):
        return purge(catalog.database, PURGED_ROWS)
