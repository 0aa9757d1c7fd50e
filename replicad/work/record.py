"""Record: what was read from the source, into the ledger and into units for the link. Sync; the ledger's thread.

**Owns** the comparison of blocks read now with the blocks recorded: which rows change, which blocks a replica lacks.
This is the only module that moves a baseline, and it does so only with bytes of a file whose identity changed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from msgspec.structs import replace

from replicad.db.ledger import UNSETTLED, ZERO, BlockRow, EntryRow, Known, Ledger, put_of, stamp_of
from replicad.db.look_up import LookUp
from replicad.db.plan import Step
from replicad.db.unnamed import same_unnamed, take_back
from replicad.model.block import CHECKSUM_BYTES, ID_BYTES, Buffer, block_count
from replicad.model.entry import FUZZY, INLINE_BLOCKS, MAP_BLOCKS, Kind, Map, Meta, Op, Put, Stamp
from replicad.source.large import Slab
from replicad.source.meta import Described
from replicad.source.read import Block, FileRead
from replicad.work.scouts import Small
from replicad.work.shipping import PIECE_BYTES, Unit, load_nothing

NO_CHECKSUM = bytes(CHECKSUM_BYTES)
"""Checksum column of an all-zero block: its expected bytes are known without one."""
UNREAD_SIZE = -1
"""Size in the stamp of an entry whose file number is taken but whose bytes were never read to the end."""

Inode = tuple[int, int]
"""Device and inode: which file it is, rewritten or not."""


@dataclass(slots=True)
class Listed:
    """What a replica is told of one file's blocks."""

    blocks: list[int] = field(default_factory=list)
    ids: list[bytes] = field(default_factory=list)
    zeros: list[tuple[int, int]] = field(default_factory=list)


