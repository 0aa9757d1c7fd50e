"""API: how the CLI talks to the running daemon, over its control socket.

Owns the client end of the contract. Never imports aiohttp or http.client: one request is one connection in
HTTP/1.0 that ends with the answer, which plain sockets do in a millisecond and without the 20 to 200 ms that
importing an HTTP library costs each command. Every failure to get an answer is a LinkError (exit code 3), and so is one
that says that the daemon could not do it; an answer that says no is a UsageError (exit code 2).
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn, TypeVar

import msgspec

from replicad.http.contract import (
    CONTROL_SOCKET,
    Accepted,
    Directed,
    Drilled,
    DrillRequest,
    Failure,
    Freed,
    Gated,
    GateRequest,
    Released,
    Reloaded,
    Repaired,
    RepairResult,
    RetainedAll,
    RetainResult,
    ScrubRequest,
    SyncRequest,
    gate_query,
    repair_query,
    status_query,
)
from replicad.model.errors import LinkError, UsageError
from replicad.status import NodeStatus
from replicad.system.sockets import socket_address

ANSWER_TIMEOUT_S = 10.0
"""How long the daemon may be silent beyond the wait that was asked of it; its event loop never blocks for a second."""
REPAIR_TIMEOUT_S = 1800.0
"""How long a repair may take before the command stops waiting for it; the daemon goes on. Repairing all that an hour's
limit allows takes minutes: each block is fetched over the link, written, and read again from the medium."""
GATE_TIMEOUT_S = 120.0
"""How long a gate may take: all replicas are dialled if need be and asked side by side, each within half a minute; then
they are asked to pin."""
SCRUB_TIMEOUT_S = 120.0
"""How long a scrub's beginning may take: a primary passes it on to replicas, which it may have to dial twice."""
RETAIN_TIMEOUT_S = 6 * 3600.0
"""How long a run of retention may take before the command stops waiting; the daemon goes on. Compaction shares the disk
with everything else."""
RELOAD_TIMEOUT_S = 60.0
"""How long a reload may take: reading what the configuration names has half a minute, then what changed is ended."""
MAX_ANSWER_BYTES = 64 * 1024 * 1024
"""A status of ten thousand datasets with a hundred troubles each stays below this."""

_READ_BYTES = 64 * 1024
_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_START = "start it: systemctl start replicad, or see why it stopped: journalctl -u replicad -e"

Answer = TypeVar("Answer")


