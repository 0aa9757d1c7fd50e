"""Tended: the replica's side of a tending session: findings are confirmed, judged and settled.

It hashes what the primary found, looks at its own copy of a block, names its own findings, takes testimony and proven
blocks for them, and says what its record amounts to. What mends the store is a `StoreMender`, what scrubs it a
`LocalScrub`; both are handed in. A tending session runs beside all other sessions of the same client, and has the
mender in turn with other tending ones: a gate asks while a round waits for an answer.

**Never** takes a block that was not announced, wanted and proven, and holds MAX_TESTIMONY_BYTES of them at most;
whatever a client says here changes a finding, or appends a block that the record names already: nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from replicad.link.channel import Channel
from replicad.link.messages import (
    MAX_CASES,
    MAX_SEEN_BYTES,
    MAX_TESTIMONY_BYTES,
    Account,
    Accounted,
    Attest,
    Attested,
    Blocks,
    Bye,
    Case,
    Cases,
    Direct,
    Directed,
    Examine,
    Examined,
    Inquire,
    Keep,
    Kept,
    Message,
    Opened,
    Refuse,
    Settled,
    SnapshotLine,
    Testify,
    Want,
)
from replicad.model.attestation import Attestation, DrillNote
from replicad.model.block import Buffer, block_id, checksum
from replicad.model.divergence import Divergence, State
from replicad.model.drill import Outcome
from replicad.model.errors import BookDamagedError, LinkError, PeerError, ReplicadError, StoreDamagedError, UsageError
from replicad.model.remedy import Remedy, remedy_of
from replicad.model.snapshot import Head
from replicad.model.verdict import Sight
from replicad.status import ScrubStatus
from replicad.store.format import FrameError, FrameType, plain_payload, split_frames
from replicad.system.disk import Disk
from replicad.work.account_record import Sums
from replicad.work.archive_reader import ArchiveReader
from replicad.work.coverage_notes import map_of_store
from replicad.work.told import told

CASES_BYTES = 1024 * 1024
"""What the findings of one message take beside their bad bytes, about; the message's limit is well above."""
MENDED_NOW = frozenset({Remedy.MEND_REPLICA, Remedy.LAY_SEGMENT})
"""Remedies that a StoreMender carries out when a testimony is in. A book is not made anew while a primary waits."""

Result = TypeVar("Result")


class StoreMender(Protocol):
    """What mends one store. All methods are coroutines that do their disk work elsewhere; they raise ReplicadError."""

    async def verify_divergences(self, turn: asyncio.Lock) -> list[Divergence]:
        """Look at the places of all open findings again, each in a `turn` of its own; those that were settled."""

    async def open_cases(self) -> list[Divergence]:
        """The open findings about this store."""

    async def seen(self, found: Divergence) -> bytes:
        """The bad bytes that were kept of a finding; b"" when there are none."""

    async def wants(self, found: Divergence) -> list[Want]:
        """The blocks that it takes to mend what was found."""

    async def testimony(self, found: Divergence, checksum_by_peer: bytes, sights: Sequence[Sight]) -> Divergence:
        """Complete the evidence with what the primary says: its checksum of `seen`, and a look for each of `wants`, in
        their order; judge it and write it down."""

    async def mend(self, found: Divergence, frames: Sequence[bytes], *, ordered: bool = False) -> Divergence:
        """Mend what was found, as far as these proven frames, one block each, and what is there already allow; whether
        that may be done unless a person has `ordered` it is the mender's to decide. What became of it stands in the
        book. Frames may come in several calls."""


class LocalScrub(Protocol):
    """The scrub of the same store."""

    status: ScrubStatus

    async def request(self, *, from_peer: bool = False) -> int:
        """Verify everything once from now on."""


