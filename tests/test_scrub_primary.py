"""The scrub of the primary: what it finds, what it must not find, and that it never loses its place."""

from __future__ import annotations

import asyncio
import errno
import mmap
import os
import random
import stat
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from kit_scrub_primary import ALL, RottenDisk, scrubbed
from kit_source import await_tick
from kit_tree import build_tree, is_root
from replicad.db.audit import audit
from replicad.db.database import PAGE_BYTES
from replicad.db.due import LEAST_BYTES, STRETCH_BLOCKS
from replicad.db.look_up import LookUp
from replicad.db.unnamed import KEPT_WALKS
from replicad.model.block import block_id, checksum
from replicad.model.divergence import Divergence, Part, Side, State
from replicad.model.errors import BookDamagedError, ReplicadError, SourceError
from replicad.model.verdict import Sight, Verdict, Writing
from replicad.system.direct import DirectReader
from replicad.work import quarantine as work_quarantine

BLOCK = 65536
MIB = 1024 * 1024


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "www"
    path.mkdir()
    return path


def write(path: Path, size: int, seed: int = 1) -> bytes:
    data = random.Random(seed).randbytes(size)
    path.write_bytes(data)
    return data


async def test_a_sound_tree_is_verified_whole_and_nothing_is_found(tmp_path: Path, root: Path) -> None:
    """Every kind of entry, odd names, holes and attributes: all of it is verified, and then nothing is due."""
    build_tree(root)
    (root / "island").touch()
    os.truncate(root / "island", 40 * MIB)
    with open(root / "island", "r+b") as file:
        file.seek(20 * MIB + 5)
        file.write(b"an island")
    async with scrubbed(tmp_path, root) as made:
        before = await made.surface.extent(0)
        assert before.never_bytes == before.total_bytes > 0
        assert before.oldest_ns == 0
        calls = await made.scrub()
        after = await made.surface.extent(0)
        assert (after.never_bytes, after.since_bytes, after.waiting_bytes) == (0, 0, 0)
        assert after.oldest_ns > 0
        assert sum(call.found for call in calls) == 0
        assert [call.doubts for call in calls if call.doubts] == []
        assert await made.found(None) == []
        assert sum(call.media_bytes for call in calls) > 3_000_000


async def test_a_flipped_bit_is_found_and_described(tmp_path: Path, root: Path) -> None:
    """The finding names the block, both looks, what was expected and seen, and every path; nothing is declared yet."""
    data = write(root / "a", 5 * BLOCK + 100)
    os.link(root / "a", root / "b")
    async with scrubbed(tmp_path, root) as made:
        expected = await made.checksums()
        made.disk.flip(root / "a", 2 * BLOCK + 7, 0b100)
        assert sum(call.found for call in await made.scrub()) == 1
        (found,) = await made.found()
        bad = bytearray(data[2 * BLOCK : 3 * BLOCK])
        bad[7] ^= 0b100
        assert (found.side, found.part, found.verdict) == (Side.PRIMARY, Part.BLOCK, Verdict.INCONCLUSIVE)
        assert found.key == f"block:{found.file}:2"
        assert (found.offset, found.length, found.number) == (2 * BLOCK, BLOCK, 2)
        assert found.blocks == (block_id(data[2 * BLOCK : 3 * BLOCK]),)
        assert (found.expected, found.seen) == (checksum(data[2 * BLOCK : 3 * BLOCK]), checksum(bad))
        assert (found.evidence.primary, found.evidence.writing) == (Sight.DIFFERS, Writing.UNWRITTEN)
        assert [(look.sight, look.source) for look in found.looks] == [(Sight.DIFFERS, "media")] * 2
        assert {(one.path, one.offset) for one in found.affected} == {(b"a", 2 * BLOCK), (b"b", 2 * BLOCK)}
        assert found.affected_count == 2
        kept = tmp_path / "state" / found.quarantine
        assert kept.read_bytes() == bad
        assert stat.S_IMODE(kept.stat().st_mode) == 0o600
        assert await made.checksums() == expected


