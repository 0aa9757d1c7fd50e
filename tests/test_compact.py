"""Compaction: room comes back, and at no kill point is anything lost that a kept snapshot shows."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit_retention import books, clean, everything_in, history_of, let_go_and_compact, rebuilt_books
from kit_store import (
    FaultyDisk,
    Primary,
    contents,
    directory_put,
    file_put,
    flip,
    kill,
    open_archive,
    put_files,
    segment,
    verify_segment,
)
from replicad.db.catalog import BlockPlace, Catalog
from replicad.db.database import Database
from replicad.db.inventory import Inventory
from replicad.link.messages import Lost
from replicad.model.block import Buffer, block_id
from replicad.model.entry import Drop
from replicad.model.errors import BookDamagedError, DiskFullError, PeerError, ReplicadError
from replicad.model.marks import MIN_BYTES, Marks
from replicad.store import store as store_module
from replicad.store.format import SYNC_BYTES, FrameType, split_frames
from replicad.store.segments import compacted_path, segment_numbers
from replicad.system.disk import Disk
from replicad.work import archive as archive_module
from replicad.work import archive_reader as archive_reader_module
from replicad.work.archive import Archive, catalog_path
from replicad.work.archive_reader import ArchiveReader
from replicad.work.compact import Compacted, compact_segment
from replicad.work.expire import drop, purge_step
from replicad.work.rebuild import rebuild_catalog
from replicad.work.segment_check import SegmentCheck
from replicad.work.upkeep import rebuild_book

SMALL = 96 * 1024


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(store_module, "SEGMENT_BYTES", SMALL)
    return tmp_path / "ams1" / "www"


def filled(store: Path, disk: Disk | None = None, *, seed: int = 1, snapshots: int = 30) -> Archive:
    """A store of several segments."""
    archive = open_archive(store, disk)
    history_of(Primary(archive), random.Random(seed), snapshots)
    assert archive.checkpoint.segment > 3
    return archive


def let_go(archive: Archive, numbers: list[int]) -> None:
    drop(archive, numbers)
    while purge_step(archive):
        pass


def marked(archive: Archive, place: int = 0) -> Marks:
    """What is in use, as the archive and its catalog say."""
    marks = archive.begin_marking(10_000, place)
    assert marks is not None
    for page in archive.inventory.file_blocks():
        marks.add(row.id for row in page)
    return marks


def compact_all(archive: Archive, disk: Disk | None = None) -> list[Compacted]:
    marks = marked(archive)
    done = [
        compact_segment(archive, disk or Disk(), number, marks, ())
        for number in segment_numbers(archive.store.directory)
    ]
    archive.end_marking(marks)
    return done


def is_well(store: Path) -> None:
    """Structure and every byte are as the catalog says; so are the segments by themselves."""
    clean(store)
    numbers = segment_numbers(store)
    with closing(Inventory.open(catalog_path(store))) as inventory:
        for number in numbers:
            assert not verify_segment(store, number, Disk(), last=number == numbers[-1])
            size = segment(store, number).stat().st_size
            checked = SegmentCheck(inventory, Disk(), segment(store, number), number, None, size=size).run()
            assert not (checked.wrongs or checked.unknown or checked.uncopied), (number, checked)


def size_of(store: Path) -> int:
    return sum(segment(store, number).stat().st_size for number in segment_numbers(store))


# ------------------------------------------------------------------------------------------------------------- marks


@given(st.lists(st.binary(min_size=32, max_size=32), max_size=50), st.integers(0, 100), st.integers(0, 10**9))
def test_what_was_marked_is_marked(ids: list[bytes], place: int, blocks: int) -> None:
    """No marked block is ever taken for unused, however few were expected."""
    marks = Marks(min(blocks, 10**6), place)
    marks.add(ids)
    assert all(name in marks for name in ids)


def test_few_others_count_as_marked() -> None:
    """With the room that is made for them, about one in sixteen of the others does, and not the same ones each time."""
    used = [block_id(b"%d" % i) for i in range(20_000)]
    others = [block_id(b"other %d" % i) for i in range(20_000)]
    wrong = []
    for place in (0, 9):
        marks = Marks(len(used), place)
        marks.add(used)
        wrong.append({name for name in others if name in marks})
        assert len(wrong[-1]) < len(others) / 8
    assert len(wrong[0] & wrong[1]) < len(others) / 50
    assert MIN_BYTES * 8 > 16


# ----------------------------------------------------------------------------------------------- what nobody is sure of


def rewritten(store: Path) -> tuple[Archive, dict[bytes, bytes]]:
    """A store of several segments, in which snapshot 2 has the first names of some files, and the archive on it."""
    archive = open_archive(store)
    primary = Primary(archive)
    put_files(primary, 1, {b"old": os.urandom(9000)})
    files = {b"f%02d" % i: os.urandom(8000) for i in range(40)}
    put_files(primary, 2, files)
    for number in range(3, 8):
        put_files(primary, number, {b"g%d-%d" % (number, i): os.urandom(8000) for i in range(12)})
    return archive, files


def without_a_record(store: Path) -> tuple[Path, bytes]:
    """Make the catalog anew while the record of snapshot 2 cannot be read; its segment, and the bytes to put back."""
    frames = [
        (number, frame)
        for number in segment_numbers(store)
        for frame in split_frames(segment(store, number).read_bytes())
    ]
    number, frame = [found for found in frames if found[1].type == FrameType.RECORD][1]
    good = segment(store, number).read_bytes()
    flip(segment(store, number), frame.offset + 70)
    catalog_path(store).unlink()
    rebuild_catalog(store)
    return segment(store, number), good


def rewritten_without_a_record(store: Path) -> tuple[Archive, dict[bytes, bytes], Path, bytes]:
    """An archive that has lost the record of snapshot 2 and let snapshot 1 go, the files of that record, the segment
    where it stood, and the bytes to put back there."""
    archive, files = rewritten(store)
    archive.close()
    damaged, good = without_a_record(store)
    archive = open_archive(store)
    let_go(archive, [1])
    return archive, files, damaged, good


def test_after_a_loss_of_records_nothing_is_compacted(store: Path) -> None:
    """What looks unused may be what a lost record named: once that is put back, every file has its bytes."""
    archive, files, damaged, good = rewritten_without_a_record(store)
    assert all("records of snapshots are missing" in one.skipped for one in compact_all(archive))
    archive.close()
    damaged.write_bytes(good)
    rebuild_catalog(store, knowing=catalog_path(store))
    found = contents(store, 2)
    assert {path: found.get(path) for path in files} == files
    archive = open_archive(store)
    assert not any("records" in one.skipped for one in compact_all(archive))  # it ends when they are back
    archive.close()


def test_marks_from_before_a_rebuild_count_for_nothing(store: Path) -> None:
    """A rebuild between two compactions brings a record back, of whose blocks the marks know nothing."""
    archive, files, damaged, good = rewritten_without_a_record(store)
    marks = marked(archive)
    damaged.write_bytes(good)
    rebuild_book(archive, Disk())
    assert not archive.inventory.lost
    assert all(compact_segment(archive, Disk(), number, marks, ()).skipped for number in segment_numbers(store))
    compact_all(archive)
    archive.close()
    found = contents(store, 2)
    assert {path: found.get(path) for path in files} == files


DIED = 9


def died_in_a_rebuild(store: Path, snapshots: int, last_deed: str = "SELECT 1") -> None:
    """Have a process rebuild the catalog, and die at once when it has committed so many snapshots."""
    child = os.fork()
    if child:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == DIED
        return
    real, count = Catalog.commit, itertools.count(1)

    def commit(self: Catalog, *args: Any, **kwargs: Any) -> None:
        real(self, *args, **kwargs)
        if next(count) == snapshots:
            self.database.execute(last_deed)
            os._exit(DIED)

    try:
        Catalog.commit = commit  # type: ignore[method-assign]
        rebuild_catalog(store)
    finally:
        os._exit(0)


def test_what_a_killed_rebuild_left_is_not_taken_for_the_truth_later(store: Path) -> None:
    """Compaction has gone on since: when the catalog is lost after that, nothing may say that it has the blocks."""
    archive = open_archive(store)
    primary = Primary(archive)
    files = {b"f%02d" % i: os.urandom(8000) for i in range(40)}
    put_files(primary, 1, files)
    primary.record(directory_put(b""), *(Drop(path) for path in files))
    primary.seal(2)
    for number in range(3, 8):
        put_files(primary, number, {b"g%d-%d" % (number, i): os.urandom(8000) for i in range(12)})
    archive.close()
    died_in_a_rebuild(store, 5, "PRAGMA wal_checkpoint(TRUNCATE)")
    archive = open_archive(store)
    let_go_and_compact(archive, [1])
    archive.close()
    for path in store.glob("catalog.db*"):
        path.unlink()
    with pytest.raises(BookDamagedError, match="no catalog"):
        open_archive(store)
    rebuild_catalog(store)
    archive = open_archive(store)
    bits = archive.needed(b"".join(map(block_id, files.values())))
    assert sum(byte.bit_count() for byte in bits) == len(files)
    archive.close()


def test_a_rebuild_that_failed_leaves_nothing_to_be_taken_later(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that a running archive made, and that came to an error: the old catalog stays, and is the only one."""
    archive = filled(store)

    def full(self: Catalog, *args: Any, **kwargs: Any) -> None:
        raise DiskFullError("no room left for the book")

    with monkeypatch.context() as patch:
        patch.setattr(Catalog, "commit", full)
        with pytest.raises(DiskFullError):
            rebuild_book(archive, Disk())
    archive.abort()
    assert [path.name for path in store.glob("catalog.new*")] == []
    put_files(Primary(archive), 31, {b"on": b"and on"})
    archive.close()


