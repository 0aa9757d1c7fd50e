"""A real SSH link on loopback: a node that listens, and a primary's way to it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

from kit_link import WINDOW_BYTES, Node
from replicad.config import ClientConfig, ReplicaConfig
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

    async def raw(self, source: str = "127.0.0.1") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A TCP connection to the listener, closed with this object at the latest."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.listener.port, local_addr=(source, 0))
        self._writers.append(writer)
        return reader, writer

    async def openssh(self, program: str, *arguments: str) -> tuple[int, str]:
        """Run OpenSSH's `ssh` or `sftp` with the client's key; its status and everything it said."""
        port = "-P" if program == "sftp" else "-p"
        options = ["IdentitiesOnly=yes", "IdentityAgent=none", "StrictHostKeyChecking=no", "BatchMode=yes"]
        options += ["UserKnownHostsFile=/dev/null", "ExitOnForwardFailure=yes", "ConnectTimeout=5"]
        command = [program, "-F", "/dev/null", "-i", str(self.client_key), port, str(self.listener.port)]
        command += [word for option in options for word in ("-o", option)]
        process = await asyncio.create_subprocess_exec(
            *command, *arguments, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        output, _ = await asyncio.wait_for(process.communicate(), 10)
        assert process.returncode is not None
        return process.returncode, output.decode()
