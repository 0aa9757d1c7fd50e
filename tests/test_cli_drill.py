"""`replicad drill` and what status says of drills, against a daemon that only says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kit_daemon import NOW_NS, FakeDaemon, S, Served, a_dataset, a_drill, a_node
from replicad.cli.app import main
from replicad.cli.drill import show_trend
from replicad.cli.status import render
from replicad.db.drills import Drills
from replicad.model.drill import DrillRecord, Outcome, Trend
from replicad.model.errors import UsageError
from replicad.status import DrillStatus, NodeStatus, decode, encode, findings

DAY_NS = 86_400 * S


def ended(line: DrillStatus, outcome: Outcome, *reasons: str) -> None:
    """The drill that was asked for comes to its end."""
    line.served = line.requested
    line.last = DrillRecord(
        line.dataset, line.replica, request=line.requested, outcome=outcome, reasons=list(reasons), ended_ns=NOW_NS
    )


@pytest.mark.parametrize(("outcome", "code"), [(Outcome.PROVEN, 0), (Outcome.FAILED, 1), (Outcome.INCONCLUSIVE, 1)])
def test_a_drill_exits_with_what_it_came_to(
    outcome: Outcome, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only a proven one is 0; which of the others it was is said, in words and in JSON."""
    line = a_drill()
    daemon = FakeDaemon(a_node(a_dataset(), line))
    daemon.on_drill = lambda: ended(line, outcome, "because")
    with Served(daemon, tmp_path) as served:
        config = str(served.config())
        assert main(["drill", "run", "www", "--config", config]) == code
        assert f"www from fra1: {outcome.value}" in capsys.readouterr().out
        assert main(["drill", "run", "--full", "--json", "--config", config]) == code
        assert json.loads(capsys.readouterr().out)["drills"][0]["outcome"] == outcome.value
        assert main(["drill", "run", "www", "--path", "a/*", "--path", "b", "--config", config]) == code
    assert daemon.asked == ["drill www", "drill None full", "drill www a/* b"]


def test_a_drill_is_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command returns when the daemon says that its drill has ended, and not when an earlier one had."""
    line = a_drill(state="restoring", total_bytes=100, done_bytes=10)
    daemon = FakeDaemon(a_node(a_dataset(), line))
    with Served(daemon, tmp_path) as served:
        daemon.on_drill = lambda: served.later(1.5, lambda: ended(line, Outcome.PROVEN))
        assert main(["drill", "run", "www", "--config", str(served.config())]) == 0
    assert line.served == line.requested == 1


def test_a_drill_that_left_no_record_is_no_success(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the daemon could not even begin is inconclusive; a daemon that was started anew is out of reach."""
    line = a_drill(state="failed", reason="the book of drills is damaged")
    daemon = FakeDaemon(a_node(a_dataset(), line))
    daemon.on_drill = lambda: setattr(line, "served", line.requested)
    with Served(daemon, tmp_path) as served:
        config = str(served.config())
        assert main(["drill", "run", "www", "--config", config]) == 1
        said = capsys.readouterr().out
        assert "inconclusive" in said and "the book of drills is damaged" in said
        daemon.on_drill = lambda: setattr(daemon.node, "started_ns", NOW_NS)
        assert main(["drill", "run", "www", "--config", config]) == 3


