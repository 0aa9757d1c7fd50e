"""Interrupted: a repair of the primary that a crash cut short, settled before anybody looks at the file's times.

A repair moves the times of a file whose bytes are the recorded ones. If the next survey took that for a write it would
read the file whole and believe all of it, other rot included. So the intent stands in the ledger, durably, before the
first byte is written, and is dropped in the transaction that records the file's new stamp. Found again later, either
nothing was written, or the times are put back here; a block that is half written is found and repaired like any rot.
**Never** takes what somebody else wrote since for ours: the lease that kept others out dies with the process, so the
times alone say nothing. The bytes do: those of the block are the old or the new ones, all others as they were. Of a
file too large to know how they were, the host's fall says as much: nobody was let in before it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec

from replicad.db.findings import Findings
from replicad.db.ledger import Known, Ledger, stamp_of
from replicad.db.touched import restamp
from replicad.model.block import block_count, checksum
from replicad.model.divergence import Part, Side, State
from replicad.model.entry import Identity, Kind, Stamp, show_path
from replicad.model.errors import SourceError
from replicad.source.reread import Ask, Moved, Reread, reread
from replicad.source.root import Root, Trouble
from replicad.source.whereabouts import whereabouts
from replicad.system.disk import Disk
from replicad.work.confirm import is_recorded_block
from replicad.work.dataset import Dataset
from replicad.work.patch import Moved as PatchMoved
from replicad.work.patch import Patch, Refusal
from replicad.work.same_root import is_same_root
from replicad.work.where_now import inodes_above

WRITES_WITHIN_S = 1.0
"""The first byte is written this soon after the intent was noted, or not at all. So the time that a cut-off write left
on a file tells it from what somebody else wrote later."""
TICK_S = 0.02
"""The clock that stamps files lags by so much."""
MENDING = "mending"
"""The ledger's key of the intent."""
SECTOR_BYTES = 512
"""A write that was cut off leaves each of these as it was, or as it should be."""
LOOKED_AT_BYTES = 16 * 1024 * 1024
"""A file up to this size is read before it is repaired, so that other rot in it is known behind a crash: what is larger
takes too long for each of its blocks, and where only the daemon was killed, such rot counts as written."""
BOOT = Path("/proc/sys/kernel/random/boot_id")
"""Another one at each start of the host."""
_PAGE_BLOCKS = 16
"""Blocks looked at in one call: 16 MiB at most."""
_UNKNOWN = -1
Result = TypeVar("Result")


class Intent(msgspec.Struct, frozen=True):
    """What is about to be written, as it stands in the ledger from before the first byte until it is settled."""

    path: bytes
    """Where the entry is recorded; a directory above it may have another name by now."""
    stamp: tuple[int, ...]
    """Under which the ledger has the entry: what it still is if nothing was written."""
    atime_ns: int
    at_ns: int
    """When this was written down; bytes follow within WRITES_WITHIN_S or not at all."""
    number: int = _UNKNOWN
    """The block that is written; unknown where only metadata are set, and in what an older version noted."""
    old: tuple[bytes, ...] = ()
    """Checksums of what stands there, sector by sector; nothing where the medium does not give it."""
    new: tuple[bytes, ...] = ()
    """The same of what is written."""
    odd: dict[int, bytes] = msgspec.field(default_factory=dict)
    """Other blocks that were not as recorded, and the checksums of what stood there."""
    boot: str = ""
    """Since which start of the host; "" = unknown."""

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
    if not await is_same_root(dataset):
        return  # it is not mounted; whoever looks at it next is held for that
    above = await dataset.in_ledger(inodes_above, dataset.ledger, intent.path)
    at, now = await _in_pool(pool, partial(_look, dataset.root, intent.path, above))
    is_ours = now is not None and await _is_ours(dataset, pool, intent, at, now)
    ours = await _in_pool(pool, partial(_finish, dataset.root, intent, at, now, disk)) if now and is_ours else None
    await dataset.durably(_settle_intent, dataset.ledger, intent, ours)


def boot_now() -> str:
    """The host's last start; "" where the kernel does not tell."""
    try:
        return BOOT.read_text().strip()
    except OSError:
        return ""


def sectors(data: bytes) -> tuple[bytes, ...]:
    """The checksum of each."""
    return tuple(checksum(data[at : at + SECTOR_BYTES]) for at in range(0, len(data), SECTOR_BYTES))


async def odd_blocks(dataset: Dataset, pool: Executor, path: bytes, known: Known, number: int) -> dict[int, bytes]:
    """Blocks of a file that are not as recorded, but for `number`, with the checksums of what stands there; none of a
    file that is larger than LOOKED_AT_BYTES, or that somebody has written."""
    if known.size > LOOKED_AT_BYTES:
        return {}
    odd: dict[int, bytes] = {}
    async for at, seen in _odd(dataset, pool, path, known, stamp_of(known).identity):
        if isinstance(seen, bytes) and at != number:
            odd[at] = checksum(seen)
    return odd


