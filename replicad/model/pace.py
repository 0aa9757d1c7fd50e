"""Pace: how fast a scrub reads so that every byte is verified in time and nobody else suffers. Pure.

**Owns** the arithmetic between deadlines and turns. What has to be read by when comes in as `Demand`s: new data soon,
everything once in a cycle, and no byte older than `scrub_every`. Reading goes in the order of these deadlines, so the
pace that meets them all is the steepest of "bytes left over time left", and one is enough: slower would miss a
deadline, faster would only disturb. What comes out is a share of the time to read in, in short turns, or a rest.

**Never** reads, waits or asks the time: whoever calls says what time it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from replicad.model.block import block_id

DAY_S = 86400.0
CYCLE = 0.8
"""Length of a cycle, as a share of `scrub_every`: a pause of a day within a week is made up for without haste."""
TARGET_AGE = 0.9
"""No byte is to get older than this share of `scrub_every`; with the width of a step of ages (`AGE_STEP`) that leaves
five hundredths for whatever was not foreseen."""
AGE_STEP = 0.05
"""Ages are counted in steps of this share of `scrub_every`."""
SHORTEST = 0.0025
"""No deadline counts as nearer than this share of `scrub_every` (25 minutes in a week): the last bytes before one must
not ask for an infinite pace."""
CATCH_UP = 1 / 16
"""What is overdue is read at the full duty, and faster only if that would take longer than this share of `scrub_every`
(10 hours in a week): a deadline that is missed already is no reason to take the disk from everybody else."""
TURN_S = 0.03
"""Length of one turn of reading: somebody else's request to the disk waits at worst in the order of one of them."""
FIRST_TURN_BYTES = 1 << 20
"""While the disk's speed is unknown."""
UNBROKEN_TURN_S = 1.0
"""The same where all of the time is read in: no rest follows it, and each end costs something."""
MIN_TURN_BYTES, MAX_TURN_BYTES = 64 * 1024, 512 << 20
"""A block at least; at most what a fast disk gives in the longest turn, whatever was measured."""
YIELD = 4.0
"""On a strained host it reads this many times slower, as long as its deadlines leave it that."""
YIELD_BELOW = 0.5
"""A strained host is yielded to while less than this part of the duty is needed; what was put off is made up for
within the duty afterwards."""
LAST_STRETCH = 0.1
"""And only until this share of the time for a demand is left."""
STRAIN = 0.25
"""A host counts as strained when others wait for its disks for more than this share of the time."""
LATEST_NEW_S = DAY_S
"""New data is verified within a day, or within `scrub_every` where that is shorter."""


class Why(StrEnum):
    """What a demand comes from."""

    NEW = "new"
    """Data that was never verified."""
    CYCLE = "cycle"
    """Everything once in a cycle, evenly spread."""
    AGE = "age"
    """Data whose last verification must not get older."""


@dataclass(frozen=True, slots=True)
class Demand:
    """So many bytes, those that are read first, are to be verified by then."""

    left_bytes: int
    by_ns: int
    why: Why

    def less(self, done_bytes: int) -> Demand:
        """What is left of it after so many bytes."""
        return Demand(max(0, self.left_bytes - done_bytes), self.by_ns, self.why)


@dataclass(frozen=True, slots=True)
class Policy:
    """What the configuration says."""

    every_s: float
    duty: float
    quiet: tuple[int, int] | None = None
    """Minutes of the local day between which nothing is read; the end may lie before the begin."""
    turn_s: float = TURN_S

    @property
    def cycle_s(self) -> float:
        """Length of a cycle."""
        return self.every_s * CYCLE

    @property
    def new_within_s(self) -> float:
        """What was never verified is, within this."""
        return min(LATEST_NEW_S, self.every_s)


@dataclass(frozen=True, slots=True)
class Interruption:
    """A time in which nothing was read although it should have been."""

    what: str = ""
    """"it was paused", "the daemon did not run"."""
    length_s: float = 0.0
    ended_ns: int = 0


@dataclass(frozen=True, slots=True)
class Situation:
    """How it stands now."""

    now_ns: int
    second_of_day: float
    """Of the local day."""
    demands: tuple[Demand, ...] = ()
    requested_bytes: int = 0
    """What a request still wants: it is read at the full duty."""
    breaks_quiet: bool = False
    """A person here has made a request: it does not wait for the end of the quiet hours."""
    paused_until_ns: int = 0
    reading_bytes_s: float = 0.0
    """What the disk gives; 0 = not told apart from `speed_bytes_s`. A turn's length follows from it: if that followed
    from what a turn gives with all that is done about it, fixed costs would make turns small, and small turns slow."""
    speed_bytes_s: float = 0.0
    """What turns give while they last; 0 = not measured yet."""
    lasting_bytes_s: float = 0.0
    """The same over a long time: what a forecast can count on; 0 = not measured yet."""
    strain: float = 0.0
    """Share of the time that others wait for the disks."""
    interruption: Interruption = Interruption()


