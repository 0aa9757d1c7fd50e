"""The findings book: what was found survives, is one finding when it is found again, and is counted once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from kit_findings import a_divergence, primary_rot, replica_rot
from kit_store import flip
from replicad.db import findings
from replicad.db.findings import Findings
from replicad.model.divergence import Divergence, Event, Receipt, Side, State, Suspect, divergence_id
from replicad.model.errors import BookDamagedError, ReplicadError, UsageError
from replicad.model.retention import Pin
from replicad.model.verdict import Evidence, Sight, Verdict, Witness, Writing


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the book is."""
    return tmp_path / "findings.db"


@pytest.fixture
def book(path: Path) -> Iterator[Findings]:
    """An empty book."""
    made = Findings(path)
    yield made
    made.close()


def a_receipt(divergence: str = "7c1e90ab", at_ns: int = 1, result: str = "repaired") -> Receipt:
    """A repair that was made."""
    return Receipt(
        divergence=divergence,
        at_ns=at_ns,
        remedy="mend_primary",
        path=b"img/logo.png",
        offset=0,
        length=65536,
        before=b"0" * 16,
        after=b"1" * 16,
        source="fra1",
        result=result,
    )


def a_suspect(path: bytes = b"db.img", snapshot: int = 7, kind: str = "zeroed") -> Suspect:
    """A change that looks like damage."""
    return Suspect(path=path, kind=kind, snapshot=snapshot, before=snapshot - 1, found_ns=5, blocks=2)


# ------------------------------------------------------------------------------------------------------ divergences


def test_what_was_reported_survives(book: Findings, path: Path) -> None:
    """Findings, receipts, suspects and remembered values are all there when the book is opened again."""
    reported = [book.report(primary_rot()), book.report(replica_rot())]
    receipt = book.add_receipt(a_receipt(reported[0].id))
    book.add_suspects([a_suspect()])
    book.put("paused_until_ns", 17)
    book.close()
    again = Findings(path, readonly=True)
    assert sorted(again.listed(), key=lambda found: found.key) == sorted(reported, key=lambda found: found.key)
    assert again.receipts(reported[0].id) == [receipt] and receipt.number == 1
    assert [suspect.path for suspect in again.suspects()] == [b"db.img"]
    assert again.get("paused_until_ns") == 17
    assert again.verify() == []
    again.close()


def test_what_was_reported_survives_a_kill(path: Path) -> None:
    """A finding is durable when the call returns: a process that is killed at once has not lost it."""
    code = (
        "import os, sys; sys.path[:0] = sys.argv[2:]\n"
        "from pathlib import Path\n"
        "from kit_findings import primary_rot\n"
        "from replicad.db.findings import Findings\n"
        "Findings(Path(sys.argv[1])).report(primary_rot())\n"
        "os.kill(os.getpid(), 9)\n"
    )
    tests = Path(__file__).parent
    done = subprocess.run([sys.executable, "-c", code, path, tests, tests.parent], check=False)
    assert done.returncode == -9
    book = Findings(path)
    assert [found.verdict for found in book.listed()] == [Verdict.PRIMARY_ROT]
    book.close()


def test_every_change_is_synced(book: Findings) -> None:
    """A power cut loses nothing either: SQLite syncs its log at the end of each change (synchronous = full)."""
    changes: list[Callable[[], object]] = [
        lambda: book.report(a_divergence(id="7c1e90ab")),
        lambda: book.update(a_divergence(id="7c1e90ab")),
        lambda: book.add_receipt(a_receipt()),
        lambda: book.add_suspects([a_suspect()]),
        lambda: book.release_suspects(None, 1),
        lambda: book.put("key", 1),
    ]
    for change in changes:
        book._db.execute("PRAGMA synchronous = off")
        change()
        assert book._db.value("PRAGMA synchronous") == 2


def test_a_finding_found_again_is_one_finding(book: Findings) -> None:
    """It keeps its id, its moment and its history; another place, side or peer is another finding."""
    first = book.report(a_divergence(found_ns=5, events=(Event(5, "found"),)))
    again = book.report(a_divergence(found_ns=9, events=(Event(9, "found again"),)))
    assert (again.id, again.found_ns) == (first.id, 5)
    assert [event.what for event in again.events] == ["found", "found again"]
    assert book.listed() == [again]
    for changes in ({"key": "block:77:4"}, {"side": Side.REPLICA}, {"peer": "fra1"}):
        book.report(a_divergence(**changes))
    assert len(book.listed()) == 4


