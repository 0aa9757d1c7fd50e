"""Policy facts: what a node's status says that a policy is judged by. The one place where facts are gathered. Pure.

What a status does not know (a loop that has just started, a book that cannot be opened, a replica that was not heard)
becomes an `unknown` with its reason, never a zero that looks like an answer.
"""

from __future__ import annotations

from replicad.model.policy import Copy, Drilled, Facts, Judgement, Verified, judge, unseen
from replicad.status import CopyStatus, DatasetStatus, DrillStatus, NodeStatus, PolicyStatus


def judgements(status: NodeStatus) -> list[Judgement]:
    """How each dataset of this node stands."""
    return [judge(one.objectives, facts_of(one, status)) for one in status.policies]


def facts_of(one: PolicyStatus, status: NodeStatus) -> Facts:
    """What is known of one dataset."""
    lines = [line for line in status.datasets if line.dataset == one.dataset]
    return Facts(
        one.dataset,
        status.now_ns,
        one.place,
        _verified_here(one.dataset, status),
        tuple(_copy(line, status) for line in lines),
    )


def _verified_here(dataset: str, status: NodeStatus) -> Verified:
    for line in status.scrubs:
        if (line.dataset, line.side) == (dataset, "primary"):
            has_data = any(one.dataset == dataset and one.size for one in status.datasets)
            unknown = unseen(line.state, line.reason, line.total_bytes, has_data=has_data)
            return Verified(line.oldest_verified_ns, line.total_bytes, unknown)
    return Verified(unknown="no scrub of it runs here")


def _copy(line: DatasetStatus, status: NodeStatus) -> Copy:
    key = line.dataset, line.replica
    heard = next((c for c in status.copies if (c.dataset, c.replica) == key), CopyStatus(*key))
    drill = next((d for d in status.drills if (d.dataset, d.replica) == key), None)
    return Copy(
        replica=line.replica,
        place=heard.place,
        complete_ns=line.last_complete_ns or _complete_by_replica(line, heard),
        snapshot=line.last_snapshot,
        unknown="" if line.last_complete_ns or line.state != "starting" else "the daemon has just started",
        heard_ns=heard.heard_ns,
        said=heard.said,
        unheard=heard.unheard,
        drilled=_drilled(drill),
    )


def _complete_by_replica(line: DatasetStatus, heard: CopyStatus) -> int:
    """As of when the copy is complete where this daemon has not seen a pass end well yet, if the replica's head is the
    one that was acknowledged here."""
    return heard.said.created_ns if heard.heard_ns and heard.said.head.number == line.last_snapshot else 0


def _drilled(line: DrillStatus | None) -> Drilled:
    if line is None:
        return Drilled(unknown="no drill loop runs here")
    if line.state == "starting" or (line.state == "failed" and line.last is None):
        return Drilled(unknown=line.reason or "the daemon has just started")
    telling = line.failure or line.last
    reasons = telling.reasons if telling else []
    return Drilled(
        proven_ns=line.last_success_ns,
        last=telling.outcome if telling else None,
        reason=reasons[0] if reasons else "" if telling else line.reason,
        estimate_s=line.estimate_s,
    )
