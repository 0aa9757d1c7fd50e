"""`replicad scrub`, typed at a daemon behind a real control socket, and how `replicad status` shows scrubs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from kit_daemon import NOW_NS, FakeDaemon, S, Served, a_dataset, a_node, a_scrub, a_store
from replicad.cli.scrub import STUCK_S, Awaited, describe
from replicad.cli.status import COLUMNS, exit_code, render
from replicad.http.contract import ScrubRequest
from replicad.status import NodeStatus, ScrubStatus, findings

Typed = Callable[..., tuple[int, str, str]]
GIB = 1024**3


def ends_at_once(daemon: FakeDaemon, **changes: object) -> None:
    """Every scrub that is asked for ends right away, with these changes."""

    def end() -> None:
        for line in daemon.node.scrubs:
            line.served = line.requested
            line.media_bytes += 2 * GIB
            for name, value in changes.items():
                setattr(line, name, value)

    daemon.on_scrub = end


# --------------------------------------------------------------------------------------------------------- start


def test_start_asks_and_returns(tmp_path: Path, typed: Typed) -> None:
    """Without --wait it says what was asked for, and where to look."""
    daemon = FakeDaemon(a_node(a_dataset(), a_scrub()))
    with Served(daemon, tmp_path) as served:
        code, out, _ = typed("scrub", "start", "www", "--side", "primary", "--config", served.config())
    assert (code, daemon.asked) == (0, ["start www primary 0"])
    assert out == "www here (primary): everything is verified from now on: replicad scrub status\n"


def test_wait_ends_clean(tmp_path: Path, typed: Typed) -> None:
    """A scrub that found nothing exits 0 and accounts for what was read."""
    daemon = FakeDaemon(a_node(a_dataset(), a_scrub()))
    ends_at_once(daemon)
    with Served(daemon, tmp_path) as served:
        code, out, _ = typed("scrub", "start", "--wait", "--config", served.config())
    assert code == 0
    assert out.startswith("www here (primary): clean: 2.0 GiB verified from the medium, ")


def test_wait_ends_with_what_was_found(tmp_path: Path, typed: Typed) -> None:
    """Open divergences exit 1, by verdict and with what to type; bytes from a cache are told apart."""
    daemon = FakeDaemon(a_node(a_dataset(), a_scrub(cache_bytes=0)))
    ends_at_once(daemon, divergent={"primary_rot": 2}, cache_bytes=GIB)
    with Served(daemon, tmp_path) as served:
        code, out, _ = typed("scrub", "start", "--wait", "--config", served.config())
        as_json = typed("scrub", "start", "--wait", "--json", "--config", served.config())
    assert code == as_json[0] == 1
    assert "divergent: 2.0 GiB verified from the medium, 1.0 GiB through a cache" in out
    assert "open: 2 primary_rot: replicad divergence list" in out
    [outcome] = json.loads(as_json[1])["scrubs"]
    assert (outcome["result"], outcome["divergent"], outcome["media_bytes"]) == (
        "divergent",
        {"primary_rot": 2},
        2 * GIB,
    )


def test_a_time_limit_ends_the_wait(tmp_path: Path, typed: Typed) -> None:
    """A scrub that is not done in time exits 1; the daemon goes on with it."""
    daemon = FakeDaemon(a_node(a_dataset(), a_scrub(state="running", left_bytes=GIB)))
    with Served(daemon, tmp_path) as served:
        code, out, _ = typed("scrub", "start", "--wait", "--timeout", "100ms", "--config", served.config())
    assert code == 1 and "late" in out and "the daemon goes on with it" in out


def test_no_daemon_exits_3(tmp_path: Path, typed: Typed) -> None:
    """A daemon out of reach is told from a finding."""
    file = tmp_path / "config.toml"
    file.write_text(f'[node]\nname = "ams1"\nstate = "{tmp_path}"\n')
    for words in (["start"], ["start", "--wait"], ["pause"], ["resume"], ["status"]):
        assert typed("scrub", *words, "--config", file)[0] == 3


@pytest.mark.parametrize(
    "words",
    [
        ["start", "--side", "both"],
        ["start", "--timeout", "5m"],
        ["start", "--wait", "--timeout", "soon"],
        ["pause", "--for", "25h"],
        ["pause", "--for", "0"],
        ["status", "nothing"],
    ],
)
def test_nonsense_exits_2_and_changes_nothing(tmp_path: Path, typed: Typed, words: list[str]) -> None:
    """A word that means nothing here is refused before anything happens."""
    daemon = FakeDaemon(a_node(a_dataset(), a_scrub()))
    with Served(daemon, tmp_path) as served:
        code, out, err = typed("scrub", *words, "--config", served.config())
    assert (code, out, daemon.asked) == (2, "", []) and err.startswith("replicad: ")


def awaited(**changes: object) -> Awaited:
    """A scrub that somebody waits for, before the first look."""
    return Awaited(ScrubRequest("www", "primary", "", 3), a_scrub(), 100.0, None, **changes)  # type: ignore[arg-type]


def running(**changes: object) -> ScrubStatus:
    return a_scrub(**({"requested": 3, "served": 2, "state": "running"} | changes))


def test_a_scrub_that_cannot_go_on_is_given_up_on() -> None:
    """Failing, waiting or paused with no progress for a while ends the wait as incomplete, with the reason; a try that
    fails again is no progress."""
    failed = {"state": "failed", "reason": "Input/output error"}
    watch = awaited()
    for at_s in (100.0, 100.0 + STUCK_S - 1):
        watch.look(running(**failed), at_s)
    assert watch.result == ""
    watch.look(running(media_bytes=10**9), 100.0 + STUCK_S)
    watch.look(running(**failed, media_bytes=10**9), 100.0 + STUCK_S + 1)
    assert watch.result == ""
    watch.look(running(media_bytes=10**9), 100.0 + STUCK_S + 2)
    watch.look(running(**failed, media_bytes=10**9), 100.0 + 2 * STUCK_S + 1)
    assert (watch.result, watch.outcome().reason, watch.outcome().exit_code) == ("incomplete", "Input/output error", 1)


def test_a_scrub_that_lacks_only_what_cannot_be_looked_at_is_given_up_on() -> None:
    """Whatever else the daemon reads meanwhile; one that is held up no longer is waited for."""
    held_up = {"state": "idle", "held_up": True, "reason": "1 part could not be looked at"}
    watch = awaited()
    watch.look(running(**held_up, media_bytes=1), 100.0)
    watch.look(running(media_bytes=2), 100.0 + STUCK_S)
    watch.look(running(**held_up, media_bytes=3), 101.0 + STUCK_S)
    watch.look(running(**held_up | {"state": "running"}, media_bytes=4), 100.0 + 2 * STUCK_S)
    assert watch.result == ""
    watch.look(running(**held_up, media_bytes=5), 101.0 + 2 * STUCK_S)
    assert (watch.result, watch.outcome().reason) == ("incomplete", "1 part could not be looked at")


def test_progress_is_what_is_left() -> None:
    """What the bar shows follows from the bytes left; at the end all is done."""
    watch = awaited()
    watch.look(running(left_bytes=100), 101.0)
    watch.look(running(left_bytes=30), 102.0)
    assert (watch.done_bytes, watch.total_bytes) == (70, 100)
    watch.look(running(served=3, left_bytes=0), 103.0)
    assert (watch.done_bytes, watch.result, watch.outcome().seconds) == (100, "clean", 3.0)


# ---------------------------------------------------------------------------------------------- pause and resume


def test_pause_says_when_it_ends(tmp_path: Path, typed: Typed) -> None:
    """A day when nothing is said, as long as --for says otherwise."""
    daemon = FakeDaemon(a_node(a_dataset(), a_scrub()))
    with Served(daemon, tmp_path) as served:
        code, out, _ = typed("scrub", "pause", "--config", served.config())
        assert typed("scrub", "pause", "www", "--for", "4h", "--config", served.config())[0] == 0
    assert code == 0
    assert out.startswith("www here (primary): paused until 2027-01-16T08:00:00Z, when it goes on by itself")
    assert daemon.asked == ["pause None None 86400", "pause www None 14400"]


def test_resume_goes_on(tmp_path: Path, typed: Typed) -> None:
    """It says what goes on, or that nothing was paused."""
    with Served(FakeDaemon(a_node(a_dataset(), a_scrub())), tmp_path) as served:
        assert typed("scrub", "resume", "--config", served.config())[:2] == (0, "www here (primary): goes on\n")
    with Served(FakeDaemon(a_node(a_dataset())), tmp_path) as served:
        assert "nothing to resume" in typed("scrub", "resume", "--config", served.config())[1]


# -------------------------------------------------------------------------------------------------------- status


def test_status_of_a_scrub_that_is_well(tmp_path: Path, typed: Typed) -> None:
    """Age, deadline, forecast, structure and findings, in 80 columns; exit 0."""
    with Served(FakeDaemon(a_node(a_dataset(), a_scrub())), tmp_path) as served:
        code, out, _ = typed("scrub", "status", "--config", served.config())
    assert code == 0
    assert out.splitlines() == [
        "www here (primary): idle",
        "  verified    everything within 3d 0h",
        "  deadline    every byte within 7d 0h: on track; through once more in 2d 0h",
        "  structure   checked 1d 0h ago",
        "  divergent   none open",
    ]


def test_status_says_why_a_deadline_will_be_missed(tmp_path: Path, typed: Typed) -> None:
    """Not on track, or something open, exits 1 and names the reason; JSON holds the daemon's own words."""
    late = a_scrub(
        on_track=False, reason="the disk gives 12 MB/s, 40 MB/s are needed", oldest_verified_ns=0, never_bytes=GIB,
        left_bytes=GIB, rate_bytes_s=12e6, cache_bytes=GIB, divergent={"inconclusive": 1}, requested=1,
    )  # fmt: skip
    with Served(FakeDaemon(a_node(a_dataset(), late)), tmp_path) as served:
        code, out, _ = typed("scrub", "status", "www", "--config", served.config())
        as_json = typed("scrub", "status", "--json", "--config", served.config())
    assert code == as_json[0] == 1
    assert "never yet, 1.0 GiB new" in out and "will be missed" in out
    assert "  why         the disk gives 12 MB/s, 40 MB/s are needed" in out
    assert "1.0 GiB of the request, 11.4 MiB/s of late" in out and "came through a cache" in out
    assert "1 inconclusive: replicad divergence list" in out
    assert json.loads(as_json[1])["scrubs"][0]["reason"] == late.reason
    assert all(len(line) <= COLUMNS for line in out.splitlines())


