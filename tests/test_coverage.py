"""How verification went is remembered day by day and bounded, and a map shows every byte of a side once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit_engine import BEGIN_NS, DAY_S, Rig
from replicad.db.age_map import of_ledger, of_segments
from replicad.db.database import Database
from replicad.db.findings import MIGRATIONS as FINDINGS
from replicad.db.findings import Findings
from replicad.db.ledger_schema import MIGRATIONS
from replicad.model.coverage import CELLS, MAX_DAYS, AgeMap, Cell, Day, Mapper, day_of
from replicad.model.divergence import Side
from replicad.model.errors import ReplicadError
from replicad.model.pace import Policy
from replicad.status import ScrubStatus
from replicad.work.coverage_notes import MOST, NOTE_EVERY_S, look_of, received

WEEK = Policy(7 * DAY_S, 0.5)


@pytest.fixture
def book(tmp_path: Path) -> Iterator[Findings]:
    """An empty findings book."""
    with closing(Findings(tmp_path / "findings.db")) as made:
        yield made


def a_look(day: int, overdue: int = 0, never: int = 0, **more: int) -> Day:
    """One look at a side of a hundred bytes."""
    return Day(day, day * 86_400, 1, 100, never, overdue, **more)


# ------------------------------------------------------------------------------------------------------------- days


def test_a_day_is_as_bad_as_its_worst_look() -> None:
    """Of a day's looks the one at which most was overdue counts; of equal ones the last; open findings are the most."""
    day = a_look(5, overdue=10, open=1).with_look(a_look(5, overdue=30)).with_look(a_look(5, never=50, open=3, lost=1))
    assert (day.overdue_bytes, day.never_bytes, day.looks, day.open, day.lost) == (30, 0, 3, 3, 1)
    assert a_look(5, never=100).with_look(a_look(5)).never_bytes == 0


def test_a_side_without_bytes_lacks_nothing() -> None:
    """Of nothing at all everything is verified in time."""
    assert Day(1, 1, 1, 0, 0, 0).in_time_share == 1.0


def test_a_book_keeps_so_many_days_and_no_more(book: Findings) -> None:
    """The oldest days go when there are more than MAX_DAYS, each side for itself, whatever the clock does."""
    for day in range(1000, 1000 + MAX_DAYS + 30):
        book.coverage.note(Side.PRIMARY, "", a_look(day))
    book.coverage.note(Side.REPLICA, "fra1", a_look(3))
    book.coverage.note(Side.PRIMARY, "", a_look(900_000))  # the clock was in the far future for a moment
    days = book.coverage.days(Side.PRIMARY, "", 0, 10**6)
    assert len(days) == MAX_DAYS
    assert (days[0].day, days[-2].day, days[-1].day) == (1031, 1000 + MAX_DAYS + 29, 900_000)
    assert [day.day for day in book.coverage.days(Side.REPLICA, "fra1", 0, 10)] == [3]


def test_days_and_maps_survive_the_process(tmp_path: Path) -> None:
    """What was noted is there when the book is opened again; a day on which nobody looked is not."""
    with closing(Findings(tmp_path / "f.db")) as book:
        book.coverage.note(Side.PRIMARY, "", a_look(7))
        book.coverage.note(Side.PRIMARY, "", a_look(9))
        book.coverage.keep_map(Side.REPLICA, "fra1", AgeMap(5, 3, [Cell(3, 0, 2, 1)]))
    with closing(Findings(tmp_path / "f.db", readonly=True)) as book:
        assert [day.day for day in book.coverage.days(Side.PRIMARY, "", 6, 9)] == [7, 9]
        assert book.coverage.map(Side.REPLICA, "fra1") == AgeMap(5, 3, [Cell(3, 0, 2, 1)])
        assert book.coverage.map(Side.REPLICA, "nyc1") is None


