"""Options that many verbs share, so that they are spelled, explained and resolved alike."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from replicad.cli import output
from replicad.model.errors import UsageError

DEFAULT_CONFIG = Path("/etc/replicad/config.toml")
"""Where the configuration is unless --config says otherwise."""


def _before_or_after(context: typer.Context, value: Path) -> Path:
    """The verb's own --config, or the one given before the verb."""
    if value != DEFAULT_CONFIG:
        return value
    given: Any = context.find_root().params.get("config")
    return Path(given) if given else value


def config_words(config: Path) -> str:
    """What a command that is suggested needs besides: " --config FILE", or "" for the usual one."""
    return "" if config == DEFAULT_CONFIG else f" --config {shlex.quote(str(config))}"


def note_config(config: Path) -> None:
    """Below commands that are suggested without knowing of any file: what each needs besides, unless it is the usual
    one."""
    if words := config_words(config):
        output.note(f"commands on this host take{words}")


ConfigOption = Annotated[
    Path,
    typer.Option("--config", metavar="FILE", callback=_before_or_after, help="The configuration file."),
]
"""Declare `config: ConfigOption = DEFAULT_CONFIG` in a verb."""

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
"""Declare `json: JsonOption = False` in a verb."""


def seconds_of(text: str | None, option: str) -> float | None:
    """A duration as it was typed, in seconds; None when it was not. Raises UsageError."""
    if text is None:
        return None
    from replicad.config.units import parse_duration

    try:
        return parse_duration(text)
    except ValueError as error:
        raise UsageError(str(error), where=option) from None
