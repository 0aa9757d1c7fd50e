"""The metrics: names that are API, values that alerts can rely on, and a real Prometheus that reads them."""

from __future__ import annotations

import json
import re
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kit_daemon import NOW_NS, FakeDaemon, S, Served, a_canary, a_dataset, a_drill, a_job, a_node, a_scrub, a_store
from kit_pair import free_port
from replicad.http.metrics import FAMILIES, Exposition
from replicad.model.drill import DrillRecord, Outcome
from replicad.status import NodeStatus, RetentionStatus, findings

DOCS = Path(__file__).parents[1] / "docs" / "METRICS.md"
CONTRACT = {
    "replicad_build_info", "replicad_link_up", "replicad_dataset_lag_seconds", "replicad_pending_bytes",
    "replicad_pending_files", "replicad_last_snapshot_timestamp_seconds", "replicad_sent_bytes_total", "replicad_held",
    "replicad_store_free_bytes", "replicad_watch_degraded", "replicad_job_failures_total",
    "replicad_job_last_success_timestamp_seconds", "replicad_oldest_verified_timestamp_seconds",
    "replicad_verified_bytes_total", "replicad_scrub_on_track", "replicad_divergent_blocks",
    "replicad_divergences_total", "replicad_repairs_total", "replicad_repair_breaker_open",
    "replicad_drill_last_success_timestamp_seconds", "replicad_drill_estimated_restore_seconds",
    "replicad_policy_compliant",
}  # fmt: skip
"""Names that others rely on."""
LABELS = {
    "node",
    "version",
    "dataset",
    "replica",
    "client",
    "job",
    "side",
    "kind",
    "source",
    "result",
    "outcome",
    "stage",
    "objective",
}


def values(node: NodeStatus) -> dict[str, float]:
    """Every sample of the exposition by its name and labels."""
    lines = Exposition(lambda: node).render().decode().splitlines()
    pairs = [line.rsplit(" ", 1) for line in lines if not line.startswith("#")]
    return {name: float(value) for name, value in pairs}


A_RETENTION = RetentionStatus(
    "ams1", "www", hold="this clock is behind", kept=41, dropped=7, reclaimed_bytes=900, last_run_ns=5_000_000_000
)


def full_node() -> NodeStatus:
    """A node with a part of every kind."""
    scrubs = (
        a_scrub(divergent={"primary_rot": 2}),
        a_scrub(side="replica", peer="fra1"),
        a_scrub("www", "replica", "ams1"),
    )
    parts = (a_dataset(), a_dataset("db", "lon1"), a_store(), a_job(), a_job("scan", failures=3), a_drill(), a_canary())
    return a_node(*parts, *scrubs, A_RETENTION)


def test_the_contract_is_kept() -> None:
    """Every promised name is there."""
    assert {family.name for family in FAMILIES} >= CONTRACT


def test_the_docs_name_exactly_what_is_exposed() -> None:
    """docs/METRICS.md has one row for each metric, with its type and labels, and none more."""
    rows = re.findall(r"^\| `(replicad_\w+)` \| (\w+) \| ([\w, ]*)\|", DOCS.read_text(), re.MULTILINE)
    documented = {name: (kind, labels.strip()) for name, kind, labels in rows}
    exposed = {f.name: ("counter" if f.is_counter else "gauge", ", ".join(f.labels)) for f in FAMILIES}
    assert documented == exposed


def test_names_and_labels_are_bounded_and_unique() -> None:
    """No metric has a label that could grow with the data, and no name is used twice."""
    assert {label for family in FAMILIES for label in family.labels} <= LABELS
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)


def test_retention_is_told() -> None:
    """Each number of a store's retention is a sample under its client and dataset."""
    found = values(a_node(A_RETENTION))
    of = '{client="ams1",dataset="www"}'
    expected = {
        "snapshots": 41, "held": 1, "dropped_total": 7, "reclaimed_bytes_total": 900, "last_run_timestamp_seconds": 5
    }  # fmt: skip
    told = {name: value for name, value in found.items() if name.startswith("replicad_retention_")}
    assert told == {f"replicad_retention_{name}{of}": value for name, value in expected.items()}


