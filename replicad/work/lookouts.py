"""Lookouts: processes that help a scrub in a hurry to look at small files.

A scrub held to its duty looks at files in a thread of the daemon. One that may have all of the time would be held up by
the interpreter's lock there, which each of a file's seven system calls gives away and has to win back; so it has a few
processes look, each on one thread (work/scout.py), and does itself only what they cannot call plainly well.

**Owns** how many there are, and ends them when nobody has asked for a while. **Never** judges: whatever a lookout does
not answer for is looked at by whoever asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from replicad.model.block import ID_BYTES
from replicad.source.verify import Examined, Outcome, Stretch
from replicad.system.child import Child, Doer
from replicad.work.crew import Crew
from replicad.work.scout import LOOK, Look, Plain, View
from replicad.work.scouts import MODULE

MAX_LOOKOUTS = 3
"""Together with the daemon, which asks the ledger meanwhile, they keep two processors busy; each waits for the disk for
half of its time, and holds 30 MiB."""
IDLE_S = 10.0
"""Without a question for so long they are ended: a scrub comes back within a moment or in a week."""


class Lookouts:
    """All lookouts of one daemon."""

    def __init__(self, start: Callable[[], Doer] = lambda: Child(MODULE)) -> None:
        self._crew = Crew(start, MAX_LOOKOUTS)
        self._timer: asyncio.TimerHandle | None = None
        self._ending: asyncio.Task[None] | None = None

    async def look(self, root: bytes, stretches: Sequence[Stretch]) -> list[Outcome | None]:
        """What these are, of those that are plainly well; None for the others, which say nothing. Raises
        ReplicadError when the process died."""
        plain = [_plain(stretch) for stretch in stretches]
        asked = [one for one in plain if one]
        views = iter(await self._ask(Look(root, asked)) if asked else b"")
        return [
            _seen(stretch, View(next(views))) if one else None for one, stretch in zip(plain, stretches, strict=True)
        ]

    async def close(self) -> None:
        """End all of them."""
        if self._timer:
            self._timer.cancel()
        if self._ending:
            await asyncio.gather(self._ending, return_exceptions=True)
        await self._crew.close()

    @property
    def pids(self) -> list[int]:
        """Process ids of those that run."""
        return self._crew.pids

    async def _ask(self, look: Look) -> bytes:
        one = self._crew.choose()
        one.tasks += 1
        try:
            return await one.child.call(LOOK, look)
        finally:
            one.tasks -= 1
            if self._timer:
                self._timer.cancel()
            self._timer = asyncio.get_running_loop().call_later(IDLE_S, self._end)

    def _end(self) -> None:
        if not self._crew.is_busy:
            self._ending = asyncio.create_task(self._crew.thin_out(0))


def _plain(stretch: Stretch) -> Plain | None:
    """A file of one block whose content is known, as nearly all small ones are; None: something else."""
    name, row = stretch.names[0], stretch.expected.get(0)
    if not 0 < name.stamp.size <= stretch.block_bytes or row is None or not row.checksum or len(row.id) != ID_BYTES:
        return None
    return Plain(name.path, name.stamp, name.xattrs, stretch.block_bytes, row.id, row.checksum)


def _seen(stretch: Stretch, view: View) -> Examined | None:
    if view is View.UNCLEAR:
        return None
    name = stretch.names[0]
    return Examined(name.path, name.stamp.size, view is View.WELL)
