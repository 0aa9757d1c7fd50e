"""Compaction beside scrub and repair: a compacted segment is judged and mended like any other."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kit_scrub import SMALL, Rig
from kit_store import block, contents, flip, segment
from replicad.model.marks import Marks
from replicad.store import store as store_module
from replicad.store.format import FrameType
from replicad.store.segments import segment_numbers
from replicad.system.disk import Disk
from replicad.work.compact import compact_segment
from replicad.work.expire import drop, purge_step


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    monkeypatch.setattr(store_module, "SEGMENT_BYTES", SMALL)
    made = Rig(tmp_path / "ams1" / "www", repair_limit=1000)
    yield made
    made.close()
    made.executor.shutdown()


def marked(rig: Rig) -> Marks:
    rig.archive.abort()
    marks = rig.archive.begin_marking(1000, 0)
    assert marks is not None
    for page in rig.archive.inventory.file_blocks():
        marks.add(row.id for row in page)
    return marks


def compacted(rig: Rig, *gone: int) -> set[int]:
    """Let snapshots go and compact all that can be; the segments that were."""
    rig.archive.abort()
    drop(rig.archive, gone)
    while purge_step(rig.archive):
        pass
    for number in gone:
        rig.expected.pop(number)
    marks = marked(rig)
    done = [compact_segment(rig.archive, Disk(), number, marks, ()) for number in segment_numbers(rig.directory)]
    return {one.number for one in done if not one.skipped}


def overwrite(rig: Rig, first: int, last: int) -> None:
    """Snapshots that write the same files anew."""
    for number in range(first, last + 1):
        files = {b"f%d" % i: block(f"{number} of {i} ", 700 + 300 * i) for i in range(6)}
        rig.put(number, files)


def test_a_scrub_that_was_half_way_through_a_segment(rig: Rig, tmp_path: Path) -> None:
    """What was verified of a segment while it grew says nothing of a place in the compacted one: it is read anew."""
    rig.put(1, {b"old": os.urandom(7000)})
    assert rig.scrub() == 0
    rig.put(2, {b"old": b"new", b"kept": os.urandom(9000)})
    overwrite(rig, 3, 8)
    assert 1 in compacted(rig, 1, 3, 4, 5)
    assert rig.scrub() == 0
    rig.reopen()
    assert rig.scrub() == 0
    rig.assert_clean(tmp_path)


def test_rot_in_a_compacted_segment_is_found_and_mended(rig: Rig, tmp_path: Path) -> None:
    """Blocks come from the primary, everything else from the catalog's copies, bit for bit."""
    overwrite(rig, 1, 8)
    number = max(compacted(rig, 1, 2, 3, 4, 5, 6))
    assert rig.scrub() == 0
    good = segment(rig.directory, number).read_bytes()
    kinds = (FrameType.HEADER, FrameType.RECORD, FrameType.COMMIT, FrameType.SEAL, FrameType.PAD)
    for offset in [frame.offset for kind in kinds for frame in rig.frames(kind, number)[:1]]:
        flip(segment(rig.directory, number), offset + 40)
    assert rig.scrub() > 0
    rig.settle_all()
    assert segment(rig.directory, number).read_bytes() == good
    for frame in rig.frames(FrameType.BLOCK, number)[:1]:
        flip(segment(rig.directory, number), frame.offset + 70)
        assert rig.scrub() > 0
        rig.settle_all()
    rig.assert_clean(tmp_path)


def test_what_was_mended_is_compacted_away(rig: Rig, tmp_path: Path) -> None:
    """Damaged frames whose blocks were stored anew elsewhere are gone afterwards, and nothing is said of them."""
    overwrite(rig, 1, 8)
    rig.scrub()
    hit = rig.frames(FrameType.BLOCK, 2)[1]
    flip(segment(rig.directory, 2), hit.offset + 70)
    assert rig.scrub() == 1
    rig.settle_all()
    assert rig.archive.inventory.mended(2)
    assert 2 in compacted(rig, 1, 2, 3, 4, 5)
    assert not rig.archive.inventory.mended(2)
    assert rig.scrub() == 0
    assert all(None not in contents(rig.directory, number).values() for number in rig.expected)
    rig.assert_clean(tmp_path)
