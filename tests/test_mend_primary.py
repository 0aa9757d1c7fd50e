"""Repair of the primary: proven bytes in, nothing else touched, and no crash that lets other rot be believed."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import random
import shutil
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import msgspec
import pytest

from kit_link import wait_for
from kit_rig import Replica, Rig, describe_snapshot, replica, rig
from kit_store import flip
from kit_tend import BLOCK, known_of, report, rot, stamp_now, standing, tending
from kit_tree import is_root
from replicad.db.ledger import stamp_of
from replicad.db.touched import restamp
from replicad.model.block import Buffer, checksum
from replicad.model.divergence import Divergence, Event, Part, Side, State
from replicad.model.errors import DiskFullError
from replicad.model.remedy import Remedy
from replicad.model.verdict import Verdict
from replicad.system.disk import Disk
from replicad.work import between_passes, interrupted, mend_primary
from replicad.work import patch as work_patch
from replicad.work.dataset import Dataset
from replicad.work.interrupted import MENDING, Intent
from replicad.work.mended import Mended
from replicad.work.primary_findings import PrimaryFindings

DATA = random.Random(7).randbytes(5 * BLOCK + 1000)
OTHER = random.Random(8).randbytes(5 * BLOCK)
MTIME_NS, ATIME_NS = 1_500_000_000_123_456_789, 1_400_000_000_987_654_321


@asynccontextmanager
async def world(tmp_path: Path, **options: object) -> AsyncIterator[tuple[Rig, Replica]]:
    """A primary with one file in two places, and its replica after a pass."""
    root = tmp_path / "www"
    root.mkdir()
    (root / "file").write_bytes(DATA)
    os.utime(root / "file", ns=(ATIME_NS, MTIME_NS))
    os.link(root / "file", root / "link")
    async with rig(tmp_path, root, **options) as primary, replica(tmp_path / "store") as fra1:
        await primary.sync(fra1)
        yield primary, fra1


async def repaired(primary: Rig, fra1: Replica, found: Divergence, disk: Disk | None = None):  # type: ignore[no-untyped-def]
    """What an order of a person gives."""
    job = tending(primary, fra1, disk=disk)
    try:
        return await job.repair(found, dry_run=False)
    finally:
        await job.close()


async def is_unchanged(primary: Rig, path: bytes = b"file") -> bool:
    """Whether the next survey takes the file for what is recorded."""
    return stamp_of(await known_of(primary, path)) == stamp_now(primary.root, path)


async def test_a_repair_writes_the_block_and_nothing_else(tmp_path: Path) -> None:
    """Content, size and times are as they were; no name of the file counts as changed; a receipt says what was done."""
    async with world(tmp_path) as (primary, fra1):
        await rot(primary, b"file", 2 * BLOCK + 5)
        found = await report(primary, b"file", 2)
        bad = (primary.root / "file").read_bytes()[2 * BLOCK : 3 * BLOCK]
        done = await repaired(primary, fra1, found)
        assert (done.result, (primary.root / "file").read_bytes()) == ("repaired", DATA)
        status = os.stat(primary.root / "file")
        assert (status.st_mtime_ns, status.st_size) == (MTIME_NS, len(DATA))
        assert await is_unchanged(primary) and await is_unchanged(primary, b"link")
        now = await standing(primary, found)
        assert (now.state, now.verdict) == (State.REPAIRED, Verdict.PRIMARY_ROT)
        (receipt,) = await primary.dataset.in_findings(primary.dataset.findings.receipts, found.id)
        assert (receipt.before, receipt.source, receipt.offset) == (checksum(bad), "fra1", 2 * BLOCK)
        assert receipt.after == checksum(DATA[2 * BLOCK : 3 * BLOCK])
        kept = primary.directory / "state" / now.quarantine
        assert kept.read_bytes() == bad
        before = primary.status["fra1"].sent_bytes
        await primary.sync(fra1)
        assert primary.status["fra1"].sent_bytes == before, "the next pass found nothing to say"


async def test_the_short_block_at_the_end_is_repaired(tmp_path: Path) -> None:
    """And the size stays."""
    async with world(tmp_path) as (primary, fra1):
        await rot(primary, b"file", len(DATA) - 1)
        found = await report(primary, b"file", 5)
        assert (await repaired(primary, fra1, found)).result == "repaired"
        assert (primary.root / "file").read_bytes() == DATA


@pytest.mark.parametrize("kind", ["hole", "zeroed later"])
async def test_a_block_of_zeros_is_repaired_without_being_stored_anywhere(tmp_path: Path, kind: str) -> None:
    """Zeros are recorded and neither sent nor stored; rot in them is judged and repaired all the same."""
    async with world(tmp_path) as (primary, fra1):
        file = primary.root / "sparse"
        with file.open("wb") as opened:
            opened.write(b"x" * 3 * BLOCK if kind == "zeroed later" else b"x")
            opened.truncate(3 * BLOCK)
        await primary.sync(fra1)
        if kind == "zeroed later":
            with file.open("r+b") as opened:
                opened.seek(BLOCK)
                opened.write(bytes(2 * BLOCK))
            await primary.sync(fra1)
        good = file.read_bytes()
        found = await zero_finding(primary, b"sparse", 1)
        await rot(primary, b"sparse", BLOCK + 9)
        job = tending(primary, fra1)
        await job.step()
        now = await standing(primary, found)
        assert (now.verdict, now.bits, now.bit_positions) == (Verdict.PRIMARY_ROT, 1, (72,))
        assert (await job.repair(found, dry_run=False)).result == "repaired"
        await job.close()
        assert file.read_bytes() == good


async def zero_finding(primary: Rig, path: bytes, number: int) -> Divergence:
    """What a scrub reports of a block that should be all-zero."""
    known, zeros = await known_of(primary, path), bytes(BLOCK)
    found = Divergence(
        key=f"block:{known.file}:{number}", dataset="www", side=Side.PRIMARY, peer="", part=Part.BLOCK, found_ns=1,
        changed_ns=1, what="a block differs", path=path, offset=number * BLOCK, length=BLOCK, file=known.file,
        number=number, expected=checksum(zeros),
    )  # fmt: skip
    await primary.dataset.open_findings()
    return await primary.dataset.in_findings(primary.dataset.findings.report, found)


async def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    """It says what would be written, and where."""
    async with world(tmp_path) as (primary, fra1):
        await rot(primary, b"file", 0)
        found = await report(primary, b"file", 0)
        job = tending(primary, fra1)
        await job.step()
        before = (primary.root / "file").read_bytes()
        plan = await job.repair(await standing(primary, found), dry_run=True)
        await job.close()
        assert plan.result == "planned" and "byte 0 of file" in plan.text
        assert (primary.root / "file").read_bytes() == before


async def test_a_written_file_is_left_alone(tmp_path: Path) -> None:
    """Whatever was found before: somebody's bytes are not overwritten."""
    async with world(tmp_path) as (primary, fra1):
        await rot(primary, b"file", 0)
        found = await report(primary, b"file", 0)
        with (primary.root / "file").open("r+b") as file:
            file.write(b"mine")
        before = (primary.root / "file").read_bytes()
        assert (await repaired(primary, fra1, found)).result == "nothing"
        assert (primary.root / "file").read_bytes() == before
        assert (await standing(primary, found)).verdict is Verdict.CHANGED


