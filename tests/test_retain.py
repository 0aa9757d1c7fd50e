"""Retain: runs over a whole store: what goes, what holds it up, and what a run that ends half-way leaves."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest

from kit_findings import replica_rot
from kit_retention import books, everything_in, history_of, rebuilt_books
from kit_store import CLIENT, DATASET, FaultyDisk, Primary
from replicad.db.findings import Findings
from replicad.link.messages import SnapshotLine
from replicad.model.divergence import State, Suspect
from replicad.model.entry import Op
from replicad.model.errors import BookDamagedError, ReplicadError
from replicad.model.retention import Pin, Rules
from replicad.status import RetentionStatus
from replicad.store import store as store_module
from replicad.store.segments import segment_numbers, segment_path
from replicad.system.clock import Clock
from replicad.work import retain
from replicad.work.account import Account
from replicad.work.archive import Archive, catalog_path
from replicad.work.read_local import LocalReader
from replicad.work.reader import Answer
from replicad.work.restore import Restore
from replicad.work.retain import Place, Retained, Retaining
from replicad.work.suspect import EXAMINED

DAY_S = 86_400
S = 1_000_000_000
Result = TypeVar("Result")


class TestClock(Clock):
    """A clock that a test sets; time itself goes on with it unless it jumps."""

    __test__ = False

    def __init__(self) -> None:
        self.ns, self.jump_ns = 1_800_000_000 * S, 0

    def now_ns(self) -> int:
        return self.ns + self.jump_ns

    def monotonic_s(self) -> float:
        return self.ns / 1e9

    async def sleep(self, seconds: float) -> None:
        self.ns += int(seconds * S)
        await asyncio.sleep(0)


class Rig:
    """A store with its findings, the thread that both belong to, and retention of it."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.clock, self.disk = directory, TestClock(), FaultyDisk()
        self.rules = Rules(within_s=2 * DAY_S, daily=5, weekly=3, at_least=2, younger_than_s=DAY_S)
        self.thread, self.pool = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self.status = RetentionStatus(CLIENT, DATASET)
        self.open()

    def open(self) -> None:
        def opening() -> None:
            self.archive = Archive.open(
                self.directory,
                client=CLIENT,
                dataset=DATASET,
                disk=self.disk,
                clock_ns=self.clock.now_ns,
                create=True,
            )
            self.findings = Findings(self.directory / "findings.db")

        self.thread.submit(opening).result()
        place = Place(CLIENT, DATASET, self.directory)
        self.retaining = Retaining(
            place, self.in_store, lambda: self.rules, self.status, self.pool, self.clock, self.disk, asyncio.Lock()
        )

    def in_store(self, work: Callable[[Archive, Findings], Result]) -> Awaitable[Result]:
        return asyncio.get_running_loop().run_in_executor(self.thread, lambda: work(self.archive, self.findings))

    def do(self, work: Callable[[], Result]) -> Result:
        return self.thread.submit(work).result()

    def live(self, days: int, *, a_day: int = 4, first: int = 1) -> int:
        """So many days of snapshots, all of them examined; the number of the last."""
        choose, number = random.Random(first), first

        def one() -> None:
            history_of(Primary(self.archive), choose, 1, first=number)
            self.findings.put(EXAMINED, number)

        last = first + days * a_day - 1
        for number in range(first, last + 1):  # noqa: B007  `one` takes it
            self.clock.ns += DAY_S * S // a_day
            self.do(one)
        return last

    def run(self) -> Retained:
        return asyncio.run(self.retaining.run())

    def step(self) -> None:
        asyncio.run(self.retaining.step())

    def numbers(self) -> list[int]:
        return sorted(everything_in(self.directory))

    def close(self) -> None:
        self.do(self.archive.close)
        self.do(self.findings.close)
        self.thread.shutdown()
        self.pool.shutdown()


@pytest.fixture
def tmp_path(memory_path: Path) -> Path:
    """What is simulated here is time: months of snapshots, each of them durable."""
    return memory_path


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    monkeypatch.setattr(store_module, "SEGMENT_BYTES", 96 * 1024)
    made = Rig(tmp_path / CLIENT / DATASET)
    yield made
    made.close()


def size_of(directory: Path) -> int:
    return sum(segment_path(directory, number).stat().st_size for number in segment_numbers(directory))


