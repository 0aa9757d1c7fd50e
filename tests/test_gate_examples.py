"""The examples of docs/GATE.md and docs/POLICY.md: tried with Ansible, apt and systemd as they stand there."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from replicad.cli.gate import gate
from replicad.config import units
from replicad.config.load import examine_text
from replicad.http.metrics import FAMILIES
from replicad.model.attestation import MAX_ASKED_PINS
from replicad.model.policy import LEVELS, OBJECTIVES

ROOT = Path(__file__).parent.parent
GATE, POLICY = ((ROOT / "docs" / name).read_text() for name in ("GATE.md", "POLICY.md"))
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEoYQAyCpBrAzUElMQ7i1Xdzj5VgBN0BT0YzfQOOt7IH"
(PROGRAM,) = re.findall(r"^ExecStart=(\S+)", (ROOT / "systemd/replicad.service").read_text(), re.MULTILINE)

Gate = Callable[[int], Path]
"""Puts a `replicad` into the PATH that notes how it was called and exits so; the file of notes."""


def block(document: str, heading: str, fence: str = "") -> str:
    """The first fenced block of a section."""
    section = document.split(f"\n## {heading}\n")[1]
    return section.split(f"```{fence}\n")[1].split("```")[0]


@pytest.fixture
def a_gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Gate:
    """A gate whose answer the test decides; what a play, apt or systemd makes of it is what is tried."""
    programs, notes = tmp_path / "bin", tmp_path / "notes"
    programs.mkdir()
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}:/usr/sbin:/sbin")

    def answer(code: int) -> Path:
        notes.write_text("")
        program = programs / "replicad"
        program.write_text(f'#!/bin/sh\necho "$@" >>{notes}\nexit {code}\n')
        program.chmod(0o755)
        return notes

    return answer


def run(*words: object, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    command = [*map(str, words)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=120, env=os.environ | more
    )  # fmt: skip


def options_of(command: str) -> set[str]:
    """The options in a command line."""
    return set(re.findall(r"--[a-z-]+", command))


KNOWN = {"--" + name.replace("_", "-") for name in gate.__annotations__} - {"--datasets", "--return"}


@pytest.mark.parametrize("code", [0, 1, 3])
def test_a_play_goes_on_only_behind_an_open_gate(a_gate: Gate, tmp_path: Path, code: int) -> None:
    """Ansible runs the example as it stands; the upgrade is done when the gate exits 0, and never else."""
    play, done, notes = tmp_path / "play.yml", tmp_path / "upgraded", a_gate(code)
    text = block(GATE, "Ansible", "yaml")
    assert "become: true" in text
    upgrade = tmp_path / "bin/upgrade-the-san"
    upgrade.write_text(f"#!/bin/sh\ntouch {done}\n")
    upgrade.chmod(0o755)
    text = text.replace("become: true", "become: false").replace("hosts: storage", "hosts: all")
    play.write_text(text.replace("/usr/local/sbin/upgrade-the-san", str(upgrade)))
    words = ("-i", "localhost,", "-c", "local", "-e", "ansible_python_interpreter=/usr/bin/python3")
    ended = run("ansible-playbook", *words, play, HOME=str(tmp_path))
    assert (ended.returncode == 0, done.exists()) == (code == 0, code == 0), ended.stdout + ended.stderr
    assert re.fullmatch(r"gate --wait 2h --pin before-san-\d{4}-\d\d-\d\d\n", notes.read_text())
    assert options_of(notes.read_text()) <= KNOWN


@pytest.mark.parametrize(("code", "overridden"), [(0, False), (1, False), (3, False), (1, True)])
def test_apt_runs_dpkg_only_behind_an_open_gate(a_gate: Gate, tmp_path: Path, code: int, overridden: bool) -> None:
    """The real apt-get, with the hook in its configuration and another program in the place of dpkg."""
    notes, called = a_gate(code), tmp_path / "dpkg-was-called"
    hook = tmp_path / "05replicad-gate"
    hook.write_text(block(GATE, "apt"))
    options = _apt_root(tmp_path, called)
    package = _package(tmp_path)
    more = {"APT_CONFIG": str(hook), "DEBIAN_FRONTEND": "noninteractive"} | (
        {"REPLICAD_NO_GATE": "1"} if overridden else {}
    )
    ended = run("apt-get", *options, "install", "-y", package, **more)
    is_let = code == 0 or overridden
    assert (called.exists(), ended.returncode == 0) == (is_let, is_let), ended.stdout + ended.stderr
    assert bool(notes.read_text()) is not overridden and options_of(notes.read_text()) <= KNOWN
    assert notes.read_text() in ("", "gate --max-lag 1h\n" * notes.read_text().count("\n"))


def _apt_root(place: Path, called: Path) -> list[str]:
    """An apt of its own: no lists, no installed packages, no dpkg but a program that notes that it was called."""
    for name in ("state/lists/partial", "cache/archives/partial", "etc", "log"):
        (place / "apt" / name).mkdir(parents=True)
    (place / "apt/status").touch()
    dpkg = place / "dpkg"
    dpkg.write_text(f'#!/bin/sh\ncase "$*" in *--unpack*|*--configure*) touch {called};; esac\nexit 0\n')
    dpkg.chmod(0o755)
    apt = place / "apt"
    pairs = {
        "Dir::State": apt / "state", "Dir::State::status": apt / "status", "Dir::Cache": apt / "cache",
        "Dir::Etc": apt / "etc", "Dir::Log": apt / "log",
        "Dir::Bin::dpkg": dpkg, "Debug::NoLocking": "1", "APT::Sandbox::User": "root",
        "Acquire::AllowInsecureRepositories": "1",
    }  # fmt: skip
    return [part for key, value in pairs.items() for part in ("-o", f"{key}={value}")]


def _package(place: Path) -> Path:
    root = place / "pkg"
    (root / "DEBIAN").mkdir(parents=True)
    fields = (
        "Package: harmless\nVersion: 1\nArchitecture: all\nMaintainer: nobody <nobody@example.org>\nDescription: x\n"
    )
    (root / "DEBIAN/control").write_text(fields)
    target = place / "harmless_1_all.deb"
    assert run("dpkg-deb", "--build", root, target).returncode == 0
    return target


def test_systemd_takes_the_unit(a_gate: Gate, tmp_path: Path) -> None:
    """`systemd-analyze verify` has nothing to say, and the condition is one that keeps ExecStart from running."""
    a_gate(1)
    text = block(GATE, "systemd", "ini")
    assert text.index(f"ExecStartPre={PROGRAM} gate ") < text.index("ExecStart=/")
    assert "ExecStartPre=-" not in text, "with a minus the gate would be ignored"
    (program, line) = re.findall(r"ExecStartPre=(\S+) (.*)", text)[0]
    assert program == PROGRAM, "systemd has no PATH to look along: where the README's installation puts it"
    assert options_of(line) <= KNOWN
    wait, limit = re.findall(r"--wait (\w+)", line)[0], re.findall(r"TimeoutStartSec=(\w+)", text)[0]
    assert units.parse_duration(wait) < units.parse_duration(limit), "systemd must not end the wait"
    unit = tmp_path / "san-upgrade.service"
    text = text.replace(PROGRAM, str(tmp_path / "bin/replicad"))  # systemd looks whether it is executable
    unit.write_text(text.replace("/usr/local/sbin/upgrade-the-san", "/bin/true"))
    (tmp_path / "replicad.service").write_text("[Service]\nExecStart=/bin/true\n")
    ended = run("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", unit)
    assert (ended.returncode, ended.stdout + ended.stderr) == (0, "")


def test_every_command_of_the_pages_has_options_that_exist() -> None:
    """Whatever `replicad gate …` the pages show can be typed."""
    shown = re.findall(r"replicad gate[^`\n\"]*", GATE + POLICY)
    assert len(shown) >= 4
    for command in shown:
        assert options_of(command) <= KNOWN, command


def test_the_page_says_how_many_pins_there_may_be() -> None:
    """GATE.md and RETENTION.md tell the limit that is in force."""
    assert f"may ask for {MAX_ASKED_PINS} pins" in GATE
    assert f"{MAX_ASKED_PINS} at most for each store" in (ROOT / "docs/RETENTION.md").read_text()


def test_the_levels_are_those_that_are_shipped() -> None:
    """The table of POLICY.md, read as a configuration would be, is LEVELS; its columns are the objectives."""
    lines = re.findall(r"^\| (?:level|bronze|silver|gold) .*", POLICY, re.MULTILINE)
    head, *levels = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert head[1:] == list(OBJECTIVES)
    tables = ""
    for level in levels:
        given = zip(head, level, strict=True)
        lines = (f"{key} = {value if value.isdigit() else chr(34) + value + chr(34)}" for key, value in given)
        tables += "[[level]]\n" + "\n".join(lines).replace("level = ", "name = ") + "\n"
    text = '[node]\nname = "n"\nstate = "/s"\n' + tables
    for level in levels:
        config = examine_text(_with_dataset(text, level[0]), Path("c.toml"), check_files=False).config
        assert config is not None and config.datasets[0].objectives == LEVELS[level[0]]


def test_the_examples_of_a_configuration_are_read() -> None:
    """Sites, coordinates, a level of one's own and the dataset that has it."""
    places = block(POLICY, "Sites and distances", "toml").replace("[node]", '[node]\nname = "n"\nstate = "/s"')
    places = places.replace("[[replica]]", f'[[replica]]\nname = "r"\naddress = "r:1"\nkey = "{KEY}"')
    own = POLICY.split("```toml\n")[2].split("```")[0]
    config = examine_text(places + own, Path("c.toml"), check_files=False).config
    assert config is not None and config.replicas[0].place.site == "fra"
    assert config.datasets[0].objectives.level == "archive" and config.datasets[0].drill_every_s == 30 * 86400


def test_the_policy_s_metrics_and_keys_are_named() -> None:
    """Each objective has a row in POLICY.md, in order, and the metric is one that exists."""
    assert re.findall(r"^\| `(\w+)` \|", POLICY, re.MULTILINE) == list(OBJECTIVES)
    assert "replicad_policy_compliant" in {family.name for family in FAMILIES}


def _with_dataset(text: str, level: str) -> str:
    replica = f'[[replica]]\nname = "r"\naddress = "r:1"\nkey = "{KEY}"\n'
    return f'{text}{replica}[[dataset]]\nname = "d"\npath = "/d"\nlevel = "{level}"\ndrill_scratch = "/t"\n'