@dataclass(slots=True)
class Recorder:
    """Puts one pass's findings into the ledger for one replica."""

    ledger: Ledger
    covered: int
    """Rows above this number are lacking on the replica."""
    seq: int
    """Number that rows written now carry."""
    look: Callable[[bytes], Stamp | None]
    """What a path is now, if anything."""

    def advance(self) -> None:
        """All that was written so far is in the replica's history."""
        self.covered, self.seq = self.seq, self.ledger.take_seq()

    def small(self, reads: Sequence[tuple[Step, FileRead]], small: Small) -> Unit:
        """Record files that were read whole; the unit that brings them to the replica."""
        entries: list[EntryRow] = []
        rows: list[BlockRow] = []
        ops: list[Op] = []
        lacking: dict[bytes, None] = {}
        linked: dict[Inode, EntryRow] = {}
        replaced: list[Known] = []
        fresh = self.ledger.next_file(len(reads))
        for number, (step, read) in enumerate(reads, fresh):
            before = self.ledger.known(read.path) if step.known else None
            if twin := self._twin(read, linked):
                entry = twin._replace(put=replace(twin.put, path=read.path))
                ops.append(entry.put)
            elif step.known or step.moved or read.links > 1:
                put, listed = self._one_small(before, read, number, rows)
                entry = EntryRow(put, recorded(put, read.stamp), self.seq)
                others = self._other_names(put, read.stamp) if put.file != number else []
                entries.extend(entry._replace(put=other) for other in others)
                ops.extend([*operations(put, listed), *others])
                lacking.update(dict.fromkeys(listed.ids))
                linked[_inode(read)] = entry
            else:
                put = self._new_small(read, number, rows, lacking, ops)
                entry = EntryRow(put, recorded(put, read.stamp), self.seq)
            if before and before.file not in (0, entry.put.file):
                replaced.append(before)
            entries.append(entry)
        self.ledger.record_entries(entries)
        self.ledger.record_blocks(rows)
        self.ledger.set_aside(replaced)
        return _framed_unit(small, lacking, ops)

    def _new_small(
        self, read: FileRead, file: int, rows: list[BlockRow], lacking: dict[bytes, None], ops: list[Op]
    ) -> Put:
        """The short way for a file that is new and has one name: everything of it is lacking."""
        blocks, seq, description = read.blocks, self.seq, read.description
        for block in blocks:
            rows.append(BlockRow(file, block.index, block.id, block.checksum, seq))
            lacking[block.id] = None
        flags = description.flags | FUZZY if read.moved else description.flags
        if len(blocks) == 1:
            indexes, ids = (blocks[0].index,), blocks[0].id
            put = Put(
                read.path, Kind.FILE, description.meta, read.size, file, read.block_bytes, flags,
                blocks=indexes, ids=ids,
            )  # fmt: skip
            ops.append(put)
            return put
        put = Put(read.path, Kind.FILE, description.meta, read.size, file, read.block_bytes, flags)
        ops.extend(operations(put, Listed([block.index for block in blocks], [block.id for block in blocks])))
        return put

    def _twin(self, read: FileRead, linked: Mapping[Inode, EntryRow]) -> EntryRow | None:
        """What is recorded of this file under another name, in this batch or in an earlier one. It stays recorded as it
        was read there, and whoever recorded it has told of its other names: all of them at each would be too many."""
        if read.links <= 1:
            return None
        if row := linked.get(_inode(read)):
            return row
        known = self.ledger.same_content(read.stamp)
        return EntryRow(put_of(read.path, known), stamp_of(known), self.seq) if known else None

    def _one_small(self, before: Known | None, read: FileRead, fresh: int, rows: list[BlockRow]) -> tuple[Put, Listed]:
        known = self._in_place(before, read.stamp, read.links, read.block_bytes)
        file, existing, cleared = fresh, {}, []
        if known:
            file = known.file
            existing = self.ledger.blocks(file, 0, block_count(max(known.size, read.size), read.block_bytes))
            cleared = self.cleared(file, read.size, read.block_bytes)
        flags = read.description.flags | (FUZZY if read.moved else 0)
        put = Put(read.path, Kind.FILE, read.description.meta, read.size, file, read.block_bytes, flags)
        listed = self._compare(file, existing, read.blocks, read.zeros, self.seq, rows)
        listed.zeros[:0] = cleared
        if file != fresh:
            self.ledger.cut(file, block_count(read.size, read.block_bytes), self.seq)
        if cleared or any(row.seq == UNSETTLED for row in existing.values()):
            self.ledger.settle(file, self.seq)
        return put, listed

    def _in_place(self, before: Known | None, stamp: Stamp, links: int, block_bytes: int) -> Known | None:
        """The recorded file that a path leads to now, perhaps rewritten: the one recorded there, or one of which
        this path became a further name, or the only one: a renamed file stays itself, so that what differs in it is
        told as a change of that file."""
        if before and in_place(before, stamp):
            return before
        for path, known in self.ledger.same_inode(stamp) if links > 1 or before is None else ():
            is_named_so = (now := self.look(path)) and same_file(now, stamp)
            if known.block_bytes == block_bytes and (is_named_so or was_renamed(known, stamp)):
                return known
        return None

    def _other_names(self, put: Put, stamp: Stamp) -> list[Put]:
        """The file's other recorded names. They change with it in one snapshot: a walk of hinted directories alone sees
        only the name that it was written under, and blocks belong to all. A name that leads to another file by now, or
        to none, is left to the walk of its own directory."""
        names = [path for path in self.ledger.names(put.file, stamp.inode) if path != put.path]
        return [replace(put, path=path) for path in names if (now := self.look(path)) and same_file(now, stamp)]

    def _compare(
        self,
        file: int,
        existing: Mapping[int, BlockRow],
        blocks: Iterable[Block],
        zeros: Iterable[tuple[int, int]],
        seq: int,
        rows: list[BlockRow],
    ) -> Listed:
        """Add the rows that changed to `rows`; what the replica lacks."""
        listed = Listed()
        for block in blocks:
            row = existing.get(block.index)
            if row is None or row.id != block.id:
                rows.append(BlockRow(file, block.index, block.id, block.checksum, seq))
            else:
                if not row.checksum:  # adopted, and these are the bytes that the record names
                    rows.append(row._replace(checksum=block.checksum))
                if row.seq <= self.covered:
                    continue
            listed.blocks.append(block.index)
            listed.ids.append(block.id)
        if existing:
            self._compare_zeros(file, existing, zeros, seq, rows, listed)
        return listed

    def _compare_zeros(
        self,
        file: int,
        existing: Mapping[int, BlockRow],
        zeros: Iterable[tuple[int, int]],
        seq: int,
        rows: list[BlockRow],
        listed: Listed,
    ) -> None:
        for first, count in zeros:
            for index in sorted(i for i in existing if first <= i < first + count):
                row = existing[index]
                if row.id != ZERO:
                    rows.append(BlockRow(file, index, ZERO, NO_CHECKSUM, seq))
                elif row.seq <= self.covered:
                    continue
                listed.zeros.append((index, 1))

    # large files

    def begin_large(self, path: bytes, stamp: Stamp, links: int, meta: Meta, block_bytes: int) -> int:
        """The number of a file that is about to be read slab by slab.

        A new file's number is recorded at once, with a stamp that no file has, so that an interrupted first
        read goes on under the same number.
        """
        before = self.ledger.known(path)
        known = self._in_place(before, stamp, links, block_bytes)
        if before and known and before.file == known.file:
            return known.file
        file = known.file if known else self.ledger.next_file()
        unread = stamp._replace(size=UNREAD_SIZE, mtime_ns=0, ctime_ns=0)
        put = Put(path, Kind.FILE, meta, stamp.size, file, block_bytes)
        self.ledger.record_entries([EntryRow(put, unread, UNSETTLED)])
        if before and before.file:
            self.ledger.set_aside([before])
        return file

    def expected(self, file: int, numbers: range) -> dict[int, BlockRow]:
        """Recorded blocks of that range."""
        return self.ledger.blocks(file, numbers.start, numbers.stop)

    def agreed(self, existing: Mapping[int, BlockRow]) -> dict[int, bytes]:
        """Ids of those blocks that the replica has for certain: equal blocks need no offer."""
        return {i: row.id for i, row in existing.items() if row.seq <= self.covered and row.id != ZERO}

    def slab(self, file: int, existing: Mapping[int, BlockRow], slab: Slab) -> Unit:
        """Record one slab of a large file, unsettled; the unit that brings its blocks (and no operation yet)."""
        rows: list[BlockRow] = []
        self._compare(file, existing, slab.blocks, slab.zeros, UNSETTLED, rows)
        self.ledger.record_blocks(rows)
        return _loaded_unit({block.id: block.data for block in slab.blocks}, [])

    def end_large(self, put: Put, stamp: Stamp) -> list[Put]:
        """The file was read to its end: its blocks and its entries belong to the snapshot now. All its entries."""
        puts = [*self._other_names(put, stamp), put]
        self.ledger.record_entries([EntryRow(each, recorded(each, stamp), self.seq) for each in puts])
        self.ledger.cut(put.file, block_count(put.size, put.block_bytes), self.seq)
        self.ledger.settle(put.file, self.seq)
        return puts

    # everything else

    def described(self, items: Sequence[Described]) -> list[Op]:
        """Record entries that have no blocks."""
        replaced = [known for item in items if (known := self.ledger.known(item.path)) and known.file]
        puts = [
            Put(
                item.path,
                Kind(item.stamp.kind),
                item.description.meta,
                target=item.description.target,
                device=item.description.device,
            )
            for item in items
        ]
        self.ledger.record_entries([EntryRow(put, item.stamp, self.seq) for put, item in zip(puts, items, strict=True)])
        self.ledger.set_aside(replaced)
        return list(puts)

    def same(self, found: Sequence[tuple[Step, Stamp]]) -> list[Known | None]:
        """Record these paths as further names of recorded files with this identity, or as the names of some that lost
        their last one; None where there is none any more."""
        recorded = self.ledger.same_contents(stamp for _, stamp in found)
        result: list[Known | None] = []
        rows: list[EntryRow] = []
        for step, stamp in found:
            known, lost = recorded.get(stamp[4:]) or self.ledger.same_content(stamp), None
            if known is None and (lost := same_unnamed(self.ledger, stamp)):
                known = take_back(self.ledger, lost, self.seq)
            result.append(known)
            if known is None:
                continue
            rows.append(EntryRow(put_of(step.path, known), stamp_of(known), self.seq))
            before = self.ledger.known(step.path) if step.known else None
            replaced = [before] if before and before.file not in (0, known.file) else []
            if lost or replaced:  # those behind it ask for the record as it is then
                self.ledger.record_entries(rows)
                self.ledger.set_aside(replaced)
                recorded = {key: of for key, of in recorded.items() if not before or of.file != before.file}
                rows = []
        self.ledger.record_entries(rows)
        return result

    def cleared(self, file: int, size: int, block_bytes: int) -> list[tuple[int, int]]:
        """The run of blocks that the replica has to take for zeros before it is told of the file's blocks: where the
        file was cut and grew again unseen."""
        start, end = self.ledger.cut_from(file, self.covered), block_count(size, block_bytes)
        return [] if start is None or start >= end else [(start, end - start)]

    def all_cleared(self, files: Iterable[Known]) -> dict[int, list[tuple[int, int]]]:
        """`cleared` of those of these recorded files that have such a run."""
        asked = {known.file: known for known in files}
        cut = LookUp(self.ledger.database).cut(asked, self.covered)
        return {file: self.cleared(file, asked[file].size, asked[file].block_bytes) for file in cut}

    def outgrown(self, entries: Iterable[tuple[bytes, Known]]) -> set[bytes]:
        """Those of these paths that no walk has come to since their file grew under another name. To tell of one would
        have the replica cut the file."""
        ends = {path: (k.file, block_count(k.size, k.block_bytes)) for path, k in entries if k.file and k.size >= 0}
        longer = LookUp(self.ledger.database).longer(set(ends.values()))
        return {path for path, end in ends.items() if end in longer}

    def all_lacking(self, files: Iterable[int], limit: int) -> dict[int, list[BlockRow]]:
        """The first `limit` blocks of each of these files that the replica lacks."""
        return LookUp(self.ledger.database).lacking(files, self.covered, limit)

    def lacking(self, file: int, after: int, limit: int) -> list[BlockRow]:
        """The next blocks of a file that the replica lacks, with numbers above `after`."""
        return self.ledger.lacking_blocks(file, self.covered, after, limit)


