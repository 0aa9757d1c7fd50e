"""Adopt: let a ledger that was lost begin anew with the replica's record, trusting the record and not the disk.

Every entry of the replica's last snapshot is recorded with its file number, its blocks and its metadata. Where the disk
shows an entry of the same kind, size, times, mode, owner and attributes, its stamp is taken over as the identity under
which the *recorded* content is expected: bytes that differ there are rot, never a change (guarantee 10). Elsewhere the
entry gets a stamp that no file has, so the next survey reads it as written, or drops it. **Never** reads a byte of a
file: every adopted block counts as never verified, and the scrub tells which of them differ.

A ledger that has a record of its own (two histories parted) keeps it: only paths that it never heard of are noted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from replicad.db.claims import Claims
from replicad.db.ledger import UNKNOWN_CHECKSUM, BlockRow, EntryRow, Ledger
from replicad.link.messages import SnapshotLine
from replicad.model.block import ID_BYTES, block_count
from replicad.model.entry import FUZZY, INLINE_BLOCKS, Kind, Map, Op, Put, Stamp, show_path
from replicad.model.errors import PeerError, SourceError
from replicad.model.snapshot import Head
from replicad.source.meta import Described, describe
from replicad.source.root import Root, Trouble
from replicad.status import MAX_NAMED
from replicad.status import Trouble as Named
from replicad.system.clock import Clock
from replicad.work.dataset import Dataset
from replicad.work.reader import Reader
from replicad.work.record import UNREAD_SIZE

LOOKS = 256
"""Entries of the disk that one call looks at."""
GOES_ON = "adopt:{}"
"""Remembered in the ledger for a replica whose history a person has decided to go on from."""


@dataclass(slots=True)
class Adopted:
    """What became of the record."""

    snapshot: int = 0
    entries: int = 0
    """Entries that are on the disk as the record says."""
    files: int = 0
    size: int = 0
    changed: int = 0
    """Entries that are on the disk and look otherwise: the next pass reads and replicates them."""
    missing: int = 0
    """Entries that are not on the disk: the next pass drops them."""
    unseen: int = 0
    """Entries that could not be looked at: they are read once they can be."""
    lost_records: int = 0
    """Pieces of the record that the replica has lost: large files are read again."""
    seen_size: int = 0
    """Bytes of the files that were seen so far, on the disk or not."""
    named: list[Named] = field(default_factory=list)
    """The first MAX_NAMED of those that were not taken over."""

    @property
    def done(self) -> int:
        """Entries of the record seen so far."""
        return self.entries + self.changed + self.missing + self.unseen

    @property
    def finds_nothing(self) -> bool:
        """Whether the record has entries and nothing but the root was found on the disk."""
        return self.missing > 0 and self.entries + self.changed + self.unseen <= 1

    def differs(self, path: bytes, reason: str) -> None:
        """Name one, if there is room."""
        if len(self.named) < MAX_NAMED:
            self.named.append(Named(show_path(path), reason))


Heard = Callable[[Adopted, SnapshotLine], None]
"""Told how far it is, and what is adopted."""


async def adopt(
    dataset: Dataset, replica: str, head: Head, reader: Reader, clock: Clock, heard: Heard | None = None
) -> Adopted:
    """Adopt snapshot `head` of `replica`, and go on from there.

    Raises SourceError when the root is not there, or holds nothing of the record: it is not mounted then. Raises
    ReplicadError when the record cannot be read. In both cases the same call begins again."""
    line = await _line(reader, head) if head.number else SnapshotLine(0, 0, 0, False, 0, 0, 0, head.digest)
    root = await asyncio.to_thread(Root, dataset.root)
    try:
        adoption = await dataset.in_ledger(_begin, dataset.ledger, replica, line, root, clock)
        if head.number:
            async for ops in reader.record(head.number):
                await dataset.in_ledger(adoption.take, ops)
                if heard:
                    heard(adoption.adopted, line)
        if adoption.adopted.finds_nothing:
            hint = "is the file system mounted? A dataset that was lost comes back with replicad restore"
            raise SourceError("holds nothing of what the replica has", where=str(dataset.config.path), hint=hint)
        await dataset.durably(adoption.finish, replica, head, line)
        return adoption.adopted
    finally:
        await asyncio.to_thread(root.close)


async def _line(reader: Reader, head: Head) -> SnapshotLine:
    for line in await reader.snapshots():
        if line.number == head.number:
            return line
    raise PeerError(f"does not list snapshot {head.number}, its own last one", where=reader.name)


def _begin(ledger: Ledger, replica: str, line: SnapshotLine, root: Root, clock: Clock) -> Adoption:
    """Start, or start again what was cut short. In the ledger's thread."""
    mark = f"{replica}:{line.digest.hex()}"
    whole = not ledger.has_entries() or ledger.get("adopting") == mark
    if whole:
        ledger.put("adopting", mark)
    adopted = Adopted(line.number, lost_records=line.lost)
    return Adoption(ledger, root, ledger.take_seq(), clock, adopted, whole, Claims(ledger.database))


