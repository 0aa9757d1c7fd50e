"""The verb `rebuild`: catalogs from segments."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from replicad.cli import output
from replicad.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption
from replicad.model.errors import UsageError


def rebuild(
    dataset: Annotated[
        str, typer.Argument(metavar="[DATASET]", help="DATASET or CLIENT/DATASET; all of the store by default.")
    ] = "",
    store: Annotated[
        Path | None, typer.Option("--store", metavar="DIR", help="The store; by default the configuration's.")
    ] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    json: JsonOption = False,
) -> None:
    """Rebuild a replica's catalogs from its segments alone, with the daemon stopped.

    Every frame is read and checked. The old catalog is kept beside the new one; its copies stand in for damaged pieces
    of the record, as far as it can be read. Exit code 1 when damaged frames were found: everything else is there.
    """
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


def _configured(config: Path) -> Path:
    from replicad.config import load

    listen = load(config, check_files=False).listen
    if listen is None:
        raise UsageError("has no [listen] table: there is no store here", where=str(config), hint="name one: --store")
    return listen.store


def _directories(store: Path, dataset: str) -> list[Path]:
    """The store directories meant. Raises UsageError when there is none."""
    every = sorted(path.parent for path in store.glob("*/*/segments"))
    wanted = [d for d in every if dataset in ("", d.name, f"{d.parent.name}/{d.name}")]
    if not wanted:
        names = ", ".join(f"{d.parent.name}/{d.name}" for d in every) or "nothing"
        what = f"holds no dataset {dataset!r}" if dataset else "holds no dataset"
        raise UsageError(what, where=str(store), hint=f"there is {names}")
    return wanted
