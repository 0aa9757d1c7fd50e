"""Policy: what is demanded of a dataset's protection, and whether it holds. Pure.

    Objectives -- what is demanded; LEVELS names shipped sets of them
    Facts      -- what is known of the dataset and its copies now, each with the moment at which it was learnt
    judge      -- facts in, one Result for each objective out, with the evidence in one sentence

A total function: every combination of facts gives a result for every objective that is set. **Never** passes what could
not be found out: that is UNKNOWN, which no more counts as compliant than FAIL does. A passing result rests on a fact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import msgspec

from replicad.model.attestation import Attestation
from replicad.model.drill import OVERDUE_FACTOR, Outcome
from replicad.model.place import Place, are_apart, sites, widest_m
from replicad.model.show import counted, short_duration

HOUR_S = 3600.0
DAY_S = 86400.0
MIN_COPIES = 2
"""The dataset itself and one replica: no level and no key goes below."""
SKEW_S = 60.0
"""A time that lies further ahead of the clock than this was stamped by another one: nothing is known then."""
HEARD_S = DAY_S
"""What a replica said of its configuration and its copy is believed for this long; a scrub's and a drill's times, which
only grow older, for as long as they last."""


_NOWHERE, _SILENCE = Place(), Attestation()


class Grade(StrEnum):
    """How one objective stands."""

    PASS = "pass"
    """It holds, and the evidence says why."""
    UNKNOWN = "unknown"
    """It could not be found out. Not compliant."""
    FAIL = "fail"
    """It does not hold."""


_GRAVITY = {Grade.PASS: 0, Grade.UNKNOWN: 1, Grade.FAIL: 2}


def worst(grades: Iterable[Grade]) -> Grade:
    """The grade of a whole; of nothing at all nothing is known."""
    return max(grades, key=_GRAVITY.__getitem__, default=Grade.UNKNOWN)


class Objectives(msgspec.Struct, frozen=True):
    """What is demanded of one dataset. 0 means "no objective" where that may be."""

    level: str = ""
    """The service level that it comes from; a dataset's own keys may differ from it."""
    rpo_s: float = 300.0
    rto_s: float = 0.0
    scrub_every_s: float = 7 * DAY_S
    drill_every_s: float = 7 * DAY_S
    copies: int = MIN_COPIES
    """Counting the dataset itself."""
    sites: int = 1
    """Distinct sites among its copies; 1 = no objective."""
    min_distance_m: float = 0.0
    """Between as many of them as `sites` says, two at least."""
    keep_younger_than_s: float = 0.0
    """No replica may let go of what is younger."""
    keep_at_least: int = 0
    """Every replica keeps snapshots of so many days."""


LEVELS: dict[str, Objectives] = {
    one.level: one
    for one in (
        Objectives(
            "bronze",
            rpo_s=HOUR_S,
            scrub_every_s=30 * DAY_S,
            drill_every_s=30 * DAY_S,
            keep_younger_than_s=7 * DAY_S,
            keep_at_least=7,
        ),
        Objectives(
            "silver",
            rpo_s=HOUR_S / 4,
            rto_s=DAY_S,
            scrub_every_s=14 * DAY_S,
            drill_every_s=14 * DAY_S,
            sites=2,
            keep_younger_than_s=30 * DAY_S,
            keep_at_least=14,
        ),
        Objectives(
            "gold",
            rpo_s=HOUR_S / 12,
            rto_s=4 * HOUR_S,
            scrub_every_s=7 * DAY_S,
            drill_every_s=7 * DAY_S,
            copies=3,
            sites=2,
            min_distance_m=100_000.0,
            keep_younger_than_s=90 * DAY_S,
            keep_at_least=30,
        ),
    )
}
"""They differ in price, never in whether there is a second copy that is verified and drilled."""


# ------------------------------------------------------------------------------------------------------------ facts


@dataclass(frozen=True, slots=True)
class Verified:
    """How far the scrub of one side has come. `unknown` says why nothing is known of it."""

    oldest_ns: int = 0
    """Everything but what came after it was verified since; 0 = not everything was ever verified."""
    total_bytes: int = 0
    unknown: str = ""


