"""The policy as a function: every objective, every kind of fact, and what may never pass."""

from __future__ import annotations

import math
from itertools import combinations, product
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicad.model.attestation import Attestation, DrillMemory, DrillNote
from replicad.model.drill import OVERDUE_FACTOR, Outcome
from replicad.model.place import EARTH_RADIUS_M, Place, are_apart, distance_m, sites, widest_m
from replicad.model.policy import (
    DAY_S,
    HEARD_S,
    LEVELS,
    MIN_COPIES,
    OBJECTIVES,
    SKEW_S,
    Copy,
    Drilled,
    Facts,
    Grade,
    Judgement,
    Objectives,
    Result,
    Verified,
    judge,
    worst,
)
from replicad.model.show import short_duration
from replicad.model.snapshot import Head

S = 1_000_000_000
NOW = 1_800_000_000 * S
AMS, FRA, OSL = Place("ams", 52.37, 4.90), Place("fra", 50.11, 8.68), Place("osl", 59.91, 10.75)
EVERYTHING = Objectives(
    rpo_s=300, rto_s=3600, sites=2, min_distance_m=300_000, keep_younger_than_s=30 * DAY_S, keep_at_least=14
)


def ago(seconds: float) -> int:
    """A moment so long ago."""
    return NOW - int(seconds * S)


def said(**changes: Any) -> Attestation:
    """What a replica says whose copy is well."""
    well = Attestation(
        now_ns=ago(30),
        head=Head(812, bytes(32)),
        complete=Head(812, bytes(32)),
        received_ns=ago(60),
        total_bytes=10**9,
        oldest_verified_ns=ago(3 * DAY_S),
        scrub_state="idle",
        keep_younger_than_s=30 * DAY_S,
        keep_at_least=30,
    )
    return msgspec.structs.replace(well, **changes)


def copy(replica: str = "fra1", **changes: Any) -> Copy:
    """A replica's copy that is well."""
    given: dict[str, Any] = {
        "place": FRA,
        "complete_ns": ago(120),
        "snapshot": 812,
        "heard_ns": ago(30),
        "said": said(),
        "drilled": Drilled(ago(2 * DAY_S), Outcome.PROVEN, estimate_s=1200),
    }
    return Copy(replica, **(given | changes))


def facts(*copies: Copy, **changes: Any) -> Facts:
    """Facts of a dataset that is well, with these copies (one that is well when none is given)."""
    given: dict[str, Any] = {"place": AMS, "verified": Verified(ago(DAY_S), 10**9), "copies": copies or (copy(),)}
    return Facts("www", NOW, **(given | changes))


def result(objective: str, known: Facts, wanted: Objectives = EVERYTHING) -> Result:
    """How one objective stands."""
    return next(one for one in judge(wanted, known).results if one.objective == objective)


def grade(objective: str, known: Facts, wanted: Objectives = EVERYTHING) -> Grade:
    """Its grade."""
    return result(objective, known, wanted).grade


def test_what_is_well_passes_with_its_evidence() -> None:
    """Every objective that is set is judged once, in the known order, and each says what it rests on."""
    judged = judge(EVERYTHING, facts())
    assert judged.grade is Grade.PASS
    assert tuple(one.objective for one in judged.results) == OBJECTIVES
    assert result("rpo", facts()) == Result("rpo", "5m", Grade.PASS, "fra1: holds everything as of 2m ago (#812)")
    assert result("drill_every", facts()).evidence == "fra1: a drill proved it 2d ago"
    assert result("copies", facts()).evidence == "2 sound: here, fra1"
    assert "364 km" in result("min_distance", facts()).evidence


def test_what_is_not_demanded_is_not_judged() -> None:
    """Without objectives of their own there are the four that every dataset has."""
    plain = judge(Objectives(), facts())
    assert [one.objective for one in plain.results] == ["rpo", "scrub_every", "drill_every", "copies"]


P, F, U, DOUBT = Grade.PASS, Grade.FAIL, Grade.UNKNOWN, Outcome.INCONCLUSIVE


