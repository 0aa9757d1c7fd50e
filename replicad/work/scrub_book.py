"""What a scrub asks of its side's findings book: what it remembers of itself, and how the findings stand.

`Memory` survives restarts: a pause, a request under way, when the structure was checked. `tally` counts what the other
jobs have written there, for status and metrics.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

import msgspec

from replicad.db.findings import Findings
from replicad.model.divergence import Side
from replicad.model.verdict import Verdict
from replicad.work.breaker import is_open

MEMORY_KEY = "scrub"

NEVER_LOST = {Verdict.INCONCLUSIVE, Verdict.RECORD_ROT, Verdict.RECORD_DIVERGENCE}
"""Where nothing else is open, as while a disk is found to be rotten, no finding is looked at one by one to count it."""

Result = TypeVar("Result", covariant=True)


class InBook(Protocol):
    """Runs a piece of work on the open findings book, in the thread that it belongs to."""

    def __call__(self, work: Callable[[Findings], Result]) -> Awaitable[Result]:
        """Raises ReplicadError when the book cannot be opened."""


class Memory(msgspec.Struct):
    """What a scrub remembers across restarts. Times are ns since 1970, 0 = never."""

    requested: int = 0
    """Number of the last request."""
    served: int = 0
    requested_ns: int = 0
    """Everything is to be verified after this; 0 = no request is under way."""
    from_peer: bool = False
    """The request under way came over the link: it ends no pause and breaks no quiet hours."""
    is_in_doubt: bool = False
    """Something could not be looked at for the request under way."""
    paused_from_ns: int = 0
    paused_until_ns: int = 0
    structure_ns: int = 0
    new_by_ns: int = 0
    """By when the new data under way is to be verified."""
    once_ns: int = 0
    """When new data had been verified for the first time."""
    alive_ns: int = 0
    """When this was written last: what lies between this and the next start is time without a scrub."""
    stood: str = ""
    """The last interruption of some length: "it was paused", "the daemon did not run"."""
    stood_s: float = 0.0
    stood_until_ns: int = 0


class Tally(msgspec.Struct, frozen=True):
    """How one side's findings stand."""

    stamp: tuple[int, int]
    divergent: dict[str, int]
    divergences: dict[str, int]
    oldest_open_ns: int
    """When the first of those with a verdict was judged: what is not clear yet may stand for long and has a time of its
    own."""
    oldest_inconclusive_ns: int
    lost: int
    suspects: int
    repairs: dict[str, int]
    breaker_open: bool


_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(Memory)


def recall(findings: Findings) -> Memory:
    """What was remembered; a fresh memory when there is none, or none that this version understands."""
    kept = findings.get(MEMORY_KEY)
    try:
        return _decoder.decode(kept) if isinstance(kept, bytes) else Memory()
    except msgspec.MsgspecError:  # written by another version: a request or a pause is forgotten, no finding is
        return Memory()


def remember(findings: Findings, memory: bytes) -> None:
    """Durable when it returns."""
    findings.put(MEMORY_KEY, memory)


def packed(memory: Memory) -> bytes:
    """As it stands in the book."""
    return _encode(memory)


def tally(findings: Findings, side: Side, known: Tally | None) -> Tally:
    """Count the findings of that side, unless `known` still holds: most of the time nothing has changed."""
    stamp = findings.stamp()
    if known and known.stamp == stamp:
        return known
    found = findings.open_counts(side)
    may_be_lost = found.keys() - NEVER_LOST
    judged = (oldest_ns for verdict, (_, oldest_ns) in found.items() if verdict is not Verdict.INCONCLUSIVE)
    return Tally(
        stamp=stamp,
        divergent={verdict.value: count for verdict, (count, _) in found.items()},
        divergences={verdict: count for (at, verdict), count in findings.totals().items() if at == side},
        oldest_open_ns=min(judged, default=0),
        oldest_inconclusive_ns=found.get(Verdict.INCONCLUSIVE, (0, 0))[1],
        lost=sum(one.is_lost for one in findings.listed(side=side)) if may_be_lost else 0,
        suspects=len(findings.suspects()),
        repairs=findings.repair_totals(),
        breaker_open=is_open(findings),
    )
