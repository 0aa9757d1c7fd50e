"""Scratch: the place where a drill restores to, made for it and removed after it, also when the drill was killed.

    SCRATCH/replicad-drill-NAME-XXXXXXXX/     one drill's directory, 0711: its names say nothing of the data
        .replicad-drill                       the marker; whoever holds its lock is alive
        tree/                                 what is restored, 0700 until the root's own mode is set
        bench/N/                              one subject at a time, for its validator and nobody else

**Owns** what it made, and that alone: a directory goes only if it has the name, the marker and this user as owner, and
nobody holds the marker's lock. The marker goes last, so a removal that is cut short is finished at the next start.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from replicad.config import Config
from replicad.model.errors import DiskFullError, ReplicadError, UsageError
from replicad.system.disk import Disk
from replicad.work.together import in_own_thread

PREFIX = "replicad-drill-"
MARKER = ".replicad-drill"
MARK = b"replicad made this directory for a drill, and removes it\n"
"""All that a marker holds: a file of that name with any other content is nobody's marker."""
NAME = re.compile(PREFIX + r"[A-Za-z0-9._-]{1,64}-[0-9a-f]{8}", re.ASCII)

MAX_NAMES = 1000
"""Directories of which the names are held while another is emptied: looking for the next one goes over all of them."""
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MARKER = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC


Live = Callable[[], Sequence[tuple[str, Path]]]
"""Gives what is live now, with the words for it: a configuration may change."""


def live_places(config: Config) -> list[tuple[str, Path]]:
    """What a drill must stay away from, with the words for it."""
    places = [(f"dataset {dataset.name}", dataset.path) for dataset in config.datasets]
    places.append(("the state directory", config.node.state))
    return places + ([("the store", config.listen.store)] if config.listen else [])


def check_apart(base: Path, live: Sequence[tuple[str, Path]]) -> None:
    """Raises UsageError where the scratch directory and something live lie in one another, links resolved."""
    where = Path(os.path.realpath(base))  # a loop of links is an error of the drill that meets it
    for what, place in live:
        there = Path(os.path.realpath(place))
        if where.is_relative_to(there) or there.is_relative_to(where):
            raise UsageError(
                f"overlaps {what}, {place}: a drill writes and removes there",
                where=str(base),
                hint="set drill_scratch to a directory away from it",
            )


async def apart(base: Path, live: Sequence[tuple[str, Path]]) -> None:
    """The same from a thread of its own: each of these may be a dead mount."""
    await in_own_thread(partial(check_apart, base, live))


def room_bytes(base: Path, disk: Disk) -> int:
    """What is free there. Raises UsageError when it is not there, ReplicadError."""
    try:
        return disk.free_bytes(base)
    except OSError as error:
        raise _unusable(base, error) from error


