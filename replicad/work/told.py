"""Told: a finding in the size in which it travels.

A finding grows with its history, and with what it touches; a message and the book of the other side do not. What is
left out is the middle of long lists and the end of long texts; counts and what the verdict rests on stay.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import msgspec

from replicad.model.divergence import MAX_AFFECTED, MAX_BITS, MAX_BLOCKS_NAMED, Affected, Divergence, Event, Look
from replicad.status import printable

TEXT_CHARACTERS = 300
"""Longest sentence about a finding that is told: no error of ours is longer."""
PATHS_BYTES = 32 * 1024
"""Names of affected files that are told, together; a path may have 4 KiB."""
LINES = 100
"""Lines of history, and looks, that are told."""

Line = TypeVar("Line", Event, Look)


def told(found: Divergence) -> Divergence:
    """`found` in less than a quarter of a MiB."""
    looks = [msgspec.structs.replace(look, reason=_text(look.reason)) for look in _lines(found.looks)]
    events = [msgspec.structs.replace(event, what=_text(event.what)) for event in _lines(found.events)]
    return msgspec.structs.replace(
        found,
        what=_text(found.what),
        blocks=found.blocks[:MAX_BLOCKS_NAMED],
        mended=found.mended[: max(0, MAX_BLOCKS_NAMED - len(found.blocks))],
        bit_positions=found.bit_positions[:MAX_BITS],
        affected=tuple(_affected(found.affected)),
        looks=tuple(looks),
        events=tuple(events),
    )


def _lines(lines: tuple[Line, ...]) -> tuple[Line, ...]:
    return lines if len(lines) <= LINES else lines[:1] + lines[1 - LINES :]


def _text(text: str) -> str:
    return printable(text[:TEXT_CHARACTERS])


def _affected(affected: Iterable[Affected]) -> Iterable[Affected]:
    size = 0
    for number, one in enumerate(affected):
        size += len(one.path)
        if number >= MAX_AFFECTED or size > PATHS_BYTES:
            return
        yield one
