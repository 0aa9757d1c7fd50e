"""Channel: one session's messages between the two sides; the only thing of the link that the rooms above see.

**Owns** the session state, the queue of received messages and the keep-alive. **Never** knows what carries its
bytes: a `Stream` does, and calls back like an asyncio transport calls its protocol.

Memory is bounded at both ends: `send` waits while the stream's buffer is full, and a full receive queue stops
reading. Silence is judged only while we listen. A side that is sent to, or that has stopped reading, says a Pong
now and then by itself: so a peer whose own messages wait behind megabytes of data still hears that we live.
"""

from __future__ import annotations

import asyncio
import copy
from collections import deque
from contextlib import suppress
from typing import Protocol, TypeVar

from replicad.link.bandwidth import Bandwidth
from replicad.link.frames import Framed, Splitter, pack_pieces
from replicad.link.messages import (
    PROTOCOL,
    Blocks,
    Bye,
    Hello,
    Message,
    OpenRead,
    OpenWrite,
    Ping,
    Pong,
    Record,
    Refuse,
    Seal,
    Welcome,
)
from replicad.link.session import Role, Session, State, refused, show_text, version_refusal
from replicad.model.block import Buffer
from replicad.model.errors import LinkError, PeerError, ReplicadError

KEEPALIVE_S = 15.0
"""Default of `keepalive_s`: a peer silent for three times this long counts as gone."""
SILENT_KEEPALIVES = 3
"""One Ping or its Pong may be late or lost with a dying route; three in a row are no accident."""
BEAT_S = 1.0
"""A side that is sent to speaks at least this often, so that the peer needs no Pong through a full line."""
BULK_BYTES = 1024
"""So many bytes at once are data that deserves a sign of life; signs of life themselves are far smaller."""
QUEUE_BYTES = 4 * 1024**2
"""Received and not yet taken by the room above; reading stops above this and goes on below half of it. More lies in
the stream's own window, so this only has to bridge a few turns of the event loop."""
MESSAGE_COST_BYTES = 256
"""What a queued message takes beside its bytes, so that a flood of tiny ones is bounded as well."""
CLOSE_S = 5.0
"""How long an orderly close may take to flush before the stream is cut."""
GREETING_S = 20.0
"""How long Hello and its answer may take, and then what a greeted client asks for, which every honest one says at once:
who says nothing must not hold a place for long."""
ANSWER_S = 600.0
"""How long an answer may take after that: summing up the record of ten million blocks, or reading a medium that is
dying. Beyond, a server that lives is as good as out of reach. For whoever asks to heed."""

M = TypeVar("M", bound=Message)

_METERED = (Blocks, Record, Seal)
_KEEPALIVE = (Ping, Pong)
_LAST = (Bye, Refuse)


class Stream(Protocol):
    """What carries a channel's bytes. It calls the channel's `data_received`, `pause_writing`, `resume_writing` and
    `connection_lost` (once, last) from the event loop. After the end all of these do nothing."""

    def write(self, data: Buffer) -> None:
        """Take all of `data`, a copy of what waits, without waiting and without raising; calls `pause_writing` when too
        much is buffered."""

    def pause_reading(self) -> None:
        """Call `data_received` no more; a little that was already under way may still come."""

    def resume_reading(self) -> None:
        """The opposite. May call `data_received` at once."""

    def close(self) -> None:
        """Send what is buffered, then end. `connection_lost` follows when the peer takes it."""

    def abort(self) -> None:
        """End now; buffered data is lost. `connection_lost` follows in any case."""


