"""Shelves: the stores that a replica node keeps, one archive for each client and dataset, and who may use which.

**Owns** the open archives and the thread that each belongs to. One session writes an archive at a time; when a
client opens a second one its first is ended, because a client that dials again has lost the first, whatever the
connection still looks like from here. Readers have their own connection and disturb nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

from replicad.config import ClientConfig, ListenConfig
from replicad.db.findings import Findings
from replicad.link.channel import Channel, asked
from replicad.link.messages import OpenRead, OpenTend, OpenWrite, Refuse
from replicad.model.divergence import Divergence, Side, State
from replicad.model.errors import (
    BookDamagedError,
    DiskFullError,
    LockedError,
    PeerError,
    RefusedError,
    ReplicadError,
)
from replicad.model.remedy import Remedy, remedy_of
from replicad.model.retention import Rules
from replicad.model.show import counted
from replicad.status import StoreStatus
from replicad.store.store import store_path, stores_in
from replicad.system.clock import Clock
from replicad.system.disk import Disk
from replicad.system.logs import logger
from replicad.work import mend_store
from replicad.work.archive import Archive, catalog_path
from replicad.work.archive_reader import ArchiveReader
from replicad.work.book_damage import damaged, findings_of, note_at
from replicad.work.breaker import close_breaker
from replicad.work.mended import PLANS, Mended
from replicad.work.quarantine import Quarantine
from replicad.work.quota import Allowance, Quotas
from replicad.work.receive import Receiving
from replicad.work.rescue_kit import leave_rescue_kit
from replicad.work.scrub_replica import ReplicaSurface
from replicad.work.serve import Serving
from replicad.work.store_findings import StoreFindings
from replicad.work.tended import LocalScrub, StoreMender, Tended
from replicad.work.witness import Witness

log = logger("work.shelves")

MAX_UNNAMED = 100
"""Stores that a client may make whose datasets the configuration does not name: each costs a thread and open files,
and a stolen key must not be able to take them all."""

LOCK_LOOK_S, LOCK_LOOKS = 0.1, 100
"""How often a start looks whether a store is free that somebody has: a restore that reads it without a daemon catches
its catalog up first, in a moment; whoever has it for longer than these ten seconds is at work there."""

AUTHORIZE = "on the replica: replicad authorize LINE, with --dataset for each one that it may have"

Result = TypeVar("Result")
Key = tuple[str, str]


class OpenStore(NamedTuple):
    """One open store, as whoever mends or scrubs it is handed it. Archive and findings belong to the executor."""

    client: str
    dataset: str
    directory: Path
    archive: Archive
    findings: Findings
    executor: ThreadPoolExecutor


MakeMender = Callable[[OpenStore], StoreMender]
ScrubOf = Callable[[str, str], LocalScrub | None]
"""The scrub of a client's dataset, None while there is none."""


@dataclass(slots=True)
class _Shelf:
    """One archive and the thread it belongs to."""

    status: StoreStatus
    executor: ThreadPoolExecutor
    archive: Archive | None = None
    is_open: bool = False
    """Whether the archive is open, and has been told what its findings say of it, as far as they can be read."""
    findings: Findings | None = None
    writer: asyncio.Task[None] | None = None
    mender: StoreMender | None = None
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by the writer."""
    mending: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while a finding is settled."""
    surface: ReplicaSurface | None = None


