"""Expiry: snapshots go, what others show stays, and a rebuild from the segments comes to the same."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit_retention import KINDS, books, clean, everything, history_of, rebuilt_books
from kit_store import FaultyDisk, Primary, contents, directory_put, file_put, kill, open_archive, put_files, trees
from replicad.db.database import Database
from replicad.db.expiry import drop_snapshots, is_purged, purge
from replicad.model.entry import Drop, Op
from replicad.model.errors import PeerError, ReplicadError, UsageError
from replicad.store.format import Retention, encode_retention
from replicad.work import expire, replay
from replicad.work.archive import Archive, catalog_path
from replicad.work.archive_reader import ArchiveReader
from replicad.work.expire import drop, purge_step


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "ams1" / "www"


@pytest.fixture
def archive(store: Path) -> Iterator[Archive]:
    made = open_archive(store)
    yield made
    made.close()


def drain(archive: Archive) -> None:
    while purge_step(archive):
        pass


# ------------------------------------------------------------------------------------------------------------- rows


def shown(rows: list[tuple[int, int | None]], kept: set[int]) -> list[tuple[int, int | None]]:
    """Rows (born, died) that a kept snapshot, or the present, shows."""
    return [(b, d) for b, d in rows if d is None or any(b <= at < d for at in kept)]


@given(
    st.integers(1, 9),
    st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), max_size=25),
    st.lists(st.sets(st.integers(1, 9)), max_size=4),
    st.integers(1, 7),
)
@settings(max_examples=60, deadline=None)
def test_rows_go_when_no_kept_snapshot_shows_them(
    newest: int, spans: list[tuple[int, int]], rounds: list[set[int]], limit: int
) -> None:
    """Whatever is dropped, in whatever order and steps: exactly those rows are left that are shown."""
    rows = [(b, None if not n else b + n) for b, n in spans if b <= newest and b + n <= newest]
    with everything(newest, rows) as database:
        kept = set(range(1, newest + 1))
        for numbers in rounds:
            with database.transaction():
                drop_snapshots(database, sorted(numbers), 7)
            kept -= numbers - {newest}
            more = True
            while more:
                with database.transaction():
                    more = purge(database, limit)
        assert is_purged(database)
        for table in ("entry", "file_block"):
            left = database.all(f"SELECT born, died FROM {table}")
            assert sorted(left, key=str) == sorted(shown(rows, kept) if rounds else rows, key=str)


def test_a_step_looks_at_no_more_rows_than_it_may(tmp_path: Path) -> None:
    """With thousands of rows that stay before those that go, each step is as small as the limit says."""
    with everything(3, [(1, 3)] * 500 + [(2, 3)] * 500) as database:
        with database.transaction():
            drop_snapshots(database, [2], 7)
        steps = 0
        while not is_purged(database):
            before = database.value("SELECT count(*) FROM entry") + database.value("SELECT count(*) FROM file_block")
            with database.transaction():
                purge(database, 100)
            after = database.value("SELECT count(*) FROM entry") + database.value("SELECT count(*) FROM file_block")
            assert before - after <= 100
            steps += 1
        assert after == 1000 and steps >= 20


# --------------------------------------------------------------------------------------------------------- archives


def test_dropped_snapshots_are_gone_and_the_others_untouched(archive: Archive, store: Path) -> None:
    """They are listed no more, asking for one says why, and every other snapshot is what it was."""
    history_of(Primary(archive), random.Random(1), 12)
    before = trees(store)
    assert drop(archive, [2, 3, 5, 9, 11, 12, 99]) == 5
    drain(archive)
    after = trees(store)
    assert after == {number: tree for number, tree in before.items() if number not in (2, 3, 5, 9, 11)}
    reader = ArchiveReader(store)
    with pytest.raises(UsageError, match="snapshot 5 is not kept any more"):
        reader.record(5)
    with pytest.raises(UsageError, match="there is no snapshot 99"):
        reader.record(99)
    reader.close()
    assert drop(archive, [2, 3]) == 0
    clean(store)


def test_replication_goes_on_after_a_drop(archive: Archive, store: Path) -> None:
    """The head is what it was, the next snapshot follows it, and both sides' records agree."""
    primary = Primary(archive)
    history_of(primary, random.Random(2), 6)
    head, last = archive.head, trees(store)[6]
    drop(archive, range(1, 6))
    drain(archive)
    assert archive.head == head and trees(store) == {6: last}
    put_files(primary, 7, {b"new": b"new"})
    assert contents(store, 7)[b"new"] == b"new"
    archive.close()
    archive._lock = open_archive(store)._lock  # the fixture closes this one
    assert sorted(trees(store)) == [6, 7]


