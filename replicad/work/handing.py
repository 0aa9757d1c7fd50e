"""Handing: what of a restore is given to the hand, the process beside it (work/hand.py).

**Owns** the choice: blocks of large files go there, whole new small files as long as it has room, everything else is
written here. A hand that dies, or that cannot be started, is done without: what it had is written here once more.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence

from msgspec.structs import replace

from replicad.link.messages import Lost
from replicad.model.block import Buffer
from replicad.model.errors import DiskFullError, ReplicadError
from replicad.store.format import Frame, frame_header
from replicad.system.child import Child
from replicad.system.logs import logger
from replicad.system.tasks import PART_BYTES, Answered, Asked, Task
from replicad.work.account import Tally
from replicad.work.hand import FILL, LAY, OPEN, Lot, Place, Stretch
from replicad.work.parcel import Parcel, Part
from replicad.work.reader import Answer
from replicad.work.target import Target

log = logger("work.handing")

MODULE = "replicad.work.hand"
AFTER_PARCELS = 4
"""So many are written here before a hand is started: a small restore is over sooner without."""
FEWEST_FILES = 8
"""A lot of fewer is not worth the way."""


class Handing:
    """The hand of one restore. For the event loop."""

    def __init__(self, target: Target, now_ns: int, in_thread: Callable[[Callable[[], None]], Awaitable[None]]) -> None:
        """`in_thread`: how whatever may wait for a disk is done."""
        self._target, self._now_ns, self._in_thread = target, now_ns, in_thread
        self._child = Child(MODULE)
        self._parcels = 0
        self._opening: asyncio.Task[bool] | None = None

    async def close(self) -> None:
        """End it."""
        if self._opening:
            self._opening.cancel()
            await asyncio.gather(self._opening, return_exceptions=True)
        await self._child.close()

    async def take(self, parcel: Parcel, answers: Sequence[Answer], tally: Tally) -> Sequence[Part]:
        """Give away of a parcel what is for the hand, and wait until that is written; what is left to be written here.
        Raises DiskFullError."""
        self._parcels += 1
        if self._parcels == AFTER_PARCELS:
            self._opening = asyncio.create_task(self._open())
        if not (self._opening and self._opening.done() and self._opening.result()):
            return parcel.parts
        frames = {
            name: answer
            for name, answer in zip(parcel.lengths, answers, strict=True)
            if not isinstance(answer, Lost)  # why it is lost is told from here
        }
        if len(parcel.parts) == 1 and parcel.parts[0].filling.is_large and len(frames) == len(parcel.lengths):
            return await self._fill(parcel.parts[0], _bulk_of(parcel.parts, frames), tally)
        if not self._child.has_room:
            return parcel.parts
        parts = [part for part in parcel.parts if _is_for_it(part, frames)]
        bulk = _bulk_of(parts, frames)
        if len(parts) < FEWEST_FILES or not await self._lay(parts, bulk, tally):
            return parcel.parts
        given = set(map(id, parts))
        return [part for part in parcel.parts if id(part) not in given]

    async def _lay(self, parts: Sequence[Part], bulk: Sequence[Buffer], tally: Tally) -> bool:
        """Have whole new files written; whether they were."""
        laid = await self._asked(LAY, Lot([part.filling.put for part in parts]), bulk)
        if laid is None:
            return False
        laid.add_to(tally)
        for part in parts:
            part.filling.done_elsewhere()
        return True

    async def _fill(self, part: Part, bulk: Sequence[Buffer], tally: Tally) -> Sequence[Part]:
        """Have blocks of a large file written, waiting for room: the hand is sooner done with others than a thread here
        with these. What is left to be written here. Raises DiskFullError."""
        filling = part.filling
        if filling.lent is None:
            await self._in_thread(filling.begin)
        if (lent := filling.lent) is None:
            return [part]
        outline = replace(filling.put, blocks=(), ids=b"", zeros=())
        filled = await self._asked(FILL, Stretch(outline, lent, part.blocks), bulk)
        if filled is None:
            return [part]
        await self._in_thread(lambda: filling.take_back(filled.written_bytes, filled.lost, filled.failed, tally))
        return []

    async def _asked(self, task: Task[Asked, Answered], asked: Asked, bulk: Sequence[Buffer]) -> Answered | None:
        """What came of a task; None when it is to be done here. Raises DiskFullError."""
        if sum(map(len, bulk)) > PART_BYTES:
            return None
        try:
            return await self._child.call_with_bulk(task, asked, bulk)
        except DiskFullError:
            raise
        except ReplicadError as error:
            if self._opening:  # others are told the same
                log.warning("written without a process beside it", reason=str(error))
            self._opening = None
            return None

    async def _open(self) -> bool:
        """Whether there is one now."""
        try:
            status = self._target.identity()
            path = os.fsencode(self._target.path.absolute())
            await self._child.call(OPEN, Place(path, *status, self._now_ns))
        except (ReplicadError, OSError) as error:  # the latter: no memory or descriptors for it
            log.warning("written without a process beside it", reason=str(error))
            return False
        return True


def _is_for_it(part: Part, frames: dict[bytes, Frame]) -> bool:
    return part.filling.is_whole_and_new(part.blocks) and all(wanted.id in frames for wanted in part.blocks)


def _bulk_of(parts: Sequence[Part], frames: dict[bytes, Frame]) -> list[Buffer]:
    """The frames of all blocks of these parts, in pieces, each once."""
    names = dict.fromkeys(wanted.id for part in parts for wanted in part.blocks)
    return [piece for name in names for piece in (frame_header(frames[name]), frames[name].payload)]
