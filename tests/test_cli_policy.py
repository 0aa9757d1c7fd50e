"""`replicad policy`, its facts and its metric, from a status that says it all."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from kit_daemon import NOW_NS, FakeDaemon, S, Served, a_dataset, a_drill, a_node, a_scrub
from replicad.cli.app import main
from replicad.cli.status import render
from replicad.http.metrics import Exposition
from replicad.model.attestation import Attestation
from replicad.model.place import Place
from replicad.model.policy import OBJECTIVES, Grade, Objectives
from replicad.model.snapshot import Head
from replicad.status import CopyStatus, NodeStatus, PolicyStatus, decode, encode, findings
from replicad.work.policy_facts import judgements

DAY_S = 86_400.0
WANTED = Objectives(
    "silver", 300, 7200, 7 * DAY_S, 7 * DAY_S, 2, 2, 100_000, keep_younger_than_s=7 * DAY_S, keep_at_least=7
)
SAID = Attestation(
    now_ns=NOW_NS,
    head=Head(41, bytes(32)),
    complete=Head(41, bytes(32)),
    created_ns=NOW_NS - 60 * S,
    total_bytes=10**9,
    oldest_verified_ns=NOW_NS - 86_400 * S,
    scrub_state="idle",
    keep_younger_than_s=30 * DAY_S,
    keep_at_least=30,
)


def node(said: Attestation = SAID, **changes: object) -> NodeStatus:
    """A primary whose dataset meets its objectives."""
    node = a_node(a_dataset(), a_scrub(), a_scrub(side="replica", peer="fra1"), a_drill())
    node.copies = [CopyStatus("www", "fra1", Place("fra", 50.11, 8.68), heard_ns=NOW_NS - 20 * S, said=said)]
    node.policies = [PolicyStatus("www", WANTED, Place("ams", 52.37, 4.9))]
    for name, value in changes.items():
        setattr(node, name, value)
    return node


def grades(now: NodeStatus) -> dict[str, Grade]:
    """How each objective of the dataset stands."""
    return {result.objective: result.grade for result in judgements(now)[0].results}


def not_passed(now: NodeStatus) -> dict[str, Grade]:
    """Those that do not pass."""
    return {name: grade for name, grade in grades(now).items() if grade is not Grade.PASS}


def typed(now: NodeStatus, tmp_path: Path, *words: str) -> int:
    """`replicad policy` asked of a daemon that says this."""
    with Served(FakeDaemon(now), tmp_path) as served:
        return main(["policy", *words, "--config", str(served.config())])


def test_a_status_that_is_well_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every objective stands there with its evidence, in words and in JSON, and the exit code is 0."""
    assert typed(node(), tmp_path) == 0
    shown, noted = capsys.readouterr()
    assert not noted and "www (silver): PASS" in shown and "fra1: holds everything as of 1m ago (#41)" in shown
    assert "next" not in shown and all(len(line) <= 80 for line in shown.splitlines())
    assert typed(node(), tmp_path, "www", "--json") == 0
    (one,) = json.loads(capsys.readouterr().out)["datasets"]
    assert (one["dataset"], one["grade"]) == ("www", "pass")
    assert [result["objective"] for result in one["results"]] == list(OBJECTIVES)


