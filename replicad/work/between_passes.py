"""Between passes: a dataset's turn, kept for several repairs in a row.

A repair needs the turn that passes take. Where one pass follows the other, a repair that asked for it alone would wait
for a whole pass each time, and the last of a hundred for hours. **Owns** how long it is kept, and that it is waited for
once only.
"""

from __future__ import annotations

import asyncio

from replicad.system.clock import Clock

TURN_S = 30.0
"""How long a repair waits for a pass to end; longer, and it says so instead of letting a person wait."""
KEPT_S = 5.0
"""How long the next pass waits, about."""


class BetweenPasses:
    """The turn, for whoever does repairs within this context."""

    def __init__(self, turn: asyncio.Lock, clock: Clock) -> None:
        self._turn, self._clock = turn, clock
        self._until_s = 0.0
        self._is_held = self._is_in_vain = False

    async def __aenter__(self) -> BetweenPasses:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._give_back()

    async def take(self) -> bool:
        """Have the turn, unless a pass has it for too long, which is found out once. Nothing to wait for where it is
        held already."""
        if self._is_held or self._is_in_vain:
            return self._is_held
        try:
            async with asyncio.timeout(TURN_S):
                await self._turn.acquire()
        except TimeoutError:
            self._is_in_vain = True
            return False
        self._is_held, self._until_s = True, self._clock.monotonic_s() + KEPT_S
        return True

    def rest(self) -> None:
        """A repair has ended: let a pass go on that has waited for long enough."""
        if self._clock.monotonic_s() >= self._until_s:
            self._give_back()

    def _give_back(self) -> None:
        if self._is_held:
            self._is_held = False
            self._turn.release()
