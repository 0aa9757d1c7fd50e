"""Coverage: how much of one copy was read again within its deadline, and how old the last look at each place is. Pure.

    Day      one day of one side: the worst that was seen on it
    AgeMap   the whole copy as CELLS stretches of equal size: what was verified longest ago in each
    Mapper   makes a map from parts of any size, one after the other, in bounded memory

**Never** takes a day without a record for a good one: such a day is not in the list, and is shown as unknown.
"""

from __future__ import annotations

import msgspec

CELLS = 512
"""Of a map: eight lines of 64, which a person can still tell apart on paper."""
MAX_DAYS = 400
"""Days that one side keeps: a year and its audit."""
DAY_NS = 86_400 * 10**9


class Day(msgspec.Struct, frozen=True):
    """One day (UTC) of one side, at the moment of that day at which the most was overdue."""

    day: int
    """Days since 1970."""
    at_ns: int
    """When it was looked at last."""
    looks: int
    """How often it was: a quarter of an hour apart while the daemon runs."""
    total_bytes: int
    never_bytes: int
    """Recorded and not verified yet."""
    overdue_bytes: int
    """Verified, but longer ago than `scrub_every`."""
    open: int = 0
    """Open divergences of that side, the most of the day."""
    lost: int = 0
    """Those of them of which no side has the bytes."""

    @property
    def in_time_share(self) -> float:
        """Share of the bytes that were verified within the deadline; of nothing at all everything is."""
        if self.total_bytes <= 0:
            return 1.0
        return max(0.0, 1 - (self.never_bytes + self.overdue_bytes) / self.total_bytes)

    @property
    def overdue_share(self) -> float:
        """Share of the bytes whose verification is overdue."""
        return self.overdue_bytes / self.total_bytes if self.total_bytes > 0 else 0.0

    def with_look(self, later: Day) -> Day:
        """This day after one more look: the one at which more was overdue counts, of two equal ones the later."""
        worse = self if self.overdue_share > later.overdue_share else later
        return msgspec.structs.replace(
            worse,
            at_ns=later.at_ns,
            looks=self.looks + later.looks,
            open=max(self.open, later.open),
            lost=max(self.lost, later.lost),
        )


def day_of(at_ns: int) -> int:
    """The day (UTC) of a moment."""
    return at_ns // DAY_NS


class Cell(msgspec.Struct, array_like=True):
    """One stretch of a copy."""

    bytes: int = 0
    never_bytes: int = 0
    oldest_ns: int = 0
    """When what was verified longest ago in it was verified; 0 = nothing in it ever was."""
    bad: int = 0
    """Open divergences in it."""


class AgeMap(msgspec.Struct, frozen=True):
    """One copy, from its first byte to its last, as stretches of equal size."""

    at_ns: int
    """When this was so."""
    total_bytes: int
    cells: list[Cell]


class Mapper:
    """A map of `total_bytes` under way: parts are added in order."""

    def __init__(self, total_bytes: int, cells: int = CELLS) -> None:
        self._total_bytes = total_bytes
        self._size = max(1.0, total_bytes / cells)
        self._cells = [Cell() for _ in range(cells if total_bytes else 0)]
        self._at_bytes = 0

    def add(self, size: int, never_bytes: int, oldest_ns: int, bad: int = 0) -> None:
        """The next part; `oldest_ns` 0 = it was never verified. One that spans several cells counts in each."""
        start, self._at_bytes = self._at_bytes, self._at_bytes + size
        if not self._cells or size <= 0:
            return
        first, last = self._number(start), self._number(self._at_bytes - 1)
        for number in range(first, last + 1):
            share = self._overlap(number, start) if last > first else size
            self._fill(self._cells[number], share, never_bytes * share // size, oldest_ns)
        self._cells[first].bad += bad

    def finish(self, at_ns: int) -> AgeMap:
        """The map."""
        return AgeMap(at_ns, self._total_bytes, self._cells)

    def _number(self, at_bytes: int) -> int:
        return min(len(self._cells) - 1, int(at_bytes / self._size))

    def _overlap(self, number: int, start: int) -> int:
        """How many bytes of the part that ends here and began at `start` lie in a cell."""
        return max(0, int(min(self._at_bytes, (number + 1) * self._size)) - int(max(start, number * self._size)))

    @staticmethod
    def _fill(cell: Cell, size: int, never_bytes: int, oldest_ns: int) -> None:
        cell.bytes += size
        cell.never_bytes += never_bytes
        if oldest_ns:
            cell.oldest_ns = min(cell.oldest_ns or oldest_ns, oldest_ns)
