"""Damage to a replica's store and to both books, of every kind, each with what a correct detection has to say of it.

    shelf = Shelf(pair.store / "ams1" / "www")
    fault = shelf.harm(Harm.MISDIRECTED, seed)
    assert not fault.expected.problems(documents)     # as `replicad divergence list --json` gives them

A store is plain files, so it is damaged as plain files. What stands where is read from the segments alone, never from
the catalog: the kit shares the format with the program, not its books. `harm` takes only frames that count (the last
one of a block, records that a commit claims), leaves a sound frame between two damages, and never hits the end of the
last segment, where a crash may have torn a write.
"""

from __future__ import annotations

import itertools
import os
import random
import struct
from collections.abc import Callable, Collection, Iterator, Sequence, Set
from contextlib import closing
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from pathlib import Path

import apsw

from kit_rot import CannotRot, Kind, decay
from replicad.db.database import Database
from replicad.model.divergence import MAX_BLOCKS_NAMED, Part, Side
from replicad.model.entry import Drop, Map, Put, decode_ops
from replicad.model.errors import BookDamagedError
from replicad.model.position import Position
from replicad.model.snapshot import decode_commit
from replicad.model.verdict import Verdict
from replicad.store.format import HEADER_BYTES, Frame, FrameType, plain_payload
from replicad.store.segments import SegmentScan, Torn, segment_numbers, segment_path
from replicad.system.disk import Disk
from replicad.work.archive_reader import ArchiveReader
from replicad.work.reader import split_ids

ID_BYTES = 32
NOT_FOUND = "not found"


class Harm(StrEnum):
    """What can happen to a store."""

    BIT = "block: single bit"
    BURST = "block: burst"
    ZERO = "block: zeroed sector"
    MISDIRECTED = "block: misdirected frame"
    STALE = "block: stale frame"
    FRAME_HEADER = "block: damaged frame header"
    RECORD = "damaged record"
    COMMIT = "damaged commit"
    HEADER = "damaged segment header"
    SEAL = "damaged seal"
    PAD = "damaged pad"
    GARBAGE = "appended garbage"
    TRUNCATED = "truncated segment"
    LOST = "lost segment"
    SWAPPED = "swapped segments"


OF_BLOCKS = (Harm.BIT, Harm.BURST, Harm.ZERO, Harm.MISDIRECTED, Harm.STALE, Harm.FRAME_HEADER)
OF_STRUCTURE = (Harm.RECORD, Harm.COMMIT, Harm.HEADER, Harm.SEAL, Harm.PAD, Harm.GARBAGE)
OF_SEGMENTS = (Harm.TRUNCATED, Harm.LOST, Harm.SWAPPED)

ROT = frozenset({Verdict.REPLICA_ROT})
GONE = frozenset({Verdict.REPLICA_ROT, Verdict.MISSING_ON_REPLICA})
"""Bytes that are not there at all may be called either."""
EXPECTED: dict[Harm, tuple[frozenset[Part], frozenset[Verdict]]] = {
    **{harm: (frozenset({Part.BLOCK}), ROT) for harm in OF_BLOCKS},
    Harm.RECORD: (frozenset({Part.RECORD}), ROT),
    Harm.COMMIT: (frozenset({Part.COMMIT}), ROT),
    Harm.HEADER: (frozenset({Part.STRUCTURE, Part.SEGMENT}), ROT),
    Harm.SEAL: (frozenset({Part.STRUCTURE}), ROT),
    Harm.PAD: (frozenset({Part.STRUCTURE}), ROT),
    Harm.GARBAGE: (frozenset({Part.STRUCTURE, Part.SEGMENT}), ROT),
    **{harm: (frozenset({Part.SEGMENT, Part.BLOCK}), GONE) for harm in OF_SEGMENTS},
}
"""Which parts and, once it is confirmed, which verdicts are right."""
BOOK_VERDICTS = frozenset({Verdict.REPLICA_ROT, Verdict.PRIMARY_ROT, Verdict.RECORD_ROT})


