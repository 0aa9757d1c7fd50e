"""Metrics: a NodeStatus as Prometheus text. Sole owner of prometheus_client.

Never counts anything itself: the status is the one truth, and this file a table from it to names that are API.
Ages and timestamps first: a timestamp of 0 means "never", so that every age alert fires for it; the lag of a dataset
that never was complete is +Inf, so that `lag > objective` holds for it too instead of matching nothing.
Labels are bounded by the configuration (dataset, replica, client, job) and by words of our own (side, kind, source,
result). docs/METRICS.md explains each name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4 as CONTENT_TYPE
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from replicad.model.divergence import REPAIR_RESULTS
from replicad.model.drill import Outcome
from replicad.model.policy import Grade
from replicad.model.verdict import Verdict
from replicad.status import (
    CanaryStatus,
    DatasetStatus,
    DrillStatus,
    JobStatus,
    NodeStatus,
    RetentionStatus,
    ScrubStatus,
    StoreStatus,
    is_here,
    lag_s,
)
from replicad.work.policy_facts import judgements

__all__ = ["CONTENT_TYPE", "FAMILIES", "Exposition", "Family"]

Sample = tuple[tuple[str, ...], float]
"""Label values in the order of the family's labels, and the value."""


class Family(NamedTuple):
    """One metric name: what it says and how it follows from the status."""

    name: str
    help: str
    labels: tuple[str, ...]
    samples: Callable[[NodeStatus], Iterable[Sample]]

    @property
    def is_counter(self) -> bool:
        """Whether it only grows, until the daemon restarts; the name says so."""
        return self.name.endswith("_total")


class Exposition:
    """What /metrics answers. `status` is called at each scrape."""

    def __init__(self, status: Callable[[], NodeStatus]) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_NodeCollector(status))
        ProcessCollector(registry=self._registry)

    def render(self) -> bytes:
        """Prometheus text format 0.0.4."""
        return generate_latest(self._registry)


class _NodeCollector(Collector):
    def __init__(self, status: Callable[[], NodeStatus]) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        status = self._status()
        for family in FAMILIES:
            kind = CounterMetricFamily if family.is_counter else GaugeMetricFamily
            metric = kind(family.name, family.help, labels=family.labels)
            for labels, value in family.samples(status):
                metric.add_metric(labels, value)
            yield metric


def _node(name: str, help_text: str, value: Callable[[NodeStatus], float | None]) -> Family:
    """A metric of the daemon itself; absent while `value` is None."""

    def samples(status: NodeStatus) -> Iterator[Sample]:
        found = value(status)
        if found is not None:
            yield (), found

    return Family(f"replicad_{name}", help_text, (), samples)


def _dataset(name: str, help_text: str, value: Callable[[DatasetStatus, int], float]) -> Family:
    """A metric of one dataset on its way to one replica; `value` is also given the time of now in ns."""

    def samples(status: NodeStatus) -> Iterator[Sample]:
        for line in status.datasets:
            yield (line.dataset, line.replica), value(line, status.now_ns)

    return Family(f"replicad_{name}", help_text, ("dataset", "replica"), samples)


def _store(name: str, help_text: str, value: Callable[[StoreStatus], float]) -> Family:
    """A metric of one client's dataset in the store of this node."""

    def samples(status: NodeStatus) -> Iterator[Sample]:
        for line in status.stores:
            yield (line.client, line.dataset), value(line)

    return Family(f"replicad_store_{name}", help_text, ("client", "dataset"), samples)


def _retention(name: str, help_text: str, value: Callable[[RetentionStatus], float]) -> Family:
    """A metric of the retention of one store of this node."""

    def samples(status: NodeStatus) -> Iterator[Sample]:
        for line in status.retentions:
            yield (line.client, line.dataset), value(line)

    return Family(f"replicad_retention_{name}", help_text, ("client", "dataset"), samples)


def _job(name: str, help_text: str, value: Callable[[JobStatus], float]) -> Family:
    """A metric of one loop of the daemon."""

    def samples(status: NodeStatus) -> Iterator[Sample]:
        for line in status.jobs:
            yield (line.name,), value(line)

    return Family(f"replicad_job_{name}", help_text, ("job",), samples)


def _sides(line: ScrubStatus, status: NodeStatus) -> tuple[str, str, str, str]:
    """Whose scrub it is: on a replica's own node the client is named, on a primary the replica."""
    if line.side == "primary":
        return line.dataset, "primary", "", ""
    return (
        (line.dataset, "replica", "", line.peer) if is_here(line, status) else (line.dataset, "replica", line.peer, "")
    )


_SIDES = ("dataset", "side", "replica", "client")


