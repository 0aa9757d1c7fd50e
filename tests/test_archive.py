"""The archive: acknowledged means durable, bad input changes nothing, and damage is named, never passed off."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit_store import (
    CLIENT,
    DATASET,
    META,
    PAGE,
    FaultyDisk,
    Model,
    Primary,
    Tree,
    block,
    block_frame,
    contents,
    directory_put,
    fetch_all,
    file_put,
    flip,
    groups,
    kill,
    open_archive,
    put_files,
    read_tree,
    record_frame,
    segment,
    trees,
)
from replicad.db.inventory import Inventory
from replicad.link.messages import Lost
from replicad.model.block import ZSTD, block_id
from replicad.model.entry import Drop, Kind, Map, Meta, Op, Put
from replicad.model.errors import (
    BookDamagedError,
    DiskFullError,
    DivergedError,
    LockedError,
    PeerError,
    ReplicadError,
    StoreDamagedError,
    UsageError,
)
from replicad.model.order import MAX_ORDER_BYTES
from replicad.model.snapshot import NO_PARENT, Commit, Head, encode_commit, records_digest
from replicad.store import store as store_module
from replicad.store.format import FrameType, encode_frame, encode_plain, split_frames
from replicad.store.segments import Damage, Torn, segment_numbers
from replicad.work import archive as module
from replicad.work import replay as replay_module
from replicad.work.archive import Archive
from replicad.work.archive_reader import ArchiveReader
from replicad.work.rebuild import rebuild_catalog
from replicad.work.structure_check import check_structure

Files = dict[bytes, bytes]


def three_snapshots(directory: Path, disk: FaultyDisk | None = None) -> dict[int, Files]:
    """A closed store with three snapshots; what each holds."""
    archive = open_archive(directory, disk)
    primary = Primary(archive)
    held: Files = {}
    expected: dict[int, Files] = {}
    for number in (1, 2, 3):
        new = {b"f%d%d" % (number, i): block(f"{number} {i} ", 600 * i + 10) for i in range(4)}
        put_files(primary, number, new)
        held |= new
        expected[number] = dict(held)
    archive.close()
    return expected


def check(directory: Path, expected: dict[int, Files]) -> None:
    """Every snapshot holds exactly this."""
    assert {number: contents(directory, number) for number in numbers(directory)} == expected


def numbers(directory: Path) -> list[int]:
    """Numbers of the snapshots."""
    reader = ArchiveReader(directory)
    found = [line.number for line in reader.snapshots()]
    reader.close()
    return found


def keep_catalog(directory: Path) -> dict[str, bytes]:
    """The catalog's files as they are now; given back with `bring_back` they are what a power cut left of them."""
    return {path.name: path.read_bytes() for path in directory.glob("catalog.db*")}


def bring_back(directory: Path, files: dict[str, bytes]) -> None:
    """See `keep_catalog`."""
    for path in directory.glob("catalog.db*"):
        path.unlink()
    for name, data in files.items():
        if not name.endswith("-shm"):
            (directory / name).write_bytes(data)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Where the store is."""
    return tmp_path / CLIENT / DATASET


# opening


def test_a_store_has_one_writer(store: Path) -> None:
    """A second archive on a store, in this process or another, is refused and told who has it; readers are not."""
    first = open_archive(store)
    with pytest.raises(LockedError, match=str(os.getpid())):
        open_archive(store)
    put_files(Primary(first), 1, {b"a": b"1"})
    with pytest.raises(LockedError):
        rebuild_catalog(store)
    code = "import sys; from pathlib import Path; from replicad.model.errors import LockedError\n"
    code += "from replicad.work.archive import Archive\n"
    code += "try: Archive.open(Path(sys.argv[1]))\nexcept LockedError as error: print(error)"
    other = subprocess.run([sys.executable, "-c", code, str(store)], capture_output=True, text=True, timeout=60)
    assert f"process {os.getpid()} already works here" in other.stdout
    reader = ArchiveReader(store, mend=True)
    assert [line.number for line in reader.snapshots()] == [1]
    reader.close()
    first.close()
    open_archive(store).close()


def test_where_there_is_no_store(tmp_path: Path) -> None:
    """Nothing is made by reading, rebuilding or opening a directory that holds no store."""
    for opening in (lambda: open_archive(tmp_path, create=False), lambda: ArchiveReader(tmp_path)):
        with pytest.raises(UsageError, match="no store"):
            opening()
    with pytest.raises(UsageError, match="no segments"):
        rebuild_catalog(tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["../../etc", "", ".x", "a/b", "a" * 65])
def test_names_are_checked_before_anything_is_made(tmp_path: Path, name: str) -> None:
    """A name that may not become a directory is refused before there is a directory."""
    with pytest.raises(PeerError, match="not allowed"):
        Archive.open(tmp_path / "x", client="ams1", dataset=name, create=True)
    with pytest.raises(PeerError, match="not allowed"):
        Archive.open(tmp_path / "x", client=name, dataset="www", create=True)
    assert os.listdir(tmp_path) == []


def test_a_store_of_another_dataset(store: Path) -> None:
    """A store directory that was moved to another name is not written as that one; without a name it opens."""
    three_snapshots(store)
    with pytest.raises(StoreDamagedError, match=f"belongs to dataset {DATASET} of {CLIENT}"):
        Archive.open(store, client=CLIENT, dataset="mail", create=True)
    archive = Archive.open(store)
    assert archive.head.number == 3
    archive.close()


def test_a_missing_or_damaged_catalog(store: Path) -> None:
    """A catalog that is missing, no database or has a bad page is named with the remedy, and the remedy works."""
    expected = three_snapshots(store)
    path = store / "catalog.db"
    good = path.read_bytes()
    for spoil in (path.unlink, lambda: path.write_bytes(b"x" * 9000), lambda: flip(path, 20), lambda: flip(path, 5000)):
        spoil()
        for opening in (lambda: open_archive(store), lambda: ArchiveReader(store)):
            with pytest.raises(BookDamagedError, match="rebuild") as caught:
                opening()
            assert caught.value.where == str(path)
        rebuilt = rebuild_catalog(store)
        assert rebuilt.head.number == 3 and rebuilt.damage == [] and rebuilt.torn is None
        check(store, expected)
        path.write_bytes(good)


def test_a_catalog_that_was_emptied(store: Path) -> None:
    """An empty catalog beside segments is not taken for a new store."""
    expected = three_snapshots(store)
    (store / "catalog.db").write_bytes(b"")
    with pytest.raises(BookDamagedError):
        open_archive(store)
    rebuild_catalog(store)
    check(store, expected)


# writing


def test_a_block_is_asked_for_once(store: Path) -> None:
    """Under way, stored, offered twice: in none of these cases a block is asked for again; after an abort it is."""
    archive = open_archive(store)
    primary = Primary(archive)
    a, b, c = (block_id(x) for x in (b"a", b"b", b"c"))
    assert archive.needed(a + b + a) == b"\3"
    assert archive.needed(b + c) == b"\2"
    archive.add_blocks(block_frame(b"a"))
    assert archive.needed(a) == b"\0" and archive.needed(b"") == b""
    primary.abort()
    assert archive.needed(a + b + c) == b"\6"
    archive.add_blocks(block_frame(b"b") + block_frame(b"c"))
    archive.close()
    archive = open_archive(store)
    assert archive.needed(a + b + c + block_id(b"d")) == b"\x08"
    assert archive.needed(b"".join(block_id(bytes([i])) for i in range(9))) == b"\xff\1"
    archive.close()


def test_offers_without_end(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that offers and never sends is cut off; an offer of a wrong length is refused."""
    archive = open_archive(store)
    monkeypatch.setattr(module, "MAX_UNDER_WAY", 10)
    archive.needed(b"".join(block_id(bytes([i])) for i in range(10)))
    with pytest.raises(PeerError, match="did not send"):
        archive.needed(block_id(b"more"))
    for bad in (b"x", bytes(33), bytes(32 * 4097)):
        with pytest.raises(PeerError):
            archive.needed(bad)
    archive.close()


