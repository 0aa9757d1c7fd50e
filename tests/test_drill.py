"""Drills over a real link: what is proven, what fails, what could not be found out."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
from pathlib import Path

from kit_drill import drill, drilled_pair, scratch_of
from kit_pair import make_pair, replicad, running, wait_until
from replicad.http.api import Client


def a_tree(root: Path) -> None:
    """Some files, large and small, a hole, links."""
    root.mkdir()
    (root / "docs").mkdir()
    for number in range(40):
        (root / "docs" / f"{number:02}.txt").write_bytes(os.urandom(1000 + number))
    (root / "big.img").write_bytes(os.urandom(3_000_000))
    with (root / "holes").open("wb") as file:
        file.truncate(2_000_000)
        file.seek(1_000_000)
        file.write(b"island")
    os.link(root / "big.img", root / "docs" / "again.img")
    (root / "docs" / "link").symlink_to("00.txt")
    (root / "log.gz").write_bytes(gzip.compress(b"words " * 10_000))
    (root / "empty").write_bytes(b"")


def test_a_full_drill_proves_everything_and_leaves_nothing(tmp_path: Path) -> None:
    """Every file comes back, is read back as the ledger says, passes its validator; the scratch space is empty."""
    a_tree(tmp_path / "www")
    options = 'drill_every = 0\nvalidators = [{kind = "gzip", pattern = "*.gz"}]'
    with drilled_pair(tmp_path, tmp_path / "www", options) as pair:
        record = drill(pair, "--full")
        assert record["outcome"] == "proven", record
        assert record["files"] == record["compared_files"] == record["total_files"] == 45
        assert record["validations"] == {"proven": 1}
        assert list(scratch_of(tmp_path).iterdir()) == []
        said = replicad("drill", "history", "--config", pair.primary.config).stdout
        assert "proven" in said and "full" in said


def test_samples_go_through_everything_least_recently_drilled_first(tmp_path: Path) -> None:
    """With drill_within four times drill_every, four samples have drilled every file, each once."""
    root = tmp_path / "www"
    root.mkdir()
    for number in range(20):
        (root / f"{number:02}").write_bytes(os.urandom(1000))
    with drilled_pair(tmp_path, root, 'drill_every = "1d"\ndrill_within = "4d"') as pair:
        wait_until(lambda: pair.primary.status().drills[0].last is not None, "the first drill comes by itself")
        line = pair.primary.status().drills[0]
        assert line.last is not None and line.last.outcome == "proven" and line.last.files == 5
        assert line.never_files == 15 and line.last_success_ns == line.last.ended_ns
        for left in (10, 5, 0):
            assert drill(pair)["files"] == 5
            assert pair.primary.status().drills[0].never_files == left


def test_a_sample_brings_what_a_validator_needs_beside_it(tmp_path: Path) -> None:
    """One file of a directory that is validated as a whole brings the others, and empty directories too."""
    root = tmp_path / "www"
    (root / "site" / "empty").mkdir(parents=True)
    for number in range(9):
        (root / "site" / str(number)).write_text("page")
    options = 'drill_every = "1d"\ndrill_within = "9d"\nvalidators = [{kind = "command", pattern = "site", command = '
    look = ["/bin/sh", "-c", 'test -d "$1/empty" && test "$(ls "$1" | wc -l)" = 10', "look"]
    with drilled_pair(tmp_path, root, f"{options}{json.dumps(look)}}}]") as pair:
        record = drill(pair)
        assert record["outcome"] == "proven" and record["files"] == 9, record


def test_what_the_replica_lost_is_a_failed_drill(tmp_path: Path) -> None:
    """Blocks that rotted on the replica fail the drill by name, and the last success stays where it was."""
    a_tree(tmp_path / "www")
    with drilled_pair(tmp_path, tmp_path / "www") as pair:
        drill(pair, "--full")
        before = pair.primary.status().drills[0].last_success_ns
        assert before
        for segment in (pair.store / "ams1" / "www" / "segments").iterdir():
            data = bytearray(segment.read_bytes())
            if len(data) > 3_000_000:
                data[2_000_000] ^= 1
                segment.write_bytes(data)
        record = drill(pair, "--full", code=1)
        assert record["outcome"] == "failed"
        assert any("big.img" in reason or "again.img" in reason for reason in record["reasons"]), record
        line = pair.primary.status().drills[0]
        assert line.last_success_ns == before and line.drills == {"proven": 1, "failed": 1}
        assert list(scratch_of(tmp_path).iterdir()) == []


def test_a_replica_out_of_reach_is_inconclusive(tmp_path: Path) -> None:
    """Without a link nothing is known: that is no failure, and no success either."""
    a_tree(tmp_path / "www")
    with drilled_pair(tmp_path, tmp_path / "www") as pair:
        pair.replica.stop()
        record = drill(pair, code=1)
        assert record["outcome"] == "inconclusive" and pair.primary.status().drills[0].last_success_ns == 0


def test_a_limit_that_is_too_small_is_inconclusive(tmp_path: Path) -> None:
    """What does not fit into drill_limit is said, and nothing is restored."""
    a_tree(tmp_path / "www")
    with drilled_pair(tmp_path, tmp_path / "www", 'drill_every = 0\ndrill_limit = "1MiB"') as pair:
        record = drill(pair, "--full", code=1)
        assert record["outcome"] == "inconclusive" and record["restored_bytes"] == 0
        assert "drill_limit" in str(record["reasons"])
        record = drill(pair, "--path", "docs/0*.txt")
        assert record["outcome"] == "proven" and record["files"] == 10 and record["kind"] == "paths"
        assert pair.primary.status().drills[0].last_success_ns == 0, "of chosen paths nothing follows for the dataset"


def test_a_glob_that_matches_nothing_proves_nothing(tmp_path: Path) -> None:
    """A drill of no file is inconclusive; a pattern that is none is refused."""
    a_tree(tmp_path / "www")
    with drilled_pair(tmp_path, tmp_path / "www") as pair:
        assert drill(pair, "--path", "nothing*", code=1)["outcome"] == "inconclusive"
        replicad("drill", "run", "www", "--path", "..", "--config", pair.primary.config, code=2)
        replicad("drill", "run", "www", "--full", "--path", "a", "--config", pair.primary.config, code=2)
        replicad("drill", "run", "nobody", "--config", pair.primary.config, code=2)
        replicad("drill", "history", "nobody", "--config", pair.primary.config, code=2)
        pair.primary.stop()
        replicad("drill", "run", "www", "--config", pair.primary.config, code=3)
        assert "nothing*" not in replicad("drill", "history", "--json", "--config", pair.primary.config).stdout


def test_a_killed_drill_is_cleaned_up_at_the_next_start(tmp_path: Path) -> None:
    """A daemon that is killed in a drill leaves its scratch directory; the next one removes that, and nothing else."""
    root = tmp_path / "www"
    root.mkdir()
    (root / "a").write_bytes(os.urandom(1000))
    sleep = ["/bin/sh", "-c", f"sleep {SLEEP_S}", "look"]
    options = f'drill_every = 0\nvalidators = [{{kind = "command", pattern = "a", command = {json.dumps(sleep)}}}]'
    with drilled_pair(tmp_path, root, options) as pair:
        scratch = scratch_of(tmp_path)
        theirs = scratch / "replicad-drill-www-0badcafe"
        theirs.mkdir()
        (theirs / "precious").write_text("of somebody else")
        Client(pair.primary.state).drill("www")
        wait_until(lambda: sleepers(), "the validator runs")
        pair.primary.kill()
        assert len(list(scratch.iterdir())) == 2
        wait_until(lambda: not sleepers(), "what the killed daemon had started ends too")
        pair.primary.start()
        wait_until(lambda: list(scratch.iterdir()) == [theirs], "the killed drill's directory goes")
        assert (theirs / "precious").exists()


SLEEP_S = 100_000 + os.getpid()
"""Tells the sleeping validator of this process from others."""


def sleepers() -> list[str]:
    """Processes that sleep so long."""
    return subprocess.run(["pgrep", "-fx", f"sleep {SLEEP_S}"], capture_output=True, text=True).stdout.split()


def test_an_unprivileged_daemon_drills_and_says_what_it_could_not_set(tmp_path: Path) -> None:
    """As under systemd: it reads any file, owns none, and may give none away. Owners are not set, nothing fails for
    that, and a validator gets no more rights than the daemon's user has, without its capability."""
    root = tmp_path / "www"
    a_tree(root)
    (root / "secret").write_text("for root alone")
    (root / "secret").chmod(0o600)
    os.mknod(root / "device", 0o20600, os.makedev(1, 3))
    sole = ["/bin/sh", "-c", "grep -q 'CapEff:.0000000000000000' /proc/self/status && test $(id -u) = 65534", "look"]
    scratch_of(tmp_path).mkdir()
    lines = f'drill_scratch = "{scratch_of(tmp_path)}"\ndrill_every = 0\n'
    lines += f'validators = [{{kind = "command", pattern = "log.gz", command = {json.dumps(sole)}}}]'
    pair = make_pair(tmp_path, root, dataset_options=lines)
    tmp_path.chmod(0o711)
    for path in (scratch_of(tmp_path), pair.primary.config.parent, *pair.primary.config.parent.rglob("*")):
        os.chown(path, 65534, 65534)
    pair.primary.prefix = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    pair.primary.prefix += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    with running(pair):
        pair.sync()
        record = drill(pair, "--full")
        assert record["outcome"] == "proven" and record["validations"] == {"proven": 1}, record
        assert record["metadata_not_set"] and record["compared_files"] == 46
        assert any("secret" in line or "device" in line for line in record["metadata"]), record  # type: ignore[attr-defined]
        assert list(scratch_of(tmp_path).iterdir()) == []


