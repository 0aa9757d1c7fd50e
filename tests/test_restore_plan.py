"""Plans: what a restore would do is what it then does, what it would cost is said, and nothing at all is changed."""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from kit_findings import replica_rot
from kit_pair import COMMAND, replicad
from kit_restore import Writer, archive_tree, damage_block, restore
from kit_tree import build_tree, describe_tree, is_root
from replicad.db.drills import Drills
from replicad.db.findings import Findings
from replicad.model.block import block_id
from replicad.model.divergence import Affected, State
from replicad.model.drill import DrillRecord, Outcome
from replicad.model.entry import Kind, Put
from replicad.model.order import Order, first_of
from replicad.model.when import choose_snapshot
from replicad.system.disk import Disk
from replicad.work import planner
from replicad.work.account import Account, ClassDone
from replicad.work.conflicts import files_below
from replicad.work.planner import Rules
from replicad.work.read_local import LocalReader
from replicad.work.restore_plan import Planning, Rate, RestorePlan, Room, estimate_s, measured
from replicad.work.target import MAX_OPEN_DIRECTORIES, Target

needs_root = pytest.mark.skipif(not is_root(), reason="needs root")


async def plan_of(
    store: Path, target: Path, *, when: str = "latest", book: Path | None = None, **options: object
) -> RestorePlan:
    """The plan of restoring from the archive at `store`."""
    reader = await LocalReader.open(store)
    try:
        lines = await reader.snapshots()
        line, _ = choose_snapshot(lines, when)
        planning = Planning(reader, line, lines[-1], target, dataset="www", **options)  # type: ignore[arg-type]
        await planning.run()
        return planning.plan(book)
    finally:
        await reader.close()


def named(plan: RestorePlan, sort: str) -> set[str]:
    """Paths of the findings of one sort."""
    return {one.path for one in plan.findings if one.sort == sort}


async def test_a_restore_does_what_its_plan_said(tmp_path: Path) -> None:
    """Into nothing, and into a tree that differs in every way; the plan itself changes neither target nor store."""
    build_tree(tmp_path / "tree")
    os.unlink(tmp_path / "tree" / "links" / "hard-symlink")  # records know hard links of files only
    archive_tree(tmp_path / "store", tmp_path / "tree")
    store = {path: path.read_bytes() for path in (tmp_path / "store" / "segments").iterdir()}
    rules = Rules(order=Order(first_of(["docs"])), delete_extra=True)
    for back in (tmp_path / "new", tmp_path / "other"):
        if back.name == "other":
            (back / "docs" / "extra").mkdir(parents=True)
            (back / "docs" / "short.txt").write_bytes(b"another")
        before = describe_tree(back) if back.exists() else None
        plan = await plan_of(tmp_path / "store", back, rules=rules)
        assert (describe_tree(back) if back.exists() else None) == before
        account = await restore(tmp_path / "store", back, rules=rules)
        assert plan.to_restore == account.restored and plan.to_restore_bytes == account.restored_bytes
        assert (plan.extra_removed, plan.would_fail) == (account.extra_removed, account.failed)
        assert plan.files == account.right_files and list(plan.classes) == ["first-1", "rest"]
        done = await plan_of(tmp_path / "store", back, rules=rules)
        assert not done.to_restore and done.right_files == done.files and done.exit_code == 0
    assert {path: path.read_bytes() for path in (tmp_path / "store" / "segments").iterdir()} == store


def make_history(store: Path) -> None:
    """Two snapshots, in which a file changes, one goes and one comes."""
    with Writer(store) as writer:
        writer.put(b"")
        for name in (b"changed", b"same", b"edited", b"both"):
            writer.put(name, name * 20_000)
        writer.seal(1, 10**18)
    with Writer(store) as writer:
        writer._file = 2_000_000
        writer.put(b"changed", b"second" * 20_000)
        writer.put(b"came", b"came" * 100)
        writer.seal(2, 2 * 10**18)


