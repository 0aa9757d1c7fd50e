"""Remedy: what is done about a verdict. Pure: a plan is a value, `work/` carries it out."""

from __future__ import annotations

from enum import StrEnum

from replicad.model.divergence import Divergence, Part
from replicad.model.verdict import Verdict


class Remedy(StrEnum):
    """One way to settle a divergence."""

    NOTHING = "nothing"
    """All is well, or the next pass does what is needed."""
    LOOK_AGAIN = "look_again"
    """Collect more evidence; nothing is written anywhere."""
    MEND_REPLICA = "mend_replica"
    """Append a proven block to the store in place of the bad one."""
    MEND_PRIMARY = "mend_primary"
    """Write the replica's proven block over the bad bytes of the primary's file, keeping its times."""
    MEND_METADATA = "mend_metadata"
    """Set the recorded mode, owner and attributes again."""
    ADOPT_RECORD = "adopt_record"
    """Make the ledger anew from the replica's record (`replicad rebuild --ledger`)."""
    SEND_RECORD = "send_record"
    """Tell the replica the whole record anew, in a snapshot of its own; no block that it has is sent."""
    LAY_SEGMENT = "lay_segment"
    """Lay a segment anew: its good frames, and the catalog's copies of the others, into a new file that is verified and
    then put in its place."""
    REBUILD_BOOK = "rebuild_book"
    """Make the damaged book anew: the catalog from the segments, the ledger from the replica's record."""
    NONE_LEFT = "none_left"
    """No side has the bytes: restore an older state, or a copy from elsewhere, and acknowledge the loss."""


REMEDIES: dict[Verdict, Remedy] = {
    Verdict.OK: Remedy.NOTHING,
    Verdict.CHANGED: Remedy.NOTHING,
    Verdict.REPLICA_ROT: Remedy.MEND_REPLICA,
    Verdict.REPLICA_UNREADABLE: Remedy.MEND_REPLICA,
    Verdict.MISSING_ON_REPLICA: Remedy.MEND_REPLICA,
    Verdict.PRIMARY_ROT: Remedy.MEND_PRIMARY,
    Verdict.PRIMARY_UNREADABLE: Remedy.MEND_PRIMARY,
    Verdict.BOTH_ROT: Remedy.NONE_LEFT,
    Verdict.RECORD_ROT: Remedy.ADOPT_RECORD,
    Verdict.METADATA_DRIFT: Remedy.MEND_METADATA,
    Verdict.RECORD_DIVERGENCE: Remedy.SEND_RECORD,
    Verdict.INCONCLUSIVE: Remedy.LOOK_AGAIN,
}
"""Every verdict has one."""

_OF_PARTS: dict[Part, Remedy] = {
    Part.RECORD: Remedy.LAY_SEGMENT,
    Part.COMMIT: Remedy.LAY_SEGMENT,
    Part.STRUCTURE: Remedy.LAY_SEGMENT,
    Part.SEGMENT: Remedy.LAY_SEGMENT,
    Part.BOOK: Remedy.REBUILD_BOOK,
}
"""Parts that are mended in a way of their own, whatever was found about them; the blocks of a segment that is laid anew
are mended as blocks."""


def remedy_for(part: Part, verdict: Verdict) -> Remedy:
    """What is done about a verdict on that part."""
    remedy = REMEDIES[verdict]
    if remedy in (Remedy.NOTHING, Remedy.LOOK_AGAIN):
        return remedy
    return _OF_PARTS.get(part, remedy)


def remedy_of(found: Divergence) -> Remedy:
    """What is done about a divergence: as above, but nothing is mended with bytes that nobody has."""
    remedy = remedy_for(found.part, found.verdict)
    return Remedy.NONE_LEFT if found.is_lost and remedy in _WITH_PROVEN_BLOCKS else remedy


_WITH_PROVEN_BLOCKS = frozenset({Remedy.MEND_REPLICA, Remedy.MEND_PRIMARY})

WRITES_PRIMARY = frozenset({Remedy.MEND_PRIMARY, Remedy.MEND_METADATA})
"""Remedies that write into the primary's data: by default only a person orders them."""
