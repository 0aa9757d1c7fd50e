"""Status: what every job is doing, as plain values. Logs, metrics, the HTTP API and the CLI render this one object.

Jobs write into it (through the mutable records below), everything else only reads. It knows no clock: times are
ns since 1970 written by whoever knows them, 0 meaning "never". `encode` gives the JSON whose keys are API.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any

import msgspec

from replicad.model.attestation import Attestation
from replicad.model.canary import Lags
from replicad.model.canary import is_late as is_canary_late
from replicad.model.drill import DrillRecord, Trend, is_overdue
from replicad.model.place import Place
from replicad.model.policy import Objectives
from replicad.model.show import counted, short_duration, show_bytes

LAST_STATUS = "last-status.json"
"""File in the state directory with what the daemon said last: shown when it cannot be asked."""
MOST = 2**63 - 1
"""What a metric and a book can hold."""
Number = Annotated[int, msgspec.Meta(ge=0, le=MOST)]
"""One that a peer may say: what lies outside is refused where it is decoded."""
Quantity = Annotated[float, msgspec.Meta(ge=0, le=MOST)]
"""The same of seconds and rates."""
MAX_NAMED = 100
"""Paths that are named one by one in a list of what could not be copied; the counters count all."""


class Trouble(msgspec.Struct):
    """One path that could not be copied in the last pass, and why."""

    path: str
    reason: str


class DatasetStatus(msgspec.Struct):
    """One dataset on its way to one replica (primary side)."""

    dataset: str
    replica: str
    state: str = "starting"
    """starting, idle, hook, survey, copying, catching-up, committing, held, waiting (for the link, or for its turn),
    failed (refused by the replica, or something is wrong here; tried again by itself), stopped."""
    reason: str = ""
    """Why it is held, waiting or failed, in words, with what to do."""
    rpo_s: float = 0.0
    """The configured objective for the lag, seconds; 0 when unknown."""
    held: bool = False
    queued: bool = False
    """Whether its pass waits for its turn: for another replica's pass over the dataset, or for a restore into it. Then
    nobody may have dialled yet, and nothing is wrong."""
    link_up: bool = False
    pass_number: int = 0
    """Passes ended since the daemon started, well or not."""
    pass_requested: int = 0
    """Raised by each request for a pass; `pass_served` follows it."""
    pass_served: int = 0
    pass_started_ns: int = 0
    pass_ok: bool = False
    """Whether the last ended pass copied everything."""
    total_files: int = 0
    total_bytes: int = 0
    pending_files: int = 0
    pending_bytes: int = 0
    """Bytes of source files of the running pass that are not yet read."""
    sent_bytes: int = 0
    """Bytes of frames and records given to the link since the daemon started."""
    read_bytes: int = 0
    copied_files: int = 0
    """Files read and recorded since the daemon started."""
    last_snapshot: int = 0
    last_snapshot_ns: int = 0
    """Creation time of the last acknowledged snapshot."""
    last_complete_ns: int = 0
    """When the last pass began of which everything is acknowledged; the lag is the age of this."""
    last_walked_ns: int = 0
    """When the last of those began that walked everything, whatever the watch said; 0 = not since the start."""
    last_error: str = ""
    unread: int = 0
    """Entries that could not be copied in the last pass."""
    fuzzy: int = 0
    """Files recorded although they kept changing."""
    troubles: list[Trouble] = []
    """The first MAX_NAMED of them."""
    rotten: int = 0
    """Blocks whose bytes differ from the ledger under an unchanged identity; not sent."""
    watch: str = "off"
    """on, off, or degraded: and why."""
    entries: int = 0
    size: int = 0
    """Entries and bytes of the dataset as the ledger knows it."""


class StoreStatus(msgspec.Struct):
    """One client's dataset on this node (replica side)."""

    client: str
    dataset: str
    state: str = "closed"
    """closed, idle, connected (the session stays open between passes), full, damaged."""
    reason: str = ""
    last_snapshot: int = 0
    last_snapshot_ns: int = 0
    received_ns: int = 0
    entries: int = 0
    size: int = 0
    stored_bytes: int = 0
    received_bytes: int = 0
    quota_bytes: int = 0
    """What all stores of the client may take together; 0 = as much as there is."""
    damaged: int = 0
    """Frames found damaged when the store was opened or read."""


