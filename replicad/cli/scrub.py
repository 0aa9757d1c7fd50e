"""`replicad scrub start|pause|resume|status`: have everything read again now, hold that up, see how it stands.

`Awaited` judges each answer of the daemon about one scrub that somebody waits for, and knows neither sockets nor
terminals. What was read and found meanwhile follows from the counters before and after.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import msgspec
import typer

from replicad.cli import offered, output
from replicad.cli.control import state_of
from replicad.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption, seconds_of
from replicad.cli.status import scrub_age, value_lines
from replicad.http.api import Client
from replicad.http.contract import Directed, ScrubRequest
from replicad.model.errors import LinkError, UsageError
from replicad.status import NodeStatus, ScrubStatus, printable, scrub_name
from replicad.system.clock import format_ns

BAR_AFTER_S = 0.5
"""A scrub shorter than this shows no bar."""
REFRESH_S = 0.2
ASK_AGAIN_S = 1.0
STUCK_S = 30.0
"""A scrub that fails, or cannot look at what is left, is waited for no longer than this; it is tried on."""
LONGEST_PAUSE_S = 86400.0

scrub = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Scrubs read every byte of both copies again from the medium, by themselves, within scrub_every.",
)

DatasetArgument = Annotated[
    str | None,
    typer.Argument(metavar="[DATASET]", help="One dataset; all when left out.", autocompletion=offered.scrubbed),
]
SideOption = Annotated[
    str | None,
    typer.Option(
        "--side",
        metavar="SIDE",
        help="primary or replica; both that run on this node when left out. "
        "A primary passes `start --side replica` on.",
    ),
]


@dataclass(slots=True)
class Outcome:
    """How one scrub ended, as `--json` prints it."""

    dataset: str
    side: str
    peer: str
    result: str
    """clean, divergent, incomplete (something could not be looked at), late (still running at the time limit)."""
    reason: str
    media_bytes: int
    cache_bytes: int
    divergent: dict[str, int]
    seconds: float

    @property
    def exit_code(self) -> int:
        """What this outcome makes of the process's exit."""
        return 0 if self.result == "clean" else 1


@scrub.command("start")
def start(
    dataset: DatasetArgument = None,
    side: SideOption = None,
    wait: Annotated[bool, typer.Option("--wait", help="Return when everything has been verified.")] = False,
    timeout: Annotated[
        str | None, typer.Option(metavar="TIME", help="With --wait: give up after this long, such as 2h.")
    ] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    json: JsonOption = False,
) -> None:
    """Verify everything once from now on, with the share of the disk that scrub_duty allows. Ends a pause, and does not
    wait for the end of quiet hours.

    Exit codes with --wait: 0 everything is as recorded, 1 divergences are open or something could not be looked at in
    time, 3 the daemon is out of reach.
    """
    timeout_s = seconds_of(timeout, "--timeout")
    if timeout_s is not None and not wait:
        raise UsageError("--timeout has a meaning only with --wait")
    client = _client(config, side)
    before = client.status()
    requests = client.scrub("start", dataset, side).requests
    if wait:
        outcomes = _wait(client, before, requests, timeout_s)
        _print_outcomes(outcomes, json, before)
        if code := max((outcome.exit_code for outcome in outcomes), default=0):
            raise typer.Exit(code)
    else:
        _print_directed(Directed(requests), json, before, "everything is verified from now on: replicad scrub status")


@scrub.command("pause")
def pause(
    dataset: DatasetArgument = None,
    side: SideOption = None,
    for_: Annotated[
        str | None, typer.Option("--for", metavar="TIME", help="For this long, such as 4h; a day at most.")
    ] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    json: JsonOption = False,
) -> None:
    """Read nothing for a while. A pause ends by itself: after a day unless --for says sooner."""
    for_s = seconds_of(for_, "--for")
    if for_s is not None and not 0 < for_s <= LONGEST_PAUSE_S:
        raise UsageError("a pause lasts a day at most", where="--for", hint="write it like 4h, 24h at most")
    client = _client(config, side)
    directed = client.scrub("pause", dataset, side, for_s or LONGEST_PAUSE_S)
    text = f"paused until {format_ns(directed.until_ns)}, when it goes on by itself (sooner: replicad scrub resume)"
    _print_directed(directed, json, client.status(), text)


@scrub.command("resume")
def resume(
    dataset: DatasetArgument = None,
    side: SideOption = None,
    config: ConfigOption = DEFAULT_CONFIG,
    json: JsonOption = False,
) -> None:
    """End a pause."""
    client = _client(config, side)
    directed = client.scrub("resume", dataset, side)
    _print_directed(directed, json, client.status(), "goes on")
    if not directed.requests and not json:
        output.line("no scrub was paused, nothing to resume")


