"""Drill: what a rehearsed restore is to show, what it came to, and what follows for the recovery time. Pure.

    quota      how much one drill takes so that everything is drilled in the stated time
    Outcome    proven, failed or inconclusive; the gravest of the parts is the whole's
    estimate_s, trend   how long the whole dataset would take, and where that is going
    next_ns    when the next drill is due
    failure_of the failure that stands

**Never** lets "could not find out" pass for proven: an outcome is proven only where every part is, and there is one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum
from fractions import Fraction
from itertools import combinations
from typing import NamedTuple

import msgspec

MAX_REASONS = 100
"""Reasons that a record names; the counts in it are exact."""
TREND_POINTS = 12
"""Drills that the trend looks at: a quarter of a year of weekly ones."""
TREND_FLOOR = 0.10
"""A change of the estimate below this share over these drills is called steady: disks and links vary so much."""
AGAIN_INCONCLUSIVE_S = 3600.0
"""A drill that could not find out is tried again after this: a link or a scratch disk may be back."""
AGAIN_FAILED_S = 86400.0
"""One that failed is repeated after a day: it says whether a repair has helped."""
OVERDUE_FACTOR = 1.5
"""The last proof is overdue when it is older than this multiple of `drill_every`: there was room for a second try."""
DAY_NS = 86400 * 10**9


class Outcome(StrEnum):
    """What a drill, or a part of it, came to."""

    PROVEN = "proven"
    """Everything in it came back, is what the ledger says, and passed its validators."""
    INCONCLUSIVE = "inconclusive"
    """It could not be found out; nothing is known to be wrong."""
    FAILED = "failed"
    """Something did not come back, is not what it should be, or a validator found damage."""


_GRAVITY = {Outcome.PROVEN: 0, Outcome.INCONCLUSIVE: 1, Outcome.FAILED: 2}


def gravest(outcomes: Iterable[Outcome]) -> Outcome:
    """The outcome of a whole; of nothing at all nothing is known."""
    return max(outcomes, key=_GRAVITY.__getitem__, default=Outcome.INCONCLUSIVE)


class Validated(msgspec.Struct, frozen=True):
    """What one validator said about one subject (a file or a directory)."""

    kind: str
    path: str
    outcome: Outcome
    text: str = ""
    seconds: float = 0.0


class DrillRecord(msgspec.Struct):
    """One drill, as the history keeps it and `--json` prints it. Times in ns since 1970, sizes in bytes."""

    dataset: str
    replica: str
    kind: str = "sampled"
    """sampled, full, or paths (those that a person named)."""
    number: int = 0
    request: int = 0
    """The request that it answers; 0 when it was due by itself."""
    snapshot: int = 0
    digest: str = ""
    """Of that snapshot, in hex: numbers are given again where a store was replaced, digests are not."""
    started_ns: int = 0
    ended_ns: int = 0
    outcome: Outcome = Outcome.INCONCLUSIVE
    reasons: list[str] = []
    """Why it is not proven; the first MAX_REASONS."""
    files: int = 0
    """Files chosen, by name."""
    bytes: int = 0
    total_files: int = 0
    total_bytes: int = 0
    """What the whole dataset has."""
    restored_bytes: int = 0
    restore_s: float = 0.0
    rate_bytes_s: float = 0.0
    compared_files: int = 0
    """Files whose every byte was read back from the scratch space and is what the ledger says."""
    uncompared_files: int = 0
    """Files whose record is younger than the snapshot, so that the ledger does not speak of these bytes."""
    metadata_not_set: int = 0
    metadata: list[str] = []
    """The first of them; an unprivileged daemon may not set owners, which is no failure of the replica's."""
    validated: list[Validated] = []
    """What validators said: the first MAX_REASONS of each outcome."""
    validations: dict[str, int] = {}
    """How many subjects had each outcome."""
    estimate_s: float = 0.0
    """How long the whole dataset would take at what was measured; 0 = unknown."""

    def blame(self, outcome: Outcome, reason: str) -> None:
        """Something in it is not proven."""
        self.outcome = gravest((self.outcome, outcome))
        if len(self.reasons) < MAX_REASONS:
            self.reasons.append(reason)

    def note_validated(self, said: Validated) -> None:
        """What a validator said."""
        count = self.validations.get(said.outcome.value, 0)
        self.validations[said.outcome.value] = count + 1
        if count < MAX_REASONS:
            self.validated.append(said)
        if said.outcome is not Outcome.PROVEN:
            self.blame(said.outcome, f"{said.path}: {said.kind}: {said.text}")