class ScrubStatus(msgspec.Struct):
    """How the scrub of one side of one dataset stands. At a primary the lines of its replicas are what those said last.

    Times are ns since 1970, 0 = never."""

    dataset: str
    side: str
    """primary or replica."""
    peer: str
    """At the primary: "" for its own side, else the replica that says this. At the replica: the client."""
    mirrored: bool = False
    """Whether it is a replica's, as that said last: a node may keep copies for a client that is its replica as well."""
    state: str = "starting"
    """starting, idle (nothing is due), running, paused, quiet (hours), waiting (something is not there yet, or could
    not be looked at and is tried again), failed."""
    reason: str = ""
    scrub_every_s: Quantity = 0.0
    """Every byte is to be read again within this."""
    paused_until_ns: Number = 0
    requested: Number = 0
    """Raised by each `scrub start`; `served` follows when everything has been verified since."""
    served: Number = 0
    held_up: bool = False
    """Whether the request under way lacks only what could not be looked at, which is tried again and again."""
    total_bytes: Number = 0
    never_bytes: Number = 0
    """Bytes that were never verified since they were recorded."""
    overdue_bytes: Number = 0
    """Bytes that were verified, but longer than `scrub_every` ago; looked at every quarter of an hour."""
    oldest_verified_ns: Number = 0
    """Everything was verified after this, but for new data (`never_bytes`), which came after it; 0 until the first data
    had been verified once."""
    left_bytes: Number = 0
    """Bytes that the request under way, or the deadline, still wants."""
    forecast_ns: Number = 0
    """When everything will have been verified once more, at the present rate; 0 = unknown."""
    on_track: bool = True
    """Whether every byte will be verified within `scrub_every`; `reason` says why not."""
    rate_bytes_s: Quantity = 0.0
    media_bytes: Number = 0
    """Verified bytes since the daemon started that came from the medium."""
    cache_bytes: Number = 0
    """Those that may have come from a cache, where the file system gives no direct reads."""
    structure_ns: Number = 0
    """When the structure (coverage, books, both sides' records) was checked last."""
    divergent: dict[str, Number] = {}
    """Open divergences by verdict."""
    divergences: dict[str, Number] = {}
    """All divergences ever found, by verdict."""
    oldest_open_ns: Number = 0
    """When the first of the open divergences that have a verdict got one; 0 = there are none."""
    oldest_inconclusive_ns: Number = 0
    """When the first of those that have none was found."""
    lost: Number = 0
    """Open divergences of which no side has the bytes."""
    suspects: Number = 0
    """Suspect changes that nobody has released."""
    repairs: dict[str, Number] = {}
    """Repairs by result."""
    breaker_open: bool = False
    """Repairs by themselves have stopped: too many within an hour."""


class DrillStatus(msgspec.Struct):
    """How the drills of one dataset from one replica stand (primary side). Times are ns since 1970, 0 = never."""

    dataset: str
    replica: str
    state: str = "starting"
    """starting, idle, off (never by itself), waiting (something is not there yet), choosing, restoring, comparing,
    validating, cleaning, failed (it could not be run at all)."""
    reason: str = ""
    drill_every_s: float = 0.0
    drill_within_s: float = 0.0
    rto_s: float = 0.0
    requested: int = 0
    """Raised by each `drill run`; `served` follows when that drill has ended."""
    served: int = 0
    started_ns: int = 0
    """When the drill under way began."""
    done_bytes: int = 0
    total_bytes: int = 0
    """Of its present phase."""
    since_ns: int = 0
    """Since when drills are wanted."""
    next_ns: int = 0
    last_success_ns: int = 0
    """When the last proven drill ended; never moved by anything else."""
    last: DrillRecord | None = None
    """The last drill, whatever came of it."""
    failure: DrillRecord | None = None
    """The drill that failed last, until one of the dataset is proven."""
    drills: dict[str, int] = {}
    """Drills in the history by outcome."""
    files: int = 0
    never_files: int = 0
    """Files that were never drilled, or found wrong when they were."""
    oldest_ns: int = 0
    """All other files were drilled after this."""
    estimate_s: float = 0.0
    """How long a restore of the whole dataset would take, by the last drill that was proven; 0 = unknown."""
    trend: Trend = Trend("unknown")


