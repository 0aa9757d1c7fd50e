"""Packets: what leaves and arrives past asyncssh is what asyncssh would have sent and received."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import Any

import asyncssh
import pytest
from asyncssh.crypto.cipher import GCMCipher
from asyncssh.encryption import GCMEncryption
from hypothesis import given, settings
from hypothesis import strategies as st

from kit_link import open_writing, wait_for
from kit_ssh import Link
from replicad.link import ssh
from replicad.link.channel import Channel
from replicad.link.messages import Blocks
from replicad.link.packets import DATA, HEAD_BYTES, LENGTH_BYTES, TAG_BYTES, Incoming, Outgoing

NUMBER = 7
KEY, IV = bytes(range(16)), bytes(range(12))


class Inside:
    """A channel as asyncssh has it."""

    def __init__(self, window: int = 2**31) -> None:
        self._send_chan = NUMBER
        self._send_state = self._recv_state = "open"
        self._send_buf: list[bytes] = []
        self._send_window = self._recv_window = window
        self._send_pktsize = 128 * 1024
        self.got = b""

    def _accept_data(self, data: memoryview) -> None:
        self._recv_window -= len(data)
        self.got += data


class Connection:
    """A connection as asyncssh has it; `data_received` opens packets as asyncssh does, and keeps those it was left."""

    def __init__(self) -> None:
        self._auth_complete = self._kex_complete = True
        self._send_encryption = GCMEncryption(GCMCipher("aes128-gcm", KEY, IV))
        self._recv_encryption = GCMEncryption(GCMCipher("aes128-gcm", KEY, IV))
        self._send_seq = self._recv_seq = self._rekey_bytes_sent = 0
        self._rekey_bytes = 2**40
        self._inpbuf = b""
        self._transport: object | None = object()
        self._recv_handler = self._recv_pkthdr
        self._channels: dict[int, Inside] = {}
        self.wire: list[bytes] = []
        self.left: list[bytes] = []
        self.refused = False

    def _recv_pkthdr(self) -> None: ...

    def _reset_keepalive_timer(self) -> None: ...

    def _send(self, data: bytes) -> None:
        self.wire.append(bytes(data))

    def send(self, payload: bytes) -> None:
        """A packet that asyncssh makes itself."""
        padding = 4 + -(len(payload) + 5) % 16
        plain = bytes([padding]) + payload + bytes(padding)
        sealed, tag = self._send_encryption.encrypt_packet(0, len(plain).to_bytes(4, "big"), plain)
        self._send(sealed + tag)
        self._send_seq += 1

    def data_received(self, data: bytes) -> None:
        self._inpbuf += bytes(data)
        while len(self._inpbuf) >= 20 and not self.refused:
            end = 4 + int.from_bytes(self._inpbuf[:4], "big") + TAG_BYTES
            if len(self._inpbuf) < end:
                return
            sealed, self._inpbuf = self._inpbuf[:end], self._inpbuf[end:]
            plain = self._recv_encryption.decrypt_packet(0, sealed[:16], sealed[16:-16], 4, sealed[-16:])
            if plain is None:
                self.refused, self._transport, self._inpbuf = True, None, b""
                return
            self.left.append(plain[1 : -plain[0]])
            self._recv_seq += 1


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.lists(st.sampled_from(["data", "large", "other"]), max_size=20))
def test_every_packet_arrives_once_and_in_order(seed: int, kinds: list[str]) -> None:
    """Data goes to its channel and everything else to asyncssh, in order and in step, however the line cuts them."""
    source, sender, receiver = Random(seed), Connection(), Connection()
    there, here = Inside(), Inside()
    receiver._channels[NUMBER] = here
    outgoing, incoming = Outgoing(sender), Incoming(receiver)
    data, others = b"", []
    for kind in kinds:
        if kind == "other":
            others.append(bytes([source.choice((2, 80, 93, 98))]) + source.randbytes(source.randrange(200)))
            sender.send(others[-1])
        else:
            piece = source.randbytes(source.randrange(1, 128 * 1024 if kind == "large" else 300))
            assert outgoing.send(there, memoryview(piece))
            data += piece
    line = b"".join(sender.wire)
    while line:
        size = source.choice((1, 3, 100, 5_000, 300_000))
        incoming.received(line[:size])
        line = line[size:]
    assert here.got == data
    assert receiver.left == others
    assert receiver._recv_seq == sender._send_seq == len(kinds)
    assert there._send_window == 2**31 - len(data)
    assert not receiver._inpbuf


@pytest.mark.parametrize(
    "change",
    [
        lambda connection, channel: setattr(connection, "_kex_complete", False),
        lambda connection, channel: setattr(connection, "_auth_complete", False),
        lambda connection, channel: setattr(connection, "_rekey_bytes", 0),
        lambda connection, channel: setattr(connection, "_send_encryption", None),
        lambda connection, channel: setattr(connection, "_send_encryption", object()),
        lambda connection, channel: setattr(channel, "_send_state", "close_pending"),
        lambda connection, channel: setattr(channel, "_send_window", 9),
        lambda connection, channel: setattr(channel, "_send_pktsize", 9),
        lambda connection, channel: channel._send_buf.append(b"earlier"),
    ],
)
def test_what_may_not_go_at_once_is_left_to_asyncssh(change: Any) -> None:
    """New keys, another cipher, a full window, an ended channel, earlier data: nothing is sent and nothing changes."""
    connection, channel = Connection(), Inside()
    change(connection, channel)
    window = channel._send_window
    assert not Outgoing(connection).send(channel, memoryview(b"ten bytes."))
    assert (connection.wire, connection._send_seq, channel._send_window) == ([], 0, window)


@pytest.mark.parametrize("what", ["window", "channel", "state", "length", "padding"])
def test_data_that_breaks_a_rule_is_judged_by_asyncssh(what: str) -> None:
    """More than the window, no such channel, a closed one, lengths that do not fit: the channel gets nothing of it."""
    sender, receiver, here = Connection(), Connection(), Inside()
    receiver._channels[NUMBER + (what == "channel")] = here
    here._recv_window = 3 if what == "window" else 100
    here._recv_state = "eof" if what == "state" else "open"
    length = 50 if what == "length" else 4
    sender.send(
        bytes([DATA]) + NUMBER.to_bytes(4, "big") + length.to_bytes(4, "big") + b"data" + b"x" * (what == "padding")
    )
    Incoming(receiver).received(b"".join(sender.wire))
    assert here.got == b""
    assert len(receiver.left) == 1


@pytest.mark.parametrize("at", [0, LENGTH_BYTES, LENGTH_BYTES + HEAD_BYTES, -1])
def test_a_packet_that_was_changed_on_the_way_ends_the_connection(at: int) -> None:
    """asyncssh sees it with its seal broken; neither it nor anything behind it reaches a channel."""
    sender, receiver, here = Connection(), Connection(), Inside()
    receiver._channels[NUMBER] = here
    outgoing, incoming = Outgoing(sender), Incoming(receiver)
    for _ in range(2):
        outgoing.send(Inside(), memoryview(bytes(1000)))
    broken = bytearray(sender.wire[0])
    broken[at] ^= 1
    incoming.received(bytes(broken) + sender.wire[1])
    assert here.got == b""
    assert not receiver.left
    assert receiver.refused or receiver._inpbuf, "asyncssh has it"


# over a real connection


@pytest.fixture
async def link(tmp_path: Path) -> AsyncIterator[Link]:
    link = Link(tmp_path)
    await link.start()
    yield link
    await link.close()


class Counted:
    """How many data packets asyncssh made and took itself."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made = self.taken = 0
        make, take = asyncssh.connection.SSHConnection.send_packet, asyncssh.channel.SSHChannel._packet_handlers[DATA]

        def send_packet(connection: Any, kind: int, *args: Any, **words: Any) -> None:
            self.made += kind == DATA
            make(connection, kind, *args, **words)

        def process(*args: Any) -> None:
            self.taken += 1
            take(*args)

        monkeypatch.setattr(asyncssh.connection.SSHConnection, "send_packet", send_packet)
        monkeypatch.setitem(asyncssh.channel.SSHChannel._packet_handlers, DATA, process)


