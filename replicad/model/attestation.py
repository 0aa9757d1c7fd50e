"""Attestation: what a replica says of its copy of one dataset, from its own books and by its own clock. Pure.

It is what a gate goes by and what a policy is judged with: never what the primary remembers of it. **Owns** as well
what a replica remembers of the drills that were made from it: its client tells, the replica dates.
"""

from __future__ import annotations

import msgspec

from replicad.model.drill import DrillRecord, Outcome
from replicad.model.head import Head

MAX_ASKED_PINS = 8
"""Pins of one store that its client asked for: each may keep a whole generation of the dataset from going, and a client
that was taken over must not be able to fill the disk with them. A person on the replica may set any number."""


class DrillNote(msgspec.Struct, frozen=True):
    """A drill as its replica remembers it."""

    number: int = 0
    """The primary's number of it."""
    snapshot: int = 0
    digest: str = ""
    """Of that snapshot, in hex; 0 and "" where it came to none."""
    kind: str = "sampled"
    outcome: Outcome = Outcome.INCONCLUSIVE
    ended_ns: int = 0
    """By the primary's clock; once the replica has heard of it, not later than that moment by its own."""
    files: int = 0
    bytes: int = 0
    reason: str = ""
    """Why it is not proven."""


class DrillMemory(msgspec.Struct, frozen=True):
    """What a replica remembers of its drills."""

    last: DrillNote = DrillNote()
    """The last one, and a failure until another one is proven or fails: a drill that found nothing out takes nothing
    back. `ended_ns` 0: there was none."""
    proven: DrillNote = DrillNote()
    """The last one that was proven."""

    def heard(self, note: DrillNote, now_ns: int) -> DrillMemory:
        """With one more that the client tells of. What was heard before or is older than the last changes nothing.

        Newer is what has a higher number or, since a book of drills may begin anew, a later time: with a clock that was
        ahead for a while the last drill need not be the latest."""
        dated = msgspec.structs.replace(note, ended_ns=min(note.ended_ns, now_ns))
        is_newer = note.number > self.last.number or dated.ended_ns > self.last.ended_ns
        is_void = self.last.outcome is Outcome.FAILED and note.outcome is Outcome.INCONCLUSIVE
        if self._has(note) or not is_newer or is_void or not says_something(note.kind, note.outcome):
            return self
        return DrillMemory(dated, dated if dated.outcome is Outcome.PROVEN else self.proven)

    def _has(self, note: DrillNote) -> bool:
        """Whether it is one of these, which may be dated otherwise."""
        return any(msgspec.structs.replace(one, ended_ns=note.ended_ns) == note for one in (self.last, self.proven))


class Attestation(msgspec.Struct, frozen=True):
    """What one replica says of its copy. Times are ns since 1970 by its clock unless it says otherwise; 0 = never."""

    now_ns: int = 0
    """Its clock when it said so."""
    head: Head = Head()
    """Its newest snapshot."""
    complete: Head = Head()
    """Its newest complete snapshot; number 0 when it has none."""
    created_ns: int = 0
    """When the pass of that one began, by the primary's clock."""
    received_ns: int = 0
    lost_records: int = 0
    """Pieces of its record that damage took."""
    store_state: str = ""
    total_bytes: int = 0
    never_bytes: int = 0
    """Bytes that came so lately that they were not read back yet."""
    oldest_verified_ns: int = 0
    scrub_state: str = ""
    """"" when it runs no scrub of this dataset."""
    scrub_reason: str = ""
    open: dict[str, int] = {}
    """Findings about its copy that nobody has settled, by verdict."""
    lost: int = 0
    """Those of which no side has the bytes."""
    drills: DrillMemory = DrillMemory()
    keeps_all: bool = False
    """Whether it lets no snapshot go at all."""
    keep_younger_than_s: float = 0.0
    """What is younger than this stays there, whatever its rules are."""
    keep_at_least: int = 0
    """Snapshots of at least so many days stay there."""
    pins_asked: int = 0
    """Pins that this client has asked for; MAX_ASKED_PINS at most."""


def says_something(kind: str, outcome: Outcome) -> bool:
    """Whether a drill says something about the whole dataset: that files which a person picked came back does not; that
    they did not, does."""
    return kind != "paths" or outcome is not Outcome.PROVEN


def note_of(record: DrillRecord) -> DrillNote:
    """What a replica is told of a drill."""
    return DrillNote(
        number=record.number,
        snapshot=record.snapshot,
        digest=record.digest,
        kind=record.kind,
        outcome=record.outcome,
        ended_ns=record.ended_ns,
        files=record.files,
        bytes=record.bytes,
        reason=record.reasons[0] if record.reasons else "",
    )
