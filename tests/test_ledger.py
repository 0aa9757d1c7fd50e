"""The ledger: what it remembers, what a replica lacks, and what a damaged page looks like."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from replicad.db.ledger import OUTDATED, UNSETTLED, ZERO, BlockRow, EntryRow, Ledger, put_of
from replicad.db.plan import Action, Step
from replicad.db.unnamed import KEPT_WALKS, end_walk, same_unnamed, take_back
from replicad.model.entry import Kind, Meta, Put, Stamp
from replicad.model.errors import BookDamagedError, ReplicadError
from replicad.model.snapshot import Head

META = Meta(0o644, 1, 2, 3_000_000_001)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "www.db")


def file_row(path: bytes, file: int, seq: int, *, inode: int = 7, size: int = 10) -> EntryRow:
    stamp = Stamp(Kind.FILE, 0o644, 1, 2, 0, inode, size, 3_000_000_001, 4)
    return EntryRow(Put(path, Kind.FILE, META, size, file, 65536), stamp, seq)


def half_read(path: bytes, file: int) -> EntryRow:
    row = file_row(path, file, UNSETTLED)
    return row._replace(stamp=row.stamp._replace(size=-1))


def block(file: int, number: int, seq: int, name: bytes = b"i") -> BlockRow:
    return BlockRow(file, number, name * 32, b"c" * 16, seq)


def lacking(ledger: Ledger, covered: int) -> list[bytes]:
    ledger.list_lacking(covered)
    return [path for _, path, _ in ledger.listed(0, 100)]


def test_an_entry_comes_back_as_it_was_recorded(ledger: Ledger) -> None:
    """What goes into the ledger is what `put_of` makes of it, extended attributes and odd names included."""
    put = Put(b"d/\xff\n", Kind.SYMLINK, Meta(0o777, 5, 6, -7, ((b"user.a", b"\0v"),)), target=b"../\xfe")
    ledger.record_entries([EntryRow(put, Stamp(Kind.SYMLINK, 0o777, 5, 6, 0, 9, 4, -7, 8), 1)])
    known = ledger.known(b"d/\xff\n")
    assert known is not None
    assert put_of(b"d/\xff\n", known) == put


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1])
def test_a_number_that_no_book_holds_is_an_error_that_names_the_book(ledger: Ledger, number: int) -> None:
    """When it is to be recorded, and when it is looked for."""
    row = file_row(b"f", 1, 1, inode=number)
    for ask in (
        lambda: ledger.record_entries([row]),
        lambda: ledger.same_content(row.stamp),
        lambda: ledger.same_inode(row.stamp),
        lambda: ledger.put("key", number),
        lambda: list(ledger.database.rows("SELECT ?", (number,))),
    ):
        with pytest.raises(ReplicadError, match="int too big") as caught:
            ask()
        assert caught.value.where == str(ledger.path)


def test_a_page_lists_a_directory_by_name_and_goes_on_behind_a_name(ledger: Ledger) -> None:
    """`page` gives stamps of one directory only, in name order, a bounded number at a time."""
    ledger.record_entries([file_row(b"d/" + name, 1, 1) for name in (b"b", b"a", b"\xff", b"c")])
    ledger.record_entries([file_row(b"e/x", 1, 1), file_row(b"d/a/deep", 1, 1)])
    assert list(ledger.page(b"d", b"", 2)) == [b"a", b"b"]
    assert list(ledger.page(b"d", b"b", 9)) == [b"c", b"\xff"]
    assert ledger.page(b"nowhere", b"", 9) == {}


def test_the_root_has_an_entry_of_its_own(ledger: Ledger) -> None:
    """The root is recorded under the empty path and does not appear in any page."""
    put = Put(b"", Kind.DIRECTORY, META)
    ledger.record_entries([EntryRow(put, Stamp(Kind.DIRECTORY, 0o755, 0, 0, 0, 2, 4096, 1, 1), 1)])
    assert ledger.entry(b"") is not None
    assert ledger.page(b"", b"", 9) == {}


def test_a_replica_lacks_what_is_newer_than_it_has_and_what_is_unsettled(ledger: Ledger) -> None:
    """`seq > covered` is the whole question, for entries, blocks and drops alike."""
    ledger.record_entries([file_row(b"old", 1, 1), file_row(b"new", 2, 2), file_row(b"half", 3, UNSETTLED)])
    ledger.record_blocks([block(2, 0, 1), block(2, 1, 2), block(2, 2, UNSETTLED)])
    ledger.drop([b"old"], 3)
    assert lacking(ledger, 1) == [b"half", b"new"]
    assert [row.number for row in ledger.lacking_blocks(2, 1, -1, 9)] == [1, 2]
    assert ledger.lacking_drops(2, b"\xff", 9) == [b"old"]
    assert ledger.lacking_drops(3, b"\xff", 9) == []


def test_something_is_lacking_until_everything_stamped_is_covered(ledger: Ledger) -> None:
    """A crash before the acknowledgement shows as stamped > covered; an unsettled entry shows at any number."""
    assert not ledger.lacks_something(0)
    ledger.record_entries([file_row(b"a", 1, 4)])
    assert ledger.lacks_something(3)
    assert not ledger.lacks_something(4)
    ledger.unsettle(b"a", 1, 3)
    assert ledger.lacks_something(10**9)


def test_what_could_not_be_sent_lacks_until_the_last_of_it_is_settled(ledger: Ledger) -> None:
    """Whatever else was tried meanwhile; a file that was never read to its end is for the survey and keeps nothing."""
    ledger.record_entries([file_row(b"a", 1, 4), file_row(b"b", 2, 4), half_read(b"half", 3)])
    for path, file in ((b"a", 1), (b"b", 2)):
        ledger.unsettle(path, file, 3)
    ledger.note_settled()
    assert ledger.lacks_something(10**9)
    ledger.settle_entry(b"a", 1, 5)
    ledger.note_settled()
    assert ledger.lacks_something(10**9)
    ledger.drop([b"b"], 6)
    ledger.note_settled()
    assert not ledger.lacks_something(6)


@pytest.mark.parametrize("was_read", [True, False])
def test_a_ledger_of_version_3_is_put_right_when_it_is_opened(tmp_path: Path, was_read: bool) -> None:
    """Blocks that neither an entry nor a file set aside can claim are gone. That something is unsettled is known again,
    unless it was never read to its end: such a file is for the survey."""
    old = Ledger(tmp_path / "www.db")
    unsettled = file_row(b"b", 2, UNSETTLED) if was_read else half_read(b"b", 2)
    old.record_entries([file_row(b"a", 1, 1), unsettled, file_row(b"gone", 3, 1)])
    old.record_blocks([block(file, number, 1) for file in (1, 2, 3, 4) for number in (0, 1)])
    old.drop([b"gone"], 2)
    old.database.execute("PRAGMA user_version = 3")
    assert not old.lacks_something(2)
    old.close()
    ledger = Ledger(tmp_path / "www.db")
    assert ledger.lacks_something(2) == was_read
    assert [file for file in (1, 2, 3, 4) if ledger.blocks(file, 0, 9)] == [1, 2, 3]


def test_unsettling_keeps_blocks_that_the_replica_has(ledger: Ledger) -> None:
    """Only blocks above the covered number become lacking again."""
    ledger.record_entries([file_row(b"a", 1, 2)])
    ledger.record_blocks([block(1, 0, 1), block(1, 1, 2)])
    ledger.unsettle(b"a", 1, 1)
    assert [row.number for row in ledger.lacking_blocks(1, 50, -1, 9)] == [1]
    ledger.settle(1, 3)
    assert ledger.lacking_blocks(1, 3, -1, 9) == []


def test_blocks_are_forgotten_with_the_last_name_of_their_file(ledger: Ledger) -> None:
    """A hard link keeps the blocks; dropping the last name forgets them, some full walks later."""
    ledger.record_entries([file_row(b"a", 1, 1), file_row(b"b", 1, 1)])
    ledger.record_blocks([block(1, 0, 1)])
    ledger.drop([b"a"], 2)
    assert ledger.blocks(1, 0, 9)
    ledger.drop([b"b"], 3)
    for _ in range(KEPT_WALKS):
        end_walk(ledger)
        assert ledger.blocks(1, 0, 9)
    end_walk(ledger)
    assert not ledger.blocks(1, 0, 9)


def test_a_file_that_lost_its_last_name_is_known_by_its_identity(ledger: Ledger) -> None:
    """Until it is forgotten; with a name again it has a new number, all its blocks are lacking, and it stays."""
    row = file_row(b"a", 1, 1)
    ledger.record_entries([row])
    ledger.record_blocks([BlockRow(1, 0, b"i" * 32, b"c" * 16, 1)])
    ledger.drop([b"a"], 2)
    assert ledger.same_content(row.stamp) is None
    known = same_unnamed(ledger, row.stamp)
    assert known is not None and known.file == 1 and ledger.has_files()
    for field in ("device", "inode", "size", "mtime_ns", "ctime_ns"):
        assert same_unnamed(ledger, row.stamp._replace(**{field: getattr(row.stamp, field) + 1})) is None, field
    again = take_back(ledger, known, 3)
    ledger.record_entries([file_row(b"b", again.file, 3)])
    assert again.file != 1 and not ledger.blocks(1, 0, 9)
    assert [found.seq for found in ledger.lacking_blocks(again.file, 2, -1, 9)] == [3]
    for _ in range(KEPT_WALKS + 1):
        end_walk(ledger)
    assert ledger.blocks(again.file, 0, 9)


def test_a_file_that_was_never_read_to_its_end_is_forgotten_with_its_name(ledger: Ledger) -> None:
    """Nothing could be held against it."""
    row = file_row(b"a", 1, 1)
    ledger.record_entries([row._replace(stamp=row.stamp._replace(size=-1))])
    ledger.record_blocks([BlockRow(1, 0, b"i" * 32, b"c" * 16, UNSETTLED)])
    ledger.drop([b"a"], 2)
    assert not ledger.blocks(1, 0, 9) and not ledger.has_files()


def test_a_path_that_comes_back_is_no_longer_dropped(ledger: Ledger) -> None:
    """Recording a path takes it off the list of drops."""
    ledger.record_entries([file_row(b"a", 1, 1)])
    ledger.drop([b"a"], 2)
    ledger.record_entries([file_row(b"a", 2, 3)])
    assert ledger.lacking_drops(0, b"\xff", 9) == []


def test_same_content_needs_every_part_of_the_identity(ledger: Ledger) -> None:
    """A renamed file is recognised by device, inode, size and both times, and by nothing less."""
    row = file_row(b"a", 5, 1)
    ledger.record_entries([row])
    found = ledger.same_content(row.stamp)
    assert found is not None
    assert found.file == 5
    for field in ("device", "inode", "size", "mtime_ns", "ctime_ns"):
        other = row.stamp._replace(**{field: getattr(row.stamp, field) + 1})
        assert ledger.same_content(other) is None, field


def test_everything_below_a_directory_is_named_children_first(ledger: Ledger) -> None:
    """`below` names no neighbour whose name merely begins alike, and parents after their children."""
    paths = [b"d", b"d/a", b"d/a/x", b"d/b", b"d.txt", b"da/y"]
    ledger.record_entries([file_row(path, 1, 1) for path in paths])
    found = list(ledger.below(b"d"))
    assert sorted(found) == [b"d/a", b"d/a/x", b"d/b"]
    assert found.index(b"d/a/x") < found.index(b"d/a")


def test_drops_are_forgotten_when_every_replica_knows_them(ledger: Ledger) -> None:
    """The slowest replica decides; one that was never acknowledged keeps all."""
    ledger.record_entries([file_row(b"a", 1, 1)])
    ledger.drop([b"a"], 2)
    ledger.set_sent("fast", Head(1, b"h" * 32), 2)
    ledger.set_acked("fast")
    ledger.forget_drops(["fast", "slow"])
    assert ledger.lacking_drops(0, b"\xff", 9) == [b"a"]
    ledger.forget_drops(["fast"])
    assert ledger.lacking_drops(0, b"\xff", 9) == []


def test_a_replica_that_is_not_configured_is_outdated_once_something_is_forgotten_that_it_lacks(ledger: Ledger) -> None:
    """One that knows all that is forgotten goes on from where it is, whoever is configured."""
    ledger.record_entries([file_row(b"a", 1, 1)])
    ledger.drop([b"a"], 2)
    for name, covered in (("fast", 3), ("away", 1), ("old", 2)):
        ledger.set_sent(name, Head(1, b"h" * 32), covered)
        ledger.set_acked(name)
    ledger.forget_drops(["fast", "away"])
    assert ledger.standing("away").covered == 1
    ledger.forget_drops(["fast"])
    assert [ledger.standing(name).covered for name in ("fast", "away", "old")] == [3, OUTDATED, 2]


def test_standing_moves_only_when_the_replica_acknowledges(ledger: Ledger) -> None:
    """What was sent is remembered apart from what arrived."""
    head = Head(3, b"d" * 32)
    ledger.set_sent("fra1", head, 8)
    before = ledger.standing("fra1")
    assert (before.covered, before.head, before.sent, before.sent_covered) == (0, Head(), head, 8)
    ledger.set_acked("fra1")
    after = ledger.standing("fra1")
    assert (after.covered, after.head) == (8, head)


def test_a_number_is_never_taken_twice(ledger: Ledger) -> None:
    """Rows written after a pass without changes lie above what any replica has been told to cover."""
    first = ledger.take_seq()
    second = ledger.take_seq()
    ledger.record_entries([file_row(b"a", 1, second + 5)])
    assert first < second < second + 5 < ledger.take_seq()


def test_the_plan_comes_back_in_order_and_by_phase(ledger: Ledger) -> None:
    """Steps are taken by phase and number, a bounded number at a time."""
    ledger.plan.begin()
    steps = [Step(phase, number, Action.READ, b"p%d" % number, 1, 1, False) for number in (3, 1, 2) for phase in (0, 1)]
    ledger.plan.add(steps)
    assert [step.number for step in ledger.plan.steps(1, 0, 2)] == [1, 2]
    assert [step.number for step in ledger.plan.steps(1, 2, 2)] == [3]
    assert ledger.plan.steps(2, 0, 2) == []


def test_two_new_ledgers_number_their_files_differently(tmp_path: Path) -> None:
    """A replica may hold files of a lost ledger: its numbers must not come to stand for other files."""
    assert Ledger(tmp_path / "a.db").next_file() != Ledger(tmp_path / "b.db").next_file()


def test_a_rolled_back_change_leaves_no_trace(ledger: Ledger) -> None:
    """Nothing of an unfinished transaction is remembered, directory numbers included."""
    ledger.begin()
    ledger.record_entries([file_row(b"d/a", 1, 1)])
    ledger.rollback()
    assert ledger.page(b"d", b"", 9) == {}
    ledger.record_entries([file_row(b"d/a", 1, 1)])
    assert list(ledger.page(b"d", b"", 9)) == [b"a"]


def test_zero_blocks_are_rows_of_their_own(ledger: Ledger) -> None:
    """A block that became zero is remembered as such, so that a replica that was away hears of it."""
    ledger.record_blocks([BlockRow(1, 0, ZERO, bytes(16), 5)])
    assert ledger.lacking_blocks(1, 4, -1, 9)[0].id == ZERO


@pytest.mark.parametrize("seed", range(12))
def test_a_flipped_bit_anywhere_is_reported_as_damage(tmp_path: Path, seed: int) -> None:
    """One bit of the file, wherever it is: opening or verifying names the ledger as damaged, without a traceback."""
    path = tmp_path / "www.db"
    ledger = Ledger(path)
    ledger.record_entries([file_row(b"f%d" % number, number, 1) for number in range(2000)])
    ledger.close()
    data = bytearray(path.read_bytes())
    bit = random.Random(seed).randrange(len(data) * 8)
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)
    try:
        problems = Ledger(path).verify()
    except BookDamagedError as error:
        problems = [str(error)]
    assert problems
    assert str(path) in problems[0] or "checksum" in problems[0]
