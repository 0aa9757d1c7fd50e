"""Format: what a segment's bytes mean. Pure.

A segment is a sequence of *frames*: a header of 64 bytes and a payload. The primary encodes block, record and
commit frames, the replica stores them verbatim and a restore receives them verbatim, so the checksum written at
the source guards the bytes on the wire, on the disk and on the way back. docs/FORMATS.md has the table of offsets
and a worked example that a test compares with this code.

Owns the layout and its limits. Never trusts a length: everything is checked before it is used to slice.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from enum import IntEnum
from typing import Any

import msgspec

from replicad.model.block import (
    CHECKSUM_BYTES,
    ID_BYTES,
    LARGEST_BLOCK_BYTES,
    RAW,
    ZSTD,
    Buffer,
    block_id,
    checksum,
    checksum_of_two,
)
from replicad.system.compress import decompress

VERSION = 1
"""Version in a segment's header frame. History: 1 = first."""
MAGIC = b"RPD1"
HEADER_BYTES = 64
SYNC_BYTES = 4096
"""Each sync ends on a multiple of this: the alignment that O_DIRECT needs, and no acknowledged byte shares a
sector with a byte written later."""
SEGMENT_BYTES = 64 * 1024 * 1024
"""A segment is sealed when it reaches this size; small enough to re-read in a second, large enough for few files."""

MAX_BLOCK_PLAIN = LARGEST_BLOCK_BYTES
MAX_RECORD_PLAIN = 4 * 1024 * 1024
"""A quarter of it already holds a thousand entries with their blocks; the rest is room for extended attributes."""
MAX_SMALL_PLAIN = 64 * 1024
"""Header, commit and seal payloads are a few hundred bytes."""
MAX_EXPANSION = 1024
"""No codec makes a payload longer than this many bytes more than it was."""
MAX_FRAME_BYTES = HEADER_BYTES + MAX_RECORD_PLAIN + MAX_EXPANSION

NO_ID = bytes(ID_BYTES)
NO_DIGEST = bytes(CHECKSUM_BYTES)
"""Running digest before the first frame, and the `previous` of a store's first segment."""

_CHECKED_FROM = 20
"""The checksum covers everything from here to the payload's end: one run of bytes, one call, no copy."""
_layout = struct.Struct("<4s16sBBHII32s")
_checked = struct.Struct("<BBHII32s")
_lengths = struct.Struct("<II")
_CODEC_AT, _LENGTHS_AT = 21, 24
_pad_stamp = struct.Struct("<Q")


class FrameType(IntEnum):
    """What a frame is."""

    HEADER = 1
    """First in each segment: whose segment this is."""
    BLOCK = 2
    """One block of a file; the id says which."""
    RECORD = 3
    """Operations on entries (model.entry.encode_ops)."""
    COMMIT = 4
    """Makes the records since the last commit a snapshot (model.snapshot.encode_commit)."""
    SEAL = 5
    """Last in each full segment: what it holds."""
    PAD = 6
    """Zeros up to a multiple of SYNC_BYTES."""
    RETENTION = 7
    """The replica's own decision that snapshots are not kept any more."""


_MAX_PLAIN = {
    FrameType.HEADER: MAX_SMALL_PLAIN,
    FrameType.BLOCK: MAX_BLOCK_PLAIN,
    FrameType.RECORD: MAX_RECORD_PLAIN,
    FrameType.COMMIT: MAX_SMALL_PLAIN,
    FrameType.SEAL: MAX_SMALL_PLAIN,
    FrameType.PAD: SYNC_BYTES,
    FrameType.RETENTION: MAX_SMALL_PLAIN,
}


class FrameError(ValueError):
    """These bytes are no valid frame, and why."""


class Frame(msgspec.Struct, frozen=True, gc=False):
    """One frame of a buffer. `payload` is a view of that buffer, as stored (perhaps compressed)."""

    type: int
    codec: int
    stored: int
    """Bytes of the payload as stored."""
    plain: int
    """Bytes of the payload before compression."""
    id: bytes
    checksum: bytes
    payload: Any
    """A memoryview or bytes."""
    offset: int
    """Where the frame begins in the buffer (or segment) it was read from."""

    @property
    def end(self) -> int:
        """Where the next frame begins."""
        return self.offset + HEADER_BYTES + self.stored


class SegmentHeader(msgspec.Struct, frozen=True, array_like=True):
    """Payload of the first frame of a segment: whose it is."""

    version: int
    store: bytes
    """16 random bytes, the same in all segments of a store."""
    number: int
    client: str
    dataset: str
    created_ns: int
    previous: bytes
    """Digest in the seal of the segment before, where this segment's running digest begins; NO_DIGEST in the first
    and behind a segment that was left unsealed because of damage."""


