"""The segment format: what is written is read back, and nothing else is taken for a frame."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from replicad.model.block import RAW, ZSTD, block_id
from replicad.store import format as fmt
from replicad.store.format import FrameError, FrameType

FORMATS = Path(__file__).parent.parent / "docs" / "FORMATS.md"
DATA = b"the bytes of a block"


def example() -> bytes:
    """The segment of the worked example in docs/FORMATS.md."""
    header = fmt.SegmentHeader(1, bytes(range(16)), 1, "ams1", "www", 1_800_000_000_000_000_000, fmt.NO_DIGEST)
    segment = fmt.encode_segment_header(header) + fmt.encode_plain(FrameType.BLOCK, b"hello, replica\n")
    return segment + fmt.encode_pad(len(segment), 1_800_000_001_000_000_000)


def test_golden_bytes() -> None:
    """The worked example in docs/FORMATS.md is what the code writes, byte for byte."""
    rows = re.findall(r"^([0-9a-f]{4})  ((?:[0-9a-f]{2} ?)+)", FORMATS.read_text(), re.MULTILINE)
    document = b"".join(bytes.fromhex(text) for _, text in rows)
    assert [int(offset, 16) for offset, _ in rows] == list(range(0, len(document), 16))
    segment = example()
    assert document == segment[: len(document)]
    assert not any(segment[len(document) :]) and len(segment) == 4096
    assert len(document) >= segment.rindex(b"RPD1") + fmt.HEADER_BYTES


def test_the_table_of_offsets_is_true() -> None:
    """The offsets and sizes in docs/FORMATS.md lead to the fields of a frame."""
    rows = re.findall(r"^\| (\d+) \| (\d+) \| `(\w+)` \|", FORMATS.read_text(), re.MULTILINE)
    fields = {name: (int(offset), int(size)) for offset, size, name in rows}
    raw = fmt.encode_frame(FrameType.BLOCK, DATA * 9, block_id(DATA), DATA, ZSTD)
    frame = fmt.parse_frame(raw, 0)
    values = {name: raw[offset : offset + size] for name, (offset, size) in fields.items()}
    assert values["magic"] == b"RPD1" and values["checksum"] == frame.checksum and values["id"] == frame.id
    names = ("type", "codec", "reserved", "stored", "plain")
    numbers = {name: int.from_bytes(values[name], "little") for name in names}
    assert numbers == {"type": 2, "codec": 1, "reserved": 0, "stored": len(DATA), "plain": 9 * len(DATA)}
    assert sum(size for _, size in fields.values()) == fmt.HEADER_BYTES


@pytest.mark.parametrize("kind", list(FrameType)[:-1])
def test_round_trip(kind: FrameType) -> None:
    """A frame of every type comes back with its payload, its id and its place."""
    raw = fmt.encode_plain(kind, DATA)
    first, second = fmt.split_frames(raw + raw)
    assert (first.type, first.codec, first.plain, first.stored) == (kind, RAW, len(DATA), len(DATA))
    assert bytes(fmt.plain_payload(first)) == DATA and first.id == block_id(DATA)
    assert (first.offset, first.end, second.offset) == (0, len(raw), len(raw))


def test_no_flipped_bit_passes() -> None:
    """Whichever bit of a frame is flipped, it is no frame any more."""
    raw = fmt.encode_plain(FrameType.RECORD, DATA)
    for position in range(len(raw) * 8):
        bad = bytearray(raw)
        bad[position >> 3] ^= 1 << (position & 7)
        with pytest.raises(FrameError):
            fmt.split_frames(bytes(bad))


def test_no_shortened_frame_passes() -> None:
    """A frame that is cut anywhere, or followed by a few bytes, is refused."""
    raw = fmt.encode_plain(FrameType.BLOCK, DATA)
    for size in range(1, len(raw)):
        with pytest.raises(FrameError):
            fmt.split_frames(raw[:size])
        with pytest.raises(FrameError):
            fmt.split_frames_untrusted(raw[:size])
    with pytest.raises(FrameError, match=f"at byte {len(raw)}"):
        fmt.split_frames(raw + b"R")


@given(st.binary(max_size=300) | st.binary(max_size=200).map(lambda tail: b"RPD1" + bytes(16) + b"\2\0\0\0" + tail))
def test_any_bytes_end_in_frames_or_frame_error(data: bytes) -> None:
    """Hostile bytes end in FrameError and nothing else."""
    try:
        frames = fmt.split_frames(data)
    except FrameError:
        return
    assert b"".join(data[frame.offset : frame.end] for frame in frames) == data
    assert fmt.split_frames_untrusted(data) == frames


@pytest.mark.parametrize(
    ("kind", "plain", "stored", "codec"),
    [
        (FrameType.BLOCK, fmt.MAX_BLOCK_PLAIN + 1, 0, ZSTD),
        (FrameType.RECORD, fmt.MAX_RECORD_PLAIN + 1, 0, ZSTD),
        (FrameType.COMMIT, fmt.MAX_SMALL_PLAIN + 1, 0, ZSTD),
        (FrameType.BLOCK, 10, 10 + fmt.MAX_EXPANSION + 1, ZSTD),
        (FrameType.BLOCK, 10, 9, RAW),
        (FrameType.BLOCK, 10, 10, 2),
        (8, 10, 10, RAW),
        (0, 10, 10, RAW),
    ],
)
def test_limits(kind: int, plain: int, stored: int, codec: int) -> None:
    """A header beyond a limit is refused although its checksum is right."""
    raw = fmt.encode_frame(kind, bytes(plain), fmt.NO_ID, bytes(stored), codec)  # type: ignore[arg-type]
    with pytest.raises(FrameError):
        fmt.split_frames(raw)


def test_pads_end_on_a_boundary() -> None:
    """From any position a pad is never empty, ends on the next possible boundary and bears its time."""
    for position in range(0, 2 * fmt.SYNC_BYTES):
        raw = fmt.encode_pad(position, 1_800_000_000_123_456_789)
        assert (position + len(raw)) % fmt.SYNC_BYTES == 0
        assert fmt.HEADER_BYTES <= len(raw) < fmt.SYNC_BYTES + fmt.HEADER_BYTES
    assert fmt.pad_time_ns(fmt.split_frames(raw)[0]) == 1_800_000_000_123_456_789


def test_a_payload_must_have_its_id() -> None:
    """A frame whose checksum is right but whose bytes are another block's is refused."""
    frame = fmt.split_frames(fmt.encode_frame(FrameType.BLOCK, DATA, block_id(b"else")))[0]
    with pytest.raises(FrameError, match="do not have its id"):
        fmt.plain_payload(frame)


