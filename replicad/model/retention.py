"""Retention: which snapshots stay, each with the one reason why, and which may go. Pure.

**Owns** the rules, in this order: the newest; what somebody protects (a pin, a suspect change, a reader); what a clock
that jumped has stamped; what is young; what is recent; and of each hour, day, week and month the *oldest*, and the
oldest complete one. The oldest, because whatever arrives later in the same bucket, in whatever number, then changes
nothing: junk cannot push a good snapshot out, only time can. **Never** by a count of snapshots.

Time is the replica's own: when it received each snapshot. It passes only while snapshots arrive, and a silence counts
for `longest_silence_s` at most, so neither a dead primary nor a clock that jumps ahead makes history old at once.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import msgspec

_SECOND_NS = 1_000_000_000
_HOUR_NS = 3600 * _SECOND_NS
_DAY_NS = 24 * _HOUR_NS
DAY_S = 86_400.0
STEP_NS = _HOUR_NS
"""Clocks are set by seconds all the time; what is out of order by less than this was stamped well enough."""
_FOREVER_NS = 1 << 63
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LAST_DAY = 2_900_000
"""Days since 1970 that a date can express, with room to spare."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What stays, for one client. Without any of the first five nothing goes."""

    within_s: float = 0.0
    """All snapshots of so long before the newest."""
    hourly: int = 0
    """The oldest of each of so many hours that have any; likewise the next three."""
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    at_least: int = 7
    """Snapshots of at least so many days stay, or as many in all where there are fewer days."""
    younger_than_s: float = 7 * DAY_S
    """What is younger stays, whatever the rules say."""

    @property
    def is_off(self) -> bool:
        """Whether there is no rule by which anything could go."""
        return not (self.within_s or self.hourly or self.daily or self.weekly or self.monthly)

    @property
    def longest_silence_s(self) -> float:
        """How much older a silence makes what was before it, at most."""
        return self.younger_than_s / 2


class Received(NamedTuple):
    """One snapshot of the replica's history, in the order of numbers."""

    number: int
    received_ns: int
    is_complete: bool
    is_dropped: bool = False
    """Gone already: its time still tells how time passed."""


class Pin(msgspec.Struct, frozen=True):
    """A name by which a person keeps a snapshot, whatever the rules say."""

    name: str
    snapshot: int
    at_ns: int
    """When it was set."""
    reason: str = ""
    asked_by: str = ""
    """The client that asked for it over the link; "" when a person on the replica set it."""


class Choice(NamedTuple):
    """What becomes of one snapshot."""

    number: int
    reason: str
    """Why it stays; "" when it goes."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What becomes of all snapshots that are there."""

    choices: tuple[Choice, ...]
    """In the order of numbers."""
    hold: str = ""
    """Why nothing goes at all, whatever the rules say; "" when they decide."""

    @property
    def going(self) -> list[int]:
        """Numbers of the snapshots that go, oldest first."""
        return [one.number for one in self.choices if not one.reason]


HELD = "nothing goes for now"
NEWEST, NEWEST_COMPLETE = "the newest", "the newest complete one"
CLOCK = "its time does not fit into the history"
NO_RULE = "no rule lets anything go"


def plan(history: Sequence[Received], rules: Rules, protected: Mapping[int, str], now_ns: int) -> Plan:
    """What stays and what goes of `history`, which is all there ever was, ascending by number.

    `protected`: snapshots that stay for a reason of their own."""
    present = [one for one in history if not one.is_dropped]
    if rules.is_off or not present:
        return Plan(tuple(Choice(one.number, NO_RULE) for one in present))
    if hold := _doubt(history[-1], now_ns):
        return Plan(tuple(Choice(one.number, HELD) for one in present), hold)
    reasons = _Reasons({present[-1].number: NEWEST})
    reasons.protect(protected)
    reasons.add(NEWEST_COMPLETE, [one for one in present if one.is_complete][-1:])
    longest_ns = int(rules.longest_silence_s * _SECOND_NS)
    timeline = _timeline([one for one in history if one.received_ns <= now_ns], longest_ns)
    reasons.add(CLOCK, [one for one in present if one.number not in timeline])
    _apply(rules, [one for one in present if one.number in timeline], timeline, reasons)
    return Plan(tuple(Choice(one.number, reasons.given.get(one.number, "")) for one in present))


def _doubt(newest: Received, now_ns: int) -> str:
    """Why this clock decides nothing now, or ""."""
    if newest.received_ns <= now_ns:
        return ""
    behind_s = (newest.received_ns - now_ns) / _SECOND_NS
    return f"this clock is {behind_s:.0f} s behind the moment at which snapshot {newest.number} was received"


@dataclass(slots=True)
class _Reasons:
    """Why snapshots stay; the first reason counts."""

    given: dict[int, str]

    def protect(self, protected: Mapping[int, str]) -> None:
        self.given = {**protected, **self.given}

    def add(self, reason: str, snapshots: Sequence[Received]) -> None:
        for one in snapshots:
            self.given.setdefault(one.number, reason)


