"""Changes that were written and look like damage: listed with the version before them, and what programs do all day
is not."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit_rig import Replica, Rig, replica, rig, snapshots
from kit_store import META, Primary, directory_put, open_archive
from replicad.db import findings as findings_module
from replicad.db.changes import Made, Version
from replicad.db.findings import Findings
from replicad.model.divergence import SUSPECT_KINDS, Suspect
from replicad.model.entry import FUZZY, Drop, Kind, Put
from replicad.system.clock import Clock
from replicad.work import suspicion
from replicad.work.scrub_book import InBook
from replicad.work.suspect import EXAMINED, RELEASED_NS, WAITING_ALIKE, Examining, _remember, unlike
from replicad.work.suspicion import FEW_BITS, LATE_NS, differs_by_few_bits, has_same_mtime, was_scrambled

HOUR_NS = 3600 * 1_000_000_000


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "www"
    path.mkdir()
    return path


class Bench:
    """A primary, a replica and the examination of what arrives there."""

    def __init__(self, primary: Rig, fra1: Replica, findings: Findings, job: Examining) -> None:
        self.primary, self.fra1, self.findings, self.job = primary, fra1, findings, job

    async def sync(self) -> None:
        """A pass that must succeed."""
        assert (await self.primary.sync(self.fra1)).pass_ok

    async def found(self) -> list[tuple[str, bytes, int]]:
        """Sync, examine, and give what is listed in all: kind, path, blocks."""
        await self.sync()
        await self.job.step()
        return sorted((one.kind, one.path, one.blocks) for one in self.findings.suspects())


def book_in(findings: Findings, executor: ThreadPoolExecutor) -> InBook:
    """The findings as the job gets at them: in their own thread."""

    async def in_book(work: Callable[[Findings], object]) -> object:
        return await asyncio.get_running_loop().run_in_executor(executor, work, findings)

    return in_book  # type: ignore[return-value]  # what comes out is what the work gives


@asynccontextmanager
async def bench(tmp_path: Path, root: Path, **options: object) -> AsyncIterator[Bench]:
    own, pool = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
    async with rig(tmp_path, root, max_change=1.0, **options) as primary, replica(tmp_path / "store") as fra1:
        assert (await primary.sync(fra1)).pass_ok
        findings = own.submit(Findings, fra1.archive / "findings.db").result()
        job = Examining("ams1", "www", fra1.archive, book_in(findings, own), pool, Clock())
        try:
            yield Bench(primary, fra1, findings, job)
        finally:
            findings.close()
            own.shutdown()
            pool.shutdown()


def make_old(path: Path) -> None:
    """Last written hours ago."""
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns - 5 * HOUR_NS))


def write_at(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def flip_bits(path: Path, offset: int, bits: int) -> None:
    """Write a byte back with some of its lowest bits flipped, as a program with a broken memory would."""
    value = path.read_bytes()[offset]
    write_at(path, offset, bytes([value ^ ((1 << bits) - 1)]))


# the rules


@given(st.binary(min_size=1, max_size=300), st.data())
def test_few_bits_are_counted_and_many_are_not(old: bytes, data: st.DataObject) -> None:
    """As many flips as the limit allows are named by their number, one more is none; equal blocks are none."""
    count = data.draw(st.integers(1, FEW_BITS + 2))
    places = data.draw(st.sets(st.integers(0, len(old) * 8 - 1), min_size=min(count, len(old) * 8), max_size=count))
    new = bytearray(old)
    for place in places:
        new[place // 8] ^= 1 << place % 8
    digits = all(old[p // 8] in b"0123456789" and new[p // 8] in b"0123456789" for p in places)
    expected = len(places) if len(places) <= FEW_BITS and not digits else 0
    assert differs_by_few_bits(old, bytes(new)) == expected
    assert differs_by_few_bits(old, old) == 0
    assert differs_by_few_bits(old, bytes(new) + b"x") == 0


def test_a_counter_in_text_does_not_count_as_flipped_bits() -> None:
    """ "3" and "7" are one bit apart, and so is a version number from the next one."""
    assert differs_by_few_bits(b"serial 2024113", b"serial 2024117") == 0
    assert differs_by_few_bits(b"serial 2024113", b"serial 202411s") == 1
    assert differs_by_few_bits(b"", b"") == 0


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        ([(100, 1000)], [(1000, 1000)], True),
        ([(100, 1000)], [(900, 1000)], False),
        ([(1000, 1000)], [(1000, 1000)], None),
        ([(100, 1000)], [], None),
        ([], [(1000, 1000)], None),
        ([(10, 100)], [(100, 100)], None),
        ([(10, 600), (700, 700)], [(1300, 1300)], True),
    ],
)
def test_what_is_scrambled(before: list[tuple[int, int]], now: list[tuple[int, int]], expected: bool | None) -> None:
    """Compressed well before and not at all now; files that never compressed, and tiny ones, say nothing."""
    assert was_scrambled(before, now) is expected


@pytest.mark.parametrize(
    ("old_ns", "new_ns", "flags", "expected"),
    [
        (0, 0, 0, True),
        (0, 1, 0, False),
        (0, 0, FUZZY, False),
        (10 * LATE_NS, 10 * LATE_NS, 0, False),
        (9 * LATE_NS, 9 * LATE_NS, 0, False),
        (9 * LATE_NS - 1, 9 * LATE_NS - 1, 0, True),
    ],
)
def test_an_unchanged_time_counts_once_the_writer_was_done(
    old_ns: int, new_ns: int, flags: int, expected: bool
) -> None:
    """A file that was recorded while somebody wrote it goes on under the time at which that began."""
    made = Made(2, 2, 1, 10 * LATE_NS)
    old, new = (Version(Kind.FILE, at, 9, 1, 65536, flags) for at in (old_ns, new_ns))
    assert has_same_mtime(old, new, made) is expected


def a_suspect(kind: str = "emptied", path: bytes = b"a", released_ns: int = 0) -> Suspect:
    return Suspect(path=path, kind=kind, snapshot=3, before=2, found_ns=1, blocks=1, released_ns=released_ns)


def test_the_same_file_is_listed_a_few_times_and_not_soon_after_a_release() -> None:
    """Another kind, another path, or a release long ago: listed again."""
    now_ns = 2 * RELEASED_NS
    one = a_suspect()
    assert unlike([one], [], now_ns) == [one]
    assert unlike([one], [one] * (WAITING_ALIKE - 1), now_ns) == [one]
    assert unlike([one], [one] * WAITING_ALIKE, now_ns) == []
    assert unlike([one], [a_suspect("zeroed"), a_suspect(path=b"b")] * WAITING_ALIKE, now_ns) == [one]
    assert unlike([one], [a_suspect(released_ns=now_ns - 1)], now_ns) == []
    assert unlike([one], [a_suspect(released_ns=now_ns - RELEASED_NS)], now_ns) == [one]
    assert unlike([one], [a_suspect(released_ns=now_ns + 1)], now_ns) == [one], "the clock was wrong then"


def test_however_many_were_listed_before_the_same_file_is_not_listed_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than one question gives have been listed and released; those that count are found all the same."""
    monkeypatch.setattr(findings_module, "MAX_LISTED", 5)
    now_ns = 2 * RELEASED_NS
    book = Findings(tmp_path / "findings.db")
    book.add_suspects([a_suspect(path=b"%d" % number) for number in range(10)])
    book.release_suspects(None, 1)
    for snapshot in range(4, 12):
        _remember(snapshot, [msgspec.structs.replace(a_suspect(), snapshot=snapshot)], now_ns, book)
    assert len(book.suspects()) == WAITING_ALIKE
    book.release_suspects(None, now_ns)
    _remember(12, [msgspec.structs.replace(a_suspect(), snapshot=12)], now_ns + 1, book)
    assert book.suspects() == [] and book.get(EXAMINED) == 12
    book.close()


