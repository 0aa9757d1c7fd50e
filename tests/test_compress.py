"""Compression: it pays or it is not done, and what it gives back is bounded."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicad.model.block import RAW, ZSTD
from replicad.system.compress import GAIN, compress, decompress

TEXT = b"the quick brown fox jumps over the lazy dog; " * 3000


@given(st.binary(max_size=5000) | st.builds(lambda a, n: a * n, st.binary(max_size=50), st.integers(0, 3000)))
def test_round_trip(data: bytes) -> None:
    """What is compressed comes back, and was compressed only when that saves its share."""
    codec, stored = compress(data, 1)
    assert bytes(decompress(stored, codec, len(data))) == data
    assert codec == RAW or len(stored) <= len(data) - len(data) // GAIN


@pytest.mark.parametrize("size", [1, 127, 4096, 65536, 1024 * 1024])
def test_noise_is_left_alone(size: int) -> None:
    """Noise of any size is stored as it is, without a copy."""
    data = os.urandom(size)
    assert compress(data, 1) == (RAW, data)
    assert compress(data, 1)[1] is data


def test_text_is_compressed_and_level_0_means_off() -> None:
    """Text gains much; level 0 never compresses; a head that compresses does not fool the probe."""
    codec, stored = compress(TEXT, 1)
    assert codec == ZSTD and len(stored) < len(TEXT) // 20
    assert compress(TEXT, 0) == (RAW, TEXT)
    assert compress(TEXT[:2000] + os.urandom(100_000), 1)[0] == RAW
    assert compress(os.urandom(2000) + TEXT, 1)[0] == ZSTD


@pytest.mark.parametrize(("codec", "plain"), [(RAW, 2), (ZSTD, 3), (2, 3), (255, 3)])
def test_what_does_not_fit_is_refused(codec: int, plain: int) -> None:
    """Wrong sizes, unknown codecs and bytes that are no zstd frame end in ValueError."""
    with pytest.raises(ValueError):
        decompress(b"abc", codec, plain)
