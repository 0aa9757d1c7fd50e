"""Pairing: the one line that each side prints for the other. Pure.

    replicad-replica NAME HOST:PORT ssh-ed25519 AAAA…
    replicad-primary NAME ssh-ed25519 AAAA… DATASET[,DATASET…]

A line is copied by hand, so what is wrong with one is said in the words of the line: UsageError, nothing changed.
Public keys are "ssh-ed25519 AAAA…" everywhere in the product: type and base64 of the blob, no comment.
"""

from __future__ import annotations

import binascii
import hashlib
import re
from base64 import b64decode, b64encode
from dataclasses import dataclass
from ipaddress import ip_address

from replicad.model.errors import UsageError

KEY_TYPE = "ssh-ed25519"
SSH_PORT = 22
"""Where OpenSSH looks when no port is said; its known_hosts name any other one."""
MAX_LINE_CHARACTERS = 64 * 1024
"""Far beyond a line with hundreds of datasets; something longer is another file, given by mistake."""
_KEY_HEAD = b"\0\0\0\x0bssh-ed25519\0\0\0 "
"""The blob's type with its length, and the length of the key that follows: 32."""
_KEY_BYTES = 32
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_HOST = re.compile(r"[A-Za-z0-9_.-]{1,253}", re.ASCII)
_REPLICA, _PRIMARY = "replicad-replica", "replicad-primary"
_REPLICA_FORM = f"{_REPLICA} NAME HOST:PORT {KEY_TYPE} AAAA…"
_PRIMARY_FORM = f"{_PRIMARY} NAME {KEY_TYPE} AAAA… DATASET[,DATASET…]"


@dataclass(frozen=True, slots=True)
class ReplicaLine:
    """What a replica tells a primary: its name, where it listens, and its host key."""

    name: str
    address: str
    key: str

    def __str__(self) -> str:
        return f"{_REPLICA} {self.name} {self.address} {self.key}"


@dataclass(frozen=True, slots=True)
class PrimaryLine:
    """What a primary tells a replica: its name, its key, and the datasets that it wants to store."""

    name: str
    key: str
    datasets: tuple[str, ...]

    def __str__(self) -> str:
        return f"{_PRIMARY} {self.name} {self.key} {','.join(self.datasets)}"


def parse_replica_line(line: str) -> ReplicaLine:
    """The line that `init replica` printed. Raises UsageError."""
    words = _words(line, _REPLICA, _REPLICA_FORM, count=5)
    try:
        split_address(words[2])
        return ReplicaLine(parse_name(words[1]), words[2], parse_key(" ".join(words[3:])))
    except ValueError as error:
        raise _wrong(str(error), _REPLICA_FORM) from None


def parse_primary_line(line: str) -> PrimaryLine:
    """The line that `init primary` printed. Raises UsageError."""
    words = _words(line, _PRIMARY, _PRIMARY_FORM, count=5)
    try:
        datasets = tuple(map(parse_name, words[4].split(",")))
        if len(set(datasets)) < len(datasets):
            raise ValueError(f'"{words[4]}" names a dataset twice')
        return PrimaryLine(parse_name(words[1]), parse_key(" ".join(words[2:4])), datasets)
    except ValueError as error:
        raise _wrong(str(error), _PRIMARY_FORM) from None


def parse_name(text: str) -> str:
    """A name of a node or dataset: safe as a file name, a label and an argument. Raises ValueError with the reason."""
    if not _NAME.fullmatch(text):
        raise ValueError(f'"{_short(text)}" is no name: 1 to 64 of A-Z a-z 0-9 . _ - beginning with a letter or digit')
    return text


def parse_key(text: str) -> str:
    """A public key line, checked and without the comment that may follow. Raises ValueError with the reason."""
    words = text.split()
    if len(words) < 2 or words[0] != KEY_TYPE:
        raise ValueError(f'"{_short(text)}" is no public key like "{KEY_TYPE} AAAA…"')
    try:
        blob = b64decode(words[1], validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f'the public key "{_short(words[1])}" is damaged: it is no base64') from None
    if not blob.startswith(_KEY_HEAD) or len(blob) != len(_KEY_HEAD) + _KEY_BYTES:
        raise ValueError(f'the public key "{_short(words[1])}" is damaged: it holds no Ed25519 key')
    return f"{KEY_TYPE} {b64encode(blob).decode()}"


def fingerprint(key: str) -> str:
    """SHA256:… of a public key, as ssh-keygen -l shows it. Raises ValueError."""
    blob = b64decode(parse_key(key).split()[1])
    return "SHA256:" + b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


def known_hosts_line(address: str, key: str) -> str:
    """What an OpenSSH client pins the host at HOST:PORT by, in its known_hosts. Raises ValueError."""
    host, port = split_address(address)
    return f"{host if port == SSH_PORT else f'[{host}]:{port}'} {parse_key(key)}"


def split_address(text: str) -> tuple[str, int]:
    """Host and port of HOST:PORT or [IPV6]:PORT. Raises ValueError with the reason."""
    host, _, port = text.rpartition(":")
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ValueError(f'"{_short(text)}" is no HOST:PORT')
    if host.startswith("[") and host.endswith("]"):
        ip_address(host[1:-1])
        return host[1:-1], int(port)
    if not _HOST.fullmatch(host):
        raise ValueError(f'"{_short(text)}" is no HOST:PORT; an IPv6 address stands in brackets, like [::1]:7022')
    return host, int(port)


def _words(line: str, head: str, form: str, *, count: int) -> list[str]:
    words = line[:MAX_LINE_CHARACTERS].split()
    if not words or words[0] != head:
        other = {_REPLICA: _PRIMARY, _PRIMARY: _REPLICA}[head]
        swapped = f"; this is a {other} line, which belongs to the other side" if words[:1] == [other] else ""
        raise _wrong(f'the line begins with "{_short(" ".join(words[:1]))}"{swapped}', form)
    if len(words) != count or len(line) > MAX_LINE_CHARACTERS:
        raise _wrong(f"the line has {len(words)} words instead of {count}", form)
    return words


def _wrong(what: str, form: str) -> UsageError:
    return UsageError(f"not a pairing line: {what}", hint=f"copy the whole line, it looks like: {form}")


def _short(text: str) -> str:
    shown = "".join(c if c.isprintable() else "?" for c in text[:80])
    return shown + "…" if len(text) > 80 else shown
