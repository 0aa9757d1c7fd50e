"""Replay: bring a catalog up to what its segments say: after a crash, after an aborted session, or from nothing.

**Owns** the rules by which frames become blocks and snapshots again (docs/FORMATS.md, "Replay"). Blocks count
wherever they stand. Records count only when a commit behind them claims them: by the digest over the ids of the
last so many records, so the records of a session that was cut short are told from those that replaced them.
Damage is noted and passed over; what else a damaged region took with it is said, never guessed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import msgspec

from replicad.db.catalog import BlockPlace, Catalog, FrameCopy
from replicad.db.expiry import drop_snapshots, purge
from replicad.model.block import Buffer
from replicad.model.entry import Map, Op, Put, decode_ops
from replicad.model.position import Position
from replicad.model.snapshot import MAX_RECORDS, Commit, decode_commit, records_digest
from replicad.store.format import (
    HEADER_BYTES,
    Frame,
    FrameError,
    FrameType,
    decode_retention,
    frame_header,
    pad_time_ns,
    parse_frame,
    parse_header_untrusted,
    plain_payload,
    split_frames,
)
from replicad.store.segments import Damage, SegmentFiles, SegmentScan, Torn, segment_numbers
from replicad.store.store import Store

Progress = Callable[[int, int], None]
"""Told (segments read, segments in all)."""
BATCH_BLOCKS = 1000
"""Blocks indexed with one call."""
PURGED_ROWS = 10_000
"""Rows that one transaction takes away."""
BATCH_COPIES_BYTES = 4 * 1024 * 1024
"""Copies of other frames written with one call; one frame may be as long."""
MAX_WAITING = 4 * MAX_RECORDS
"""Records that wait for their commit, at most (60 MB of memory): the last ones, for those are what it claims. More than
it may cover, for stores that are older than this limit, and for two commits of which the first is lost."""
NEWEST_GONE = "the segment that followed is missing or empty: was there a newer snapshot?"
"""Reason of the damage behind a last seal: a segment is sealed once a frame needs the next one. A crash at just that
moment leaves the same, and only the catalog that is not there could tell them apart."""
Spare = Callable[[int, int, int], Sequence[FrameCopy]]
"""Asked for copies of the frames that begin within (segment, offset, length), where the segment itself is damaged."""


@dataclass(frozen=True, slots=True)
class _RecordPlace:
    segment: int
    offset: int
    size: int
    id: bytes
    frame: bytes = b""
    """A copy, where the segment is damaged."""
    certain: bool = True
    """False: it may stand in another frame's payload. Then it counts only if a commit claims just it."""


@dataclass(frozen=True, slots=True)
class _Sealed:
    """A commit whose operations are applied, until it is known when it was received."""

    commit: Commit
    digest: bytes
    lost: int
    end: Position


