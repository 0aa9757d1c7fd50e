"""Rest: what takes a look at a whole book or segment is not looked at again at once.

Where a state lasts for months, or changes with each snapshot, looking all the time would leave room for nothing else.
"""

from __future__ import annotations

from replicad.system.clock import Clock

REST = 20
"""What was looked at rests so many times as long as the look took."""


class Rest:
    """Of one thing."""

    def __init__(self, clock: Clock) -> None:
        self._clock, self._until_s = clock, float("-inf")

    @property
    def is_over(self) -> bool:
        """Whether it may be looked at."""
        return self._clock.monotonic_s() >= self._until_s

    def begin(self, began_s: float) -> None:
        """A look that began then, by the monotonic clock, has just ended."""
        now_s = self._clock.monotonic_s()
        self._until_s = now_s + REST * (now_s - began_s)