# from a real tree, through a real store


Deed = Callable[[Path], None]


def _random(path: Path, size: int = 300_000) -> None:
    path.write_bytes(random.Random(path.name).randbytes(size))


def _punch(path: Path) -> None:
    subprocess.run(["fallocate", "-p", "-o", "65536", "-l", "131072", str(path)], check=True)


@pytest.mark.parametrize(
    ("deed", "expected"),
    [
        (lambda path: flip_bits(path, 100, 1), [("few_bits", b"f", 1)]),
        (lambda path: (flip_bits(path, 100, 1), flip_bits(path, 70_000, 2)), [("few_bits", b"f", 2)]),
        (lambda path: write_at(path, 65536, bytes(65536)), [("zeroed", b"f", 1)]),
        (_punch, [("zeroed", b"f", 2)]),
        (lambda path: os.truncate(path, 0), [("emptied", b"f", 5)]),
    ],
)
async def test_what_looks_like_damage_is_listed(
    tmp_path: Path, root: Path, deed: Deed, expected: list[tuple[str, bytes, int]]
) -> None:
    """Each kind is replicated, listed with its blocks, and pins the snapshot before it."""
    _random(root / "f")
    _random(root / "g")
    async with bench(tmp_path, root) as made:
        deed(root / "f")
        assert await made.found() == expected
        (suspect,) = made.findings.suspects()
        assert (suspect.snapshot, suspect.before) == (2, 1)
        assert made.findings.pinned() == {1}
        assert suspect.kind in SUSPECT_KINDS


