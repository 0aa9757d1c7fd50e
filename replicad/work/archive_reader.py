"""Archive reader: one dataset on the replica, to read: its snapshots, their records, and blocks, each frame verified.

**Owns** a read-only connection of its own; it may be used in another thread, beside a writer or with no daemon at all.
Retention keeps the snapshots that it is asked about until it is closed (work/lease.py).
Damage comes as a value in the place of what was asked for. **Never** changes anything.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from replicad.db.catalog import BlockPlace
from replicad.db.database import CACHE_KIB
from replicad.db.listing import Listing
from replicad.link.messages import Lost, SnapshotLine
from replicad.model.block import self_test
from replicad.model.entry import Op, Put
from replicad.model.errors import (
    LockedError,
    ReplicadError,
    UsageError,
)
from replicad.model.glob import Globs, compile_globs
from replicad.model.order import MAX_ORDER_BYTES
from replicad.model.snapshot import decode_commit
from replicad.model.travel import Difference, Version
from replicad.model.verdict import Sight
from replicad.store.format import (
    HEADER_BYTES,
    FrameError,
    FrameType,
    parse_frame,
    plain_payload,
)
from replicad.store.segments import OPEN_SEGMENTS, Damage, SegmentFiles, compacted_path, segment_path
from replicad.system.disk import Disk
from replicad.work.archive import Archive, catalog_path, no_catalog
from replicad.work.known_damage import damaged_paths, with_damage
from replicad.work.lease import Leases
from replicad.work.reader import Stored
from replicad.work.replay import asks_for_newest
from replicad.work.untrusted import split_ids

FETCH_BYTES = 2 * 1024 * 1024
"""Frames that `fetch` reads with one call when they lie together; 1 MiB at a time took a restore 5 % longer."""
WINDOW_BYTES = 2 * 1024 * 1024
"""Frames that are read in the order in which they lie before they are handed out as asked: files are stored as a walk
met them, and asked for by name, and a small read for each of them costs the disk far more than its bytes."""
FETCH_GAP_BYTES = 64 * 1024
"""Frames closer than this are read together: reading on costs less than another request to the disk."""


class _Lying(NamedTuple):
    """Where a frame lies in a piece of memory."""

    piece: bytes
    start: int
    end: int


class Room(NamedTuple):
    """What one reader may hold: of the catalog's pages, and of segment files, each with a buffer."""

    cache_kib: int
    open_segments: int


AMPLE = Room(CACHE_KIB, OPEN_SEGMENTS)
"""For a restore, of which there are few at a time."""
FETCHING = Room(4 * 1024, 4)
"""For one of its threads that fetch: they take the segments in order, and more pages made nothing faster."""


