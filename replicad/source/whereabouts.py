"""Whereabouts: where a recorded entry is by now, when a directory above it was renamed where it stands.

Between a rename and the pass that records it, the record leads nowhere. Whoever has to look at that one entry does not
have to wait for the pass: a directory keeps its inode, and the one in which its name is missing has the new name.
**Never** searches further: what went elsewhere is found by a walk. **Never** says that an entry is the recorded one:
whoever reads it compares its identity, as at any path.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice

from replicad.source.root import Root, Trail, lstat_at, signed

MAX_LISTED = 100_000
"""Names of one directory that are looked through: some 50 ms."""


def whereabouts(root: Root, path: bytes, inodes: Sequence[int]) -> bytes:
    """The path by which the entry recorded at `path` is reached now; `path` itself where nothing else can be told.

    `inodes` are those recorded of the directories above it, from the top. In a thread."""
    *above, name = path.split(b"/")
    found: list[bytes] = []
    with suppress(OSError), Trail(root) as trail:
        for was, inode in zip(above, inodes, strict=True):
            directory = trail.enter(b"/".join(found))
            now = was if _inode(directory, was) == inode else _named(directory, inode)
            if now is None:
                return path
            found.append(now)
        return b"/".join([*found, name])
    return path


def _inode(directory: int, name: bytes) -> int | None:
    try:
        return signed(lstat_at(directory, name).st_ino)
    except OSError:
        return None


def _named(directory: int, inode: int) -> bytes | None:
    with os.scandir(directory) as entries:
        for entry in islice(entries, MAX_LISTED):
            if signed(entry.inode()) == inode and entry.is_dir(follow_symlinks=False):
                return os.fsencode(entry.name)
    return None
