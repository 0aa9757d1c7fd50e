"""Dataset: what all jobs of one dataset share on the primary: its two books, their thread, its watch, its guards.

Ledger and findings belong to one worker thread; every access to the ledger goes through `in_ledger`, which makes the
access one transaction, every access to the findings through `in_findings`. `turn` lets one pass at a time work on the
dataset, whichever replica it is for.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar

from replicad.config import DatasetConfig
from replicad.db.findings import Findings
from replicad.db.ledger import Ledger, remedy
from replicad.model.divergence import Side
from replicad.model.errors import BookDamagedError, HeldError
from replicad.source.exclude import Excluded
from replicad.source.root import RootIdentity
from replicad.source.watch import MAX_HINTS, Watch
from replicad.system.clock import Clock
from replicad.system.disk import Disk
from replicad.work import book_damage
from replicad.work.quarantine import DIRECTORY, Quarantine

Given = ParamSpec("Given")
Result = TypeVar("Result")


class Hints:
    """Changed directories that one replica's job has not looked at yet, at most MAX_HINTS; None inside means "walk
    everything"."""

    def __init__(self) -> None:
        self._directories: set[bytes] | None = None
        self.changed = asyncio.Event()
        """Set while there are hints."""

    def add(self, directories: frozenset[bytes] | None) -> None:
        """Remember these, or everything."""
        if not self.changed.is_set():
            self._directories = set()
            self.changed.set()
        if directories is None:
            self._directories = None
        elif self._directories is not None:
            self._directories |= directories
            if len(self._directories) > MAX_HINTS:
                self._directories = None

    def take(self) -> frozenset[bytes] | None:
        """All hints since the last time (an empty set when there were none), None for "everything"."""
        if not self.changed.is_set():
            return frozenset()
        self.changed.clear()
        taken, self._directories = self._directories, None
        return None if taken is None else frozenset(taken)


class Acknowledged:
    """The last snapshot that one replica acknowledged since the daemon started, for whoever waits for the next."""

    def __init__(self) -> None:
        self._number = self._at_ns = 0
        self.news = asyncio.Event()
        """Set by each acknowledgement."""

    def note(self, number: int, at_ns: int) -> None:
        """It was heard of just now."""
        self._number, self._at_ns = number, at_ns
        self.news.set()

    def when(self, number: int) -> int:
        """When this snapshot was acknowledged, 0 when that is not known (any more)."""
        return self._at_ns if number == self._number else 0


def ledger_path(state: Path, dataset: str) -> Path:
    """Where a dataset's ledger is."""
    return state / "ledger" / f"{dataset}.db"


def findings_path(state: Path, dataset: str) -> Path:
    """Where a primary's findings about a dataset are."""
    return state / "findings" / f"{dataset}.db"