class ArchiveReader:
    """Reads one dataset's store. One thread at a time; any number of readers beside one writer."""

    def __init__(
        self,
        directory: Path,
        disk: Disk | None = None,
        *,
        mend: bool = False,
        catalog: Path | None = None,
        room: Room = AMPLE,
    ) -> None:
        """`mend`: when no daemon works on the store, first replay what its catalog does not know yet. `catalog`: one
        that was rebuilt elsewhere, for a store that cannot be written. `room`: what it may hold meanwhile.

        Raises UsageError (no store there), BookDamagedError (rebuild it), ReplicadError.
        """
        self_test()
        if not (directory / "segments").is_dir():
            raise UsageError("is no store of a dataset", where=str(directory))
        if mend and os.access(directory, os.W_OK):
            try:
                Archive.open(directory, disk=disk).close()
            except LockedError:
                pass  # the daemon that holds it keeps the catalog true
        path = catalog or catalog_path(directory)
        if not path.exists():
            raise no_catalog(directory)
        self._listing = Listing(path, room.cache_kib)
        self._directory, self._disk = directory, disk or Disk()
        self._catalog = path
        self._files = SegmentFiles(directory, self._disk, room.open_segments)
        self.looked_at = ""
        """What the last `look` read from: "media", "cache", or "" when it read nothing."""
        self._leases = Leases(directory)

    def another(self, room: Room) -> ArchiveReader:
        """One more reader of this store, for another thread. Raises what making this one may have raised."""
        return ArchiveReader(self._directory, self._disk, catalog=self._catalog, room=room)

    def close(self) -> None:
        """Close all files."""
        self._leases.close()
        self._listing.close()
        self._files.close()

    def snapshots(self) -> list[SnapshotLine]:
        """All snapshots that are kept, oldest first. One that damage took something from, and those after it, are not
        complete."""
        lines: list[SnapshotLine] = []
        lost = 0
        for row in self._listing.snapshots():
            lost += row.lost
            if row.dropped_ns:
                continue
            complete = row.complete and not lost
            times = (row.created_ns, row.received_ns)
            lines.append(
                SnapshotLine(row.number, *times, complete, row.entries, row.size, row.unread, row.digest, lost)
            )
        return lines

    def digest_of(self, snapshot: int) -> bytes:
        """The digest of a snapshot, kept or dropped; b"" when there never was one of that number."""
        found = self._listing.find(snapshot)
        return found.digest if found else b""

    def order(self) -> bytes:
        """The restore order of the last commit; b"" when it has none, or no copy of it is there."""
        found = self._listing.newest_commit()
        try:
            order = decode_commit(bytes(plain_payload(parse_frame(found, 0)))).order if found else b""
        except (FrameError, ValueError):
            return b""  # a damaged copy is the scrub's to report, and an order changes no byte that comes back
        return order if len(order) <= MAX_ORDER_BYTES else b""

    def damage(self) -> list[Damage]:
        """What replays have found damaged."""
        return [Damage(*found) for found in self._listing.inventory().damage()]

    def newest_gone(self) -> bool:
        """Whether the store's newest segment is missing or empty, and a snapshot newer than all others perhaps with it:
        a catalog that was made anew asks so until something follows."""
        inventory = self._listing.inventory()
        return asks_for_newest(inventory.checkpoint, inventory.damage())

    def record(self, snapshot: int, globs: Sequence[bytes] = ()) -> Iterator[list[Op]]:
        """The tree at a snapshot (its number) as lists of operations; db/listing.py has order and form.

        Raises UsageError (no such snapshot, one that was dropped, bad pattern) at once, BookDamagedError on the way.
        """
        return self._listing.operations(self._ordinal(snapshot), _patterns(globs))

    def visit(self, snapshot: int, path: bytes, depth: int = 0, *, blocks: bool = False) -> Iterator[list[Op]]:
        """What stood at a path in a snapshot and `depth` levels below it, as lists of operations; what is known to be
        damaged has the flag DAMAGED. Errors as in `record`."""
        found = self._listing.visit(self._ordinal(snapshot), path, depth, blocks=blocks)
        return with_damage(found, damaged_paths(self._directory, snapshot))

    def entry(self, snapshot: int, path: bytes) -> Put | None:
        """What stood at a path in a snapshot, without its blocks; None when nothing did. Raises UsageError (no such
        snapshot, or dropped), BookDamagedError; the same do `page` and `blocks`."""
        return self._listing.browse().entry(self._ordinal(snapshot), path)

    def page(self, snapshot: int, path: bytes, after: bytes, limit: int) -> list[tuple[bytes, Put]]:
        """The next names in a directory behind `after`, and what stood there."""
        return self._listing.browse().page(self._ordinal(snapshot), path, after, limit)

    def blocks(self, snapshot: int, file: int, first: int, count: int) -> dict[int, bytes]:
        """Ids of those of `count` blocks of a file that are not zero, by their number."""
        return self._listing.browse().blocks(self._ordinal(snapshot), file, first, count)

    def trace(self, path: bytes) -> Iterator[list[Version]]:
        """All versions of what stood at a path, newest first. Raises BookDamagedError while iterating."""
        return self._listing.versions().of(path)

    def compare(self, before: int, after: int, globs: Sequence[bytes] = ()) -> Iterator[list[Difference]]:
        """What differs between two snapshots, by path; lists may be empty. Errors as in `record`."""
        return self._listing.differences(self._ordinal(before), self._ordinal(after), _patterns(globs))

    def _ordinal(self, snapshot: int) -> int:
        is_held = self._leases.hold(snapshot)  # before the look: from here on it stays
        found = self._listing.find(snapshot)
        if found is None or found.dropped_ns:
            self._leases.release(snapshot)
        if found is None:
            raise UsageError(f"there is no snapshot {snapshot}", hint="replicad snapshots lists them")
        if found.dropped_ns or not is_held:
            text = f"snapshot {snapshot} is not kept any more: the replica's retention dropped it"
            raise UsageError(text, hint="replicad snapshots lists those that are")
        return found.ordinal

    def fetch(self, ids: bytes) -> Iterator[Stored]:
        """The frames of these blocks (32 bytes each) in the order asked, those together that lie together, or Lost in
        place of one that is damaged or not here. Checksums are verified; ids are for the receiver to prove.

        Raises PeerError (not a list of ids), BookDamagedError.
        """
        names = split_ids(ids)
        places = self._listing.places(names)
        for window in _windows(names, places):
            found = self._read_window([places[name] for name in dict.fromkeys(window) if name in places])
            yield from _together(found.get(name) or Lost(name, "this block is not in the store") for name in window)

    def _read_window(self, places: list[BlockPlace]) -> dict[bytes, _Lying | Lost]:
        """Frames by id, read in the order in which they lie."""
        found: dict[bytes, _Lying | Lost] = {}
        run: list[BlockPlace] = []
        for place in sorted(places, key=lambda place: (place.segment, place.offset)):
            if run and not _joins(run, place):
                found.update(self._read(run))
                run = []
            run.append(place)
        if run:
            found.update(self._read(run))
        return found

    def look(self, name: bytes) -> tuple[Sight, str]:
        """What the medium holds of one block now, and why it is not well; what is not well was looked at twice.

        Raises BookDamagedError."""
        self.looked_at = ""
        place = self._listing.places([name]).get(name)
        if place is None:
            return Sight.ABSENT, "this block is not in the store"
        first = self._look(place)
        if first[0] is not Sight.MATCHES and self._moved(place):
            return Sight.MATCHES, ""
        if first[0] in (Sight.MATCHES, Sight.ABSENT):
            return first
        second = self._look(place)
        if second == first:
            return first
        return Sight.UNKNOWN, f"two looks contradict each other: {first[1] or 'well'}; {second[1] or 'well'}"

    def _look(self, place: BlockPlace) -> tuple[Sight, str]:
        self._files.close()  # what stands under the segment's name now, not a file that was opened before
        try:
            view = self._files.read(place.segment, place.offset, _end(place) - place.offset)
            self.looked_at = "media" if self._files.reader(place.segment).direct else "cache"
        except FileNotFoundError:
            return Sight.ABSENT, f"segment {place.segment} is missing"
        except ReplicadError as error:
            return Sight.UNREADABLE, f"segment {place.segment} cannot be read: {error}"
        try:
            problem = _frame_problem(view, place, place.offset)
            if not problem:
                plain_payload(parse_frame(view, 0))
        except FrameError as error:
            problem = str(error)
        return (Sight.DIFFERS, problem) if problem else (Sight.MATCHES, "")

    def _read(self, run: list[BlockPlace]) -> Iterator[tuple[bytes, _Lying | Lost]]:
        """Frames that lie near one another, in ascending order, with one read; each with its id."""
        start = run[0].offset
        try:
            view = self._files.read(run[0].segment, start, _end(run[-1]) - start)
        except (FileNotFoundError, ReplicadError) as error:
            if len(run) > 1:  # one bad sector must not take its neighbours along
                for place in run:
                    yield from self._read([place])
            else:
                yield run[0].id, Lost(run[0].id, f"segment {run[0].segment} cannot be read: {error}")
            return
        good: list[BlockPlace] = []
        for place in run:
            problem = _frame_problem(view, place, start)
            if good and (problem or place.offset != _end(good[-1])):
                yield from _copied(good, view, start)
                good = []
            if not problem:
                good.append(place)
            else:
                moved = self._moved(place)
                yield place.id, _Lying(moved, 0, len(moved)) if moved else Lost(place.id, problem)
        if good:
            yield from _copied(good, view, start)

    def _moved(self, place: BlockPlace) -> bytes:
        """The frame of a block that is not where it was looked for, because its segment was compacted meanwhile, or is
        just about to be; b"" when it is damaged. Wherever it is found, it proves itself."""
        now = self._listing.places([place.id]).get(place.id)
        if now is None:
            return b""
        segment, compacted = segment_path(self._directory, now.segment), compacted_path(self._directory, now.segment)
        for path in (segment, compacted, segment):  # the one may become the other between two looks
            if frame := _proven(self._disk, path, now):
                return frame
        return b""


