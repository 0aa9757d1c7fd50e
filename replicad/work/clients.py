"""Clients: who may connect now, to store or to view, by the configuration file as it is at this moment, so that an
authorisation needs no restart. **Never** lets a file that is invalid for the moment change anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from replicad.config import ClientConfig, Config, ViewerConfig, load
from replicad.model.errors import ConfigError
from replicad.system.logs import logger

log = logger("work.clients")


class Clients:
    """The `[[client]]` and `[[viewer]]` tables of the configuration file as it is now."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._seen = _version(config.file)

    def current(self) -> Sequence[ClientConfig]:
        """Who may store."""
        return self._now().clients

    def viewers(self) -> Sequence[ViewerConfig]:
        """Who may view."""
        return self._now().viewers

    def _now(self) -> Config:
        """Read the file again when it changed; a file that is invalid for the moment changes nothing."""
        seen = _version(self._config.file)
        if seen != self._seen:
            self._seen = seen
            try:
                read = load(self._config.file, check_files=False)
                self._config = replace(self._config, clients=read.clients, viewers=read.viewers)
            except ConfigError as error:
                log.error("the changed configuration is invalid, clients are as before", problem=str(error))
        return self._config


def _version(file: Path) -> tuple[int, int, int, int]:
    """What changes when a file is replaced or written, keeps its time though it be, or becomes readable again."""
    try:
        status = file.stat()
    except OSError:
        return (0, 0, 0, 0)
    return (status.st_ino, status.st_mtime_ns, status.st_size, status.st_ctime_ns)
