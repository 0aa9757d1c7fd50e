"""Filling: one regular file on its way to being what the record says.

A new file grows under its temporary name, and goes on where an interrupted restore left it. An existing one is
compared block by block (BLAKE3); when it differs, a new one that has its right blocks takes its name, or, when large,
it is corrected in place (`Way` has all ways). The modification time is set last, and only when every byte is proven, so
a file that looks finished is finished.

**Owns** the bytes of the file. **Never** writes a byte that `open_block` has not proven. Blocks may arrive in several
threads; whoever brings the last one finishes the file.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum

from replicad.link.messages import Lost
from replicad.model.block import Buffer, block_count
from replicad.model.entry import SPARSE, Put
from replicad.model.errors import DiskFullError
from replicad.system.disk import ALIGN_BYTES, align_up, read_at, set_direct
from replicad.work.account import FILES, Fate, Tally
from replicad.work.attributes import UNUSABLE, attributes_differ, reason_of, set_attributes
from replicad.work.comparing import SLAB_BYTES, Comparison, Piece, Wanted, block_length, seek_data, thread_buffer
from replicad.work.conflicts import note_content
from replicad.work.target import Target, is_private, split, temporary_name

DIRECT_FROM_BYTES = 512 * 1024
"""Files from this size on go past the page cache: filling fresh cache pages costs more than the device."""
IN_PLACE_FROM_BYTES = 64 * 1024 * 1024
"""Changed files below this are replaced as a whole, so that no reader sees a mixture; above, the copy would cost more
time and room than that is worth, and only the differing blocks are written."""

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_NOT_IN_PLACE = (errno.ETXTBSY, errno.EACCES, errno.EPERM)
"""A running program, a file that is read-only for this user: a new file may still take its name."""
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_WRITE = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_CREATE = _WRITE | os.O_CREAT | os.O_EXCL


class Way(Enum):
    """How a file comes to be what it should be."""

    NEW = "nothing is there, or nothing of it is right; written under the temporary name"
    AT_ONCE = "nothing is there; written under its own name in one go, in a directory that nobody else may enter yet"
    RESUMED = "an interrupted restore left a part under the temporary name"
    KEPT = "a file is there, and no difference was found so far"
    COPIED = "a file is there and differs; what is right of it is copied to the new blocks under the temporary name"
    PATCHED = "a large file is there and differs; it is corrected in place"


@dataclass(frozen=True, slots=True)
class Site:
    """What all fillings of one restore share."""

    target: Target
    now_ns: int
    """Access time of what is restored, and modification time of what is incomplete."""
    since_ns: int = 0
    """Plan: when the snapshot was made; what differs is told. 0 = this is none."""


class Filling:
    """One file. Compared and sealed by the planner; `write` may be called from any thread. Open only while it is
    compared or written, so that any number of files may be under way."""

    __slots__ = (
        "_comparison",
        "_concluded",
        "_directory",
        "_failed",
        "_fd",
        "_is_suspect",
        "_lock",
        "_lost",
        "_made",
        "_name",
        "_parts",
        "_sealed",
        "_separate",
        "_site",
        "_temporary",
        "_there",
        "_writers",
        "_zeros",
        "direct",
        "put",
        "right_bytes",
        "way",
        "written_bytes",
    )

    def __init__(self, put: Put, site: Site, there: os.stat_result | None = None, *, separate: bool = False) -> None:
        """`there` is the lstat of the regular file that has the name now. `separate`: it also has a name that another
        file is to have, so it must become a file of its own even if nothing differs."""
        self.put, self._site, self._there, self._separate = put, site, there, separate
        self.way = Way.NEW if there is None else Way.KEPT
        self.direct = put.size >= DIRECT_FROM_BYTES and put.block_bytes % ALIGN_BYTES == 0
        self.right_bytes = self.written_bytes = 0
        self._directory, self._name = split(put.path)
        self._temporary = temporary_name(self._name)
        self._comparison: Comparison | None = None
        self._fd = -1
        self._made: tuple[int, int, int] | None = None
        self._lock = threading.Lock()
        self._parts = self._writers = 0
        self._failed = ""
        self._sealed = self._concluded = self._zeros = self._is_suspect = False
        self._lost: list[tuple[int, int, str]] = []

    # comparing: the planner's thread

    def find_leftover(self) -> None:
        """Where the name is free: look whether an interrupted restore left a part of this file. What anybody else may
        have made, or can reach, is not taken for one, and is replaced. Raises OSError."""
        if self.way is not Way.NEW or self.put.size <= self.put.block_bytes:
            return
        try:
            with self._site.target.directory(self._directory) as parent:
                status = os.stat(self._temporary, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            return
        if _is_ours(status):
            self.way, self._there = Way.RESUMED, status

    def compare(self, piece: Piece, tally: Tally) -> Iterator[list[Wanted]]:
        """The blocks of a piece that are not right yet, slab by slab. Raises OSError, DiskFullError."""
        self._zeros = self._zeros or len(piece.listed) < piece.end - piece.first
        source = self._source()
        if source is None:
            yield piece.listed
            return
        for compared in source.slabs(piece):
            self.right_bytes += compared.right_bytes
            tally.right_bytes += compared.right_bytes
            if (compared.missing or compared.wrong_zeros) and self.way is Way.KEPT:
                self._choose_way(whole=len(compared.missing) == block_count(self.put.size, self.put.block_bytes))
            if compared.wrong_zeros and not self._site.target.dry:
                zeros = [(index, bytes(block_length(self.put, index))) for index in compared.wrong_zeros]
                with self._writing() as fd:
                    self._write_blocks(fd, zeros)
            yield compared.missing

    def expect(self) -> None:
        """One more part of the file is on its way: `write` will be called for it."""
        with self._lock:
            self._parts += 1

    def seal(self, tally: Tally) -> None:
        """All parts have been announced; finishes the file when none is under way. Raises DiskFullError."""
        with self._lock:
            self._sealed = True
            last = not self._parts
        try:
            if last:
                self._finish(tally)
        finally:
            self.close_source()

    def fail(self, error: BaseException, tally: Tally) -> None:
        """The planner cannot go on with this file. Raises DiskFullError."""
        try:
            self._note_failure(error)
            self.seal(tally)
        finally:
            self.close_source()

    def close_source(self) -> None:
        """Nothing is to be compared any more."""
        if self._comparison is not None:
            self._comparison.close()

    # writing: any thread

    def write(self, blocks: Sequence[tuple[int, Buffer | Lost]], tally: Tally) -> None:
        """Write proven blocks (ascending by index) and note the lost ones. Raises DiskFullError."""
        with self._lock:
            only = self._sealed and self._parts == 1  # the usual case of a small file: opened once
        try:
            if self._site.target.dry:
                self._note_lost(blocks)
            elif not self._failed:
                with self._writing(only=only) as fd:
                    self._take(fd, blocks, tally)
                    if only:
                        self._conclude(tally)
        except UNUSABLE as error:
            self._note_failure(error)
        with self._lock:
            self._parts -= 1
            last = self._sealed and not self._parts
        if last:
            self._finish(tally)

    def is_whole_and_new(self, blocks: Sequence[Wanted]) -> bool:
        """Whether these are all blocks of a file of which nothing is there yet, in a directory that nobody else may
        enter, and that record alone tells all of it."""
        with self._lock:
            only = self._sealed and self._parts == 1
            is_new = self.way is Way.NEW and self._made is None and not self._failed
        target = self._site.target
        is_ours = not target.dry and target.is_fresh(self._directory)
        return only and is_new and is_ours and len(blocks) == len(self.put.blocks)

    def done_elsewhere(self) -> None:
        """All of it was written, and counted, by somebody else."""
        with self._lock:
            self._parts -= 1
            self._concluded = True

    # helpers: comparing

    def _source(self) -> Comparison | None:
        """The file to compare with, opened at first need; None when there is none."""
        if self.way is Way.NEW or self._comparison is not None:
            return self._comparison
        name = self._temporary if self.way is Way.RESUMED else self._name
        try:
            fd = self._open(name, _READ)
        except PermissionError:  # not readable for this user, but perhaps replaceable
            self._there = None if self.way is Way.RESUMED else self._there
            self.way = Way.NEW
            return None
        self._comparison = Comparison(self.put, fd)
        self._demand_same(os.fstat(fd))
        return self._comparison

    def _demand_same(self, status: os.stat_result | None) -> None:
        """What was compared must not be taken for what is there now. Raises OSError."""
        assert self._there is not None
        if status is None or _identity(status) != _identity(self._there):
            raise OSError(errno.ESTALE, "another process changed the file during the restore")

    def _open(self, name: bytes, flags: int) -> int:
        with self._site.target.directory(self._directory) as parent:
            fd = os.open(name, flags, 0o600, dir_fd=parent)
        if self.direct:
            set_direct(fd, True)
        return fd

    # helpers: writing

    def _choose_way(self, *, whole: bool) -> None:
        """A difference was found in an existing file. `whole`: all of it is to be written."""
        assert self._there is not None
        if whole:
            self.way = Way.NEW
        elif self._may_be_patched(self._there):
            self.way = Way.PATCHED
        else:  # a file that has other names is never changed, only replaced
            self.way = Way.COPIED

    def _may_be_patched(self, there: os.stat_result) -> bool:
        is_large = self.put.size >= IN_PLACE_FROM_BYTES
        return is_large and there.st_nlink == 1 and not self._separate and not self._site.target.keeps

    @contextmanager
    def _writing(self, *, only: bool = False) -> Iterator[int]:
        """The descriptor to write to, for a while; several threads may have it. `only`: nobody will need it again."""
        with self._lock:
            if self._fd < 0:
                if only and self.way is Way.NEW and self._made is None and self._site.target.is_fresh(self._directory):
                    self.way, self._temporary = Way.AT_ONCE, self._name
                self._fd = self._open_to_write()
            self._writers += 1
        try:
            yield self._fd
        finally:
            with self._lock:
                self._writers -= 1
                if not self._writers:
                    self._close()

    def _close(self) -> None:
        """Close the descriptor, if it is open; the lock is held."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _open_to_write(self) -> int:
        if self._made is None and self.way is Way.PATCHED:
            try:
                return self._open_again(self._name)
            except OSError as error:
                if error.errno not in _NOT_IN_PLACE:
                    raise
                self.way = Way.COPIED
        if self._made is None and self.way is not Way.RESUMED:
            return self._create()
        return self._open_again(self._name if self.way is Way.PATCHED else self._temporary)

    def _open_again(self, name: bytes) -> int:
        """Open what was compared, or what we made, once more."""
        fd = self._open(name, _WRITE)
        status, there = os.fstat(fd), self._there
        expected = self._made or (there and _inode(there))
        if _inode(status) != expected or (self.way is Way.RESUMED and not _is_ours(status)):
            os.close(fd)
            raise OSError(errno.ESTALE, "another process replaced the file during the restore")
        if self._made is None:
            self._made = _inode(status)
            self._allocate_early(fd)
        return fd

    def _create(self) -> int:
        try:
            fd = self._open(self._temporary, _CREATE)
        except FileExistsError:  # left by an interrupted restore
            with self._site.target.directory(self._directory) as parent:
                os.unlink(self._temporary, dir_fd=parent)
            fd = self._open(self._temporary, _CREATE)
        try:
            self._made = _inode(os.fstat(fd))
            self._allocate_early(fd)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _allocate_early(self, fd: int) -> None:
        """In one extent, where that pays."""
        if self.direct and not self.put.flags & SPARSE:
            _allocate(fd, self.put.size)

    def _copy_to(self, fd: int) -> None:
        """Copy from the existing file what is right there, and what cannot be had elsewhere. All has been compared, and
        what was to be written is written."""
        if self._comparison is None:
            raise OSError(errno.EACCES, "not all of it can be had, and what is there cannot be read")
        size, lost = self.put.block_bytes, [first // self.put.block_bytes for first, _, _ in self._lost]
        source = self._open(self._name, _READ)
        try:
            for first, end in self._comparison.worth_keeping(lost):
                self._copy_run(source, fd, first * size, end * size)
            self._demand_same(os.fstat(source))
        finally:
            os.close(source)

    def _copy_run(self, source: int, fd: int, position: int, end: int) -> None:
        """Copy some of the existing file's blocks; its holes stay holes."""
        assert self._there is not None
        first, end = position, min(end, self._there.st_size, self.put.size)
        while (position := seek_data(source, position, end)) < end:
            position = max(first, position - position % ALIGN_BYTES)
            data = read_at(source, thread_buffer(), position, min(SLAB_BYTES, end - position))
            if not data:
                raise OSError(errno.ESTALE, "another process cut the file during the restore")
            position += len(data)
            if self.direct:  # all of its runs begin aligned, and so at the beginning of the buffer
                self._write_buffer(fd, len(data), position - len(data))
            else:
                self._pwrite(fd, data, position - len(data))

    def _take(self, fd: int, blocks: Sequence[tuple[int, Buffer | Lost]], tally: Tally) -> None:
        good = [(index, data) for index, data in blocks if not isinstance(data, Lost)]
        self._write_blocks(fd, good)
        written = sum(len(data) for _, data in good)
        tally.restored_bytes += written
        with self._lock:
            self.written_bytes += written
        self._note_lost(blocks)

    def _note_lost(self, blocks: Sequence[tuple[int, Buffer | Lost]]) -> None:
        lost = [
            (index * self.put.block_bytes, block_length(self.put, index), data.reason)
            for index, data in blocks
            if isinstance(data, Lost)
        ]
        with self._lock:
            self._lost.extend(lost)

    def suspect(self, tally: Tally) -> None:
        """Plan: damage is known somewhere in this file, and it is too large to look where."""
        if not self._is_suspect:
            self._is_suspect = True
            tally.note("damaged", self.put.path, "the store knows of damage in it; where was not looked for")
            tally.fates.append((self.put.file, Fate.INCOMPLETE))

    def _write_blocks(self, fd: int, blocks: Sequence[tuple[int, Buffer]]) -> None:
        """Write blocks; past the page cache neighbours go in one transfer."""
        if not self.direct:
            for index, data in blocks:
                self._pwrite(fd, data, index * self.put.block_bytes)
            return
        view, start, used = thread_buffer().view, 0, 0
        for index, data in blocks:
            position = index * self.put.block_bytes
            if used and (position != start + used or used + len(data) > SLAB_BYTES):
                self._write_buffer(fd, used, start)
                used = 0
            start = start if used else position
            view[used : used + len(data)] = data
            used += len(data)
        self._write_buffer(fd, used, start)

    def _write_buffer(self, fd: int, used: int, position: int) -> None:
        """Write this thread's buffer; what goes beyond the file's end is cut off in `_set_length`."""
        view, end = thread_buffer().view, align_up(used) if self.direct else used
        view[used:end] = bytes(end - used)
        self._pwrite(fd, view[:end], position)

    def _pwrite(self, fd: int, data: Buffer, position: int) -> None:
        view, done = memoryview(data), 0
        while done < len(view):
            try:
                done += self._site.target.disk.pwrite(fd, view[done:], position + done)
            except OSError as error:
                if error.errno != errno.EINVAL or not self.direct:
                    raise
                self.direct = False  # refused at the transfer rather than at the flag
                set_direct(fd, False)

    def _note_failure(self, error: BaseException) -> None:
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            where = str(self._site.target.path)
            hint = "free space there and run the same command again; it goes on where it stopped"
            raise DiskFullError(f"no room left to restore into: {reason_of(error)}", where=where, hint=hint) from error
        self._failed = self._failed or reason_of(error)

    # helpers: finishing

    def _finish(self, tally: Tally) -> None:
        """Conclude the file unless that was done or something failed; then say so."""
        try:
            if not self._failed and not self._concluded:
                self._conclude(tally)
        except UNUSABLE as error:
            self._note_failure(error)
        if self._failed:
            self._remove_temporary()
            tally.fail(FILES, self.put.path, self._failed, self.put.file)

    def _conclude(self, tally: Tally) -> None:
        if self.way is Way.KEPT and self._is_right():
            tally.unchanged[FILES] += 1
        elif self._site.target.dry:
            if self._there is not None and self.way not in (Way.KEPT, Way.PATCHED):
                tally.fates.append((self.put.file, Fate.REPLACED))
            if self._site.since_ns and self._there is not None and self._would_lose():
                note_content(self.put, self._there, self._site.since_ns, tally)
            if not self._is_suspect:
                self._count(tally)
        elif self.way is Way.KEPT:
            assert self._comparison is not None
            self._demand_same(self._site.target.status(self.put.path))
            self._dress(self._comparison.fd, tally)
            self._count(tally)
        else:
            with self._writing(only=True) as fd:
                if self.way is Way.COPIED or (self.way is Way.NEW and self._lost and self._there is not None):
                    self._copy_to(fd)
                self._set_length(fd)
                self._dress(fd, tally)
                with self._lock:
                    self._close()  # nobody writes any more; what closing complains about must come before the name
            if self.way not in (Way.PATCHED, Way.AT_ONCE):
                with self._site.target.directory(self._directory) as parent:
                    self._site.target.settle(self._temporary, self.put.path, parent)
            self._count(tally)
        self._concluded = True

    def _would_lose(self) -> bool:
        """Whether the existing file has another content, not other metadata or names alone."""
        assert self._there is not None
        is_same = self._there.st_size == self.put.size == self.right_bytes
        return self.way is not Way.RESUMED and not is_same

    def _is_right(self) -> bool:
        """Whether the existing file needs nothing at all; otherwise decides how it gets what it needs."""
        assert self._there is not None
        source = self._source()
        if source is None:
            return False
        other_size = self._there.st_size != self.put.size
        if not other_size and not self._separate and not attributes_differ(self.put, self._there, source.fd):
            return True
        if other_size or self._separate or self._there.st_nlink > 1:
            self._choose_way(whole=False)
        return False

    def _set_length(self, fd: int) -> None:
        written_exactly = self.way in (Way.NEW, Way.AT_ONCE) and self.put.size < DIRECT_FROM_BYTES
        if not written_exactly or self._zeros or self._lost:
            os.ftruncate(fd, self.put.size)
        if self._zeros and not self.put.flags & SPARSE and self.put.size:
            _allocate(fd, self.put.size)

    def _dress(self, ref: int, tally: Tally) -> None:
        """Give the file its metadata; one that is incomplete gets no time that makes it look finished."""
        now_ns = self._site.now_ns
        for text in set_attributes(self.put, ref, atime_ns=now_ns, mtime_ns=now_ns if self._lost else None):
            tally.note("metadata", self.put.path, text)

    def _count(self, tally: Tally) -> None:
        lost = _joined([(first, size, f"{reason} ({self._left(first)})") for first, size, reason in self._lost])
        lost_bytes = sum(size for _, size, _ in lost)
        tally.restored_bytes += self.put.size - self.right_bytes - self.written_bytes - lost_bytes
        tally.damaged_bytes += lost_bytes
        if not lost:
            tally.restored[FILES] += 1
            return
        for first, size, reason in lost:
            tally.note("damaged", self.put.path, reason, first, size)
        tally.fates.append((self.put.file, Fate.INCOMPLETE))

    def _left(self, first: int) -> str:
        """What stands where a lost block belongs."""
        is_unread = self._comparison is not None and first // self.put.block_bytes in self._comparison.unread
        is_new = self._there is None or self.way is Way.RESUMED
        return "left as zeros" if is_new or (is_unread and self.way is not Way.PATCHED) else "left as it was"

    def _remove_temporary(self) -> None:
        if self._made is None or self.way is Way.PATCHED:
            return
        try:
            with self._site.target.directory(self._directory) as parent:
                os.unlink(self._temporary, dir_fd=parent)
        except OSError:
            pass  # the failure that is reported is the one that matters; the next restore finds what is left


def _is_ours(status: os.stat_result) -> bool:
    """Whether it is as we make files: nobody else has a way to what is in it."""
    return stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and is_private(status)


def _inode(status: os.stat_result) -> tuple[int, int, int]:
    """Which inode it is, and whose: the number of one that went may come again, as somebody else's."""
    return status.st_dev, status.st_ino, status.st_uid


def _identity(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _allocate(fd: int, size: int) -> None:
    """Give a file all its blocks now. Raises OSError, not where the file system cannot do it."""
    try:
        os.posix_fallocate(fd, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENODEV):
            raise


def _joined(lost: list[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
    """Ranges in order, neighbours with one reason as one."""
    joined: list[tuple[int, int, str]] = []
    for first, size, reason in sorted(lost):
        if joined and joined[-1][0] + joined[-1][1] == first and joined[-1][2] == reason:
            joined[-1] = (joined[-1][0], joined[-1][1] + size, reason)
        else:
            joined.append((first, size, reason))
    return joined
