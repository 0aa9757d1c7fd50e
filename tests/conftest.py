"""What all tests share."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kit_pair import FORK_SERVER
from replicad.cli.app import main
from replicad.db.database import Database

FORK_SERVER.is_enabled = True

MEMORY = Path("/dev/shm")

LONGEST = (
    "test_rot_real", "test_campaign", "test_faults_books", "test_hooks_real", "test_faults_crash", "test_scrub",
    "test_real_input", "test_faults_disk", "test_retain", "test_drill_real", "test_gate_daemons", "test_compact",
    "test_readme", "test_worst_day", "test_demo", "test_view_real", "test_scrub_daemon",
)  # fmt: skip
"""Modules that take a minute or several, longest first: begun last, one would keep a single process busy at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest."""
    ranks = {name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path.stem, len(LONGEST)))


@pytest.fixture(scope="session", autouse=True)
def way_in(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Let everybody pass through pytest's own directories, so that a test may give up root's rights in its own."""
    base = tmp_path_factory.getbasetemp()
    for directory in (base, *base.parents):
        if directory.name.startswith(("pytest-", "popen-")) and directory.stat().st_uid == os.geteuid():
            directory.chmod(directory.stat().st_mode | 0o011)
    Database(base / "first.db", ["CREATE TABLE t(a)"]).close()  # loads what a test without rights could not load


@pytest.fixture
def memory_path() -> Iterator[Path]:
    """A directory in memory, where there is such a place: for simulations that commit ten thousand times."""
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as directory:
        yield Path(directory)


@pytest.fixture
def typed(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Type a command line: its exit code, stdout and stderr."""

    def run(*words: object) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        return code, out, err

    return run
