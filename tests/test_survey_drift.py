"""Rot never travels, whichever job meets it: metadata that changed without a write, files that only were renamed."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from kit_rig import Rig, copied, describe_snapshot, differences, replica, rig, snapshots
from kit_tend import rot
from kit_tree import is_root
from replicad.db.findings import Findings
from replicad.db.ledger import EntryRow, Known, put_of, stamp_of
from replicad.db.unnamed import KEPT_WALKS
from replicad.model.divergence import Divergence, Part, Side
from replicad.model.entry import Identity, Kind, Stamp
from replicad.model.verdict import Sight, Verdict, Writing
from replicad.source.root import Root
from replicad.source.scan import Drifted, has_drifted, still_drifted
from replicad.work import met
from replicad.work.met import Rotten, look_again
from replicad.work.primary_findings import PrimaryFindings
from replicad.work.record import was_renamed

FILE = Stamp(Kind.FILE, 0o644, 1, 2, 0, 77, 1000, 5_000, 6_000)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "www"
    path.mkdir()
    return path


def findings(primary: Rig) -> list[Divergence]:
    with closing(Findings(primary.directory / "state" / "findings" / "www.db")) as book:
        return book.listed()


async def tamper(primary: Rig, path: bytes, **changes: int) -> None:
    """Let the ledger remember another stamp: the same as if the entry's inode had changed below the file system."""
    await primary.dataset.open()
    ledger = primary.dataset.ledger

    def write() -> None:
        known = ledger.known(path)
        assert known
        put = put_of(path, known)
        ledger.record_entries([EntryRow(put, stamp_of(known)._replace(**changes), known.seq)])

    await primary.dataset.in_ledger(write)


@pytest.mark.parametrize("field", Stamp._fields)
def test_an_entry_has_drifted_only_under_its_own_inode_and_times(field: str) -> None:
    """Another device, inode or time is somebody's doing; any other difference alone is nobody's."""
    other = FILE._replace(**{field: getattr(FILE, field) + (-1 if field == "size" else 1)})
    expected = field not in ("device", "inode", "mtime_ns", "ctime_ns")
    assert has_drifted(FILE, other) is expected
    assert not has_drifted(FILE, FILE)
    assert not has_drifted(FILE, other._replace(ctime_ns=7_000))


def test_where_times_are_whole_seconds_nothing_has_drifted() -> None:
    """A change within the second of the last one leaves no trace there: it is replicated as ever."""
    old = FILE._replace(ctime_ns=5_000_000_000)
    assert not has_drifted(old, old._replace(mode=0o600))


@pytest.mark.parametrize(
    ("kind", "now", "expected"),
    [
        (Kind.FILE, 1001, False),
        (Kind.FILE, 999, True),
        (Kind.DIRECTORY, 999, False),
        (Kind.DIRECTORY, 1001, False),
        (Kind.SYMLINK, 999, True),
        (Kind.SYMLINK, 1001, True),
    ],
)
def test_sizes_that_a_long_write_or_a_check_of_the_file_system_explains(kind: Kind, now: int, expected: bool) -> None:
    """A file that grew may be in the middle of a write; a directory's size says nothing; a target never changes."""
    assert has_drifted(FILE._replace(kind=kind), FILE._replace(kind=kind, size=now)) is expected