@pytest.mark.parametrize(
    ("objective", "known", "expected", "words"),
    [
        ("rpo", facts(copy(complete_ns=ago(301))), F, "5m 1s ago"),
        ("rpo", facts(copy(complete_ns=ago(300))), P, "5m ago"),
        ("rpo", facts(copy(complete_ns=0)), F, "never held a complete copy"),
        ("rpo", facts(copy(complete_ns=ago(-SKEW_S - 1))), U, "clock was set back"),
        ("rpo", facts(copy(complete_ns=ago(-SKEW_S))), P, "0s ago"),
        ("rpo", facts(copy(unknown="the daemon starts")), U, "the daemon starts"),
        ("rpo", facts(copies=()), F, "there is no replica"),
        ("rpo", facts(copy(), copy("osl1", complete_ns=ago(900))), F, "osl1: holds everything as of 15m ago"),
        ("rto", facts(copy(drilled=Drilled(estimate_s=3600))), P, "about 1h"),
        ("rto", facts(copy(drilled=Drilled(estimate_s=3601))), F, "about 1h"),
        ("rto", facts(copy(drilled=Drilled(NOW, Outcome.PROVEN))), U, "no proven drill has measured"),
        ("rto", facts(copy(drilled=Drilled(unknown="no book"))), U, "no book"),
        ("scrub_every", facts(verified=Verified(ago(8 * DAY_S), 1)), F, "here: every byte was verified within 8d"),
        ("scrub_every", facts(verified=Verified(0, 1)), F, "not once"),
        ("scrub_every", facts(verified=Verified()), P, "nothing to verify"),
        ("scrub_every", facts(verified=Verified(NOW, 1, "it starts")), U, "it starts"),
        ("scrub_every", facts(copy(said=said(oldest_verified_ns=ago(8 * DAY_S)))), F, "fra1: every byte"),
        ("scrub_every", facts(copy(said=said(oldest_verified_ns=0))), F, "fra1: not every byte"),
        ("scrub_every", facts(copy(said=said(scrub_state=""))), U, "runs no scrub"),
        ("scrub_every", facts(copy(heard_ns=0)), U, "has not been asked yet"),
        ("scrub_every", facts(copy(heard_ns=0, unheard="out of reach")), U, "out of reach"),
        ("scrub_every", facts(copy(heard_ns=ago(-30 * DAY_S))), U, "not said so"),
        ("drill_every", facts(copy(drilled=Drilled(0, None, "no drill_scratch is set"))), F, "no drill_scratch"),
        ("drill_every", facts(copy(drilled=Drilled(NOW, Outcome.FAILED, "a/b differs"))), F, "a/b differs"),
        ("drill_every", facts(copy(drilled=Drilled(ago(DAY_S), DOUBT, "disk full"))), P, "disk full"),
        ("drill_every", facts(copy(drilled=Drilled(ago(11 * DAY_S), Outcome.PROVEN))), F, "11d ago"),
        ("drill_every", facts(copy(drilled=Drilled(unknown="the book is damaged"))), U, "damaged"),
        ("copies", facts(copy(complete_ns=0)), F, "1 sound: here; fra1 never held"),
        ("copies", facts(copy(said=said(complete=Head()))), F, "no complete copy"),
        ("copies", facts(copy(said=said(lost_records=2))), F, "2 pieces of its record"),
        ("copies", facts(copy(said=said(open={"replica_rot": 3}))), F, "fra1 has 3 open divergences"),
        ("copies", facts(copy(said=said(open={"inconclusive": 3}))), P, "2 sound"),
        ("copies", facts(copy(heard_ns=0, unheard="out of reach")), U, "fra1: out of reach"),
        ("copies", facts(copy(heard_ns=ago(HEARD_S + 1), unheard="no route")), U, "no route"),
        ("copies", facts(copy(heard_ns=0), copy("osl1")), P, "2 sound: here, osl1"),
        ("sites", facts(copy(place=AMS)), F, "ams"),
        ("sites", facts(copy(place=Place())), F, "no site is declared for fra1"),
        ("min_distance", facts(copy(place=Place("osl"))), F, "no coordinates are declared for fra1"),
        ("min_distance", facts(copy(place=Place("x", 52.0, 4.5))), F, "49 km"),
        ("keep_younger_than", facts(copy(said=said(keep_younger_than_s=29 * DAY_S))), F, "younger than 29d"),
        ("keep_younger_than", facts(copy(said=said(keep_younger_than_s=0, keeps_all=True))), P, "every"),
        ("keep_younger_than", facts(copy(heard_ns=ago(HEARD_S + 1))), U, "not said so for"),
        ("keep_younger_than", facts(copy(heard_ns=ago(-SKEW_S - 1))), U, "not said so"),
        ("keep_at_least", facts(copy(said=said(keep_at_least=13))), F, "of 13 days"),
        ("keep_at_least", facts(copy(heard_ns=0)), U, "has not been asked yet"),
    ],
)  # fmt: skip
def test_each_objective_says_why(objective: str, known: Facts, expected: Grade, words: str) -> None:
    """Each way in which an objective holds, fails or cannot be found out has its grade and its words."""
    one = result(objective, known)
    assert (one.grade, words in one.evidence) == (expected, True), one