async def test_a_large_compressible_file_of_which_one_bit_flipped(tmp_path: Path, root: Path) -> None:
    """Compressed frames are compared by what is in them; files with many blocks too."""
    text = b"".join(b"line %d of a log that compresses well\n" % n for n in range(150_000))
    (root / "log").write_bytes(text)
    async with bench(tmp_path, root) as made:
        flip_bits(root / "log", 3_000_000, 1)
        assert await made.found() == [("few_bits", b"log", 1)]


@pytest.mark.parametrize(("age_h", "kinds"), [(9, ["same_mtime"]), (8, [])])
def test_a_file_that_moved_has_the_time_that_stands_at_its_new_name(
    tmp_path: Path, age_h: int, kinds: list[str]
) -> None:
    """Written and moved within one snapshot, it keeps its number; only the time it had before makes that suspect."""
    archive = open_archive(tmp_path / "store")
    primary = Primary(archive)
    for number, path, age in ((1, b"d/f", 9), (2, b"e/f", age_h)):
        (name,) = primary.send(random.Random(number).randbytes(700))
        meta = msgspec.structs.replace(META, mtime_ns=-age * HOUR_NS)
        file = Put(path, Kind.FILE, meta, 700, 7, 65536, 0, b"", 0, (0,), name)
        gone = [Drop(b"d/f"), Drop(b"d")] if number == 2 else []
        primary.record(directory_put(b""), *gone, directory_put(path[:1]), file)
        primary.seal(number)
    _, found = suspicion.examine(tmp_path / "store", 1, 0)
    assert [one.kind for one in found] == kinds
    archive.close()


async def test_content_that_changed_under_its_old_time(tmp_path: Path, root: Path) -> None:
    """Also through a chmod, and through a rename: the bytes are another, the time is not."""
    for name in ("chmod", "touched", "renamed"):
        _random(root / name)
        make_old(root / name)
    async with bench(tmp_path, root) as made:
        for name in ("chmod", "touched", "renamed"):
            time_ns = (root / name).stat().st_mtime_ns
            write_at(root / name, 1000, b"quite another text, of many bits")
            os.utime(root / name, ns=(time_ns, time_ns))
        (root / "chmod").chmod(0o600)
        (root / "renamed").rename(root / "new name")
        assert await made.found() == [
            ("same_mtime", b"chmod", 1),
            ("same_mtime", b"renamed", 1),
            ("same_mtime", b"touched", 1),
        ]
        details = {one.path: one.detail for one in made.findings.suspects()}
        assert details[b"renamed"] == "under another name now"


async def test_a_surge_of_scrambled_files(tmp_path: Path, root: Path) -> None:
    """Most files made incompressible, in place or by others put in their places, are listed one by one."""
    for number in range(60):
        (root / f"{number:02d}").write_text("some text that compresses well\n" * 200)
    async with bench(tmp_path, root) as made:
        for number in range(0, 50):
            path, data = root / f"{number:02d}", random.Random(number).randbytes(6200)
            if number % 2:
                path.write_bytes(data)
            else:
                (root / "tmp").write_bytes(data)
                (root / "tmp").rename(path)
        for number in range(50, 60):
            (root / f"{number:02d}").write_text("some other text that compresses well\n" * 150)
        found = await made.found()
        assert found == [("scrambled", b"%02d" % number, 1) for number in range(50)]
        assert made.findings.suspects()[0].detail == "50 of 60 rewritten files that compressed do so no more"


