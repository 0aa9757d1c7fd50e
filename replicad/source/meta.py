"""Meta: everything about an entry that is not content: owner, mode, times, extended attributes, target, device.

**Owns** how extended attributes are read: all namespaces that this process may see, ACLs among them
(system.posix_acl_*), names and values as bytes. **Never** follows the entry itself when it is a symlink.

An attribute that may not be read, or that a record has no room for, is named, not passed over in silence: the entry is
described without it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence

import msgspec

from replicad.model.entry import MAX_PATH_BYTES, SPARSE, Kind, Meta, Stamp, Xattrs, fitting
from replicad.source.root import (
    Root,
    Trail,
    Trouble,
    let_settle,
    lstat_at,
    split,
    trouble,
)
from replicad.system.clock import Clock

TRIES = 3
"""How often an entry is described anew when it changes meanwhile; after that its old stamp makes the next walk find
it changed again."""
_NEVER_GIVEN = (errno.ENOTSUP, errno.E2BIG, errno.ERANGE)
"""What the system says of attributes that its file system lists and does not know, or that are larger than it gives."""
_STATUS_BLOCK_BYTES = 512
"""Unit of st_blocks, whatever the file system's own block size."""

_REAL_CLOCK = Clock()


class Description(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a `Put` needs beside path, kind and content."""

    meta: Meta
    flags: int = 0
    """SPARSE for a file that has holes, else 0."""
    target: bytes = b""
    """Of a symlink."""
    device: int = 0
    """st_rdev of a device."""
    troubles: tuple[str, ...] = ()
    """Attributes that could not be read, or recorded, and why."""
    again: bool = False
    """Whether a later look may give them though nothing changes: they are to be looked for again."""


class Described(msgspec.Struct, frozen=True):
    """An entry of any kind, unread. (What is read is described along with it.)"""

    path: bytes
    stamp: Stamp
    """From before anything was read: when it still holds, so does the description."""
    links: int
    description: Description


def describe(root: Root, paths: Sequence[bytes], *, clock: Clock = _REAL_CLOCK) -> list[Described | Trouble]:
    """Describe entries of any kind without reading content, in one call for many (at most a few hundred); the results
    in the order of `paths`. Raises nothing for an entry's sake."""
    with Trail(root) as trail:
        return [_describe(root, trail, path, clock) for path in paths]


def _describe(root: Root, trail: Trail, path: bytes, clock: Clock) -> Described | Trouble:
    above, name = split(path)
    try:
        directory = trail.enter(above)
        for _ in range(TRIES):
            status = lstat_at(directory, name)
            let_settle(status, clock)
            stamp = root.stamp(status, directory)
            if not stamp.kind:
                return Trouble(path, "is of a kind that cannot be replicated")
            described = Described(path, stamp, status.st_nlink, _description(directory, name, stamp, status))
            if len(described.description.target) > MAX_PATH_BYTES:
                return Trouble(path, f"leads to a target longer than {MAX_PATH_BYTES} bytes")
            if root.stamp(lstat_at(directory, name), directory) == stamp:
                break
    except OSError as error:
        return trouble(path, "metadata cannot be read", error)
    return described


def _description(directory: int, name: bytes, stamp: Stamp, status: os.stat_result) -> Description:
    # There is no getxattr relative to a directory; its descriptor's own path serves, and needs no long path.
    xattrs, troubles, again = read_xattrs(b"/proc/self/fd/%d/%s" % (directory, name) if name else directory)
    is_device = stamp.kind in (Kind.CHARACTER_DEVICE, Kind.BLOCK_DEVICE)
    return Description(
        Meta(stamp.mode, stamp.uid, stamp.gid, stamp.mtime_ns, xattrs),
        flags=_flags(stamp, status),
        target=os.readlink(name, dir_fd=directory) if stamp.kind == Kind.SYMLINK else b"",
        device=status.st_rdev if is_device else 0,
        troubles=troubles,
        again=again,
    )


def describe_open_file(fd: int, stamp: Stamp, status: os.stat_result) -> Description:
    """Describe a regular file that is open."""
    xattrs, troubles, again = read_xattrs(fd)
    meta = Meta(stamp.mode, stamp.uid, stamp.gid, stamp.mtime_ns, xattrs)
    return Description(meta, _flags(stamp, status), troubles=troubles, again=again)


def _flags(stamp: Stamp, status: os.stat_result) -> int:
    is_sparse = stamp.kind == Kind.FILE and status.st_blocks * _STATUS_BLOCK_BYTES < status.st_size
    return SPARSE if is_sparse else 0


def read_xattrs(of: int | bytes) -> tuple[Xattrs, tuple[str, ...], bool]:
    """Extended attributes sorted by name, of an open file or of what is at a path (a symlink itself, not its target);
    the reasons why some could not be read or are left out, and whether a later look may give them."""
    try:
        names = os.listxattr(of) if isinstance(of, int) else os.listxattr(of, follow_symlinks=False)
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return (), (), False
        reason = f"extended attributes cannot be listed: {error.strerror}"
        return (), (reason,), error.errno not in _NEVER_GIVEN
    if not names:
        return (), (), False
    troubles: list[str] = []
    errors: list[int | None] = []
    found, left_out = fitting(_values(of, sorted(names, key=os.fsencode), troubles, errors))
    if left_out:
        troubles.append(left_out)
    return found, tuple(troubles), any(error not in _NEVER_GIVEN for error in errors)


def _values(
    of: int | bytes, names: Sequence[str], troubles: list[str], errors: list[int | None]
) -> Iterator[tuple[bytes, bytes]]:
    """Names and values, each read when it is asked for; adds the reasons why some could not be read."""
    for name in names:
        try:
            value = os.getxattr(of, name) if isinstance(of, int) else os.getxattr(of, name, follow_symlinks=False)
        except OSError as error:
            if error.errno != errno.ENODATA:  # removed since it was listed, which moved ctime
                troubles.append(f"extended attribute {name} cannot be read: {error.strerror}")
                errors.append(error.errno)
            continue
        yield os.fsencode(name), value
