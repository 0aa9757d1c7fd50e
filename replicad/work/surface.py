"""Surface: what a scrub works on: one side of one dataset, whichever side that is. Contracts only.

The engine (work/scrub.py) decides when and how fast; a surface knows what there is to verify, in which order, and how.
Order is always: what was never verified, then what was verified longest ago. So there is no cursor that could be lost:
where a scrub stands follows from when each part was verified last, and that is in the books.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from replicad.model.divergence import Side


@dataclass(frozen=True, slots=True)
class Extent:
    """How much there is to verify and how old the last verification is. Times are ns since 1970."""

    total_bytes: int
    never_bytes: int
    """Bytes never verified since they were recorded."""
    oldest_ns: int
    """When the part that was verified longest ago was verified; 0 = some part never was (or there is none)."""
    since_bytes: int = 0
    """Bytes whose last verification is older than the moment that `extent` was asked about, `waiting_bytes` left out: a
    round is over when this is 0."""
    waiting_bytes: int = 0
    """Bytes that were looked at since then and could not be judged, such as a file that was being written: they come
    back when they are recorded anew, or after a while, and count as never verified if they never were."""
    old_bytes: int = 0
    """Bytes that were verified, but before that moment."""
    tried_bytes: int = 0
    """`waiting_bytes`, and what is to be tried again by now: no haste helps with either."""
    tried_never_bytes: int = 0
    """Bytes that were never verified and could not be judged when they were looked at last, whenever that was."""

    @property
    def new_bytes(self) -> int:
        """What was never verified and nobody has looked at yet."""
        return max(0, self.never_bytes - self.tried_never_bytes)

    @property
    def untried_bytes(self) -> int:
        """`since_bytes` without what was looked at since and could not be judged."""
        return max(0, self.since_bytes + self.waiting_bytes - self.tried_bytes)


@dataclass(frozen=True, slots=True)
class Verified:
    """What one call verified."""

    media_bytes: int = 0
    """Read from the medium."""
    cache_bytes: int = 0
    """Read through a cache, because the file system gives nothing else."""
    nominal_bytes: int = 0
    """What parts of few bytes or none counted for beyond these, as they do in `Extent` and in a budget."""
    reading_s: float = 0.0
    """For so long something was read; the rest of the call was bookkeeping. 0 = that was not told apart."""
    units: int = 0
    """Parts whose moment of verification moved; 0 = there was nothing to do."""
    found: int = 0
    """Findings reported, new or known."""
    doubts: tuple[str, ...] = ()
    """What could not be looked at, and why: it stays due."""
    more_doubts: int = 0
    """How much else could not: there may be very much of it."""


class Surface(Protocol):
    """One side of one dataset. All methods are coroutines that do their disk work elsewhere."""

    dataset: str
    side: Side
    peer: str
    """At a replica the client's name; at a primary ""."""
    retry_s: float
    """What could not be judged is tried again after this, and does not count as waiting any more."""

    async def extent(self, before_ns: int) -> Extent:
        """How it stands; `since_bytes` counts what was not verified since `before_ns`. Cheap enough for once a second.

        Raises ReplicadError when that cannot be found out."""

    async def verify(self, budget_bytes: int, since_ns: int) -> Verified:
        """Verify the next parts in order, about `budget_bytes` of them, at least one. What could not be judged is tried
        again after a while, and at once where that was before `since_ns`, the moment that `extent` is asked about: else
        all others would be read again and again until its time has come. Findings go into the book before this returns.
        May be cancelled: what was verified completely counts, the rest stays due.

        Raises ReplicadError when nothing could be verified at all."""

    async def structure(self) -> Verified:
        """Check what hashing cannot see: coverage, sizes, orphans, the books' pages, segments against catalog, the hash
        chain. Done once a cycle, while `verify` is called as ever. Raises ReplicadError when it could not be done."""
