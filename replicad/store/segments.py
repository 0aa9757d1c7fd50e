"""Segments: one append-only file of frames, written, scanned and verified.

Owns the judgement of what is found in a segment: whole frames, *damage* (a value: bytes that are no valid frame
where one must be) and a *torn* end (a write that a crash cut short). A scan never stops at damage: it goes on at
the next valid frame. A frame found by searching may lie inside the payload of a damaged one (a backup of a store
holds such payloads), so it is uncertain unless the frames from there on lead to a pad of ours; see docs/FORMATS.md.

Never writes into bytes that were written before.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from replicad.model.block import Buffer
from replicad.model.errors import ReplicadError
from replicad.model.position import Position
from replicad.store.format import (
    HEADER_BYTES,
    MAGIC,
    MAX_FRAME_BYTES,
    NO_DIGEST,
    SYNC_BYTES,
    Frame,
    FrameError,
    FrameType,
    SegmentHeader,
    SegmentSeal,
    advance_digest,
    claimed_sizes,
    decode_segment_header,
    decode_segment_seal,
    encode_pad,
    encode_segment_header,
    encode_segment_seal,
    parse_frame,
    parse_header_untrusted,
    split_frames,
)
from replicad.system.ahead import ReadAhead
from replicad.system.disk import ALIGN_BYTES, READ_BUFFER_BYTES, Appender, Disk, Reader, align_down

OPEN_SEGMENTS = 16
"""Segment files that one reader keeps open."""
SEARCH_BUDGET_BYTES = 16 * 1024**3
"""Bytes hashed while searching behind one damage (half a second); after that only places where a sync may have
ended are tried, so that payloads crafted to look like frames cannot stall the opening of a store."""
COUNTS_OTHERS = "frames before the seal are missing"
"""Reason of the damage at a seal that is whole itself."""
_SECTOR_BYTES = 512
"""A device writes whole sectors: an interrupted write leaves sectors that are all zeros, never single bits."""
_BLOCK = int(FrameType.BLOCK)
_NAME = re.compile(r"(\d{8})\.seg")


@dataclass(frozen=True, slots=True)
class Damage:
    """Bytes of a segment that are not what was written. `length` is 0 when something is missing there."""

    segment: int
    offset: int
    length: int
    reason: str


@dataclass(frozen=True, slots=True)
class Torn:
    """The end of the last segment: a write that never completed and that nobody was told of."""

    segment: int
    offset: int
    length: int


Found = Frame | Damage | Torn


@dataclass(frozen=True, slots=True)
class Made:
    """A frame that the replica made itself, and where it stands."""

    segment: int
    offset: int
    frame: bytes


def foreign(header: SegmentHeader, number: int, store: bytes | None) -> str:
    """Why a header does not belong into the file of segment `number`, or ""."""
    if header.number != number:
        return f"file of segment {number} holds segment {header.number}"
    if store and header.store != store:
        return f"segment belongs to another store, of {header.client}/{header.dataset}"
    return ""


def covers(ranges: Iterable[tuple[int, int]], offset: int, length: int) -> bool:
    """Whether ascending (offset, length) ranges hold all of some bytes, of which there is at least one."""
    at = offset
    for start, size in ranges:
        if start <= at < start + size:
            at = start + size
    return length > 0 and at >= offset + length


def segment_path(directory: Path, number: int) -> Path:
    """Where segment `number` of the store in `directory` is."""
    return directory / "segments" / f"{number:08d}.seg"


def compacted_path(directory: Path, number: int) -> Path:
    """Where segment `number` stands compacted until it takes the place of the segment."""
    return directory / "segments" / f".{number:08d}.compact"


def segment_numbers(directory: Path) -> list[int]:
    """Numbers of the segments that exist, ascending."""
    try:
        names = [path.name for path in (directory / "segments").iterdir()]
    except FileNotFoundError:
        return []
    return sorted(int(match[1]) for name in names if (match := _NAME.fullmatch(name)))


class SegmentWriter:
    """Appends frames to one segment. Any error leaves it unusable; scan the segment and make another."""

    def __init__(self, appender: Appender, at: Position) -> None:
        self._appender = appender
        self._number, self._frames, self._digest = at.segment, at.frames, at.digest
        self._padded = at.offset % SYNC_BYTES == 0
        self._made: list[Made] = []

    @classmethod
    def create(cls, disk: Disk, directory: Path, header: SegmentHeader) -> SegmentWriter:
        """A new segment; its name is durable at once, its bytes with the first `sync`."""
        return cls._begun(disk.create(segment_path(directory, header.number)), header)

    @classmethod
    def resume(cls, disk: Disk, directory: Path, at: Position, header: SegmentHeader) -> SegmentWriter:
        """Go on in a segment that ends at `at`; at its very start the header is written first."""
        appender = disk.open_append(segment_path(directory, at.segment), at.offset)
        return cls(appender, at) if at.offset else cls._begun(appender, header)

    @classmethod
    def _begun(cls, appender: Appender, header: SegmentHeader) -> SegmentWriter:
        writer = cls(appender, Position(header.number, digest=header.previous))
        writer._append_encoded(encode_segment_header(header))
        return writer

    @property
    def position(self) -> Position:
        """The end of the last frame."""
        return Position(self._number, self._appender.position, self._frames, self._digest)

    def append(self, data: Buffer, checksums: Iterable[bytes]) -> int:
        """Add whole frames, whose checksums are given in order; the offset of the first."""
        offset = self._appender.position
        self._padded = False
        self._appender.append(data)
        for frame_checksum in checksums:
            self._digest = advance_digest(self._digest, frame_checksum)
            self._frames += 1
        return offset

    def take_made(self) -> list[Made]:
        """The frames that this writer made itself (header, pads, seal) since it was last asked."""
        made, self._made = self._made, []
        return made

    def sync(self, time_ns: int) -> None:
        """Make everything durable, after a pad stamped with `time_ns`."""
        self._pad(time_ns)
        self._appender.sync()

    def flush(self, time_ns: int) -> None:
        """Hand everything to the system, after a pad, so that it can be read back."""
        self._pad(time_ns)
        self._appender.flush()

    def seal(self, time_ns: int) -> bytes:
        """End the segment for good, durably; its running digest before the seal."""
        digest = self._digest
        self._append_encoded(encode_segment_seal(SegmentSeal(self._frames, self._appender.position, digest)))
        self.sync(time_ns)
        return digest

    def close(self) -> None:
        """Close the file; what was neither synced nor flushed is dropped."""
        self._appender.close()

    def _pad(self, time_ns: int) -> None:
        if not self._padded:
            self._append_encoded(encode_pad(self._appender.position, time_ns))
            self._padded = True

    def _append_encoded(self, frame: bytes) -> None:
        offset = self.append(frame, [split_frames(frame)[0].checksum])
        self._made.append(Made(self._number, offset, frame))


class SegmentScan:
    """What one segment holds from `start` on, in order. Iterate once; then `position` and `torn` tell where it ends.

    Frames are yielded with their offset in the segment; a payload is a view that is valid until the next one.
    """

    def __init__(
        self,
        reader: Reader,
        start: Position,
        *,
        last: bool,
        store: bytes | None,
        end: int | None = None,
        settled: Sequence[tuple[int, int]] = (),
        ahead: bool = False,
    ) -> None:
        """`last`: whether it is the store's last segment (only there a write may be torn). `store`: the uuid that its
        header must carry, when known. `end`: look no further; what is before it was acknowledged, so nothing is torn
        and no seal need stand there. `settled`: (offset, length) of places whose blocks were stored anew elsewhere:
        what stands there is passed over and nothing is said of it. `ahead`: a thread reads while frames are checked."""
        self._reader, self._segment, self._last, self._store = reader, start.segment, last, store
        self._at, self._size = start.offset, reader.size if end is None else min(reader.size, end)
        self._bounded, self._settled = end is not None, settled
        self._ahead = ReadAhead(reader, self._size, 2 * MAX_FRAME_BYTES) if ahead else None
        self._frames, self._digest = start.frames, start.digest
        self._unreadable = False
        self.certain = True
        """Whether the frame yielded last is known to be none of another frame's payload."""
        self.header: SegmentHeader | None = None
        self.sealed: SegmentSeal | None = None
        self.damaged = False
        self.foreign = False
        """Whether the whole file is not this segment."""

    @property
    def size(self) -> int:
        """Bytes in the segment."""
        return self._size

    @property
    def content(self) -> bytes | None:
        """XXH3 of all bytes up to `size`, as they were looked at; None unless they were read ahead, once, in order."""
        return self._ahead.content if self._ahead else None

    def close(self) -> None:
        """Close the file."""
        if self._ahead:
            self._ahead.close()
        self._reader.close()

    @property
    def position(self) -> Position:
        """Behind the last whole frame, or behind damage."""
        return Position(self._segment, self._at, self._frames, self._digest)

    def __iter__(self) -> Iterator[Found]:
        while self._at < self._size:
            base, view = self._at, self._frames_from(self._at)
            while self._at < base + len(view):
                try:
                    frame = parse_frame(view, self._at - base, base)
                except FrameError as error:
                    if self._may_continue(base, view):
                        break  # the frame goes on behind the window: read again from its start
                    found = self._judge(str(error))
                    if isinstance(found, Torn) or not self._is_settled(found.offset, found.length):
                        yield found
                    if isinstance(found, Torn):
                        return
                    break
                if frame.type == _BLOCK and frame.offset and not self._settled:  # nearly all frames: no detours
                    self._count(frame)
                    yield frame
                    continue
                yield from self._take(frame)
                if frame.type == FrameType.PAD and not self.certain:
                    self.certain = frame.end % SYNC_BYTES == 0 or self._leads_to_pad(frame.end)
                    break  # the check may have used the window
        if not (self._last or self._bounded or self.sealed or self.damaged):
            yield self._damage(self._size, 0, "ends without a seal")

    def _may_continue(self, base: int, view: memoryview) -> bool:
        left = base + len(view) - self._at
        return base < self._at and left < MAX_FRAME_BYTES and base + len(view) < self._size

    def _take(self, frame: Frame) -> Iterator[Found]:
        """A whole frame: check its place, count it."""
        problem = self._misplaced(frame)
        if problem and frame.offset == 0:  # nothing in this file can be taken for ours
            self._at, self.foreign = self._size, True
            damage = self._damage(0, self._size, problem)
            if not self._is_settled(0, self._size):
                yield damage
            return
        if self.header and frame.offset == 0:
            if NO_DIGEST not in (self._digest, self.header.previous) and self._digest != self.header.previous:
                yield self._damage(0, 0, f"does not follow the end of segment {self._segment - 1}")
            self._digest = self.header.previous
        is_settled = self._is_settled(frame.offset, frame.end - frame.offset)
        if problem and not is_settled:
            yield self._damage(frame.offset, frame.end - frame.offset, problem)
        self._count(frame)
        if is_settled:
            self.damaged = True  # a whole frame, but not the one that was written here: the seal counts another
        elif not problem or frame.type == FrameType.SEAL:  # a seal that counts wrongly says so of what is before it
            yield frame

    def _count(self, frame: Frame) -> None:
        self._at = frame.end
        self._frames += 1
        self._digest = advance_digest(self._digest, frame.checksum)

    def _is_settled(self, offset: int, length: int) -> bool:
        return covers(self._settled, offset, length)

    def _misplaced(self, frame: Frame) -> str:
        """Why this valid frame may not stand where it stands, or ""."""
        try:
            if frame.offset == 0:
                self.header = decode_segment_header(frame)
                return foreign(self.header, self._segment, self._store)
            if frame.type == FrameType.SEAL and self.certain:
                self.sealed = decode_segment_seal(frame)
                expected = SegmentSeal(self._frames, frame.offset, self._digest, self.sealed.continues)
                return "" if self.damaged or self.sealed == expected else COUNTS_OTHERS
        except FrameError as error:
            return str(error)
        return "a header frame in the middle" if frame.type == FrameType.HEADER else ""

    def _judge(self, reason: str) -> Damage | Torn:
        """What is not a valid frame at the current place: damage up to the next valid frame, or a torn end."""
        start = self._at
        after, certain = self._resync(start)
        if after == self._size and self._last and self._is_torn(start):
            return Torn(self._segment, start, after - start)
        self._at, self.certain = after, certain
        text = f"{reason} (the medium could not be read)" if self._unreadable else reason
        self._unreadable = False
        return self._damage(start, after - start, text)

    def _damage(self, offset: int, length: int, reason: str) -> Damage:
        self.damaged = True
        return Damage(self._segment, offset, length, reason)

    def _resync(self, bad: int) -> tuple[int, bool]:
        """Where to go on, and whether that is certain: by the lengths in the bad header, else by searching."""
        for size in claimed_sizes(self._window(bad)):
            if bad + size == self._size or self._is_frame(bad + size):
                return bad + size, True
        return self._search(bad + 1)

    def _is_frame(self, at: int) -> bool:
        try:
            parse_frame(self._window(at), 0)
        except FrameError:
            return False
        return True

    def _search(self, at: int) -> tuple[int, bool]:
        budget = SEARCH_BUDGET_BYTES
        while at < self._size:
            data = bytes(self._window(at))
            whole = at + len(data) == self._size
            place = data.find(MAGIC)
            while place >= 0:
                if not whole and place and len(data) - place < MAX_FRAME_BYTES:
                    break  # look at it again at the start of the next window
                if budget > 0 or (at + place) % SYNC_BYTES == 0:
                    try:
                        budget -= parse_header_untrusted(data, place).stored
                        found = parse_frame(data, place, at).offset
                        return found, self._leads_to_pad(found)
                    except FrameError:
                        pass  # these four bytes begin no frame; the next ones may
                place = data.find(MAGIC, place + 1)
            at += place if place > 0 else len(data) if whole else len(data) - len(MAGIC) + 1
        return self._size, True

    def _leads_to_pad(self, at: int) -> bool:
        """Whether whole frames go on from here to a pad that ends where only ours end.

        Frames inside a payload lead to a pad of their own, which does not, or break off where the payload ends."""
        while at < self._size:
            base, view = at, self._window(at)
            try:
                while at < base + len(view):
                    frame = parse_frame(view, at - base, base)
                    at = frame.end
                    if frame.type in (FrameType.PAD, FrameType.HEADER):
                        return frame.type == FrameType.PAD and at % SYNC_BYTES == 0
            except FrameError:
                if at == base or base + len(view) == self._size:
                    return False
        return False

    def _is_torn(self, start: int) -> bool:
        """Whether what begins at `start`, and no valid frame follows, is a write that did not complete: cut short by
        the end of the file, or with sectors that were never written. A complete frame that is wrong is damage."""
        view = self._window(start)
        try:
            frame = parse_header_untrusted(view, 0)
        except FrameError:
            return len(view) < HEADER_BYTES or _has_unwritten_sector(view, start)
        return len(frame.payload) < frame.stored or _has_unwritten_sector(view, start)

    def _frames_from(self, at: int) -> memoryview:
        """A window that holds the frame at `at` as a whole, and what is there of those behind it."""
        if self._ahead is None:
            return self._window(at)
        try:
            view = self._ahead.window(at, HEADER_BYTES)
            needed = max(claimed_sizes(view), default=0)
            return view if needed <= len(view) else self._ahead.window(at, needed)
        except ReplicadError:
            return self._window(at)

    def _window(self, at: int) -> memoryview:
        size = min(READ_BUFFER_BYTES - ALIGN_BYTES, self._size - at)
        try:
            return self._reader.read_at(at, size)
        except ReplicadError:
            self._unreadable = True
            return self._patchwork(at, size)

    def _patchwork(self, at: int, size: int) -> memoryview:
        """What of the range can be read, page by page; zeros stand for the rest and fail every checksum."""
        found = bytearray(size)
        for page in range(align_down(at), at + size, ALIGN_BYTES):
            start, end = max(at, page), min(at + size, page + ALIGN_BYTES)
            try:
                found[start - at : end - at] = self._reader.read_at(start, end - start)
            except ReplicadError:
                continue  # judged by the caller: the frames in there are damaged
        return memoryview(found)


