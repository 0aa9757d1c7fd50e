"""Kit for restores: a tree put straight into an archive, without a daemon, a ledger or a link.

`archive_tree` does in a few plain lines what source, replication and receipt do together: it lists a tree, cuts its
files, and hands blocks, records and a commit to an `Archive`.
"""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from kit_link import Pair
from replicad.link.channel import admit, greet
from replicad.link.messages import Lost, OpenRead, SnapshotLine
from replicad.model.block import block_id, block_size_for, is_zero
from replicad.model.entry import INLINE_BLOCKS, MAP_BLOCKS, SPARSE, Kind, Map, Meta, Op, Put, encode_ops
from replicad.model.errors import LinkError
from replicad.model.snapshot import Commit, Head, encode_commit, records_digest
from replicad.model.when import choose_snapshot
from replicad.source.meta import read_xattrs
from replicad.store.format import FrameType, encode_frame, encode_plain, split_frames
from replicad.system.compress import compress
from replicad.system.disk import Disk, Reader
from replicad.work.account import Account
from replicad.work.archive import Archive
from replicad.work.read_local import LocalReader
from replicad.work.read_remote import RemoteReader
from replicad.work.reader import Answer, split_ids
from replicad.work.restore import Restore
from replicad.work.serve import Serving

DATASET, CLIENT = "www", "ams1"
KINDS = {
    stat.S_IFREG: Kind.FILE,
    stat.S_IFDIR: Kind.DIRECTORY,
    stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFIFO: Kind.FIFO,
    stat.S_IFCHR: Kind.CHARACTER_DEVICE,
    stat.S_IFBLK: Kind.BLOCK_DEVICE,
    stat.S_IFSOCK: Kind.SOCKET,
}


def meta(mode: int = 0o644, mtime_ns: int = 1_600_000_000_123_456_789, **more: object) -> Meta:
    """Metadata of this process's own user."""
    return Meta(mode, os.geteuid(), os.getegid(), mtime_ns, **more)  # type: ignore[arg-type]


class Writer:
    """Puts snapshots into the archive at `directory` (created when missing)."""

    def __init__(self, directory: Path, *, level: int = 1) -> None:
        self.archive = Archive.open(directory, client=CLIENT, dataset=DATASET, create=True)
        self._level = level
        self._file = 1_000_000
        self._records: list[bytes] = []
        self._ops: list[Op] = []
        self.entries = self.size = 0

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *error: object) -> None:
        self.archive.close()

    def put(self, path: bytes, content: bytes | None = None, **fields: object) -> Put:
        """Add one entry by hand: a file with `content`, or what `fields` of a `Put` say (a directory by default)."""
        if content is None:
            values: dict[str, object] = {"kind": Kind.DIRECTORY, "meta": meta(0o755), **fields}
            op = Put(path, **values)  # type: ignore[arg-type]
            self.add(op)
            return op
        self._file += 1
        values = {"meta": meta(), "file": self._file, "block_bytes": 65536, **fields}
        op = Put(path, Kind.FILE, size=len(content), **values)  # type: ignore[arg-type]
        size = op.block_bytes
        self.file(op, (content[at : at + size] for at in range(0, len(content), size)))
        return op

    def file(self, put: Put, blocks: Iterable[bytes]) -> None:
        """Add a file with its blocks."""
        listed: list[tuple[int, bytes]] = []
        frames: list[bytes] = []
        waiting = 0
        for index, data in enumerate(blocks):
            if is_zero(data):
                continue
            name = block_id(data)
            listed.append((index, name))
            if any(self.archive.needed(name)):
                codec, stored = compress(data, self._level)
                frames.append(encode_frame(FrameType.BLOCK, data, name, stored, codec))
                waiting += len(data)
            if waiting > 1 << 20:
                self.archive.add_blocks(b"".join(frames))
                frames, waiting = [], 0
        if frames:
            self.archive.add_blocks(b"".join(frames))
        for op in _operations(put, listed):
            self.add(op)

    def add(self, op: Op) -> None:
        """Add an operation as it is."""
        self._ops.append(op)
        if isinstance(op, Put):
            self.entries += 1
            self.size += op.size
        if len(self._ops) >= 500:
            self._flush()

    def seal(self, number: int = 1, created_ns: int = 1_700_000_000_000_000_000, *, complete: bool = True) -> Head:
        """Make it a snapshot."""
        self._flush()
        commit = Commit(
            number, created_ns, complete, self.archive.head.digest, len(self._records), records_digest(self._records),
            self.entries, self.size,
        )  # fmt: skip
        head = self.archive.seal(encode_plain(FrameType.COMMIT, encode_commit(commit)))
        self._records.clear()
        return head

    def tree(self, root: Path) -> None:
        """Add everything below `root`."""
        inodes: dict[tuple[int, int], Put] = {}
        top = os.fsencode(root)
        self._entry(b"", os.stat(top), os.open(top, os.O_RDONLY), b".", inodes)
        for directory, directories, files, here in os.fwalk(top, follow_symlinks=False):
            prefix = directory[len(top) :].lstrip(b"/")
            directories.sort()
            for name in sorted(directories + files):
                path = b"/".join(part for part in (prefix, name) if part)
                self._entry(path, os.lstat(name, dir_fd=here), os.dup(here), name, inodes)

    def _entry(
        self, path: bytes, status: os.stat_result, here: int, name: bytes, inodes: dict[tuple[int, int], Put]
    ) -> None:
        kind = KINDS[stat.S_IFMT(status.st_mode)]
        xattrs, _, _ = read_xattrs(b"/proc/self/fd/%d/%s" % (here, name))
        described = Meta(stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, status.st_mtime_ns, xattrs)
        try:
            if kind is not Kind.FILE:
                target = os.readlink(name, dir_fd=here) if kind is Kind.SYMLINK else b""
                device = status.st_rdev if kind in (Kind.CHARACTER_DEVICE, Kind.BLOCK_DEVICE) else 0
                self.add(Put(path, kind, described, target=target, device=device))
                return
            twin = inodes.get((status.st_dev, status.st_ino))
            if twin:
                self.add(Put(path, kind, described, twin.size, twin.file, twin.block_bytes, twin.flags))
                return
            self._file += 1
            flags = SPARSE if status.st_blocks * 512 < status.st_size else 0
            put = Put(path, kind, described, status.st_size, self._file, block_size_for(status.st_size), flags)
            if status.st_nlink > 1:
                inodes[status.st_dev, status.st_ino] = put
            with open(os.open(name, os.O_RDONLY, dir_fd=here), "rb") as source:
                self.file(put, iter(lambda: source.read(put.block_bytes), b""))
        finally:
            os.close(here)

    def _flush(self) -> None:
        if self._ops:
            plain = encode_ops(self._ops)
            name = block_id(plain)
            codec, stored = compress(plain, 3)
            self.archive.add_record(encode_frame(FrameType.RECORD, plain, name, stored, codec))
            self._records.append(name)
            self._ops.clear()


