"""Met: what a primary's jobs meet on their way and a scrub would have found: rot, and metadata that drifted.

**Owns** the form in which both become findings, and that what is known already is not reported anew: a pass every few
minutes must not wipe out what the other side has said of a finding since. **Never** takes a single look for rot: what
differs is read once more from the medium first, and two looks that contradict each other stay inconclusive.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from replicad.db.findings import Findings
from replicad.db.ledger import Ledger
from replicad.model.block import block_id, checksum
from replicad.model.divergence import (
    Affected,
    Divergence,
    Event,
    Look,
    Part,
    Side,
    State,
    block_key,
    metadata_key,
    newly_found,
)
from replicad.model.entry import Identity, Kind, Stamp
from replicad.model.verdict import Evidence, Sight, Writing
from replicad.source.reread import Ask, Moved, reread
from replicad.source.root import Root, Trouble
from replicad.source.scan import Drifted
from replicad.source.verify import Examined, Name, examine_entries
from replicad.system.clock import Clock
from replicad.work.primary_findings import drift_of, name_of


class Rotten(NamedTuple):
    """A block that differs from the record though its file was not written."""

    path: bytes
    identity: Identity
    file: int
    number: int
    block_bytes: int
    length: int
    id: bytes
    expected: bytes
    seen: bytes
    """Checksum of what was read, through whatever cache."""


def look_again(root: Root, rotten: Rotten, dataset: str, now_ns: int) -> Divergence | None:
    """Read the block once more, from the medium; the finding, or None when somebody has written the file by now.

    In a thread."""
    ask = Ask(rotten.path, (rotten.number,), rotten.block_bytes, rotten.identity)
    (answer,) = reread(root, [ask], medium=True)
    looks = [Look(now_ns, Side.PRIMARY, Sight.DIFFERS, "cache", rotten.seen)]
    if isinstance(answer, Moved) or (isinstance(answer, Trouble) and answer.vanished):
        return None
    if isinstance(answer, Trouble):
        looks.append(Look(now_ns, Side.PRIMARY, Sight.UNREADABLE, "media", reason=answer.reason))
        return _rot(rotten, dataset, looks, Sight.UNREADABLE, now_ns)
    seen = checksum(answer.blocks[0])
    sight = _sight(rotten, answer.blocks[0], seen)
    looks.append(Look(now_ns, Side.PRIMARY, sight, "media" if answer.medium else "cache", seen))
    return _rot(rotten, dataset, looks, Sight.DIFFERS if seen == rotten.seen else Sight.UNKNOWN, now_ns)


def _sight(rotten: Rotten, data: bytes, seen: bytes) -> Sight:
    if rotten.expected:
        return Sight.MATCHES if seen == rotten.expected else Sight.DIFFERS
    return Sight.MATCHES if block_id(data) == rotten.id else Sight.DIFFERS


def _rot(rotten: Rotten, dataset: str, looks: Sequence[Look], sight: Sight, now_ns: int) -> Divergence:
    evidence = Evidence(primary=sight, writing=Writing.UNWRITTEN)
    offset = rotten.number * rotten.block_bytes
    what = {
        Sight.DIFFERS: "a block differs from the record though its file was not written",
        Sight.UNREADABLE: "a block that differed from the record cannot be read any more",
    }.get(sight, "a block gives other bytes each time it is read")
    return newly_found(
        key=block_key(rotten.file, rotten.number),
        dataset=dataset,
        side=Side.PRIMARY,
        peer="",
        part=Part.BLOCK,
        what=what,
        at_ns=now_ns,
        evidence=evidence,
        path=rotten.path,
        offset=offset,
        length=rotten.length,
        file=rotten.file,
        number=rotten.number,
        blocks=(rotten.id,),
        expected=rotten.expected,
        seen=looks[-1].checksum or rotten.seen,
        affected=(Affected(rotten.path, offset, rotten.length),),
        affected_count=1,
        looks=tuple(looks),
        events=(Event(now_ns, "found by a catch-up; the block was not sent"),),
    )


def recorded_names(ledger: Ledger, drifted: Iterable[Drifted]) -> list[tuple[Name, int]]:
    """These entries as a scrub compares them, and the number of each one's file. In the ledger's thread."""
    recorded = ((one.path, ledger.known(one.path)) for one in drifted)
    return [(name_of(path, known), known.file) for path, known in recorded if known]


def known_as(root: Root, names: Sequence[tuple[Name, int]], clock: Clock) -> dict[bytes, dict[str, object]]:
    """By path, the fields by which each drift is known again, as a scrub that looks at the entry would have them: what
    a person has taken note of is not told anew by whichever of the two meets it next. In a thread."""
    looks = zip(names, examine_entries(root, [name for name, _ in names], clock), strict=True)
    return {
        name.path: {"file": file, **drift_of(name, seen.drift)}
        for (name, file), seen in looks
        if isinstance(seen, Examined)
    }


def drift(drifted: Drifted, dataset: str, now_ns: int, fields: Mapping[str, object] | None = None) -> Divergence:
    """The finding that an entry with other metadata, unchanged since it was recorded, amounts to; `fields` are those of
    `known_as`."""
    content = (drifted.known.kind, drifted.known.size) == (drifted.stamp.kind, drifted.stamp.size)
    sight = Sight.MATCHES if content else Sight.UNREADABLE  # as far as can be told without reading
    evidence = Evidence(primary=sight, writing=Writing.UNWRITTEN, metadata_differs=True)
    what = f"{', '.join(_differences(drifted.known, drifted.stamp))}, though nobody changed the entry"
    return newly_found(
        key=metadata_key(drifted.path),
        dataset=dataset,
        side=Side.PRIMARY,
        peer="",
        part=Part.METADATA,
        what=what,
        at_ns=now_ns,
        evidence=evidence,
        path=drifted.path,
        affected=(Affected(drifted.path, 0, 0),),
        affected_count=1,
        looks=(Look(now_ns, Side.PRIMARY, sight, "cache", reason=what),),
        events=(Event(now_ns, "found by a pass; it was not replicated"),),
        **(fields or {}),
    )


def _differences(known: Stamp, now: Stamp) -> list[str]:
    """What differs, in words."""
    found = []
    if known.kind != now.kind:
        found.append(f"is a {_kind(now.kind)} where a {_kind(known.kind)} is recorded")
    if known.mode != now.mode:
        found.append(f"mode is {now.mode:04o} where {known.mode:04o} is recorded")
    if (known.uid, known.gid) != (now.uid, now.gid):
        found.append(f"owner is {now.uid}:{now.gid} where {known.uid}:{known.gid} is recorded")
    if known.size != now.size:
        found.append(f"size is {now.size} where {known.size} is recorded")
    return found


def _kind(number: int) -> str:
    return Kind(number).name.lower().replace("_", " ") if number else "thing of no known kind"


def report(findings: Findings, found: Sequence[Divergence]) -> None:
    """Write down what is new. In the books' thread.

    A finding that is open stays as it is, whoever made it, unless a block holds other bytes by now: the other side may
    have confirmed it since."""
    known = {one.key: one for one in findings.listed(side=Side.PRIMARY, state=State.OPEN)} if found else {}
    for one in found:
        before = known.get(one.key)
        if before is None:
            findings.report(one)
        elif one.part is Part.BLOCK and before.seen != one.seen:
            event = Event(one.found_ns, f"found again by a catch-up, and otherwise: {one.what}")
            findings.report(msgspec.structs.replace(one, events=(event,)))
