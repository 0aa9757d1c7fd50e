"""`replicad gate`: may the maintenance begin? Each reason is printed; the exit code decides.

`Waiting` is the patience of --wait: it asks the daemon for what could make a demand hold (a pass, scrubs of both sides,
a drill), once at a time for each dataset, and asks the gate again until it is open or the time is over.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import msgspec
import typer

from replicad.cli import offered, output
from replicad.cli.control import state_of
from replicad.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption, note_config, seconds_of
from replicad.http.api import Client
from replicad.http.contract import DrillRequest, Gated, GateRequest, ScrubRequest, SyncRequest, has_served
from replicad.model.errors import ReplicadError, UsageError
from replicad.model.gate import Judged, is_open
from replicad.status import NodeStatus, printable

ASK_AGAIN_S = 1.0
REMEDY_AGAIN_S = 15.0
"""A remedy that has ended, or was refused, and did not help is asked for again after this."""
TELL_S = 10.0
"""How often a line says how far it is where nothing has changed: a log shows that it lives."""

DatasetsArgument = Annotated[
    list[str] | None, typer.Argument(metavar="[DATASET]...", help="All when left out.", autocompletion=offered.own)
]


def gate(
    datasets: DatasetsArgument = None,
    max_lag: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="How old the copy may be. Default: rpo; with --wait a pass from now."),
    ] = None,
    max_scrub_age: Annotated[
        str | None, typer.Option(metavar="TIME", help="How long ago it was verified. Default: scrub_every.")
    ] = None,
    max_drill_age: Annotated[
        str | None, typer.Option(metavar="TIME", help="How long ago a drill proved it. Default: 1.5 x drill_every.")
    ] = None,
    wait: Annotated[
        str | None, typer.Option(metavar="TIME", help="Sync, scrub and drill until it is safe, for so long at most.")
    ] = None,
    pin: Annotated[
        str, typer.Option(metavar="NAME", help="When it is safe, have each replica keep what was judged, by this name.")
    ] = "",
    config: ConfigOption = DEFAULT_CONFIG,
    json: JsonOption = False,
) -> None:
    """Say whether it is safe to begin: every copy of the datasets fresh, verified, drilled and undisputed, as its
    replica says now.

    For example: replicad gate www --wait 30m --pin before-san-upgrade && ./upgrade-the-san

    Exit codes: 0 safe, 1 not safe (each reason is printed), 2 usage, 3 the daemon or a replica is out of reach: not
    safe either.
    """
    wait_s = seconds_of(wait, "--wait")
    asked = GateRequest(
        datasets=datasets or [],
        max_lag_s=0.0 if max_lag is None and wait_s is not None else seconds_of(max_lag, "--max-lag"),
        max_scrub_age_s=seconds_of(max_scrub_age, "--max-scrub-age"),
        max_drill_age_s=seconds_of(max_drill_age, "--max-drill-age"),
        pin=_name(pin),
    )
    client = Client(state_of(config))
    answer = client.gate(asked)
    obstacles: dict[str, str] = {}
    if wait_s is not None and not is_open(answer.copies):
        waiting = Waiting(client, asked, wait_s, quiet=json)
        answer, obstacles = waiting.until_open(answer), waiting.obstacles
    if json:
        output.json_document(_document(answer, obstacles))
    else:
        _show(answer, obstacles, waited=wait)
        if not is_open(answer.copies):
            note_config(config)
    if code := exit_code(answer.copies):
        raise typer.Exit(code)


def exit_code(copies: Sequence[Judged]) -> int:
    """0 where the gate is open; 1 where a reason to stay is known; 3 where nothing but reach is missing."""
    if is_open(copies):
        return 0
    known = any(not copy.unknown and (not copy.is_open or copy.pin_problem) for copy in copies)
    return 1 if known or not copies else 3


@dataclass(slots=True)
class _Remedy:
    """Something that the daemon was asked for, for one dataset."""

    at_s: float
    passes: Sequence[SyncRequest] = ()
    scrubs: Sequence[ScrubRequest] = ()
    drills: Sequence[DrillRequest] = ()

    def has_ended(self, status: NodeStatus) -> bool:
        drilled = {(line.dataset, line.replica): line.served for line in status.drills}
        over = all(drilled.get((r.dataset, r.replica), r.number) >= r.number for r in self.drills)
        return over and has_served(status, self.passes, self.scrubs)


@dataclass(slots=True)
class Waiting:
    """One gate that somebody waits for."""

    client: Client
    asked: GateRequest
    wait_s: float
    quiet: bool = False
    obstacles: dict[str, str] = field(default_factory=dict)
    """Why a remedy could not be asked for, by "DATASET: REMEDY"."""
    _remedies: dict[tuple[str, str], _Remedy] = field(default_factory=dict)
    _told: str = ""
    _told_s: float = float("-inf")

    def until_open(self, answer: Gated) -> Gated:
        """Do what helps until the gate is open or the time is over; the last answer."""
        end_s = time.monotonic() + self.wait_s
        self.asked = msgspec.structs.replace(self.asked, asked_ns=answer.asked_ns)
        while any(not copy.is_open for copy in answer.copies) and time.monotonic() < end_s:
            status = self.client.status()
            for dataset, remedy in sorted(_wanted(answer.copies)):
                self._help(dataset, remedy, status)
            self._tell(answer, status)
            time.sleep(max(0.0, min(ASK_AGAIN_S, end_s - time.monotonic())))
            answer = self.client.gate(self.asked)
        return answer

    def _help(self, dataset: str, remedy: str, status: NodeStatus) -> None:
        """Ask for a remedy unless it is under way, or was just tried."""
        before = self._remedies.get((dataset, remedy))
        if before and (not before.has_ended(status) or time.monotonic() - before.at_s < REMEDY_AGAIN_S):
            return
        self._remedies[dataset, remedy] = tried = _Remedy(time.monotonic())
        try:
            match remedy:
                case "sync":
                    tried.passes = self.client.sync(dataset)
                case "scrub":
                    sides = [self.client.scrub("start", dataset, side) for side in ("replica", "primary")]
                    tried.scrubs = [request for directed in sides for request in directed.requests]
                case "drill":
                    tried.drills = self.client.drill(dataset)
            self.obstacles.pop(f"{dataset}: {remedy}", None)
        except ReplicadError as error:  # a daemon that is gone does not answer the gate's next question either
            self.obstacles[f"{dataset}: {remedy}"] = str(error)

    def _tell(self, answer: Gated, status: NodeStatus) -> None:
        """Say what is waited for: when that changes, and now and then."""
        missing = "; ".join(
            f"{copy.dataset} on {copy.replica}: {_missing(copy)}" for copy in answer.copies if not copy.is_open
        )
        now_s = time.monotonic()
        if self.quiet or (missing == self._told and now_s - self._told_s < TELL_S):
            return
        self._told, self._told_s = missing, now_s
        output.note(f"waiting for {missing}" + "".join(f"\n  {text}" for text in self._under_way(status)))

    def _under_way(self, status: NodeStatus) -> Iterator[str]:
        for (dataset, remedy), tried in sorted(self._remedies.items()):
            if tried.has_ended(status):
                continue
            if remedy == "sync":
                for line in (one for one in status.datasets if one.dataset == dataset):
                    left = f", {output.show_bytes(line.pending_bytes)} left" if line.pending_bytes else ""
                    yield f"pass of {dataset} to {line.replica}: {line.state}{left}"
            if remedy == "scrub":
                for scrub in (one for one in status.scrubs if one.dataset == dataset):
                    where = f"on {scrub.peer}" if scrub.peer else "here"
                    yield f"scrub of {dataset} {where}: {scrub.state}, {output.show_bytes(scrub.left_bytes)} left"
            if remedy == "drill":
                for drill in (one for one in status.drills if one.dataset == dataset):
                    yield f"drill of {dataset} from {drill.replica}: {drill.state}"


def _wanted(copies: Sequence[Judged]) -> set[tuple[str, str]]:
    """(dataset, remedy) of what could help; a drill comes after the pass, so that it is of what the pass brought."""
    wanted = {(copy.dataset, check.remedy) for copy in copies for check in copy.checks if not check.holds}
    return {(name, what) for name, what in wanted if what and (what != "drill" or (name, "sync") not in wanted)}


def _missing(copy: Judged) -> str:
    if copy.unknown:
        return f"an answer ({printable(copy.unknown)})"
    return ", ".join(check.name for check in copy.checks if not check.holds) or copy.pin_problem


def _show(answer: Gated, obstacles: dict[str, str], waited: str | None) -> None:
    for copy in answer.copies:
        output.line(f"{copy.dataset} on {copy.replica}: {_word(copy.is_open and not copy.pin_problem)}")
        for check in copy.checks:
            _line(check.name, "ok" if check.holds else "NO", check.reason)
        if copy.unknown:
            _line("answer", "NO", copy.unknown)
        if copy.pinned:
            _line(
                "pinned", "ok", f"snapshot {copy.snapshot} is kept as {copy.pinned} until it is removed on the replica"
            )
        if copy.pin_problem:
            _line("pinned", "NO", f"snapshot {copy.snapshot} is not kept: {copy.pin_problem}")
    for what, why in sorted(obstacles.items()):
        _line("tried", "NO", f"{what}: {why}")
    safe = is_open(answer.copies)
    if safe:
        output.line(f"The gate is {_word(True)}: it is safe to begin.")
        return
    after = f" after waiting {waited}" if waited else ""
    output.line(f"The gate is {_word(False)}{after}: do not begin.")
    for text in _next(answer.copies, waited):
        output.line(f"  next: {text}")


def _next(copies: Sequence[Judged], waited: str | None) -> Iterator[str]:
    """What to type."""
    shut = [check for copy in copies for check in copy.checks if not check.holds]
    datasets = " ".join(dict.fromkeys(copy.dataset for copy in copies))
    if any(check.remedy for check in shut) and not waited:
        yield f"replicad gate {datasets} --wait 30m"
    if any(check.name == "undisputed" for check in shut):
        yield "replicad divergence list"
    for copy in copies:
        if copy.unknown:
            yield f"on {copy.replica}: systemctl status replicad"
        if copy.pin_problem:
            yield f"on {copy.replica}: replicad pin list"
    if shut and waited:
        yield "replicad status"


def _line(name: str, mark: str, text: str) -> None:
    first, *more = output.wrapped(" " * 17, text, " " * 17)
    style: output.Style = "ok" if mark == "ok" else "bad"
    output.line(f"  {name:<11} {output.mark(mark, style)}  {first.lstrip()}")
    for line in more:
        output.line(line)


def _word(safe: bool) -> str:
    return output.mark("open", "ok") if safe else output.mark("SHUT", "bad")


def _document(answer: Gated, obstacles: dict[str, str]) -> dict[str, object]:
    copies = [{"open": copy.is_open and not copy.pin_problem} | msgspec.to_builtins(copy) for copy in answer.copies]
    return {"open": is_open(answer.copies), "asked_ns": answer.asked_ns, "copies": copies, "obstacles": obstacles}


def _name(pin: str) -> str:
    from replicad.model.pairing import parse_name

    try:
        return parse_name(pin) if pin else ""
    except ValueError as error:
        raise UsageError(str(error), where="--pin") from None
