"""What a report makes of this node's books, with nobody to ask."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from kit_report import DAY_NS, NOW_NS, a_record
from kit_restore import Writer
from replicad.cli import report_facts
from replicad.cli.report_sources import Sources
from replicad.config.values import Config, DatasetConfig, NodeConfig
from replicad.db.drills import Drills as DrillBook
from replicad.model.drill import DrillRecord, Outcome
from replicad.model.report import Drills, Snapshots
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
