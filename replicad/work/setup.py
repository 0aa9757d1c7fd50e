"""Setup: make a node, and let a primary in. The work behind `replicad init` and `replicad authorize`.

Everything is judged before anything is made: the configuration that would result is examined as a whole, and only
when nothing is wrong with it are directories, key and file written, the file last and by an atomic rename. What is
there already is kept: a key is never replaced, and a configuration is added to, not rewritten.
"""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from replicad.config import Config, edit, examine_text, load
from replicad.config.schema import split_address
from replicad.model.errors import LockedError, UsageError
from replicad.model.pairing import PrimaryLine, ReplicaLine
from replicad.model.pairing import split_address as dialled
from replicad.system.disk import Disk

LOCK_WAIT_S = 10.0
"""An edit takes milliseconds; whoever waits longer than this waits for something that is stuck."""
_LOCK_POLL_S = 0.02
DEFAULT_STATE = Path("/var/lib/replicad")
"""What the systemd unit's StateDirectory= makes and gives to the daemon's user."""
_FILE_MODE = 0o644
"""A configuration holds no secret, nor does a public key, and `replicad check-config` runs as any user."""
_DIRECTORY_MODE = 0o755

Edit = Callable[[str, Config | None], str]
"""From the text of a configuration (and what it means; None for a new one) to the new text. Raises UsageError."""


@dataclass(frozen=True, slots=True)
class Node:
    """What `init` is told of the node itself. What is None follows from the configuration that is there, or is this
    host's name, DEFAULT_STATE and the default of `http`."""

    config: Path
    name: str | None = None
    state: Path | None = None
    http: str | None = None


@dataclass(frozen=True, slots=True)
class Made:
    """What `init` made: the configuration now in the file, and the public key of the node."""

    config: Config
    key: str


def init_replica(node: Node, *, listen: str, store: Path) -> Made:
    """Make `node` a replica with its store in `store`. Raises UsageError, LockedError, ReplicadError."""

    def add(text: str, config: Config | None) -> str:
        if config and config.listen:
            hint = "to begin anew, move the file away; to change the replica, edit its [listen] table"
            raise UsageError("this node is a replica already", where=str(node.config), hint=hint)
        return edit.set_table(text, "listen", {"store": _absolute(store), "address": listen})

    return _init(node, add, store)


def init_primary(node: Node, *, datasets: Sequence[tuple[str, Path]], replicas: Sequence[ReplicaLine]) -> Made:
    """Make `node` a primary that copies `datasets` (name, root) to `replicas`.

    Raises UsageError, LockedError, ReplicadError.
    """

    def add(text: str, config: Config | None) -> str:
        if config and (config.datasets or config.replicas):
            hint = "to begin anew, move the file away; to protect more, add [[dataset]] or [[replica]] tables to it"
            raise UsageError("this node is a primary already", where=str(node.config), hint=hint)
        for replica in replicas:
            values = {"name": replica.name, "address": replica.address, "key": replica.key}
            text = edit.append_table(text, "replica", values)
        for name, root in datasets:
            text = edit.append_table(text, "dataset", {"name": name, "path": _absolute(root)})
        return text

    return _init(node, add)


@dataclass(frozen=True, slots=True)
class Authorized:
    """What `authorize` came to: the client's datasets, and whether the file had to be changed."""

    datasets: tuple[str, ...]
    changed: bool


def authorize(file: Path, line: PrimaryLine, *, datasets: Sequence[str] = (), replace: bool = False) -> Authorized:
    """Let the primary of `line` store `datasets` (all that the line names when empty) on the replica of `file`.

    Known already, it gets these datasets instead of those it had; with another key it is refused unless `replace`.
    Raises ConfigError, UsageError, LockedError, ReplicadError; nothing is changed then.
    """
    wanted = tuple(dict.fromkeys(datasets or line.datasets))

    def add(text: str, config: Config | None) -> str:
        assert config
        for index, client in enumerate(config.clients):
            if client.name == line.name:
                if client.key != line.key and not replace:
                    hint = "if it really has a new key, say --replace; if it is another host, give it another name"
                    raise UsageError(f'client "{line.name}" is known with another key', where=str(file), hint=hint)
                return edit.change_table(text, "client", index, {"key": line.key, "datasets": wanted})
        return edit.append_table(text, "client", {"name": line.name, "key": line.key, "datasets": wanted})

    before = load(file, check_files=False)
    if before.listen is None:
        raise UsageError("this node is no replica", where=str(file), hint="replicad init replica makes it one")
    if any((c.name, c.key, c.datasets) == (line.name, line.key, wanted) for c in before.clients):
        return Authorized(wanted, changed=False)
    _change(file, add)
    return Authorized(wanted, changed=True)


def add_viewer(file: Path, name: str, key: str, datasets: Sequence[str], *, replace: bool = False) -> bool:
    """Let whoever has `key` view `datasets` ("CLIENT/DATASET") on the replica of `file`; whether that was new.

    Known already, it views these datasets instead of those it did; with another key it is refused unless `replace`.
    Raises ConfigError, UsageError, LockedError, ReplicadError; nothing is changed then.
    """
    wanted = tuple(dict.fromkeys(datasets))

    def add(text: str, config: Config | None) -> str:
        assert config
        for index, viewer in enumerate(config.viewers):
            if viewer.name == name:
                if viewer.key != key and not replace:
                    hint = "if it really has a new key, say --replace; if it is somebody else, take another name"
                    raise UsageError(f'viewer "{name}" is known with another key', where=str(file), hint=hint)
                return edit.change_table(text, "viewer", index, {"key": key, "datasets": wanted})
        return edit.append_table(text, "viewer", {"name": name, "key": key, "datasets": wanted})

    before = load(file, check_files=False)
    if any((v.name, v.key, v.datasets) == (name, key, wanted) for v in before.viewers):
        return False
    _change(file, add)
    return True


