"""SSH: what carries the link between hosts. Sole owner of asyncssh, and of this node's key.

Both sides pin the other's key; nothing else is ever asked: no known_hosts, no agent, no ~/.ssh/config, no password,
no certificate. The listener offers clients one subsystem, viewers another one (SFTP), and refuses the rest. A
`Dialler` shares a connection between the channels to one replica, as far as the server lets it. asyncssh's exceptions
become ours in one table, `_MAPPED`.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections import Counter
from pathlib import Path
from typing import Any

import asyncssh
from asyncssh.kex import get_kex_algs

from replicad.config import ReplicaConfig
from replicad.link import ssh_options
from replicad.link.bandwidth import Bandwidth
from replicad.link.carrier import PACKET_BYTES, Carrier, Line, show_reason
from replicad.link.channel import GREETING_S, Channel, greet
from replicad.link.reception import Reception
from replicad.link.refusals import Refusals
from replicad.link.session import Role
from replicad.link.viewing import MAX_PER_VIEWER, Viewing
from replicad.model.errors import ConfigError, LinkError, Problem, RefusedError, ReplicadError, UsageError
from replicad.model.pairing import fingerprint, split_address
from replicad.system.clock import Clock
from replicad.system.disk import Disk

SUBSYSTEM = "replicad"
SFTP_SUBSYSTEM = "sftp"
STDIO_COMMAND = "replicad stdio"
"""What is asked of an OpenSSH server; its forced command decides what really runs."""
_CHEAP_KEX = ("mlkem768x25519-sha256", "curve25519-sha256", "curve25519-sha256@libssh.org", "ecdh-sha2-nistp256")
KEX = tuple(name for name in _CHEAP_KEX if name.encode() in get_kex_algs())
"""A millisecond or two each: anybody may ask for a key exchange, and RSA or large groups would keep the event loop for
tens of them. The first one, proof against quantum computers, is there where `cryptography` has OpenSSL 3.5."""
CONNECT_S = 20.0
"""TCP connection, key exchange and authentication together."""
LOGIN_S = 15.0
"""How long a client may take to authenticate; a honest one needs three round trips."""
MAX_TRIES = 8
"""Keys shown in one connection: an agent may hold several, and the right one comes twice, offered and signing."""
MAX_UNAUTHENTICATED = 32
MAX_UNAUTHENTICATED_PER_ADDRESS = 8
"""Connections that have not yet shown a key: bounded so that a flood costs little, and per address so that one host
cannot shut out the others."""
MAX_CONNECTIONS = 128
MAX_CONNECTIONS_PER_CLIENT = 16
"""A primary needs one and a restore one more; some may linger until the keep-alive finds them dead."""
MAX_CHANNELS = 64
"""Channels in one connection, a session each: one for each dataset, and restores."""
VIEW_WINDOW_BYTES = 256 * 1024
"""Channel window of a viewer, who only asks."""
_USER = "replicad"
_MAX_KEY_FILE_BYTES = 64 * 1024

asyncssh.set_log_level("ERROR")  # it logs every connection as information; what matters is reported by the reception


# ------------------------------------------------------------------------------------------------------------ keys


def generate_key(path: Path, comment: str) -> str:
    """Write a new Ed25519 private key (mode 0600); returns its public line. Raises UsageError when `path` exists."""
    if path.exists():
        raise UsageError("a key is already there", where=str(path), hint="move it away to make a new one")
    key = asyncssh.generate_private_key("ssh-ed25519", comment=comment)
    Disk().write_durable(path, key.export_private_key(), mode=0o600)
    return _public_line(key)


def public_key(path: Path) -> str:
    """The public line of the private key in `path`. Raises ConfigError."""
    return _public_line(_load(path))


def sign_with(path: Path, data: bytes) -> tuple[bytes, bytes]:
    """The public key and the signature of `data`, as SSH encodes them. Raises ConfigError."""
    key = _load(path)
    return key.public_data, key.sign(data, b"ssh-ed25519")


def _load(path: Path) -> asyncssh.SSHKey:
    """The private key in `path`. Raises ConfigError when it is missing, no Ed25519 key or readable by others."""
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            data = file.read(_MAX_KEY_FILE_BYTES)
    except OSError as error:
        raise _bad_key(path, f"cannot be read: {error.strerror}; replicad init makes one") from None
    if mode & 0o077:
        raise _bad_key(path, f"can be read by others (mode {mode:04o}); chmod 600 {path}")
    try:
        key = asyncssh.import_private_key(data)
    except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError) as error:
        raise _bad_key(path, f"is no private key without a passphrase in OpenSSH format: {error}") from None
    if key.get_algorithm() != "ssh-ed25519":
        raise _bad_key(path, f"is a key of type {key.get_algorithm()}; only ssh-ed25519 is used")
    return key


def _bad_key(path: Path, text: str) -> ConfigError:
    return ConfigError([Problem(str(path), 0, "private key", text)])


def _same(one: str, other: str) -> bool:
    """Whether two public lines hold the same key, whatever their comments."""
    return one.split()[:2] == other.split()[:2]


def _public_line(key: asyncssh.SSHKey) -> str:
    return " ".join(key.export_public_key().decode().split()[:2])


# --------------------------------------------------------------------------------------------------------- carriers


class _ClientCarrier(Carrier, asyncssh.SSHClientSession[bytes]):
    """At the side that dialled."""

    def __init__(self, line: Line, replica: ReplicaConfig, bandwidth: Bandwidth) -> None:
        super().__init__(line)
        self._replica, self._bandwidth = replica, bandwidth

    def session_started(self) -> None:
        replica = self._replica
        self.channel = Channel(
            self, Role.CLIENT, replica.name, keepalive_s=replica.keepalive_s, bandwidth=self._bandwidth
        )
        self.update()
        super().session_started()


class _ServerCarrier(Carrier, asyncssh.SSHServerSession[bytes]):
    """At the side that listens: a channel comes to life when the subsystem is asked for, and only then."""

    def __init__(self, door: _Door) -> None:
        super().__init__(door.line)
        self._door = door
        self._patience: asyncio.TimerHandle

    def connection_made(self, chan: Any) -> None:
        super().connection_made(chan)
        self._patience = asyncio.get_running_loop().call_later(GREETING_S, self.abort)
        chan._process_env_request = _refuse_request  # asyncssh would keep any number of variables

    def subsystem_requested(self, subsystem: str) -> bool:
        if subsystem == SFTP_SUBSYSTEM:
            return self._door.admits_view()
        return subsystem == SUBSYSTEM and bool(self._door.client)

    def session_started(self) -> None:
        self._patience.cancel()
        if self._ssh.get_subsystem() == SFTP_SUBSYSTEM:
            self._start_view()
        else:
            self._start_channel()

    def _start_view(self) -> None:
        on_view, viewer = self._door.reception.house.on_view, self._door.viewer_of_key()
        assert on_view
        self.channel = Viewing(self, viewer, on_view.view(viewer), on_view.max_handles)
        self.update()
        super().session_started()
        self._door.reception.views.start(self.channel)

    def _start_channel(self) -> None:
        reception = self._door.reception
        self.channel = Channel(self, Role.SERVER, self._door.client, keepalive_s=reception.house.keepalive_s)
        self.update()
        super().session_started()
        reception.start(self.channel)

    def eof_received(self) -> bool:
        """A viewer that has asked for all it wants is still owed the answers; a client says Bye, or it has ended."""
        if isinstance(self.channel, Viewing):
            self.channel.eof_received()
            return True
        self._ssh.close()
        return False

    def close(self) -> None:
        if isinstance(self.channel, Viewing):
            self._ssh.exit(0)  # scp takes a session without a status for one that failed
        super().close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._patience.cancel()
        super().connection_lost(exc)


def _refuse_request(_packet: object) -> bool:
    return False


# ---------------------------------------------------------------------------------------------------------- listener


class Listener:
    """The embedded SSH server, listening."""

    def __init__(self, reception: Reception) -> None:
        self.reception = reception
        self.doors: set[_Door] = set()
        self.unauthenticated: Counter[str] = Counter()
        self.refusals = Refusals(reception.house.report)
        self._acceptor: asyncssh.SSHAcceptor | None = None

    @property
    def port(self) -> int:
        """The port it listens on."""
        assert self._acceptor
        return self._acceptor.get_port()

    async def close(self) -> None:
        """Stop listening, end the reception's sessions, cut all connections."""
        assert self._acceptor
        self._acceptor.close()
        await self.reception.close()
        connections = [door.line.connection for door in self.doors]
        for connection in connections:
            connection.abort()
        await asyncio.gather(*(connection.wait_closed() for connection in connections))
        self.refusals.flush()

    async def open(self, host: str, port: int, key: asyncssh.SSHKey) -> None:
        """Begin to listen."""
        self._acceptor = await asyncssh.listen(
            host,
            port,
            server_factory=lambda: _Door(self),
            server_host_keys=[key],
            window=self.reception.house.window_bytes,
            login_timeout=LOGIN_S,
            keepalive_interval=ssh_options.IDLE_KEEPALIVES * self.reception.house.keepalive_s,
            kex_algs=KEX,
            **ssh_options.SERVER,
            **ssh_options.COMMON,
        )

    async def recheck(self) -> None:
        """End the sessions of clients that are no longer configured, and cut the connections whose key no longer
        stands for their client; for a changed configuration."""
        await self.reception.recheck()
        for door in tuple(self.doors):
            if (door.client or door.viewer) and not door.still_authorised:
                door.line.connection.abort()

    def admits(self, address: str) -> str:
        """Why one more connection from `address` is too many, or ""."""
        if len(self.doors) >= MAX_CONNECTIONS:
            return f"more than {MAX_CONNECTIONS} connections"
        if self.unauthenticated.total() >= MAX_UNAUTHENTICATED:
            return f"more than {MAX_UNAUTHENTICATED} connections that have not shown a key"
        if self.unauthenticated[address] >= MAX_UNAUTHENTICATED_PER_ADDRESS:
            return f"more than {MAX_UNAUTHENTICATED_PER_ADDRESS} connections that have not shown a key"
        return ""


