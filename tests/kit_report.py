"""Kit: a report about everything at once, the same at every run, with names that somebody chose to do harm."""

from __future__ import annotations

from msgspec.structs import replace

from replicad.model.coverage import CELLS, AgeMap, Cell, Day, day_of
from replicad.model.drill import DrillRecord, Outcome, Trend, failure_of
from replicad.model.report import (
    Answer,
    Case,
    Divergences,
    Drills,
    Kept,
    Objective,
    Reason,
    Remark,
    Replica,
    Report,
    Retention,
    SideReport,
    Snapshots,
    Subject,
    Unknown,
)

S = 1_000_000_000
DAY_NS = 86_400 * S
NOW_NS = 1_800_000_000 * S
"""2027-01-15T08:00:00Z."""
WEEK_S = 7 * 86_400.0
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=http://evil.example/x onerror=alert(1)>',
    "</title></style></svg><iframe src='file:///etc/passwd'></iframe>",
    "a\u202egpj.exe\x1b[31m\x00\n| x |",
    "{{ 7*7 }} {% raw %} `b` [x](javascript:alert(1)) $\\frac{1}{2}$ &lt;b&gt;",
    "\udcff\udcfe lone surrogates",
)
"""What a name, a reason or a peer's text may be."""


def some_days(count: int = 60, *, without: range = range(0)) -> list[Day]:
    """A history: well, but for a week in which a tenth was overdue."""
    today = day_of(NOW_NS)
    return [
        Day(
            today - back,
            NOW_NS - back * DAY_NS,
            90,
            10_000,
            100 if back % 5 else 0,
            1_000 if 20 <= back < 27 else 0,
            2 if back in (21, 22) else 0,
        )
        for back in range(count - 1, -1, -1)
        if back not in without
    ]


def a_map(at_ns: int = NOW_NS) -> AgeMap:
    """Of every age: each eighth of it is older than the one before, the last of it new; two open divergences."""
    cells = [Cell(1000, 0, at_ns - int(number / CELLS * 1.2 * WEEK_S * S)) for number in range(CELLS)]
    for cell in cells[-20:]:
        cell.never_bytes, cell.oldest_ns = 1000, 0
    cells[40].bad = cells[300].bad = 1
    return AgeMap(at_ns, 1000 * CELLS, cells)


def a_side(side: str = "primary", peer: str = "", **changes: object) -> SideReport:
    """A side that is verified in time."""
    fields: dict[str, object] = {
        "title": f"replica {peer}" if peer else f"{side} ams1 (this node)",
        "as_of_ns": NOW_NS,
        "scrub_every_s": WEEK_S,
        "total_bytes": 10_000_000,
        "oldest_verified_ns": NOW_NS - 3 * DAY_NS,
        "structure_ns": NOW_NS - DAY_NS,
        "state": "idle",
        "days": some_days(),
        "map": a_map(),
    }
    return SideReport(side, peer, **{**fields, **changes})  # type: ignore[arg-type]  # a table of changes has no type


def a_record(number: int, outcome: Outcome = Outcome.PROVEN, **changes: object) -> DrillRecord:
    """A weekly drill."""
    ended_ns = NOW_NS - (10 - number) * 7 * DAY_NS - DAY_NS
    fields: dict[str, object] = {
        "number": number,
        "snapshot": 40 + number,
        "started_ns": ended_ns - 900 * S,
        "ended_ns": ended_ns,
        "outcome": outcome,
        "files": 200,
        "bytes": 5_000_000,
        "rate_bytes_s": 70e6,
        "estimate_s": 900.0 + 60 * number if outcome is Outcome.PROVEN else 0.0,
    }
    return DrillRecord("www", "fra1", **{**fields, **changes})  # type: ignore[arg-type]  # as above


def some_drills(**changes: object) -> Drills:
    """Ten weeks of drills; one failed, one could not find out, and they take longer and longer."""
    outcomes = {4: Outcome.FAILED, 7: Outcome.INCONCLUSIVE}
    records = [a_record(number, outcomes.get(number, Outcome.PROVEN)) for number in range(1, 11)]
    fields: dict[str, object] = {
        "records": records,
        "drill_every_s": WEEK_S,
        "rto_s": 1800.0,
        "last_success_ns": records[-1].ended_ns,
        "estimate_s": records[-1].estimate_s,
        "trend": Trend("rising", 9.0),
        "files": 200,
        "never_files": 20,
    }
    made = Drills("fra1", **{**fields, **changes})  # type: ignore[arg-type]  # as above
    return replace(made, failure=failure_of(reversed(made.records)))


