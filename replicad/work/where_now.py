"""Where now: a recorded path, as it is to be opened now (source/whereabouts.py), for whoever cannot wait for a pass."""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor

from replicad.db.ledger import Ledger
from replicad.source.root import Root
from replicad.source.whereabouts import whereabouts
from replicad.work.dataset import Dataset


async def where_now(dataset: Dataset, root: Root, pool: Executor, path: bytes) -> bytes:
    """The path by which the entry that is recorded at `path` is reached now, as far as that can be told."""
    inodes = await dataset.in_ledger(inodes_above, dataset.ledger, path)
    return await asyncio.get_running_loop().run_in_executor(pool, whereabouts, root, path, inodes)


def inodes_above(ledger: Ledger, path: bytes) -> list[int]:
    """The recorded inodes of the directories above `path`, from the top; 0 for one that is not recorded. In the
    ledger's thread."""
    names = path.split(b"/")
    recorded = (ledger.known(b"/".join(names[:depth])) for depth in range(1, len(names)))
    return [known.inode if known else 0 for known in recorded]
