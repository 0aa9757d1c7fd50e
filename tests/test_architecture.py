"""The house as drawn: imports go one way, and each outside thing has one owner."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "replicad"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

OWNERS = {
    "asyncssh": ["link/ssh.py"],
    "apsw": ["db/database.py"],
    "prometheus_client": ["http/metrics.py"],
    "xxhash": ["model/block.py"],
    "blake3": ["model/block.py"],
    "watchfiles": ["source/watch.py"],
    "structlog": ["system/logs.py"],
    "sdnotify": ["system/notify.py"],
    "zstandard": ["system/compress.py"],
    "tomlkit": ["config/edit.py"],
    "jinja2": ["cli/report_page.py"],
    "markupsafe": ["cli/report_page.py"],
    "matplotlib": ["cli/report_pictures.py"],
}
"""Each library and the one module that imports it."""
MAX_LINES = 600
"""A module is read in one sitting."""


def modules() -> Iterator[tuple[str, str]]:
    """Path below replicad/ and text of each module."""
    for path in sorted(PACKAGE.rglob("*.py")):
        yield str(path.relative_to(PACKAGE)), path.read_text()


def tool(name: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a development tool of this environment in the project's root."""
    command = [str(Path(sys.executable).with_name(name)), *words]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False, env=os.environ | environment
    )


def imports_of(text: str) -> set[str]:
    """Top-level packages that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def test_the_import_contracts_are_kept() -> None:
    """import-linter finds every contract of pyproject.toml kept."""
    done = tool("lint-imports", "--no-logo", "--no-cache")
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_library_has_one_owner() -> None:
    """Of the libraries with a single owner, each is imported by that module and by no other."""
    importers: dict[str, list[str]] = {library: [] for library in OWNERS}
    for name, text in modules():
        for library in imports_of(text) & OWNERS.keys():
            importers[library].append(name)
    assert importers == OWNERS


def test_the_contracts_name_the_same_owners() -> None:
    """import-linter's contracts and this table agree: neither can be loosened alone."""
    allowed = {}
    for contract in PYPROJECT["tool"]["importlinter"]["contracts"]:
        for edge in contract.get("ignore_imports", []):
            module, library = edge.split(" -> ")
            allowed.setdefault(library, []).append(module.removeprefix("replicad.").replace(".", "/") + ".py")
    assert {library: allowed[library] for library in OWNERS} == OWNERS


@pytest.mark.parametrize("call", sorted(PYPROJECT["tool"]["ruff"]["lint"]["flake8-tidy-imports"]["banned-api"]))
def test_a_banned_name_is_caught(call: str, tmp_path: Path) -> None:
    """ruff refuses each banned name in a module that does not own it."""
    module, name = call.rsplit(".", 1)
    text = f"from {module} import {name}\n\nprobe = {name}\n"
    command = [str(Path(sys.executable).with_name("ruff")), "check", "--no-cache", "--select=TID251", "-"]
    command.append("--stdin-filename=replicad/work/probe.py")
    done = subprocess.run(command, cwd=ROOT, input=text, capture_output=True, text=True, timeout=60, check=False)
    assert f"`{call}` is banned" in done.stdout


def test_every_dependency_is_used_and_says_what_for() -> None:
    """Each run-time dependency, extras included, stands with its purpose, is imported somewhere, and nothing undeclared
    is."""
    text = (ROOT / "pyproject.toml").read_text()
    section = "".join(text.partition(f"\n{name} = [\n")[2].partition("]\n")[0] for name in ("dependencies", "report"))
    for line in section.splitlines():
        assert re.fullmatch(r'    "[a-z0-9-]+[^"]*",\s+# \S.*', line), line
    wanted = PYPROJECT["project"]["dependencies"] + PYPROJECT["project"]["optional-dependencies"]["report"]
    declared = {re.split(r"[<>=]", line)[0].replace("-", "_") for line in wanted}
    used = set().union(*(imports_of(text) for _name, text in modules()))
    assert used - set(sys.stdlib_module_names) - {"replicad"} == declared


def test_modules_start_with_what_they_are() -> None:
    """Every module has a docstring of at most 12 lines, and none is longer than one can read."""
    for name, text in modules():
        said = ast.get_docstring(ast.parse(text), clean=False)
        assert said, f"{name} has no docstring"
        assert len(said.splitlines()) <= 12, f"{name}: docstring of {len(said.splitlines())} lines"
        assert len(text.splitlines()) <= MAX_LINES, f"{name} has {len(text.splitlines())} lines"


def test_no_name_that_says_nothing() -> None:
    """No module or class is a manager, handler, helper, util or common thing; no host is a master or a slave."""
    empty = re.compile(r"manager|handlers?$|helper|utils?$|common|misc|master|slave", re.IGNORECASE)
    for name, text in modules():
        classes = [node.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ClassDef)]
        for word in [*name.removesuffix(".py").split("/"), *classes]:
            assert not empty.search(word), f"{name}: {word}"


def test_every_ignored_rule_has_a_reason() -> None:
    """Behind each rule that ruff is told to ignore stands why."""
    section = (ROOT / "pyproject.toml").read_text().partition("ignore = [\n")[2].partition("]\n")[0]
    assert section
    for line in section.splitlines():
        assert re.fullmatch(r'    "[A-Z]+\d+", # .{20,}', line), line