@scrub.command("status")
def show_status(
    dataset: DatasetArgument = None,
    side: SideOption = None,
    config: ConfigOption = DEFAULT_CONFIG,
    json: JsonOption = False,
) -> None:
    """How the scrub of each side stands.

    Exit codes: 0 all on track and nothing open, 1 divergences are open or a deadline will be missed, 3 the daemon is
    out of reach.
    """
    now = _client(config, side).status()
    lines = [s for s in now.scrubs if dataset in (None, s.dataset) and side in (None, s.side)]
    if dataset and not lines:
        known = ", ".join(sorted({line.dataset for line in now.scrubs})) or "none"
        raise UsageError(f"no scrub of dataset {dataset!r} here", hint=f"datasets with a scrub: {known}")
    if json:
        output.json_document({"scrubs": [msgspec.to_builtins(line) for line in lines]})
    elif not lines:
        output.line("nothing is scrubbed on this node yet")
    else:
        output.line("\n\n".join("\n".join(describe(line, now)) for line in lines))
    if any(line.divergent or not line.on_track for line in lines):
        raise typer.Exit(1)


def describe(line: ScrubStatus, now: NodeStatus) -> Iterator[str]:
    """One scrub, for a person."""
    is_bad = bool(line.divergent) or not line.on_track
    yield f"{scrub_name(line, now)} ({line.side}): {output.mark(line.state, 'bad' if is_bad else 'ok')}"
    yield from value_lines("verified", scrub_age(line, now.now_ns))
    yield from value_lines("deadline", _deadline(line, now.now_ns), bad=not line.on_track)
    if line.reason:
        yield from value_lines("why" if not line.on_track else "note", line.reason)
    if line.left_bytes:
        rate = f", {output.show_rate(line.rate_bytes_s)} of late" if line.rate_bytes_s >= 1 else ""
        whose = "of the request" if line.served < line.requested else "of this cycle"
        yield from value_lines("left", f"{output.show_bytes(line.left_bytes)} {whose}{rate}")
    yield from value_lines("structure", f"checked {_ago(line.structure_ns, now.now_ns)}")
    if line.cache_bytes:
        text = f"{output.show_bytes(line.cache_bytes)} came through a cache: this file system gives no direct reads"
        yield from value_lines("source", text)
    yield from value_lines("divergent", _divergent(line.divergent), bad=bool(line.divergent))


def _deadline(line: ScrubStatus, now_ns: int) -> str:
    every = output.show_duration(line.scrub_every_s)
    text = f"every byte within {every}: " + ("on track" if line.on_track else "will be missed")
    if line.forecast_ns > now_ns:
        text += f"; through once more in {output.show_duration((line.forecast_ns - now_ns) / 1e9)}"
    return text


def _divergent(divergent: dict[str, int]) -> str:
    if not divergent:
        return "none open"
    return ", ".join(f"{count:,} {verdict}" for verdict, count in sorted(divergent.items())) + (
        ": replicad divergence list"
    )


def _ago(time_ns: int, now_ns: int) -> str:
    return f"{output.show_duration(max(0, now_ns - time_ns) / 1e9)} ago" if time_ns else "never yet"


# ---------------------------------------------------------------------------------------------------------- wait


@dataclass(slots=True)
class Awaited:
    """One scrub that somebody waits for. `look` is given each status with a monotonic time in seconds."""

    request: ScrubRequest
    before: ScrubStatus | None
    began_s: float
    timeout_s: float | None
    result: str = ""
    """"" while it runs, then as in Outcome."""
    line: ScrubStatus | None = None
    ended_s: float = 0.0
    total_bytes: int = 0
    _stuck_since_s: float | None = None
    _stuck_at: tuple[int, int, int] | None = None

    def look(self, line: ScrubStatus, now_s: float) -> None:
        """Take notice of what the daemon says now."""
        if not self.result:
            self.line, self.ended_s = line, now_s
            self.total_bytes = max(self.total_bytes, line.left_bytes)
            self.result = self._judged(line, now_s)

    def _judged(self, line: ScrubStatus, now_s: float) -> str:
        if line.served >= self.request.number:
            return "divergent" if line.divergent else "clean"
        if self.timeout_s is not None and now_s - self.began_s >= self.timeout_s:
            return "late"
        done = None if line.held_up else (line.media_bytes, line.cache_bytes, line.structure_ns)
        if line.held_up or line.state in ("failed", "waiting", "paused"):
            if self._stuck_since_s is None or done != self._stuck_at:  # a try that fails again is no progress
                self._stuck_since_s, self._stuck_at = now_s, done
            return "incomplete" if now_s - self._stuck_since_s >= STUCK_S else ""
        if done != self._stuck_at:
            self._stuck_since_s = None
        return ""

    @property
    def done_bytes(self) -> int:
        """Verified of what the request wants."""
        left = self.line.left_bytes if self.line and not self.result else 0
        return max(0, self.total_bytes - left)

    def outcome(self) -> Outcome:
        """How it ended."""
        line = self.line
        assert line is not None and self.result, "asked for the outcome of a scrub that runs"
        media, cache = (self.before.media_bytes, self.before.cache_bytes) if self.before else (0, 0)
        reasons = {"late": f"not done in time ({line.state}); the daemon goes on with it", "incomplete": line.reason}
        return Outcome(
            dataset=self.request.dataset,
            side=self.request.side,
            peer=self.request.peer,
            result=self.result,
            reason=reasons.get(self.result, ""),
            media_bytes=max(0, line.media_bytes - media),
            cache_bytes=max(0, line.cache_bytes - cache),
            divergent=line.divergent,
            seconds=round(self.ended_s - self.began_s, 3),
        )


