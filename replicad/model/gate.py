"""Gate: whether it is safe to begin a dangerous maintenance, and every reason why it is not. Pure.

    Demands -- how fresh, verified and drilled a copy has to be
    Seen    -- what this node and one replica say of one copy now
    judge   -- Seen in, one Check for each demand out; the gate is open only where every check of every copy holds

What is verified, drilled and found wrong is the replica's own record, by its own clock. That what is on this disk is in
the replica's newest complete snapshot only this node can say: it read the disk; so the two records have to agree first.
**Never** open for what could not be found out. Total: whatever was seen, every demand has a check.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from replicad.model.attestation import Attestation
from replicad.model.drill import Outcome
from replicad.model.head import Head
from replicad.model.policy import SKEW_S, unseen
from replicad.model.show import counted, short_duration, show_bytes

_SILENCE = Attestation()


@dataclass(frozen=True, slots=True)
class Demands:
    """What a copy has to be like."""

    lag_s: float
    """How long ago everything that is on the disk may have been on the replica; 0 = only a pass that began since the
    gate was asked will do."""
    scrub_age_s: float
    drill_age_s: float
    asked_ns: int = 0
    """When the gate was asked, by this node's clock."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One copy, as this node and its replica see it."""

    now_ns: int
    """By this node's clock."""
    complete_ns: int = 0
    """When the last pass began of which everything was acknowledged; 0 = never, or not known."""
    walked_ns: int = 0
    """When the last of those began that walked everything: the watch may have missed a change, a walk has not."""
    heads: tuple[Head, ...] = ()
    """What this node's ledger says that the replica holds: before the replica was asked, and after."""
    held: str = ""
    """Why the dataset is held; "" when it is not."""
    said: Attestation = _SILENCE
    open_here: dict[str, int] | None = None
    """Findings about this side that nobody has settled, by verdict; None = they could not be counted."""


class Check(msgspec.Struct, frozen=True):
    """One demand, and whether it is met."""

    name: str
    """fresh, verified, drilled, undisputed."""
    holds: bool
    reason: str
    """Why, in one sentence."""
    remedy: str = ""
    """What could make it hold: sync, scrub, drill, or "" where only a person can do something."""


class Judged(msgspec.Struct):
    """One copy before the gate, as `--json` prints it."""

    dataset: str
    replica: str
    unknown: str = ""
    """Why the replica could not be asked; the gate is shut then, and `checks` is empty."""
    snapshot: int = 0
    """Its newest complete snapshot, which was judged and is what a pin keeps."""
    digest: str = ""
    checks: list[Check] = []
    pinned: str = ""
    """The name under which the replica keeps that snapshot, once it does."""
    pin_problem: str = ""
    """Why it does not."""

    @property
    def is_open(self) -> bool:
        """Whether everything holds for this copy."""
        return not self.unknown and bool(self.checks) and all(check.holds for check in self.checks)


def is_open(copies: Sequence[Judged]) -> bool:
    """Whether it is safe: there is a copy, everything holds for each, and what was to be pinned is."""
    return bool(copies) and all(copy.is_open and not copy.pin_problem for copy in copies)


def judge(wanted: Demands, seen: Seen) -> list[Check]:
    """Every demand, in the order in which they depend on each other."""
    return [_fresh(wanted, seen), _verified(wanted, seen.said), _drilled(wanted, seen.said), _undisputed(seen)]


