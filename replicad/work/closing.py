"""Closing: what a restore does when all files are in place.

Hard links first (their first names exist now), then each directory, children before parents: what in it is extra is
counted or removed, leftovers of interrupted restores go, and it gets its metadata last of all, because everything
before would have changed its times.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from replicad.model.entry import Put, show_path
from replicad.work.account import LINKS, Fate, Tally
from replicad.work.attributes import UNUSABLE, attributes_differ, reason_of, set_attributes
from replicad.work.conflicts import files_below, note_name
from replicad.work.filling import Site
from replicad.work.planner import Rules, make_room
from replicad.work.remembered import Remembered

STEP_ENTRIES = 256
"""Entries dealt with in one step, so that progress shows and an interruption is heeded."""


class Closing:
    """The end of one restore. For one thread at a time."""

    def __init__(self, site: Site, remembered: Remembered, rules: Rules) -> None:
        self._site, self._target = site, site.target
        self._remembered, self._rules = remembered, rules
        self._done = self._dressed = 0

    def steps_of_class(self, tally: Tally) -> Iterator[None]:
        """All files of a class are in place: make it usable as it is, before the others come."""
        yield from self._links(tally)
        if self._target.dry:
            return
        for put, existed, place in self._remembered.directories(self._dressed):
            if not existed:
                self._open_up(put, place, tally)
            yield from self._pause()
        self._dressed = self._remembered.directory_count

    def steps(self, tally: Tally) -> Iterator[None]:
        """Do everything, with a pause now and then."""
        yield from self._links(tally)
        for put, existed, place in self._remembered.directories():
            if existed and self._rules.wanted.everything:
                yield from self._tidy(put.path, tally)
            if existed or not self._is_of(put, place):
                self._dress(put, tally)
            yield from self._pause()

    def _is_of(self, put: Put, place: int) -> bool:
        """Whether a directory came with its own class, behind which nothing changes in it any more."""
        return place < len(self._rules.order.classes) and self._rules.order.place_of(put.path) == place

    def _open_up(self, put: Put, place: int, tally: Tally) -> None:
        """Let others into a directory of a class that is complete, or on the way to it. One of the latter that would
        shut us out stays as it is; what cannot be set on it is told at the end."""
        is_complete = self._is_of(put, place)
        if is_complete or os.geteuid() == 0 or put.meta.mode & stat.S_IRWXU == stat.S_IRWXU:
            self._dress(put, tally if is_complete else Tally())
            self._target.open_up(put.path)

    def _pause(self) -> Iterator[None]:
        self._done += 1
        if self._done % STEP_ENTRIES == 0:
            yield None

    def _links(self, tally: Tally) -> Iterator[None]:
        for path, file in self._remembered.links():
            self._link(path, file, tally)
            yield from self._pause()

    def _link(self, path: bytes, file: int, tally: Tally) -> None:
        """Make `path` one more name of a restored file."""
        first, fate = self._remembered.first_path(file), self._remembered.fate(file)
        assert first is not None
        if fate is Fate.FAILED:
            tally.fail(LINKS, path, f"it is another name of {show_path(first)}, which was not restored")
            return
        try:
            is_new = self._make_link(first, path, tally) or fate is Fate.REPLACED
        except UNUSABLE as error:
            tally.fail(LINKS, path, reason_of(error))
            return
        (tally.restored if is_new else tally.unchanged)[LINKS] += 1
        if fate is Fate.INCOMPLETE:
            tally.note("damaged", path, f"it is another name of {show_path(first)}")

    def _make_link(self, first: bytes, path: bytes, tally: Tally) -> bool:
        target, there, status = self._target, self._target.status(path), self._target.status(first)
        if there and status and (there.st_dev, there.st_ino) == (status.st_dev, status.st_ino):
            return False
        if there is not None:
            if self._rules.plan:
                note_name(path, there, first, tally)
            make_room(path, there, target, self._rules, tally)
        if not target.dry:
            target.link(first, path)
        return True

    def _tidy(self, directory: bytes, tally: Tally) -> Iterator[None]:
        """Find what the snapshot does not have in a directory that existed before."""
        prefix = directory + b"/" if directory else b""
        try:
            for name in self._target.names(directory):
                path = prefix + name
                if not self._target.drop_leftover(path) and not self._remembered.belongs(path):
                    self._extra(path, tally)
                yield from self._pause()
        except UNUSABLE as error:
            tally.note("extra", directory, f"could not be searched for extra entries: {reason_of(error)}")

    def _extra(self, path: bytes, tally: Tally) -> None:
        rules = self._rules
        if not rules.removes_extra:
            why = f": {rules.spare_extra}" if rules.delete_extra else ""
            tally.extra += 1
            tally.note("extra", path, f"not in the snapshot, left alone{why}")
            return
        try:
            if rules.plan:
                tally.replaced.extend(files_below(self._target, path))
            if not self._target.dry:
                self._target.remove(path)
        except UNUSABLE as error:
            tally.extra += 1
            tally.note("extra", path, f"not in the snapshot, but cannot be removed: {reason_of(error)}")
        else:
            tally.extra_removed += 1
            tally.note("extra", path, "not in the snapshot, removed")

    def _dress(self, put: Put, tally: Tally) -> None:
        """Give a directory its metadata."""
        if self._target.dry:
            return
        try:
            with self._target.directory(put.path) as fd:
                if attributes_differ(put, os.fstat(fd), fd):
                    for text in set_attributes(put, fd, atime_ns=self._site.now_ns):
                        tally.note("metadata", put.path, text)
        except UNUSABLE as error:
            tally.note("metadata", put.path, reason_of(error))
