"""`replicad repair`: have the daemon repair what was found, or take a repair back. Asks the daemon and prints.

`repair undo ID` is a form of the verb and no verb of its own: an id is hex digits, so the word cannot be one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from replicad.cli import output
from replicad.cli.control import state_of
from replicad.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption, config_words
from replicad.http.api import Client
from replicad.http.contract import RepairResult
from replicad.model.errors import ReplicadError, UsageError
from replicad.model.remedy import Remedy

UNDO = "undo"
DONE = frozenset({"planned", "repaired", "undone", "nothing"})
"""Results after which nothing is left to do, unless it is lost; after any other the exit code is FINDING."""
FINDING = 1
_STYLES: dict[str, output.Style] = {
    "repaired": "ok",
    "undone": "ok",
    "nothing": "ok",
    "planned": "warn",
    "waiting": "warn",
}


def repair(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ID]... | undo ID", help="Divergences; an id may be abbreviated."),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All open divergences that can be repaired.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, change nothing.")] = False,
    config: ConfigOption = DEFAULT_CONFIG,
    json: JsonOption = False,
) -> None:
    """Repair what was found, from blocks that were proven, and read it again from the medium; or take a repair back.

    For example: replicad repair 7c1e --dry-run, replicad repair 7c1e, replicad repair --all, replicad repair undo 7c1e.

    Exit codes: 0 all is repaired or there is nothing to do, 1 something is lost, failed, was refused, or waits for the
    other side, 2 there is no such divergence, 3 the daemon is out of reach.
    """
    ids = words or []
    _check(ids, every=every, dry_run=dry_run)
    client = Client(state_of(config))
    results, problems = _ask(client, ids, every=every, dry_run=dry_run)
    if json:
        output.json_document({"results": results, "problems": [str(problem) for problem in problems]})
    else:
        _print(results, problems, ids, config, every=every)
    if problems:
        raise typer.Exit(max(problem.exit_code for problem in problems))
    if any(result.result not in DONE or _is_lost(result) for result in results):
        raise typer.Exit(FINDING)


def _check(ids: Sequence[str], *, every: bool, dry_run: bool) -> None:
    if ids[:1] == [UNDO]:
        if len(ids) != 2 or every or dry_run:
            raise UsageError("undo takes one repair back", hint="replicad repair undo ID")
    elif every == bool(ids):
        raise UsageError("name divergences or --all, one of the two", hint="replicad divergence list names them")


def _ask(
    client: Client, ids: Sequence[str], *, every: bool, dry_run: bool
) -> tuple[list[RepairResult], list[ReplicadError]]:
    """What became of each; an id that is unknown does not keep the others from being repaired, nor does a daemon that
    went away keep what was repaired before from being told."""
    if ids[:1] == [UNDO]:
        return client.undo_repair(ids[1]), []
    if every:
        return client.repair(None, dry_run=dry_run), []
    results: list[RepairResult] = []
    problems: list[ReplicadError] = []
    for name in ids:
        try:
            results += client.repair(name, dry_run=dry_run)
        except ReplicadError as error:
            if len(ids) == 1:
                raise
            problems.append(error)
    return results, problems


def _is_lost(result: RepairResult) -> bool:
    """Whether nothing was done because nobody has what it takes."""
    return result.remedy == Remedy.NONE_LEFT.value


def _print(
    results: Sequence[RepairResult], problems: Sequence[ReplicadError], ids: Sequence[str], config: Path, *, every: bool
) -> None:
    for result in results:
        style = "bad" if _is_lost(result) else _STYLES.get(result.result, "bad")
        first, *rest = output.wrapped("", f"{result.id}: {result.result}: {result.text}", "  ")
        output.line(first.replace(result.result, output.mark(result.result, style), 1))
        for line in rest:
            output.line(line)
    if not results and not problems:
        output.line("nothing to repair")
    for problem in problems:
        output.error(problem)
    for hint in _hints(results, ids, every=every):
        output.note(f"-> {hint}{config_words(config)}")


def _hints(results: Sequence[RepairResult], ids: Sequence[str], *, every: bool) -> Iterator[str]:
    """What to type next, once for each kind of result."""

    def of(kind: str) -> list[str]:
        return [result.id for result in results if result.result == kind]

    if planned := of("planned"):
        yield "do it: replicad repair " + ("--all" if every else " ".join(planned))
    if of("waiting"):
        yield "it goes on by itself when the other side is there: replicad status"
    lost = [result.id for result in results if _is_lost(result)]
    for name in (of("failed") + of("refused") + lost)[:1]:
        yield f"what is known about it: replicad divergence show {name}"
    written = [r.id for r in results if r.result == "repaired" and r.remedy in ("mend_primary", "mend_metadata")]
    if written:
        yield f"to have the bytes before back: replicad repair undo {written[0]}"
