"""Restores over live data: shown, confirmed, told what would be lost, and never under the feet of a pass."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pty
import subprocess
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kit_drill import drill, drilled_pair
from kit_pair import COMMAND, PATIENCE_S, Pair, replicad, wait_until
from kit_restore import Writer, restore
from kit_tree import describe_tree
from replicad.model.errors import UsageError
from replicad.model.order import RestoreClass
from replicad.work.planner import Rules
from replicad.work.turnstile import enter_to_read, held_target

ORDER = """
[[dataset.restore_order]]
name = "database"
patterns = ["*.db"]
"""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Two daemons, a dataset with a restore order, a first snapshot."""
    base = tmp_path_factory.mktemp("live")
    root = base / "www"
    (root / "dir").mkdir(parents=True)
    for name in ("a.txt", "b.db", "dir/c.txt"):
        (root / name).write_bytes(name.encode() * 10_000)
    options = 'drill_every = 0\nmax_change = 1.0\nwatch = false\nrpo = "1d"\nwalk_every = "1d"'
    with drilled_pair(base, root, options) as made:
        yield made


@contextmanager
def locked(path: Path, kind: int) -> Iterator[None]:
    """What another process that works in a directory does."""
    fd = os.open(path, os.O_RDONLY)
    fcntl.flock(fd, kind)
    try:
        yield
    finally:
        os.close(fd)