@dataclass(frozen=True, slots=True)
class Drilled:
    """What drills from one replica came to. `unknown` says why nothing is known of them."""

    proven_ns: int = 0
    last: Outcome | None = None
    reason: str = ""
    """Why the last one is not proven, or why there was none."""
    estimate_s: float = 0.0
    """How long a restore of everything takes; 0 = not measured."""
    unknown: str = ""


@dataclass(frozen=True, slots=True)
class Copy:
    """One replica's copy of the dataset."""

    replica: str
    place: Place = _NOWHERE
    complete_ns: int = 0
    """As of when everything is on the replica and acknowledged, by this node's clock; 0 = never."""
    snapshot: int = 0
    """The newest acknowledged snapshot."""
    unknown: str = ""
    """Why it is not known what was acknowledged."""
    heard_ns: int = 0
    """When the replica said last how its copy is, by this node's clock; 0 = not since this daemon started."""
    said: Attestation = _SILENCE
    unheard: str = ""
    """Why it does not say so now."""
    drilled: Drilled = Drilled()


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that a judgement of one dataset rests on."""

    dataset: str
    now_ns: int
    place: Place = _NOWHERE
    """Where the dataset itself is."""
    verified: Verified = Verified()
    """On this side."""
    copies: tuple[Copy, ...] = ()


# ---------------------------------------------------------------------------------------------------------- results


class Result(msgspec.Struct, frozen=True):
    """How one objective stands."""

    objective: str
    """The key of the configuration that sets it."""
    target: str
    """What is demanded, in words."""
    grade: Grade
    evidence: str
    """One sentence."""


class Judgement(msgspec.Struct, frozen=True):
    """How a dataset stands as a whole."""

    dataset: str
    level: str
    grade: Grade
    results: list[Result]


OBJECTIVES = (
    "rpo", "rto", "scrub_every", "drill_every", "copies", "sites", "min_distance", "keep_younger_than", "keep_at_least",
)  # fmt: skip
"""In the order in which they are judged and shown."""

Said = tuple[Grade, str]
"""A grade and its evidence."""


def judge(wanted: Objectives, facts: Facts) -> Judgement:
    """Every objective that is set, with its evidence."""
    results = [
        Result(name, target, *said(wanted, facts))
        for name, (target_of, said) in _JUDGES.items()
        if (target := target_of(wanted))
    ]
    return Judgement(facts.dataset, wanted.level, worst(result.grade for result in results), results)


def _rpo(wanted: Objectives, facts: Facts) -> Said:
    def one(copy: Copy) -> Said:
        if copy.unknown:
            return Grade.UNKNOWN, copy.unknown
        if not copy.complete_ns:
            return Grade.FAIL, "never held a complete copy"
        return _aged(facts.now_ns - copy.complete_ns, wanted.rpo_s, f"holds everything as of {{}} (#{copy.snapshot})")

    return _of_each(facts.copies, one)


def _rto(wanted: Objectives, facts: Facts) -> Said:
    def one(copy: Copy) -> Said:
        drilled = copy.drilled
        if drilled.unknown:
            return Grade.UNKNOWN, drilled.unknown
        if not drilled.estimate_s:
            return Grade.UNKNOWN, "no proven drill has measured how long a restore takes"
        text = f"a restore of everything takes about {short_duration(drilled.estimate_s)}, by the last proven drill"
        return _when(drilled.estimate_s <= wanted.rto_s), text

    return _of_each(facts.copies, one)


def _scrub(wanted: Objectives, facts: Facts) -> Said:
    here = _verified(wanted, facts.verified, facts.now_ns)
    sides = [("here", here)]
    for copy in facts.copies:
        said = copy.said
        has_data = bool(said.complete.number)
        unknown = _unheard(copy) or unseen(said.scrub_state, said.scrub_reason, said.total_bytes, has_data=has_data)
        if copy.heard_ns - facts.now_ns > SKEW_S * 1e9:
            unknown = unknown or _stale(copy, facts.now_ns)
        seen = Verified(said.oldest_verified_ns, said.total_bytes, unknown)
        # the replica's times are by its own clock, so is the moment at which it said so; since then ours has gone on
        now_ns = said.now_ns + max(0, facts.now_ns - copy.heard_ns)
        sides.append((copy.replica, _verified(wanted, seen, now_ns)))
    return _joined(sides)


def _verified(wanted: Objectives, seen: Verified, now_ns: int) -> Said:
    if seen.unknown:
        return Grade.UNKNOWN, seen.unknown
    if not seen.total_bytes:
        return Grade.PASS, "there is nothing to verify"
    if not seen.oldest_ns:
        return Grade.FAIL, "not every byte was verified yet, not once"
    return _aged(now_ns - seen.oldest_ns, wanted.scrub_every_s, "every byte was verified within {}")


def _drill(wanted: Objectives, facts: Facts) -> Said:
    def one(copy: Copy) -> Said:
        drilled = copy.drilled
        if not wanted.drill_every_s:
            return Grade.FAIL, "drills are switched off (drill_every = 0): nothing proves that it comes back"
        if drilled.unknown:
            return Grade.UNKNOWN, drilled.unknown
        because = f": {drilled.reason}" if drilled.reason else ""
        if drilled.last is Outcome.FAILED:
            return Grade.FAIL, f"no drill was proven since one failed{because}"
        if not drilled.proven_ns:
            return Grade.FAIL, f"no drill was ever proven{because}"
        limit_s = wanted.drill_every_s * OVERDUE_FACTOR
        doubt = f", the last could not find out{because}" if drilled.last is Outcome.INCONCLUSIVE else ""
        return _aged(facts.now_ns - drilled.proven_ns, limit_s, f"a drill proved it {{}}{doubt}")

    return _of_each(facts.copies, one)


def _copies(wanted: Objectives, facts: Facts) -> Said:
    """A replica counts when it holds a complete state, has said so lately, and knows of no damage in it."""
    sound, doubts, faults = ["here"], list[str](), list[str]()
    for copy in facts.copies:
        if fault := _fault(copy):
            faults.append(f"{copy.replica} {fault}")
        elif doubt := copy.unknown or _unheard(copy) or _stale(copy, facts.now_ns):
            doubts.append(f"{copy.replica}: {doubt}")
        else:
            sound.append(copy.replica)
    text = "; ".join([f"{len(sound)} sound: {', '.join(sound)}", *faults, *doubts])
    if len(sound) >= wanted.copies:
        return Grade.PASS, text
    return (Grade.UNKNOWN if len(sound) + len(doubts) >= wanted.copies else Grade.FAIL), text


def _fault(copy: Copy) -> str:
    """Why this replica's copy is none to count on, as far as is known; "" when nothing speaks against it."""
    if not copy.unknown and not copy.complete_ns:
        return "never held a complete copy"
    if not copy.heard_ns:
        return ""
    if not copy.said.complete.number:
        return "says that it holds no complete copy"
    if copy.said.lost_records:
        return f"has lost {counted(copy.said.lost_records, 'piece')} of its record"
    damaged = sum(count for verdict, count in copy.said.open.items() if verdict != "inconclusive")
    return f"has {counted(damaged, 'open divergence')}" if damaged else ""


