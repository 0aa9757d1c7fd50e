"""Target: the directory that a restore writes into.

Paths come from a peer and the target may hold anything, so no path is ever given to the system as a whole: every
directory is opened from its parent, without following symlinks, and every entry is touched through its directory's
descriptor. Whatever a record says and whatever already lies there, nothing outside the target can be reached.
New entries appear under a temporary name and take their final one when they are whole.

**Owns** the open directories, the temporary names and the removal of what is in the way. **Never** decides what to
restore. Usable from several threads.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from replicad.model.block import checksum
from replicad.model.entry import Kind, Put
from replicad.model.errors import LockedError, UsageError
from replicad.system.disk import Disk
from replicad.work.aside import Aside, is_free
from replicad.work.turnstile import try_exclusive

TEMPORARY = b".replicad-restore-"
"""What the names of unfinished entries begin with. What follows depends on the final name alone, so that the next run
finds the file and goes on with it."""
_TEMPORARY_NAME = re.compile(re.escape(TEMPORARY) + b"[0-9a-f]{16}")
MAX_OPEN_DIRECTORIES = 128
"""Descriptors kept: the way down to the current directory and the directories of files still being written."""
MAX_NAMES = 1000
"""Directories of which the names are held at once while a tree is removed: looking for the next one goes over all."""
MAX_FRESH = 10_000
"""Directories known to be made by this run, newest first. Forgetting one costs a look for its entries, nothing else."""

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


class Obstacle(OSError):
    """A directory that is not empty stands where something else belongs."""


class _Held:
    """An open directory and how many use it."""

    __slots__ = ("fd", "users")

    def __init__(self, fd: int) -> None:
        self.fd, self.users = fd, 1


class Target:
    """One target directory, locked against other restores. With `dry` nothing is changed, and it need not exist."""

    def __init__(
        self, path: Path, disk: Disk, *, dry: bool = False, held: int | None = None, aside: Path | None = None
    ) -> None:
        """Creates the directory when it is missing (its parent must exist). `held`: it is open and locked already.
        `aside`: where what is replaced or removed is kept. Raises UsageError, LockedError, OSError."""
        self.path, self.disk, self.dry = path, disk, dry
        self._held = held
        self.kept = 0
        """Entries that were set aside."""
        self._lock = threading.Lock()
        self._open: OrderedDict[bytes, _Held] = OrderedDict()
        self._fresh: OrderedDict[bytes, None] = OrderedDict()
        self._made = False
        self._root = self._open_root()
        self._aside: Aside | None = None
        if self._root is not None and not dry:
            try:
                if self._made and _is_new(self._root):
                    self.trust_fresh(b"")
                if aside is not None:
                    self._aside = Aside(aside, path, self._root, disk)
            except (UsageError, OSError):
                os.close(self._root)
                raise

    def close(self) -> None:
        """Close all descriptors and let other restores in."""
        with self._lock:
            for held in self._open.values():
                os.close(held.fd)
            self._open.clear()
        if self._root is not None:
            os.close(self._root)
            self._root = None
        if self._aside is not None:
            self._aside.close()
            self._aside = None

    @contextmanager
    def directory(self, path: bytes) -> Iterator[int]:
        """The descriptor of the directory at `path` (b"" is the target), for a while. Raises OSError, also when another
        one stands where this run made one."""
        held = self._acquire(path)
        try:
            yield held.fd
        finally:
            with self._lock:
                held.users -= 1

    def is_fresh(self, directory: bytes) -> bool:
        """Whether this run made the directory, so that nothing can be in it that this run did not put there."""
        return directory in self._fresh

    def trust_fresh(self, directory: bytes) -> None:
        """Whoever locked this target made the directory."""
        with self._lock:
            self._fresh[directory] = None
            if len(self._fresh) > MAX_FRESH:
                self._fresh.popitem(last=False)

    def identity(self) -> tuple[int, int]:
        """Device and inode number of the directory itself, which exists."""
        assert self._root is not None
        status = os.fstat(self._root)
        return status.st_dev, status.st_ino

    def open_up(self, directory: bytes) -> None:
        """The directory gets its mode before the end: from here on others may enter it."""
        with self._lock:
            self._fresh.pop(directory, None)

    def status(self, path: bytes) -> os.stat_result | None:
        """lstat of an entry, None when there is none. Raises OSError."""
        directory, name = split(path)
        if name and self.is_fresh(directory) and self.dry:
            return None
        try:
            with self.directory(directory) as parent:
                return os.stat(name or b".", dir_fd=parent, follow_symlinks=False)
        except OSError as error:
            if error.errno in _ABSENT:
                return None
            raise

    def make_directory(self, path: bytes) -> None:
        """A new directory that only its owner may use until it gets its mode. Another one that somebody puts in its
        place meanwhile is taken for one that was there. Raises OSError."""
        directory, name = split(path)
        is_new = True
        if not self.dry:
            with self.directory(directory) as parent:
                os.mkdir(name, 0o700, dir_fd=parent)
            with self.directory(path) as fd:
                is_new = _is_new(fd)
        if is_new:
            self.trust_fresh(path)

    @property
    def keeps(self) -> bool:
        """Whether what is replaced is set aside, so that nothing may be written over."""
        return self._aside is not None

    def settle(self, temporary: bytes, path: bytes, parent: int) -> None:
        """Give an entry that is whole its final name in its open directory, replacing what has it. Raises OSError."""
        name = split(path)[1]
        self._set_aside(path, name, parent, move=False)
        self.disk.rename_at(temporary, name, parent)

    @contextmanager
    def new_node(self, put: Put) -> Iterator[tuple[int, bytes]]:
        """Make the symlink, fifo, device or socket that `put` says under a temporary name: its directory and name.

        It takes its final name, replacing what has it, when the block ends well. Raises OSError.
        """
        directory, name = split(put.path)
        with self.directory(directory) as parent:
            temporary = temporary_name(name)
            self._unlink(temporary, parent)
            if put.kind is Kind.SYMLINK:
                os.symlink(put.target, temporary, dir_fd=parent)
            else:
                os.mknod(temporary, NODE_TYPES[put.kind] | 0o600, put.device, dir_fd=parent)
            try:
                yield parent, temporary
                self.settle(temporary, put.path, parent)
            except BaseException:
                self._unlink(temporary, parent)
                raise

    def link(self, existing: bytes, path: bytes) -> None:
        """Make `path` another name of the restored file `existing`, replacing what has that name. Raises OSError."""
        (from_directory, from_name), (directory, name) = split(existing), split(path)
        with self.directory(from_directory) as source, self.directory(directory) as parent:
            temporary = temporary_name(name)
            self._unlink(temporary, parent)
            os.link(from_name, temporary, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
            self.settle(temporary, path, parent)
            self._unlink(temporary, parent)  # rename(2) does nothing between two names of one file

    def clear(self, path: bytes, status: os.stat_result, *, whole: bool) -> None:
        """Make room for a file where a directory is, or for a directory where anything else is.

        A directory goes only when empty, unless `whole`. Raises Obstacle, OSError.
        """
        if self.dry and (whole or not stat.S_ISDIR(status.st_mode)):
            return
        directory, name = split(path)
        with self.directory(directory) as parent:
            if not stat.S_ISDIR(status.st_mode):
                if not self._set_aside(path, name, parent, move=True):
                    os.unlink(name, dir_fd=parent)
            elif whole:
                if not self._set_aside(path, name, parent, move=True):
                    self._remove_tree(path, name, parent)
            else:
                self._remove_empty(path, name, parent)

    def remove(self, path: bytes) -> None:
        """Remove an entry with everything below it; stops at other file systems. Raises OSError."""
        directory, name = split(path)
        with self.directory(directory) as parent:
            if self._set_aside(path, name, parent, move=True):
                return
            if stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
                self._remove_tree(path, name, parent)
            else:
                os.unlink(name, dir_fd=parent)

    def drop_leftover(self, path: bytes) -> bool:
        """Whether an interrupted restore left this entry; it goes, and is not worth keeping. Raises OSError."""
        directory, name = split(path)
        if not is_temporary(name):
            return False
        with self.directory(directory) as parent:
            if stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
                return False
            if not self.dry:
                os.unlink(name, dir_fd=parent)
        return True

    def names(self, path: bytes) -> Iterator[bytes]:
        """Names in a directory, one by one. Raises OSError."""
        with self.directory(path) as fd:
            own = os.open(b".", _DIRECTORY, dir_fd=fd)  # scandir moves the descriptor's position, so not the shared one
            try:
                with os.scandir(own) as entries:
                    for entry in entries:
                        yield os.fsencode(entry.name)
            finally:
                os.close(own)

    def discard(self) -> None:
        """Nothing was restored: a target that was made for it goes."""
        if self._made and self.is_empty():
            self.path.rmdir()

    def is_empty(self) -> bool:
        """Whether nothing is in the target."""
        return not any(True for _ in self.names(b""))

    def sync(self) -> None:
        """Make everything restored so far durable."""
        if self._root is not None and not self.dry:
            self.disk.sync_file_system(self._root, self.path)

    # helpers

    def _set_aside(self, path: bytes, name: bytes, parent: int, *, move: bool) -> bool:
        """Keep what has this name; whether it was moved, or has a second name now."""
        if self._aside is None or is_free(name, parent):
            return False
        if move:
            self._forget(path)
        self._aside.keep(path, name, parent, move=move)
        with self._lock:
            self.kept += 1
        return True

    def _open_root(self) -> int | None:
        if self._held is not None:
            return os.dup(self._held)
        where = str(self.path)
        try:
            if not self.dry and not self.path.exists():
                self.path.mkdir(0o700)
                self._made = True
            root = os.open(self.path, _DIRECTORY if self._made else _DIRECTORY & ~os.O_NOFOLLOW)
        except FileNotFoundError:
            if self.dry and self.path.parent.is_dir():
                self._fresh[b""] = None
                return None
            raise UsageError("the parent directory does not exist", where=where, hint="make it first") from None
        except NotADirectoryError:
            raise UsageError("is no directory", where=where, hint="name a directory to restore into") from None
        except OSError as error:
            raise UsageError(f"cannot be used: {error.strerror}", where=where) from error
        if not self.dry and not try_exclusive(root):
            os.close(root)
            text = "another restore writes into this directory, or a pass reads it"
            raise LockedError(text, where=where, hint="let it end")
        return root

    def _acquire(self, path: bytes) -> _Held:
        with self._lock:
            held = self._open.get(path)
            if held is not None:
                self._open.move_to_end(path)
                held.users += 1
                return held
            held = _Held(self._open_down(path))
            if path in self._fresh and not is_private(os.fstat(held.fd)):
                os.close(held.fd)
                raise OSError(errno.ESTALE, "another process replaced the directory during the restore")
            self._open[path] = held
            self._evict()
            return held

    def _open_down(self, path: bytes) -> int:
        """Open a directory name by name, from the nearest one above it that is open."""
        if self._root is None:
            raise FileNotFoundError(errno.ENOENT, "does not exist")
        above = path
        while above and above not in self._open:
            above = split(above)[0]
        start = self._open[above].fd if above in self._open else self._root
        names = path[len(above) :].lstrip(b"/").split(b"/") if path != above else [b"."]
        fd = start
        for name in names:
            try:
                below = os.open(name, _DIRECTORY, dir_fd=fd)
            finally:
                if fd != start:
                    os.close(fd)
            fd = below
        return fd

    def _evict(self) -> None:
        if len(self._open) <= MAX_OPEN_DIRECTORIES:
            return
        for path, held in list(self._open.items())[: len(self._open) - MAX_OPEN_DIRECTORIES]:
            if not held.users:
                os.close(held.fd)
                del self._open[path]

    def _forget(self, path: bytes) -> None:
        """A directory is about to go: nobody may use a descriptor of it or of what is below any more."""
        with self._lock:
            gone = [known for known in self._open if known == path or known.startswith(path + b"/")]
            for known in gone:
                held = self._open[known]
                if not held.users:
                    os.close(held.fd)
                    del self._open[known]
            for known in [known for known in self._fresh if known == path or known.startswith(path + b"/")]:
                del self._fresh[known]

    def _remove_empty(self, path: bytes, name: bytes, parent: int) -> None:
        self._forget(path)
        if self.dry:
            if any(True for _ in self.names(path)):
                raise Obstacle(errno.ENOTEMPTY, _IN_THE_WAY)
            return
        try:
            os.rmdir(name, dir_fd=parent)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                raise Obstacle(errno.ENOTEMPTY, _IN_THE_WAY) from None
            raise

    def _remove_tree(self, path: bytes, name: bytes, parent: int) -> None:
        self._forget(path)
        device = os.fstat(parent).st_dev
        stack = [(name, os.open(name, _DIRECTORY, dir_fd=parent), list[bytes]())]
        try:
            while stack:
                above, fd, below = stack[-1]
                if os.fstat(fd).st_dev != device:
                    raise OSError(errno.EXDEV, "a file system is mounted below it")
                below += () if below else _unlink_files(fd)
                if below:
                    stack.append((below[-1], os.open(below.pop(), _DIRECTORY, dir_fd=fd), []))
                    continue
                stack.pop()
                os.close(fd)
                os.rmdir(above, dir_fd=stack[-1][1] if stack else parent)
        finally:
            for _, fd, _below in stack:
                os.close(fd)

    @staticmethod
    def _unlink(name: bytes, parent: int) -> None:
        try:
            os.unlink(name, dir_fd=parent)
        except FileNotFoundError:
            pass  # nothing was left over


_IN_THE_WAY = "a directory that is not empty is in the way (--delete-extra removes it, if the snapshot is complete)"

NODE_TYPES = {
    Kind.FIFO: stat.S_IFIFO,
    Kind.CHARACTER_DEVICE: stat.S_IFCHR,
    Kind.BLOCK_DEVICE: stat.S_IFBLK,
    Kind.SOCKET: stat.S_IFSOCK,
}


def split(path: bytes) -> tuple[bytes, bytes]:
    """A path as (directory, name); the target itself is (b"", b"")."""
    directory, _, name = path.rpartition(b"/")
    return directory, name


def temporary_name(name: bytes) -> bytes:
    """The name that an entry has in its directory until it is whole."""
    return TEMPORARY + checksum(name).hex()[:16].encode()


def is_temporary(name: bytes) -> bool:
    """Whether what has this name, unless it is a directory, is taken for an unfinished entry of a restore."""
    return _TEMPORARY_NAME.fullmatch(name) is not None


def is_private(status: os.stat_result) -> bool:
    """Whether an entry has the owner and the mode with which this run makes what nobody else may see yet."""
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IRWXG | stat.S_IRWXO)


def _is_new(fd: int) -> bool:
    """Whether an open directory is as one that was just made: nobody else may enter it, and nothing is in it."""
    return is_private(os.fstat(fd)) and not os.listdir(fd)


def _unlink_files(fd: int) -> list[bytes]:
    """Unlink everything in a directory but directories; the first of those, none when it is empty now."""
    below: list[bytes] = []
    with os.scandir(fd) as entries:
        for entry in entries:
            name = os.fsencode(entry.name)
            if not entry.is_dir(follow_symlinks=False):
                os.unlink(name, dir_fd=fd)
            elif len(below) < MAX_NAMES:
                below.append(name)
    return below
