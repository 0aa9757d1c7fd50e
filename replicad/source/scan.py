"""Scan: walk a dataset's tree and say where it differs from what the ledger knows.

**Owns** the meaning of "unchanged": equal stamps. **Never** reads a file, follows a symlink, or takes something
that it could not see for a deletion: what lies below an unreadable directory stays as it is known.

The one idea: directory by directory, parents before children, each compared with the ledger's entries of that
directory and forgotten; so memory does not grow with the tree. Entries that did not change, nearly all, cost one
status call and one comparison of two tuples, and no object of ours is built for them.
"""

from __future__ import annotations

import heapq
import os
import random
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from stat import S_ISDIR
from typing import Protocol

import msgspec

from replicad.model.entry import MAX_NAME_BYTES, MAX_PATH_BYTES, Kind, Stamp, show_path
from replicad.model.errors import SourceError
from replicad.source.exclude import NOTHING, Excluded
from replicad.source.root import (
    KIND_OF,
    NAME_ENCODING,
    NAME_ERRORS,
    SECOND_NS,
    SETTLE_NS,
    Root,
    Trail,
    Trouble,
    lstat_at,
    recordable,
    split,
    trouble,
)

PAGE_ENTRIES = 50_000
"""Known entries of one directory compared at a time: about 25 MiB. A bigger directory is listed once for each page."""
DIFF_ENTRIES = 4096
"""Changed entries and troubles in one diff at most, so that a huge new directory comes in pieces."""

AHEAD_DIRECTORIES = 128
"""Directories that a walk says it will come to: enough to keep a disk busy, few enough not to load what is thrown out
again before the walk is there."""
TOLD_AT_ONCE = 8
"""Fewer of them are not worth the telling."""
SHARED_AT_ONCE = 16
"""Directories that a companion is given at once: some milliseconds of work, far more than the asking takes."""

Soon = Callable[[Sequence[bytes]], None]
"""Is told of directories that the walk will come to soon, the nearest first."""
Stamps = dict[bytes, tuple[int, ...]]


class Known(Protocol):
    """The ledger as the walk sees it. Stamps are plain tuples in the order of `Stamp`."""

    def page(self, directory: bytes, after: bytes, limit: int) -> Stamps:
        """Stamps by name of the first `limit` entries directly in `directory` whose names are greater than `after`,
        in ascending order of names; a fresh dict, which the walk consumes."""

    def entry(self, path: bytes) -> tuple[int, ...] | None:
        """The stamp of one entry; b"" is the root itself."""


class Found(msgspec.Struct, frozen=True, array_like=True):
    """An entry that is new, or that differs from what is known."""

    path: bytes
    stamp: Stamp
    links: int
    """st_nlink: a regular file with more than one has hard links, in the dataset or elsewhere."""
    known: Stamp | None
    """What the ledger has; None when it is new."""


class Gone(msgspec.Struct, frozen=True, array_like=True):
    """A known entry that is no longer there. When it was a directory, all that is known below it is gone as well."""

    path: bytes
    stamp: Stamp
    """As it was known."""


class Drifted(msgspec.Struct, frozen=True, array_like=True):
    """An entry that differs from what is known although nobody changed it: inode and both times are the known ones, and
    whatever the kernel does to an entry moves its ctime. Neither changed nor gone: it stays as it is known."""

    path: bytes
    stamp: Stamp
    known: Stamp


class DirectoryDiff(msgspec.Struct, array_like=True):
    """What differs in one directory; a huge directory comes in several. Apply `gone` before `changed`: a path that
    was a directory and is something else now stands in both."""

    path: bytes
    changed: list[Found] = []
    gone: list[Gone] = []
    drifted: list[Drifted] = []
    unchanged: int = 0
    unchanged_bytes: int = 0
    """Sizes of the unchanged regular files."""
    troubles: list[Trouble] = []

    @property
    def is_full(self) -> bool:
        """Whether the next entry that differs belongs into another one."""
        return len(self.changed) + len(self.drifted) + len(self.troubles) >= DIFF_ENTRIES


