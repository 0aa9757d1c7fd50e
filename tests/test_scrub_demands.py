"""What a scrub has to read by when: new data and what could not be judged are not taken for data that is overdue."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from kit_engine import BEGIN_NS, DAY_S, S
from kit_scrub import Rig as Store
from kit_store import block
from replicad.model.divergence import Side
from replicad.model.pace import Demand, Policy, Situation, Why, decide
from replicad.store import store as store_module
from replicad.work.scrub_demands import Outstanding
from replicad.work.surface import Extent, Verified

GB = 10**9
POLICY = Policy(7 * DAY_S, 0.25)


class Said:
    """A surface that says what it is told to say, whatever moment it is asked about."""

    dataset, side, peer, retry_s = "www", Side.PRIMARY, "", 60.0

    def __init__(self, extent: Extent) -> None:
        self.said = extent

    async def extent(self, before_ns: int) -> Extent:
        return self.said

    async def verify(self, budget_bytes: int, since_ns: int) -> Verified:
        raise AssertionError("nobody reads")

    async def structure(self) -> Verified:
        raise AssertionError("nobody looks")


def by(outstanding: Outstanding, why: Why) -> list[Demand]:
    return [one for one in outstanding.demands if one.why is why and one.left_bytes]


async def test_what_was_verified_and_is_being_written_makes_new_data_neither_old_nor_late() -> None:
    """A large file that is always written waits; the new data beside it is due within a day, no more and no less."""
    said = Extent(200 * GB, 10 * GB, 0, since_bytes=10 * GB, waiting_bytes=100 * GB, tried_bytes=100 * GB)
    outstanding = Outstanding(0)
    await outstanding.look(Said(said), POLICY, BEGIN_NS)
    assert not by(outstanding, Why.AGE)
    ((new),) = by(outstanding, Why.NEW)
    assert new.left_bytes == 10 * GB and new.by_ns <= BEGIN_NS + int(DAY_S) * S


def test_a_segment_that_grew_is_not_overdue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what is new in it was never verified; the rest of it is as old as its verification."""
    monkeypatch.setattr(store_module, "SEGMENT_BYTES", 10**9)
    store = Store(tmp_path / "store")
    store.fill()
    assert store.scrub() == 0
    before = asyncio.run(store.surface.extent(0)).total_bytes
    store.put(5, {b"late": block("late ", 700)})
    now_ns = store.clock.now_ns()
    outstanding = Outstanding(0)
    asyncio.run(outstanding.look(store.surface, POLICY, now_ns))
    (new,) = by(outstanding, Why.NEW)
    assert new.left_bytes == outstanding.extent.total_bytes - before
    assert not by(outstanding, Why.AGE)
    assert decide(POLICY, Situation(now_ns, 0.0, outstanding.demands, speed_bytes_s=1e8)).on_track
    assert asyncio.run(store.surface.extent(now_ns)).since_bytes == outstanding.extent.total_bytes
    store.close()
    store.executor.shutdown()


def test_what_there_is_is_counted_by_the_thread_in_which_it_grows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A segment that appears while somebody else asks how a store stands would end the question in an error."""

    class Guarded(dict[int, Any]):
        def values(self) -> Any:
            threads.add(threading.current_thread().name)
            return super().values()

        def items(self) -> Any:
            threads.add(threading.current_thread().name)
            return super().items()

    threads = set[str]()
    monkeypatch.setattr(store_module, "SEGMENT_BYTES", 16_000)
    store = Store(tmp_path / "store")
    store.fill()
    store.surface._units = Guarded()
    asyncio.run(store.surface.extent(0))
    store.verify(1)
    assert threads == {thread.name for thread in store.executor._threads}
    store.close()
    store.executor.shutdown()