def test_a_run_lets_go_and_gives_room_back(rig: Rig, tmp_path: Path) -> None:
    """What the rules say is kept is whole, the rest is gone, room is back, and a rebuild comes to the same."""
    last = rig.live(40)
    before, size = everything_in(rig.directory), size_of(rig.directory)
    outlook = asyncio.run(rig.retaining.outlook())
    done = rig.run()
    assert done.dropped == outlook.going and len(done.dropped) > 100 and not done.hold
    assert done.kept == last - len(done.dropped) == rig.status.kept and rig.status.dropped == len(done.dropped)
    assert done.compacted and done.reclaimed_bytes > size / 4
    assert 0 <= done.reclaimed_bytes - (size - size_of(rig.directory)) <= 8192  # the decision itself takes a sector
    after = everything_in(rig.directory)
    assert after == {number: tree for number, tree in before.items() if number not in done.dropped}
    assert rig.status.last_run_ns and rig.status.reclaimed_bytes == done.reclaimed_bytes
    again = rig.run()  # other bits are looked at: a few blocks that shared one with a used block are seen now
    assert not again.dropped and again.reclaimed_bytes < size / 20
    rig.do(rig.archive.close)
    assert rebuilt_books(rig.directory, tmp_path / "new.db") == books(catalog_path(rig.directory))
    rig.do(rig.findings.close)
    rig.open()


def test_without_rules_nothing_happens(rig: Rig) -> None:
    """Not a byte of the store changes."""
    rig.rules = Rules()
    rig.live(10)
    before = {number: segment_path(rig.directory, number).read_bytes() for number in segment_numbers(rig.directory)}
    done = rig.run()
    assert not done.dropped and not done.compacted and done.kept == 40
    assert before == {n: segment_path(rig.directory, n).read_bytes() for n in segment_numbers(rig.directory)}


def test_pins_suspects_and_what_was_not_examined_stay(rig: Rig) -> None:
    """A pin, the version before a suspect change, and all that nobody has examined yet outlive the rules; once they
    are released they go."""
    rig.live(40)
    going = asyncio.run(rig.retaining.outlook()).going
    pinned, before = going[3], going[7]
    rig.findings.add_pin(Pin("audit", pinned, 1))
    rig.findings.add_suspects(
        [Suspect(path=b"a", kind="zeroed", snapshot=before + 1, before=before, found_ns=1, blocks=1)]
    )
    done = rig.run()
    assert {pinned, before} <= set(rig.numbers()) and set(done.dropped) == set(going) - {pinned, before}
    outlook = asyncio.run(rig.retaining.outlook())
    reasons = {one.number: one.reason for one in outlook.snapshots}
    assert reasons[pinned] == "pin audit" and "suspect" in reasons[before]
    rig.findings.remove_pin("audit")
    rig.findings.release_suspects(None, 5)
    assert rig.run().dropped == sorted([pinned, before])
    rig.findings.put(EXAMINED, 100)
    rig.live(1, first=161)
    rig.findings.put(EXAMINED, 100)
    assert all(number < 100 for number in asyncio.run(rig.retaining.outlook()).going)


