"""Kit for the link: a pair of channels in memory, and a TCP relay that behaves like a distant line.

The pair keeps the same contract as the real streams (bounded buffers, pausing, orderly close, abort) and can be cut
or made deaf. The relay is a user-space stand-in for a long line: `python tests/kit_link.py --help` runs it alone.
"""

from __future__ import annotations

import argparse
import asyncio
from collections import deque
from collections.abc import Callable
from pathlib import Path

from replicad.config import ClientConfig
from replicad.link.channel import Channel, asked
from replicad.link.messages import Blocks, Bye, Message, Opened, OpenRead, OpenWrite
from replicad.link.reception import House, Reception
from replicad.link.session import Role
from replicad.model.errors import ReplicadError
from replicad.model.snapshot import Head

WINDOW_BYTES = 8 * 1024**2
"""SSH window and credit of a `Node`."""
PAIR_BUFFER_BYTES = 256 * 1024
"""What one direction of the pair holds before it says pause_writing."""


class PairStream:
    """One end of the pair. Bytes given to `write` arrive at `other` in later turns of the event loop."""

    def __init__(self) -> None:
        self.channel: Channel | None = None
        self.other: PairStream | None = None
        self.deaf = False
        """Bytes written here vanish, as on a half-open connection."""
        self._sending: deque[bytes] = deque()
        self._buffered = 0
        self._paused_writing = False
        self._reading = True
        self._closing = False
        self._ended = False
        self._loop = asyncio.get_running_loop()

    def write(self, data: bytes | bytearray) -> None:
        if self._closing or self._ended or self.deaf:
            return
        self._sending.append(bytes(data))
        self._buffered += len(data)
        if self._buffered > PAIR_BUFFER_BYTES and not self._paused_writing:
            self._paused_writing = True
            assert self.channel
            self.channel.pause_writing()
        self._loop.call_soon(self._pump)

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = True
        assert self.other
        self._loop.call_soon(self.other._pump)

    def close(self) -> None:
        self._closing = True
        self._loop.call_soon(self._pump)

    def abort(self) -> None:
        self._sending.clear()
        self._closing = True
        self._end("aborted")

    def cut(self) -> None:
        """Break the connection as a reset does: both sides notice, buffered bytes are lost."""
        assert self.other
        for end in (self, self.other):
            end._sending.clear()
            end._end("connection reset")

    def _pump(self) -> None:
        assert self.other
        while self._sending and self.other._reading and not self.other._ended:
            data = self._sending.popleft()
            self._buffered -= len(data)
            if self.other.channel:
                self.other.channel.data_received(data)
        if self._paused_writing and self._buffered <= PAIR_BUFFER_BYTES // 4:
            self._paused_writing = False
            assert self.channel
            self.channel.resume_writing()
        if self._closing and not self._sending and not self.deaf:
            self._end("")
            self.other._end("")

    def _end(self, reason: str) -> None:
        if not self._ended:
            self._ended = True
            assert self.channel
            self.channel.connection_lost(reason)


class Pair:
    """Two channels that talk to each other, not yet greeted."""

    def __init__(self, *, keepalive_s: float = 15.0, server_keepalive_s: float | None = None) -> None:
        self.client_stream, self.server_stream = PairStream(), PairStream()
        self.client_stream.other, self.server_stream.other = self.server_stream, self.client_stream
        self.client = Channel(self.client_stream, Role.CLIENT, "fra1", keepalive_s=keepalive_s)
        self.server = Channel(self.server_stream, Role.SERVER, "ams1", keepalive_s=server_keepalive_s or keepalive_s)
        self.client_stream.channel, self.server_stream.channel = self.client, self.server

    def black_hole(self) -> None:
        """From now on nothing arrives on either side, and nobody is told."""
        self.client_stream.deaf = self.server_stream.deaf = True

    async def close(self) -> None:
        """Close both ends."""
        await asyncio.gather(self.client.close(), self.server.close())


class Node:
    """The server's side of a link without a store: a reception that opens any dataset and takes what is sent.

    The dataset's name chooses what a session does: "defect" raises, "source" sends Blocks without end, "idle" takes
    nothing, all others receive until Bye.
    """

    def __init__(self, directory: Path, *, max_sessions: int = 64, keepalive_s: float = 15.0) -> None:
        self.directory = directory
        self.socket = directory / "link.sock"
        self.reports: list[ReplicadError] = []
        self.clients: list[ClientConfig] = []
        self.served: list[str] = []
        self.channels: list[Channel] = []
        self.received: list[Message] = []
        self.reception = Reception(
            House(
                node="fra1",
                software="replicad test",
                clients=lambda: self.clients,
                serve=self._serve,
                report=self.reports.append,
                keepalive_s=keepalive_s,
                max_sessions=max_sessions,
                window_bytes=WINDOW_BYTES,
            )
        )

    async def _serve(self, channel: Channel, client: str) -> None:
        self.served.append(client)
        self.channels.append(channel)
        message = await asked(channel)
        if isinstance(message, OpenWrite | OpenRead):
            await channel.send(Opened(Head(), WINDOW_BYTES))
            await self._session(channel, message.dataset)

    async def _session(self, channel: Channel, dataset: str) -> None:
        if dataset == "defect":
            raise ZeroDivisionError
        while dataset == "source":
            await channel.send(Blocks(bytes(1024 * 1024)))
        if dataset == "idle":
            await channel.over.wait()
        while not isinstance(message := await channel.receive(), Bye):
            self.received.append(message)


