"""The books of a campaign: which damage was done, what was found of it, and whether that was right.

A `Case` is one fault with what became of it. `Detector` is the only seam to the program: the real one types commands
(campaign.py), a false one plays detection, so that the books themselves are tested: a fault that is missed, called by
the wrong name or not repaired, and an alarm without a fault, must each show in the account.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from kit_damage import NOT_FOUND, Expected, Fault, paths_of
from kit_workload import Guard, Known
from replicad.model.divergence import Part, Side
from replicad.model.verdict import Verdict

TIB = 1024**4
Document = dict[str, Any]
"""A divergence as `replicad divergence list --json` gives it."""
SETTLED = ("repaired", "gone", "acknowledged")
SLACK_NS = 2_000_000_000
"""A moment of finding may be noted this much before the injection was: both are taken from one clock, but rounded."""


class Detector(Protocol):
    """What finds damage."""

    def scrub(self) -> None:
        """Read everything on both sides once; returns when that is done."""

    def documents(self) -> list[Document]:
        """All divergences ever found, each side's own."""

    def acknowledge(self, document: Document) -> None:
        """A person takes note of a loss."""

    def read_bytes(self) -> int:
        """Bytes that scrubs have read so far."""


@dataclass(eq=False)
class Case:
    """One fault, and what became of it."""

    fault: Fault
    injected_ns: int
    guard: Guard | None = None
    """Of the file, when the primary's copy was damaged."""
    is_both: bool = False
    """Both copies were damaged: the bytes are lost."""
    beside: Guard | None = None
    """Of the primary's file, when this is the replica's half of a loss on both sides."""
    documents: list[Document] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    outcome: str = "missed"
    """missed, overwritten, repaired, lost (and said so), wrong (found, and not what it should be)."""

    @property
    def detected_s(self) -> float | None:
        """Seconds from the damage to its detection."""
        if not self.documents:
            return None
        return max(0, min(document["found_ns"] for document in self.documents) - self.injected_ns) / 1e9

    def fits(self, document: Document) -> bool:
        """Whether a divergence is about this fault."""
        if document["found_ns"] + SLACK_NS < self.injected_ns:
            return False
        return any(expected.is_found_by(document) for expected in self._expectations())

    def judge(self, documents: Sequence[Document], live: Collection[bytes]) -> bool:
        """Note what was found; whether nothing more is to be waited for. `live`: blocks that the dataset shows now."""
        self.documents = [document for document in documents if self.fits(document)]
        if self.guard and self.guard.hit:
            self.outcome, self.problems = "overwritten", []
            return True
        problems = [expected.problems(self.documents) for expected in self._expectations()]
        # of several names the one that something was found under says what is wrong
        self.problems = min(problems, key=lambda texts: (len(texts), texts == [NOT_FOUND])) or self._left(live)
        lost = any(document["lost"] for document in self.documents if document["state"] not in SETTLED)
        self.outcome = "missed" if not self.documents else "wrong" if self.problems else "lost" if lost else "repaired"
        return not self.problems

    def _expectations(self) -> list[Expected]:
        """A file may have moved with its directory since, again and again; its names are its own alone."""
        expected = self.fault.expected
        if self.beside and self.beside.hit:  # only history had the block from then on
            expected = replace(expected, verdicts=expected.verdicts | {Verdict.REPLICA_ROT})
        names = {self.guard.file.path, *self.guard.file.names} - {expected.path} if self.guard else set()
        return [expected, *(replace(expected, path=name) for name in sorted(names))]

    def _left(self, live: Collection[bytes]) -> list[str]:
        """What is neither repaired nor rightly called lost."""
        open_ones = [document for document in self.documents if document["state"] not in SETTLED]
        if self.is_both and not any(document["lost"] for document in self.documents):
            return ["both copies are gone, and it does not say so"]
        return [text for document in open_ones if (text := self._problem_of(document, live))]

    def _problem_of(self, document: Document, live: Collection[bytes]) -> str:
        if not document["lost"]:
            return f"{document['id']} is {document['state']}: {document['verdict']}"
        if not self.is_both and any(bytes.fromhex(name) in live for name in document["blocks"]):
            return f"{document['id']} is called lost, and the primary has the bytes"
        is_own = document["side"] == Side.PRIMARY.value  # of the live file; what snapshots lack is the replica's to say
        named = [one for one in document["affected"] if one["path"] and one["length"] and (one["first"] or is_own)]
        return "" if named else f"{document['id']} is lost without snapshot, path and range"


