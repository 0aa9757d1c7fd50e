"""The rescue script: all comes out of a store with nothing but Python and zstd, and no wrong byte is passed off."""

from __future__ import annotations

import ast
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit_damage import Harm, Shelf
from kit_pair import assert_same_tree
from kit_restore import Writer, archive_tree, damage_block, differences, meta, restore
from kit_retention import let_go_and_compact
from kit_rot import CannotRot
from kit_store import (
    Model,
    Primary,
    Tree,
    bare,
    directory_put,
    file_put,
    flip,
    groups,
    open_archive,
    segment,
    trees,
)
from kit_tree import as_nobody, build_tree, describe_tree, is_root, set_acl
from replicad.model import entry
from replicad.model.block import block_id
from replicad.model.entry import Drop, Kind, Map, Op, Put, encode_ops
from replicad.model.snapshot import Commit
from replicad.store import format as fmt
from replicad.store import rescue
from replicad.store import store as store_module
from replicad.store.format import HEADER_BYTES, FrameType
from replicad.system.disk import Disk
from replicad.work.archive_reader import ArchiveReader
from replicad.work.expire import drop
from replicad.work.quarantine import Quarantine
from replicad.work.rebuild import rebuild_catalog
from replicad.work.rescue_kit import README, SCRIPT, leave_rescue_kit, packaged_script
from replicad.work.upkeep import lay_segment

PACKAGED = Path(rescue.__file__)
FORMATS = Path(__file__).parent.parent / "docs" / "FORMATS.md"
TEXT = b"".join(b"line %d\n" % number for number in range(20_000))
SMALL = 60_000
"""A size at which test stores have several segments."""


def run_script(
    *words: object, code: int = 0, script: Path = PACKAGED, path: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the script as on a host without any package: isolated, and without site."""
    command = [sys.executable, "-I", "-S", str(script), *map(str, words)]
    environment = os.environ if path is None else {"PATH": path}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=100)
    assert done.returncode == code, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tree with every kind of entry and 1,000 small files, and a store of several segments that holds it."""
    base = tmp_path_factory.mktemp("rich")
    build_tree(base / "tree")
    os.unlink(base / "tree" / "links" / "hard-symlink")  # records know hard links of files only
    many = base / "tree" / "many"
    many.mkdir()
    for number in range(1000):
        (many / f"file {number}").write_bytes(b"%d" % number * (number % 900))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_module, "SEGMENT_BYTES", 1_000_000)
        archive_tree(base / "store", base / "tree")
    return base / "tree", base / "store"


# everything comes back


async def test_a_rich_tree_comes_back_as_it_was_and_as_a_restore_gives_it(
    rich: tuple[Path, Path], tmp_path: Path
) -> None:
    """Every kind of entry, all metadata: rsync and a description of our own find nothing to tell them apart."""
    tree, store = rich
    done = run_script(store, tmp_path / "rescued")
    await restore(store, tmp_path / "restored")
    assert differences(tree, tmp_path / "rescued") == differences(tmp_path / "restored", tmp_path / "rescued") == ""
    assert describe_tree(tree) == describe_tree(tmp_path / "rescued") == describe_tree(tmp_path / "restored")
    assert done.stdout.rstrip().endswith("complete") and "BLAKE3" in done.stdout and not done.stderr
    holes = (tmp_path / "rescued" / "sparse" / "all hole").stat()
    assert holes.st_blocks * 512 < holes.st_size


def test_any_python_from_3_8_on_will_do(rich: tuple[Path, Path], tmp_path: Path) -> None:
    """Its syntax is that of 3.8, it imports the standard library alone, and other versions that are here run it."""
    tree = ast.parse(PACKAGED.read_text(), feature_version=(3, 8))
    names = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    names |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert {str(name).partition(".")[0] for name in names} <= sys.stdlib_module_names
    for version in ("3.8", "3.9", "3.12", "3.13", "3.14"):
        program = shutil.which(f"python{version}")
        command = [str(program), "-I", "-S", str(PACKAGED), str(rich[1]), str(tmp_path / version)]
        if (
            program
            and subprocess.run([program, "-c", "import sqlite3"], capture_output=True, check=False).returncode == 0
        ):
            subprocess.run(command, capture_output=True, check=True)
            assert describe_tree(rich[0]) == describe_tree(tmp_path / version)


def test_parts_of_a_snapshot_come_back_with_the_directories_on_the_way(rich: tuple[Path, Path], tmp_path: Path) -> None:
    """By the same patterns as in a restore; a pattern that matches nothing is a usage error."""
    tree, store = rich
    run_script(store, "--path", "docs/*.bin", "--path", "**/file 99?", tmp_path / "part")
    found = describe_tree(tmp_path / "part")
    wanted = {
        b"",
        b"docs",
        b"docs/blocks.bin",
        b"docs/large.bin",
        b"many",
        *(b"many/file %d" % n for n in range(990, 1000)),
    }
    assert set(found) == wanted
    whole = describe_tree(tree)
    assert all(found[path] == whole[path] for path in wanted)
    assert "matches" in run_script(store, "--path", "no/such", tmp_path / "none", code=2).stderr


