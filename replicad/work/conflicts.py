"""Conflicts: what stands in the target where a restore would put something else, and what of it would be lost.

For a plan only. `Unsaved` holds the present content of files that would be replaced against a snapshot's record: what
is in no snapshot comes back from nowhere. **Never** changes anything; a file that cannot be read counts as not saved.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from replicad.model.block import block_count
from replicad.model.entry import Kind, Map, Op, Put, show_path
from replicad.model.when import show_time
from replicad.work.account import Tally
from replicad.work.attributes import kind_of
from replicad.work.comparing import Comparison, Piece, Wanted
from replicad.work.reader import split_ids
from replicad.work.remembered import Remembered
from replicad.work.target import Target, split

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_LAST_NS = 253_402_300_799 * 10**9
"""The last second that a calendar of four digits has; a file's time may be anything."""
_WORDS = {
    Kind.FILE: "a file",
    Kind.DIRECTORY: "a directory",
    Kind.SYMLINK: "a symlink",
    Kind.FIFO: "a fifo",
    Kind.SOCKET: "a socket",
    Kind.CHARACTER_DEVICE: "a device",
    Kind.BLOCK_DEVICE: "a device",
}


def note_other(put: Put, status: os.stat_result, tally: Tally) -> None:
    """Something that is not a file with other content stands where `put` belongs."""
    belongs = _WORDS[put.kind]
    is_alike = kind_of(status) is put.kind
    _note(put.path, status, " that leads elsewhere" if is_alike else f", where the snapshot has {belongs}", tally)


def note_name(path: bytes, status: os.stat_result, first: bytes, tally: Tally) -> None:
    """Something that is not the file at `first` stands where that belongs under one more name."""
    _note(path, status, f", where the snapshot has another name of {show_path(first)}", tally)


def _note(path: bytes, status: os.stat_result, what: str, tally: Tally) -> None:
    kind = kind_of(status)
    here = _WORDS.get(kind, "something unknown") if kind else "something unknown"
    tally.note("conflict", path, here + what)
    if kind is Kind.FILE:
        tally.replaced.append(path)


def note_content(put: Put, status: os.stat_result, since_ns: int, tally: Tally) -> None:
    """A file with other content stands where `put` belongs; `since_ns` is when the snapshot was made."""
    when = f"written {show_time(max(0, min(status.st_mtime_ns, _LAST_NS)))}"
    age = "after the snapshot" if status.st_mtime_ns > since_ns else "before the snapshot"
    tally.note("conflict", put.path, f"its content differs ({status.st_size} bytes, {when}, {age})")
    tally.replaced.append(put.path)


def files_below(target: Target, path: bytes) -> Iterator[bytes]:
    """The regular files at a path and below it, which would go with it; however deep they lie. Raises OSError."""
    todo = [path]
    while todo:
        one = todo.pop()
        status = target.status(one)
        kind = kind_of(status) if status else None
        if kind is Kind.FILE:
            yield one
        elif kind is Kind.DIRECTORY:
            todo += (one + b"/" + name for name in target.names(one))


class Unsaved:
    """Goes through the record of one snapshot and settles every replaced file whose content is in it."""

    def __init__(self, target: Target, remembered: Remembered) -> None:
        self._target, self._remembered = target, remembered
        self._put: Put | None = None
        self._comparison: Comparison | None = None
        self._position = 0

    def feed(self, ops: Sequence[Op]) -> None:
        """The next operations of the record. Raises nothing for what cannot be read here."""
        for op in ops:
            if isinstance(op, Put):
                self.end()
                if op.kind is Kind.FILE and self._remembered.is_replaced(op.path):
                    self._begin(op)
            if isinstance(op, Put | Map) and self._put is not None and op.blocks:
                self._compare(op.blocks[-1] + 1, list(map(Wanted, op.blocks, split_ids(op.ids))))

    def end(self) -> None:
        """The file that is being compared has no more blocks."""
        put = self._put
        if put is None:
            return
        end = block_count(put.size, put.block_bytes)
        if self._position < end:
            self._compare(end, [])
        if self._put is not None:
            self._remembered.settle_replaced(put.path)
        self._leave()

    def _begin(self, put: Put) -> None:
        directory, name = split(put.path)
        try:
            with self._target.directory(directory) as parent:
                fd = os.open(name, _READ, dir_fd=parent)
        except OSError:
            return  # not known to be saved, and told so
        self._comparison = Comparison(put, fd)
        if os.fstat(fd).st_size == put.size:
            self._put, self._position = put, 0
        else:
            self._leave()

    def _compare(self, end: int, listed: list[Wanted]) -> None:
        assert self._comparison is not None
        piece, self._position = Piece(self._position, end, listed), end
        try:
            for compared in self._comparison.slabs(piece):
                if compared.missing or compared.wrong_zeros:
                    return self._leave()
        except OSError:
            self._leave()

    def _leave(self) -> None:
        if self._comparison is not None:
            self._comparison.close()
        self._put = self._comparison = None