@pytest.mark.parametrize(
    "stored",
    [
        zstandard.compress(bytes(50_000_000)),
        zstandard.compress(DATA) + b"more",
        zstandard.compress(DATA)[:-3],
        zstandard.ZstdCompressor(write_content_size=False).compress(DATA),
        b"no zstd at all",
    ],
)
def test_hostile_compression(stored: bytes) -> None:
    """What decompresses to more, to less, to nothing, or has something behind it is refused."""
    frame = fmt.parse_frame(fmt.encode_frame(FrameType.RECORD, DATA * 100, block_id(DATA * 100), stored, ZSTD), 0)
    with pytest.raises(FrameError):
        fmt.plain_payload(frame)


def test_segment_header_and_seal() -> None:
    """Header and seal come back; another version, type or shape is refused with its reason."""
    header = fmt.SegmentHeader(1, bytes(16), 7, "a", "b", 3, bytes(16))
    assert fmt.decode_segment_header(fmt.split_frames(fmt.encode_segment_header(header))[0]) == header
    seal = fmt.SegmentSeal(3, 4096, bytes(16))
    frame = fmt.split_frames(fmt.encode_segment_seal(seal))[0]
    assert fmt.decode_segment_seal(frame) == seal
    with pytest.raises(FrameError, match="expected a header frame, found a seal frame"):
        fmt.decode_segment_header(frame)
    newer = fmt.SegmentHeader(2, bytes(16), 7, "a", "b", 3, bytes(16))
    with pytest.raises(FrameError, match="format version 2"):
        fmt.decode_segment_header(fmt.split_frames(fmt.encode_segment_header(newer))[0])
    with pytest.raises(FrameError):
        fmt.decode_segment_seal(fmt.split_frames(fmt.encode_plain(FrameType.SEAL, b"\x93\1"))[0])


def test_the_running_digest_depends_on_order() -> None:
    """The running digest tells the same frames in another order, and one frame less, apart."""
    first, second = bytes(16), bytes([1]) * 16
    ab = fmt.advance_digest(fmt.advance_digest(fmt.NO_DIGEST, first), second)
    ba = fmt.advance_digest(fmt.advance_digest(fmt.NO_DIGEST, second), first)
    assert len({ab, ba, fmt.advance_digest(fmt.NO_DIGEST, first)}) == 3
