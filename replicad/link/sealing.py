"""Sealing: data packets of an asyncssh connection, sealed and opened without the ten copies that it makes of each.

Two parts stand in for asyncssh's own where the cipher is AES-GCM: a `Gcm` in place of each direction's encryption (key
and nonce move into it and are nowhere else), and a short way for data packets between a channel and the TCP transport.
Whatever is not plainly a data packet of an open channel within its window is left to asyncssh, also to be refused.
A test holds both to asyncssh's code.
"""

from __future__ import annotations

import os
from typing import Any, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from replicad.link.inbox import Inbox
from replicad.model.block import Buffer

CHANNEL_DATA = 94
"""SSH_MSG_CHANNEL_DATA (RFC 4254)."""
HEADER_BYTES = 4
"""The length of a packet: in clear, and authenticated (RFC 5647, section 7.3)."""
TAG_BYTES = 16
CIPHER_BLOCK_BYTES = 16
MIN_PADDING_BYTES = 4
DATA_AT = 10
"""Where a data packet's data begin: behind the padding's length, the kind, the channel and the length of the data."""
_COUNTER = 2**64


class Gcm:
    """AES-GCM of one direction of a connection, as RFC 5647 has it; looks like asyncssh's `Encryption`."""

    def __init__(self, key: bytes, iv: bytes) -> None:
        self._aes = AESGCM(key)
        self._fixed, self._counter = iv[:4], int.from_bytes(iv[4:], "big")
        self.opened: bytes | None = None
        """A packet that was opened and turned out to be for asyncssh, which will ask for it."""

    @classmethod
    def instead_of(cls, encryption: Any) -> Self | None:
        """What takes the place of asyncssh's `encryption`, which must not be used any more; None for another cipher."""
        if isinstance(encryption, cls):
            return encryption
        if type(encryption).__name__ != "GCMEncryption":
            return None
        return cls(encryption._cipher._key, encryption._cipher._iv)

    def seal(self, header: bytes, plain: bytes) -> bytes:
        """What follows the header on the wire."""
        return self._aes.encrypt(self._nonce(), plain, header)

    def open(self, header: bytes, sealed: Buffer) -> bytes | None:
        """What `seal` was given; None where it is not what was sealed."""
        try:
            return self._aes.decrypt(self._nonce(), sealed, header)
        except InvalidTag:
            return None

    def _nonce(self) -> bytes:
        nonce = self._fixed + self._counter.to_bytes(8, "big")
        self._counter = (self._counter + 1) % _COUNTER
        return nonce

    # What asyncssh calls, for all packets but data.

    def encrypt_packet(self, _seq: int, header: bytes, packet: bytes) -> tuple[bytes, bytes]:
        return header + self.seal(header, packet), b""

    def decrypt_header(self, _seq: int, first_block: bytes, header_bytes: int) -> tuple[bytes, bytes]:
        return first_block, first_block[:header_bytes]

    def decrypt_packet(self, _seq: int, first: bytes, rest: bytes, header_bytes: int, mac: bytes) -> bytes | None:
        if self.opened is not None:
            opened, self.opened = self.opened, None
            return opened
        return self.open(first[:header_bytes], first[header_bytes:] + rest + mac)


class Sealing:
    """The short way of data packets on one connection."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._long_way = connection._recv_pkthdr
        connection._recv_pkthdr = self._receive

    def send(self, channel: Any, data: memoryview) -> bool:
        """Send `data` on asyncssh's channel; False, and nothing is sent, where that is for asyncssh to do."""
        connection = self._connection
        if (
            channel._send_state != "open"
            or channel._send_buf
            or not 0 < len(data) <= min(channel._send_window, channel._send_pktsize)
            or not (connection._kex_complete and connection._auth_complete)
            or connection._compressor
            or connection._rekey_bytes_sent >= connection._rekey_bytes
            or connection._rekey_seconds  # by bytes alone, as `ssh_options.py` has it
            or (gcm := Gcm.instead_of(connection._send_encryption)) is None
        ):
            return False
        connection._send_encryption = gcm
        size = DATA_AT + len(data)
        padding = -size % CIPHER_BLOCK_BYTES
        if padding < MIN_PADDING_BYTES:
            padding += CIPHER_BLOCK_BYTES
        head = bytes((padding, CHANNEL_DATA)) + channel._send_chan.to_bytes(4, "big") + len(data).to_bytes(4, "big")
        header = (size + padding).to_bytes(HEADER_BYTES, "big")
        sealed = gcm.seal(header, b"".join((head, data, os.urandom(padding))))
        channel._send_window -= len(data)
        connection._send_seq = (connection._send_seq + 1) % 2**32
        connection._rekey_bytes_sent += size + padding
        connection._send(header + sealed)  # writelines, where it joins nothing, does not tell that a socket is full
        return True

    def _receive(self) -> bool:
        """Take the next packet; False if not all of it is there yet. Stands in for `_recv_pkthdr`."""
        connection = self._connection
        inbox = connection._inpbuf
        if not isinstance(inbox, Inbox) or (gcm := Gcm.instead_of(connection._recv_encryption)) is None:
            return bool(self._long_way())
        connection._recv_encryption = gcm
        header = bytes(inbox.look(0, HEADER_BYTES))
        size = int.from_bytes(header, "big")
        if size > connection._max_recv_pktlen:
            return bool(self._long_way())
        end = HEADER_BYTES + size + TAG_BYTES
        if len(inbox) < max(end, CIPHER_BLOCK_BYTES):
            return False
        plain = gcm.open(header, inbox.look(HEADER_BYTES, end))
        if plain is None or (channel := self._channel_of(plain)) is None:
            gcm.opened = plain
            return bool(self._long_way())
        inbox.skip(end)
        connection._recv_seq = (connection._recv_seq + 1) % 2**32
        channel._accept_data(memoryview(plain)[DATA_AT : len(plain) - plain[0]])
        return True

    def _channel_of(self, plain: bytes) -> Any:
        """The channel that a packet's data are for; None where it is not that simple."""
        if len(plain) <= DATA_AT or plain[1] != CHANNEL_DATA or self._connection._decompressor:
            return None
        channel = self._connection._channels.get(int.from_bytes(plain[2:6], "big"))
        size = len(plain) - DATA_AT - plain[0]
        is_simple = (
            channel is not None
            and channel._recv_state == "open"
            and plain[0] >= MIN_PADDING_BYTES
            and 0 < size <= channel._recv_window
            and int.from_bytes(plain[6:DATA_AT], "big") == size
        )
        return channel if is_simple else None
