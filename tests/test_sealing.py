"""Sealing: packets are those of asyncssh byte for byte, data take the short way, and whatever is odd is left to it."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from asyncssh import channel as asyncssh_channel
from asyncssh import connection as asyncssh_connection
from asyncssh import encryption as asyncssh_encryption
from asyncssh.crypto import cipher as asyncssh_cipher
from hypothesis import given
from hypothesis import strategies as st

from kit_link import open_writing, wait_for
from kit_ssh import Link, carried, linked
from replicad.link import ssh_options
from replicad.link.carrier import PACKET_BYTES
from replicad.link.inbox import Inbox
from replicad.link.messages import Blocks
from replicad.link.sealing import CHANNEL_DATA, DATA_AT, HEADER_BYTES, TAG_BYTES, Gcm, Sealing
from replicad.model.errors import LinkError

MEBIBYTE = 1024 * 1024
KEY, IV = bytes(range(16)), bytes(range(100, 112))
ALL_ONES = IV[:4] + b"\xff" * 8


def stock(iv: bytes = IV) -> asyncssh_encryption.GCMEncryption:
    """asyncssh's own."""
    return asyncssh_encryption.GCMEncryption.new("aes128-gcm", KEY, iv)


# ------------------------------------------------------------------------------------------------------------- cipher


@given(st.sampled_from([IV, ALL_ONES]), st.lists(st.binary(min_size=16, max_size=300), min_size=1, max_size=6))
def test_packets_are_those_of_asyncssh_byte_for_byte(iv: bytes, packets: list[bytes]) -> None:
    """One after another, also where the counter begins anew; each opens what the other has sealed, either way."""
    theirs, ours, opens, their_opens = stock(iv), Gcm(KEY, iv), Gcm(KEY, iv), stock(iv)
    for number, packet in enumerate(packets):
        header = len(packet).to_bytes(HEADER_BYTES, "big")
        wire = b"".join(theirs.encrypt_packet(number, header, packet))
        assert b"".join(ours.encrypt_packet(number, header, packet)) == wire
        first, rest, mac = wire[:16], wire[16:-TAG_BYTES], wire[-TAG_BYTES:]
        assert opens.decrypt_header(number, first, HEADER_BYTES) == (first, header)
        if number % 2:
            assert opens.decrypt_packet(number, first, rest, HEADER_BYTES, mac) == packet
        else:
            assert opens.open(header, memoryview(wire)[HEADER_BYTES:]) == packet
        assert their_opens.decrypt_packet(number, first, rest, HEADER_BYTES, mac) == packet


@given(st.integers(0, 83), st.integers(0, 7))
def test_a_flipped_bit_opens_nothing(at: int, bit: int) -> None:
    """Wherever it is: in the length, the data or the tag."""
    header = (64).to_bytes(HEADER_BYTES, "big")
    wire = bytearray(header + Gcm(KEY, IV).seal(header, bytes(64)))
    wire[at] ^= 1 << bit
    assert Gcm(KEY, IV).open(bytes(wire[:HEADER_BYTES]), wire[HEADER_BYTES:]) is None


def test_other_ciphers_are_left_alone() -> None:
    """The place of AES-GCM is taken, once; no other's."""
    taken = Gcm.instead_of(stock())
    assert taken is not None and Gcm.instead_of(taken) is taken
    assert Gcm.instead_of(None) is None
    assert Gcm.instead_of(asyncssh_encryption.ChachaEncryption.new("chacha20-poly1305", bytes(64), b"")) is None


# --------------------------------------------------------------------------------------------------- real connections


@pytest.fixture
async def link(tmp_path: Path) -> AsyncIterator[Link]:
    async with linked(tmp_path) as link:
        yield link