def _copied(places: list[BlockPlace], view: memoryview, start: int) -> Iterator[tuple[bytes, _Lying]]:
    """Frames that lie one behind another, copied at once out of a view that begins at `start`."""
    first = places[0].offset
    piece = bytes(view[first - start : _end(places[-1]) - start])
    for place in places:
        yield place.id, _Lying(piece, place.offset - first, _end(place) - first)


def _together(found: Iterable[_Lying | Lost]) -> Iterator[Stored]:
    """Join those that follow one another in one piece of memory, without copying."""
    run: _Lying | None = None
    for item in found:
        if run and isinstance(item, _Lying) and item.piece is run.piece and item.start == run.end:
            run = run._replace(end=item.end)
            continue
        if run:
            yield memoryview(run.piece)[run.start : run.end]
        run = None if isinstance(item, Lost) else item
        if isinstance(item, Lost):
            yield item
    if run:
        yield memoryview(run.piece)[run.start : run.end]


def _proven(disk: Disk, path: Path, place: BlockPlace) -> bytes:
    """The frame at a place, read through a file opened anew; b"" when it is not there."""
    try:
        reader = disk.open_read(path)
    except (FileNotFoundError, ReplicadError):
        return b""
    try:
        frame = bytes(reader.read_at(place.offset, _end(place) - place.offset))
        if _frame_problem(memoryview(frame), place, place.offset):
            return b""
        plain_payload(parse_frame(frame, 0))
        return frame
    except (FrameError, ReplicadError):
        return b""
    finally:
        reader.close()


