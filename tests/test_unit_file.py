"""systemd/replicad.service: accepted by systemd, tight, and each line of it explained."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from replicad.cli.app import VERBS

UNIT = Path(__file__).parent.parent / "systemd/replicad.service"
PROGRAM = "/opt/replicad/bin/replicad"
EXPOSURE = 25
"""Tenths: `systemd-analyze security` calls up to 3.0 "OK"; this guards what is reached."""


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The unit with the program where this environment has it: systemd looks whether it is executable."""
    program = Path(sys.executable).with_name("replicad")
    program = program if program.exists() else Path("/bin/true")
    unit = tmp_path / "replicad.service"
    unit.write_text(UNIT.read_text().replace(PROGRAM, str(program)))
    return unit


def directives() -> list[tuple[str, str, str]]:
    """The line above, the name and the value of each directive."""
    lines = UNIT.read_text().splitlines()
    found = []
    for above, line in zip(["", *lines], lines, strict=False):
        name, equals, value = line.partition("=")
        if equals and name.isalpha():
            found.append((above, name, value))
    return found


def test_systemd_accepts_the_unit_without_a_word(installed: Path) -> None:
    """`systemd-analyze verify` has nothing to say."""
    command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(installed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_unit_is_tight(installed: Path) -> None:
    """The exposure that `systemd-analyze security` computes does not grow unnoticed."""
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", f"--threshold={EXPOSURE}", str(installed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout[-500:]


def test_every_directive_has_its_reason() -> None:
    """Above each directive stands a comment (Description and WantedBy speak for themselves)."""
    unexplained = [name for above, name, _value in directives() if not above.startswith("# ")]
    assert unexplained == ["Description", "WantedBy"]


def test_no_directive_is_given_twice() -> None:
    """A second line of the same name would override or extend the first far from its reason."""
    names = [name for _above, name, _value in directives()]
    assert sorted(set(names)) == sorted(names)


def test_the_unit_runs_verbs_that_exist() -> None:
    """It checks the configuration first, runs the daemon, and reloads it with the signal that the daemon knows."""
    commands = {name: value for _above, name, value in directives() if name.startswith("Exec")}
    assert commands == {
        "ExecStartPre": f"{PROGRAM} check-config",
        "ExecStart": f"{PROGRAM} run",
        "ExecReload": "/bin/kill -HUP $MAINPID",
    }
    assert {"check-config", "run"} <= {verb.name for verb in VERBS}


def test_the_runbook_names_the_rights_that_a_repair_needs() -> None:
    """All that the drop-in for it adds to what the daemon has anyway, and nothing else."""
    (held,) = (value for _above, name, value in directives() if name == "AmbientCapabilities")
    added = set(re.findall(r"CAP_\w+", " ".join(re.findall(r"#\s+AmbientCapabilities=(.*)", UNIT.read_text()))))
    runbook = (UNIT.parent.parent / "docs/RUNBOOK.md").read_text()
    section = runbook.split("\n### Rights to repair a primary\n")[1].split("\n###")[0]
    assert set(re.findall(r"CAP_\w+", section)) == added - {held}


def test_the_unit_and_the_default_paths_agree() -> None:
    """State, configuration and the example's store are where the unit lets the daemon read and write."""
    values = {name: value for _above, name, value in directives()}
    example = (UNIT.parent.parent / "config.example.toml").read_text()
    assert f'state = "/var/lib/{values["StateDirectory"]}"' in example
    assert values["ConfigurationDirectory"] == "replicad"
    assert re.search(r'^store = "(.*)"$', example, re.MULTILINE)[1] == values["ReadWritePaths"].removeprefix("-")  # type: ignore[index]
