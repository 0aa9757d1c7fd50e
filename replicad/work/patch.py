"""Patch: one file of the dataset, open to have one block written, or its metadata set, and nothing else.

The only place that writes into the primary's data. The way down goes through open directories and follows no symlink;
nobody else has the file open (a lease of the kernel, which makes whoever opens it wait, though not for ever); the
identity is looked at before and after; the size never changes; times are put back. All of it runs in a thread.

**Never** decides whether to write: `mend_primary.py` does, and writes its intent down first.
"""

from __future__ import annotations

import fcntl
import os
import signal
import stat
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from replicad.model.entry import Kind, Meta, Put, Stamp, Xattrs
from replicad.source.root import Root, Trail, is_regular, split
from replicad.system.disk import AlignedBuffer, Disk, read_at, set_direct
from replicad.work.attributes import set_attributes
from replicad.work.rights import CAPABILITY, Rights

_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_HARMLESS = signal.SIGURG
"""What the kernel says when somebody waits for the lease: a signal that does nothing, where its default ends us."""
_BUFFER_BYTES = 2 * 1024 * 1024
"""Any block, and what aligning it takes."""
_PATIENCE = Path("/proc/sys/fs/lease-break-time")
"""Seconds after which the kernel lets in whoever waits for a lease, whether it was given up or not."""


class Refusal(Exception):
    """Nothing was written, and why not: a guard, or the system, said no."""


class Moved(Refusal):
    """Nothing was written: the file is not the recorded one any more."""


class Overtaken(Moved):
    """Something was written, and by somebody else as well, perhaps: all of it counts as his."""


class Patch:
    """One open file. Raises Refusal, Moved, and OSError where the medium does not answer."""

    def __init__(self, root: Root, path: bytes, expected: Stamp, disk: Disk) -> None:
        """Open the file that has this identity."""
        self._root, self._expected, self._disk = root, expected, disk
        self._fd = _open(root, path)
        try:
            if not is_regular(os.fstat(self._fd)):
                raise Moved("it is no regular file any more")
            _take_lease(self._fd)
            self.check()
            status = os.fstat(self._fd)
            self.times = status.st_atime_ns, status.st_mtime_ns
            """What is put back after a write."""
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Patch:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; whoever waits for it goes on."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def stamp(self) -> Stamp:
        """What it is now."""
        return self._root.stamp(os.fstat(self._fd), self._fd)

    def check(self) -> None:
        """The file is as recorded, and nobody waits for it."""
        self._checked_s = time.monotonic()
        if self.stamp().identity != self._expected.identity:
            raise Moved("somebody wrote it since it was recorded")
        if not self._is_ours():
            raise Refusal("another program opens it just now; try again")

    def read(self, offset: int, size: int) -> tuple[bytes, bool]:
        """Bytes from the medium, and whether they do come from there. Raises OSError."""
        direct = set_direct(self._fd, True)
        try:
            return bytes(read_at(self._fd, AlignedBuffer(_BUFFER_BYTES), offset, size)), direct
        finally:
            set_direct(self._fd, False)

    def write(self, offset: int, data: bytes) -> None:
        """Write within the file, durably. Raises Refusal, OSError."""
        assert offset + len(data) <= self._expected.size, "a block ends behind its file's end"
        privileges = _privileges(self._fd)
        check_rights(Kind.FILE, privileges)
        try:
            done = 0
            while done < len(data):
                done += self._disk.pwrite(self._fd, data[done:], offset + done)
            self._disk.sync(self._fd)
        finally:
            _give_back(self._fd, privileges)

    def set_times(self, atime_ns: int, mtime_ns: int) -> Stamp:
        """Give the file these times, durably; the stamp that it has then. Raises Overtaken, OSError."""
        os.utime(self._fd, ns=(atime_ns, mtime_ns))
        return self._settled()

    def set_metadata(self, put: Put) -> tuple[Stamp, list[str]]:
        """Give the file the metadata of `put`, but for its time, durably; the stamp that it has then, and in words what
        the system refused. Raises Overtaken, OSError."""
        atime_ns, mtime_ns = self.times
        unset = set_attributes(put, self._fd, atime_ns=atime_ns, mtime_ns=mtime_ns)
        return self._settled(), unset

    def _settled(self) -> Stamp:
        """The stamp of what was done since `check`, which is made durable. It is taken first, however long that takes:
        what somebody does from here on shows in the times."""
        now = self.stamp()
        if not self._is_ours() and time.monotonic() - self._checked_s >= _patience_s():
            raise Overtaken("another program may have been let in while it was repaired")
        self._disk.sync_with_times(self._fd)
        return now

    def _is_ours(self) -> bool:
        """Whether the lease holds and nobody waits for its end."""
        return fcntl.fcntl(self._fd, fcntl.F_GETLEASE) == fcntl.F_WRLCK


def _open(root: Root, path: bytes) -> int:
    above, name = split(path)
    try:
        with Trail(root) as trail:
            return os.open(name, _FLAGS, dir_fd=trail.enter(above))
    except (FileNotFoundError, NotADirectoryError):
        raise Moved("it is not there any more") from None
    except OSError as error:
        raise Refusal(f"it cannot be opened for writing: {error.strerror}") from error


def check_rights(kind: Kind, meta: Meta) -> None:
    """Whoever writes an entry with this metadata, or sets it anew, may leave all of it there. Raises Refusal."""
    if lacking := " and ".join(Rights().wanted_to_keep(kind, meta)):
        text = "its setuid or setgid bits, or its capabilities, would be lost"
        hint = "bring it back as root with replicad restore --in-place --path"
        raise Refusal(f"{text}: give the daemon {lacking}, as systemd/replicad.service has it at its head, or {hint}")


def _privileges(fd: int) -> Meta:
    """What the kernel takes from a program that is written: its setuid bits and its capabilities."""
    status = os.fstat(fd)
    xattrs: Xattrs = ()
    with suppress(OSError):
        xattrs = ((CAPABILITY, os.getxattr(fd, CAPABILITY)),)
    return Meta(stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, status.st_mtime_ns, xattrs)


def _give_back(fd: int, before: Meta) -> None:
    now = _privileges(fd)
    if now.mode != before.mode:
        os.fchmod(fd, before.mode)
    if now.xattrs != before.xattrs:
        for name, value in before.xattrs:
            os.setxattr(fd, name, value)


def _patience_s() -> float:
    """No patience at all where the kernel does not tell: then somebody may be in at any time."""
    try:
        return float(_PATIENCE.read_text())
    except OSError:
        return 0.0


def _take_lease(fd: int) -> None:
    """Keep others out; refused while anybody has the file open: what they write would be taken for ours."""
    try:
        fcntl.fcntl(fd, fcntl.F_SETSIG, _HARMLESS)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except BlockingIOError:
        raise Refusal("another program has it open: stop that program (fuser names it), then repair again") from None
    except OSError as error:
        text = f"other programs cannot be kept out of it here ({error.strerror})"
        raise Refusal(f"{text}: bring the good bytes back with replicad restore --path") from error
