"""Report: what is known about everything that a node protects or keeps, as one plain value, and what follows from it.

    Report -> Subject (a dataset here, or a store kept for a client) -> Replica, SideReport, Finding, Drills, Retention

**Owns** the keys of `replicad report --format json`, and the answer to the one question that matters: can everything be
recovered? **Never** answers yes where something was not found out or not proven: that is an answer of its own.
Times are ns since 1970, 0 = never or not known.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum

import msgspec

from replicad.model.coverage import AgeMap, Day
from replicad.model.drill import DrillRecord, Trend
from replicad.model.show import counted, short_duration
from replicad.model.when import show_time

FORMAT = 1
"""Of the JSON document; raised when a key changes its meaning."""


class Answer(StrEnum):
    """Whether everything comes back."""

    YES = "yes"
    UNPROVEN = "unproven"
    """Nothing is known to be missing, but nothing has proven it lately either."""
    UNKNOWN = "unknown"
    """It could not be found out."""
    NO = "no"
    """Something is known not to come back."""


_GRAVITY = {Answer.YES: 0, Answer.UNPROVEN: 1, Answer.UNKNOWN: 2, Answer.NO: 3}


class Reason(msgspec.Struct, frozen=True):
    """Why the answer is not yes."""

    answer: Answer
    text: str


class Remark(msgspec.Struct, frozen=True):
    """Something that a person should know and do, as `replicad status` says it."""

    kind: str
    where: str
    what: str
    next_step: str


class Unknown(msgspec.Struct, frozen=True):
    """Something that could not be found out."""

    where: str
    what: str
    known_ns: int = 0
    """When what stands in this report about it was last known."""
    replica: str = ""
    """The replica that could not be asked."""


class Snapshots(msgspec.Struct, frozen=True):
    """What can be restored."""

    count: int
    complete: int
    oldest_ns: int = 0
    newest_ns: int = 0
    newest_complete: int = 0
    """Number of the newest complete one."""
    newest_complete_ns: int = 0


class Replica(msgspec.Struct, frozen=True):
    """Where a copy of a dataset is, and how fresh it is."""

    name: str
    address: str
    site: str = ""
    link_up: bool = False
    state: str = ""
    reason: str = ""
    last_snapshot: int = 0
    last_snapshot_ns: int = 0
    last_complete_ns: int = 0
    """As of when everything is on it."""
    snapshots: Snapshots | None = None
    """None: it could not be asked."""
    heard_ns: int = 0
    """When it said last what it keeps; 0 = not since the daemon started."""
    keeps_all: bool = False
    """Whether it lets no snapshot go at all."""
    keep_younger_than_s: float = 0.0
    """What is younger stays there, whatever its rules are."""
    keep_at_least: int = 0
    """Snapshots of at least so many days stay there."""


class SideReport(msgspec.Struct, frozen=True):
    """How one side of a subject is verified."""

    side: str
    """primary or replica."""
    peer: str
    """At a primary, the replica that is meant; "" for this node's own side."""
    title: str
    as_of_ns: int
    """When this was so: now, or when the other node said it last."""
    scrub_every_s: float = 0.0
    total_bytes: int = 0
    never_bytes: int = 0
    overdue_bytes: int = 0
    oldest_verified_ns: int = 0
    structure_ns: int = 0
    on_track: bool = True
    state: str = ""
    """Of its scrub, as `replicad status` says it; "" = nobody has said how it stands."""
    reason: str = ""
    days: list[Day] = []
    """Those of the period that anything is known of, ascending."""
    map: AgeMap | None = None


class Case(msgspec.Struct, frozen=True):
    """One divergence."""

    id: str
    side: str
    verdict: str
    state: str
    headline: str
    found_ns: int
    changed_ns: int
    lost: bool = False
    affected: list[str] = []
    """The first files that it touches, with byte ranges."""
    affected_count: int = 0
    repairs: list[str] = []
    """What was done about it, from the receipts."""
    last_event: str = ""