@dataclass(frozen=True)
class Expected:
    """What a correct detection says."""

    side: Side
    parts: frozenset[Part]
    verdicts: frozenset[Verdict]
    path: str = ""
    """The damaged file: of the dataset, or the name of a segment or book."""
    number: int = 0
    """The segment; 0 where none is meant."""
    offset: int = 0
    length: int = 0
    """The damaged bytes in it; length 0 = all of it."""
    blocks: frozenset[bytes] = frozenset()
    """Ids that must be named."""
    also: tuple[int, ...] = ()
    """More segments that may be named for it."""

    def is_found_by(self, document: dict[str, object]) -> bool:
        """Whether this divergence is about this damage, right or wrong in its judgement."""
        if document["side"] != self.side.value:
            return False
        if Part.BOOK in self.parts:
            return str(document["key"]).startswith("book:") and str(document["path"]).endswith(self.path)
        if self.number and document["part"] != Part.ENTRY.value:
            if document["number"] in (self.number, *self.also):
                return not self.length or _overlap(document, self.offset, self.length)
            return bool(self.blocks & _blocks(document))
        return self.path in paths_of(document) and _overlap(document, self.offset, self.length or 1)

    def problems(self, documents: Sequence[dict[str, object]]) -> list[str]:
        """What is wrong or missing in what was found; empty when the damage is classified correctly.

        A finding about a whole segment names MAX_BLOCKS_NAMED blocks of more. Of the others those that stay missing are
        findings of their own; those that a file kept aside gave back are none, and restores look at them.
        """
        mine = [document for document in documents if self.is_found_by(document)]
        if not mine:
            return [NOT_FOUND]
        right = [d for d in mine if d["part"] in self.parts and d["verdict"] in self.verdicts]
        if not right:
            return [f"called {document['part']} {document['verdict']}" for document in mine]
        if any(d["part"] == Part.SEGMENT.value and len(_blocks(d)) == MAX_BLOCKS_NAMED for d in right):
            return []
        named = frozenset[bytes]().union(*(_blocks(document) | _blocks(document, "mended") for document in mine))
        missing = self.blocks - named
        return [f"{len(missing)} damaged blocks are not named"] if missing else []


def paths_of(document: dict[str, object]) -> set[str]:
    """All paths that a divergence names."""
    affected = document["affected"]
    assert isinstance(affected, (list, tuple))
    return {str(document["path"]), *(one["path"] for one in affected)}


def _blocks(document: dict[str, object], what: str = "blocks") -> frozenset[bytes]:
    blocks = document[what]
    assert isinstance(blocks, (list, tuple))
    return frozenset(map(bytes.fromhex, blocks))


def _overlap(document: dict[str, object], offset: int, length: int) -> bool:
    start, size = document["offset"], document["length"]
    assert isinstance(start, int) and isinstance(size, int)
    return not size or (start < offset + length and offset < start + size)


@dataclass(frozen=True)
class Fault:
    """One damage that was done."""

    kind: str
    expected: Expected
    what: str
    """In one line, to find it again."""
    undo: Callable[[], object] = field(default=lambda: None, compare=False)
    """Puts the bytes back as they were."""


@dataclass(frozen=True, slots=True)
class Place:
    """A frame of a segment."""

    type: FrameType
    segment: int
    offset: int
    stored: int
    id: bytes

    @property
    def end(self) -> int:
        """Behind it."""
        return self.offset + HEADER_BYTES + self.stored