async def test_a_finding_is_joined_and_the_scrub_goes_on(tmp_path: Path, root: Path) -> None:
    """What is found again stays one finding; its part counts as verified, so the rest gets its turn."""
    write(root / "a", BLOCK)
    write(root / "b", BLOCK)
    async with scrubbed(tmp_path, root) as made:
        made.disk.flip(root / "a", 0)
        await made.scrub()
        (first,) = await made.found()
        await made.scrub()
        (again,) = await made.found()
        assert (again.id, again.found_ns) == (first.id, first.found_ns)
        assert (await made.surface.extent(0)).never_bytes == 0
        assert len(list((tmp_path / "state" / "quarantine" / "www").iterdir())) == 1


async def test_a_block_that_reads_well_again_twice_is_gone(tmp_path: Path, root: Path) -> None:
    """An open finding ends with an event when its place is what is recorded again, and not before."""
    write(root / "a", 3 * BLOCK)
    async with scrubbed(tmp_path, root) as made:
        made.disk.flip(root / "a", BLOCK)
        await made.scrub()
        made.disk.left = 1  # the next first look is wrong, the second one is well
        await made.scrub()
        assert len(await made.found()) == 1
        made.disk.heal()
        await made.scrub()
        (gone,) = await made.found(None)
        assert gone.state is State.GONE
        assert "twice" in gone.events[-1].what


async def test_a_passing_fault_is_seen_and_not_left_open(tmp_path: Path, root: Path) -> None:
    """Wrong once, well the second time: a line in the book, nothing to mend."""
    write(root / "a", 3 * BLOCK)
    async with scrubbed(tmp_path, root) as made:
        made.disk.flip(root / "a", BLOCK)
        made.disk.left = 1
        assert sum(call.found for call in await made.scrub()) == 1
        (found,) = await made.found(None)
        assert (found.state, found.evidence.primary) == (State.GONE, Sight.UNKNOWN)
        assert [look.sight for look in found.looks] == [Sight.DIFFERS, Sight.MATCHES]


@pytest.mark.parametrize("number", [errno.EIO, errno.ENODATA, errno.EBADMSG])
async def test_a_block_that_cannot_be_read_is_found_and_its_neighbours_are_verified(
    tmp_path: Path, root: Path, number: int
) -> None:
    """One bad sector costs one block; of the others, one that is rotten as well is still told."""
    write(root / "a", 40 * BLOCK)
    async with scrubbed(tmp_path, root) as made:
        made.disk.error = number
        made.disk.fail(root / "a", 17 * BLOCK + 3)
        made.disk.flip(root / "a", 19 * BLOCK + 3)
        await made.scrub()
        unreadable, differs = sorted(await made.found(), key=lambda one: one.number)
        assert (unreadable.number, unreadable.evidence.primary) == (17, Sight.UNREADABLE)
        assert os.strerror(number) in unreadable.what
        assert (differs.number, differs.evidence.primary) == (19, Sight.DIFFERS)


async def test_two_answers_that_contradict_each_other_say_nothing(tmp_path: Path, root: Path) -> None:
    """A block that reads differently each time is a finding whose sight is unknown."""

    class Wavering(RottenDisk):
        def read_into(self, fd: int, direct: DirectReader | None, buffer: memoryview, offset: int) -> int:
            count = super().read_into(fd, direct, buffer, offset)
            buffer[0] = self.reads % 256
            return count

    write(root / "a", BLOCK)
    async with scrubbed(tmp_path, root) as made:
        made.disk = Wavering()
        made.restart()
        await made.scrub()
        (found,) = await made.found()
        assert found.evidence.primary is Sight.UNKNOWN


async def test_zeros_that_rot_are_found(tmp_path: Path, root: Path) -> None:
    """An all-zero block has no row, yet it must be zero: a bit in it is found, and named."""
    (root / "a").write_bytes(bytes(3 * BLOCK))
    async with scrubbed(tmp_path, root) as made:
        made.disk.flip(root / "a", BLOCK + 5, 0b10)
        await made.scrub()
        (found,) = await made.found()
        assert (found.number, found.blocks, found.bits, found.bit_positions) == (1, (), 1, (5 * 8 + 1,))


