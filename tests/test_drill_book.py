"""The book of drills: history, when each file was drilled, and what is chosen."""

from __future__ import annotations

from pathlib import Path

import pytest

from replicad.db.drills import Chosen, Drills, Subject
from replicad.model.drill import Amount, DrillRecord, Outcome


@pytest.fixture
def book(tmp_path: Path) -> Drills:
    """A fresh one."""
    return Drills(tmp_path / "drills.db")


def a_record(outcome: Outcome, ended_ns: int, kind: str = "sampled") -> DrillRecord:
    return DrillRecord("www", "fra1", kind=kind, outcome=outcome, ended_ns=ended_ns)


def test_only_a_proven_drill_of_the_dataset_is_a_success(book: Drills, tmp_path: Path) -> None:
    """Failures, doubts and drills of chosen paths move nothing; the history survives in another connection."""
    assert book.proven("fra1", 9) == []
    for number, record in enumerate(
        [
            a_record(Outcome.PROVEN, 10),
            a_record(Outcome.FAILED, 20),
            a_record(Outcome.INCONCLUSIVE, 30),
            a_record(Outcome.PROVEN, 40, "paths"),
        ],
        1,
    ):
        assert book.add(record).number == number
    assert [record.ended_ns for record in book.proven("fra1", 9)] == [10] and book.proven("other", 9) == []
    book.add(a_record(Outcome.PROVEN, 50))
    assert [record.ended_ns for record in book.proven("fra1", 1)] == [50]
    assert book.counts("fra1") == {"proven": 3, "failed": 1, "inconclusive": 1}
    other = Drills(tmp_path / "drills.db", readonly=True)
    assert [record.ended_ns for record in other.history("fra1", limit=3)] == [30, 40, 50]
    other.close()


def test_a_failure_is_remembered_until_the_dataset_is_proven(book: Drills) -> None:
    """Of each replica by itself; what found nothing out, and paths that a person chose, settle nothing."""
    assert book.failure("fra1") is None
    for record in (a_record(Outcome.PROVEN, 10), a_record(Outcome.FAILED, 20), a_record(Outcome.FAILED, 30, "paths")):
        book.add(record)
    for record in (a_record(Outcome.INCONCLUSIVE, 40), a_record(Outcome.PROVEN, 50, "paths")):
        book.add(record)
        found = book.failure("fra1")
        assert found is not None and found.ended_ns == 30 and book.failure("other") is None
    book.add(a_record(Outcome.PROVEN, 60))
    assert book.failure("fra1") is None


def test_files_are_given_least_recently_drilled_first(book: Drills) -> None:
    """Those never drilled come first, scattered; those that are gone are forgotten; a replica's times are its own."""
    book.see("fra1", [(number, 10) for number in range(1, 9)], 1)
    book.begin_choice()
    book.choose([Chosen(b"a", 1, 10, 4096, b""), Chosen(b"b", 2, 10, 4096, b""), Chosen(b"b2", 2, 10, 4096, b"")])
    book.mark_proven([b"a", b"b"])
    book.settle("fra1", 500)
    ages = list(book.by_age("fra1", 1000))
    assert ages[-1] == (1, 10, 500) and all(at == 0 for _file, _size, at in ages[:-1])
    assert [file for file, *_ in ages[:-1]] != sorted(file for file, *_ in ages[:-1])
    coverage = book.coverage("fra1")
    assert coverage == (Amount(8, 80), 7, 500), "file 2 has a name that was not proven"
    assert book.coverage("fra2").total == Amount(0, 0)
    book.see("fra1", [(1, 99), (3, 10)], 2)
    book.forget_unseen("fra1", 2)
    assert sorted(book.by_age("fra1", 1000)) == [(1, 99, 500), (3, 10, 0)], (
        "what was drilled stays drilled under a new size"
    )


