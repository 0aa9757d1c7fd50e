"""Rebuild: make a catalog from the segments alone.

The new catalog takes the place of the old one, which is kept beside it (work/exchange.py). With a target elsewhere
nothing in the store is written, so that a store on a read-only medium can be restored from.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from replicad.db.catalog import Catalog, FrameCopy
from replicad.db.database import REBUILD
from replicad.db.inventory import Inventory
from replicad.model.block import self_test
from replicad.model.errors import BookDamagedError, ReplicadError, UsageError
from replicad.model.position import Position
from replicad.model.snapshot import Head
from replicad.store.segments import Damage, SegmentFiles, SegmentScan, Torn, segment_numbers
from replicad.store.store import Owner, Store, check_names
from replicad.system.clock import Clock
from replicad.system.disk import Disk, Lock
from replicad.system.logs import logger
from replicad.work.archive import catalog_path, fresh_catalog_path
from replicad.work.book_damage import CATALOG, findings_of, mended
from replicad.work.exchange import exchange, remove
from replicad.work.replay import NEWEST_GONE, Progress, Replay, asks_for_newest

log = logger("work.rebuild")


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What a rebuild found."""

    catalog: Path
    head: Head
    damage: list[Damage]
    torn: Torn | None
    kept: Path | None
    """Where the old catalog is now, if there was one."""


def rebuild_catalog(
    directory: Path,
    *,
    into: Path | None = None,
    disk: Disk | None = None,
    progress: Progress | None = None,
    knowing: Path | None = None,
    locked: bool = False,
) -> Rebuilt:
    """Read all segments of a store and write its catalog anew, or a catalog at `into`.

    `knowing`: an older catalog of the store. As far as it can be read, its copies stand in for damaged frames of other
    kinds than blocks, what was mended stays mended, and it is believed where nothing was acknowledged yet. `locked`:
    the caller holds the store's lock.

    Raises UsageError (no segments), LockedError, PeerError (nothing says whose they are), DiskFullError.
    """
    self_test()
    if not segment_numbers(directory):
        raise UsageError("holds no segments to rebuild a catalog from", where=str(directory))
    disk = disk or Disk()
    target = into or fresh_catalog_path(directory)
    with _alone(directory, needed=into is None and not locked), _Knowledge(knowing) as known:
        remove(target)
        rebuilt = _fill(directory, target, disk, known, readonly=into is not None, progress=progress)
        if into is not None:
            for found in rebuilt.damage:
                if found.reason == NEWEST_GONE:  # what is restored from this catalog may look complete
                    log.warning(found.reason, store=str(directory), segment=found.segment)
            return rebuilt
        final = catalog_path(directory)
        kept = exchange(target, final, directory, disk)
        mended(findings_of(directory), CATALOG, Clock().now_ns(), "made anew from the segments")
        return Rebuilt(final, rebuilt.head, rebuilt.damage, rebuilt.torn, kept)


def catch_up(directory: Path, copy: Path) -> None:
    """Bring a copy of a store's catalog up to what the segments say, without writing to the store.

    Raises BookDamagedError, ReplicadError, DiskFullError."""
    catalog = Catalog(copy)
    files = SegmentFiles(directory, Disk())
    try:
        if catalog.owner is None:
            raise BookDamagedError("says not whose it is", where=str(catalog_path(directory)), hint=REBUILD)
        owner = Owner(*catalog.owner)
        store = Store(directory, owner, disk=Disk(), reserve_bytes=0, clock_ns=Clock().now_ns)
        Replay(store, catalog, files, readonly=True).run()
    finally:
        files.close()
        catalog.close()


def _fill(
    directory: Path, target: Path, disk: Disk, known: _Knowledge, *, readonly: bool, progress: Progress | None
) -> Rebuilt:
    owner = _owner_of(directory, disk)
    store = Store(directory, owner, disk=disk, reserve_bytes=0, clock_ns=Clock().now_ns)
    files = SegmentFiles(directory, disk)
    catalog = Catalog(target)
    try:
        catalog.set_owner(owner.store, owner.client, owner.dataset)
        for row in known.mended():
            catalog.add_mended(*row)
        replay = Replay(store, catalog, files, progress, readonly, known.copies, anew=True, untouched=known.untouched())
        replay.run()
        return Rebuilt(target, catalog.head, [Damage(*found) for found in catalog.damage()], replay.torn, None)
    finally:
        files.close()
        catalog.close()


class _Knowledge:
    """What an older catalog can still say. One that is damaged says as much as can be read of it."""

    def __init__(self, catalog: Path | None) -> None:
        self._inventory: Inventory | None = None
        if catalog and catalog.exists():
            try:
                self._inventory = Inventory.open(catalog)
            except ReplicadError as error:
                self._give_up(error)

    def __enter__(self) -> _Knowledge:
        return self

    def __exit__(self, *rest: object) -> None:
        self._close()

    def mended(self) -> list[tuple[int, int, int, int]]:
        try:
            return self._inventory.all_mended() if self._inventory else []
        except BookDamagedError as error:
            self._give_up(error)
            return []

    def untouched(self) -> int:
        """The segment that was to be the next one when nothing in it was acknowledged yet; 0 when that is not known,
        as by a catalog that was made anew itself and asked the same."""
        if self._inventory is None:
            return 0
        try:
            end, damage = self._inventory.checkpoint, self._inventory.damage()
        except BookDamagedError as error:
            self._give_up(error)
            return 0
        return 0 if end.offset or asks_for_newest(end, damage) else end.segment

    def copies(self, segment: int, offset: int, length: int) -> list[FrameCopy]:
        if self._inventory is None:
            return []
        try:
            found = [
                self._inventory.copy(segment, item.offset)
                for item in self._inventory.expected(segment, offset, offset + length)
                if item.head
            ]
        except BookDamagedError as error:
            self._give_up(error)
            return []
        return [copy for copy in found if copy]

    def _give_up(self, error: ReplicadError) -> None:
        log.warning("the old catalog says no more", reason=str(error))
        self._close()

    def _close(self) -> None:
        if self._inventory:
            self._inventory.close()
            self._inventory = None


def _owner_of(directory: Path, disk: Disk) -> Owner:
    """Whose store it is, by the first segment that can tell; by the names of its directories when none can."""
    for number in segment_numbers(directory):
        with _scanned(directory, number, disk) as scan:
            next(iter(scan), None)
            if scan.header is not None:
                return Owner(scan.header.store, scan.header.client, scan.header.dataset)
    names = directory.absolute().parts[-2:]
    check_names(*names)
    return Owner(os.urandom(16), *names)


@contextmanager
def _scanned(directory: Path, number: int, disk: Disk) -> Iterator[SegmentScan]:
    store = Store(directory, Owner(b"", "", ""), disk=disk, reserve_bytes=0, clock_ns=Clock().now_ns)
    scan = store.scan(Position(number), last=True)
    try:
        yield scan
    finally:
        scan.close()


@contextmanager
def _alone(directory: Path, *, needed: bool) -> Iterator[None]:
    if not needed:
        yield
        return
    lock = Lock(directory / "lock")
    try:
        yield
    finally:
        lock.release()
