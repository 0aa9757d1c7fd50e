"""Report facts: everything that this node can say, gathered into one value (model/report.py).

The daemon's status, the books of this node beside it, and each replica, which is asked for its snapshots. **Owns** what
could not be found out: an error of one source is an `Unknown` of the report, never a gap that looks like health. Writes
nothing. What stands in a findings book is read in cli/report_books.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import msgspec

from replicad import __version__
from replicad.cli.books import Book, books_of
from replicad.cli.report_books import read_book
from replicad.cli.report_sources import Sources, ask_daemon
from replicad.config import Config, DatasetConfig, ReplicaConfig
from replicad.model.divergence import Side
from replicad.model.drill import DrillRecord, Outcome, failure_of, is_overdue, trend
from replicad.model.errors import ConfigError, LinkError, ReplicadError
from replicad.model.policy import Grade, Result
from replicad.model.report import (
    Drills,
    Objective,
    Remark,
    Replica,
    Report,
    Snapshots,
    Subject,
    Unknown,
    headline,
    judged,
)
from replicad.status import findings, printable


def gather(config: Config, wanted: Sequence[str], days: int, now_ns: int) -> Report:
    """What is known of these datasets and stores, or of all. Raises UsageError for a name that is not here."""
    books = list({book.path: book for name in wanted or ("",) for book in books_of(config, name)}.values())
    sources = Sources(config, now_ns, days)
    ask_daemon(sources, {book.seat.dataset for book in books})
    subjects = [judged(_subject(sources, book)) for book in books]
    answer, sentence = headline(subjects, sources.unknowns)
    status = sources.status
    return Report(
        config.node.name,
        status.version if status else __version__,
        now_ns,
        days,
        answer,
        sentence,
        status_ns=sources.status_ns,
        is_live=sources.is_live,
        site=status.policies[0].place.site if status and status.policies else "",
        remarks=[
            Remark(one.kind, *map(printable, (one.where, one.what, one.next_step)))
            for one in (findings(status) if status else [])
        ],
        unknowns=sources.unknowns,
        subjects=subjects,
    )


def _subject(sources: Sources, book: Book) -> Subject:
    """One dataset or store. What cannot be read is an unknown of it."""
    unknowns: list[Unknown] = []
    if book.seat.side is Side.PRIMARY:
        config = next(one for one in sources.config.datasets if one.name == book.seat.dataset)
        found = _dataset(sources, config, unknowns)
    else:
        found = _store(sources, book, unknowns)
    said = read_book(sources, book, unknowns)
    return msgspec.structs.replace(
        found,
        divergences=said.divergences,
        sides=said.sides,
        retention=said.retention,
        told_proven_ns=said.drills.proven.ended_ns,
        told_outcome=said.drills.last.outcome.value if said.drills.last.ended_ns else "",
        unknowns=list({(one.where, one.what): one for one in unknowns}.values()),
    )


# --------------------------------------------------------------------------------------------------------- datasets


def _dataset(sources: Sources, config: DatasetConfig, unknowns: list[Unknown]) -> Subject:
    replicas = sources.config.replicas_of(config)
    lines = [line for one in replicas if (line := sources.dataset(config.name, one.name))]
    judged_now = sources.judgement(config.name)
    return Subject(
        "dataset",
        config.name,
        str(config.path),
        max((line.entries for line in lines), default=0),
        max((line.size for line in lines), default=0),
        rpo_s=config.rpo_s,
        replicas=[_replica(sources, config, one, unknowns) for one in replicas],
        drills=[_drills(sources, config, one.name, unknowns) for one in replicas],
        level=judged_now.level if judged_now else "",
        policy=[_objective(sources, one) for one in (judged_now.results if judged_now else [])],
    )


def _objective(sources: Sources, result: Result) -> Objective:
    """What was met when the daemon said so last is not known to be met now."""
    grade, evidence = result.grade, printable(result.evidence)
    if grade is Grade.PASS and not sources.is_live:
        grade, evidence = Grade.UNKNOWN, f"when last known it was met: {evidence}"
    return Objective(result.objective, result.target, grade.value, evidence)


def _replica(sources: Sources, config: DatasetConfig, replica: ReplicaConfig, unknowns: list[Unknown]) -> Replica:
    kept = _remote_snapshots(sources, replica, config.name, unknowns)
    found = Replica(replica.name, replica.address, snapshots=kept)
    if line := sources.dataset(config.name, replica.name):
        found = msgspec.structs.replace(
            found,
            link_up=line.link_up and sources.is_live,
            state=line.state,
            reason=printable(line.reason),
            last_snapshot=line.last_snapshot,
            last_snapshot_ns=line.last_snapshot_ns,
            last_complete_ns=line.last_complete_ns,
        )
    if heard := sources.copy(config.name, replica.name):
        found = msgspec.structs.replace(
            found,
            site=heard.place.site,
            heard_ns=heard.heard_ns,
            keeps_all=heard.said.keeps_all,
            keep_younger_than_s=heard.said.keep_younger_than_s,
            keep_at_least=heard.said.keep_at_least,
        )
    return found


def _remote_snapshots(
    sources: Sources, replica: ReplicaConfig, dataset: str, unknowns: list[Unknown]
) -> Snapshots | None:
    """What can be restored from a replica, asked of itself. Raises ConfigError when this node's key cannot be used."""
    try:
        if replica.name in sources.silent:
            raise LinkError(sources.silent[replica.name])
        return asyncio.run(_ask_replica(replica, sources.config.node.key, dataset))
    except ConfigError:
        raise
    except ReplicadError as error:
        if isinstance(error, LinkError):
            sources.silent[replica.name] = error.what
        what = f"what can be restored: {printable(error.what)}"
        unknowns.append(Unknown(f"replica {replica.name}", what, replica=replica.name))
        return None


