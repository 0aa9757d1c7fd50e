"""Store: the directory of one client's dataset: who may open it, where frames go next, when there is no room.

    STORE/<client>/<dataset>/lock
                            /segments/00000001.seg …
                            /catalog.db, /findings.db  (db/catalog.py, db/findings.py)

Owns the lock, the order of segments, rolling over and the free-space reserve. Acknowledged means durable: `sync`
returns after fdatasync of all that was appended, and a new segment's name is synced before anything is in it.
Never deletes, and never appends to a segment that has damage in it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from replicad.model.block import Buffer
from replicad.model.errors import DiskFullError, PeerError, ReplicadError, UsageError
from replicad.model.position import Position
from replicad.model.show import show_bytes
from replicad.store.format import (
    HEADER_BYTES,
    MAX_SMALL_PLAIN,
    SEGMENT_BYTES,
    VERSION,
    FrameError,
    SegmentHeader,
    decode_segment_header,
    parse_frame,
)
from replicad.store.segments import Made, SegmentScan, SegmentWriter, Torn, foreign, segment_numbers, segment_path
from replicad.system.disk import Disk

NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
"""Names of clients and datasets become directory names: no separators, no dots in front, no surprises."""
_NAME = re.compile(NAME_PATTERN)
BOOKS = ("catalog.db", "findings.db")


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose store it is; every segment's header says so."""

    store: bytes
    """16 random bytes."""
    client: str
    dataset: str


def store_path(root: Path, client: str, dataset: str) -> Path:
    """Directory of one dataset below the replica's store directory. Raises PeerError for names that are none."""
    check_names(client, dataset)
    return root / client / dataset


def stores_in(root: Path) -> list[Path]:
    """Directories of all stores below the replica's store directory: CLIENT/DATASET, sorted."""
    return sorted(path.parent for path in root.glob("*/*/segments"))


def stores_named(root: Path, dataset: str) -> list[Path]:
    """Those of DATASET, whosever it is, or of CLIENT/DATASET; all of them for "". Raises UsageError for a name that
    nothing there has."""
    every = stores_in(root)
    wanted = [path for path in every if dataset in ("", path.name, f"{path.parent.name}/{path.name}")]
    if dataset and not wanted:
        names = ", ".join(f"{path.parent.name}/{path.name}" for path in every) or "nothing"
        raise UsageError(f"holds no dataset {dataset!r}", where=str(root), hint=f"there is {names}")
    return wanted


def check_names(client: str | None, dataset: str | None) -> None:
    """Raises PeerError when one of the names that are given may not become a directory name."""
    for what, name in (("client", client), ("dataset", dataset)):
        if name is not None and not _NAME.fullmatch(name):
            raise PeerError(f"{what} name {name[:80]!r} is not allowed", hint=f"names match {NAME_PATTERN}")


def stored_bytes(directory: Path) -> int:
    """Bytes of a store on the disk, segments and books, whoever writes to it meanwhile."""
    return segment_bytes(directory) + book_bytes(directory)


def segment_bytes(directory: Path) -> int:
    """Bytes of all segment files."""
    return sum(_size(segment_path(directory, number)) for number in segment_numbers(directory))


def book_bytes(directory: Path) -> int:
    """Bytes of the books beside them, and of their logs."""
    return sum(_size(directory / name) for book in BOOKS for name in (book, f"{book}-wal"))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # compacted away since it was listed, or not there yet
        return 0