@pytest.mark.parametrize("is_stale", [False, True])
def test_a_rebuild_that_was_killed_is_finished_by_the_next_opening(store: Path, is_stale: bool) -> None:
    """With what its log holds, and without the log of a catalog that is gone, everything comes back; what retention let
    go, whose blocks are gone, is missed by nobody."""
    archive = filled(store)
    let_go_and_compact(archive, [n for n in range(1, 29) if n % 7])
    history_of(Primary(archive), random.Random(3), 5, first=31)
    good = everything_in(store)
    log = (store / "catalog.db-wal").read_bytes()
    archive.close()
    catalog_path(store).unlink()
    died_in_a_rebuild(store, 33)
    assert (store / "catalog.new-wal").stat().st_size
    if is_stale:
        (store / "catalog.db-wal").write_bytes(log)
    open_archive(store).close()
    assert everything_in(store) == good
    assert [path.name for path in store.glob("catalog.new*")] == []
    is_well(store)


# ------------------------------------------------------------------------------------------------------------- whole


@pytest.mark.parametrize("seed", range(4))
def test_room_comes_back_and_all_that_is_kept_stays(store: Path, tmp_path: Path, seed: int) -> None:
    """Kept snapshots give every byte, the store is clean, smaller, and a rebuild from it comes to the same."""
    archive = filled(store, seed=seed)
    kept = everything_in(store)
    choose = random.Random(seed)
    gone = choose.sample(range(1, 30), 20)
    let_go(archive, gone)
    before = size_of(store)
    done = compact_all(archive)
    assert size_of(store) < 0.8 * before
    saved = sum(one.before_bytes - one.after_bytes for one in done if not one.skipped)
    assert before - size_of(store) == saved
    assert everything_in(store) == {number: tree for number, tree in kept.items() if number not in gone}
    is_well(store)
    for one in compact_all(archive):  # once more: nothing is left to do
        assert one.skipped
    archive.close()
    assert rebuilt_books(store, tmp_path / "new.db") == books(catalog_path(store))
    is_well(store)


