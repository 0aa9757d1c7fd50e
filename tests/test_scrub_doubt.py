"""A request to scrub on the real sides: it does not end as if all were well while something cannot be looked at."""

from __future__ import annotations

import asyncio
import errno
import random
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from kit_engine import Book
from kit_scrub import Rig as Store
from kit_scrub import SteppingClock
from kit_scrub_primary import Scrubbed, TestClock, scrubbed
from kit_source import await_tick
from kit_store import segment
from replicad.db.findings import Findings
from replicad.model.divergence import Side
from replicad.model.errors import BookDamagedError, ReplicadError
from replicad.model.pace import Policy
from replicad.status import ScrubStatus
from replicad.store import store as store_module
from replicad.work.scrub import Scrubbing
from replicad.work.scrub_primary import PrimarySurface
from replicad.work.scrub_replica import RETRY_NS, ReplicaSurface
from replicad.work.segment_check import Checked
from replicad.work.upkeep import rebuild_book

BLOCK = 65536
WEEK_S = 7 * 86400.0

Result = TypeVar("Result")


class SkippingClock(TestClock):
    """Real time, and what is slept is skipped."""

    def monotonic_s(self) -> float:
        return super().monotonic_s() + self.ahead_ns / 1e9

    async def sleep(self, seconds: float) -> None:
        self.advance(seconds)
        await asyncio.sleep(0)


class Asked:
    """The engine on the primary's surface."""

    def __init__(self, made: Scrubbed) -> None:
        self.clock = made.clock = SkippingClock()
        self.made = made
        self.restart()

    def restart(self) -> None:
        """As after a restart of the daemon."""
        self.made.restart()
        self.status = ScrubStatus("www", Side.PRIMARY, "")
        policy = Policy(WEEK_S, 1.0)
        self.scrub = Scrubbing(self._open, self._in_book, self.status, lambda: policy, self.clock, strain=lambda: 0.0)

    async def _open(self) -> PrimarySurface:
        return self.made.surface

    async def _in_book(self, work: Callable[[Findings], Result]) -> Result:
        dataset = self.made.primary.dataset
        await dataset.open_findings()
        return await dataset.in_findings(lambda: work(dataset.findings))

    async def live(self, seconds: float) -> None:
        """Let so much time pass."""
        until_s = self.clock.monotonic_s() + seconds
        while self.clock.monotonic_s() < until_s:
            await self.scrub.step()
            await self.scrub.wait()


def write(path: Path, seed: int) -> None:
    path.write_bytes(random.Random(seed).randbytes(BLOCK))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "www"
    path.mkdir()
    for seed, name in enumerate("abc"):
        write(path / name, seed)
    return path


async def test_a_file_that_cannot_be_looked_at_keeps_a_request_open(tmp_path: Path, root: Path) -> None:
    """It is named, also after a restart; when it can be looked at again, and is well, the request ends, although
    another file is being written all the time."""
    async with scrubbed(tmp_path, root) as made:
        asked = Asked(made)
        made.disk.error = errno.EACCES
        made.disk.fail(root / "a", 0)
        await_tick()
        write(root / "b", 9)
        number = await asked.scrub.request()
        for _ in range(2):
            await asked.live(150)
            assert made.disk.reads <= 40, "what is well is not read again and again meanwhile"
            assert asked.status.served == number - 1
            assert asked.status.state == "waiting" and "Permission denied" in asked.status.reason
        asked.restart()
        await asked.live(5)
        assert asked.status.served == number - 1 and asked.status.state == "waiting"
        made.disk.heal()
        await asked.live(240)
        assert asked.status.served == number and not asked.status.divergent


async def test_a_request_says_that_only_what_cannot_be_looked_at_is_lacking(tmp_path: Path, root: Path) -> None:
    """Also while a short cycle has all others read again and again, so that it never rests; no sooner than all else was
    read, and no longer than until the request ends."""
    async with scrubbed(tmp_path, root) as made:
        asked = Asked(made)
        policy = Policy(120.0, 1.0)
        asked.scrub._policy_now = lambda: policy
        await asked.live(10)
        made.disk.error = errno.EACCES
        made.disk.fail(root / "a", 0)
        assert not asked.status.held_up, "nobody has asked for anything"
        number = await asked.scrub.request()
        assert not asked.status.held_up
        await asked.live(30)
        states = set()
        for _ in range(300):
            await asked.live(1)
            states.add(asked.status.state)
            assert asked.status.held_up and asked.status.served == number - 1
        assert states != {"waiting"}
        made.disk.heal()
        await asked.live(240)
        assert asked.status.served == number and not asked.status.held_up