def _sites(wanted: Objectives, facts: Facts) -> Said:
    named = [facts.place, *(copy.place for copy in facts.copies)]
    silent = [who for who, place in _places(facts) if not place.site]
    text = ", ".join(sites(named)) or "none is declared"
    text += f"; no site is declared for {', '.join(silent)}" if silent else ""
    return _when(len(sites(named)) >= wanted.sites), text


def _distance(wanted: Objectives, facts: Facts) -> Said:
    places = [place for _, place in _places(facts)]
    count = max(2, wanted.sites)
    silent = [who for who, place in _places(facts) if not place.is_on_the_map]
    widest = widest_m(places)
    text = f"the farthest two are {show_distance(widest)} apart" if widest else "no two copies are known to be apart"
    if count > 2:
        text = f"{count} copies each {show_distance(wanted.min_distance_m)} from the others are wanted; {text}"
    text += f"; no coordinates are declared for {', '.join(silent)}" if silent else ""
    return _when(are_apart(places, count, wanted.min_distance_m)), text


def _places(facts: Facts) -> list[tuple[str, Place]]:
    return [("this node", facts.place), *((copy.replica, copy.place) for copy in facts.copies)]


def _younger(wanted: Objectives, facts: Facts) -> Said:
    def one(said: Attestation) -> Said:
        text = f"keeps everything younger than {short_duration(said.keep_younger_than_s)}"
        return _when(said.keep_younger_than_s >= wanted.keep_younger_than_s), text

    return _kept(facts, one)


