"""The verbs restore and snapshots, typed as a person types them, against real daemons and bare stores."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest

from kit_pair import COMMAND, Pair, assert_same_tree, free_port, make_pair, replicad, running, wait_until
from kit_restore import Writer, archive_tree, damage_block, differences
from kit_tree import build_tree, is_root
from replicad.cli.restore import STANDSTILL_S, Standstill
from replicad.model.block import block_id
from replicad.work.account import Account
from replicad.work.target import TEMPORARY


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Two daemons, and a tree of all kinds of entries that has been replicated once."""
    base = tmp_path_factory.mktemp("pair")
    build_tree(base / "live" / "tree")
    os.unlink(base / "live" / "tree" / "links" / "hard-symlink")  # records know hard links of files only
    with running(make_pair(base, base / "live" / "tree")) as made:
        made.sync(code=None)
        yield made


def replica_line(pair: Pair) -> str:
    """The line that `init replica` printed, as the primary's configuration has it."""
    text = pair.primary.config.read_text()
    key = next(line.split('"')[1] for line in text.splitlines() if line.startswith("key") and "ssh-ed25519" in line)
    return f"replicad-replica fra1 127.0.0.1:{pair.port} {key}"


def test_a_dataset_comes_back_on_the_primary(pair: Pair, tmp_path: Path) -> None:
    """With nothing but its name: the configuration knows the replica."""
    done = pair.restore(tmp_path / "back")
    assert_same_tree(pair.root, tmp_path / "back")
    assert "restored www: snapshot" in done.stdout and done.stdout.rstrip().endswith("complete")


def test_a_dataset_comes_back_on_a_fresh_host(pair: Pair, tmp_path: Path) -> None:
    """With the replica's line and a key, and no configuration."""
    key = tmp_path / "key"
    shutil.copy(pair.primary.state / "key", key)
    key.chmod(0o600)
    words = ("--replica", replica_line(pair), "--key", key, "--config", tmp_path / "none.toml")
    replicad("restore", "www", tmp_path / "back", *words)
    assert_same_tree(pair.root, tmp_path / "back")
    assert "complete" in replicad("snapshots", "www", *words).stdout


def test_a_dataset_comes_back_from_the_store_beside_the_daemon(pair: Pair, tmp_path: Path) -> None:
    """The directory is the one that `init replica` was given; by DATASET as by CLIENT/DATASET."""
    pair.restore_from_store(tmp_path / "back")
    assert_same_tree(pair.root, tmp_path / "back")
    done = replicad("restore", "ams1/www", tmp_path / "back", "--config", pair.replica.config)
    assert "unchanged" in done.stdout


def test_the_account_as_json_has_every_key_and_nothing_else_is_on_stdout(pair: Pair, tmp_path: Path) -> None:
    """So that a script may read it."""
    account = json.loads(pair.restore(tmp_path / "back", "--json", "--path", "docs/short.txt").stdout)
    assert account["finished"] and account["restored"] == {"directories": 2, "files": 1}
    assert account["source"] == "fra1" and account["snapshot"] > 0 and account["findings"] == []


def test_snapshots_are_listed_for_people_and_for_programs(pair: Pair) -> None:
    """With the same content."""
    lines = json.loads(replicad("snapshots", "www", "--config", pair.primary.config, "--json").stdout)
    shown = replicad("snapshots", "www", "--config", pair.primary.config).stdout
    assert lines and all(str(line["number"]) in shown and line["created"] in shown for line in lines)


def test_an_earlier_state_comes_back_by_number_and_by_time(tmp_path: Path) -> None:
    """Each snapshot is what it was; a partial one is taken by number only, with a notice."""
    with Writer(tmp_path / "store" / "ams1" / "www") as writer:
        writer.put(b"")
        for number in (1, 2, 3):
            writer.put(b"file-%d" % number, b"x")
            writer.seal(number, number * 3600 * 10**9, complete=number < 3)
    for number, (when, files) in enumerate((("1", 1), ("1970-01-01T02:30:00Z", 2), ("latest", 2), ("3", 3))):
        back = tmp_path / f"back-{number}"
        done = replicad("restore", "www", back, "--store", tmp_path / "store", "--at", when)
        assert len(os.listdir(back)) == files
        assert ("partial" in done.stderr) is (when in ("3", "latest"))
    done = replicad("restore", "www", tmp_path / "no", "--store", tmp_path / "store", "--at", "9", code=2)
    assert "there are: 1 (" in done.stderr and not (tmp_path / "no").exists()


