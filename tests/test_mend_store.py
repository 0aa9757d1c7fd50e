"""Mending a store: whatever happens to it is found, named, repaired from a proven source, and clean afterwards."""

from __future__ import annotations

import asyncio
import os
import random
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit_scrub import SMALL, Rig, filled_rig, repaired, unsettled_changes, write_at
from kit_store import FaultyDisk, Primary, block_frame, contents, file_put, flip, record_frame, segment
from replicad.db.inventory import Inventory
from replicad.model.block import Buffer, block_id, checksum
from replicad.model.divergence import Affected, Divergence, Part, State
from replicad.model.errors import ReplicadError
from replicad.model.verdict import Sight, Verdict, Witness
from replicad.store import store as store_module
from replicad.store.format import HEADER_BYTES, Frame, FrameType, encode_frame
from replicad.store.segments import segment_numbers
from replicad.system.disk import READ_BUFFER_BYTES
from replicad.work import awaiting, harm, mend_store, upkeep, whole_looks
from replicad.work.archive import Archive, catalog_path
from replicad.work.archive_reader import ArchiveReader
from replicad.work.awaiting import AT_SEAL_S
from replicad.work.breaker import BREAKER
from replicad.work.expire import drop, purge_step
from replicad.work.known_damage import damaged_paths
from replicad.work.mend_store import WAITING
from replicad.work.quarantine import Quarantine
from replicad.work.rebuild import rebuild_catalog
from replicad.work.rest import REST
from replicad.work.segment_check import SegmentCheck
from replicad.work.structure_check import check_structure
from replicad.work.upkeep import append_blocks


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with filled_rig(tmp_path) as made:
        yield made


def _flip_in(kind: FrameType, nth: int = 0, *, number: int = 2, at: int = 70) -> Callable[[Rig], None]:
    def harm(rig: Rig) -> None:
        where = next(n for n in (number, *rig.bytes_of()) if len(rig.frames(kind, n)) > nth)
        flip(segment(rig.directory, where), rig.frames(kind, where)[nth].offset + at, 3)

    return harm


def _burst(rig: Rig) -> None:
    first, *_, last = rig.frames(FrameType.BLOCK, 2)[1:4]
    write_at(segment(rig.directory, 2), first.offset + 30, os.urandom(last.end - first.offset - 60))


def _burst_over_everything(rig: Rig) -> None:
    size = segment(rig.directory, 2).stat().st_size
    write_at(segment(rig.directory, 2), 200, os.urandom(size - 400))


