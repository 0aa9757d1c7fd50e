"""Rescue: the files of a replicad store without replicad: Python 3.8 or newer alone, and the program `zstd`.

    python3 rescue.py [STORE] --list | [--snapshot NUMBER] [--path GLOB]... TARGET

**Owns** nothing: it stands alone, and a copy lies in every store. docs/FORMATS.md says what the bytes mean.
**Never** writes into the store, follows a symlink, or writes a block's byte before its BLAKE3 id has proven it.
The idea: look at every frame's header, replay the records up to a snapshot into a temporary SQLite database, then
fetch, prove and write block by block. What is missing or damaged is named; everything else is written.
"""

from __future__ import annotations

import argparse
import errno
import fnmatch
import marshal
import os
import re
import shutil
import sqlite3
import stat
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque, namedtuple
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import suppress
from itertools import accumulate, chain, islice
from typing import Any, NoReturn

VERSION, HEAD_BYTES = 1, 64
HEADER, BLOCK, RECORD, COMMIT, SEAL, PAD, RETENTION, UNCERTAIN = 1, 2, 3, 4, 5, 6, 7, 103  # the last: a record
LARGEST = {HEADER: 65536, BLOCK: 1 << 20, RECORD: 4 << 20, COMMIT: 65536, SEAL: 65536, PAD: 4096, RETENTION: 65536}
FILE, DIRECTORY, SYMLINK = 1, 2, 3
PUT = [1, b"", FILE, [], 0, 0, 0, 0, b"", 0, [], b"", []]  # what a put says that ends early
KINDS = ("", "files", "directories", "symlinks", "fifos", "devices", "devices", "sockets")
NODES = {4: stat.S_IFIFO, 5: stat.S_IFCHR, 6: stat.S_IFBLK, 7: stat.S_IFSOCK}
JOB_BYTES, JOB_FRAMES = 1 << 20, 1024  # what is proven at once: more does not fit into a processor's cache
Frame = namedtuple("Frame", "segment offset end type codec stored plain id")  # by its header; the id proves the rest
Snapshot = namedtuple("Snapshot", "number created_ns complete entries size unread records lost")
problems: list[str] = []  # what is missing or damaged, as it was said; any makes the exit code 1


def say(text: str, *, is_problem: bool = False) -> None:
    if is_problem:
        problems.append(text)
    print(text, file=sys.stderr)


def usage(text: str) -> NoReturn:
    say(f"rescue: {text}")
    raise SystemExit(2)


# BLAKE3 of many payloads at once: each is cut into pieces of 1024 bytes, and the pieces of all of them lie side by side
# in large integers, 64 bits for each 32-bit word, so that Python computes hundreds of them with one operation.
IV = (0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19)
QUARTERS = ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15),
            (0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14))  # fmt: skip
ORDER = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)
START, END, PARENT, ROOT = 1, 2, 4, 8


