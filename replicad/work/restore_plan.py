"""Restore plan: what a restore would do, how long it would take, and what it would cost, before anything is done.

It is a dry run of the very restore (work/restore.py) that also reads the files in which the store knows of damage, so
that each range is named; looks for what stands in the way; and holds what would be replaced against the newest
snapshot, so that nobody overwrites the only copy of something without having been told. Changes nothing at all.

**Never** invents a rate: without a measured one there is no estimate.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import msgspec

from replicad.db.drills import Drills
from replicad.link.messages import SnapshotLine
from replicad.model.block import checksum
from replicad.model.drill import TREND_POINTS, DrillRecord
from replicad.model.entry import DAMAGED, MAX_DEPTH, Op, Put
from replicad.model.errors import ReplicadError
from replicad.work.account import FILES, Account, Finding, Tally
from replicad.work.conflicts import Unsaved
from replicad.work.known_damage import with_damage
from replicad.work.planner import Rules
from replicad.work.reader import HistoryReader
from replicad.work.restore import Restore, ignore
from replicad.work.target import Target

TOKEN_CHARACTERS = 12
PAUSE_ENTRIES = 1000
_SPECIAL = frozenset(b"*?[\\")
"""Bytes that make a name in a pattern stand for others as well."""
DECIDING = ("failed", "extra", "conflict", "unsaved")
"""Findings that make it another plan: what a person who confirms has read."""


class Rate(msgspec.Struct, frozen=True):
    """What former drills measured."""

    bytes_s: float
    files_s: float
    drills: int
    """How many it is the median of."""
    replica: str
    """Whose they were."""


class Room(msgspec.Struct, frozen=True):
    """The place that the target is in."""

    is_writable: bool
    problem: str = ""
    """Why it is not; "" when it is."""
    free_bytes: int = 0
    free_inodes: int | None = None
    """None: the file system sets no limit."""


class RestorePlan(msgspec.Struct, kw_only=True):
    """What a restore would do. Sizes in bytes; counts of entries by kind."""

    dataset: str
    source: str
    target: str
    snapshot: int
    created: str
    complete_snapshot: bool
    newest_snapshot: int
    """What is in the way was held against this one."""
    unread: int
    lost_records: int
    newest_gone: bool
    files: int
    """Files of what is to be restored, and their size."""
    bytes: int
    right_files: int
    right_bytes: int
    to_restore: dict[str, int]
    to_restore_bytes: int
    to_fetch_blocks: int
    would_fail: dict[str, int]
    damaged_files: int
    damaged_ranges: int
    damaged_bytes: int
    conflicts: int
    """Entries of the target that are of another kind, have another content, or are no longer a name of their file."""
    extra: int
    extra_removed: int
    unsaved: int
    """Files whose present content would be replaced or removed and is in no snapshot that was looked at."""
    user: str
    not_settable: dict[str, int]
    """Entries whose owner, extended attributes, or device this user may not set."""
    room: Room
    is_room_enough: bool
    rate: Rate | None
    estimate_s: float | None
    """None: nothing was measured."""
    bandwidth_bytes: int
    classes: dict[str, dict[str, int]]
    """The restore order: of each class its files and bytes."""
    confirm: str
    """Stands for this plan: `restore --confirm` takes it, as long as the plan comes out the same."""
    found: dict[str, int]
    findings: list[Finding]

    @property
    def exit_code(self) -> int:
        """0 when such a restore would be clean and take nothing with it."""
        lost = self.damaged_files or self.lost_records or self.newest_gone
        wrong = lost or self.would_fail or self.unsaved or self.not_settable
        return int(bool(wrong) or not (self.room.is_writable and self.is_room_enough))


class Planning(Restore):
    """A dry run that looks closer. `plan` may be asked for when `run` has returned."""

    def __init__(
        self,
        reader: HistoryReader,
        line: SnapshotLine,
        newest: SnapshotLine,
        target: Path,
        *,
        dataset: str,
        globs: Sequence[bytes] = (),
        rules: Rules | None = None,
        heard: Callable[[Finding], None] = ignore,
        newest_gone: bool = False,
    ) -> None:
        rules = replace(rules or Rules(), dry_run=True, plan=True, aside=None)
        super().__init__(
            reader, line, target, dataset=dataset, globs=globs, rules=rules, heard=heard, newest_gone=newest_gone
        )
        self._history, self._newest = reader, newest
        self._unsettable: dict[str, int] = {}
        self._damaged: set[bytes] | None = None
        asked = [dataset, str(target), line.digest, globs, rules.delete_extra]
        self._facts = int.from_bytes(checksum(msgspec.json.encode(asked)), "big")

    def plan(self, book: Path | None, bandwidth_bytes: int = 0) -> RestorePlan:
        """The plan, with an estimate from the drills in `book`, if it is there."""
        account = self.account
        restored, unchanged = account.restored.get(FILES, 0), account.unchanged.get(FILES, 0)
        room, rate = room_at(self._path), measured(book, account.source) if book else None
        return RestorePlan(
            dataset=account.dataset,
            source=account.source,
            target=account.target,
            snapshot=account.snapshot,
            created=account.created,
            complete_snapshot=account.complete_snapshot,
            newest_snapshot=self._newest.number,
            unread=account.unread,
            lost_records=account.lost_records,
            newest_gone=account.newest_gone,
            files=restored + unchanged + account.damaged_files + account.failed.get(FILES, 0),
            bytes=account.done_bytes,
            right_files=unchanged,
            right_bytes=account.right_bytes,
            to_restore=account.restored,
            to_restore_bytes=account.restored_bytes,
            to_fetch_blocks=account.blocks_fetched,
            would_fail=account.failed,
            damaged_files=account.damaged_files,
            damaged_ranges=account.damaged_ranges,
            damaged_bytes=account.damaged_bytes,
            conflicts=account.found.get("conflict", 0),
            extra=account.extra,
            extra_removed=account.extra_removed,
            unsaved=account.found.get("unsaved", 0),
            user=_user(),
            not_settable=self._unsettable,
            room=room,
            is_room_enough=_is_enough(room, account),
            rate=rate,
            estimate_s=estimate_s(rate, account, bandwidth_bytes),
            bandwidth_bytes=bandwidth_bytes,
            classes={done.name: {"files": done.files, "bytes": done.bytes} for done in account.classes},
            confirm=self._token(),
            found=account.found,
            findings=account.findings,
        )

    async def _record(self, place: int) -> AsyncIterator[list[Op]]:
        """With a mark at the files in which damage is known."""
        if self._damaged is None:
            self._damaged = await self._known_damaged()
        async for ops in super()._record(place):
            yield next(with_damage([ops], self._damaged)) if self._damaged else ops

    async def _known_damaged(self) -> set[bytes]:
        """These files. A look at a snapshot marks them, so it is looked at wherever something could be wanted."""
        found: set[bytes] = set()
        for top in {_literal(glob) for glob in self._globs or (b"",)}:
            async for ops in self._history.visit(self._line.number, top, MAX_DEPTH):
                found.update(op.path for op in ops if isinstance(op, Put) and op.flags & DAMAGED)
        return found

    def _add(self, tally: Tally) -> None:
        for what, count in tally.unsettable.items():
            self._unsettable[what] = self._unsettable.get(what, 0) + count
        self._note_facts(tally)
        super()._add(tally)

    def _note_facts(self, tally: Tally) -> None:
        """What a person would have to think about again if it were to change."""
        facts = [f"{one.sort} {one.path}".encode() for one in tally.findings if one.sort in DECIDING]
        for fact in facts + tally.replaced:  # as a sum, for they come in any order
            self._facts = (self._facts + int.from_bytes(checksum(fact), "big")) % 2**128

    async def _foresee(self, target: Target) -> None:
        """Of the files that would be replaced, those whose present content the newest snapshot does not have either."""
        await self._in_thread(self._note_fates)
        if await self._in_thread(self._remembered.has_replaced_name):  # nobody has compared what stands there yet
            await self._settle(target, self._line.number)
        if self._newest.number != self._line.number and await self._in_thread(self._remembered.has_replaced):
            await self._settle(target, self._newest.number)
        await self._drive(self._tell_unsaved, None)

    async def _settle(self, target: Target, snapshot: int) -> None:
        """Those whose present content this snapshot has are safe."""
        unsaved = Unsaved(target, self._remembered)
        async for ops in self._history.record(snapshot, self._globs):
            await self._in_thread(partial(unsaved.feed, ops))
        await self._in_thread(unsaved.end)

    def _tell_unsaved(self, tally: Tally) -> Iterator[None]:
        """In a thread, with a pause now and then."""
        text = f"snapshot {self._line.number} does not have what it holds now"
        if self._newest.number != self._line.number:
            text = f"neither snapshot {self._line.number} nor the newest, {self._newest.number}, has what it holds now"
        for number, path in enumerate(self._remembered.replaced(), 1):
            tally.note("unsaved", path, text)
            if number % PAUSE_ENTRIES == 0:
                yield None

    def _token(self) -> str:
        account = self.account
        counts = [account.restored, account.unchanged, account.failed, account.restored_bytes, account.right_bytes]
        return checksum(msgspec.json.encode([str(self._facts), counts])).hex()[:TOKEN_CHARACTERS]


def _literal(glob: bytes) -> bytes:
    """The directory, or file, that everything that matches a pattern lies in."""
    plain: list[bytes] = []
    for name in glob.split(b"/"):
        if not _SPECIAL.isdisjoint(name):
            break
        if name and name != b".":
            plain.append(name)
    return b"/".join(plain)


def room_at(target: Path) -> Room:
    """What the place of a target has: it, or the directory that it would be made in."""
    place = target if target.exists() else target.parent
    try:
        found = os.statvfs(place)
    except OSError as error:
        return Room(False, f"{place}: {error.strerror}")
    problem = ""
    if found.f_flag & os.ST_RDONLY:
        problem = f"{place} is on a file system that is mounted read-only"
    elif not os.access(place, os.W_OK | os.X_OK):
        problem = f"{place} is not writable for {_user()}"
    inodes = found.f_favail if found.f_files else None
    return Room(not problem, problem, found.f_bavail * found.f_frsize, inodes)


def measured(book: Path, replica: str) -> Rate | None:
    """What the drills in this book measured: of this replica, or where there were none, of all."""
    if not book.exists():
        return None
    try:
        with closing(Drills(book, readonly=True)) as drills:
            records = [one for one in drills.history() if one.restore_s > 0 and one.restored_bytes > 0]
    except ReplicadError:
        return None  # it cannot be read, so nothing is known to have been measured; its own jobs report it
    mine = [one for one in records if one.replica == replica]
    return _rate((mine or records)[-TREND_POINTS:], replica if mine else "")


def _rate(records: Sequence[DrillRecord], replica: str) -> Rate | None:
    if not records:
        return None
    byte_rate = median(one.restored_bytes / one.restore_s for one in records)
    file_rate = median(one.files / one.restore_s for one in records)
    names = replica or ", ".join(sorted({one.replica for one in records}))
    return Rate(byte_rate, file_rate, len(records), names)


def estimate_s(rate: Rate | None, account: Account, bandwidth_bytes: int) -> float | None:
    """How long it would take: files and bytes both cost time, and so does a limit of the bandwidth; None when nothing
    was measured."""
    if rate is None:
        return None
    files, size = account.restored.get(FILES, 0) + account.damaged_files, account.restored_bytes
    times = [size / rate.bytes_s, files / rate.files_s if rate.files_s else 0.0]
    return max([*times, size / bandwidth_bytes] if bandwidth_bytes else times)


def _is_enough(room: Room, account: Account) -> bool:
    """Whether it fits, counted as if nothing that is replaced gave its room back first."""
    entries = sum(account.restored.values()) + account.damaged_files
    return account.restored_bytes + account.damaged_bytes <= room.free_bytes and (
        room.free_inodes is None or entries <= room.free_inodes
    )


def _user() -> str:
    uid = os.geteuid()
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