def _inode(read: FileRead) -> Inode:
    return read.stamp.device, read.stamp.inode


def recorded(put: Put, stamp: Stamp) -> Stamp:
    """The stamp that a file is recorded under. One that shrank while it was read has the size that the replica is told;
    its times are outdated, so the next walk finds it changed in any case."""
    return stamp if stamp.size == put.size else stamp._replace(size=put.size)


def in_place(known: Known, stamp: Stamp) -> bool:
    """Whether the file at a path is still the one recorded there, perhaps rewritten: same inode, same file number."""
    return known.file > 0 and (known.device, known.inode) == (stamp.device, stamp.inode)


def was_renamed(known: Known, stamp: Stamp) -> bool:
    """Whether a recorded file with this stamp's inode is the same one, its content not written by the look of it: a
    number that was given to another file would have another size or time."""
    return (known.size, known.mtime_ns) == (stamp.size, stamp.mtime_ns)


def same_file(one: Stamp, other: Stamp) -> bool:
    """Whether both stamps are of one file, rewritten between them or not."""
    return (one.device, one.inode) == (other.device, other.inode)


def operations(put: Put, listed: Listed) -> list[Op]:
    """The operations that tell of a file and its listed blocks."""
    if len(listed.blocks) <= INLINE_BLOCKS and len(listed.zeros) <= INLINE_BLOCKS:
        if not listed.blocks and not listed.zeros:
            return [put]
        return [replace(put, blocks=tuple(listed.blocks), ids=b"".join(listed.ids), zeros=tuple(listed.zeros))]
    return [put, *maps(put.file, listed)]


