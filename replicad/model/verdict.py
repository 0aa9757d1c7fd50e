"""Verdict: what is wrong, and on which side, from what was seen. Pure and total.

**Owns** the one decision that everything else here exists for. Evidence goes in, a verdict comes out: a table from
what one look at each copy gave, with three rules in front of it. **Never** looks at anything itself, and never takes
"could not find out" for "is well": what is not known ends as `INCONCLUSIVE`, which is retried and shown.

Two words matter. The *record* is what both books say a block should be; a look *matches* when the bytes, read from
the medium, have the recorded checksum and id. And rot is only what differs **without a write**: as soon as the
file's identity moved, its bytes say nothing about the record any more.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Sight(StrEnum):
    """What looking at one copy gave. A side that was read twice and gave two answers is UNKNOWN."""

    MATCHES = "matches"
    """The bytes are what the record says."""
    DIFFERS = "differs"
    """Read again from the medium, they are something else, and the same something both times."""
    UNREADABLE = "unreadable"
    """The medium answered with an error, again when asked again."""
    ABSENT = "absent"
    """Nothing stands there: on the primary no file holds this block now, on the replica no frame does."""
    UNKNOWN = "unknown"
    """Not looked at yet, out of reach, or two looks that contradict each other."""


class Writing(StrEnum):
    """Whether somebody wrote the primary's file since it was recorded, by its identity before and after the look."""

    UNWRITTEN = "unwritten"
    WRITTEN = "written"
    UNKNOWN = "unknown"


class Witness(StrEnum):
    """What the other side's processor says of the very bytes that were found to differ."""

    CONFIRMS = "confirms"
    """It computes the same checksum and id: the bytes do differ, it is not this machine's arithmetic or memory."""
    CONTRADICTS = "contradicts"
    SILENT = "silent"
    """Not asked yet, or out of reach."""


class Books(StrEnum):
    """Whether ledger and catalog name the same content at this place."""

    AGREE = "agree"
    DIFFER = "differ"
    UNKNOWN = "unknown"


class Evidence(msgspec.Struct, frozen=True):
    """All that a verdict rests on."""

    primary: Sight = Sight.UNKNOWN
    replica: Sight = Sight.UNKNOWN
    writing: Writing = Writing.UNKNOWN
    witness: Witness = Witness.SILENT
    books: Books = Books.UNKNOWN
    same_bytes: bool = False
    """Both copies differ from the record and hold the same bytes."""
    metadata_differs: bool = False
    """Mode, owner, target or extended attributes are not the recorded ones although nobody wrote the entry."""


class Verdict(StrEnum):
    """What it means. Each member says when it holds and what is done about it."""

    OK = "ok"
    """Both copies are what the record says. Nothing is done."""
    CHANGED = "changed"
    """The primary's file was written since, and the replica's copy is not in question. Nothing is done here: the next
    pass reads it whole and replicates it."""
    REPLICA_ROT = "replica_rot"
    """The replica's stored bytes changed. They are kept aside; a proven block from the primary is appended in their
    place (by itself, unless `repair` says "ask")."""
    PRIMARY_ROT = "primary_rot"
    """The primary's bytes changed without a write, and the replica has the recorded ones. They are never sent; a person
    (or `repair = "auto"`) has the replica's block written back."""
    BOTH_ROT = "both_rot"
    """Neither side can give the recorded bytes. What is lost is named exactly; an older snapshot may help."""
    RECORD_ROT = "record_rot"
    """Both copies hold the same proven bytes and the primary's record alone says otherwise. The ledger is adopted anew
    from the replica; no copy is touched."""
    PRIMARY_UNREADABLE = "primary_unreadable"
    """The primary's medium gives errors, the replica has the bytes. Repaired like PRIMARY_ROT; the disk is dying."""
    REPLICA_UNREADABLE = "replica_unreadable"
    """The replica's medium gives errors. Repaired like REPLICA_ROT; the disk is dying."""
    MISSING_ON_REPLICA = "missing_on_replica"
    """The replica's record names bytes that no segment holds any more. Repaired like REPLICA_ROT."""
    METADATA_DRIFT = "metadata_drift"
    """Content is well; mode, owner, target or attributes changed without a write. Never replicated; set back by a
    repair."""
    RECORD_DIVERGENCE = "record_divergence"
    """Ledger and catalog name different content. No block can be judged there; the record is sent anew as a whole."""
    INCONCLUSIVE = "inconclusive"
    """Not enough is known yet, or the looks contradict each other. Looked at again until it is settled; an alert after
    a day."""