class Ways:
    """Counts the data packets that asyncssh itself sends and takes, and those that go the short way."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sent = self.taken = self.short = 0
        shorten = Sealing.send
        process, send = asyncssh_channel.SSHChannel._process_data, asyncssh_connection.SSHConnection.send_packet

        def processed(channel: Any, kind: int, number: int, packet: Any) -> None:
            self.taken += 1
            process(channel, kind, number, packet)

        def sent(connection: Any, kind: int, *parts: bytes, **rest: Any) -> None:
            self.sent += kind == CHANNEL_DATA
            send(connection, kind, *parts, **rest)

        def shortened(sealing: Sealing, channel: Any, data: memoryview) -> bool:
            done = shorten(sealing, channel, data)
            self.short += done
            return done

        handlers = {**asyncssh_channel.SSHChannel._packet_handlers, CHANNEL_DATA: processed}
        monkeypatch.setattr(asyncssh_channel.SSHChannel, "_packet_handlers", handlers)
        monkeypatch.setattr(asyncssh_connection.SSHConnection, "send_packet", sent)
        monkeypatch.setattr(Sealing, "send", shortened)


async def carry(link: Link) -> None:
    """Messages of sizes around that of a packet arrive unchanged and in order."""
    await carried(link, Random(3), 40, [1, 100, PACKET_BYTES - 1, PACKET_BYTES, MEBIBYTE, 3_000_000])


async def test_data_take_the_short_way(link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    """asyncssh takes none of them, and sends those alone that the peer's window has no room for yet."""
    ways = Ways(monkeypatch)
    await carry(link)
    assert ways.taken == 0
    assert ways.short > 3 * ways.sent


@pytest.mark.parametrize("is_short", [(True, False), (False, True), (False, False)])
async def test_both_ways_understand_each_other(
    link: Link, monkeypatch: pytest.MonkeyPatch, is_short: tuple[bool, bool]
) -> None:
    """Either end may send, or take, as asyncssh does."""
    ways = Ways(monkeypatch)
    if not is_short[0]:
        monkeypatch.setattr(Sealing, "send", lambda *_: False)
    if not is_short[1]:
        monkeypatch.setattr(Sealing, "_receive", lambda self: self._long_way())
    await carry(link)
    assert (ways.sent > 100) is not is_short[0]
    assert (ways.taken > 100) is not is_short[1]