async def test_a_request_ends_after_a_restart_though_a_file_is_being_written(tmp_path: Path, root: Path) -> None:
    """Nothing is in doubt about what somebody writes."""
    async with scrubbed(tmp_path, root) as made:
        asked = Asked(made)
        await_tick()
        write(root / "b", 9)
        number = await asked.scrub.request()
        await asked.scrub.step()
        asked.restart()
        await asked.live(30)
        assert asked.status.served == number


def test_a_segment_that_cannot_be_looked_at_keeps_a_request_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it is the only one of a turn or not; nothing else is read again meanwhile."""
    monkeypatch.setattr(store_module, "SEGMENT_BYTES", 16_000)
    store = Store(tmp_path / "store")
    store.fill()
    real, read = ReplicaSurface._check, list[int]()

    def check(self: ReplicaSurface, number: int, *rest: object) -> Checked:
        read.append(number)
        if number == 2:
            raise ReplicadError("error while opening: Too many open files", where=str(segment(store.directory, 2)))
        return real(self, number, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(ReplicaSurface, "_check", check)
    status = ScrubStatus("www", Side.REPLICA, "ams1")
    policy = Policy(WEEK_S, 1.0)

    async def opened() -> ReplicaSurface:
        return store.surface

    async def live(steps: int) -> None:
        for _ in range(steps):
            try:
                await scrub.step()
                await scrub.wait()
            except ReplicadError:
                await store.clock.sleep(1)

    def tries(began_ns: int) -> int:
        return (store.clock.ns - began_ns) // RETRY_NS

    async def run() -> None:
        began_ns = store.clock.ns
        number = await scrub.request()
        await live(100)
        assert status.served == number - 1, status
        assert (status.state, "Too many open files" in status.reason) == ("waiting", True)
        assert sorted(set(read)) == sorted(store.bytes_of())
        assert len(read) <= len(store.bytes_of()) * (1 + tries(began_ns)), "others only in the turns that try it again"
        monkeypatch.undo()
        monkeypatch.setattr(store_module, "SEGMENT_BYTES", 16_000)
        store.clock.ns += RETRY_NS
        await live(60)
        assert status.served == number

    clock: SteppingClock = store.clock
    scrub = Scrubbing(opened, Book(lambda: store.findings), status, lambda: policy, clock, strain=lambda: 0.0)
    asyncio.run(run())
    store.close()
    store.executor.shutdown()


def test_what_could_not_be_looked_at_is_tried_again_at_once_when_something_was_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page of the catalog may have been in the way; ten minutes after it was made anew nobody would know why."""
    monkeypatch.setattr(store_module, "SEGMENT_BYTES", 16_000)
    store = Store(tmp_path / "store")
    store.fill()

    def check(self: ReplicaSurface, *rest: object) -> Checked:
        raise BookDamagedError("a page fails its checksum", where="catalog.db")

    monkeypatch.setattr(ReplicaSurface, "_check", check)
    since_ns = store.clock.now_ns()
    with pytest.raises(ReplicadError):
        store.verify(1)
    monkeypatch.undo()
    assert asyncio.run(store.surface.extent(since_ns)).waiting_bytes > 0
    rebuild_book(store.archive, store.disk)
    assert asyncio.run(store.surface.extent(since_ns)).waiting_bytes == 0
    store.close()
    store.executor.shutdown()


async def test_one_file_that_cannot_be_looked_at_has_nothing_else_read_in_haste(tmp_path: Path, root: Path) -> None:
    """Its deadline is missed, that is said with its name, and all others are read as often as ever; when it can be
    looked at again all is on track."""
    async with scrubbed(tmp_path, root) as made:
        asked = Asked(made)
        policy = Policy(600.0, 0.5)
        asked.scrub._policy_now = lambda: policy

        async def reads_of(seconds: float) -> int:
            before = made.disk.reads
            await asked.live(seconds)
            return made.disk.reads - before

        await reads_of(600)
        usual = await reads_of(1200)
        assert asked.status.on_track
        made.disk.error = errno.EACCES
        made.disk.fail(root / "a", 0)
        await reads_of(1800)
        assert await reads_of(1200) <= 3 * usual + 40
        assert not asked.status.on_track and "a: cannot be read: Permission denied" in asked.status.reason
        made.disk.heal()
        await reads_of(1800)
        assert asked.status.on_track, asked.status.reason