def blake3(payloads: list[bytes]) -> list[bytes]:
    """The BLAKE3-256 of each payload."""
    counts = [max(1, -(-len(data) // 1024)) for data in payloads]
    words = memoryview(b"".join(data.ljust(1024 * n, b"\0") for data, n in zip(payloads, counts))).cast("I")
    sizes = [min(1024, len(data) - 1024 * i) for data, n in zip(payloads, counts) for i in range(n)]
    roots = [ROOT * (n == 1) for n in counts for _ in range(n)]
    ones, number = _spread([1] * len(sizes)), _spread([i for n in counts for i in range(n)])
    state = [word * ones for word in IV]
    for at in range(0, max(1, *sizes), 64):
        marks = [START * (at == 0) | (END | root) * (size <= at + 64) for size, root in zip(sizes, roots)]
        length = _spread([min(64, max(0, size - at)) for size in sizes])
        message = [_column(words, at // 4 + i, 256) for i in range(16)]
        after = _compressed(state, message, number, length, _spread(marks), ones)
        taken = 0xFFFFFFFF * _spread([size > at or at == 0 for size in sizes])
        state = [old ^ ((old ^ new) & taken) for old, new in zip(state, after)]
    digests = iter(_digests(state, len(sizes)))
    trees = [list(islice(digests, n)) for n in counts]
    while any(len(tree) > 1 for tree in trees):
        pairs = [(a + b, len(tree) == 2) for tree in trees for a, b in zip(tree[::2], tree[1::2])]
        words, ones = memoryview(b"".join(pair for pair, _ in pairs)).cast("I"), _spread([1] * len(pairs))
        flags = _spread([PARENT | ROOT * is_root for _, is_root in pairs])
        message = [_column(words, i, 16) for i in range(16)]
        state = _compressed([word * ones for word in IV], message, 0, 64 * ones, flags, ones)
        digests = iter(_digests(state, len(pairs)))
        trees = [[*islice(digests, len(tree) // 2), *tree[len(tree) & ~1 :]] for tree in trees]
    return [tree[0] for tree in trees]


def _compressed(state: list[int], message: list[int], number: int, length: int, flags: int, ones: int) -> list[int]:
    mask = 0xFFFFFFFF * ones
    v = [*state, *(word * ones for word in IV[:4]), number, 0, length, flags]
    for _ in range(7):
        for i, (a, b, c, d) in enumerate(QUARTERS):
            va, vb, vc, vd = v[a], v[b], v[c], v[d]
            for word, first, second in ((message[2 * i], 16, 12), (message[2 * i + 1], 8, 7)):
                va = (va + vb + word) & mask
                vd ^= va
                vd = (vd >> first | vd << 32 - first) & mask
                vc = (vc + vd) & mask
                vb ^= vc
                vb = (vb >> second | vb << 32 - second) & mask
            v[a], v[b], v[c], v[d] = va, vb, vc, vd
        message = [message[i] for i in ORDER]
    return [v[i] ^ v[i + 8] for i in range(8)]


def _spread(values: list[Any]) -> int:
    return int.from_bytes(struct.pack(f"<{len(values)}Q", *values), "little")


def _column(words: memoryview, first: int, step: int) -> int:
    column = words[first::step]
    lanes = bytearray(8 * len(column))
    memoryview(lanes).cast("I")[::2] = column
    return int.from_bytes(lanes, "little")


def _digests(state: list[int], count: int) -> list[bytes]:
    out = bytearray(32 * count)
    for i, word in enumerate(state):
        memoryview(out).cast("I")[i::8] = memoryview(word.to_bytes(8 * count, "little")).cast("I")[::2]
    return [bytes(out[at : at + 32]) for at in range(0, len(out), 32)]


SIZED = {0xC4: (1, "bytes"), 0xC5: (2, "bytes"), 0xC6: (4, "bytes"), 0xDC: (2, "list"), 0xDD: (4, "list"),
         0xCC: (1, "int"), 0xCD: (2, "int"), 0xCE: (4, "int"), 0xCF: (8, "int"), 0xD0: (1, "signed"),
         0xD1: (2, "signed"), 0xD2: (4, "signed"), 0xD3: (8, "signed"), 0xD9: (1, "str")}  # fmt: skip
"""msgpack's first byte: how many bytes of length (or value) follow, and of what."""
SIMPLE = {0xC0: None, 0xC2: False, 0xC3: True}


def unpacked(data: bytes, at: int = 0) -> tuple[Any, int]:
    """The msgpack value at a place, and where it ends."""
    first, at = data[at], at + 1
    if first < 0x80 or first >= 0xE0:
        return first - 256 * (first >= 0xE0), at
    if first in SIMPLE:
        return SIMPLE[first], at
    if 0x90 <= first < 0xC0:
        kind, size = ("list", first & 15) if first < 0xA0 else ("str", first & 31)
    else:
        width, kind = SIZED[first]
        size, at = int.from_bytes(data[at : at + width], "big", signed=kind == "signed"), at + width
    if kind == "list":
        values = []
        for _ in range(size):
            value, at = unpacked(data, at)
            values.append(value)
        return values, at
    if kind in ("int", "signed"):
        return size, at
    return (data[at : at + size] if kind == "bytes" else data[at : at + size].decode()), at + size


class Segment:
    def __init__(self, directory: str, number: int) -> None:
        self.number = number
        self.file = open(f"{directory}/segments/{number:08d}.seg", "rb", buffering=0)  # noqa: SIM115  (closed with it)
        self.size = os.fstat(self.file.fileno()).st_size

    def read(self, at: int, size: int) -> bytes:
        """Bytes; where the disk gives errors such as no frame has, and no place that was never written."""
        try:
            return os.pread(self.file.fileno(), size, at)
        except OSError:
            return b"\xff" * min(size, self.size - at)

    def frame(self, at: int) -> Frame | None:
        """The frame whose header stands at a place, when one does."""
        head = self.read(at, HEAD_BYTES)
        if len(head) < HEAD_BYTES or head[:4] != b"RPD1":
            return None
        type_, codec, reserved, stored, plain, id_ = struct.unpack("<BBHII32s", head[20:])
        frame = Frame(self.number, at, at + HEAD_BYTES + stored, type_, codec, stored, plain, id_)
        is_sound = codec < 2 and not reserved and plain <= LARGEST.get(type_, -1) and frame.end <= self.size
        is_sound = is_sound and (stored <= plain + 1024 if codec else stored == plain)
        return frame if is_sound and not (type_ == PAD and any(self.read(frame.end - stored, stored))) else None

    def search(self, at: int) -> Frame | None:
        """The next frame that seems to begin at or behind a place."""
        while at < self.size:
            for match in re.finditer(b"RPD1", self.read(at, 4099)):
                if frame := self.frame(at + match.start()):
                    return frame
            at += 4096
        return None

    def leads_to_pad(self, frame: Frame | None) -> bool:
        """Whether frames lead to a pad that ends as a segment's pads do; else a file of the dataset is a store."""
        while frame and frame.type not in (PAD, HEADER):
            frame = self.frame(frame.end)
        return bool(frame and frame.type == PAD and frame.end % 4096 == 0)

    def is_torn(self, at: int) -> bool:
        """Whether what begins here is a write that a crash cut short, of which nobody was told that it was stored."""
        rest = self.read(at, HEAD_BYTES + LARGEST[RECORD])
        stored = struct.unpack("<I", rest[24:28])[0] if len(rest) >= HEAD_BYTES and rest[:4] == b"RPD1" else 0
        unwritten = any(not any(rest[i : i + 512]) for i in range(-at % 512, len(rest) - 511, 512))
        return len(rest) < HEAD_BYTES + stored or unwritten


def unpack(directory: str, frames: list[Frame]) -> list[Any]:
    """Payloads, proven to have their ids; a text says why one cannot be had. Runs in processes of its own."""
    found: list[Any] = []
    for frame in frames:
        try:
            found.append(Segment(directory, frame.segment).read(frame.end - frame.stored, frame.stored))
        except FileNotFoundError:
            found.append("no frame of it is in the store")
    packed = [i for i, frame in enumerate(frames) if frame.codec and isinstance(found[i], bytes)]
    for i, data in zip(packed, decompressed([(found[i], frames[i].plain) for i in packed]) if packed else ()):
        found[i] = data or f"segment {frames[i].segment} at byte {frames[i].offset}: cannot be decompressed"
    whole = [i for i, data in enumerate(found) if isinstance(data, bytes)]
    for i, digest in zip(whole, blake3([found[i] for i in whole]) if whole else ()):
        if digest != frames[i].id:
            found[i] = f"segment {frames[i].segment} at byte {frames[i].offset}: is not what its id says"
    return found


def decompressed(packed: list[tuple[bytes, int]]) -> list[bytes | None]:
    """zstd frames of known plain sizes, through one process; by halves where one of them is damaged."""
    total = sum(size for _, size in packed)
    with tempfile.TemporaryFile() as stdin:
        stdin.write(b"".join(data for data, _ in packed))
        stdin.seek(0)
        with subprocess.Popen(["zstd", "-dcq"], stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as zstd:
            assert zstd.stdout
            out = zstd.stdout.read(total + 1)  # never more, whatever a frame would expand to
    if zstd.returncode == 0 and len(out) == total:
        return [out[end - size : end] for end, (_, size) in zip(accumulate(size for _, size in packed), packed)]
    half = len(packed) // 2
    return decompressed(packed[:half]) + decompressed(packed[half:]) if half else [None] * len(packed)


class Store:
    """What the segments say: frames, snapshots, and the entries of one of them, in a temporary database."""

    def __init__(self, directory: str) -> None:
        self.directory, self.name, self.owner = directory, "?", b""
        try:
            self.workers: Executor = ProcessPoolExecutor()
        except (OSError, NotImplementedError):  # a rescue system without shared memory: slower, and right
            self.workers = ThreadPoolExecutor(1)
        self.db = sqlite3.connect("", isolation_level=None)
        self.db.executescript(
            "PRAGMA journal_mode = off; PRAGMA synchronous = off; PRAGMA cache_size = -64000;"
            "CREATE TABLE frame(n INTEGER PRIMARY KEY, segment, offset, end, type, codec, stored, plain, id);"
            "CREATE TABLE entry(path PRIMARY KEY, kind, size, file, meta, wanted) WITHOUT ROWID;"
            "CREATE TABLE part(file, number, id, PRIMARY KEY(file, number)) WITHOUT ROWID; BEGIN;"
        )
        self.gaps: list[tuple[int, int]] = []  # (segment, offset) of places where something is missing
        self.last_commit, self.last_file = (0, 0), 0
        self.dropped: set[int] = set()  # snapshots that retention let go: what no other one needs may be gone
        self.scan()
        if self.db.execute("SELECT 1 FROM frame WHERE codec LIMIT 1").fetchone() and not shutil.which("zstd"):
            usage("this store is compressed, and the program zstd is not there: install the package zstd")
        self.snapshots = list(self.replay())

    def gap(self, segment: int, offset: int, text: str) -> None:
        self.gaps.append((segment, offset))
        say(f"note: segment {segment} at byte {offset}: {text}")

    def frames(self, where: str, *values: Any) -> Iterator[tuple[int, Frame]]:
        return ((n, Frame(*frame)) for n, *frame in self.db.execute(f"SELECT * FROM frame WHERE {where}", values))

    def fetch(self, wanted: Iterable[tuple[Any, Frame]]) -> Iterator[tuple[Any, Any]]:
        """Proven payloads in the order asked, each with its frame's tag; a text says why there is none."""
        jobs: deque[tuple[list[Any], Future[list[Any]]]] = deque()
        tags, frames, size = [], [], 0
        for tag, frame in chain(wanted, [(None, None)]):
            if frame:
                tags.append(tag)
                frames.append(frame)
                size += frame.plain
            if not frame or len(frames) >= JOB_FRAMES or size >= JOB_BYTES:
                jobs.append((tags, self.workers.submit(unpack, self.directory, frames)))
                tags, frames, size = [], [], 0
            while len(jobs) > (4 * (os.cpu_count() or 1) if frame else 0):
                done, future = jobs.popleft()
                yield from zip(done, future.result())

    def scan(self) -> None:
        """Look at every header, and remember which frames stand where."""
        numbers = {int(one[:8]) for one in os.listdir(f"{self.directory}/segments") if re.fullmatch(r"\d{8}\.seg", one)}
        for number in range(1, max(numbers, default=0) + 1):
            if number in numbers:
                rows = self.scan_segment(Segment(self.directory, number), is_last=number == max(numbers))
                self.db.executemany("INSERT INTO frame VALUES(NULL, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
            else:
                self.gap(number, 0, "the segment is missing")
        self.db.execute("CREATE INDEX frame_id ON frame(id)")

    def scan_segment(self, segment: Segment, is_last: bool) -> Iterator[Frame]:
        """Frames that may matter: blocks, which their ids prove, wherever they stand; others that are the segment's."""
        at, behind, is_certain, is_own, is_sealed = 0, 0, True, True, False
        while at < segment.size:
            if (frame := segment.frame(at)) is None:  # perhaps the frame before claims a wrong length: look in it too
                frame = segment.search(behind)
                if frame is None and is_last and at and segment.is_torn(at):
                    return say("note: the last segment ends in a write that a crash cut short")
                self.gap(segment.number, at, f"no frame begins here; next at {frame.offset if frame else 'none'}")
                if frame is None:
                    break
                is_certain = segment.leads_to_pad(frame)
            if frame.offset == 0:
                is_own = self.is_own(segment, frame)
            is_sealed = is_sealed or frame.type == SEAL
            kind = UNCERTAIN if frame.type == RECORD and not is_certain else frame.type
            if kind == BLOCK or (is_own and (frame.type == RECORD or (is_certain and kind in (COMMIT, RETENTION)))):
                yield frame if kind == frame.type else frame._replace(type=kind)
            at, behind = frame.end, frame.offset + HEAD_BYTES
            if frame.type == PAD and not is_certain:
                is_certain = at % 4096 == 0 or segment.leads_to_pad(segment.frame(at))
        if is_last == is_sealed or not segment.size:  # the next segment is begun when one is sealed
            why = "that followed is missing" if is_sealed else "ends without a seal"
            self.gap(segment.number, segment.size, f"the segment {why if segment.size else 'is empty'}")

    def is_own(self, segment: Segment, frame: Frame) -> bool:
        """Whether a file holds the segment that its name says, of this store."""
        data = segment.read(frame.end - frame.stored, frame.stored)
        if frame.type != HEADER or blake3([data]) != [frame.id]:
            self.gap(segment.number, 0, "the segment's own header is damaged")
            return True
        version, owner, number, client, dataset = unpacked(data)[0][:5]
        if version != VERSION:
            usage(f"the store has format version {version}; this script knows {VERSION}")
        if not self.owner:
            self.owner, self.name = owner, f"{client}/{dataset}"
        if (number, owner) != (segment.number, self.owner):
            self.gap(segment.number, 0, f"the file holds segment {number} of {client}/{dataset}")
        return bool((number, owner) == (segment.number, self.owner))

    def replay(self) -> Iterator[Snapshot]:
        """The snapshots, oldest first, and which records each of them claims."""
        said = dict(self.fetch(self.frames("type IN (?, ?) ORDER BY n", COMMIT, RETENTION)))
        waiting, number, head, lost = [], 0, bytes(32), 0
        for n, frame in self.frames("type IN (?, ?, ?, ?) ORDER BY n", RECORD, UNCERTAIN, COMMIT, RETENTION):
            if frame.type in (RECORD, UNCERTAIN):
                waiting.append(frame)
                continue
            commit = said[n] if isinstance(said[n], str) else unpacked(said[n])[0]
            if isinstance(commit, str) or (frame.type == COMMIT and commit[0] <= number):
                why = commit if isinstance(commit, str) else f"snapshot {commit[0]} stands behind {number}"
                self.gap(frame.segment, frame.offset, f"a commit, or a word of retention, does not count: {why}")
                continue
            if frame.type == RETENTION:
                self.dropped.update(one for one in commit[1] if one < number)
                continue
            sure = [record for record in waiting if record.type == RECORD]  # of others only what the digest names
            ends = (some[len(some) - commit[4] :] for some in (waiting, sure) if len(some) >= commit[4])
            claimed = next((end for end in ends if blake3([b"".join(one.id for one in end)]) == [commit[5]]), None)
            if claimed is None:
                claimed, lost = sure[-commit[4] :], lost + max(1, commit[4] - len(sure))
            if commit[3] != head:
                claimed, lost = sure, lost + 1  # a commit between the two is missing
            number, head, waiting, self.last_commit = commit[0], frame.id, [], (frame.segment, frame.offset)
            _, created_ns, is_complete, _, _, _, entries, size, unread = (*commit, 0)[:9]
            yield Snapshot(number, created_ns, is_complete and not lost, entries, size, unread, claimed, lost)

    def line_of(self, one: Snapshot) -> str:
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(one.created_ns // 10**9))
        state = "dropped" if one.number in self.dropped else "complete" if one.complete else "partial"
        more = f", {one.unread:,} entries unread" if one.unread else ""
        return f"{one.number:<8} {when}  {state + more:8}  {one.entries:,} entries, {one.size / 2**20:,.1f} MiB"

    def load(self, chosen: Snapshot) -> None:
        """The entries of one snapshot, from all records up to it."""
        lost, upto = chosen.lost, [one.records for one in self.snapshots if one.number <= chosen.number]
        for _, data in self.fetch((frame.id, frame) for frame in chain.from_iterable(upto)):
            if isinstance(data, str):
                lost += 1
                say(f"a record: {data}")
            for op in unpacked(data)[0] if isinstance(data, bytes) else ():
                self.apply(op)
        if lost:
            text = "entries may be missing or as in an earlier snapshot, and files may have zeros instead of bytes"
            say(f"{lost} pieces of the record up to snapshot {chosen.number} are lost: {text}", is_problem=True)

    def apply(self, op: list[Any]) -> None:
        """One operation: 1 puts an entry, 2 maps more blocks of the file put before it, 3 drops an entry."""
        if op[0] == 2:
            return self.map(*op[1:]) if op[1] == self.last_file else None
        self.last_file, path = 0, op[1]
        if b"\0" in path or {b"", b".", b".."} & set(path.split(b"/") if path else ()):
            return say(f"refused: an entry at {path[:200]!r}", is_problem=True)
        if op[0] == 3:
            self.db.execute("DELETE FROM entry WHERE path = ?", (path,))
            return None
        _, _, kind, meta, size, file, block_bytes, _, to, device, blocks, ids, zeros = op + PUT[len(op) :]
        rest = marshal.dumps((meta, block_bytes, to, device))
        self.db.execute("INSERT OR REPLACE INTO entry VALUES(?, ?, ?, ?, ?, 1)", (path, kind, size, file, rest))
        if kind == FILE:
            self.last_file = file
            self.db.execute("DELETE FROM part WHERE file = ? AND number >= ?", (file, -(-size // block_bytes)))
            self.map(file, blocks, ids, zeros)
        return None

    def map(self, file: int, blocks: Any, ids: bytes, zeros: Any = ()) -> None:
        runs = [(file, first, first + count) for first, count in zeros]
        self.db.executemany("DELETE FROM part WHERE file = ? AND number >= ? AND number < ?", runs)
        rows = [(file, number, ids[i * 32 : i * 32 + 32]) for i, number in enumerate(blocks)]
        self.db.executemany("INSERT OR REPLACE INTO part VALUES(?, ?, ?)", rows)

    def want_only(self, globs: list[str]) -> None:
        """Leave out what matches no glob, apart from the directories on the way."""
        patterns = [[name for name in glob.split("/") if name not in ("", ".")] for glob in globs]
        every = (os.fsdecode(path).split("/") for (path,) in self.db.execute("SELECT path FROM entry"))
        wanted = [names for names in every if any(matches(names, pattern) for pattern in patterns)]
        if not wanted:
            usage("nothing in the snapshot matches --path")
        kept = {"/".join(names[:depth]) for names in wanted for depth in range(len(names) + 1)}
        self.db.execute("UPDATE entry SET wanted = 0")
        self.db.executemany("UPDATE entry SET wanted = 1 WHERE path = ?", [(os.fsencode(path),) for path in kept])


def matches(names: list[str], globs: list[str]) -> bool:
    """Name by name; `**` stands for any number of directories, and what matches brings everything below it."""
    if not globs or not names:
        return not globs
    if globs[0] == "**":
        return any(matches(names[i:], globs[1:] or ["*"]) for i in range(len(names)))
    return fnmatch.fnmatchcase(names[0], globs[0]) and matches(names[1:], globs[1:])


def show(path: bytes) -> str:
    return repr(os.fsdecode(path))[1:-1] or "."


class Rescue:
    """One run: make the entries, fill the files, then set owners, attributes, modes and times, children first."""

    def __init__(self, store: Store, target: str) -> None:
        self.store, self.size, self.blocks = store, 0, 0
        self.made: Counter[str] = Counter()
        self.damaged: set[bytes] = set()
        self.root = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
        os.fchmod(self.root, 0o700)  # nobody looks in before everything has its rights
        for key in ("system.posix_acl_access", "system.posix_acl_default"):  # what is made here would inherit them
            with suppress(AttributeError, OSError):  # a system, a file system, or just this directory, that has none
                os.removexattr(self.root, key)
        twins = "SELECT file, min(path) FROM entry WHERE kind = ? AND wanted GROUP BY file HAVING count(*) > 1"
        self.first_names = dict(store.db.execute(twins, (FILE,)).fetchall())

    def run(self) -> None:
        query = "SELECT path, kind, size, file, meta FROM entry WHERE wanted ORDER BY path"
        for path, kind, size, file, meta in self.store.db.execute(query):
            self.attempt(path, "cannot be made", self.make, path, kind, size, file, *marshal.loads(meta)[2:])
        self.fill()
        for path, kind, _, file, meta in self.store.db.execute(query + " DESC"):
            if kind != FILE or self.first_names.get(file, path) == path:
                self.describe(path, kind, *marshal.loads(meta)[0])
        os.sync()

    def attempt(self, path: bytes, what: str, work: Callable[..., object], *words: Any, **named: Any) -> bool:
        try:
            work(*words, **named)
            return True
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO):
                raise
            say(f"{show(path)}: {what}: {error.strerror}", is_problem=True)
            return False

    def enter(self, path: bytes) -> bytes:
        """Go to an entry's directory, made when the record lacks it, never through a symlink; the name there."""
        directory, _, name = path.rpartition(b"/")
        os.fchdir(self.root)
        for part in directory.split(b"/") if directory else ():
            if not os.path.lexists(part):
                os.mkdir(part, 0o700)
            fd = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            os.fchdir(fd)
            os.close(fd)
        return name or b"."

    def make(self, path: bytes, kind: int, size: int, file: int, to: bytes, device: int) -> None:
        first = self.first_names.get(file, path) if kind == FILE else path
        if first != path:
            old, there = self.enter(first), os.open(".", os.O_RDONLY)
            os.link(old, self.enter(path), src_dir_fd=there, follow_symlinks=False)
            os.close(there)
        elif kind == FILE:
            with open(self.enter(path), "xb") as made:
                made.truncate(size)  # what no block fills is a hole
        elif kind == SYMLINK:
            os.symlink(to, self.enter(path))
        elif kind != DIRECTORY:
            os.mknod(self.enter(path), NODES[kind] | 0o600, device)
        elif path:
            os.mkdir(self.enter(path), 0o700)
        self.made[KINDS[kind] if first == path else "hard links"] += 1
        self.size += size if first == path else 0

    def fill(self) -> None:
        """Write the blocks of all files, each once it is proven; name the bytes that cannot be had."""
        for (path, at, size, id_), data in self.store.fetch(self.places()):
            if isinstance(data, str):  # another frame of this block may be whole
                for _, frame in self.store.frames("id = ? AND type = ? ORDER BY n", id_, BLOCK):
                    data = data if isinstance(data, bytes) else unpack(self.store.directory, [frame])[0]
            if isinstance(data, bytes) and len(data) >= size:
                self.attempt(path, "cannot be written", self.write, path, at, data[:size])
                self.blocks += 1
                if self.blocks % 1000 == 0 and sys.stderr.isatty():
                    print(f"\r{self.blocks} blocks ", end="", file=sys.stderr)
            else:
                self.damaged.add(path)
                say(f"{show(path)}: bytes {at} to {at + size - 1} are not restored: {data[:200]!s}", is_problem=True)

    def places(self) -> Iterator[tuple[tuple[bytes, int, int, bytes], Frame]]:
        """(path, offset, size, id) of each block to be written, and its last frame; zeros when it has none."""
        query = (
            "SELECT path, entry.file, size, meta, number, part.id, frame.* FROM entry CROSS JOIN part USING(file)"
            " LEFT JOIN frame ON n = (SELECT max(n) FROM frame WHERE frame.id = part.id AND type = ?)"
            " WHERE kind = ? AND wanted ORDER BY path, number"
        )
        for path, file, size, meta, number, id_, _, *frame in self.store.db.execute(query, (BLOCK, FILE)):
            block_bytes = marshal.loads(meta)[1]
            at = number * block_bytes
            if at < size and self.first_names.get(file, path) == path:
                yield (path, at, min(block_bytes, size - at), id_), Frame(*(value or 0 for value in frame))

    def write(self, path: bytes, at: int, data: bytes) -> None:
        with os.fdopen(os.open(self.enter(path), os.O_WRONLY | os.O_NOFOLLOW), "wb") as file:
            file.seek(at)
            file.write(data)

    def describe(self, path: bytes, kind: int, mode: int, uid: int, gid: int, mtime_ns: int, xattrs: Any = ()) -> None:
        """Set what an entry is besides its content. A damaged file keeps the present time: it must not look whole."""
        try:
            name = self.enter(path)
            found = os.lstat(name)
        except OSError:
            return  # it could not be made, and that was said
        is_owned, itself = True, {"follow_symlinks": False}
        if (found.st_uid, found.st_gid) != (uid, gid):
            is_owned = self.attempt(path, f"owner {uid}:{gid} is not set", os.chown, name, uid, gid, **itself)
        for key, value in xattrs:
            self.attempt(path, f"attribute {show(key)} is not set", os.setxattr, name, key, value, **itself)
        if kind != SYMLINK:
            self.attempt(path, "mode is not set", os.chmod, name, mode if is_owned else mode & 0o1777)
        if path not in self.damaged:
            self.attempt(path, "time is not set", os.utime, name, ns=(time.time_ns(), mtime_ns), **itself)


def run(words: argparse.Namespace) -> None:
    places = [os.path.realpath(place) for place in words.places]
    target = None if words.list else places.pop() if places else ""
    directory = places.pop() if places else os.path.dirname(os.path.realpath(__file__))
    if places or target == "" or not os.path.isdir(f"{directory}/segments"):
        usage(f"name one dataset's directory, STORE/CLIENT/DATASET (now {directory}), and TARGET; see --help")
    if target and (f"{target}/".startswith(f"{directory}/") or (os.path.exists(target) and os.listdir(target))):
        usage(f"{target} lies in the store or is not empty: name a directory that is empty or not there yet")
    store = Store(directory)
    with store.workers:  # ended before the program is, or the interpreter stumbles over them
        if not target:
            return print(*map(store.line_of, store.snapshots), sep="\n")
        candidates = [one for one in store.snapshots[::-1] if words.snapshot in ("latest", str(one.number))]
        if not candidates:
            usage(f"there is no snapshot {words.snapshot}; --list shows what there is")
        snapshot = max(candidates, key=lambda one: (one.number not in store.dropped, one.complete, one.number))
        if words.snapshot == "latest" and store.gaps and max(store.gaps) > store.last_commit:
            say("something is missing behind the last snapshot found: was there a newer one?", is_problem=True)
        if (newest := candidates[0]).number > snapshot.number and not newest.complete:
            say(f"snapshot {newest.number} is newer, but partial (--snapshot takes it)", is_problem=newest.lost > 0)
        if snapshot.number in store.dropped:
            say(f"retention let snapshot {snapshot.number} go: what no other one needs may be gone, and is named then")
        store.load(snapshot)
        if words.path:
            store.want_only(words.path)
        os.makedirs(target, 0o700, exist_ok=True)
        rescue = Rescue(store, target)
        rescue.run()
        written = ", ".join(f"{count:,} {kind}" for kind, count in rescue.made.items())
        print(f"{store.name}: snapshot {store.line_of(snapshot)}")
        print(f"  written   {written}; {rescue.size / 2**20:,.1f} MiB from {rescue.blocks:,} blocks")
        print("  verified  every block written has the BLAKE3 id that the record names; so has the record itself")
        print(f"NOT complete: {len(problems):,} problems, named above" if problems else "complete")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("places", nargs="*", metavar="[STORE] TARGET", help="STORE: where this script lies by default")
    parser.add_argument("--list", action="store_true", help="list the snapshots")
    parser.add_argument("--snapshot", default="latest", metavar="NUMBER", help="the newest complete one by default")
    parser.add_argument("--path", action="append", metavar="GLOB", help="only what matches: *, ?, **; repeatable")
    try:
        run(parser.parse_intermixed_args())
    except OSError as error:
        say(f"rescue: stopped: {error}", is_problem=True)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