def test_a_rate_that_has_faded_away_is_not_shown() -> None:
    """No byte a second is no rate, and would look like a scrub that hangs."""
    faded = a_scrub(left_bytes=GIB, rate_bytes_s=0.2)
    assert any(line.endswith("1.0 GiB of this cycle") for line in describe(faded, a_node(a_dataset(), faded)))


def test_status_of_nothing(tmp_path: Path, typed: Typed) -> None:
    """A node without a scrub says so."""
    with Served(FakeDaemon(a_node(a_dataset())), tmp_path) as served:
        assert typed("scrub", "status", "--config", served.config())[:2] == (
            0,
            "nothing is scrubbed on this node yet\n",
        )


def test_sides_are_named_as_this_node_sees_them() -> None:
    """The own copy is here, a replica's is on it, a client's is a store."""
    lines = [a_scrub(), a_scrub("www", "replica", "fra1"), a_scrub("db", "replica", "lon1")]
    now = a_node(a_dataset(), a_store("lon1", "db"), *lines)
    heads = [next(iter(describe(line, now))) for line in lines]
    assert heads == ["www here (primary): idle", "www on fra1 (replica): idle", "store lon1/db (replica): idle"]


# ----------------------------------------------------------------------------------------------- replicad status


def screen(node: NodeStatus) -> str:
    return "\n".join(render(node, findings(node)))


