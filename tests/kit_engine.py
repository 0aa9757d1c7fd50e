"""A side that only remembers when its bytes were verified, and a clock that jumps: what a scrub works on in tests."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from replicad.db.findings import Findings
from replicad.model.divergence import Side
from replicad.model.errors import ReplicadError
from replicad.model.pace import Policy
from replicad.status import ScrubStatus
from replicad.system.clock import Clock
from replicad.work.scrub import Scrubbing
from replicad.work.surface import Extent, Verified

S = 1_000_000_000
DAY_S = 86400.0
BEGIN_NS = 1_800_000_000 * S
"""2027-01-15T08:00:00Z."""

Result = TypeVar("Result")


class JumpingClock(Clock):
    """Time passes only by sleeping, and at once. Its local day is UTC's."""

    def __init__(self, now_ns: int = BEGIN_NS) -> None:
        self.ns = now_ns

    def now_ns(self) -> int:
        return self.ns

    def monotonic_s(self) -> float:
        return (self.ns - BEGIN_NS) / S

    def second_of_day(self) -> float:
        return self.ns / S % DAY_S

    async def sleep(self, seconds: float) -> None:
        self.ns += int(seconds * S) + 1  # never short by a rounding
        await asyncio.sleep(0)


class FakeSurface:
    """Parts of a few bytes with the moment of their last verification; reading takes time on the clock."""

    def __init__(self, clock: JumpingClock, speed_bytes_s: float = 100e6, side: Side = Side.PRIMARY) -> None:
        self.dataset, self.side, self.peer, self.retry_s = "www", side, "", 60.0
        self.clock, self.speed_bytes_s = clock, speed_bytes_s
        self.never: deque[tuple[int, int]] = deque()
        """When it came, and how much."""
        self.parts: deque[tuple[int, int]] = deque()
        """When it was verified, and how much."""
        self.failure: ReplicadError | None = None
        self.structure_failure: ReplicadError | None = None
        self.doubts: tuple[str, ...] = ()
        """Why nothing that is left can be looked at."""
        self.is_written = False
        """Somebody writes all that is left, so nothing of it can be verified now."""
        self.waiting = 0
        """Bytes that were looked at and are being written; counted as never verified."""
        self.found = 0
        self.is_cache = False
        self.structures: list[int] = []
        self.turns: list[tuple[int, float]] = []
        """When each turn began, and how long it took."""
        self.oldest_s = 0.0
        """The oldest that a verified byte was when it was verified again."""
        self.newest_wait_s = 0.0
        """The longest that a new one had to wait."""

    def add(self, size: int, part: int | None = None) -> None:
        """Record new data, in parts of some size."""
        part = part or max(1, size // 100)
        while size > 0:
            self.never.append((self.clock.ns, min(part, size)))
            size -= part

    async def extent(self, before_ns: int) -> Extent:
        if self.failure:
            raise self.failure
        never = sum(size for _, size in self.never)
        since = sum(size for at_ns, size in self.parts if at_ns < before_ns)
        never += self.waiting
        oldest = 0 if never or not self.parts else self.parts[0][0]
        return Extent(
            never + sum(size for _, size in self.parts),
            never,
            oldest,
            never - self.waiting + since,
            self.waiting,
            since,
            self.waiting,
            self.waiting,
        )

    async def verify(self, budget_bytes: int, since_ns: int) -> Verified:
        if self.failure:
            raise self.failure
        if self.doubts or self.is_written or not (self.never or self.parts):
            return Verified(doubts=self.doubts)
        done = units = 0
        began_ns = self.clock.ns
        while not units or (done < budget_bytes and (self.never or self.parts[0][0] < began_ns)):
            size = self._newest() if self.never else self._oldest()
            done, units = done + size, units + 1
            self.clock.ns += int(size / self.speed_bytes_s * S)
            self.parts.append((self.clock.ns, size))
        self.turns.append((began_ns, (self.clock.ns - began_ns) / S))
        found, self.found = self.found, 0
        media, cache = (0, done) if self.is_cache else (done, 0)
        return Verified(media_bytes=media, cache_bytes=cache, units=units, found=found)

    def _newest(self) -> int:
        at_ns, size = self.never.popleft()
        self.newest_wait_s = max(self.newest_wait_s, (self.clock.ns - at_ns) / S)
        return size

    def _oldest(self) -> int:
        at_ns, size = self.parts.popleft()
        self.oldest_s = max(self.oldest_s, (self.clock.ns - at_ns) / S)
        return size

    async def structure(self) -> Verified:
        if self.structure_failure:
            raise self.structure_failure
        self.structures.append(self.clock.ns)
        self.clock.ns += S
        return Verified(units=1)


class Rig:
    """A scrub of a fake side with a real findings book, and a world whose time passes as fast as it can."""

    def __init__(
        self, directory: Path, policy: Policy, *, speed_bytes_s: float = 100e6, side: Side = Side.PRIMARY
    ) -> None:
        self.clock, self.policy = JumpingClock(), policy
        self.surface = FakeSurface(self.clock, speed_bytes_s, side)
        self.status = ScrubStatus("www", side, "")
        self.path = directory / "findings.db"
        self.findings = Findings(self.path)
        self.strain = 0.0
        self.opened = 0
        self.in_book = Book(lambda: self.findings)
        self.scrub = self._built()

    def _built(self) -> Scrubbing:
        return Scrubbing(
            self._open, self.in_book, self.status, lambda: self.policy, self.clock, strain=lambda: self.strain
        )

    async def _open(self) -> FakeSurface:
        self.opened += 1
        return self.surface

    def restart(self, down_s: float = 0.0) -> None:
        """The daemon stops, and starts again after a while."""
        self.findings.close()
        self.clock.ns += int(down_s * S)
        self.findings = Findings(self.path)
        self.status = ScrubStatus("www", self.surface.side, "")
        self.scrub = self._built()

    async def live(self, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
        """Let so much time pass, or until something holds."""
        end_ns = self.clock.ns + int(seconds * S)
        while self.clock.ns < end_ns and not until():
            try:
                await self.scrub.step()
            except ReplicadError:
                await self.clock.sleep(60)
            else:
                await self.scrub.wait()

    def read_s(self, since_ns: int = 0) -> float:
        """Seconds spent reading since then."""
        return sum(took_s for at_ns, took_s in self.surface.turns if at_ns >= since_ns)


class Book:
    """The findings book, asked without a thread of its own."""

    def __init__(self, book: Callable[[], Findings]) -> None:
        self._book = book

    async def __call__(self, work: Callable[[Findings], Result]) -> Result:
        return work(self._book())
