"""Meta: everything about an entry that is not content: owner, mode, times, extended attributes, target, device.

**Owns** how extended attributes are read: all namespaces that this process may see, ACLs among them
(system.posix_acl_*), names and values as bytes. **Never** follows the entry itself when it is a symlink.

An attribute that may not be read is named, not passed over in silence: the entry is described without it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

import msgspec

from replicad.model.entry import SPARSE, Kind, Meta, Stamp
from replicad.source.root import NAME_ENCODING, NAME_ERRORS, Root, Trail, Trouble, lstat_at, split, trouble

TRIES = 3
"""How often an entry is described anew when it changes meanwhile; after that its old stamp makes the next walk find
it changed again."""
_STATUS_BLOCK_BYTES = 512
"""Unit of st_blocks, whatever the file system's own block size."""

Xattrs = tuple[tuple[bytes, bytes], ...]


class Description(msgspec.Struct, frozen=True):
    """What a `Put` needs beside path, kind and content."""

    meta: Meta
    flags: int = 0
    """SPARSE for a file that has holes, else 0."""
    target: bytes = b""
    """Of a symlink."""
    device: int = 0
    """st_rdev of a device."""
    troubles: tuple[str, ...] = ()
    """Attributes that could not be read, and why."""


class Described(msgspec.Struct, frozen=True):
    """An entry that is no regular file (those are described while they are read)."""

    path: bytes
    stamp: Stamp
    """From before anything was read: when it still holds, so does the description."""
    links: int
    description: Description


def describe(root: Root, paths: Sequence[bytes]) -> list[Described | Trouble]:
    """Describe entries that are no regular files, in one call for many (at most a few hundred); the same order.

    An entry that has become a regular file is a `Trouble` that says it vanished.
    """
    with Trail(root) as trail:
        return [_describe(root, trail, path) for path in paths]


def _describe(root: Root, trail: Trail, path: bytes) -> Described | Trouble:
    above, name = split(path)
    try:
        directory = trail.enter(above)
        status = lstat_at(directory, name)
        for _ in range(TRIES):
            stamp = root.stamp(status, directory)
            if stamp.kind in (Kind.FILE, 0):
                return Trouble(path, "was replaced during the pass", vanished=True)
            described = Described(path, stamp, status.st_nlink, _description(directory, name, stamp, status))
            status = lstat_at(directory, name)
            if root.stamp(status, directory) == stamp:
                break
    except OSError as error:
        return trouble(path, "metadata cannot be read", error)
    return described


def _description(directory: int, name: bytes, stamp: Stamp, status: os.stat_result) -> Description:
    # There is no getxattr relative to a directory; its descriptor's own path serves, and needs no long path.
    xattrs, troubles = read_xattrs(b"/proc/self/fd/%d/%s" % (directory, name) if name else directory)
    is_device = stamp.kind in (Kind.CHARACTER_DEVICE, Kind.BLOCK_DEVICE)
    return Description(
        Meta(stamp.mode, stamp.uid, stamp.gid, stamp.mtime_ns, xattrs),
        target=os.readlink(name, dir_fd=directory) if stamp.kind == Kind.SYMLINK else b"",
        device=status.st_rdev if is_device else 0,
        troubles=troubles,
    )


def describe_open_file(fd: int, stamp: Stamp, status: os.stat_result) -> Description:
    """Describe a regular file that is open."""
    xattrs, troubles = read_xattrs(fd)
    sparse = status.st_blocks * _STATUS_BLOCK_BYTES < status.st_size
    return Description(
        Meta(stamp.mode, stamp.uid, stamp.gid, stamp.mtime_ns, xattrs), SPARSE if sparse else 0, troubles=troubles
    )


def read_xattrs(of: int | bytes) -> tuple[Xattrs, tuple[str, ...]]:
    """Extended attributes sorted by name, of an open file or of what is at a path (a symlink itself, not its target);
    and the reasons why some could not be read."""
    try:
        names = os.listxattr(of) if isinstance(of, int) else os.listxattr(of, follow_symlinks=False)
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return (), ()
        return (), (f"extended attributes cannot be listed: {error.strerror}",)
    if not names:
        return (), ()
    found: list[tuple[bytes, bytes]] = []
    troubles: list[str] = []
    for name in names:
        try:
            value = os.getxattr(of, name) if isinstance(of, int) else os.getxattr(of, name, follow_symlinks=False)
            found.append((name.encode(NAME_ENCODING, NAME_ERRORS), value))
        except OSError as error:
            if error.errno != errno.ENODATA:  # removed since it was listed, which moved ctime
                troubles.append(f"extended attribute {name} cannot be read: {error.strerror}")
    found.sort()
    return tuple(found), tuple(troubles)
