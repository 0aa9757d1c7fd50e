"""Which part is verified next: the order, the sums, and what recording makes due."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any, ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from replicad.db import database as db_database
from replicad.db.database import Database
from replicad.db.due import LEAST_BYTES, STRETCH_BLOCKS, Due, most_ahead_ns, stretch_bytes, stretch_count
from replicad.db.ledger import UNSETTLED, BlockRow, EntryRow, Ledger
from replicad.db.ledger_schema import MIGRATIONS
from replicad.db.look_up import LookUp
from replicad.model.entry import Kind, Meta, Put, Stamp

BLOCK = 4096
STRETCH = STRETCH_BLOCKS * BLOCK
META = Meta(0o644, 1, 2, 3)
LINK = Stamp(Kind.SYMLINK, 0o777, 1, 2, 0, 7, 1, 1, 1)
FAR = 2**60
"""A moment later than all."""
HOUR_NS = 3600 * 10**9


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "www.db")


def stamp(inode: int, size: int, version: int = 1) -> Stamp:
    return Stamp(Kind.FILE, 0o644, 1, 2, 0, inode, size, version, version)


def file_row(path: bytes, file: int, size: int, version: int = 1) -> EntryRow:
    put = Put(path, Kind.FILE, META, max(size, 0), file, BLOCK)
    return EntryRow(put, stamp(file % 2**31, size, version), 1)


def blocks(file: int, numbers: range) -> list[BlockRow]:
    return [BlockRow(file, number, b"i" * 32, b"c" * 16, 1) for number in numbers]


def add(ledger: Ledger, count: int, size: int = 10, prefix: bytes = b"") -> int:
    """Record new files as a pass does; the first one's number."""
    first = ledger.next_file(count)
    ledger.record_entries([file_row(prefix + b"%d" % n, first + n, size) for n in range(count)])
    ledger.record_blocks([row for n in range(count) for row in blocks(first + n, range(-(-size // BLOCK)))])
    return first


def take(ledger: Ledger, budget: int = FAR, limit: int = 10**6, *, now: int = FAR, overdue: int = 0) -> list[Due]:
    return ledger.due.take(budget, limit, before_ns=now, overdue_ns=overdue, retry_ns=now)


def verify(ledger: Ledger, parts: list[Due], now: int) -> int:
    counted = ledger.due.settle(parts, now, [part.bytes for part in parts])
    ledger.due.tidy()
    return counted


def test_new_files_are_due_in_the_order_of_recording_and_cost_one_row_a_batch(ledger: Ledger) -> None:
    """A run of new numbers is one row; each file is taken once, the first recorded first."""
    first = add(ledger, 300)
    second = add(ledger, 5, prefix=b"more")
    assert ledger._db.value("SELECT count(*) FROM fresh") == 2
    assert ledger._db.value("SELECT count(*) FROM part") == 0
    taken = take(ledger)
    assert [part.file for part in taken] == [*range(first, first + 300), *range(second, second + 5)]
    assert verify(ledger, taken, 1000) == 305
    assert ledger._db.value("SELECT count(*) FROM fresh") == 0
    ages = ledger.due.ages(1000)
    assert (ages.total_bytes, ages.never_bytes, ages.since_bytes) == (305 * LEAST_BYTES, 0, 0)
    assert ages.oldest_ns == 1000
    assert ledger.due.ages(1001).since_bytes == 305 * LEAST_BYTES


def test_never_verified_comes_first_then_the_oldest(ledger: Ledger) -> None:
    """What is new goes ahead of everything that was verified; of that, the oldest is next."""
    old = add(ledger, 3)
    for moment, part in zip((30, 10, 20), take(ledger), strict=True):
        verify(ledger, [part], moment)
    new = add(ledger, 2, prefix=b"n")
    assert [part.file for part in take(ledger)] == [new, new + 1, old + 1, old + 2, old]


def test_a_budget_is_kept_but_one_part_is_always_taken(ledger: Ledger) -> None:
    """About as many bytes as were asked for; a part larger than that alone."""
    add(ledger, 5, size=3 * BLOCK)
    assert len(take(ledger, budget=7 * BLOCK)) == 2
    assert len(take(ledger, budget=1)) == 1
    assert len(take(ledger, limit=4)) == 4
    assert take(Ledger(ledger.path.with_name("empty.db"))) == []


def test_what_is_new_all_the_time_does_not_starve_the_oldest(ledger: Ledger) -> None:
    """A file that is written between any two calls: once the others are overdue they have their share."""
    add(ledger, 20, size=BLOCK)
    verify(ledger, take(ledger), 5)
    busy = add(ledger, 1, size=BLOCK, prefix=b"busy")
    left = {part.file for part in take(ledger)} - {busy}
    for moment in range(100, 130):
        ledger.record_entries([file_row(b"busy0", busy, BLOCK, version=moment)])
        taken = take(ledger, budget=BLOCK, now=moment, overdue=50)
        assert busy in [part.file for part in taken], "nor the other way round"
        left -= {part.file for part in taken}
        verify(ledger, taken, moment)
    assert not left


def test_a_part_that_is_written_again_keeps_its_place_among_the_new(ledger: Ledger) -> None:
    """Being written once more does not send a part that was never verified to the end."""
    first = add(ledger, 1, size=BLOCK, prefix=b"a")
    ledger.record_entries([file_row(b"a0", first, BLOCK, version=2)])
    second = add(ledger, 1, size=BLOCK, prefix=b"b")
    ledger.record_entries([file_row(b"b0", second, BLOCK, version=2)])
    for version in range(3, 9):
        ledger.record_entries([file_row(b"a0", first, BLOCK, version=version)])
        assert [part.file for part in take(ledger)] == [first, second]


def test_a_change_makes_the_stretches_it_touches_due(ledger: Ledger) -> None:
    """Of a large file that was verified: those with changed blocks, the first (its metadata), the last if it grew, and
    what was added."""
    file = ledger.next_file()
    ledger.record_entries([file_row(b"f", file, -1)])
    for at in range(0, 5 * STRETCH_BLOCKS, 100):
        rows = blocks(file, range(at, min(at + 100, 5 * STRETCH_BLOCKS)))
        ledger.record_blocks([row._replace(seq=UNSETTLED) for row in rows])
    ledger.record_entries([file_row(b"f", file, 5 * STRETCH)])
    ledger.settle(file, 1)
    everything = take(ledger)
    assert [part.stretch for part in everything] == [0, 1, 2, 3, 4]
    assert {part.bytes for part in everything} == {STRETCH}
    verify(ledger, everything, 7)
    ledger.record_blocks(blocks(file, range(3 * STRETCH_BLOCKS + 5, 3 * STRETCH_BLOCKS + 6)))
    ledger.record_entries([file_row(b"f", file, 7 * STRETCH - 1, version=2)])  # the rest is one hole
    assert sorted((p.stretch, p.at_ns) for p in take(ledger)) == [
        (0, 0),
        (1, 7),
        (2, 7),
        (3, 0),
        (4, 0),
        (5, 0),
        (6, 0),
    ]
    ledger.record_entries([file_row(b"f", file, STRETCH, version=3)])
    assert [part.stretch for part in take(ledger)] == [0]
    assert ledger.due.ages(0).total_bytes == STRETCH


def test_a_rename_or_a_further_name_makes_nothing_due(ledger: Ledger) -> None:
    """The same identity under another path was verified already."""
    file = add(ledger, 1, size=BLOCK)
    verify(ledger, take(ledger), 7)
    row = file_row(b"0", file, BLOCK)
    ledger.record_entries([row._replace(put=Put(b"elsewhere", Kind.FILE, META, BLOCK, file, BLOCK))])
    assert [part.at_ns for part in take(ledger)] == [7]


def test_a_verification_counts_only_if_nothing_was_recorded_meanwhile(ledger: Ledger) -> None:
    """A part that was marked between being taken and being settled is still due; so is a new file's."""
    file = add(ledger, 2, size=BLOCK)
    taken = take(ledger)
    ledger.record_blocks(blocks(file, range(1)))  # by its batch's own rule this is a new file: nothing to mark
    ledger.record_entries([file_row(b"0", file, BLOCK, version=2)])
    assert verify(ledger, taken, 7) == 1
    (again, _) = take(ledger)
    assert (again.file, again.at_ns) == (file, 0)
    ledger.record_blocks(blocks(file, range(1)))
    assert verify(ledger, [again], 8) == 0 or again.marks is not None
    (part,) = [part for part in take(ledger) if part.file == file]
    ledger.record_entries([file_row(b"0", file, BLOCK, version=3)])
    assert verify(ledger, [part], 9) == 0


def test_what_could_not_be_judged_waits_behind_the_others_and_comes_back_with_a_record(ledger: Ledger) -> None:
    """It keeps its moment, is not taken before its time, does not keep a round open for a while, and is first after a
    write."""
    file = add(ledger, 3, size=BLOCK)
    busy, *others = take(ledger)
    ledger.due.postpone([busy], 50)
    verify(ledger, others, 40)
    ages = ledger.due.ages(40)
    assert (ages.never_bytes, ages.waiting_bytes, ages.since_bytes, ages.oldest_ns) == (BLOCK, BLOCK, 0, 0)
    ages = ledger.due.ages(40, retry_ns=51)  # nobody wrote it, it only was not to be found: it is due again by itself
    assert (ages.waiting_bytes, ages.since_bytes) == (0, BLOCK)
    assert [part.file for part in take(ledger)] == [file + 1, file + 2, file]
    assert [p.file for p in ledger.due.take(FAR, 9, before_ns=60, overdue_ns=0, retry_ns=50)] == [file + 1, file + 2]
    ledger.record_entries([file_row(b"0", file, BLOCK, version=2)])
    assert [part.file for part in take(ledger)] == [file, file + 1, file + 2]
    assert ledger.due.ages(40).waiting_bytes == 0


def test_a_verified_part_that_waits_comes_back_at_its_old_place(ledger: Ledger) -> None:
    """Its content did not change: recording the file anew gives back its turn, not the rank of something new."""
    file = ledger.next_file()
    ledger.record_entries([file_row(b"f", file, 3 * STRETCH)])
    ledger.record_blocks(blocks(file, range(3 * STRETCH_BLOCKS)))
    verify(ledger, take(ledger), 5)
    ledger.due.postpone(take(ledger), 60)
    ledger.record_entries([file_row(b"f", file, 3 * STRETCH, version=2)])
    assert [(part.stretch, part.at_ns) for part in take(ledger)] == [(0, 0), (1, 5), (2, 5)]
    assert ledger.due.ages(50).waiting_bytes == 0


@pytest.mark.parametrize("moment", [0, 5])
def test_a_part_that_waits_is_back_at_its_place_when_its_file_is_found_under_another_name(
    ledger: Ledger, moment: int
) -> None:
    """It was looked for before its rename was recorded: what was verified is as old as ever, what never was is new."""
    file = add(ledger, 2, size=BLOCK)
    moved, other = take(ledger)
    verify(ledger, [other] + [moved] * bool(moment), 5)
    ledger.due.postpone([part for part in take(ledger) if part.file == file], 60)
    row = file_row(b"0", file, BLOCK)
    ledger.record_entries([row._replace(put=Put(b"elsewhere", Kind.FILE, META, BLOCK, file, BLOCK))])
    (turn,) = ledger._db.one("SELECT turn FROM part WHERE file = ?", (file,)) or ()
    assert turn == 5 if moment else turn < 0
    ledger.due.tidy()
    ages = ledger.due.ages(50)
    assert (ages.waiting_bytes, ages.tried_bytes, ages.tried_never_bytes) == (0, 0, 0)
    assert ages.never_bytes == (0 if moment else BLOCK)
    assert take(ledger)[0].file == file


def test_what_could_not_be_judged_is_tried_again_before_it_is_too_old(ledger: Ledger) -> None:
    """Nobody may record it anew, as when its directory was moved away and back: it takes nobody's place, but a round
    later it would be overdue."""
    file = add(ledger, 4, size=BLOCK)
    verify(ledger, take(ledger), 5)
    ledger.due.postpone(take(ledger)[:2], 60)
    verify(ledger, [part for part in take(ledger) if part.file > file + 1], 30)

    def taken(overdue_ns: int, retry_ns: int) -> list[int]:
        found = ledger.due.take(BLOCK, 99, before_ns=200, overdue_ns=overdue_ns, retry_ns=retry_ns, since_ns=150)
        return [part.file for part in found]

    assert taken(10, 60) == taken(5, 61) == [file + 2]
    assert taken(10, 61) == [file + 2, file]
    ledger.due.postpone([part for part in take(ledger) if part.file == file], 70)
    assert taken(10, 65) == [file + 2, file + 1]


def test_what_could_not_be_judged_is_tried_again_before_anything_is_read_a_second_time(ledger: Ledger) -> None:
    """While somebody waits for the rest of what he has asked for, only that is taken."""
    add(ledger, 3)
    parts = take(ledger)
    verify(ledger, parts[:2], 70)
    ledger.due.postpone(take(ledger, now=65), 60)

    def taken(retry_ns: int) -> list[int]:
        found = ledger.due.take(FAR, 99, before_ns=200, overdue_ns=0, retry_ns=retry_ns, since_ns=50)
        return [part.file for part in found]

    assert taken(100) == [parts[2].file]
    assert taken(60) == [part.file for part in parts[:2]], "nothing else is left, and there is time"


def test_a_clock_that_was_wrong_hides_nothing(ledger: Ledger) -> None:
    """Verified in ten years? Not believed: it is due as if it never was."""
    add(ledger, 2)
    verify(ledger, take(ledger), 10 * 365 * 24 * HOUR_NS)
    now = 365 * 24 * HOUR_NS
    assert len(take(ledger, now=now)) == 2
    assert ledger.due.ages(now).never_bytes == 2 * LEAST_BYTES


def test_a_clock_that_was_set_back_a_little_hides_nothing_for_longer_than_a_short_deadline_allows(
    ledger: Ledger,
) -> None:
    """Fifty minutes are nothing in a week, and very much where all is to be verified each two minutes."""
    add(ledger, 2)
    now = 365 * 24 * HOUR_NS
    verify(ledger, take(ledger), now + HOUR_NS * 5 // 6)
    assert most_ahead_ns(7 * 86400) == HOUR_NS
    ledger.due.back_from_the_future(now, most_ahead_ns(7 * 86400))
    assert ledger.due.ages(now).never_bytes == 0
    short_ns = most_ahead_ns(120)
    assert 0 < short_ns < 10 * 10**9
    taken = ledger.due.take(FAR, 9, before_ns=now, overdue_ns=0, retry_ns=now, ahead_ns=short_ns)
    assert len(taken) == 2
    assert ledger.due.ages(now).never_bytes == 2 * LEAST_BYTES


def test_entries_without_blocks_are_due_by_directory(ledger: Ledger) -> None:
    """One part for each directory that has any; the root's own entry stands in one of its own."""
    rows = [
        EntryRow(Put(path, kind, META), Stamp(kind, 0o755, 0, 0, 0, 9, 1, 1, 1), 1)
        for path, kind in ((b"", 2), (b"d", 2), (b"d/l", 3), (b"d/m", 3), (b"e", 2), (b"d/e", 2))
    ]
    ledger.record_entries([row._replace(put=Put(row.put.path, Kind(row.put.kind), META)) for row in rows])
    taken = take(ledger)
    assert len(taken) == 3
    assert all(part.file <= 0 for part in taken)
    named = [[path for path, _ in LookUp(ledger.database).without_blocks(-part.file, None, 9)] for part in taken]
    assert sorted(named) == [[b""], [b"d", b"e"], [b"d/e", b"d/l", b"d/m"]]


def test_a_dropped_file_is_due_no_more(ledger: Ledger) -> None:
    """What was verified is forgotten with it; what was new is passed over."""
    add(ledger, 4)
    verify(ledger, take(ledger, limit=2), 5)
    ledger.drop([b"0", b"2"], 2)
    assert len(take(ledger)) == 2
    verify(ledger, take(ledger), 6)
    assert ledger.due.ages(0).total_bytes == 2 * LEAST_BYTES


def test_a_ledger_of_version_1_counts_as_never_verified(tmp_path: Path) -> None:
    """All of it is due after the migration: small files, large ones part by part, directories; paths that were only
    noted are not."""
    old = Ledger(tmp_path / "www.db")
    small, large = add(old, 3), old.next_file()
    old.record_entries([file_row(b"large", large, 3 * STRETCH), file_row(b"half", old.next_file(), -1)])
    old.record_blocks(blocks(large, range(3 * STRETCH_BLOCKS)))
    old.record_entries([EntryRow(Put(b"d", Kind.DIRECTORY, META), Stamp(2, 0, 0, 0, 0, 1, 1, 1, 1), 1)])
    for table in ("fresh", "part", "tally", "unnamed"):
        old._db.execute(f"DROP TABLE {table}")
    old._db.execute("DROP INDEX entry_file")
    old._db.execute("PRAGMA user_version = 1")
    old.close()
    ledger = Ledger(tmp_path / "www.db")
    ages = ledger.due.ages(FAR)
    assert ages.total_bytes == ages.never_bytes == ages.since_bytes == 4 * LEAST_BYTES + 3 * STRETCH
    taken = take(ledger)
    assert {(part.file, part.stretch) for part in taken if part.file > 0} == {
        *((small + n, 0) for n in range(3)), (large, 0), (large, 1), (large, 2),
    }  # fmt: skip
    assert sum(1 for part in taken if part.file <= 0) == 1
    assert verify(ledger, taken, 9) == 7
    assert ledger.due.ages(9).since_bytes == 0


def test_a_new_version_1_ledger_without_entries_is_migrated(tmp_path: Path) -> None:
    """Nothing recorded, nothing due."""
    Database(tmp_path / "www.db", MIGRATIONS[:1]).close()
    assert take(Ledger(tmp_path / "www.db")) == []


QUESTIONS: list[Callable[[Ledger], object]] = [
    lambda ledger: ledger.due.ages(5),
    lambda ledger: take(ledger, limit=9),
    lambda ledger: LookUp(ledger.database).named(77, 8),
    lambda ledger: LookUp(ledger.database).named_all([77, 78], 8),
    lambda ledger: LookUp(ledger.database).first_blocks([77, 78], 256),
    lambda ledger: ledger.record_entries([file_row(b"0", 77, 5)]),
    lambda ledger: ledger.due.tidy(),
    lambda ledger: LookUp(ledger.database).without_blocks(1, b"x", 9),
]


SMALL = ("fresh", "tally", "gone")
"""Tables with a row for each batch or call, or of which only the first row is asked for."""


def test_no_question_of_a_scrub_reads_a_whole_table(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a million files each is answered along an index; only the sums, one row a call, are added up."""
    add(ledger, 5)
    asked: list[str] = []
    for name in ("all", "one", "value", "rows", "execute"):
        real = getattr(Database, name)

        def spy(self: Database, sql: str, values: object = (), *, real: object = real) -> object:
            asked.append(sql)
            return real(self, sql, values)  # type: ignore[operator]

        monkeypatch.setattr(Database, name, spy)
    for question in QUESTIONS:
        question(ledger)
    monkeypatch.undo()
    assert len(asked) > 15
    for sql in set(asked):
        plan = [str(row[3]) for row in ledger._db.all(f"EXPLAIN QUERY PLAN {sql}", [1] * sql.count("?"))]
        scans = [line for line in plan if line.startswith("SCAN") and line.split()[1] not in SMALL]
        assert not [line for line in scans if "CONSTANT" not in line], (sql, plan)
        assert not any("TEMP B-TREE" in line for line in plan), (sql, plan)


def test_the_next_parts_are_found_at_once_however_much_was_verified(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scrub of new files does not begin at the first of them each time."""
    monkeypatch.setattr(db_database, "STOP_STEPS", 100)
    steps: list[int] = []
    ledger.database.stop_when(lambda: steps.append(1) or False)  # type: ignore[func-returns-value]
    ledger.begin()
    for _ in range(3):
        add(ledger, 4000, prefix=b"%d" % len(steps))

    def cost() -> int:
        steps.clear()
        now = 1000 + len(steps)
        verify(ledger, take(ledger, limit=100), now)
        return len(steps)

    first = cost()
    verify(ledger, take(ledger, limit=11_000), 999)
    cost()
    assert cost() < 2 * first
    ledger.rollback()


@dataclass
class Model:
    """A file, in the plain words of what should be true."""

    size: int
    version: int
    verified: dict[int, int]
    """Moment by stretch."""
    waiting: dict[int, int]


def test_hardly_more_parts_are_looked_at_than_a_call_takes(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn of some milliseconds does not cost the ledger's thread a look at thousands of parts; none is left out."""
    add(ledger, 2000)
    verify(ledger, take(ledger), 100)
    ledger.record_entries([EntryRow(Put(b"d%d/l" % n, Kind.SYMLINK, META, target=b"a"), LINK, 1) for n in range(2000)])
    real, rows = Database.all, list[int]()

    def spy(self: Database, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        found = real(self, sql, values)
        rows.append(len(found))
        return found

    monkeypatch.setattr(Database, "all", spy)
    new = take(ledger, 20 * LEAST_BYTES, now=50)
    assert len(new) == 20 and sum(rows) < 600
    new = take(ledger, now=50)
    assert len(new) == 2000
    verify(ledger, new, 100)
    rows.clear()
    assert len(take(ledger, 20 * LEAST_BYTES, now=200)) == 20
    assert sum(rows) < 600
    assert len(take(ledger, now=200)) == 4000


def test_parts_of_a_new_large_file_are_taken_once(ledger: Ledger) -> None:
    """They get their rows while they are taken, among those that have rows already: none is met a second time."""
    first = ledger.next_file(3)
    ledger.record_entries([file_row(b"%d" % number, first + number, 500 * STRETCH) for number in range(3)])
    ledger.record_entries([EntryRow(Put(b"l", Kind.SYMLINK, META, target=b"a"), LINK, 1)])
    taken = [(part.file, part.stretch) for part in take(ledger)]
    assert taken[:-1] == [(first + number, stretch) for number in range(3) for stretch in range(500)]
    assert taken[-1][0] < 0


def test_a_file_that_grew_has_its_former_last_part_due(ledger: Ledger) -> None:
    """Also when blocks behind that part were recorded before the file's entry was."""
    file = ledger.next_file()
    ledger.record_entries([file_row(b"f", file, STRETCH + 1)])
    verify(ledger, take(ledger), 5)
    ledger.record_blocks(blocks(file, range(3 * STRETCH_BLOCKS, 3 * STRETCH_BLOCKS + 1)))
    ledger.record_entries([file_row(b"f", file, 4 * STRETCH, version=2)])
    assert [(part.stretch, part.at_ns) for part in take(ledger)] == [(0, 0), (1, 0), (2, 0), (3, 0)]


class Scrubbing(RuleBasedStateMachine):
    """Recording, verifying, interrupting, dropping in any order, against a model that remembers everything."""

    _ledger: ClassVar[Ledger | None] = None
    """One for all examples; each is a transaction that is rolled back."""

    def __init__(self) -> None:
        super().__init__()
        if self._ledger is None:
            type(self)._ledger = Ledger(Path(mkdtemp(), "www.db"))
        assert self._ledger is not None
        self.ledger = self._ledger
        self.ledger.begin()
        self.ledger.put("next_file", 1)
        self.files: dict[int, tuple[bytes, Model]] = {}
        self.now = 1000
        self.count = 0

    def _expected(self) -> dict[tuple[int, int], int]:
        return {
            (file, stretch): model.verified.get(stretch, 0)
            for file, (_, model) in self.files.items()
            for stretch in range(stretch_count(model.size, BLOCK))
        }

    @rule(sizes=st.lists(st.sampled_from([0, 1, BLOCK, STRETCH, STRETCH + 1, 3 * STRETCH]), min_size=1, max_size=6))
    def record_new(self, sizes: list[int]) -> None:
        first = self.ledger.next_file(len(sizes))
        rows = []
        for number, size in enumerate(sizes, first):
            self.count += 1
            path = b"%d" % self.count
            rows.append(file_row(path, number, size))
            self.files[number] = (path, Model(size, 1, {}, {}))
        self.ledger.record_entries(rows)

    @precondition(lambda self: self.files)
    @rule(data=st.data(), size=st.sampled_from([0, BLOCK, STRETCH, STRETCH + 1, 4 * STRETCH]))
    def write(self, data: st.DataObject, size: int) -> None:
        file = data.draw(st.sampled_from(sorted(self.files)))
        path, model = self.files[file]
        count = stretch_count(size, BLOCK)
        touched = data.draw(st.sets(st.integers(0, count - 1), max_size=2))
        if size != model.size:
            touched |= {count - 1}  # its last block is another one
        self.ledger.record_blocks([row for s in sorted(touched) for row in blocks(file, range(s * 256, s * 256 + 1))])
        self.ledger.record_entries([file_row(path, file, size, model.version + 1)])
        grown = {stretch_count(model.size, BLOCK) - 1} if stretch_count(model.size, BLOCK) < count else set()
        kept = {s: at for s, at in model.verified.items() if s < count and s not in touched | grown and s}
        self.files[file] = (path, Model(size, model.version + 1, kept, {}))

    @precondition(lambda self: self.files)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        file = data.draw(st.sampled_from(sorted(self.files)))
        path, _ = self.files.pop(file)
        self.ledger.drop([path], 2)

    @rule(data=st.data(), budget=st.sampled_from([1, STRETCH, 10 * STRETCH]))
    def scrub(self, data: st.DataObject, budget: int) -> None:
        self.now += 10
        taken = self.ledger.due.take(budget, 8, before_ns=self.now, overdue_ns=0, retry_ns=self.now)
        expected = self._expected()
        live = [part for part in taken if (part.file, part.stretch) in expected]
        moments = [part.at_ns for part in live]
        assert moments == sorted(moments) or any(m.waiting for _, m in self.files.values())
        if any(not at and (f, s) not in self._waiting() for (f, s), at in expected.items()) and taken:
            assert live[0].at_ns == 0, "never verified comes first"
        fate = data.draw(st.lists(st.sampled_from("vpi"), min_size=len(live), max_size=len(live)))
        verified = [part for part, what in zip(live, fate, strict=True) if what == "v"]
        postponed = [part for part, what in zip(live, fate, strict=True) if what == "p"]
        assert self.ledger.due.settle(verified, self.now, [part.bytes for part in verified]) == len(verified)
        self.ledger.due.postpone(postponed, self.now)
        for part in verified:
            model = self.files[part.file][1]
            model.verified[part.stretch] = self.now
            model.waiting.pop(part.stretch, None)
        for part in postponed:
            self.files[part.file][1].waiting[part.stretch] = self.now
        self.ledger.due.tidy()

    def _waiting(self) -> set[tuple[int, int]]:
        return {(file, stretch) for file, (_, model) in self.files.items() for stretch in model.waiting}

    @invariant()
    def nothing_is_forgotten_and_the_sums_are_right(self) -> None:
        expected = self._expected()
        everything = {(part.file, part.stretch): part for part in self.ledger.due.take(
            FAR, 10**6, before_ns=FAR, overdue_ns=0, retry_ns=FAR)}  # fmt: skip
        assert {key: everything[key].at_ns for key in expected} == expected
        ages = self.ledger.due.ages(1)
        size = sum(stretch_bytes(self.files[file][1].size, BLOCK, stretch) for file, stretch in expected)
        never = [at for at in expected.values() if not at]
        assert (ages.never_bytes > 0) >= bool(never)
        if self.files and not self.ledger._db.value("SELECT 1 FROM fresh"):
            assert ages.total_bytes == size
            assert ages.oldest_ns == min(expected.values())

    def teardown(self) -> None:
        self.ledger.rollback()


@pytest.fixture(scope="module", autouse=True)
def closed() -> Iterator[None]:
    """The state machine's ledger is closed and removed in the end."""
    yield
    if Scrubbing._ledger is not None:
        Scrubbing._ledger.close()
        rmtree(Scrubbing._ledger.path.parent)


TestScrubbing = Scrubbing.TestCase
TestScrubbing.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)