@dataclass
class Shelf:
    """The store of one dataset, as its segments tell it."""

    directory: Path
    touched: set[tuple[int, int]] = field(default_factory=set)
    """(segment, index) of frames that are damaged, or stand beside one that is."""

    def __post_init__(self) -> None:
        self.survey()

    def survey(self) -> None:
        """Read all segments anew; what was damaged before is forgotten."""
        self.touched.clear()
        self.frames: dict[int, list[Place]] = {}
        self.current: dict[bytes, Place] = {}
        """The frame that counts for a block: the last one."""
        self.versions: dict[tuple[int, int], list[bytes]] = {}
        """Ids that a block of a file has had, oldest first."""
        self.claimed: list[Place] = []
        """Records that belong to a snapshot."""
        self._waiting: list[tuple[Place, bytes]] = []
        numbers = segment_numbers(self.directory)
        self.sealed = numbers[:-1]
        for number in numbers:
            reader = Disk().open_read(segment_path(self.directory, number))
            scan = SegmentScan(reader, Position(number), last=number == numbers[-1], store=None)
            try:
                self._list(number, scan)
            finally:
                scan.close()

    def harm(self, kind: Harm, seed: int, *, among: Collection[bytes] | None = None) -> Fault:
        """Damage something; block damage hits one of the blocks `among` (default: any). Raises CannotRot."""
        choose = random.Random(seed)
        if kind in OF_BLOCKS:
            return self._harm_block(kind, choose, among)
        if kind is Harm.GARBAGE:
            return self._append_garbage(choose)
        if kind in OF_SEGMENTS:
            return self._harm_segment(kind, choose)
        return self._harm_frame(kind, choose)

    # blocks

    def _harm_block(self, kind: Harm, choose: random.Random, among: Collection[bytes] | None) -> Fault:
        wanted = [place for name, place in self.current.items() if among is None or name in among]
        victim, after = self._victim(kind, wanted, choose)
        if kind is Harm.FRAME_HEADER:
            first, before = victim.offset, self._read(victim.segment, victim.offset, HEADER_BYTES)
            after = decay(before, choose.randrange(HEADER_BYTES), Kind.BIT, choose.randrange(2**32))
        elif kind in (Harm.MISDIRECTED, Harm.STALE):
            first = victim.offset
            if after == self._read(victim.segment, first, len(after)):
                raise CannotRot(f"{kind}: the other frame was overwritten with this one before")
        else:
            at = choose.randrange(victim.offset + HEADER_BYTES, victim.end)
            first, after = self._decayed(victim, at, kind, choose)
        undo = self._write(victim.segment, first, after)
        return self._fault(kind, victim, undo, frozenset({victim.id}))

    def _victim(self, kind: Harm, wanted: list[Place], choose: random.Random) -> tuple[Place, bytes]:
        """A frame to damage, and the frame to put over it where one is needed."""
        if kind is Harm.STALE:
            return self._superseded({place.id for place in wanted}, choose)
        by_size: dict[int, list[Place]] = {}
        if kind is Harm.MISDIRECTED:
            for place in self.current.values():
                by_size.setdefault(place.stored, []).append(place)
        for place in choose.sample(wanted, len(wanted)):
            others = [one for one in by_size.get(place.stored, []) if one.id != place.id]
            if (kind is not Harm.MISDIRECTED or others) and self._reserve(place):
                other = choose.choice(others) if others else place
                return place, self._read(other.segment, other.offset, other.end - other.offset)
        raise CannotRot(f"{kind}: no frame is left that could be damaged so")

    def _superseded(self, wanted: set[bytes], choose: random.Random) -> tuple[Place, bytes]:
        """A block's frame, and the frame of what the same block of the same file was before."""
        pairs = [
            (self.current[new], self.current[old])
            for ids in self.versions.values()
            for old, new in itertools.pairwise(ids)
            if new in wanted and old in self.current and old != new
        ]
        for new, old in choose.sample(pairs, len(pairs)):
            if new.stored == old.stored and self._reserve(new):
                return new, self._read(old.segment, old.offset, old.end - old.offset)
        raise CannotRot("stale: no block was written anew with a frame of the same size")

    def _decayed(self, victim: Place, at: int, kind: Harm, choose: random.Random) -> tuple[int, bytes]:
        """Bytes of the frame's payload after an accident at `at`, and where they stand."""
        start, end = victim.offset + HEADER_BYTES, victim.end
        before = self._read(victim.segment, start, end - start)
        if (
            kind is Harm.ZERO
        ):  # sectors are counted from the start of the file, and a frame may share its first and last
            first, last = max(start, at - at % 512), min(end, at - at % 512 + 512)
            after = before[: first - start] + bytes(last - first) + before[last - start :]
            if after == before:
                raise CannotRot("zeroed sector: it was all zeros before")
            return start, after
        return start, decay(before, at - start, Kind.BIT if kind is Harm.BIT else Kind.BURST, choose.randrange(2**32))

    # other frames

    def _harm_frame(self, kind: Harm, choose: random.Random) -> Fault:
        places = self._frames_for(kind)
        for place in choose.sample(places, len(places)):
            if self._reserve(place):
                before = self._read(place.segment, place.offset, place.end - place.offset)
                at = choose.randrange(len(before))
                after = decay(before, at, Kind.BIT, choose.randrange(2**32))
                return self._fault(kind, place, self._write(place.segment, place.offset, after))
        raise CannotRot(f"{kind}: there is no such frame left")

    def _frames_for(self, kind: Harm) -> list[Place]:
        if kind is Harm.RECORD:
            return self.claimed
        wanted = {
            Harm.COMMIT: FrameType.COMMIT,
            Harm.HEADER: FrameType.HEADER,
            Harm.SEAL: FrameType.SEAL,
            Harm.PAD: FrameType.PAD,
        }[kind]
        segments = self.sealed if kind in (Harm.HEADER, Harm.SEAL) else list(self.frames)
        return [place for number in segments for place in self.frames[number] if place.type == wanted]

    def _append_garbage(self, choose: random.Random) -> Fault:
        number = self._segment(choose)
        path = segment_path(self.directory, number)
        size, garbage = path.stat().st_size, choose.randbytes(choose.choice([1, 512, 4096, 50_000]))
        with path.open("ab") as file:
            file.write(garbage)
            file.flush()
            os.fsync(file.fileno())
        expected = self._expected(Harm.GARBAGE, number, size, len(garbage))
        return Fault(Harm.GARBAGE, expected, f"{path.name} at {size}", partial(os.truncate, path, size))

    # segments

    def _harm_segment(self, kind: Harm, choose: random.Random) -> Fault:
        number = self._segment(choose)
        path = segment_path(self.directory, number)
        frames, also, offset = self.frames[number], (), 0
        undo: Callable[[], object]
        if kind is Harm.TRUNCATED:
            frames = frames[choose.randrange(1, len(frames)) :]
            offset = frames[0].offset
            undo = _cut(path, offset + choose.randrange(frames[0].end - offset))
        elif kind is Harm.LOST:
            undo = partial(path.write_bytes, path.read_bytes())
            path.unlink()
        else:
            other = self._segment(choose)
            frames, also = frames + self.frames[other], (other,)
            undo = partial(_swap, path, segment_path(self.directory, other))
            undo()
        named = frozenset(place.id for place in frames if self.current.get(place.id) == place)
        expected = self._expected(kind, number, offset, 0, named, also)
        return Fault(kind, expected, f"{path.name} {also or ''} from {offset}", undo)

    def _segment(self, choose: random.Random) -> int:
        """A sealed segment in which nothing is damaged yet; nothing else will be."""
        taken = {number for number, _ in self.touched}
        free = [number for number in self.sealed if number not in taken and number in self.frames]
        if not free:
            raise CannotRot("no sealed segment is left untouched")
        number = choose.choice(free)
        self.touched.update((number, index) for index in range(len(self.frames[number])))
        return number

    # below: how

    def _list(self, number: int, scan: SegmentScan) -> None:
        places = self.frames.setdefault(number, [])
        for found in scan:
            if isinstance(found, Frame):
                place = Place(FrameType(found.type), number, found.offset, found.stored, found.id)
                places.append(place)
                self._take(place, found)
            elif not isinstance(found, Torn):
                places.append(Place(FrameType.PAD, number, found.offset, max(0, found.length - HEADER_BYTES), b""))
                self.touched.update((number, len(places) + by) for by in (-2, -1, 0))

    def _take(self, place: Place, found: Frame) -> None:
        if place.type == FrameType.BLOCK:
            self.current[place.id] = place
        elif place.type == FrameType.RECORD:
            self._waiting.append((place, bytes(plain_payload(found))))
        elif place.type == FrameType.COMMIT:
            count = decode_commit(bytes(plain_payload(found))).records
            for record, plain in self._waiting[len(self._waiting) - count :]:
                self.claimed.append(record)
                self._apply(plain)
            self._waiting.clear()

    def _apply(self, plain: bytes) -> None:
        for op in decode_ops(plain):
            if not isinstance(op, Drop):
                for at, block in enumerate(op.blocks):
                    ids = self.versions.setdefault((op.file, block), [])
                    ids.append(op.ids[at * ID_BYTES : (at + 1) * ID_BYTES])

    def _reserve(self, place: Place) -> bool:
        """Take a frame, unless it is damaged already, stands beside damage, or at the very end of the store."""
        places = self.frames[place.segment]
        index = _index(places, place.offset)
        is_open = place.segment not in self.sealed
        if (place.segment, index) in self.touched or (is_open and index >= len(places) - 3):
            return False
        self.touched.update((place.segment, index + by) for by in (-1, 0, 1))
        return True

    def _fault(
        self, kind: Harm, place: Place, undo: Callable[[], None], blocks: frozenset[bytes] = frozenset()
    ) -> Fault:
        size = place.end - place.offset
        expected = self._expected(kind, place.segment, place.offset, size, blocks)
        return Fault(kind, expected, f"{expected.path} at {place.offset}, {size} bytes", undo)

    def _expected(
        self,
        kind: Harm,
        number: int,
        offset: int,
        length: int,
        blocks: frozenset[bytes] = frozenset(),
        also: tuple[int, ...] = (),
    ) -> Expected:
        parts, verdicts = EXPECTED[kind]
        name = f"segments/{segment_path(self.directory, number).name}"
        return Expected(Side.REPLICA, parts, verdicts, name, number, offset, length, blocks, also)

    def _read(self, segment: int, offset: int, size: int) -> bytes:
        path = segment_path(self.directory, segment)
        if not path.exists():
            raise CannotRot(f"segment {segment} is lost already")
        with path.open("rb") as file:
            return os.pread(file.fileno(), size, offset)

    def _write(self, segment: int, offset: int, data: bytes) -> Callable[[], None]:
        """Change bytes of a segment; what changes them back."""
        before = self._read(segment, offset, len(data))
        _overwrite(segment_path(self.directory, segment), offset, data)
        return partial(_overwrite, segment_path(self.directory, segment), offset, before)


