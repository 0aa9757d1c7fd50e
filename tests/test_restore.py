"""Restores: everything comes back, nothing else is touched, damage is named, and whatever is cut off goes on."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import stat
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kit_faults import small_disk
from kit_restore import (
    ScriptedReader,
    Writer,
    archive_tree,
    damage_block,
    differences,
    meta,
    reading_pair,
    restore,
    restore_script,
)
from kit_tree import build_tree, describe_tree, is_root, make_deep, set_acl, unprivileged
from replicad.model.block import Buffer, block_id
from replicad.model.entry import DAMAGED, FUZZY, SPARSE, Drop, Kind, Map, Put
from replicad.model.errors import DiskFullError, LinkError, LockedError, PeerError, UsageError
from replicad.store.format import FrameType, split_frames
from replicad.system.disk import AlignedBuffer, Disk
from replicad.work import comparing, filling, origin, planner
from replicad.work import target as target_module
from replicad.work.account import Account, Finding
from replicad.work.planner import Rules
from replicad.work.reader import Answer
from replicad.work.rebuild import rebuild_catalog
from replicad.work.restore import IN_FLIGHT_BYTES, Restore
from replicad.work.target import TEMPORARY, Target, temporary_name

needs_root = pytest.mark.skipif(not is_root(), reason="needs root")


def said(account: Account, sort: str) -> list[str]:
    """Findings of one sort as a person reads them."""
    return [str(finding) for finding in account.findings if finding.sort == sort]


def is_open(path: Path) -> bool:
    """Whether this process has a file open now; its threads may close others meanwhile."""
    for fd in os.listdir("/proc/self/fd"):
        try:
            if os.path.samestat(os.stat(int(fd)), path.stat()):
                return True
        except OSError as error:
            assert error.errno == errno.EBADF, error
    return False


def clean(account: Account) -> Account:
    """The account of a restore at which nothing was wrong."""
    assert account.finished and account.exit_code == 0 and not account.failed, account
    return account


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tree with every kind of entry, and a store that holds it."""
    base = tmp_path_factory.mktemp("rich")
    build_tree(base / "tree")
    os.unlink(base / "tree" / "links" / "hard-symlink")  # records know hard links of files only
    archive_tree(base / "store", base / "tree")
    return base / "tree", base / "store"


# everything comes back


async def test_a_rich_tree_comes_back_exactly(rich: tuple[Path, Path], tmp_path: Path) -> None:
    """rsync, comparing everything by checksum, finds nothing to do, and neither does our own description."""
    tree, store = rich
    account = clean(await restore(store, tmp_path / "back"))
    assert differences(tree, tmp_path / "back") == ""
    assert describe_tree(tree) == describe_tree(tmp_path / "back")
    assert account.restored["files"] > 20 and account.restored["hard_links"] == 2 and account.rate_bytes_s > 0


async def test_a_rich_tree_comes_back_over_a_link(rich: tuple[Path, Path], tmp_path: Path) -> None:
    """The remote reader gives the same tree."""
    async with reading_pair(rich[1]) as (reader, _, _):
        [line] = await reader.snapshots()
        clean(await Restore(reader, line, tmp_path / "back").run())
    assert describe_tree(rich[0]) == describe_tree(tmp_path / "back")


async def test_a_second_restore_changes_nothing_at_all(rich: tuple[Path, Path], tmp_path: Path) -> None:
    """No byte is fetched and no inode is touched: not even its change time moves."""

    def touched() -> dict[bytes, tuple[int, int]]:
        found = {}
        for _, _, files, here in os.fwalk(os.fsencode(tmp_path / "back")):
            for name in files:
                status = os.stat(name, dir_fd=here, follow_symlinks=False)
                found[b"%d/%s" % (status.st_ino, name)] = status.st_ino, status.st_ctime_ns
        return found

    first = clean(await restore(rich[1], tmp_path / "back"))
    before = touched()
    second = clean(await restore(rich[1], tmp_path / "back"))
    assert second.blocks_fetched == second.restored_bytes == 0 and not second.restored
    assert second.unchanged == first.restored and second.right_bytes == first.restored_bytes
    assert touched() == before


async def test_holes_stay_holes_and_zeros_stay_allocated(tmp_path: Path) -> None:
    """What is sparse takes no room, what was allocated zeros is allocated."""
    reader = ScriptedReader()
    reader.directory(b"")
    content = b"x" * 4096 + bytes(4_000_000) + b"y"
    reader.file(b"sparse", content, flags=SPARSE)
    reader.file(b"solid", content)
    clean(await restore_script(reader, tmp_path / "back"))
    sizes = {}
    for name in ("sparse", "solid"):
        assert (tmp_path / "back" / name).read_bytes() == content
        sizes[name] = (tmp_path / "back" / name).stat().st_blocks * 512
    assert sizes["sparse"] < 100_000 and sizes["solid"] >= 4_000_000


async def test_only_what_matches_a_pattern_comes_back_with_its_parents(rich: tuple[Path, Path], tmp_path: Path) -> None:
    """And what else is in the target is no business of a partial restore."""
    (tmp_path / "back").mkdir()
    (tmp_path / "back" / "mine").write_bytes(b"mine")
    account = clean(await restore(rich[1], tmp_path / "back", globs=[b"docs/short*", b"**/fifo"]))
    found = sorted(os.path.relpath(path, tmp_path / "back") for path in (tmp_path / "back").rglob("*"))
    assert found == ["docs", "docs/short.txt", "mine", "special", "special/fifo"]
    assert account.extra == 0


async def test_directories_on_the_way_to_what_is_wanted_stay_as_they_are(
    rich: tuple[Path, Path], tmp_path: Path
) -> None:
    """Where they exist: one file brought back into a live tree changes nothing but that file."""
    back = tmp_path / "back"
    clean(await restore(rich[1], back))
    (back / "docs" / "short.txt").unlink()
    for path in (back / "docs", back):
        path.chmod(0o711)
    before = describe_tree(back)
    account = clean(await restore(rich[1], back, globs=[b"docs/short.txt"]))
    assert account.restored == {"files": 1} and (back / "docs" / "short.txt").read_bytes() == b"one line\n"
    after = describe_tree(back)
    for path in (b"", b"docs"):
        assert after[path]["mode"] == 0o711
    del after[b"docs/short.txt"], after[b"docs"], before[b"docs"]
    assert {path: found for path, found in after.items() if b"hard" not in path} == {
        path: found for path, found in before.items() if b"hard" not in path
    }


async def test_a_file_that_kept_changing_while_it_was_copied_is_pointed_out(tmp_path: Path) -> None:
    """Whoever restores has to know that its parts may not fit together."""
    reader = ScriptedReader()
    reader.directory(b"")
    reader.file(b"database", b"content", flags=FUZZY)
    account = clean(await restore_script(reader, tmp_path / "back"))
    assert "database: kept changing while it was copied" in said(account, "notice")[0]


async def test_directories_that_the_record_does_not_tell_of_are_made_for_their_entries(tmp_path: Path) -> None:
    """A directory whose own entry could not be copied must not cost what is in it."""
    reader = ScriptedReader()
    reader.directory(b"")
    reader.file(b"lost/deeper/file", b"content")
    account = clean(await restore_script(reader, tmp_path / "back"))
    assert (tmp_path / "back/lost/deeper/file").read_bytes() == b"content"
    assert len(said(account, "notice")) == 2


async def test_the_record_ends_with_a_file_of_many_blocks(tmp_path: Path) -> None:
    """The blocks come in several operations and the last file is finished like all others."""
    reader = ScriptedReader()
    reader.directory(b"")
    content = os.urandom(4096 * 5000 + 17)
    reader.file(b"large", content)
    clean(await restore_script(reader, tmp_path / "back"))
    assert (tmp_path / "back" / "large").read_bytes() == content


# into an existing directory


