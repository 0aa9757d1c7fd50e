"""Scrub of the primary: every block of every entry that nobody wrote, and all metadata, against the ledger.

**Owns** the way of one batch: whose turn it is (the ledger) → look (a worker thread) → findings (the book) → verified
(the ledger). **Never** holds the ledger's thread for longer than a batch takes, since passes need it, and never judges
what somebody was writing: that stays due, behind the others, until the next pass has recorded it.

A part counts as verified when it was looked at, also when something was found: the finding stays open in the book, the
scrub goes on. It counts only if the record is still the one that it was compared with.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import NamedTuple, ParamSpec, TypeVar

from replicad.db.audit import audit
from replicad.db.due import LEAST_BYTES, STRETCH_BLOCKS, Ages, Due, most_ahead_ns, stretch_count
from replicad.db.ledger import BlockRow
from replicad.db.look_up import LookUp
from replicad.model.divergence import Part, Side, State, block_key, block_of_key, metadata_key
from replicad.model.entry import show_path
from replicad.model.errors import BookDamagedError, SourceError
from replicad.source.read import REAL, Access
from replicad.source.root import Root, Trouble, root_identity
from replicad.source.verify import Examined, Name, Outcome, Stretch, examine, examine_entries
from replicad.system.clock import Clock
from replicad.work.book_damage import LEDGER
from replicad.work.dataset import Dataset
from replicad.work.lookouts import Lookouts
from replicad.work.primary_findings import Place, PrimaryFindings, name_of
from replicad.work.surface import Extent, Verified
from replicad.work.together import together

Given = ParamSpec("Given")
Result = TypeVar("Result")

MAX_PARTS = 16384
"""Parts of one call: with small files about a second of work."""
BATCH_PARTS = 256
BATCH_BYTES = 16 * 1024 * 1024
"""One batch: one call of a worker thread, a few milliseconds to some tenths of a second."""
READERS = 4
"""Batches under way at once: cold small files wait for the disk, which answers several at once; of large ones one is
read while another is hashed."""
NAMES_TRIED = 8
"""Names of one file that are tried until one leads to it."""
PAGE_ENTRIES = 512
"""Entries without blocks that are compared in one call."""
RETRY_NS = 60 * 10**9
"""What could not be judged is not looked at again before this: the pass that settles it needs its time too."""
OVERDUE_SHARE = 0.75
"""Of `scrub_every`: what was verified longer ago than that is not kept waiting by what is new."""
OUTDATED_NS = 60 * 10**9
"""How often all open findings are checked for being outdated; one look at the ledger each."""
MAX_DOUBTS = 20
"""Places named one by one that could not be looked at."""


class Job(NamedTuple):
    """One part and what is recorded of it."""

    part: Due
    stretch: Stretch
    rows: dict[int, BlockRow]


class Standing(NamedTuple):
    """Findings that were open when a call began."""

    keys: frozenset[str]
    blocks: dict[int, list[int]]
    """Numbers of blocks by file."""

    @classmethod
    def of(cls, keys: Sequence[str]) -> Standing:
        """From the book."""
        blocks: dict[int, list[int]] = {}
        for place in filter(None, map(block_of_key, keys)):
            blocks.setdefault(place[0], []).append(place[1])
        return cls(frozenset(keys), blocks)


@dataclass(slots=True)
class Tally:
    """What one call has done so far."""

    media_bytes: int = 0
    cache_bytes: int = 0
    units: int = 0
    found: int = 0
    nominal_bytes: int = 0
    doubts: list[str] = field(default_factory=list)
    more: int = 0
    """Doubts that are only counted: there may be as many as files."""
    spans: list[tuple[float, float]] = field(default_factory=list)
    """When something was read, from and to, in seconds; worker threads append to it."""

    def count(self, seen: Examined) -> None:
        """Count what was read."""
        if seen.is_media:
            self.media_bytes += seen.read_bytes
        else:
            self.cache_bytes += seen.read_bytes

    def doubt(self, path: bytes, reason: str) -> None:
        """Something could not be looked at."""
        if len(self.doubts) < MAX_DOUBTS:
            self.doubts.append(f"{show_path(path)}: {reason}")
        else:
            self.more += 1

    def verified(self) -> Verified:
        """The sum."""
        return Verified(
            media_bytes=self.media_bytes,
            cache_bytes=self.cache_bytes,
            nominal_bytes=self.nominal_bytes,
            reading_s=covered_s(self.spans),
            units=self.units,
            found=self.found,
            doubts=tuple(self.doubts),
            more_doubts=self.more,
        )


class PrimarySurface:
    """The primary's copy of one dataset, as a scrub works on it."""

    side = Side.PRIMARY
    peer = ""
    retry_s = RETRY_NS / 1e9

    def __init__(
        self, dataset: Dataset, pool: Executor, lookouts: Lookouts, clock: Clock, *, access: Access = REAL
    ) -> None:
        self.dataset = dataset.config.name
        self._lookouts = lookouts
        self._dataset, self._pool, self._clock, self._access = dataset, pool, clock, access
        self._findings = PrimaryFindings(dataset, dataset.quarantine)
        self._turn = asyncio.Lock()
        self._outdated_ns = 0
        """When the open findings were last checked for being outdated."""

    async def extent(self, before_ns: int) -> Extent:
        """How it stands; see `Surface`."""
        await self._open()
        ages = await self._in_ledger(self._ages, before_ns, self._clock.now_ns())
        old_bytes = max(0, ages.since_bytes + ages.waiting_bytes - ages.never_bytes)
        return Extent(
            total_bytes=ages.total_bytes,
            never_bytes=ages.never_bytes,
            oldest_ns=ages.oldest_ns,
            since_bytes=ages.since_bytes,
            waiting_bytes=ages.waiting_bytes,
            old_bytes=old_bytes,
            tried_bytes=ages.tried_bytes,
            tried_never_bytes=ages.tried_never_bytes,
        )

    async def verify(self, budget_bytes: int, since_ns: int) -> Verified:
        """Verify the next parts; see `Surface`."""
        async with self._turn:
            await self._open()
            await self._check_root()
            tally, started_ns = Tally(), max(1, self._clock.now_ns())
            await self._settle_outdated(started_ns)
            while not tally.units:  # those whose turn it is may all be waiting for a pass
                jobs = await self._in_ledger(self._take, budget_bytes, started_ns, since_ns)
                if not jobs:
                    break
                await self._verify(jobs, tally, started_ns)
                await self._in_ledger(self._dataset.ledger.due.tidy)
            return tally.verified()

    async def structure(self) -> Verified:
        """Check the ledger itself, beside whatever is verified; see `Surface`."""
        await self._open()
        started_ns = self._clock.now_ns()
        path, stop = self._dataset.ledger.path, threading.Event()
        try:
            problems = await self._in_pool(audit, path, stop.is_set)
        finally:
            stop.set()  # for a cancelled one: its thread goes on else
        async with self._turn:
            if problems:
                await self._in_books(self._findings.report_book, problems, path.name, started_ns)
            else:
                why = "every page of the ledger was read and is well, and so is what they say"
                await self._in_books(self._findings.set_gone, LEDGER, why, started_ns)
            self._outdated_ns = 0
            await self._settle_outdated(started_ns)
            return Verified(found=min(1, len(problems)))

    # whose turn it is: in the ledger's thread

    def _ages(self, before_ns: int, now_ns: int) -> Ages:
        due = self._dataset.ledger.due
        due.back_from_the_future(now_ns, most_ahead_ns(self._dataset.config.scrub_every_s))
        return due.ages(before_ns, now_ns - RETRY_NS)

    def _take(self, budget_bytes: int, started_ns: int, since_ns: int) -> list[Due]:
        every_s = self._dataset.config.scrub_every_s
        overdue_ns = started_ns - int(OVERDUE_SHARE * every_s * 1e9)
        retry_ns = max(started_ns - RETRY_NS, min(since_ns, started_ns))
        return self._dataset.ledger.due.take(
            budget_bytes,
            MAX_PARTS,
            before_ns=started_ns,
            overdue_ns=overdue_ns,
            retry_ns=retry_ns,
            since_ns=since_ns,
            ahead_ns=most_ahead_ns(every_s),
        )

    def _load(self, parts: Sequence[Due]) -> list[Job]:
        """What is recorded of these parts; those that exist no more are forgotten."""
        ledger, jobs = self._dataset.ledger, list[Job]()
        look_up = LookUp(ledger.database)
        all_named = look_up.named_all(list({part.file for part in parts}), NAMES_TRIED)
        first_rows = look_up.first_blocks([part.file for part in parts if not part.stretch], STRETCH_BLOCKS)
        for part in parts:
            named = all_named.get(part.file)
            if not named:
                ledger.due.forget(part.file)
                continue
            known = named[0][1]
            if known.size >= 0 and part.stretch >= stretch_count(known.size, known.block_bytes):
                ledger.due.forget(part.file, part.stretch)
                continue
            blocks = part.blocks
            first = first_rows.get(part.file, {})
            rows = ledger.blocks(part.file, blocks.start, blocks.stop) if part.stretch else first
            names = [name_of(path, entry) for path, entry in named]
            jobs.append(Job(part, Stretch(names, known.block_bytes, blocks, rows), rows))
        return jobs

    # one call's parts

    async def _verify(self, parts: Sequence[Due], tally: Tally, started_ns: int) -> None:
        """Several batches at once; when one fails the others end first."""
        waiting = deque(_batches([part for part in parts if part.file > 0]))
        standing = Standing.of(await self._in_books(self._findings.open_keys))
        is_helped = len(waiting) >= READERS

        async def work() -> None:
            while waiting:
                await self._verify_files(waiting.popleft(), tally, started_ns, standing, is_helped=is_helped)

        await together(work() for _ in range(min(READERS, len(waiting))))
        directories = [part for part in parts if part.file <= 0]
        while directories:
            del directories[: await self._verify_directories(directories, tally, started_ns, standing)]

    async def _verify_files(
        self, parts: Sequence[Due], tally: Tally, started_ns: int, standing: Standing, *, is_helped: bool
    ) -> None:
        jobs = await self._in_ledger(self._load, parts)
        outcomes = await self._look([job.stretch for job in jobs], tally, is_helped=is_helped)
        verified: list[tuple[Due, int]] = []
        waiting: list[Due] = []
        learned: list[tuple[BlockRow, bytes]] = []
        for job, seen in zip(jobs, outcomes, strict=True):
            if not isinstance(seen, Examined):
                _note_unseen(seen, tally)
                waiting.append(job.part)
                continue
            tally.count(seen)
            clean = not seen.odd and not seen.drift
            if not clean and not await self._report(job, seen, tally):
                waiting.append(job.part)  # it was recorded anew while it was read
                continue
            if standing.keys:
                await self._settle_well(job, seen, tally, standing)
            for reason in seen.unseen:
                tally.doubt(seen.path, reason)
            learned.extend((job.rows[number], found) for number, found in seen.learned.items())
            verified.append((job.part, seen.read_bytes))
        await self._record(verified, waiting, learned, tally, started_ns)

    async def _record(
        self,
        verified: Sequence[tuple[Due, int]],
        waiting: Sequence[Due],
        learned: Sequence[tuple[BlockRow, bytes]],
        tally: Tally,
        started_ns: int,
        empty: Sequence[Due] = (),
    ) -> None:
        """Put into the ledger what was verified, how much of each was read, and what is to wait or stands for nothing
        any more."""
        counted = await self._in_ledger(self._note, verified, waiting, learned, started_ns, empty)
        tally.units += counted
        tally.nominal_bytes += sum(max(0, LEAST_BYTES - size) for _, size in verified) + LEAST_BYTES * len(waiting)

    def _note(
        self,
        verified: Sequence[tuple[Due, int]],
        waiting: Sequence[Due],
        learned: Sequence[tuple[BlockRow, bytes]],
        started_ns: int,
        empty: Sequence[Due],
    ) -> int:
        ledger = self._dataset.ledger
        if learned:
            LookUp(ledger.database).learn([row for row, _ in learned], [found for _, found in learned])
        for part in empty:
            ledger.due.forget(part.file)
        ledger.due.postpone(waiting, max(started_ns, self._clock.now_ns()))
        return ledger.due.settle([part for part, _ in verified], started_ns, [size for _, size in verified])

    async def _verify_directories(self, parts: Sequence[Due], tally: Tally, started_ns: int, standing: Standing) -> int:
        """All entries without blocks of the first of these directories, as many as have PAGE_ENTRIES together; how many
        those were. An entry that was written comes back when it is recorded anew; if not one of a directory is there,
        it was moved or is not mounted, and waits as a file does."""
        pages = await self._in_ledger(self._first_pages, parts)
        outcomes = iter(await self._in_pool(self._examine_entries, [name for page in pages for name in page], tally))
        verified, waiting, empty = list[tuple[Due, int]](), list[Due](), list[Due]()
        for part, first in zip(parts, pages, strict=False):
            page, is_seen = first, await self._settle_page(first, list(islice(outcomes, len(first))), tally, standing)
            while len(page) >= PAGE_ENTRIES:
                page = await self._in_ledger(self._page, -part.file, page[-1].path.rpartition(b"/")[2])
                seen = await self._in_pool(self._examine_entries, page, tally)
                is_seen &= await self._settle_page(page, seen, tally, standing)
            if not first:
                empty.append(part)
            elif is_seen:
                verified.append((part, 0))
            else:
                waiting.append(part)
        await self._record(verified, waiting, (), tally, started_ns, empty)
        return len(pages)

    async def _settle_page(
        self, page: Sequence[Name], outcomes: Sequence[Outcome], tally: Tally, standing: Standing
    ) -> bool:
        """Whether these entries of one directory were looked at."""
        is_seen = not page or not all(isinstance(seen, Trouble) and seen.vanished for seen in outcomes)
        for name, seen in zip(page, outcomes, strict=True):
            if isinstance(seen, Examined):
                await self._settle_entry(name, 0, seen, tally, standing)
            elif _note_unseen(seen, tally):
                is_seen = False
        return is_seen

    def _first_pages(self, parts: Sequence[Due]) -> list[list[Name]]:
        """What the first of these directories hold, up to PAGE_ENTRIES entries of each, until so many are found."""
        pages, count = list[list[Name]](), 0
        for part in parts[:BATCH_PARTS]:
            pages.append(self._page(-part.file, None))
            count += len(pages[-1])
            if count >= PAGE_ENTRIES:
                break
        return pages

    def _page(self, directory: int, after: bytes | None) -> list[Name]:
        rows = LookUp(self._dataset.ledger.database).without_blocks(directory, after, PAGE_ENTRIES)
        return [name_of(path, known) for path, known in rows]

    # findings

    async def _report(self, job: Job, seen: Examined, tally: Tally) -> bool:
        """Put what was not well into the book; False, and nothing said, when the record has moved on meanwhile."""
        name = next(name for name in job.stretch.names if name.path == seen.path)
        if not await self._in_ledger(self._findings.is_recorded, name, job.part.file):
            return False
        source = "media" if seen.is_media else "cache"
        for odd in seen.odd:
            place = Place(job.part, name, job.rows.get(odd.number), odd, source)
            if not await self._in_ledger(self._findings.is_current, place):
                return False
            kept = await self._in_pool(self._findings.keep, place)
            affected, count = await self._in_ledger(self._findings.affected, job.part.file, odd)
            at_ns = self._clock.now_ns()
            await self._in_books(self._findings.report_block, place, affected, count, kept, at_ns)
            tally.found += 1
        if seen.drift:
            await self._report_drift(name, job.part.file, seen.drift, tally)
        return True

    async def _report_drift(self, name: Name, file: int, drift: Sequence[str], tally: Tally) -> None:
        await self._in_books(self._findings.report_metadata, name, file, drift, self._clock.now_ns())
        tally.found += 1

    async def _settle_entry(self, name: Name, file: int, seen: Examined, tally: Tally, standing: Standing) -> None:
        for reason in seen.unseen:
            tally.doubt(name.path, reason)
        if seen.drift:
            if await self._in_ledger(self._findings.is_recorded, name, file):
                await self._report_drift(name, file, seen.drift, tally)
        elif (key := metadata_key(name.path)) in standing.keys and not seen.unseen:
            (again,) = await self._in_pool(self._examine_entries, [name], tally)
            if isinstance(again, Examined) and not again.drift:
                await self._gone(key, "the metadata is what is recorded again: looked at twice")

    async def _settle_well(self, job: Job, seen: Examined, tally: Tally, standing: Standing) -> None:
        """Blocks of this part that had an open finding and were well just now are read once more, by themselves."""
        odd = {one.number for one in seen.odd}
        for number in standing.blocks.get(job.part.file, ()):
            if number in job.stretch.blocks and number not in odd and await self._is_well(job.stretch, number, tally):
                why = "the block is what is recorded again: read from the medium twice"
                await self._gone(block_key(job.part.file, number), why)
        key = metadata_key(seen.path)
        if key in standing.keys and not seen.drift and not seen.unseen:
            await self._gone(key, "the metadata is what is recorded again")

    async def _is_well(self, stretch: Stretch, number: int, tally: Tally) -> bool:
        block = Stretch(stretch.names, stretch.block_bytes, range(number, number + 1), stretch.expected)
        (again,) = await self._in_pool(self._examine, [block], tally)
        return isinstance(again, Examined) and not again.odd

    async def _gone(self, key: str, why: str) -> None:
        await self._in_books(self._findings.set_gone, key, why, self._clock.now_ns())

    async def _settle_outdated(self, now_ns: int) -> None:
        """Findings about what was written or dropped since are gone."""
        if 0 <= now_ns - self._outdated_ns < OUTDATED_NS:
            return
        self._outdated_ns = now_ns
        for found in await self._in_books(self._findings.open):
            if found.part in (Part.BLOCK, Part.METADATA):
                why = await self._in_ledger(self._findings.outdated, found)
                if why:
                    gone = found.with_event(self._clock.now_ns(), why, state=State.GONE)
                    await self._in_books(self._dataset.findings.revise, found, gone)

    # where work is done

    async def _look(self, stretches: Sequence[Stretch], tally: Tally, *, is_helped: bool) -> list[Outcome]:
        """With the help of the lookouts, if so many batches are to be looked at that it pays to have them."""
        if not is_helped:
            return await self._in_pool(self._examine, stretches, tally)
        with self._timed(tally):
            seen = await self._lookouts.look(self._dataset.root, stretches)
        unclear = [stretch for stretch, one in zip(stretches, seen, strict=True) if one is None]
        again = iter(await self._in_pool(self._examine, unclear, tally) if unclear else ())
        return [next(again) if one is None else one for one in seen]

    def _examine(self, stretches: Sequence[Stretch], tally: Tally) -> list[Outcome]:
        with self._timed(tally), Root(self._dataset.root) as root:
            return examine(root, stretches, access=self._access)

    def _examine_entries(self, names: Sequence[Name], tally: Tally) -> list[Outcome]:
        with self._timed(tally), Root(self._dataset.root) as root:
            return examine_entries(root, names, self._clock)

    @contextmanager
    def _timed(self, tally: Tally) -> Iterator[None]:
        began_s = self._clock.monotonic_s()
        yield
        tally.spans.append((began_s, self._clock.monotonic_s()))

    async def _open(self) -> None:
        """Both books; the findings first, so that a damaged ledger is found. Raises BookDamagedError, DiskFullError."""
        await self._dataset.open_findings()
        try:
            await self._dataset.open()
        except BookDamagedError as error:
            await self._report_damaged(error)
            raise

    async def _check_root(self) -> None:
        """Raises SourceError when the root is not the one that is recorded: what hangs there says nothing."""
        seen = await self._in_pool(root_identity, self._dataset.root)
        recorded = await self._in_ledger(self._dataset.ledger.get, "root")
        if recorded is not None and recorded != f"{seen.fsid:x}:{seen.inode}":
            raise SourceError(
                "the root directory is not the one that was replicated so far",
                where=show_path(self._dataset.root),
                hint="is the file system mounted? nothing was verified",
            )

    async def _in_ledger(self, work: Callable[Given, Result], *args: Given.args, **kwargs: Given.kwargs) -> Result:
        """In the ledger's thread, one transaction; damage that shows is a finding before it is an error."""
        try:
            return await self._dataset.in_ledger(work, *args, **kwargs)
        except BookDamagedError as error:
            await self._report_damaged(error)
            raise

    async def _report_damaged(self, error: BookDamagedError) -> None:
        path = error.where.rpartition("/")[2]
        await self._in_books(self._findings.report_book, [error.what], path, self._clock.now_ns())

    async def _in_books(self, work: Callable[Given, Result], *args: Given.args, **kwargs: Given.kwargs) -> Result:
        return await self._dataset.in_findings(work, *args, **kwargs)

    async def _in_pool(self, work: Callable[Given, Result], *args: Given.args, **kwargs: Given.kwargs) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._pool, partial(work, *args, **kwargs))


def _batches(parts: Iterable[Due]) -> Iterator[list[Due]]:
    """Parts in their order, in batches."""
    batch: list[Due] = []
    size = 0
    for part in parts:
        if batch and (len(batch) >= BATCH_PARTS or size + part.bytes > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(part)
        size += part.bytes
    if batch:
        yield batch


def covered_s(spans: Iterable[tuple[float, float]]) -> float:
    """How many seconds these spans of time cover; some overlap."""
    covered_s, until_s = 0.0, float("-inf")
    for begin_s, end_s in sorted(spans):
        covered_s += max(0.0, end_s - max(begin_s, until_s))
        until_s = max(until_s, end_s)
    return covered_s


def _note_unseen(seen: Outcome, tally: Tally) -> bool:
    """Whether it could not be looked at for a reason that a person should know; one that was written needs none."""
    if isinstance(seen, Trouble) and not seen.vanished:
        tally.doubt(seen.path, seen.reason)
        return True
    return False