def _zeroed_sector(rig: Rig) -> None:
    frame = rig.frames(FrameType.BLOCK, 2)[2]
    write_at(segment(rig.directory, 2), (frame.offset + 511) // 512 * 512, bytes(512))


def _misdirected(rig: Rig) -> None:
    """A frame of the same length, whole, in another one's place."""
    theirs = {frame.stored: frame for frame in rig.frames(FrameType.BLOCK, 1)}
    ours = next(frame for frame in rig.frames(FrameType.BLOCK, 2) if frame.stored in theirs)
    one = theirs[ours.stored]
    assert one.id != ours.id
    write_at(segment(rig.directory, 2), ours.offset, segment(rig.directory, 1).read_bytes()[one.offset : one.end])


def _stale(rig: Rig) -> None:
    """An older state of the medium: two pages that were not written."""
    write_at(segment(rig.directory, 2), 4096, segment(rig.directory, 1).read_bytes()[4096 : 3 * 4096])


def _row_elsewhere(rig: Rig) -> None:
    """A row of the catalog names a place where another frame, or none, stands."""
    with rig.archive.upkeep() as (_, catalog):
        catalog.database.execute("UPDATE block SET offset = offset + 64 WHERE segment = 2 AND offset > 9000")


def _row_of_another(rig: Rig) -> None:
    """Two rows of the catalog name one place."""
    with rig.archive.upkeep() as (_, catalog):
        rows = catalog.database.all("SELECT id, segment, offset, stored, plain FROM block WHERE segment = 2 LIMIT 2")
        catalog.database.execute(
            "UPDATE block SET segment = ?, offset = ?, stored = ?, plain = ? WHERE id = ?", (*rows[0][1:], rows[1][0])
        )


def _row_lost(rig: Rig) -> None:
    """A row of the catalog is gone."""
    with rig.archive.upkeep() as (_, catalog):
        catalog.database.execute("DELETE FROM block WHERE segment = 2 AND offset > 9000")


def _copy_lost(rig: Rig) -> None:
    """A copy of a commit is gone."""
    with rig.archive.upkeep() as (_, catalog):
        catalog.database.execute("DELETE FROM frame_copy WHERE segment = 2 AND substr(head, 21, 1) = x'04'")


def _truncated(rig: Rig) -> None:
    os.truncate(segment(rig.directory, 2), rig.frames(FrameType.BLOCK, 2)[2].offset + 100)


def _gone(rig: Rig) -> None:
    segment(rig.directory, 2).unlink()


def _swapped(rig: Rig) -> None:
    one, two = segment(rig.directory, 1), segment(rig.directory, 2)
    aside = one.with_name("aside")
    one.rename(aside)
    two.rename(one)
    aside.rename(two)


def _garbage(rig: Rig) -> None:
    with segment(rig.directory, 2).open("ab") as file:
        file.write(os.urandom(5000))


def _garbage_behind_the_last(rig: Rig) -> None:
    with segment(rig.directory, max(rig.bytes_of())).open("ab") as file:
        file.write(os.urandom(5000))


def _stranger(rig: Rig) -> None:
    segment(rig.directory, 99).write_bytes(segment(rig.directory, 1).read_bytes())


KINDS: dict[str, tuple[Callable[[Rig], None], Part, bool]] = {
    # harm, the part that is named, whether the bytes of all segments are the same afterwards
    "bit in a block's payload": (_flip_in(FrameType.BLOCK), Part.BLOCK, False),
    "bit in a block's header": (_flip_in(FrameType.BLOCK, at=24), Part.BLOCK, False),
    "bit in a block's magic": (_flip_in(FrameType.BLOCK, at=0), Part.BLOCK, False),
    "bit in the last segment": (_flip_in(FrameType.BLOCK, number=3), Part.BLOCK, False),
    "burst": (_burst, Part.BLOCK, False),
    "burst over everything": (_burst_over_everything, Part.BLOCK, False),
    "zeroed sector": (_zeroed_sector, Part.BLOCK, False),
    "misdirected": (_misdirected, Part.BLOCK, False),
    "stale": (_stale, Part.BLOCK, False),
    "row elsewhere": (_row_elsewhere, Part.BOOK, True),
    "row of another": (_row_of_another, Part.BOOK, True),
    "row lost": (_row_lost, Part.BOOK, True),
    "copy lost": (_copy_lost, Part.BOOK, True),
    "truncated": (_truncated, Part.SEGMENT, False),
    "lost": (_gone, Part.SEGMENT, False),
    "swapped": (_swapped, Part.SEGMENT, True),
    "garbage": (_garbage, Part.STRUCTURE, True),
    "garbage behind the last": (_garbage_behind_the_last, Part.STRUCTURE, True),
    "stranger": (_stranger, Part.SEGMENT, True),
    "header": (_flip_in(FrameType.HEADER, at=80), Part.STRUCTURE, True),
    "seal": (_flip_in(FrameType.SEAL, number=1), Part.STRUCTURE, True),
    "pad": (_flip_in(FrameType.PAD, number=2), Part.STRUCTURE, True),
    "commit": (_flip_in(FrameType.COMMIT), Part.COMMIT, True),
    "record": (_flip_in(FrameType.RECORD), Part.RECORD, True),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_damage_is_found_named_and_repaired(rig: Rig, tmp_path: Path, kind: str) -> None:
    """Found by one scrub with the right part named, repaired, then clean; what is no block comes back bit for bit."""
    harm, part, is_same = KINDS[kind]
    before = rig.bytes_of()
    assert rig.scrub() == 0
    harm(rig)
    assert rig.scrub() > 0
    assert part in {one.part for one in rig.open_ones()}, [(one.part, one.what) for one in rig.open_ones()]
    rig.settle_all()
    assert {one.state for one in rig.findings.listed(state=None)} == {State.REPAIRED}
    rig.assert_clean(tmp_path)
    if is_same:
        assert rig.bytes_of() == before


def test_an_untouched_store_gives_no_finding(rig: Rig, tmp_path: Path) -> None:
    """Not a single one, over restarts and while it grows."""
    for number in range(10, 14):
        assert rig.scrub() == 0
        rig.put(number, {b"new-%d" % number: b"content %d" % number})
        rig.reopen()
    rig.assert_clean(tmp_path)
    assert rig.findings.listed(state=None) == []


# guards


def _damaged(rig: Rig, *numbers: int) -> list[Divergence]:
    """Flip a bit in the first block of these segments and scrub; the findings."""
    rig.scrub()
    for number in numbers:
        _flip_in(FrameType.BLOCK, number=number)(rig)
    assert rig.scrub() == len(numbers)
    return rig.open_ones()


def test_nothing_is_written_unless_the_primary_confirms_what_was_seen(rig: Rig) -> None:
    """Silent or contradicting, the case stays inconclusive and open, and the store as it is."""
    (found,) = _damaged(rig, 2)
    before = rig.bytes_of()
    frame = block_frame(rig.has[found.blocks[0]])
    for digest in (b"", checksum(b"something else")):
        judged = asyncio.run(rig.mender.testimony(found, digest, [Sight.MATCHES]))
        assert judged.verdict is Verdict.INCONCLUSIVE
        assert asyncio.run(rig.mender.mend(judged, [frame])).state is State.OPEN
    assert rig.bytes_of() == before


def test_only_proven_frames_of_damaged_blocks_are_taken(rig: Rig) -> None:
    """Another block, a frame whose bytes are not its id, a record, garbage: each is refused, with nothing stored."""
    (found,) = _damaged(rig, 2)
    found = asyncio.run(rig.mender.testimony(found, found.seen, [Sight.MATCHES]))
    before = rig.bytes_of()
    forged = encode_frame(FrameType.BLOCK, b"forged", found.blocks[0])
    for frame in (block_frame(b"another one"), forged, record_frame([]), b"garbage", block_frame(b"x")[:-1]):
        after = asyncio.run(rig.mender.mend(found, [frame]))
        assert after.state is State.OPEN and "cannot repair" in after.events[-1].what
    assert rig.bytes_of() == before
    rig.settle_all()


def test_a_person_is_asked_first(rig: Rig) -> None:
    """With repair = "ask" nothing is done by itself; what a person orders is done."""
    rig.mender._repair = "ask"
    _damaged(rig, 2)
    (waiting,) = rig.settle()
    assert waiting.state is State.OPEN and waiting.verdict is Verdict.REPLICA_ROT
    assert "waiting for a person" in waiting.events[-1].what
    assert len(rig.settle()[0].events) == len(waiting.events), "not said again and again"
    (done,) = rig.settle(ordered=True)
    assert done.state is State.REPAIRED


def test_too_many_repairs_open_the_breaker_and_a_person_closes_it(rig: Rig) -> None:
    """Beyond the limit nothing is repaired by itself any more, over restarts too, until a person has ordered one."""
    rig.mender._repair_limit = 2
    rig.options = {"repair_limit": 2}
    _damaged(rig, 1, 2, 3)
    states = sorted(one.state for one in rig.settle())
    assert states == [State.OPEN, State.REPAIRED, State.REPAIRED]
    assert rig.findings.get(BREAKER)
    rig.reopen()
    (left,) = rig.settle()
    assert left.state is State.OPEN and "within an hour" in left.events[-1].what
    (done,) = rig.settle(ordered=True)
    assert done.state is State.REPAIRED and not rig.findings.get(BREAKER)
    _damaged(rig, 4)
    assert [one.state for one in rig.settle()] == [State.REPAIRED], "what was before the person's word counts no more"


YEAR_NS = 365 * 86_400 * 10**9


@pytest.mark.parametrize("jump_ns", [-YEAR_NS, YEAR_NS])
def test_a_clock_that_jumps_keeps_the_breaker_neither_open_nor_shut(rig: Rig, jump_ns: int) -> None:
    """A person's word closes it, whatever the time of the repairs before; it opens again when there are too many."""
    for number in (5, 6):
        rig.put(number, {b"large-%d" % number: random.Random(number).randbytes(SMALL)})
    rig.mender._repair_limit = 2
    _damaged(rig, 1, 2, 3)
    rig.settle()
    assert rig.findings.get(BREAKER)
    rig.clock.ns += jump_ns
    rig.settle(ordered=True)
    if jump_ns > 0:
        rig.clock.ns -= jump_ns
    _damaged(rig, 4)
    assert [one.state for one in rig.settle()] == [State.REPAIRED]
    _damaged(rig, 5)
    assert [one.state for one in rig.settle()] == [State.OPEN] and rig.findings.get(BREAKER)


def test_a_session_s_unsealed_work_is_not_committed_by_a_repair(rig: Rig, tmp_path: Path) -> None:
    """While it is there the case waits, whatever the remedy; afterwards it is settled, and an abort takes nothing."""
    _damaged(rig, 2)
    _flip_in(FrameType.RECORD, number=4)(rig)
    rig.scrub()
    primary = Primary(rig.archive)
    primary.send(b"half of it")
    primary.record(file_put(b"half", 7777, {0: block_id(b"half of it")}))
    assert {one.events[-1].what for one in rig.settle()} == {"waiting for the pass under way to be sealed"}
    rig.archive.abort()
    assert rig.archive.head.number == 4
    rig.settle_all()
    rig.assert_clean(tmp_path)


def _told_during_a_pass(rig: Rig, primary: Primary) -> list[Divergence]:
    """A pass that is not sealed, and what becomes meanwhile of all that is damaged: its blocks have come."""
    primary.send(b"half of it")
    primary.record(file_put(b"half", 7777, {0: block_id(b"half of it")}))
    told = rig.settle()
    assert {(one.state, one.events[-1].what) for one in told} == {(State.OPEN, WAITING)}
    return told


@pytest.mark.parametrize("end", ["seal", "abort"])
def test_a_repair_comes_in_between_two_passes(rig: Rig, tmp_path: Path, end: str) -> None:
    """Where one follows the other nobody would find that moment by looking: what is ready waits for the seal, or the
    end of the session that does not come to it. Nothing is repaired twice."""
    _damaged(rig, 2, 3)
    primary = Primary(rig.archive)
    told = _told_during_a_pass(rig, primary)
    assert rig.settle() == told, "that it waits is said once"
    if end == "seal":
        primary.seal(5)
        rig.expected[5] = rig.expected[4] | {b"half": b"half of it"}
    else:
        primary.abort()
    rig.archive.do_at_seal()
    assert not rig.open_ones()
    for one in told:
        (receipt,) = rig.findings.receipts(one.id)
        assert (receipt.remedy, receipt.result) == ("mend_replica", "repaired")
    rig.archive.do_at_seal()
    rig.assert_clean(tmp_path)


def test_proven_bytes_that_wait_for_a_seal_outlast_the_primary_s(rig: Rig) -> None:
    """The primary may write the file meanwhile and have the block no more: what it has sent repairs it all the same."""
    _damaged(rig, 2)
    primary = Primary(rig.archive)
    (told,) = _told_during_a_pass(rig, primary)
    asyncio.run(rig.mender.testimony(told, told.seen, [Sight.UNKNOWN]))
    asyncio.run(rig.mender.mend(told, []))
    primary.seal(5)
    rig.archive.do_at_seal()
    assert not rig.open_ones()


def test_an_order_of_a_person_outlasts_what_is_brought_again(rig: Rig) -> None:
    """What waits for a seal by order is done by order, also when the primary's next round comes to it before that."""
    rig.close()
    rig.options["repair"] = "ask"
    rig.open()
    (found,) = _damaged(rig, 2)
    primary, frame = Primary(rig.archive), block_frame(rig.has[found.blocks[0]])
    primary.send(b"half of it")
    judged = asyncio.run(rig.mender.testimony(found, found.seen, [Sight.MATCHES]))
    assert asyncio.run(rig.mender.mend(judged, [frame], ordered=True)).events[-1].what == WAITING
    rig.mender._awaiting.add(found.id, [frame], False)
    rig.archive.abort()
    rig.archive.do_at_seal()
    assert not rig.open_ones()


def test_a_pass_does_not_wait_for_all_repairs(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while the next one goes on; the repairs that are left have the moment behind its seal."""
    _damaged(rig, 1, 2, 3)
    primary, mend = Primary(rig.archive), append_blocks

    def slowly(*args: object) -> object:
        rig.clock.slept.append(0.7 * AT_SEAL_S)
        return mend(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(mend_store, "append_blocks", slowly)
    _told_during_a_pass(rig, primary)
    for number, left in ((5, 1), (6, 0)):
        primary.seal(number)
        rig.archive.do_at_seal()
        assert len(rig.open_ones()) == left
        primary.send(b"more")


def test_bytes_that_wait_for_a_seal_are_bounded(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """What finds no room is brought again by the primary once a seal is there."""
    _damaged(rig, 1, 2, 3)
    largest = max(len(block_frame(rig.has[one.blocks[0]])) for one in rig.open_ones())
    monkeypatch.setattr(awaiting, "MAX_TESTIMONY_BYTES", 2 * largest)
    primary = Primary(rig.archive)
    _told_during_a_pass(rig, primary)
    primary.seal(5)
    rig.archive.do_at_seal()
    assert len(rig.open_ones()) == 1
    rig.settle()
    assert not rig.open_ones()


def test_what_no_side_has_is_named_exactly(rig: Rig, tmp_path: Path) -> None:
    """Lost stays open and says path, range and snapshots; everything else of the case is repaired; when the primary has
    it again it is repaired after all."""
    rig.scrub()
    frames = rig.frames(FrameType.BLOCK, 1)[1:3]
    write_at(segment(rig.directory, 1), frames[0].offset + 70, bytes(frames[-1].end - frames[0].offset - 80))
    rig.scrub()
    gone = block_id(rig.expected[1][b"changes"])
    assert gone in {frame.id for frame in frames}
    data = rig.has.pop(gone)
    rig.settle()
    rig.settle()
    (left,) = rig.open_ones()
    assert left.blocks == (gone,) and left.is_lost
    assert [(one.path, one.offset, one.first, one.last) for one in left.affected] == [(b"changes", 0, 1, 1)]
    assert "no side has 1 block" in left.events[-1].what
    assert contents(rig.directory, 1)[b"changes"] is None and contents(rig.directory, 2) == rig.expected[2]
    rig.has[gone] = data
    rig.settle_all()
    rig.assert_clean(tmp_path)


def test_every_repair_leaves_a_receipt(rig: Rig) -> None:
    """Where the block is now, what was there, what was read afterwards."""
    (found,) = _damaged(rig, 2)
    (done,) = rig.settle()
    (receipt,) = rig.findings.receipts(found.id)
    (place,) = rig.archive.inventory.places(found.blocks).values()
    assert (receipt.path, receipt.offset) == (b"segments/%08d.seg" % place.segment, place.offset)
    assert (receipt.result, receipt.before, receipt.remedy) == ("repaired", found.seen, "mend_replica")
    assert done.bits == 1 and done.expected and done.quarantine


def test_a_pass_that_offers_a_damaged_block_heals_it(rig: Rig, tmp_path: Path) -> None:
    """A block found damaged is needed again; the case is settled when it has come and the bad bytes were judged."""
    (found,) = _damaged(rig, 2)
    primary = Primary(rig.archive)
    primary.send(rig.has[found.blocks[0]])
    rig.expected[5] = dict(rig.expected[4])
    primary.seal(5)
    assert rig.look_again() == []
    assert rig.open_ones()[0].verdict is Verdict.INCONCLUSIVE
    (settled,) = rig.settle()
    assert settled.state is State.REPAIRED and "by a pass" in settled.events[-1].what
    assert settled.verdict is Verdict.REPLICA_ROT and settled.bits == 1
    assert Primary(rig.archive).archive.needed(found.blocks[0]) == b"\0"
    rig.assert_clean(tmp_path)


def test_a_block_that_only_a_pass_still_had_is_judged_by_the_pass(rig: Rig, tmp_path: Path) -> None:
    """The primary was asked while its file was being written; that its pass brought the block proves what it had."""
    (found,) = _damaged(rig, 2)
    seen = asyncio.run(rig.mender.seen(found))
    asked = asyncio.run(rig.mender.testimony(found, checksum(seen), [Sight.UNKNOWN]))
    assert asked.verdict is Verdict.INCONCLUSIVE
    primary = Primary(rig.archive)
    primary.send(rig.has[found.blocks[0]])
    rig.expected[5] = dict(rig.expected[4])
    primary.seal(5)
    (settled,) = rig.look_again()
    assert (settled.state, settled.verdict, settled.bits) == (State.REPAIRED, Verdict.REPLICA_ROT, 1)
    rig.assert_clean(tmp_path)


def test_a_segment_is_laid_anew_once_all_that_was_found_in_it_is_judged(rig: Rig, tmp_path: Path) -> None:
    """Two frames of the record are damaged in one segment: both end with a verdict, and the segment is laid once."""
    rig.scrub()
    for frame in [rig.frames(kind, 2)[0] for kind in (FrameType.COMMIT, FrameType.RECORD)]:
        flip(segment(rig.directory, 2), frame.offset + HEADER_BYTES + 3, 0)
    assert rig.scrub() == 2
    rig.settle_all()
    settled = repaired(rig)
    assert {one.verdict for one in settled} == {Verdict.REPLICA_ROT} and len(settled) == 2
    assert len([one for one in settled if "judged first" in " ".join(event.what for event in one.events)]) == 1
    rig.assert_clean(tmp_path)


def test_bytes_that_nobody_has_stay_as_they_were_found(rig: Rig) -> None:
    """A segment is laid anew around a lost block: what was found of that block is found again, and nothing else."""
    rig.scrub()
    lost, seal = (rig.frames(kind, 2)[0] for kind in (FrameType.BLOCK, FrameType.SEAL))
    for frame in (lost, seal):
        flip(segment(rig.directory, 2), frame.offset + HEADER_BYTES + 3, 0)
    rig.scrub()
    del rig.has[lost.id]
    rig.settle()
    (before,) = [one for one in rig.settle() if one.part is Part.BLOCK]
    assert before.is_lost and before.state is State.OPEN
    assert {one.part for one in repaired(rig)} == {Part.STRUCTURE}
    rig.scrub()
    (after,) = rig.open_ones()
    assert (after.id, after.verdict, after.seen, after.found_ns) == (
        before.id, before.verdict, before.seen, before.found_ns,
    )  # fmt: skip


def _damaged_again(rig: Rig) -> Frame:
    """Segment 2 was laid anew once, so that a file of it is kept; then its seal and a block are damaged, and found. The
    block's frame as it was."""
    rig.scrub()
    lost, seal = (rig.frames(kind, 2)[0] for kind in (FrameType.BLOCK, FrameType.SEAL))
    flip(segment(rig.directory, 2), seal.offset + HEADER_BYTES + 3, 0)
    rig.scrub()
    rig.settle_all()
    for frame in (lost, rig.frames(FrameType.SEAL, 2)[0]):
        flip(segment(rig.directory, 2), frame.offset + HEADER_BYTES + 3, 0)
    assert rig.scrub() == 2
    return lost


def test_blocks_that_a_kept_file_still_had_are_repaired_with_their_segment(rig: Rig, tmp_path: Path) -> None:
    """What was set aside when a segment was laid is a source when it is laid again, also for what no side has any more;
    those findings say so, and keep the verdict that the primary's word gave them."""
    lost = _damaged_again(rig)
    data = rig.has.pop(lost.id)
    rig.settle()
    rig.settle()
    block, *_ = [one for one in repaired(rig) if one.part is Part.BLOCK]
    assert block.verdict is Verdict.REPLICA_ROT and "was laid anew" in block.events[-1].what
    assert rig.findings.receipts(block.id)[-1].remedy == "lay_segment"
    assert rig.open_ones() == []
    rig.has[lost.id] = data
    rig.assert_clean(tmp_path)


def test_a_block_of_which_the_primary_could_not_say_is_judged_before_it_is_healed(rig: Rig, tmp_path: Path) -> None:
    """Its file is being written, and a kept file has the block: the segment is laid once it is known what was wrong."""
    _damaged_again(rig)
    block, sealed = sorted(rig.open_ones(), key=lambda one: one.offset)
    asyncio.run(rig.mender.testimony(block, block.seen, [Sight.UNKNOWN]))
    judged = asyncio.run(rig.mender.testimony(sealed, sealed.seen, []))
    waiting = asyncio.run(rig.mender.mend(judged, []))
    assert waiting.state is State.OPEN and "judged first" in waiting.events[-1].what
    rig.settle_all()
    (told,) = [one for one in repaired(rig) if one.part is Part.BLOCK]
    assert told.verdict is Verdict.REPLICA_ROT
    rig.assert_clean(tmp_path)


def test_what_laying_a_segment_heals_is_found_first(rig: Rig, tmp_path: Path) -> None:
    """A block that went bad after the last scrub, of which a kept file still has a copy: it is found, judged and told
    although the segment was to be laid for something else, and nothing is laid before."""
    rig.scrub()
    block, seal = (rig.frames(kind, 2)[0] for kind in (FrameType.BLOCK, FrameType.SEAL))
    flip(segment(rig.directory, 2), seal.offset + HEADER_BYTES + 3, 0)
    rig.scrub()
    rig.settle_all()
    flip(segment(rig.directory, 2), seal.offset + HEADER_BYTES + 3, 0)
    assert rig.scrub() == 1
    flip(segment(rig.directory, 2), block.offset + HEADER_BYTES + 3, 0)
    before = rig.bytes_of()
    (first,) = rig.settle()
    assert "judged first" in first.events[-1].what and rig.bytes_of() == before
    rig.settle_all()
    *_, told = [one for one in repaired(rig) if one.part is Part.BLOCK]
    assert (told.blocks, told.verdict) == ((block.id,), Verdict.REPLICA_ROT)
    rig.assert_clean(tmp_path)


@contextmanager
def _going_bad(frame: Frame, when: str = "after it was written") -> Iterator[None]:
    """A frame of segment 2's file goes bad, once, while that segment is laid anew."""
    write, damaged = upkeep._write, []

    def goes_bad(archive: Archive, *words: Any) -> Any:
        path = segment(archive.store.directory, 2)
        if not damaged and when == "before it is written":
            damaged.append(flip(path, frame.offset + HEADER_BYTES + 3, 0))
        made = write(archive, *words)
        if not damaged:
            damaged.append(flip(path, frame.offset + HEADER_BYTES + 3, 0))
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(upkeep, "_write", goes_bad)
        yield
    assert damaged, "the segment was not laid"


@pytest.mark.parametrize("has_primary", [True, False])
@pytest.mark.parametrize("when", ["before it is written", "after it was written"])
def test_what_goes_bad_while_a_segment_is_laid_is_told_too(
    rig: Rig, tmp_path: Path, when: str, has_primary: bool
) -> None:
    """The file that is replaced goes bad in another place after it was looked at, and the new one is well: what was
    healed so is found in the old file, judged and told, and never called lost, whatever the primary has."""
    rig.scrub()
    block, seal = (rig.frames(kind, 2)[0] for kind in (FrameType.BLOCK, FrameType.SEAL))
    flip(segment(rig.directory, 2), seal.offset + HEADER_BYTES + 3, 0)
    rig.scrub()
    rig.settle_all()
    flip(segment(rig.directory, 2), seal.offset + HEADER_BYTES + 3, 0)
    assert rig.scrub() == 1
    with _going_bad(block, when):
        (first,) = rig.settle()
    assert first.state is State.REPAIRED
    (told,) = rig.open_ones()
    assert (told.part, told.blocks, told.seen != b"") == (Part.BLOCK, (block.id,), True)
    data = rig.has[block.id]
    if not has_primary:
        del rig.has[block.id]
    rig.settle_all()
    after = rig.findings.get_exactly(told.id)
    assert after and (after.state, after.verdict) == (State.REPAIRED, Verdict.REPLICA_ROT)
    assert not any("no side has" in event.what for event in after.events)
    rig.has[block.id] = data
    rig.assert_clean(tmp_path)


def _beside_a_bad_seal(rig: Rig, kind: FrameType) -> Frame:
    """The first frame of that kind in a segment whose seal is damaged and told of: it is to be laid anew."""
    rig.scrub()
    frame, seal = (rig.frames(one, 2)[0] for one in (kind, FrameType.SEAL))
    flip(segment(rig.directory, 2), seal.offset + HEADER_BYTES + 3, 0)
    assert rig.scrub() == 1
    return frame


def test_a_daemon_that_is_killed_over_a_laid_segment_tells_at_its_next_start(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new file is in place, and what went bad in the old one meanwhile was not told yet."""
    block = _beside_a_bad_seal(rig, FrameType.BLOCK)
    with _going_bad(block), monkeypatch.context() as patch:
        patch.setattr(mend_store.StoreMender, "_tell_of_replaced", _is_killed)
        with pytest.raises(KeyboardInterrupt):
            rig.settle()
    rig.kill()
    rig.open()
    rig.look_again()
    (told,) = [one for one in rig.open_ones() if one.part is Part.BLOCK]
    assert told.blocks == (block.id,)
    rig.settle_all()
    rig.settle_all()
    after = rig.findings.get_exactly(told.id)
    assert after and (after.state, after.verdict) == (State.REPAIRED, Verdict.REPLICA_ROT)
    rig.assert_clean(tmp_path)


def test_what_is_written_behind_a_laid_segment_is_not_missed_in_its_old_file(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last segment is laid anew and its daemon killed; it has grown when the next one looks at the old file."""
    rig.scrub()
    last = rig.archive.checkpoint.segment
    frame = rig.frames(FrameType.COMMIT, last)[0]
    flip(segment(rig.directory, last), frame.offset + HEADER_BYTES + 3, 0)
    assert rig.scrub() == 1
    with monkeypatch.context() as patch:
        patch.setattr(mend_store.StoreMender, "_tell_of_replaced", _is_killed)
        with pytest.raises(KeyboardInterrupt):
            rig.settle()
    rig.kill()
    rig.open()
    rig.put(5, {b"one more": b"what came later" * 20})
    assert rig.archive.checkpoint.segment == last, "it goes on"
    rig.look_again()
    assert {one.part for one in rig.open_ones()} == {Part.COMMIT}
    rig.settle_all()
    assert len(rig.findings.listed(state=State.REPAIRED)) == 1
    rig.assert_clean(tmp_path)


def test_the_seal_that_a_laid_segment_gets_is_not_missed_in_its_old_file(rig: Rig, tmp_path: Path) -> None:
    """A segment that was left unsealed, since a rebuild of the catalog met damage in it, is laid anew with a seal."""
    rig.scrub()
    rig.put(5, {b"one": b"what came sooner" * 20})
    last = rig.archive.checkpoint.segment
    bad, commit = rig.frames(FrameType.BLOCK, last)[0], rig.frames(FrameType.COMMIT, last)[0]
    flip(segment(rig.directory, last), bad.offset + HEADER_BYTES + 3, 0)
    rig.close()
    rebuild_catalog(rig.directory)
    rig.open()
    rig.put(6, {b"one more": b"what came later" * 20})
    assert rig.archive.checkpoint.segment == last + 1, "the one before was left as it is"
    rig.settle_all()
    unsealed = segment(rig.directory, last).stat().st_size
    flip(segment(rig.directory, last), commit.offset + HEADER_BYTES + 3, 0)
    rig.scrub()
    rig.settle_all()
    assert Part.SEGMENT not in {one.part for one in rig.findings.listed(state=None)}
    assert segment(rig.directory, last).stat().st_size > unsealed, "it has its seal"
    rig.assert_clean(tmp_path)


def test_old_file_that_cannot_be_read_makes_no_failure_of_the_repair(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new segment is in place and verified. What went bad in the old one is told by a daemon that can read it."""
    block = _beside_a_bad_seal(rig, FrameType.BLOCK)
    with _going_bad(block), monkeypatch.context() as patch:
        wrongs = mend_store.StoreMender._wrongs
        patch.setattr(
            mend_store.StoreMender,
            "_wrongs",
            lambda mender, *old: _cannot_be_opened() if "unread-" in old[1].name else wrongs(mender, *old),
        )
        (laid,) = rig.settle()
    assert laid.state is State.REPAIRED and [one.result for one in rig.findings.receipts(laid.id)] == ["repaired"]
    assert rig.open_ones() == []
    rig.reopen()
    rig.look_again()
    (told,) = [one for one in rig.open_ones() if one.part is Part.BLOCK]
    assert told.blocks == (block.id,)
    rig.settle_all()
    rig.settle_all()
    rig.assert_clean(tmp_path)


def _is_killed(mender: object) -> NoReturn:
    raise KeyboardInterrupt


@pytest.mark.parametrize("kind", [FrameType.RECORD, FrameType.COMMIT])
def test_record_that_goes_bad_while_a_segment_is_laid_is_told_too(rig: Rig, tmp_path: Path, kind: FrameType) -> None:
    """The same for what the catalog has copies of."""
    frame = _beside_a_bad_seal(rig, kind)
    with _going_bad(frame):
        rig.settle()
    (told,) = rig.open_ones()
    assert told.part is (Part.RECORD if kind is FrameType.RECORD else Part.COMMIT)
    rig.settle_all()
    after = rig.findings.get_exactly(told.id)
    assert after and (after.state, after.verdict) == (State.REPAIRED, Verdict.REPLICA_ROT)
    rig.assert_clean(tmp_path)


def test_a_segment_that_cannot_be_looked_at_is_a_repair_that_failed(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The finding says so and stays open, nothing is laid, and the next try repairs it."""
    rig.scrub()
    (seal,) = rig.frames(FrameType.SEAL, 2)
    flip(segment(rig.directory, 2), seal.offset + HEADER_BYTES + 3, 0)
    rig.scrub()
    before = rig.bytes_of()
    with monkeypatch.context() as patch:
        patch.setattr(SegmentCheck, "run", _cannot_be_opened)
        (found,) = rig.settle()
    assert found.state is State.OPEN and "repair failed: cannot be opened" in found.events[-1].what
    assert rig.bytes_of() == before and rig.findings.receipts(found.id)[-1].result == "failed"
    rig.settle_all()
    rig.assert_clean(tmp_path)


def _cannot_be_opened(*_: object) -> NoReturn:
    raise ReplicadError("cannot be opened")


def test_a_primary_that_cannot_say_this_time_takes_back_nothing(rig: Rig) -> None:
    """Its first word stands when it is asked again while its file is being written, or its root is away."""
    (found,) = _damaged(rig, 2)
    judged = asyncio.run(rig.mender.testimony(found, found.seen, [Sight.ABSENT]))
    assert judged.verdict is Verdict.REPLICA_ROT and judged.is_lost
    again = asyncio.run(rig.mender.testimony(judged, found.seen, [Sight.UNKNOWN]))
    assert (again.verdict, again.evidence) == (judged.verdict, judged.evidence)
    better = asyncio.run(rig.mender.testimony(again, found.seen, [Sight.MATCHES]))
    assert better.verdict is Verdict.REPLICA_ROT and not better.is_lost


def _run_of_three(rig: Rig) -> Divergence:
    """Three block frames in a row overwritten, and scrubbed: one finding."""
    rig.scrub()
    frames = rig.frames(FrameType.BLOCK, 1)[1:4]
    write_at(segment(rig.directory, 1), frames[0].offset + 70, bytes(frames[-1].end - frames[0].offset - 80))
    assert rig.scrub() == 1
    (found,) = rig.open_ones()
    assert set(found.blocks) == {frame.id for frame in frames}
    return found


def test_what_can_be_had_is_repaired_while_the_rest_cannot_be_looked_at(rig: Rig, tmp_path: Path) -> None:
    """One file that is being written does not keep the others of a run from their repair; what is over names all."""
    found = _run_of_three(rig)
    sights = [Sight.MATCHES, Sight.UNKNOWN, Sight.MATCHES]
    judged = asyncio.run(rig.mender.testimony(found, found.seen, sights))
    assert judged.verdict is Verdict.REPLICA_ROT and not judged.is_lost
    frames = [block_frame(rig.has[found.blocks[at]]) for at in (0, 2)]
    left = asyncio.run(rig.mender.mend(judged, frames))
    assert (left.state, left.verdict, left.blocks) == (State.OPEN, Verdict.INCONCLUSIVE, (found.blocks[1],))
    assert left.mended == (found.blocks[0], found.blocks[2])
    rig.settle_all()
    (done,) = repaired(rig)
    assert (set(done.blocks), done.mended, done.affected) == (set(found.blocks), (), found.affected)
    rig.assert_clean(tmp_path)


def test_a_block_that_was_stored_anew_meanwhile_does_not_spoil_what_is_sent_for_the_others(
    rig: Rig, tmp_path: Path
) -> None:
    """The primary sends what it was asked for; a pass may have brought some of it since."""
    found = _run_of_three(rig)
    judged = asyncio.run(rig.mender.testimony(found, found.seen, [Sight.MATCHES] * 3))
    data = [rig.has[name] for name in found.blocks]
    primary = Primary(rig.archive)
    primary.send(data[1])
    primary.record(file_put(b"again", 7777, {0: found.blocks[1]}))
    primary.seal(5)
    done = asyncio.run(rig.mender.mend(judged, [block_frame(one) for one in data]))
    assert done.state is State.REPAIRED and len(rig.findings.receipts(found.id)) == 2
    rig.assert_clean(tmp_path)


def test_blocks_that_a_pass_brings_before_a_cut_segment_is_laid_anew_stay_named(rig: Rig, tmp_path: Path) -> None:
    """What was damaged is told, whoever mended it: the record of what is over names every block that was cut off."""
    rig.scrub()
    cut = {frame.id for frame in rig.frames(FrameType.BLOCK, 2)[3:]}
    _truncated(rig)
    assert rig.scrub() >= 1
    name = min(cut & rig.has.keys())
    primary = Primary(rig.archive)
    primary.send(rig.has[name])
    primary.record(file_put(b"again", 7777, {0: name}))
    primary.seal(5)
    rig.scrub()
    rig.settle_all()
    (over,) = [one for one in rig.findings.listed(state=State.REPAIRED) if one.part is Part.SEGMENT]
    assert cut <= set(over.blocks)
    rig.assert_clean(tmp_path)


def test_what_is_left_of_a_run_is_no_new_finding(rig: Rig, tmp_path: Path) -> None:
    """Its first blocks are repaired, a scrub comes by, and meets the rest under another offset."""
    found = _run_of_three(rig)
    judged = asyncio.run(rig.mender.testimony(found, found.seen, [Sight.MATCHES] * 3))
    asyncio.run(rig.mender.mend(judged, [block_frame(rig.has[found.blocks[0]])]))
    assert rig.scrub() == 0
    assert [one.id for one in rig.open_ones()] == [found.id]
    rig.settle_all()
    rig.assert_clean(tmp_path)


def test_bad_bytes_that_are_kept_no_more_are_shown_where_they_stand(rig: Rig) -> None:
    """The quarantine makes room for newer ones; that says nothing against the damage."""
    (found,) = _damaged(rig, 2)
    kept = rig.directory / found.quarantine
    before = kept.read_bytes()
    kept.unlink()
    assert asyncio.run(rig.mender.seen(found)) == before
    write_at(segment(rig.directory, 2), found.offset, b"something else again")
    assert asyncio.run(rig.mender.seen(found)) == b""
    silent = asyncio.run(rig.mender.testimony(found, b"", [Sight.MATCHES]))
    assert (silent.verdict, silent.evidence.witness) == (Verdict.INCONCLUSIVE, Witness.SILENT)


def test_what_reads_well_twice_is_gone(rig: Rig, tmp_path: Path) -> None:
    """A place that somebody put right is settled after two looks, not after one."""
    before = segment(rig.directory, 2).read_bytes()
    _damaged(rig, 2)
    write_at(segment(rig.directory, 2), 0, before)
    assert rig.look_again() == []
    (settled,) = rig.look_again()
    assert settled.state is State.GONE
    rig.assert_clean(tmp_path)


def test_a_bad_look_between_two_good_ones_begins_the_row_anew(rig: Rig, tmp_path: Path) -> None:
    """A medium that gives now this and now that is not well, and nothing says that it was so twice in a row."""
    good = segment(rig.directory, 2).read_bytes()
    _damaged(rig, 2)
    bad = segment(rig.directory, 2).read_bytes()
    for data in (good, bad, good):
        write_at(segment(rig.directory, 2), 0, data)
        assert rig.look_again() == []
    (settled,) = rig.look_again()
    assert settled.state is State.GONE and "2 times in a row" in settled.events[-1].what
    rig.assert_clean(tmp_path)


def test_a_segment_that_cannot_be_opened_keeps_no_other_finding_from_being_settled(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is wrong with it stays open and says why; the rest goes on."""
    good = segment(rig.directory, 3).read_bytes()
    rig.scrub()
    _truncated(rig)
    _flip_in(FrameType.BLOCK, number=3)(rig)
    rig.scrub()
    write_at(segment(rig.directory, 3), 0, good)
    monkeypatch.setattr(SegmentCheck, "run", _cannot_be_opened)
    for _ in range(2):
        settled = rig.look_again()
    assert [(one.number, one.state) for one in settled] == [(3, State.GONE)]
    (left,) = [one for one in rig.open_ones() if one.part is Part.SEGMENT]
    assert [event.what for event in left.events][1:] == ["could not be looked at again: cannot be opened"]


def test_a_medium_that_takes_minutes_keeps_nobody_waiting(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits has the turn after one look; where a call was ended the next one goes on."""
    found = [one.id for one in _damaged(rig, 1, 2, 3, 4)]

    async def settle() -> None:
        turn, begun, ended = asyncio.Lock(), asyncio.Queue[str](), asyncio.Semaphore(0)

        async def look_slowly(one: Divergence, _: object) -> Divergence:
            begun.put_nowait(one.id)
            await ended.acquire()
            return one

        monkeypatch.setattr(rig.mender, "_looked_at", look_slowly)
        looking = asyncio.create_task(rig.mender.verify_divergences(turn))
        assert await begun.get() == found[0]
        waiting = asyncio.create_task(turn.acquire())
        await asyncio.sleep(0)
        ended.release()
        await waiting
        assert begun.empty()
        turn.release()
        assert await begun.get() == found[1]
        looking.cancel()
        await asyncio.wait({looking})
        looking = asyncio.create_task(rig.mender.verify_divergences(turn))
        assert await begun.get() == found[2]
        looking.cancel()
        await asyncio.wait({looking})

    asyncio.run(settle())


def test_a_repair_that_waited_for_a_verdict_is_due_as_soon_as_it_is_given(rig: Rig) -> None:
    """Its primary looks at what stays as it is more and more seldom: that what it waited for is there is news."""
    rig.scrub()
    for frame in [rig.frames(kind, 2)[0] for kind in (FrameType.BLOCK, FrameType.SEAL)]:
        flip(segment(rig.directory, 2), frame.offset + HEADER_BYTES + 3, 0)
    rig.scrub()
    block, seal = sorted(rig.open_ones(), key=lambda one: one.part.value)
    asyncio.run(rig.mender.testimony(seal, seal.seen, []))
    waiting = asyncio.run(rig.mender.mend(seal, []))
    assert "judged first" in waiting.events[-1].what
    asyncio.run(rig.mender.testimony(block, b"", [Sight.MATCHES]))
    assert rig.findings.get_exactly(seal.id) == waiting, "nothing is judged yet"
    asyncio.run(rig.mender.testimony(block, block.seen, [Sight.MATCHES]))
    now = rig.findings.get_exactly(seal.id)
    assert now and now.changed_ns > waiting.changed_ns
    assert asyncio.run(rig.mender.mend(seal, [])).state is State.REPAIRED


def test_bytes_that_nobody_has_any_more_keep_no_finding_open(rig: Rig) -> None:
    """Its blocks were stored anew by a pass; what stood there cannot be judged any more, and nobody waits for that."""
    (found,) = _damaged(rig, 2)
    primary = Primary(rig.archive)
    primary.send(rig.has[found.blocks[0]])
    rig.expected[5] = dict(rig.expected[4])
    primary.seal(5)
    assert rig.look_again() == []
    (rig.directory / found.quarantine).unlink()
    write_at(segment(rig.directory, 2), found.offset, b"something else again")
    (settled,) = rig.look_again()
    assert settled.state is State.REPAIRED and "by a pass" in settled.events[-1].what


def test_bytes_that_changed_once_more_are_judged_as_they_are_now(rig: Rig, tmp_path: Path) -> None:
    """Of a run of blocks a pass brought some, what was found is kept no more, and other rot has hit the rest since: no
    scrub tells of that anew, and it is repaired all the same."""
    rig.scrub()
    first, *_, last = rig.frames(FrameType.BLOCK, 2)[1:4]
    write_at(segment(rig.directory, 2), first.offset + 30, os.urandom(last.end - first.offset - 60))
    rig.scrub()
    (found,) = rig.open_ones()
    primary = Primary(rig.archive)
    primary.send(rig.has[found.blocks[0]])
    rig.expected[5] = dict(rig.expected[4])
    primary.seal(5)
    (rig.directory / found.quarantine).unlink()
    write_at(segment(rig.directory, 2), last.offset + 40, os.urandom(20))
    rig.scrub()
    assert [one.id for one in rig.open_ones()] == [found.id]
    rig.settle_all()
    rig.assert_clean(tmp_path)


def test_what_is_kept_of_other_bytes_accuses_nobody(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """There was no room for what was found last, and what was found before is still kept: it is not sent for it."""
    (found,) = _damaged(rig, 2)
    write_at(segment(rig.directory, 2), found.offset + 90, b"something else again")
    with monkeypatch.context() as patch:
        patch.setattr(Quarantine, "keep", lambda *_: "")
        rig.scrub()
    (again,) = rig.open_ones()
    assert (again.id, again.quarantine) == (found.id, found.quarantine) and again.seen != found.seen
    (settled,) = rig.settle()
    assert (settled.state, settled.evidence.witness) == (State.REPAIRED, Witness.CONFIRMS)


def test_a_loss_that_a_pass_made_good_is_a_loss_no_more(rig: Rig) -> None:
    """Also when a person has taken note of it: no file is shown as damaged, and should it come back it is told."""
    rig.scrub()
    (place,) = rig.archive.inventory.places([block_id(rig.expected[4][b"changes"])]).values()
    flip(segment(rig.directory, place.segment), place.offset + 80)
    rig.scrub()
    (found,) = rig.open_ones()
    rig.findings.update(found.with_event(5, "acknowledged", state=State.ACKNOWLEDGED))
    assert damaged_paths(rig.directory, 4) == {b"changes"}
    assert rig.look_again() == []
    primary = Primary(rig.archive)
    primary.send(rig.has[found.blocks[0]])
    primary.seal(5)
    (settled,) = rig.look_again()
    assert (settled.id, settled.state) == (found.id, State.REPAIRED)
    assert damaged_paths(rig.directory, 4) == frozenset()


def test_a_repair_that_fails_as_it_did_before_is_told_once(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line and one receipt: what cannot be repaired for days fills no history, and opens no breaker."""
    rig.scrub()
    (seal,) = rig.frames(FrameType.SEAL, 2)
    flip(segment(rig.directory, 2), seal.offset + HEADER_BYTES + 3, 0)
    rig.scrub()
    monkeypatch.setattr(SegmentCheck, "run", _cannot_be_opened)
    (first,) = rig.settle()
    for _ in range(2 * 100):
        (found,) = rig.settle()
    assert found == first and [one.result for one in rig.findings.receipts(found.id)] == ["failed"]
    assert not rig.findings.get(BREAKER)


def test_neighbouring_blocks_of_one_file_are_one_place() -> None:
    """They are named as one range, and nothing says that there are more."""
    one, two = block_id(b"1"), block_id(b"2")
    here = {one: [Affected(b"f", 0, 65536, 1)], two: [Affected(b"f", 65536, 65536, 1)]}
    assert harm.Harm(here, {one: 1, two: 1}).of([one, two]) == ((Affected(b"f", 0, 131072, 1),), 1)
    assert harm.Harm(here, {one: 1, two: 500}).of([one, two])[1] == 500


def test_a_segment_of_many_findings_is_looked_at_once(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody knows what should stand, all of it has to be read: once for all of them, and not all the time."""
    rig.scrub()
    for frame in rig.frames(FrameType.BLOCK, 2)[:5:2]:
        flip(segment(rig.directory, 2), frame.offset + 70)
    rig.close()
    rebuild_catalog(rig.directory)
    rig.open()
    assert rig.scrub() >= 3
    assert len({one.id for one in rig.open_ones() if one.part is Part.STRUCTURE and one.number == 2}) == 3
    looks: list[int] = []
    run = SegmentCheck.run

    def counted(self: SegmentCheck, before: bytes = b"") -> object:
        looks.append(self._number)
        rig.clock.slept.append(1.0)
        return run(self, before)

    monkeypatch.setattr(SegmentCheck, "run", counted)
    for _ in range(3):
        rig.look_again()
    assert looks == [2]
    rig.clock.slept.append(REST)
    rig.look_again()
    assert looks == [2, 2]


def test_a_damaged_book_is_not_looked_through_all_the_time(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits for a person, perhaps for days: a look at all of it rests for many times as long as it took."""
    rig.scrub()
    _row_lost(rig)
    rig.scrub()
    assert Part.BOOK in {one.part for one in rig.open_ones()}
    looks: list[Inventory] = []

    def slow(inventory: Inventory) -> object:
        looks.append(inventory)
        rig.clock.slept.append(1.0)
        return check_structure(inventory)

    monkeypatch.setattr(whole_looks, "check_structure", slow)
    for _ in range(3):
        rig.look_again()
    assert len(looks) == 1
    rig.clock.slept.append(REST)
    rig.look_again()
    assert len(looks) == 2


def test_a_place_of_which_nobody_knows_keeps_no_segment_from_being_laid(rig: Rig) -> None:
    """Laying changes nothing there, so nothing has to be said of it first; and it stays the finding that it was."""
    rig.scrub()
    (seal,) = rig.frames(FrameType.SEAL, 2)
    flip(segment(rig.directory, 2), rig.frames(FrameType.BLOCK, 2)[1].offset + 70)
    rig.close()
    rebuild_catalog(rig.directory)
    rig.open()
    rig.scrub()
    flip(segment(rig.directory, 2), seal.offset + HEADER_BYTES + 3, 0)
    rig.scrub()
    unknown, sealed = sorted((one for one in rig.open_ones() if one.number == 2), key=lambda one: one.offset)
    judged = asyncio.run(rig.mender.testimony(sealed, sealed.seen, []))
    assert asyncio.run(rig.mender.mend(judged, [])).state is State.REPAIRED
    rig.scrub()
    (left,) = [one for one in rig.open_ones() if one.number == 2]
    assert (left.id, left.seen, left.evidence) == (unknown.id, unknown.seen, unknown.evidence)


def test_a_segment_is_laid_around_more_than_is_read_at_once(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of most of it nobody knows what stood there: that stays, byte for byte, and its end is mended."""
    monkeypatch.setattr(store_module, "SEGMENT_BYTES", 2 * READ_BUFFER_BYTES)
    count = READ_BUFFER_BYTES // 65536 + 1
    rig.put(5, {b"big-%d" % i: random.Random(i).randbytes(65536) for i in range(count)})
    monkeypatch.undo()
    rig.put(6, {b"behind": b"it"})
    number = max(rig.bytes_of()) - 1
    blocks, (seal,) = rig.frames(FrameType.BLOCK, number)[-count:], rig.frames(FrameType.SEAL, number)
    start, end = blocks[0].offset, blocks[-1].end
    left = random.Random(5).randbytes(end - start)
    write_at(segment(rig.directory, number), start, left)
    rig.close()
    rebuild_catalog(rig.directory)
    rig.open()
    rig.scrub()
    flip(segment(rig.directory, number), seal.offset + HEADER_BYTES + 3, 0)
    rig.scrub()
    (sealed,) = [one for one in rig.open_ones() if one.number == number and one.offset == seal.offset]
    judged = asyncio.run(rig.mender.testimony(sealed, sealed.seen, []))
    assert asyncio.run(rig.mender.mend(judged, [])).state is State.REPAIRED
    assert rig.bytes_of()[number][start:end] == left


def test_a_live_block_is_asked_for_by_its_place(rig: Rig) -> None:
    """File and block number, so that the primary knows where to read; (0, 0) for what only history has."""
    rig.scrub()
    for data in (rig.expected[4][b"changes"], rig.expected[1][b"changes"]):
        (place,) = rig.archive.inventory.places([block_id(data)]).values()
        flip(segment(rig.directory, place.segment), place.offset + 80)
    rig.scrub()
    wants = {w.id: w for one in rig.open_ones() for w in asyncio.run(rig.mender.wants(one))}
    live, old = wants[block_id(rig.expected[4][b"changes"])], wants[block_id(rig.expected[1][b"changes"])]
    assert (live.file // 1000, live.number) == (4, 0) and (old.file, old.number) == (0, 0)


def test_what_damaged_blocks_belong_to_is_believed_for_a_while(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that come to be damaged meanwhile are looked up alone; after a rest all of them are."""
    looks: list[set[bytes]] = []

    def slow(inventory: Inventory, ids: frozenset[bytes]) -> harm.Harm:
        looks.append(set(ids))
        rig.clock.slept.append(1.0)
        return harm_of(inventory, ids)

    harm_of = harm.harm_of
    monkeypatch.setattr(harm, "harm_of", slow)
    known = harm.KnownHarm(catalog_path(rig.directory), rig.clock)
    one, two = block_id(rig.expected[4][b"changes"]), block_id(rig.expected[4][b"file-4-1"])
    old = block_id(rig.expected[1][b"changes"])

    def of(*ids: bytes) -> harm.Harm:
        return known.of(frozenset(ids)) or known.look(frozenset(ids))

    assert set(of(one, old).live) == {one} and of(one) is of(old)
    assert set(of(one, two, old).live) == {one, two} and set(of(one, two, old).affected) == {one, two, old}
    assert looks == [{one, old}, {two}]
    rig.clock.slept.append(REST)
    assert set(of(two).live) == {two} and looks[2:] == [{two}]


def test_runs_of_which_a_part_is_lost_are_looked_up_together(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left of each names the files of its blocks alone; for all of them the catalog is gone through once."""
    rig.scrub()
    runs = [rig.frames(FrameType.BLOCK, number)[1:4] for number in (1, 2)]
    for number, frames in enumerate(runs, 1):
        size = frames[-1].end - frames[0].offset - 80
        write_at(segment(rig.directory, number), frames[0].offset + 70, bytes(size))
    assert rig.scrub() == 2
    lost = {frames[1].id for frames in runs}
    for name in lost:
        del rig.has[name]
    looks: list[frozenset[bytes]] = []

    def slow(inventory: Inventory, ids: frozenset[bytes]) -> harm.Harm:
        looks.append(ids)
        rig.clock.slept.append(1.0)
        return harm_of(inventory, ids)

    harm_of = harm.harm_of
    monkeypatch.setattr(harm, "harm_of", slow)
    monkeypatch.setattr(mend_store, "harm_of", slow)
    left = rig.settle()
    assert all(one.state is State.OPEN and one.is_lost and len(one.mended) == 2 for one in left)
    assert {name for one in left for name in one.blocks} == lost
    assert looks == [{frame.id for frames in runs for frame in frames}]
    places = harm_of(rig.archive.inventory, lost)
    assert all(one.affected == places.of(one.blocks)[0] and one.affected_count for one in left)


# records, rebuilds and what they lost


def test_a_rebuild_takes_damaged_records_from_the_old_catalog(rig: Rig, tmp_path: Path) -> None:
    """Nothing is lost by it, and the segment is mended afterwards."""
    rig.scrub()
    _flip_in(FrameType.RECORD)(rig)
    _flip_in(FrameType.COMMIT, number=4)(rig)
    rig.close()
    rebuilt = rebuild_catalog(rig.directory, knowing=catalog_path(rig.directory))
    assert len(rebuilt.damage) == 2
    rig.open()
    assert _lost(rig) == 0
    rig.scrub()
    rig.settle_all()
    rig.assert_clean(tmp_path)


def _lost(rig: Rig) -> int:
    reader = ArchiveReader(rig.directory)
    try:
        return max(line.lost for line in reader.snapshots())
    finally:
        reader.close()


def test_a_lost_record_that_comes_back_is_lost_no_more(rig: Rig, tmp_path: Path) -> None:
    """A record that a rebuild missed and a person has put back is taken in by a repair that a person orders."""
    good = segment(rig.directory, 2).read_bytes()
    _flip_in(FrameType.RECORD)(rig)
    rig.close()
    rebuild_catalog(rig.directory)
    rig.open()
    assert _lost(rig) == 1
    rig.scrub()
    write_at(segment(rig.directory, 2), 0, good)
    rig.scrub()
    rig.settle(ordered=True)
    assert _lost(rig) == 0
    rig.settle_all()
    rig.assert_clean(tmp_path)


def _missing(rig: Rig, name: bytes, *, is_told: bool) -> None:
    """No side has this block any more, and the catalog is made anew without it; `is_told`: a person knows before."""
    rig.scrub()
    rig.flip(name)
    del rig.has[name]
    if is_told:
        rig.scrub()
        (found,) = rig.settle()
        assert found.is_lost and found.blocks == (name,)
        rig.findings.update(found.with_event(1, "taken note of", state=State.ACKNOWLEDGED))
    rig.close()
    rebuild_catalog(rig.directory)
    rig.open()
    rig.scrub()


def test_a_block_that_stands_nowhere_stays_a_finding(rig: Rig) -> None:
    """It is not called gone as long as a snapshot names it: told once, with its file, and said to be lost."""
    name = block_id(rig.expected[1][b"changes"])
    _missing(rig, name, is_told=False)
    (found,) = [one for one in rig.open_ones() if one.part is Part.BLOCK]
    for _ in range(3):
        rig.look_again()
        rig.settle()
        rig.clock.slept.append(3600.0)
        rig.scrub()
    (now,) = [one for one in rig.findings.listed(state=None) if one.part is Part.BLOCK]
    assert (now.id, now.state, now.blocks, now.is_lost) == (found.id, State.OPEN, (name,), True)
    assert [one.path for one in now.affected] == [b"changes"]


def test_a_block_that_stands_nowhere_and_that_nothing_names_any_more_is_no_loss(rig: Rig) -> None:
    """When retention has let go the snapshots that need it; that is looked at once in a while."""
    name = block_id(rig.expected[1][b"changes"])
    _missing(rig, name, is_told=False)
    (found,) = [one for one in rig.open_ones() if one.part is Part.BLOCK]
    rig.look_again()
    drop(rig.archive, [1])
    while purge_step(rig.archive):
        pass
    rig.clock.slept.append(3600.0)
    rig.look_again()
    now = rig.findings.get_exactly(found.id)
    assert now and now.state is State.GONE and now.events[-1].what == "no snapshot that is kept names it any more"
    rig.scrub()
    assert [one for one in rig.open_ones() if one.part is Part.BLOCK] == []


def test_a_loss_that_a_person_has_taken_note_of_is_not_told_anew_by_a_new_catalog(rig: Rig) -> None:
    """The place that it had is unknown to a catalog that was made anew; the block is the same."""
    name = block_id(rig.expected[1][b"changes"])
    _missing(rig, name, is_told=True)
    rig.scrub()
    assert [one for one in rig.open_ones() if one.part is Part.BLOCK] == []
    assert [one.state for one in rig.findings.listed(state=None) if name in one.blocks] == [State.ACKNOWLEDGED]


def test_damage_older_than_the_catalog_is_settled_when_nothing_is_missing(rig: Rig, tmp_path: Path) -> None:
    """After a rebuild without the old catalog nobody knows what stood at a mended place: told, and settled once it is
    certain that no snapshot lacks anything."""
    _damaged(rig, 2)
    rig.settle_all()
    rig.close()
    rebuild_catalog(rig.directory)
    rig.open()
    assert rig.scrub() == 1
    rig.settle_all()
    assert rig.findings.listed(state=State.GONE)
    rig.assert_clean(tmp_path)


def test_damage_older_than_the_catalog_is_settled_when_all_that_is_missing_is_told(rig: Rig) -> None:
    """What snapshots lack has findings of its own, open or acknowledged; the places say nothing beside them. Before all
    of it is told they stay, and their bytes always do."""
    rig.scrub()
    gone = rig.frames(FrameType.BLOCK, 2)[:3:2]
    for frame in gone:
        flip(segment(rig.directory, 2), frame.offset + HEADER_BYTES + 3)
        del rig.has[frame.id]
    before = rig.bytes_of()
    rig.close()
    rebuild_catalog(rig.directory)
    rig.open()
    rig.scrub()
    places = [one for one in rig.open_ones() if one.part is Part.STRUCTURE]
    lost = {one.blocks[0]: one for one in rig.open_ones() if one.part is Part.BLOCK}
    assert len(places) == 2 and lost.keys() == {frame.id for frame in gone}
    rig.findings.update(lost[gone[0].id].with_event(1, "taken note of", state=State.ACKNOWLEDGED))
    rig.findings.update(lost[gone[1].id].with_event(1, "as if it had not been told yet", state=State.GONE))
    rig.settle()
    assert {one.id for one in rig.open_ones()} == {one.id for one in places}
    rig.clock.slept.append(3600.0)
    rig.scrub()
    rig.settle()
    (left,) = rig.open_ones()
    assert left.blocks == (gone[1].id,) and left.is_lost
    assert [rig.findings.get_exactly(one.id).state for one in places] == [State.GONE] * 2  # type: ignore[union-attr]
    rig.scrub()
    assert [one.id for one in rig.open_ones()] == [left.id] and rig.bytes_of()[2] == before[2]


# crashes


class Crash(Exception):
    """The power is gone."""


class CrashingDisk(FaultyDisk):
    """A disk that fails for good at its nth write, sync or change of names."""

    def __init__(self) -> None:
        super().__init__()
        self.left: int | None = None

    def _step(self) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise Crash

    def pwrite(self, fd: int, data: Buffer, offset: int) -> int:
        self._step()
        return super().pwrite(fd, data, offset)

    def sync(self, fd: int) -> None:
        self._step()
        super().sync(fd)

    def sync_directory(self, path: Path) -> None:
        self._step()
        super().sync_directory(path)

    def rename_durable(self, source: Path, target: Path) -> None:
        self._step()
        super().rename_durable(source, target)


@pytest.mark.parametrize("kind", ["record", "swapped", "lost", "bit in a block's payload", "row elsewhere"])
def test_a_crash_at_any_step_of_a_repair_leaves_a_usable_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The store opens, shows every snapshot, and the next repair makes it clean."""
    monkeypatch.setattr(store_module, "SEGMENT_BYTES", SMALL)
    for step in range(60):
        disk = CrashingDisk()
        rig = Rig(tmp_path / str(step) / "ams1" / "www", disk)
        rig.fill()
        rig.scrub()
        KINDS[kind][0](rig)
        rig.scrub()
        disk.left = step
        try:
            for _ in range(3):
                rig.settle()
        except Crash:
            pass
        ended = disk.left >= 0
        disk.left = None
        rig.kill()
        disk.power_cut(step)
        rig.open()
        assert rig.archive.head.number == 4
        rig.scrub()
        rig.settle_all()
        rig.assert_clean(tmp_path)
        rig.close()
        rig.executor.shutdown()
        if ended:
            return
    raise AssertionError("a repair takes more steps than were tried")


# anything

HARMS = ("bit", "bit", "bit", "burst", "zeroed", "truncated", "lost", "swapped", "garbage", "copied")


def _any_harm(rig: Rig, choose: random.Random) -> None:
    path = segment(rig.directory, choose.choice(segment_numbers(rig.directory)))
    data = path.read_bytes()
    at = choose.randrange(len(data))
    other = segment(rig.directory, choose.choice(segment_numbers(rig.directory)))
    match choose.choice(HARMS):
        case "bit":
            flip(path, at, choose.randrange(8))
        case "burst":
            write_at(path, at, choose.randbytes(min(len(data) - at, choose.randrange(1, 4000))))
        case "zeroed":
            write_at(path, at // 512 * 512, bytes(min(512, len(data) - at // 512 * 512)))
        case "truncated":
            os.truncate(path, at)
        case "lost":
            path.unlink()
        case "swapped":
            theirs = other.read_bytes()
            other.write_bytes(data)
            path.write_bytes(theirs)
        case "garbage":
            path.write_bytes(data + choose.randbytes(choose.randrange(1, 9000)))
        case _:
            theirs = other.read_bytes()
            starts = [one.start() for one in re.finditer(b"RPD1", theirs)]
            places = [one.start() for one in re.finditer(b"RPD1", data)]
            if starts and places:
                start, place = choose.choice(starts), choose.choice(places)
                end = min((one for one in starts if one > start), default=len(theirs))
                write_at(path, place, theirs[start:end][: len(data) - place])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32))
def test_whatever_happens_is_found_and_mended(seed: int) -> None:
    """Several rounds of several kinds of damage at once, sessions and restarts in between: each round is found if
    anything that is still needed changed, and all of it is settled and clean afterwards."""
    choose = random.Random(seed)
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_module, "SEGMENT_BYTES", SMALL)
        rig = Rig(Path(name) / "ams1" / "www", repair_limit=10**6)
        rig.fill()
        if choose.random() < 0.7:
            assert rig.scrub() == 0
        for number in range(choose.randint(1, 3)):
            before = rig.bytes_of()
            for _ in range(choose.randint(1, 3)):
                _any_harm(rig, choose)
            assert (rig.scrub() > 0) == unsettled_changes(rig, before)
            if choose.random() < 0.3:
                rig.reopen()
            if choose.random() < 0.3:
                rig.put(50 + number, {b"n%d" % number: choose.randbytes(700)})
            rig.settle_all()
            rig.assert_clean(Path(name))
        rig.close()
        rig.executor.shutdown()


def test_a_defect_amid_a_repair_leaves_a_store_that_takes_blocks(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes out as what it is, to be counted; no session that writes meanwhile meets it, nor the next repair."""
    _flip_in(FrameType.HEADER)(rig)
    rig.scrub()

    def fail(*_: object) -> NoReturn:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(upkeep, "_write", fail)
        with pytest.raises(ZeroDivisionError):
            rig.settle()
    assert rig.archive.is_settled
    rig.put(5, {b"more": b"of it " * 100})
    rig.settle_all()
    rig.assert_clean(tmp_path)
