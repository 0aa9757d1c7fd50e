"""Scrub of a replica: every byte of one store's segments, read from the medium and compared with the catalog.

The unit is a segment; the last one, which grows, is verified as far as it was acknowledged, and only what is new in it
when there is more. **Owns** the order (never verified, then oldest), and the way between two threads: segments are read
and compared in a worker thread with a connection of its own, while archive and findings are asked for short moments in
the shelf's thread, so intake never waits for a scrub.

**Never** mends: findings go into the book, where others meet them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

from replicad.db.database import CACHE_KIB
from replicad.db.due import most_ahead_ns
from replicad.db.findings import Findings
from replicad.db.inventory import Inventory
from replicad.model.divergence import Divergence, Part, Side, State
from replicad.model.errors import BookDamagedError, ReplicadError
from replicad.model.position import Position
from replicad.store.segments import segment_numbers, segment_path
from replicad.system.clock import Clock
from replicad.system.disk import Disk
from replicad.work.archive import Archive, catalog_path
from replicad.work.harm import Harm, harm_of
from replicad.work.quarantine import Quarantine
from replicad.work.segment_check import Checked, SegmentCheck, Wrong, looked_at_twice, missing_segment, strange_segment
from replicad.work.store_findings import Seen, StoreFindings
from replicad.work.structure_check import Structure, check_structure
from replicad.work.surface import Extent, Verified
from replicad.work.together import together
from replicad.work.upkeep import is_missed, remember_verified

Result = TypeVar("Result")

RETRY_NS = 600 * 10**9
"""What could not be looked at, such as a segment of which the catalog's page is damaged, is tried again after this."""
READERS = 2
"""Segments read at once where a turn has time for more than one: the disk works while another one is compared."""
TRIES = 4
"""A repair that writes while its segment is read has it read again; repairs come one by one, and end."""


@dataclass(slots=True)
class _Unit:
    """One segment, as far as it is acknowledged."""

    size: int
    verified: int = 0
    """Bytes of it that were verified."""
    at_ns: int = 0
    """When the oldest of them were; 0 = never."""
    end: Position | None = None
    """Where a growing segment's verification may go on."""
    laid: int = 0
    """How often segments had been laid anew by then: after one was, that place may be another."""
    failed_ns: int = 0
    """When it could not be looked at; 0 = it could, the last time."""

    def turn(self, now_ns: int, since_ns: int) -> tuple[bool, int]:
        """The lowest is next: what was never verified, then the oldest. What could not be looked at since that moment
        waits for a while like one that was verified just then."""
        if self.is_waiting(now_ns, since_ns):
            return True, self.failed_ns
        return not self.is_due, 0 if self.is_due else self.at_ns

    def is_waiting(self, now_ns: int, since_ns: int) -> bool:
        """Whether it could not be looked at since then, and is not tried again yet."""
        return self.failed_ns >= max(1, since_ns) and 0 <= now_ns - self.failed_ns < RETRY_NS

    @property
    def is_due(self) -> bool:
        """Whether some of it was never verified."""
        return not self.at_ns or self.verified < self.size

    @property
    def never_bytes(self) -> int:
        """How much of it was not."""
        return max(0, self.size - self.verified) if self.at_ns else self.size

    def owed_bytes(self, before_ns: int) -> int:
        """How much of it was not since that moment."""
        return self.size if self.at_ns < before_ns else self.never_bytes


class _Began(NamedTuple):
    """How the archive stood when a segment began to be read."""

    laid: int
    end: Position
    at_ns: int
    is_last_try: bool


