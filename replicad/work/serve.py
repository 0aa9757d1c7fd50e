"""Serve: the replica's side of a reading session.

The listing of a snapshot and the blocks asked for are sent at the same time, blocks in the order asked; while some are
sealed and sent, the next ones are read. What a client can make this side hold is bounded whatever it asks: two runs of
frames for each of ANSWERED fetches, one batch of operations, and MAX_FETCHES unanswered Fetch messages, behind which
nothing more is read from it; what it does not take off the line stops the reading of the disk. **Never** changes
anything.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TypeVar

from replicad.link.channel import Channel
from replicad.link.messages import (
    MAX_CREDIT_BYTES,
    Blocks,
    Bye,
    Compare,
    Credit,
    Fetch,
    Listing,
    ListSnapshots,
    Lost,
    Message,
    Opened,
    Read,
    Refuse,
    Snapshots,
    Told,
    Trace,
    Visit,
)
from replicad.model.block import Buffer
from replicad.model.entry import encode_ops
from replicad.model.errors import (
    BookDamagedError,
    LinkError,
    PeerError,
    ReplicadError,
    StoreDamagedError,
    UsageError,
)
from replicad.model.snapshot import Head
from replicad.model.travel import encode_told
from replicad.system.disk import Disk
from replicad.work.read_local import FETCHERS, LocalReader
from replicad.work.reader import Stored
from replicad.work.shipping import joined

MAX_FETCHES = 64
"""Fetch messages waiting for their answers (8 MiB of ids at most). A restore has half as many under way."""
ANSWERED = FETCHERS + 1
"""Fetches whose answers are read or wait to be sent: while some are read, one waits for the line."""
LINES_PER_MESSAGE = 1000
"""Snapshots in one message: well below the limit for messages without frames."""
Item = TypeVar("Item")


class Serving:
    """One reading session on one store, to be run when OpenRead was received and the right to read was checked."""

    def __init__(self, channel: Channel, directory: Path, disk: Disk | None = None) -> None:
        self._channel, self._directory, self._disk = channel, directory, disk
        self._fetches: asyncio.Queue[bytes] = asyncio.Queue(MAX_FETCHES)
        self._answers: asyncio.Queue[asyncio.Queue[list[Stored] | None]] = asyncio.Queue()
        """Of each fetch that is answered, in the order asked, its runs of frames, and None behind them."""
        self._credit = 0
        self._granted = asyncio.Event()
        self._listing: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Serve until the client says Bye. Tells the client why when it is our side that ends it.

        Raises LinkError when the link ends, PeerError when the client breaks the protocol, UsageError when it asks for
        what is not there, BookDamagedError or StoreDamagedError when the store cannot be read.
        """
        try:
            reader = await LocalReader.open(self._directory, disk=self._disk)
            try:
                await self._serve(reader)
            finally:
                await reader.close()
        except ReplicadError as error:
            if not isinstance(error, LinkError):
                await self._refuse(error)
            raise

    async def _serve(self, reader: LocalReader) -> None:
        lines = await reader.snapshots()
        head = Head(lines[-1].number, lines[-1].digest) if lines else Head()
        await self._channel.send(Opened(head, 0, await reader.order()))
        try:
            async with asyncio.TaskGroup() as tasks:
                answering = [tasks.create_task(self._read_runs(reader)) for _ in range(ANSWERED)]
                answering.append(tasks.create_task(self._send_runs()))
                while await self._take(await self._channel.receive(), reader, tasks):
                    pass
                for task in answering:
                    task.cancel()
                if self._listing:
                    self._listing.cancel()
        except BaseExceptionGroup as group:  # one of them failed and the others were cancelled
            raise group.exceptions[0] from None

    async def _take(self, message: Message, reader: LocalReader, tasks: asyncio.TaskGroup) -> bool:
        """Handle one message; whether the session goes on."""
        match message:
            case Fetch():
                await self._fetches.put(message.ids)
            case Credit():
                self._grant(message.size)
            case Read() | Visit() | Trace() | Compare():
                if self._listing and not self._listing.done():
                    raise PeerError("asked for a second listing while the first is under way")
                self._credit = 0
                self._grant(message.credit)
                self._listing = tasks.create_task(self._list(reader, message))
            case ListSnapshots():
                await self._list_snapshots(reader)
            case Bye():
                return False
            case _:
                raise PeerError(f"sent {type(message).__name__} in a reading session")
        return True

    def _grant(self, size: int) -> None:
        self._credit += size
        if self._credit > MAX_CREDIT_BYTES:
            raise PeerError(f"granted more than {MAX_CREDIT_BYTES} bytes of credit")
        self._granted.set()

    async def _list_snapshots(self, reader: LocalReader) -> None:
        lines = await reader.snapshots()
        while len(lines) > LINES_PER_MESSAGE:
            await self._channel.send(Snapshots(lines[:LINES_PER_MESSAGE], True))
            lines = lines[LINES_PER_MESSAGE:]
        await self._channel.send(Snapshots(lines, False))

    async def _list(self, reader: LocalReader, asked: Read | Visit | Trace | Compare) -> None:
        match asked:
            case Read():
                await self._send_listing(reader.record(asked.snapshot, asked.globs), encode_ops, Listing)
            case Visit():
                found = reader.visit(asked.snapshot, asked.path, asked.depth, blocks=asked.blocks)
                await self._send_listing(found, encode_ops, Listing)
            case Trace():
                await self._send_listing(reader.trace(asked.path), encode_told, Told)
            case Compare():
                await self._send_listing(reader.compare(asked.before, asked.after, asked.globs), encode_told, Told)

    async def _send_listing(
        self,
        batches: AsyncIterator[list[Item]],
        encode: Callable[[list[Item]], bytes],
        message: type[Listing] | type[Told],
    ) -> None:
        """Send an answer in several messages as far as the credit goes. A batch may overdraw it once."""
        async for batch in batches:
            if not batch:
                continue
            while self._credit <= 0:
                self._granted.clear()
                await self._granted.wait()
            data = encode(batch)
            self._credit -= len(data)
            await self._channel.send(message(data, True))
        await self._channel.send(message(encode([]), False))

    async def _read_runs(self, reader: LocalReader) -> None:
        """Read what is asked for, one fetch after the other; others do the same."""
        while True:
            ids = await self._fetches.get()
            runs: asyncio.Queue[list[Stored] | None] = asyncio.Queue(1)
            self._answers.put_nowait(runs)  # before anybody else takes the next fetch
            async for run in reader.fetch_stored(ids):
                await runs.put(run)
            await runs.put(None)

    async def _send_runs(self) -> None:
        while True:
            runs = await self._answers.get()
            while (run := await runs.get()) is not None:
                await self._send_run(run)

    async def _send_run(self, run: list[Stored]) -> None:
        """Send frames, small ones together, lost blocks in between in their place."""
        frames: list[Buffer] = []
        for item in run:
            if not isinstance(item, Lost):
                frames.append(item)
                continue
            await self._send_frames(frames)
            frames = []
            await self._channel.send(item)
        await self._send_frames(frames)

    async def _send_frames(self, frames: list[Buffer]) -> None:
        for piece in joined((frame,) for frame in frames):
            await self._channel.send(Blocks(piece))

    async def _refuse(self, error: ReplicadError) -> None:
        try:
            await self._channel.send(Refuse(_REFUSALS.get(type(error), "invalid"), error.what))
        except LinkError:
            pass  # nobody is left to be told; the error itself is raised


_REFUSALS: dict[type[ReplicadError], str] = {
    PeerError: "invalid",
    UsageError: "unknown",
    BookDamagedError: "damaged",
    StoreDamagedError: "damaged",
}
