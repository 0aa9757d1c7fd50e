"""Channel: order, back-pressure, keep-alive, endings and the handshake, over the pair in memory and a unix socket."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kit_link import PAIR_BUFFER_BYTES, Node, Pair, open_writing, wait_for
from replicad.config import ClientConfig
from replicad.link import channel as channel_module
from replicad.link.bandwidth import Bandwidth
from replicad.link.channel import QUEUE_BYTES, Channel, admit, asked, greet, refuse
from replicad.link.frames import pack
from replicad.link.messages import (
    PROTOCOL,
    Blocks,
    Bye,
    Credit,
    Hello,
    Offer,
    Opened,
    OpenRead,
    OpenWrite,
    Ping,
    Pong,
    Refuse,
    Welcome,
)
from replicad.link.session import Role, State
from replicad.link.unix import PREFACE_BYTES, preface, serve_unix
from replicad.model.errors import LinkError, LockedError, PeerError, RefusedError
from replicad.model.snapshot import Head

MEBIBYTE = bytes(1024 * 1024)
SHORT_S = 0.06
"""A keep-alive that lets a test see three of them pass."""


async def opened(pair: Pair) -> Pair:
    """Bring a pair to the state WRITING."""
    welcome, _ = await asyncio.gather(greet(pair.client, "replicad test"), admit(pair.server, "replicad test", "fra1"))
    assert welcome == Welcome(PROTOCOL, "replicad test", "fra1", "ams1")
    await pair.client.send(OpenWrite("www"))
    assert await pair.server.receive() == OpenWrite("www")
    await pair.server.send(Opened(Head(), 1024**2))
    await pair.client.receive()
    return pair


def heard_more(channel: Channel, than_bytes: int) -> Callable[[], bool]:
    return lambda: channel.received_bytes > than_bytes


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    pair = await opened(Pair())
    yield pair
    await pair.close()


async def test_messages_arrive_once_and_in_order(pair: Pair) -> None:
    """Both directions at the same time, small and large messages mixed."""
    there = [Blocks(bytes([i % 251]) * (i * 977 % 300_000)) for i in range(100)]
    back = [Credit(i + 1) for i in range(500)]

    async def send(channel: Channel, messages: list[Blocks] | list[Credit]) -> None:
        for message in messages:
            await channel.send(message)

    async def receive(channel: Channel, count: int) -> list[object]:
        return [await channel.receive() for _ in range(count)]

    _, _, got_there, got_back = await asyncio.gather(
        send(pair.client, there), send(pair.server, back), receive(pair.server, 100), receive(pair.client, 500)
    )
    assert got_there == there and got_back == back


async def test_bytes_are_counted_as_they_are_on_the_wire(pair: Pair) -> None:
    """Both ends count the same bytes, lengths included."""
    before = pair.client.sent_bytes
    await pair.client.send(Offer(bytes(32)))
    await pair.server.receive()
    assert pair.client.sent_bytes - before == len(pack(Offer(bytes(32))))
    assert pair.server.received_bytes == pair.client.sent_bytes


async def test_a_receiver_that_does_not_take_stops_the_sender(pair: Pair) -> None:
    """What lies between the two is bounded: the queue, the stream's buffer and one message."""
    sent = 0

    async def flood() -> None:
        nonlocal sent
        while True:
            await pair.client.send(Blocks(MEBIBYTE))
            sent += 1

    flooding = asyncio.create_task(flood())
    await wait_for(lambda: not pair.client._writable.is_set() and not pair.server._reading)
    stopped_at = sent
    for _ in range(100):
        await asyncio.sleep(0)
    assert sent == stopped_at
    assert sent * len(MEBIBYTE) <= QUEUE_BYTES + PAIR_BUFFER_BYTES + 2 * len(MEBIBYTE)
    for _ in range(stopped_at):
        await pair.server.receive()
    await wait_for(lambda: sent > stopped_at)
    flooding.cancel()


async def test_tiny_messages_are_bounded_as_well(pair: Pair) -> None:
    """A flood of messages of a few bytes stops reading long before its objects fill the memory."""
    for _ in range(20_000):
        await asyncio.wait_for(pair.server.send(Credit(1)), 5)
    await wait_for(lambda: not pair.client._reading)
    assert len(pair.client._queue) * channel_module.MESSAGE_COST_BYTES <= QUEUE_BYTES + 64 * 1024
    for _ in range(20_000):
        assert await pair.client.receive() == Credit(1)