def viewed_at(config: Config, address: str) -> str:
    """HOST:PORT where viewers find this replica, unless it is said to be at `address`. Raises UsageError."""
    if config.listen is None or not config.listen.address:
        hint = "the SFTP view is served by replicad's own listener: give listen.address"
        raise UsageError("this node listens nowhere", where=str(config.file), hint=hint)
    return advertised(config.listen.address, address)


def remove_viewer(file: Path, name: str) -> None:
    """Let a viewer view nothing any more. Raises as `add_viewer`, UsageError also when there is none of that name."""

    def remove(text: str, config: Config | None) -> str:
        names = [viewer.name for viewer in config.viewers] if config else []
        if name not in names:
            raise UsageError(
                f"there is no viewer {name!r}", where=str(file), hint=f"there is {', '.join(names) or 'none'}"
            )
        return edit.remove_table(text, "viewer", names.index(name))

    load(file, check_files=False)
    _change(file, remove)


def advertised(listen: str, address: str) -> str:
    """HOST:PORT where primaries find a replica that listens on `listen`, unless it is said to be at `address`.

    Raises UsageError when it is no HOST:PORT that can be dialled.
    """
    try:
        host, port = split_address(listen)
        if host in ("", "0.0.0.0", "::"):
            host = _own_name()
        found = address or (f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        dialled(found)
    except ValueError as error:
        raise UsageError(str(error), hint="primaries need a host and a fixed port to dial") from None
    return found


def _own_name() -> str:
    """This host's name for others; never localhost, which leads each of them to itself."""
    name = socket.getfqdn()
    return socket.gethostname() if name.partition(".")[0] == "localhost" else name


def _init(node: Node, add: Edit, *directories: Path) -> Made:
    """Add to the node's configuration, making it, its directories and its key where they are missing."""
    from replicad.link.ssh import public_key  # asyncssh is slow to import

    def add_to_node(text: str, config: Config | None) -> str:
        if config is None:
            text = edit.set_table(edit.NEW_FILE, "node", _node_values(node))
        else:
            _must_be_same(node, config)
        return add(text, config)

    def prepare(config: Config) -> None:
        disk = Disk()
        for directory in (config.node.state, *directories):
            disk.make_directory(directory)
        disk.make_directory(_target(node.config).parent, _DIRECTORY_MODE)
        _make_key(config)

    config = _change(node.config, add_to_node, prepare)
    return Made(config, public_key(config.node.key))


def _node_values(node: Node) -> dict[str, str]:
    name = node.name or socket.gethostname().partition(".")[0]
    values = {"name": name, "state": _absolute(node.state or DEFAULT_STATE)}
    return values if node.http is None else values | {"http": node.http}


def _must_be_same(node: Node, config: Config) -> None:
    """What is said of a node that exists has to be what it is."""
    for option, said, known in (
        ("--name", node.name, config.node.name),
        ("--state", node.state and _absolute(node.state), str(config.node.state)),
        ("--http", node.http, config.node.http),
    ):
        if said is not None and said != known:
            hint = f"leave {option} out to add to that node, or use another --config for another node"
            raise UsageError(f'{option} is "{known}" there, not "{said}"', where=str(node.config), hint=hint)


def _make_key(config: Config) -> None:
    """The node's key where it has none yet, and its public half beside it."""
    from replicad.link.ssh import generate_key, public_key

    key, name = config.node.key, config.node.name
    public = public_key(key) if key.exists() else generate_key(key, f"replicad {name}")
    Disk().write_durable(key.with_name(f"{key.name}.pub"), f"{public} replicad {name}\n".encode(), _FILE_MODE)


def _change(file: Path, change: Edit, prepare: Callable[[Config], None] | None = None) -> Config:
    """Write what `change` makes of the configuration in `file`, after `prepare`; what the new text means.

    One change at a time, whole or not at all; a symbolic link stays one, and mode and owner stay as they were.
    """
    target = _target(file)
    with _alone(target.parent):
        before = load(file, check_files=False) if file.exists() else None
        text = change(target.read_text() if before else "", before)
        config = _examined(text, file)
        if prepare:
            prepare(config)
        old = target.stat() if before else None
        Disk().write_durable(target, text.encode(), stat.S_IMODE(old.st_mode) if old else _FILE_MODE)
        if old and os.geteuid() == 0:
            os.chown(target, old.st_uid, old.st_gid)  # root changed it for the daemon, whose file it stays
    return config


def _examined(text: str, file: Path) -> Config:
    """What the new text means. Raises UsageError with all that is wrong, without lines: nobody has seen this text."""
    report = examine_text(text, file, check_files=False)
    if report.config is None:
        wrong = "; ".join(f"{problem.key}: {problem.text}" for problem in report.problems)
        raise UsageError(wrong, hint="nothing was changed")
    return report.config


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Hold the lock of all who edit a configuration in `directory` (or in the nearest one that exists)."""
    while not directory.is_dir():
        directory = directory.parent
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _lock(fd, directory)
        yield
    finally:
        os.close(fd)


def _lock(fd: int, directory: Path) -> None:
    give_up = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > give_up:
                raise LockedError("another process changes the configuration", where=str(directory)) from None
            time.sleep(_LOCK_POLL_S)


def _target(file: Path) -> Path:
    """The file behind a symbolic link: the link must stay one."""
    return Path(os.path.realpath(file))


def _absolute(path: Path) -> str:
    return os.path.abspath(path)