def test_every_snapshot_is_listed_and_comes_back_as_it_was(tmp_path: Path) -> None:
    """Also what was dropped or renamed since; the newest complete one by default, a partial one by its number."""
    with Writer(tmp_path / "store") as writer:
        writer.put(b"")
        writer.put(b"old name", b"one" * 30_000, file=7)
        writer.put(b"dropped", b"two")
        writer.seal(1)
        writer.add(Drop(b"dropped"))
        writer.add(Put(b"new name", Kind.FILE, meta(), 90_000, 7, 65536))
        writer.add(Drop(b"old name"))
        writer.seal(2, 1_700_000_001_000_000_000)
        writer.put(b"half", b"x")
        writer.seal(5, 1_700_000_002_000_000_000, complete=False)
    listed = run_script("--list", tmp_path / "store").stdout.splitlines()
    assert [line.split()[0] for line in listed] == ["1", "2", "5"] and "partial" in listed[2]
    for words, names in (
        (("--snapshot", "1"), {"old name", "dropped"}),
        ((), {"new name"}),
        (("--snapshot", "5"), {"new name", "half"}),
    ):
        target = tmp_path / "".join(sorted(names))
        run_script(tmp_path / "store", *words, target)
        assert set(os.listdir(target)) == names
        assert next(target.glob("*name")).read_bytes() == b"one" * 30_000
    assert "--list" in run_script(tmp_path / "store", "--snapshot", "3", tmp_path / "no", code=2).stderr


def test_the_newest_is_the_last_one_made_though_a_clock_was_ahead(tmp_path: Path) -> None:
    """Whatever moment the primary's clock gave to an earlier one; and a complete one is never called partial."""
    with Writer(tmp_path / "store") as writer:
        writer.put(b"")
        for number, second in enumerate((10, 100, 20, 21), 1):
            writer.put(b"file", b"%d" % number)
            writer.seal(number, second * 10**9)
    found = run_script(tmp_path / "store", tmp_path / "target")
    assert (tmp_path / "target" / "file").read_bytes() == b"4" and not found.stderr


