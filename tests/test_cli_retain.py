"""The verbs retain and pin, typed at a store without a daemon, at a daemon, and between two real daemons."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from kit_daemon import FakeDaemon, Served, a_node
from kit_pair import Pair, make_pair, replicad
from kit_store import Primary, contents, open_archive, put_files
from replicad.config import load
from replicad.daemon import Daemon
from replicad.db.findings import Findings
from replicad.http.contract import RetainResult
from replicad.store import store as store_module
from replicad.store.format import HEADER_BYTES
from replicad.system.clock import Clock
from replicad.system.disk import Lock
from replicad.system.notify import Notifier
from replicad.work.archive_reader import ArchiveReader
from replicad.work.suspect import EXAMINED

Typed = Callable[..., tuple[int, str, str]]
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEwhm0DsGGzBhk1eu0HYYDUgqH0/WZ3Ygw5Lt65Nq2gL"
CONFIG = """
[node]
name = "fra1"
state = "{root}/state"
http = ""
[listen]
store = "{root}/store"
reserve = "0"
[[client]]
name = "ams1"
key = "{key}"
[[retention]]
client = "ams1"
keep_daily = 4
keep_at_least = 2
keep_younger_than = "2d"
"""
DAY_NS = 86_400 * 10**9
SNAPSHOTS = 20


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A replica with the store ams1/www, which has had two snapshots a day; the last was received just now."""
    file = tmp_path / "config.toml"
    file.write_text(CONFIG.format(root=tmp_path, key=KEY))
    directory = store_of(file)
    archive = open_archive(directory)
    moment = Clock().now_ns() - SNAPSHOTS * DAY_NS // 2
    archive.store._clock_ns = lambda: moment
    for number in range(1, SNAPSHOTS + 1):
        moment += DAY_NS // 2
        put_files(Primary(archive), number, {b"a": b"%d" % number})
    archive.close()
    with closing(Findings(directory / "findings.db")) as findings:
        findings.put(EXAMINED, SNAPSHOTS)
    return file


def store_of(config: Path) -> Path:
    """The store's directory."""
    return config.parent / "store" / "ams1" / "www"


# ------------------------------------------------------------------------------------------------- without a daemon


@pytest.mark.parametrize("words", [("--dry-run",), ("run", "--dry-run"), ("run", "www", "--dry-run")])
def test_a_dry_run_says_what_would_go_and_changes_nothing(config: Path, typed: Typed, words: tuple[str, ...]) -> None:
    """Each snapshot is listed with the one reason why it stays, or goes; the store is what it was."""
    before = sorted((path, path.read_bytes()) for path in store_of(config).glob("segments/*"))
    code, out, _ = typed("retain", *words, "--config", config)
    lines = {int(row.split()[0]): row for row in out.splitlines() if row[:1].isdigit()}
    assert code == 0 and len(lines) == SNAPSHOTS
    assert "the newest" in lines[SNAPSHOTS] and "young" in lines[SNAPSHOTS - 1]
    gone = {number for number, row in lines.items() if row.endswith("goes")}
    assert gone and f"ams1/www: {SNAPSHOTS - len(gone)} stay, {len(gone)} would go" in out
    code, out, _ = typed("retain", *words, "--json", "--config", config)
    (found,) = json.loads(out)["stores"]
    assert code == 0 and set(found["going"]) == gone and found["kept"] == SNAPSHOTS - len(gone)
    frames = len(gone) * (HEADER_BYTES + 2)  # each snapshot had one block of its own, of one byte or two
    assert frames - len(gone) <= found["frees_bytes"] <= frames and not found["unused_bytes"]
    assert not found["returns_bytes"], "all of it stands in the segment that is written to"
    assert f"frees at least {found['frees_bytes']} B" in typed("retain", *words, "--config", config)[1]
    assert before == sorted((path, path.read_bytes()) for path in store_of(config).glob("segments/*"))