@dataclass(frozen=True, slots=True)
class Pace:
    """What to do."""

    share: float
    """Of the time that is read in, above 0 and 1 at most; 0: nothing is to be read now."""
    ceiling: float
    """No turn may take more than this share, however slow it was."""
    rate_bytes_s: float
    """What that gives, quiet hours aside; 0 while nothing is measured or due."""
    is_by_time: bool
    """Whether it is the share that was asked for, whatever it gives; else it is the rate."""
    turn_bytes: int
    is_quiet: bool
    on_track: bool
    reason: str
    """Why it is not on track, or what else a person should know; "" = nothing."""

    def rest_s(self, took_s: float, done_bytes: int) -> float:
        """How long to rest after a turn that took so long and verified so much."""
        if self.share >= 1:
            return 0.0
        if self.is_by_time:
            return took_s * (1 / self.share - 1)
        by_share = took_s * (1 / self.ceiling - 1)
        by_rate = done_bytes / self.rate_bytes_s - took_s if self.rate_bytes_s else 0.0
        return max(0.0, by_share, by_rate)


def decide(policy: Policy, now: Situation) -> Pace:
    """The pace of now."""
    quiet = is_within(policy.quiet, now.second_of_day) and not now.breaks_quiet
    needed = needed_bytes_s(policy, now)
    speed = now.speed_bytes_s
    needed_share = min(1.0, needed / speed) if speed else min(policy.duty, 1.0)
    is_strained = now.strain > STRAIN
    share = needed_share
    if is_strained and speed and needed_share < policy.duty * YIELD_BELOW:
        share = min(1.0, _needed_at_least(policy, now) / speed)
    asked_share = policy.duty / (YIELD if is_strained else 1.0) if now.requested_bytes else 0.0
    if now.requested_bytes:
        share = max(needed_share, asked_share)
    is_due = any(demand.left_bytes for demand in now.demands) or now.requested_bytes
    if quiet or not is_due:
        share = 0.0
    on_track, reason = _outlook(policy, now, needed)
    return Pace(
        share=share,
        ceiling=max(share, policy.duty),
        rate_bytes_s=share * speed,
        is_by_time=share > 0 and (asked_share > needed_share or not speed),
        turn_bytes=_turn_bytes(
            max(policy.turn_s, UNBROKEN_TURN_S) if share >= 1 else policy.turn_s, now.reading_bytes_s or speed
        ),
        is_quiet=quiet,
        on_track=on_track,
        reason=reason,
    )


def needed_bytes_s(policy: Policy, now: Situation) -> float:
    """The pace that meets every demand, in bytes a second outside the quiet hours. A cycle may ask for no more than the
    duty: it is there to spread the reading, and a deadline only says how old a byte may get."""
    strict = steepest(policy, now, (demand for demand in now.demands if demand.why is not Why.CYCLE))
    spread = steepest(policy, now, (demand for demand in now.demands if demand.why is Why.CYCLE))
    most = policy.duty * now.speed_bytes_s
    return max(strict, min(spread, most) if most else spread)


def steepest(policy: Policy, now: Situation, demands: Iterable[Demand]) -> float:
    """The greatest "bytes left over time left"."""
    return max((_needed_by(policy, now, demand) for demand in demands), default=0.0)


def _needed_at_least(policy: Policy, now: Situation) -> float:
    """The pace on a strained host: what has time takes its time."""

    def has_time(demand: Demand) -> bool:
        within_s = policy.new_within_s / 2 if demand.why is Why.NEW else policy.every_s
        return demand.by_ns - now.now_ns > within_s * LAST_STRETCH * 1e9

    calm = steepest(policy, now, (demand for demand in now.demands if has_time(demand)))
    urgent = steepest(policy, now, (d for d in now.demands if d.why is not Why.CYCLE and not has_time(d)))
    return max(calm / YIELD, urgent)


def _needed_by(policy: Policy, now: Situation, demand: Demand) -> float:
    if not demand.left_bytes:
        return 0.0
    if demand.by_ns <= now.now_ns:
        return max(demand.left_bytes / (policy.every_s * CATCH_UP), policy.duty * now.speed_bytes_s)
    paused_s = max(0, now.paused_until_ns - now.now_ns) / 1e9
    span_s = (demand.by_ns - now.now_ns) / 1e9 - paused_s
    begins = (now.second_of_day + paused_s) % DAY_S
    return demand.left_bytes / max(active_s(policy.quiet, begins, span_s), policy.every_s * SHORTEST)


