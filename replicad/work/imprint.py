"""Imprint: what a segment was when nothing was wrong with it, in sixteen bytes.

What work/segment_check.py finds follows from two things alone: the bytes of the segment, and what the catalog says of
it. If both are what they were when it found nothing, it would find nothing again. So such a check leaves an imprint
behind, a checksum over both, made from the very memory in which each frame was checked; the next check makes it anew,
at the rate of the disk, and looks at single frames only when another one comes out.

Nothing has to be dropped when a segment is laid anew, grows or is mended: other bytes, or another catalog, give another
imprint. One that is lost or rotten costs a look at every frame. **Never** says that something is wrong, and is never
made where a check needed more than the two: of a part of a segment, or beside frames that the catalog has elsewhere.
"""

from __future__ import annotations

from itertools import islice

import msgspec

from replicad.db.inventory import Inventory
from replicad.model.block import RunningChecksum, checksum
from replicad.model.errors import ReplicadError
from replicad.store.format import MAX_FRAME_BYTES
from replicad.system.ahead import ReadAhead
from replicad.system.disk import Reader

RULES = 1
"""What a check looks for; raised when it looks for more, so that older imprints count for nothing."""
BATCH_ROWS = 4096
"""Rows of the catalog that are packed at once."""
_END = 1 << 62

_encode = msgspec.msgpack.Encoder().encode


def imprint_of(inventory: Inventory, number: int, store: bytes | None, size: int, content: bytes) -> bytes:
    """The imprint of a segment with `size` bytes whose XXH3 is `content`, by what the catalog says of it now."""
    checkpoint = inventory.checkpoint
    grown = (checkpoint.offset, checkpoint.frames, checkpoint.digest) if checkpoint.segment == number else None
    said = (RULES, store, number, size, content, grown, inventory.mended(number), inventory.uncopied)
    rows = RunningChecksum()
    expected = inventory.expected(number, 0, _END)
    while batch := list(islice(expected, BATCH_ROWS)):
        rows.add(_encode(batch))
    return checksum(_encode((said, rows.value)))


def content_of(reader: Reader, size: int) -> bytes | None:
    """XXH3 of the first `size` bytes of a file; None when they cannot all be read."""
    ahead = ReadAhead(reader, size, 2 * MAX_FRAME_BYTES)  # as a scan does: the buffers serve both
    try:
        at = 0
        while at < size and (view := ahead.window(at, 1)):
            at += len(view)
        return ahead.content
    except ReplicadError:
        return None
    finally:
        ahead.close()
