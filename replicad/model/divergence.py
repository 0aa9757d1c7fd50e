"""Divergence: a finding that stays open until it is settled, as a plain value. Pure.

**Owns** the words in which a finding is remembered, sent and shown: what was found where, the evidence, the looks that
gave it, its timeline, and the receipts of repairs. The same value stands in a findings book (db/findings.py), travels
over the link, and is what `replicad divergence show` explains.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import TypeVar

import msgspec

from replicad.model.block import block_id
from replicad.model.entry import show_path
from replicad.model.verdict import Evidence, Sight, Verdict, Witness, is_lost, judge

MAX_AFFECTED = 100
"""Affected files that are named one by one; `affected_count` counts all."""
MAX_BITS = 64
"""Positions of flipped bits that are named one by one; `bits` counts all."""
MAX_EVENTS = 200
"""Lines of history, and looks, that one divergence keeps: of one that stays for months, the first and the latest."""
MAX_BLOCKS_NAMED = 4096
"""Blocks that one divergence names: more than a segment of 64 KiB blocks holds; small ones come in several."""
ID_CHARACTERS = 8
REPAIR_RESULTS = ("repaired", "failed", "undone")


class Side(StrEnum):
    """Whose copy is meant."""

    PRIMARY = "primary"
    REPLICA = "replica"


class State(StrEnum):
    """How far a divergence has come. Only OPEN counts as divergent."""

    OPEN = "open"
    REPAIRED = "repaired"
    """A repair was made and read again from the medium."""
    ACKNOWLEDGED = "acknowledged"
    """A person has taken note of it and wants no more of it."""
    GONE = "gone"
    """Proven gone: what was found can be found no more (written, dropped, or read well again twice)."""


class Part(StrEnum):
    """What is broken."""

    BLOCK = "block"
    """Bytes of a file: one block on the primary, one or more block frames in a row on the replica."""
    METADATA = "metadata"
    """Of an entry of the primary."""
    RECORD = "record"
    """A record frame: which names there were in a snapshot."""
    COMMIT = "commit"
    """A commit frame: the link of the hash chain."""
    STRUCTURE = "structure"
    """A segment's header, seal or padding, or bytes behind its end: no user data."""
    SEGMENT = "segment"
    """A whole segment: missing, cut short, or standing in another one's place."""
    BOOK = "book"
    """A page of ledger, catalog or findings book."""
    ENTRY = "entry"
    """The two sides' records of a path."""


class Look(msgspec.Struct, frozen=True):
    """One look at the bytes in question."""

    at_ns: int
    side: Side
    """Whose copy was looked at."""
    sight: Sight
    source: str
    """"media", "cache", or "peer" for what the other side computed from the bytes it was sent."""
    checksum: bytes = b""
    """Of what was seen."""
    reason: str = ""


class Affected(msgspec.Struct, frozen=True):
    """A byte range of a file that the damage touches, and in which states of it."""

    path: bytes
    offset: int
    length: int
    first: int = 0
    """First snapshot that shows these bytes; 0 = unknown."""
    last: int = 0
    """Last one; 0 while the newest snapshot still does."""

    @property
    def is_live(self) -> bool:
        """Whether the dataset as it is now has these bytes."""
        return not self.last


class Event(msgspec.Struct, frozen=True):
    """One line of a divergence's history."""

    at_ns: int
    what: str


