"""Suspect: list, for a person, changes that were replicated as writes and look like damage. On the replica.

A file that was written is believed: rot in another part of it, or a write that is an accident, cannot be told from what
was meant. What looks like neither (work/suspicion.py) is listed, and the version before it pinned against retention
until somebody releases it. **Never** changes or holds back anything, and never stands in the way of an
acknowledgement: snapshots are examined once they are durable, and how far that came is remembered in the findings.

A list that is long is not read: the same file is listed a few times at most until a person has looked, and for a while
after that not again.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import TypeVar

from replicad.db.findings import Findings
from replicad.model.divergence import Suspect
from replicad.system.clock import Clock
from replicad.work.scrub_book import InBook
from replicad.work.suspicion import examine
from replicad.work.together import first_of

LOOK_S = 30.0
"""How often it is looked for new snapshots without being told of any."""
WAITING_ALIKE = 3
"""Suspects of one kind and path that may wait for a person: the first ones have the oldest good version."""
RELEASED_NS = 7 * 86_400 * 1_000_000_000
"""After a release, how long the same kind of change of the same file is taken for its way of being written."""
EXAMINED = "examined"
"""What is remembered in the findings: the number of the last snapshot that was examined."""

Result = TypeVar("Result")


class Examining:
    """The job of one store. Reading is done in `pool`."""

    def __init__(
        self,
        client: str,
        dataset: str,
        directory: Path,
        in_book: InBook,
        pool: Executor,
        clock: Clock,
    ) -> None:
        self._client, self._dataset, self._directory = client, dataset, directory
        self._in_book, self._pool, self._clock = in_book, pool, clock
        self._sealed = asyncio.Event()

    @property
    def name(self) -> str:
        """What it is called in logs and metrics."""
        return f"examine {self._dataset} of {self._client}"

    def nudge(self) -> None:
        """There is a new snapshot."""
        self._sealed.set()

    async def step(self) -> None:
        """Examine every snapshot that was not. May be cancelled: one that was not finished is examined again.

        Raises ReplicadError when the store or the findings cannot be read or written."""
        self._sealed.clear()
        while await self._examine_next():
            pass

    async def wait(self) -> None:
        """Until there may be another snapshot."""
        await first_of(self._sealed.wait(), self._clock.sleep(LOOK_S))

    async def _examine_next(self) -> bool:
        after = int(await self._in_book(lambda book: book.get(EXAMINED)) or 0)
        look = partial(examine, self._directory, after, self._clock.now_ns())
        number, suspects = await asyncio.get_running_loop().run_in_executor(self._pool, look)
        if not number:
            return False
        await self._in_book(partial(_remember, number, suspects, self._clock.now_ns()))
        return True


def _remember(number: int, suspects: Sequence[Suspect], now_ns: int, book: Findings) -> None:
    """In this order: what was listed twice after a crash in between stands there once."""
    if suspects:
        book.add_suspects(unlike(suspects, book.suspects_like(suspects, now_ns - RELEASED_NS), now_ns))
    book.put(EXAMINED, number)


def unlike(suspects: Sequence[Suspect], known: Sequence[Suspect], now_ns: int) -> list[Suspect]:
    """Those of which not enough alike are known: few wait for a person, and none was released lately. Pure."""
    waiting = Counter((one.kind, one.path) for one in known if not one.released_ns)
    released = {(one.kind, one.path) for one in known if 0 <= now_ns - one.released_ns < RELEASED_NS}
    return [
        one for one in suspects if (one.kind, one.path) not in released and waiting[one.kind, one.path] < WAITING_ALIKE
    ]
