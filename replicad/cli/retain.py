"""`replicad retain run` and `retain --dry-run`: let go the snapshots that no rule keeps, or see which those would be.

Typed on the replica. A run is the running daemon's; with --store it works on a store directory itself, with no daemon
there. A dry run reads the stores' books, beside a daemon or without one, and changes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import msgspec
import typer

from replicad.cli import offered, output
from replicad.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption
from replicad.config import Config, load
from replicad.http.contract import RetainResult
from replicad.model.errors import ReplicadError, UsageError
from replicad.system.clock import Clock, format_ns

if TYPE_CHECKING:  # slow to import, and needed when a store is worked on only
    from replicad.db.findings import Findings
    from replicad.work.archive import Archive
    from replicad.work.outlook import Outlook
    from replicad.work.room import Room

Result = TypeVar("Result")

FINDING, OUT_OF_REACH = 1, 3

retain = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    invoke_without_command=True,
    help="Retention. Which snapshots stay is said by [[retention]] in the configuration of the replica; type it there.",
)

DatasetArgument = Annotated[
    str,
    typer.Argument(
        metavar="[DATASET]", help="DATASET or CLIENT/DATASET; all when left out.", autocompletion=offered.stored
    ),
]
StoreOption = Annotated[
    Path | None,
    typer.Option("--store", metavar="DIR", help="Work on this store itself, in which no daemon works."),
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Change nothing; show what stays and why, and what goes.")
]


@retain.callback()
def before_any(
    context: typer.Context,
    dry_run: DryRunOption = False,
    store: StoreOption = None,
    config: ConfigOption = DEFAULT_CONFIG,
    json: JsonOption = False,
) -> None:
    """Retention of the stores of this node."""
    if context.invoked_subcommand is not None:
        if dry_run or store or json:
            raise UsageError("options stand behind the verb", hint="replicad retain run --dry-run")
        return
    if not dry_run:
        output.note(context.get_help())
        raise typer.Exit(2)
    _show(load(config, check_files=False), "", store, json)


@retain.command("run")
def run(
    dataset: DatasetArgument = "",
    dry_run: DryRunOption = False,
    store: StoreOption = None,
    config: ConfigOption = DEFAULT_CONFIG,
    json: JsonOption = False,
) -> None:
    """Let go now what no rule keeps, and give the room of its blocks back. The daemon does so by itself every hour.

    Exit codes: 0 done, 1 nothing may go for now (the clock), 2 usage or configuration, 3 the daemon is out of reach, or
    a store could not be worked on: what was done stays done.
    """
    found = load(config, check_files=False)
    if dry_run:
        _show(found, dataset, store, json)
        return
    if store:
        from replicad.store.store import stores_named

        results = _run_all(stores_named(store, dataset), found)
    else:
        from replicad.http.api import Client

        _store_of(found)
        results = Client(found.node.state).retain(dataset or None)
    _print_results(results, json)


# a dry run


def _show(config: Config, dataset: str, store: Path | None, json: bool) -> None:
    from replicad.store.store import stores_named

    found: list[tuple[Outlook, Room]] = []
    unread: list[ReplicadError] = []
    for directory in stores_named(store or _store_of(config), dataset):
        try:
            found.append(_look(directory, config))
        except ReplicadError as error:  # one store that cannot be read must not hide the others
            unread.append(error)
    if json:
        output.json_document({"stores": [_document(*one) for one in found], "unread": [str(error) for error in unread]})
    else:
        for one in found:
            _print_outlook(*one)
        for failure in unread:
            output.error(failure)
    if unread:
        raise typer.Exit(min(error.exit_code for error in unread))
    if any(one.hold for one, _ in found):
        raise typer.Exit(FINDING)


def _look(directory: Path, config: Config) -> tuple[Outlook, Room]:
    from replicad.db.findings import Findings
    from replicad.work.book_damage import findings_of
    from replicad.work.outlook import look
    from replicad.work.room import room

    client, dataset = directory.parent.name, directory.name
    path = findings_of(directory)
    if not path.exists():
        hint = "does the daemon run? replicad status"
        raise ReplicadError(f"{client}/{dataset}: nothing has been looked at yet", where=str(path), hint=hint)
    rules, now_ns = config.rules_of(client), Clock().now_ns()
    with closing(Findings(path, readonly=True)) as findings:
        found = look(client, dataset, directory, findings, rules, now_ns)
    return found, room(directory, frozenset(found.going), now_ns - int(rules.younger_than_s * 1e9))


def _document(found: Outlook, frees: Room) -> dict[str, object]:
    going = found.going
    document: dict[str, object] = msgspec.to_builtins(found)
    document |= msgspec.to_builtins(frees)
    return document | {"kept": len(found.snapshots) - len(going), "going": going}


def _print_outlook(found: Outlook, frees: Room) -> None:
    going = found.going
    output.line(f"{found.client}/{found.dataset}: {len(found.snapshots) - len(going)} stay, {len(going)} would go")
    output.line(f"  {_frees(frees)}")
    if found.hold:
        output.line(f"  {output.mark('held', 'bad')}: {found.hold}")
    if not found.snapshots:
        return
    output.table(
        ("SNAPSHOT", "RECEIVED", "COMPLETE", "STAYS"),
        [
            (
                str(one.number),
                format_ns(one.received_ns),
                "yes" if one.complete else "no",
                one.reason or output.mark("goes", "warn"),
            )
            for one in found.snapshots
        ],
    )


def _frees(frees: Room) -> str:
    """Lower bounds, in words."""
    freed, unused = output.show_bytes(frees.frees_bytes), output.show_bytes(frees.unused_bytes)
    returned = output.show_bytes(frees.returns_bytes)
    return f"frees at least {freed}, beside {unused} unused now; a run now would give {returned} of both back"


# a run


def _run_all(directories: Sequence[Path], config: Config) -> list[RetainResult]:
    """One store after the other; one of several that cannot be worked on keeps nothing from being done, or told."""
    results: list[RetainResult] = []
    for directory in directories:
        try:
            results.append(asyncio.run(_run_here(directory, config)))
        except ReplicadError as error:
            if len(directories) == 1:
                raise
            results.append(RetainResult(directory.parent.name, directory.name, error=str(error)))
    return results


async def _run_here(directory: Path, config: Config) -> RetainResult:
    """Retention of one store, in this process. Raises LockedError when a daemon works there."""
    from concurrent.futures import ThreadPoolExecutor

    from replicad.db.findings import Findings
    from replicad.status import RetentionStatus
    from replicad.system.disk import Disk
    from replicad.work.archive import Archive
    from replicad.work.book_damage import findings_of
    from replicad.work.retain import Place, Retaining

    client, dataset = directory.parent.name, directory.name
    reserve_bytes = config.listen.reserve_bytes if config.listen else 0
    archive = Archive.open(directory, client=client, dataset=dataset, reserve_bytes=reserve_bytes)
    with closing(archive), closing(Findings(findings_of(directory))) as findings, ThreadPoolExecutor(1) as pool:

        async def in_store(work: Callable[[Archive, Findings], Result]) -> Result:
            return work(archive, findings)

        status = RetentionStatus(client, dataset)
        rules = config.rules_of(client)
        place = Place(client, dataset, directory)
        job = Retaining(place, in_store, lambda: rules, status, pool, Clock(), Disk(), asyncio.Lock())
        try:
            return RetainResult(**msgspec.structs.asdict(await job.run()))
        except ReplicadError as error:
            return RetainResult(client, dataset, error=str(error))


def _print_results(results: list[RetainResult], json: bool) -> None:
    if json:
        output.json_document({"stores": results})
    else:
        for text in _lines(results):
            output.line(text)
    if any(one.error for one in results):
        raise typer.Exit(OUT_OF_REACH)
    if any(one.hold for one in results):
        raise typer.Exit(FINDING)


def _lines(results: list[RetainResult]) -> Iterator[str]:
    if not results:
        yield "there is no store yet"
    for one in results:
        name = f"{one.client}/{one.dataset}"
        if one.error:
            yield f"{name}: {output.mark('not finished', 'bad')}: {one.error}"
            continue
        room = f", {output.show_bytes(one.reclaimed_bytes)} given back" if one.compacted else ""
        yield f"{name}: {len(one.dropped)} let go, {one.kept} kept{room}"
        if one.hold:
            yield f"  {output.mark('held', 'bad')}: {one.hold}"
        yield from (f"  left: {text}" for text in one.left)


# which stores


def _store_of(config: Config) -> Path:
    if config.listen is None:
        raise UsageError("retention is the replica's, and this node keeps no copies", hint="type it on the replica")
    return config.listen.store
