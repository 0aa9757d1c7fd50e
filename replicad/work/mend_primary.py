"""Mend the primary: write a replica's proven block over bytes that rotted, or set metadata that drifted, and undo it.

    turn → record → proven block → open alone, same identity → keep the bad bytes → note the intent, durably
         → write, sync, times back, sync → read again from the medium → the ledger takes the new stamp and drops
           the intent, in one transaction → receipt, finding settled

**Owns** that order, and the breaker. **Never** writes anything but the recorded bytes (or, to undo, those that were
there before), never where the record has no block, and never while another program has the file open. What a crash cuts
short is settled by `interrupted.py`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Executor
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar

import msgspec

from replicad.db.ledger import BlockRow, Known, Ledger, put_of, stamp_of
from replicad.db.touched import restamp
from replicad.model.block import LARGEST_BLOCK_BYTES, block_id, checksum
from replicad.model.divergence import Divergence, Part, Receipt, State, undone_key
from replicad.model.entry import Kind, Put, Stamp, show_path
from replicad.model.errors import ReplicadError
from replicad.model.remedy import WRITES_PRIMARY, Remedy, remedy_of
from replicad.source.meta import Described, describe
from replicad.source.root import Root, Trail, Trouble, lstat_at, split, within_reach
from replicad.system.clock import Clock
from replicad.system.disk import Disk, errors_at
from replicad.system.logs import logger
from replicad.work.attributes import opened_path, set_attributes
from replicad.work.between_passes import BetweenPasses
from replicad.work.breaker import close_breaker, is_open, open_breaker, repairs_that_count
from replicad.work.confirm import is_recorded_block, length_of, recorded_block, recorded_entry
from replicad.work.dataset import Dataset
from replicad.work.half_read import is_half_read
from replicad.work.interrupted import (
    MENDING,
    WRITES_WITHIN_S,
    Intent,
    boot_now,
    finish_interrupted,
    odd_blocks,
    sectors,
)
from replicad.work.mended import PLANS, Mended
from replicad.work.patch import Moved, Overtaken, Patch, Refusal, check_rights
from replicad.work.quarantine import NOT_KEPT
from replicad.work.together import to_its_end
from replicad.work.where_now import where_now

log = logger("work.mend_primary")

MAX_PIECE_BYTES = 2 * LARGEST_BLOCK_BYTES
"""What one repair took away, at most: a block, or an entry's metadata."""
Given = ParamSpec("Given")
Result = TypeVar("Result")
Fetch = Callable[[bytes, int], Awaitable[bytes | str]]
"""A block by id and size, proven, or why it cannot be had."""

_NOT_TAKEN = "{} was written, but the medium does not give back what was written: replace the disk"
_encode, _decode = msgspec.msgpack.encode, msgspec.msgpack.decode


@dataclass(frozen=True, slots=True)
class _Target:
    """What is to be written, and where."""

    path: bytes
    known: Known
    row: BlockRow

    @property
    def offset(self) -> int:
        return self.row.number * self.known.block_bytes

    @property
    def length(self) -> int:
        return length_of(self.known, self.row.number)

    @property
    def stamp(self) -> Stamp:
        return stamp_of(self.known)


