"""Sockets: unix sockets below directories whose paths are longer than a socket address holds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MAX_SOCKET_PATH_BYTES = 107
"""Longest path in a unix socket address (sun_path without its NUL)."""


@contextmanager
def socket_address(path: Path) -> Iterator[str]:
    """What to bind or connect to for `path`: a longer path than an address holds is reached through its directory's
    descriptor. Raises OSError when that directory cannot be opened."""
    if len(os.fsencode(path)) <= MAX_SOCKET_PATH_BYTES:
        yield str(path)
        return
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)
