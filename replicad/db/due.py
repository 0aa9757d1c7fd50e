"""Due: which part of a dataset is verified next. The ledger's second half: it says when each part was verified.

**Owns** the order of a scrub. A *part* is a stretch of blocks of one file, so that a huge file is verified bit by bit,
or everything without blocks in one directory. Never verified comes first, then what was verified longest ago: there is
no cursor that could be lost, a part that was not finished is simply still due. **Never** says that a part is well.

Each part has a *turn*, and the lowest is next. What was never verified since it was recorded has a negative one, in the
order of recording; a verified part has the moment of its verification; a part that could not be judged (its file was
being written) waits its turn like one verified just now, but keeps the older moment in `at_ns`. New files cost a first
copy next to nothing: a run of new file numbers is one row of `fresh`, and parts are made when they are verified.

`marks` counts how often a part was written. A verification counts only if that stands where it stood before the look.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import merge
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple

from replicad.db.database import Database
from replicad.model.block import block_count
from replicad.model.entry import Kind

if TYPE_CHECKING:  # the ledger owns this, not the other way round
    from replicad.db.ledger import BlockRow, EntryRow

STRETCH_BLOCKS = 256
"""Blocks of one part: 16 MiB of 64 KiB blocks, the size up to 4 GiB. Long enough that opening the file costs nothing,
short enough that little is lost when it is interrupted. Part of the ledger's format."""
LEAST_BYTES = 512
"""What a part counts for at least, so that directories and empty files are seen to be due: about a sector."""
OVERDUE_SHARE = 2
"""Of a call's budget, one part in so many goes to the oldest once they are overdue: a file that is written all the time
must not keep all others from their turn."""
MOST_AHEAD_NS = 3600 * 10**9
"""How far a moment of verification may lie in the future, after a clock was set back, and still be believed."""
AHEAD_SHARE = 0.05
"""The same as a share of the time within which all is to be verified: it waits for so much longer at worst."""
PAGE_PARTS = 256
"""Parts that were verified before read at once: about as many as one batch holds."""
PAGE_FILES = 512
"""Files of a run of new ones looked up at once."""
RANGES = 64
"""Runs of new files looked at in one call; one is a batch of a pass, 256 files."""

SCHEMA = """
    CREATE INDEX entry_file ON entry(file);
    CREATE TABLE fresh(
        turn INTEGER PRIMARY KEY, first INTEGER NOT NULL, last INTEGER NOT NULL, bytes INTEGER NOT NULL);
    CREATE TABLE part(
        file INTEGER NOT NULL, stretch INTEGER NOT NULL, at_ns INTEGER NOT NULL, turn INTEGER NOT NULL,
        bytes INTEGER NOT NULL, marks INTEGER NOT NULL, PRIMARY KEY(file, stretch)) WITHOUT ROWID;
    CREATE INDEX part_turn ON part(turn);
    CREATE INDEX part_waiting ON part(turn) WHERE turn > at_ns;
    CREATE TABLE tally(at_ns INTEGER PRIMARY KEY, bytes INTEGER NOT NULL, parts INTEGER NOT NULL);
    CREATE TRIGGER part_added AFTER INSERT ON part BEGIN
        INSERT INTO tally VALUES(new.at_ns, new.bytes, 1)
            ON CONFLICT(at_ns) DO UPDATE SET bytes = bytes + excluded.bytes, parts = parts + 1;
    END;
    CREATE TRIGGER part_removed AFTER DELETE ON part BEGIN
        UPDATE tally SET bytes = bytes - old.bytes, parts = parts - 1 WHERE at_ns = old.at_ns;
        DELETE FROM tally WHERE at_ns = old.at_ns AND parts = 0;
    END;
    CREATE TRIGGER part_changed AFTER UPDATE OF at_ns, bytes ON part
        WHEN new.at_ns <> old.at_ns OR new.bytes <> old.bytes BEGIN
        UPDATE tally SET bytes = bytes - old.bytes, parts = parts - 1 WHERE at_ns = old.at_ns;
        DELETE FROM tally WHERE at_ns = old.at_ns AND parts = 0;
        INSERT INTO tally VALUES(new.at_ns, new.bytes, 1)
            ON CONFLICT(at_ns) DO UPDATE SET bytes = bytes + excluded.bytes, parts = parts + 1;
    END;
    INSERT INTO fresh SELECT -4611686018427387904, min(file), max(file), sum(max(size, 512)) FROM entry
        WHERE file > 0 AND size >= 0 HAVING count(*) > 0;
    INSERT INTO part SELECT DISTINCT -directory, 0, 0, -4611686018427387903, 512, 0 FROM entry
        WHERE file = 0 AND kind <> 1 AND size >= 0;
"""
"""Of the ledger's migration from version 1: all that it has recorded counts as never verified."""