def _scrub(name: str, help_text: str, value: Callable[[ScrubStatus], float]) -> Family:
    """A metric of the scrub of one side of one dataset."""

    def samples(status: NodeStatus) -> Iterator[Sample]:
        for line in status.scrubs:
            yield _sides(line, status), value(line)

    return Family(f"replicad_{name}", help_text, _SIDES, samples)


def _scrub_by(name: str, help_text: str, label: str, values: Callable[[ScrubStatus], dict[str, int]]) -> Family:
    """One with a sample for each of a few words."""

    def samples(status: NodeStatus) -> Iterator[Sample]:
        for line in status.scrubs:
            for word, count in sorted(values(line).items()):
                yield (*_sides(line, status), word), float(count)

    return Family(f"replicad_{name}", help_text, (*_SIDES, label), samples)


def _drill(name: str, help_text: str, value: Callable[[DrillStatus], float]) -> Family:
    """A metric of the drills of one dataset from one replica."""

    def samples(status: NodeStatus) -> Iterator[Sample]:
        for line in status.drills:
            yield (line.dataset, line.replica), value(line)

    return Family(f"replicad_{name}", help_text, ("dataset", "replica"), samples)


def _canary(name: str, help_text: str, value: Callable[[CanaryStatus], float]) -> Family:
    """A metric of the canaries of one dataset that go to one replica; absent where none is configured."""

    def samples(status: NodeStatus) -> Iterator[Sample]:
        for line in status.canaries:
            yield (line.dataset, line.replica), value(line)

    return Family(f"replicad_canary_{name}", help_text, ("dataset", "replica"), samples)


def _canary_lags(status: NodeStatus) -> Iterator[Sample]:
    """+Inf while none has come through, so that every comparison with a limit holds."""
    for line in status.canaries:
        for stage in ("acknowledged", "verified", "restored"):
            yield (line.dataset, line.replica, stage), getattr(line.lags, f"{stage}_s", float("inf"))


def _drills_by_outcome(status: NodeStatus) -> Iterator[Sample]:
    for line in status.drills:
        for outcome, count in sorted(_zero_for_each((o.value for o in Outcome), line.drills).items()):
            yield (line.dataset, line.replica, outcome), float(count)


def _compliant(status: NodeStatus) -> Iterator[Sample]:
    for one in judgements(status):
        yield (one.dataset,), float(one.grade is Grade.PASS)


def _by_objective(grade: Grade) -> Callable[[NodeStatus], Iterator[Sample]]:
    def samples(status: NodeStatus) -> Iterator[Sample]:
        for one in judgements(status):
            for result in one.results:
                yield (one.dataset, result.objective), float(result.grade is grade)

    return samples


def _last_was_inconclusive(line: DrillStatus) -> float:
    return float(line.last is not None and line.last.outcome is Outcome.INCONCLUSIVE)


def _zero_for_each(words: Iterable[str], counts: dict[str, int]) -> dict[str, int]:
    """A sample for every word, so that a count that begins is seen to grow from 0."""
    return dict.fromkeys(words, 0) | counts


def _bytes_or_absent(size: int) -> float | None:
    """-1 stands for "this node has no store": no value at all is what an alert on low values needs then."""
    return None if size < 0 else float(size)


KINDS = tuple(verdict.value for verdict in Verdict if verdict not in (Verdict.OK, Verdict.CHANGED))

