"""The walk: what differs from the ledger, and nothing that could not be seen taken for a deletion."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kit_source import KnownTree, changed_paths, gone_paths, survey, trouble_reasons
from kit_tree import as_nobody, build_tree, describe_tree, is_root, make_deep
from replicad.model.entry import Kind
from replicad.model.errors import SourceError
from replicad.source import scan
from replicad.source.exclude import Excluded
from replicad.source.root import MAX_OPEN, Root, Trail, root_identity
from replicad.source.scan import Comparer, walk


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    for name in ("a/one", "a/two", "a/b/three", "c/four"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


@pytest.fixture
def open_tree() -> Iterator[Path]:
    """A tree that everybody can reach."""
    top = Path(tempfile.mkdtemp(prefix="replicad-test-"))
    top.chmod(0o755)
    (top / "closed" / "below").mkdir(parents=True)
    (top / "closed" / "below" / "file").write_text("x")
    (top / "open").mkdir()
    (top / "open" / "file").write_text("x")
    yield top
    (top / "closed").chmod(0o755)
    shutil.rmtree(top)


def known_after(root: Path, **options: Any) -> KnownTree:
    known = KnownTree()
    survey(os.fsencode(root), known, **options)
    return known


def test_every_kind_of_entry_is_found_with_its_status(tmp_path: Path) -> None:
    """A first walk names each entry of a tree with everything in it, with what lstat says of it."""
    build_tree(tmp_path / "tree")
    known = known_after(tmp_path / "tree")
    described = describe_tree(tmp_path / "tree", content=False)
    assert set(known.stamps) == set(described)
    kinds = {stat.S_IFREG: Kind.FILE, stat.S_IFDIR: Kind.DIRECTORY, stat.S_IFLNK: Kind.SYMLINK,
             stat.S_IFIFO: Kind.FIFO, stat.S_IFCHR: Kind.CHARACTER_DEVICE, stat.S_IFBLK: Kind.BLOCK_DEVICE,
             stat.S_IFSOCK: Kind.SOCKET}  # fmt: skip
    for path, stamp in known.stamps.items():
        entry = described[path]
        assert (kinds[entry["type"]], entry["mode"], entry["owner"], entry["mtime_ns"]) == (
            stamp.kind, stamp.mode, (stamp.uid, stamp.gid), stamp.mtime_ns
        )  # fmt: skip
        assert stamp.device == 0
        assert stamp.kind != Kind.FILE or stamp.size == entry["size"]


def test_an_unchanged_tree_has_no_differences_and_is_counted(tmp_path: Path) -> None:
    """A second walk reports every entry as unchanged, with the sum of the file sizes."""
    build_tree(tmp_path / "tree")
    known = known_after(tmp_path / "tree")
    diffs = survey(os.fsencode(tmp_path / "tree"), known)
    assert not changed_paths(diffs) and not gone_paths(diffs) and not trouble_reasons(diffs)
    assert sum(diff.unchanged for diff in diffs) == len(known.stamps)
    sizes = sum(stamp.size for stamp in known.stamps.values() if stamp.kind == Kind.FILE)
    assert sum(diff.unchanged_bytes for diff in diffs) == sizes


def _rewrite_with_old_times(path: Path) -> None:
    before = path.stat()
    path.write_text("ONE")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_text(path.read_text())
    other.rename(path)


CHANGES = {
    "content": lambda path: path.write_text("longer than before"),
    "content under the old times": _rewrite_with_old_times,
    "mode": lambda path: path.chmod(0o600),
    "extended attribute": lambda path: os.setxattr(path, "user.x", b"1"),
    "times": lambda path: os.utime(path, ns=(1, 1)),
    "another file of that name": _replace,
    "hard link": lambda path: os.link(path, path.with_name("linked")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_each_kind_of_change_of_a_file_is_found(tree: Path, change: str) -> None:
    """Whatever is done to a file, its entry differs afterwards, with what was known of it."""
    known = known_after(tree)
    before = known.stamps[b"a/one"]
    CHANGES[change](tree / "a" / "one")
    found = {f.path: f for diff in survey(os.fsencode(tree), known) for f in diff.changed}
    assert found[b"a/one"].known == before != found[b"a/one"].stamp
    assert b"a/two" not in found


def test_new_and_gone_entries_are_told_apart(tree: Path) -> None:
    """New names are found without anything known; missing names are gone, of a directory only itself."""
    known = known_after(tree)
    (tree / "new").mkdir()
    (tree / "new" / "file").touch()
    (tree / "a" / "two").unlink()
    shutil.rmtree(tree / "c")
    diffs = survey(os.fsencode(tree), known)
    new = {f.path for diff in diffs for f in diff.changed if f.known is None}
    assert new == {b"new", b"new/file"}
    assert {(g.path, g.stamp.kind) for diff in diffs for g in diff.gone} == {
        (b"a/two", Kind.FILE), (b"c", Kind.DIRECTORY)
    }  # fmt: skip


def test_a_directory_that_became_a_file_is_gone_and_new(tree: Path) -> None:
    """A path that was a directory and is a file now stands in both lists, and its descendants go with it."""
    known = known_after(tree)
    shutil.rmtree(tree / "a")
    (tree / "a").write_text("file")
    diffs = survey(os.fsencode(tree), known)
    assert b"a" in gone_paths(diffs) and b"a" in changed_paths(diffs)
    assert set(known.stamps) == set(describe_tree(tree))


def test_symlinks_are_entries_and_never_followed(tree: Path) -> None:
    """A symlink to a directory is one entry; what it points to is not walked."""
    (tree / "link").symlink_to("a")
    (tree / "up").symlink_to("..")
    known = known_after(tree)
    assert known.stamps[b"link"].kind == known.stamps[b"up"].kind == Kind.SYMLINK
    assert not [path for path in known.stamps if path.startswith((b"link/", b"up/"))]


def test_a_directory_swapped_for_a_symlink_meanwhile_does_not_lead_outside(tree: Path, tmp_path: Path) -> None:
    """Between seeing a directory and entering it somebody makes it a symlink: nothing outside the tree is listed."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("x")
    known = known_after(tree)
    with Root(os.fsencode(tree)) as root:
        walking = walk(root, known)
        diffs = [next(walking), next(walking)]
        for name in ("a", "c"):
            shutil.rmtree(tree / name)
            (tree / name).symlink_to(outside)
        diffs += walking
    assert {trouble.path for diff in diffs for trouble in diff.troubles if trouble.vanished} == {b"a", b"c"}
    assert not changed_paths(diffs) and not gone_paths(diffs)