def _overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b", buffering=0) as file:
        os.pwrite(file.fileno(), data, offset)
        os.fsync(file.fileno())


def _cut(path: Path, size: int) -> Callable[[], None]:
    tail = path.read_bytes()[size:]
    os.truncate(path, size)
    return partial(_overwrite, path, size, tail)


def _swap(left: Path, right: Path) -> None:
    between = left.with_suffix(".swap")
    left.rename(between)
    right.rename(left)
    between.rename(right)


def _index(places: list[Place], offset: int) -> int:
    low, high = 0, len(places)
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if places[middle].offset < offset else (low, middle)
    return low


# ------------------------------------------------------------------------------------------------------------- books


def harm_book(path: Path, side: Side, seed: int) -> Fault:
    """Flip one bit in a page of a book (ledger or catalog) that is in use. Its daemon must have been stopped, so that
    no page waits in a log or a cache. Raises CannotRot."""
    log = path.with_name(f"{path.name}-wal")
    if log.exists() and log.stat().st_size:
        raise CannotRot(f"{path} has a log: its daemon runs, or did not end well")
    choose, size = random.Random(seed), path.stat().st_size
    with path.open("r+b", buffering=0) as file:
        (page_bytes,) = struct.unpack(">H", os.pread(file.fileno(), 2, 16))
        for _ in range(200):
            page = choose.randrange(1, max(2, size // page_bytes))
            at = page * page_bytes + choose.randrange(page_bytes)
            (before,) = os.pread(file.fileno(), 1, at)
            os.pwrite(file.fileno(), bytes([before ^ 1 << choose.randrange(8)]), at)
            os.fsync(file.fileno())
            if book_problems(path):
                expected = Expected(side, frozenset({Part.BOOK}), BOOK_VERDICTS, path.name)
                what = f"{path.name} page {page + 1}, byte {at}"
                return Fault(f"{_book(side)} page", expected, what, partial(_overwrite, path, at, bytes([before])))
            os.pwrite(file.fileno(), bytes([before]), at)  # a free page: nobody will ever read it
    raise CannotRot(f"{path}: no page of it is in use")


def write_back(path: Path) -> None:
    """Bring what a book's log holds into the book, as the next start of its daemon would: whoever reads a book while
    its daemon stops closes it last, and may not write."""
    Database(path, [""] * _version(path)).close()


def _version(path: Path) -> int:
    with path.open("rb") as file:
        file.seek(60)
        return int.from_bytes(file.read(4), "big")


def book_problems(path: Path) -> list[str]:
    """What is wrong with a book that nobody has open, by its own checksums."""
    try:
        book = Database(path, [""] * _version(path), readonly=True)
    except BookDamagedError as error:
        return [str(error)]
    try:
        return book.verify()
    finally:
        book.close()
        for suffix in ("-wal", "-shm"):  # a reader leaves them behind
            path.with_name(path.name + suffix).unlink(missing_ok=True)


def _book(side: Side) -> str:
    return "ledger" if side is Side.PRIMARY else "catalog"


def live_blocks(shelf: Path) -> dict[bytes, str]:
    """Ids of the blocks that the newest snapshot shows, each with one of its paths, as the catalog has it."""
    connection = apsw.Connection(str(shelf / "catalog.db"), flags=apsw.SQLITE_OPEN_READONLY)
    connection.set_busy_timeout(60_000)  # its daemon may have been killed, and be recovering it
    try:
        rows = connection.execute(
            "SELECT b.id, e.name FROM entry e JOIN file_block b ON b.file = e.file"
            " WHERE e.died IS NULL AND b.died IS NULL AND e.file > 0"
            " AND b.number * e.block_bytes < e.size"
        ).fetchall()
    finally:
        connection.close()
    return {bytes(name): os.fsdecode(entry) for name, entry in rows}


def blocks_of(shelf: Path, snapshot: int, path: str) -> set[bytes]:
    """Ids of a file's blocks in a snapshot, as the catalog has it."""
    return {block for shown, blocks in _shown(shelf, snapshot) if shown == path for block in blocks}


def paths_with(shelf: Path, snapshot: int, blocks: Set[bytes]) -> set[str]:
    """Paths that show one of these blocks in a snapshot, as the catalog has it."""
    return {path for path, ids in _shown(shelf, snapshot) if not blocks.isdisjoint(ids)}


def _shown(shelf: Path, snapshot: int) -> Iterator[tuple[str, list[bytes]]]:
    """Paths of a snapshot with ids of their blocks; a path comes several times where it has many."""
    with closing(ArchiveReader(shelf)) as reader:
        path = b""
        for op in (op for ops in reader.record(snapshot) for op in ops):
            path = op.path if isinstance(op, Put) else path
            if isinstance(op, Put | Map):
                yield os.fsdecode(path), split_ids(op.ids)