def _fresh(wanted: Demands, seen: Seen) -> Check:
    def shut(reason: str, remedy: str = "sync") -> Check:
        return Check("fresh", False, reason, remedy)

    said = seen.said
    if seen.held:
        return shut(f"the dataset is held: {seen.held}", "")
    if not said.complete.number:
        return shut("the replica holds no complete copy")
    if said.lost_records:
        return shut(f"the replica has lost {counted(said.lost_records, 'piece')} of its record", "")
    if said.head not in seen.heads:
        return shut(f"the replica is at snapshot {said.head.number}, this node's ledger says {_numbers(seen.heads)}")
    if not seen.complete_ns:
        return shut("no pass of this daemon has ended complete yet")
    age_s = (seen.now_ns - seen.complete_ns) / 1e9
    if age_s < -SKEW_S:
        return shut("the last pass lies ahead of the clock: the clock was set back")
    shown = f"snapshot {said.complete.number} holds everything as of {short_duration(max(0.0, age_s))} ago"
    if wanted.asked_ns and wanted.asked_ns <= seen.walked_ns <= seen.complete_ns:  # else another clock has stamped it
        return Check("fresh", True, f"{shown}, by a walk of everything since the gate was asked")
    if age_s <= wanted.lag_s:
        return Check("fresh", True, f"{shown}; up to {short_duration(wanted.lag_s)} are allowed")
    if wanted.lag_s:
        return shut(f"{shown}; at most {short_duration(wanted.lag_s)} are allowed")
    return shut(f"{shown}, but everything was not walked since the gate was asked")


def _verified(wanted: Demands, said: Attestation) -> Check:
    def shut(reason: str) -> Check:
        because = f" (its scrub: {said.scrub_reason})" if said.scrub_reason else ""
        return Check("verified", False, reason + because, "scrub")

    has_data = bool(said.complete.number)
    if silent := unseen(said.scrub_state, said.scrub_reason, said.total_bytes, has_data=has_data):
        return shut(f"the replica's scrub says nothing: {silent}")
    if not said.oldest_verified_ns:
        return shut("not every byte on the replica was verified yet, not once")
    age_s = (said.now_ns - said.oldest_verified_ns) / 1e9
    if age_s < -SKEW_S:
        return shut("the replica's last verification lies ahead of its clock")
    new = f", but for {show_bytes(said.never_bytes)} that came since" if said.never_bytes else ""
    text = f"every byte on the replica was read and verified within {short_duration(max(0.0, age_s))}{new}"
    if age_s <= wanted.scrub_age_s:
        return Check("verified", True, text)
    return shut(f"{text}; at most {short_duration(wanted.scrub_age_s)} are allowed")


def _drilled(wanted: Demands, said: Attestation) -> Check:
    def shut(reason: str) -> Check:
        return Check("drilled", False, reason, "drill")

    last, proven = said.drills.last, said.drills.proven
    if not last.ended_ns:
        return shut("the replica knows of no drill")
    if last.outcome is Outcome.FAILED:
        return shut(f"no drill was proven since one failed: {last.reason or 'no reason was told'}")
    if not proven.ended_ns:
        return shut(f"no drill was proven yet; the last could not find out: {last.reason or 'no reason was told'}")
    age_s = (said.now_ns - proven.ended_ns) / 1e9
    if age_s < -SKEW_S:
        return shut("the last drill lies ahead of the replica's clock")
    shown = short_duration(max(0.0, age_s))
    text = f"drill {proven.number} proved {shown} ago that snapshot {proven.snapshot} comes back"
    if age_s <= wanted.drill_age_s:
        return Check("drilled", True, text)
    return shut(f"{text}; at most {short_duration(wanted.drill_age_s)} are allowed")


def _undisputed(seen: Seen) -> Check:
    if seen.open_here is None:
        return Check("undisputed", False, "the findings about this side could not be read")
    here, there = sum(seen.open_here.values()), sum(seen.said.open.values())
    if here or there:
        sides = [f"{count} {where} ({_kinds(kinds)})" for count, where, kinds in (
            (there, "on the replica", seen.said.open), (here, "here", seen.open_here)) if count]  # fmt: skip
        return Check("undisputed", False, f"open divergences: {', '.join(sides)}")
    return Check("undisputed", True, "no divergence is open on either side")


def _kinds(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items()) if count)


def _numbers(heads: tuple[Head, ...]) -> str:
    return " or ".join(dict.fromkeys(str(head.number) for head in heads)) or "none"