class SegmentFiles:
    """Reads pieces of a store's segments, keeping a few files open. For one thread at a time."""

    def __init__(self, directory: Path, disk: Disk, most: int = OPEN_SEGMENTS) -> None:
        self._directory, self._disk, self._most = directory, disk, most
        self._open: OrderedDict[int, Reader] = OrderedDict()

    def read(self, segment: int, offset: int, size: int) -> memoryview:
        """Bytes of a segment, less at its end; valid until the next read of that segment.

        Raises FileNotFoundError, ReplicadError."""
        return self.reader(segment).read_at(offset, size)

    def reader(self, segment: int) -> Reader:
        """The open file of a segment; it stays ours. Raises FileNotFoundError, ReplicadError."""
        reader = self._open.get(segment) or self._disk.open_read(segment_path(self._directory, segment))
        self._open[segment] = reader
        self._open.move_to_end(segment)
        if len(self._open) > self._most:
            self._open.popitem(last=False)[1].close()
        return reader

    def close(self) -> None:
        """Close all files."""
        while self._open:
            self._open.popitem()[1].close()


def _has_unwritten_sector(view: memoryview, start: int) -> bool:
    zeros = bytes(_SECTOR_BYTES)
    first = -start % _SECTOR_BYTES
    return any(view[i : i + _SECTOR_BYTES] == zeros for i in range(first, len(view) - _SECTOR_BYTES + 1, _SECTOR_BYTES))