def test_a_compacted_store_lives_on(store: Path, tmp_path: Path) -> None:
    """More snapshots, more drops, more compactions, with blocks that come back after they were given up."""
    archive = filled(store)
    choose = random.Random(7)
    for first in range(31, 91, 20):
        let_go(archive, choose.sample(range(1, first), first // 2))
        compact_all(archive)
        history_of(Primary(archive), choose, 20, first=first)
        is_well(store)
    kept = everything_in(store)
    let_go(archive, list(range(1, 90)))
    compact_all(archive)
    archive.close()
    archive = open_archive(store)
    assert everything_in(store) == {90: kept[90]}
    archive.close()
    assert rebuilt_books(store, tmp_path / "new.db") == books(catalog_path(store))


def test_the_moment_of_receiving_survives(store: Path, tmp_path: Path) -> None:
    """After compaction and rebuild each snapshot has the time at which the replica received it."""
    archive = filled(store)
    times = archive._catalog.database.all("SELECT number, received_ns FROM snapshot ORDER BY 1")
    let_go(archive, list(range(1, 29)))
    compact_all(archive)
    archive.close()
    rebuilt = rebuilt_books(store, tmp_path / "new.db")["snapshot"]
    assert sorted((row[1], row[4]) for row in rebuilt) == times


def test_a_deleted_file_gives_its_room_back(store: Path) -> None:
    """Once no kept snapshot shows it, nothing is left of its blocks."""
    archive = open_archive(store)
    primary = Primary(archive)
    put_files(primary, 1, {b"f%d" % i: os.urandom(8000) for i in range(60)})
    primary.record(directory_put(b""), *(Drop(b"f%d" % i) for i in range(60)))
    primary.seal(2)
    put_files(primary, 3, {b"g%d" % i: os.urandom(8000) for i in range(30)})
    primary.abort()
    let_go(archive, [1])
    before = size_of(store)
    compact_all(archive)
    assert size_of(store) < before - 350_000
    is_well(store)
    archive.close()


# -------------------------------------------------------------------------------------------------- what is left alone


def test_what_is_left_alone(store: Path) -> None:
    """The last segment, one with an open finding, one that is not as the catalog says; all while work is unsealed."""
    archive = filled(store)
    let_go(archive, list(range(1, 30)))
    last = archive.checkpoint.segment
    before = {number: segment(store, number).read_bytes() for number in segment_numbers(store)}
    marks = marked(archive)
    assert "still written" in compact_segment(archive, Disk(), last, marks, ()).skipped
    assert "finding" in compact_segment(archive, Disk(), 1, marks, {1}).skipped
    flip(segment(store, 2), SMALL // 2)
    assert "left to the scrub" in compact_segment(archive, Disk(), 2, marks, ()).skipped
    flip(segment(store, 2), SMALL // 2)
    primary = Primary(archive)
    primary.send(b"something")
    assert "unsealed" in compact_segment(archive, Disk(), 1, marks, ()).skipped
    assert archive.begin_marking(1, 0) is None
    primary.abort()
    assert {number: segment(store, number).read_bytes() for number in before}.items() >= {
        number: data for number, data in before.items() if number < last
    }.items()
    segment(store, 3).rename(store / "aside")
    assert "missing" in compact_segment(archive, Disk(), 3, marked(archive), ()).skipped
    (store / "aside").rename(segment(store, 3))
    archive.close()


def test_rows_that_are_still_to_go_hold_it_up(store: Path) -> None:
    """As long as the catalog still has rows of dropped snapshots nothing is compacted."""
    archive = filled(store)
    drop(archive, list(range(1, 20)))
    marks = marked(archive)
    assert "being taken out" in compact_segment(archive, Disk(), 1, marks, ()).skipped
    archive.close()


def test_marks_that_were_ended_count_for_nothing(store: Path) -> None:
    """Nothing is compacted by them; others that were begun meanwhile count on their own."""
    archive = filled(store)
    let_go(archive, list(range(1, 30)))
    one, other = marked(archive), marked(archive, place=1)
    assert not compact_segment(archive, Disk(), 1, one, ()).skipped
    archive.end_marking(one)
    assert compact_segment(archive, Disk(), 2, one, ()).skipped
    assert not compact_segment(archive, Disk(), 2, other, ()).skipped
    archive.close()


def test_marks_of_several_all_know_what_a_client_was_told_of(store: Path) -> None:
    """Whoever began them, and however many there are."""
    archive = filled(store)
    let_go(archive, list(range(1, 30)))
    several = [marked(archive), marked(archive)]
    (unused,) = _unused(archive, several[0])
    assert not any(unused in marks for marks in several)
    assert archive.needed(unused) == b"\0"
    assert all(unused in marks for marks in several)
    archive.close()


# ------------------------------------------------------------------------------------------------- beside a session


def test_a_block_that_a_client_is_told_of_stays(store: Path) -> None:
    """Between the marks and the compaction a client offers a block that no snapshot needs: told that it is here, it
    does not send it, so it must stay."""
    archive = filled(store)
    let_go(archive, list(range(1, 30)))
    marks = marked(archive)
    (unused,) = _unused(archive, marks)
    assert archive.needed(unused) == b"\0"
    number = archive.inventory.places([unused])[unused].segment
    compact_segment(archive, Disk(), number, marks, ())
    assert unused in archive.inventory.places([unused])
    assert archive.begin_marking(1, 0) is None  # it was told of blocks that it has not named yet
    primary = Primary(archive)
    primary.record(directory_put(b""), file_put(b"again", 9999, {0: unused}))
    primary.seal(31)
    assert archive.begin_marking(1, 0) is not None  # the session stays open between its passes
    is_well(store)
    archive.close()


@pytest.mark.parametrize("most", [1, 1000])
def test_what_was_promised_before_a_partial_seal_stays(store: Path, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """A pass is sealed in the middle of a large file, whose record comes at its end and names what it was told of; of
    more than is kept in mind nothing is compacted until the whole pass has ended."""
    monkeypatch.setattr(archive_module, "MAX_PROMISED", most)
    archive = filled(store)
    let_go(archive, list(range(1, 30)))
    unused = _unused(archive, marked(archive), 3)
    primary = Primary(archive)
    assert archive.needed(unused[0]) == b"\0"
    primary.record(directory_put(b"small"))
    primary.seal(31, complete=False)
    assert (archive.begin_marking(1, 0) is None) == (most == 1)
    if most > 1:
        assert sum(one.dropped for one in compact_all(archive))
    primary.record(directory_put(b""), file_put(b"large", 9999, {0: unused[0]}))
    primary.seal(32, complete=False)
    assert (archive.begin_marking(1, 0) is None) == (most == 1)
    primary.seal(33)
    assert compact_all(archive)
    is_well(store)
    archive.close()


def test_a_promise_ends_with_the_session(store: Path) -> None:
    """What a client was told and never came back to is unused again."""
    archive = filled(store)
    let_go(archive, list(range(1, 30)))
    unused = _unused(archive, marked(archive))[0]
    primary = Primary(archive)
    assert archive.needed(unused) == b"\0"
    primary.record(directory_put(b"small"))
    primary.seal(31, complete=False)
    primary.abort()
    assert unused not in marked(archive)
    archive.close()


def test_a_block_that_is_gone_is_asked_for_again(store: Path) -> None:
    """A record that names a block which a compaction took is refused, and with the next offer it is sent."""
    archive = filled(store)
    let_go(archive, list(range(1, 30)))
    marks = marked(archive)
    (unused,) = _unused(archive, marks)
    archive._recent.add(unused)  # as if it had been looked up long ago
    number = archive.inventory.places([unused])[unused].segment
    assert compact_segment(archive, Disk(), number, marks, ()).dropped
    primary = Primary(archive)
    with pytest.raises(PeerError, match="not in the store"):
        primary.record(file_put(b"a", 7, {0: unused}))
    assert archive.needed(unused) == b"\1"
    archive.close()


def test_what_a_session_names_meanwhile_stays(store: Path) -> None:
    """Snapshots that arrive between the marks and the compaction lose nothing."""
    archive = filled(store)
    let_go(archive, list(range(1, 30)))
    marks = marked(archive)
    choose = random.Random(1)  # the same contents again, of which many are unused now
    history_of(Primary(archive), choose, 3, first=31)
    kept = everything_in(store)
    for number in segment_numbers(store):
        compact_segment(archive, Disk(), number, marks, ())
    assert everything_in(store) == kept
    is_well(store)
    archive.close()


def _unused(archive: Archive, marks: Marks, count: int = 1) -> list[bytes]:
    items = (item for number in (1, 2) for item in archive.inventory.expected(number, 0, 1 << 40))
    return list(itertools.islice((item.id for item in items if item.id and item.id not in marks), count))


# ------------------------------------------------------------------------------------------------------ beside readers


def test_a_reader_under_way_reads_on(store: Path) -> None:
    """A reader that looked a block up before, and has the old file open, gets it all the same."""
    archive = filled(store)
    let_go(archive, list(range(1, 29)))
    kept = everything_in(store)
    reader = ArchiveReader(store)
    with closing(Inventory.open(catalog_path(store))) as inventory:
        named = {row.id for page in inventory.file_blocks() for row in page}
        old = {place.id: place for place in inventory.places(sorted(named)).values()}
    for place in old.values():
        assert not isinstance(dict(reader._read([place]))[place.id], Lost)
    compact_all(archive)
    for name, place in old.items():
        ((_, found),) = reader._read([place])  # as if it had been looked up before the compaction
        assert not isinstance(found, Lost)
        assert found.piece[found.start : found.end][32:64] == name
        assert reader.look(name)[0].name == "MATCHES"
    reader.close()
    assert everything_in(store) == kept
    archive.close()


def test_a_reader_between_commit_and_rename(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that knows the old place looks into the segment just before the rename, and into the compacted file just
    after it: no block that is kept is called lost."""
    archive = filled(store)
    let_go(archive, [n for n in range(1, 30) if n % 7])
    marks = marked(archive)
    kept = [item.id for item in archive.inventory.expected(2, 0, 1 << 40) if item.id and item.id in marks]
    reader, real = ArchiveReader(store), archive_reader_module._proven
    answers: list[object] = []

    class Late(Disk):
        """Renames once the reader, which looks just now, has looked into the segment."""

        def rename_durable(self, source: Path, target: Path) -> None:
            def proven(disk: Disk, path: Path, place: BlockPlace) -> bytes:
                found = real(disk, path, place)
                if source.exists():
                    Disk.rename_durable(self, source, target)
                return found

            with monkeypatch.context() as patch:
                patch.setattr(archive_reader_module, "_proven", proven)
                for place in reader._listing.places(kept).values():
                    answers.extend(found for _, found in reader._read([place]))
            assert not source.exists()

    archive._disk = Late()
    assert not compact_segment(archive, Disk(), 2, marks, ()).skipped
    assert len(answers) == len(kept) and not any(isinstance(found, Lost) for found in answers)
    reader.close()
    archive.close()


# ------------------------------------------------------------------------------------------------------- kill points


class Killed(Exception):
    """kill -9, from here on nothing happens any more."""


class DyingDisk(FaultyDisk):
    """Counts what it is asked to do, and dies at one of those moments."""

    def __init__(self) -> None:
        super().__init__()
        self.steps, self.last = 0, 1 << 60

    def step(self) -> None:
        self.steps += 1
        if self.steps > self.last:
            raise Killed

    def pwrite(self, fd: int, data: Buffer, offset: int) -> int:
        self.step()
        return super().pwrite(fd, data, offset)

    def sync(self, fd: int) -> None:
        self.step()
        super().sync(fd)

    def sync_directory(self, path: Path) -> None:
        self.step()
        super().sync_directory(path)

    def rename_durable(self, source: Path, target: Path) -> None:
        self.step()
        super().rename_durable(source, target)
        self.step()


@pytest.fixture
def dying(monkeypatch: pytest.MonkeyPatch) -> Iterator[DyingDisk]:
    """A disk that also dies right before or right after a commit of the catalog."""
    disk = DyingDisk()
    real: Callable[[Any], None] = Database.commit

    def commit(self: Database) -> None:
        disk.step()
        real(self)
        disk.step()

    monkeypatch.setattr(Database, "commit", commit)
    yield disk


@pytest.mark.parametrize("power_cut", [False, True])
def test_killed_at_every_step(store: Path, tmp_path: Path, dying: DyingDisk, power_cut: bool) -> None:
    """Whatever step of a compaction is the last: the store opens, is clean, and gives all that is kept; then the
    compaction is done again, and a rebuild comes to the same."""
    archive = filled(store, dying)
    let_go(archive, [n for n in range(1, 30) if n % 7])
    kept = everything_in(store)
    archive.close()
    _copy(store, tmp_path / "good")
    for last in itertools.count():
        _copy(tmp_path / "good", store)
        dying.last = 1 << 60
        archive = open_archive(store, dying)
        marks = marked(archive)
        dying.steps, dying.last = 0, last
        try:
            compact_segment(archive, dying, 2, marks, ())
            survived = True
        except Killed:
            survived = False
        dying.last = 1 << 60
        kill(archive)
        if power_cut:
            dying.power_cut(last)
        archive = open_archive(store, dying)
        assert everything_in(store) == kept, last
        is_well(store)
        compact_all(archive, dying)
        assert everything_in(store) == kept, last
        archive.close()
        is_well(store)
        assert rebuilt_books(store, tmp_path / "new.db") == books(catalog_path(store))
        assert not list((store / "segments").glob(".*")), last
        if survived:
            break
    assert last > 8


def test_a_power_cut_in_a_second_compaction_takes_nothing_half_copied(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That the first one has come to its end is durable: what the second has copied so far does not take its place."""
    real_begin, real_commit, begun = Database.begin, Database.commit, [False]

    def begin(self: Database, *, durable: bool = False) -> None:
        begun.append(durable)
        real_begin(self, durable=durable)

    def commit(self: Database) -> None:
        real_commit(self)
        if begun[-1]:  # what was committed since may be lost
            _copy(store, tmp_path / "durable")

    archive = filled(store)
    let_go(archive, [n for n in range(1, 30) if n % 7])
    kept, marks = everything_in(store), marked(archive)
    with monkeypatch.context() as patch:
        patch.setattr(Database, "begin", begin)
        patch.setattr(Database, "commit", commit)
        assert not compact_segment(archive, Disk(), 2, marks, ()).skipped
    kill(archive)
    for path in (tmp_path / "durable").glob("catalog.db*"):
        shutil.copy(path, store)
    compacted_path(store, 2).write_bytes(segment(store, 2).read_bytes()[:SYNC_BYTES])
    with closing(open_archive(store)):
        pass
    assert everything_in(store) == kept
    is_well(store)


def test_a_reader_of_a_store_that_was_killed_in_between(store: Path, dying: DyingDisk) -> None:
    """Between the commit and the rename the old file has its name still: a reader that may write nothing finds every
    byte all the same."""
    archive = filled(store, dying)
    let_go(archive, [n for n in range(1, 30) if n % 7])
    kept = everything_in(store)
    marks = marked(archive)
    real = DyingDisk.rename_durable

    def rename(source: Path, target: Path) -> None:
        raise Killed

    dying.rename_durable = rename  # type: ignore[method-assign]
    with pytest.raises(Killed):
        compact_segment(archive, dying, 2, marks, ())
    assert everything_in(store) == kept
    kill(archive)
    assert everything_in(store) == kept
    dying.rename_durable = real.__get__(dying)  # type: ignore[method-assign]
    open_archive(store, dying).close()
    assert everything_in(store) == kept
    is_well(store)


@pytest.mark.parametrize("room", [0, 4096, 40_000])
def test_a_disk_that_fills_up(store: Path, room: int) -> None:
    """It ends in an error that says so, the archive goes on after an abort, and no half of a file is left."""
    disk = FaultyDisk()
    archive = filled(store, disk)
    let_go(archive, [n for n in range(1, 30) if n % 7])
    kept, marks = everything_in(store), marked(archive)
    disk.room = room
    with pytest.raises(DiskFullError):
        compact_segment(archive, disk, 2, marks, ())
    disk.room = None
    archive.abort()
    assert everything_in(store) == kept
    assert not list((store / "segments").glob(".*"))
    is_well(store)
    put_files(Primary(archive), 31, {b"on": b"and on"})
    archive.close()


def test_it_may_use_half_of_the_reserve(store: Path) -> None:
    """A store that is full for a client can still be compacted; one that is truly full cannot."""
    disk = FaultyDisk()
    filled(store, disk).close()
    archive = open_archive(store, disk, reserve_bytes=1 << 20)
    let_go(archive, [n for n in range(1, 30) if n % 7])
    marks = marked(archive)
    disk.free = (1 << 19) + 10
    with pytest.raises(DiskFullError):
        compact_segment(archive, disk, 2, marks, ())
    disk.free = (1 << 19) + SMALL
    assert not compact_segment(archive, disk, 2, marks, ()).skipped
    archive.close()


def test_what_reads_back_wrong_is_not_taken(store: Path) -> None:
    """A medium that does not give back what was written: the old segment stays, the error says so."""

    class Lying(FaultyDisk):
        def pwrite(self, fd: int, data: Buffer, offset: int) -> int:
            if os.readlink(f"/proc/self/fd/{fd}").endswith(".compact") and len(data) > 5000:
                data = bytearray(data)
                data[5000] ^= 4
            return super().pwrite(fd, data, offset)

    archive = filled(store)
    let_go(archive, [n for n in range(1, 30) if n % 7])
    kept, marks = everything_in(store), marked(archive)
    with pytest.raises(ReplicadError, match="not compacted"):
        compact_segment(archive, Lying(), 2, marks, ())
    archive.abort()
    assert everything_in(store) == kept
    is_well(store)
    archive.close()


@given(st.integers(0, 10**6))
@settings(max_examples=12, deadline=None)
def test_any_life_of_a_store(seed: int) -> None:
    """Whatever order of snapshots, drops, compactions, kills and aborted sessions: what is kept is there."""
    choose = random.Random(seed)
    before, store_module.SEGMENT_BYTES = store_module.SEGMENT_BYTES, SMALL
    try:
        with tempfile.TemporaryDirectory() as directory:
            _live(Path(directory) / "www", choose)
    finally:
        store_module.SEGMENT_BYTES = before


def _live(store: Path, choose: random.Random) -> None:
    archive, number, gone = open_archive(store), 1, set[int]()
    said: dict[int, Any] = {}
    for _ in range(25):
        deed = choose.choice(["write", "write", "write", "drop", "purge", "compact", "compact", "kill", "abort"])
        if deed == "write":
            history_of(Primary(archive), choose, count := choose.randint(1, 4), first=number)
            number += count
            said |= {n: tree for n, tree in everything_in(store).items() if n not in said}
        elif deed == "drop" and number > 1:
            numbers = choose.sample(range(1, number), choose.randint(1, number - 1))
            drop(archive, numbers)
            gone |= set(numbers) - {number - 1}
        elif deed == "purge":
            purge_step(archive)
        elif deed == "compact":
            while purge_step(archive) and choose.random() < 0.8:
                pass
            compact_all(archive)
        elif deed == "kill":
            kill(archive)
            archive = open_archive(store)
        elif deed == "abort":
            Primary(archive).send(*(b"%d" % choose.randint(0, 99) * 999 for _ in range(9)))
            archive.abort()
        assert everything_in(store) == {n: tree for n, tree in said.items() if n not in gone}
    while purge_step(archive):
        pass
    archive.close()
    is_well(store)
    assert rebuilt_books(store, store.parent / "new.db") == books(catalog_path(store))


def _copy(source: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