class CanaryStatus(msgspec.Struct):
    """How the canaries of one dataset fare that go to one replica (primary side). Times are ns since 1970, 0 = never.

    A line is there only where a canary is configured."""

    dataset: str
    replica: str
    state: str = "starting"
    """starting, idle (the last one is through), waiting (one is on its way), paused (none is written), refused (the
    file is not ours to write), failed (it could not be found out)."""
    reason: str = ""
    every_s: float = 0.0
    within_s: float = 0.0
    number: int = 0
    """Of the canary written last."""
    written_ns: int = 0
    oldest_awaited_ns: int = 0
    """When the oldest canary was written that has not come through; 0 = none is awaited."""
    last_number: int = 0
    """Of the canary that came through last."""
    last_success_ns: int = 0
    """When that was; never moved by anything else."""
    lags: Lags | None = None
    """How long that one took to each stage."""
    source: str = ""
    """What the replica read it from: media or cache."""
    failure: str = ""
    """What is wrong with the last one that was looked at; "" when nothing is."""


class CopyStatus(msgspec.Struct):
    """What one replica said last of its copy of a dataset (primary side)."""

    dataset: str
    replica: str
    place: Place = Place()
    """Where it stands, as this node's configuration declares."""
    heard_ns: int = 0
    """When it said so, by this node's clock; 0 = not since the daemon started."""
    unheard: str = ""
    """Why it does not say so now."""
    said: Attestation = Attestation()


class PolicyStatus(msgspec.Struct):
    """What is demanded of one dataset of this node; whether it holds: work/policy_facts.py."""

    dataset: str
    objectives: Objectives = Objectives()
    place: Place = Place()
    """Where this node stands."""


class RetentionStatus(msgspec.Struct):
    """Retention of one store of this node."""

    client: str
    dataset: str
    state: str = "idle"
    """idle, running"""
    hold: str = ""
    """Why nothing goes for now although there are rules; "" when they decide."""
    kept: int = 0
    """Snapshots that are kept, as of the last run."""
    dropped: int = 0
    """Snapshots let go since the daemon started."""
    reclaimed_bytes: int = 0
    """Bytes given back by compaction since then."""
    last_run_ns: int = 0
    """When a run last ended well."""


class JobStatus(msgspec.Struct):
    """One loop of the daemon."""

    name: str
    running: bool = False
    """Whether the loop is alive; true as well while it waits, also for its next try after a failure."""
    failures: int = 0
    """All failures since the daemon started. An unreachable peer and a held dataset are states, not failures."""
    failures_in_row: int = 0
    """Failures since the last success; the same exceptions."""
    last_success_ns: int = 0
    last_error: str = ""
    next_try_ns: int = 0


class NodeStatus(msgspec.Struct):
    """Everything one daemon knows about itself."""

    node: str
    version: str
    started_ns: int = 0
    now_ns: int = 0
    config_file: str = ""
    config_error: str = ""
    """Why the last reload was refused; the old configuration is still in force."""
    listen: str = ""
    http: str = ""
    store_free_bytes: int = -1
    """Free bytes on the store's file system; -1 when this node has no store, or it does not say (`store_problem`)."""
    store_reserve_bytes: int = -1
    """Free bytes below which intake stops (`listen.reserve_bytes`); -1 when this node has no store."""
    store_problem: str = ""
    """Why the store's file system does not say how much is free; then `store_free_bytes` is -1 as well."""
    sessions: int = 0
    views: int = 0
    """SFTP views under way at this replica."""
    datasets: list[DatasetStatus] = []
    stores: list[StoreStatus] = []
    scrubs: list[ScrubStatus] = []
    drills: list[DrillStatus] = []
    canaries: list[CanaryStatus] = []
    copies: list[CopyStatus] = []
    policies: list[PolicyStatus] = []
    retentions: list[RetentionStatus] = []
    jobs: list[JobStatus] = []