def test_values_follow_the_status() -> None:
    """Every number is the status's own, in base units."""
    line = a_dataset(
        held=True, queued=True, unread=4, fuzzy=5, rotten=6, pending_bytes=7, pending_files=8,
        watch="degraded: limit reached",
    )  # fmt: skip
    store = a_store(damaged=9, state="full")
    node = a_node(line, store, a_job("scan", failures=3, running=False), sessions=2, views=3, config_error="line 3")
    found = values(node)
    www, kept = '{dataset="www",replica="fra1"}', '{client="ams1",dataset="www"}'
    expected = {
        'replicad_build_info{node="ams1",version="0.1.0"}': 1,
        "replicad_config_refused": 1,
        "replicad_sessions": 2,
        "replicad_views": 3,
        f"replicad_link_up{www}": 1,
        f"replicad_dataset_lag_seconds{www}": 60,
        f"replicad_rpo_seconds{www}": 300,
        f"replicad_last_complete_timestamp_seconds{www}": 1_799_999_940,
        f"replicad_last_snapshot_timestamp_seconds{www}": 1_799_999_940,
        f"replicad_held{www}": 1,
        f"replicad_queued{www}": 1,
        f"replicad_unread_entries{www}": 4,
        f"replicad_fuzzy_files{www}": 5,
        f"replicad_rotten_blocks{www}": 6,
        f"replicad_pending_bytes{www}": 7,
        f"replicad_pending_files{www}": 8,
        f"replicad_watch_degraded{www}": 1,
        f"replicad_sent_bytes_total{www}": 5_000_000,
        f"replicad_read_bytes_total{www}": 6_000_000,
        f"replicad_passes_total{www}": 7,
        f"replicad_dataset_entries{www}": 1234,
        f"replicad_dataset_bytes{www}": 3 * 1024**3,
        "replicad_store_free_bytes": 100 * 1024**3,
        "replicad_store_reserve_bytes": 1024**3,
        f"replicad_store_last_received_timestamp_seconds{kept}": 1_799_999_941,
        f"replicad_store_last_snapshot_timestamp_seconds{kept}": 1_799_999_940,
        f"replicad_store_damaged_frames{kept}": 9,
        f"replicad_store_full{kept}": 1,
        f"replicad_store_entries{kept}": 1234,
        f"replicad_store_dataset_bytes{kept}": 3 * 1024**3,
        f"replicad_store_stored_bytes{kept}": 4 * 1024**3,
        f"replicad_store_quota_bytes{kept}": 5 * 1024**3,
        f"replicad_store_received_bytes_total{kept}": 5_000_000,
        'replicad_job_running{job="scan"}': 0,
        'replicad_job_failures_total{job="scan"}': 3,
        'replicad_job_last_success_timestamp_seconds{job="scan"}': 1_799_999_940,
    }
    assert {name: value for name, value in found.items() if name.startswith("replicad_")} == expected


def of_scrub(name: str, side: str = "primary", replica: str = "", client: str = "", **more: str) -> str:
    """A sample's name and labels, as the exposition sorts them."""
    labels = {"dataset": "www", "side": side, "replica": replica, "client": client, **more}
    pairs = ",".join(f'{key}="{labels[key]}"' for key in sorted(labels))
    return f"replicad_{name}{{{pairs}}}"


def test_scrubs_are_told_apart_by_side_and_node() -> None:
    """The own copy, what a replica said of its, and a client's store here are three lines with labels of their own."""
    found, verified = values(full_node()), "oldest_verified_timestamp_seconds"
    assert found[of_scrub(verified)] == (NOW_NS - 3 * 86400 * S) / 1e9
    assert found[of_scrub(verified, "replica", replica="fra1")] == (NOW_NS - 3 * 86400 * S) / 1e9
    assert found[of_scrub("scrub_bytes", "replica", client="ams1")] == 4e9
    assert found[of_scrub("divergent_blocks", kind="primary_rot")] == 2
    assert found[of_scrub("divergent_blocks", kind="replica_rot")] == 0
    assert found[of_scrub("verified_bytes_total", source="media")] == 9e9
    assert found[of_scrub("verified_bytes_total", source="cache")] == 0
    assert [found[of_scrub("repairs_total", result=word)] for word in ("repaired", "failed", "undone")] == [0, 0, 0]
    assert found[of_scrub("scrub_on_track")] == 1
    assert found[of_scrub("scrub_every_seconds")] == 7 * 86400


