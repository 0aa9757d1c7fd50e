"""Scout: what a process beside the daemon does for it: read small files, pack their blocks, walk ahead of a survey
and a part of it; or look at small files for a scrub.

One thread reads, cuts, hashes, compresses and frames, with nobody to share an interpreter with. What is declared here
(`Task` and its types) is what the daemon may ask for; the rest runs in the child alone.

**Owns** the dataset roots that passes have open here, each of them the very directory that the daemon looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path

import msgspec

from replicad.db.ledger import Ledger
from replicad.model.entry import Stamp, Xattrs, show_path
from replicad.model.errors import ReplicadError, SourceError
from replicad.source.ahead import Ahead
from replicad.source.exclude import Excluded
from replicad.source.read import REAL, Access, Block, Candidate, FileRead, Outgrown, read_small
from replicad.source.root import Root, RootIdentity, Trouble
from replicad.source.scan import Compared, Comparer
from replicad.source.verify import Examined, Name, Outcome, Stretch, examine
from replicad.store.format import FrameType, encode_frame
from replicad.system.clock import Clock
from replicad.system.compress import compress
from replicad.system.tasks import Bulky, Task, Tasks, serve

Read = FileRead | Outgrown | Trouble
BOOK_CACHE_KIB = 1024
"""SQLite's cache for the ledger: a survey reads each page of it once."""


class Place(msgspec.Struct, frozen=True, array_like=True):
    """A directory, the number by which it is named from now on, and what it must be."""

    number: int
    """Never given twice: a question to a process that died is no question to the one in its place."""
    path: bytes
    identity: RootIdentity
    device: int


class Wanted(msgspec.Struct, frozen=True, array_like=True):
    """Small files to be read."""

    root: int
    files: Sequence[Candidate]
    compression: int


class SmallRead(msgspec.Struct, frozen=True, array_like=True):
    """What came of it. The blocks of `files` carry no data; block frames as they are sent and stored, each block once,
    are the bulk of the answer."""

    files: list[Read]
    ids: bytes
    """Of the framed blocks, in order."""
    lengths: list[int]
    """Of their frames."""


class Next(msgspec.Struct, frozen=True, array_like=True):
    """Directories that a walk will come to."""

    root: int
    directories: Sequence[bytes]


class Book(msgspec.Struct, frozen=True, array_like=True):
    """What a survey compares a tree with."""

    ledger: str
    """Path of the ledger; what is committed there counts."""
    patterns: Sequence[str]
    one_filesystem: bool


class Share(msgspec.Struct, frozen=True, array_like=True):
    """Directories that are to be compared, none of them the root."""

    root: int
    directories: Sequence[bytes]
    book: Book


class Plain(msgspec.Struct, frozen=True, array_like=True):
    """A file of one block, as it is recorded."""

    path: bytes
    stamp: Stamp
    xattrs: Xattrs
    block_bytes: int
    id: bytes
    checksum: bytes


class Look(msgspec.Struct, frozen=True, array_like=True):
    """Files to be looked at."""

    root: bytes
    files: Sequence[Plain]


class View(IntEnum):
    """What a look at one file gave; one byte of the answer."""

    UNCLEAR = 0
    """Not plainly well: that says nothing, whoever asked looks himself."""
    WELL = 1
    """Content and metadata are what is recorded, from the medium."""
    WELL_IN_CACHE = 2
    """The same, as far as a cache tells."""


OPEN: Task[Place, None] = Task("open", Place, None)
CLOSE: Task[int, None] = Task("close", int, None)
LOOK_AHEAD: Task[Next, None] = Task("look ahead", Next, None)
COMPARE = Task("compare", Share, Compared)
CLOSE_BOOK: Task[int, None] = Task("close book", int, None)
READ_SMALL = Task("read small", Wanted, SmallRead)
LOOK = Task("look", Look, bytes)


