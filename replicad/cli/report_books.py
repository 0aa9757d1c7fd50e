"""Report books: what a findings book, and the ledger or catalog beside it, say for a report.

Divergences and what was done about them, how each side was verified day by day, when each part of it was verified last,
and on a replica what retention keeps. **Owns** nothing; a book that cannot be read is an `Unknown`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from replicad.cli.books import Book
from replicad.cli.explain import headline
from replicad.cli.report_sources import Sources
from replicad.config.units import format_duration
from replicad.db.findings import Findings
from replicad.model.attestation import DrillMemory
from replicad.model.coverage import AgeMap, day_of
from replicad.model.divergence import Divergence, Side, State
from replicad.model.errors import ReplicadError
from replicad.model.report import Case, Divergences, Kept, Retention, SideReport, Unknown
from replicad.model.retention import Rules
from replicad.model.show import show_path
from replicad.model.verdict import Verdict
from replicad.model.when import show_time
from replicad.status import ScrubStatus, printable

MAX_CASES = 200
"""Divergences of a subject that are told one by one, open and settled each; the counts count all."""
MAX_FILES = 10
"""Affected files of a divergence that are named."""


@dataclass(frozen=True, slots=True)
class Said:
    """What the books say."""

    divergences: Divergences
    sides: list[SideReport]
    retention: Retention | None
    drills: DrillMemory
    """What a replica was told of drills from it."""


def read_book(sources: Sources, book: Book, unknowns: list[Unknown]) -> Said:
    """Everything that is asked of the books of one dataset or store. What cannot be read joins `unknowns`."""
    from replicad.work.witness import recalled_drills  # slow to import

    try:
        with book.reading() as findings:
            standing = findings.listed(state=State.OPEN)
            return Said(
                _divergences(findings, book, standing, sources.since_ns),
                _sides(sources, book, findings, standing, unknowns),
                _retention(sources, book, findings, unknowns) if book.seat.side is Side.REPLICA else None,
                recalled_drills(findings),
            )
    except ReplicadError as error:
        unknowns.append(Unknown("findings", printable(str(error))))
        return Said(Divergences(), _sides(sources, book, None, [], unknowns), None, DrillMemory())


# ------------------------------------------------------------------------------------------------------ divergences


def _divergences(findings: Findings, book: Book, standing: Sequence[Divergence], since_ns: int) -> Divergences:
    """Of both sides: a primary's book mirrors what its replicas have found."""
    settled, settled_count = findings.settled(since_ns, MAX_CASES)
    first = sorted(standing, key=lambda one: (not one.is_lost, one.found_ns, one.id))[:MAX_CASES]
    return Divergences(
        [_case(findings, book, one) for one in first],
        len(standing),
        [_case(findings, book, one) for one in settled],
        settled_count,
        {f"{side} {verdict}": count for (side, verdict), count in sorted(findings.totals().items())},
        dict(sorted(findings.repair_totals().items())),
        sum(one.is_lost for one in standing),
        sum(one.verdict is Verdict.INCONCLUSIVE for one in standing),
    )


def _case(findings: Findings, book: Book, found: Divergence) -> Case:
    return Case(
        found.id,
        found.side.value,
        found.verdict.value,
        found.state.value,
        printable(headline(found, book.seat)),
        found.found_ns,
        found.changed_ns,
        found.is_lost,
        list(_affected(found)),
        max(found.affected_count, len(found.affected)),
        [
            printable(f"{show_time(one.at_ns)} {one.result} ({one.remedy}), bytes from {one.source}")
            for one in findings.receipts(found.id)
        ],
        printable(found.events[-1].what) if found.events else "",
    )


def _affected(found: Divergence) -> Iterator[str]:
    for one in found.affected[:MAX_FILES]:
        older = "" if one.is_live else ", in older snapshots only"
        yield f"{show_path(one.path)}: bytes {one.offset} to {one.offset + one.length - 1}{older}"


# ------------------------------------------------------------------------------------------------------------ sides


def _sides(
    sources: Sources, book: Book, findings: Findings | None, standing: Sequence[Divergence], unknowns: list[Unknown]
) -> list[SideReport]:
    """This node's own side first, then what each replica has said of its own."""
    node, own = sources.config.node.name, book.seat.side
    client, _, dataset = book.seat.dataset.rpartition("/")
    line = sources.scrub(dataset, own.value, client)
    here = _side(sources, findings, own, "", line, f"{own.value} {node} (this node)")
    here = msgspec.structs.replace(here, scrub_every_s=here.scrub_every_s or _deadline_s(sources, book))
    try:
        here = msgspec.structs.replace(here, map=_own_map(sources, book, standing))
    except ReplicadError as error:
        unknowns.append(Unknown("age map", printable(str(error))))
    others = [_told(sources, book, findings, replica, unknowns) for replica in book.seat.replicas]
    return [here, *others]


