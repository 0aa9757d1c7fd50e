"""Canary book: which canaries of one dataset were written and when, and how far each replica is; kept in its ledger.

**Owns** the writing: due every `canary_every`, once for all replicas. **Never** writes while the dataset is held,
before its first snapshot, or into a root that is not the recorded one; why not is what `write_if_due` gives.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import msgspec

from replicad.model.canary import Through
from replicad.model.canary_text import REMEMBERED, Canary, awaited
from replicad.model.errors import ReplicadError, SourceError
from replicad.source.root import Root
from replicad.system.clock import Clock
from replicad.system.disk import Disk
from replicad.work.canary_file import write_canary
from replicad.work.dataset import Dataset
from replicad.work.together import in_own_thread

WRITTEN = "canary"
THROUGH = "canary:{}"
"""Names in the ledger's memory: what was written, and what has come through from a replica."""

REFUSED = "the file was refused"

Result = TypeVar("Result")


class Written(msgspec.Struct, frozen=True):
    """The canaries that are remembered, oldest first."""

    canaries: list[Canary] = []


class CanaryBook:
    """One dataset's canaries; shared by the jobs of its replicas."""

    def __init__(self, dataset: Dataset, clock: Clock, disk: Disk) -> None:
        self._dataset, self._clock, self._disk = dataset, clock, disk
        self._name = dataset.config.canary.encode()
        self._turn = asyncio.Lock()

    async def write_if_due(self) -> str:
        """Write a canary if one is due; why none is written ("" when one was, or none is due).

        Raises SourceError when the file is refused, ReplicadError when the ledger cannot be used."""
        async with self._turn:
            await self._dataset.open()
            if reason := await self._in_ledger(self._paused):
                return reason
            if self.until_due_s(await self._in_ledger(self._written)) > 0:
                return ""
            recorded = str(await self._in_ledger(self._dataset.ledger.get, "root"))
            canary = await self._in_ledger(self._next)
            reason = REFUSED
            try:
                reason = await in_own_thread(partial(self._write, canary, recorded))
            finally:
                if reason:
                    await self._in_ledger(self._forget, canary)
            return reason

    def until_due_s(self, canaries: list[Canary]) -> float:
        """Seconds until the next is due; one that a clock set back has put into the future is not waited for."""
        if not canaries:
            return 0.0
        age_s = (self._clock.now_ns() - canaries[-1].written_ns) / 1e9
        every_s = self._dataset.config.canary_every_s
        return every_s - age_s if 0 <= age_s < every_s else 0.0

    async def standing(self, replica: str) -> tuple[list[Canary], list[Canary], Through]:
        """All canaries that are remembered, those that are awaited from a replica, and the last that came."""
        await self._dataset.open()
        written, through = await self._in_ledger(lambda: (self._written(), self._through(replica)))
        return written, awaited(written, through), through

    async def head(self, replica: str) -> int:
        """The number of the last snapshot that a replica acknowledged; 0 = none."""
        standing = await self._in_ledger(self._dataset.ledger.standing, replica)
        return int(standing.head.number)

    async def came(self, replica: str, through: Through) -> None:
        """A canary came all the way from a replica."""
        data = msgspec.json.encode(through)
        await self._in_ledger(self._dataset.ledger.put, THROUGH.format(replica), data)

    # inside the ledger's thread

    def _written(self) -> list[Canary]:
        return _decoded(self._dataset.ledger.get(WRITTEN), Written()).canaries

    def _through(self, replica: str) -> Through:
        return _decoded(self._dataset.ledger.get(THROUGH.format(replica)), Through())

    def _paused(self) -> str:
        ledger = self._dataset.ledger
        if reason := self._dataset.held():
            return f"the dataset is held: {reason}"
        if not any(ledger.standing(replica).head.number for replica in self._dataset.replicas):
            return "nothing has been replicated yet"
        return ""

    def _next(self) -> Canary:
        """The next canary, remembered before it is written: what is not remembered could not be recognised."""
        canaries = self._written()
        number = canaries[-1].number + 1 if canaries else 1
        canary = Canary(self._dataset.config.name, number, self._clock.now_ns(), secrets.token_hex(16))
        self._remember(self._bounded([*canaries, canary]))
        return canary

    def _bounded(self, canaries: list[Canary]) -> list[Canary]:
        """As many as are remembered. The oldest that a replica has not given back stays: since when it is
        awaited is what makes it late."""
        came = min((self._through(replica).number for replica in self._dataset.replicas), default=0)
        while len(canaries) > REMEMBERED:
            del canaries[1 if canaries[0].number > came else 0]
        return canaries

    def _forget(self, canary: Canary) -> None:
        """It was not written: nobody waits for it, and the next one is due at once."""
        self._remember([one for one in self._written() if one != canary])

    def _remember(self, canaries: list[Canary]) -> None:
        self._dataset.ledger.put(WRITTEN, msgspec.json.encode(Written(canaries)))

    # in the pool

    def _write(self, canary: Canary, recorded: str) -> str:
        """Why it was not written, "" when it was. Raises SourceError when the file is refused."""
        try:
            root = Root(self._dataset.root)
        except SourceError as error:
            return f"{error.where}: {error.what}"
        with root:
            if recorded != f"{root.identity.fsid:x}:{root.identity.inode}":
                return "the root directory is not the one that was replicated so far (not mounted?)"
            write_canary(root, self._name, canary, self._disk)
        return ""

    async def _in_ledger(self, work: Callable[..., Result], *args: object) -> Result:
        return await self._dataset.in_ledger(work, *args)


Known = TypeVar("Known", Written, Through)


def _decoded(data: str | int | bytes | None, none: Known) -> Known:
    """What is remembered. Raises ReplicadError for what cannot be read: the ledger was written by another version."""
    if not isinstance(data, bytes):
        return none
    try:
        return msgspec.json.decode(data, type=type(none))
    except msgspec.MsgspecError as error:
        raise ReplicadError(f"what the ledger remembers of canaries cannot be read: {error}") from None