FAMILIES: tuple[Family, ...] = (
    Family(
        "replicad_build_info",
        "Always 1; the labels say which replicad runs here.",
        ("node", "version"),
        lambda s: [((s.node, s.version), 1.0)],
    ),
    _node("config_refused", "1 while a changed configuration is refused.", lambda s: float(bool(s.config_error))),
    _node("sessions", "Sessions of clients under way at this replica.", lambda s: float(s.sessions)),
    _node("views", "SFTP views of history under way at this replica.", lambda s: float(s.views)),
    _dataset("link_up", "1 while connected to the replica.", lambda d, now: float(d.link_up)),
    _dataset("rpo_seconds", "The configured objective for the lag.", lambda d, now: d.rpo_s),
    _dataset(
        "dataset_lag_seconds",
        "Age of the last state that is wholly on the replica; +Inf when there never was one.",
        lag_s,
    ),
    _dataset(
        "last_complete_timestamp_seconds",
        "When the last pass began of which everything is acknowledged; 0 = never.",
        lambda d, now: d.last_complete_ns / 1e9,
    ),
    _dataset(
        "last_snapshot_timestamp_seconds",
        "Creation time of the last acknowledged snapshot, complete or not; 0 = never.",
        lambda d, now: d.last_snapshot_ns / 1e9,
    ),
    _dataset("pending_bytes", "Bytes of the running pass not yet read.", lambda d, now: float(d.pending_bytes)),
    _dataset("pending_files", "Files of the running pass not yet copied.", lambda d, now: float(d.pending_files)),
    _dataset("sent_bytes_total", "Bytes given to the link.", lambda d, now: float(d.sent_bytes)),
    _dataset("read_bytes_total", "Bytes read from the dataset's files.", lambda d, now: float(d.read_bytes)),
    _dataset("passes_total", "Passes ended, well or not.", lambda d, now: float(d.pass_number)),
    _dataset("held", "1 while a guard holds the dataset until `replicad release`.", lambda d, now: float(d.held)),
    _dataset("queued", "1 while the pass waits for another one's end, or a restore's.", lambda d, now: float(d.queued)),
    _dataset("unread_entries", "Entries that the last pass could not copy.", lambda d, now: float(d.unread)),
    _dataset("fuzzy_files", "Files recorded although they kept changing.", lambda d, now: float(d.fuzzy)),
    _dataset(
        "rotten_blocks",
        "Blocks whose bytes changed on the primary's disk without a write; not sent.",
        lambda d, now: float(d.rotten),
    ),
    _dataset(
        "watch_degraded",
        "1 while changes are found by walking only although watching is configured.",
        lambda d, now: float(d.watch.startswith("degraded")),
    ),
    _dataset("dataset_entries", "Entries of the dataset.", lambda d, now: float(d.entries)),
    _dataset("dataset_bytes", "Bytes of the dataset's files.", lambda d, now: float(d.size)),
    _node(
        "store_free_bytes",
        "Free bytes on the store's file system; absent on a node without a store.",
        lambda s: _bytes_or_absent(s.store_free_bytes),
    ),
    _node(
        "store_reserve_bytes",
        "Free bytes below which intake stops; absent on a node without a store.",
        lambda s: _bytes_or_absent(s.store_reserve_bytes),
    ),
    _store(
        "last_snapshot_timestamp_seconds",
        "Creation time, by the primary's clock, of the last snapshot held; 0 = never.",
        lambda s: s.last_snapshot_ns / 1e9,
    ),
    _store(
        "last_received_timestamp_seconds",
        "When the last snapshot was acknowledged, by this node's clock; 0 = never.",
        lambda s: s.received_ns / 1e9,
    ),
    _store("entries", "Entries of the last snapshot.", lambda s: float(s.entries)),
    _store("dataset_bytes", "Bytes of the files of the last snapshot.", lambda s: float(s.size)),
    _store("stored_bytes", "Bytes that the store takes on the disk, books included.", lambda s: float(s.stored_bytes)),
    _store(
        "quota_bytes",
        "Bytes that all stores of the client may take together; 0 = as many as there are.",
        lambda s: float(s.quota_bytes),
    ),
    _store("received_bytes_total", "Bytes received from the client.", lambda s: float(s.received_bytes)),
    _store("damaged_frames", "Frames found damaged.", lambda s: float(s.damaged)),
    _store("full", "1 while intake is stopped for want of room.", lambda s: float(s.state == "full")),
    _scrub(
        "oldest_verified_timestamp_seconds",
        "Everything was verified after this, or is newer; 0 = never.",
        lambda s: s.oldest_verified_ns / 1e9,
    ),
    _scrub("scrub_every_seconds", "Every byte is to be verified again within this.", lambda s: s.scrub_every_s),
    _scrub_by(
        "verified_bytes_total",
        "Bytes verified, from the medium or through a cache.",
        "source",
        lambda s: {"media": s.media_bytes, "cache": s.cache_bytes},
    ),
    _scrub("scrub_bytes", "Bytes that there are to verify.", lambda s: float(s.total_bytes)),
    _scrub("never_verified_bytes", "Bytes that were never verified.", lambda s: float(s.never_bytes)),
    _scrub("scrub_on_track", "1 while every byte will be verified in time.", lambda s: float(s.on_track)),
    _scrub("scrub_paused", "1 while a person has paused it.", lambda s: float(bool(s.paused_until_ns))),
    _scrub_by(
        "divergent_blocks",
        "Open divergences by verdict.",
        "kind",
        lambda s: _zero_for_each(KINDS, s.divergent),
    ),
    _scrub_by(
        "divergences_total",
        "Divergences ever found, by verdict.",
        "kind",
        lambda s: _zero_for_each(KINDS, s.divergences),
    ),
    _scrub("lost_blocks", "Open divergences of which no side has the bytes.", lambda s: float(s.lost)),
    _scrub(
        "open_divergence_oldest_timestamp_seconds",
        "When the oldest open divergence was first judged, inconclusive ones left out; 0 = none is open.",
        lambda s: s.oldest_open_ns / 1e9,
    ),
    _scrub(
        "inconclusive_oldest_timestamp_seconds",
        "When the oldest finding that is still unclear was found; 0 = none is.",
        lambda s: s.oldest_inconclusive_ns / 1e9,
    ),
    _scrub("suspect_changes", "Suspect changes that nobody has released.", lambda s: float(s.suspects)),
    _scrub_by("repairs_total", "Repairs by result.", "result", lambda s: _zero_for_each(REPAIR_RESULTS, s.repairs)),
    _scrub("repair_breaker_open", "1 while repairs by themselves have stopped.", lambda s: float(s.breaker_open)),
    _drill(
        "drill_last_success_timestamp_seconds",
        "When the last drill ended that was proven; 0 = never.",
        lambda d: d.last_success_ns / 1e9,
    ),
    _drill(
        "drill_last_timestamp_seconds",
        "When the last drill ended, whatever came of it; 0 = never.",
        lambda d: d.last.ended_ns / 1e9 if d.last else 0.0,
    ),
    _drill("drill_failed", "1 from a drill that failed until one is proven.", lambda d: float(d.failure is not None)),
    _drill("drill_inconclusive", "1 while the last drill could not find out.", _last_was_inconclusive),
    _drill("drill_every_seconds", "A drill is due at this interval; 0 = none by itself.", lambda d: d.drill_every_s),
    _drill("drill_within_seconds", "Every file is to be drilled within this.", lambda d: d.drill_within_s),
    _drill(
        "drill_never_files",
        "Files that were never drilled, or found wrong when they were.",
        lambda d: float(d.never_files),
    ),
    _drill(
        "drill_oldest_timestamp_seconds",
        "Every file was drilled after this, or never; 0 = none was.",
        lambda d: d.oldest_ns / 1e9,
    ),
    _drill(
        "drill_estimated_restore_seconds",
        "How long a restore of everything takes, by the last proven drill; 0 = unknown.",
        lambda d: d.estimate_s,
    ),
    _drill("rto_seconds", "The objective for a restore of everything; 0 = none.", lambda d: d.rto_s),
    Family(
        "replicad_drills_total",
        "Drills in the history, by outcome.",
        ("dataset", "replica", "outcome"),
        _drills_by_outcome,
    ),
    Family(
        "replicad_canary_lag_seconds",
        "How long the last canary that came through took to get so far; +Inf when none ever did.",
        ("dataset", "replica", "stage"),
        _canary_lags,
    ),
    _canary(
        "last_success_timestamp_seconds",
        "When a canary last came through, restored and compared; 0 = never.",
        lambda c: c.last_success_ns / 1e9,
    ),
    _canary(
        "awaited_timestamp_seconds",
        "When the oldest canary was written that has not come through; 0 = none is awaited.",
        lambda c: c.oldest_awaited_ns / 1e9,
    ),
    _canary("every_seconds", "A canary is written at this interval.", lambda c: c.every_s),
    _canary("within_seconds", "A canary is to come through within this.", lambda c: c.within_s),
    _canary("failed", "1 while the last canary came back wrong.", lambda c: float(bool(c.failure))),
    _canary("paused", "1 while none is written, for a reason that is shown.", lambda c: float(c.state == "paused")),
    _canary("refused", "1 while the file is not the daemon's to write.", lambda c: float(c.state == "refused")),
    _canary("from_cache", "1 while the last one was verified through a cache.", lambda c: float(c.source == "cache")),
    Family(
        "replicad_policy_compliant",
        "1 while every objective of the dataset is known to hold.",
        ("dataset",),
        _compliant,
    ),
    Family(
        "replicad_policy_objective_met",
        "1 while this objective is known to hold.",
        ("dataset", "objective"),
        _by_objective(Grade.PASS),
    ),
    Family(
        "replicad_policy_objective_unknown",
        "1 while it cannot be found out whether it holds.",
        ("dataset", "objective"),
        _by_objective(Grade.UNKNOWN),
    ),
    _retention("snapshots", "Snapshots that are kept, as of the last run.", lambda r: float(r.kept)),
    _retention("held", "1 while nothing may go although there are rules (the clock).", lambda r: float(bool(r.hold))),
    _retention("dropped_total", "Snapshots let go.", lambda r: float(r.dropped)),
    _retention("reclaimed_bytes_total", "Bytes given back by compaction.", lambda r: float(r.reclaimed_bytes)),
    _retention("last_run_timestamp_seconds", "When a run last ended well; 0 = never.", lambda r: r.last_run_ns / 1e9),
    _job("running", "1 while the loop is alive.", lambda j: float(j.running)),
    _job("failures_total", "Failures; an unreachable peer is none.", lambda j: float(j.failures)),
    _job("last_success_timestamp_seconds", "When it last succeeded; 0 = never.", lambda j: j.last_success_ns / 1e9),
)
