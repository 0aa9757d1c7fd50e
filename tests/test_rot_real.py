"""Real rot under two real daemons: found from the medium, judged, repaired from the other side, and proven repaired.

The primary's copy is damaged below ext4, xfs and btrfs, the replica's in each way that a store can be damaged.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import blake3
import pytest

from kit_campaign import Document, as_lost, primary_fault
from kit_damage import OF_BLOCKS, Expected, Harm, Shelf, harm_book, live_blocks
from kit_detect import CommandLine
from kit_faults import assert_quiet, configure
from kit_pair import Pair, assert_same_tree, make_pair, replicad, running
from kit_rot import MIB, CannotRot, Disk, Kind, Rotten, drop_caches, needs_disks, real_disk
from kit_workload import PIECE_BYTES, Known, Tree
from replicad.model.divergence import Side
from replicad.store.segments import segment_path

BIG_BYTES = 3 * MIB + 1234
STORE_MIB = 150
"""Fills two segments, so that whole ones can be lost and exchanged."""

pytestmark = [needs_disks, pytest.mark.timeout(300)]


@dataclass
class Judged:
    """A running pair whose dataset lies on a disk that can rot."""

    pair: Pair
    disk: Disk
    root: Path
    typed: CommandLine

    @property
    def shelf(self) -> Path:
        return self.pair.store / "ams1" / "www"

    def rot(self, name: str, offset: int, kind: Kind = Kind.BIT, **options: bytes) -> tuple[Rotten, Expected]:
        """Damage a file of the primary; what a detection must say of it."""
        path = self.root / name
        start = offset - offset % PIECE_BYTES
        block = blake3.blake3(path.read_bytes()[start : start + PIECE_BYTES]).digest()
        rotten = self.disk.rot(path, offset, kind, seed=offset, **options)
        file = Known(name, path.stat().st_size, [])
        fault = primary_fault(file, kind, rotten.offset, rotten.length, block, is_readable=rotten.is_readable)
        return rotten, fault.expected

    def assert_restores(self, target: Path) -> None:
        """What the store gives is the tree, as rsync sees it."""
        shutil.rmtree(target, ignore_errors=True)
        self.pair.restore_from_store(target, "--quiet")
        assert_same_tree(self.root, target)
        shutil.rmtree(target)


@contextlib.contextmanager
def judged(directory: Path, kind: str = "ext4", mib: int = 0, place: Path | None = None) -> Iterator[Judged]:
    """A pair (in `place`) that replicates a tree on a real file system, everything acknowledged, nothing found yet."""
    with real_disk(directory, kind, mib) as disk:
        root, source = disk.top / "www", random.Random(11)
        (root / "sub").mkdir(parents=True)
        (root / "big").write_bytes(source.randbytes(BIG_BYTES))
        (root / "sub" / "small").write_bytes(source.randbytes(5000))
        (root / "sub" / "other").write_bytes(source.randbytes(5000))
        (root / "sub" / "text").write_bytes(b"the same words again and again " * 4000)
        for number in range(mib and STORE_MIB):
            (root / f"file{number:03}").write_bytes(source.randbytes(MIB))
        pair = make_pair(
            (place or directory) / "pair", root, dataset_options='watch = false\nrpo = "1h"\nmax_change = 1.0'
        )
        configure(pair.primary, "dataset", repair="ask", repair_limit=1_000_000, scrub_duty=1.0, tend_every="1s")
        configure(pair.replica, "listen", repair="auto", repair_limit=1_000_000, scrub_duty=1.0, reserve="16MiB")
        with running(pair):
            pair.sync()
            yield Judged(pair, disk, root, CommandLine(pair))
            assert_quiet(pair.primary, pair.replica)


def is_settled(found: list[Document]) -> bool:
    return bool(found) and all(one["state"] == "repaired" for one in found)


def is_judged(found: list[Document]) -> bool:
    return bool(found) and all(one["verdict"] != "inconclusive" for one in found)


# the helpers, which need no scrub


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_the_stage_is_set(tmp_path: Path, kind: str) -> None:
    """A pair replicates from each file system, whose files can be damaged below, and the store has the good bytes."""
    with judged(tmp_path, kind) as made:
        data = (made.root / "big").read_bytes()
        rotten, expected = made.rot("big", 70_000)
        assert expected.path == "big" and (expected.offset, expected.length) == (70_000, 1)
        assert expected.blocks <= live_blocks(made.shelf).keys(), "a damage is named by the block that the store knows"
        made.disk.heal(rotten)
        assert (made.root / "big").read_bytes() == data
        made.assert_restores(tmp_path / "restored")


# the primary


@pytest.mark.parametrize(
    ("kind", "damage"),
    [*(("ext4", damage) for damage in Kind), ("xfs", Kind.BIT), ("xfs", Kind.ZERO), ("btrfs", Kind.BIT)],
)
def test_rot_on_the_primary_is_found_judged_and_repaired(tmp_path: Path, kind: str, damage: Kind) -> None:
    """It is found on the medium although the cache was warm, confirmed by the peer, never sent, and written back on
    command; the file's times stay, and a second look finds nothing."""
    with judged(tmp_path, kind) as made:
        path = made.root / "big"
        good, stamp = path.read_bytes(), path.stat()
        rotten, expected = made.rot("big", 70_000, damage)
        made.typed.scrub(Side.PRIMARY)
        (found,) = made.typed.settled(is_judged, "the rot is judged")
        assert expected.problems([found]) == []
        assert_evidence(found, rotten)
        made.pair.sync()
        made.typed.repair(found)
        (found,) = made.typed.settled(is_settled, "the rot is repaired")
        drop_caches()
        assert path.read_bytes() == good
        assert (path.stat().st_mtime_ns, path.stat().st_ino) == (stamp.st_mtime_ns, stamp.st_ino)
        (receipt,) = made.typed.receipts(found)
        assert (receipt.result, receipt.after.hex(), receipt.before.hex()) == (
            "repaired",
            found["expected"],
            found["seen"],
        )
        made.typed.scrub()
        assert [one["id"] for one in made.typed.documents()] == [found["id"]]
        made.assert_restores(tmp_path / "restored")