@pytest.mark.parametrize("seed", range(8))
def test_a_rebuild_comes_to_the_same(store: Path, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A catalog made from the segments alone is the same, row for row, whatever was dropped and when, and however small
    the steps are in which rows go."""
    choose = random.Random(seed)
    for module in (expire, replay):
        monkeypatch.setattr(module, "PURGED_ROWS", choose.choice([3, 20, 10_000]))
    archive = open_archive(store)
    primary = Primary(archive)
    for number in range(1, 25):
        history_of(primary, choose, 1, first=number)
        if choose.random() < 0.3:
            drop(archive, choose.sample(range(1, number + 1), choose.randint(1, number)))
        if choose.random() < 0.5:
            purge_step(archive)
    drain(archive)
    archive.close()
    assert rebuilt_books(store, tmp_path / "new.db") == books(catalog_path(store))


def test_a_listing_under_way_notices(archive: Archive, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot that is dropped while it is listed ends in an error, never in a tree that lacks something."""
    primary = Primary(archive)
    put_files(primary, 1, {b"f%04d" % i: b"%d" % i for i in range(2500)})
    primary.record(directory_put(b""))
    primary.seal(2)
    put_files(primary, 3, {b"f0000": b"other"})
    reader = ArchiveReader(store)
    listing = reader.record(2)
    next(listing)
    drop(archive, [2])
    drain(archive)
    with pytest.raises(ReplicadError, match="snapshot 2 was dropped"):
        list(listing)
    reader.close()


# -------------------------------------------------------------------------------------------- files that were dropped


def rows_of(archive: Archive, file: int) -> int:
    return int(archive.inventory.database.value("SELECT count(*) FROM file_block WHERE file = ?", (file,)))


def snapshot(primary: Primary, number: int, *ops: Op, complete: bool = True) -> None:
    primary.record(directory_put(b""), *ops)
    primary.seal(number, complete=complete)


def test_blocks_of_a_dropped_file_go_with_the_last_snapshot_that_shows_it(archive: Archive, store: Path) -> None:
    """As long as a kept snapshot shows the file its blocks stay; then they go, and its number is known no more."""
    primary = Primary(archive)
    (name,) = primary.send(b"content!")
    snapshot(primary, 1, file_put(b"a", 7, {0: name}))
    snapshot(primary, 2, Drop(b"a"))
    for number in (3, 4):
        snapshot(primary, number)
    drop(archive, [3])
    drain(archive)
    assert rows_of(archive, 7) == 1 and contents(store, 1) == {b"a": b"content!"}
    drop(archive, [1])
    drain(archive)
    assert rows_of(archive, 7) == 0 and archive._catalog.forgotten([7, 8]) == {7}
    with pytest.raises(PeerError, match="known no more"):
        primary.record(file_put(b"b", 7, {}))
    clean(store)


def test_a_file_with_another_name_keeps_its_blocks(archive: Archive, store: Path) -> None:
    """Renamed files and hard links are the same file: blocks stay with whatever name there is, however far it is."""
    primary = Primary(archive)
    (name,) = primary.send(b"content!")
    snapshot(primary, 1, file_put(b"a", 7, {0: name}))
    snapshot(primary, 2, file_put(b"b", 7, {}, size=8), Drop(b"a"))
    for number in range(3, 6):
        snapshot(primary, number)
    drop(archive, [1, 2, 3, 4])
    drain(archive)
    assert contents(store, 5) == {b"b": b"content!"}
    snapshot(primary, 6, Drop(b"b"))
    drop(archive, [5])
    drain(archive)
    assert rows_of(archive, 7) == 0
    clean(store)


def test_a_rename_under_way_loses_nothing(archive: Archive, store: Path) -> None:
    """The old name goes in one partial snapshot and the new one comes in a later: until a complete snapshot has shown
    that there is none, the blocks stay, whatever is dropped meanwhile."""
    primary = Primary(archive)
    (name,) = primary.send(b"content!")
    snapshot(primary, 1, file_put(b"a", 7, {0: name}))
    snapshot(primary, 2, Drop(b"a"), complete=False)
    snapshot(primary, 3, complete=False)
    drop(archive, [1, 2])
    drain(archive)
    assert rows_of(archive, 7) == 1
    snapshot(primary, 4, file_put(b"b", 7, {}, size=8))
    drop(archive, [3])
    snapshot(primary, 5)
    drop(archive, [4])
    drain(archive)
    assert contents(store, 5) == {b"b": b"content!"}


def test_names_that_go_in_another_order(archive: Archive, store: Path, tmp_path: Path) -> None:
    """Of a file with several names in the past the last one counts, in whatever order the snapshots go."""
    primary = Primary(archive)
    (name,) = primary.send(b"content!")
    snapshot(primary, 1, file_put(b"a", 7, {0: name}))
    snapshot(primary, 2, file_put(b"b", 7, {}, size=8), Drop(b"a"))
    snapshot(primary, 3)
    snapshot(primary, 4, Drop(b"b"), complete=False)
    snapshot(primary, 5, complete=False)
    drop(archive, [2, 3, 4])
    drain(archive)
    drop(archive, [1])
    drain(archive)
    assert rows_of(archive, 7) == 1  # no complete snapshot since the last name
    snapshot(primary, 6)
    drain(archive)
    assert rows_of(archive, 7) == 0
    assert rebuilt_books(store, tmp_path / "new.db") == books(catalog_path(store))


def test_after_a_loss_of_records_no_file_is_forgotten(archive: Archive) -> None:
    """What the lost record said is not known: perhaps it named the file."""
    primary = Primary(archive)
    (name,) = primary.send(b"content!")
    snapshot(primary, 1, file_put(b"a", 7, {0: name}))
    snapshot(primary, 2, Drop(b"a"))
    snapshot(primary, 3)
    with archive.upkeep() as (_, catalog):
        catalog.database.execute("UPDATE snapshot SET lost = 1 WHERE number = 2")
    drop(archive, [1])
    drain(archive)
    assert rows_of(archive, 7) == 1


def test_killed_at_any_moment(tmp_path: Path) -> None:
    """After a kill -9 or a power cut at any step of a drop it has happened or not, and kept snapshots are whole."""
    for cut, seed in itertools.product(range(3), range(8)):
        store, disk = tmp_path / f"{cut}-{seed}" / "www", FaultyDisk()
        archive = open_archive(store, disk)
        history_of(Primary(archive), random.Random(seed), 8)
        before = trees(store)
        if cut == 0:
            disk.fail_sync = True
            with pytest.raises(ReplicadError):
                drop(archive, [2, 3, 4, 6])
            disk.fail_sync = False
        else:
            drop(archive, [2, 3, 4, 6])
            if cut == 2:
                purge_step(archive)
        kill(archive)
        if cut != 0 or seed % 2:
            disk.power_cut(seed)
        archive = open_archive(store)
        after = trees(store)
        assert set(before) - set(after) in ((set(), {2, 3, 4, 6}) if cut == 0 else ({2, 3, 4, 6},))
        assert all(before[number] == tree for number, tree in after.items())
        drain(archive)
        archive.close()
        clean(store)
        assert rebuilt_books(store, tmp_path / "new.db") == books(catalog_path(store))


def test_a_drop_that_the_catalog_missed(archive: Archive, store: Path, tmp_path: Path) -> None:
    """The decision counts once it is in the segments: an older catalog catches up with it."""
    history_of(Primary(archive), random.Random(4), 6)
    archive._catalog.database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    old = catalog_path(store).read_bytes()
    drop(archive, [1, 2, 4])
    drain(archive)
    now = books(catalog_path(store))
    kill(archive)
    for name in ("catalog.db-wal", "catalog.db-shm"):
        (store / name).unlink(missing_ok=True)
    catalog_path(store).write_bytes(old)
    again = open_archive(store)
    assert sorted(trees(store)) == [3, 5, 6]
    assert {kind: books(catalog_path(store))[kind] for kind in KINDS} == {kind: now[kind] for kind in KINDS}
    archive._lock, archive._catalog = again._lock, again._catalog


def test_the_primary_has_no_word_in_it(archive: Archive) -> None:
    """A retention frame that a client sends, as whatever it may send, is refused and changes nothing."""
    put_files(Primary(archive), 1, {b"a": b"1"})
    put_files(Primary(archive), 2, {b"a": b"2"})
    frame = encode_retention(Retention(1, (1,)))
    for send in (archive.add_blocks, archive.add_record, archive.seal):
        with pytest.raises(PeerError):
            send(frame)
    assert archive._catalog.database.value("SELECT max(dropped_ns) FROM snapshot") == 0


def test_dropping_needs_no_room_beyond_the_reserve(store: Path) -> None:
    """A store that is full can still let snapshots go."""
    disk = FaultyDisk()
    archive = open_archive(store, disk, reserve_bytes=1 << 30)
    history_of(Primary(archive), random.Random(5), 4)
    disk.free = 1 << 20
    assert drop(archive, [1, 2]) == 2
    archive.close()


def test_database_is_the_catalogs(archive: Archive) -> None:
    """The inventory asks the very catalog that the writer has, with what is not committed."""
    assert isinstance(archive.inventory.database, Database)