class Client:
    """The daemon whose state directory is `state`. Every method raises LinkError when there is no answer."""

    def __init__(self, state: Path) -> None:
        self._path = state / CONTROL_SOCKET

    def status(
        self, served: Sequence[SyncRequest] = (), timeout_s: float = 0.0, scrubbed: Sequence[ScrubRequest] = ()
    ) -> NodeStatus:
        """The daemon's status: at once, or as soon as the passes `served` and the scrubs `scrubbed` have ended, at the
        latest after `timeout_s` (MAX_WAIT_S at most)."""
        return self._ask("GET", "/status", status_query(served, timeout_s, scrubbed), NodeStatus, timeout_s)

    def sync(self, dataset: str | None = None) -> list[SyncRequest]:
        """Ask for a pass of one dataset, or of all, now. Raises UsageError for an unknown name."""
        query = [("dataset", dataset)] if dataset is not None else []
        return self._ask("POST", "/sync", query, Accepted).requests

    def release(self, dataset: str) -> list[Freed]:
        """Let a held dataset go on; returns what was held. Raises UsageError for an unknown name."""
        return self._ask("POST", "/release", [("dataset", dataset)], Released).released

    def scrub(self, action: str, dataset: str | None = None, side: str | None = None, for_s: float = 0.0) -> Directed:
        """Start, pause or resume scrubs. Raises UsageError for what is not there or cannot be passed on."""
        given = [("dataset", dataset), ("side", side), ("for_s", f"{for_s:g}" if for_s else None)]
        query = [("action", action), *((key, value) for key, value in given if value is not None)]
        return self._ask("POST", "/scrub", query, Directed, SCRUB_TIMEOUT_S)

    def drill(self, dataset: str | None = None, *, full: bool = False, globs: Sequence[str] = ()) -> list[DrillRequest]:
        """Ask for a drill of a sample, of everything, or of what matches. Raises UsageError for what is not there."""
        given = [("dataset", dataset), ("full", "1" if full else None)]
        query = [(key, value) for key, value in given if value is not None]
        query += [("path", glob) for glob in globs]
        return self._ask("POST", "/drill", query, Drilled).requests

    def gate(self, asked: GateRequest) -> Gated:
        """Have every replica of these datasets asked what it holds now, and judged. Raises UsageError for a name."""
        return self._ask("POST", "/gate", gate_query(asked), Gated, GATE_TIMEOUT_S)

    def reload(self) -> list[str]:
        """Have the configuration read again; the problems found, empty when it is in force."""
        return self._ask("POST", "/reload", [], Reloaded, RELOAD_TIMEOUT_S).problems

    def repair(self, id: str | None, *, dry_run: bool = False) -> list[RepairResult]:
        """Repair one divergence, or all open ones (None), or say what would be done. Takes as long as the repair.
        Raises UsageError for an unknown id."""
        return self._ask("POST", "/repair", repair_query(id, dry_run=dry_run), Repaired, REPAIR_TIMEOUT_S).results

    def retain(self, dataset: str | None = None) -> list[RetainResult]:
        """Run retention now. Takes as long as that. Raises UsageError for an unknown name."""
        query = [("dataset", dataset)] if dataset is not None else []
        return self._ask("POST", "/retain", query, RetainedAll, RETAIN_TIMEOUT_S).results

    def undo_repair(self, id: str) -> list[RepairResult]:
        """Take a repair of the primary's data back. Raises UsageError for an unknown id."""
        return self._ask("POST", "/repair", [("undo", id)], Repaired, REPAIR_TIMEOUT_S).results

    def _ask(
        self, verb: str, path: str, query: list[tuple[str, str]], kind: type[Answer], wait_s: float = 0.0
    ) -> Answer:
        target = path + ("?" + "&".join(f"{key}={_quoted(value)}" for key, value in query) if query else "")
        request = f"{verb} {target} HTTP/1.0\r\nHost: replicad\r\nContent-Length: 0\r\n\r\n".encode()
        try:
            code, body = self._exchange(request, ANSWER_TIMEOUT_S + wait_s)
            if code == 200:
                return msgspec.json.decode(body, type=kind)
            failure = msgspec.json.decode(body, type=Failure)
        except ValueError as error:  # msgspec's errors are ValueErrors
            raise LinkError(
                f"answered what this replicad does not understand: {error}",
                where=str(self._path),
                hint="daemon and command are of different versions? systemctl restart replicad",
            ) from None
        if code >= 500:
            raise LinkError(f"the daemon failed: {failure.error}", hint=failure.hint or "journalctl -u replicad -e")
        kind_of_failure = LinkError if failure.exit_code == LinkError.exit_code else UsageError
        raise kind_of_failure(failure.error, hint=failure.hint)

    def _exchange(self, request: bytes, timeout_s: float) -> tuple[int, bytes]:
        try:
            with socket.socket(socket.AF_UNIX) as stream, socket_address(self._path) as address:
                stream.settimeout(timeout_s)
                stream.connect(address)
                stream.sendall(request)
                return _split_answer(_read_all(stream))
        except OSError as error:
            _raise_out_of_reach(error, self._path)


def _read_all(stream: socket.socket) -> bytes:
    parts, size = [], 0
    while data := stream.recv(_READ_BYTES):
        parts.append(data)
        size += len(data)
        if size > MAX_ANSWER_BYTES:
            raise OSError(f"an answer of more than {MAX_ANSWER_BYTES} bytes")
    return b"".join(parts)


def _split_answer(answer: bytes) -> tuple[int, bytes]:
    """Status code and body. Raises ConnectionError when it is cut off, ValueError when it is no HTTP answer."""
    head, end, body = answer.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    words = lines[0].split(" ", 2)
    if end and (len(words) < 2 or not words[0].startswith("HTTP/1.") or not words[1].isdigit()):
        raise ValueError(f"no HTTP answer: {lines[0][:80]!r}")
    headers = dict(line.lower().split(":", 1) for line in lines[1:] if ":" in line)
    if not end or headers.get("content-length", "").strip() != str(len(body)):
        raise ConnectionResetError("its answer ends too early")
    return int(words[1]), body


def _quoted(text: str) -> str:
    return "".join(chr(byte) if byte in _PLAIN else f"%{byte:02X}" for byte in text.encode("utf-8", "surrogateescape"))


def _raise_out_of_reach(error: OSError, path: Path) -> NoReturn:
    """The one table from what the socket says to what a person should do."""
    where = str(path)
    if isinstance(error, (FileNotFoundError, ConnectionRefusedError, NotADirectoryError)):
        raise LinkError("the daemon is not running", where=where, hint=_START) from error
    if isinstance(error, PermissionError):
        raise LinkError(
            "this user may not command the daemon", where=where, hint="type it as root: sudo replicad …"
        ) from error
    if isinstance(error, TimeoutError):
        raise LinkError(
            "the daemon does not answer", where=where, hint="see what it does: journalctl -u replicad -e"
        ) from error
    raise LinkError(f"the daemon went away: {error}", where=where, hint=_START) from error
