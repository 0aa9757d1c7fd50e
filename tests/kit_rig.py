"""A whole replication in one process: a real tree, ledger and store, and a link in memory that can be cut."""

from __future__ import annotations

import asyncio
import contextlib
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from kit_link import Pair
from kit_store import read_tree
from kit_tree import Described, describe_tree
from replicad.config import ClientConfig, DatasetConfig, ListenConfig
from replicad.db.findings import Findings
from replicad.link.channel import Channel, admit, greet
from replicad.link.messages import Lost, SnapshotLine
from replicad.model.entry import Kind, Put
from replicad.model.errors import ReplicadError
from replicad.model.retention import Rules
from replicad.status import DatasetStatus, RetentionStatus, StoreStatus
from replicad.store.format import plain_payload, split_frames
from replicad.system.clock import Clock
from replicad.system.disk import Disk
from replicad.system.tasks import Bulky, Task
from replicad.work.archive import Archive
from replicad.work.archive_reader import ArchiveReader
from replicad.work.dataset import Dataset
from replicad.work.replicate import Replication
from replicad.work.retain import Place, Retained, Retaining
from replicad.work.scout import Scout
from replicad.work.scouts import Scouts
from replicad.work.shelves import MakeMender, ScrubOf, Shelves
from replicad.work.suspect import EXAMINED

TYPES = {
    Kind.FILE: stat.S_IFREG,
    Kind.DIRECTORY: stat.S_IFDIR,
    Kind.SYMLINK: stat.S_IFLNK,
    Kind.FIFO: stat.S_IFIFO,
    Kind.CHARACTER_DEVICE: stat.S_IFCHR,
    Kind.BLOCK_DEVICE: stat.S_IFBLK,
    Kind.SOCKET: stat.S_IFSOCK,
}


class Replica:
    """The replica's side: shelves on a directory, reached by channels in memory."""

    def __init__(
        self,
        store: Path,
        disk: Disk | None = None,
        reserve_bytes: int = 0,
        make_mender: MakeMender | None = None,
        scrub_of: ScrubOf | None = None,
        quota_bytes: int = 0,
    ) -> None:
        self.store = store
        store.mkdir(exist_ok=True)
        self.allow(quota_bytes)
        self._shelves = Shelves(
            ListenConfig(store, reserve_bytes=reserve_bytes),
            lambda: self._clients,
            disk or Disk(),
            Clock(),
            make_mender=make_mender,
            scrub_of=scrub_of,
        )
        self._sessions: set[asyncio.Task[None]] = set()
        self.pairs: list[Pair] = []
        self.errors: list[ReplicadError] = []

    def allow(self, quota_bytes: int) -> None:
        """Give the primary another quota; 0 = none."""
        self._clients = [ClientConfig("ams1", "key", quota_bytes=quota_bytes)]

    @property
    def status(self) -> StoreStatus:
        """The store's line."""
        (line,) = self._shelves.statuses
        return line

    async def dial(self) -> Channel:
        """A greeted channel to this replica."""
        pair = Pair()
        self.pairs.append(pair)
        task = asyncio.create_task(self._host(pair))
        self._sessions.add(task)
        await greet(pair.client, "test")
        return pair.client

    def cut(self) -> None:
        """Cut every session there is."""
        for pair in self.pairs:
            pair.client_stream.cut()
        self.pairs.clear()

    async def retain(self, rules: Rules) -> Retained:
        """Let go what these rules do not keep, of snapshots that count as examined, and give its room back."""

        def in_store(work: Callable[[Archive, Findings], Any]) -> Awaitable[Any]:
            return self._shelves.in_store("ams1", "www", work)

        await in_store(lambda archive, findings: findings.put(EXAMINED, archive.head.number))
        place, status = Place("ams1", "www", self.archive), RetentionStatus("ams1", "www")
        with ThreadPoolExecutor(1) as pool:
            return await Retaining(place, in_store, lambda: rules, status, pool, Clock(), Disk(), asyncio.Lock()).run()

    async def close(self) -> None:
        """End all sessions and close the stores."""
        for task in self._sessions:
            task.cancel()
        await asyncio.gather(*self._sessions, return_exceptions=True)
        await self._shelves.close()

    @property
    def archive(self) -> Path:
        """The dataset's directory in the store."""
        return self.store / "ams1" / "www"

    async def _host(self, pair: Pair) -> None:
        try:
            await admit(pair.server, "test", "fra1")
            await self._shelves.serve(pair.server, "ams1")
        except ReplicadError as error:
            self.errors.append(error)
        finally:
            await pair.server.close()


