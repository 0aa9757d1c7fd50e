"""Upkeep: what is done to a store between sessions to mend it. In the archive's own thread, while it `is_settled`.

Stored bytes are never changed in place: a block is appended anew, and a segment is laid anew beside the old one, read
and compared with the catalog, made durable and only then put in its place; the old file stays in quarantine. So a crash
at any step leaves the old state or the new one. **Owns** these steps and their order.

**Never** takes a byte from anywhere without proof: frames prove themselves by checksum, and that they are the right
ones by the catalog.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from replicad.db.catalog import BlockPlace, Catalog, FrameCopy
from replicad.db.inventory import Expected, Inventory
from replicad.model.divergence import Part
from replicad.model.errors import ReplicadError, StoreDamagedError
from replicad.store.format import (
    HEADER_BYTES,
    MAX_FRAME_BYTES,
    NO_DIGEST,
    Frame,
    FrameError,
    FrameType,
    SegmentSeal,
    advance_digest,
    decode_segment_header,
    encode_pad,
    encode_segment_seal,
    parse_frame,
    plain_payload,
    split_frames,
)
from replicad.store.segments import Damage, segment_numbers, segment_path
from replicad.system.disk import Appender, Disk, Reader
from replicad.work.archive import Archive, catalog_path
from replicad.work.quarantine import Quarantine
from replicad.work.rebuild import rebuild_catalog
from replicad.work.replay import copy_of
from replicad.work.segment_check import SegmentCheck, Wrong, expected_length, reads_as

_END = 1 << 62
_ZEROS = bytes(1024 * 1024)


def remember_verified(
    archive: Archive,
    rows: Sequence[tuple[int, int, int, str, bytes]],
    uncopied: dict[int, list[tuple[int, int]]],
    sound: Sequence[int],
) -> None:
    """Note (segment, size, at_ns, source, imprint) of verifications; copy frames that an older replicad wrote; forget
    damage that replays once found in segments that are `sound`."""
    copies = [copy for number, places in uncopied.items() for copy in _copies(archive, number, places)]
    found = [damage for damage in archive.damage if damage.segment in sound and not is_missed(damage)]
    with archive.upkeep() as (_, catalog):
        catalog.set_scrubbed(rows)
        catalog.add_copies(copies)
        for damage in found:
            catalog.drop_damage(damage.segment, damage.offset, damage.length)


def is_missed(damage: Damage) -> bool:
    """Whether a replay speaks of something that it could not take in, rather than of bytes in a segment."""
    return bool(damage.offset) and not damage.length


def _copies(archive: Archive, number: int, places: Sequence[tuple[int, int]]) -> Iterator[FrameCopy]:
    for offset, length in places:
        try:
            data = bytes(archive.read_segment(number, offset, length))
            parse_frame(data, 0)
        except (FileNotFoundError, FrameError, ReplicadError):
            continue  # it rotted since it was verified: the next verification says so
        yield copy_of(number, offset, data)


# blocks


@dataclass(frozen=True, slots=True)
class Appended:
    """A block that was stored anew and read again from the medium."""

    place: BlockPlace
    checksum: bytes


def prove(frames: Sequence[bytes], wanted: set[bytes]) -> dict[bytes, Frame]:
    """Frames by block, each proven to be what its id says. Raises FrameError for one that is not, or is not wanted."""
    proven: dict[bytes, Frame] = {}
    for frame in split_frames(b"".join(frames)):
        if frame.type != FrameType.BLOCK or frame.id not in wanted:
            raise FrameError(f"a frame of {frame.id.hex()[:16]} was sent, which is not wanted")
        plain_payload(frame)
        proven[frame.id] = frame
    return proven


def append_blocks(archive: Archive, disk: Disk, proven: Sequence[Frame], raw: Sequence[bytes]) -> list[Appended]:
    """Append proven frames durably, read them again from the medium, and have the catalog point to those that are well.

    Raises DiskFullError with nothing changed, ReplicadError."""
    archive.store.check_room(sum(map(len, raw)))
    done: list[Appended] = []
    with archive.upkeep() as (store, catalog):
        for frame, data in zip(proven, raw, strict=True):
            segment, offset = store.append(data, [frame.checksum])
            place = BlockPlace(frame.id, segment, offset, frame.stored, frame.plain)
            done.append(Appended(place, frame.checksum))
        store.sync()
        done = [one for one in done if _stands(store.directory, disk, one.place)]
        catalog.add_blocks([one.place for one in done])
    archive.trust(one.place.id for one in done)
    return done


def note_mended(archive: Archive, segment: int, ranges: Sequence[tuple[int, int]], at_ns: int) -> None:
    """What is damaged in these (offset, length) of a segment needs no word any more."""
    with archive.upkeep() as (_, catalog):
        for offset, length in ranges:
            catalog.add_mended(segment, offset, length, at_ns)


def _stands(directory: Path, disk: Disk, place: BlockPlace) -> bool:
    item = Expected(place.offset, place.stored, place.plain, place.id, b"")
    return places_read_well(directory, disk, place.segment, [item])


def places_read_well(directory: Path, disk: Disk, segment: int, items: Sequence[Expected]) -> bool:
    """Whether the medium gives all of these frames now, through a file opened anew."""
    try:
        reader = disk.open_read(segment_path(directory, segment))
    except (FileNotFoundError, ReplicadError):
        return False
    try:
        return all(reads_as(reader, item) for item in items)
    finally:
        reader.close()


# segments


@dataclass(frozen=True, slots=True)
class Laid:
    """A segment that was laid anew."""

    number: int
    left: tuple[Wrong, ...]
    """What is still wrong in it: blocks that no source had, and places of which nobody knows what stood there."""
    kept: str
    """Where the old file is once it was looked at (`Quarantine.look_at_unread`), relative to the store, or ""."""


def lay_segment(archive: Archive, disk: Disk, quarantine: Quarantine, number: int) -> Laid:
    """Lay a segment anew from its good frames, the catalog's copies, and files of it that stand elsewhere.

    Raises StoreDamagedError when what would be laid is not well either (the old file stays), DiskFullError,
    ReplicadError."""
    target = segment_path(archive.store.directory, number)
    fresh = target.with_name(f".{target.name}.new")
    fresh.unlink(missing_ok=True)
    expected = archive.inventory.last_expected(number)
    if expected is None:
        return Laid(number, (), _set_aside(archive, disk, quarantine, target))
    archive.store.check_room(expected.offset + expected.stored)
    length = expected_length(archive.inventory, number) or 0
    with archive.upkeep_of_files() as catalog:
        catalog.add_copies(_write(archive, disk, fresh, number, quarantine))
        left = _checked(archive, disk, fresh, number)
        if any(wrong.part is Part.SEGMENT for wrong in left):
            left = _without_gaps(archive, disk, fresh, number, quarantine, catalog)
        kept = quarantine.keep_segment(target, length) if target.exists() else ""
        disk.rename_durable(fresh, target)
    return Laid(number, tuple(left), kept)


def _set_aside(archive: Archive, disk: Disk, quarantine: Quarantine, target: Path) -> str:
    """A segment in which nothing of this store is expected: it is not ours."""
    if not target.exists():
        return ""
    with archive.upkeep_of_files():
        kept = quarantine.keep_segment(target)
        target.unlink()
        disk.sync_directory(target.parent)
    return kept


def _checked(archive: Archive, disk: Disk, fresh: Path, number: int) -> list[Wrong]:
    """What is still wrong in the file that was written: blocks may be, and what the catalog knows nothing of."""
    check = SegmentCheck(archive.inventory, disk, fresh, number, archive.store.owner.store)
    checked = check.run()
    if bad := [wrong.what for wrong in checked.wrongs if wrong.items and wrong.part is not Part.BLOCK]:
        fresh.unlink()
        text = f"segment {number} cannot be laid anew: {bad[0]}"
        raise StoreDamagedError(text, where=str(fresh), hint="nothing was changed; the old file stays where it is")
    return checked.wrongs


def _without_gaps(
    archive: Archive, disk: Disk, fresh: Path, number: int, quarantine: Quarantine, catalog: Catalog
) -> list[Wrong]:
    """Once more, without the frames that nothing needs any more: they are not the ones that the seal has counted."""
    fresh.unlink()
    gaps: list[tuple[int, int]] = []
    _write(archive, disk, fresh, number, quarantine, gaps)
    for offset, length in gaps:
        catalog.add_mended(number, offset, length, archive.store.now_ns())
    left = _checked(archive, disk, fresh, number)
    if any(wrong.part is Part.SEGMENT for wrong in left):
        fresh.unlink()
        text = f"segment {number} cannot be laid anew: {left[0].what}"
        raise StoreDamagedError(text, where=str(fresh), hint="nothing was changed; the old file stays where it is")
    return left


def _write(
    archive: Archive,
    disk: Disk,
    fresh: Path,
    number: int,
    quarantine: Quarantine,
    gaps: list[tuple[int, int]] | None = None,
) -> list[FrameCopy]:
    """Write what belongs into a segment, durably; frames that were added at its end. With `gaps`, leave out what the
    catalog does not know of and say where that is."""
    appender = disk.create(fresh)
    try:
        with ExitStack() as stack:
            paths = _files_of(archive.store.directory, disk, number, quarantine)
            sources = [stack.enter_context(_Source(path, disk)) for path in paths]
            has_own = bool(paths) and paths[0] == segment_path(archive.store.directory, number)
            own = sources[0] if has_own and _number_of(paths[0], disk) in (number, None) else None
            laying = _Laying(archive.inventory, number, sources, own, appender, gaps)
            laying.run()
            made = laying.end(is_last=number >= archive.checkpoint.segment)
        appender.sync()
        return made
    finally:
        appender.close()


class _Source:
    """A file that holds a segment, or what is left of it."""

    def __init__(self, path: Path, disk: Disk) -> None:
        self._reader: Reader = disk.open_read(path)

    def __enter__(self) -> _Source:
        return self

    def __exit__(self, *rest: object) -> None:
        self._reader.close()

    def frame(self, item: Expected) -> bytes | None:
        """The frame that should stand there, if this file has it."""
        if not reads_as(self._reader, item):
            return None
        return bytes(self._reader.read_at(item.offset, HEADER_BYTES + item.stored))

    def bytes_at(self, at: int, end: int) -> bytes:
        """What stands in a range of READ_BUFFER_BYTES at most, whatever it is; shorter where the file ends, nothing
        where the medium does not give all of it."""
        try:
            return bytes(self._reader.read_at(at, max(0, min(end, self._reader.size) - at)))
        except ReplicadError:
            return b""

    def unclaimed(self, at: int, end: int) -> Iterator[bytes]:
        """Whole frames one behind the other in a range, as far as there are any."""
        while at < end:
            try:
                frame = parse_frame(self._reader.read_at(at, min(end - at, MAX_FRAME_BYTES)), 0, at)
            except (FrameError, ReplicadError):
                return
            data = bytes(self._reader.read_at(at, frame.end - at))
            yield data
            at = frame.end


class _Laying:
    """The frames of one segment, in order, into a new file."""

    def __init__(
        self,
        inventory: Inventory,
        number: int,
        sources: Sequence[_Source],
        own: _Source | None,
        appender: Appender,
        gaps: list[tuple[int, int]] | None,
    ) -> None:
        """`own`: the source that is this segment's own file, unless that holds another segment."""
        self._inventory, self._number, self._sources, self._appender = inventory, number, sources, appender
        self._own, self._gaps = own, gaps
        self._digest, self._frames, self._sealed = NO_DIGEST, 0, False

    def run(self) -> None:
        for item in self._inventory.expected(self._number, 0, _END):
            if item.offset < self._appender.position:
                raise StoreDamagedError(
                    f"the catalog has two frames at byte {item.offset} of segment {self._number}",
                    hint="rebuild it: replicad rebuild",
                )
            self._fill(item.offset)
            frame = self._frame_of(item)
            if frame is None:
                self._leave(item.offset + HEADER_BYTES + item.stored)
            else:
                self._add(frame)

    def end(self, *, is_last: bool) -> list[FrameCopy]:
        """Bring the file to a whole number of sectors, with a seal if it never got one and is not the last."""
        made: list[FrameCopy] = []
        if not self._sealed and not is_last:
            seal = SegmentSeal(self._frames, self._appender.position, self._digest)
            made.append(self._made(encode_segment_seal(seal)))
        if made or self._appender.position % len(_PAGE):
            made.append(self._made(encode_pad(self._appender.position)))
        return made

    def _made(self, frame: bytes) -> FrameCopy:
        copy = copy_of(self._number, self._appender.position, frame)
        self._add(frame)
        return copy

    def _frame_of(self, item: Expected) -> bytes | None:
        if item.head and (copy := self._inventory.copy(self._number, item.offset)):
            return copy.frame
        return next((frame for source in self._sources if (frame := source.frame(item))), None)

    def _fill(self, end: int) -> None:
        """What the catalog does not know of: blocks that stand elsewhere too, if they are whole; the rest as it is."""
        start = self._appender.position
        if self._gaps is not None:
            self._zeros(end)
            self._gaps += [(start, end - start)] if end > start else []
            return
        for source in self._sources:
            for frame in source.unclaimed(self._appender.position, end):
                self._add(frame)
        self._leave(end)

    def _leave(self, end: int) -> None:
        """What nobody has, or knows: the damaged bytes stay as they are, so that what was found there is found again as
        what it is; zeros where there are none, or where the medium gives nothing of a piece."""
        while (start := self._appender.position) < end:
            piece_end = min(end, start + len(_ZEROS))
            if self._own and (left := self._own.bytes_at(start, piece_end)):
                self._appender.append(left)
            self._zeros(piece_end)

    def _add(self, data: bytes) -> None:
        frame = parse_frame(data, 0)
        if not self._frames and frame.type == FrameType.HEADER:
            self._digest = decode_segment_header(frame).previous
        self._sealed = self._sealed or frame.type == FrameType.SEAL
        self._digest = advance_digest(self._digest, frame.checksum)
        self._frames += 1
        self._appender.append(data)

    def _zeros(self, end: int) -> None:
        while (left := end - self._appender.position) > 0:
            self._appender.append(_ZEROS[:left])


