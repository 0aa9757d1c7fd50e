"""The damage that the test kit does to stores and books is what its name says, and its expectations can fail."""

from __future__ import annotations

import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from kit_damage import (
    EXPECTED,
    OF_BLOCKS,
    OF_SEGMENTS,
    OF_STRUCTURE,
    Expected,
    Fault,
    Harm,
    Shelf,
    book_problems,
    harm_book,
    live_blocks,
)
from kit_rot import CannotRot
from kit_store import Primary, open_archive, put_files, verify_segment
from replicad.model.divergence import MAX_BLOCKS_NAMED, Part, Side
from replicad.model.verdict import Verdict
from replicad.store import store as store_module
from replicad.store.segments import Damage, segment_numbers, segment_path
from replicad.system.disk import Disk


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of several small segments with three snapshots, in which each file's block was written anew."""
    monkeypatch.setattr(store_module, "SEGMENT_BYTES", 60_000)
    directory, source = tmp_path / "www", random.Random(3)
    archive = open_archive(directory)
    primary = Primary(archive)
    for number in (1, 2, 3):
        files = {b"f%02d" % i: source.randbytes(3000 + 500 * (i % 5)) for i in range(20)}
        put_files(primary, number, files)
    archive.close()
    return directory


def damaged(directory: Path) -> list[tuple[int, int, str]]:
    """(segment, offset, reason) of what the store's own verification says."""
    numbers = segment_numbers(directory)
    found = []
    for number in numbers:
        for item in verify_segment(directory, number, Disk(), last=number == numbers[-1]):
            assert isinstance(item, Damage), "a damage must not look like a torn write"
            found.append((number, item.offset, item.reason))
    return found


def document(fault: Fault, **changes: object) -> dict[str, object]:
    """A divergence that gets this fault right, apart from `changes`."""
    expected = fault.expected
    return {
        "side": expected.side.value,
        "key": "book:x" if Part.BOOK in expected.parts else "frame:1:0",
        "part": min(expected.parts).value,
        "verdict": min(expected.verdicts).value,
        "path": expected.path,
        "number": expected.number,
        "offset": expected.offset,
        "length": expected.length,
        "blocks": [name.hex() for name in expected.blocks],
        "mended": [],
        "affected": [],
    } | changes


def test_every_kind_has_an_expectation() -> None:
    """No damage is done of which nobody knows what a detection must say."""
    assert set(EXPECTED) == set(Harm) == {*OF_BLOCKS, *OF_STRUCTURE, *OF_SEGMENTS}


def test_a_finding_about_a_whole_segment_names_as_many_blocks_as_it_can(store: Path) -> None:
    """Of a segment with more of them the rest need not be named; one that leaves room for more has to name all."""
    fault = Shelf(store).harm(Harm.LOST, seed=3)
    more = frozenset(number.to_bytes(32, "big") for number in range(MAX_BLOCKS_NAMED + 100))
    expected = replace(fault.expected, blocks=more)
    names = sorted(name.hex() for name in more)
    full = document(fault, part=Part.SEGMENT.value, blocks=names[:MAX_BLOCKS_NAMED])
    assert expected.problems([full]) == []
    assert expected.problems([full | {"part": Part.BLOCK.value}]) == ["100 damaged blocks are not named"]
    assert expected.problems([full | {"blocks": names[: MAX_BLOCKS_NAMED - 1]}]) == ["101 damaged blocks are not named"]


@pytest.mark.parametrize("kind", [kind for kind in (*OF_BLOCKS, *OF_STRUCTURE) if kind not in {Harm.STALE}])
def test_damage_stays_where_it_was_done(store: Path, kind: Harm) -> None:
    """One frame is damaged, at the place that the fault names, and nothing else changes in any file."""
    before = {number: segment_path(store, number).read_bytes() for number in segment_numbers(store)}
    shelf = Shelf(store)
    fault = shelf.harm(kind, seed=11)
    expected = fault.expected
    for number, data in before.items():
        now = segment_path(store, number).read_bytes()
        if number != expected.number:
            assert now == data
            continue
        end = expected.offset + expected.length
        assert now != data and now[: expected.offset] == data[: expected.offset] and now[end:] == data[end:]
    found = damaged(store)
    if kind is Harm.MISDIRECTED:
        assert found[:1] and "before the seal" in found[0][2], "each frame by itself is sound"
    else:
        assert (expected.number, expected.offset) in [(number, offset) for number, offset, _ in found]


def test_a_misdirected_frame_is_sound_and_wrong(store: Path) -> None:
    """It carries a right checksum of another block, so only its place betrays it."""
    shelf = Shelf(store)
    (name,) = shelf.harm(Harm.MISDIRECTED, seed=1).expected.blocks
    place = shelf.current[name]
    frames = [one for one in Shelf(store).frames[place.segment] if one.offset == place.offset]
    assert frames[0].stored == place.stored and frames[0].id != name


def test_a_stale_frame_is_what_the_block_was_before(store: Path) -> None:
    """The block shows its version before, as after a lost write."""
    shelf = Shelf(store)
    shelf.versions = {
        (1, 0): [shelf.claimed[0].id, *list(shelf.current)[:40:20]]
    }  # files here are new in each snapshot
    fault = shelf.harm(Harm.STALE, seed=1)
    (name,) = fault.expected.blocks
    assert name == list(shelf.current)[20]
    again = Shelf(store)
    assert [one.id for one in again.frames[fault.expected.number] if one.offset == fault.expected.offset] == [
        next(iter(shelf.current))
    ]