def test_a_book_of_an_older_version_begins_its_history(tmp_path: Path) -> None:
    """A findings book from before is brought up to date when it is opened; what it held is still there."""
    path = tmp_path / "findings.db"
    with closing(Database(path, FINDINGS[:2])) as old, old.transaction():
        old.execute("INSERT INTO pin VALUES('before-upgrade', 4, 5, 'ticket')")
    with closing(Findings(path)) as book:
        assert book.coverage.days(Side.PRIMARY, "", 0, 10**6) == []
        book.coverage.note(Side.PRIMARY, "", a_look(7))
        assert [pin.name for pin in book.pins()] == ["before-upgrade"]


def test_a_scrub_notes_how_its_side_stands(tmp_path: Path) -> None:
    """While a scrub runs, each day has a row; what got overdue while it was paused shows on that day."""
    rig = Rig(tmp_path, WEEK)
    rig.surface.add(10**9)
    asyncio.run(rig.live(3 * DAY_S))
    days = rig.findings.coverage.days(Side.PRIMARY, "", 0, 10**6)
    first = day_of(BEGIN_NS)
    assert [day.day for day in days] == [first, first + 1, first + 2, first + 3]
    assert all(day.total_bytes == 10**9 and not day.overdue_bytes for day in days)
    assert days[1].looks > 86_400 / NOTE_EVERY_S / 2
    assert rig.status.overdue_bytes == 0


def test_what_is_overdue_is_noted(tmp_path: Path) -> None:
    """Bytes that were verified longer than `scrub_every` ago are overdue, on the day and in the status."""
    rig = Rig(tmp_path, WEEK)
    rig.surface.parts.append((BEGIN_NS - int(9 * DAY_S * 1e9), 700))
    rig.surface.parts.append((BEGIN_NS, 300))
    rig.surface.doubts = ("nothing can be looked at",)  # so it stays overdue
    asyncio.run(rig.live(3600))
    (day,) = rig.findings.coverage.days(Side.PRIMARY, "", 0, 10**6)
    assert (day.total_bytes, day.overdue_bytes, rig.status.overdue_bytes) == (1000, 700, 700)


def test_a_side_that_cannot_be_looked_at_leaves_no_day(tmp_path: Path) -> None:
    """A scrub that fails writes nothing: the day stays unknown, and does not look like a good one."""
    rig = Rig(tmp_path, WEEK)
    rig.surface.add(1000)
    rig.surface.failure = ReplicadError("the disk is gone")
    asyncio.run(rig.live(3600))
    assert rig.status.state == "failed"
    assert rig.findings.coverage.days(Side.PRIMARY, "", 0, 10**6) == []


def test_what_a_peer_says_is_made_harmless() -> None:
    """Numbers are brought within bounds that a book can keep, and a map has no more cells than one has."""
    said = ScrubStatus("www", "replica", "fra1", total_bytes=-5, never_bytes=-1, overdue_bytes=-9, divergent={"x": -3})
    assert look_of(said, 86_400 * 10**9) == Day(1, 86_400 * 10**9, 1, 0, 0, 0)
    huge = ScrubStatus("www", "replica", "fra1", total_bytes=10**40, divergent={"x": 10**40})
    assert (look_of(huge, 1).total_bytes, look_of(huge, 1).open) == (MOST, MOST)
    assert received(AgeMap(1, 10**40, [Cell(10**40)]), CELLS, 77) == AgeMap(77, MOST, [Cell(MOST)])
    found = received(AgeMap(1, -1, [Cell(-1, -1, -1, -1)] * (CELLS + 5)), CELLS, 77)
    assert (found.at_ns, found.total_bytes, len(found.cells)) == (77, 0, CELLS)
    assert set(map(tuple, ([c.bytes, c.never_bytes, c.oldest_ns, c.bad] for c in found.cells))) == {(0, 0, 0, 0)}


# ------------------------------------------------------------------------------------------------------------- maps