async def _odd(
    dataset: Dataset, pool: Executor, path: bytes, known: Known, identity: Identity
) -> AsyncIterator[tuple[int, bytes | Moved | Trouble]]:
    """The blocks of a file that has this identity now and are not as recorded: the bytes, or why there are none."""
    count = block_count(known.size, known.block_bytes)
    for first in range(0, count, _PAGE_BLOCKS):
        numbers = range(first, min(first + _PAGE_BLOCKS, count))
        rows = await dataset.in_ledger(dataset.ledger.blocks, known.file, numbers.start, numbers.stop)
        asks = [Ask(path, (number,), known.block_bytes, identity) for number in numbers]
        for number, seen in zip(numbers, await _in_pool(pool, partial(_read, dataset.root, asks)), strict=True):
            data = seen.blocks[0] if isinstance(seen, Reread) else seen
            if not isinstance(data, bytes) or not is_recorded_block(data, rows.get(number)):
                yield number, data


def _read(path: bytes, asks: list[Ask]) -> list[Reread | Moved | Trouble]:
    with Root(path) as root:
        return reread(root, asks, medium=True)


def _fell_since(intent: Intent) -> bool:
    """Whether the whole host ended with the repair, and not the daemon alone."""
    boot = boot_now()
    return bool(boot and intent.boot) and boot != intent.boot


def _look(path: bytes, entry: bytes, above: Sequence[int]) -> tuple[bytes, Stamp | None]:
    """Where the entry is now, and its stamp."""
    with Root(path) as root:
        at = whereabouts(root, entry, above)
        return at, root.look(at)


def _finish(path: bytes, intent: Intent, at: bytes, now: Stamp, disk: Disk) -> Stamp | None:
    """The stamp to record for a write of ours; None where somebody else has written meanwhile. In a thread."""
    recorded = intent.recorded
    if now.mtime_ns == recorded.mtime_ns:
        return now
    with Root(path) as root:
        try:
            with Patch(root, at, now, disk) as patch:
                return patch.set_times(intent.atime_ns, recorded.mtime_ns)
        except PatchMoved:
            return None
        except (Refusal, OSError) as error:
            raise SourceError(
                f"a repair was interrupted and the file's times cannot be put back: {error}",
                where=show_path(at),
                hint="make it writable for the daemon and close it; until then its changes cannot be told from rot",
            ) from error


async def _is_ours(dataset: Dataset, pool: Executor, intent: Intent, at: bytes, now: Stamp) -> bool:
    """Whether the interrupted repair, and nothing but that, explains the stamp of the entry, found `at` this path."""
    before = intent.recorded
    if now.identity == before.identity:
        return False
    if (before.kind, before.device, before.inode, before.size) != (now.kind, now.device, now.inode, now.size):
        return False
    has_times = now.mtime_ns == before.mtime_ns
    if has_times and not intent.new:
        return True  # of metadata there is nothing more to see
    after_s = (now.mtime_ns - intent.at_ns) / 1e9
    if before.kind != Kind.FILE or not (has_times or -TICK_S <= after_s <= WRITES_WITHIN_S + TICK_S):
        return False
    known = await dataset.in_ledger(dataset.ledger.known, intent.path)
    if known is None or stamp_of(known) != before:
        return False
    if intent.new and not await _holds_ours(dataset, pool, intent, at, known, now, any_of_it=has_times):
        return False
    if has_times or (known.size > LOOKED_AT_BYTES and _fell_since(intent)):
        return True
    return await _holds_nothing_else(dataset, pool, intent, at, known, now)


async def _holds_ours(
    dataset: Dataset, pool: Executor, intent: Intent, at: bytes, known: Known, now: Stamp, *, any_of_it: bool
) -> bool:
    """Whether each sector of the block holds what it held before or what the repair wrote; with `any_of_it`, the latter
    at least once."""
    ask = Ask(at, (intent.number,), known.block_bytes, now.identity)
    (seen,) = await _in_pool(pool, partial(_read, dataset.root, [ask]))
    if not isinstance(seen, Reread):
        return isinstance(seen, Trouble)  # nobody can have written what the medium does not give
    here = sectors(seen.blocks[0])
    if len(here) != len(intent.new):
        return False
    old = intent.old or (b"",) * len(here)
    is_known = all(one in pair for one, *pair in zip(here, old, intent.new, strict=True))
    return is_known and not (any_of_it and here == old)


async def _holds_nothing_else(
    dataset: Dataset, pool: Executor, intent: Intent, at: bytes, known: Known, now: Stamp
) -> bool:
    """Whether every other block of the file is as recorded, or was known not to be."""
    await dataset.open_findings()
    told = await dataset.in_findings(_told, dataset.findings, known.file)
    async for number, seen in _odd(dataset, pool, at, known, now.identity):
        if isinstance(seen, Moved):
            return False
        if number == intent.number or isinstance(seen, Trouble):
            continue
        if checksum(seen) not in (intent.odd.get(number), *told.get(number, ())):
            return False
    return True


def _told(findings: Findings, file: int) -> dict[int, list[bytes]]:
    """The checksums that open and acknowledged findings have of the file's blocks."""
    told: dict[int, list[bytes]] = {}
    for state in (State.OPEN, State.ACKNOWLEDGED):
        for found in findings.listed(side=Side.PRIMARY, state=state):
            if found.part is Part.BLOCK and found.file == file:
                told.setdefault(found.number, []).append(found.seen)
    return told


async def _in_pool(pool: Executor, work: Callable[[], Result]) -> Result:
    return await asyncio.get_running_loop().run_in_executor(pool, work)


def _settle_intent(ledger: Ledger, intent: Intent, now: Stamp | None) -> None:
    if now:
        restamp(ledger, intent.path, intent.recorded, now)
    ledger.put(MENDING, None)