def test_a_drift_that_is_over_a_moment_later_was_a_write_under_way(root: Path) -> None:
    """A truncation shows its new size a little before its new times; what is still so has drifted."""
    for name in ("cut", "drifted"):
        (root / name).write_bytes(b"x" * 900)
    with Root(os.fsencode(root)) as opened:
        seen = [stamp for name in (b"cut", b"drifted") if (stamp := opened.look(name))]
        found = [
            Drifted(path, stamp, stamp._replace(size=1000))
            for path, stamp in zip((b"cut", b"drifted", b"gone"), (*seen, seen[0]), strict=True)
        ]
        os.utime(root / "cut")
        assert [one.path for one in still_drifted(opened, found)] == [b"drifted"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mode": 0o600}, "mode is 0644 where 0600 is recorded"),
        ({"uid": 4711}, "where 4711:"),
        ({"size": 5_000}, "size is 3000 where 5000 is recorded"),
        ({"kind": Kind.SYMLINK.value}, "is a file where a symlink is recorded"),
    ],
)
async def test_drift_is_a_finding_and_is_not_replicated(
    tmp_path: Path, root: Path, changes: dict[str, int], words: str
) -> None:
    """Nothing is sent, nothing is recorded, the pass is complete; the finding says what is otherwise, and later passes
    add nothing to it."""
    for number in range(3):
        (root / f"{number}").write_bytes(bytes([number + 1]) * 3000)
        (root / f"{number}").chmod(0o644)
    async with rig(tmp_path, root) as primary, replica(tmp_path / "store") as fra1:
        before = (await primary.sync(fra1)).sent_bytes
        await tamper(primary, b"1", **changes)
        for _ in range(3):
            status = await primary.sync(fra1)
            assert (status.pass_ok, status.sent_bytes - before) == (True, 0)
            (found,) = findings(primary)
            assert (found.key, found.part, found.side) == (f"metadata:{b'1'.hex()}", Part.METADATA, Side.PRIMARY)
            assert words in found.what
            assert (found.evidence.writing, found.evidence.metadata_differs) == (Writing.UNWRITTEN, True)
            assert (found.verdict, len(found.events)) == (Verdict.INCONCLUSIVE, 1)
        ledger = primary.dataset.ledger
        known = await primary.dataset.in_ledger(ledger.known, b"1")
        assert known and all(getattr(known, field) == value for field, value in changes.items())


async def test_drift_that_a_pass_found_follows_a_renamed_directory(tmp_path: Path, root: Path) -> None:
    """A finding of a pass knows its file by number, as one of a scrub does, and holds at the file's new place."""
    (root / "d").mkdir()
    (root / "d" / "f").write_text("f")
    async with rig(tmp_path, root) as primary, replica(tmp_path / "store") as fra1:
        await primary.sync(fra1)
        await tamper(primary, b"d/f", mode=0o600)
        await primary.sync(fra1)
        (found,) = findings(primary)
        dataset = primary.dataset
        (root / "d").rename(root / "e")
        await primary.sync(fra1)
        known = await dataset.in_ledger(dataset.ledger.known, b"e/f")
        assert known and found.file == known.file > 0
        outdated = PrimaryFindings(dataset, dataset.quarantine).outdated
        assert await dataset.in_ledger(outdated, found) == ""


async def test_a_directory_that_drifted_is_still_walked(tmp_path: Path, root: Path) -> None:
    """Its own mode is a finding; what changed in it is replicated."""
    (root / "d").mkdir()
    (root / "d" / "a").write_text("a")
    (root / "d" / "b").write_text("b")
    async with rig(tmp_path, root) as primary, replica(tmp_path / "store") as fra1:
        await primary.sync(fra1)
        await tamper(primary, b"d", mode=0o700)
        (root / "d" / "a").write_text("written")
        assert (await primary.sync(fra1)).pass_ok
        assert [found.path for found in findings(primary)] == [b"d"]
        there = describe_snapshot(fra1.archive)
        assert (there[b"d/a"]["content"], there[b"d/b"]["content"]) == (b"written", b"b")


async def test_what_lies_in_a_directory_that_seems_a_file_is_not_dropped(tmp_path: Path, root: Path) -> None:
    """A kind that changed without a write takes nothing with it."""
    (root / "d").mkdir()
    (root / "d" / "a").write_text("a")
    (root / "f").write_text("f")
    async with rig(tmp_path, root) as primary, replica(tmp_path / "store") as fra1:
        await primary.sync(fra1)
        before = describe_snapshot(fra1.archive)
        await tamper(primary, b"d", kind=Kind.FILE.value)
        await tamper(primary, b"f", kind=Kind.DIRECTORY.value)
        status = await primary.sync(fra1)
        assert status.pass_ok
        assert {found.path for found in findings(primary)} == {b"d", b"f"}
        assert differences(describe_snapshot(fra1.archive), before) == []


