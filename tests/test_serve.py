"""The server's side of a reading session: what it answers, and what it refuses to hold."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import pytest

from kit_link import wait_for
from kit_restore import WatchedDisk, Writer, damage_block, served_pair, store_files
from replicad.db import listing
from replicad.db.database import PAGE_BYTES
from replicad.link.channel import Channel
from replicad.link.messages import (
    MAX_CREDIT_BYTES,
    MAX_OFFER,
    Blocks,
    Bye,
    Credit,
    Fetch,
    Listing,
    ListSnapshots,
    Lost,
    Message,
    Opened,
    OpenRead,
    Read,
    Refuse,
    Snapshots,
)
from replicad.model.block import block_id
from replicad.model.entry import decode_ops
from replicad.model.errors import BookDamagedError, LinkError, PeerError, ReplicadError, UsageError
from replicad.store.format import split_frames
from replicad.work.archive import catalog_path
from replicad.work.serve import ANSWERED, LINES_PER_MESSAGE, MAX_FETCHES

DATA = os.urandom(65536)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """5,000 directories and three files."""
    directory = tmp_path_factory.mktemp("serve") / "store"
    with Writer(directory) as writer:
        writer.put(b"")
        for number in range(5000):
            writer.put(b"%04d" % number)
        for number in range(3):
            writer.put(b"file-%d" % number, DATA[number:])
        writer.seal(7)
    return directory


async def opened(channel: Channel) -> Opened:
    """Open the session."""
    await channel.send(OpenRead("www"))
    answer = await channel.receive()
    assert isinstance(answer, Opened)
    return answer


async def received(channel: Channel, kind: type[Message]) -> Message:
    """The next message, which has to be of that kind."""
    message = await asyncio.wait_for(channel.receive(), 5)
    assert isinstance(message, kind), message  # type: ignore[arg-type]
    return message


async def answers(channel: Channel, count: int) -> list[bytes]:
    """The ids of the next blocks that come, and of those that are said to be lost."""
    got: list[bytes] = []
    while len(got) < count:
        message = await received(channel, object)  # type: ignore[arg-type]
        if isinstance(message, Lost):
            got.append(b"lost " + message.id)
        else:
            assert isinstance(message, Blocks)
            got.extend(frame.id for frame in split_frames(message.frames))
    return got


async def received_until_quiet(channel: Channel, got: list[Message]) -> None:
    """Everything that comes until nothing has come for a while."""
    try:
        while True:
            got.append(await asyncio.wait_for(channel.receive(), 0.08))
    except TimeoutError:
        pass


async def test_the_answer_to_open_names_the_last_snapshot(store: Path) -> None:
    """And grants no credit, because a reader sends nothing that needs any."""
    async with served_pair(store) as (pair, _):
        answer = await opened(pair.client)
        assert answer.head.number == 7 and len(answer.head.digest) == 32 and answer.credit == 0


async def test_a_store_without_snapshots_opens_and_lists_none(tmp_path: Path) -> None:
    """A first pass may be under way."""
    Writer(tmp_path / "store").archive.close()
    async with served_pair(tmp_path / "store") as (pair, _):
        assert (await opened(pair.client)).head.number == 0
        await pair.client.send(ListSnapshots())
        assert await received(pair.client, Snapshots) == Snapshots([], False)


async def test_a_long_history_is_listed_in_several_messages(tmp_path: Path) -> None:
    """Each stays below the limit for messages without frames."""
    with Writer(tmp_path / "store") as writer:
        writer.put(b"")
        for number in range(1, LINES_PER_MESSAGE + 3):
            writer.seal(number)
    async with served_pair(tmp_path / "store") as (pair, _):
        await opened(pair.client)
        await pair.client.send(ListSnapshots())
        first, last = await received(pair.client, Snapshots), await received(pair.client, Snapshots)
        assert isinstance(first, Snapshots) and isinstance(last, Snapshots)
        assert [first.more, last.more] == [True, False]
        assert [line.number for line in first.lines + last.lines] == list(range(1, LINES_PER_MESSAGE + 3))


async def test_a_listing_waits_for_credit(store: Path) -> None:
    """Each batch may overdraw the credit once; the next one comes when more is granted, and the end needs none."""
    async with served_pair(store) as (pair, _):
        await opened(pair.client)
        await pair.client.send(Read(7, [], 1))
        entries = batches = 0
        ended = False
        while not ended:
            await pair.client.send(ListSnapshots())  # whatever may be sent is sent before its answer, or follows soon
            await received_until_quiet(pair.client, got := [])
            listings = [message for message in got if isinstance(message, Listing)]
            ended = not listings[-1].more
            filled = [decode_ops(message.ops) for message in listings if message.more]
            assert len(filled) <= 1
            entries += sum(map(len, filled))
            batches += len(filled)
            if filled and not ended:
                await pair.client.send(Credit(len(listings[0].ops)))
        assert entries == 5004 and batches > 3


async def test_blocks_come_in_order_with_lost_ones_in_their_place(tmp_path: Path) -> None:
    """Fetches that overlap are answered one after the other."""
    data = [os.urandom(1000) for _ in range(4)]
    names = store_files(tmp_path / "store", data)
    damage_block(tmp_path / "store", names[1])
    async with served_pair(tmp_path / "store") as (pair, _):
        await opened(pair.client)
        await pair.client.send(Fetch(names[0] + names[1] + names[2]))
        await pair.client.send(Fetch(names[3] + bytes(32)))
        assert await answers(pair.client, 5) == [
            names[0],
            b"lost " + names[1],
            names[2],
            names[3],
            b"lost " + bytes(32),
        ]


async def test_answers_keep_the_order_asked_when_a_later_one_is_read_first(tmp_path: Path) -> None:
    """Fetches are read side by side."""
    data = [os.urandom(1000), os.urandom(2000), os.urandom(3000)]
    names = store_files(tmp_path / "store", data)
    catalog = listing.Listing(catalog_path(tmp_path / "store"))
    first = catalog.places(names)[names[0]].offset
    catalog.close()
    other_read = threading.Event()

    def hold(offset: int) -> None:
        if offset != first:
            other_read.set()
        assert other_read.wait(20)

    async with served_pair(tmp_path / "store", WatchedDisk(hold)) as (pair, _):
        await opened(pair.client)
        for name in names:
            await pair.client.send(Fetch(name))
        assert await answers(pair.client, len(names)) == names


async def test_fetches_of_many_runs_are_all_answered(store: Path) -> None:
    """In the order asked, also where those that wait for the line hold all fetchers."""
    names = [block_id(DATA), block_id(DATA[1:]), block_id(DATA[2:])] * 50
    async with served_pair(store) as (pair, _):
        await opened(pair.client)
        for _ in range(3 * ANSWERED):
            await pair.client.send(Fetch(b"".join(names)))
        assert await answers(pair.client, 3 * ANSWERED * len(names)) == names * 3 * ANSWERED


async def test_a_client_that_takes_nothing_makes_the_server_hold_next_to_nothing(store: Path) -> None:
    """It may ask for gigabytes: reading the disk stops when the line is full, and goes on when it takes again."""
    names = block_id(DATA) * MAX_OFFER
    asked = MAX_FETCHES * 3
    async with served_pair(store) as (pair, _):
        await opened(pair.client)
        pair.server_stream.other.pause_reading()  # type: ignore[union-attr]

        async def ask() -> None:
            for _ in range(asked):
                await pair.client.send(Fetch(names))

        asking = asyncio.create_task(ask())
        before = -1
        while before != pair.server.sent_bytes:  # until nothing moves any more
            before = pair.server.sent_bytes
            for _ in range(20):
                await asyncio.sleep(0.002)
        assert pair.server.sent_bytes < 4 * 1024**2
        assert not asking.done(), "the server has read more than it may hold"
        pair.server_stream.other.resume_reading()  # type: ignore[union-attr]
        await received(pair.client, Blocks)
        await wait_for(lambda: pair.server.sent_bytes > before)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)


@pytest.mark.parametrize(
    ("messages", "code"),
    [
        ([Read(8, [], 1000)], "unknown"),
        ([Read(7, [b"../x"], 1000)], "unknown"),
        ([Read(7, [], 1), Read(7, [], 1)], "invalid"),
        ([Credit(MAX_CREDIT_BYTES), Credit(1)], "invalid"),
    ],
)
async def test_what_cannot_be_answered_is_refused_in_words(store: Path, messages: list[Message], code: str) -> None:
    """And ends the session with the error on our side as well."""
    async with served_pair(store) as (pair, serving):
        await opened(pair.client)
        for message in messages:
            await pair.client.send(message)
        answer = await pair.client.receive()
        while not isinstance(answer, Refuse):
            answer = await pair.client.receive()
        assert answer.code == code and answer.text
        with pytest.raises((UsageError, PeerError)):
            await serving


async def test_a_damaged_catalog_is_refused_as_damaged(tmp_path: Path) -> None:
    """The client is told what it is."""
    with Writer(tmp_path / "store") as writer:
        writer.put(b"")
        writer.seal()
    book = tmp_path / "store" / "catalog.db"
    content = bytearray(book.read_bytes())
    content[PAGE_BYTES:] = os.urandom(len(content) - PAGE_BYTES)
    book.write_bytes(content)
    async with served_pair(tmp_path / "store") as (pair, serving):
        await pair.client.send(OpenRead("www"))
        answer = await pair.client.receive()
        if isinstance(answer, Opened):  # the damage is on a page that opening does not need
            await pair.client.send(Read(1, [], 1000))
            answer = await pair.client.receive()
        assert isinstance(answer, Refuse) and answer.code == "damaged"
        with pytest.raises(BookDamagedError):
            await serving


async def test_a_session_ends_with_bye_and_closes_its_files(store: Path) -> None:
    """In an orderly way, also in the middle of a listing and of a fetch."""
    before = len(os.listdir("/proc/self/fd"))
    async with served_pair(store) as (pair, serving):
        await opened(pair.client)
        await pair.client.send(Read(7, [], 1))
        await pair.client.send(Fetch(block_id(DATA) * MAX_OFFER))
        await received(pair.client, object)  # type: ignore[arg-type]
        await pair.client.send(Bye("enough"))
        await asyncio.wait_for(serving, 5)
    assert len(os.listdir("/proc/self/fd")) <= before


async def test_a_lost_link_ends_the_session_with_link_error(store: Path) -> None:
    """Whatever was under way."""
    async with served_pair(store) as (pair, serving):
        await opened(pair.client)
        await pair.client.send(Fetch(block_id(DATA) * MAX_OFFER))
        pair.client_stream.cut()
        with pytest.raises(LinkError):
            await asyncio.wait_for(serving, 5)


async def test_a_store_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """As unknown."""
    async with served_pair(tmp_path / "nothing") as (pair, serving):
        await pair.client.send(OpenRead("www"))
        answer = await received(pair.client, Refuse)
        assert isinstance(answer, Refuse) and answer.code == "unknown"
        with pytest.raises(ReplicadError):
            await serving
