"""Renumbered: what was found of a file goes on when the file slipped past a walk and has a new number in the next.

The ledger has noted both numbers (db/unnamed.py); the findings book speaks of the old one until it is told. **Never**
tells it of a number that a power cut could take back: the next file would have it.
"""

from __future__ import annotations

from replicad.db.unnamed import forget_renumbered, renumbered
from replicad.model.errors import ReplicadError
from replicad.system.logs import logger
from replicad.work.dataset import Dataset

log = logger("work.renumbered")


async def follow_renumbered(dataset: Dataset) -> None:
    """Have findings of files that were taken back speak of their new numbers. What the findings book does not take now
    is left to the next pass; till then nothing takes those findings for outdated. Raises BookDamagedError,
    DiskFullError."""
    ledger = dataset.ledger
    files = await dataset.in_ledger(renumbered, ledger)
    if not files:
        return
    try:
        await dataset.open_findings()
        if await dataset.in_findings(dataset.findings.about, files):
            await dataset.durably(ledger.take_seq)  # with it all that the ledger was given before
            await dataset.in_findings(dataset.findings.renumber, files)
    except ReplicadError as error:
        log.warning("findings keep the old numbers of files", dataset=dataset.config.name, reason=str(error))
    else:
        await dataset.in_ledger(forget_renumbered, ledger, files)