class PrimaryMender:
    """Repairs one dataset."""

    def __init__(self, dataset: Dataset, pool: Executor, clock: Clock, disk: Disk) -> None:
        self._dataset, self._pool, self._clock, self._disk = dataset, pool, clock, disk

    # may it be done

    async def may_by_itself(self, found: Divergence) -> bool:
        """Whether the configuration and the breaker let a repair happen without a person; opens the breaker when there
        were too many. What a person has undone stays as it is."""
        dataset = self._dataset
        if dataset.config.repair != "auto" or remedy_of(found) not in WRITES_PRIMARY:
            return False
        return await dataset.in_findings(self._breaker_lets_through, found)

    def _breaker_lets_through(self, found: Divergence) -> bool:
        findings, now_ns = self._dataset.findings, self._clock.now_ns()
        if is_open(findings) or findings.get(undone_key(found.key)) == found.seen:
            return False
        if repairs_that_count(findings, now_ns) < self._dataset.config.repair_limit:
            return True
        open_breaker(findings, now_ns)
        return False

    # repair

    async def plan(self, found: Divergence) -> Mended:
        """What `mend` would do; nothing is written."""
        remedy = remedy_of(found)
        if remedy not in WRITES_PRIMARY:
            return Mended(remedy, "nothing", PLANS[remedy])
        if found.part is Part.METADATA:
            return Mended(remedy, "planned", f"the recorded mode, owner and attributes of {show_path(found.path)}")
        target = await self._dataset.in_ledger(_target, self._dataset.ledger, found)
        if target is None:
            return Mended(remedy, "nothing", "the record has another block there now: nothing is to be repaired")
        where = f"{target.length} bytes at byte {target.offset} of {show_path(target.path)}"
        return Mended(remedy, "planned", f"would write block {target.row.id.hex()[:12]} of a replica: {where}")

    def between_passes(self) -> BetweenPasses:
        """The turn for several repairs."""
        return BetweenPasses(self._dataset.turn, self._clock)

    async def mend(
        self, found: Divergence, fetch: Fetch, source: str, *, by_person: bool, between: BetweenPasses | None = None
    ) -> Mended:
        """Repair one finding of this side, in a turn of its own unless one is given. An order of a person closes the
        breaker."""
        planned = await self.plan(found)
        if planned.result != "planned":
            return planned
        if by_person:
            await self._dataset.in_findings(close_breaker, self._dataset.findings)
        return await self._in_turn(found, planned.remedy, partial(self._mend, found, fetch, source), between)

    async def _in_turn(
        self,
        found: Divergence,
        remedy: Remedy,
        work: Callable[[], Awaitable[Mended]],
        between: BetweenPasses | None = None,
    ) -> Mended:
        """Do it when no pass is under way; for a while that is waited for."""
        if between is None:
            async with self.between_passes() as own:
                return await self._in_turn(found, remedy, work, own)
        if not await between.take():
            return Mended(remedy, "waiting", "a pass is under way: say it again when it has ended", is_for_pass=True)
        return await self._guarded(found, remedy, work)

    async def _guarded(self, found: Divergence, remedy: Remedy, work: Callable[[], Awaitable[Mended]]) -> Mended:
        """A result for everything that may come between."""
        where = show_path(found.path)
        try:
            await finish_interrupted(self._dataset, self._pool, self._disk)
            return await work()
        except Overtaken as error:
            text = f"{where}: {error}; what is there now counts as written, and is read anew"
            return Mended(remedy, "refused", text, is_for_pass=True)
        except Moved as error:
            text = f"{where}: {error}; nothing was written, the next pass looks at it"
            return Mended(remedy, "refused", text, is_for_pass=True)
        except Refusal as error:
            return Mended(remedy, "refused", f"{where}: {error}; nothing was written")
        except ReplicadError as error:
            return Mended(remedy, "failed", str(error))

    async def _mend(self, found: Divergence, fetch: Fetch, source: str) -> Mended:
        if found.part is Part.METADATA:
            return await self._whole(partial(self._mend_metadata, found))
        target = await self._dataset.in_ledger(_target, self._dataset.ledger, found)
        if target is None:
            raise Moved("the record has another block there now")
        if is_half_read(target.known):
            raise Refusal("an attribute of it cannot be read; it is repaired once that can be")
        zeros = bytes(target.length)
        if block_id(zeros) == target.row.id:
            return await self._whole(partial(self._write, found, target, zeros, "the record: all zeros"))
        good = await fetch(target.row.id, target.length)
        if isinstance(good, str):
            return Mended(Remedy.MEND_PRIMARY, "waiting", f"{source} cannot give the block now: {good}")
        if not is_recorded_block(good, target.row):
            return Mended(Remedy.MEND_PRIMARY, "failed", f"{source} gives a block that is not the recorded one")
        return await self._whole(partial(self._write, found, target, good, source))

    async def _whole(self, work: Callable[[], Awaitable[Mended]]) -> Mended:
        """A repair that has begun goes on to its end, receipt included, whoever is cancelled or closed meanwhile: its
        thread is not to write into a file that was let go, or beside the next pass. Raises Refusal."""

        async def alone() -> Mended:
            async with self._dataset.mending:
                if self._dataset.is_closed:
                    raise Refusal("the daemon stops, or reads its configuration anew; try again")
                return await work()

        return await to_its_end(asyncio.ensure_future(alone()))

    async def _write(self, found: Divergence, target: _Target, good: bytes, source: str) -> Mended:
        """Write the proven bytes; settle the finding when the medium gives them back."""
        written = await self._patched(target, good, partial(self._keep_aside, found))
        if written is None:
            text = "the medium gives the recorded bytes by now: nothing was written, it is looked at again"
            return Mended(Remedy.MEND_PRIMARY, "nothing", text)
        bad, seen_after, quarantine = written
        result = "repaired" if seen_after == checksum(good) else "failed"
        found = msgspec.structs.replace(found, quarantine=quarantine or found.quarantine)
        text = f"{target.length} bytes at byte {target.offset} of {show_path(target.path)} are those of {source} again"
        if result == "failed":
            text = _NOT_TAKEN.format(show_path(target.path))
        receipt = Receipt(
            divergence=found.id,
            at_ns=self._clock.now_ns(),
            remedy=remedy_of(found).value,
            path=target.path,
            offset=target.offset,
            length=target.length,
            before=bad,
            after=seen_after,
            source=source,
            result=result,
            detail=found.quarantine,
        )
        await self._settle(found, receipt, text)
        return Mended(Remedy.MEND_PRIMARY, result, text)

    async def _patched(
        self, target: _Target, data: bytes, keep: Callable[[bytes], str]
    ) -> tuple[bytes, bytes, str] | None:
        """Put `data` in place of what is there: checksums of before and after, and where the bytes from before are
        kept; None when there is nothing to do. Raises Refusal, Moved, ReplicadError."""
        root = await self._in_pool(Root, self._dataset.root)
        try:
            at = await where_now(self._dataset, root, self._pool, target.path)
            odd = await odd_blocks(self._dataset, self._pool, at, target.known, target.row.number)
            patch = await self._in_pool(Patch, root, at, target.stamp, self._disk)
            try:
                bad = await self._in_pool(_read, patch, target)
                if bad == data:
                    return None
                kept = await self._in_pool(keep, bad) if bad else ""
                now = await self._written(patch, target, data, bad, odd)
                after = await self._in_pool(_read, patch, target)
                await self._dataset.durably(self._take_stamp, target.path, target.stamp, now)
                return checksum(bad) if bad else b"", checksum(after) if after else b"", kept
            finally:
                await self._in_pool(patch.close)
        finally:
            await self._in_pool(root.close)

    async def _written(self, patch: Patch, target: _Target, data: bytes, bad: bytes, odd: dict[int, bytes]) -> Stamp:
        """Write, and put the times back; the stamp that the file has then."""
        intent = self._intent(target.path, target.stamp, patch.times[0])
        number, old, new = target.row.number, sectors(bad), sectors(data)
        async with self._intended(msgspec.structs.replace(intent, number=number, old=old, new=new, odd=odd)):
            await self._in_pool(self._check_in_time, patch, intent)
            return await self._in_pool(_write_at, patch, intent, target.offset, data)

    def _intent(self, path: bytes, stamp: Stamp, atime_ns: int) -> Intent:
        return Intent(path, tuple(stamp), within_reach(atime_ns), self._clock.now_ns(), boot=boot_now())

    @asynccontextmanager
    async def _intended(self, intent: Intent) -> AsyncIterator[None]:
        """What is about to be written stands in the ledger; not any more when it is refused, or counts as another's."""
        await self._dataset.durably(self._dataset.ledger.put, MENDING, _encode(intent))
        try:
            yield
        except Refusal:
            await self._dataset.durably(self._dataset.ledger.put, MENDING, None)
            raise

    def _check_in_time(self, patch: Patch, intent: Intent) -> None:
        """The last look before the first byte."""
        patch.check()
        if not 0 <= self._clock.now_ns() - intent.at_ns < WRITES_WITHIN_S * 1e9 / 2:
            raise Refusal("the disk of the ledger took too long; try again")

    def _take_stamp(self, path: bytes, before: Stamp, now: Stamp) -> None:
        """What we wrote does not count as a change, and the intent is settled: both or neither."""
        ledger = self._dataset.ledger
        restamp(ledger, path, before, now)
        ledger.put(MENDING, None)

    def _keep_aside(self, found: Divergence, bad: bytes) -> str:
        """Keep the bad bytes, unless the scrub that found them has; where. Raises Refusal when they cannot be: such a
        repair could not be taken back."""
        quarantine = self._dataset.quarantine.on(self._disk)
        if quarantine.read(found.quarantine, MAX_PIECE_BYTES) == bad:
            return found.quarantine
        kept = quarantine.keep(f"{found.id}-{checksum(bad).hex()[:8]}", bad)
        if not kept:
            raise Refusal(f"{NOT_KEPT}, so nothing is written")
        return kept

    async def _settle(self, found: Divergence, receipt: Receipt, text: str) -> None:
        """The receipt and the finding's new state, and what happened in words."""
        state = State.REPAIRED if receipt.result == "repaired" else State.OPEN
        settled = found.with_event(receipt.at_ns, text, state=state)
        await self._dataset.in_findings(self._write_down, settled, receipt)

    def _write_down(self, found: Divergence, receipt: Receipt) -> None:
        self._dataset.findings.add_receipt(receipt)
        self._dataset.findings.update(found)
        if found.state is State.REPAIRED:
            # should it rot so again, nobody has said to leave it
            self._dataset.findings.put(undone_key(found.key), None)

    # metadata

    async def _mend_metadata(self, found: Divergence) -> Mended:
        path, known = await self._recorded_entry(found)
        found = msgspec.structs.replace(found, path=path)
        wanted = put_of(found.path, known)
        before, kept, unset = await self._set_metadata(found.path, known, wanted, partial(self._keep_aside, found))
        text = f"mode, owner and attributes of {show_path(found.path)} are the recorded ones again"
        if unset:
            text = f"the system refuses to set {'; '.join(unset)} of {show_path(found.path)}; the rest is as recorded"
        receipt = Receipt(
            divergence=found.id,
            at_ns=self._clock.now_ns(),
            remedy=Remedy.MEND_METADATA.value,
            path=found.path,
            offset=0,
            length=0,
            before=checksum(before),
            after=checksum(_encode(wanted.meta)) if not unset else b"",
            source="the record",
            result="failed" if unset else "repaired",
            detail=kept,
        )
        await self._settle(msgspec.structs.replace(found, quarantine=kept), receipt, text)
        return Mended(Remedy.MEND_METADATA, receipt.result, text)

    async def _recorded_entry(self, found: Divergence) -> tuple[bytes, Known]:
        recorded = await self._dataset.in_ledger(recorded_entry, self._dataset.ledger, found)
        if recorded is None:
            raise Moved("the entry was dropped")
        return recorded

    async def _set_metadata(
        self, path: bytes, known: Known, wanted: Put, keep: Callable[[bytes], str]
    ) -> tuple[bytes, str, list[str]]:
        """Give the entry recorded at `path` this metadata: what it had before, where that is kept, and what the system
        refused of it.

        Raises Refusal when nothing was set, Moved, ReplicadError."""
        root = await self._in_pool(Root, self._dataset.root)
        try:
            at = await where_now(self._dataset, root, self._pool, path)
            entry = await self._described(root, at, known, wanted)
            await self._in_pool(check_rights, wanted.kind, wanted.meta)
            had = _encode(msgspec.structs.replace(wanted, meta=entry.description.meta))
            kept = await self._in_pool(keep, had)
            set_on = self._set_on_file if wanted.kind is Kind.FILE else self._set_on_other
            unset = await set_on(root, at, path, stamp_of(known), wanted)
            if unset:
                (after,) = await self._in_pool(describe, root, [at])
                if isinstance(after, Trouble) or after.description.meta == entry.description.meta:
                    raise Refusal(f"the system refuses to set {'; '.join(unset)}")
            return had, kept, unset
        finally:
            await self._in_pool(root.close)

    async def _described(self, root: Root, path: bytes, known: Known, wanted: Put) -> Described:
        """What stands there now, which is the recorded entry. Raises Refusal, Moved."""
        (entry,) = await self._in_pool(describe, root, [path])
        if isinstance(entry, Trouble):
            raise Moved(entry.reason) if entry.vanished else Refusal(entry.reason)
        if entry.stamp.identity != stamp_of(known).identity or entry.stamp.kind != wanted.kind:
            raise Moved("somebody changed it since it was recorded")
        return entry

    async def _set_on_file(self, root: Root, at: bytes, path: bytes, before: Stamp, wanted: Put) -> list[str]:
        """With nobody else in it; what the system refused."""
        patch = await self._in_pool(Patch, root, at, before, self._disk)
        try:
            intent = self._intent(path, before, patch.times[0])
            async with self._intended(intent):
                await self._in_pool(self._check_in_time, patch, intent)
                now, unset = await self._in_pool(_set_on_open, patch, path, wanted)
            await self._dataset.durably(self._take_stamp, path, before, now)
        finally:
            await self._in_pool(patch.close)
        return unset

    async def _set_on_other(self, root: Root, at: bytes, path: bytes, before: Stamp, wanted: Put) -> list[str]:
        """Nobody can be kept out of it; what the system refused."""
        async with self._intended(self._intent(path, before, 0)):
            now, unset = await self._in_pool(_set_attributes, root, at, before, wanted, self._disk)
        await self._dataset.durably(self._take_stamp, path, before, now)
        return unset

    # undo

    async def undo(self, found: Divergence) -> Mended:
        """Put back what the last repair of this finding took away."""
        remedy = remedy_of(found)
        receipts = await self._dataset.in_findings(self._dataset.findings.receipts, found.id)
        done = next((one for one in reversed(receipts) if one.result in ("repaired", "undone")), None)
        if done is None or done.result == "undone":
            return Mended(remedy, "nothing", "there is no repair of it that could be undone")
        kept = await self._in_pool(self._dataset.quarantine.read, found.quarantine, MAX_PIECE_BYTES)
        if not kept:
            return Mended(remedy, "refused", "the bytes from before were not readable and could not be kept")
        return await self._in_turn(found, remedy, lambda: self._whole(partial(self._undo, found, done, kept)))

    async def _undo(self, found: Divergence, done: Receipt, bad: bytes) -> Mended:
        if checksum(bad) != done.before:
            raise Refusal(f"the bytes that were kept in {found.quarantine} are damaged themselves")
        if found.part is Part.METADATA:
            path, known = await self._recorded_entry(found)
            *_, unset = await self._set_metadata(path, known, _decode(bad, type=Put), lambda _: "")
            if unset:
                raise ReplicadError(f"the system refuses to set {'; '.join(unset)}", where=show_path(found.path))
        else:
            target = await self._dataset.in_ledger(_target, self._dataset.ledger, found)
            if target is None or len(bad) != target.length:
                raise Moved("the record has another block there now")
            written = await self._patched(target, bad, partial(_check_repaired, done))
            if written and written[1] != done.before:
                return await self._not_undone(found, done, written[1])
        now_ns, text = self._clock.now_ns(), f"{show_path(found.path)} is as it was before the repair"
        receipt = msgspec.structs.replace(
            done, at_ns=now_ns, result="undone", before=done.after, after=done.before, source="quarantine"
        )
        await self._dataset.in_findings(self._undo_is_over, found.with_event(now_ns, text, state=State.OPEN), receipt)
        return Mended(remedy_of(found), "undone", text)

    async def _not_undone(self, found: Divergence, done: Receipt, seen: bytes) -> Mended:
        """The medium took less than all of it: what it gives now is what the repair wrote, or it is damaged again."""
        now_ns, text = self._clock.now_ns(), _NOT_TAKEN.format(show_path(found.path))
        if seen != done.after:
            receipt = msgspec.structs.replace(
                done, at_ns=now_ns, result="failed", before=done.after, after=seen, source="quarantine"
            )
            damaged = found.with_event(now_ns, text, state=State.OPEN)
            await self._dataset.in_findings(self._open_again, damaged, receipt)
        return Mended(remedy_of(found), "failed", text)

    def _undo_is_over(self, found: Divergence, receipt: Receipt) -> None:
        self._dataset.findings.put(undone_key(found.key), found.seen)
        self._open_again(found, receipt)

    def _open_again(self, found: Divergence, receipt: Receipt) -> None:
        """Unless something newer is open there."""
        findings = self._dataset.findings
        findings.add_receipt(receipt)
        if findings.open_at(found.side, found.peer, found.key) is None:
            findings.update(found)

    async def _in_pool(self, work: Callable[Given, Result], *args: Given.args, **kwargs: Given.kwargs) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._pool, partial(work, *args, **kwargs))


