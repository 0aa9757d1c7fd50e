"""Drill digest: one value for what the ledger expects of a file's content, and the same value of a file on disk.

A digest chains number and BLAKE3 id of every block that is not zero, so that what a drill has to remember of a file is
32 bytes, however large the file and whatever later passes make of the ledger. The restored file is read back from the
scratch space for it, which exercises what a restore has written and not what it meant to write.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

from replicad.db.drills import Chosen
from replicad.model.block import block_count, block_id, is_zero
from replicad.system.disk import read_at
from replicad.work.comparing import SLAB_BYTES, seek_data, thread_buffer

NOTHING = b""
"""The digest of a file all of whose blocks are zero."""


def chain(digest: bytes, blocks: Iterable[tuple[int, bytes]]) -> bytes:
    """The digest with more blocks, (number, id), ascending; ids of zero blocks are empty and count as absent."""
    for number, name in blocks:
        if name:
            digest = block_id(digest + number.to_bytes(8, "big") + name)
    return digest


def digest_of_file(fd: int, chosen: Chosen, stopped: Callable[[], bool]) -> bytes | None:
    """The digest of an open file, None when it has another size than the record says. Holes are not read.

    Raises OSError; InterruptedError when it was stopped."""
    if os.fstat(fd).st_size != chosen.size:
        return None
    size = chosen.block_bytes
    end = block_count(chosen.size, size) if chosen.size else 0
    step, number, digest = max(1, SLAB_BYTES // size) if size else 1, 0, NOTHING
    while number < end:
        if stopped():
            raise InterruptedError
        data = seek_data(fd, number * size, chosen.size)
        if data >= chosen.size:
            break
        number = max(number, data // size)
        last = min(number + step, end)
        view = read_at(fd, thread_buffer(), number * size, min(last * size, chosen.size) - number * size)
        blocks = ((at, view[(at - number) * size : (at - number + 1) * size]) for at in range(number, last))
        digest = chain(digest, ((at, NOTHING if is_zero(block) else block_id(block)) for at, block in blocks))
        number = last
    return digest
