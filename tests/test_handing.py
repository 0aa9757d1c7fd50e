"""The hand of a restore: what a process beside it writes is what it would be without, whatever becomes of it."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from kit_faults import small_disk
from kit_restore import ScriptedReader, archive_tree, damage_block, differences, meta, restore, restore_script
from kit_tree import is_root
from replicad.model.block import Buffer, block_id
from replicad.model.errors import DiskFullError, ReplicadError
from replicad.system.child import Child
from replicad.system.disk import Disk
from replicad.work import handing
from replicad.work.account import Account, Tally
from replicad.work.hand import Hand, Lot, Place
from replicad.work.handing import Handing
from replicad.work.parcel import Parcel, Part
from replicad.work.reader import Answer
from replicad.work.target import Target

FILES = 1200


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tree of many small files of all sorts, and a store that holds it."""
    base, choose = tmp_path_factory.mktemp("small"), random.Random(7)
    for number in range(FILES):
        path = base / "tree" / f"d{number % 7}" / f"below-{number % 3}" / f"{number:04}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_content(number, choose))
        os.chmod(path, choose.choice((0o600, 0o644, 0o755, 0o4750)))
        if number % 50 == 0:
            os.setxattr(path, "user.number", b"%d" % number)
            os.link(path, path.with_suffix(".link"))
        os.utime(path, ns=(1, 1_600_000_000_000_000_000 + number * 10**9 + 1))
    archive_tree(base / "store", base / "tree")
    return base / "tree", base / "store"


def _content(number: int, choose: random.Random) -> bytes:
    match number % 10:
        case 0:
            return b""
        case 1:
            return bytes(5000)
        case 2:
            return choose.randbytes(3000) + bytes(80_000) + b"end"
        case 3:
            return b"the same everywhere"
        case 4:
            return choose.randbytes(choose.randrange(1, 200_000))
    return choose.randbytes(choose.randrange(1, 9000))


class Lots:
    """What was given away, and what is done to the hand meanwhile."""

    def __init__(self) -> None:
        self.files = self.lots = 0
        self.kill_at = -1


@pytest.fixture
def lots(monkeypatch: pytest.MonkeyPatch) -> Lots:
    """There is a hand from the first parcel on."""
    seen, take, lay = Lots(), Handing.take, Handing._lay

    async def taken(self: Handing, parcel: Parcel, answers: Sequence[Answer], tally: Tally) -> Sequence[Part]:
        if self._opening is None and not self._parcels:
            self._opening = asyncio.create_task(self._open())
        if self._opening:
            await asyncio.wait([self._opening])
        return await take(self, parcel, answers, tally)

    async def laid(self: Handing, parts: Sequence[Part], bulk: Sequence[Buffer], tally: Tally) -> bool:
        if seen.lots == seen.kill_at:
            assert self._child.pid
            os.kill(self._child.pid, signal.SIGKILL)
        seen.lots += 1
        is_done = await lay(self, parts, bulk, tally)
        seen.files += len(parts) if is_done else 0
        return is_done

    monkeypatch.setattr(handing, "AFTER_PARCELS", 0)
    monkeypatch.setattr(Handing, "take", taken)
    monkeypatch.setattr(Handing, "_lay", laid)
    return seen


def counted(account: Account) -> tuple[object, ...]:
    """What an account says of files and bytes, and every finding."""
    return (
        account.restored,
        account.failed,
        account.restored_bytes,
        account.damaged_bytes,
        account.blocks_fetched,
        sorted(map(str, account.findings)),
        account.exit_code,
    )


async def test_a_tree_comes_back_the_same_with_a_hand_and_without(
    small: tuple[Path, Path], tmp_path: Path, lots: Lots
) -> None:
    """Content, owners, modes, times, attributes, holes and hard links, and the account of it."""
    tree, store = small
    helped = await restore(store, tmp_path / "helped")
    assert lots.files > FILES // 4, "most parcels had room at the hand"
    alone = await restore(store, tmp_path / "alone", disk=Disk())
    assert differences(tree, tmp_path / "helped") == "" and differences(tree, tmp_path / "alone") == ""
    assert counted(helped) == counted(alone) and helped.exit_code == 0
    again = await restore(store, tmp_path / "helped")
    assert not again.restored and again.unchanged["files"] == helped.restored["files"]


async def test_damage_is_told_of_as_exactly_by_the_hand(small: tuple[Path, Path], tmp_path: Path, lots: Lots) -> None:
    """A block whose bytes are not what its name says costs its range in its file, and nothing else of the lot."""
    tree, _ = small
    archive_tree(tmp_path / "store", tree)
    for path in sorted(tree.rglob("*"))[::90]:
        if path.is_file() and (data := path.read_bytes()) and any(data[:65536]):
            damage_block(tmp_path / "store", block_id(data[:65536]))
    helped = await restore(tmp_path / "store", tmp_path / "helped")
    alone = await restore(tmp_path / "store", tmp_path / "alone", disk=Disk())
    assert counted(helped) == counted(alone) and helped.exit_code == 1 and helped.damaged_bytes and lots.files


async def test_bytes_that_are_not_the_block_s_are_never_written_by_the_hand(tmp_path: Path, lots: Lots) -> None:
    """A replica that answers with well-formed frames of other bytes under the right names gets nothing written."""
    reader = ScriptedReader()
    reader.directory(b"")
    for number in range(40):
        reader.file(b"%02d" % number, b"content %d" % number)
    forged = block_id(b"content 7")
    reader.blocks[forged] = b"CONTENT 7"
    account = await restore_script(reader, tmp_path / "back")
    assert lots.files and account.damaged_bytes == 9
    assert (tmp_path / "back" / "07").read_bytes() == bytes(9)
    assert {path.name: path.read_bytes() for path in (tmp_path / "back").iterdir() if path.name != "07"} == {
        f"{number:02}": b"content %d" % number for number in range(40) if number != 7
    }


