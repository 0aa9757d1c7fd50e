"""The replica's side of a tending session: what it answers, what it settles, what it takes from a hostile client."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from kit_link import wait_for
from kit_rig import Replica, replica, rig
from kit_store import block_frame, flip, record_frame, segment
from kit_tend import BLOCK, DictMender, Menders, Scrub, tending
from replicad.link import channel as channel_module
from replicad.link.channel import Channel
from replicad.link.frames import pack
from replicad.link.messages import (
    BUCKETS,
    MAX_CASES_BYTES,
    Account,
    Accounted,
    Blocks,
    Cases,
    Direct,
    Directed,
    Examine,
    Examined,
    Fetch,
    Inquire,
    Message,
    Offer,
    Opened,
    OpenTend,
    Refuse,
    Settled,
    Want,
    encode,
)
from replicad.link.messages import Testify as Said  # under its own name pytest takes it for a test
from replicad.model.block import block_id, checksum
from replicad.model.divergence import Affected, Divergence, Part, Side, State
from replicad.model.entry import Drop
from replicad.model.errors import PeerError, StoreDamagedError
from replicad.model.verdict import Sight, Verdict
from replicad.work import tended
from replicad.work.archive_reader import ArchiveReader
from replicad.work.shelves import ShelfOrders
from replicad.work.told import told

DATA = random.Random(9).randbytes(4 * BLOCK)
NAMES = [block_id(DATA[n * BLOCK : (n + 1) * BLOCK]) for n in range(4)]
FRAMES = [block_frame(DATA[n * BLOCK : (n + 1) * BLOCK]) for n in range(4)]


class Node:
    """A replica with a snapshot, and its mender."""

    def __init__(self, fra1: Replica, mender: DictMender, scrub: Scrub) -> None:
        self.fra1, self.mender, self.scrub = fra1, mender, scrub

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Channel]:
        """An open tending session."""
        channel = await self.fra1.dial()
        await channel.send(OpenTend("www"))
        opened = await channel.receive()
        assert isinstance(opened, Opened) and opened.head.number == 1 and opened.credit == 0
        try:
            yield channel
        finally:
            await channel.close()

    async def case(self, channel: Channel, wants: Sequence[int] = (0, 1), number: int = 1) -> Divergence:
        """A finding that the client was told of."""
        found = self.mender.add(number, b"bad bytes", [Want(NAMES[n], 0, 0) for n in wants])
        cases = await asked(channel, Inquire(""), Cases)
        assert found.id in {case.found.id for case in cases.cases}
        return found


@asynccontextmanager
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    """A replica that holds one file."""
    root = tmp_path / "www"
    root.mkdir()
    (root / "file").write_bytes(DATA)
    menders, scrub = Menders(), Scrub()
    async with (
        rig(tmp_path, root) as primary,
        replica(tmp_path / "store", make_mender=menders, scrub_of=lambda *_: scrub) as fra1,
    ):
        await primary.sync(fra1)
        job = tending(primary, fra1)
        await job.step()
        await job.close()
        yield Node(fra1, menders.only, scrub)


async def asked(channel: Channel, message: Message, kind):  # type: ignore[no-untyped-def]
    """The answer, which has to be of that kind."""
    await channel.send(message)
    answer = await channel.receive()
    assert isinstance(answer, kind), answer
    return answer


async def refused(channel: Channel, *messages: Message) -> str:
    """Why the session was ended."""
    for message in messages:
        await channel.send(message)
    answer = await channel.receive()
    assert isinstance(answer, Refuse) and answer.code == "invalid", answer
    return answer.text


async def test_bytes_are_hashed_and_the_own_copy_is_looked_at(tmp_path: Path) -> None:
    """Well, differing, unreadable and absent copies are told apart; what is missing as a whole is absent."""
    async with node(tmp_path) as n, n.session() as channel:
        seen = await asked(channel, Examine(NAMES[0], b"found"), Examined)
        assert (seen.checksum, seen.id, seen.sight) == (checksum(b"found"), block_id(b"found"), Sight.MATCHES)
        assert await asked(channel, Examine(bytes(32), b""), Examined) == Examined(
            b"", b"", Sight.ABSENT, "this block is not in the store"
        )
        reader = ArchiveReader(n.fra1.archive)
        place = reader._listing.places([NAMES[1]])[NAMES[1]]
        reader.close()
        flip(segment(n.fra1.archive), place.offset + 500)
        differs = await asked(channel, Examine(NAMES[1], b""), Examined)
        assert differs.sight is Sight.DIFFERS and "checksum" in differs.reason
        segment(n.fra1.archive).rename(tmp_path / "away")
        assert (await asked(channel, Examine(NAMES[2], b""), Examined)).sight is Sight.ABSENT


async def test_the_largest_block_can_be_examined(tmp_path: Path) -> None:
    """A MiB of bytes travels."""
    async with node(tmp_path) as n, n.session() as channel:
        data = random.Random(1).randbytes(1024 * 1024)
        assert (await asked(channel, Examine(NAMES[0], data), Examined)).id == block_id(data)


async def test_a_case_is_settled_with_proven_blocks(tmp_path: Path) -> None:
    """In one message or several; the finding comes back as it stands then."""
    async with node(tmp_path) as n, n.session() as channel:
        found = await n.case(channel, (0, 1, 2))
        sights = [Sight.MATCHES] * 3
        await channel.send(Said(found.id, checksum(b"bad bytes"), sights, 3))
        await channel.send(Blocks(FRAMES[2] + FRAMES[0]))
        settled = await asked(channel, Blocks(FRAMES[1]), Settled)
        assert settled.found.state is State.REPAIRED
        assert n.mender.mended == [NAMES[2], NAMES[0], NAMES[1]]


async def test_a_finding_that_was_closed_meanwhile_is_answered_as_it_stands(tmp_path: Path) -> None:
    """The blocks that came with the testimony are not needed any more."""
    async with node(tmp_path) as n, n.session() as channel:
        found = await n.case(channel)
        closed = found.with_event(5, "closed", state=State.GONE)
        n.mender._ask(lambda: n.mender.findings.update(closed))
        await channel.send(Said(found.id, b"", [Sight.MATCHES, Sight.ABSENT], 1))
        settled = await asked(channel, Blocks(FRAMES[0]), Settled)
        assert settled.found.state is State.GONE and n.mender.mended == []


async def test_an_order_of_the_replicas_person_is_carried_out(tmp_path: Path) -> None:
    """A mender that asks is told that a person has ordered it, once."""
    async with node(tmp_path) as n, n.session() as channel:
        n.mender.auto = False
        found, orders = await n.case(channel, (0,)), ShelfOrders(n.mender.opened)
        await channel.send(Said(found.id, checksum(b"bad bytes"), [Sight.MATCHES], 1))
        assert (await asked(channel, Blocks(FRAMES[0]), Settled)).found.state is State.OPEN
        ((key, one),) = await n.fra1._shelves.meant(None)
        done = await n.fra1._shelves.repair(key, one, dry_run=True, now_ns=9)
        assert (done.result, await orders.is_ordered(found.id)) == ("planned", False)
        assert (await n.fra1._shelves.repair(key, one, dry_run=False, now_ns=9)).result == "waiting"
        await asked(channel, Inquire(""), Cases)
        await channel.send(Said(found.id, checksum(b"bad bytes"), [Sight.MATCHES], 1))
        assert (await asked(channel, Blocks(FRAMES[0]), Settled)).found.state is State.REPAIRED
        assert not await orders.is_ordered(found.id)


async def test_an_order_does_not_open_again_what_was_settled_meanwhile(tmp_path: Path) -> None:
    """A person ordered all at once, and the primary was quicker."""
    async with node(tmp_path) as n, n.session() as channel:
        found = (await n.case(channel, (0,))).with_event(4, "judged", verdict=Verdict.REPLICA_ROT)
        n.mender._ask(lambda: n.mender.findings.update(found))
        ((key, one),) = await n.fra1._shelves.meant(None)
        closed = found.with_event(5, "closed", state=State.REPAIRED)
        n.mender._ask(lambda: n.mender.findings.update(closed))
        done = await n.fra1._shelves.repair(key, one, dry_run=False, now_ns=9)
        assert (done.result, "repaired already" in done.text) == ("nothing", True)
        assert n.mender._ask(lambda: n.mender.findings.get_exactly(found.id)) == closed
        assert not await ShelfOrders(n.mender.opened).is_ordered(found.id)


async def test_what_needs_no_block_is_mended_at_once_by_order(tmp_path: Path) -> None:
    """Without waiting for a primary, nor for its session, which is open as long as anything is."""
    async with node(tmp_path) as n, n.session() as channel, asyncio.timeout(20):
        n.mender.auto = False
        found = n.mender.add(1, b"", [], Sight.UNREADABLE)
        found = found.with_event(2, "judged", verdict=Verdict.REPLICA_ROT)
        n.mender._ask(lambda: n.mender.findings.update(found))
        ((key, one),) = await n.fra1._shelves.meant(None)
        done = await n.fra1._shelves.repair(key, one, dry_run=False, now_ns=9)
        assert done.result == "repaired" and not channel.over.is_set()


HOSTILE: list[tuple[str, list[Message]]] = [
    ("which it was not told of", [Said("ffffffff", b"", [], 0)]),
    ("said 1 things", [Said("CASE", b"", [Sight.MATCHES], 0)]),
    ("announced 3", [Said("CASE", b"", [Sight.MATCHES] * 2, 3)]),
    ("announced 1", [Said("CASE", b"", [Sight.ABSENT] * 2, 1)]),
    ("not wanted", [Said("CASE", b"", [Sight.MATCHES] * 2, 1), Blocks(FRAMES[3])]),
    ("not announced", [Said("CASE", b"", [Sight.MATCHES, Sight.ABSENT], 1), Blocks(FRAMES[1])]),
    ("twice", [Said("CASE", b"", [Sight.MATCHES] * 2, 2), Blocks(FRAMES[0]), Blocks(FRAMES[0])]),
    ("sent 2 blocks", [Said("CASE", b"", [Sight.MATCHES] * 2, 1), Blocks(FRAMES[0] + FRAMES[1])]),
    ("is none", [Said("CASE", b"", [Sight.MATCHES] * 2, 1), Blocks(FRAMES[0][:-1])]),
    ("is none", [Said("CASE", b"", [Sight.MATCHES] * 2, 1), Blocks(FRAMES[0][:70] + b"x" + FRAMES[0][71:])]),
    ("without blocks", [Said("CASE", b"", [Sight.MATCHES] * 2, 1), Blocks(b"")]),
    ("was not wanted", [Said("CASE", b"", [Sight.MATCHES] * 2, 1), Blocks(record_frame([Drop(b"x")]))]),
    ("where 1 blocks", [Said("CASE", b"", [Sight.MATCHES] * 2, 1), Inquire("")]),
    ("where 1 blocks", [Said("CASE", b"", [Sight.MATCHES] * 2, 1), Said("CASE", b"", [Sight.MATCHES] * 2, 0)]),
    ("nothing here waits for", [Blocks(FRAMES[0])]),
]


@pytest.mark.parametrize(("why", "messages"), HOSTILE)
async def test_a_hostile_client_changes_nothing(tmp_path: Path, why: str, messages: list[Message]) -> None:
    """Each breach ends the session in words, and the finding stays as it was."""
    async with node(tmp_path) as n, n.session() as channel:
        found = await n.case(channel)
        said = [
            Said(found.id, m.checksum, m.sights, m.frames) if isinstance(m, Said) and m.divergence == "CASE" else m
            for m in messages
        ]
        assert why in await refused(channel, *said)
        assert n.mender.mended == [] and "testimony" not in n.mender.calls
        assert n.mender._ask(lambda: n.mender.findings.get_exactly(found.id)) == found
    assert any(isinstance(error, PeerError) for error in n.fra1.errors)


async def test_findings_are_told_and_settled_while_places_are_looked_at_again(tmp_path: Path) -> None:
    """Such a look may take longer than a node lives: nobody waits for it, and a round begins no second one."""
    async with node(tmp_path) as n, n.session() as channel:
        n.mender.calls.clear()
        found = await n.case(channel)
        await channel.send(Said(found.id, found.seen, [Sight.MATCHES] * 2, 2))
        await channel.send(Blocks(FRAMES[0] + FRAMES[1]))
        settled = await channel.receive()
        assert isinstance(settled, Settled) and settled.found.state is State.REPAIRED
        assert not (await asked(channel, Inquire(""), Cases)).cases
        assert n.mender.calls.count("verify_divergences") == 1
        n.mender.may_look.set()
        await wait_for(lambda: not _looks())
        await asked(channel, Inquire(""), Cases)
        await wait_for(lambda: n.mender.calls.count("verify_divergences") == 2)


async def test_a_look_that_fails_ends_the_session_of_the_next_round(tmp_path: Path) -> None:
    """The primary is told why: what the store says of itself cannot be believed now."""
    async with node(tmp_path) as n:
        n.mender.look_fails = StoreDamagedError("the findings cannot be read")
        n.mender.may_look.set()
        async with n.session() as channel:
            await n.case(channel)
            await wait_for(lambda: not _looks())
            await channel.send(Inquire(""))
            answer = await channel.receive()
            assert isinstance(answer, Refuse) and (answer.code, answer.text) == ("damaged", n.mender.look_fails.what)
    assert n.fra1.errors == [n.mender.look_fails]


def _looks() -> set[asyncio.Task[object]]:
    """Looks of the mender that are under way."""
    return {task for task in asyncio.all_tasks() if "verify_divergences" in repr(task.get_coro())}


async def test_more_bytes_than_one_testimony_takes_end_the_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was announced, what is held here is bounded."""
    monkeypatch.setattr(tended, "MAX_TESTIMONY_BYTES", BLOCK + 100)
    async with node(tmp_path) as n, n.session() as channel:
        found = await n.case(channel)
        said = Said(found.id, b"", [Sight.MATCHES] * 2, 2)
        assert "more than" in await refused(channel, said, Blocks(FRAMES[0]), Blocks(FRAMES[1]))
        assert n.mender.mended == []


