"""Hooks: run without a shell, bounded in time and output, and gone with all their children when they fail."""

from __future__ import annotations

import asyncio
import os
import pwd
import signal
import sys
import time
from pathlib import Path

import pytest

from kit_tree import NOBODY, is_root
from replicad.model.errors import SourceError
from replicad.source.hook import OUTPUT_TAIL_BYTES, run_hook

PYTHON = sys.executable
WAIT = "import signal; signal.pause()"


async def run(*argv: str, timeout_s: float = 20.0, **environment: str) -> None:
    await run_hook(argv, timeout_s=timeout_s, environment=environment, grace_s=0.2)


def is_alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def until_gone(pid: int) -> None:
    deadline = time.monotonic() + 10
    while is_alive(pid):
        assert time.monotonic() < deadline, "still alive"
        await asyncio.sleep(0.01)


async def text_of(path: Path) -> str:
    """What a hook writes into `path`, once it is there."""
    deadline = time.monotonic() + 10
    while not (path.exists() and path.read_text().endswith("\n")):
        assert time.monotonic() < deadline, "nothing was written"
        await asyncio.sleep(0.01)
    return path.read_text()


async def test_a_hook_gets_its_arguments_and_environment_as_they_are(tmp_path: Path) -> None:
    """No shell looks at the arguments, and the additions stand beside the process's own environment."""
    program = "import os, sys; open(sys.argv[1], 'w').write(repr((sys.argv[2:], os.environ['X'], os.environ['PATH'])))"
    await run(PYTHON, "-c", program, str(tmp_path / "out"), "$HOME; *", "a b", X="y z")
    assert (tmp_path / "out").read_text() == repr((["$HOME; *", "a b"], "y z", os.environ["PATH"]))


async def test_a_failing_hook_ends_in_an_error_with_code_and_output() -> None:
    """The exit code and the last words, of both output streams, are in the error."""
    program = "import sys; print('to stdout', flush=True); print('to stderr', file=sys.stderr); sys.exit(7)"
    with pytest.raises(SourceError) as raised:
        await run(PYTHON, "-c", program)
    text = str(raised.value)
    assert "exit code 7" in text and "to stdout" in text and "to stderr" in text and PYTHON in text


async def test_a_hook_killed_by_a_signal_is_a_failure() -> None:
    """Death by a signal is named as that."""
    with pytest.raises(SourceError, match=r"killed by signal 9.*printed nothing"):
        await run(PYTHON, "-c", "import os; os.kill(os.getpid(), 9)")


async def test_output_is_bounded_to_its_end() -> None:
    """Megabytes of output neither block the hook nor are kept."""
    program = "import sys; sys.stdout.write('x' * 3_000_000 + 'the end'); sys.stdout.flush(); sys.exit(1)"
    with pytest.raises(SourceError, match="the end") as raised:
        await run(PYTHON, "-c", program)
    assert len(str(raised.value)) < OUTPUT_TAIL_BYTES + 200


async def test_output_that_is_no_utf8_is_shown() -> None:
    """Odd bytes do not hide the failure."""
    with pytest.raises(SourceError, match="exit code 1"):
        await run(PYTHON, "-c", r"import os, sys; os.write(1, b'\xff\xfe'); sys.exit(1)")


@pytest.mark.parametrize(
    ("program", "reason"), [("/no/such/program", "No such file"), ("/etc/passwd", "denied"), ("a\0b", "null")]
)
async def test_a_hook_that_cannot_be_started_is_an_error(program: str, reason: str) -> None:
    """Missing, not executable, or no name at all."""
    with pytest.raises(SourceError, match=reason):
        await run(program)


