"""Readers: one conformance suite, run against the local reader and the remote one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import ClassVar

import pytest
import pytest_asyncio

from kit_restore import WatchedDisk, Writer, damage_block, greeted_pair, meta, reading_pair, served_pair, store_files
from replicad.config import ReplicaConfig
from replicad.link import ssh
from replicad.link.channel import Channel
from replicad.link.messages import MAX_OFFER, Blocks, Bye, Listing, Lost, Message, Opened, Refuse, Snapshots
from replicad.model.block import CHECKSUM_BYTES, block_id
from replicad.model.entry import Kind, Map, Op, Put, encode_ops
from replicad.model.errors import (
    LinkError,
    PeerError,
    RefusedError,
    ReplicadError,
    StoreDamagedError,
    UsageError,
)
from replicad.model.snapshot import Head
from replicad.store.format import Frame, FrameError, FrameType, encode_frame, split_frames, split_frames_untrusted
from replicad.system.compress import compress
from replicad.work import read_remote
from replicad.work.origin import reading_replica
from replicad.work.read_local import FETCHERS, LocalReader
from replicad.work.read_remote import LISTING_CREDIT_BYTES, RemoteReader
from replicad.work.reader import Reader, open_block, split_ids

BLOCKS = [os.urandom(size) for size in (1, 100, 65536, 65536, 30_000)]
IDS = [block_id(data) for data in BLOCKS]
LARGE = [os.urandom(4096) for _ in range(300)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two snapshots: a small tree, and the same with a file of many blocks and a few more entries."""
    directory = tmp_path_factory.mktemp("reader") / "store"
    with Writer(directory) as writer:
        writer.put(b"")
        writer.put(b"etc")
        for number, data in enumerate(BLOCKS):
            writer.put(b"etc/%d" % number, data)
        writer.seal(3)
        writer.put(b"many", b"".join(LARGE), block_bytes=4096)
        writer.put(b"var")
        for number in range(1500):
            writer.put(b"var/%04d" % number)
        writer.seal(5, complete=False)
    return directory


@pytest_asyncio.fixture(params=["local", "remote"])
async def reader(request: pytest.FixtureRequest, store: Path) -> AsyncIterator[Reader]:
    """Each implementation in turn."""
    if request.param == "local":
        local = await LocalReader.open(store, "store")
        yield local
        await local.close()
    else:
        async with reading_pair(store) as (remote, _, _):
            yield remote


async def operations(reader: Reader, snapshot: int, *globs: bytes) -> list[Op]:
    """The whole record."""
    return [op async for ops in reader.record(snapshot, globs) for op in ops]


async def fetched(reader: Reader, ids: list[bytes]) -> list[Frame | Lost]:
    """All answers."""
    return [answer async for run in reader.fetch(b"".join(ids)) for answer in run]


async def test_snapshots_are_listed_in_ascending_order(reader: Reader) -> None:
    """All of them, with what the commit said."""
    lines = await reader.snapshots()
    assert [(line.number, line.complete) for line in lines] == [(3, True), (5, False)]
    assert lines[0].entries == 7 and reader.name


async def test_a_record_tells_every_entry_once_parents_first(reader: Reader) -> None:
    """Paths come sorted, and a file's blocks stand in its Put or in the Maps right behind it."""
    ops = await operations(reader, 5)
    paths = [op.path for op in ops if isinstance(op, Put)]
    assert len(paths) == len(set(paths)) == 1509
    assert paths[:3] == [b"", b"etc", b"etc/0"] and paths.index(b"var") < paths.index(b"var/0000")
    at = next(i for i, op in enumerate(ops) if isinstance(op, Put) and op.path == b"many")
    maps = [op for op in ops[at + 1 : at + 3] if isinstance(op, Map)]
    assert b"".join(op.ids for op in maps) == b"".join(map(block_id, LARGE))


async def test_an_older_snapshot_is_what_it_was(reader: Reader) -> None:
    """Later entries are not in it."""
    assert len(await operations(reader, 3)) == 7


async def test_globs_restrict_the_record_to_matches_and_their_parents(reader: Reader) -> None:
    """One file, its directory and the root."""
    found = [op.path for op in await operations(reader, 5, b"etc/2") if isinstance(op, Put)]
    assert found == [b"", b"etc", b"etc/2"]


async def test_an_unknown_snapshot_is_a_usage_error(reader: Reader) -> None:
    """It is said before anything is given."""
    with pytest.raises(UsageError, match="no snapshot 4"):
        await operations(reader, 4)


