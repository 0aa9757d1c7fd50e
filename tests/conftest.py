"""What all tests share."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from kit_pair import FORK_SERVER
from replicad.cli.app import main
from replicad.db.database import Database

FORK_SERVER.is_enabled = True


@pytest.fixture(scope="session", autouse=True)
def way_in(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Let everybody pass through pytest's own directories, so that a test may give up root's rights in its own."""
    base = tmp_path_factory.getbasetemp()
    for directory in (base, *base.parents):
        if directory.name.startswith(("pytest-", "popen-")) and directory.stat().st_uid == os.geteuid():
            directory.chmod(directory.stat().st_mode | 0o011)
    Database(base / "first.db", ["CREATE TABLE t(a)"]).close()  # loads what a test without rights could not load


@pytest.fixture
def typed(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Type a command line: its exit code, stdout and stderr."""

    def run(*words: object) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        return code, out, err

    return run