def test_what_a_validator_found_wanting_is_not_drilled(book: Drills) -> None:
    """Neither the file itself nor what lies below a directory; its neighbours are not touched."""
    book.see("fra1", [(1, 1), (2, 1), (3, 1)], 1)
    book.choose([Chosen(path, file, 1, 4096, b"") for file, path in ((1, b"d/a"), (2, b"d.txt"), (3, b"d0"))])
    book.mark_proven([b"d/a", b"d.txt", b"d0"])
    book.unprove(b"d", is_wrong=False)
    book.settle("fra1", 7)
    assert sorted(book.by_age("fra1", 1000)) == [(1, 1, 0), (2, 1, 7), (3, 1, 7)]


def test_subjects_come_deepest_first_and_once(book: Drills) -> None:
    """What lies in another subject is looked at before that one."""
    subjects = [
        Subject(b"a", 0, True),
        Subject(b"a/b", 1, True),
        Subject(b"a/b/c.db", 2, False),
        Subject(b"z", 0, False),
    ]
    for subject in (*subjects, subjects[0]):
        book.add_subject(subject)
    page = book.subjects(None)
    assert page == [subjects[3], subjects[2], subjects[1], subjects[0]]
    assert book.subjects(page[1]) == page[2:] and book.subjects(page[3]) == []
    assert book.has_subject(b"a") and not book.has_subject(b"z") and book.is_subject(subjects[1])


def test_a_file_with_two_names_needs_its_room_once(book: Drills) -> None:
    """But it is read back under each."""
    book.choose([Chosen(b"a", 1, 10, 4096, b""), Chosen(b"b", 1, 10, 4096, b""), Chosen(b"c", 2, 10, 4096, b"")])
    assert book.room_bytes() == 20 and book.amount() == Amount(3, 30)
    assert [chosen.path for chosen in book.chosen(b"a")] == [b"b", b"c"]
    assert book.is_chosen(b"c") and not book.is_chosen(b"d")


def test_what_was_found_wrong_comes_first_until_it_is_proven(book: Drills) -> None:
    """Whenever it was drilled before; under any of its names, and below a directory that a validator found wrong."""
    names = {b"a": 1, b"a2": 1, b"b": 2, b"pg/x": 3, b"pg/y": 4, b"z": 5}
    book.see("fra1", [(file, 1) for file in range(1, 6)], 1)
    everything = [Chosen(path, file, 1, 4096, b"") for path, file in names.items()]

    def drill(at_ns: int, wrong: list[bytes], below: bytes = b"", *, doubted: bytes = b"") -> list[tuple[int, int]]:
        book.begin_choice()
        book.choose(everything)
        book.mark_proven([path for path in names if path not in wrong])
        book.mark_wrong(wrong)
        if below:
            book.unprove(below, is_wrong=True)
        if doubted:
            book.unprove(doubted, is_wrong=False)
        book.settle("fra1", at_ns)
        return sorted((file, at) for file, _size, at in book.by_age("fra1", 1000))

    assert drill(10, []) == [(file, 10) for file in range(1, 6)]
    assert drill(20, [b"a2"], b"pg", doubted=b"b") == [(1, -1), (2, 10), (3, -1), (4, -1), (5, 20)]
    assert [at for _file, _size, at in book.by_age("fra1", 1000)] == [-1, -1, -1, 10, 20]
    assert book.coverage("fra1") == (Amount(5, 5), 3, 10)
    book.begin_choice()
    book.choose(everything[:2])
    assert book.wrong_left("fra1") == 2 and book.wrong_left("fra2") == 0
    assert drill(30, []) == [(file, 30) for file in range(1, 6)] and book.wrong_left("fra1") == 0


def test_a_time_to_come_is_none(book: Drills) -> None:
    """What a clock that was ahead has dated is drilled like what never was; no time that it had is lost."""
    book.see("fra1", [(1, 1), (2, 1)], 1)
    for file, at_ns in ((1, 9_000), (2, 70)):
        book.begin_choice()
        book.choose([Chosen(b"x", file, 1, 4096, b"")])
        book.mark_proven([b"x"])
        book.settle("fra1", at_ns)
    assert [(file, at) for file, _size, at in book.by_age("fra1", 1000)] == [(1, 0), (2, 70)]
    assert [(file, at) for file, _size, at in book.by_age("fra1", 9_000)] == [(2, 70), (1, 9_000)]
