"""Output: everything that a verb prints. Sole owner of printing.

Results go to stdout, remarks and errors to stderr, so that `line=$(replicad …)` and `| jq` get the result alone.
Colours and progress bars appear on a terminal only; a file or a pipe gets the same words without them. Rich is
imported only when a progress bar is drawn: a light verb never pays for it.
"""

from __future__ import annotations

import os
import re
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NoReturn, Protocol, TextIO

import msgspec
import typer

from replicad.model.errors import ConfigError, ReplicadError
from replicad.model.show import counted as counted
from replicad.model.show import show_bytes as show_bytes
from replicad.status import encodable, printable, to_json

COLUMNS = 80
EXIT_PIPE_CLOSED = 141
"""What shells show for a process whose reader went away (128 + SIGPIPE)."""
PROGRESS_LINE_S = 10.0
"""Between two lines of progress where there is no terminal: alive in a log, without flooding it."""
_REFRESH_HZ = 4
_STYLES = {"ok": "32", "warn": "33", "bad": "1;31", "dim": "2", "bold": "1"}
_ESCAPE = re.compile("\x1b\\[[0-9;]*m")
_COMMAND = re.compile("replicad [a-z][^,;:()]*")
"""A command within a sentence, up to what ends it."""
_JOINED = "\0"
"""Stands for a space at which no line may end; no printable text has it."""


def line(text: str = "") -> None:
    """Print `text` and a newline to stdout."""
    _write(sys.stdout, text + "\n")


def note(text: str) -> None:
    """Print `text` and a newline to stderr: for the person, not for the script."""
    _write(sys.stderr, text + "\n")


def error(failure: ReplicadError) -> None:
    """Print an error: one line; of an invalid configuration, one line for each problem."""
    if isinstance(failure, ConfigError):
        note("\n".join(map(str, failure.problems)))
    else:
        note(f"replicad: {failure}")


def json_document(value: object) -> None:
    """Print one JSON document of Structs, dataclasses, dicts, lists and plain values."""
    line(msgspec.json.format(to_json(value, _plain)).decode())


def json_line(value: object) -> None:
    """Print one JSON value on a line of its own, for streams of events."""
    line(to_json(value, _plain).decode())


class JsonStream:
    """One JSON document with a list of any length in it, printed as it comes. What is cut off is no valid JSON."""

    def __init__(self, key: str, head: dict[str, object]) -> None:
        """Print `head`, and begin the list under `key`."""
        self._separator = "\n"
        opened = to_json(head, _plain).decode().removesuffix("}")
        _write(sys.stdout, f'{opened}{"," if head else ""}"{key}":[')

    def add(self, values: Sequence[object]) -> None:
        """Print more elements of the list, one a line."""
        for value in values:
            _write(sys.stdout, self._separator + to_json(value, _plain).decode())
            self._separator = ",\n"

    def end(self, tail: dict[str, object]) -> None:
        """End the list, and print `tail`."""
        closed = to_json(tail, _plain).decode().removeprefix("{")
        _write(sys.stdout, f"\n]{',' if tail else ''}{closed}\n")


def data(content: bytes | bytearray | memoryview) -> None:
    """Write bytes to stdout as they are."""
    left = memoryview(content)
    try:
        while left:  # an unbuffered stdout may take a part of it
            left = left[sys.stdout.buffer.write(left) :]
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        _close_pipe(sys.stdout)


Style = Literal["ok", "warn", "bad", "dim", "bold"]


