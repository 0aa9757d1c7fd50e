"""Scrub of a replica: what is verified, in which order, and what is said of what is not well."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import mmap
import os
from collections.abc import Collection, Iterator
from pathlib import Path

import apsw
import pytest

from kit_scrub import ALL, SMALL, Rig, write_at
from kit_store import FaultyDisk, Primary, block, file_put, flip, segment, trees
from replicad.config import ListenConfig
from replicad.db.catalog import MIGRATIONS
from replicad.db.findings import Findings
from replicad.db.inventory import Inventory
from replicad.model.block import block_id, checksum
from replicad.model.divergence import Divergence, Part, State, divergence_id
from replicad.model.errors import BookDamagedError, ReplicadError
from replicad.model.verdict import Books, Sight, Verdict, Witness
from replicad.store import store as store_module
from replicad.store.format import FrameType
from replicad.store.segments import segment_numbers
from replicad.system.clock import Clock
from replicad.system.disk import AlignedBuffer, Disk, Reader
from replicad.work import scrub_replica
from replicad.work.archive import catalog_path
from replicad.work.archive_reader import ArchiveReader
from replicad.work.harm import Harm, harm_of
from replicad.work.rebuild import rebuild_catalog
from replicad.work.scrub_replica import RETRY_NS, ReplicaSurface
from replicad.work.shelves import Shelves


class FlickeringDisk(Disk):
    """A disk that gives one wrong bit in each of the first so many reads of a file, and then never again."""

    def __init__(self) -> None:
        self.wrong_reads: dict[str, int] = {}

    def open_read(self, path: Path) -> Reader:
        return _FlickeringReader(path, self.wrong_reads)


class _FlickeringReader(Reader):
    def __init__(self, path: Path, left: dict[str, int]) -> None:
        super().__init__(path)
        self._left = left

    def read_into(self, buffer: AlignedBuffer, start: int, offset: int, size: int) -> int:
        count = super().read_into(buffer, start, offset, size)
        if self._left.get(self.path.name, 0) > 0:
            self._left[self.path.name] -= 1
            buffer.view[start + 300] ^= 4
        return count


def make(directory: Path, disk: Disk | None = None) -> Rig:
    """A store of several segments."""
    rig = Rig(directory / "ams1" / "www", disk)
    rig.fill()
    return rig


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "SEGMENT_BYTES", SMALL)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = make(tmp_path)
    yield made
    made.close()
    made.executor.shutdown()


def extent(rig: Rig, before_ns: int = 0) -> tuple[int, int, int, int]:
    """Of the surface."""
    found = asyncio.run(rig.surface.extent(before_ns))
    return found.total_bytes, found.never_bytes, found.oldest_ns, found.since_bytes


def test_every_byte_is_read_once_and_from_the_medium(rig: Rig) -> None:
    """All segments, each whole, with O_DIRECT where there is one, and afterwards nothing is due."""
    size = sum(map(len, rig.bytes_of().values()))
    assert extent(rig)[:3] == (size, size, 0)
    verified = rig.verify()
    direct = rig.disk.open_read(segment(rig.directory, 1))
    assert (verified.media_bytes, verified.cache_bytes) == ((size, 0) if direct.direct else (0, size))
    direct.close()
    assert verified.units == len(rig.bytes_of()) and not verified.found and not verified.doubts
    total, never, oldest, since = extent(rig, rig.clock.ns + 1)
    assert (total, never) == (size, 0) and 0 < oldest < rig.clock.ns and since == size
    assert extent(rig, 1)[3] == 0


def test_the_page_cache_is_left_as_found(rig: Rig) -> None:
    """A scrub neither fills the cache with segments nor drops what is there."""
    cold, warm = segment(rig.directory, 1), segment(rig.directory, 2)
    if not _is_direct(rig, cold):
        pytest.skip("this file system has no direct reads")
    os.posix_fadvise(fd := os.open(cold, os.O_RDONLY), 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)
    warm.read_bytes()
    before = _cached(cold), _cached(warm)
    rig.verify()
    assert (_cached(cold), _cached(warm)) == before


def _is_direct(rig: Rig, path: Path) -> bool:
    reader = rig.disk.open_read(path)
    try:
        return reader.direct
    finally:
        reader.close()


def _cached(path: Path) -> bool:
    """Whether any page of a file is in the page cache; asking changes nothing."""
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ | mmap.PROT_WRITE, flags=mmap.MAP_PRIVATE) as view,
    ):
        pages = (ctypes.c_ubyte * (-(-len(view) // mmap.PAGESIZE)))()
        address = ctypes.addressof(ctypes.c_char.from_buffer(view))
        assert ctypes.CDLL(None).mincore(ctypes.c_void_p(address), ctypes.c_size_t(len(view)), pages) == 0
        return any(page & 1 for page in pages)


def test_never_verified_comes_first_then_the_oldest(rig: Rig) -> None:
    """One unit a call with a small budget, in order; the order survives a restart; new data goes first."""
    order = []
    count = len(rig.bytes_of())
    for _ in range(count):
        before = dict(_verified(rig))
        rig.verify(1)
        order += [n for n, at in _verified(rig).items() if before.get(n) != at]
    assert order == sorted(rig.bytes_of())
    rig.verify(1)
    rig.reopen()
    assert min(_verified(rig).items(), key=lambda one: one[1])[0] == 2
    rig.put(9, {b"new": block("new ", 9000)})
    while extent(rig)[1]:
        rig.verify(1)
    assert min(_verified(rig).items(), key=lambda one: one[1])[0] == 2


def _verified(rig: Rig) -> dict[int, int]:
    asyncio.run(rig.surface.extent(0))
    return {number: unit.at_ns for number, unit in rig.surface._units.items() if unit.at_ns}


def test_a_growing_segment_is_verified_from_where_it_was(rig: Rig) -> None:
    """What was added is due at once, and only that is read; what a session has not sealed is not looked at."""
    rig.scrub()
    rig.put(8, {b"more": b"more"})
    added = extent(rig)[1]
    assert 0 < added <= 8192
    verified = rig.verify(1)
    assert verified.media_bytes + verified.cache_bytes == added and not verified.found
    Primary(rig.archive).send(b"not sealed")
    assert extent(rig)[1] == 0 and rig.scrub() == 0
    rig.archive.abort()


def test_verifications_during_a_session_are_remembered_after_it(rig: Rig) -> None:
    """They are not lost when the session is aborted, and stand in the catalog once it is over."""
    Primary(rig.archive).send(b"not sealed")
    rig.verify()
    rig.archive.abort()
    extent(rig)
    rig.reopen()
    assert extent(rig)[1] <= 4096, "only the pad of the aborted session is new"


def test_verifications_are_remembered_behind_a_seal(rig: Rig) -> None:
    """Where one pass follows the other there is no other moment, and a daemon that is killed would begin anew."""
    primary = Primary(rig.archive)
    primary.send(b"not sealed")
    rig.verify()
    extent(rig)
    primary.record(file_put(b"new", 7777, {0: block_id(b"not sealed")}))
    primary.seal(5)
    rig.archive.do_at_seal()
    primary.send(b"of the next pass")
    rig.kill()
    rig.open()
    assert extent(rig)[1] <= 3 * 4096, "only what came since is new"


def test_a_read_error_that_goes_away_is_told_and_is_gone(tmp_path: Path) -> None:
    """A wrong bit that is not there when the place is read again makes a finding that is settled at once."""
    disk = FlickeringDisk()
    rig = make(tmp_path, disk)
    disk.wrong_reads["00000002.seg"] = 1
    assert rig.verify().found == 1
    (found,) = rig.findings.listed(state=None)
    assert found.state is State.GONE and "read again" in found.events[0].what
    assert [look.sight for look in found.looks] == [Sight.DIFFERS, Sight.MATCHES]
    assert rig.scrub() == 0 and len(rig.findings.listed(state=None)) == 1
    rig.close()


class _MovedDisk(Disk):
    """A disk on which somebody takes a file away, or cuts it short, for the first look."""

    def __init__(self) -> None:
        self.away: dict[str, int] = {}
        """By name: how many bytes are there at the first look; less than none = not even a file."""

    def open_read(self, path: Path) -> Reader:
        if (left := self.away.pop(path.name, None)) is None:
            return super().open_read(path)
        if left < 0:
            raise FileNotFoundError(path)
        short = path.with_suffix(".short")
        short.write_bytes(path.read_bytes()[:left])
        return super().open_read(short)


@pytest.mark.parametrize("left", [-1, 0, 4096])
def test_a_segment_that_was_moved_for_a_moment_is_not_missing(tmp_path: Path, left: int) -> None:
    """That it is not there, or cut short, has to show twice before it is said."""
    disk = _MovedDisk()
    rig = make(tmp_path, disk)
    disk.away["00000002.seg"] = left
    assert rig.verify().found >= 1
    told = rig.findings.listed(state=None)
    assert {one.state for one in told} == {State.GONE} and {one.number for one in told} == {2}
    assert rig.scrub() == 0 and len(rig.findings.listed(state=None)) == len(told)
    rig.close()


def test_what_cannot_be_read_is_unreadable_and_its_neighbours_are_judged(tmp_path: Path) -> None:
    """EIO for one page costs the frames in it and no others; the verdict needs no witness."""
    disk = FaultyDisk()
    rig = make(tmp_path, disk)
    rig.scrub()
    hit = rig.frames(FrameType.BLOCK, 2)[2]
    disk.unreadable = {("00000002.seg", hit.offset // 4096)}
    assert rig.verify().found == 1
    (found,) = rig.open_ones()
    assert found.evidence.replica is Sight.UNREADABLE and hit.id in found.blocks and not found.seen
    assert found.offset // 4096 <= hit.offset // 4096 <= (found.offset + found.length - 1) // 4096
    (settled,) = rig.settle()
    assert settled.verdict is Verdict.REPLICA_UNREADABLE and settled.state is State.REPAIRED
    rig.assert_clean(tmp_path)
    rig.close()


def test_a_finding_says_all_that_is_known(rig: Rig) -> None:
    """Place, blocks, files with ranges and snapshots, the bytes themselves, and evidence that waits for a word."""
    rig.scrub()
    old = rig.frames(FrameType.BLOCK, 1)[1]
    assert old.id == block_id(rig.expected[1][b"changes"])
    flip(segment(rig.directory, 1), old.offset + 70)
    rig.scrub()
    (found,) = rig.open_ones()
    assert (found.key, found.part, found.path) == (f"frame:1:{old.offset}", Part.BLOCK, b"segments/00000001.seg")
    assert (found.offset, found.length, found.blocks) == (old.offset, old.end - old.offset, (old.id,))
    (hit,) = found.affected
    assert (hit.path, hit.offset, hit.first, hit.last, found.affected_count) == (b"changes", 0, 1, 1, 1)
    assert hit.length == len(rig.expected[1][b"changes"]) and not hit.is_live
    kept = rig.directory / found.quarantine
    assert kept.stat().st_mode & 0o777 == 0o600 and checksum(kept.read_bytes()) == found.seen
    evidence = found.evidence
    assert (evidence.replica, evidence.primary) == (Sight.DIFFERS, Sight.UNKNOWN)
    assert (evidence.witness, evidence.books) == (Witness.SILENT, Books.AGREE)
    assert found.verdict is Verdict.INCONCLUSIVE
    assert found.id == divergence_id("www", found.side, "ams1", found.key, found.found_ns)


def test_a_flipped_bit_of_the_structure_is_counted(rig: Rig) -> None:
    """Where the catalog has a copy, the finding names the bit."""
    rig.scrub()
    frame = rig.frames(FrameType.RECORD, 2)[0]
    flip(segment(rig.directory, 2), frame.offset + 100, 5)
    rig.scrub()
    (found,) = rig.open_ones()
    assert (found.part, found.bits, found.bit_positions) == (Part.RECORD, 1, (805,))


@pytest.mark.parametrize("bit", [12, 13])
@pytest.mark.parametrize("field", [24, 28])
def test_a_wrong_length_hides_no_frames_behind_it(rig: Rig, field: int, bit: int) -> None:
    """Snapshots with nothing new follow each other at equal distances: a length that is wrong by so much leads to the
    end of a later frame, and those in between are well all the same. Lengths that cannot belong together lead nowhere,
    and a rebuild without the catalog finds what is behind."""
    for number in range(5, 20):
        rig.put(number, {})
    commits = {(number, one.offset): one for number in rig.bytes_of() for one in rig.frames(FrameType.COMMIT, number)}
    number, hit = next((n, one) for (n, at), one in commits.items() if (n, at + (1 << bit)) in commits)
    flip(segment(rig.directory, number), hit.offset + field + bit // 8, bit % 8)
    assert rig.scrub() == 1
    (told,) = rig.findings.listed(state=None)
    assert (told.part, told.offset, told.state) == (Part.COMMIT, hit.offset, State.OPEN)
    rebuilt = rebuild_catalog(rig.directory, into=rig.directory / "again.db", locked=True)
    bad = [(damage.offset, damage.length) for damage in rebuilt.damage if damage.length]
    assert bad == [(hit.offset, hit.end - hit.offset)]


def test_found_again_it_stays_as_it_is(rig: Rig) -> None:
    """The same damage is one finding, whatever was learned since is kept; acknowledged, it is told no more; changed, it
    is told again."""
    flip(segment(rig.directory, 2), 5000)
    assert rig.scrub() == 1
    (first,) = rig.open_ones()
    rig.findings.update(first.with_event(1, "something was learned"))
    assert rig.scrub() == 1
    (again,) = rig.open_ones()
    assert again.id == first.id and again.events[-1].what == "something was learned"
    rig.findings.update(again.with_event(2, "seen", state=State.ACKNOWLEDGED))
    assert rig.scrub() == 0 and not rig.open_ones()
    flip(segment(rig.directory, 2), 5001)
    assert rig.scrub() == 1 and len(rig.open_ones()) == 1


def test_what_is_told_already_is_not_looked_up_again(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """What damage belongs to is a look through the whole catalog: for news only, and what was found then stays."""
    looks: list[Collection[bytes]] = []

    def counted(inventory: Inventory, ids: Collection[bytes]) -> Harm:
        looks.append(ids)
        return harm_of(inventory, ids)

    monkeypatch.setattr(scrub_replica, "harm_of", counted)
    one, two = rig.frames(FrameType.BLOCK, 2)[:2]
    flip(segment(rig.directory, 2), one.offset + 90)
    assert rig.scrub() == 1 and {one.id} in looks
    (first,) = rig.open_ones()
    looks.clear()
    assert rig.scrub() == 1 and not any(looks)
    assert rig.open_ones() == [first] and first.affected
    rig.findings.update(first.with_event(2, "seen", state=State.ACKNOWLEDGED))
    assert rig.scrub() == 0 and not any(looks)
    flip(segment(rig.directory, 2), two.offset + 90)
    assert rig.scrub() == 1 and any(looks)
    assert all(found.affected for found in rig.open_ones())


def test_what_a_replay_found_is_told(rig: Rig) -> None:
    """Damage that the opening of the store met becomes a finding with the first verification."""
    rig.close()
    old = catalog_path(rig.directory).read_bytes()
    rig.open()
    rig.put(20, {b"late": block("late ", 3000)})
    rig.kill()
    for path in rig.directory.glob("catalog.db*"):
        path.unlink()
    catalog_path(rig.directory).write_bytes(old)
    last = max(rig.bytes_of())
    record = rig.frames(FrameType.RECORD, last)[-1]
    flip(segment(rig.directory, last), record.offset + 80)
    rig.open()
    assert rig.archive.damage
    rig.verify()
    told = {(one.part, one.number) for one in rig.open_ones()}
    assert (Part.RECORD, last) in told and (Part.STRUCTURE, last) in told


def test_a_damaged_page_of_the_catalog_is_a_finding(rig: Rig, tmp_path: Path) -> None:
    """It is named as the book's, found by the structural check, and a repair makes the catalog anew."""
    rig.reopen()
    rig.scrub()
    with rig.archive.upkeep():
        pass
    path = catalog_path(rig.directory)
    checkpoint(path)
    write_at(path, path.stat().st_size // 8192 // 2 * 8192 + 100, os.urandom(50))
    asyncio.run(rig.surface.structure())
    (found,) = rig.open_ones()
    assert (found.key, found.part, found.verdict) == ("book:catalog", Part.BOOK, Verdict.REPLICA_ROT)
    (settled,) = rig.settle()
    assert settled.state is State.REPAIRED, settled.events
    rig.assert_clean(tmp_path)


def checkpoint(path: Path) -> None:
    """Bring everything into the main file."""
    connection = apsw.Connection(str(path))
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


def downgrade(path: Path) -> None:
    """The catalog as the first version left it."""
    connection = apsw.Connection(str(path))
    connection.execute("DROP INDEX snapshot_kept")
    connection.execute("ALTER TABLE snapshot DROP COLUMN dropped_ns")
    for name in ("frame_copy", "mended", "scrubbed", "expired", "orphan", "forgotten"):
        connection.execute(f"DROP TABLE {name}")
    for name in ("block_place", "entry_died", "file_block_died"):
        connection.execute(f"DROP INDEX {name}")
    connection.execute("PRAGMA user_version = 1")
    connection.close()


def test_a_store_of_the_version_before_is_read_migrated_and_judged(rig: Rig, tmp_path: Path) -> None:
    """Readers need no migration; opening migrates; the first scrub fills in the copies, after which the structure can
    be repaired bit for bit, also in the segment where the migration was."""
    before = trees(rig.directory)
    rig.close()
    downgrade(catalog_path(rig.directory))
    assert trees(rig.directory) == before
    rig.open()
    last = max(rig.bytes_of())
    rig.put(30, {b"after": b"after the migration"})
    assert rig.scrub() == 0
    rig.scrub()
    good = rig.bytes_of()
    kinds = (FrameType.HEADER, FrameType.COMMIT, FrameType.RECORD, FrameType.PAD)
    hits = [(number, one.offset) for number in good for kind in kinds for one in rig.frames(kind, number)[:1]]
    for number, offset in hits:
        flip(segment(rig.directory, number), offset + 30)
    assert last in good and rig.scrub() > 0
    rig.mender._repair_limit = 1000
    rig.settle_all()
    assert rig.bytes_of() == good
    rig.assert_clean(tmp_path)


def test_a_version_from_the_future_is_refused(rig: Rig) -> None:
    """Neither readers nor writers guess."""
    rig.close()
    connection = apsw.Connection(str(catalog_path(rig.directory)))
    connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    connection.close()
    for opening in (lambda: ArchiveReader(rig.directory), rig.open):
        with pytest.raises(ReplicadError, match="schema version"):
            opening()
    connection = apsw.Connection(str(catalog_path(rig.directory)))
    connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
    connection.close()
    rig.open()


def test_what_cannot_be_looked_at_stays_due(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A segment that cannot be opened is a doubt, never well; when nothing can be it is an error."""
    real = Disk.open_read

    def refuse(self: Disk, path: Path) -> Reader:
        if path.name == "00000002.seg" or refuse_all:
            raise ReplicadError("error while opening: Permission denied", where=str(path))
        return real(self, path)

    refuse_all = False
    monkeypatch.setattr(Disk, "open_read", refuse)
    verified = rig.verify()
    assert len(verified.doubts) == 1 and "Permission denied" in verified.doubts[0]
    assert extent(rig)[1] == segment(rig.directory, 2).stat().st_size
    refuse_all = True
    with pytest.raises(ReplicadError, match="Permission denied"):
        rig.verify()


def test_a_segment_that_cannot_be_looked_at_has_no_other_read_again(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits, and is tried again later; the others are verified once, and then there is nothing to do for a while."""
    rig.scrub()
    real = ReplicaSurface._check

    def check(self: ReplicaSurface, number: int, *rest: object) -> object:
        if number == 2:
            raise BookDamagedError("a page fails its checksum", where="catalog.db")
        read.append(number)
        return real(self, number, *rest)  # type: ignore[arg-type]

    read: list[int] = []
    monkeypatch.setattr(ReplicaSurface, "_check", check)
    since_ns = rig.clock.now_ns()
    for _ in range(10):
        if not asyncio.run(rig.surface.extent(since_ns)).since_bytes:
            break
        with contextlib.suppress(ReplicadError):
            rig.verify(1)
    assert sorted(read) == [number for number in segment_numbers(rig.directory) if number != 2]
    size = segment(rig.directory, 2).stat().st_size
    assert asyncio.run(rig.surface.extent(since_ns)).waiting_bytes == size
    read.clear()
    later_ns = rig.clock.now_ns() + 1
    rig.clock.ns = later_ns
    while asyncio.run(rig.surface.extent(later_ns)).since_bytes and len(read) < 20:
        with contextlib.suppress(ReplicadError):
            rig.verify(1, later_ns)
    assert len(read) == len(set(read)), "it is looked at once for who asks later, and so is everything else"
    rig.clock.ns += RETRY_NS
    assert asyncio.run(rig.surface.extent(since_ns)).since_bytes == size
    monkeypatch.undo()
    rig.verify(1)
    assert asyncio.run(rig.surface.extent(since_ns)).since_bytes == 0
    assert {one.key for one in rig.open_ones()} == {"book:catalog"}


def test_intake_goes_on_during_a_scrub(rig: Rig) -> None:
    """While segments are read the shelf's thread is free: sessions add and seal, and nothing false is told."""

    async def both() -> None:
        loop = asyncio.get_running_loop()
        scrubbing = asyncio.ensure_future(_scrub_often(rig))
        for number in range(40, 60):
            await loop.run_in_executor(rig.executor, rig.put, number, {b"n%d" % number: os.urandom(2000)})
        scrubbing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await scrubbing

    asyncio.run(both())
    assert rig.findings.listed(state=None) == []
    assert rig.scrub() == 0


async def _scrub_often(rig: Rig) -> None:
    while True:
        assert (await rig.surface.verify(ALL, 0)).found == 0
        assert (await rig.surface.structure()).found == 0
        for unit in rig.surface._units.values():
            unit.at_ns = unit.verified = 0
            unit.end = None


async def test_shelves_give_what_scrubs_and_repairs_need(tmp_path: Path) -> None:
    """A store that is opened has a surface, a mender and its findings; a damaged catalog is a finding although nothing
    can be opened, and is none any more after a rebuild."""
    rig = make(tmp_path)
    flip(segment(rig.directory, 2), 5000)
    rig.close()
    shelves = Shelves(ListenConfig(tmp_path), list, Disk(), Clock())
    await shelves.open_all()
    key = ("ams1", "www")
    assert (await (await shelves.surface(*key)).verify(ALL, 0)).found == 1
    ((meant, found),) = await shelves.meant(None)
    assert meant == key and found.peer == "ams1" and found.dataset == "www"
    assert [one.id for one in await shelves.in_findings(*key, lambda book: book.listed())] == [found.id]
    planned = await shelves.repair(key, found, dry_run=True, now_ns=1)
    assert planned.result == "nothing", "what the primary has not spoken of yet is only looked at"
    await shelves.close()
    catalog = catalog_path(rig.directory)
    checkpoint(catalog)
    good = catalog.read_bytes()
    write_at(catalog, 200, b"rot" * 20)
    shelves = Shelves(ListenConfig(tmp_path), list, Disk(), Clock())
    await shelves.open_all()
    await shelves.close()
    book = Findings(rig.directory / "findings.db")
    assert "book:catalog" in {one.key for one in book.listed()}
    write_at(catalog, 0, good)
    shelves = Shelves(ListenConfig(tmp_path), list, Disk(), Clock())
    await shelves.open_all()
    assert {one.key for one in book.listed()} == {found.key}
    await shelves.close()
    book.close()


def assert_named(found: Divergence, *words: str) -> None:
    """Used by the tests of texts."""
    assert all(word in found.what for word in words), found.what


def test_the_words_name_what_is_wrong(rig: Rig) -> None:
    """One sentence says what happened to a segment."""
    rig.scrub()
    os.truncate(segment(rig.directory, 1), 9000)
    segment(rig.directory, 3).unlink()
    rig.scrub()
    found = {one.key: one for one in rig.open_ones()}
    assert_named(found["segment:1"], "9000 bytes long instead of")
    assert_named(found["segment:3"], "missing")
    assert found["segment:3"].evidence.replica is Sight.ABSENT and found["segment:3"].blocks


def test_questions_about_whole_tables_are_answered_page_by_page(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever their length, every block without a place and every block behind its file's end is found once."""
    rig.put(31, {b"long": block("long ", 200_000)})
    inventory, database = rig.archive.inventory, rig.archive._catalog.database
    rows = database.all("SELECT file, number, id FROM file_block")
    gone = sorted({row[2] for row in rows})[::3]
    database.executemany("DELETE FROM block WHERE id = ?", [(name,) for name in gone])
    ends = dict(database.all("SELECT file, max(number) FROM file_block WHERE died IS NULL GROUP BY file"))
    live = "file = ? AND died IS NULL"
    shrunk = [file for file in sorted(ends) if database.value(f"SELECT 1 FROM entry WHERE {live}", (file,))][::2]
    database.executemany(f"UPDATE entry SET size = 0 WHERE {live}", [(file,) for file in shrunk])
    for page_rows in (1, 2, 3, 7, 10_000):
        monkeypatch.setattr("replicad.db.inventory.PAGE_ROWS", page_rows)
        missing = [name for page in inventory.unplaced() for name in page]
        assert sorted(missing) == sorted(row[2] for row in rows if row[2] in gone)
        beyond = [one for page in inventory.beyond_end() for one in page]
        assert sorted(beyond) == [(file, ends[file]) for file in shrunk]


def test_where_blocks_are_used_and_how_files_are_called_is_found_page_by_page(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever their length, the pages hold just the rows of the blocks and of the files that were asked for."""
    rig.put(31, {b"long": block("long ", 200_000)})
    rig.put(32, {b"long": block("new ", 200_000)})
    inventory = rig.archive.inventory
    blocks = [row for page in inventory.file_blocks() for row in page]
    names = [row for page in inventory.file_names() for row in page]
    ids, files = sorted({row.id for row in blocks})[::3], sorted({row.file for row in names})[::2]
    assert ids and files and any(row.died for row in names)
    for page_rows in (1, 2, 3, 7, 10_000):
        monkeypatch.setattr("replicad.db.inventory.PAGE_ROWS", page_rows)
        assert [one for page in inventory.uses(ids) for one in page] == [row for row in blocks if row.id in ids]
        assert [one for page in inventory.names_of(files) for one in page] == [n for n in names if n.file in files]
        assert not any(inventory.uses([b"x" * 32])) and not any(inventory.names_of([1 << 40]))


def test_a_snapshot_that_arrives_during_a_check_of_the_structure_is_no_contradiction(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is compared with one another is asked of one state of the catalog, however long that takes."""
    real = Inventory.heads

    def heads(self: Inventory, after: tuple[int, int] = (0, -1)) -> Iterator[tuple[int, int, bytes]]:
        rig.put(5, {b"late": block("late ", 700)})
        return real(self, after)

    monkeypatch.setattr(Inventory, "heads", heads)
    asyncio.run(rig.surface.structure())
    assert rig.findings.listed(state=None) == []


async def test_a_store_is_scrubbed_as_soon_as_its_findings_can_be_kept(tmp_path: Path) -> None:
    """A damaged findings book that was moved away, as its error says, needs no restart of the daemon."""
    rig = make(tmp_path)
    rig.close()
    book = rig.directory / "findings.db"
    checkpoint(book)
    write_at(book, 0, b"rot" * 2000)
    shelves = Shelves(ListenConfig(tmp_path), list, Disk(), Clock())
    await shelves.open_all()
    key = ("ams1", "www")
    with pytest.raises(ReplicadError, match="damaged"):
        await shelves.surface(*key)
    book.rename(tmp_path / "moved.db")
    assert (await (await shelves.surface(*key)).verify(ALL, 0)).units
    assert [line.reason for line in shelves.statuses] == [""]
    await shelves.close()
