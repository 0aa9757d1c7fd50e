"""Canary file: the one file that a primary writes into a dataset, and only where `canary` names it.

It is made without a name first (O_TMPFILE) and rewritten in place later: a daemon that is killed leaves a canary or
none, and nothing else; and a service that may write nothing else can be given this one file, made for it beforehand.

**Never** writes anywhere but into the root that it is handed open, and **never** over what is neither a canary nor an
empty file of the daemon's own user.
"""

from __future__ import annotations

import errno
import os
import stat

from replicad.model.canary_text import CANARY_BYTES, Canary, parse
from replicad.model.errors import SourceError
from replicad.source.root import Root
from replicad.system.disk import Disk

_OPEN = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NAMELESS_REFUSED = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT)
"""How file systems say that a file has to have a name (NFS, old FUSE)."""


def write_canary(root: Root, name: bytes, canary: Canary, disk: Disk) -> None:
    """Make or rewrite the canary in an open root. Raises SourceError, with nothing changed, when that is refused."""
    where = os.fsdecode(os.path.join(root.path, name))
    try:
        fd = _opened(root, name)
        if fd is None:
            _make(root, name, canary.content, disk)
            return
        try:
            _check_ours(fd, where)
            _write(fd, canary.content, disk)
        finally:
            os.close(fd)
    except OSError as error:
        hint = "let the daemon's user write this one file (docs/CANARY.md), or give canary another name"
        raise SourceError(f"the canary cannot be written: {error.strerror}", where=where, hint=hint) from error


def _opened(root: Root, name: bytes) -> int | None:
    """A descriptor of what has that name, None when nothing has."""
    try:
        return os.open(name, _OPEN, dir_fd=root.fd)
    except FileNotFoundError:
        return None


def _check_ours(fd: int, where: str) -> None:
    status = os.fstat(fd)
    content = os.pread(fd, CANARY_BYTES + 1, 0) if stat.S_ISREG(status.st_mode) else b"?"
    is_ours = parse(content) is not None or (not content and status.st_uid == os.geteuid())
    if is_ours and status.st_nlink == 1:
        return
    text = "has another name too" if is_ours else "is somebody's file, and no canary"
    hint = "it was not touched; give canary another name, or move that file away"
    raise SourceError(f"the canary is not written: this {text}", where=where, hint=hint)


def _make(root: Root, name: bytes, content: bytes, disk: Disk) -> None:
    """Raises FileExistsError when somebody made a file of that name just now: it is looked at next time."""
    try:
        fd = os.open(b".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=root.fd)
    except OSError as error:
        if error.errno not in _NAMELESS_REFUSED:
            raise
        _make_named(root, name, content, disk)
        return
    try:
        _write(fd, content, disk)
        os.link(b"/proc/self/fd/%d" % fd, name, dst_dir_fd=root.fd, follow_symlinks=True)
    finally:
        os.close(fd)


def _make_named(root: Root, name: bytes, content: bytes, disk: Disk) -> None:
    """What a kill leaves of this is an empty file of ours, which is written into next time."""
    fd = os.open(name, _OPEN | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=root.fd)
    try:
        _write(fd, content, disk)
    finally:
        os.close(fd)


def _write(fd: int, content: bytes, disk: Disk) -> None:
    """In one piece, durably. A first one for which there is no room leaves the file empty."""
    was_empty = not os.fstat(fd).st_size
    written = disk.pwrite(fd, content, 0)
    if written != len(content):
        if was_empty:
            os.ftruncate(fd, 0)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    disk.sync(fd)
