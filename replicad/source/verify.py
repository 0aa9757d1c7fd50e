"""Verify: read what is recorded once more, from the medium, and say where it is not what the record says.

**Owns** the scrub's look at the primary's data: every block of a file between two looks at its identity, and a second
look, from the medium again, at each block that did not match. **Never** judges and never writes: what was seen is a
value. A file that somebody wrote is `Moved`, one that cannot be looked at a `Trouble`; neither says anything about rot.

The page cache stays as it was. Direct reads put nothing into it; where a file system serves them through the cache
after all, or refuses them, what was not in there before is given up again, and the look counts as `cache` unless the
kernel's own account says that storage delivered every byte.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Protocol

import msgspec
from msgspec.structs import replace

from replicad.model.block import block_id, checksum
from replicad.model.entry import Kind, Meta, Stamp, Xattrs
from replicad.model.verdict import Sight
from replicad.source.meta import Description, describe, read_xattrs
from replicad.source.read import REAL, Access, misreported, open_file
from replicad.source.reread import Moved, block_length
from replicad.source.root import Root, Trail, Trouble, trouble
from replicad.system.clock import Clock
from replicad.system.direct import (
    BUFFER_BYTES,
    DIRECT_FLAG,
    CacheGauge,
    DirectReader,
    aligned,
    borrow_buffer,
    drop_pages,
    drop_pages_not_in,
    is_refusal,
    resident_pages,
    return_buffer,
    set_buffered,
    storage_read_bytes,
)

KEPT_BYTES = 4 * 1024 * 1024
"""Bad bytes of one part that are handed on for the quarantine; of a part that is rotten as a whole, the first ones."""
MEDIUM_ERRORS = (errno.EIO, errno.ENODATA, errno.EILSEQ, errno.EREMOTEIO, errno.EBADMSG, errno.EUCLEAN)
"""What reading gives when the medium, or a checksum below the file system, fails. (The kernel says ENODATA for a sector
that a disk cannot read, EILSEQ and EREMOTEIO for what a disk refuses otherwise, btrfs EIO, ext4 EBADMSG and EUCLEAN for
its own structures.)"""
_RIGHTS_DEPENDENT = (b"trusted.", b"security.")
"""Attributes that a process sees or does not see depending on its rights."""


class Expected(Protocol):
    """One block as it is recorded."""

    @property
    def id(self) -> bytes:
        """b"" = all-zero."""

    @property
    def checksum(self) -> bytes:
        """b"" = unknown: then the id decides."""


class Name(msgspec.Struct, frozen=True):
    """One recorded entry, as it should be."""

    path: bytes
    stamp: Stamp
    xattrs: Xattrs = ()
    target: bytes = b""
    device: int = 0


class Stretch(msgspec.Struct, frozen=True):
    """A run of blocks of one file, as recorded."""

    names: Sequence[Name]
    """Of the one file. The first that leads to it serves."""
    block_bytes: int
    blocks: range
    expected: Mapping[int, Expected]
    """By number; a block that is not in here is all-zero."""


class Seen(msgspec.Struct, frozen=True):
    """What one look at one block gave."""

    sight: Sight
    checksum: bytes = b""
    reason: str = ""
    data: bytes = b""
    """The bad bytes, if they are few enough to be kept."""


class Odd(msgspec.Struct, frozen=True):
    """A block that was not what the record says, at the first look at least."""

    number: int
    offset: int
    length: int
    first: Seen
    second: Seen

    @property
    def sight(self) -> Sight:
        """What both looks together say; two that contradict each other say nothing."""
        same = (self.first.sight, self.first.checksum) == (self.second.sight, self.second.checksum)
        return self.first.sight if same else Sight.UNKNOWN

    @property
    def is_passing(self) -> bool:
        """Whether it was well when it was read again."""
        return self.second.sight is Sight.MATCHES


class Examined(msgspec.Struct, frozen=True):
    """What was seen while nobody wrote the file."""

    path: bytes
    """The name that led to it."""
    read_bytes: int = 0
    is_media: bool = False
    """Whether all of them came from the medium."""
    odd: tuple[Odd, ...] = ()
    learned: Mapping[int, bytes] = {}
    """Checksums of blocks of which only the id was known, and that have it."""
    drift: tuple[str, ...] = ()
    """Where its metadata is not the recorded one, in words."""
    unseen: tuple[str, ...] = ()
    """Attributes that could not be read, and why."""


Outcome = Examined | Moved | Trouble


def examine(root: Root, stretches: Sequence[Stretch], *, access: Access = REAL) -> list[Outcome]:
    """Read these; the results in their order. No file makes it raise. One thread with much to do is better than many
    with little: each step gives up the interpreter's lock."""
    buffer = borrow_buffer()
    before = storage_read_bytes()
    try:
        with Trail(root) as trail, memoryview(buffer) as view:
            look = _Look(root, trail, view, access)
            found = [look.at(stretch) for stretch in stretches]
    finally:
        return_buffer(buffer)
    after = storage_read_bytes()
    if before is not None and after is not None and after - before < look.direct_bytes:
        found = [replace(one, is_media=False) if isinstance(one, Examined) else one for one in found]
    return found