@dataclass
class Checks:
    """What restores showed."""

    snapshots: int = 0
    files: int = 0
    rotten: list[str] = field(default_factory=list)
    """Files that were restored as good and are not."""
    unexplained: list[str] = field(default_factory=list)
    """Files that were named as damaged, although no loss explains it."""


@dataclass
class Account:
    """The whole campaign."""

    seed: int
    started_ns: int
    deadline_s: float
    """scrub_every."""
    files: int = 0
    cases: list[Case] = field(default_factory=list)
    checks: Checks = field(default_factory=Checks)
    edits: int = 0
    kills: int = 0
    rounds: int = 0
    seconds: float = 0.0
    read_bytes: int = 0
    false_alarms: list[Document] = field(default_factory=list)
    explained: set[str] = field(default_factory=set)
    """Ids of divergences that belong to a fault: their places do not change, so they are looked at once."""

    def judge(self, cases: Iterable[Case], documents: Sequence[Document], live: Collection[bytes]) -> bool:
        """Judge these cases; whether all are settled."""
        return not [case for case in cases if not case.judge(documents, live)]

    def find_false_alarms(self, documents: Sequence[Document]) -> None:
        """Divergences that belong to no fault."""
        fresh = [one for one in documents if one["found_ns"] >= self.started_ns and one["id"] not in self.explained]
        self.false_alarms = [one for one in fresh if not any(case.fits(one) for case in reversed(self.cases))]
        self.explained |= {one["id"] for one in fresh} - {one["id"] for one in self.false_alarms}

    def lost_paths(self) -> set[str]:
        """Every path that a loss was reported of, under all names that the file has had."""
        found: set[str] = set()
        for case in self.cases:
            for document in case.documents:
                found |= paths_of(document) if document["lost"] else set()
            found |= {case.guard.file.path, *case.guard.file.names} if case.guard and case.outcome == "lost" else set()
        return found

    @property
    def is_perfect(self) -> bool:
        """Whether all targets are met."""
        outcomes = {case.outcome for case in self.cases}
        bad = self.false_alarms or self.checks.rotten or self.checks.unexplained
        return bool(self.cases) and outcomes <= {"repaired", "lost", "overwritten"} and not bad

    def document(self) -> Document:
        """For JSON."""
        return {
            "seed": self.seed,
            "files": self.files,
            "edits": self.edits,
            "kills": self.kills,
            "rounds": self.rounds,
            "seconds": round(self.seconds, 1),
            "deadline_s": self.deadline_s,
            "read_bytes": self.read_bytes,
            "rows": [row.__dict__ for row in self.rows()],
            "false_alarms": self.false_alarms,
            "false_alarms_per_tib": len(self.false_alarms) / (self.read_bytes / TIB) if self.read_bytes else None,
            "restored_snapshots": self.checks.snapshots,
            "restored_files": self.checks.files,
            "rotten_restored": self.checks.rotten,
            "unexplained": self.checks.unexplained,
            "not_perfect": [
                {"what": case.fault.what, "kind": case.fault.kind, "outcome": case.outcome, "problems": case.problems}
                for case in self.cases
                if case.outcome in ("missed", "wrong")
            ],
        }

    def rows(self) -> list[Row]:
        """One a side and kind, and the sum."""
        groups: dict[tuple[str, str], list[Case]] = {}
        for case in self.cases:
            groups.setdefault((case.fault.expected.side.value, case.fault.kind), []).append(case)
        return [Row.of(*key, cases) for key, cases in sorted(groups.items())] + [Row.of("both", "all", self.cases)]


@dataclass
class Row:
    """One line of the table."""

    side: str
    kind: str
    injected: int
    overwritten: int
    detected: int
    correct: int
    repaired: int
    lost: int
    wrong: int
    missed: int
    median_s: float
    longest_s: float

    @classmethod
    def of(cls, side: str, kind: str, cases: Sequence[Case]) -> Row:
        """The sums over these cases. What was overwritten counts nowhere else."""
        counted = [case for case in cases if case.outcome != "overwritten"]
        seconds = [case.detected_s for case in counted if case.detected_s is not None]

        def count(*outcomes: str) -> int:
            return sum(case.outcome in outcomes for case in cases)

        return cls(
            side,
            kind,
            len(cases),
            count("overwritten"),
            len(seconds),
            count("repaired", "lost"),
            count("repaired"),
            count("lost"),
            count("wrong"),
            count("missed"),
            round(statistics.median(seconds), 1) if seconds else 0.0,
            round(max(seconds), 1) if seconds else 0.0,
        )