_PAGE = bytes(4096)


def _files_of(directory: Path, disk: Disk, number: int, quarantine: Quarantine) -> list[Path]:
    """Files that hold this segment, or say so in their header: its own, another's (they were swapped), kept ones."""
    own = segment_path(directory, number)
    others = [segment_path(directory, other) for other in segment_numbers(directory) if other != number]
    found = [own] if own.exists() else []
    return found + [path for path in (*others, *quarantine.segments()) if _holds(path, disk, number)]


def _holds(path: Path, disk: Disk, number: int) -> bool:
    return _number_of(path, disk) == number


def _number_of(path: Path, disk: Disk) -> int | None:
    """Which segment a file says to be in its header; None when that cannot be read."""
    try:
        reader = disk.open_read(path)
    except (FileNotFoundError, ReplicadError):
        return None
    try:
        return decode_segment_header(parse_frame(reader.read_at(0, len(_PAGE)), 0)).number
    except (FrameError, ReplicadError):
        return None
    finally:
        reader.close()


# the catalog


def rebuild_book(archive: Archive, disk: Disk) -> None:
    """Make the catalog anew from the segments, with what the old one can still say, and go on with it.

    Raises ReplicadError, DiskFullError: then the old one stays."""
    directory = archive.store.directory
    with archive.upkeep_of_files():
        archive.exchange_catalog(lambda: _rebuild(directory, disk))


def _rebuild(directory: Path, disk: Disk) -> None:
    rebuild_catalog(directory, disk=disk, knowing=catalog_path(directory), locked=True)
