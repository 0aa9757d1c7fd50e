"""Awaiting: repairs of a store that wait for the pass under way to be sealed.

A repair needs a moment in which no session has unsealed work. Where one pass follows the other there is none that
somebody would find who looks from time to time, so what was ready to be done is kept, and done behind the next seal.

**Owns** those repairs and the proven bytes they need, MAX_TESTIMONY_BYTES at most in all: what finds no room is brought
again by the primary, like everything when the daemon is killed. In the archive's own thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from replicad.link.messages import MAX_TESTIMONY_BYTES
from replicad.model.errors import ReplicadError
from replicad.system.clock import Clock
from replicad.system.logs import logger
from replicad.work.archive import Archive

AT_SEAL_S = 5.0
"""How long the next pass waits for such repairs; the others have the moment behind its seal."""

log = logger("work.awaiting")


class Awaiting:
    """The repairs of one store."""

    def __init__(self, archive: Archive, clock: Clock, mend: Callable[[str, Sequence[bytes], bool], object]) -> None:
        """`mend` carries out the repair of a finding, of which it may well be that nothing is left to do."""
        self._archive, self._clock, self._mend = archive, clock, mend
        self._kept: dict[str, tuple[Sequence[bytes], bool]] = {}

    def add(self, finding: str, frames: Sequence[bytes], ordered: bool) -> None:
        """Do this repair behind the next seal; it takes the place of one that waits already. That a person has ordered
        that stays so, and so does what it has brought, where nothing can be brought any more: it is proven, and may be
        the last copy."""
        before, was_ordered = self._kept.pop(finding, ((), False))
        frames, ordered = frames or before, ordered or was_ordered
        held = sum(len(frame) for others, _ in self._kept.values() for frame in others)
        if held + sum(map(len, frames)) <= MAX_TESTIMONY_BYTES:
            self._kept[finding] = frames, ordered
            self._archive.at_seal(self._do)

    def _do(self) -> None:
        kept, self._kept = self._kept, {}
        until_s = self._clock.monotonic_s() + AT_SEAL_S
        for finding, (frames, ordered) in kept.items():
            if self._clock.monotonic_s() > until_s:
                self.add(finding, frames, ordered)
                continue
            try:
                self._mend(finding, frames, ordered)
            except ReplicadError as error:  # of the findings book: the next session meets it as well
                log.warning("a repair could not be made", divergence=finding, reason=str(error))
