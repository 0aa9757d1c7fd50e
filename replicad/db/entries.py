"""Entries: rows of the catalog as operations, and lists of them that fit into a message.

Owns the form of a row of `entry` for those who read it. **Never** asks the database anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import msgspec

from replicad.db.catalog import Extra
from replicad.db.database import Row
from replicad.model.entry import Kind, Map, Meta, Op, Put

ENTRY_COLUMNS = "kind, mode, uid, gid, mtime_ns, size, file, block_bytes, flags, extra"
"""What `put_of` takes; whatever is asked for besides stands behind it."""
BATCH_OPS = 1000
BATCH_BYTES = 512 * 1024
"""A list ends when it is about this long; with one more of its kind it stays well below a message."""

Item = TypeVar("Item")
_extra_decoder = msgspec.msgpack.Decoder(Extra)
_NO_EXTRA = Extra()
_KINDS = {int(kind): kind for kind in Kind}


def put_of(path: bytes, row: Row) -> Put:
    """An entry without its blocks."""
    kind, mode, uid, gid, mtime_ns, size, file, block_bytes, flags, encoded = row[:10]
    extra = _extra_decoder.decode(encoded) if encoded else _NO_EXTRA
    meta = Meta(mode, uid, gid, mtime_ns, extra.xattrs)
    return Put(path, _KINDS[kind], meta, size, file, block_bytes, flags, extra.target, extra.device)


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
        return 80 + len(op.path) + len(op.ids) * 5 // 4 + sum(len(n) + len(v) + 6 for n, v in op.meta.xattrs)
    return len(op.path)