def test_drills_that_are_switched_off_fail() -> None:
    """Without a level drills may be off; that is not compliant, and the line says so."""
    off = result("drill_every", facts(), Objectives(drill_every_s=0))
    assert (off.target, off.grade) == ("off", Grade.FAIL)


def test_what_a_replica_said_grows_older() -> None:
    """A replica that is not heard of any more keeps its proof of a scrub only until the deadline, by both clocks."""
    skewed = said(now_ns=ago(5 * DAY_S), oldest_verified_ns=ago(8 * DAY_S))  # three days old when it said so
    assert grade("scrub_every", facts(copy(said=skewed, heard_ns=ago(4 * DAY_S)))) is Grade.PASS
    assert grade("scrub_every", facts(copy(said=skewed, heard_ns=ago(4.1 * DAY_S)))) is Grade.FAIL


# ------------------------------------------------------------------------------------------- enumeration, properties

UNKNOWNS: tuple[Facts, ...] = tuple(
    facts(
        copy(
            complete_ns=complete_ns,
            unknown=unknown,
            heard_ns=heard_ns,
            drilled=Drilled(proven_ns, last, unknown=undrilled),
            said=said(oldest_verified_ns=oldest_ns, keeps_all=keeps_all),
        ),
        verified=Verified(ago(1), 1, unseen),
    )
    for complete_ns, unknown, heard_ns, proven_ns, last, undrilled, oldest_ns, keeps_all, unseen in product(
        (0, ago(1), ago(-7200)), ("", "?"), (0, ago(1), ago(2 * DAY_S)), (0, ago(1), ago(-7200)),
        (None, *Outcome), ("", "?"), (0, ago(1), ago(-DAY_S)), (False, True), ("", "?"),
    )
)  # fmt: skip


def test_every_combination_has_a_result_and_no_doubt_passes() -> None:
    """Whatever is known and not known, each objective is judged, and none passes that rests on what is not known."""
    for known in UNKNOWNS:
        one, judged = known.copies[0], judge(EVERYTHING, known)
        assert tuple(each.objective for each in judged.results) == OBJECTIVES
        assert all(each.evidence for each in judged.results)
        grades = {each.objective: each.grade for each in judged.results}
        assert judged.grade is worst(grades.values())
        unsure = {
            "rpo": one.unknown or not one.complete_ns or one.complete_ns > NOW,
            "rto": one.drilled.unknown or not one.drilled.estimate_s,
            "scrub_every": known.verified.unknown or not one.heard_ns or not one.said.oldest_verified_ns,
            "drill_every": one.drilled.unknown or not one.drilled.proven_ns or one.drilled.last is Outcome.FAILED,
            "copies": one.unknown or not one.complete_ns or one.heard_ns < ago(HEARD_S),
            "keep_younger_than": one.heard_ns < ago(HEARD_S),
            "keep_at_least": one.heard_ns < ago(HEARD_S),
        }
        for name, is_unsure in unsure.items():
            assert not (is_unsure and grades[name] is Grade.PASS), (name, known)


@given(st.lists(st.sampled_from(Grade), max_size=4))
def test_a_whole_is_no_better_than_its_worst_part(grades: list[Grade]) -> None:
    """It passes only where every part does, and there is one."""
    assert (worst(grades) is Grade.PASS) == (bool(grades) and set(grades) == {Grade.PASS})
    assert (worst(grades) is Grade.FAIL) == (Grade.FAIL in grades)