def _deadline_s(sources: Sources, book: Book) -> float:
    """Within which every byte of this node's own side is to be read again, as it is configured."""
    config = sources.config
    if book.seat.side is Side.REPLICA:
        return config.listen.scrub_every_s if config.listen else 0.0
    return next((one.scrub_every_s for one in config.datasets if one.name == book.seat.dataset), 0.0)


def _own_map(sources: Sources, book: Book, standing: Sequence[Divergence]) -> AgeMap | None:
    from replicad.work.coverage_notes import map_of_primary, map_of_store
    from replicad.work.dataset import ledger_path

    if book.seat.side is Side.REPLICA:
        return map_of_store(Path(book.seat.directory), standing, sources.now_ns)
    ledger = ledger_path(sources.config.node.state, book.seat.dataset)
    own = [one for one in standing if one.side is Side.PRIMARY]
    return map_of_primary(ledger, own, sources.now_ns) if ledger.exists() else None


def _told(sources: Sources, book: Book, findings: Findings | None, replica: str, unknowns: list[Unknown]) -> SideReport:
    """A replica's side, as it said last."""
    line = sources.scrub(book.seat.dataset, Side.REPLICA.value, replica)
    side = _side(sources, findings, Side.REPLICA, replica, line, f"replica {replica}")
    if findings:
        side = msgspec.structs.replace(side, map=findings.coverage.map(Side.REPLICA, replica))
    if silence := _silence(line):
        known_ns = side.days[-1].at_ns if side.days else 0
        what = f"how its side is verified: {printable(silence)}"
        unknowns.append(Unknown(f"replica {replica}", what, known_ns, replica))
        side = msgspec.structs.replace(side, as_of_ns=known_ns)
    return side


def _silence(line: ScrubStatus | None) -> str:
    """Why a replica does not say now how its scrub stands; "" when it does."""
    if line is None or line.state == "starting":
        return "it has not been asked yet"
    is_away = line.state == "waiting" and (line.reason.startswith("out of reach") or not line.total_bytes)
    return line.reason if is_away else ""


def _side(
    sources: Sources, findings: Findings | None, side: Side, peer: str, line: ScrubStatus | None, title: str
) -> SideReport:
    """One side: how it stands now from the status, how it was from the book."""
    last = day_of(sources.now_ns)
    days = findings.coverage.days(side, peer, last - sources.days + 1, last) if findings else []
    if line is None or not line.total_bytes:
        latest = days[-1] if days else None
        known = (latest.at_ns, latest.total_bytes, latest.never_bytes, latest.overdue_bytes) if latest else (0, 0, 0, 0)
        return SideReport(side.value, peer, title, known[0], line.scrub_every_s if line else 0.0, *known[1:], days=days)
    return SideReport(
        side.value,
        peer,
        title,
        sources.status_ns,
        line.scrub_every_s,
        line.total_bytes,
        line.never_bytes,
        line.overdue_bytes,
        line.oldest_verified_ns,
        line.structure_ns,
        line.on_track,
        line.state,
        printable(line.reason),
        days,
    )


# -------------------------------------------------------------------------------------------------------- retention


def _retention(sources: Sources, book: Book, findings: Findings, unknowns: list[Unknown]) -> Retention | None:
    from replicad.work.outlook import look

    client, _, dataset = book.seat.dataset.partition("/")
    rules = sources.config.rules_of(client)
    pins = [Kept(one.name, one.snapshot, one.at_ns, printable(one.reason)) for one in findings.pins()]
    suspects = len(findings.suspects())
    try:
        found = look(client, dataset, Path(book.seat.directory), findings, rules, sources.now_ns)
    except ReplicadError as error:
        unknowns.append(Unknown("retention", printable(str(error))))
        return Retention(_rules(rules), pins=pins, suspects=suspects)
    going = len(found.going)
    reasons = Counter(one.reason for one in found.snapshots if one.reason)
    return Retention(
        _rules(rules),
        len(found.snapshots) - going,
        going,
        printable(found.hold),
        dict(reasons.most_common()),
        pins,
        suspects,
    )


def _rules(rules: Rules) -> str:
    """The rules in words."""
    if rules.is_off:
        return "No snapshot is ever let go"
    counts = ("hourly", rules.hourly), ("daily", rules.daily), ("weekly", rules.weekly), ("monthly", rules.monthly)
    said = [f"everything of the last {format_duration(rules.within_s)}"] if rules.within_s else []
    said += [f"{count} {name}" for name, count in counts if count]
    floor = (
        f"nothing younger than {format_duration(rules.younger_than_s)} goes, and {rules.at_least} days at least stay"
    )
    return f"Kept: {', '.join(said)}; {floor}"