class Compared(msgspec.Struct, frozen=True, array_like=True):
    """What came of directories that were given away."""

    diffs: list[DirectoryDiff]
    below: list[bytes]
    """Directories in them that are to be walked as well."""
    left: list[bytes]
    """Given in vain: so much differs in them that it comes in pieces, which does not fit into one answer."""


class Companion(Protocol):
    """Somebody with a processor of his own, who compares some directories of a walk."""

    @property
    def is_busy(self) -> bool:
        """Whether something is under way that `done` has not given yet."""

    def give(self, directories: Sequence[bytes]) -> bool:
        """Have these compared; False when enough is under way."""

    def done(self, *, wait: bool) -> list[Compared]:
        """What was compared since this was last asked; one at least with `wait`, if any is under way."""


def walk(
    root: Root,
    known: Known,
    *,
    excluded: Excluded = NOTHING,
    one_filesystem: bool = True,
    only: Iterable[bytes] | None = None,
    soon: Soon | None = None,
    companion: Companion | None = None,
) -> Iterator[DirectoryDiff]:
    """Walk the whole tree, or with `only` those directories alone (and what is new or differs below them). A walk of
    everything tells `soon` where it goes next, and shares its directories with a `companion`.

    The diff of a directory comes before those of its subdirectories; the root's own entry is in the first. An
    excluded path, and all that a mount point hides when `one_filesystem`, is gone if it was known; the directory
    that is a mount point itself is an entry. Raises SourceError when the root cannot be listed or is no longer the
    directory that was opened; all other obstacles are `troubles`.
    """
    with Trail(root) as trail:
        walker = _Walk(root, trail, known, excluded, one_filesystem, soon, companion)
        yield from walker.everything() if only is None else walker.hinted(only)
    root.check()


class Comparer:
    """What a companion does: compare directories of a walk that goes on elsewhere."""

    def __init__(self, root: Root, known: Known, excluded: Excluded, *, one_filesystem: bool) -> None:
        self._root, self._known, self._excluded, self._one_filesystem = root, known, excluded, one_filesystem

    def compare(self, directories: Sequence[bytes]) -> Compared:
        """Compare these, none of them the root; not what is below them."""
        compared = Compared([], [], [])
        with Trail(self._root) as trail:
            walker = _Walk(self._root, trail, self._known, self._excluded, self._one_filesystem)
            for path in directories:
                with closing(walker.pieces(path)) as pieces:
                    diffs = list(islice(pieces, 2))
                if len(diffs) > 1:
                    compared.left.append(path)
                else:
                    compared.diffs.extend(diffs)
                    compared.below.extend(walker.stack)
                walker.stack.clear()
                walker.mounts.clear()
        return compared


@dataclass(slots=True)
class _Place:
    """A directory while it is compared."""

    path: bytes
    fd: int
    device: int
    """Its st_dev."""
    label: int
    """What stands for that in stamps."""
    left: Stamps = field(default_factory=dict)
    """Known entries of the current page that were not met yet."""
    after: bytes = b""
    last: bytes | None = None
    """The current page covers the names greater than `after` up to `last`, or to the end when that is None."""
    sound: bool = True
    """Whether the listing came to its end, so that what was not met is gone."""

    @property
    def prefix(self) -> bytes:
        return self.path + b"/" if self.path else b""

    def covers(self, name: bytes) -> bool:
        return name > self.after and (self.last is None or name <= self.last)


