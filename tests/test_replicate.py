"""Replication of a real tree into a real store, over a link in memory: what arrives, what travels, what never does."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import shutil
import subprocess
import threading
from collections.abc import Awaitable, Callable, Sequence
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest

from kit_faults import needs_root, small_disk
from kit_restore import restore
from kit_rig import Replica, Rig, copied, describe_snapshot, differences, replica, rig, snapshots
from kit_scrub_primary import ALL, scrubbed
from kit_tend import stamp_now
from kit_tree import build_tree, is_root
from replicad.db.audit import audit
from replicad.db.database import PAGE_BYTES
from replicad.db.ledger import EntryRow, Ledger, put_of, stamp_of
from replicad.db.touched import restamp
from replicad.db.unnamed import KEPT_WALKS
from replicad.link.channel import Channel
from replicad.model.entry import INLINE_BLOCKS, MAX_XATTRS_BYTES, Kind, Meta, Put, xattrs_length
from replicad.model.errors import BookDamagedError, HeldError, LinkError, ReplicadError
from replicad.source import read as source_read
from replicad.source.reread import Ask, reread
from replicad.source.root import Root
from replicad.status import DatasetStatus, NodeStatus, findings
from replicad.system.clock import Clock
from replicad.work import archive as work_archive
from replicad.work import copy as work_copy
from replicad.work import known as work_known
from replicad.work import replicate as work_replicate
from replicad.work import scout as work_scout
from replicad.work import shipping as work_shipping
from replicad.work.account_record import account_of_ledger
from replicad.work.half_read import half_read
from replicad.work.record import given
from replicad.work.shipping import Unit, load_nothing
from replicad.work.turnstile import enter_to_read, try_exclusive

MIB = 1024 * 1024


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "www"
    path.mkdir()
    return path


def sent_during(made: Rig, before: int) -> int:
    return made.status["fra1"].sent_bytes - before


def refuse_attributes(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Have the system list extended attributes and give none."""

    def getxattr(of: object, name: str, **options: bool) -> bytes:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "getxattr", getxattr)


async def test_every_entry_type_and_all_metadata_arrive(tmp_path: Path, root: Path) -> None:
    """A tree with every kind of entry, odd names, links, holes and attributes is on the replica exactly as it is."""
    build_tree(root)
    async with rig(tmp_path, root) as primary, replica(tmp_path / "store") as fra1:
        status = await primary.sync(fra1)
        assert (status.unread, [t.path for t in status.troubles]) == (0, [])
        assert differences(describe_snapshot(fra1.archive), copied(root)) == []


@needs_root
async def test_as_many_attributes_as_a_record_holds_come_back_and_more_are_told(tmp_path: Path) -> None:
    """Every entry at the limit is restored to the byte. Of one beyond it the rest is told in the pass that leaves it
    out; neither a second replica nor a restore over the live file, which keeps it, is held up."""
    with small_disk(tmp_path / "disk", 64) as disk:
        root = disk / "www"
        (root / "directory").mkdir(parents=True)
        (root / "link").symlink_to("x" * 4095)
        (root / "full").write_text("full")
        (root / "over").write_text("over")
        last = MAX_XATTRS_BYTES - xattrs_length([(b"user.%02d" % n, bytes(60_000)) for n in range(17)])
        for entry in ("directory", "full", "over"):
            for n in range(17):
                os.setxattr(root / entry, f"user.{n:02d}", bytes([n]) * 60_000)
            os.setxattr(root / entry, "user.17", bytes(last - xattrs_length([(b"user.17", b"")])))
        os.setxattr(root / "over", "user.18", b"one more")
        async with (
            rig(tmp_path, root, ("fra1", "par1")) as primary,
            replica(tmp_path / "store1") as fra1,
            replica(tmp_path / "store2") as par1,
        ):
            line = await primary.sync(fra1)
            assert line.unread == 1 and "extended attribute user.18 is left out" in line.troubles[0].reason
            assert (await primary.sync(fra1)).unread == 0
            await primary.sync(par1, "par1")
            assert describe_snapshot(par1.archive) == describe_snapshot(fra1.archive)
            here = copied(root)
            here[b"over"]["xattrs"].pop(b"user.18")
            await restore(fra1.archive, disk / "back")
            assert differences(copied(disk / "back"), here) == []
            os.utime(root / "full")
            (root / "over").chmod(0o600)
            await restore(fra1.archive, root)
            assert (root / "over").stat().st_mode & 0o777 == 0o644
            assert os.getxattr(root / "over", "user.18") == b"one more"


async def test_what_a_ledger_has_beyond_the_limit_is_left_out_and_told(tmp_path: Path, root: Path) -> None:
    """An entry that was recorded with more attributes than a replica takes in now does not hold up a new replica."""
    (root / "a").mkdir()
    async with rig(tmp_path, root, ("fra1", "par1")) as primary, replica(tmp_path / "store1") as fra1:
        await primary.sync(fra1)
        ledger = primary.dataset.ledger

        def record_more() -> None:
            known = ledger.known(b"a")
            assert known
            xattrs = tuple((b"user.%02d" % n, bytes(60_000)) for n in range(20))
            meta = Meta(known.mode, known.uid, known.gid, known.mtime_ns, xattrs)
            ledger.record_entries([EntryRow(Put(b"a", Kind.DIRECTORY, meta), stamp_of(known), known.seq)])

        await primary.dataset.in_ledger(record_more)
        async with replica(tmp_path / "store2") as par1:
            line = await primary.sync(par1, "par1")
            assert line.unread == 1 and "user.17 and 2 more are left out" in line.troubles[0].reason
            assert (await primary.sync(par1, "par1")).pass_ok
            assert len(describe_snapshot(par1.archive)[b"a"]["xattrs"]) == 17


async def test_an_unchanged_tree_sends_nothing(tmp_path: Path, root: Path) -> None:
    """The second pass finds nothing and makes no snapshot, since the first is fresh and complete."""
    build_tree(root)
    async with rig(tmp_path, root) as primary, replica(tmp_path / "store") as fra1:
        before = (await primary.sync(fra1)).sent_bytes
        status = await primary.sync(fra1)
        assert sent_during(primary, before) == 0
        assert status.last_snapshot == 1
        assert status.pass_ok


