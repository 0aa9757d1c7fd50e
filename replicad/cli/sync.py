"""`replicad sync` and `replicad release`: tell the running daemon to do a pass, and wait for its end.

The wait is one long question after the other to the daemon, which answers as soon as the passes have ended: what it
adds to a pass is a few milliseconds. `Awaited` judges each answer and knows neither sockets nor terminals.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import typer

from replicad.cli import offered, output
from replicad.cli.control import state_of
from replicad.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption, seconds_of
from replicad.http.api import Client
from replicad.http.contract import SyncRequest
from replicad.model.errors import LinkError, UsageError
from replicad.status import DatasetStatus, NodeStatus, Trouble, printable

BAR_AFTER_S = 0.5
"""A pass shorter than this shows no bar: importing one would take longer than the pass."""
REFRESH_S = 0.1
"""How often a bar moves."""
ASK_AGAIN_S = 1.0
"""Length of one question where no bar is shown: how late a hold or a lost link is noticed."""
OUT_OF_REACH_S = 60.0
"""A link that stays down for this long does not count as waiting any more, unless --timeout says so."""
STALLED_S = 900.0
"""A pass of which nothing moves for this long is given up on. Longer than hooks (10 minutes by default) may take."""
HELD_S = 0.5
"""A dataset that is still held so long after the request will not go on without `replicad release`."""


@dataclass(slots=True)
class Outcome:
    """How one pass ended, as `--json` prints it."""

    dataset: str
    replica: str
    result: str
    """complete, incomplete, held, unreachable (link down for too long) or late (still running at the time limit)."""
    reason: str
    snapshot: int
    files: int
    sent_bytes: int
    seconds: float
    unread: int
    troubles: list[Trouble]

    @property
    def exit_code(self) -> int:
        """What this outcome makes of the process's exit."""
        return {"complete": 0, "unreachable": 3}.get(self.result, 1)