async def test_data_that_became_a_hole_is_found(tmp_path: Path, root: Path) -> None:
    """Blocks that are recorded and lie in a hole now are read, and are not what they should be."""
    write(root / "a", 20 * BLOCK)
    async with scrubbed(tmp_path, root) as made:
        os.truncate(root / "a", 0)
        os.truncate(root / "a", 20 * BLOCK)
        ledger, status = made.primary.dataset.ledger, (root / "a").stat()
        await made.primary.dataset.in_ledger(  # as if nobody had written it
            ledger._db.execute,
            "UPDATE entry SET mtime_ns = ?, ctime_ns = ? WHERE file > 0",
            (status.st_mtime_ns, status.st_ctime_ns),
        )
        await made.scrub()
        assert sorted(one.number for one in await made.found()) == list(range(20))


async def test_a_file_that_was_written_is_not_judged_until_a_pass_has_recorded_it(tmp_path: Path, root: Path) -> None:
    """It waits behind the others without being read again and again, and comes first once it is recorded."""
    write(root / "a", BLOCK)
    write(root / "b", BLOCK)
    async with scrubbed(tmp_path, root) as made:
        await_tick()
        write(root / "a", 2 * BLOCK, seed=5)
        calls = await made.scrub()
        assert await made.found(None) == []
        assert [call.doubts for call in calls] == [()] * len(calls)
        extent = await made.surface.extent(0)
        assert extent.waiting_bytes == extent.never_bytes == BLOCK
        reads = made.disk.reads
        await made.surface.verify(ALL, 0)
        assert made.disk.reads == reads + 1, "only b was read"
        await made.sync()
        assert (await made.surface.extent(0)).since_bytes > 0
        await made.scrub()
        assert (await made.surface.extent(0)).never_bytes == 0


async def test_what_could_not_be_judged_before_a_request_is_looked_at_once_for_it(tmp_path: Path, root: Path) -> None:
    """And nothing else is read again until its time has come: a request ends after one look at everything."""
    for name in ("a", "b", "c"):
        write(root / name, BLOCK)
    async with scrubbed(tmp_path, root) as made:
        await_tick()
        write(root / "a", BLOCK, seed=5)
        await made.scrub()
        made.clock.advance(1)
        reads = made.disk.reads
        await made.scrub()
        assert made.disk.reads == reads + 2, "b and c were read once more, a was seen to be written"


async def test_a_file_that_is_written_while_it_is_read_is_not_judged(tmp_path: Path, root: Path) -> None:
    """Bytes that differ under a status that moved meanwhile say nothing; nor do those of a file that vanished."""
    for name in ("a", "b", "c"):
        write(root / name, BLOCK)
    async with scrubbed(tmp_path, root) as made:
        await_tick()
        deeds = {
            "write": lambda: write(root / "a", BLOCK, seed=7),
            "truncate": lambda: os.truncate(root / "b", 100),
            "remove": lambda: (root / "c").unlink(),
        }
        for deed in deeds.values():
            made.disk.while_reading = deed
            await made.surface.verify(ALL, 0)
            made.clock.advance(100)
        assert await made.found(None) == []


async def test_a_pass_that_records_the_file_meanwhile_is_no_rot(tmp_path: Path, root: Path) -> None:
    """The record is asked again before anything is reported: what was read may be newer than what it was compared with.
    Nor does the part count as verified: nobody has compared it with the new record."""
    write(root / "a", BLOCK)
    async with scrubbed(tmp_path, root) as made:
        loop, dataset = asyncio.get_running_loop(), made.primary.dataset
        ledger = dataset.ledger
        (_, known), *_ = await dataset.in_ledger(LookUp(ledger.database).named, (await _file(made)), 1)
        row = (await dataset.in_ledger(ledger.blocks, known.file, 0, 1))[0]

        def record() -> None:
            changed = [row._replace(id=b"i" * 32, checksum=b"c" * 16)]
            asyncio.run_coroutine_threadsafe(dataset.in_ledger(ledger.record_blocks, changed), loop).result()

        made.disk.flip(root / "a", 0)
        made.disk.while_reading = record
        await made.surface.verify(ALL, 0)
        assert await made.found(None) == []
        assert (await made.surface.extent(0)).never_bytes > 0


async def _file(made: object) -> int:
    ledger = made.primary.dataset.ledger  # type: ignore[attr-defined]
    return int(await made.primary.dataset.in_ledger(ledger._db.value, "SELECT max(file) FROM entry"))  # type: ignore[attr-defined]