async def test_what_programs_do_all_day_is_not_listed(tmp_path: Path, root: Path) -> None:
    """Appended logs, database pages, replaced and renamed files, touched and trimmed ones, new zeros, a counter in
    text, a handful of encrypted files: none of it."""
    for name in ("log", "database", "replaced", "renamed", "touched", "dropped", "cut", "grown"):
        _random(root / name)
        make_old(root / name)
    (root / "counter").write_text("serial = 41\n")
    for number in range(30):
        (root / f"text{number}").write_text("some text that compresses well\n" * 200)
    async with bench(tmp_path, root) as made:
        with (root / "log").open("ab") as file:
            file.write(random.Random(1).randbytes(100_000))
        write_at(root / "database", 8192, random.Random(2).randbytes(4096))
        write_at(root / "database", 100, (7).to_bytes(8, "little"))
        (root / "fresh").write_bytes(random.Random(3).randbytes(300_000))
        status = (root / "replaced").stat()
        os.utime(root / "fresh", ns=(status.st_atime_ns, status.st_mtime_ns))
        (root / "fresh").rename(root / "replaced")
        (root / "renamed").rename(root / "renamed too")
        os.utime(root / "touched")
        (root / "touched").chmod(0o600)
        (root / "dropped").unlink()
        os.truncate(root / "cut", 70_000)
        os.truncate(root / "grown", 5_000_000)
        (root / "counter").write_text("serial = 43\n")
        for number in range(10):
            (root / f"text{number}").write_bytes(random.Random(number).randbytes(6200))
        for number in range(10, 30):
            (root / f"text{number}").write_text("other text that compresses well\n" * 200)
        assert await made.found() == []
        assert made.findings.get(EXAMINED) == 2


async def test_every_snapshot_is_examined_once_also_after_a_restart(tmp_path: Path, root: Path) -> None:
    """Snapshots that came while nobody examined are caught up with; none is examined again."""
    for name in ("a", "b", "c"):
        _random(root / name)
    async with bench(tmp_path, root) as made:
        flip_bits(root / "a", 5, 1)
        await made.sync()
        flip_bits(root / "b", 5, 1)
        assert await made.found() == [("few_bits", b"a", 1), ("few_bits", b"b", 1)]
        assert [(one.snapshot, one.before) for one in made.findings.suspects()] == [(2, 1), (3, 2)]
        made.findings.release_suspects(None, 5)
        flip_bits(root / "c", 5, 1)
        pool = ThreadPoolExecutor(1)
        again = Examining("ams1", "www", made.fra1.archive, book_in(made.findings, pool), pool, Clock())
        await made.sync()
        await again.step()
        await again.step()
        assert [(one.path, one.snapshot) for one in made.findings.suspects()] == [(b"c", 4)]
        assert made.findings.get(EXAMINED) == 4 == snapshots(made.fra1.archive)[-1].number


async def test_hard_links_are_one_file(tmp_path: Path, root: Path) -> None:
    """A change through one name is listed once."""
    _random(root / "a")
    os.link(root / "a", root / "b")
    async with bench(tmp_path, root) as made:
        flip_bits(root / "b", 5, 1)
        assert await made.found() == [("few_bits", b"a", 1)]


async def test_a_big_change_is_sampled_and_a_long_list_says_so(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the limits one in so many blocks is compared, and the last row tells how many are not listed."""
    for number in range(40):
        _random(root / f"{number:02d}", 5000)
    monkeypatch.setattr(suspicion, "COMPARED_BLOCKS", 10)
    async with bench(tmp_path, root) as made:
        for number in range(40):
            flip_bits(root / f"{number:02d}", 7, 1)
        assert len(await made.found()) == 10
        monkeypatch.setattr(suspicion, "MAX_SUSPECTS", 4)
        for number in range(20):
            os.truncate(root / f"{number:02d}", 0)
        found = [one for one in await made.found() if one[0] == "emptied"]
        assert len(found) == 4
        detail = [one.detail for one in made.findings.suspects() if one.kind == "emptied"][-1]
        assert "and 16 more files of this snapshot" in detail


async def test_a_nudge_ends_the_wait(tmp_path: Path, root: Path) -> None:
    """Told of a new snapshot, the job does not wait for its next look."""
    (root / "a").write_text("a")
    async with bench(tmp_path, root) as made:
        assert made.job.name == "examine www of ams1"
        await made.job.step()
        waiting = asyncio.create_task(made.job.wait())
        await asyncio.sleep(0)
        assert not waiting.done()
        made.job.nudge()
        await asyncio.wait_for(waiting, 10)


async def test_a_damaged_block_is_left_to_the_scrub(tmp_path: Path, root: Path) -> None:
    """What cannot be read is not compared, and stops nothing."""
    _random(root / "a", 5000)
    _random(root / "b", 5000)
    old = (root / "a").read_bytes()
    async with bench(tmp_path, root) as made:
        segment = next((made.fra1.archive / "segments").iterdir())
        place = segment.read_bytes().index(old)
        write_at(segment, place + 9, b"damaged")
        for name in ("a", "b"):
            flip_bits(root / name, 7, 1)
        assert await made.found() == [("few_bits", b"b", 1)]
