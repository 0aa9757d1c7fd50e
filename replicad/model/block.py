"""Blocks: how a file is cut, and the two hashes that speak of a block.

Owns xxhash and blake3. XXH3-128 (`checksum`) answers "are these the bytes that were written?" and is cheap
enough for every read; BLAKE3-256 (`block_id`) answers "which block is this?", where a forged collision would
be data loss. `self_test` runs known answers of both before any store is opened.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NewType

from blake3 import blake3
from xxhash import xxh3_128, xxh3_128_digest

BlockId = NewType("BlockId", bytes)
Checksum = NewType("Checksum", bytes)

ID_BYTES = 32
CHECKSUM_BYTES = 16
MIN_BLOCK_BYTES = 4 * 1024
SMALLEST_BLOCK_BYTES = 64 * 1024
LARGEST_BLOCK_BYTES = 1024 * 1024
_SMALLEST_UP_TO_BYTES = 4 * 1024**3

RAW = 0
"""Codec of a payload that is stored as it is."""
ZSTD = 1
"""Codec of a payload that is stored as one zstd frame."""

Buffer = bytes | bytearray | memoryview


def in_one(parts: Sequence[Buffer]) -> Buffer:
    """The parts, one behind another; a single one is not copied."""
    return parts[0] if len(parts) == 1 else b"".join(parts)


def checksum(data: Buffer) -> Checksum:
    """XXH3-128 of `data`: 16 bytes, big-endian canonical form."""
    return Checksum(xxh3_128_digest(data))


def checksum_of_two(first: Buffer, second: Buffer) -> Checksum:
    """XXH3-128 of `first` followed by `second`, without joining them in memory."""
    state = xxh3_128(first)
    state.update(second)
    return Checksum(state.digest())


class RunningChecksum:
    """XXH3-128 of bytes that come piece by piece."""

    def __init__(self) -> None:
        self._state = xxh3_128()

    def add(self, data: Buffer) -> None:
        """The next piece."""
        self._state.update(data)

    @property
    def value(self) -> Checksum:
        """Of all pieces so far."""
        return Checksum(self._state.digest())


def block_id(data: Buffer) -> BlockId:
    """BLAKE3-256 of `data`: 32 bytes."""
    return BlockId(blake3(data).digest())


def block_size_for(file_bytes: int) -> int:
    """Block size in bytes for a file first seen with `file_bytes`.

    64 KiB up to 4 GiB, doubling with each fourfold growth, 1 MiB at most: the number of blocks of a file grows
    with the square root of its size until the cap. A file keeps the size chosen at first sight.
    """
    size, limit = SMALLEST_BLOCK_BYTES, _SMALLEST_UP_TO_BYTES
    while file_bytes > limit and size < LARGEST_BLOCK_BYTES:
        size *= 2
        limit *= 4
    return size


def block_count(file_bytes: int, block_bytes: int) -> int:
    """Number of blocks of a file; the last may be short."""
    return -(-file_bytes // block_bytes)


_ZEROS = bytes(LARGEST_BLOCK_BYTES)


def is_zero(data: Buffer) -> bool:
    """Whether `data` (at most LARGEST_BLOCK_BYTES long) holds only zero bytes; such a block is recorded, not stored."""
    size = len(data)
    if not size or data[0] or data[size - 1]:
        return not size
    return data == _ZEROS[:size] if size < LARGEST_BLOCK_BYTES else data == _ZEROS


def self_test() -> None:
    """Check both hashes against known answers.

    Sources: XXH3-128 of no bytes with seed 0 is 99aa06d3014798d86001c324468d497f (xxHash sanity checks);
    BLAKE3 of no bytes is af1349b9… (official BLAKE3 test vectors).
    Raises AssertionError when this machine computes either one wrongly.
    """
    if checksum(b"").hex() != "99aa06d3014798d86001c324468d497f":
        raise AssertionError("XXH3-128 gives a wrong answer on this machine; refusing to judge any data with it")
    if block_id(b"").hex() != "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262":
        raise AssertionError("BLAKE3 gives a wrong answer on this machine; refusing to judge any data with it")