class Finding(msgspec.Struct, frozen=True):
    """One thing that a person should know about, and what to type or do next. `kind` is API:

    held, rotten, unread, failed, lag (of a dataset); damaged, full, retention, silent (of a store); divergence, lost,
    inconclusive, breaker, scrub, suspect (of one side of a dataset); drill, rto, canary (of a dataset and a replica);
    job, config (of the daemon); and link, which alone among them says that a peer is out of reach rather than that
    something is wrong here.
    """

    kind: str
    where: str
    what: str
    next_step: str


LAG_FACTOR = 2.0
"""A lag above this multiple of the objective is a finding: a pass that has just begun ends within the next interval."""
FREE_SPACE = "free space on the store's file system; intake goes on by itself"
INCONCLUSIVE_S = 86400.0
"""What has been unclear for longer than this is a finding of its own: by now it should have been settled."""
CRASH_LOOP_FAILURES = 3
"""This many failures in a row, seconds apart, are no accident."""


def findings(status: NodeStatus) -> list[Finding]:
    """What is wrong on this node, the daemon's own troubles first; empty when everything is as it should be."""
    problems = [(f"job {job.name}", text) for job in status.jobs if (text := job_problem(job))]
    found = [Finding("job", name, text, "journalctl -u replicad -e") for name, text in problems]
    if status.config_error:
        text, file = f"refused, the old one is in force: {status.config_error}", status.config_file
        found.append(Finding("config", file, text, f"replicad check-config --config {file}"))
    for line in status.datasets:
        found += _dataset_findings(line, status.now_ns)
    for store in status.stores:
        found += _store_findings(store)
    for kept in status.retentions:
        if kept.hold:
            where, text = f"store {kept.client}/{kept.dataset}", f"no snapshot is let go: {kept.hold}"
            found.append(Finding("retention", where, text, "look at the clock, then: replicad retain run"))
    for scrub in status.scrubs:
        found += _scrub_findings(scrub, status)
    for drill in status.drills:
        found += _drill_findings(drill, status.now_ns)
    for canary in status.canaries:
        found += _canary_findings(canary, status.now_ns)
    if status.store_problem:
        text, look = f"the store's file system does not answer: {status.store_problem}", "findmnt, dmesg, smartctl"
        found.append(Finding("silent", "store", text, f"is its disk there? {look}"))
    full = any(store.state == "full" for store in status.stores)
    if 0 <= status.store_free_bytes < status.store_reserve_bytes and not full:
        free, reserve = show_bytes(status.store_free_bytes), show_bytes(status.store_reserve_bytes)
        text = f"nothing is taken in: only {free} are free, the reserve is {reserve}"
        found.append(Finding("full", "store", text, FREE_SPACE))
    return found


def job_trouble(job: JobStatus) -> str:
    """That this job does not do its work, as what follows its name in a sentence; "" when it does."""
    if not job.running:
        return "is not running"
    return f"failed {job.failures_in_row} times in a row" if job.failures_in_row >= CRASH_LOOP_FAILURES else ""


def job_problem(job: JobStatus) -> str:
    """The same with the reason."""
    reason = job.last_error if job.running else job.last_error or "it has not started"
    return f"{trouble}: {reason}" if (trouble := job_trouble(job)) else ""


def lag_s(line: DatasetStatus, now_ns: int) -> float:
    """Age in seconds of the last state that is wholly on the replica; infinite when there never was one. One that is
    dated ahead was dated by a clock that has been put right since: its age may be anything, so how far ahead counts."""
    return abs(now_ns - line.last_complete_ns) / 1e9 if line.last_complete_ns else float("inf")


def is_late(line: DatasetStatus, now_ns: int) -> bool:
    """Whether the objective is broken. A first copy that is still under way is not late, it has never been on time."""
    return bool(line.last_complete_ns) and 0 < line.rpo_s * LAG_FACTOR < lag_s(line, now_ns)


