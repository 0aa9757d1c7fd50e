"""Two real daemons that run out of room, or may not read: intake stops with words, nothing acknowledged is lost, and it
goes on by itself when there is room again."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kit_faults import (
    MIB,
    archive_of,
    ask,
    assert_quiet,
    configure,
    during,
    fill,
    free,
    needs_root,
    served,
    small_disk,
    synced,
    tree_at,
    tree_now,
)
from kit_pair import Node, Pair, assert_same_tree, make_pair, replicad, running, wait_until
from kit_rig import differences, snapshots
from kit_tree import NOBODY
from replicad.status import findings

OPTIONS = "watch = false\nmax_change = 1.0"
BRIM = 64 * 1024
"""A disk with less free than this is full to the brim."""
BUFFERED = 2 * MIB
"""What may still be written when the reserve is reached: bytes that were taken in and wait, and the books."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "www"
    path.mkdir()
    return path


def fill_tree(directory: Path, seed: int, mib: int) -> None:
    """Files that do not compress."""
    directory.mkdir(exist_ok=True)
    source = random.Random(seed)
    for number in range(mib):
        (directory / f"{number:03d}").write_bytes(source.randbytes(MIB))


def shown(node: Node, *, code: int) -> str:
    """What `replicad status` prints, in one line."""
    return " ".join(replicad("status", "--config", node.config, code=code).stdout.split())


def restores(pair: Pair, snapshot: int, tree: Path) -> None:
    """The snapshot comes back exactly: from the primary and, without any daemon, from the store."""
    for number, restore in enumerate((pair.restore, pair.restore_from_store)):
        target = pair.directory / f"restored-{snapshot}-{number}-{random.getrandbits(64):x}"
        restore(target, "--at", snapshot, "--quiet")
        assert_same_tree(tree, target)


@contextlib.contextmanager
def store_on(path: Path, root: Path, mib: int, kind: str, reserve: str) -> Iterator[Pair]:
    """A running pair whose store has a small disk of its own."""
    pair = make_pair(path / "pair", root, dataset_options=OPTIONS)
    configure(pair.replica, "listen", reserve=reserve)
    with small_disk(pair.store, mib, kind), running(pair):
        yield pair


@needs_root
@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_a_full_replica_stops_at_its_reserve_and_goes_on_by_itself(tmp_path: Path, root: Path, kind: str) -> None:
    """Both sides say that the replica is full and what to do; the reserve stays free, restores work, and once there is
    room again the copy is completed without a command."""
    fill_tree(root / "a", 1, 6)
    with store_on(tmp_path, root, 60, kind, "8MiB") as pair:
        synced(pair)
        filler = fill(pair.store, 24 * MIB)
        fill_tree(root / "b", 2, 24)
        assert "full" in pair.sync(code=1).stdout
        assert free(pair.store) >= 8 * MIB - BUFFERED
        there = shown(pair.replica, code=1)
        assert "intake has stopped" in there and "free space on the store's file system" in there
        here = shown(pair.primary, code=1)
        assert "the replica is full" in here and "free or add space on the replica" in here
        assert "systemctl status" not in here
        assert [line.number for line in snapshots(archive_of(pair))] == [1]
        filler.unlink()
        during(pair, lambda line: line.last_snapshot == 2 and line.pass_ok, "it goes on by itself")
        assert findings(pair.primary.status()) == []
        assert findings(pair.replica.status()) == []
        assert differences(tree_at(archive_of(pair)), tree_now(root)) == []
        fill(pair.store, 4 * MIB)
        pair.replica.kill()
        pair.replica.start()
        assert "nothing is taken in" in shown(pair.replica, code=1), "a restart does not forget it"
        restores(pair, 2, root)
        assert_quiet(pair.primary, pair.replica)


