"""Book damage: a ledger or catalog whose pages fail their checksums, as a finding in the book beside it.

The error itself stops whoever met it, and says what to type; the finding outlives a restart and is what alerts and
`replicad divergence show` are about. It is settled by whoever made the book anew. **Never** hides the error: where the
findings cannot be written down either, the log says so and the error goes on its way.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from replicad.db.findings import Findings
from replicad.model.divergence import Divergence, Event, Part, Side, State, newly_found
from replicad.model.errors import BookDamagedError, ReplicadError
from replicad.model.verdict import Evidence, Sight, Witness, Writing
from replicad.system.logs import logger

log = logger("work.book_damage")

LEDGER, CATALOG = "book:ledger", "book:catalog"
"""Keys of the findings."""

EVIDENCE = {
    # The page's own checksum is the witness. What it said is had from elsewhere, or making the book anew will say that
    # it is not: the ledger from the replica's record, the catalog from the segments.
    Side.PRIMARY: Evidence(Sight.DIFFERS, Sight.MATCHES, Writing.UNWRITTEN, Witness.CONFIRMS),
    Side.REPLICA: Evidence(Sight.MATCHES, Sight.DIFFERS, Writing.UNWRITTEN, Witness.CONFIRMS),
}
"""What is known of a damaged book, by side."""


def findings_of(directory: Path) -> Path:
    """Where the findings about a dataset's store are."""
    return directory / "findings.db"


def damaged(side: Side, dataset: str, peer: str, error: BookDamagedError, now_ns: int) -> Divergence:
    """The finding that an error amounts to: of the ledger on a primary, of the catalog on a replica."""
    return newly_found(
        key=LEDGER if side is Side.PRIMARY else CATALOG,
        dataset=dataset,
        side=side,
        peer=peer,
        part=Part.BOOK,
        what=error.what,
        at_ns=now_ns,
        evidence=EVIDENCE[side],
        path=Path(error.where).name.encode(),
        events=(Event(now_ns, f"found: {error.what}"),),
    )


def note(findings: Findings, found: Divergence) -> None:
    """Write it down unless it stands there already: a damaged book is met again with every try."""
    with _told(found.key):
        if all(known.key != found.key for known in findings.listed(side=found.side)):
            findings.report(found)


def note_at(path: Path, found: Divergence) -> None:
    """The same, in a book that this process need not have open."""
    with _told(found.key):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with closing(Findings(path)) as findings:
            note(findings, found)


def mended(path: Path, key: str, now_ns: int, how: str) -> None:
    """The book was made anew: its open findings in the book at `path`, if there is one, are settled."""
    if not path.exists():
        return
    with _told(key), closing(Findings(path)) as findings:
        settle(findings, key, now_ns, how)


def settle(findings: Findings, key: str, now_ns: int, how: str) -> None:
    """The same, in a book that is open. Also what a person has taken note of: should the new book be damaged as well,
    that is another damage."""
    for state in (State.OPEN, State.ACKNOWLEDGED):
        for found in findings.listed(state=state):
            if found.key == key:
                findings.update(found.with_event(now_ns, how, state=State.REPAIRED))


@contextmanager
def _told(key: str) -> Iterator[None]:
    """Findings that cannot be written must not hide the damage that they are about: the log has to do."""
    try:
        yield
    except (ReplicadError, OSError) as error:
        log.error("a damaged book is not in the findings", key=key, reason=str(error))
