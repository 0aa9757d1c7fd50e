"""The scrub engine on a fake side with a clock that jumps: in time, within its duty, and silence is not health."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from kit_engine import BEGIN_NS, DAY_S, FakeSurface, JumpingClock, Rig, S
from replicad.config import DatasetConfig
from replicad.model.divergence import Divergence, Part, Receipt, Side, State, Suspect
from replicad.model.errors import LinkError, ReplicadError
from replicad.model.pace import Policy
from replicad.model.verdict import Evidence, Sight, Verdict, Witness, Writing
from replicad.status import MOST, JobStatus, ScrubStatus
from replicad.system import load
from replicad.work import scrub as engine
from replicad.work.breaker import BREAKER
from replicad.work.job import Runner
from replicad.work.scrub import LONGEST_PAUSE_S, Scrubbing, Turns, policy_of
from replicad.work.scrub_book import MEMORY_KEY
from replicad.work.scrubs import Scrubs

GB = 10**9
WEEK_S = 7 * DAY_S
TURN_S = 60.0
"""Of the long simulations: a month in turns of 30 ms would be a hundred million of them."""


@pytest.fixture
def tmp_path(memory_path: Path) -> Path:
    """What is simulated here is time, and a month of it commits to the book ten thousand times."""
    return memory_path


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """A week for 10 GB at 100 MB/s and a quarter of the time."""
    made = Rig(tmp_path, Policy(WEEK_S, 0.25, turn_s=TURN_S))
    yield made
    made.findings.close()


@pytest.fixture
def calm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks once in a quarter of an hour, so that a month passes in seconds."""
    monkeypatch.setattr(engine, "CALM_LOOK_S", 900.0)
    monkeypatch.setattr(engine, "LOOK_EVERY_S", 600.0)


# ------------------------------------------------------------------------------------------------- a month passes


WORLDS = {
    "plain": (Policy(WEEK_S, 0.25, turn_s=TURN_S), 0, ()),
    "quiet hours": (Policy(WEEK_S, 0.25, (480, 1080), turn_s=TURN_S), 0, ()),
    "pauses": (Policy(WEEK_S, 0.25, turn_s=TURN_S), 0, (9, 17, 24)),
    "growth": (Policy(WEEK_S, 0.25, turn_s=TURN_S), 3 * GB, ()),
    "all of it": (Policy(WEEK_S, 0.25, (1320, 360), turn_s=TURN_S), 3 * GB, (11, 21)),
}


@pytest.mark.parametrize(("world", "side"), [*((world, Side.PRIMARY) for world in WORLDS), ("all of it", Side.REPLICA)])
async def test_every_byte_is_verified_in_time_for_a_month(tmp_path: Path, calm: None, world: str, side: Side) -> None:
    """No byte is older than a week when it is verified again, new ones wait for a day at most (and a pause); the duty
    is kept, on every day."""
    policy, growth, pauses = WORLDS[world]
    rig = Rig(tmp_path, policy, side=side)
    rig.surface.add(100 * GB)
    for day in range(30):
        rig.surface.add(growth)
        if day in pauses:
            await rig.scrub.pause(rig.clock.ns + int(DAY_S * S))
        day_ns = rig.clock.ns
        await rig.live(DAY_S)
        assert rig.read_s(day_ns) <= policy.duty * DAY_S
        assert rig.status.on_track, rig.status.reason
    assert rig.surface.oldest_s <= WEEK_S
    assert rig.surface.newest_wait_s <= DAY_S * (1.5 if pauses else 1)
    assert all(rig.clock.ns - at_ns <= WEEK_S * S for at_ns, _ in rig.surface.parts)
    assert 5 <= len(rig.surface.structures) <= 7
    rig.findings.close()


async def test_reading_is_spread_evenly(rig: Rig, calm: None) -> None:
    """In each day of a later cycle about as much is read as in every other."""
    rig.surface.add(100 * GB)
    await rig.live(12 * DAY_S)
    read = []
    for _ in range(10):
        day_ns = rig.clock.ns
        await rig.live(DAY_S)
        read.append(rig.read_s(day_ns))
    assert max(read) <= 1.5 * min(read)