class Divergences(msgspec.Struct, frozen=True):
    """What was found wrong, and what came of it."""

    open: list[Case] = []
    open_count: int = 0
    settled: list[Case] = []
    """Of the period, the latest first."""
    settled_count: int = 0
    found_totals: dict[str, int] = {}
    """Ever, by "side verdict"."""
    repair_totals: dict[str, int] = {}
    """Ever, by result."""
    lost_count: int = 0
    """Open ones of which no side has the bytes."""
    unclear_count: int = 0


class Drills(msgspec.Struct, frozen=True):
    """Rehearsed restores from one replica."""

    replica: str
    records: list[DrillRecord] = []
    """Of the period, oldest first."""
    failure: DrillRecord | None = None
    """The drill that failed last, until one of the dataset is proven; it may be older than the period."""
    drill_every_s: float = 0.0
    rto_s: float = 0.0
    last_success_ns: int = 0
    estimate_s: float = 0.0
    trend: Trend = Trend("unknown")
    is_overdue: bool = False
    files: int = 0
    never_files: int = 0
    oldest_ns: int = 0
    state: str = ""
    reason: str = ""


class Kept(msgspec.Struct, frozen=True):
    """A snapshot that a pin keeps."""

    name: str
    snapshot: int
    at_ns: int
    reason: str = ""


class Retention(msgspec.Struct, frozen=True):
    """What stays in a store, and why."""

    rules: str
    kept: int = 0
    going: int = 0
    hold: str = ""
    reasons: dict[str, int] = {}
    """How many snapshots stay for each reason."""
    pins: list[Kept] = []
    suspects: int = 0
    """Suspect changes that wait for a person; the versions before them stay."""


class Objective(msgspec.Struct, frozen=True):
    """One objective of a policy, and whether it is met."""

    objective: str
    target: str
    grade: str
    """pass, fail or unknown."""
    evidence: str


class Subject(msgspec.Struct, frozen=True):
    """A dataset of this node, or a store that this node keeps for a client."""

    kind: str
    """dataset or store."""
    name: str
    place: str
    """Directory of the dataset or of the store."""
    entries: int = 0
    size: int = 0
    stored_bytes: int = 0
    rpo_s: float = 0.0
    state: str = ""
    received_ns: int = 0
    """Of a store: when it received its last snapshot."""
    told_proven_ns: int = 0
    """Of a store: when a drill proved last that it comes back, as its client has told."""
    told_outcome: str = ""
    """Of a store: what the last drill came to; "" = its client has told of none."""
    replicas: list[Replica] = []
    snapshots: Snapshots | None = None
    """Of a store."""
    sides: list[SideReport] = []
    divergences: Divergences = Divergences()
    drills: list[Drills] = []
    retention: Retention | None = None
    """Of a store; what a replica keeps of a dataset is its own to say."""
    level: str = ""
    policy: list[Objective] = []
    unknowns: list[Unknown] = []
    answer: Answer = Answer.UNKNOWN
    reasons: list[Reason] = []


class Report(msgspec.Struct, frozen=True):
    """The whole."""

    node: str
    version: str
    generated_ns: int
    period_days: int
    answer: Answer
    headline: str
    format: int = FORMAT
    status_ns: int = 0
    """When the daemon said what stands here about what runs: now, or earlier when it does not answer; 0 = never."""
    is_live: bool = False
    """Whether the daemon answered."""
    site: str = ""
    remarks: list[Remark] = []
    unknowns: list[Unknown] = []
    subjects: list[Subject] = []

    @property
    def exit_code(self) -> int:
        """0 everything is recoverable and nothing is to be done; 1 something is wrong or not proven; 3 something could
        not be found out, and nothing else is the matter."""
        if self.answer in (Answer.NO, Answer.UNPROVEN) or any(one.kind != "link" for one in self.remarks):
            return 1
        if any(_has_finding(subject) for subject in self.subjects):
            return 1
        is_known = not self.unknowns and not any(subject.unknowns for subject in self.subjects)
        return 0 if self.answer is Answer.YES and not self.remarks and is_known else 3