def test_each_figure_of_a_scrub_is_the_status_s_own() -> None:
    """What is paused, late, lost, unclear, suspect or stopped has its value; what never happened is 0."""
    line = a_scrub(
        on_track=False,
        paused_until_ns=NOW_NS,
        never_bytes=7,
        lost=3,
        suspects=4,
        breaker_open=True,
        oldest_verified_ns=0,
        oldest_open_ns=5 * S,
        oldest_inconclusive_ns=6 * S,
        repairs={"failed": 8},
        divergences={"both_rot": 9},
        cache_bytes=10,
    )
    found = values(a_node(a_dataset(), line))
    expected = {
        of_scrub("scrub_on_track"): 0,
        of_scrub("scrub_paused"): 1,
        of_scrub("never_verified_bytes"): 7,
        of_scrub("lost_blocks"): 3,
        of_scrub("suspect_changes"): 4,
        of_scrub("repair_breaker_open"): 1,
        of_scrub("oldest_verified_timestamp_seconds"): 0,
        of_scrub("open_divergence_oldest_timestamp_seconds"): 5,
        of_scrub("inconclusive_oldest_timestamp_seconds"): 6,
        of_scrub("repairs_total", result="failed"): 8,
        of_scrub("divergences_total", kind="both_rot"): 9,
        of_scrub("verified_bytes_total", source="cache"): 10,
    }
    assert {name: found[name] for name in expected} == expected


def test_never_is_alertable() -> None:
    """What never happened has the timestamp 0 and an infinite lag, never no value."""
    found = values(a_node(a_dataset(last_complete_ns=0, last_snapshot_ns=0), a_job("scan", last_success_ns=0)))
    assert found['replicad_dataset_lag_seconds{dataset="www",replica="fra1"}'] == float("inf")
    assert found['replicad_last_complete_timestamp_seconds{dataset="www",replica="fra1"}'] == 0
    assert found['replicad_last_snapshot_timestamp_seconds{dataset="www",replica="fra1"}'] == 0
    assert found['replicad_job_last_success_timestamp_seconds{job="scan"}'] == 0


def test_a_clock_that_went_back_hides_no_lag() -> None:
    """A complete state that is dated ahead of the clock is of nobody knows when: its lag is as long as it lies ahead,
    neither negative nor none, and it is a finding like any other lag."""
    node = a_node(a_dataset(last_complete_ns=NOW_NS + 3600 * S))
    assert values(node)['replicad_dataset_lag_seconds{dataset="www",replica="fra1"}'] == 3600
    assert [(found.kind, "1h ahead of the clock" in found.what) for found in findings(node)] == [("lag", True)]


def test_a_node_without_a_store_has_no_room_to_run_out() -> None:
    """Free bytes are absent where there is no store, so that no alert on low values fires."""
    assert not [name for name in values(a_node(a_dataset())) if name.startswith("replicad_store_")]


def test_the_process_speaks_too() -> None:
    """Memory and descriptors of the daemon come with its own metrics."""
    assert values(a_node())["process_resident_memory_bytes"] > 1024**2


def test_promtool_finds_nothing_to_complain_about() -> None:
    """The exposition passes Prometheus's own linter."""
    text = Exposition(full_node).render()
    result = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, timeout=20)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")


def test_a_real_prometheus_scrapes_it(tmp_path: Path) -> None:
    """Prometheus takes the daemon for a healthy target and answers queries with the daemon's values and labels."""
    (tmp_path / "state").mkdir()
    node = full_node()
    node.datasets[0].pending_bytes = 4711
    with Served(FakeDaemon(node), tmp_path / "state") as served, _prometheus(tmp_path, served.address) as api:
        _until(lambda: [t["health"] for t in api("targets")["activeTargets"]] == ["up"])
        query = 'replicad_pending_bytes{dataset="www"}'
        [sample] = _until(lambda: api("query", query=query)["result"])
        assert sample["value"][1] == "4711"
        [lag] = api("query", query='replicad_dataset_lag_seconds{dataset="www"} < +Inf')["result"]
        assert lag["value"][1] == "60"
        [failures] = api("query", query='replicad_job_failures_total{exported_job="scan"}')["result"]
        assert (failures["metric"]["job"], failures["value"][1]) == ("replicad", "3")