def test_records_without_end(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that sends records and never seals is cut off; what it sent stands in the way of nothing."""
    monkeypatch.setattr(module, "MAX_RECORDS", 10)
    archive = open_archive(store)
    primary = Primary(archive)
    for i in range(10):
        primary.record(directory_put(b"%d" % i))
    with pytest.raises(PeerError, match="10 records"):
        primary.record(directory_put(b"more"))
    primary.abort()
    for i in range(10):
        primary.record(directory_put(b"%d" % i))
    primary.seal(1)
    put_files(primary, 2, {b"a": b"1"})
    archive.close()
    assert not rebuild_catalog(store).damage
    check(store, {1: {}, 2: {b"a": b"1"}})


def test_records_that_wait_are_bounded_in_a_replay_too(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of any number of sessions that broke off are passed over; of the ones before a commit the last ones count,
    and where it claims more than are kept in mind, it says that some are lost."""
    archive = open_archive(store)
    primary = Primary(archive)
    for i in range(60):
        primary.record(directory_put(b"%d" % i))
        if i % 6 == 5:
            primary.abort()
    for i in range(8):
        primary.record(directory_put(b"d%d" % i))
    primary.seal(1)
    archive.close()
    good = trees(store)
    for most, lost in ((8, 0), (7, 1)):
        monkeypatch.setattr(replay_module, "MAX_WAITING", most)
        rebuild_catalog(store)
        reader = ArchiveReader(store)
        assert [line.lost for line in reader.snapshots()] == [lost]
        assert (trees(store) == good) == (lost == 0)
        inventory = Inventory.open(store / "catalog.db")
        assert not check_structure(inventory).false
        inventory.close()
        reader.close()


def test_blocks_are_stored_once(store: Path) -> None:
    """A block that was sent without being asked for, twice, or both, is stored once."""
    archive = open_archive(store)
    archive.add_blocks(block_frame(b"a") + block_frame(b"b") + block_frame(b"a"))
    archive.add_blocks(block_frame(b"b") + block_frame(b"c"))
    archive.add_blocks(block_frame(b"c"))
    archive.add_blocks(b"")
    archive.close()
    kinds = [(f.type, f.id) for f in split_frames(segment(store).read_bytes()) if f.type == FrameType.BLOCK]
    assert [name for _, name in kinds] == [block_id(x) for x in (b"a", b"b", b"c")]


def bad_blocks() -> dict[str, bytes]:
    """Blocks messages that are wrong in one way each."""
    good = block_frame(b"good")
    flipped = bytearray(good)
    flipped[-1] ^= 1
    return {
        "flipped": good + bytes(flipped),
        "cut": good + good[:-1],
        "garbage": b"garbage",
        "another id": good + encode_frame(FrameType.BLOCK, b"x", block_id(b"y")),
        "a record": good + record_frame([]),
        "a commit": encode_plain(FrameType.COMMIT, b""),
        "a pad": encode_plain(FrameType.PAD, bytes(8)),
        "a header": encode_plain(FrameType.HEADER, bytes(8)),
        "no zstd": encode_frame(FrameType.BLOCK, bytes(9), block_id(bytes(9)), b"x", ZSTD),
    }


@pytest.mark.parametrize("case", bad_blocks())
def test_bad_blocks_change_nothing(store: Path, case: str) -> None:
    """One bad frame among good ones: PeerError, nothing is stored, and the session can go on."""
    archive = open_archive(store)
    with pytest.raises(PeerError):
        archive.add_blocks(bad_blocks()[case])
    assert segment_numbers(store) == []
    put_files(Primary(archive), 1, {b"a": b"good"})
    archive.close()
    check(store, {1: {b"a": b"good"}})


def bad_records() -> dict[str, bytes]:
    """Records that are wrong in one way each; block b"here" is in the store."""
    here, absent = block_id(b"here"), block_id(b"absent")
    put = directory_put(b"d")

    def with_meta(*, uid: int = 0, gid: int = 0, mtime_ns: int = 0) -> bytes:
        return record_frame([Put(b"m", Kind.FIFO, Meta(0o600, uid, gid, mtime_ns))])

    def with_xattrs(*xattrs: tuple[bytes, bytes]) -> bytes:
        return record_frame([Put(b"m", Kind.FIFO, Meta(0o600, 0, 0, 0, xattrs))])

    return {
        "absent block": record_frame([put, file_put(b"f", 1, {0: here, 1: absent})]),
        "absent block in a map": record_frame([file_put(b"f", 1, {0: here}), Map(1, (1,), absent)]),
        "map without a put": record_frame([Map(1, (0,), here)]),
        "map of another file": record_frame([file_put(b"f", 1, {0: here}), Map(2, (0,), here)]),
        "map behind a drop": record_frame([file_put(b"f", 1, {0: here}), Drop(b"g"), Map(1, (0,), here)]),
        "path with dots": record_frame([put, directory_put(b"a/../b")]),
        "absolute path": record_frame([directory_put(b"/etc")]),
        "the root dropped": record_frame([Drop(b"")]),
        "numbers beyond 64 bits": with_meta(uid=2**63),
        "negative numbers": with_meta(gid=-1),
        "time beyond 64 bits": with_meta(mtime_ns=2**64 - 1),
        "negative device": record_frame([Put(b"m", Kind.BLOCK_DEVICE, META, device=-1)]),
        "target longer than a path": record_frame([Put(b"l", Kind.SYMLINK, META, target=b"x" * 4096)]),
        "long attribute": with_xattrs((b"user.a", bytes(64 * 1024 + 1))),
        "attribute with a long name": with_xattrs((b"user." + b"a" * 251, b"")),
        "more attributes than fit": with_xattrs(*((b"user.%02d" % n, bytes(64 * 1024)) for n in range(16))),
        "many empty attributes": with_xattrs(*[(b"", b"")] * 200_000),
        "no operations": encode_plain(FrameType.RECORD, b"\xc1"),
        "a block": block_frame(b"x"),
        "two records": record_frame([put]) + record_frame([put]),
        "nothing": b"",
        "another id": encode_frame(FrameType.RECORD, b"\x90", block_id(b"y")),
    }


@pytest.mark.parametrize("case", bad_records())
def test_bad_records_change_nothing(store: Path, case: str) -> None:
    """A record that breaks a rule: PeerError, nothing of it is applied, and the session can go on."""
    archive = open_archive(store)
    primary = Primary(archive)
    primary.send(b"here")
    before = archive._store.position
    with pytest.raises(PeerError):
        archive.add_record(bad_records()[case])
    assert archive._store.position == before
    put_files(primary, 1, {b"a": b"good"})
    archive.close()
    check(store, {1: {b"a": b"good"}})
    assert list(trees(store)[1]) == [b"", b"a"]


def test_maps_may_go_on_in_the_next_record(store: Path) -> None:
    """A file with more blocks than a record holds continues in the next one, also when it is replayed."""
    archive = open_archive(store)
    primary = Primary(archive)
    ids = primary.send(*(bytes([i]) for i in range(6)))
    primary.record(file_put(b"f", 1, {0: ids[0]}, size=48))
    primary.record(Map(1, (1, 2), ids[1] + ids[2]))
    primary.record(Map(1, (3, 4, 5), b"".join(ids[3:])), directory_put(b"g"))
    primary.seal(1)
    archive.close()
    expected = trees(store)
    assert expected[1][b"f"][1] == dict(enumerate(ids))
    rebuild_catalog(store)
    assert trees(store) == expected


def commits(primary: Primary) -> dict[str, tuple[type[ReplicadError], bytes]]:
    """Commits that do not fit, each in one way; one record was sent and snapshot 5 is the head."""
    head, digest = primary.archive.head.digest, records_digest(primary.records)

    def commit(**fields: object) -> bytes:
        values: dict[str, object] = {
            "number": 6, "created_ns": 1, "complete": True, "parent": head, "records": 1, "records_digest": digest,
            "entries": 0, "size": 0, **fields,
        }  # fmt: skip
        return encode_plain(FrameType.COMMIT, encode_commit(Commit(**values)))  # type: ignore[arg-type]

    return {
        "another parent": (DivergedError, commit(parent=bytes([1]) * 32)),
        "no parent": (DivergedError, commit(parent=NO_PARENT)),
        "the same number": (PeerError, commit(number=5)),
        "a lower number": (PeerError, commit(number=4)),
        "a number beyond 64 bits": (PeerError, commit(number=2**63)),
        "another digest": (PeerError, commit(records_digest=bytes(32))),
        "more records": (PeerError, commit(records=2)),
        "fewer records": (PeerError, commit(records=0, records_digest=records_digest([]))),
        "size beyond 64 bits": (PeerError, commit(size=2**64 - 1)),
        "unread beyond 64 bits": (PeerError, commit(unread=2**63)),
        "a size below zero": (PeerError, commit(size=-1)),
        "a time below zero": (PeerError, commit(created_ns=-1)),
        "a long order": (PeerError, commit(order=bytes(MAX_ORDER_BYTES + 1))),
        "no commit": (PeerError, encode_plain(FrameType.COMMIT, b"\x90")),
        "a record": (PeerError, record_frame([])),
        "two": (PeerError, commit() * 2),
    }


def test_bad_commits_change_nothing(store: Path) -> None:
    """A commit that does not follow the head diverges, one that does not cover its records is refused; then a good
    one is taken. Numbers may skip."""
    archive = open_archive(store)
    primary = Primary(archive)
    put_files(primary, 5, {b"a": b"1"})
    ids = primary.send(b"2")
    primary.record(file_put(b"b", 9, {0: ids[0]}))
    for case, (error, frame) in commits(primary).items():
        with pytest.raises(error):
            archive.seal(frame)
        assert archive.head.number == 5, case
    primary.seal(9)
    archive.close()
    check(store, {5: {b"a": b"1"}, 9: {b"a": b"1", b"b": b"2"}})


def test_empty_snapshots(store: Path) -> None:
    """A snapshot without records is one; it holds what the one before held."""
    archive = open_archive(store)
    primary = Primary(archive)
    assert archive.head == Head()
    primary.seal(1)
    put_files(primary, 2, {b"a": b"1"})
    primary.seal(3, complete=False)
    archive.close()
    check(store, {1: {}, 2: {b"a": b"1"}, 3: {b"a": b"1"}})
    reader = ArchiveReader(store)
    assert [line.complete for line in reader.snapshots()] == [True, True, False]
    reader.close()


def test_an_aborted_session_leaves_its_blocks_only(store: Path) -> None:
    """Records without a commit are forgotten, now, after a restart and by a rebuild; their blocks stay."""
    archive = open_archive(store)
    primary = Primary(archive)
    put_files(primary, 1, {b"a": b"1"})
    ids = primary.send(b"2", b"3")
    primary.record(Drop(b"a"), file_put(b"ghost", 7, {0: ids[0]}))
    primary.abort()
    assert archive.needed(b"".join(ids)) == b"\0"
    primary.record(file_put(b"ghost2", 8, {0: ids[1]}))
    archive.close()
    archive = open_archive(store)
    primary = Primary(archive)
    assert archive.head.number == 1 and archive.needed(b"".join(ids)) == b"\0"
    primary.record(file_put(b"b", 9, {0: ids[1]}))
    primary.seal(2)
    archive.close()
    expected: dict[int, Files] = {1: {b"a": b"1"}, 2: {b"a": b"1", b"b": b"3"}}
    check(store, expected)
    rebuild_catalog(store)
    check(store, expected)
    assert list(trees(store)[2]) == [b"", b"a", b"b"]


def test_snapshots_over_several_segments(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Snapshots whose frames lie in several segments come back, after restarts, aborts and a rebuild."""
    monkeypatch.setattr(store_module, "SEGMENT_BYTES", 9000)
    held: Files = {}
    expected: dict[int, Files] = {}
    for number in range(1, 7):
        archive = open_archive(store)
        primary = Primary(archive)
        primary.record(directory_put(b"aborted"))
        primary.send(os.urandom(5000))
        primary.abort()
        new = {b"%d/%d" % (number, i): os.urandom(3000) for i in range(4)}
        for path, data in new.items():
            ids = primary.send(data)
            put = Put(path, Kind.FILE, META, len(data), number * 100 + path[-1], 65536, 0, b"", 0, (0,), ids[0])
            primary.record(put)
        primary.seal(number)
        held |= new
        expected[number] = dict(held)
        archive.close()
    assert len(segment_numbers(store)) > 6
    check(store, expected)
    rebuilt = rebuild_catalog(store)
    assert rebuilt.damage == []
    check(store, expected)


# crashes


def test_nothing_acknowledged_is_lost_at_a_power_cut(tmp_path: Path) -> None:
    """Whatever part of the bytes written after the last seal reaches the disk, and however old the catalog is by then,
    every sealed snapshot comes back whole and the next session works."""
    for seed in range(60):
        store, disk = tmp_path / str(seed), FaultyDisk()
        choose = random.Random(seed)
        archive = open_archive(store, disk)
        primary = Primary(archive)
        expected: dict[int, Files] = {}
        old = keep_catalog(store)
        for number in range(1, choose.randint(2, 4)):
            expected[number] = {b"f": choose.randbytes(choose.randint(1, 9000))}
            put_files(primary, number, expected[number])
            if choose.random() < 0.4:
                old = keep_catalog(store)
        for _ in range(choose.randint(0, 3)):
            ids = primary.send(*(choose.randbytes(choose.randint(1, 30_000)) for _ in range(3)))
            primary.record(*(file_put(b"g%d" % i, 77 + i, {0: name}) for i, name in enumerate(ids)))
        end = archive._store.position.offset
        archive._store.flush()
        acknowledged = archive._catalog.checkpoint.offset
        kill(archive)
        disk.power_cut(seed)
        bring_back(store, old)

        archive = open_archive(store, FaultyDisk())
        assert archive.head.number == max(expected), (seed, end)
        assert all(damage.offset >= acknowledged for damage in archive.damage), seed
        check(store, expected)
        expected[9] = {b"f": b"new"}
        primary = Primary(archive)
        put_files(primary, 9, expected[9])
        archive.close()
        check(store, expected)
        rebuild_catalog(store)
        check(store, expected)


def test_every_cut_behind_the_last_seal_is_a_torn_write(store: Path) -> None:
    """Cut the last segment anywhere behind the last acknowledgement: all snapshots are there, and nothing is damage."""
    archive = open_archive(store)
    primary = Primary(archive)
    expected: dict[int, Files] = {1: {b"f": b"one"}}
    put_files(primary, 1, expected[1])
    acknowledged = archive._store.position.offset
    ids = primary.send(*(os.urandom(700) for _ in range(4)))
    primary.record(file_put(b"g", 7, {0: ids[0]}))
    archive._store.flush()
    kill(archive)
    catalog, data = keep_catalog(store), segment(store).read_bytes()
    for size in range(acknowledged, len(data), 61):
        segment(store).write_bytes(data[:size])
        bring_back(store, catalog)
        archive = open_archive(store)
        assert archive.damage == [] and archive.head.number == 1, size
        whole = [f.end for f in split_frames(data) if f.end <= size]
        assert archive.torn is None if whole[-1] == size else archive.torn and archive.torn.offset == whole[-1]
        assert segment(store).stat().st_size == whole[-1]
        put_files(Primary(archive), 2, {b"f": b"two"})
        archive.close()
        check(store, expected | {2: {b"f": b"two"}})


def test_an_acknowledged_snapshot_that_the_catalog_missed(store: Path) -> None:
    """When the machine dies between the sync of a seal and the catalog, the snapshot is there after the next open."""
    archive = open_archive(store)
    primary = Primary(archive)
    put_files(primary, 1, {b"a": b"1"})
    old = keep_catalog(store)
    put_files(primary, 2, {b"b": b"2"})
    received = ArchiveReader(store)
    lines = received.snapshots()
    received.close()
    kill(archive)
    bring_back(store, old)
    assert numbers(store) == [1]
    reader = ArchiveReader(store, mend=True)
    assert reader.snapshots() == lines
    reader.close()
    check(store, {1: {b"a": b"1"}, 2: {b"a": b"1", b"b": b"2"}})


def test_a_seal_that_fails_half_way(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A seal that is on the disk but not in the catalog counts once the session was aborted, not before."""
    archive = open_archive(store)
    primary = Primary(archive)
    put_files(primary, 1, {b"a": b"1"})
    with monkeypatch.context() as patch:
        patch.setattr(archive._catalog, "commit", _no_room)
        with pytest.raises(DiskFullError):
            put_files(primary, 2, {b"a": b"2"})
    assert archive.head.number == 1
    for call in (archive.needed, archive.add_blocks, archive.add_record, archive.seal):
        with pytest.raises(ReplicadError, match="need of abort"):
            call(b"")
    primary.abort()
    assert archive.head.number == 2
    archive.close()
    check(store, {1: {b"a": b"1"}, 2: {b"a": b"2"}})


def _no_room(*args: object, **kwargs: object) -> None:
    raise DiskFullError("no room left for the book")


def test_a_sync_that_fails(store: Path) -> None:
    """A seal whose sync fails is no acknowledgement, and an abort that cannot sync either keeps the archive shut."""
    disk = FaultyDisk()
    archive = open_archive(store, disk)
    primary = Primary(archive)
    put_files(primary, 1, {b"a": b"1"})
    disk.fail_sync = True
    with pytest.raises(ReplicadError, match="syncing"):
        put_files(primary, 2, {b"a": b"2"})
    assert archive.head.number == 1
    with pytest.raises(ReplicadError):
        primary.abort()
    with pytest.raises(ReplicadError, match="need of abort"):
        archive.needed(b"")
    disk.fail_sync = False
    primary.abort()
    assert archive.head.number == 2  # it was written, and now it is durable as well
    put_files(primary, 3, {b"a": b"3"})
    archive.close()
    check(store, {n: {b"a": b"%d" % n} for n in (1, 2, 3)})


@pytest.mark.parametrize("room", [0, PAGE, 3 * PAGE, 40 * PAGE, 300 * PAGE, 400 * PAGE])
def test_a_disk_that_fills_up(store: Path, room: int) -> None:
    """Wherever the disk is full, the session ends with DiskFullError, what was sealed stays, and it goes on later."""
    disk = FaultyDisk()
    archive = open_archive(store, disk)
    primary = Primary(archive)
    put_files(primary, 1, {b"a": b"1"})
    disk.room = room
    with pytest.raises(DiskFullError):
        for number in (2, 3, 4):
            put_files(primary, number, {b"a": os.urandom(600_000), b"b": os.urandom(100_000)})
    sealed = archive.head.number
    with pytest.raises(DiskFullError):  # whoever comes next is told the same
        archive.add_blocks(block_frame(b"x"))
    disk.room = None
    primary.abort()
    assert archive.head.number == sealed and archive.damage == []
    put_files(primary, 9, {b"a": b"9", b"b": b"9"})
    archive.close()
    assert numbers(store) == [*range(1, sealed + 1), 9]
    assert contents(store, 1) == {b"a": b"1"} and contents(store, 9) == {b"a": b"9", b"b": b"9"}
    rebuild_catalog(store)
    assert contents(store, 9) == {b"a": b"9", b"b": b"9"}


def test_the_reserve_stops_intake_only(store: Path) -> None:
    """Below the reserve blocks and records are refused before a byte is written; what was sent can still be sealed."""
    disk = FaultyDisk()
    archive = open_archive(store, disk, reserve_bytes=10_000_000)
    primary = Primary(archive)
    ids = primary.send(b"1")
    primary.record(file_put(b"a", 1, {0: ids[0]}))
    disk.free = 9_000_000
    assert archive.free_bytes == -1_000_000
    for call, frame in ((archive.add_blocks, block_frame(b"2")), (archive.add_record, record_frame([]))):
        with pytest.raises(DiskFullError, match="reserve"):
            call(frame)
    primary.seal(1)
    archive.close()
    check(store, {1: {b"a": b"1"}})


def test_a_snapshot_of_nothing_new_needs_room_like_any_addition(store: Path) -> None:
    """At the reserve a commit that covers no record is refused before a byte is written, or a client could send them
    for ever. Once there is room it is taken."""
    disk = FaultyDisk()
    archive = open_archive(store, disk, reserve_bytes=10_000_000)
    primary = Primary(archive)
    primary.seal(1)
    disk.free = 10_004_000
    before = archive._store.position
    with pytest.raises(DiskFullError, match="reserve"):
        primary.seal(2)
    assert archive.head.number == 1 and archive._store.position == before
    disk.free = None
    primary.seal(2)
    archive.close()
    assert numbers(store) == [1, 2]


def test_a_record_needs_the_room_that_it_takes_in_the_catalog(store: Path) -> None:
    """Some hundred bytes that expand to half a MiB are refused where that, and as much for the log, is not free."""
    disk = FaultyDisk()
    archive = open_archive(store, disk, reserve_bytes=10_000_000)
    primary = Primary(archive)
    many = [Put(b"%d" % n, Kind.FIFO, Meta(0, 0, 0, 0, ((b"user.zeros", bytes(50_000)),))) for n in range(10)]
    frame = record_frame(many, level=3)
    assert len(frame) < 2000
    disk.free = 10_900_000
    with pytest.raises(DiskFullError, match="reserve"):
        archive.add_record(frame)
    disk.free = 11_100_000
    archive.add_record(frame)
    primary.records.append(split_frames(frame)[0].id)
    primary.seal(1)
    archive.close()
    assert len(trees(store)[1]) == 10


def test_killed_at_any_moment(tmp_path: Path) -> None:
    """kill -9 after any number of steps: sealed snapshots are there, and the session can be done again."""
    for steps in range(9):
        store = tmp_path / str(steps)
        archive = open_archive(store)
        primary = Primary(archive)
        for step in range(steps):
            ids = primary.send(b"%d" % step)
            primary.record(file_put(b"f%d" % step, step + 1, {0: ids[0]}))
            if step % 3 == 2:
                primary.seal(step)
        kill(archive)
        expected = [step for step in range(steps) if step % 3 == 2]
        archive = open_archive(store)
        assert archive.head.number == max(expected, default=0) and archive.damage == []
        put_files(Primary(archive), 99, {b"g": b"g"})
        archive.close()
        assert numbers(store) == [*expected, 99]
        held = [b"f%d" % step for step in range(max(expected, default=-1) + 1)]
        assert list(contents(store, 99)) == [*held, b"g"]


# damage


def test_every_flipped_bit_is_found_by_a_rebuild(store: Path) -> None:
    """Flip any byte of a store with three snapshots and rebuild: it is named, and nothing false comes back.

    A snapshot holds what it held, or says that something is lost: its blocks, or that it is not complete.
    """
    expected = three_snapshots(store)
    data = segment(store).read_bytes()
    frames = split_frames(data)
    rng = random.Random(7)
    for position in sorted(rng.sample(range(len(data)), 250)):
        hit = next(frame for frame in frames if frame.offset <= position < frame.end)
        flip(segment(store), position, position % 8)
        rebuilt = rebuild_catalog(store)
        named: list[Damage | Torn] = [*rebuilt.damage, *([rebuilt.torn] if rebuilt.torn else [])]
        assert any(found.offset <= position < found.offset + found.length for found in named), position
        assert not rebuilt.torn or hit is frames[-1]
        _check_honest(store, expected, hit.type)
        segment(store).write_bytes(data)


def _check_honest(store: Path, expected: dict[int, Files], hit: int) -> None:
    reader = ArchiveReader(store)
    lines = {line.number: line for line in reader.snapshots()}
    reader.close()
    if hit not in (FrameType.COMMIT, FrameType.RECORD):
        assert list(lines) == list(expected) and all(line.complete for line in lines.values())
    for number, line in lines.items():
        found = contents(store, number)
        assert all(data in (None, expected[number].get(path)) for path, data in found.items())
        assert found.keys() == expected[number].keys() or not line.complete
        lost = [path for path, data in found.items() if data is None]
        assert len(lost) == (hit == FrameType.BLOCK) or number == 1 or len(lost) <= 1


def _frame(store: Path, kind: FrameType, nth: int) -> tuple[int, int]:
    """Offset and end of a frame."""
    found = [frame for frame in split_frames(segment(store).read_bytes()) if frame.type == kind][nth]
    return found.offset, found.end


def test_a_lost_record(store: Path) -> None:
    """When the record of the second snapshot rots, a rebuild keeps all three, says which are not complete, and the
    first is whole."""
    expected = three_snapshots(store)
    flip(segment(store), _frame(store, FrameType.RECORD, 1)[1] - 3)
    rebuilt = rebuild_catalog(store)
    assert rebuilt.head.number == 3
    assert [damage.reason for damage in rebuilt.damage][1:] == [
        "part of the record of snapshot 2 is lost; the entries in it stand as before"
    ]
    reader = ArchiveReader(store)
    assert [(line.number, line.complete) for line in reader.snapshots()] == [(1, True), (2, False), (3, False)]
    assert reader.damage() == rebuilt.damage
    reader.close()
    only_third = {path: data for path, data in expected[3].items() if path not in expected[2]}
    check(store, {1: expected[1], 2: expected[1], 3: expected[1] | only_third})


def test_a_lost_commit(store: Path) -> None:
    """When the second snapshot's commit rots, the third holds its entries too, and is not called complete."""
    expected = three_snapshots(store)
    flip(segment(store), _frame(store, FrameType.COMMIT, 1)[0] + 10)
    rebuilt = rebuild_catalog(store)
    assert "a commit between snapshots 1 and 3 is lost" in rebuilt.damage[1].reason
    reader = ArchiveReader(store)
    assert [(line.number, line.complete) for line in reader.snapshots()] == [(1, True), (3, False)]
    reader.close()
    check(store, {1: expected[1], 3: expected[3]})


def test_rot_behind_an_old_checkpoint_is_damage(store: Path) -> None:
    """A bad frame in acknowledged bytes that the catalog had not seen yet is damage, never a torn write."""
    archive = open_archive(store)
    primary = Primary(archive)
    put_files(primary, 1, {b"a": b"1"})
    old = keep_catalog(store)
    put_files(primary, 2, {b"b": block(b"2", 5000)})
    kill(archive)
    data = segment(store).read_bytes()
    frames = split_frames(data)
    first = next(i for i, frame in enumerate(frames) if frame.type == FrameType.PAD) + 1
    for frame in frames[first:-1]:
        for position in (frame.offset, frame.offset + 24, frame.offset + 28, frame.end - 1):
            bring_back(store, old)
            segment(store).write_bytes(data)
            flip(segment(store), position, 3)
            archive = open_archive(store)
            assert archive.torn is None and archive.damage
            assert archive.damage[0].offset == frame.offset
            assert archive.head.number == (1 if frame.type == FrameType.COMMIT else 2)
            archive.close()
            assert segment(store).stat().st_size == len(data), "damage is never cut off"


def test_a_damaged_segment_is_not_appended_to(store: Path) -> None:
    """Behind damage a new segment is begun, and the damaged one stays as it is."""
    archive = open_archive(store)
    put_files(Primary(archive), 1, {b"a": b"1"})
    old = keep_catalog(store)
    put_files(Primary(archive), 2, {b"b": b"2"})
    kill(archive)
    bring_back(store, old)
    flip(segment(store), _frame(store, FrameType.BLOCK, 1)[0])
    data = segment(store).read_bytes()
    archive = open_archive(store)
    put_files(Primary(archive), 3, {b"c": b"3"})
    archive.close()
    assert segment(store).read_bytes() == data and segment_numbers(store) == [1, 2]
    expected = {1: {b"a": b"1"}, 2: {b"a": b"1", b"b": None}, 3: {b"a": b"1", b"b": None, b"c": b"3"}}
    assert {number: contents(store, number) for number in numbers(store)} == expected
    rebuilt = rebuild_catalog(store)
    assert len(rebuilt.damage) == 1
    assert {number: contents(store, number) for number in numbers(store)} == expected


def test_a_block_that_rotted_is_stored_again(store: Path) -> None:
    """A block found damaged in a replay counts as absent: when it is offered it is needed, and heals all snapshots."""
    archive = open_archive(store)
    put_files(Primary(archive), 1, {b"a": b"precious"})
    kill(archive)
    flip(segment(store), _frame(store, FrameType.BLOCK, 0)[1] - 1)
    rebuild_catalog(store)
    assert contents(store, 1) == {b"a": None}
    archive = open_archive(store)
    assert Primary(archive).send(b"precious")
    Primary(archive).seal(2)
    archive.close()
    assert contents(store, 1) == {b"a": b"precious"}


def test_missing_and_shortened_segments(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A segment file that is gone, or shorter than what was acknowledged, is damage; the rest restores."""
    monkeypatch.setattr(store_module, "SEGMENT_BYTES", 3000)
    expected = three_snapshots(store)
    last = segment_numbers(store)[-1]
    assert last >= 3
    os.truncate(segment(store, last), 100)
    archive = open_archive(store)
    assert [(d.segment, d.offset, d.reason) for d in archive.damage] == [
        (last, 100, "is shorter than what was acknowledged")
    ]
    archive.close()
    segment(store, last).unlink()
    segment(store, 2).unlink()
    rebuilt = rebuild_catalog(store)
    assert ("segment file is missing", 2) in [(d.reason, d.segment) for d in rebuilt.damage]
    for number in numbers(store):
        found = contents(store, number)
        assert all(data in (None, expected[number][path]) for path, data in found.items())


def test_the_last_segment_vanished(store: Path) -> None:
    """A last segment that is gone is damage that the catalog knows of; writing goes on in the next one."""
    three_snapshots(store)
    segment(store).unlink()
    archive = open_archive(store)
    assert [(d.segment, d.reason) for d in archive.damage] == [(1, "segment file is missing")]
    put_files(Primary(archive), 4, {b"new": b"new"})
    archive.close()
    assert segment_numbers(store) == [2]
    found = contents(store, 4)
    assert found.pop(b"new") == b"new" and set(found.values()) == {None}


def test_a_store_within_a_store(tmp_path: Path) -> None:
    """A damaged block that holds another store's segment never brings that store's snapshots or entries in."""
    inner = tmp_path / "inner"
    three_snapshots(inner)
    data = segment(inner).read_bytes()[:-100]
    outer = tmp_path / "outer"
    archive = open_archive(outer)
    primary = Primary(archive)
    put_files(primary, 1, {b"a": b"1", b"backup": data})
    put_files(primary, 2, {b"b": b"2"})
    archive.close()
    start, _ = _frame(outer, FrameType.BLOCK, 1)
    with open(segment(outer), "r+b") as file:
        os.pwrite(file.fileno(), b"\xff" * 64, start)
    rebuilt = rebuild_catalog(outer)
    assert rebuilt.damage and rebuilt.head.number == 2
    assert contents(outer, 2) == {b"a": b"1", b"backup": None, b"b": b"2"}
    reader = ArchiveReader(outer)
    assert all(line.complete for line in reader.snapshots())
    reader.close()


# reading


def test_fetch_answers_in_order(store: Path) -> None:
    """Blocks come in the order asked, however they lie, with Lost exactly in place of what is damaged or absent."""
    archive = open_archive(store)
    datas = [block(f"{i} ", 3 + i * 1700) for i in range(20)]
    ids = list(Primary(archive).send(*datas, level=1))
    Primary(archive).seal(1)
    archive.close()
    known = dict(zip(ids, datas, strict=True))
    reader = ArchiveReader(store)
    choose = random.Random(3)
    asked = [choose.choice([*ids, bytes(32)]) for _ in range(200)]
    assert fetch_all(reader, asked) == [known.get(name) for name in asked]
    assert fetch_all(reader, ids) == datas and fetch_all(reader, []) == []
    with pytest.raises(PeerError):
        list(reader.fetch(b"x"))
    reader.close()
    frames = {f.id: f for f in split_frames(segment(store).read_bytes()) if f.type == FrameType.BLOCK}
    for name in ids[::3]:
        flip(segment(store), frames[name].end - 1)
    reader = ArchiveReader(store)
    assert fetch_all(reader, ids) == [None if i % 3 == 0 else data for i, data in enumerate(datas)]
    lost = [answer for answer in reader.fetch(b"".join(ids)) if isinstance(answer, Lost)]
    assert [answer.id for answer in lost] == ids[::3] and "fails its checksum" in lost[0].reason
    reader.close()


def test_fetch_from_a_failing_medium(store: Path) -> None:
    """An unreadable page loses the blocks on it and no neighbour; a missing segment file loses its blocks."""
    disk = FaultyDisk()
    archive = open_archive(store, disk)
    datas = [block(f"{i} ", 3000) for i in range(20)]
    ids = list(Primary(archive).send(*datas))
    Primary(archive).seal(1)
    archive.close()
    frames = [f for f in split_frames(segment(store).read_bytes()) if f.type == FrameType.BLOCK]
    disk.unreadable.add((segment(store).name, 5))
    touched = {f.id for f in frames if f.offset < 6 * PAGE and f.end > 5 * PAGE}
    reader = ArchiveReader(store, disk)
    assert fetch_all(reader, ids) == [None if i in touched else d for i, d in zip(ids, datas, strict=True)]
    assert touched
    reader.close()
    segment(store).unlink()
    reader = ArchiveReader(store)
    assert fetch_all(reader, ids) == [None] * 20
    reader.close()


def test_another_frame_in_its_place(store: Path) -> None:
    """A valid frame of another block, or one that is no block, where the catalog says this one is, is Lost."""
    archive = open_archive(store)
    ids = list(Primary(archive).send(b"one", b"two"))
    Primary(archive).seal(1)
    archive.close()
    one, two = (f for f in split_frames(segment(store).read_bytes()) if f.type == FrameType.BLOCK)
    with open(segment(store), "r+b") as file:
        os.pwrite(file.fileno(), block_frame(b"two"), one.offset)
        os.pwrite(file.fileno(), encode_plain(FrameType.RECORD, b"two"), two.offset)
    reader = ArchiveReader(store)
    assert fetch_all(reader, ids) == [None, None]
    reader.close()


def test_a_reader_beside_the_writer(store: Path) -> None:
    """While a session writes, a reader sees sealed snapshots whole and nothing else, also during a listing."""
    archive = open_archive(store)
    primary = Primary(archive)
    put_files(primary, 1, {b"%03d" % i: b"%d" % i for i in range(600)})
    reader = ArchiveReader(store, mend=True)
    listing = reader.record(1)
    first = next(listing)
    ids = primary.send(b"new")
    primary.record(*(Drop(b"%03d" % i) for i in range(600)), file_put(b"new", 1, {0: ids[0]}))
    assert [line.number for line in reader.snapshots()] == [1]
    primary.seal(2)
    rest = [op for batch in listing for op in batch]
    assert len(first) + len(rest) == 601
    assert [line.number for line in reader.snapshots()] == [1, 2]
    assert list(read_tree(reader, 2)) == [b"", b"new"] and len(read_tree(reader, 1)) == 601
    assert fetch_all(reader, ids) == [b"new"]
    reader.close()
    archive.close()


def test_questions_that_have_no_answer(store: Path) -> None:
    """An unknown snapshot and a bad pattern are usage errors, told at once."""
    three_snapshots(store)
    reader = ArchiveReader(store)
    with pytest.raises(UsageError, match="no snapshot 7"):
        reader.record(7)
    with pytest.raises(UsageError, match="pattern"):
        reader.record(1, [b""])
    assert list(read_tree(reader, 3, [b"f2*"])) == [b"", b"f20", b"f21", b"f22", b"f23"]
    reader.close()


# rebuilding


def test_a_rebuild_equals_the_original(store: Path) -> None:
    """Everything that readers can ask is the same after a rebuild; the old catalog is kept beside the new one."""
    three_snapshots(store)
    reader = ArchiveReader(store)
    lines = reader.snapshots()
    reader.close()
    before = trees(store)
    steps: list[tuple[int, int]] = []
    rebuilt = rebuild_catalog(store, progress=lambda done, total: steps.append((done, total)))
    assert rebuilt.head == Head(3, lines[-1].digest) and rebuilt.catalog == store / "catalog.db"
    assert steps == [(1, 1)] and rebuilt.kept and rebuilt.kept.exists()
    reader = ArchiveReader(store)
    assert reader.snapshots() == lines
    reader.close()
    assert trees(store) == before
    rebuild_catalog(store)
    names = {path.name for path in store.iterdir()} - {"catalog.db.old-wal"}
    assert names == {"catalog.db", "catalog.db.old", "leases", "lock", "segments"}


def test_a_commit_that_fills_its_segment_keeps_its_moment(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When it was received is read from the pad behind it, which stands there also when the segment ends with it."""
    archive = open_archive(store)
    primary = Primary(archive)
    put_files(primary, 1, {b"a": b"1"})
    (name,) = primary.send(block("b", 5000))
    primary.record(file_put(b"b", 3, {0: name}))
    monkeypatch.setattr(store_module, "SEGMENT_BYTES", archive.store.position.offset + 10)
    primary.seal(2)
    assert archive.checkpoint.offset > store_module.SEGMENT_BYTES
    put_files(primary, 3, {b"c": b"3"})
    archive.close()
    assert segment_numbers(store) == [1, 2]
    before = _received(store)
    assert not rebuild_catalog(store).damage
    assert _received(store) == before


def _received(store: Path) -> list[tuple[int, int]]:
    reader = ArchiveReader(store)
    try:
        return [(line.number, line.received_ns) for line in reader.snapshots()]
    finally:
        reader.close()


def test_a_rebuild_elsewhere_leaves_the_store_alone(store: Path, tmp_path: Path) -> None:
    """With a target elsewhere nothing in the store changes, and a reader can use that catalog."""
    expected = three_snapshots(store)
    with open(segment(store), "ab") as file:
        file.write(b"torn")
    (store / "catalog.db").unlink()
    before = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    rebuilt = rebuild_catalog(store, into=tmp_path / "elsewhere.db")
    assert rebuilt.torn and rebuilt.head.number == 3
    assert {path: path.read_bytes() for path in store.rglob("*") if path.is_file()} == before
    reader = ArchiveReader(store, catalog=rebuilt.catalog)
    assert len(read_tree(reader, 3)) == len(expected[3]) + 1
    reader.close()


def test_a_rebuild_without_any_header(store: Path) -> None:
    """When no segment can say whose it is any more, the names of the directories do, and everything else is there."""
    expected = three_snapshots(store)
    flip(segment(store), 70)
    (store / "catalog.db").unlink()
    rebuilt = rebuild_catalog(store)
    assert [(damage.offset, damage.length) for damage in rebuilt.damage] == [(0, _frame_end(store))]
    check(store, expected)
    archive = open_archive(store)
    put_files(Primary(archive), 4, {b"new": b"new"})
    archive.close()
    assert contents(store, 4)[b"new"] == b"new"


def _frame_end(store: Path) -> int:
    """Where the first whole frame begins."""
    data = segment(store).read_bytes()
    return data.index(b"RPD1", 1)


# everything at once

BLOCKS = [block(f"block {i} ", 20 * i) for i in range(1, 6)]
steps = st.one_of(
    st.lists(groups([block_id(data) for data in BLOCKS]), max_size=4).map(lambda parts: list(chain(*parts))),
    st.sampled_from(["seal", "seal", "abort", "reopen", "kill", "power cut", "rebuild"]),
)


@settings(max_examples=120, deadline=None)
@given(st.lists(steps, max_size=14), st.integers(0, 2**32))
def test_any_history_equals_a_dict(history: list[list[Op] | str], seed: int) -> None:
    """Any sequence of puts, maps, drops, seals, aborts, restarts, kills, power cuts and rebuilds: each sealed snapshot
    is at the end exactly what a plain dict says, also after one more rebuild."""
    with tempfile.TemporaryDirectory() as name:
        store, disk = Path(name) / CLIENT / DATASET, FaultyDisk()
        archive = open_archive(store, disk)
        primary, sealed, model = Primary(archive), Model(), Model()
        expected: dict[int, Tree] = {}
        for number, step in enumerate(history, 1):
            if isinstance(step, list):
                primary.send(*BLOCKS)
                primary.record(*step)
                for op in step:
                    model.apply(op)
                continue
            if step == "seal":
                primary.seal(number)
                sealed, expected[number] = model, model.tree()
            elif step == "abort":
                primary.abort()
            else:
                archive = _restart(archive, store, disk, step, seed)
                primary = Primary(archive)
            model = Model()
            model.entries, model.files = dict(sealed.entries), {k: dict(v) for k, v in sealed.files.items()}
        archive.close()
        assert trees(store) == expected
        if segment_numbers(store):
            rebuilt = rebuild_catalog(store)
            assert trees(store) == expected and rebuilt.head.number == max(expected, default=0)


def _restart(archive: Archive, store: Path, disk: FaultyDisk, how: str, seed: int) -> Archive:
    if how in ("kill", "power cut"):
        kill(archive)
        if how == "power cut":
            disk.power_cut(seed)
    else:
        archive.close()
        if how == "rebuild" and segment_numbers(store):
            rebuild_catalog(store)
    return open_archive(store, disk)


@pytest.mark.parametrize("error", [StoreDamagedError("of the disk"), ZeroDivisionError()])
def test_an_upkeep_that_fails_is_not_met_by_the_session(store: Path, error: Exception) -> None:
    """What was begun is taken back at once, whoever had begun it; the client may name what it was told of."""
    archive = open_archive(store)
    primary = Primary(archive)
    (name,) = primary.send(b"a block")
    primary.record(directory_put(b""), file_put(b"one", 7, {0: name}))
    primary.seal(1)
    assert archive.needed(name) == b"\0"
    with pytest.raises(type(error)), archive.upkeep() as (_, catalog):
        catalog.add_mended(1, 0, 10, 1)
        raise error
    assert archive.is_settled and archive.inventory.mended(1) == []
    primary.record(directory_put(b""), file_put(b"two", 7, {0: name}))
    assert primary.seal(2).number == 2
    archive.close()
