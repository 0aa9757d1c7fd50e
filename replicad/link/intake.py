"""Intake: what an SSH channel has received and its session has not taken yet, and what the peer may send because of it.

asyncssh's own bookkeeping bounds nothing: whenever a paused session goes on, it grants the peer a whole window anew,
whatever still lies in its buffer, and it keeps each packet as an object, were it of one byte. Here a window covers what
waits and what may come, together.

**Owns** the bytes that wait. **Never** holds more of them than one window.
"""

from __future__ import annotations

from typing import Any

from replicad.link.pieces import Pieces
from replicad.model.block import Buffer

WINDOW_ADJUST = 93
"""SSH_MSG_CHANNEL_WINDOW_ADJUST (RFC 4254)."""


class Intake:
    """The receiving end of one asyncssh channel."""

    def __init__(self, ssh: Any) -> None:
        self._ssh = ssh
        self._window: int = ssh.get_recv_window()
        self._waiting = Pieces()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def arrived(self, size: int) -> None:
        """The peer has used up so much of its window."""
        self._ssh._recv_window -= size

    def keep(self, data: Buffer) -> None:
        """Have `data` wait."""
        self._waiting.keep(data)

    def take(self) -> bytes:
        """What has waited longest."""
        return self._waiting.take()

    def drop(self) -> None:
        """Nobody will take anything any more."""
        self._waiting.drop()

    def grant(self) -> None:
        """Let the peer send as much as was taken, once that is half a window."""
        size = self._window - len(self._waiting) - self._ssh._recv_window
        if size > self._window // 2:
            self._ssh.send_packet(WINDOW_ADJUST, size.to_bytes(4, "big"))
            self._ssh._recv_window += size