def test_what_retention_let_go_is_told_and_never_the_latest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dropped snapshot is listed as one; by its number it comes back as far as its blocks are there, and it is said
    that retention let it go; "latest" is one that is kept, also where that is older."""
    monkeypatch.setattr(store_module, "SEGMENT_BYTES", SMALL)
    store, gone, kept = tmp_path / "store", os.urandom(200_000), os.urandom(150_000)
    with Writer(store) as writer:
        writer.put(b"")
        writer.put(b"changed", gone)
        writer.put(b"kept", kept)
        writer.seal(1)
        writer.put(b"changed", b"new" * 50_000)
        writer.seal(2, 1_700_000_001_000_000_000)
        writer.seal(3, 1_700_000_003_000_000_000)
        writer.seal(4, 1_700_000_002_000_000_000, complete=False)
    before = run_script(store, "--snapshot", "1", tmp_path / "before")
    assert "retention" not in before.stderr and (tmp_path / "before" / "changed").read_bytes() == gone
    archive = open_archive(store, create=False)
    drop(archive, [1, 3])
    listed = run_script("--list", store).stdout.splitlines()
    assert [line.split()[2] for line in listed] == ["dropped", "complete", "dropped", "partial"]
    whole = run_script(store, "--snapshot", "1", tmp_path / "whole")
    assert "retention let snapshot 1 go" in whole.stderr and whole.stdout.endswith("complete\n")
    assert (tmp_path / "whole" / "changed").read_bytes() == gone, "as long as nothing was compacted all is there"
    let_go_and_compact(archive, [1, 3])
    archive.close()
    found = run_script(store, "--snapshot", "1", tmp_path / "part", code=1)
    assert "retention let snapshot 1 go: what no other one needs may be gone" in found.stderr
    assert "changed: bytes 0 to" in found.stderr and "kept: bytes" not in found.stderr
    assert (tmp_path / "part" / "kept").read_bytes() == kept
    assert (tmp_path / "part" / "changed").read_bytes() != gone
    latest = run_script(store, tmp_path / "latest")
    assert "snapshot 2 " in latest.stdout and "retention" not in latest.stderr, "3 is newer, complete and dropped"
    assert "snapshot 4 is newer, but partial" in latest.stderr
    assert (tmp_path / "latest" / "changed").read_bytes() == b"new" * 50_000


def test_a_damaged_word_of_retention_is_named_and_drops_nothing(tmp_path: Path) -> None:
    """What cannot be read decides nothing; a word that names the newest snapshot drops all others that it names."""
    store = tmp_path / "store"
    with Writer(store) as writer:
        writer.put(b"")
        writer.put(b"file", b"one")
        for number in (1, 2, 3):
            writer.seal(number, number * 10**18)
    archive = open_archive(store, create=False)
    with archive.upkeep() as (segments, _):
        frame = fmt.encode_retention(fmt.Retention(5, (1, 3)))
        segments.append(frame, [fmt.parse_frame(frame, 0).checksum])
        segments.sync()
    archive.close()
    states = [line.split()[2] for line in run_script("--list", store).stdout.splitlines()]
    assert states == ["dropped", "complete", "complete"]
    data = segment(store).read_bytes()
    flip(segment(store), data.index(frame) + len(frame) - 1)
    said = run_script("--list", store)
    assert [line.split()[2] for line in said.stdout.splitlines()] == ["complete"] * 3
    assert "a word of retention" in said.stderr


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # the script leaves closing its files to the interpreter
@settings(max_examples=15, deadline=None)
@given(st.lists(st.lists(groups([block_id(b"%d" % n) for n in range(5)]), max_size=6), min_size=1, max_size=4))
def test_any_history_is_replayed_as_the_catalog_has_it(history: list[list[list[Op]]]) -> None:
    """Random puts, maps, runs of zeros, links and drops over several snapshots, against a model in a few lines."""
    with pytest.MonkeyPatch.context() as patch:
        directory = Path(os.environ.get("TMPDIR", "/tmp")) / f"rescue-{os.getpid()}-{random.getrandbits(40)}"
        patch.setattr(store_module, "SEGMENT_BYTES", 3000)
        try:
            archive, model = open_archive(directory), Model()
            primary = Primary(archive)
            primary.send(*(b"%d" % n for n in range(5)))
            expected: dict[int, Tree] = {}
            for number, changes in enumerate(history, 1):
                ops = [op for change in changes for op in change]
                primary.record(*ops)
                for op in ops:
                    model.apply(op)
                primary.seal(number)
                expected[number] = model.tree()
            archive.close()
            for number, tree in expected.items():
                assert replayed(directory, number) == {
                    path: (without_flags(put), ids) for path, (put, ids) in tree.items()
                }
        finally:
            shutil.rmtree(directory, ignore_errors=True)


def without_flags(put: Put) -> Put:
    """What the script needs of a put: that zeros were no holes, or a file in motion, makes no difference to it."""
    return msgspec.structs.replace(bare(put), flags=0)


def replayed(directory: Path, number: int) -> Tree:
    """A snapshot as the script reads it."""
    store = rescue.Store(str(directory))
    store.load(next(one for one in store.snapshots if one.number == number))
    found: Tree = {}
    for path, kind, size, file, rest, _ in store.db.execute("SELECT * FROM entry ORDER BY path").fetchall():
        (mode, uid, gid, mtime, xattrs), block_bytes, to, device = rescue.marshal.loads(rest)
        described = entry.Meta(mode, uid, gid, mtime, tuple((key, value) for key, value in xattrs))
        parts = dict(store.db.execute("SELECT number, id FROM part WHERE file = ? ORDER BY number", (file,)).fetchall())
        end = -(-size // block_bytes) if kind == Kind.FILE else 0
        put = Put(path, Kind(kind), described, size, file, block_bytes, 0, to, device)
        found[path] = put, {number: name for number, name in parts.items() if number < end}
    store.workers.shutdown()
    return found


def test_without_zstd_an_uncompressed_store_comes_back_and_a_compressed_one_says_what_is_missing(
    tmp_path: Path,
) -> None:
    """An error before anything is written, not a heap of damaged files."""
    for level, code in ((0, 0), (1, 2)):
        with Writer(tmp_path / f"store {level}", level=level) as writer:
            writer.put(b"")
            writer.put(b"file", b"content " * 5000)
            writer.seal()
        done = run_script(tmp_path / f"store {level}", tmp_path / f"to {level}", code=code, path="/nowhere")
        assert ("zstd" in done.stderr) is (code == 2) and (tmp_path / f"to {level}").exists() is (code == 0)


@pytest.mark.skipif(not is_root(), reason="mounting needs root")
def test_a_system_without_shared_memory_will_do(rich: tuple[Path, Path], tmp_path: Path) -> None:
    """A rescue shell may have no usable /dev/shm, and so no worker processes."""
    command = [sys.executable, "-I", "-S", PACKAGED, rich[1], "--path", "docs", tmp_path / "to"]
    hide = 'mount -t tmpfs -o ro none /dev/shm && exec "$@"'
    subprocess.run(["unshare", "--mount", "sh", "-c", hide, "sh", *command], check=True, capture_output=True)
    assert_same_tree(rich[0] / "docs", tmp_path / "to" / "docs")


def test_bad_words_change_nothing(rich: tuple[Path, Path], tmp_path: Path) -> None:
    """No store, no target, a target that is in use or in the store: exit code 2."""
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    for words in (
        (),
        (tmp_path, tmp_path / "new"),
        (rich[1], tmp_path / "used"),
        (rich[1], rich[1] / "segments" / "x"),
    ):
        assert run_script(*words, code=2).stderr.startswith("rescue: ")
    assert not (tmp_path / "new").exists() and os.listdir(tmp_path / "used") == ["file"]


@pytest.mark.skipif(not is_root(), reason="only root can become another user")
def test_another_user_gets_the_content_and_is_told_what_metadata_is_missing(tmp_path: Path) -> None:
    """The owner is named as not set; a setuid bit is not given to the wrong owner's file."""
    with Writer(tmp_path / "store") as writer:
        writer.put(b"")
        writer.put(b"file", b"content", meta=entry.Meta(0o4755, 12345, 12345, 10**18))
        writer.seal()
    for path in (tmp_path, *tmp_path.rglob("*")):
        path.chmod(0o777)
    shutil.copy(PACKAGED, tmp_path / "rescue.py")
    with as_nobody():
        done = subprocess.run(
            ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "/usr/bin/python3", "-I", "-S",
             str(tmp_path / "rescue.py"), str(tmp_path / "store"), str(tmp_path / "to")],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 1 and "file: owner 12345:12345 is not set" in done.stderr, done.stderr
    assert (tmp_path / "to" / "file").read_bytes() == b"content"
    assert (tmp_path / "to" / "file").stat().st_mode & 0o7777 == 0o755


