"""The remedy: whatever is found, something is said to be done, and little of it writes into a person's data."""

from __future__ import annotations

import itertools

from replicad.model.divergence import Divergence, Part, Side
from replicad.model.remedy import REMEDIES, WRITES_PRIMARY, Remedy, remedy_for, remedy_of
from replicad.model.verdict import Evidence, Sight, Verdict, Witness, Writing, judge

# Of each part, one letter a verdict in the order below: . nothing, ? look again, r mend the replica, p mend the
# primary, m mend metadata, a adopt the record, s send the record, l lay the segment anew, b rebuild the book, x none
# is left.
ORDER = (
    Verdict.OK,
    Verdict.CHANGED,
    Verdict.INCONCLUSIVE,
    Verdict.REPLICA_ROT,
    Verdict.REPLICA_UNREADABLE,
    Verdict.MISSING_ON_REPLICA,
    Verdict.PRIMARY_ROT,
    Verdict.PRIMARY_UNREADABLE,
    Verdict.BOTH_ROT,
    Verdict.RECORD_ROT,
    Verdict.METADATA_DRIFT,
    Verdict.RECORD_DIVERGENCE,
)
TABLE = {
    Part.BLOCK: "..? rrr pp x a m s",
    Part.METADATA: "..? rrr pp x a m s",
    Part.ENTRY: "..? rrr pp x a m s",
    Part.RECORD: "..? lll ll l l l l",
    Part.COMMIT: "..? lll ll l l l l",
    Part.STRUCTURE: "..? lll ll l l l l",
    Part.SEGMENT: "..? lll ll l l l l",
    Part.BOOK: "..? bbb bb b b b b",
}
LETTERS = {
    ".": Remedy.NOTHING,
    "?": Remedy.LOOK_AGAIN,
    "r": Remedy.MEND_REPLICA,
    "p": Remedy.MEND_PRIMARY,
    "m": Remedy.MEND_METADATA,
    "a": Remedy.ADOPT_RECORD,
    "s": Remedy.SEND_RECORD,
    "l": Remedy.LAY_SEGMENT,
    "b": Remedy.REBUILD_BOOK,
    "x": Remedy.NONE_LEFT,
}


def found(part: Part, evidence: Evidence) -> Divergence:
    """A finding about which this is known."""
    verdict = judge(evidence)
    return Divergence(
        key="k", dataset="www", side=Side.REPLICA, peer="", part=part, verdict=verdict, what="", evidence=evidence
    )


def test_every_part_and_verdict_has_its_remedy() -> None:
    """The table above is the whole truth."""
    assert set(TABLE) == set(Part) and set(ORDER) == set(Verdict) == set(REMEDIES)
    for part, letters in TABLE.items():
        for verdict, letter in zip(ORDER, letters.replace(" ", ""), strict=True):
            assert remedy_for(part, verdict) is LETTERS[letter], (part, verdict)
    assert {remedy_for(part, verdict) for part, verdict in itertools.product(Part, Verdict)} == set(Remedy)


def test_what_is_not_known_is_never_mended() -> None:
    """Nothing is written anywhere because of what is well, written, or not settled."""
    for part in Part:
        for verdict in (Verdict.OK, Verdict.CHANGED, Verdict.INCONCLUSIVE):
            assert remedy_for(part, verdict) in (Remedy.NOTHING, Remedy.LOOK_AGAIN)


def test_the_primary_is_written_for_its_own_rot_alone() -> None:
    """Only three verdicts, all of them about the primary's own disk, lead to a write into a person's data."""
    writing = {
        verdict for part, verdict in itertools.product(Part, Verdict) if remedy_for(part, verdict) in WRITES_PRIMARY
    }
    assert writing == {Verdict.PRIMARY_ROT, Verdict.PRIMARY_UNREADABLE, Verdict.METADATA_DRIFT}


def test_nothing_is_mended_with_bytes_that_nobody_has() -> None:
    """A frame that only history needs, and that is rotten, has no source: the remedy says so. With a source, and for
    all other evidence, it is the one of part and verdict."""
    rotten = Evidence(Sight.ABSENT, Sight.DIFFERS, witness=Witness.CONFIRMS)
    assert remedy_of(found(Part.BLOCK, rotten)) is Remedy.NONE_LEFT
    assert remedy_of(found(Part.RECORD, rotten)) is Remedy.LAY_SEGMENT
    assert remedy_of(found(Part.SEGMENT, rotten)) is Remedy.LAY_SEGMENT
    for primary, replica, writing, witness in itertools.product(Sight, Sight, Writing, Witness):
        one = found(Part.BLOCK, Evidence(primary, replica, writing, witness))
        if one.is_lost:
            assert remedy_of(one) is Remedy.NONE_LEFT
        else:
            assert remedy_of(one) is remedy_for(Part.BLOCK, one.verdict) is not Remedy.NONE_LEFT
