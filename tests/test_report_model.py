"""A report's answer follows from its facts: yes only where everything is known and proven."""

from __future__ import annotations

import itertools

import pytest

from kit_report import DAY_NS, NOW_NS, a_dataset, a_record, a_replica, a_report, a_side, a_store, some_drills
from replicad.model.drill import Outcome
from replicad.model.report import (
    Answer,
    Divergences,
    Objective,
    Remark,
    Report,
    Snapshots,
    Subject,
    Unknown,
    gravest,
    headline,
    judged,
)


def answer_of(**changes: object) -> Answer:
    """The answer for a dataset that is well but for these changes."""
    return judged(a_dataset(**changes)).answer


def test_what_is_well_is_recoverable() -> None:
    """A complete copy, nothing lost, both sides read in time, a recent drill: yes, without a reason against it."""
    assert judged(a_dataset()).reasons == []
    assert judged(a_dataset()).answer is judged(a_store()).answer is Answer.YES


LOST = Divergences(open_count=1, lost_count=1)
UNCLEAR = Divergences(open_count=1, unclear_count=1)
OPEN = Divergences(open_count=3)
FAILED = some_drills(records=[a_record(1), a_record(2, Outcome.FAILED)])
DOUBTED = some_drills(records=[a_record(1, Outcome.FAILED), a_record(2, Outcome.INCONCLUSIVE)])
PICKED = some_drills(records=[a_record(1, Outcome.FAILED), a_record(2, kind="paths")])
NEVER_VERIFIED = [a_side(oldest_verified_ns=0), a_side("replica", "fra1")]
OVERDUE = [a_side(overdue_bytes=5), a_side("replica", "fra1")]
SILENT = [a_side(), a_side("replica", "fra1", as_of_ns=0, state="", oldest_verified_ns=0)]


@pytest.mark.parametrize(
    ("changes", "answer"),
    [
        ({"divergences": OPEN}, Answer.YES),
        ({"divergences": LOST}, Answer.NO),
        ({"divergences": UNCLEAR}, Answer.UNKNOWN),
        ({"replicas": []}, Answer.NO),
        ({"replicas": [a_replica(last_complete_ns=0)]}, Answer.NO),
        ({"replicas": [a_replica(last_complete_ns=0, state="")]}, Answer.UNKNOWN),
        ({"replicas": [a_replica(last_complete_ns=0), a_replica("nyc1")]}, Answer.YES),
        ({"replicas": [a_replica(snapshots=Snapshots(50, 0))]}, Answer.NO),
        ({"replicas": [a_replica(snapshots=Snapshots(50, 0)), a_replica("nyc1")]}, Answer.YES),
        ({"sides": NEVER_VERIFIED}, Answer.UNPROVEN),
        ({"sides": OVERDUE}, Answer.UNPROVEN),
        ({"sides": SILENT}, Answer.UNKNOWN),
        ({"drills": []}, Answer.UNPROVEN),
        ({"drills": [some_drills(records=[], last_success_ns=0)]}, Answer.UNPROVEN),
        ({"drills": [some_drills(is_overdue=True)]}, Answer.UNPROVEN),
        ({"drills": [FAILED]}, Answer.NO),
        ({"drills": [FAILED, some_drills()]}, Answer.YES),
        ({"drills": [DOUBTED]}, Answer.NO),
        ({"drills": [PICKED]}, Answer.NO),
        ({"unknowns": [Unknown("findings", "the book cannot be read")]}, Answer.UNKNOWN),
        ({"unknowns": [Unknown("replica fra1", "out of reach", replica="fra1")]}, Answer.UNKNOWN),
    ],
)
def test_each_lack_has_its_answer(changes: dict[str, object], answer: Answer) -> None:
    """What is lost or failed is a no, what was not found out is not known, what is not recent is not proven."""
    found = judged(a_dataset(**changes))
    assert found.answer is answer
    assert (found.answer is Answer.YES) == (not found.reasons)