async def test_a_file_that_another_program_has_open_is_refused(tmp_path: Path) -> None:
    """What it writes meanwhile could not be told from what we write."""
    async with world(tmp_path) as (primary, fra1):
        await rot(primary, b"file", 0)
        found = await report(primary, b"file", 0)
        before = (primary.root / "file").read_bytes()
        with (primary.root / "link").open("rb"):
            done = await repaired(primary, fra1, found)
        assert (done.result, (primary.root / "file").read_bytes()) == ("refused", before)
        assert "has it open" in done.text
        assert (await repaired(primary, fra1, found)).result == "repaired"


async def test_a_program_that_opens_the_file_just_then_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for us, we write nothing, and the intent is gone."""
    async with world(tmp_path) as (primary, fra1):
        await rot(primary, b"file", 0)
        found = await report(primary, b"file", 0)
        before = (primary.root / "file").read_bytes()
        read = work_patch.Patch.read

        def read_and_knock(self: work_patch.Patch, offset: int, size: int) -> tuple[bytes, bool]:
            with pytest.raises(BlockingIOError):
                os.open(primary.root / "file", os.O_RDWR | os.O_NONBLOCK)
            return read(self, offset, size)

        monkeypatch.setattr(work_patch.Patch, "read", read_and_knock)
        done = await repaired(primary, fra1, found)
        assert (done.result, (primary.root / "file").read_bytes()) == ("refused", before)
        assert await primary.dataset.in_ledger(primary.dataset.ledger.get, MENDING) is None


@pytest.mark.skipif(not is_root() or not shutil.which("chattr"), reason="needs root and chattr")
async def test_an_immutable_file_is_refused(tmp_path: Path) -> None:
    """In one clear sentence."""
    async with world(tmp_path) as (primary, fra1):
        await rot(primary, b"file", 0)
        found = await report(primary, b"file", 0)
        path = primary.root / "file"
        flagged = subprocess.run(["chattr", "+i", path], capture_output=True, check=False)
        if flagged.returncode:
            pytest.skip("this file system knows no such flag")
        known, now = await known_of(primary, b"file"), stamp_now(primary.root, b"file")
        await primary.dataset.in_ledger(restamp, primary.dataset.ledger, b"file", stamp_of(known), now)
        try:
            done = await repaired(primary, fra1, found)
        finally:
            subprocess.run(["chattr", "-i", path], check=True)
        assert done.result == "refused" and "Operation not permitted" in done.text


async def test_a_symlink_in_the_way_leads_nowhere(tmp_path: Path) -> None:
    """A directory that became a symlink since is not followed."""
    async with world(tmp_path) as (primary, fra1):
        (primary.root / "d").mkdir()
        (primary.root / "d/f").write_bytes(DATA[:BLOCK])
        await primary.sync(fra1)
        await rot(primary, b"d/f", 0)
        found = await report(primary, b"d/f", 0)
        (primary.root / "d").rename(tmp_path / "outside")
        (primary.root / "d").symlink_to(tmp_path / "outside")
        before = (tmp_path / "outside/f").read_bytes()
        await repaired(primary, fra1, found)
        assert (tmp_path / "outside/f").read_bytes() == before


async def test_a_block_that_gives_no_bytes_is_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing could be kept of it, so it cannot be undone, which is said."""
    async with world(tmp_path) as (primary, fra1):
        await rot(primary, b"file", BLOCK)
        found = await report(primary, b"file", 1)
        read, calls = work_patch.Patch.read, []

        def fail_once(self: work_patch.Patch, offset: int, size: int) -> tuple[bytes, bool]:
            calls.append(offset)
            if len(calls) == 1:
                raise OSError(errno.EIO, "Input/output error")
            return read(self, offset, size)

        monkeypatch.setattr(work_patch.Patch, "read", fail_once)
        job = tending(primary, fra1)
        assert (await job.repair(found, dry_run=False)).result == "repaired"
        assert (primary.root / "file").read_bytes() == DATA
        undone = await job.mender.undo(await standing(primary, found))
        await job.close()
        assert undone.result == "refused"


class FullDisk(Disk):
    """Takes no bytes of the dataset's."""

    def pwrite(self, fd: int, data: Buffer, offset: int) -> int:
        if "/quarantine/" in os.readlink(f"/proc/self/fd/{fd}"):
            return super().pwrite(fd, data, offset)
        raise OSError(errno.EIO, "Input/output error")


async def test_a_medium_that_takes_nothing_is_said_and_stays_open(tmp_path: Path) -> None:
    """The file's times are as recorded, so that nothing of it is believed."""
    async with world(tmp_path) as (primary, fra1):
        await rot(primary, b"file", 0)
        found = await report(primary, b"file", 0)
        done = await repaired(primary, fra1, found, FullDisk())
        assert done.result == "failed"
        assert (await standing(primary, found)).state is State.OPEN
        assert await is_unchanged(primary)


async def test_undo_puts_back_what_was_there(tmp_path: Path) -> None:
    """With the same guards; the finding is open again, and is not repaired by itself."""
    async with world(tmp_path, repair="auto") as (primary, fra1):
        await rot(primary, b"file", 0)
        bad = (primary.root / "file").read_bytes()
        found = await report(primary, b"file", 0)
        job = tending(primary, fra1)
        await job.step()
        assert (primary.root / "file").read_bytes() == DATA
        undone = await job.mender.undo(await standing(primary, found))
        assert (undone.result, (primary.root / "file").read_bytes()) == ("undone", bad)
        assert (await standing(primary, found)).state is State.OPEN and await is_unchanged(primary)
        assert (await job.mender.undo(await standing(primary, found))).result == "nothing"
        await job.step()
        assert (primary.root / "file").read_bytes() == bad, "what a person has undone stays"
        assert (await job.repair(await standing(primary, found), dry_run=False)).result == "repaired"
        await job.close()


