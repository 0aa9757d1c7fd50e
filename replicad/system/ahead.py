"""Ahead: read a file from front to back, the next piece while the last one is being looked at.

Two buffers and one thread: the disk works while the processor checks what it gave. What is left over at a piece's end
is copied in front of the next one, so that whatever crosses the border lies in one run of memory. **Never** holds more
than the two buffers, and says of an error only that this way does not work here: who asks reads the place alone then.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

from replicad.model.block import Checksum, RunningChecksum
from replicad.system.disk import ALIGN_BYTES, AlignedBuffer, Reader, align_down, align_up

PIECE_BYTES = 4 * 1024 * 1024
"""Read at once: a device reaches its full rate with transfers of this size."""
MAX_SPARE_BUFFERS = 4
"""Kept for the next files, two at once: the kernel takes longer to hand out fresh memory than to fill it."""

_spare: list[AlignedBuffer] = []


class ReadAhead:
    """One pass over one file. For one thread at a time."""

    def __init__(self, reader: Reader, size: int, longest: int) -> None:
        """`size`: read no further. `longest`: the most that is ever needed in one run of memory."""
        self._reader, self._size, self._room = reader, size, align_up(longest)
        self._buffers = [_borrow(self._room + PIECE_BYTES) for _ in range(2)]
        self._low = self._high = 0
        """Bytes of the file that stand in the first buffer, up to its end."""
        self._at = self._room
        """Where they end in it."""
        self._next: Future[int] | None = None
        self._sum, self._summed, self._wanted = RunningChecksum(), 0, size
        self._thread = ThreadPoolExecutor(1, "ahead")

    def close(self) -> None:
        """Wait for the thread; the reader stays open."""
        self._thread.shutdown()
        _spare.extend(self._buffers[: MAX_SPARE_BUFFERS - len(_spare)])
        self._buffers = []

    @property
    def content(self) -> Checksum | None:
        """XXH3 of the file up to `size`, as it was in memory; None unless it was read once from front to back."""
        return self._sum.value if self._summed == self._wanted else None

    def window(self, at: int, needed: int) -> memoryview:
        """What is there from `at` on, at least `needed` bytes of it unless the file ends before; valid until the next
        call. Raises ReplicadError when the medium gives an error."""
        assert needed <= self._room - ALIGN_BYTES
        if not self._low <= at <= self._high:
            self._forget(at)
        while self._high - at < needed and self._high < self._size:
            self._turn(at)
        start = self._at - (self._high - at)
        return self._buffers[0].view[start : self._at]

    def _forget(self, at: int) -> None:
        """Begin anew somewhere else."""
        if self._next:
            self._next.exception()
        self._next = None
        self._summed = -1
        self._low = self._high = align_down(at)
        self._at = self._room

    def _turn(self, at: int) -> None:
        """The other buffer becomes the first one, with what is still needed of this one in front."""
        reading, self._next = self._next or self._begin(self._high), None
        try:
            count = reading.result()
        except BaseException:
            self._forget(0)
            raise
        kept = self._high - min(at, self._high)
        first, second = self._buffers
        second.view[self._room - kept : self._room] = first.view[self._at - kept : self._at]
        self._buffers.reverse()
        self._low, self._high, self._at = self._high - kept, self._high + count, self._room + count
        if count < PIECE_BYTES:
            self._size = min(self._size, self._high)
        elif self._high < self._size:
            self._next = self._begin(self._high)
        if self._summed >= 0:
            self._sum.add(second.view[self._room : self._at])
            self._summed += count

    def _begin(self, offset: int) -> Future[int]:
        size = min(PIECE_BYTES, self._size - offset)
        return self._thread.submit(self._reader.read_into, self._buffers[1], self._room, offset, size)


def _borrow(size: int) -> AlignedBuffer:
    """A buffer of at least that size, with arbitrary content. Thread-safe."""
    try:
        buffer = _spare.pop()
    except IndexError:
        return AlignedBuffer(size)
    return buffer if len(buffer) >= size else AlignedBuffer(size)