class Here:
    """A scout without a process: a thread does its tasks, so that a test can put functions of its own in their way."""

    pid = None

    def __init__(self) -> None:
        self._tasks = Scout().tasks
        self._thread = ThreadPoolExecutor(1)

    async def call(self, task: Task[Any, Any], asked: object) -> Any:
        """Do it; everything goes through the encoding that a pipe would carry."""
        return (await self.call_for_bulk(task, asked))[0]

    async def call_for_bulk(self, task: Task[Any, Any], asked: object) -> Any:
        """Do it; its result and its bulk."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._do, task, asked)

    def post(self, task: Task[Any, Any], asked: object) -> None:
        """Do it some time."""
        self._thread.submit(self._do, task, asked)

    async def close(self) -> None:
        """Let the thread finish."""
        self._thread.shutdown()

    def _do(self, task: Task[Any, Any], asked: object) -> Any:
        encode = msgspec.msgpack.encode
        answer = self._tasks[task](task.asked.decode(encode(asked)))
        answer = answer if isinstance(answer, Bulky) else Bulky(answer, [])
        return task.answered.decode(encode(answer.result)), b"".join(answer.bulk)


class Rig:
    """One dataset "www" on its primary, and the means to run passes to replicas."""

    def __init__(
        self, directory: Path, root: Path, names: Sequence[str], scouts: Scouts | None = None, **options: object
    ) -> None:
        self.directory, self.root, self._names = directory, root, names
        self._config = replace(DatasetConfig("www", root, watch=False), **options)  # type: ignore[arg-type]
        self.pool = ThreadPoolExecutor(2)
        self.scouts = scouts or Scouts(Here)
        self.clock = Clock()
        self.status = {name: DatasetStatus("www", name) for name in names}
        self.jobs: dict[str, Replication] = {}
        self.dataset = Dataset(self._config, tuple(names), directory / "state")

    async def sync(self, replica: Replica, name: str = "fra1") -> DatasetStatus:
        """One full pass to a replica; its status afterwards. Raises what made the pass fail."""
        if name not in self.jobs:
            self.jobs[name] = Replication(
                self.dataset, name, lambda: replica.dial(), self.status[name], self.pool, self.scouts, self.clock
            )
        self.jobs[name].request()
        await self.jobs[name].step()
        return self.status[name]

    async def reopen(self) -> None:
        """What a restart of the primary's daemon does."""
        await self.close_jobs()
        await self.dataset.close()
        self.dataset = Dataset(self._config, tuple(self._names), self.directory / "state")

    async def close_jobs(self) -> None:
        """End the sessions with the replicas."""
        for job in self.jobs.values():
            await job.close()
        self.jobs.clear()

    async def close(self) -> None:
        """End everything."""
        await self.close_jobs()
        await self.dataset.close()
        await self.scouts.close()
        self.pool.shutdown()


@asynccontextmanager
async def rig(
    directory: Path, root: Path, names: Sequence[str] = ("fra1",), scouts: Scouts | None = None, **options: object
) -> AsyncIterator[Rig]:
    """A rig that is closed in the end."""
    made = Rig(directory, root, names, scouts, **options)
    try:
        yield made
    finally:
        await made.close()