_M, _D, _U, _A, _X = Sight.MATCHES, Sight.DIFFERS, Sight.UNREADABLE, Sight.ABSENT, Sight.UNKNOWN

TABLE: dict[tuple[Sight, Sight], Verdict] = {
    # (primary, replica), for a primary that was not written
    (_M, _M): Verdict.OK,
    (_M, _D): Verdict.REPLICA_ROT,
    (_M, _U): Verdict.REPLICA_UNREADABLE,
    (_M, _A): Verdict.MISSING_ON_REPLICA,
    (_M, _X): Verdict.INCONCLUSIVE,
    (_D, _M): Verdict.PRIMARY_ROT,
    (_D, _D): Verdict.BOTH_ROT,
    (_D, _U): Verdict.BOTH_ROT,
    (_D, _A): Verdict.BOTH_ROT,
    (_D, _X): Verdict.INCONCLUSIVE,
    (_U, _M): Verdict.PRIMARY_UNREADABLE,
    (_U, _D): Verdict.BOTH_ROT,
    (_U, _U): Verdict.BOTH_ROT,
    (_U, _A): Verdict.BOTH_ROT,
    (_U, _X): Verdict.INCONCLUSIVE,
    # only history holds the block: the replica alone can be wrong
    (_A, _M): Verdict.OK,
    (_A, _D): Verdict.REPLICA_ROT,
    (_A, _U): Verdict.REPLICA_UNREADABLE,
    (_A, _A): Verdict.MISSING_ON_REPLICA,
    (_A, _X): Verdict.INCONCLUSIVE,
    # what one side says alone never makes the other one right
    (_X, _M): Verdict.INCONCLUSIVE,
    (_X, _D): Verdict.INCONCLUSIVE,
    (_X, _U): Verdict.INCONCLUSIVE,
    (_X, _A): Verdict.INCONCLUSIVE,
    (_X, _X): Verdict.INCONCLUSIVE,
}


def judge(evidence: Evidence) -> Verdict:
    """The verdict; total over all evidence."""
    primary, replica = speaking(evidence), evidence.replica
    confirmed = evidence.witness is Witness.CONFIRMS
    if (primary, replica) == (Sight.DIFFERS, Sight.DIFFERS) and evidence.same_bytes and confirmed:
        return Verdict.RECORD_ROT  # before the books: two copies that agree say which record is wrong
    if evidence.books is Books.DIFFER:
        return Verdict.RECORD_DIVERGENCE
    if Sight.DIFFERS in (primary, replica) and not confirmed:
        return Verdict.INCONCLUSIVE
    if evidence.writing is Writing.WRITTEN and replica in (Sight.MATCHES, Sight.UNKNOWN):
        return Verdict.CHANGED
    verdict = TABLE[primary, replica]
    if verdict is Verdict.OK and evidence.metadata_differs:
        return Verdict.METADATA_DRIFT if evidence.writing is Writing.UNWRITTEN else Verdict.INCONCLUSIVE
    return verdict


def speaking(evidence: Evidence) -> Sight:
    """What the primary's look says about the record: recorded bytes are a proof, whoever wrote them; other bytes of a
    file that was written say nothing about the record any more, and of one where that is unknown, nothing yet."""
    if evidence.primary is Sight.MATCHES:
        return Sight.MATCHES
    if evidence.writing is Writing.WRITTEN:
        return Sight.ABSENT
    if evidence.writing is Writing.UNKNOWN and evidence.primary in (Sight.DIFFERS, Sight.UNREADABLE):
        return Sight.UNKNOWN
    return evidence.primary


def is_lost(evidence: Evidence) -> bool:
    """Whether it is certain that neither side can give the recorded bytes: both were looked at, and it is settled that
    the looks are right and what the record is."""
    if judge(evidence) in (Verdict.INCONCLUSIVE, Verdict.RECORD_ROT, Verdict.RECORD_DIVERGENCE):
        return False
    looks = (evidence.primary, evidence.replica)
    return Sight.UNKNOWN not in looks and Sight.MATCHES not in looks