async def test_an_existing_tree_is_brought_to_what_the_snapshot_says(
    rich: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was done to it: content, length, kind, links, mode, owner, times, attributes, extra entries."""
    monkeypatch.setattr(filling, "IN_PLACE_FROM_BYTES", 1_000_000)
    back = tmp_path / "back"
    clean(await restore(rich[1], back))
    vandalise(back)
    account = clean(await restore(rich[1], back, rules=Rules(delete_extra=True)))
    assert differences(rich[0], back) == ""
    assert describe_tree(rich[0]) == describe_tree(back)
    assert account.extra_removed == 3 and account.unchanged["files"] > 5


def vandalise(back: Path) -> None:
    """Change something of everything in a restored rich tree."""
    docs = back / "docs"
    with open(docs / "large.bin", "r+b") as file:  # one byte, and its time as before
        kept = os.fstat(file.fileno())
        file.seek(1_500_000)
        file.write(b"!")
    os.utime(docs / "large.bin", ns=(kept.st_atime_ns, kept.st_mtime_ns))
    with open(docs / "blocks.bin", "ab") as file:
        file.write(b"longer")
    with open(back / "sparse" / "islands", "r+b") as file:
        file.seek(3_000_000)
        file.write(b"data in a hole")
    os.truncate(docs / "one block", 100)
    (docs / "read-only").chmod(0o600)
    os.utime(docs / "empty", (1, 1))
    os.unlink(docs / "zeros")
    (docs / "zeros").mkdir()
    shutil.rmtree(docs / "empty directory")
    (docs / "empty directory").write_bytes(b"a file")
    os.unlink(back / "links" / "relative")
    os.symlink("elsewhere", back / "links" / "relative")
    os.unlink(back / "links" / "hard-1")
    (back / "links" / "hard-1").write_bytes(b"one line\n")
    os.unlink(back / "special" / "fifo")
    os.symlink("/etc/passwd", back / "special" / "fifo")
    set_acl(docs / "short.txt", "u:1234:rwx")
    set_acl(docs, "d:u:1234:rwx")
    os.setxattr(back / "attributes" / "file", "user.stray", b"stray")
    os.removexattr(back / "attributes" / "file", "user.plain")
    (back / "extra").write_bytes(b"extra")
    (back / "extra directory" / "below").mkdir(parents=True)
    (back / "extra directory" / "below" / "file").write_bytes(b"extra")
    os.symlink("/etc", back / "odd" / "extra link")
    if is_root():
        os.chown(docs / "setuid", 77, 77)
        os.unlink(back / "special" / "null")
        os.mknod(back / "special" / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 5))


async def test_extra_entries_are_counted_and_left_alone(tmp_path: Path) -> None:
    """Unless --delete-extra is given; then they go, whole trees of them, and links in them are not followed."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_bytes(b"precious")
    reader = ScriptedReader()
    reader.directory(b"")
    reader.file(b"file", b"content")
    back = tmp_path / "back"
    (back / "old" / "below").mkdir(parents=True)
    (back / "old" / "below" / "file").write_bytes(b"old")
    os.symlink(outside, back / "old" / "link")
    account = clean(await restore_script(reader, back))
    assert (account.extra, account.extra_removed) == (1, 0) and (back / "old" / "below" / "file").exists()
    assert said(account, "extra") == ["old: not in the snapshot, left alone"]
    account = clean(await restore_script(reader, back, rules=Rules(delete_extra=True)))
    assert (account.extra, account.extra_removed) == (0, 1)
    assert os.listdir(back) == ["file"] and (outside / "precious").exists()


async def test_only_differing_blocks_are_fetched_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large file keeps its inode; a smaller one is replaced by a corrected copy, at one moment."""
    for limit, same_inode in ((1, True), (1 << 30, False)):
        monkeypatch.setattr(filling, "IN_PLACE_FROM_BYTES", limit)
        back = tmp_path / f"back {limit}"
        reader = ScriptedReader()
        reader.directory(b"")
        content = os.urandom(3_000_000)
        reader.file(b"image", content)
        clean(await restore_script(reader, back))
        inode = (back / "image").stat().st_ino
        with open(back / "image", "r+b") as file:
            for position in (0, 1_000_000, 2_999_999):
                file.seek(position)
                file.write(b"!")
        account = clean(await restore_script(reader, back))
        assert account.blocks_fetched == 3 and account.restored_bytes < 3 * 4096 + 1
        assert (back / "image").read_bytes() == content
        assert ((back / "image").stat().st_ino == inode) is same_inode


@pytest.mark.parametrize(("block_bytes", "hole"), [(1000, 3), (4096, 1500)])
async def test_a_replaced_file_takes_over_the_blocks_that_are_right(
    tmp_path: Path, block_bytes: int, hole: int
) -> None:
    """However long they are, between others that differ, and with its large holes."""
    pieces = [os.urandom(block_bytes) for _ in range(200)]
    pieces[4:4] = [bytes(block_bytes)] * hole
    reader = ScriptedReader()
    reader.directory(b"")
    reader.file(b"file", b"".join(pieces), block_bytes=block_bytes, flags=SPARSE)
    back = tmp_path / "back"
    clean(await restore_script(reader, back))
    with open(back / "file", "r+b") as file:
        for index in (0, 2, hole + 5):
            file.seek(index * block_bytes)
            file.write(b"!")
    inode = (back / "file").stat().st_ino
    account = clean(await restore_script(reader, back))
    assert (back / "file").read_bytes() == b"".join(pieces) and account.blocks_fetched == 3
    status = (back / "file").stat()
    assert status.st_ino != inode and status.st_blocks * 512 < 4_000_000


async def test_a_file_with_other_names_is_replaced_never_changed(tmp_path: Path) -> None:
    """Whoever made a copy with hard links before restoring keeps it as it was."""
    reader = ScriptedReader()
    reader.directory(b"")
    reader.file(b"content", b"new" * 10_000)
    reader.file(b"metadata", b"same", meta=meta(0o600))
    back, kept = tmp_path / "back", tmp_path / "kept"
    back.mkdir()
    kept.mkdir()
    for name, content in ((b"content", b"old" * 10_000), (b"metadata", b"same")):
        (back / name.decode()).write_bytes(content)
        os.link(back / name.decode(), kept / name.decode())
    before = describe_tree(kept)
    clean(await restore_script(reader, back))
    for described in before.values():
        described.pop("same_as", None)
    assert describe_tree(kept) == before
    assert (back / "content").read_bytes() == b"new" * 10_000
    assert stat.S_IMODE((back / "metadata").stat().st_mode) == 0o600


async def test_files_that_share_an_inode_only_in_the_target_are_parted(tmp_path: Path) -> None:
    """Also when they have the same content; and names that belong together are joined."""
    reader = ScriptedReader()
    reader.directory(b"")
    for name, number in ((b"a", 1), (b"b", 2), (b"c", 3), (b"d", 3)):
        reader.file(name, b"same", file=number, meta=meta(0o644 if name != b"b" else 0o600))
    back = tmp_path / "back"
    back.mkdir()
    (back / "a").write_bytes(b"same")
    os.link(back / "a", back / "b")
    os.link(back / "a", back / "c")
    (back / "d").write_bytes(b"other")
    account = clean(await restore_script(reader, back))
    inodes = {name: (back / name).stat().st_ino for name in "abcd"}
    assert len(set(inodes.values())) == 3 and inodes["c"] == inodes["d"]
    assert account.restored["hard_links"] == 1
    account = clean(await restore_script(reader, back))
    assert not account.restored and account.unchanged["hard_links"] == 1


async def test_a_directory_in_the_way_goes_only_when_it_is_empty_or_extra_may_be_deleted(tmp_path: Path) -> None:
    """Otherwise the entry fails, and says what would help."""
    reader = ScriptedReader()
    reader.directory(b"")
    reader.file(b"file", b"content")
    reader.ops.append(Put(b"link", Kind.SYMLINK, meta(0o777), target=b"x"))
    back = tmp_path / "back"
    for name in ("file", "link"):
        (back / name).mkdir(parents=True)
        (back / name / "inside").write_bytes(b"inside")
    account = await restore_script(reader, back)
    assert account.failed == {"files": 1, "symlinks": 1} and account.exit_code == 1
    assert all("--delete-extra" in text for text in said(account, "failed"))
    assert (back / "file" / "inside").exists()
    clean(await restore_script(reader, back, rules=Rules(delete_extra=True)))
    assert (back / "file").read_bytes() == b"content" and os.readlink(back / "link") == "x"


async def test_a_dry_run_says_what_would_be_done_and_changes_nothing(rich: tuple[Path, Path], tmp_path: Path) -> None:
    """In a target that does not exist, and in one that differs."""
    back = tmp_path / "back"
    account = clean(await restore(rich[1], back, rules=Rules(dry_run=True)))
    assert not back.exists() and account.dry_run
    real = clean(await restore(rich[1], back))
    assert (account.restored, account.restored_bytes) == (real.restored, real.restored_bytes)
    vandalise(back)
    before = describe_tree(back)
    account = clean(await restore(rich[1], back, rules=Rules(dry_run=True, delete_extra=True)))
    assert describe_tree(back) == before
    real = clean(await restore(rich[1], back, rules=Rules(delete_extra=True)))
    assert (account.restored, account.unchanged, account.blocks_fetched, account.extra_removed) == (
        real.restored,
        real.unchanged,
        real.blocks_fetched,
        real.extra_removed,
    )


NAMES = st.sampled_from(["a", "b", "b.x", "c"])
CONTENTS = st.sampled_from([b"", b"x", b"y" * 5000, bytes(9000), b"z" * 4096 + bytes(4096) + b"z" * 10])
LEAVES = st.one_of(CONTENTS, st.sampled_from(["target", "other"]), st.sampled_from([0o600, 0o640]))
TREES = st.recursive(LEAVES, lambda below: st.dictionaries(NAMES, below, max_size=4), max_leaves=12).map(
    lambda tree: tree if isinstance(tree, dict) else {"a": tree}
)


def plant(where: Path, tree: object) -> None:
    """Make a tree of dictionaries (directories), bytes (files), texts (symlinks) and numbers (fifos)."""
    if isinstance(tree, dict):
        where.mkdir()
        for name, below in tree.items():
            plant(where / name, below)
    elif isinstance(tree, bytes):
        where.write_bytes(tree)
    elif isinstance(tree, str):
        os.symlink(tree, where)
    else:
        assert isinstance(tree, int)
        os.mkfifo(where, tree)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TREES, TREES)
def test_any_tree_becomes_any_other(tmp_path: Path, wanted: object, present: object) -> None:
    """With --delete-extra the target is what the snapshot says, whatever it was before."""
    base = tmp_path / "round"
    shutil.rmtree(base, ignore_errors=True)
    base.mkdir()
    plant(base / "wanted", wanted)
    plant(base / "target", present)
    archive_tree(base / "store", base / "wanted")
    account = asyncio.run(restore(base / "store", base / "target", rules=Rules(delete_extra=True)))
    clean(account)
    assert describe_tree(base / "wanted") == describe_tree(base / "target")


# damage


async def test_a_damaged_block_costs_its_bytes_and_no_others(tmp_path: Path) -> None:
    """The range is named and zero, the rest of the file and all other files are there, and the exit code is 1."""
    content = os.urandom(65536 * 5 + 100)
    with Writer(tmp_path / "store") as writer:
        writer.put(b"")
        writer.put(b"broken", content)
        writer.put(b"whole", b"whole")
        writer.seal()
    for index in (1, 2, 5):
        damage_block(tmp_path / "store", block_id(content[65536 * index : 65536 * (index + 1)]))
    heard: list[Finding] = []
    account = await restore(tmp_path / "store", tmp_path / "back", heard=heard.append)
    ranges = [(finding.path, finding.first, finding.size) for finding in heard if finding.sort == "damaged"]
    assert sorted(ranges) == [("broken", 65536, 65536), ("broken", 131072, 65536), ("broken", 65536 * 5, 100)]
    assert account.exit_code == 1 and account.finished
    assert (account.damaged_files, account.damaged_ranges, account.damaged_bytes) == (1, 3, 65536 * 2 + 100)
    assert account.restored["files"] == 1 and not account.failed
    expected = content[:65536] + bytes(65536 * 2) + content[65536 * 3 : 65536 * 5] + bytes(100)
    assert (tmp_path / "back" / "broken").read_bytes() == expected
    assert "bytes 65536 to 131071 are not restored" in str(account.findings[0])
    second = await restore(tmp_path / "store", tmp_path / "back")
    assert second.damaged_bytes == account.damaged_bytes and second.unchanged["files"] == 1


async def test_neighbouring_lost_blocks_are_one_range(tmp_path: Path) -> None:
    """When the reason is the same."""
    reader = ScriptedReader()
    reader.directory(b"")
    content = os.urandom(4096 * 6)
    reader.file(b"file", content)
    for index in (1, 2, 3):
        del reader.blocks[block_id(content[index * 4096 : (index + 1) * 4096])]
    account = await restore_script(reader, tmp_path / "back")
    assert said(account, "damaged") == ["file: bytes 4096 to 16383 are not restored: gone (left as zeros)"]


async def test_an_incomplete_file_does_not_look_finished(tmp_path: Path) -> None:
    """Its size is right but its time is not the recorded one, so nothing that trusts size and time passes it by."""
    reader = ScriptedReader()
    reader.directory(b"")
    reader.file(b"file", b"a" * 4096 + b"b" * 4096)
    del reader.blocks[block_id(b"b" * 4096)]
    await restore_script(reader, tmp_path / "back")
    status = (tmp_path / "back" / "file").stat()
    assert status.st_size == 8192 and status.st_mtime_ns != meta().mtime_ns


@pytest.mark.parametrize(("before", "after"), [(b"a" * 4096, b"c" * 4096), (b"", b"")], ids=["some", "all"])
@pytest.mark.parametrize("limit", [1, 1 << 30])
async def test_lost_bytes_of_an_existing_file_stay_what_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, before: bytes, after: bytes
) -> None:
    """What cannot be proven is not made worse either, not even when nothing of it is right; the account says so, and
    so did the plan."""
    monkeypatch.setattr(filling, "IN_PLACE_FROM_BYTES", limit)
    reader = ScriptedReader()
    reader.directory(b"")
    reader.file(b"file", before + b"b" * 4096 + after, flags=DAMAGED)
    del reader.blocks[block_id(b"b" * 4096)]
    back = tmp_path / "back"
    back.mkdir()
    (back / "file").write_bytes(before + b"?" * 4096 + b"!" * len(after))
    plan = await restore_script(reader, back, rules=Rules(dry_run=True, plan=True))
    account = await restore_script(reader, back)
    assert (back / "file").read_bytes() == before + b"?" * 4096 + after
    first, last = len(before), len(before) + 4095
    words = f"file: bytes {first} to {last} are not restored: gone (left as it was)"
    assert said(account, "damaged") == said(plan, "damaged") == [words]
    assert (back / "file").stat().st_mtime_ns != meta().mtime_ns


async def test_other_names_of_an_incomplete_file_are_named_too(tmp_path: Path) -> None:
    """Whoever looks for one of its names finds it in the account."""
    reader = ScriptedReader()
    reader.directory(b"")
    reader.file(b"first", b"a" * 4096, file=9)
    reader.file(b"second", b"a" * 4096, file=9)
    reader.blocks.clear()
    account = await restore_script(reader, tmp_path / "back")
    assert "second: incomplete: it is another name of first" in said(account, "damaged")


async def test_no_byte_is_written_that_is_not_what_the_record_names(tmp_path: Path) -> None:
    """A replica that sends other bytes under a valid checksum is caught by the id."""
    reader = ScriptedReader()
    reader.directory(b"")
    reader.file(b"file", b"right" * 100)
    [name] = reader.blocks
    reader.blocks[name] = b"wrong" * 100
    account = await restore_script(reader, tmp_path / "back")
    assert account.damaged_bytes == 500
    assert (tmp_path / "back" / "file").read_bytes() == bytes(500)


async def test_a_store_that_lost_a_piece_of_its_record_never_restores_cleanly(tmp_path: Path) -> None:
    """Blocks that a lost record named look like zeros, so the account says that, and the exit code is 1."""
    with Writer(tmp_path / "store") as writer:
        writer.put(b"")
        writer.put(b"large", os.urandom(1000 * 4096), block_bytes=4096)
        writer.seal(1)
        writer.put(b"more", b"more")
        writer.seal(2)
    segment = tmp_path / "store" / "segments" / "00000001.seg"
    frames = split_frames(segment.read_bytes())
    record = next(frame for frame in frames if frame.type == FrameType.RECORD)
    with open(segment, "r+b") as file:
        file.seek(record.offset + 100)
        file.write(b"!!!!")
    rebuild_catalog(tmp_path / "store")
    account = await restore(tmp_path / "store", tmp_path / "back", when="2")
    assert account.finished and account.exit_code == 1 and account.lost_records == 1
    assert "of the record" in said(account, "damaged")[0]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"complete": False, "lost": 1}, "the record is damaged and may have had it"),
        ({"complete": False, "unread": 1}, "the snapshot is partial and may lack it"),
        ({"complete": False}, "the snapshot is partial and may lack it"),
    ],
)
@pytest.mark.parametrize("dry_run", [True, False])
async def test_what_a_snapshot_that_is_not_whole_does_not_name_is_never_removed(
    tmp_path: Path, fields: dict[str, object], reason: str, dry_run: bool
) -> None:
    """Not even with --delete-extra, nor what is in a directory that stands where the snapshot has a file."""
    reader = ScriptedReader()
    reader.directory(b"")
    reader.file(b"file", b"content")
    reader.file(b"kept", b"content")
    back = tmp_path / "back"
    (back / "file").mkdir(parents=True)
    for path in ("file/inside", "extra", "kept"):
        (back / path).write_bytes(b"content")
    [line] = await reader.snapshots()
    rules = Rules(delete_extra=True, dry_run=dry_run)
    account = await Restore(reader, msgspec.structs.replace(line, **fields), back, rules=rules).run()
    assert said(account, "extra") == [f"extra: not in the snapshot, left alone: {reason}"]
    assert (account.extra, account.extra_removed, account.failed) == (1, 0, {"files": 1})
    assert sorted(os.listdir(back)) == ["extra", "file", "kept"] and os.listdir(back / "file") == ["inside"]


# cut off, and going on


async def test_an_interrupted_restore_goes_on_where_it_was(tmp_path: Path) -> None:
    """The second run fetches only what the first had not written, of large and of small files."""
    reader = ScriptedReader()
    reader.directory(b"")
    for number in range(300):
        reader.file(b"small-%03d" % number, os.urandom(5000))
    reader.file(b"z-large", os.urandom(40_000_000), block_bytes=65536)
    total = len(reader.blocks)
    reader.fail_after = total - 20
    with pytest.raises(LinkError):
        await restore_script(reader, tmp_path / "back")
    leftover = tmp_path / "back" / os.fsdecode(temporary_name(b"z-large"))
    assert leftover.exists() and not (tmp_path / "back" / "z-large").exists()
    reader.fail_after, reader.asked = -1, 0
    account = clean(await restore_script(reader, tmp_path / "back"))
    assert reader.asked < total // 2 and account.right_bytes > 15_000_000
    reader.asked = 0
    clean(await restore_script(reader, tmp_path / "back"))
    assert reader.asked == 0 and not leftover.exists()


async def test_leftovers_of_other_restores_are_cleared_away(tmp_path: Path) -> None:
    """They are ours to remove, and not extra."""
    reader = ScriptedReader()
    reader.directory(b"")
    back = tmp_path / "back"
    back.mkdir()
    (back / os.fsdecode(TEMPORARY + b"0123456789abcdef")).write_bytes(b"half a file")
    account = clean(await restore_script(reader, back))
    assert os.listdir(back) == [] and account.extra == account.extra_removed == 0


async def test_a_cancelled_restore_leaves_no_thread_and_no_descriptor(tmp_path: Path) -> None:
    """Everything is closed when the cancellation is through."""
    reader = ScriptedReader()
    reader.directory(b"")
    reader.file(b"file", os.urandom(30_000_000), block_bytes=65536)
    reader.wait_for_open = 1000
    before = set(os.listdir("/proc/self/fd"))
    running = asyncio.create_task(restore_script(reader, tmp_path / "back"))
    while reader.open < 5:
        await asyncio.sleep(0.001)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert set(os.listdir("/proc/self/fd")) <= before
    assert not [name for name in os.listdir("/proc/self/task") if _thread_name(name).startswith("restore")]


def _thread_name(task: str) -> str:
    return Path(f"/proc/self/task/{task}/comm").read_text().strip()


# many at once, within bounds


async def test_many_fetches_are_under_way_and_their_bytes_are_bounded(tmp_path: Path) -> None:
    """Nothing comes before eight parcels are asked for, and never more than the limit is in flight."""
    reader = ScriptedReader()
    reader.directory(b"")
    reader.file(b"file", os.urandom(80_000_000), block_bytes=1 << 20)
    reader.wait_for_open = 8
    clean(await restore_script(reader, tmp_path / "back"))
    assert 8 <= reader.most_open <= 32 and reader.most_bytes <= IN_FLIGHT_BYTES


async def test_thousands_of_small_files_share_few_fetches(tmp_path: Path) -> None:
    """A file costs no round trip of its own."""
    reader = ScriptedReader()
    reader.directory(b"")
    for number in range(3000):
        reader.file(b"%04d" % number, b"%d" % number)
    fetches = 0
    fetch = reader.fetch

    def counted(ids: bytes) -> object:
        nonlocal fetches
        fetches += 1
        return fetch(ids)

    reader.fetch = counted  # type: ignore[method-assign, assignment]
    clean(await restore_script(reader, tmp_path / "back"))
    assert fetches <= 3000 // planner.PARCEL_BLOCKS + 1
    assert (tmp_path / "back" / "2999").read_bytes() == b"2999"


async def test_a_block_that_many_files_have_is_fetched_once_a_parcel(tmp_path: Path) -> None:
    """And written to each of them."""
    reader = ScriptedReader()
    reader.directory(b"")
    for number in range(100):
        reader.file(b"%02d" % number, b"licence" * 500)
    account = clean(await restore_script(reader, tmp_path / "back"))
    assert account.blocks_fetched == 1 and account.restored_bytes == 350_000


# hostile records and targets


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """A directory beside the target that must stay as it is."""
    directory = tmp_path / "outside"
    directory.mkdir()
    (directory / "passwd").write_bytes(b"precious")
    before = describe_tree(directory)
    yield directory
    assert describe_tree(directory) == before


async def test_a_record_cannot_write_through_a_symlink_of_its_own(tmp_path: Path, outside: Path) -> None:
    """`a -> outside`, then `a/passwd`: the entry fails, nothing outside is touched."""
    reader = ScriptedReader()
    reader.directory(b"")
    reader.ops.append(Put(b"a", Kind.SYMLINK, meta(0o777), target=os.fsencode(outside)))
    reader.file(b"a/passwd", b"owned")
    reader.directory(b"a/new")
    reader.ops.append(Put(b"a/link", Kind.SYMLINK, meta(0o777), target=b"x"))
    reader.ops.append(Put(b"a/fifo", Kind.FIFO, meta(0o777)))
    account = await restore_script(reader, tmp_path / "back")
    assert sum(account.failed.values()) == 4 and account.restored["symlinks"] == 1


async def test_a_record_that_names_a_path_twice_stays_inside(tmp_path: Path, outside: Path) -> None:
    """First a directory, then a symlink in its place, then an entry below it."""
    reader = ScriptedReader()
    reader.directory(b"")
    reader.directory(b"a")
    reader.ops.append(Put(b"a", Kind.SYMLINK, meta(0o777), target=os.fsencode(outside)))
    reader.file(b"a/passwd", b"owned")
    reader.directory(b"a", meta=meta(0o777))
    await restore_script(reader, tmp_path / "back")


async def test_a_symlink_in_the_target_is_replaced_and_never_followed(tmp_path: Path, outside: Path) -> None:
    """Where the record has a directory, a file or the temporary name of one."""
    reader = ScriptedReader()
    reader.directory(b"")
    reader.directory(b"a")
    reader.file(b"a/passwd", b"restored")
    reader.file(b"b", b"x" * 10_000)
    reader.file(b"c", b"y" * 10_000)
    back = tmp_path / "back"
    back.mkdir()
    os.symlink(outside, back / "a")
    os.symlink(outside / "passwd", back / "b")
    os.symlink(outside / "passwd", back / os.fsdecode(temporary_name(b"c")))
    clean(await restore_script(reader, back))
    assert not (back / "a").is_symlink() and (back / "a" / "passwd").read_bytes() == b"restored"
    assert (back / "b").read_bytes() == b"x" * 10_000 and (back / "c").read_bytes() == b"y" * 10_000


async def test_a_temporary_name_with_other_names_is_not_written_to(tmp_path: Path, outside: Path) -> None:
    """Somebody may have made it a hard link to something precious."""
    reader = ScriptedReader()
    reader.directory(b"")
    reader.file(b"c", b"y" * 10_000)
    back = tmp_path / "back"
    back.mkdir()
    os.link(outside / "passwd", back / os.fsdecode(temporary_name(b"c")))
    clean(await restore_script(reader, back))
    assert (back / "c").read_bytes() == b"y" * 10_000


@needs_root
@pytest.mark.parametrize(
    ("owner", "mode", "is_ours"), [(0, 0o600, True), (0, 0o640, False), (0, 0o602, False), (65534, 0o600, False)]
)
async def test_an_unfinished_file_that_others_can_reach_is_replaced_not_gone_on_with(
    tmp_path: Path, owner: int, mode: int, is_ours: bool
) -> None:
    """Whoever planted it, and keeps it open, sees nothing of what is restored, and writes nothing into it."""
    reader = ScriptedReader()
    reader.directory(b"")
    reader.file(b"c", b"y" * 10_000, meta=meta(0o600))
    back = tmp_path / "back"
    back.mkdir()
    planted = back / os.fsdecode(temporary_name(b"c"))
    planted.write_bytes(b"mine")
    planted.chmod(mode)
    os.chown(planted, owner, owner)
    with planted.open("rb") as kept:
        clean(await restore_script(reader, back))
        assert (kept.read() != b"mine") is is_ours
        assert os.path.samestat(os.fstat(kept.fileno()), (back / "c").stat()) is is_ours
    assert (back / "c").read_bytes() == b"y" * 10_000 and (back / "c").stat().st_uid == 0


@needs_root
@pytest.mark.parametrize("is_begun", [True, False])
async def test_an_unfinished_file_that_becomes_another_s_is_not_written_to_any_more(
    tmp_path: Path, is_begun: bool
) -> None:
    """Between two looks an inode's number may come again, as that of a file which somebody else has made."""
    reader = ScriptedReader()
    reader.directory(b"")
    reader.file(b"c", os.urandom(40_000_000), block_bytes=65536)
    back, fetch = tmp_path / "back", reader.fetch
    back.mkdir()
    temporary = back / os.fsdecode(temporary_name(b"c"))
    firsts = iter([True])
    if is_begun:
        temporary.touch(0o600)

    async def meddle(ids: bytes) -> AsyncIterator[list[Answer]]:
        if not next(firsts, is_begun):  # the first part is to be written, and the file closed after it
            async with asyncio.timeout(60):
                while not temporary.exists() or not temporary.stat().st_size or is_open(temporary):
                    await asyncio.sleep(0.01)
        if temporary.exists():
            os.chown(temporary, 65534, 65534)
        async for run in fetch(ids):
            yield run

    reader.fetch = meddle  # type: ignore[method-assign]
    account = await restore_script(reader, back)
    assert account.failed == {"files": 1} and "another process" in said(account, "failed")[0]
    assert not (back / "c").exists()


@pytest.mark.parametrize("other", ["file", "fifo"])
@pytest.mark.parametrize("is_there", [True, False])
async def test_only_the_fifo_that_was_judged_or_made_gets_its_metadata(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_there: bool, other: str
) -> None:
    """Somebody else who may write to the directory moves another entry over its name before that is opened."""
    back = tmp_path / "back"
    back.mkdir()
    reader = ScriptedReader()
    reader.directory(b"")
    reader.ops.append(Put(b"pipe", Kind.FIFO, meta(0o666)))
    if is_there:
        os.mkfifo(back / "pipe", 0o600)
    if other == "fifo":
        os.mkfifo(tmp_path / "other", 0o600)
        os.link(tmp_path / "other", tmp_path / "second")
    else:
        (tmp_path / "other").touch(0o600)
    kept = os.open(tmp_path / "other", os.O_PATH)
    opened = planner.opened_path

    def meddle(name: bytes, directory: int) -> object:
        os.rename(tmp_path / "other", name, dst_dir_fd=directory)
        return opened(name, directory)

    monkeypatch.setattr(planner, "opened_path", meddle)
    account = await restore_script(reader, back)
    assert account.failed == {"special": 1} and "another process" in said(account, "failed")[0]
    assert stat.S_IMODE(os.fstat(kept).st_mode) == 0o600
    os.close(kept)


@needs_root
async def test_a_new_fifo_that_is_another_user_s_at_once_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was put in the place of ours, or a file server says whose everything is; either way it is named."""
    reader = ScriptedReader()
    reader.directory(b"")
    reader.ops.append(Put(b"pipe", Kind.FIFO, meta(0o666)))
    opened = planner.opened_path

    def meddle(name: bytes, directory: int) -> object:
        os.chown(name, 65534, 65534, dir_fd=directory)
        return opened(name, directory)

    monkeypatch.setattr(planner, "opened_path", meddle)
    account = await restore_script(reader, tmp_path / "back")
    assert said(account, "metadata") == ["pipe: metadata not set: it belongs to user 65534"] and account.exit_code == 1
    status = (tmp_path / "back" / "pipe").stat()
    assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (65534, 0o600)


RESERVED = TEMPORARY + b"0123456789abcdef"
ALIKE = [TEMPORARY + rest for rest in (b"", b"notes", b"0123456789abcdef0", b"0123456789ABCDEF", b"0123456789abcdef\n")]


async def test_names_reserved_for_unfinished_files_are_left_out_with_a_notice(tmp_path: Path) -> None:
    """They would be mistaken for what a restore left over."""
    reader = ScriptedReader()
    reader.directory(b"")
    reader.file(RESERVED, b"x")
    reader.ops.append(Put(TEMPORARY + b"1" * 16, Kind.FIFO, meta()))
    account = clean(await restore_script(reader, tmp_path / "back"))
    assert len(said(account, "notice")) == 2 and os.listdir(tmp_path / "back") == []


async def test_names_that_merely_begin_like_reserved_ones_come_back(tmp_path: Path) -> None:
    """And directories of any name, with what is in them: a restore leaves no unfinished directory."""
    reader = ScriptedReader()
    reader.directory(b"")
    for name in ALIKE:
        reader.file(name, name)
    reader.directory(RESERVED)
    reader.file(RESERVED + b"/file", b"x")
    for _ in range(2):
        account = clean(await restore_script(reader, tmp_path / "back"))
        assert sorted(os.listdir(os.fsencode(tmp_path / "back"))) == sorted([*ALIKE, RESERVED])
        assert not said(account, "notice") and account.extra == 0
    assert os.listdir(tmp_path / "back" / os.fsdecode(RESERVED)) == ["file"]


async def test_entries_whose_names_merely_begin_like_reserved_ones_are_extra_like_any_other(tmp_path: Path) -> None:
    """Left alone, or set aside when they are removed, as the dry run said."""
    reader = ScriptedReader()
    reader.directory(b"")
    back, aside = tmp_path / "back", tmp_path / "aside"
    (back / os.fsdecode(RESERVED)).mkdir(parents=True)
    (back / os.fsdecode(RESERVED) / "mine").write_bytes(b"mine")
    for name in ALIKE:
        (back / os.fsdecode(name)).write_bytes(name)
    before = describe_tree(back)
    for dry_run in (True, False):
        account = clean(await restore_script(reader, back, rules=Rules(dry_run=dry_run)))
        assert (account.extra, account.extra_removed) == (6, 0) and describe_tree(back).keys() == before.keys()
    for dry_run in (True, False):
        rules = Rules(delete_extra=True, dry_run=dry_run, aside=aside)
        account = clean(await restore_script(reader, back, rules=rules))
        assert (account.extra, account.extra_removed) == (0, 6)
    assert os.listdir(back) == [] and sorted(os.listdir(os.fsencode(aside))) == sorted([*ALIKE, RESERVED])
    assert (aside / os.fsdecode(RESERVED) / "mine").read_bytes() == b"mine"


@pytest.mark.parametrize(
    "fields",
    [
        {"meta": meta(0o644, 2**70 % 2**63)},
        {"meta": meta(0o644, -(2**62))},
        {"meta": meta(0o644, xattrs=((b"user.\0nul", b"x"),))},
        {"meta": meta(0o644, xattrs=((b"nonsense", b"x"),))},
        {"meta": meta(2**40)},
        {"file": 2**63},
    ],
)
async def test_impossible_values_are_counted_and_named_and_stop_nothing(
    tmp_path: Path, fields: dict[str, object]
) -> None:
    """Of a file as of everything else; the next entry is restored."""
    reader = ScriptedReader()
    reader.directory(b"")
    reader.file(b"a", b"content", **fields)
    if "meta" in fields:
        reader.ops.append(Put(b"l", Kind.SYMLINK, fields["meta"], target=b"x"))  # type: ignore[arg-type]
    reader.file(b"z", b"content", file=77)
    account = await restore_script(reader, tmp_path / "back")
    assert account.finished and (tmp_path / "back" / "z").read_bytes() == b"content"


@pytest.mark.parametrize("owner", [-1, 2**32 - 1, 2**40])
async def test_an_impossible_owner_is_named_and_the_setuid_bit_left_off(tmp_path: Path, owner: int) -> None:
    """A file that runs as its owner must not run as whoever restores."""
    reader = ScriptedReader()
    reader.directory(b"")
    described = meta(0o4755)
    reader.file(b"a", b"content", meta=type(described)(0o4755, owner, 0, 5))
    account = await restore_script(reader, tmp_path / "back")
    assert account.metadata_not_set == 2 and account.exit_code == 1
    assert stat.S_IMODE((tmp_path / "back" / "a").stat().st_mode) == 0o755


async def test_a_record_that_breaks_its_own_rules_ends_the_restore(tmp_path: Path) -> None:
    """Blocks out of order, beyond the end, or of another file: a protocol error, not a guess."""
    put = Put(b"f", Kind.FILE, meta(), 100_000, 1, 4096)
    for wrong in (
        [put, Map(1, (5,), bytes(32)), Map(1, (5,), bytes(32))],
        [put, Map(1, (25,), bytes(32))],
        [put, Map(2, (0,), bytes(32))],
        [put, Drop(b"x")],
    ):
        reader = ScriptedReader([Put(b"", Kind.DIRECTORY, meta(0o755)), *wrong])
        with pytest.raises(PeerError):
            await restore_script(reader, tmp_path / "back")


# what the target cannot take


async def test_a_target_that_is_no_directory_is_refused(tmp_path: Path) -> None:
    """So is one whose parent does not exist; nothing is changed."""
    (tmp_path / "file").write_bytes(b"x")
    reader = ScriptedReader()
    with pytest.raises(UsageError, match="no directory"):
        await restore_script(reader, tmp_path / "file")
    with pytest.raises(UsageError, match="parent directory"):
        await restore_script(reader, tmp_path / "no" / "where")
    with pytest.raises(UsageError, match="parent directory"):
        await restore_script(reader, tmp_path / "no" / "where", rules=Rules(dry_run=True))


async def test_one_restore_at_a_time_works_in_a_directory(tmp_path: Path) -> None:
    """The second says so."""
    target = Target(tmp_path, Disk())
    try:
        with pytest.raises(LockedError, match="another restore"):
            await restore_script(ScriptedReader(), tmp_path)
    finally:
        target.close()


def swap(made: Path, other: str) -> None:
    """What somebody who may write to the directory above does: he moves what was made away, and puts this there."""
    made.rename(made.with_name(f"{made.name} moved"))
    if other == "symlink":
        made.symlink_to(made.parent)
        return
    made.mkdir(0o700)
    if other == "filled":
        (made / "file").write_bytes(b"precious")
    elif other == "open":
        made.chmod(0o770)
    elif other == "another's":
        os.chown(made, 65534, 65534)


@pytest.fixture
def swapped(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Swap the next directory of this name for another one between its making and its opening."""

    def prepare(name: str, other: str) -> None:
        real = os.mkdir

        def make(path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
            real(path, mode, dir_fd=dir_fd)
            if os.path.basename(os.fsdecode(path)) == name:
                monkeypatch.setattr(os, "mkdir", real)
                parent = Path(path).parent if dir_fd is None else Path(os.readlink(f"/proc/self/fd/{dir_fd}"))
                swap(parent / name, other)

        monkeypatch.setattr(os, "mkdir", make)

    return prepare


SWAPS = ["filled", "open", pytest.param("another's", marks=needs_root)]


@pytest.mark.parametrize("other", SWAPS)
@pytest.mark.parametrize("place", [b"", b"below"])
async def test_a_directory_that_was_swapped_after_it_was_made_is_not_taken_for_a_new_one(
    tmp_path: Path, swapped: Callable[[str, str], None], place: bytes, other: str
) -> None:
    """What stands in it is compared, and kept where that is asked for; the target itself, and one in a target that was
    there."""
    reader, back = ScriptedReader(), tmp_path / "back"
    reader.directory(b"")
    if place:
        back.mkdir()
        reader.directory(place)
    reader.file(place + b"/file" if place else b"file", b"restored")
    swapped(os.fsdecode(place) or "back", other)
    target = Target(back, Disk())
    if place:
        target.make_directory(place)
    assert not target.is_fresh(place)
    target.close()
    shutil.rmtree(back)
    if place:
        back.mkdir()
    swapped(os.fsdecode(place) or "back", other)
    account = await restore_script(reader, back, rules=Rules(aside=tmp_path / "aside"))
    assert clean(account).set_aside == (other == "filled")
    assert (back / os.fsdecode(place) / "file").read_bytes() == b"restored"


async def test_a_target_that_became_a_symlink_after_it_was_made_is_refused(
    tmp_path: Path, swapped: Callable[[str, str], None]
) -> None:
    """A symlink that was there is followed: whoever typed its name may mean that."""
    swapped("back", "symlink")
    with pytest.raises(UsageError, match="no directory"):
        await restore_script(ScriptedReader(), tmp_path / "back")


@pytest.mark.parametrize("other", SWAPS[1:])
def test_a_directory_that_is_swapped_later_is_not_taken_for_the_one_that_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    """Its descriptor was given up meanwhile: opened again, it is an error, and what belongs there fails by name."""
    monkeypatch.setattr(target_module, "MAX_OPEN_DIRECTORIES", 0)
    target = Target(tmp_path, Disk())
    for name in (b"made", b"next"):
        target.make_directory(name)
    assert target.is_fresh(b"made")
    swap(tmp_path / "made", other)
    with pytest.raises(OSError, match="another process replaced the directory"), target.directory(b"made"):
        pass
    target.close()


class FullDisk(Disk):
    """A disk that takes so many bytes."""

    def __init__(self, room: int) -> None:
        self.room = room

    def pwrite(self, fd: int, data: Buffer, offset: int) -> int:
        if len(data) > self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.room -= len(data)
        return super().pwrite(fd, data, offset)


async def test_a_full_target_ends_in_one_clear_error_and_goes_on_later(tmp_path: Path) -> None:
    """The account tells what was done; the same restore goes on when there is room."""
    reader = ScriptedReader()
    reader.directory(b"")
    for number in range(50):
        reader.file(b"%02d" % number, os.urandom(100_000))
    running = Restore(reader, (await reader.snapshots())[0], tmp_path / "back", disk=FullDisk(2_000_000))
    with pytest.raises(DiskFullError, match="run the same command again"):
        await running.run()
    assert not running.account.finished and running.account.exit_code == 1
    account = clean(await restore_script(reader, tmp_path / "back"))
    assert account.restored["files"] + account.unchanged.get("files", 0) == 50


class BrokenDisk(Disk):
    """A disk that cannot write to one place of one size."""

    def pwrite(self, fd: int, data: Buffer, offset: int) -> int:
        if bytes(data[:5]) == b"break":
            raise OSError(errno.EIO, "Input/output error")
        return super().pwrite(fd, data, offset)


async def test_a_write_error_costs_one_file(tmp_path: Path) -> None:
    """It fails by name and leaves nothing behind, its other names with it; the others are restored."""
    reader = ScriptedReader()
    reader.directory(b"")
    reader.file(b"a", b"break" + b"a" * 100, file=5)
    reader.file(b"b", b"fine")
    reader.file(b"c", b"break" + b"a" * 100, file=5)
    account = await restore_script(reader, tmp_path / "back", disk=BrokenDisk())
    assert account.failed == {"files": 1, "hard_links": 1} and account.restored["files"] == 1
    assert os.listdir(tmp_path / "back") == ["b"]
    assert "Input/output error" in said(account, "failed")[0]


@needs_root
async def test_a_full_file_system_is_told_from_the_system_itself(tmp_path: Path) -> None:
    """A real one of one megabyte."""
    with small_disk(tmp_path / "back", 1) as back:
        reader = ScriptedReader()
        reader.directory(b"")
        reader.file(b"large", os.urandom(5_000_000), block_bytes=65536)
        with pytest.raises(DiskFullError, match="No space left"):
            await restore_script(reader, back)


@needs_root
async def test_without_rights_the_content_comes_back_and_the_rest_is_named(tmp_path: Path) -> None:
    """Owners and devices that this user may not make are counted, never fatal."""
    reader = ScriptedReader()
    reader.directory(b"", meta=type(meta())(0o755, 65534, 65534, 5))
    reader.file(b"foreign", b"content", meta=type(meta())(0o4755, 12345, 12345, 5))
    reader.file(b"own", b"content", meta=type(meta())(0o640, 65534, 65534, 5))
    reader.ops.append(Put(b"device", Kind.CHARACTER_DEVICE, type(meta())(0o640, 65534, 65534, 5), device=259))
    parent = tmp_path / "nobody"
    parent.mkdir()
    os.chown(parent, 65534, 65534)
    tmp_path.chmod(0o755)
    with unprivileged():
        account = await restore_script(reader, parent / "back")
    assert account.restored["files"] == 2 and account.failed == {"special": 1}
    assert account.metadata_not_set == 2
    assert "foreign: metadata not set: owner 12345:12345: Operation not permitted" in said(account, "metadata")
    status = (parent / "back" / "foreign").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_mtime_ns) == (0o755, 65534, 5)


async def test_inherited_acls_do_not_stay_on_what_is_restored(tmp_path: Path) -> None:
    """A default ACL of the target would otherwise give others access."""
    back = tmp_path / "back"
    back.mkdir()
    if not set_acl(back, "d:u:1234:rwx"):
        pytest.skip("no ACLs here")
    reader = ScriptedReader()
    reader.directory(b"")
    reader.directory(b"below")
    reader.file(b"below/file", b"content", meta=meta(0o600))
    clean(await restore_script(reader, back))
    for path in (back, back / "below", back / "below" / "file"):
        assert os.listxattr(path) == []


def test_a_tree_deeper_than_any_path_can_name_is_removed(tmp_path: Path) -> None:
    """Removal goes directory by directory."""
    make_deep(os.fsencode(tmp_path / "back").replace(b"back", b""), 4000)
    target = Target(tmp_path, Disk())
    try:
        for name in list(target.names(b"")):
            target.remove(name)
        assert list(target.names(b"")) == []
    finally:
        target.close()


class ClosingFails:
    """os.close as a file system answers that notices write errors late."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
        self._path, self._close = path, os.close
        monkeypatch.setattr(os, "close", self)

    def __call__(self, fd: int) -> None:
        name = os.readlink(f"/proc/self/fd/{fd}") if os.path.exists(f"/proc/self/fd/{fd}") else ""
        writable = bool(name) and "/back/" in name and os.get_inheritable(fd) is False and _is_writable(fd)
        self._close(fd)
        if writable and name.endswith(self._path):
            raise OSError(errno.EIO, "Input/output error")


def _is_writable(fd: int) -> bool:
    flags = Path(f"/proc/self/fdinfo/{fd}").read_text().split("flags:\t")[1].split("\n")[0]
    return int(flags, 8) & os.O_ACCMODE != os.O_RDONLY


async def test_an_error_that_comes_with_close_costs_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is counted as failed, once, and is not there."""
    (tmp_path / "back").mkdir()
    reader = ScriptedReader()
    reader.directory(b"")
    reader.directory(b"new")
    reader.file(b"new/bad", b"content")
    reader.file(b"new/good", b"content 2")
    ClosingFails(monkeypatch, "/bad")
    account = await restore_script(reader, tmp_path / "back")
    monkeypatch.undo()
    assert account.failed == {"files": 1} and account.restored["files"] == 1
    assert os.listdir(tmp_path / "back" / "new") == ["good"]


async def test_a_file_that_changes_while_it_is_compared_fails_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else works in the target: what was compared must not be taken for what is there now."""
    reader = ScriptedReader()
    reader.directory(b"")
    reader.file(b"busy", b"a" * 4096 + b"b" * 4096)
    reader.file(b"quiet", b"quiet")
    back = tmp_path / "back"
    back.mkdir()
    (back / "busy").write_bytes(b"a" * 4096 + b"?" * 4096)
    answer = reader.answer

    def meddle(name: bytes) -> object:
        (back / "busy").write_bytes(b"entirely different")
        return answer(name)

    reader.answer = meddle  # type: ignore[method-assign, assignment]
    account = await restore_script(reader, back)
    assert account.failed == {"files": 1} and "another process" in said(account, "failed")[0]
    assert (back / "busy").read_bytes() == b"entirely different" and (back / "quiet").read_bytes() == b"quiet"
    assert sorted(os.listdir(back)) == ["busy", "quiet"]


async def test_a_file_that_changes_while_it_is_copied_fails_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was compared and found right is taken over as it was compared, or not at all."""
    reader = ScriptedReader()
    reader.directory(b"")
    reader.file(b"busy", b"a" * 4096 + b"b" * 4096 + b"c" * 4096)
    reader.file(b"quiet", b"quiet")
    back = tmp_path / "back"
    back.mkdir()
    (back / "busy").write_bytes(b"a" * 4096 + b"b" * 4096 + b"?" * 4096)
    os.utime(back / "busy", (1, 1))
    seek = filling.seek_data

    def meddle(fd: int, position: int, end: int) -> int:
        with open(back / "busy", "r+b") as file:
            file.write(b"meddled with")
        return seek(fd, position, end)

    monkeypatch.setattr(filling, "seek_data", meddle)
    account = await restore_script(reader, back)
    assert account.failed == {"files": 1} and "another process" in said(account, "failed")[0]
    assert (back / "busy").read_bytes().startswith(b"meddled with") and (back / "quiet").read_bytes() == b"quiet"
    assert sorted(os.listdir(back)) == ["busy", "quiet"]


async def test_a_file_that_changes_before_it_gets_its_time_fails_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its content was right when it was compared; the recorded time would say that it still is."""
    reader = ScriptedReader()
    reader.directory(b"")
    reader.file(b"busy", b"busy")
    back = tmp_path / "back"
    back.mkdir()
    (back / "busy").write_bytes(b"busy")
    os.utime(back / "busy", (1, 1))

    def meddle(*_: object) -> bool:
        (back / "busy").write_bytes(b"idle")
        return True

    monkeypatch.setattr(filling, "attributes_differ", meddle)
    account = await restore_script(reader, back)
    assert account.failed == {"files": 1} and "another process" in said(account, "failed")[0]
    assert (back / "busy").read_bytes() == b"idle" and (back / "busy").stat().st_mtime_ns != meta().mtime_ns


class BadSector:
    """A disk that cannot read one place of one file any more."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, path: Path, at: int, error: int = errno.EIO) -> None:
        self._path, self._at, self._error, self._read = path, at, error, comparing.read_at
        for module in (comparing, filling):
            monkeypatch.setattr(module, "read_at", self)

    def __call__(self, fd: int, buffer: AlignedBuffer, offset: int, size: int) -> memoryview:
        if offset <= self._at < offset + size and os.readlink(f"/proc/self/fd/{fd}") == str(self._path):
            raise OSError(self._error, os.strerror(self._error))
        return self._read(fd, buffer, offset, size)


@pytest.mark.parametrize("error", [errno.EIO, errno.ENODATA, errno.EUCLEAN])
@pytest.mark.parametrize("limit", [1, 1 << 30])
async def test_a_bad_sector_in_the_target_is_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, error: int
) -> None:
    """It costs the block that it lies in, also when others have been written before it was come upon; whatever the
    kernel calls it (a disk's own error reaches a direct read as ENODATA)."""
    monkeypatch.setattr(filling, "IN_PLACE_FROM_BYTES", limit)
    content = os.urandom(5_000_000)
    reader = ScriptedReader()
    reader.directory(b"")
    reader.file(b"f", content)
    back = tmp_path / "back"
    back.mkdir()
    (back / "f").write_bytes(bytes(600 * 4096) + content[600 * 4096 :])
    BadSector(monkeypatch, back / "f", 3_000_000, error)
    account = clean(await restore_script(reader, back))
    monkeypatch.undo()
    assert (back / "f").read_bytes() == content and account.blocks_fetched == 601