class Orders(Protocol):
    """What the store's book has of single findings, and what a person of this node has ordered."""

    async def find(self, name: str) -> Divergence | None:
        """The finding with that id, open or not."""

    async def is_ordered(self, name: str) -> bool:
        """Whether a person has ordered its repair, which waited for the primary."""

    async def fulfil(self, name: str) -> None:
        """The order was carried out."""


class Attesting(Protocol):
    """What this node says of the store as a whole (work/witness.py)."""

    async def attest(
        self, lines: Sequence[SnapshotLine], scrub: ScrubStatus | None, notes: Sequence[DrillNote]
    ) -> Attestation:
        """What the copy amounts to, after these drills were remembered."""

    async def keep(self, lines: Sequence[SnapshotLine], name: str, head: Head, reason: str) -> str:
        """Pin one of these snapshots; why that is not possible, or ""."""


class Tended:
    """One tending session on one store, to be run when OpenTend was received and the right to it was checked."""

    def __init__(
        self,
        channel: Channel,
        directory: Path,
        *,
        mender: StoreMender | None,
        turn: asyncio.Lock,
        scrub: LocalScrub | None,
        orders: Orders,
        witness: Attesting,
        disk: Disk | None = None,
    ) -> None:
        """Without a mender there are no findings to settle, without a scrub none to ask for. Whoever has the `turn` may
        have the mender settle something."""
        self._channel, self._directory, self._disk, self._turn = channel, directory, disk, turn
        self._mender, self._scrub, self._orders, self._witness = mender, scrub, orders, witness
        self._told: dict[str, list[Want]] = {}
        """What the last Cases message named, and what each of them wants: only that may be testified about."""
        self._looking: asyncio.Task[list[Divergence]] | None = None
        self._thread = ThreadPoolExecutor(1, "tended")

    async def run(self) -> None:
        """Serve until the client says Bye. Tells the client why when it is our side that ends it.

        Raises LinkError when the link ends, PeerError when the client breaks the protocol, other ReplicadErrors when
        the store or its books cannot be read."""
        try:
            with closing(_Closer(self._thread)):
                archive = await self._ask(lambda: ArchiveReader(self._directory, self._disk))
                try:
                    await self._serve(archive)
                finally:
                    await self._stop_looking()
                    await self._ask(archive.close)
        except ReplicadError as error:
            if not isinstance(error, LinkError):
                await self._refuse(error)
            raise

    async def _serve(self, archive: ArchiveReader) -> None:
        await self._channel.send(Opened(await self._ask(lambda: _head(archive)), 0))
        while (answer := await self._answer(await self._channel.receive(), archive)) is not None:
            await self._channel.send(answer)

    async def _answer(self, message: Message, archive: ArchiveReader) -> Message | None:
        """What a message is answered with; None ends the session."""
        match message:
            case Examine():
                return await self._ask(lambda: _examined(message, archive))
            case Inquire():
                return await self._cases(message)
            case Testify():
                return await self._testify(message)
            case Account():
                return await self._account(archive)
            case Direct():
                return await self._direct(message.action)
            case Attest():
                return await self._attest(archive, message.drills)
            case Keep():
                return await self._keep(archive, message)
            case Bye():
                return None
            case _:
                raise PeerError(f"sent {type(message).__name__}, which nothing here waits for", where=self._peer)

    # findings

    async def _cases(self, asked: Inquire) -> Cases:
        """The next open findings, as many as one message takes."""
        if self._mender is None:
            return Cases([], False)
        if not asked.after:
            self._look_again(self._mender)
        left = sorted((one for one in await self._mender.open_cases() if one.id > asked.after), key=lambda one: one.id)
        cases: list[Case] = []
        same: list[str] = []
        seen_bytes = told_bytes = 0
        for found in left:
            if asked.known.get(found.id) == found.changed_ns:
                same.append(found.id)
                told_bytes += len(found.id) + 1
                continue
            case = await self._case(self._mender, found)
            seen_bytes += len(case.seen)
            told_bytes += len(msgspec.msgpack.encode(case)) - len(case.seen)
            if cases and (len(cases) == MAX_CASES or seen_bytes > MAX_SEEN_BYTES or told_bytes > CASES_BYTES):
                break
            cases.append(case)
        self._told = {case.found.id: case.wants for case in cases}
        return Cases(cases, len(cases) + len(same) < len(left), same)

    def _look_again(self, mender: StoreMender) -> None:
        """A round begins: an ordinary pass may have brought what was damaged. Places are looked at again beside all
        that is said of them: it may take longer than the link, or a node, lives."""
        if self._looking and not self._looking.done():
            return
        if self._looking:
            self._looking.result()  # what ended the last look ends the session
        self._looking = asyncio.create_task(mender.verify_divergences(self._turn))

    async def _stop_looking(self) -> None:
        """The next session goes on where this one was."""
        if self._looking:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)

    async def _case(self, mender: StoreMender, found: Divergence) -> Case:
        seen = await mender.seen(found)
        return Case(told(found), seen if len(seen) <= MAX_SEEN_BYTES else b"", await mender.wants(found))

    async def _testify(self, said: Testify) -> Settled:
        """Take a testimony and the blocks that follow it."""
        wants = self._told.get(said.divergence)
        if wants is None or self._mender is None:
            raise PeerError(f"testified about {said.divergence!r}, which it was not told of", where=self._peer)
        if len(said.sights) != len(wants):
            raise PeerError(f"said {len(said.sights)} things about {len(wants)} blocks", where=self._peer)
        held = {want.id for want, sight in zip(wants, said.sights, strict=True) if sight is Sight.MATCHES}
        frames = await self._frames(held, said.frames)
        async with self._turn:
            found = await self._orders.find(said.divergence)
            if found is None:
                raise PeerError(f"testified about {said.divergence!r}, which is unknown", where=self._peer)
            if found.state is State.OPEN:
                found = await self._settled(self._mender, found, said, frames)
        return Settled(told(found))

    async def _settled(
        self, mender: StoreMender, found: Divergence, said: Testify, frames: Sequence[bytes]
    ) -> Divergence:
        judged = await mender.testimony(found, said.checksum, said.sights)
        if judged.state is State.OPEN and (frames or remedy_of(judged) in MENDED_NOW):
            ordered = await self._orders.is_ordered(found.id)
            judged = await mender.mend(judged, frames, ordered=ordered)
        if judged.state is not State.OPEN:
            await self._orders.fulfil(found.id)
        return judged

    async def _frames(self, held: set[bytes], announced: int) -> list[bytes]:
        """The blocks that were announced, each of them one that the client holds, once, and proven."""
        if announced > len(held):
            raise PeerError(f"announced {announced} blocks where it can have {len(held)}", where=self._peer)
        frames: list[bytes] = []
        size = 0
        while len(frames) < announced:
            message = await self._channel.receive()
            if not isinstance(message, Blocks):
                text = f"sent {type(message).__name__} where {announced - len(frames)} blocks are to come"
                raise LinkError(text) if isinstance(message, Bye) else PeerError(text, where=self._peer)
            size += len(message.frames)
            if size > MAX_TESTIMONY_BYTES:
                raise PeerError(f"sent more than {MAX_TESTIMONY_BYTES} bytes for one finding", where=self._peer)
            frames += await self._ask(lambda data=message.frames: self._proven(data, held))  # type: ignore[misc]
        if len(frames) > announced:
            raise PeerError(f"sent {len(frames)} blocks where it announced {announced}", where=self._peer)
        return frames

    def _proven(self, data: Buffer, held: set[bytes]) -> list[bytes]:
        """Frames one by one; what was held once is not held any more."""
        try:
            found = split_frames(data)
            for frame in found:
                plain_payload(frame)
        except FrameError as error:
            raise PeerError(f"sent a block that is none: {error}", where=self._peer) from None
        for frame in found:
            if frame.type != FrameType.BLOCK or frame.id not in held:
                raise PeerError("sent a block that was not wanted, or not announced, or twice", where=self._peer)
            held.discard(frame.id)
        if not found:
            raise PeerError("sent a message without blocks", where=self._peer)
        return [bytes(data[frame.offset : frame.end]) for frame in found]

    # the record as a whole, and the scrub

    async def _account(self, archive: ArchiveReader) -> Accounted:
        """Sums over the last snapshot. Rows of a finished snapshot do not change, so it may take its time."""
        head, sums = await self._ask(lambda: _head(archive)), Sums()
        if head.number:
            batches = await self._ask(lambda: archive.record(head.number))
            while (batch := await self._ask(lambda: next(batches, None))) is not None:
                await self._ask(lambda ops=batch: sums.add(ops))  # type: ignore[misc]
        return Accounted(head, sums.entries, sums.encoded())

    async def _direct(self, action: str) -> Directed:
        if self._scrub is None:
            return Directed(b"")
        if action == "start":
            await self._scrub.request(from_peer=True)
        if action == "map":
            found = await self._mender.open_cases() if self._mender else []
            return Directed(msgspec.json.encode(await self._ask(lambda: map_of_store(self._directory, found, 0))))
        return Directed(msgspec.json.encode(self._scrub.status))

    # the copy as its own node sees it

    async def _attest(self, archive: ArchiveReader, notes: Sequence[DrillNote]) -> Attested:
        lines, scrub = await self._ask(archive.snapshots), self._scrub.status if self._scrub else None
        known = await self._ask(lambda: [note for note in notes if _is_of_this_store(note, archive)])
        return Attested(await self._witness.attest(lines, scrub, known))

    async def _keep(self, archive: ArchiveReader, asked: Keep) -> Kept:
        before = await self._ask(archive.snapshots)
        problem = await self._witness.keep(before, asked.name, asked.snapshot, asked.reason)
        if not problem and asked.snapshot.number not in {line.number for line in await self._ask(archive.snapshots)}:
            problem = f"snapshot {asked.snapshot.number} was dropped just before"
        return Kept(problem)

    # how

    @property
    def _peer(self) -> str:
        return self._channel.peer

    async def _ask(self, question: Callable[[], Result]) -> Result:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, question)
        except OSError as error:
            raise ReplicadError(f"cannot be read: {error.strerror}", where=str(self._directory)) from error

    async def _refuse(self, error: ReplicadError) -> None:
        try:
            await self._channel.send(Refuse(_REFUSALS.get(type(error), "invalid"), error.what))
        except LinkError:
            pass  # nobody is left to be told; the error itself is raised


