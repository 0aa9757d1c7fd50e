"""Contract: what the HTTP server asks of the daemon, and how the control socket spells it.

One table for server (`server.py`) and client (`api.py`). Over STATE/control.sock:
    GET  /status[?served=DATASET/REPLICA/NUMBER]...[&scrubbed=DATASET/SIDE/PEER/NUMBER]...[&timeout_s=S] -> NodeStatus;
                                   waits until all of these passes and scrubs have ended
    POST /sync[?dataset=NAME]    -> Accepted
    POST /release?dataset=NAME   -> Released; POST /reload -> Reloaded
    POST /scrub?action=start|pause|resume[&dataset=NAME][&side=primary|replica][&for_s=S] -> Directed
    POST /drill[?dataset=NAME][&full=1 | &path=GLOB...] -> Drilled; POST /gate[?fields of GateRequest] -> Gated
    POST /repair?id=ID[&dry_run=1] | ?all=1[&dry_run=1] | ?undo=ID                        -> Repaired, when it is done
    POST /retain[?dataset=NAME]  -> RetainedAll, when it is done
    anything that fails          -> 4xx or 5xx with Failure
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

import msgspec

from replicad.model.gate import Judged
from replicad.status import NodeStatus, ScrubStatus

if TYPE_CHECKING:  # a short verb of the command line must not load them
    from replicad.model.divergence import Divergence
    from replicad.work.mended import Mended
    from replicad.work.retain import Retained

CONTROL_SOCKET = "control.sock"
"""Name of the control socket in the state directory; mode 0600, so only the daemon's user and root may command it."""
MAX_WAIT_S = 10.0
"""One GET /status waits no longer; whoever wants to wait longer asks again, so a dead client costs little."""
MAX_SERVED = 1000
"""Passes that one GET /status may wait for."""


class SyncRequest(msgspec.Struct, frozen=True):
    """A pass that was asked for. It has ended when `pass_served` of this dataset and replica is at least `number`."""

    dataset: str
    replica: str
    number: int


class Accepted(msgspec.Struct, frozen=True):
    """Answer to POST /sync."""

    requests: list[SyncRequest]


class Freed(msgspec.Struct, frozen=True):
    """A dataset on its way to one replica that is held no more, and why it was."""

    dataset: str
    replica: str
    reason: str


class Released(msgspec.Struct, frozen=True):
    """Answer to POST /release: what was held; empty when nothing was."""

    released: list[Freed]


class Reloaded(msgspec.Struct, frozen=True):
    """Answer to POST /reload: what is wrong with the new configuration; empty when it is in force."""

    problems: list[str]


class ScrubRequest(msgspec.Struct, frozen=True):
    """A scrub that was asked for. It has ended when `served` of this dataset, side and peer is at least `number`."""

    dataset: str
    side: str
    peer: str
    number: int


class Directed(msgspec.Struct, frozen=True):
    """Answer to POST /scrub: for `start` what to wait for, for `pause` and `resume` what was paused or resumed."""

    requests: list[ScrubRequest]
    until_ns: int = 0
    """When a pause ends by itself."""


class DrillRequest(msgspec.Struct, frozen=True):
    """A drill that was asked for. It has ended when `served` of this dataset and replica is at least `number`."""

    dataset: str
    replica: str
    number: int


class Drilled(msgspec.Struct, frozen=True):
    """Answer to POST /drill: what to wait for."""

    requests: list[DrillRequest]


class GateRequest(msgspec.Struct, frozen=True):
    """What a gate is asked; None = as the dataset's own objectives have it."""

    datasets: list[str] = []
    """Empty = all."""
    max_lag_s: float | None = None
    max_scrub_age_s: float | None = None
    max_drill_age_s: float | None = None
    asked_ns: int = 0
    """When it was asked first, as an earlier answer says; 0 = now."""
    pin: str = ""
    """Keep what was judged under this name, if the gate is open."""


class Gated(msgspec.Struct, frozen=True):
    """Answer to POST /gate."""

    asked_ns: int
    copies: list[Judged]


