"""`replicad drill run|history`: rehearse a restore now and wait for what it proves; see what earlier ones came to.

The daemon does the drill, in the same loop as those that are due by themselves; this asks for it, shows how far it is
and prints the record. The history is read from the book, whether the daemon runs or not.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from replicad.cli import offered, output
from replicad.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption, config_words
from replicad.cli.status import value_lines
from replicad.http.api import Client
from replicad.http.contract import DrillRequest
from replicad.model.drill import DrillRecord, Outcome, Trend, trend
from replicad.model.errors import LinkError, UsageError
from replicad.model.when import show_time
from replicad.status import DrillStatus, NodeStatus

ASK_AGAIN_S = 0.3
BAR_AFTER_S = 0.5
"""A drill shorter than this shows no bar."""
SHOWN = 20
"""Drills that the history shows; --json and --all give all."""

_STYLES: dict[Outcome, output.Style] = {Outcome.PROVEN: "ok", Outcome.INCONCLUSIVE: "warn", Outcome.FAILED: "bad"}

drill = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Drills restore from each replica into scratch space and prove what comes back, by themselves every "
    "drill_every.",
)

DatasetArgument = Annotated[
    str | None, typer.Argument(metavar="[DATASET]", help="One dataset; all when left out.", autocompletion=offered.own)
]


@drill.command("run")
def run(
    dataset: DatasetArgument = None,
    full: Annotated[bool, typer.Option("--full", help="Everything, not a sample.")] = False,
    path: Annotated[
        list[str] | None, typer.Option("--path", metavar="GLOB", help="Only what matches; may be repeated.")
    ] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    json: JsonOption = False,
) -> None:
    """Restore from each replica into drill_scratch, compare it with the ledger, validate it, remove it again.

    Without --full and --path it takes a sample: what was drilled least recently, so that everything is drilled within
    drill_within.

    Exit codes: 0 proven, 1 failed or inconclusive (it says which), 2 usage, 3 the daemon is out of reach.
    """
    if full and path:
        raise UsageError("--full and --path exclude one another")
    state = _state(config)
    client = Client(state)
    before = client.status()
    requests = client.drill(dataset, full=full, globs=path or ())
    records = [_whole(state, record) for record in _wait(client, before, requests, quiet=json)]
    if json:
        output.json_document({"drills": [msgspec.to_builtins(record) for record in records]})
    else:
        output.line("\n\n".join("\n".join(describe(record)) for record in records))
    if not records or any(record.outcome is not Outcome.PROVEN for record in records):
        raise typer.Exit(1)


@drill.command("history")
def history(
    dataset: DatasetArgument = None,
    everything: Annotated[bool, typer.Option("--all", help="All drills, not the last ones only.")] = False,
    config: ConfigOption = DEFAULT_CONFIG,
    json: JsonOption = False,
) -> None:
    """What drills came to, oldest first, and where the time for a restore of everything is going."""
    books = _books(config, dataset)
    records = [record for _name, path in books for record in _read(path, None if everything or json else SHOWN)]
    if json:
        output.json_document(
            {"drills": [msgspec.to_builtins(record) for record in records], "trends": _trends(records)}
        )
    elif not records:
        output.note(f"nothing has been drilled yet: replicad drill run{config_words(config)}")
    else:
        heads = (
            "DRILL",
            "ENDED",
            "DATASET",
            "REPLICA",
            "KIND",
            "OUTCOME",
            "FILES",
            "SIZE",
            "TOOK",
            "RATE",
            "ALL TAKES",
        )
        output.table(heads, [_row(record) for record in records])
        for each in _trends(records):
            output.line(f"{each.dataset} from {each.replica}: {show_trend(each.trend)}")


@dataclass(frozen=True, slots=True)
class TrendOf:
    """Where the estimate of one dataset and replica is going, as `--json` prints it."""

    dataset: str
    replica: str
    trend: Trend


def describe(record: DrillRecord) -> Iterator[str]:
    """One drill, for a person."""
    yield f"{record.dataset} from {record.replica}: {output.mark(record.outcome.value, _STYLES[record.outcome])}"
    if record.snapshot:
        share = f" of {record.total_files:,} files" if record.kind != "full" else ""
        text = f"{record.files:,}{share}, {output.show_bytes(record.bytes)}, of snapshot {record.snapshot}"
        yield from value_lines("drilled", text)
        files = output.counted(record.compared_files, "file is", "files are")
        yield from value_lines("compared", f"{files} what the ledger says, byte by byte")
    if record.restore_s:
        rate = f"{output.show_duration(record.restore_s)} ({output.show_rate(record.rate_bytes_s)})"
        yield from value_lines("restored", f"{output.show_bytes(record.restored_bytes)} in {rate}")
    for outcome, count in sorted(record.validations.items()):
        yield from value_lines("validated", f"{count:,} {outcome}", bad=outcome == Outcome.FAILED)
    if record.metadata_not_set:
        attributes = output.counted(record.metadata_not_set, "attribute")
        text = f"{attributes} could not be set by this user, such as: {record.metadata[0]}"
        yield from value_lines("metadata", text)
    if record.estimate_s:
        yield from value_lines(
            "estimate", f"a restore of everything takes about {output.show_duration(record.estimate_s)}"
        )
    for reason in record.reasons:
        yield from value_lines("why", reason, bad=record.outcome is Outcome.FAILED)


def show_trend(found: Trend) -> str:
    """Where the estimate is going, in words."""
    if found.word == "unknown":
        return "three measured drills tell whether a restore of everything takes longer and longer"
    if found.word == "steady":
        return "the time for a restore of everything is steady"
    week_s = abs(found.day_s) * 7
    return f"the time for a restore of everything is {found.word} by {output.show_duration(week_s)} a week"


def _row(record: DrillRecord) -> tuple[str, ...]:
    estimate = output.show_duration(record.estimate_s) if record.estimate_s else "-"
    took = output.show_duration(max(0, record.ended_ns - record.started_ns) / 1e9)
    return (
        str(record.number),
        show_time(record.ended_ns),
        record.dataset,
        record.replica,
        record.kind,
        output.mark(record.outcome.value, _STYLES[record.outcome]),
        f"{record.files:,}",
        output.show_bytes(record.bytes),
        took,
        output.show_rate(record.rate_bytes_s) if record.rate_bytes_s else "-",
        estimate,
    )


def _trends(records: Sequence[DrillRecord]) -> list[TrendOf]:
    found = []
    for dataset, replica in sorted({(record.dataset, record.replica) for record in records}):
        points = [
            (record.ended_ns, record.estimate_s)
            for record in records
            if (record.dataset, record.replica) == (dataset, replica)
            and record.outcome is Outcome.PROVEN
            and record.kind != "paths"
        ]
        found.append(TrendOf(dataset, replica, trend(points)))
    return found


# ---------------------------------------------------------------------------------------------------------- wait


def _wait(client: Client, before: NodeStatus, requests: Sequence[DrillRequest], *, quiet: bool) -> list[DrillRecord]:
    """The records of these drills, when all have ended."""
    began_s = time.monotonic()
    now = _look(client, before)
    while not _has_ended(now, requests) and time.monotonic() - began_s < BAR_AFTER_S:
        time.sleep(ASK_AGAIN_S)
        now = _look(client, before)
    names = sorted({request.dataset for request in requests})
    title = f"drill {names[0]}" if len(names) == 1 else f"drill {len(names)} datasets"
    if not _has_ended(now, requests):
        with output.progress(title, quiet=quiet or not sys.stderr.isatty()) as bar:
            while not _has_ended(now, requests):
                lines = [line for request in requests if (line := _line(now, request)) and line.served < request.number]
                bar.total = sum(line.total_bytes for line in lines)
                bar.update(sum(line.done_bytes for line in lines), ", ".join(sorted({line.state for line in lines})))
                time.sleep(ASK_AGAIN_S)
                now = _look(client, before)
    return [record for request in requests if (record := _record(now, request))]


def _look(client: Client, before: NodeStatus) -> NodeStatus:
    now = client.status()
    if now.started_ns != before.started_ns:
        raise LinkError("the daemon was restarted meanwhile", hint="the drill was given up: replicad drill run")
    return now


def _has_ended(now: NodeStatus, requests: Sequence[DrillRequest]) -> bool:
    return all((line := _line(now, request)) is None or line.served >= request.number for request in requests)


def _line(now: NodeStatus, request: DrillRequest) -> DrillStatus | None:
    return next((s for s in now.drills if (s.dataset, s.replica) == (request.dataset, request.replica)), None)


def _record(now: NodeStatus, request: DrillRequest) -> DrillRecord | None:
    line = _line(now, request)
    if line is None:
        raise UsageError(f"{request.dataset} was taken out of the configuration meanwhile")
    if line.last is not None and line.last.request == request.number:
        return line.last
    reason = line.reason or "it left no record"
    return DrillRecord(request.dataset, request.replica, request=request.number, reasons=[reason])


# ---------------------------------------------------------------------------------------------------------- books


def _state(config: Path) -> Path:
    from replicad.config import load

    return load(config, check_files=False).node.state


def _books(config: Path, dataset: str | None) -> list[tuple[str, Path]]:
    from replicad.config import load
    from replicad.work.drill_book import drills_path

    loaded = load(config, check_files=False)
    names = [one.name for one in loaded.datasets]
    if dataset and dataset not in names:
        there = ", ".join(names) or "none"
        raise UsageError(f"there is no dataset {dataset!r} here", hint=f"configured: {there}")
    return [(name, drills_path(loaded.node.state, name)) for name in names if dataset in (None, name)]


def _whole(state: Path, record: DrillRecord) -> DrillRecord:
    """The record as the book has it; the status gives a short form."""
    from replicad.db.drills import Drills
    from replicad.work.drill_book import drills_path

    path = drills_path(state, record.dataset)
    if not record.number or not path.exists():
        return record
    with closing(Drills(path, readonly=True)) as book:
        return book.record(record.number) or record


def _read(path: Path, limit: int | None) -> list[DrillRecord]:
    from replicad.db.drills import MAX_KEPT, Drills

    if not path.exists():
        return []
    with closing(Drills(path, readonly=True)) as book:
        return book.history(limit=limit or MAX_KEPT)
