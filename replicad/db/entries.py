"""Entries: rows of the catalog as operations, and lists of them that fit into a message.

Owns the form of a row of `entry` for those who read it. Whoever walks holds many rows and tells one entry after the
other: what is long in an entry stays in the database until the entry is told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import msgspec
from msgspec.structs import replace

from replicad.db.catalog import Extra
from replicad.db.database import Database, Row
from replicad.model.entry import Kind, Map, Meta, Op, Put, xattrs_length

ENTRY_COLUMNS = "kind, mode, uid, gid, mtime_ns, size, file, block_bytes, flags, extra"
"""What `put_of` takes; whatever is asked for besides stands behind it."""
SHORT_BYTES = 2048
"""Longest `extra` (extended attributes, target) that is read along with its row."""
CUT = 1
"""Stands in a row for an `extra` that is longer."""
CUT_COLUMNS = ENTRY_COLUMNS.replace("extra", f"CASE WHEN length(extra) > {SHORT_BYTES} THEN {CUT} ELSE extra END")
"""What `put_of` takes too; an entry that was cut is told as `whole`."""
BATCH_OPS = 1000
BATCH_BYTES = 512 * 1024
"""A list ends when it is about this long; with one more of its kind it stays well below a message."""

Item = TypeVar("Item")
Place = tuple[int, bytes, int]
"""Directory, name and `born` of a row: its key."""
_extra_decoder = msgspec.msgpack.Decoder(Extra)
_NO_EXTRA = Extra()
_KINDS = {int(kind): kind for kind in Kind}


def put_of(path: bytes, row: Row) -> Put:
    """An entry without its blocks, and without its extra where the row was cut."""
    kind, mode, uid, gid, mtime_ns, size, file, block_bytes, flags, encoded = row[:10]
    extra = _extra_decoder.decode(encoded) if isinstance(encoded, bytes) else _NO_EXTRA
    meta = Meta(mode, uid, gid, mtime_ns, extra.xattrs)
    return Put(path, _KINDS[kind], meta, size, file, block_bytes, flags, extra.target, extra.device)


def is_cut(row: Row) -> bool:
    """Whether the entry in the row lacks its extra."""
    return bool(row[9] == CUT)


def whole(database: Database, put: Put, place: Place) -> Put:
    """An entry that was cut, with its extra; without one where the row is gone, as it went with its snapshot."""
    encoded = database.value("SELECT extra FROM entry WHERE directory = ? AND name = ? AND born = ?", place)
    extra = _extra_decoder.decode(encoded) if encoded else _NO_EXTRA
    return replace(put, meta=replace(put.meta, xattrs=extra.xattrs), target=extra.target, device=extra.device)


def in_batches(items: Iterable[Item], length: Callable[[Item], int]) -> Iterator[list[Item]]:
    """Short lists of them, none empty."""
    batch: list[Item] = []
    size = 0
    for item in items:
        batch.append(item)
        size += length(item)
        if len(batch) >= BATCH_OPS or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def length_of(op: Op) -> int:
    """About how long the operation is when encoded."""
    if isinstance(op, Map):
        return len(op.ids) + 5 * len(op.blocks)
    if isinstance(op, Put):
        return 80 + len(op.path) + len(op.target) + len(op.ids) * 5 // 4 + xattrs_length(op.meta.xattrs)
    return len(op.path)
