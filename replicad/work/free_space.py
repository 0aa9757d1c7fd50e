"""Free space: how much is free on the file system of a store, asked again and again in a thread of its own.

That file system may be a dead mount, of which a question never returns. **Never** has anybody else wait for it: whoever
asks is given the last answer, or that there has been none for too long.
"""

from __future__ import annotations

from pathlib import Path

from replicad.model.errors import ReplicadError
from replicad.status import printable
from replicad.system.clock import Clock
from replicad.system.disk import Disk
from replicad.work.together import in_own_thread

LOOK_S = 5.0
"""How often it is asked."""
SILENT_S = 30.0
"""After so long without an answer the file system counts as one that gives none."""


class FreeSpace:
    """The job of one directory."""

    name = "measure free space"

    def __init__(self, directory: Path, disk: Disk, clock: Clock) -> None:
        self._directory, self._disk, self._clock = directory, disk, clock
        self._said, self._said_s = (-1, ""), clock.monotonic_s()

    @property
    def now(self) -> tuple[int, str]:
        """Bytes that are free, and ""; where that is not known -1, and why."""
        silent_s = self._clock.monotonic_s() - self._said_s
        if silent_s > SILENT_S:
            return -1, f"{self._directory}: it has not answered for {silent_s:.0f} s"
        return self._said

    async def wait(self) -> None:
        """Until it is time to ask again."""
        await self._clock.sleep(LOOK_S)

    async def step(self) -> None:
        """Ask. That the file system does not say is an answer too: a disk that dies is no failure of whoever looks."""
        self._said = await in_own_thread(self._ask)
        self._said_s = self._clock.monotonic_s()

    def _ask(self) -> tuple[int, str]:
        try:
            return self._disk.free_bytes(self._directory), ""
        except (OSError, ReplicadError) as error:
            return -1, printable(str(error))
