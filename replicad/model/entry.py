"""Entries: what a path in a dataset is, and the record operations that describe a change of entries.

A *record* is a sequence of operations (`Put`, `Map`, `Drop`). The same sequence is sent when a change is
replicated, written into the store's segments, and streamed back by a restore, so there is one notation for
"what the tree looks like" in the whole product.

`Put` says what a path is now. For a regular file it names a `file` number, which is the primary's name for
the content (hard links share it) and is never reused; the blocks that changed are listed in the `Put` itself
when few, or in the `Map` operations that follow it directly. Blocks that a file has and that are not listed
stay as they were in the parent snapshot; blocks in `zeros` (and blocks never listed) are all-zero and are
neither sent nor stored. Blocks beyond the end given by `size` cease to exist. Within one operation the end counts
first, then `zeros`, then the listed blocks: a run of zeros may cover blocks that are listed with it.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from typing import NamedTuple, NewType

import msgspec

from replicad.model.block import ID_BYTES, LARGEST_BLOCK_BYTES
from replicad.model.packed import unpacked
from replicad.model.show import show_path as show_path

FileNumber = NewType("FileNumber", int)

MAX_PATH_BYTES = 4095
MAX_NAME_BYTES = 255
MAX_DEPTH = MAX_PATH_BYTES // 2 + 1
"""Levels of directories that a path can have."""
INLINE_BLOCKS = 64
"""Blocks that a `Put` lists itself; more go into `Map` operations so that no operation grows with a file."""
MAP_BLOCKS = 4096
"""Blocks in one `Map` at most: 128 KiB of ids."""
MAX_BLOCKS = 2**40
"""Blocks in one file at most, far beyond any file system's largest file."""
MAX_XATTR_NAME_BYTES = 255
MAX_XATTR_BYTES = 64 * 1024
"""Largest single extended attribute value (the kernel's XATTR_SIZE_MAX)."""
MAX_XATTRS_BYTES = 1024 * 1024
"""All extended attributes of one entry in a new record: some of them fit into a message. Some file systems take more of
them; what a store has from before there was this limit is still read."""


_XATTR_BYTES = 6
"""What an extended attribute takes beside its name and its value."""


Xattrs = tuple[tuple[bytes, bytes], ...]


class Kind(IntEnum):
    """What a path is."""

    FILE = 1
    DIRECTORY = 2
    SYMLINK = 3
    FIFO = 4
    CHARACTER_DEVICE = 5
    BLOCK_DEVICE = 6
    SOCKET = 7


SPARSE = 1
"""Flag of a file whose zero blocks are holes rather than allocated zeros."""
FUZZY = 2
"""Flag of a file that kept changing while it was read: its blocks may stem from different moments."""

DAMAGED = 4
"""Flag of a file in an answer to a look at a snapshot: the store is known to be damaged in a block of this version.
Never in a record."""


