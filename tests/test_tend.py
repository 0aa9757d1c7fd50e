"""Tending: findings of both sides are confirmed, judged and settled between a real primary and a real store."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing
from pathlib import Path
from types import SimpleNamespace
from typing import get_type_hints

import msgspec
import pytest

from kit_engine import JumpingClock
from kit_findings import a_divergence, replica_rot
from kit_rig import Replica, Rig, copied, describe_snapshot, differences, replica, rig
from kit_store import flip, segment
from kit_tend import (
    BLOCK,
    DictMender,
    Menders,
    Scrub,
    change_catalog,
    known_of,
    report,
    rot,
    stamp_now,
    standing,
    tending,
)
from replicad.cli.scrub import describe
from replicad.cli.status import render
from replicad.db.findings import Findings
from replicad.db.ledger import UNKNOWN_CHECKSUM, ZERO, BlockRow, stamp_of
from replicad.db.touched import restamp
from replicad.db.unnamed import KEPT_WALKS
from replicad.http.metrics import Exposition
from replicad.link.channel import ANSWER_S, Channel
from replicad.link.messages import Case, Cases, Examined, Message, Settled, SnapshotLine, Want
from replicad.model.block import block_id, checksum
from replicad.model.divergence import Divergence, Part, Side, State
from replicad.model.errors import (
    BookDamagedError,
    DiskFullError,
    LinkError,
    PeerError,
    ReplicadError,
    StoreDamagedError,
    UsageError,
)
from replicad.model.snapshot import Head
from replicad.model.verdict import Books, Sight, Verdict, Witness
from replicad.source.root import Root
from replicad.status import DatasetStatus, NodeStatus, ScrubStatus, decode, encode, findings
from replicad.system.disk import Disk
from replicad.work import account_record, compare_records, conversation, elsewhere, holdings, mirror, tended
from replicad.work.account_record import Sums, bucket_of_file, bucket_of_path
from replicad.work.archive_reader import ArchiveReader
from replicad.work.breaker import is_open, open_breaker
from replicad.work.confirm import Opinions, is_recorded_block
from replicad.work.conversation import Conversation
from replicad.work.dataset import Dataset
from replicad.work.elsewhere import Elsewhere
from replicad.work.half_read import half_read
from replicad.work.holdings import Held
from replicad.work.mirror import Mirror
from replicad.work.orders import close_breakers
from replicad.work.read_remote import RemoteReader
from replicad.work.tend import AGAIN_ROUNDS, AWAITED_S, LAST_AGAIN_ROUNDS, Patience, Tending
from replicad.work.tendings import Tendings

DATA = random.Random(5).randbytes(5 * BLOCK + 1000)


class World:
    """A primary, its replica, and the job between them."""

    def __init__(self, primary: Rig, fra1: Replica, job: Tending, menders: Menders, scrub: Scrub) -> None:
        self.primary, self.fra1, self.job, self.menders, self.scrub = primary, fra1, job, menders, scrub

        self.told = 0
        job._tell_anew = self._tell

    def _tell(self) -> None:
        self.told += 1

    @property
    def file(self) -> Path:
        """The file that rots."""
        return self.primary.root / "file"

    async def head(self) -> Head:
        """The replica's last snapshot, as the ledger knows it."""
        ledger = self.primary.dataset.ledger
        return (await self.primary.dataset.in_ledger(ledger.standing, "fra1")).head

    async def round(self) -> None:
        """One round of the job."""
        await self.job.step()

    async def scrubbed(self) -> None:
        """A person has asked for a scrub of the replica, and it is over."""
        self.scrub.status.served = await self.job.start_scrub()

    async def mender(self) -> DictMender:
        """The replica's mender, which exists once there was a session."""
        if not self.menders.made:
            await self.round()
        return self.menders.only

    async def mirrored(self) -> list[Divergence]:
        """What the primary's book has of the replica's findings."""
        findings = self.primary.dataset.findings
        return await self.primary.dataset.in_findings(lambda: findings.listed(side=Side.REPLICA, state=None))

    def damage_block(self, name: bytes) -> None:
        """Flip a bit of a block's payload in the store."""
        reader = ArchiveReader(self.fra1.archive)
        place = reader._listing.places([name])[name]
        reader.close()
        flip(segment(self.fra1.archive, place.segment), place.offset + 100)


@asynccontextmanager
async def world(tmp_path: Path, **options: object) -> AsyncIterator[World]:
    """All of it, after a first pass over two files that share a block."""
    root = tmp_path / "www"
    root.mkdir()
    (root / "file").write_bytes(DATA)
    (root / "other").write_bytes(DATA[BLOCK : 2 * BLOCK])
    menders, scrub = Menders(), Scrub()
    async with (
        rig(tmp_path, root, **options) as primary,
        replica(tmp_path / "store", make_mender=menders, scrub_of=lambda *_: scrub) as fra1,
    ):
        await primary.sync(fra1)
        job = tending(primary, fra1)
        try:
            yield World(primary, fra1, job, menders, scrub)
        finally:
            await job.close()


# own findings


async def test_rot_on_the_primary_is_confirmed_and_judged(tmp_path: Path) -> None:
    """The replica computes the same of the bytes, has the recorded block, and one flipped bit is named."""
    async with world(tmp_path) as w:
        await rot(w.primary, b"file", 2 * BLOCK + 7, bit=3)
        found = await report(w.primary, b"file", 2)
        await w.round()
        now = await standing(w.primary, found)
        assert (now.verdict, now.state) == (Verdict.PRIMARY_ROT, State.OPEN)
        assert now.evidence.witness is Witness.CONFIRMS and now.evidence.books is Books.AGREE
        assert (now.bits, now.bit_positions) == (1, (7 * 8 + 3,))
        assert [look.side for look in now.looks] == [Side.PRIMARY, Side.PRIMARY, Side.REPLICA]
        await w.round()
        assert await standing(w.primary, found) == now, "a second look that says the same writes nothing"


async def test_both_copies_rotten_is_said_with_certainty(tmp_path: Path) -> None:
    """The replica's own copy is damaged as well: lost, and nothing is written anywhere."""
    async with world(tmp_path, repair="auto") as w:
        await rot(w.primary, b"file", 0)
        found = await report(w.primary, b"file", 0)
        before = w.file.read_bytes()
        w.damage_block(found.blocks[0])
        await w.round()
        now = await standing(w.primary, found)
        assert (now.verdict, now.is_lost, now.evidence.replica) == (Verdict.BOTH_ROT, True, Sight.DIFFERS)
        assert w.file.read_bytes() == before


async def test_a_written_file_is_no_rot(tmp_path: Path) -> None:
    """Its finding is closed, and the next pass reads it whole."""
    async with world(tmp_path) as w:
        found = await report(w.primary, b"file", 1)
        with w.file.open("r+b") as file:
            file.write(b"written")
        await w.round()
        now = await standing(w.primary, found)
        assert (now.verdict, now.state) == (Verdict.CHANGED, State.GONE)