async def test_what_neither_the_store_nor_the_targets_disk_has_is_zero_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two lost blocks the one that can be read stays what it was."""
    reader = ScriptedReader()
    reader.directory(b"")
    reader.file(b"f", b"a" * 4096 + b"b" * 4096 + b"c" * 4096)
    for letter in (b"a", b"b"):
        del reader.blocks[block_id(letter * 4096)]
    back = tmp_path / "back"
    back.mkdir()
    (back / "f").write_bytes(b"?" * 12288)
    BadSector(monkeypatch, back / "f", 5000)
    account = await restore_script(reader, back)
    monkeypatch.undo()
    assert (back / "f").read_bytes() == b"?" * 4096 + bytes(4096) + b"c" * 4096
    assert said(account, "damaged") == [
        "f: bytes 0 to 4095 are not restored: gone (left as it was)",
        "f: bytes 4096 to 8191 are not restored: gone (left as zeros)",
    ]


@needs_root
async def test_a_file_that_can_neither_be_read_nor_be_had_whole_stays_what_it_is(tmp_path: Path) -> None:
    """Nothing of it could be kept in a new one, which is made where all of it can be had, or nothing has its name."""
    reader = ScriptedReader()
    reader.directory(b"")
    for name in (b"lost", b"whole"):
        reader.file(name, name * 2000)
    reader.file(b"begun", b"begun" * 2000)
    for name in (b"lost", b"begun"):
        del reader.blocks[block_id((name * 2000)[4096:8192])]
    back = tmp_path / "nobody" / "back"
    back.mkdir(parents=True)
    for name in (b"lost", b"whole", temporary_name(b"begun")):
        path = back / os.fsdecode(name)
        path.write_bytes(b"?" * 9000)
        path.chmod(0)
        os.chown(path, 65534, 65534)
    os.chown(back, 65534, 65534)
    tmp_path.chmod(0o755)
    with unprivileged():
        account = await restore_script(reader, back)
    assert account.failed == {"files": 1} and "cannot be read" in said(account, "failed")[0]
    assert (back / "lost").read_bytes() == b"?" * 9000 and (back / "whole").read_bytes() == b"whole" * 2000
    assert (back / "begun").read_bytes() == (b"begun" * 2000)[:4096] + bytes(4096) + (b"begun" * 2000)[8192:]
    assert said(account, "damaged") == ["begun: bytes 4096 to 8191 are not restored: gone (left as zeros)"]
    assert sorted(os.listdir(back)) == ["begun", "lost", "whole"]


async def test_a_running_program_is_replaced_not_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel refuses to write to it in place, so a corrected copy takes its name, and it runs on."""
    monkeypatch.setattr(filling, "IN_PLACE_FROM_BYTES", 1)
    content = Path(shutil.which("sleep") or "/bin/sleep").read_bytes()
    reader = ScriptedReader()
    reader.directory(b"")
    reader.file(b"program", content + b"and more", meta=meta(0o755))
    back = tmp_path / "back"
    back.mkdir()
    (back / "program").write_bytes(content)
    (back / "program").chmod(0o755)
    with subprocess.Popen([back / "program", "30"]) as running:
        account = clean(await restore_script(reader, back))
        assert running.poll() is None
        running.kill()
    assert account.blocks_fetched < 4 and (back / "program").read_bytes() == content + b"and more"