def sync(
    dataset: Annotated[
        str | None,
        typer.Argument(metavar="[DATASET]", help="One dataset; all when left out.", autocompletion=offered.own),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Return when the pass has ended.")] = False,
    timeout: Annotated[
        str | None, typer.Option(metavar="TIME", help="With --wait: give up after this long, such as 5m.")
    ] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    json: JsonOption = False,
) -> None:
    """Have the daemon do a pass now: walk everything, copy what changed, make it a snapshot.

    Exit codes with --wait: 0 everything is on the replica, 1 something could not be copied, is held or not done in
    time, 3 the daemon or the replica is out of reach.
    """
    timeout_s = _timeout(timeout, wait)
    client = Client(state_of(config))
    before = client.status() if wait else None
    requests = client.sync(dataset)
    if not requests:
        raise UsageError("this node has no dataset", hint="add one: replicad init primary")
    if before is None:
        _print_requests(requests, json)
    elif code := _print_outcomes(_wait(client, before, requests, timeout_s), json):
        raise typer.Exit(code)


def release(
    dataset: Annotated[
        str, typer.Argument(metavar="DATASET", help="The dataset that a guard holds.", autocompletion=offered.own)
    ],
    config: ConfigOption = DEFAULT_CONFIG,
    json: JsonOption = False,
) -> None:
    """Let a held dataset go on: its change is as it should be and will be replicated."""
    released = Client(state_of(config)).release(dataset)
    if json:
        output.json_document({"released": released})
        return
    for freed in released:
        output.line(f"{freed.dataset} -> {freed.replica}: released; it was held: {printable(freed.reason)}")
    if released:
        output.note(f"watch it: replicad sync {dataset} --wait")
    else:
        output.line(f"{dataset}: was not held, nothing to release")


@dataclass(slots=True)
class Awaited:
    """One pass that somebody waits for. `look` is given each status with a monotonic time in seconds."""

    request: SyncRequest
    sent_before: int
    copied_before: int
    began_s: float
    timeout_s: float | None
    result: str = ""
    """"" while it runs, then as in Outcome."""
    line: DatasetStatus | None = None
    ended_s: float = 0.0
    _since: dict[str, float] = field(default_factory=dict)
    _progress: object = None

    def look(self, line: DatasetStatus, now_s: float) -> None:
        """Take notice of what the daemon says now."""
        if not self.result:
            self.line, self.ended_s = line, now_s
            self.result = self._judged(line, now_s)

    def _judged(self, line: DatasetStatus, now_s: float) -> str:
        if line.pass_served >= self.request.number:
            return "held" if line.held else "complete" if line.pass_ok and not line.last_error else "incomplete"
        if self._lasts("held", line.held and line.state == "held", now_s) >= HELD_S:
            return "held"
        is_cut = (line.state == "waiting" or not line.link_up) and not line.queued
        stuck_s = self._lasts("stuck", is_cut, now_s)
        if self.timeout_s is not None:
            over = now_s - self.began_s >= self.timeout_s
            return ("late" if line.link_up else "unreachable") if over else ""
        if stuck_s >= OUT_OF_REACH_S:
            return "unreachable"
        return "late" if self._lasts("still", self._stands_still(line), now_s) >= STALLED_S else ""

    def _lasts(self, what: str, holds: bool, now_s: float) -> float:
        """For how many seconds `holds` has been true without a break."""
        if not holds:
            self._since.pop(what, None)
            return 0.0
        return now_s - self._since.setdefault(what, now_s)

    def _stands_still(self, line: DatasetStatus) -> bool:
        moving = (line.pass_number, line.pending_files, line.pending_bytes, line.sent_bytes, line.read_bytes)
        progress = (line.state, *moving)
        before, self._progress = self._progress, progress
        return progress == before

    def outcome(self) -> Outcome:
        """How it ended."""
        line = self.line
        assert line is not None and self.result, "asked for the outcome of a pass that runs"
        return Outcome(
            dataset=self.request.dataset,
            replica=self.request.replica,
            result=self.result,
            reason="" if self.result == "complete" else self._reason(line),
            snapshot=line.last_snapshot,
            files=max(0, line.copied_files - self.copied_before),
            sent_bytes=max(0, line.sent_bytes - self.sent_before),
            seconds=round(self.ended_s - self.began_s, 3),
            unread=line.unread,
            troubles=line.troubles if self.result == "incomplete" else [],
        )

    def _reason(self, line: DatasetStatus) -> str:
        if self.result == "incomplete" and line.unread:
            return f"{output.entries(line.unread)} could not be copied; the replica keeps what it had before"
        if self.result == "late":
            return f"not done in time ({line.state}); the daemon goes on with it"
        return line.reason or line.last_error or f"the daemon gives no reason (state {line.state})"


def _wait(
    client: Client, before: NodeStatus, requests: Sequence[SyncRequest], timeout_s: float | None
) -> list[Outcome]:
    began_s = time.monotonic()
    sent = {(line.dataset, line.replica): (line.sent_bytes, line.copied_files) for line in before.datasets}
    watches = [Awaited(r, *sent.get((r.dataset, r.replica), (0, 0)), began_s, timeout_s) for r in requests]
    running = _ask(client, before, watches, BAR_AFTER_S)
    if running and sys.stderr.isatty():
        _wait_with_bar(client, before, watches)
    while running:
        running = _ask(client, before, watches, ASK_AGAIN_S)
    return [watch.outcome() for watch in watches]


def _wait_with_bar(client: Client, before: NodeStatus, watches: list[Awaited]) -> None:
    names = sorted({watch.request.dataset for watch in watches})
    with output.progress(f"sync {names[0]}" if len(names) == 1 else f"sync {len(names)} datasets", 0) as bar:
        while _ask(client, before, watches, REFRESH_S):
            lines = [watch.line for watch in watches if watch.line is not None]
            bar.total = sum(line.total_bytes for line in lines)
            done = bar.total - sum(line.pending_bytes for line in lines)
            bar.update(done, ", ".join(sorted({line.state for line in lines})))


def _ask(client: Client, before: NodeStatus, watches: list[Awaited], wait_s: float) -> bool:
    """One question to the daemon; whether there is still something to wait for."""
    running = [watch for watch in watches if not watch.result]
    limits = [w.began_s + w.timeout_s - time.monotonic() for w in running if w.timeout_s is not None]
    status = client.status([watch.request for watch in running], max(0.0, min([wait_s, *limits])))
    if status.started_ns != before.started_ns:
        raise LinkError("the daemon was restarted meanwhile", hint="ask again: replicad sync --wait")
    lines = {(line.dataset, line.replica): line for line in status.datasets}
    for watch in running:
        line = lines.get((watch.request.dataset, watch.request.replica))
        if line is None:
            raise UsageError(f"{watch.request.dataset} was taken out of the configuration meanwhile")
        watch.look(line, time.monotonic())
    return any(not watch.result for watch in watches)


def _timeout(text: str | None, wait: bool) -> float | None:
    if text is not None and not wait:
        raise UsageError("--timeout has a meaning only with --wait")
    return seconds_of(text, "--timeout")


def _print_requests(requests: list[SyncRequest], json: bool) -> None:
    if json:
        output.json_document({"requests": requests})
        return
    for request in requests:
        output.line(f"{request.dataset} -> {request.replica}: a pass is asked for")


def _print_outcomes(outcomes: list[Outcome], json: bool) -> int:
    """Print them; the exit code: a finding speaks louder than a replica out of reach."""
    if json:
        output.json_document({"passes": outcomes})
    else:
        for outcome in outcomes:
            output.line("\n".join(_describe(outcome)))
    codes = {outcome.exit_code for outcome in outcomes}
    return 1 if 1 in codes else max(codes)


def _describe(outcome: Outcome) -> Iterator[str]:
    where = f"{outcome.dataset} -> {outcome.replica}"
    sent, took = output.show_bytes(outcome.sent_bytes), output.show_duration(outcome.seconds)
    files = output.counted(outcome.files, "file")
    figures = f"snapshot {outcome.snapshot}, {files}, {sent} sent, {took}"
    if outcome.result == "complete":
        yield f"{where}: {output.mark('complete', 'ok')}: {figures}"
        return
    yield f"{where}: {output.mark(outcome.result, 'bad')}: {printable(outcome.reason)} ({figures})"
    for trouble in outcome.troubles:
        yield printable(f"  {trouble.path}: {trouble.reason}")
    if outcome.unread > len(outcome.troubles) > 0:
        yield f"  and {outcome.unread - len(outcome.troubles):,} more"
    if outcome.result == "held":
        yield f"  -> when that is as it should be: replicad release {outcome.dataset}"