async def test_what_no_snapshot_has_is_named_and_what_the_newest_has_is_not(tmp_path: Path) -> None:
    """That is what somebody fears who restores over live data: a file written since the last snapshot, an extra one
    that would go, a file where the snapshot has something else."""
    make_history(tmp_path / "store")
    back = tmp_path / "live"
    await restore(tmp_path / "store", back)
    assert (await plan_of(tmp_path / "store", back)).unsaved == 0
    plan = await plan_of(tmp_path / "store", back, when="1", rules=Rules(delete_extra=True))
    assert named(plan, "conflict") == {"changed"} and plan.extra_removed == 1 and plan.unsaved == 0
    assert plan.newest_snapshot == 2 and plan.exit_code == 0
    (back / "edited").write_bytes(b"edited" * 20_001)
    (back / "both").write_bytes(b"other" + b"both" * 19_999)
    (back / "heap").mkdir()
    (back / "heap" / "notes").write_bytes(b"notes")
    os.utime(back / "both", ns=(0, 2**62))
    (back / "same").unlink()
    os.symlink("elsewhere", back / "same")
    kept = await plan_of(tmp_path / "store", back, when="1")
    assert named(kept, "unsaved") == {"edited", "both"} and kept.extra == 2 and kept.exit_code == 1
    assert named(kept, "conflict") == {"edited", "both", "same", "changed"}
    plan = await plan_of(tmp_path / "store", back, when="1", rules=Rules(delete_extra=True))
    assert named(plan, "unsaved") == {"edited", "both", "heap/notes"}
    words = {one.path: one.reason for one in plan.findings if one.sort == "conflict"}
    assert "after the snapshot" in words["edited"] and "symlink, where the snapshot has a file" in words["same"]


async def test_a_plan_from_a_snapshot_that_is_not_complete_removes_nothing_either(tmp_path: Path) -> None:
    """What it does not have may have come in the part of the pass that it lacks, so nothing would be lost."""
    with Writer(tmp_path / "store") as writer:
        writer.put(b"")
        writer.seal(complete=False)
    back = tmp_path / "live"
    back.mkdir()
    (back / "since").write_bytes(b"since")
    plan = await plan_of(tmp_path / "store", back, rules=Rules(delete_extra=True))
    assert (plan.extra, plan.extra_removed, plan.unsaved, plan.exit_code) == (1, 0, 0, 0)
    assert "partial" in plan.findings[0].reason
    account = await restore(tmp_path / "store", back, rules=Rules(delete_extra=True))
    assert (account.extra, account.extra_removed) == (1, 0) and (back / "since").exists()


async def test_metadata_alone_is_no_conflict(tmp_path: Path) -> None:
    """Nothing of a file's content is lost when its mode is put right, or when it is parted from another name."""
    make_history(tmp_path / "store")
    back = tmp_path / "live"
    await restore(tmp_path / "store", back)
    (back / "same").chmod(0o600)
    os.link(back / "both", tmp_path / "elsewhere")
    (back / "both").chmod(0o600)
    plan = await plan_of(tmp_path / "store", back)
    assert plan.to_restore["files"] == 2 and plan.conflicts == plan.unsaved == 0 and plan.exit_code == 0


def file_with_two_names(store: Path) -> None:
    """A snapshot of one file, a and b."""
    with Writer(store) as writer:
        writer.put(b"")
        first = writer.put(b"a", b"old" * 100)
        writer.add(Put(b"b", Kind.FILE, first.meta, first.size, first.file, first.block_bytes))
        writer.seal()


async def test_a_further_name_of_a_file_that_was_written_since_is_named_as_lost(tmp_path: Path) -> None:
    """Editors put a new file into the place of the old name, which parts it from the other; a restore would join both
    again. A name that was parted alone is in the way, and loses nothing."""
    file_with_two_names(tmp_path / "store")
    back = tmp_path / "live"
    await restore(tmp_path / "store", back)
    assert (back / "a").samefile(back / "b")
    plans = [await plan_of(tmp_path / "store", back)]
    for content in (b"old" * 100, b"new"):
        (back / "new").write_bytes(content)
        os.rename(back / "new", back / "b")
        plans.append(await plan_of(tmp_path / "store", back))
    assert [named(plan, "conflict") for plan in plans] == [set(), {"b"}, {"b"}]
    assert [named(plan, "unsaved") for plan in plans] == [set(), set(), {"b"}]
    assert [plan.exit_code for plan in plans] == [0, 0, 1] and len({plan.confirm for plan in plans}) == 3
    assert "a file, where the snapshot has another name of a" in {one.reason for one in plans[2].findings}