async def _carry(channel: Channel, link: Link, count: int = 24) -> None:
    source = Random(1)
    sent = [Blocks(source.randbytes(source.randrange(1, 1024 * 1024))) for _ in range(count)]
    for message in sent:
        await channel.send(message)
    await wait_for(lambda: len(link.node.received) == count)
    assert link.node.received == sent


async def test_no_data_takes_asyncssh_s_way(link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    """With this release of asyncssh all data packets go the short way, at both ends."""
    counted = Counted(monkeypatch)
    await _carry(await open_writing(await link.dialler().dial()), link)
    assert (counted.made, counted.taken) == (0, 0)


async def test_new_keys_amid_a_stream_lose_nothing(link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that changes its keys again and again carries the same bytes."""
    monkeypatch.setitem(ssh._COMMON_OPTIONS, "rekey_bytes", 1024 * 1024)
    channel = await open_writing(await link.dialler().dial())
    cipher = channel._stream.line.connection._send_encryption  # type: ignore[attr-defined]
    await _carry(channel, link)
    assert channel._stream.line.connection._send_encryption is not cipher  # type: ignore[attr-defined]


async def test_another_cipher_is_asyncssh_s_alone(link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between hosts that agree on ChaCha20 everything works as well."""
    monkeypatch.setitem(ssh._COMMON_OPTIONS, "encryption_algs", ("chacha20-poly1305@openssh.com",))
    counted = Counted(monkeypatch)
    await _carry(await open_writing(await link.dialler().dial()), link, 4)
    assert counted.made
    assert counted.taken
