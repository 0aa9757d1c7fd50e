"""Quarantine: bad bytes, kept aside so that what happened can be looked into after the repair.

One directory in a store or in the state directory, readable by its owner alone, bounded: when there is no room for
more, the oldest go. What is kept here is never used as a source of anything but whole frames that prove themselves, and
of an undo.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from stat import S_ISREG

from replicad.model.errors import BookDamagedError, ReplicadError
from replicad.system.disk import Disk, errors_at
from replicad.system.logs import logger

log = logger("work.quarantine")

DIRECTORY = "quarantine"
MAX_KEPT_BYTES = 512 * 1024 * 1024
"""Eight segments, or some hundred blocks with their neighbours."""
MAX_KEPT_FILES = 1000
_UNREAD = re.compile(r"unread-(\d+)-((\d{8})-\d+\.seg)")
"""The name of a segment's old file until somebody has looked at what went bad in it to the last: how many bytes were
expected in it, its name from then on, and the number of the segment."""
NOT_KEPT = "the bad bytes could not be kept aside"


class Quarantine:
    """The quarantine of one store, or of one dataset. One thread at a time."""

    def __init__(self, base: Path, disk: Disk, name: str = DIRECTORY) -> None:
        """The directory is `name` below `base`, a store or a state directory, to which paths are relative."""
        self._base, self._name, self._disk = base, name, disk
        self.directory = base / name

    def on(self, disk: Disk) -> Quarantine:
        """The same directory, written through that disk."""
        return Quarantine(self._base, disk, self._name)

    def keep(self, name: str, data: bytes) -> str:
        """Keep bytes; the file's path relative to the base, "" when they cannot be kept: whatever is wrong with the
        directory keeps nobody from telling what was found."""
        path = self.directory / name
        try:
            self._make_room(len(data))
            self._disk.write_durable(path, data)
        except (ReplicadError, OSError) as error:
            log.warning("bad bytes cannot be kept", path=str(path), reason=str(error))
            return ""
        return f"{self._name}/{name}"

    def keep_segment(self, path: Path, expected_bytes: int | None = None) -> str:
        """Give a segment's file a second name here, so that it outlives being replaced; that name's path relative to
        the base. With `expected_bytes`, what was expected in it (0 = not known), it has that name once it was looked at
        (`look_at_unread`). Raises ReplicadError."""
        taken = {_read_name(kept.name) for kept in self.segments()}
        name = next(name for i in range(len(taken) + 1) if (name := f"{path.stem}-{i}.seg") not in taken)
        self._make_room(path.stat().st_size)
        kept = self.directory / (name if expected_bytes is None else f"unread-{expected_bytes}-{name}")
        with errors_at(kept, "keeping a file"):
            kept.unlink(missing_ok=True)
            os.link(path, kept)
        self._disk.sync_directory(self.directory)
        return f"{self._name}/{name}"

    def look_at_unread(self, look: Callable[[int, Path, int], object]) -> None:
        """Have every old file of a segment that nobody has looked at since it was replaced looked at, with the number
        of the segment and the bytes that were expected in it then (0 = not known). One that cannot be read keeps its
        name, for the next daemon. Raises BookDamagedError."""
        for path in self.segments():
            if not (unread := _UNREAD.fullmatch(path.name)):
                continue
            length, name, number = unread.groups()
            try:
                look(int(number), path, int(length))
                self._disk.rename_durable(path, path.with_name(name))
            except BookDamagedError:
                raise
            except (ReplicadError, FileNotFoundError) as error:
                log.warning("the old file of a segment cannot be looked at", path=str(path), reason=str(error))

    def read(self, kept: str, size: int) -> bytes:
        """The first `size` bytes of what was kept under that relative path; b"" when it is gone."""
        path = self._base / kept
        if not kept or path.parent != self.directory:
            return b""
        try:
            with path.open("rb") as file:
                return file.read(size)
        except OSError:
            return b""  # made room for newer bytes, or removed by a person

    def segments(self) -> list[Path]:
        """Whole segments that are kept here, newest first."""
        return [self.directory / name for _, name, _ in reversed(self._files()) if name.endswith(".seg")]

    def _make_room(self, size: int) -> None:
        """Raises ReplicadError, whatever is wrong with the directory."""
        try:
            self._disk.make_directory(self.directory)
            files = self._files()
            used = sum(kept for *_, kept in files)
            while files and (used + size > MAX_KEPT_BYTES or len(files) >= MAX_KEPT_FILES):
                _, oldest, kept = files.pop(0)
                used -= kept
                (self.directory / oldest).unlink(missing_ok=True)
        except OSError as error:
            text, hint = f"no room can be made: {error.strerror}", "check rights and mount"
            raise ReplicadError(text, where=str(self.directory), hint=hint) from error

    def _files(self) -> list[tuple[int, str, int]]:
        """(ctime, name, size), oldest first. Several threads keep bytes here: what one sees another may finish."""
        found: list[tuple[int, str, int]] = []
        for entry in os.scandir(self.directory) if self.directory.is_dir() else ():
            with suppress(FileNotFoundError):
                status = entry.stat(follow_symlinks=False)
                if S_ISREG(status.st_mode) and not entry.name.startswith("."):  # else it is being written
                    found.append((status.st_ctime_ns, entry.name, status.st_size))
        return sorted(found)


def _read_name(name: str) -> str:
    """What the old file of a segment is called once it was looked at."""
    unread = _UNREAD.fullmatch(name)
    return unread[2] if unread else name
