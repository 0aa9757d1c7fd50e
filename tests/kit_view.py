"""Kit for the SFTP view: a listener with stores behind it in this process, and clients that say what a test wants said.

`Gallery` is the replica's side without a daemon; `Raw` speaks SFTP by hand, as a client that means harm would.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import asyncssh

from kit_restore import Writer
from replicad.config import ClientConfig, ListenConfig, ViewerConfig
from replicad.link.channel import Channel
from replicad.link.reception import House, Reception
from replicad.link.sftp import Code
from replicad.link.ssh import Listener, generate_key, listen
from replicad.model.errors import BookDamagedError, ReplicadError
from replicad.system.clock import Clock
from replicad.system.disk import Disk
from replicad.work.view import OnView

HANDLES = 16
VIEWS = 4
PATIENCE_S = 20.0


class OnShow:
    """A replica whose stores are on view."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.store = directory, directory / "store"
        self.reports: list[ReplicadError] = []
        self.damaged: list[tuple[str, str]] = []
        self.host_line = generate_key(directory / "host", "fra1")
        self.clients = [ClientConfig("ams1", generate_key(directory / "client", "ams1"))]
        self.viewers = [ViewerConfig("ada", generate_key(directory / "ada", "ada"), ("ams1/www",))]
        self.clock = Clock()
        config = ListenConfig(self.store, max_views=VIEWS, max_view_handles=HANDLES)
        self.on_view = OnView(config, lambda: self.viewers, self.clock, Disk(), self._damaged)
        house = House("fra1", "test", lambda: self.clients, self._serve, self.reports.append, on_view=self.on_view)
        self.reception = Reception(house)
        self.listener: Listener
        self.connections: list[asyncssh.SSHClientConnection] = []

    async def _damaged(self, client: str, dataset: str, error: BookDamagedError) -> None:
        self.damaged.append((client, dataset))

    async def _serve(self, channel: Channel, client: str) -> None:
        raise AssertionError("nobody replicates here")

    def writer(self, dataset: str = "www", client: str = "ams1") -> Writer:
        """Puts snapshots into a store that is on view."""
        return Writer(self.path(dataset, client))

    def path(self, dataset: str = "www", client: str = "ams1") -> Path:
        """A store's directory."""
        path = self.store / client / dataset
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    async def start(self) -> None:
        self.listener = await listen("127.0.0.1:0", self.directory / "host", self.reception)

    async def close(self) -> None:
        for connection in self.connections:
            connection.abort()
        await self.listener.close()

    async def connect(self, key: str = "ada") -> asyncssh.SSHClientConnection:
        """A connection with one of the keys in the directory."""
        connection = await asyncssh.connect(
            "127.0.0.1",
            self.listener.port,
            known_hosts=([asyncssh.import_public_key(self.host_line)], [], []),
            client_keys=[str(self.directory / key)],
            username="whoever",
            config=None,
            agent_path=None,
        )
        self.connections.append(connection)
        return connection

    async def view(self, key: str = "ada") -> asyncssh.SFTPClient:
        """A well-behaved client."""
        return await (await self.connect(key)).start_sftp_client(path_encoding=None)

    async def raw(self, key: str = "ada") -> Raw:
        """A client that says anything."""
        connection = await self.connect(key)
        writer, reader, _ = await connection.open_session(subsystem="sftp", encoding=None)
        raw = Raw(writer, reader)
        raw.say(1, (3).to_bytes(4, "big"), id=None)
        assert (await raw.answer())[0] == 2
        return raw


class Raw:
    """SFTP by hand."""

    def __init__(self, writer: asyncssh.SSHWriter[bytes], reader: asyncssh.SSHReader[bytes]) -> None:
        self.writer, self.reader = writer, reader
        self._ids = itertools.count(1)

    def say(self, verb: int, rest: bytes = b"", *, id: int | None = -1) -> None:
        """Send one request; with a number of its own unless told otherwise."""
        self.writer.write(self._request(verb, rest, next(self._ids) if id == -1 else id))

    def flood(self, verb: int, rest: bytes, count: int) -> None:
        """Send very many at once."""
        self.writer.write(b"".join(self._request(verb, rest, next(self._ids)) for _ in range(count)))

    def _request(self, verb: int, rest: bytes, number: int | None) -> bytes:
        body = bytes([verb]) + (b"" if number is None else number.to_bytes(4, "big")) + rest
        return len(body).to_bytes(4, "big") + body

    async def answer(self) -> tuple[int, bytes]:
        """The next answer: its type, and what follows its number."""
        async with asyncio.timeout(PATIENCE_S):
            size = int.from_bytes(await self.reader.readexactly(4), "big")
            body = await self.reader.readexactly(size)
        return body[0], body[5:]

    async def ask(self, verb: int, rest: bytes = b"") -> tuple[int, bytes]:
        """A request and its answer."""
        self.say(verb, rest)
        return await self.answer()

    async def code(self, verb: int, rest: bytes = b"") -> Code:
        """The status that a request ends with."""
        kind, body = await self.ask(verb, rest)
        assert kind == 101, kind
        return Code(int.from_bytes(body[:4], "big"))

    async def handle(self, verb: int, path: bytes) -> bytes:
        """Open a file (3) or a directory (11)."""
        kind, body = await self.ask(verb, text(path) + (bytes([0, 0, 0, 1]) + bytes(4) if verb == 3 else b""))
        assert kind == 102, body
        return body[4:]


def text(value: bytes) -> bytes:
    """A field of bytes."""
    return len(value).to_bytes(4, "big") + value


def reading(handle: bytes, offset: int, size: int) -> bytes:
    """The fields of a read."""
    return text(handle) + offset.to_bytes(8, "big") + size.to_bytes(4, "big")


async def refusal(ask: Callable[[], object]) -> asyncssh.SFTPError:
    """The error that a request ends with."""
    try:
        found = ask()
        assert asyncio.iscoroutine(found)
        await found
    except asyncssh.SFTPError as error:
        return error
    raise AssertionError("it was not refused")


@asynccontextmanager
async def on_show(directory: Path) -> AsyncIterator[OnShow]:
    """A replica that listens."""
    made = OnShow(directory)
    await made.start()
    try:
        yield made
    finally:
        await made.close()