def test_a_run_on_a_store_without_a_daemon(config: Path, typed: Typed) -> None:
    """What the dry run said is what goes; the rest is still there, and asking for what went says so."""
    going = json.loads(typed("retain", "--dry-run", "--json", "--config", config)[1])["stores"][0]["going"]
    store = config.parent / "store"
    code, out, _ = typed("retain", "run", "--store", store, "--json", "--config", config)
    (done,) = json.loads(out)["stores"]
    assert code == 0 and done["dropped"] == going and done["kept"] == SNAPSHOTS - len(going) and not done["error"]
    listed = json.loads(typed("snapshots", "--store", store, "www", "--json")[1])
    numbers = [line["number"] for line in (listed["snapshots"] if isinstance(listed, dict) else listed)]
    assert numbers == [number for number in range(1, SNAPSHOTS + 1) if number not in going]
    assert contents(store_of(config), SNAPSHOTS) == {b"a": b"%d" % SNAPSHOTS}
    told = json.loads(typed("history", "--store", store, "www", "a", "--json")[1])
    assert [event["snapshot"]["number"] for event in told] == numbers[::-1], "as if the others had never been"
    assert [event["event"] for event in told] == ["changed"] * (len(numbers) - 1) + ["created"]
    code, _, err = typed("restore", "--store", store, "www", config.parent / "back", "--at", going[0])
    assert code == 2 and str(going[0]) in err
    code, out, _ = typed("retain", "run", "--store", store, "--config", config)
    assert code == 0 and "0 let go" in out


def test_a_store_in_which_a_daemon_works_is_left_alone(config: Path, typed: Typed) -> None:
    """Its lock says so."""
    lock = Lock(store_of(config) / "lock")
    code, _, err = typed("retain", "run", "--store", config.parent / "store", "--config", config)
    lock.release()
    assert code == 2 and "already works here" in err


def test_one_store_that_is_locked_hides_nothing_of_the_others(config: Path, typed: Typed) -> None:
    """What was let go elsewhere is told, beside the store that was left alone, and the exit code is no success."""
    shutil.copytree(store_of(config), store_of(config).parent / "zzz")
    lock = Lock(store_of(config).parent / "zzz" / "lock")
    code, out, _ = typed("retain", "run", "--store", config.parent / "store", "--json", "--config", config)
    lock.release()
    done, left = json.loads(out)["stores"]
    assert code == 3 and done["dataset"] == "www" and done["dropped"] and not done["error"]
    assert left["dataset"] == "zzz" and "already works here" in left["error"]


def test_a_pin_on_what_is_just_gone_is_not_left_behind(
    config: Path, typed: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name is free for another snapshot."""
    listed = iter([ArchiveReader.snapshots, lambda reader: []])
    monkeypatch.setattr(ArchiveReader, "snapshots", lambda reader: next(listed)(reader))
    code, _, err = typed("pin", "add", "audit", "www", "--at", 1, "--config", config)
    assert code == 2 and "was dropped just before" in err
    monkeypatch.undo()
    assert typed("pin", "list", "--config", config)[1] == "nothing is pinned\n"


def test_a_clock_that_is_behind_is_a_finding(config: Path, typed: Typed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing goes, and the exit code tells scripts."""
    late = Clock().now_ns() - 5 * DAY_NS
    monkeypatch.setattr(Clock, "now_ns", lambda self: late)
    for words in (("--dry-run",), ("run", "--store", config.parent / "store")):
        code, out, _ = typed("retain", *words, "--config", config)
        assert code == 1 and "held: this clock is" in out


def test_what_cannot_be_read_is_no_success(config: Path, typed: Typed) -> None:
    """A store whose findings are not there, so that nobody knows what is pinned: exit code 3."""
    (store_of(config) / "findings.db").unlink()
    code, out, err = typed("retain", "--dry-run", "--config", config)
    assert code == 3 and "nothing has been looked at" in err and "go" not in out


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("run", "nothing", "--dry-run"), "holds no dataset"),
        (("--dry-run", "run"), "stand behind the verb"),
    ],
)
def test_what_makes_no_sense_is_refused(config: Path, typed: Typed, words: tuple[str, ...], text: str) -> None:
    """Usage errors, exit code 2."""
    code, _, err = typed("retain", *words, "--config", config)
    assert code == 2 and text in err


