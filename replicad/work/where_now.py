"""Where now: a recorded path, as it is to be opened now (source/whereabouts.py), for whoever cannot wait for a pass."""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor

from replicad.db.look_up import LookUp
from replicad.source.root import Root
from replicad.source.whereabouts import whereabouts
from replicad.work.dataset import Dataset


async def where_now(dataset: Dataset, root: Root, pool: Executor, path: bytes) -> bytes:
    """The path by which the entry that is recorded at `path` is reached now, as far as that can be told."""
    inodes = await dataset.in_ledger(LookUp(dataset.ledger.database).inodes_above, path)
    return await asyncio.get_running_loop().run_in_executor(pool, whereabouts, root, path, inodes)
