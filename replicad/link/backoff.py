"""Backoff: how long to wait before the next attempt. Pure: the caller brings the randomness and does the waiting.

Full jitter: any time between 0 and a limit that doubles with each failure, so that many primaries that lost one
replica in the same moment come back spread out.
"""

from __future__ import annotations

import random

FIRST_S = 1.0
LAST_S = 60.0
"""A minute is short against any rpo and long against a peer that restarts in a loop."""
_DOUBLINGS = 16
"""More cannot matter: 2**16 seconds are far beyond LAST_S."""


class Backoff:
    """Waiting times between failures in a row."""

    def __init__(self, source: random.Random, *, first_s: float = FIRST_S, last_s: float = LAST_S) -> None:
        self._source, self._first_s, self._last_s = source, first_s, last_s
        self.failures = 0

    def failed(self) -> float:
        """Count a failure; returns the seconds to wait before the next attempt."""
        limit_s = min(self._last_s, self._first_s * 2.0 ** min(self.failures, _DOUBLINGS))
        self.failures += 1
        return self._source.uniform(0.0, limit_s)

    def succeeded(self) -> None:
        """The next failure is a first one again."""
        self.failures = 0
