"""Root: the directory that a dataset lives in, and safe ways down from it.

**Owns** the answer to "is this still the same tree?" (`RootIdentity`) and the numbering of file systems in stamps.
**Never** follows a symlink below the root: a `Trail` opens each component relative to its parent with O_NOFOLLOW, so
a directory that is swapped for a symlink while a walk or a read is under way ends in an error, not outside the tree.
(A directory that somebody moves out of the root while it is open may still be listed to its end.)

The one idea: everything is reached through open directories, never by long paths; so entries whose whole path is
longer than the kernel's 4096 bytes are no special case.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import time
from types import TracebackType
from typing import NamedTuple, Protocol

import msgspec

from replicad.model.entry import Kind, Stamp, show_path
from replicad.model.errors import SourceError
from replicad.system.clock import Clock

MAX_OPEN = 64
"""Directories that a trail keeps open, far below the usual limit of 1024 descriptors; deeper ones are opened anew."""

SETTLE_NS = 20_000_000
"""Two ticks of the slowest kernel clock (100 Hz) that stamps files: a change within the same tick as the last one
leaves all times as they are."""
SETTLE_COARSE_NS = 2_000_000_000
"""The same where a file system stamps whole seconds, as ext4 with small inodes does, or every other one."""
SECOND_NS = 1_000_000_000
_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LOW_63_BITS = LAST_NS = 2**63 - 1
"""The books' integers are signed: times end in 2262, and half of a file system's id tells it from others as well."""

KIND_OF = (
    0, Kind.FIFO.value, Kind.CHARACTER_DEVICE.value, 0, Kind.DIRECTORY.value, 0, Kind.BLOCK_DEVICE.value, 0,
    Kind.FILE.value, 0, Kind.SYMLINK.value, 0, Kind.SOCKET.value, 0, 0, 0,
)  # fmt: skip
"""`Kind` number by the four type bits of st_mode; 0 = none that could be replicated."""


class RootIdentity(NamedTuple):
    """What a root must keep for the dataset to count as the same tree. Both survive a reboot, st_dev may not."""

    inode: int
    fsid: int


class Trouble(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """One path that could not be walked or read, and why; never to be taken for a deletion."""

    path: bytes
    reason: str
    vanished: bool = False
    """It was there a moment ago: somebody removed or replaced it just now, and the next pass will tell."""


def root_identity(path: bytes) -> RootIdentity:
    """The identity of the directory at `path`. Raises SourceError when it is missing, no directory or unreadable."""
    with Root(path) as root:
        return root.identity


class Root:
    """A dataset's root, held open; one for each pass. Several threads may use it."""

    def __init__(self, path: bytes) -> None:
        """Open the directory at `path` (symlinks that lead to it are followed). Raises SourceError."""
        self.path = path
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise SourceError(
                f"cannot be opened: {error.strerror}",
                where=show_path(path),
                hint="is the file system mounted, and may replicad read it?",
            ) from error
        status = os.fstat(self.fd)
        self.identity = RootIdentity(status.st_ino, os.fstatvfs(self.fd).f_fsid & _LOW_63_BITS)
        self.device = status.st_dev
        """st_dev, to tell mount points; never to be recorded."""
        self._labels = {self.device: 0}

    def __enter__(self) -> Root:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let the directory go."""
        os.close(self.fd)

    def check(self) -> None:
        """Raises SourceError when `path` no longer leads to the directory that was opened: a removed or unmounted
        root looks empty, and must not be taken for a tree whose entries were all deleted."""
        try:
            now = os.stat(self.path)
            same = (now.st_dev, now.st_ino) == (self.device, self.identity.inode)
        except OSError:
            same = False
        if not same:
            raise SourceError("was replaced, moved or unmounted during the pass", where=show_path(self.path))

    def label(self, device: int, fd: int) -> int:
        """The number that stands for the file system with st_dev `device` in stamps; `fd` is open on it."""
        found = self._labels.get(device)
        if found is None:
            fsid = os.fstatvfs(fd).f_fsid & _LOW_63_BITS
            found = self._labels[device] = 0 if fsid == self.identity.fsid else fsid
        return found

    def stamp(self, status: os.stat_result, fd: int) -> Stamp:
        """The stamp of an entry with this status; `fd` is open on it or on its directory."""
        mode, device = status.st_mode, status.st_dev
        label = 0 if device == self.device else self.label(device, fd)
        return recordable(Stamp(
            KIND_OF[mode >> 12], mode & 0o7777, status.st_uid, status.st_gid,
            label, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns,
        ))  # fmt: skip

    def look(self, path: bytes) -> Stamp | None:
        """The stamp of the entry at `path` now; None when nothing is there, or nothing that can be seen."""
        above, name = split(path)
        try:
            with Trail(self) as trail:
                directory = trail.enter(above)
                return self.stamp(lstat_at(directory, name), directory)
        except OSError:
            return None


class Opened(Protocol):
    """A root as a trail needs it."""

    fd: int


class Trail:
    """The open directories from the root down to where one thread works now."""

    def __init__(self, root: Opened) -> None:
        self._root = root
        self._names: list[bytes] = []
        self._fds: list[int] = []
        self._deep = -1
        """The directory entered last, when it lies deeper than MAX_OPEN levels."""
        self._path: bytes | None = b""
        """The directory entered last; None when that failed."""

    def __enter__(self) -> Trail:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close every directory but the root."""
        self._leave_deep()
        self._cut(0)

    def enter(self, path: bytes) -> int:
        """Descriptor of the directory at `path`, valid until the next call. Raises OSError: ENOTDIR or ELOOP where a
        component is no directory (any more), else as open(2) says."""
        if path == self._path:
            return self._here()
        self._path = None
        self._leave_deep()
        names = path.split(b"/") if path else []
        shared = _shared(names[:MAX_OPEN], self._names)
        self._cut(shared)
        for name in names[shared:MAX_OPEN]:
            self._fds.append(os.open(name, _DIRECTORY_FLAGS, dir_fd=self._here()))
            self._names.append(name)
        for name in names[MAX_OPEN:]:
            below = os.open(name, _DIRECTORY_FLAGS, dir_fd=self._here())
            self._leave_deep()
            self._deep = below
        self._path = path
        return self._here()

    def _here(self) -> int:
        if self._deep >= 0:
            return self._deep
        return self._fds[-1] if self._fds else self._root.fd

    def _cut(self, depth: int) -> None:
        while len(self._fds) > depth:
            os.close(self._fds.pop())
            self._names.pop()

    def _leave_deep(self) -> None:
        if self._deep >= 0:
            os.close(self._deep)
            self._deep = -1


