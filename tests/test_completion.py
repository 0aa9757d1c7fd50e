"""Completion: what a shell offers for a line that is being typed, through typer's own scripts."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import get_type_hints

import pytest
import typer

from replicad.cli import app

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


PRIMARY = '[node]\nname = "a"\n[[dataset]]\nname = "www"\n[[dataset]]\nname = "wiki"\n[[dataset]]\nname = "mail"\n'
REPLICA = '[[client]]\nname = "ams1"\ndatasets = ["www", "wiki"]\n[[client]]\nname = "fra1"\ndatasets = []\n'


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("replicad --config {} sync ", ["www", "wiki", "mail"]),
        ("replicad sync --config {} w", ["www", "wiki"]),
        ("replicad scrub start --config={} m", ["mail"]),
        ("replicad --config {} gate www mail wi", ["wiki"]),
        ("replicad --config {} sync www ", []),
        ("replicad --config {} restore ma", ["mail"]),
        ("replicad --config {} divergence list a", ["ams1/www", "ams1/wiki"]),
        ("replicad --config {} retain run ams1/wi", ["ams1/wiki"]),
        ("replicad --config {} scrub status ", ["www", "wiki", "mail"]),
        ("replicad --config {} viewer add ada ada.pub --dataset a", ["ams1/www", "ams1/wiki"]),
        ("replicad --config {} sync a", []),
    ],
)
def test_the_datasets_of_the_configuration_are_offered(line: str, offered: list[str], tmp_path: Path) -> None:
    """Of the one that the line names: this node's own, and its clients' where a verb may be typed on a replica."""
    config = tmp_path / "config.toml"
    config.write_text(PRIMARY + REPLICA)
    assert in_bash(line.format(config)) == offered


@pytest.mark.parametrize(
    "text",
    [None, b"\xff", b"node = [", b"dataset = 1", b"dataset = [1]", b"[[dataset]]\nname = 1\n[[client]]\nname = 1"],
)
def test_where_the_configuration_says_nothing_nothing_is_offered(text: bytes | None, tmp_path: Path) -> None:
    """Neither a name nor a complaint, whatever is there instead of a configuration."""
    config = tmp_path / "config.toml"
    if text is not None:
        config.write_bytes(text)
    assert in_bash(f"replicad --config {config} retain run ") == []


def test_every_verb_that_takes_a_dataset_offers_it() -> None:
    """None was forgotten, nor will a new one be."""
    silent = []
    for verb in app.VERBS:
        found = getattr(import_module(verb.module), verb.attribute)
        commands = [c.callback for c in found.registered_commands] if isinstance(found, typer.Typer) else [found]
        for command in commands:
            for name, hint in get_type_hints(command, include_extras=True).items():
                said = [info for info in getattr(hint, "__metadata__", ()) if "DATASET" in (info.metavar or "")]
                silent += [f"{verb.name}: {name}" for info in said if not info.autocompletion]
    assert not silent


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