class SegmentSeal(msgspec.Struct, frozen=True, array_like=True):
    """Payload of the last frame of a full segment: what it holds."""

    frames: int
    """Frames before the seal."""
    size: int
    """Where the seal frame begins."""
    digest: bytes
    """Running digest behind them; it begins with `previous` of the segment's header."""
    continues: bytes = b""
    """What the next segment's header continues, where it is not `digest`: the segment was compacted, and this is what
    its first seal would have had it continue."""

    @property
    def after(self) -> bytes:
        """The `previous` of the next segment."""
        return self.continues or self.digest


class Retention(msgspec.Struct, frozen=True, array_like=True):
    """Payload of a retention frame: snapshots that are not kept any more. Only the replica writes one."""

    at_ns: int
    """By the replica's clock."""
    dropped: tuple[int, ...]
    """Numbers of the snapshots."""


def encode_frame(type: FrameType, plain: Buffer, id: bytes, stored: Buffer | None = None, codec: int = RAW) -> bytes:
    """One frame. `plain` is the payload, `id` its BLAKE3, `stored` the payload as `codec` gives it (default: as is)."""
    payload = plain if stored is None else stored
    return encode_header(type, len(plain), id, payload, codec) + payload


def encode_header(type: FrameType, plain_bytes: int, id: bytes, payload: Buffer, codec: int) -> bytes:
    """What stands before `payload` in its frame, for whoever joins many frames at once."""
    head = _checked.pack(type, codec, 0, len(payload), plain_bytes, id)
    return b"".join((MAGIC, checksum_of_two(head, payload), head))


def encode_plain(type: FrameType, plain: bytes) -> bytes:
    """One uncompressed frame, its id computed here."""
    return encode_frame(type, plain, block_id(plain))


def encode_pad(position: int, time_ns: int = 0) -> bytes:
    """The frame that goes from `position` to a multiple of SYNC_BYTES, stamped with the replica's wall clock.

    Never empty: a sync always ends with a pad, so what a sync made durable is followed by a valid frame and cannot
    be mistaken for a torn write."""
    size = -position % SYNC_BYTES
    size += SYNC_BYTES if size < HEADER_BYTES else 0
    stamp = _pad_stamp.pack(time_ns)
    return encode_frame(FrameType.PAD, bytes(size - HEADER_BYTES), stamp + NO_ID[len(stamp) :])


def pad_time_ns(pad: Frame) -> int:
    """The wall clock in a pad: when the sync that it ends was made, ns since 1970."""
    time_ns: int = _pad_stamp.unpack_from(pad.id)[0]
    return time_ns


def advance_digest(digest: bytes, frame_checksum: bytes) -> bytes:
    """The running digest of a segment after one more frame: XXH3-128(digest before + the frame's checksum).

    A chain rather than one hash over all checksums, so that 16 bytes are enough to go on after a restart."""
    return checksum(digest + frame_checksum)


def parse_header_untrusted(buffer: Buffer, offset: int, base: int = 0) -> Frame:
    """The frame at `offset` with its header checked, but not its checksum; its payload may be cut short.

    `base` is where the buffer itself begins; it is added to the frame's offset. Raises FrameError with the reason."""
    if offset + HEADER_BYTES > len(buffer):
        raise FrameError("header is cut short")
    magic, total, type_, codec, reserved, stored, plain, id_ = _layout.unpack_from(buffer, offset)
    if magic != MAGIC:
        raise FrameError("no frame begins here")
    limit = _MAX_PLAIN.get(type_)
    if limit is None or reserved or codec not in (RAW, ZSTD):
        raise FrameError(f"header has type {type_}, codec {codec} and reserved bits {reserved}")
    if plain > limit or stored > plain + MAX_EXPANSION or (codec == RAW and stored != plain):
        raise FrameError(f"{_name(type_)} frame has impossible lengths ({stored} stored, {plain} plain)")
    start = offset + HEADER_BYTES
    return Frame(type_, codec, stored, plain, id_, total, memoryview(buffer)[start : start + stored], base + offset)


def _parse_whole_untrusted(buffer: Buffer, offset: int, base: int = 0) -> Frame:
    frame = parse_header_untrusted(buffer, offset, base)
    if len(frame.payload) != frame.stored:
        raise FrameError(f"{_name(frame.type)} frame is cut short")
    return frame


def parse_frame(buffer: Buffer, offset: int, base: int = 0) -> Frame:
    """The whole, verified frame at `offset`; `base` as above. Raises FrameError with the reason."""
    frame = _parse_whole_untrusted(buffer, offset, base)
    end = offset + HEADER_BYTES + frame.stored
    if checksum(memoryview(buffer)[offset + _CHECKED_FROM : end]) != frame.checksum:
        raise FrameError(f"{_name(frame.type)} frame fails its checksum")
    return frame


