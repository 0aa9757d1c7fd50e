"""A server that has loaded the program once and forks a process of it whenever a test wants one.

Loading takes a daemon more CPU time than most tests do altogether. What is forked runs `python -m replicad` from its
first line on, as a child of the test's process and with nothing of that in it: the server is a process of its own, in
which no test has run. Tests of how the program is found, begun or supervised start it the ordinary way, and so do
benchmarks and the long campaign, which do not enable it.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import pkgutil
import random
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, NoReturn

from replicad.system.bounded import _PR_SET_CHILD_SUBREAPER, _prctl

SERVER_FD_NAME = "REPLICAD_TEST_FORK_SERVER"
REQUEST_BYTES = 200_000
_FROM_THE_START = ("PYTHON", "LD_", "LC_", "LANG", "MALLOC")
"""Variables that count when an interpreter starts, and not later."""


class Process:
    """A child that was forked for us; what tests use of subprocess.Popen."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._waiting = threading.Lock()

    def poll(self) -> int | None:
        """Its exit code (minus the signal that ended it), None while it runs."""
        with self._waiting:
            if self.returncode is None:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                if pid:
                    self.returncode = os.waitstatus_to_exitcode(status)
            return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, once it has ended. Raises subprocess.TimeoutExpired."""
        if self.poll() is None:
            pidfd = os.pidfd_open(self.pid)
            try:
                if not select.select([pidfd], [], [], timeout)[0]:
                    raise subprocess.TimeoutExpired(["replicad"], timeout or 0)
            finally:
                os.close(pidfd)
        code = self.poll()
        assert code is not None
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal; nothing happens when it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it without warning."""
        self.send_signal(signal.SIGKILL)


class ForkServer:
    """The server of one test process, started when it is first asked."""

    def __init__(self) -> None:
        self.is_enabled = False
        self._lock = threading.Lock()
        self._line: socket.socket | None = None
        self._environment: dict[str, str] = {}
        self._server: subprocess.Popen[bytes] | None = None

    def start(self, words: Sequence[str], stdout: int, stderr: int) -> Process | None:
        """Start `replicad words`; None where that has to be done the ordinary way."""
        if not self.is_enabled:
            return None
        with self._lock:
            if self._line is None:
                self._line = self._begin()
            if _from_the_start(os.environ) != _from_the_start(self._environment):
                return None
            request = json.dumps({"words": list(words), "environment": dict(os.environ), "cwd": os.getcwd()})
            with open(os.devnull, "rb") as stdin:
                _prctl(_PR_SET_CHILD_SUBREAPER, 1)  # what the server's child leaves behind becomes ours
                try:
                    socket.send_fds(self._line, [request.encode()], [stdin.fileno(), stdout, stderr])
                    answer = self._line.recv(100)
                finally:
                    _prctl(_PR_SET_CHILD_SUBREAPER, 0)
        assert answer, "the fork server has ended"
        return Process(int(answer))

    def run(self, words: Sequence[str], timeout: float) -> subprocess.CompletedProcess[str] | None:
        """Run `replicad words` to its end; None where that has to be done the ordinary way. Raises
        subprocess.TimeoutExpired when it takes longer than `timeout` seconds; it is then killed."""
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            process = self.start(words, out.fileno(), err.fileno())
            if process is None:
                return None
            try:
                code = process.wait(timeout)
            except BaseException:
                process.kill()
                process.wait()
                raise
            return subprocess.CompletedProcess(["replicad", *words], code, _text(out), _text(err))

    def _begin(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._environment = dict(os.environ)
        with theirs:
            self._server = subprocess.Popen(
                [sys.executable, __file__],
                env=self._environment | {SERVER_FD_NAME: str(theirs.fileno())},
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        return ours


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode().replace("\r\n", "\n")


def _from_the_start(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(_FROM_THE_START)}


# the server


def serve(line: socket.socket) -> None:
    """Fork a process for each request; returns in such a process, ready to run. Ends this one with the test's."""
    while True:
        request, fds, _, _ = socket.recv_fds(line, REQUEST_BYTES, 3)
        if not request:
            sys.exit()
        assert len(os.listdir("/proc/self/task")) == 1, "threads do not survive a fork"
        inner, outer = os.pipe()
        between = os.fork()
        if not between:
            pid = os.fork()
            if not pid:
                _become(json.loads(request), fds)
                return
            os.write(outer, str(pid).encode())
            os._exit(0)
        os.waitpid(between, 0)
        line.send(os.read(inner, 100))
        for fd in (inner, outer, *fds):
            os.close(fd)


def _become(request: dict[str, object], fds: Sequence[int]) -> None:
    """Make this process what an interpreter is at its start."""
    words, environment, cwd = request["words"], request["environment"], request["cwd"]
    assert isinstance(words, list) and isinstance(environment, dict) and isinstance(cwd, str)
    for number, fd in enumerate(fds):
        os.dup2(fd, number)
    os.closerange(3, 1024)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    assert isinstance(sys.stdout, io.TextIOWrapper)
    sys.stdout.reconfigure(line_buffering=os.isatty(1))  # the server's may have been a terminal
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # found once, by TMPDIR
    sys.argv[1:] = words
    random.seed()


def _load() -> None:
    """Load all that the program may need."""
    import replicad

    for module in pkgutil.walk_packages(replicad.__path__, "replicad."):
        importlib.import_module(module.name)


def main() -> NoReturn:
    """Serve; and, in what was forked, run the program."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests, whose end is the server's
    sys.path.remove(str(Path(__file__).parent))
    line = socket.socket(fileno=int(os.environ[SERVER_FD_NAME]))
    _load()
    serve(line)
    from replicad.__main__ import __file__ as file
    from replicad.__main__ import main as run

    sys.argv[0] = file
    run()
    raise AssertionError("the program returned")


if __name__ == "__main__":
    main()