async def test_pings_are_answered_while_the_room_above_is_busy(pair: Pair) -> None:
    """Nobody calls receive, and still the Pong comes back; neither is seen by the room above."""
    pair.server_stream.write(pack(Ping(77)))
    before = pair.server.received_bytes
    await wait_for(lambda: pair.server.received_bytes == before + len(pack(Pong(77))))
    await pair.client.send(Offer(bytes(32)))
    assert await pair.server.receive() == Offer(bytes(32))


async def test_an_idle_session_lives_on() -> None:
    """Silence of the rooms above is no silence of the link: the keep-alive speaks for them."""
    pair = await opened(Pair(keepalive_s=SHORT_S))
    before = pair.server.received_bytes
    await wait_for(lambda: pair.server.received_bytes >= before + 6 * len(pack(Ping(0))))
    assert pair.client.error is None and pair.server.error is None
    await pair.close()


async def test_a_half_open_connection_is_noticed_by_both_sides() -> None:
    """After three keep-alives of silence receive and a waiting send raise LinkError, with no word from the stream."""
    pair = await opened(Pair(keepalive_s=SHORT_S))
    pair.black_hole()
    pair.client.pause_writing()
    waiting = asyncio.create_task(pair.client.send(Blocks(MEBIBYTE)))
    with pytest.raises(LinkError, match="silent"):
        await pair.server.receive()
    with pytest.raises(LinkError, match="silent"):
        await waiting
    with pytest.raises(LinkError, match=r"ams1.*silent"):
        await pair.server.receive()


async def test_a_full_queue_of_ours_does_not_make_the_peer_dead() -> None:
    """A side that has stopped reading judges no silence, and its peer hears from it although it reads nothing."""
    pair = await opened(Pair(keepalive_s=SHORT_S))

    async def flood() -> None:
        while True:
            await pair.client.send(Blocks(MEBIBYTE))

    flooding = asyncio.create_task(flood())
    await wait_for(lambda: not pair.server._reading)
    heard = pair.client.received_bytes
    await wait_for(lambda: pair.client.received_bytes >= heard + 12 * len(pack(Pong(0))))
    assert pair.client.error is None and pair.server.error is None
    for _ in range(20):
        assert isinstance(await pair.server.receive(), Blocks)
    flooding.cancel()
    await pair.close()


async def test_a_side_that_is_only_sent_to_speaks_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data that streams one way is answered by signs of life, so that no Pong has to pass behind the data."""
    pair = await opened(Pair(keepalive_s=SHORT_S, server_keepalive_s=1000.0))
    pair.server._beat_s = 0.0
    monkeypatch.setattr(pair.client, "_say", lambda message: None)
    for _ in range(5):
        before = pair.client.received_bytes
        await pair.client.send(Blocks(b"x"))
        await wait_for(heard_more(pair.client, before))
    await pair.close()


async def test_a_process_that_stood_still_does_not_blame_its_peer() -> None:
    """After a suspension the silence that nobody could hear is not counted."""
    pair = await opened(Pair(keepalive_s=SHORT_S))
    for channel in (pair.client, pair.server):
        channel._heard_s -= 1000
        channel._ticked_s -= 1000
    heard = pair.client.received_bytes
    await wait_for(lambda: pair.client.received_bytes >= heard + 3 * len(pack(Ping(0))))
    assert pair.client.error is None and pair.server.error is None
    await pair.close()


async def test_a_cut_connection_ends_both_sides_after_what_had_arrived() -> None:
    """Messages that came before the end are still given; then LinkError, again and again."""
    pair = await opened(Pair())
    await pair.client.send(Offer(bytes(32)))
    await wait_for(lambda: pair.server._queue)
    pair.client_stream.cut()
    assert await pair.server.receive() == Offer(bytes(32))
    for _ in range(2):
        with pytest.raises(LinkError, match="connection reset"):
            await pair.server.receive()
    with pytest.raises(LinkError, match="connection reset"):
        await pair.client.send(Offer(bytes(32)))
    assert pair.client.over.is_set() and pair.server.over.is_set()


async def test_an_orderly_end_is_a_bye_with_a_reason(pair: Pair) -> None:
    """The peer gets everything that was sent, then the Bye, then LinkError."""
    for _ in range(3):
        await pair.client.send(Blocks(MEBIBYTE))
    closing = asyncio.create_task(pair.client.close("pass done"))
    for _ in range(3):
        assert await pair.server.receive() == Blocks(MEBIBYTE)
    assert await pair.server.receive() == Bye("pass done")
    with pytest.raises(LinkError, match="pass done"):
        await pair.server.receive()
    with pytest.raises(LinkError, match="pass done"):
        await pair.server.send(Credit(1))
    await closing
    with pytest.raises(LinkError, match="this side closed"):
        await pair.client.receive()
    await pair.client.close()


async def test_a_close_that_cannot_flush_ends_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that takes nothing cannot keep a close waiting."""
    monkeypatch.setattr(channel_module, "CLOSE_S", 0.05)
    pair = await opened(Pair())
    pair.black_hole()
    await asyncio.wait_for(pair.client.close(), 5)
    await asyncio.wait_for(pair.server.close(), 5)


