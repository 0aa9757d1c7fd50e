"""Restore: a snapshot out of a reader, into a directory. The one restore path that everything shares.

    record -> plan (compare, make) -> parcels -> fetch -> prove -> write -> links, extra entries, directories -> sync

Plan, fetch and write run at the same time; what is under way is bounded in bytes and hides the round trip. Every
block is proven by its BLAKE3 id before a byte of it is written. Damage stops nothing: it is named in the account.
Run again, a restore compares what is there and fetches only the rest, so that is also how one is resumed.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

from replicad.link.messages import Lost, SnapshotLine
from replicad.model.block import Buffer
from replicad.model.errors import DiskFullError, PeerError, ReplicadError
from replicad.model.when import show_time
from replicad.system.clock import Clock
from replicad.system.disk import Disk
from replicad.work.account import Account, Finding, Tally
from replicad.work.closing import Closing
from replicad.work.filling import Site
from replicad.work.planner import Parcel, Planner, Rules
from replicad.work.reader import Answer, Reader, open_block
from replicad.work.remembered import Remembered
from replicad.work.target import Target

IN_FLIGHT_BYTES = 32 * 1024 * 1024
"""Plain bytes asked for and not yet written: more than twice what 1 Gbit/s carries in a round trip of 100 ms, because
what has arrived and is being written counts as well."""
IN_FLIGHT_PARCELS = 32
"""Parcels under way: where files are tiny, a parcel is full of blocks long before it is full of bytes."""
MAX_THREADS = 4
"""Writing threads: more only queue up behind one disk and the interpreter's lock."""

Result = TypeVar("Result")
_END = object()


def ignore(finding: Finding) -> None:
    """For those who read the account only."""


class Restore:
    """One restore. `account` may be read at any time; it is final when `run` has returned or raised."""

    def __init__(
        self,
        reader: Reader,
        line: SnapshotLine,
        target: Path,
        *,
        dataset: str = "",
        globs: Sequence[bytes] = (),
        rules: Rules | None = None,
        clock: Clock | None = None,
        disk: Disk | None = None,
        heard: Callable[[Finding], None] = ignore,
    ) -> None:
        """`line` is one of the reader's snapshots, `globs` restricts it to paths (model/glob.py); `heard` is told each
        finding as it is made, on the event loop."""
        self._reader, self._line, self._path, self._globs, self._heard = reader, line, target, globs, heard
        self._rules = rules or Rules(partial=bool(globs))
        assert self._rules.partial == bool(globs)
        self._clock, self._disk = clock or Clock(), disk or Disk()
        self._in_flight = 0
        self._parcels = 0
        self._room = asyncio.Condition()
        self._flawed: list[tuple[int, int]] = []
        self._pool = ThreadPoolExecutor(min(MAX_THREADS, (os.cpu_count() or 1) + 1), "restore")
        self.account = Account(
            dataset=dataset,
            source=reader.name,
            target=str(target),
            snapshot=line.number,
            created=show_time(line.created_ns),
            complete_snapshot=line.complete,
            dry_run=self._rules.dry_run,
        )

    async def run(self) -> Account:
        """Restore everything that can be had. May be called once.

        Raises UsageError and LockedError before anything is changed; DiskFullError, LinkError, PeerError or another
        ReplicadError when it cannot go on. Everything done so far stays, and the next run goes on from it.
        """
        started_s = self._clock.monotonic_s()
        try:
            async with self._opened() as (planner, closing, target):
                await self._fill(planner)
                await self._drive(closing.steps, parcels=False)
                await self._in_thread(target.sync)
            self.account.finished = True
        finally:
            account = self.account
            account.duration_s = self._clock.monotonic_s() - started_s
            account.rate_bytes_s = account.restored_bytes / account.duration_s if account.duration_s > 0 else 0.0
        return account

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[tuple[Planner, Closing, Target]]:
        """Everything that has to be closed again; no thread works any more when it is."""
        try:
            target = Target(self._path, self._disk, dry=self._rules.dry_run)
            try:
                self._remembered = Remembered()
                try:
                    site = Site(target, self._clock.now_ns())
                    planner = Planner(site, self._remembered, self._rules)
                    try:
                        yield planner, Closing(site, self._remembered, self._rules), target
                    finally:
                        self._pool.shutdown(cancel_futures=True)
                        planner.close()
                finally:
                    self._remembered.close()
            finally:
                target.close()
        finally:
            self._pool.shutdown()
'''