def test_a_primary_has_no_retention(tmp_path: Path, typed: Typed) -> None:
    """It and pins are the replica's alone."""
    file = tmp_path / "config.toml"
    file.write_text(f'[node]\nname = "ams1"\nstate = "{tmp_path}/state"\nhttp = ""\n')
    for words in (("retain", "run"), ("retain", "--dry-run"), ("pin", "list"), ("pin", "add", "a", "www")):
        code, _, err = typed(*words, "--config", file)
        assert code == 2 and "on the replica" in err, words


# -------------------------------------------------------------------------------------------------------------- pins


def test_pins_are_added_listed_and_removed(config: Path, typed: Typed) -> None:
    """A pin keeps its snapshot from a run; once it is removed the rules decide."""
    going = json.loads(typed("retain", "--dry-run", "--json", "--config", config)[1])["stores"][0]["going"]
    at = ("--config", config)
    assert typed("pin", "list", *at)[:2] == (0, "nothing is pinned\n")
    code, out, _ = typed("pin", "add", "before-upgrade", "www", "--at", going[0], "--reason", "ticket 12", *at)
    assert code == 0 and f"snapshot {going[0]} is kept as before-upgrade" in out
    code, out, _ = typed("pin", "add", "now", "ams1/www", "--json", *at)
    assert code == 0 and json.loads(out)["snapshot"] == SNAPSHOTS
    rows = json.loads(typed("pin", "list", "--json", *at)[1])["pins"]
    assert [(row["name"], row["snapshot"], row["reason"]) for row in rows] == [
        ("before-upgrade", going[0], "ticket 12"),
        ("now", SNAPSHOTS, ""),
    ]
    out = typed("retain", "run", "--store", config.parent / "store", "--json", *at)[1]
    assert json.loads(out)["stores"][0]["dropped"] == going[1:]
    assert f"{going[0]}  " in typed("retain", "--dry-run", *at)[1]
    assert typed("pin", "remove", "before-upgrade", "www", *at)[0] == 0
    out = typed("retain", "run", "--store", config.parent / "store", "--json", *at)[1]
    assert json.loads(out)["stores"][0]["dropped"] == going[:1]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("add", "a/b", "www"), "name"),
        (("add", "a", "nothing"), "no dataset"),
        (("add", "a", "www", "--at", "999"), "999"),
        (("add", "a", "www", "--at", "1960-01-01T00:00:00Z"), "no snapshot is as old"),
        (("add", "a", "www", "--reason", "a\nb"), "control character"),
        (("remove", "a", "www"), "has no pin"),
    ],
)
def test_pins_that_make_no_sense_are_refused(config: Path, typed: Typed, words: tuple[str, ...], text: str) -> None:
    """Usage errors, exit code 2, and nothing is pinned."""
    code, _, err = typed("pin", *words, "--config", config)
    assert code == 2 and re.search(text, err), err
    assert typed("pin", "list", "--config", config)[1] == "nothing is pinned\n"


# ------------------------------------------------------------------------------------------------------ at a daemon


def test_a_run_is_the_daemons(config: Path, typed: Typed) -> None:
    """It is asked, and what it says is shown; one that could not be finished is exit code 3."""
    daemon = FakeDaemon(a_node())
    daemon.retained = [RetainResult("ams1", "www", "", 41, [1, 2, 3], 2, 2048, ["segment 4: a finding is open"])]
    code, _, err = typed("retain", "run", "--config", config)
    assert code == 3 and "daemon" in err
    (config.parent / "state").mkdir()
    with Served(daemon, config.parent / "state"):
        code, out, _ = typed("retain", "run", "www", "--config", config)
        assert code == 0 and "ams1/www: 3 let go, 41 kept, 2.0 KiB given back" in out and "left: segment 4" in out
        daemon.retained = [RetainResult("ams1", "www", error="the disk is on fire")]
        code, out, _ = typed("retain", "run", "--config", config)
        assert code == 3 and "on fire" in out
    assert daemon.asked == ["retain www", "retain None"]


