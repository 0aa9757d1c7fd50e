"""Packed: values out of bytes that a peer, or a disk, gave. **Never** raises anything but ValueError for any bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")


def unpacked(decode: Callable[[bytes | memoryview], Value], data: bytes | memoryview) -> Value:
    """What `decode`, one of msgspec's, makes of `data`. Raises ValueError with the reason, as msgspec's errors are."""
    try:
        return decode(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
