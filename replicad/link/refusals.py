"""Refusals: what is reported of those who are not let in, so that no stranger can fill the log.

**Owns** who was reported lately. The first refusal of a peer is reported at once; what follows within FOLD_S is
counted, and becomes one line at its end that shows the last of it. **Never** tells more than MAX_PEERS peers apart:
what all further ones do is counted together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from replicad.model.errors import RefusedError, ReplicadError

FOLD_S = 60.0
"""A person who lets a node in sees its first refusal at once, and needs no second one within a minute."""
MAX_PEERS = 64
"""So many peers have lines of their own within that: a host has any number of addresses to come from."""
OTHERS = "other addresses"


class Refusals:
    """What one listener has refused lately."""

    def __init__(self, report: Callable[[ReplicadError], None]) -> None:
        self._report = report
        self._lately: dict[str, tuple[int, RefusedError]] = {}
        """For each peer how many were counted since its report, and the last one."""
        self._ending: asyncio.TimerHandle | None = None

    def tell(self, peer: str, refusal: RefusedError) -> None:
        """Report a refusal, now or as one of many."""
        if self._ending is None:
            self._ending = asyncio.get_running_loop().call_later(FOLD_S, self.flush)
        if peer not in self._lately and len(self._lately) >= MAX_PEERS:
            peer = OTHERS
        if peer in self._lately:
            self._lately[peer] = self._lately[peer][0] + 1, refusal
        else:
            self._lately[peer] = 0, refusal
            self._report(refusal)

    def flush(self) -> None:
        """Report what was only counted, and begin anew."""
        if self._ending:
            self._ending.cancel()
            self._ending = None
        lately, self._lately = self._lately, {}
        for peer, (count, last) in lately.items():
            if count:
                where = OTHERS if peer == OTHERS else last.where
                text = f"{count} more within {FOLD_S:.0f} s, such as: {last.what}"
                self._report(RefusedError(text, where=where, hint=last.hint))