async def listen(address: str, key: Path, reception: Reception) -> Listener:
    """Listen on ADDR:PORT with the host key in `key`. Raises ConfigError (key), LinkError (address)."""
    host, _, port = address.rpartition(":")
    listener = Listener(reception)
    try:
        await listener.open(host.strip("[]"), int(port), _load(key))
    except OSError as error:
        raise LinkError(f"cannot listen: {error.strerror or error}", where=address) from None
    return listener


class _Door(asyncssh.SSHServer):
    """One connection to the listener. Everything that asyncssh would ask it and that is not here, it refuses."""

    line: Line

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self.reception = listener.reception
        self.client = ""
        """The authenticated client; "" before, and for a viewer that is none."""
        self.viewer = ""
        """The authenticated viewer, where it is no client."""
        self._address = ""
        self._key = ""
        self._counted = False
        """Whether this connection is among the unauthenticated ones."""
        self._tries = 0
        self._refused: dict[str, None] = {}
        """Fingerprints of the keys that are not authorised, in the order in which they were shown."""

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self.line = Line(conn)
        self._address = str(conn.get_extra_info("peername", ("", 0))[0])
        problem = self._listener.admits(self._address)
        self._listener.doors.add(self)
        self._listener.unauthenticated[self._address] += 1
        self._counted = True
        if problem:
            self._turn_away(problem)

    def connection_lost(self, exc: Exception | None) -> None:
        self._listener.doors.discard(self)
        self._no_longer_unauthenticated()
        if self._refused and not (self.client or self.viewer):
            keys = ", ".join(self._refused)
            which = f"keys {keys} are" if len(self._refused) > 1 else f"key {keys} is"
            more = "; more were shown" if self._tries > MAX_TRIES else ""
            self._report(f"{which} not authorised{more}", hint=_LET_IN)

    def begin_auth(self, username: str) -> bool:
        return True

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        """Called for a key that is offered and again for the one that signs; the last one is the client's."""
        self._tries += 1
        if self._tries > MAX_TRIES:
            self.line.connection.abort()
            return False
        self._key = _public_line(key)
        if self._client_of_key() or self.viewer_of_key():
            return True
        self._refused[key.get_fingerprint()] = None
        return False

    def auth_completed(self) -> None:
        self.client = self._client_of_key()
        self.viewer = "" if self.client else self.viewer_of_key()
        self._no_longer_unauthenticated()
        same = sum((door.client, door.viewer) == (self.client, self.viewer) for door in self._listener.doors)
        viewers = sum(bool(door.viewer) for door in self._listener.doors)
        name = f"client {self.client}" if self.client else f"viewer {self.viewer}"
        if same > (MAX_CONNECTIONS_PER_CLIENT if self.client else MAX_PER_VIEWER):
            self._turn_away(f"{name} has too many connections: {same}")
        elif self.viewer and viewers > self.reception.views.limit:
            self._turn_away(f"{name}: viewers have more than {self.reception.views.limit} connections")

    def session_requested(self) -> _ServerCarrier | tuple[asyncssh.SSHServerChannel[bytes], _ServerCarrier] | bool:
        """Asked for each channel: the key must still be authorised then."""
        if len(self.line.carriers) >= MAX_CHANNELS or not self.still_authorised:
            return False
        carrier = _ServerCarrier(self)
        if self.client:
            return carrier
        return self.line.connection.create_server_channel(None, "strict", VIEW_WINDOW_BYTES), carrier

    @property
    def still_authorised(self) -> bool:
        """Whether the key that this connection was let in with is, as of now, its client's, or its viewer's."""
        if self.client:
            return self._client_of_key() == self.client
        return bool(self.viewer) and self.viewer_of_key() == self.viewer

    def admits_view(self) -> bool:
        """Whether this connection may have one more view."""
        viewer = self.viewer_of_key()
        if not viewer or not self.still_authorised:
            return False
        problem = self.reception.views.refusal(viewer)
        if problem:
            self._report(problem, hint="listen.max_views")
        return not problem

    def viewer_of_key(self) -> str:
        """The viewer whose key this is now; "" when it may view nothing."""
        return next((viewer.name for viewer in self.reception.viewers() if _same(viewer.key, self._key)), "")

    def _client_of_key(self) -> str:
        return next((client.name for client in self.reception.house.clients() if _same(client.key, self._key)), "")

    def _no_longer_unauthenticated(self) -> None:
        if not self._counted:
            return
        self._counted = False
        self._listener.unauthenticated[self._address] -= 1
        if not self._listener.unauthenticated[self._address]:
            del self._listener.unauthenticated[self._address]

    def _turn_away(self, why: str) -> None:
        self._report(why, hint="")
        self.line.connection.abort()

    def _report(self, what: str, *, hint: str) -> None:
        peer = self.client or self.viewer or self._address
        self._listener.refusals.tell(peer, RefusedError(what, where=self._address, hint=hint))


