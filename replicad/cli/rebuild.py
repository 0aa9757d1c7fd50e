"""The verb `rebuild`: catalogs from segments, a ledger from a replica's record."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from replicad.cli import offered, output
from replicad.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption
from replicad.model.errors import UsageError

if TYPE_CHECKING:  # slow to import, and needed when the verb runs only
    from replicad.config import Config, DatasetConfig, ReplicaConfig
    from replicad.link.messages import SnapshotLine
    from replicad.work.adopt import Adopted
    from replicad.work.rebuild_ledger import LedgerRebuilt

SHOWN = 20
"""Entries that are not as recorded which are named; JSON has up to a hundred, the counters count all."""


def rebuild(
    dataset: Annotated[
        str,
        typer.Argument(
            metavar="[DATASET]",
            help="DATASET or CLIENT/DATASET; all of the store by default.",
            autocompletion=offered.on_either_side,
        ),
    ] = "",
    store: Annotated[
        Path | None, typer.Option("--store", metavar="DIR", help="The store; by default the configuration's.")
    ] = None,
    ledger: Annotated[
        bool, typer.Option("--ledger", help="On a primary: rebuild the ledger of DATASET from a replica's record.")
    ] = False,
    replica: Annotated[
        str, typer.Option("--from", metavar="REPLICA", help="The replica whose record a ledger is made from.")
    ] = "",
    config: ConfigOption = DEFAULT_CONFIG,
    json: JsonOption = False,
) -> None:
    """Rebuild a book that was lost or is damaged, with the daemon stopped. The old one is kept beside the new one.

    On a replica: catalogs, from the segments alone. Every frame is read and checked; copies that the old catalog has of
    the record stand in for damaged pieces of it, as far as it can be read. Exit code 1 when damaged frames were found:
    everything else is in the new catalog.

    On a primary, with --ledger: the ledger of a dataset, from the newest snapshot of a replica. The record is trusted,
    not the disk: what looks as recorded is expected to hold what is recorded, and a scrub tells where it does not; what
    looks otherwise is replicated by the next pass. The dataset's hooks run before and after, as the user that owns the
    state directory, also when root typed this.
    """
    if ledger:
        if store or not dataset:
            raise UsageError("--ledger needs a DATASET and no --store")
        _rebuild_ledger(dataset, replica, config, json)
        return
    if replica:
        raise UsageError("--from belongs to --ledger: a catalog is made from the store's own segments")
    from replicad.work.archive import catalog_path
    from replicad.work.rebuild import rebuild_catalog

    found = []
    for directory in _directories(store or _configured(config), dataset):
        name = f"{directory.parent.name}/{directory.name}"
        with output.progress(f"rebuild {name}", quiet=json) as bar:

            def show(done: int, total: int, bar: output.Progress = bar) -> None:
                bar.total = total
                bar.update(done)

            done = rebuild_catalog(directory, progress=show, knowing=catalog_path(directory))
        found.append(done)
        if not json:
            kept = f"; the old catalog is kept as {done.kept.name}" if done.kept else ""
            output.line(f"{name}: catalog rebuilt up to snapshot {done.head.number}{kept}")
            for damage in done.damage:
                output.line(
                    f"  damaged: segment {damage.segment}, {damage.length} bytes at {damage.offset}: {damage.reason}"
                )
    if json:
        output.json_document([{"catalog": d.catalog, "snapshot": d.head.number, "damage": d.damage} for d in found])
    if any(done.damage for done in found):
        raise typer.Exit(1)


# a ledger


def _rebuild_ledger(name: str, wanted: str, file: Path, json: bool) -> None:
    from replicad.config import load
    from replicad.work.rebuild_ledger import stopped_daemon

    config = load(file, check_files=False)
    dataset, replica = _chosen(config, name, wanted)
    with stopped_daemon(config.node.state):
        done = asyncio.run(_run(config, dataset, replica, json))
    if json:
        output.json_document({"dataset": name, "replica": replica.name, "ledger": done.ledger, "kept": done.kept,
                              "adopted": done.adopted})  # fmt: skip
    else:
        _print_ledger(name, replica.name, done)
    if done.adopted.lost_records:
        raise typer.Exit(1)


def _chosen(config: Config, name: str, wanted: str) -> tuple[DatasetConfig, ReplicaConfig]:
    """The dataset and the one replica that are meant. Raises UsageError."""
    dataset = next((found for found in config.datasets if found.name == name), None)
    if dataset is None:
        names = ", ".join(found.name for found in config.datasets) or "none"
        raise UsageError(f"there is no dataset {name!r}", where=str(config.file), hint=f"configured are: {names}")
    replicas = [found for found in config.replicas_of(dataset) if wanted in ("", found.name)]
    if len(replicas) != 1:
        names = ", ".join(found.name for found in config.replicas_of(dataset)) or "none"
        what = f"dataset {name} has no replica {wanted!r}" if wanted else f"which replica of {name} is meant?"
        hint = f"--from one of: {names}; the one with the newest snapshot (replicad snapshots {name} --from REPLICA)"
        raise UsageError(what, where=str(config.file), hint=hint)
    return dataset, replicas[0]


async def _run(config: Config, dataset: DatasetConfig, replica: ReplicaConfig, json: bool) -> LedgerRebuilt:
    from replicad.work.origin import reading_replica
    from replicad.work.rebuild_ledger import rebuild_ledger

    others = [other.name for other in config.replicas_of(dataset) if other.name != replica.name]
    with output.progress(f"rebuild ledger of {dataset.name}", quiet=json) as bar:

        def show(adopted: Adopted, line: SnapshotLine) -> None:
            bar.total = line.size
            bar.update(adopted.seen_size, f"{adopted.done:,} entries")

        async with reading_replica([replica], config.node.key, dataset.name, output.error) as reader:
            return await rebuild_ledger(dataset, config.node.state, replica.name, others, reader, heard=show)


def _print_ledger(name: str, replica: str, done: LedgerRebuilt) -> None:
    adopted = done.adopted
    kept = f"; the old one is kept as {done.kept.name}" if done.kept else ""
    output.line(f"{name}: ledger rebuilt from snapshot {adopted.snapshot} of {replica}{kept}")
    output.line(
        f"  as recorded  {adopted.entries:,} entries, {adopted.files:,} of them files with"
        f" {output.show_bytes(adopted.size)}: none of it verified yet, the scrub does that"
    )
    for title, count, text in (
        ("changed", adopted.changed, "the next pass reads and replicates them"),
        ("missing", adopted.missing, "the next pass drops them"),
        ("unseen", adopted.unseen, "they could not be looked at, and are read once they can be"),
    ):
        if count:
            output.line(f"  {title:<13}{count:,} entries: {text}")
    for one in adopted.named[:SHOWN]:
        output.line(f"    {one.path}: {one.reason}")
    hidden = adopted.changed + adopted.missing + adopted.unseen - min(SHOWN, len(adopted.named))
    if hidden > 0:
        output.line(f"    … and {hidden:,} more")
    if adopted.lost_records:
        text = f"{replica} has lost {adopted.lost_records} pieces of its record: large files are read and believed"
        output.line(f"  {output.mark('incomplete', 'bad')}: {text}")
    output.line("start the daemon: systemctl start replicad")


# catalogs


def _configured(config: Path) -> Path:
    from replicad.config import load

    listen = load(config, check_files=False).listen
    if listen is None:
        raise UsageError("has no [listen] table: there is no store here", where=str(config), hint="name one: --store")
    return listen.store


def _directories(store: Path, dataset: str) -> list[Path]:
    """The store directories meant. Raises UsageError when there is none."""
    from replicad.store.store import stores_named

    found = stores_named(store, dataset)
    if not found:
        raise UsageError("holds no dataset", where=str(store), hint="there is nothing")
    return found
