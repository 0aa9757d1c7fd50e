"""Two real daemons on loopback, set up with the commands that the README tells, and the means to hurt them."""

from __future__ import annotations

import contextlib
import io
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from kit_fork import ForkServer, Process
from replicad.cli.app import _run
from replicad.http.api import Client
from replicad.model.errors import LinkError
from replicad.status import DatasetStatus, NodeStatus

FORK_SERVER = ForkServer()
COMMAND = [sys.executable, "-m", "replicad"]
PATIENCE_S = 60.0
"""How long a state is waited for: far beyond what it takes on a loaded machine."""
LONGEST_LOOK_S = 2.0
"""What one look counts at most: a virtual machine that was stopped for a minute has not waited for one."""


_claims: list[socket.socket] = []
"""What keeps the ports of this process from others that ask for one, until it ends."""


def free_port() -> int:
    """A free TCP port of loopback for a daemon, also while it is dead for a moment: it lies below those that the kernel
    gives to outgoing connections, and no other process is given it here while this one lives."""
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for port in random.sample(range(min(20_000, first - 1_000), first), 1_000):
        claim = socket.socket(socket.AF_UNIX)
        with contextlib.suppress(OSError), socket.socket() as probe:
            claim.bind(f"\0replicad-test-port-{port}")
            probe.bind(("127.0.0.1", port))
            _claims.append(claim)
            return port
        claim.close()
    raise AssertionError(f"no free port of loopback below {first}")


def replicad(*words: object, code: int | None = 0, timeout: float = 300.0) -> subprocess.CompletedProcess[str]:
    """Run a verb; fails when its exit code is not `code` (None: any)."""
    typed = [*map(str, words)]
    done = FORK_SERVER.run(typed, timeout) or subprocess.run(
        [*COMMAND, *typed], capture_output=True, text=True, timeout=timeout, check=False
    )
    said = f"{words} exited with {done.returncode}:\n{done.stdout}{done.stderr}"
    assert code is None or done.returncode == code, said
    return done


def typed(*words: object) -> str:
    """What a verb prints that is run in this process, for set-ups: it costs a tenth of a new one."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert _run([*map(str, words)]) == 0
    return said.getvalue().strip()


def wait_until(condition: object, what: str, patience_s: float = PATIENCE_S) -> None:
    """Wait for a state, not for a while."""
    assert callable(condition)
    looked = time.monotonic()
    while not condition():
        now = time.monotonic()
        patience_s -= min(now - looked, LONGEST_LOOK_S)
        looked = now
        assert patience_s > 0, f"did not happen: {what}"
        time.sleep(0.01)


@dataclass
class Node:
    """One daemon: its configuration file, its state directory and, while it runs, its process."""

    config: Path
    state: Path
    log: Path
    process: subprocess.Popen[bytes] | Process | None = None
    environment: dict[str, str] = field(default_factory=dict)
    prefix: list[str] = field(default_factory=list)
    """What stands before the command, such as setpriv."""

    def start(self) -> None:
        """Start it and wait until it answers."""
        words = ["run", "--config", str(self.config)]
        with self.log.open("ab") as log:
            is_plain = not self.prefix and not self.environment
            self.process = (is_plain and FORK_SERVER.start(words, log.fileno(), log.fileno())) or subprocess.Popen(
                [*self.prefix, *COMMAND, *words], stdout=log, stderr=log, env=os.environ | self.environment
            )
        wait_until(self.answers, f"daemon answers; its log:\n{self.log.read_text()}")

    def answers(self) -> bool:
        """Whether the daemon answers at its control socket. Fails when it has exited."""
        assert self.process is not None
        assert self.process.poll() is None, f"daemon exited with {self.process.returncode}:\n{self.log.read_text()}"
        try:
            self.status()
        except LinkError:
            return False
        return True

    def status(self) -> NodeStatus:
        """What it says of itself."""
        return Client(self.state).status()

    def hang_up(self) -> None:
        """Have it read its configuration again."""
        assert self.process is not None
        self.process.send_signal(signal.SIGHUP)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """It does nothing meanwhile, whatever it was about to do, and goes on after that."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        try:
            wait_until(self._is_stopped, "the daemon stands still")
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def _is_stopped(self) -> bool:
        """Each of its threads: one that is amid a call of the kernel goes on until that returns."""
        assert self.process is not None
        threads = list(Path(f"/proc/{self.process.pid}/task").iterdir())
        return all((one / "stat").read_bytes().rpartition(b")")[2].split()[0] == b"T" for one in threads)

    def stop(self) -> int:
        """Ask it to end; its exit code."""
        return self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it without warning."""
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> int:
        if self.process is None:
            return 0
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)
        code = self.process.wait(PATIENCE_S)
        self.process = None
        return code


@dataclass
class Pair:
    """A primary that replicates `root` as dataset "www" to a replica."""

    directory: Path
    root: Path
    primary: Node
    replica: Node
    store: Path
    port: int

    def sync(self, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        """One pass, waited for."""
        return replicad("sync", "www", "--wait", "--config", self.primary.config, code=code)

    def restore(self, target: Path, *words: object, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        """Restore from the primary."""
        return replicad("restore", "www", target, "--config", self.primary.config, *words, code=code)

    def restore_from_store(
        self, target: Path, *words: object, code: int | None = 0
    ) -> subprocess.CompletedProcess[str]:
        """Restore on the replica without its daemon."""
        return replicad("restore", "--store", self.store, "www", target, *words, code=code)

    @property
    def line(self) -> DatasetStatus:
        """The dataset's status."""
        return self.primary.status().datasets[0]

    def start(self) -> None:
        """Start both."""
        self.replica.start()
        self.primary.start()

    def stop(self) -> None:
        """Stop both, by whatever it takes."""
        for node in (self.primary, self.replica):
            node.kill()