def test_what_fails_is_said_with_what_to_type(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 1, and one line for each thing to do, with the file where it is not the usual one."""
    late = node(msgspec.structs.replace(SAID, keep_younger_than_s=DAY_S, keep_at_least=1))
    late.datasets[0].last_complete_ns = NOW_NS - 900 * S
    assert typed(late, tmp_path) == 1
    shown, noted = capsys.readouterr()
    assert "commands on this host take --config /" in noted
    assert "next, for rpo: replicad sync www --wait" in shown
    assert "next, for keep_younger_than, keep_at_least: [[retention]] on the replica" in shown


def test_what_is_not_known_is_neither(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A replica that was not heard: exit code 3, and UNKNOWN with the reason."""
    silent = node()
    silent.copies[0].heard_ns, silent.copies[0].unheard = 0, "out of reach: no route\x1b[31m to host"
    assert typed(silent, tmp_path) == 3
    shown = capsys.readouterr().out
    assert "www (silver): UNKNOWN" in shown and "no route?[31m to" in shown


def test_names_that_are_not_there_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown dataset, and a node without any, are a usage error: nothing is compliant by being absent."""
    assert typed(node(), tmp_path, "www", "db") == 2
    assert "there is no dataset 'db' here (configured: www)" in capsys.readouterr().err
    assert typed(a_node(), tmp_path) == 2
    assert main(["policy", "--config", str(_config(tmp_path / "dead"))]) == 3


def _config(state: Path) -> Path:
    state.mkdir()
    file = state / "c.toml"
    file.write_text(f'[node]\nname = "ams1"\nstate = "{state}"\n')
    return file


# ------------------------------------------------------------------------------------------------------------ facts


def test_loops_that_have_just_started_are_not_known() -> None:
    """A daemon that was restarted a moment ago passes nothing that its loops have not looked at."""
    fresh = a_node(a_dataset(state="starting", last_complete_ns=0, last_snapshot=0))
    fresh.scrubs = [a_scrub(state="starting", total_bytes=0, oldest_verified_ns=0)]
    fresh.drills = [a_drill(state="starting", last=None, last_success_ns=0, estimate_s=0.0)]
    fresh.copies, fresh.policies = [CopyStatus("www", "fra1")], [PolicyStatus("www", Objectives(rto_s=7200))]
    assert not_passed(fresh) == dict.fromkeys(("rpo", "rto", "scrub_every", "drill_every", "copies"), Grade.UNKNOWN)


def test_a_status_without_the_loops_is_not_known() -> None:
    """What nobody tells of at all passes nothing."""
    bare = a_node(a_dataset())
    bare.policies = [PolicyStatus("www", Objectives(rto_s=7200, keep_at_least=1))]
    unknown = ("rto", "scrub_every", "drill_every", "copies", "keep_at_least")
    assert not_passed(bare) == dict.fromkeys(unknown, Grade.UNKNOWN)


def test_a_scrub_that_has_not_looked_at_the_data_is_not_known() -> None:
    """Nothing to verify, where there is data, means that nobody has looked; an empty dataset has nothing to verify."""
    unseen = node()
    unseen.scrubs[0].total_bytes = unseen.scrubs[0].oldest_verified_ns = 0
    assert not_passed(unseen) == {"scrub_every": Grade.UNKNOWN}
    unseen.datasets[0].size = 0
    assert not not_passed(unseen)
    assert not_passed(node(msgspec.structs.replace(SAID, total_bytes=0))) == {"scrub_every": Grade.UNKNOWN}


def test_a_book_of_drills_that_cannot_be_read_is_not_known() -> None:
    """No drill was ever proven is one thing, nobody can say is another."""
    broken = node()
    broken.drills = [
        a_drill(state="failed", reason="the book is damaged", last=None, last_success_ns=0, estimate_s=0.0)
    ]
    assert not_passed(broken) == {"rto": Grade.UNKNOWN, "drill_every": Grade.UNKNOWN}
    off = node()
    off.drills = [a_drill(state="off", reason="no drill_scratch is set", last=None, last_success_ns=0, estimate_s=0.0)]
    assert not_passed(off) == {"rto": Grade.UNKNOWN, "drill_every": Grade.FAIL}


def test_after_a_restart_the_replica_s_word_is_taken_where_the_heads_agree() -> None:
    """As of when its copy is complete, if its head is the snapshot that was acknowledged here."""
    restarted = node()
    restarted.datasets[0].last_complete_ns = 0
    assert not not_passed(restarted)
    restarted.datasets[0].last_snapshot = 40
    assert not_passed(restarted) == {"rpo": Grade.FAIL, "copies": Grade.FAIL}


def test_facts_survive_the_way_to_the_command() -> None:
    """The status as JSON gives the same judgement; one of an older daemon gives none."""
    assert judgements(decode(encode(node()))) == judgements(node())
    assert judgements(decode(b'{"node":"ams1","version":"0.1"}')) == []


def test_the_metric_is_one_only_when_everything_passes() -> None:
    """Compliant, by objective, and unknown are told apart."""

    def samples(now: NodeStatus) -> dict[str, float]:
        lines = Exposition(lambda: now).render().decode().splitlines()
        pairs = [line.rsplit(" ", 1) for line in lines if line.startswith("replicad_policy_")]
        return {name.removeprefix("replicad_policy_"): float(value) for name, value in pairs}

    well = samples(node())
    assert well['compliant{dataset="www"}'] == 1 and len(well) == 1 + 2 * len(OBJECTIVES)
    silent = node()
    silent.copies[0].heard_ns = 0
    found = samples(silent)
    assert found['compliant{dataset="www"}'] == 0
    assert found['objective_unknown{dataset="www",objective="copies"}'] == 1
    assert found['objective_met{dataset="www",objective="copies"}'] == 0
    assert found['objective_met{dataset="www",objective="rpo"}'] == 1


def test_the_status_names_what_a_service_level_lacks() -> None:
    """One line with the objectives that do not hold and where the evidence is; none for a dataset without a level."""
    late = node(msgspec.structs.replace(SAID, keep_at_least=1))
    assert any(line.split() == ["policy", "silver:", "every", "objective", "holds"] for line in status_lines(node()))
    text = " ".join(" ".join(status_lines(late)).split())
    assert "silver: keep_at_least fails: replicad policy www" in text
    plain = node(policies=[PolicyStatus("www", Objectives(rto_s=1))])
    assert not any(line.split()[:1] == ["policy"] for line in status_lines(plain))


def status_lines(now: NodeStatus) -> list[str]:
    """`replicad status` of a node."""
    return render(now, findings(now))
