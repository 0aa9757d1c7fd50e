"""What is forked from the server is, to a test, what `python -m replicad` is."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from kit_fork import Process
from kit_pair import COMMAND, FORK_SERVER, make_pair, wait_until


def run(*words: str, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
    done = FORK_SERVER.run(words, timeout)
    assert done is not None
    return done


@pytest.mark.parametrize(
    "words",
    [
        ("--version",),
        ("status", "--help"),
        ("no-such-verb",),
        ("check-config", "--config", "none.toml"),
        ("report", "--config", "none.toml"),
    ],
)
def test_it_says_and_returns_the_same(words: tuple[str, ...]) -> None:
    """Exit code, standard output and standard error are those of a process that was started the ordinary way."""
    forked = run(*words)
    started = subprocess.run([*COMMAND, *words], capture_output=True, text=True, check=False)
    assert (forked.returncode, forked.stdout, forked.stderr) == (started.returncode, started.stdout, started.stderr)


def test_it_runs_where_the_test_is_and_with_its_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative paths and variables that were set meanwhile count; those of an interpreter's start cannot, so that such
    a process is not forked."""
    (tmp_path / "odd.toml").write_text("nonsense = 1\n")
    monkeypatch.chdir(tmp_path)
    assert "odd.toml" in run("check-config", "--config", "odd.toml").stderr
    wide = run("sync", "--help").stdout
    monkeypatch.setenv("COLUMNS", "50")
    assert max(map(len, run("sync", "--help").stdout.splitlines())) < max(map(len, wide.splitlines()))
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    assert FORK_SERVER.run(["--version"], 60) is None


def test_it_is_a_child_that_can_be_killed(tmp_path: Path) -> None:
    """A daemon is a child of this process, has none of its descriptors, and ends as it is told to."""
    (tmp_path / "www").mkdir()
    pair = make_pair(tmp_path / "pair", tmp_path / "www")
    mine = {os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is_socket(fd)}
    for number in (signal.SIGKILL, signal.SIGTERM):
        pair.replica.start()
        process = pair.replica.process
        assert isinstance(process, Process)
        fields = Path(f"/proc/{process.pid}/stat").read_bytes().rpartition(b")")[2].split()
        assert int(fields[1]) == os.getpid()
        theirs = {os.readlink(path) for path in Path(f"/proc/{process.pid}/fd").iterdir()}
        assert not mine & theirs
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.01)
        process.send_signal(number)
        assert process.wait(60) == (-number if number is signal.SIGKILL else 0)
        assert process.poll() == process.returncode
        process.kill()  # nobody is hit who has its number now
    wait_until(lambda: not Path(f"/proc/{process.pid}").exists(), "it is gone")


def _is_socket(fd: str) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{fd}").startswith("socket:")
    except OSError:
        return False


def test_a_process_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    """Nothing of it is left behind."""
    (tmp_path / "www").mkdir()
    config = make_pair(tmp_path / "pair", tmp_path / "www").replica.config
    with pytest.raises(subprocess.TimeoutExpired):
        run("run", "--config", str(config), timeout=0.5)
    assert run("status", "--config", str(config)).returncode == 3