@pytest.mark.skipif(not is_root(), reason="mounting needs root")
def test_a_store_on_a_medium_that_is_mounted_read_only_is_enough(tmp_path: Path) -> None:
    """The disk of a replica that died in the middle of its work, say: with a catalog that lags behind, and without."""
    archive = tmp_path / "store" / "ams1" / "www"
    with Writer(archive) as writer:
        writer.put(b"")
        writer.put(b"file", b"content")
        writer.seal(1)
        shutil.copy(archive / "catalog.db", tmp_path / "older.db")
        shutil.copy(archive / "catalog.db-wal", tmp_path / "older.db-wal")
        writer.put(b"later", b"later")
        writer.seal(2)
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    subprocess.run(["mount", "--bind", str(tmp_path / "store"), str(mounted)], check=True)
    try:
        for older in (True, False):
            for name in archive.glob("catalog.db*"):
                name.unlink()
            if older:
                shutil.copy(tmp_path / "older.db", archive / "catalog.db")
                shutil.copy(tmp_path / "older.db-wal", archive / "catalog.db-wal")
            subprocess.run(["mount", "-o", "remount,ro,bind", str(mounted)], check=True)
            replicad("restore", "www", tmp_path / f"back {older}", "--store", mounted)
            assert sorted(os.listdir(tmp_path / f"back {older}")) == ["file", "later"]
            subprocess.run(["mount", "-o", "remount,rw,bind", str(mounted)], check=True)
    finally:
        subprocess.run(["umount", str(mounted)], check=True)


def test_a_store_with_several_clients_needs_the_client_named(tmp_path: Path) -> None:
    """The error lists the candidates."""
    for client in ("ams1", "ber1"):
        with Writer(tmp_path / "store" / client / "www") as writer:
            writer.put(b"")
            writer.put(client.encode())
            writer.seal()
    done = replicad("restore", "www", tmp_path / "back", "--store", tmp_path / "store", code=2)
    assert "ams1/www or ber1/www" in done.stderr and not (tmp_path / "back").exists()
    replicad("restore", "ber1/www", tmp_path / "back", "--store", tmp_path / "store")
    assert os.listdir(tmp_path / "back") == ["ber1"]
    done = replicad("restore", "mail", tmp_path / "back", "--store", tmp_path / "store", code=2)
    assert "there is ams1/www, ber1/www" in done.stderr


def test_damage_is_named_on_stderr_and_in_the_exit_code(tmp_path: Path) -> None:
    """Everything else is restored."""
    content = os.urandom(200_000)
    with Writer(tmp_path / "store" / "ams1" / "www") as writer:
        writer.put(b"")
        writer.put(b"broken", content)
        writer.put(b"whole", b"whole")
        writer.seal()
    damage_block(tmp_path / "store" / "ams1" / "www", block_id(content[65536:131072]))
    done = replicad("restore", "www", tmp_path / "back", "--store", tmp_path / "store", code=1)
    assert "broken: bytes 65536 to 131071 are not restored" in done.stderr
    assert "incomplete" in done.stdout and (tmp_path / "back" / "whole").read_bytes() == b"whole"
    done = replicad("restore", "www", tmp_path / "back", "--store", tmp_path / "store", "--quiet", code=1)
    assert done.stdout == "" and "65536" in done.stderr


def test_a_target_that_replicad_lives_in_or_that_is_live_is_refused(pair: Pair, tmp_path: Path) -> None:
    """The store, the state directory, and the dataset itself unless --in-place is said."""
    for target in (pair.store / "x", pair.store.parent, pair.store / "ams1" / "www"):
        assert "overlaps" in pair.restore_from_store(target, code=2).stderr
    assert "overlaps" in pair.restore(pair.primary.state / "x", code=2).stderr
    assert "--in-place" in pair.restore(pair.root, code=2).stderr
    assert "--in-place" in pair.restore(pair.root.parent, code=2).stderr
    pair.restore(pair.root, "--in-place", "--dry-run")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--path", "a", "--delete-extra"), "--path"),
        (("--path", "../x"), "'..'"),
        (("--store", "/nowhere", "--from", "fra1"), "exclude"),
        (("--replica", "replicad-replica x"), "--key"),
        (("--at", "yesterday"), "2026-01-31T18:00:00Z"),
        (("--from", "nobody"), "fra1"),
    ],
)
def test_a_senseless_command_line_is_a_usage_error(
    pair: Pair, tmp_path: Path, words: tuple[str, ...], reason: str
) -> None:
    """Exit code 2, one line, nothing changed."""
    done = pair.restore(tmp_path / "back", *words, code=2)
    assert reason in done.stderr and len(done.stderr.splitlines()) == 1 and not (tmp_path / "back").exists()


