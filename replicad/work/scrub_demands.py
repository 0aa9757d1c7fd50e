"""What a scrub still has to read, and by when: a surface's extents as demands on the pace.

**Owns** the batch of new data under way, the present cycle, and how old the rest is. Between two looks it is kept up to
date by what was verified: reading goes in the order of the deadlines, so every byte counts for every demand.
"""

from __future__ import annotations

from replicad.model import pace
from replicad.model.pace import Demand, Policy, Why
from replicad.work.surface import Extent, Surface

AGES_EVERY = 0.005
"""Ages are looked at anew after this share of `scrub_every`, an hour in a week: a tenth of a step of ages."""
AGES_EVERY_AT_LEAST_S = 5.0
"""Some twenty questions to the books, however short the deadline is."""
NOTHING = Demand(0, 0, Why.NEW)


class Outstanding:
    """Everything that is to be read of one surface."""

    def __init__(self, new_by_ns: int) -> None:
        """`new_by_ns`: by when the new data is due that was under way before a restart; 0 = none was."""
        self.extent = Extent(0, 0, 0)
        self.cycle_begin_ns = 0
        self.new_by_ns = new_by_ns
        self.batches = 0
        """Of new data that were verified."""
        self._new, self._cycle = NOTHING, NOTHING
        self._ages: list[Demand] = []
        self._ages_ns = self._oldest_ns = 0
        """When they were looked at, and a moment after which all that they are about was verified."""
        self._policy: Policy | None = None

    @property
    def demands(self) -> tuple[Demand, ...]:
        """All of them, in no order."""
        return (self._new, self._cycle, *self._ages)

    @property
    def left_bytes(self) -> int:
        """Of the present cycle."""
        return self._cycle.left_bytes

    async def look(self, surface: Surface, policy: Policy, now_ns: int) -> None:
        """Ask the surface how it stands. Raises ReplicadError; what was known stays known then."""
        begin_ns = pace.cycle_begin_ns(policy, surface.dataset, surface.side, now_ns)
        extent = await surface.extent(begin_ns)
        fresh = policy != self._policy or not 0 <= now_ns - self._ages_ns < _ages_every_ns(policy)
        ages, oldest_ns = await _ages(surface, policy, now_ns, extent) if fresh else (self._ages, self._oldest_ns)
        self.extent, self.cycle_begin_ns = extent, begin_ns
        self._look_at_new(policy, extent.new_bytes, now_ns)
        self._cycle = pace.cycle_demand(policy, extent.untried_bytes, extent.total_bytes, begin_ns, now_ns)
        self._ages, self._oldest_ns, self._policy = ages, oldest_ns, policy
        if fresh:
            self._ages_ns = now_ns

    def verified(self, size: int) -> None:
        """So many bytes more were verified."""
        self._new, self._cycle = self._new.less(size), self._cycle.less(size)
        self._ages = [demand.less(size) for demand in self._ages]

    def oldest_ns(self, policy: Policy) -> int:
        """Everything that is not new was verified after this, everything new came after it; 0 = there is nothing."""
        known = [moment_ns for moment_ns in (self.extent.oldest_ns or self._oldest_ns,) if moment_ns]
        if self._new.left_bytes:
            known.append(self._new.by_ns - int(policy.new_within_s / 2 * 1e9))
        return min(known, default=0)

    def _look_at_new(self, policy: Policy, never_bytes: int, now_ns: int) -> None:
        """One batch at a time: what comes while one is under way belongs to the next."""
        was_under_way = self._new.by_ns > 0
        left = min(self._new.left_bytes, never_bytes)
        if was_under_way and not left:
            self.batches += 1
            self.new_by_ns = 0
        if not never_bytes:
            self.new_by_ns, self._new = 0, NOTHING
            return
        due_ns = pace.new_due_ns(policy, now_ns)
        self.new_by_ns = min(self.new_by_ns or due_ns, due_ns)  # never later, also after a clock was set back
        self._new = Demand(left or never_bytes, self.new_by_ns, Why.NEW)


async def _ages(surface: Surface, policy: Policy, now_ns: int, extent: Extent) -> tuple[list[Demand], int]:
    """Of what was verified before, how much at which step; only steps that add something. And after which moment all of
    it was, whether or not it could be looked at since."""
    found: list[Demand] = []
    known, oldest_ns = extent.new_bytes, 0
    for moment_ns in pace.age_steps(policy, now_ns):
        if extent.oldest_ns >= moment_ns:
            continue
        then = await surface.extent(moment_ns)
        if then.old_bytes and not oldest_ns:
            oldest_ns = moment_ns - int(policy.every_s * pace.AGE_STEP * 1e9)
        if then.untried_bytes > known:
            found.append(pace.age_demand(policy, then.untried_bytes, moment_ns))
            known = then.untried_bytes
    return found, oldest_ns


def _ages_every_ns(policy: Policy) -> int:
    return int(max(policy.every_s * AGES_EVERY, AGES_EVERY_AT_LEAST_S) * 1e9)