def test_a_scrub_does_not_undo_a_verdict(book: Findings) -> None:
    """What the other side said stays said when the next scrub finds the same bytes; other bytes are judged anew."""
    settled = book.report(primary_rot())
    assert book.report(a_divergence(found_ns=99)).verdict is Verdict.PRIMARY_ROT
    assert book.report(a_divergence(seen=b"9" * 16)).verdict is Verdict.INCONCLUSIVE
    assert [found.id for found in book.listed()] == [settled.id]


@pytest.mark.parametrize("state", [State.REPAIRED, State.GONE])
def test_what_comes_back_is_a_new_finding(book: Findings, state: State) -> None:
    """After a repair the same place can rot again: that is a finding of its own, and the old one keeps its end."""
    first = book.report(a_divergence(found_ns=5))
    book.update(first.with_event(6, "done", state=state))
    for found_ns in (5, 9):  # even when both were found at the same moment
        second = book.report(a_divergence(found_ns=found_ns))
        assert second.id != first.id
        book.update(second.with_event(9, "done", state=state))
    assert len(book.listed(state=state)) == 3 and book.listed() == []


def test_what_a_person_acknowledged_stays_acknowledged(book: Findings) -> None:
    """The same damage found again does not come back; when it becomes another, it does."""
    first = book.report(a_divergence(found_ns=5))
    book.update(first.with_event(6, "acknowledged by kim", state=State.ACKNOWLEDGED))
    assert book.report(a_divergence(found_ns=9)).state is State.ACKNOWLEDGED
    assert book.listed() == []
    worse = book.report(a_divergence(found_ns=9, seen=b"9" * 16))
    assert worse.id != first.id and book.listed() == [worse]


def test_an_acknowledgement_is_not_overwritten_by_who_did_not_know(book: Findings) -> None:
    """A job that looked at a finding while a person acknowledged it adds what it saw and opens nothing again; to settle
    it is still possible."""
    seen_by_job = book.report(a_divergence())
    book.update(seen_by_job.with_event(6, "acknowledged by kim", state=State.ACKNOWLEDGED))
    book.update(seen_by_job.with_event(7, "looked at again", verdict=Verdict.BOTH_ROT))
    known = book.get_exactly(seen_by_job.id)
    assert known and (known.state, known.verdict) == (State.ACKNOWLEDGED, Verdict.BOTH_ROT)
    assert [event.what for event in known.events] == ["acknowledged by kim", "looked at again"]
    book.update(known.with_event(8, "written since", state=State.GONE))
    assert [found.id for found in book.listed(state=State.GONE)] == [known.id]