def recordable(seen: Stamp) -> Stamp:
    """What the file system says, in numbers that the books can hold; nearly always it is that already."""
    inode, mtime_ns, ctime_ns = seen.inode, seen.mtime_ns, seen.ctime_ns
    if inode <= LAST_NS and -LAST_NS <= mtime_ns <= LAST_NS and -LAST_NS <= ctime_ns <= LAST_NS:
        return seen
    return seen._replace(inode=signed(inode), mtime_ns=within_reach(mtime_ns), ctime_ns=within_reach(ctime_ns))


def signed(inode: int) -> int:
    """An inode number (64 bits, unsigned) as SQLite stores integers."""
    return inode - 2**64 if inode > LAST_NS else inode


def within_reach(time_ns: int) -> int:
    """A time of a file system, or the one nearest to it that the books can hold: some file systems know the year 2446,
    some every year."""
    return max(-LAST_NS, min(time_ns, LAST_NS))


def split(path: bytes) -> tuple[bytes, bytes]:
    """Directory and name of a path; the root stands in no directory and has no name."""
    directory, _, name = path.rpartition(b"/")
    return directory, name


def lstat_at(directory: int, name: bytes) -> os.stat_result:
    """Status of the entry `name` in an open directory; of the directory itself when `name` is empty."""
    return os.stat(name, dir_fd=directory, follow_symlinks=False) if name else os.fstat(directory)


def let_settle(status: os.stat_result, clock: Clock) -> None:
    """Wait, if the entry changed just before it had this status, until its next change would show in its times. It may
    have changed meanwhile, for all that is known: a later look tells."""
    settle_ns = SETTLE_NS if status.st_ctime_ns % SECOND_NS else SETTLE_COARSE_NS
    if 0 <= clock.now_ns() - status.st_ctime_ns < settle_ns:
        time.sleep(settle_ns / 1e9)


def trouble(path: bytes, doing: str, error: OSError) -> Trouble:
    """The trouble that `error` amounts to; `doing` says what failed, as in "cannot be read"."""
    if error.errno in _REPLACED:
        return Trouble(path, "was removed or replaced during the pass", vanished=True)
    return Trouble(path, f"{doing}: {error.strerror}")


_REPLACED = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO)
"""What an open without following symlinks says of a path that is something else than a moment ago: nothing, no
directory, a symlink, a socket."""

NAME_ENCODING = sys.getfilesystemencoding()
NAME_ERRORS = sys.getfilesystemencodeerrors()
"""How Python turned the bytes of a name into text, for turning them back."""


def _shared(one: list[bytes], other: list[bytes]) -> int:
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count


def is_regular(status: os.stat_result) -> bool:
    """Whether this is the status of a regular file."""
    return stat.S_ISREG(status.st_mode)
