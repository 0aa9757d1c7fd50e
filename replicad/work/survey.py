"""Survey: walk a dataset against its ledger and write down what a pass has to do, before it does any of it.

The plan lives in the ledger's temporary table, so a tree of any size is planned in bounded memory, the backlog and
its size are known before the first byte is read, and the guards can judge the whole change at once: a dataset of
which more than the configured share would be dropped or rewritten is held, and nothing of it has been sent.

Phases: 0 drops what stands where something of another kind stands now, 1 puts new directories and renamed files (while
their blocks are still recorded under the old names, which others may have by now), 2 puts the rest, 3 drops the rest
(after the puts, for the same reason). A directory is put before what is in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from replicad.db.ledger import Ledger
from replicad.db.plan import Action, Step
from replicad.db.unnamed import has_unnamed, same_unnamed
from replicad.model.entry import Kind, Stamp
from replicad.source.exclude import Excluded
from replicad.source.root import Root, Trouble
from replicad.source.scan import Companion, DirectoryDiff, Drifted, Found, Gone, Soon, walk
from replicad.work.half_read import half_read

REPLACED, FIRST, PUTS, DROPS = 0, 1, 2, 3
PHASES = (REPLACED, FIRST, PUTS, DROPS)
HOLD_FROM_ENTRIES = 20
"""A change of fewer entries never holds a dataset, whatever its share: in a small tree every edit is a big share."""
_BATCH = 2000
"""Steps written to the plan in one go."""


@dataclass(slots=True)
class Survey:
    """What a walk found."""

    files: int = 0
    """Files to be read."""
    size: int = 0
    """Their bytes."""
    puts: int = 0
    drops: int = 0
    rewritten: int = 0
    """Recorded files whose bytes were written since."""
    moved: int = 0
    """New paths of files that are recorded under another path."""
    unchanged: int = 0
    known: int = 0
    """Entries recorded before the walk."""
    troubles: list[Trouble] = field(default_factory=list)
    """The first MAX_TROUBLES; `trouble_count` counts all."""
    trouble_count: int = 0
    drifted: list[Drifted] = field(default_factory=list)
    """The first MAX_DRIFTED entries that differ though nobody changed them; `drift_count` counts all."""
    drift_count: int = 0

    @property
    def lost(self) -> int:
        """Recorded entries that would be dropped or rewritten; a renamed file is neither."""
        return max(0, self.drops - self.moved) + self.rewritten

    def held_because(self, max_change: float) -> str:
        """Why the pass must be held, or ""."""
        if self.lost < HOLD_FROM_ENTRIES or not self.known or self.lost <= max_change * self.known:
            return ""
        share = 100 * self.lost / self.known
        return (
            f"{self.drops} entries would be dropped and {self.rewritten} files rewritten, {share:.0f} % of the"
            f" {self.known} recorded (max_change allows {100 * max_change:.0f} %)"
        )


MAX_TROUBLES = 100
MAX_DRIFTED = 1000
"""Each becomes a finding of its own. More at once is no rot but a mount with other options, and is one story."""


def survey(
    root: Root,
    ledger: Ledger,
    excluded: Excluded,
    *,
    one_filesystem: bool,
    only: Iterable[bytes] | None,
    stopped: Callable[[], bool],
    soon: Soon | None = None,
    companion: Companion | None = None,
    canary: bytes = b"",
) -> Survey:
    """Walk `root` (or only the hinted directories) and fill the ledger's plan. Runs in the ledger's thread.

    `soon` is told where the walk goes next, `companion` has some directories compared; that the daemon itself rewrote
    `canary` holds nothing. `stopped` is asked once a directory; when it says so the walk ends early and the result must
    not be used.
    Raises SourceError when the root cannot be walked at all.
    """
    ledger.plan.begin()
    planner = _Planner(ledger, canary)
    planner.survey.known = ledger.count()
    found = walk(
        root, ledger, excluded=excluded, one_filesystem=one_filesystem, only=only, soon=soon, companion=companion
    )
    for diff in found:
        planner.take(diff)
        if stopped():
            break
    planner.flush()
    return planner.survey


class _Planner:
    """Turns differences into steps."""

    def __init__(self, ledger: Ledger, canary: bytes) -> None:
        self.survey = Survey()
        self._ledger, self._canary = ledger, canary
        self._steps: list[Step] = []
        self._number = 0
        self._has_files, self._has_unnamed = ledger.has_files(), has_unnamed(ledger)

    def take(self, diff: DirectoryDiff) -> None:
        survey = self.survey
        survey.unchanged += diff.unchanged
        survey.trouble_count += len(diff.troubles)
        survey.troubles.extend(diff.troubles[: MAX_TROUBLES - len(survey.troubles)])
        survey.drift_count += len(diff.drifted)
        survey.drifted.extend(diff.drifted[: MAX_DRIFTED - len(survey.drifted)])
        replaced = {found.path for found in diff.changed} if diff.gone else set()
        for gone in diff.gone:
            self._drop(gone, REPLACED if gone.path in replaced else DROPS)
        same = self._same(diff.changed)
        for found in diff.changed:
            self._put(found, is_same=found.path in same)
        if len(self._steps) >= _BATCH:
            self.flush()

    def flush(self) -> None:
        self._ledger.plan.add(self._steps)
        self._steps.clear()

    def _drop(self, gone: Gone, phase: int) -> None:
        if gone.stamp.kind == Kind.DIRECTORY:
            for path in self._ledger.below(gone.path):
                self._add(phase, Action.DROP, path)
                if len(self._steps) >= _BATCH:
                    self.flush()
        self._add(phase, Action.DROP, gone.path)

    def _same(self, changed: Sequence[Found]) -> set[bytes]:
        """Paths of those regular files whose content is recorded, though not as of a file at that path."""
        if not self._has_files:
            return set()
        moved = [one for one in changed if one.stamp.kind == Kind.FILE and not _in_place(one)]
        same = self._ledger.same_contents(one.stamp for one in moved)
        return {
            one.path
            for one in moved
            if one.stamp[4:] in same or (self._has_unnamed and same_unnamed(self._ledger, one.stamp))
        }

    def _put(self, found: Found, *, is_same: bool) -> None:
        survey, stamp = self.survey, found.stamp
        survey.puts += 1
        if stamp.kind != Kind.FILE:
            is_new = found.known is None or found.known.kind != stamp.kind
            first = stamp.kind == Kind.DIRECTORY and is_new
            self._add(FIRST if first else PUTS, Action.DESCRIBE, found.path, found=found)
            return
        if found.known == half_read(stamp):
            self._add(PUTS, Action.AGAIN, found.path, found=found)
            return
        rewritten = found.known is not None and _written(found.known, stamp)
        if is_same:
            survey.moved += found.known is None
            self._add(PUTS, Action.SAME, found.path, found=found)
        else:
            moved = self._has_files and found.known is None and self._ledger.was_elsewhere(stamp)
            survey.files += 1
            survey.size += stamp.size
            survey.rewritten += rewritten and found.path != self._canary
            survey.moved += moved and found.links == 1  # else a further name of it
            self._add(FIRST if moved else PUTS, Action.READ, found.path, found=found, moved=moved)

    def _add(self, phase: int, action: Action, path: bytes, found: Found | None = None, *, moved: bool = False) -> None:
        self._number += 1
        self.survey.drops += action is Action.DROP
        size, links, known = (found.stamp.size, found.links, found.known is not None) if found else (0, 0, True)
        self._steps.append(Step(phase, self._number, action, path, size, links, known, moved))


def _in_place(found: Found) -> bool:
    return found.known is not None and found.known.inode == found.stamp.inode


def _written(known: Stamp, now: Stamp) -> bool:
    """Whether the bytes may have changed, not only the metadata."""
    return (known.inode, known.size, known.mtime_ns) != (now.inode, now.size, now.mtime_ns)