class RepairResult(msgspec.Struct, frozen=True):
    """What became, or in a dry run would become, of one divergence."""

    id: str
    remedy: str
    """A model.remedy.Remedy."""
    result: str
    """planned, repaired, failed, undone, refused (a guard), waiting (for the other side), nothing."""
    text: str
    """In one sentence for a person."""


class Repaired(msgspec.Struct, frozen=True):
    """Answer to POST /repair."""

    results: list[RepairResult]


class RetainResult(msgspec.Struct, frozen=True):
    """What a run of retention did with one store of this node."""

    client: str
    dataset: str
    hold: str = ""
    """Why nothing was let go, whatever the rules say; "" when they decided."""
    kept: int = 0
    dropped: list[int] = []
    """Numbers of the snapshots that were let go."""
    compacted: int = 0
    reclaimed_bytes: int = 0
    left: list[str] = []
    """Segments that were worth compacting and were left, and why."""
    error: str = ""
    """Why the run ended early; what was done stays done. "" when it did not."""


class RetainedAll(msgspec.Struct, frozen=True):
    """Answer to POST /retain."""

    results: list[RetainResult]


class Failure(msgspec.Struct, frozen=True):
    """Why a request was refused, and what to do."""

    error: str
    hint: str = ""
    exit_code: int = 2
    """What a command that is refused so exits with: 3 when a peer is out of reach, or something could not be done."""


class Daemon(Protocol):
    """What the HTTP server needs of the daemon. All methods are called on the event loop and must not block it."""

    def status(self) -> NodeStatus:
        """The state of now. Called up to a hundred times a second while somebody waits, so it must be cheap."""

    def request_sync(self, dataset: str | None) -> list[SyncRequest]:
        """Ask for a pass of one dataset, or of all, now. Raises UsageError for a name that is not configured."""

    def request_drill(self, dataset: str | None, *, full: bool, globs: Sequence[bytes]) -> list[DrillRequest]:
        """Ask for a drill of one dataset, or of all, from each replica now: of a sample, of everything, or of what
        matches. Raises UsageError for a name that is not configured, a bad pattern, or a drill under way."""

    async def gate(self, asked: GateRequest) -> Gated:
        """Ask every replica of these datasets what it holds now, and judge it; pin it where all are well. Raises
        UsageError for a name that is not configured."""

    async def release(self, dataset: str) -> None:
        """Let a held dataset go on, on all its replicas; nothing happens when it is not held. Raises UsageError,
        ReplicadError when it cannot be remembered."""

    async def direct_scrub(self, action: str, dataset: str | None, side: str | None, for_s: float) -> Directed:
        """Start, pause (for so long) or resume the scrubs of one dataset or all, of one side or both; remembered when
        it returns. Raises UsageError for what is not here, ReplicadError when it cannot be remembered or passed on."""

    async def reload(self) -> list[str]:
        """Read the configuration file again. The problems found, in words; empty when it is in force."""

    async def repair(self, id: str | None, *, dry_run: bool) -> list[RepairResult]:
        """Repair the divergence whose id begins with `id`, or all open ones (None); in a dry run only say what would be
        done. Raises UsageError when there is no such divergence, or more than one."""

    async def retain(self, dataset: str | None) -> list[RetainResult]:
        """Run retention now, of the stores of one dataset or of all, one after the other. Raises UsageError."""

    async def undo_repair(self, id: str) -> list[RepairResult]:
        """Put the bytes that a repair of the primary's data replaced back. Raises UsageError as `repair`."""


def scrub_request(line: ScrubStatus, number: int) -> ScrubRequest:
    """The request with this number of the scrub of that line."""
    return ScrubRequest(line.dataset, line.side, line.peer, number)


def repair_result(found: Divergence, mended: Mended) -> RepairResult:
    """What became of one finding."""
    return RepairResult(found.id, mended.remedy.value, mended.result, mended.text)


def retain_result(store: tuple[str, str], done: Retained | Exception) -> RetainResult:
    """What a run did with one store (client, dataset), or why it ended early."""
    if isinstance(done, Exception):
        return RetainResult(*store, error=str(done))
    return RetainResult(**msgspec.structs.asdict(done))