def test_what_lies_below_an_unreadable_directory_stays_known(open_tree: Path) -> None:
    """A directory that may not be listed is a trouble; its known entries are not gone."""
    known = known_after(open_tree)
    (open_tree / "closed").chmod(0o700)
    (open_tree / "open" / "file").unlink()
    if is_root():
        os.chown(open_tree / "closed", 0, 0)
    else:
        (open_tree / "closed").chmod(0)
    with as_nobody():
        diffs = survey(os.fsencode(open_tree), known)
    assert trouble_reasons(diffs) == {b"closed": "directory cannot be opened: Permission denied"}
    assert gone_paths(diffs) == {b"open/file"}
    assert b"closed/below/file" in known.stamps


class BrokenListing:
    """os.scandir's result that fails after some entries."""

    def __init__(self, entries: list[Any], error: OSError) -> None:
        self._entries, self._error = entries, error

    def __enter__(self) -> BrokenListing:
        return self

    def __exit__(self, *of: object) -> None:
        pass

    def __iter__(self) -> Iterator[Any]:
        yield from self._entries
        raise self._error


class WholeListing:
    """os.scandir's result with entries of a test's own."""

    def __init__(self, entries: list[Any]) -> None:
        self._entries = iter(entries)

    def __enter__(self) -> WholeListing:
        return self

    def __exit__(self, *of: object) -> None:
        pass

    def __iter__(self) -> Iterator[Any]:
        return self._entries


class BrokenEntry:
    """A directory entry whose status cannot be read."""

    def __init__(self, name: str, error: OSError) -> None:
        self.name, self._error = name, error

    def stat(self, *, follow_symlinks: bool) -> os.stat_result:
        raise self._error


def _break_listing_of(monkeypatch: pytest.MonkeyPatch, inode: int, broken: object) -> None:
    real = os.scandir
    monkeypatch.setattr(os, "scandir", lambda fd: broken if os.fstat(fd).st_ino == inode else real(fd))


