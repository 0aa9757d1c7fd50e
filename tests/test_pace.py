"""The pace of a scrub: deadlines in, a share of the time out; by property."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from replicad.model import pace
from replicad.model.pace import DAY_S, Demand, Interruption, Policy, Situation, Speed, Why, decide

S = 1_000_000_000
NOW_NS = 1_800_000_000 * S
WEEK_S = 7 * DAY_S
WEEK = Policy(WEEK_S, 0.25)

quiets = st.none() | st.tuples(st.integers(0, 1439), st.integers(0, 1439)).filter(lambda q: q[0] != q[1])
seconds = st.floats(0, DAY_S - 1)
spans = st.floats(0, 40 * DAY_S)


def demand(left_bytes: float, in_s: float, why: Why = Why.AGE) -> Demand:
    return Demand(int(left_bytes), NOW_NS + int(in_s * S), why)


def situation(*demands: Demand, speed: float = 100e6, **more: object) -> Situation:
    values = {"now_ns": NOW_NS, "second_of_day": 8 * 3600.0, "speed_bytes_s": speed, "lasting_bytes_s": speed}
    return Situation(demands=demands, **(values | more))  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------------- quiet hours


@given(quiets, seconds, spans)
def test_active_and_quiet_time_add_up(quiet: tuple[int, int] | None, second: float, span_s: float) -> None:
    """Counted minute by minute, the active part of a span is what `active_s` says."""
    span_s = min(span_s, 2 * DAY_S)
    step_s = max(1.0, span_s / 500)
    counted, at_s = 0.0, second + step_s / 2
    while at_s < second + span_s:
        counted += 0 if pace.is_within(quiet, at_s % DAY_S) else step_s
        at_s += step_s
    assert pace.active_s(quiet, second, span_s) == pytest.approx(counted, abs=6 * step_s)


@given(quiets, seconds, spans)
@example((0, 1), 0.0, 0.0)
def test_so_much_work_is_done_when_the_span_says(quiet: tuple[int, int] | None, second: float, work_s: float) -> None:
    """`span_of_s` is the inverse of `active_s`."""
    span_s = pace.span_of_s(quiet, second, work_s)
    assert span_s >= work_s - 1e-3
    assert pace.active_s(quiet, second, span_s) == pytest.approx(work_s, abs=1e-3)


@given(quiets, seconds)
def test_quiet_hours_end(quiet: tuple[int, int] | None, second: float) -> None:
    """After `until_active_s` it is not quiet; there is nothing to wait for outside of quiet hours."""
    left_s = pace.until_active_s(quiet, second)
    assert (left_s > 0) == pace.is_within(quiet, second)
    assert not pace.is_within(quiet, round(second + left_s, 3) % DAY_S)


# ------------------------------------------------------------------------------------------------------- demands


@given(st.floats(1, 365 * DAY_S), st.integers(0, 2**61), st.text(max_size=20), st.sampled_from(["primary", "replica"]))
def test_a_cycle_contains_its_moments(every_s: float, now_ns: int, dataset: str, side: str) -> None:
    """Every moment lies in a cycle, and the cycles of one side follow each other without a gap."""
    policy = Policy(every_s, 0.5)
    begin_ns, length_ns = pace.cycle_begin_ns(policy, dataset, side, now_ns), int(policy.cycle_s * 1e9)
    assert begin_ns <= now_ns < begin_ns + length_ns
    assert pace.cycle_begin_ns(policy, dataset, side, begin_ns + length_ns) == begin_ns + length_ns


def test_the_two_sides_are_half_a_cycle_apart() -> None:
    """What one side has just read is what the other has not seen for longest; two datasets begin at other moments."""
    here = pace.cycle_begin_ns(WEEK, "www", "primary", NOW_NS)
    there = pace.cycle_begin_ns(WEEK, "www", "replica", NOW_NS)
    assert abs(here - there) == pytest.approx(WEEK.cycle_s * 1e9 / 2, rel=1e-6)
    assert here != pace.cycle_begin_ns(WEEK, "db", "primary", NOW_NS)


def test_steps_of_ages_do_not_move() -> None:
    """The steps of a minute later are the same moments, so that a deadline does not move while time goes on."""
    first, later = (pace.age_steps(WEEK, NOW_NS + passed * S) for passed in (0, 60))
    assert first == later
    assert first[0] <= NOW_NS - WEEK_S * S and NOW_NS - WEEK_S * S * 0.05 <= first[-1] <= NOW_NS


# ---------------------------------------------------------------------------------------------------------- pace


def test_nothing_due_is_nothing_read() -> None:
    """Without a demand or a request it does not read."""
    assert decide(WEEK, situation()).share == 0


@given(st.lists(st.tuples(st.floats(1, 1e13), st.floats(60, 6e5)), min_size=1, max_size=8), quiets)
def test_the_pace_meets_every_demand(parts: list[tuple[float, float]], quiet: tuple[int, int] | None) -> None:
    """At the pace that is called needed, each demand is through by its time, quiet hours left out."""
    policy = Policy(WEEK_S, 0.25, quiet)
    now = situation(*(demand(size, in_s) for size, in_s in parts))
    needed = pace.needed_bytes_s(policy, now)
    for size, in_s in parts:
        active_s = max(pace.active_s(quiet, now.second_of_day, in_s), WEEK_S * pace.SHORTEST)
        assert needed * active_s >= int(size) * 0.999999


@given(st.floats(1, 1e14), st.floats(-1e6, 6e5), st.floats(0, 1), st.floats(1e3, 1e10), quiets, st.floats(0.01, 1))
def test_shares_are_shares(
    left: float, in_s: float, strain: float, speed: float, quiet: tuple[int, int] | None, duty: float
) -> None:
    """Whatever the situation, the share lies between 0 and 1, and a turn is bounded."""
    policy = Policy(WEEK_S, duty, quiet)
    now = decide(policy, situation(demand(left, in_s), speed=speed, strain=strain, requested_bytes=int(left)))
    assert 0 <= now.share <= 1 and now.share <= now.ceiling <= 1
    assert pace.MIN_TURN_BYTES <= now.turn_bytes <= pace.MAX_TURN_BYTES
    assert (now.share == 0) == now.is_quiet and now.rest_s(0.1, 1000) >= 0


@given(st.floats(1e-3, 10), st.integers(0, 10**9), st.floats(0.01, 1))
def test_duty_is_kept_by_every_turn(took_s: float, done: int, duty: float) -> None:
    """A turn that was slow, whatever it gave, is followed by a rest that keeps the duty."""
    now = decide(Policy(WEEK_S, duty), situation(demand(1e9, 6e5)))
    assert took_s / (took_s + now.rest_s(took_s, done)) <= duty + 1e-9


@given(st.floats(1e-3, 10), st.integers(0, 10**9), st.floats(0.01, 0.99), st.floats(1e3, 1e10), st.booleans())
def test_a_request_is_read_for_its_share_of_the_time_whatever_that_gives(
    took_s: float, done: int, duty: float, speed: float, strained: bool
) -> None:
    """The speed that was measured before does not matter: a scrub that was slow at first is not kept slow by that."""
    strain = 0.9 if strained else 0.0
    now = decide(Policy(WEEK_S, duty), situation(speed=speed, strain=strain, requested_bytes=10**9))
    expected = duty / pace.YIELD if strained else duty
    assert took_s / (took_s + now.rest_s(took_s, done)) == pytest.approx(expected)


def test_the_length_of_a_turn_follows_from_the_disk_alone() -> None:
    """Fixed costs of a turn do not make the next one shorter."""
    slow = situation(demand(1e9, 6e5), speed=1e6)
    assert decide(WEEK, slow).turn_bytes == pace.MIN_TURN_BYTES
    told_apart = decide(WEEK, replace(slow, reading_bytes_s=100e6))
    assert told_apart.turn_bytes == 100e6 * pace.TURN_S and told_apart.share == decide(WEEK, slow).share


def test_it_does_not_race() -> None:
    """What is due in six days takes six days: at the begin of a cycle it reads no faster than on its last day."""
    now = decide(WEEK, situation(demand(100e9, 6 * DAY_S, Why.CYCLE)))
    assert now.rate_bytes_s == pytest.approx(100e9 / (6 * DAY_S))
    assert now.on_track and now.reason == ""


def test_the_deadline_may_need_more_than_the_duty_and_says_so() -> None:
    """The duty is a ceiling until a deadline needs more; then that is told, and the scrub is on track all the same."""
    now = decide(WEEK, situation(demand(50e6 * DAY_S, DAY_S)))
    assert now.share == pytest.approx(0.5)
    assert now.on_track and now.reason == "the deadline needs 50% of the disk's time, more than scrub_duty (25%)"


@given(st.floats(1e-3, 10), st.integers(0, 10**9), st.floats(1e6, 1e10))
def test_where_all_of_the_time_is_read_in_nothing_rests(took_s: float, done: int, speed: float) -> None:
    """Not even after a turn that was faster than the others; and turns are longer there, a second of reading."""
    now = decide(Policy(WEEK_S, 1.0), situation(demand(1e9, 6e5), speed=speed, requested_bytes=1))
    assert now.share == 1 and now.rest_s(took_s, done) == 0
    shorter = decide(Policy(WEEK_S, 0.5), situation(demand(1e9, 6e5), speed=speed, requested_bytes=1))
    assert now.turn_bytes >= shorter.turn_bytes and now.turn_bytes <= max(pace.MIN_TURN_BYTES, speed * 1.01)


def test_a_cycle_alone_never_breaks_the_duty() -> None:
    """A cycle promises nothing: it is read at the duty at most."""
    now = decide(WEEK, situation(demand(90e6 * DAY_S, DAY_S, Why.CYCLE)))
    assert now.share == 0.25 and now.on_track


def test_a_cycle_that_has_begun_late_is_read_at_twice_the_even_pace() -> None:
    """Everything left an hour before the end of a cycle is no reason to hurry."""
    begin_ns = NOW_NS - int((WEEK.cycle_s - 3600) * S)
    late = pace.cycle_demand(WEEK, 100, 100, begin_ns, NOW_NS)
    assert (late.by_ns - NOW_NS) / S == pytest.approx(WEEK.cycle_s / 2)


def test_a_slow_disk_is_the_reason() -> None:
    """Not on track: the disk gives less than is needed."""
    now = decide(WEEK, situation(demand(40e6 * DAY_S, DAY_S * 0.3), speed=12e6))
    assert not now.on_track and now.share == 1
    assert now.reason.startswith("the disk gives 12 MB/s, ") and now.reason.endswith(" are needed")


def test_quiet_hours_are_the_reason() -> None:
    """Not on track only because of the quiet hours: so they are what is named."""
    policy = Policy(WEEK_S, 0.25, (480, 480 + 840))
    now = decide(policy, situation(demand(5 * 12e6 * DAY_S * 0.8, 4.3 * DAY_S), speed=12e6, second_of_day=0.0))
    assert not now.on_track
    assert now.reason.startswith("quiet hours leave 10 h a day: the disk gives 12 MB/s, ")


def test_a_pause_is_the_reason() -> None:
    """What is overdue after a pause names the pause, and what is read first."""
    past = Interruption("it was paused", 20 * 3600, NOW_NS - S)
    now = decide(WEEK, situation(demand(4e9, -DAY_S), interruption=past))
    assert (now.on_track, now.reason) == (False, "it was paused for 20 h: 4.0 GB are overdue and are read first")


def test_a_pause_that_lasts_is_foreseen() -> None:
    """While it is paused, it knows whether what is left can be made up for afterwards."""
    until_ns = NOW_NS + int(DAY_S * S)
    now = decide(WEEK, situation(demand(0.9 * 12e6 * DAY_S, DAY_S / 3), speed=12e6, paused_until_ns=until_ns))
    assert not now.on_track and now.reason.startswith("it is paused for another 24 h")
    assert decide(WEEK, situation(demand(1e6, 3 * DAY_S), speed=12e6, paused_until_ns=until_ns)).on_track


def test_what_is_overdue_is_made_up_for_without_a_race() -> None:
    """A deadline that is missed already is caught up with at the duty; faster if that took more than ten hours."""
    assert decide(WEEK, situation(demand(100e9, -3 * DAY_S))).share == 0.25
    assert decide(WEEK, situation(demand(2000e9, -3 * DAY_S))).rate_bytes_s == pytest.approx(2000e9 / (WEEK_S / 16))


def test_a_request_is_read_at_the_full_duty() -> None:
    """Whatever little is due otherwise."""
    assert decide(WEEK, situation(demand(1e6, DAY_S), requested_bytes=10**9)).share == 0.25


@pytest.mark.parametrize(("breaks", "share"), [(True, 0.25), (False, 0.0)])
def test_only_a_person_here_breaks_quiet_hours(breaks: bool, share: float) -> None:
    """In quiet hours nothing is read unless a scrub was asked for here."""
    policy = Policy(WEEK_S, 0.25, (420, 600))
    now = decide(policy, situation(demand(1e9, DAY_S), requested_bytes=10**9, breaks_quiet=breaks))
    assert (now.share, now.is_quiet) == (share, not breaks)


def test_a_strained_host_is_yielded_to_as_far_as_the_deadline_allows() -> None:
    """Under load it reads a quarter as fast, but not once half of the duty is needed."""
    easy, hard, near = demand(1e6 * DAY_S, DAY_S), demand(20e6 * DAY_S, DAY_S), demand(1e9, DAY_S / 2)
    assert decide(WEEK, situation(near, strain=0.9)).share == decide(WEEK, situation(near)).share
    assert decide(WEEK, situation(easy, strain=0.9)).share == decide(WEEK, situation(easy)).share / 4
    assert decide(WEEK, situation(hard, strain=0.9)).share == decide(WEEK, situation(hard)).share
    assert decide(WEEK, situation(easy, strain=0.9, requested_bytes=10**9)).share == 0.25 / 4


def test_before_anything_is_measured_it_reads_at_the_duty() -> None:
    """The first turn is a small one, and nothing is said about a disk of which nothing is known."""
    now = decide(WEEK, situation(demand(1e18, 60), speed=0.0))
    assert (now.share, now.turn_bytes, now.on_track) == (0.25, pace.FIRST_TURN_BYTES, True)


@given(st.integers(1, 10**12), st.floats(1e3, 1e9), quiets, seconds)
def test_a_forecast_comes_true(left: int, rate: float, quiet: tuple[int, int] | None, second: float) -> None:
    """Reading at that rate outside the quiet hours, so much is read by the moment that was forecast."""
    now = situation(second_of_day=second)
    end_ns = pace.finish_ns(Policy(WEEK_S, 0.25, quiet), now, left, rate)
    assert rate * pace.active_s(quiet, second, (end_ns - NOW_NS) / S) == pytest.approx(left, rel=1e-3, abs=rate * 1e-3)


def test_without_a_rate_there_is_no_forecast() -> None:
    """Nothing is foretold from nothing; what is done is done now."""
    assert pace.finish_ns(WEEK, situation(), 5, 0.0) == 0
    assert pace.finish_ns(WEEK, situation(), 0, 0.0) == NOW_NS


def test_short_turns_are_soon_forgotten() -> None:
    """After 33 turns, however short, half of what was measured before has faded: one long slow turn does not stay."""
    speed = Speed(1.0)
    speed.add(1000, 1.0)
    for _ in range(330):
        speed.add(10_000, 0.001)
    assert speed.bytes_s > 5e6


def test_speed_forgets() -> None:
    """After twenty times its memory only what was measured since counts."""
    speed = Speed(1.0)
    assert speed.bytes_s == 0
    speed.add(1000, 1.0)
    assert speed.bytes_s == 1000
    for _ in range(200):
        speed.add(5, 0.1)
    assert speed.bytes_s == pytest.approx(50, rel=1e-3)