class Scratch:
    """One drill's directory. `open` makes it, `close` removes it."""

    def __init__(self, base: Path, name: str) -> None:
        """Raises UsageError when `base` is no directory that can be written, DiskFullError."""
        self.path = base / f"{PREFIX}{name}-{secrets.token_hex(4)}"
        assert NAME.fullmatch(self.path.name)
        self._marker = -1
        try:
            with _locked(base):
                self.path.mkdir(mode=0o711)
                self._marker = os.open(self.path / MARKER, _MARKER | os.O_CREAT | os.O_EXCL, 0o600)
                fcntl.flock(self._marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.write(self._marker, MARK)
            self.path.chmod(0o711)  # whatever the umask
            self.tree.mkdir(mode=0o700)
            self.bench.mkdir()
            self.bench.chmod(0o711)
        except OSError as error:
            self._undo()
            raise _unusable(base, error) from error

    @property
    def tree(self) -> Path:
        """Where the drill restores to."""
        return self.path / "tree"

    @property
    def bench(self) -> Path:
        """Where a validator looks at one subject."""
        return self.path / "bench"

    def close(self) -> None:
        """Remove it with everything in it. Raises ReplicadError when something cannot be removed."""
        try:
            _remove(self.path, self._marker)
        finally:
            os.close(self._marker)

    def _undo(self) -> None:
        """Leave nothing of one that could not be made whole; what cannot be removed now is swept at the next start."""
        if self._marker >= 0:
            with suppress(ReplicadError):
                self.close()
        else:
            with suppress(OSError):
                self.path.rmdir()


async def make_scratch(base: Path, name: str) -> Scratch:
    """Make one in a thread, which may have to wait for a sweep; when cancelled, remove what it has made. Raises as
    `Scratch`."""
    making = asyncio.get_running_loop().run_in_executor(None, Scratch, base, name)
    try:
        return await asyncio.shield(making)
    except asyncio.CancelledError:
        await asyncio.wait([making])
        if not (making.cancelled() or making.exception()):
            await asyncio.to_thread(making.result().close)
        raise


def sweep(base: Path) -> list[Path]:
    """Remove what killed drills left; what was removed. A base that is not there holds nothing.

    Raises ReplicadError when something of theirs cannot be removed."""
    removed: list[Path] = []
    try:
        with _locked(base):
            for path in sorted(base.iterdir()):
                if NAME.fullmatch(path.name) and _sweep_one(path):
                    removed.append(path)
    except FileNotFoundError:
        return removed
    except OSError as error:
        raise _unusable(base, error) from error
    return removed


def _sweep_one(path: Path) -> bool:
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        return False
    try:
        marker = os.open(path / MARKER, _MARKER)
    except FileNotFoundError:
        return _remove_empty(path)
    except OSError:
        return False  # something of that name that is no file of ours
    try:
        if not stat.S_ISREG(os.fstat(marker).st_mode) or os.read(marker, 2 * len(MARK)) not in (MARK, b""):
            return False
        try:
            fcntl.flock(marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False  # a drill that lives
        _remove(path, marker)
        return True
    finally:
        os.close(marker)


def _remove_empty(path: Path) -> bool:
    """A drill that was killed before it had a marker left an empty directory; anything else is somebody's."""
    try:
        path.rmdir()
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True


def _remove(path: Path, marker: int) -> None:
    """Everything below, then the marker, then the directory, if the name still leads to the marker's directory."""
    try:
        parent = os.open(path.parent, _DIRECTORY & ~os.O_NOFOLLOW)
        try:
            fd = os.open(path.name, _DIRECTORY, dir_fd=parent)
            try:
                mine, there = os.fstat(marker), os.stat(MARKER, dir_fd=fd, follow_symlinks=False)
                if (mine.st_dev, mine.st_ino) != (there.st_dev, there.st_ino):
                    raise ReplicadError("is not the directory that the drill made", where=str(path))
                _empty(fd, keep=MARKER)
                os.unlink(MARKER, dir_fd=fd)
            finally:
                os.close(fd)
            os.rmdir(path.name, dir_fd=parent)
        finally:
            os.close(parent)
    except OSError as error:
        text = f"what a drill left cannot be removed: {error.strerror}"
        raise ReplicadError(text, where=str(path), hint="remove it by hand") from error


def _empty(top: int, *, keep: str = "") -> None:
    """Remove everything in an open directory; never follows a link, never enters another file system."""
    device, stack = os.fstat(top).st_dev, [(b"", top, list[bytes]())]
    try:
        while True:
            name, fd, below = stack[-1]
            below += () if below else _unlink_files(fd, keep if fd == top else "")
            if below:
                stack.append((below[-1], _opened(below.pop(), fd), []))
                if os.fstat(stack[-1][1]).st_dev != device:
                    raise OSError(errno.EXDEV, "a file system is mounted in it")
                continue
            if fd == top:
                return
            stack.pop()
            os.close(fd)
            os.rmdir(name, dir_fd=stack[-1][1])
    finally:
        for _name, fd, _below in stack[1:]:
            os.close(fd)


def _opened(name: bytes, parent: int) -> int:
    """A directory below; one that shuts its owner out is opened up first."""
    try:
        fd = os.open(name, _DIRECTORY, dir_fd=parent)
    except PermissionError:
        os.chmod(name, 0o700, dir_fd=parent)  # nobody but this drill writes here, so it is still a directory
        fd = os.open(name, _DIRECTORY, dir_fd=parent)
    if os.geteuid() != 0 and os.fstat(fd).st_mode & 0o700 != 0o700:
        os.fchmod(fd, 0o700)
    return fd


def _unlink_files(fd: int, keep: str) -> list[bytes]:
    """Unlink everything in a directory but directories; the first of those, none when there are none."""
    below: list[bytes] = []
    with os.scandir(fd) as entries:
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                if entry.name != keep:
                    os.unlink(entry.name, dir_fd=fd)
            elif len(below) < MAX_NAMES:
                below.append(os.fsencode(entry.name))
    return below


@contextmanager
def _locked(base: Path) -> Iterator[None]:
    """Between drills that share a scratch directory: none looks at a directory that is just being made."""
    fd = os.open(base, _DIRECTORY & ~os.O_NOFOLLOW)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _unusable(base: Path, error: OSError) -> ReplicadError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError("no room in the scratch directory", where=str(base), hint="free space there")
    hint = "make it, give it to the daemon's user, and name it in ReadWritePaths= under systemd"
    return UsageError(f"the scratch directory cannot be used: {error.strerror}", where=str(base), hint=hint)