@pytest.mark.parametrize("message", [Fetch(bytes(32)), Offer(bytes(32)), Inquire("x" * 300), Direct("stop"),
                                     Examine(b"short", b""), Said("x", b"1", [], 0)])  # fmt: skip
async def test_what_the_session_does_not_allow_never_arrives(tmp_path: Path, message: Message) -> None:
    """Wrong kinds and broken limits are refused by the table, before anything here sees them."""
    async with node(tmp_path) as n, n.session() as channel:
        channel._stream.write(pack(message))
        answer = await channel.receive()
        assert isinstance(answer, Refuse) and answer.code == "invalid"


async def test_of_what_the_client_knows_as_it_stands_the_id_is_enough(tmp_path: Path) -> None:
    """Its bad bytes stay here, and it is not testified about; what has changed since is told as a whole."""
    async with node(tmp_path) as n, n.session() as channel:
        one, other = (n.mender.add(number, b"bad", [Want(NAMES[0], 0, 0)]) for number in (1, 2))
        known = {one.id: one.changed_ns, other.id: other.changed_ns - 1, "ffffffff": 1}
        said = await asked(channel, Inquire("", known), Cases)
        assert said.same == [one.id] and [case.found.id for case in said.cases] == [other.id] and not said.more
        assert (await asked(channel, Inquire(max(one.id, other.id), known), Cases)) == Cases([], False)
        await asked(channel, Inquire("", known), Cases)
        assert "which it was not told of" in await refused(channel, Said(one.id, b"", [Sight.ABSENT], 0))