def typed_at_a_terminal(pair: Pair, answer: str) -> tuple[int, str]:
    """Type an in-place restore and answer its question; exit code and what was said on stderr."""
    ours, theirs = pty.openpty()
    command = [*COMMAND, "restore", "www", str(pair.root), "--in-place", "--config", str(pair.primary.config)]
    running = subprocess.Popen(command, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    os.close(theirs)
    os.write(ours, answer.encode() + b"\n")
    _, said = running.communicate(timeout=PATIENCE_S)
    os.close(ours)
    return running.returncode, said


def test_without_a_confirmation_nothing_is_changed(pair: Pair) -> None:
    """Not a terminal, the wrong token, another word than yes: exit code 2, after the plan was shown."""
    (pair.root / "a.txt").write_bytes(b"written since")
    before = describe_tree(pair.root)
    done = pair.restore(pair.root, "--in-place", code=2)
    assert (
        "a.txt: would be lost" in done.stderr and "possible, with losses" in done.stdout and "--confirm" in done.stderr
    )
    assert "another plan" in pair.restore(pair.root, "--in-place", "--confirm", "0123456789ab", code=2).stderr
    assert "does not stretch" in pair.restore(pair.root, "--in-place", "--yes", code=2).stderr
    assert typed_at_a_terminal(pair, "y")[0] == 2
    assert "--in-place" in pair.restore(pair.root, code=2).stderr
    assert describe_tree(pair.root) == before


def test_confirmed_it_repairs_what_differs_and_nothing_else(pair: Pair) -> None:
    """By a typed yes, by the plan's token, and by --yes where nothing is lost or all is kept aside."""
    pair.sync()
    untouched = (pair.root / "b.db").stat()

    written = [b""]

    def differs() -> None:
        written[0] = os.urandom(16)
        (pair.root / "a.txt").write_bytes(written[0])
        (pair.root / "dir" / "c.txt").unlink()

    def is_right() -> bool:
        now = (pair.root / "b.db").stat()
        same = (now.st_ino, now.st_mtime_ns, now.st_ctime_ns) == (
            untouched.st_ino,
            untouched.st_mtime_ns,
            untouched.st_ctime_ns,
        )
        return (
            same and (pair.root / "a.txt").read_bytes() == b"a.txt" * 10_000 and (pair.root / "dir" / "c.txt").exists()
        )

    words = ("--in-place", "--at", "1")
    differs()
    plan = json.loads(pair.restore(pair.root, "--plan", "--at", "1", "--in-place", "--json", code=1).stdout)
    assert plan["unsaved"] == 1 and plan["conflicts"] == 1
    pair.restore(pair.root, *words, "--confirm", plan["confirm"])
    assert is_right()
    differs()
    aside = pair.directory / "aside"
    account = json.loads(pair.restore(pair.root, *words, "--yes", "--set-aside", aside, "--json").stdout)
    assert account["set_aside"] == 1 and (aside / "a.txt").read_bytes() == written[0] and is_right()
    pair.sync()
    (pair.root / "dir" / "c.txt").unlink()
    pair.restore(pair.root, *words, "--yes", "--quiet")
    assert is_right()
    code, said = typed_at_a_terminal(pair, "yes")
    assert code == 0 and "Type yes" in said
    pair.sync()


def test_into_a_live_dataset_that_is_empty_nothing_is_asked(pair: Pair, tmp_path: Path) -> None:
    """On the worst day there is nothing to lose."""
    text = pair.primary.config.read_text()
    config = tmp_path / "P.toml"
    config.write_text(text.replace(f'"{pair.root}"', f'"{tmp_path / "empty"}"'))
    (tmp_path / "empty").mkdir()
    replicad("restore", "www", tmp_path / "empty", "--in-place", "--config", config)
    assert sorted(os.listdir(tmp_path / "empty")) == ["a.txt", "b.db", "dir"]


def test_a_pass_waits_while_somebody_restores_into_the_dataset(pair: Pair) -> None:
    """It says so, records nothing half restored, and comes when the restore has ended, however that was."""
    pair.sync()
    snapshot = pair.line.last_snapshot
    with locked(pair.root, fcntl.LOCK_EX):
        (pair.root / "half").write_bytes(b"half restored")
        sync = subprocess.Popen([*COMMAND, "sync", "www", "--wait", "--config", str(pair.primary.config)])
        wait_until(lambda: "a restore writes" in pair.line.reason, "the pass waits")
        assert pair.line.state == "waiting" and not pair.line.held and pair.line.last_snapshot == snapshot
        (pair.root / "half").unlink()
    assert sync.wait(PATIENCE_S) == 0
    listed = json.loads(replicad("ls", "www", "--config", pair.primary.config, "--json").stdout)
    assert "half" not in json.dumps(listed)


def test_a_restore_waits_for_the_end_of_a_pass(pair: Pair) -> None:
    """And says so."""
    words = ["restore", "www", str(pair.root), "--in-place", "--yes", "--config", str(pair.primary.config)]
    with locked(pair.root, fcntl.LOCK_SH):
        running = subprocess.Popen([*COMMAND, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        assert running.stderr and "waiting for the end" in running.stderr.readline()
        assert running.poll() is None
    running.communicate(timeout=PATIENCE_S)
    assert running.returncode == 0


async def test_datasets_that_lie_in_the_target_are_held_with_it(tmp_path: Path) -> None:
    """And let go with it; those beside it are not touched."""
    root, beside = tmp_path / "target" / "www", tmp_path / "other"
    root.mkdir(parents=True)
    beside.mkdir()
    told: list[str] = []
    async with held_target(tmp_path / "target", [root, beside, tmp_path / "target" / "none"], told.append) as held:
        assert enter_to_read(root) is None and enter_to_read(tmp_path / "target") is None
        assert os.fstat(held).st_ino == (tmp_path / "target").stat().st_ino
        fd = enter_to_read(beside)
        assert fd is not None
        os.close(fd)
    with locked(root, fcntl.LOCK_SH):
        waiting = asyncio.create_task(held_target(tmp_path / "target", [root], told.append).__aenter__())
        while not told:
            await asyncio.sleep(0.01)
        assert str(root) in told[0] and not waiting.done()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    fd = enter_to_read(tmp_path / "target")
    assert fd is not None and fd >= 0
    os.close(fd)
    assert enter_to_read(tmp_path / "none") == -1


def test_the_estimate_is_what_drills_have_measured(pair: Pair, tmp_path: Path) -> None:
    """On the primary, which has their book; with a limit it takes as long as that allows."""
    drill(pair, "--full")
    plan = json.loads(pair.restore(tmp_path / "back", "--plan", "--json").stdout)
    assert plan["rate"]["drills"] >= 1 and plan["rate"]["replica"] == "fra1" and plan["estimate_s"] > 0
    limited = json.loads(pair.restore(tmp_path / "back", "--plan", "--json", "--bandwidth", "1KiB/s").stdout)
    assert limited["estimate_s"] >= plan["bytes"] / 1024 > plan["estimate_s"]
    assert "the median of" in pair.restore(tmp_path / "back", "--plan").stdout


@pytest.mark.parametrize("rate", ["fast", "5B/s", "-1MiB/s", "50MiB/m"])
def test_a_bandwidth_that_is_none_is_refused(tmp_path: Path, rate: str) -> None:
    """Exit code 2, and how to write one."""
    words = ("restore", "www", tmp_path / "back", "--store", tmp_path / "store", "--bandwidth", rate)
    assert "--bandwidth" in replicad(*words, code=2).stderr


def test_a_replica_that_is_killed_during_a_restore_costs_the_rest_of_it(pair: Pair, tmp_path: Path) -> None:
    """Exit code 3, what was restored stays, and the same command goes on once the replica is back; a limit holds it up
    long enough to be killed."""
    (pair.root / "large").write_bytes(os.urandom(24_000_000))
    pair.sync()
    words = [*COMMAND, "restore", "www", str(tmp_path / "back"), "--config", str(pair.primary.config), "--json"]
    limited = [*words, "--bandwidth", "2MiB/s"]
    running = subprocess.Popen(limited, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: any((tmp_path / "back").glob(".replicad-restore-*")), "the large file is begun")
    pair.replica.kill()
    said, _ = running.communicate(timeout=PATIENCE_S)
    account = json.loads(said)
    assert running.returncode == 3 and not account["finished"] and account["restored_bytes"] < 24_000_000
    pair.replica.start()
    again = json.loads(subprocess.run(words, capture_output=True, check=True).stdout)
    assert again["finished"] and again["right_bytes"] > 0
    assert (tmp_path / "back" / "large").read_bytes() == (pair.root / "large").read_bytes()
    (pair.root / "large").unlink()
    pair.sync()


# the order


def test_an_order_travels_to_a_host_without_a_configuration(pair: Pair, tmp_path: Path) -> None:
    """From the primary's configuration over the commit to whoever restores, over the link and from the store alone; the
    command line counts more."""
    text = pair.primary.config.read_text()
    pair.primary.config.write_text(text + ORDER)
    assert tomllib.loads(text + ORDER)["dataset"][0]["restore_order"]
    replicad("check-config", "--config", pair.primary.config)
    pair.primary.hang_up()
    (pair.root / "new").write_bytes(b"new")

    def names(done: subprocess.CompletedProcess[str]) -> list[str]:
        return [one["name"] for one in json.loads(done.stdout)["classes"]]

    def travelled() -> bool:
        pair.sync()
        (pair.root / "new").write_bytes(os.urandom(8))
        return names(pair.restore_from_store(tmp_path / "store", "--json")) == ["database", "rest"]

    wait_until(travelled, "the order is in a commit")
    key = next(line.split('"')[1] for line in text.splitlines() if line.startswith("key") and "ssh-ed25519" in line)
    line = f"replicad-replica fra1 127.0.0.1:{pair.port} {key}"
    fresh = ("--replica", line, "--key", pair.primary.state / "key", "--config", tmp_path / "none.toml", "--json")
    done = replicad("restore", "www", tmp_path / "fresh", *fresh)
    assert names(done) == ["database", "rest"] and "database: complete after" in done.stderr
    first = replicad("restore", "www", tmp_path / "first", *fresh, "--first", "dir", "--first", "*.txt")
    assert names(first) == ["first-1", "first-2", "rest"]
    listed = tmp_path / "order.toml"
    listed.write_text('[[restore_order]]\nname = "texts"\npatterns = ["**/*.txt"]\n')
    for file, expected in ((listed, "texts"), (pair.primary.config, "database")):
        assert names(replicad("restore", "www", tmp_path / expected, *fresh, "--order", file)) == [expected, "rest"]
    assert names(pair.restore(tmp_path / "primary", "--json")) == ["database", "rest"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[[restore_order]]\nname = 'x'\n", "patterns"),
        ("restore_order = 5", "array"),
        ("nonsense", "Expected"),
        ("", "has no"),
        ("[[dataset]]\nname = 'other'\n", "has no"),
        ("[[restore_order]]\nname = 'x'\npatterns = ['../y']\n", "'..'"),
    ],
)
def test_a_file_that_holds_no_order_is_refused(tmp_path: Path, content: str, reason: str) -> None:
    """Exit code 2, and nothing is changed; so it is together with --first, and where there is no such file."""
    file = tmp_path / "order.toml"
    file.write_text(content)
    words = ("restore", "www", tmp_path / "back", "--store", tmp_path / "store")
    assert reason in replicad(*words, "--order", file, code=2).stderr
    assert "exclude" in replicad(*words, "--order", file, "--first", "x", code=2).stderr
    assert "cannot be read" in replicad(*words, "--order", tmp_path / "none", code=2).stderr
    assert RestoreClass("x", ("y",)).globs == [b"y"] and not (tmp_path / "back").exists()


# what is set aside


async def test_everything_that_is_replaced_or_removed_is_kept(tmp_path: Path) -> None:
    """Files, links, large files that would be corrected in place, what is extra, and what is of another kind; a second
    run keeps what the first one kept."""
    large = os.urandom(70_000_000)
    with Writer(tmp_path / "store") as writer:
        writer.put(b"")
        writer.put(b"dir")
        writer.put(b"dir/file", b"right")
        writer.put(b"large", large)
        writer.put(b"path", b"a file")
        writer.put(b"same", b"same")
        writer.seal()
    back, aside = tmp_path / "back", tmp_path / "aside"
    await restore(tmp_path / "store", back)
    (back / "dir" / "file").write_bytes(b"mine")
    with (back / "large").open("r+b") as file:
        file.write(b"mine")
    (back / "path").unlink()
    os.symlink("nowhere", back / "path")
    (back / "extra" / "deep").mkdir(parents=True)
    (back / "extra" / "deep" / "file").write_bytes(b"extra")
    rules = Rules(delete_extra=True, aside=aside)
    account = await restore(tmp_path / "store", back, rules=rules)
    assert account.exit_code == 0 and account.set_aside == 4 and account.extra_removed == 1
    assert (back / "large").read_bytes() == large and (aside / "large").read_bytes() == b"mine" + large[4:]
    assert (aside / "dir" / "file").read_bytes() == b"mine" and os.readlink(aside / "path") == "nowhere"
    assert (aside / "extra" / "deep" / "file").read_bytes() == b"extra" and not (aside / "same").exists()
    (back / "dir" / "file").write_bytes(b"again")
    assert (await restore(tmp_path / "store", back, rules=rules)).set_aside == 1
    assert (aside / "dir" / "file").read_bytes() == b"mine" and (aside / "dir" / "file.1").read_bytes() == b"again"


async def test_a_place_to_set_aside_that_cannot_be_one_is_refused(tmp_path: Path) -> None:
    """In the target, on another file system, no directory: nothing is changed."""
    with Writer(tmp_path / "store") as writer:
        writer.put(b"")
        writer.put(b"file", b"right")
        writer.seal()
    (tmp_path / "back").mkdir()
    (tmp_path / "back" / "file").write_bytes(b"mine")
    for aside in (tmp_path / "back" / "aside", Path("/dev/shm/replicad-aside"), tmp_path / "store" / "catalog.db"):
        with pytest.raises(UsageError):
            await restore(tmp_path / "store", tmp_path / "back", rules=Rules(aside=aside))
        assert (tmp_path / "back" / "file").read_bytes() == b"mine"
    Path("/dev/shm/replicad-aside").rmdir()
