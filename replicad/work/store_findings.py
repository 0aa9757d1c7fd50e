"""Store findings: what a check of a store gave, as divergences in the findings book.

**Owns** how damage to a store is worded: key, part, evidence and affected files. What is open already with the same
bytes keeps everything that was learned since; what a person has acknowledged is not told again unless it has changed.

**Never** looks at a disk. In the shelf's thread, as the book is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from replicad.db.findings import Findings
from replicad.db.inventory import Inventory
from replicad.model.block import checksum
from replicad.model.divergence import Divergence, Event, Look, Part, Side, State, differing_bits, newly_found
from replicad.model.verdict import Books, Evidence, Sight
from replicad.store.segments import Damage
from replicad.system.clock import Clock
from replicad.work.book_damage import CATALOG, EVIDENCE
from replicad.work.harm import Harm
from replicad.work.quarantine import Quarantine
from replicad.work.segment_check import Wrong


@dataclass(frozen=True, slots=True)
class Seen:
    """One wrong place with what is needed to tell of it."""

    wrong: Wrong
    source: str
    """"media" or "cache"."""
    harm: Harm | None = None
    """What it means for files; None where nobody looked it up, as for what is told already."""
    expected: bytes = b""
    """The very bytes that should stand there, when the catalog has a copy."""


class StoreFindings:
    """Reports into one book."""

    def __init__(self, client: str, dataset: str, findings: Findings, quarantine: Quarantine, clock: Clock) -> None:
        self._client, self._dataset, self._findings = client, dataset, findings
        self._quarantine, self._clock = quarantine, clock

    def open_ones(self) -> list[Divergence]:
        """All open findings about this store."""
        return self._findings.listed(side=Side.REPLICA)

    def noted_ones(self) -> list[Divergence]:
        """Those of which a person has taken note, and that are not repaired."""
        return self._findings.listed(side=Side.REPLICA, state=State.ACKNOWLEDGED)

    def told_blocks(self) -> set[bytes]:
        """All blocks that stand in a finding which is open, or of which a person has taken note."""
        return {name for one in self.open_ones() for name in one.blocks} | self.noted_blocks()

    def noted_blocks(self) -> set[bytes]:
        """All blocks of findings that a person has taken note of, wherever they stood once."""
        return {name for one in self.noted_ones() for name in one.blocks}

    def news(self, places: Sequence[Wrong]) -> list[Wrong]:
        """Those that nothing is told of yet, or something else: `report` would."""
        known, noted = self._told() if places else ({}, {})
        lasting = [w for w in places if not w.is_transient and not any(_is_of(w, one) for one in known.values())]
        return [w for w in lasting if not _is_told(self._segment_finding(Seen(w, "")), known, noted)]

    def report(self, places: Sequence[Seen]) -> list[Divergence]:
        """Tell of places in segments; what stands in the book of each now. Acknowledged ones are left out."""
        known = self.open_ones() if places else []
        fresh = [seen for seen in places if not any(_is_of(seen.wrong, one) for one in known)]
        return self._remember([(self._segment_finding(seen), seen) for seen in fresh])

    def report_missing(self, ids: Sequence[bytes], harm: Harm) -> list[Divergence]:
        """Tell of blocks that files name and that stand in no segment."""
        found = []
        for name in ids:
            affected, count = harm.of([name])
            found.append(
                self._divergence(
                    f"block:{name.hex()}",
                    Part.BLOCK,
                    f"block {name.hex()[:16]} is named by the record and stands in no segment",
                    Evidence(replica=Sight.ABSENT, books=Books.AGREE),
                    path=b"catalog.db",
                    blocks=(name,),
                    affected=affected,
                    affected_count=count,
                )
            )
        return self._remember([(one, None) for one in found])

    def report_book(self, texts: Sequence[str], *, is_unreadable: bool) -> list[Divergence]:
        """Tell that the catalog cannot be read, or says what the segments prove to be false."""
        if not texts:
            return []
        what = texts[0] if len(texts) == 1 else f"{texts[0]} (and {len(texts) - 1} more)"
        evidence = EVIDENCE[Side.REPLICA] if is_unreadable else Evidence(Sight.ABSENT, Sight.ABSENT)
        return self._remember([(self._divergence(CATALOG, Part.BOOK, what, evidence, path=b"catalog.db"), None)])

    def settle_book(self, inventory: Inventory) -> None:
        """A catalog that was found damaged and has been put right meanwhile, by a rebuild, is no finding any more, open
        or taken note of."""
        for found in (*self.open_ones(), *self.noted_ones()):
            if found.part is Part.BOOK and not inventory.verify():
                text = "the catalog was put right while nobody worked on the store"
                self._findings.update(found.with_event(self._clock.now_ns(), text, state=State.GONE))

    def report_damage(self, damages: Sequence[Damage]) -> list[Divergence]:
        """Tell what replays could not take in because something before it was damaged."""
        found = []
        for damage in damages:
            what = f"segment {damage.segment} at byte {damage.offset}: {damage.reason}"
            key = f"frame:{damage.segment}:{damage.offset}"
            evidence = Evidence(primary=Sight.ABSENT, replica=Sight.ABSENT)
            found.append(
                self._divergence(
                    key, Part.RECORD, what, evidence, path=_file(damage.segment), number=damage.segment,
                    offset=damage.offset,
                )
            )  # fmt: skip
        return self._remember([(one, None) for one in found])

    def _segment_finding(self, seen: Seen) -> Divergence:
        wrong = seen.wrong
        blocks = tuple(item.id for item in wrong.items if item.id)
        affected, count = seen.harm.of(blocks) if seen.harm else ((), 0)
        primary = Sight.UNKNOWN if wrong.part is Part.BLOCK else Sight.ABSENT  # the other parts are the replica's own
        books = Books.AGREE if wrong.items else Books.UNKNOWN
        bits, positions = -1, tuple[int, ...]()
        if seen.expected and len(seen.expected) == len(wrong.seen):
            bits, positions = differing_bits(seen.expected, wrong.seen)
        return self._divergence(
            wrong.key,
            wrong.part,
            _words(wrong),
            Evidence(primary=primary, replica=wrong.sight, books=books),
            path=_file(wrong.segment),
            offset=wrong.offset,
            length=wrong.length,
            number=wrong.segment,
            blocks=blocks,
            expected=checksum(seen.expected) if seen.expected else b"",
            seen=checksum(wrong.seen) if wrong.seen else b"",
            bits=bits,
            bit_positions=positions,
            affected=affected,
            affected_count=count,
            looks=self._looks(seen),
        )

    def _looks(self, seen: Seen) -> tuple[Look, ...]:
        wrong, now = seen.wrong, self._clock.now_ns()
        sight = Sight.MATCHES if wrong.is_transient else wrong.sight
        digest = checksum(wrong.seen) if wrong.seen else b""
        first = Look(now, Side.REPLICA, Sight.DIFFERS, seen.source, reason=wrong.what)
        return first, Look(now, Side.REPLICA, sight, seen.source, digest, "read again from the medium")

    def _divergence(self, key: str, part: Part, what: str, evidence: Evidence, **fields: object) -> Divergence:
        return newly_found(
            key=key,
            dataset=self._dataset,
            side=Side.REPLICA,
            peer=self._client,
            part=part,
            what=what,
            at_ns=self._clock.now_ns(),
            evidence=evidence,
            **fields,
        )

    def _remember(self, found: Sequence[tuple[Divergence, Seen | None]]) -> list[Divergence]:
        known, noted = self._told()
        stand: list[Divergence] = []
        for one, seen in found:
            if seen and seen.wrong.is_transient:
                stand.append(self._remember_transient(one, known.get(one.key)))
            elif one.key in known and _same(known[one.key], one):
                stand.append(known[one.key])
            elif not _is_told(one, known, noted):
                event = Event(one.found_ns, f"found: {one.what}")
                kept = self._kept(one, seen.wrong.seen) if seen and seen.wrong.seen else ""
                stand.append(self._findings.report(msgspec.structs.replace(one, quarantine=kept, events=(event,))))
        return stand

    def _told(self) -> tuple[dict[str, Divergence], dict[str, Divergence]]:
        """What is open, and what a person has acknowledged, by key."""
        return {one.key: one for one in self.open_ones()}, {one.key: one for one in self.noted_ones()}

    def _remember_transient(self, found: Divergence, known: Divergence | None) -> Divergence:
        """It read badly once and well when it was read again: noted, and settled unless it was open before."""
        text = f"read badly once, and well when it was read again from the medium: {found.what}"
        if known:
            noted = known.with_event(found.found_ns, text)
            self._findings.update(noted)
            return noted
        event = Event(found.found_ns, text)
        return self._findings.report(msgspec.structs.replace(found, state=State.GONE, events=(event,)))

    def _kept(self, found: Divergence, data: bytes) -> str:
        return self._quarantine.keep(f"{found.number:08d}-{found.offset:08d}-{found.found_ns}.bad", data)


def _is_of(wrong: Wrong, known: Divergence) -> bool:
    """Whether a wrong place is what is left of damaged blocks that are known: some of them were stored anew elsewhere,
    so that fewer, or nothing, are expected there any more; what was found of them is about to be settled."""
    if wrong.is_transient or known.part is not Part.BLOCK or known.number != wrong.segment:
        return False
    if wrong.part is Part.BLOCK:
        is_within = known.offset <= wrong.offset and wrong.offset + wrong.length <= known.offset + known.length
        is_news = wrong.sight is Sight.UNREADABLE and known.evidence.replica is not Sight.UNREADABLE
        is_left = wrong.key != known.key or len(wrong.items) < len(known.blocks)
        return is_left and is_within and not is_news and {one.id for one in wrong.items} <= set(known.blocks)
    is_apart = wrong.offset >= known.offset + known.length or known.offset >= wrong.offset + wrong.length
    return wrong.part is Part.STRUCTURE and not wrong.items and not is_apart


def _words(wrong: Wrong) -> str:
    if wrong.part is Part.BLOCK and len(wrong.items) > 1:
        return f"{len(wrong.items)} block frames in a row: {wrong.what}"
    return wrong.what


def _file(segment: int) -> bytes:
    return b"segments/%08d.seg" % segment


def _is_told(found: Divergence, *told: dict[str, Divergence]) -> bool:
    return any(found.key in ones and _same(ones[found.key], found) for ones in told)


def _same(known: Divergence, found: Divergence) -> bool:
    """Whether nothing changed since it was told."""
    if known.part is Part.BOOK:
        return True
    now, then = found.evidence.replica, known.evidence.replica
    return (known.part, known.seen, known.length, then) == (found.part, found.seen, found.length, now) and set(
        found.blocks
    ) == set(known.blocks)