async def test_many_large_cases_come_in_messages_that_can_be_sent(tmp_path: Path) -> None:
    """Findings with long names, long histories, many wants and large bytes: every message stays within its limit, and
    none is left out."""
    async with node(tmp_path) as n, n.session() as channel:
        expected = set()
        for number in range(30):
            found = n.mender.add(number, bytes(BLOCK), [Want(NAMES[0], 1, 1)] * 4096)
            found = with_everything(found)
            n.mender._ask(lambda one=found: n.mender.findings.update(one))
            expected.add(found.id)
        named: list[str] = []
        more = True
        while more:
            cases = await asked(channel, Inquire(named[-1] if named else ""), Cases)
            assert len(encode(cases)) <= MAX_CASES_BYTES
            named += [case.found.id for case in cases.cases]
            more = cases.more
        assert named == sorted(expected)


def with_everything(found: Divergence) -> Divergence:
    """As large as a finding gets."""
    affected = tuple(Affected(bytes([97]) * 4000 + b"%d" % n, 0, 1) for n in range(100))
    found = msgspec.structs.replace(found, affected=affected, what="y" * 4000, blocks=(bytes(32),) * 4096)
    changed = found.with_event(1, "x" * 3000)
    for number in range(150):
        changed = changed.with_event(number, "z" * 4000)
    return changed