@dataclass(slots=True)
class _Walk:
    root: Root
    trail: Trail
    known: Known
    excluded: Excluded
    one_filesystem: bool
    soon: Soon | None = None
    companion: Companion | None = None
    is_hinted: bool = False
    """Descend only into directories that are new or differ: one that was made anew may have its old inode again, and
    what came into it before it was watched is told by nobody."""
    walked: set[bytes] = field(default_factory=set)
    """Known directories that a hinted walk has come to."""
    stack: list[bytes] = field(default_factory=list)
    """Directories still to be walked; their names are all that is kept of them."""
    mounts: list[bytes] = field(default_factory=list)
    """Mount points in the current directory that are not crossed."""
    told: set[bytes] = field(default_factory=set)
    """Directories on the stack that `soon` has heard of."""

    def everything(self) -> Iterator[DirectoryDiff]:
        yield self._own_diff(b"") or DirectoryDiff(b"", unchanged=1)
        self.stack.append(b"")
        while self.stack or (self.companion and self.companion.is_busy):
            if self.stack:
                path = self.stack.pop()
                self.told.discard(path)
                before = len(self.stack)
                yield from self.pieces(path)
                self._shuffle(before)
            if self.soon:
                self._tell(self.soon)
            if self.companion:
                yield from self._share(self.companion)

    def _shuffle(self, before: int) -> None:
        """Go on with the subdirectories in any order: where every pass is cut short and much is written, those at the
        end of a fixed one would never have their turn."""
        below = self.stack[before:]
        random.shuffle(below)
        self.stack[before:] = below

    def _share(self, companion: Companion) -> Iterator[DirectoryDiff]:
        """Take what the companion has done, and give it some of the next directories while there are enough for two."""
        for compared in companion.done(wait=not self.stack):
            yield from compared.diffs
            before = len(self.stack)
            self.stack += compared.below
            self._shuffle(before)
            for path in compared.left:
                yield from self.pieces(path)
        count = min(SHARED_AT_ONCE, len(self.stack) // 2)
        if count >= TOLD_AT_ONCE and companion.give(given := self.stack[-count:]):
            del self.stack[-count:]
            self.told.difference_update(given)

    def _tell(self, soon: Soon) -> None:
        """Tell of the next directories, several at once or none."""
        coming, told = self.stack[-AHEAD_DIRECTORIES:], self.told
        if not coming or (coming[-1] in told and coming[len(coming) // 2] in told):
            return
        fresh = [path for path in reversed(coming) if path not in told]
        if len(fresh) >= TOLD_AT_ONCE:
            told.update(fresh)
            soon(fresh)

    def hinted(self, only: Iterable[bytes]) -> Iterator[DirectoryDiff]:
        self.is_hinted = True
        wanted = {path for path in only if not self.excluded.covers(path)}
        heap = sorted(wanted)  # parents come before their children
        done: set[bytes] = set()
        while heap:
            hint = heapq.heappop(heap)
            if hint in done or hint in self.walked:
                continue
            done.add(hint)
            above = split(hint)[0]
            if hint and not self._is_known_directory(hint):
                heapq.heappush(heap, above)  # what happened here shows there
                continue
            self.walked.add(hint)
            own = self._own_diff(hint)
            if own and (not hint or above not in self.walked):
                yield own
            self.stack.append(hint)
            while self.stack:
                yield from self.pieces(self.stack.pop())

    def _is_known_directory(self, path: bytes) -> bool:
        """Whether `path` is a directory, now and in the ledger."""
        known = self.known.entry(path)
        if known is None or known[0] != Kind.DIRECTORY:
            return False
        above, name = split(path)
        try:
            return S_ISDIR(lstat_at(self.trail.enter(above), name).st_mode)
        except OSError:
            return False  # the walk of a directory above says why

    def _own_diff(self, path: bytes) -> DirectoryDiff | None:
        """The diff that holds the entry of the directory at `path` itself, when it differs."""
        above, name = split(path)
        try:
            directory = self.trail.enter(above)
            status = lstat_at(directory, name)
        except OSError:
            return None  # its own walk says why
        stamp, known = self.root.stamp(status, directory), self.known.entry(path)
        if known == stamp:
            return None
        if known and has_drifted(known, stamp):
            return DirectoryDiff(above, drifted=[Drifted(path, stamp, Stamp._make(known))])
        found = Found(path, stamp, status.st_nlink, Stamp._make(known) if known else None)
        return DirectoryDiff(above, changed=[found])

    def pieces(self, path: bytes) -> Generator[DirectoryDiff, None, None]:
        """The diff of one directory, in several when it is huge; what it holds to be walked goes onto the stack."""
        try:
            fd = self.trail.enter(path)
            device = os.fstat(fd).st_dev
        except OSError as error:
            yield DirectoryDiff(path, troubles=[trouble(path, "directory cannot be opened", error)])
            return
        if self.one_filesystem and device != self.root.device:
            yield from self._hidden(path)
            return
        place = _Place(path, fd, device, self.root.label(device, fd))
        while True:
            place.left = self.known.page(path, place.after, PAGE_ENTRIES)
            place.last = next(reversed(place.left)) if len(place.left) >= PAGE_ENTRIES else None
            yield from self._page(place)
            if place.last is None or not place.sound:
                break
            place.after = place.last
        while self.mounts:
            yield from self._hidden(self.mounts.pop())

    def _page(self, place: _Place) -> Iterator[DirectoryDiff]:
        diff = DirectoryDiff(place.path)
        try:
            listing = os.scandir(place.fd)
        except OSError as error:
            self._not_listed(place, diff, error)
            yield diff
            return
        with listing:
            while self._compare(place, listing, diff):
                yield diff
                diff = DirectoryDiff(place.path)
        if place.sound and place.left:
            self._not_met(place, diff)
        yield diff

    def _compare(self, place: _Place, listing: Iterator[os.DirEntry[str]], diff: DirectoryDiff) -> bool:
        """Compare entry by entry until the listing ends, or until `diff` is full: True then. The hot loop."""
        prefix, device, label, excluded = place.prefix, place.device, place.label, self.excluded
        pop, paged = place.left.pop, bool(place.after) or place.last is not None
        unchanged = unchanged_bytes = 0
        try:
            for entry in listing:
                name = entry.name.encode(NAME_ENCODING, NAME_ERRORS)
                if paged and not place.covers(name):
                    continue
                try:
                    status = entry.stat(follow_symlinks=False)
                except OSError as error:
                    pop(name, None)  # not seen is not gone
                    diff.troubles.append(trouble(prefix + name, "status cannot be read", error))
                    if diff.is_full:
                        break
                    continue
                mode = status.st_mode
                kind = KIND_OF[mode >> 12]
                if excluded and excluded(prefix + name, kind == _DIRECTORY):
                    self._add_gone(diff, prefix + name, pop(name, None))
                    continue
                seen = (
                    kind, mode & 0o7777, status.st_uid, status.st_gid,
                    label if status.st_dev == device else self._label(place, name, status),
                    status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns,
                )  # fmt: skip
                before = pop(name, None)
                if before == seen or before == (stamp := recordable(Stamp._make(seen))):
                    unchanged += 1
                    if kind == _FILE:
                        unchanged_bytes += seen[6]
                    elif kind == _DIRECTORY:
                        self._descend(prefix + name, status, before, differs=False)
                else:
                    self._differs(diff, prefix + name, stamp, status, before)
                    if diff.is_full:
                        break
        except OSError as error:
            self._not_listed(place, diff, error)
        diff.unchanged, diff.unchanged_bytes = unchanged, unchanged_bytes
        return diff.is_full and place.sound

    def _not_met(self, place: _Place, diff: DirectoryDiff) -> None:
        """What is known and was not listed is gone, unless a look at it and a second listing say otherwise: a listing
        may pass over an entry that is renamed meanwhile. (A file system that ignores case finds names it never lists.)
        """
        present = {name for name in place.left if _exists(place.fd, name)}
        if present:
            try:
                present &= {name.encode(NAME_ENCODING, NAME_ERRORS) for name in os.listdir(place.fd)}
            except OSError as error:
                self._not_listed(place, diff, error)
                return
        for name, stamp in place.left.items():
            if name in present:
                diff.troubles.append(Trouble(place.prefix + name, "was renamed during the pass", vanished=True))
            else:
                self._add_gone(diff, place.prefix + name, stamp)

    @staticmethod
    def _add_gone(diff: DirectoryDiff, path: bytes, before: tuple[int, ...] | None) -> None:
        if before:
            diff.gone.append(Gone(path, Stamp._make(before)))

    def _differs(
        self, diff: DirectoryDiff, path: bytes, stamp: Stamp, status: os.stat_result,
        before: tuple[int, ...] | None,
    ) -> None:  # fmt: skip
        if before and has_drifted(before, stamp):
            diff.drifted.append(Drifted(path, stamp, Stamp._make(before)))
            if stamp[0] == before[0] == _DIRECTORY:
                self._descend(path, status, before)
            return
        reason = _unfit(path, stamp[0])
        if reason:
            diff.troubles.append(Trouble(path, reason))
            return
        known = Stamp._make(before) if before else None
        diff.changed.append(Found(path, stamp, status.st_nlink, known))
        if known and known.kind == _DIRECTORY != stamp[0]:
            diff.gone.append(Gone(path, known))
        if stamp[0] == _DIRECTORY:
            self._descend(path, status, before)

    def _descend(
        self, path: bytes, status: os.stat_result, before: tuple[int, ...] | None, *, differs: bool = True
    ) -> None:
        if self.one_filesystem and status.st_dev != self.root.device:
            self.mounts.append(path)
        elif not self.is_hinted:
            self.stack.append(path)
        elif differs and path not in self.walked:
            self.stack.append(path)
            if before:  # a new one is met once
                self.walked.add(path)

    def _hidden(self, path: bytes) -> Iterator[DirectoryDiff]:
        """What is known below a mount point that is not crossed is gone, as if it were excluded."""
        after, full = b"", True
        while full:
            page = self.known.page(path, after, PAGE_ENTRIES)
            full = len(page) >= PAGE_ENTRIES
            if page:
                after = next(reversed(page))
                gone = [Gone(path + b"/" + name, Stamp._make(stamp)) for name, stamp in page.items()]
                yield DirectoryDiff(path, gone=gone)

    def _label(self, place: _Place, name: bytes, status: os.stat_result) -> int:
        """The label of an entry that lies on another file system than its directory: a mount point."""
        try:
            fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place.fd)
        except OSError:
            return place.label  # vanished just now; whatever we say of it is outdated
        try:
            return self.root.label(status.st_dev, fd)
        finally:
            os.close(fd)

    def _not_listed(self, place: _Place, diff: DirectoryDiff, error: OSError) -> None:
        place.sound = False
        if not place.path:
            raise SourceError(f"cannot be listed: {error.strerror}", where=show_path(self.root.path)) from error
        diff.troubles.append(trouble(place.path, "directory cannot be listed", error))


_FILE, _DIRECTORY, _SYMLINK = Kind.FILE.value, Kind.DIRECTORY.value, Kind.SYMLINK.value
_SIZE, _TIMES = 6, slice(7, 9)


def has_drifted(known: Sequence[int], now: Sequence[int]) -> bool:
    """Whether an entry with these two stamps was changed by something else than the kernel. Pure.

    A regular file that only grew was perhaps not: one long write stamps the file once and lengthens it as it goes on,
    so a size that was recorded meanwhile is outgrown under the same times. Directories have whatever size their file
    system's check gives them. And where times are whole seconds, two changes within one look like none.
    """
    if known[_TIMES] != now[_TIMES] or known[4:6] != now[4:6] or known[8] % SECOND_NS == 0:
        return False
    if known[:4] != now[:4]:
        return True
    shrank = now[0] == _FILE and now[_SIZE] < known[_SIZE]
    return shrank or (now[0] == _SYMLINK and now[_SIZE] != known[_SIZE])


def still_drifted(root: Root, drifted: Iterable[Drifted]) -> list[Drifted]:
    """Those that are so a moment later as well: a truncation shows its new size a little before its new times."""
    time.sleep(SETTLE_NS / 1e9)
    looks = ((one, root.look(one.path)) for one in drifted)
    return [one for one, now in looks if now and has_drifted(one.known, now)]


def _exists(directory: int, name: bytes) -> bool:
    try:
        lstat_at(directory, name)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True  # something is there that cannot be looked at
    return True


def _unfit(path: bytes, kind: int) -> str:
    """Why an entry cannot be replicated at all, or ""."""
    if not kind:
        return "is of a kind that cannot be replicated"
    if len(path) > MAX_PATH_BYTES:
        return f"path is longer than {MAX_PATH_BYTES} bytes"
    if len(split(path)[1]) > MAX_NAME_BYTES:
        return f"name is longer than {MAX_NAME_BYTES} bytes"
    return ""
