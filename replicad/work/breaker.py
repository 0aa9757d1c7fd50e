"""Breaker: repairs that happen by themselves stop when there are too many, because rot comes in clusters.

Remembered in a findings book, so that it outlives restarts; an order of a person closes it. **Owns** which repairs
count: those of the last hour that came behind the last closing. That is known by their numbers: a clock that was wrong
once must neither keep it open for ever nor hold it shut.
"""

from __future__ import annotations

from replicad.db.findings import Findings

BREAKER = "breaker"
"""Remembered value of the findings book: that the breaker is open, in whatever words; absent while it is closed."""
CLOSED = "breaker_closed_behind"
"""The number of the last repair before a person closed it."""
HOUR_NS = 3600 * 10**9


def is_open(findings: Findings) -> bool:
    """Whether repairs have stopped."""
    return bool(findings.get(BREAKER))


def repairs_that_count(findings: Findings, now_ns: int) -> int:
    """How many repairs there were lately, well or not."""
    return findings.repaired_since(now_ns - HOUR_NS, int(findings.get(CLOSED) or 0))


def open_breaker(findings: Findings, now_ns: int) -> None:
    """There were too many."""
    findings.put(BREAKER, now_ns)


def close_breaker(findings: Findings) -> None:
    """A person has ordered a repair. In this order: cut short in between it is open still, and is closed by the next
    order."""
    if is_open(findings):
        findings.put(CLOSED, findings.last_receipt())
        findings.put(BREAKER, None)