def _patterns(globs: Sequence[bytes]) -> Globs:
    try:
        return compile_globs(globs)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _windows(names: list[bytes], places: dict[bytes, BlockPlace]) -> Iterator[list[bytes]]:
    """Names in their order, as many at a time as make WINDOW_BYTES of frames; one at least."""
    window: list[bytes] = []
    size = 0
    for name in names:
        place = places.get(name)
        length = HEADER_BYTES + place.stored if place else 0
        if window and size + length > WINDOW_BYTES:
            yield window
            window, size = [], 0
        window.append(name)
        size += length
    if window:
        yield window


def _end(place: BlockPlace) -> int:
    return place.offset + HEADER_BYTES + place.stored


def _joins(run: list[BlockPlace], place: BlockPlace) -> bool:
    """Whether `place` can be read together with the run before it."""
    last = run[-1]
    gap = place.offset - _end(last)
    return place.segment == last.segment and 0 <= gap <= FETCH_GAP_BYTES and _end(place) - run[0].offset <= FETCH_BYTES


def _frame_problem(view: memoryview, place: BlockPlace, start: int) -> str:
    """Why the bytes at a place are not the frame that the catalog says, or ""."""
    where = f"segment {place.segment} at byte {place.offset}"
    try:
        frame = parse_frame(view, place.offset - start)
    except FrameError as error:
        return f"{where}: {error}"
    return "" if frame.id == place.id and frame.type == FrameType.BLOCK else f"{where}: another frame stands there"
