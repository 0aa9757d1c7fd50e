"""The turn that is kept for several repairs: for how long, and what becomes of it."""

from __future__ import annotations

import asyncio

import pytest

from kit_scrub import SteppingClock
from replicad.work import between_passes
from replicad.work.between_passes import KEPT_S, BetweenPasses


async def test_it_is_kept_for_a_while_and_then_a_pass_goes_first() -> None:
    """Repairs in a row need not wait for a pass each; a pass that waits is not kept for long, nor by who has ended."""
    turn, clock = asyncio.Lock(), SteppingClock()
    async with BetweenPasses(turn, clock) as between:
        between.rest()
        assert not turn.locked() and await between.take()
        between.rest()
        assert turn.locked() and await between.take()
        waiting = asyncio.create_task(turn.acquire())
        await asyncio.sleep(0)
        clock.slept.append(KEPT_S)
        between.rest()
        again = asyncio.create_task(between.take())
        await waiting
        await asyncio.sleep(0)
        assert not again.done()
        turn.release()
        assert await again
    assert not turn.locked()


async def test_it_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred findings do not wait a hundred times for a pass that takes hours."""
    monkeypatch.setattr(between_passes, "TURN_S", 0.01)
    turn, clock = asyncio.Lock(), SteppingClock()
    async with turn, BetweenPasses(turn, clock) as between:
        assert not await between.take()
        monkeypatch.setattr(between_passes, "TURN_S", 3600.0)
        assert not await between.take()
        between.rest()
        assert turn.locked()
    assert not turn.locked()


async def test_it_is_given_back_after_an_error() -> None:
    """Whatever ends the repairs."""
    turn = asyncio.Lock()
    with pytest.raises(ZeroDivisionError):
        async with BetweenPasses(turn, SteppingClock()) as between:
            await between.take()
            raise ZeroDivisionError
    assert not turn.locked()