@given(
    st.lists(st.tuples(st.integers(1, 10**12), st.integers(0, 10**18), st.integers(0, 2)), max_size=80),
    st.integers(1, 40),
)
def test_a_map_counts_each_byte_once(parts: list[tuple[int, int, int]], cells: int) -> None:
    """The cells together have all bytes and findings of the parts, and the oldest moment of them all."""
    total = sum(size for size, _, _ in parts)
    mapper = Mapper(total, cells)
    for size, at_ns, bad in parts:
        mapper.add(size, 0 if at_ns else size, at_ns, bad)
    found = mapper.finish(5)
    slack = len(parts) * cells + 1  # a byte at each border, from rounding
    assert abs(sum(cell.bytes for cell in found.cells) - total) <= slack
    assert sum(cell.bad for cell in found.cells) == sum(bad for _, _, bad in parts)
    never = sum(size for size, at_ns, _ in parts if not at_ns)
    assert abs(sum(cell.never_bytes for cell in found.cells) - never) <= slack
    known = [at_ns for _, at_ns, _ in parts if at_ns]
    assert min((cell.oldest_ns for cell in found.cells if cell.oldest_ns), default=0) == min(known, default=0)


def a_ledger(path: Path, parts: list[tuple[int, int, int, int]], fresh: tuple[int, int] | None = None) -> Path:
    """A ledger with these parts: file, stretch, when it was verified, bytes; and one run of new files."""
    with closing(Database(path, MIGRATIONS)) as database, database.transaction():
        database.insert("INSERT INTO part", "(?,?,?,?,?,?)", [(f, s, at, at, size, 0) for f, s, at, size in parts])
        if fresh:
            database.execute("INSERT INTO fresh VALUES(-5, ?, ?, ?)", (fresh[0], fresh[0], fresh[1]))
    return path


def test_a_ledgers_map_shows_old_new_and_damaged(tmp_path: Path) -> None:
    """Files stand in the order of their numbers; what is new is never verified; a finding stands where its block is."""
    path = a_ledger(tmp_path / "l.db", [(n, 0, 10**18 + n, 1000) for n in range(1, 101)], fresh=(200, 28_000))
    found = of_ledger(path, {(50, 3): 2}, 99)
    assert found.total_bytes == sum(cell.bytes for cell in found.cells) == 128_000
    assert sum(cell.never_bytes for cell in found.cells) == 28_000
    assert [number for number, cell in enumerate(found.cells) if cell.bad] == [49 * CELLS // 128]
    assert found.cells[0].oldest_ns == 10**18 + 1
    assert found.cells[-1] == Cell(250, 250, 0, 0)


def test_an_empty_ledger_has_an_empty_map(tmp_path: Path) -> None:
    """Nothing recorded: no cell."""
    assert of_ledger(a_ledger(tmp_path / "l.db", []), {}, 1) == AgeMap(1, 0, [])


def test_many_parts_are_summed_up_by_the_book(tmp_path: Path) -> None:
    """A hundred thousand parts come to a map whose bytes, ages and findings are exact."""
    count = 100_000
    path = a_ledger(tmp_path / "l.db", [(n, 0, 10**18 + n % 7, 65_536) for n in range(1, count + 1)])
    found = of_ledger(path, {(count, 0): 1, (1, 0): 1}, 1)
    assert sum(cell.bytes for cell in found.cells) == found.total_bytes == count * 65_536
    assert {cell.oldest_ns for cell in found.cells} == {10**18}
    assert (found.cells[0].bad, found.cells[-1].bad) == (1, 1)


def test_a_stores_map_shows_what_of_each_segment_is_verified() -> None:
    """A segment that was never verified is new, one that grew is in part, and findings stand in their segment."""
    found = of_segments({1: 512, 2: 512, 3: 1024}, {1: (512, 10), 3: (512, 30)}, {2: 4}, 7)
    assert found.total_bytes == 2048
    assert sum(cell.never_bytes for cell in found.cells) == 512 + 512
    assert found.cells[CELLS // 4].bad == 4
    assert found.cells[0] == Cell(4, 0, 10, 0)
