"""RemoteReader: a `Reader` over a channel, the client's side of a reading session.

Questions are sent at once and answered in order, so any number may be under way and a round trip is paid once. One
task listens; it never waits for whoever asked. That is safe because nothing comes that was not asked for: blocks are
bounded by what the caller has asked for, operations by the credit given.
**Never** trusts the replica: an answer nobody asked for, in another order or of another block is a PeerError.
"""

from __future__ import annotations

import asyncio
import copy
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TypeVar

from replicad.link.channel import Channel, open_session
from replicad.link.messages import (
    MAX_OFFER,
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
    OpenRead,
    Read,
    Refuse,
    SnapshotLine,
    Snapshots,
    Told,
    Trace,
    Visit,
)
from replicad.link.session import refused, show_text
from replicad.model.block import ID_BYTES, Buffer
from replicad.model.entry import Op, Put, decode_ops, encode_ops
from replicad.model.errors import LinkError, PeerError, ReplicadError, StoreDamagedError, UsageError
from replicad.model.glob import compile_globs
from replicad.model.travel import Difference, Version, decode_differences, decode_versions
from replicad.store.format import FrameError, FrameType, split_frames_untrusted
from replicad.work.reader import Answer, split_ids

LISTING_CREDIT_BYTES = 4 * 1024 * 1024
"""Operations the replica may send ahead: a tree of small files needs 15 MB of them a second at 1 Gbit/s, and they have
to last for a round trip."""
MAX_SNAPSHOTS = 1_000_000
"""One every five minutes for nine years; a peer that lists more is not listing snapshots."""

_NOTHING = encode_ops([])
"""The least that an answer can be; versions and differences are encoded alike."""

Item = TypeVar("Item")


class _Asked:
    """A fetch under way."""

    __slots__ = ("answers", "at", "dropped", "names")

    def __init__(self, names: list[bytes]) -> None:
        self.names = names
        self.at = 0
        self.answers: asyncio.Queue[list[Answer] | ReplicadError] = asyncio.Queue()
        self.dropped = False
        """Whoever asked has gone; what comes is thrown away."""

    @property
    def left(self) -> int:
        """Answers still to come."""
        return len(self.names) - self.at


