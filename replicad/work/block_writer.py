"""BlockWriter: proven blocks of one open file to their places, past the page cache where that is asked for.

Used by the restore for files under way (work/filling.py), and by the process beside it (work/hand.py).
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

from replicad.model.block import Buffer
from replicad.model.errors import DiskFullError
from replicad.system.disk import Disk, align_up, set_direct
from replicad.work.attributes import reason_of
from replicad.work.comparing import SLAB_BYTES, thread_buffer
from replicad.work.target import Target

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


class BlockWriter:
    """Writes to a descriptor that it is handed. Any thread."""

    __slots__ = ("_block_bytes", "_disk", "direct")

    def __init__(self, disk: Disk, block_bytes: int, *, direct: bool) -> None:
        """`direct`: descriptors come with O_DIRECT, and all blocks but a file's last are multiples of ALIGN_BYTES."""
        self._disk, self._block_bytes, self.direct = disk, block_bytes, direct

    def write(self, fd: int, blocks: Sequence[tuple[int, Buffer]]) -> None:
        """Write blocks by their indexes, ascending; past the page cache neighbours go in one transfer, and what goes
        beyond the file's end is to be cut off afterwards. Raises OSError."""
        if not self.direct:
            for index, data in blocks:
                self.pwrite(fd, data, index * self._block_bytes)
            return
        view, start, used = thread_buffer().view, 0, 0
        for index, data in blocks:
            position = index * self._block_bytes
            if used and (position != start + used or used + len(data) > SLAB_BYTES):
                self.write_buffer(fd, used, start)
                used = 0
            start = start if used else position
            view[used : used + len(data)] = data
            used += len(data)
        self.write_buffer(fd, used, start)

    def write_buffer(self, fd: int, used: int, position: int) -> None:
        """Write what this thread's buffer begins with. Raises OSError."""
        view, end = thread_buffer().view, align_up(used) if self.direct else used
        view[used:end] = bytes(end - used)
        self.pwrite(fd, view[:end], position)

    def pwrite(self, fd: int, data: Buffer, position: int) -> None:
        """Write all of `data`. Raises OSError."""
        view, done = memoryview(data), 0
        while done < len(view):
            try:
                done += self._disk.pwrite(fd, view[done:], position + done)
            except OSError as error:
                if error.errno != errno.EINVAL or not self.direct:
                    raise
                self.direct = False  # refused at the transfer rather than at the flag
                set_direct(fd, False)


def check_room(error: BaseException, target: Target) -> None:
    """Raises DiskFullError when that is what `error` says."""
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        hint = "free space there and run the same command again; it goes on where it stopped"
        text = f"no room left to restore into: {reason_of(error)}"
        raise DiskFullError(text, where=str(target.path), hint=hint) from error