@pytest.mark.parametrize("deed", ["drop", "rewrite"])
async def test_a_finding_whose_record_is_gone_is_closed(tmp_path: Path, deed: str) -> None:
    """After the next pass the record has another block there, or none; a file that was dropped may have moved, so it is
    none only after some walks."""
    async with world(tmp_path) as w:
        found = await report(w.primary, b"file", 1)
        if deed == "drop":
            w.file.unlink()
        else:
            w.file.write_bytes(bytes(reversed(DATA)))
        await w.primary.sync(w.fra1)
        if deed == "drop":
            await w.round()
            assert (await standing(w.primary, found)).state is State.OPEN
            for _ in range(KEPT_WALKS):
                await w.primary.sync(w.fra1)
        await w.round()
        assert (await standing(w.primary, found)).state is State.GONE


async def test_what_reads_well_again_is_closed(tmp_path: Path) -> None:
    """Twice, from the medium; that it did not once stays in its history."""
    async with world(tmp_path) as w:
        found = await report(w.primary, b"file", 1)
        await w.round()
        assert (await standing(w.primary, found)).state is State.GONE


async def test_a_renamed_file_is_found_again(tmp_path: Path) -> None:
    """By its number, after the pass that recorded the new name."""
    async with world(tmp_path) as w:
        await rot(w.primary, b"file", 0)
        found = await report(w.primary, b"file", 0)
        stamp = w.file.stat()
        w.file.rename(w.primary.root / "renamed")
        os.utime(w.primary.root / "renamed", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        ledger = w.primary.dataset.ledger
        known = await known_of(w.primary, b"file")

        def rename() -> None:
            ledger._db.execute("UPDATE entry SET name = x'72656e616d6564' WHERE name = x'66696c65'")

        await w.primary.dataset.in_ledger(rename)
        now_stamp = stamp_now(w.primary.root, b"renamed")
        await w.primary.dataset.in_ledger(restamp, ledger, b"renamed", stamp_of(known), now_stamp)
        await w.round()
        now = await standing(w.primary, found)
        assert (now.verdict, now.path) == (Verdict.PRIMARY_ROT, b"renamed")


async def test_a_file_whose_directory_was_renamed_is_judged_where_it_is(tmp_path: Path) -> None:
    """No pass has recorded that: where many are renamed all the time, it would wait for ever. And so a replica is given
    what it lost."""
    async with world(tmp_path) as w:
        (w.primary.root / "d" / "e").mkdir(parents=True)
        data = DATA[::-1]
        (w.primary.root / "d" / "e" / "f").write_bytes(data)
        await w.primary.sync(w.fra1)
        await rot(w.primary, b"d/e/f", 0)
        found = await report(w.primary, b"d/e/f", 0)
        (w.primary.root / "d" / "e").rename(w.primary.root / "d" / "é")
        (w.primary.root / "d").rename(w.primary.root / "g")
        (w.primary.root / "d" / "e").mkdir(parents=True)  # others have these names by now
        (w.primary.root / "d" / "e" / "f").write_bytes(b"new")
        await w.round()
        now = await standing(w.primary, found)
        assert (now.verdict, now.state, now.path) == (Verdict.PRIMARY_ROT, State.OPEN, b"d/e/f")
        with Root(w.primary.dataset.root) as root:
            want = Want(block_id(data[BLOCK : 2 * BLOCK]), found.file, 1)
            (held,) = await holdings.Holdings(w.primary.dataset, root, w.primary.pool).look([want])
        assert held.sight is Sight.MATCHES and held.frame


async def test_a_file_that_moved_elsewhere_is_judged_once_that_is_recorded(tmp_path: Path) -> None:
    """Until then nobody knows where it is: its finding stays open, and is not taken for one about a written file."""
    async with world(tmp_path) as w:
        (w.primary.root / "d").mkdir()
        (w.primary.root / "d" / "f").write_bytes(DATA)
        (w.primary.root / "e").mkdir()
        await w.primary.sync(w.fra1)
        await rot(w.primary, b"d/f", 0)
        found = await report(w.primary, b"d/f", 0)
        (w.primary.root / "d").rename(w.primary.root / "e" / "d")
        await w.round()
        now = await standing(w.primary, found)
        assert (now.verdict, now.state) == (Verdict.INCONCLUSIVE, State.OPEN)
        await w.round()
        assert await standing(w.primary, found) == now
        await w.primary.sync(w.fra1)
        await w.round()
        now = await standing(w.primary, found)
        assert (now.verdict, now.path) == (Verdict.PRIMARY_ROT, b"e/d/f")


async def test_a_verdict_is_not_taken_back_by_a_file_that_moved(tmp_path: Path) -> None:
    """What is lost stays so, also when a daemon that was started anew looks for it and no pass has found the file."""
    async with world(tmp_path) as w:
        await rot(w.primary, b"file", 0)
        found = await report(w.primary, b"file", 0)
        w.damage_block(found.blocks[0])
        await w.round()
        judged = await standing(w.primary, found)
        assert judged.verdict is Verdict.BOTH_ROT
        w.file.rename(w.file.with_name("moved"))
        w.job._own, w.job._opinions = Patience(w.primary.clock, 0.0), Opinions()
        await w.round()
        assert await standing(w.primary, found) == judged


async def test_a_record_that_contradicts_itself_is_record_rot(tmp_path: Path) -> None:
    """Both copies have the bytes of the recorded id, and the ledger's checksum alone is of others."""
    async with world(tmp_path) as w:
        ledger, known = w.primary.dataset.ledger, await known_of(w.primary, b"file")
        rows = await w.primary.dataset.in_ledger(ledger.blocks, known.file, 0, 1)
        await w.primary.dataset.in_ledger(ledger.record_blocks, [rows[0]._replace(checksum=bytes(16))])
        found = await report(w.primary, b"file", 0)
        await w.round()
        assert (await standing(w.primary, found)).verdict is Verdict.RECORD_ROT


def test_bytes_are_recorded_when_id_and_known_checksum_both_say_so() -> None:
    """A row of a replica's record has no checksum yet; a block without a row, or without an id, is one of zeros."""
    data = b"recorded"
    row = BlockRow(1, 0, block_id(data), checksum(data), 1)
    assert is_recorded_block(data, row) and is_recorded_block(data, row._replace(checksum=UNKNOWN_CHECKSUM))
    assert not is_recorded_block(b"anything", row)
    assert not is_recorded_block(data, row._replace(id=block_id(b"other")))
    assert not is_recorded_block(data, row._replace(checksum=checksum(b"other")))
    for zero in (None, row._replace(id=ZERO)):
        assert is_recorded_block(bytes(8), zero) and not is_recorded_block(data, zero)


async def test_a_wrong_id_in_the_ledger_is_record_rot_and_no_loss(tmp_path: Path) -> None:
    """No side has a block of that id, yet the replica's record names, and its medium holds, the very bytes that are
    here."""
    async with world(tmp_path) as w:
        ledger, known = w.primary.dataset.ledger, await known_of(w.primary, b"file")
        rows = await w.primary.dataset.in_ledger(ledger.blocks, known.file, 0, 1)
        await w.primary.dataset.in_ledger(ledger.record_blocks, [rows[0]._replace(checksum=bytes(16), id=bytes(32))])
        found = await report(w.primary, b"file", 0)
        await w.round()
        assert (await standing(w.primary, found)).verdict is Verdict.RECORD_ROT


async def test_a_stale_block_is_rot_although_the_replica_knows_its_bytes(tmp_path: Path) -> None:
    """Bytes of an older snapshot, or of another file, are not what belongs there."""
    async with world(tmp_path) as w:
        await rot(w.primary, b"file", 0, DATA[BLOCK : 2 * BLOCK])
        found = await report(w.primary, b"file", 0)
        w.damage_block(found.blocks[0])
        await w.round()
        assert (await standing(w.primary, found)).verdict is Verdict.BOTH_ROT


async def test_an_unmounted_root_says_nothing(tmp_path: Path) -> None:
    """An empty directory in its place neither closes a finding nor makes a block absent."""
    async with world(tmp_path) as w:
        mender = await w.mender()
        found = await report(w.primary, b"file", 1)
        w.primary.root.rename(tmp_path / "elsewhere")
        w.primary.root.mkdir()
        case = mender.add(1, b"bad", [Want(found.blocks[0], found.file, 1)])
        await w.round()
        assert (await standing(w.primary, found)).state is State.OPEN
        assert mender.sights[case.id] == [Sight.UNKNOWN]


async def test_with_two_replicas_nothing_is_lost_before_both_were_asked(tmp_path: Path) -> None:
    """The first one's copy is damaged; the second has it, and the verdict says so."""
    async with two_replicas(tmp_path) as (primary, [fra1, _], jobs):
        await rot(primary, b"file", 0)
        found = await report(primary, b"file", 0)
        World(primary, fra1, jobs[0], Menders(), Scrub()).damage_block(found.blocks[0])
        await jobs[0].step()
        assert (await standing(primary, found)).verdict is Verdict.INCONCLUSIVE
        await jobs[1].step()
        assert (await standing(primary, found)).verdict is Verdict.PRIMARY_ROT


def test_what_all_replicas_say_does_not_depend_on_who_was_asked_last() -> None:
    """Else two jobs would contradict one another for ever, at once each time that the other one has spoken."""
    for order in itertools.permutations([("a", Sight.ABSENT), ("b", Sight.DIFFERS), ("c", Sight.UNREADABLE)]):
        opinions = Opinions()
        said = [opinions.add("f", name, sight, ("a", "b", "c")) for name, sight in order]
        assert said == [Sight.UNKNOWN, Sight.UNKNOWN, Sight.DIFFERS]
        assert {opinions.add("f", name, sight, ("a", "b", "c")) for name, sight in order} == {Sight.DIFFERS}
        assert opinions.add("f", "a", Sight.MATCHES, ("a", "b", "c")) is Sight.MATCHES


@asynccontextmanager
async def two_replicas(tmp_path: Path) -> AsyncIterator[tuple[Rig, list[Replica], list[Tending]]]:
    """A primary whose file both have, and the two jobs."""
    root = tmp_path / "www"
    root.mkdir()
    (root / "file").write_bytes(DATA)
    async with (
        rig(tmp_path, root, ("fra1", "ber1")) as primary,
        replica(tmp_path / "fra1") as fra1,
        replica(tmp_path / "ber1") as ber1,
    ):
        opinions, both = Opinions(), {"fra1": fra1, "ber1": ber1}
        for name, there in both.items():
            await primary.sync(there, name)
        jobs = [tending(primary, there, name, opinions=opinions) for name, there in both.items()]
        try:
            yield primary, [fra1, ber1], jobs
        finally:
            for job in jobs:
                await job.close()


async def test_two_replicas_that_lost_a_block_in_two_ways_do_not_argue_about_it(tmp_path: Path) -> None:
    """One has other bytes, the other nothing at all: it is lost, which is said once, and then there is no news."""
    async with two_replicas(tmp_path) as (primary, (fra1, ber1), jobs):
        await rot(primary, b"file", 0)
        found = await report(primary, b"file", 0)
        name = found.blocks[0]
        World(primary, fra1, jobs[0], Menders(), Scrub()).damage_block(name)
        change_catalog(ber1.archive, f"DELETE FROM block WHERE id = x'{name.hex()}'")
        for job in jobs:
            await job.step()
        lost = await standing(primary, found)
        assert (lost.verdict, lost.is_lost) == (Verdict.BOTH_ROT, True)
        for job in jobs * 2:
            job._own = Patience(primary.clock, 0.0)  # it is due again
            await job.step()
        assert await standing(primary, found) == lost


async def test_a_job_that_was_asking_does_not_open_again_what_another_has_repaired(tmp_path: Path) -> None:
    """The answer came late: what the book has by then stays."""
    async with two_replicas(tmp_path) as (primary, _, (slow, quick)):
        await rot(primary, b"file", 0)
        found = await report(primary, b"file", 0)
        talk, asked, answered = await slow._session(), asyncio.Event(), asyncio.Event()
        examine = talk.examine

        async def examine_slowly(name: bytes, data: bytes) -> Examined:
            answer = await examine(name, data)
            asked.set()
            await answered.wait()
            return answer

        talk.examine = examine_slowly  # type: ignore[method-assign]
        asking = asyncio.create_task(slow.step())
        await asked.wait()
        assert (await quick.repair(found, dry_run=False)).result == "repaired"
        done = await standing(primary, found)
        answered.set()
        await asking
        assert done.state is State.REPAIRED and await standing(primary, found) == done


async def test_what_cannot_be_looked_at_again_and_again_is_said_once(tmp_path: Path) -> None:
    """The file is not where it is recorded: until a pass has found it, nothing is to be told of each vain look."""
    async with world(tmp_path) as w:
        found = await report(w.primary, b"file", 1)
        seen = msgspec.structs.replace(found, seen=b"s" * 16)
        await w.primary.dataset.in_findings(w.primary.dataset.findings.update, seen)
        w.file.rename(w.file.with_name("moved"))
        await w.round()
        first = await standing(w.primary, found)
        assert (first.state, first.evidence.primary) == (State.OPEN, Sight.UNKNOWN)
        for _ in range(3):
            w.job._own = Patience(w.primary.clock, 0.0)  # it is due again
            await w.round()
        assert await standing(w.primary, found) == first


async def test_rot_in_a_file_that_is_recorded_without_an_attribute_stays_open(tmp_path: Path) -> None:
    """Its record has a stamp that no file has, which is no write. It is judged; a repair waits for the attribute."""
    async with world(tmp_path) as w:
        await rot(w.primary, b"file", 0)
        stamp = stamp_of(await known_of(w.primary, b"file"))
        await w.primary.dataset.in_ledger(restamp, w.primary.dataset.ledger, b"file", stamp, half_read(stamp))
        found = await report(w.primary, b"file", 0)
        await w.round()
        now = await standing(w.primary, found)
        assert (now.state, now.verdict) == (State.OPEN, Verdict.PRIMARY_ROT)
        done = await w.job.repair(now, dry_run=False)
        assert (done.result, "an attribute of it cannot be read" in done.text) == ("refused", True)


# the replica's findings


async def test_a_replica_that_cannot_be_asked_costs_its_blocks_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is wrong with it, what was found on another one is settled without it, and nothing that it may have is
    called lost; one that has no copy has nothing."""
    monkeypatch.setattr(elsewhere, "ANSWER_S", 0.05)
    wants, held = [Want(b"1" * 32, 0, 0)], [Held(Sight.ABSENT)]
    errors = (LinkError("cut"), PeerError("sent rubbish"), StoreDamagedError("is damaged"), DiskFullError("full"))
    for error in (*errors, None, UsageError("no such dataset")):

        async def dial(error: ReplicadError | None = error) -> Channel:
            if error is None:
                await asyncio.Event().wait()  # it lives, and its medium hangs
            assert error
            raise error

        sight = Sight.ABSENT if isinstance(error, UsageError) else Sight.UNKNOWN
        with ThreadPoolExecutor(1) as pool:
            one = Elsewhere("www", {"ber1": dial}, pool)
            for _ in range(2):  # the second time it is left alone
                assert await asyncio.wait_for(one.fill("fra1", wants, held), 10) == [Held(sight)]


async def test_what_a_replica_gave_before_it_failed_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of all together stay within what one testimony may bring."""
    monkeypatch.setattr(elsewhere, "AT_ONCE", 1)
    monkeypatch.setattr(elsewhere, "MAX_TESTIMONY_BYTES", 2 * BLOCK + 1000)
    real, calls = Elsewhere._frames, itertools.count()

    async def failing(self: Elsewhere, reader: RemoteReader, names: Sequence[bytes]) -> list[bytes]:
        if next(calls) == 1:
            raise LinkError("cut")
        return await real(self, reader, names)

    monkeypatch.setattr(Elsewhere, "_frames", failing)
    async with two_replicas(tmp_path) as (primary, (_, ber1), _):
        wants = [Want(block_id(DATA[n * BLOCK : (n + 1) * BLOCK]), 0, 0) for n in range(5)]
        others = Elsewhere("www", {"ber1": ber1.dial, "lon1": ber1.dial}, primary.pool)
        found = await others.fill("fra1", wants, [Held(Sight.ABSENT)] * 5)
        assert [bool(one.frame) for one in found] == [True, True, False, False, False]


async def test_findings_about_a_replica_that_is_none_any_more_are_closed(tmp_path: Path) -> None:
    """Its own that are mirrored here, and those about its record: it is not asked any more, and nobody else can close
    them. What this side has found stays."""
    async with world(tmp_path) as w:
        await w.primary.dataset.open_findings()
        findings = w.primary.dataset.findings
        for found in (
            replica_rot(id="aaaaaaaa", peer="old1"),
            a_divergence(key="entry:00", part=Part.ENTRY, peer="old1"),
            a_divergence(key="entry:00", part=Part.ENTRY, peer="fra1", verdict=Verdict.RECORD_DIVERGENCE),
            a_divergence(part=Part.BOOK, key="book:ledger"),
        ):
            await w.primary.dataset.in_findings(findings.report, found)
        await w.round()
        left = await w.primary.dataset.in_findings(findings.listed)
        assert {(one.part, one.peer) for one in left} <= {(Part.BOOK, ""), (Part.ENTRY, "fra1")}
        assert Part.BOOK in {one.part for one in left}
        gone = await w.primary.dataset.in_findings(lambda: findings.listed(state=State.GONE))
        assert {one.part for one in gone if "no replica of this dataset" in one.events[-1].what} == {
            Part.BLOCK,
            Part.ENTRY,
        }


def test_what_is_found_by_the_thousand_is_mirrored_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A finding that is new here costs a look at its own place, and none at all the others; the limit holds."""
    monkeypatch.setattr(mirror, "MAX_MIRRORED", 3)
    with closing(Findings(tmp_path / "findings.db")) as book:
        taking, listed = Mirror(book, "www", "fra1"), book.listed
        monkeypatch.setattr(book, "listed", None)
        for number in range(5):
            taking.take(replica_rot(id=f"{number:08x}", key=f"frame:1:{number}"))
        taking.take(replica_rot(id="aaaaaaaa", key="frame:1:0"))
        assert {one.id for one in listed()} == {"aaaaaaaa", "00000001", "00000002"}
        (before,) = listed(state=State.GONE)
        assert "another finding of it, aaaaaaaa" in before.events[-1].what


async def test_an_order_to_repair_all_closes_every_breaker(tmp_path: Path) -> None:
    """Of the dataset and of the store, though nothing is open any more: nothing else would ever close them."""
    async with world(tmp_path) as w:
        dataset, shelves = w.primary.dataset, w.fra1._shelves
        await dataset.open_findings()
        books = [
            lambda work: dataset.in_findings(work, dataset.findings),
            lambda work: shelves.in_findings("ams1", "www", work),
        ]
        for in_book in books:
            await in_book(lambda book: open_breaker(book, 1))
        tendings = Tendings(dataset, w.primary.pool, w.primary.clock, Disk(), lambda *_: None, lambda _: ())
        await close_breakers([tendings], shelves)
        assert [await in_book(is_open) for in_book in books] == [False, False]


async def test_what_another_replica_could_not_be_asked_for_is_not_called_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two blocks fit into one testimony; of the third it is known that it can be had, of the others nothing is."""
    monkeypatch.setattr(elsewhere, "AT_ONCE", 3)
    monkeypatch.setattr(elsewhere, "MAX_TESTIMONY_BYTES", 2 * BLOCK + 1000)
    async with two_replicas(tmp_path) as (primary, (_, ber1), _):
        wants = [Want(block_id(DATA[n * BLOCK : (n + 1) * BLOCK]), 0, 0) for n in range(5)]
        held = [Held(Sight.ABSENT)] * 5
        found = await Elsewhere("www", {"ber1": ber1.dial}, primary.pool).fill("fra1", wants, held)
        assert [one.sight for one in found] == [Sight.MATCHES] * 3 + [Sight.UNKNOWN] * 2
        assert [bool(one.frame) for one in found] == [True, True, False, False, False]
        full = [Held(Sight.MATCHES, bytes(2 * BLOCK + 1000)), *held[1:]]
        found = await Elsewhere("www", {"ber1": ber1.dial}, primary.pool).fill("fra1", wants, full)
        assert [one.sight for one in found[1:]] == [Sight.UNKNOWN] * 4


async def test_a_replica_that_refuses_is_not_shown_as_it_was_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its catalog is damaged, so that it says nothing any more of its scrub: that is what the line says."""
    async with world(tmp_path) as w:
        await w.round()
        assert w.job._status.state == "idle" and not w.job._copy.unheard
        await w.job.close()

        def damaged(_: ArchiveReader) -> list[SnapshotLine]:
            raise BookDamagedError("a page fails its checksum")

        monkeypatch.setattr(ArchiveReader, "snapshots", damaged)
        with pytest.raises(BookDamagedError):
            await w.round()
        assert w.job._status.state == "waiting" and "not heard of" in w.job._status.reason
        assert "not heard of" in w.job._copy.unheard


async def test_a_block_that_the_replica_lost_is_proven_and_sent(tmp_path: Path) -> None:
    """From the file and number where it is wanted; the finding is settled there and mirrored here."""
    async with world(tmp_path) as w:
        known, mender = await known_of(w.primary, b"file"), await w.mender()
        name = block_id(DATA[BLOCK : 2 * BLOCK])
        case = mender.add(1, b"rotten frame", [Want(name, known.file, 1)])
        await w.round()
        assert mender.mended == [name]
        (mirrored,) = await w.mirrored()
        assert (mirrored.id, mirrored.peer, mirrored.state) == (case.id, "fra1", State.REPAIRED)
        assert mirrored.evidence.witness is Witness.CONFIRMS


async def test_another_file_with_the_same_bytes_serves_as_well(tmp_path: Path) -> None:
    """A block that only history knows, or whose file was dropped, is looked for everywhere."""
    async with world(tmp_path) as w:
        mender = await w.mender()
        names = [block_id(DATA[BLOCK : 2 * BLOCK]), bytes(32)]
        case = mender.add(1, b"", [Want(name, 0, 0) for name in names], Sight.UNREADABLE)
        await w.round()
        assert mender.sights[case.id] == [Sight.MATCHES, Sight.ABSENT]
        assert mender.mended == names[:1]


async def test_what_the_primary_cannot_prove_is_not_sent(tmp_path: Path) -> None:
    """Rotten here as well: said as such, and nothing travels."""
    async with world(tmp_path) as w:
        known, mender = await known_of(w.primary, b"file"), await w.mender()
        await rot(w.primary, b"file", 3 * BLOCK)
        case = mender.add(1, b"x", [Want(block_id(DATA[3 * BLOCK : 4 * BLOCK]), known.file, 3)])
        await w.round()
        assert mender.sights[case.id] == [Sight.DIFFERS]
        assert mender.mended == []
        (mirrored,) = await w.mirrored()
        assert (mirrored.verdict, mirrored.state) == (Verdict.BOTH_ROT, State.OPEN)


async def test_what_the_primary_cannot_give_another_replica_can(tmp_path: Path) -> None:
    """The primary is where they meet: it fetches the block there, proves it, and passes it on."""
    root = tmp_path / "www"
    root.mkdir()
    (root / "file").write_bytes(DATA)
    menders = Menders()
    async with (
        rig(tmp_path, root, ("fra1", "ber1")) as primary,
        replica(tmp_path / "fra1", make_mender=menders) as fra1,
        replica(tmp_path / "ber1") as ber1,
    ):
        await primary.sync(fra1)
        await primary.sync(ber1, "ber1")
        job = tending(primary, fra1, others={"fra1": fra1, "ber1": ber1})
        await job.step()
        names = [block_id(DATA[n * BLOCK : (n + 1) * BLOCK]) for n in range(3)]
        (root / "file").unlink()
        await primary.sync(fra1)
        World(primary, ber1, job, menders, Scrub()).damage_block(names[2])
        case = menders.only.add(1, b"x", [Want(name, 0, 0) for name in names])
        await job.step()
        assert menders.only.sights[case.id] == [Sight.MATCHES, Sight.MATCHES, Sight.ABSENT]
        assert menders.only.mended == names[:2]
        other = menders.only.add(2, b"y", [Want(names[2], 0, 0)])
        await ber1.close()
        await job.step()
        assert menders.only.sights[other.id] == [Sight.UNKNOWN], "nobody has asked the one that may have it"
        assert not menders.only._ask(lambda: menders.only.findings.get_exactly(other.id)).is_lost
        await job.close()


async def test_recorded_bytes_are_a_proof_whoever_wrote_them(tmp_path: Path) -> None:
    """A file that was touched since still gives blocks; where it was rewritten nothing is known until the next pass."""
    async with world(tmp_path) as w:
        known, mender = await known_of(w.primary, b"file"), await w.mender()
        with w.file.open("r+b") as file:
            file.seek(4 * BLOCK)
            file.write(b"written")
        wants = [Want(block_id(DATA[n * BLOCK : (n + 1) * BLOCK]), known.file, n) for n in (0, 4)]
        case = mender.add(1, b"x", wants)
        await w.round()
        assert mender.sights[case.id] == [Sight.MATCHES, Sight.UNKNOWN]


async def test_more_than_one_testimony_takes_comes_in_several_rounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each round is asked for by the one before, until everything is there."""
    monkeypatch.setattr(holdings, "MAX_TESTIMONY_BYTES", 2 * BLOCK + 5000)
    async with world(tmp_path) as w:
        known, mender = await known_of(w.primary, b"file"), await w.mender()
        names = [block_id(DATA[n * BLOCK : (n + 1) * BLOCK]) for n in range(5)]
        mender.add(1, b"x", [Want(name, known.file, n) for n, name in enumerate(names)])
        rounds = 0
        while len(mender.mended) < 5:
            await w.round()
            rounds += 1
            if len(mender.mended) < 5:
                await asyncio.wait_for(w.job.wait(), 5)
        assert (rounds, sorted(mender.mended)) == (3, sorted(names))


async def test_a_mender_that_asks_a_person_is_not_sent_the_same_again_and_again(tmp_path: Path) -> None:
    """A finding that stays as it is is left alone for a while, bad bytes and all, and stays open in the primary's book;
    when something about it changes it is due at once."""
    async with world(tmp_path) as w:
        known, mender = await known_of(w.primary, b"file"), await w.mender()
        mender.auto = False
        name = block_id(DATA[:BLOCK])
        case = mender.add(1, b"x", [Want(name, known.file, 0)])
        for _ in range(4):
            await w.round()
        assert mender.calls.count("mend") == mender.calls.count("seen") == 1
        assert [(found.id, found.state) for found in await w.mirrored()] == [(case.id, State.OPEN)]
        changed = case.with_event(99, "a person has ordered it")
        mender._ask(lambda: mender.findings.update(changed))
        mender.auto = True
        await w.round()
        assert mender.mended == [name]


async def test_findings_that_are_closed_there_are_closed_here(tmp_path: Path) -> None:
    """Whatever closed them; and one that a person has acknowledged here stays acknowledged."""
    async with world(tmp_path) as w:
        mender = await w.mender()
        mender.auto = False
        one, other = mender.add(1, b"x", []), mender.add(2, b"y", [])
        await w.round()
        findings = w.primary.dataset.findings
        acked = next(found for found in await w.mirrored() if found.id == other.id)
        noted = acked.with_event(5, "noted", state=State.ACKNOWLEDGED)
        await w.primary.dataset.in_findings(findings.update, noted)
        mender._ask(lambda: mender.findings.update(one.with_event(9, "acked there", state=State.ACKNOWLEDGED)))
        await w.round()
        assert {found.id: found.state for found in await w.mirrored()} == {
            one.id: State.GONE,
            other.id: State.ACKNOWLEDGED,
        }


async def test_the_replicas_scrub_is_mirrored_and_can_be_started(tmp_path: Path) -> None:
    """Every field but whose line it is."""
    async with world(tmp_path) as w:
        w.scrub.status.state, w.scrub.status.reason, w.scrub.status.divergent = "running", "so\nit is", {"both_rot": 2}
        await w.round()
        status = w.job._status
        assert (status.peer, status.side, status.state, status.reason) == ("fra1", "replica", "running", "so?it is")
        assert status.divergent == {"both_rot": 2} and status.requested == 0
        assert await w.job.start_scrub() == status.requested == 1


async def test_a_scrub_that_is_held_up_is_not_asked_about_all_the_time(tmp_path: Path) -> None:
    """Every two seconds while it goes on and somebody waits for it; it may be paused for a day."""
    async with world(tmp_path) as w:
        await w.job.start_scrub()
        for state, is_soon in {"running": True, "paused": False, "waiting": False, "idle": True}.items():
            w.scrub.status.state = state
            await w.round()
            assert (w.job._every_s == AWAITED_S) is is_soon
        w.scrub.status.served = w.scrub.status.requested
        await w.round()
        assert w.job._every_s == w.job._dataset.config.tend_every_s


LIES = {
    "400 digits": b'"never_bytes": 1' + 400 * b"0",
    "more than 63 bits": b'"requested": 9223372036854775808',
    "a negative number": b'"lost": -1',
    "a negative time": b'"scrub_every_s": -0.5',
    "a time that no clock counts": b'"scrub_every_s": 1e300',
    "a rate without end": b'"rate_bytes_s": 1e400',
    "a count of 400 digits": b'"divergent": {"both_rot": 1' + 400 * b"0" + b"}",
    "a negative count": b'"repairs": {"repaired": -1}',
    "no number": b'"forecast_ns": NaN',
    "no end of brackets": b'"x": ' + 60_000 * b"[",
    "no text": b'"reason": "\xff"',
}


@pytest.mark.parametrize("lie", sorted(LIES))
async def test_a_replicas_status_that_cannot_be_true_is_refused(tmp_path: Path, lie: str) -> None:
    """Nothing of it reaches the line that is shown here, whatever its JSON holds."""
    async with world(tmp_path) as w:
        w.scrub.status = msgspec.Raw(msgspec.json.encode(w.scrub.status)[:-1] + b", " + LIES[lie] + b"}")
        before = msgspec.json.encode(w.job._status)
        with pytest.raises(PeerError, match="sent an invalid ScrubStatus"):
            await w.round()
        assert msgspec.json.encode(w.job._status) == before


async def test_a_map_that_is_none_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However deep its JSON goes."""
    monkeypatch.setattr(tended, "map_of_store", lambda *_: msgspec.Raw(b'{"x": ' + 60_000 * b"["))
    async with world(tmp_path) as w:
        with pytest.raises(PeerError, match="sent an invalid AgeMap"):
            await w.round()


async def test_a_replica_chooses_no_label_and_no_word_of_the_status(tmp_path: Path) -> None:
    """Of what it counts, only verdicts and results of repairs are taken over; its texts are cut and printable."""
    async with world(tmp_path) as w:
        status = w.scrub.status
        status.state, status.reason = "s" * 1000, "r\n" * 500
        status.divergent = {"both_rot": 2, 'x",job="y': 3} | {f"invented-{number}": 1 for number in range(1000)}
        status.divergences, status.repairs = {"ok": 1, "invented": 2}, {"undone": 4, "invented": 5}
        await w.round()
        line = w.job._status
        assert (line.divergent, line.divergences, line.repairs) == ({"both_rot": 2}, {"ok": 1}, {"undone": 4})
        assert (line.state, line.reason) == ("s" * 300, "r?" * 150)
        assert 'replicad_divergent_blocks{client="",dataset="www",kind="both_rot"' in shown(line)
        assert "invented" not in shown(line)


async def test_a_replicas_status_may_hold_the_greatest_numbers(tmp_path: Path) -> None:
    """Metrics and status are made of it all the same, and the status is read again as it was written."""
    async with world(tmp_path) as w:
        for name, kind in get_type_hints(ScrubStatus).items():
            greatest = {int: 2**63 - 1, float: 2.0**63, dict[str, int]: {"both_rot": 2**63 - 1}}.get(kind)
            setattr(w.scrub.status, name, greatest or getattr(w.scrub.status, name))
        await w.round()
        line = w.job._status
        assert (line.never_bytes, line.rate_bytes_s, line.divergent) == (2**63 - 1, 2.0**63, {"both_rot": 2**63 - 1})
        assert 'replicad_lost_blocks{client="",dataset="www",replica="fra1",side="replica"} 9.2233' in shown(line)


def shown(line: ScrubStatus) -> str:
    """What metrics, `status` and `scrub status` make of a replica's scrub."""
    node = NodeStatus("ams1", "1", now_ns=1, datasets=[DatasetStatus("www", "fra1")], scrubs=[line])
    assert decode(encode(node)) == node
    texts = (*render(node, findings(node)), *describe(line, node))
    return "\n".join((Exposition(lambda: node).render().decode(), *texts))


async def test_a_hundred_findings_come_in_pages(tmp_path: Path) -> None:
    """Each is testified about, in the order of their ids, whatever a message takes."""
    async with world(tmp_path) as w:
        mender = await w.mender()
        cases = [mender.add(number, bytes(BLOCK), []) for number in range(100)]
        await w.round()
        assert set(mender.sights) == {case.id for case in cases} == {found.id for found in await w.mirrored()}


# both records

CHANGES = {
    "time": "UPDATE entry SET mtime_ns = mtime_ns + 1 WHERE name = x'66696c65'",
    "block": "UPDATE file_block SET id = (SELECT id FROM file_block WHERE number = 3) WHERE number = 2",
    "missing": "DELETE FROM entry WHERE name = x'66696c65'",
    "only there": "INSERT INTO entry VALUES(1, x'7a', 1, NULL, 5, 1, 2, 3, 4, 0, 0, 0, 0, NULL)",
}


@pytest.mark.parametrize("change", sorted(CHANGES))
async def test_records_that_differ_are_named_told_anew_and_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """The path is a finding; the next pass tells the whole record without sending a block, though no hint leads it
    anywhere; the account then agrees."""
    async with world(tmp_path) as w:
        await w.round()
        tree = copied(w.primary.root)
        change_catalog(w.fra1.archive, CHANGES[change])
        await w.scrubbed()
        await w.round()
        findings = w.primary.dataset.findings
        (found,) = await w.primary.dataset.in_findings(findings.listed)
        assert (found.part, found.verdict, found.evidence.books) == (
            Part.ENTRY,
            Verdict.RECORD_DIVERGENCE,
            Books.DIFFER,
        )
        assert (found.path, found.peer) == (b"z" if change == "only there" else b"file", "fra1")
        assert w.told == 1
        before = w.primary.status["fra1"].sent_bytes
        monkeypatch.setattr(w.primary.dataset, "watch", SimpleNamespace(state="on"))
        await w.primary.jobs["fra1"].step()
        assert w.primary.status["fra1"].pass_ok
        assert w.primary.status["fra1"].sent_bytes - before < 10_000
        assert differences(describe_snapshot(w.fra1.archive), tree) == []
        await w.round()
        assert (await standing(w.primary, found)).state is State.REPAIRED


async def test_records_are_compared_once_in_a_cycle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And after a scrub that a person asked for; not at every round."""
    compared: list[int] = []
    account = account_record.account_of_ledger

    async def counted(dataset: Dataset, covered: int) -> Sums:
        compared.append(covered)
        return await account(dataset, covered)

    monkeypatch.setattr(compare_records, "account_of_ledger", counted)
    async with world(tmp_path) as w:
        for _ in range(3):
            await w.round()
        assert len(compared) == 1
        await w.scrubbed()
        await w.round()
        assert len(compared) == 2


async def test_what_was_told_anew_in_vain_is_not_told_again_and_again(tmp_path: Path) -> None:
    """It stays open, and an order of a person tells it once more."""
    async with world(tmp_path) as w:
        await w.round()
        for _ in range(3):  # somebody changes it again before the next comparison
            change_catalog(w.fra1.archive, CHANGES["time"] + " AND died IS NULL")
            await w.scrubbed()
            await w.round()
            await w.primary.sync(w.fra1)
            change_catalog(w.fra1.archive, CHANGES["time"] + " AND died IS NULL")
            await w.round()
        assert w.told == 1
        (found,) = await w.primary.dataset.in_findings(w.primary.dataset.findings.listed)
        before = w.told
        assert (await w.job.repair(found, dry_run=True)).result == "planned"
        assert (await w.job.repair(found, dry_run=False)).result == "waiting"
        assert w.told == before + 1


async def test_what_cannot_be_sent_keeps_nothing_else_from_being_compared(tmp_path: Path) -> None:
    """Differences elsewhere are told; what is known of the part that is left out stays as it is. A file's number is a
    random one, and may put its blocks in the very part of another path."""
    async with world(tmp_path) as w:
        await w.round()
        change_catalog(w.fra1.archive, CHANGES["time"])
        await w.scrubbed()
        await w.round()
        findings, ledger = w.primary.dataset.findings, w.primary.dataset.ledger
        (known,) = await w.primary.dataset.in_findings(findings.listed)
        await w.primary.sync(w.fra1)
        file = (await known_of(w.primary, b"file")).file
        await w.primary.dataset.in_ledger(ledger.unsettle, b"file", file, 0)
        await w.scrubbed()
        await w.round()
        assert (await standing(w.primary, known)).state is State.OPEN
        other = next(path for path in (b"other", b"") if bucket_of_path(path) != bucket_of_file(file))
        where = f"WHERE name = x'{other.hex()}' AND died IS NULL"
        change_catalog(w.fra1.archive, f"UPDATE entry SET mode = mode + 1 {where}")
        await w.scrubbed()
        await w.round()
        found = await w.primary.dataset.in_findings(findings.listed)
        assert [one.path for one in found] == [b"file", other]
        await w.primary.sync(w.fra1)
        await w.scrubbed()
        await w.round()
        assert await w.primary.dataset.in_findings(findings.listed) == []


async def test_records_are_not_compared_while_the_replica_lacks_something(tmp_path: Path) -> None:
    """What it was not told yet is no difference."""
    async with world(tmp_path) as w:
        ledger = w.primary.dataset.ledger
        await w.primary.dataset.open()
        await w.primary.dataset.in_ledger(ledger.restart, "fra1", (await w.head()))
        await w.round()
        assert w.told == 0
        assert await w.primary.dataset.in_findings(w.primary.dataset.findings.listed) == []


# the link


async def test_a_link_that_is_cut_at_any_message_costs_one_round_only(tmp_path: Path) -> None:
    """The next round settles everything, and nothing is done twice that must not be."""
    async with world(tmp_path) as w:
        known, mender = await known_of(w.primary, b"file"), await w.mender()
        await w.job.close()
        for count in range(60):
            await rot(w.primary, b"file", 2 * BLOCK)
            found = await report(w.primary, b"file", 2)
            name = block_id(DATA[:BLOCK])
            mender.add(count, b"bad", [Want(name, known.file, 0)])
            mender.mended.clear()
            cut = CutAfter(w.fra1, count)
            w.job._dial = cut.dial
            try:
                await w.round()
            except LinkError:
                pass
            w.job._dial, cut.left = w.fra1.dial, -1
            await w.round()
            assert mender.mended == [name] or not cut.was_cut
            assert (await standing(w.primary, found)).verdict is Verdict.PRIMARY_ROT
            assert all(one.state is State.REPAIRED for one in await w.mirrored())
            await rot(w.primary, b"file", 2 * BLOCK)  # flips it back
            w.job.nudge()
            w.job._own._looked.clear()
            w.job._opinions.said.clear()
            await w.round()
            await w.job.close()
            if not cut.was_cut:
                assert count > 6
                return
        raise AssertionError("a round has more messages than that")


class CutAfter:
    """Cuts the link when the primary is about to send its next message after `count` of them."""

    def __init__(self, there: Replica, count: int) -> None:
        self._there, self.left, self.was_cut = there, count, False

    async def dial(self):  # type: ignore[no-untyped-def]
        channel = await self._there.dial()
        send, pair = channel.send, self._there.pairs[-1]

        async def counted(message: object) -> None:
            if not self.left:
                self.was_cut = True
                pair.client_stream.cut()
            self.left -= 1
            await send(message)  # type: ignore[arg-type]

        channel.send = counted  # type: ignore[method-assign, assignment]
        return channel


async def test_a_replica_without_a_copy_is_waited_for(tmp_path: Path) -> None:
    """Before the first pass there is nothing to tend; once there is, the next round does not wait for its time."""
    root = tmp_path / "www"
    root.mkdir()
    async with rig(tmp_path, root, tend_every_s=3600) as primary, replica(tmp_path / "store") as fra1:
        job = tending(primary, fra1)
        await job.step()
        assert job._status.state == "waiting"
        waiting = asyncio.create_task(job.wait())
        await primary.sync(fra1)
        async with asyncio.timeout(60):
            await waiting
        await job.step()
        assert job._copy.said.head.number == 1 and not job._copy.unheard
        await job.close()


async def test_a_tending_session_runs_beside_a_writing_one(tmp_path: Path) -> None:
    """Neither ends the other."""
    async with world(tmp_path) as w:
        await w.round()
        (w.primary.root / "new").write_bytes(b"new")
        assert (await w.primary.sync(w.fra1)).pass_ok
        await w.round()
        assert not w.fra1.errors


async def test_a_person_orders_the_repair_of_a_replicas_finding(tmp_path: Path) -> None:
    """A round about that finding alone; what became of it is said."""
    async with world(tmp_path) as w:
        known, mender = await known_of(w.primary, b"file"), await w.mender()
        mender.auto = False
        case = mender.add(1, b"x", [Want(block_id(DATA[:BLOCK]), known.file, 0)])
        await w.round()
        (found,) = await w.mirrored()
        assert (await w.job.repair(found, dry_run=True)).result == "planned"
        asked = await w.job.repair(found, dry_run=False)
        assert asked.result == "waiting" and case.id in asked.text
        mender.auto = True
        assert (await w.job.repair(found, dry_run=False)).result == "repaired"
        assert (await w.job.repair(found, dry_run=False)).result == "nothing"


async def test_a_hostile_replica_cannot_touch_other_findings(tmp_path: Path) -> None:
    """A finding that uses the id of one of ours is refused, and ours stays."""
    async with world(tmp_path) as w:
        mender = await w.mender()
        await rot(w.primary, b"file", 0)
        found = await report(w.primary, b"file", 0)
        stolen = Divergence(
            id=found.id, key="x", dataset="www", side=Side.REPLICA, peer="ams1", part=Part.BLOCK, what="mine"
        )
        mender._ask(lambda: mender.findings.report(stolen))
        with pytest.raises(Exception, match="as another one is named"):
            await w.round()
        assert (await standing(w.primary, found)).side is Side.PRIMARY


async def test_a_question_does_not_wait_for_a_long_answer(tmp_path: Path) -> None:
    """The gate is answered while the replica still adds up its record for a round."""
    async with world(tmp_path) as made:
        talk = await made.job._session()
        async with talk._turn, asyncio.timeout(20):
            said = await made.job.attest()
        assert said.complete.number == 1 and not talk.is_busy
        assert not talk.is_over, "the session of the rounds is as it was"
        assert (await made.job.attest()).complete == said.complete and made.job._talk is talk


class SlowLine:
    """A channel on which each message takes ten minutes, less a little, by the event loop's clock."""

    peer = "fra1"

    def __init__(self, answer: Message, monkeypatch: pytest.MonkeyPatch) -> None:
        loop = asyncio.get_running_loop()
        self._answer, self._late_s, real = answer, 0.0, loop.time
        monkeypatch.setattr(loop, "time", lambda: real() + self._late_s)

    async def send(self, message: Message) -> None:
        self._late_s += ANSWER_S - 60
        for _ in range(3):
            await asyncio.sleep(0)

    async def receive(self) -> Message:
        await self.send(self._answer)
        return self._answer

    def hang_up(self, reason: str) -> None:
        pass


class Saying(SlowLine):
    """The same, at once."""

    def __init__(self, answer: Message) -> None:
        self._answer = answer

    async def send(self, message: Message) -> None:
        pass


@pytest.mark.parametrize(
    "answer",
    [
        Cases([], False, ["cccccccc"]),
        Cases([], False, ["bbbbbbbb", "aaaaaaaa"]),
        Cases([], False, ["aaaaaaaa", "aaaaaaaa"]),
        Cases([], True),
        Cases([Case(a_divergence(id="11111111"), b"", [])], False),
    ],
)
async def test_findings_that_were_not_asked_for_are_refused(answer: Cases) -> None:
    """Of findings that are known only those are named that were, in order, and behind the last one; never nothing."""
    known = {"aaaaaaaa": 1, "bbbbbbbb": 2, "0aaaaaaa": 3}
    talk = Conversation(Saying(Cases([], False, ["aaaaaaaa", "bbbbbbbb"])))  # type: ignore[arg-type]
    assert (await talk.inquire("11111111", known)).same == ["aaaaaaaa", "bbbbbbbb"]
    talk = Conversation(Saying(answer))  # type: ignore[arg-type]
    with pytest.raises(PeerError, match="named"):
        await talk.inquire("11111111", known)


async def test_blocks_that_take_long_to_send_are_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a repair needs goes over a slow line as well: the time to answer begins when all has been said."""
    found = a_divergence(id="aaaaaaaa")
    with monkeypatch.context() as patched:
        talk = Conversation(SlowLine(Settled(found), patched))  # type: ignore[arg-type]
        assert await talk.testify(Case(found, b"", []), b"", [], [b"a piece"] * 3, 3) == found


async def test_an_answer_that_does_not_come_is_no_defect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replica that is too slow is out of reach: it is not shown as it was before, and nobody is told of a defect."""
    async with world(tmp_path) as made:
        await made.round()
        monkeypatch.setattr(conversation, "ANSWER_S", 0.0)
        with pytest.raises(LinkError, match=r"fra1.*did not answer within"):
            await made.job.step()
        assert "did not answer" in made.job._copy.unheard


# when a finding is looked at again


def test_patience_grows_with_what_stays_and_ends_with_what_changes() -> None:
    """New and changed findings are due at once, others after pauses that double up to a limit; what nobody could say of
    one is asked again as soon as the replica has taken in more."""
    clock = JumpingClock()
    patience, found = Patience(clock, round_s=1.0), a_divergence(id="aaaaaaaa", changed_ns=1)
    pauses = []
    for _ in range(8):
        assert patience.is_due(found)
        patience.looked(found)
        began = clock.ns
        while not patience.is_due(found, covered=10**9):
            clock.ns += 10**9
        pauses.append((clock.ns - began) // 10**9)
    assert pauses == [min(AGAIN_ROUNDS * 2**i, LAST_AGAIN_ROUNDS) for i in range(8)]
    patience.looked(found)
    assert not patience.is_due(found) and patience.is_due(a_divergence(id="aaaaaaaa", changed_ns=2))
    patience.looked(found, covered=7)
    assert not patience.is_due(found, 7) and patience.is_due(found, 8)
    patience.keep(set())
    assert patience.is_due(found)
