"""Ahead: look at directories that a walk will come to next, so that the kernel has loaded them by then.

A walk of a cold tree waits for one directory, then for its inodes, then for the next directory; a disk answers several
such questions at once. Nothing that is seen here counts: the walk looks at everything itself.

**Owns** its threads and a descriptor of the root. **Never** descends by itself: it is told directories, and so goes
nowhere where the walk does not go.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Sequence
from contextlib import suppress

from replicad.source.root import Root, Trail

THREADS = 8
"""Directories that are loaded side by side; more of them did not make a cold walk faster."""
MAX_WAITING = 1024
"""Directories that wait to be looked at: those before them the walk has overtaken, if it is so far ahead itself."""
INODES_SHIFT = 4
"""Inodes lie side by side in blocks, 16 to 4 KiB on ext4: one look brings its neighbours along."""


class Ahead:
    """Looks at directories of one root in threads of its own, until `close`."""

    def __init__(self, root: Root) -> None:
        self.fd = os.dup(root.fd)
        self._paths: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._left = THREADS
        self._leaving = threading.Lock()
        for _ in range(THREADS):
            threading.Thread(target=self._look_on, daemon=True).start()

    def look(self, paths: Sequence[bytes]) -> None:
        """These are next."""
        for path in paths:
            self._paths.put(path)
        self._forget(MAX_WAITING)

    def close(self) -> None:
        """Let the threads end, without waiting for them; the last one closes the root."""
        self._forget(0)  # the walk is over: a root that is open for it cannot be unmounted
        for _ in range(THREADS):
            self._paths.put(None)

    def _forget(self, kept: int) -> None:
        """Leave out those that have waited longest."""
        with suppress(queue.Empty):
            while self._paths.qsize() > kept:
                self._paths.get_nowait()

    def _look_on(self) -> None:
        with Trail(self) as trail:
            while (path := self._paths.get()) is not None:
                with suppress(OSError):  # the walk will say what is wrong with it
                    look_at(trail.enter(path))
        with self._leaving:
            self._left -= 1
            if not self._left:
                os.close(self.fd)


def look_at(directory: int) -> None:
    """Have the kernel load an open directory and the inodes of what is in it. Raises OSError."""
    seen: set[int] = set()
    with os.scandir(directory) as listing:
        for entry in listing:
            neighbours = entry.inode() >> INODES_SHIFT
            if neighbours not in seen:
                seen.add(neighbours)
                entry.stat(follow_symlinks=False)
