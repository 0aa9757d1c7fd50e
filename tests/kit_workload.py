"""A workload that knows what it wrote: every file's content follows from seeds in memory and is never read back.

So a truth exists that no rot can reach: what a restore gives is compared with it, by hash. One edit at a time is made
under a lock; `paused()` holds the lock, so that whoever injects damage or asks for a snapshot sees a tree at rest.

Files that are *guarded* (damaged, and not found yet) are left alone most of the time; when one is hit it is written
anew as a whole or deleted, so that no damaged byte survives in a file that counts as written, and `hit` says so.
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import blake3

PIECE_BYTES = 65536
BIG_BYTES = 16 * 1024 * 1024
HIT_SHARE = 0.05
"""Share of the edits aimed at a guarded file that are carried out."""
DIRECTORY_STAYS_EDITS = 5_000
"""Edits between two moves of one directory, on average: each takes along every file below it."""
KEPT_STALE = 200
"""Old pieces that are remembered for stale blocks."""


def piece(seed: int, size: int) -> bytes:
    """The first `size` bytes of the piece of a file that this seed stands for; every fourth one compresses."""
    source = random.Random(seed)
    if seed % 4:
        return source.randbytes(PIECE_BYTES)[:size]
    words = [source.randbytes(5).hex().encode() for _ in range(60)]
    return b" ".join(source.choices(words, k=PIECE_BYTES // 11 + 1))[:size]


@dataclass(eq=False)
class Known:
    """One file: where it is and what is in it."""

    path: str
    """Relative to the root."""
    size: int
    pieces: list[int]
    """Seeds."""
    names: set[str] = field(default_factory=set)
    """Paths that it had before."""
    _digest: bytes = b""

    def data(self, offset: int = 0, size: int = -1) -> bytes:
        """Its bytes, or some of them."""
        end = self.size if size < 0 else min(self.size, offset + size)
        first = offset // PIECE_BYTES
        parts = [
            piece(seed, min(PIECE_BYTES, self.size - number * PIECE_BYTES))
            for number, seed in enumerate(self.pieces[first : -(-end // PIECE_BYTES)], first)
        ]
        return b"".join(parts)[offset - first * PIECE_BYTES : end - first * PIECE_BYTES]

    @property
    def digest(self) -> bytes:
        """BLAKE3 of its bytes."""
        if not self._digest:
            self._digest = blake3.blake3(self.data()).digest()
        return self._digest

    def moved(self, path: str) -> None:
        """It has another path."""
        self.names.add(self.path)
        self.path = path

    def changed(self, size: int, pieces: list[int]) -> None:
        """It has been written."""
        self.size, self.pieces, self._digest = size, pieces, b""


Truth = dict[str, tuple[int, bytes]]
"""Path to size and digest, of all files."""


@dataclass
class Guard:
    """A damaged file that nobody has found yet."""

    file: Known
    hit: bool = False
    """Whether the workload has written or deleted it since."""


@dataclass
class Tree:
    """Files below `root`, and a thread that edits them."""

    root: Path
    seed: int
    count: int
    big: int = 4
    """Files of BIG_BYTES that are written in place."""
    pause_s: float = 0.004
    """Between two edits."""
    edits: int = 0
    stale: list[tuple[Known, int, int]] = field(default_factory=list)
    """(file, piece number, seed before) of pieces that were written in place."""

    def __post_init__(self) -> None:
        self._choose = random.Random(self.seed)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self.files: list[Known] = []
        self.guards: list[Guard] = []
        self.directories = [f"d{number:03}" for number in range(max(4, self.count // 100))]

    def build(self) -> None:
        """Make the files."""
        for directory in self.directories:
            (self.root / directory).mkdir(parents=True)
        for _ in range(self.count):
            self._create(self._size())
        for _ in range(self.big):
            self._create(BIG_BYTES)

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Edits go on in a thread of their own."""
        self._stop.clear()
        self._thread = threading.Thread(target=self._work, name="workload")
        self._thread.start()
        try:
            yield
        finally:
            self._stop.set()
            self._thread.join()
        if self._error:
            raise self._error

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """No edit is under way."""
        with self._lock:
            yield

    def truth(self) -> Truth:
        """What is there; only while paused."""
        return {file.path: (file.size, file.digest) for file in self.files}

    def guard(self, file: Known) -> Guard:
        """Leave this file alone, mostly; only while paused."""
        self.guards.append(Guard(file))
        return self.guards[-1]

    def release(self, guard: Guard) -> None:
        """The file is like any other again; only while paused."""
        self.guards.remove(guard)

    def rewrite(self, file: Known) -> None:
        """Write a file anew as a whole; only while paused."""
        self._note_hit(file)
        self._write_whole(file, file.size)

    def edit(self) -> None:
        """One edit; only while paused, or by the thread."""
        choose = self._choose
        file = choose.choice(self.files)
        if any(guard.file is file and not guard.hit for guard in self.guards):
            if choose.random() >= HIT_SHARE:
                return
            self._note_hit(file)
            self._delete(file) if choose.random() < 0.3 else self._write_whole(file, self._size(file))
        else:
            self._edit(file, choose.randrange(19))
        if choose.random() < len(self.directories) / DIRECTORY_STAYS_EDITS:
            self._rename_directory()
        self.edits += 1

    # below: how

    def _work(self) -> None:
        try:
            while not self._stop.wait(self.pause_s):
                with self._lock:
                    self.edit()
        except BaseException as error:  # handed to whoever waits for the thread
            self._error = error

    def _edit(self, file: Known, what: int) -> None:
        choose, is_big = self._choose, file.size >= BIG_BYTES
        if is_big or what < 4:
            self._write_piece(file)
        elif what < 8 or (what < 10 and len(self.files) < self.count):
            self._create(self._size())
        elif what < 11:
            self._delete(file)
        elif what < 13:
            self._append(file)
        elif what < 14:
            self._truncate(file)
        elif what < 16:
            self._write_whole(file, self._size(file))
        elif what < 17:
            self._replace(file)
        else:
            self._rename(file)
        if len(self.files) > self.count + self.big + 50:
            guarded = {id(guard.file) for guard in self.guards}  # there are many of both
            self._delete(choose.choice([one for one in self.files if one.size < BIG_BYTES and id(one) not in guarded]))

    def _note_hit(self, file: Known) -> None:
        for guard in self.guards:
            guard.hit = guard.hit or guard.file is file

    def _size(self, file: Known | None = None) -> int:
        if file and file.size >= BIG_BYTES:
            return file.size
        most = self._choose.choice([16 * 1024] * 60 + [500_000])
        return self._choose.randrange(600, most)

    def _seeds(self, size: int) -> list[int]:
        return [self._choose.randrange(2**60) for _ in range(-(-size // PIECE_BYTES))]

    def _create(self, size: int) -> None:
        path = f"{self._choose.choice(self.directories)}/f{self._choose.randrange(2**40):010x}"
        self.files.append(Known(path, size, self._seeds(size)))
        (self.root / path).write_bytes(self.files[-1].data())

    def _delete(self, file: Known) -> None:
        (self.root / file.path).unlink()
        self.files.remove(file)

    def _write_whole(self, file: Known, size: int) -> None:
        file.changed(size, self._seeds(size))
        (self.root / file.path).write_bytes(file.data())

    def _replace(self, file: Known) -> None:
        """As editors do: a new file takes the name."""
        file.changed(file.size, self._seeds(file.size))
        fresh = self.root / f"{file.path}.new"
        fresh.write_bytes(file.data())
        fresh.rename(self.root / file.path)

    def _write_piece(self, file: Known) -> None:
        number = self._choose.randrange(len(file.pieces))
        self.stale.append((file, number, file.pieces[number]))
        del self.stale[:-KEPT_STALE]
        pieces = list(file.pieces)
        (pieces[number],) = self._seeds(1)
        file.changed(file.size, pieces)
        self._write_at(file, number * PIECE_BYTES, PIECE_BYTES)

    def _append(self, file: Known) -> None:
        old, size = file.size, file.size + self._choose.randrange(1, 20_000)
        more = self._seeds(size)[: -(-size // PIECE_BYTES) - len(file.pieces)]
        file.changed(size, file.pieces + more)
        self._write_at(file, old, size - old)

    def _truncate(self, file: Known) -> None:
        size = self._choose.randrange(1, file.size + 1)
        file.changed(size, file.pieces[: -(-size // PIECE_BYTES)])
        os.truncate(self.root / file.path, size)

    def _write_at(self, file: Known, offset: int, size: int) -> None:
        with (self.root / file.path).open("r+b") as opened:
            opened.seek(offset)
            opened.write(file.data(offset, size))

    def _rename(self, file: Known) -> None:
        path = f"{self._choose.choice(self.directories)}/r{self._choose.randrange(2**40):010x}"
        (self.root / file.path).rename(self.root / path)
        file.moved(path)

    def _rename_directory(self) -> None:
        """Also of files that are guarded: their own stamps do not move."""
        index = self._choose.randrange(len(self.directories))
        old, new = self.directories[index], f"d{self._choose.randrange(2**40):010x}"
        (self.root / old).rename(self.root / new)
        self.directories[index] = new
        for file in self.files:
            if file.path.startswith(f"{old}/"):
                file.moved(f"{new}/{file.path.partition('/')[2]}")


def tree_of(root: Path) -> Truth:
    """The files that are below `root`, in the words of the truth."""
    found: Truth = {}
    for directory, _, names in os.walk(root):
        for name in names:
            path = Path(directory) / name
            data = path.read_bytes()
            found[str(path.relative_to(root))] = (len(data), blake3.blake3(data).digest())
    return found


def differing(truth: Truth, there: Truth) -> dict[str, str]:
    """Paths that are not what the truth says, and how."""
    found = dict.fromkeys(truth.keys() - there.keys(), "is missing")
    found |= dict.fromkeys(there.keys() - truth.keys(), "should not be there")
    found |= {path: "has other content" for path in truth.keys() & there.keys() if truth[path] != there[path]}
    return found
