"""What a report makes of this node's books, with nobody to ask."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from contextlib import closing
from pathlib import Path

from kit_report import DAY_NS, NOW_NS, a_record
from kit_restore import Writer
from replicad.cli import report_books, report_facts
from replicad.cli.books import Book
from replicad.cli.explain import Seat
from replicad.cli.report_pictures import NEW, UNDATED, age_maps, look_of
from replicad.cli.report_sources import Sources
from replicad.config.values import Config, DatasetConfig, NodeConfig
from replicad.db.catalog import Catalog
from replicad.db.drills import Drills as DrillBook
from replicad.model.coverage import AgeMap, Cell
from replicad.model.divergence import Side
from replicad.model.drill import DrillRecord, Outcome
from replicad.model.report import Drills, SideReport, Snapshots
from replicad.status import NodeStatus, ScrubStatus
from replicad.work.archive import catalog_path
from replicad.work.drill_book import drills_path


def drills_of(state: Path, *records: DrillRecord) -> Drills:
    """What the last week's report says of these drills."""
    path = drills_path(state, "www")
    path.parent.mkdir()
    with closing(DrillBook(path)) as book:
        for record in records:
            book.add(record)
    config = Config(Path("config.toml"), NodeConfig("ams1", state, state / "key"))
    return report_facts._drills(Sources(config, NOW_NS, 7), DatasetConfig("www", Path("/www")), "fra1", [])


def test_a_failure_is_told_though_it_is_older_than_the_period(tmp_path: Path) -> None:
    """A month of drills that found nothing out since leaves it standing; it is none of the drills of the period."""
    lately = [a_record(number, Outcome.INCONCLUSIVE) for number in (7, 8, 9, 10)]
    found = drills_of(tmp_path, a_record(5), a_record(6, Outcome.FAILED, reasons=["a\x1bb: is gone"]), *lately)
    assert found.failure is not None and (found.failure.number, found.failure.reasons) == (2, ["a?b: is gone"])
    assert [record.number for record in found.records] == [6]


def test_the_newest_is_what_was_made_last_though_a_clock_was_ahead(tmp_path: Path) -> None:
    """Of snapshots and of proven drills, whatever moment was given to an earlier one."""
    with Writer(tmp_path / "store") as writer:
        for number, days in enumerate((10, 100, 20, 21), 1):
            writer.put(b"")
            writer.seal(number, days * DAY_NS)
    found = report_facts._own_snapshots(tmp_path / "store", [])
    assert found == Snapshots(4, 4, 10 * DAY_NS, 21 * DAY_NS, 4, 21 * DAY_NS)
    drills = drills_of(tmp_path, a_record(3, ended_ns=NOW_NS + DAY_NS), a_record(4))
    assert drills.last_success_ns == a_record(4).ended_ns and drills.is_overdue


def test_what_a_snapshot_has_lost_those_after_it_have_lost_too(tmp_path: Path) -> None:
    """None from there on is complete, also where the one that lost it has been dropped."""
    with Writer(tmp_path / "store") as writer:
        for number in range(1, 5):
            writer.put(b"")
            writer.seal(number, number * DAY_NS)
    catalog = catalog_path(tmp_path / "store")
    for change, count in (("lost = 2", 4), ("dropped_ns = 7", 3)):
        with closing(Catalog(catalog)) as book:
            book.database.execute(f"UPDATE snapshot SET {change} WHERE number = 2")
        found = report_facts._own_snapshots(tmp_path / "store", [])
        assert found == Snapshots(count, 1, DAY_NS, 4 * DAY_NS, 1, DAY_NS)


def test_ages_against_a_deadline_that_nobody_knows_are_none(tmp_path: Path) -> None:
    """A replica that has said nothing since the daemon started: its map is not drawn as fresh, and does not say so."""
    cells = AgeMap(NOW_NS, 100, [Cell(50, 0, NOW_NS - 3000 * DAY_NS), Cell(50, 50, 0)])
    side = SideReport("replica", "fra1", "replica fra1", NOW_NS, map=cells)
    assert look_of(cells.cells[0], NOW_NS, 0.0) is UNDATED and look_of(cells.cells[1], NOW_NS, 0.0) is NEW
    picture = age_maps([side], "p")
    assert "50% verified; within which deadline is not known" in picture and "within ¼ of the deadline," not in picture
    said = ET.fromstring(picture).find("{*}desc")
    assert said is not None and "last verified within" not in str(said.text)


def test_the_deadline_of_its_own_side_is_in_the_configuration(tmp_path: Path) -> None:
    """A daemon that has not looked at anything yet, or does not answer, does not make old ages look young."""
    dataset = DatasetConfig("www", tmp_path, scrub_every_s=3600.0)
    config = Config(Path("config.toml"), NodeConfig("ams1", tmp_path, tmp_path / "key"), datasets=(dataset,))
    sources = Sources(config, NOW_NS, 7)
    book = Book(tmp_path / "none.db", Seat(Side.PRIMARY, "www", str(tmp_path), str(tmp_path)))
    (own,) = report_books._sides(sources, book, None, [], [])
    assert own.scrub_every_s == 3600.0 and own.state == ""
    line = ScrubStatus("www", "primary", "", scrub_every_s=1800.0)
    sources.status = NodeStatus("ams1", "1", now_ns=NOW_NS, scrubs=[line])
    (own,) = report_books._sides(sources, book, None, [], [])
    assert own.scrub_every_s == 1800.0
