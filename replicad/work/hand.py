"""Hand: a process beside a restore that proves blocks and writes them, with the code that the restore has.

One interpreter has no room for that beside opening SSH's packets: a small file costs many short system calls, a large
one the time to decompress and to hash it. What is declared here may be asked for; the rest runs in the child alone.

**Never** decides what is restored: it gets whole files that nothing is there of, in directories that the restore has
made and that nobody else may enter yet, and stretches of large files that the restore has begun and will finish.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from replicad.link.messages import Lost
from replicad.model.block import block_count
from replicad.model.entry import Put
from replicad.model.errors import ReplicadError
from replicad.store.format import split_frames
from replicad.system.disk import Disk
from replicad.system.tasks import Task, Tasks, serve
from replicad.work.account import FILES, Fate, Finding, Tally
from replicad.work.attributes import UNUSABLE, reason_of
from replicad.work.block_writer import BlockWriter, check_room
from replicad.work.comparing import Piece, Wanted, block_length
from replicad.work.filling import Filling, Lent, Site
from replicad.work.parcel import Parcel, fitting, prove, write_parts
from replicad.work.reader import split_ids
from replicad.work.target import Target, split


class Place(msgspec.Struct, frozen=True, array_like=True):
    """The target of a restore."""

    path: bytes
    device: int
    inode: int
    now_ns: int
    """Access time of what is restored."""


class Lot(msgspec.Struct, frozen=True, array_like=True):
    """Whole new files. The frames of their blocks are the bulk, each once, in the order in which they first come."""

    puts: list[Put]


class Laid(msgspec.Struct, frozen=True, array_like=True):
    """What came of a lot: the part of a tally that such files can move."""

    restored: int
    failed: int
    restored_bytes: int
    damaged_bytes: int
    findings: list[Finding]
    fates: list[tuple[int, Fate]]

    def add_to(self, tally: Tally) -> None:
        """Count it."""
        for counter, count in ((tally.restored, self.restored), (tally.failed, self.failed)):
            if count:
                counter[FILES] += count
        tally.restored_bytes += self.restored_bytes
        tally.damaged_bytes += self.damaged_bytes
        tally.findings += self.findings
        tally.fates += self.fates


class Stretch(msgspec.Struct, frozen=True, array_like=True):
    """Blocks of one large file under way. Their frames are the bulk, as those of a lot."""

    put: Put
    """Its record, without its blocks."""
    lent: Lent
    blocks: list[Wanted]


class Filled(msgspec.Struct, frozen=True, array_like=True):
    """What came of a stretch."""

    written_bytes: int
    lost: list[tuple[int, Lost]]
    """Blocks that could not be proven, by their indexes, and why."""
    failed: str = ""
    """Why the file could not be written; nothing else counts then."""


OPEN: Task[Place, None] = Task("open", Place, None)
LAY = Task("lay", Lot, Laid)
FILL = Task("fill", Stretch, Filled)


class Hand:
    """The child's side: one target."""

    def __init__(self) -> None:
        self._site: Site | None = None

    @property
    def tasks(self) -> Tasks:
        """All that it can be asked to do."""
        return {OPEN: self.open, LAY: self.lay, FILL: self.fill}

    def open(self, place: Place) -> None:
        """Open the target, which whoever asks has locked. Raises ReplicadError when it is another directory now."""
        try:
            fd = os.open(place.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            where = os.fsdecode(place.path)
            raise ReplicadError(f"cannot be opened by its path: {error.strerror}", where=where) from error
        try:
            status = os.fstat(fd)
            if (status.st_dev, status.st_ino) != (place.device, place.inode):
                raise ReplicadError("was replaced during the restore", where=os.fsdecode(place.path))
            self._site = Site(Target(Path(os.fsdecode(place.path)), Disk(), held=fd), place.now_ns)
        finally:
            os.close(fd)

    def lay(self, lot: Lot, frames: memoryview) -> Laid:
        """Write the files of a lot. Raises DiskFullError; ReplicadError when no target is open."""
        site = self._opened()
        tally, parcel = Tally(), Parcel()
        for put in lot.puts:
            site.target.trust_fresh(split(put.path)[0])
            filling = Filling(put, site)
            piece = Piece(0, block_count(put.size, put.block_bytes), list(map(Wanted, put.blocks, split_ids(put.ids))))
            for missing in filling.compare(piece, tally):
                for wanted in missing:
                    parcel.add(filling, wanted)
            filling.seal(tally)
        write_parts(parcel.parts, parcel.lengths, split_frames(frames), tally)
        return Laid(
            tally.restored[FILES],
            tally.failed[FILES],
            tally.restored_bytes,
            tally.damaged_bytes,
            tally.findings,
            tally.fates,
        )

    def fill(self, stretch: Stretch, frames: memoryview) -> Filled:
        """Write a stretch of a file. Raises DiskFullError; ReplicadError when no target is open."""
        target, put = self._opened().target, stretch.put
        lengths = {wanted.id: block_length(put, wanted.block) for wanted in stretch.blocks}
        blocks = fitting(put, stretch.blocks, prove(set(lengths), lengths, split_frames(frames)))
        good = [(index, data) for index, data in blocks if not isinstance(data, Lost)]
        try:
            fd = stretch.lent.open(target)
            try:
                BlockWriter(target.disk, put.block_bytes, direct=True).write(fd, good)
            finally:
                os.close(fd)
        except UNUSABLE as error:
            check_room(error, target)
            return Filled(0, [], reason_of(error))
        lost = [(index, data) for index, data in blocks if isinstance(data, Lost)]
        return Filled(sum(len(data) for _, data in good), lost)

    def _opened(self) -> Site:
        if self._site is None:
            raise ReplicadError("the process that wrote for this restore was started anew meanwhile")
        return self._site


if __name__ == "__main__":
    serve(Hand().tasks)
