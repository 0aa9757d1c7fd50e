"""`replicad divergence list|show|ack`: what was found wrong, why that is believed, and what to type next.

Reads the findings books themselves, so that it works at 3 a.m. with the daemon stopped. What is said about a finding is
cli/explain.py, what to type about it cli/advice.py; here it is laid out for 80 columns, or as JSON.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator, Sequence
from typing import Annotated

import msgspec
import typer

from replicad.cli import offered, output
from replicad.cli.advice import Step, advise
from replicad.cli.books import Book, ask_all, books_of, find
from replicad.cli.explain import Explanation, and_more, explain
from replicad.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption
from replicad.config import load
from replicad.db.findings import MAX_LISTED
from replicad.model.divergence import Divergence, Receipt, Side, State, as_document
from replicad.model.entry import show_path
from replicad.model.errors import UsageError
from replicad.model.verdict import Verdict
from replicad.status import printable
from replicad.system.clock import Clock

LABEL_COLUMNS = 10
"""Where the values of `show` begin."""
MAX_NOTE_CHARACTERS = 1000
FINDING = 1

divergence = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="What was found wrong on either side, why that is believed, and what to type next. Needs no running daemon.",
)

IdArgument = Annotated[str, typer.Argument(metavar="ID", help="Its id, or as much of it as makes it the only one.")]


@divergence.command("list")
def list_divergences(
    dataset: Annotated[
        str,
        typer.Argument(
            metavar="[DATASET]",
            help="DATASET or CLIENT/DATASET; all when left out.",
            autocompletion=offered.on_either_side,
        ),
    ] = "",
    every: Annotated[bool, typer.Option("--all", help="Those that are settled as well.")] = False,
    side: Annotated[Side | None, typer.Option("--side", help="Whose copy is meant.", show_default="both")] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    json: JsonOption = False,
) -> None:
    """List open divergences, oldest first.

    Exit codes: 0 nothing is open, 1 something is, or a book is damaged, 2 usage, 3 a book cannot be read.
    """
    books, state = books_of(load(config, check_files=False), dataset), None if every else State.OPEN
    found, unread = ask_all(books, lambda findings: findings.listed(side=side, state=state))
    found.sort(key=lambda pair: (pair[1].found_ns, pair[1].id))
    if json:
        lines = [as_document(one) | {"name": book.seat.dataset} for book, one in found]
        output.json_document({"divergences": lines, "unread": [str(error) for error in unread]})
    else:
        _print_list(found, every=every)
        for failure in unread:
            output.error(failure)
    if any(one.state is State.OPEN for _, one in found):
        raise typer.Exit(FINDING)
    if unread:
        raise typer.Exit(min(error.exit_code for error in unread))


@divergence.command("show")
def show(id: IdArgument, config: ConfigOption = DEFAULT_CONFIG, json: JsonOption = False) -> None:
    """Explain one divergence: what is broken, what is safe, why that is believed, and what to type next.

    For example: replicad divergence show 7c1e. Exit codes: 0 it is settled, 1 it is open, 2 there is no such one.
    """
    book, found = find(books_of(load(config, check_files=False)), id)
    with book.reading() as findings:
        receipts = findings.receipts(found.id)
    said, steps = explain(found, book.seat, receipts), advise(found, book.seat)
    if json:
        told = {"explanation": _as_document(said, steps), "receipts": [_receipt(one) for one in receipts]}
        output.json_document(as_document(found) | {"name": book.seat.dataset} | told)
    else:
        output.line("\n".join(render(found, said, steps)))
    if found.state is State.OPEN:
        raise typer.Exit(FINDING)


@divergence.command("ack")
def acknowledge(
    id: IdArgument,
    note: Annotated[str, typer.Option(metavar="TEXT", help="Why, for whoever reads it later.")],
    config: ConfigOption = DEFAULT_CONFIG,
    json: JsonOption = False,
) -> None:
    """Take note of a divergence, so that it counts as open no more. Repairs nothing.

    Meant for what is lost, once all that can be saved is saved. Should the damage grow, it is a new divergence.

    For example: replicad divergence ack 7c1e --note "restored from tape"
    """
    if not note.strip() or len(note) > MAX_NOTE_CHARACTERS:
        raise UsageError(f"a note has 1 to {MAX_NOTE_CHARACTERS} characters", where="--note")
    book, found = find(books_of(load(config, check_files=False)), id)
    if found.side is not book.seat.side:
        text = f"{found.id} is in the book of {found.peer}; what stands here only mirrors it"
        raise UsageError(text, hint=f"on {found.peer}: replicad divergence ack {found.id} --note …")
    with book.writing() as findings:
        known = findings.get_exactly(found.id)  # what it is now: the daemon may have settled it meanwhile
        if known is None or known.state is not State.OPEN:
            raise UsageError(f"{found.id} is {known.state if known else 'gone'} already", hint="nothing is to be done")
        what = f"acknowledged by {_who()}: {printable(note.strip())}"
        done = known.with_event(Clock().now_ns(), what, state=State.ACKNOWLEDGED)
        findings.update(done)
    if json:
        output.json_document(as_document(done) | {"name": book.seat.dataset})
    else:
        for line in output.wrapped("", f"{done.id}: {what}", "  "):
            output.line(line)
        for line in output.wrapped("", _what_it_means(done), "  "):
            output.note(line)


def _what_it_means(found: Divergence) -> str:
    if found.is_lost:
        return "it stays on record; the same loss is not reported again"
    if found.verdict is Verdict.INCONCLUSIVE:
        return "nobody knows whether these bytes are good: they are not looked into any more unless they change"
    return f"nothing was repaired, the damage is still there; replicad repair {found.id} could have mended it"


def _who() -> str:
    """The person behind the keyboard, behind sudo too."""
    name = os.environ.get("SUDO_USER", "")
    try:
        return name or pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"user {os.getuid()}"


# how it looks


def _print_list(found: Sequence[tuple[Book, Divergence]], *, every: bool) -> None:
    if not found:
        output.line("no divergence" if every else "no open divergence")
        return
    now_ns = Clock().now_ns()
    output.table(
        ("ID", "DATASET", "FOUND", "STATE" if every else "VERDICT", "WHAT"),
        [_row(book, one, now_ns, every=every) for book, one in found],
    )
    if len(found) >= MAX_LISTED:
        output.note(f"only the first {MAX_LISTED} of a book are listed")
    first = next((one for _, one in found if one.state is State.OPEN), found[0][1])
    output.note(f"-> replicad divergence show {first.id}{found[0][0].seat.options}")


def _row(book: Book, one: Divergence, now_ns: int, *, every: bool) -> tuple[str, ...]:
    age = output.show_duration(max(0, now_ns - one.found_ns) / 1e9) if one.found_ns else "unknown"
    verdict = one.verdict.value + " (lost)" * (one.is_lost and one.verdict is not Verdict.BOTH_ROT)
    state = one.state.value if every else verdict
    style: output.Style = "dim" if one.state is not State.OPEN else "bad"
    style = "warn" if style == "bad" and one.verdict is Verdict.INCONCLUSIVE else style
    where = "" if one.side is book.seat.side else f"on {one.peer}: "
    path = show_path(one.affected[0].path) if one.affected else show_path(one.path)
    what = f"{verdict}, " * every + where + path + and_more(one)
    return (one.id, book.seat.dataset, age, output.mark(state, style), what)


def render(found: Divergence, said: Explanation, steps: Sequence[Step]) -> list[str]:
    """The lines of `divergence show`."""
    style: output.Style = "bad" if found.state is State.OPEN else "ok"
    lines = [output.mark(line, style) for line in output.wrapped("", said.headline, "  ")]
    if said.means:
        lines += output.wrapped("", said.means, "")
    sections = (("safe", said.safe), ("affected", said.affected), ("why", said.why), ("history", said.history))
    for title, texts in sections:
        lines += ["", *_section(title, texts)] if texts else []
    lines += ["", *_next(steps), "", _last_line(found)]
    return lines


def _section(title: str, texts: Sequence[str]) -> Iterator[str]:
    indent = " " * LABEL_COLUMNS
    for number, text in enumerate(texts):
        yield from output.wrapped(indent if number else f"{title:<{LABEL_COLUMNS}}", text, indent + "  ")


def _next(steps: Sequence[Step]) -> Iterator[str]:
    """Commands stand on lines of their own and unbroken, to be copied."""
    indent = " " * LABEL_COLUMNS
    for number, step in enumerate(steps):
        where = printable(f"on {step.on}: ") if step.on else ""
        command = output.mark(printable(step.command), "bold")
        yield (indent if number else f"{'next':<{LABEL_COLUMNS}}") + where + command
        yield from output.wrapped(indent + "  ", step.why, indent + "  ")


def _last_line(found: Divergence) -> str:
    peer = f", {found.peer}" if found.peer else ""
    text = f"divergence {found.id}: {found.verdict}, {found.state}, side {found.side}{peer}"
    return output.mark(printable(text), "dim")


def _as_document(said: Explanation, steps: Sequence[Step]) -> dict[str, object]:
    document: dict[str, object] = msgspec.to_builtins(said)
    return document | {"next": [msgspec.to_builtins(step) for step in steps]}


def _receipt(receipt: Receipt) -> dict[str, object]:
    document: dict[str, object] = msgspec.to_builtins(receipt, builtin_types=(bytes,))
    hexed = {"before": receipt.before.hex(), "after": receipt.after.hex()}
    return document | hexed | {"path": show_path(receipt.path)}
