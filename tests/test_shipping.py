"""Shipping: how a writing session ends, as the primary sees it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from replicad.link.messages import Message, Need, Offer, Opened, Refuse
from replicad.model.entry import Drop, Op, encode_ops
from replicad.model.errors import DiskFullError, LinkError
from replicad.model.snapshot import Head
from replicad.work.record import Listed, given, maps
from replicad.work.shipping import RECORD_BYTES, Shipping, Unit, load_nothing
from replicad.work.shipping import _length as op_length


class EndedChannel:
    """A channel whose peer has said `word` and hung up: sending fails at once, the word is heard a little later."""

    peer = "fra1"

    def __init__(self, word: Message) -> None:
        self._words: list[Message] = [Opened(Head(), 1000), word]
        self._opened = False

    async def send(self, message: Message) -> None:
        if self._opened:
            raise LinkError("cannot send: the peer ended the session", where=self.peer)
        self._opened = True

    async def receive(self) -> Message:
        for _ in range(20):
            await asyncio.sleep(0)
        if not self._words:
            raise LinkError("the peer ended the session", where=self.peer)
        return self._words.pop(0)

    async def close(self, reason: str = "") -> None:
        pass


async def test_a_refusal_is_told_even_when_sending_failed_first() -> None:
    """The replica's reason counts, not that its hanging up was noticed before its words."""
    with ThreadPoolExecutor(1) as pool:
        shipping = Shipping(EndedChannel(Refuse("full", "no room")), pool, 0, lambda size: None)  # type: ignore[arg-type]
        await shipping.open("www")
        with pytest.raises(DiskFullError, match="no room"):
            await shipping.ship(Unit(b"\1" * 32, load_nothing, given([]), 0))
        await shipping.close()


def test_no_record_is_longer_than_its_format_allows() -> None:
    """What operations are reckoned at is about what they take: also those that say of a million blocks that they are
    zeros now."""
    for listed in (
        Listed(zeros=[(number, 1) for number in range(1_000_000)]),
        Listed(list(range(100_000)), [bytes(32)] * 100_000),
    ):
        pending: list[Op] = []
        for op in maps(5, listed):
            pending.append(op)
            if sum(map(op_length, pending)) >= RECORD_BYTES:
                assert len(encode_ops(pending)) < 2 * RECORD_BYTES
                pending.clear()
        assert len(encode_ops(pending)) < 2 * RECORD_BYTES


class WillingChannel(EndedChannel):
    """A channel whose peer takes everything and needs nothing."""

    def __init__(self) -> None:
        super().__init__(Refuse("busy", ""))
        self._answers: asyncio.Queue[Message] = asyncio.Queue()
        self._answers.put_nowait(Opened(Head(), 1000))

    async def send(self, message: Message) -> None:
        if isinstance(message, Offer):
            self._answers.put_nowait(Need(b"\0"))

    async def receive(self) -> Message:
        return await self._answers.get()


async def test_a_defect_ends_the_session_instead_of_letting_a_pass_wait() -> None:
    """What nobody foresaw in the pipeline comes out where the pass waits for it, as what it is."""

    async def broken(complete: bool) -> AsyncIterator[Sequence[Op]]:
        yield [Drop(b"a")]
        raise ZeroDivisionError

    with ThreadPoolExecutor(1) as pool:
        shipping = Shipping(WillingChannel(), pool, 0, lambda size: None)  # type: ignore[arg-type]
        await shipping.open("www")
        await shipping.ship(Unit(b"\1" * 32, load_nothing, broken, 0))
        with pytest.raises(ZeroDivisionError):
            await asyncio.wait_for(shipping.flushed(), 10)
        assert isinstance(shipping.failure, ZeroDivisionError)
        await shipping.close()
