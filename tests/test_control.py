"""Where the daemon of a configuration listens, without judging the rest of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from replicad.cli.control import state_of
from replicad.model.errors import ConfigError


@pytest.mark.parametrize("rest", ["", "\n[dataset]\nnot = 'a list'", "\n[unknown]"])
def test_what_is_wrong_elsewhere_keeps_nobody_from_the_daemon(tmp_path: Path, rest: str) -> None:
    """The daemon runs by what it read before; whoever only wants to ask it something must not be kept from it."""
    config = tmp_path / "config.toml"
    config.write_text(f'[node]\nname = "ams1"\nstate = "/var/lib/é"{rest}\n')
    assert state_of(config) == Path("/var/lib/é")


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "[node",
        '[node]\nname = "ams1"',
        "node = 1",
        "[[node]]",
        "[node]\nstate = 1",
        '[node]\nstate = "var/lib"',
        '[node]\nstate = ""',
        "\udcff",
        "a = " + "[" * 5000,
    ],
)
def test_without_a_plain_answer_the_judge_of_configurations_says_why(tmp_path: Path, text: str | None) -> None:
    """A file that is missing, broken, or has no state directory is an error that names the file."""
    config = tmp_path / "config.toml"
    if text is not None:
        config.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError) as raised:
        state_of(config)
    assert str(config) in str(raised.value.problems[0])