async def test_a_hook_that_takes_too_long_is_ended_with_all_its_children(tmp_path: Path) -> None:
    """On timeout the whole process group dies, also those of it that ignore SIGTERM."""
    stubborn = f"import os, signal; signal.signal(15, signal.SIG_IGN); print(os.getpid(), flush=True); {WAIT}"
    program = (
        "import subprocess, sys, os, signal;"
        f"subprocess.Popen([sys.executable, '-c', {stubborn!r}], stdout=open(sys.argv[1], 'w')); {WAIT}"
    )
    hook = asyncio.create_task(run(PYTHON, "-c", program, str(tmp_path / "pid"), timeout_s=2.0))
    child = int(await text_of(tmp_path / "pid"))
    assert is_alive(child)
    with pytest.raises(SourceError, match="longer than 2 s"):
        await hook
    await until_gone(child)


async def test_a_hook_may_clean_up_on_timeout(tmp_path: Path) -> None:
    """SIGTERM comes first, so that a hook can undo what it began."""
    program = (
        "import signal, sys;"
        "signal.signal(15, lambda *of: (open(sys.argv[1], 'w').write('cleaned\\n'), sys.exit(0)));"
        f"open(sys.argv[2], 'w').write('ready\\n'); {WAIT}"
    )
    hook = asyncio.create_task(
        run_hook([PYTHON, "-c", program, str(tmp_path / "out"), str(tmp_path / "ready")],
                 timeout_s=1.5, environment={}, grace_s=10)
    )  # fmt: skip
    await text_of(tmp_path / "ready")
    with pytest.raises(SourceError, match="longer than"):
        await hook
    assert (tmp_path / "out").read_text() == "cleaned\n"


async def test_cancelling_ends_the_hook(tmp_path: Path) -> None:
    """A daemon that shuts down leaves no hook behind."""
    program = f"import os, sys; open(sys.argv[1], 'w').write(str(os.getpid()) + chr(10)); {WAIT}"
    hook = asyncio.create_task(run(PYTHON, "-c", program, str(tmp_path / "pid")))
    pid = int(await text_of(tmp_path / "pid"))
    hook.cancel()
    with pytest.raises(asyncio.CancelledError):
        await hook
    await until_gone(pid)


async def test_a_process_left_in_the_background_does_not_hold_the_pass_up(tmp_path: Path) -> None:
    """A hook that succeeds is done when it ends, though a process of it keeps its output open."""
    program = (
        "import subprocess, sys;"
        f"child = subprocess.Popen([sys.executable, '-c', {WAIT!r}]);"
        "open(sys.argv[1], 'w').write(str(child.pid) + chr(10))"
    )
    await run(PYTHON, "-c", program, str(tmp_path / "pid"))
    child = int(await text_of(tmp_path / "pid"))
    assert is_alive(child)
    os.kill(child, signal.SIGKILL)
    await until_gone(child)


@pytest.mark.skipif(not is_root(), reason="only root can become another user")
@pytest.mark.parametrize("uid", [NOBODY, 54321])
async def test_root_runs_a_hook_with_the_rights_of_the_directory_s_owner(tmp_path: Path, uid: int) -> None:
    """No right of root is left, whether the owner has a name or only a number."""
    os.chown(tmp_path, uid, uid)
    status = "grep -E '^(Uid|Gid|Groups|CapPrm|CapEff):' /proc/self/status"
    with pytest.raises(SourceError) as raised:
        await run_hook(
            ["sh", "-c", f"{status}; echo $USER $HOME; exit 1"], timeout_s=20, environment={}, owner_of=tmp_path
        )
    none, four = "0" * 16, f"{uid} {uid} {uid} {uid}"
    user, home = pwd.getpwuid(uid)[0:6:5] if uid == NOBODY else (str(uid), "/")
    rights = f"Uid: {four} Gid: {four} Groups: {uid} CapPrm: {none} CapEff: {none} {user} {home}"
    assert rights in " ".join(str(raised.value).split())


async def test_hooks_leave_no_descriptors_open() -> None:
    """Success, failure and a missing program all close what they opened."""
    await run(PYTHON, "-c", "")
    before = len(os.listdir("/proc/self/fd"))
    await run(PYTHON, "-c", "")
    for program in (PYTHON, "/no/such/program"):
        with pytest.raises(SourceError):
            await run(program, "-c", "raise SystemExit(1)")
    assert len(os.listdir("/proc/self/fd")) <= before
