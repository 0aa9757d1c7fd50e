"""Untrusted: what a session sent, taken apart, or one PeerError that says what is wrong with it."""

from __future__ import annotations

from replicad.link.messages import MAX_OFFER
from replicad.model.block import ID_BYTES, Buffer
from replicad.model.entry import MAX_XATTRS_BYTES, Put, show_path, xattrs_length
from replicad.model.errors import PeerError
from replicad.store.format import Frame, FrameError, FrameType, split_frames

INT64 = 2**63 - 1
"""The largest number that the catalog takes."""


def whole_frames(data: Buffer, kind: FrameType) -> list[Frame]:
    """Frames of one kind that were sent. Raises PeerError."""
    try:
        frames = split_frames(data)
    except FrameError as error:
        raise PeerError(f"sent a frame that is none: {error}") from None
    for frame in frames:
        if frame.type != kind:
            raise PeerError(f"sent a {FrameType(frame.type).name.lower()} frame where {kind.name.lower()}s belong")
    return frames


def single_frame(data: bytes, kind: FrameType) -> Frame:
    """The one frame that was sent. Raises PeerError."""
    frames = whole_frames(data, kind)
    if len(frames) != 1:
        raise PeerError(f"sent {len(frames)} {kind.name.lower()} frames where one belongs")
    return frames[0]


def split_ids(ids: bytes) -> list[bytes]:
    """Block ids that were sent, MAX_OFFER at most. Raises PeerError."""
    if len(ids) % ID_BYTES or len(ids) > MAX_OFFER * ID_BYTES:
        raise PeerError(f"sent {len(ids)} bytes that are no list of block ids")
    return [ids[i : i + ID_BYTES] for i in range(0, len(ids), ID_BYTES)]


def check_put(put: Put) -> None:
    """Raises PeerError when a number of an entry would not fit into the catalog, or it has more attributes than may be
    taken in."""
    meta = put.meta
    every = meta.mode | meta.uid | meta.gid | put.size | put.file | put.block_bytes | put.flags
    if not 0 <= every <= INT64 or put.device < 0 or abs(meta.mtime_ns) > INT64:  # `|` keeps any sign and any bit
        raise PeerError("sent an entry with a number that is out of range")
    if meta.xattrs and xattrs_length(meta.xattrs) > MAX_XATTRS_BYTES:
        text = f"sent {show_path(put.path[:80])} with more than {MAX_XATTRS_BYTES} bytes of extended attributes"
        raise PeerError(text)
