"""Outcome: what a pass could and could not copy. Nothing is skipped silently: it is counted, and named here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from replicad.model.entry import show_path
from replicad.model.snapshot import Head
from replicad.source.root import Trouble
from replicad.source.watch import MAX_HINTS
from replicad.status import MAX_NAMED
from replicad.status import Trouble as Named


@dataclass(slots=True)
class Outcome:
    """How a pass went."""

    head: Head = field(default_factory=Head)
    unread: int = 0
    """Entries that could not be copied as they are."""
    fuzzy: int = 0
    """Files recorded although they kept changing while they were read."""
    rotten: int = 0
    """Blocks whose bytes differ from the ledger under an unchanged identity."""
    named: list[Named] = field(default_factory=list)
    """The first MAX_NAMED of the unread."""

    _places: set[bytes] = field(default_factory=set)

    def trouble(self, path: bytes, reason: str) -> None:
        """Count one path."""
        self.unread += 1
        if len(self.named) < MAX_NAMED:
            self.named.append(Named(show_path(path), reason))
            self.look_again(path)

    def look_again(self, path: bytes) -> None:
        """Have the next walk look there, whatever the watch says."""
        if len(self._places) <= MAX_HINTS:
            self._places.update((path, path.rpartition(b"/")[0]))

    @property
    def again(self) -> frozenset[bytes] | None:
        """Directories to be walked again so that the unread are found again; None: there are too many to name."""
        is_all = self.unread <= len(self.named) and len(self._places) <= MAX_HINTS
        return frozenset(self._places) if is_all else None

    def widened(self, only: frozenset[bytes] | None) -> frozenset[bytes] | None:
        """The directories of a walk, None for all, and those to be walked again."""
        return None if only is None or self.again is None else only | self.again

    def unreadable(self, trouble: Trouble) -> None:
        """Count what the source could not give. A path that is gone by now is no trouble: the next walk drops it."""
        if not trouble.vanished:
            self.trouble(trouble.path, trouble.reason)

    def attributes(self, path: bytes, reasons: Sequence[str]) -> None:
        """Count attributes of an entry that could not be read."""
        for reason in reasons:
            self.trouble(path, reason)
