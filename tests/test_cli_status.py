"""The verbs status, sync and release, typed at a daemon behind a real control socket."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit_daemon import NOW_NS, FakeDaemon, S, Served, a_dataset, a_job, a_node, a_store, troubles
from replicad.cli import output
from replicad.cli.status import COLUMNS, exit_code, render
from replicad.cli.sync import HELD_S, OUT_OF_REACH_S, STALLED_S, Awaited
from replicad.http.contract import SyncRequest
from replicad.status import (
    LAST_STATUS,
    DatasetStatus,
    NodeStatus,
    RetentionStatus,
    StoreStatus,
    decode,
    encode,
    findings,
    to_json,
)

Typed = Callable[..., tuple[int, str, str]]


def screen(node: NodeStatus, earlier: NodeStatus | None = None) -> str:
    """What `replicad status` shows of this node."""
    return "\n".join(render(node, findings(node), earlier))


# -------------------------------------------------------------------------------------------------------- status


def test_all_is_well(tmp_path: Path, typed: Typed) -> None:
    """A node without a finding says so in its first line and exits 0."""
    with Served(FakeDaemon(a_node(a_dataset(), a_store("lon1"))), tmp_path) as served:
        code, out, err = typed("status", "--config", served.config())
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "ams1: all is well (replicad 0.1.0, up 3d 0h)",
        "",
        "www -> fra1: idle",
        "  replicated  everything as of 1m 0s ago (objective 5m)",
        "  snapshot    41 of 2027-01-15T07:59:00Z, 1m 0s ago",
        "  size        1,234 entries, 3.0 GiB",
        "",
        "store lon1/www: idle",
        "  received    59s ago",
        "  snapshot    41 of 2027-01-15T07:59:00Z, 1m 0s ago",
        "  size        1,234 entries, 3.0 GiB; 4.0 GiB on disk with all history",
        "  quota       5.0 GiB for all of lon1",
        "",
        "  store room  100.0 GiB free; intake stops below 1.0 GiB",
    ]


FINDINGS = [
    (a_dataset(held=True, state="held", reason="61 % would be dropped"), "held", "replicad release www"),
    (a_dataset(unread=3, pass_ok=False, troubles=troubles(3)), "unread", "secret/2.key: Permission denied"),
    (a_dataset(rotten=2), "rotten", "-> replicad divergence list, and look at this disk"),
    (a_dataset(pass_ok=False, last_error="hook failed with 1"), "failed", "hook failed with 1"),
    (a_dataset(last_complete_ns=NOW_NS - 3600 * S), "lag", "1h behind, the objective is 5m"),
    (a_dataset(unread=1, pass_ok=False, troubles=troubles(1)), "unread", "1 entry could not be copied; the replica"),
    (a_dataset(rotten=1), "rotten", "1 block changed on this disk without a write"),
    (a_store(damaged=4), "damaged", "4 frames are damaged"),
    (a_store(damaged=1), "damaged", "1 frame is damaged"),
    (a_store(state="damaged", reason="segment 3 has no header"), "damaged", "segment 3 has no header"),
    (a_store(state="full", reason="900 MiB are left"), "full", "900 MiB are left"),
    (RetentionStatus("ams1", "www", hold="this clock is 9 s behind"), "retention", "no snapshot is let go: this clock"),
    (a_job("scan", running=False, last_error="boom"), "job", "job scan: is not running: boom"),
    (a_job("scan", failures_in_row=9, last_error="boom"), "job", "failed 9 times in a row: boom"),
]


@pytest.mark.parametrize(("part", "kind", "says"), FINDINGS, ids=[f"{f[1]}{i}" for i, f in enumerate(FINDINGS)])
def test_each_finding_is_shown_and_exits_1(
    tmp_path: Path, typed: Typed, part: DatasetStatus | StoreStatus | RetentionStatus, kind: str, says: str
) -> None:
    """What is wrong is counted in the first line, told with a next step, and exits 1; JSON names its kind. Where the
    configuration is not the usual file, what is suggested needs it."""
    with Served(FakeDaemon(a_node(part)), tmp_path) as served:
        code, out, err = typed("status", "--config", served.config())
        as_json = typed("status", "--json", "--config", served.config())
    assert code == as_json[0] == 1
    assert "1 finding " in out.splitlines()[0]
    assert says in " ".join(out.split())
    assert "     -> " in out and f"commands on this host take --config {served.config()}" in err
    assert [finding["kind"] for finding in json.loads(as_json[1])["findings"]] == [kind]


def test_a_refused_configuration_is_a_finding() -> None:
    """A reload that was refused stays visible until the file is right."""
    node = a_node(config_error="line 3: unknown key")
    assert exit_code(findings(node)) == 1
    assert "replicad check-config --config /etc/replicad/config.toml" in screen(node)


def test_a_replica_out_of_reach_exits_3_unless_more_is_wrong() -> None:
    """No link alone exits 3; with a finding beside it the finding counts."""
    cut = a_dataset(link_up=False, state="waiting", reason="connection refused by fra1:7022")
    assert exit_code(findings(a_node(cut))) == 3
    assert "connection refused by fra1:7022" in " ".join(screen(a_node(cut)).split())
    assert exit_code(findings(a_node(cut, a_store(damaged=1)))) == 1


def test_a_first_copy_under_way_is_no_finding() -> None:
    """A dataset that was never complete is not late while it is being copied, and is not called replicated."""
    line = a_dataset(last_complete_ns=0, last_snapshot=0, last_snapshot_ns=0, state="copying", pending_files=5)
    assert findings(a_node(line)) == []
    assert "never completely yet" in screen(a_node(line)) and "none yet" in screen(a_node(line))


def test_the_backlog_has_a_rate_and_an_end() -> None:
    """The time left follows from the rate of the pass, or between two looks."""
    mib = 1024**2
    line = a_dataset(
        state="copying",
        pass_started_ns=NOW_NS - 10 * S,
        total_bytes=300 * mib,
        pending_bytes=200 * mib,
        pending_files=2000,
    )
    assert "backlog     2,000 files, 200.0 MiB; 10.0 MiB/s, about 20s left" in screen(a_node(line))
    earlier = a_node(a_dataset(pending_bytes=280 * mib), now_ns=NOW_NS - 2 * S)
    assert "40.0 MiB/s, about 5.0s left" in screen(a_node(line), earlier)


def test_many_unread_paths_are_counted() -> None:
    """The first unread paths are named with reasons, the rest counted, and where to find them is told."""
    text = screen(a_node(a_dataset(unread=1234, troubles=troubles(100), pass_ok=False)))
    assert "secret/9.key: Permission denied" in text and "secret/10.key" not in text
    assert "and 1,224 more: replicad status --json" in text


def test_json_is_the_status_and_its_findings(tmp_path: Path, typed: Typed) -> None:
    """JSON has every key of the status, so that nothing is only for people."""
    node = a_node(a_dataset(), a_store())
    with Served(FakeDaemon(node), tmp_path) as served:
        code, out, _ = typed("--config", served.config(), "status", "--json")
    document = json.loads(out)
    assert code == 0 and document["findings"] == []
    assert document["datasets"][0]["last_snapshot"] == 41 and document["stores"][0]["stored_bytes"] == 4 * 1024**3


def test_no_daemon_exits_3(tmp_path: Path, typed: Typed) -> None:
    """Without a daemon every verb that needs one exits 3 and says how to start it."""
    config = tmp_path / "config.toml"
    config.write_text(f'[node]\nname = "ams1"\nstate = "{tmp_path}"\n')
    for verb in (["status"], ["sync"], ["sync", "--wait"], ["release", "www"]):
        code, out, err = typed(*verb, "--config", config)
        assert (code, out) == (3, "")
        assert "the daemon is not running" in err and "systemctl start replicad" in err


def test_watch_shows_it_again_and_outlives_a_daemon(
    tmp_path: Path, typed: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--watch goes on when the daemon goes away, until Ctrl-C."""
    served = Served(FakeDaemon(a_node(a_dataset())), tmp_path)
    rounds = iter(["again", "stop"])

    def next_round(seconds: float) -> None:
        match next(rounds, "leave"):
            case "stop":
                served.__exit__()
            case "leave":
                raise KeyboardInterrupt

    monkeypatch.setattr("replicad.cli.status.time.sleep", next_round)
    served.__enter__()
    code, out, _ = typed("status", "--watch", "--config", served.config())
    assert code == 130
    assert out.count("all is well") == 2 and out.count("the daemon is not running") == 1