def test_an_io_error_while_listing_is_no_deletion(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory whose listing breaks off keeps all its known entries."""
    known = known_after(tree)
    broken = BrokenListing([], OSError(errno.EIO, os.strerror(errno.EIO)))
    _break_listing_of(monkeypatch, (tree / "a").stat().st_ino, broken)
    diffs = survey(os.fsencode(tree), known)
    assert trouble_reasons(diffs) == {b"a": "directory cannot be listed: Input/output error"}
    assert not gone_paths(diffs)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOENT, errno.EACCES])
def test_an_entry_whose_status_cannot_be_read_is_no_deletion(
    tree: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """An entry that is listed but cannot be looked at, also because it vanished just now, stays known."""
    known = known_after(tree)
    error = OSError(number, os.strerror(number))

    with os.scandir(tree / "a") as real:
        entries = [e if e.name != "one" else BrokenEntry("one", error) for e in real]
    _break_listing_of(monkeypatch, (tree / "a").stat().st_ino, WholeListing(entries))
    diffs = survey(os.fsencode(tree), known)
    assert [(t.path, t.vanished) for d in diffs for t in d.troubles] == [(b"a/one", number == errno.ENOENT)]
    assert not gone_paths(diffs)


class FarEntry:
    """An entry of a file system whose numbers need all their bits."""

    def __init__(self, entry: os.DirEntry[str]) -> None:
        self.name, self._entry = entry.name, entry

    def stat(self, *, follow_symlinks: bool) -> SimpleNamespace:
        status = self._entry.stat(follow_symlinks=follow_symlinks)
        fields = {name: getattr(status, name) for name in dir(status) if name.startswith("st_")}
        far = {"st_ino": 2**64 - status.st_ino, "st_mtime_ns": 2**80, "st_ctime_ns": -(2**80)}
        return SimpleNamespace(**fields | far)


def test_numbers_that_no_book_holds_change_nothing(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large inode numbers, times before 1677 and after 2262: they are recorded as what fits, and nothing counts as
    changed, or as a new directory to descend into, because of them."""
    real, paths = os.scandir, set(describe_tree(tree))
    monkeypatch.setattr(os, "scandir", lambda fd: WholeListing(list(map(FarEntry, real(fd)))))
    known = known_after(tree)
    assert set(known.stamps) == paths
    for path in known.stamps.keys() - {b""}:
        inode = os.lstat(os.fsencode(tree) + b"/" + path).st_ino
        assert known.stamps[path][5:] == (-inode, known.stamps[path].size, 2**63 - 1, 1 - 2**63)
    assert not changed_paths(survey(os.fsencode(tree), known))
    known.asked.clear()
    assert not changed_paths(survey(os.fsencode(tree), known, only=[b""])) and known.asked == [b""]


class PartialListing:
    """os.scandir's result without one name."""

    def __init__(self, directory: Path, without: str) -> None:
        with os.scandir(directory) as real:
            self._entries = [entry for entry in real if entry.name != without]

    def __enter__(self) -> PartialListing:
        return self

    def __exit__(self, *of: object) -> None:
        pass

    def __iter__(self) -> Iterator[Any]:
        return iter(self._entries)


def test_an_entry_that_a_listing_passed_over_is_no_deletion(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name missing in the listing, as may happen when it is renamed just then, is looked for before it is gone."""
    known = known_after(tree)
    _break_listing_of(monkeypatch, (tree / "a").stat().st_ino, PartialListing(tree / "a", "one"))
    diffs = survey(os.fsencode(tree), known)
    assert trouble_reasons(diffs) == {b"a/one": "was renamed during the pass"} and not gone_paths(diffs)


def test_a_name_that_is_found_but_listed_never_is_gone(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that ignores case still finds the old spelling of a renamed file: the listings decide."""
    known = known_after(tree)
    _break_listing_of(monkeypatch, (tree / "a").stat().st_ino, PartialListing(tree / "a", "one"))
    monkeypatch.setattr(os, "listdir", lambda fd: ["ONE", "two", "b"])
    assert gone_paths(survey(os.fsencode(tree), known)) == {b"a/one"}


def test_a_root_that_cannot_be_listed_ends_the_walk(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No tree at all is an error, never an empty tree."""
    known = known_after(tree)
    broken = BrokenListing([], OSError(errno.EIO, os.strerror(errno.EIO)))
    _break_listing_of(monkeypatch, tree.stat().st_ino, broken)
    with pytest.raises(SourceError, match="Input/output error"):
        survey(os.fsencode(tree), known)


@pytest.mark.parametrize("make", [lambda p: None, lambda p: p.write_text("x"), lambda p: p.symlink_to("nowhere")])
def test_a_root_that_is_no_directory_is_refused(tmp_path: Path, make: Any) -> None:
    """A missing root, a file and a dangling symlink are SourceErrors that name the path."""
    make(tmp_path / "root")
    with pytest.raises(SourceError, match="root") as raised:
        root_identity(os.fsencode(tmp_path / "root"))
    assert "mounted" in raised.value.hint


def test_a_root_that_was_replaced_during_the_walk_is_an_error(tree: Path) -> None:
    """A root that is removed while it is walked looks empty; that ends in an error after the last diff."""
    known = known_after(tree)
    with Root(os.fsencode(tree)) as root:
        shutil.rmtree(tree)
        tree.mkdir()
        with pytest.raises(SourceError, match="replaced"):
            list(walk(root, known))


def test_the_identity_of_a_root_is_its_inode_and_file_system(tree: Path) -> None:
    """The same directory has the same identity each time, another directory of that name has another one."""
    first = root_identity(os.fsencode(tree))
    assert first == root_identity(os.fsencode(tree))
    tree.rename(tree.with_name("kept"))
    tree.mkdir()
    assert first != root_identity(os.fsencode(tree))


def test_excluded_paths_are_not_walked_and_are_gone_if_known(tree: Path) -> None:
    """A pattern that is added later makes what it covers gone; directories it covers are not even listed."""
    known = known_after(tree)
    known.asked.clear()
    diffs = survey(os.fsencode(tree), known, excluded=Excluded(["/a/b/", "fo*"]))
    assert gone_paths(diffs) == {b"a/b", b"c/four"}
    assert b"a/b" not in known.asked
    assert not changed_paths(survey(os.fsencode(tree), known, excluded=Excluded(["/a/b/", "fo*"])))


@pytest.fixture
def mounted(tree: Path) -> Iterator[Path]:
    """A tree with another file system mounted at a/b, over what stood there."""
    if not is_root() or subprocess.run(["mount", "-t", "tmpfs", "none", tree / "a/b"], check=False).returncode:
        pytest.skip("file systems cannot be mounted here")
    try:
        (tree / "a/b/mounted").write_text("x")
        yield tree
    finally:
        subprocess.run(["umount", tree / "a/b"], check=True)


def test_a_mount_point_is_an_entry_but_is_not_crossed(mounted: Path) -> None:
    """With one file system, the mount point is kept and what was known below it is gone."""
    known = KnownTree()
    survey(os.fsencode(mounted), known)
    assert b"a/b" in known.stamps and b"a/b/mounted" not in known.stamps
    assert known.stamps[b"a/b"].device != 0
    known.put(b"a/b/three", known.stamps[b"a/one"])
    assert gone_paths(survey(os.fsencode(mounted), known)) == {b"a/b/three"}
    assert gone_paths(survey(os.fsencode(mounted), known, only=[b"a/b"])) == set()


def test_whoever_shares_a_walk_is_stopped_by_no_mount_that_appears(mounted: Path) -> None:
    """A directory that became a mount point after it was given away is compared with nothing, and the others are."""
    known = known_after(mounted)
    (mounted / "c" / "four").unlink()
    with Root(os.fsencode(mounted)) as root:
        compared = Comparer(root, known, Excluded([]), one_filesystem=True).compare([b"a/b", b"c"])
    assert gone_paths(compared.diffs) == {b"c/four"} and not compared.left


def test_a_mount_point_is_crossed_on_demand(mounted: Path) -> None:
    """Without that limit the other file system's entries are walked, marked with its own number."""
    known = known_after(mounted, one_filesystem=False)
    assert known.stamps[b"a/b/mounted"].device == known.stamps[b"a/b"].device != 0
    assert not changed_paths(survey(os.fsencode(mounted), known, one_filesystem=False))


def test_a_hinted_walk_sees_that_directory_alone(tree: Path) -> None:
    """Only the hinted directory is compared, with its own entry, whose times moved as well."""
    known = known_after(tree)
    (tree / "a" / "b" / "new").touch()
    (tree / "c" / "four").unlink()
    diffs = survey(os.fsencode(tree), known, only=[b"a/b"])
    assert changed_paths(diffs) == {b"a/b", b"a/b/new"} and not gone_paths(diffs)
    assert gone_paths(survey(os.fsencode(tree), known, only=[b"c"])) == {b"c/four"}
    assert not changed_paths(survey(os.fsencode(tree), known))


def test_a_hinted_walk_descends_into_what_is_new(tree: Path) -> None:
    """New directories below a hinted one, and one that replaced another, are walked to the end."""
    known = known_after(tree)
    (tree / "a" / "x" / "y").mkdir(parents=True)
    (tree / "a" / "x" / "y" / "z").touch()
    (tree / "a" / "b").rename(tree / "old-b")
    (tree / "a" / "b").mkdir()
    (tree / "a" / "b" / "other").touch()
    diffs = survey(os.fsencode(tree), known, only=[b"", b"a"])
    assert set(known.stamps) == set(describe_tree(tree))
    assert gone_paths(diffs) == {b"a/b/three"}


def test_a_hinted_walk_sees_what_came_into_a_directory_before_it_was_watched(tree: Path) -> None:
    """An empty directory that was made anew and has its old inode again is told by a hint of the one above alone; what
    was written into it before the kernel watched it is found, and once, whatever other hints lead there."""
    (tree / "a" / "empty" / "inner").mkdir(parents=True)
    known = known_after(tree)
    (tree / "a" / "empty" / "early").touch()
    (tree / "a" / "empty" / "inner" / "later").touch()
    hints = [b"a", b"a/empty/inner/gone/deep"]
    diffs = survey(os.fsencode(tree), known, only=hints)
    paths = [found.path for diff in diffs for found in diff.changed]
    assert sorted(paths) == [
        b"a/empty", b"a/empty/early", b"a/empty/inner", b"a/empty/inner/later",
    ]  # fmt: skip


@pytest.mark.parametrize("hint", [b"a/b/not/there", b"a/b/three", b"a/b/three/below", b"a/b/new"])
def test_a_hint_that_is_no_known_directory_leads_to_the_one_above(tree: Path, hint: bytes) -> None:
    """A hinted path that is missing, a file, or unknown yet makes the walk start at the nearest known directory."""
    known = known_after(tree)
    (tree / "a" / "b" / "new").mkdir()
    (tree / "a" / "b" / "new" / "file").touch()
    assert {b"a/b/new", b"a/b/new/file"} <= changed_paths(survey(os.fsencode(tree), known, only=[hint]))


def test_hints_on_an_unknown_tree_walk_all_of_it(tree: Path) -> None:
    """With nothing known yet, any hint ends at the root and so in a whole walk."""
    known = known_after(tree, only=[b"a/b"])
    assert set(known.stamps) == set(describe_tree(tree))


def test_hints_below_excluded_directories_are_ignored(tree: Path) -> None:
    """What is excluded is not walked, not by a hint either."""
    known = KnownTree()
    assert survey(os.fsencode(tree), known, excluded=Excluded(["/a/"]), only=[b"a/b", b"a"]) == []


def test_a_path_that_is_too_long_is_a_trouble(tmp_path: Path) -> None:
    """Entries whose paths fit no message are named, the others found; nothing crashes and no directory stays open."""
    top = tmp_path / "tree"
    top.mkdir()
    deep = make_deep(os.fsencode(top), 4095)
    (top / "x").mkdir()
    make_deep(os.fsencode(top / "x"), 4095)
    known = KnownTree()
    before = len(os.listdir("/proc/self/fd"))
    diffs = survey(os.fsencode(top), known)
    assert known.stamps[deep].size == len(b"deep down")
    assert list(trouble_reasons(diffs).values()) == ["path is longer than 4095 bytes"]
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_trail_reaches_any_depth_with_few_descriptors(tmp_path: Path) -> None:
    """Directories deeper than the trail keeps open are entered as well, in any order, and errors leave it usable."""
    names = [b"d%d" % level for level in range(MAX_OPEN + 20)]
    here = os.open(tmp_path, os.O_RDONLY)
    for name in names:
        os.mkdir(name, dir_fd=here)
        below = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    with Root(os.fsencode(tmp_path)) as root, Trail(root) as trail:
        before = len(os.listdir("/proc/self/fd"))
        for depth in (84, 3, 84, 83, 64, 65, 84, 0, 66):
            fd = trail.enter(b"/".join(names[:depth]))
            assert os.listdir(fd) == [os.fsdecode(name) for name in names[depth : depth + 1]]
            with pytest.raises(FileNotFoundError):
                trail.enter(b"/".join([*names[:depth], b"missing", b"x"]))
        assert len(os.listdir("/proc/self/fd")) <= before + MAX_OPEN + 1


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    before=st.sets(st.sampled_from("abcdefghijklmnop"), max_size=16),
    after=st.sets(st.sampled_from("abcdefghijklmnop"), max_size=16),
)
def test_a_huge_directory_is_compared_page_by_page(
    tmp_path_factory: pytest.TempPathFactory, before: set[str], after: set[str]
) -> None:
    """However small the pages and diffs are, new, gone and unchanged names come out the same."""
    root = tmp_path_factory.mktemp("paged")
    for name in before:
        (root / name).touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan, "PAGE_ENTRIES", 3)
        patch.setattr(scan, "DIFF_ENTRIES", 2)
        known = known_after(root)
        for name in before - after:
            (root / name).unlink()
        for name in after - before:
            (root / name).touch()
        diffs = survey(os.fsencode(root), known)
    assert max((len(diff.changed) for diff in diffs), default=0) <= 2
    assert gone_paths(diffs) == {name.encode() for name in before - after}
    assert changed_paths(diffs) - {b""} == {name.encode() for name in after - before}
    assert sum(d.unchanged for d in diffs) == len(before & after) + (b"" not in changed_paths(diffs))


@pytest.mark.parametrize("cause", ["status", "path"])
def test_a_directory_full_of_troubles_comes_in_pieces(tree: Path, monkeypatch: pytest.MonkeyPatch, cause: str) -> None:
    """Entries that fit no message, or cannot be looked at, take no more memory at a time than changed ones; each is
    named, and nothing is gone."""
    for number in range(9):
        (tree / "a" / f"{number}").touch()
    known = known_after(tree)
    monkeypatch.setattr(scan, "DIFF_ENTRIES", 2)
    if cause == "status":
        error = OSError(errno.EIO, os.strerror(errno.EIO))
        broken = WholeListing([BrokenEntry(name, error) for name in os.listdir(tree / "a")])
        _break_listing_of(monkeypatch, (tree / "a").stat().st_ino, broken)
    else:
        monkeypatch.setattr(scan, "MAX_PATH_BYTES", 2)
        for path in (tree / "a").iterdir():
            path.chmod(0o700)
    diffs = survey(os.fsencode(tree), known)
    assert {len(diff.troubles) for diff in diffs if diff.path == b"a"} <= {0, 1, 2}
    assert sum(len(diff.troubles) for diff in diffs if diff.path == b"a") == 12
    assert not gone_paths(diffs)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["write", "mkdir", "remove", "move", "link", "chmod"]),
        st.sampled_from(["a", "b", "a/x", "a/y", "b/x", "a/x/1", "b/x/1", "a/y/2"]),
        st.sampled_from(["a", "b", "a/x", "a/y", "b/x", "a/x/1", "b/x/1", "a/y/2"]),
    ),
    max_size=8,
)