def _operations(put: Put, listed: Sequence[tuple[int, bytes]]) -> Iterator[Op]:
    if len(listed) <= INLINE_BLOCKS:
        fields = {name: getattr(put, name) for name in put.__struct_fields__}
        yield Put(**{**fields, "blocks": tuple(i for i, _ in listed), "ids": b"".join(name for _, name in listed)})
        return
    yield put
    for at in range(0, len(listed), MAP_BLOCKS):
        some = listed[at : at + MAP_BLOCKS]
        yield Map(put.file, tuple(i for i, _ in some), b"".join(name for _, name in some))


def archive_tree(directory: Path, root: Path, number: int = 1) -> Head:
    """The tree `root` as snapshot `number` of the archive at `directory`, which must hold no other tree yet."""
    with Writer(directory) as writer:
        writer.tree(root)
        return writer.seal(number)


def differences(one: Path, other: Path) -> str:
    """What rsync would have to change to make `other` like `one`: an independent comparison of everything."""
    command = ["rsync", "-aHAXn", "--checksum", "--itemize-changes", "--delete", f"{one}/", f"{other}/"]
    done = subprocess.run(command, capture_output=True, check=False, text=True, errors="replace")
    return done.stdout + done.stderr


def damage_block(directory: Path, name: bytes) -> None:
    """Flip one bit of the stored payload of a block, behind the archive's back."""
    for segment in sorted((directory / "segments").iterdir()):
        data = segment.read_bytes()
        at = data.find(name)
        if at >= 0:
            position = at + len(name) + 10
            with open(segment, "r+b") as file:
                file.seek(position)
                file.write(bytes([data[position] ^ 1]))
            return
    raise AssertionError("the block is not in the store")


@asynccontextmanager
async def greeted_pair() -> AsyncIterator[Pair]:
    """A pair of channels in memory that have greeted each other."""
    pair = Pair()
    admitting = asyncio.create_task(admit(pair.server, "test", "fra1"))
    await greet(pair.client, "test")
    await admitting
    try:
        yield pair
    finally:
        await pair.close()


def store_files(directory: Path, contents: Sequence[bytes]) -> list[bytes]:
    """A store with one snapshot of a file of one block for each of these; the blocks' ids."""
    with Writer(directory) as writer:
        writer.put(b"")
        for number, content in enumerate(contents):
            writer.put(b"%d" % number, content)
        writer.seal()
    return [block_id(content) for content in contents]


class WatchedDisk(Disk):
    """Says of each piece of a segment that is read where it begins, in the thread that reads it, before it does."""

    def __init__(self, told: Callable[[int], object]) -> None:
        super().__init__()
        self._told = told

    def open_read(self, path: Path) -> Reader:
        """A file whose reads are told."""
        told = self._told

        class Watched(Reader):
            def read_at(self, offset: int, size: int) -> memoryview:
                told(offset)
                return super().read_at(offset, size)

        return Watched(path)


