"""Quarantine: bad bytes are kept aside, so that a person, or a better tool, can look at what the disk gave.

**Owns** one directory of small files, readable by its owner alone, of bounded size. **Never** gives anything up to make
room: the first of what went wrong says more than the last. The same bytes found again are kept once.
"""

from __future__ import annotations

from pathlib import Path

from replicad.model.errors import ReplicadError
from replicad.system.disk import Disk

QUARANTINE_BYTES = 1024**3
"""All bad bytes of one dataset together: 16,384 blocks of 64 KiB, more than anybody will look at."""
FULL = "the bad bytes were not kept: the quarantine is full"


class Quarantine:
    """The bad bytes of one dataset. For worker threads."""

    def __init__(self, directory: Path, disk: Disk) -> None:
        """`directory` lies two levels below what `keep` names files relative to."""
        self._directory, self._disk = directory, disk

    def keep(self, name: str, data: bytes) -> str:
        """Keep these bytes; the file's path relative to the state directory, "" when there is no room for them.

        Raises ReplicadError when the directory cannot be written."""
        self._disk.make_directory(self._directory)
        path = self._directory / name
        try:
            sizes = {file.name: file.stat().st_size for file in self._directory.iterdir()}
        except OSError as error:
            raise ReplicadError(f"cannot be listed: {error.strerror}", where=str(self._directory)) from error
        if name not in sizes:
            if sum(sizes.values()) + len(data) > QUARANTINE_BYTES:
                return ""
            self._disk.write_durable(path, data, 0o600)
        return str(path.relative_to(self._directory.parent.parent))
