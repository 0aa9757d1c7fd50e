"""Store case: what one finding about a store says of itself, to those who settle it. Pure.

**Owns** the small questions that settling asks again and again: whether the primary has given its word yet, what looks
at several blocks say as one, which range is meant, and whether another wrong place touches it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

import msgspec

from replicad.db.catalog import BlockPlace
from replicad.model.block import checksum
from replicad.model.divergence import Divergence, Part, Receipt, State, differing_bits
from replicad.model.remedy import Remedy
from replicad.model.show import counted
from replicad.model.verdict import Sight, Verdict, Witness
from replicad.store.format import HEADER_BYTES
from replicad.work.segment_check import Wrong

LAID = (Part.RECORD, Part.COMMIT, Part.STRUCTURE, Part.SEGMENT)
"""Parts that are settled as soon as their segment is laid anew."""
LOOKS_TO_BE_WELL = 2
"""How often in a row a place must read well, in looks apart, before a finding about it is gone."""
JUDGED_FIRST = "what else was found in segment {} is judged first"
WELL_AGAIN = "read well again from the medium"
BAD_AGAIN = "read badly once more, when it was looked at again"
_SAYS_MORE = (Sight.MATCHES, Sight.UNKNOWN, Sight.DIFFERS, Sight.UNREADABLE, Sight.ABSENT)


def as_one(sights: Sequence[Sight]) -> Sight:
    """What looks at several blocks say as one: that some can be had, else unknown while one is, else the worst."""
    return next((sight for sight in _SAYS_MORE if sight in sights), Sight.UNKNOWN)


def said_by_look(found: Divergence, is_well: bool) -> tuple[str, State]:
    """What one more look at its place adds to the history of an open finding, "" for nothing, and its state then: gone
    when it read well so often in a row. A look between two good ones that was none begins the row anew."""
    row = sum(1 for _ in takewhile(lambda event: event.what == WELL_AGAIN, reversed(found.events)))
    if not is_well:
        return BAD_AGAIN if row else "", State.OPEN
    if row + 1 < LOOKS_TO_BE_WELL:
        return WELL_AGAIN, State.OPEN
    return f"{WELL_AGAIN}, {row + 1} times in a row", State.GONE


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


def begun_behind(found: Sequence[Divergence], name: str) -> Sequence[Divergence]:
    """All of them in their order, the one behind `name` first."""
    at = next((number for number, one in enumerate(found, 1) if one.id == name), 0)
    return [*found[at:], *found[:at]]


def receipt_of(
    found: Divergence,
    remedy: Remedy,
    result: str,
    at_ns: int,
    *,
    at: BlockPlace | None = None,
    after: bytes = b"",
    detail: str = "",
) -> Receipt:
    """What a repair did; `at` is where a block was stored anew, and `after` what was read there."""
    return Receipt(
        divergence=found.id,
        at_ns=at_ns,
        remedy=remedy.value,
        path=b"segments/%08d.seg" % at.segment if at else found.path,
        offset=at.offset if at else found.offset,
        length=HEADER_BYTES + at.stored if at else found.length,
        before=found.seen,
        after=after,
        source="the primary" if at else "good frames and the catalog's copies",
        result=result,
        detail=detail,
    )


def end_of(found: Divergence) -> int:
    """The offset behind its bad bytes."""
    return found.offset + found.length


def blocks_worded(blocks: Sequence[bytes]) -> str:
    """How many, as a person reads it."""
    return counted(len(blocks), "block")