# damage


@pytest.mark.parametrize("is_there", [False, True], ids=["made", "there"])
def test_acls_that_the_target_inherits_do_not_stay_on_what_comes_back(tmp_path: Path, is_there: bool) -> None:
    """They would let others read what only its owner may; those that are recorded are set."""
    parent, own = tmp_path / "parent", tmp_path / "own"
    for path in (parent, own):
        path.mkdir()
    if not (set_acl(parent, "u:1234:rwx,d:u:1234:rwx") and set_acl(own, "d:u:4321:r")):
        pytest.skip("no ACLs here")
    recorded = os.getxattr(own, "system.posix_acl_default")
    with Writer(tmp_path / "store") as writer:
        writer.put(b"", meta=meta(0o750))
        writer.put(b"below", meta=meta(0o755))
        writer.put(b"below/file", b"secret", meta=meta(0o640))
        writer.put(b"own", meta=meta(0o755, xattrs=((b"system.posix_acl_default", recorded),)))
        writer.put(b"own/file", b"secret", meta=meta(0o640))
        writer.seal()
    target = parent / "to"
    if is_there:
        target.mkdir()
        assert os.listxattr(target)
    assert "complete" in run_script(tmp_path / "store", target).stdout
    for path in (target, target / "below", target / "below" / "file", target / "own" / "file"):
        assert os.listxattr(path) == []
    assert os.getxattr(target / "own", "system.posix_acl_default") == recorded
    assert target.stat().st_mode & 0o777 == 0o750 and (target / "below" / "file").stat().st_mode & 0o777 == 0o640


def test_a_damaged_block_is_named_and_costs_its_bytes_alone(tmp_path: Path) -> None:
    """Everything else is there, the range is zeros, the file does not look finished, and the exit code is 1."""
    content = random.Random(1).randbytes(65536 * 4)
    for level in (0, 1):
        store, target = tmp_path / f"store {level}", tmp_path / f"to {level}"
        with Writer(store, level=level) as writer:
            writer.put(b"")
            writer.put(b"file", content)
            writer.put(b"text", TEXT)
            writer.put(b"other", b"other" * 100)
            writer.seal()
        damage_block(store, block_id(content[65536:131072]))
        damage_block(store, block_id(TEXT[:65536]))
        done = run_script(store, target, code=1)
        assert "file: bytes 65536 to 131071 are not restored" in done.stderr
        assert "text: bytes 0 to 65535 are not restored" in done.stderr
        assert "NOT complete: 2 problems" in done.stdout
        assert (target / "file").read_bytes() == content[:65536] + bytes(65536) + content[131072:]
        assert (target / "text").read_bytes() == bytes(65536) + TEXT[65536:]
        assert (target / "other").read_bytes() == b"other" * 100
        assert (target / "other").stat().st_mtime_ns == meta().mtime_ns != (target / "file").stat().st_mtime_ns


@pytest.mark.parametrize("which", [0, 1])
def test_a_block_that_is_stored_twice_comes_from_the_frame_that_is_whole(tmp_path: Path, which: int) -> None:
    """After a repair the later one, and the earlier one when it is the later one that rots."""
    archive = open_archive(tmp_path / "store")
    primary = Primary(archive)
    [name] = primary.send(b"content")
    archive.doubt([name])
    primary.send(b"content")
    primary.record(Put(b"", Kind.DIRECTORY, meta()), Put(b"f", Kind.FILE, meta(), 7, 1, 65536, 0, b"", 0, (0,), name))
    primary.seal(1)
    archive.close()
    data = segment(tmp_path / "store").read_bytes()
    first = data.index(b"content")
    flip(segment(tmp_path / "store"), (first, data.index(b"content", first + 1))[which])
    run_script(tmp_path / "store", tmp_path / "to")
    assert (tmp_path / "to" / "f").read_bytes() == b"content"