class Store:
    """The segments of one dataset, to append to. The caller holds the lock; one thread at a time."""

    def __init__(
        self, directory: Path, owner: Owner, *, disk: Disk, reserve_bytes: int, clock_ns: Callable[[], int]
    ) -> None:
        self.directory, self.owner = directory, owner
        self._disk, self._reserve_bytes, self._clock_ns = disk, reserve_bytes, clock_ns
        self._writer: SegmentWriter | None = None
        self._made: list[Made] = []
        self._end = Position()

    @property
    def position(self) -> Position:
        """Behind the last frame appended."""
        return self._writer.position if self._writer else self._end

    def now_ns(self) -> int:
        """The wall clock by which pads are stamped."""
        return self._clock_ns()

    def scan(self, start: Position, *, last: bool, settled: Sequence[tuple[int, int]] = ()) -> SegmentScan:
        """Read one segment from `start` on, passing over what is `settled`. The caller closes the scan."""
        reader = self._disk.open_read(segment_path(self.directory, start.segment))
        return SegmentScan(reader, start, last=last, store=self.owner.store, settled=settled)

    def foreign(self, number: int) -> str:
        """Why the file of a segment is another one's, by its header; "" when it is its own or cannot say."""
        reader = self._disk.open_read(segment_path(self.directory, number))
        try:
            frame = parse_frame(reader.read_at(0, HEADER_BYTES + MAX_SMALL_PLAIN), 0)
            return foreign(decode_segment_header(frame), number, self.owner.store)
        except (FrameError, ReplicadError):
            return ""  # a damaged header: the frames behind it speak for themselves
        finally:
            reader.close()

    def cut(self, torn: Torn) -> None:
        """Remove the torn end of the last segment, durably."""
        self._disk.truncate(segment_path(self.directory, torn.segment), torn.offset)

    def secure(self, first: int) -> None:
        """Make what stands in the segments from `first` on durable, whoever wrote it."""
        for number in segment_numbers(self.directory):
            if number >= first:
                self._disk.sync_file(segment_path(self.directory, number))
        self._disk.sync_directory(self.directory / "segments")

    def resume(self, end: Position) -> None:
        """Appending goes on at `end`; at offset 0 with a new segment."""
        self.drop_writer()
        self._end = end

    def check_room(self, size: int) -> None:
        """Raises DiskFullError when `size` bytes would touch the reserve. The commit of what was recorded need not ask:
        refusing it would free nothing."""
        left = self.free_bytes() - size
        if left < 0:
            free, reserve = show_bytes(left + size + self._reserve_bytes), show_bytes(self._reserve_bytes)
            text = f"only {free} are free, of which {reserve} are the reserve"
            hint = "free or add space, or lower listen.reserve"
            raise DiskFullError(text, where=str(self.directory), hint=hint)

    def check_spare(self, size: int) -> None:
        """Raises DiskFullError when `size` bytes would take more than half of the reserve: what they are for gives back
        more than it takes, so a store that is full may go into its reserve for it."""
        if self.free_bytes() + self._reserve_bytes // 2 < size:
            text = f"no room for {size} bytes that would give back more"
            raise DiskFullError(text, where=str(self.directory), hint="free or add space")

    def append(self, data: Buffer, checksums: Iterable[bytes]) -> tuple[int, int]:
        """Add whole frames whose checksums are given; segment and offset of the first.

        Raises DiskFullError, ReplicadError; then nothing is known of what follows the last sync.
        """
        writer = self._writer_with_room()
        segment = writer.position.segment
        return segment, writer.append(data, checksums)

    def take_made(self) -> list[Made]:
        """Headers, pads and seals that were written since this was last asked."""
        made, self._made = self._made, []
        return made + (self._writer.take_made() if self._writer else [])

    def sync(self) -> int:
        """Make everything appended durable; the time in ns that the pad behind it bears."""
        now = self._clock_ns()
        writer = self._writer or self._writer_with_room()  # a full one gets its pad too; the next append rolls over
        writer.sync(now)
        return now

    def flush(self) -> None:
        """Hand everything appended to the system so that `scan` sees it; nothing when nothing waits."""
        if self._writer:
            self._writer.flush(self._clock_ns())

    def drop_writer(self) -> None:
        """Forget what was appended and not flushed; `resume` says where to go on."""
        self._made.clear()
        if self._writer:
            self._writer.close()
            self._writer = None

    def free_bytes(self) -> int:
        """Bytes that intake may still use before it reaches the reserve; negative below it."""
        return self._disk.free_bytes(self.directory) - self._reserve_bytes

    def _writer_with_room(self) -> SegmentWriter:
        writer = self._writer
        if writer is None:
            writer = self._writer = self._opened()
        if writer.position.offset >= SEGMENT_BYTES:
            previous = writer.seal(self._clock_ns())
            self._made += writer.take_made()
            writer.close()
            self._writer = None
            header = self._header(writer.position.segment + 1, previous)
            writer = self._writer = SegmentWriter.create(self._disk, self.directory, header)
        return writer

    def _opened(self) -> SegmentWriter:
        if self._end.offset and not self._is_there(self._end):
            self._end = Position(self._end.segment + 1)  # what was to be gone on with was lost meanwhile: damage, below
        header = self._header(self._end.segment, self._end.digest)
        if segment_path(self.directory, header.number).exists():
            return SegmentWriter.resume(self._disk, self.directory, self._end, header)
        return SegmentWriter.create(self._disk, self.directory, header)

    def _is_there(self, end: Position) -> bool:
        """Whether the segment that ends at `end` is still there, as long as it was, and is that segment."""
        try:
            size = segment_path(self.directory, end.segment).stat().st_size
            return size >= end.offset and not self.foreign(end.segment)
        except FileNotFoundError:
            return False

    def _header(self, number: int, previous: bytes) -> SegmentHeader:
        owner, now = self.owner, self._clock_ns()
        return SegmentHeader(VERSION, owner.store, number, owner.client, owner.dataset, now, previous)