async def test_an_invalid_pattern_is_a_usage_error(reader: Reader) -> None:
    """It names the pattern."""
    with pytest.raises(UsageError, match=r"\.\./x"):
        await operations(reader, 3, b"../x")


async def test_blocks_come_in_the_order_asked_and_prove_to_be_themselves(reader: Reader) -> None:
    """Also when one is asked for twice."""
    wanted = [3, 0, 4, 4, 1, 2]
    answers = await fetched(reader, [IDS[i] for i in wanted])
    assert [open_block(answer, IDS[i], len(BLOCKS[i])) for i, answer in zip(wanted, answers, strict=True)] == [
        BLOCKS[i] for i in wanted
    ]


async def test_a_block_that_is_not_there_is_lost_and_the_others_come(reader: Reader) -> None:
    """In its place, with its id and a reason."""
    answers = await fetched(reader, [IDS[0], bytes(32), IDS[1]])
    assert [type(answer) for answer in answers] == [Frame, Lost, Frame]
    assert isinstance(answers[1], Lost) and answers[1].id == bytes(32) and answers[1].reason


async def test_the_largest_fetch_is_answered_in_bounded_runs(reader: Reader) -> None:
    """MAX_OFFER ids of 64 KiB blocks do not come as one list."""
    names = [IDS[2]] * MAX_OFFER
    runs = 0
    count = 0
    async for run in reader.fetch(b"".join(names)):
        runs, count = runs + 1, count + len(run)
        assert len(run) <= 64
    assert count == MAX_OFFER and runs >= MAX_OFFER // 64


async def test_many_fetches_may_be_under_way_beside_a_record(reader: Reader) -> None:
    """Each gets its own answers."""
    batches = [[block_id(data) for data in LARGE[at : at + 30]] for at in range(0, 300, 30)]
    results = await asyncio.gather(operations(reader, 5), *(fetched(reader, names) for names in batches))
    for names, answers in zip(batches, results[1:], strict=True):
        assert [answer.id for answer in answers] == names  # type: ignore[union-attr]


async def test_a_fetch_that_is_left_early_does_not_disturb_the_next(reader: Reader) -> None:
    """Its remaining answers are thrown away."""
    answers = reader.fetch(b"".join([IDS[2]] * 500))
    await anext(answers)
    await answers.aclose()  # type: ignore[attr-defined]
    assert [answer.id for answer in await fetched(reader, IDS)] == IDS


async def test_a_closed_reader_says_so_and_may_be_closed_again(reader: Reader) -> None:
    """Nothing hangs."""
    await reader.close()
    await reader.close()
    with pytest.raises(LinkError, match="closed"):
        await fetched(reader, IDS)
    with pytest.raises(LinkError, match="closed"):
        await operations(reader, 3)
    with pytest.raises(LinkError, match="closed"):
        await reader.snapshots()


@pytest.mark.parametrize("kind", ["local", "remote"])
async def test_a_damaged_block_is_lost_and_nothing_else(kind: str, tmp_path: Path) -> None:
    """A flipped bit on the medium becomes a value that says where it was seen."""
    store_files(tmp_path / "store", BLOCKS)
    damage_block(tmp_path / "store", IDS[2])
    if kind == "local":
        local = await LocalReader.open(tmp_path / "store")
        answers = await fetched(local, IDS)
        await local.close()
    else:
        async with reading_pair(tmp_path / "store") as (remote, _, _):
            answers = await fetched(remote, IDS)
    assert [isinstance(answer, Lost) for answer in answers] == [False, False, True, False, False]
    assert isinstance(answers[2], Lost) and "segment" in answers[2].reason


def test_only_the_block_that_was_wanted_passes_the_gate() -> None:
    """Another block, another size and a wrong id are all lost, never bytes."""
    data = b"x" * 1000
    [right] = split_frames(encode_frame(FrameType.BLOCK, data, block_id(data)))
    [forged] = split_frames(encode_frame(FrameType.BLOCK, b"y" * 1000, block_id(data)))
    [record] = split_frames(encode_frame(FrameType.RECORD, data, block_id(data)))
    assert open_block(right, block_id(data), 1000) == data
    for answer, wanted, size in (
        (right, bytes(32), 1000),
        (right, block_id(data), 999),
        (forged, block_id(data), 1000),
    ):
        assert isinstance(open_block(answer, wanted, size), Lost)
    assert isinstance(open_block(record, block_id(data), 1000), Lost)
    assert split_ids(b"a" * 32 + b"b" * 32) == [b"a" * 32, b"b" * 32]


