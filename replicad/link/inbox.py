"""Inbox: stands in for the bytes object in which an asyncssh connection collects what it has received.

asyncssh takes a packet apart by slicing that object, and each slice that cuts off the front copies all that is behind:
most of what it copied. Here the front is cut off by counting. Only the uses that its packet code makes are there.
"""

from __future__ import annotations

from replicad.link.pieces import Pieces
from replicad.model.block import Buffer


class Inbox:
    """Looks like bytes to `_recv_pkthdr` and `_recv_packet`, and changes in place."""

    def __init__(self, data: bytes) -> None:
        self._pieces = Pieces()
        self._pieces.keep(data)

    def __len__(self) -> int:
        return len(self._pieces)

    def __iadd__(self, data: bytes) -> Inbox:
        self._pieces.keep(data)
        return self

    def __getitem__(self, part: slice) -> bytes | Inbox:
        """`[:end]` and `[start:end]` are bytes; `[start:]` cuts off what is before and is this very object."""
        if part.stop is None:
            self.skip(part.start)
            return self
        return bytes(self.look(part.start or 0, part.stop))

    def look(self, start: int, end: int) -> Buffer:
        """The same as `[start:end]`, not copied where it came in one piece: to be used before more comes."""
        return self._pieces.look(start, end)

    def skip(self, size: int) -> None:
        """Cut off so much of the front."""
        self._pieces.skip(size)
