"""Canary: how far canaries have come, and when one is late. Pure.

A canary is a small file in a dataset that is rewritten, and followed to a replica and back; model/canary_text.py has
what stands in it. What is timed is kept apart from that, because whoever only shows it needs no hashes.
"""

from __future__ import annotations

import msgspec


class Lags(msgspec.Struct, frozen=True):
    """How long after it was written a canary had come how far, in seconds."""

    acknowledged_s: float
    """Durable on the replica, as the primary heard."""
    verified_s: float
    """Read by the replica from where it is stored, and right."""
    restored_s: float
    """Restored into scratch space and compared."""


class Through(msgspec.Struct, frozen=True):
    """The last canary that came all the way from one replica."""

    number: int = 0
    written_ns: int = 0
    back_ns: int = 0
    """When it was restored and compared; 0 = none ever was."""
    lags: Lags | None = None
    source: str = ""
    """What the replica read it from: "media", or "cache" where its file system gives no direct reads."""


def is_late(oldest_written_ns: int, now_ns: int, within_s: float) -> bool:
    """Whether the oldest canary that is awaited (0: none is) should have come through by now. One that is as far ahead
    was dated by a clock that has been put right since: nobody knows for how long it has been awaited."""
    return bool(oldest_written_ns) and abs(now_ns - oldest_written_ns) > within_s * 1e9
