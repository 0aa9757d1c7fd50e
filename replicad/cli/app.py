"""The command line's frame: the table of verbs, and how each kind of error ends the process.

`replicad --help` needs nothing but the table; a verb's module is imported when its verb is typed, so that a light
verb such as `status` starts fast. A new verb is a module with a typer function (or a typer.Typer, for a verb with
verbs of its own) and a line in `VERBS`.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from replicad import __version__
from replicad.cli import output
from replicad.cli.options import DEFAULT_CONFIG
from replicad.model.errors import ReplicadError
from replicad.system import logs

EXIT_UNKNOWN = 3
"""An error nobody foresaw: whatever was asked for is not known to be done."""
EXIT_INTERRUPTED = 130
"""What shells show for a process that Ctrl-C ended."""
EXIT_TERMINATED = 143
"""The same for one that SIGTERM ended."""


@dataclass(frozen=True, slots=True)
class Verb:
    """A verb: what to type, where it lives, and one line of help."""

    name: str
    module: str
    attribute: str
    help: str


VERBS = (
    Verb("init", "replicad.cli.setup", "init", "Write configuration and key; print the other side's line."),
    Verb("authorize", "replicad.cli.setup", "authorize", "Let a primary store its datasets on this replica."),
    Verb("viewer", "replicad.cli.viewer", "viewer", "Let somebody look at history over SFTP, read-only."),
    Verb("check-config", "replicad.cli.setup", "check_config", "Show every problem in the configuration at once."),
    Verb("run", "replicad.cli.run", "run", "Run the daemon in the foreground."),
    Verb("status", "replicad.cli.status", "status", "Show what is safe, what is not, and what to type next."),
    Verb("sync", "replicad.cli.sync", "sync", "Replicate now."),
    Verb("release", "replicad.cli.sync", "release", "Let a held dataset replicate again."),
    Verb("divergence", "replicad.cli.divergence", "divergence", "Show what was found wrong, and what to type next."),
    Verb("repair", "replicad.cli.repair", "repair", "Repair what was found, from proven blocks."),
    Verb("suspects", "replicad.cli.suspects", "suspects", "Show changes that look like damage, and release them."),
    Verb("retain", "replicad.cli.retain", "retain", "Let go the snapshots that no rule keeps."),
    Verb("pin", "replicad.cli.pin", "pin", "Keep a snapshot under a name, whatever the rules say."),
    Verb("scrub", "replicad.cli.scrub", "scrub", "Verify every byte now, hold that up, or see."),
    Verb("drill", "replicad.cli.drill", "drill", "Rehearse a restore, and see what drills have proven."),
    Verb("report", "replicad.cli.report", "report", "Prove it: the evidence for an auditor, signed."),
    Verb("policy", "replicad.cli.policy", "policy", "Show whether what is demanded of each dataset holds."),
    Verb("gate", "replicad.cli.gate", "gate", "Say whether a dangerous maintenance may begin."),
    Verb("snapshots", "replicad.cli.restore", "snapshots", "List what can be restored."),
    Verb("ls", "replicad.cli.travel", "ls", "List what a directory held in a snapshot."),
    Verb("cat", "replicad.cli.travel", "cat", "Print a file as it was in a snapshot."),
    Verb("history", "replicad.cli.travel", "history", "List every version of a path."),
    Verb("diff", "replicad.cli.travel", "diff", "Show what differs between two snapshots."),
    Verb("restore", "replicad.cli.restore", "restore", "Bring back a dataset, or parts of it."),
    Verb("rebuild", "replicad.cli.rebuild", "rebuild", "Rebuild a catalog from segments, or a ledger from a replica."),
    Verb("stdio", "replicad.cli.stdio", "stdio", "Serve one connection of an OpenSSH server (forced command)."),
    Verb("demo", "replicad.cli.demo", "demo", "Watch two daemons replicate and restore a real tree."),
)


def end_on_sigterm() -> None:
    """Have the first SIGTERM end a verb as Ctrl-C does, so that it clears away what it has made; a second one ends the
    process at once. `run` has its own way."""

    def end(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise SystemExit(EXIT_TERMINATED)

    signal.signal(signal.SIGTERM, end)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code. Prints one line for an error, never a traceback."""
    logs.configure("warning", "text")  # for all verbs but `run`, which follows its configuration
    try:
        return _run(arguments)
    except ReplicadError as error:
        output.error(error)
        return error.exit_code
    except typer.TyperException as error:
        text = error.format_message()
        # A verb whose own verb is missing comes with its whole help.
        output.note(text if text.startswith("Usage:") else f"replicad: {text}")
        return error.exit_code
    except (typer.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    except Exception as error:  # the last line of defence: whoever typed this needs words, and no success
        if os.environ.get("REPLICAD_DEBUG"):
            raise
        output.note(f"replicad: {_unforeseen(error)}")
        return EXIT_UNKNOWN


def _run(arguments: Sequence[str] | None) -> int:
    result = get_command(_frame())(args=arguments, prog_name="replicad", standalone_mode=False)
    return result if isinstance(result, int) else 0


def _unforeseen(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return f"unexpected {type(error).__name__}: {error} (a bug in replicad; REPLICAD_DEBUG=1 shows where)"


class _LazyGroup(TyperGroup):
    """Imports a verb's module when the verb is typed; until then a stand-in carries its name and help."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        for verb in VERBS:
            if args and args[0] == verb.name:
                self.add_command(_load(verb), verb.name)
        return super().resolve_command(ctx, args)


def _frame() -> typer.Typer:
    """The application with a stand-in for each verb."""
    frame = typer.Typer(
        cls=_LazyGroup,
        callback=_before_any_verb,
        invoke_without_command=True,
        rich_markup_mode=None,  # plain help: no import of rich, and the same text in a terminal, a pager and a file
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        help="Keep a durable, verified, restorable remote copy of a directory tree.",
        epilog="Exit codes: 0 done and clean; 1 a finding; 2 usage or configuration; 3 daemon or peer out of reach.",
    )
    for verb in VERBS:
        frame.command(verb.name, help=verb.help)(_stand_in)
    return frame


def _load(verb: Verb) -> Any:
    """The verb's real command."""
    found = getattr(import_module(verb.module), verb.attribute)
    if isinstance(found, typer.Typer):
        return get_command(found)
    alone = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    alone.command(verb.name)(found)
    return get_command(alone)


def _stand_in() -> None:
    raise AssertionError("a stand-in is replaced before it is called")


def _show_version(wanted: bool) -> None:
    if wanted:
        output.line(f"replicad {__version__}")
        raise typer.Exit


def _before_any_verb(
    context: typer.Context,
    config: Annotated[
        Path, typer.Option("--config", metavar="FILE", help="The configuration file; also taken after the verb.")
    ] = DEFAULT_CONFIG,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Print the version.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        output.note(context.get_help())
        raise typer.Exit(2)