@dataclass(slots=True)
class Replay:
    """One run over the segments behind the catalog's checkpoint. `run` once."""

    store: Store
    catalog: Catalog
    files: SegmentFiles
    progress: Progress | None = None
    readonly: bool = False
    """Leave the segments as they are: a torn end is not cut."""
    spare: Spare | None = None
    anew: bool = False
    """Nothing but the segments says what there was: it is asked what followed a last seal."""
    untouched: int = 0
    """Not of this segment: a catalog that can still be read knows that nothing in it was acknowledged."""
    has_dropped: bool = False
    """Whether snapshots were let go: their rows must go too, for blocks that only they name may be gone already."""
    torn: Torn | None = None
    """What was cut off the end of the last segment."""
    _records: deque[_RecordPlace] = field(default_factory=lambda: deque(maxlen=MAX_WAITING))
    _blocks: list[BlockPlace] = field(default_factory=list)
    _copies: list[FrameCopy] = field(default_factory=list)
    _copied_bytes: int = 0
    _full: int = 0
    """The last segment that has its seal."""
    _sealed: _Sealed | None = None
    """The commit that was the frame before: the pad behind it says when it was received."""

    def run(self) -> Position:
        """Replay, cut a torn end, make everything found durable; where appending goes on.

        Raises ReplicadError, DiskFullError, BookDamagedError: then nothing is known and nothing was lost.
        """
        start = self.catalog.checkpoint
        numbers = [number for number in segment_numbers(self.store.directory) if number >= start.segment]
        self._check_present(start, numbers)
        if numbers and not self.readonly:
            self.store.secure(numbers[0])  # a commit found is acknowledged: it must be on the medium, whoever wrote it
        end = start if start.segment in numbers or not start.offset else Position(start.segment + 1)
        for number in numbers:
            begin = start if number == start.segment else self._begin_of(number, end)
            end = self._segment(begin, last=number == numbers[-1])
            if self.progress:
                self.progress(number - numbers[0] + 1, len(numbers))
        self._check_followed(end)
        self.catalog.keep(end)
        while self.has_dropped and purge(self.catalog.database, PURGED_ROWS):
            self.catalog.keep(end)
        return end

    def _begin_of(self, number: int, end: Position) -> Position:
        """Where segment `number` begins; its digest goes on only when it follows the segment before."""
        return end if end == Position(number, digest=end.digest) else Position(number)

    def _check_present(self, start: Position, numbers: list[int]) -> None:
        present, last = set(numbers), max(numbers, default=0)
        if not present and start.offset == 0:
            return  # a segment of which nothing is known yet may not exist yet
        for number in range(start.segment, max(last, start.segment) + 1):
            if number not in present:
                self._note(Damage(number, 0, 0, "segment file is missing"))

    def _check_followed(self, end: Position) -> None:
        is_gone = self._full and (end.segment, end.offset) == (self._full + 1, 0)
        if self.anew and is_gone and end.segment != self.untouched:
            self._note(Damage(end.segment, 0, 0, NEWEST_GONE))

    def _segment(self, begin: Position, *, last: bool) -> Position:
        """Replay one segment from `begin` on; where the next frames belong."""
        if begin.offset and (problem := self.store.foreign(begin.segment)):
            self._note(Damage(begin.segment, 0, begin.offset, problem))
            return Position(begin.segment + 1)
        scan = self.store.scan(begin, last=last, settled=self.catalog.mended(begin.segment))
        try:
            self._check_length(scan, begin)
            for found in scan:
                if isinstance(found, Frame):
                    self._frame(found, scan)
                elif isinstance(found, Damage):
                    self._note(found)
                    self._stand_in(found, scan)
                else:
                    self._tear(found)
        finally:
            scan.close()
        self._settle()
        self._index()
        self._full = begin.segment if scan.sealed else self._full
        if scan.damaged:
            return Position(begin.segment + 1)
        return Position(begin.segment + 1, digest=scan.sealed.after) if scan.sealed else scan.position

    def _tear(self, torn: Torn) -> None:
        self.torn = torn
        if not self.readonly:
            self.store.cut(torn)

    def _check_length(self, scan: SegmentScan, begin: Position) -> None:
        missing = begin.offset - scan.size
        if missing > 0:
            scan.damaged = True
            self._note(Damage(begin.segment, scan.size, missing, "is shorter than what was acknowledged"))

    def _frame(self, frame: Frame, scan: SegmentScan, copy: FrameCopy | None = None) -> None:
        """Take a frame of the segment, or a copy in its place."""
        segment = scan.position.segment
        certain = scan.certain or copy is not None or self._is_known(segment, frame)
        if certain and frame.type != FrameType.BLOCK:
            self._keep(copy or _copied(segment, frame))
        if self._sealed:
            self._settle(pad_time_ns(frame) if frame.type == FrameType.PAD else 0, scan.position)
        if frame.type == FrameType.BLOCK:
            if certain or _is_proven(frame):
                self._blocks.append(BlockPlace(frame.id, segment, frame.offset, frame.stored, frame.plain))
                if len(self._blocks) >= BATCH_BLOCKS:
                    self._index()
        elif frame.type == FrameType.RECORD:
            place, spare = (segment, frame.offset, frame.end - frame.offset), copy.frame if copy else b""
            self._records.append(_RecordPlace(*place, frame.id, spare, certain))
        elif frame.type == FrameType.RETENTION and certain:
            self._retain(frame, segment)
        elif frame.type == FrameType.COMMIT and certain:
            problem = self._commit(frame, scan)
            if problem:
                self._note(Damage(segment, frame.offset, frame.end - frame.offset, problem))

    def _is_known(self, segment: int, frame: Frame) -> bool:
        """Whether the old catalog has a copy of just this frame at just this place."""
        if frame.type == FrameType.BLOCK or not self.spare:
            return False
        copies = self.spare(segment, frame.offset, frame.end - frame.offset)
        return any((copy.offset, copy.head) == (frame.offset, frame_header(frame)) for copy in copies)

    def _retain(self, frame: Frame, segment: int) -> None:
        """Let go what the replica once decided not to keep."""
        try:
            decision = decode_retention(frame)
        except FrameError as error:
            self._note(Damage(segment, frame.offset, frame.end - frame.offset, str(error)))
            return
        drop_snapshots(self.catalog.database, decision.dropped, decision.at_ns)
        self.has_dropped = True

    def _stand_in(self, damage: Damage, scan: SegmentScan) -> None:
        """Take copies of the frames that damage took, where there are any: a copy proves itself by its checksum."""
        for copy in self.spare(damage.segment, damage.offset, damage.length) if self.spare else ():
            try:
                self._frame(parse_frame(copy.frame, 0, copy.offset), scan, copy=copy)
            except FrameError as error:
                self._note(Damage(copy.segment, copy.offset, 0, f"its copy in the catalog is damaged too: {error}"))

    def _keep(self, copy: FrameCopy) -> None:
        self._copies.append(copy)
        self._copied_bytes += copy.stored
        if self._copied_bytes >= BATCH_COPIES_BYTES:
            self._index()

    def _commit(self, frame: Frame, scan: SegmentScan) -> str:
        """Apply the records that a commit claims; why it cannot count at all, or ""."""
        try:
            commit = decode_commit(bytes(plain_payload(frame)))
        except ValueError as error:
            return f"commit: {error}"
        head = self.catalog.head
        claimed, lost = self._claimed(commit)
        if commit.number <= head.number:
            return f"commit of snapshot {commit.number} stands behind that of {head.number}"
        if commit.parent != head.digest:
            claimed, lost = [place for place in self._records if place.certain], lost + 1
            text = f"a commit between snapshots {head.number} and {commit.number} is lost; its entries count for this"
            self._note(Damage(scan.position.segment, frame.offset, 0, text))
        elif lost:
            text = f"part of the record of snapshot {commit.number} is lost; the entries in it stand as before"
            self._note(Damage(scan.position.segment, frame.offset, 0, text))
        self._index()
        lost += self._apply(claimed)
        self._records.clear()
        self._sealed = _Sealed(commit, frame.id, lost, scan.position)
        return ""

    def _settle(self, received_ns: int = 0, after_pad: Position | None = None) -> None:
        """Make the commit that was the frame before a snapshot; `received_ns` is known when a pad followed it."""
        if self._sealed:
            commit, end = self._sealed.commit, self._sealed.end
            if received_ns and after_pad:
                end = after_pad
            received_ns = received_ns or commit.created_ns
            digest, lost = self._sealed.digest, self._sealed.lost
            self._index()  # the pad's copy: whoever goes on behind it after a crash does not meet it again
            self.catalog.commit(commit, digest, received_ns=received_ns, checkpoint=end, lost=lost)
            self._sealed = None

    def _claimed(self, commit: Commit) -> tuple[list[_RecordPlace], int]:
        """The records that belong to a commit, and how many of them are missing (at least, when any is).

        The digest goes over cryptographic ids: what it matches is what the primary sent, however it was found."""
        last: list[_RecordPlace] = []
        for known in (list(self._records), [place for place in self._records if place.certain]):
            last = known[-commit.records :] if commit.records else []
            if records_digest(place.id for place in last) == commit.records_digest and len(last) == commit.records:
                return last, 0
        return last, max(1, commit.records - len(last))

    def _apply(self, places: list[_RecordPlace]) -> int:
        """Apply records; how many of them cannot be read any more."""
        current: Put | None = None
        lost = 0
        for place in places:
            try:
                data = place.frame or self.files.read(place.segment, place.offset, place.size)
                frame = split_frames(data)[0]
                ops = decode_ops(bytes(plain_payload(frame)))
            except ValueError as error:
                self._note(Damage(place.segment, place.offset, place.size, f"record: {error}"))
                lost += 1
                continue
            if not place.certain:
                self._keep(_copied(place.segment, msgspec.structs.replace(frame, offset=place.offset)))
            current = self.catalog.apply(_without_stray_maps(ops, current), current)
        return lost

    def _index(self) -> None:
        if self._blocks:
            self.catalog.add_blocks(self._blocks)
            self._blocks.clear()
        if self._copies:
            self.catalog.add_copies(self._copies)
            self._copies.clear()
            self._copied_bytes = 0

    def _note(self, damage: Damage) -> None:
        self.catalog.add_damage(damage.segment, damage.offset, damage.length, damage.reason)


