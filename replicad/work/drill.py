"""Drill: one rehearsed restore, from the replica alone, into scratch space, and what it proves.

    choose (between two passes) -> restore (work/restore.py, over the link) -> read back, compare -> validate -> record

Nothing of the primary's live data is read: the replica's bytes are compared with what the ledger says they should be.
What is wrong is a value in the record; what could not be found out makes it inconclusive, whatever else went well.

**Owns** the order of the steps and the record. **Never** proves a file that was not read back from the scratch space
with the ledger's digest, and never leaves its scratch directory behind.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from replicad.db.drills import Chosen, Drills, Subject
from replicad.link.messages import SnapshotLine
from replicad.model.drill import Amount, DrillRecord, Outcome, estimate_s
from replicad.model.entry import show_path
from replicad.model.errors import PeerError, ReplicadError, StoreDamagedError, UsageError
from replicad.model.show import counted, show_bytes
from replicad.status import DrillStatus
from replicad.system.clock import Clock
from replicad.system.disk import Disk
from replicad.work.account import SPECIAL, Account, Finding
from replicad.work.dataset import Dataset
from replicad.work.drill_choice import Choice, Chooser, InBook
from replicad.work.drill_digest import digest_of_file
from replicad.work.drill_reader import ChosenReader
from replicad.work.elsewhere import Dial
from replicad.work.planner import Rules
from replicad.work.read_remote import RemoteReader
from replicad.work.restore import Restore
from replicad.work.scratch import Scratch, apart, make_scratch, room_bytes
from replicad.work.target import Target, split
from replicad.work.validators import Bench, Validators

KEEP_FREE_SHARE = 0.05
"""Of the scratch file system's room that a drill leaves free: it is somebody else's file system too."""
SHOW_S = 0.5
"""How often the progress moves."""
MAX_NAMED = 20
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class Drill:
    """One drill. `run` may be called once."""

    def __init__(
        self,
        dataset: Dataset,
        replica: str,
        dial: Dial,
        book: Drills,
        in_book: InBook,
        status: DrillStatus,
        stopped: Callable[[], bool],
        turnstile: asyncio.Lock,
    ) -> None:
        """`stopped` tells work in threads to end early; `turnstile` lets one drill of a node restore at a time."""
        self._dataset, self._replica, self._dial, self._status = dataset, replica, dial, status
        self._book, self._in_book = book, in_book
        self._clock, self._disk = Clock(), Disk()
        self._stopped, self._turnstile = stopped, turnstile
        self.record = DrillRecord(dataset.config.name, replica)

    async def run(self, kind: str, globs: Sequence[bytes], base: Path, live: Sequence[tuple[str, Path]]) -> DrillRecord:
        """Drill; the record of it, not yet in the book. `live` is what the scratch directory must not overlap.

        What is known to be wrong is in the record, and so is what could not be found out. Raises ReplicadError when the
        book cannot be written: what an earlier drill had proven would count as proven by this one."""
        record = self.record
        record.kind, record.started_ns, record.outcome = kind, self._clock.now_ns(), Outcome.PROVEN
        await self._in_book(self._book.begin_choice)
        try:
            await apart(base, live)
            self._show("choosing", 0, "a pass is under way" if self._dataset.turn.locked() else "")
            limit = await asyncio.to_thread(self._limit_bytes, base)
            chooser = Chooser(self._dataset, self._replica, self._book, self._in_book, limit)
            choice = await chooser.run(kind, globs, record.started_ns)
            if choice is None:
                record.blame(Outcome.INCONCLUSIVE, "nothing has been replicated yet")
            else:
                self._show("waiting", 0, "another drill of this node restores" if self._turnstile.locked() else "")
                async with self._turnstile:
                    if await self._is_fit(choice, base):
                        await self._in_scratch(choice, base)
        except (PeerError, StoreDamagedError) as error:
            record.blame(Outcome.FAILED, str(error))
        except ReplicadError as error:
            record.blame(Outcome.INCONCLUSIVE, str(error))
        finally:
            record.ended_ns = self._clock.now_ns()
        return record

    # before

    def _limit_bytes(self, base: Path) -> int:
        room = room_bytes(base, self._disk)
        return min(self._dataset.config.drill_limit_bytes, int(room * (1 - KEEP_FREE_SHARE)))

    async def _is_fit(self, choice: Choice, base: Path) -> bool:
        """Whether what was chosen can be drilled here."""
        record, total = self.record, choice.total
        chosen, room = await self._in_book(self._book.amount), await self._in_book(self._book.room_bytes)
        record.snapshot, record.digest = choice.head.number, choice.head.digest.hex()
        record.files, record.bytes = chosen.files, chosen.size
        record.total_files, record.total_bytes = total.files, total.size
        record.uncompared_files = choice.younger
        for text in choice.left_out:
            record.blame(Outcome.INCONCLUSIVE, text)
        if choice.younger:
            changed = counted(choice.younger, "file has changed", "files have changed")
            text = f"{changed} since the snapshot, so the ledger does not speak of its bytes"
            record.blame(Outcome.INCONCLUSIVE, text)
        limit = await asyncio.to_thread(self._limit_bytes, base)
        if room > limit:
            needed, there = show_bytes(room), show_bytes(limit)
            text = f"needs {needed} of scratch space, {there} are to be had (drill_limit, and what is free)"
            record.blame(Outcome.INCONCLUSIVE, text)
            return False
        if not chosen.files and total.files and not record.reasons:
            record.blame(Outcome.INCONCLUSIVE, "nothing was chosen")
        return bool(chosen.files) or not total.files

    # the drill itself

    async def _in_scratch(self, choice: Choice, base: Path) -> None:
        scratch = await make_scratch(base, self._dataset.config.name)
        try:
            await self._restore(choice, scratch)
            await self._compare(scratch)
            await self._validate(scratch)
        finally:
            self._show("cleaning", 0)
            await asyncio.shield(asyncio.to_thread(scratch.close))

    async def _restore(self, choice: Choice, scratch: Scratch) -> None:
        record = self.record
        self._show("restoring", record.bytes)
        channel = await self._dial()
        try:
            reader = await RemoteReader.open(channel, record.dataset)
        except UsageError as error:  # it does not know the dataset, of which it has acknowledged a snapshot
            raise PeerError(
                f"{error.what}, of which it acknowledged snapshot {record.snapshot}", where=self._replica
            ) from error
        try:
            line = _line_of(await reader.snapshots(), choice, self._replica)
            chosen = reader if record.kind == "full" else ChosenReader(reader, self._book, self._in_book)
            restore = Restore(
                chosen, line, scratch.tree, dataset=record.dataset, rules=Rules(), clock=self._clock, heard=self._heard
            )
            await self._watched(restore)
        finally:
            await reader.close()
        self._note_account(restore.account)

    async def _watched(self, restore: Restore) -> None:
        """Run it and show how far it is."""
        task = asyncio.create_task(restore.run())
        try:
            while not (await asyncio.wait([task], timeout=SHOW_S))[0]:
                self._status.done_bytes = restore.account.done_bytes
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait([task])
        task.result()

    def _heard(self, finding: Finding) -> None:
        """One finding of the restore."""
        is_right = finding.sort == "failed" and os.geteuid() != 0 and "Operation not permitted" in finding.reason
        if finding.sort == "metadata" or is_right:  # a device that this user may not make says nothing of the replica
            self.record.metadata_not_set += 1
            if len(self.record.metadata) < MAX_NAMED:
                self.record.metadata.append(str(finding))
        elif finding.sort in ("damaged", "failed"):
            self.record.blame(Outcome.FAILED, str(finding))

    def _note_account(self, account: Account) -> None:
        record = self.record
        record.restored_bytes, record.restore_s = account.restored_bytes, account.duration_s
        record.rate_bytes_s = account.rate_bytes_s
        drilled, total = Amount(record.files, record.bytes), Amount(record.total_files, record.total_bytes)
        record.estimate_s = estimate_s(account.duration_s, drilled, total)
        failed = {label: count for label, count in account.failed.items() if label != SPECIAL or os.geteuid() == 0}
        if not account.finished or failed or account.damaged_files:
            self.record.outcome = Outcome.FAILED  # the findings have said why

    # read back

    async def _compare(self, scratch: Scratch) -> None:
        """Read every chosen file from the scratch space and compare it with what the ledger said."""
        self._show("comparing", self.record.bytes)
        target = await asyncio.to_thread(Target, scratch.tree, self._disk)
        try:
            after: bytes | None = None
            while page := await self._in_book(partial(self._book.chosen, after)):
                after = page[-1].path
                await self._in_book(partial(self._compare_page, target, page))
        finally:
            target.close()

    def _compare_page(self, target: Target, page: Sequence[Chosen]) -> None:
        """Compare, and mark those that are right, and those that are wrong. In the book's thread."""
        found: dict[Outcome, list[bytes]] = {outcome: [] for outcome in Outcome}
        for chosen in page:
            outcome = self._compare_one(target, chosen)
            found[outcome].append(chosen.path)
            self.record.compared_files += outcome is Outcome.PROVEN
            self._status.done_bytes += chosen.size
        self._book.mark_proven(found[Outcome.PROVEN])
        self._book.mark_wrong(found[Outcome.FAILED])

    def _compare_one(self, target: Target, chosen: Chosen) -> Outcome:
        """What a file comes to; why it is not proven is in the record."""
        path, outcome = show_path(chosen.path), Outcome.FAILED
        try:
            problem = self._problem(target, chosen)
        except PermissionError as error:  # as restored, its mode shuts an unprivileged reader out
            problem, outcome = f"cannot be read back: {error.strerror}", Outcome.INCONCLUSIVE
        except OSError as error:
            raise ReplicadError(f"cannot be read back: {error.strerror or 'stopped'}", where=path) from error
        if not problem:
            return Outcome.PROVEN
        self.record.blame(outcome, f"{path}: {problem}")
        return outcome

    def _problem(self, target: Target, chosen: Chosen) -> str:
        directory, name = split(chosen.path)
        try:
            with target.directory(directory) as parent:
                fd = os.open(name, _READ, dir_fd=parent)
            try:
                digest = digest_of_file(fd, chosen, self._stopped)
            finally:
                os.close(fd)
        except FileNotFoundError:
            return "is in the ledger and did not come back"
        if digest is None:
            return "came back with another size than the ledger says"
        return "" if digest == chosen.digest else "came back with other bytes than the ledger says"

    # validators

    async def _validate(self, scratch: Scratch) -> None:
        configured = self._dataset.config.validators
        validators, bench = Validators(configured, self._clock, self._disk), Bench(scratch.tree, scratch.bench)
        self._show("validating", 0)
        after: Subject | None = None
        try:
            while page := await self._in_book(partial(self._book.subjects, after)):
                for subject in page:
                    said = await validators.validate(subject, bench)
                    self.record.note_validated(said)
                    if said.outcome is not Outcome.PROVEN:
                        is_wrong = said.outcome is Outcome.FAILED
                        await self._in_book(partial(self._book.unprove, subject.path, is_wrong=is_wrong))
                    after = subject
        except ReplicadError:
            await self._unprove_from(after)
            raise

    async def _unprove_from(self, after: Subject | None) -> None:
        """What is behind this subject was not looked at by its validator, and so does not count as drilled."""
        while page := await self._in_book(partial(self._book.subjects, after)):
            after = page[-1]
            for subject in page:
                await self._in_book(partial(self._book.unprove, subject.path, is_wrong=False))

    def _show(self, state: str, total: int, reason: str = "") -> None:
        self._status.state, self._status.reason = state, reason
        self._status.done_bytes, self._status.total_bytes = 0, total


def _line_of(lines: Sequence[SnapshotLine], choice: Choice, replica: str) -> SnapshotLine:
    """The snapshot that the replica acknowledged last. Raises PeerError when it does not have it."""
    for line in lines:
        if (line.number, line.digest) == (choice.head.number, choice.head.digest):
            return line
    newest = lines[-1].number if lines else 0
    if newest > choice.head.number:
        raise ReplicadError(f"snapshot {choice.head.number} is not kept any more", where=replica)
    raise PeerError(f"acknowledged snapshot {choice.head.number} and does not have it any more", where=replica)