@contextmanager
def _prometheus(directory: Path, target: str) -> Iterator[Any]:
    """A Prometheus of our own that scrapes `target`; yields a function that asks its HTTP API."""
    address = f"127.0.0.1:{free_port()}"
    config = directory / "prometheus.yml"
    config.write_text(
        "global: {scrape_interval: 1s}\n"
        f"scrape_configs: [{{job_name: replicad, static_configs: [{{targets: ['{target}']}}]}}]\n"
    )

    def ask(what: str, **query: str) -> Any:
        url = f"http://{address}/api/v1/{what}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]

    command = [
        "prometheus",
        f"--config.file={config}",
        f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address={address}",
        "--log.level=error",
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield ask
        finally:
            process.terminate()
            process.wait(20)


def _until(found: Any) -> Any:
    """What `found` gives as soon as it gives something; a Prometheus that has just started refuses connections."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        try:
            if value := found():
                return value
        except (urllib.error.URLError, ConnectionError):
            pass  # not listening yet
        time.sleep(0.05)
    raise AssertionError("Prometheus did not get there in 30 s")


def test_drills_are_told_as_they_are() -> None:
    """The last success is that of a proven drill whatever came later; a failure that stands, and a last drill that
    found nothing out, are told by a flag each."""
    last = DrillRecord("www", "fra1", ended_ns=NOW_NS, outcome=Outcome.FAILED)
    found = values(a_node(a_drill(last=last, failure=last, drills={"proven": 3, "failed": 1})))
    labels = '{dataset="www",replica="fra1"}'
    assert found[f"replicad_drill_last_success_timestamp_seconds{labels}"] == NOW_NS / S - 86_400
    assert found[f"replicad_drill_last_timestamp_seconds{labels}"] == NOW_NS / S
    assert (found[f"replicad_drill_failed{labels}"], found[f"replicad_drill_inconclusive{labels}"]) == (1, 0)
    assert found[f"replicad_drill_estimated_restore_seconds{labels}"] == 3600
    outcomes = {
        outcome: found[f'replicad_drills_total{{dataset="www",outcome="{outcome}",replica="fra1"}}']
        for outcome in Outcome
    }
    assert outcomes == {"proven": 3, "failed": 1, "inconclusive": 0}
    doubt = DrillRecord("www", "fra1", ended_ns=NOW_NS, outcome=Outcome.INCONCLUSIVE)
    found = values(a_node(a_drill(last=doubt, failure=last)))
    assert (found[f"replicad_drill_failed{labels}"], found[f"replicad_drill_inconclusive{labels}"]) == (1, 1)
    never = values(a_node(a_drill(last=None, last_success_ns=0, drills={})))
    assert never[f"replicad_drill_last_success_timestamp_seconds{labels}"] == 0


def test_canaries_are_told_as_they_are() -> None:
    """Each stage of the last that came through, and flags for what keeps the next one; nothing where there is none."""
    line = a_canary(oldest_awaited_ns=NOW_NS, state="paused", source="cache", failure="other bytes")
    found, of = values(a_node(line)), '{dataset="www",replica="fra1"}'
    expected = {
        "last_success_timestamp_seconds": NOW_NS / S - 296,
        "awaited_timestamp_seconds": NOW_NS / S,
        "every_seconds": 900,
        "within_seconds": 1800,
        "failed": 1,
        "paused": 1,
        "refused": 0,
        "from_cache": 1,
    }
    stages = {"acknowledged": 2.0, "verified": 2.5, "restored": 4.0}

    def lag(stage: str) -> str:
        return f'replicad_canary_lag_seconds{{dataset="www",replica="fra1",stage="{stage}"}}'

    told = {name: value for name, value in found.items() if name.startswith("replicad_canary_")}
    wanted = {f"replicad_canary_{name}{of}": value for name, value in expected.items()}
    assert told == wanted | {lag(stage): value for stage, value in stages.items()}
    never = values(a_node(a_canary(lags=None, last_success_ns=0, state="refused")))
    assert all(never[lag(stage)] == float("inf") for stage in stages)
    assert never[f"replicad_canary_last_success_timestamp_seconds{of}"] == 0
    assert (never[f"replicad_canary_refused{of}"], never[f"replicad_canary_failed{of}"]) == (1, 0)
    assert not [name for name in values(a_node(a_dataset())) if name.startswith("replicad_canary_")]


def test_two_nodes_that_keep_copies_of_each_other_are_told_apart() -> None:
    """Where a replica is a client as well and both have a dataset of one name, what it said of its copy and the copy of
    its data here are two lines: no sample stands there twice, and no figure is shown as the other's."""
    said = a_scrub("www", "replica", "fra1", mirrored=True, lost=3)
    kept = a_scrub("www", "replica", "fra1", lost=4)
    node = a_node(a_dataset(), a_store("fra1"), a_scrub(), said, kept)
    lines = Exposition(lambda: node).render().decode().splitlines()
    names = [line.rsplit(" ", 1)[0] for line in lines if not line.startswith("#")]
    assert len(names) == len(set(names))
    found = values(node)
    assert found[of_scrub("lost_blocks", "replica", replica="fra1")] == 3
    assert found[of_scrub("lost_blocks", "replica", client="fra1")] == 4
    where = {finding.where: finding.what[:1] for finding in findings(node) if finding.kind == "lost"}
    assert where == {"www on fra1": "3", "store fra1/www": "4"}
