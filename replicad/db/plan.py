"""Plan: what a pass has to do, step by step: a temporary table beside the ledger, for as long as its connection lives.

**Owns** the steps and their order. A million of them need no memory, and guards can judge them all before the first one
is taken. **Never** outlives a restart: the next survey makes a new one.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

from replicad.db.database import Database


class Action(IntEnum):
    """What a pass has to do about one path."""

    READ = 1
    """A regular file whose bytes must be read."""
    SAME = 2
    """A regular file whose identity is recorded under another path: renamed or linked, not rewritten."""
    DESCRIBE = 3
    """Anything that has no blocks."""
    DROP = 4
    """A path that exists no more."""
    AGAIN = 5
    """A regular file that is recorded without an attribute that could not be read: that is looked for again."""


_ACTIONS = {int(action): action for action in Action}
"""By number: several times faster than the enumeration's constructor, and it is needed for every step."""


class Step(NamedTuple):
    """One line of a pass's plan."""

    phase: int
    number: int
    action: Action
    path: bytes
    size: int
    links: int
    known: bool
    """Whether the ledger has an entry at this path."""
    moved: bool = False
    """Whether it is a new path of a recorded file whose content was not written by the look of it."""


class Plan:
    """The steps of one pass. Belongs to the ledger's thread, inside its transactions."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def begin(self) -> None:
        """Start an empty plan."""
        self._db.execute("DROP TABLE IF EXISTS temp.plan")
        self._db.execute(
            "CREATE TEMP TABLE plan(phase INTEGER, number INTEGER, action INTEGER, path BLOB, size INTEGER,"
            " links INTEGER, known INTEGER, moved INTEGER, PRIMARY KEY(phase, number)) WITHOUT ROWID"
        )

    def add(self, steps: Sequence[Step]) -> None:
        """Add steps; (phase, number) orders them."""
        self._db.insert("INSERT INTO temp.plan", "(?,?,?,?,?,?,?,?)", steps)

    def steps(self, phase: int, after: int, limit: int) -> list[Step]:
        """The next steps of a phase with numbers above `after`."""
        rows = self._db.all(
            "SELECT phase, number, action, path, size, links, known, moved FROM temp.plan"
            " WHERE phase = ? AND number > ? ORDER BY number LIMIT ?",
            (phase, after, limit),
        )
        return [Step(phase, number, _ACTIONS[action], *rest) for phase, number, action, *rest in rows]