async def test_findings_end_with_what_they_speak_of(tmp_path: Path, root: Path) -> None:
    """A file that was dropped, or written and recorded anew, has no rot any more; each says why. One that was dropped
    only once some walks have found it nowhere: till then it may have moved."""
    for name in ("a", "b"):
        write(root / name, BLOCK)
    async with scrubbed(tmp_path, root) as made:
        made.disk.flip(root / "a", 0)
        made.disk.flip(root / "b", 0)
        await made.scrub()
        assert len(await made.found()) == 2
        await_tick()
        (root / "a").unlink()
        write(root / "b", BLOCK, seed=9)
        made.disk.heal()
        await made.sync()
        made.clock.advance(3600)
        await made.surface.verify(ALL, 0)
        assert [one.path for one in await made.found()] == [b"a"]
        for _ in range(KEPT_WALKS):
            await made.sync()
        made.clock.advance(3600)
        await made.surface.verify(ALL, 0)
        why = {one.path: one.events[-1].what for one in await made.found(State.GONE)}
        assert "no more" in why[b"a"]
        assert "written" in why[b"b"]


@pytest.mark.skipif(not is_root(), reason="gives files away")
@pytest.mark.parametrize("first", ["pass", "scrub"])
async def test_a_drift_that_a_person_has_noted_is_told_by_nobody_again(tmp_path: Path, root: Path, first: str) -> None:
    """Pass and scrub meet the same entry in turns: to both it is the same drift. Another one is told."""
    (root / "entry").write_text("x")
    async with scrubbed(tmp_path, root) as s:

        async def tamper(column: str) -> None:
            ledger = s.primary.dataset.ledger
            await s.primary.dataset.in_ledger(
                ledger._db.execute, f"UPDATE entry SET {column} = 77 WHERE name = x'656e747279'"
            )

        async def meet(times: int) -> list[Divergence]:
            for number in range(times):
                if (number % 2 == 0) is (first == "pass"):
                    await s.sync()
                else:
                    s.clock.advance(1)
                    await s.scrub()
            return await s.found()

        await tamper("mode")
        (found,) = await meet(1)
        noted = found.with_event(1, "acknowledged", state=State.ACKNOWLEDGED)
        await s.primary.dataset.in_findings(s.primary.dataset.findings.update, noted)
        assert await meet(4) == []
        await tamper("uid")
        (other,) = await meet(1)
        assert other.id != found.id


async def test_metadata_that_changed_without_a_write_is_found_and_gone_again(tmp_path: Path, root: Path) -> None:
    """Mode, owner, attributes and targets of files, directories and links are compared with the record."""
    write(root / "a", BLOCK)
    os.setxattr(root / "a", "user.colour", b"red")
    (root / "d").mkdir()
    (root / "l").symlink_to("a")
    async with scrubbed(tmp_path, root) as made:
        dataset, execute = made.primary.dataset, made.primary.dataset.ledger._db.execute
        saved = await dataset.in_ledger(dataset.ledger._db.all, "SELECT mode, uid, extra, directory, name FROM entry")
        await dataset.in_ledger(execute, "UPDATE entry SET mode = 1, extra = NULL WHERE name = ?", (b"a",))
        await dataset.in_ledger(execute, "UPDATE entry SET uid = 77 WHERE name = ?", (b"d",))
        await dataset.in_ledger(execute, "UPDATE entry SET extra = NULL WHERE name = ?", (b"l",))
        await made.scrub()
        found = {one.path: one for one in await made.found()}
        assert set(found) == {b"a", b"d", b"l"}
        assert all(one.part is Part.METADATA and one.evidence.metadata_differs for one in found.values())
        assert "mode is" in found[b"a"].what
        assert "user.colour" in found[b"a"].what
        assert "77" in found[b"d"].what
        assert "target" in found[b"l"].what
        for row in saved:
            await dataset.in_ledger(
                execute, "UPDATE entry SET mode = ?, uid = ?, extra = ? WHERE directory = ? AND name = ?", row
            )
        await made.scrub()
        assert await made.found() == []


