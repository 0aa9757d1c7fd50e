"""Drill choice: which files a drill takes, and what the ledger expects of each of them in the drilled snapshot.

The ledger is asked, not the replica: a file that the replica has lost without a word would never be missed otherwise.
All is done between two passes (in the dataset's turn), while the ledger says exactly what is in the last snapshot: a
row with a number up to `covered` is in it as it stands here. What each chosen file should be is put down as a digest,
so that passes that come during the drill change nothing.

Sampled: what was found wrong first, then least recently drilled, `model.drill.quota` of everything at least, what would
otherwise become overdue too, and whatever a validator needs beside a chosen file, as far as there is room for it all:
what is left out now is the first of a later sample. **Never** holds more than a page of files.
"""

from __future__ import annotations

from array import array
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Protocol, TypeVar

from replicad.config import DatasetConfig
from replicad.db.drills import Chosen, Drills, Subject
from replicad.db.ledger import Known, Ledger
from replicad.db.look_up import LookUp
from replicad.model.block import block_count
from replicad.model.drill import Amount, quota
from replicad.model.entry import Kind, show_path
from replicad.model.errors import UsageError
from replicad.model.glob import EVERYTHING, compile_globs
from replicad.model.show import counted, show_bytes
from replicad.model.snapshot import Head
from replicad.work.dataset import Dataset
from replicad.work.drill_digest import NOTHING, chain
from replicad.work.target import is_temporary, split

PAGE_FILES = 500
"""Files looked up in one go of the ledger's thread; a pass and a scrub wait for no more."""
PAGE_BLOCKS = 16_384
FEW_BLOCKS = 16
"""Files with so many blocks at most are looked up many at once: a hop for each would cost more than the look."""
MAX_NAMES = 1000
"""Names of one file that are drilled."""
SQLITE_BESIDE = (b"-wal", b"-journal", b"-shm")
"""What belongs to a SQLite database and stands beside it."""
MAX_PICKED = 1_000_000
"""Files that one sample takes at most: 8 MiB of numbers. A dataset with more to drill is behind, which shows."""
MAX_TOLD = 20
"""Subjects without room that are named."""
MAX_SIZES = 1000
"""Sizes of subjects that are remembered: a directory's is a sum over what is in it, and each of that asks for it."""
MAX_PASSED_OVER = 10_000
"""Files in a row of which none fits any more: what is left of the room is not worth looking further."""

Result = TypeVar("Result")


class InBook(Protocol):
    """Runs something in the thread of the drills' book."""

    def __call__(self, work: Callable[[], Result]) -> Awaitable[Result]: ...


@dataclass(slots=True)
class Choice:
    """What was chosen, and of what."""

    head: Head
    """The snapshot to be drilled."""
    total: Amount
    """Files of the dataset by name, and their bytes."""
    left_out: list[str] = field(default_factory=list)
    """What should be drilled and cannot be with this drill_limit, in words."""
    younger: int = 0
    """Files of which the ledger knows a state that the snapshot has not."""