@dataclass(slots=True)
class Adoption:
    """One adoption under way. All methods run in the ledger's thread."""

    ledger: Ledger
    root: Root
    seq: int
    clock: Clock
    adopted: Adopted
    whole: bool
    """Whether the ledger has nothing else: then the replica lacks nothing of what was adopted."""
    claims: Claims
    _entries: list[EntryRow] = field(default_factory=list)
    _blocks: list[BlockRow] = field(default_factory=list)
    _file: int = 0
    """The file whose blocks may come next, when they are wanted."""

    def take(self, ops: Sequence[Op]) -> None:
        """The next operations of the record."""
        puts = [op for op in ops if isinstance(op, Put)]
        looks = iter([look for at in range(0, len(puts), LOOKS) for look in self._look(puts[at : at + LOOKS])])
        for op in ops:
            if isinstance(op, Put):
                self._put(op, next(looks))
            elif isinstance(op, Map) and self._file == op.file:
                self._expect(op)
        self._flush()

    def finish(self, replica: str, head: Head, line: SnapshotLine) -> None:
        """The record was taken to its end: the replica's history goes on from `head`. The release that allowed this is
        used up: what the next survey finds is judged by the other guards."""
        if self.whole:
            self.ledger.take_over(replica, head, self.seq)
            self.ledger.put(f"complete:{replica}", int(line.complete))
            self.ledger.put(f"sealed_ns:{replica}", line.created_ns)
        else:
            self.ledger.restart(replica, head)
            self.ledger.put(f"complete:{replica}", None)
        self.ledger.put(f"complete_ns:{replica}", line.created_ns if line.complete else None)
        for key in ("adopting", "released", GOES_ON.format(replica)):
            self.ledger.put(key, None)

    def _look(self, puts: Sequence[Put]) -> list[Described | Trouble]:
        return describe(self.root, [put.path for put in puts], clock=self.clock)

    def _put(self, put: Put, look: Described | Trouble) -> None:
        self._file = 0
        self.adopted.seen_size += put.size
        if not self.whole:
            if put.path and self.ledger.entry(put.path) is None:
                self._note(put, 0, Stamp(put.kind, 0, 0, 0, 0, 0, UNREAD_SIZE, 0, 0))
            return
        if isinstance(look, Trouble):
            self._not_there(put, look)
            return
        is_same_file = put.kind == look.stamp.kind == Kind.FILE and self._is_in_place(put, look)
        reason = self._difference(put, look, is_same_file)
        if reason:
            self.adopted.changed += 1
            self.adopted.differs(put.path, reason)
            device, inode = (look.stamp.device, look.stamp.inode) if is_same_file else (0, 0)
            stamp = Stamp(put.kind, 0, 0, 0, device, inode, UNREAD_SIZE, 0, 0)
            self._note(put, put.file if is_same_file else 0, stamp)
            return
        self.adopted.entries += 1
        self.adopted.files += put.kind is Kind.FILE
        self.adopted.size += put.size
        self._note(put, put.file, look.stamp)

    def _not_there(self, put: Put, look: Trouble) -> None:
        if look.vanished:
            self.adopted.missing += 1
        else:
            self.adopted.unseen += 1
        self.adopted.differs(put.path, "is not on the disk" if look.vanished else look.reason)
        self._note(put, 0, Stamp(put.kind, 0, 0, 0, 0, 0, UNREAD_SIZE, 0, 0))

    def _note(self, put: Put, file: int, stamp: Stamp) -> None:
        """Record the entry, and its blocks when it keeps its file number."""
        head = (put.path, put.kind, put.meta, put.size, file, put.block_bytes if file else 0, put.flags)
        self._entries.append(EntryRow(Put(*head, put.target, put.device), stamp, self.seq))
        self._file = file
        if file:
            self._expect(put)

    def _expect(self, op: Put | Map) -> None:
        """What the record says of the file's blocks is what is expected of them."""
        for at, number in enumerate(op.blocks):
            name = op.ids[at * ID_BYTES : (at + 1) * ID_BYTES]
            self._blocks.append(BlockRow(op.file, number, name, UNKNOWN_CHECKSUM, self.seq))

    def _is_in_place(self, put: Put, look: Described) -> bool:
        """Whether this inode is what the file number stands for. Hard links that were made or broken while there was no
        ledger would have two inodes share a number, or two numbers an inode: such an entry begins anew."""
        stamp = look.stamp
        if not self.claims.claim(put.file, stamp.device, stamp.inode):
            return False
        if look.links == 1:
            return True
        self._flush()
        return all(known.file == put.file for _, known in self.ledger.same_inode(stamp))

    def _difference(self, put: Put, look: Described, is_same_file: bool) -> str:
        """Why the entry on the disk does not count as the recorded one, or ""."""
        stamp, meta = look.stamp, put.meta
        if stamp.kind != put.kind:
            return "is something else on the disk"
        if put.kind is Kind.FILE:
            if not is_same_file:
                return "has other hard links on the disk"
            if (stamp.size, stamp.mtime_ns) != (put.size, meta.mtime_ns):
                return "was written"
            if put.flags & FUZZY:
                return "was recorded while it was written"
            if self.adopted.lost_records and block_count(put.size, put.block_bytes) > INLINE_BLOCKS:
                return "the replica may have lost a part of its record"
        described = look.description
        here = (stamp.mode, stamp.uid, stamp.gid, stamp.mtime_ns, described.meta.xattrs)
        if here != (meta.mode, meta.uid, meta.gid, meta.mtime_ns, meta.xattrs):
            return "has other metadata"
        return "" if (described.target, described.device) == (put.target, put.device) else "leads elsewhere"

    def _flush(self) -> None:
        self.ledger.record_entries(self._entries)
        self.ledger.record_blocks(self._blocks)
        self._entries.clear()
        self._blocks.clear()
