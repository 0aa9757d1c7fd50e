"""Handing: what of a restore is given to the hand, the process beside it (work/hand.py).

**Owns** the choice: whole new files go there as long as it has room, everything else is written here. A hand that dies,
or that cannot be started, is done without: its files are written here once more, from the start.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence

from replicad.link.messages import Lost
from replicad.model.block import Buffer
from replicad.model.errors import DiskFullError, ReplicadError
from replicad.store.format import Frame, frame_header
from replicad.system.child import Child
from replicad.system.logs import logger
from replicad.system.tasks import PART_BYTES
from replicad.work.account import Tally
from replicad.work.hand import LAY, OPEN, Lot, Place
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

    def __init__(self, target: Target, now_ns: int) -> None:
        self._target, self._now_ns = target, now_ns
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
        """Give away of a parcel what there is room for, and wait until that is written; what is left to be written
        here. Raises DiskFullError."""
        self._parcels += 1
        if self._parcels == AFTER_PARCELS:
            self._opening = asyncio.create_task(self._open())
        if not (self._opening and self._opening.done() and self._opening.result() and self._child.has_room):
            return parcel.parts
        frames = {
            name: answer
            for name, answer in zip(parcel.lengths, answers, strict=True)
            if not isinstance(answer, Lost)  # why it is lost is told from here
        }
        parts = [part for part in parcel.parts if _is_for_it(part, frames)]
        bulk = _bulk_of(parts, frames)
        if len(parts) < FEWEST_FILES or sum(map(len, bulk)) > PART_BYTES or not await self._lay(parts, bulk, tally):
            return parcel.parts
        given = set(map(id, parts))
        return [part for part in parcel.parts if id(part) not in given]

    async def _lay(self, parts: Sequence[Part], bulk: Sequence[Buffer], tally: Tally) -> bool:
        """Have it done; whether it was."""
        try:
            laid = await self._child.call_with_bulk(LAY, Lot([part.filling.put for part in parts]), bulk)
        except DiskFullError:
            raise
        except ReplicadError as error:
            if self._opening:  # others are told the same
                log.warning("written without a process beside it", reason=str(error))
            self._opening = None
            return False
        laid.add_to(tally)
        for part in parts:
            part.filling.done_elsewhere()
        return True

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