async def test_what_lies_below_a_directory_in_the_place_of_a_further_name_is_named_as_lost(tmp_path: Path) -> None:
    """Where it would be removed; anything else that stands there is in the way, and a full directory fails."""
    file_with_two_names(tmp_path / "store")
    back = tmp_path / "live"
    (back / "b").mkdir(parents=True)
    (back / "b" / "notes").write_bytes(b"notes")
    kept = await plan_of(tmp_path / "store", back)
    assert kept.would_fail == {"hard_links": 1} and kept.unsaved == 0
    plan = await plan_of(tmp_path / "store", back, rules=Rules(delete_extra=True))
    assert named(plan, "unsaved") == {"b/notes"} and named(plan, "conflict") == {"b"} and plan.exit_code == 1
    (back / "b" / "notes").unlink()
    (back / "b").rmdir()
    os.symlink("elsewhere", back / "b")
    plan = await plan_of(tmp_path / "store", back)
    assert named(plan, "conflict") == {"b"} and plan.unsaved == 0 and plan.exit_code == 0


async def test_a_plan_is_confirmed_as_long_as_it_comes_out_the_same(tmp_path: Path) -> None:
    """Its token changes with what would be done, not with when it is made."""
    make_history(tmp_path / "store")
    back = tmp_path / "live"
    await restore(tmp_path / "store", back)
    tokens = [(await plan_of(tmp_path / "store", back, when="1")).confirm for _ in range(2)]
    (back / "edited").write_bytes(b"edited since")
    tokens.append((await plan_of(tmp_path / "store", back, when="1")).confirm)
    (back / "more").write_bytes(b"more")
    tokens.append((await plan_of(tmp_path / "store", back, when="1")).confirm)
    tokens.append((await plan_of(tmp_path / "store", back, when="2")).confirm)
    tokens.append((await plan_of(tmp_path / "store", back, when="2", globs=[b"s*"])).confirm)
    assert tokens[0] == tokens[1] and len(set(tokens)) == 5


# what cannot be had


def damaged_store(store: Path, content: bytes, state: State = State.OPEN) -> None:
    """A store with a damaged block that its scrub has found."""
    with Writer(store) as writer:
        writer.put(b"")
        writer.put(b"broken", content)
        writer.put(b"whole", b"whole" * 50_000)
        writer.seal()
    name = block_id(content[65536:131072])
    damage_block(store, name)
    with closing(Findings(store / "findings.db")) as findings:
        found = replica_rot(blocks=(name,), affected=(Affected(b"broken", 65536, 65536, 1, 0),), state=state)
        findings.report(found)


@pytest.mark.parametrize("state", [State.OPEN, State.ACKNOWLEDGED])
async def test_known_damage_is_named_with_its_ranges_before_anything_is_restored(tmp_path: Path, state: State) -> None:
    """The very ranges that the restore then names; what the target has already is not missed."""
    content = os.urandom(200_000)
    damaged_store(tmp_path / "store", content, state)
    plan = await plan_of(tmp_path / "store", tmp_path / "back")
    account = await restore(tmp_path / "store", tmp_path / "back")
    found = [[one for one in said.findings if one.sort == "damaged"] for said in (plan, account)]
    assert found[0] == found[1] and (found[0][0].path, found[0][0].first, found[0][0].size) == ("broken", 65536, 65536)
    assert (plan.damaged_files, plan.damaged_ranges, plan.damaged_bytes) == (1, 1, 65536) and plan.exit_code == 1
    assert plan.to_restore == account.restored and plan.to_fetch_blocks == account.blocks_fetched
    for globs in ([b"broken"], [b"w*", b"b*n"], [b"/./broken", b"broken"]):
        assert (await plan_of(tmp_path / "store", tmp_path / "new", globs=globs)).damaged_ranges == 1
    assert (await plan_of(tmp_path / "store", tmp_path / "new", globs=[b"whole"])).damaged_ranges == 0
    (tmp_path / "back" / "broken").write_bytes(content)
    assert (await plan_of(tmp_path / "store", tmp_path / "back")).damaged_files == 0