class Channel:
    """One session. `peer` is the replica's name at the client and the client's name at the server."""

    def __init__(
        self,
        stream: Stream,
        role: Role,
        peer: str,
        *,
        keepalive_s: float = KEEPALIVE_S,
        bandwidth: Bandwidth | None = None,
    ) -> None:
        """To be made within a running event loop. `bandwidth` limits messages that carry data, in `send`."""
        self.peer = peer
        self.sent_bytes = 0
        self.received_bytes = 0
        self.over = asyncio.Event()
        """Set when the session has ended, for whatever reason; `error` says why."""
        self.error: ReplicadError | None = None
        self._stream, self._session = stream, Session(role)
        self._bandwidth = bandwidth
        self._splitter = Splitter()
        self._queue: deque[Framed] = deque()
        self._queue_bytes = 0
        self._reading = True
        self._arrived = asyncio.Event()
        self._turn = asyncio.Lock()
        """Held by the sender whose message is next: who has waited longest."""
        self._writable = asyncio.Event()
        self._writable.set()
        self._gone = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._keepalive_s = keepalive_s
        self._beat_s = min(BEAT_S, keepalive_s / SILENT_KEEPALIVES)
        self._heard_s = self._spoke_s = self._ticked_s = self._loop.time()
        self._owed: Pong | None = None
        self._timer = self._loop.call_later(self._beat_s, self._tick)
        self._closing: asyncio.TimerHandle | None = None
        self._resting = 0

    @property
    def rests(self) -> bool:
        """Whether a message waits for its share of the bandwidth."""
        return self._resting > 0

    @property
    def state(self) -> State:
        """How far the session has come."""
        return self._session.state

    @property
    def dataset(self) -> str:
        """What the client has asked to open; "" before."""
        return self._session.dataset

    async def send(self, message: Message) -> None:
        """Send one message; waits while the stream is full or the bandwidth is used up.

        Messages of one task keep their order. Returning does not mean that the peer has it. Raises LinkError when
        the session is over; AssertionError for a message that is illegal now.
        """
        pieces = pack_pieces(message)
        if self._bandwidth and isinstance(message, _METERED):
            size = sum(map(len, pieces))
            await self._wait_for_share(self._bandwidth.reserve_s(size, self._loop.time()))
        async with self._turn:
            while not self._writable.is_set():
                await self._writable.wait()
            if self.error:
                raise LinkError(f"cannot send: {self.error.what}", where=self.peer)
            self._session.send(message)
            self._write(pieces)
            if isinstance(message, _LAST):
                self._end(LinkError("this side ended the session", where=self.peer))

    async def receive(self) -> Message:
        """The next message; Bye and Refuse are messages too, and the last ones.

        What came before the session ended is still given. After that raises LinkError when the connection ended or
        fell silent, PeerError when the peer broke the protocol.
        """
        while not self._queue:
            if self.error:
                raise copy.copy(self.error)
            self._arrived.clear()
            await self._arrived.wait()
        return self._next()

    def received(self, kind: type[M]) -> list[M]:
        """All messages of that kind that have come already and would be received next, perhaps none."""
        found: list[M] = []
        while self._queue and isinstance(message := self._queue[0].message, kind):
            found.append(message)
            self._next()
        return found

    async def close(self, reason: str = "done") -> None:
        """End the session: say Bye unless it is over, send what is buffered (CLOSE_S at most), drop what was received.

        Never raises; may be called more than once.
        """
        self.hang_up(reason)
        await self._gone.wait()

    def hang_up(self, reason: str = "done") -> None:
        """Like `close`, without waiting for the end: the stream flushes and ends in the background."""
        if not self.error:
            self._write(pack_pieces(Bye(show_text(reason))))
            self._end(LinkError("this side closed the session", where=self.peer))
        self._queue.clear()
        self._finish()

    def abort(self) -> None:
        """End the session now, without a word."""
        self._end(LinkError("this side cut the session", where=self.peer))
        self._stream.abort()

    # What the stream calls.

    def data_received(self, data: Buffer) -> None:
        """Bytes of the peer."""
        self.received_bytes += len(data)
        self._heard_s = self._loop.time()
        if self.error:
            return
        try:
            framed = self._splitter.feed(data)
            for item in framed:
                self._accept(item)
        except PeerError as error:
            self._fail(PeerError(error.what, where=self.peer))
            return
        if self._splitter.pending_bytes or any(not isinstance(item.message, _KEEPALIVE) for item in framed):
            self._beat()

    def heard(self, size: int) -> None:
        """`size` bytes came from the peer's host; they may be a part of something that is not complete yet."""
        self._heard_s = self._loop.time()
        if size >= BULK_BYTES:
            self._beat()

    def pause_writing(self) -> None:
        """The stream's buffer is full."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """The stream's buffer has room again."""
        self._writable.set()
        if self._owed and not self.error:
            self._say(self._owed)

    def connection_lost(self, reason: str) -> None:
        """The stream has ended; `reason` is "" when the peer ended it in an orderly way."""
        self._end(LinkError(reason or "the peer closed the connection", where=self.peer))
        self._gone.set()
        if self._closing:
            self._closing.cancel()

    # Everything below runs on the event loop and never waits.

    def _accept(self, framed: Framed) -> None:
        message = framed.message
        if self._session.state is State.CLOSED:
            return  # either side has ended the session; what was still under way does not matter any more
        self._session.receive(message)
        if isinstance(message, Ping):
            self._say(Pong(message.token))
        elif not isinstance(message, Pong):
            self._enqueue(framed)
        if isinstance(message, _LAST):
            self._end(LinkError(f"the peer ended the session: {show_text(_reason(message))}", where=self.peer))
            self._finish()

    def _next(self) -> Message:
        framed = self._queue.popleft()
        self._queue_bytes -= framed.size + MESSAGE_COST_BYTES
        if not self._reading and self._queue_bytes <= QUEUE_BYTES // 2:
            self._listen()
        return framed.message

    def _enqueue(self, framed: Framed) -> None:
        self._queue.append(framed)
        self._queue_bytes += framed.size + MESSAGE_COST_BYTES
        self._arrived.set()
        if self._reading and self._queue_bytes > QUEUE_BYTES:
            self._reading = False
            self._stream.pause_reading()

    def _listen(self) -> None:
        self._reading = True
        self._heard_s = self._loop.time()
        if not self._gone.is_set():
            self._stream.resume_reading()

    def _write(self, pieces: list[Buffer]) -> None:
        self._spoke_s = self._loop.time()
        for piece in pieces:
            self.sent_bytes += len(piece)
            self._stream.write(piece)

    def _say(self, message: Ping | Pong) -> None:
        """Send a sign of life. Behind a full buffer it would prove nothing, so there at most one Pong is kept."""
        if self._writable.is_set():
            self._owed = None
            self._write(pack_pieces(message))
        elif isinstance(message, Pong):
            self._owed = message

    def _beat(self) -> None:
        if self._loop.time() - self._spoke_s >= self._beat_s and not self.error:
            self._say(Pong(0))

    def _tick(self) -> None:
        """The keep-alive, once a beat."""
        now_s = self._loop.time()
        late_s = now_s - self._ticked_s - self._beat_s
        self._ticked_s = now_s
        if not self._reading:
            self._heard_s = now_s  # we do not listen, so silence says nothing about the peer
            self._beat()
        elif late_s > self._beat_s:
            self._heard_s = min(now_s, self._heard_s + late_s)  # nor while this process stood still
        silent_s = now_s - self._heard_s
        if silent_s >= SILENT_KEEPALIVES * self._keepalive_s:
            self._end(LinkError(f"the peer has been silent for {silent_s:.1f} s", where=self.peer))
            self._stream.abort()
            return
        if silent_s >= self._keepalive_s and now_s - self._spoke_s >= self._keepalive_s:
            self._say(Ping(0))
        self._timer = self._loop.call_later(self._beat_s, self._tick)

    def _fail(self, error: PeerError) -> None:
        """The peer broke the protocol: tell it, as far as it still understands, and end."""
        text = show_text(error.what)
        self._write(pack_pieces(Refuse("invalid", text) if self._session.role is Role.SERVER else Bye(text)))
        self._end(error)
        self._finish()

    def _finish(self) -> None:
        """Let the stream flush and end; when it has not within CLOSE_S, cut it."""
        if not self._gone.is_set() and self._closing is None:
            self._closing = self._loop.call_later(CLOSE_S, self._stream.abort)
            self._stream.close()

    def _end(self, error: ReplicadError) -> None:
        """The session is over; the first reason given is the one that counts."""
        if self.error:
            return
        self.error = error
        self._timer.cancel()
        self.over.set()
        self._arrived.set()
        self._writable.set()

    async def _wait_for_share(self, wait_s: float) -> None:
        if not wait_s:
            return
        self._resting += 1
        try:
            async with asyncio.timeout(wait_s):
                await self.over.wait()
        except TimeoutError:
            return
        finally:
            self._resting -= 1


