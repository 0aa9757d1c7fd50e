"""The gate as a function: what opens it, and that nothing unknown does."""

from __future__ import annotations

from itertools import product
from typing import Any

import msgspec
import pytest

from replicad.model.attestation import Attestation, DrillMemory, DrillNote
from replicad.model.drill import OVERDUE_FACTOR, Outcome
from replicad.model.gate import Check, Demands, Judged, Seen, is_open, judge
from replicad.model.policy import DAY_S, SKEW_S, Objectives
from replicad.model.snapshot import Head
from replicad.work.gate import demands

S = 1_000_000_000
NOW = 1_800_000_000 * S
THERE = NOW + 7777 * S
"""The replica's clock goes ahead: ages there are by its own."""
OLD, NEW = Head(811, bytes(31) + b"\1"), Head(812, bytes(32))
WANTED = Demands(lag_s=300, scrub_age_s=7 * DAY_S, drill_age_s=10 * DAY_S)


def ago(seconds: float, now_ns: int = NOW) -> int:
    """A moment so long ago."""
    return now_ns - int(seconds * S)


def note(outcome: Outcome = Outcome.PROVEN, days: float = 2) -> DrillNote:
    """A drill as the replica remembers it."""
    return DrillNote(5, 800, "", "sampled", outcome, ago(days * DAY_S, THERE), reason="etc/passwd differs")


def said(**changes: Any) -> Attestation:
    """What a replica says whose copy is well."""
    well = Attestation(
        now_ns=THERE,
        head=NEW,
        complete=NEW,
        total_bytes=10**9,
        oldest_verified_ns=ago(3 * DAY_S, THERE),
        scrub_state="idle",
        drills=DrillMemory(note(), note()),
    )
    return msgspec.structs.replace(well, **changes)


def seen(replica: Attestation | None = None, **changes: Any) -> Seen:
    """Both sides of a copy that is well."""
    given: dict[str, Any] = {"complete_ns": ago(120), "heads": (NEW, NEW), "open_here": {}}
    return Seen(NOW, said=replica or said(), **(given | changes))


def shut(found: Seen, wanted: Demands = WANTED) -> list[Check]:
    """The checks that do not hold."""
    return [check for check in judge(wanted, found) if not check.holds]


def test_a_copy_that_is_well_opens_it() -> None:
    """Each of the four demands is checked and says why it holds."""
    checks = judge(WANTED, seen())
    assert [check.name for check in checks] == ["fresh", "verified", "drilled", "undisputed"]
    assert all(check.holds and check.reason for check in checks)


@pytest.mark.parametrize(
    ("found", "name", "words", "remedy"),
    [
        (seen(complete_ns=ago(301)), "fresh", "as of 5m 1s ago; at most 5m", "sync"),
        (seen(complete_ns=0), "fresh", "no pass of this daemon", "sync"),
        (seen(complete_ns=ago(-SKEW_S - 1)), "fresh", "the clock was set back", "sync"),
        (seen(said(complete=Head())), "fresh", "no complete copy", "sync"),
        (seen(said(head=OLD)), "fresh", "is at snapshot 811, this node's ledger says 812", "sync"),
        (seen(said(head=Head(812, OLD.digest))), "fresh", "is at snapshot 812", "sync"),
        (seen(heads=()), "fresh", "ledger says none", "sync"),
        (seen(said(lost_records=1)), "fresh", "lost 1 piece of", ""),
        (seen(held="the root is empty"), "fresh", "held: the root is empty", ""),
        (seen(said(oldest_verified_ns=0)), "verified", "not once", "scrub"),
        (seen(said(oldest_verified_ns=0, scrub_reason="no time")), "verified", "(its scrub: no time)", "scrub"),
        (seen(said(oldest_verified_ns=ago(8 * DAY_S, THERE))), "verified", "within 8d; at most 7d", "scrub"),
        (seen(said(oldest_verified_ns=ago(-SKEW_S - 1, THERE))), "verified", "ahead of its clock", "scrub"),
        (seen(said(scrub_state="")), "verified", "runs no scrub", "scrub"),
        (seen(said(scrub_state="starting")), "verified", "just started", "scrub"),
        (seen(said(total_bytes=0)), "verified", "has not looked", "scrub"),
        (seen(said(scrub_state="failed", scrub_reason="I/O error", total_bytes=0)), "verified", "I/O error", "scrub"),
        (seen(said(drills=DrillMemory())), "drilled", "knows of no drill", "drill"),
        (seen(said(drills=DrillMemory(note(Outcome.FAILED), note()))), "drilled", "failed: etc/passwd", "drill"),
        (seen(said(drills=DrillMemory(note(Outcome.INCONCLUSIVE)))), "drilled", "could not find out: etc", "drill"),
        (seen(said(drills=DrillMemory(note(), note(days=11)))), "drilled", "11d ago", "drill"),
        (seen(said(drills=DrillMemory(note(), note(days=-1)))), "drilled", "ahead of the replica's clock", "drill"),
        (seen(said(open={"replica_rot": 2})), "undisputed", "2 on the replica (2 replica_rot)", ""),
        (seen(said(open={"inconclusive": 1})), "undisputed", "1 inconclusive", ""),
        (seen(open_here={"primary_rot": 3}), "undisputed", "3 here (3 primary_rot)", ""),
        (seen(open_here=None), "undisputed", "could not be read", ""),
    ],
)  # fmt: skip
def test_each_reason_shuts_it(found: Seen, name: str, words: str, remedy: str) -> None:
    """One thing that is wrong, or not known, shuts the gate, alone, with its reason and what could help."""
    (check,) = shut(found)
    assert (check.name, check.remedy, words in check.reason) == (name, remedy, True), check


