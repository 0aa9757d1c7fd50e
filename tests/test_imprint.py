"""Imprints: a segment that is what it was when nothing was wrong with it is compared as a whole, and nothing gets past
that: whatever happens to its bytes, to the catalog or to the imprint itself is found, or harmless."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import apsw
import pytest

from kit_scrub import SMALL, Rig, write_at
from kit_store import block, flip, segment
from replicad.model.divergence import Divergence, Part
from replicad.store import store as store_module
from replicad.store.format import FrameType, parse_frame
from replicad.work import segment_check
from replicad.work.archive import catalog_path
from replicad.work.imprint import RULES
from replicad.work.segment_check import SegmentCheck
from replicad.work.upkeep import append_blocks


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "SEGMENT_BYTES", SMALL)


def made(directory: Path) -> Rig:
    """A store of several segments, all of them verified, so that all of them have imprints."""
    rig = Rig(directory / "store")
    rig.fill()
    assert rig.scrub() == 0
    assert all(imprints(rig).values()) and len(imprints(rig)) > 2
    return rig


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = made(tmp_path)
    yield rig
    rig.close()
    rig.executor.shutdown()


@pytest.fixture
def frame_by_frame(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of the segments that were looked at frame by frame."""
    looked: list[int] = []
    look = SegmentCheck._look

    def counted(self: SegmentCheck, reader: object) -> None:
        looked.append(self._number)
        look(self, reader)  # type: ignore[arg-type]

    monkeypatch.setattr(segment_check.SegmentCheck, "_look", counted)
    return looked


def imprints(rig: Rig) -> dict[int, bytes]:
    """What the catalog has."""
    inventory = rig.archive.inventory
    return {number: inventory.imprint(number) for number in rig.bytes_of()}


def in_catalog(rig: Rig, *statements: str) -> None:
    """Change the catalog behind everybody's back."""
    rig.close()
    connection = apsw.Connection(str(catalog_path(rig.directory)))
    for statement in statements:
        connection.execute(statement)
    connection.close()
    rig.open()


def told(rig: Rig) -> list[tuple[object, ...]]:
    """What is open, without what differs from one telling to the next."""

    def essence(one: Divergence) -> tuple[object, ...]:
        return one.key, one.part, one.offset, one.length, one.what, one.blocks, one.verdict, one.seen, one.evidence

    return sorted(map(essence, rig.open_ones()), key=repr)


def test_an_unchanged_segment_is_compared_as_a_whole(rig: Rig, frame_by_frame: list[int]) -> None:
    """All of its bytes are read from the medium again, and it counts as verified; also after a restart."""
    size = sum(map(len, rig.bytes_of().values()))
    for _ in range(2):
        verified = rig.verify()
        assert verified.media_bytes + verified.cache_bytes == size
        assert verified.units == len(rig.bytes_of()) and not verified.found and not verified.doubts
        rig.reopen()
    assert not frame_by_frame
    assert all(imprints(rig).values())


@pytest.mark.parametrize("kind", [kind for kind in FrameType if kind is not FrameType.RETENTION])
def test_a_frame_that_rots_after_the_imprint_was_made_is_found(tmp_path: Path, kind: FrameType) -> None:
    """Just as it would be without one."""
    seen = []
    for name in ("with", "without"):
        rig = made(tmp_path / name)
        hit = rig.frames(kind, 2)[0]
        flip(segment(rig.directory, 2), hit.offset + 70)
        if name == "without":
            in_catalog(rig, "UPDATE scrubbed SET imprint = x''")
        assert rig.scrub() > 0 and imprints(rig)[2] == b""
        seen.append(told(rig))
        rig.close()
    assert [one[:6] for one in seen[0]] == [one[:6] for one in seen[1]] and seen[0]


def test_any_flipped_bit_is_found(rig: Rig) -> None:
    """Wherever it is, in whichever segment; put right again, the segment is well again."""
    choose = random.Random(1)
    for _ in range(60):
        number = choose.choice(list(rig.bytes_of()))
        path = segment(rig.directory, number)
        at, bit = choose.randrange(path.stat().st_size), choose.randrange(8)
        flip(path, at, bit)
        found = rig.verify().found
        flip(path, at, bit)
        assert found, (number, at, bit)
        rig.verify()
    rig.scrub()
    assert all(imprints(rig).values())


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4096])


def _grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + bytes(4096))


@pytest.mark.parametrize("change", [_cut, _grow, Path.unlink])
def test_another_length_is_found(rig: Rig, change: Callable[[Path], None]) -> None:
    """Cut short, with something behind its end, or gone."""
    change(segment(rig.directory, 2))
    assert rig.verify().found
    assert {one.part for one in rig.open_ones()} <= {Part.SEGMENT, Part.STRUCTURE, Part.BLOCK}