def test_a_client_at_its_quota_is_told_so_and_goes_on_once_it_is_raised(tmp_path: Path, root: Path) -> None:
    """Both sides say whose quota it is; what is stored comes back, and the copy is completed without a command."""
    fill_tree(root / "a", 1, 6)
    pair = make_pair(tmp_path / "pair", root, dataset_options=OPTIONS)
    configure(pair.replica, "client", quota="16MiB")
    with running(pair):
        synced(pair)
        fill_tree(root / "b", 2, 24)
        assert "may take 16MiB" in pair.sync(code=1).stdout
        there = shown(pair.replica, code=1)
        assert "intake has stopped" in there and "client.quota" in there and "quota 16.0 MiB for all of ams1" in there
        assert "the replica is full: client ams1 takes" in shown(pair.primary, code=1)
        assert sum(path.stat().st_size for path in pair.store.rglob("*.seg")) < 16 * MIB + BUFFERED
        assert [line.number for line in snapshots(archive_of(pair))] == [1]
        configure(pair.replica, "client", quota="64MiB")
        pair.replica.hang_up()
        during(pair, lambda line: line.last_snapshot == 2 and line.pass_ok, "it goes on by itself")
        assert findings(pair.primary.status()) == [] and findings(pair.replica.status()) == []
        assert differences(tree_at(archive_of(pair)), tree_now(root)) == []
        restores(pair, 2, root)
        assert_quiet(pair.primary, pair.replica)


@needs_root
@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_a_disk_that_others_fill_to_the_brim_costs_nothing_acknowledged(tmp_path: Path, root: Path, kind: str) -> None:
    """Not one byte is free, amid a pass and at a restart: the daemon lives, restores what it has, and takes in again
    when there is room. (A restart itself needs some room for the catalog's log, or says that it has none.)"""
    fill_tree(root / "a", 3, 4)
    with store_on(tmp_path, root, 60, kind, "0") as pair:
        synced(pair)
        first = tree_now(root)
        shutil.copytree(root, tmp_path / "first", copy_function=shutil.copy2)
        filler = fill(pair.store, 6 * MIB)
        fill_tree(root / "b", 4, 12)
        assert not served(pair).pass_ok
        wait_until(lambda: free(fill(pair.store).parent) < BRIM, "the disk is full to the brim")
        (root / "c").write_text("c")
        assert not served(pair).pass_ok
        assert "full" in shown(pair.primary, code=1)
        assert "free space" in shown(pair.replica, code=1)
        assert tree_at(archive_of(pair), 1) == first
        restores(pair, 1, tmp_path / "first")
        for end in (pair.replica.kill, pair.replica.stop):
            end()
            pair.replica.start()
            assert not served(pair).pass_ok
            assert "free space" in shown(pair.replica, code=1)
            assert "full" in shown(pair.primary, code=1)
        os.truncate(filler, filler.stat().st_size - MIB)
        restores(pair, 1, tmp_path / "first")
        filler.unlink()
        synced(pair)
        assert differences(tree_at(archive_of(pair)), tree_now(root)) == []
        assert tree_at(archive_of(pair), 1) == first
        wait_until(lambda: findings(pair.replica.status()) == [], "the scrub, too, has found room again")
        assert_quiet(pair.primary, pair.replica)


@needs_root
@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_a_full_state_directory_is_told_and_survived(tmp_path: Path, root: Path, kind: str) -> None:
    """The primary's ledger finds no room: the pass fails and says where space is wanted, the daemon lives on, also over
    a kill, and once there is room the copy is completed and exact."""
    pair = make_pair(tmp_path / "pair", root, dataset_options=OPTIONS)
    kept = shutil.copytree(pair.primary.state, tmp_path / "state")
    fill_tree(root / "a", 5, 2)
    with small_disk(pair.primary.state, 24, kind):
        shutil.copytree(kept, pair.primary.state, dirs_exist_ok=True)
        with running(pair):
            synced(pair)
            filler = fill(pair.primary.state)
            for number in range(4000):
                (root / f"n{number}").write_text(str(number))
            line = served(pair)
            assert not line.pass_ok
            assert str(pair.primary.state) in line.last_error
            here = shown(pair.primary, code=1)
            assert "free space on this file system" in here, here
            assert len(snapshots(archive_of(pair))) == 1
            pair.primary.kill()
            filler.unlink()
            filler = fill(pair.primary.state, 200 * 1024)
            pair.primary.start()
            assert not served(pair).pass_ok
            filler.unlink()
            synced(pair)
            assert differences(tree_at(archive_of(pair)), tree_now(root)) == []
            assert findings(pair.primary.status()) == []
            assert_quiet(pair.primary, pair.replica)


