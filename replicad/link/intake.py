"""Intake: what an SSH channel has received and its session has not taken yet, and what the peer may send because of it.

asyncssh's own bookkeeping bounds nothing: whenever a paused session goes on, it grants the peer a whole window anew,
whatever still lies in its buffer, and it keeps each packet as an object, were it of one byte. Here a window covers what
waits and what may come, together, and small packets are joined.

**Owns** the bytes that wait. **Never** holds more of them than one window.
"""

from __future__ import annotations

from collections import deque
from typing import Any

SMALL_BYTES = 4096
"""Packets below this are joined while they wait: each by itself would cost more than it holds."""
JOINED_BYTES = 64 * 1024
"""A joined piece grows no further."""
WINDOW_ADJUST = 93
"""SSH_MSG_CHANNEL_WINDOW_ADJUST (RFC 4254)."""


class Intake:
    """The receiving end of one asyncssh channel."""

    def __init__(self, ssh: Any) -> None:
        self._ssh = ssh
        self._window: int = ssh.get_recv_window()
        self._waiting: deque[bytes | bytearray] = deque()
        self._waiting_bytes = 0

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def arrived(self, size: int) -> None:
        """The peer has used up so much of its window."""
        self._ssh._recv_window -= size

    def keep(self, data: bytes) -> None:
        """Have `data` wait."""
        self._waiting_bytes += len(data)
        last = self._waiting[-1] if self._waiting else b""
        if len(data) >= SMALL_BYTES:
            self._waiting.append(data)
        elif isinstance(last, bytearray) and len(last) < JOINED_BYTES:
            last += data
        else:
            self._waiting.append(bytearray(data))

    def take(self) -> bytes:
        """What has waited longest."""
        piece = self._waiting.popleft()
        self._waiting_bytes -= len(piece)
        return bytes(piece)

    def drop(self) -> None:
        """Nobody will take anything any more."""
        self._waiting.clear()
        self._waiting_bytes = 0

    def grant(self) -> None:
        """Let the peer send as much as was taken, once that is half a window."""
        size = self._window - self._waiting_bytes - self._ssh._recv_window
        if size > self._window // 2:
            self._ssh.send_packet(WINDOW_ADJUST, size.to_bytes(4, "big"))
            self._ssh._recv_window += size