def examine_entries(root: Root, names: Sequence[Name], clock: Clock) -> list[Outcome]:
    """Compare entries that have no blocks with what is recorded of them; a few hundred at once."""
    seen = describe(root, [name.path for name in names], clock=clock)
    return [
        one if isinstance(one, Trouble) else _compared(name, one.stamp, one.description)
        for name, one in zip(names, seen, strict=True)
    ]


def _compared(name: Name, stamp: Stamp, description: Description) -> Outcome:
    if stamp.identity != name.stamp.identity:
        return Moved(name.path, stamp)
    return Examined(name.path, drift=tuple(_drift(name, stamp, description)), unseen=description.troubles)


def _metadata(fd: int, name: Name, stamp: Stamp) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Of an open file: where it drifted, and what could not be read."""
    xattrs, unseen, _ = read_xattrs(fd)
    if stamp == name.stamp and xattrs == name.xattrs:
        return (), unseen
    described = Description(Meta(stamp.mode, stamp.uid, stamp.gid, stamp.mtime_ns, xattrs), troubles=unseen)
    return tuple(_drift(name, stamp, described)), unseen


def _drift(name: Name, stamp: Stamp, description: Description) -> Iterator[str]:
    was = name.stamp
    if stamp.kind != was.kind:
        yield f"is a {_kind(stamp.kind)}, recorded as a {_kind(was.kind)}"
    if stamp.mode != was.mode:
        yield f"mode is {stamp.mode:04o}, recorded {was.mode:04o}"
    if (stamp.uid, stamp.gid) != (was.uid, was.gid):
        yield f"owner is {stamp.uid}:{stamp.gid}, recorded {was.uid}:{was.gid}"
    if description.target != name.target:
        yield f"target is {description.target!r}, recorded {name.target!r}"
    if description.device != name.device:
        yield f"device number is {description.device}, recorded {name.device}"
    if not description.troubles:
        yield from _xattr_drift(dict(name.xattrs), dict(description.meta.xattrs))


def _xattr_drift(recorded: Mapping[bytes, bytes], seen: Mapping[bytes, bytes]) -> Iterator[str]:
    for name in sorted(recorded.keys() | seen.keys()):
        if name in recorded and name in seen:
            if recorded[name] != seen[name]:
                yield f"extended attribute {name!r} has another value"
        elif not name.startswith(_RIGHTS_DEPENDENT):
            yield f"extended attribute {name!r} is {'missing' if name in recorded else 'not recorded'}"


def _kind(number: int) -> str:
    return Kind(number).name.lower().replace("_", " ") if number else "thing of another kind"


class _Look:
    """Looks at files one after the other, with one buffer."""

    def __init__(self, root: Root, trail: Trail, view: memoryview, access: Access) -> None:
        self._root, self._trail, self._view, self._access = root, trail, view, access
        self._gauge = CacheGauge()
        self.direct_bytes = 0
        """Bytes read directly that are not all-zero: the medium must have given these. (An area that was allocated and
        never written reads as zeros without it.)"""

    def at(self, stretch: Stretch) -> Outcome:
        """Look at one stretch, by the first of its names that leads to the recorded file."""
        outcome: Outcome = Trouble(b"", "has no name", vanished=True)
        for name in stretch.names:
            outcome = self._at_name(stretch, name)
            if isinstance(outcome, Examined):
                break
        return outcome

    def _at_name(self, stretch: Stretch, name: Name) -> Outcome:
        try:
            fd, is_direct = self._open(name.path)
            try:
                status = os.fstat(fd)
                stamp = self._root.stamp(status, fd)
                if stamp != name.stamp and (stamp.kind != Kind.FILE or stamp.identity != name.stamp.identity):
                    return Moved(name.path, stamp)
                reading: _Reading | None = None
                if not (is_direct and self._is_quickly_well(fd, stretch, status.st_size)):
                    reading = _Reading(fd, is_direct, status, stretch, self._view, self._access)
                    reading.run()
                drift, unseen = _metadata(fd, name, stamp)
                self._access.before_second_look(name.path)
                after = os.fstat(fd)
                if (after.st_size, after.st_mtime_ns, after.st_ctime_ns) != (
                    status.st_size,
                    status.st_mtime_ns,
                    status.st_ctime_ns,
                ):
                    return Moved(name.path, self._root.stamp(after, fd))
            finally:
                os.close(fd)
        except OSError as error:
            return trouble(name.path, "cannot be read", error)
        if reading is None:
            self.direct_bytes += stamp.size
            return Examined(name.path, stamp.size, True, drift=drift, unseen=unseen)
        if reading.is_short:
            return misreported(name.path, reading.seen_size, stamp.size)
        self.direct_bytes += reading.direct_bytes
        return Examined(
            name.path, reading.read_bytes, reading.is_direct, tuple(reading.odd), reading.learned, drift, unseen
        )

    def _is_quickly_well(self, fd: int, stretch: Stretch, size: int) -> bool:
        """The short way for a file of one block that is what it should be, as nearly all are. Whatever else it may be,
        the long way finds out."""
        row = stretch.expected.get(0)
        if size > stretch.block_bytes or not size or row is None or not row.checksum or not row.id:
            return False
        was_cached = self._gauge.pages(fd, 0, size)
        try:
            count = self._access.read_into(fd, DirectReader(fd), self._view[: aligned(size)], 0)
        except OSError:
            return False
        if not was_cached and self._gauge.pages(fd, 0, size):
            drop_pages(fd)
        return count >= size and checksum(self._view[:size]) == row.checksum

    def _open(self, path: bytes) -> tuple[int, bool]:
        """The file's descriptor, and whether it reads past the page cache."""
        try:
            return open_file(self._trail, path, DIRECT_FLAG), True
        except OSError as error:
            if not is_refusal(error):
                raise
        return open_file(self._trail, path), False


