"""Order: which of a dataset's data come back first. Pure.

An order is a row of classes, each a name and patterns (model/glob.py). An entry belongs to the first class with a
pattern that matches it or a directory above it; what no class has comes last, as `REST`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import msgspec

from replicad.model.glob import MAX_GLOBS, Globs, compile_globs

MAX_CLASSES = 64
"""Each costs one more listing of what it names; who has more is listing files."""
MAX_PATTERN_BYTES = 12 * 1024
"""Of all patterns together: a commit carries them, whose frame has a limit."""
MAX_ORDER_BYTES = 48 * 1024
"""Encoded, with quotes and escapes."""
REST = "rest"
"""What the last class is called: everything that no other has."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class RestoreClass(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[[dataset.restore_order]]`: data that come back together."""

    name: str
    patterns: tuple[str, ...]

    @property
    def globs(self) -> list[bytes]:
        """Its patterns as bytes, which names are."""
        return [pattern.encode("utf-8", "surrogateescape") for pattern in self.patterns]


class Order:
    """Compiled classes."""

    def __init__(self, classes: Sequence[RestoreClass] = ()) -> None:
        """Raises ValueError in words for a bad name or pattern, or too many."""
        if len(classes) > MAX_CLASSES:
            raise ValueError(f"{len(classes)} classes are more than {MAX_CLASSES}")
        names = [one.name for one in classes]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"two classes are called {min(twice)!r}")
        if sum(len(glob) for one in classes for glob in one.globs) > MAX_PATTERN_BYTES:
            raise ValueError(f"its patterns are longer than {MAX_PATTERN_BYTES} bytes together")
        self.classes = tuple(classes)
        self._globs = [_compiled(one) for one in classes]

    def __bool__(self) -> bool:
        return bool(self.classes)

    def place_of(self, path: bytes) -> int:
        """The number of the class that `path` belongs to; behind the last one for the rest."""
        return next((place for place, globs in enumerate(self._globs) if globs(path)), len(self._globs))

    def names(self) -> list[str]:
        """The names of all classes, the rest included."""
        return [*(one.name for one in self.classes), REST]


def encode_order(classes: Sequence[RestoreClass]) -> bytes:
    """Classes as a commit carries them; b"" for none."""
    return msgspec.json.encode(list(classes)) if classes else b""


def decode_order_untrusted(data: bytes) -> Order:
    """The inverse, of bytes from a peer. Raises ValueError in words."""
    if len(data) > MAX_ORDER_BYTES:
        raise ValueError(f"the restore order has {len(data)} bytes, more than {MAX_ORDER_BYTES}")
    return Order(msgspec.json.decode(data, type=tuple[RestoreClass, ...])) if data else NO_ORDER


NO_ORDER = Order()
"""Everything at once."""


def first_of(globs: Iterable[str]) -> tuple[RestoreClass, ...]:
    """Classes for patterns that a person typed one after the other."""
    return tuple(RestoreClass(f"first-{number}", (glob,)) for number, glob in enumerate(globs, 1))


def _compiled(one: RestoreClass) -> Globs:
    if not _NAME.fullmatch(one.name) or one.name == REST:
        text = (
            f"{REST!r} is the name of all else" if one.name == REST else "begins with a letter or digit, and is short"
        )
        raise ValueError(f"{one.name!r} is no name for a class: {text}")
    if not one.patterns or len(one.patterns) > MAX_GLOBS:
        raise ValueError(f"class {one.name!r} needs between 1 and {MAX_GLOBS} patterns")
    return compile_globs(one.globs)