def _turn_bytes(turn_s: float, speed: float) -> int:
    if not speed:
        return FIRST_TURN_BYTES
    return max(MIN_TURN_BYTES, min(MAX_TURN_BYTES, int(speed * turn_s)))


# ------------------------------------------------------------------------------------------------------- demands


def cycle_begin_ns(policy: Policy, dataset: str, side: str, now_ns: int) -> int:
    """When the present cycle began. Datasets begin theirs at different moments, so that one disk with many of them is
    read evenly; the two sides of a dataset are half a cycle apart, so that what one of them has just read is what the
    other has not seen for longest."""
    cycle_ns = max(1, int(policy.cycle_s * 1e9))
    offset = int.from_bytes(block_id(dataset.encode())[:8], "big") % cycle_ns
    if side == "replica":
        offset += cycle_ns // 2
    return now_ns - (now_ns - offset) % cycle_ns


def cycle_demand(policy: Policy, left_bytes: int, total_bytes: int, begin_ns: int, now_ns: int) -> Demand:
    """Everything that was not verified in this cycle, by its end. Never faster than at twice an even pace: it may well
    have begun when most of the cycle was over, and no byte is too old for that reason."""
    cycle_ns = policy.cycle_s * 1e9
    earliest_ns = now_ns + int(cycle_ns / 2 * left_bytes / total_bytes) if total_bytes else now_ns
    return Demand(left_bytes, max(begin_ns + int(cycle_ns), earliest_ns), Why.CYCLE)


def new_due_ns(policy: Policy, now_ns: int) -> int:
    """By when a batch of new data is to be verified. Half of what is allowed: what arrives while one batch is under way
    belongs to the next one, and waits for no longer than both together."""
    return now_ns + int(policy.new_within_s / 2 * 1e9)


def age_steps(policy: Policy, now_ns: int) -> list[int]:
    """Moments that data is sorted by, according to when it was verified last, oldest first. They are multiples of a
    step, so that a byte's deadline does not move while time goes on."""
    step = max(1, int(policy.every_s * AGE_STEP * 1e9))
    newest = now_ns // step
    return [number * step for number in range(newest - int(1 / AGE_STEP) - 1, newest + 1) if number > 0]


def age_demand(policy: Policy, left_bytes: int, verified_ns: int) -> Demand:
    """What was verified before that moment, and everything that is read before it."""
    return Demand(left_bytes, verified_ns + int(policy.every_s * TARGET_AGE * 1e9), Why.AGE)


# --------------------------------------------------------------------------------------------------- quiet hours


def is_within(hours: tuple[int, int] | None, second_of_day: float) -> bool:
    """Whether that second of the local day is within these hours, given in minutes, perhaps over midnight."""
    return hours is not None and any(begin <= second_of_day < end for begin, end in _quiet_spans(hours))


def until_active_s(quiet: tuple[int, int] | None, second_of_day: float) -> float:
    """Seconds until the quiet hours end; 0 outside of them."""
    spans = _quiet_spans(quiet) if quiet else []
    return next((end - second_of_day for begin, end in spans if begin <= second_of_day < end), 0.0)


def active_s(quiet: tuple[int, int] | None, second_of_day: float, span_s: float) -> float:
    """How much of the `span_s` seconds after that second of the day is outside the quiet hours."""
    if span_s <= 0:
        return 0.0
    if quiet is None:
        return span_s
    days, rest_s = divmod(span_s, DAY_S)
    end = second_of_day + rest_s
    quiet_s = sum(max(0.0, min(end, stop) - max(second_of_day, start)) for start, stop in _quiet_spans(quiet))
    return days * _active_in_day_s(quiet) + rest_s - quiet_s


def span_of_s(quiet: tuple[int, int] | None, second_of_day: float, work_s: float) -> float:
    """The inverse: after how many seconds so many of them will have been outside the quiet hours."""
    if quiet is None:
        return work_s
    days, left_s = divmod(work_s, _active_in_day_s(quiet))
    position = second_of_day
    for start, stop in _quiet_spans(quiet):
        if stop <= position:
            continue
        if position + left_s <= start:
            break
        left_s -= max(0.0, start - position)
        position = stop
    return days * DAY_S + position + left_s - second_of_day