async def test_a_peer_that_breaks_the_protocol_is_told_and_cut_off(pair: Pair) -> None:
    """Bad bytes end in PeerError here and in a refusal with the reason there."""
    pair.client_stream.write(b"GET / HTTP/1.1\r\n\r\n")
    with pytest.raises(PeerError, match=r"ams1.*message of \d+ bytes"):
        await pair.server.receive()
    refusal = await pair.client.receive()
    assert isinstance(refusal, Refuse) and refusal.code == "invalid"
    with pytest.raises(LinkError):
        await pair.server.send(Credit(1))


async def test_an_illegal_message_is_a_peer_error(pair: Pair) -> None:
    """Well-formed but out of place: the session's table decides."""
    pair.client_stream.write(pack(Hello(PROTOCOL, "again")))
    with pytest.raises(PeerError, match="Hello"):
        await pair.server.receive()


async def test_an_illegal_message_of_ours_is_an_assertion(pair: Pair) -> None:
    """Our own mistakes never reach the wire."""
    before = pair.client.sent_bytes
    with pytest.raises(AssertionError, match="Credit"):
        await pair.client.send(Credit(1))
    assert pair.client.sent_bytes == before


async def test_a_refusal_ends_the_session_on_both_sides(pair: Pair) -> None:
    """The client gets it as a message; the server cannot go on after it, and later data is dropped without harm."""
    await pair.server.send(Refuse("full", "no room"))
    await pair.client.send(Blocks(MEBIBYTE))
    assert await pair.client.receive() == Refuse("full", "no room")
    with pytest.raises(LinkError, match="no room"):
        await pair.client.send(Blocks(MEBIBYTE))
    with pytest.raises(LinkError):
        await pair.server.send(Credit(1))
    assert pair.server.state is pair.client.state is State.CLOSED


async def test_the_bandwidth_limit_holds_back_data_and_nothing_else() -> None:
    """Messages that carry data wait for their share; others pass at once, and an end does not leave them waiting."""
    pair = await opened(Pair())
    pair.client._bandwidth = Bandwidth(lambda: 1000)
    await pair.client.send(Blocks(bytes(2000)))
    waiting = asyncio.create_task(pair.client.send(Blocks(b"late")))
    await asyncio.sleep(0)
    await asyncio.wait_for(pair.client.send(Offer(bytes(32))), 1)
    assert [await pair.server.receive() for _ in range(2)] == [Blocks(bytes(2000)), Offer(bytes(32))]
    assert not waiting.done()
    pair.client_stream.cut()
    with pytest.raises(LinkError):
        await asyncio.wait_for(waiting, 1)


# ------------------------------------------------------------------------------------------------------- handshake


