"""Odd names, files that change under the reader, clocks that jump, and a watch that misses things: still exact."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kit_faults import MIB, Workload, archive_of, assert_quiet, punch, served, synced, tree_at, tree_now
from kit_pair import Pair, assert_same_tree, make_pair, running, wait_until
from kit_rig import copied, describe_snapshot, differences, replica, rig, snapshots
from kit_tree import Described, build_tree
from replicad.status import findings, lag_s
from replicad.system.clock import Clock

DAY_NS = 86_400 * 10**9


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "www"
    path.mkdir()
    return path


@pytest.fixture
def pair(tmp_path: Path, root: Path) -> Iterator[Pair]:
    """A running pair that copies when it is told."""
    made = make_pair(tmp_path / "pair", root, dataset_options="watch = false\nmax_change = 1.0")
    with running(made):
        yield made


# names


def test_odd_names_and_the_longest_paths_come_back(pair: Pair, tmp_path: Path, root: Path) -> None:
    """Names that are no UTF-8, with newlines and control characters, and a path of 4,095 bytes go through both daemons
    and both ways of restoring, with every kind of entry and all metadata."""
    build_tree(root)
    line = synced(pair)
    assert line.unread == 0
    for number, restore in enumerate((pair.restore, pair.restore_from_store)):
        target = tmp_path / f"t{number}"
        restore(target)
        assert differences(copied(target), copied(root)) == []
    for path in root.iterdir():
        if len(path.name) > 200:  # rsync, the judge, does not take paths as long as what is below
            shutil.rmtree(path)
    (root / "links" / "hard-symlink").unlink()  # symlinks come back, but each as one of its own
    synced(pair)
    target = tmp_path / "short"
    pair.restore(target)
    assert_same_tree(root, target)
    assert_quiet(pair.primary, pair.replica)


def test_names_that_change_in_bytes_alone_are_kept_apart(pair: Pair, tmp_path: Path, root: Path) -> None:
    """Two spellings of one letter, and a name next to its own escaped form, are different entries."""
    top = os.fsencode(root)
    names = [
        b"caf\xc3\xa9",
        b"cafe\xcc\x81",
        b"caf\xe9",
        b"caf\\xe9",
        b"a\nb",
        b"a\\nb",
        b"\xff" * 255,
        b"\x01",
        b"'\"`$",
    ]
    for number, name in enumerate(names):
        with open(top + b"/" + name, "wb") as file:
            file.write(b"%d" % number)
    synced(pair)
    for first, second in zip(names, reversed(names), strict=True):
        if first != second:
            os.rename(top + b"/" + first, top + b"/tmp")
            os.rename(top + b"/" + second, top + b"/" + first)
            os.rename(top + b"/tmp", top + b"/" + second)
    synced(pair)
    pair.restore_from_store(tmp_path / "target")
    assert differences(copied(tmp_path / "target"), copied(root)) == []
    assert_quiet(pair.primary, pair.replica)


# files that change


def test_holes_and_cuts_in_recorded_files_are_exact_in_the_next_snapshot(
    pair: Pair, tmp_path: Path, root: Path
) -> None:
    """Holes punched at the start, in the middle and at the end, a cut to nothing, growth and regrowth: each snapshot
    shows its moment, and holes cost nothing on the line."""
    source = random.Random(1)
    assert synced(pair).last_snapshot == 1, "of the empty directory"
    (root / "big").write_bytes(source.randbytes(8 * MIB))
    (root / "small").write_bytes(source.randbytes(300_000))
    trees: dict[int, dict[bytes, Described]] = {}

    def keep() -> None:
        trees[synced(pair).last_snapshot] = tree_now(root)

    keep()
    before = pair.line.sent_bytes
    for path, sizes in ((root / "big", (3 * MIB, 200_000, 65536)), (root / "small", (70_000, 5000, 4096))):
        length = path.stat().st_size
        for size in sizes:
            for offset in (0, length // 2 // 4096 * 4096, length - size):
                punch(path, offset, size)
                keep()
    assert pair.line.sent_bytes - before < 2 * MIB, "only the edges of holes travel"
    for path in (root / "big", root / "small"):
        length = path.stat().st_size
        for size in (0, 1, length, length - 1, 65536, 2 * length):
            os.truncate(path, size)
            keep()
            if size == 1:
                with path.open("r+b") as file:
                    file.write(source.randbytes(length))
                keep()
    for number, tree in trees.items():
        assert differences(tree_at(archive_of(pair), number), tree) == [], number
    assert len(trees) == len(snapshots(archive_of(pair))) - 1
    pair.restore(tmp_path / "target")
    assert_same_tree(root, tmp_path / "target")
    assert_quiet(pair.primary, pair.replica)


def test_files_that_are_written_while_they_are_read_are_exact_once_they_hold_still(pair: Pair, root: Path) -> None:
    """Growing, shrinking, replaced and removed under the reader: passes go on, nothing is silently left out, and the
    first pass after the last write is exact."""
    stop = threading.Event()
    source = random.Random(2)
    (root / "log").write_bytes(source.randbytes(2 * MIB))
    (root / "big").write_bytes(source.randbytes(12 * MIB))

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            with (root / "log").open("ab") as file:
                file.write(b"line\n" * 1000)
            with (root / "big").open("r+b") as file:
                file.seek(source.randrange(12 * MIB))
                file.write(b"x" * 10)
            os.truncate(root / "log", 2 * MIB - number % 7 * 4096)
            (root / "temporary").write_bytes(bytes(number % 3 * 700_000) + b"t")
            (root / "temporary").rename(root / "replaced")
            directory = root / f"d{number % 3}"
            directory.mkdir()
            (directory / "f").write_text("f")
            shutil.rmtree(directory)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(15):
            line = served(pair)
            assert line.pass_ok or line.troubles, line
            assert not line.last_error, line
            for described in describe_snapshot(archive_of(pair)).values():
                assert "content" not in described or len(described["content"]) == described["size"]  # type: ignore[arg-type]
    finally:
        stop.set()
        writer.join()
    assert synced(pair).fuzzy == 0
    assert differences(tree_at(archive_of(pair)), tree_now(root)) == []
    assert_quiet(pair.primary, pair.replica)


# clocks


class JumpingClock(Clock):
    """A wall clock that jumps by up to ten days, back or forth, each time it is asked (or when told, by `leap`)."""

    def __init__(self, seed: int, *, always: bool) -> None:
        self._random, self._always, self._shift_ns = random.Random(seed), always, 0

    def leap(self) -> None:
        """Jump once."""
        self._shift_ns = self._random.randrange(-10 * DAY_NS, 10 * DAY_NS)

    def now_ns(self) -> int:
        if self._always:
            self.leap()
        return super().now_ns() + self._shift_ns


@pytest.mark.parametrize("always", [False, True], ids=["between passes", "within passes"])
@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_jumping_clocks_neither_stop_nor_confuse_anything(
    tmp_path: Path, root: Path, seed: int, always: bool
) -> None:
    """Whatever either side's clock does, snapshots are made, their numbers ascend, each shows its tree, no lag is
    negative and nothing is held."""
    here, there = JumpingClock(seed, always=always), JumpingClock(-seed, always=always)
    source = random.Random(seed)
    async with rig(tmp_path, root) as primary, replica(tmp_path / "store") as fra1:
        primary.clock = here
        fra1._shelves._clock = there
        trees = []
        for number in range(12):
            here.leap()
            there.leap()
            (root / f"{number}").write_bytes(source.randbytes(100_000))
            (root / "same").write_bytes(source.randbytes(10))
            status = await primary.sync(fra1)
            assert (status.pass_ok, status.held, status.unread) == (True, False, 0)
            assert lag_s(status, here.now_ns()) >= 0
            trees.append((status.last_snapshot, copied(root)))
            if number % 4 == 3:
                await primary.reopen()
        numbers = [line.number for line in snapshots(fra1.archive)]
        assert numbers == sorted(set(numbers))
        assert len(numbers) >= 12
        for number, tree in trees:
            assert differences(describe_snapshot(fra1.archive, number), tree) == []


# the watch


def _watched(tmp_path: Path, root: Path, *options: str) -> Pair:
    lines = ["max_change = 1.0", 'debounce = "100ms"', *options]
    return make_pair(tmp_path / "pair", root, dataset_options="\n".join(lines))


def _arrives(pair: Pair, root: Path) -> None:
    wait_until(lambda: not differences(tree_at(archive_of(pair)), tree_now(root)), "it arrives", 30)


def test_changes_arrive_without_a_command(tmp_path: Path, root: Path) -> None:
    """The watch notices writes, new deep directories, renames and removals; only what it hints at is looked at."""
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "b" / "f").write_text("f")
    pair = _watched(tmp_path, root)
    with running(pair):
        wait_until(lambda: pair.line.watch == "on" and pair.line.pass_ok, "it watches")
        (root / "a" / "b" / "f").write_text("changed")
        _arrives(pair, root)
        deep = root / "new" / "deep" / "deeper" / "deepest"
        deep.mkdir(parents=True)
        (deep / "file").write_text("x")
        _arrives(pair, root)
        (root / "new" / "deep").rename(root / "a" / "moved")
        _arrives(pair, root)
        (root / "a" / "moved" / "deeper" / "deepest" / "file").write_text("behind a renamed directory")
        _arrives(pair, root)
        shutil.rmtree(root / "a")
        _arrives(pair, root)
        with open(os.fsencode(root) + b"/\xff\xfe", "wb") as file:
            file.write(b"no UTF-8")
        _arrives(pair, root)
        assert findings(pair.primary.status()) == []
        assert_quiet(pair.primary, pair.replica)


def test_a_watch_at_the_kernels_limit_says_so_and_walks_still_replicate(tmp_path: Path, root: Path) -> None:
    """Out of watches the state is degraded, with the setting to raise; the next periodic walk finds every change."""
    for number in range(60):
        (root / f"d{number}" / "below").mkdir(parents=True)
    limit = ["unshare", "--user", "--map-root-user", "sh", "-c"]
    script = 'echo 30 > /proc/sys/user/max_inotify_watches && exec "$@"'
    if subprocess.run([*limit, script, "sh", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this user may not make a namespace with a limit of its own")
    pair = _watched(tmp_path, root, 'walk_every = "1s"')
    pair.primary.prefix = [*limit, script, "sh"]
    with running(pair):
        wait_until(lambda: "degraded" in pair.line.watch and pair.line.pass_ok, "it says so")
        assert "fs.inotify.max_user_watches" in pair.line.watch
        (root / "d59" / "below" / "file").write_text("found by a walk")
        _arrives(pair, root)
        assert_quiet(pair.primary, pair.replica)


def test_a_tree_that_is_written_all_the_time_is_copied_all_the_time(tmp_path: Path, root: Path) -> None:
    """Under writes without end passes follow one another, and soon after the last one everything is there."""
    pair = _watched(tmp_path, root)
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.wait(0.003):
            number += 1
            directory = root / f"d{number % 40}"
            directory.mkdir(exist_ok=True)
            (directory / f"f{number % 11}").write_text(str(number))
            if number % 13 == 0:
                shutil.rmtree(directory)

    with running(pair):
        writer = threading.Thread(target=write)
        writer.start()
        try:
            begun = pair.line.pass_number
            wait_until(lambda: pair.line.pass_number >= begun + 8, "passes follow one another")
        finally:
            stop.set()
            writer.join()
        _arrives(pair, root)
        assert_quiet(pair.primary, pair.replica)


# links


@pytest.mark.parametrize("size", [5000, 2 * MIB])
@pytest.mark.parametrize(("replaced", "kept"), [("a", "b"), ("b", "a")])
@pytest.mark.parametrize("rewritten", [False, True])
async def test_a_name_that_comes_to_stand_for_another_file_shows_that_one(
    tmp_path: Path, root: Path, size: int, replaced: str, kept: str, rewritten: bool
) -> None:
    """One of two hard links is replaced by another file, and the file behind the other one rewritten or not: each name
    shows its own file in the next snapshot, and when one of them is removed the other stays."""
    source = random.Random(size)
    (root / "a").write_bytes(source.randbytes(size))
    os.link(root / "a", root / "b")
    async with rig(tmp_path, root) as primary, replica(tmp_path / "store") as fra1:
        await primary.sync(fra1)
        (root / "new").write_bytes(source.randbytes(size + 1))
        (root / "new").rename(root / replaced)
        if rewritten:
            (root / kept).write_bytes(source.randbytes(size))
        await primary.sync(fra1)
        assert differences(describe_snapshot(fra1.archive), copied(root)) == []
        os.link(root / kept, root / "c")
        (root / kept).unlink()
        (root / "c").write_bytes(source.randbytes(size))
        await primary.sync(fra1)
        assert differences(describe_snapshot(fra1.archive), copied(root)) == []


@pytest.mark.parametrize("seed", [1, 2])
def test_random_edits_arrive_by_hints_alone(tmp_path: Path, root: Path, seed: int) -> None:
    """Whatever is written, linked, renamed and removed, the passes that look only where the watch points find it."""
    work = Workload(root, seed, files=60)
    pair = _watched(tmp_path, root)
    with running(pair):
        wait_until(lambda: pair.line.watch == "on" and pair.line.pass_ok, "it watches")
        _arrives(pair, root)
        for _ in range(12):
            work.edit(6)
            _arrives(pair, root)
        assert_quiet(pair.primary, pair.replica)
