"""Shipping: the primary's side of a writing session; everything in flight between offer and acknowledgement.

The unit of work is a `Unit`: some block ids, a way to load their bytes, and the record operations that may follow
once these blocks are on their way. Units move through one pipeline in the order they were shipped:

    offer -> need -> load, compress, frame -> blocks -> record -> … -> seal -> acked

so a record never names a block that was not sent before it, and many offers are under way at once: a round trip
costs nothing. What is held between offer and blocks is bounded in bytes (HELD_BYTES), what is sent and not yet
stored is bounded by the replica's credit.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from replicad.link.channel import Channel, open_session
from replicad.link.messages import (
    MAX_OFFER,
    Acked,
    Blocks,
    Bye,
    Credit,
    Need,
    Offer,
    Opened,
    OpenWrite,
    Record,
    Refuse,
    Seal,
)
from replicad.model.block import ID_BYTES, Buffer, block_id, in_one
from replicad.model.entry import Map, Op, Put, encode_ops, xattrs_length
from replicad.model.errors import DiskFullError, DivergedError, LinkError, PeerError, RefusedError, ReplicadError
from replicad.model.snapshot import Commit, Head, encode_commit, records_digest
from replicad.store.format import FrameType, encode_frame, encode_header, encode_plain
from replicad.system.compress import compress

HELD_BYTES = 20 * 1024 * 1024
"""Bytes held between offer and sending, plain or in frames: more than 1 Gbit/s carries in 100 ms and than the replica's
credit; two slabs of a large file that wait to be shipped come on top, well within the memory bound."""
PIECE_BYTES = 1024 * 1024
"""Blocks messages are filled up to this: big enough that a message costs nothing, small enough to pace a link."""
RECORD_BYTES = 512 * 1024
"""A record frame is closed when its operations are about this long (the format's limit is 4 MiB)."""
RECORD_LEVEL = 3
"""zstd level of records: they are small, highly repetitive, and kept for ever."""
MAX_UNITS = 4096
"""Units under way; most are bounded by HELD_BYTES, this bounds those that hold nothing."""
STALL_S = 1800.0
"""A replica that keeps the line alive, and for so long neither takes nor answers anything, is let go: its store hangs,
and the dataset's other replicas wait for their turn. One message goes over the slowest line in less."""

_OP_BYTES = 96
"""About what an operation takes beside path, target, ids, runs of zeros and attributes."""
_RUN_BYTES = 8
"""About what a run of zeros takes."""

Result = TypeVar("Result")

Load = Callable[[Sequence[int]], list[Buffer | None]]
"""Bytes of the blocks at these positions of the unit's ids; None where they may not be sent. Runs in a thread."""
Frames = Callable[[Sequence[int]], Iterator[Buffer]]
"""Frames of the blocks at these positions, several in one buffer of PIECE_BYTES at most."""
Ops = Callable[[bool], AsyncIterator[Sequence[Op]]]
"""The operations that follow the unit's blocks; the flag says whether all blocks that were needed could be loaded."""


@dataclass(frozen=True, slots=True)
class Unit:
    """Blocks that are offered together, and what is recorded after them."""

    ids: bytes
    load: Load
    ops: Ops
    held_bytes: int
    """Bytes that this unit holds in memory, now or when it loads."""
    frames: Frames | None = None
    """Instead of `load` where the blocks are framed already."""


@dataclass(frozen=True, slots=True)
class _Packed:
    """A unit whose blocks are ready to be sent."""

    unit: Unit
    pieces: Sequence[Buffer] = ()
    """Blocks messages' frames."""
    complete: bool = True
    """Whether all blocks that were needed could be loaded."""


class Shipping:
    """A writing session of one dataset on one channel. Close it with `close`; any failure ends all its waiters."""

    def __init__(self, channel: Channel, executor: Executor, compression: int, sent: Callable[[int], None]) -> None:
        """`sent` is told the size in bytes of everything given to the link."""
        self._channel, self._executor, self._compression, self._sent = channel, executor, compression, sent
        self.shipped_bytes = 0
        """Bytes of all units shipped so far as they were held, needed there or not."""
        self._units: asyncio.Queue[Unit] = asyncio.Queue(MAX_UNITS)
        self._needs: asyncio.Queue[bytes] = asyncio.Queue()
        self._packed: asyncio.Queue[_Packed] = asyncio.Queue(1)
        self._acks: asyncio.Queue[Head] = asyncio.Queue()
        self._unanswered = self._unacknowledged = 0
        """Offers and seals that have no answer yet: whoever answers more than was asked is not listened to."""
        self._heard = self._waits = 0
        """Messages that came, and how many waits for the replica are under way."""
        self._changed = asyncio.Condition()
        self._held = 0
        self._credit = 0
        self._failure: Exception | None = None
        self._undelivered: set[bytes] = set()
        """Needed once and not loadable then: the replica does not ask again, but takes them from another file."""
        self._pending: list[Op] = []
        self._pending_bytes = 0
        self._records: list[bytes] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self, dataset: str) -> Head:
        """Start the session; the replica's head.

        Raises RefusedError, LinkError, PeerError, DiskFullError, DivergedError.
        """
        answer = await open_session(self._channel, OpenWrite(dataset))
        if isinstance(answer, Refuse):
            raise _refusal(answer, self._channel.peer)
        if not isinstance(answer, Opened):
            raise PeerError(f"answered OpenWrite with {type(answer).__name__}", where=self._channel.peer)
        self._credit = answer.credit
        self._tasks = [
            asyncio.create_task(self._watched(self._hear())),
            asyncio.create_task(self._watched(self._pack_ahead())),
            asyncio.create_task(self._watched(self._send_on())),
            asyncio.create_task(self._watched(self._lose_patience())),
        ]
        return answer.head

    async def close(self) -> None:
        """End the session, orderly when it still works."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._fail(LinkError("the session was closed"))
        await self._channel.close("done")

    @property
    def failure(self) -> Exception | None:
        """Why the session can no longer be used, None while it can."""
        return self._failure

    async def ended(self) -> None:
        """Return when the session has failed."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._failure is not None)

    async def ship(self, unit: Unit) -> None:
        """Put a unit into the pipeline; returns when there is room, not when it arrived."""
        await self._until(lambda: self._held == 0 or self._held + unit.held_bytes <= HELD_BYTES)
        self._held += unit.held_bytes
        self.shipped_bytes += unit.held_bytes
        if unit.ids:
            assert len(unit.ids) <= MAX_OFFER * ID_BYTES
            self._unanswered += 1
            await self._send(Offer(unit.ids), len(unit.ids))
        await self._guarded(self._units.put(unit))

    @property
    def records(self) -> int:
        """Records that were sent since the last seal; what is in the pipeline comes on top."""
        return len(self._records)

    @property
    def recorded(self) -> bool:
        """Whether any operation was shipped since the last seal (known only once the pipeline is `flushed`)."""
        return bool(self._records or self._pending)

    async def flushed(self) -> None:
        """Wait until everything shipped so far was sent."""
        await self._guarded(self._units.join())

    async def seal(self, build: Callable[[int, bytes], Commit], before: Callable[[Head], Awaitable[None]]) -> Head:
        """Make what was shipped a snapshot and wait until it is durable on the replica.

        `build` gets the number of records and their digest; `before` is awaited with the new head right before the
        commit leaves. Returns the acknowledged head.
        """
        await self.flushed()
        await self._flush_record()
        commit = build(len(self._records), records_digest(self._records))
        plain = encode_commit(commit)
        head = Head(commit.number, block_id(plain))
        await before(head)
        self._unacknowledged += 1
        await self._send(Seal(encode_plain(FrameType.COMMIT, plain)), len(plain))
        with self._waiting():
            acked: Head = await self._guarded(self._acks.get())
        if acked != head:
            raise PeerError("acknowledged another head than it was sent", where=self._channel.peer)
        self._records.clear()
        return acked

    # the four loops

    async def _hear(self) -> None:
        """Take in what the replica says."""
        while True:
            message = await self._channel.receive()
            self._heard += 1
            match message:
                case Need() if self._unanswered:
                    self._unanswered -= 1
                    self._needs.put_nowait(message.bits)
                case Credit():
                    if message.size < 0:
                        raise PeerError("granted negative credit", where=self._channel.peer)
                    self._credit += message.size
                    await self._wake()
                case Acked() if self._unacknowledged:
                    self._unacknowledged -= 1
                    self._acks.put_nowait(message.head)
                case Need() | Acked():
                    raise PeerError(f"sent {type(message).__name__} and was not asked", where=self._channel.peer)
                case Refuse():
                    raise _refusal(message, self._channel.peer)
                case Bye():
                    raise LinkError(f"the replica ended the session: {message.reason}", where=self._channel.peer)
                case _:
                    raise PeerError(f"sent {type(message).__name__} in a writing session", where=self._channel.peer)

    async def _pack_ahead(self) -> None:
        """Load, compress and frame what the replica needs, one unit ahead of the one that is being sent."""
        while True:
            unit = await self._units.get()
            await self._packed.put(await self._packed_unit(unit) if unit.ids else _Packed(unit))

    async def _packed_unit(self, unit: Unit) -> _Packed:
        with self._waiting():
            bits = await self._needs.get()
        wanted = _wanted(bits, _split_ids(unit.ids), self._undelivered)
        if not wanted:
            return _Packed(unit)
        pieces, failed = await self._pieces(unit, wanted)
        self._undelivered.difference_update(_id_at(unit.ids, position) for position in wanted)
        self._undelivered.update(failed)
        return _Packed(unit, pieces, not failed)

    async def _pieces(self, unit: Unit, wanted: list[int]) -> tuple[list[Buffer], list[bytes]]:
        """Blocks messages' frames, and the ids that could not be loaded."""
        if unit.frames:
            return joined((run,) for run in unit.frames(wanted)), []
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._pack, unit, wanted)

    async def _send_on(self) -> None:
        """Send packed units in order: their blocks, then the operations that follow them."""
        while True:
            packed = await self._packed.get()
            for piece in packed.pieces:
                await self._spend(len(piece))
                await self._send(Blocks(piece), len(piece))
            async for ops in packed.unit.ops(packed.complete):
                await self._add(ops)
            self._held -= packed.unit.held_bytes
            await self._wake()
            self._units.task_done()

    async def _lose_patience(self) -> None:
        """End a session in which something waits for the replica and nothing moves."""
        while True:
            before = self._place
            await asyncio.sleep(STALL_S)
            if before and before == self._place:
                self._channel.hang_up("nothing moves")
                text = f"the replica is there, but has neither taken nor answered anything for {STALL_S:.0f} s"
                raise LinkError(text, where=self._channel.peer, hint="look at its store's disk")

    @property
    def _place(self) -> tuple[int, int] | None:
        """How far the session is; None while nothing waits for the replica."""
        return (self._heard, self._channel.sent_bytes) if self._waits and not self._channel.rests else None

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        self._waits += 1
        try:
            yield
        finally:
            self._waits -= 1

    async def _watched(self, work: Awaitable[None]) -> None:
        try:
            await work
        except ReplicadError as error:
            self._fail(error)
            await self._wake()
        except Exception as error:  # a defect of ours must end the pass with its own words, not let it wait for ever
            self._fail(error)
            await self._wake()

    # pieces of them

    def _pack(self, unit: Unit, wanted: list[int]) -> tuple[list[Buffer], list[bytes]]:
        """Load, compress and frame the wanted blocks; Blocks messages, and the ids that could not be loaded."""
        frames: list[Sequence[Buffer]] = []
        failed: list[bytes] = []
        for position, data in zip(wanted, unit.load(wanted), strict=True):
            name = _id_at(unit.ids, position)
            if data is None:
                failed.append(name)
                continue
            codec, stored = compress(data, self._compression)
            frames.append((encode_header(FrameType.BLOCK, len(data), name, stored, codec), stored))
        return joined(frames), failed

    async def _add(self, ops: Sequence[Op]) -> None:
        for op in ops:
            self._pending.append(op)
            self._pending_bytes += _length(op)
            if self._pending_bytes >= RECORD_BYTES:
                await self._flush_record()

    async def _flush_record(self) -> None:
        if not self._pending:
            return
        ops, self._pending, self._pending_bytes = self._pending, [], 0
        frame, name = await asyncio.get_running_loop().run_in_executor(self._executor, _record_frame, ops)
        self._records.append(name)
        await self._spend(len(frame))
        await self._send(Record(frame), len(frame))

    async def _send(self, message: Offer | Blocks | Record | Seal, size: int) -> None:
        if self._failure:
            raise self._failure
        try:
            with self._waiting():
                await self._channel.send(message)
        except LinkError:
            await self._until(lambda: False)  # why the session ended is said by what came before its end: `_hear`
        self._sent(size)

    async def _spend(self, size: int) -> None:
        """Wait for credit. A message may overdraw it once, so that no credit is too small for any message."""
        with self._waiting():
            await self._until(lambda: self._credit > 0)
        self._credit -= size

    async def _until(self, ready: Callable[[], bool]) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self._failure is not None or ready())
        if self._failure:
            raise self._failure

    async def _wake(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _guarded(self, wait: Awaitable[Result]) -> Result:
        """Wait for something that never comes once the session has failed."""
        waiting = asyncio.ensure_future(wait)
        failing = asyncio.create_task(self._until(lambda: False))
        try:
            await asyncio.wait((waiting, failing), return_when=asyncio.FIRST_COMPLETED)
            if waiting.done():
                return waiting.result()
            failing.result()
            raise AssertionError("waiting for a failure ended without one")
        finally:
            waiting.cancel()
            failing.cancel()
            await asyncio.gather(failing, return_exceptions=True)

    def _fail(self, error: Exception) -> None:
        if self._failure is None:
            self._failure = error


def load_nothing(positions: Sequence[int]) -> list[Buffer | None]:
    """The load of a unit without blocks."""
    assert not positions
    return []


def joined(frames: Iterable[Sequence[Buffer]]) -> list[Buffer]:
    """Frames, each in parts, as pieces of PIECE_BYTES at most, unless one frame is longer."""
    pieces: list[Buffer] = []
    parts: list[Buffer] = []
    size = 0
    for frame in frames:
        length = sum(map(len, frame))
        if size and size + length > PIECE_BYTES:
            pieces.append(in_one(parts))
            parts, size = [], 0
        parts.extend(frame)
        size += length
    return [*pieces, in_one(parts)] if parts else pieces


def _record_frame(ops: list[Op]) -> tuple[bytes, bytes]:
    """A record frame and its id."""
    plain = encode_ops(ops)
    name = block_id(plain)
    codec, stored = compress(plain, RECORD_LEVEL)
    return encode_frame(FrameType.RECORD, plain, name, stored, codec), name


def _id_at(ids: bytes, position: int) -> bytes:
    return ids[position * ID_BYTES : (position + 1) * ID_BYTES]


def _split_ids(ids: bytes) -> list[bytes]:
    return [ids[at : at + ID_BYTES] for at in range(0, len(ids), ID_BYTES)]


def _wanted(bits: bytes, ids: list[bytes], undelivered: set[bytes]) -> list[int]:
    """Positions of the ids that the replica needs, by its answer or because it still waits for an earlier offer."""
    if len(bits) != (len(ids) + 7) // 8:
        raise PeerError(f"answered an offer of {len(ids)} blocks with {len(bits)} bytes")
    if not any(bits) and not undelivered:
        return []
    return [i for i, name in enumerate(ids) if bits[i >> 3] >> (i & 7) & 1 or name in undelivered]


def _length(op: Op) -> int:
    """About how long the operation is when encoded."""
    if isinstance(op, Put):
        length = _OP_BYTES + len(op.path) + len(op.target) + len(op.ids) * 5 // 4 + len(op.zeros) * _RUN_BYTES
        return length + xattrs_length(op.meta.xattrs) if op.meta.xattrs else length
    if isinstance(op, Map):
        return _OP_BYTES + len(op.ids) * 5 // 4 + len(op.zeros) * _RUN_BYTES
    return _OP_BYTES + len(op.path)


def _refusal(message: Refuse, peer: str) -> ReplicadError:
    """The replica's no as our error."""
    if message.code == "full":
        return DiskFullError(
            f"the replica is full: {message.text}", where=peer, hint="free or add space on the replica"
        )
    if message.code == "diverged":
        return DivergedError(message.text, where=peer)
    if message.code in ("busy", "stopping"):
        return LinkError(message.text, where=peer)
    return RefusedError(message.text, where=peer)
