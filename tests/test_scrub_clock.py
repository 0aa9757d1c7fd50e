"""A clock that was ahead and was set back: no moment that it left behind keeps a scrub waiting for years."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from kit_engine import DAY_S, FakeSurface, JumpingClock, Rig, S
from kit_scrub import Rig as Store
from kit_scrub_primary import ALL, scrubbed
from replicad.model.pace import Policy
from replicad.store import store as store_module
from replicad.work.scrub_demands import Outstanding
from replicad.work.scrub_replica import ReplicaSurface
from replicad.work.segment_check import Checked

GB = 10**9
AHEAD_NS = int(10 * 365 * DAY_S) * S
BACK_NS = 50 * 60 * S


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """A week for what is there."""
    made = Rig(tmp_path, Policy(7 * DAY_S, 0.25, turn_s=60.0))
    yield made
    made.findings.close()


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A store of several segments."""
    monkeypatch.setattr(store_module, "SEGMENT_BYTES", 16_000)
    made = Store(tmp_path / "store")
    made.fill()
    yield made
    made.close()
    made.executor.shutdown()


async def test_a_request_of_the_future_is_one_of_now(rig: Rig) -> None:
    """It is served by one look at everything, and not asked for again and again until its moment has come."""
    rig.surface.add(GB)
    await rig.live(DAY_S)
    rig.clock.ns += AHEAD_NS
    number = await rig.scrub.request()
    rig.clock.ns -= AHEAD_NS
    rig.restart()
    turns, checks = len(rig.surface.turns), len(rig.surface.structures)
    await rig.live(3600, until=lambda: rig.status.served >= number)
    assert rig.status.served == number
    assert len(rig.surface.structures) == checks + 1 and rig.read_s() <= 30
    assert len(rig.surface.turns) > turns


async def test_a_structure_that_was_checked_in_the_future_is_checked_again(rig: Rig) -> None:
    """Once a cycle, as ever."""
    rig.surface.add(GB)
    rig.clock.ns += AHEAD_NS
    await rig.live(DAY_S)
    rig.clock.ns -= AHEAD_NS
    rig.surface.parts.clear()
    rig.surface.add(GB)
    rig.restart()
    await rig.live(DAY_S)
    assert 0 < rig.status.structure_ns <= rig.clock.ns


async def test_new_data_is_due_within_a_day_whatever_was_remembered(tmp_path: Path) -> None:
    """A batch that was to be verified by some moment in the future is to be verified soon."""
    clock, policy = JumpingClock(), Policy(7 * DAY_S, 0.25)
    surface = FakeSurface(clock)
    surface.add(GB)
    outstanding = Outstanding(clock.ns + AHEAD_NS)
    await outstanding.look(surface, policy, clock.ns)
    assert outstanding.new_by_ns <= clock.ns + int(DAY_S) * S
    clock.ns -= AHEAD_NS
    await outstanding.look(surface, policy, clock.ns)
    assert outstanding.new_by_ns <= clock.ns + int(DAY_S) * S


async def test_files_that_were_verified_in_the_future_are_due(tmp_path: Path) -> None:
    """Also while nothing new has a scrub take a look: it is asked how much is due before it takes anything."""
    root = tmp_path / "www"
    root.mkdir()
    (root / "a").write_bytes(b"x" * 100_000)
    async with scrubbed(tmp_path, root) as made:
        made.clock.ahead_ns = AHEAD_NS
        await made.scrub()
        made.clock.ahead_ns = 0
        now = await made.surface.extent(made.clock.now_ns())
        assert now.never_bytes == now.since_bytes == now.total_bytes
        assert (await made.surface.verify(ALL, 0)).units


async def test_a_clock_set_back_by_less_than_an_hour_stops_no_scrub_with_a_short_deadline(tmp_path: Path) -> None:
    """Files are due again, and so is the structure, long before the clock has caught up."""
    root = tmp_path / "www"
    root.mkdir()
    (root / "a").write_bytes(b"x" * 100_000)
    async with scrubbed(tmp_path, root, scrub_every_s=120.0) as made:
        made.clock.ahead_ns = BACK_NS
        await made.scrub()
        made.clock.ahead_ns = 0
        now = await made.surface.extent(made.clock.now_ns())
        assert now.never_bytes == now.since_bytes == now.total_bytes
        assert (await made.surface.verify(ALL, 0)).units


async def test_a_structure_checked_by_a_clock_set_back_is_checked_again_within_a_short_deadline(tmp_path: Path) -> None:
    """Not only once the clock has caught up."""
    rig = Rig(tmp_path, Policy(120.0, 0.25))
    rig.surface.add(1_000_000)
    rig.clock.ns += BACK_NS
    await rig.live(300)
    rig.clock.ns -= BACK_NS
    checks = len(rig.surface.structures)
    await rig.live(300)
    assert len(rig.surface.structures) > checks
    rig.findings.close()


@pytest.mark.parametrize("restarted", [False, True])
def test_segments_that_were_verified_in_the_future_are_due(store: Store, restarted: bool) -> None:
    """As if they never had been."""
    store.clock.ns += AHEAD_NS
    assert store.scrub() == 0
    store.clock.ns -= AHEAD_NS
    if restarted:
        store.reopen()
    now = asyncio.run(store.surface.extent(store.clock.now_ns()))
    assert now.never_bytes == now.since_bytes == now.total_bytes and now.oldest_ns == 0
    assert store.scrub() == 0
    assert asyncio.run(store.surface.extent(0)).never_bytes == 0


@pytest.mark.parametrize(("every_s", "is_due"), [(120.0, True), (7 * DAY_S, False)])
def test_a_clock_set_back_by_less_than_an_hour_leaves_segments_due_within_a_short_deadline(
    store: Store, every_s: float, is_due: bool
) -> None:
    """Where they may wait for a week, the time until the clock has caught up is no matter."""
    store.scrub_every_s = every_s
    store.clock.ns += BACK_NS
    assert store.scrub() == 0
    store.clock.ns -= BACK_NS
    now = asyncio.run(store.surface.extent(store.clock.now_ns()))
    assert now.never_bytes == now.since_bytes == (now.total_bytes if is_due else 0)


def test_a_segment_counts_as_verified_when_it_began_to_be_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks for a scrub while it is being read wants it read once more: what he did before may have come after."""
    real, asked = ReplicaSurface._check, list[int]()

    def check(self: ReplicaSurface, *args: object) -> Checked:
        found = real(self, *args)  # type: ignore[arg-type]
        asked.append(store.clock.now_ns())
        return found

    monkeypatch.setattr(ReplicaSurface, "_check", check)
    store.verify(1)
    assert len(asked) == 1
    extent = asyncio.run(store.surface.extent(asked[0]))
    assert extent.since_bytes == extent.total_bytes