class _Closer:
    """Ends the session's thread without waiting for what it may still do."""

    def __init__(self, thread: ThreadPoolExecutor) -> None:
        self._thread = thread

    def close(self) -> None:
        self._thread.shutdown(wait=False)


def _head(archive: ArchiveReader) -> Head:
    lines = archive.snapshots()
    return Head(lines[-1].number, lines[-1].digest) if lines else Head()


def _is_of_this_store(note: DrillNote, archive: ArchiveReader) -> bool:
    """Whether a drill restored a snapshot that is here, or was; one that came to none proves nothing. In a thread."""
    if not note.snapshot:
        return note.outcome is not Outcome.PROVEN
    return archive.digest_of(note.snapshot).hex() == note.digest


def _examined(asked: Examine, archive: ArchiveReader) -> Examined:
    """What this processor makes of the bytes, and what this medium holds of the block. In a thread."""
    sight, reason = archive.look(asked.id)
    if not asked.data:
        return Examined(b"", b"", sight, reason, archive.looked_at)
    return Examined(checksum(asked.data), block_id(asked.data), sight, reason, archive.looked_at)


_REFUSALS: dict[type[ReplicadError], str] = {
    PeerError: "invalid",
    UsageError: "unknown",
    BookDamagedError: "damaged",
    StoreDamagedError: "damaged",
}
