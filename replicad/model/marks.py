"""Marks: which blocks are in use, in little memory, wrong only to the safe side. Pure.

One bit for each block id, found by some bits of the id itself, which are as good as random. **Never** says that a block
which was marked is unused. About one in BITS_PER_BLOCK unused blocks shares its bit with one in use and counts as used;
another choice of bits, made for each run, lets the next run see it.
"""

from __future__ import annotations

from collections.abc import Iterable

BITS_PER_BLOCK = 16
MAX_BYTES = 64 * 1024 * 1024
"""Room for 33 million blocks; with more, more of the unused ones go unseen, and nothing else."""
MIN_BYTES = 4096
PLACES = 24
"""Choices of where in an id of 32 bytes the 8 bytes lie by which it is marked."""


class Marks:
    """A set of block ids that can only grow."""

    def __init__(self, blocks: int, place: int) -> None:
        """For about so many `blocks`. `place`: which bits of the ids are used, any number."""
        size = MIN_BYTES
        while size * 8 < blocks * BITS_PER_BLOCK and size < MAX_BYTES:
            size *= 2
        self._bits, self._mask = bytearray(size), size * 8 - 1
        self._from = place % PLACES

    def add(self, ids: Iterable[bytes]) -> None:
        """These blocks are in use."""
        start, stop, mask, bits = self._from, self._from + 8, self._mask, self._bits
        for name in ids:
            at = int.from_bytes(name[start:stop], "little") & mask
            bits[at >> 3] |= 1 << (at & 7)

    def __contains__(self, name: bytes) -> bool:
        at = int.from_bytes(name[self._from : self._from + 8], "little") & self._mask
        return bool(self._bits[at >> 3] >> (at & 7) & 1)
