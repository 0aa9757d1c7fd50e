"""Reader: what a restore (a drill, a repair) needs from a store, wherever it is.

Two implementations keep this contract and pass one conformance suite: `LocalReader` over an archive in this process,
`RemoteReader` over a channel. **Never** judges: a damaged block is a value, `Lost`; an exception means that the
question could not be asked. What comes back is not proven; `open_block` proves it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from replicad.link.messages import Lost, SnapshotLine
from replicad.model.block import ID_BYTES, Buffer
from replicad.model.entry import Op
from replicad.model.travel import Difference, Version
from replicad.store.format import Frame, FrameError, FrameType, plain_payload, split_frames_untrusted

Answer = Frame | Lost
"""One block that was asked for: its frame as stored, or why it cannot be had."""
Stored = Buffer | Lost
"""Whole frames as they are stored, one behind another, or why the next block cannot be had."""


def answers_of(stored: Stored) -> Sequence[Answer]:
    """The same, taken apart. Raises FrameError."""
    return [stored] if isinstance(stored, Lost) else split_frames_untrusted(stored)


class Reader(Protocol):
    """One dataset's history, read only."""

    @property
    def name(self) -> str:
        """Whom or what it reads from, for messages."""

    async def snapshots(self) -> list[SnapshotLine]:
        """All snapshots, ascending by number. Raises ReplicadError."""

    def record(self, snapshot: int, globs: Sequence[bytes] = ()) -> AsyncIterator[list[Op]]:
        """The record of one snapshot: `Put`s sorted by path, parents before children, each followed by its `Map`s.

        With `globs` only the paths that match one, and their parents. Blocks that are not listed are all-zero. One
        record at a time; whoever leaves one before its end closes the reader. Raises UsageError for an unknown
        snapshot or an invalid pattern, other ReplicadErrors when it cannot go on.
        """

    def fetch(self, ids: bytes) -> AsyncIterator[list[Answer]]:
        """The blocks with these ids (32 bytes each, MAX_OFFER at most), in order, in runs of a bounded size.

        Several fetches may be under way at once, also beside a record: they are answered in the order in which
        they were begun, without a round trip between them. Whoever asks answers for the memory that all answers
        take. Raises ReplicadError when it cannot go on.
        """

    async def close(self) -> None:
        """End it and release what it holds. May be called more than once; whatever is under way fails."""


class HistoryReader(Reader, Protocol):
    """The same, for whoever looks into history without restoring."""

    async def order(self) -> bytes:
        """What the primary last said is to be restored first, as its commit has it (model/order.py); b"" = nothing."""

    def visit(self, snapshot: int, path: bytes, depth: int = 0, *, blocks: bool = False) -> AsyncIterator[list[Op]]:
        """What stood at `path` in a snapshot, and up to `depth` levels below it, without a walk of the snapshot.

        Sorted as in `record`: the entry itself comes first; nothing comes when there was none. Files have their blocks
        only with `blocks`; those in which damage is known have the flag DAMAGED. What `record` says of several at a
        time, of leaving one, and of errors holds here, for `trace` and for `compare`.
        """

    def trace(self, path: bytes) -> AsyncIterator[list[Version]]:
        """All versions of what stood at `path`, newest first, also under the names it was renamed from."""

    def compare(self, before: int, after: int, globs: Sequence[bytes] = ()) -> AsyncIterator[list[Difference]]:
        """What differs between two snapshots at paths that match one of `globs`, sorted as in `record`.

        Lists may be empty, so that whoever waits for the next difference can stop."""


def open_block(answer: Answer, wanted: bytes, plain_bytes: int) -> Buffer | Lost:
    """The plain bytes of an answer, proven to be those of the block `wanted` with that size; otherwise why not.

    Decompression is bounded and the BLAKE3 id is computed here: the one gate between a store and a restored file.
    """
    if isinstance(answer, Lost):
        return answer
    if answer.type != FrameType.BLOCK or answer.id != wanted:
        return Lost(wanted, "another block came in its place")
    if answer.plain != plain_bytes:
        return Lost(wanted, f"the block has {answer.plain} bytes where the record needs {plain_bytes}")
    try:
        return plain_payload(answer)
    except FrameError as error:
        return Lost(wanted, str(error))


def split_ids(ids: bytes) -> list[bytes]:
    """Concatenated ids one by one."""
    return [ids[at : at + ID_BYTES] for at in range(0, len(ids), ID_BYTES)]
