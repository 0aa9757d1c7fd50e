"""The verbs `restore` and `snapshots`: bring a dataset back, and list what can be brought back.

The account goes to stdout, progress and findings go to stderr: every damaged byte range and every entry that could not
be restored is named there as it is found, of everything else the first few.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from replicad.cli import output
from replicad.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption
from replicad.cli.ordered import FirstOption, OrderOption, order_from, order_of
from replicad.cli.reading import (
    DatasetArgument,
    FromOption,
    KeyOption,
    ReplicaOption,
    StoreOption,
    Where,
    configuration,
    reading,
)
from replicad.cli.restore_plan import confirm as confirm_plan
from replicad.cli.restore_plan import lines as plan_lines
from replicad.model.errors import LockedError, ReplicadError, UsageError
from replicad.model.when import LATEST, choose_snapshot, show_time, would_take_newer
from replicad.work.turnstile import held_target

if TYPE_CHECKING:  # slow to import, and needed when a verb runs only
    from replicad.config import Config
    from replicad.link.messages import SnapshotLine
    from replicad.model.order import Order
    from replicad.work.account import Account, ClassDone, Finding
    from replicad.work.planner import Rules
    from replicad.work.reader import HistoryReader
    from replicad.work.restore import Restore
    from replicad.work.restore_plan import RestorePlan

REFRESH_S = 0.2
"""How often the progress moves."""
STANDSTILL_S = 60.0
"""When nothing has moved for so long it is said: a hung disk looks like a slow line otherwise."""
SHOWN = 20
"""Findings of one lesser sort (metadata, extra entries, notices) that are printed; the account counts all."""
ALWAYS_SHOWN = ("damaged", "failed", "unsaved")
MIN_BANDWIDTH_BYTES = 1024
"""Less is a slip of the finger, and would take a day for a file."""

AtOption = Annotated[str, typer.Option("--at", metavar="WHEN", help="latest, a snapshot number, or an RFC 3339 time.")]


def restore(
    dataset: DatasetArgument,
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="Directory to restore into; made when missing.")],
    at: AtOption = LATEST,
    path: Annotated[
        list[str] | None, typer.Option("--path", metavar="GLOB", help="Only what matches; may be repeated.")
    ] = None,
    plan: Annotated[
        bool,
        typer.Option("--plan", help="Say what would be done, in what time, and what is in the way; do nothing."),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Compare and print the account; do nothing.")] = False,
    first: FirstOption = None,
    order: OrderOption = None,
    bandwidth: Annotated[str, typer.Option("--bandwidth", metavar="RATE", help="At most this, like 50MiB/s.")] = "",
    delete_extra: Annotated[
        bool,
        typer.Option("--delete-extra", help="Remove what is in the target and not in the snapshot, if it is complete."),
    ] = False,
    set_aside: Annotated[
        Path | None, typer.Option("--set-aside", metavar="DIR", help="Keep there what is replaced or removed.")
    ] = None,
    in_place: Annotated[
        bool, typer.Option("--in-place", help="Allow the live dataset itself as target; shows a plan and asks.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask, unless something would be lost.")] = False,
    confirm: Annotated[str, typer.Option("--confirm", metavar="TOKEN", help="Do exactly what that plan said.")] = "",
    replica: FromOption = "",
    line: ReplicaOption = "",
    key: KeyOption = None,
    store: StoreOption = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print problems only.")] = False,
    config: ConfigOption = DEFAULT_CONFIG,
    json: JsonOption = False,
) -> None:
    """Bring back a dataset, or parts of it, as it was in a snapshot.

    Into an existing directory it writes only what differs, compared by hash. Cut off, it goes on when it is run again.
    Damage does not stop it: everything else is restored, and every byte range that could not be proven is named.
    Over live data it shows a plan first, which has to be confirmed.

    Exit codes: 0 everything is there and right, 1 something is missing or damaged, 2 usage, 3 the replica is out of
    reach or the target is full.
    """
    from replicad.system.heap import suit_bulk
    from replicad.work.origin import check_target
    from replicad.work.planner import Rules

    globs = [os.fsencode(glob) for glob in path or ()]
    if globs and delete_extra:
        raise UsageError("--delete-extra removes what the whole snapshot does not have", hint="leave out --path")
    if (yes or confirm) and not in_place:
        raise UsageError("--yes and --confirm belong to --in-place; nothing else asks")
    if plan and dry_run:
        raise UsageError("--plan and --dry-run exclude one another", hint="--plan says all that --dry-run does")
    where = Where(dataset, config, replica, line, key, store)
    loaded = configuration(where)
    check_target(target, loaded, store, in_place=in_place)
    if set_aside:
        check_target(set_aside, loaded, store, in_place=False)
    rules, ordered = Rules(delete_extra, dry_run, aside=set_aside), order_of(dataset, loaded, first or (), order)
    rate = _rate(bandwidth)
    asked = _Asked(where, loaded, target, at, globs, rules, ordered, in_place, yes, confirm, rate, quiet, json)
    suit_bulk()
    try:
        exit_code = asyncio.run(_plan(asked) if plan else _restore(asked))
    except (KeyboardInterrupt, SystemExit):
        output.note("interrupted; the same command goes on where this one stopped")
        raise
    if exit_code:
        raise typer.Exit(exit_code)


@dataclass(frozen=True, slots=True)
class _Asked:
    """What was typed."""

    where: Where
    config: Config | None
    target: Path
    at: str
    globs: list[bytes]
    rules: Rules
    order: Order | None
    in_place: bool
    is_yes: bool
    confirm: str
    bandwidth_bytes: int
    quiet: bool
    json: bool


@dataclass(frozen=True, slots=True)
class _Source:
    """What is restored, and where from."""

    reader: HistoryReader
    chosen: SnapshotLine
    newest: SnapshotLine
    rules: Rules
    newest_gone: bool
    """Whether what was asked for may be a newer snapshot, which the store has lost."""


@asynccontextmanager
async def _source(asked: _Asked) -> AsyncIterator[_Source]:
    from replicad.work.read_local import LocalReader
    from replicad.work.throttled import ThrottledReader

    async with reading(asked.where, asked.config) as reader:
        lines = await reader.snapshots()
        chosen, notice = choose_snapshot(lines, asked.at)
        if notice:
            output.note(notice)
        limited = ThrottledReader(reader, asked.bandwidth_bytes) if asked.bandwidth_bytes else reader
        order = asked.order if asked.order is not None else await order_from(reader)
        is_open = would_take_newer(lines, asked.at)
        newest_gone = is_open and isinstance(reader, LocalReader) and await reader.newest_gone()
        yield _Source(limited, chosen, lines[-1], replace(asked.rules, order=order), newest_gone)


async def _plan(asked: _Asked) -> int:
    """`--plan`: show it."""
    async with _source(asked) as source:
        plan = await _planned(asked, source)
    if asked.json:
        output.json_document(plan)
    else:
        output.line("\n".join(plan_lines(plan)))
    return plan.exit_code


async def _planned(asked: _Asked, source: _Source) -> RestorePlan:
    from replicad.work.drill_book import drills_path
    from replicad.work.restore_plan import Planning

    heard, where = _Heard(), asked.where
    planning = Planning(
        source.reader,
        source.chosen,
        source.newest,
        asked.target,
        dataset=where.dataset,
        globs=asked.globs,
        rules=source.rules,
        heard=heard,
        newest_gone=source.newest_gone,
    )
    await _with_progress(planning, _size(asked, source), title="plan", quiet=asked.quiet or asked.json)
    heard.end()
    book = drills_path(asked.config.node.state, where.dataset) if asked.config and not where.line else None
    return planning.plan(book, asked.bandwidth_bytes)


async def _restore(asked: _Asked) -> int:
    """The restore itself; over live data only once its plan is confirmed."""
    async with _source(asked) as source, AsyncExitStack() as stack:
        held = None
        if asked.in_place and not asked.rules.dry_run and asked.target.is_dir():
            held = await stack.enter_async_context(held_target(asked.target, _live_roots(asked), output.note))
            if any(asked.target.iterdir()):
                await _confirm(asked, source)
        return await _restored(asked, source, held)


async def _confirm(asked: _Asked, source: _Source) -> None:
    """Show what would be done to what is there, and have it confirmed. Raises UsageError: it is not."""
    plan = await _planned(asked, source)
    (output.note if asked.json or asked.quiet else output.line)("\n".join(plan_lines(plan)))
    confirm_plan(plan, is_yes=asked.is_yes, token=asked.confirm, keeps=asked.rules.aside is not None)


async def _restored(asked: _Asked, source: _Source, held: int | None) -> int:
    from replicad.work.restore import Restore

    heard = _Heard()
    running = Restore(
        source.reader,
        source.chosen,
        asked.target,
        dataset=asked.where.dataset,
        globs=asked.globs,
        rules=source.rules,
        heard=heard,
        told=_tell_class,
        held=held,
        newest_gone=source.newest_gone,
    )
    try:
        await _with_progress(running, _size(asked, source), title="restore", quiet=asked.quiet or asked.json)
    except (UsageError, LockedError):
        raise  # nothing was begun, so there is nothing to account for
    except ReplicadError:
        _print_account(running.account, heard, quiet=asked.quiet, json=asked.json)
        raise
    _print_account(running.account, heard, quiet=asked.quiet, json=asked.json)
    return running.account.exit_code


def _rate(text: str) -> int:
    from replicad.config.units import parse_size

    try:
        rate = parse_size(text.removesuffix("/s")) if text else 0
    except ValueError as error:
        raise UsageError(f"--bandwidth: {error}", hint="write it like 50MiB/s") from None
    if text and rate < MIN_BANDWIDTH_BYTES:
        raise UsageError(f"--bandwidth {text} is below 1KiB/s", hint="leave it out for no limit")
    return rate


def _size(asked: _Asked, source: _Source) -> int:
    return 0 if asked.globs else source.chosen.size


def _live_roots(asked: _Asked) -> list[Path]:
    """The datasets whose passes have to wait."""
    return [dataset.path for dataset in asked.config.datasets] if asked.config else []


def _tell_class(done: ClassDone) -> None:
    """One class of the order is complete."""
    state = f"{output.entries(done.wrong)} of it damaged or missing" if done.wrong else "complete"
    size = f"{output.counted(done.files, 'file')}, {output.show_bytes(done.bytes)}"
    output.note(f"{done.name}: {state} after {output.show_duration(done.finished_s)}: {size}")


def snapshots(
    dataset: DatasetArgument,
    replica: FromOption = "",
    line: ReplicaOption = "",
    key: KeyOption = None,
    store: StoreOption = None,
    config: ConfigOption = DEFAULT_CONFIG,
    json: JsonOption = False,
) -> None:
    """List the snapshots of a dataset, oldest first.

    A snapshot is complete when a whole pass could be copied; a partial one shows the dataset in the middle of a pass,
    or a pass that had to leave something out.
    """
    where = Where(dataset, config, replica, line, key, store)
    loaded = configuration(where)

    async def ask() -> list[dict[str, object]]:
        async with reading(where, loaded) as reader:
            return [
                {
                    "number": found.number,
                    "created": show_time(found.created_ns),
                    "complete": found.complete,
                    "entries": found.entries,
                    "size": found.size,
                    "unread": found.unread,
                    "received": show_time(found.received_ns),
                    "digest": found.digest.hex(),
                    "source": reader.name,
                }
                for found in await reader.snapshots()
            ]

    lines = asyncio.run(ask())
    if json:
        output.json_document(lines)
    elif not lines:
        output.note("there is no snapshot yet")
    else:
        output.table(("SNAPSHOT", "CREATED", "STATE", "ENTRIES", "SIZE"), [_row(found) for found in lines])


def _row(found: dict[str, object]) -> tuple[str, ...]:
    size = found["size"]
    assert isinstance(size, int)
    state = output.mark("complete", "ok") if found["complete"] else output.mark("partial", "warn")
    missing = f" ({found['unread']} not copied)" if found["unread"] else ""
    return (
        str(found["number"]),
        str(found["created"]),
        state + missing,
        f"{found['entries']:,}",
        output.show_bytes(size),
    )


# what is shown


class _Heard:
    """Prints findings as they are made, so that none is lost however many there are."""

    def __init__(self) -> None:
        self.count: Counter[str] = Counter()

    def __call__(self, finding: Finding) -> None:
        self.count[finding.sort] += 1
        if finding.sort in ALWAYS_SHOWN or self.count[finding.sort] <= SHOWN:
            output.note(str(finding))

    def end(self) -> None:
        """Say how many were not printed."""
        for sort, count in self.count.items():
            if sort not in ALWAYS_SHOWN and count > SHOWN:
                output.note(f"… and {count - SHOWN:,} more of this sort ({sort})")


async def _with_progress(running: Restore, total: int, *, title: str, quiet: bool) -> None:
    """Run it and show how far it is."""
    account, standstill = running.account, Standstill()
    with output.progress(f"{title} {account.dataset}", total, quiet=quiet) as bar:
        task = asyncio.create_task(running.run())
        try:
            while not (await asyncio.wait([task], timeout=REFRESH_S))[0]:
                bar.total = max(bar.total, account.done_bytes) if bar.total else 0
                entries = output.entries(account.done_entries)
                bar.update(account.done_bytes, entries + standstill.words(account.done_bytes, account.done_entries))
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait([task])
        task.result()


class Standstill:
    """For how long nothing has moved."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s, self._moved_s, self._seen = now_s, now_s(), (0, 0)

    def words(self, done_bytes: int, done_entries: int) -> str:
        """What to add to the progress; "" while it moves."""
        if (done_bytes, done_entries) != self._seen:
            self._moved_s, self._seen = self._now_s(), (done_bytes, done_entries)
        stood_s = self._now_s() - self._moved_s
        if stood_s < STANDSTILL_S:
            return ""
        return f"; nothing has moved for {output.show_duration(stood_s)}: look at both disks and at the line"