class _Moment(NamedTuple):
    """When a snapshot was received, as far as the whole history bears that out."""

    at_ns: int
    age_ns: int = 0
    """How much time passed until the newest, silences shortened."""


def _apply(rules: Rules, snapshots: Sequence[Received], timeline: Mapping[int, _Moment], reasons: _Reasons) -> None:
    """Give the reasons that time decides."""
    for reason, limit_s in (("young", rules.younger_than_s), ("within", rules.within_s)):
        ages = ((one, timeline[one.number].age_ns) for one in snapshots)
        reasons.add(reason, [one for one, age_ns in ages if age_ns < limit_s * _SECOND_NS])
    for reason, count, bucket in _buckets(rules):
        reasons.add(reason, _oldest_of(snapshots, timeline, count, bucket))
    reasons.add("at least", _oldest_of(snapshots, timeline, rules.at_least, _day))
    _fill(rules.at_least, snapshots, timeline, reasons)


def _fill(at_least: int, snapshots: Sequence[Received], timeline: Mapping[int, _Moment], reasons: _Reasons) -> None:
    """Where there are too few days, further ones from them: the oldest, which nothing that comes later replaces."""
    days = {_day(timeline[one.number].at_ns) for one in snapshots if one.number in reasons.given}
    others = [one for one in snapshots if one.number not in reasons.given]
    reasons.add("at least", others[: max(0, at_least - len(days))])


def _oldest_of(
    snapshots: Sequence[Received], timeline: Mapping[int, _Moment], count: int, bucket: Callable[[int], int]
) -> list[Received]:
    """Of each of the newest `count` buckets the oldest, and the oldest complete one."""
    first: dict[int, Received] = {}
    complete: dict[int, Received] = {}
    for one in snapshots:
        at = bucket(timeline[one.number].at_ns)
        first.setdefault(at, one)
        if one.is_complete:
            complete.setdefault(at, one)
    chosen = sorted(first, reverse=True)[:count]
    return [found[at] for found in (first, complete) for at in chosen if at in found]


def _buckets(rules: Rules) -> Iterator[tuple[str, int, Callable[[int], int]]]:
    yield "hourly", rules.hourly, _hour
    yield "daily", rules.daily, _day
    yield "weekly", rules.weekly, _week
    yield "monthly", rules.monthly, _month


def _hour(at_ns: int) -> int:
    return at_ns // _HOUR_NS


def _day(at_ns: int) -> int:
    return at_ns // _DAY_NS


def _week(at_ns: int) -> int:
    """Weeks begin on Monday; 1970 began on a Thursday."""
    return (_day(at_ns) + 3) // 7


def _month(at_ns: int) -> int:
    date = _EPOCH + timedelta(days=max(0, min(_day(at_ns), _LAST_DAY)))
    return date.year * 12 + date.month


def _timeline(history: Sequence[Received], longest_ns: int) -> dict[int, _Moment]:
    """The moments of those snapshots that fit together; what was stamped by a clock that was wrong is not in it."""
    found: dict[int, _Moment] = {}
    age_ns, after_ns = 0, 0
    for number, at_ns in reversed(_in_order(history)):
        age_ns += min(after_ns - at_ns, longest_ns) if found else 0
        found[number], after_ns = _Moment(at_ns, age_ns), at_ns
    return found


def _in_order(history: Sequence[Received]) -> list[tuple[int, int]]:
    """(number, time) of the most snapshots whose times ascend; those that miss that by less than STEP_NS are put
    between their neighbours."""
    chain = _longest_ascending([one.received_ns for one in history])
    found: list[tuple[int, int]] = []
    low_ns = 0
    for start, stop in zip([-1, *chain], [*chain, len(history)], strict=True):
        high_ns = history[stop].received_ns if stop < len(history) else _FOREVER_NS
        for one in history[start + 1 : stop]:
            if low_ns - STEP_NS <= one.received_ns <= high_ns + STEP_NS:
                low_ns = min(max(low_ns, one.received_ns), high_ns)
                found.append((one.number, low_ns))
        if stop < len(history):
            low_ns = high_ns
            found.append((history[stop].number, low_ns))
    return found


def _longest_ascending(times: Sequence[int]) -> list[int]:
    """Indices of a longest run of times that never go back."""
    ends: list[int] = []
    """Of each length, the smallest time at which such a run can end."""
    at: list[int] = []
    before: list[int] = []
    for index, time_ns in enumerate(times):
        length = bisect_right(ends, time_ns)
        before.append(at[length - 1] if length else -1)
        ends[length : length + 1] = [time_ns]
        at[length : length + 1] = [index]
    found: list[int] = []
    index = at[-1] if at else -1
    while index >= 0:
        found.append(index)
        index = before[index]
    return found[::-1]