def test_replicad_status_shows_both_sides() -> None:
    """Each dataset has a line for its own copy and one for the replica's, each store one; all within 80 columns."""
    node = a_node(
        a_dataset(),
        a_store("lon1", "db"),
        a_scrub(never_bytes=GIB),
        a_scrub("www", "replica", "fra1", state="paused"),
        a_scrub("www", "replica", "elsewhere"),
        a_scrub("db", "replica", "lon1", divergent={"replica_rot": 2}),
    )
    text = screen(node)
    assert "  verified    here: everything within 3d 0h, 1.0 GiB new\n" in text
    assert "  verified    replica: everything within 3d 0h, paused\n" in text
    assert "2 divergences open:\n              replicad divergence list\n" in text  # a command stays on one line
    assert text.count("verified") == 3 and all(len(line) <= COLUMNS for line in text.splitlines())


OLD_NS = NOW_NS - 2 * 86_400 * S
SCRUB_FINDINGS = [
    ({"divergent": {"primary_rot": 2, "both_rot": 1}}, "divergence", "3 open divergences: 1 both_rot, 2 primary_rot"),
    ({"divergent": {"both_rot": 1}, "lost": 1}, "lost", "1 of them is lost: no side has the bytes"),
    (
        {"divergent": {"inconclusive": 1}, "oldest_inconclusive_ns": OLD_NS},
        "inconclusive",
        "1 finding is unclear, the oldest for more than a day",
    ),
    ({"breaker_open": True}, "breaker", "replicad repair --all"),
    ({"on_track": False, "reason": "it was paused for 20 h"}, "scrub", "in time: it was paused for 20 h"),
    ({"suspects": 3}, "suspect", "replicad suspects list www"),
    ({"suspects": 1}, "suspect", "1 change looks like damage; what was there before is kept"),
]


@pytest.mark.parametrize(("changes", "kind", "says"), SCRUB_FINDINGS, ids=[f[2] for f in SCRUB_FINDINGS])
def test_each_finding_of_a_scrub_is_told_with_what_to_type(changes: dict[str, object], kind: str, says: str) -> None:
    """What a scrub found, or cannot promise, is a finding of its own kind, exits 1 and names the next step."""
    node = a_node(a_dataset(), a_scrub(**changes))
    found = findings(node)
    assert kind in [finding.kind for finding in found] and exit_code(found) == 1
    assert says in " ".join(screen(node).split()) and "     -> " in screen(node)


def test_a_replica_s_findings_say_where_to_type() -> None:
    """What only the replica can do is told to be typed there."""
    line = a_scrub("www", "replica", "fra1", suspects=1, on_track=False, reason="slow", breaker_open=True)
    assert [finding.next_step[:8] for finding in findings(a_node(a_dataset(), line))] == ["on fra1:"] * 3


def test_what_is_unclear_for_an_hour_is_no_finding_yet() -> None:
    """Confirmation takes the other side; for a day that is not worth waking anybody."""
    line = a_scrub(divergent={"inconclusive": 1}, oldest_inconclusive_ns=NOW_NS - 3600 * S)
    assert findings(a_node(a_dataset(), line)) == []
    assert "1 in doubt, not settled yet:" in screen(a_node(a_dataset(), line))