async def _ask_replica(replica: ReplicaConfig, key: Path, dataset: str) -> Snapshots:
    from replicad.work.origin import reading_replica  # slow to import

    async with reading_replica([replica], key, dataset, lambda _error: None) as reader:
        lines = await reader.snapshots()
    return _snapshots([(one.number, one.created_ns, one.complete and not one.lost) for one in lines])


def _snapshots(lines: Sequence[tuple[int, int, bool]]) -> Snapshots:
    """From (number, moment, whether complete), ascending by number."""
    complete = [(number, at_ns) for number, at_ns, is_complete in lines if is_complete]
    moments = [at_ns for _, at_ns, _ in lines] or [0]
    return Snapshots(len(lines), len(complete), moments[0], moments[-1], *(complete[-1] if complete else (0, 0)))


def _drills(sources: Sources, config: DatasetConfig, replica: str, unknowns: list[Unknown]) -> Drills:
    """The history stands in the book; what is planned and how far drills have come, in the status."""
    records = [
        msgspec.structs.replace(one, reasons=list(map(printable, one.reasons)))
        for one in _drill_records(sources, config.name, replica, unknowns)
    ]
    proven = [one for one in records if one.outcome is Outcome.PROVEN and one.kind != "paths"]
    line = sources.drill(config.name, replica)
    last_ns = proven[-1].ended_ns if proven else line.last_success_ns if line else 0
    overdue = is_overdue(last_ns, line.since_ns if line else 0, sources.now_ns, config.drill_every_s)
    found = Drills(
        replica,
        [one for one in records if one.ended_ns >= sources.since_ns],
        failure_of(reversed(records)),
        config.drill_every_s,
        config.rto_s,
        last_ns,
        proven[-1].estimate_s if proven else 0.0,
        trend([(one.ended_ns, one.estimate_s) for one in proven]),
        overdue or not config.drill_every_s,
    )
    if line is None:
        return found
    return msgspec.structs.replace(
        found,
        files=line.files,
        never_files=line.never_files,
        oldest_ns=line.oldest_ns,
        state=line.state,
        reason=printable(line.reason),
    )


def _drill_records(sources: Sources, dataset: str, replica: str, unknowns: list[Unknown]) -> list[DrillRecord]:
    from replicad.db.drills import Drills as DrillBook
    from replicad.work.drill_book import drills_path

    path = drills_path(sources.config.node.state, dataset)
    try:
        if path.exists():
            with closing(DrillBook(path, readonly=True)) as book:
                return book.history(replica)
    except ReplicadError as error:
        unknowns.append(Unknown("drills", printable(str(error)), replica=replica))
    return []


# ----------------------------------------------------------------------------------------------------------- stores


def _store(sources: Sources, book: Book, unknowns: list[Unknown]) -> Subject:
    client, _, dataset = book.seat.dataset.partition("/")
    line = sources.store(client, dataset)
    snapshots = _own_snapshots(Path(book.seat.directory), unknowns)
    if line is None:
        unknowns.append(Unknown("store", "the daemon has said nothing about it"))
        return Subject("store", book.seat.dataset, book.seat.directory, snapshots=snapshots)
    return Subject(
        "store",
        book.seat.dataset,
        book.seat.directory,
        line.entries,
        line.size,
        line.stored_bytes,
        state=line.state,
        received_ns=line.received_ns,
        snapshots=snapshots,
    )


def _own_snapshots(directory: Path, unknowns: list[Unknown]) -> Snapshots | None:
    from replicad.db.listing import Listing
    from replicad.work.archive import catalog_path

    kept, lost = list[tuple[int, int, bool]](), 0
    try:
        with closing(Listing(catalog_path(directory))) as listing:
            for row in listing.snapshots():
                lost += row.lost  # what a snapshot lacks those after it lack too
                if not row.dropped_ns:
                    kept.append((row.number, row.created_ns, row.complete and not lost))
    except ReplicadError as error:
        unknowns.append(Unknown("snapshots", printable(str(error))))
        return None
    return _snapshots(kept)