async def test_the_two_sides_read_out_of_phase(tmp_path: Path, calm: None) -> None:
    """When the primary has just read a part, the replica's last look at it is about half a cycle old, not as fresh."""
    ages = []
    for side in Side:
        (tmp_path / side).mkdir()
        rig = Rig(tmp_path / side, Policy(WEEK_S, 0.25, turn_s=TURN_S), side=side)
        rig.surface.add(100 * GB)
        await rig.live(25 * DAY_S)
        ages.append((rig.clock.ns - rig.status.structure_ns) / S)
        rig.findings.close()
    apart = abs(ages[0] - ages[1]) / (WEEK_S * 0.8)
    assert 0.4 <= apart <= 0.6


async def test_a_host_that_is_always_busy_meets_the_deadline_all_the_same(rig: Rig, calm: None) -> None:
    """Stepping aside puts off, it never gives up."""
    rig.strain = 0.9
    rig.surface.add(100 * GB)
    await rig.live(20 * DAY_S)
    assert rig.surface.oldest_s <= WEEK_S and rig.surface.newest_wait_s <= DAY_S and rig.status.on_track


async def test_a_disk_that_is_too_slow_is_said_so(tmp_path: Path, calm: None) -> None:
    """Reading all the time is not enough: not on track, with both figures."""
    rig = Rig(tmp_path, Policy(WEEK_S, 0.25, turn_s=600.0), speed_bytes_s=1e5)
    rig.surface.add(100 * GB, part=GB // 10)
    await rig.live(3 * DAY_S)
    assert not rig.status.on_track
    assert "the disk gives 100 kB/s" in rig.status.reason and "are needed" in rig.status.reason
    rig.findings.close()


async def test_a_forecast_beyond_all_times_is_the_last_moment_that_a_peer_takes(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scrub that hardly goes on is described in numbers that the other side does not refuse."""
    monkeypatch.setattr(engine.pace, "finish_ns", lambda *_: 2**70)
    rig.surface.add(GB)
    await rig.live(60)
    assert rig.status.forecast_ns == MOST
    assert msgspec.json.decode(msgspec.json.encode(rig.status), type=ScrubStatus) == rig.status


async def test_turns_are_short(tmp_path: Path) -> None:
    """Whatever the disk's speed, a turn takes tens of milliseconds, and a quarter of the time is read at most."""
    rig = Rig(tmp_path, Policy(3600.0, 0.25), speed_bytes_s=200e6)
    rig.surface.add(5 * GB, part=256 * 1024)
    await rig.scrub.request()
    await rig.live(20)
    assert sorted(took_s for _, took_s in rig.surface.turns)[-2] <= 0.05
    assert 4 <= rig.read_s() <= 5.5
    rig.findings.close()


# ------------------------------------------------------------------------------------------------------ requests


async def test_a_request_verifies_everything_once_from_then_on(rig: Rig) -> None:
    """It is served when every part was verified after it and the structure was checked after it, at the full duty."""
    rig.surface.add(10 * GB)
    await rig.live(2 * DAY_S)
    asked_ns = rig.clock.ns
    number = await rig.scrub.request()
    assert (rig.status.requested, rig.status.served) == (number, number - 1)
    await rig.live(DAY_S, until=lambda: rig.status.served >= number)
    assert rig.status.served == number
    assert min(at_ns for at_ns, _ in rig.surface.parts) >= asked_ns
    assert rig.surface.structures[-1] >= asked_ns
    took_s = (rig.clock.ns - asked_ns) / S
    assert 0.95 * 100 / 0.25 <= took_s <= 1.2 * 100 / 0.25 + 10


async def test_a_request_takes_the_time_of_its_reading(tmp_path: Path) -> None:
    """Where all of the time may be read in nothing is waited for: no rest, no look that is not due yet."""
    rig = Rig(tmp_path, Policy(WEEK_S, 1.0))
    rig.surface.add(10 * GB, part=64 * 10**6)
    await rig.scrub.request()
    await rig.live(DAY_S, until=lambda: rig.status.served == 1)
    for _ in range(3):
        await rig.live(3600.0)
        begun_ns = rig.clock.ns
        number = await rig.scrub.request()
        await rig.scrub.step()
        while rig.status.served < number:
            await rig.scrub.wait()
            await rig.scrub.step()
        assert 100 <= (rig.clock.ns - begun_ns) / S <= 101.1
    rig.findings.close()


@pytest.fixture
def go_on(rig: Rig) -> asyncio.Event:
    """What every check of the rig's structure waits for."""
    event, structure = asyncio.Event(), rig.surface.structure

    async def slow() -> engine.Verified:
        await event.wait()
        return await structure()

    rig.surface.structure = slow  # type: ignore[method-assign]
    return event


async def test_reading_goes_on_beside_a_long_check_of_the_structure(rig: Rig, go_on: asyncio.Event, calm: None) -> None:
    """After a restart too, at the pace of every day; a pause is heard, and the deadline of new data is met."""
    rig.surface.add(10 * GB)
    await rig.live(600)
    await rig.scrub.close()
    rig.restart()
    await rig.live(2 * DAY_S)
    assert not rig.surface.structures and not rig.surface.never and rig.status.on_track
    assert rig.status.state == "running" and "the structure is checked" in rig.status.reason
    await rig.scrub.pause(rig.clock.ns + 3600 * S)
    turns = len(rig.surface.turns)
    await rig.live(600)
    assert rig.status.state == "paused" and len(rig.surface.turns) == turns
    await rig.scrub.resume()
    go_on.set()
    await rig.live(DAY_S, until=lambda: not rig.status.reason)
    assert len(rig.surface.structures) == 1 and not rig.status.reason


async def test_a_request_waits_for_the_check_of_the_structure_and_reads_meanwhile(
    rig: Rig, go_on: asyncio.Event
) -> None:
    """It is served as soon as both have ended, and nothing is read twice for it."""
    rig.surface.add(10 * GB)
    number = await rig.scrub.request()
    await rig.live(1800)
    read_s = rig.read_s()
    assert 100 <= read_s <= 106 and rig.status.served < number and rig.status.state == "running"
    go_on.set()
    await rig.live(10, until=lambda: rig.status.served == number)
    assert rig.status.served == number and rig.read_s() == read_s


async def test_a_check_of_the_structure_goes_on_while_nothing_can_be_read(rig: Rig, go_on: asyncio.Event) -> None:
    """Reading that fails ends no check, and the next check is of a surface opened anew."""
    rig.surface.add(GB)
    await rig.live(10)
    rig.surface.failure = ReplicadError("not mounted")
    await rig.live(600)
    assert rig.status.state == "failed" and rig.opened == 1
    go_on.set()
    await rig.live(600)
    assert len(rig.surface.structures) == 1 and rig.opened > 1


async def test_a_check_of_the_structure_ends_with_its_scrub(rig: Rig, go_on: asyncio.Event) -> None:
    """Where the scrubs of a node are stopped, no check outlives them."""
    rig.surface.add(GB)
    scrubs = Scrubs(rig.clock, lambda *_: None)
    scrubs.start(rig.scrub)
    while not rig.surface.turns:
        await asyncio.sleep(0)
    await scrubs.close()
    assert len(asyncio.all_tasks()) == 1


async def test_a_request_survives_a_restart(rig: Rig) -> None:
    """The daemon that starts again goes on with it under the same number, and says so as soon as it can."""
    rig.surface.add(10 * GB)
    number = await rig.scrub.request()
    await rig.live(30)
    rig.restart()
    await rig.live(10)
    assert (rig.status.requested, rig.status.served) == (number, number - 1)
    await rig.live(3600, until=lambda: rig.status.served >= number)
    assert rig.status.served == number


async def test_a_peer_s_requests_join(rig: Rig) -> None:
    """However often a peer asks, it gets one scrub after the other, and cannot keep one from ending."""
    rig.surface.add(10 * GB)
    first = await rig.scrub.request(from_peer=True)
    await rig.live(60)
    assert await rig.scrub.request(from_peer=True) == first
    await rig.live(3600, until=lambda: rig.status.served >= first)
    assert await rig.scrub.request(from_peer=True) == first + 1


async def test_a_peer_s_request_holds_to_pause_and_quiet_hours(rig: Rig) -> None:
    """What was typed here is stronger than what a peer asks for; a person's own request is stronger than both."""
    rig.policy = Policy(WEEK_S, 0.25, (0, 1439))
    rig.surface.add(GB)
    await rig.scrub.pause(rig.clock.ns + 3600 * S)
    await rig.scrub.request(from_peer=True)
    await rig.live(600)
    assert rig.status.state == "paused" and not rig.surface.turns
    await rig.scrub.resume()
    await rig.live(600)
    assert rig.status.state == "quiet" and not rig.surface.turns
    number = await rig.scrub.request()
    await rig.live(600, until=lambda: rig.status.served >= number)
    assert rig.status.served == number


async def test_a_request_on_nothing_ends(rig: Rig) -> None:
    """Where nothing is recorded yet, there is nothing to wait for, and that is what the status says."""
    number = await rig.scrub.request()
    await rig.live(60)
    assert rig.status.served == number
    assert (rig.status.state, rig.status.reason) == ("waiting", "nothing is recorded yet")


async def test_what_is_being_written_does_not_keep_a_request_from_ending(rig: Rig) -> None:
    """When nothing more can be verified and there is no doubt about any of it, the request has ended."""
    rig.surface.add(GB)
    await rig.live(DAY_S)

    number = await rig.scrub.request()
    await rig.live(1)
    rig.surface.is_written = True
    await rig.live(600, until=lambda: rig.status.served >= number)
    assert rig.status.served == number


async def test_a_file_that_is_always_written_makes_nothing_late(rig: Rig, calm: None) -> None:
    """What waits for being recorded anew is named, and asks for no pace: not within a day, and not overdue after it."""
    rig.surface.add(GB)
    rig.surface.waiting = 50 * GB
    await rig.live(4 * DAY_S)
    assert rig.status.on_track
    assert rig.status.reason == "50 GB are being written or were moved: they are looked at again"
    assert rig.status.never_bytes == 50 * GB


async def test_what_could_not_be_looked_at_keeps_a_request_open(rig: Rig) -> None:
    """A part that cannot be looked at is named, stays due, and no request ends as if all were well."""
    rig.surface.add(GB)
    rig.surface.doubts = ("big.img: Permission denied",)
    number = await rig.scrub.request()
    await rig.live(600)
    assert rig.status.served == number - 1
    assert rig.status.state == "waiting" and "big.img: Permission denied" in rig.status.reason
    rig.surface.doubts = ()
    await rig.live(600, until=lambda: rig.status.served >= number)
    assert rig.status.served == number


# -------------------------------------------------------------------------------------------------------- pauses


async def test_a_pause_ends_by_itself(rig: Rig) -> None:
    """Nothing is read until then; a pause is remembered across restarts, ends after a day at most, and says so."""
    rig.surface.add(10 * GB)
    await rig.live(600)
    turns, began_ns = len(rig.surface.turns), rig.clock.ns
    until_ns = await rig.scrub.pause(began_ns + int(99 * DAY_S * S))
    assert until_ns == began_ns + int(LONGEST_PAUSE_S * S)
    await rig.live(3600)
    rig.restart(down_s=60)
    await rig.live(DAY_S - 4000)
    assert len(rig.surface.turns) == turns
    assert rig.status.state == "paused" and rig.status.paused_until_ns == until_ns
    assert "when it goes on by itself" in rig.status.reason
    await rig.live(3600)
    assert rig.status.state in ("running", "idle") and not rig.status.paused_until_ns
    assert len(rig.surface.turns) > turns
    assert rig.status.reason.startswith("it was paused ")


async def test_resuming_ends_a_pause(rig: Rig) -> None:
    """It goes on at once; where nothing is paused there is nothing to resume."""
    rig.surface.add(GB)
    await rig.scrub.pause(rig.clock.ns + 3600 * S)
    await rig.live(60)
    assert await rig.scrub.resume() and not await rig.scrub.resume()
    await rig.live(60)
    assert rig.surface.turns


async def test_a_clock_that_was_set_back_makes_no_pause_longer(rig: Rig) -> None:
    """A pause that seems to last longer than one may is over."""
    rig.surface.add(GB)
    await rig.scrub.pause(rig.clock.ns + 3600 * S)
    rig.clock.ns -= int(40 * DAY_S * S)
    await rig.live(60)
    assert rig.surface.turns and rig.status.state != "paused"


async def test_a_long_stop_of_the_daemon_is_the_reason(rig: Rig, calm: None) -> None:
    """After ten days without a daemon it is late, and says that this is why; then it makes up for it."""
    rig.surface.add(100 * GB)
    await rig.live(3 * DAY_S)
    rig.restart(down_s=10 * DAY_S)
    await rig.live(1200)
    assert not rig.status.on_track
    assert rig.status.reason.startswith("the daemon did not run for 10 d: ")
    await rig.live(DAY_S)
    assert rig.status.on_track and rig.clock.ns - rig.surface.parts[0][0] < WEEK_S * S


async def test_a_memory_of_another_version_is_forgotten(rig: Rig) -> None:
    """What this version does not understand is no reason to stop scrubbing."""
    rig.findings.put(MEMORY_KEY, b"\xff\xff")
    rig.surface.add(GB)
    await rig.live(60)
    assert rig.surface.turns


# ------------------------------------------------------------------------------------------------------ failures


async def test_a_side_that_cannot_be_read_is_never_healthy(rig: Rig) -> None:
    """The failure is the status, no moment of verification moves, the surface is opened anew, and then it goes on."""
    rig.surface.add(10 * GB)
    await rig.live(DAY_S)
    before = rig.status.oldest_verified_ns
    rig.surface.failure = ReplicadError("Input/output error", where="/srv/www")
    opened = rig.opened
    await rig.live(3600)
    status = rig.status
    assert (status.state, status.on_track, status.oldest_verified_ns) == ("failed", False, before)
    assert status.reason == "nothing could be read: /srv/www: Input/output error"
    assert rig.opened > opened
    rig.surface.failure = None
    await rig.live(600)
    assert rig.status.state in ("running", "idle") and rig.status.on_track


async def test_a_defect_of_ours_is_no_health_either(rig: Rig) -> None:
    """A surface that fails in a way that nobody foresaw is shown as failed, and its runner counts it."""
    rig.surface.add(GB)
    await rig.live(60)
    rig.surface.failure = KeyError(7)  # type: ignore[assignment]
    rig.clock.ns += 60 * S
    with pytest.raises(KeyError):
        await rig.scrub.step()
    assert (rig.status.state, rig.status.on_track) == ("failed", False)
    assert rig.status.reason == "nothing could be read: defect: KeyError: 7"


async def test_failures_are_the_runner_s_to_count(rig: Rig) -> None:
    """A step that could not read raises, so backoff and failure counts are those of every job."""
    rig.surface.add(GB)
    rig.surface.failure = LinkError("gone")
    with pytest.raises(LinkError):
        await rig.scrub.step()
    line = JobStatus("scrub")
    rig.surface.failure = ReplicadError("gone")
    running = asyncio.create_task(Runner(rig.scrub, line, rig.clock, lambda *_: None, seed=1).run())
    while line.failures < 3:
        await asyncio.sleep(0)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert line.failures_in_row >= 3


async def test_what_cannot_be_looked_at_is_named_while_the_rest_is_read(rig: Rig) -> None:
    """Not only once there is nothing else to do, which may never be."""
    real = rig.surface.verify

    async def verify(budget_bytes: int, since_ns: int) -> engine.Verified:
        return replace(await real(budget_bytes, since_ns), doubts=("big.img: Permission denied",))

    rig.surface.verify = verify  # type: ignore[method-assign]
    rig.surface.add(100 * GB)
    await rig.live(600)
    assert rig.status.state in ("running", "idle") and rig.surface.never
    assert rig.status.reason.endswith("1 part could not be looked at and stays due: big.img: Permission denied")


async def test_a_structure_that_cannot_be_checked_stops_no_reading(rig: Rig) -> None:
    """It is shown, tried again later, and blocks are verified meanwhile; a request ends only when it was checked."""
    rig.surface.add(GB)
    rig.surface.structure_failure = ReplicadError("catalog is locked")
    number = await rig.scrub.request()
    await rig.live(120)
    assert "the structure could not be checked: catalog is locked" in rig.status.reason
    assert not rig.status.on_track and rig.status.served < number and not rig.surface.never
    assert rig.status.state == "waiting", "who waits for the request sees that it does not go on"
    rig.surface.structure_failure = None
    await rig.live(1800)
    assert rig.status.served == number and rig.status.on_track and rig.surface.structures


async def test_a_defect_in_the_check_of_the_structure_is_counted_and_stops_no_reading(rig: Rig) -> None:
    """The runner is told of it once for each try, and blocks are verified meanwhile."""

    async def broken() -> engine.Verified:
        raise RuntimeError("no such row")

    rig.surface.structure = broken  # type: ignore[method-assign]
    rig.surface.add(GB)
    defects = 0
    for _ in range(3):
        try:
            await rig.live(DAY_S)
        except RuntimeError:
            defects += 1
    assert defects == 3 and rig.surface.turns
    assert not rig.status.on_track and "could not be checked: defect: RuntimeError: no such row" in rig.status.reason


async def test_new_data_makes_nothing_never_verified(rig: Rig) -> None:
    """A dataset that is written all the time has an oldest verification all the same; 0 is for what never was."""
    await rig.live(60)
    rig.surface.add(GB)
    await rig.live(1)
    assert rig.status.oldest_verified_ns == 0
    await rig.live(2 * DAY_S)
    rig.surface.add(GB)
    await rig.live(60)
    assert rig.status.never_bytes > 0
    assert BEGIN_NS - 0.1 * WEEK_S * S < rig.status.oldest_verified_ns < rig.clock.ns


async def test_what_came_through_a_cache_is_counted_apart(rig: Rig) -> None:
    """Bytes that may have come from a cache never count as read from the medium."""
    rig.surface.is_cache = True
    rig.surface.add(GB)
    await rig.scrub.request()
    await rig.live(600)
    assert rig.status.media_bytes == 0 and rig.status.cache_bytes >= GB


# ------------------------------------------------------------------------------------------------------ the book


def rot(number: int, verdict: Verdict = Verdict.PRIMARY_ROT, side: Side = Side.PRIMARY, **more: object) -> Divergence:
    values = {"key": f"block:1:{number}", "dataset": "www", "side": side, "peer": "", "part": Part.BLOCK}
    return Divergence(**values, what="differs", verdict=verdict, found_ns=BEGIN_NS + number, **more)  # type: ignore[arg-type]


async def test_the_status_counts_what_stands_in_the_book(rig: Rig) -> None:
    """Open findings by verdict, the oldest, what is lost, suspects, repairs and the breaker; of this side alone."""
    lost = Evidence(Sight.DIFFERS, Sight.DIFFERS, Writing.UNWRITTEN, Witness.CONFIRMS)
    for found in (rot(1), rot(2), rot(3, Verdict.INCONCLUSIVE), rot(4, Verdict.BOTH_ROT, evidence=lost)):
        rig.findings.report(found)
    rig.findings.report(rot(5, Verdict.REPLICA_ROT, Side.REPLICA))
    rig.findings.update(rig.findings.report(rot(6)).with_event(1, "mended", state=State.REPAIRED))
    rig.findings.add_suspects([Suspect(path=b"a", kind="zeroed", snapshot=2, before=1, found_ns=1, blocks=1)])
    receipt = Receipt(divergence="x", at_ns=1, remedy="", path=b"", offset=0, length=0, before=b"", after=b"",
                      source="", result="repaired")  # fmt: skip
    rig.findings.add_receipt(receipt)
    rig.findings.put(BREAKER, 1)
    rig.surface.add(GB)
    await rig.live(60)
    status = rig.status
    assert status.divergent == {"primary_rot": 2, "inconclusive": 1, "both_rot": 1}
    assert status.divergences["primary_rot"] == 3 and "replica_rot" not in status.divergences
    assert (status.oldest_open_ns, status.oldest_inconclusive_ns) == (BEGIN_NS + 1, BEGIN_NS + 3)
    assert (status.lost, status.suspects, status.repairs, status.breaker_open) == (1, 1, {"repaired": 1}, True)


async def test_what_is_found_is_shown_at_once(rig: Rig) -> None:
    """A turn that found something has the book counted again right after it."""
    rig.surface.add(GB)
    await rig.live(30)
    rig.findings.report(rot(1))
    rig.surface.found = 1
    await rig.scrub.request()
    await rig.live(3)
    assert rig.status.divergent == {"primary_rot": 1}


async def test_a_changed_configuration_is_in_force_at_once(rig: Rig) -> None:
    """Nothing has to be built anew for another deadline or duty."""
    rig.surface.add(100 * GB)
    await rig.live(3 * DAY_S)
    rig.policy = Policy(DAY_S, 1.0, turn_s=TURN_S)
    await rig.live(60)
    assert rig.status.scrub_every_s == DAY_S
    read_s = rig.read_s()
    await rig.live(DAY_S)
    assert rig.read_s() - read_s >= 100 * GB / 100e6


def test_the_policy_is_the_configuration_s() -> None:
    """Hours as people write them become minutes of the day."""
    config = DatasetConfig("www", Path("/srv"), scrub_every_s=5.0, scrub_duty=0.5, quiet_hours="22:00-06:30")
    assert policy_of(config) == Policy(5.0, 0.5, (1320, 390))


async def test_scrubs_of_one_node_read_one_after_the_other(tmp_path: Path) -> None:
    """Two datasets on one disk are never read at the same moment, and no two structures are checked at once."""
    clock, turns, under_way, most, checking, most_checking = JumpingClock(), Turns(), 0, 0, 0, 0

    class Slow(FakeSurface):
        async def verify(self, budget_bytes: int, since_ns: int) -> engine.Verified:
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            await asyncio.sleep(0)
            under_way -= 1
            return await super().verify(budget_bytes, since_ns)

        async def structure(self) -> engine.Verified:
            nonlocal checking, most_checking
            checking += 1
            most_checking = max(most_checking, checking)
            await asyncio.sleep(0)
            checking -= 1
            return await super().structure()

    rigs = []
    scrubs = Scrubs(clock, lambda *_: None)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        rig = Rig(tmp_path / name, Policy(60.0, 1.0))
        surface = Slow(clock)
        surface.add(GB)

        async def opened(surface: Slow = surface) -> Slow:
            return surface

        status = ScrubStatus(name, "primary", "")
        job = Scrubbing(opened, rig.in_book, status, lambda: Policy(60.0, 1.0), clock, turns=turns, strain=lambda: 0.0)
        scrubs.start(job)
        rigs.append((rig, surface))
    [one] = await scrubs.direct("start", 0.0, lambda status: status.dataset == "a")
    assert (one.status.dataset, one.number) == ("a", 1)
    paused = await scrubs.direct("pause", 60.0, lambda status: status.dataset == "b")
    assert paused[0].until_ns >= clock.ns
    paused = await scrubs.direct("pause", 1e300, lambda status: status.dataset == "b")
    assert paused[0].until_ns <= clock.ns + LONGEST_PAUSE_S * S, "a day at most, whatever is asked for"
    assert len(await scrubs.direct("resume", 0.0, lambda status: True)) == 1
    while not all(len(surface.turns) > 3 and surface.structures for _, surface in rigs):
        await asyncio.sleep(0)
    await scrubs.close()
    assert most == most_checking == 1 and [line.name for line in scrubs.jobs] == ["scrub primary a", "scrub primary b"]
    assert scrubs.find("a", "") and not scrubs.find("a", "fra1")
    for rig, _ in rigs:
        rig.findings.close()


# ------------------------------------------------------------------------------------------------------ the host


def test_pressure_is_read_from_the_kernel_s_words(tmp_path: Path) -> None:
    """Some task waited for a disk for that share of ten seconds; without that file the load average stands in."""
    file = tmp_path / "io"
    file.write_text("some avg10=37.50 avg60=1.00 avg300=0.10 total=1\nfull avg10=9.00 avg60=0 avg300=0 total=1\n")
    assert load.io_strain(file) == 0.375
    file.write_text("rubbish\n")
    assert 0 <= load.io_strain(file) <= 1
    assert 0 <= load.io_strain(tmp_path / "absent") <= 1
    with pytest.raises(ValueError, match="no line"):
        load.parse_pressure("full avg10=9.00")
