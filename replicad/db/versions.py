"""Versions: what stood at one path over all snapshots, and under which other names it stood before.

Every question goes along an index: the cost is that of the path's own history, whatever else the store holds. A rename
is known by the number of the file, which it keeps; a directory has none, so the files in it tell where it was.
What only dropped snapshots showed is as if it had never been, whether its rows have gone yet or not.
**Never** guesses: a file that cannot be told from a new one counts as new.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from typing import NamedTuple

from replicad.db.contents import NOT_KNOWN, NOTHING, Changed, changed, sized, written
from replicad.db.database import Database, Row
from replicad.db.entries import CUT_COLUMNS, in_batches, is_cut, length_of, put_of, whole
from replicad.db.paths import path_of, place_of
from replicad.model.entry import Kind, Put
from replicad.model.travel import Moment, Version

COMPARED_BLOCKS = 32_768
"""Blocks of two different files that are compared for one version: a dump of many gigabytes that is written anew every
night would cost seconds for each night."""
NEVER = 2**62
"""An ordinal beyond all."""
WITNESSES = 4
"""Entries of a directory that are asked where it was before."""
_COLUMNS = f"{CUT_COLUMNS}, directory, name, born, died"
_ENDED = "died > ?1 AND died <= ?2 AND born <= ?1"
"""What the last snapshot before a window shows and the one at its end does not."""


class _State(NamedTuple):
    """One row of the catalog: an entry through some snapshots."""

    directory: int
    name: bytes
    born: int
    died: int | None
    put: Put
    is_cut: bool


class Versions:
    """Questions to one catalog."""

    def __init__(self, database: Database) -> None:
        self._db = database
        self._paths: dict[int, bytes] = {}
        self._written: tuple[int, dict[int, tuple[int, int]]] = (0, {})

    def of(self, path: bytes) -> Iterator[list[Version]]:
        """All versions of a path, those under the names that it had before included, newest first, in short lists."""
        return in_batches(self._of(path), lambda version: 2 * length_of(version.put) + 100)

    def _of(self, path: bytes) -> Iterator[Version]:
        place = place_of(self._db, path)
        waiting = [(-state.born, state) for state in self._states(*place)] if place else []
        seen = {state[:3] for _, state in waiting}
        heapify(waiting)
        while waiting:
            _, state = heappop(waiting)
            window = self._window(state)
            if window is None:
                continue  # no snapshot shows it: those that did have expired
            before = self._before(state, window)
            yield self._version(state, before)
            if before and before[:3] not in seen:
                seen.add(before[:3])
                heappush(waiting, (-before.born, before))

    def _version(self, state: _State, before: _State | None) -> Version:
        counts = self._changed(before, state) if before else NOTHING
        returned = before is not None and not self._follows(before, state)
        put, earlier = self._told(state), self._told(before) if before else None
        return Version(put, *self._moments(state), earlier, returned, *counts)

    def _told(self, state: _State) -> Put:
        return whole(self._db, state.put, state[:3]) if state.is_cut else state.put

    def _window(self, state: _State) -> tuple[int, int] | None:
        """The ordinals of the last snapshot before it and of the first that shows it, between which it came; None when
        none shows it."""
        until = self._kept("ordinal >= ? AND ordinal < ? ORDER BY ordinal", state.born, _end(state))
        after = self._kept("ordinal < ? ORDER BY ordinal DESC", state.born)
        return (after[0] if after else 0, until[0]) if until else None

    def _moments(self, state: _State) -> tuple[Moment, Moment, Moment | None]:
        """The first and the last snapshot that show it, and the one that ended it."""
        first = self._kept("ordinal >= ? ORDER BY ordinal", state.born)
        last = self._kept("ordinal < ? ORDER BY ordinal DESC", _end(state))
        ended = self._kept("ordinal >= ? ORDER BY ordinal", _end(state))
        assert first and last, "a version that no snapshot shows"
        return Moment(*first[1:]), Moment(*last[1:]), Moment(*ended[1:]) if ended else None

    def _kept(self, condition: str, *values: int) -> Row | None:
        """The first snapshot so (ordinal, number, time) that was not dropped."""
        kept = f"SELECT ordinal, number, created_ns FROM snapshot WHERE dropped_ns = 0 AND {condition} LIMIT 1"
        return self._db.one(kept, values)

    def _follows(self, before: _State, state: _State) -> bool:
        """Whether no snapshot shows neither of the two."""
        if before.died is None or before.died >= state.born:
            return True
        return self._kept("ordinal >= ? AND ordinal < ?", before.died, state.born) is None

    def _before(self, state: _State, window: tuple[int, int]) -> _State | None:
        """The version before it: at the same path without a gap, else under another name, else at the same path."""
        same = self._previous(state)
        if same and self._follows(same, state) and same.put.file == state.put.file and same.put.kind is state.put.kind:
            return same
        return self._renamed(state, window) or same

    def _previous(self, state: _State) -> _State | None:
        before = "directory = ? AND name = ? AND born < ? ORDER BY born DESC"
        earlier = self._one(before, *state[:3])
        while earlier and not self._window(earlier):
            earlier = self._one(before, *earlier[:3])
        return earlier

    def _renamed(self, state: _State, window: tuple[int, int]) -> _State | None:
        if state.put.kind is Kind.DIRECTORY:
            return self._moved_directory(state, window)
        return self._moved_file(state, window) if state.put.kind is Kind.FILE else None

    def _moved_file(self, state: _State, window: tuple[int, int]) -> _State | None:
        """The name of the file that ended when this one began; of several (hard links) one that is called the same."""
        return self._one(
            f"{_ENDED} AND file = ?3 AND NOT (directory = ?4 AND name = ?5) ORDER BY name <> ?5, directory, name",
            *window, state.put.file, state.directory, state.name,
        )  # fmt: skip

    def _moved_directory(self, state: _State, window: tuple[int, int]) -> _State | None:
        """The directory from which what is in this one came, when it ended as this one began."""
        row = self._db.one("SELECT id FROM directory WHERE parent = ? AND name = ?", (state.directory, state.name))
        began = "directory = ? AND born > ? AND born <= ? LIMIT ?"
        for witness in self._where(began, row[0], *window, WITNESSES) if row else ():
            came = self._renamed(witness, window)
            if came is None or came.name != witness.name:
                continue
            parent = self._db.one("SELECT parent, name FROM directory WHERE id = ?", (came.directory,))
            if parent and (old := self._one(f"{_ENDED} AND directory = ?3 AND name = ?4", *window, *parent)):
                return old
        return None

    def _changed(self, before: _State, state: _State) -> Changed:
        old, new = before.put, state.put
        if old.kind is not Kind.FILE or new.kind is not Kind.FILE:
            return NOTHING
        if old.file == new.file and before.died == state.born:
            if old.block_bytes != new.block_bytes:
                return NOT_KNOWN
            if self._written[0] != new.file:
                self._written = new.file, written(self._db, new.file)
            count, highest = self._written[1].get(state.born, (0, 0))
            return sized(count, highest, old, new)
        last = min(before.died or state.born, state.born) - 1
        return changed(self._db, (old, last), (new, state.born), COMPARED_BLOCKS)

    def _states(self, directory: int, name: bytes) -> Iterator[_State]:
        return self._where("directory = ? AND name = ?", directory, name)

    def _one(self, condition: str, *values: int | bytes) -> _State | None:
        return next(self._where(f"{condition} LIMIT 1", *values), None)

    def _where(self, condition: str, *values: int | bytes) -> Iterator[_State]:
        for row in self._db.all(f"SELECT {_COLUMNS} FROM entry WHERE {condition}", values):
            yield self._state(row)

    def _state(self, row: Row) -> _State:
        directory, name, born, died = row[10:]
        if directory not in self._paths:
            self._paths[directory] = path_of(self._db, directory, b"")
        above = self._paths[directory]
        put = put_of(above + b"/" + name if above else name, row)
        return _State(directory, name, born, died, put, is_cut(row))


def _end(state: _State) -> int:
    """The ordinal at which it ended, or one beyond all."""
    return state.died if state.died is not None else NEVER
