"""Rebuild ledger: make a primary's ledger anew from the record of a replica, with the daemon stopped.

The new ledger is filled beside the old one (work/adopt.py) and takes its place only when it is complete and durable;
the old one is kept. **Never** changes the dataset, and exchanges nothing when the record could not be adopted whole.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from replicad.config import DatasetConfig
from replicad.link.messages import SnapshotLine
from replicad.model.errors import LockedError, UsageError
from replicad.model.snapshot import Head
from replicad.system.clock import Clock
from replicad.system.disk import Disk, Lock
from replicad.work.adopt import GOES_ON, Adopted, Heard, adopt
from replicad.work.book_damage import LEDGER, mended
from replicad.work.dataset import Dataset, findings_path, ledger_path
from replicad.work.exchange import exchange
from replicad.work.hooks import hooks
from replicad.work.reader import Reader

_STAGING = "ledger.new"
"""Directory in the state directory where the new ledger is filled; what an interrupted run left there is of no use."""


@dataclass(frozen=True, slots=True)
class LedgerRebuilt:
    """What a rebuild of a ledger did."""

    ledger: Path
    adopted: Adopted
    kept: Path | None
    """Where the old ledger is now, if there was one."""


@contextmanager
def stopped_daemon(state: Path, disk: Disk | None = None) -> Iterator[None]:
    """Keep daemons away from the state directory for a while. Raises LockedError when one runs."""
    (disk or Disk()).make_directory(state)
    try:
        lock = Lock(state / "lock")
    except LockedError as error:
        raise LockedError(error.what, where=error.where, hint="stop the daemon first, start it afterwards") from None
    try:
        yield
    finally:
        lock.release()


async def rebuild_ledger(
    config: DatasetConfig,
    state: Path,
    replica: str,
    others: Sequence[str],
    reader: Reader,
    *,
    clock: Clock | None = None,
    disk: Disk | None = None,
    heard: Heard | None = None,
) -> LedgerRebuilt:
    """Adopt the newest snapshot that `reader` has of the dataset. `others` are the dataset's other replicas: they are
    told the record anew, without another hold. Whoever calls this keeps the daemon away.

    Raises UsageError (no snapshot there), SourceError (the root is not there, or holds nothing of the record),
    DiskFullError, ReplicadError: then the old ledger is as it was."""
    lines = await reader.snapshots()
    if not lines:
        raise UsageError(f"has no snapshot of {config.name} to adopt", where=reader.name)
    clock, disk, staging = clock or Clock(), disk or Disk(), state / _STAGING
    shutil.rmtree(staging, ignore_errors=True)
    try:
        dataset = Dataset(replace(config, watch=False), (replica, *others), staging)
        try:
            adopted = await _fill(dataset, state, reader, lines[-1], clock, heard)
        finally:
            await dataset.close()
        final = ledger_path(state, config.name)
        disk.make_directory(final.parent)
        kept = exchange(ledger_path(staging, config.name), final, state, disk)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    text = f"made anew from snapshot {adopted.snapshot} of {replica}"
    mended(findings_path(state, config.name), LEDGER, clock.now_ns(), text)
    return LedgerRebuilt(final, adopted, kept)


async def _fill(
    dataset: Dataset, state: Path, reader: Reader, line: SnapshotLine, clock: Clock, heard: Heard | None
) -> Adopted:
    """Adopt the snapshot into the new ledger. Hooks run as whom the state directory belongs to: the daemon's user."""
    replica, *others = dataset.replicas
    await dataset.open()
    async with hooks(dataset.config, replica, owner_of=state):  # the root may be there only between them
        adopted = await adopt(dataset, replica, Head(line.number, line.digest), reader, clock, heard)
    for other in others:
        await dataset.durably(dataset.ledger.put, GOES_ON.format(other), 1)
    return adopted