def test_a_finding_is_told_in_a_quarter_of_a_mib() -> None:
    """Whatever it has grown to; the first and the last lines of its history stay, and control characters do not."""
    found = Divergence(key="k", dataset="www", side=Side.REPLICA, peer="", part=Part.BLOCK, what="a\nb")
    large = with_everything(found)
    said = told(large)
    assert len(encode(Settled(said))) < 256 * 1024
    assert said.events[0].what == "x" * 300 and said.events[-1].at_ns == 149
    assert told(found).what == "a?b" and told(said) == said


async def test_the_account_is_of_the_last_snapshot(tmp_path: Path) -> None:
    """With its head, so that the primary knows whether it may be compared."""
    async with node(tmp_path) as n, n.session() as channel:
        answer = await asked(channel, Account(), Accounted)
        assert (answer.head.number, answer.entries, len(answer.sums)) == (1, 2, BUCKETS)
        assert sum(any(part) for part in answer.sums) == 3  # the root, the file, and the file's blocks


async def test_a_client_can_hurry_a_scrub(tmp_path: Path) -> None:
    """And is told how it stands."""
    async with node(tmp_path) as n, n.session() as channel:
        await asked(channel, Direct("start"), Directed)
        answer = await asked(channel, Direct("status"), Directed)
        assert n.scrub.status.requested == 1 and b'"requested":1' in answer.status


