"""Compare records: whether ledger and catalog say the same of every entry, and what is done where they do not.

The accounts of both books are compared at equal heads, while no pass runs and the replica lacks nothing. A difference
is narrowed down to paths, which become findings. The remedy is to tell the replica the whole record anew, in a snapshot
of its own: it costs names, not blocks, and nothing of the history before. When the accounts agree after that, the
findings are settled. **Never** decides that one of the books is right about content: no block is judged or moved here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from enum import Enum
from functools import partial

from replicad.db.ledger import EntryRow
from replicad.link.messages import BUCKETS
from replicad.model.divergence import Divergence, Event, Part, Side, State
from replicad.model.entry import Op, Put, Stamp
from replicad.model.snapshot import Head
from replicad.model.verdict import Books, Evidence, judge
from replicad.system.clock import Clock
from replicad.work.account_record import Difference, Lacking, Narrowing, account_of_ledger, differing
from replicad.work.conversation import Conversation
from replicad.work.dataset import Dataset
from replicad.work.record import UNREAD_SIZE

MAX_NAMED = 100
"""Paths that become findings; where more differ, all of them are told anew all the same."""
TURN_S = 30.0
"""How long a comparison waits for a pass to end before it is put off."""

Listing = Callable[[int], Awaitable[AsyncIterator[list[Op]]]]
"""The replica's record of a snapshot."""


class Agreement(Enum):
    """What a comparison gave."""

    AGREE = "agree"
    DIFFER = "differ"
    """And nothing more was done: it was told anew already, or somebody has to look at it."""
    TOLD = "told"
    """They differ; the next pass tells the replica the whole record anew."""
    LATER = "later"
    """They cannot be compared now: a pass is under way, or the replica was not told everything yet."""