@pytest.mark.parametrize("data", [bytes(range(40)), b"text " * 20], ids=["raw", "compressed"])
def test_no_flipped_bit_of_a_frame_passes_the_gate(data: bytes) -> None:
    """Nobody verifies the checksum of a frame on its way to the gate: its bytes come as they were, or not at all."""
    codec, stored = compress(data, 3)
    raw = encode_frame(FrameType.BLOCK, data, block_id(data), stored, codec)
    passed = 0
    for position in range(len(raw) * 8):
        bad = bytearray(raw)
        bad[position >> 3] ^= 1 << (position & 7)
        try:
            [frame] = split_frames_untrusted(bytes(bad))
        except (FrameError, ValueError):
            continue
        opened = open_block(frame, block_id(data), len(data))
        assert isinstance(opened, Lost) or opened == data
        passed += opened == data
    assert CHECKSUM_BYTES * 8 <= passed < CHECKSUM_BYTES * 8 + 16  # zstd's header has bits of no meaning


async def test_as_many_fetches_are_read_at_a_time_as_there_are_fetchers(store: Path) -> None:
    """The disk works on one while another is checked; what more are asked for wait."""
    reading: list[int] = []
    meeting = threading.Barrier(FETCHERS, timeout=20)

    def met(offset: int) -> None:
        reading.append(offset)
        assert len(reading) <= FETCHERS
        meeting.wait()
        reading.remove(offset)
        meeting.wait()

    local = await LocalReader.open(store, disk=WatchedDisk(met))
    answers = await asyncio.gather(*(fetched(local, [IDS[0]]) for _ in range(2 * FETCHERS)))
    await local.close()
    assert [answer.id for [answer] in answers] == [IDS[0]] * 2 * FETCHERS


# what a hostile or broken replica may say


async def told(*messages: Message) -> ReplicadError:
    """What a remote reader that asked for one block, for the snapshots and for a record makes of these answers."""
    async with greeted_pair() as pair:

        async def answer() -> None:
            await pair.server.receive()
            await pair.server.send(Opened(Head(), 0))
            for _ in range(3):
                await pair.server.receive()
            for message in messages:
                await pair.server.send(message)

        answering = asyncio.create_task(answer())
        remote = await RemoteReader.open(pair.client, "www")
        asking = [fetched(remote, [IDS[0]]), remote.snapshots(), operations(remote, 1)]
        results = await asyncio.wait_for(asyncio.gather(*asking, return_exceptions=True), 5)
        await answering
        await remote.close()
    errors = [result for result in results if isinstance(result, ReplicadError)]
    assert errors, results
    return errors[0]


FRAME = encode_frame(FrameType.BLOCK, BLOCKS[0], IDS[0])
OTHER = encode_frame(FrameType.BLOCK, BLOCKS[1], IDS[1])


@pytest.mark.parametrize(
    "messages",
    [
        (Blocks(OTHER),),
        (Blocks(FRAME + FRAME),),
        (Blocks(encode_frame(FrameType.RECORD, BLOCKS[0], IDS[0])),),
        (Blocks(FRAME[:-1]),),
        (Blocks(b"junk" * 100),),
        (Lost(IDS[1], "?"),),
        (Listing(b"junk", False),),
        (Listing(encode_ops([Put(b"../x", Kind.DIRECTORY, meta())]), False),),
        (Listing(encode_ops([]), False), Listing(encode_ops([]), False)),
        (Listing(encode_ops([]), True),),
        (Listing(b"", True),),
        (Snapshots([], False), Snapshots([], False), Snapshots([], False)),
    ],
)
async def test_an_answer_that_was_not_asked_for_is_a_protocol_error(messages: tuple[Message, ...]) -> None:
    """Whoever waits is told; nobody hangs, and nothing of it is passed on."""
    assert isinstance(await told(*messages), PeerError)


