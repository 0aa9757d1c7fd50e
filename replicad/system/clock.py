"""Clock: the only place that asks what time it is.

Wall time stamps what people read; every interval is measured with the monotonic clock, so a jump of the wall
clock neither delays nor hurries any job. Tests replace this object.
"""

from __future__ import annotations

import time


class Clock:
    """The real clock."""

    def now_ns(self) -> int:
        """Wall time, ns since 1970."""
        return time.time_ns()

    def monotonic_s(self) -> float:
        """Seconds from an arbitrary origin, never going back."""
        return time.monotonic()

    def second_of_day(self) -> float:
        """Seconds since the local day began, for hours that a person has named."""
        now_ns = self.now_ns()
        local = time.localtime(now_ns // 1_000_000_000)
        return local.tm_hour * 3600 + local.tm_min * 60 + local.tm_sec + now_ns % 1_000_000_000 / 1e9

    async def sleep(self, seconds: float) -> None:
        """Wait without blocking the event loop."""
        import asyncio  # whoever waits has it already; a process that only tells the time does without

        await asyncio.sleep(seconds)


def format_ns(time_ns: int) -> str:
    """RFC 3339 in UTC with seconds, or "never" for 0."""
    if not time_ns:
        return "never"
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time_ns // 1_000_000_000))
