"""Packets: the data of SSH channels under AES-GCM, sealed and opened without asyncssh's detours.

asyncssh copies each data packet about ten times on either side, and sends an empty packet before each, against attacks
on modes of encryption that we do not offer: that took more time than everything else on a fast link. Here a packet is
put together once, sealed into the buffer that goes to the socket, and opened into one that stays.

**Owns** the bytes of packets that are not complete yet. **Never** judges: whatever is not a plain data packet in good
order (handshake, new keys, requests, a bad tag, another cipher) is left to asyncssh, whose state both keep in step.
"""

from __future__ import annotations

import os
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

DATA = 94
"""SSH_MSG_CHANNEL_DATA (RFC 4254)."""
LENGTH_BYTES, TAG_BYTES = 4, 16
"""Around a sealed packet (RFC 5647)."""
BLOCK_BYTES, MIN_PADDING = 16, 4
HEAD_BYTES = 10
"""Before the data: length of the padding, DATA, number of the channel, length of the data."""
LARGEST_BYTES = 256 * 1024
"""Of a sealed packet; ours are half of that."""
FEED_BYTES = 64 * 1024
"""Received bytes given to asyncssh at once: it copies all that it has not taken apart yet with every packet."""


class Outgoing:
    """Data packets of one connection on their way out."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._gcm = _Gcm()

    def send(self, channel: Any, data: memoryview) -> bool:
        """Send one packet of at most the channel's packet size; False when asyncssh has to, in its own time."""
        connection, size = self._connection, len(data)
        cipher = self._gcm.of(connection._send_encryption)
        if cipher is None or not self._may_go(channel, size):
            return False
        padding = MIN_PADDING + -(HEAD_BYTES + size + MIN_PADDING) % BLOCK_BYTES
        head = b"%c%c%b%b" % (padding, DATA, channel._send_chan.to_bytes(4, "big"), size.to_bytes(4, "big"))
        plain = b"".join((head, data, os.urandom(padding)))
        sealed = bytearray(LENGTH_BYTES + len(plain) + TAG_BYTES)
        sealed[:LENGTH_BYTES] = length = len(plain).to_bytes(LENGTH_BYTES, "big")
        with memoryview(sealed) as view:
            self._gcm.aead.encrypt_into(cipher._iv, plain, length, view[LENGTH_BYTES:])
        cipher._update_iv()
        connection._send_seq = (connection._send_seq + 1) & 0xFFFFFFFF
        connection._rekey_bytes_sent += len(plain)
        channel._send_window -= size
        connection._send(sealed)
        return True

    def _may_go(self, channel: Any, size: int) -> bool:
        """Whether nothing has to go first: neither earlier data of this channel nor new keys."""
        connection = self._connection
        return (
            connection._auth_complete
            and connection._kex_complete
            and connection._rekey_bytes_sent < connection._rekey_bytes
            and channel._send_state == "open"
            and not channel._send_buf
            and size <= min(channel._send_window, channel._send_pktsize)
        )


class Incoming:
    """All that one connection receives; `received` takes the place of asyncssh's `data_received`."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._asyncssh = connection.data_received
        self._gcm = _Gcm()
        self._rest = bytearray()
        self._plain = memoryview(bytearray(LARGEST_BYTES))

    def received(self, data: bytes) -> None:
        """Bytes of the peer."""
        if not self._is_between_packets():
            self._leave_to_asyncssh(memoryview(data))
            return
        self._connection._reset_keepalive_timer()
        self._rest += data
        at = 0
        with memoryview(self._rest) as view:
            while self._is_between_packets() and (end := self._end_of_packet(view, at)):
                if not self._take(view[at:end]):
                    self._leave_to_asyncssh(view[at:end])
                at = end
            if not self._is_between_packets():
                self._leave_to_asyncssh(view[at:])
                at = len(view)
        del self._rest[:at]

    def _is_between_packets(self) -> bool:
        """Whether the next byte begins a packet that may be opened here."""
        connection = self._connection
        return (
            connection._auth_complete
            and connection._transport is not None
            and not connection._inpbuf
            and connection._recv_handler == connection._recv_pkthdr
            and self._gcm.of(connection._recv_encryption) is not None
        )

    @staticmethod
    def _end_of_packet(view: memoryview, start: int) -> int:
        """Where the packet ends that begins at `start`; 0 while it is not complete. What follows a length that is no
        packet of ours is one packet as well: asyncssh has to judge it."""
        if len(view) - start < LENGTH_BYTES:
            return 0
        size = LENGTH_BYTES + int.from_bytes(view[start : start + LENGTH_BYTES], "big") + TAG_BYTES
        if size > LARGEST_BYTES:
            return len(view)
        return start + size if start + size <= len(view) else 0

    def _take(self, packet: memoryview) -> bool:
        """Open a packet and give its data to the channel; False, and nothing has happened, when it is not as simple."""
        connection, cipher = self._connection, self._gcm.of(self._connection._recv_encryption)
        size = len(packet) - LENGTH_BYTES - TAG_BYTES
        if not HEAD_BYTES <= size <= LARGEST_BYTES:
            return False
        plain = self._plain[:size]
        try:
            self._gcm.aead.decrypt_into(cipher._iv, packet[LENGTH_BYTES:], packet[:LENGTH_BYTES], plain)
        except InvalidTag:
            return False  # asyncssh will find the same, and end the connection
        channel = connection._channels.get(int.from_bytes(plain[2:6], "big"))
        length = int.from_bytes(plain[6:HEAD_BYTES], "big")
        is_plain_data = plain[1] == DATA and HEAD_BYTES + length + plain[0] == size
        if not (is_plain_data and channel and channel._recv_state == "open" and length <= channel._recv_window):
            return False
        cipher._update_iv()
        connection._recv_seq = (connection._recv_seq + 1) & 0xFFFFFFFF
        connection._auth_final = True
        channel._accept_data(plain[HEAD_BYTES : HEAD_BYTES + length])
        return True

    def _leave_to_asyncssh(self, data: memoryview) -> None:
        for at in range(0, len(data), FEED_BYTES):
            self._asyncssh(data[at : at + FEED_BYTES])


class _Gcm:
    """The keys of one direction, as asyncssh has them."""

    aead: AESGCM

    def __init__(self) -> None:
        self._encryption: Any = None
        self._cipher: Any = None

    def of(self, encryption: Any) -> Any:
        """asyncssh's state of the cipher, with `aead` for its key; None when it is not AES-GCM."""
        if encryption is not self._encryption:
            cipher = getattr(encryption, "_cipher", None)
            self._encryption, self._cipher = encryption, cipher if hasattr(cipher, "_iv") else None
            if self._cipher:
                self.aead = AESGCM(self._cipher._key)
        return self._cipher