def _do(root: Path, deed: str, path: Path, other: Path) -> None:
    match deed:
        case "write":
            path.write_text(deed)
        case "mkdir":
            path.mkdir()
        case "remove":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        case "move":
            path.rename(other)
        case "link":
            os.link(path, other)
        case "chmod":
            path.chmod(path.stat().st_mode ^ 0o010)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rounds=st.lists(STEPS, min_size=1, max_size=3), hinted=st.booleans())
def test_applied_diffs_make_the_ledger_equal_to_the_tree(
    tmp_path_factory: pytest.TempPathFactory, rounds: list[list[tuple[str, str, str]]], hinted: bool
) -> None:
    """After any changes, the diffs of a whole walk, or of one hinted with the directories touched, lead from what was
    known to what is there."""
    root = tmp_path_factory.mktemp("model")
    known = known_after(root)
    for steps in rounds:
        hints = set()
        for deed, one, other in steps:
            try:
                _do(root, deed, root / one, root / other)
            except OSError:
                continue  # not possible just now, so nothing happened
            hints |= {os.path.dirname(one).encode(), os.path.dirname(other).encode()}
        survey(os.fsencode(root), known, only=hints if hinted else None)
        expected = known_after(root)
        if hinted:  # times of directories above the hinted ones are the next full walk's
            assert set(known.stamps) == set(expected.stamps)
            files = {path for path, stamp in expected.stamps.items() if stamp.kind == Kind.FILE}
            linked = {p for p in files if expected.stamps[p].inode in _shared_inodes(expected)}
            assert all(known.stamps[path] == expected.stamps[path] for path in files - linked)
        else:
            assert known.stamps == expected.stamps


def _shared_inodes(tree: KnownTree) -> set[int]:
    inodes = [stamp.inode for stamp in tree.stamps.values() if stamp.kind == Kind.FILE]
    return {inode for inode in inodes if inodes.count(inode) > 1}