class Amount(NamedTuple):
    """How much there is, or is to be taken."""

    files: int
    size: int


def quota(total: Amount, every_s: float, within_s: float) -> Amount:
    """What a drill takes at least, least recently drilled first, so that drills in time take everything in `within_s`.

    At least one file where there is any."""
    if within_s <= every_s or every_s <= 0:
        return total
    drills = int(within_s / every_s)
    return Amount(-(-total.files // drills), -(-total.size // drills))


def estimate_s(restore_s: float, drilled: Amount, total: Amount) -> float:
    """How long a restore of everything takes when `drilled` took `restore_s`; 0 when nothing was measured.

    Files and bytes both cost time; the one of which less was drilled decides, so that it errs on the safe side."""
    if restore_s <= 0 or drilled.files <= 0:
        return 0.0
    factors = [Fraction(1), Fraction(total.files, drilled.files)]
    if total.size and drilled.size:
        factors.append(Fraction(total.size, drilled.size))
    return restore_s * float(max(factors))


class Trend(msgspec.Struct, frozen=True):
    """Where the estimate is going."""

    word: str
    """steady, rising, falling, or unknown (fewer than three drills)."""
    day_s: float = 0.0
    """Seconds that it grows by in a day."""


def trend(points: Sequence[tuple[int, float]]) -> Trend:
    """The trend of estimates, (moment in ns, seconds), oldest first: the median of all slopes, which one odd drill does
    not move."""
    points = [point for point in points if point[1] > 0][-TREND_POINTS:]
    slopes = [
        (late[1] - early[1]) / ((late[0] - early[0]) / DAY_NS)
        for early, late in combinations(points, 2)
        if late[0] > early[0]
    ]
    if len(points) < 3 or not slopes:
        return Trend("unknown")
    from statistics import median  # slow to import, and most verbs only carry drills

    slope = median(slopes)
    change = slope * (points[-1][0] - points[0][0]) / DAY_NS
    if abs(change) < TREND_FLOOR * median(seconds for _, seconds in points):
        return Trend("steady", slope)
    return Trend("rising" if change > 0 else "falling", slope)


def next_ns(last: DrillRecord | None, every_s: float, now_ns: int) -> int:
    """When the next drill is due by itself, given the last one; at once (0) where there was none, and where it ended
    further ahead than that while: the clock was wrong then, and waiting for that moment could take years."""
    if last is None or every_s <= 0:
        return 0
    again_s = {Outcome.INCONCLUSIVE: AGAIN_INCONCLUSIVE_S, Outcome.FAILED: AGAIN_FAILED_S}.get(last.outcome, every_s)
    again_ns = int(min(every_s, again_s) * 1e9)
    return last.ended_ns + again_ns if last.ended_ns <= now_ns + again_ns else 0


def failure_of(newest_first: Iterable[DrillRecord]) -> DrillRecord | None:
    """The drill that failed last, None where one of the dataset was proven since: neither a drill that found nothing
    out nor paths that a person chose make up for a failure."""
    for record in newest_first:
        if record.outcome is Outcome.FAILED:
            return record
        if record.outcome is Outcome.PROVEN and record.kind != "paths":
            return None
    return None


def is_overdue(last_success_ns: int, since_ns: int, now_ns: int, every_s: float) -> bool:
    """Whether the last proof is too old. `since_ns`: since when drills are wanted, where there was none yet. One as
    far ahead was given by a clock that has been put right since: how old the proof is, nobody knows."""
    begin_ns = max(last_success_ns, 0) or since_ns
    return every_s > 0 and begin_ns > 0 and abs(now_ns - begin_ns) > OVERDUE_FACTOR * every_s * 1e9