class Scout:
    """The child's side."""

    def __init__(self) -> None:
        self._roots: dict[int, Root] = {}
        self._ahead: dict[int, Ahead] = {}
        self._compared: dict[int, tuple[Ledger, Comparer]] = {}
        self._clock = Clock()

    @property
    def tasks(self) -> Tasks:
        """All that it can be asked to do."""
        return {
            OPEN: self.open,
            CLOSE: self.close,
            LOOK_AHEAD: self.look_ahead,
            COMPARE: self.compare,
            CLOSE_BOOK: self.close_book,
            READ_SMALL: self.read_small,
            LOOK: look,
        }

    def open(self, place: Place) -> None:
        """Open a root. Raises SourceError when it is not the directory it must be."""
        root = Root(place.path)
        if (root.identity, root.device) != (place.identity, place.device):
            root.close()
            raise SourceError("was replaced, moved or unmounted during the pass", where=show_path(place.path))
        self._roots[place.number] = root

    def close(self, number: int) -> None:
        """Let a root go."""
        self._root(number).close()
        del self._roots[number]
        if number in self._ahead:
            self._ahead.pop(number).close()
        self.close_book(number)

    def look_ahead(self, coming: Next) -> None:
        """Have the kernel load these directories; other questions are answered meanwhile."""
        if coming.root not in self._ahead:
            self._ahead[coming.root] = Ahead(self._root(coming.root))
        self._ahead[coming.root].look(coming.directories)

    def compare(self, share: Share) -> Compared:
        """Compare directories with what the ledger says of them. Raises BookDamagedError, ReplicadError."""
        if share.root not in self._compared:
            root, book = self._root(share.root), share.book
            ledger = Ledger(Path(book.ledger), readonly=True, cache_kib=BOOK_CACHE_KIB)
            excluded = Excluded(book.patterns)
            self._compared[share.root] = (
                ledger,
                Comparer(root, ledger, excluded, one_filesystem=book.one_filesystem),
            )
        return self._compared[share.root][1].compare(share.directories)

    def close_book(self, number: int) -> None:
        """Let go of the ledger that a root was compared with, if it was."""
        if number in self._compared:
            self._compared.pop(number)[0].close()

    def read_small(self, wanted: Wanted) -> Bulky:
        """Read whole files and pack what is in them."""
        reads = read_small(self._root(wanted.root), wanted.files, clock=self._clock)
        packed = _Packed(wanted.compression)
        for read in reads:
            if isinstance(read, FileRead):
                packed.take_data(read)
        frames = list(packed.frames.values())
        return Bulky(SmallRead(reads, b"".join(packed.frames), list(map(len, frames))), frames)

    def _root(self, number: int) -> Root:
        if number not in self._roots:
            raise ReplicadError("the process that read for this pass was started anew meanwhile")
        return self._roots[number]


def look(wanted: Look, access: Access = REAL) -> bytes:
    """A `View` of each file."""
    stretches = [
        Stretch((Name(one.path, one.stamp, one.xattrs),), one.block_bytes, _FIRST, {0: one}) for one in wanted.files
    ]
    with Root(wanted.root) as root:
        return bytes(map(_view, examine(root, stretches, access=access)))


_FIRST = range(1)


def _view(seen: Outcome) -> View:
    if not isinstance(seen, Examined) or seen.odd or seen.drift or seen.unseen:
        return View.UNCLEAR
    return View.WELL if seen.is_media else View.WELL_IN_CACHE


class _Packed:
    """Frames of blocks, by id."""

    def __init__(self, compression: int) -> None:
        self._compression = compression
        self.frames: dict[bytes, bytes] = {}

    def take_data(self, read: FileRead) -> None:
        """Move the bytes of a file's blocks into frames."""
        for place, block in enumerate(read.blocks):
            if block.id not in self.frames:
                codec, stored = compress(block.data, self._compression)
                self.frames[block.id] = encode_frame(FrameType.BLOCK, block.data, block.id, stored, codec)
            read.blocks[place] = Block(block.index, block.id, block.checksum)


if __name__ == "__main__":
    serve(Scout().tasks)
