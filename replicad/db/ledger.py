"""Ledger: the primary's record of what every entry and block of one dataset should be.

**Owns** one database per dataset. Every row carries a number (`seq`) that says when it last changed, and for
each replica the ledger remembers the number up to which it has everything. So "what does this replica lack" is one
question, `seq > covered`, and a crash, a cut link, a second replica and a first copy are all answered by it.

A row with seq UNSETTLED was read but not yet put into any snapshot (a big file half read, a block that could not
be sent): it counts as lacking everywhere until it is settled.

**Never** changes what is expected of a block except through `record_blocks`, which is called with bytes read from a
file whose identity changed, or, while a ledger is adopted, with what a replica's record says (guarantee 4).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import msgspec

from replicad.db.database import CACHE_KIB, Database
from replicad.db.due import DueParts
from replicad.db.ledger_schema import MIGRATIONS
from replicad.db.plan import Plan
from replicad.model.entry import Kind, Meta, Put, Stamp, fitting
from replicad.model.snapshot import Head

UNSETTLED = 2**62
OUTDATED = -1
"""`covered` of a replica that was not configured while something was forgotten that it has not been told."""
ZERO = b""
"""The id of a block that is all-zero now and was not always."""
UNKNOWN_CHECKSUM = b""
"""Checksum of a block that was adopted from a replica's record: only its id is known until its bytes were read here."""

_KEEP_LOWER = "ON CONFLICT(file, seq) DO UPDATE SET number = min(number, excluded.number)"
_FIRST_FILE_BYTES = 6
"""Bytes of a new ledger's first file number: two ledgers of a dataset will hardly meet in 2**48."""
_ROOT_PARENT = 0
"""Directory number under which the root's own entry stands, with an empty name."""


class Known(NamedTuple):
    """What the ledger knows of one entry, in the order of the table's columns; the first nine are its stamp."""

    kind: int
    mode: int
    uid: int
    gid: int
    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int
    file: int
    block_bytes: int
    flags: int
    extra: bytes | None
    seq: int


class Extra(msgspec.Struct, frozen=True, array_like=True):
    """What few entries have."""

    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    target: bytes = b""
    device: int = 0


class EntryRow(NamedTuple):
    """One entry to be recorded, whatever blocks `put` lists; `stamp` is the one it was read under."""

    put: Put
    stamp: Stamp
    seq: int


class BlockRow(NamedTuple):
    """One block of a file: `id` is ZERO when all-zero."""

    file: int
    number: int
    id: bytes
    checksum: bytes
    seq: int


@dataclass(frozen=True, slots=True)
class Standing:
    """How far one replica has come. Rows with a seq up to `covered` are in its history, whose end is `head`.

    `sent` and `sent_covered` are what the commit under way will make of that; after a cut link the replica's own
    head tells whether it arrived.
    """

    covered: int = 0
    head: Head = field(default_factory=Head)
    sent_covered: int = 0
    sent: Head = field(default_factory=Head)


@dataclass(frozen=True, slots=True)
class Totals:
    """How much the dataset holds."""

    entries: int
    size: int


_encoder = msgspec.msgpack.Encoder()
_extra_decoder = msgspec.msgpack.Decoder(Extra)

_STAMP_COLUMNS = "kind, mode, uid, gid, device, inode, size, mtime_ns, ctime_ns"
ENTRY_COLUMNS = f"{_STAMP_COLUMNS}, file, block_bytes, flags, extra, seq"
_MARKS = ",".join("?" * 14)


def split(path: bytes) -> tuple[bytes, bytes]:
    """Directory and name of a path; the root stands in no directory and has no name."""
    directory, _, name = path.rpartition(b"/")
    return directory, name


def join(directory: bytes, name: bytes) -> bytes:
    """The inverse of `split` for everything but the root."""
    return directory + b"/" + name if directory else name


def remedy(path: Path) -> str:
    """What to do about the damaged ledger of this name."""
    return (
        f"stop the daemon, type replicad rebuild --ledger {path.stem} and start it again:"
        " the replica has the record, nothing is sent twice"
    )