@asynccontextmanager
async def replica(store: Path, disk: Disk | None = None, **options: object) -> AsyncIterator[Replica]:
    """A replica that is closed in the end."""
    made = Replica(store, disk, **options)  # type: ignore[arg-type]
    try:
        yield made
    finally:
        await made.close()


def copied(root: Path) -> dict[bytes, Described]:
    """The tree as a replica can hold it: hard links between files are kept, those between symlinks are not."""
    tree = describe_tree(root)
    for described in tree.values():
        if described["type"] != stat.S_IFREG:
            described.pop("same_as", None)
    return tree


def differences(there: dict[bytes, Described], here: dict[bytes, Described]) -> list[str]:
    """What two descriptions of a tree differ in, one readable line each; contents by the blocks that differ."""
    found = [f"{path!r} is only there" for path in there.keys() - here.keys()]
    found += [f"{path!r} is only here" for path in here.keys() - there.keys()]
    for path in there.keys() & here.keys():
        for key in there[path].keys() | here[path].keys():
            one, other = there[path].get(key), here[path].get(key)
            if isinstance(one, bytes) and isinstance(other, bytes) and one != other and key == "content":
                places = range(0, max(len(one), len(other)), 65536)
                blocks = [at // 65536 for at in places if one[at : at + 65536] != other[at : at + 65536]]
                found.append(f"{path!r}: blocks {blocks[:20]} of {len(one)} and {len(other)} bytes differ")
            elif one != other:
                found.append(f"{path!r}: {key} is {one!r:.80} there and {other!r:.80} here")
    return sorted(found)


def snapshots(archive: Path) -> list[SnapshotLine]:
    """All snapshots of a store directory."""
    with contextlib.closing(ArchiveReader(archive)) as reader:
        return reader.snapshots()


def describe_snapshot(archive: Path, number: int = 0) -> dict[bytes, Described]:
    """A snapshot (the last one by default) in the words of kit_tree.describe_tree, every block proven."""
    with contextlib.closing(ArchiveReader(archive)) as reader:
        number = number or reader.snapshots()[-1].number
        found: dict[bytes, Described] = {}
        files: dict[int, list[bytes]] = {}
        for path, (put, blocks) in read_tree(reader, number).items():
            found[path] = _describe(put)
            if put.kind is Kind.FILE:
                found[path]["content"] = _content(reader, put, blocks)
                files.setdefault(put.file, []).append(path)
        for paths in files.values():
            for path in paths if len(paths) > 1 else ():
                found[path]["same_as"] = min(paths)
        return found


def _describe(put: Put) -> Described:
    described: Described = {
        "type": TYPES[put.kind],
        "mode": put.meta.mode,
        "owner": (put.meta.uid, put.meta.gid),
        "mtime_ns": put.meta.mtime_ns,
        "xattrs": dict(put.meta.xattrs),
    }
    if put.kind is Kind.SYMLINK:
        described["target"] = put.target
    elif put.kind is Kind.FILE:
        described["size"] = put.size
    elif put.kind in (Kind.CHARACTER_DEVICE, Kind.BLOCK_DEVICE):
        described["device"] = put.device
    return described


def _content(reader: ArchiveReader, put: Put, blocks: dict[int, bytes]) -> bytes:
    content = bytearray(put.size)
    order = sorted(blocks)
    for at in range(0, len(order), 1024):
        wanted = order[at : at + 1024]
        plain: list[bytes] = []
        for answer in reader.fetch(b"".join(blocks[index] for index in wanted)):
            assert not isinstance(answer, Lost), f"a block of {put.path!r} is lost: {answer}"
            plain += [bytes(plain_payload(frame)) for frame in split_frames(answer)]
        for index, data in zip(wanted, plain, strict=True):
            content[index * put.block_bytes : index * put.block_bytes + len(data)] = data
    assert len(content) == put.size
    return bytes(content)
