"""Inbox: stands in for the bytes object in which an asyncssh connection collects what it has received.

asyncssh takes a packet apart by slicing that object, and each slice that cuts off the front copies all that is behind:
most of what it copied. Here the front is cut off by counting. Only the uses that its packet code makes are there.
"""

from __future__ import annotations

from replicad.link.pieces import Pieces


class Inbox(Pieces):
    """Looks like bytes to `_recv_pkthdr` and `_recv_packet`, and changes in place."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.keep(data)

    def __iadd__(self, data: bytes) -> Inbox:
        self.keep(data)
        return self

    def __getitem__(self, part: slice) -> bytes | Inbox:
        """`[:end]` and `[start:end]` are bytes; `[start:]` cuts off what is before and is this very object."""
        if part.stop is None:
            self.skip(part.start)
            return self
        return bytes(self.look(part.start or 0, part.stop))
