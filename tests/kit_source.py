"""What tests of the source room share: a ledger in a dict, a busy writer, a failing disk, a clock far ahead."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterable

from replicad.model.entry import Kind, Stamp
from replicad.source.exclude import NOTHING, Excluded
from replicad.source.read import Access
from replicad.source.root import Root, split
from replicad.source.scan import DirectoryDiff, Stamps, walk
from replicad.system.clock import Clock
from replicad.system.direct import DirectReader


class KnownTree:
    """A ledger of stamps that follows the diffs applied to it, as the real one does."""

    def __init__(self) -> None:
        self.stamps: dict[bytes, Stamp] = {}
        self._names: dict[bytes, dict[bytes, Stamp]] = {}
        self.asked: list[bytes] = []

    def page(self, directory: bytes, after: bytes, limit: int) -> Stamps:
        self.asked.append(directory)
        names = sorted(name for name in self._names.get(directory, {}) if name > after)[:limit]
        return {name: tuple(self._names[directory][name]) for name in names}

    def entry(self, path: bytes) -> tuple[int, ...] | None:
        stamp = self.stamps.get(path)
        return tuple(stamp) if stamp else None

    def put(self, path: bytes, stamp: Stamp) -> None:
        directory, name = split(path)
        self.stamps[path] = stamp
        if path:
            self._names.setdefault(directory, {})[name] = stamp

    def drop(self, path: bytes) -> None:
        directory, name = split(path)
        for child in list(self._names.get(path, {})):
            self.drop(path + b"/" + child)
        del self.stamps[path], self._names[directory][name]

    def apply(self, diff: DirectoryDiff) -> None:
        for gone in diff.gone:
            self.drop(gone.path)
        for found in diff.changed:
            above = split(found.path)[0]
            assert not found.path or above in self.stamps, "a child came before its parent"
            assert not found.path or self.stamps[above].kind == Kind.DIRECTORY
            self.put(found.path, found.stamp)


def survey(
    root: bytes,
    known: KnownTree,
    *,
    excluded: Excluded = NOTHING,
    one_filesystem: bool = True,
    only: Iterable[bytes] | None = None,
) -> list[DirectoryDiff]:
    """Walk `root` and apply every diff to `known` after the walk; the diffs that say anything."""
    with Root(root) as opened:
        diffs = list(walk(opened, known, excluded=excluded, one_filesystem=one_filesystem, only=only))
    for diff in diffs:
        known.apply(diff)
    await_tick()
    return [diff for diff in diffs if diff.changed or diff.gone or diff.unchanged or diff.troubles]


_STAMPING_CLOCK = 5  # CLOCK_REALTIME_COARSE, which the time module has no name for


def await_tick() -> None:
    """Wait until the clock that stamps files has moved on (10 ms at most): what is done next shows in the times."""
    start = time.clock_gettime_ns(_STAMPING_CLOCK)
    while time.clock_gettime_ns(_STAMPING_CLOCK) == start:
        time.sleep(0.001)


def changed_paths(diffs: Iterable[DirectoryDiff]) -> set[bytes]:
    """Paths of all new and changed entries."""
    return {found.path for diff in diffs for found in diff.changed}


def gone_paths(diffs: Iterable[DirectoryDiff]) -> set[bytes]:
    """Paths of all entries that are gone (of a directory, itself alone)."""
    return {gone.path for diff in diffs for gone in diff.gone}


def trouble_reasons(diffs: Iterable[DirectoryDiff]) -> dict[bytes, str]:
    """Reasons by path."""
    return {trouble.path: trouble.reason for diff in diffs for trouble in diff.troubles}


class LaterClock(Clock):
    """An hour ahead, so that no file looks freshly written."""

    def now_ns(self) -> int:
        return super().now_ns() + 3_600_000_000_000


class Meddler(Access):
    """Does something to a file after it was read and before its status is looked at again, `times` times."""

    def __init__(self, deed: Callable[[], object], times: int = 1) -> None:
        self.deed, self.left = deed, times

    def before_second_look(self, path: bytes) -> None:
        if self.left:
            self.left -= 1
            self.deed()


class BadDisk(Access):
    """Cannot read the byte at `offset`; `direct_errno`: what direct reads fail with, wherever they read."""

    def __init__(self, offset: int = 0, *, direct_errno: int = 0) -> None:
        self.offset, self.direct_errno = offset, direct_errno

    def read(self, fd: int, size: int, offset: int) -> bytes:
        self._check(offset, size, False)
        return super().read(fd, size, offset)

    def read_into(self, fd: int, direct: DirectReader | None, buffer: memoryview, offset: int) -> int:
        self._check(offset, len(buffer), direct is not None)
        return super().read_into(fd, direct, buffer, offset)

    def _check(self, offset: int, size: int, direct: bool) -> None:
        if direct and self.direct_errno:
            raise OSError(self.direct_errno, os.strerror(self.direct_errno))
        if not self.direct_errno and offset <= self.offset < offset + size:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