class ComparingRecords:
    """Compares one dataset's ledger with one replica's catalog."""

    def __init__(self, dataset: Dataset, replica: str, clock: Clock) -> None:
        self._dataset, self._replica, self._clock = dataset, replica, clock

    async def is_due(self) -> bool:
        """Whether a cycle has passed, or there is news about paths that differed."""
        return await self._dataset.in_findings(self._is_due, await self._head())

    def _is_due(self, head: Head) -> bool:
        findings, now_ns = self._dataset.findings, self._clock.now_ns()
        compared_ns = int(findings.get(self._key("account_ns")) or 0)
        if not 0 <= now_ns - compared_ns < self._dataset.config.scrub_every_s * 1e9:
            return True
        return bool(self._open()) and findings.get(self._key("account_head")) != head.digest

    async def compare(self, talk: Conversation, listing: Listing, *, forced: bool = False) -> Agreement:
        """Compare now. `forced`: tell the record anew even if that was done in this cycle. Raises ReplicadError."""
        try:
            async with asyncio.timeout(TURN_S):
                await self._dataset.turn.acquire()
        except TimeoutError:
            return Agreement.LATER
        try:
            return await self._compare(talk, listing, forced)
        except Lacking:
            return Agreement.LATER
        finally:
            self._dataset.turn.release()

    async def _compare(self, talk: Conversation, listing: Listing, forced: bool) -> Agreement:
        dataset, ledger = self._dataset, self._dataset.ledger
        standing = await dataset.in_ledger(ledger.standing, self._replica)
        if not standing.head.number or await dataset.in_ledger(ledger.stamped) > standing.covered:
            return Agreement.LATER
        theirs, ours = await asyncio.gather(talk.account(), account_of_ledger(dataset, standing.covered))
        if theirs.head != standing.head:
            return Agreement.LATER
        parts = differing(ours.encoded(), theirs.sums) - ours.lacking
        if not parts and (ours.lacking or ours.entries == theirs.entries):
            if len(ours.lacking) == BUCKETS:
                return Agreement.LATER
            await dataset.in_findings(self._agree, standing.head, bool(ours.lacking))
            return Agreement.AGREE
        narrowing = Narrowing(dataset, standing.covered, parts, MAX_NAMED)
        found = await narrowing.run(await listing(standing.head.number))
        if await dataset.in_findings(self._differ, found, standing.head, forced, bool(ours.lacking)):
            await self._tell_anew(await listing(standing.head.number), standing.head)
            return Agreement.TOLD
        return Agreement.DIFFER

    async def _tell_anew(self, listing: AsyncIterator[list[Op]], head: Head) -> None:
        """Let the next pass tell everything. What only the replica has is noted under a stamp that nothing has, and as
        lacking, so that the pass looks there and drops it, or reads what is there."""
        async for ops in listing:
            await self._dataset.in_ledger(self._note_unknown, ops)
        await self._dataset.durably(self._dataset.ledger.restart, self._replica, head)

    def _note_unknown(self, ops: Sequence[Op]) -> None:
        ledger = self._dataset.ledger
        unknown = [op for op in ops if isinstance(op, Put) and op.path and ledger.entry(op.path) is None]
        nothing = [Stamp(op.kind, 0, 0, 0, 0, 0, UNREAD_SIZE, 0, 0) for op in unknown]
        ledger.record_entries(
            [EntryRow(Put(op.path, op.kind, op.meta), stamp, 1) for op, stamp in zip(unknown, nothing, strict=True)]
        )

    # inside `in_findings`

    def _agree(self, head: Head, in_part: bool) -> None:
        """`in_part`: some of the record was left out, so that findings may be about that."""
        now_ns = self._clock.now_ns()
        for found in () if in_part else self._open():
            text = f"the records of both sides agree, at snapshot {head.number}"
            self._dataset.findings.update(found.with_event(now_ns, text, state=State.REPAIRED))
        self._note(head)
        self._dataset.findings.put(self._key("told_ns"), None)

    def _differ(self, differences: Sequence[Difference], head: Head, forced: bool, in_part: bool) -> bool:
        """Write the differences down; whether the record is to be told anew."""
        findings, now_ns = self._dataset.findings, self._clock.now_ns()
        named = differences or [Difference(b"", "the records differ, and no single path accounts for it")]
        keys = {_key_of(one.path) for one in named}
        for found in self._open():
            if found.key not in keys and len(named) < MAX_NAMED and not in_part:
                findings.update(found.with_event(now_ns, "the records agree about it", state=State.REPAIRED))
        told_ns = int(findings.get(self._key("told_ns")) or 0)
        again = forced or not 0 <= now_ns - told_ns < self._dataset.config.scrub_every_s * 1e9
        story = "the whole record is told anew with the next pass" if again else "they differ though all was told anew"
        for one in named:
            findings.report(self._finding(one, story, now_ns))
        self._note(head)
        if again:
            findings.put(self._key("told_ns"), now_ns)
        return again

    def _finding(self, one: Difference, story: str, now_ns: int) -> Divergence:
        evidence = Evidence(books=Books.DIFFER)
        return Divergence(
            key=_key_of(one.path),
            dataset=self._dataset.config.name,
            side=Side.PRIMARY,
            peer=self._replica,
            part=Part.ENTRY,
            verdict=judge(evidence),
            found_ns=now_ns,
            changed_ns=now_ns,
            what=one.reason,
            path=one.path,
            evidence=evidence,
            events=(Event(now_ns, story),),
        )

    def _open(self) -> list[Divergence]:
        found = self._dataset.findings.listed(side=Side.PRIMARY)
        return [one for one in found if one.part is Part.ENTRY and one.peer == self._replica]

    def _note(self, head: Head) -> None:
        self._dataset.findings.put(self._key("account_ns"), self._clock.now_ns())
        self._dataset.findings.put(self._key("account_head"), head.digest)

    async def _head(self) -> Head:
        ledger = self._dataset.ledger
        return (await self._dataset.in_ledger(partial(ledger.standing, self._replica))).head

    def _key(self, what: str) -> str:
        return f"{what}:{self._replica}"


def _key_of(path: bytes) -> str:
    return f"entry:{path.hex()}"
