"""What was not to be found when its turn came: it stays due, is looked at again in time, and is not passed over."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kit_engine import DAY_S, FakeSurface, Rig
from kit_scrub_primary import ALL, scrubbed
from replicad.db.due import LEAST_BYTES
from replicad.model.pace import Policy
from replicad.work.surface import Extent

BLOCK = 65536
GB = 10**9


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A directory with a file, a link and a directory in it."""
    path = tmp_path / "www"
    (path / "d" / "below").mkdir(parents=True)
    (path / "d" / "link").symlink_to("target")
    (path / "d" / "file").write_bytes(b"f" * BLOCK)
    return path


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """A week for what is there."""
    made = Rig(tmp_path, Policy(7 * DAY_S, 0.25, turn_s=60.0))
    yield made
    made.findings.close()


async def test_a_directory_that_was_moved_away_and_back_is_still_due(tmp_path: Path, root: Path) -> None:
    """None of its entries was there to be looked at, so it is not verified; that is made up for by itself."""
    async with scrubbed(tmp_path, root) as made:
        os.rename(root / "d", tmp_path / "away")
        await made.surface.verify(ALL, 0)
        os.rename(tmp_path / "away", root / "d")
        extent = await made.surface.extent(0)
        assert extent.never_bytes == extent.tried_never_bytes == BLOCK + 2 * LEAST_BYTES, "what is in it, and itself"
        made.clock.advance(61)
        await made.scrub()
        assert (await made.surface.extent(0)).never_bytes == 0
        assert await made.found(None) == []


async def test_a_directory_of_which_one_entry_is_gone_is_verified(tmp_path: Path, root: Path) -> None:
    """The others were there: what was removed or is being made anew all the time does not keep them waiting."""
    async with scrubbed(tmp_path, root) as made:
        (root / "d" / "link").unlink()
        await made.surface.verify(ALL, 0)
        assert (await made.surface.extent(0)).never_bytes == 0


async def test_what_was_moved_is_verified_again_in_time_though_no_pass_records_anything(
    tmp_path: Path, root: Path
) -> None:
    """Back in its place it does not wait until all others have had another turn."""
    every_s = 1000.0
    (root / "other").write_bytes(b"o" * BLOCK)
    async with scrubbed(tmp_path, root, scrub_every_s=every_s) as made:
        await made.scrub()
        made.clock.advance(0.8 * every_s)
        os.rename(root / "d", tmp_path / "away")
        begin_ns = made.clock.now_ns()
        await made.scrub()
        os.rename(tmp_path / "away", root / "d")
        made.clock.advance(61)
        cycle_ns = made.clock.now_ns()
        for _ in range(3):  # a file and two directories
            assert (await made.surface.extent(begin_ns)).old_bytes > 0
            await made.surface.verify(1, cycle_ns)
        assert (await made.surface.extent(begin_ns)).old_bytes == 0
        assert (await made.surface.extent(cycle_ns)).old_bytes == 0


class Waiting(FakeSurface):
    """A surface of which some was verified once, and is not to be found or is being written since."""

    old = 0

    async def extent(self, before_ns: int) -> Extent:
        """All of it is older than any moment."""
        seen = await super().extent(before_ns)
        waiting = seen.waiting_bytes + self.old
        total, old = seen.total_bytes + self.old, seen.old_bytes + self.old
        return replace(seen, total_bytes=total, old_bytes=old, waiting_bytes=waiting, tried_bytes=waiting)


async def test_what_waits_beyond_its_deadline_is_told_and_makes_nothing_late(rig: Rig) -> None:
    """No haste helps, and a file that is written all the time must not wake anybody for ever; the bytes are counted."""
    rig.surface = surface = Waiting(rig.clock)
    rig.surface.add(GB)
    await rig.live(DAY_S)
    assert rig.status.on_track
    surface.old = 50 * GB
    await rig.live(DAY_S / 24)
    assert rig.status.overdue_bytes == 50 * GB and rig.status.on_track
    assert rig.status.reason == "50 GB are being written or were moved: they are looked at again"
    surface.old = 0
    await rig.live(DAY_S / 24)
    assert rig.status.overdue_bytes == 0 and rig.status.reason == ""
