"""Reread: single blocks of files that are recorded already, for a replica that lacks them or a doubt about them.

**Owns** the judgement of guarantee 3: bytes that differ from the record, of a file that nobody wrote, are rot.
**Never** returns a block of a file whose identity is not, before and after, the one it was recorded under.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from enum import Enum

import msgspec

from replicad.model.block import Checksum
from replicad.model.entry import Identity, Kind, Stamp
from replicad.source.read import REAL, Access, misreported, open_file
from replicad.source.root import Root, Trail, Trouble, trouble
from replicad.system.direct import DirectReader, aligned, borrow_buffer, is_refusal, return_buffer


class Ask(msgspec.Struct, frozen=True):
    """Some blocks of one file that were recorded under `identity`."""

    path: bytes
    indexes: tuple[int, ...]
    block_bytes: int
    identity: Identity


class Reread(msgspec.Struct, frozen=True):
    """The blocks asked for, read while the file had the identity asked for, before and after. Whether the bytes are
    still the recorded ones is for `judge_reread` to say."""

    path: bytes
    blocks: list[bytes]
    """In the order of the indexes."""
    medium: bool
    """Whether all of them came from the medium rather than the page cache."""


class Moved(msgspec.Struct, frozen=True):
    """The file has another identity than the one asked for, or got one while it was read: somebody wrote it."""

    path: bytes
    stamp: Stamp


def reread(
    root: Root, asks: Sequence[Ask], *, medium: bool = False, access: Access = REAL
) -> list[Reread | Moved | Trouble]:
    """Read single blocks again; the results in the order of `asks`. With `medium`, past the page cache where the file
    system allows that. The caller bounds how much it asks for. No file makes it raise."""
    buffer = borrow_buffer()
    try:
        with Trail(root) as trail, memoryview(buffer) as view:
            return [_reread(root, trail, ask, view if medium else None, access) for ask in asks]
    finally:
        return_buffer(buffer)


def _reread(root: Root, trail: Trail, ask: Ask, view: memoryview | None, access: Access) -> Reread | Moved | Trouble:
    try:
        fd = open_file(trail, ask.path)
        try:
            before = root.stamp(os.fstat(fd), fd)
            if before.kind != Kind.FILE or before.identity != ask.identity:
                return Moved(ask.path, before)
            blocks, from_medium = _blocks(fd, ask, view, access)
            access.before_second_look(ask.path)
            after = root.stamp(os.fstat(fd), fd)
        finally:
            os.close(fd)
    except OSError as error:
        return trouble(ask.path, "cannot be read", error)
    if after.identity != ask.identity:
        return Moved(ask.path, after)
    for index, block in zip(ask.indexes, blocks, strict=True):
        if len(block) != block_length(after.size, ask.block_bytes, index):
            return misreported(ask.path, index * ask.block_bytes + len(block), after.size)
    return Reread(ask.path, blocks, from_medium)


def block_length(size: int, block_bytes: int, index: int) -> int:
    """Bytes of the block at `index` in a file of `size` bytes; 0 behind its end."""
    return max(0, min(block_bytes, size - index * block_bytes))


def _blocks(fd: int, ask: Ask, view: memoryview | None, access: Access) -> tuple[list[bytes], bool]:
    direct = DirectReader.of(fd) if view else None
    if direct and view:
        with direct:
            try:
                return [_one_direct(fd, direct, view, ask, index, access) for index in ask.indexes], True
            except OSError as error:
                if not is_refusal(error):
                    raise
    size = ask.block_bytes
    return [access.read(fd, size, index * size) for index in ask.indexes], False


def _one_direct(fd: int, direct: DirectReader, view: memoryview, ask: Ask, index: int, access: Access) -> bytes:
    count = access.read_into(fd, direct, view[: aligned(ask.block_bytes)], index * ask.block_bytes)
    return bytes(view[: min(count, ask.block_bytes)])


class Judgement(Enum):
    """What bytes read again say, given what is recorded of them."""

    SAME = "same"
    """Identity and checksum are the recorded ones: these bytes may be sent."""
    WRITTEN = "written"
    """The identity is another one: somebody wrote the file, and the next pass reads it whole. Not sent meanwhile."""
    ROT = "rot"
    """Nobody wrote the file, yet its bytes differ from the record. Never sent, never recorded (guarantee 3)."""


def judge_reread(expected: Checksum, expected_identity: Identity, seen: Checksum, seen_identity: Identity) -> Judgement:
    """Judge one block: `expected` as recorded, `seen` as read now. Pure.

    A block that was adopted from a replica's record has no checksum yet (b""): then SAME says that its id decides."""
    if seen_identity != expected_identity:
        return Judgement.WRITTEN
    return Judgement.SAME if seen == expected or not expected else Judgement.ROT