class Divergence(msgspec.Struct, frozen=True, kw_only=True):
    """One finding. Times are ns since 1970, 0 = never."""

    id: str = ""
    """ID_CHARACTERS hex digits, the same on both sides; given when it is first remembered."""
    key: str
    """What makes it the same finding when it is found again, such as `block:77:3` or `frame:2:4096`."""
    dataset: str
    side: Side
    peer: str
    """The other node: a replica's name at the primary, the client's name at the replica; "" = all."""
    part: Part
    verdict: Verdict = Verdict.INCONCLUSIVE
    state: State = State.OPEN
    found_ns: int = 0
    changed_ns: int = 0
    what: str
    """The damage in one sentence, such as "block frame fails its checksum"."""
    path: bytes = b""
    """Primary: the file. Replica: the segment file, relative to the dataset's store; a book's file name."""
    offset: int = 0
    length: int = 0
    """The bad bytes within `path`."""
    file: int = 0
    number: int = 0
    """Primary: file number and block number. Replica: `file` is 0 and `number` the segment."""
    blocks: tuple[bytes, ...] = ()
    """Ids of the blocks that are damaged here (one on the primary); while some of many are repaired, those left."""
    mended: tuple[bytes, ...] = ()
    """Ids of those that are repaired already, or stored anew by a pass, as long as others are left."""
    expected: bytes = b""
    """Recorded checksum; b"" when there is none."""
    seen: bytes = b""
    """Checksum of the bytes found."""
    bits: int = -1
    """How many bits differ from the recorded bytes; -1 = unknown."""
    bit_positions: tuple[int, ...] = ()
    """The first MAX_BITS of them, counted from the first bit of the range."""
    affected: tuple[Affected, ...] = ()
    affected_count: int = 0
    evidence: Evidence = Evidence()
    looks: tuple[Look, ...] = ()
    events: tuple[Event, ...] = ()
    quarantine: str = ""
    """File in the state (or store) directory that holds the bad bytes; "" = none kept."""

    @property
    def is_lost(self) -> bool:
        """Whether no side has the recorded bytes any more. What is no block of a file can be had from elsewhere: books
        from the other book, records from the catalog, metadata from the record; blocks that were lost with a segment
        are findings of their own."""
        return self.part is Part.BLOCK and is_lost(self.evidence)

    def with_event(self, at_ns: int, what: str, **changes: object) -> Divergence:
        """The divergence with one more line of history, and whatever else changed with it."""
        events = first_and_latest((*self.events, Event(at_ns, what)))
        return msgspec.structs.replace(self, events=events, changed_ns=at_ns, **changes)

    def is_same_damage(self, other: Divergence) -> bool:
        """Whether the very same was seen: neither mended nor worse since."""
        return _damage(self) == _damage(other)

    def found_again(self, found: Divergence) -> Divergence:
        """This divergence, and what finding it once more adds. That the other side has not been asked about the same
        damage again does not undo what it said."""
        settled = self.is_same_damage(found) and found.evidence.witness is Witness.SILENT
        stays = settled and found.verdict is Verdict.INCONCLUSIVE
        left, all_named = set(found.blocks), dict.fromkeys(self.mended + self.blocks + found.mended)
        mended = [name for name in all_named if name not in left] if self.side is Side.REPLICA else []
        return msgspec.structs.replace(
            found,
            id=self.id,
            found_ns=self.found_ns,
            mended=tuple(mended[: max(0, MAX_BLOCKS_NAMED - len(left))]),
            changed_ns=max(self.changed_ns, found.changed_ns),
            verdict=self.verdict if stays else found.verdict,
            evidence=self.evidence if stays else found.evidence,
            bits=self.bits if stays else found.bits,
            bit_positions=self.bit_positions if stays else found.bit_positions,
            affected=found.affected or self.affected,
            affected_count=found.affected_count or self.affected_count,
            looks=first_and_latest((*self.looks, *(look for look in found.looks if look not in self.looks))),
            events=first_and_latest((*self.events, *(event for event in found.events if event not in self.events))),
            quarantine=found.quarantine or self.quarantine,
        )


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """What one repair did: enough to check it, and to undo one of the primary."""

    number: int = 0
    divergence: str
    at_ns: int
    remedy: str
    path: bytes
    offset: int
    length: int
    before: bytes
    """Checksum of the bytes that were there."""
    after: bytes
    """Checksum of what was read from the medium afterwards."""
    source: str
    """Where the proven bytes came from."""
    result: str
    """One of REPAIR_RESULTS."""
    detail: str = ""


class Suspect(msgspec.Struct, frozen=True, kw_only=True):
    """A change that was replicated and looks like damage: its previous version is pinned until a person releases it."""

    number: int = 0
    path: bytes
    kind: str
    """few_bits, zeroed, emptied, same_mtime, scrambled."""
    snapshot: int
    """The one that brought the change."""
    before: int
    """The last one that has the version before: this is what is pinned."""
    found_ns: int
    blocks: int
    """How many blocks changed that way."""
    detail: str = ""
    released_ns: int = 0