def test_what_the_daemon_refuses_is_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No scratch directory, a drill under way: exit code 2 and the reason."""
    daemon = FakeDaemon(a_node(a_dataset(), a_drill()))
    daemon.refusal = UsageError("no drill_scratch is set")
    with Served(daemon, tmp_path) as served:
        assert main(["drill", "run", "www", "--config", str(served.config())]) == 2
    assert "no drill_scratch is set" in capsys.readouterr().err


def test_the_history_is_read_without_a_daemon(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With its trend; drills that were not proven are listed and do not count in it."""
    (tmp_path / "drills").mkdir()
    book = Drills(tmp_path / "drills" / "www.db")
    for number, outcome in enumerate([Outcome.PROVEN, Outcome.FAILED, Outcome.PROVEN, Outcome.PROVEN]):
        estimate = 9e9 if outcome is Outcome.FAILED else 1000.0 * (number + 1)
        at_ns = NOW_NS + number * 7 * DAY_NS
        book.add(DrillRecord("www", "fra1", outcome=outcome, started_ns=at_ns, ended_ns=at_ns, estimate_s=estimate))
    book.close()
    config = tmp_path / "config.toml"
    key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEoYQAyCpBrAzUElMQ7i1Xdzj5VgBN0BT0YzfQOOt7IH"
    config.write_text(
        f'[node]\nname = "ams1"\nstate = "{tmp_path}"\n[[replica]]\nname = "fra1"\naddress = "h:1"\nkey = "{key}"\n'
        '[[dataset]]\nname = "www"\npath = "/srv/www"\n[[dataset]]\nname = "db"\npath = "/srv/db"\n'
    )
    assert main(["drill", "history", "--config", str(config)]) == 0
    said = capsys.readouterr().out
    assert said.count("proven") == 3 and said.count("failed") == 1 and "rising by 16m 40s a week" in said
    assert main(["drill", "history", "www", "--json", "--config", str(config)]) == 0
    document = json.loads(capsys.readouterr().out)
    assert len(document["drills"]) == 4 and document["trends"][0]["trend"]["word"] == "rising"
    assert main(["drill", "history", "db", "--config", str(config)]) == 0
    assert "nothing has been drilled yet" in capsys.readouterr().err


def test_a_trend_is_said_in_words() -> None:
    """Unknown, steady, and by how much a week."""
    assert show_trend(Trend("unknown")).startswith("three measured drills tell")
    assert show_trend(Trend("steady", 1.0)).endswith("is steady")
    assert show_trend(Trend("falling", -60.0)).endswith("is falling by 7m 0s a week")


def lines_of(node: NodeStatus) -> str:
    return "\n".join(render(node, findings(node)))


def test_status_shows_the_last_drill_and_what_is_wrong_with_drills() -> None:
    """Well: one line. Failed, overdue, too slow: a finding each, with what to type."""
    said = lines_of(a_node(a_dataset(), a_drill()))
    assert "all is well" in said and "proven 1d 0h ago" in said.replace("\n", " ") and "1h 0m" in said
    last = DrillRecord("www", "fra1", outcome=Outcome.FAILED, reasons=["a.txt: is gone"], ended_ns=NOW_NS)
    doubt = DrillRecord("www", "fra1", outcome=Outcome.INCONCLUSIVE, reasons=["no link"], ended_ns=NOW_NS, number=9)
    for line in (a_drill(last=last, failure=last), a_drill(last=doubt, failure=last)):
        (found,) = findings(a_node(a_dataset(), line))
        assert found.kind == "drill" and "a.txt: is gone" in found.what and "replicad drill run www" in found.next_step
        assert "failed 0.0s ago" in lines_of(a_node(a_dataset(), line)).replace("\n", " ")
    late = a_drill(last_success_ns=NOW_NS - 11 * DAY_NS)
    assert [f.kind for f in findings(a_node(a_dataset(), late))] == ["drill"]
    never = a_drill(last=None, last_success_ns=0, since_ns=NOW_NS - 11 * DAY_NS)
    assert "there was never one" in findings(a_node(a_dataset(), never))[0].what
    young = a_drill(last=None, last_success_ns=0, since_ns=NOW_NS - DAY_NS)
    assert findings(a_node(a_dataset(), young)) == []
    [found] = findings(a_node(a_dataset(), a_drill(rto_s=1800.0)))
    assert (found.kind, found.what) == ("rto", "a restore of everything would take 1h, the objective is 30m")
    assert findings(a_node(a_dataset(), a_drill(rto_s=0.0))) == []


def test_a_status_with_drills_survives_being_written_down() -> None:
    """The daemon's last words hold them too."""
    node = a_node(a_dataset(), a_drill())
    assert decode(encode(node)) == node
