"""Hand: a process beside a restore that proves whole new files and writes them, with the code that the restore has.

What it costs to write a small file is many short system calls, for which one interpreter has no room beside opening
SSH's packets. What is declared here may be asked for; the rest runs in the child alone.

**Never** decides what is restored: it gets files that nothing is there of, in directories that the restore has made and
that nobody else may enter yet.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from replicad.model.block import block_count
from replicad.model.entry import Put
from replicad.model.errors import ReplicadError
from replicad.store.format import split_frames_untrusted
from replicad.system.disk import Disk
from replicad.system.tasks import Task, Tasks, serve
from replicad.work.account import FILES, Fate, Finding, Tally
from replicad.work.comparing import Piece, Wanted
from replicad.work.filling import Filling, Site
from replicad.work.parcel import Parcel, write_parts
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


OPEN: Task[Place, None] = Task("open", Place, None)
LAY = Task("lay", Lot, Laid)


class Hand:
    """The child's side: one target."""

    def __init__(self) -> None:
        self._site: Site | None = None

    @property
    def tasks(self) -> Tasks:
        """All that it can be asked to do."""
        return {OPEN: self.open, LAY: self.lay}

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
        if self._site is None:
            raise ReplicadError("the process that wrote for this restore was started anew meanwhile")
        tally, parcel = Tally(), Parcel()
        for put in lot.puts:
            self._site.target.trust_fresh(split(put.path)[0])
            filling = Filling(put, self._site)
            piece = Piece(0, block_count(put.size, put.block_bytes), list(map(Wanted, put.blocks, split_ids(put.ids))))
            for missing in filling.compare(piece, tally):
                for wanted in missing:
                    parcel.add(filling, wanted)
            filling.seal(tally)
        write_parts(parcel.parts, parcel.lengths, split_frames_untrusted(frames), tally)
        return Laid(
            tally.restored[FILES],
            tally.failed[FILES],
            tally.restored_bytes,
            tally.damaged_bytes,
            tally.findings,
            tally.fates,
        )


if __name__ == "__main__":
    serve(Hand().tasks)