class Chooser:
    """Chooses for one drill. `run` may be called once."""

    def __init__(self, dataset: Dataset, replica: str, book: Drills, in_book: InBook, limit_bytes: int) -> None:
        self._dataset, self._replica, self._book, self._in_book = dataset, replica, book, in_book
        self._limit = limit_bytes
        self._subjects = Subjects(dataset.config)
        self._choice = Choice(Head(), Amount(0, 0))
        self._covered = 0
        self._sizes: dict[Subject, int] = {}

    async def run(self, kind: str, globs: Sequence[bytes], now_ns: int) -> Choice | None:
        """Choose everything ("full"), what matches ("paths") or a sample; None when there is no snapshot yet.

        Raises UsageError for a bad pattern, other ReplicadErrors."""
        try:
            wanted = compile_globs(globs) if globs else EVERYTHING
        except ValueError as error:
            raise UsageError(str(error)) from None
        async with self._dataset.turn:
            await self._dataset.open()
            standing = await self._dataset.in_ledger(lambda: self._dataset.ledger.standing(self._replica))
            if not standing.head.number:
                return None
            self._choice.head, self._covered = standing.head, standing.covered
            await self._sweep(now_ns)
            if kind == "sampled":
                await self._sample(now_ns)
            else:
                async for page in self._pages():
                    await self._take([(path, known) for path, known in page if wanted(path)])
        return self._choice

    # the whole dataset

    async def _sweep(self, now_ns: int) -> None:
        """Bring the book's list of files up to date."""
        files = size = 0
        async for page in self._pages():
            fresh = [(known.file, known.size) for _path, known in page]
            files, size = files + len(page), size + sum(known.size for _path, known in page)
            await self._in_book(partial(self._book.see, self._replica, fresh, now_ns))
        await self._in_book(lambda: self._book.forget_unseen(self._replica, now_ns))
        self._choice.total = Amount(files, size)

    async def _pages(self) -> AsyncIterator[list[tuple[bytes, Known]]]:
        """All regular files of the ledger that a restore brings back, page by page."""
        after, ledger = (0, b""), self._dataset.ledger
        while True:
            page = await self._dataset.in_ledger(LookUp(ledger.database).files, after, PAGE_FILES)
            if not page:
                return
            after = page[-1][0]
            yield [(path, known) for _after, path, known in page if comes_back(path)]

    # a sample

    async def _sample(self, now_ns: int) -> None:
        config = self._dataset.config
        coverage = await self._in_book(lambda: self._book.coverage(self._replica))
        wanted = quota(coverage.total, config.drill_every_s, config.drill_within_s)
        picked = await self._in_book(lambda: self._pick(wanted, now_ns))
        left = self._limit
        for at in range(0, len(picked), PAGE_FILES):
            left = await self._take_what_fits(await self._named(picked[at : at + PAGE_FILES]), left)
        if wrong := await self._in_book(lambda: self._book.wrong_left(self._replica)):
            self._choice.left_out.append(f"left out {counted(wrong, 'file')} that an earlier drill found wrong")

    def _pick(self, wanted: Amount, now_ns: int) -> array[int]:
        """File numbers, those found wrong first, then least recently drilled. In the book's thread."""
        config = self._dataset.config
        late_ns = now_ns - int(max(0.0, config.drill_within_s - config.drill_every_s) * 1e9)
        picked, size, passed_over, too_large = array("q"), 0, 0, 0
        for file, file_size, drilled_ns in self._book.by_age(self._replica, now_ns):
            if len(picked) >= MAX_PICKED:
                break
            if len(picked) >= wanted.files and size >= wanted.size and not 0 != drilled_ns < late_ns:
                if drilled_ns:
                    break
                continue  # behind those that no drill has had come those that become overdue
            if size + file_size > self._limit:
                passed_over += 1
                too_large += file_size > self._limit
                if passed_over > MAX_PASSED_OVER:
                    break
                continue
            picked.append(file)
            size += file_size
        if too_large:
            files = counted(too_large, "file is", "files are")
            self._choice.left_out.append(f"{files} larger than drill_limit and cannot be drilled")
        return picked

    async def _take_what_fits(self, named: Sequence[tuple[bytes, Known]], left: int) -> int:
        """Of a sample: these, in their order, each with what a validator needs beside it, as far as there is room in
        `left` bytes; what of those is left. What has none now is among the first of a later sample."""
        wanted: list[tuple[bytes, Known]] = []
        coming: set[Subject] = set()
        for _file, pairs in groupby(named, key=lambda pair: pair[1].file):
            names = list(pairs)
            need, fitting = names[0][1].size, set[Subject]()
            for subject in sorted({subject for path, _known in names for subject in self._subjects.of(path)}):
                if subject in coming or await self._in_book(partial(self._book.is_subject, subject)):
                    need = 0 if subject.is_directory else need  # it comes with that directory
                    continue
                size = await self._size_of(subject)
                if size <= self._limit:  # else it is taken without, which is said
                    # What looks at one file lies on the way down to it: the largest holds all that the others need.
                    need, fitting = max(need, size), fitting | {subject}
            if need <= left:
                left, coming = left - need, coming | fitting
                wanted += names
        await self._take(wanted)
        return left

    async def _named(self, files: Sequence[int]) -> list[tuple[bytes, Known]]:
        names = await self._dataset.in_ledger(LookUp(self._dataset.ledger.database).named_all, files, MAX_NAMES)
        return [pair for file in files for pair in names.get(file, [])]

    # taking

    async def _take(self, named: Sequence[tuple[bytes, Known]]) -> None:
        """Choose these files, and what a validator needs beside them."""
        await self._take_alone(named)
        subjects = sorted({subject for path, _known in named for subject in self._subjects.of(path)})
        for subject in subjects:
            if await self._in_book(partial(self._book.is_subject, subject)):
                continue
            if await self._fits(subject):
                await self._take_subject(subject)
                await self._in_book(partial(self._book.add_subject, subject))

    async def _fits(self, subject: Subject) -> bool:
        """Whether all that is looked at together has room; said once where it has not."""
        size = await self._size_of(subject)
        if size <= self._limit:
            return True
        what = f"{show_path(subject.path)} has {show_bytes(size)}"
        text = f"{what}, more than drill_limit, and cannot be validated as a whole"
        if text not in self._choice.left_out and len(self._choice.left_out) < MAX_TOLD:
            self._choice.left_out.append(text)
        return False

    async def _size_of(self, subject: Subject) -> int:
        """Bytes of all that a validator looks at together."""
        if subject not in self._sizes:
            if len(self._sizes) >= MAX_SIZES:
                self._sizes.clear()
            if subject.is_directory:
                look_up = LookUp(self._dataset.ledger.database)
                self._sizes[subject] = await self._dataset.in_ledger(look_up.size_below, subject.path)
            else:
                self._sizes[subject] = sum(known.size for _path, known in await self._files_of(subject))
        return self._sizes[subject]

    async def _files_of(self, subject: Subject) -> list[tuple[bytes, Known]]:
        """A database file and what belongs to it; nothing of a file that is looked at alone."""
        if self._dataset.config.validators[subject.validator].kind != "sqlite":
            return []
        ledger, paths = self._dataset.ledger, [subject.path + end for end in (b"", *SQLITE_BESIDE)]
        known = await self._dataset.in_ledger(lambda: [(path, ledger.known(path)) for path in paths])
        return [(path, one) for path, one in known if one is not None and one.kind == Kind.FILE]

    async def _take_subject(self, subject: Subject) -> None:
        """Everything that a validator needs to look at it."""
        ledger = self._dataset.ledger
        if not subject.is_directory:
            beside = [(path, known) for path, known in await self._files_of(subject) if path != subject.path]
            await self._take_alone(beside)
            return
        after = (b"", b"")
        while page := await self._dataset.in_ledger(
            LookUp(ledger.database).files_below, subject.path, after, PAGE_FILES
        ):
            after = page[-1][0]
            await self._take_alone([(path, known) for _after, path, known in page])

    async def _take_alone(self, named: Sequence[tuple[bytes, Known]]) -> None:
        named = [(path, known) for path, known in named if comes_back(path)]
        chosen: list[Chosen] = []
        settled = [known for _path, known in named if known.seq <= self._covered]
        digests = await self._dataset.in_ledger(_small_digests, self._dataset.ledger, settled, self._covered)
        for path, known in named:
            digest = digests.get(known.file) if known.seq <= self._covered else None
            if digest is None and known.seq <= self._covered and _blocks_of(known) > FEW_BLOCKS:
                digest = await self._digest(known)
            if digest is None:
                self._choice.younger += 1
            else:
                chosen.append(Chosen(path, known.file, known.size, known.block_bytes, digest))
        await self._in_book(lambda: self._book.choose(chosen))

    async def _digest(self, known: Known) -> bytes | None:
        """What the ledger expects of a file; None when the snapshot has not all of it."""
        digest, end = NOTHING, _blocks_of(known)
        for first in range(0, end, PAGE_BLOCKS):
            page = await self._dataset.in_ledger(_page_digest, self._dataset.ledger, known.file, first, end, digest)
            if page[1] > self._covered:
                return None
            digest = page[0]
        return digest


