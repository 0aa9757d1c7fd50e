"""Bytes of a peer: whatever they are, a decoder gives a value or says in words why not."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from kit_store import META
from replicad.model.entry import Drop, Kind, Op, Put, decode_ops, encode_ops
from replicad.model.snapshot import NO_PARENT, Commit, decode_commit, encode_commit
from replicad.model.travel import decode_differences, decode_versions

ENDLESS = b"\x91" * 10_000
"""Arrays in arrays: deeper than a decoder goes when it skips what it does not know."""


def with_more(packed: bytes) -> bytes:
    """An array, with one element behind those that are expected."""
    return msgspec.msgpack.encode([*msgspec.msgpack.decode(packed), msgspec.Raw(ENDLESS + b"\xc0")])


@pytest.mark.parametrize("op", [Drop(b"a"), Put(b"a", Kind.DIRECTORY, META)])
def test_operations_without_end_are_refused(op: Op) -> None:
    """In words, like all that is none."""
    (item,) = msgspec.msgpack.decode(encode_ops([op]), type=list[msgspec.Raw])
    with pytest.raises(ValueError, match="nested too deeply"):
        decode_ops(b"\x91" + with_more(bytes(item)))


def test_a_commit_without_end_is_refused() -> None:
    """In words, like all that is none."""
    commit = encode_commit(Commit(1, 1, True, NO_PARENT, 0, bytes(32), 0, 0))
    assert decode_commit(commit)
    with pytest.raises(ValueError, match="nested too deeply"):
        decode_commit(with_more(commit))


@pytest.mark.parametrize("decode", [decode_ops, decode_commit, decode_versions, decode_differences])
@pytest.mark.parametrize("data", [b"", b"\xc1", ENDLESS, b"\x81\xa1x" * 10_000 + b"\xc0"])
def test_no_bytes_end_in_anything_but_a_reason(decode: Callable[[bytes], object], data: bytes) -> None:
    """Nothing, no msgpack, arrays in arrays and maps in maps."""
    with pytest.raises(ValueError, match=r"\w"):
        decode(data)