def _print_account(account: Account, heard: _Heard, *, quiet: bool, json: bool) -> None:
    heard.end()
    if json:
        output.json_document(account)
        return
    if quiet:
        return
    verb = "would restore" if account.dry_run else "restored" if account.finished else "cut off"
    output.line(f"{verb} {account.dataset}: snapshot {account.snapshot} of {account.created} from {account.source}")
    output.line(f"to {account.target}")
    for title, text in _lines(account):
        output.line(f"  {title:<12}{text}")
    output.line(_verdict(account))


def _lines(account: Account) -> list[tuple[str, str]]:
    """The account, line by line; what is zero is left out."""
    size: Callable[[float], str] = output.show_bytes
    speed = f" in {output.show_duration(account.duration_s)} ({output.show_rate(account.rate_bytes_s)})"
    lines = [("restored", f"{output.show_counts(account.restored)}; {size(account.restored_bytes)}{speed}")]
    if account.unchanged:
        lines.append(
            ("unchanged", f"{output.show_counts(account.unchanged)}; {size(account.right_bytes)} were right already")
        )
    blocks = output.counted(account.blocks_fetched, "block")
    if account.dry_run:
        lines.append(("to fetch", blocks))
    else:
        lines.append(("fetched", f"{blocks}, {size(account.stored_bytes)} as stored"))
    if account.failed:
        lines.append(("failed", output.show_counts(account.failed)))
    if account.damaged_files:
        ranges = f"{output.counted(account.damaged_ranges, 'byte range')}, {size(account.damaged_bytes)}"
        lines.append(("damaged", f"{output.counted(account.damaged_files, 'file')}: {ranges} could not be proven"))
    if account.metadata_not_set:
        lines.append(("metadata", f"{output.counted(account.metadata_not_set, 'attribute')} could not be set"))
    if account.unread:
        lines.append(("not copied", f"{output.entries(account.unread)} could not be read when the snapshot was made"))
    if account.extra:
        lines.append(("extra", f"{output.entries(account.extra)} not in the snapshot, left alone"))
    if account.set_aside:
        lines.append(("set aside", f"{output.entries(account.set_aside)} replaced or removed"))
    if account.extra_removed:
        lines.append(("extra", f"{output.entries(account.extra_removed)} not in the snapshot, removed"))
    return lines


def _verdict(account: Account) -> str:
    if not account.finished:
        return output.mark("not finished", "bad") + ": run the same command again, it goes on where this one stopped"
    if account.exit_code:
        return output.mark("incomplete", "bad") + ": what is missing is named above"
    if not account.complete_snapshot:
        return output.mark("complete", "warn") + " as far as the snapshot goes, which is partial"
    return output.mark("complete", "ok")
