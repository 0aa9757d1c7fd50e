"""`replicad suspects list|release`: changes that were replicated and look like damage, on the replica that keeps them.

The version before such a change is pinned against expiry until a person has looked. Reads and writes the findings books
of the stores, beside a running daemon.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated

import msgspec
import typer

from replicad.cli import offered, output
from replicad.cli.books import Book, ask_all, books_of
from replicad.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption
from replicad.config import Config, load
from replicad.db.findings import MAX_LISTED, Findings
from replicad.model.divergence import SUSPECT_KINDS, Side, Suspect
from replicad.model.entry import show_path
from replicad.model.errors import UsageError
from replicad.system.clock import Clock

FINDING = 1
_NUMBER = re.compile("[0-9]{1,18}")

suspects = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Changes that look like damage. Typed on the replica; the version before each is kept until it is released.",
)


@suspects.command("list")
def list_suspects(
    dataset: Annotated[
        str,
        typer.Argument(
            metavar="[DATASET]", help="DATASET or CLIENT/DATASET; all when left out.", autocompletion=offered.stored
        ),
    ] = "",
    config: ConfigOption = DEFAULT_CONFIG,
    json: JsonOption = False,
) -> None:
    """List suspect changes that wait for a person, oldest first.

    Exit codes: 0 none waits, 1 some do, or a book is damaged, 2 usage, 3 a book cannot be read.
    """
    found, unread = ask_all(_books(load(config, check_files=False), dataset), Findings.suspects)
    if json:
        lines = [as_document(book, one) for book, one in found]
        output.json_document({"suspects": lines, "unread": [str(error) for error in unread]})
    else:
        _print_list(found)
        for failure in unread:
            output.error(failure)
    if found:
        raise typer.Exit(FINDING)
    if unread:
        raise typer.Exit(min(error.exit_code for error in unread))


@suspects.command("release")
def release(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[DATASET] NUMBER...",
            help="Numbers as `suspects list` shows them, of one dataset.",
            autocompletion=offered.stored,
        ),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All that wait, of DATASET or of every dataset.")] = False,
    config: ConfigOption = DEFAULT_CONFIG,
    json: JsonOption = False,
) -> None:
    """Say that a person has looked: these changes are as they should be. The version before is pinned no more.

    For example: replicad suspects release www 3 4, or: replicad suspects release www --all.
    """
    numbers, dataset = _meant(words or [], every=every)
    books = _books(load(config, check_files=False), dataset)
    if not every:
        books = [_book_with(books, numbers)]
    released = {}
    for book in books:
        with book.writing() as findings:
            released[book.seat.dataset] = findings.release_suspects(None if every else numbers, Clock().now_ns())
    if json:
        output.json_document({"released": released})
        return
    for name, count in released.items():
        output.line(f"{name}: {count} released" if count else f"{name}: none was waiting")


def _meant(words: Sequence[str], *, every: bool) -> tuple[list[int], str]:
    """Numbers, and the name of a dataset or ""; a dataset whose name is a number is written CLIENT/NAME."""
    numbers = [int(word) for word in words if _NUMBER.fullmatch(word)]
    names = [word for word in words if not _NUMBER.fullmatch(word)]
    if len(names) > 1:
        raise UsageError(f"{names[1]!r} is no number", hint="release those of one dataset at a time")
    if every == bool(numbers):
        raise UsageError("name numbers or --all, one of the two", hint="replicad suspects list shows the numbers")
    return numbers, names[0] if names else ""


def _books(config: Config, dataset: str) -> list[Book]:
    """The books of the stores here. Raises UsageError at a node that keeps none."""
    if config.listen is None:
        replicas = ", ".join(replica.name for replica in config.replicas)
        raise UsageError(
            "suspect changes are kept by the replica, and this node is none",
            hint=f"on {replicas}: replicad suspects list" if replicas else "type it on the replica",
        )
    return [book for book in books_of(config, dataset) if book.seat.side is Side.REPLICA]


def _book_with(books: Sequence[Book], numbers: Sequence[int]) -> Book:
    """The one book that has all these numbers waiting. Raises UsageError."""
    holding = []
    for book in books:
        with book.reading() as findings:
            if set(numbers) <= {one.number for one in findings.suspects()}:
                holding.append(book)
    if len(holding) != 1:
        names = ", ".join(book.seat.dataset for book in holding)
        what = f"these numbers wait in {names}" if holding else "these numbers do not all wait in one dataset"
        raise UsageError(what, hint="name the dataset: replicad suspects release DATASET NUMBER…")
    return holding[0]


def as_document(book: Book, one: Suspect) -> dict[str, object]:
    """A suspect change as `--json` shows it."""
    document: dict[str, object] = msgspec.to_builtins(one, builtin_types=(bytes,))
    return document | {"name": book.seat.dataset, "path": show_path(one.path), "what": SUSPECT_KINDS.get(one.kind, "")}


def _print_list(found: Sequence[tuple[Book, Suspect]]) -> None:
    if not found:
        output.line("no suspect change waits")
        return
    output.table(
        ("NUMBER", "DATASET", "KIND", "SNAPSHOT", "KEPT", "PATH"),
        [
            (str(one.number), book.seat.dataset, one.kind, str(one.snapshot), str(one.before), show_path(one.path))
            for book, one in found
        ],
    )
    for kind in sorted({one.kind for _, one in found} & set(SUSPECT_KINDS)):
        output.note(f"{kind}: {SUSPECT_KINDS[kind]}")
    if len(found) >= MAX_LISTED:
        output.note(f"only the first {MAX_LISTED} of a book are listed")
    book, one = found[0]
    name, options = book.seat.dataset, book.seat.options
    output.note(f"-> the version before: replicad restore {name} DIRECTORY --at {one.before} --path PATH{options}")
    output.note(f"-> when it is as it should be: replicad suspects release {name} {one.number}{options}")