def test_a_reload_begins_a_drill_anew_and_a_stop_gives_it_up(tmp_path: Path) -> None:
    """Whoever waits for a drill gets it from the changed configuration; a daemon that stops leaves neither a process
    nor a scratch directory."""
    root = tmp_path / "www"
    root.mkdir()
    (root / "a").write_bytes(os.urandom(1000))
    sleep = ["/bin/sh", "-c", f"sleep {SLEEP_S}", "look"]
    options = f'drill_every = 0\nvalidators = [{{kind = "command", pattern = "a", command = {json.dumps(sleep)}}}]'
    with drilled_pair(tmp_path, root, options) as pair:
        scratch = scratch_of(tmp_path)
        Client(pair.primary.state).drill("www")
        wait_until(sleepers, "the validator runs")
        replicad("drill", "run", "www", "--config", pair.primary.config, code=2)
        before, directory = sleepers(), list(scratch.iterdir())
        text = pair.primary.config.read_text()
        pair.primary.config.write_text(text.replace("drill_every = 0", "drill_every = 0\nrpo = '1h'"))
        pair.primary.hang_up()
        wait_until(lambda: set(sleepers()) - set(before), "the drill begins anew")
        assert list(scratch.iterdir()) != directory and len(list(scratch.iterdir())) == 1
        assert pair.primary.status().drills[0].requested == 1
        assert pair.primary.stop() == 0
        assert list(scratch.iterdir()) == [] and sleepers() == []