def _has_finding(subject: Subject) -> bool:
    """Whether something about it is wrong, or not proven, whatever else is not known."""
    if subject.divergences.open_count or any(one.grade == "fail" for one in subject.policy):
        return True
    return any(reason.answer in (Answer.NO, Answer.UNPROVEN) for reason in subject.reasons)


# ----------------------------------------------------------------------------------------------------------- answer


def gravest(answers: Iterable[Answer]) -> Answer:
    """The answer for a whole; of nothing at all nothing is known."""
    return max(answers, key=_GRAVITY.__getitem__, default=Answer.UNKNOWN)


def judged(subject: Subject) -> Subject:
    """The subject with the answer that follows from what is known of it."""
    reasons = [
        *_unknown(subject),
        *_lost(subject),
        *(_copied(subject) if subject.kind == "dataset" else ()),
        *_verified(subject),
        *(_drilled(subject) if subject.kind == "dataset" else ()),
    ]
    reasons.sort(key=lambda reason: -_GRAVITY[reason.answer])
    answer = gravest(reason.answer for reason in reasons) if reasons else Answer.YES
    return msgspec.structs.replace(subject, answer=answer, reasons=reasons)


def _unknown(subject: Subject) -> list[Reason]:
    """What is not known of one replica does not matter for the answer where another one has told everything."""
    silent = {one.replica for one in subject.unknowns}
    is_told = any(one.name not in silent and one.snapshots and one.last_complete_ns for one in subject.replicas)
    counting = [one for one in subject.unknowns if not (one.replica and is_told)]
    return [Reason(Answer.UNKNOWN, f"{one.where}: {one.what}") for one in counting]


def _lost(subject: Subject) -> list[Reason]:
    found, said = subject.divergences, list[Reason]()
    if found.lost_count:
        what = f"{counted(found.lost_count, 'finding')} of which no side has the bytes"
        said.append(Reason(Answer.NO, f"data is lost: {what}"))
    if found.unclear_count:
        what = counted(found.unclear_count, "finding is", "findings are")
        said.append(Reason(Answer.UNKNOWN, f"{what} not clear yet"))
    if subject.state == "damaged":
        said.append(Reason(Answer.NO, "the store is damaged"))
    return said


def _copied(subject: Subject) -> list[Reason]:
    if not subject.replicas:
        return [Reason(Answer.NO, "there is no replica")]
    if not any(replica.last_complete_ns for replica in subject.replicas):
        if any(replica.state for replica in subject.replicas):
            return [Reason(Answer.NO, "no replica ever held a complete copy")]
        return [Reason(Answer.UNKNOWN, "it is not known whether a replica holds a complete copy")]
    copies = [replica.snapshots for replica in subject.replicas if replica.last_complete_ns]
    if not any(kept is None or kept.complete for kept in copies):  # the record may have been lost since
        return [Reason(Answer.NO, "no replica lists a complete snapshot")]
    return []


def _verified(subject: Subject) -> list[Reason]:
    said = []
    for side in subject.sides:
        if not side.state:
            said.append(Reason(Answer.UNKNOWN, f"{side.title}: how its verification stands now is not known"))
        elif side.total_bytes and not side.oldest_verified_ns:
            said.append(Reason(Answer.UNPROVEN, f"{side.title}: not every byte was read again yet, not once"))
        elif side.overdue_bytes:
            share = side.overdue_bytes / max(1, side.total_bytes)
            text = f"the last look at {share:.1%} of it is longer ago than {short_duration(side.scrub_every_s)}"
            said.append(Reason(Answer.UNPROVEN, f"{side.title}: {text}"))
    return said


