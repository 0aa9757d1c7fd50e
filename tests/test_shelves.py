"""Shelves: what is left of a node's stores when they are closed, and what is said of their damage."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from kit_link import open_writing, wait_for
from kit_rig import replica, rig
from kit_store import Primary, directory_put, open_archive, put_files, record_frame
from replicad.config import ListenConfig
from replicad.db.findings import Findings
from replicad.link.messages import Acked, Credit, Record, Seal
from replicad.model.errors import LockedError, ReplicadError
from replicad.model.snapshot import NO_PARENT, Commit, encode_commit, records_digest
from replicad.store.format import FrameType, encode_plain, split_frames
from replicad.system.clock import Clock
from replicad.system.disk import Disk, Lock
from replicad.work.archive import Archive
from replicad.work.shelves import Shelves


async def test_a_store_that_was_closed_is_not_opened_again(tmp_path: Path) -> None:
    """Whoever works on a store by order of a person while its side of the daemon is replaced meets an error in words; a
    store that he opened anew would stay locked against the side that takes its place."""
    archive = open_archive(tmp_path / "ams1" / "www")
    put_files(Primary(archive), 1, {b"a": b"1"})
    archive.close()
    appeared: list[tuple[str, str]] = []
    shelves = Shelves(
        ListenConfig(tmp_path, reserve_bytes=0), lambda: [], Disk(), Clock(), appeared=lambda *key: appeared.append(key)
    )
    await shelves.open_all()
    began, go_on = threading.Event(), threading.Event()

    def long_step(*_: object) -> str:
        began.set()
        go_on.wait(30)
        return "done"

    under_way = asyncio.create_task(shelves.in_store("ams1", "www", long_step))
    await asyncio.to_thread(began.wait, 30)
    closing = asyncio.create_task(shelves.close())
    await asyncio.sleep(0.05)
    go_on.set()
    await closing
    assert await under_way == "done", "a step that has begun comes to its end"
    for again in (
        shelves.in_store("ams1", "www", lambda archive, findings: None),
        shelves.in_findings("ams1", "www", lambda findings: None),
        shelves.surface("ams1", "www"),
    ):
        with pytest.raises(ReplicadError, match="was closed meanwhile"):
            await again
    Lock(tmp_path / "ams1" / "www" / "lock").release()
    assert appeared == [("ams1", "www")] and shelves.statuses == []


async def test_a_start_waits_for_whoever_has_a_store_for_a_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restore that reads a store without a daemon has it while it catches the catalog up; a daemon that is started in
    that moment must not end. Somebody who goes on having it is at work there, and the start says who."""
    directory = tmp_path / "ams1" / "www"
    open_archive(directory).close()
    shelves = Shelves(ListenConfig(tmp_path, reserve_bytes=0), lambda: [], Disk(), Clock(), appeared=lambda *_: None)
    lock = Lock(directory / "lock")
    starting = asyncio.create_task(shelves.open_all())
    try:
        while [line.state for line in shelves.statuses] != ["closed"]:
            await asyncio.sleep(0.01)
        assert not starting.done()
    finally:
        lock.release()
    await starting
    assert [line.state for line in shelves.statuses] == ["idle"]
    await shelves.close()

    monkeypatch.setattr("replicad.work.shelves.LOCK_LOOK_S", 0.001)
    again = Shelves(ListenConfig(tmp_path, reserve_bytes=0), lambda: [], Disk(), Clock(), appeared=lambda *_: None)
    lock = Lock(directory / "lock")
    with pytest.raises(LockedError, match=f"process {os.getpid()} already works here"):
        await again.open_all()
    await again.close()
    lock.release()


class Gate:
    """Holds up whoever opens the archive of a dataset."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, dataset: str) -> None:
        self.began, self.go_on = threading.Event(), threading.Event()
        real = Archive.open

        def slowly(directory: Path, **how: Any) -> Archive:
            if directory.name == dataset:
                self.began.set()
                self.go_on.wait(30)
            return real(directory, **how)

        monkeypatch.setattr(Archive, "open", slowly)


async def test_a_store_that_is_being_opened_holds_up_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose whole record is read anew takes its time; the sessions of all others begin as ever."""
    open_archive(tmp_path / "ams1" / "www").close()
    shelves = Shelves(ListenConfig(tmp_path, reserve_bytes=0), lambda: [], Disk(), Clock())
    await shelves.open_all()
    gate = Gate(monkeypatch, "db")
    opening = asyncio.create_task(shelves.surface("ams1", "db"))
    await asyncio.to_thread(gate.began.wait, 30)
    try:
        await asyncio.wait_for(shelves.surface("ams1", "www"), 10)
    finally:
        gate.go_on.set()
    await opening
    await shelves.close()


async def test_a_store_whose_opening_was_given_up_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever wanted it was ended meanwhile, as by a reload; it is not left locked by nobody."""
    shelves = Shelves(ListenConfig(tmp_path, reserve_bytes=0), lambda: [], Disk(), Clock())
    gate = Gate(monkeypatch, "www")
    opening = asyncio.create_task(shelves.surface("ams1", "www"))
    await asyncio.to_thread(gate.began.wait, 30)
    opening.cancel()
    gate.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await opening
    await shelves.surface("ams1", "www")
    await shelves.close()
    Lock(tmp_path / "ams1" / "www" / "lock").release()


async def test_damage_that_was_mended_is_not_told_for_ever(tmp_path: Path) -> None:
    """How many frames are damaged follows what the catalog says, with each snapshot and not with the next restart."""
    root = tmp_path / "www"
    root.mkdir()
    (root / "a").write_text("a")
    async with rig(tmp_path, root) as primary, replica(tmp_path / "store") as fra1:
        await primary.sync(fra1)

        def damage(archive: Archive, findings: Findings) -> None:
            with archive.upkeep() as (_, catalog):
                catalog.add_damage(1, 4096, 100, "bad checksum")

        def mend(archive: Archive, findings: Findings) -> None:
            with archive.upkeep() as (_, catalog):
                catalog.drop_damage(1, 4096, 100)

        for number, (change, damaged) in enumerate(((damage, 1), (mend, 0))):
            await fra1._shelves.in_store("ams1", "www", change)
            (root / "a").write_text(str(number))
            await primary.sync(fra1)
            async with asyncio.timeout(30):
                while fra1.status.damaged != damaged:
                    await asyncio.sleep(0.01)


@pytest.mark.parametrize("end", ["a seal", "the session's end"])
async def test_what_waits_for_a_seal_is_done_behind_it(tmp_path: Path, end: str) -> None:
    """Before anything of the next pass is taken in; of a session that does not seal, at its end."""
    settled: list[bool] = []
    async with replica(tmp_path / "store") as fra1:
        channel = await open_writing(await fra1.dial())
        frame = record_frame([directory_put(b"")])
        await channel.send(Record(frame))
        assert isinstance(await channel.receive(), Credit)

        def wait(archive: Archive, _: Findings) -> None:
            assert not archive.is_settled
            archive.at_seal(lambda: settled.append(archive.is_settled))

        await fra1._shelves.in_store("ams1", "www", wait)
        assert not settled
        if end == "a seal":
            records = [split_frames(frame)[0].id]
            commit = Commit(1, 1, True, NO_PARENT, 1, records_digest(records), 0, 0)
            await channel.send(Seal(encode_plain(FrameType.COMMIT, encode_commit(commit))))
            await channel.send(Record(record_frame([directory_put(b"next")])))
            assert isinstance(await channel.receive(), Acked)
            assert isinstance(await channel.receive(), Credit)
            assert settled == [True]
        await channel.close()
        await wait_for(lambda: settled == [True])
