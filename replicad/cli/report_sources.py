"""Report sources: what a report's facts are taken from, and what of it could not be asked.

**Owns** the order of trust: the running daemon; when it does not answer, what it said last, with its age; nothing. What
was known then has grown older since, and is judged by the present clock.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from replicad.config import Config
from replicad.http.api import Client
from replicad.model.coverage import DAY_NS, day_of
from replicad.model.errors import LinkError
from replicad.model.policy import Judgement
from replicad.model.report import Unknown
from replicad.status import (
    LAST_STATUS,
    CopyStatus,
    DatasetStatus,
    DrillStatus,
    NodeStatus,
    ScrubStatus,
    StoreStatus,
    decode,
)
from replicad.work.policy_facts import judgements


@dataclass(slots=True)
class Sources:
    """What the facts are taken from."""

    config: Config
    now_ns: int
    days: int
    status: NodeStatus | None = None
    status_ns: int = 0
    """When the daemon said so."""
    is_live: bool = False
    unknowns: list[Unknown] = field(default_factory=list)
    silent: dict[str, str] = field(default_factory=dict)
    """Replicas that were out of reach, and why: none is waited for twice."""

    @property
    def since_ns(self) -> int:
        """Begin of the period."""
        return (day_of(self.now_ns) - self.days + 1) * DAY_NS

    def dataset(self, dataset: str, replica: str) -> DatasetStatus | None:
        """How a dataset's way to a replica stands."""
        lines = self.status.datasets if self.status else []
        return next((one for one in lines if (one.dataset, one.replica) == (dataset, replica)), None)

    def copy(self, dataset: str, replica: str) -> CopyStatus | None:
        """What a replica said last of its copy."""
        lines = self.status.copies if self.status else []
        return next((one for one in lines if (one.dataset, one.replica) == (dataset, replica)), None)

    def judgement(self, dataset: str) -> Judgement | None:
        """Whether what is demanded of a dataset holds."""
        lines = judgements(self.status) if self.status else []
        return next((one for one in lines if one.dataset == dataset), None)

    def drill(self, dataset: str, replica: str) -> DrillStatus | None:
        """How its drills stand."""
        lines = self.status.drills if self.status else []
        return next((one for one in lines if (one.dataset, one.replica) == (dataset, replica)), None)

    def store(self, client: str, dataset: str) -> StoreStatus | None:
        """How a store of this node stands."""
        lines = self.status.stores if self.status else []
        return next((one for one in lines if (one.client, one.dataset) == (client, dataset)), None)

    def scrub(self, dataset: str, side: str, peer: str) -> ScrubStatus | None:
        """How the scrub of a side stands."""
        lines = self.status.scrubs if self.status else []
        return next((one for one in lines if (one.dataset, one.side, one.peer) == (dataset, side, peer)), None)


def ask_daemon(sources: Sources, names: Collection[str]) -> None:
    """The status, of these datasets and stores alone; from memory when the daemon does not answer."""
    state = sources.config.node.state
    try:
        status = Client(state).status()
        sources.status_ns, sources.is_live = status.now_ns, True
    except LinkError as error:
        try:
            status = decode((state / LAST_STATUS).read_bytes())
        except (OSError, ValueError):
            sources.unknowns.append(Unknown("daemon", f"{error.what}, and what it said last is not known"))
            return
        sources.status_ns = status.now_ns
        sources.unknowns.append(Unknown("daemon", error.what, status.now_ns))
        status.now_ns = max(status.now_ns, sources.now_ns)
    sources.status = _narrowed(status, names)


def _narrowed(status: NodeStatus, names: Collection[str]) -> NodeStatus:
    status.datasets = [one for one in status.datasets if one.dataset in names]
    status.drills = [one for one in status.drills if one.dataset in names]
    status.copies = [one for one in status.copies if one.dataset in names]
    status.policies = [one for one in status.policies if one.dataset in names]
    status.scrubs = [s for s in status.scrubs if s.dataset in names or f"{s.peer}/{s.dataset}" in names]
    status.retentions = [one for one in status.retentions if f"{one.client}/{one.dataset}" in names]
    status.stores = [one for one in status.stores if f"{one.client}/{one.dataset}" in names]
    return status