def assert_evidence(found: Document, rotten: Rotten) -> None:
    """What a person at 3 a.m. has to be shown."""
    seen = "differs" if rotten.is_readable else "unreadable"
    evidence = found["evidence"]
    assert (evidence["primary"], evidence["replica"], evidence["writing"]) == (seen, "matches", "unwritten")
    assert found["expected"] and not found["lost"]
    mine = [look for look in found["looks"] if look["side"] == "primary" and look["source"] == "media"]
    assert len(mine) >= 2, "read again from the medium before anything is said"
    assert [one["path"] for one in found["affected"]] == ["big"] and found["affected"][0]["live"]
    if rotten.is_readable:
        bits = sum((a ^ b).bit_count() for a, b in zip(rotten.before, rotten.after, strict=True))
        assert found["bits"] == bits and evidence["witness"] == "confirms" and found["seen"] != found["expected"]
        first = found["bit_positions"][0] // 8 + found["offset"]
        assert first == rotten.offset


def test_rot_in_small_and_compressed_files_is_found(tmp_path: Path) -> None:
    """Files of less than a block, and of which the store holds compressed frames, are verified like any other."""
    with judged(tmp_path) as made:
        wanted = [made.rot("sub/small", 4321)[1], made.rot("sub/text", 66_000, Kind.ZERO)[1]]
        made.typed.scrub(Side.PRIMARY)
        found = made.typed.settled(lambda now: len(now) == 2 and is_judged(now), "both are judged")
        assert [expected.problems(found) for expected in wanted] == [[], []]


# the replica


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Judged]:
    """One pair for all kinds of damage to its store: each is repaired before the next is done."""
    with judged(tmp_path_factory.mktemp("filled"), mib=600) as made:
        source = random.Random(12)
        with (made.root / "big").open("r+b") as file:  # gives blocks that only history shows
            file.write(source.randbytes(2 * PIECE_BYTES))
        made.pair.sync()
        yield made


