"""Store case: what one finding about a store says of itself, to those who settle it. Pure.

**Owns** the small questions that settling asks again and again: whether the primary has given its word yet, what looks
at several blocks say as one, which range is meant, and whether another wrong place touches it.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from replicad.model.block import checksum
from replicad.model.divergence import Divergence, Part, differing_bits
from replicad.model.verdict import Sight, Verdict, Witness
from replicad.work.segment_check import Wrong

_SAYS_MORE = (Sight.MATCHES, Sight.UNKNOWN, Sight.DIFFERS, Sight.UNREADABLE, Sight.ABSENT)


def as_one(sights: Sequence[Sight]) -> Sight:
    """What looks at several blocks say as one: that some can be had, else unknown while one is, else the worst."""
    return next((sight for sight in _SAYS_MORE if sight in sights), Sight.UNKNOWN)


def awaits_witness(found: Divergence) -> bool:
    """Whether the primary has not said yet what it makes of the bad bytes."""
    return bool(found.seen) and found.evidence.witness is Witness.SILENT


def is_unjudged(found: Divergence) -> bool:
    """Whether it is still open what is wrong: of the bad bytes, or of the block that should stand there."""
    return awaits_witness(found) or (found.part is Part.BLOCK and found.verdict is Verdict.INCONCLUSIVE)


def is_lost_record(found: Divergence) -> bool:
    """Whether it is something that a replay missed, which no place in a segment stands for."""
    return found.part is Part.RECORD and not found.length


def touches(wrong: Wrong, found: Divergence) -> bool:
    """Whether a wrong place of the same segment has bytes of the finding's."""
    if Part.SEGMENT in (wrong.part, found.part):
        return True
    return wrong.offset < end_of(found) and found.offset < wrong.offset + wrong.length


def with_bits(found: Divergence, new: bytes, old: bytes) -> Divergence:
    """Count the bits that differ, when the new frame may be the very one that was written."""
    if len(found.blocks) != 1 or not len(new) == len(old) == found.length:
        return found
    bits, positions = differing_bits(new, old)
    return msgspec.structs.replace(found, bits=bits, bit_positions=positions, expected=checksum(new))


def end_of(found: Divergence) -> int:
    """The offset behind its bad bytes."""
    return found.offset + found.length


def blocks_worded(blocks: Sequence[bytes]) -> str:
    """How many, as a person reads it."""
    return "1 block" if len(blocks) == 1 else f"{len(blocks)} blocks"
