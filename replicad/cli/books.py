"""Books: the findings books that a node has, as the command line reads and writes them beside a running daemon.

A primary has one for each configured dataset, a replica one for each store. **Owns** which books there are and what a
person calls them. **Never** makes a book: one that is not there is reported as "not looked at yet", never as "nothing
was found".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from replicad.cli.explain import Seat
from replicad.cli.options import config_words
from replicad.config import Config
from replicad.db.findings import Findings
from replicad.model.divergence import Divergence, Side
from replicad.model.errors import ReplicadError, UsageError

Answer = TypeVar("Answer")

MANY = "more than one divergence begins with {!r}"
NONE = "there is no divergence {!r} on this node"


@dataclass(frozen=True, slots=True)
class Book:
    """One findings book, and the seat of whoever reads it."""

    path: Path
    seat: Seat

    @contextmanager
    def reading(self) -> Iterator[Findings]:
        """The book, to look into. Raises ReplicadError when it is not there, cannot be read or is damaged."""
        with self._open(readonly=True) as findings:
            yield findings

    @contextmanager
    def writing(self) -> Iterator[Findings]:
        """The book, to write into. Raises as `reading`."""
        with self._open(readonly=False) as findings:
            yield findings

    @contextmanager
    def _open(self, *, readonly: bool) -> Iterator[Findings]:
        if not self.path.exists():
            raise ReplicadError(
                f"{self.seat.dataset}: nothing has been looked at yet, there is no findings book",
                where=str(self.path),
                hint="does the daemon run? replicad status",
            )
        with closing(Findings(self.path, readonly=readonly)) as findings:
            yield findings


def books_of(config: Config, dataset: str = "") -> list[Book]:
    """The books of this node, or those about one dataset: NAME, or CLIENT/NAME on a replica. Raises UsageError."""
    every = [*_of_primary(config), *_of_replica(config)]
    names = (dataset, f"/{dataset}")
    chosen = [b for b in every if not dataset or b.seat.dataset == dataset or b.seat.dataset.endswith(names[1])]
    if dataset and not chosen:
        there = ", ".join(book.seat.dataset for book in every) or "none"
        raise UsageError(f"there is no dataset {dataset!r} here", hint=f"this node has: {there}")
    return chosen


def ask_all(
    books: Iterable[Book], ask: Callable[[Findings], Iterable[Answer]]
) -> tuple[list[tuple[Book, Answer]], list[ReplicadError]]:
    """What each book answers, and the errors of those that cannot be read: one of them must not hide what the others
    say."""
    found: list[tuple[Book, Answer]] = []
    unread: list[ReplicadError] = []
    for book in books:
        try:
            with book.reading() as findings:
                found += [(book, one) for one in ask(findings)]
        except ReplicadError as error:
            unread.append(error)
    return found, unread


def find(books: Sequence[Book], prefix: str) -> tuple[Book, Divergence]:
    """The one divergence of these books whose id begins so. Raises UsageError, and ReplicadError when it is in none and
    not all books could be read."""
    every, unread = ask_all(books, lambda findings: findings.beginning_with(prefix))
    owned = {one.id for book, one in every if book.seat.side is one.side}
    # of a store on this very node the book of a primary here may be a mirror
    found = [(book, one) for book, one in every if book.seat.side is one.side or one.id not in owned]
    if len(found) > 1 or (found and not prefix):
        raise UsageError(MANY.format(prefix), hint="write more of it: replicad divergence list")
    if not found and unread:
        raise unread[0]
    if not found:
        raise UsageError(NONE.format(prefix), hint="replicad divergence list names the open ones, with --all all")
    return found[0]


def _of_primary(config: Config) -> Iterator[Book]:
    from replicad.work.dataset import findings_path  # slow to import, and no replica needs it

    for dataset in config.datasets:
        replicas = tuple(replica.name for replica in config.replicas_of(dataset))
        path, books = findings_path(config.node.state, dataset.name), str(config.node.state)
        options = config_words(config.file)
        yield Book(path, Seat(Side.PRIMARY, dataset.name, str(dataset.path), books, replicas, options))


def _of_replica(config: Config) -> Iterator[Book]:
    if config.listen is None:
        return
    from replicad.store.store import stores_in

    for directory in stores_in(config.listen.store):
        name = f"{directory.parent.name}/{directory.name}"
        seat = Seat(Side.REPLICA, name, str(directory), str(directory), options=config_words(config.file))
        yield Book(directory / "findings.db", seat)