def test_what_a_failed_drop_left_can_be_pinned(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is being let go any more, so a person may keep it."""
    rig.live(40)
    going = asyncio.run(rig.retaining.outlook()).going

    def failing(archive: Archive, numbers: list[int]) -> None:
        with pytest.raises(ReplicadError, match="being dropped"):
            rig.findings.add_pin(Pin("too late", numbers[0], 1))
        raise ReplicadError("the disk is on fire")

    with monkeypatch.context() as patch:
        patch.setattr(retain, "drop", failing)
        with pytest.raises(ReplicadError, match="on fire"):
            rig.run()
    rig.findings.add_pin(Pin("kept", going[0], 1))
    assert going[0] not in rig.run().dropped and going[0] in rig.numbers()


def test_what_a_killed_daemon_was_dropping_can_be_pinned_after_the_next_run(rig: Rig) -> None:
    """Also where that run lets nothing go, because the rules were switched off meanwhile."""
    rig.live(40)
    going = asyncio.run(rig.retaining.outlook()).going
    rig.findings.retire(going)
    rig.rules = Rules()
    rig.run()
    rig.findings.add_pin(Pin("kept", going[0], 1))


def test_a_pin_set_at_the_last_moment_counts(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pin that is set after the rules have decided, and before the snapshot went, keeps it."""
    rig.live(40)
    real = retain._let_go

    def late(numbers: list[int], archive: Archive, findings: Findings) -> list[int]:
        findings.add_pin(Pin("late", numbers[0], 1))
        return real(numbers, archive, findings)

    first = asyncio.run(rig.retaining.outlook()).going[0]
    monkeypatch.setattr(retain, "_let_go", late)
    assert first not in rig.run().dropped and first in rig.numbers()


def test_a_clock_that_was_set_decides_nothing(rig: Rig) -> None:
    """Ahead: the daemon noticed the jump, and a person has to say that it is right. Back: nothing goes at all."""
    rig.live(40)
    before = rig.numbers()
    for jump_ns in (400 * DAY_S * S, -3 * DAY_S * S):
        rig.clock.jump_ns = jump_ns
        rig.step()
        assert "clock was set" in rig.status.hold and rig.numbers() == before
    assert "behind" in rig.run().hold and rig.numbers() == before
    rig.clock.jump_ns = 0
    rig.step()
    assert "clock was set" in rig.status.hold  # it was set back, and now ahead: who knows
    assert rig.run().dropped and not rig.status.hold


def test_a_clock_that_was_set_is_no_matter_where_nothing_goes(rig: Rig) -> None:
    """Without rules nobody is told that a clock keeps snapshots from going: none would, and nobody could end that."""
    rig.live(2)
    rig.rules = Rules()
    rig.clock.jump_ns = 12 * 3600 * S
    rig.step()
    assert not rig.status.hold and rig.status.last_run_ns
    rig.rules = Rules(daily=1)
    rig.step()
    assert "was set" in rig.status.hold


def test_findings_that_cannot_be_read_stop_everything(rig: Rig) -> None:
    """Who does not know what is pinned lets nothing go."""
    rig.live(40)
    before = rig.numbers()

    def damaged(work: Callable[[Archive, Findings], Result]) -> Awaitable[Result]:
        raise BookDamagedError("a page fails its checksum", where="findings.db")

    rig.retaining._in_store = damaged  # type: ignore[assignment]
    with pytest.raises(BookDamagedError):
        rig.run()
    assert rig.numbers() == before


def test_an_open_finding_keeps_its_segment_as_it_is(rig: Rig) -> None:
    """Segments that an open divergence is about, or that hold its blocks, are left; the others are compacted."""
    rig.live(40)
    inside = next(item.id for item in rig.archive.inventory.expected(3, 0, 1 << 40) if item.id)
    book = rig.findings
    book.report(replica_rot(key="frame:2:4096", number=2, blocks=()))
    moved = book.report(replica_rot(key="frame:9:4096", number=9000, blocks=(inside,)))
    before = {number: segment_path(rig.directory, number).read_bytes() for number in (2, 3)}
    done = rig.run()
    assert done.compacted
    assert before == {number: segment_path(rig.directory, number).read_bytes() for number in (2, 3)}
    assert any("finding" in text for text in done.left)
    book.update(moved.with_event(1, "done", state=State.REPAIRED))
    rig.run()
    assert before[2] == segment_path(rig.directory, 2).read_bytes()
    assert before[3] != segment_path(rig.directory, 3).read_bytes()


def test_after_a_loss_of_records_snapshots_go_and_their_room_stays(rig: Rig) -> None:
    """A run says why; the first one after the records have come back gives the room back without being asked."""
    rig.live(20)
    lose = "UPDATE snapshot SET lost = ? WHERE number = 3"
    before = size_of(rig.directory)

    def set_lost(count: int) -> None:
        with rig.archive.upkeep() as (_, catalog):
            catalog.database.execute(lose, (count,))

    rig.do(lambda: set_lost(1))
    done = rig.run()
    assert done.dropped and not done.compacted and "records of snapshots are missing" in done.left[0]
    assert size_of(rig.directory) >= before
    rig.do(lambda: set_lost(0))
    rig.step()
    assert rig.status.reclaimed_bytes > 0 and size_of(rig.directory) < before


def test_it_comes_in_between_two_passes(rig: Rig) -> None:
    """While a session has unsealed work nothing is written beside it. Where one pass follows the other nobody would
    find the moment between two by looking: each step waits for a seal, and all of them come to their end."""
    last = rig.live(40)
    primary, choose = Primary(rig.archive), random.Random(1)

    def next_pass(number: int) -> None:
        history_of(primary, choose, 1, first=number)
        rig.archive.do_at_seal()
        primary.send(b"unsealed %d" % number)
        assert not rig.archive.is_settled

    async def both() -> Retained:
        running = asyncio.ensure_future(rig.retaining.run())
        for number in range(last + 1, last + 200):
            await asyncio.get_running_loop().run_in_executor(rig.thread, next_pass, number)
            await asyncio.sleep(0.01)
            if running.done():
                break
        return await running

    rig.do(lambda: primary.send(b"unsealed"))
    done = asyncio.run(both())
    assert done.dropped and done.compacted


def test_a_session_that_never_seals_is_not_waited_for_for_ever(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next run goes on; what nobody waits for any more is not done behind the seal that comes after all."""
    rig.live(40)
    primary = Primary(rig.archive)
    rig.do(lambda: primary.send(b"unsealed"))
    with monkeypatch.context() as short:
        short.setattr(retain, "PATIENCE_S", 0.05)
        with pytest.raises(ReplicadError, match="a session has unsealed work"):
            rig.run()
    rig.do(rig.archive.abort)
    before = rig.do(lambda: rig.archive.inventory.database.stamp())
    rig.do(rig.archive.do_at_seal)
    assert rig.do(lambda: rig.archive.inventory.database.stamp()) == before
    assert rig.run().dropped


@pytest.mark.parametrize("step", ["drop", "purge_step", "mark_used", "compact_segment"])
def test_a_run_that_fails_is_finished_by_the_next(rig: Rig, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """Wherever an error ends a run, the archive takes snapshots again and the next run does the rest."""
    rig.live(40)
    outlook = asyncio.run(rig.retaining.outlook())
    real = getattr(retain, step)
    calls = 0

    def failing(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 2 or step != "compact_segment":
            raise ReplicadError("the disk is on fire")
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(retain, step, failing)
        with pytest.raises(ReplicadError, match="on fire"):
            rig.run()
    rig.live(1, first=161)
    assert set(outlook.going) & set(rig.numbers()) == (set(outlook.going) if step == "drop" else set())
    done = rig.run()
    assert done.compacted and not set(outlook.going) & set(rig.numbers())


def test_young_segments_are_left_alone(rig: Rig) -> None:
    """What was stored lately, such as a first copy that was cut short, is not compacted, used or not."""
    rig.live(40)
    rig.rules = Rules(within_s=DAY_S, younger_than_s=100 * DAY_S)
    assert not rig.run().compacted


def test_what_a_restore_reads_stays_until_it_has_ended(rig: Rig, tmp_path: Path) -> None:
    """Retention and compaction go on around it, of everything else; it brings back what the snapshot was, and then
    that goes as well."""
    rig.live(40)
    going = asyncio.run(rig.retaining.outlook()).going
    number = going[len(going) // 2]
    before = asyncio.run(restored_from(rig.directory, tmp_path / "before", number))

    async def restored() -> tuple[Retained, Retained, Account]:
        reader = SlowReader(await LocalReader.open(rig.directory))
        line = next(line for line in await reader.snapshots() if line.number == number)
        running = asyncio.create_task(Restore(reader, line, tmp_path / "back").run())
        await reader.begun.wait()
        done = await rig.retaining.run()
        fates = {one.number: one.reason for one in (await rig.retaining.outlook()).snapshots}
        assert fates[number] == "being read"
        again = await rig.retaining.run()
        reader.go_on.set()
        account = await running
        await reader.close()
        return done, again, account

    done, again, account = asyncio.run(restored())
    assert set(done.dropped) == set(going) - {number} and done.compacted and not again.dropped
    assert account.exit_code == 0 and account.restored == before.restored
    back, reference = (
        {path.relative_to(top): path.read_bytes() for path in top.rglob("*") if path.is_file()}
        for top in (tmp_path / "back", tmp_path / "before")
    )
    assert back == reference and len(back) > 5
    assert rig.run().dropped == [number]


async def restored_from(directory: Path, target: Path, number: int) -> Account:
    reader = await LocalReader.open(directory)
    try:
        line = next(line for line in await reader.snapshots() if line.number == number)
        return await Restore(reader, line, target).run()
    finally:
        await reader.close()


class SlowReader:
    """A reader that gives no block before it may."""

    def __init__(self, reader: LocalReader) -> None:
        self.name, self._reader = reader.name, reader
        self.begun, self.go_on = asyncio.Event(), asyncio.Event()

    async def snapshots(self) -> list[SnapshotLine]:
        return await self._reader.snapshots()

    def record(self, snapshot: int, globs: Sequence[bytes] = ()) -> AsyncIterator[list[Op]]:
        return self._reader.record(snapshot, globs)

    async def fetch(self, ids: bytes) -> AsyncIterator[list[Answer]]:
        self.begun.set()
        await self.go_on.wait()
        async for answers in self._reader.fetch(ids):
            yield answers

    async def close(self) -> None:
        await self._reader.close()