def make_pair(
    directory: Path,
    root: Path,
    *,
    replica_port: int = 0,
    replica_address: str = "",
    dataset_options: str = "",
    node_options: str = "",
) -> Pair:
    """Set a pair up as the README tells, without starting it. `replica_address` is what the primary dials instead of
    the replica's own address (a relay); `dataset_options` are lines of TOML for the dataset."""
    port = replica_port or free_port()
    replica, primary = directory / "replica", directory / "primary"
    for path in (replica, primary):
        path.mkdir(parents=True)
    store = replica / "store"
    line = typed(
        "init", "replica", "--config", replica / "R.toml", "--name", "fra1", "--listen", f"127.0.0.1:{port}",
        "--store", store, "--state", replica / "state", "--http", "127.0.0.1:0",
    )  # fmt: skip
    if replica_address:
        line = line.replace(f"127.0.0.1:{port}", replica_address)
    answer = typed(
        "init", "primary", "--config", primary / "P.toml", "--name", "ams1", "--dataset", f"www={root}",
        "--replica", line, "--state", primary / "state", "--http", "127.0.0.1:0",
    )  # fmt: skip
    typed("authorize", "--config", replica / "R.toml", answer)
    if dataset_options:
        text = (primary / "P.toml").read_text()
        head, _, tail = text.partition("[[dataset]]\n")
        (primary / "P.toml").write_text(f"{head}[[dataset]]\n{dataset_options}\n{tail}")
    if node_options:
        for file in (primary / "P.toml", replica / "R.toml"):
            head, _, tail = file.read_text().partition("[node]\n")
            file.write_text(f"{head}[node]\n{node_options}\n{tail}")
    return Pair(
        directory,
        root,
        Node(primary / "P.toml", primary / "state", primary / "log"),
        Node(replica / "R.toml", replica / "state", replica / "log"),
        store,
        port,
    )


@contextlib.contextmanager
def running(pair: Pair) -> Iterator[Pair]:
    """The pair, running."""
    try:
        pair.start()
        yield pair
    finally:
        pair.stop()


def assert_same_tree(left: Path, right: Path) -> None:
    """rsync, an independent judge, finds no difference in content or metadata, in either direction."""
    done = subprocess.run(
        ["rsync", "-aHAXn", "--delete", "--checksum", "--itemize-changes", f"{left}/", f"{right}/"],
        capture_output=True,
        text=True,
        errors="backslashreplace",
        check=True,
    )
    assert done.stdout == "", f"{left} and {right} differ:\n{done.stdout[:4000]}"