def maps(file: int, listed: Listed) -> list[Op]:
    """Listed blocks as `Map` operations."""
    found: list[Op] = []
    for at in range(0, max(len(listed.blocks), len(listed.zeros)), MAP_BLOCKS):
        end = at + MAP_BLOCKS
        found.append(Map(file, tuple(listed.blocks[at:end]), b"".join(listed.ids[at:end]), tuple(listed.zeros[at:end])))
    return found


def listed_of(rows: Iterable[BlockRow], cleared: Iterable[tuple[int, int]] = ()) -> Listed:
    """Ledger rows as what a replica is told, behind runs that are zeros before them."""
    listed = Listed(zeros=list(cleared))
    for row in rows:
        if row.id == ZERO:
            listed.zeros.append((row.number, 1))
        else:
            listed.blocks.append(row.number)
            listed.ids.append(row.id)
    return listed


def _loaded_unit(data: Mapping[bytes, Buffer], ops: Sequence[Op]) -> Unit:
    """A unit whose blocks are in memory."""
    blocks = list(data.values())

    def load(positions: Sequence[int]) -> list[Buffer | None]:
        return [blocks[position] for position in positions]

    return Unit(b"".join(data), load, given(ops), sum(map(len, blocks)))


def _framed_unit(small: Small, lacking: Mapping[bytes, None], ops: Sequence[Op]) -> Unit:
    """A unit whose blocks are in memory as frames."""
    ids, everything = b"".join(lacking), memoryview(small.frames)
    spans = list(_spans(small.read.lengths))
    if ids != small.read.ids:
        places = dict(zip(_split_ids(small.read.ids), spans, strict=True))
        spans = [places[name] for name in lacking]

    def frames(positions: Sequence[int]) -> Iterator[Buffer]:
        return (everything[start:end] for start, end in runs(spans[position] for position in positions))

    return Unit(ids, load_nothing, given(ops), len(everything), frames)


def _spans(lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Begin and end of each frame."""
    end = 0
    for length in lengths:
        start, end = end, end + length
        yield start, end


def runs(spans: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Spans that follow each other as one, up to PIECE_BYTES long."""
    start = end = 0
    for first, last in spans:
        if first == end and last - start <= PIECE_BYTES:
            end = last
            continue
        if end > start:
            yield start, end
        start, end = first, last
    if end > start:
        yield start, end


def _split_ids(ids: bytes) -> Iterator[bytes]:
    return (ids[at : at + ID_BYTES] for at in range(0, len(ids), ID_BYTES))


def given(ops: Sequence[Op]) -> Callable[[bool], AsyncIterator[Sequence[Op]]]:
    """Operations that are known already, for blocks that cannot fail to load."""

    async def follow(complete: bool) -> AsyncIterator[Sequence[Op]]:
        assert complete, "blocks in memory cannot fail to load"
        yield ops

    return follow