def _drilled(subject: Subject) -> list[Reason]:
    """One replica from which everything is proven to come back is enough; what failed at another one is a finding."""
    proven = [one for one in subject.drills if _is_proven(one)]
    failed = [(one.replica, one.failure) for one in subject.drills if one.failure]
    if failed and not proven:
        replica, failure = failed[0]
        why = "".join(f": {one}" for one in failure.reasons[:1])
        return [Reason(Answer.NO, f"no drill from {replica} was proven since one failed{why}")]
    if not proven:
        last_ns = max((one.last_success_ns for one in subject.drills), default=0)
        text = f"the last proven drill was at {show_time(last_ns)}" if last_ns else "no drill has proven it yet"
        return [Reason(Answer.UNPROVEN, f"{text}: replicad drill run {subject.name}")]
    return []


def _is_proven(one: Drills) -> bool:
    return bool(one.last_success_ns) and not one.is_overdue and not one.failure


# --------------------------------------------------------------------------------------------------------- headline


def headline(subjects: Sequence[Subject], unknowns: Sequence[Unknown]) -> tuple[Answer, str]:
    """The answer for everything, and one sentence that says it."""
    if not subjects:
        if unknowns:
            return Answer.UNKNOWN, f"Not known: {unknowns[0].where}: {unknowns[0].what}."
        return Answer.UNKNOWN, "Nothing is protected by this node yet, and nothing is kept on it."
    answer = gravest([*(subject.answer for subject in subjects), *(Answer.UNKNOWN for _ in unknowns)])
    if answer is Answer.YES:
        return answer, _yes(subjects)
    concerned = [subject for subject in subjects if subject.answer is answer]
    first = next((f"{one.name}: {one.reasons[0].text}" for one in concerned), "")
    first = first or f"{unknowns[0].where}: {unknowns[0].what}"
    of_many = f", for {len(concerned)} of {_counted(subjects)}" if concerned and len(subjects) > 1 else ""
    more = f" (and {len(concerned) - 1} more)" if len(concerned) > 1 else ""
    return answer, f"{_BEGIN[answer]}{of_many}. {first}{more}."


_BEGIN = {Answer.NO: "No", Answer.UNKNOWN: "Not known", Answer.UNPROVEN: "Probably, but it is not proven"}


def _yes(subjects: Sequence[Subject]) -> str:
    as_of_ns = min((one_ns for subject in subjects if (one_ns := _as_of_ns(subject))), default=0)
    drilled = [max(one.last_success_ns for one in subject.drills) for subject in subjects if subject.drills]
    text = f"Yes: everything in {_things(subjects)} can be recovered"
    text += f" as of {show_time(as_of_ns)} or later" if as_of_ns else ""
    if drilled:
        text += f"; drills have proven it, the oldest of them at {show_time(min(drilled))}"
    elif all(subject.kind == "store" for subject in subjects):
        text += ", as far as this side can tell: every stored byte was verified in time"
    count = sum(subject.divergences.open_count for subject in subjects)
    if count:
        text += f". {counted(count, 'open finding waits', 'open findings wait')} for repair, nothing is lost"
    return f"{text}."


def _as_of_ns(subject: Subject) -> int:
    if subject.kind == "store":
        return subject.snapshots.newest_complete_ns if subject.snapshots else 0
    return max((replica.last_complete_ns for replica in subject.replicas), default=0)


def _counted(subjects: Sequence[Subject]) -> str:
    """ "3 datasets"; where there are stores as well, "4 (3 datasets and 1 store)"."""
    things = _things(subjects)
    return f"{len(subjects)} ({things})" if " and " in things else things


def _things(subjects: Sequence[Subject]) -> str:
    parts = []
    for kind in ("dataset", "store"):
        if count := sum(subject.kind == kind for subject in subjects):
            parts.append(counted(count, kind))
    return " and ".join(parts)
