"""SFTP: the file transfer protocol of OpenSSH (version 3, draft-ietf-secsh-filexfer-02), as a server that only reads
needs it. Pure: bytes in, a `Request` out; an answer in, bytes out.

**Owns** the numbers of the protocol and the limits of a packet. A packet from the peer becomes a request or PeerError,
nothing else. Whatever would write has a verb here and no fields: it is refused by its verb alone.
"""

from __future__ import annotations

import stat
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntEnum
from typing import NamedTuple

from replicad.model.errors import PeerError

VERSION = 3
MAX_PACKET_BYTES = 256 * 1024
"""Largest packet either way, as OpenSSH has it."""
MAX_READ_BYTES = MAX_PACKET_BYTES - 1024
"""Largest piece of a file in one answer; the rest of its packet is for headers."""
PAGE_NAMES = 256
"""Names in one answer of a directory: 650 bytes each at most, so they fit into a packet."""
MAX_TEXT_CHARACTERS = 1024
"""Of the words in an answer; an error may list what exists."""
_LAST_S = 2**32 - 1
"""The last second that the protocol can tell, in 2106; the first is 0."""
_SIZE, _OWNER, _PERMISSIONS, _TIMES = 1, 2, 4, 8
"""Which fields follow in attributes."""
LIMITS = b"limits@openssh.com"
"""The one extension: a client asks how much it may read at once and how many handles it may hold."""


class Verb(IntEnum):
    """What a client can ask for."""

    INIT = 1
    OPEN = 3
    CLOSE = 4
    READ = 5
    WRITE = 6
    LSTAT = 7
    FSTAT = 8
    SETSTAT = 9
    FSETSTAT = 10
    OPENDIR = 11
    READDIR = 12
    REMOVE = 13
    MKDIR = 14
    RMDIR = 15
    REALPATH = 16
    STAT = 17
    RENAME = 18
    READLINK = 19
    SYMLINK = 20
    EXTENDED = 200


class Code(IntEnum):
    """How a request ended, where its answer is nothing else."""

    OK = 0
    END = 1
    NO_SUCH_FILE = 2
    PERMISSION_DENIED = 3
    FAILURE = 4
    UNSUPPORTED = 8


WRITING = frozenset(
    {Verb.WRITE, Verb.SETSTAT, Verb.FSETSTAT, Verb.REMOVE, Verb.MKDIR, Verb.RMDIR, Verb.RENAME, Verb.SYMLINK}
)
"""Verbs that change something."""
WRITING_EXTENSIONS = frozenset(
    {b"posix-rename@openssh.com", b"hardlink@openssh.com", b"fsync@openssh.com", b"lsetstat@openssh.com", b"copy-data"}
)
OPEN_READ = 1
"""The one flag of an open that asks for nothing but to read."""
_WITH_PATH = frozenset({Verb.OPEN, Verb.LSTAT, Verb.OPENDIR, Verb.REALPATH, Verb.STAT, Verb.READLINK})
_WITH_HANDLE = frozenset({Verb.CLOSE, Verb.READ, Verb.FSTAT, Verb.READDIR})


class Request(NamedTuple):
    """One request. `verb` is a plain number: a client may ask for what nobody has heard of."""

    verb: int
    id: int
    """The client's number for it, or its version in INIT."""
    text: bytes = b""
    """The path, the handle, or the name of the extension."""
    offset: int = 0
    size: int = 0
    flags: int = 0


@dataclass(frozen=True, slots=True)
class Attributes:
    """What an answer says of a path. `mode` has the bits of its kind, as st_mode."""

    mode: int
    size: int = 0
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0

    @property
    def mtime_s(self) -> int:
        """As the protocol can tell it."""
        return min(max(self.mtime_ns // 1_000_000_000, 0), _LAST_S)


class _Fields:
    """Takes one field after the other out of a packet."""

    def __init__(self, packet: bytes) -> None:
        self._packet, self._at = packet, 0

    def number(self, size: int) -> int:
        return int.from_bytes(self._take(size), "big")

    def text(self) -> bytes:
        return self._take(self.number(4))

    def _take(self, size: int) -> bytes:
        start, self._at = self._at, self._at + size
        if self._at > len(self._packet):
            raise PeerError("sent an SFTP packet that ends in the middle of a field")
        return self._packet[start : self._at]


def parse(packet: bytes) -> Request:
    """The request in a packet (without its length). Raises PeerError."""
    fields = _Fields(packet)
    verb, id = fields.number(1), fields.number(4)
    if verb in _WITH_PATH or verb in _WITH_HANDLE or verb == Verb.EXTENDED:
        text = fields.text()
        if verb == Verb.READ:
            return Request(verb, id, text, offset=fields.number(8), size=fields.number(4))
        return Request(verb, id, text, flags=fields.number(4) if verb == Verb.OPEN else 0)
    return Request(verb, id)


def version() -> bytes:
    """The answer to INIT."""
    return _packet(2, VERSION, _text(LIMITS) + _text(b"1"))


def status(id: int, code: Code, text: str = "") -> bytes:
    """How it ended."""
    words = text[:MAX_TEXT_CHARACTERS].encode(errors="replace")
    return _packet(101, id, code.to_bytes(4, "big") + _text(words) + _text(b"en"))


def handle(id: int, name: bytes) -> bytes:
    """What was opened."""
    return _packet(102, id, _text(name))


def data(id: int, content: bytes) -> bytes:
    """A piece of a file."""
    return _packet(103, id, _text(content))


def path(id: int, name: bytes) -> bytes:
    """The path that was asked for."""
    return _packet(104, id, b"\0\0\0\1" + _text(name) + _text(name) + bytes(4))


def names(id: int, entries: Sequence[tuple[bytes, Attributes]]) -> bytes:
    """A piece of a directory."""
    lines = [_text(name) + _text(long_name(name, about)) + _encoded(about) for name, about in entries]
    return _packet(104, id, len(lines).to_bytes(4, "big") + b"".join(lines))


def attributes(id: int, about: Attributes) -> bytes:
    """What a path is."""
    return _packet(105, id, _encoded(about))


def limits(id: int, handles: int) -> bytes:
    """The answer to LIMITS: bytes in a packet, in a read and in a write; handles."""
    sizes = (MAX_PACKET_BYTES, MAX_READ_BYTES, MAX_READ_BYTES, handles)
    return _packet(201, id, b"".join(size.to_bytes(8, "big") for size in sizes))


def long_name(name: bytes, about: Attributes) -> bytes:
    """The line that clients print for `ls -l`: owners as numbers, times in UTC, no count of links."""
    when = datetime.fromtimestamp(about.mtime_s, UTC).strftime("%Y-%m-%d %H:%M")
    line = f"{stat.filemode(about.mode)}    ? {about.uid:<8} {about.gid:<8} {about.size:>12} {when} "
    return line.encode() + name


def _encoded(about: Attributes) -> bytes:
    flags = _SIZE | _OWNER | _PERMISSIONS | _TIMES
    fields = (about.uid, about.gid, about.mode, about.mtime_s, about.mtime_s)
    head = flags.to_bytes(4, "big") + about.size.to_bytes(8, "big")
    return head + b"".join((field & 0xFFFFFFFF).to_bytes(4, "big") for field in fields)


def _packet(type: int, id: int, rest: bytes) -> bytes:
    return (5 + len(rest)).to_bytes(4, "big") + type.to_bytes(1, "big") + id.to_bytes(4, "big") + rest


def _text(value: bytes) -> bytes:
    return len(value).to_bytes(4, "big") + value