def a_store(directory: Path, seed: int) -> dict[str, bytes]:
    """A store of several segments and three snapshots; what the last one holds."""
    choose = random.Random(seed)
    with Writer(directory) as writer:
        writer.put(b"")
        held: dict[str, bytes] = {}
        for number in (1, 2, 3):
            for name in choose.sample("abcdefgh", 5):
                held[name] = choose.randbytes(choose.randrange(200_000)) if choose.random() < 0.7 else b"text " * 20_000
                writer.put(name.encode(), held[name])
            writer.seal(number, number * 10**18)
    return held


@pytest.mark.parametrize("harm", list(Harm))
def test_whatever_is_damaged_no_wrong_byte_is_passed_off(
    harm: Harm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 0 means that all is there and right. Else each file is right, or its damage is named."""
    monkeypatch.setattr(store_module, "SEGMENT_BYTES", SMALL)
    for seed in range(4):
        store, target = tmp_path / f"store {seed}", tmp_path / f"to {seed}"
        held = a_store(store, seed)
        try:
            Shelf(store).harm(harm, seed)
        except CannotRot:
            continue
        done = subprocess.run(
            [sys.executable, "-I", "-S", str(PACKAGED), str(store), str(target)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode in (0, 1) and "Traceback" not in done.stderr, done.stderr
        found = {path.name: path for path in target.iterdir()}
        if done.returncode == 0:
            assert {name: path.read_bytes() for name, path in found.items()} == held, done.stderr
        elif "pieces of the record" not in done.stderr and "snapshot 3" in done.stdout:
            assert set(found) == set(held)
            for name, path in found.items():
                assert f"{name}: bytes" in done.stderr or path.read_bytes() == held[name]


def test_a_missing_segment_costs_what_was_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each range that it held is named; everything else is right."""
    monkeypatch.setattr(store_module, "SEGMENT_BYTES", SMALL)
    held = {f"file-{n}": random.Random(n).randbytes(50_000) for n in range(6)}
    with Writer(tmp_path / "store") as writer:
        writer.put(b"")
        for name, content in held.items():
            writer.put(name.encode(), content)
        writer.seal()
    segment(tmp_path / "store", 2).unlink()
    done = run_script(tmp_path / "store", tmp_path / "to", code=1)
    assert "segment 2 at byte 0: the segment is missing" in done.stderr
    lost = {name for name in held if f"{name}: bytes 0 to 49999 are not restored" in done.stderr}
    assert 0 < len(lost) < len(held)
    assert all((tmp_path / "to" / name).read_bytes() == held[name] for name in held if name not in lost)


def test_a_torn_end_is_no_damage_and_anything_else_behind_the_last_snapshot_is(tmp_path: Path) -> None:
    """A write that a crash cut short was never acknowledged; other bytes there may have been a newer snapshot."""
    for tail, code in ((fmt.encode_plain(FrameType.BLOCK, b"x" * 5000)[:3000], 0), (b"\xff" * 5000, 1)):
        directory = tmp_path / f"store {code}"
        a_store(directory, 1)
        with segment(directory).open("ab") as file:
            file.write(tail)
        done = run_script(directory, tmp_path / f"to {code}", code=code)
        assert ("cut short" if code == 0 else "was there a newer one?") in done.stderr


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # the script leaves closing its files to the interpreter
def test_an_end_that_the_disk_does_not_give_is_not_taken_for_a_torn_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bad sector where the newest snapshot's commit stands: something is missing there, and that is a problem."""
    with Writer(tmp_path / "store") as writer:
        writer.put(b"")
        writer.put(b"a", TEXT)
        writer.seal(1)
        end = segment(tmp_path / "store").stat().st_size
        writer.put(b"b", TEXT[:5000])
        writer.seal(2)
    real = os.pread

    def pread(fd: int, size: int, at: int) -> bytes:
        if at + size > end:
            raise OSError(5, "Input/output error")
        return real(fd, size, at)

    monkeypatch.setattr(rescue.os, "pread", pread)
    store = rescue.Store(str(tmp_path / "store"))
    store.workers.shutdown()
    assert [one.number for one in store.snapshots] == [1]
    assert store.gaps and max(store.gaps) > store.last_commit, "which is what makes it a problem"


def test_a_newest_segment_that_is_missing_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A segment is sealed when the next one is begun: a copy of a store without its end does not look complete."""
    monkeypatch.setattr(store_module, "SEGMENT_BYTES", SMALL)
    with Writer(tmp_path / "store") as writer:
        writer.put(b"")
        writer.put(b"a", random.Random(1).randbytes(50_000))
        writer.seal(1)
        for number in range(3):
            writer.put(b"b%d" % number, random.Random(number + 2).randbytes(50_000))
        writer.seal(2)
    segments = sorted((tmp_path / "store" / "segments").iterdir())
    assert len(segments) > 2
    assert "snapshot 2" in run_script(tmp_path / "store", tmp_path / "whole").stdout
    for path in segments[2:]:
        path.unlink()
    done = run_script(tmp_path / "store", tmp_path / "cut", code=1)
    assert "the segment that followed is missing" in done.stderr and "was there a newer one?" in done.stderr


@pytest.mark.parametrize(("left", "code"), [(0, 1), (10, 1), (-1, 1), (4096, 0)])
def test_a_newest_segment_without_its_header_is_as_good_as_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: int, code: int
) -> None:
    """Behind a seal there was something; one that ends later, in the middle of a frame, is what a crash leaves."""
    monkeypatch.setattr(store_module, "SEGMENT_BYTES", SMALL)
    with Writer(tmp_path / "store") as writer:
        writer.put(b"")
        for number, names in ((1, "abc"), (2, "ab")):
            for name in names:
                writer.put(name.encode(), random.Random(f"{name}{number}").randbytes(50_000))
            writer.seal(number)
    newest = max((tmp_path / "store" / "segments").iterdir())
    data = newest.read_bytes()
    assert len(data) > 50_000
    newest.write_bytes(data[:left] if left >= 0 else bytes(4096))
    done = run_script(tmp_path / "store", tmp_path / "to", code=code)
    assert ("was there a newer one?" in done.stderr) == bool(code) and "snapshot 1" in done.stdout
    assert code or "a write that a crash cut short" in done.stderr


def test_a_segment_that_was_laid_anew_serves_as_the_old_one_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A repair of the store's structure leaves a store that the script reads."""
    monkeypatch.setattr(store_module, "SEGMENT_BYTES", SMALL)
    held = a_store(tmp_path / "store", 3)
    Shelf(tmp_path / "store").harm(Harm.RECORD, 1)
    assert "pieces of the record" in run_script(tmp_path / "store", tmp_path / "before", code=1).stderr
    archive = open_archive(tmp_path / "store", create=False)
    for number in range(1, archive.checkpoint.segment + 1):
        lay_segment(archive, Disk(), Quarantine(tmp_path / "store", Disk()), number)
    archive.close()
    run_script(tmp_path / "store", tmp_path / "to")
    assert {path.name: path.read_bytes() for path in (tmp_path / "to").iterdir()} == held


# hostile stores


def hostile_store(directory: Path, *ops: Op) -> None:
    """A store with a record that no replica would take in."""
    plain = encode_ops([Put(b"", Kind.DIRECTORY, meta(0o755)), *ops])
    record = fmt.encode_plain(FrameType.RECORD, plain)
    commit = Commit(1, 10**18, True, bytes(32), 1, block_id(block_id(plain)), 1, 0)
    header = fmt.SegmentHeader(1, bytes(16), 1, "ams1", "www", 0, fmt.NO_DIGEST)
    data = fmt.encode_segment_header(header) + record
    data += fmt.encode_plain(FrameType.COMMIT, msgspec.msgpack.encode(commit))
    (directory / "segments").mkdir(parents=True)
    segment(directory).write_bytes(data + fmt.encode_pad(len(data), 1))


@pytest.mark.parametrize("path", [b"../out", b"/tmp/out", b"a/../../out", b".", b"a//b", b"nul\0"])
def test_a_path_that_leads_out_of_the_target_is_refused_and_named(tmp_path: Path, path: bytes) -> None:
    """Everything else comes back."""
    hostile_store(tmp_path / "store", Put(path, Kind.SYMLINK, meta(), target=b"x"), Put(b"z", Kind.FIFO, meta()))
    before = set(tmp_path.iterdir())
    assert "refused: an entry at" in run_script(tmp_path / "store", tmp_path / "to", code=1).stderr
    assert os.listdir(tmp_path / "to") == ["z"] and set(tmp_path.iterdir()) == {*before, tmp_path / "to"}


def test_a_symlink_in_the_way_is_not_followed(tmp_path: Path) -> None:
    """A record that puts a file below a symlink reaches nothing outside."""
    (tmp_path / "outside").mkdir()
    link = Put(b"a", Kind.SYMLINK, meta(), target=bytes(tmp_path / "outside"))
    files = [Put(path, Kind.FILE, meta(), 0, number, 65536) for number, path in enumerate((b"a/new", b"b"), 1)]
    hostile_store(tmp_path / "store", link, *files)
    assert "a/new: cannot be made" in run_script(tmp_path / "store", tmp_path / "to", code=1).stderr
    assert os.listdir(tmp_path / "outside") == [] and (tmp_path / "to" / "b").exists()


def test_frames_in_a_file_s_content_are_not_taken_for_the_store_s_own(tmp_path: Path) -> None:
    """A dataset that is a store itself, with a damaged header in front of it: its records are content, not record."""
    hostile_store(tmp_path / "inner", Put(b"intruder", Kind.FIFO, meta()))
    content = segment(tmp_path / "inner").read_bytes() * 3
    with Writer(tmp_path / "store", level=0) as writer:
        writer.put(b"")
        writer.put(b"store", content)
        writer.put(b"other", b"other")
        writer.seal()
    flip(segment(tmp_path / "store"), segment(tmp_path / "store").read_bytes().index(block_id(content)) - 30)
    assert "store: bytes 0 to" in run_script(tmp_path / "store", tmp_path / "to", code=1).stderr
    assert sorted(os.listdir(tmp_path / "to")) == ["other", "store"]


# held to the format


def test_a_record_between_two_damages_counts_by_its_commit(tmp_path: Path) -> None:
    """Nothing leads from it to a pad of ours, and the digest of the commit behind it names it all the same: for the
    script and for a catalog made anew. A record of a store in a damaged file's content is named by none."""
    directory = tmp_path / "ams1" / "www"
    archive_tree(tmp_path / "other", _one_file(tmp_path / "tree"))
    foreign = segment(tmp_path / "other").read_bytes()
    archive = open_archive(directory)
    primary = Primary(archive)
    data = [random.Random(i).randbytes(3000) for i in range(2)]
    ids = primary.send(foreign[: len(foreign) - 100])
    primary.record(directory_put(b""), file_put(b"store", 7, {0: ids[0]}))
    primary.send(*data)
    primary.record(file_put(b"kept", 8, {0: block_id(data[0])}), file_put(b"too", 9, {0: block_id(data[1])}))
    primary.seal(1)
    archive.close()
    file = segment(directory)
    for name in (ids[0], block_id(data[0])):  # a bad header says nothing about where the next frame begins
        at = file.read_bytes().index(name) - 32
        for byte in range(HEADER_BYTES):
            flip(file, at + byte, 3)
    (directory / "catalog.db").unlink()
    rebuild_catalog(directory)
    assert set(trees(directory)[1]) == {b"", b"kept", b"too", b"store"}
    done = run_script(directory, tmp_path / "back", code=1)
    assert set(os.listdir(tmp_path / "back")) == {"kept", "too", "store"}, done.stderr
    assert "of the record" not in done.stderr and "too:" not in done.stderr
    reader = ArchiveReader(directory)
    assert reader.snapshots()[0].lost == 0
    reader.close()


def _one_file(root: Path) -> Path:
    root.mkdir()
    (root / "elsewhere").write_bytes(b"of another store")
    return root


def test_the_script_is_held_to_the_format() -> None:
    """Versions, types, limits and the order of fields: a change of the format must change the script."""
    assert rescue.VERSION == fmt.VERSION and rescue.HEAD_BYTES == fmt.HEADER_BYTES
    types = {name: getattr(rescue, name) for name in FrameType.__members__}
    assert types == {kind.name: int(kind) for kind in FrameType}
    assert {FrameType(kind): size for kind, size in rescue.LARGEST.items()} == fmt._MAX_PLAIN
    assert len(rescue.KINDS) == len(Kind) + 1 and set(rescue.NODES) == {4, 5, 6, 7}
    put = Put(b"p", Kind.FILE, meta(), 1, 2, 3, 4, b"t", 5, (6,), bytes(32), ((7, 1),))
    known = meta()
    assert rescue.unpacked(encode_ops([put]))[0] == [
        [
            1,
            b"p",
            1,
            [known.mode, known.uid, known.gid, known.mtime_ns, []],
            1,
            2,
            3,
            4,
            b"t",
            5,
            [6],
            bytes(32),
            [[7, 1]],
        ]
    ]
    assert len(rescue.PUT) == 13 and Map.__struct_fields__ == ("file", "blocks", "ids", "zeros")
    assert Commit.__struct_fields__ == (
        "number", "created_ns", "complete", "parent", "records", "records_digest", "entries", "size", "unread",
        "order",
    )  # fmt: skip
    assert fmt.SegmentHeader.__struct_fields__[:5] == ("version", "store", "number", "client", "dataset")


def test_golden_bytes(tmp_path: Path) -> None:
    """A store of one file in 4,096 fixed bytes: who changes the format changes this too."""
    golden = bytes.fromhex(GOLDEN)
    (tmp_path / "store" / "segments").mkdir(parents=True)
    segment(tmp_path / "store").write_bytes(golden + bytes(4096 - len(golden)))
    done = run_script(tmp_path / "store", tmp_path / "to", code=0 if os.geteuid() == 0 else 1)
    assert (tmp_path / "to" / "file").read_bytes() == b"hello, replica\n"
    assert "ams1/www: snapshot 3" in done.stdout
    assert (tmp_path / "to" / "file").stat().st_mtime_ns == 1_600_000_000_123_456_789


GOLDEN = """
    525044318baa3b777124630a47fe4f3e31d2cbaa010000003900000039000000206ce3c7ed750fcb07eeb4074f6b459a2515cfca41573d55
    f34ba0748f6bb1ea9701c410000102030405060708090a0b0c0d0e0f01a4616d7331a3777777cf18fae27693b40000c41000000000000000
    00000000000000000052504431897fd6ef451d1a8e98ae90656096b53b020000000f0000000f000000d72070b21a295883b8296c192aecbf
    97e708b8a32d080d3b8d13904c828623c468656c6c6f2c207265706c6963610a52504431d6d67d93152291035794c33e308f030403000000
    6a0000006a00000091a8dad3db4bdcdf5f9d7781c86f5606524f1e386ae3853307b63386ab94b435929d01c4000295cd01a40000cf163457
    85dffbcd159000000000c4000090c400909d01c40466696c650195cd01a40000cf16345785dffbcd15900f02ce0001000000c400009100c4
    20d72070b21a295883b8296c192aecbf97e708b8a32d080d3b8d13904c828623c49052504431faca4b88b86d2062c9cdcb2c8e320deb0400
    000054000000540000007d2c1d3bb6a58d62510b894803f308b4333bf632333fe768380ac420ec9f50549903cf0de0b6b3a7640000c3c420
    000000000000000000000000000000000000000000000000000000000000000001c4208ee6bb27a440828b28735bfcf80c455dfcc8d43c9a
    ab2cd62f8d1e9ae00eedb6020f005250443170a5b6c71f47036f4e4fd6708307ab6f06000000ba0d0000ba0d000000ca4ecf76e2fa18
"""


@given(st.lists(groups([bytes([n]) * 32 for n in range(200)]), max_size=30))
def test_any_operations_are_decoded_as_they_were_encoded(changes: list[list[Op]]) -> None:
    """Its own msgpack decoder against the real one."""
    data = encode_ops([op for change in changes for op in change])
    assert rescue.unpacked(data) == (msgspec.msgpack.decode(data), len(data))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.binary(max_size=70_000) | st.text(max_size=60),
    lambda below: st.lists(below, max_size=20),
)