async def test_only_the_changed_blocks_of_a_big_file_travel(tmp_path: Path, root: Path) -> None:
    """Three changed places in 8 MiB cost three blocks, and the old snapshot still shows the old bytes."""
    (root / "big").write_bytes(random.Random(1).randbytes(8 * MIB))
    old = copied(root)
    async with rig(tmp_path, root) as primary, replica(tmp_path / "store") as fra1:
        before = (await primary.sync(fra1)).sent_bytes
        with (root / "big").open("r+b") as file:
            for place in (0, 3 * MIB + 5, 8 * MIB - 1):
                file.seek(place)
                file.write(b"!")
        await primary.sync(fra1)
        assert 3 * 65536 < sent_during(primary, before) < 4 * 65536
        assert differences(describe_snapshot(fra1.archive, 1), old) == []
        assert differences(describe_snapshot(fra1.archive, 2), copied(root)) == []


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 65537, MIB, MIB + 1, 5 * MIB + 3])
async def test_a_file_that_grows_and_shrinks_is_right_at_every_snapshot(tmp_path: Path, root: Path, size: int) -> None:
    """Whatever sizes a file passes through, zeroed stretches included, each snapshot shows its own."""
    source = random.Random(size)
    path = root / "f"
    async with rig(tmp_path, root) as primary, replica(tmp_path / "store") as fra1:
        trees = []
        for step, now in enumerate((size, 3 * size, size // 2, 2 * MIB, 2 * MIB, 100)):
            content = bytearray(source.randbytes(now))
            if step == 4:
                content[65536 : 65536 * 9] = bytes(65536 * 8)
            with path.open("r+b" if step else "w+b") as file:
                file.write(content)
                file.truncate(now)
            await primary.sync(fra1)
            trees.append(copied(root))
        for number, tree in enumerate(trees, 1):
            assert differences(describe_snapshot(fra1.archive, number), tree) == []


async def test_renaming_a_directory_costs_no_data(tmp_path: Path, root: Path) -> None:
    """A renamed directory is told in names alone; what was under the old name is gone from the new snapshot only."""
    source = random.Random(2)
    (root / "d").mkdir()
    for number in range(300):
        (root / "d" / f"{number}").write_bytes(source.randbytes(20_000))
    old = copied(root)
    async with rig(tmp_path, root) as primary, replica(tmp_path / "store") as fra1:
        before = (await primary.sync(fra1)).sent_bytes
        (root / "d").rename(root / "e")
        await primary.sync(fra1)
        assert sent_during(primary, before) < 60_000
        assert differences(describe_snapshot(fra1.archive, 1), old) == []
        assert differences(describe_snapshot(fra1.archive), copied(root)) == []


async def test_a_new_directory_that_is_renamed_during_the_pass_leaves_nothing_behind(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files below it were read under its old name before it could be described: the old name is in no snapshot."""
    describe, read_small, was_read = work_copy.describe, work_scout.read_small, threading.Event()

    def reading(*args: object, **kwargs: object) -> object:
        found = read_small(*args, **kwargs)  # type: ignore[arg-type]
        was_read.set()
        return found

    def describing(*args: object, **kwargs: object) -> object:
        if was_read.wait(30) and (root / "old").exists():
            (root / "old").rename(root / "new")
        return describe(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(work_scout, "read_small", reading)
    monkeypatch.setattr(work_copy, "describe", describing)
    (root / "old" / "below").mkdir(parents=True)
    (root / "old" / "below" / "file").write_bytes(b"small")
    async with rig(tmp_path, root) as primary, replica(tmp_path / "store") as fra1:
        await primary.sync(fra1)
        assert (root / "new" / "below" / "file").exists()
        await primary.sync(fra1)
        assert differences(describe_snapshot(fra1.archive), copied(root)) == []


async def test_a_copied_or_renamed_file_costs_no_data(tmp_path: Path, root: Path) -> None:
    """Blocks that the replica has under any name are not sent again."""
    data = random.Random(3).randbytes(3 * MIB)
    (root / "a").write_bytes(data)
    async with rig(tmp_path, root) as primary, replica(tmp_path / "store") as fra1:
        before = (await primary.sync(fra1)).sent_bytes
        (root / "a").rename(root / "b")
        (root / "copy").write_bytes(data)
        await primary.sync(fra1)
        assert sent_during(primary, before) < 20_000
        assert differences(describe_snapshot(fra1.archive), copied(root)) == []


async def test_directories_that_change_places_cost_no_data(tmp_path: Path, root: Path) -> None:
    """Every file of each replaces one that is recorded there and is to be found elsewhere: whole, renamed round, with
    links across them, and again; nothing is sent anew and nothing is found to differ."""
    source, names = random.Random(5), ("one", "two", "three")
    for name in names:
        (root / name).mkdir()
        for number in range(40):
            (root / name / f"{number}").write_bytes(source.randbytes(source.randrange(1, 90_000)))
    os.link(root / "one" / "1", root / "two" / "linked")
    async with rig(tmp_path, root, max_change=1.0) as primary, replica(tmp_path / "store") as fra1:
        before = (await primary.sync(fra1)).sent_bytes
        for _ in range(3):
            (root / "one").rename(root / "aside")
            (root / "two").rename(root / "one")
            (root / "three").rename(root / "two")
            (root / "aside").rename(root / "three")
            assert (await primary.sync(fra1)).pass_ok
            assert differences(describe_snapshot(fra1.archive), copied(root)) == []
        assert sent_during(primary, before) < 150_000
        assert audit(primary.dataset.ledger.path, lambda: False) == []


async def test_hard_links_stay_links_however_they_come_and_go(tmp_path: Path, root: Path) -> None:
    """Links made, broken, rewritten in place and removed in later passes are links, or not, in each snapshot."""
    big = random.Random(4).randbytes(2 * MIB)
    (root / "small").write_bytes(b"one")
    (root / "large").write_bytes(big)
    async with rig(tmp_path, root) as primary, replica(tmp_path / "store") as fra1:
        trees = []

        async def keep() -> None:
            await primary.sync(fra1)
            trees.append(copied(root))

        await keep()
        os.link(root / "small", root / "a-small")
        os.link(root / "large", root / "z-large")
        await keep()
        with (root / "z-large").open("r+b") as file:
            file.write(b"changed through the other name")
        await keep()
        (root / "new").write_bytes(b"not linked any more")
        (root / "new").rename(root / "a-small")
        (root / "large").unlink()
        await keep()
        for number, tree in enumerate(trees, 1):
            assert differences(describe_snapshot(fra1.archive, number), tree) == []


async def test_a_file_that_is_written_between_two_of_its_names_is_read_again(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second name is recorded as what was read under the first one, and not as what it has become meanwhile."""
    settled_status, looks = source_read.settled_status, count(1)
    (root / "a").write_bytes(b"one")
    os.link(root / "a", root / "b")

    def written_before_the_second(fd: int, clock: Clock) -> os.stat_result:
        if next(looks) == 2:
            (root / "a").write_bytes(b"two")
        return settled_status(fd, clock)

    async with rig(tmp_path, root) as primary, replica(tmp_path / "store") as fra1:
        with monkeypatch.context() as patched:
            patched.setattr(source_read, "settled_status", written_before_the_second)
            await primary.sync(fra1)
            assert next(looks) == 3
        await primary.sync(fra1)
        assert differences(describe_snapshot(fra1.archive), copied(root)) == []


async def test_a_file_with_many_names_is_told_once_for_each(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a first copy and when it changed: every name is recorded when it is met, and once beside the first of them."""
    names, recorded = 600, 0
    record_entries = Ledger.record_entries

    def counting(self: Ledger, rows: Sequence[EntryRow]) -> None:
        nonlocal recorded
        recorded += len(rows)
        record_entries(self, rows)

    monkeypatch.setattr(Ledger, "record_entries", counting)
    (root / "0").write_bytes(b"shared")
    for number in range(1, names):
        os.link(root / "0", root / f"{number}")
    async with rig(tmp_path, root) as primary, replica(tmp_path / "store") as fra1:
        for change in (lambda: None, lambda: (root / "7").chmod(0o600)):
            change()
            recorded = 0
            await primary.sync(fra1)
            assert names < recorded < 3 * names
            assert differences(describe_snapshot(fra1.archive), copied(root)) == []


async def test_a_file_that_gives_way_to_a_hard_link_leaves_nothing_behind(tmp_path: Path, root: Path) -> None:
    """What was recorded of it is set aside as that of any file that lost its last name, and the ledger stays sound."""
    source = random.Random(22)
    for pair in range(8):
        for name in ("x", "y"):
            (root / f"{pair}{name}").write_bytes(source.randbytes(1000))
    async with rig(tmp_path, root, max_change=1.0) as primary, replica(tmp_path / "store") as fra1:
        await primary.sync(fra1)
        for pair in range(8):
            os.link(root / f"{pair}x", root / "new")
            (root / "new").rename(root / f"{pair}y")
        for _ in range(KEPT_WALKS + 2):
            await primary.sync(fra1)
            assert await asyncio.to_thread(audit, primary.dataset.ledger.path, lambda: False) == []
        assert differences(describe_snapshot(fra1.archive), copied(root)) == []


async def test_kinds_may_change_places(tmp_path: Path, root: Path) -> None:
    """A directory that becomes a file, a file that becomes a symlink, and back again."""
    async with rig(tmp_path, root, max_change=1.0) as primary, replica(tmp_path / "store") as fra1:
        (root / "x").mkdir()
        (root / "x" / "deep").mkdir()
        (root / "x" / "deep" / "f").write_text("f")
        (root / "y").write_text("y")
        await primary.sync(fra1)
        shutil.rmtree(root / "x")
        (root / "x").write_text("now a file")
        (root / "y").unlink()
        (root / "y").mkdir()
        (root / "y" / "inside").write_text("i")
        await primary.sync(fra1)
        assert differences(describe_snapshot(fra1.archive), copied(root)) == []
        (root / "x").unlink()
        (root / "x").symlink_to("y")
        shutil.rmtree(root / "y")
        await primary.sync(fra1)
        assert differences(describe_snapshot(fra1.archive), copied(root)) == []


@pytest.mark.parametrize("seed", range(6))
async def test_random_edits_arrive_exactly_pass_after_pass(tmp_path: Path, root: Path, seed: int) -> None:
    """Whatever happens to a tree between passes, every snapshot shows the tree of its pass, restarts included."""
    source = random.Random(seed)
    async with rig(tmp_path, root, max_change=1.0) as primary, replica(tmp_path / "store") as fra1:
        trees = []
        for _ in range(8):
            for _ in range(source.randrange(1, 12)):
                _edit(source, root)
            (root / "stamp").write_text(str(source.random()))
            await primary.sync(fra1)
            trees.append(copied(root))
            if source.random() < 0.3:
                await primary.reopen()
        assert [line.number for line in snapshots(fra1.archive)] == list(range(1, 9))
        for number, tree in enumerate(trees, 1):
            assert differences(describe_snapshot(fra1.archive, number), tree) == []


def _edit(source: random.Random, root: Path) -> None:
    """One random change somewhere below `root`."""
    everything = sorted(p for p in root.rglob("*"))
    directories = [root, *(p for p in everything if p.is_dir() and not p.is_symlink())]
    files = [p for p in everything if p.is_file() and not p.is_symlink()]
    fresh = source.choice(directories) / f"n{source.randrange(10**6)}"
    match source.randrange(9):
        case 0 | 1:
            fresh.write_bytes(source.randbytes(source.choice([0, 10, 70_000, 1_500_000])))
        case 2:
            fresh.mkdir()
        case 3 if files:
            path = source.choice(files)
            with path.open("r+b") as file:
                file.seek(source.randrange(path.stat().st_size + 100_000))
                file.write(source.choice([source.randbytes(100), bytes(200_000)]))
        case 4 if files:
            os.truncate(source.choice(files), source.randrange(300_000))
        case 5 if files:
            os.link(source.choice(files), fresh)
        case 6 if everything:
            path = source.choice(everything)
            if path not in fresh.parents:
                path.rename(fresh)
        case 7 if everything:
            path = source.choice(everything)
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        case 8 if everything:
            source.choice(everything).chmod(source.choice([0o600, 0o755]), follow_symlinks=True)


@pytest.mark.parametrize("after_messages", [1, 3, 6, 10, 15, 25, 30])
async def test_a_cut_link_is_resumed_without_sending_acknowledged_blocks_again(
    tmp_path: Path, root: Path, after_messages: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut the link after some messages, wherever that is: the next passes complete the copy, and no block that the
    replica has stored travels twice."""
    source = random.Random(5)
    for number in range(200):
        (root / f"{number}").write_bytes(source.randbytes(30_000))
    (root / "big").write_bytes(source.randbytes(12 * MIB))
    async with rig(tmp_path, root) as primary, replica(tmp_path / "store") as fra1:
        sent = 0
        original = work_copy.Shipping._send

        async def cutting(self: object, message: object, size: int) -> None:
            nonlocal sent
            sent += 1
            if sent == after_messages:
                fra1.cut()
            await original(self, message, size)  # type: ignore[arg-type]

        monkeypatch.setattr(work_copy.Shipping, "_send", cutting)
        with pytest.raises(LinkError):
            await primary.sync(fra1)
        await primary.reopen()
        status = await primary.sync(fra1)
        assert status.pass_ok
        assert differences(describe_snapshot(fra1.archive), copied(root)) == []
        stored = sum(p.stat().st_size for p in (fra1.archive / "segments").iterdir())
        assert stored < 1.1 * 18 * MIB


async def test_an_acknowledgement_that_was_lost_is_understood_afterwards(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The replica has the commit, the primary never heard: the next session finds out and nothing is sent again."""
    (root / "a").write_bytes(b"a" * 100_000)
    async with rig(tmp_path, root) as primary, replica(tmp_path / "store") as fra1:
        await primary.dataset.open()
        original = primary.dataset.ledger.set_acked
        monkeypatch.setattr(primary.dataset.ledger, "set_acked", _raise_link_error)
        with pytest.raises(LinkError):
            await primary.sync(fra1)
        monkeypatch.setattr(primary.dataset.ledger, "set_acked", original)
        await primary.close_jobs()
        before = primary.status["fra1"].sent_bytes
        assert (await primary.sync(fra1)).pass_ok
        assert sent_during(primary, before) < 1000
        assert differences(describe_snapshot(fra1.archive), copied(root)) == []


def _raise_link_error(*_: object) -> None:
    raise LinkError("cut right behind the acknowledgement")


async def test_a_second_replica_gets_everything_from_the_ledger(tmp_path: Path, root: Path) -> None:
    """A replica that joins late, or was away for some passes, catches up and holds the same tree."""
    build_tree(root)
    (root / "big").write_bytes(random.Random(6).randbytes(9 * MIB))
    async with (
        rig(tmp_path, root, ("fra1", "par1")) as primary,
        replica(tmp_path / "store1") as fra1,
        replica(tmp_path / "store2") as par1,
    ):
        await primary.sync(fra1)
        (root / "later").write_text("later")
        (root / "big").unlink()
        await primary.sync(fra1)
        await primary.sync(par1, "par1")
        assert differences(describe_snapshot(par1.archive), copied(root)) == []
        shutil.rmtree(root / "dir", ignore_errors=True)
        (root / "later").write_text("even later")
        await primary.sync(fra1)
        await primary.sync(par1, "par1")
        assert differences(describe_snapshot(fra1.archive), copied(root)) == []
        assert differences(describe_snapshot(par1.archive), copied(root)) == []


async def test_rot_is_never_sent_by_a_catch_up(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block whose bytes changed under an unchanged identity is counted and not sent; everything else arrives."""
    source = random.Random(7)
    (root / "rotten").write_bytes(source.randbytes(3 * 65536))
    (root / "sound").write_bytes(source.randbytes(3 * 65536))
    async with (
        rig(tmp_path, root, ("fra1", "par1")) as primary,
        replica(tmp_path / "store1") as fra1,
        replica(tmp_path / "store2") as par1,
    ):
        await primary.sync(fra1)
        monkeypatch.setattr(source_read.Access, "read", _rotten_read(source_read.Access.read, root / "rotten"))
        status = await primary.sync(par1, "par1")
        assert (status.rotten, status.unread, status.pass_ok) == (1, 1, False)
        assert status.troubles[0].path == "rotten"
        there = describe_snapshot(par1.archive)
        assert b"rotten" not in there
        assert there[b"sound"] == copied(root)[b"sound"]
        assert not snapshots(par1.archive)[-1].complete
        monkeypatch.undo()
        status = await primary.sync(par1, "par1")
        assert (status.rotten, status.unread, status.pass_ok) == (0, 0, True)
        assert differences(describe_snapshot(par1.archive), copied(root)) == []


async def test_a_name_that_was_not_looked_for_yet_makes_no_ledger_damaged(tmp_path: Path, root: Path) -> None:
    """One of a file's names is removed, and the file grows under the other one, and loses that as well: until the
    directory of the first is walked it is recorded as short as it was, which is no reason to have the ledger made anew.
    That it is recorded as short behind what it grew by is one."""
    for name in ("a", "b"):
        (root / name).mkdir()
    (root / "a" / "x").write_bytes(random.Random(1).randbytes(15_000))
    os.link(root / "a" / "x", root / "b" / "y")
    async with rig(tmp_path, root) as primary, replica(tmp_path / "store") as fra1:
        await primary.sync(fra1)
        (root / "a" / "x").unlink()
        (root / "b" / "y").write_bytes(random.Random(2).randbytes(500_000))
        ledger = primary.dataset.ledger

        async def problems() -> list[str]:
            return await asyncio.to_thread(audit, ledger.path, lambda: False)

        short = await primary.dataset.in_ledger(ledger.known, b"a/x")
        assert short
        await primary.sync(fra1)
        old = EntryRow(put_of(b"a/x", short), stamp_of(short), short.seq)
        await primary.dataset.in_ledger(ledger.record_entries, [old])  # as between two batches of a pass
        assert await problems() == []
        await primary.dataset.in_ledger(ledger.drop, [b"b/y"], short.seq)
        assert await problems() == []
        await primary.dataset.in_ledger(ledger.record_entries, [old._replace(seq=ledger.stamped())])
        assert [text for text in await problems() if "but has block 7" in text]


async def test_a_name_that_is_gone_cuts_nothing_of_the_file_that_grew_under_another(tmp_path: Path, root: Path) -> None:
    """A file moved and grew before the directory of its old name was walked, and the old name could not be told: when a
    later pass catches up, the replica keeps all of the file, and the ledger contradicts nothing."""
    (root / "a").mkdir()
    (root / "a" / "x").write_bytes(random.Random(1).randbytes(40_000))
    async with rig(tmp_path, root) as primary, replica(tmp_path / "store") as fra1:
        await primary.sync(fra1)
        ledger = primary.dataset.ledger
        short = await primary.dataset.in_ledger(ledger.known, b"a/x")
        assert short
        (root / "a").rename(root / "b")
        await primary.sync(fra1)
        with (root / "b" / "x").open("ab") as file:
            file.write(random.Random(2).randbytes(150_000))
        await primary.sync(fra1)
        moved = await primary.dataset.in_ledger(ledger.known, b"b/x")
        assert moved and moved.file == short.file
        await primary.dataset.in_ledger(
            ledger.record_entries, [EntryRow(put_of(b"a/x", short), stamp_of(short), short.seq)]
        )
        await primary.dataset.in_ledger(ledger.unsettle, b"a/x", short.file, ledger.stamped())
        await primary.sync(fra1)
        assert differences(describe_snapshot(fra1.archive), copied(root)) == []
        assert await asyncio.to_thread(audit, ledger.path, lambda: False) == []


async def test_rot_that_a_catch_up_met_is_told_although_another_block_cannot_be_read(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are said of the file, and the rotten block is a finding."""
    (root / "large").write_bytes(random.Random(7).randbytes(20 * MIB))
    async with (
        rig(tmp_path, root, ("fra1", "par1")) as primary,
        replica(tmp_path / "store1") as fra1,
        replica(tmp_path / "store2") as par1,
    ):
        await primary.sync(fra1)
        read = source_read.Access.read

        def ailing(self: source_read.Access, fd: int, size: int, offset: int) -> bytes:
            data = read(self, fd, size, offset)
            if offset >= 19 * MIB:
                raise OSError(errno.EIO, "Input/output error")
            return data[:-1] + bytes([data[-1] ^ 1]) if not offset else data

        monkeypatch.setattr(source_read.Access, "read", ailing)
        status = await primary.sync(par1, "par1")
        assert (status.rotten, status.pass_ok) == (1, False)
        reason = status.troubles[0].reason
        assert "from the ledger though the file was not written" in reason and reason.count("Input/output error") == 1
        findings = primary.dataset.findings
        (found,) = await primary.dataset.in_findings(findings.listed)
        assert (found.path, found.number) == (b"large", 0)


async def test_a_catch_up_that_is_cut_forgets_nothing_that_is_lacking(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that could not be sent lacks until it was: also when the next try ends before it has come to that file."""
    (root / "a").write_bytes(random.Random(23).randbytes(3 * 65536))
    async with (
        rig(tmp_path, root, ("fra1", "par1")) as primary,
        replica(tmp_path / "store1") as fra1,
        replica(tmp_path / "store2") as par1,
    ):
        await primary.sync(fra1)
        monkeypatch.setattr(source_read.Access, "read", _unreadable)
        assert not (await primary.sync(par1, "par1")).pass_ok
        with monkeypatch.context() as patched:
            patched.setattr(work_known.KnownEntries, "ship", _raise_link_error)
            with pytest.raises(LinkError):
                await primary.sync(par1, "par1")
        await primary.reopen()
        assert not (await primary.sync(par1, "par1")).pass_ok
        monkeypatch.undo()
        assert (await primary.sync(par1, "par1")).pass_ok
        assert differences(describe_snapshot(par1.archive), copied(root)) == []
        assert not await primary.dataset.in_ledger(primary.dataset.ledger.lacks_something, 2**61)


def _unreadable(*_: object) -> bytes:
    raise OSError(errno.EIO, "Input/output error")


async def test_what_could_not_be_sent_once_is_told_once_when_it_can(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Renamed meanwhile or not, small or large: nothing of it lacks afterwards, so that both records can be compared,
    and the next passes have nothing to tell."""
    source = random.Random(9)
    (root / "rotten").write_bytes(source.randbytes(3 * 65536))
    (root / "large").write_bytes(source.randbytes((INLINE_BLOCKS + 5) * 65536))
    async with (
        rig(tmp_path, root, ("fra1", "par1")) as primary,
        replica(tmp_path / "store1") as fra1,
        replica(tmp_path / "store2") as par1,
    ):
        for moved in (False, True):
            for name in ("rotten", "large"):
                with (root / name).open("r+b") as file:
                    file.write(source.randbytes(2 * 65536))
            await primary.sync(fra1)
            for name in ("rotten", "large"):
                read = _rotten_read(source_read.Access.read, root / name)
                monkeypatch.setattr(source_read.Access, "read", read)
            status = await primary.sync(par1, "par1")
            assert [trouble.path for trouble in status.troubles] == ["large", "rotten"]
            monkeypatch.undo()
            if moved:
                (root / "rotten").rename(root / "moved")
            for there, name in ((par1, "par1"), (fra1, "fra1")):
                status = await primary.sync(there, name)
                assert status.pass_ok
                standing = await primary.dataset.in_ledger(primary.dataset.ledger.standing, name)
                sums = await account_of_ledger(primary.dataset, standing.covered)
                assert (sums.entries, sums.lacking) == (3, set())
                assert differences(describe_snapshot(there.archive), copied(root)) == []
                before = status.last_snapshot, status.copied_files
                again = await primary.sync(there, name)
                assert (again.last_snapshot, again.copied_files) == before


def _rotten_read(read: object, path: Path) -> object:
    """Reads of `path` give one flipped bit in the second block, as a failing disk would."""

    def rotten(self: object, fd: int, size: int, offset: int) -> bytes:
        data: bytes = read(self, fd, size, offset)  # type: ignore[operator]
        place = 65536 + 100 - offset
        if os.readlink(f"/proc/self/fd/{fd}") == str(path) and 0 <= place < len(data):
            return data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :]
        return data

    return rotten


async def test_a_rotten_block_that_another_file_has_too_comes_from_there(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sound twin of a rotten block is sent, and only the file with the rotten one stays behind."""
    data = random.Random(8).randbytes(3 * 65536)
    (root / "rotten").write_bytes(data)
    (root / "twin").write_bytes(data)
    async with (
        rig(tmp_path, root, ("fra1", "par1")) as primary,
        replica(tmp_path / "store1") as fra1,
        replica(tmp_path / "store2") as par1,
    ):
        await primary.sync(fra1)
        monkeypatch.setattr(source_read.Access, "read", _rotten_read(source_read.Access.read, root / "rotten"))
        status = await primary.sync(par1, "par1")
        assert [t.path for t in status.troubles] == ["rotten"]
        assert describe_snapshot(par1.archive)[b"twin"] == copied(root)[b"twin"]


async def test_a_mass_deletion_is_held_until_it_is_released(tmp_path: Path, root: Path) -> None:
    """More than the configured share of drops sends nothing at all; a release lets it through."""
    for number in range(100):
        (root / f"{number}").write_text(str(number))
    full = copied(root)
    async with rig(tmp_path, root) as primary, replica(tmp_path / "store") as fra1:
        await primary.sync(fra1)
        for number in range(80):
            (root / f"{number}").unlink()
        status = await primary.sync(fra1)
        assert (status.state, status.held) == ("held", True)
        assert "80 entries would be dropped" in status.reason
        assert differences(describe_snapshot(fra1.archive), full) == []
        await primary.reopen()
        assert (await primary.sync(fra1)).held, "a restart does not forget it"
        await primary.dataset.in_ledger(primary.dataset.release)
        assert not (await primary.sync(fra1)).held
        assert differences(describe_snapshot(fra1.archive), copied(root)) == []


async def test_a_defect_of_ours_is_no_pass_that_goes_on(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waits for a pass that ends in one hears that it has ended, and its line says so until one goes well."""

    async def broken(*_: object) -> None:
        raise RuntimeError("no pass raises this")

    async with rig(tmp_path, root) as primary, replica(tmp_path / "store") as fra1:
        status = await primary.sync(fra1)
        with monkeypatch.context() as patched:
            patched.setattr(work_copy.Pass, "run", broken)
            with pytest.raises(RuntimeError, match="no pass raises this"):
                await primary.sync(fra1)
        assert (status.state, status.pass_ok, status.pass_served) == ("failed", False, status.pass_requested)
        assert status.reason == status.last_error == "defect: RuntimeError: no pass raises this"
        assert (await primary.sync(fra1)).pass_ok and (status.state, status.last_error) == ("idle", "")


async def test_a_held_dataset_whose_link_is_cut_rests(tmp_path: Path, root: Path) -> None:
    """It dials nobody while it is held, so the end of its session is nothing to wake up for again and again."""
    for number in range(40):
        (root / f"{number}").write_text("x")
    async with rig(tmp_path, root) as primary, replica(tmp_path / "store") as fra1:
        await primary.sync(fra1)
        for number in range(30):
            (root / f"{number}").unlink()
        assert (await primary.sync(fra1)).held
        fra1.cut()
        job = primary.jobs["fra1"]
        async with asyncio.timeout(60):
            while job._shipping and not job._shipping.failure:
                await asyncio.sleep(0.01)
        await job.step()
        resting = asyncio.create_task(job.wait())
        for _ in range(1000):
            await asyncio.sleep(0)
        assert primary.status["fra1"].held and not primary.status["fra1"].link_up and not resting.done()
        job.request()
        await resting


async def test_a_mass_rewrite_is_held(tmp_path: Path, root: Path) -> None:
    """Encrypting most files looks like this, and is not replicated over the good state by itself."""
    for number in range(60):
        (root / f"{number}").write_text(str(number))
    async with rig(tmp_path, root) as primary, replica(tmp_path / "store") as fra1:
        await primary.sync(fra1)
        for number in range(60):
            (root / f"{number}").write_bytes(os.urandom(50))
        assert (await primary.sync(fra1)).held


async def test_a_root_that_is_another_directory_is_held(tmp_path: Path, root: Path) -> None:
    """An unmounted dataset is an empty directory with another identity: nothing is dropped on the replica."""
    (root / "a").write_text("a")
    async with rig(tmp_path, root) as primary, replica(tmp_path / "store") as fra1:
        await primary.sync(fra1)
        root.rename(tmp_path / "mounted elsewhere")
        root.mkdir()
        status = await primary.sync(fra1)
        assert status.held
        assert "not mounted" in status.reason
        root.rmdir()
        (tmp_path / "mounted elsewhere").rename(root)
        status = await primary.sync(fra1)
        assert not status.held, "it goes on by itself when the root is back"
        assert differences(describe_snapshot(fra1.archive), copied(root)) == []


async def test_a_missing_root_is_an_error_and_drops_nothing(tmp_path: Path, root: Path) -> None:
    """Without a root the pass fails with its path, and the replica keeps what it has."""
    (root / "a").write_text("a")
    async with rig(tmp_path, root) as primary, replica(tmp_path / "store") as fra1:
        await primary.sync(fra1)
        before = copied(root)
        shutil.rmtree(root)
        with pytest.raises(ReplicadError, match=str(root)):
            await primary.sync(fra1)
        assert differences(describe_snapshot(fra1.archive), before) == []


@pytest.mark.skipif(not is_root(), reason="needs root to take a right away from somebody else")
async def test_what_cannot_be_read_is_counted_named_and_kept(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unreadable file keeps its last version on the replica; the pass says so and the snapshot is not complete."""
    (root / "a").write_text("old")
    (root / "b").write_text("b")
    async with rig(tmp_path, root) as primary, replica(tmp_path / "store") as fra1:
        await primary.sync(fra1)
        (root / "a").write_text("new")
        (root / "b").write_text("newer")
        original = source_read.open_file

        def refusing(trail: object, path: bytes) -> int:
            if path == b"a":
                raise PermissionError(13, "Permission denied")
            return original(trail, path)  # type: ignore[arg-type]

        monkeypatch.setattr(source_read, "open_file", refusing)
        status = await primary.sync(fra1)
        assert (status.unread, status.pass_ok) == (1, False)
        assert (status.troubles[0].path, "ermission" in status.troubles[0].reason) == ("a", True)
        there = describe_snapshot(fra1.archive)
        assert (there[b"a"]["content"], there[b"b"]["content"]) == (b"old", b"newer")
        line = snapshots(fra1.archive)[-1]
        assert (line.complete, line.unread) == (False, 1)
        monkeypatch.undo()
        assert (await primary.sync(fra1)).pass_ok
        assert snapshots(fra1.archive)[-1].complete


async def test_a_pass_that_ends_at_the_turnstile_keeps_no_restore_out(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reload or a stop may end it while a thread is at the lock: what that gets then is given back."""
    began, go_on = threading.Event(), threading.Event()

    def slowly(path: bytes) -> int | None:
        began.set()
        go_on.wait(30)
        return enter_to_read(path)

    monkeypatch.setattr(work_replicate, "enter_to_read", slowly)
    async with rig(tmp_path, root) as primary, replica(tmp_path / "store") as fra1:
        running = asyncio.create_task(primary.sync(fra1))
        await asyncio.to_thread(began.wait, 30)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        go_on.set()
        directory = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        async with asyncio.timeout(30):
            while not try_exclusive(directory):
                await asyncio.sleep(0.01)
        os.close(directory)


async def test_what_is_known_is_told_before_a_pass_has_its_turn(tmp_path: Path, root: Path) -> None:
    """After a restart a replica whose pass waits for another replica's is not said to have nothing."""
    (root / "a").write_text("a")
    async with rig(tmp_path, root) as primary, replica(tmp_path / "store") as fra1:
        complete_ns = (await primary.sync(fra1)).last_complete_ns
        await primary.reopen()
        status = primary.status["fra1"] = DatasetStatus("www", "fra1")
        async with primary.dataset.turn:
            waiting = asyncio.create_task(primary.sync(fra1))
            async with asyncio.timeout(30):
                while not status.last_snapshot:
                    await asyncio.sleep(0.01)
            assert status.last_complete_ns >= complete_ns > 0 and status.entries
        await waiting


async def test_a_pass_that_waits_for_its_turn_says_so(tmp_path: Path, root: Path) -> None:
    """A replica to which nobody has dialled yet, because another one's first copy takes hours, is queued until its pass
    begins: that is no link that is down, and no finding."""
    (root / "a").write_text("a")
    async with rig(tmp_path, root) as primary, replica(tmp_path / "store") as fra1:
        status = primary.status["fra1"]
        async with primary.dataset.turn:
            waiting = asyncio.create_task(primary.sync(fra1))
            async with asyncio.timeout(30):
                while not status.queued:
                    await asyncio.sleep(0.01)
            assert (status.state, status.link_up) == ("waiting", False) and "another replica" in status.reason
            node = NodeStatus("ams1", "1", now_ns=primary.clock.now_ns(), datasets=[status])
            assert findings(node) == []
        await waiting
        assert (status.queued, status.state, status.reason) == (False, "idle", "")


async def test_a_restart_does_not_forget_when_everything_was_on_the_replica(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a partial snapshot behind it the lag is still the age of the last complete one, not infinite: an alert about
    it must not end with a restart. A store that was lost in between leaves nothing of it."""
    (root / "a").write_text("a")
    async with rig(tmp_path, root) as primary, replica(tmp_path / "store") as fra1:
        complete_ns = (await primary.sync(fra1)).last_complete_ns
        (root / "a").write_text("new")
        (root / "directory").mkdir()
        monkeypatch.setattr(source_read, "open_file", _refused)
        assert (await primary.sync(fra1)).unread == 1 and not snapshots(fra1.archive)[-1].complete
        await primary.reopen()
        primary.status["fra1"] = DatasetStatus("www", "fra1")
        status = await primary.sync(fra1)
        assert status.unread == 1
        assert snapshots(fra1.archive)[0].created_ns == status.last_complete_ns >= complete_ns > 0
    async with rig(tmp_path, root) as primary, replica(tmp_path / "other store") as fra1:
        assert (await primary.sync(fra1)).held
        await primary.dataset.in_ledger(primary.dataset.release)
        await primary.sync(fra1)
        await primary.reopen()
        primary.status["fra1"] = DatasetStatus("www", "fra1")
        status = await primary.sync(fra1)
        assert status.last_snapshot and not status.last_complete_ns


def _refused(*_: object) -> int:
    raise PermissionError(13, "Permission denied")


@pytest.mark.parametrize("kind", ["small", "large", "linked", "directory"])
async def test_an_attribute_that_could_not_be_read_stays_unread_until_it_is(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The pass says so each time, at the cost of one look; content is read once and goes to every replica; and nobody
    takes the attribute for one that came without a write, to be removed by a repair."""
    size = 2 * MIB if kind == "large" else 1000
    (root / "entry").mkdir() if kind == "directory" else (root / "entry").write_bytes(random.Random(3).randbytes(size))
    if kind == "linked":
        os.link(root / "entry", root / "link")
    os.setxattr(root / "entry", "user.key", b"precious")
    here = copied(root)
    refuse_attributes(monkeypatch, errno.EIO)
    async with scrubbed(tmp_path, root, names=("fra1", "fra2")) as made, replica(tmp_path / "other") as fra2:
        status = made.primary.status["fra1"]
        assert (status.pass_ok, "user.key" in status.troubles[0].reason) == (False, True)
        before = status.sent_bytes, status.read_bytes
        await made.sync()
        assert (status.pass_ok, "user.key" in status.troubles[0].reason) == (False, True)
        assert (status.sent_bytes, status.read_bytes) == before
        assert not (await made.primary.sync(fra2, "fra2")).pass_ok
        await made.sync()
        assert not status.pass_ok and status.sent_bytes == before[0]
        assert describe_snapshot(fra2.archive)[b"entry"].get("content") == here[b"entry"].get("content")
        await made.surface.verify(ALL, made.clock.now_ns())
        monkeypatch.undo()
        await made.surface.verify(ALL, made.clock.now_ns())
        assert await made.found(None) == []
        read = [each.read_bytes for each in made.primary.status.values()]
        for name, there in (("fra1", made.fra1), ("fra2", fra2)):
            assert (await made.primary.sync(there, name)).pass_ok
            assert differences(describe_snapshot(there.archive), here) == []
            assert snapshots(there.archive)[-1].complete
        assert [each.read_bytes for each in made.primary.status.values()] == read
        assert [call.found or call.doubts for call in await made.scrub()] == [()]


async def test_rot_is_not_believed_for_the_sake_of_an_attribute_that_can_be_read_again(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is recorded with its attribute, and with the content that it had; the scrub finds what differs."""
    (root / "file").write_bytes(b"good" * 100)
    os.setxattr(root / "file", "user.key", b"precious")
    refuse_attributes(monkeypatch, errno.EIO)
    async with scrubbed(tmp_path, root) as made:
        before = stamp_now(root, b"file")
        (root / "file").write_bytes(b"rots" * 100)
        os.utime(root / "file", ns=(before.mtime_ns, before.mtime_ns))
        marks = half_read(before), half_read(stamp_now(root, b"file"))
        await made.primary.dataset.in_ledger(restamp, made.primary.dataset.ledger, b"file", *marks)
        monkeypatch.undo()
        await made.sync()
        assert made.primary.status["fra1"].pass_ok
        there = describe_snapshot(made.fra1.archive)[b"file"]
        assert (there["content"], there["xattrs"]) == (b"good" * 100, {b"user.key": b"precious"})
        assert sum(call.found for call in await made.scrub()) == 1
        assert (root / "file").read_bytes() == b"rots" * 100


@pytest.mark.parametrize("number", [errno.E2BIG, errno.ENOTSUP])
async def test_an_attribute_that_the_system_never_gives_is_told_and_left_out(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """The pass that reads the entry says so; what no look can give keeps no later snapshot from being complete."""
    (root / "file").write_text("x")
    os.setxattr(root / "file", "user.key", b"large")
    refuse_attributes(monkeypatch, number)
    async with rig(tmp_path, root) as primary, replica(tmp_path / "store") as fra1:
        status = await primary.sync(fra1)
        assert (status.pass_ok, "user.key" in status.troubles[0].reason) == (False, True)
        assert (await primary.sync(fra1)).pass_ok
        assert snapshots(fra1.archive)[-1].complete


async def test_a_time_beyond_what_the_books_hold_costs_nobody_else(tmp_path: Path, root: Path) -> None:
    """A file of the year 2300 is copied like any other, with the last time that 64 bits hold; neither a scrub nor a
    second restore finds anything to do about it, and one over the live file leaves the year as it is."""
    late_ns, last_ns = 10_413_792_000 * 10**9, 2**63 - 1
    (root / "bad").write_text("from the year 2300")
    (root / "late").mkdir()
    for name in ("bad", "late"):
        os.utime(root / name, ns=(late_ns, late_ns))
    (root / "other").write_text("old")
    async with scrubbed(tmp_path, root) as made:
        (root / "other").write_text("new")
        before = (await made.primary.sync(made.fra1)).sent_bytes
        assert made.primary.status["fra1"].pass_ok
        there = describe_snapshot(made.fra1.archive)
        assert (there[b"bad"]["content"], there[b"other"]["content"]) == (b"from the year 2300", b"new")
        assert there[b"bad"]["mtime_ns"] == there[b"late"]["mtime_ns"] == last_ns
        await made.sync()
        assert sent_during(made.primary, before) == 0
        assert [call.found or call.doubts for call in await made.scrub()] == [()]
        assert (await restore(made.fra1.archive, tmp_path / "back")).exit_code == 0
        again = await restore(made.fra1.archive, tmp_path / "back")
        in_place = await restore(made.fra1.archive, root)
    for account in (again, in_place):
        assert (account.exit_code, sum(account.restored.values()), sum(account.unchanged.values())) == (0, 0, 4)
    assert os.stat(root / "bad").st_mtime_ns == late_ns


BOTH = ("fra1", "par1")


async def both_told(tmp_path: Path, root: Path, fra1: Replica, par1: Replica) -> None:
    """Both replicas have all that is there."""
    async with rig(tmp_path, root, BOTH) as primary:
        await primary.sync(fra1)
        await primary.sync(par1, "par1")


async def test_a_replica_that_was_not_configured_for_a_while_keeps_nothing_of_what_went_meanwhile(
    tmp_path: Path, root: Path
) -> None:
    """What was dropped or cut off while nobody told it is not in its next snapshot, and no block is sent twice."""
    (root / "dropped").write_text("dropped")
    (root / "cut").write_bytes(random.Random(1).randbytes(600_000))
    (root / "kept").write_bytes(random.Random(2).randbytes(300_000))
    async with replica(tmp_path / "store1") as fra1, replica(tmp_path / "store2") as par1:
        await both_told(tmp_path, root, fra1, par1)
        async with rig(tmp_path, root, BOTH[:1]) as primary:
            (root / "dropped").unlink()
            os.truncate(root / "cut", 70_000)
            await primary.sync(fra1)
            os.truncate(root / "cut", 600_000)
            await primary.sync(fra1)
        async with rig(tmp_path, root, BOTH) as primary:
            status = await primary.sync(par1, "par1")
            assert status.pass_ok and status.sent_bytes < 20_000
            assert differences(describe_snapshot(par1.archive), copied(root)) == []
            assert snapshots(par1.archive)[-1].complete


async def test_a_replica_that_is_configured_again_with_another_history_is_held(tmp_path: Path, root: Path) -> None:
    """That it was not configured for a while is no reason to go on from a history that nobody knows."""
    (root / "dropped").write_text("dropped")
    async with replica(tmp_path / "store1") as fra1, replica(tmp_path / "store2") as par1:
        await both_told(tmp_path, root, fra1, par1)
        async with rig(tmp_path, root, BOTH[:1]) as primary:
            (root / "dropped").unlink()
            await primary.sync(fra1)
        async with rig(tmp_path, root, BOTH) as primary:
            assert "do not share one history" in (await primary.sync(fra1, "par1")).reason


@pytest.mark.parametrize(
    ("step", "patience"),
    [("abort", "link.channel.ANSWER_S"), ("needed", "work.shipping.STALL_S"), ("seal", "work.shipping.STALL_S")],
)
async def test_a_replica_whose_store_hangs_keeps_no_other_waiting(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch, step: str, patience: str
) -> None:
    """One that keeps the line alive and does nothing is let go, so that the dataset's turn comes to the others; once
    its store works again it catches up."""
    (root / "file").write_bytes(random.Random(7).randbytes(300_000))
    works, real = threading.Event(), getattr(work_archive.Archive, step)

    def hang(archive: work_archive.Archive, *args: object) -> object:
        works.wait()
        return real(archive, *args)

    async with (
        rig(tmp_path, root, ("fra1", "par1")) as primary,
        replica(tmp_path / "store1") as fra1,
        replica(tmp_path / "store2") as par1,
    ):
        try:
            with monkeypatch.context() as patch:
                patch.setattr(work_archive.Archive, step, hang)
                patch.setattr(f"replicad.{patience}", 0.2)
                with pytest.raises(LinkError, match=r"neither taken nor answered|did not answer"):
                    await primary.sync(fra1)
            assert (await primary.sync(par1, "par1")).pass_ok
        finally:
            works.set()
        assert (await primary.sync(fra1)).pass_ok
        assert differences(describe_snapshot(fra1.archive), copied(root)) == []


async def test_a_pass_looks_where_its_catch_up_met_what_was_written(tmp_path: Path, root: Path) -> None:
    """A recorded file that is written before a replica has it is in the snapshot of the pass that meets it, although no
    hint has come yet."""
    (root / "d").mkdir()
    async with (
        rig(tmp_path, root, ("fra1", "par1"), watch=True) as primary,
        replica(tmp_path / "store1") as fra1,
        replica(tmp_path / "store2") as par1,
    ):
        await primary.sync(par1, "par1")
        for name in ("written", "renamed"):
            (root / "d" / name).write_text(name)
        await primary.sync(fra1)
        (root / "d" / "written").write_text("written again")
        (root / "d" / "renamed").rename(root / "d" / "other")
        assert primary.dataset.watch
        primary.dataset.watch.state = "on"
        await primary.jobs["par1"].step()
        assert primary.status["par1"].last_walked_ns < primary.status["par1"].last_complete_ns
        assert differences(describe_snapshot(par1.archive), copied(root)) == []


async def test_an_entry_that_lacks_an_attribute_is_unread_for_a_replica_that_hears_of_it_from_the_ledger(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No snapshot is complete without the attribute, also where the kernel told of no change there."""
    (root / "d").mkdir()
    async with (
        rig(tmp_path, root, ("fra1", "par1"), watch=True) as primary,
        replica(tmp_path / "store1") as fra1,
        replica(tmp_path / "store2") as par1,
    ):
        await primary.sync(par1, "par1")
        (root / "d" / "entry").write_text("entry")
        os.setxattr(root / "d" / "entry", "user.key", b"precious")
        refuse_attributes(monkeypatch, errno.EIO)
        await primary.sync(fra1)
        assert primary.dataset.watch
        primary.dataset.watch.state = "on"
        await primary.jobs["par1"].step()
        assert not snapshots(par1.archive)[-1].complete


async def test_a_renamed_file_that_is_written_before_it_is_sent_makes_no_snapshot_complete(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its old name is gone and its new one could not be sent: it is counted as unread, and sent by the next pass."""
    (root / "old").mkdir()
    (root / "old" / "file").write_text("one")

    def written(opened: Root, asks: Sequence[Ask]) -> object:
        if any(ask.path == b"new/file" for ask in asks):
            (root / "new" / "file").write_text("two and three")
        return reread(opened, asks)

    monkeypatch.setattr(work_known, "reread", written)
    async with (
        rig(tmp_path, root, ("fra1", "par1")) as primary,
        replica(tmp_path / "store1") as fra1,
        replica(tmp_path / "store2") as par1,
    ):
        await primary.sync(fra1)
        (root / "old").rename(root / "new")
        line = await primary.sync(par1, "par1")
        assert [(t.path, t.reason) for t in line.troubles] == [("new/file", work_known.WRITTEN)]
        assert not snapshots(par1.archive)[-1].complete
        monkeypatch.undo()
        assert (await primary.sync(par1, "par1")).pass_ok
        assert differences(describe_snapshot(par1.archive), copied(root)) == []


async def test_a_lost_store_is_held_and_copied_anew_after_a_release(tmp_path: Path, root: Path) -> None:
    """A replica without its history is not taken for an empty one silently; a release makes a new first copy."""
    (root / "a").write_bytes(random.Random(9).randbytes(300_000))
    async with rig(tmp_path, root) as primary:
        async with replica(tmp_path / "store") as fra1:
            await primary.sync(fra1)
            await primary.close_jobs()
        async with replica(tmp_path / "empty") as fra1:
            status = await primary.sync(fra1)
            assert status.held
            assert "lost or replaced" in status.reason
            await primary.dataset.in_ledger(primary.dataset.release)
            assert (await primary.sync(fra1)).pass_ok
            assert differences(describe_snapshot(fra1.archive), copied(root)) == []


async def test_a_history_that_is_gone_on_from_is_held_against_all_that_is_there(tmp_path: Path, root: Path) -> None:
    """A store that was put back to an earlier state shows nothing in its next snapshot that is gone by now, although no
    hint has come since."""
    (root / "kept").write_text("kept")
    (root / "dropped").write_text("dropped")
    async with rig(tmp_path, root, watch=True) as primary:
        async with replica(tmp_path / "store") as fra1:
            await primary.sync(fra1)
        shutil.copytree(tmp_path / "store", tmp_path / "earlier")
        async with replica(tmp_path / "store") as fra1:
            (root / "dropped").unlink()
            await primary.jobs["fra1"].close()
            primary.jobs.clear()
            await primary.sync(fra1)
        async with replica(tmp_path / "earlier") as fra1:
            job = primary.jobs["fra1"]
            await job.close()
            job._dial = fra1.dial
            assert primary.dataset.watch
            primary.dataset.watch.state = "on"
            await job.step()
            assert primary.status["fra1"].held
            await primary.dataset.in_ledger(primary.dataset.release)
            await job.step()
            assert differences(describe_snapshot(fra1.archive), copied(root)) == []


async def test_a_lost_ledger_is_held_and_goes_on_after_a_release(tmp_path: Path, root: Path) -> None:
    """A new ledger against a replica with history: after a release the new snapshot shows exactly the tree, nothing
    that was deleted meanwhile, and the old snapshots are still there."""
    for number in range(30):
        (root / f"{number}").write_bytes(random.Random(number).randbytes(70_000))
    old = copied(root)
    async with replica(tmp_path / "store") as fra1:
        async with rig(tmp_path / "first", root) as primary:
            before = (await primary.sync(fra1)).sent_bytes
        (root / "3").unlink()
        with (root / "4").open("r+b") as file:
            file.write(bytes(66_000))
        async with rig(tmp_path / "second", root) as primary:
            status = await primary.sync(fra1)
            assert status.held
            assert "ledger was lost" in status.reason
            await primary.dataset.in_ledger(primary.dataset.release)
            status = await primary.sync(fra1)
            assert status.pass_ok
            assert status.sent_bytes < before / 10, "the blocks are there already"
            assert differences(describe_snapshot(fra1.archive), copied(root)) == []
            assert differences(describe_snapshot(fra1.archive, 1), old) == []


async def test_a_failing_hook_stops_the_pass_and_the_post_hook_runs_anyway(tmp_path: Path, root: Path) -> None:
    """Nothing is copied without the pre hook's work; whatever it left open is closed by the post hook."""
    (root / "a").write_text("a")
    post = tmp_path / "post ran"
    hooks = {"hook_pre": ("false",), "hook_post": ("touch", str(post))}
    async with rig(tmp_path, root, **hooks) as primary, replica(tmp_path / "store") as fra1:
        with pytest.raises(ReplicadError, match="false"):
            await primary.sync(fra1)
        assert post.exists()
        assert not fra1.archive.exists() or not snapshots(fra1.archive)


async def test_a_hook_prepares_what_the_pass_copies(tmp_path: Path, root: Path) -> None:
    """What the pre hook writes into the dataset is in the snapshot of that pass."""
    (root / "live").write_text("live")
    hooks = {"hook_pre": ("cp", str(root / "live"), str(root / "dump"))}
    async with rig(tmp_path, root, **hooks) as primary, replica(tmp_path / "store") as fra1:
        await primary.sync(fra1)
        assert describe_snapshot(fra1.archive)[b"dump"]["content"] == b"live"


async def test_a_request_that_comes_while_a_pass_begins_is_not_served_by_hints_alone(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asks for a pass gets all that was written before, also when a pass was about to begin already."""
    async with rig(tmp_path, root) as primary, replica(tmp_path / "store") as fra1:
        await primary.sync(fra1)
        job, dial, status = primary.jobs["fra1"], fra1.dial, primary.status["fra1"]
        primary.dataset.watch = SimpleNamespace(state="on")  # type: ignore[assignment]  # one that saw nothing yet
        await job.close()

        async def dial_and_ask() -> Channel:
            (root / "late").write_text("written before the request")
            job.request()
            return await dial()

        monkeypatch.setattr(fra1, "dial", dial_and_ask)
        await job.step()
        assert status.pass_served == status.pass_requested
        assert b"late" in describe_snapshot(fra1.archive)
        waiting = asyncio.create_task(job.wait())
        for _ in range(10):
            await asyncio.sleep(0)
        assert not waiting.done(), "a request that was served causes a second pass"
        waiting.cancel()


@pytest.mark.parametrize("size", [1_000, 5 * MIB])
async def test_a_hard_linked_file_changes_under_every_name_at_once(tmp_path: Path, root: Path, size: int) -> None:
    """The kernel tells of the one name that a file was written under; the snapshot shows it whole under the others."""
    source = random.Random(21)
    for directory in ("a", "b"):
        (root / directory).mkdir()
    (root / "a" / "one").write_bytes(source.randbytes(size))
    os.link(root / "a" / "one", root / "b" / "two")
    async with rig(tmp_path, root) as primary, replica(tmp_path / "store") as fra1:
        await primary.sync(fra1)
        primary.dataset.watch = SimpleNamespace(state="on")  # type: ignore[assignment]  # one that sees all we hint at
        for change in (lambda file: file.write(source.randbytes(70_000)), lambda file: file.truncate(size // 2)):
            with (root / "a" / "one").open("ab") as file:
                change(file)
            (root / "a" / "one").chmod(0o600)
            primary.jobs["fra1"]._hints.add(frozenset({b"a"}))
            await primary.jobs["fra1"].step()
            assert differences(describe_snapshot(fra1.archive), copied(root)) == []


@pytest.mark.parametrize(("hook", "woken"), [((), True), (("true",), False)])
async def test_changes_alone_cause_no_pass_where_a_pre_hook_runs(
    tmp_path: Path, root: Path, hook: tuple[str, ...], woken: bool
) -> None:
    """A pre hook may write into the dataset; if that were a reason for a pass, each pass would cause the next one."""
    async with rig(tmp_path, root, hook_pre=hook) as primary, replica(tmp_path / "store") as fra1:
        await primary.sync(fra1)
        job = primary.jobs["fra1"]
        job._hints.add(frozenset({b""}))
        waiting = asyncio.create_task(job.wait())
        for _ in range(10):
            await asyncio.sleep(0)
        assert waiting.done() == woken
        job.request()
        await waiting


async def test_a_long_pass_is_restorable_as_it_progresses(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass that goes on for long seals partial snapshots; each of them shows whole files only."""
    source = random.Random(10)
    for number in range(40):
        (root / f"{number:02d}").write_bytes(source.randbytes(2 * MIB))
    monkeypatch.setattr(work_copy, "CHECKPOINT_BYTES", 8 * MIB)
    async with rig(tmp_path, root) as primary, replica(tmp_path / "store") as fra1:
        await primary.sync(fra1)
        lines = snapshots(fra1.archive)
        assert len(lines) > 5
        assert [line.complete for line in lines] == [False] * (len(lines) - 1) + [True]
        tree = copied(root)
        for line in lines:
            for path, described in describe_snapshot(fra1.archive, line.number).items():
                if path:
                    assert described == tree[path]
        assert differences(describe_snapshot(fra1.archive), tree) == []


async def test_a_file_that_is_longer_than_a_pass_goes_without_a_seal(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large file alone is copied, and snapshots made while it is half read count neither it nor its bytes."""
    (root / "big").write_bytes(random.Random(11).randbytes(24 * MIB))
    monkeypatch.setattr(work_copy, "CHECKPOINT_BYTES", 8 * MIB)
    async with rig(tmp_path, root) as primary, replica(tmp_path / "store") as fra1:
        status = await primary.sync(fra1)
        assert status.pass_ok, status.last_error
        lines = snapshots(fra1.archive)
        assert [line.complete for line in lines] == [False] * (len(lines) - 1) + [True] and len(lines) > 1
        assert [(line.entries, line.size) for line in lines] == [(1, 0)] * (len(lines) - 1) + [(2, 24 * MIB)]
        assert differences(describe_snapshot(fra1.archive), copied(root)) == []


async def test_excluded_paths_stay_at_home(tmp_path: Path, root: Path) -> None:
    """Patterns in gitignore syntax keep files out, and drop them when they are added later."""
    (root / "keep").write_text("k")
    (root / "a.tmp").write_text("t")
    async with rig(tmp_path, root, exclude=("*.tmp",)) as primary, replica(tmp_path / "store") as fra1:
        await primary.sync(fra1)
        assert set(describe_snapshot(fra1.archive)) == {b"", b"keep"}


@pytest.mark.parametrize("policy", ["fuzzy", "skip"])
@pytest.mark.parametrize("size", [1000, 3 * MIB])
async def test_a_file_that_never_holds_still_follows_the_policy(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch, policy: str, size: int
) -> None:
    """Fuzzy records it, flagged and counted; skip leaves it out, named. Either way the next pass looks at it again,
    although no hint came, as of stores into mapped memory none does; and it is right once it holds still."""
    (root / "log").write_bytes(b"x" * size)
    (root / "other").write_text("o")

    def write_more(self: object, path: bytes) -> None:
        if path == b"log":
            with (root / "log").open("ab") as file:
                file.write(b"more")

    monkeypatch.setattr(source_read.Access, "before_second_look", write_more)
    async with rig(tmp_path, root, on_change=policy, watch=True) as primary, replica(tmp_path / "store") as fra1:
        status = await primary.sync(fra1)
        if policy == "fuzzy":
            assert (status.fuzzy, status.unread) == (1, 0)
            assert b"log" in describe_snapshot(fra1.archive)
        else:
            assert (status.fuzzy, status.unread, status.troubles[0].path) == (0, 1, "log")
            assert b"log" not in describe_snapshot(fra1.archive)
        monkeypatch.undo()
        assert primary.dataset.watch
        primary.dataset.watch.state = "on"
        await primary.jobs["fra1"].step()
        assert (status.fuzzy, status.unread) == (0, 0)
        assert differences(describe_snapshot(fra1.archive), copied(root)) == []


async def test_a_held_dataset_says_so_in_the_right_type(tmp_path: Path, root: Path) -> None:
    """HeldError is a finding (exit code 1) that nobody retries by itself."""
    async with rig(tmp_path, root) as primary:
        error = primary.dataset.held_error("because")
        assert isinstance(error, HeldError)
        assert (error.exit_code, error.retry) == (1, False)


async def test_two_sessions_of_one_client_do_not_write_at_once(tmp_path: Path, root: Path) -> None:
    """A client that dials again takes over: the first session is ended and its pass fails, nothing is mixed."""
    (root / "a").write_text("a")
    async with rig(tmp_path, root) as primary, replica(tmp_path / "store") as fra1:
        await primary.sync(fra1)
        first = primary.jobs.pop("fra1")
        assert (await primary.sync(fra1)).pass_ok
        (root / "a").write_text("b")
        await asyncio.wait_for(first._shipping.ended(), 10)  # type: ignore[union-attr]
        assert (await primary.sync(fra1)).pass_ok
        await first.close()
        assert differences(describe_snapshot(fra1.archive), copied(root)) == []


@pytest.mark.parametrize("place", ["start", "middle", "end"])
@pytest.mark.parametrize("size", [MIB, 6 * MIB + 5])
async def test_a_punched_hole_is_a_hole_on_the_replica(tmp_path: Path, root: Path, place: str, size: int) -> None:
    """A hole made in a recorded file shows as zeros in the next snapshot and as the old bytes in the one before."""
    path = root / "image"
    path.write_bytes(random.Random(11).randbytes(size))
    offset = {"start": 0, "middle": 5 * 65536, "end": size // 65536 * 65536 - 3 * 65536}[place]
    old = copied(root)
    async with rig(tmp_path, root) as primary, replica(tmp_path / "store") as fra1:
        before = (await primary.sync(fra1)).sent_bytes
        subprocess.run(["fallocate", "-p", "-o", str(offset), "-l", str(3 * 65536), path], check=True)
        await primary.sync(fra1)
        assert sent_during(primary, before) < 20_000
        assert differences(describe_snapshot(fra1.archive), copied(root)) == []
        assert differences(describe_snapshot(fra1.archive, 1), old) == []


async def test_a_damaged_ledger_is_named_and_mended_by_moving_it_away(tmp_path: Path, root: Path) -> None:
    """The error says what to do; moving the file away and a release do as well, without sending anything twice."""
    for number in range(50):
        (root / f"{number}").write_bytes(random.Random(number).randbytes(70_000))
    async with rig(tmp_path, root) as primary, replica(tmp_path / "store") as fra1:
        before = (await primary.sync(fra1)).sent_bytes
        await primary.reopen()
        book = tmp_path / "state" / "ledger" / "www.db"
        data = bytearray(book.read_bytes())
        for page in range(PAGE_BYTES, len(data), PAGE_BYTES):  # whichever of them the pass needs
            data[page + PAGE_BYTES // 2] ^= 1
        book.write_bytes(data)
        with pytest.raises(BookDamagedError, match="type replicad rebuild --ledger www and start"):
            await primary.sync(fra1)
        with pytest.raises(BookDamagedError, match=r"was closed.*type replicad rebuild --ledger www and start"):
            await primary.dataset.in_ledger(primary.dataset.release)  # another job, which did not meet it itself
        book.rename(tmp_path / "bad.db")
        assert (await primary.sync(fra1)).held
        await primary.dataset.in_ledger(primary.dataset.release)
        assert (await primary.sync(fra1)).pass_ok
        assert sent_during(primary, before) < 100_000
        assert differences(describe_snapshot(fra1.archive), copied(root)) == []


async def test_a_long_catch_up_is_restorable_as_it_progresses_and_starts_over_without_sending_twice(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second replica gets partial snapshots while it catches up; cut in the middle, it still lacks nothing after."""
    source = random.Random(12)
    for number in range(60):
        (root / f"d{number % 6}").mkdir(exist_ok=True)
        (root / f"d{number % 6}" / f"{number:02d}").write_bytes(source.randbytes(MIB // 2))
    monkeypatch.setattr(work_copy, "CHECKPOINT_BYTES", 4 * MIB)
    monkeypatch.setattr(work_known, "LIST_ENTRIES", 5)
    async with (
        rig(tmp_path, root, ("fra1", "par1")) as primary,
        replica(tmp_path / "store1") as fra1,
        replica(tmp_path / "store2") as par1,
    ):
        await primary.sync(fra1)
        sealed = 0
        original = work_copy.Shipping.seal

        async def cutting(self: object, *words: object) -> object:
            nonlocal sealed
            sealed += 1
            if sealed == 4:
                par1.cut()
            return await original(self, *words)  # type: ignore[arg-type]

        monkeypatch.setattr(work_copy.Shipping, "seal", cutting)
        with pytest.raises(LinkError):
            await primary.sync(par1, "par1")
        assert len(snapshots(par1.archive)) >= 3
        assert not any(line.complete for line in snapshots(par1.archive))
        assert (await primary.sync(par1, "par1")).pass_ok
        assert differences(describe_snapshot(par1.archive), copied(root)) == []
        stored = sum(p.stat().st_size for p in (par1.archive / "segments").iterdir())
        assert stored < 1.1 * 30 * MIB


async def test_no_directory_is_always_the_last(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All files are written all the time, and each pass is cut short after some of them: all have their turn."""
    files = [root / f"d{number}" / "file" for number in range(12)]
    for file in files:
        file.parent.mkdir()
        file.write_bytes(b"x")
    monkeypatch.setattr(work_copy, "BATCH_FILES", 1)
    async with rig(tmp_path, root, max_change=1.0) as primary, replica(tmp_path / "store") as fra1:
        await primary.sync(fra1)
        left = 0
        original = work_copy.Pass._do

        async def cut(self: work_copy.Pass, work: Callable[[], Awaitable[None]]) -> None:
            nonlocal left
            await original(self, work)
            left -= 1
            if not left:
                fra1.cut()

        monkeypatch.setattr(work_copy.Pass, "_do", cut)
        waiting = {os.fsencode(file.relative_to(root)) for file in files}
        for size in range(2, 150):  # each has its turn with a chance of a third or more
            for file in files:
                file.write_bytes(bytes(size))
            left = 4
            with pytest.raises(LinkError):
                await primary.sync(fra1)
            known = {path: await primary.dataset.in_ledger(primary.dataset.ledger.known, path) for path in waiting}
            waiting = {path for path, entry in known.items() if entry is None or entry.size == 1}
            if not waiting:
                break
        assert not waiting


@pytest.mark.parametrize("is_slow", [True, False])
async def test_passes_that_are_all_cut_short_come_to_an_end(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch, is_slow: bool
) -> None:
    """What took long to catch up with is sealed before anything else, and is not told again by the next pass; what did
    not is part of the pass's own snapshot."""
    for number in range(10):
        (root / str(number)).write_bytes(bytes([number]) * 5000)
    monkeypatch.setattr(work_copy, "CAUGHT_UP_S", 0.0 if is_slow else 600.0)
    async with (
        rig(tmp_path, root, ("fra1", "par1"), rpo_s=600.0) as primary,
        replica(tmp_path / "store1") as fra1,
        replica(tmp_path / "store2") as par1,
    ):
        await primary.sync(fra1)
        original = work_copy.Pass._survey

        async def cut(self: work_copy.Pass, only: frozenset[bytes] | None) -> object:
            par1.cut()
            self._outcome.look_again(b"9")  # what a catch-up met
            await self._shipping.ship(Unit(b"", load_nothing, given([]), 0))
            await self._shipping.flushed()
            return await original(self, only)

        with monkeypatch.context() as cutting:
            cutting.setattr(work_copy.Pass, "_survey", cut)
            with pytest.raises(LinkError):
                await primary.sync(par1, "par1")
        lacks = primary.dataset.ledger.lacks_something
        covered = (await primary.dataset.in_ledger(primary.dataset.ledger.standing, "par1")).covered
        assert await primary.dataset.in_ledger(lacks, covered) is not is_slow
        assert [line.complete for line in snapshots(par1.archive)] == [False] * is_slow
        assert (await primary.sync(par1, "par1")).pass_ok
        assert [line.complete for line in snapshots(par1.archive)] == [False] * is_slow + [True]
        assert differences(describe_snapshot(par1.archive), copied(root)) == []


async def test_names_alone_are_sealed_before_there_are_more_records_than_a_replica_takes(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A first copy, a catch-up, and the drops of one: each is cut into partial snapshots, also between files of many
    blocks."""
    for number in range(600):
        (root / f"{number:03d}").touch()
    for number in range(70):
        (root / f"many{number:02d}").write_bytes(random.Random(number).randbytes((INLINE_BLOCKS + 6) * 4096))
    monkeypatch.setattr(work_shipping, "RECORD_BYTES", 1024)
    monkeypatch.setattr(work_shipping, "MAX_UNITS", 1)
    monkeypatch.setattr(work_known, "LIST_ENTRIES", 100)
    monkeypatch.setattr(work_copy, "BATCH_FILES", 5)
    monkeypatch.setattr(work_copy, "CHECKPOINT_RECORDS", 10)
    monkeypatch.setattr(work_archive, "MAX_RECORDS", 60)
    async with (
        rig(tmp_path, root, ("fra1", "par1"), max_change=1.0, block_bytes=4096) as primary,
        replica(tmp_path / "store1") as fra1,
        replica(tmp_path / "store2") as par1,
    ):
        for there, name in ((fra1, "fra1"), (par1, "par1")):
            assert (await primary.sync(there, name)).pass_ok
            assert len(snapshots(there.archive)) > 4
        for path in root.iterdir():
            path.unlink()
        for there, name in ((fra1, "fra1"), (par1, "par1")):
            before = len(snapshots(there.archive))
            assert (await primary.sync(there, name)).pass_ok
            assert len(snapshots(there.archive)) > before + 1
            assert differences(describe_snapshot(there.archive), copied(root)) == []


async def test_a_pass_without_changes_seals_only_when_the_last_snapshot_is_old(tmp_path: Path, root: Path) -> None:
    """Within half an rpo nothing new is made; after that the unchanged tree gets a snapshot of its own."""
    (root / "a").write_text("a")
    async with rig(tmp_path, root, rpo_s=600.0) as primary, replica(tmp_path / "store") as fra1:
        await primary.sync(fra1)
        assert (await primary.sync(fra1)).last_snapshot == 1
        await primary.dataset.in_ledger(
            primary.dataset.ledger.put, "sealed_ns:fra1", primary.clock.now_ns() - 301 * 10**9
        )
        assert (await primary.sync(fra1)).last_snapshot == 2
        assert [line.complete for line in snapshots(fra1.archive)] == [True, True]