async def test_another_protocol_version_is_refused_on_both_sides() -> None:
    """The client's error names both versions and what to do; the server knows whom it refused."""
    pair = Pair()
    admitting = asyncio.create_task(admit(pair.server, "replicad 1", "fra1"))
    await pair.client.send(Hello(PROTOCOL + 1, "replicad 2"))
    refusal = await pair.client.receive()
    assert isinstance(refusal, Refuse) and refusal.code == "version"
    assert f"version {PROTOCOL + 1}" in refusal.text and f"version {PROTOCOL}" in refusal.text
    with pytest.raises(RefusedError, match="ams1"):
        await admitting


async def test_greet_turns_a_refusal_into_an_error() -> None:
    """What a client gets from dialling is RefusedError with the peer's name and words."""
    pair = Pair()
    greeting = asyncio.create_task(greet(pair.client, "replicad test"))
    await pair.server.receive()
    await pair.server.send(Refuse("busy", "all sessions are taken"))
    with pytest.raises(RefusedError, match=r"fra1.*all sessions are taken"):
        await greeting
    assert pair.client.over.is_set()


async def test_greet_refuses_a_server_of_another_version() -> None:
    """A server that does not check versions is checked by the client."""
    pair = Pair()
    greeting = asyncio.create_task(greet(pair.client, "replicad test"))
    await pair.server.receive()
    await pair.server.send(Welcome(PROTOCOL + 5, "replicad 9", "fra1", "ams1"))
    with pytest.raises(RefusedError, match=f"version {PROTOCOL + 5}.*version {PROTOCOL}"):
        await greeting