@pytest.mark.parametrize("kind", [kind for kind in Harm if kind is not Harm.STALE])
def test_damage_can_be_undone(store: Path, kind: Harm) -> None:
    """Undone, the store is what it was, byte for byte."""
    before = {number: segment_path(store, number).read_bytes() for number in segment_numbers(store)}
    for seed in range(3):
        Shelf(store).harm(kind, seed).undo()
        assert {number: segment_path(store, number).read_bytes() for number in segment_numbers(store)} == before


@pytest.mark.parametrize("kind", OF_SEGMENTS)
def test_whole_segments_suffer(store: Path, kind: Harm) -> None:
    """A segment is cut, gone or in another one's place; the blocks that this costs are named."""
    shelf = Shelf(store)
    all_blocks = {number: {place.id for place in places} for number, places in shelf.frames.items()}
    fault = shelf.harm(kind, seed=2)
    number = fault.expected.number
    path = segment_path(store, number)
    assert fault.expected.blocks <= all_blocks[number].union(*(all_blocks[one] for one in fault.expected.also))
    assert fault.expected.blocks or kind is Harm.TRUNCATED
    if kind is Harm.LOST:
        assert not path.exists()
    else:
        assert damaged(store)
    with pytest.raises(CannotRot):
        for seed in range(20):
            shelf.harm(Harm.LOST, seed)


def test_many_damages_stand_apart(store: Path) -> None:
    """Damages of one batch never touch one another, so that each can be told from the rest."""
    shelf, faults = Shelf(store), []
    with pytest.raises(CannotRot):
        for seed in range(1000):
            faults.append(shelf.harm(Harm.BIT, seed))
    assert len(faults) > 10
    assert sorted((f.expected.number, f.expected.offset) for f in faults) == [d[:2] for d in damaged(store)]


def test_damage_is_done_to_chosen_blocks_only(store: Path) -> None:
    """Blocks that only history shows can be told from those that the newest snapshot shows."""
    live = live_blocks(store)
    shelf = Shelf(store)
    assert (
        len(live) == 20 and live.keys() < shelf.current.keys() and set(live.values()) == {f"f{i:02}" for i in range(20)}
    )
    assert shelf.harm(Harm.BIT, 1, among=live.keys()).expected.blocks <= live.keys()
    assert not shelf.harm(Harm.BIT, 1, among=shelf.current.keys() - live.keys()).expected.blocks & live.keys()


@pytest.mark.parametrize("seed", range(10))
def test_a_flipped_bit_in_a_book_is_in_a_page_that_counts(store: Path, seed: int) -> None:
    """The book's own checksums notice it, and one bit differs."""
    path = store / "catalog.db"
    shutil.copy(path, store / "before.db")
    assert book_problems(path) == []
    fault = harm_book(path, Side.REPLICA, seed)
    assert book_problems(path) and fault.kind == "catalog page" and fault.expected.path == "catalog.db"
    before, after = (store / "before.db").read_bytes(), path.read_bytes()
    assert (int.from_bytes(before, "big") ^ int.from_bytes(after, "big")).bit_count() == 1


def test_a_book_in_use_is_left_alone(store: Path) -> None:
    """A page may wait in the write-ahead log of a running daemon: such a book is refused."""
    (store / "catalog.db-wal").write_bytes(b"pages")
    with pytest.raises(CannotRot, match="has a log"):
        harm_book(store / "catalog.db", Side.REPLICA, 1)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({}, ""),
        ({"side": "primary"}, "not found"),
        ({"number": 77, "blocks": []}, "not found"),
        ({"offset": 0, "length": 1}, "not found"),
        ({"part": "record"}, "called record replica_rot"),
        ({"verdict": "inconclusive"}, "called block inconclusive"),
        ({"verdict": "primary_rot"}, "called block primary_rot"),
        ({"blocks": []}, "1 damaged blocks are not named"),
        ({"blocks": [], "mended": ["BLOCK"]}, ""),
    ],
)
def test_an_expectation_can_fail(store: Path, changes: dict[str, object], problem: str) -> None:
    """Side, place, part, verdict and blocks: each one that is wrong is called so."""
    fault = Shelf(store).harm(Harm.BIT, seed=4)
    assert fault.expected.offset > 1
    if "mended" in changes:
        changes = changes | {"mended": [name.hex() for name in fault.expected.blocks]}
    found = fault.expected.problems([document(fault, **changes)])
    assert found == ([problem] if problem else [])


def test_an_expectation_of_a_file_goes_by_path_and_range() -> None:
    """A hard link's other name counts, another file or another range does not."""
    fault = Fault(
        "x", Expected(Side.PRIMARY, frozenset({Part.BLOCK}), frozenset({Verdict.PRIMARY_ROT}), "a", 0, 70_000, 3), ""
    )
    good = document(fault, offset=65_536, length=65_536)
    assert fault.expected.problems([good]) == []
    assert fault.expected.problems([good | {"path": "b", "affected": [{"path": "a"}]}]) == []
    assert fault.expected.problems([good | {"path": "b"}]) == ["not found"]
    assert fault.expected.problems([good | {"offset": 0}]) == ["not found"]