# pieces that run in threads


def _target(ledger: Ledger, found: Divergence) -> _Target | None:
    recorded = recorded_block(ledger, found)
    return _Target(*recorded) if recorded else None


def _read(patch: Patch, target: _Target) -> bytes:
    """What the medium gives; nothing where it gives an error."""
    try:
        return patch.read(target.offset, target.length)[0]
    except OSError:
        return b""


def _write_at(patch: Patch, intent: Intent, offset: int, data: bytes) -> Stamp:
    """Write as far as the medium takes it, what it holds then is read afterwards; put the times back in any case."""
    try:
        patch.write(offset, data)
    except OSError as error:
        log.warning("the medium does not take a repair", path=show_path(intent.path), reason=error.strerror)
    try:
        return patch.set_times(*patch.times)
    except OSError as error:
        raise ReplicadError(
            f"was written, and its times cannot be put back: {error.strerror}",
            where=show_path(intent.path),
            hint="make it writable for the daemon; the next pass tries again",
        ) from error


def _set_on_open(patch: Patch, path: bytes, put: Put) -> tuple[Stamp, list[str]]:
    with errors_at(Path(os.fsdecode(path)), "setting metadata"):
        return patch.set_metadata(put)


def _set_attributes(root: Root, path: bytes, before: Stamp, put: Put, disk: Disk) -> tuple[Stamp, list[str]]:
    """The stamp that the entry has then, and what the system refused. It is taken before anything is waited for: a
    change from then on is somebody's."""
    above, name = split(path)
    try:
        with Trail(root) as trail:
            directory = trail.enter(above)
            status = lstat_at(directory, name)
            if root.stamp(status, directory).identity != before.identity:
                raise Moved("somebody changed it since it was recorded")
            with opened_path(name, directory) if name else nullcontext(directory) as ref:
                unset = set_attributes(put, ref, atime_ns=status.st_atime_ns, mtime_ns=status.st_mtime_ns)
            now = root.stamp(lstat_at(directory, name), directory)
            disk.sync_file_system(directory, Path(os.fsdecode(root.path)))
    except OSError as error:
        raise Refusal(f"it cannot be looked at any more: {error.strerror}") from error
    if root.look(path) != now:
        raise Overtaken("somebody changed it while it was repaired")
    return now, unset


def _check_repaired(done: Receipt, now: bytes) -> str:
    """What is about to be undone must still be there."""
    if checksum(now) != done.after:
        raise Refusal("it does not hold what the repair wrote any more")
    return ""
