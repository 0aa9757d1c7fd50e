"""Retention: what stays and what goes, by enumeration and by property."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replicad.model import retention
from replicad.model.retention import Plan, Received, Rules, plan

S = 1_000_000_000
HOUR, DAY = 3600 * S, 86_400 * S
MONDAY = 1_799_625_600 * S
"""Monday, 2027-01-11, midnight."""
THIN = Rules(within_s=2 * 86_400, hourly=3, daily=4, weekly=2, monthly=2, at_least=2, younger_than_s=86_400)


def history(*times_ns: int, first: int = 1, partial: tuple[int, ...] = ()) -> list[Received]:
    return [Received(n, at, n not in partial) for n, at in enumerate(times_ns, first)]


def every(step_ns: int, count: int, start_ns: int = MONDAY) -> list[Received]:
    return history(*(start_ns + i * step_ns for i in range(count)))


def kept(found: Plan) -> set[int]:
    return {one.number for one in found.choices if one.reason}


def reasons(found: Plan) -> dict[int, str]:
    return {one.number: one.reason for one in found.choices}


def carried_out(snapshots: list[Received], found: Plan) -> list[Received]:
    gone = set(found.going)
    return [one._replace(is_dropped=one.is_dropped or one.number in gone) for one in snapshots]


def now(snapshots: list[Received]) -> int:
    return max((one.received_ns for one in snapshots), default=0)


rules = st.builds(
    Rules,
    within_s=st.sampled_from([0.0, 3600.0, 86_400.0, 30 * 86_400.0]),
    hourly=st.integers(0, 5),
    daily=st.integers(0, 5),
    weekly=st.integers(0, 3),
    monthly=st.integers(0, 3),
    at_least=st.integers(1, 6),
    younger_than_s=st.sampled_from([86_400.0, 7 * 86_400.0]),
)
gaps = st.one_of(
    st.integers(0, HOUR), st.integers(0, 3 * DAY), st.integers(0, 60 * DAY), st.sampled_from([0, S, HOUR, DAY, 7 * DAY])
)


@st.composite
def ascending(draw: st.DrawFn, max_size: int = 40) -> list[Received]:
    steps = draw(st.lists(st.tuples(gaps, st.booleans()), min_size=1, max_size=max_size))
    times = itertools.accumulate((gap for gap, _ in steps), initial=MONDAY)
    return [Received(n, at, done) for n, (at, (_, done)) in enumerate(zip(list(times)[1:], steps, strict=True), 1)]


@st.composite
def any_times(draw: st.DrawFn) -> list[Received]:
    """Snapshots stamped by a clock that does what it likes."""
    times = draw(st.lists(st.integers(MONDAY - 400 * DAY, MONDAY + 400 * DAY), min_size=1, max_size=30))
    return history(*times)


def test_without_a_rule_everything_stays() -> None:
    """A minimum age and a minimum count let nothing go by themselves."""
    found = plan(every(DAY, 400), Rules(), {}, now(every(DAY, 400)))
    assert not found.going and not found.hold


def test_nothing_of_nothing() -> None:
    """An empty history has an empty plan."""
    assert plan([], THIN, {}, MONDAY) == Plan(())


def test_hours_days_weeks_and_months() -> None:
    """Snapshots of every hour of 100 days: each rule keeps the oldest of its buckets, and nothing else stays."""
    snapshots = every(HOUR, 100 * 24)
    found = reasons(plan(snapshots, THIN, {}, now(snapshots)))
    stays = {number: reason for number, reason in found.items() if reason}
    last = 100 * 24
    assert stays.pop(last) == "the newest"
    assert [n for n, why in stays.items() if why == "young"] == list(range(last - 23, last))
    assert [n for n, why in stays.items() if why == "within"] == list(range(last - 47, last - 23))
    assert [n for n, why in stays.items() if why == "daily"] == [96 * 24 + 1, 97 * 24 + 1]  # the others are within
    assert [n for n, why in stays.items() if why == "weekly"] == [13 * 7 * 24 + 1]  # and 14 weeks began yesterday
    months = [n for n, why in stays.items() if why == "monthly"]
    assert [_date(snapshots[n - 1]) for n in months] == ["2027-03-01", "2027-04-01"]


def _date(one: Received) -> str:
    return _date_of(one.received_ns)


def _date_of(at_ns: int) -> str:
    return datetime.fromtimestamp(at_ns // S, UTC).date().isoformat()


def test_partial_snapshots_do_not_stand_in_for_complete_ones() -> None:
    """Where the oldest of a bucket is partial, the oldest complete one stays beside it."""
    times = [*(MONDAY + i * HOUR for i in range(4)), MONDAY + 40 * DAY, MONDAY + 41 * DAY, MONDAY + 42 * DAY]
    snapshots = history(*times, partial=(1, 2))
    found = reasons(plan(snapshots, Rules(monthly=2, at_least=1, younger_than_s=86_400), {}, now(snapshots)))
    assert found == {1: "monthly", 2: "", 3: "monthly", 4: "", 5: "monthly", 6: "young", 7: "the newest"}


def test_what_is_protected_says_so() -> None:
    """A pin keeps what would go, with its own reason."""
    snapshots = every(HOUR, 400)
    bare = plan(snapshots, Rules(within_s=3600), {}, now(snapshots))
    found = plan(snapshots, Rules(within_s=3600), {bare.going[3]: "pin before-upgrade"}, now(snapshots))
    assert reasons(found)[bare.going[3]] == "pin before-upgrade"
    assert set(found.going) == set(bare.going) - {bare.going[3]}


def test_the_minimum_counts_days() -> None:
    """Of a hundred days as many stay as the minimum says; of two days, so many snapshots in all."""
    rule = Rules(within_s=3600, at_least=5, younger_than_s=86_400)
    days = every(DAY, 100)
    assert len(kept(plan(days, rule, {}, now(days)))) == 5
    short = every(HOUR, 6) + history(*(MONDAY + i * DAY for i in (10, 12, 14)), first=7)
    assert kept(plan(short, rule, {}, now(short))) == {1, 2, 7, 8, 9}


def test_a_clock_that_was_set_back_decides_nothing() -> None:
    """While the clock is behind the newest snapshot everything stays, and the plan says why."""
    snapshots = every(HOUR, 400)
    found = plan(snapshots, THIN, {}, now(snapshots) - S)
    assert not found.going and "behind" in found.hold


@pytest.mark.parametrize("jump_ns", [-20 * 365 * DAY, -40 * DAY, 40 * DAY, 60 * 365 * DAY])
def test_what_a_wrong_clock_has_stamped_stays(jump_ns: int) -> None:
    """Snapshots stamped during a jump stay, and the others are thinned as if those were not there."""
    times = [MONDAY + i * HOUR for i in range(60 * 24)]
    wrong = range(700, 720)
    snapshots = history(*(at + (jump_ns if i in wrong else 0) for i, at in enumerate(times)))
    true = history(*times)
    found, plain = (plan(one, THIN, {}, now(true)) for one in (snapshots, true))
    assert {i + 1 for i in wrong} <= kept(found)
    assert set(found.going) <= set(plain.going) and found.going


def test_a_clock_that_jumps_ahead_makes_nothing_old_at_once() -> None:
    """The last days before a jump of decades stay, by their age and the rules of days."""
    snapshots = every(HOUR, 24 * 30)
    ahead = [*snapshots, Received(10_000, now(snapshots) + 60 * 365 * DAY, True)]
    rule = Rules(within_s=5 * 86_400, daily=7)
    found = plan(ahead, rule, {}, now(ahead))
    assert set(range(24 * 30 - 24 * 3, 24 * 30)) <= kept(found)
    assert sum(why == "daily" for why in reasons(found).values()) >= 3


def test_a_dead_primary_loses_no_history() -> None:
    """What stays a moment after the last snapshot stays ten years later."""
    snapshots = every(HOUR, 24 * 60)
    assert plan(snapshots, THIN, {}, now(snapshots)) == plan(snapshots, THIN, {}, now(snapshots) + 3650 * DAY)


@given(ascending() | any_times(), rules, st.integers(0, 10 * DAY))
def test_the_newest_never_goes(snapshots: list[Received], rule: Rules, late_ns: int) -> None:
    """Neither the newest snapshot nor the newest complete one goes, whatever the clock says."""
    found = kept(plan(snapshots, rule, {}, MONDAY + late_ns))
    assert snapshots[-1].number in found
    assert {one.number for one in [one for one in snapshots if one.is_complete][-1:]} <= found


@given(ascending() | any_times(), rules)
def test_a_plan_carried_out_leaves_nothing_to_do(snapshots: list[Received], rule: Rules) -> None:
    """Planning again after a plan was carried out lets nothing more go."""
    at_ns = now(snapshots)
    after = carried_out(snapshots, plan(snapshots, rule, {}, at_ns))
    assert plan(after, rule, {}, at_ns).going == []


@given(ascending(), rules, st.integers(0, 30 * DAY), st.integers(1, 60), st.booleans())
@settings(max_examples=300, deadline=None)
def test_junk_pushes_nothing_out(good: list[Received], rule: Rules, gap_ns: int, count: int, done: bool) -> None:
    """Any number of snapshots within one hour cost no more of those before than the last of them alone."""
    last_ns = now(good) + gap_ns
    begin_ns = max(now(good), last_ns // HOUR * HOUR)
    times = [begin_ns + (last_ns - begin_ns) * i // count for i in range(1, count + 1)]
    junk = [Received(1000 + i, at, done) for i, at in enumerate(times)]
    numbers = {one.number for one in good}
    alone, flooded = (kept(plan([*good, *more], rule, {}, last_ns)) & numbers for more in (junk[-1:], junk))
    assert alone <= flooded


@given(ascending(), rules, st.lists(st.tuples(st.integers(0, HOUR), st.booleans()), max_size=40))
@settings(max_examples=300, deadline=None)
def test_junk_takes_no_bucket_from_a_good_one(good: list[Received], rule: Rules, junk: list[tuple[int, bool]]) -> None:
    """What stands for its hour, day, week or month still does when others come in the same hour, complete or not."""
    end_ns = (now(good) // HOUR + 1) * HOUR - 1
    times = sorted((min(now(good) + gap, end_ns), done) for gap, done in junk)
    more = [Received(1000 + i, at, done) for i, (at, done) in enumerate(times)]
    before = reasons(plan(good, rule, {}, end_ns))
    standing = {n for n, why in before.items() if why in ("hourly", "daily", "weekly", "monthly", "at least")}
    assert standing <= kept(plan([*good, *more], rule, {}, end_ns))


@given(ascending(), st.integers(1, 3), st.lists(st.tuples(st.integers(0, 31 * DAY), st.booleans()), max_size=40))
@settings(max_examples=300, deadline=None)
def test_a_month_of_junk_takes_no_month_from_a_good_one(
    good: list[Received], months: int, junk: list[tuple[int, bool]]
) -> None:
    """The first snapshots of a month stay the ones that stand for it, whatever follows in that month."""
    begin_ns = now(good)
    days = range(begin_ns // DAY, begin_ns // DAY + 32)
    end_ns = next(day for day in days if _date_of(day * DAY)[:7] != _date_of(begin_ns)[:7]) * DAY - 1
    times = sorted((min(begin_ns + gap, end_ns), done) for gap, done in junk)
    more = [Received(1000 + i, at, done) for i, (at, done) in enumerate(times)]
    rule = Rules(monthly=months, at_least=1, younger_than_s=86_400)
    before = reasons(plan(good, rule, {}, end_ns))
    standing = {n for n, why in before.items() if why == "monthly"}
    assert standing <= kept(plan([*good, *more], rule, {}, end_ns))


@given(ascending() | any_times(), rules, st.sets(st.integers(1, 40)))
def test_pins_stay(snapshots: list[Received], rule: Rules, pins: set[int]) -> None:
    """What is pinned stays, and a pin lets nothing else go."""
    at_ns = now(snapshots)
    bare, pinned = (plan(snapshots, rule, dict.fromkeys(names, "pin"), at_ns) for names in (set[int](), pins))
    assert pins & {one.number for one in snapshots} <= kept(pinned)
    assert set(pinned.going) <= set(bare.going) | pins


@given(ascending(), rules)
def test_minimum_age_and_count(snapshots: list[Received], rule: Rules) -> None:
    """Nothing younger than the minimum age goes, and no fewer stay than the minimum count, if there are as many."""
    found = plan(snapshots, rule, {}, now(snapshots))
    for one in snapshots:
        if now(snapshots) - one.received_ns < rule.younger_than_s * S:
            assert one.number in kept(found)
    assert len(kept(found)) >= min(rule.at_least, len(snapshots))


@given(st.lists(st.integers(0, 20), max_size=9))
def test_the_longest_ascending_run(times: list[int]) -> None:
    """It ascends and none is longer, by trying all."""
    found = retention._longest_ascending(times)
    assert found == sorted(set(found)) and [times[i] for i in found] == sorted(times[i] for i in found)
    every_one = (c for size in range(len(times) + 1) for c in itertools.combinations(times, size))
    assert len(found) == max(len(c) for c in every_one if list(c) == sorted(c))
