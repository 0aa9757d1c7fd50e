"""Sieve: only the entries of a record that somebody wants, each with the directories above it, in their order."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from replicad.model.entry import Kind, Map, Op, Put
from replicad.work.target import split


class Sieve:
    """For one record. Directories that are on the way to something wanted only come when that comes."""

    def __init__(self, wants: Callable[[Put], bool]) -> None:
        """`wants` is asked about each entry once, in the order of the record."""
        self._wants = wants
        self._above: list[tuple[Put, bool]] = []
        """The directories down to where the record is, and whether each was shown."""
        self._shows = False
        """Whether the file whose blocks come is shown."""

    def __call__(self, ops: Iterable[Op]) -> list[Op]:
        """What is shown of these operations."""
        shown: list[Op] = []
        for op in ops:
            if isinstance(op, Map):
                if self._shows:
                    shown.append(op)
            elif isinstance(op, Put):
                self._enter(op)
                self._shows = self._wants(op)
                if self._shows:
                    self._show_above(shown)
                    shown.append(op)
                if op.kind is Kind.DIRECTORY:
                    self._above.append((op, self._shows))
            else:
                shown.append(op)  # no snapshot's record has one: the restore says so
        return shown

    def _enter(self, put: Put) -> None:
        """Leave the directories that this entry does not stand in."""
        directory = split(put.path)[0]
        while self._above and not is_in(directory, self._above[-1][0].path):
            self._above.pop()

    def _show_above(self, shown: list[Op]) -> None:
        for depth, (put, is_shown) in enumerate(self._above):
            if not is_shown:
                shown.append(put)
                self._above[depth] = (put, True)


def is_in(path: bytes, directory: bytes) -> bool:
    """Whether `path` is `directory` or below it; everything is below the root."""
    return not directory or path == directory or path.startswith(directory + b"/")
