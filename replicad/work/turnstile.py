"""Turnstile: a restore into a directory and a pass that reads it take turns, in whatever processes they are.

The lock is flock(2) on the directory itself, exclusive for who writes, shared for who reads: it needs no file and no
configuration, is there for a directory of any host, and ends with the process that holds it. **Never** keeps a reader
out for longer than a restore takes, nor a restore for longer than a pass.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

from replicad.model.errors import UsageError

LOOK_S = 0.05
"""How often a restore looks whether a pass has ended: passes may follow one another closely."""

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def try_exclusive(directory: int) -> bool:
    """Whether this open directory is ours to write in until it is closed."""
    return _try(directory, fcntl.LOCK_EX)


@asynccontextmanager
async def held_target(target: Path, roots: Sequence[Path], tell: Callable[[str], None]) -> AsyncIterator[int]:
    """The target, open and ours, and with it all of `roots` that lie in it. `tell` hears why it takes a while; whoever
    does not want to wait cancels it. Raises UsageError."""
    inside = [root for root in roots if root.resolve().is_relative_to(target.resolve()) and root.is_dir()]
    with ExitStack() as stack:
        found = -1
        for path in {target.resolve(): None} | {root.resolve(): None for root in inside}:
            fd = await _entered(path, tell)
            stack.callback(os.close, fd)
            found = fd if found < 0 else found
        yield found


async def _entered(path: Path, tell: Callable[[str], None]) -> int:
    is_told = False
    while True:
        try:
            fd = _enter(path, fcntl.LOCK_EX)
        except OSError as error:
            raise UsageError(f"cannot be used: {error.strerror}", where=str(path)) from error
        if fd is not None:
            return fd
        if not is_told:
            tell(f"waiting for the end of what reads or restores {path}")
            is_told = True
        await asyncio.sleep(LOOK_S)


def enter_to_read(path: Path | bytes) -> int | None:
    """The directory, open, and nobody restores into it until it is closed; None while somebody does; -1 when there is
    no such directory to be had, which is for others to report."""
    try:
        return _enter(path, fcntl.LOCK_SH)
    except OSError:
        return -1


def _enter(path: Path | bytes, kind: int) -> int | None:
    fd = os.open(path, _DIRECTORY)
    if _try(fd, kind):
        return fd
    os.close(fd)
    return None


def _try(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return kind == fcntl.LOCK_SH  # a file system without such locks: nobody can have shut us out
    return True