async def test_what_one_replica_has_lost_comes_from_another_in_a_second_run(tmp_path: Path) -> None:
    """Into the same target: only the missing block is fetched, and then the file is whole and looks it."""
    reader = ScriptedReader()
    reader.directory(b"")
    reader.file(b"file", b"a" * 4096 + b"b" * 4096 + b"c" * 4096)
    lost = reader.blocks.pop(block_id(b"b" * 4096))
    account = await restore_script(reader, tmp_path / "back")
    assert account.damaged_files == 1
    reader.blocks[block_id(lost)] = lost
    account = clean(await restore_script(reader, tmp_path / "back"))
    assert account.blocks_fetched == 1 and account.restored == {"files": 1}
    assert (tmp_path / "back" / "file").stat().st_mtime_ns == meta().mtime_ns


async def test_a_store_that_may_not_be_written_and_is_at_work_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its catalog cannot be copied as a whole while a daemon changes it."""
    monkeypatch.setattr(origin.os, "access", lambda *_: False)
    with Writer(tmp_path / "store" / "ams1" / "www") as writer:
        writer.put(b"")
        writer.seal()
        with pytest.raises(UsageError, match="a daemon works on this store"):
            async with origin.reading_store(tmp_path / "store", "www"):
                pass
    async with origin.reading_store(tmp_path / "store", "www") as reader:
        assert len(await reader.snapshots()) == 1


def test_a_tree_of_many_directories_is_removed_in_few_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is looked into once, and the one that holds them once in a thousand."""
    count, looks, real = 2500, list[int](), target_module._unlink_files
    for number in range(count):
        (tmp_path / "back" / "extra" / f"{number:04}").mkdir(parents=True)

    def looked(fd: int) -> object:
        looks.append(fd)
        return real(fd)

    monkeypatch.setattr(target_module, "_unlink_files", looked)
    target = Target(tmp_path / "back", Disk())
    target.remove(b"extra")
    target.close()
    assert os.listdir(tmp_path / "back") == [] and count < len(looks) < count + 20