async def test_directories_are_looked_at_many_at_once(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand of them take a few transactions, and count for a little each; what is wrong in one of them, behind its
    first page too, is found, one that is gone waits, and one that holds nothing any more is due no more."""
    for number in range(1000):
        (root / f"{number:04}").mkdir()
        (root / f"{number:04}" / "l").symlink_to("a")
    for number in range(600):
        (root / "0700" / f"{number:03}").symlink_to("a")
    async with scrubbed(tmp_path, root) as made:
        dataset = made.primary.dataset
        execute, calls = dataset.ledger._db.execute, 0
        in_ledger = dataset.in_ledger

        async def counted(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            return await in_ledger(*args, **kwargs)

        await in_ledger(execute, "UPDATE entry SET uid = 77 WHERE name = ?", (b"599",))
        await in_ledger(
            execute, "DELETE FROM entry WHERE directory = (SELECT id FROM directory WHERE path = ?)", (b"0500",)
        )
        (root / "0600").rename(tmp_path / "elsewhere")
        monkeypatch.setattr(dataset, "in_ledger", counted)
        verified = await made.surface.verify(2000 * LEAST_BYTES, 0)
        assert calls < 30
        assert verified.nominal_bytes == 1001 * LEAST_BYTES and verified.media_bytes == verified.cache_bytes == 0
        assert [one.path for one in await made.found()] == [b"0700/599"]
        extent = await made.surface.extent(0)
        assert extent.tried_never_bytes == extent.never_bytes == LEAST_BYTES
        assert extent.total_bytes == 1001 * LEAST_BYTES


async def test_a_checksum_that_is_unknown_is_learned_from_bytes_with_the_recorded_id(
    tmp_path: Path, root: Path
) -> None:
    """After a ledger was adopted only ids are known: right bytes bring the checksum, wrong ones are rot; ids stay."""
    data = write(root / "a", 2 * BLOCK)
    async with scrubbed(tmp_path, root) as made:
        dataset = made.primary.dataset
        known = await made.checksums()
        await dataset.in_ledger(dataset.ledger._db.execute, "UPDATE block SET checksum = x''")
        made.disk.flip(root / "a", BLOCK)
        await made.scrub()
        (found,) = await made.found()
        assert (found.number, found.blocks, found.expected) == (1, (block_id(data[BLOCK:]),), b"")
        first, second = await made.checksums()
        assert first == known[0]  # type: ignore[index]
        assert second[2:4] == (known[1][2], b"")  # type: ignore[index]


async def test_a_root_that_is_another_one_is_not_verified(tmp_path: Path, root: Path) -> None:
    """An unmounted file system is an error that says so; nothing counts as verified or as gone."""
    write(root / "a", BLOCK)
    async with scrubbed(tmp_path, root) as made:
        made.disk.flip(root / "a", 0)
        await made.scrub()
        root.rename(tmp_path / "away")
        root.mkdir()
        before = await made.surface.extent(0)
        made.clock.advance(3600)
        with pytest.raises(SourceError, match="not the one"):
            await made.surface.verify(ALL, 0)
        root.rmdir()
        with pytest.raises(SourceError):
            await made.surface.verify(ALL, 0)
        assert await made.surface.extent(0) == before
        assert len(await made.found()) == 1


async def test_what_cannot_be_looked_at_is_a_doubt_and_stays_due(tmp_path: Path, root: Path) -> None:
    """An error that says nothing about the medium is neither health nor rot."""
    write(root / "a", BLOCK)
    write(root / "b", BLOCK)
    async with scrubbed(tmp_path, root) as made:
        made.disk.error = errno.EACCES
        made.disk.fail(root / "a", 0)
        calls = await made.scrub()
        doubts = [doubt for call in calls for doubt in call.doubts]
        assert len(doubts) == 1
        assert "Permission denied" in doubts[0]
        assert await made.found(None) == []
        assert (await made.surface.extent(0)).never_bytes == BLOCK


async def test_an_interrupted_scrub_loses_nothing(tmp_path: Path, root: Path) -> None:
    """Cancelled at any moment, restarted after any call: in the end each part was verified, none was left out."""
    for number in range(60):
        write(root / f"{number}", 3 * BLOCK + number, number)
    async with scrubbed(tmp_path, root) as made:
        begin_ns, source = made.clock.now_ns(), random.Random(1)
        for _ in range(40):
            task = asyncio.create_task(made.surface.verify(8 * BLOCK, 0))
            await asyncio.sleep(source.random() * 0.01)
            task.cancel()
            try:
                await task
            except asyncio.CancelledError:
                pass
            made.restart()
        while (await made.surface.extent(begin_ns)).since_bytes:
            assert (await made.surface.verify(8 * BLOCK, 0)).units
        made.disk.flip(root / "59", 0)
        await made.scrub()
        assert [one.path for one in await made.found()] == [b"59"]


async def test_a_huge_file_is_verified_bit_by_bit_and_a_change_makes_a_part_of_it_due(
    tmp_path: Path, root: Path
) -> None:
    """A call takes about what it may; a write into one stretch leaves the others verified."""
    size = 3 * STRETCH_BLOCKS * 4096 + 100
    write(root / "a", size)
    async with scrubbed(tmp_path, root, block_bytes=4096) as made:
        calls = await made.scrub(budget_bytes=STRETCH_BLOCKS * 4096)
        assert max(call.media_bytes + call.cache_bytes for call in calls) <= STRETCH_BLOCKS * 4096
        await_tick()
        with open(root / "a", "r+b") as file:
            file.seek(2 * STRETCH_BLOCKS * 4096 + 5)
            file.write(b"new")
        await made.sync()
        never = (await made.surface.extent(0)).never_bytes
        assert STRETCH_BLOCKS * 4096 <= never <= 2 * STRETCH_BLOCKS * 4096, "the written one and the first"
        await made.scrub()
        assert await made.found(None) == []


async def test_the_quarantine_is_bounded(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When it is full the oldest bad bytes make room; the findings stand."""
    write(root / "a", 4 * BLOCK)
    monkeypatch.setattr(work_quarantine, "MAX_KEPT_BYTES", 2 * BLOCK)
    async with scrubbed(tmp_path, root) as made:
        for number in range(4):
            made.disk.flip(root / "a", number * BLOCK)
        await made.scrub()
        found = await made.found()
        assert len(found) == 4 and all(one.quarantine for one in found)
        assert sum((tmp_path / "state" / one.quarantine).exists() for one in found) == 2


async def test_a_sound_ledger_makes_sense(tmp_path: Path, root: Path) -> None:
    """Of a tree with every kind of entry, after changes of every kind, nothing is wrong with the ledger."""
    build_tree(root)
    async with scrubbed(tmp_path, root) as made:
        assert (await made.surface.structure()).found == 0
        await_tick()
        write(root / "docs" / "large.bin", 70_000, seed=3)
        (root / "docs" / "blocks.bin").unlink()
        await made.sync()
        assert (await made.surface.structure()).found == 0
        assert await made.found(None) == []


@pytest.mark.parametrize(
    "damage",
    [
        "INSERT INTO block SELECT file, 999, id, checksum, seq FROM block LIMIT 1",
        "INSERT INTO block SELECT 5, number, id, checksum, seq FROM block LIMIT 1",
        "UPDATE block SET id = x'00'",
        "UPDATE entry SET block_bytes = 0 WHERE file > 0",
        "UPDATE entry SET directory = 4711 WHERE file > 0",
        "UPDATE entry SET kind = 2 WHERE file > 0",
    ],
)
async def test_a_ledger_that_makes_no_sense_is_found_and_gone_when_it_does(
    tmp_path: Path, root: Path, damage: str
) -> None:
    """Blocks beyond the end, of no file, of no size; entries in no directory: one finding, named; it ends by itself."""
    (root / "d").mkdir()
    write(root / "d" / "a", 3 * BLOCK)
    async with scrubbed(tmp_path, root) as made:
        dataset = made.primary.dataset
        for table in ("entry", "block"):
            await dataset.in_ledger(dataset.ledger._db.execute, f"CREATE TABLE {table}_saved AS SELECT * FROM {table}")
        await dataset.in_ledger(dataset.ledger._db.execute, damage)
        assert (await made.surface.structure()).found == 1
        (found,) = await made.found()
        assert (found.part, found.key, found.path) == (Part.BOOK, "book:ledger", b"www.db")
        for table in ("entry", "block"):
            await dataset.in_ledger(dataset.ledger._db.execute, f"DELETE FROM {table}")
            await dataset.in_ledger(dataset.ledger._db.execute, f"INSERT INTO {table} SELECT * FROM {table}_saved")
        assert (await made.surface.structure()).found == 0
        assert await made.found() == []


async def test_a_damaged_page_of_the_ledger_is_a_finding(tmp_path: Path, root: Path) -> None:
    """Whether the audit meets it or the scrub, also when the ledger cannot even be opened: it stands in the book."""
    for number in range(50):
        write(root / f"{number}", 1000, number)
    async with scrubbed(tmp_path, root) as made:
        await made.primary.reopen()
        book = tmp_path / "state" / "ledger" / "www.db"
        data = bytearray(book.read_bytes())
        for page in range(PAGE_BYTES, len(data), PAGE_BYTES):
            data[page + PAGE_BYTES // 2] ^= 1
        book.write_bytes(data)
        made.restart()
        with pytest.raises(BookDamagedError):
            await made.surface.verify(ALL, 0)
        (found,) = await made.found()
        assert (found.part, found.path) == (Part.BOOK, b"www.db")


async def test_an_audit_names_each_file_once_whatever_the_length_of_a_page(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks that no entry names, and those that no block may be, in files with few and with many of them."""
    for number in range(6):
        write(root / f"{number}", 3 * 65536 * (number % 3) + 10, number)
    async with scrubbed(tmp_path, root) as made:
        ledger, dataset = made.primary.dataset.ledger, made.primary.dataset
        files = [row[0] for row in await dataset.in_ledger(ledger._db.all, "SELECT DISTINCT file FROM block")]
        await dataset.in_ledger(
            ledger._db.executemany,
            "INSERT INTO block SELECT file + 1000000, number, id, checksum, seq FROM block WHERE file = ?",
            [(file,) for file in files[::2]],
        )
        await dataset.in_ledger(ledger._db.execute, "UPDATE block SET id = x'01' WHERE file = ?", (files[1],))
        expected = {f"blocks of file {file + 1000000}, which no entry names" for file in files[::2]}
        expected.add(f"blocks of file {files[1]} with impossible numbers or ids")
        for page_blocks in (1, 2, 5, 10_000):
            monkeypatch.setattr("replicad.db.audit.PAGE_BLOCKS", page_blocks)
            problems = await asyncio.to_thread(audit, ledger.path, lambda: False)
            assert sorted(problems) == sorted(expected)


async def test_an_audit_that_is_no_longer_wanted_ends(tmp_path: Path, root: Path) -> None:
    """A daemon that stops does not wait for a large ledger to be read; what was not found out is an error."""
    for number in range(3000):
        (root / f"{number}").write_bytes(b"x")
    async with scrubbed(tmp_path, root) as made:
        with pytest.raises(ReplicadError, match="stopping"):
            await asyncio.to_thread(audit, made.primary.dataset.ledger.path, lambda: True)
        task = asyncio.create_task(made.surface.structure())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await made.surface.structure()).found == 0


async def test_live_writes_raise_no_alarm(tmp_path: Path, root: Path) -> None:
    """Stores into mapped memory, long writes, truncation and renames all the while; passes and scrubs in between: what
    is recorded is always a state that a later change shows in the times of, so nothing is ever taken for rot."""
    for name in ("mapped", "large", "short"):
        write(root / name, 4 * MIB if name == "large" else 8 * BLOCK)
    stop = threading.Event()

    def write_on() -> None:
        source = random.Random(4)
        with open(root / "mapped", "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
            while not stop.is_set():
                memory[source.randrange(len(memory))] = source.randrange(256)  # seldom a page fault, so no new time
                deed = source.randrange(40)
                if deed == 0:
                    write(root / "short", source.randrange(1, 9) * BLOCK, source.randrange(99))
                elif deed == 1:
                    with open(root / "large", "r+b", buffering=0) as large:
                        large.write(source.randbytes(1) * (4 * MIB))
                elif deed == 2:
                    os.replace(root / "short", root / "renamed")
                    write(root / "short", BLOCK, source.randrange(99))
                time.sleep(source.random() * 0.03)  # longer than a file takes to settle, now and then

    async with scrubbed(tmp_path, root) as made:
        writer = threading.Thread(target=write_on)
        writer.start()
        try:
            end = time.monotonic() + 12
            while time.monotonic() < end:
                await made.sync()
                await made.surface.verify(ALL, 0)
                made.clock.advance(100)
                await made.surface.verify(ALL, 0)
        finally:
            stop.set()
            await asyncio.to_thread(writer.join)
        await made.sync()
        await made.scrub()
        assert [(one.path, one.what, one.looks) for one in await made.found(None)] == []