COLUMNS = ("side", "kind", "injected", "overwritten", "detected", "correct", "repaired", "lost", "wrong", "missed",
           "median_s", "longest_s")  # fmt: skip
TITLES = ("side", "kind", "injected", "over-written", "detected", "classified correctly", "repaired",
          "reported as lost", "wrong", "missed", "seconds to detection, median", "longest")  # fmt: skip


def as_markdown(account: Account, command: str) -> str:
    """The account as docs/RELIABILITY.md shows it."""
    lines = [
        f"`{command}`: {account.files:,} files, {account.edits:,} edits, {account.kills} kills, "
        f"{account.rounds} rounds in {account.seconds / 60:.0f} minutes.",
        "",
        "| " + " | ".join(TITLES) + " |",
        "| " + " | ".join("---" for _ in TITLES) + " |",
    ]
    for row in account.rows():
        lines.append("| " + " | ".join(f"{row.__dict__[column]}" for column in COLUMNS) + " |")
    alarms, tib = len(account.false_alarms), account.read_bytes / TIB
    lines += [
        "",
        f"- False alarms: {alarms} in {tib:.3f} TiB read by scrubs"
        + (f" ({alarms / tib:.2f} per TiB)." if tib else "."),
        f"- Deadline (`scrub_every`): {account.deadline_s:.0f} s.",
        f"- Restored and compared: {account.checks.snapshots} snapshots, {account.checks.files:,} files; "
        f"rotten and passed off as good: {len(account.checks.rotten)}; named as damaged without a loss that explains "
        f"it: {len(account.checks.unexplained)}.",
    ]
    return "\n".join(lines)


def as_text(account: Account) -> str:
    """The account for a terminal."""
    cells = [COLUMNS, *([str(row.__dict__[column]) for column in COLUMNS] for row in account.rows())]
    widths = [max(len(str(line[i])) for line in cells) for i in range(len(COLUMNS))]
    lines = ["  ".join(str(cell).ljust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]
    lines.append(as_markdown(account, f"seed {account.seed}").rpartition("|\n")[2].strip())
    for case in account.cases:
        if case.outcome in ("missed", "wrong"):
            lines += [f"{case.outcome}: {case.fault.kind}, {case.fault.what}: {'; '.join(case.problems)}"]
            lines += [f"  {line}" for document in case.documents for line in _history(document, case.injected_ns)]
    for alarm in account.false_alarms:
        lines += [f"false alarm: {alarm['id']} {alarm['key']} {alarm['path']}"]
        lines += [f"  {line}" for line in _history(alarm, account.started_ns)]
    lines += [f"rotten and restored as good: {text}" for text in account.checks.rotten]
    lines += [f"named as damaged without a reason: {text}" for text in account.checks.unexplained]
    return "\n".join(lines)


def _history(document: Document, since_ns: int) -> list[str]:
    """How it stands, and what became of it second by second."""
    evidence = ", ".join(f"{name} {value}" for name, value in document["evidence"].items())
    lines = [f"  {(one['at_ns'] - since_ns) / 1e9:8.1f} s {one['what']}" for one in document["events"]]
    return [f"{document['id']} {document['state']} {document['verdict']}: {evidence}", *lines]


def primary_fault(file: Known, kind: str, offset: int, length: int, block: bytes, **more: Any) -> Fault:
    """What is expected of a damaged file of the primary."""
    readable = more.pop("is_readable", True)
    verdicts = frozenset({Verdict.PRIMARY_ROT if readable else Verdict.PRIMARY_UNREADABLE})
    expected = Expected(
        Side.PRIMARY, frozenset({Part.BLOCK}), verdicts, file.path, 0, offset, length, frozenset({block})
    )
    return Fault(kind, expected, f"{file.path} at {offset}, {length} bytes", **more)


def as_lost(fault: Fault) -> Fault:
    """The same damage when the other side's copy is damaged too."""
    verdicts = frozenset({Verdict.BOTH_ROT})
    return replace(fault, kind=f"both sides, {fault.kind}", expected=replace(fault.expected, verdicts=verdicts))