@pytest.mark.parametrize("side", [greet, lambda channel, software: admit(channel, software, "fra1")])
async def test_a_silent_peer_does_not_hold_the_handshake(
    side: Callable[[Channel, str], Awaitable[object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that says nothing is closed after a bounded time."""
    monkeypatch.setattr(channel_module, "GREETING_S", 0.02)
    pair = Pair()
    channel = pair.client if side is greet else pair.server
    with pytest.raises(LinkError, match="greeting"):
        await side(channel, "replicad test")
    assert channel.over.is_set()
    await pair.close()


async def test_a_greeted_client_that_asks_for_nothing_holds_no_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it wants has to follow the greeting within a bounded time; signs of life are not enough."""
    monkeypatch.setattr(channel_module, "GREETING_S", SHORT_S)
    pair = Pair(keepalive_s=SHORT_S / 6)
    await asyncio.gather(greet(pair.client, "replicad test"), admit(pair.server, "replicad test", "fra1"))
    with pytest.raises(LinkError, match=r"ams1.*asked for nothing"):
        await asyncio.wait_for(asked(pair.server), 5)
    assert pair.server.over.is_set()
    await pair.close()


async def test_a_greeted_client_that_leaves_has_done_nothing_wrong() -> None:
    """Whoever says Bye in place of what it wants ends its session; it breaks no rule."""
    pair = Pair()
    await asyncio.gather(greet(pair.client, "replicad test"), admit(pair.server, "replicad test", "fra1"))
    pair.client.hang_up("cancelled")
    with pytest.raises(LinkError, match=r"ams1.*ended the session: cancelled"):
        await asked(pair.server)
    assert pair.server.over.is_set()


async def test_senders_of_one_channel_take_turns(pair: Pair) -> None:
    """Where the stream is full, who has waited longest goes first."""
    counts = [0, 0, 0]

    async def flood(number: int) -> None:
        while True:
            await pair.client.send(Blocks(MEBIBYTE))
            counts[number] += 1

    flooding = [asyncio.create_task(flood(number)) for number in range(3)]
    for _ in range(30):
        await pair.server.receive()
    assert min(counts) >= 9
    for task in flooding:
        task.cancel()


async def test_a_peer_that_takes_nothing_holds_up_no_refusal(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who may not stay is told so if it listens, and is cut off in any case."""
    monkeypatch.setattr(channel_module, "CLOSE_S", 0.05)
    pair.server.pause_writing()
    await asyncio.wait_for(refuse(pair.server, Refuse("right", "not any more")), 5)
    assert pair.server.over.is_set()


# ------------------------------------------------------------------------------------- the unix door and the reception


class UnixClient(asyncio.Protocol):
    """The client's end: what `replicad stdio` is to a channel."""

    transport: asyncio.Transport
    channel: Channel

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.write, self.close, self.abort = transport.write, transport.close, transport.abort
        self.pause_reading, self.resume_reading = transport.pause_reading, transport.resume_reading

    def data_received(self, data: bytes) -> None:
        self.channel.data_received(data)

    def pause_writing(self) -> None:
        self.channel.pause_writing()

    def resume_writing(self) -> None:
        self.channel.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self.channel.connection_lost(str(exc) if exc else "")


async def connect(node: Node, first: bytes = preface("ams1")) -> Channel:
    stream = UnixClient()
    await asyncio.get_running_loop().create_unix_connection(lambda: stream, str(node.socket))
    stream.transport.write(first)
    stream.channel = Channel(stream, Role.CLIENT, "fra1")
    return stream.channel


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    node = Node(tmp_path, max_sessions=3)
    node.clients.append(ClientConfig("ams1", "ssh-ed25519 AAAA"))
    listener = await serve_unix(node.socket, node.reception)
    yield node
    await node.reception.close()
    await listener.close()
    assert not node.socket.exists()


async def test_a_client_named_by_the_preface_is_served(node: Node) -> None:
    """The session carries the name of the preface, data flows with back-pressure, and the session ends with Bye."""
    channel = await connect(node)
    assert (await greet(channel, "x")).client == "ams1"
    await channel.send(OpenWrite("www"))
    await channel.receive()
    for _ in range(20):
        await channel.send(Blocks(MEBIBYTE))
    assert node.served == ["ams1"] and node.reception.sessions == 1
    await channel.close()
    await wait_for(lambda: node.reception.sessions == 0)
    assert node.reports == []


async def test_the_socket_is_for_the_daemon_s_user_alone(node: Node) -> None:
    """Whoever may open it may say any name, so its mode is 0600."""
    assert stat.S_IMODE(node.socket.stat().st_mode) == 0o600


async def test_an_unknown_client_is_told_so(node: Node) -> None:
    """The refusal comes through the protocol, and the log gets it too."""
    with pytest.raises(RefusedError, match="'nobody' is not configured"):
        await greet(await connect(node, preface("nobody")), "x")
    assert "nobody" in str(node.reports[0]) and node.served == []


@pytest.mark.parametrize(
    "first",
    [
        b"x" * (PREFACE_BYTES + 2),
        b"not json\n",
        b"[]\n",
        b'{"client": 7}\n',
        preface("a" * 2000),
    ],
)
async def test_a_bad_preface_is_refused(node: Node, first: bytes) -> None:
    """Nothing is served to a connection that does not say who it is."""
    with pytest.raises((RefusedError, LinkError)):
        await greet(await connect(node, first), "x")
    assert node.served == [] and node.reception.sessions == 0


async def test_a_preface_may_come_in_pieces_or_with_what_follows(node: Node) -> None:
    """The stream is cut anywhere."""
    whole = preface("ams1") + bytes(pack(Hello(PROTOCOL, "x")))
    channel = await connect(node, whole[:5])
    channel._stream.write(whole[5:])
    await wait_for(lambda: node.served == ["ams1"])
    channel.abort()
    await wait_for(lambda: node.reception.sessions == 0)


async def test_sessions_beyond_the_limit_are_told_so(node: Node) -> None:
    """The limit counts all sessions; when one ends, the next is let in."""
    channels = [await connect(node) for _ in range(3)]
    for channel in channels:
        await greet(channel, "x")
    with pytest.raises(RefusedError, match="all 3 sessions are taken"):
        await greet(await connect(node), "x")
    await channels[0].close()
    await wait_for(lambda: node.reception.sessions == 2)
    replacement = await connect(node)
    await greet(replacement, "x")
    await asyncio.gather(*(channel.close() for channel in [*channels, replacement]))


async def test_one_client_leaves_sessions_for_the_others(node: Node) -> None:
    """Where others are configured, a client that asks for all sessions gets its share, and the others get in."""
    node.clients.append(ClientConfig("lon1", "ssh-ed25519 BBBB"))
    channels = [await connect(node) for _ in range(2)]
    for channel in channels:
        await greet(channel, "x")
    with pytest.raises(RefusedError, match="client ams1 has 2 of 3 sessions"):
        await greet(await connect(node), "x")
    channels.append(await connect(node, preface("lon1")))
    assert (await greet(channels[-1], "x")).client == "lon1"
    await channels[0].close()
    await wait_for(lambda: node.reception.sessions == 2)
    channels.append(await connect(node))
    await greet(channels[-1], "x")
    await asyncio.gather(*(channel.close() for channel in channels))


async def test_a_daemon_that_stops_tells_its_clients(node: Node) -> None:
    """A session under way ends with the refusal "stopping", and a new one alike; it is out of reach for a while, and
    nobody has to change anything."""
    channel = await connect(node)
    await greet(channel, "x")
    await channel.send(OpenWrite("www"))
    await channel.receive()
    await node.reception.close()
    refusal = await channel.receive()
    assert isinstance(refusal, Refuse) and refusal.code == "stopping"
    with pytest.raises(LinkError, match="shutting down"):
        await greet(await connect(node), "x")


async def test_a_client_that_is_no_longer_configured_is_turned_out(node: Node) -> None:
    """Its sessions under way end with a refusal; those of others go on."""
    node.clients.append(ClientConfig("lon1", "ssh-ed25519 BBBB"))
    channels = [await connect(node, preface(name)) for name in ("ams1", "lon1")]
    for channel in channels:
        await greet(channel, "x")
        await open_writing(channel)
    del node.clients[0]
    await node.reception.recheck()
    refusal = await channels[0].receive()
    assert isinstance(refusal, Refuse) and refusal.code == "right"
    await wait_for(lambda: node.reception.sessions == 1)
    assert channels[1].error is None
    await channels[1].close()


async def test_a_client_loses_the_sessions_of_a_dataset_that_is_withdrawn(node: Node) -> None:
    """Writing or reading, they end with a refusal; those of its other datasets, and one that has opened none, go on."""
    node.clients.append(ClientConfig("lon1", "ssh-ed25519 BBBB"))
    node.reception.house = replace(node.reception.house, max_sessions=8)
    channels = [await connect(node) for _ in range(4)]
    for channel in channels:
        await greet(channel, "x")
    for channel, opening in zip(channels, (OpenWrite("www"), OpenRead("www"), OpenWrite("db")), strict=False):
        await channel.send(opening)
        assert isinstance(await channel.receive(), Opened)
    node.clients[0] = replace(node.clients[0], datasets=("db",))
    await node.reception.recheck()
    for channel in channels[:2]:
        refusal = await channel.receive()
        assert isinstance(refusal, Refuse) and refusal.code == "right" and "'www'" in refusal.text
    await wait_for(lambda: node.reception.sessions == 2)
    assert channels[2].error is None and channels[3].error is None
    await asyncio.gather(*(channel.close() for channel in channels))


async def test_a_session_that_ends_in_an_error_is_reported(node: Node) -> None:
    """The log learns why, and other sessions go on."""
    good = await connect(node)
    await greet(good, "x")
    bad = await connect(node)
    await greet(bad, "x")
    bad._stream.write(b"\xff" * 10)
    await wait_for(lambda: node.reports)
    assert isinstance(node.reports[0], PeerError) and good.error is None
    await asyncio.gather(good.close(), bad.close())


async def test_a_defect_in_a_session_is_not_swallowed(node: Node) -> None:
    """An exception that is none of ours reaches the event loop's handler, and the session is closed."""
    seen: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: seen.append(context))
    channel = await connect(node)
    await greet(channel, "x")
    await open_writing(channel, "defect")
    assert isinstance(await channel.receive(), Bye)
    await wait_for(lambda: seen)
    assert isinstance(seen[0]["exception"], ZeroDivisionError)


async def test_a_socket_left_by_a_dead_daemon_is_replaced(tmp_path: Path) -> None:
    """A crash does not keep the next start from listening; another file in that place does."""
    node = Node(tmp_path)
    first = await serve_unix(node.socket, node.reception)
    first._server.close()
    second = await serve_unix(node.socket, node.reception)
    await second.close()
    node.socket.write_text("precious")
    with pytest.raises(LockedError, match="no socket"):
        await serve_unix(node.socket, node.reception)
    assert node.socket.read_text() == "precious"
    with pytest.raises(LinkError, match="cannot listen"):
        await serve_unix(tmp_path / ("x" * 120), node.reception)
