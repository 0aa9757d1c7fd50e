"""Choice: which entries a restore takes from the record, and when: a person's patterns, the classes of an order."""

from __future__ import annotations

from collections.abc import Sequence

from replicad.model.entry import Put
from replicad.model.glob import compile_globs
from replicad.model.order import Order
from replicad.work.sieve import Sieve


class Choice:
    """For one restore. The record is gone through once for each of `places`, and shows at each what belongs there."""

    def __init__(self, order: Order, globs: Sequence[bytes]) -> None:
        """Raises ValueError for a bad pattern."""
        self._order, self._asked = order, tuple(globs)
        self._wanted = compile_globs(globs)
        self._unmatched = {glob: compile_globs([glob]) for glob in globs}
        self.places = range(len(order.classes) + 1)

    def asked(self, place: int) -> Sequence[bytes]:
        """What the reader is asked for: no more than has to be listed, and no less than may belong here."""
        if self._asked or place == len(self._order.classes):
            return self._asked
        return self._order.classes[place].globs

    def sieve(self, place: int) -> Sieve | None:
        """What of that is taken; None when it is all."""
        if not self._order and not self._asked:
            return None
        return Sieve(lambda put: self._takes(place, put))

    def unmatched(self) -> list[bytes]:
        """Patterns that nothing has matched so far."""
        return list(self._unmatched)

    def _takes(self, place: int, put: Put) -> bool:
        if not self._wanted(put.path):
            return False
        for glob in [glob for glob, matches in self._unmatched.items() if matches(put.path)]:
            del self._unmatched[glob]
        return not self._order or self._order.place_of(put.path) == place
