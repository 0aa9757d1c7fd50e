"""Tend: the loop in which a primary and one replica settle what was found wrong on either side.

One round: own findings are confirmed with the replica; the replica's are asked for, the blocks they want are looked for
and sent, and what became of them is mirrored; so is how its scrub stands; the two records are compared as a whole once
in a scrub's cycle; and what may be repaired here without a person is. Findings meet in the books: a scrub that reports
one needs not know this loop, which looks at the book every few seconds.

**Owns** the tending session: kept open while there is something to settle. An unreachable replica is waited for.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import NamedTuple, TypeVar

from replicad.link.messages import Case, Examined, Lost
from replicad.model.attestation import Attestation, DrillNote
from replicad.model.block import ID_BYTES, checksum
from replicad.model.divergence import Divergence, Part, Side, State
from replicad.model.entry import Map, Op, Put
from replicad.model.errors import BookDamagedError, LinkError, RefusedError, ReplicadError, UsageError
from replicad.model.glob import escaped
from replicad.model.remedy import Remedy, remedy_of
from replicad.model.snapshot import Head
from replicad.model.verdict import Sight, Verdict
from replicad.source.root import Root
from replicad.status import CopyStatus, ScrubStatus
from replicad.system.clock import Clock
from replicad.system.disk import Disk
from replicad.work.between_passes import BetweenPasses
from replicad.work.compare_records import Agreement, ComparingRecords
from replicad.work.confirm import Confirming, Opinions
from replicad.work.conversation import Conversation
from replicad.work.dataset import Dataset
from replicad.work.elsewhere import Dial, Elsewhere
from replicad.work.holdings import Held, Holdings, pieces_of
from replicad.work.interrupted import MENDING, finish_interrupted
from replicad.work.mend_primary import PrimaryMender
from replicad.work.mended import PLANS, Mended
from replicad.work.mirror import Mirror, close_those_of_others, mirror_attestation, mirror_status
from replicad.work.read_remote import RemoteReader
from replicad.work.reader import open_block
from replicad.work.replica_history import ReplicaHistory
from replicad.work.same_root import is_same_root
from replicad.work.together import first_of

LOOK_EVERY_S = 5.0
"""How often the findings book is looked at for news."""
AWAITED_S = 2.0
"""How often it is asked while somebody waits for its scrub to end."""
HELD_UP = ("paused", "quiet", "waiting", "failed")
"""States of a scrub that does not go on just now."""
FIRST_COPY_S = 1.0
"""How often is looked whether there is a first copy by now: until then nothing can be said of it."""
IDLE_CLOSE_S = 300.0
"""A session that had nothing to settle for so long is closed between rounds: it takes a place on the replica. One that
never had is closed at once."""
AGAIN_ROUNDS, LAST_AGAIN_ROUNDS = 5, 60
"""A finding that a round could not settle is looked at again after so many, later after more, and at once when
something about it changes. Each time costs a block or, on behalf of a whole segment, MAX_TESTIMONY_BYTES."""


Answer = TypeVar("Answer")
NEVER = 1 << 62


class _Looked(NamedTuple):
    """How a finding stood when it was looked at, and when it is due again."""

    changed_ns: int = -1
    due_s: float = 0.0
    pause_s: float = 0.0
    covered: int = NEVER


class Patience:
    """Which findings are due: new ones and changed ones at once, those that stay as they are more and more seldom, and
    sooner when a pass may have cleared what nobody could say of them."""

    def __init__(self, clock: Clock, round_s: float) -> None:
        """`round_s`: how often there is a round."""
        self._clock, self._round_s = clock, round_s
        self._looked: dict[str, _Looked] = {}

    def is_due(self, found: Divergence, covered: int = 0) -> bool:
        """Whether it is time to look at it (again), now that the replica has everything up to `covered`."""
        last = self._looked.get(found.id, _Looked())
        return last.changed_ns != found.changed_ns or self._is_over(last, covered)

    def resting(self, covered: int) -> dict[str, int]:
        """When those that are not due unless they change were changed last, by id."""
        return {name: last.changed_ns for name, last in self._looked.items() if not self._is_over(last, covered)}

    def _is_over(self, last: _Looked, covered: int) -> bool:
        return covered > last.covered or self._clock.monotonic_s() >= last.due_s

    def looked(self, found: Divergence, covered: int = NEVER) -> None:
        """It was looked at, and this is how it stands now. It is due as soon as the replica has more than `covered`."""
        last = self._looked.get(found.id, _Looked())
        same = last.changed_ns == found.changed_ns
        pause_s = min(2 * last.pause_s, LAST_AGAIN_ROUNDS * self._round_s) if same else AGAIN_ROUNDS * self._round_s
        self._looked[found.id] = _Looked(found.changed_ns, self._clock.monotonic_s() + pause_s, pause_s, covered)

    def keep(self, names: set[str]) -> None:
        """Forget all others."""
        self._looked = {name: looked for name, looked in self._looked.items() if name in names}


class Tending:
    """The job of one dataset and one replica."""

    def __init__(
        self,
        dataset: Dataset,
        replica: str,
        dial: Dial,
        status: ScrubStatus,
        pool: Executor,
        clock: Clock,
        *,
        disk: Disk,
        opinions: Opinions,
        elsewhere: Elsewhere,
        tell_anew: Callable[[], None],
        copy: CopyStatus,
        notes: Callable[[], Sequence[DrillNote]] = lambda: (),
    ) -> None:
        """`status` becomes what the replica says of its scrub, `copy` what it says of its copy; it is told of `notes`,
        drills. `opinions` and `elsewhere` are shared by the jobs of one dataset.
        `tell_anew` is called when the next pass has the whole record to tell."""
        self._dataset, self.replica, self._dial, self._status = dataset, replica, dial, status
        self._pool, self._clock, self._disk, self._opinions = pool, clock, disk, opinions
        self._elsewhere, self._tell_anew = elsewhere, tell_anew
        self._copy, self._notes = copy, notes
        self.mender = PrimaryMender(dataset, pool, clock, disk)
        self._records = ComparingRecords(dataset, replica, clock)
        self._history = ReplicaHistory(dataset, replica, clock)
        every_s = dataset.config.tend_every_s
        self._own, self._theirs, self._mends = (Patience(clock, every_s) for _ in range(3))
        self._talk: Conversation | None = None
        self._useful_s = float("-inf")
        self._seen = (0, 0, False)
        self._left: dict[str, int] = {}
        """How many blocks a finding of the replica's wanted when it was last testified about."""
        self._scrubbed_until = 0
        """Somebody here waits for the replica's scrub to serve this number."""
        self._wants_account = False
        self._has_swept = False
        """Whether findings about replicas that are none any more were closed."""
        self._nudged = asyncio.Event()
        self._asking = 0
        """How many questions from outside the rounds are under way."""
        self._rounds, self._opening = asyncio.Lock(), asyncio.Lock()

    @property
    def name(self) -> str:
        """What it is called in logs and metrics."""
        return f"tend {self._dataset.config.name} with {self.replica}"

    def nudge(self) -> None:
        """Do a round now."""
        self._nudged.set()

    async def start_scrub(self) -> int:
        """Have the replica scrub its side of the dataset now, and compare the two records after that; the number that
        `served` of the mirrored status reaches when it has. Raises LinkError, ReplicadError."""
        said = await self._asked(lambda talk: talk.direct("start"))
        if said is None:
            raise UsageError(f"{self.replica} runs no scrub of {self._dataset.config.name}", hint="look there")
        mirror_status(self._status, said)
        self._scrubbed_until = max(self._scrubbed_until, self._status.requested)
        self._wants_account = True
        self._nudged.set()
        return self._status.requested

    @property
    def _every_s(self) -> float:
        """Until the next round. What may be held up for days is not asked about all the time."""
        is_soon = not self._is_scrubbed and self._status.state not in HELD_UP
        return AWAITED_S if is_soon else self._dataset.config.tend_every_s

    @property
    def _is_scrubbed(self) -> bool:
        """Whether nobody here waits for the replica's scrub; one that lost its memory, request and all, is not waited
        for."""
        return self._status.served >= min(self._scrubbed_until, self._status.requested)

    async def attest(self) -> Attestation:
        """What the replica says of its copy now, from its own books. Raises LinkError, ReplicadError; UsageError when
        it has none."""
        return await self._asked(self._attested)

    async def keep(self, name: str, snapshot: Head, reason: str) -> str:
        """Have the replica keep that snapshot under a name; why it does not, or "". Raises as `attest`."""
        return await self._asked(lambda talk: talk.keep(name, snapshot, reason))

    async def _asked(self, ask: Callable[[Conversation], Awaitable[Answer]]) -> Answer:
        """Ask something outside the rounds, which leave the session open meanwhile; in a session of its own while the
        rounds wait for an answer, since that may take as long as the replica's record."""
        self._asking += 1
        try:
            if self._talk and self._talk.is_busy and not self._talk.is_over:
                own = await Conversation.open(await self._dial(), self._dataset.config.name)
                try:
                    return await ask(own)
                finally:
                    await own.close()
            try:
                return await ask(await self._session())
            except LinkError:  # a session that was kept open may have died unnoticed
                return await ask(await self._session())
        finally:
            self._asking -= 1

    async def _attested(self, talk: Conversation) -> Attestation:
        said = mirror_attestation(await talk.attest(self._notes()))
        self._copy.said, self._copy.heard_ns, self._copy.unheard = said, self._clock.now_ns(), ""
        return said

    async def close(self) -> None:
        """End the session."""
        if self._talk:
            await self._talk.close()
            self._talk = None

    # the job

    async def wait(self) -> None:
        """Until a nudge, news in the findings book, or the next time."""
        every_s = self._every_s
        until_s = self._clock.monotonic_s() + every_s
        look_s = min(every_s, LOOK_EVERY_S if self._seen[-1] else FIRST_COPY_S)
        while not self._nudged.is_set() and self._clock.monotonic_s() < until_s:
            await first_of(self._nudged.wait(), self._clock.sleep(look_s))
            try:
                if await self._news() != self._seen:
                    return
            except ReplicadError:
                return  # the next round says what is wrong with the book

    async def step(self) -> None:
        """One round. Raises ReplicadError; LinkError when the replica is out of reach."""
        self._nudged.clear()
        heard_ns = self._copy.heard_ns
        try:
            async with self._rounds:
                await self._round()
        except LinkError as error:
            self._note_unheard(f"out of reach: {error.what}")
            raise
        except (BookDamagedError, RefusedError) as error:
            if self._copy.heard_ns == heard_ns:
                self._note_unheard(f"not heard of: {error}")
            raise

    def _note_unheard(self, why: str) -> None:
        """What was heard last is not how it stands now."""
        self._status.state, self._status.reason, self._copy.unheard = "waiting", why, why

    async def _round(self) -> None:
        dataset = self._dataset
        await dataset.open()
        await dataset.open_findings()
        if not self._has_swept:
            now_ns = self._clock.now_ns()
            await dataset.in_findings(close_those_of_others, dataset.findings, dataset.replicas, now_ns)
            self._has_swept = True
        self._seen = await self._news()
        try:
            talk = await self._session()
        except UsageError:
            self._status.state, self._status.reason = "waiting", f"{self.replica} has no copy yet"
            self._copy.unheard = "it has no copy yet"
            return
        try:
            open_ones = await self._settle_all(talk)
        except BaseException:
            await self.close()
            raise
        now_s = self._clock.monotonic_s()
        if open_ones:
            self._useful_s = now_s
        elif now_s - self._useful_s >= IDLE_CLOSE_S and not self._asking:
            await self.close()

    async def _settle_all(self, talk: Conversation) -> int:
        """The round's work; how many findings were open."""
        await self._mirror_scrub(talk)
        await self._attested(talk)
        async with _Side(self, talk) as side:
            open_ones = 0
            for settle in self._order():
                open_ones += await settle(side)
            if (self._wants_account and self._is_scrubbed) or await self._records.is_due():
                await self._compare(side, forced=False)
        return open_ones

    def _order(self) -> Sequence[Callable[[_Side], Awaitable[int]]]:
        """Own findings and the replica's take turns in coming first: where no round comes to its end, because daemons
        die or the line does, both go on all the same."""
        both = (self._settle_own, self._hear)
        return both if int(self._clock.now_ns() / 1e9) % 2 else both[::-1]

    async def _session(self) -> Conversation:
        async with self._opening:
            if self._talk and self._talk.is_over:
                await self.close()
            if self._talk is None:
                self._talk = await Conversation.open(await self._dial(), self._dataset.config.name)
            return self._talk

    # own findings

    async def _settle_own(self, side: _Side) -> int:
        """Judge what this side has found, and repair each at once that may be repaired; how many were open."""
        open_ones = await self._listed(Side.PRIMARY)
        async with self.mender.between_passes() as between:
            for found in open_ones:
                now = found
                if side.root is not None and self._is_to_be_judged(found, side.covered):
                    now = await self._judged(side, side.root, found)
                    self._own.looked(now, side.covered if now.evidence.primary is Sight.UNKNOWN else NEVER)
                await self._repair_by_itself(side, now, between)
                between.rest()
        names = {found.id for found in open_ones}
        self._own.keep(names)
        self._opinions.keep(names)
        return len(open_ones)

    async def _judged(self, side: _Side, root: Root, found: Divergence) -> Divergence:
        confirming = Confirming(self._dataset, root, self._pool, self._clock, self._opinions)
        return await confirming.judge(found, side)

    def _is_to_be_judged(self, found: Divergence, covered: int) -> bool:
        if found.part not in (Part.BLOCK, Part.METADATA) or found.peer not in ("", self.replica):
            return False
        if found.part is Part.BLOCK and not self._opinions.has(found.id, self.replica):
            return True
        return (found.verdict is Verdict.INCONCLUSIVE or found.is_lost) and self._own.is_due(found, covered)

    async def _repair_by_itself(self, side: _Side, found: Divergence, between: BetweenPasses) -> None:
        """If the configuration allows that to be written here without a person, with blocks that this replica has."""
        if found.part is Part.BLOCK and not self._opinions.holds(found.id, self.replica):
            return
        if (
            found.state is State.OPEN
            and self._mends.is_due(found, side.covered)
            and await self.mender.may_by_itself(found)
        ):
            await self._mend_by_itself(side, found, between)

    async def _mend_by_itself(self, side: _Side, found: Divergence, between: BetweenPasses) -> None:
        """Repair; why that was not possible stands in the finding's history, once."""
        mended = await self.mender.mend(found, side.fetch, self.replica, by_person=False, between=between)
        findings = self._dataset.findings
        now = await self._dataset.in_findings(findings.get_exactly, found.id)
        if mended.result == "nothing" and side.root:  # it is well by now: that is for a judge to say
            now = await self._judged(side, side.root, found)
        if now and now.state is State.OPEN and (not now.events or now.events[-1].what != mended.text):
            now = now.with_event(self._clock.now_ns(), mended.text)
            await self._dataset.in_findings(findings.update, now)
        self._mends.looked(now or found, side.covered if mended.is_for_pass else NEVER)

    # the replica's findings

    async def _hear(self, side: _Side) -> int:
        """Ask for the replica's findings, say what is to be said of each, keep how they stand; how many are open. Of
        those of which there is nothing to say now the bad bytes do not travel."""
        names: set[str] = set()
        after, more, known = "", True, self._theirs.resting(side.covered)
        while more:
            answer = await side.talk.inquire(after, known)
            more = answer.more
            names.update(answer.same)
            after = max([case.found.id for case in answer.cases] + answer.same, default=after)
            for case in sorted(answer.cases, key=lambda case: len(case.wants)):  # a large one may outlast the link
                found = await self._take(case.found)
                if self._theirs.is_due(case.found, side.covered):
                    found = await self._testify(side, case)
                if found.state is State.OPEN:
                    names.add(found.id)
        await self._dataset.in_findings(self._mirror().close_all_but, names, self._clock.now_ns())
        self._theirs.keep(names)
        self._left = {name: left for name, left in self._left.items() if name in names}
        return len(names)

    async def _testify(self, side: _Side, case: Case) -> Divergence:
        """Say what this side holds of what the case wants, and send it."""
        if side.root is None:
            held = [Held(Sight.UNKNOWN) for _ in case.wants]
        else:
            held = await Holdings(self._dataset, side.root, self._pool).look(case.wants)
        held = await self._elsewhere.fill(self.replica, case.wants, held)
        hashed = await self._in_pool(partial(checksum, case.seen)) if case.seen else b""
        sights, frames = [one.sight for one in held], sum(bool(one.frame) for one in held)
        settled = await self._take(await side.talk.testify(case, hashed, sights, pieces_of(held), frames))
        if settled.state is State.OPEN and self._has_more(case, frames):
            self._nudged.set()  # the next round brings it
        else:
            self._theirs.looked(settled, side.covered if Sight.UNKNOWN in sights else NEVER)
        return settled

    def _has_more(self, case: Case, frames: int) -> bool:
        """Whether there are more blocks than one testimony takes, and sending them leads somewhere."""
        left = len(case.wants)
        before, self._left[case.found.id] = self._left.get(case.found.id, left + 1), left
        return 0 < frames < left < before

    async def _take(self, found: Divergence) -> Divergence:
        return await self._dataset.in_findings(self._mirror().take, found)

    def _mirror(self) -> Mirror:
        return Mirror(self._dataset.findings, self._dataset.config.name, self.replica)

    async def _mirror_scrub(self, talk: Conversation) -> None:
        if said := await talk.direct("status"):
            mirror_status(self._status, said)
            await self._history.note(talk, self._status)
        else:
            self._status.state, self._status.reason = "waiting", f"{self.replica} runs no scrub of it yet"

    # both records

    async def _compare(self, side: _Side, *, forced: bool) -> Agreement:
        outcome = await self._records.compare(side.talk, side.listing, forced=forced)
        if outcome is not Agreement.LATER:
            self._wants_account = False
        if outcome is Agreement.TOLD:
            self._tell_anew()
        return outcome

    # orders of a person

    async def repair(self, found: Divergence, *, dry_run: bool) -> Mended:
        """Repair one finding of either side now, by order of a person. Raises LinkError when the replica is needed and
        out of reach, ReplicadError."""
        remedy = remedy_of(found)
        if dry_run:
            if found.side is Side.REPLICA or remedy is Remedy.SEND_RECORD:
                return Mended(remedy, "nothing" if remedy in _IDLE else "planned", PLANS[remedy])
            return await self.mender.plan(found)
        async with self._rounds:
            try:
                async with _Side(self, await self._session()) as side:
                    return await self._repair(side, found)
            except BaseException:
                await self.close()
                raise

    async def _repair(self, side: _Side, found: Divergence) -> Mended:
        if found.side is Side.REPLICA:
            return await self._settle_there(side, found)
        if found.part is Part.ENTRY:
            return Mended(Remedy.SEND_RECORD, *_OUTCOMES[await self._compare(side, forced=True)])
        if found.part in (Part.BLOCK, Part.METADATA) and side.root:
            found = await self._judged(side, side.root, found)
            if found.state is not State.OPEN:
                return Mended(Remedy.NOTHING, "nothing", found.events[-1].what)
        return await self.mender.mend(found, side.fetch, self.replica, by_person=True)

    async def _settle_there(self, side: _Side, found: Divergence) -> Mended:
        """A round about one finding of the replica's."""
        before = f"{max(0, int(found.id, 16) - 1):0{len(found.id)}x}" if int(found.id, 16) else ""
        cases = [case for case in (await side.talk.inquire(before, {})).cases if case.found.id == found.id]
        if not cases:
            return Mended(remedy_of(found), "nothing", f"it is not open on {self.replica} any more")
        settled = await self._testify(side, cases[0])
        said = settled.events[-1].what if settled.events else settled.verdict.value
        if settled.state is State.OPEN:
            text = f"{said}; if {self.replica} waits for a person, there: replicad repair {found.id}"
            return Mended(remedy_of(settled), "waiting", text)
        return Mended(remedy_of(settled), "repaired" if settled.state is State.REPAIRED else "nothing", said)

    # how

    async def _news(self) -> tuple[int, int, bool]:
        """What changes when there is something to do: the book of findings, and whether the replica has a copy."""
        dataset = self._dataset
        news = await dataset.in_findings(dataset.findings.news, Side.PRIMARY)
        standing = await dataset.in_ledger(lambda: dataset.ledger.standing(self.replica))
        return *news, bool(standing.head.number)

    async def _listed(self, side: Side) -> list[Divergence]:
        return await self._dataset.in_findings(partial(self._dataset.findings.listed, side=side))

    async def _in_pool(self, work: Callable[[], bytes]) -> bytes:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)