def printable(text: str) -> str:
    """`text` without control characters: a reason may hold what a peer or a file name says."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _dataset_findings(line: DatasetStatus, now_ns: int) -> list[Finding]:
    found: list[Finding] = []

    def add(kind: str, what: str, next_step: str) -> None:
        found.append(Finding(kind, f"{line.dataset} -> {line.replica}", what, next_step))

    if line.held:
        add("held", f"held: {line.reason}", f"when that is as it should be: replicad release {line.dataset}")
    if line.rotten:
        text = f"{counted(line.rotten, 'block')} changed on this disk without a write; the replica has what was written"
        add("rotten", text, "replicad divergence list, and look at this disk: smartctl, dmesg")
    if line.unread:
        text = f"{counted(line.unread, 'entry', 'entries')} could not be copied; the replica keeps what it had before"
        add("unread", text, f"make them readable for the daemon, then: replicad sync {line.dataset} --wait")
    if line.state == "failed" or (line.last_error and line.link_up and not line.pass_ok and not line.held):
        add("failed", f"the last pass failed: {line.last_error}", f"replicad sync {line.dataset} --wait")
    if is_late(line, now_ns):
        lag = short_duration(lag_s(line, now_ns))
        text = f"the replica is {lag} behind, the objective is {short_duration(line.rpo_s)}"
        if line.last_complete_ns > now_ns:
            text = f"what the replica has is dated {lag} ahead of the clock: its age is not known"
        add("lag", text, f"replicad sync {line.dataset} --wait")
    if line.state == "waiting" and not line.link_up and not line.queued:
        text = f"no link: {line.reason or line.last_error or 'not connected yet'}"
        add("link", text, f"on {line.replica}: systemctl status replicad")
    return found


def _store_findings(store: StoreStatus) -> list[Finding]:
    where, found = f"store {store.client}/{store.dataset}", []
    if store.damaged or store.state == "damaged":
        frames = counted(store.damaged, "frame is damaged", "frames are damaged")
        text = frames if store.damaged else f"damaged: {store.reason}"
        found.append(Finding("damaged", where, text, "keep it as it is; what is lost: replicad restore --store …"))
    if store.state == "full":
        text = f"intake has stopped: {store.reason or 'no room beyond the reserve'}"
        next_step = f"raise client.quota, or {FREE_SPACE}" if store.quota_bytes else FREE_SPACE
        found.append(Finding("full", where, text, next_step))
    return found


def is_here(line: ScrubStatus, status: NodeStatus) -> bool:
    """Whether this scrub runs on the node whose status that is; else it is a replica's, as that said last."""
    if line.side == "primary" or line.mirrored:
        return line.side == "primary"
    return any((s.client, s.dataset) == (line.peer, line.dataset) for s in status.stores)


def scrub_name(line: ScrubStatus, status: NodeStatus) -> str:
    """Whose scrub it is, for people: "www here", "www on fra1", or at the replica "store ams1/www"."""
    if line.side == "primary":
        return f"{line.dataset} here"
    return f"store {line.peer}/{line.dataset}" if is_here(line, status) else f"{line.dataset} on {line.peer}"


def _scrub_findings(line: ScrubStatus, status: NodeStatus) -> list[Finding]:
    found, now_ns = list[Finding](), status.now_ns
    there = "" if is_here(line, status) else f"on {line.peer}: "

    def add(kind: str, what: str, next_step: str) -> None:
        found.append(Finding(kind, scrub_name(line, status), what, next_step))

    by_verdict = {verdict: count for verdict, count in line.divergent.items() if verdict != "inconclusive"}
    if count := sum(by_verdict.values()):
        kinds = ", ".join(f"{number} {verdict}" for verdict, number in sorted(by_verdict.items()))
        text = f"{counted(count, 'open divergence')}: {kinds}"
        add("divergence", text, "replicad divergence list, then: replicad divergence show ID")
    if line.lost:
        text = f"{counted(line.lost, 'of them is lost', 'of them are lost')}: no side has the bytes"
        add("lost", text, "replicad divergence list")
    if line.oldest_inconclusive_ns and abs(now_ns - line.oldest_inconclusive_ns) > INCONCLUSIVE_S * 1e9:
        unclear = counted(line.divergent.get("inconclusive", 0), "finding is unclear", "findings are unclear")
        text = f"{unclear}, the oldest for more than a day"
        add("inconclusive", text, "is the link up? then: replicad divergence list")
    if line.breaker_open:
        text = "repairs have stopped: too many within an hour; this disk may be dying"
        add("breaker", text, f"{there}look at the disk (smartctl, dmesg), then: replicad repair --all")
    if not line.on_track:
        add("scrub", f"not every byte will be verified in time: {line.reason}", f"{there}replicad scrub status")
    if line.suspects:
        changes = counted(line.suspects, "change looks like damage", "changes look like damage")
        text = f"{changes}; what was there before is kept"
        add("suspect", text, f"{there}replicad suspects list {line.dataset}")
    return found


