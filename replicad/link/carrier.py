"""Carrier: a Stream over one channel of an SSH connection. Knows asyncssh's callbacks and not asyncssh itself.

asyncssh takes the peer's channel window as the only bound of what it buffers to send, and the window is the peer's to
choose. A `Line` adds the missing one: a full socket, or a key exchange under way, stops every channel on the
connection; then they take turns. It also hears data as they arrive: on a slow line one packet may take longer than a
keep-alive. What SSH sends by itself is not heard: an sshd answers for a program behind it that has long hung. What is
received is bounded by an `Intake`, in place of asyncssh's own buffer.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Any, Protocol

from replicad.link.inbox import Inbox
from replicad.link.intake import Intake
from replicad.link.sealing import Sealing
from replicad.link.session import show_text
from replicad.model.block import Buffer

PACKET_BYTES = 128 * 1024
"""Largest SSH packet: 128 KiB was measured to be fastest, 64 KiB close to it, 256 KiB and more slower than 32."""
UNSENT_BYTES = 256 * 1024
"""What a channel buffers beyond the peer's window before `send` waits: bridges a turn of the event loop."""
NOTSENT_BYTES = 512 * 1024
"""What the kernel may hold of a connection and not have sent: keeps replies and signs of life from waiting behind
megabytes on a slow line, and is enough to keep a fast one busy."""
MSG_IGNORE = 2
"""asyncssh sends an empty one before each packet, against an attack on ciphers of other kinds than ours (RFC 4251,
section 9.3.1). It is left out: there would be twice as many packets to seal, send and open."""
NOT_ANSWERS = frozenset({93, 94, 95})
"""SSH_MSG_CHANNEL_WINDOW_ADJUST, DATA and EXTENDED_DATA: what comes of a channel's own work."""
MAX_ANSWERS = 1000
"""Answers of SSH itself, which waits for nobody, that the peer may have taken nothing of: none of ours asks so much."""
MAX_SAID_BYTES = 2048
"""Of what a remote command says on its standard error, the end is kept for the error message."""


class Receiver(Protocol):
    """What a `Stream` calls: a `Channel`, or a session of the SFTP view."""

    def data_received(self, data: Buffer) -> None: ...
    def heard(self, size: int) -> None: ...
    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...
    def connection_lost(self, reason: str) -> None: ...


class Line:
    """One SSH connection: the back-pressure of its TCP transport, for all channels on it."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.has_data = False
        """Whether data of a channel came with the bytes that are being taken apart."""
        self.carriers: dict[Carrier, None] = {}
        """In the order in which they wrote last: when there is room again, who has waited longest goes first."""
        self._socket_full = False
        self._answers = 0
        connection.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, NOTSENT_BYTES)
        self.connection.pause_writing = self._pause  # asyncssh's own methods do nothing
        self.connection.resume_writing = self._resume
        self._take = connection.data_received
        self._send, self._send_deferred = connection.send_packet, connection._send_deferred_packets
        connection.send_packet = self._send_packet
        connection._send_deferred_packets = self._keys_agreed
        self.connection.data_received = self._received
        self.sealing = Sealing(connection)

    @property
    def full(self) -> bool:
        """Whether channels have to wait: for the socket, or for new keys, until when asyncssh keeps what is sent."""
        return self._socket_full or bool(self.connection._deferred_packets)

    @property
    def in_use(self) -> bool:
        """Whether there is a channel on it that has not ended."""
        return any(carrier.channel for carrier in self.carriers)

    def wrote(self, carrier: Carrier) -> None:
        """It is the others' turn."""
        if carrier in self.carriers:
            self.carriers[carrier] = self.carriers.pop(carrier)

    def _pause(self) -> None:
        self._socket_full = True
        self._tell()

    def _resume(self) -> None:
        self._socket_full = False
        self._tell()

    def _keys_agreed(self) -> None:
        self._send_deferred()
        self._tell()

    def _received(self, data: bytes) -> None:
        if self.carriers and not isinstance(self.connection._inpbuf, Inbox):
            self.connection._inpbuf = Inbox(self.connection._inpbuf)
        self.has_data = False
        self._take(data)
        if self.has_data or self.connection._inpbuf:  # a packet that is not complete yet may be one of data
            for carrier in tuple(self.carriers):
                if carrier.channel:
                    carrier.channel.heard(len(data))

    def _send_packet(self, kind: int, *parts: bytes, handler: Any = None) -> None:
        if kind == MSG_IGNORE:
            return
        self._send(kind, *parts, handler=handler)
        if self.full:
            self._answers += kind not in NOT_ANSWERS
            self._tell()
        if self._answers > MAX_ANSWERS:
            self.connection.abort()

    def _tell(self) -> None:
        if not self.full:
            self._answers = 0
        for carrier in tuple(self.carriers):
            carrier.update()