@needs_root
def test_a_daemon_that_finds_no_room_at_its_start_says_so_in_one_line(tmp_path: Path, root: Path) -> None:
    """Without room for a lock or a socket the daemon either runs or ends with one line that names the place."""
    pair = make_pair(tmp_path / "pair", root, dataset_options=OPTIONS)
    kept = shutil.copytree(pair.primary.state, tmp_path / "state")
    with small_disk(pair.primary.state, 2):
        shutil.copytree(kept, pair.primary.state, dirs_exist_ok=True)
        fill(pair.primary.state)
        done = replicad("run", "--config", pair.primary.config, code=3, timeout=30)
        (line,) = done.stderr.strip().splitlines()
        assert str(pair.primary.state) in line and "free space" in line


# second daemons


def test_a_second_daemon_on_the_same_state_is_turned_away(tmp_path: Path, root: Path) -> None:
    """It ends with exit code 2 and one line that names the first one, which goes on undisturbed."""
    (root / "a").write_text("a")
    pair = make_pair(tmp_path / "pair", root, dataset_options=OPTIONS)
    with running(pair):
        synced(pair)
        for node in (pair.primary, pair.replica):
            done = replicad("run", "--config", node.config, code=2, timeout=30)
            (line,) = done.stderr.strip().splitlines()
            assert str(node.process.pid) in line and str(node.state) in line  # type: ignore[union-attr]
            assert node.status().node
        (root / "b").write_text("b")
        assert synced(pair).last_snapshot == 2
        assert_quiet(pair.primary, pair.replica)


def test_a_second_daemon_on_the_same_store_is_turned_away(tmp_path: Path, root: Path) -> None:
    """Another state and another port, but the same store: it says whom it waits for, ends with exit code 2 and one line
    that names him, and the first one goes on."""
    (root / "a").write_text("a")
    pair = make_pair(tmp_path / "pair", root, dataset_options=OPTIONS)
    with running(pair):
        synced(pair)
        other = pair.replica.config.with_name("other.toml")
        state = tmp_path / "other-state"
        shutil.copytree(pair.replica.state, state, ignore=shutil.ignore_patterns("*.sock", "lock"))
        text = pair.replica.config.read_text().replace(str(pair.replica.state), str(state))
        other.write_text(text.replace(f"127.0.0.1:{pair.port}", "127.0.0.1:0"))
        done = replicad("run", "--config", other, code=2, timeout=30)
        waiting, *_, line = done.stderr.strip().splitlines()
        assert "waiting for a store" in waiting and "already works here" in line
        for said in (waiting, line):
            assert str(pair.replica.process.pid) in said and str(pair.store) in said  # type: ignore[union-attr]
        done = replicad("rebuild", "--config", other, code=2)
        assert str(pair.replica.process.pid) in done.stderr  # type: ignore[union-attr]
        (root / "b").write_text("b")
        assert synced(pair).last_snapshot == 2
        assert_quiet(pair.primary, pair.replica)


# rights


def _without_rights(kind: str, pair: Pair, root: Path) -> list[str]:
    """What to put before the primary's command so that it may not read everything."""
    if kind == "capabilities":
        return ["setpriv", "--bounding-set=-dac_override,-dac_read_search,-fowner", "--inh-caps=-all"]
    become = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--inh-caps=-all"]
    for path in (pair.primary.state.parent, root):
        subprocess.run(["chown", "-R", f"{NOBODY}:{NOBODY}", str(path)], check=True)
    script = "import replicad.daemon"
    if subprocess.run([*become, sys.executable, "-c", script], capture_output=True, check=False).returncode:
        pytest.skip("nobody cannot reach this Python")
    if subprocess.run([*become, "test", "-r", str(pair.primary.config)], check=False).returncode:
        pytest.skip("nobody cannot reach the test's directory")
    return become


