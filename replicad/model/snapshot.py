"""Snapshots: the commit that makes a sequence of record operations one restorable state.

A commit names its parent by digest and the records it covers by the digest over their ids; its own id is the
BLAKE3 of its encoding. So the last commit's id, the *head*, speaks for a replica's whole history, and two sides
compare that history by one value.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from replicad.model.block import BlockId, block_id
from replicad.model.head import NO_PARENT as NO_PARENT
from replicad.model.head import Head as Head
from replicad.model.packed import unpacked

MAX_RECORDS = 65_536
"""Record frames between two commits. Each is about half a megabyte, so this is more than the names of a hundred million
entries; a peer that sends records without end is cut off here. A primary makes a commit long before."""


class Commit(msgspec.Struct, frozen=True, array_like=True):
    """Payload of a commit frame. Its BLAKE3 id is the snapshot's digest."""

    number: int
    """Ascending; numbers may be skipped, never reused."""
    created_ns: int
    """Primary's wall clock when the pass began that this snapshot shows, ns since 1970."""
    complete: bool
    """False for a state in the middle of a pass, or one whose pass could not copy everything."""
    parent: bytes
    records: int
    """Number of record frames that belong to this commit, MAX_RECORDS at most."""
    records_digest: bytes
    """BLAKE3 over the ids of those frames, in order."""
    entries: int
    """Entries that the snapshot holds."""
    size: int
    """Sum of the sizes in bytes of the files it holds."""
    unread: int = 0
    """Entries that could not be copied in this pass and stand as in the parent (or not at all)."""
    order: bytes = b""
    """What a restore is to bring back first (model/order.py), so that a host without a configuration knows it."""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Commit)


def encode_commit(commit: Commit) -> bytes:
    """The payload of a commit frame."""
    return _encoder.encode(commit)


def decode_commit(data: bytes) -> Commit:
    """The inverse of `encode_commit`. Raises ValueError with the reason."""
    commit = unpacked(_decoder.decode, data)
    if commit.number <= 0 or len(commit.parent) != 32 or len(commit.records_digest) != 32 or commit.records < 0:
        raise ValueError("commit has an invalid number, digest or count")
    return commit


def records_digest(ids: Iterable[bytes]) -> BlockId:
    """Digest over record frame ids, in order."""
    return block_id(b"".join(ids))
