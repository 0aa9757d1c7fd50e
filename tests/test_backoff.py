"""Backoff and bandwidth: the two rules of how long to wait on the link."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from replicad.link.backoff import FIRST_S, LAST_S, Backoff
from replicad.link.bandwidth import BURST_S, Bandwidth


@given(st.integers(0, 2**32), st.integers(1, 60))
def test_a_delay_lies_between_zero_and_a_limit_that_doubles(seed: int, failures: int) -> None:
    """Full jitter: any time up to 1 s, 2 s, 4 s … and never more than the last limit."""
    backoff = Backoff(random.Random(seed))
    for failure in range(failures):
        assert 0 <= backoff.failed() <= min(LAST_S, FIRST_S * 2**failure)
    assert backoff.failures == failures


def test_delays_spread_over_the_whole_range() -> None:
    """Primaries that lost one replica together do not come back together."""
    late = Backoff(random.Random(1))
    for _ in range(10):
        late.failed()
    delays = [late.failed() for _ in range(500)]
    assert min(delays) < 0.1 * LAST_S and max(delays) > 0.9 * LAST_S


def test_a_success_starts_over() -> None:
    """After a success the next failure is a first one."""
    backoff = Backoff(random.Random(1))
    for _ in range(10):
        backoff.failed()
    backoff.succeeded()
    assert backoff.failed() <= FIRST_S


def test_the_same_seed_gives_the_same_delays() -> None:
    """All randomness comes from the source given."""
    one, other = Backoff(random.Random(7)), Backoff(random.Random(7))
    assert [one.failed() for _ in range(9)] == [other.failed() for _ in range(9)]


@given(st.integers(1, 10**9), st.lists(st.integers(1, 8 * 1024**2), min_size=1, max_size=50))
def test_the_average_keeps_the_limit(rate: int, sizes: list[int]) -> None:
    """However the sizes are mixed, what was let out before any moment fits the rate and one burst."""
    bandwidth, now, sent = Bandwidth(rate), 1000.0, 0
    for size in sizes:
        now += bandwidth.reserve_s(size, now)
        assert sent <= rate * (now - 1000.0 + BURST_S) * (1 + 1e-6) + 1
        sent += size


def test_an_idle_line_does_not_save_up_bandwidth() -> None:
    """After a long pause no more than one burst goes out at once."""
    bandwidth = Bandwidth(1000)
    assert bandwidth.reserve_s(1000, 0.0) == 0
    waits = [bandwidth.reserve_s(1000, 10_000.0) for _ in range(3)]
    assert waits[0] == 0 and waits[2] >= 2 - BURST_S - 1e-6


def test_no_limit_never_waits() -> None:
    """0 means unlimited."""
    assert all(Bandwidth(0).reserve_s(10**9, float(now)) == 0 for now in range(3))
