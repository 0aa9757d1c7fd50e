"""The model of drills: quotas, outcomes, estimates, trends and when a drill is due."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicad.model.drill import (
    AGAIN_FAILED_S,
    AGAIN_INCONCLUSIVE_S,
    DAY_NS,
    MAX_REASONS,
    Amount,
    DrillRecord,
    Outcome,
    Trend,
    Validated,
    estimate_s,
    gravest,
    is_overdue,
    next_ns,
    quota,
    trend,
)

AMOUNTS = st.builds(Amount, st.integers(0, 10**9), st.integers(0, 10**15))


def test_a_whole_is_as_grave_as_its_gravest_part() -> None:
    """One failure makes a whole failed, one doubt makes it inconclusive, and of nothing nothing is known."""
    assert gravest([]) is Outcome.INCONCLUSIVE
    for parts in product(Outcome, repeat=3):
        expected = (
            Outcome.FAILED
            if Outcome.FAILED in parts
            else Outcome.INCONCLUSIVE
            if Outcome.INCONCLUSIVE in parts
            else Outcome.PROVEN
        )
        assert gravest(parts) is expected


def test_blame_never_makes_an_outcome_better() -> None:
    """What was failed stays so, whatever is not known besides; reasons are bounded."""
    record = DrillRecord("www", "fra1", outcome=Outcome.PROVEN)
    record.note_validated(Validated("gzip", "a.gz", Outcome.PROVEN))
    assert record.outcome is Outcome.PROVEN and record.validations == {"proven": 1} and not record.reasons
    record.note_validated(Validated("gzip", "b.gz", Outcome.FAILED, "cut off"))
    record.blame(Outcome.INCONCLUSIVE, "and something else")
    assert record.outcome is Outcome.FAILED and record.reasons == ["b.gz: gzip: cut off", "and something else"]
    for number in range(2 * MAX_REASONS):
        record.blame(Outcome.FAILED, str(number))
    assert len(record.reasons) == MAX_REASONS


@given(AMOUNTS, st.floats(1, 10**7), st.floats(1, 10**9))
def test_enough_drills_in_time_take_everything(total: Amount, every_s: float, within_s: float) -> None:
    """The quota times the drills that fit into the stated time is at least everything, and no quota is more."""
    part = quota(total, every_s, within_s)
    drills = max(1, int(within_s / every_s))
    assert part.files * drills >= total.files and part.size * drills >= total.size
    assert part.files <= total.files and part.size <= total.size
    assert (part.files > 0) == (total.files > 0)


@given(AMOUNTS, AMOUNTS, st.floats(0.001, 10**6))
def test_an_estimate_is_never_below_what_was_measured(drilled: Amount, total: Amount, seconds: float) -> None:
    """It is known when anything was drilled, and at least as long as that took."""
    estimate = estimate_s(seconds, drilled, total)
    assert (estimate > 0) == (drilled.files > 0)
    assert not estimate or estimate >= seconds * 0.999999


def test_an_estimate_grows_with_what_was_drilled_least_of() -> None:
    """A tenth of the bytes in a hundredth of the files took a minute: everything takes a hundred minutes."""
    assert estimate_s(60, Amount(1, 100), Amount(100, 1000)) == 6000
    assert estimate_s(60, Amount(10, 100), Amount(100, 100_000)) == 60_000
    assert estimate_s(60, Amount(7, 9), Amount(7, 9)) == 60


def test_the_trend_follows_the_middle_of_the_slopes() -> None:
    """It needs three drills, forgives one odd one, and calls small changes steady."""

    def after(*seconds: float) -> Trend:
        return trend([(day * 7 * DAY_NS, value) for day, value in enumerate(seconds)])

    assert after(100, 200).word == "unknown" and trend([]).word == "unknown"
    assert after(100, 101, 99, 100).word == "steady"
    rising = after(100, 170, 240, 310)
    assert rising.word == "rising" and rising.day_s == pytest.approx(10)
    assert after(400, 300, 200, 100).word == "falling"
    assert after(100, 101, 5000, 102, 103, 99).word == "steady", "one odd drill moves nothing"
    assert trend([(0, 5.0), (0, 9.0), (0, 7.0)]).word == "unknown", "a clock that stands still tells nothing"


@pytest.mark.parametrize(
    ("outcome", "wait_s"),
    [
        (Outcome.PROVEN, 7 * 86_400),
        (Outcome.FAILED, AGAIN_FAILED_S),
        (Outcome.INCONCLUSIVE, AGAIN_INCONCLUSIVE_S),
    ],
)
def test_the_next_drill_comes_sooner_after_a_bad_one(outcome: Outcome, wait_s: float) -> None:
    """A proven drill holds for drill_every, a failed one for a day, a doubtful one for an hour."""
    last = DrillRecord("www", "fra1", ended_ns=1000, outcome=outcome)
    assert next_ns(last, 7 * 86_400, 2000) == 1000 + int(wait_s * 1e9)
    assert next_ns(last, 60, 2000) == 1000 + 60 * 10**9, "never later than drill_every says"
    assert next_ns(None, 60, 2000) == 0 and next_ns(last, 0, 2000) == 0


def test_a_clock_that_was_ahead_holds_up_no_drill() -> None:
    """A drill that ended in years to come is followed by one at once, and proves nothing until then; one that ended a
    moment ahead is as good as any."""
    now, every_s = 100 * DAY_NS, 86_400.0
    ahead = DrillRecord("www", "fra1", ended_ns=now + 3000 * DAY_NS, outcome=Outcome.PROVEN)
    assert next_ns(ahead, every_s, now) == 0 and is_overdue(ahead.ended_ns, 0, now, every_s)
    slightly = DrillRecord("www", "fra1", ended_ns=now + 10**9, outcome=Outcome.PROVEN)
    assert next_ns(slightly, every_s, now) == now + DAY_NS + 10**9
    assert not is_overdue(slightly.ended_ns, 0, now, every_s)


def test_overdue_counts_from_the_last_proof_or_the_first_wish() -> None:
    """One and a half intervals after the last proof, or since drills are wanted; never where none are."""
    day = DAY_NS
    assert not is_overdue(10 * day, day, 11 * day, 86_400)
    assert is_overdue(10 * day, day, 12 * day, 86_400)
    assert is_overdue(0, 10 * day, 12 * day, 86_400) and not is_overdue(0, 10 * day, 11 * day, 86_400)
    assert not is_overdue(0, 10 * day, 99 * day, 0) and not is_overdue(0, 0, 99 * day, 86_400)
