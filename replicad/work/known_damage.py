"""Known damage: which files of a snapshot the findings about a store name.

A look into a book, not into the store: what no scrub has found yet is not known here, and reading a block proves it
whatever this says. **Never** changes anything.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from msgspec.structs import replace

from replicad.db.findings import Findings
from replicad.model.divergence import Divergence, Side, State
from replicad.model.entry import DAMAGED, Op, Put
from replicad.model.errors import ReplicadError
from replicad.work.book_damage import findings_of


def damaged_paths(directory: Path, snapshot: int) -> frozenset[bytes]:
    """The files of a snapshot in which damage of this store was found that is not repaired."""
    path = findings_of(directory)
    if not path.exists():
        return frozenset()
    try:
        book = Findings(path, readonly=True)
        try:
            found = [one for state in (State.OPEN, State.ACKNOWLEDGED) for one in _listed(book, state)]
        finally:
            book.close()
    except ReplicadError:
        # The book is judged and reported by the scrub; that it cannot be read must not hide what the catalog lists.
        return frozenset()
    return frozenset(
        one.path
        for found_one in found
        for one in found_one.affected
        if one.first <= snapshot and (not one.last or snapshot <= one.last)
    )


def _listed(book: Findings, state: State) -> list[Divergence]:
    return book.listed(side=Side.REPLICA, state=state)


def with_damage(batches: Iterable[list[Op]], damaged: Collection[bytes]) -> Iterator[list[Op]]:
    """The operations with the flag DAMAGED where it is due, and nowhere else."""
    for ops in batches:
        yield [_flagged(op, op.path in damaged) if isinstance(op, Put) else op for op in ops]


def _flagged(put: Put, is_damaged: bool) -> Put:
    flags = put.flags | DAMAGED if is_damaged else put.flags & ~DAMAGED
    return put if flags == put.flags else replace(put, flags=flags)
