"""Mending a store: whatever happens to it is found, named, repaired from a proven source, and clean afterwards."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kit_scrub import SMALL, Rig, write_at
from kit_store import flip, segment
from replicad.model.divergence import Part, State
from replicad.store import store as store_module
from replicad.store.format import FrameType


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    monkeypatch.setattr(store_module, "SEGMENT_BYTES", SMALL)
    made = Rig(tmp_path / "ams1" / "www")
    made.fill()
    yield made
    made.close()
    made.executor.shutdown()


def _flip_in(kind: FrameType, nth: int = 0, *, number: int = 2, at: int = 70) -> Callable[[Rig], None]:
    def harm(rig: Rig) -> None:
        frame = rig.frames(kind, number)[nth]
        flip(segment(rig.directory, number), frame.offset + at, 3)

    return harm


def _burst(rig: Rig) -> None:
    first, *_, last = rig.frames(FrameType.BLOCK, 2)[1:4]
    write_at(segment(rig.directory, 2), first.offset + 30, os.urandom(last.end - first.offset - 60))


def _burst_over_everything(rig: Rig) -> None:
    size = segment(rig.directory, 2).stat().st_size
    write_at(segment(rig.directory, 2), 200, os.urandom(size - 400))


def _zeroed_sector(rig: Rig) -> None:
    frame = rig.frames(FrameType.BLOCK, 2)[2]
    write_at(segment(rig.directory, 2), (frame.offset + 511) // 512 * 512, bytes(512))


def _misdirected(rig: Rig) -> None:
    """A frame of the same length, whole, in another one's place."""
    size = {}
    for frame in rig.frames(FrameType.BLOCK, 1) + rig.frames(FrameType.BLOCK, 2):
        size.setdefault(frame.stored, []).append(frame)
    one, other = next(found for found in size.values() if len(found) > 1)[:2]
    data = b""
    for number in (1, 2):
        data = segment(rig.directory, number).read_bytes()[one.offset : one.end] if not data else data
    write_at(segment(rig.directory, 2), other.offset, data)


def _truncated(rig: Rig) -> None:
    os.truncate(segment(rig.directory, 2), rig.frames(FrameType.BLOCK, 2)[2].offset + 100)


def _lost(rig: Rig) -> None:
    segment(rig.directory, 2).unlink()


def _swapped(rig: Rig) -> None:
    one, two = segment(rig.directory, 1), segment(rig.directory, 2)
    aside = one.with_name("aside")
    one.rename(aside)
    two.rename(one)
    aside.rename(two)


def _garbage(rig: Rig) -> None:
    with segment(rig.directory, 2).open("ab") as file:
        file.write(os.urandom(5000))


def _garbage_behind_the_last(rig: Rig) -> None:
    with segment(rig.directory, max(rig.bytes_of())).open("ab") as file:
        file.write(os.urandom(5000))


def _stranger(rig: Rig) -> None:
    segment(rig.directory, 99).write_bytes(segment(rig.directory, 1).read_bytes())


KINDS: dict[str, tuple[Callable[[Rig], None], Part, bool]] = {
    # harm, the part that is named, whether the bytes of all segments are the same afterwards
    "bit in a block's payload": (_flip_in(FrameType.BLOCK), Part.BLOCK, False),
    "bit in a block's header": (_flip_in(FrameType.BLOCK, at=24), Part.BLOCK, False),
    "bit in a block's magic": (_flip_in(FrameType.BLOCK, at=0), Part.BLOCK, False),
    "bit in the last segment": (_flip_in(FrameType.BLOCK, number=3), Part.BLOCK, False),
    "burst": (_burst, Part.BLOCK, False),
    "burst over everything": (_burst_over_everything, Part.BLOCK, False),
    "zeroed sector": (_zeroed_sector, Part.BLOCK, False),
    "truncated": (_truncated, Part.SEGMENT, False),
    "lost": (_lost, Part.SEGMENT, False),
    "swapped": (_swapped, Part.SEGMENT, True),
    "garbage": (_garbage, Part.STRUCTURE, True),
    "garbage behind the last": (_garbage_behind_the_last, Part.STRUCTURE, True),
    "stranger": (_stranger, Part.SEGMENT, True),
    "header": (_flip_in(FrameType.HEADER, at=80), Part.STRUCTURE, True),
    "seal": (_flip_in(FrameType.SEAL, number=1), Part.STRUCTURE, True),
    "pad": (_flip_in(FrameType.PAD, number=2), Part.STRUCTURE, True),
    "commit": (_flip_in(FrameType.COMMIT), Part.COMMIT, True),
    "record": (_flip_in(FrameType.RECORD), Part.RECORD, True),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_damage_is_found_named_and_repaired(rig: Rig, tmp_path: Path, kind: str) -> None:
    """Found by one scrub with the right part named, repaired, then clean; what is no block comes back bit for bit."""
    harm, part, is_same = KINDS[kind]
    before = rig.bytes_of()
    assert rig.scrub() == 0
    harm(rig)
    assert rig.scrub() > 0
    assert part in {one.part for one in rig.open_ones()}, [(one.part, one.what) for one in rig.open_ones()]
    rig.settle_all()
    assert {one.state for one in rig.findings.listed(state=None)} == {State.REPAIRED}
    rig.assert_clean(tmp_path)
    if is_same:
        assert rig.bytes_of() == before


def test_an_untouched_store_gives_no_finding(rig: Rig, tmp_path: Path) -> None:
    """Not a single one, over restarts and while it grows."""
    for number in range(10, 14):
        assert rig.scrub() == 0
        rig.put(number, {b"new-%d" % number: b"content %d" % number})
        rig.reopen()
    rig.assert_clean(tmp_path)
    assert rig.findings.listed(state=None) == []
