"""Exclude: which paths of a dataset are left out, by patterns in gitignore syntax.

**Owns** pathspec. **Never** looks at the file system. As in git, nothing below an excluded directory can be
brought back by a later `!pattern`: the walk does not descend there.

Names are bytes; a name that is no UTF-8 is matched with its odd bytes as lone surrogates, so `*` covers it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from pathspec import GitIgnoreSpec

MAX_PATTERNS = 1000
"""Every path is matched against every pattern; more would make each walk crawl."""


class Excluded:
    """A compiled list of patterns. True (as a bool) when there is at least one."""

    def __init__(self, patterns: Sequence[str]) -> None:
        """Compile `patterns`, relative to the dataset's root; the last that matches decides.

        Raises ValueError, naming the pattern that is invalid.
        """
        if len(patterns) > MAX_PATTERNS:
            raise ValueError(f"{len(patterns)} patterns are given, {MAX_PATTERNS} at most are possible")
        for pattern in patterns:
            _check(pattern)
        self.patterns = tuple(patterns)
        self._spec = GitIgnoreSpec.from_lines(patterns)
        self._any = any(p.include is not None for p in self._spec.patterns)

    def __bool__(self) -> bool:
        return self._any

    def __call__(self, path: bytes, is_directory: bool) -> bool:
        """Whether the entry at `path` is left out, given that none of its parents is."""
        text = path.decode("utf-8", "surrogateescape")
        return self._spec.match_file(text + "/" if is_directory else text)

    def covers(self, path: bytes) -> bool:
        """Whether the directory at `path` or one of its parents is left out."""
        end = path.find(b"/")
        while end >= 0:
            if self(path[:end], True):
                return True
            end = path.find(b"/", end + 1)
        return bool(path) and self(path, True)


def _check(pattern: str) -> None:
    if "\0" in pattern or "\n" in pattern:
        raise ValueError(f"pattern {pattern!r} holds a NUL or a line break")
    try:
        GitIgnoreSpec.from_lines([pattern])
    except (ValueError, re.error) as error:
        raise ValueError(f"pattern {pattern!r} is invalid: {error}") from None


NOTHING = Excluded(())
"""Leaves nothing out."""
