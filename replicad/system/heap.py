"""Heap: how glibc's allocator treats the buffers of a daemon that moves megabytes, and how its threads take turns.

By default the allocator hands memory back to the kernel whenever a large buffer is freed and faults it in again for the
next one; a receiver of 1 MiB messages then spends most of its CPU in page faults (measured: 450 MB/s against 1,350).
"""

from __future__ import annotations

import ctypes
import gc
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
"""Parameters of mallopt(3)."""
KEPT_BYTES = 64 * 1024 * 1024
"""Free memory kept at the top of the heap: what is under way at once; it stays within the daemon's memory bound."""
LARGE_BYTES = 32 * 1024 * 1024
"""Only larger buffers are mapped one by one; no message and no slab is that large."""

ARENAS = 4
"""Heaps that all threads share. By default each thread has its own, and each keeps what it has freed: a dozen threads
that have each read a catalog once keep a dozen page caches."""


def keep_freed_memory() -> bool:
    """Set thresholds and number of heaps; False where the C library has no mallopt (musl) and needs nothing like it."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    wanted = ((_M_TRIM_THRESHOLD, KEPT_BYTES), (_M_MMAP_THRESHOLD, LARGE_BYTES), (_M_ARENA_MAX, ARENAS))
    return mallopt is not None and all(mallopt(*one) for one in wanted)


YOUNG_OBJECTS = 50_000
"""Objects made and not yet freed before the collector looks at them. Batches of a few hundred files make some thousands
that reference counting frees anyway; the default of 700 has it look at each batch many times."""


def calm_collector() -> None:
    """Have the cycle collector look less often, and never at what was loaded at the start."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS)


TURN_S = 0.001
"""How long a thread may keep the interpreter while another one waits for it. Event loop and worker hand work to each
other for every MiB, and hash and encrypt with the interpreter held: with the default of 5 ms each waited for the other
a thousand times in a copy of 2 GiB, which took an eighth longer. Below a millisecond the changes themselves cost
more."""


def take_short_turns() -> None:
    """Have the threads of this process take turns more often."""
    sys.setswitchinterval(TURN_S)


def suit_bulk() -> None:
    """All of these, for a process whose event loop and threads move a whole dataset: a daemon, a restore."""
    keep_freed_memory()
    calm_collector()
    take_short_turns()