class _Reading:
    """Reads one stretch of an open file and compares it block by block."""

    def __init__(
        self, fd: int, is_direct: bool, status: os.stat_result, stretch: Stretch, view: memoryview, access: Access
    ) -> None:
        self._fd, self._size, self._stretch, self._view, self._access = fd, status.st_size, stretch, view, access
        self._sparse = status.st_blocks * 512 < status.st_size
        self._step = stretch.block_bytes
        self._begin = min(stretch.blocks.start * self._step, self._size)
        self._end = min(stretch.blocks.stop * self._step, self._size)
        self.is_direct = is_direct
        self._reader = DirectReader(fd) if self.is_direct else None
        self._resident = b""
        """Pages that were cached before buffered reading."""
        self._was_cached = False
        self._kept_bytes = 0
        self._first: dict[int, Seen] = {}
        self.odd: list[Odd] = []
        self.learned: dict[int, bytes] = {}
        self.read_bytes = self.direct_bytes = 0
        self.is_short = False
        self.seen_size = self._size

    def run(self) -> None:
        """Read it all. Raises OSError where the medium is not to blame."""
        begin, length = self._begin, self._end - self._begin
        if self._end <= self._begin:
            return
        self._was_cached = bool(CacheGauge().pages(self._fd, begin, length))
        if self._reader is None:
            self._resident = resident_pages(self._fd, begin, length)
        try:
            for offset, size in self._pieces():
                self._read(offset, size)
                if self.is_short:
                    return
            for number in sorted(self._first):
                self._look_again(number)
        finally:
            if self._reader is None:
                drop_pages_not_in(self._resident, self._fd, begin, length)
            elif not self._was_cached:
                self._drop_what_came_in(begin, length)

    def _pieces(self) -> Iterator[tuple[int, int]]:
        """(offset, size) of what must be read: all but the holes where nothing is recorded."""
        longest = BUFFER_BYTES - BUFFER_BYTES % self._step
        at = self._begin
        while at < self._end:
            data, data_end = self._data(at)
            wanted = self._recorded_in_hole(at, data)
            if wanted > at:
                at = wanted
                continue
            size = min(longest, max(data_end, at + self._step) - at, self._end - at)
            yield at, size
            at += size

    def _data(self, at: int) -> tuple[int, int]:
        """Begin and end of the next data at or behind `at`, in whole blocks."""
        if not self._sparse:
            return at, self._end
        try:
            data = os.lseek(self._fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return self._end, self._end
        hole = os.lseek(self._fd, data, os.SEEK_HOLE)
        return max(at, data - data % self._step), hole + -hole % self._step

    def _recorded_in_hole(self, at: int, data: int) -> int:
        """Where to go on reading: at the data, or before it at a block that should not be a hole."""
        for number in range(at // self._step, min(data, self._end) // self._step):
            expected = self._stretch.expected.get(number)
            if expected is not None and expected.id:
                return number * self._step
        return data

    def _read(self, offset: int, size: int) -> None:
        try:
            count = self._fill(offset, size)
        except OSError as error:
            if error.errno not in MEDIUM_ERRORS:
                raise
            self._read_one_by_one(offset, size)
            return
        self.read_bytes += count
        if count < size:
            self.is_short, self.seen_size = True, offset + count
            return
        for at in range(0, size, self._step):
            self._compare((offset + at) // self._step, self._view[at : min(at + self._step, size)])

    def _read_one_by_one(self, offset: int, size: int) -> None:
        """Somewhere in there the medium fails: find out where."""
        for at in range(offset, offset + size, self._step):
            number = at // self._step
            seen = self._see(number)
            if seen.sight is not Sight.MATCHES:
                self._first[number] = seen

    def _fill(self, offset: int, size: int) -> int:
        """Read into the buffer; how much there was."""
        if self._reader:
            try:
                view = self._view[: aligned(size)]
                return min(size, self._access.read_into(self._fd, self._reader, view, offset))
            except OSError as error:
                if not is_refusal(error):
                    raise
            set_buffered(self._fd)
            self._reader, self.is_direct, self.direct_bytes = None, False, 0
            self._resident = resident_pages(self._fd, self._begin, self._end - self._begin)
        return self._access.read_into(self._fd, None, self._view[:size], offset)

    def _compare(self, number: int, piece: memoryview) -> None:
        found = checksum(piece)
        if self._is_well(number, piece, found):
            expected = self._stretch.expected.get(number)
            if self._reader and expected is not None and expected.id:
                self.direct_bytes += len(piece)
        else:
            self._first[number] = self._differs(piece, found)

    def _is_well(self, number: int, piece: memoryview, found: bytes) -> bool:
        expected = self._stretch.expected.get(number)
        if expected is None or not expected.id:
            return found == zero_checksum(len(piece))
        if expected.checksum:
            return found == expected.checksum
        if block_id(piece) != expected.id:
            return False
        self.learned[number] = found
        return True

    def _differs(self, piece: memoryview, found: bytes) -> Seen:
        keep = self._kept_bytes + len(piece) <= KEPT_BYTES
        self._kept_bytes += len(piece) if keep else 0
        return Seen(Sight.DIFFERS, found, "", bytes(piece) if keep else b"")

    def _look_again(self, number: int) -> None:
        """The second look at a block that was not well. Read directly it comes from the medium once more; else what is
        cached is given up first, so that it has to."""
        offset, length = number * self._step, block_length(self._size, self._step, number)
        if self._reader is None:
            drop_pages(self._fd)
        elif not self._was_cached:
            self._drop_what_came_in(offset, length)
        first, second = self._first[number], self._see(number)
        if second.sight is Sight.DIFFERS and second.checksum == first.checksum:
            second = replace(second, data=b"")  # the same bytes as before
        self.odd.append(Odd(number, offset, length, first, second))

    def _drop_what_came_in(self, offset: int, length: int) -> None:
        """A direct read that left pages in the cache went through it after all."""
        if CacheGauge().pages(self._fd, offset, length):
            drop_pages(self._fd, offset, length)

    def _see(self, number: int) -> Seen:
        """Read one block by itself."""
        offset, length = number * self._step, block_length(self._size, self._step, number)
        try:
            count = self._fill(offset, length)
        except OSError as error:
            if error.errno not in MEDIUM_ERRORS:
                raise
            return Seen(Sight.UNREADABLE, b"", error.strerror or str(error))
        self.read_bytes += count
        if count < length:
            return Seen(Sight.UNKNOWN, b"", "the file became shorter")
        piece = self._view[:length]
        found = checksum(piece)
        return Seen(Sight.MATCHES, found) if self._is_well(number, piece, found) else self._differs(piece, found)


@lru_cache(64)
def zero_checksum(length: int) -> bytes:
    """The checksum of so many zeros."""
    return checksum(bytes(length))