_FIRST_TURN = -(2**62)
_MARK = (
    "INSERT INTO part VALUES(?, ?, 0, ?, ?, 0) ON CONFLICT(file, stretch) DO UPDATE SET"
    " at_ns = 0, turn = min(turn, excluded.turn), marks = marks + 1"
)
"""A part that waits for its first verification keeps its place, however often it is written meanwhile."""


class Due(NamedTuple):
    """A part whose turn it is."""

    file: int
    """File number; for what has no blocks, 0 minus the directory's number."""
    stretch: int
    at_ns: int
    """When it was verified last; 0 = never since it was recorded."""
    bytes: int
    marks: int | None
    """None for a part that has no row yet."""

    @property
    def blocks(self) -> range:
        """Numbers of its blocks, whether or not the file is so long."""
        return range(self.stretch * STRETCH_BLOCKS, (self.stretch + 1) * STRETCH_BLOCKS)


@dataclass(frozen=True, slots=True)
class Ages:
    """How old the last verification of everything is."""

    total_bytes: int
    never_bytes: int
    since_bytes: int
    """Neither verified nor looked at since the moment asked about."""
    waiting_bytes: int
    """Looked at since then, but could not be judged, and not to be tried again yet."""
    tried_bytes: int
    """The same, and what is to be tried again by now."""
    tried_never_bytes: int
    """What was never verified, and could not be judged when it was looked at last."""
    oldest_ns: int


