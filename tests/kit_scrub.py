"""Kit for scrubbing and mending a store: a store of several small segments, and a primary that answers what a real one
would be asked."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import apsw
import pytest

from kit_store import (
    CLIENT,
    DATASET,
    Primary,
    block,
    block_frame,
    contents,
    flip,
    kill,
    open_archive,
    put_files,
    segment,
)
from replicad.db.findings import Findings
from replicad.model.block import block_id, checksum
from replicad.model.divergence import Divergence, Part, State
from replicad.model.verdict import Sight
from replicad.store import store as store_module
from replicad.store.format import HEADER_BYTES, Frame, FrameType, parse_frame
from replicad.store.segments import segment_numbers
from replicad.system.clock import Clock
from replicad.system.disk import Disk
from replicad.work.archive import catalog_path
from replicad.work.mend_store import StoreMender
from replicad.work.rebuild import rebuild_catalog
from replicad.work.scrub_replica import ReplicaSurface
from replicad.work.surface import Verified

SMALL = 16_000
"""Bytes after which a segment of these tests is full."""
ALL = 1 << 40
TABLES = ("snapshot", "block", "directory", "entry", "file_block", "damage", "frame_copy")


class SteppingClock(Clock):
    """Wall time that goes on by a second at each question, and a clock of sleep alone, which is over at once."""

    def __init__(self) -> None:
        self.ns = 1_900_000_000_000_000_000
        self.slept: list[float] = []

    def now_ns(self) -> int:
        self.ns += 1_000_000_000
        return self.ns

    def monotonic_s(self) -> float:
        return sum(self.slept)

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


class Rig:
    """One store with its surface and its mender, and the blocks that its primary has."""

    def __init__(self, directory: Path, disk: Disk | None = None, **options: object) -> None:
        self.directory, self.disk, self.options = directory, disk or Disk(), options
        self.expected: dict[int, dict[bytes, bytes]] = {}
        self.has: dict[bytes, bytes] = {}
        """The primary's blocks by id."""
        self.clock = SteppingClock()
        self.scrub_every_s = 7 * 86400.0
        self.executor = ThreadPoolExecutor(1)
        self.open()

    def open(self) -> None:
        """Open the store, as at a daemon's start."""
        self.archive = open_archive(self.directory, self.disk)
        self.findings = Findings(self.directory / "findings.db")
        parts = (CLIENT, DATASET, self.directory, self.archive, self.findings, self.executor, self.clock, self.disk)
        self.surface = ReplicaSurface(*parts, lambda: self.scrub_every_s)
        self.mender = StoreMender(*parts, **self.options)  # type: ignore[arg-type]

    def close(self) -> None:
        """Close the store."""
        self.archive.close()
        self.findings.close()

    def kill(self) -> None:
        """What kill -9 does."""
        kill(self.archive)
        self.findings.close()

    def reopen(self) -> None:
        """Restart."""
        self.close()
        self.open()

    def put(self, number: int, files: dict[bytes, bytes]) -> None:
        """One snapshot."""
        put_files(Primary(self.archive), number, files)
        before = self.expected[max(self.expected)] if self.expected else {}
        self.expected[number] = {**before, **files}
        self.has.update((block_id(data), data) for data in files.values())

    def fill(self) -> None:
        """Four snapshots over several segments, with blocks that only history has."""
        for number in range(1, 5):
            files = {b"same": block("the same in all ", 900), b"changes": block(f"version {number} ", 1500)}
            files |= {b"file-%d-%d" % (number, i): block(f"file {number} {i} ", 500 + 700 * i) for i in range(6)}
            self.put(number, files)

    def flip(self, name: bytes) -> None:
        """Have a bit of a block's stored payload rot."""
        (place,) = self.archive.inventory.places([name]).values()
        flip(segment(self.directory, place.segment), place.offset + HEADER_BYTES + 3)

    # what a scrub does

    def scrub(self) -> int:
        """Verify everything once and the structure; how many findings."""

        async def run() -> int:
            units = await self.surface.verify(ALL, 0)
            structure = await self.surface.structure()
            assert not units.doubts
            return units.found + structure.found

        return asyncio.run(run())

    def verify(self, budget: int = ALL, since_ns: int = 0) -> Verified:
        """One call."""
        return asyncio.run(self.surface.verify(budget, since_ns))

    def open_ones(self) -> list[Divergence]:
        """Open divergences."""
        return self.findings.listed()

    def settle(self, *, ordered: bool = False) -> list[Divergence]:
        """What a tending session does with all cases, once; the cases afterwards."""
        return asyncio.run(self._settle(ordered))

    async def _settle(self, ordered: bool) -> list[Divergence]:
        settled = []
        for found in await self.mender.open_cases():
            wants = await self.mender.wants(found)
            sights = [Sight.MATCHES if want.id in self.has else Sight.ABSENT for want in wants]
            seen = await self.mender.seen(found)
            found = await self.mender.testimony(found, checksum(seen) if seen else b"", sights)
            frames = [block_frame(self.has[want.id]) for want in wants if want.id in self.has]
            settled.append(await self.mender.mend(found, frames, ordered=ordered))
        return settled

    def look_again(self) -> list[Divergence]:
        """Look at the places of all open findings again; those that were settled."""
        return asyncio.run(self.mender.verify_divergences(asyncio.Lock()))

    def settle_all(self) -> None:
        """Until nothing is open any more."""
        for _ in range(4):
            self.settle()
            self.look_again()
            if not self.open_ones():
                return
        raise AssertionError([(one.what, one.events) for one in self.open_ones()])

    # what must be true

    def assert_clean(self, tmp: Path) -> None:
        """Nothing is found, a rebuild gives the same catalog, and every snapshot comes back."""
        assert self.scrub() == 0, [(one.key, one.what) for one in self.open_ones()]
        fresh = tmp / f"rebuilt-{random.random()}.db"
        self.archive.close()
        rebuilt = rebuild_catalog(self.directory, into=fresh, knowing=catalog_path(self.directory))
        assert not rebuilt.damage and not rebuilt.torn
        ours, theirs = dump(catalog_path(self.directory)), dump(fresh)
        for table in TABLES:
            assert ours[table] == theirs[table], table
        for number, files in self.expected.items():
            assert contents(self.directory, number) == files
        self.findings.close()
        self.open()

    def bytes_of(self) -> dict[int, bytes]:
        """All segments."""
        return {number: segment(self.directory, number).read_bytes() for number in segment_numbers(self.directory)}

    def frames(self, kind: FrameType, number: int) -> list[Frame]:
        """Frames of one kind in a segment that is sound."""
        data, found, at = segment(self.directory, number).read_bytes(), [], 0
        while at < len(data):
            frame = parse_frame(data, at)
            found.append(frame)
            at = frame.end
        return [frame for frame in found if frame.type == kind]


