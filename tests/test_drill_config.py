"""What a configuration may say about drills."""

from __future__ import annotations

from pathlib import Path

import pytest

from replicad.config import Config
from replicad.config.load import examine_text
from replicad.config.values import VALIDATOR_KINDS, ValidatorConfig
from replicad.work.checks import CHECKS

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEoYQAyCpBrAzUElMQ7i1Xdzj5VgBN0BT0YzfQOOt7IH"
TEXT = f"""[node]
name = "ams1"
state = "/var/lib/replicad"
[listen]
store = "/srv/replicad"
[[replica]]
name = "fra1"
address = "h:1"
key = "{KEY}"
[[dataset]]
name = "www"
path = "/srv/www"
"""


def understood(lines: str) -> Config:
    """The configuration with these lines in its dataset."""
    report = examine_text(TEXT + lines, Path("c.toml"), check_files=False)
    assert report.config is not None, report.problems
    return report.config


def problems(lines: str, *, check_files: bool = False) -> list[str]:
    """What is wrong with these lines."""
    return [str(problem) for problem in examine_text(TEXT + lines, Path("c.toml"), check_files=check_files).problems]


def test_drills_are_configured_with_the_dataset() -> None:
    """Every key in its own notation, and validators as tables of either form."""
    lines = 'drill_every = "1d"\ndrill_scratch = "/var/tmp/d"\ndrill_within = "30d"\ndrill_limit = "1GiB"\nrto = "8h"\n'
    lines += '[[dataset.validators]]\nkind = "sqlite"\npattern = "*.db"\n'
    lines += '[[dataset.validators]]\nkind = "command"\npattern = "a"\ncommand = ["/bin/look", "-x"]\ntimeout = "5m"\n'
    dataset = understood(lines).datasets[0]
    assert (dataset.drill_every_s, dataset.drill_within_s, dataset.rto_s) == (86_400, 30 * 86_400, 8 * 3600)
    assert (dataset.drill_scratch, dataset.drill_limit_bytes) == (Path("/var/tmp/d"), 2**30)
    assert dataset.validators == (
        ValidatorConfig("sqlite", "*.db"),
        ValidatorConfig("command", "a", ("/bin/look", "-x"), 300.0),
    )
    assert (
        understood('validators = [{kind = "zip", pattern = "*.zip"}]\ndrill_every = 0').datasets[0].drill_every_s == 0
    )


@pytest.mark.parametrize("path", ["/srv/www", "/srv/www/x", "/srv", "/var/lib", "/var/lib/replicad/s", "/srv/replicad"])
def test_a_scratch_directory_in_or_above_live_data_is_a_problem(path: str) -> None:
    """Dataset, state and store, in both directions; the fault is the scratch directory's."""
    found = problems(f'drill_scratch = "{path}"')
    assert found and all("dataset.drill_scratch" in line and "overlaps" in line for line in found)


def test_links_are_followed(tmp_path: Path) -> None:
    """A scratch directory that leads to live data by a link is a problem too."""
    (tmp_path / "live").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "live")
    text = TEXT.replace("/srv/www", str(tmp_path / "live")) + f'drill_scratch = "{tmp_path / "link" / "d"}"'
    assert examine_text(text, Path("c.toml"), check_files=False).config is None


@pytest.mark.parametrize(
    ("validator", "words"),
    [
        ('"x"', "must be a table"),
        ('{kind = "sqlite"}', "lacks 'pattern'"),
        ('{kind = "mysql", pattern = "a"}', 'must be "sqlite" or "postgresql"'),
        ('{kind = "zip", pattern = "../a"}', "can match nothing"),
        ('{kind = "zip", pattern = "a", command = ["x"]}', 'with kind "command", and with no other'),
        ('{kind = "command", pattern = "a"}', 'needs command = ["program", "argument"]'),
        ('{kind = "command", pattern = "a", command = "x"}', 'needs command = ["program", "argument"]'),
        ('{kind = "zip", pattern = "a", timeout = 5}', "must be a text with a unit"),
        ('{kind = "zip", pattern = "a", timeuot = "5s"}', "unknown key 'timeuot'"),
    ],
)
def test_a_wrong_validator_is_named(validator: str, words: str) -> None:
    """With its place."""
    (found,) = problems(f"validators = [{validator}]")
    assert words in found and "dataset.validators" in found and found.startswith("c.toml:13: ")


def test_what_is_missing_on_the_host_is_a_doubt(tmp_path: Path) -> None:
    """A scratch directory or a program that is not there now makes drills inconclusive, not the configuration wrong."""
    lines = 'drill_scratch = "/nowhere/d"\nvalidators = [{kind = "command", pattern = "a", command = ["/nowhere/p"]}]'
    said = [str(warning) for warning in examine_text(TEXT + lines, Path("c.toml"), check_files=True).warnings]
    assert any("no drills until it is" in line for line in said) and any("/nowhere/p" in line for line in said)


def test_every_kind_of_validator_has_its_check() -> None:
    """What can be configured can be run."""
    assert set(VALIDATOR_KINDS) == {*CHECKS, "postgresql", "command"}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('canary = "a/b"', "is not the name of a file"),
        ('canary = ".."', "is not the name of a file"),
        ('canary = "' + "é" * 128 + '"', "is not the name of a file"),
        ('canary = ".c"\ncanary_every = "0s"', "must lie between"),
        ('canary = ".canary"\nexclude = ["*.tmp", ".c*"]', "is left out by exclude"),
    ],
)
def test_a_canary_is_a_file_in_the_root_that_is_copied(line: str, words: str) -> None:
    """A name, not a path, and none that the dataset leaves out; there is none unless it is named."""
    (found,) = problems(line)
    assert words in found and "dataset.canary" in found
    assert understood("").datasets[0].canary == ""
    assert understood('canary = ".canary"\nexclude = [".c*", "!.canary"]').datasets[0].canary == ".canary"