@needs_root
@pytest.mark.parametrize("kind", ["capabilities", "user"])
def test_what_may_not_be_read_is_counted_and_named_and_everything_else_is_copied(tmp_path: Path, kind: str) -> None:
    """A subtree and a file without a right to them: sync exits 1 and names them, so does the status, the snapshot is
    not complete; what was copied of them before stays, and once they can be read everything is complete."""
    path = tmp_path
    while path != path.parent:
        path.chmod(path.stat().st_mode | 0o011)
        path = path.parent
    root = tmp_path / "www"
    (root / "open").mkdir(parents=True)
    (root / "closed" / "deep").mkdir(parents=True)
    for name in ("open/a", "closed/b", "closed/deep/c", "secret"):
        (root / name).write_text(f"first {name}")
    pair = make_pair(tmp_path / "pair", root, dataset_options=OPTIONS)
    pair.primary.prefix = _without_rights(kind, pair, root)
    with running(pair):
        synced(pair)
        for name in ("open/a", "closed/b", "secret", "open/new"):
            (root / name).write_text(f"second {name}")
        (root / "closed" / "newer").write_text("newer")
        for name in ("closed", "secret"):
            (root / name).chmod(0)
            os.chown(root / name, 0, 0)
        done = pair.sync(code=1)
        assert "could not be copied" in done.stdout and "closed: " in done.stdout and "secret: " in done.stdout
        here = shown(pair.primary, code=1)
        assert "closed: " in here and "secret: " in here and "make them readable" in here
        last = snapshots(archive_of(pair))[-1]
        assert (last.complete, last.unread) == (False, pair.line.unread)
        assert pair.line.unread == 2
        there = tree_at(archive_of(pair))
        now = tree_now(root)
        assert there[b"open/a"] == now[b"open/a"] and there[b"open/new"] == now[b"open/new"]
        assert b"closed/deep/c" in there and b"closed/newer" not in there
        assert there[b"closed/b"]["size"] == len("first closed/b")
        assert there[b"secret"]["size"] == len("first secret")
        for name, mode in (("closed", 0o755), ("secret", 0o644)):
            (root / name).chmod(mode)
        assert synced(pair).unread == 0
        assert differences(tree_at(archive_of(pair)), tree_now(root)) == []
        assert snapshots(archive_of(pair))[-1].complete
        assert_quiet(pair.primary, pair.replica)


@needs_root
def test_a_root_that_may_not_be_read_is_no_empty_one(tmp_path: Path, root: Path) -> None:
    """The pass fails with the path and what to check, and the replica keeps everything."""
    (root / "a").write_text("a")
    pair = make_pair(tmp_path / "pair", root, dataset_options=OPTIONS)
    pair.primary.prefix = _without_rights("capabilities", pair, root)
    with running(pair):
        synced(pair)
        os.chown(root, NOBODY, NOBODY)
        root.chmod(0o700)
        line = served(pair)
        assert not line.pass_ok and str(root) in line.last_error
        assert "may replicad read it" in shown(pair.primary, code=1)
        assert b"a" in tree_at(archive_of(pair))
        root.chmod(0o755)
        assert synced(pair)
        assert_quiet(pair.primary, pair.replica)


def test_a_root_that_disappears_is_no_empty_one(tmp_path: Path, root: Path) -> None:
    """Renamed away amid the daemon's life, then replaced by an empty directory, then back: nothing is dropped."""
    (root / "a").write_text("a")
    pair = make_pair(tmp_path / "pair", root, dataset_options="max_change = 1.0\ndebounce = '50ms'")
    with running(pair):
        synced(pair)
        before = tree_at(archive_of(pair))
        root.rename(tmp_path / "elsewhere")
        assert not served(pair).pass_ok
        root.mkdir()
        assert served(pair).held
        assert "not mounted" in shown(pair.primary, code=1)
        assert tree_at(archive_of(pair)) == before
        root.rmdir()
        (tmp_path / "elsewhere").rename(root)
        assert synced(pair)
        wait_until(lambda: not pair.line.held, "it goes on")
        ask(pair)
        assert tree_at(archive_of(pair)) == before
        assert_quiet(pair.primary, pair.replica)