AGES = st.integers(0, 400 * 86400)


@given(AGES, AGES, AGES, st.floats(1, 1e6), st.floats(1, 1e6))
def test_older_is_never_better(complete_s: int, verified_s: int, drilled_s: int, more_s: float, factor: float) -> None:
    """Time that passes, and an objective that is stricter, turn no FAIL into a PASS."""

    def judged(later_s: float, stricter: float) -> Judgement:
        wanted = Objectives(rpo_s=86400 / stricter, scrub_every_s=7e6 / stricter, drill_every_s=7e6 / stricter)
        known = facts(
            copy(
                complete_ns=ago(complete_s + later_s),
                said=said(oldest_verified_ns=ago(verified_s + later_s)),
                drilled=Drilled(ago(drilled_s + later_s), Outcome.PROVEN),
            )
        )
        return judge(wanted, known)

    before, after = judged(0, 1), judged(more_s, factor)
    for one, other in zip(before.results, after.results, strict=True):
        assert not (one.grade is not Grade.PASS and other.grade is Grade.PASS)


@given(AGES)
def test_a_drill_is_overdue_by_the_same_measure_as_elsewhere(age_s: int) -> None:
    """Policy, status and alert agree on when a proof is too old."""
    late = age_s > OVERDUE_FACTOR * 7 * DAY_S
    assert (grade("drill_every", facts(copy(drilled=Drilled(ago(age_s), Outcome.PROVEN)))) is Grade.FAIL) == late


def test_no_shipped_level_can_do_without_the_second_copy() -> None:
    """Levels differ in price: each has two copies at least, a scrub and drills; a dearer one asks for no less."""
    assert list(LEVELS) == ["bronze", "silver", "gold"]
    for name, one in LEVELS.items():
        assert one.level == name and one.copies >= MIN_COPIES and one.scrub_every_s > 0 and one.drill_every_s > 0
    for low, high in combinations(LEVELS.values(), 2):
        assert high.rpo_s <= low.rpo_s and high.scrub_every_s <= low.scrub_every_s
        assert high.drill_every_s <= low.drill_every_s and high.copies >= low.copies and high.sites >= low.sites
        assert high.keep_younger_than_s >= low.keep_younger_than_s and high.keep_at_least >= low.keep_at_least
        assert high.min_distance_m >= low.min_distance_m


# ----------------------------------------------------------------------------------------------------------- places

LATITUDES, LONGITUDES = st.floats(-90, 90), st.floats(-180, 180)
PLACES = st.builds(Place, st.sampled_from(["", "a", "b"]), LATITUDES, LONGITUDES)


def test_known_distances() -> None:
    """A quarter of the globe, its half, and two airports whose distance every table of air routes has."""
    quarter = math.pi / 2 * EARTH_RADIUS_M
    assert distance_m(Place("", 0.0, 0.0), Place("", 90.0, 0.0)) == pytest.approx(quarter)
    assert distance_m(Place("", 0.0, -90.0), Place("", 0.0, 90.0)) == pytest.approx(2 * quarter)
    lhr, jfk = Place("", 51.4706, -0.4619), Place("", 40.6398, -73.7789)
    assert distance_m(lhr, jfk) == pytest.approx(5_540_000, rel=0.004)
    metre = Place("", 52.0, 4.0), Place("", 52.0 + 1 / 111_195, 4.0)
    assert distance_m(*metre) == pytest.approx(1.0, rel=1e-3)


@given(PLACES, PLACES, PLACES)
def test_distances_are_distances(one: Place, other: Place, third: Place) -> None:
    """The same both ways, never beyond the antipodes, and no way round is shorter."""
    assert distance_m(one, other) == pytest.approx(distance_m(other, one))
    assert 0 <= distance_m(one, other) <= math.pi * EARTH_RADIUS_M
    assert distance_m(one, third) <= distance_m(one, other) + distance_m(other, third) + 1e-3
    assert distance_m(one, one) == 0


