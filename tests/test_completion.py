"""Completion: what a shell offers for a line that is being typed, through typer's own scripts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(sys.executable).with_name("replicad")
SHELLS = {"SHELL": "/bin/bash", "PATH": f"{PROGRAM.parent}:{os.environ['PATH']}"}


def run(*words: str, **environment: str) -> str:
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, env={**os.environ, **SHELLS, **environment}
    )
    assert done.returncode == 0 and not done.stderr, done
    return done.stdout


def in_bash(line: str) -> list[str]:
    """What bash would offer at the end of `line`, by the function that the shown script defines."""
    words = line.split(" ")
    script = f"""
        source <(replicad --show-completion)
        COMP_WORDS=({" ".join(word or "''" for word in words)}) COMP_CWORD={len(words) - 1}
        $(complete -p replicad | sed 's/.*-F \\([^ ]*\\).*/\\1/') replicad
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    return run("bash", "--norc", "-c", script).split()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("replicad sc", ["scrub"]),
        ("replicad rebuild --l", ["--ledger"]),
        ("replicad drill ", ["run", "history"]),
        ("replicad --config /x reb", ["rebuild"]),
    ],
)
def test_bash_completes_verbs_and_their_own_verbs_and_options(line: str, offered: list[str]) -> None:
    """The real options of a verb are offered, though its module is loaded only when it is typed."""
    assert in_bash(line) == offered


def test_zsh_and_fish_are_answered_in_their_own_protocol() -> None:
    """Each with the verb's line of help."""
    typed = {"_TYPER_COMPLETE_ARGS": "replicad rebuild --l", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    assert '"--ledger":"On a primary' in run(str(PROGRAM), _REPLICAD_COMPLETE="complete_zsh", **typed)
    assert run(str(PROGRAM), _REPLICAD_COMPLETE="complete_fish", **typed).startswith("--ledger\tOn a primary")


def test_installing_writes_what_bash_reads_at_its_start(tmp_path: Path) -> None:
    """A new interactive shell knows the completion."""
    run("bash", "--norc", "-c", "replicad --install-completion; :", HOME=str(tmp_path))
    assert "replicad" in (tmp_path / ".bashrc").read_text()
    assert "-F _replicad_completion replicad" in run(
        "bash", "--norc", "-c", f"source {tmp_path}/.bashrc; complete -p replicad", HOME=str(tmp_path)
    )