class Meta(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Metadata that every entry has. `mode` holds the permission bits only (07777); times are ns since 1970."""

    mode: int
    uid: int
    gid: int
    mtime_ns: int
    xattrs: Xattrs = ()
    """Extended attributes, ACLs (system.posix_acl_*) included, sorted by name."""


class Put(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """The entry at `path` is now this. `path` is relative to the root, b"" being the root itself."""

    path: bytes
    kind: Kind
    meta: Meta
    size: int = 0
    """Size in bytes of a file; 0 for everything else."""
    file: int = 0
    """File number of a regular file; 0 for everything else. Two paths with one number are hard links."""
    block_bytes: int = 0
    flags: int = 0
    target: bytes = b""
    """Target of a symlink."""
    device: int = 0
    """Device number (st_rdev) of a device."""
    blocks: tuple[int, ...] = ()
    """Indexes of the changed blocks, ascending; their ids stand in `ids` in the same order."""
    ids: bytes = b""
    zeros: tuple[tuple[int, int], ...] = ()
    """Runs (first index, count) that are all-zero now and may not have been before."""


class Map(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """More changed blocks of the file of the preceding `Put`."""

    file: int
    blocks: tuple[int, ...]
    ids: bytes
    zeros: tuple[tuple[int, int], ...] = ()


class Drop(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """The entry at `path` exists no more (a directory's entries are dropped one by one, children first)."""

    path: bytes


Op = Put | Map | Drop


class Identity(msgspec.Struct, frozen=True, array_like=True):
    """What must be unchanged for a file to count as unwritten. Times in ns since 1970."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


class Stamp(NamedTuple):
    """What the file system says of an entry without reading it. Equal stamps: nobody wrote it or its metadata, since
    any change of content, mode, owner, link count or extended attributes moves ctime. Times in ns since 1970."""

    kind: int
    """A `Kind`, as a plain number."""
    mode: int
    """Permission bits, 07777."""
    uid: int
    gid: int
    device: int
    """0 for the file system that holds the root, else the id of the file system. Not st_dev: that may change over a
    reboot, and a dataset that looks rewritten as a whole would let rot travel."""
    inode: int
    size: int
    """st_size, for directories and symlinks too."""
    mtime_ns: int
    ctime_ns: int

    @property
    def identity(self) -> Identity:
        """The part that speaks for the content."""
        return Identity(*self[4:])


def xattrs_length(xattrs: Iterable[tuple[bytes, bytes]]) -> int:
    """About how long extended attributes are when encoded."""
    return sum([len(name) + len(value) + _XATTR_BYTES for name, value in xattrs])


def fitting(xattrs: Iterable[tuple[bytes, bytes]]) -> tuple[Xattrs, str]:
    """Extended attributes that a new record has room for, one after the other, and in words which are left out, "" for
    none. Holds no others meanwhile."""
    kept: list[tuple[bytes, bytes]] = []
    left_out: list[bytes] = []
    room = MAX_XATTRS_BYTES
    for one in xattrs:
        if (length := xattrs_length([one])) > room or _xattr_problem(*one):
            left_out.append(one[0])
        else:
            kept.append(one)
            room -= length
    if not left_out:
        return tuple(kept), ""
    more = f" and {len(left_out) - 1:,} more are" if left_out[1:] else " is"
    text = f"extended attribute {show_path(left_out[0])}{more} left out"
    return tuple(kept), f"{text}: those of one entry may have {MAX_XATTRS_BYTES:,} bytes together"


def path_problem(path: bytes) -> str:
    """Why `path` may not name an entry, or "" when it may. The root is b""; all others are relative, without dots."""
    if not path:
        return ""
    if len(path) > MAX_PATH_BYTES:
        return f"is longer than {MAX_PATH_BYTES} bytes"
    if b"\0" in path:
        return "holds a NUL byte"
    if path[:1] == b"/":
        return "is absolute"
    for name in path.split(b"/"):
        if name in (b"", b".", b".."):
            return f"has the component {name.decode()!r}"
        if len(name) > MAX_NAME_BYTES:
            return f"has a component longer than {MAX_NAME_BYTES} bytes"
    return ""


_encoder = msgspec.msgpack.Encoder()
_ops_decoder = msgspec.msgpack.Decoder(list[Op])


def encode_ops(ops: list[Op]) -> bytes:
    """Operations as one msgpack array."""
    return _encoder.encode(ops)


def decode_ops(data: bytes) -> list[Op]:
    """The inverse of `encode_ops`, with every rule checked that one operation alone can break.

    Raises ValueError (msgspec's errors are ValueErrors) with the reason.
    """
    ops = unpacked(_ops_decoder.decode, data)
    for op in ops:
        problem = op_problem(op)
        if problem:
            raise ValueError(problem)
    return ops


def op_problem(op: Op) -> str:
    """Why `op` is no valid operation, or ""."""
    if isinstance(op, Map):
        return _blocks_problem(op)
    reason = path_problem(op.path)
    if reason:
        return f"path {show_path(op.path[:80])} {reason}"
    if isinstance(op, Drop):
        return "" if op.path else "the root cannot be dropped"
    if len(op.target) > MAX_PATH_BYTES:
        return f"target of {show_path(op.path[:80])} is longer than {MAX_PATH_BYTES} bytes"
    for xattr in op.meta.xattrs:
        if reason := _xattr_problem(*xattr):
            return f"extended attribute of {show_path(op.path[:80])} {reason}"
    if op.kind is Kind.FILE:
        if not op.path or op.file <= 0 or op.size < 0 or not 0 < op.block_bytes <= LARGEST_BLOCK_BYTES:
            return f"file {show_path(op.path[:80])} has an invalid number, size or block size"
        return _blocks_problem(op)
    if op.file or op.blocks or op.ids or op.zeros:
        return f"{show_path(op.path[:80])} has blocks but is no file"
    if not op.path and op.kind is not Kind.DIRECTORY:
        return "the root is no directory"
    return ""


def _xattr_problem(name: bytes, value: bytes) -> str:
    if len(name) > MAX_XATTR_NAME_BYTES or len(value) > MAX_XATTR_BYTES:
        return f"is longer than {MAX_XATTR_NAME_BYTES} bytes (name) or {MAX_XATTR_BYTES} bytes (value)"
    return ""


def _blocks_problem(op: Put | Map) -> str:
    if len(op.ids) != ID_BYTES * len(op.blocks):
        return "number of block ids differs from number of block indexes"
    if len(op.blocks) > MAP_BLOCKS or len(op.zeros) > MAP_BLOCKS:
        return "too many blocks in one operation"
    last = -1
    for index in op.blocks:
        if not last < index < MAX_BLOCKS:
            return "block indexes are not ascending or out of range"
        last = index
    if any(first < 0 or count <= 0 or first + count > MAX_BLOCKS for first, count in op.zeros):
        return "run of zero blocks out of range"
    return ""
