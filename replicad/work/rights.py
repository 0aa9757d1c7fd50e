"""Rights: what this process may set on what it restores or repairs, told before anything is written."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from replicad.model.entry import Kind, Meta, Put

_CHOWN, _FSETID, _SYS_ADMIN, _MKNOD, _SETFCAP = 0, 4, 21, 27, 31
"""Numbers of capabilities (capabilities(7))."""
_DEVICES = (Kind.CHARACTER_DEVICE, Kind.BLOCK_DEVICE)
_PRIVILEGED = (b"trusted.", b"security.")
CAPABILITY = b"security.capability"
"""The extended attribute that holds a program's own capabilities."""


class Rights:
    """Of this thread, now; all threads of a daemon have the same."""

    def __init__(self) -> None:
        held = _capabilities()
        self._chown, self._mknod, self._admin = (bool(held >> one & 1) for one in (_CHOWN, _MKNOD, _SYS_ADMIN))
        self._fsetid, self._setfcap = (bool(held >> one & 1) for one in (_FSETID, _SETFCAP))
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

    def wanted_to_keep(self, kind: Kind, meta: Meta) -> list[str]:
        """The capabilities without which an entry with this metadata cannot be repaired: whatever writes a file or sets
        its owner takes setuid and setgid bits and capabilities from it, and not all of that is an error."""
        is_own = kind is Kind.DIRECTORY and meta.gid in self._groups
        found: list[str] = []
        if not self._fsetid and meta.mode & (stat.S_ISUID | stat.S_ISGID) and not is_own:
            found.append("CAP_FSETID")
        if not self._setfcap and any(name == CAPABILITY for name, _ in meta.xattrs):
            found.append("CAP_SETFCAP")
        return found


def _capabilities() -> int:
    """The effective capabilities as bits."""
    for line in Path("/proc/thread-self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0