@given(
    st.builds(
        lambda *fields: a_dataset(
            reason=fields[0],
            held=fields[1],
            state=fields[2],
            unread=fields[3],
            pending_bytes=fields[4],
            total_bytes=fields[5],
        ),
        st.text(max_size=300),
        st.booleans(),
        st.sampled_from(["idle", "held", "waiting", "copying"]),
        st.integers(0, 10**9),
        st.integers(0, 2**50),
        st.integers(0, 2**50),
    )
)
def test_every_screen_fits_80_columns(line: DatasetStatus) -> None:
    """Whatever the state, no line is wider than a terminal unless a single word is, and none moves the cursor."""
    for row in render(a_node(line), findings(a_node(line))):
        assert row.isprintable()
        assert len(row) <= COLUMNS or " " not in row.strip().removeprefix("-> ")


def test_colours_need_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Colour codes appear on a terminal, and not when NO_COLOR is set or the output is piped."""
    node = a_node(a_dataset(held=True, last_complete_ns=NOW_NS - 9999 * S))
    assert "\x1b[" not in screen(node)
    monkeypatch.setattr(output, "_is_terminal", lambda stream: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[1;31m" in screen(node)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in screen(node)


# ---------------------------------------------------------------------------------------------------------- sync


def test_sync_only_asks(tmp_path: Path, typed: Typed) -> None:
    """Without --wait a pass is asked for and nothing more."""
    daemon = FakeDaemon(a_node(a_dataset("www"), a_dataset("db")))
    with Served(daemon, tmp_path) as served:
        assert typed("sync", "db", "--config", served.config()) == (0, "db -> fra1: a pass is asked for\n", "")
        code, out, _ = typed("sync", "--json", "--config", served.config())
    assert (code, [request["number"] for request in json.loads(out)["requests"]]) == (0, [1, 2])
    assert daemon.asked == ["sync db", "sync None"]


def test_sync_wait_ends_with_the_pass(tmp_path: Path, typed: Typed) -> None:
    """--wait prints what the pass did, one line for each dataset and replica, and exits 0."""
    www, lon = a_dataset("www"), a_dataset("www", "lon1")
    daemon = FakeDaemon(a_node(www, lon))
    with Served(daemon, tmp_path) as served:

        def begin() -> None:
            sent = www.sent_bytes + 2048
            served.later(0.02, lambda: daemon.serve(www, last_snapshot=42, copied_files=3, sent_bytes=sent))
            served.later(0.04, lambda: daemon.serve(lon))

        daemon.on_sync = begin
        code, out, err = typed("sync", "www", "--wait", "--config", served.config())
    assert (code, err) == (0, "")
    first, second = out.splitlines()
    assert re.fullmatch(r"www -> fra1: complete: snapshot 42, 3 files, 2\.0 KiB sent, [\dms. ]+", first)
    assert second.startswith("www -> lon1: complete: snapshot 41, 0 files, 0 B sent")


def test_sync_wait_names_what_was_not_copied(tmp_path: Path, typed: Typed) -> None:
    """An incomplete pass exits 1 and names the paths and reasons."""
    line = a_dataset()
    daemon = FakeDaemon(a_node(line))
    daemon.on_sync = lambda: daemon.serve(line, ok=False, unread=102, troubles=troubles(100))
    with Served(daemon, tmp_path) as served:
        code, out, _ = typed("sync", "--wait", "--config", served.config())
        as_json = typed("sync", "--wait", "--json", "--config", served.config())
    assert code == as_json[0] == 1
    assert "www -> fra1: incomplete: 102 entries could not be copied" in out
    assert "  secret/99.key: Permission denied\n  and 2 more\n" in out
    [outcome] = json.loads(as_json[1])["passes"]
    assert (outcome["result"], outcome["unread"], len(outcome["troubles"])) == ("incomplete", 102, 100)


def test_sync_wait_does_not_wait_for_a_held_dataset(tmp_path: Path, typed: Typed) -> None:
    """A held dataset exits 1 with what to type, also while another one is replicated."""
    held, well = a_dataset("www", held=True, state="held", reason="61 % gone"), a_dataset("db")
    daemon = FakeDaemon(a_node(held, well))
    with Served(daemon, tmp_path) as served:
        daemon.on_sync = lambda: served.later(0.02, lambda: daemon.serve(well))
        code, out, _ = typed("sync", "--wait", "--config", served.config())
    assert code == 1
    assert "www -> fra1: held: 61 % gone" in out and "replicad release www" in out
    assert "db -> fra1: complete" in out


def test_sync_wait_gives_up_at_its_timeout(tmp_path: Path, typed: Typed) -> None:
    """With the link down --timeout exits 3; with the link up the pass is late and exits 1."""
    line = a_dataset(link_up=False, state="waiting", reason="connection refused")
    with Served(FakeDaemon(a_node(line)), tmp_path) as served:
        code, out, _ = typed("sync", "--wait", "--timeout", "50ms", "--config", served.config())
        assert code == 3 and "unreachable: connection refused" in out
        line.link_up, line.state = True, "copying"
        code, out, _ = typed("sync", "--wait", "--timeout", "50ms", "--config", served.config())
        assert code == 1 and "late: not done in time (copying)" in out


def test_sync_wait_notices_a_restart(tmp_path: Path, typed: Typed) -> None:
    """A daemon that was restarted knows nothing of the request: exit 3, ask again."""
    daemon = FakeDaemon(a_node(a_dataset()))

    def restart() -> None:
        daemon.node.started_ns += S

    daemon.on_sync = restart
    with Served(daemon, tmp_path) as served:
        code, out, err = typed("sync", "--wait", "--config", served.config())
    assert (code, out) == (3, "") and "restarted" in err


def test_sync_wait_notices_a_removed_dataset(tmp_path: Path, typed: Typed) -> None:
    """A dataset that leaves the configuration while it is waited for is not waited for any more."""
    daemon = FakeDaemon(a_node(a_dataset()))
    daemon.on_sync = lambda: daemon.node.datasets.clear()
    with Served(daemon, tmp_path) as served:
        code, _, err = typed("sync", "--wait", "--config", served.config())
    assert code == 2 and "www was taken out of the configuration" in err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["sync", "nope"], "no dataset 'nope' here"),
        (["release", "nope"], "datasets of this node: www"),
        (["sync", "--timeout", "5m"], "only with --wait"),
        (["sync", "--wait", "--timeout", "soon"], "--timeout"),
    ],
)
def test_usage_errors_exit_2(tmp_path: Path, typed: Typed, words: list[str], says: str) -> None:
    """A command line that asks for something impossible exits 2 and changes nothing."""
    daemon = FakeDaemon(a_node(a_dataset()))
    with Served(daemon, tmp_path) as served:
        code, out, err = typed(*words, "--config", served.config())
    assert (code, out, daemon.asked) == (2, "", [])
    assert says in err


def test_sync_without_datasets_is_a_usage_error(tmp_path: Path, typed: Typed) -> None:
    """A node that only stores has nothing to sync, and says so."""
    with Served(FakeDaemon(a_node(a_store())), tmp_path) as served:
        code, _, err = typed("sync", "--wait", "--config", served.config())
    assert code == 2 and "this node has no dataset" in err


def test_a_bar_is_shown_on_a_terminal(tmp_path: Path) -> None:
    """A pass that does not end at once shows a bar on a terminal; the result alone is on stdout."""
    line = a_dataset(state="copying", total_bytes=100 * 1024**2, pending_bytes=75 * 1024**2)
    daemon = FakeDaemon(a_node(line))
    with Served(daemon, tmp_path) as served:

        def finish() -> None:
            served.later(0, lambda: daemon.serve(line, pending_bytes=0))

        words = ("sync", "--wait", "--config", str(served.config()))
        code, out, terminal = _type_at_terminal(finish, "25.0/100.0", *words)
    assert code == 0
    assert out.startswith("www -> fra1: complete:") and "\x1b" not in out
    assert "sync www" in terminal and "25.0/100.0" in terminal and "copying" in terminal


def _type_at_terminal(seen: Callable[[], None], text: str, *words: str) -> tuple[int, str, str]:
    """Exit code, stdout (a pipe) and what the terminal that is stderr shows; calls `seen` once `text` is there."""
    ours, theirs = os.openpty()
    code = "import sys; from replicad.cli.app import main; sys.exit(main(sys.argv[1:]))"
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words], stdout=subprocess.PIPE, stderr=theirs, env=environment, text=True
    )
    os.close(theirs)
    shown = bytearray()
    try:
        while data := os.read(ours, 65536):
            if text.encode() not in shown and text.encode() in shown + data:
                seen()
            shown += data
    except OSError:  # EIO: the other end is closed
        pass
    os.close(ours)
    out, _ = process.communicate(timeout=20)
    return process.returncode, out, shown.decode()


# -------------------------------------------------------------------------------------- the judgement of a wait


def _awaited(timeout_s: float | None = None) -> Awaited:
    return Awaited(SyncRequest("www", "fra1", 1), sent_before=0, copied_before=0, began_s=0.0, timeout_s=timeout_s)


def _judgement(wait: Awaited, *looks: tuple[float, DatasetStatus]) -> list[str]:
    results = []
    for at_s, line in looks:
        wait.look(line, at_s)
        results.append(wait.result)
    return results


def test_a_lost_link_is_waited_for_a_minute() -> None:
    """The minute without a link counts anew each time the link comes back."""
    cut, well = a_dataset(link_up=False, state="waiting"), a_dataset(state="copying")
    looks = [(0.0, cut), (59.0, cut), (59.5, well), (60.0, cut), (119.0, cut), (60.0 + OUT_OF_REACH_S, cut)]
    assert _judgement(_awaited(), *looks) == ["", "", "", "", "", "unreachable"]


def test_a_pass_that_waits_for_its_turn_is_not_out_of_reach() -> None:
    """A restore, or another replica's first copy, may take hours, and nobody dialled yet: that is no link that is down,
    neither for whoever waits for the pass nor among the findings."""
    line = a_dataset(link_up=False, state="waiting", reason="a restore writes into the dataset", queued=True)
    assert _judgement(_awaited(), (0.0, line), (OUT_OF_REACH_S + 1, line)) == ["", ""]
    assert findings(a_node(line)) == []
    assert "waiting, not connected" in screen(a_node(line)) and "a restore writes" in screen(a_node(line))


def test_progress_is_waited_for_without_end() -> None:
    """As long as bytes move the wait goes on; when nothing moves for a quarter of an hour it ends."""
    moving = [(float(hour * 3600), a_dataset(state="copying", read_bytes=hour)) for hour in range(1, 5)]
    still = [(4 * 3600 + 1.0, moving[-1][1]), (4 * 3600 + 1 + STALLED_S, moving[-1][1])]
    assert _judgement(_awaited(), *moving, *still) == ["", "", "", "", "", "late"]


def test_a_hold_that_is_judged_again_is_waited_for() -> None:
    """A dataset that was held and is being surveyed again is not given up on."""
    again = a_dataset(held=True, state="survey")
    held = a_dataset(held=True, state="held")
    looks = [(0.0, held), (0.1, again), (5.0, again), (6.0, held), (6.0 + HELD_S, held)]
    assert _judgement(_awaited(), *looks) == ["", "", "", "", "held"]


def test_a_pass_that_ended_held_is_held() -> None:
    """A pass that a guard ended counts as held, whatever the pass before it was."""
    for before in (True, False):
        assert _judgement(_awaited(), (0.0, a_dataset(pass_served=1, pass_ok=before, held=True))) == ["held"]


def test_a_pass_that_never_began_is_not_complete() -> None:
    """An attempt that failed before its pass, such as one that was refused, does not count as the last good pass."""
    refused = a_dataset(pass_served=1, pass_ok=True, state="waiting", last_error="refused: no right to www")
    wait = _awaited()
    assert _judgement(wait, (0.0, refused)) == ["incomplete"]
    assert wait.outcome().reason == "refused: no right to www"


def test_a_timeout_longer_than_a_minute_is_kept() -> None:
    """Whoever gives a timeout waits for the link as long as it says."""
    cut = a_dataset(link_up=False, state="waiting")
    assert _judgement(_awaited(300.0), (0.0, cut), (299.0, cut), (300.0, cut)) == ["", "", "unreachable"]


def test_sync_loads_nothing_heavy() -> None:
    """`replicad sync` imports no event loop, HTTP library, SSH, progress bar or logging."""
    heavy = (
        "aiohttp",
        "asyncio",
        "http.client",
        "asyncssh",
        "rich",
        "prometheus_client",
        "structlog",
        "tomlkit",
        "statistics",
    )
    modules = "replicad.cli.app, replicad.cli.sync, replicad.config"
    code = f"import sys, {modules}; print([name for name in {heavy!r} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_release_lets_a_dataset_go_on(tmp_path: Path, typed: Typed) -> None:
    """Release says what was held and what to type next, and does nothing the second time."""
    daemon = FakeDaemon(a_node(a_dataset(held=True, state="held", reason="61 % gone")))
    with Served(daemon, tmp_path) as served:
        first = typed("release", "www", "--config", served.config())
        second = typed("release", "www", "--config", served.config())
        as_json = typed("release", "www", "--json", "--config", served.config())
    assert first == (0, "www -> fra1: released; it was held: 61 % gone\n", "watch it: replicad sync www --wait\n")
    assert second == (0, "www: was not held, nothing to release\n", "")
    assert json.loads(as_json[1]) == {"released": []}


def test_a_dead_daemon_is_quoted(tmp_path: Path, typed: Typed) -> None:
    """Without a daemon the last words it wrote down are shown with their time, and the exit code is still 3."""
    daemon = FakeDaemon(a_node(a_dataset()))
    with Served(daemon, tmp_path) as served:
        config = served.config()
    (tmp_path / LAST_STATUS).write_bytes(encode(daemon.status()))
    code, out, err = typed("status", "--config", config)
    assert code == 3
    assert re.search(r"does not answer\. At \d{4}-\d\d-\d\dT[\d:]+Z it said:", out)
    assert "  www -> fra1" in out
    assert "systemctl start replicad" in err


def test_a_pass_that_fails_is_told_beside_what_an_earlier_one_could_not_read() -> None:
    """Entries that were left out by a pass that ended must not hide that no pass ends any more."""
    line = a_dataset(unread=3, pass_ok=False, state="failed", last_error="the replica's disk is full")
    kinds = {finding.kind: finding.what for finding in findings(a_node(line))}
    assert kinds.keys() == {"unread", "failed"} and "disk is full" in kinds["failed"]
    ended = a_dataset(unread=3, pass_ok=False)
    assert {finding.kind for finding in findings(a_node(ended))} == {"unread"}


def test_a_store_that_does_not_answer_is_a_finding() -> None:
    """What it has of room is not known then, and nothing is said of it."""
    node = a_node(a_store(), store_free_bytes=-1, store_problem="/srv: Input/output error")
    assert [(found.kind, found.where) for found in findings(node)] == [("silent", "store")]
    assert "Input/output error" in screen(node) and "store room" not in screen(node)
    assert exit_code(findings(node)) == 1


def test_a_status_holds_any_text() -> None:
    """A name that is no UTF-8, in an error of the system, is given out with its odd bytes escaped, wherever it is."""
    node = a_node(a_job("scan", last_error="no such file: '/srv/caf\udce9'"), a_dataset(troubles=troubles(1)))
    node.datasets[0].troubles[0].reason = "\udcff"
    told = decode(encode(node))
    assert told.jobs[0].last_error == r"no such file: '/srv/caf\xe9'"
    assert told.datasets[0].troubles[0].reason == r"\xff"
    assert json.loads(to_json({"\udcff": ["\ud800", 1, None]})) == {r"\xff": [r"\ud800", 1, None]}