def test_the_gravest_lack_decides_whatever_comes_with_it() -> None:
    """Of any two lacks the graver one is the answer, and both are told, the graver first."""
    lacks: list[tuple[dict[str, object], Answer]] = [
        ({"divergences": LOST}, Answer.NO),
        ({"sides": OVERDUE}, Answer.UNPROVEN),
        ({"unknowns": [Unknown("findings", "unread")]}, Answer.UNKNOWN),
    ]
    for (one, first), (other, second) in itertools.combinations(lacks, 2):
        found = judged(a_dataset(**one, **other))
        assert found.answer is gravest([first, second])
        assert [reason.answer for reason in found.reasons] == sorted(
            [first, second], key=[Answer.NO, Answer.UNKNOWN, Answer.UNPROVEN].index
        )


def test_a_silent_replica_beside_one_that_has_told_everything_is_no_reason() -> None:
    """With two replicas, one out of reach, it comes back from the other; that one is silent is still told."""
    silent = Unknown("replica nyc1", "out of reach", replica="nyc1")
    found = judged(a_dataset(replicas=[a_replica(), a_replica("nyc1", snapshots=None)], unknowns=[silent]))
    assert found.answer is Answer.YES
    assert a_report(found).exit_code == 3


def test_a_store_asks_for_no_drill_and_no_replica() -> None:
    """A replica judges what it can see: its own bytes; a damaged store is a no."""
    assert judged(a_store(drills=[], replicas=[])).answer is Answer.YES
    assert judged(a_store(state="damaged")).answer is Answer.NO


def test_nothing_at_all_is_not_healthy() -> None:
    """Without anything protected, and without anything known, the answer is not yes."""
    assert headline([], [])[0] is Answer.UNKNOWN
    assert headline([], [Unknown("daemon", "is not running")]) == (
        Answer.UNKNOWN,
        "Not known: daemon: is not running.",
    )


def test_the_first_sentence_says_it() -> None:
    """Yes, with as of when and by which proof; else what is the matter with the first of how many."""

    def said(*subjects: Subject) -> str:
        return headline([judged(one) for one in subjects], [])[1]

    assert said(a_dataset()) == (
        "Yes: everything in 1 dataset can be recovered as of 2027-01-15T07:59:00Z or later;"
        " drills have proven it, the oldest of them at 2027-01-14T08:00:00Z."
    )
    assert said(a_dataset(divergences=OPEN)).endswith("3 open findings wait for repair, nothing is lost.")
    assert "as far as this side can tell" in said(a_store())
    lost = said(a_dataset(divergences=LOST), a_dataset(name="mail"), a_store())
    assert (
        lost == "No, for 1 of 3 (2 datasets and 1 store). www: data is lost: 1 finding of which no side has the bytes."
    )
    assert said(a_dataset(drills=[])).startswith("Probably, but it is not proven. www: no drill has proven it yet")


def test_that_the_daemon_is_silent_is_never_a_yes() -> None:
    """Whatever the books say, with nobody to say how it stands now it is not known."""
    answer, sentence = headline([judged(a_dataset())], [Unknown("daemon", "is not running", NOW_NS - DAY_NS)])
    assert (answer, sentence) == (Answer.UNKNOWN, "Not known. daemon: is not running.")


def code_of(subject: Subject, **changes: object) -> int:
    """The exit code of a report about one subject."""
    found = judged(subject)
    made: Report = a_report(found, answer=found.answer, **changes)
    return made.exit_code


def test_the_exit_code_says_the_same() -> None:
    """0 all is well; 1 for whatever is wrong, unproven, unmet or to be done; 3 where it is only not known."""
    assert code_of(a_dataset()) == 0
    assert code_of(a_dataset(divergences=LOST)) == code_of(a_dataset(divergences=OPEN)) == 1
    assert code_of(a_dataset(sides=OVERDUE)) == 1
    assert code_of(a_dataset(policy=[Objective("rpo", "5m", "fail", "fra1 is late")])) == 1
    assert code_of(a_dataset(), remarks=[Remark("held", "www", "held", "release")]) == 1
    assert code_of(a_dataset(), remarks=[Remark("link", "www -> fra1", "no link", "look there")]) == 3
    assert code_of(a_dataset(unknowns=[Unknown("findings", "unread")])) == 3
    assert code_of(a_dataset(unknowns=[Unknown("findings", "unread")], sides=OVERDUE)) == 1