@settings(max_examples=200)
@given(VALUES)
def test_any_value_is_decoded_as_it_was_encoded(value: object) -> None:
    """Every width of every type that a record may have."""
    data = msgspec.msgpack.encode(value)
    assert rescue.unpacked(data) == (value, len(data))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=5000) | st.integers(0, 40).map(lambda n: b"z" * (1024 * n + n % 3)), min_size=1))
def test_its_blake3_is_blake3(payloads: list[bytes]) -> None:
    """Of many payloads side by side, of every length around the edges of pieces and of blocks."""
    payloads = [*payloads, b"", b"a" * 64, b"b" * 65, b"c" * 1024, b"d" * 1025]
    assert rescue.blake3(payloads) == [block_id(data) for data in payloads]


def test_its_blake3_of_a_largest_block() -> None:
    """1 MiB, the most that a block has."""
    data = random.Random(2).randbytes(1 << 20)
    assert rescue.blake3([data]) == [block_id(data)]


# in the store


def test_a_store_carries_the_script_as_it_is_packaged_and_what_to_type(tmp_path: Path) -> None:
    """Missing or other text is replaced; run from there it needs no store's name."""
    a_store(tmp_path / "store", 1)
    (tmp_path / "store" / SCRIPT).write_bytes(b"of another release")
    leave_rescue_kit(tmp_path / "store", "ams1", "www", Disk())
    assert (tmp_path / "store" / SCRIPT).read_bytes() == PACKAGED.read_bytes() == packaged_script()
    readme = (tmp_path / "store" / README).read_text()
    assert "dataset www of the host ams1" in readme and "python3 rescue.py TARGET" in readme
    run_script(tmp_path / "to", script=tmp_path / "store" / SCRIPT)
    before = (tmp_path / "store" / SCRIPT).stat().st_mtime_ns
    leave_rescue_kit(tmp_path / "store", "ams1", "www", Disk())
    assert (tmp_path / "store" / SCRIPT).stat().st_mtime_ns == before


def test_a_kit_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    """A full disk, something else in its place, no directory: the store is as good without it."""

    class Full(Disk):
        def pwrite(self, fd: int, data: object, offset: int) -> int:
            raise OSError(28, "No space left on device")

    (tmp_path / README).mkdir()
    leave_rescue_kit(tmp_path, "ams1", "www", Full())
    leave_rescue_kit(tmp_path / "none", "ams1", "www", Disk())
    assert not (tmp_path / SCRIPT).exists() and not (tmp_path / "none").exists()
