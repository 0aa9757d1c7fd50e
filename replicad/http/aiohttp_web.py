"""aiohttp's server half, without what its client half does when it is imported.

That loads the certificates of all authorities that the system trusts, an eighth of the time in which a daemon starts;
replicad never speaks TLS as a client. **Owns** that one import; everybody else takes `web` from here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

NOWHERE = {"SSL_CERT_FILE": os.devnull, "SSL_CERT_DIR": os.devnull}
"""Where OpenSSL looks for authorities (SSL_CTX_set_default_verify_paths(3))."""


@contextmanager
def _no_authorities() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in NOWHERE}
    os.environ.update(NOWHERE)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


with _no_authorities():
    from aiohttp import web

__all__ = ["web"]
