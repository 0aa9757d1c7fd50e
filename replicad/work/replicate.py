"""Replicate: the loop that keeps one dataset's copy on one replica up to date.

**Owns** the session with the replica (kept open between passes) and the decision when a pass is due: at a request,
when the watch saw a change (not where a pre hook runs), and often enough that there is a snapshot every `rpo` at the
latest. A full walk is due every `walk_every`, and always on request; in between a pass walks only what the watch
hinted at.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from replicad.db.ledger import OUTDATED
from replicad.link.channel import Channel
from replicad.model.errors import HeldError, LinkError
from replicad.model.snapshot import Head
from replicad.status import DatasetStatus
from replicad.system.clock import Clock
from replicad.system.disk import Disk
from replicad.system.logs import logger
from replicad.work.adopt import GOES_ON, adopt
from replicad.work.book_damage import LEDGER, settle
from replicad.work.copy import LastSeal, Pass
from replicad.work.dataset import Dataset
from replicad.work.hooks import hooks
from replicad.work.interrupted import finish_interrupted
from replicad.work.job import words_of
from replicad.work.outcome import Outcome
from replicad.work.read_remote import RemoteReader
from replicad.work.scouts import Scouts
from replicad.work.shipping import Shipping
from replicad.work.together import first_of, in_own_thread
from replicad.work.turnstile import enter_to_read

log = logger("work.replicate")

SEALS_IN_RPO = 2
"""A snapshot is due this many times in an rpo, so that one slow pass does not break the objective."""
HELD_LOOK_S = 10.0
"""How often a held dataset is looked at again: a root that was not mounted may be back."""
RESTORE_LOOK_S = 1.0
"""How often a pass that waits for the end of a restore looks whether it has ended."""
SHORTEST_PAUSE_S = 0.2
"""Between two passes that the watch caused: a dataset that is written all the time must not be walked all the time."""

BEFORE_IT = "a pass to another replica, or a repair, is under way; this one's pass comes when that has ended"
RESTORING = "a restore writes into the dataset; the pass comes when that has ended"

Dial = Callable[[], Awaitable[Channel]]


class Replication:
    """The job of one dataset and one replica."""

    def __init__(
        self,
        dataset: Dataset,
        replica: str,
        dial: Dial,
        status: DatasetStatus,
        pool: Executor,
        scouts: Scouts,
        clock: Clock,
    ) -> None:
        self._dataset, self._replica, self._dial = dataset, replica, dial
        self._status, self._pool, self._scouts, self._clock = status, pool, scouts, clock
        self._hints = dataset.hints()
        self._shipping: Shipping | None = None
        self._walked_s = float("-inf")
        self._again: frozenset[bytes] | None = frozenset()
        """Directories that the next pass looks at again because something in them could not be copied; None: all."""
        self._asked = asyncio.Event()
        status.rpo_s = dataset.config.rpo_s

    @property
    def name(self) -> str:
        """What it is called in logs and metrics."""
        return f"replicate {self._dataset.config.name} to {self._replica}"

    def request(self) -> int:
        """Ask for a pass now; the number that `pass_served` reaches when it has ended."""
        self._status.pass_requested += 1
        self._asked.set()
        return self._status.pass_requested

    def wake(self) -> None:
        """Look again now, without a request: a guard was released."""
        self._asked.set()

    async def close(self) -> None:
        """End the session."""
        if self._shipping:
            await self._shipping.close()
            self._shipping = None
        self._status.link_up = False

    async def wait(self) -> None:
        """Until a request, a hint, or the next time that something is due."""
        pause = self._clock.sleep(max(SHORTEST_PAUSE_S, self._until_due_s()))
        waits: list[Coroutine[Any, Any, object]] = [self._asked.wait(), pause]
        if not self._has_hook and not self._status.held:
            waits.append(self._hints.changed.wait())
        if self._shipping:
            waits.append(self._shipping.ended())
        await first_of(*waits)

    async def step(self) -> None:
        """One pass. Held is a state, not a failure: it is shown, and looked at again when something changes."""
        requested = self._status.pass_requested
        self._asked.clear()
        try:
            await self._pass()
        except HeldError as error:
            await self._let_go_of_lost()  # nobody dials while it is held, and a session's end would wake it for ever
            self._show("held", error.what, held=True)
            self._status.pass_ok = False
            self._served(requested)
        except Exception as error:  # a defect of ours too: nobody is to wait for a pass that has ended
            self._show("waiting" if isinstance(error, LinkError) else "failed", words_of(error))
            self._status.pass_ok = False
            self._status.last_error = words_of(error)
            if not isinstance(error, LinkError):
                self._served(requested)
            raise

    async def _pass(self) -> None:
        if not self._status.last_snapshot:  # first of all: another replica's pass, or a restore, may take hours
            await self._dataset.open()
            await self._dataset.in_ledger(self._remember)
        async with self._its_turn():
            await self._dataset.open()
            if reason := await self._dataset.in_ledger(self._dataset.held):
                raise self._dataset.held_error(reason)
            await finish_interrupted(self._dataset, self._pool, Disk())
            shipping = await self._session()
            served = self._status.pass_requested  # with what came while this pass waited: it is promised a full walk
            self._asked.clear()
            hints = self._hints.take()
            full = served > self._status.pass_served or not self._trusts_watch() or self._until_walk_s() <= 0
            only = None if full or hints is None or self._again is None else hints | self._again
            self._status.pass_started_ns = started_ns = self._clock.now_ns()
            started_s, before = self._clock.monotonic_s(), self._status.last_snapshot
            try:
                outcome = await self._hooked(shipping, only)
            except BaseException as error:
                if not isinstance(error, HeldError):
                    await self.close()  # what was shipped and not sealed must not get into the next pass's snapshot
                self._hints.add(only)  # whatever was not copied is still to be looked at
                if self._status.last_snapshot != before:
                    self._again = None  # and what it met and could not copy before a seal: by a walk of everything
                self._status.pass_number += 1
                raise
            if only is None:
                self._walked_s = started_s
            self._ended(outcome, started_ns, served, walked=only is None or self._has_hook)

    @asynccontextmanager
    async def _its_turn(self) -> AsyncIterator[None]:
        """While nobody else passes over the dataset, or writes into it."""
        status, turn = self._status, self._dataset.turn
        status.queued = turn.locked()
        if status.queued and status.state == "starting":
            self._show("waiting", BEFORE_IT)
        try:
            async with turn, self._undisturbed():
                status.queued = False
                yield
        finally:
            status.queued = False

    @asynccontextmanager
    async def _undisturbed(self) -> AsyncIterator[None]:
        """While nobody restores into the dataset: a snapshot of what is half restored would be one of nothing."""
        while (root := await self._entered()) is None:
            self._status.queued = True
            self._show("waiting", RESTORING, held=self._status.held)
            await self._clock.sleep(RESTORE_LOOK_S)
        try:
            yield
        finally:
            if root >= 0:
                os.close(root)

    async def _entered(self) -> int | None:
        """See `enter_to_read`. What a thread gets for a pass that is ended meanwhile is given back: it would keep
        restores out for as long as the daemon lives."""
        entering = in_own_thread(partial(enter_to_read, self._dataset.root))
        try:
            return await asyncio.shield(entering)
        except asyncio.CancelledError:
            entering.add_done_callback(_give_back)
            raise

    async def _hooked(self, shipping: Shipping, only: frozenset[bytes] | None) -> Outcome:
        """The pass between its hooks."""
        async with hooks(self._dataset.config, self._replica, self._show_hook):
            if self._has_hook:
                only = None  # a hook may rewrite anything; its changes belong to this pass
            one = Pass(self._dataset, self._replica, shipping, self._status, self._pool, self._scouts, self._clock)
            outcome = await one.run(only, await self._last_seal())
            self._again = outcome.again
            return outcome

    def _show_hook(self) -> None:
        self._status.state = "hook"

    def _ended(self, outcome: Outcome, started_ns: int, served: int, *, walked: bool) -> None:
        status = self._status
        status.pass_number += 1
        status.pass_ok = outcome.unread == 0
        status.unread, status.fuzzy, status.rotten = outcome.unread, outcome.fuzzy, outcome.rotten
        status.troubles = outcome.named
        status.last_error = ""
        if outcome.unread == 0:
            status.last_complete_ns = started_ns
            status.last_walked_ns = started_ns if walked else status.last_walked_ns
        self._show("idle", "")
        self._served(served)

    async def _last_seal(self) -> LastSeal:
        """What the last snapshot was like: it decides whether a pass without changes makes one."""
        ledger = self._dataset.ledger
        complete = await self._dataset.in_ledger(ledger.get, f"complete:{self._replica}")
        sealed_ns = int(await self._dataset.in_ledger(ledger.get, f"sealed_ns:{self._replica}") or 0)
        age_s = (self._clock.now_ns() - sealed_ns) / 1e9
        return LastSeal(bool(complete), is_old=not 0 <= age_s < self._dataset.config.rpo_s / SEALS_IN_RPO)

    # the session

    async def _session(self) -> Shipping:
        await self._let_go_of_lost()
        if self._shipping is None:
            self._shipping = await self._open()
        return self._shipping

    async def _let_go_of_lost(self) -> None:
        if self._shipping and self._shipping.failure:
            await self.close()

    async def _open(self) -> Shipping:
        if self._status.state != "failed":  # what failed is shown until it goes well
            self._status.state, self._status.reason = "waiting", f"connecting to {self._replica}"
        channel = await self._dial()
        shipping = Shipping(channel, self._pool, self._dataset.config.compression, self._count_sent)
        try:
            head = await shipping.open(self._dataset.config.name)
            await self._reconcile(head)
        except BaseException:
            await shipping.close()
            raise
        self._status.link_up = True
        return shipping

    async def _reconcile(self, head: Head) -> None:
        """Make the ledger's idea of the replica agree with the replica's own head. Raises HeldError."""
        dataset, ledger = self._dataset, self._dataset.ledger
        standing = await dataset.in_ledger(ledger.standing, self._replica)
        is_known = head in (standing.head, standing.sent)
        if is_known and standing.covered != OUTDATED:
            if head != standing.head:
                await dataset.in_ledger(self._arrived)
            return
        if not is_known and not await dataset.in_ledger(self._may_go_on):
            raise dataset.held_error(_diverged(standing.head, head, self._replica))
        reader = await RemoteReader.open(await self._dial(), dataset.config.name)
        try:
            async with hooks(dataset.config, self._replica, self._show_hook):  # the root may be there only between them
                self._status.state = "catching-up"
                adopted = await adopt(dataset, self._replica, head, reader, self._clock)
        finally:
            await reader.close()
        self._walked_s = float("-inf")  # what was noted without having been seen is found by a walk of everything
        if not standing.head.number:  # a ledger that was lost, or moved away because it was damaged
            text = f"the ledger was made anew from snapshot {head.number} of {self._replica}"
            await dataset.open_findings()
            await dataset.in_findings(settle, dataset.findings, LEDGER, self._clock.now_ns(), text)
        log.info(
            "goes on from the replica's record",
            dataset=dataset.config.name,
            replica=self._replica,
            snapshot=head.number,
            as_recorded=adopted.entries,
            changed=adopted.changed,
            missing=adopted.missing,
            unseen=adopted.unseen,
        )

    # inside `in_ledger`

    def _may_go_on(self) -> bool:
        """Whether a person has decided that this replica's history is to be gone on from."""
        ledger = self._dataset.ledger
        return bool(ledger.get("released") or ledger.get(GOES_ON.format(self._replica)))

    def _arrived(self) -> None:
        """What was sent last arrived, its acknowledgement did not. Whether it was complete is not known any more, so
        the next pass makes a snapshot whatever it finds."""
        self._dataset.ledger.set_acked(self._replica)
        self._dataset.ledger.put(f"complete:{self._replica}", None)
        self._remember()

    def _remember(self) -> None:
        """What the ledger knows from before the daemon started, into the status."""
        ledger, status = self._dataset.ledger, self._status
        totals = ledger.totals()
        status.entries, status.size = totals.entries, totals.size
        status.last_snapshot = ledger.standing(self._replica).head.number
        status.last_snapshot_ns = int(ledger.get(f"sealed_ns:{self._replica}") or 0)
        complete_ns = int(ledger.get(f"complete_ns:{self._replica}") or 0)
        if ledger.get(f"complete:{self._replica}"):  # all that a ledger knows to which no complete one was added since
            complete_ns = max(complete_ns, status.last_snapshot_ns)
        if status.last_snapshot:
            status.last_complete_ns = max(status.last_complete_ns, complete_ns)

    def _count_sent(self, size: int) -> None:
        self._status.sent_bytes += size

    # small things

    def _until_due_s(self) -> float:
        """Seconds until a pass is due without a request or a hint."""
        if self._status.held:
            return HELD_LOOK_S
        return min(self._dataset.config.rpo_s / SEALS_IN_RPO, self._until_walk_s())

    @property
    def _has_hook(self) -> bool:
        """A pre hook may well write into the dataset; if changes caused passes, each pass would cause the next one."""
        return bool(self._dataset.config.hook_pre)

    def _trusts_watch(self) -> bool:
        watch = self._dataset.watch
        self._status.watch = watch.state if watch else "off"
        return self._status.watch == "on"

    def _until_walk_s(self) -> float:
        return self._walked_s + self._dataset.config.walk_every_s - self._clock.monotonic_s()

    def _served(self, number: int) -> None:
        self._status.pass_served = max(self._status.pass_served, number)

    def _show(self, state: str, reason: str, *, held: bool = False) -> None:
        self._status.state, self._status.reason, self._status.held = state, reason, held
        self._status.link_up = self._shipping is not None and self._shipping.failure is None


def _give_back(entering: asyncio.Future[int | None]) -> None:
    if not entering.cancelled() and not entering.exception() and (root := entering.result()) is not None and root >= 0:
        os.close(root)


def _diverged(ours: Head, theirs: Head, replica: str) -> str:
    """Why the two histories do not fit, in words."""
    if not theirs.number:
        return (
            f"replica {replica} has no history, the ledger says snapshot {ours.number}: its store was lost or replaced"
        )
    if not ours.number:
        return (
            f"replica {replica} holds snapshot {theirs.number}, this ledger knows of none:"
            " the ledger was lost or is new; a release lets it begin anew with the replica's record"
        )
    return (
        f"replica {replica} is at snapshot {theirs.number} ({theirs.digest.hex()[:12]}), the ledger says"
        f" {ours.number} ({ours.digest.hex()[:12]}): the two do not share one history"
    )
