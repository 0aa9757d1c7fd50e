"""Adopt: make the ledger aware of what a replica's history holds that it does not know.

After a lost ledger (or a release of two histories that parted) the replica's last snapshot names paths that the
ledger has never heard of. They are noted under a stamp that no file has: the next survey then reads what is still
there and drops what is not, so the replica's next snapshot shows exactly the tree. **Never** copies the replica's
expectations into the ledger: nothing counts as unchanged that was not read here.
"""

from __future__ import annotations

from collections.abc import Sequence

from replicad.db.ledger import EntryRow
from replicad.model.entry import Op, Put, Stamp
from replicad.model.snapshot import Head
from replicad.work.dataset import Dataset
from replicad.work.reader import Reader
from replicad.work.record import UNREAD_SIZE


async def adopt(dataset: Dataset, replica: str, head: Head, reader: Reader) -> None:
    """Note every path of snapshot `head` and go on from there. Raises ReplicadError when it cannot be read."""
    if head.number:
        async for ops in reader.record(head.number):
            await dataset.in_ledger(_note, dataset, ops)
    await dataset.in_ledger(dataset.ledger.restart, replica, head)


def _note(dataset: Dataset, ops: Sequence[Op]) -> None:
    ledger = dataset.ledger
    unknown = [op for op in ops if isinstance(op, Put) and op.path and ledger.entry(op.path) is None]
    ledger.record_entries(
        [
            EntryRow(Put(op.path, op.kind, op.meta), Stamp(op.kind, 0, 0, 0, 0, 0, UNREAD_SIZE, 0, 0), 0)
            for op in unknown
        ]
    )