@pytest.mark.parametrize("when", [0, 2])
async def test_a_hand_that_is_killed_is_done_without(
    small: tuple[Path, Path], tmp_path: Path, lots: Lots, when: int
) -> None:
    """Whatever it had begun is written once more, and the account counts it once."""
    tree, store = small
    lots.kill_at = when
    account = await restore(store, tmp_path / "back")
    assert differences(tree, tmp_path / "back") == "" and account.exit_code == 0
    assert counted(account) == counted(await restore(store, tmp_path / "alone", disk=Disk()))


async def test_a_hand_that_cannot_be_started_is_done_without(
    small: tuple[Path, Path], tmp_path: Path, lots: Lots, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The restore is whole all the same."""
    tree, store = small
    monkeypatch.setattr(handing, "MODULE", "replicad.there_is_no_such_module")
    account = await restore(store, tmp_path / "back")
    assert differences(tree, tmp_path / "back") == "" and account.exit_code == 0 and not lots.files


async def test_what_was_there_before_is_never_given_away(small: tuple[Path, Path], tmp_path: Path, lots: Lots) -> None:
    """Only files of which nothing is there, in directories that the restore has made."""
    tree, store = small
    for directory in tree.rglob("*"):
        if directory.is_dir():
            (tmp_path / "back" / directory.relative_to(tree)).mkdir(parents=True, exist_ok=True)
    await restore(store, tmp_path / "back")
    assert differences(tree, tmp_path / "back") == "" and not lots.lots


@pytest.mark.skipif(not is_root(), reason="needs root to mount a file system")
async def test_a_full_target_is_told_of_by_the_hand_as_well(tmp_path: Path, lots: Lots) -> None:
    """One clear error, and the next run goes on when there is room."""
    with small_disk(tmp_path / "back", 1) as back:
        reader = ScriptedReader()
        reader.directory(b"")
        reader.directory(b"d")
        for number in range(600):
            reader.file(b"d/%03d" % number, os.urandom(4000))
        with pytest.raises(DiskFullError, match="run the same command again"):
            await restore_script(reader, back)
        assert lots.lots
        subprocess.run(["mount", "-o", "remount,size=16m", str(back)], check=True)
        account = await restore_script(reader, back)
        assert account.restored["files"] + account.unchanged.get("files", 0) == 600 and account.exit_code == 0


def test_a_hand_that_was_started_anew_says_so() -> None:
    """It has no target open, and whoever asks writes himself."""
    with pytest.raises(ReplicadError, match="started anew"):
        Hand().lay(Lot([]), memoryview(b""))


def test_a_target_that_was_replaced_is_refused(tmp_path: Path) -> None:
    """A hand writes into the directory that the restore has locked, and into no other of its name."""
    target = Target(tmp_path / "back", Disk())
    place = Place(os.fsencode(tmp_path / "back"), *target.identity(), 1)
    target.close()
    (tmp_path / "back").rename(tmp_path / "away")
    (tmp_path / "back").mkdir()
    with pytest.raises(ReplicadError, match="was replaced during the restore"):
        Hand().open(place)


async def test_nothing_is_left_of_a_hand_when_a_restore_is_cut_off(tmp_path: Path, lots: Lots) -> None:
    """The line breaks in the middle: the error is the line's, and the process is gone."""
    reader = ScriptedReader()
    reader.directory(b"")
    for number in range(3000):
        reader.file(b"%04d" % number, b"%d" % number, meta=meta(0o600))
    reader.fail_after = 2000
    pids: list[int] = []
    close = Child.close

    async def closed(self: Child) -> None:
        if self.pid:
            pids.append(self.pid)
        await close(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Child, "close", closed)
        with pytest.raises(ReplicadError, match="the line was cut"):
            await restore_script(reader, tmp_path / "back")
    (pid,) = pids
    assert not Path(f"/proc/{pid}").exists()
    reader.fail_after = -1
    account = await restore_script(reader, tmp_path / "back")
    assert account.restored["files"] + account.unchanged.get("files", 0) == 3000 and account.exit_code == 0


def test_a_target_that_cannot_be_opened_by_its_path_is_an_error_of_ours(tmp_path: Path) -> None:
    """It was renamed while it is restored into, which disturbs nothing but the hand."""
    target = Target(tmp_path / "back", Disk())
    place = Place(os.fsencode(tmp_path / "back"), *target.identity(), 1)
    target.close()
    (tmp_path / "back").rename(tmp_path / "away")
    with pytest.raises(ReplicadError, match="cannot be opened by its path"):
        Hand().open(place)


@pytest.mark.parametrize("reason", ["renamed", "descriptors"])
async def test_a_hand_that_cannot_begin_is_done_without(
    small: tuple[Path, Path], tmp_path: Path, lots: Lots, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    """The target has another name by now, or there is no descriptor left for a process: the restore is whole."""
    tree, store = small
    call = Child.call

    async def calling(self: Child, *words: Any) -> Any:
        if reason == "descriptors":
            raise OSError(errno.EMFILE, "Too many open files")
        (tmp_path / "back").rename(tmp_path / "away")
        try:
            return await call(self, *words)
        finally:
            (tmp_path / "away").rename(tmp_path / "back")

    monkeypatch.setattr(Child, "call", calling)
    account = await restore(store, tmp_path / "back")
    assert differences(tree, tmp_path / "back") == "" and account.exit_code == 0 and not lots.files
