"""Archive: one dataset on the replica: its segments and its catalog, as one thing to write and to read.

**Owns** the order of steps that makes guarantee 1 true: verify, append, index; at a seal: commit frame, fdatasync,
then the catalog, then the answer. `Archive` is the one writer and holds the lock; who reads has a connection of his own
(work/archive_reader.py).
**Never** trusts what a session sends: frames are proven (checksum, decompression, BLAKE3) and records checked
before a byte is appended, so bad input changes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice
from pathlib import Path
from weakref import WeakSet

from replicad.db.catalog import BlockPlace, Catalog
from replicad.db.inventory import Inventory
from replicad.model.block import ID_BYTES, Buffer, self_test
from replicad.model.entry import Drop, Map, Op, Put, decode_ops
from replicad.model.errors import (
    BookDamagedError,
    DiskFullError,
    DivergedError,
    PeerError,
    ReplicadError,
    StoreDamagedError,
    UsageError,
)
from replicad.model.marks import Marks
from replicad.model.order import MAX_ORDER_BYTES
from replicad.model.position import Position
from replicad.model.snapshot import MAX_RECORDS, Commit, Head, decode_commit, records_digest
from replicad.store.format import (
    Frame,
    FrameError,
    FrameType,
    plain_payload,
    split_frames,
)
from replicad.store.segments import Damage, SegmentFiles, Torn, compacted_path, segment_numbers, segment_path
from replicad.store.store import Owner, Store, check_names, stored_bytes
from replicad.system.clock import Clock
from replicad.system.disk import Disk, Lock
from replicad.work.exchange import exchange, remove
from replicad.work.quota import catalog_bytes, sealed_bytes
from replicad.work.replay import Replay, copy_of
from replicad.work.untrusted import INT64, check_put, single_frame, split_ids, whole_frames

MAX_UNDER_WAY = 262_144
"""Blocks asked for and not yet received. A primary with 20 MiB under way has this many only if they are 80 bytes
each; a peer that offers without end and never sends is cut off here (25 MiB of memory)."""
MAX_PROMISED = 262_144
"""Blocks that a client was told of and has not named yet which are kept in mind, as many as may be under way; beyond
that nothing is compacted until its pass, or its session, has ended."""
MAX_DOUBTED = 262_144
"""Damaged blocks that are kept in mind (8 MiB of ids); those beyond wait for a repair."""
RECENT_BLOCKS = 65_536
"""Ids known to be in the store that records are checked against first; the catalog answers for the rest."""


def _wall_clock_ns() -> int:
    return Clock().now_ns()


class Archive:
    """The writer. One thread at a time, not necessarily the same one.

    PeerError, DivergedError and a DiskFullError that speaks of the reserve leave everything as it was. After any
    other error the archive takes nothing but `abort` (which looks what is on the disk and makes the archive usable
    again) or `close`.
    """

    def __init__(self, lock: Lock, store: Store, catalog: Catalog, disk: Disk) -> None:
        """Use `open`."""
        self._lock, self._store, self._catalog = lock, store, catalog
        self._disk, self._files = disk, SegmentFiles(store.directory, disk)
        self._torn: Torn | None = None
        self._under_way: set[bytes] = set()
        self._promised: set[bytes] = set()
        self._recent: set[bytes] = set()
        self._doubted: set[bytes] = set()
        self._records: list[bytes] = []
        self._current: Put | None = None
        self._touched = False
        self._broken = self._has_promised = self._was_full = self.is_amid = False
        self._marks = WeakSet[Marks]()
        self._at_seal: dict[Callable[[], None], None] = {}
        """In the order of their coming, each once."""
        self.laid = 0
        """How often segment files or the catalog were exchanged: whoever looked at one before looks again."""

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        client: str | None = None,
        dataset: str | None = None,
        disk: Disk | None = None,
        reserve_bytes: int = 0,
        clock_ns: Callable[[], int] = _wall_clock_ns,
        create: bool = False,
    ) -> Archive:
        """Open a store directory, replaying what its catalog does not know yet.

        `create` makes one when there is none, for `client` and `dataset`; without names any owner is accepted.
        Raises PeerError (names that are none), UsageError (no store there), LockedError, BookDamagedError (rebuild
        it), StoreDamagedError (it is another dataset's), DiskFullError, ReplicadError.
        """
        self_test()
        disk = disk or Disk()
        check_names(client, dataset)
        if create:
            disk.make_directory(directory / "segments")
        elif not (directory / "segments").is_dir():
            raise UsageError("is no store of a dataset", where=str(directory))
        with ExitStack() as undo:
            lock = Lock(directory / "lock")
            undo.callback(lock.release)
            was_missing = not catalog_path(directory).exists()
            catalog = _open_catalog(directory, client, dataset, disk if create else None)
            undo.callback(catalog.close)
            owner = _owner(catalog, directory, client, dataset)
            store = Store(directory, owner, disk=disk, reserve_bytes=reserve_bytes, clock_ns=clock_ns)
            archive = cls(lock, store, catalog, disk)
            undo.callback(archive._files.close)
            archive._replay(goes_on=was_missing)
            undo.pop_all()
        return archive

    def close(self) -> None:
        """Give up what was not sealed (its blocks are found again at the next open) and let others in."""
        try:
            if not self._broken:
                self._store.flush()
        except ReplicadError:
            pass  # only unsealed bytes are lost, and nobody was promised those
        finally:
            self._store.drop_writer()
            self._files.close()
            self._catalog.close()
            self._lock.release()

    @property
    def head(self) -> Head:
        """The last acknowledged snapshot."""
        return self._catalog.head

    @property
    def damage(self) -> list[Damage]:
        """What replays have found damaged, now or earlier."""
        return [Damage(*found) for found in self._catalog.damage()]

    @property
    def torn(self) -> Torn | None:
        """What the last replay cut off the end: a write that a crash interrupted, and that nobody was told of."""
        return self._torn

    @property
    def stored_bytes(self) -> int:
        """Bytes of segments and books on the disk."""
        return stored_bytes(self._store.directory)

    @property
    def free_bytes(self) -> int:
        """Bytes that intake may still use; negative below the reserve."""
        return self._store.free_bytes()

    def needed(self, ids: bytes) -> bytes:
        """Which of the offered blocks (32 bytes each) to send: bit i is byte i//8, value 1 << i%8.

        A block that was asked for and is under way is not asked for again. Raises PeerError.
        """
        self._check_usable()
        names = split_ids(ids)
        wanted = set(names) - self._under_way
        present = self._catalog.known(list(wanted)) - self._doubted
        self._promise(present)
        wanted -= present
        if len(self._under_way) + len(wanted) > MAX_UNDER_WAY:
            raise PeerError(f"offered {MAX_UNDER_WAY} blocks and did not send them")
        self._under_way |= wanted
        bits = bytearray((len(names) + 7) // 8)
        for i, name in enumerate(names):
            if name in wanted:
                wanted.discard(name)
                bits[i >> 3] |= 1 << (i & 7)
        return bytes(bits)

    def add_blocks(self, frames: Buffer) -> None:
        """Store whole block frames. Raises PeerError, with nothing stored, or DiskFullError."""
        self._check_usable()
        found = whole_frames(frames, FrameType.BLOCK)
        try:
            for frame in found:
                plain_payload(frame)
        except FrameError as error:
            raise PeerError(f"sent a block that is none: {error}") from None
        data, found = self._new_ones(frames, found)
        if not found:
            return
        self._store.check_room(len(data))
        with _Breaking(self):
            segment, offset = self._store.append(data, [frame.checksum for frame in found])
            self._catalog.add_blocks(
                [BlockPlace(frame.id, segment, offset + frame.offset, frame.stored, frame.plain) for frame in found]
            )
            self._copy_made()
        names = {frame.id for frame in found}
        self.is_amid = True  # what was brought may be named later, behind a seal too
        self._under_way -= names
        self._doubted -= names
        self._remember(names)

    def add_record(self, frame: bytes) -> None:
        """Store one record frame and apply its operations to the snapshot under way.

        Raises PeerError (also when it names a block that is not in the store), with nothing stored, or DiskFullError.
        """
        self._check_usable()
        if len(self._records) >= MAX_RECORDS:
            raise PeerError(f"sent {MAX_RECORDS} records and did not seal them")
        found = single_frame(frame, FrameType.RECORD)
        try:
            ops = decode_ops(bytes(plain_payload(found)))
        except ValueError as error:
            raise PeerError(f"sent a record that is none: {error}") from None
        self._check_ops(ops)
        self._store.check_room(len(frame) + catalog_bytes(found))
        with _Breaking(self):
            self._append_copied(frame, found)
            self._current = self._catalog.apply(ops, self._current)
        self._records.append(found.id)

    def seal(self, frame: bytes) -> Head:
        """Make what was recorded since the last seal a snapshot. When this returns it is durable.

        Raises DivergedError (its parent is not the head), PeerError (it does not fit what was sent); then the
        session must be aborted. DiskFullError (at the reserve only when it covers no record), ReplicadError.
        """
        self._check_usable()
        found = single_frame(frame, FrameType.COMMIT)
        commit = self._checked_commit(found)
        if not self.has_recorded:
            self._store.check_room(sealed_bytes(frame))
        with _Breaking(self):
            self._append_copied(frame, found)
            received_ns = self._store.sync()
            self._copy_made()
            self._catalog.commit(commit, found.id, received_ns=received_ns, checkpoint=self._store.position)
        self._records.clear()
        self._current = None
        self._touched = False
        if commit.complete:
            self._promised.clear()  # a pass that has ended offers again what it left out
            self.is_amid = False
        self._has_promised = self._forgets_promises
        return self.head

    @property
    def has_recorded(self) -> bool:
        """Whether the next commit covers any record."""
        return bool(self._records)

    def abort(self) -> None:
        """Forget what was recorded since the last seal, keep the blocks, and get ready for another session.

        Raises ReplicadError when the disk cannot be read or written; then try again, or close.
        """
        self._under_way.clear()
        self._records.clear()
        self._current = None
        self._promised.clear()
        self._has_promised = self.is_amid = False
        if self._touched or self._broken:
            self._look_anew()

    def _look_anew(self) -> None:
        self._recent.clear()
        if not self._broken:
            with _Breaking(self):
                self._store.flush()
        self._broken = True
        self._store.drop_writer()
        self._catalog.rollback()
        self._replay()
        self._broken = self._touched = False

    # upkeep (work/upkeep.py), between sessions

    @property
    def is_settled(self) -> bool:
        """Whether nothing waits for a seal: only then may the catalog be committed for any other reason."""
        return not (self._touched or self._broken)

    def when_settled(self, work: Callable[[], None]) -> None:
        """Do this now, or else `at_seal`."""
        if self.is_settled:
            work()
        else:
            self.at_seal(work)

    def at_seal(self, work: Callable[[], None]) -> None:
        """Have this done behind the next seal, or abort: where one pass follows the other, nobody who looks from time
        to time finds the moment between two."""
        self._at_seal[work] = None

    def do_at_seal(self) -> None:
        """Do what was to be done behind a seal; for whoever has sealed or aborted. Raises what that raises."""
        if self.is_settled:
            works, self._at_seal = self._at_seal, {}
            for work in works:
                work()

    @property
    def store(self) -> Store:
        """The segments, to ask where they are and end."""
        return self._store

    @property
    def inventory(self) -> Inventory:
        """The catalog from the side of the disk, with what is not committed yet; for the archive's own thread."""
        return Inventory(self._catalog.database)

    @property
    def checkpoint(self) -> Position:
        """Up to here everything is durable and committed."""
        return self._catalog.checkpoint

    @contextmanager
    def upkeep(self) -> Iterator[tuple[Store, Catalog]]:
        """Store and catalog, to mend something in them; what was written to the catalog is kept at the end, with the
        store's end as its checkpoint, so what was appended must be synced.

        Only while `is_settled`. After an error what is on the disk is looked at anew: a session under way does not meet
        it, unless even that is impossible."""
        assert self.is_settled
        with _Mending(self):
            self._catalog.begin_durably()
            yield self._store, self._catalog
            self._copy_made()
            self._catalog.keep(self._store.position)
        self._touched = False

    @contextmanager
    def upkeep_of_files(self) -> Iterator[Catalog]:
        """While segment files or the catalog are exchanged: nothing is open meanwhile; afterwards all is looked at, and
        after an error too."""
        assert self.is_settled
        with _Mending(self):
            self._store.drop_writer()
            self._files.close()
            self._recent.clear()
            yield self._catalog
            self.laid += 1
            self._replay()
        self._touched = False

    def begin_marking(self, blocks: int, place: int) -> Marks | None:
        """Marks of the blocks that are in use, `blocks` in all: every one that a client was told of and has not named
        yet, and from here on every one that it is told of, or names, is marked; those that the committed catalog names
        are the caller's to add. None while a session has unsealed work, was told of blocks since its last seal, or of
        more of them than are known here."""
        if self._has_promised or not self.is_settled:
            return None
        marks = Marks(blocks, place)
        marks.add(self._promised)
        self._marks.add(marks)
        return marks

    def is_marking(self, marks: Marks) -> bool:
        """Whether nothing has happened that these do not know of."""
        return marks in self._marks

    def end_marking(self, marks: Marks) -> None:
        """These are needed no more."""
        self._marks.discard(marks)

    def exchange_catalog(self, put_in_place: Callable[[], None]) -> None:
        """Have another catalog put in place of this one, within `upkeep_of_files`."""
        path = self._catalog.path
        self._catalog.close()
        try:
            put_in_place()
        finally:
            if path.exists():  # else only a new start, which finishes the exchange, makes the archive usable again
                remove(fresh_catalog_path(path.parent))
                self._catalog = Catalog(path)
        self._recent.clear()
        self._marks.clear()  # a record may have been taken in of which they know nothing

    def read_segment(self, number: int, offset: int, size: int) -> memoryview:
        """Bytes of a segment; valid until the next call. Raises FileNotFoundError, ReplicadError."""
        return self._files.read(number, offset, size)

    def doubt(self, ids: Iterable[bytes]) -> None:
        """Blocks whose frames are damaged: here, and needed all the same when a primary offers them."""
        self._doubted.update(islice(ids, max(0, MAX_DOUBTED - len(self._doubted))))
        self._recent -= self._doubted

    def trust(self, ids: Iterable[bytes]) -> None:
        """Blocks whose frames were damaged and are no more."""
        self._doubted.difference_update(ids)

    def forget(self, ids: Iterable[bytes]) -> None:
        """Blocks that are here no more."""
        self._recent.difference_update(ids)
        self.trust(ids)

    def _append_copied(self, data: bytes, frame: Frame) -> None:
        segment, offset = self._store.append(data, [frame.checksum])
        self._catalog.add_copies([copy_of(segment, offset, data)])
        self._copy_made()

    def _copy_made(self) -> None:
        if made := self._store.take_made():
            self._catalog.add_copies([copy_of(one.segment, one.offset, one.frame) for one in made])

    def _replay(self, *, goes_on: bool = False) -> None:
        """`goes_on`: where a rebuild was cut short, perhaps behind the word that let snapshots go, and before it asked
        what followed the last seal."""
        self._finish_laying()
        head = self._catalog.head
        replay = Replay(self._store, self._catalog, self._files, anew=goes_on, has_dropped=goes_on)
        self._store.resume(replay.run())
        self._torn = replay.torn
        if self._catalog.head != head:
            self._marks.clear()  # a snapshot was found of which they know nothing

    def _finish_laying(self) -> None:
        """A compacted segment that the catalog speaks of already takes its place, if it has not yet."""
        number = self._catalog.laying
        if not number:
            return
        fresh = compacted_path(self._store.directory, number)
        if fresh.exists():
            self._disk.rename_durable(fresh, segment_path(self._store.directory, number))
        self._catalog.begin_durably()  # else what a later compaction has half copied would take its place one day
        self._catalog.set_laying(0)

    def _promise(self, names: set[bytes]) -> None:
        """A client is told that these are here."""
        self._has_promised = self._has_promised or bool(names)
        self._promised.update(islice(names, max(0, MAX_PROMISED - len(self._promised))))
        self._remember(names)

    @property
    def _forgets_promises(self) -> bool:
        """Whether there may be more promises than are kept in mind; it stays so until all of them have ended."""
        return len(self._promised) >= MAX_PROMISED

    def _check_usable(self) -> None:
        if self._broken and self._was_full:
            text = "there was no room, and that left this store in need of abort"
            raise DiskFullError(text, where=str(self._store.directory))
        if self._broken:
            raise ReplicadError("an earlier error left this store in need of abort", where=str(self._store.directory))

    def _remember(self, names: set[bytes]) -> None:
        for marks in self._marks:
            marks.add(names)
        if len(self._recent) + len(names) > RECENT_BLOCKS:
            self._recent.clear()
        self._recent |= names

    def _new_ones(self, data: Buffer, frames: list[Frame]) -> tuple[Buffer, list[Frame]]:
        """The frames of blocks that are not in the store yet, as they will lie one behind the other."""
        names = {frame.id for frame in frames}
        if len(names) == len(frames) and names <= self._under_way:
            return data, frames  # as asked for: nothing to look up
        present = self._catalog.known(list(names)) - self._doubted
        kept: list[Buffer] = []
        for frame in frames:
            if frame.id not in present:
                present.add(frame.id)
                kept.append(data[frame.offset : frame.end])
        joined = b"".join(kept)
        return joined, split_frames(joined)

    def _check_ops(self, ops: Sequence[Op]) -> None:
        named: set[bytes] = set()
        current = self._current
        for op in ops:
            if isinstance(op, Map):
                if current is None or current.file != op.file:
                    raise PeerError("sent a record with block numbers of a file that it does not name before")
            elif isinstance(op, Put):
                current = op
                check_put(op)
            else:
                current = None
            if isinstance(op, Drop):
                continue
            if len(op.ids) == ID_BYTES:
                named.add(op.ids)
            elif op.ids:
                named.update(split_ids(op.ids))
        if gone := self._catalog.forgotten([op.file for op in ops if isinstance(op, Put) and op.file]):
            raise PeerError(f"sent a record of file {min(gone)}, which was dropped and is known no more")
        for marks in self._marks:
            marks.add(named)
        if not self._forgets_promises:
            self._promised -= named
        named -= self._recent
        missing = named - self._catalog.known(list(named)) if named else named
        if missing:
            raise PeerError(f"sent a record that names {len(missing)} blocks that are not in the store")

    def _checked_commit(self, frame: Frame) -> Commit:
        try:
            commit = decode_commit(bytes(plain_payload(frame)))
        except ValueError as error:
            raise PeerError(f"sent a commit that is none: {error}") from None
        head = self.head
        if commit.parent != head.digest:
            text = f"the snapshot that was sent does not follow snapshot {head.number}, the last one here"
            raise DivergedError(text, hint="compare the heads of both sides: replicad status")
        numbers = (commit.number, commit.created_ns, commit.entries, commit.size, commit.unread)
        if commit.number <= head.number or max(numbers) > INT64:
            raise PeerError(f"sent snapshot {commit.number} after snapshot {head.number}")
        if min(numbers) < 0:
            raise PeerError("sent a commit with a number below zero")
        if commit.records != len(self._records) or commit.records_digest != records_digest(self._records):
            raise PeerError("sent a commit that does not cover the records sent before it")
        if len(commit.order) > MAX_ORDER_BYTES:
            raise PeerError(f"sent a commit with a restore order of more than {MAX_ORDER_BYTES} bytes")
        return commit


class _Breaking:
    """Around every step that appends: an error leaves the archive in need of `abort`."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive

    def __enter__(self) -> None:
        self._archive._touched = True

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is not None:
            self._archive._broken, self._archive._was_full = True, issubclass(kind, DiskFullError)


class _Mending(_Breaking):
    """The same between sessions: nothing unsealed is lost by an `abort`, so it is done at once."""

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        super().__exit__(kind)
        if kind is not None and issubclass(kind, Exception):  # any other ends the process
            with suppress(Exception):  # the first error is the one to tell; the next session tries again
                self._archive._look_anew()


def catalog_path(directory: Path) -> Path:
    """Where a store's catalog is."""
    return directory / "catalog.db"


def fresh_catalog_path(directory: Path) -> Path:
    """Where a catalog is made anew before it takes the place of the old one."""
    return directory / "catalog.new"


def no_catalog(directory: Path) -> BookDamagedError:
    """The error of a store that has none."""
    return BookDamagedError("there is no catalog", where=str(catalog_path(directory)), hint="make it: replicad rebuild")


def _open_catalog(directory: Path, client: str | None, dataset: str | None, maker: Disk | None) -> Catalog:
    """The catalog. With `maker` a new one is made, but only where there are no segments that it would have to know.

    A new one is durable at once: after a power cut an old state of it is enough to replay from, none is not."""
    path, fresh = catalog_path(directory), fresh_catalog_path(directory)
    if path.exists():
        remove(fresh)  # a rebuild was cut short, and the old one goes on: of what comes now the new one knows nothing
    elif fresh.exists() and segment_numbers(directory):
        Catalog(fresh).close()  # takes in its log; what it had not read yet is replayed
        exchange(fresh, path, directory, Disk())
    if not path.exists() and (not maker or segment_numbers(directory)):
        raise no_catalog(directory)
    catalog = Catalog(path)
    if catalog.owner is None:
        if not (maker and client and dataset) or segment_numbers(directory):
            catalog.close()
            raise BookDamagedError("says not whose it is", where=str(path), hint="rebuild it: replicad rebuild")
        catalog.set_owner(os.urandom(16), client, dataset)
        maker.sync_directory(directory)
    return catalog


def _owner(catalog: Catalog, directory: Path, client: str | None, dataset: str | None) -> Owner:
    assert catalog.owner is not None
    owner = Owner(*catalog.owner)
    if (client or owner.client, dataset or owner.dataset) != (owner.client, owner.dataset):
        text = f"belongs to dataset {owner.dataset} of {owner.client}"
        raise StoreDamagedError(text, where=str(directory), hint="move it back to where it was")
    return owner