class RemoteReader:
    """Reads one dataset of a replica; keeps the contract of `Reader`."""

    def __init__(self, channel: Channel, opened: Opened) -> None:
        """Use `open`."""
        self.name = channel.peer
        self.head = opened.head
        """The last snapshot when the session began."""
        self._order = opened.order
        self._channel = channel
        self._asking = asyncio.Lock()
        self._asked: deque[_Asked] = deque()
        self._listing: asyncio.Queue[Listing | Told | ReplicadError] | None = None
        self._credit = 0
        """Bytes of a listing that may still come; one answer may overdraw it."""
        self._listed: asyncio.Queue[Snapshots | ReplicadError] | None = None
        self._expects: set[type[Listing] | type[Told] | type[Snapshots]] = set()
        """Answers in several messages of which the last has not come yet."""
        self._failure: ReplicadError | None = None
        self._listener = asyncio.create_task(self._listen())

    @classmethod
    async def open(cls, channel: Channel, dataset: str) -> RemoteReader:
        """Begin a reading session on a greeted channel, which is then the reader's.

        Raises UsageError (no such dataset), RefusedError (no right), LinkError, PeerError; the channel is then closed.
        """
        try:
            answer = await open_session(channel, OpenRead(dataset))
            if isinstance(answer, Opened):
                return cls(channel, answer)
            raise _no(answer, channel.peer)
        except BaseException:
            await channel.close()
            raise

    async def snapshots(self) -> list[SnapshotLine]:
        """See `Reader`."""
        assert self._listed is None, "snapshots are already being listed"
        self._listed = asyncio.Queue()
        try:
            self._expects.add(Snapshots)
            await self._say(ListSnapshots())
            lines: list[SnapshotLine] = []
            while True:
                answer = await self._listed.get()
                if isinstance(answer, ReplicadError):
                    raise copy.copy(answer)
                lines.extend(answer.lines)
                if len(lines) > MAX_SNAPSHOTS:
                    raise self._fail(PeerError(f"lists more than {MAX_SNAPSHOTS} snapshots", where=self.name))
                if not answer.more:
                    return lines
        finally:
            self._listed = None

    async def order(self) -> bytes:
        """See `HistoryReader`."""
        return self._order

    async def record(self, snapshot: int, globs: Sequence[bytes] = ()) -> AsyncIterator[list[Op]]:
        """See `Reader`."""
        _check_globs(globs)
        async for ops in self._listed_ops(Read(snapshot, list(globs), LISTING_CREDIT_BYTES)):
            yield ops

    async def visit(
        self, snapshot: int, path: bytes, depth: int = 0, *, blocks: bool = False
    ) -> AsyncIterator[list[Op]]:
        """See `Reader`."""
        below = path + b"/" if path else b""
        async for ops in self._listed_ops(Visit(snapshot, path, depth, blocks, LISTING_CREDIT_BYTES)):
            if any(isinstance(op, Put) and op.path != path and not op.path.startswith(below) for op in ops):
                raise self._fail(PeerError("lists another path than the one asked for", where=self.name))
            yield ops

    async def trace(self, path: bytes) -> AsyncIterator[list[Version]]:
        """See `Reader`."""
        count = 0
        async for data in self._stream(Trace(path, LISTING_CREDIT_BYTES), Told):
            versions = self._decoded(decode_versions, data)
            count += len(versions)
            if count > MAX_SNAPSHOTS:
                raise self._fail(PeerError(f"lists more than {MAX_SNAPSHOTS} versions of a path", where=self.name))
            yield versions

    async def compare(self, before: int, after: int, globs: Sequence[bytes] = ()) -> AsyncIterator[list[Difference]]:
        """See `Reader`."""
        _check_globs(globs)
        async for data in self._stream(Compare(before, after, list(globs), LISTING_CREDIT_BYTES), Told):
            yield self._decoded(decode_differences, data)

    async def fetch(self, ids: bytes) -> AsyncIterator[list[Answer]]:
        """See `Reader`."""
        asked = _Asked(split_ids(ids))
        assert 0 < len(asked.names) <= MAX_OFFER and not len(ids) % ID_BYTES
        async with self._asking:  # in the order of the answers
            self._asked.append(asked)
            await self._say(Fetch(ids))
        try:
            left = len(asked.names)
            while left:
                answers = await asked.answers.get()
                if isinstance(answers, ReplicadError):
                    raise copy.copy(answers)
                left -= len(answers)
                yield answers
        finally:
            asked.dropped = True

    async def close(self) -> None:
        """See `Reader`."""
        self._listener.cancel()
        await asyncio.gather(self._listener, return_exceptions=True)
        self._fail(LinkError("the reader was closed", where=self.name))
        await self._channel.close()

    async def _say(self, message: Message) -> None:
        if self._failure:
            raise copy.copy(self._failure)
        await self._channel.send(message)

    async def _listed_ops(self, question: Read | Visit) -> AsyncIterator[list[Op]]:
        async for data in self._stream(question, Listing):
            if ops := self._decoded(decode_ops, data):
                yield ops

    async def _stream(self, question: Message, kind: type[Listing] | type[Told]) -> AsyncIterator[bytes]:
        """The answers to a question that comes back in any number of messages, granting credit as they come."""
        assert self._listing is None, "another listing is under way, or was left before its end"
        self._listing, self._credit = asyncio.Queue(), LISTING_CREDIT_BYTES
        self._expects.add(kind)
        await self._say(question)
        while True:
            answer = await self._listing.get()
            if isinstance(answer, ReplicadError):
                raise copy.copy(answer)
            data = _data_of(answer)
            yield data
            if not answer.more:
                self._listing = None
                return
            self._credit += len(data)
            await self._say(Credit(len(data)))

    def _decoded(self, decode: Callable[[bytes], list[Item]], data: bytes) -> list[Item]:
        try:
            return decode(data)
        except ValueError as error:
            raise self._fail(PeerError(f"sent a listing that is none: {error}", where=self.name)) from None

    async def _listen(self) -> None:
        """Take in what the replica says and hand it to whoever asked."""
        try:
            while True:
                self._hear(await self._channel.receive())
        except ReplicadError as error:
            self._fail(error)

    def _hear(self, message: Message) -> None:
        match message:
            case Blocks():
                self._answer(self._frames(message.frames))
            case Lost():
                self._answer([Lost(message.id, show_text(message.reason))])
            case Listing() | Told() if self._listing is not None and type(message) in self._expects:
                self._take_credit(message)
                self._listing.put_nowait(message)
                self._note_end(message)
            case Snapshots() if Snapshots in self._expects:
                if self._listed is not None:
                    self._listed.put_nowait(message)
                self._note_end(message)
            case _:
                raise _no(message, self.name)

    def _take_credit(self, answer: Listing | Told) -> None:
        """What waits for a caller that is slow is bounded here, whatever the replica does. The last answer is free."""
        if not answer.more:
            return
        size = len(_data_of(answer))
        if size <= len(_NOTHING):
            raise PeerError("sent a part of a listing with nothing in it", where=self.name)
        if self._credit <= 0:
            raise PeerError("sent more of a listing than it was given credit for", where=self.name)
        self._credit -= size

    def _note_end(self, message: Listing | Told | Snapshots) -> None:
        if not message.more:
            self._expects.discard(type(message))

    def _frames(self, data: Buffer) -> list[Answer]:
        try:
            return list(split_frames_untrusted(data))
        except FrameError as error:
            raise PeerError(f"sent a block that is none: {error}", where=self.name) from None

    def _answer(self, answers: list[Answer]) -> None:
        """Hand answers to those who asked, in order."""
        while answers:
            if not self._asked:
                raise PeerError("sent a block that nobody asked for", where=self.name)
            asked = self._asked[0]
            mine, answers = answers[: asked.left], answers[asked.left :]
            for answer, name in zip(mine, asked.names[asked.at :], strict=False):
                if answer.id != name or not (isinstance(answer, Lost) or answer.type == FrameType.BLOCK):
                    raise PeerError("sent another block than the next one asked for", where=self.name)
            asked.at += len(mine)
            if not asked.left:
                self._asked.popleft()
            if not asked.dropped:
                asked.answers.put_nowait(mine)

    def _fail(self, error: ReplicadError) -> ReplicadError:
        """Nothing more will come: tell everyone who waits. The first reason is the one that counts."""
        if self._failure is None:
            self._failure = error
            for asked in self._asked:
                asked.answers.put_nowait(error)
            for queue in (self._listing, self._listed):
                if queue is not None:
                    queue.put_nowait(error)
        return error


def _data_of(answer: Listing | Told) -> bytes:
    return answer.ops if isinstance(answer, Listing) else answer.told


def _check_globs(globs: Sequence[bytes]) -> None:
    try:
        compile_globs(globs)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _no(message: Message, peer: str) -> ReplicadError:
    """What a message that is no answer means."""
    match message:
        case Refuse("unknown", text):
            return UsageError(show_text(text), where=peer)
        case Refuse("damaged", text):
            return StoreDamagedError(show_text(text), where=peer, hint="look at the store there: replicad status")
        case Refuse("busy", text):
            return LinkError(show_text(text), where=peer)
        case Refuse():
            return refused(message, peer)
        case Bye(reason):
            return LinkError(f"ended the session: {show_text(reason)}", where=peer)
    return PeerError(f"sent {type(message).__name__}, which nobody asked for", where=peer)
