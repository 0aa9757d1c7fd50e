"""How a side's findings are counted for status and metrics."""

from __future__ import annotations

from pathlib import Path

from replicad.db.findings import Findings
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