def test_fresh_is_what_was_on_the_disk_when_the_gate_was_asked() -> None:
    """With no lag allowed only a pass that began since then will do, however young the last one is."""
    strict = Demands(0, 7 * DAY_S, 10 * DAY_S, asked_ns=ago(60))
    assert [check.name for check in shut(seen(complete_ns=ago(61), walked_ns=ago(61)), strict)] == ["fresh"]
    assert not shut(seen(complete_ns=ago(60), walked_ns=ago(60)), strict)
    assert not shut(seen(complete_ns=ago(1), walked_ns=ago(59)), strict)


def test_a_pass_that_trusts_the_watch_is_no_walk() -> None:
    """Where no lag is allowed, a pass that looked only where the kernel saw a change does not open the gate."""
    strict = Demands(0, 7 * DAY_S, 10 * DAY_S, asked_ns=ago(60))
    (check,) = shut(seen(complete_ns=ago(5), walked_ns=ago(61)), strict)
    assert "everything was not walked since" in check.reason


def test_a_walk_that_lies_ahead_of_the_clock_is_none_since_the_gate_was_asked() -> None:
    """A walk at a boot with a clock two hours ahead is older than the passes after it, whatever its stamp says."""
    strict = Demands(0, 7 * DAY_S, 10 * DAY_S, asked_ns=ago(60))
    (check,) = shut(seen(complete_ns=ago(5), walked_ns=ago(-7200)), strict)
    assert "everything was not walked since" in check.reason


def test_a_pass_that_ends_while_the_replica_is_asked_is_no_false_alarm() -> None:
    """The replica may be at either head of the ledger, before and after; a partial snapshot above is no fault."""
    assert not shut(seen(heads=(OLD, NEW)))
    assert not shut(seen(said(complete=OLD), heads=(NEW, NEW)))


def test_an_old_doubt_does_not_hide_a_proof() -> None:
    """A drill that could not find out leaves the proof before it standing while that is young enough."""
    assert not shut(seen(said(drills=DrillMemory(note(Outcome.INCONCLUSIVE, 1), note(days=2)))))


def test_no_combination_of_unknowns_opens_it() -> None:
    """Of all combinations of things seen, the gate opens for those alone in which everything is known and well."""
    heads, completes, oldest = ((), (NEW, NEW)), (Head(), NEW), (0, ago(DAY_S, THERE))
    drills = (DrillMemory(), DrillMemory(note(Outcome.FAILED), note()), DrillMemory(note(), note()))
    opened = []
    for head, complete, verified, drilled, state, here, there, lost, at_ns in product(
        heads, completes, oldest, drills, ("", "idle"), (None, {}), ({}, {"inconclusive": 1}), (0, 1), (0, ago(9))
    ):
        replica = said(
            complete=complete, oldest_verified_ns=verified, drills=drilled, scrub_state=state, open=there,
            lost_records=lost,
        )  # fmt: skip
        found = seen(replica, heads=head, open_here=here, complete_ns=at_ns)
        checks = judge(WANTED, found)
        assert len(checks) == 4 and all(check.reason for check in checks)
        opened += [found] if all(check.holds for check in checks) else []
    assert len(opened) == 1 and opened[0].said.complete == NEW


def test_it_is_open_only_where_every_copy_is_well() -> None:
    """No copy, one that could not be asked, one without checks, and a pin that failed all keep it shut."""
    well = Judged("www", "fra1", checks=[Check("fresh", True, "it is")])
    assert is_open([well, well])
    others = [
        Judged("www", "osl1"),
        Judged("www", "osl1", unknown="out of reach", checks=well.checks),
        Judged("www", "osl1", checks=[*well.checks, Check("drilled", False, "never")]),
        Judged("www", "osl1", checks=well.checks, pin_problem="the name is taken"),
    ]
    assert not is_open([]) and not any(is_open([well, other]) for other in others)


def test_demands_follow_the_objectives_unless_told() -> None:
    """The dataset's own rpo, scrub_every and drill_every; a zero that was typed is no default."""
    plain = Objectives()
    assert demands(plain, 7) == Demands(300, 7 * DAY_S, 7 * DAY_S * OVERDUE_FACTOR, 7)
    assert demands(plain, 7, 0.0, 0.0, 0.0) == Demands(0, 0, 0, 7)
    assert demands(Objectives(drill_every_s=0), 7).drill_age_s == 7 * DAY_S * OVERDUE_FACTOR
