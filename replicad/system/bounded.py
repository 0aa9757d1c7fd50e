"""Bounded: do something doubtful in a process of its own, within a time, an amount of output and somebody's rights.

For a process that does nothing else (it forks, and reaps whatever it is given): work/judge.py. What the doubtful
process starts becomes this one's child when its own parent dies (PR_SET_CHILD_SUBREAPER), so that nothing it started
outlives it, however it was detached; and when this process's own parent dies, it ends everything too.

**Owns** the fork, the rights given up in it, and the end of all that comes of it. **Never** keeps more than the end of
the output.
"""

from __future__ import annotations

import ctypes
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

TAIL_BYTES = 4096
"""How much of the end of the output is kept for a person."""
FLOOD_BYTES = 64 * 1024 * 1024
"""More output than this is no report of anything; whoever writes it is ended."""
MAX_RESULT_BYTES = 64 * 1024
KILL_S = 5.0
"""How long this goes on killing what forks faster than it dies."""
PROC_SCAN = "/proc"
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 36, 38
_CAP_VERSION_3 = 0x20080522
_READ_BYTES = 64 * 1024
NOT_BEGUN = 127
"""Exit code when the work could not even be begun."""
_BROKEN = 70
"""Exit code of a forked process whose work raised what it should not."""

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class User:
    """Whose rights the doubtful process gets."""

    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Ended:
    """How it ended."""

    code: int
    """Exit code; negative: the signal that killed it."""
    result: bytes
    """What the work returned; empty when it did not come to its end."""
    output: str
    """The end of what it printed."""
    cut: str = ""
    """Why it was ended before its time, in words."""


def attend(parent: int) -> None:
    """Make this process the one that everything it starts falls to, and end all of it when `parent` is gone."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    signal.signal(signal.SIGTERM, _on_term)
    if os.getppid() != parent:
        raise SystemExit(_BROKEN)  # it died before this process asked to be told


def run_bounded(work: Callable[[], bytes], *, directory: Path, user: User | None, timeout_s: float) -> Ended:
    """Do `work` in a forked process, in `directory`, with no rights beyond `user`'s (None: this process's own user,
    without its capabilities). What it returns comes back; everything it started is dead when this returns."""
    output_in, output_out = os.pipe()
    result_in, result_out = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(output_in)
        os.close(result_in)
        _become(work, directory, user, output_out, result_out)
    os.close(output_out)
    os.close(result_out)
    try:
        tail, result, cut = _listen(pid, output_in, result_in, time.monotonic() + timeout_s, timeout_s)
        code = _end_all(pid)
    finally:
        os.close(output_in)
        os.close(result_in)
    return Ended(code, result, tail.decode("utf-8", "replace").strip(), cut)


# the doubtful process


def _become(work: Callable[[], bytes], directory: Path, user: User | None, output: int, result: int) -> None:
    """Never returns."""
    code = NOT_BEGUN
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.setsid()
        null = os.open(os.devnull, os.O_RDONLY)
        for number, fd in ((0, null), (1, output), (2, output)):
            os.dup2(fd, number)
        os.chdir(directory)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        _give_up_rights(user)
        if not os.access(directory, os.X_OK):
            raise PermissionError(f"user {os.getuid()} may not enter {directory}: chmod o+x the directories above it")
        os.environ.clear()
        os.environ |= {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "LC_ALL": "C.UTF-8",
            "HOME": str(directory),
            "TMPDIR": str(directory),
        }
        code = _BROKEN
        answer = work()
        os.write(result, answer[:MAX_RESULT_BYTES])
        code = 0
    except BaseException as error:
        with suppress(OSError):
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(code)


def _give_up_rights(user: User | None) -> None:
    if user is not None:
        os.setgroups([])
        os.setresgid(user.gid, user.gid, user.gid)
        os.setresuid(user.uid, user.uid, user.uid)
    header = (ctypes.c_uint32 * 2)(_CAP_VERSION_3, 0)
    nothing = (ctypes.c_uint32 * 6)()
    if _libc.capset(header, nothing):  # of effective, permitted and inheritable; ambient ones go with them
        raise OSError(ctypes.get_errno(), "capabilities cannot be given up")
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # last: a change of user clears it


# the attending process


def _listen(pid: int, output: int, result: int, end_s: float, timeout_s: float) -> tuple[bytes, bytes, str]:
    """Take in what it says until the first process has ended: the output's tail, the result, why it is to be cut."""
    tail, answer, said = b"", b"", 0
    ending = os.pidfd_open(pid)
    try:
        waiting = {output, result, ending}
        while ending in waiting:
            left_s = end_s - time.monotonic()
            if left_s <= 0:
                return tail, b"", f"took longer than {timeout_s:g} s and was ended"
            ready = select.select(list(waiting), [], [], left_s)[0]
            for fd in ready:
                if fd == ending and len(ready) > 1:
                    continue  # first what it has said
                data = b"" if fd == ending else os.read(fd, _READ_BYTES)
                if not data:
                    waiting.discard(fd)
                elif fd == output:
                    tail, said = (tail + data)[-TAIL_BYTES:], said + len(data)
                else:
                    answer = (answer + data)[:MAX_RESULT_BYTES]
            if said > FLOOD_BYTES:
                return tail, b"", f"printed more than {FLOOD_BYTES // 2**20} MiB and was ended"
        return tail, answer, ""
    finally:
        os.close(ending)


def _end_all(first: int) -> int:
    """Kill and reap everything that came of it; how the first process ended."""
    code, end_s = -signal.SIGKILL, time.monotonic() + KILL_S
    while True:
        for pid in _children():
            with suppress(ProcessLookupError):
                if not (pid == first and _has_ended(first)):
                    os.kill(pid, signal.SIGKILL)
        try:
            pid, status = os.waitpid(-1, 0)
        except ChildProcessError:
            return code
        if pid == first:
            code = os.waitstatus_to_exitcode(status)
        if time.monotonic() > end_s:
            return code


def _has_ended(pid: int) -> bool:
    """Whether a child is a zombie; it stays one."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _children() -> list[int]:
    """Processes whose parent this one is."""
    mine, found = os.getpid(), []
    for name in os.listdir(PROC_SCAN):
        if name.isdigit():
            with suppress(OSError, IndexError, ValueError):
                stat = Path(PROC_SCAN, name, "stat").read_text()
                if int(stat.rpartition(")")[2].split()[1]) == mine:
                    found.append(int(name))
    return found


def _on_term(number: int, frame: object) -> None:
    """The daemon ends, or has ended."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _end_all(0)
    sys.stdout.flush()
    os._exit(_BROKEN)


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl failed")