@asynccontextmanager
async def served_pair(directory: Path, disk: Disk | None = None) -> AsyncIterator[tuple[Pair, asyncio.Task[None]]]:
    """A greeted pair whose server serves one reading session on a store, and the task that does so."""

    async def serve(pair: Pair) -> None:
        assert isinstance(await pair.server.receive(), OpenRead)
        await Serving(pair.server, directory, disk).run()

    async with greeted_pair() as pair:
        serving = asyncio.create_task(serve(pair))
        try:
            yield pair, serving
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)


@asynccontextmanager
async def reading_pair(
    directory: Path, dataset: str = DATASET
) -> AsyncIterator[tuple[RemoteReader, Pair, asyncio.Task[None]]]:
    """A remote reader over a pair of channels in memory, the pair, and the task that serves the other end."""
    async with served_pair(directory) as (pair, serving):
        reader = await RemoteReader.open(pair.client, dataset)
        try:
            yield reader, pair, serving
        finally:
            await reader.close()


async def restore(directory: Path, target: Path, **options: object) -> Account:
    """Restore the last snapshot of the archive at `directory` in this process."""
    reader = await LocalReader.open(directory)
    try:
        line, _ = choose_snapshot(await reader.snapshots(), str(options.pop("when", "latest")))
        return await Restore(reader, line, target, dataset=DATASET, **options).run()  # type: ignore[arg-type]
    finally:
        await reader.close()


class ScriptedReader:
    """A reader that says what a test wants said, hostile or not; keeps an eye on how it is used."""

    def __init__(self, ops: Sequence[Op] = (), blocks: Iterable[bytes] = ()) -> None:
        self.name = "script"
        self.ops = list(ops)
        self.blocks = {block_id(data): data for data in blocks}
        self.sizes = {name: len(data) for name, data in self.blocks.items()}
        self.open = self.most_open = self.asked = self.most_bytes = 0
        self.fail_after = -1
        """Raise LinkError once this many blocks were given; never when negative."""
        self.wait_for_open = 0
        """Answer nothing before this many fetches are under way."""
        self._gate = asyncio.Event()
        self._bytes = 0

    def file(self, path: bytes, content: bytes, **fields: object) -> None:
        """Add a file and its blocks."""
        number = len(self.ops) + 1
        values: dict[str, object] = {"meta": meta(), "file": number, "block_bytes": 4096, **fields}
        size = int(values["block_bytes"])  # type: ignore[call-overload]
        pieces = [content[at : at + size] for at in range(0, len(content), size)]
        kept = [(index, data) for index, data in enumerate(pieces) if not is_zero(data)]
        self.blocks.update((block_id(data), data) for _, data in kept)
        self.sizes.update((block_id(data), len(data)) for _, data in kept)
        put = Put(path, Kind.FILE, size=len(content), **values)  # type: ignore[arg-type]
        self.ops.extend(_operations(put, [(index, block_id(data)) for index, data in kept]))

    def directory(self, path: bytes, **fields: object) -> None:
        """Add a directory."""
        self.ops.append(Put(path, **{"kind": Kind.DIRECTORY, "meta": meta(0o755), **fields}))  # type: ignore[arg-type]

    async def snapshots(self) -> list[SnapshotLine]:
        size = sum(op.size for op in self.ops if isinstance(op, Put))
        return [SnapshotLine(1, 1_700_000_000_000_000_000, 0, True, len(self.ops), size, 0, bytes(32))]

    async def record(self, snapshot: int, globs: Sequence[bytes] = ()) -> AsyncIterator[list[Op]]:
        for at in range(0, len(self.ops), 100):
            await asyncio.sleep(0)
            yield self.ops[at : at + 100]

    async def fetch(self, ids: bytes) -> AsyncIterator[list[Answer]]:
        names = split_ids(ids)
        wanted = sum(self.sizes.get(name, 0) for name in names)
        self.open += 1
        self._bytes += wanted
        self.most_open, self.most_bytes = max(self.most_open, self.open), max(self.most_bytes, self._bytes)
        try:
            if self.open >= self.wait_for_open:
                self._gate.set()
            await asyncio.wait_for(self._gate.wait(), 10)
            for name in names:
                if self.asked == self.fail_after:
                    raise LinkError("the line was cut", where=self.name)
                self.asked += 1
                yield [self.answer(name)]
        finally:
            self.open -= 1
            self._bytes -= wanted

    def answer(self, name: bytes) -> Answer:
        """The answer for one block."""
        if name not in self.blocks:
            return Lost(name, "gone")
        return split_frames(encode_frame(FrameType.BLOCK, self.blocks[name], name))[0]

    async def close(self) -> None:
        pass


async def restore_script(reader: ScriptedReader, target: Path, **options: object) -> Account:
    """Restore what a scripted reader says."""
    [line] = await reader.snapshots()
    return await Restore(reader, line, target, dataset=DATASET, **options).run()  # type: ignore[arg-type]