@given(st.lists(PLACES, max_size=5), PLACES, st.integers(1, 4), st.floats(0, 2e7))
def test_another_copy_never_brings_places_together(
    places: list[Place], more: Place, count: int, least_m: float
) -> None:
    """Adding a copy keeps what held; what is true is borne out by some choice of places, each from each."""
    apart = are_apart(places, count, least_m)
    assert not apart or are_apart([*places, more], count, least_m)
    pairs = (combinations(chosen, 2) for chosen in combinations(places, count))
    assert apart == any(all(distance_m(one, other) >= least_m for one, other in each) for each in pairs)


def test_a_place_that_is_not_declared_counts_for_nothing() -> None:
    """Neither as a site nor as a distance."""
    assert sites([Place(), AMS, AMS, FRA]) == ["ams", "fra"]
    assert not are_apart([AMS, Place("x"), Place("y", 1.0)], 2, 1.0) and widest_m([AMS, Place("x")]) == 0
    assert are_apart([AMS, FRA, OSL], 3, 300_000) and not are_apart([AMS, FRA, OSL], 3, 400_000)


# ------------------------------------------------------------------------------------------- what a replica remembers


def note(number: int, outcome: Outcome, ended_ns: int, kind: str = "sampled") -> DrillNote:
    """A drill as it is told."""
    return DrillNote(number, 7, "", kind, outcome, ended_ns)


def test_a_replica_dates_a_drill_by_its_own_clock_at_the_latest() -> None:
    """A primary whose clock is ahead makes no drill younger than the moment at which the replica heard of it."""
    memory = DrillMemory().heard(note(1, Outcome.PROVEN, NOW + 10**18), NOW)
    assert memory.proven.ended_ns == memory.last.ended_ns == NOW


def test_a_replica_remembers_the_last_and_the_last_proof() -> None:
    """A drill told again or late changes nothing; a doubt keeps the proof before it; picked files are no proof."""
    proven = DrillMemory().heard(note(1, Outcome.PROVEN, ago(100)), NOW)
    doubted = proven.heard(note(2, Outcome.INCONCLUSIVE, ago(50)), NOW)
    assert (doubted.last.number, doubted.proven.number) == (2, 1)
    assert doubted.heard(note(1, Outcome.PROVEN, ago(100)), NOW) == doubted
    assert doubted.heard(note(3, Outcome.PROVEN, ago(10), "paths"), NOW) == doubted
    assert doubted.heard(note(3, Outcome.FAILED, ago(10), "paths"), NOW).last.number == 3


def test_a_clock_that_was_ahead_hides_no_drill_that_came_after() -> None:
    """What it stamped grows no younger by being told again, and what follows is newer whatever its time; drills whose
    numbers begin anew are newer by theirs."""
    ahead, failed = note(1, Outcome.PROVEN, NOW + 10**18), note(2, Outcome.FAILED, NOW + 10)
    heard = DrillMemory().heard(ahead, NOW)
    assert heard.heard(ahead, NOW + 50) == heard
    for memory in (heard, DrillMemory()):
        for now_ns in (NOW + 20, NOW + 30):
            for one in (ahead, failed):
                memory = memory.heard(one, now_ns)
            assert memory.last == failed
    anew = DrillMemory().heard(note(41, Outcome.PROVEN, ago(100)), NOW).heard(note(1, Outcome.FAILED, ago(50)), NOW)
    assert anew.last.number == 1


def test_a_doubt_does_not_make_a_replica_forget_a_failure() -> None:
    """Only a drill that was proven does, or another failure takes its place."""
    failed = DrillMemory().heard(note(1, Outcome.PROVEN, ago(100)), NOW).heard(note(2, Outcome.FAILED, ago(50)), NOW)
    assert failed.heard(note(3, Outcome.INCONCLUSIVE, ago(10)), NOW).last.outcome is Outcome.FAILED
    assert failed.heard(note(3, Outcome.FAILED, ago(10)), NOW).last.number == 3
    assert failed.heard(note(3, Outcome.PROVEN, ago(10)), NOW).last == note(3, Outcome.PROVEN, ago(10))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (0.25, "0.2s"), (7, "7s"), (59.6, "1m"), (90, "1m 30s"), (3600, "1h"), (3601, "1h"), (93600, "1d 2h")],
)
def test_durations_are_short(seconds: float, text: str) -> None:
    """Two units at most, and none that is zero."""
    assert short_duration(seconds) == text
