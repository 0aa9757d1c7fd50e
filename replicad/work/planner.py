"""Planner: decides, entry by entry, what a restore has to do, does what needs no blocks, and packs what does.

Everything but file content is made at once, in the order of the record; files are compared with what is there, and
the blocks that are missing go into `Parcel`s, which are fetched and written while the planner goes on. `closing`
does what must come last: hard links, extra entries, then directories' metadata, children before parents.

**Never** holds more than one parcel, one file and the way down to one directory; the rest is `Remembered`. What the
system refuses for one entry is counted and named, and the restore goes on.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from replicad.model.block import block_count
from replicad.model.entry import DAMAGED, FUZZY, Kind, Map, Op, Put, show_path
from replicad.model.errors import PeerError
from replicad.model.glob import EVERYTHING, Globs
from replicad.model.order import NO_ORDER, Order
from replicad.work.account import DIRECTORIES, FILES, Tally, label_of
from replicad.work.attributes import UNUSABLE, Ref, attributes_differ, kind_of, opened_path, reason_of, set_attributes
from replicad.work.comparing import Piece, Wanted
from replicad.work.conflicts import files_below, note_other
from replicad.work.filling import Filling, Site
from replicad.work.parcel import Parcel
from replicad.work.reader import split_ids
from replicad.work.remembered import Remembered
from replicad.work.rights import Rights
from replicad.work.target import Target, is_temporary, split

PARCEL_BYTES = 2 * 1024 * 1024
"""Plain bytes fetched and written in one go: a thread hop costs nothing against it, and many are under way at once."""
PARCEL_BLOCKS = 512
"""Blocks in one parcel at most, for trees of tiny files; far below the limit of one Fetch."""
STEP_BYTES = 8 * 1024 * 1024
"""Compared without a pause at most, so that progress shows and an interruption is heeded."""
STEP_ENTRY_BYTES = 16 * 1024
"""What one entry counts in that."""
MAX_FILE_NUMBER = 2**63 - 1
PROOF_BYTES = 4 * 1024**3
"""A plan reads files in which damage is known, up to this: it is to say which bytes, and not to take a day for it."""
_REPLACED = "another process replaced it during the restore"


@dataclass(frozen=True, slots=True)
class Rules:
    """What the operator wants."""

    delete_extra: bool = False
    dry_run: bool = False
    plan: bool = False
    """A dry run that also says what is in the way, and looks at what is known to be damaged."""
    aside: Path | None = None
    """Where what is replaced or removed is kept."""
    order: Order = NO_ORDER
    """The record is gone through once for each of its classes, so directories come again."""
    wanted: Globs = EVERYTHING
    """Which paths are restored: all, or only some, so that what else is in the target says nothing."""
    spare_extra: str = ""
    """Why what the snapshot does not have stays, even with `delete_extra`; "" when nothing speaks for that."""

    @property
    def removes_extra(self) -> bool:
        """Whether what the snapshot does not have goes."""
        return self.delete_extra and not self.spare_extra


def _is_node(put: Put, status: os.stat_result) -> bool:
    """Whether an entry without content is of the kind, and of the device, that it should be."""
    is_device = put.kind in (Kind.CHARACTER_DEVICE, Kind.BLOCK_DEVICE)
    return kind_of(status) is put.kind and (not is_device or status.st_rdev == put.device)


def make_room(path: bytes, status: os.stat_result, target: Target, rules: Rules, tally: Tally) -> None:
    """Where a directory is and something else belongs; all else is replaced. Raises Obstacle, OSError."""
    if stat.S_ISDIR(status.st_mode):
        if rules.plan and rules.removes_extra:
            tally.replaced.extend(files_below(target, path))
        target.clear(path, status, whole=rules.removes_extra)


class Planner:
    """One restore's decisions. For one thread at a time. A None among the parcels is a pause for breath."""

    def __init__(self, site: Site, remembered: Remembered, rules: Rules) -> None:
        self._site, self._remembered, self._rules = site, remembered, rules
        self._target = site.target
        self._parcel = Parcel()
        self._filling: Filling | None = None
        self._position = 0
        """First block of the open file that no operation has spoken of yet."""
        self._way_down = [b""]
        """The directory that the record is in, and those above it."""
        self._effort = 0
        self._rights = Rights() if rules.plan else None
        self._unproven_bytes = PROOF_BYTES
        self.place = 0
        """Which class of the order the record is gone through for."""

    def feed(self, ops: Sequence[Op], tally: Tally) -> Iterator[Parcel | None]:
        """Take the next operations of the record. Raises PeerError for what no record can hold, DiskFullError."""
        for op in ops:
            if isinstance(op, Map):
                if self._filling is not None:
                    yield from self._blocks(self._filling, op, tally)
                continue
            yield from self._end_file(tally)
            if not isinstance(op, Put):
                raise PeerError("the record of a snapshot holds a Drop")
            if op.kind is Kind.FILE:
                self._filling, self._position = self._begin_file(op, tally), 0
                if self._filling is not None:
                    yield from self._blocks(self._filling, op, tally)
            else:
                self._make(op, tally)
            if self._effort >= STEP_BYTES:
                self._effort = 0
                yield None

    def end(self, tally: Tally) -> Iterator[Parcel | None]:
        """The record has ended; another one may begin."""
        yield from self._end_file(tally)
        self._way_down = [b""]
        if self._parcel.parts:
            parcel, self._parcel = self._parcel, Parcel()
            yield parcel

    def close(self) -> None:
        """Close what is open when the restore is cut off."""
        if self._filling is not None:
            self._filling.close_source()

    # entries without content

    def _make(self, put: Put, tally: Tally) -> None:
        try:
            if not self._enter(put, tally):
                return
            if put.kind is Kind.DIRECTORY:
                self._make_directory(put, tally)
            else:
                self._make_node(put, tally)
        except UNUSABLE as error:
            tally.fail(label_of(put.kind), put.path, reason_of(error))

    def _enter(self, put: Put, tally: Tally) -> bool:
        """Keep track of where in the tree the record is; whether this entry is to be restored at all."""
        self._effort += STEP_ENTRY_BYTES
        if self._rights:
            tally.unsettable.update(self._rights.lacking(put))
        directory, name = split(put.path)
        if put.kind is not Kind.DIRECTORY and is_temporary(name):
            tally.note("notice", put.path, "left out: such names are unfinished files of a restore")
            return False
        while self._way_down and self._way_down[-1] != directory:
            self._way_down.pop()
        if not self._way_down:
            self._make_missing(directory, tally)
        if put.kind is Kind.DIRECTORY:
            if put.path:
                self._way_down.append(put.path)
            if self._rules.order and self._remembered.is_listed(put.path):
                return False  # an earlier class has made it
        if put.path and not self._target.is_fresh(directory):
            self._remembered.add_belonging(put.path)
        return True

    def _make_missing(self, directory: bytes, tally: Tally) -> None:
        """The record does not tell of this directory (it could not be read): make what is missing of it."""
        self._way_down = [b""]
        names = directory.split(b"/") if directory else []
        for depth in range(1, len(names) + 1):
            path = b"/".join(names[:depth])
            self._way_down.append(path)
            self._remembered.add_belonging(path)
            if self._target.status(path) is None:
                self._target.make_directory(path)
                tally.note("notice", path, "the snapshot does not tell of this directory; only its owner may use it")

    def _status(self, path: bytes) -> os.stat_result | None:
        return None if self._target.is_fresh(split(path)[0]) else self._target.status(path)

    def _make_directory(self, put: Put, tally: Tally) -> None:
        status = self._target.status(b"") if not put.path else self._status(put.path)
        fresh = self._target.is_fresh(b"") if not put.path else status is None or not stat.S_ISDIR(status.st_mode)
        if fresh and put.path:
            if status is not None:
                self._note_other(put, status, tally)
                self._target.clear(put.path, status, whole=False)
            self._target.make_directory(put.path)
        if not fresh and not self._rules.wanted(put.path):
            return  # only on the way to what is wanted: it stays as it is
        self._remembered.add_directory(put, existed=not fresh, place=self.place)
        if fresh or status is None or self._directory_differs(put, status):
            tally.restored[DIRECTORIES] += 1
        else:
            tally.unchanged[DIRECTORIES] += 1

    def _directory_differs(self, put: Put, status: os.stat_result) -> bool:
        with self._target.directory(put.path) as fd:
            return attributes_differ(put, status, fd)

    def _make_node(self, put: Put, tally: Tally) -> None:
        label = label_of(put.kind)
        status = self._status(put.path)
        if status is not None and self._is_same_node(put, status):
            changed = self._dress_node(put, status, tally)
            (tally.restored if changed else tally.unchanged)[label] += 1
            return
        if status is not None:
            self._note_other(put, status, tally)
            make_room(put.path, status, self._target, self._rules, tally)
        if not self._target.dry:
            with (
                self._target.new_node(put) as (parent, temporary),
                opened_path(temporary, parent) as ref,
            ):
                self._dress_new(put, ref, tally)
        tally.restored[label] += 1

    def _note_other(self, put: Put, status: os.stat_result, tally: Tally) -> None:
        if self._rules.plan:
            note_other(put, status, tally)

    def _is_same_node(self, put: Put, status: os.stat_result) -> bool:
        """Whether an existing entry is the right one."""
        if put.kind is Kind.SYMLINK and _is_node(put, status):
            directory, name = split(put.path)
            with self._target.directory(directory) as parent:
                return os.readlink(name, dir_fd=parent) == put.target
        return _is_node(put, status)

    def _dress_node(self, put: Put, status: os.stat_result, tally: Tally) -> bool:
        """Correct the metadata of an existing entry; whether there was anything to correct."""
        directory, name = split(put.path)
        with self._target.directory(directory) as parent, opened_path(name, parent) as ref:
            found = os.stat(ref)
            is_same = (found.st_dev, found.st_ino) == (status.st_dev, status.st_ino)
            if not (is_same and _is_node(put, found)):
                raise OSError(errno.ESTALE, _REPLACED)
            if not attributes_differ(put, found, ref):
                return False
            if not self._target.dry:
                self._dress(put, ref, tally)
        return True

    def _dress_new(self, put: Put, ref: Ref, tally: Tally) -> None:
        """Give the entry behind `ref`, just made under its temporary name, its metadata: if that is what is there."""
        found = os.stat(ref)
        if found.st_nlink > 1 or not _is_node(put, found):
            raise OSError(errno.ESTALE, _REPLACED)
        if found.st_uid != os.geteuid():  # a server may give what is made there to somebody else
            tally.note("metadata", put.path, f"it belongs to user {found.st_uid}")
            return
        self._dress(put, ref, tally)

    def _dress(self, put: Put, ref: Ref, tally: Tally) -> None:
        for text in set_attributes(put, ref, atime_ns=self._site.now_ns):
            tally.note("metadata", put.path, text)

    # files

    def _begin_file(self, put: Put, tally: Tally) -> Filling | None:
        """The file to compare and fill; None when there is nothing to do for it now."""
        try:
            if not self._enter(put, tally):
                return None
            if put.flags & FUZZY:
                tally.note("notice", put.path, "kept changing while it was copied: its parts may differ in age")
            if put.file > MAX_FILE_NUMBER:
                raise ValueError(f"its file number {put.file} is out of range")
            if not self._remembered.is_first(put.file, put.path):
                self._remembered.add_link(put)
                return None
            return self._open_filling(put, tally)
        except UNUSABLE as error:
            tally.fail(FILES, put.path, reason_of(error), put.file if put.file <= MAX_FILE_NUMBER else 0)
            return None

    def _open_filling(self, put: Put, tally: Tally) -> Filling:
        fresh = self._target.is_fresh(split(put.path)[0])
        there, separate = None if fresh else self._target.status(put.path), False
        if there is not None and not stat.S_ISREG(there.st_mode):
            self._note_other(put, there, tally)
            make_room(put.path, there, self._target, self._rules, tally)
            there = None  # replaced when the file takes its name
        if there is not None and there.st_nlink > 1:
            separate = not self._remembered.claim(there.st_dev, there.st_ino, put.file)
        filling = Filling(put, self._site, there, separate=separate)
        if there is None and not fresh:
            filling.find_leftover()
        return filling

    def _blocks(self, filling: Filling, op: Put | Map, tally: Tally) -> Iterator[Parcel | None]:
        """What an operation says of the open file's blocks."""
        if op.file != filling.put.file:
            raise PeerError("the record of a snapshot tells of one file's blocks in the middle of another's")
        if not op.blocks:
            return
        end = op.blocks[-1] + 1
        if op.blocks[0] < self._position or end > block_count(filling.put.size, filling.put.block_bytes):
            raise PeerError(f"the record has blocks of {show_path(filling.put.path)} out of order or beyond its end")
        listed = list(map(Wanted, op.blocks, split_ids(op.ids)))
        piece, self._position = Piece(self._position, end, listed), end
        yield from self._compare(filling, piece, tally)

    def _end_file(self, tally: Tally) -> Iterator[Parcel | None]:
        filling = self._filling
        if filling is None:
            return
        end = block_count(filling.put.size, filling.put.block_bytes)
        if self._position < end:
            yield from self._compare(filling, Piece(self._position, end, []), tally)
        if self._filling is not None:
            self._filling = None
            filling.seal(tally)

    def _compare(self, filling: Filling, piece: Piece, tally: Tally) -> Iterator[Parcel | None]:
        try:
            for missing in filling.compare(piece, tally):
                self._effort += PARCEL_BYTES if len(missing) > 1 else STEP_ENTRY_BYTES
                yield from self._pack(filling, missing, tally)
        except UNUSABLE as error:
            self._filling = None
            filling.fail(error, tally)

    def _pack(self, filling: Filling, missing: Sequence[Wanted], tally: Tally) -> Iterator[Parcel | None]:
        if self._target.dry and not self._is_to_be_proven(filling, missing, tally):
            tally.blocks += len(missing)
            return
        for wanted in missing:
            self._parcel.add(filling, wanted)
            if self._parcel.size >= PARCEL_BYTES or self._parcel.blocks >= PARCEL_BLOCKS:
                parcel, self._parcel = self._parcel, Parcel()
                yield parcel

    def _is_to_be_proven(self, filling: Filling, missing: Sequence[Wanted], tally: Tally) -> bool:
        """Plan: whether these blocks are read all the same, because damage is known in their file."""
        if not (self._rules.plan and filling.put.flags & DAMAGED and missing):
            return False
        self._unproven_bytes -= len(missing) * filling.put.block_bytes
        if self._unproven_bytes < 0:
            filling.suspect(tally)
        return self._unproven_bytes >= 0
