"""Kit for the link over real SSH: a node that listens on loopback, and whoever dials it."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any, Protocol

import asyncssh

from kit_link import WINDOW_BYTES, Node, open_writing, wait_for
from replicad.config import ClientConfig, ReplicaConfig
from replicad.link.channel import Channel
from replicad.link.messages import Blocks
from replicad.link.ssh import Dialler, Listener, generate_key, listen

KEEPALIVE_S = 0.08


class Link:
    """A node that listens, and a primary's key and configuration for it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.node = Node(directory, keepalive_s=KEEPALIVE_S)
        self.host_key, self.client_key = directory / "host", directory / "client"
        host_line = generate_key(self.host_key, "fra1")
        self.node.clients.append(ClientConfig("ams1", generate_key(self.client_key, "ams1")))
        self.replica = ReplicaConfig("fra1", "", host_line, window_bytes=WINDOW_BYTES, keepalive_s=KEEPALIVE_S)
        self._diallers: list[Dialler] = []
        self._writers: list[asyncio.StreamWriter] = []
        self.listener: Listener

    async def start(self) -> None:
        self.listener = await listen("127.0.0.1:0", self.host_key, self.node.reception)
        self.replica = replace(self.replica, address=f"127.0.0.1:{self.listener.port}")

    def dialler(self, *, key: Path | None = None, port: int = 0, host_key: str = "") -> Dialler:
        replica = self.replica
        if port:
            replica = replace(replica, address=f"127.0.0.1:{port}")
        dialler = Dialler(replace(replica, key=host_key or replica.key), key or self.client_key, "replicad test")
        self._diallers.append(dialler)
        return dialler

    async def close(self) -> None:
        for dialler in self._diallers:
            await dialler.close()
        await self.node.reception.close()
        await self.listener.close()
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.gather(*(writer.wait_closed() for writer in self._writers), return_exceptions=True)

    def connection(self, **options: Any) -> AbstractAsyncContextManager[asyncssh.SSHClientConnection]:
        """A connection of asyncssh's own client, with the client's key unless others are given."""
        options = {"known_hosts": None, "client_keys": [str(self.client_key)], "config": None, **options}
        return asyncssh.connect("127.0.0.1", self.listener.port, **options)

    async def raw(self, source: str = "127.0.0.1") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A TCP connection to the listener, closed with this object at the latest."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.listener.port, local_addr=(source, 0))
        self._writers.append(writer)
        return reader, writer

    async def openssh(self, program: str, *arguments: str, agent: Path | None = None) -> tuple[int, str]:
        """Run OpenSSH's `ssh` or `sftp` with the client's key, or those of an agent; its status and all it said."""
        port = "-P" if program == "sftp" else "-p"
        options = [f"IdentityAgent={agent}"] if agent else ["IdentitiesOnly=yes", "IdentityAgent=none"]
        options += ["StrictHostKeyChecking=no", "BatchMode=yes"]
        options += ["UserKnownHostsFile=/dev/null", "ExitOnForwardFailure=yes", "ConnectTimeout=5"]
        key = [] if agent else ["-i", str(self.client_key)]
        command = [program, "-F", "/dev/null", *key, port, str(self.listener.port)]
        command += [word for option in options for word in ("-o", option)]
        process = await asyncio.create_subprocess_exec(
            *command, *arguments, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        output, _ = await asyncio.wait_for(process.communicate(), 10)
        assert process.returncode is not None
        return process.returncode, output.decode()


@asynccontextmanager
async def linked(directory: Path) -> AsyncIterator[Link]:
    """A link that listens."""
    link = Link(directory)
    await link.start()
    try:
        yield link
    finally:
        await link.close()


class Dialled(Protocol):
    """What a primary reaches: a link, or a node behind an sshd."""

    node: Node

    def dialler(self) -> Dialler:
        """A primary's way there."""


async def carried(link: Dialled, source: Random, count: int, sizes: Sequence[int]) -> Channel:
    """Send that many messages of such sizes; they arrive unchanged and in order. The channel, which is closed."""
    channel = await open_writing(await link.dialler().dial())
    sent = hashlib.sha256()
    for _ in range(count):
        data = source.randbytes(source.choice(sizes))
        sent.update(data)
        await channel.send(Blocks(data))
    await channel.close()
    await wait_for(lambda: link.node.reception.sessions == 0)
    received = hashlib.sha256(b"".join(m.frames for m in link.node.received if isinstance(m, Blocks)))
    assert received.digest() == sent.digest()
    assert link.node.reports == []
    return channel
