"""Frames: messages on a byte stream, and back. Pure.

| offset | bytes | what |
| --- | --- | --- |
| 0 | 4 | length of the message in bytes, big-endian, 2 to MAX_MESSAGE_BYTES |
| 4 | length | the message as `messages.encode` gives it: a msgpack array whose first element is the tag |

`00 00 00 03 92 14 07` is Ping(token=7): 3 bytes; an array of two; tag 20; 7. The length comes first so that the
receiver can refuse before it holds anything, the tag second so that only messages made to carry stored frames, or
bytes to be judged, may be long. **Never** lets anything out of a peer's bytes but messages or PeerError. History:
1 = first.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from replicad.link.messages import MAX_CASES_BYTES, MAX_MESSAGE_BYTES, MAX_SEEN_BYTES, Blocks, Message, decode_untrusted
from replicad.link.pieces import Pieces
from replicad.model.block import Buffer
from replicad.model.errors import PeerError

LENGTH_BYTES = 4
MIN_MESSAGE_BYTES = 2
"""An array without fields, and its tag."""
SMALL_BYTES = 256 * 1024
"""Longest message that carries no stored frames (an Offer of 4096 ids takes half): decoded into objects, a longer
one could take many times its length in memory."""
_LONGER = {
    **dict.fromkeys((9, 10, 11, 17, 37), MAX_MESSAGE_BYTES),
    24: MAX_SEEN_BYTES + 1024,
    **dict.fromkeys((27, 29), MAX_CASES_BYTES),
}
"""By tag: Blocks, Record, Seal, Listing, Told and Examine are each one run of bytes, so memory stays close to the
length. Cases and Settled tell findings: a hostile one takes up to fifteen times its length (measured) until it is
refused."""
_TAG_AT = LENGTH_BYTES + 1
_HEAD_BYTES = LENGTH_BYTES + MIN_MESSAGE_BYTES
"""What must be there before a frame is judged."""

LONG_RUN_BYTES = 64 * 1024
"""Blocks from here on are not packed: their length takes four bytes in msgpack, and a copy costs more than a write."""
_LONG_BLOCKS = bytes.fromhex("92 09 c6")
"""How such Blocks begin: an array of two, tag 9, bytes with a length of 32 bits."""

_encoder = msgspec.msgpack.Encoder()


class Framed(NamedTuple):
    """A message and the bytes that it took on the wire, length included."""

    message: Message
    size: int


def pack(message: Message) -> bytearray:
    """`message` with its length in front. A message over MAX_MESSAGE_BYTES is our own mistake (AssertionError)."""
    frame = bytearray(LENGTH_BYTES)
    _encoder.encode_into(message, frame, LENGTH_BYTES)
    size = len(frame) - LENGTH_BYTES
    assert not _length_problem(size, frame[_TAG_AT]), f"{type(message).__name__} of {size} bytes is too long to send"
    frame[:LENGTH_BYTES] = size.to_bytes(LENGTH_BYTES, "big")
    return frame


def pack_pieces(message: Message) -> list[Buffer]:
    """The bytes of `pack` in pieces, without a copy of what is long. They are views: to be written at once."""
    if not isinstance(message, Blocks) or len(message.frames) < LONG_RUN_BYTES:
        return [pack(message)]
    run = memoryview(message.frames)
    head = _LONG_BLOCKS + len(run).to_bytes(4, "big")
    size = len(head) + len(run)
    assert size <= MAX_MESSAGE_BYTES, f"Blocks of {size} bytes are too long to send"
    return [b"".join((size.to_bytes(LENGTH_BYTES, "big"), head, run[:LONG_RUN_BYTES])), run[LONG_RUN_BYTES:]]


class Splitter:
    """Cuts a byte stream into messages. Holds at most one incomplete message, never more than was received."""

    def __init__(self) -> None:
        self._rest = Pieces()
        self._wanted = _HEAD_BYTES

    @property
    def pending_bytes(self) -> int:
        """Bytes received of a message that is not yet complete."""
        return len(self._rest)

    def feed(self, data: Buffer) -> list[Framed]:
        """The messages that `data` completes, in order.

        Raises PeerError when the stream breaks the format; nothing after that may be fed.
        """
        if not self._rest:
            return self._split_untrusted(data)
        self._rest.keep(data)
        if len(self._rest) < self._wanted:
            return []
        return self._split_untrusted(self._rest.take_all())

    def _split_untrusted(self, source: Buffer) -> list[Framed]:
        framed = []
        view, start = memoryview(source), 0
        while (end := start + self._next_bytes(source, start)) <= len(source):
            framed.append(Framed(decode_untrusted(_lasting(view[start + LENGTH_BYTES : end], source)), end - start))
            start = end
        self._wanted = end - start
        self._rest.keep(bytes(view[start:]) if start else source)
        return framed

    @staticmethod
    def _next_bytes(source: Buffer, start: int) -> int:
        """Size of the frame that begins at `start`, or what is needed to know it."""
        if len(source) - start < _HEAD_BYTES:
            return _HEAD_BYTES
        size = int.from_bytes(source[start : start + LENGTH_BYTES], "big")
        problem = _length_problem(size, source[start + _TAG_AT])
        if problem:
            raise PeerError(f"sent a message {problem}")
        return LENGTH_BYTES + size


def _lasting(part: memoryview, source: Buffer) -> memoryview | bytes:
    """A part that may be kept: Blocks are views of what they came in, and hold all of it as long as they live."""
    return part if len(part) > len(source) // 2 else bytes(part)


def _length_problem(size: int, tag: int) -> str:
    """Why no message of the kind `tag` may have this length, or ""."""
    if not MIN_MESSAGE_BYTES <= size <= MAX_MESSAGE_BYTES:
        return f"of {size} bytes; {MIN_MESSAGE_BYTES} to {MAX_MESSAGE_BYTES} are allowed"
    if size > (limit := _LONGER.get(tag, SMALL_BYTES)):
        return f"of {size} bytes whose kind may have {limit}"
    return ""
