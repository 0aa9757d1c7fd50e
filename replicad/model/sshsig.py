"""SSHSIG: a detached signature that any `ssh-keygen -Y verify` checks. Pure.

The format is OpenSSH's PROTOCOL.sshsig: what is signed is not the message but a short text that names its purpose (the
namespace) and its SHA-512, so a signature made here can neither be used to log in nor stand for anything else.
"""

from __future__ import annotations

import hashlib
from base64 import b64encode

NAMESPACE = "replicad-report"
"""What an auditor names with `-n`: a signature for anything else is not one of a report."""
_MAGIC = b"SSHSIG"
_HASH = b"sha512"
_VERSION = 1
_LINE_CHARACTERS = 70


def to_sign(message: bytes, namespace: str = NAMESPACE) -> bytes:
    """The bytes that the key signs in place of the message."""
    digest = hashlib.sha512(message).digest()
    return _MAGIC + b"".join(map(_string, (namespace.encode(), b"", _HASH, digest)))


def armoured(public_key: bytes, signature: bytes, namespace: str = NAMESPACE) -> bytes:
    """The signature file, from the key and the signature as SSH encodes them."""
    body = _MAGIC + _VERSION.to_bytes(4, "big")
    body += b"".join(map(_string, (public_key, namespace.encode(), b"", _HASH, signature)))
    text = b64encode(body).decode()
    lines = [text[at : at + _LINE_CHARACTERS] for at in range(0, len(text), _LINE_CHARACTERS)]
    return "\n".join(["-----BEGIN SSH SIGNATURE-----", *lines, "-----END SSH SIGNATURE-----", ""]).encode()


def _string(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data