class Shelves:
    """All stores of a node."""

    def __init__(
        self,
        config: ListenConfig,
        clients: Callable[[], Sequence[ClientConfig]],
        disk: Disk,
        clock: Clock,
        *,
        appeared: Callable[[str, str], None] = lambda client, dataset: None,
        make_mender: MakeMender | None = None,
        scrub_of: ScrubOf | None = None,
        rules_of: Callable[[str], Rules] = lambda client: Rules(),
    ) -> None:
        """`appeared` is called once for each store that there is, or comes to be, before it is opened. Without
        `scrub_of` tending sessions can start no scrub; `rules_of` a client, its snapshots stay by; `make_mender` is for
        tests."""
        self._rules_of = rules_of
        self._appeared, self._make_mender, self._scrub_of = appeared, make_mender or self._real_mender, scrub_of
        self._config, self._clients, self._disk, self._clock = config, clients, disk, clock
        self._quotas = Quotas(clients)
        self._shelves: dict[Key, _Shelf] = {}
        self._opening = asyncio.Lock()
        self._is_closed = False

    @property
    def statuses(self) -> list[StoreStatus]:
        """One for each store, by name."""
        lines = [self._shelves[key].status for key in sorted(self._shelves)]
        for line in lines:
            line.quota_bytes = self._quotas.of(line.client)
        return lines

    def adjust(self, config: ListenConfig) -> None:
        """Go by this configuration from now on; nothing that is open needs to be opened anew for it."""
        self._config = config
        for shelf in self._shelves.values():
            shelf.mender = None  # the next one goes by the new configuration

    async def surface(self, client: str, dataset: str) -> ReplicaSurface:
        """What a scrub of a store that has appeared works on; the store is opened if need be. Raises ReplicadError when
        it, or its findings book, cannot be."""
        shelf = await self._open((client, dataset))
        surface = shelf.surface or await self._surface_again(shelf, (client, dataset))
        if surface is None:
            raise ReplicadError(shelf.status.reason or "its findings cannot be kept", where=f"{client}/{dataset}")
        return surface

    async def _surface_again(self, shelf: _Shelf, key: Key) -> ReplicaSurface | None:
        """Somebody may have mended the findings book meanwhile."""
        await _in_thread(shelf, partial(self._open_findings, shelf, key))
        if shelf.surface and shelf.status.state == "idle":
            shelf.status.reason = ""
        return shelf.surface

    async def in_findings(self, client: str, dataset: str, work: Callable[[Findings], Result]) -> Result:
        """Run `work` on the findings book of a store that has appeared, in the store's thread. The store itself need
        not be one that can be opened. Raises ReplicadError when the book cannot be."""
        key = client, dataset
        shelf = self._shelves.get(key)
        if shelf is None:
            raise self._closed(key)
        return await _in_thread(shelf, partial(self._with_findings, shelf, key, work))

    async def in_store(self, client: str, dataset: str, work: Callable[[Archive, Findings], Result]) -> Result:
        """Run `work` on the archive and the findings of a store that has appeared, in its thread. Raises ReplicadError
        when one of them cannot be opened."""
        opened = await self._opened(await self._open((client, dataset)), (client, dataset))
        if self._is_closed:
            raise self._closed((client, dataset))
        return await asyncio.get_running_loop().run_in_executor(
            opened.executor, lambda: work(opened.archive, opened.findings)
        )

    def _with_findings(self, shelf: _Shelf, key: Key, work: Callable[[Findings], Result]) -> Result:
        shelf.findings = shelf.findings or Findings(findings_of(self._directory(key)))
        return work(shelf.findings)

    async def open_all(self) -> None:
        """Open what is there, so that damage is found and shown now and not at the first session.

        A store that cannot be opened is shown as what it is, and tried again by the next session; the others work.
        Raises LockedError: another daemon is here, or somebody works on a store for longer than a moment.
        """
        for directory in stores_in(self._config.store):
            key = (directory.parent.name, directory.name)
            try:
                await self._open(key, LOCK_LOOKS)
            except LockedError:
                raise
            except ReplicadError as error:  # it stands in the status
                log.error("a store cannot be opened", store=f"{key[0]}/{key[1]}", reason=str(error))

    async def close(self) -> None:
        """Close all archives; their sessions must have ended. Whoever works on one by order of a person meets an error
        at his next step: a store that was opened anew would stay locked against whoever is to have it now."""
        shelves, self._shelves, self._is_closed = self._shelves, {}, True
        async with self._opening:  # one that is being opened is closed as well
            for shelf in shelves.values():
                if shelf.archive:
                    await _in_thread(shelf, shelf.archive.close)
                if shelf.findings:
                    await _in_thread(shelf, shelf.findings.close)
                shelf.executor.shutdown()

    async def serve(self, channel: Channel, client: str) -> None:
        """Serve one greeted session. Raises ReplicadError when it ended badly, after telling the client."""
        message = await asked(channel)
        match message:
            case OpenWrite():
                key = await self._admitted(channel, client, message.dataset)
                await self._write(channel, key)
            case OpenRead():
                key = await self._admitted(channel, client, message.dataset)
                await self._read(channel, key)
            case OpenTend():
                key = await self._admitted(channel, client, message.dataset)
                await self._tend(channel, key)
            case _:
                raise PeerError(f"began with {type(message).__name__}", where=client)

    # orders of a person of this node

    async def meant(self, prefix: str | None) -> list[tuple[Key, Divergence]]:
        """The findings about stores whose ids begin so, two at most of each; all that are open for None."""
        found: list[tuple[Key, Divergence]] = []
        for key in sorted(self._shelves):

            def ask(book: Findings) -> list[Divergence]:
                return book.listed() if prefix is None else book.beginning_with(prefix)

            found += [(key, one) for one in await self.in_findings(*key, ask)]
        return found

    async def close_breakers(self) -> None:
        """A person has ordered all repairs."""
        for key in sorted(self._shelves):
            await self.in_findings(*key, close_breaker)

    async def repair(self, key: Key, found: Divergence, *, dry_run: bool, now_ns: int) -> Mended:
        """Repair one finding about a store, by order of a person: now if that needs nothing from the primary, else when
        it comes with the blocks. Raises ReplicadError."""
        shelf, remedy = await self._open(key), remedy_of(found)
        if found.state is not State.OPEN:
            return Mended(remedy, "nothing", f"it is {found.state.value} already")
        opened = await self._opened(shelf, key)
        mender = self._mender(shelf, opened)
        if remedy in (Remedy.NOTHING, Remedy.LOOK_AGAIN, Remedy.NONE_LEFT):
            return Mended(remedy, "nothing", PLANS.get(remedy, "there is nothing to be repaired"))
        wants = await mender.wants(found)
        if dry_run:
            return Mended(remedy, "planned", f"{PLANS[remedy]} ({counted(len(wants), 'block')} wanted from {key[0]})")
        if wants:
            now = await ShelfOrders(opened).order(found, now_ns)
            if now.state is not State.OPEN:
                return Mended(remedy, "nothing", f"it is {now.state.value} already")
            return Mended(remedy, "waiting", f"ordered: it is done as soon as {key[0]} brings the blocks, in a minute")
        async with shelf.mending:
            after = await mender.mend(found, [], ordered=True)
        said = after.events[-1].what if after.events else after.verdict.value
        result = "waiting" if said == mend_store.WAITING else "failed"
        return Mended(remedy, "repaired" if after.state is State.REPAIRED else result, said)

    # sessions

    async def _admitted(self, channel: Channel, client: str, dataset: str) -> Key:
        """The store that is meant, if this client has a right to it."""
        config = next((c for c in self._clients() if c.name == client), None)
        if config is None or not config.may_have(dataset):
            text = f"client {client} has no right to dataset {dataset!r}"
            await channel.send(Refuse("right", f"{text}; {AUTHORIZE}"))
            raise RefusedError(text, where=channel.peer)
        try:
            fresh = not self._directory((client, dataset)).is_dir()
        except PeerError as error:
            await channel.send(Refuse("invalid", error.what))
            raise
        if fresh and not config.datasets and sum(key[0] == client for key in self._shelves) >= MAX_UNNAMED:
            text = f"client {client} has {MAX_UNNAMED} datasets here, the limit for one whose datasets are not named"
            await channel.send(Refuse("right", f"{text}; {AUTHORIZE}"))
            raise RefusedError(text, where=channel.peer)
        return client, dataset

    async def _write(self, channel: Channel, key: Key) -> None:
        shelf = await self._shelf(channel, key, create=True)
        before, shelf.writer = shelf.writer, asyncio.current_task()
        if before and not before.done():
            before.cancel()
        async with shelf.turn:
            assert shelf.archive is not None
            window = self._config.window_bytes
            allowance = await self._measured(shelf, key)
            receiving = Receiving(channel, shelf.archive, shelf.executor, shelf.status, self._clock, window, allowance)
            async with self._noting_damage(shelf, key):
                await receiving.run()

    async def _measured(self, shelf: _Shelf, key: Key) -> Allowance:
        """What the store may take, with all stores of its client counted anew."""
        keys = [other for other in self._shelves if other[0] == key[0]]
        allowances = {other: Allowance(self._quotas, other[0], self._directory(other)) for other in keys}
        await _in_thread(shelf, lambda: [one.measure() for one in allowances.values()])
        return allowances[key]

    async def _read(self, channel: Channel, key: Key) -> None:
        shelf = await self._shelf(channel, key, create=False)
        assert shelf.archive is not None
        async with self._noting_damage(shelf, key):
            await Serving(channel, self._directory(key)).run()

    async def _tend(self, channel: Channel, key: Key) -> None:
        shelf = await self._shelf(channel, key, create=False)
        opened = await self._opened(shelf, key)
        extent = partial(shelf.surface.extent, 0) if shelf.surface else None
        rules = partial(self._rules_of, key[0])
        tended = Tended(
            channel,
            opened.directory,
            mender=self._mender(shelf, opened),
            turn=shelf.mending,
            scrub=self._scrub_of(*key) if self._scrub_of else None,
            orders=ShelfOrders(opened),
            witness=Witness(opened.findings, opened.executor, shelf.status, extent, rules, self._clock),
            disk=self._disk,
        )
        async with self._noting_damage(shelf, key):
            await tended.run()

    def _mender(self, shelf: _Shelf, opened: OpenStore) -> StoreMender:
        if shelf.mender is None:
            shelf.mender = self._make_mender(opened)
        return shelf.mender

    def _real_mender(self, opened: OpenStore) -> StoreMender:
        config = self._config
        return mend_store.StoreMender(
            *opened, self._clock, self._disk, repair=config.repair, repair_limit=config.repair_limit
        )

    async def _opened(self, shelf: _Shelf, key: Key) -> OpenStore:
        findings = await self.in_findings(*key, lambda book: book)
        assert shelf.archive is not None
        return OpenStore(*key, self._directory(key), shelf.archive, findings, shelf.executor)

    async def _shelf(self, channel: Channel, key: Key, *, create: bool) -> _Shelf:
        """The opened shelf; tells the client when there is none or it cannot be opened."""
        directory = self._directory(key)
        if not create and not directory.is_dir():
            await channel.send(Refuse("unknown", f"there is no dataset {key[1]!r} of client {key[0]} here"))
            raise RefusedError(f"no dataset {key[1]!r} of {key[0]}", where=channel.peer)
        try:
            return await self._open(key)
        except ReplicadError as error:
            code = {DiskFullError: "full", LockedError: "busy"}.get(type(error), "damaged")
            await channel.send(Refuse(code, f"the store cannot be opened: {error.what}"))
            raise

    @staticmethod
    def _closed(key: Key) -> ReplicadError:
        hint = "the daemon stops, or its configuration has changed; try again"
        return ReplicadError("the store was closed meanwhile", where="/".join(key), hint=hint)

    async def _open(self, key: Key, looks: int = 0) -> _Shelf:
        if self._is_closed:
            raise self._closed(key)
        if key not in self._shelves:
            executor = ThreadPoolExecutor(1, f"store-{key[0]}-{key[1]}")
            self._shelves[key] = _Shelf(StoreStatus(*key), executor)
            self._appeared(*key)
        shelf = self._shelves[key]
        if shelf.is_open:  # another one that is being opened is not waited for
            return shelf
        async with self._opening:
            if self._is_closed:
                raise self._closed(key)
            if not shelf.is_open:
                await self._open_soon(shelf, key, looks)
        return shelf

    async def _open_soon(self, shelf: _Shelf, key: Key, looks: int) -> None:
        """Open an archive; somebody who has it is waited for that often. Whoever else wants it, waits too."""
        for look in range(looks):
            try:
                return await self._open_archive(shelf, key)
            except LockedError as error:
                if not look:
                    log.info("waiting for a store", store=f"{key[0]}/{key[1]}", reason=str(error))
            await asyncio.sleep(LOCK_LOOK_S)
        await self._open_archive(shelf, key)

    async def _open_archive(self, shelf: _Shelf, key: Key) -> None:
        opening = partial(
            Archive.open,
            self._directory(key),
            client=key[0],
            dataset=key[1],
            disk=self._disk,
            reserve_bytes=self._config.reserve_bytes,
            clock_ns=self._clock.now_ns,
            create=True,
        )
        try:
            async with self._noting_damage(shelf, key):
                shelf.archive = shelf.archive or await _opened_in_thread(shelf, opening)
        except ReplicadError as error:
            shelf.status.state = {DiskFullError: "full", LockedError: "closed"}.get(type(error), "damaged")
            shelf.status.reason = str(error)
            raise
        finally:  # a store that cannot be opened needs it most
            await _in_thread(shelf, partial(leave_rescue_kit, self._directory(key), *key, self._disk))
        shelf.status.state, shelf.status.reason = "idle", ""
        try:
            await _in_thread(shelf, partial(self._open_findings, shelf, key))
        finally:
            shelf.is_open = True
        await _in_thread(shelf, partial(_describe, shelf, self._directory(key)))

    def _open_findings(self, shelf: _Shelf, key: Key) -> None:
        """Open the findings book beside the archive. One that is damaged stops the judging, not the replication."""
        assert shelf.archive is not None
        directory = self._directory(key)
        try:
            shelf.findings = shelf.findings or Findings(findings_of(directory))
        except ReplicadError as error:
            log.error("findings cannot be kept", store=f"{key[0]}/{key[1]}", reason=str(error))
            shelf.status.reason = str(error)
            return
        parts = (*key, directory, shelf.archive, shelf.findings, shelf.executor, self._clock, self._disk)
        shelf.surface = ReplicaSurface(*parts, lambda: self._config.scrub_every_s)
        book = self._store_findings(shelf.findings, key)
        book.settle_book(shelf.archive.inventory)
        shelf.archive.doubt(name for found in book.open_ones() for name in found.blocks)

    def _store_findings(self, findings: Findings, key: Key) -> StoreFindings:
        return StoreFindings(*key, findings, Quarantine(self._directory(key), self._disk), self._clock)

    @asynccontextmanager
    async def _noting_damage(self, shelf: _Shelf, key: Key) -> AsyncIterator[None]:
        """Make a damaged catalog a finding, whoever meets it; the error goes on its way."""
        try:
            yield
        except BookDamagedError as error:
            directory, (client, dataset) = self._directory(key), key
            if error.where == str(catalog_path(directory)):
                found = damaged(Side.REPLICA, dataset, client, error, self._clock.now_ns())
                await _in_thread(shelf, partial(note_at, findings_of(directory), found))
            raise

    async def note_damage(self, client: str, dataset: str, error: BookDamagedError) -> None:
        """A catalog that somebody found damaged who only looked."""
        with suppress(BookDamagedError):
            async with self._noting_damage(self._shelves[client, dataset], (client, dataset)):
                raise error

    def _directory(self, key: Key) -> Path:
        """Where the store is. Raises PeerError for a name that may not become a path."""
        return store_path(self._config.store, *key)