class TornDisk(Disk):
    """Takes half of what is written into the dataset."""

    def pwrite(self, fd: int, data: Buffer, offset: int) -> int:
        if "/quarantine/" in os.readlink(f"/proc/self/fd/{fd}"):
            return super().pwrite(fd, data, offset)
        super().pwrite(fd, data[: len(data) // 2], offset)
        raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize(("disk", "state"), [(FullDisk(), State.REPAIRED), (TornDisk(), State.OPEN)])
async def test_an_undo_that_the_medium_does_not_take_has_undone_nothing(
    tmp_path: Path, disk: Disk, state: State
) -> None:
    """It is read again like any repair: what the repair wrote stays repaired, what is torn is open."""
    async with world(tmp_path) as (primary, fra1):
        old = bytes(BLOCK - 10)
        await rot(primary, b"file", 5, old)
        found = await report(primary, b"file", 0)
        assert (await repaired(primary, fra1, found)).result == "repaired"
        job = tending(primary, fra1, disk=disk)
        done = await job.mender.undo(await standing(primary, found))
        await job.close()
        assert done.result == "failed" and "does not give back" in done.text
        assert (await standing(primary, found)).state is state
        assert ((primary.root / "file").read_bytes() == DATA) is (state is State.REPAIRED)
        assert await is_unchanged(primary)


async def test_an_undo_waits_for_a_pass_as_long_as_a_repair_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And says so then, instead of letting a person wait for hours."""
    monkeypatch.setattr(between_passes, "TURN_S", 0.05)
    async with world(tmp_path) as (primary, fra1):
        await rot(primary, b"file", 0)
        found = await report(primary, b"file", 0)
        await repaired(primary, fra1, found)
        job = tending(primary, fra1)
        async with primary.dataset.turn, asyncio.timeout(20):
            assert (await job.mender.undo(await standing(primary, found))).result == "waiting"
        assert (await job.mender.undo(await standing(primary, found))).result == "undone"
        await job.close()


async def test_what_a_person_has_repaired_after_all_is_repaired_by_itself_again(tmp_path: Path) -> None:
    """An undo is to last until the person orders the repair: a bad cell rots the same way each time."""
    async with world(tmp_path, repair="auto") as (primary, fra1):
        found = []
        for _ in range(2):
            await rot(primary, b"file", 0)
            found.append(await report(primary, b"file", 0))
            job = tending(primary, fra1)
            await job.step()
            assert (primary.root / "file").read_bytes() == DATA
            if len(found) == 1:
                assert (await job.mender.undo(await standing(primary, found[0]))).result == "undone"
                assert (await job.repair(await standing(primary, found[0]), dry_run=False)).result == "repaired"
            await job.close()
        assert found[0].id != found[1].id


class SlowDisk(Disk):
    """Takes its time with the dataset's file."""

    def __init__(self) -> None:
        self.began, self.go_on = threading.Event(), threading.Event()

    def sync(self, fd: int) -> None:
        if os.readlink(f"/proc/self/fd/{fd}").endswith("/www/file"):
            self.began.set()
            assert self.go_on.wait(20)
            os.pwrite(fd, DATA[:BLOCK], 0)  # as the rest of a long write does
        super().sync(fd)


async def test_a_repair_that_is_cancelled_while_it_writes_goes_on_to_its_end(tmp_path: Path) -> None:
    """A reload ends the job; the file stays ours, and no pass begins, until the thread that writes has ended. The
    receipt is there."""
    async with world(tmp_path) as (primary, fra1):
        await rot(primary, b"file", 0)
        found, disk = await report(primary, b"file", 0), SlowDisk()
        repairing = asyncio.create_task(repaired(primary, fra1, found, disk))
        await asyncio.to_thread(disk.began.wait, 20)
        repairing.cancel()
        done, _ = await asyncio.wait({repairing}, timeout=0.3)
        try:
            assert not done and primary.dataset.turn.locked()
            with pytest.raises(BlockingIOError):
                os.open(primary.root / "file", os.O_RDWR | os.O_NONBLOCK)
        finally:
            disk.go_on.set()
            await asyncio.wait({repairing})
        assert repairing.cancelled() and not primary.dataset.turn.locked()
        assert (primary.root / "file").read_bytes() == DATA and await is_unchanged(primary)
        assert (await standing(primary, found)).state is State.REPAIRED
        assert await primary.dataset.in_findings(primary.dataset.findings.receipts, found.id)
        assert await primary.dataset.in_ledger(primary.dataset.ledger.get, MENDING) is None


async def test_a_dataset_is_not_closed_under_a_repair_that_writes(tmp_path: Path) -> None:
    """A reload closes it and opens another, whose pass knows nothing of the thread that writes: the repair comes to its
    end first, and none begins behind it."""
    async with world(tmp_path) as (primary, fra1):
        await rot(primary, b"file", 0)
        found, disk = await report(primary, b"file", 0), SlowDisk()
        repairing = asyncio.create_task(repaired(primary, fra1, found, disk))
        await asyncio.to_thread(disk.began.wait, 20)
        closing = asyncio.create_task(primary.dataset.close())
        done, _ = await asyncio.wait({closing}, timeout=0.3)
        try:
            assert not done
        finally:
            disk.go_on.set()
            await closing
        assert (await repairing).result == "repaired"
        assert (await repaired_alone(primary)).result == "refused"
        primary.dataset = Dataset(primary._config, tuple(primary._names), primary.directory / "state")
        await primary.dataset.open()
        await primary.dataset.open_findings()
        assert (await standing(primary, found)).state is State.REPAIRED and await is_unchanged(primary)


async def repaired_alone(primary: Rig) -> Mended:
    """What becomes of a repair that would begin to write now."""
    mender = mend_primary.PrimaryMender(primary.dataset, primary.pool, primary.clock, Disk())

    async def write() -> Mended:
        raise AssertionError("it was begun")

    try:
        return await mender._whole(write)
    except work_patch.Refusal as error:
        return Mended(Remedy.MEND_PRIMARY, "refused", str(error))


async def test_undo_of_a_file_that_was_written_since_is_refused(tmp_path: Path) -> None:
    """Its bytes are somebody's."""
    async with world(tmp_path) as (primary, fra1):
        await rot(primary, b"file", 0)
        found = await report(primary, b"file", 0)
        await repaired(primary, fra1, found)
        (primary.root / "file").write_bytes(b"new")
        job = tending(primary, fra1)
        assert (await job.mender.undo(await standing(primary, found))).result == "refused"
        await job.close()
        assert (primary.root / "file").read_bytes() == b"new"


async def test_ask_waits_for_a_person_and_auto_does_not(tmp_path: Path) -> None:
    """By default nothing is written into the primary's data."""
    async with world(tmp_path) as (primary, fra1):
        await rot(primary, b"file", 0)
        found = await report(primary, b"file", 0)
        job = tending(primary, fra1)
        await job.step()
        await job.close()
        assert (await standing(primary, found)).verdict is Verdict.PRIMARY_ROT
        assert (primary.root / "file").read_bytes() != DATA


async def test_the_breaker_stops_repairs_until_a_person_orders_one(tmp_path: Path) -> None:
    """Two an hour are allowed; the third waits, an order goes through, and then two more are allowed."""
    async with world(tmp_path, repair="auto", repair_limit=2) as (primary, fra1):
        found = []
        for number in range(5):
            await rot(primary, b"file", number * BLOCK)
            found.append(await report(primary, b"file", number))
        job = tending(primary, fra1)
        for _ in range(3):
            await job.step()

        async def states() -> list[State]:
            return sorted([(await standing(primary, one)).state for one in found])

        assert await states() == [State.OPEN] * 3 + [State.REPAIRED] * 2
        findings = primary.dataset.findings
        assert await primary.dataset.in_findings(findings.get, "breaker")
        waiting = [one for one in found if (await standing(primary, one)).state is State.OPEN]
        assert (await job.repair(waiting[0], dry_run=False)).result == "repaired"
        assert not await primary.dataset.in_findings(findings.get, "breaker")
        await job.step()
        assert (await states()).count(State.OPEN) < 2
        await job.close()


async def drifted_entry(primary: Rig, fra1: Replica, kind: str) -> bytes:
    """The path of an entry of this kind whose metadata has drifted since it was replicated."""
    if kind == "symlink" and not is_root():
        pytest.skip("only root may give a symlink away")
    (primary.root / "directory").mkdir()
    (primary.root / "symlink").symlink_to("file")
    await primary.sync(fra1)
    path = b"" if kind == "root" else kind.encode()
    await drift(primary, path)
    return path


@pytest.mark.parametrize("kind", ["file", "directory", "root", "symlink"])
async def test_metadata_that_drifted_is_set_again(tmp_path: Path, kind: str) -> None:
    """Mode, owner and attributes are the recorded ones, nothing counts as changed, and it can be undone."""
    async with world(tmp_path) as (primary, fra1):
        path = await drifted_entry(primary, fra1, kind)
        found = await metadata_finding(primary, path)
        job = tending(primary, fra1)
        await job.step()
        assert (await standing(primary, found)).verdict is Verdict.METADATA_DRIFT
        assert (await job.repair(found, dry_run=False)).result == "repaired"
        assert await is_unchanged(primary, path)
        drifted = stamp_now(primary.root, path)
        assert (await job.mender.undo(await standing(primary, found))).result == "undone"
        assert stamp_now(primary.root, path)[:4] != drifted[:4]
        assert (await job.repair(await standing(primary, found), dry_run=False)).result == "repaired"
        assert stamp_now(primary.root, path)[:4] == drifted[:4]
        await job.close()


class NoQuarantine(Disk):
    """Has no room where bad bytes are kept."""

    def write_durable(self, path: Path, data: bytes, mode: int = 0o600) -> None:
        raise DiskFullError("No space left on device", where=str(path))


@pytest.mark.parametrize("kind", ["file", "directory"])
async def test_metadata_that_cannot_be_kept_is_not_overwritten(tmp_path: Path, kind: str) -> None:
    """A repair that could not be taken back is not made: what says that nothing was written has written nothing."""
    async with world(tmp_path) as (primary, fra1):
        path = await drifted_entry(primary, fra1, kind)
        found, before = await metadata_finding(primary, path), stamp_now(primary.root, path)
        done = await repaired(primary, fra1, found, NoQuarantine())
        assert (done.result, "nothing was written" in done.text) == ("refused", True), done
        assert stamp_now(primary.root, path) == before
        assert (await standing(primary, found)).state is State.OPEN


@pytest.mark.parametrize("kind", ["file", "directory"])
async def test_metadata_of_which_the_system_refuses_a_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The rest is set, which is said, with a receipt; when nothing is left that can be set, nothing is written."""
    async with world(tmp_path) as (primary, fra1):
        path = await drifted_entry(primary, fra1, kind)
        found, mode = await metadata_finding(primary, path), (await known_of(primary, path)).mode

        def refuse(*_: object) -> None:
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "removexattr", refuse)
        done = await repaired(primary, fra1, found)
        assert done.result == "failed" and "user.drifted" in done.text and "nothing was written" not in done.text
        assert stamp_now(primary.root, path).mode == mode and await is_unchanged(primary, path)
        assert (await standing(primary, found)).state is State.OPEN
        again = await repaired(primary, fra1, await standing(primary, found))
        assert (again.result, "nothing was written" in again.text) == ("refused", True)
        receipts = await primary.dataset.in_findings(primary.dataset.findings.receipts, found.id)
        assert [receipt.result for receipt in receipts] == ["failed"]


class BusyDisk(Disk):
    """While it syncs, somebody does something; as soon as a lease lets him, where there is one."""

    def __init__(self, deed: Callable[[], object], opens: Path) -> None:
        self._deed, self._opens = deed, opens
        self._somebody: threading.Thread | None = None

    def sync_file_system(self, fd: int, path: Path) -> None:
        self._meanwhile()
        super().sync_file_system(fd, path)

    def sync_with_times(self, fd: int) -> None:
        self._meanwhile()
        super().sync_with_times(fd)

    def _meanwhile(self) -> None:
        if self._somebody:
            return
        self._somebody = threading.Thread(target=self._deed)
        try:
            os.close(os.open(self._opens, os.O_RDONLY | os.O_NONBLOCK))
        except BlockingIOError:
            self._somebody.start()  # he waits until the file is let go
        else:
            self._somebody.start()
            self._somebody.join()

    def join(self) -> None:
        """Wait until he has done it."""
        assert self._somebody
        self._somebody.join()


async def test_drifted_metadata_of_a_file_whose_directory_is_renamed_stay_found(tmp_path: Path) -> None:
    """Before the pass that records where it is by now, and behind it; the repair finds the file there."""
    async with world(tmp_path) as (primary, fra1):
        (primary.root / "d").mkdir()
        (primary.root / "d" / "f").write_bytes(DATA)
        await primary.sync(fra1)
        await drift(primary, b"d/f")
        known, found = await known_of(primary, b"d/f"), await metadata_finding(primary, b"d/f")
        found = msgspec.structs.replace(found, file=known.file)
        dataset = primary.dataset
        await dataset.in_findings(dataset.findings.update, found)
        (primary.root / "d").rename(primary.root / "e")
        job = tending(primary, fra1)
        outdated = PrimaryFindings(dataset, dataset.quarantine).outdated
        for is_recorded in (False, True):
            if is_recorded:
                await primary.sync(fra1)
            await job.step()
            now = await standing(primary, found)
            assert now.state is State.OPEN, now.events
            assert await dataset.in_ledger(outdated, now) == ""
        assert (await job.repair(now, dry_run=False)).result == "repaired"
        await job.close()
        assert os.stat(primary.root / "e" / "f").st_mode & 0o7777 == known.mode


async def test_a_write_during_a_repair_of_metadata_is_replicated(tmp_path: Path) -> None:
    """What somebody writes while mode and owner are set counts as written, however long that takes."""
    async with world(tmp_path) as (primary, fra1):
        await drift(primary, b"file")
        found = await metadata_finding(primary, b"file")

        def write() -> None:
            with (primary.root / "file").open("r+b") as file:
                file.write(b"NEW!")

        disk = BusyDisk(write, primary.root / "file")
        await repaired(primary, fra1, found, disk)
        disk.join()
        await primary.sync(fra1)
        here = (primary.root / "file").read_bytes()
        assert here[:4] == b"NEW!" and describe_snapshot(fra1.archive)[b"file"]["content"] == here
        assert await is_unchanged(primary) and await is_unchanged(primary, b"link")


@pytest.mark.parametrize("kind", ["directory", "symlink", "root"])
async def test_a_change_during_a_repair_of_metadata_counts_as_one(tmp_path: Path, kind: str) -> None:
    """Nobody can be kept out of what is no file: what was changed meanwhile is told, and recorded by the next pass."""
    async with world(tmp_path) as (primary, fra1):
        path = await drifted_entry(primary, fra1, kind)
        found, place = await metadata_finding(primary, path), primary.root / os.fsdecode(path)
        later_ns = MTIME_NS + 1
        disk = BusyDisk(lambda: os.utime(place, ns=(later_ns, later_ns), follow_symlinks=False), primary.root)
        done = await repaired(primary, fra1, found, disk)
        assert (done.result, "somebody changed it" in done.text) == ("refused", True), done
        assert await primary.dataset.in_ledger(primary.dataset.ledger.get, MENDING) is None
        assert not await is_unchanged(primary, path)
        await primary.sync(fra1)
        assert await is_unchanged(primary, path)
        assert describe_snapshot(fra1.archive)[path]["mtime_ns"] == later_ns


@pytest.mark.parametrize("part", ["block", "metadata"])
async def test_a_repair_leaves_a_time_that_no_book_holds_as_it_is(tmp_path: Path, part: str) -> None:
    """A file of the year 2300 is recorded with a nearer time, and is of the year 2300 behind its repair."""
    late_ns = 10_413_792_000 * 10**9
    async with world(tmp_path) as (primary, fra1):
        os.utime(primary.root / "file", ns=(late_ns, late_ns))
        await primary.sync(fra1)
        if part == "block":
            await rot(primary, b"file", 0)
            found = await report(primary, b"file", 0)
        else:
            await drift(primary, b"file")
            found = await metadata_finding(primary, b"file")
        assert (await repaired(primary, fra1, found)).result == "repaired"
        assert os.stat(primary.root / "file").st_mtime_ns == late_ns
        assert await is_unchanged(primary)


@pytest.mark.parametrize("part", ["block", "metadata"])
async def test_who_is_let_in_by_force_is_not_taken_for_the_repair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """A lease holds for some seconds only: behind them the file may be somebody's, and is read as if it were."""
    monkeypatch.setattr(work_patch, "_PATIENCE", tmp_path / "not told")

    class ForcedDisk(Disk):
        """Takes so long that the kernel lets somebody write who waited."""

        def sync(self, fd: int) -> None:
            super().sync(fd)
            self._let_in(fd)

        def sync_with_times(self, fd: int) -> None:
            super().sync_with_times(fd)
            self._let_in(fd)

        def _let_in(self, fd: int) -> None:
            if os.readlink(f"/proc/self/fd/{fd}") == str(primary.root / "file"):
                with pytest.raises(BlockingIOError):
                    os.open(primary.root / "file", os.O_RDWR | os.O_NONBLOCK)
                os.pwrite(fd, b"NEW!", 3 * BLOCK)

    async with world(tmp_path) as (primary, fra1):
        if part == "block":
            await rot(primary, b"file", 0)
            found = await report(primary, b"file", 0)
        else:
            await drift(primary, b"file")
            found = await metadata_finding(primary, b"file")
        done = await repaired(primary, fra1, found, ForcedDisk())
        assert await primary.dataset.in_ledger(primary.dataset.ledger.get, MENDING) is None
        if part == "block":
            assert (done.result, "let in" in done.text) == ("refused", True), done
        await primary.sync(fra1)
        here = (primary.root / "file").read_bytes()
        assert here[3 * BLOCK : 3 * BLOCK + 4] == b"NEW!"
        assert describe_snapshot(fra1.archive)[b"file"]["content"] == here


async def drift(primary: Rig, path: bytes) -> None:
    """Change metadata under an unchanged identity."""
    place, known = os.path.join(os.fsencode(primary.root), path), await known_of(primary, path)
    if known.kind == 3:
        os.lchown(place, 4711, 4712)
    else:
        os.chmod(place, 0o711)
        os.setxattr(place, "user.drifted", b"1")
    await believe(primary, path)


async def believe(primary: Rig, path: bytes) -> None:
    """Nobody seems to have touched what stands there since it was recorded."""
    known, now = await known_of(primary, path), stamp_now(primary.root, path)
    await primary.dataset.in_ledger(restamp, primary.dataset.ledger, path, stamp_of(known), now)


async def metadata_finding(primary: Rig, path: bytes) -> Divergence:
    """What a survey reports of an entry that drifted."""
    now_ns = primary.clock.now_ns()
    found = Divergence(
        key=f"metadata:{path.hex()}", dataset="www", side=Side.PRIMARY, peer="", part=Part.METADATA,
        found_ns=now_ns, changed_ns=now_ns, what="drifted", path=path, events=(Event(now_ns, "found"),),
    )  # fmt: skip
    await primary.dataset.open_findings()
    return await primary.dataset.in_findings(primary.dataset.findings.report, found)


# setuid bits and capabilities

CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")
FSETID, SETFCAP = 4, 31
"""Numbers of capabilities (capabilities(7))."""
needs_root = pytest.mark.skipif(not is_root(), reason="only root sets capabilities")


async def rotten_program(primary: Rig, fra1: Replica, mode: int, capability: bytes) -> Path:
    """A program of a foreign group that has rotted since it was replicated."""
    program = primary.root / "program"
    program.write_bytes(DATA[:BLOCK])
    os.chown(program, 0, 4711)

    def give_rights() -> None:
        os.chmod(program, mode)
        if capability:
            os.setxattr(program, "security.capability", capability)

    try:
        give_rights()
    except OSError:
        pytest.skip("no capabilities on this file system")
    await primary.sync(fra1)
    await rot(primary, b"program", 0)
    give_rights()
    await believe(primary, b"program")
    return program


def rights_of(path: Path) -> tuple[int, bytes]:
    """Its mode and its capabilities."""
    has_some = "security.capability" in os.listxattr(path)
    return os.stat(path).st_mode & 0o7777, os.getxattr(path, "security.capability") if has_some else b""


def give_up(number: int) -> None:
    """Give up one capability, in this thread alone."""
    libc, header, sets = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, sets) == 0
    sets[3 * (number // 32)] &= ~(1 << number % 32)
    assert libc.capset(header, sets) == 0


@contextmanager
def without(primary: Rig, number: int) -> Iterator[None]:
    """Repairs are made by threads that lack this capability."""
    before = primary.pool
    try:
        with ThreadPoolExecutor(2, initializer=give_up, initargs=(number,)) as primary.pool:
            yield
    finally:
        primary.pool = before


@needs_root
async def test_a_program_keeps_its_rights(tmp_path: Path) -> None:
    """The kernel takes setuid bits and capabilities from a file that is written; they are given back."""
    async with world(tmp_path) as (primary, fra1):
        program = await rotten_program(primary, fra1, 0o4755, CAPABILITY)
        assert (await repaired(primary, fra1, await report(primary, b"program", 0))).result == "repaired"
        assert rights_of(program) == (0o4755, CAPABILITY)


@needs_root
@pytest.mark.parametrize(
    ("mode", "capability", "number", "name"),
    [
        pytest.param(0o4755, b"", FSETID, "CAP_FSETID", id="setuid"),
        pytest.param(0o2755, b"", FSETID, "CAP_FSETID", id="setgid"),
        pytest.param(0o755, CAPABILITY, SETFCAP, "CAP_SETFCAP", id="capabilities"),
    ],
)
async def test_a_program_that_would_lose_its_rights_is_not_written(
    tmp_path: Path, mode: int, capability: bytes, number: int, name: str
) -> None:
    """A daemon that may not give them back says what it lacks and changes nothing; with that it repairs the program."""
    async with world(tmp_path) as (primary, fra1):
        program = await rotten_program(primary, fra1, mode, capability)
        found, before = await report(primary, b"program", 0), program.read_bytes()
        with without(primary, number):
            done = await repaired(primary, fra1, found)
        assert (done.result, name in done.text, "nothing was written" in done.text) == ("refused", True, True), done
        assert (program.read_bytes(), rights_of(program)) == (before, (mode, capability))
        assert await is_unchanged(primary, b"program")
        assert await primary.dataset.in_ledger(primary.dataset.ledger.get, MENDING) is None
        assert (await repaired(primary, fra1, found)).result == "repaired"
        assert (program.read_bytes(), rights_of(program)) == (DATA[:BLOCK], (mode, capability))


@needs_root
@pytest.mark.parametrize("kind", ["program", "directory"])
async def test_drifted_metadata_with_rights_that_cannot_be_set_are_left_alone(tmp_path: Path, kind: str) -> None:
    """A new mode would lose the setgid bit of a foreign group without a word: nothing is set, and it is said why."""
    async with world(tmp_path) as (primary, fra1):
        place = primary.root / kind
        place.write_bytes(DATA) if kind == "program" else place.mkdir()
        os.chown(place, 0, 4711)
        os.chmod(place, 0o2750)
        await primary.sync(fra1)
        os.chmod(place, 0o2711)
        await believe(primary, kind.encode())
        found, before = await metadata_finding(primary, kind.encode()), stamp_now(primary.root, kind.encode())
        with without(primary, FSETID):
            done = await repaired(primary, fra1, found)
        assert (done.result, "CAP_FSETID" in done.text) == ("refused", True), done
        assert stamp_now(primary.root, kind.encode()) == before
        assert (await repaired(primary, fra1, found)).result == "repaired"
        assert os.stat(place).st_mode & 0o7777 == 0o2750


# crashes


class Killed(BaseException):
    """The process is gone."""


class Killer:
    """Kills before or after the n-th step that a repair takes towards a disk; pwrite may be cut short."""

    def __init__(self, at: int, after: bool) -> None:
        self.left, self.after, self.fired = at, after, False

    def step(self, work: Callable[[], object]) -> object:
        """One step."""
        self.left -= 1
        if self.left >= 0 or self.fired:
            return work()
        self.fired = True
        if self.after:
            work()
        raise Killed


class KilledDisk(Disk):
    """A disk whose steps are counted."""

    def __init__(self, killer: Killer) -> None:
        self._killer = killer

    def pwrite(self, fd: int, data: Buffer, offset: int) -> int:
        half = len(data) // 2
        if half > 4096:  # in two steps: what is on the disk after the first is torn
            return self._killer.step(lambda: super(KilledDisk, self).pwrite(fd, data[:half], offset))  # type: ignore[return-value]
        return self._killer.step(lambda: super(KilledDisk, self).pwrite(fd, data, offset))  # type: ignore[return-value]

    def sync(self, fd: int) -> None:
        self._killer.step(lambda: super(KilledDisk, self).sync(fd))

    def sync_with_times(self, fd: int) -> None:
        self._killer.step(lambda: super(KilledDisk, self).sync_with_times(fd))


@pytest.mark.parametrize("after", [False, True])
async def test_a_kill_at_any_step_lets_nothing_be_believed(tmp_path: Path, after: bool) -> None:
    """Either the good bytes are there or the finding is open; other rot in the same file never becomes the record; and
    the repair goes through when it is made again."""
    async with world(tmp_path) as (primary, fra1):
        await rot(primary, b"file", 4 * BLOCK)  # nobody knows of this one
        for at in range(100):
            await rot(primary, b"file", 2 * BLOCK)
            found = await report(primary, b"file", 2)
            killer = Killer(at, after)
            await killed_repair(primary, fra1, found, killer)
            await primary.reopen()
            status = await primary.sync(fra1)
            assert status.pass_ok, status.troubles
            here = (primary.root / "file").read_bytes()
            assert here[: 2 * BLOCK] == DATA[: 2 * BLOCK] and len(here) == len(DATA)
            assert here[4 * BLOCK : 5 * BLOCK] != DATA[4 * BLOCK : 5 * BLOCK]
            assert describe_snapshot(fra1.archive)[b"file"]["content"] == DATA, "rot was sent"
            assert await is_unchanged(primary) and await is_unchanged(primary, b"link")
            assert os.stat(primary.root / "file").st_mtime_ns == MTIME_NS
            await primary.dataset.open_findings()
            if here[2 * BLOCK : 3 * BLOCK] != DATA[2 * BLOCK : 3 * BLOCK]:
                assert (await standing(primary, found)).state is State.OPEN
                assert (await repaired(primary, fra1, found)).result == "repaired"
            job = tending(primary, fra1)
            await job.step()
            await job.close()
            assert (await standing(primary, found)).state is not State.OPEN
            assert (primary.root / "file").read_bytes()[: 4 * BLOCK] == DATA[: 4 * BLOCK]
            if not killer.fired:
                assert at > 10
                return
        raise AssertionError("a repair has more steps than that")


@pytest.mark.parametrize("at", [5, 6, 8])
async def test_unknown_rot_in_a_large_file_is_not_believed_behind_a_start_of_the_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """A file too large to be read before its repair: nobody was let in before the host fell, so what moved its times
    was the repair, whether half of it is written or all."""
    boot = tmp_path / "boot_id"
    boot.write_text("first\n")
    monkeypatch.setattr(interrupted, "BOOT", boot)
    monkeypatch.setattr(interrupted, "LOOKED_AT_BYTES", 0)
    async with world(tmp_path) as (primary, fra1):
        await rot(primary, b"file", 4 * BLOCK)  # nobody knows of this one
        await rot(primary, b"file", 2 * BLOCK)
        found = await report(primary, b"file", 2)
        await killed_repair(primary, fra1, found, Killer(at, True))
        assert await primary.dataset.in_ledger(primary.dataset.ledger.get, MENDING) is not None
        boot.write_text("second\n")
        await primary.reopen()
        assert (await primary.sync(fra1)).pass_ok
        assert describe_snapshot(fra1.archive)[b"file"]["content"] == DATA, "rot was sent"
        assert await is_unchanged(primary) and os.stat(primary.root / "file").st_mtime_ns == MTIME_NS
        assert await primary.dataset.in_ledger(primary.dataset.ledger.get, MENDING) is None


async def killed_repair(primary: Rig, fra1: Replica, found: Divergence, killer: Killer) -> None:
    """A repair whose every durable step may be its last."""
    dataset = primary.dataset
    durably, in_findings = dataset.durably, dataset.in_findings
    job = tending(primary, fra1, disk=KilledDisk(killer))

    async def counted_durably(work, *args, **kwargs):  # type: ignore[no-untyped-def]
        if killer.left <= 0 and not killer.fired and not killer.after:
            killer.step(lambda: None)
        result = await durably(work, *args, **kwargs)
        killer.step(lambda: None)
        return result

    async def counted_findings(work, *args, **kwargs):  # type: ignore[no-untyped-def]
        result = await in_findings(work, *args, **kwargs)
        if getattr(work, "__name__", "") in ("_write_down", "update"):
            killer.step(lambda: None)
        return result

    dataset.durably, dataset.in_findings = counted_durably, counted_findings  # type: ignore[method-assign]
    try:
        await job.repair(found, dry_run=False)
    except Killed:
        pass
    finally:
        dataset.durably, dataset.in_findings = durably, in_findings  # type: ignore[method-assign]
        await job.close()


async def test_what_somebody_wrote_after_a_crash_is_not_taken_for_ours(tmp_path: Path) -> None:
    """A file that was written later than a repair could have is read as a changed file, and replicated."""
    async with world(tmp_path) as (primary, fra1):
        await rot(primary, b"file", 0)
        found = await report(primary, b"file", 0)
        await killed_repair(primary, fra1, found, Killer(8, True))
        assert await primary.dataset.in_ledger(primary.dataset.ledger.get, MENDING) is not None
        await primary.reopen()
        later_ns = primary.clock.now_ns() + 60 * 10**9
        (primary.root / "file").write_bytes(b"somebody's")
        os.utime(primary.root / "file", ns=(later_ns, later_ns))
        await primary.sync(fra1)
        assert describe_snapshot(fra1.archive)[b"file"]["content"] == b"somebody's"
        assert await primary.dataset.in_ledger(primary.dataset.ledger.get, MENDING) is None


@pytest.mark.parametrize(
    ("where", "looked_at_bytes"),
    [(9, len(DATA)), (2 * BLOCK + 9, len(DATA)), (5 * BLOCK + 5, len(DATA)), (5 * BLOCK + 5, 0)],
)
@pytest.mark.parametrize("at", [5, 6, 8])
async def test_what_somebody_wrote_right_after_a_crash_is_not_taken_for_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: int, looked_at_bytes: int, at: int
) -> None:
    """Whoever waited for the file writes as soon as the daemon is dead, inside the block or outside, whether the repair
    has written nothing, half of it or all, and however large the file is: that is read as a changed file, and
    replicated."""
    monkeypatch.setattr(interrupted, "LOOKED_AT_BYTES", looked_at_bytes)
    async with world(tmp_path) as (primary, fra1):
        await rot(primary, b"file", 2 * BLOCK)
        found = await report(primary, b"file", 2)
        await killed_repair(primary, fra1, found, Killer(at, True))
        raw = await primary.dataset.in_ledger(primary.dataset.ledger.get, MENDING)
        soon_ns = msgspec.msgpack.decode(raw, type=Intent).at_ns + 3 * 10**8
        await primary.reopen()
        with (primary.root / "file").open("r+b") as file:
            os.pwrite(file.fileno(), b"somebody's", where)
        os.utime(primary.root / "file", ns=(soon_ns, soon_ns))
        here = (primary.root / "file").read_bytes()
        assert (await primary.sync(fra1)).pass_ok
        assert describe_snapshot(fra1.archive)[b"file"]["content"] == here
        assert (primary.root / "file").read_bytes() == here and await is_unchanged(primary)
        assert os.stat(primary.root / "file").st_mtime_ns == soon_ns
        assert await primary.dataset.in_ledger(primary.dataset.ledger.get, MENDING) is None


async def test_an_intent_of_an_older_version_is_settled_by_what_the_file_holds(tmp_path: Path) -> None:
    """It does not say which block was written: times are put back where all that differs was found before."""
    async with world(tmp_path) as (primary, fra1):
        await rot(primary, b"file", 2 * BLOCK)
        await report(primary, b"file", 2)
        known, now_ns, ledger = await known_of(primary, b"file"), primary.clock.now_ns(), primary.dataset.ledger
        older = {"path": b"file", "stamp": tuple(stamp_of(known)), "atime_ns": ATIME_NS, "at_ns": now_ns}
        for is_written in (False, True):
            seen = checksum((primary.root / "file").read_bytes()[2 * BLOCK : 3 * BLOCK])
            (found,) = await primary.dataset.in_findings(primary.dataset.findings.listed)
            noted = msgspec.structs.replace(found, seen=seen)
            await primary.dataset.in_findings(primary.dataset.findings.update, noted)
            older["stamp"] = tuple(stamp_of(await known_of(primary, b"file")))
            await primary.dataset.durably(ledger.put, MENDING, msgspec.msgpack.encode(older))
            if is_written:
                with (primary.root / "file").open("r+b") as file:
                    file.write(b"somebody's")
            os.utime(primary.root / "file", ns=(now_ns, now_ns))
            assert (await primary.sync(fra1)).pass_ok
            assert await is_unchanged(primary)
            assert os.stat(primary.root / "file").st_mtime_ns == (now_ns if is_written else MTIME_NS)


async def test_a_directory_written_after_a_crash_holds_nothing_up(tmp_path: Path) -> None:
    """A repair of its metadata that was cut short leaves its times alone: new ones are somebody's, however soon."""
    async with world(tmp_path) as (primary, fra1):
        (primary.root / "directory").mkdir()
        await primary.sync(fra1)
        ledger, stamp = primary.dataset.ledger, stamp_of(await known_of(primary, b"directory"))
        now_ns = primary.clock.now_ns()
        intent = msgspec.msgpack.encode(Intent(b"directory", tuple(stamp), 0, now_ns))
        await primary.dataset.durably(ledger.put, MENDING, intent)
        os.utime(primary.root / "directory", ns=(now_ns, now_ns))
        assert (await primary.sync(fra1)).pass_ok
        assert await is_unchanged(primary, b"directory")
        assert await primary.dataset.in_ledger(ledger.get, MENDING) is None


async def test_a_repair_waits_for_the_pass_under_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a while; then it says so, and nothing was written."""
    monkeypatch.setattr(between_passes, "TURN_S", 0.05)
    async with world(tmp_path) as (primary, fra1):
        await rot(primary, b"file", 0)
        found = await report(primary, b"file", 0)
        async with primary.dataset.turn:
            assert (await repaired(primary, fra1, found)).result == "waiting"
        assert (await repaired(primary, fra1, found)).result == "repaired"


async def test_a_file_that_moved_is_repaired_as_soon_as_that_is_recorded(tmp_path: Path) -> None:
    """What stays as it is is tried again more and more seldom; a pass may have taken away what stood in the way."""
    async with world(tmp_path, repair="auto") as (primary, fra1):
        (primary.root / "d").mkdir()
        (primary.root / "d" / "f").write_bytes(DATA)
        (primary.root / "e").mkdir()
        assert (await primary.sync(fra1)).pass_ok
        await rot(primary, b"d/f", 0)
        found = await report(primary, b"d/f", 0)
        job, target = tending(primary, fra1), mend_primary._target

        def and_moves(ledger: object, found: Divergence) -> object:
            if (primary.root / "d").exists():
                (primary.root / "d").rename(primary.root / "e" / "d")
            return target(ledger, found)  # type: ignore[arg-type]

        with pytest.MonkeyPatch.context() as moving:
            moving.setattr(mend_primary, "_target", and_moves)
            await job.step()
        refused = await standing(primary, found)
        assert "the next pass looks at it" in refused.events[-1].what
        for _ in range(3):
            await job.step()
        assert await standing(primary, found) == refused
        assert (await primary.sync(fra1)).pass_ok
        await job.step()
        assert (await standing(primary, found)).state is State.REPAIRED
        assert (primary.root / "e" / "d" / "f").read_bytes() == DATA
        await job.close()


@pytest.mark.parametrize("is_killed", [False, True])
async def test_a_file_whose_directory_was_renamed_is_repaired_where_it_is(tmp_path: Path, is_killed: bool) -> None:
    """Before a pass records where that is, and so that the pass takes it for no write, also behind a crash and another
    rename."""
    async with world(tmp_path) as (primary, fra1):
        (primary.root / "d").mkdir()
        (primary.root / "d" / "f").write_bytes(OTHER)
        await primary.sync(fra1)
        await rot(primary, b"d/f", 4 * BLOCK)  # nobody knows of this one
        await rot(primary, b"d/f", 0)
        found = await report(primary, b"d/f", 0)
        (primary.root / "d").rename(primary.root / "e")
        if is_killed:
            killer = Killer(8, after=True)
            await killed_repair(primary, fra1, found, killer)
            assert killer.fired and await primary.dataset.in_ledger(primary.dataset.ledger.get, MENDING)
            await primary.reopen()
            (primary.root / "e").rename(primary.root / "g")
        else:
            assert (await repaired(primary, fra1, found)).result == "repaired"
        place = next(primary.root.glob("?/f"))
        here = place.read_bytes()
        assert (here[:BLOCK], here[4 * BLOCK :] != OTHER[4 * BLOCK :]) == (OTHER[:BLOCK], True)
        assert (await primary.sync(fra1)).pass_ok
        path = os.fsencode(place.relative_to(primary.root))
        assert await is_unchanged(primary, path)
        assert describe_snapshot(fra1.archive)[path]["content"] == OTHER, "rot was sent"


async def test_repairs_in_a_row_wait_for_one_pass(tmp_path: Path) -> None:
    """Where one pass follows the other, each of them would wait for another one, and the last for hours."""
    async with world(tmp_path, repair="auto") as (primary, fra1):
        found = []
        for number in range(3):
            await rot(primary, b"file", number * BLOCK)
            found.append(await report(primary, b"file", number))
        job, turn = tending(primary, fra1), primary.dataset.turn
        async with turn:
            settling = asyncio.create_task(job.step())
            await wait_for(lambda: bool(turn._waiters))
            next_pass = asyncio.create_task(turn.acquire())
            await asyncio.sleep(0)
        await next_pass
        assert [(await standing(primary, one)).state for one in found] == [State.REPAIRED] * 3
        turn.release()
        await settling
        await job.close()


# a real disk


@pytest.mark.skipif(not is_root() or not shutil.which("mkfs.ext4"), reason="needs root and mkfs.ext4")
async def test_rot_below_a_real_file_system_is_found_and_repaired(tmp_path: Path) -> None:
    """A bit flipped in the image of a mounted ext4: size, mtime and ctime know nothing of it, the medium gives it, and
    after the repair the medium gives the recorded byte again."""
    image, root = tmp_path / "image", tmp_path / "mounted"
    root.mkdir()
    with image.open("wb") as file:
        file.truncate(64 * 1024 * 1024)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    mounted = subprocess.run(["mount", "-o", "loop", image, root], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no loop devices: {mounted.stderr!r}")
    try:
        (root / "file").write_bytes(DATA)
        async with rig(tmp_path, root) as primary, replica(tmp_path / "store") as fra1:
            await primary.sync(fra1)
            await asyncio.to_thread(flip_below, image, root, DATA[BLOCK : BLOCK + 512])
            assert await is_unchanged(primary)
            found = await report(primary, b"file", 1)
            done = await repaired(primary, fra1, found)
            assert done.result == "repaired", done
            assert await is_unchanged(primary)
            assert (await standing(primary, found)).bits == 1
            await asyncio.to_thread(remount, image, root)
            assert (root / "file").read_bytes() == DATA
    finally:
        subprocess.run(["umount", root], check=False)


def remount(image: Path, root: Path, between: Callable[[], None] = lambda: None) -> None:
    subprocess.run(["umount", root], check=True)
    between()
    subprocess.run(["mount", "-o", "loop", image, root], check=True)


def flip_below(image: Path, root: Path, needle: bytes) -> None:
    """Flip one bit of the first place in the image that holds these bytes, while nothing of it is cached."""

    def deed() -> None:
        place = image.read_bytes().find(needle)
        assert place > 0
        flip(image, place + 100, 3)

    remount(image, root, deed)
