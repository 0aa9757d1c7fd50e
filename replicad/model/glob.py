"""Globs: which paths of a dataset a person asked for. Pure, on bytes, in linear time.

A pattern is matched component by component from the dataset's root: `*` stands for any part of a name, `?` for
one character, `[a-z]` and `[!a-z]` for one of a set (ASCII), `**` for any number of directories, and a backslash
takes the next character literally. A pattern that names a directory matches everything below it.

Owns the notation. Never: the file system. Patterns may come from a peer, so nothing here backtracks: names are
matched with atomic groups, paths with a set of positions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from replicad.model.entry import MAX_PATH_BYTES, show_path

MAX_GLOBS = 256
"""Patterns in one request at most; with the next limit it bounds the work that one path can cost."""
MAX_COMPONENTS = 128
"""Components of one pattern at most."""

Name = Callable[[bytes], object]
"""Whether one component matches: a truthy answer is yes."""

_ANY = None
"""The element of `**`: any number of components."""
_CHARACTER = rb"(?>[\xc2-\xf4][\x80-\xbf]{1,3}|.)"
"""One UTF-8 character, or one byte where the name is no UTF-8."""


class Globs:
    """Compiled patterns. Without any pattern every path matches."""

    __slots__ = ("_patterns",)

    def __init__(self, patterns: Sequence[bytes]) -> None:
        """Raises ValueError naming the pattern that is empty, too long, too many or leads outside the dataset."""
        if len(patterns) > MAX_GLOBS:
            raise ValueError(f"{len(patterns)} patterns are more than {MAX_GLOBS}")
        self._patterns = [_elements(pattern) for pattern in patterns]

    @property
    def everything(self) -> bool:
        """Whether there is no pattern, so that every path matches."""
        return not self._patterns

    def __call__(self, path: bytes) -> bool:
        """Whether `path`, or a directory above it, matches a pattern."""
        if not self._patterns:
            return True
        names = path.split(b"/") if path else []
        return any(len(pattern) in _walk(pattern, names) for pattern in self._patterns)

    def below(self, directory: bytes) -> bool:
        """Whether something below `directory` could match; False means that nothing can."""
        if not self._patterns:
            return True
        names = directory.split(b"/") if directory else []
        return any(_walk(pattern, names) for pattern in self._patterns)


def compile_globs(globs: Sequence[bytes]) -> Globs:
    """The patterns as a predicate on paths, with `below` for pruning. Raises ValueError naming the bad pattern."""
    return Globs(globs)


EVERYTHING = Globs(())
"""No restriction."""


def _walk(pattern: list[Name | None], names: list[bytes]) -> set[int]:
    """The positions in `pattern` that `names` lead to: empty when they leave it, its length once it is used up."""
    positions = {0}
    for name in names:
        after: set[int] = set()
        for position in _without_any(pattern, positions):
            element = pattern[position]
            if element is _ANY:
                after.add(position)
            elif element(name):
                after.add(position + 1)
        positions = after
        if not positions or len(pattern) in positions:
            break
    return positions


def _without_any(pattern: list[Name | None], positions: set[int]) -> set[int]:
    """`positions` and those reached when a `**` stands for no directory (`**` is never last: see `_elements`)."""
    return positions | {position + 1 for position in positions if pattern[position] is _ANY}


def _elements(pattern: bytes) -> list[Name | None]:
    names = [name for name in pattern.split(b"/") if name not in (b"", b".")]
    shown = show_path(pattern[:80])
    if not names:
        raise ValueError("a path pattern is empty (leave it out to mean everything)")
    if len(pattern) > MAX_PATH_BYTES or len(names) > MAX_COMPONENTS:
        raise ValueError(f"pattern {shown} is longer than {MAX_PATH_BYTES} bytes or {MAX_COMPONENTS} components")
    if b".." in names or b"\0" in pattern:
        raise ValueError(f"pattern {shown} has '..' or a NUL byte and can match nothing")
    elements: list[Name | None] = []
    for name in names:
        if name != b"**":
            elements.append(_name(name, shown))
        elif not elements or elements[-1] is not _ANY:
            elements.append(_ANY)
    if elements[-1] is _ANY:  # `a/**` is everything below a, so at least one name follows
        elements[-1] = _name(b"*", shown)
    return elements


def _name(pattern: bytes, shown: str) -> Name:
    """One component as a predicate. Stars are found leftmost first and never revisited: linear, and right for globs."""
    pieces = [b""]
    literal = b""
    for regex, byte in _tokens(pattern, shown):
        literal += byte
        if regex == b"*":
            pieces.append(b"")
        else:
            pieces[-1] += regex
    if len(literal) and len(pieces) == 1 and re.escape(literal) == pieces[0]:
        return literal.__eq__
    first, *middle, last = pieces if len(pieces) > 1 else (pieces[0], None)
    body = b"".join(rb"(?>.*?" + piece + rb")" for piece in middle if piece)
    tail = b"" if last is None else b".*" + last
    return re.compile(first + body + tail + rb"\Z", re.DOTALL).match


def _tokens(pattern: bytes, shown: str) -> Iterator[tuple[bytes, bytes]]:
    """(regular expression, literal byte or b"") of each token; a star is (b"*", b"")."""
    position = 0
    while position < len(pattern):
        byte = pattern[position : position + 1]
        end = pattern.find(b"]", position + (3 if pattern[position + 1 : position + 2] in b"!^" else 2))
        if byte == b"*" or byte == b"?":
            yield (b"*" if byte == b"*" else _CHARACTER), b""
            position += 1
        elif byte == b"[" and end > 0:
            yield _set(pattern[position + 1 : end], shown), b""
            position = end + 1
        else:
            skip = byte == b"\\" and position + 1 < len(pattern)
            byte = pattern[position + 1 : position + 2] if skip else byte
            yield re.escape(byte), byte
            position += 1 + skip


def _set(inside: bytes, shown: str) -> bytes:
    """`[...]` as an expression for one character."""
    if not inside.isascii():
        raise ValueError(f"pattern {shown} has other than ASCII characters in [...]")
    negated = inside[:1] in (b"!", b"^")
    members, ranges, index = inside[negated:], b"", 0
    while index < len(members):
        low, high = members[index], members[index]
        if members[index + 1 : index + 2] == b"-" and index + 2 < len(members):
            high = members[index + 2]
            index += 2
        if high < low:
            raise ValueError(f"pattern {shown} has a range that runs backwards in [...]")
        ranges += b"\\x%02x-\\x%02x" % (low, high)
        index += 1
    return rb"(?" + (b"!" if negated else b"=") + b"[" + ranges + b"])" + _CHARACTER


def escaped(path: bytes) -> bytes:
    """A pattern that matches `path` and what is below it."""
    return re.sub(rb"([\\*?\[\]])", rb"\\\1", path)