def test_an_id_is_never_given_twice(book: Findings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the short ids of two findings are the same, neither overwrites the other; one that comes with an id from
    the other side keeps it when it can."""

    def short(*words: object) -> str:
        return divergence_id(*words)[:1] + "0000000"  # type: ignore[arg-type]  # passes on what it was given

    monkeypatch.setattr(findings, "divergence_id", short)
    reported = [book.report(a_divergence(key=f"block:77:{number}")) for number in range(12)]
    assert len({found.id for found in reported}) == 12
    assert {found.key for found in book.listed()} == {found.key for found in reported}
    mirrored = book.report(replica_rot(id="cafecafe", peer="fra1"))
    assert mirrored.id == "cafecafe" == book.report(replica_rot(id="cafecafe", peer="fra1")).id
    other = book.report(replica_rot(id="cafecafe", peer="lon1"))
    assert other.id != "cafecafe" and book.get_exactly("cafecafe") == mirrored


def test_findings_are_listed_by_side_and_state_oldest_first(book: Findings) -> None:
    """Open ones unless others are asked for."""
    newer = book.report(primary_rot(found_ns=9))
    older = book.report(replica_rot(found_ns=3))
    gone = book.report(a_divergence(key="block:1:1", found_ns=1))
    book.update(gone.with_event(2, "written", state=State.GONE))
    assert book.listed() == [older, newer]
    assert book.listed(side=Side.PRIMARY) == [newer]
    assert [found.id for found in book.listed(state=None)] == [gone.id, older.id, newer.id]
    assert [found.id for found in book.listed(side=Side.PRIMARY, state=State.GONE)] == [gone.id]


def test_a_prefix_names_one_finding(book: Findings) -> None:
    """As many characters as make it the only one are enough, in either case; anything else is an error that says so."""
    ids = ["7c1e90ab", "7c1e9fff", "0abc1234"]
    for number, name in enumerate(ids):
        book.report(a_divergence(id=name, key=f"block:1:{number}"))
    assert [book.find(word).id for word in ("0", "7c1e90", "7C1E9F", "7c1e9fff")] == [ids[2], ids[0], ids[1], ids[1]]
    for word in ("7c1e9", "7", ""):
        with pytest.raises(UsageError, match="more than one") as caught:
            book.find(word)
        assert "divergence list" in caught.value.hint
    for word in ("ff", "7c1e90ab0", "x", "%", "'; --", "\x00", "7c1e_0ab"):
        with pytest.raises(UsageError, match="there is no divergence"):
            book.find(word)


def test_each_verdict_of_a_finding_is_counted_once(book: Findings) -> None:
    """However often a finding is found, and whether its verdict goes to and fro, each verdict counts once for it."""
    evidence = Evidence(Sight.DIFFERS, Sight.MATCHES, Writing.UNWRITTEN, Witness.CONFIRMS)
    found = book.report(a_divergence())
    for _ in range(3):
        book.report(a_divergence())
        book.update(found.with_event(6, "judged", verdict=Verdict.PRIMARY_ROT, evidence=evidence))
        book.update(found.with_event(7, "doubted", verdict=Verdict.INCONCLUSIVE))
    book.report(a_divergence(key="block:77:4"))
    book.report(replica_rot())
    assert book.totals() == {
        ("primary", "inconclusive"): 2,
        ("primary", "primary_rot"): 1,
        ("replica", "replica_rot"): 1,
    }


def test_an_update_needs_a_report(book: Findings) -> None:
    """To change what was never reported is our own mistake, and changes nothing."""
    with pytest.raises(AssertionError):
        book.update(a_divergence(id="7c1e90ab"))
    assert book.listed(state=None) == []


def test_a_failed_change_changes_nothing(book: Findings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change is made as a whole or not at all, and the book can be used afterwards."""
    found = book.report(a_divergence())

    def fail(known: Divergence, new: Divergence) -> Divergence:
        raise RuntimeError

    with monkeypatch.context() as patched, pytest.raises(RuntimeError):
        patched.setattr(Divergence, "found_again", fail)
        book.report(a_divergence())
    assert book.listed() == [found]
    assert book.report(a_divergence(key="block:1:1")).id


# ------------------------------------------------------------------------------------------------- receipts, breaker


def test_receipts_are_numbered_and_kept_by_divergence(book: Findings) -> None:
    """Each repair has its number in the order made; results are counted."""
    for divergence, result in (("a", "repaired"), ("b", "failed"), ("a", "undone")):
        book.add_receipt(a_receipt(divergence, result=result))
    assert [(receipt.number, receipt.result) for receipt in book.receipts("a")] == [(1, "repaired"), (3, "undone")]
    assert book.repair_totals() == {"repaired": 1, "failed": 1, "undone": 1}


def test_the_breaker_counts_repairs_of_a_window(book: Findings) -> None:
    """Repairs since a moment, that moment included, count whether they went well or not; undoing one does not."""
    for at_ns, result in ((10, "repaired"), (20, "failed"), (30, "repaired"), (40, "undone")):
        book.add_receipt(a_receipt(at_ns=at_ns, result=result))
    assert [book.repaired_since(at_ns) for at_ns in (0, 10, 11, 20, 30, 31)] == [3, 3, 2, 2, 1, 0]


# --------------------------------------------------------------------------------------------------------- suspects


def test_suspects_pin_the_version_before(book: Findings) -> None:
    """Until a person releases it, the last snapshot with the version before is pinned; two may pin the same one."""
    book.add_suspects([a_suspect(b"a", 7), a_suspect(b"b", 7), a_suspect(b"c", 9)])
    assert book.pinned() == {6, 8}
    assert book.release_suspects([1], at_ns=50) == 1 and book.pinned() == {6, 8}
    assert book.release_suspects([2, 2, 77], at_ns=60) == 1 and book.pinned() == {8}
    assert [suspect.path for suspect in book.suspects()] == [b"c"]
    assert [suspect.released_ns for suspect in book.suspects(released=True)] == [50, 60, 0]
    assert book.release_suspects(None, at_ns=70) == 1 and book.pinned() == set()


def test_a_suspect_is_noted_once(book: Findings) -> None:
    """The same change noted again (a session that was cut and repeated) adds nothing, released or not."""
    book.add_suspects([a_suspect(b"a", 7), a_suspect(b"a", 7)])
    book.release_suspects(None, at_ns=50)
    book.add_suspects([a_suspect(b"a", 7), a_suspect(b"a", 7, kind="emptied"), a_suspect(b"a", 8)])
    assert [(suspect.snapshot, suspect.kind) for suspect in book.suspects()] == [(7, "emptied"), (8, "zeroed")]
    numbers = [suspect.number for suspect in book.suspects(released=True)]
    assert len(set(numbers)) == len(numbers) == 3


# ------------------------------------------------------------------------------------------------- remembered values


def test_values_are_remembered_and_forgotten(book: Findings) -> None:
    """Numbers, texts and bytes come back as what they are; None forgets."""
    for value in (0, 2**62, "", "text", b"", b"\xff"):
        book.put("key", value)
        assert book.get("key") == value
    book.put("key", None)
    assert book.get("key") is None


# -------------------------------------------------------------------------------------------------------------- pins


def test_pins_stay_until_they_are_removed(book: Findings, path: Path) -> None:
    """A pin outlives the process; the same name again is fine for the same snapshot and refused for another."""
    book.add_pin(Pin("before-upgrade", 7, 5, "ticket 12"))
    book.add_pin(Pin("audit", 7, 6))
    book.add_pin(Pin("before-upgrade", 7, 8, "ticket 13"))
    with pytest.raises(UsageError, match="pins snapshot 7 already"):
        book.add_pin(Pin("before-upgrade", 8, 9))
    again = Findings(path)
    assert again.pins() == [Pin("audit", 7, 6), Pin("before-upgrade", 7, 8, "ticket 13")]
    again.close()
    assert book.remove_pin("audit") and not book.remove_pin("audit")
    assert [pin.name for pin in book.pins()] == ["before-upgrade"]


def test_a_pin_and_a_drop_exclude_one_another(book: Findings, path: Path) -> None:
    """What is pinned when snapshots are about to go stays; what is about to go can be pinned no more."""
    book.add_pin(Pin("kept", 3, 5))
    book.add_suspects([a_suspect(snapshot=5)])
    assert book.retire([2, 3, 4, 6]) == [2, 6]
    other = Findings(path)
    with pytest.raises(UsageError, match="just being dropped"):
        other.add_pin(Pin("late", 6, 5))
    other.add_pin(Pin("fine", 4, 5))
    other.close()
    assert book.retire([]) == []
    book.add_pin(Pin("late", 6, 5))


# ---------------------------------------------------------------------------------------------------------- the file


def test_a_flipped_bit_is_named_as_damage(path: Path) -> None:
    """A bit that flips anywhere in the book is found at open or when it is read, and the error says what to do."""
    book = Findings(path)
    for number in range(300):
        found = book.report(primary_rot(key=f"block:77:{number}", found_ns=number))
        book.add_receipt(a_receipt(found.id))
    book.close()
    good = path.read_bytes()
    assert len(good) > 10 * 8192
    for step in range(60):
        path.write_bytes(good)
        flip(path, (step * 7919 + 13) % len(good), step % 8)
        with pytest.raises((BookDamagedError, ReplicadError)) as caught:
            again = Findings(path)
            try:
                problems = again.verify()
                raise BookDamagedError("; ".join(problems)) if problems else AssertionError("not noticed")
            finally:
                again.close()
        assert isinstance(caught.value, BookDamagedError) or "schema version" in str(caught.value)


def test_damage_says_what_to_do(path: Path) -> None:
    """Opening a damaged book names the file, and that what is wrong is found again without it."""
    Findings(path).close()
    flip(path, 20)
    with pytest.raises(BookDamagedError) as caught:
        Findings(path)
    assert caught.value.where == str(path) and "found again" in caught.value.hint


def test_two_connections_see_one_book(book: Findings, path: Path) -> None:
    """The daemon and a command may have it open together: each sees what the other has written, and both may write."""
    found = book.report(a_divergence())
    command = Findings(path)
    reader = Findings(path, readonly=True)
    assert command.find(found.id[:3]) == found
    command.update(found.with_event(6, "acknowledged by kim", state=State.ACKNOWLEDGED))
    known = book.get_exactly(found.id)
    assert known and known.state is State.ACKNOWLEDGED
    second = book.report(a_divergence(key="block:77:4"))
    assert command.listed() == reader.listed() == [second]
    with pytest.raises(ReplicadError):
        reader.put("key", 1)
    command.close()
    reader.close()


def test_a_reader_makes_no_book(path: Path) -> None:
    """To look into a book that is not there is an error, and leaves nothing behind."""
    with pytest.raises(ReplicadError):
        Findings(path, readonly=True)
    assert list(path.parent.iterdir()) == []


def test_the_longest_finding_fits(book: Findings) -> None:
    """A finding with all its lists full is remembered whole."""
    found = primary_rot(
        blocks=tuple(number.to_bytes(32, "big") for number in range(4096)),
        events=tuple(Event(number, "x" * 200) for number in range(200)),
        path=b"p" * 4095,
    )
    reported = book.report(found)
    assert book.get_exactly(reported.id) == msgspec.structs.replace(found, id=reported.id)
