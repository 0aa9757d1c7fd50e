"""What tests of the primary's scrub share: a recorded tree, a surface on it, a disk that errs, a disk that rotted."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from kit_rig import Replica, Rig, replica, rig
from replicad.model.divergence import Divergence, State
from replicad.source.read import Access
from replicad.system.clock import Clock
from replicad.system.direct import DirectReader
from replicad.system.tasks import Task
from replicad.work.lookouts import Lookouts
from replicad.work.scout import Look, look
from replicad.work.scrub_primary import PrimarySurface
from replicad.work.surface import Verified

ALL = 2**40
"""A budget for everything at once."""


class TestClock(Clock):
    """Wall time that a test can move on."""

    __test__ = False

    def __init__(self) -> None:
        self.ahead_ns = 0

    def now_ns(self) -> int:
        return super().now_ns() + self.ahead_ns

    def advance(self, seconds: float) -> None:
        self.ahead_ns += int(seconds * 1e9)


class RottenDisk(Access):
    """What reading a file gives instead of its bytes. By inode: the damage is below the file system, so that neither
    size nor times know of it."""

    def __init__(self) -> None:
        self.flipped: dict[int, dict[int, int]] = {}
        """By inode: bits to flip, by offset."""
        self.unreadable: dict[int, set[int]] = {}
        """By inode: offsets at which the medium fails."""
        self.error = errno.EIO
        self.left: int | None = None
        """How many reads more are wrong; None = all."""
        self.reads = 0
        self.while_reading: Callable[[], object] | None = None

    def flip(self, path: Path, offset: int, bit: int = 1) -> None:
        """Flip bits of one byte."""
        self.flipped.setdefault(path.stat().st_ino, {})[offset] = bit

    def fail(self, path: Path, offset: int) -> None:
        """Let the medium fail at one byte."""
        self.unreadable.setdefault(path.stat().st_ino, set()).add(offset)

    def heal(self) -> None:
        """Everything is well again."""
        self.flipped.clear()
        self.unreadable.clear()

    def read_into(self, fd: int, direct: DirectReader | None, buffer: memoryview, offset: int) -> int:
        self.reads += 1
        if self.while_reading:
            deed, self.while_reading = self.while_reading, None
            deed()
        count = super().read_into(fd, direct, buffer, offset)
        touched = self._touched(os.fstat(fd).st_ino, offset, count)
        if touched and self.left is not None:
            if not self.left:
                return count
            self.left -= 1
        for at, bit in touched:
            if not bit:
                raise OSError(self.error, os.strerror(self.error))
            buffer[at - offset] ^= bit
        return count

    def _touched(self, inode: int, offset: int, count: int) -> list[tuple[int, int]]:
        failing = [(at, 0) for at in self.unreadable.get(inode, ())]
        both = [*failing, *self.flipped.get(inode, {}).items()]
        return [(at, bit) for at, bit in both if offset <= at < offset + count]


class Near:
    """What a lookout would see of this disk, without a process."""

    pid = None

    def __init__(self, disk: RottenDisk) -> None:
        self._disk = disk

    async def call(self, task: Task[Any, Any], asked: Look) -> bytes:
        return await asyncio.to_thread(look, asked, self._disk)

    async def call_for_bulk(self, task: Task[Any, Any], asked: object) -> tuple[Any, bytes]:
        raise AssertionError("nobody asks for this")

    def post(self, task: Task[Any, Any], asked: object) -> None:
        """Nothing is posted."""

    async def close(self) -> None:
        """Nothing to end."""


class Scrubbed:
    """A dataset that was copied once, and the surface of its primary."""

    def __init__(self, primary: Rig, fra1: Replica) -> None:
        self.primary, self.fra1, self.root = primary, fra1, primary.root
        self.disk, self.clock = RottenDisk(), TestClock()
        self.pool = ThreadPoolExecutor(4)
        self.restart()

    def restart(self) -> None:
        """A new surface, as after a restart of the daemon."""
        self.surface = PrimarySurface(
            self.primary.dataset, self.pool, Lookouts(lambda: Near(self.disk)), self.clock, access=self.disk
        )

    async def sync(self) -> None:
        """One pass."""
        await self.primary.sync(self.fra1)

    async def scrub(self, budget_bytes: int = ALL) -> list[Verified]:
        """One round: until all has been verified or looked at since now; what each call gave."""
        begin_ns, calls = self.clock.now_ns(), list[Verified]()
        while (await self.surface.extent(begin_ns)).since_bytes:
            calls.append(await self.surface.verify(budget_bytes, begin_ns))
            assert calls[-1].units, calls[-1]
        return calls

    async def found(self, state: State | None = State.OPEN) -> list[Divergence]:
        """Divergences in the book."""
        await self.primary.dataset.open_findings()
        return await self.primary.dataset.in_findings(self.primary.dataset.findings.listed, state=state)

    async def checksums(self) -> list[object]:
        """Everything that the ledger expects."""
        ledger = self.primary.dataset.ledger
        return await self.primary.dataset.in_ledger(
            ledger._db.all, "SELECT file, number, id, checksum, seq FROM block ORDER BY file, number"
        )


@asynccontextmanager
async def scrubbed(directory: Path, root: Path, **options: object) -> AsyncIterator[Scrubbed]:
    """`root` copied once, and its surface."""
    async with rig(directory, root, **options) as primary, replica(directory / "store") as fra1:
        await primary.sync(fra1)
        made = Scrubbed(primary, fra1)
        try:
            yield made
        finally:
            made.pool.shutdown()