async def test_keys_are_exchanged_anew_amid_data(link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every two MiB: what is under way then waits, nothing is lost or doubled, and the new keys take over."""
    monkeypatch.setitem(ssh_options.COMMON, "rekey_bytes", 2 * MEBIBYTE)
    keys: set[bytes] = set()
    made = Gcm.__init__

    def noted(self: Gcm, key: bytes, iv: bytes) -> None:
        keys.add(key)
        made(self, key, iv)

    monkeypatch.setattr(Gcm, "__init__", noted)
    await carry(link)
    assert len(keys) > 10


async def test_a_packet_that_is_not_what_was_sealed_ends_the_connection(
    link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One bit in a data packet: the session is over, and nothing of the packet has come through."""
    channel = await open_writing(await link.dialler().dial())
    await channel.send(Blocks(b"good"))
    await wait_for(lambda: link.node.received != [])
    seal = Gcm.seal

    def broken(self: Gcm, header: bytes, plain: bytes) -> bytes:
        sealed = bytearray(seal(self, header, plain))
        sealed[len(sealed) // 2] ^= 1
        return bytes(sealed)

    monkeypatch.setattr(Gcm, "seal", broken)
    await channel.send(Blocks(b"bad"))
    await asyncio.wait_for(channel.over.wait(), 10)
    assert link.node.received == [Blocks(b"good")]
    assert isinstance(channel.error, LinkError)


# ------------------------------------------------------------------------------------------------ whatever is not plain


class Fake:
    """As much of a connection and of its one channel as packets are taken by."""

    def __init__(self) -> None:
        self._recv_encryption: Any = stock()
        self._inpbuf: Any = Inbox(b"")
        self._max_recv_pktlen = 4096
        self._recv_seq = 2**32 - 1
        self._decompressor: Any = None
        self._channels: dict[int, Any] = {7: self}
        self._recv_state, self._recv_window = "open", 100
        self.left = 0
        self.came: list[bytes] = []
        Sealing(self)

    def _recv_pkthdr(self) -> bool:
        self.left += 1
        return True

    def _accept_data(self, data: memoryview) -> None:
        self.came.append(bytes(data))

    def arrive(
        self, data: bytes, *, channel: int = 7, kind: int = CHANNEL_DATA, padding: int = 6, size: int = -1
    ) -> bool:
        """Have a packet come; whether one was taken, by whomever."""
        head = (
            bytes((padding, kind)) + channel.to_bytes(4, "big") + (len(data) if size < 0 else size).to_bytes(4, "big")
        )
        plain = head + data + bytes(padding)
        header = len(plain).to_bytes(HEADER_BYTES, "big")
        self._inpbuf += b"".join(stock().encrypt_packet(0, header, plain))
        return self._recv_pkthdr()


def test_data_of_an_open_channel_are_taken() -> None:
    """Once all of the packet is there, and no sooner; the count of packets goes on, and begins anew at its end."""
    fake = Fake()
    assert fake.arrive(b"some data")
    assert (fake.came, fake.left, fake._recv_seq, len(fake._inpbuf)) == ([b"some data"], 0, 0, 0)
    fake = Fake()
    header = (DATA_AT + 9 + 6).to_bytes(HEADER_BYTES, "big")
    wire = b"".join(stock().encrypt_packet(0, header, bytes((6, 94)) + b"\0\0\0\x07\0\0\0\x09some data" + bytes(6)))
    for at in range(len(wire)):
        fake._inpbuf += wire[at : at + 1]
        assert fake._recv_pkthdr() is (at == len(wire) - 1)
    assert (fake.came, fake.left) == ([b"some data"], 0)


@pytest.mark.parametrize(
    "odd",
    [
        {"channel": 8},
        {"kind": 93},
        {"size": 3},
        {"size": 5},
        {"size": 2**32 - 1},
        {"padding": 3},
        {"padding": 0},
        {"data": b""},
        {"data": bytes(101)},
    ],
    ids=str,
)
def test_what_is_not_plainly_data_is_left_to_asyncssh(odd: dict[str, Any]) -> None:
    """Another channel or kind, lengths that do not agree, no data, more than the window: nothing is taken, and asyncssh
    finds the packet as it came, and what was opened of it."""
    fake = Fake()
    assert fake.arrive(**{"data": b"data", **odd})
    assert (fake.came, fake.left, fake._recv_seq) == ([], 1, 2**32 - 1)
    wire = fake._inpbuf[: len(fake._inpbuf)]
    assert isinstance(wire, bytes)
    opened = fake._recv_encryption.decrypt_packet(0, wire[:16], wire[16:-TAG_BYTES], HEADER_BYTES, wire[-TAG_BYTES:])
    assert opened == stock().decrypt_packet(0, wire[:16], wire[16:-TAG_BYTES], HEADER_BYTES, wire[-TAG_BYTES:])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("_recv_state", "eof"),
        ("_recv_window", 3),
        ("_decompressor", object()),
        ("_max_recv_pktlen", 10),
        ("_inpbuf", b""),
        ("_recv_encryption", None),
    ],
)
def test_a_connection_in_another_state_is_left_to_asyncssh(name: str, value: object) -> None:
    """A channel that is not open, compression, a packet over the limit, no cipher of ours."""
    fake = Fake()
    setattr(fake, name, value)
    assert fake.arrive(b"data")
    assert (fake.came, fake.left) == ([], 1)


def test_the_code_that_is_stood_in_for_is_the_one_that_was_read() -> None:
    """When this fails, asyncssh has changed: see what it does with a data packet now, mend link/sealing.py and
    link/carrier.py, and note the digest that is told."""
    connection, channel = asyncssh_connection.SSHConnection, asyncssh_channel.SSHChannel
    pieces = (
        connection._recv_data, connection._recv_pkthdr, connection._recv_packet, connection._finish_recv_packet,
        connection.send_packet, connection._send, channel.write, channel._flush_send_buf, channel.send_packet,
        channel._process_data, channel._close_send, connection._send_deferred_packets,
        asyncssh_encryption.GCMEncryption, asyncssh_cipher.GCMCipher,
    )  # fmt: skip
    digest = hashlib.sha256("".join(map(inspect.getsource, pieces)).encode()).hexdigest()
    assert digest == "3c159c5d28817f017a9af7765dc4f48a25c3d9ae43fd2cc1b784e078f3945931"