def _at_least(wanted: Objectives, facts: Facts) -> Said:
    def one(said: Attestation) -> Said:
        text = f"keeps snapshots of {counted(said.keep_at_least, 'day')}"
        return _when(said.keep_at_least >= wanted.keep_at_least), text

    return _kept(facts, one)


def _kept(facts: Facts, rule: Callable[[Attestation], Said]) -> Said:
    def one(copy: Copy) -> Said:
        if unknown := _unheard(copy) or _stale(copy, facts.now_ns):
            return Grade.UNKNOWN, unknown
        return (Grade.PASS, "keeps every snapshot") if copy.said.keeps_all else rule(copy.said)

    return _of_each(facts.copies, one)


# -------------------------------------------------------------------------------------------------------------- how


def unseen(state: str, reason: str, total_bytes: int, *, has_data: bool) -> str:
    """Why the figures of a scrub in this state say nothing yet; "" when they do."""
    if not state:
        return "it runs no scrub of this dataset"
    if state == "starting" or (state == "failed" and not total_bytes):
        return reason or "its scrub has just started"
    return "its scrub has not looked at the data yet" if has_data and not total_bytes else ""


def _when(holds: bool) -> Grade:
    return Grade.PASS if holds else Grade.FAIL


def _aged(age_ns: int, limit_s: float, text: str) -> Said:
    """Whether what is so old is young enough; `text` has a place for the age."""
    age_s = age_ns / 1e9
    if age_s < -SKEW_S:
        return Grade.UNKNOWN, f"its time lies {short_duration(-age_s)} ahead of the clock: the clock was set back"
    shown = short_duration(max(0.0, age_s))
    return _when(age_s <= limit_s), text.format(shown if "within {}" in text else f"{shown} ago")


def _unheard(copy: Copy) -> str:
    """Why nothing is known of what the replica says; "" when something is."""
    return "" if copy.heard_ns else copy.unheard or "it has not been asked yet"


def _stale(copy: Copy, now_ns: int) -> str:
    """Why what the replica said last is not to be believed any more; "" when it is."""
    age_s = (now_ns - copy.heard_ns) / 1e9
    if -SKEW_S <= age_s <= HEARD_S:
        return ""
    because = f" ({copy.unheard})" if copy.unheard else ""
    return f"it has not said so for {short_duration(abs(age_s))}{because}"


def _of_each(copies: Sequence[Copy], one: Callable[[Copy], Said]) -> Said:
    """The same question about every replica: all have to hold. Without a replica there is nothing that could."""
    return _joined([(copy.replica, one(copy)) for copy in copies]) if copies else (Grade.FAIL, "there is no replica")


def _joined(said: Sequence[tuple[str, Said]]) -> Said:
    """The gravest first, so that a reader sees at once what the grade rests on."""
    ordered = sorted(said, key=lambda one: -_GRAVITY[one[1][0]])
    return worst(grade for _, (grade, _) in said), "; ".join(f"{who}: {text}" for who, (_, text) in ordered)


def show_distance(distance: float) -> str:
    """A distance for people: "104 km"."""
    return f"{distance / 1000:,.0f} km" if distance >= 10_000 else f"{distance / 1000:.1f} km"


def _duration_of(seconds: float) -> str:
    return short_duration(seconds) if seconds else ""


_Target = Callable[[Objectives], str]
_JUDGES: dict[str, tuple[_Target, Callable[[Objectives, Facts], Said]]] = {
    "rpo": (lambda w: _duration_of(w.rpo_s), _rpo),
    "rto": (lambda w: _duration_of(w.rto_s), _rto),
    "scrub_every": (lambda w: _duration_of(w.scrub_every_s), _scrub),
    "drill_every": (lambda w: _duration_of(w.drill_every_s) or "off", _drill),
    "copies": (lambda w: str(w.copies), _copies),
    "sites": (lambda w: str(w.sites) if w.sites > 1 else "", _sites),
    "min_distance": (lambda w: show_distance(w.min_distance_m) if w.min_distance_m else "", _distance),
    "keep_younger_than": (lambda w: _duration_of(w.keep_younger_than_s), _younger),
    "keep_at_least": (lambda w: counted(w.keep_at_least, "day") if w.keep_at_least else "", _at_least),
}