def _wait(
    client: Client, before: NodeStatus, requests: Sequence[ScrubRequest], timeout_s: float | None
) -> list[Outcome]:
    began_s = time.monotonic()
    lines = {(line.dataset, line.side, line.peer): line for line in before.scrubs}
    watches = [Awaited(r, lines.get((r.dataset, r.side, r.peer)), began_s, timeout_s) for r in requests]
    running = _ask(client, before, watches, BAR_AFTER_S)
    if running:
        names = sorted({watch.request.dataset for watch in watches})
        with output.progress(f"scrub {names[0]}" if len(names) == 1 else f"scrub {len(names)} datasets") as bar:
            every_s = REFRESH_S if sys.stderr.isatty() else ASK_AGAIN_S
            while _ask(client, before, watches, every_s):
                bar.total = sum(watch.total_bytes for watch in watches)
                states = sorted({watch.line.state for watch in watches if watch.line and not watch.result})
                bar.update(sum(watch.done_bytes for watch in watches), ", ".join(states))
    return [watch.outcome() for watch in watches]


def _ask(client: Client, before: NodeStatus, watches: list[Awaited], wait_s: float) -> bool:
    """One question to the daemon; whether there is still something to wait for."""
    running = [watch for watch in watches if not watch.result]
    limits = [w.began_s + w.timeout_s - time.monotonic() for w in running if w.timeout_s is not None]
    wait_s = max(0.0, min([wait_s, *limits]))
    status = client.status(timeout_s=wait_s, scrubbed=[watch.request for watch in running])
    if status.started_ns != before.started_ns:
        raise LinkError("the daemon was restarted meanwhile", hint="it goes on with the request: replicad scrub status")
    lines = {(line.dataset, line.side, line.peer): line for line in status.scrubs}
    for watch in running:
        line = lines.get((watch.request.dataset, watch.request.side, watch.request.peer))
        if line is None:
            raise UsageError(f"{watch.request.dataset} was taken out of the configuration meanwhile")
        watch.look(line, time.monotonic())
    return any(not watch.result for watch in watches)


# --------------------------------------------------------------------------------------------------------- print


def _print_outcomes(outcomes: list[Outcome], json: bool, now: NodeStatus) -> None:
    if json:
        output.json_document({"scrubs": outcomes})
        return
    for outcome in outcomes:
        where = scrub_name(ScrubStatus(outcome.dataset, outcome.side, outcome.peer), now)
        read = f"{output.show_bytes(outcome.media_bytes)} verified from the medium"
        if outcome.cache_bytes:
            read += f", {output.show_bytes(outcome.cache_bytes)} through a cache"
        result = output.mark(outcome.result, "ok" if outcome.result == "clean" else "bad")
        output.line(f"{where} ({outcome.side}): {result}: {read}, {output.show_duration(outcome.seconds)}")
        if outcome.reason:
            output.line(f"  {printable(outcome.reason)}")
        if outcome.divergent:
            output.line(f"  open: {_divergent(outcome.divergent)}")


def _print_directed(directed: Directed, json: bool, now: NodeStatus, text: str) -> None:
    if json:
        output.json_document(directed)
        return
    for request in directed.requests:
        where = scrub_name(ScrubStatus(request.dataset, request.side, request.peer), now)
        output.line(f"{where} ({request.side}): {text}")


def _client(config: ConfigOption, side: str | None) -> Client:
    if side not in (None, "primary", "replica"):
        raise UsageError(f"{side!r} is no side", where="--side", hint="primary or replica")
    return Client(state_of(config))
