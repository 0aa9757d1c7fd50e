"""Receive: the replica's side of a writing session.

**Owns** nothing: the daemon hands it an open archive and the thread that archive belongs to. Every message is
answered in the order it came; bytes are given back as credit once they are in the store, so what a primary can
make this side hold is bounded by the credit it was granted. Whatever the session sent without a commit is
forgotten as a snapshot, but its blocks stay: the next session is not sent them again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

from replicad.link.channel import Channel
from replicad.link.messages import Acked, Blocks, Bye, Credit, Message, Need, Offer, Opened, Record, Refuse, Seal
from replicad.model.block import Buffer
from replicad.model.errors import DiskFullError, DivergedError, LinkError, PeerError, ReplicadError
from replicad.model.snapshot import Commit, Head, decode_commit
from replicad.status import StoreStatus
from replicad.store.format import FrameType, parse_frame, plain_payload
from replicad.system.clock import Clock
from replicad.work.archive import Archive
from replicad.work.quota import Allowance, catalog_bytes, sealed_bytes
from replicad.work.untrusted import single_frame

CREDIT_BYTES = 16 * 1024 * 1024
"""What a primary may have sent and not yet seen stored: more than 1 Gbit/s carries in 100 ms, and less than what it
holds ready to send (shipping.HELD_BYTES), because an offer waits behind all of this and must be answered in time."""

Result = TypeVar("Result")


class Receiving:
    """One writing session on one archive. At most one at a time per archive."""

    def __init__(
        self,
        channel: Channel,
        archive: Archive,
        executor: Executor,
        status: StoreStatus,
        clock: Clock,
        window: int,
        allowance: Allowance,
    ) -> None:
        self._channel, self._archive, self._executor = channel, archive, executor
        self._status, self._clock, self._window, self._allowance = status, clock, window, allowance

    async def run(self) -> None:
        """Serve until the client says Bye or the link ends. Tells the client why when it is our side that ends it."""
        self._status.state, self._status.reason = "connected", ""
        try:
            await self._in_thread(self._archive.abort)  # in case the end of the session before could not do it
            await self._channel.send(Opened(self._archive.head, min(self._window, CREDIT_BYTES)))
            while await self._answer(await self._channel.receive()):
                pass
        except LinkError:
            raise
        except ReplicadError as error:
            await self._refuse(error)
            raise
        finally:
            if self._status.state == "connected":
                self._status.state = "idle"
            await asyncio.shield(self._abort())

    async def _answer(self, message: Message) -> bool:
        """Handle one message; whether the session goes on."""
        match message:
            case Offer():
                await self._channel.send(Need(await self._in_thread(lambda: self._archive.needed(message.ids))))
            case Blocks():
                run = [message.frames, *(more.frames for more in self._channel.received(Blocks))]
                await self._in_thread(lambda: self._add_blocks(run))
                await self._credit(sum(map(len, run)))
            case Record():
                await self._in_thread(lambda: self._add_record(message.frame))
                await self._credit(len(message.frame))
            case Seal():
                head = await self._in_thread(lambda: self._seal(message.frame))
                await self._channel.send(Acked(head))
                await self._in_thread(self._archive.do_at_seal)
                await self._show(decode_commit(bytes(plain_payload(parse_frame(message.frame, 0)))))
            case Bye():
                return False
            case _:
                raise PeerError(f"sent {type(message).__name__} in a writing session")
        return True

    def _add_blocks(self, run: list[Buffer]) -> None:
        """Store all that came while the thread was busy: with each hop it would wait for the event loop again."""
        for frames in run:
            self._allowance.take(len(frames))
            self._archive.add_blocks(frames)

    def _add_record(self, frame: bytes) -> None:
        self._allowance.take(len(frame), books=catalog_bytes(single_frame(frame, FrameType.RECORD)))
        self._archive.add_record(frame)

    def _seal(self, frame: bytes) -> Head:
        """What was recorded was taken when it came; a snapshot of nothing new is an addition like any other."""
        if not self._archive.has_recorded:
            self._allowance.take(sealed_bytes(frame))
        return self._archive.seal(frame)

    async def _show(self, commit: Commit) -> None:
        status = self._status
        status.last_snapshot, status.last_snapshot_ns = commit.number, commit.created_ns
        status.entries, status.size = commit.entries, commit.size
        status.received_ns = self._clock.now_ns()
        status.stored_bytes = await self._in_thread(self._allowance.measure)
        status.damaged = await self._in_thread(lambda: len(self._archive.damage))

    async def _credit(self, size: int) -> None:
        self._status.received_bytes += size
        await self._channel.send(Credit(size))

    async def _abort(self) -> None:
        """Forget what was not sealed. Where even that is impossible the status says why, and the next session tries."""
        try:
            await self._in_thread(self._archive.abort)
            await self._in_thread(self._archive.do_at_seal)
        except ReplicadError as error:
            self._show_trouble(error)

    def _show_trouble(self, error: ReplicadError) -> None:
        """What stops intake is a state of the store; what a client did wrong is none."""
        if isinstance(error, DiskFullError):
            self._status.state, self._status.reason = "full", str(error)
        elif not isinstance(error, PeerError | DivergedError):
            self._status.state, self._status.reason = "damaged", str(error)

    async def _refuse(self, error: ReplicadError) -> None:
        self._show_trouble(error)
        try:
            await self._channel.send(Refuse(_REFUSALS.get(type(error), "damaged"), error.what))
        except LinkError:
            self._status.reason = self._status.reason or str(error)  # nobody is left to be told

    async def _in_thread(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)


_REFUSALS: dict[type[ReplicadError], str] = {
    PeerError: "invalid",
    DiskFullError: "full",
    DivergedError: "diverged",
}
"""What a client is told for an error; all others say that something is wrong with the store."""
