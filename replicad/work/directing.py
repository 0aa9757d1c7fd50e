"""Directing: which scrubs a person means, and who is told: those of this node, or the replicas of its datasets.

**Never** holds up a replica's scrub from its primary: that is for whoever may type on the replica.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from replicad.model.divergence import Side
from replicad.model.errors import UsageError
from replicad.status import ScrubStatus
from replicad.work.scrubs import Answer, Scrubs
from replicad.work.tendings import Tendings


@dataclass(frozen=True, slots=True)
class Meant:
    """What a person typed: start, pause (for so long) or resume; of one dataset or all, of one side or both."""

    action: str
    dataset: str | None
    side: str | None
    for_s: float

    def covers(self, line: ScrubStatus) -> bool:
        """Whether that scrub is meant."""
        return self.dataset in (None, line.dataset) and self.side in (None, line.side)


async def direct(meant: Meant, scrubs: Sequence[Scrubs], datasets: Mapping[str, Tendings]) -> list[Answer]:
    """Have the scrubs that are meant do it; with side "replica" a primary passes "start" on to the replicas of its own
    datasets. Raises UsageError for what is not here, ReplicadError when it cannot be remembered or passed on."""
    if not any(meant.covers(line) for group in scrubs for line in group.statuses):
        return await _pass_on(meant, scrubs, datasets)
    answers: list[Answer] = []
    for group in scrubs:
        answers += await group.direct(meant.action, meant.for_s, meant.covers)
    return answers


async def _pass_on(meant: Meant, scrubs: Sequence[Scrubs], datasets: Mapping[str, Tendings]) -> list[Answer]:
    own = [tendings for name, tendings in datasets.items() if meant.dataset in (None, name)]
    lines = [line for tendings in own for line in tendings.statuses]
    if meant.side != Side.REPLICA or not own:
        named = {*datasets, *(line.dataset for group in scrubs for line in group.statuses)}
        what = f"{meant.side} side of {meant.dataset or 'any dataset'}" if meant.side else f"dataset {meant.dataset!r}"
        raise UsageError(
            f"no scrub of {what} here", hint=f"datasets of this node: {', '.join(sorted(named)) or 'none'}"
        )
    if meant.action != "start":
        replicas = ", ".join(sorted({line.peer for line in lines}))
        text = "a primary can hurry the scrub of a replica, but not hold it up"
        raise UsageError(text, hint=f"type it on the replica: {replicas}")
    return [Answer(line, await tendings.start_scrub(line.peer)) for tendings in own for line in tendings.statuses]
