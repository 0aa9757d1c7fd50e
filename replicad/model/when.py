"""When: which snapshot a person means by `latest`, a number or a time. Pure.

Owns the rule: the newest *complete* snapshot at or before the moment asked for; only where there is none, the newest
partial one, with a notice. What was made last has the highest number, whatever the primary's clock said: `latest` goes
by that, and a time by the clock. A number is taken literally. Never guesses: whatever matches nothing is a UsageError
that lists what exists.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Protocol, TypeVar

from replicad.model.errors import UsageError
from replicad.model.show import counted

LATEST = "latest"
MAX_LISTED = 10
"""Snapshots that an error names; `replicad snapshots` shows all."""

_SECOND_NS = 1_000_000_000
_NUMBER = re.compile(r"[0-9]{1,19}")
_TIME = re.compile(r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d(?::\d\d(?:\.\d+)?)?)([Zz]|[+-]\d\d:\d\d)")


class Listed(Protocol):
    """What this module needs to know of a snapshot."""

    @property
    def number(self) -> int: ...
    @property
    def created_ns(self) -> int: ...
    @property
    def complete(self) -> bool: ...
    @property
    def unread(self) -> int: ...


S = TypeVar("S", bound=Listed)


def choose_snapshot(lines: Sequence[S], when: str = LATEST) -> tuple[S, str]:
    """The snapshot of `lines` (ascending by number) that `when` means, and a notice for the operator or "".

    `when` is "latest", a snapshot number, or an RFC 3339 time, compared with the moment the snapshot's pass began; a
    time without a fraction stands for that whole second, as `replicad snapshots` prints it.
    Raises UsageError naming what exists.
    """
    if not lines:
        raise UsageError("there is no snapshot yet", hint="wait for the first pass, or run: replicad sync --wait")
    if _NUMBER.fullmatch(when):
        return _by_number(lines, int(when))
    moment_ns = None if when == LATEST else parse_time(when)
    candidates = [line for line in lines if moment_ns is None or line.created_ns <= moment_ns]
    if not candidates:
        raise UsageError(f"no snapshot is as old as {when}", hint=_existing(lines))
    complete = [line for line in candidates if line.complete]
    chosen = max(complete or candidates, key=lambda line: (0 if moment_ns is None else line.created_ns, line.number))
    newer = max(candidates, key=lambda line: line.number)
    return chosen, _notice(chosen, newer)


def would_take_newer(lines: Sequence[Listed], when: str) -> bool:
    """Whether `when` would mean a snapshot newer than all of `lines`, if there were one. Raises UsageError."""
    return when == LATEST or (not _NUMBER.fullmatch(when) and lines[-1].created_ns <= parse_time(when))


def parse_time(text: str) -> int:
    """An RFC 3339 time as the last ns since 1970 that it covers. Raises UsageError."""
    match = _TIME.fullmatch(text)
    try:
        if not match:
            raise ValueError("it is neither 'latest', a number nor a time")
        date, clock, zone = match.groups()
        offset = "+00:00" if zone in "Zz" else zone
        whole, _, fraction = clock.partition(".")
        seconds = int(datetime.fromisoformat(f"{date}T{whole}{offset}").timestamp())
    except ValueError as error:
        hint = "use latest, a number, or a time with its offset such as 2026-01-31T18:00:00Z"
        raise UsageError(f"cannot read the time {text!r}: {error}", hint=hint) from None
    covered_s = 1 if whole.count(":") == 2 else 60
    end_ns = int(fraction[:9].ljust(9, "0")) if fraction else covered_s * _SECOND_NS - 1
    return seconds * _SECOND_NS + end_ns


def show_time(time_ns: int) -> str:
    """RFC 3339 in UTC with seconds."""
    return datetime.fromtimestamp(time_ns // _SECOND_NS, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _by_number(lines: Sequence[S], number: int) -> tuple[S, str]:
    for line in lines:
        if line.number == number:
            return line, _notice(line, line)
    raise UsageError(f"there is no snapshot {number}", hint=_existing(lines))


def _notice(chosen: Listed, newer: Listed) -> str:
    if not chosen.complete:
        missing = f"; {counted(chosen.unread, 'entry', 'entries')} could not be copied" if chosen.unread else ""
        return (
            f"snapshot {chosen.number} is partial: it shows the dataset in the middle of a pass, "
            f"or a pass that could not copy everything{missing}"
        )
    if newer.number > chosen.number:
        partial = "" if newer.complete else "but partial "
        return f"a newer {partial}snapshot {newer.number} exists; name that number to take it"
    return ""


def _existing(lines: Sequence[Listed]) -> str:
    shown = [f"{line.number} ({show_time(line.created_ns)}{'' if line.complete else ', partial'})" for line in lines]
    if len(shown) > MAX_LISTED:
        shown = [shown[0], "…", *shown[2 - MAX_LISTED :]]
    return "there are: " + ", ".join(shown)