class Dataset:
    """One dataset on its primary."""

    def __init__(self, config: DatasetConfig, replicas: tuple[str, ...], state: Path) -> None:
        """The ledger lies below `state`; it is opened when it is first needed."""
        self.config, self.replicas = config, replicas
        self.root = os.fsencode(config.path)
        self.excluded = Excluded(config.exclude)
        self.turn = asyncio.Lock()
        self.mending = asyncio.Lock()
        """Held while a repair writes into the data and until that stands in the books."""
        self.is_closed = False
        self.stopping = threading.Event()
        """Set when long work in threads should end early."""
        self.watch = Watch(self.root, self.excluded, config.debounce_s) if config.watch else None
        self._hints: list[Hints] = []
        self._acknowledged = {replica: Acknowledged() for replica in replicas}
        self._executor = ThreadPoolExecutor(1, f"ledger-{config.name}")
        self._path = ledger_path(state, config.name)
        self._ledger: Ledger | None = None
        self.quarantine = Quarantine(state, Disk(), f"{DIRECTORY}/{config.name}")
        """Where bad bytes are kept aside."""
        self._findings_path = findings_path(state, config.name)
        self._findings: Findings | None = None

    @property
    def ledger(self) -> Ledger:
        """The ledger; `open` comes first. Raises BookDamagedError when another job has met damage in it since."""
        if self._ledger is None:
            raise BookDamagedError("was closed: damage was found in it", where=str(self._path), hint=remedy(self._path))
        return self._ledger

    @property
    def findings(self) -> Findings:
        """The findings book; `open` or `open_findings` comes first."""
        assert self._findings is not None
        return self._findings

    async def open(self) -> None:
        """Open the ledger unless it is; one that was moved away is not the ledger any more, whichever job had it open.

        Raises BookDamagedError, DiskFullError.
        """
        await self._in_thread(self._open)

    async def open_findings(self) -> None:
        """Open the findings book unless it is; it does not need a ledger that can be opened. Raises as `open`."""
        await self._in_thread(self._open_findings)

    async def close(self) -> None:
        """Let a repair that writes come to its end and the thread finish its work, then close both books."""
        self.stopping.set()
        async with self.mending:
            self.is_closed = True
        await self._in_thread(self._close)
        await self._in_thread(self._close_findings)
        self._executor.shutdown()

    def _open(self) -> None:
        if self._ledger is not None and self._ledger.has_moved:
            self._close()
        if self._ledger is None:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                self._ledger = Ledger(self._path)
            except BookDamagedError as error:
                self._note_damage(error)
                raise

    def _close(self) -> None:
        if self._ledger is not None:
            self._ledger.close()
            self._ledger = None

    def _open_findings(self) -> None:
        if self._findings is None:
            self._findings_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._findings = Findings(self._findings_path)

    def _close_findings(self) -> None:
        if self._findings is not None:
            self._findings.close()
            self._findings = None

    def _note_damage(self, error: BookDamagedError) -> None:
        """Make a damaged ledger a finding, if its book can be written. In the books' thread."""
        found = book_damage.damaged(Side.PRIMARY, self.config.name, "", error, Clock().now_ns())
        if self._findings is not None:
            book_damage.note(self._findings, found)
        else:
            book_damage.note_at(self._findings_path, found)

    async def _in_thread(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    async def in_ledger(self, work: Callable[Given, Result], *args: Given.args, **kwargs: Given.kwargs) -> Result:
        """Run `work` in the ledger's thread as one transaction."""
        return await self._transaction(partial(work, *args, **kwargs), durable=False)

    async def in_findings(self, work: Callable[Given, Result], *args: Given.args, **kwargs: Given.kwargs) -> Result:
        """Run `work` in the books' thread; each change of the findings is durable by itself."""
        return await self._in_thread(partial(work, *args, **kwargs))

    async def durably(self, work: Callable[Given, Result], *args: Given.args, **kwargs: Given.kwargs) -> Result:
        """The same; what it wrote survives a power cut when this returns."""
        return await self._transaction(partial(work, *args, **kwargs), durable=True)

    async def _transaction(self, work: Callable[[], Result], *, durable: bool) -> Result:
        def transaction() -> Result:
            self.ledger.begin(durable=durable)
            try:
                result = work()
                self.ledger.commit()
            except BookDamagedError as error:
                self._close()  # so that the next pass opens what an operator has put in its place
                self._note_damage(error)
                raise
            except BaseException:
                self.ledger.rollback()
                raise
            return result

        return await self._in_thread(transaction)

    def acknowledged(self, replica: str) -> Acknowledged:
        """What this replica acknowledged last."""
        return self._acknowledged[replica]

    def hints(self) -> Hints:
        """A new collector of the watch's hints, for one replica's job."""
        collector = Hints()
        self._hints.append(collector)
        return collector

    async def watch_forever(self) -> None:
        """Hand the watch's hints to every collector, until cancelled."""
        if self.watch is None:
            return
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.watch.run())
            while True:
                directories = await self.watch.wait()
                for collector in self._hints:
                    collector.add(directories)

    # guards: all of these run inside `in_ledger`

    def held(self) -> str:
        """Why the dataset is held, or ""."""
        return str(self.ledger.get("held") or "")

    def held_error(self, reason: str) -> HeldError:
        """The error that says why nothing is copied and what to do."""
        name = self.config.name
        return HeldError(
            reason, where=name, hint=f"nothing was sent; if this is what you want: replicad release {name}"
        )

    def release(self) -> None:
        """Let the next pass through, whatever its guards say."""
        self.ledger.put("held", None)
        self.ledger.put("released", 1)

    def check_root(self, identity: RootIdentity) -> None:
        """Compare the root with the one recorded; the first root seen is recorded. Raises HeldError."""
        recorded = self.ledger.get("root")
        seen = f"{identity.fsid:x}:{identity.inode}"
        if recorded is None or self.ledger.get("released"):
            self.ledger.put("root", seen)
        elif recorded != seen:
            raise self.held_error(
                "the root directory is not the one that was replicated so far (another file system, or not mounted)"
            )
