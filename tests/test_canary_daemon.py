"""Canaries between two real daemons: the whole way, kills, a root that is not there, and who else sees the file."""

from __future__ import annotations

import json
import os
import subprocess
import urllib.request
from pathlib import Path

import pytest

from kit_drill import drill
from kit_pair import Pair, make_pair, replicad, running, wait_until
from replicad.model.canary_text import parse
from replicad.status import CanaryStatus

NAME = ".replicad-canary"
OFTEN = f'canary = "{NAME}"\ncanary_every = "1s"\ncanary_within = "60s"'
ONCE = f'canary = "{NAME}"\ncanary_every = "1d"\ncanary_within = "1s"'


def a_root(directory: Path) -> Path:
    """A dataset."""
    root = directory / "www"
    root.mkdir()
    for number in range(5):
        (root / f"file-{number}").write_bytes(os.urandom(10_000))
    return root


def canary(pair: Pair) -> CanaryStatus:
    """How the canary fares."""
    (line,) = pair.primary.status().canaries
    return line


def test_the_whole_way_and_everything_else_that_sees_the_file(tmp_path: Path) -> None:
    """Timed by stage, told as a metric and in the status; in the history, proven by a drill, restored, no suspect, and
    without a trace outside its one file."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    options = f'{OFTEN}\ndrill_scratch = "{scratch}"\ndrill_every = 0'
    with running(make_pair(tmp_path, a_root(tmp_path), dataset_options=options)) as pair:
        wait_until(lambda: canary(pair).last_number >= 3, "three canaries came through")
        line = canary(pair)
        assert line.lags is not None and not line.failure
        assert 0 < line.lags.acknowledged_s <= line.lags.verified_s <= line.lags.restored_s
        said = replicad("status", "--config", pair.primary.config).stdout
        assert "verified" in said and "and restored within" in " ".join(said.split())
        document = json.loads(replicad("status", "--json", "--config", pair.primary.config).stdout)
        assert set(document["canaries"][0]["lags"]) == {"acknowledged_s", "verified_s", "restored_s"}
        with urllib.request.urlopen(f"http://{pair.primary.status().http}/metrics") as answer:
            text = answer.read().decode()
        for stage in ("acknowledged", "verified", "restored"):
            (sample,) = [row for row in text.splitlines() if f'stage="{stage}"' in row]
            assert 0 < float(sample.split()[-1]) < 60
        history = json.loads(replicad("history", "www", NAME, "--json", "--config", pair.primary.config).stdout)
        assert len(history) >= 3
        assert drill(pair, "--full")["outcome"] == "proven"
        target = tmp_path / "back"
        pair.restore(target)
        restored = parse((target / NAME).read_bytes())
        assert restored is not None and restored.dataset == "www"
        assert not pair.line.held and not pair.line.fuzzy and not pair.line.unread
        listed = json.loads(replicad("suspects", "list", "--json", "--config", pair.replica.config).stdout)
        assert listed == {"suspects": [], "unread": []}
        assert sorted(path.name for path in pair.root.iterdir()) == [NAME, *(f"file-{n}" for n in range(5))]
        wait_until(lambda: not list((pair.primary.state / "canary").glob("*/*/*")), "no scratch is left")


def test_a_canary_survives_kills_of_both_sides(tmp_path: Path) -> None:
    """Written while the replica is dead, late meanwhile; it comes through after kills of both daemons, as it was."""
    with running(make_pair(tmp_path, a_root(tmp_path), dataset_options=ONCE)) as pair:
        wait_until(lambda: canary(pair).last_number == 1, "the first came through")
        pair.replica.kill()
        pair.primary.kill()
        text = pair.primary.config.read_text().replace('"1d"', '"5s"')
        pair.primary.config.write_text(text)
        pair.primary.start()
        wait_until(lambda: canary(pair).number >= 2, "another was written")
        pair.primary.kill()
        pair.primary.config.write_text(text.replace('"5s"', '"1d"'))
        pair.primary.start()
        written = parse((pair.root / NAME).read_bytes())
        assert written is not None and written.number >= 2
        wait_until(lambda: canary(pair).number == written.number, "it is remembered")
        wait_until(lambda: "canary" in kinds(pair), "it is late")
        assert canary(pair).last_number == 1 and canary(pair).lags is not None
        pair.replica.start()
        wait_until(lambda: canary(pair).last_number == written.number, "it came through")
        assert parse((pair.root / NAME).read_bytes()) == written
        lags = canary(pair).lags
        assert lags is not None and lags.restored_s > 1.0, "the time without a replica counts"
        wait_until(lambda: "canary" not in kinds(pair), "it is late no more")


def test_somebody_elses_file_of_that_name_stays(tmp_path: Path) -> None:
    """The daemon says so and goes on; the dataset is copied all the same, with that file in it."""
    root = a_root(tmp_path)
    (root / NAME).write_bytes(b"mine")
    with running(make_pair(tmp_path, root, dataset_options=OFTEN)) as pair:
        wait_until(lambda: canary(pair).state == "refused", "it is refused")
        said = replicad("status", "--config", pair.primary.config, code=1).stdout
        assert "somebody's file" in " ".join(said.split())
        pair.sync()
        pair.restore(tmp_path / "back")
        assert (root / NAME).read_bytes() == (tmp_path / "back" / NAME).read_bytes() == b"mine"
        (root / NAME).unlink()
        wait_until(lambda: canary(pair).last_number >= 1, "the name is free, and the canary goes")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
def test_an_unmounted_root_gets_no_canary(tmp_path: Path) -> None:
    """The mount point stays empty, the dataset is held, and the canary paused with the reason; mounted again it goes
    on."""
    root, disk = tmp_path / "mnt", tmp_path / "disk"
    root.mkdir()
    with disk.open("wb") as file:
        file.truncate(16 * 2**20)
    subprocess.run(["mkfs.ext4", "-q", disk], check=True)
    subprocess.run(["mount", "-o", "loop", disk, root], check=True)
    is_mounted = True
    try:
        (root / "file").write_bytes(b"here")
        with running(make_pair(tmp_path, root, dataset_options=OFTEN + "\nwatch = false\nrpo = '1s'")) as pair:
            wait_until(lambda: canary(pair).last_number >= 1, "one came through")
            wait_until(lambda: subprocess.run(["umount", root], check=False).returncode == 0, "it is unmounted")
            is_mounted = False
            wait_until(lambda: canary(pair).state == "paused", "it is paused")
            wait_until(lambda: pair.line.held, "the dataset is held")
            wait_until(lambda: canary(pair).state == "paused" and bool(canary(pair).reason), "and it says why")
            assert list(root.iterdir()) == []
            last = canary(pair).last_number
            subprocess.run(["mount", "-o", "loop", disk, root], check=True)
            is_mounted = True
            replicad("release", "www", "--config", pair.primary.config)
            wait_until(lambda: canary(pair).last_number > last, "it goes on")
    finally:
        if is_mounted:
            subprocess.run(["umount", "-l", root], check=True)


def test_a_reload_begins_and_ends_canaries(tmp_path: Path) -> None:
    """The file stays when its configuration goes: it is a file of the dataset."""
    with running(make_pair(tmp_path, a_root(tmp_path))) as pair:
        pair.sync()
        assert pair.primary.status().canaries == [] and not (pair.root / NAME).exists(), "none by itself"
        text = pair.primary.config.read_text()
        pair.primary.config.write_text(text.replace("[[dataset]]\n", f"[[dataset]]\n{OFTEN}\n"))
        pair.primary.hang_up()
        wait_until(lambda: [c.last_number for c in pair.primary.status().canaries] > [0], "one came through")
        pair.primary.config.write_text(text)
        pair.primary.hang_up()
        wait_until(lambda: pair.primary.status().canaries == [], "there is none any more")
        assert parse((pair.root / NAME).read_bytes()) is not None


def kinds(pair: Pair) -> set[str]:
    """What is wrong at the primary, by kind."""
    document = json.loads(replicad("status", "--json", "--config", pair.primary.config, code=None).stdout)
    return {finding["kind"] for finding in document["findings"]}
