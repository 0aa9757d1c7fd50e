"""How a side's findings are counted for status and metrics."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import msgspec

from replicad.db.database import Database
from replicad.db.findings import MIGRATIONS, Findings
from replicad.model.divergence import Divergence, Part, Side
from replicad.model.verdict import Verdict
from replicad.work.scrub_book import tally

S = 10**9


def found(number: int, verdict: Verdict, found_ns: int) -> Divergence:
    """A block of the replica with that verdict, found then."""
    return Divergence(
        key=f"block:1:{number}", dataset="www", side=Side.REPLICA, peer="", part=Part.BLOCK, what="differs",
        verdict=verdict, found_ns=found_ns,
    )  # fmt: skip


def test_what_is_unclear_does_not_age_a_divergence(tmp_path: Path) -> None:
    """An alert pages for a divergence that stays open, by its own age and not by that of an older unclear finding."""
    book = Findings(tmp_path / "findings.db")
    book.report(found(1, Verdict.INCONCLUSIVE, 5 * S))
    alone = tally(book, Side.REPLICA, None)
    assert (alone.oldest_open_ns, alone.oldest_inconclusive_ns) == (0, 5 * S)
    book.report(found(2, Verdict.REPLICA_ROT, 90 * S))
    book.report(found(3, Verdict.BOTH_ROT, 70 * S))
    both = tally(book, Side.REPLICA, alone)
    assert (both.oldest_open_ns, both.oldest_inconclusive_ns) == (70 * S, 5 * S)
    book.close()


def test_a_divergence_ages_from_its_first_verdict(tmp_path: Path) -> None:
    """What was unclear for long is not unrepaired for as long; another verdict or a doubt does not make it young again,
    and its history still begins when it was found."""
    with closing(Findings(tmp_path / "findings.db")) as book:
        one = book.report(found(1, Verdict.INCONCLUSIVE, 5 * S))
        book.update(one := one.with_event(90 * S, "judged", verdict=Verdict.REPLICA_ROT))
        assert tally(book, Side.REPLICA, None).oldest_open_ns == 90 * S
        book.update(one := one.with_event(92 * S, "in doubt", verdict=Verdict.INCONCLUSIVE))
        assert tally(book, Side.REPLICA, None).oldest_inconclusive_ns == 5 * S
        book.update(one := one.with_event(95 * S, "judged", verdict=Verdict.BOTH_ROT))
        counted = tally(book, Side.REPLICA, None)
        assert (counted.oldest_open_ns, counted.oldest_inconclusive_ns) == (90 * S, 0)
        assert book.get_exactly(one.id) == one and one.found_ns == 5 * S


def test_a_verdict_that_an_older_replicad_gave_counts_from_when_it_was_found(tmp_path: Path) -> None:
    """Nobody wrote down when it was given."""
    old, path = found(1, Verdict.REPLICA_ROT, 5 * S), tmp_path / "findings.db"
    with closing(Database(path, MIGRATIONS[:4])) as database, database.transaction():
        row = ("ab", old.key, old.side, "", old.verdict, old.state, old.found_ns, 0, msgspec.msgpack.encode(old))
        database.execute("INSERT INTO divergence VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
        database.execute("INSERT INTO given VALUES('ab', ?, ?)", (old.side, old.verdict))
    with closing(Findings(path)) as book:
        assert tally(book, Side.REPLICA, None).oldest_open_ns == 5 * S
        assert book.totals() == {("replica", "replica_rot"): 1}
