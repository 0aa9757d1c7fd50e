"""Segment check: one segment, read from the medium, against what the catalog says should stand in it.

A checksum says that a frame is whole; only the catalog says that it is the right one. **Owns** that comparison: every
frame that should be there must be there, bit for bit as far as its checksum tells, at its place and nowhere else; what
is not is read a second time with nothing in between, and named with what was found instead.

**Never** writes, and never decides what is done. Runs in any thread, with a connection to the catalog of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from replicad.db.inventory import Expected, Inventory
from replicad.link.messages import MAX_SEEN_BYTES
from replicad.model.divergence import MAX_BLOCKS_NAMED, Part
from replicad.model.errors import ReplicadError
from replicad.model.position import Position
from replicad.model.verdict import Sight
from replicad.store.format import (
    HEADER_BYTES,
    MAX_FRAME_BYTES,
    Frame,
    FrameError,
    FrameType,
    frame_header,
    parse_frame,
)
from replicad.store.segments import COUNTS_OTHERS, Damage, SegmentScan, Torn
from replicad.system.disk import Disk, Reader
from replicad.work.imprint import content_of, imprint_of

BATCH_FRAMES = 4096
"""Frames compared with the catalog at once."""
MAX_WRONGS = 256
"""Places told apart in one segment; from there on the last one grows over what is well between bad frames."""
_TYPE_AT = 20
_PARTS = {FrameType.BLOCK: Part.BLOCK, FrameType.RECORD: Part.RECORD, FrameType.COMMIT: Part.COMMIT}


@dataclass(frozen=True, slots=True)
class Wrong:
    """Bytes of a segment that are not what should be there."""

    segment: int
    offset: int
    length: int
    part: Part
    what: str
    sight: Sight
    items: tuple[Expected, ...] = ()
    """What should stand there, as far as the catalog knows; of a whole segment only the first blocks."""
    seen: bytes = b""
    """What stands there, MAX_SEEN_BYTES at most; b"" when there is nothing or the medium gives nothing."""
    is_transient: bool = False
    """It was well when it was read again."""

    @property
    def key(self) -> str:
        """Of the divergence."""
        return f"segment:{self.segment}" if self.part is Part.SEGMENT else f"frame:{self.segment}:{self.offset}"


@dataclass(slots=True)
class Checked:
    """What one check gave."""

    size: int = 0
    """Bytes read and compared."""
    media: bool = True
    """Whether they came from the medium."""
    end: Position = field(default_factory=Position)
    """Where the next check of a growing segment may go on."""
    wrongs: list[Wrong] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    """What the catalog says falsely or not at all, while the segment itself is proven to be as it was written."""
    uncopied: list[tuple[int, int]] = field(default_factory=list)
    """(offset, length) of frames written by an older replicad, of which the catalog has no copy yet."""
    imprint: bytes = b""
    """What the segment was, since nothing was wrong with it; b"" = not known."""


def looked_at_twice(look: Callable[[], Checked]) -> Checked:
    """What a check of a segment gives. Whatever it says of the segment as a whole (missing, cut short, another one) a
    second check has to say as well: anyone may have moved a file for a moment."""
    first = look()
    if not (whole := [wrong for wrong in first.wrongs if wrong.part is Part.SEGMENT]):
        return first
    again = look()
    lasting = {wrong.key for wrong in again.wrongs}
    if gone := [replace(wrong, is_transient=True) for wrong in whole if wrong.key not in lasting]:
        again.wrongs += gone
        again.imprint = b""
    return again


class SegmentCheck:
    """One check of one segment. `run` once."""

    def __init__(
        self,
        inventory: Inventory,
        disk: Disk,
        path: Path,
        number: int,
        store: bytes | None,
        *,
        start: Position | None = None,
        size: int | None = None,
        length: int = 0,
    ) -> None:
        """`path`: the file, wherever it is. `start`: go on from there. `size`: of the file while nobody wrote to it, 0
        when that is not known: bytes behind both this and what is acknowledged mean nothing. None: nobody writes.
        `length`: what was expected when this file was replaced: all behind it came later, into another. 0: it was not
        replaced, or nobody knows."""
        self._inventory, self._disk, self._path, self._number, self._store = inventory, disk, path, number, store
        self._start, self._size = start or Position(number), size
        self._at = self._start.offset
        self._run: list[Expected] = []
        self._runs: list[list[Expected]] = []
        self._uncertain: set[int] = set()
        self._damages: list[Damage] = []
        self._settled = inventory.mended(number)
        checkpoint = inventory.checkpoint
        self._last = checkpoint if checkpoint.segment == number and not length else None
        self._copied_from = _copied_from(inventory, number)
        self._length = length or expected_length(inventory, number)
        self._stop = self._last.offset if self._last else length or _END
        """What the catalog says of bytes behind this was acknowledged after the check began."""
        self._has_strays = False
        self._checked = Checked()

    def run(self, before: bytes = b"") -> Checked:
        """Read and compare. A segment with the imprint `before`, as a check left it that found nothing, is what it was
        then; of any other every frame is looked at.

        Raises FileNotFoundError, ReplicadError (it cannot be opened), BookDamagedError."""
        reader = self._disk.open_read(self._path)
        try:
            if not (before and self._is_as_it_was(reader, before)):
                self._look(reader)
        finally:
            reader.close()
        return self._checked

    def _is_as_it_was(self, reader: Reader, before: bytes) -> bool:
        length = self._length
        if self._start.offset or length is None or reader.size != length:
            return False
        content = content_of(reader, length)
        if content is None or imprint_of(self._inventory, self._number, self._store, length, content) != before:
            return False
        self._checked.size, self._checked.media, self._checked.imprint = length, reader.direct, before
        self._checked.end = self._last or self._start
        return True

    def _look(self, reader: Reader) -> None:
        """At each frame."""
        scan = SegmentScan(
            reader, self._start, last=False, store=self._store, end=self._length, settled=self._settled, ahead=True
        )
        try:
            self._scan(scan)
            self._conclude(scan, reader)
            self._checked.media, self._checked.imprint = reader.direct, self._imprint(scan, reader.size)
        finally:
            scan.close()

    def _imprint(self, scan: SegmentScan, size: int) -> bytes:
        """What the next check may compare with: only what follows from the segment and its rows, and nothing wrong."""
        checked, content = self._checked, scan.content
        has_found = checked.wrongs or checked.unknown or checked.uncopied or self._has_strays
        if has_found or content is None or not scan.size == size == self._length:
            return b""
        return imprint_of(self._inventory, self._number, self._store, size, content)

    def _scan(self, scan: SegmentScan) -> None:
        seen: dict[int, Seen] = {}
        for found in scan:
            if isinstance(found, Frame):
                seen[found.offset] = _seen(found)
                if not scan.certain:
                    self._uncertain.add(found.offset)
                if len(seen) >= BATCH_FRAMES:
                    self._compare(seen, found.offset + 1)
                    seen = {}
            elif not isinstance(found, Torn):
                self._damages.append(found)
        self._compare(seen, self._stop)
        self._close_run()

    def _compare(self, seen: dict[int, Seen], stop: int) -> None:
        """Compare what stands before `stop` with what should."""
        for item in self._inventory.expected(self._number, self._at, stop):
            if seen.get(item.offset) == item[1:]:
                del seen[item.offset]
                self._close_run()
            else:
                self._add_bad(item)
        self._at = stop
        for offset in self._uncertain:
            seen.pop(offset, None)
        self._uncertain.clear()
        self._take_unclaimed(seen)

    def _add_bad(self, item: Expected) -> None:
        if self._run and (_part(item) is not _part(self._run[0]) or len(self._run) == MAX_BLOCKS_NAMED):
            self._runs.append(self._run)
            self._run = []
        self._run.append(item)

    def _close_run(self) -> None:
        """A frame that is well ends a run of bad ones, unless there are too many runs to tell apart."""
        if self._run and len(self._runs) < MAX_WRONGS:
            self._runs.append(self._run)
            self._run = []

    def _take_unclaimed(self, seen: dict[int, Seen]) -> None:
        """Whole frames that the catalog does not expect: those of blocks that stand elsewhere too are none of its
        business; an older replicad kept no copies; anything else the catalog should know."""
        self._has_strays = self._has_strays or bool(seen)
        known = self._inventory.places([found[2] for found in seen.values() if found[2]])
        for offset, (stored, _, name, _) in seen.items():
            if name in known:
                continue
            if not name and offset < self._copied_from:
                self._checked.uncopied.append((offset, HEADER_BYTES + stored))
            elif len(self._checked.unknown) < MAX_WRONGS:
                what = f"block {name.hex()[:16]}" if name else "a frame of the record"
                self._checked.unknown.append(f"{what} in segment {self._number} at byte {offset} is in no row")

    # what it means

    def _conclude(self, scan: SegmentScan, reader: Reader) -> None:
        checked, runs = self._checked, self._runs + ([self._run] if self._run else [])
        checked.size = max(0, scan.size - self._start.offset)
        checked.end = scan.position
        if scan.foreign:
            self._add(0, reader.size, Part.SEGMENT, self._damages[0].reason, _all_of(runs))
        elif self._is_proven(scan):
            where = f"is not in segment {self._number} at byte"
            checked.unknown += [f"{_name(run[0])} {where} {run[0].offset}" for run in runs]
            self._conclude_rest(scan, reader.size)
        else:
            checked.unknown.clear()
            self._conclude_runs(runs, reader.size)
            self._conclude_rest(scan, reader.size)
        if checked.wrongs:
            checked.uncopied.clear()

    def _is_proven(self, scan: SegmentScan) -> bool:
        """Whether the running digest proves that all of the segment is what was written, so that the catalog lies."""
        if scan.damaged or self._settled:
            return False
        if self._last:
            return scan.position == self._last
        return scan.sealed is not None

    def _conclude_runs(self, runs: list[list[Expected]], size: int) -> None:
        """Bad frames; those that are not all within the file tell that it was cut short."""
        cut = [item for run in runs for item in run if _end(item) > size] if (self._length or 0) > size else []
        for run in runs:
            kept = [item for item in run if _end(item) <= size] if cut else run
            if kept:
                start = kept[0].offset
                self._add(start, _end(kept[-1]) - start, _part(kept[0]), self._reason(kept), kept)
        if self._length is not None and self._length > size:
            text = f"is {size} bytes long instead of {self._length}"
            self._add(size, self._length - size, Part.SEGMENT, text, _all_of([cut]))

    def _conclude_rest(self, scan: SegmentScan, size: int) -> None:
        """Damage where the catalog expects nothing, and bytes behind the end."""
        bad = [(w.offset, w.offset + w.length) for w in self._checked.wrongs]
        for damage in self._damages:
            end = damage.offset + damage.length
            is_told = damage.reason == COUNTS_OTHERS or any(a < end and damage.offset < b for a, b in bad)
            if damage.length and not is_told:
                self._add(damage.offset, damage.length, Part.STRUCTURE, damage.reason, ())
        if not self._checked.wrongs and self._is_off(scan):
            reason = next((damage.reason for damage in self._damages), "frames are not the ones that were written")
            self._add(0, scan.size, Part.SEGMENT, reason, ())
        if self._last and self._size is not None:
            size = min(size, self._size)
        if self._length is not None and size > self._length:
            text = f"{size - self._length} bytes stand behind the end of segment {self._number}"
            self._add(self._length, size - self._length, Part.STRUCTURE, text, ())

    def _is_off(self, scan: SegmentScan) -> bool:
        """Whether each frame is well and the running digest is wrong all the same."""
        if self._settled:
            return False
        if self._last and not scan.damaged:
            return scan.position != self._last
        return any(not damage.length or damage.reason == COUNTS_OTHERS for damage in self._damages)

    def _reason(self, run: Sequence[Expected]) -> str:
        start, stop = run[0].offset, _end(run[-1])
        for damage in self._damages:
            if damage.offset < stop and start < damage.offset + damage.length:
                return damage.reason
        return "another frame stands in its place" if len(run) == 1 else "other frames stand in their place"

    # the second look

    def _add(self, offset: int, length: int, part: Part, what: str, items: Sequence[Expected]) -> None:
        wrong = Wrong(self._number, offset, length, part, what, Sight.UNKNOWN, tuple(items[:MAX_BLOCKS_NAMED]))
        self._checked.wrongs.append(self._looked_at(wrong))

    def _looked_at(self, wrong: Wrong) -> Wrong:
        """The same with what two more looks gave, through a file opened anew."""
        reader = self._disk.open_read(self._path)
        try:
            if wrong.part is not Part.SEGMENT and self._reads_well(wrong, reader):
                return replace(wrong, is_transient=True)
            return _with_sight(wrong, reader)
        finally:
            reader.close()

    def _reads_well(self, wrong: Wrong, reader: Reader) -> bool:
        if not wrong.items:
            end = wrong.offset + wrong.length
            return self._length != wrong.offset and _frames_fill(reader, wrong.offset, end)
        return all(reads_as(reader, item) for item in wrong.items)


Seen = tuple[int, int, bytes, bytes]
"""Of a frame: stored, plain and id of a block, or stored, 0, b"" and header: as the columns of `Expected`."""
_END = 1 << 62
"""Behind every segment."""


def expected_length(inventory: Inventory, number: int) -> int | None:
    """How many bytes of a segment are acknowledged; None when that is not known because an older replicad wrote it."""
    if (checkpoint := inventory.checkpoint).segment == number:
        return checkpoint.offset
    last = inventory.last_expected(number)
    if _copied_from(inventory, number) and not (last and last.head):
        return None
    return _end(last) if last else 0


def _copied_from(inventory: Inventory, number: int) -> int:
    """From which byte of a segment on the catalog has copies of all frames that are no blocks."""
    segment, offset = inventory.uncopied
    return offset if segment == number else _END if segment > number else 0


def reads_as(reader: Reader, item: Expected) -> bool:
    """Whether the medium gives, now, the frame that should stand there."""
    try:
        frame = parse_frame(reader.read_at(item.offset, HEADER_BYTES + item.stored), 0, item.offset)
    except (FrameError, ReplicadError):
        return False
    return _seen(frame) == item[1:]


def strange_segment(disk: Disk, path: Path, number: int) -> Wrong:
    """A segment that nobody here has written. Raises FileNotFoundError, ReplicadError."""
    reader = disk.open_read(path)
    try:
        text = "no segment of this number was ever written here"
        return _with_sight(Wrong(number, 0, reader.size, Part.SEGMENT, text, Sight.DIFFERS), reader)
    finally:
        reader.close()


def missing_segment(inventory: Inventory, number: int) -> Wrong:
    """A segment whose file is not there."""
    last = inventory.last_expected(number)
    items: list[Expected] = []
    for item in inventory.expected(number, 0, _END):
        if item.id:
            items.append(item)
        if len(items) == MAX_BLOCKS_NAMED:
            break
    length = _end(last) if last else 0
    return Wrong(number, 0, length, Part.SEGMENT, "segment file is missing", Sight.ABSENT, tuple(items))


def _seen(frame: Frame) -> Seen:
    if frame.type == FrameType.BLOCK:
        return frame.stored, frame.plain, frame.id, b""
    return frame.stored, 0, b"", frame_header(frame)


def _part(item: Expected) -> Part:
    return Part.BLOCK if item.id else _PARTS.get(FrameType(item.head[_TYPE_AT]), Part.STRUCTURE)


def _name(item: Expected) -> str:
    return f"block {item.id.hex()[:16]}" if item.id else "a frame that the catalog has a copy of"


def _end(item: Expected) -> int:
    return item.offset + HEADER_BYTES + item.stored


def _all_of(runs: Sequence[Sequence[Expected]]) -> list[Expected]:
    """The blocks among them."""
    return [item for run in runs for item in run if item.id]


def _with_sight(wrong: Wrong, reader: Reader) -> Wrong:
    """What two looks in a row give: the same twice, or it is not known what stands there."""
    size = max(0, min(wrong.length, MAX_SEEN_BYTES, reader.size - wrong.offset))
    first, is_readable = _read(reader, wrong.offset, size)
    again, _ = _read(reader, wrong.offset, size)
    if not is_readable:
        return replace(wrong, sight=Sight.UNREADABLE)
    if first != again:
        return replace(wrong, seen=again, sight=Sight.UNKNOWN)
    is_absent = not any(first) or (wrong.part is Part.SEGMENT and wrong.offset > 0)
    return replace(wrong, seen=first, sight=Sight.ABSENT if is_absent else Sight.DIFFERS)


def _read(reader: Reader, offset: int, size: int) -> tuple[bytes, bool]:
    """A range and whether all of it can be read; zeros stand for the pages that cannot."""
    try:
        return bytes(reader.read_at(offset, size)), True
    except ReplicadError:
        return bytes(size), False


def _frames_fill(reader: Reader, at: int, end: int) -> bool:
    """Whether whole frames stand there, one behind the other."""
    while at < end:
        try:
            head = parse_frame(reader.read_at(at, min(end - at, MAX_FRAME_BYTES)), 0, at)
        except (FrameError, ReplicadError):
            return False
        at = head.end
    return at == end
