"""The verbs `restore` and `snapshots`: bring a dataset back, and list what can be brought back.

The account goes to stdout, progress and findings go to stderr: every damaged byte range and every entry that could not
be restored is named there as it is found, of everything else the first few.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from replicad.cli import output
from replicad.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption
from replicad.cli.reading import (
    FromOption,
    KeyOption,
    ReplicaOption,
    StoreOption,
    Where,
    configuration,
    reading,
)
from replicad.model.errors import LockedError, ReplicadError, UsageError
from replicad.model.when import LATEST, choose_snapshot, show_time

if TYPE_CHECKING:  # slow to import, and needed when a verb runs only
    from replicad.work.account import Account, Finding
    from replicad.work.restore import Restore

REFRESH_S = 0.2
"""How often the progress moves."""
SHOWN = 20
"""Findings of one lesser sort (metadata, extra entries, notices) that are printed; the account counts all."""
ALWAYS_SHOWN = ("damaged", "failed")

AtOption = Annotated[str, typer.Option("--at", metavar="WHEN", help="latest, a snapshot number, or an RFC 3339 time.")]


def restore(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="The dataset, or CLIENT/DATASET in a store.")],
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="Directory to restore into; made when missing.")],
    at: AtOption = LATEST,
    path: Annotated[
        list[str] | None, typer.Option("--path", metavar="GLOB", help="Only what matches; may be repeated.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, change nothing.")] = False,
    delete_extra: Annotated[
        bool, typer.Option("--delete-extra", help="Remove what is in the target and not in the snapshot.")
    ] = False,
    in_place: Annotated[bool, typer.Option("--in-place", help="Allow the live dataset itself as target.")] = False,
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

    Exit codes: 0 everything is there and right, 1 something is missing or damaged, 2 usage, 3 the replica is out of
    reach or the target is full.
    """
    from replicad.work.origin import check_target
    from replicad.work.planner import Rules

    globs = [os.fsencode(glob) for glob in path or ()]
    if globs and delete_extra:
        raise UsageError("--delete-extra removes what the whole snapshot does not have", hint="leave out --path")
    where = Where(dataset, config, replica, line, key, store)
    loaded = configuration(where)
    check_target(target, loaded, store, in_place=in_place)
    rules = Rules(delete_extra=delete_extra, dry_run=dry_run)
    heard = _Heard()

    async def run() -> Account:
        from replicad.work.restore import Restore

        async with reading(where, loaded) as reader:
            chosen, notice = choose_snapshot(await reader.snapshots(), at)
            if notice:
                output.note(notice)
            running = Restore(reader, chosen, target, dataset=dataset, globs=globs, rules=rules, heard=heard)
            try:
                return await _with_progress(running, 0 if globs else chosen.size, quiet=quiet or json)
            except (UsageError, LockedError):
                raise  # nothing was begun, so there is nothing to account for
            except ReplicadError:
                _print_account(running.account, heard, quiet=quiet, json=json)
                raise

    try:
        account = asyncio.run(run())
    except KeyboardInterrupt:
        output.note("interrupted; the same command goes on where this one stopped")
        raise
    _print_account(account, heard, quiet=quiet, json=json)
    if account.exit_code:
        raise typer.Exit(account.exit_code)


def snapshots(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="The dataset, or CLIENT/DATASET in a store.")],
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


async def _with_progress(running: Restore, total: int, *, quiet: bool) -> Account:
    """Run it and show how far it is."""
    account = running.account
    with output.progress(f"restore {account.dataset}", total, quiet=quiet) as bar:
        task = asyncio.create_task(running.run())
        try:
            while not (await asyncio.wait([task], timeout=REFRESH_S))[0]:
                bar.total = max(bar.total, account.done_bytes) if bar.total else 0
                bar.update(account.done_bytes, f"{account.done_entries:,} entries")
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait([task])
        return task.result()


def _print_account(account: Account, heard: _Heard, *, quiet: bool, json: bool) -> None:
    for sort, count in heard.count.items():
        if sort not in ALWAYS_SHOWN and count > SHOWN:
            output.note(f"… and {count - SHOWN:,} more of this sort ({sort})")
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
    lines = [("restored", f"{_entries(account.restored)}; {size(account.restored_bytes)}{speed}")]
    if account.unchanged:
        lines.append(("unchanged", f"{_entries(account.unchanged)}; {size(account.right_bytes)} were right already"))
    if account.dry_run:
        lines.append(("to fetch", f"{account.blocks_fetched:,} blocks"))
    else:
        lines.append(("fetched", f"{account.blocks_fetched:,} blocks, {size(account.stored_bytes)} as stored"))
    if account.failed:
        lines.append(("failed", _entries(account.failed)))
    if account.damaged_files:
        ranges = f"{account.damaged_ranges:,} byte ranges, {size(account.damaged_bytes)}"
        lines.append(("damaged", f"{account.damaged_files:,} files: {ranges} could not be proven"))
    if account.metadata_not_set:
        lines.append(("metadata", f"{account.metadata_not_set:,} attributes could not be set"))
    if account.unread:
        lines.append(("not copied", f"{account.unread:,} entries could not be read when the snapshot was made"))
    if account.extra:
        lines.append(("extra", f"{account.extra:,} entries that the snapshot does not have, left alone"))
    if account.extra_removed:
        lines.append(("extra", f"{account.extra_removed:,} entries that the snapshot does not have, removed"))
    return lines


def _entries(counts: dict[str, int]) -> str:
    shown = [f"{count:,} {kind.replace('_', ' ')}" for kind, count in sorted(counts.items()) if count]
    return ", ".join(shown) or "nothing"


def _verdict(account: Account) -> str:
    if not account.finished:
        return output.mark("not finished", "bad") + ": run the same command again, it goes on where this one stopped"
    if account.exit_code:
        return output.mark("incomplete", "bad") + ": what is missing is named above"
    if not account.complete_snapshot:
        return output.mark("complete", "warn") + " as far as the snapshot goes, which is partial"
    return output.mark("complete", "ok")