def gate_query(asked: GateRequest) -> list[tuple[str, str]]:
    """The query of POST /gate."""
    query = [("dataset", name) for name in asked.datasets]
    for key in ("max_lag_s", "max_scrub_age_s", "max_drill_age_s"):
        if (value := getattr(asked, key)) is not None:
            query.append((key, f"{value:.3f}"))
    return query + [(key, str(value)) for key in ("asked_ns", "pin") if (value := getattr(asked, key))]


def parse_gate_untrusted(query: Sequence[tuple[str, str]]) -> GateRequest:
    """The inverse. Raises ValueError with the reason."""
    given = {key: value for key, value in query if key != "dataset"}
    if len(given) != sum(key != "dataset" for key, _ in query):
        raise ValueError("a key stands there twice")
    datasets = [value for key, value in query if key == "dataset"]
    try:
        asked = msgspec.convert({"datasets": datasets} | given, GateRequest, strict=False)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None
    ages = (asked.max_lag_s, asked.max_scrub_age_s, asked.max_drill_age_s)
    if set(given) - set(GateRequest.__struct_fields__) or not all(a is None or 0 <= a < float("inf") for a in ages):
        raise ValueError("an unknown key, or an age that is none")
    return asked


def repair_query(id: str | None, *, dry_run: bool) -> list[tuple[str, str]]:
    """The query of POST /repair for one divergence, or for all (None)."""
    return [("all", "1") if id is None else ("id", id), *([("dry_run", "1")] if dry_run else [])]


def has_served(status: NodeStatus, requests: Iterable[SyncRequest] = (), scrubs: Iterable[ScrubRequest] = ()) -> bool:
    """Whether all these passes and scrubs have ended. What is gone from the configuration is waited for no longer."""
    served = {(line.dataset, line.replica): line.pass_served for line in status.datasets}
    scrubbed = {(line.dataset, line.side, line.peer): line.served for line in status.scrubs}
    return all(served.get((r.dataset, r.replica), r.number) >= r.number for r in requests) and all(
        scrubbed.get((r.dataset, r.side, r.peer), r.number) >= r.number for r in scrubs
    )


def status_query(
    requests: Sequence[SyncRequest], timeout_s: float, scrubs: Sequence[ScrubRequest] = ()
) -> list[tuple[str, str]]:
    """The query of GET /status that waits for these passes and scrubs."""
    query = [("served", f"{r.dataset}/{r.replica}/{r.number}") for r in requests]
    query += [("scrubbed", f"{r.dataset}/{r.side}/{r.peer}/{r.number}") for r in scrubs]
    return [*query, ("timeout_s", f"{timeout_s:.3f}")] if query else []


def parse_served_untrusted(texts: Sequence[str]) -> list[SyncRequest]:
    """The inverse for the `served` values. Raises ValueError with the reason."""
    if len(texts) > MAX_SERVED:
        raise ValueError(f"more than {MAX_SERVED} passes to wait for")
    return [_parse_one(text) for text in texts]


def parse_scrubbed_untrusted(texts: Sequence[str]) -> list[ScrubRequest]:
    """The inverse for the `scrubbed` values. Raises ValueError with the reason."""
    if len(texts) > MAX_SERVED:
        raise ValueError(f"more than {MAX_SERVED} scrubs to wait for")
    return [_parse_scrub(text) for text in texts]


def _parse_scrub(text: str) -> ScrubRequest:
    parts = text.rsplit("/", 3)
    if len(parts) != 4 or not (parts[3].isascii() and parts[3].isdigit()):
        raise ValueError(f"scrubbed={text[:80]!r} is not DATASET/SIDE/PEER/NUMBER")
    return ScrubRequest(dataset=parts[0], side=parts[1], peer=parts[2], number=int(parts[3]))


def _parse_one(text: str) -> SyncRequest:
    parts = text.rsplit("/", 2)
    if len(parts) != 3 or not (parts[2].isascii() and parts[2].isdigit()):
        raise ValueError(f"served={text[:80]!r} is not DATASET/REPLICA/NUMBER")
    return SyncRequest(dataset=parts[0], replica=parts[1], number=int(parts[2]))