def asks_for_newest(end: Position, damage: Iterable[tuple[int, int, int, str]]) -> bool:
    """Whether rows of damage ask what followed the last seal, and up to `end` nothing has followed it."""
    return not end.offset and any((segment, reason) == (end.segment, NEWEST_GONE) for segment, _, _, reason in damage)


def copy_of(segment: int, offset: int, frame: Buffer) -> FrameCopy:
    """A frame that is no block, as the catalog keeps it: of a pad only the header, the rest is zeros."""
    whole = bytes(frame)
    head, payload = whole[:HEADER_BYTES], whole[HEADER_BYTES:]
    is_pad = parse_header_untrusted(head, 0).type == FrameType.PAD
    return FrameCopy(segment, offset, len(payload), head, None if is_pad else payload)


def _copied(segment: int, frame: Frame) -> FrameCopy:
    head = frame_header(frame)
    payload = None if frame.type == FrameType.PAD else bytes(frame.payload)
    return FrameCopy(segment, frame.offset, frame.stored, head, payload)


def _without_stray_maps(ops: list[Op], current: Put | None) -> list[Op]:
    """Drop maps whose put was in a damaged record: they say nothing alone."""
    kept: list[Op] = []
    for op in ops:
        if not isinstance(op, Map):
            current = op if isinstance(op, Put) else None
        elif current is None or current.file != op.file:
            continue
        kept.append(op)
    return kept


def _is_proven(frame: Frame) -> bool:
    try:
        plain_payload(frame)
    except FrameError:
        return False
    return True