async def open_writing(channel: Channel, dataset: str = "www") -> Channel:
    """Bring a greeted channel to the state WRITING."""
    await channel.send(OpenWrite(dataset))
    assert isinstance(await channel.receive(), Opened)
    return channel


RELAY_READ_BYTES = 64 * 1024
RELAY_QUEUE_BYTES = 8 * 1024**2
"""Bytes on their way in one direction, before the relay stops reading, when the bandwidth is unlimited."""
RELAY_BUFFER_S = 0.05
"""What a router in the way buffers, as time at its bandwidth, beside the bytes that are in the line itself."""


class _Direction:
    """One direction of one relayed connection: serialised at the bandwidth, then delayed by half the round trip."""

    def __init__(self, relay: Relay, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        self._relay, self._source, self._sink = relay, source, sink
        self._queue: deque[tuple[float, bytes]] = deque()
        self._queued = 0
        self._changed = asyncio.Event()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._read())
            group.create_task(self._write())

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        free_at = 0.0
        while True:
            try:
                data = await self._source.read(RELAY_READ_BYTES)
            except OSError:
                data = b""
            bandwidth = self._relay.bandwidth_bytes
            free_at = max(free_at, loop.time()) + (len(data) / bandwidth if bandwidth else 0.0)
            self._queue.append((free_at + self._relay.round_trip_s / 2, data))
            self._queued += len(data)
            self._changed.set()
            if not data:
                return
            while self._queued > self._relay.line_bytes:
                await asyncio.sleep(0.001)

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            while not self._queue:
                self._changed.clear()
                await self._changed.wait()
            due, data = self._queue[0]
            if (wait := due - loop.time()) > 0:
                await asyncio.sleep(wait)
            self._queue.popleft()
            self._queued -= len(data)
            await self._relay.open.wait()
            if not data:
                self._sink.close()
                return
            self._relay.passed_bytes += len(data)
            self._sink.write(data)
            try:
                await self._sink.drain()
            except OSError:
                return


class Relay:
    """A TCP relay to `target`, in front of it on 127.0.0.1:`port`. `round_trip_s` and `bandwidth_bytes` (a second, in
    each direction, 0 = unlimited) may change at any time."""

    def __init__(self, target: tuple[str, int], *, round_trip_s: float = 0.0, bandwidth_bytes: int = 0) -> None:
        self.target, self.round_trip_s, self.bandwidth_bytes = target, round_trip_s, bandwidth_bytes
        self.port = 0
        self.passed_bytes = 0
        self.open = asyncio.Event()
        self.open.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    @property
    def line_bytes(self) -> int:
        """What is in one direction of the line at most."""
        if not self.bandwidth_bytes:
            return RELAY_QUEUE_BYTES
        return int(self.bandwidth_bytes * (self.round_trip_s / 2 + RELAY_BUFFER_S)) + RELAY_READ_BYTES

    async def start(self, port: int = 0) -> None:
        """Listen on 127.0.0.1, on a free port when `port` is 0."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", port, limit=RELAY_READ_BYTES)
        self.port = self._server.sockets[0].getsockname()[1]

    def black_hole(self) -> None:
        """From now on nothing passes in either direction and no connection ends: half-open for both sides."""
        self.open.clear()

    def restore(self) -> None:
        """The opposite of `black_hole`; what was on its way arrives late."""
        self.open.set()

    def cut(self) -> None:
        """Reset all connections."""
        for writer in self._writers:
            writer.transport.abort()

    async def close(self) -> None:
        """End all connections and the listener."""
        if self._server:
            self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        try:
            await self._relay(reader, writer)
        except asyncio.CancelledError:
            pass  # the relay is closing; asyncio's stream server would log a cancelled connection as an error
        finally:
            self._tasks.discard(task)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there_reader, there_writer = await asyncio.open_connection(*self.target, limit=RELAY_READ_BYTES)
        except OSError:
            writer.transport.abort()
            return
        writers = {writer, there_writer}
        self._writers |= writers
        try:
            await asyncio.gather(
                _Direction(self, reader, there_writer).run(), _Direction(self, there_reader, writer).run()
            )
        finally:
            self._writers -= writers
            for each in writers:
                each.transport.abort()


async def wait_for(condition: Callable[[], object], *, seconds: float = 10.0) -> None:
    """Wait until `condition()` is true; fails after `seconds`."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


async def _serve(arguments: argparse.Namespace) -> None:
    host, _, port = arguments.target.rpartition(":")
    relay = Relay(
        (host, int(port)),
        round_trip_s=arguments.round_trip_ms / 1000,
        bandwidth_bytes=int(arguments.bandwidth_mbit * 1e6 / 8),
    )
    await relay.start(arguments.listen)
    print(relay.port, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Relay TCP connections over a simulated line; prints its port.")
    parser.add_argument("target", help="HOST:PORT to relay to")
    parser.add_argument("--listen", type=int, default=0, help="port on 127.0.0.1, default a free one")
    parser.add_argument("--round-trip-ms", type=float, default=0.0)
    parser.add_argument("--bandwidth-mbit", type=float, default=0.0, help="in each direction, 0 = unlimited")
    asyncio.run(_serve(parser.parse_args()))
