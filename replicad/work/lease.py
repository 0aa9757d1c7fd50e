"""Lease: a snapshot that somebody reads is not let go while it is read.

One file in each store, `leases`: a reader has a shared lock on the byte whose place is the snapshot's number, retention
an exclusive one while it drops that snapshot. The locks belong to the open file (OFD locks), so a lease ends by itself
when its reader closes it or dies, and there is nothing to clean up. **Owns** that file.

**Never** stands in a reader's way: on a medium that cannot be written nobody drops anything, so none is needed there.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from replicad.model.errors import ReplicadError
from replicad.system.disk import errors_at

FILE = "leases"
MAX_HELD = 8
"""Snapshots that one reader holds at a time, those it looked at last: a restore reads one, a comparison two. A client
must not be able to keep a whole history from going by looking at it once."""

_FORM = struct.Struct("@hhqqi4x")
"""struct flock: type, whence, start, length, pid."""
_PLACES = 2**62
"""Numbers beyond share a place, which holds one snapshot too many at worst."""
_TAKEN = (errno.EAGAIN, errno.EACCES)
_NOT_NEEDED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.ENOSPC, errno.EDQUOT)
"""Why a reader has no lease: he may not make one, or there is no such store or no room for the file; a retention that
would drop what he reads makes it first."""
_READ, _WRITE, _NONE = fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK


class Leases:
    """What one reader of a store holds. One thread at a time."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._fd = -1
        self._held: OrderedDict[int, None] = OrderedDict()

    def hold(self, snapshot: int) -> bool:
        """Keep retention from dropping this snapshot until `close`, or until MAX_HELD others were held; False when it
        is being dropped right now."""
        if snapshot in self._held:
            self._held.move_to_end(snapshot)
            return True
        if self._fd < 0:
            self._fd = _open(self._directory)
        if self._fd >= 0 and not _lock(self._fd, _READ, snapshot):
            return False
        self._held[snapshot] = None
        if len(self._held) > MAX_HELD:
            self.release(next(iter(self._held)))
        return True

    def release(self, snapshot: int) -> None:
        """It may go."""
        self._held.pop(snapshot, None)
        if self._fd >= 0:
            _lock(self._fd, _NONE, snapshot)

    def close(self) -> None:
        """All may go."""
        self._held.clear()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


@contextmanager
def letting_go(directory: Path, numbers: Iterable[int]) -> Iterator[list[int]]:
    """Those of these snapshots that nobody reads; while the block runs nobody can begin to. Raises ReplicadError when
    that cannot be found out, as where there are too many open files: then none may go."""
    with errors_at(directory / FILE, "asking who reads a snapshot"):
        fd = _opened(directory, write=True)
    try:
        yield [number for number in numbers if _lock(fd, _WRITE, number)]
    finally:
        os.close(fd)


def leased(directory: Path, numbers: Iterable[int]) -> set[int]:
    """Those of these snapshots that somebody reads now."""
    if not (directory / FILE).exists():
        return set()
    fd = _open(directory)
    try:
        return {number for number in numbers if fd >= 0 and _is_locked(fd, number)}
    finally:
        if fd >= 0:
            os.close(fd)


def _open(directory: Path) -> int:
    """As `_opened`; -1 where a reader may do without: on a medium, or in a store, that he cannot write to."""
    try:
        return _opened(directory, write=False)
    except OSError as error:
        if error.errno in _NOT_NEEDED:
            return -1
        raise ReplicadError(
            f"a snapshot cannot be held: {error.strerror}", where=str(directory / FILE), hint="check rights and mount"
        ) from error


def _opened(directory: Path, *, write: bool) -> int:
    """The file of leases, made where it is missing. Raises OSError."""
    path, flags = directory / FILE, (os.O_RDWR if write else os.O_RDONLY) | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(path, flags)
    except FileNotFoundError:
        pass  # the first one in this store
    fd = os.open(path, flags | os.O_CREAT, 0o644)
    if os.geteuid() == 0:  # a person's restore must not make a file that the daemon cannot write to
        owner = os.stat(directory)
        os.fchown(fd, owner.st_uid, owner.st_gid)
    return fd


def _lock(fd: int, kind: int, snapshot: int) -> bool:
    """Whether the lock was had. Where the file system has no locks, nobody can hold one either."""
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FORM.pack(kind, os.SEEK_SET, snapshot % _PLACES, 1, 0))
    except OSError as error:
        return error.errno not in _TAKEN
    return True


def _is_locked(fd: int, snapshot: int) -> bool:
    asked = _FORM.pack(_WRITE, os.SEEK_SET, snapshot % _PLACES, 1, 0)
    try:
        answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked)
    except OSError:
        return False
    return bool(_FORM.unpack(answer)[0] != _NONE)