@contextmanager
def filled_rig(directory: Path) -> Iterator[Rig]:
    """A store of small segments with four snapshots in it, closed at the end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_module, "SEGMENT_BYTES", SMALL)
        made = Rig(directory / "ams1" / "www")
        made.fill()
        yield made
        made.close()
        made.executor.shutdown()


def dump(catalog: Path) -> dict[str, Sequence[object]]:
    """What a catalog says."""
    connection = apsw.Connection(str(catalog), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        return {table: sorted(connection.execute(f"SELECT * FROM {table}"), key=repr) for table in TABLES}
    finally:
        connection.close()


def unsettled_changes(rig: Rig, before: dict[int, bytes]) -> bool:
    """Whether bytes changed since that anybody still needs: outside of what was mended by storing it elsewhere."""
    now = rig.bytes_of()
    if now.keys() != before.keys():
        return True
    for number, data in now.items():
        ranges = rig.archive.inventory.mended(number)
        masked = [bytearray(data), bytearray(before[number])]
        for one in masked:
            for offset, length in ranges:
                one[offset : offset + length] = bytes(len(one[offset : offset + length]))
        if masked[0] != masked[1]:
            return True
    return False


def write_at(path: Path, offset: int, data: bytes) -> None:
    """Rot: bytes of a file."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def repaired(rig: Rig) -> list[Divergence]:
    """Divergences that were settled."""
    return [one for one in rig.findings.listed(state=None) if one.state is not State.OPEN]


__all__ = ["ALL", "SMALL", "Part", "Rig", "dump", "repaired", "unsettled_changes", "write_at"]
