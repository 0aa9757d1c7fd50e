"""Stage: where the demo plays, and how it types commands: two nodes on this machine, everything below one directory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from replicad.cli import output
from replicad.model.errors import ReplicadError


@dataclass(slots=True)
class Stage:
    """Both nodes of the demo."""

    scene: Path
    tree: Path
    """The dataset; in a file system in memory where there is one, so that rot can be shown in it (demo_rot.py)."""
    daemons: list[subprocess.Popen[bytes]]
    keep: bool

    @property
    def primary(self) -> Path:
        """Configuration of ams1, which has the data."""
        return self.scene / "ams1.toml"

    @property
    def replica(self) -> Path:
        """Configuration of fra1, which keeps the copy."""
        return self.scene / "fra1.toml"

    @property
    def store(self) -> Path:
        """Where fra1 keeps it."""
        return self.scene / "fra1-store"

    def state(self, name: str) -> Path:
        """A node's state directory."""
        return self.scene / f"{name}-state"


def run(*words: str | Path, quiet: bool = False, allowed: Collection[int] = (0,)) -> str:
    """Show a command, run it, return its standard output (`quiet`) or let it print. Raises ReplicadError when its exit
    code is none of `allowed`."""
    shown = " ".join(f"'{word}'" if " " in str(word) else str(word) for word in words)
    output.line(output.mark(f"   $ replicad {shown}", "dim"))
    return _ended(words, quiet=quiet, allowed=allowed)


def ask(*words: str | Path, allowed: Collection[int] = (0,)) -> str:
    """The same without showing it, for what is asked again and again."""
    return _ended(words, quiet=True, allowed=allowed)


def title(number: int, text: str) -> None:
    """The head of an act."""
    output.line()
    output.line(output.mark(f"{number}. {text}", "bold"))


def this_program() -> list[str]:
    """What stands for `replicad`."""
    return [sys.executable, "-m", "replicad"]


def _ended(words: tuple[str | Path, ...], *, quiet: bool, allowed: Collection[int]) -> str:
    command = [*this_program(), *map(str, words)]
    done = subprocess.run(command, check=False, text=True, capture_output=quiet)
    if done.returncode not in allowed:
        raise ReplicadError(f"replicad {words[0]} failed with exit code {done.returncode}: {done.stderr or ''}")
    return (done.stdout or "").strip()