async def test_the_root_itself_may_drift(tmp_path: Path, root: Path) -> None:
    """The dataset's own directory is an entry like any other."""
    (root / "a").write_text("a")
    async with rig(tmp_path, root) as primary, replica(tmp_path / "store") as fra1:
        before = (await primary.sync(fra1)).sent_bytes
        await tamper(primary, b"", gid=4711)
        assert (await primary.sync(fra1)).sent_bytes == before
        assert [found.path for found in findings(primary)] == [b""]


async def test_a_change_that_a_person_made_is_replicated_as_ever(tmp_path: Path, root: Path) -> None:
    """chmod and chown move ctime: no drift, no finding."""
    (root / "a").write_text("a")
    async with rig(tmp_path, root) as primary, replica(tmp_path / "store") as fra1:
        await primary.sync(fra1)
        (root / "a").chmod(0o600)
        (root / "a").chmod(0o640)
        await primary.sync(fra1)
        assert describe_snapshot(fra1.archive)[b"a"]["mode"] == 0o640
        assert not (tmp_path / "state" / "findings" / "www.db").exists()


async def test_a_file_that_outgrew_its_record_is_replicated(tmp_path: Path, root: Path) -> None:
    """Recorded in the middle of one long write, it is found longer under the same times: a write, not rot."""
    (root / "a").write_bytes(b"a" * 200_000)
    async with rig(tmp_path, root) as primary, replica(tmp_path / "store") as fra1:
        await primary.sync(fra1)
        await tamper(primary, b"a", size=100_000)
        assert (await primary.sync(fra1)).pass_ok
        assert differences(describe_snapshot(fra1.archive), copied(root)) == []
        assert not (tmp_path / "state" / "findings" / "www.db").exists()