class Carrier:
    """The Stream of one channel, and what asyncssh calls a session."""

    def __init__(self, line: Line) -> None:
        self.line = line
        line.carriers[self] = None
        self.channel: Receiver | None = None
        self._ssh: Any = None
        self._intake: Intake
        self._reading, self._closed = True, False
        self._full = self._told_full = False
        self._said = b""
        self._status: int | None = None

    # What asyncssh calls.

    def connection_made(self, chan: Any) -> None:
        self._ssh = chan
        chan.set_write_buffer_limits(UNSENT_BYTES)
        self._intake = Intake(chan)
        chan._accept_data = self._accept  # asyncssh's own method keeps without bound what a paused session leaves

    def session_started(self) -> None:
        self._pour()

    def exit_status_received(self, status: int) -> None:
        self._status = status

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.line.carriers.pop(self, None)
        if self.channel:
            while self._intake:  # what came before the end counts, taken or not
                self.channel.data_received(self._intake.take())
            self.channel.connection_lost(self._ending(exc))

    def pause_writing(self) -> None:
        self._full = True
        self.update()

    def resume_writing(self) -> None:
        self._full = False
        self.update()

    def update(self) -> None:
        """Tell the channel when either buffer has filled, or both have room again."""
        full = self._full or self.line.full
        if self.channel and full != self._told_full:
            self._told_full = full
            (self.channel.pause_writing if full else self.channel.resume_writing)()

    # The Stream.

    def write(self, data: Buffer) -> None:
        self.line.wrote(self)
        with suppress(OSError), memoryview(data) as view:  # it has ended; connection_lost follows or has been
            for at in range(0, len(view), PACKET_BYTES):
                packet = view[at : at + PACKET_BYTES]
                if not self.line.sealing.send(self._ssh, packet):
                    self._ssh.write(packet)

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = True
        self._pour()

    def close(self) -> None:
        self._closed = True
        self._intake.drop()
        self._ssh.close()

    def abort(self) -> None:
        """Cut the channel, and with the last one the connection: whether the peer is silent, each channel hears."""
        channel, self.channel = self.channel, None
        if not self.line.in_use:
            self.line.connection.abort()
        self._closed = True
        self._intake.drop()
        self._ssh._close_send()  # asyncssh's own abort leaves one that is closing to wait for the peer's window
        if channel:
            channel.connection_lost("cut off")

    def _accept(self, data: Buffer, datatype: int | None = None) -> None:
        """Data of the peer, in one packet."""
        self.line.has_data = True
        if self._closed:
            return
        self._intake.arrived(len(data))
        if datatype is not None:
            self._said = (self._said + bytes(data))[-MAX_SAID_BYTES:]
        elif self.channel and self._reading:
            self.channel.data_received(data)
        else:
            self._intake.keep(data)
        self._intake.grant()

    def _pour(self) -> None:
        """Give what has waited to the channel, as long as it takes it."""
        while self._intake and self.channel and self._reading:
            self.channel.data_received(self._intake.take())
        self._intake.grant()

    def _ending(self, exc: Exception | None) -> str:
        if self._status is not None:
            said = show_text(" ".join(self._said.decode(errors="replace").split()))
            return f"the remote command ended with status {self._status}: {said or 'it said nothing'}"
        return f"connection lost: {show_reason(exc)}" if exc else ""


def show_reason(error: Exception) -> str:
    """Why a connection failed or ended, in one line that is safe to print."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return show_text(" ".join((text or type(error).__name__).split())[:MAX_SAID_BYTES])