class ShelfOrders:
    """The findings book of one store as a tending session sees it, and what a person has ordered."""

    def __init__(self, opened: OpenStore) -> None:
        self._findings, self._executor = opened.findings, opened.executor

    async def find(self, name: str) -> Divergence | None:
        """See `tended.Orders`."""
        return await self._ask(partial(self._findings.get_exactly, name))

    async def is_ordered(self, name: str) -> bool:
        """See `tended.Orders`."""
        return bool(await self._ask(partial(self._findings.get, f"ordered:{name}")))

    async def fulfil(self, name: str) -> None:
        """See `tended.Orders`."""
        if await self.is_ordered(name):
            await self._ask(partial(self._findings.put, f"ordered:{name}", None))

    async def order(self, found: Divergence, now_ns: int) -> Divergence:
        """Remember that a person wants it repaired, unless it was settled meanwhile; the finding as it stands now. That
        it changed brings the primary's next round to it."""
        return await self._ask(partial(self._order, found, now_ns))

    def _order(self, found: Divergence, now_ns: int) -> Divergence:
        now = self._findings.get_exactly(found.id) or found
        if now.state is not State.OPEN:
            return now
        ordered = now.with_event(now_ns, "a person has ordered its repair")
        self._findings.put(f"ordered:{found.id}", now_ns)
        self._findings.update(ordered)
        return ordered

    async def _ask(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)


def _describe(shelf: _Shelf, directory: Path) -> None:
    """What the store holds, into its status."""
    assert shelf.archive is not None
    status = shelf.status
    status.damaged, status.stored_bytes = len(shelf.archive.damage), shelf.archive.stored_bytes
    with closing(ArchiveReader(directory)) as reader:
        for line in reader.snapshots()[-1:]:
            status.last_snapshot, status.last_snapshot_ns = line.number, line.created_ns
            status.received_ns, status.entries, status.size = line.received_ns, line.entries, line.size


async def _in_thread(shelf: _Shelf, work: Callable[[], Result]) -> Result:
    return await asyncio.get_running_loop().run_in_executor(shelf.executor, work)


async def _opened_in_thread(shelf: _Shelf, opening: Callable[[], Archive]) -> Archive:
    """The archive. What a thread opens for somebody who was ended meanwhile is closed: it would stay locked."""

    def close(opened: asyncio.Future[Archive]) -> None:
        if not opened.exception():
            shelf.executor.submit(opened.result().close)

    call = asyncio.get_running_loop().run_in_executor(shelf.executor, opening)
    try:
        return await asyncio.shield(call)
    except asyncio.CancelledError:
        call.add_done_callback(close)
        raise