def frame_header(frame: Frame) -> bytes:
    """The header of a frame that was parsed: with a valid checksum it stands for the whole frame."""
    return _layout.pack(MAGIC, frame.checksum, frame.type, frame.codec, 0, frame.stored, frame.plain, frame.id)


def claimed_sizes(buffer: Buffer) -> list[int]:
    """Whole sizes that the (damaged) header at the start of `buffer` may stand for, the shortest first: by its stored
    length, or by either of two that should be the same. None by lengths that cannot belong together: frames of which
    many follow each other at equal distances lie behind a wrong one as well."""
    if len(buffer) < HEADER_BYTES:
        return []
    codec, (stored, plain) = buffer[_CODEC_AT], _lengths.unpack_from(buffer, _LENGTHS_AT)
    lengths = {stored} if codec == ZSTD else {stored, plain}
    if codec == ZSTD and stored > plain + MAX_EXPANSION:
        return []
    return [HEADER_BYTES + length for length in sorted(lengths) if length <= MAX_RECORD_PLAIN]


def split_frames(buffer: Buffer) -> list[Frame]:
    """All frames of `buffer`, which must hold whole frames and nothing else, each with its checksum verified.

    Raises FrameError with the reason and the offset."""
    return _split(buffer, parse_frame)


def split_frames_untrusted(buffer: Buffer) -> list[Frame]:
    """The same, without their checksums: for blocks that `plain_payload` will prove. Raises FrameError."""
    return _split(buffer, _parse_whole_untrusted)


def _split(buffer: Buffer, parse: Callable[[Buffer, int], Frame]) -> list[Frame]:
    view, frames, offset = memoryview(buffer), [], 0
    while offset < len(view):
        try:
            frame = parse(view, offset)
        except FrameError as error:
            raise FrameError(f"at byte {offset}: {error}") from None
        frames.append(frame)
        offset = frame.end
    return frames


def plain_payload(frame: Frame) -> Buffer:
    """The payload before compression, proven to be what the frame's id says. Raises FrameError with the reason."""
    try:
        plain = decompress(frame.payload, frame.codec, frame.plain)
    except ValueError as error:
        raise FrameError(f"{_name(frame.type)} frame: {error}") from None
    if block_id(plain) != frame.id:
        raise FrameError(f"{_name(frame.type)} frame's bytes do not have its id {frame.id.hex()[:16]}")
    return plain


def _name(type_: int) -> str:
    return FrameType(type_).name.lower()


_encoder = msgspec.msgpack.Encoder()
_header_decoder = msgspec.msgpack.Decoder(SegmentHeader)
_seal_decoder = msgspec.msgpack.Decoder(SegmentSeal)
_retention_decoder = msgspec.msgpack.Decoder(Retention)


def encode_segment_header(header: SegmentHeader) -> bytes:
    """The header frame."""
    return encode_plain(FrameType.HEADER, _encoder.encode(header))


def encode_segment_seal(seal: SegmentSeal) -> bytes:
    """The seal frame."""
    return encode_plain(FrameType.SEAL, _encoder.encode(seal))


def encode_retention(retention: Retention) -> bytes:
    """The retention frame."""
    return encode_plain(FrameType.RETENTION, _encoder.encode(retention))


def decode_segment_header(frame: Frame) -> SegmentHeader:
    """The inverse of `encode_segment_header`. Raises FrameError."""
    header: SegmentHeader = _decode(frame, FrameType.HEADER, _header_decoder)
    if header.version != VERSION:
        raise FrameError(f"segment has format version {header.version}, this replicad knows {VERSION}")
    return header


def decode_segment_seal(frame: Frame) -> SegmentSeal:
    """The inverse of `encode_segment_seal`. Raises FrameError."""
    seal: SegmentSeal = _decode(frame, FrameType.SEAL, _seal_decoder)
    return seal


def decode_retention(frame: Frame) -> Retention:
    """The inverse of `encode_retention`. Raises FrameError."""
    retention: Retention = _decode(frame, FrameType.RETENTION, _retention_decoder)
    return retention


def _decode(frame: Frame, type_: FrameType, decoder: msgspec.msgpack.Decoder[Any]) -> Any:
    if frame.type != type_:
        raise FrameError(f"expected a {_name(type_)} frame, found a {_name(frame.type)} frame")
    try:
        return decoder.decode(plain_payload(frame))
    except msgspec.MsgspecError as error:
        raise FrameError(f"{_name(type_)} frame: {error}") from None
