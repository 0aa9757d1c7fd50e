"""Bandwidth: a limit in bytes a second that several channels share. Pure.

Owns no clock: the caller says what time it is and does the waiting. A message is never cut to fit: it goes out
whole, and the next one waits until its share of time has passed, so the average holds whatever the sizes are.
"""

from __future__ import annotations

from collections.abc import Callable

BURST_S = 0.25
"""A sender that was idle may catch up on this much time: smooths timer jitter, too little to be seen on a line."""


class Bandwidth:
    """At most so many bytes a second on average as `rate_bytes` says whenever something is to be sent; 0 = no limit."""

    def __init__(self, rate_bytes: Callable[[], int]) -> None:
        self._rate_bytes = rate_bytes
        self._free_at_s = float("-inf")

    def reserve_s(self, size: int, now_s: float) -> float:
        """Take `size` bytes of the line; returns the seconds to wait before they may be sent. Never blocks."""
        rate_bytes = self._rate_bytes()
        if not rate_bytes:
            return 0.0
        start_s = max(self._free_at_s, now_s - BURST_S)
        self._free_at_s = start_s + size / rate_bytes
        return max(0.0, start_s - now_s)