WHOLE_SEGMENTS = (Harm.GARBAGE, Harm.SWAPPED, Harm.TRUNCATED, Harm.LOST)
"""First, while there are sealed segments in which nothing was damaged yet."""


@pytest.mark.parametrize("kind", [*WHOLE_SEGMENTS, *(kind for kind in Harm if kind not in WHOLE_SEGMENTS)])
def test_damage_to_the_store_is_found_judged_and_repaired(filled: Judged, tmp_path: Path, kind: Harm) -> None:
    """Each kind is called by its name, names every block that it costs, and is repaired by itself from the primary."""
    known = {one["id"] for one in filled.typed.documents()}
    live = live_blocks(filled.shelf)
    fault = Shelf(filled.shelf).harm(kind, seed=21, among=live.keys() if kind in OF_BLOCKS else None)
    filled.typed.scrub(Side.REPLICA)

    def fresh(found: list[Document]) -> list[Document]:
        return [one for one in found if one["id"] not in known]

    def is_done(found: list[Document]) -> bool:
        named = {name for one in fresh(found) if one["lost"] for name in one["blocks"]}
        left = [one for one in fresh(found) if one["state"] != "repaired" and not one["lost"]]
        return bool(fresh(found)) and not left and not named & {name.hex() for name in live}

    found = fresh(filled.typed.settled(is_done, f"{kind} is repaired"))
    assert fault.expected.problems(found) == [], fault
    assert all(fault.expected.is_found_by(one) for one in found), "nothing else was called damaged"
    repaired = [one for one in found if one["state"] == "repaired"]
    assert all(receipt.result == "repaired" for one in repaired for receipt in filled.typed.receipts(one))
    assert all(filled.typed.receipts(one) for one in repaired)
    filled.typed.scrub(Side.REPLICA)
    assert len(fresh(filled.typed.documents())) == len(found), "a second look finds nothing new"
    for one in found:
        if one["lost"]:
            filled.typed.acknowledge(one)
    filled.assert_restores(tmp_path / "restored")


def test_a_store_whose_disk_gives_errors_is_repaired(tmp_path: Path) -> None:
    """A genuine EIO under a frame is called unreadable, not rot; the block comes back from the primary."""
    (tmp_path / "there").mkdir()
    with real_disk(tmp_path / "there", "btrfs", 600) as disk, judged(tmp_path, place=disk.top) as made:
        name = blake3.blake3((made.root / "big").read_bytes()[:PIECE_BYTES]).digest()
        place = Shelf(made.shelf).current[name]
        rotten = disk.rot(segment_path(made.shelf, place.segment), place.offset + 5000)
        assert not rotten.is_readable
        made.typed.scrub(Side.REPLICA)
        (found,) = made.typed.settled(is_settled, "the frame is repaired")
        assert (found["part"], found["verdict"]) == ("block", "replica_unreadable")
        assert name.hex() in found["blocks"]
        made.assert_restores(tmp_path / "restored")


# what nobody has any more


def test_rot_in_history_alone_is_reported_as_exactly_what_was_lost(tmp_path: Path) -> None:
    """A block that only an older snapshot shows cannot be repaired: snapshot, path and range are named, no more."""
    with judged(tmp_path) as made:
        old = made.pair.line.last_snapshot
        before = live_blocks(made.shelf)
        with (made.root / "big").open("r+b") as file:
            file.write(os.urandom(PIECE_BYTES))
        made.pair.sync()
        history = before.keys() - live_blocks(made.shelf).keys()
        assert len(history) == 1
        fault = Shelf(made.shelf).harm(Harm.BIT, seed=1, among=history)
        made.typed.scrub(Side.REPLICA)
        (found,) = made.typed.settled(is_judged, "the damage is judged")
        assert fault.expected.problems([found]) == []
        assert found["lost"] and found["state"] == "open"
        (affected,) = found["affected"]
        assert (affected["path"], affected["offset"], affected["length"]) == ("big", 0, PIECE_BYTES)
        assert (affected["first"], affected["live"]) == (old, False)
        made.assert_restores(tmp_path / "restored")
        done = made.pair.restore_from_store(tmp_path / "old", "--at", old, code=1)
        assert f"big: bytes 0 to {PIECE_BYTES - 1} are not restored" in done.stderr
        made.typed.acknowledge(found)
        assert made.typed.documents()[0]["state"] == "acknowledged"