def _quiet_spans(quiet: tuple[int, int]) -> list[tuple[float, float]]:
    """The quiet hours of yesterday, today and tomorrow (and the day after, for spans that begin tomorrow), in seconds
    of today."""
    begin, end = quiet[0] * 60.0, quiet[1] * 60.0
    if end <= begin:
        end += DAY_S
    return [(begin + day * DAY_S, end + day * DAY_S) for day in (-1, 0, 1, 2)]


def _active_in_day_s(quiet: tuple[int, int]) -> float:
    return DAY_S - ((quiet[1] - quiet[0]) * 60.0) % DAY_S


# ------------------------------------------------------------------------------------------------------- outlook


def finish_ns(policy: Policy, now: Situation, left_bytes: int, rate_bytes_s: float) -> int:
    """When so many bytes will have been read at that rate; 0 when it has none."""
    if not left_bytes:
        return now.now_ns
    if rate_bytes_s <= 0:
        return 0
    quiet = None if now.breaks_quiet else policy.quiet
    paused_s = max(0, now.paused_until_ns - now.now_ns) / 1e9
    begins = (now.second_of_day + paused_s) % DAY_S
    return now.now_ns + int((paused_s + span_of_s(quiet, begins, left_bytes / rate_bytes_s)) * 1e9)


def _outlook(policy: Policy, now: Situation, needed: float) -> tuple[bool, str]:
    """Whether every byte will be verified in time, and why not, or that more than the duty is needed for it."""
    limits = _limits(policy, now.demands)
    speed, least = now.lasting_bytes_s, steepest(policy, now, limits)
    if speed and least > speed:
        return False, _too_slow(policy, now, limits, least)
    if overdue := max((limit.left_bytes for limit in limits if limit.by_ns < now.now_ns), default=0):
        return False, f"{_why_late(policy, now)}: {show_size(overdue)} are overdue and are read first"
    if speed and needed > policy.duty * speed:
        share = min(1.0, needed / speed)
        return True, f"the deadline needs {share:.0%} of the disk's time, more than scrub_duty ({policy.duty:.0%})"
    return True, ""


def _limits(policy: Policy, demands: Iterable[Demand]) -> list[Demand]:
    """What was promised, without the slack that the demands have. Cycles promise nothing."""
    slack_s = {Why.NEW: policy.new_within_s / 2, Why.AGE: policy.every_s * (1 - TARGET_AGE)}
    return [
        Demand(one.left_bytes, one.by_ns + int(slack_s[one.why] * 1e9), one.why)
        for one in demands
        if one.left_bytes and one.why in slack_s
    ]


def _too_slow(policy: Policy, now: Situation, limits: Iterable[Demand], least: float) -> str:
    speed, paused_s = now.lasting_bytes_s, max(0, now.paused_until_ns - now.now_ns) / 1e9
    text = f"the disk gives {show_size(speed)}/s, {show_size(least)}/s are needed"
    unhindered = replace(now, paused_until_ns=0)
    if steepest(replace(policy, quiet=None), unhindered, limits) > speed:
        return text
    if paused_s and steepest(policy, unhindered, limits) <= speed:
        return f"it is paused for another {_hours(paused_s)}: {text} then"
    assert policy.quiet is not None, "nothing else takes time away"
    return f"quiet hours leave {_hours(_active_in_day_s(policy.quiet))} a day: {text} outside them"


def _why_late(policy: Policy, now: Situation) -> str:
    past = now.interruption
    if past.length_s and now.now_ns - past.ended_ns < policy.every_s * 1e9:
        return f"{past.what} for {_hours(past.length_s)}"
    if now.paused_until_ns > now.now_ns:
        return "it is paused"
    if now.strain > STRAIN:
        return "the host is too busy"
    return "it came to a stop or was too slow"


def _hours(seconds: float) -> str:
    for unit, length in (("d", DAY_S), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def show_size(size: float) -> str:
    """Bytes for people, as disks are sold: "12 MB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if size >= 10 or unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


# --------------------------------------------------------------------------------------------------------- speed


@dataclass(slots=True)
class Speed:
    """How fast reading has been of late: what weighs in fades away with the seconds spent reading since."""

    memory_s: float
    """After so many seconds of reading a measurement counts half; a short turn fades it like one of TURN_S, for many of
    these would be needed else until turns have the right length."""
    _bytes: float = 0.0
    _seconds: float = 0.0

    def add(self, size: int, took_s: float) -> None:
        """One more turn."""
        fade = 0.5 ** (max(took_s, TURN_S) / self.memory_s)
        self._bytes, self._seconds = self._bytes * fade + size, self._seconds * fade + took_s

    @property
    def bytes_s(self) -> float:
        """The speed; 0 while nothing was measured."""
        return self._bytes / self._seconds if self._seconds else 0.0
