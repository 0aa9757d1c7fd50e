"""Same root: whether a dataset's directory is the one that was recorded, without deciding anything.

A pass holds the dataset when it is not (`Dataset.check_root`). Whatever else looks at the files has to know as well: an
empty mount point must not look like files that were dropped.
"""

from __future__ import annotations

from functools import partial

from replicad.model.errors import SourceError
from replicad.source.root import root_identity
from replicad.work.dataset import Dataset
from replicad.work.together import in_own_thread


async def is_same_root(dataset: Dataset) -> bool:
    """Whether the root is there and is the recorded one."""
    try:
        seen = await in_own_thread(partial(root_identity, dataset.root))
    except SourceError:
        return False
    recorded = await dataset.in_ledger(dataset.ledger.get, "root")
    return recorded == f"{seen.fsid:x}:{seen.inode}"