def test_a_dataset_that_the_replica_does_not_have_is_a_usage_error(pair: Pair, tmp_path: Path) -> None:
    """The replica says so."""
    done = replicad("restore", "mail", tmp_path / "back", "--config", pair.primary.config, code=None)
    assert done.returncode in (2, 3) and "mail" in done.stderr and not (tmp_path / "back").exists()


def test_a_replica_that_is_out_of_reach_is_passed_over_and_exit_code_3_when_none_is_left(
    pair: Pair, tmp_path: Path
) -> None:
    """The next one is tried, and both reasons are said."""
    blob = b"\0\0\0\x0bssh-ed25519\0\0\0 " + os.urandom(32)
    key = f"ssh-ed25519 {b64encode(blob).decode()}"
    text = pair.primary.config.read_text()
    section = f'[[replica]]\nname = "dead"\naddress = "127.0.0.1:{free_port()}"\nkey = "{key}"\n\n'
    at = text.index("[[replica]]")
    config = tmp_path / "P.toml"
    config.write_text(text[:at] + section + text[at:])
    config.chmod(0o600)
    done = replicad("restore", "www", tmp_path / "back", "--config", config)
    assert "trying the next replica" in done.stderr and "dead" in done.stderr
    assert_same_tree(pair.root, tmp_path / "back")
    replicad("restore", "www", tmp_path / "back", "--config", config, "--from", "dead", code=3)


def test_a_killed_restore_goes_on(tmp_path: Path) -> None:
    """Ended without warning in the middle of a large file, the same command needs only the rest."""
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(300):
        (tree / f"{number:03d}").write_bytes(os.urandom(3000))
    (tree / "large").write_bytes(os.urandom(400_000_000))
    archive_tree(tmp_path / "store" / "ams1" / "www", tree)
    words = ["restore", "www", str(tmp_path / "back"), "--store", str(tmp_path / "store"), "--json"]
    running = subprocess.Popen([*COMMAND, *words], stdout=subprocess.DEVNULL)
    part = tmp_path / "back"
    wait_until(lambda: _has_written(part, 50_000_000), "a part of the large file is there")
    running.send_signal(signal.SIGKILL)
    running.wait(30)
    account = json.loads(replicad(*words).stdout)
    assert account["finished"] and account["right_bytes"] > 40_000_000
    assert differences(tree, part) == ""
    assert not [name for name in os.listdir(part) if os.fsencode(name).startswith(TEMPORARY)]


def _has_written(directory: Path, position: int) -> bool:
    """Whether the unfinished file in `directory` has data there."""
    for path in directory.glob(f"{os.fsdecode(TEMPORARY)}*"):
        fd = os.open(path, os.O_RDONLY)
        try:
            return os.lseek(fd, position, os.SEEK_DATA) == position
        except OSError:
            return False
        finally:
            os.close(fd)
    return False


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_by_a_person_it_says_that_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    """An exit code that shells know, no traceback, and nothing is left but what the next one goes on with."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "large").write_bytes(os.urandom(300_000_000))
    archive_tree(tmp_path / "store" / "ams1" / "www", tree)
    words = ["restore", "www", str(tmp_path / "back"), "--store", str(tmp_path / "store")]
    running = subprocess.Popen([*COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: _has_written(tmp_path / "back", 0) or running.poll() is not None, "the large file is begun")
    running.send_signal(number)
    _, said = running.communicate(timeout=30)
    assert list((tmp_path / "temporary").iterdir()) == []
    if running.returncode != 0:  # it was still at work, as is to be expected
        assert running.returncode == code and "goes on where this one stopped" in said and "Traceback" not in said


def test_the_operators_guide_names_every_key_of_the_account_and_every_option() -> None:
    """What is API is written down."""
    guide = (Path(__file__).parent.parent / "docs" / "RESTORE.md").read_text()
    keys = [name for name in Account.__struct_fields__ if f"`{name}`" not in guide]
    options = re.findall(r"--[a-z-]+", replicad("restore", "--help").stdout)
    assert not keys and {option for option in options if option not in guide} <= {"--config", "--help"}


def test_a_restore_in_which_nothing_moves_says_so() -> None:
    """After a minute, with how long it has been; a single byte or entry ends that."""
    now_s = 100.0
    standstill = Standstill(lambda: now_s)
    assert standstill.words(0, 0) == ""
    now_s += STANDSTILL_S
    assert standstill.words(0, 0) == "; nothing has moved for 1m 0s: look at both disks and at the line"
    assert standstill.words(1, 0) == "" == standstill.words(1, 1)
    now_s += 2 * STANDSTILL_S
    assert "for 2m 0s:" in standstill.words(1, 1)
    assert standstill.words(1, 2) == ""