async def test_sessions_run_side_by_side_and_mend_in_turn(tmp_path: Path) -> None:
    """A gate or a canary asks in a session of its own, and ends none of the rounds; one at a time has the mender."""
    async with node(tmp_path) as n, n.session() as first, n.session() as second:
        found = await n.case(first, (0,))
        await asked(second, Inquire(""), Cases)
        for channel in (first, second):
            await channel.send(Said(found.id, checksum(b"bad bytes"), [Sight.MATCHES], 1))
            await channel.send(Blocks(FRAMES[0]))
        settled = [await channel.receive() for channel in (first, second)]
        assert all(isinstance(one, Settled) and one.found.state is State.REPAIRED for one in settled)
        assert n.mender.calls.count("testimony") == 1


async def test_a_session_in_which_nothing_is_opened_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that is greeted and then only shows that it lives holds its place for a bounded time."""
    monkeypatch.setattr(channel_module, "GREETING_S", 0.05)
    async with node(tmp_path) as n:
        idle = await n.fra1.dial()
        await idle.over.wait()
        await wait_for(lambda: any("asked for nothing" in str(error) for error in n.fra1.errors))


async def test_a_client_without_a_right_is_refused(tmp_path: Path) -> None:
    """As for reading and writing; and a dataset that is not there is unknown."""
    async with node(tmp_path) as n:
        channel = await n.fra1.dial()
        await channel.send(OpenTend("other"))
        answer = await channel.receive()
        assert isinstance(answer, Refuse) and answer.code == "unknown"
        await channel.close()