async def greet(channel: Channel, software: str) -> Welcome:
    """The client's part of the handshake. Raises RefusedError, LinkError (also where the server stops), PeerError; the
    channel is then closed."""
    answer: Message
    try:
        async with asyncio.timeout(GREETING_S):
            await channel.send(Hello(PROTOCOL, software))
            answer = await channel.receive()
    except TimeoutError:
        await channel.close("no greeting")
        raise LinkError(f"did not answer the greeting within {GREETING_S:.0f} s", where=channel.peer) from None
    if isinstance(answer, Refuse):
        await channel.close()
        raise refused(answer, channel.peer)
    if not isinstance(answer, Welcome):
        await channel.close()
        raise LinkError(f"ended the session: {show_text(_reason(answer))}", where=channel.peer)
    if answer.protocol != PROTOCOL:
        await channel.close("version")
        text = f"the replica speaks protocol version {answer.protocol}, this node speaks version {PROTOCOL}"
        raise refused(Refuse("version", text), channel.peer)
    return answer


async def open_session(channel: Channel, what: OpenWrite | OpenRead) -> Message:
    """What the server answers when it is asked to open a session. Raises LinkError, also when it lives and says nothing
    for ANSWER_S, PeerError."""
    await channel.send(what)
    try:
        async with asyncio.timeout(ANSWER_S):
            return await channel.receive()
    except TimeoutError:
        raise unanswered(channel) from None