async def test_a_replica_that_sends_more_than_it_has_credit_for_is_a_protocol_error() -> None:
    """Else it could make a caller that is slow hold any amount."""
    large = encode_ops([Put(b"a", Kind.DIRECTORY, meta(0o755, xattrs=((b"user.a", bytes(60_000)),)))])
    enough = LISTING_CREDIT_BYTES // len(large) + 2
    async with greeted_pair() as pair:

        async def answer() -> None:
            await pair.server.receive()
            await pair.server.send(Opened(Head(), 0))
            await pair.server.receive()
            for _ in range(enough):
                await pair.server.send(Listing(large, True))

        answering = asyncio.create_task(answer())
        remote = await RemoteReader.open(pair.client, "www")
        record = remote.record(1)
        assert await anext(record)
        with pytest.raises(PeerError, match="credit"):
            await remote.snapshots()
        with pytest.raises(PeerError, match="credit"):
            await anext(record)
        await answering
        await remote.close()


async def test_a_listing_comes_whole_with_the_least_credit(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both sides count alike: every answer overdraws it once."""
    monkeypatch.setattr(read_remote, "LISTING_CREDIT_BYTES", 1)
    async with reading_pair(store) as (remote, _, _):
        assert len(await operations(remote, 5)) > 1500


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (Refuse("unknown", "no such thing"), UsageError),
        (Refuse("damaged", "catalog"), StoreDamagedError),
        (Refuse("stopping", "bye"), LinkError),
        (Refuse("invalid", "you"), RefusedError),
        (Bye("going"), LinkError),
    ],
)
async def test_a_refusal_becomes_the_error_that_says_what_to_do(message: Message, error: type[ReplicadError]) -> None:
    """By its code: usage, damage, or try again."""
    assert type(await told(message)) is error


async def test_a_lost_link_fails_everything_that_waits(store: Path) -> None:
    """With LinkError, and so does whatever is asked later."""
    async with reading_pair(store) as (remote, pair, serving):
        answers = remote.fetch(b"".join([IDS[2]] * MAX_OFFER))
        await anext(answers)
        pair.client_stream.cut()
        with pytest.raises(LinkError):
            async for _ in answers:
                pass
        with pytest.raises(LinkError):
            await remote.snapshots()
        with pytest.raises(LinkError):
            await serving


async def test_a_replica_that_lives_and_opens_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its store hangs, perhaps: a drill that waited for it would keep all others of the node waiting."""
    monkeypatch.setattr("replicad.link.channel.ANSWER_S", 0.02)
    async with greeted_pair() as pair:
        with pytest.raises(LinkError, match=r"fra1.*did not answer"):
            await asyncio.wait_for(RemoteReader.open(pair.client, "www"), 10)
        assert pair.client.over.is_set()


async def test_a_replica_without_the_dataset_is_a_usage_error() -> None:
    """Refused when the session opens."""
    async with greeted_pair() as pair:

        async def refuse() -> None:
            await pair.server.receive()
            await pair.server.send(Refuse("unknown", "there is no dataset here"))

        refusing = asyncio.create_task(refuse())
        with pytest.raises(UsageError, match="no dataset"):
            await RemoteReader.open(pair.client, "nothing")
        await refusing


# where a reader comes from


class Dialled:
    """The way to a replica, which is a store of this test, or an error where it leads nowhere."""

    stores: ClassVar[dict[str, Path | ReplicadError]] = {}

    def __init__(self, replica: ReplicaConfig, *_: object) -> None:
        self._store, self._open = self.stores[replica.name], contextlib.AsyncExitStack()

    async def dial(self) -> Channel:
        if isinstance(self._store, ReplicadError):
            raise self._store
        pair, _ = await self._open.enter_async_context(served_pair(self._store))
        return pair.client

    async def close(self) -> None:
        await self._open.aclose()


@pytest.mark.parametrize(
    "error", [LinkError("cut"), PeerError("rubbish"), RefusedError("no"), StoreDamagedError("damaged"), UsageError("?")]
)
async def test_a_replica_that_cannot_give_the_dataset_is_passed_over(
    store: Path, monkeypatch: pytest.MonkeyPatch, error: ReplicadError
) -> None:
    """Whatever is wrong with it: the next one may have all of it, and that is what a restore is about."""
    monkeypatch.setattr(ssh, "Dialler", Dialled)
    replicas, told = [ReplicaConfig(name, "", "") for name in ("bad", "good")], list[ReplicadError]()
    monkeypatch.setattr(Dialled, "stores", {"bad": error, "good": store})
    async with reading_replica(replicas, Path("key"), "www", told.append) as reader:
        assert len(await reader.snapshots()) == 2
    assert told == [error]
    monkeypatch.setattr(Dialled, "stores", {"bad": error, "good": error})
    with pytest.raises(type(error)):
        async with reading_replica(replicas, Path("key"), "www", told.append):
            raise AssertionError("there is none")
