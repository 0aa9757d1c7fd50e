"""Kit for stores: a disk that fails on demand, a primary that speaks to an archive, and a tree in a dict.

The fault model of `FaultyDisk`, written before the code that has to survive it: a write may be cut short (ENOSPC, EIO)
after any number of bytes; a sync may fail; a sector may be unreadable; and at a power cut every byte that was not
synced is, page by page, on the disk or not, and the file ends anywhere behind its synced part.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterable, Sequence
from pathlib import Path

from hypothesis import strategies as st

from replicad.link.messages import Lost
from replicad.model.block import Buffer, block_count, block_id
from replicad.model.entry import Drop, Kind, Map, Meta, Op, Put, encode_ops
from replicad.model.errors import ReplicadError
from replicad.model.position import Position
from replicad.model.snapshot import Commit, Head, encode_commit, records_digest
from replicad.store.format import FrameType, encode_frame, encode_plain, plain_payload, split_frames
from replicad.store.segments import Damage, SegmentScan, Torn, segment_path
from replicad.system.compress import compress
from replicad.system.disk import AlignedBuffer, Disk, Reader
from replicad.work.archive import Archive
from replicad.work.archive_reader import ArchiveReader

CLIENT, DATASET = "ams1", "www"
META = Meta(0o644, 1000, 1000, 1_700_000_000_123_456_789)
PAGE = 4096
Tree = dict[bytes, tuple[Put, dict[int, bytes]]]
"""Path to what it is and which blocks it has (index to id), the zero ones left out."""


class FaultyDisk(Disk):
    """A real disk until told otherwise."""

    def __init__(self) -> None:
        self.room: int | None = None
        """Bytes that may still be written; None = any number."""
        self.free: int | None = None
        """What `free_bytes` says; None = the truth."""
        self.fail_sync = False
        self.unreadable: set[tuple[str, int]] = set()
        """(file name, page number) that give EIO."""
        self._unsynced: dict[str, list[tuple[int, int]]] = {}
        self._synced_size: dict[str, int] = {}

    def pwrite(self, fd: int, data: Buffer, offset: int) -> int:
        if self.room is not None:
            if self.room < len(data):
                kept = self.room // PAGE * PAGE
                self.room = 0
                if kept:
                    return super().pwrite(fd, memoryview(data)[:kept], offset)
                raise OSError(errno.ENOSPC, "No space left on device")
            self.room -= len(data)
        path = os.readlink(f"/proc/self/fd/{fd}")
        self._synced_size.setdefault(path, os.fstat(fd).st_size)
        written = super().pwrite(fd, data, offset)
        self._unsynced.setdefault(path, []).append((offset, written))
        return written

    def sync(self, fd: int) -> None:
        if self.fail_sync:
            raise OSError(errno.EIO, "Input/output error")
        super().sync(fd)
        path = os.readlink(f"/proc/self/fd/{fd}")
        self._unsynced.pop(path, None)
        self._synced_size[path] = os.fstat(fd).st_size

    def free_bytes(self, path: Path) -> int:
        return super().free_bytes(path) if self.free is None else self.free

    def open_read(self, path: Path) -> Reader:
        return _FaultyReader(path, self.unreadable)

    def power_cut(self, seed: int) -> None:
        """Lose what was not synced, in a way that the seed chooses."""
        choose = random.Random(seed)
        for path, writes in self._unsynced.items():
            synced = self._synced_size[path]
            with open(path, "r+b") as file:
                for offset, size in writes:
                    for page in range(max(offset, synced), offset + size, PAGE):
                        if choose.random() < 0.3:
                            os.pwrite(file.fileno(), bytes(min(PAGE, offset + size - page)), page)
                end = os.fstat(file.fileno()).st_size
                if end > synced and choose.random() < 0.7:
                    os.ftruncate(file.fileno(), choose.randint(synced, end))
        self._unsynced.clear()


class _FaultyReader(Reader):
    def __init__(self, path: Path, unreadable: set[tuple[str, int]]) -> None:
        super().__init__(path)
        self._bad = {page for name, page in unreadable if name == path.name}

    def read_at(self, offset: int, size: int) -> memoryview:
        self._check(offset, size)
        return super().read_at(offset, size)

    def read_into(self, buffer: AlignedBuffer, start: int, offset: int, size: int) -> int:
        self._check(offset, size)
        return super().read_into(buffer, start, offset, size)

    def _check(self, offset: int, size: int) -> None:
        if any(offset // PAGE <= page <= (offset + size - 1) // PAGE for page in self._bad):
            raise ReplicadError("error while reading: Input/output error", where=str(self.path))


class Clock:
    """A wall clock that goes on by a second at each question."""

    def __init__(self) -> None:
        self.ns = 1_800_000_000_000_000_000

    def __call__(self) -> int:
        self.ns += 1_000_000_000
        return self.ns


def open_archive(directory: Path, disk: Disk | None = None, *, create: bool = True, reserve_bytes: int = 0) -> Archive:
    """The archive that all tests here use."""
    return Archive.open(
        directory,
        client=CLIENT,
        dataset=DATASET,
        disk=disk,
        clock_ns=Clock(),
        create=create,
        reserve_bytes=reserve_bytes,
    )


def kill(archive: Archive) -> None:
    """What kill -9 does: nothing is flushed, nothing is rolled back, the lock is gone."""
    archive._store.drop_writer()
    archive._files.close()
    archive._catalog.close()
    archive._lock.release()


def block(text: str | bytes, size: int = 0) -> bytes:
    """Some block's bytes, all its own."""
    data = text.encode() if isinstance(text, str) else text
    return data * max(1, -(-size // max(1, len(data))))


def block_frame(data: bytes, level: int = 0) -> bytes:
    """The frame of one block."""
    codec, stored = compress(data, level)
    return encode_frame(FrameType.BLOCK, data, block_id(data), stored, codec)


def file_put(path: bytes, file: int, blocks: dict[int, bytes], **fields: object) -> Put:
    """A file whose listed blocks have these ids."""
    numbers = tuple(sorted(blocks))
    size = fields.pop("size", (max(numbers, default=-1) + 1) * 8)
    ids = b"".join(blocks[number] for number in numbers)
    return Put(path, Kind.FILE, META, size, file, 8, 0, b"", 0, numbers, ids, **fields)  # type: ignore[arg-type]


def directory_put(path: bytes) -> Put:
    """A directory."""
    return Put(path, Kind.DIRECTORY, META)


class Primary:
    """The other side of a session, without a link: sends what it is told and counts what it may."""

    def __init__(self, archive: Archive) -> None:
        self.archive = archive
        self.records: list[bytes] = []

    def send(self, *blocks: bytes, level: int = 0) -> Sequence[bytes]:
        """Offer blocks and send those that are needed; their ids."""
        ids = [block_id(data) for data in blocks]
        bits = self.archive.needed(b"".join(ids))
        frames = [block_frame(data, level) for i, data in enumerate(blocks) if bits[i >> 3] >> (i & 7) & 1]
        self.archive.add_blocks(b"".join(frames))
        return ids

    def record(self, *ops: Op) -> None:
        """Send one record."""
        frame = record_frame(ops)
        self.archive.add_record(frame)
        self.records.append(split_frames(frame)[0].id)

    def commit_frame(self, number: int, *, parent: bytes | None = None, complete: bool = True) -> bytes:
        """The commit over what was recorded."""
        head = self.archive.head.digest if parent is None else parent
        digest = records_digest(self.records)
        commit = Commit(number, number * 1000, complete, head, len(self.records), digest, 0, 0)
        return encode_plain(FrameType.COMMIT, encode_commit(commit))

    def seal(self, number: int, *, complete: bool = True) -> Head:
        """Seal what was recorded."""
        head = self.archive.seal(self.commit_frame(number, complete=complete))
        self.records.clear()
        return head

    def abort(self) -> None:
        """End the session without a seal."""
        self.archive.abort()
        self.records.clear()


def record_frame(ops: Sequence[Op], level: int = 0) -> bytes:
    """The frame of one record."""
    plain = encode_ops(list(ops))
    codec, stored = compress(plain, level)
    return encode_frame(FrameType.RECORD, plain, block_id(plain), stored, codec)


def put_files(primary: Primary, number: int, contents: dict[bytes, bytes]) -> Head:
    """One snapshot that puts these files, each of one block, whose file numbers are taken from the snapshot's."""
    ids = primary.send(*contents.values())
    ops = [
        Put(path, Kind.FILE, META, len(data), number * 1000 + i, 65536, 0, b"", 0, (0,), name)
        for i, ((path, data), name) in enumerate(zip(contents.items(), ids, strict=True))
    ]
    primary.record(directory_put(b""), *ops)
    return primary.seal(number)


def read_tree(reader: ArchiveReader, snapshot: int, globs: Sequence[bytes] = ()) -> Tree:
    """A snapshot as a dict, in the order told."""
    tree: Tree = {}
    last: Put | None = None
    for batch in reader.record(snapshot, globs):
        for op in batch:
            assert not isinstance(op, Drop)
            if isinstance(op, Put):
                assert op.path not in tree, "a path is told twice"
                last = op
                tree[op.path] = (bare(op), {})
            assert last is not None and not (isinstance(op, Map) and op.file != last.file)
            tree[last.path][1].update(blocks_of(op))
    return tree


def trees(directory: Path) -> dict[int, Tree]:
    """All snapshots of a store."""
    reader = ArchiveReader(directory)
    try:
        return {line.number: read_tree(reader, line.number) for line in reader.snapshots()}
    finally:
        reader.close()


def contents(directory: Path, snapshot: int) -> dict[bytes, bytes | None]:
    """Path to bytes of the one-block files of a snapshot; None where the block is lost."""
    reader = ArchiveReader(directory)
    try:
        found: dict[bytes, bytes | None] = {}
        for path, (_, blocks) in read_tree(reader, snapshot).items():
            for name in blocks.values():
                found[path] = fetch_all(reader, [name])[0]
        return found
    finally:
        reader.close()


def fetch_all(reader: ArchiveReader, ids: Iterable[bytes]) -> list[bytes | None]:
    """Proven plain bytes of blocks, None where one is lost."""
    found: list[bytes | None] = []
    for answer in reader.fetch(b"".join(ids)):
        if isinstance(answer, Lost):
            assert answer.reason
            found.append(None)
        else:
            found += [bytes(plain_payload(frame)) for frame in split_frames(answer)]
    return found


def flip(path: Path, position: int, bit: int = 0) -> None:
    """Rot: one bit of a file."""
    with open(path, "r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 1 << bit]))


def verify_segment(directory: Path, number: int, disk: Disk, *, last: bool = False) -> list[Damage | Torn]:
    """Re-read a whole segment; everything in it that is not what was written, as far as it tells by itself."""
    reader = disk.open_read(segment_path(directory, number))
    try:
        scan = SegmentScan(reader, Position(number), last=last, store=None)
        return [found for found in scan if isinstance(found, Damage | Torn)]
    finally:
        reader.close()


def segment(directory: Path, number: int = 1) -> Path:
    """The file of a segment."""
    return segment_path(directory, number)


def bare(put: Put) -> Put:
    """A put without its blocks."""
    return Put(put.path, put.kind, put.meta, put.size, put.file, put.block_bytes, put.flags, put.target, put.device)


def blocks_of(op: Put | Map) -> dict[int, bytes]:
    """Block ids by number."""
    return {number: op.ids[i * 32 : i * 32 + 32] for i, number in enumerate(op.blocks)}


def order(path: bytes) -> list[bytes]:
    """Depth first, names as bytes."""
    return path.split(b"/") if path else []


class Model:
    """What a catalog should know, in two dicts."""

    def __init__(self) -> None:
        self.entries: dict[bytes, Put] = {}
        self.files: dict[int, dict[int, bytes]] = {}

    def apply(self, op: Op) -> None:
        """One operation, by the words of model/entry.py."""
        if isinstance(op, Drop):
            self.entries.pop(op.path, None)
            return
        if isinstance(op, Put):
            self.entries[op.path] = bare(op)
            if op.kind is not Kind.FILE:
                return
        blocks = self.files.setdefault(op.file, {})
        if isinstance(op, Put):
            end = block_count(op.size, op.block_bytes)
            for number in [number for number in blocks if number >= end]:
                del blocks[number]
        for first, count in op.zeros:
            for number in range(first, first + count):
                blocks.pop(number, None)
        blocks.update(blocks_of(op))

    def tree(self) -> Tree:
        """The snapshot."""
        found: Tree = {}
        for path in sorted(self.entries, key=order):
            put = self.entries[path]
            end = block_count(put.size, put.block_bytes) if put.kind is Kind.FILE else 0
            blocks = self.files.get(put.file, {})
            found[path] = put, {number: blocks[number] for number in sorted(blocks) if number < end}
        return found


names = st.sampled_from([b"a", b"a.b", b"b", b"\xff\n", b"zz"])
paths = st.lists(names, min_size=1, max_size=3).map(b"/".join)
numbers = st.integers(0, 9)
attributes = st.lists(st.tuples(st.just(b"user.x"), st.binary(max_size=5)), max_size=1).map(tuple)


@st.composite
def block_changes(draw: st.DrawFn, ids: Sequence[bytes]) -> tuple[tuple[int, ...], bytes, tuple[tuple[int, int], ...]]:
    """Listed blocks and runs of zeros that do not overlap."""
    listed = draw(st.sets(numbers, max_size=4))
    zeros = draw(st.sets(numbers, max_size=4)) - listed
    named = b"".join(draw(st.sampled_from(ids)) for _ in listed)
    return tuple(sorted(listed)), named, tuple((number, 1) for number in sorted(zeros))


@st.composite
def groups(draw: st.DrawFn, ids: Sequence[bytes]) -> list[Op]:
    """One change of one path: a drop, or a put and its maps, which name some of these blocks."""
    name = draw(paths)
    kind = draw(st.sampled_from(["drop", "file", "file", "file", "directory", "link", "device"]))
    if kind == "drop":
        return [Drop(name)]
    meta = Meta(draw(st.integers(0, 0o7777)), 1, 2, draw(st.integers(-1, 2**62)), draw(attributes))
    if kind == "directory":
        return [Put(draw(st.sampled_from([name, b""])), Kind.DIRECTORY, meta)]
    if kind == "link":
        return [Put(name, Kind.SYMLINK, meta, target=draw(paths))]
    if kind == "device":
        return [Put(name, Kind.BLOCK_DEVICE, meta, device=draw(st.integers(0, 2**64 - 1)))]
    file, flags = draw(st.integers(1, 4)), draw(st.integers(0, 3))
    put = Put(name, Kind.FILE, meta, draw(st.integers(0, 80)), file, 8, flags, b"", 0, *draw(block_changes(ids)))
    return [put, *(Map(file, *draw(block_changes(ids))) for _ in range(draw(st.integers(0, 2))))]
