"""Compress: zstd for payloads that gain from it. Sole owner of zstandard.

Owns the decision whether compression pays (a probe of a few KiB) and the bound on what decompression may yield.
Never trusts a compressed payload: its declared size must be the expected one before a byte is allocated.
"""

from __future__ import annotations

import threading
from typing import IO

import zstandard

from replicad.model.block import RAW, ZSTD, Buffer

PROBE_BYTES = 4096
"""Compressed first, half from the start and half from the middle: a head may compress when the body does not."""
PROBED_FROM_BYTES = 16 * 1024
"""Smaller payloads are compressed at once: zstd gives up on 8 KiB of noise in 4 µs, as long as a probe takes."""
SMALLEST_BYTES = 128
"""Nothing shorter is tried: the zstd frame's own head eats the gain."""
FED_BYTES = 1024
"""Of a foreign file given to the decompressor at once: a few bytes may become 128 KiB, so this bounds memory."""
GAIN = 16
"""Compression pays when it saves at least one part in GAIN; less is not worth the time of every later reader."""


class _Tools(threading.local):
    """zstd contexts may not be shared by threads."""

    def __init__(self) -> None:
        self.compressors: dict[int, zstandard.ZstdCompressor] = {}
        self.decompressor = zstandard.ZstdDecompressor()

    def compressor(self, level: int) -> zstandard.ZstdCompressor:
        if level not in self.compressors:
            self.compressors[level] = zstandard.ZstdCompressor(level=level, write_content_size=True)
        return self.compressors[level]


_tools = _Tools()


def compress(data: Buffer, level: int) -> tuple[int, Buffer]:
    """`data` as (codec, stored): zstd at `level` when that pays, else RAW and `data` itself (always at level 0)."""
    size = len(data)
    if not level or size < SMALLEST_BYTES:
        return RAW, data
    compressor = _tools.compressor(level)
    if size >= PROBED_FROM_BYTES and not _pays(compressor.compress(_sample(data)), PROBE_BYTES):
        return RAW, data
    stored = compressor.compress(data)
    return (ZSTD, stored) if _pays(stored, size) else (RAW, data)


def decompress(stored: Buffer, codec: int, plain_bytes: int) -> Buffer:
    """The inverse of `compress`; exactly `plain_bytes` long. RAW gives `stored` itself.

    Raises ValueError when the codec is unknown, the payload is no single zstd frame, or its size is another.
    Allocates `plain_bytes` at most, whatever the payload claims.
    """
    if codec == RAW:
        if len(stored) != plain_bytes:
            raise ValueError(f"raw payload has {len(stored)} bytes instead of {plain_bytes}")
        return stored
    if codec != ZSTD:
        raise ValueError(f"unknown codec {codec}")
    try:
        claimed = zstandard.frame_content_size(stored)
        if claimed != plain_bytes:
            raise ValueError(f"compressed payload claims {claimed} bytes instead of {plain_bytes}")
        plain = _tools.decompressor.decompress(stored, max_output_size=plain_bytes, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ValueError(f"compressed payload is damaged: {error}") from error
    if len(plain) != plain_bytes:
        raise ValueError(f"compressed payload gives {len(plain)} bytes instead of {plain_bytes}")
    return plain


def zstd_problem(file: IO[bytes]) -> str | None:
    """What is wrong with a whole file of zstd frames, None when it can be decompressed to its end."""
    frame, whole = zstandard.ZstdDecompressor().decompressobj(), False
    try:
        while data := file.read(FED_BYTES):
            while data:
                if whole:
                    frame, whole = zstandard.ZstdDecompressor().decompressobj(), False
                frame.decompress(data)
                whole, data = frame.eof, frame.unused_data if frame.eof else b""
    except zstandard.ZstdError as error:
        return str(error)
    return None if whole else "ends in the middle of a frame, or has none"


def _sample(data: Buffer) -> bytes:
    half, middle = PROBE_BYTES // 2, len(data) // 2
    return bytes(data[:half]) + bytes(data[middle : middle + half])


def _pays(stored: Buffer, plain_bytes: int) -> bool:
    return len(stored) <= plain_bytes - plain_bytes // GAIN
