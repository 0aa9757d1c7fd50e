"""Frames: what the wire format holds, and that a peer's bytes end in messages or PeerError and nothing else."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit_findings import replica_rot
from kit_messages import EXAMPLES
from replicad.link.frames import LENGTH_BYTES, LONG_RUN_BYTES, SMALL_BYTES, Splitter, pack, pack_pieces
from replicad.link.messages import (
    MAX_CASES_BYTES,
    MAX_MESSAGE_BYTES,
    MAX_SEEN_BYTES,
    MAX_WANTS,
    Blocks,
    Case,
    Cases,
    Examine,
    Inquire,
    Listing,
    Message,
    Offer,
    Ping,
    Pong,
    Read,
    Settled,
    SnapshotLine,
    Snapshots,
    Want,
    encode,
)
from replicad.model.divergence import MAX_AFFECTED, MAX_BLOCKS_NAMED, MAX_EVENTS, Affected, Event
from replicad.model.errors import PeerError

STREAM = b"".join(bytes(pack(message)) for message in EXAMPLES)


def split(pieces: list[bytes]) -> list[Message]:
    splitter = Splitter()
    return [framed.message for piece in pieces for framed in splitter.feed(piece)]


def pieces_of(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:end] for start, end in pairwise(places)]


def test_golden_bytes() -> None:
    """The example of the format's description is what the code writes."""
    assert bytes(pack(Ping(7))) == bytes.fromhex("00000003 92 14 07")


def test_a_frame_is_the_length_and_the_encoded_message() -> None:
    """The length is big-endian and counts the message alone."""
    for message in EXAMPLES:
        frame = bytes(pack(message))
        assert frame[LENGTH_BYTES:] == encode(message)
        assert int.from_bytes(frame[:LENGTH_BYTES], "big") == len(encode(message))


@given(st.lists(st.integers(0, 2**31), max_size=40))
def test_any_split_gives_the_same_messages(cuts: list[int]) -> None:
    """It does not matter where the stream is cut into pieces."""
    assert split(pieces_of(STREAM, cuts)) == list(EXAMPLES)


def test_single_bytes_give_the_same_messages() -> None:
    """A stream that arrives byte by byte is understood, and sizes add up to it."""
    splitter = Splitter()
    framed = [item for byte in STREAM for item in splitter.feed(bytes([byte]))]
    assert [item.message for item in framed] == list(EXAMPLES)
    assert sum(item.size for item in framed) == len(STREAM)
    assert splitter.pending_bytes == 0


@given(st.integers(0, len(STREAM) - 1))
def test_a_truncated_stream_gives_the_whole_messages_before_the_cut(end: int) -> None:
    """A message that is not complete yet is not given, and is no error."""
    messages = split([STREAM[:end]])
    assert messages == list(EXAMPLES[: len(messages)])


@given(st.integers(0, len(STREAM) - 1), st.integers(1, 255), st.lists(st.integers(0, 2**31), max_size=8))
def test_flipped_bits_end_in_messages_or_peer_error(place: int, flip: int, cuts: list[int]) -> None:
    """Whatever byte is damaged, nothing but messages or PeerError comes out."""
    damaged = bytearray(STREAM)
    damaged[place] ^= flip
    only_messages_or_peer_error(pieces_of(bytes(damaged), cuts))


@settings(max_examples=300)
@given(st.binary(max_size=200), st.lists(st.integers(0, 2**31), max_size=8))
def test_random_bytes_end_in_messages_or_peer_error(data: bytes, cuts: list[int]) -> None:
    """Bytes that were never a frame do no harm."""
    only_messages_or_peer_error(pieces_of(data, cuts))


@settings(max_examples=300)
@given(st.integers(0, 40), st.binary(max_size=60))
def test_random_fields_end_in_messages_or_peer_error(tag: int, fields: bytes) -> None:
    """A well-formed length and tag before random fields do no harm either."""
    message = bytes([0x90 | min(15, len(fields) + 1), tag]) + fields
    only_messages_or_peer_error([len(message).to_bytes(LENGTH_BYTES, "big") + message])


def test_deep_nesting_ends_in_peer_error() -> None:
    """Arrays in arrays beyond any depth do not exhaust the stack."""
    message = b"\x92\x09" + b"\x91" * 100_000 + b"\xc0"
    with pytest.raises(PeerError):
        split([len(message).to_bytes(LENGTH_BYTES, "big") + message])


@given(st.integers(MAX_MESSAGE_BYTES + 1, 2**32 - 1), st.sampled_from([9, 10, 11, 17, 20, 24, 27, 29]))
def test_an_oversize_length_is_refused_at_the_first_bytes(size: int, tag: int) -> None:
    """The refusal needs the head alone: nothing is read or held for such a message."""
    with pytest.raises(PeerError, match="bytes"):
        Splitter().feed(size.to_bytes(LENGTH_BYTES, "big") + bytes([0x92, tag]))


@pytest.mark.parametrize("size", [0, 1])
def test_a_length_below_the_smallest_message_is_refused(size: int) -> None:
    """An empty frame is no message."""
    with pytest.raises(PeerError):
        Splitter().feed(size.to_bytes(LENGTH_BYTES, "big") + b"\x91\x0e")


