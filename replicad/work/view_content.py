"""View content: bytes from anywhere in a file of a snapshot, each block proven before a byte of it is given.

**Owns** the few blocks that a view keeps: clients read on in pieces far smaller than a block. Whoever reads on from
where the last piece ended has the next blocks read with it. At a block that cannot be proven the piece ends short, and
one that begins in it fails. **Never** gives a byte that is not what the record names.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from replicad.link.messages import Lost
from replicad.link.sftp import Attributes
from replicad.model.block import block_count
from replicad.model.entry import Put
from replicad.model.errors import ReplicadError
from replicad.model.show import show_path
from replicad.work.archive_reader import ArchiveReader
from replicad.work.reader import answers_of, open_block

KEPT_BYTES = 4 * 1024 * 1024
"""Plain blocks that one view keeps: those of a few files that are read side by side."""
AHEAD_BYTES = 1024 * 1024
"""Read at once for whoever reads on."""
SPAN_BLOCKS = 64
"""Ids of blocks asked for at once."""
KEPT_SPANS = 16
ZEROS = bytes(1024 * 1024)


@dataclass(slots=True)
class ViewedFile:
    """A file that was opened in a view."""

    store: Path
    snapshot: int
    put: Put
    attributes: Attributes
    next: int = 0
    """Where the last piece ended."""


class Content:
    """What one view reads of files. For one thread at a time."""

    def __init__(self) -> None:
        self._plain: OrderedDict[bytes, bytes] = OrderedDict()
        self._plain_bytes = 0
        self._spans: OrderedDict[tuple[Path, int, int, int], dict[int, bytes]] = OrderedDict()

    def drop(self) -> None:
        """Keep nothing."""
        self._plain.clear()
        self._spans.clear()
        self._plain_bytes = 0

    def read(self, reader: ArchiveReader, file: ViewedFile, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset`, none at the end. Raises ReplicadError where the first cannot be proven, or
        its snapshot is kept no more."""
        end = min(offset + size, file.put.size)
        ahead_bytes = AHEAD_BYTES if offset == file.next else 0
        pieces: list[bytes] = []
        at = offset
        while at < end:
            start = at - at % file.put.block_bytes
            stop = min(start + file.put.block_bytes, end)
            block = self._block(reader, file, start // file.put.block_bytes, max(end - start, ahead_bytes))
            if isinstance(block, Lost):
                if pieces:
                    break
                raise _damage(file, start, block)
            pieces.append(block[at - start : stop - start])
            at = stop
        file.next = at
        return b"".join(pieces)

    def kept(self, file: ViewedFile, offset: int, size: int) -> bytes | None:
        """The same piece, where all of it has been proven already; None where it has to be read. From any thread."""
        end, block_bytes = min(offset + size, file.put.size), file.put.block_bytes
        pieces: list[bytes] = []
        for number in range(offset // block_bytes, -(-end // block_bytes)):
            key = (file.store, file.snapshot, file.put.file, number // SPAN_BLOCKS * SPAN_BLOCKS)
            block = self._plain.get(self._spans.get(key, {}).get(number, b""))
            if block is None or len(block) != _size(file.put, number):
                return None
            start = number * block_bytes
            pieces.append(block[max(offset - start, 0) : end - start])
        if not pieces:
            return None
        file.next = end
        return b"".join(pieces)

    def _block(self, reader: ArchiveReader, file: ViewedFile, number: int, wanted_bytes: int) -> bytes | Lost:
        """The plain bytes of a block; those behind it are read as well, up to `wanted_bytes` in all."""
        span = self._span(reader, file, number // SPAN_BLOCKS * SPAN_BLOCKS)
        size = _size(file.put, number)
        if number not in span:
            return ZEROS[:size]
        kept = self._plain.get(span[number])
        if kept is not None and len(kept) == size:
            self._plain.move_to_end(span[number])
            return kept
        last = min(
            number + max(1, wanted_bytes // file.put.block_bytes), block_count(file.put.size, file.put.block_bytes)
        )
        numbers = [n for n in range(number, last) if n == number or (n in span and span[n] not in self._plain)]
        found = dict(zip(numbers, _fetched(reader, file.put, span, numbers), strict=True))
        for one in reversed(numbers):  # what is needed first is kept longest
            self._keep(span[one], found[one])
        return found[number]

    def _span(self, reader: ArchiveReader, file: ViewedFile, first: int) -> dict[int, bytes]:
        key = (file.store, file.snapshot, file.put.file, first)
        span = self._spans.get(key)
        if span is None:
            span = self._spans[key] = reader.blocks(file.snapshot, file.put.file, first, SPAN_BLOCKS)
            if len(self._spans) > KEPT_SPANS:
                self._spans.popitem(last=False)
        self._spans.move_to_end(key)
        return span

    def _keep(self, name: bytes, block: bytes | Lost) -> None:
        if isinstance(block, Lost) or name in self._plain:
            return
        self._plain[name] = block
        self._plain_bytes += len(block)
        while self._plain_bytes > KEPT_BYTES:
            self._plain_bytes -= len(self._plain.popitem(last=False)[1])


def _fetched(reader: ArchiveReader, put: Put, span: dict[int, bytes], numbers: Sequence[int]) -> Iterator[bytes | Lost]:
    """These blocks, proven."""
    names = [span[number] for number in numbers]
    answers = (answer for item in reader.fetch(b"".join(names)) for answer in answers_of(item))
    for answer, name, number in zip(answers, names, numbers, strict=True):
        block = open_block(answer, name, _size(put, number))
        yield block if isinstance(block, Lost) else bytes(block)  # a copy, which keeps nothing else alive


def _size(put: Put, number: int) -> int:
    return min(put.block_bytes, put.size - number * put.block_bytes)


def _damage(file: ViewedFile, start: int, lost: Lost) -> ReplicadError:
    last = min(start + file.put.block_bytes, file.put.size) - 1
    what = f"damage in bytes {start} to {last} of {show_path(file.put.path)} in snapshot {file.snapshot}: {lost.reason}"
    return ReplicadError(what, where=f"{file.store.parent.name}/{file.store.name}")
