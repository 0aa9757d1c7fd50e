"""`replicad stdio`: what an OpenSSH server runs for a client, as the forced command of the client's key.

Carries bytes between its standard input and output and the daemon's unix socket, and looks at none of them. Two
blocking loops, one a thread: nothing here may wait for anything but the next bytes.
"""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path
from typing import Annotated

import typer

from replicad.cli.options import DEFAULT_CONFIG, ConfigOption
from replicad.link.unix import SOCKET_NAME, preface
from replicad.model.errors import LinkError
from replicad.system.sockets import socket_address

READ_BYTES = 256 * 1024
"""What one read takes at most: the pipe and the socket hold no more."""
_STDIN, _STDOUT = 0, 1


def stdio(
    client: Annotated[str, typer.Option("--client", metavar="NAME", help="The client whose key sshd has accepted.")],
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Serve one connection of an OpenSSH server. Belongs into authorized_keys:

    restrict,command="replicad stdio --client NAME" ssh-ed25519 AAAA…
    """
    raise typer.Exit(run_stdio(config, client))


def run_stdio(config_file: Path, client: str) -> int:
    """Bridge until either side ends; the exit code. Raises ConfigError, LinkError when no daemon answers."""
    from replicad.config import load

    path = load(config_file, check_files=False).node.state / SOCKET_NAME
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as daemon:
        try:
            with socket_address(path) as address:
                daemon.connect(address)
            daemon.sendall(preface(client))
        except OSError as error:
            hint = "is the daemon running there?"
            raise LinkError(f"the daemon does not answer: {error.strerror}", where=str(path), hint=hint) from None
        threading.Thread(target=_to_daemon, args=(daemon,), daemon=True).start()
        _from_daemon(daemon)
    return 0


def _to_daemon(daemon: socket.socket) -> None:
    try:
        while data := os.read(_STDIN, READ_BYTES):
            daemon.sendall(data)
        daemon.shutdown(socket.SHUT_WR)
    except OSError:
        return  # the daemon has ended the session; the other loop sees that as well


def _from_daemon(daemon: socket.socket) -> None:
    try:
        while data := daemon.recv(READ_BYTES):
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(_STDOUT, rest) :]
    except OSError:
        return  # sshd or the daemon is gone: there is nobody left to carry for