SUSPECT_KINDS = {
    "few_bits": "a block changed by a few bits only",
    "zeroed": "blocks that held data are all-zero now",
    "emptied": "a file with content has none now",
    "same_mtime": "content changed under an unchanged modification time",
    "scrambled": "many files became incompressible at once, as encryption makes them",
}


Line = TypeVar("Line", Event, Look)


def first_and_latest(lines: tuple[Line, ...]) -> tuple[Line, ...]:
    """At most MAX_EVENTS lines: how it began, and what was last."""
    return lines if len(lines) <= MAX_EVENTS else lines[:1] + lines[1 - MAX_EVENTS :]


def _damage(found: Divergence) -> tuple[object, ...]:
    return (found.part, found.offset, found.length, found.expected, found.seen, found.blocks)


def newly_found(
    *,
    key: str,
    dataset: str,
    side: Side,
    peer: str,
    part: Part,
    what: str,
    at_ns: int,
    evidence: Evidence,
    **more: object,
) -> Divergence:
    """A finding as it is first told: judged by its evidence, found now. `more` are further fields of it."""
    found = Divergence(
        key=key,
        dataset=dataset,
        side=side,
        peer=peer,
        part=part,
        verdict=judge(evidence),
        found_ns=at_ns,
        changed_ns=at_ns,
        what=what,
        evidence=evidence,
    )
    return msgspec.structs.replace(found, **more)


def block_key(file: int, number: int) -> str:
    """Key of a finding about a block of the primary's."""
    return f"block:{file}:{number}"


def block_of_key(key: str) -> tuple[int, int] | None:
    """The file and number that such a key speaks of; None for any other key."""
    kind, _, place = key.partition(":")
    file, _, number = place.partition(":")
    return (int(file), int(number)) if kind == "block" and number else None


def metadata_key(path: bytes) -> str:
    """Key of a finding about an entry's metadata."""
    return f"metadata:{path.hex()}"


def undone_key(key: str) -> str:
    """What a book remembers under that a person has undone the repair of a finding with this key."""
    return f"undone:{key}"


def divergence_id(dataset: str, side: Side, peer: str, key: str, found_ns: int) -> str:
    """A short id that is the same wherever it is computed: the first hex digits of a BLAKE3."""
    return block_id("\0".join((dataset, side.value, peer, key, str(found_ns))).encode()).hex()[:ID_CHARACTERS]


def differing_bits(expected: bytes, seen: bytes) -> tuple[int, tuple[int, ...]]:
    """How many bits differ between two byte strings of one length, and where the first MAX_BITS do."""
    difference = int.from_bytes(expected, "little") ^ int.from_bytes(seen, "little")
    count, positions = difference.bit_count(), list[int]()
    while difference and len(positions) < MAX_BITS:
        lowest = difference & -difference
        positions.append(lowest.bit_length() - 1)
        difference ^= lowest
    return count, tuple(positions)


def count_open(divergences: Iterable[Divergence]) -> dict[str, int]:
    """Open ones by verdict."""
    counts: dict[str, int] = {}
    for found in divergences:
        if found.state is State.OPEN:
            counts[found.verdict.value] = counts.get(found.verdict.value, 0) + 1
    return counts


def as_document(found: Divergence) -> dict[str, object]:
    """The divergence as `--json` shows it: paths as text, ids and checksums in hex."""
    document: dict[str, object] = msgspec.to_builtins(found, builtin_types=(bytes,))
    document["path"] = show_path(found.path)
    document["blocks"] = [name.hex() for name in found.blocks]
    document["mended"] = [name.hex() for name in found.mended]
    document["expected"], document["seen"] = found.expected.hex(), found.seen.hex()
    document["affected"] = [
        {**msgspec.to_builtins(one, builtin_types=(bytes,)), "path": show_path(one.path), "live": one.is_live}
        for one in found.affected
    ]
    document["looks"] = [
        {**msgspec.to_builtins(one, builtin_types=(bytes,)), "checksum": one.checksum.hex()} for one in found.looks
    ]
    document["lost"] = found.is_lost
    return document