class Shifted(Clock):
    """A replica's wall clock in a test that goes through days; nobody waits for long."""

    shift_ns = -9 * DAY_NS

    def now_ns(self) -> int:
        return time.time_ns() + self.shift_ns

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(min(seconds, 0.2))


@asynccontextmanager
async def living(pair: Pair, clock: Clock) -> AsyncIterator[tuple[Daemon, Daemon]]:
    """Both daemons in this process; the replica has this clock."""
    daemons = [Daemon(load(pair.replica.config), clock=clock), Daemon(load(pair.primary.config))]
    tasks = [asyncio.create_task(daemon.run(Notifier())) for daemon in daemons]
    try:
        for daemon in daemons:
            await until(lambda daemon=daemon: bool(daemon.status().http))
        yield daemons[0], daemons[1]
    finally:
        for daemon in daemons:
            daemon.stop()
        await asyncio.gather(*tasks)


async def until(holds: Callable[[], bool], patience_s: float = 60.0) -> None:
    """Wait for a state."""
    end_s = time.monotonic() + patience_s
    while not holds():
        assert time.monotonic() < end_s
        await asyncio.sleep(0.02)


async def say(*words: object, code: int = 0) -> str:
    """What a command says, typed while the daemons go on."""
    return (await asyncio.to_thread(replicad, *words, code=code)).stdout


async def test_two_daemons_and_days_of_snapshots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Snapshots come over the link, the replica lets go what its rules do not keep and gives the room back while the
    session stays open, a pin holds one, the primary goes on as if nothing had been, and restores what is kept; what is
    not is refused by name."""
    monkeypatch.setattr(store_module, "SEGMENT_BYTES", 100_000)
    root = tmp_path / "www"
    root.mkdir()
    pair, clock = make_pair(tmp_path, root, dataset_options='rpo = "1d"\nwatch = false'), Shifted()
    with pair.replica.config.open("a") as file:
        file.write('\n[[retention]]\nkeep_within = "1h"\nkeep_at_least = 1\nkeep_younger_than = "1d"\n')
    here, there = ["--config", pair.primary.config], ["--config", pair.replica.config]
    async with living(pair, clock) as (replica, _):
        for day in range(8):
            (root / "a").write_text(f"day {day}")
            (root / "big").write_bytes(os.urandom(150_000))
            await say("sync", "www", "--wait", *here)
            clock.shift_ns += DAY_NS
        numbers = [line["number"] for line in await _snapshots(here)]
        pinned = numbers[1]
        await say("pin", "add", "audit", "www", "--at", pinned, *there)

        async def going() -> list[int]:
            return list(json.loads(await say("retain", "--dry-run", "--json", *there))["stores"][0]["going"])

        while len(found := await going()) < len(numbers) - 5:  # until all are examined
            await asyncio.sleep(0.1)
        done = json.loads(await say("retain", "run", "--json", *there))["stores"][0]
        assert set(found) <= set(done["dropped"]) and pinned not in done["dropped"] and not done["error"]
        assert done["compacted"] and done["reclaimed_bytes"] > 300_000, done
        left = [line["number"] for line in await _snapshots(here)]
        assert left == [number for number in numbers if number not in done["dropped"]] and pinned in left
        await say("restore", "www", tmp_path / "pinned", "--at", pinned, *here)
        assert (tmp_path / "pinned" / "a").read_text() == "day 1" or numbers[0] != 1
        await say("restore", "www", tmp_path / "gone", "--at", done["dropped"][0], *here, code=2)
        (root / "a").write_text("afterwards")
        await say("sync", "www", "--wait", *here)
        await say("restore", "www", tmp_path / "latest", *here)
        assert (tmp_path / "latest" / "a").read_text() == "afterwards"
        (line,) = replica.status().retentions
        assert line.dropped >= len(done["dropped"]) and line.last_run_ns
        assert "retain www of ams1" in {job.name for job in replica.status().jobs}


async def _snapshots(here: list[object]) -> list[dict[str, int]]:
    listed = json.loads(await say("snapshots", "www", "--json", *here))
    return list(listed["snapshots"] if isinstance(listed, dict) else listed)