def a_replica(name: str = "fra1", **changes: object) -> Replica:
    """A replica that has everything."""
    fields: dict[str, object] = {
        "link_up": True,
        "state": "idle",
        "last_snapshot": 50,
        "last_snapshot_ns": NOW_NS - 120 * S,
        "last_complete_ns": NOW_NS - 60 * S,
        "snapshots": Snapshots(50, 48, NOW_NS - 90 * DAY_NS, NOW_NS - 120 * S, 50, NOW_NS - 120 * S),
        "heard_ns": NOW_NS - 30 * S,
        "keep_younger_than_s": WEEK_S,
        "keep_at_least": 7,
    }
    return Replica(name, f"{name}.example:7022", **{**fields, **changes})  # type: ignore[arg-type]  # as above


def a_dataset(**changes: object) -> Subject:
    """A dataset that can be recovered."""
    fields: dict[str, object] = {
        "kind": "dataset",
        "name": "www",
        "place": "/srv/www",
        "entries": 221,
        "size": 10_000_000,
        "rpo_s": 300.0,
        "replicas": [a_replica()],
        "sides": [a_side(), a_side("replica", "fra1", days=some_days(without=range(30, 35)))],
        "drills": [some_drills()],
    }
    return Subject(**{**fields, **changes})  # type: ignore[arg-type]  # as above


def a_store(**changes: object) -> Subject:
    """A store that is sound."""
    fields: dict[str, object] = {
        "entries": 10,
        "size": 1_000_000,
        "stored_bytes": 3_000_000,
        "state": "idle",
        "received_ns": NOW_NS - 60 * S,
        "snapshots": Snapshots(9, 9, NOW_NS - 9 * DAY_NS, NOW_NS, 9, NOW_NS),
        "sides": [a_side("replica")],
        "retention": Retention(
            "No snapshot is ever let go", 9, pins=[Kept("before-upgrade", 4, NOW_NS, "ticket 4711")]
        ),
    }
    return Subject("store", "bru1/mail", "/srv/store/bru1/mail", **{**fields, **changes})  # type: ignore[arg-type]  # as above


def a_report(*subjects: Subject, **changes: object) -> Report:
    """A report about these subjects."""
    fields: dict[str, object] = {
        "node": "ams1",
        "version": "0.1.0",
        "generated_ns": NOW_NS,
        "period_days": 90,
        "answer": Answer.YES,
        "headline": "Yes: everything.",
        "status_ns": NOW_NS,
        "is_live": True,
        "subjects": list(subjects),
    }
    return Report(**{**fields, **changes})  # type: ignore[arg-type]  # as above


def a_hostile_report() -> Report:
    """A report in which every text that comes from outside is one of HOSTILE."""
    texts = [HOSTILE[number % len(HOSTILE)] for number in range(40)]
    text = iter(texts)

    def case(state: str) -> Case:
        return Case(
            next(text), next(text), next(text), state, next(text), NOW_NS, NOW_NS, True, [next(text)], 3, [next(text)],
            next(text),
        )  # fmt: skip

    found = Divergences([case("open")], 1, [case("repaired")], 1, {next(text): 1}, {"repaired": 1}, 1, 1)
    subject = a_dataset(
        replicas=[a_replica(next(text), reason=next(text), site=next(text))],
        sides=[a_side(title=next(text), reason=next(text))],
        drills=[some_drills(reason=next(text), records=[a_record(1, Outcome.FAILED, reasons=[next(text)])])],
        divergences=found,
        policy=[Objective(next(text), next(text), "fail", next(text))],
        level=next(text),
        unknowns=[Unknown(next(text), next(text))],
        reasons=[Reason(Answer.NO, next(text))],
        answer=Answer.NO,
    )
    store = a_store(retention=Retention(next(text), 1, pins=[Kept(next(text), 1, NOW_NS, next(text))]))
    return a_report(
        subject,
        store,
        headline=next(text),
        remarks=[Remark("held", next(text), next(text), next(text))],
        unknowns=[Unknown(HOSTILE[0], HOSTILE[1])],
    )
