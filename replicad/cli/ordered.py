"""Which of a dataset's data a restore brings back first, and how a person says so.

`--first` counts most, then `--order`, then the configuration of this host; else what the primary's last commit says,
which travels with the data.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from replicad.cli import output
from replicad.model.errors import UsageError
from replicad.model.order import NO_ORDER, Order, RestoreClass, decode_order_untrusted, first_of

if TYPE_CHECKING:
    from replicad.config import Config
    from replicad.work.reader import HistoryReader

FirstOption = Annotated[
    list[str] | None,
    typer.Option("--first", metavar="GLOB", help="Restore what matches before all else; repeated, in turn."),
]
OrderOption = Annotated[
    Path | None,
    typer.Option("--order", metavar="FILE", help="Take the restore order from this configuration or list."),
]


def order_of(dataset: str, config: Config | None, first: Sequence[str], file: Path | None) -> Order | None:
    """The order that the command line or the configuration means; None when neither knows. Raises UsageError."""
    if first and file:
        raise UsageError("--first and --order exclude one another")
    try:
        if first:
            return Order(first_of(first))
        if file:
            return Order(_from_file(file, dataset))
    except ValueError as error:
        raise UsageError(str(error), where=str(file) if file else "--first") from None
    known = next((one for one in config.datasets if one.name == dataset), None) if config else None
    return Order(known.restore_order) if known else None


async def order_from(reader: HistoryReader) -> Order:
    """The order that came with the data; one that makes no sense is told and passed over."""
    try:
        return decode_order_untrusted(await reader.order())
    except ValueError as error:
        output.note(f"the restore order of {reader.name} is passed over: {error}")
        return NO_ORDER


def _from_file(file: Path, dataset: str) -> tuple[RestoreClass, ...]:
    """Of a whole configuration its dataset's order, or that of a file with [[restore_order]] tables alone."""
    try:
        document = tomllib.loads(file.read_text())
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}", where=str(file)) from error
    found = document.get("restore_order")
    if found is None:
        found = _tables_of(document, dataset.rpartition("/")[2])
    if not found:
        text = f"has no [[restore_order]], and no [[dataset.restore_order]] of {dataset}"
        raise UsageError(text, where=str(file), hint="docs/RESTORE.md shows both forms")
    return msgspec.convert(found, tuple[RestoreClass, ...])


def _tables_of(document: dict[str, Any], dataset: str) -> object:
    datasets = document.get("dataset")
    for one in datasets if isinstance(datasets, list) else ():
        if isinstance(one, dict) and one.get("name") == dataset:
            return one.get("restore_order")
    return None