def test_a_block_that_both_sides_lost_is_reported_as_lost(tmp_path: Path) -> None:
    """Nobody can give it back, so nothing is written anywhere, and both sides say which file, range and snapshots."""
    with judged(tmp_path) as made:
        rotten, expected = made.rot("big", 70_000)
        fault = Shelf(made.shelf).harm(Harm.BIT, seed=1, among=expected.blocks)
        made.typed.scrub()
        found = made.typed.settled(
            lambda now: len(now) == 2 and all(one["verdict"] == "both_rot" for one in now), "both sides know it is lost"
        )
        assert (
            as_lost(primary_fault(Known("big", 0, []), "", 70_000, 1, *expected.blocks)).expected.problems(found) == []
        )
        assert as_lost(fault).expected.problems(found) == []
        for one in found:
            assert one["lost"] and one["state"] == "open"
            assert [(a["path"], a["offset"]) for a in one["affected"]] == [("big", PIECE_BYTES)]
        made.typed.repair(found[0])
        assert (made.root / "big").read_bytes()[70_000] == rotten.after[0]
        assert all(one["state"] == "open" for one in made.typed.documents())


# what must not be called rot


def test_live_writes_raise_no_alarm(tmp_path: Path) -> None:
    """While files are written, renamed, cut and deleted all the time, both scrubs find nothing, again and again."""
    with judged(tmp_path) as made:
        (made.root / "busy").mkdir()
        tree = Tree(made.root / "busy", seed=4, count=150, big=1, pause_s=0.001)
        tree.build()
        made.pair.sync()
        with tree.working():
            for _ in range(4):
                passing = threading.Thread(target=made.pair.sync, kwargs={"code": None})
                passing.start()
                made.typed.scrub()
                passing.join()
        assert tree.edits > 100
        assert made.typed.documents() == []


def test_rot_is_found_while_others_write(tmp_path: Path) -> None:
    """A file at rest that rots amid a workload is found, and it alone."""
    with judged(tmp_path) as made:
        (made.root / "busy").mkdir()
        tree = Tree(made.root / "busy", seed=5, count=150, big=1, pause_s=0.001)
        tree.build()
        made.pair.sync()
        with tree.working():
            _, expected = made.rot("big", 2 * MIB)
            made.typed.scrub()
            (found,) = made.typed.settled(is_judged, "the rot is judged")
        assert expected.problems([found]) == []


# the books


@pytest.mark.parametrize("side", list(Side))
def test_a_damaged_page_of_a_book_is_found_and_named(tmp_path: Path, side: Side) -> None:
    """The page's own checksum tells; the finding stands in a book of its own, so it survives."""
    with judged(tmp_path) as made:
        node = made.pair.primary if side is Side.PRIMARY else made.pair.replica
        book = node.state / "ledger" / "www.db" if side is Side.PRIMARY else made.shelf / "catalog.db"
        assert node.stop() == 0
        fault = harm_book(book, side, seed=3)
        node.start()
        with contextlib.suppress(AssertionError):  # what cannot open its book may say so instead of scrubbing
            made.typed.scrub(side)
        found = made.typed.settled(bool, "the damaged book is found")
        assert fault.expected.problems(found) == []
        shown = replicad("divergence", "show", found[0]["id"], "--config", node.config, code=None).stdout
        assert "rebuild" in shown, "what to type next"


def test_damage_that_cannot_be_done_is_no_damage(tmp_path: Path) -> None:
    """The kit refuses rather than pretend: a hole has no place on the disk."""
    with real_disk(tmp_path) as disk:
        path = disk.top / "hole"
        with path.open("wb") as file:
            file.truncate(MIB)
        with pytest.raises(CannotRot):
            disk.rot(path, 5000)
