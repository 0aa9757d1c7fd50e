"""Crew: child processes of one kind, of which the one with the least to do is chosen.

**Owns** how many there may be. When they are ended is for whoever has the crew to say.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from replicad.system.child import Doer


@dataclass(slots=True, eq=False)
class Member:
    """One process."""

    child: Doer
    tasks: int = 0
    """What it has to do now; counted by whoever gives it something."""


class Crew:
    """All processes of one kind."""

    def __init__(self, start: Callable[[], Doer], most: int) -> None:
        self._start, self._most = start, most
        self._members: list[Member] = []

    def choose(self) -> Member:
        """The one with the fewest tasks; a fresh one while all are busy and there may be more."""
        best = min(self._members, key=lambda one: one.tasks, default=None)
        if best is None or (best.tasks and len(self._members) < self._most):
            best = Member(self._start())
            self._members.append(best)
        return best

    @property
    def is_busy(self) -> bool:
        """Whether any of them has something to do."""
        return any(one.tasks for one in self._members)

    @property
    def pids(self) -> list[int]:
        """Process ids of those that run."""
        return [pid for one in self._members if (pid := one.child.pid)]

    async def thin_out(self, kept: int) -> None:
        """End those without a task, but for so many of them. From here on none of them is chosen: ending takes time."""
        idle = [one for one in self._members if not one.tasks][kept:]
        self._members = [one for one in self._members if one not in idle]
        try:
            while idle:
                await idle[-1].child.close()
                idle.pop()
        finally:
            self._members += idle  # cancelled: somebody ends them later

    async def close(self) -> None:
        """End all of them."""
        members, self._members = self._members, []
        for one in members:
            await one.child.close()
