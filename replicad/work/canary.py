"""Canary: the job that has a canary written and follows it through one replica, all the way back.

    write → a pass copies it → acknowledged → the replica reads it from its medium → restored, compared

When the replica has acknowledged a snapshot, the canary in it is looked up there, the replica is asked to read that
very block from where it is stored (a tending session), and the file is restored with the code of a restore into scratch
space below the state directory. So what is timed is what a person would wait for: the watch, the pass, the link, the
store, the way back.

**Never** counts a canary as through that any of these steps did not prove.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from replicad.link.messages import SnapshotLine
from replicad.model.canary import Lags, Through
from replicad.model.canary_text import CANARY_BYTES, Canary
from replicad.model.entry import Kind, Put
from replicad.model.errors import LinkError, ReplicadError, SourceError, UsageError
from replicad.model.verdict import Sight
from replicad.status import CanaryStatus, printable
from replicad.system.clock import Clock
from replicad.system.logs import logger
from replicad.work.account import Finding
from replicad.work.canary_book import CanaryBook
from replicad.work.canary_reader import OneFileReader
from replicad.work.conversation import Conversation
from replicad.work.dataset import Dataset
from replicad.work.elsewhere import Dial
from replicad.work.planner import Rules
from replicad.work.read_remote import RemoteReader
from replicad.work.restore import Restore
from replicad.work.scratch import make_scratch, sweep
from replicad.work.together import first_of

log = logger("work.canary")

LOOK_S = 30.0
"""How often it is looked whether one is due, and what became of one that no acknowledgement was heard of."""
SHORTEST_LOOK_S = 1.0
CACHE = "cache"
"""What a replica has read from that does not say so."""
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class Following:
    """The job of one dataset and one replica."""

    def __init__(
        self, dataset: Dataset, replica: str, dial: Dial, book: CanaryBook, scratch: Path, clock: Clock
    ) -> None:
        """`scratch` is a directory of this job's own, made at need."""
        config = dataset.config
        self._dataset, self._replica, self._dial, self._book = dataset, replica, dial, book
        self._scratch, self._clock = scratch, clock
        self._name = config.canary.encode()
        self._acknowledged = dataset.acknowledged(replica)
        self._is_swept, self._look_s = False, LOOK_S
        self._without = 0
        """The snapshot in which no canary was found that is awaited: it is not looked into again."""
        self.status = CanaryStatus(
            config.name, replica, every_s=config.canary_every_s, within_s=config.canary_within_s
        )  # fmt: skip

    @property
    def name(self) -> str:
        """What it is called in logs and metrics."""
        return f"canary {self._dataset.config.name} to {self._replica}"

    async def wait(self) -> None:
        """Until a snapshot is acknowledged, or a canary may be due."""
        await first_of(self._acknowledged.news.wait(), self._clock.sleep(self._look_s))

    async def step(self) -> None:
        """Write one if it is due, and see how far the last one is. Raises ReplicadError; a file that is refused, a
        replica out of reach and a canary that comes back wrong are states, which the status shows."""
        status = self.status
        self._acknowledged.news.clear()
        self._look_s = LOOK_S  # whatever becomes of this step: what is refused now is not tried again every second
        try:
            if not self._is_swept:
                await self._sweep()
            paused = await self._book.write_if_due()
            written, awaited, through = await self._book.standing(self._replica)
            self._show_standing(written, awaited, through)
            until_due_s = LOOK_S if paused else self._book.until_due_s(written)
            self._look_s = max(SHORTEST_LOOK_S, min(LOOK_S, until_due_s))
            if paused:
                status.state, status.reason = "paused", paused
            elif awaited:
                status.state, status.reason = "waiting", "no snapshot has it yet"
                await self._follow(awaited)
            else:
                status.state, status.reason = "idle", ""
        except SourceError as error:
            status.state, status.reason = "refused", str(error)
        except LinkError as error:
            status.state, status.reason = "waiting", f"out of reach: {error.what}"
            raise
        except ReplicadError as error:
            status.state, status.reason = "failed", str(error)
            raise

    async def _sweep(self) -> None:
        """Remove what a killed daemon left."""

        def work() -> None:
            self._scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
            sweep(self._scratch)

        await asyncio.to_thread(work)
        self._is_swept = True

    # following

    async def _follow(self, awaited: list[Canary]) -> None:
        """Look whether the newest snapshot has one that is awaited, and take it all the way."""
        if self._without and self._without == await self._book.head(self._replica):
            return
        reader = await self._reader()
        if reader is None:
            return
        try:
            line, canary = await self._arrived(reader, awaited)
            if line is None or canary is None:
                self._without = line.number if line else 0
                return
            acknowledged_ns = self._acknowledged.when(line.number) or self._clock.now_ns()
            source, problem = await self._verified(canary)
            verified_ns = self._clock.now_ns()
            problem = problem or await self._restored(reader, line, canary)
        finally:
            await reader.close()
        self.status.failure = problem
        if problem:
            log.warning("a canary did not come back", dataset=self._dataset.config.name, reason=printable(problem))
        else:
            await self._came(canary, (acknowledged_ns, verified_ns, self._clock.now_ns()), source)

    async def _reader(self) -> RemoteReader | None:
        """A reading session; None while the replica has nothing of this dataset."""
        try:
            return await RemoteReader.open(await self._dial(), self._dataset.config.name)
        except UsageError:
            return None

    async def _arrived(self, reader: RemoteReader, awaited: list[Canary]) -> tuple[SnapshotLine | None, Canary | None]:
        """The newest snapshot, and which of those awaited it has."""
        lines = await reader.snapshots()
        if not lines:
            return None, None
        ids, found = {canary.id: canary for canary in awaited}, None
        async for ops in reader.visit(lines[-1].number, self._name, blocks=True):
            for op in ops:
                if isinstance(op, Put) and op.kind is Kind.FILE and op.size == CANARY_BYTES:
                    found = ids.get(op.ids)
        return lines[-1], found

    async def _verified(self, canary: Canary) -> tuple[str, str]:
        """What the replica has just read it from, and what is wrong with it there. Raises ReplicadError when the
        replica could not find out."""
        talk = await Conversation.open(await self._dial(), self._dataset.config.name)
        try:
            said = await talk.examine(canary.id, canary.content)
        finally:
            await talk.close()
        if said.sight is Sight.MATCHES and said.id == canary.id:
            return said.source or CACHE, ""
        problem = f"canary {canary.number} is stored and {said.sight.value}: {printable(said.reason)}"
        if said.sight is Sight.UNKNOWN:
            raise ReplicadError(problem, where=self._replica)
        return "", problem

    async def _restored(self, reader: RemoteReader, line: SnapshotLine, canary: Canary) -> str:
        """What is wrong with what a restore brings back; "" when it is the canary."""
        heard: list[Finding] = []
        scratch = await make_scratch(self._scratch, "canary")
        try:
            one = OneFileReader(reader, self._name)
            restore = Restore(one, line, scratch.tree, rules=Rules(), clock=self._clock, heard=heard.append)
            account = await restore.run()
            content = await asyncio.to_thread(_read, scratch.tree / os.fsdecode(self._name))
        finally:
            await asyncio.shield(asyncio.to_thread(scratch.close))
        if content == canary.content and account.finished:
            return ""
        wrong = next((str(finding) for finding in heard if finding.sort in ("damaged", "failed")), "other bytes")
        return f"canary {canary.number} did not come back from {self._replica}: {wrong}"

    async def _came(self, canary: Canary, stamps: tuple[int, int, int], source: str) -> None:
        lags = Lags(*(max(0, stamp - canary.written_ns) / 1e9 for stamp in stamps))
        through = Through(canary.number, canary.written_ns, stamps[-1], lags, source)
        await self._book.came(self._replica, through)
        self._show_standing(*await self._book.standing(self._replica))
        self.status.state, self.status.reason = "idle", ""

    def _show_standing(self, written: list[Canary], awaited: list[Canary], through: Through) -> None:
        status = self.status
        status.number = written[-1].number if written else 0
        status.written_ns = written[-1].written_ns if written else 0
        status.oldest_awaited_ns = min((canary.written_ns for canary in awaited), default=0)
        status.last_number, status.last_success_ns = through.number, through.back_ns
        status.lags, status.source = through.lags, through.source


def _read(path: Path) -> bytes:
    """A restored canary, b"" when there is none."""
    try:
        fd = os.open(path, _READ)
    except OSError:
        return b""
    try:
        return os.read(fd, CANARY_BYTES + 1)
    finally:
        os.close(fd)
