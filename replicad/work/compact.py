"""Compact: give back the room of blocks that no kept snapshot names, one segment at a time.

The frames that count are copied into a file beside the segment, each proven by checksum and BLAKE3; the file is synced,
read again from the medium and compared with the catalog's new rows; then the catalog is committed durably: from here on
the new file counts; then it takes the old one's name. A crash before the commit leaves the old segment, one after it is
finished at the next start. Records, commits and decisions of retention stay, in their order, so the chain does.

**Never** touches the segment that is written to, one that is not exactly as the catalog says, or one that a finding is
open about. **Never** takes a block for unused because of a moment's look: marks are made first and only grow; nor while
the store has lost a piece of its record, which may have named it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from replicad.db.catalog import BlockPlace, FrameCopy
from replicad.db.expiry import is_purged
from replicad.db.inventory import Expected
from replicad.db.layout import Layout
from replicad.model.errors import ReplicadError, StoreDamagedError
from replicad.model.marks import Marks
from replicad.store.format import (
    HEADER_BYTES,
    MAX_FRAME_BYTES,
    Frame,
    FrameError,
    FrameType,
    SegmentSeal,
    advance_digest,
    decode_segment_header,
    decode_segment_seal,
    encode_pad,
    encode_segment_seal,
    frame_header,
    pad_time_ns,
    parse_frame,
    plain_payload,
)
from replicad.store.segments import compacted_path, segment_path
from replicad.system.disk import ALIGN_BYTES, READ_BUFFER_BYTES, Appender, Disk, Reader
from replicad.work.archive import Archive
from replicad.work.replay import copy_of
from replicad.work.segment_check import SegmentCheck

RECORDS_MISSING = "records of snapshots are missing: they may have named what is unused"
BATCH_FRAMES = 1000
"""Frames whose rows are written with one call."""
_END = 1 << 62


@dataclass(frozen=True, slots=True)
class Compacted:
    """What became of one segment."""

    number: int
    before_bytes: int = 0
    after_bytes: int = 0
    dropped: int = 0
    """Blocks that are here no more."""
    skipped: str = ""
    """Why it was left as it is; "" when it was compacted."""


def compact_segment(archive: Archive, disk: Disk, number: int, marks: Marks, barred: Collection[int]) -> Compacted:
    """Compact one segment, in the archive's thread. `barred`: segments with an open finding.

    Raises StoreDamagedError (what was written does not read back as it should; the old segment stays), DiskFullError,
    ReplicadError: then old or new segment is whole."""
    if reason := _unfit(archive, number, marks, barred):
        return Compacted(number, skipped=reason)
    path, fresh = segment_path(archive.store.directory, number), compacted_path(archive.store.directory, number)
    before, needed = path.stat().st_size, _needed(archive, number, marks)
    if needed >= before:
        return Compacted(number, before, before, skipped="nothing in it is unused")
    archive.store.check_spare(needed)
    if reason := _doubt(archive, disk, number):
        return Compacted(number, before, before, skipped=reason)
    fresh.unlink(missing_ok=True)
    with archive.upkeep_of_files() as catalog:
        catalog.begin_durably()
        copying = _Copying(archive, disk, number, marks)
        try:
            copying.run()
            copying.layout.finish()
            source = _verify(archive, disk, number)
        except ReplicadError:
            fresh.unlink(missing_ok=True)
            raise
        copying.layout.set_verified(copying.size, archive.store.now_ns(), source)
        catalog.set_laying(number)
        catalog.keep(archive.checkpoint)
    return Compacted(number, before, copying.size, copying.dropped)


def _unfit(archive: Archive, number: int, marks: Marks, barred: Collection[int]) -> str:
    """Why a segment may not be compacted now, or ""."""
    if not archive.is_settled or not archive.is_marking(marks):
        return "a session has unsealed work"
    if archive.inventory.lost:
        return RECORDS_MISSING
    if not is_purged(archive.inventory.database):
        return "dropped snapshots are still being taken out of the catalog"
    if number >= archive.checkpoint.segment:
        return "it is still written to"
    if number in barred:
        return "a finding about it is open"
    if any(damage.segment == number for damage in archive.damage):
        return "damage was found in it"
    return "" if segment_path(archive.store.directory, number).exists() else "its file is missing"


def _doubt(archive: Archive, disk: Disk, number: int) -> str:
    """Why a segment is not exactly what the catalog says, read from the medium now, or ""."""
    path = segment_path(archive.store.directory, number)
    checked = SegmentCheck(archive.inventory, disk, path, number, archive.store.owner.store).run()
    if checked.wrongs:
        return f"{checked.wrongs[0].what}: left to the scrub"
    if checked.unknown or checked.uncopied:
        return "it holds what the catalog does not know: left to the scrub"
    return ""


def _verify(archive: Archive, disk: Disk, number: int) -> str:
    """Read the new file from the medium and compare it with the new rows; where the bytes came from."""
    fresh = compacted_path(archive.store.directory, number)
    checked = SegmentCheck(archive.inventory, disk, fresh, number, archive.store.owner.store).run()
    problems = [wrong.what for wrong in checked.wrongs] + checked.unknown
    if problems or checked.uncopied:
        text = f"segment {number} was not compacted: {(problems or ['frames are not as they were copied'])[0]}"
        raise StoreDamagedError(text, where=str(fresh), hint="nothing was changed; the old segment stays")
    return "media" if checked.media else "cache"


def _needed(archive: Archive, number: int, marks: Marks) -> int:
    """Bytes that the segment will have, about: pads may take a little more or less."""
    items = archive.inventory.expected(number, 0, _END)
    return sum(HEADER_BYTES + item.stored for item in items if not item.id or item.id in marks)


@dataclass(slots=True)
class _Copying:
    """One pass over a segment, into the new file and the catalog's new rows."""

    archive: Archive
    disk: Disk
    number: int
    marks: Marks
    layout: Layout = field(init=False)
    dropped: int = 0
    size: int = 0
    _digest: bytes = b""
    _continues: bytes = b""
    _frames: int = 0
    _is_behind_commit: bool = False
    _blocks: list[BlockPlace] = field(default_factory=list)
    _copies: list[FrameCopy] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.layout = Layout(self.archive.inventory.database, self.number)

    def run(self) -> None:
        """Copy, and make the new file durable."""
        directory = self.archive.store.directory
        reader = self.disk.open_read(segment_path(directory, self.number))
        try:
            appender = self.disk.create(compacted_path(directory, self.number))
            try:
                for frame, data in self._read(reader):
                    self._take(frame, data, appender)
                self._end(appender)
                appender.sync()
            finally:
                appender.close()
        finally:
            reader.close()

    def _read(self, reader: Reader) -> Iterator[tuple[Frame, bytes]]:
        """The frames that the catalog expects and that are still needed, each proven."""
        window = _Window(reader)
        for item in self.archive.inventory.expected(self.number, 0, _END):
            if item.id and item.id not in self.marks:
                self.dropped += 1
                self._is_behind_commit = False
                continue
            try:
                data = window.bytes_of(item)
                frame = parse_frame(data, 0)
                if frame.type != FrameType.PAD:  # its id is a moment
                    plain_payload(frame)
            except FrameError as error:
                raise self._damaged(item, str(error)) from None
            if not _is(frame, item):
                raise self._damaged(item, "another frame stands there")
            yield frame, data

    def _damaged(self, item: Expected, reason: str) -> StoreDamagedError:
        text = f"segment {self.number} at byte {item.offset} cannot be copied: {reason}"
        return StoreDamagedError(text, where=str(self.archive.store.directory), hint="the next scrub looks into it")

    def _take(self, frame: Frame, data: bytes, appender: Appender) -> None:
        was_commit, self._is_behind_commit = self._is_behind_commit, frame.type == FrameType.COMMIT
        if frame.type == FrameType.HEADER:
            self._digest = decode_segment_header(frame).previous
        if frame.type == FrameType.SEAL:
            self._continues = decode_segment_seal(frame).after
        elif frame.type == FrameType.PAD:
            if was_commit:  # it says when the snapshot was received; others say nothing
                self._add(encode_pad(appender.position, pad_time_ns(frame)), appender)
        else:
            self._add(data, appender)

    def _end(self, appender: Appender) -> None:
        seal = SegmentSeal(self._frames, appender.position, self._digest, self._continues)
        self._add(encode_segment_seal(seal), appender)
        self._add(encode_pad(appender.position, self.archive.store.now_ns()), appender)
        self._flush()
        self.size = appender.position

    def _add(self, data: bytes, appender: Appender) -> None:
        frame = parse_frame(data, 0)
        offset = appender.position
        if frame.type == FrameType.BLOCK:
            self._blocks.append(BlockPlace(frame.id, self.number, offset, frame.stored, frame.plain))
        else:
            self._copies.append(copy_of(self.number, offset, data))
        self._digest = advance_digest(self._digest, frame.checksum)
        self._frames += 1
        appender.append(data)
        if len(self._blocks) + len(self._copies) >= BATCH_FRAMES:
            self._flush()

    def _flush(self) -> None:
        self.layout.add(self._blocks, self._copies)
        self._blocks, self._copies = [], []


class _Window:
    """Reads frames in ascending order with few large reads."""

    def __init__(self, reader: Reader) -> None:
        self._reader, self._start, self._view = reader, 0, memoryview(b"")

    def bytes_of(self, item: Expected) -> bytes:
        """What stands where the frame should. Raises ReplicadError."""
        size = HEADER_BYTES + item.stored
        assert size <= MAX_FRAME_BYTES
        at = item.offset - self._start
        if at + size > len(self._view):
            self._start, at = item.offset, 0
            self._view = self._reader.read_at(item.offset, READ_BUFFER_BYTES - ALIGN_BYTES)
        return bytes(self._view[at : at + size])


def _is(frame: Frame, item: Expected) -> bool:
    """Whether this is the frame that the catalog expects."""
    if frame.type == FrameType.BLOCK:
        return (frame.stored, frame.plain, frame.id) == item[1:4]
    return frame_header(frame) == item.head
