"""Primary findings: what a scrub saw on the primary's disk, as divergences in the book, and when they are gone again.

**Owns** the words and the evidence of such findings. Nothing is declared to be rot here: the other side has not been
asked yet, so a block that differs is INCONCLUSIVE until it was. **Never** touches an expected checksum (guarantee 4).

Before anything is reported the record is asked once more, in one transaction with a last look at the file: a pass may
have recorded it while it was read. And what was well when it was read again is remembered too, as a finding that is
gone at once: a cable or a memory module that errs now and then must not go unseen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from replicad.db.due import Due
from replicad.db.ledger import BlockRow, Known, put_of, stamp_of
from replicad.db.look_up import LookUp
from replicad.db.unnamed import is_unnamed
from replicad.model.block import block_count, checksum
from replicad.model.divergence import (
    MAX_AFFECTED,
    Affected,
    Divergence,
    Event,
    Look,
    Part,
    Side,
    State,
    block_key,
    differing_bits,
    metadata_key,
    newly_found,
)
from replicad.model.entry import show_path
from replicad.model.verdict import Evidence, Sight, Writing
from replicad.source.root import Root
from replicad.source.verify import Name, Odd, Seen, zero_checksum
from replicad.work.book_damage import EVIDENCE, LEDGER
from replicad.work.confirm import recorded_entry
from replicad.work.dataset import Dataset
from replicad.work.quarantine import NOT_KEPT, Quarantine

_SAID = {
    Sight.DIFFERS: "a block differs from the record although nobody wrote the file",
    Sight.UNREADABLE: "a block cannot be read from the medium",
    Sight.UNKNOWN: "a block gave two different answers when it was read twice",
}
_PASSING = "a block was read wrongly once, and well when it was read again: memory, cable or controller may be failing"
MAX_KEYS = 100_000
"""Open findings that are kept in mind while parts are looked at: ten megabytes."""
MAX_PROBLEMS = 20
"""Lines about a damaged ledger that one finding holds."""


class Place(NamedTuple):
    """A block that was not well, and where it stands."""

    part: Due
    name: Name
    """The entry that led to it."""
    row: BlockRow | None
    """As recorded when it was looked at; None for a block that is all-zero because nothing is recorded."""
    odd: Odd
    source: str
    """Where the bytes came from: "media" or "cache"."""


class PrimaryFindings:
    """Writes into one dataset's findings book. The methods with `ledger` in their words run in the ledger's thread."""

    def __init__(self, dataset: Dataset, quarantine: Quarantine) -> None:
        self._dataset, self._quarantine = dataset, quarantine

    # in the ledger's thread: is it still so?

    def is_current(self, place: Place) -> bool:
        """Whether the ledger still says what the block was compared with, and the file is still the recorded one."""
        ledger, number = self._dataset.ledger, place.odd.number
        row = ledger.blocks(place.part.file, number, number + 1).get(number)
        return row == place.row and self.is_recorded(place.name, place.part.file)

    def is_recorded(self, name: Name, file: int) -> bool:
        """Whether the entry is still recorded as it was, and still is on the disk what it was."""
        known = self._dataset.ledger.known(name.path)
        if known is None or stamp_of(known) != name.stamp or (file > 0 and known.file != file):
            return False
        with Root(self._dataset.root) as root:
            now = root.look(name.path)
        return now is not None and now.identity == name.stamp.identity

    def affected(self, file: int, odd: Odd) -> tuple[tuple[Affected, ...], int]:
        """Names of the file, which all show the bad bytes, and how many there are."""
        look_up = LookUp(self._dataset.ledger.database)
        named = look_up.named(file, MAX_AFFECTED)
        return tuple(Affected(path, odd.offset, odd.length) for path, _ in named), look_up.name_count(file)

    # in a worker thread

    def keep(self, place: Place) -> str:
        """Put the bad bytes into quarantine; the file that has them, "" when they are not kept."""
        seen = place.odd.first if place.odd.first.data else place.odd.second
        if not seen.data:
            return ""
        return self._quarantine.keep(f"{place.part.file}-{place.odd.number}-{seen.checksum.hex()[:16]}", seen.data)

    # in the books' thread

    def report_block(self, place: Place, affected: tuple[Affected, ...], count: int, kept: str, at_ns: int) -> None:
        """Remember a block that was not well. One that was well at the second look is gone with that."""
        odd, passing = place.odd, place.odd.is_passing
        if passing and self._open_at(block_key(place.part.file, odd.number)):
            return  # it failed before: one good look does not settle it
        evidence = Evidence(primary=odd.sight, writing=Writing.UNWRITTEN)
        bits, positions = _bits(place)
        what = _PASSING if passing else _said(odd)
        missing = odd.sight is Sight.DIFFERS and not kept
        self._dataset.findings.report(
            newly_found(
                key=block_key(place.part.file, odd.number),
                dataset=self._dataset.config.name,
                side=Side.PRIMARY,
                peer="",
                part=Part.BLOCK,
                state=State.GONE if passing else State.OPEN,
                what=what,
                at_ns=at_ns,
                evidence=evidence,
                path=place.name.path,
                offset=odd.offset,
                length=odd.length,
                file=place.part.file,
                number=odd.number,
                blocks=(place.row.id,) if place.row and place.row.id else (),
                expected=_expected(place.row, odd.length),
                seen=odd.first.checksum or odd.second.checksum,
                bits=bits,
                bit_positions=positions,
                affected=affected,
                affected_count=count,
                looks=tuple(_look(seen, place.source, at_ns) for seen in (odd.first, odd.second)),
                events=(Event(at_ns, f"{what}; {NOT_KEPT}" if missing else what),),
                quarantine=kept,
            )
        )

    def report_metadata(self, name: Name, file: int, drift: Sequence[str], at_ns: int) -> None:
        """Remember an entry whose metadata changed although nobody wrote it."""
        evidence = Evidence(primary=Sight.MATCHES, writing=Writing.UNWRITTEN, metadata_differs=True)
        what = f"metadata changed although nobody wrote the entry: {'; '.join(drift)}"
        self._dataset.findings.report(
            newly_found(
                key=metadata_key(name.path),
                dataset=self._dataset.config.name,
                side=Side.PRIMARY,
                peer="",
                part=Part.METADATA,
                what=what,
                at_ns=at_ns,
                evidence=evidence,
                path=name.path,
                file=file,
                **drift_of(name, drift),
                affected=(Affected(name.path, 0, 0),),
                affected_count=1,
                events=(Event(at_ns, what),),
            )
        )

    def report_book(self, problems: Sequence[str], path: str, at_ns: int) -> None:
        """Remember that the ledger is damaged. It judges everything else, so nothing has to confirm that."""
        what = f"the ledger is damaged: {problems[0]}"
        self._dataset.findings.report(
            newly_found(
                key=LEDGER,
                dataset=self._dataset.config.name,
                side=Side.PRIMARY,
                peer="",
                part=Part.BOOK,
                what=what,
                at_ns=at_ns,
                evidence=EVIDENCE[Side.PRIMARY],
                path=path.encode(),
                seen=checksum("\n".join(problems).encode()),
                events=tuple(Event(at_ns, problem) for problem in problems[:MAX_PROBLEMS]),
            )
        )

    def open(self) -> list[Divergence]:
        """Open findings of this side, the oldest if there are very many."""
        return [one for one in self._dataset.findings.listed(side=Side.PRIMARY) if not one.peer]

    def open_keys(self) -> list[str]:
        """Their keys."""
        return self._dataset.findings.open_keys(Side.PRIMARY, "", MAX_KEYS)

    def _open_at(self, key: str) -> Divergence | None:
        return self._dataset.findings.open_at(Side.PRIMARY, "", key)

    def set_gone(self, key: str, why: str, at_ns: int) -> bool:
        """What was found there can be found no more; whether anything open stood there."""
        found = self._open_at(key)
        if found is None:
            return False
        self._dataset.findings.update(found.with_event(at_ns, why, state=State.GONE))
        return True

    # in the ledger's thread: what is not there any more cannot be broken

    def outdated(self, found: Divergence) -> str:
        """Why an open finding speaks of something that is recorded no more; "" when it still holds."""
        if found.part is Part.METADATA:
            return self._metadata_outdated(found)
        if found.part is not Part.BLOCK:
            return ""
        ledger = self._dataset.ledger
        named = LookUp(ledger.database).named(found.file, 1)
        if not named:
            return "" if is_unnamed(ledger, found.file) else "the file exists no more"
        (_, known), *_ = named
        row = ledger.blocks(found.file, found.number, found.number + 1).get(found.number)
        now = (row.id,) if row and row.id else ()
        is_within = known.size < 0 or found.number < block_count(known.size, known.block_bytes)
        return "" if now == found.blocks and is_within else "the file was written since, and recorded anew"

    def _metadata_outdated(self, found: Divergence) -> str:
        ledger = self._dataset.ledger
        recorded = recorded_entry(ledger, found)
        if recorded is None:
            return "" if is_unnamed(ledger, found.file) else f"{show_path(found.path)} exists no more"
        path, _ = recorded
        if path != found.path and self._open_at(metadata_key(path)):
            return f"the entry is {show_path(path)} by now, and it was found there"
        same = not found.expected or found.expected == record_of(name_of(*recorded))
        return "" if same else "the entry was written since, and recorded anew"


def name_of(path: bytes, known: Known) -> Name:
    """The recorded entry as a scrub compares it."""
    if not known.extra:
        return Name(path, stamp_of(known))
    put = put_of(path, known)
    return Name(path, stamp_of(known), put.meta.xattrs, put.target, put.device)


def drift_of(name: Name, drift: Sequence[str]) -> dict[str, bytes]:
    """The fields of a finding by which a drift is known again, whoever met it: what is recorded, and what differs."""
    return {"expected": record_of(name), "seen": checksum("\n".join(drift).encode())}


def record_of(name: Name) -> bytes:
    """One value for all recorded metadata of an entry."""
    return checksum(repr((*name.stamp, name.xattrs, name.target, name.device)).encode())


def _said(odd: Odd) -> str:
    reason = odd.first.reason or odd.second.reason
    return f"{_SAID[odd.sight]}: {reason}" if reason else _SAID[odd.sight]


def _expected(row: BlockRow | None, length: int) -> bytes:
    return row.checksum if row and row.id else zero_checksum(length)


def _look(seen: Seen, source: str, at_ns: int) -> Look:
    return Look(at_ns, Side.PRIMARY, seen.sight, source, seen.checksum, seen.reason)


def _bits(place: Place) -> tuple[int, tuple[int, ...]]:
    """Which bits differ, where that can be said without the other side: the block should be all-zero."""
    data = place.odd.first.data
    if not data or (place.row and place.row.id):
        return -1, ()
    return differing_bits(bytes(len(data)), data)