def mark(text: str, style: Style) -> str:
    """`text` in a colour where stdout is a terminal that shows colours, unchanged otherwise."""
    return f"\x1b[{_STYLES[style]}m{text}\x1b[0m" if _shows_colours(sys.stdout) else text


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under `headers` in aligned columns; cells may carry marks."""
    cells = [[mark(header, "bold") for header in headers], *rows]
    widths = [max(_width(row[column]) for row in cells) for column in range(len(headers))]
    for row in cells:
        padded = [cell + " " * (width - _width(cell)) for cell, width in zip(row, widths, strict=True)]
        line("  ".join(padded).rstrip())


def wrapped(first: str, text: str, later: str) -> list[str]:
    """`text` behind `first`, further lines behind `later`: COLUMNS wide, but a word or a command of replicad is never
    broken. Control characters, which a peer's text or a file's name may hold, become "?"."""
    lines = textwrap.wrap(
        _COMMAND.sub(lambda command: command[0].replace(" ", _JOINED), printable(text)),
        COLUMNS,
        initial_indent=first,
        subsequent_indent=later,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line.replace(_JOINED, " ") for line in lines]


def show_rate(bytes_s: float) -> str:
    """A rate for people: "20.1 MiB/s"."""
    return f"{show_bytes(bytes_s)}/s"


def show_counts(counts: dict[str, int]) -> str:
    """Entries by kind for people: "1 directory, 1,024 files"."""
    kinds = [(kind.replace("_", " "), count) for kind, count in sorted(counts.items()) if count]
    return ", ".join(counted(count, _ONE.get(kind, kind.removesuffix("s")), kind) for kind, count in kinds) or "nothing"


_ONE = {"directories": "directory"}
"""Of kinds that have no plural in s alone: what one is called."""


def entries(count: int) -> str:
    """So many entries."""
    return counted(count, "entry", "entries")


def show_duration(seconds: float) -> str:
    """A duration for people, in its two largest units: "3m 20s"."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    whole, parts = round(seconds), list[str]()
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, whole = divmod(whole, length)
        if count or parts:
            parts.append(f"{count}{unit}")
    return " ".join(parts[:2])


class Progress(Protocol):
    """How far something is. `total` is in bytes, 0 while it is unknown, and may be set later."""

    total: int

    def update(self, done: int, text: str = "") -> None:
        """Say that `done` bytes of `total` are done; `text` stands behind the figures."""


@contextmanager
def progress(title: str, total: int = 0, *, quiet: bool = False) -> Iterator[Progress]:
    """Show progress on stderr while the block runs: on a terminal a bar with rate and time left, else lines."""
    if quiet:
        yield _Silence(total)
    elif _is_terminal(sys.stderr):
        with _bar(title, total) as shown:
            yield shown
    else:
        yield _Lines(title, total)


class _Silence:
    def __init__(self, total: int) -> None:
        self.total = total

    def update(self, done: int, text: str = "") -> None:
        """Nothing to show."""


class _Lines:
    """Progress as plain lines, one every PROGRESS_LINE_S."""

    def __init__(self, title: str, total: int) -> None:
        self.total = total
        self._title = title
        self._started = self._shown = time.monotonic()

    def update(self, done: int, text: str = "") -> None:
        now = time.monotonic()
        if now - self._shown < PROGRESS_LINE_S:
            return
        self._shown = now
        rate = done / (now - self._started)
        parts = [f"{show_bytes(done)} of {show_bytes(self.total)}" if self.total else show_bytes(done), show_rate(rate)]
        if self.total > done and rate:
            parts.append(f"{show_duration((self.total - done) / rate)} left")
        note(f"{self._title}: " + ", ".join([*parts, text] if text else parts))


@contextmanager
def _bar(title: str, total: int) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}", markup=False),
    )
    with RichProgress(*columns, console=Console(stderr=True), refresh_per_second=_REFRESH_HZ) as bar:
        yield _Bar(bar, bar.add_task(title, total=total or None, text=""), total)


class _Bar:
    """Progress as a bar on a terminal."""

    def __init__(self, bar: Any, task: Any, total: int) -> None:
        self.total = total
        self._bar, self._task = bar, task

    def update(self, done: int, text: str = "") -> None:
        self._bar.update(self._task, completed=done, total=self.total or None, text=text)


def _write(stream: TextIO, text: str) -> None:
    try:
        try:
            stream.write(text)
        except UnicodeEncodeError:  # a name that is no UTF-8: nothing of the text was written
            stream.write(encodable(text))
        stream.flush()
    except BrokenPipeError:
        _close_pipe(stream)


def _close_pipe(stream: TextIO) -> NoReturn:
    """The reader has seen enough. What is still buffered must not fail again when the interpreter ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    raise typer.Exit(EXIT_PIPE_CLOSED) from None


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _width(cell: str) -> int:
    return len(_ESCAPE.sub("", cell))


def _is_terminal(stream: TextIO) -> bool:
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def _shows_colours(stream: TextIO) -> bool:
    return _is_terminal(stream) and not os.environ.get("NO_COLOR")
