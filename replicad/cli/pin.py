"""`replicad pin add|list|remove`: keep a snapshot under a name, whatever the rules of retention say. On the replica.

Reads and writes the findings books of the stores, beside a running daemon; a pin is durable when the command returns.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
import typer

from replicad.cli import offered, output
from replicad.cli.books import Book, ask_all, books_of
from replicad.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption
from replicad.config import Config, load
from replicad.db.findings import Findings
from replicad.model.divergence import Side
from replicad.model.errors import UsageError
from replicad.model.pairing import parse_name
from replicad.model.retention import Pin
from replicad.model.when import LATEST
from replicad.system.clock import Clock, format_ns

pin = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Pins keep snapshots whatever the rules of retention say, until they are removed. Typed on the replica.",
)

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Such as before-upgrade.")]
DatasetArgument = Annotated[
    str, typer.Argument(metavar="DATASET", help="DATASET or CLIENT/DATASET.", autocompletion=offered.stored)
]


@pin.command("add")
def add(
    name: NameArgument,
    dataset: DatasetArgument,
    at: Annotated[str, typer.Option("--at", metavar="WHEN", help="latest, a number, or a time.")] = LATEST,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why, for whoever finds the pin.")] = "",
    config: ConfigOption = DEFAULT_CONFIG,
    json: JsonOption = False,
) -> None:
    """Keep a snapshot under a name until the pin is removed.

    For example: replicad pin add before-upgrade www --reason "ticket 4711".

    Exit codes: 0 it is kept, 2 there is no such snapshot, or the name is taken for another one, 3 the store cannot be
    read.
    """
    from replicad.model.when import choose_snapshot
    from replicad.work.archive_reader import ArchiveReader

    try:
        parse_name(name)
    except ValueError as error:
        raise UsageError(str(error), where="NAME") from None
    if not reason.isprintable():
        raise UsageError("holds a control character", where="--reason")
    book = _one(load(config, check_files=False), dataset)
    reader = ArchiveReader(book.path.parent)
    try:
        chosen, notice = choose_snapshot(reader.snapshots(), at)
        made = Pin(name, chosen.number, Clock().now_ns(), reason)
        with book.writing() as findings:
            had_it = any(one.name == name for one in findings.pins())
            findings.add_pin(made)
            if chosen.number not in {line.number for line in reader.snapshots()}:
                if not had_it:
                    findings.remove_pin(name)
                raise UsageError(f"snapshot {chosen.number} was dropped just before", hint="pin another one")
    finally:
        reader.close()
    if json:
        output.json_document(_document(book, made))
        return
    if notice:
        output.note(notice)
    output.line(f"{book.seat.dataset}: snapshot {made.snapshot} is kept as {name} until: replicad pin remove {name}")


@pin.command("list")
def list_pins(
    dataset: Annotated[
        str, typer.Argument(metavar="[DATASET]", help="All when left out.", autocompletion=offered.stored)
    ] = "",
    config: ConfigOption = DEFAULT_CONFIG,
    json: JsonOption = False,
) -> None:
    """List all pins."""
    found, unread = ask_all(_books(load(config, check_files=False), dataset), Findings.pins)
    if json:
        lines = [_document(book, one) for book, one in found]
        output.json_document({"pins": lines, "unread": [str(error) for error in unread]})
    else:
        _print_list(found)
        for failure in unread:
            output.error(failure)
    if unread:
        raise typer.Exit(min(error.exit_code for error in unread))


@pin.command("remove")
def remove(
    name: NameArgument,
    dataset: DatasetArgument,
    config: ConfigOption = DEFAULT_CONFIG,
    json: JsonOption = False,
) -> None:
    """Keep it under this name no more; the rules decide from here on. Exit code 2 when there is no such pin."""
    book = _one(load(config, check_files=False), dataset)
    with book.writing() as findings:
        if not findings.remove_pin(name):
            names = ", ".join(one.name for one in findings.pins()) or "none"
            raise UsageError(f"{book.seat.dataset} has no pin {name!r}", hint=f"its pins: {names}")
    if json:
        output.json_document({"dataset": book.seat.dataset, "removed": name})
    else:
        output.line(f"{book.seat.dataset}: {name} is removed; the rules of retention decide from here on")


def _books(config: Config, dataset: str) -> list[Book]:
    if config.listen is None:
        raise UsageError("pins are kept by the replica, and this node is none", hint="type it on the replica")
    return [book for book in books_of(config, dataset) if book.seat.side is Side.REPLICA]


def _one(config: Config, dataset: str) -> Book:
    books = _books(config, dataset)
    if len(books) != 1:
        names = ", ".join(book.seat.dataset for book in books) or "none"
        raise UsageError(f"which store of {dataset!r} is meant?", hint=f"write CLIENT/DATASET, one of: {names}")
    return books[0]


def _document(book: Book, one: Pin) -> dict[str, object]:
    document: dict[str, object] = msgspec.to_builtins(one)
    return {"dataset": book.seat.dataset} | document


def _reason(one: Pin) -> str:
    return f"asked for by {one.asked_by}: {one.reason}" if one.asked_by else one.reason


def _print_list(found: list[tuple[Book, Pin]]) -> None:
    if not found:
        output.line("nothing is pinned")
        return
    output.table(
        ("NAME", "DATASET", "SNAPSHOT", "SINCE", "REASON"),
        [(one.name, book.seat.dataset, str(one.snapshot), format_ns(one.at_ns), _reason(one)) for book, one in found],
    )