def unanswered(channel: Channel) -> LinkError:
    """The server was waited for for ANSWER_S."""
    return LinkError(f"did not answer within {ANSWER_S:.0f} s", where=channel.peer)


async def admit(channel: Channel, software: str, node: str) -> Hello:
    """The server's part of the handshake. Raises RefusedError (told to the client), LinkError, PeerError; the
    channel is then closed."""
    hello = await _soon(channel, "sent no greeting")
    assert isinstance(hello, Hello), "the session's table lets nothing else through"
    refusal = version_refusal(hello)
    if refusal:
        await refuse(channel, refusal)
        raise refused(refusal, channel.peer)
    await channel.send(Welcome(PROTOCOL, software, node, channel.peer))
    return hello


async def asked(channel: Channel) -> Message:
    """What a greeted client asks for: its first message. Raises LinkError, PeerError; the channel is then closed."""
    return await _soon(channel, "asked for nothing")


async def refuse(channel: Channel, refusal: Refuse) -> None:
    """Say no and end the session, within 2 * CLOSE_S. Never raises: whether the peer still hears it is not ours to
    decide."""
    with suppress(LinkError, TimeoutError):  # then nobody is left to be told, or nobody listens
        async with asyncio.timeout(CLOSE_S):
            await channel.send(refusal)
    await channel.close()


async def _soon(channel: Channel, otherwise: str) -> Message:
    """The next message, if it comes within GREETING_S and is no Bye."""
    try:
        async with asyncio.timeout(GREETING_S):
            message = await channel.receive()
    except TimeoutError:
        await channel.close(otherwise)
        raise LinkError(f"{otherwise} within {GREETING_S:.0f} s", where=channel.peer) from None
    if isinstance(message, Bye):
        await channel.close()
        raise LinkError(f"ended the session: {show_text(message.reason)}", where=channel.peer)
    return message


def _reason(message: Message) -> str:
    match message:
        case Bye(reason):
            return reason
        case Refuse(_, text):
            return text
    return type(message).__name__
