"""Aside: what a restore replaces or removes in its target is kept elsewhere, under its own path.

A replaced entry gets a second name there before the new one takes its name, so no reader ever finds nothing; a removed
one is moved. **Owns** that directory. **Never** overwrites what was kept before, and never copies: the directory has to
be on the target's file system, and what lies on another one stays where it is, with an error.
"""

from __future__ import annotations

import os
from itertools import count
from pathlib import Path

from replicad.model.errors import UsageError
from replicad.system.disk import Disk

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Aside:
    """One directory for one restore; usable from several threads."""

    def __init__(self, path: Path, target: Path, root: int, disk: Disk) -> None:
        """`root` is the open `target`. Makes the directory. Raises UsageError."""
        where, self._disk = str(path), disk
        if path.resolve().is_relative_to(target.resolve()):
            raise UsageError("lies in the target", where=where, hint="name a directory beside it")
        try:
            path.mkdir(mode=0o700, exist_ok=True)
            self._root = os.open(path, _DIRECTORY)
        except OSError as error:
            raise UsageError(f"cannot be used: {error.strerror}", where=where) from error
        if os.fstat(self._root).st_dev != os.fstat(root).st_dev:
            os.close(self._root)
            text = "is on another file system than the target"
            raise UsageError(text, where=where, hint="name a directory on the same one")

    def close(self) -> None:
        """Close the directory."""
        os.close(self._root)

    def keep(self, path: bytes, name: bytes, parent: int, *, move: bool) -> None:
        """Keep the entry `name` of the open directory `parent`, which is at `path` of the target: a second name for it,
        or `move` it here. Raises OSError."""
        directory = self._made(path.rpartition(b"/")[0])
        try:
            for number in count():
                kept = name if not number else b"%s.%d" % (name, number)
                if is_free(kept, directory):
                    break
            if move:
                self._disk.move_at(name, parent, kept, directory)
            else:
                os.link(name, kept, src_dir_fd=parent, dst_dir_fd=directory, follow_symlinks=False)
        finally:
            os.close(directory)

    def _made(self, path: bytes) -> int:
        """The directory at `path` here, made where it is missing."""
        fd = os.dup(self._root)
        for name in path.split(b"/") if path else ():
            try:
                if is_free(name, fd):
                    os.mkdir(name, 0o700, dir_fd=fd)
                below = os.open(name, _DIRECTORY, dir_fd=fd)
            finally:
                os.close(fd)
            fd = below
        return fd


def is_free(name: bytes, parent: int) -> bool:
    """Whether nothing has this name in an open directory. Raises OSError."""
    try:
        os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return True
    return False
