"""Position: how far a store's segments have been read or written. Pure.

The catalog keeps one as its checkpoint, the store continues from one; neither knows the other.
"""

from __future__ import annotations

from dataclasses import dataclass

from replicad.model.block import CHECKSUM_BYTES


@dataclass(frozen=True, slots=True)
class Position:
    """Just behind a whole frame. Segment numbers start at 1."""

    segment: int = 1
    offset: int = 0
    frames: int = 0
    """Whole frames of that segment before the position."""
    digest: bytes = bytes(CHECKSUM_BYTES)
    """Running digest over them (store.format.advance_digest)."""