async def test_a_damaged_file_that_is_too_large_to_look_at_is_named_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its ranges, and once."""
    monkeypatch.setattr(planner, "PROOF_BYTES", 100_000)
    damaged_store(tmp_path / "store", os.urandom(5_000_000))
    plan = await plan_of(tmp_path / "store", tmp_path / "back")
    assert plan.damaged_files == 1 and named(plan, "damaged") == {"broken"} and plan.found["damaged"] == 1
    assert plan.exit_code == 1


# time


def a_drill(replica: str, *, seconds: float, size: int, files: int) -> DrillRecord:
    return DrillRecord(
        "www",
        replica,
        outcome=Outcome.PROVEN,
        files=files,
        bytes=size,
        restored_bytes=size,
        restore_s=seconds,
        ended_ns=1,
    )


def test_a_rate_is_what_drills_from_this_replica_measured(tmp_path: Path) -> None:
    """Their median; without any, what those from others did; without a book, nothing."""
    assert measured(tmp_path / "none.db", "fra1") is None
    with closing(Drills(tmp_path / "drills.db")) as drills:
        assert measured(tmp_path / "drills.db", "fra1") is None
        for seconds in (10.0, 1000.0, 20.0):
            drills.add(a_drill("fra1", seconds=seconds, size=1_000_000, files=100))
        drills.add(a_drill("fra2", seconds=1.0, size=1_000_000, files=100))
        drills.add(a_drill("fra1", seconds=0.0, size=0, files=0))
    assert measured(tmp_path / "drills.db", "fra1") == Rate(50_000, 5, 3, "fra1")
    assert measured(tmp_path / "drills.db", "fra3") == Rate(75_000, 7.5, 4, "fra1, fra2")


def test_files_and_bytes_both_take_time_and_so_does_a_limit() -> None:
    """The slowest of them decides; nothing measured, nothing said."""
    rate = Rate(1000.0, 10.0, 1, "fra1")

    def account(files: int, size: int) -> Account:
        return Account("www", "fra1", "/x", 1, "", True, restored={"files": files}, restored_bytes=size)

    assert estimate_s(rate, account(1, 50_000), 0) == 50.0
    assert estimate_s(rate, account(1000, 50_000), 0) == 100.0
    assert estimate_s(rate, account(1, 50_000), 100) == 500.0
    assert estimate_s(None, account(1, 50_000), 100) is None


# the target


def test_an_unprivileged_plan_says_what_it_could_not_set_and_the_restore_says_what_it_did_not(tmp_path: Path) -> None:
    """As an ordinary user in a real process of its own, who has no right to chown."""
    if not is_root():
        pytest.skip("needs root to become somebody else")
    with Writer(tmp_path / "store" / "ams1" / "www") as writer:
        writer.put(b"")
        writer.put(b"foreign", b"foreign")
        writer.seal()
    place = tmp_path / "nobody"
    place.mkdir()
    os.chown(place, 65534, 65534)
    subprocess.run(["chmod", "-R", "a+rX", str(tmp_path)], check=True)
    tmp_path.chmod(0o755)
    prefix = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    words = [*prefix, *COMMAND, "restore", "www", str(place / "back"), "--store", str(tmp_path / "store"), "--json"]
    environment = os.environ | {"HOME": str(place), "TMPDIR": str(place)}

    def typed(*more: str) -> dict[str, object]:
        done = subprocess.run([*words, *more], capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 1, done.stderr
        found: dict[str, object] = json.loads(done.stdout)
        return found

    plan = typed("--plan")
    assert plan["user"] == "nobody" and plan["not_settable"] == {"owners": 2} and not (place / "back").exists()
    account = typed()
    assert account["metadata_not_set"] == 2 and (place / "back" / "foreign").read_bytes() == b"foreign"


@needs_root
async def test_a_target_that_is_too_small_or_read_only_is_seen_before(tmp_path: Path) -> None:
    """Too few bytes, too few inodes, and no right to write at all."""
    with Writer(tmp_path / "store") as writer:
        writer.put(b"")
        writer.put(b"large", os.urandom(3_000_000))
        for number in range(60):
            writer.put(b"small%d" % number, b"small")
        writer.seal()
    for options, room in (("size=1m", False), ("size=10m,nr_inodes=40", False), ("size=10m", True), ("ro", True)):
        back = tmp_path / "back"
        back.mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(back)], check=True)
        try:
            plan = await plan_of(tmp_path / "store", back)
            assert plan.is_room_enough is room and plan.room.is_writable is (options != "ro"), options
            assert plan.exit_code == int(not room or options == "ro")
            assert "read-only" in plan.room.problem or options != "ro"
        finally:
            subprocess.run(["umount", str(back)], check=True)


# typed


def test_the_operators_guide_names_every_key_of_a_plan() -> None:
    """What is API is written down."""
    guide = (Path(__file__).parent.parent / "docs" / "RESTORE.md").read_text()
    keys = {name for kind in (RestorePlan, Rate, Room, ClassDone) for name in kind.__struct_fields__}
    assert not {name for name in keys if f"`{name}`" not in guide}


def test_a_plan_is_typed_and_reads_well(tmp_path: Path) -> None:
    """Without drills it says that nothing was measured; everything that JSON has is in words too."""
    make_history(tmp_path / "store" / "ams1" / "www")
    words = ("restore", "www", tmp_path / "back", "--store", tmp_path / "store", "--plan")
    said = replicad(*words, "--first", "s*").stdout
    assert "unknown: nothing was measured" in said and "first-1: 1 file," in said and said.rstrip().endswith("possible")
    plan = json.loads(replicad(*words, "--json").stdout)
    assert plan["estimate_s"] is None and plan["rate"] is None and plan["files"] == 5
    assert not (tmp_path / "back").exists()
    assert "exclude" in replicad(*words, "--dry-run", code=2).stderr


@pytest.mark.parametrize(
    ("when", "reason"),
    [("9", "no snapshot 9"), ("1999-01-01T00:00:00Z", "as old as"), ("soon", "2026-01-31T18:00:00Z")],
)
def test_a_snapshot_that_there_is_not_has_no_plan(tmp_path: Path, when: str, reason: str) -> None:
    """Exit code 2, and what there is."""
    make_history(tmp_path / "store" / "ams1" / "www")
    for more in (("--plan",), ()):
        words = ("restore", "www", tmp_path / "back", "--store", tmp_path / "store", "--at", when, *more)
        assert reason in replicad(*words, code=2).stderr and not (tmp_path / "back").exists()


@needs_root
def test_a_target_that_fills_up_ends_in_exit_code_3_and_goes_on_with_more_room(tmp_path: Path) -> None:
    """The plan had said so; what was restored stays, and the account says that it was cut off."""
    with Writer(tmp_path / "store" / "ams1" / "www") as writer:
        writer.put(b"")
        writer.put(b"first", os.urandom(300_000))
        writer.put(b"large", os.urandom(3_000_000))
        writer.seal()
    back = tmp_path / "back"
    back.mkdir()
    words = ("restore", "www", back, "--store", tmp_path / "store", "--json")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(back)], check=True)
    try:
        assert not json.loads(replicad(*words, "--plan", code=1).stdout)["is_room_enough"]
        done = replicad(*words, "--first", "first", code=3)
        account = json.loads(done.stdout)
        assert not account["finished"] and account["classes"][0]["name"] == "first-1" and "No space" in done.stderr
        subprocess.run(["mount", "-o", "remount,size=8m", str(back)], check=True)
        again = json.loads(replicad(*words, "--first", "first").stdout)
        assert again["finished"] and again["unchanged"]["files"] == 1 and again["restored"]["files"] == 1
    finally:
        subprocess.run(["umount", str(back)], check=True)


def test_files_are_found_however_deep_they_lie(tmp_path: Path) -> None:
    """Deeper than a program may call itself, or has descriptors for: each once, links and pipes left out."""
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("deep", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)
    (tmp_path / "d" / "file").touch()
    os.mkfifo(tmp_path / "d" / "pipe")
    (tmp_path / "d" / "link").symlink_to("file")
    try:
        target = Target(tmp_path, Disk())
        before = len(os.listdir("/proc/self/fd"))
        found = sorted(files_below(target, b"d"))
        assert found == sorted([b"d/file", b"/".join([b"d"] * 1500) + b"/deep"])
        assert len(os.listdir("/proc/self/fd")) <= before + MAX_OPEN_DIRECTORIES + 2
        assert list(files_below(target, b"d/file")) == [b"d/file"]
        assert list(files_below(target, b"d/pipe")) == list(files_below(target, b"none")) == []
        target.close()
    finally:  # which pytest cannot
        subprocess.run(["rm", "-r", tmp_path / "d"], check=True)
