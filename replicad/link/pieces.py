"""Pieces: bytes of a peer in the order they came, kept as they came: no byte is copied before it is wanted.

Small ones are joined while they wait: each by itself would cost more than it holds.
**Owns** the bytes that wait, and knows how many they are. Pure.
"""

from __future__ import annotations

from collections import deque

from replicad.model.block import Buffer, in_one

SMALL_BYTES = 4096
"""Pieces below this are joined."""
JOINED_BYTES = 64 * 1024
"""A joined piece grows no further."""


class Pieces:
    """A queue of bytes."""

    def __init__(self) -> None:
        self._pieces: deque[Buffer] = deque()
        self._size = self._skipped = 0

    def __len__(self) -> int:
        """Bytes that wait."""
        return self._size

    def keep(self, data: Buffer) -> None:
        """Have `data` wait."""
        self._size += len(data)
        last = self._pieces[-1] if self._pieces else b""
        if len(data) >= SMALL_BYTES:
            self._pieces.append(data)
        elif isinstance(last, bytearray) and len(last) < JOINED_BYTES:
            last += data
        elif data:
            self._pieces.append(bytearray(data))

    def take(self) -> bytes:
        """The piece that has waited longest; there must be one."""
        piece = bytes(self._pieces.popleft()[self._skipped :])
        self._skipped = 0
        self._size -= len(piece)
        return piece

    def look(self, start: int, end: int) -> Buffer:
        """The bytes from `start` to `end`, or as far as there are any; they stay. It may be a view of what came: to be
        used before more comes."""
        found: list[memoryview] = []
        at = -self._skipped  # where each piece begins
        for piece in self._pieces:
            if at + len(piece) > start:
                found.append(memoryview(piece)[max(0, start - at, -at) : max(0, end - at)])
            at += len(piece)
            if at >= end:
                break
        return in_one(found)

    def skip(self, size: int) -> None:
        """Drop so many of the oldest bytes, or all there are."""
        size = min(size, self._size)
        self._size -= size
        self._skipped += size
        while self._pieces and self._skipped >= len(self._pieces[0]):
            self._skipped -= len(self._pieces.popleft())

    def take_all(self) -> Buffer:
        """Everything that waits, in one."""
        everything = self.look(0, self._size)
        self.drop()
        return everything

    def drop(self) -> None:
        """Nobody will take anything any more."""
        self._pieces.clear()
        self._size = self._skipped = 0
