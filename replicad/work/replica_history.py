"""Replica history: what a replica says of its verification, remembered at the primary day by day.

So the report of a primary shows both sides also while the replica is out of reach, and since when it is not known.
"""

from __future__ import annotations

from replicad.model.coverage import CELLS
from replicad.model.divergence import Side
from replicad.status import ScrubStatus
from replicad.system.clock import Clock
from replicad.work.conversation import Conversation
from replicad.work.coverage_notes import MAP_EVERY_S, NOTE_EVERY_S, look_of, received
from replicad.work.dataset import Dataset


class ReplicaHistory:
    """The history of one replica's side in the primary's findings book."""

    def __init__(self, dataset: Dataset, replica: str, clock: Clock) -> None:
        self._dataset, self._replica, self._clock = dataset, replica, clock
        self._noted_s = self._mapped_s = float("-inf")
        self._mapped = (0, 0, False)
        """How far its scrub had come when the map was given: after a step of it there is another one."""

    async def note(self, talk: Conversation, status: ScrubStatus) -> None:
        """Remember how it stands, and ask for its map, if that is due. Raises ReplicadError, LinkError."""
        at_s, now_ns, findings = self._clock.monotonic_s(), self._clock.now_ns(), self._dataset.findings
        if status.total_bytes > 0 and at_s - self._noted_s >= NOTE_EVERY_S:
            look = look_of(status, now_ns)
            await self._dataset.in_findings(findings.coverage.note, Side.REPLICA, self._replica, look)
            self._noted_s = at_s
        step = (status.served, status.structure_ns, not status.never_bytes)
        is_due = at_s - self._mapped_s >= MAP_EVERY_S or step != self._mapped
        if is_due and (said := await talk.age_map()):
            found = received(said, CELLS, now_ns)
            await self._dataset.in_findings(findings.coverage.keep_map, Side.REPLICA, self._replica, found)
            self._mapped_s, self._mapped = at_s, step
