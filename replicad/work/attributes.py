"""Attributes: owner, mode, times, extended attributes and ACLs of restored entries: compared, and set.

The order is the idea: owner first (it clears setuid bits and capabilities), then extended attributes (an ACL changes
the mode), then the mode, the time last, so that an entry whose restore was cut off does not look finished. What the
system refuses is returned in words, never raised: the content is worth having without its owner.
**Never** follows a symlink: everything goes through a `Ref`, an open descriptor in one form or the other.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from replicad.model.entry import Kind, Meta, Put, fitting, show_path
from replicad.source.root import within_reach

MANAGED = (b"user.", b"trusted.", b"system.posix_acl_", b"security.capability")
"""Extended attributes that are removed when the record does not have them. Others (SELinux labels, integrity
measurements) belong to the host that is restored to and are only ever set."""
MAX_OWNER = 2**32 - 2
"""Largest uid and gid; the next one means "leave as it is" to chown(2)."""

Ref = int | bytes
"""An entry that is held open: a descriptor, or the /proc link of one that can only be pointed at (`opened_path`)."""

KINDS = {
    stat.S_IFREG: Kind.FILE,
    stat.S_IFDIR: Kind.DIRECTORY,
    stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFIFO: Kind.FIFO,
    stat.S_IFCHR: Kind.CHARACTER_DEVICE,
    stat.S_IFBLK: Kind.BLOCK_DEVICE,
    stat.S_IFSOCK: Kind.SOCKET,
}

UNUSABLE = (OSError, OverflowError, ValueError)
"""What the system's calls raise for values it cannot take: numbers out of range and NUL bytes come from a record."""


def kind_of(status: os.stat_result) -> Kind | None:
    """The kind of an existing entry; None for what no record knows."""
    return KINDS.get(stat.S_IFMT(status.st_mode))


@contextmanager
def opened_path(name: bytes, directory: int) -> Iterator[Ref]:
    """Any entry held open without reading or following it. Raises OSError."""
    handle = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        yield b"/proc/self/fd/%d" % handle
    finally:
        os.close(handle)


def attributes_differ(put: Put, status: os.stat_result, ref: Ref) -> bool:
    """Whether the entry behind `ref`, whose lstat is `status`, has other metadata than `put` says. Raises OSError."""
    meta = put.meta
    return (
        within_reach(status.st_mtime_ns) != meta.mtime_ns
        or (status.st_uid, status.st_gid) != (meta.uid, meta.gid)
        or (put.kind is not Kind.SYMLINK and stat.S_IMODE(status.st_mode) != meta.mode)
        or _xattrs(ref, meta) != dict(meta.xattrs)
    )


def set_attributes(put: Put, ref: Ref, *, atime_ns: int, mtime_ns: int | None = None) -> list[str]:
    """Give the entry behind `ref` the metadata of `put`; in words what could not be set.

    `mtime_ns` replaces the recorded time where the content is not what was recorded.
    """
    meta = put.meta
    unset: list[str] = []
    owned = _attempt(unset, f"owner {meta.uid}:{meta.gid}", _set_owner, ref, meta)
    _set_xattrs(meta, ref, unset)
    if put.kind is not Kind.SYMLINK:  # a symlink has no mode on Linux
        mode = meta.mode if owned else meta.mode & ~(stat.S_ISUID | stat.S_ISGID)
        if mode != meta.mode:
            unset.append("setuid and setgid bits: left off, the owner is another")
        is_set = _attempt(unset, f"mode {meta.mode:04o}", os.chmod, ref, mode)
        if is_set and mode & stat.S_ISGID and not os.stat(ref).st_mode & stat.S_ISGID:  # taken away without a word
            unset.append(f"setgid bit: only a member of group {meta.gid}, or root, may set it")
    times = (atime_ns, meta.mtime_ns if mtime_ns is None else mtime_ns)
    _attempt(unset, "time", _set_times, ref, times)
    return unset


def reason_of(error: BaseException) -> str:
    """An error of the system in words, without its path."""
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)


def _attempt(unset: list[str], what: str, call: Callable[..., Any], *arguments: object) -> bool:
    try:
        call(*arguments)
    except UNUSABLE as error:
        unset.append(f"{what}: {reason_of(error)}")
        return False
    return True


def _set_owner(ref: Ref, meta: Meta) -> None:
    if not (0 <= meta.uid <= MAX_OWNER and 0 <= meta.gid <= MAX_OWNER):
        raise ValueError("no such owner is possible")
    os.chown(ref, meta.uid, meta.gid)


def _set_times(ref: Ref, times: tuple[int, int]) -> None:
    os.utime(ref, ns=times)


def _set_xattrs(meta: Meta, ref: Ref, unset: list[str]) -> None:
    """Set what is missing or different, remove what is managed and not recorded."""
    try:
        present = _xattrs(ref, meta)
    except OSError as error:
        unset.append(f"extended attributes: {reason_of(error)}")
        return
    for name, value in meta.xattrs:
        if present.pop(name, None) != value:
            _attempt(unset, f"extended attribute {show_path(name)}", os.setxattr, ref, name, value)
    for name in present:
        _attempt(unset, f"stray extended attribute {show_path(name)}", os.removexattr, ref, name)


def _xattrs(ref: Ref, meta: Meta) -> dict[bytes, bytes]:
    """Managed and recorded extended attributes that the entry has, as far as a record could have them: what it has no
    room for is no stray one; {} where its file system has none."""
    try:
        names = [os.fsencode(name) for name in os.listxattr(ref)]
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return {}
        raise
    if not names:
        return {}
    recorded = {name for name, _ in meta.xattrs}
    wanted = sorted(name for name in names if name in recorded or name.startswith(MANAGED))
    return dict(fitting((name, os.getxattr(ref, name)) for name in wanted)[0])