# ----------------------------------------------------------------------------------------------------------- dialler


class Dialler:
    """The way to one replica: an SSH connection, made when it is needed, for all channels to it; another one where the
    server takes no more of them on the first, as an sshd with its MaxSessions."""

    def __init__(self, replica: ReplicaConfig, key: Path, software: str, clock: Clock | None = None) -> None:
        self.replica, self._key_path, self._software = replica, key, software
        day = clock or Clock()
        self._bandwidth = Bandwidth(lambda: replica.bandwidth_at(day.second_of_day()))
        self._callers: list[_Caller] = []
        self._connecting = asyncio.Lock()

    async def dial(self) -> Channel:
        """A greeted channel, over a connection that stands or a new one.

        Raises LinkError (out of reach; try again), RefusedError (key, host key, version, limit), PeerError,
        ConfigError (own key).
        """
        try:
            async with asyncio.timeout(CONNECT_S):
                channel = await self._channel()
        except ReplicadError:
            raise
        except Exception as error:  # what the peer's bytes do to asyncssh is the peer's fault, whatever it raises
            self._drop_unless_in_use()
            raise self._mapped(error) from error
        try:
            await greet(channel, self._software)
        except asyncio.CancelledError:
            channel.hang_up("cancelled")
            raise
        return channel

    async def close(self) -> None:
        """Cut the connections, and with them all channels."""
        for caller in self._callers:
            caller.line.connection.abort()
            await caller.line.connection.wait_closed()

    def _drop_unless_in_use(self) -> None:
        """After a failure a connection may be dead. Where channels live on it, their keep-alive is the judge."""
        for caller in self._callers:
            if not caller.line.in_use:
                caller.line.connection.abort()
        self._callers = [caller for caller in self._callers if caller.line.in_use]

    async def _channel(self) -> Channel:
        while True:
            async with self._connecting:
                caller = await self._connected()
            try:
                return await self._opened(caller)
            except asyncssh.ChannelOpenError as error:
                if caller.line.connection.is_closed():
                    raise LinkError("the connection was lost", where=self._where) from None
                if error.code == asyncssh.OPEN_REQUEST_SESSION_FAILED or not caller.line.carriers:
                    raise
                caller.room = len(caller.line.carriers)

    async def _connected(self) -> _Caller:
        """A connection that may have room for one more channel."""
        self._callers = [caller for caller in self._callers if not caller.line.connection.is_closed()]
        for caller in self._callers:
            if len(caller.line.carriers) < caller.room:
                return caller
        self._callers.append(await self._connect())
        return self._callers[-1]

    async def _connect(self) -> _Caller:
        host, port = split_address(self.replica.address)
        key = _load(self._key_path)
        pinned = asyncssh.import_public_key(self.replica.key)
        caller = _Caller()
        try:
            await asyncssh.connect(
                host,
                port,
                client_factory=lambda: caller,
                known_hosts=([pinned], [], []),
                client_keys=[key],
                username=self.replica.user if self.replica.via == "openssh" else _USER,
                login_timeout=CONNECT_S,
                keepalive_interval=ssh_options.IDLE_KEEPALIVES * self.replica.keepalive_s,
                kex_algs=KEX,
                **ssh_options.CLIENT,
                **ssh_options.COMMON,
            )
        except asyncssh.HostKeyNotVerifiable:
            raise self._wrong_host_key(caller.seen) from None
        except asyncssh.PermissionDenied:
            raise self._not_authorised(key) from None
        return caller

    async def _opened(self, caller: _Caller) -> Channel:
        """A channel; one that comes when it is not waited for any more is closed, or the replica would wait for us."""
        opening = asyncio.ensure_future(self._open(caller))
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_hang_up)
            raise

    async def _open(self, caller: _Caller) -> Channel:
        wanted = {"command": STDIO_COMMAND} if self.replica.via == "openssh" else {"subsystem": SUBSYSTEM}
        _, carrier = await caller.line.connection.create_session(
            lambda: _ClientCarrier(caller.line, self.replica, self._bandwidth),
            encoding=None,
            window=self.replica.window_bytes,
            max_pktsize=PACKET_BYTES,
            **wanted,
        )
        assert isinstance(carrier, _ClientCarrier) and isinstance(carrier.channel, Channel)
        return carrier.channel

    def _wrong_host_key(self, seen: str) -> RefusedError:
        expected = fingerprint(self.replica.key)
        return RefusedError(
            f"the host key is {seen or 'of another type'}, expected is {expected}",
            where=self._where,
            hint="another host answers at this address, or the replica has a new key; if so, pair again",
        )

    def _not_authorised(self, key: asyncssh.SSHKey) -> RefusedError:
        return RefusedError(
            f"this node's key {fingerprint(_public_line(key))} is not authorised there",
            where=self._where,
            hint=_AUTHORIZE[self.replica.via].format(user=self.replica.user),
        )

    def _mapped(self, error: Exception) -> ReplicadError:
        _, ours, text, hint = next(row for row in _MAPPED if isinstance(error, row[0]))
        return ours(text.format(kind=type(error).__name__, reason=show_reason(error)), where=self._where, hint=hint)

    @property
    def _where(self) -> str:
        return f"{self.replica.name} ({self.replica.address})"