class Ledger:
    """One dataset's ledger. Belongs to one thread at a time."""

    def __init__(self, path: Path, *, readonly: bool = False, cache_kib: int = CACHE_KIB) -> None:
        """Open, or create unless `readonly`. Raises BookDamagedError, DiskFullError, LockedError, ReplicadError."""
        self.path = path
        self._db = Database(path, MIGRATIONS, readonly=readonly, remedy=remedy(path), cache_kib=cache_kib)
        self._directories: dict[bytes, int] = {}
        self.due = DueParts(self._db)
        self.plan = Plan(self._db)

    @property
    def database(self) -> Database:
        """For questions that stand in a module of their own (db/look_up.py)."""
        return self._db

    def close(self) -> None:
        """Close; an open transaction is rolled back."""
        self._db.close()

    @property
    def has_moved(self) -> bool:
        """Whether an operator moved the file away while it was open."""
        return self._db.has_moved

    # transactions

    def begin(self, *, durable: bool = False) -> None:
        """Start collecting changes; `durable`: once committed they survive a power cut."""
        self._db.begin(durable=durable)

    def commit(self) -> None:
        """Keep what was collected."""
        self._db.commit()

    def rollback(self) -> None:
        """Forget what was collected."""
        self._db.rollback()
        self._directories.clear()
        self.due.expect_numbers(range(0))

    # single values

    def get(self, key: str) -> str | int | bytes | None:
        """A single remembered value, None when absent."""
        value: str | int | bytes | None = self._db.value("SELECT value FROM meta WHERE key = ?", (key,))
        return value

    def put(self, key: str, value: str | int | bytes | None) -> None:
        """Remember a single value; None forgets it."""
        if value is None:
            self._db.execute("DELETE FROM meta WHERE key = ?", (key,))
        else:
            self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def next_file(self, count: int = 1) -> int:
        """Reserve `count` file numbers; the first of them. Numbers are never reused.

        A new ledger begins at a random number: a replica may hold files of a ledger that was lost, and a number that
        stood for one of them must not come to stand for another file.
        """
        first = int(self.get("next_file") or int.from_bytes(os.urandom(_FIRST_FILE_BYTES), "big") + 1)
        self.put("next_file", first + count)
        self.due.expect_numbers(range(first, first + count))
        return first

    # reading entries

    def page(self, directory: bytes, after: bytes, limit: int) -> dict[bytes, tuple[int, ...]]:
        """Stamps of up to `limit` entries directly in `directory` whose names sort after `after`, by name."""
        number = self._directory(directory, create=False)
        if number is None:
            return {}
        rows = self._db.all(
            f"SELECT name, {_STAMP_COLUMNS} FROM entry WHERE directory = ? AND name > ? ORDER BY name LIMIT ?",
            (number, after, limit),
        )
        return {row[0]: row[1:] for row in rows}

    def entry(self, path: bytes) -> tuple[int, ...] | None:
        """The stamp of the entry at `path`, None when there is none."""
        known = self.known(path)
        return known[:9] if known else None

    def known(self, path: bytes) -> Known | None:
        """All that is recorded of the entry at `path`, None when there is none."""
        directory, name = split(path)
        number = self._directory(directory, create=False) if path else _ROOT_PARENT
        if number is None:
            return None
        row = self._db.one(f"SELECT {ENTRY_COLUMNS} FROM entry WHERE directory = ? AND name = ?", (number, name))
        return Known._make(row) if row else None

    def same_content(self, stamp: Stamp) -> Known | None:
        """A recorded regular file with exactly this identity, wherever it stands: the same bytes, not rewritten."""
        return self.same_contents([stamp]).get(stamp[4:])

    def same_contents(self, stamps: Iterable[Stamp]) -> dict[tuple[int, ...], Known]:
        """The same of all of these that have one, by the last five fields of the stamp: the identity."""
        rows = self._db.each(
            f"SELECT {ENTRY_COLUMNS} FROM entry WHERE file > 0 AND device = ? AND inode = ? AND size = ?"
            " AND mtime_ns = ? AND ctime_ns = ? LIMIT 1",
            [stamp[4:] for stamp in stamps],
        )
        return {row[4:9]: Known._make(row) for row in rows}

    def was_elsewhere(self, stamp: Stamp) -> bool:
        """Whether a regular file with this inode, size and modification time is recorded, wherever it stands."""
        found = self._db.value(
            "SELECT 1 FROM entry WHERE file > 0 AND inode = ? AND device = ? AND size = ? AND mtime_ns = ? LIMIT 1",
            (stamp.inode, stamp.device, stamp.size, stamp.mtime_ns),
        )
        return found is not None

    def has_files(self) -> bool:
        """Whether any regular file is recorded, with a name or without."""
        return self._db.value("SELECT 1 FROM entry WHERE file > 0 UNION SELECT 1 FROM unnamed LIMIT 1") is not None

    def same_inode(self, stamp: Stamp) -> list[tuple[bytes, Known]]:
        """Recorded regular files with this stamp's inode, rewritten since or not, each with a path of it."""
        rows = self._db.all(
            f"SELECT d.path, e.name, {ENTRY_COLUMNS} FROM entry e JOIN directory d ON d.id = e.directory"
            " WHERE e.file > 0 AND e.inode = ? AND e.device = ?",
            (stamp.inode, stamp.device),
        )
        return [(join(row[0], row[1]), Known._make(row[2:])) for row in rows]

    def names(self, file: int, inode: int) -> list[bytes]:
        """Every recorded path of the file with this number and inode."""
        rows = self._db.all(
            "SELECT d.path, e.name FROM entry e JOIN directory d ON d.id = e.directory"
            " WHERE e.file > 0 AND e.inode = ? AND e.file = ?",
            (inode, file),
        )
        return [join(directory, name) for directory, name in rows]

    def below(self, path: bytes) -> Iterator[bytes]:
        """Every recorded path below `path`, children before parents."""
        low, high = (path + b"/", path + b"0") if path else (b"", b"\xff" * 4096)
        rows = self._db.rows(
            "SELECT id, path FROM directory WHERE path = ? OR (path >= ? AND path < ?) ORDER BY path DESC",
            (path, low, high),
        )
        for number, directory in rows:
            for (name,) in self._db.rows("SELECT name FROM entry WHERE directory = ? ORDER BY name DESC", (number,)):
                yield join(directory, name)

    def has_entries(self) -> bool:
        """Whether anything is recorded."""
        return self._db.value("SELECT 1 FROM entry LIMIT 1") is not None

    def list_lacking(self, covered: int) -> None:
        """Note which entries a replica that has everything up to `covered` may lack; `listed` gives them."""
        self._db.execute("DROP TABLE IF EXISTS temp.lacking")
        self._db.execute("CREATE TEMP TABLE lacking(number INTEGER PRIMARY KEY, directory INTEGER, name BLOB)")
        self._db.execute(
            "INSERT INTO temp.lacking(directory, name) SELECT e.directory, e.name FROM entry e"
            " LEFT JOIN directory d ON d.id = e.directory WHERE e.seq > ? ORDER BY d.path, e.name",
            (covered,),
        )

    def listed(self, after: int, limit: int) -> list[tuple[int, bytes, Known]]:
        """The next of the noted entries, parents before children: a number to go on after, path, what is recorded."""
        rows = self._db.all(
            f"SELECT l.number, d.path, e.name, {ENTRY_COLUMNS} FROM temp.lacking l"
            " JOIN entry e ON e.directory = l.directory AND e.name = l.name"
            " LEFT JOIN directory d ON d.id = l.directory WHERE l.number > ? ORDER BY l.number LIMIT ?",
            (after, limit),
        )
        return [(row[0], join(row[1], row[2]) if row[1] is not None else b"", Known._make(row[3:])) for row in rows]

    def lacking_drops(self, covered: int, before: bytes, limit: int) -> list[bytes]:
        """Up to `limit` dropped paths sorting before `before` that a replica which has everything up to `covered` may
        still have, children first."""
        rows = self._db.all(
            "SELECT path FROM gone WHERE seq > ? AND path < ? ORDER BY path DESC LIMIT ?", (covered, before, limit)
        )
        return [path for (path,) in rows]

    def lacking_blocks(self, file: int, covered: int, after: int, limit: int) -> list[BlockRow]:
        """Up to `limit` blocks of a file that a replica that has everything up to `covered` may not have, numbers above
        `after`, ascending."""
        rows = self._db.all(
            "SELECT file, number, id, checksum, seq FROM block WHERE file = ? AND number > ? AND seq > ?"
            " ORDER BY number LIMIT ?",
            (file, after, covered, limit),
        )
        return list(map(BlockRow._make, rows))

    def blocks(self, file: int, first: int, end: int) -> dict[int, BlockRow]:
        """Recorded blocks with first <= number < end."""
        rows = self._db.all(
            "SELECT file, number, id, checksum, seq FROM block WHERE file = ? AND number >= ? AND number < ?",
            (file, first, end),
        )
        return {row[1]: BlockRow._make(row) for row in rows}

    def stamped(self) -> int:
        """The highest number that any settled row carries: what a replica must have acknowledged to lack nothing."""
        return int(self.get("stamped") or 0)

    def lacks_something(self, covered: int) -> bool:
        """Whether a replica that has everything up to `covered` may lack entries recorded here."""
        return self.stamped() > covered or self.get("unsettled") is not None

    def take_seq(self) -> int:
        """A number for rows written from now on, above every number that a row or a replica's `covered` may have."""
        seq = max(self.stamped(), int(self.get("seq") or 0)) + 1
        self.put("seq", seq)
        return seq

    def totals(self) -> Totals:
        """Entries and bytes of the dataset as recorded; files that were never read to their end are not counted."""
        # the table is read as it lies: of all its rows an index is no help
        query = "SELECT count(*), coalesce(sum(CASE WHEN file > 0 THEN size END), 0) FROM entry WHERE +size >= 0"
        entries, size = self._db.one(query) or (0, 0)
        return Totals(int(entries), int(size))

    def count(self) -> int:
        """Entries as recorded; their bytes would take a look at each of them."""
        return int(self._db.value("SELECT count(*) FROM entry"))

    # writing entries

    def record_entries(self, rows: Sequence[EntryRow]) -> None:
        """Make these entries what the ledger knows. A path that was dropped before counts as present again.

        What was recorded and not verified since is due (`due`)."""
        self.due.mark_entries(rows, self._directory_of)
        self._db.insert(
            f"INSERT OR REPLACE INTO entry(directory, name, {ENTRY_COLUMNS})",
            "(?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
            [self._entry_values(row) for row in rows],
        )
        if self._any_gone():
            self._db.executemany("DELETE FROM gone WHERE path = ?", [(row.put.path,) for row in rows])
        self._stamp(max((row.seq for row in rows if row.seq != UNSETTLED), default=0))

    def record_blocks(self, rows: Sequence[BlockRow]) -> None:
        """Make these blocks what the ledger expects."""
        self.due.mark_blocks(rows)
        self._db.insert("INSERT OR REPLACE INTO block", "(?,?,?,?,?)", rows)

    def cut(self, file: int, end: int, seq: int) -> None:
        """Forget blocks from number `end` on: the file became shorter.

        That it was so short is remembered: a replica that never hears of it, since the file grows again before its
        next snapshot, still has to give up what it knows from there on (`cut_from`).
        """
        if self._db.value("SELECT 1 FROM block WHERE file = ? AND number >= ? LIMIT 1", (file, end)):
            self._db.execute("DELETE FROM block WHERE file = ? AND number >= ?", (file, end))
            self._db.execute(f"INSERT INTO cut VALUES (?, ?, ?) {_KEEP_LOWER}", (file, seq, end))

    def cut_from(self, file: int, covered: int) -> int | None:
        """The block from which on a replica that has everything up to `covered` may know blocks that are no more.

        Of the blocks from there on it lacks every one that is recorded: each is younger than the cut.
        """
        found: int | None = self._db.value("SELECT min(number) FROM cut WHERE file = ? AND seq > ?", (file, covered))
        return found

    def settle(self, file: int, seq: int) -> None:
        """Put the file's unsettled blocks into snapshot `seq`."""
        self._db.execute("UPDATE block SET seq = ? WHERE file = ? AND seq = ?", (seq, file, UNSETTLED))
        self._move_cuts(file, UNSETTLED - 1, seq)
        self._stamp(seq)

    def unsettle(self, path: bytes, file: int, covered: int) -> None:
        """This entry, and its blocks above `covered`, could not be sent: they stay lacking."""
        directory, name = split(path)
        number = self._directory(directory, create=False) if path else _ROOT_PARENT
        self._db.execute("UPDATE entry SET seq = ? WHERE directory = ? AND name = ?", (UNSETTLED, number, name))
        if file:
            self._db.execute("UPDATE block SET seq = ? WHERE file = ? AND seq > ?", (UNSETTLED, file, covered))
            self._move_cuts(file, covered, UNSETTLED)
        self.put("unsettled", 1)

    def settle_entry(self, path: bytes, file: int, seq: int) -> None:
        """This entry, or blocks of it, could not be sent before: what was unsettled of it is in snapshot `seq` now."""
        directory, name = split(path)
        number = self._directory(directory, create=False) if path else _ROOT_PARENT
        of_entry = "directory = ? AND name = ? AND seq = ?"
        self._db.execute(f"UPDATE entry SET seq = ? WHERE {of_entry}", (seq, number, name, UNSETTLED))
        self.settle(file, seq)

    def note_settled(self) -> None:
        """All that a replica lacked was tried: if nothing is unsettled by that, nothing lacks above its number."""
        if self._db.value("SELECT 1 FROM entry WHERE seq = ? AND size >= 0 LIMIT 1", (UNSETTLED,)) is None:
            self.put("unsettled", None)

    def drop(self, paths: Sequence[bytes], seq: int) -> None:
        """These entries exist no more. A file that no entry names any longer is set aside."""
        keys = [(self._directory(split(path)[0], create=True), split(path)[1]) for path in paths]
        dropped = self._db.each(f"DELETE FROM entry WHERE directory = ? AND name = ? RETURNING {ENTRY_COLUMNS}", keys)
        self._db.executemany("INSERT OR REPLACE INTO gone VALUES (?, ?)", [(path, seq) for path in paths])
        self.set_aside([known for known in map(Known._make, dropped) if known.file > 0])
        for (path,) in self._db.each("SELECT path FROM directory WHERE path = ?", [(path,) for path in paths]):
            self._forget_directory(path)
        self._stamp(seq)

    def set_aside(self, files: Sequence[Known]) -> None:
        """Keep what is recorded of those of these files that no entry names any more (db/unnamed.py)."""
        question = "SELECT file FROM entry WHERE file > 0 AND inode = ? AND file = ? LIMIT 1"
        named = {file for (file,) in self._db.each(question, [(known.inode, known.file) for known in files])}
        walk = int(self.get("walks") or 0) if files else 0
        for known in {known.file: known for known in files if known.file not in named}.values():
            self.due.forget(known.file)
            if known.size < 0:  # it was never read to its end
                self._db.execute("DELETE FROM block WHERE file = ?", (known.file,))
                self._db.execute("DELETE FROM cut WHERE file = ?", (known.file,))
            else:
                self._db.execute(
                    f"INSERT OR REPLACE INTO unnamed({ENTRY_COLUMNS}, walk) VALUES ({_MARKS}, ?)", (*known, walk)
                )

    # replicas

    def standing(self, replica: str) -> Standing:
        """How far `replica` has come; nothing at all when it is new."""
        row = self._db.one(
            "SELECT covered, head, head_digest, sent_covered, sent, sent_digest FROM replica WHERE name = ?", (replica,)
        )
        if row is None:
            return Standing()
        return Standing(row[0], Head(row[1], row[2]), row[3], Head(row[4], row[5]))

    def set_sent(self, replica: str, head: Head, covered: int) -> None:
        """Remember, before a commit is sent, what the replica will have if it arrives."""
        self._set_standing(replica, replace(self.standing(replica), sent=head, sent_covered=covered))

    def set_acked(self, replica: str) -> None:
        """What was sent last has arrived."""
        now = self.standing(replica)
        self._set_standing(replica, Standing(now.sent_covered, now.sent, now.sent_covered, now.sent))

    def restart(self, replica: str, head: Head) -> None:
        """Count everything as lacking on `replica`, whose history goes on from `head`.

        It may know more than this ledger ever did: blocks of the recorded files, all of which it is told anew, and
        files whose numbers must not come to stand for others.
        """
        self._set_standing(replica, Standing(0, head, 0, head))
        if head.number:
            rows = "SELECT DISTINCT file, 1, 0 FROM entry WHERE file > 0"
            self._db.execute(f"INSERT INTO cut {rows} {_KEEP_LOWER}")
            self.put("next_file", None)

    def take_over(self, replica: str, head: Head, covered: int) -> None:
        """Count `replica`, whose history ends with `head`, as having everything up to `covered`: all that was adopted
        from it. Its older files, which are not recorded here, keep their numbers to themselves."""
        self._set_standing(replica, Standing(covered, head, covered, head))
        self.put("next_file", None)

    def _set_standing(self, replica: str, now: Standing) -> None:
        self._db.execute(
            "INSERT OR REPLACE INTO replica VALUES (?,?,?,?,?,?,?)",
            (
                replica, now.covered, now.head.number, now.head.digest,
                now.sent_covered, now.sent.number, now.sent.digest,
            ),
        )  # fmt: skip

    def forget_drops(self, replicas: Sequence[str]) -> None:
        """Forget dropped paths and cut files that every one of these replicas knows to be dropped and cut; any other
        replica that does not is OUTDATED."""
        oldest = min((self.standing(name).covered for name in replicas), default=0)
        for table in ("gone", "cut"):
            known = f"FROM {table} WHERE seq <= ?"
            outdated = f"covered = {OUTDATED} WHERE covered < (SELECT max(seq) {known})"
            self._db.execute(f"UPDATE replica SET {outdated}", (oldest,))
            self._db.execute(f"DELETE {known}", (oldest,))

    # upkeep

    def verify(self) -> list[str]:
        """Read every page; what is wrong, in words."""
        return self._db.verify()

    def _stamp(self, seq: int) -> None:
        if seq > self.stamped():
            self.put("stamped", seq)

    def _move_cuts(self, file: int, above: int, seq: int) -> None:
        """Let the file's cuts above a number carry `seq`, as its blocks do."""
        number = self.cut_from(file, above)
        if number is not None:
            self._db.execute("DELETE FROM cut WHERE file = ? AND seq > ?", (file, above))
            self._db.execute(f"INSERT INTO cut VALUES (?, ?, ?) {_KEEP_LOWER}", (file, seq, number))

    def _any_gone(self) -> bool:
        return self._db.value("SELECT 1 FROM gone LIMIT 1") is not None

    def _directory_of(self, path: bytes) -> int:
        """Number of the directory that an entry stands in; a new one when there is none."""
        number = self._directory(split(path)[0], create=True) if path else _ROOT_PARENT
        assert number is not None, "it was created"
        return number

    def _directory(self, path: bytes, *, create: bool) -> int | None:
        number = self._directories.get(path)
        if number is None:
            number = self._db.value("SELECT id FROM directory WHERE path = ?", (path,))
            if number is None:
                if not create:
                    return None
                self._db.execute("INSERT INTO directory(path) VALUES (?)", (path,))
                number = self._db.value("SELECT last_insert_rowid()")
            if len(self._directories) >= _DIRECTORY_CACHE:
                self._directories.clear()
            self._directories[path] = int(number)
        return int(number)

    def _forget_directory(self, path: bytes) -> None:
        self._directories.pop(path, None)
        self._db.execute(
            "DELETE FROM directory WHERE path = ? AND NOT EXISTS (SELECT 1 FROM entry WHERE directory = directory.id)",
            (path,),
        )

    def _entry_values(self, row: EntryRow) -> tuple[int | bytes | None, ...]:
        put = row.put
        name, number = split(put.path)[1], self._directory_of(put.path)
        extra = None
        if put.meta.xattrs or put.target or put.device:
            extra = _encoder.encode(Extra(put.meta.xattrs, put.target, put.device))
        return (number, name, *row.stamp, put.file, put.block_bytes, put.flags, extra, row.seq)


_DIRECTORY_CACHE = 20_000
"""Directory numbers kept in memory: a few MiB at most."""


def put_of(path: bytes, known: Known) -> Put:
    """The `Put` that the ledger's entry amounts to, without blocks and what is `left_out`."""
    extra = _extra_decoder.decode(known.extra) if known.extra else Extra()
    return Put(
        path=path,
        kind=Kind(known.kind),
        meta=Meta(known.mode, known.uid, known.gid, known.mtime_ns, fitting(extra.xattrs)[0]),
        size=known.size if known.file else 0,
        file=known.file,
        block_bytes=known.block_bytes,
        flags=known.flags,
        target=extra.target,
        device=extra.device,
    )


def left_out(known: Known) -> str:
    """What no record has room for of an entry that was recorded before there was a limit, in words; "" for nothing."""
    return fitting(_extra_decoder.decode(known.extra).xattrs)[1] if known.extra else ""


def stamp_of(known: Known) -> Stamp:
    """The stamp under which the ledger's entry was read."""
    return Stamp._make(known[:9])
