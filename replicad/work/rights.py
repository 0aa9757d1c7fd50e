"""Rights: what this process may set on what it restores, told before anything is restored."""

from __future__ import annotations

import os
from pathlib import Path

from replicad.model.entry import Kind, Put

_CHOWN, _MKNOD, _SYS_ADMIN = 0, 27, 21
"""Numbers of capabilities (capabilities(7))."""
_DEVICES = (Kind.CHARACTER_DEVICE, Kind.BLOCK_DEVICE)
_PRIVILEGED = (b"trusted.", b"security.")


class Rights:
    """Of this process, now."""

    def __init__(self) -> None:
        held = _capabilities()
        self._chown, self._mknod, self._admin = (bool(held >> one & 1) for one in (_CHOWN, _MKNOD, _SYS_ADMIN))
        self._uid, self._groups = os.geteuid(), {os.getegid(), *os.getgroups()}

    def lacking(self, put: Put) -> list[str]:
        """What of an entry could not be set, or made, in one word each."""
        meta = put.meta
        found: list[str] = []
        if not self._chown and (meta.uid != self._uid or meta.gid not in self._groups):
            found.append("owners")
        if not self._mknod and put.kind in _DEVICES:
            found.append("devices")
        if not self._admin and any(name.startswith(_PRIVILEGED) for name, _ in meta.xattrs):
            found.append("attributes")
        return found


def _capabilities() -> int:
    """The effective capabilities as bits."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0
