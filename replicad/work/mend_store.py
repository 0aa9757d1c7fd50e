"""Mend the store: what becomes of findings on a replica's disk, from the first question to the receipt.

**Owns** the way of a case: the primary says what it makes of the bad bytes and what it holds (`testimony`), the verdict
is given, the remedy is carried out (`mend`), the result is read again from the medium, a receipt is written. Guards
come first: `repair = "ask"` waits for a person, too many repairs within an hour open the breaker, and while a session
has unsealed work in the archive nothing is touched (work/awaiting.py).

**Never** trusts a frame: checksum, decompression and BLAKE3 prove it, and only blocks that are damaged here are taken.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import ClassVar, TypeVar

import msgspec

from replicad.db.catalog import BlockPlace
from replicad.db.findings import Findings
from replicad.db.inventory import Expected, Inventory
from replicad.link.messages import MAX_SEEN_BYTES, MAX_WANTS, Want
from replicad.model.divergence import Divergence, Part, State
from replicad.model.errors import BookDamagedError, ReplicadError, StoreDamagedError
from replicad.model.remedy import Remedy, remedy_for
from replicad.model.verdict import Evidence, Sight, Witness, Writing, judge
from replicad.store.format import HEADER_BYTES, Frame, FrameError, frame_header
from replicad.store.segments import segment_path
from replicad.system.clock import Clock
from replicad.system.disk import Disk
from replicad.work.archive import Archive, catalog_path
from replicad.work.awaiting import Awaiting
from replicad.work.bad_bytes import renewed, seen_bytes
from replicad.work.breaker import close_breaker, is_open, open_breaker, repairs_that_count
from replicad.work.harm import KnownHarm, harm_of
from replicad.work.quarantine import Quarantine
from replicad.work.segment_check import SegmentCheck, Wrong, looked_at_twice
from replicad.work.store_case import (
    JUDGED_FIRST,
    LAID,
    as_one,
    awaits_witness,
    begun_behind,
    blocks_worded,
    end_of,
    is_lost_record,
    is_unjudged,
    receipt_of,
    said_by_look,
    touches,
    with_bits,
)
from replicad.work.store_findings import Seen, StoreFindings
from replicad.work.structure_check import check_structure
from replicad.work.unneeded import Unneeded
from replicad.work.upkeep import (
    Appended,
    append_blocks,
    lay_segment,
    note_mended,
    places_read_well,
    prove,
    rebuild_book,
)
from replicad.work.whole_looks import WholeLooks

WAITING = "waiting for the pass under way to be sealed"
AWAITS_WITNESS = "its blocks were stored anew by a pass; what stood there is still to be judged with the primary"

Result = TypeVar("Result")
_Step = Callable[["StoreMender", Divergence, Sequence[bytes]], Divergence]


class StoreMender:
    """Settles the findings about one store. All coroutines; what they do to the store happens in the shelf's thread."""

    def __init__(
        self,
        client: str,
        dataset: str,
        directory: Path,
        archive: Archive,
        findings: Findings,
        executor: Executor,
        clock: Clock,
        disk: Disk,
        *,
        repair: str = "auto",
        repair_limit: int = 100,
    ) -> None:
        """`repair` and `repair_limit` are those of the configuration's [listen]."""
        self._directory, self._archive, self._findings = directory, archive, findings
        self._executor, self._clock, self._disk = executor, clock, disk
        self._repair, self._repair_limit = repair, repair_limit
        self._quarantine = Quarantine(directory, disk)
        self._book = StoreFindings(client, dataset, findings, self._quarantine, clock)
        self._sights: dict[str, dict[bytes, Sight]] = {}
        """What the primary said last of each block of a case."""
        self._harm = KnownHarm(catalog_path(directory), clock)
        self._looks, self._unneeded = WholeLooks(directory, disk, clock), Unneeded(directory, archive, clock)
        self._verified = ""
        """The finding whose place was looked at last."""
        self._has_unread = True
        """Perhaps: whether there are old files of segments that nobody has looked at."""
        self._awaiting = Awaiting(archive, clock, self._mend)

    # asking

    async def open_cases(self) -> list[Divergence]:
        """Open findings that need a word from the primary or a repair, oldest first."""
        cases = await self._in_shelf(self._book.open_ones)
        return [found for found in cases if remedy_for(found.part, found.verdict) is not Remedy.NOTHING]

    async def seen(self, found: Divergence) -> bytes:
        """The bad bytes, MAX_SEEN_BYTES at most, from where they are kept or else from where they were found; b"" when
        they are neither here nor there."""
        return await asyncio.to_thread(self._seen, found)

    async def wants(self, found: Divergence) -> list[Want]:
        """The blocks to be proven, and where the primary's files may hold each."""
        if found.part is not Part.BLOCK:
            return []
        harm = self._harm.of(frozenset(found.blocks))
        if harm is None:
            ids = await self._in_shelf(self._damaged_ids)
            harm = await asyncio.to_thread(self._harm.look, ids.union(found.blocks))
        return [Want(name, *harm.live.get(name, (0, 0))) for name in found.blocks[:MAX_WANTS]]

    async def testimony(self, found: Divergence, checksum_by_peer: bytes, sights: Sequence[Sight]) -> Divergence:
        """Complete the evidence with what the primary says of the bad bytes and of the blocks wanted, and judge."""
        return await self._in_shelf(lambda: self._testify(found, checksum_by_peer, sights))

    # mending

    async def mend(self, found: Divergence, frames: Sequence[bytes], *, ordered: bool = False) -> Divergence:
        """Carry out what is to be done about a finding, now or behind the seal of the pass under way; it as it stands
        afterwards. `ordered`: by a person, who may do what the configuration and the breaker do not let happen by
        itself. `frames` are blocks from the primary."""
        return await self._in_shelf(lambda: self._mend(found.id, frames, ordered))

    async def verify_divergences(self, turn: asyncio.Lock) -> list[Divergence]:
        """Look at places of open findings again, each in a `turn` of its own, and first at the one behind that which
        the last call came to; those that were settled."""
        settled: list[Divergence] = []
        wrongs: dict[int, list[Wrong] | None] = {}
        async with turn:
            if self._has_unread:
                await self._in_shelf(self._tell_of_replaced)
            opened = await self._in_shelf(self._book.open_ones)
        for listed in begun_behind(opened, self._verified):
            async with turn:
                self._verified = listed.id
                found = await self._in_shelf(partial(self._standing, listed))
                after = await self._look_again(found, wrongs) if found.state is State.OPEN else found
            if after.state is not State.OPEN:
                settled.append(after)
        for noted in await self._in_shelf(self._book.noted_ones):
            if noted.part is Part.BLOCK:
                async with turn:
                    moved = await self._in_shelf(partial(self._if_moved, noted))
                settled += [moved] if moved else []
        if missing := [one for one in opened if one.part is Part.BLOCK and not one.number and one.blocks]:
            unnamed = await asyncio.to_thread(self._looks.unnamed, frozenset(one.blocks[0] for one in missing))
            gone = [one for one in missing if one.blocks[0] in unnamed]
            async with turn:
                settled += [await self._in_shelf(partial(self._no_loss, one)) for one in gone]
        if lost := [one for one in opened if one.number and one.is_lost]:
            await self._in_shelf(self._unneeded.begin)
            await asyncio.to_thread(self._unneeded.look, frozenset(name for one in lost for name in one.blocks))
            await self._in_shelf(lambda: self._archive.when_settled(partial(self._let_go, lost)))
        return settled

    def _let_go(self, lost: Sequence[Divergence]) -> None:
        """What was said to be lost is not, where no snapshot names it."""
        for found in map(self._standing, lost):
            places = list(filter(None, self._still_damaged(found, self._archive.inventory).values()))
            if found.state is State.OPEN and found.is_lost and self._unneeded.let_go(found, places):
                self._write(found, "nothing is lost: no snapshot that is kept names what stood there", state=State.GONE)

    def _no_loss(self, found: Divergence) -> Divergence:
        """A block that stands nowhere is none any more once no snapshot that is kept names it."""
        found = self._standing(found)
        if found.state is not State.OPEN:
            return found
        return self._write(found, "no snapshot that is kept names it any more", state=State.GONE)

    # evidence

    def _damaged_ids(self) -> frozenset[bytes]:
        """Blocks of all open cases, repaired or not."""
        cases = (one for one in self._book.open_ones() if one.part is Part.BLOCK)
        return frozenset(name for one in cases for name in one.blocks + one.mended)

    def _seen(self, found: Divergence) -> bytes:
        return seen_bytes(found, self._quarantine, self._directory, self._disk)

    def _testify(self, found: Divergence, digest: bytes, sights: Sequence[Sight]) -> Divergence:
        known = self._findings.get_exactly(found.id)
        if known is None or known.state is not State.OPEN:
            return known or found
        evidence = known.evidence
        if known.seen and digest:
            witness = Witness.CONFIRMS if digest == known.seen else Witness.CONTRADICTS
            evidence = msgspec.structs.replace(evidence, witness=witness)
        if known.part is Part.BLOCK:
            self._sights[known.id] = dict(zip(known.blocks, sights, strict=False))
            sight = as_one([self._sights[known.id].get(name, Sight.UNKNOWN) for name in known.blocks])
            if sight is not Sight.UNKNOWN:  # what could not be found out this time takes nothing back
                evidence = msgspec.structs.replace(evidence, primary=sight, writing=Writing.UNWRITTEN)
        return self._judged(known, evidence)

    def _judged(self, known: Divergence, evidence: Evidence) -> Divergence:
        after = msgspec.structs.replace(known, evidence=evidence, verdict=judge(evidence))
        if after == known:
            return known
        text, state = f"the primary was asked: {after.verdict.value}", State.OPEN
        if after.is_lost and not known.is_lost:
            text = f"no side has {blocks_worded(after.blocks)} of this any more: {after.verdict.value}"
            if known.number and self._reads_well(known, self._archive.inventory):  # found in a file that was replaced
                text, state = f"repaired: segment {known.number} was laid anew since and has it", State.REPAIRED
                self._receipt(known, Remedy.LAY_SEGMENT, "repaired", detail="found in the file that was replaced")
                self._archive.trust(known.blocks)
        judged = self._write(known, text, evidence=evidence, verdict=after.verdict, state=state)
        for other in self._others_in(judged) if is_unjudged(known) and not is_unjudged(judged) else ():
            if other.events and other.events[-1].what == JUDGED_FIRST.format(other.number):
                self._write(other, "what else was found there is judged")  # which makes it due at once
        return judged

    # remedies

    def _mend(self, name: str, frames: Sequence[bytes], ordered: bool) -> Divergence:
        found = self._findings.get_exactly(name)
        assert found is not None, f"{name} was never reported"
        remedy = remedy_for(found.part, found.verdict)
        if found.state is not State.OPEN or remedy not in self._REMEDIES:
            return found
        count = len(found.blocks) if remedy is Remedy.MEND_REPLICA else 1
        if held := self._held(count, ordered):
            return self._noted(found, held)
        if is_lost_record(found) and not ordered:
            return self._noted(found, "waiting for a person: a repair reads all segments again, in case it is back")
        if not self._archive.is_settled:
            self._awaiting.add(found.id, frames, ordered)
            return self._noted(found, WAITING)
        try:
            if remedy is Remedy.LAY_SEGMENT and not self._is_unknown(found):
                self._look_at_all(found)
                if self._has_unjudged(found) and not ordered:
                    return self._noted(found, JUDGED_FIRST.format(found.number))
            return self._REMEDIES[remedy](self, found, frames)
        except (ReplicadError, FileNotFoundError) as error:
            text = f"repair failed: {error}"
            if found.events and found.events[-1].what == text:
                return found  # as it did the last time: one line, and one receipt
            self._receipt(found, remedy, "failed", detail=str(error))
            return self._write(found, text)

    def _held(self, count: int, ordered: bool) -> str:
        """Why no repair may be made now, or ""."""
        now_ns = self._clock.now_ns()
        if ordered:
            close_breaker(self._findings)
            return ""
        if self._repair != "auto":
            return "waiting for a person: replicad repair"
        if not is_open(self._findings) and repairs_that_count(self._findings, now_ns) + count > self._repair_limit:
            open_breaker(self._findings, now_ns)
        if is_open(self._findings):
            return f"more than {self._repair_limit} repairs within an hour: stopped until a person says replicad repair"
        return ""

    def _mend_blocks(self, found: Divergence, frames: Sequence[bytes]) -> Divergence:
        """Append the blocks that the primary has proven; the rest stays open with what is known of it."""
        inventory = self._archive.inventory
        damaged = self._still_damaged(found, inventory)
        if not damaged:
            return self._stored_by_pass(found)
        try:
            proven = {name: frame for name, frame in prove(frames, set(found.blocks)).items() if name in damaged}
        except FrameError as error:
            return self._noted(found, f"what was sent cannot repair it: {error}")
        if proven:
            found = self._append(found, proven, damaged)
        left = self._still_damaged(found, inventory)
        if left:
            return self._narrowed(found, left)
        self._settle_ranges(found)
        self._archive.trust(found.blocks)
        return self._write(found, "repaired: every block of it was stored anew and read again", state=State.REPAIRED)

    def _append(
        self, found: Divergence, proven: dict[bytes, Frame], damaged: dict[bytes, BlockPlace | None]
    ) -> Divergence:
        """Store proven blocks, and note which places need no word any more."""
        raw = {name: frame_header(frame) + bytes(frame.payload) for name, frame in proven.items()}
        old = self._quarantine.read(found.quarantine, MAX_SEEN_BYTES)
        kept = {name: (at.offset, HEADER_BYTES + at.stored) for name, at in damaged.items() if at}
        done = append_blocks(self._archive, self._disk, list(proven.values()), list(raw.values()))
        for one in done:
            found = with_bits(found, raw[one.place.id], old)
            self._receipt(found, Remedy.MEND_REPLICA, "repaired", appended=one)
        if len(done) < len(proven):
            self._receipt(found, Remedy.MEND_REPLICA, "failed", detail="what was appended does not read well")
        mended = [kept[one.place.id] for one in done if one.place.id in kept]
        if mended:
            note_mended(self._archive, found.number, mended, self._clock.now_ns())
        return found

    def _still_damaged(self, found: Divergence, inventory: Inventory) -> dict[bytes, BlockPlace | None]:
        """Blocks of a finding whose place is still the bad one, or that have none."""
        places = inventory.places(list(found.blocks))
        if found.key.startswith("block:"):
            return {name: None for name in found.blocks if name not in places}
        damaged: dict[bytes, BlockPlace | None] = {}
        for name in found.blocks:
            place = places.get(name)
            if place is None or (place.segment == found.number and found.offset <= place.offset < end_of(found)):
                damaged[name] = place
        return damaged

    def _narrowed(self, found: Divergence, left: dict[bytes, BlockPlace | None]) -> Divergence:
        """Only these blocks are left: what the primary said of them is what counts now."""
        if set(left) == set(found.blocks):
            if found.is_lost:
                return self._noted(found, f"no side has {blocks_worded(found.blocks)} of this any more")
            return self._noted(found, "no proven block came from the primary")
        said = self._sights.get(found.id, {})
        sight = as_one([said.get(name, Sight.UNKNOWN) for name in left])
        evidence = msgspec.structs.replace(found.evidence, primary=sight)
        mended = tuple(name for name in found.blocks if name not in left)
        text = f"{blocks_worded(mended)} of it repaired, {len(left)} left"
        return self._write(
            found, text, blocks=tuple(left), mended=found.mended + mended, evidence=evidence, verdict=judge(evidence)
        )

    def _settle_ranges(self, found: Divergence) -> None:
        """What lies between the blocks of a run is damaged with them."""
        if found.length and found.number:
            inner = self._archive.inventory.expected(found.number, found.offset, end_of(found))
            if next(inner, None) is None:
                note_mended(self._archive, found.number, [(found.offset, found.length)], self._clock.now_ns())

    def _lay(self, found: Divergence, frames: Sequence[bytes]) -> Divergence:
        """Lay the segment anew; what is left of it are blocks, which become findings of their own."""
        if is_lost_record(found):
            return self._rebuild(found, frames)  # what a replay missed: it is there by now, or it is lost
        if self._is_unknown(found):
            return self._settle_unknown(found)
        number = found.number
        was_missed = any(damage.segment == number for damage in self._archive.damage)
        laid_with = self._laid_with(found)
        laid = lay_segment(self._archive, self._disk, self._quarantine, number)
        self._tell_of_replaced()
        self._receipt(found, Remedy.LAY_SEGMENT, "repaired", detail=laid.kept and f"the old file is {laid.kept}")
        left = {one.id: one for one in self._report(laid.left)}
        text = f"repaired: segment {number} was laid anew and verified"
        after = left.get(found.id) or self._write(found, text, state=State.REPAIRED)  # a block may be left at its place
        for other in (*laid_with, *self._found_again(found, laid.left)):
            self._receipt(other, Remedy.LAY_SEGMENT, "repaired", detail=f"together with {found.id}")
            self._write(other, text, state=State.REPAIRED)
            self._archive.trust(other.blocks)
        if was_missed and self._archive.inventory.lost:
            rebuild_book(self._archive, self._disk)  # what snapshots lack may stand in this segment again
        return after

    def _tell_of_replaced(self) -> None:
        """What went bad in a segment's old file after it was looked at is judged like all else, healed or not; also
        what a daemon that was killed has not come to tell."""
        self._has_unread = False
        self._quarantine.look_at_unread(lambda *old: self._report(self._book.news(self._wrongs(*old))))

    def _wrongs(self, number: int, path: Path, length: int = 0) -> list[Wrong]:
        where = self._archive.inventory, self._disk, path, number, self._archive.store.owner.store
        return looked_at_twice(lambda: SegmentCheck(*where, length=length).run()).wrongs

    def _has_unjudged(self, found: Divergence) -> bool:
        """Whether something else in the segment is not judged yet. Where nobody knows what should stand, laying it
        changes nothing."""
        return any(is_unjudged(one) and not self._is_unknown(one) for one in self._others_in(found))

    def _look_at_all(self, found: Divergence) -> None:
        """Look at the whole segment before it is laid anew: that may heal what no scrub has found so far, and it is not
        to go untold. Not while something else in it waits: nothing is laid then."""
        path = segment_path(self._directory, found.number)
        if path.exists() and not self._has_unjudged(found):
            self._report(self._wrongs(found.number, path))

    def _report(self, wrongs: Sequence[Wrong]) -> list[Divergence]:
        """Make findings of what is wrong in a segment, unless they are known; as they stand."""
        lasting = [wrong for wrong in wrongs if not wrong.is_transient]
        news = self._book.news(lasting)
        harm = harm_of(self._archive.inventory, {item.id for wrong in news for item in wrong.items})
        self._archive.doubt(item.id for wrong in lasting for item in wrong.items)
        return self._book.report([Seen(wrong, "media", harm) for wrong in lasting])

    def _others_in(self, found: Divergence) -> list[Divergence]:
        """Other open findings about the same segment."""
        return [one for one in self._book.open_ones() if one.number == found.number and one.id != found.id]

    def _laid_with(self, found: Divergence) -> list[Divergence]:
        """Open findings that are settled as well when the segment of this one is laid anew."""
        others = self._others_in(found)
        return [one for one in others if one.part in LAID and not self._is_unknown(one)]

    def _found_again(self, found: Divergence, left: Sequence[Wrong]) -> list[Divergence]:
        """Open findings about blocks that read well where the segment was laid anew: a file of it that was kept when it
        was laid before had them."""
        blocks = [one for one in self._others_in(found) if one.part is Part.BLOCK]
        return [one for one in blocks if not is_unjudged(one) and not any(touches(wrong, one) for wrong in left)]

    def _is_unknown(self, found: Divergence) -> bool:
        """Whether nothing says what should stand there: the damage is older than the catalog."""
        if found.part is not Part.STRUCTURE or not found.length:
            return False
        inventory = self._archive.inventory
        last = inventory.last_expected(found.number)
        is_behind = last is None or found.offset >= last.offset + HEADER_BYTES + last.stored
        return not is_behind and next(inventory.expected(found.number, found.offset, end_of(found)), None) is None

    def _settle_unknown(self, found: Divergence) -> Divergence:
        if not self._looks.is_covered(self._archive.inventory, self._book.told_blocks()):
            return self._noted(found, "nobody knows what stood here, and snapshots lack something that is not told yet")
        note_mended(self._archive, found.number, [(found.offset, found.length)], self._clock.now_ns())
        text = "nobody knows what stood here; whatever a snapshot lacks has a finding of its own"
        return self._write(found, text, state=State.GONE)

    def _rebuild(self, found: Divergence, frames: Sequence[bytes]) -> Divergence:
        rebuild_book(self._archive, self._disk)
        structure = check_structure(self._archive.inventory)
        lines = {(damage.segment, damage.offset) for damage in self._archive.damage}
        if structure.pages or structure.false or (is_lost_record(found) and (found.number, found.offset) in lines):
            text = [*structure.pages, *structure.false, "the same is lost as before"][0]
            raise StoreDamagedError(f"the catalog was made anew, and: {text}")
        self._receipt(found, Remedy.REBUILD_BOOK, "repaired", detail="the old catalog is catalog.db.old")
        return self._write(found, "repaired: the catalog was made anew from the segments", state=State.REPAIRED)

    _REMEDIES: ClassVar[dict[Remedy, _Step]] = {
        Remedy.MEND_REPLICA: _mend_blocks,
        Remedy.LAY_SEGMENT: _lay,
        Remedy.REBUILD_BOOK: _rebuild,
    }

    # looking again

    async def _look_again(self, found: Divergence, wrongs: dict[int, list[Wrong] | None]) -> Divergence:
        """What cannot be looked at keeps nothing else from being settled. `wrongs`: of whole segments that were looked
        at for others just now. Raises BookDamagedError."""
        try:
            return await self._looked_at(found, wrongs)
        except BookDamagedError:
            raise
        except ReplicadError as error:
            return await self._in_shelf(partial(self._noted, found, f"could not be looked at again: {error}"))

    async def _looked_at(self, found: Divergence, wrongs: dict[int, list[Wrong] | None]) -> Divergence:
        if found.part is Part.BOOK:
            is_well = await asyncio.to_thread(self._looks.is_book_well)
            return await self._in_shelf(lambda: self._counted(found, is_well))
        if found.part is Part.BLOCK and (moved := await self._in_shelf(partial(self._if_moved, found))):
            return moved
        if not found.number:
            return found
        if not found.length and found.part is not Part.SEGMENT:
            return await self._in_shelf(lambda: self._if_told_no_more(found))
        is_well = await asyncio.to_thread(self._is_well, found, wrongs)
        now = await self._in_shelf(lambda: self._counted(found, is_well))
        return await self._in_shelf(lambda: self._judged_anew(now)) if is_well is False else now

    def _judged_anew(self, found: Divergence) -> Divergence:
        """What a scrub finds in the place of bytes that are gone may be taken for what is left of the same."""
        if found.state is not State.OPEN or not awaits_witness(found):
            return found
        after = renewed(found, self._quarantine, self._directory, self._disk, self._clock.now_ns())
        if after is not found:
            self._findings.update(after)
        return after

    def _if_moved(self, found: Divergence) -> Divergence | None:
        """Settled when every block was stored anew by somebody, and reads well there."""
        inventory = self._archive.inventory
        if not self._archive.is_settled or self._still_damaged(found, inventory):
            return None
        for place in inventory.places(list(found.blocks)).values():
            item = Expected(place.offset, place.stored, place.plain, place.id, b"")
            if not places_read_well(self._directory, self._disk, place.segment, [item]):
                return None
        # of bytes that are gone nobody can be asked any more, of what a person has noted nobody has to be
        if found.state is State.OPEN and awaits_witness(found) and self._seen(found):
            return self._noted(found, AWAITS_WITNESS)
        return self._stored_by_pass(found)

    def _stored_by_pass(self, found: Divergence) -> Divergence:
        """The primary had its blocks, or a pass could not have brought them."""
        self._settle_ranges(found)
        self._archive.trust(found.blocks)
        found = self._compared_with_new(found)
        evidence = msgspec.structs.replace(found.evidence, primary=Sight.MATCHES, writing=Writing.UNWRITTEN)
        text = "repaired: its blocks were stored anew by a pass"
        return self._write(found, text, state=State.REPAIRED, evidence=evidence, verdict=judge(evidence))

    def _compared_with_new(self, found: Divergence) -> Divergence:
        """With the bits that differ from the block that stands elsewhere now."""
        if len(found.blocks) != 1 or not (places := self._archive.inventory.places(list(found.blocks))):
            return found
        place = places[found.blocks[0]]
        new = self._archive.read_segment(place.segment, place.offset, HEADER_BYTES + place.stored)
        return with_bits(found, bytes(new), self._quarantine.read(found.quarantine, MAX_SEEN_BYTES))

    def _if_told_no_more(self, found: Divergence) -> Divergence:
        lines = {(damage.segment, damage.offset) for damage in self._archive.damage}
        if (found.number, found.offset) in lines:
            return found
        return self._write(found, "the catalog was made anew and lacks nothing there", state=State.GONE)

    def _is_well(self, found: Divergence, wrongs: dict[int, list[Wrong] | None]) -> bool | None:
        """Whether nothing of this finding is found again; of the whole segment, when what should stand is unknown. None
        when that was looked at not long ago."""
        inventory = Inventory.open(catalog_path(self._directory))
        try:
            is_well = None if found.part is Part.SEGMENT else self._reads_well(found, inventory)
            if is_well is not None:
                return is_well
            if found.number not in wrongs:
                wrongs[found.number] = self._looks.segment(inventory, found.number, self._archive.store.owner.store)
            seen = wrongs[found.number]
        except FileNotFoundError:
            return False
        finally:
            inventory.close()
        if seen is None:
            return None
        return not any(touches(wrong, found) for wrong in seen if not wrong.is_transient)

    def _reads_well(self, found: Divergence, inventory: Inventory) -> bool | None:
        """Whether all that should stand at the place of a finding does; None when nobody knows of anything there."""
        items = list(inventory.expected(found.number, found.offset, end_of(found)))
        return places_read_well(self._directory, self._disk, found.number, items) if items else None

    def _counted(self, found: Divergence, is_well: bool | None) -> Divergence:
        """Gone when it read well often enough; nothing changes when it was not looked at."""
        known = self._findings.get_exactly(found.id)
        if is_well is None or known is None or known.state is not State.OPEN:
            return known or found
        text, state = said_by_look(known, is_well)
        if state is State.GONE:
            self._archive.trust(known.blocks)
        return self._write(known, text, state=state) if text else known

    # the book

    def _standing(self, found: Divergence) -> Divergence:
        """As it stands by now."""
        return self._findings.get_exactly(found.id) or found

    def _write(self, found: Divergence, text: str, **changes: object) -> Divergence:
        after = found.with_event(self._clock.now_ns(), text, **changes)
        if after.mended and after.state is not State.OPEN:  # the record of what is over names all of it
            after = self._touching(msgspec.structs.replace(after, blocks=after.mended + after.blocks, mended=()))
        elif after.mended and after.is_lost and not (found.is_lost and found.blocks == after.blocks):
            after = self._touching(after)  # just what is lost
        self._findings.update(after)
        return after

    def _touching(self, found: Divergence) -> Divergence:
        """With the files that its blocks belong to."""
        ids = frozenset(found.blocks)
        harm = self._harm.of(ids) or self._harm.look(self._damaged_ids() | ids)
        if harm.is_cut:
            harm = harm_of(self._archive.inventory, ids)
        affected, count = harm.of(found.blocks)
        return msgspec.structs.replace(found, affected=affected, affected_count=count)

    def _noted(self, found: Divergence, text: str) -> Divergence:
        """One line in the history, not the same one again and again."""
        if found.events and found.events[-1].what == text:
            return found
        return self._write(found, text)

    def _receipt(
        self, found: Divergence, remedy: Remedy, result: str, *, appended: Appended | None = None, detail: str = ""
    ) -> None:
        now_ns = self._clock.now_ns()
        at, after = (appended.place, appended.checksum) if appended else (None, b"")
        self._findings.add_receipt(receipt_of(found, remedy, result, now_ns, at=at, after=after, detail=detail))

    async def _in_shelf(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)