def _hang_up(opening: asyncio.Future[Channel]) -> None:
    if not opening.cancelled() and not opening.exception():
        opening.result().hang_up("cancelled")


class _Caller(asyncssh.SSHClient):
    """The client's end of one connection."""

    line: Line

    def __init__(self) -> None:
        self.seen = ""
        """Fingerprint of a host key that is not the pinned one."""
        self.room = MAX_CHANNELS
        """Channels that the server takes on it, as it has shown by refusing one more."""

    def connection_made(self, conn: asyncssh.SSHClientConnection) -> None:
        self.line = Line(conn)

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        """Asked about keys other than the pinned one only."""
        self.seen = key.get_fingerprint()
        return False


_LET_IN = "replicad authorize lets a client in, replicad viewer add a viewer"
_AUTHORIZE = {
    "replicad": "on the replica, run `replicad authorize` with the line that `replicad init primary` printed here; "
    'when an OpenSSH server answers at this address, set via = "openssh"',
    "openssh": "on the replica, `replicad authorize` it and add it to the authorized_keys of user {user} with "
    'restrict,command="replicad stdio --client NAME"',
}
"""What to do about a key that is not authorised, by the kind of door."""
_MAPPED: tuple[tuple[type[Exception], type[ReplicadError], str, str], ...] = (
    (asyncssh.KeyExchangeFailed, RefusedError, "no common ground with the SSH server: {reason}",
     "is this a replicad listener, or an OpenSSH server with an Ed25519 host key?"),
    (asyncssh.ProtocolNotSupported, RefusedError, "what answers is no SSH server: {reason}", "check the address"),
    (asyncssh.ChannelOpenError, RefusedError, "no session is offered: {reason}",
     'too many sessions, or an OpenSSH server, which needs via = "openssh"'),
    (asyncssh.Error, LinkError, "{reason}", ""),
    (TimeoutError, LinkError, f"no answer within {CONNECT_S:.0f} s", ""),
    (OSError, LinkError, "cannot connect: {reason}", ""),
    (Exception, LinkError, "the SSH handshake failed: {kind}: {reason}", "is this a replicad listener?"),
)  # fmt: skip
"""asyncssh's, the system's or any other exception; ours; what to say; what to do. The first that fits."""