def stretch_count(size: int, block_bytes: int) -> int:
    """Parts of a file; an empty one has one too."""
    return max(1, -(-block_count(size, block_bytes) // STRETCH_BLOCKS))


def stretch_bytes(size: int, block_bytes: int, stretch: int) -> int:
    """What a part of a file counts for."""
    length = STRETCH_BLOCKS * block_bytes
    return max(LEAST_BYTES, min(length, size - stretch * length))


def most_ahead_ns(every_s: float) -> int:
    """How far in the future a verification is believed where everything is to be verified within `every_s`."""
    return min(MOST_AHEAD_NS, int(every_s * AHEAD_SHARE * 1e9))


class DueParts:
    """The parts of one ledger. Belongs to the ledger's thread; transactions are the ledger's."""

    def __init__(self, database: Database) -> None:
        self._db = database
        self._new = range(0)
        """File numbers given out last under which nothing was recorded yet: what is recorded there is new."""
        self._added = range(0)
        """New files of the last batch recorded: all of their blocks are known to be due."""

    # what was recorded is due

    def expect_numbers(self, numbers: range) -> None:
        """These file numbers were given out just now: nothing is recorded under them."""
        self._new, self._added = numbers, range(0)

    def mark_entries(self, rows: Sequence[EntryRow], directory_of: Callable[[bytes], int]) -> None:
        """What these entries bring is due; called before they are recorded."""
        new, self._added = self._new, range(0)
        added: dict[int, int] = {}
        changed: dict[int, EntryRow] = {}
        directories: set[int] = set()
        for row in rows:
            put, size = row.put, row.stamp[6]
            if put.file in new:
                added[put.file] = size
            elif size < 0:
                continue  # a path of which nothing was read yet
            elif put.file:
                changed[put.file] = row
            elif put.kind is not Kind.FILE:
                directories.add(directory_of(put.path))
        if added:
            self._add_files(added)
        renamed = self._recorded(changed)
        for file, row in changed.items():
            if file not in renamed:
                self._mark_file(file, row.put.size, row.put.block_bytes)
        if renamed:  # they may have been looked for under their former names
            self._end_waiting(renamed, self._next_turn())
        if directories:
            self._mark({(-number, 0) for number in directories})

    def mark_blocks(self, rows: Iterable[BlockRow]) -> None:
        """These blocks were recorded with new content."""
        added = self._added
        stretches = {(row.file, row.number // STRETCH_BLOCKS) for row in rows if row.file not in added}
        if stretches:
            self._mark(stretches)

    def forget(self, file: int, first: int = 0) -> None:
        """Parts of a file that exists no more, or from stretch `first` on."""
        self._db.execute("DELETE FROM part WHERE file = ? AND stretch >= ?", (file, first))

    # whose turn it is

    def take(
        self,
        budget_bytes: int,
        limit: int,
        *,
        before_ns: int,
        overdue_ns: int,
        retry_ns: int,
        since_ns: int | None = None,
        ahead_ns: int = MOST_AHEAD_NS,
    ) -> list[Due]:
        """The next parts in order, about `budget_bytes` of them and at most `limit`, one at least if any is due.

        Parts verified or looked at from `before_ns` on are left out, also those that could not be judged since
        `retry_ns`. Once the oldest were verified before `overdue_ns` they have their share beside what is new. What
        was verified since `since_ns` is taken only when nothing else is left, not even what could not be judged.

        What could not be judged before `retry_ns` and is overdue comes on top, with a share of its own: mostly there is
        nothing of it to read, and it must not keep the others from their turn.
        """
        self.back_from_the_future(before_ns, ahead_ns)
        bag = _Bag(budget_bytes // OVERDUE_SHARE, limit // OVERDUE_SHARE)
        bag.fill(self._old(overdue_ns, retry_ns), at_least=1)
        late, bag.budget_bytes, bag.limit = set(bag.parts), budget_bytes, limit
        bag.fill(self._never(), at_least=1)
        since_ns = before_ns if since_ns is None else min(since_ns, before_ns)
        for parts in (self._old(since_ns, retry_ns), self._unjudged(since_ns, since_ns, min(before_ns, retry_ns))):
            bag.fill((part for part in parts if part not in late), at_least=0 if bag.parts else 1)
        if not bag.parts:
            bag.fill(self._old(before_ns, retry_ns), at_least=1)
        again, taken = _Bag(budget_bytes // OVERDUE_SHARE, limit // OVERDUE_SHARE), set(bag.parts)
        if self._db.value("SELECT 1 FROM tally WHERE at_ns < ? LIMIT 1", (overdue_ns,)):
            overdue = self._unjudged(overdue_ns, 0, min(before_ns, retry_ns))
            again.fill((part for part in overdue if part not in taken), at_least=1)
        return bag.parts + again.parts

    def settle(self, verified: Sequence[Due], at_ns: int, sizes: Sequence[int]) -> int:
        """These parts were verified at `at_ns`, reading so many bytes of each; how many of them were not written
        meanwhile, so that it counts."""
        counted = 0
        for part, size in zip(verified, sizes, strict=True):
            size = max(LEAST_BYTES, size)
            if part.marks is None:
                self._db.execute(
                    "INSERT INTO part VALUES(?, ?, ?, ?, ?, 0) ON CONFLICT DO NOTHING",
                    (part.file, part.stretch, at_ns, at_ns, size),
                )
            else:
                self._db.execute(
                    "UPDATE part SET at_ns = ?, turn = ?, bytes = ? WHERE file = ? AND stretch = ? AND marks = ?",
                    (at_ns, at_ns, size, part.file, part.stretch, part.marks),
                )
            counted += self._db.changes()
        return counted

    def postpone(self, parts: Sequence[Due], at_ns: int) -> None:
        """These could not be judged: they stay due, behind the others, until their file is recorded anew."""
        for part in parts:
            if part.marks is None:
                self._db.execute(
                    "INSERT INTO part VALUES(?, ?, 0, ?, ?, 0) ON CONFLICT DO NOTHING",
                    (part.file, part.stretch, at_ns, part.bytes),
                )
            else:
                self._db.execute(
                    "UPDATE part SET turn = ? WHERE file = ? AND stretch = ? AND marks = ?",
                    (at_ns, part.file, part.stretch, part.marks),
                )

    def tidy(self) -> None:
        """Let go of runs of new files all of which have parts of their own by now."""
        for turn, first, last in self._ranges():
            if next(self._files_in(turn, first, last), None) is not None:
                return

    def ages(self, before_ns: int, retry_ns: int = 0) -> Ages:
        """How it stands: sums that are kept up to date, nothing is counted. What could not be judged before `retry_ns`
        does not wait any more."""
        before_ns = max(1, before_ns)
        fresh = int(self._db.value("SELECT coalesce(sum(bytes), 0) FROM fresh"))
        total, never, since, oldest = self._db.one(
            "SELECT coalesce(sum(bytes), 0), coalesce(sum(bytes) FILTER (WHERE at_ns = 0), 0),"
            " coalesce(sum(bytes) FILTER (WHERE at_ns < ?), 0), coalesce(min(at_ns), 0) FROM tally",
            (before_ns,),
        ) or (0, 0, 0, 0)
        waiting, tried, tried_never = self._db.one(
            "SELECT coalesce(sum(bytes) FILTER (WHERE turn >= ? AND at_ns < ?), 0),"
            " coalesce(sum(bytes) FILTER (WHERE turn >= ? AND at_ns < ?), 0),"
            " coalesce(sum(bytes) FILTER (WHERE at_ns = 0), 0) FROM part WHERE turn > at_ns AND turn >= 0",
            (max(before_ns, retry_ns), before_ns, before_ns, before_ns),
        ) or (0, 0, 0)
        return Ages(
            total_bytes=total + fresh,
            never_bytes=never + fresh,
            since_bytes=since + fresh - waiting,
            waiting_bytes=int(waiting),
            tried_bytes=int(tried),
            tried_never_bytes=int(tried_never),
            oldest_ns=0 if fresh else int(oldest),
        )

    # below: how

    def _add_files(self, sizes: Mapping[int, int]) -> None:
        """New files, by number. One row stands for all of them."""
        first, last = min(sizes), max(sizes)
        self._new = range(last + 1, self._new.stop)
        known = [max(LEAST_BYTES, size) for size in sizes.values() if size >= 0]
        if known:  # else it is a large file's number, taken before it is read
            self._added = range(first, last + 1)
            self._db.execute("INSERT INTO fresh VALUES(?, ?, ?, ?)", (self._next_turn(), first, last, sum(known)))

    def _recorded(self, rows: Mapping[int, EntryRow]) -> set[int]:
        """Those of these files that are recorded with just this identity, under whatever name: not written since,
        perhaps renamed."""
        found = self._db.each(
            "SELECT file FROM entry WHERE file = ? AND device = ? AND inode = ? AND size = ?"
            " AND mtime_ns = ? AND ctime_ns = ? LIMIT 1",
            [(file, *row.stamp[4:]) for file, row in rows.items()],
        )
        return {file for (file,) in found}

    def _mark_file(self, file: int, size: int, block_bytes: int) -> None:
        """A file that may have been recorded before was read anew: its metadata, which go with the first part, and what
        was added to it were never verified. Blocks that changed in it are marked by themselves."""
        count = stretch_count(size, block_bytes)
        self.forget(file, count)
        before = self._db.one("SELECT size, block_bytes FROM entry WHERE file = ? AND size >= 0 LIMIT 1", (file,))
        last = stretch_count(*before) - 1 if before else count
        grown = {(file, last)} if last < count - 1 else set()
        turn = self._mark({(file, 0)} | grown)
        self._make(file, size, block_bytes, turn)
        self._end_waiting({file}, turn)

    def _end_waiting(self, files: Iterable[int], turn: int) -> None:
        """Parts of these that could not be judged have their place again; `turn`, if they were never verified."""
        self._db.executemany(
            "UPDATE part SET turn = CASE at_ns WHEN 0 THEN ? ELSE at_ns END WHERE file = ? AND turn > at_ns",
            [(turn, file) for file in files],
        )

    def _mark(self, stretches: set[tuple[int, int]]) -> int:
        """These parts were recorded anew; the turn that they have if they had none."""
        turn = self._next_turn()
        self._db.executemany(_MARK, [(file, number, turn, LEAST_BYTES) for file, number in sorted(stretches)])
        return turn

    def _next_turn(self) -> int:
        """Behind everything that was never verified."""
        fresh = self._db.value("SELECT max(turn) FROM fresh")
        part = self._db.value("SELECT max(turn) FROM part WHERE turn < 0")
        return max(_FIRST_TURN if fresh is None else fresh, _FIRST_TURN if part is None else part) + 1

    def back_from_the_future(self, now_ns: int, ahead_ns: int = MOST_AHEAD_NS) -> None:
        """Verified later than now? The clock was wrong then, and would keep the part waiting until that moment."""
        latest_ns = now_ns + ahead_ns
        if self._db.value("SELECT 1 FROM part WHERE turn > ? LIMIT 1", (latest_ns,)):
            self._db.execute("UPDATE part SET at_ns = 0, turn = ? WHERE turn > ?", (self._next_turn(), latest_ns))

    def _never(self) -> Iterator[Due]:
        made: set[int] = set()
        marked = (row for row in self._in_order("turn < ?", 0, _FIRST_TURN, 0) if row[1].file not in made)
        return (part for _, part in merge(marked, self._fresh(made), key=itemgetter(0)))

    def _old(self, before_ns: int, retry_ns: int) -> Iterator[Due]:
        return (part for _, part in self._in_order("turn = at_ns OR turn < ?", retry_ns, 0, before_ns))

    def _unjudged(self, before_ns: int, since_ns: int, retry_ns: int) -> Iterator[Due]:
        """What was verified before `before_ns`, if ever, and could not be judged when it was looked at after that:
        since `since_ns`, and before `retry_ns`."""
        return (part for _, part in self._in_order("turn > at_ns AND at_ns < ?", before_ns, since_ns, retry_ns))

    def _in_order(self, what: str, value: int, first_turn: int, end_turn: int) -> Iterator[tuple[int, Due]]:
        """Turns and parts from `first_turn` up to, not including, `end_turn`, in pages: mostly a few are wanted."""
        after = (first_turn, -(2**63), -1)
        while rows := self._db.all(
            "SELECT turn, file, stretch, at_ns, bytes, marks FROM part"
            f" WHERE (turn, file, stretch) > (?, ?, ?) AND turn < ? AND ({what}) ORDER BY turn, file, stretch LIMIT ?",
            (*after, end_turn, value, PAGE_PARTS),
        ):
            for row in rows:
                yield row[0], Due._make(row[1:])
            if len(rows) < PAGE_PARTS:
                return
            after = rows[-1][:3]

    def _fresh(self, made: set[int]) -> Iterator[tuple[int, Due]]:
        """New files' parts with their turns. Files that get rows meanwhile go into `made`."""
        for turn, first, last in self._ranges():
            for file, size, block_bytes in self._files_in(turn, first, last):
                count = stretch_count(size, block_bytes)
                if count > 1:  # each part has its row at once: the first would stand for the whole file
                    made.add(file)
                    self._make(file, size, block_bytes, turn)
                for number in range(count):
                    part_bytes = stretch_bytes(size, block_bytes, number)
                    yield turn, Due(file, number, 0, part_bytes, 0 if count > 1 else None)

    def _make(self, file: int, size: int, block_bytes: int, turn: int) -> None:
        """Rows for all parts of a file; one that is still due for the first time learns how long it is."""
        self._db.executemany(
            "INSERT INTO part VALUES(?, ?, 0, ?, ?, 0) ON CONFLICT(file, stretch) DO UPDATE SET bytes = excluded.bytes"
            " WHERE at_ns = 0",
            (
                (file, number, turn, stretch_bytes(size, block_bytes, number))
                for number in range(stretch_count(size, block_bytes))
            ),
        )

    def _ranges(self) -> list[tuple[int, int, int]]:
        rows = self._db.all("SELECT turn, first, last FROM fresh ORDER BY turn LIMIT ?", (RANGES,))
        return [(turn, first, last) for turn, first, last in rows]

    def _files_in(self, turn: int, first: int, last: int) -> Iterator[tuple[int, int, int]]:
        """(file, size, block size) of those files of a run that have no part yet. What lies before the first of them,
        or the whole run if there is none, is let go."""
        found = False
        while rows := self._db.all(
            "SELECT e.file, e.size, e.block_bytes, EXISTS(SELECT 1 FROM part p WHERE p.file = e.file) FROM entry e"
            " WHERE e.file >= ? AND e.file <= ? AND e.size >= 0 ORDER BY e.file LIMIT ?",
            (first, last, PAGE_FILES),
        ):
            passed = 0
            for file, size, block_bytes, has_part in rows:
                if file < first:
                    continue  # another name of the last one
                first = file + 1
                if not has_part:
                    if not found:
                        self._advance(turn, file, passed)
                    found = True
                    yield file, size, block_bytes
                passed += max(size, LEAST_BYTES)
            if not found:
                self._advance(turn, first, passed)
        if not found:
            self._db.execute("DELETE FROM fresh WHERE turn = ?", (turn,))

    def _advance(self, turn: int, first: int, passed_bytes: int) -> None:
        if passed_bytes:
            self._db.execute(
                "UPDATE fresh SET first = ?, bytes = max(?, bytes - ?) WHERE turn = ?",
                (first, LEAST_BYTES, passed_bytes, turn),
            )


class _Bag:
    """Parts until a budget is used up."""

    def __init__(self, budget_bytes: int, limit: int) -> None:
        self.budget_bytes, self.limit = budget_bytes, limit
        self.parts: list[Due] = []
        self._bytes = 0

    def fill(self, parts: Iterable[Due], *, at_least: int) -> None:
        for count, part in enumerate(parts):
            is_full = self._bytes + part.bytes > self.budget_bytes or len(self.parts) >= self.limit
            if is_full and count >= at_least:
                return
            self.parts.append(part)
            self._bytes += part.bytes
