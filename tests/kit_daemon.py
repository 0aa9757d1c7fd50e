"""A daemon that only says and counts: what the HTTP server and the CLI see, behind the same seam as the real one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

from replicad.http.contract import (
    Directed,
    DrillRequest,
    Gated,
    GateRequest,
    RepairResult,
    RetainResult,
    ScrubRequest,
    SyncRequest,
)
from replicad.http.server import HttpServer
from replicad.model.canary import Lags
from replicad.model.drill import DrillRecord, Outcome
from replicad.model.errors import ReplicadError, UsageError
from replicad.model.gate import Judged
from replicad.status import (
    CanaryStatus,
    DatasetStatus,
    DrillStatus,
    JobStatus,
    NodeStatus,
    RetentionStatus,
    ScrubStatus,
    StoreStatus,
    Trouble,
)
from replicad.system.clock import Clock

S = 1_000_000_000
NOW_NS = 1_800_000_000 * S
"""The moment at which every example is looked at: 2027-01-15T08:00:00Z."""


Part = TypeVar("Part")


def a_dataset(dataset: str = "www", replica: str = "fra1", **changes: object) -> DatasetStatus:
    """A dataset that is well: everything as of a minute ago is on the replica."""
    line = DatasetStatus(
        dataset=dataset,
        replica=replica,
        state="idle",
        rpo_s=300.0,
        link_up=True,
        pass_number=7,
        pass_ok=True,
        last_snapshot=41,
        last_snapshot_ns=NOW_NS - 60 * S,
        last_complete_ns=NOW_NS - 60 * S,
        sent_bytes=5_000_000,
        read_bytes=6_000_000,
        watch="on",
        entries=1234,
        size=3 * 1024**3,
    )
    return _changed(line, changes)


def a_store(client: str = "ams1", dataset: str = "www", **changes: object) -> StoreStatus:
    """A store that is well."""
    line = StoreStatus(
        client=client,
        dataset=dataset,
        state="idle",
        last_snapshot=41,
        last_snapshot_ns=NOW_NS - 60 * S,
        received_ns=NOW_NS - 59 * S,
        entries=1234,
        size=3 * 1024**3,
        stored_bytes=4 * 1024**3,
        quota_bytes=5 * 1024**3,
        received_bytes=5_000_000,
    )
    return _changed(line, changes)


def a_job(name: str = "replicate www -> fra1", **changes: object) -> JobStatus:
    """A job that is well."""
    return _changed(JobStatus(name=name, running=True, last_success_ns=NOW_NS - 60 * S), changes)


def a_scrub(dataset: str = "www", side: str = "primary", peer: str = "", **changes: object) -> ScrubStatus:
    """A scrub that is well: everything was verified within three days."""
    line = ScrubStatus(
        dataset=dataset,
        side=side,
        peer=peer,
        state="idle",
        scrub_every_s=7 * 86_400.0,
        total_bytes=4_000_000_000,
        oldest_verified_ns=NOW_NS - 3 * 86_400 * S,
        forecast_ns=NOW_NS + 2 * 86_400 * S,
        media_bytes=9_000_000_000,
        structure_ns=NOW_NS - 86_400 * S,
    )
    return _changed(line, changes)


def a_drill(dataset: str = "www", replica: str = "fra1", **changes: object) -> DrillStatus:
    """Drills that are well: the last was proven a day ago."""
    ended_ns = NOW_NS - 86_400 * S
    last = DrillRecord(
        dataset, replica, number=3, snapshot=40, started_ns=ended_ns - 60 * S, ended_ns=ended_ns, outcome=Outcome.PROVEN
    )
    line = DrillStatus(
        dataset,
        replica,
        state="idle",
        drill_every_s=7 * 86_400.0,
        drill_within_s=90 * 86_400.0,
        rto_s=7200.0,
        since_ns=NOW_NS - 30 * 86_400 * S,
        last_success_ns=ended_ns,
        last=last,
        drills={"proven": 3},
        files=1000,
        never_files=700,
        oldest_ns=NOW_NS - 15 * 86_400 * S,
        estimate_s=3600.0,
    )
    return _changed(line, changes)


def a_canary(dataset: str = "www", replica: str = "fra1", **changes: object) -> CanaryStatus:
    """A canary that is well: the last one took four seconds, all the way, five minutes ago."""
    line = CanaryStatus(
        dataset,
        replica,
        state="idle",
        every_s=900.0,
        within_s=1800.0,
        number=17,
        written_ns=NOW_NS - 300 * S,
        last_number=17,
        last_success_ns=NOW_NS - 296 * S,
        lags=Lags(2.0, 2.5, 4.0),
        source="media",
    )
    return _changed(line, changes)


def a_node(
    *parts: DatasetStatus | StoreStatus | ScrubStatus | DrillStatus | CanaryStatus | RetentionStatus | JobStatus,
    **changes: object,
) -> NodeStatus:
    """A node that has these parts, and one job that is well when no job is named."""
    node = NodeStatus(
        node="ams1",
        version="0.1.0",
        started_ns=NOW_NS - 3 * 86_400 * S,
        now_ns=NOW_NS,
        config_file="/etc/replicad/config.toml",
        http="127.0.0.1:9817",
        datasets=[part for part in parts if isinstance(part, DatasetStatus)],
        stores=[part for part in parts if isinstance(part, StoreStatus)],
        scrubs=[part for part in parts if isinstance(part, ScrubStatus)],
        drills=[part for part in parts if isinstance(part, DrillStatus)],
        canaries=[part for part in parts if isinstance(part, CanaryStatus)],
        retentions=[part for part in parts if isinstance(part, RetentionStatus)],
        jobs=[part for part in parts if isinstance(part, JobStatus)] or [a_job()],
    )
    if node.stores:
        node.store_free_bytes, node.store_reserve_bytes = 100 * 1024**3, 1024**3
    return _changed(node, changes)


def troubles(count: int) -> list[Trouble]:
    """Paths that could not be read."""
    return [Trouble(path=f"secret/{number}.key", reason="Permission denied") for number in range(count)]


def _changed(value: Part, changes: dict[str, object]) -> Part:
    for name, changed in changes.items():
        assert hasattr(value, name), name
        setattr(value, name, changed)
    return value


async def _nothing() -> None:
    """Takes no time."""


class FakeDaemon:
    """Answers from `node`, which a test changes as it likes, and remembers what it was asked for."""

    def __init__(self, node: NodeStatus) -> None:
        self.node = node
        self.asked: list[str] = []
        self.problems: list[str] = []
        self.refusal: ReplicadError | None = None
        """What every command fails with."""
        self.on_status: Callable[[], None] = lambda: None
        """Called before each status: here a test lets the world go on."""
        self.on_sync: Callable[[], None] = lambda: None
        self.results: dict[str, list[RepairResult]] = {}
        """What a repair of each id ends with; all of them in one when all are asked for."""
        self.on_repair: Callable[[], Awaitable[None]] = _nothing
        """Awaited in the middle of a repair: here a test lets it take its time."""
        self.on_scrub: Callable[[], None] = lambda: None
        self.on_drill: Callable[[], None] = lambda: None
        self.retained: list[RetainResult] = []
        self.copies: list[Judged] = []
        """What a gate judges."""
        self.gated: list[GateRequest] = []
        """How it was asked."""

    def status(self) -> NodeStatus:
        self.on_status()
        return self.node

    def request_sync(self, dataset: str | None) -> list[SyncRequest]:
        self._ask(f"sync {dataset}")
        requests = []
        for line in self.node.datasets:
            if dataset in (None, line.dataset):
                line.pass_requested += 1
                requests.append(SyncRequest(line.dataset, line.replica, line.pass_requested))
        self.on_sync()
        return requests

    async def release(self, dataset: str) -> None:
        self._ask(f"release {dataset}")
        for line in self.node.datasets:
            if line.dataset == dataset:
                line.held, line.state, line.reason = False, "idle", ""

    def request_drill(self, dataset: str | None, *, full: bool, globs: Sequence[bytes]) -> list[DrillRequest]:
        self._ask(f"drill {dataset}{' full' * full}{''.join(f' {glob.decode()}' for glob in globs)}")
        requests = []
        for line in self.node.drills:
            if dataset in (None, line.dataset):
                line.requested += 1
                requests.append(DrillRequest(line.dataset, line.replica, line.requested))
        self.on_drill()
        return requests

    async def direct_scrub(self, action: str, dataset: str | None, side: str | None, for_s: float) -> Directed:
        self._ask(f"{action} {dataset} {side} {for_s:g}")
        requests = []
        for line in self.node.scrubs:
            if dataset in (None, line.dataset) and side in (None, line.side):
                line.requested += action == "start"
                requests.append(ScrubRequest(line.dataset, line.side, line.peer, line.requested))
        self.on_scrub()
        return Directed(requests, NOW_NS + int(for_s * S) if action == "pause" else 0)

    async def reload(self) -> list[str]:
        self._ask("reload")
        return self.problems

    async def repair(self, id: str | None, *, dry_run: bool) -> list[RepairResult]:
        self._ask(f"repair {id}{' dry run' * dry_run}")
        await self.on_repair()
        self.asked.append("repaired")
        return [result for name in ([id] if id is not None else self.results) for result in self._results(name)]

    async def undo_repair(self, id: str) -> list[RepairResult]:
        self._ask(f"undo {id}")
        return self._results(id)

    async def retain(self, dataset: str | None) -> list[RetainResult]:
        self._ask(f"retain {dataset}")
        return self.retained

    async def gate(self, asked: GateRequest) -> Gated:
        self._ask("gate")
        self.gated.append(asked)
        copies = [one for one in self.copies if not asked.datasets or one.dataset in asked.datasets]
        return Gated(asked.asked_ns or NOW_NS, copies)

    def _results(self, name: str) -> list[RepairResult]:
        if name not in self.results:
            raise UsageError(f"there is no divergence {name!r}", hint="replicad divergence list names them")
        return self.results[name]

    def serve(self, line: DatasetStatus, *, ok: bool = True, **changes: object) -> None:
        """End the pass that was asked for."""
        _changed(line, changes)
        line.pass_number += 1
        line.pass_ok = ok
        line.pass_served = line.pass_requested

    def _ask(self, what: str) -> None:
        self.asked.append(what)
        if self.refusal is not None:
            raise self.refusal


class Served:
    """A FakeDaemon with its HttpServer on a real TCP port and a real unix socket, in a thread of its own."""

    def __init__(self, daemon: FakeDaemon, state: Path) -> None:
        self.daemon, self.state, self.address = daemon, state, ""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="served", daemon=True)
        self._server = HttpServer(daemon, address="127.0.0.1:0", state=state, clock=Clock())

    def __enter__(self) -> Served:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._server.start(), self._loop).result(10)
        self.address = self._server.address
        return self

    def __exit__(self, *exc: object) -> None:
        asyncio.run_coroutine_threadsafe(self._server.stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        """Do something in the daemon's loop."""
        self._loop.call_soon_threadsafe(self._loop.call_later, seconds, action)

    def config(self) -> Path:
        """A configuration file whose state directory is this daemon's."""
        file = self.state / "config.toml"
        file.write_text(f'[node]\nname = "ams1"\nstate = "{self.state}"\n')
        return file
