"""Interrupted: a repair of the primary that a crash cut short, settled before anybody looks at the file's times.

A repair moves the times of a file whose bytes are the recorded ones. If the next survey took that for a write it would
read the file whole and believe all of it, other rot included. So the intent stands in the ledger, durably, before the
first byte is written, and is dropped in the transaction that records the file's new stamp. Found again later, either
nothing was written, or the times are put back here; a block that is half written is found and repaired like any rot.
**Never** takes what somebody else wrote since for ours.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor
from functools import partial

import msgspec

from replicad.db.ledger import Ledger
from replicad.db.touched import restamp
from replicad.model.entry import Kind, Stamp, show_path
from replicad.model.errors import SourceError
from replicad.source.root import Root
from replicad.system.disk import Disk
from replicad.work.dataset import Dataset
from replicad.work.patch import Moved, Patch, Refusal
from replicad.work.same_root import is_same_root

WRITES_WITHIN_S = 1.0
"""The first byte is written this soon after the intent was noted, or not at all. So the time that a cut-off write left
on a file tells it from what somebody else wrote later."""
TICK_S = 0.02
"""The clock that stamps files lags by so much."""
MENDING = "mending"
"""The ledger's key of the intent."""


class Intent(msgspec.Struct, frozen=True):
    """What is about to be written, as it stands in the ledger from before the first byte until it is settled."""

    path: bytes
    stamp: tuple[int, ...]
    """Under which the ledger has the entry: what it still is if nothing was written."""
    atime_ns: int
    at_ns: int
    """When this was written down; bytes follow within WRITES_WITHIN_S or not at all."""

    @property
    def recorded(self) -> Stamp:
        """The stamp."""
        return Stamp._make(self.stamp)


async def finish_interrupted(dataset: Dataset, pool: Executor, disk: Disk) -> None:
    """Settle a repair that a crash cut short, before anything looks at the file's times; under `Dataset.turn`.

    Raises SourceError when the file cannot be given the times that it had: nothing may be believed of it meanwhile."""
    raw = await dataset.in_ledger(dataset.ledger.get, MENDING)
    if not isinstance(raw, bytes):
        return
    intent = msgspec.msgpack.decode(raw, type=Intent)
    if not await is_same_root(dataset, pool):
        return  # it is not mounted; whoever looks at it next is held for that
    work = partial(_finish, dataset.root, intent, disk)
    now = await asyncio.get_running_loop().run_in_executor(pool, work)
    await dataset.durably(_settle_intent, dataset.ledger, intent, now)


def _finish(path: bytes, intent: Intent, disk: Disk) -> Stamp | None:
    """The stamp to record where the write, or part of it, was ours; None where there was none, or somebody else wrote
    since. In a thread."""
    recorded = intent.recorded
    with Root(path) as root:
        now = root.look(intent.path)
        if now is None or now.identity == recorded.identity or not _is_ours(intent, now):
            return None
        if now.mtime_ns == recorded.mtime_ns:
            return now
        try:
            with Patch(root, intent.path, now, disk) as patch:
                return patch.set_times(intent.atime_ns, recorded.mtime_ns)
        except Moved:
            return None
        except (Refusal, OSError) as error:
            raise SourceError(
                f"a repair was interrupted and the file's times cannot be put back: {error}",
                where=show_path(intent.path),
                hint="make it writable for the daemon and close it; until then its changes cannot be told from rot",
            ) from error


def _is_ours(intent: Intent, now: Stamp) -> bool:
    """Whether the interrupted repair explains what the file's stamp is now."""
    before = intent.recorded
    if (before.kind, before.device, before.inode, before.size) != (now.kind, now.device, now.inode, now.size):
        return False
    after_s = (now.mtime_ns - intent.at_ns) / 1e9
    is_written = before.kind == Kind.FILE and -TICK_S <= after_s <= WRITES_WITHIN_S + TICK_S
    return is_written or now.mtime_ns == before.mtime_ns


def _settle_intent(ledger: Ledger, intent: Intent, now: Stamp | None) -> None:
    if now:
        restamp(ledger, intent.path, intent.recorded, now)
    ledger.put(MENDING, None)