def test_segments_that_change_places_are_found(rig: Rig) -> None:
    """Each is what one of them was."""
    first, second = segment(rig.directory, 1), segment(rig.directory, 2)
    one, other = first.read_bytes(), second.read_bytes()
    first.write_bytes(other)
    second.write_bytes(one)
    assert rig.verify().found == 2


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE block SET offset = offset + 1 WHERE segment = 2 AND offset = (SELECT max(offset) FROM block"
        " WHERE segment = 2)",
        "UPDATE block SET stored = stored + 1 WHERE segment = 2",
        "UPDATE block SET segment = 1 WHERE segment = 2 AND offset = (SELECT min(offset) FROM block WHERE segment = 2)",
        "UPDATE frame_copy SET stored = stored + 1 WHERE segment = 2 AND offset > 0",
        "DELETE FROM frame_copy WHERE segment = 2 AND offset = 0",
    ],
)
def test_a_catalog_that_says_something_else_is_found(rig: Rig, frame_by_frame: list[int], change: str) -> None:
    """The segment is what it was, what is expected in it is not."""
    in_catalog(rig, change)
    assert rig.verify().found
    assert 2 in frame_by_frame and "book:catalog" in {one.key for one in rig.open_ones()}


def test_a_segment_laid_anew_has_no_stale_imprint(rig: Rig, tmp_path: Path, frame_by_frame: list[int]) -> None:
    """Once nothing is wrong with it after its repair it has an imprint again, and what rots then is found."""
    record = rig.frames(FrameType.RECORD, 2)[0]
    flip(segment(rig.directory, 2), record.offset + 80)
    rig.scrub()
    rig.settle_all()
    rig.scrub()
    assert all(imprints(rig).values())
    frame_by_frame.clear()
    assert rig.scrub() == 0 and not frame_by_frame
    hit = rig.frames(FrameType.BLOCK, 2)[0]
    flip(segment(rig.directory, 2), hit.offset + 66)
    assert rig.scrub() == 1 and frame_by_frame == [2]
    rig.settle_all()
    rig.assert_clean(tmp_path)


def test_frames_that_the_catalog_has_elsewhere_leave_no_imprint(rig: Rig, frame_by_frame: list[int]) -> None:
    """That they mean nothing here depends on more than this segment, so it is looked at frame by frame."""
    hit = rig.frames(FrameType.BLOCK, 2)[0]
    raw = rig.bytes_of()[2][hit.offset : hit.end]
    assert append_blocks(rig.archive, rig.disk, [parse_frame(raw, 0)], [raw])
    for _ in range(2):
        frame_by_frame.clear()
        assert rig.scrub() == 0
        assert 2 in frame_by_frame and imprints(rig)[2] == b"" and imprints(rig)[1]


@pytest.mark.parametrize("false", ["randomblob(16)", "x''", "zeroblob(16)", "x'00'"])
def test_a_false_imprint_costs_a_look_and_raises_no_alarm(rig: Rig, frame_by_frame: list[int], false: str) -> None:
    """All frames are looked at, and the imprint is made anew."""
    before = imprints(rig)
    in_catalog(rig, f"UPDATE scrubbed SET imprint = {false}")
    assert rig.scrub() == 0
    assert sorted(frame_by_frame) == sorted(before) and imprints(rig) == before


def test_imprints_of_other_rules_count_for_nothing(
    rig: Rig, frame_by_frame: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replicad that looks for more looks at every frame again."""
    monkeypatch.setattr("replicad.work.imprint.RULES", RULES + 1)
    assert rig.scrub() == 0 and len(frame_by_frame) == len(imprints(rig))


def test_a_segment_that_grew_is_looked_at_again(rig: Rig, frame_by_frame: list[int]) -> None:
    """What was added to it is verified by itself and makes no imprint; the next look at all of it does."""
    last = max(imprints(rig))
    rig.put(8, {b"more": block("more ", 300)})
    rig.verify(1)
    assert frame_by_frame == [last] and imprints(rig)[last] == b""
    rig.scrub()
    assert frame_by_frame == [last, last] and all(imprints(rig).values())


def test_bytes_behind_the_end_of_the_last_segment_are_found(rig: Rig) -> None:
    """Also there, when no session is writing."""
    path = segment(rig.directory, max(imprints(rig)))
    write_at(path, path.stat().st_size, bytes(4096))
    assert rig.scrub() > 0