def test_only_messages_that_carry_frames_may_be_long() -> None:
    """A long message that decodes into many objects is refused at its head."""
    line = SnapshotLine(1, 1, 1, True, 1, 1, 0, b"")
    for message in (
        Snapshots([line] * 30_000, False),
        Read(1, [b"x"] * 200_000, 0),
        Offer(bytes(SMALL_BYTES)),
        Inquire("7" * SMALL_BYTES),
    ):
        encoded = encode(message)
        assert len(encoded) > SMALL_BYTES
        with pytest.raises(PeerError, match="kind"):
            Splitter().feed(len(encoded).to_bytes(LENGTH_BYTES, "big") + encoded[:2])
        with pytest.raises(AssertionError):
            pack(message)


def test_findings_may_be_long_but_not_as_long_as_stored_frames() -> None:
    """A finding with every list full, the bytes of the largest place and all the blocks that it wants travels in one
    message; whoever promises more than a few megabytes of findings is refused at the head."""
    full = replica_rot(
        id="7c1e90ab",
        blocks=(bytes(32),) * MAX_BLOCKS_NAMED,
        affected=(Affected(b"p" * 4095, 0, 1),) * MAX_AFFECTED,
        events=tuple(Event(2**62, "x" * 500) for _ in range(MAX_EVENTS)),
    )
    examine = Examine(bytes(32), bytes(MAX_SEEN_BYTES))
    one = Cases([Case(full, bytes(MAX_SEEN_BYTES), [Want(bytes(32), 2**62, 2**62)] * MAX_WANTS)], False)
    assert split([bytes(pack(examine)), bytes(pack(one)), bytes(pack(Settled(full)))]) == [examine, one, Settled(full)]
    for message in (Cases([Case(full, b"", [])] * 12, False), Settled(replica_rot(what="x" * MAX_CASES_BYTES))):
        encoded = encode(message)
        with pytest.raises(PeerError, match="kind"):
            Splitter().feed(len(encoded).to_bytes(LENGTH_BYTES, "big") + encoded[:2])
        with pytest.raises(AssertionError):
            pack(message)


def test_the_longest_message_passes_and_a_longer_one_is_our_mistake() -> None:
    """MAX_MESSAGE_BYTES is the limit itself."""
    overhead = len(encode(Blocks(bytes(2**16)))) - 2**16
    longest = Blocks(bytes(MAX_MESSAGE_BYTES - overhead))
    assert split([bytes(pack(longest))]) == [longest]
    with pytest.raises(AssertionError):
        pack(Blocks(bytes(MAX_MESSAGE_BYTES - overhead + 1)))


@pytest.mark.parametrize("size", [0, 1, LONG_RUN_BYTES - 1, LONG_RUN_BYTES, LONG_RUN_BYTES + 1, 300_000])
def test_pieces_are_what_packing_gives(size: int) -> None:
    """A message in pieces has the same bytes as in one, and a long one is not copied for it."""
    run = bytes(range(256)) * (size // 256 + 1)
    for frames in (run[:size], memoryview(run)[:size], bytearray(run[:size])):
        pieces = pack_pieces(Blocks(frames))
        assert b"".join(pieces) == bytes(pack(Blocks(frames)))
        assert sum(len(piece) for piece in pieces if not isinstance(piece, memoryview)) <= LONG_RUN_BYTES + 100
    with pytest.raises(AssertionError):
        pack_pieces(Blocks(bytes(MAX_MESSAGE_BYTES)))


def test_an_incomplete_message_holds_no_more_than_was_received() -> None:
    """A peer that promises eight megabytes and sends ten bytes occupies ten bytes."""
    splitter = Splitter()
    frame = bytes(pack(Listing(bytes(8_000_000), True)))
    assert splitter.feed(frame[:10]) == []
    assert splitter.pending_bytes == 10


def test_blocks_are_not_copied_and_hold_little_beside_themselves() -> None:
    """Large blocks are a view of what came; small ones do not keep alive all that came with them."""
    large, small = Blocks(bytes(100_000)), Blocks(bytes(100))
    pongs = bytes(pack(Pong(0))) * 10_000
    for blocks in (large, small):
        frame = bytes(pack(blocks))
        for pieces in ([frame + pongs[:40_000]], [frame[:50], frame[50:] + pongs[:40_000]]):
            splitter = Splitter()
            came = [framed.message for piece in pieces for framed in splitter.feed(piece)]
            assert came[0] == blocks
            assert isinstance(came[0], Blocks)
            assert isinstance(came[0].frames, memoryview)
            assert len(came[0].frames.obj) <= 2 * len(frame)
            assert blocks is small or len(came[0].frames.obj) == len(frame) + 40_000


def only_messages_or_peer_error(pieces: list[bytes]) -> None:
    splitter = Splitter()
    try:
        for piece in pieces:
            for framed in splitter.feed(piece):
                encode(framed.message)
    except PeerError:
        pass