class _Side:
    """Both sides for one round: this one's root, and what the replica is asked. Closed with it."""

    def __init__(self, tending: Tending, talk: Conversation) -> None:
        self.talk, self.name = talk, tending.replica
        self.root: Root | None = None
        """None while it is not the directory that was recorded: then nothing is said about what it holds."""
        self.covered = 0
        self._tending = tending
        self._reader: RemoteReader | None = None

    async def __aenter__(self) -> _Side:
        tending, dataset = self._tending, self._tending._dataset
        await self._finish_interrupted()
        self.covered = (await dataset.in_ledger(dataset.ledger.standing, self.name)).covered
        if await is_same_root(dataset):
            loop = asyncio.get_running_loop()
            self.root = await loop.run_in_executor(tending._pool, Root, dataset.root)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.root:
            await asyncio.get_running_loop().run_in_executor(self._tending._pool, self.root.close)
        if self._reader:
            await self._reader.close()

    async def examine(self, name: bytes, data: bytes) -> Examined:
        """See `confirm.Peer`."""
        return await self.talk.examine(name, data)

    async def fetch(self, name: bytes, size: int) -> bytes | str:
        """See `confirm.Peer`."""
        reader = await self._reading()
        async for answers in reader.fetch(name):
            for answer in answers:
                opened = open_block(answer, name, size)
                return opened.reason if isinstance(opened, Lost) else bytes(opened)
        return "no answer came"

    async def names(self, path: bytes, file: int, number: int) -> bytes:
        """See `confirm.Peer`."""
        found, current = b"", None
        reader = await self._reading()
        if not reader.head.number:
            return b""
        async for ops in reader.record(reader.head.number, [escaped(path)]):
            for op in ops:
                current = op.file if isinstance(op, Put) and op.path == path else current
                if isinstance(op, Put | Map) and op.file == current == file and number in op.blocks:
                    at = op.blocks.index(number) * ID_BYTES
                    found = op.ids[at : at + ID_BYTES]
        return found

    async def listing(self, snapshot: int) -> AsyncIterator[list[Op]]:
        """The replica's record of a snapshot."""
        return (await self._reading()).record(snapshot)

    async def _reading(self) -> RemoteReader:
        if self._reader is None:
            dataset = self._tending._dataset.config.name
            self._reader = await RemoteReader.open(await self._tending._dial(), dataset)
        return self._reader

    async def _finish_interrupted(self) -> None:
        tending, dataset = self._tending, self._tending._dataset
        if await dataset.in_ledger(dataset.ledger.get, MENDING) is not None:
            async with dataset.turn:  # a repair that is under way holds it until it is settled
                await finish_interrupted(dataset, tending._pool, tending._disk)


_IDLE = frozenset({Remedy.NOTHING, Remedy.LOOK_AGAIN, Remedy.NONE_LEFT, Remedy.ADOPT_RECORD})
_OUTCOMES = {
    Agreement.AGREE: ("repaired", "the records of both sides agree"),
    Agreement.DIFFER: ("failed", "the records still differ"),
    Agreement.TOLD: ("waiting", "the next pass tells the replica the whole record anew; then they are compared again"),
    Agreement.LATER: ("waiting", "they cannot be compared now: the replica has not been told everything yet"),
}