def _drill_findings(line: DrillStatus, now_ns: int) -> list[Finding]:
    found, where, last = list[Finding](), f"{line.dataset} from {line.replica}", line.last
    again = f"replicad drill run {line.dataset}"
    if line.failure is not None:
        why = line.failure.reasons[0] if line.failure.reasons else "no reason was recorded"
        text = f"no drill was proven since one failed: {why}"
        found.append(Finding("drill", where, text, f"docs/DRILLS.md, then: {again}"))
    elif is_overdue(line.last_success_ns, line.since_ns, now_ns, line.drill_every_s):
        proven = "is too long ago" if line.last_success_ns else "there was never one"
        why = last.reasons[0] if last is not None and last.reasons else line.reason
        text = f"no drill has proven lately that this comes back ({proven})" + (f": {why}" if why else "")
        found.append(Finding("drill", where, text, again))
    if 0 < line.rto_s < line.estimate_s:
        takes, allowed = short_duration(line.estimate_s), short_duration(line.rto_s)
        text = f"a restore of everything would take {takes}, the objective is {allowed}"
        found.append(Finding("rto", where, text, f"replicad drill history {line.dataset}"))
    return found


def _canary_findings(line: CanaryStatus, now_ns: int) -> list[Finding]:
    where, more = f"{line.dataset} -> {line.replica}", f"docs/CANARY.md, then: replicad sync {line.dataset} --wait"
    if line.failure:
        return [Finding("canary", where, f"a canary came back wrong: {line.failure}", "replicad divergence list")]
    if line.state == "refused":
        return [Finding("canary", where, f"no canary is written: {line.reason}", more)]
    if line.state != "paused" and is_canary_late(line.oldest_awaited_ns, now_ns, line.within_s):
        age, allowed = short_duration(abs(now_ns - line.oldest_awaited_ns) / 1e9), short_duration(line.within_s)
        when = "ago" if line.oldest_awaited_ns <= now_ns else "ahead of the clock"
        text = f"a canary written {age} {when} has not come through, {allowed} are allowed"
        return [Finding("canary", where, f"{text}: {line.reason}" if line.reason else text, more)]
    return []


_decoder = msgspec.json.Decoder(NodeStatus)
_ODD_BYTE = re.compile("[\udc80-\udcff]")
"""What Python makes of a byte of a file's name that is no UTF-8."""


def encode(status: NodeStatus) -> bytes:
    """The status as JSON."""
    return to_json(status)


def to_json(value: object, hook: Callable[[Any], Any] | None = None) -> bytes:
    """JSON of Structs, dataclasses and plain values; `hook` makes one of these of anything else. A text may hold a
    name that is no UTF-8, as an error of the system does; its odd bytes become \\xNN, as everywhere."""
    try:
        return msgspec.json.encode(value, enc_hook=hook)
    except UnicodeEncodeError:
        return msgspec.json.encode(_encodable(msgspec.to_builtins(value, enc_hook=hook)))


def encodable(text: str) -> str:
    """`text` with every character that is none as \\xNN."""
    shown = _ODD_BYTE.sub(lambda odd: f"\\x{ord(odd[0]) - 0xDC00:02x}", text)
    return shown.encode("utf-8", "backslashreplace").decode()


def _encodable(value: Any) -> Any:
    match value:
        case str():
            return encodable(value)
        case dict():
            return {_encodable(key): _encodable(one) for key, one in value.items()}
        case list() | tuple():
            return [_encodable(one) for one in value]
    return value


def decode(data: bytes) -> NodeStatus:
    """The inverse of `encode`. Raises ValueError."""
    return _decoder.decode(data)
