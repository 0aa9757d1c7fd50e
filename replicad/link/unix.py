"""Unix: the door for an OpenSSH server. Its forced command `replicad stdio` connects to STATE/link.sock.

The connection begins with one JSON line that names the client, which sshd has authenticated; after that it carries
a channel's bytes. Who may open the socket may say any name: its mode lets in nobody but the daemon's own user.
"""

from __future__ import annotations

import asyncio
import json
import socket
import stat
from pathlib import Path

from replicad.link.channel import Channel
from replicad.link.messages import Refuse
from replicad.link.reception import Reception
from replicad.link.session import Role, show_text
from replicad.model.block import Buffer
from replicad.model.errors import LinkError, LockedError
from replicad.system.sockets import socket_address

SOCKET_NAME = "link.sock"
PREFACE_BYTES = 1024
"""A preface holds one name; a line without an end is cut off here."""
PREFACE_S = 10.0
"""The preface is sent by our own program, at once."""
BACKLOG = 64


def preface(client: str) -> bytes:
    """The first line of a connection."""
    return json.dumps({"client": client}).encode() + b"\n"


def client_of_preface_untrusted(line: bytes) -> str:
    """The client's name, or "" when the line is no preface."""
    try:
        client = json.loads(line)["client"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return ""
    return client if isinstance(client, str) else ""


class UnixListener:
    """The open door."""

    def __init__(self, server: asyncio.Server, path: Path) -> None:
        self._server, self.path = server, path

    async def close(self) -> None:
        """Take no more connections; those that are open belong to the reception."""
        self._server.close()
        self.path.unlink(missing_ok=True)


async def serve_unix(path: Path, reception: Reception) -> UnixListener:
    """Listen on the unix socket `path`, mode 0600; a socket left there by a dead daemon is replaced.

    Raises LockedError when something else is at `path`, LinkError when the socket cannot be made.
    """
    if path.exists() and not stat.S_ISSOCK(path.lstat().st_mode):
        raise LockedError("is there and is no socket", where=str(path), hint="move it away")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.unlink(missing_ok=True)
        with socket_address(path) as address:
            listener.bind(address)
        path.chmod(0o600)  # before listen: until then nobody can connect
    except OSError as error:
        listener.close()
        raise LinkError(f"cannot listen: {error.strerror or error}", where=str(path)) from None
    server = await asyncio.get_running_loop().create_unix_server(
        lambda: _Connection(reception), sock=listener, backlog=BACKLOG
    )
    return UnixListener(server, path)


class _Connection(asyncio.Protocol):
    """One connection: first a line of text, then the Stream of a channel."""

    def __init__(self, reception: Reception) -> None:
        self._reception = reception
        self._line = bytearray()
        self._channel: Channel | None = None
        self._patience = asyncio.get_running_loop().call_later(PREFACE_S, self.abort)

    # The asyncio protocol.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self._channel:
            self._channel.data_received(data)
            return
        self._line += data
        line, newline, rest = bytes(self._line).partition(b"\n")
        if newline and len(line) <= PREFACE_BYTES:
            self._open(line, rest)
        elif len(self._line) > PREFACE_BYTES:
            self.abort()

    def pause_writing(self) -> None:
        if self._channel:
            self._channel.pause_writing()

    def resume_writing(self) -> None:
        if self._channel:
            self._channel.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._patience.cancel()
        if self._channel:
            self._channel.connection_lost(str(exc) if exc else "")

    # The Stream.

    def write(self, data: Buffer) -> None:
        if not self._transport.is_closing():
            self._transport.write(bytes(data))

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def close(self) -> None:
        self._transport.close()

    def abort(self) -> None:
        self._transport.abort()

    def _open(self, line: bytes, rest: bytes) -> None:
        self._patience.cancel()
        name = client_of_preface_untrusted(line)
        self._channel = Channel(self, Role.SERVER, show_text(name), keepalive_s=self._reception.house.keepalive_s)
        if self._reception.client_named(name):
            self._reception.start(self._channel)
        else:
            self._reception.turn_away(self._channel, Refuse("right", f"client {name!r} is not configured here"))
        if rest:
            self._channel.data_received(rest)