async def test_a_flood_of_drift_is_one_story(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other mount options change every entry at once: some findings, one line that says how many, and no snapshot that
    claims to be complete."""
    monkeypatch.setattr("replicad.work.survey.MAX_DRIFTED", 3)
    for number in range(8):
        (root / f"{number}").write_text("a")
    async with rig(tmp_path, root) as primary, replica(tmp_path / "store") as fra1:
        await primary.sync(fra1)
        for number in range(8):
            await tamper(primary, b"%d" % number, uid=4711)
        status = await primary.sync(fra1)
        assert len(findings(primary)) == 3
        assert not status.pass_ok
        assert "first of 8 entries" in status.troubles[0].reason


async def test_findings_that_cannot_be_written_do_not_pass_for_health(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broken findings book makes the pass incomplete, with words; nothing rotten travels for that."""
    (root / "a").write_text("a")
    async with rig(tmp_path, root) as primary, replica(tmp_path / "store") as fra1:
        await primary.sync(fra1)
        (tmp_path / "state" / "findings").mkdir()
        (tmp_path / "state" / "findings" / "www.db").write_bytes(os.urandom(50_000))
        await tamper(primary, b"a", mode=0o611)
        status = await primary.sync(fra1)
        assert not status.pass_ok
        assert "could not be written down" in status.troubles[0].reason


async def test_a_renamed_file_stays_the_file_it_was(tmp_path: Path, root: Path) -> None:
    """Small or large, it keeps its number, so what differs in it is a change of that file; other files that take its
    old name, or its inode, get numbers of their own."""
    (root / "small").write_bytes(random.Random(1).randbytes(70_000))
    (root / "large").write_bytes(random.Random(2).randbytes(3_000_000))
    async with rig(tmp_path, root) as primary, replica(tmp_path / "store") as fra1:
        before = (await primary.sync(fra1)).sent_bytes
        ledger = primary.dataset.ledger
        old = {name: await primary.dataset.in_ledger(ledger.known, name) for name in (b"small", b"large")}
        for name in ("small", "large"):
            (root / name).rename(root / f"{name}-renamed")
            (root / name).write_bytes(b"another file")
        status = await primary.sync(fra1)
        assert status.pass_ok
        assert status.sent_bytes - before < 5_000
        for name, known in old.items():
            now = await primary.dataset.in_ledger(ledger.known, name + b"-renamed")
            there = await primary.dataset.in_ledger(ledger.known, name)
            assert known and now and there
            assert now.file == known.file != there.file
        assert differences(describe_snapshot(fra1.archive), copied(root)) == []
        for name in ("small-renamed", "large-renamed"):
            (root / name).unlink()
            (root / f"{name}-2").write_bytes(random.Random(3).randbytes(70_000))
        assert (await primary.sync(fra1)).pass_ok
        assert differences(describe_snapshot(fra1.archive), copied(root)) == []
        assert len(snapshots(fra1.archive)) == 3


async def test_a_file_renamed_into_another_place_in_the_same_pass(tmp_path: Path, root: Path) -> None:
    """Names that change places, in one directory or two, are right in the next snapshot."""
    (root / "d").mkdir()
    for number in range(6):
        (root / f"{number}").write_bytes(random.Random(number).randbytes(1_200_000 if number % 2 else 9_000))
    async with rig(tmp_path, root) as primary, replica(tmp_path / "store") as fra1:
        await primary.sync(fra1)
        (root / "new" / "deep").mkdir(parents=True)
        (root / "0").rename(root / "new" / "deep" / "0")
        (root / "1").rename(root / "swap")
        (root / "3").rename(root / "1")
        (root / "swap").rename(root / "3")
        (root / "5").rename(root / "a-first")
        os.link(root / "a-first", root / "d" / "link")
        (root / "4").rename(root / "2")
        assert (await primary.sync(fra1)).pass_ok
        assert differences(describe_snapshot(fra1.archive), copied(root)) == []


@pytest.mark.parametrize("field", Stamp._fields)
def test_an_inode_is_the_renamed_file_only_with_its_size_and_time(field: str) -> None:
    """A number that was given to another file meanwhile differs in one of them; what else differs does not matter."""
    known = Known(*FILE, 5, 65536, 0, None, 1)
    other = FILE._replace(**{field: getattr(FILE, field) + 1})
    assert was_renamed(known, other) is (field not in ("size", "mtime_ns"))


def _rotten(path: Path, expected: bytes, seen: bytes, name: bytes = b"") -> Rotten:
    with Root(os.fsencode(path.parent)) as opened:
        stamp = opened.look(path.name.encode())
    assert stamp
    return Rotten(path.name.encode(), stamp.identity, 5, 0, 65536, stamp.size, name, expected, seen)


@pytest.mark.parametrize(
    ("case", "sight", "looks"),
    [
        ("the same again", Sight.DIFFERS, [Sight.DIFFERS, Sight.DIFFERS]),
        ("well now", Sight.UNKNOWN, [Sight.DIFFERS, Sight.MATCHES]),
        ("something else again", Sight.UNKNOWN, [Sight.DIFFERS, Sight.DIFFERS]),
        ("judged by its id", Sight.UNKNOWN, [Sight.DIFFERS, Sight.MATCHES]),
    ],
)
def test_rot_is_looked_at_twice(root: Path, case: str, sight: Sight, looks: list[Sight]) -> None:
    """Only the same bytes from the medium confirm what was seen; looks that contradict each other decide nothing."""
    path = root / "a"
    path.write_bytes(b"bytes on the disk")
    here, name = met.checksum(path.read_bytes()), met.block_id(path.read_bytes())
    block = {
        "the same again": _rotten(path, b"e" * 16, here),
        "well now": _rotten(path, here, b"s" * 16),
        "something else again": _rotten(path, b"e" * 16, b"s" * 16),
        "judged by its id": _rotten(path, b"", b"s" * 16, name),
    }[case]
    with Root(os.fsencode(root)) as opened:
        found = look_again(opened, block, "www", 7)
    assert found
    assert (found.evidence.primary, found.evidence.writing) == (sight, Writing.UNWRITTEN)
    assert [look.sight for look in found.looks] == looks
    assert found.verdict is Verdict.INCONCLUSIVE, "the other side was not asked"


def test_rot_of_a_file_that_was_written_meanwhile_is_none(root: Path) -> None:
    """Another identity at the second look: the next pass reads it whole."""
    (root / "a").write_bytes(b"a")
    gone = Rotten(b"gone", Identity(0, 1, 1, 1, 1), 5, 0, 65536, 1, b"", b"", b"")
    moved = gone._replace(path=b"a")
    with Root(os.fsencode(root)) as opened:
        assert look_again(opened, gone, "www", 7) is None
        assert look_again(opened, moved, "www", 7) is None


async def test_a_finding_that_the_other_side_confirmed_is_not_wiped_out(tmp_path: Path, root: Path) -> None:
    """A pass that meets the same drift again leaves evidence and verdict as they have become."""
    (root / "a").write_text("a")
    async with rig(tmp_path, root) as primary, replica(tmp_path / "store") as fra1:
        await primary.sync(fra1)
        await tamper(primary, b"a", mode=0o611)
        await primary.sync(fra1)
        (found,) = findings(primary)
        settled = found.with_event(9, "the replica has the record", verdict=Verdict.METADATA_DRIFT)
        await primary.dataset.in_findings(primary.dataset.findings.update, settled)
        await primary.sync(fra1)
        assert findings(primary) == [settled]


def test_only_other_bytes_are_news(tmp_path: Path, root: Path) -> None:
    """The same bytes add nothing to an open finding of a block, other bytes a line of history."""
    (root / "a").write_bytes(b"a")
    with Root(os.fsencode(root)) as opened, closing(Findings(tmp_path / "findings.db")) as book:
        for moment, content in enumerate((b"b", b"b", b"c")):
            rotten = _rotten(root / "a", b"e" * 16, met.checksum(b"a"))
            found = look_again(opened, rotten, "www", moment)
            assert found
            met.report(book, [msgspec.structs.replace(found, seen=content)])
        (found,) = book.listed()
        assert (found.found_ns, found.seen, len(found.events)) == (0, b"c", 2)


needs_ext4 = pytest.mark.skipif(
    not (is_root() and shutil.which("debugfs") and shutil.which("mkfs.ext4")), reason="needs root and e2fsprogs"
)


@needs_ext4
async def test_a_flipped_mode_in_a_real_inode(tmp_path: Path, root: Path) -> None:
    """On ext4 a mode that is changed below the file system leaves all times as they were: found, and not replicated."""
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(24 * 1024 * 1024)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    mount = ["mount", "-o", "loop", str(image), str(root)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no loop device here")
    try:
        (root / "secret").write_text("for root only")
        (root / "secret").chmod(0o600)
        async with rig(tmp_path, root) as primary, replica(tmp_path / "store") as fra1:
            await primary.sync(fra1)
            subprocess.run(["umount", str(root)], check=True)
            deed = ["debugfs", "-w", "-R", "set_inode_field secret mode 0100666", str(image)]
            subprocess.run(deed, capture_output=True, check=True)
            subprocess.run(mount, check=True)
            assert (root / "secret").stat().st_mode & 0o777 == 0o666
            status = await primary.sync(fra1)
            assert not status.held
            (found,) = findings(primary)
            assert "mode is 0666 where 0600 is recorded" in found.what
            assert describe_snapshot(fra1.archive)[b"secret"]["mode"] == 0o600
    finally:
        subprocess.run(["umount", str(root)], check=False)


@pytest.mark.parametrize("size", [3000, 3 * 65536])
async def test_rot_does_not_travel_with_a_directory_that_slips_past_a_walk(
    tmp_path: Path, root: Path, size: int
) -> None:
    """A directory that moves while a walk goes on may look dropped, and new in the next: what is in it is held against
    its record all the same, and the replica keeps the good bytes under the new name."""
    data = random.Random(9).randbytes(size)
    (root / "d").mkdir()
    (root / "d" / "f").write_bytes(data)
    async with rig(tmp_path, root) as primary, replica(tmp_path / "store") as fra1:
        await primary.sync(fra1)
        await rot(primary, b"d/f", 100)
        (root / "d").rename(tmp_path / "away")
        await primary.sync(fra1)
        (tmp_path / "away").rename(root / "e")
        status = await primary.sync(fra1)
        assert status.pass_ok
        assert describe_snapshot(fra1.archive)[b"e/f"]["content"] == data
        (root / "new").write_bytes(b"new")
        for _ in range(KEPT_WALKS + 2):
            await primary.sync(fra1)
        assert describe_snapshot(fra1.archive)[b"e/f"]["content"] == data