def comes_back(path: bytes) -> bool:
    """Whether a restore makes a file at this path: what it would take for its own unfinished files it leaves out."""
    return not is_temporary(split(path)[1])


def _blocks_of(known: Known) -> int:
    return block_count(known.size, known.block_bytes) if known.size else 0


def _small_digests(ledger: Ledger, files: Sequence[Known], covered: int) -> dict[int, bytes]:
    """What the ledger expects of files with few blocks, by file number, in one go; of those that the snapshot has."""
    small = {known.file: _blocks_of(known) for known in files if _blocks_of(known) <= FEW_BLOCKS}
    found = LookUp(ledger.database).first_blocks(list(small), FEW_BLOCKS)
    digests: dict[int, bytes] = {}
    for file, end in small.items():
        rows = [row for number, row in sorted(found.get(file, {}).items()) if number < end]
        if all(row.seq <= covered for row in rows):
            digests[file] = chain(NOTHING, ((row.number, row.id) for row in rows))
    return digests


def _page_digest(ledger: Ledger, file: int, first: int, end: int, digest: bytes) -> tuple[bytes, int]:
    """The digest with one page of blocks, and the highest number that one of them carries."""
    rows = ledger.blocks(file, first, min(end, first + PAGE_BLOCKS))
    youngest = max((row.seq for row in rows.values()), default=0)
    return chain(digest, ((number, rows[number].id) for number in sorted(rows))), youngest


class Subjects:
    """Which files and directories the validators of a dataset look at."""

    def __init__(self, config: DatasetConfig) -> None:
        self._globs = [compile_globs([validator.pattern.encode()]) for validator in config.validators]
        self._kinds = [validator.kind for validator in config.validators]

    def of(self, path: bytes) -> Iterator[Subject]:
        """The subjects that the file at `path` is, or belongs to: for each validator the first name on the way down to
        it that its pattern means."""
        names = path.split(b"/")
        for number, (globs, kind) in enumerate(zip(self._globs, self._kinds, strict=True)):
            if not globs(path) or (kind == "sqlite" and path.endswith(SQLITE_BESIDE)):
                continue
            depth = next(n for n in range(1, len(names) + 1) if globs(b"/".join(names[:n])))
            yield Subject(b"/".join(names[:depth]), number, depth < len(names))