class ReplicaSurface:
    """Keeps the contract of work/surface.Surface for one store."""

    side = Side.REPLICA
    retry_s = RETRY_NS / 1e9

    def __init__(
        self,
        client: str,
        dataset: str,
        directory: Path,
        archive: Archive,
        findings: Findings,
        executor: Executor,
        clock: Clock,
        disk: Disk,
        every_s: Callable[[], float],
    ) -> None:
        """`executor` is the shelf's single thread, to which `archive` and `findings` belong; `every_s` are the seconds
        within which all is to be verified, as configured by now."""
        self.dataset, self.peer = dataset, client
        self._directory, self._archive, self._executor = directory, archive, executor
        self._clock, self._disk, self._every_s = clock, disk, every_s
        self._book = StoreFindings(client, dataset, findings, Quarantine(directory, disk), clock)
        self._units: dict[int, _Unit] = {}
        """For the shelf's thread: segments appear while one session is asked how it stands and another one stores."""
        self._last = 0
        self._laid = archive.laid
        self._is_loaded = False
        self._marks: dict[int, tuple[int, int, int, str, bytes]] = {}
        """Verifications that are not in the catalog yet, because a session has unsealed work in it."""
        self._uncopied: dict[int, list[tuple[int, int]]] = {}
        self._sound: set[int] = set()

    async def extent(self, before_ns: int) -> Extent:
        """See `Surface`."""
        return await self._in_shelf(partial(self._extent, before_ns))

    def _extent(self, before_ns: int) -> Extent:
        self._refresh()
        units, now_ns = self._units.values(), self._clock.now_ns()
        waiting_bytes = sum(unit.owed_bytes(before_ns) for unit in units if unit.is_waiting(now_ns, before_ns))
        return Extent(
            total_bytes=sum(unit.size for unit in units),
            never_bytes=sum(unit.never_bytes for unit in units),
            oldest_ns=0 if any(unit.is_due for unit in units) else min((unit.at_ns for unit in units), default=0),
            since_bytes=sum(unit.owed_bytes(before_ns) for unit in units) - waiting_bytes,
            waiting_bytes=waiting_bytes,
            old_bytes=sum(min(unit.size, unit.verified) for unit in units if 0 < unit.at_ns < before_ns),
            tried_bytes=sum(unit.owed_bytes(before_ns) for unit in units if unit.failed_ns >= max(1, before_ns)),
            tried_never_bytes=sum(unit.never_bytes for unit in units if unit.failed_ns),
        )

    async def verify(self, budget_bytes: int, since_ns: int) -> Verified:
        """See `Surface`."""
        waiting = deque(await self._in_shelf(partial(self._choose, budget_bytes, since_ns)))
        media = cache = units = found = 0
        doubts: list[str] = []

        async def work() -> None:
            nonlocal media, cache, units, found
            while waiting:
                number = waiting.popleft()
                try:
                    checked, count = await self._verify_one(number)
                except ReplicadError as error:
                    self._units[number].failed_ns = self._clock.now_ns()
                    doubts.append(f"segment {number}: {error}")
                    continue
                units, found = units + 1, found + count
                media += checked.size if checked.media else 0
                cache += 0 if checked.media else checked.size

        await together(work() for _ in range(min(READERS, len(waiting))))
        await self._in_shelf(self._refresh)
        if doubts and not units:
            raise ReplicadError(doubts[0], where=str(self._directory), hint="it is tried again")
        return Verified(media_bytes=media, cache_bytes=cache, units=units, found=found, doubts=tuple(doubts))

    async def structure(self) -> Verified:
        """See `Surface`."""
        await self._in_shelf(self._refresh)
        found = 0
        try:
            found += await self._in_shelf(self._report_damage)
            noted = await self._in_shelf(self._book.noted_blocks)
            structure, harm = await asyncio.to_thread(self._check_structure, noted)
        except BookDamagedError as error:
            structure, harm = Structure(pages=[error.what]), Harm()
        if structure.pages or structure.false:
            texts, is_unreadable = structure.pages or structure.false, bool(structure.pages)
            found += len(await self._in_shelf(lambda: self._book.report_book(texts, is_unreadable=is_unreadable)))
        if structure.missing:
            told = await self._in_shelf(lambda: self._report_missing(structure.missing, harm))
            found += len(told)
        strangers = await self._in_shelf(self._strangers)
        wrongs = await asyncio.to_thread(self._look_at, strangers)
        told = await self._in_shelf(lambda: self._book.report([Seen(wrong, "media") for wrong in wrongs]))
        return Verified(units=1, found=found + len(told))

    # what there is

    def _refresh(self) -> None:
        """Bring the list of units up to what is acknowledged, and the catalog up to what was verified."""
        end = self._archive.checkpoint
        if not self._is_loaded:
            self._load(end)
        for number in range(max(self._last, 1), end.segment + 1):
            size = end.offset if number == end.segment else self._size_of(number)
            if size or number < end.segment:
                self._units.setdefault(number, _Unit(size)).size = size
        self._last = end.segment
        self._back_from_the_future(self._clock.now_ns())
        if self._laid != self._archive.laid:  # something was mended: whatever could not be looked at may be by now
            self._laid = self._archive.laid
            for unit in self._units.values():
                unit.failed_ns = 0
        self._archive.when_settled(self._remember)

    def _remember(self) -> None:
        """Nothing waits for a seal just now."""
        if self._marks or self._uncopied or self._sound:
            marks, self._marks = self._marks, {}
            uncopied, self._uncopied = self._uncopied, {}
            sound, self._sound = self._sound, set()
            remember_verified(self._archive, list(marks.values()), uncopied, list(sound))

    def _load(self, end: Position) -> None:
        self._is_loaded = True
        doubtful = {damage.segment for damage in self._archive.damage}
        for number, size, at_ns in self._archive.inventory.scrubbed():
            if number <= end.segment and number not in doubtful:
                self._units[number] = _Unit(size, size, at_ns)
        for number in range(1, end.segment):
            if number not in self._units:
                self._units[number] = _Unit(self._size_of(number))
        self._report_damage()

    def _back_from_the_future(self, now_ns: int) -> None:
        """Verified later than now? The clock was wrong then: it counts as never verified."""
        latest_ns = now_ns + most_ahead_ns(self._every_s())
        for unit in self._units.values():
            if unit.at_ns > latest_ns:
                unit.verified, unit.at_ns, unit.end = 0, 0, None

    def _size_of(self, number: int) -> int:
        try:
            return segment_path(self._directory, number).stat().st_size
        except OSError:
            return 0  # it is due all the same, and its verification tells why

    def _choose(self, budget_bytes: int, since_ns: int) -> list[int]:
        self._refresh()
        return list(self._next(budget_bytes, since_ns))

    def _next(self, budget_bytes: int, since_ns: int) -> Iterator[int]:
        """Segments in the order of their turn, until the budget is used up; at least one."""
        now_ns = self._clock.now_ns()
        for _, number in sorted((unit.turn(now_ns, since_ns), number) for number, unit in self._units.items()):
            yield number
            unit = self._units[number]
            budget_bytes -= unit.size - (unit.verified if unit.at_ns and unit.is_due else 0)
            if budget_bytes <= 0:
                return

    # one segment

    async def _verify_one(self, number: int) -> tuple[Checked, int]:
        """Verify a segment and tell what was found. Looked at anew when it was laid anew or mended into meanwhile."""
        for tries_left in reversed(range(TRIES)):
            began_ns = self._clock.now_ns()
            laid, size, end = await self._in_shelf(self._now)
            unit = self._units[number]
            goes_on = unit.end if unit.end and unit.at_ns and unit.is_due and unit.laid == laid else None
            try:
                checked = await asyncio.to_thread(self._check, number, goes_on, size)
                news = await self._in_shelf(partial(self._book.news, checked.wrongs))
                seen = await asyncio.to_thread(self._explain, checked, news)
            except BookDamagedError as error:
                await self._in_shelf(partial(self._book.report_book, [error.what], is_unreadable=True))
                raise
            began = _Began(laid, end, began_ns, is_last_try=not tries_left)
            count = await self._in_shelf(partial(self._take, number, checked, seen, goes_on, began))
            if count is not None:
                return checked, count
        raise ReplicadError(f"segment {number} is laid anew again and again", where=str(self._directory))

    def _now(self) -> tuple[int, int, Position]:
        """How often segments were laid anew, how long the last one is while nobody writes to it, and its end."""
        archive = self._archive
        size = self._size_of(archive.checkpoint.segment) if archive.is_settled else 0
        return archive.laid, size, archive.checkpoint

    def _was_in_the_way(self, number: int, checked: Checked, began: _Began) -> bool:
        """Whether a repair laid this segment anew, or what was found wrong may only be that it wrote here meanwhile."""
        if self._archive.laid != began.laid:
            return True
        wrote = number >= began.end.segment and self._archive.checkpoint != began.end
        return wrote and bool(checked.wrongs or checked.unknown) and not began.is_last_try

    def _check(self, number: int, start: Position | None, size: int) -> Checked:
        """In a worker thread: read and compare."""
        with closing(Inventory.open(catalog_path(self._directory))) as inventory:
            return looked_at_twice(partial(self._look, inventory, number, start, size))

    def _look(self, inventory: Inventory, number: int, start: Position | None, size: int) -> Checked:
        path, store = segment_path(self._directory, number), self._archive.store.owner.store
        try:
            with inventory.at_one_moment():
                check = SegmentCheck(inventory, self._disk, path, number, store, start=start, size=size)
                return check.run(inventory.imprint(number))
        except FileNotFoundError:
            is_missed = inventory.last_expected(number) is not None
            return Checked(wrongs=[missing_segment(inventory, number)] if is_missed else [])

    def _explain(self, checked: Checked, news: Sequence[Wrong]) -> list[Seen]:
        """In a worker thread: find out what damage means that nobody has told of, a look through the whole catalog."""
        if not checked.wrongs:
            return []
        source = "media" if checked.media else "cache"
        fresh = {wrong.key for wrong in news}
        inventory = Inventory.open(catalog_path(self._directory))
        try:
            harm = harm_of(inventory, {item.id for wrong in news for item in wrong.items if item.id})
            return [Seen(w, source, harm if w.key in fresh else None, _expected(inventory, w)) for w in checked.wrongs]
        finally:
            inventory.close()

    def _take(
        self, number: int, checked: Checked, places: Sequence[Seen], start: Position | None, began: _Began
    ) -> int | None:
        """In the shelf's thread: tell what was found and note the verification; None when it has to be done again."""
        if self._was_in_the_way(number, checked, began):
            return None
        seen = [one for one in places if self._still_counts(one.wrong)]
        if self._book.news([one.wrong for one in seen if one.harm is None]):
            return None  # what was told of it is over by now
        told = self._book.report(seen) + self._book.report_book(checked.unknown, is_unreadable=False)
        self._archive.doubt(name for one in told if one.state is State.OPEN for name in one.blocks)
        self._note(number, checked, start, began.at_ns)
        is_sound = not any(not one.wrong.is_transient for one in seen) and not checked.unknown
        if is_sound:
            self._sound.add(number)
        return len(told)

    def _still_counts(self, wrong: Wrong) -> bool:
        """Whether blocks found bad are still to be found there: they may have been mended while it was read."""
        ids = [item.id for item in wrong.items if item.id]
        if not ids:  # nothing is known to stand here, perhaps because it stands elsewhere by now
            return not _covers(self._archive.inventory.mended(wrong.segment), wrong.offset, wrong.length)
        if wrong.part is not Part.BLOCK:
            return True
        places = self._archive.inventory.places(ids).values()
        end = wrong.offset + wrong.length
        return any(p.segment == wrong.segment and wrong.offset <= p.offset < end for p in places)

    def _note(self, number: int, checked: Checked, start: Position | None, began_ns: int) -> None:
        """Verified when it began to be read: what became of its bytes since is for the next look."""
        unit = self._units[number]
        before = start.offset if start else 0
        if number < self._archive.checkpoint.segment:  # laid anew it may be shorter than it was found
            unit.size = self._size_of(number)
        unit.verified = max(before + checked.size, unit.size if checked.wrongs else 0)
        unit.at_ns, unit.failed_ns = unit.at_ns if start else began_ns, 0
        unit.end, unit.laid = None if checked.wrongs else checked.end, self._archive.laid
        source = "media" if checked.media else "cache"
        self._marks[number] = (number, unit.verified, unit.at_ns, source, checked.imprint)
        if checked.uncopied:
            self._uncopied[number] = checked.uncopied

    # all together

    def _check_structure(self, noted: set[bytes]) -> tuple[Structure, Harm]:
        inventory = Inventory.open(catalog_path(self._directory), CACHE_KIB)  # it looks for each block by its id
        try:
            with inventory.at_one_moment():  # a snapshot that arrives meanwhile is no contradiction
                structure = check_structure(inventory, noted)
                return structure, harm_of(inventory, structure.missing)
        finally:
            inventory.close()

    def _report_missing(self, ids: list[bytes], harm: Harm) -> list[Divergence]:
        """Those that are still missing: sessions go on meanwhile."""
        here = self._archive.inventory.places(ids)
        return self._book.report_missing([name for name in ids if name not in here], harm)

    def _report_damage(self) -> int:
        """What replays found. Bytes that are damaged are found again by the verification of their segment, which is
        due; what is missing only shows in what replays say."""
        return len(self._book.report_damage([damage for damage in self._archive.damage if is_missed(damage)]))

    def _strangers(self) -> list[int]:
        """Segments behind the last one; those before it are units, there or not."""
        if not self._archive.is_settled:
            return []
        return [n for n in segment_numbers(self._directory) if n > self._archive.store.position.segment]

    def _look_at(self, numbers: list[int]) -> list[Wrong]:
        return [strange_segment(self._disk, segment_path(self._directory, number), number) for number in numbers]

    async def _in_shelf(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)


def _expected(inventory: Inventory, wrong: Wrong) -> bytes:
    """The very bytes that should stand there, if it is one frame that the catalog has a copy of."""
    if len(wrong.items) != 1 or not wrong.items[0].head:
        return b""
    copy = inventory.copy(wrong.segment, wrong.items[0].offset)
    return copy.frame if copy else b""


def _covers(ranges: Sequence[tuple[int, int]], offset: int, length: int) -> bool:
    """Whether one of these (offset, length) holds all of that range."""
    return any(start <= offset and offset + length <= start + size for start, size in ranges)
