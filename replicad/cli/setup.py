"""`replicad init`, `authorize` and `check-config`: from nothing to a node that runs.

For scripts, stdout carries the result alone: of `init` the one line that the other side needs, of `check-config
--json` the document. What was made and what to type next goes to stderr.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from replicad.cli import output
from replicad.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption, config_words
from replicad.config import Config, Report, examine
from replicad.config.units import format_duration, format_size
from replicad.model.errors import ConfigError, UsageError
from replicad.model.pairing import PrimaryLine, ReplicaLine, parse_name, parse_primary_line, parse_replica_line

init = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Write a configuration and a key; print the one line that the other side needs. A node may be both replica "
    "and primary: run both on the same configuration.",
)

NameOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="This node's name.", show_default="this host's name")
]
StateOption = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="Directory for key, ledgers and control socket.", show_default="/var/lib/replicad"
    ),
]
HttpOption = Annotated[
    str | None,
    typer.Option(metavar="ADDR:PORT", help='Where /metrics listens; "" for nowhere.', show_default="127.0.0.1:9817"),
]


@init.command("replica")
def init_replica(
    store: Annotated[Path, typer.Option(metavar="DIR", help="Directory for the copies that primaries send.")],
    listen: Annotated[str, typer.Option(metavar="ADDR:PORT", help="Where to listen for primaries.")] = ":7022",
    advertise: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where primaries find this node.", show_default="as --listen")
    ] = "",
    name: NameOption = None,
    state: StateOption = None,
    http: HttpOption = None,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Make this node a replica: it stores what primaries send.

    Prints the line for `replicad init primary --replica`. Refuses a configuration that has a replica already; adds to
    one that `init primary` wrote.
    """
    from replicad.work import setup

    address = setup.advertised(listen, advertise)
    made = setup.init_replica(setup.Node(config, name, state, http), listen=listen, store=store)
    output.line(str(ReplicaLine(made.config.node.name, address, made.key)))
    _tell_made(made.config)
    output.note(f"primaries will dial {address}; if they know this host by another name, change it in the line")
    output.note("next, on the primary:\n  replicad init primary --dataset NAME=/PATH --replica 'THE LINE ABOVE'")
    output.note(f"then, here:\n  replicad authorize{config_words(config)} 'THE LINE THAT IT PRINTS'")
    _tell_start(config)


@init.command("primary")
def init_primary(
    dataset: Annotated[
        list[str], typer.Option(metavar="NAME=PATH", help="A directory to protect, and its name. Repeatable.")
    ],
    replica: Annotated[
        list[str], typer.Option(metavar="LINE", help="The line that `init replica` printed. Repeatable.")
    ],
    name: NameOption = None,
    state: StateOption = None,
    http: HttpOption = None,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Make this node a primary: it copies datasets to replicas.

    Prints the line for `replicad authorize` on each replica. Refuses a configuration that has a dataset already; adds
    to one that `init replica` wrote.
    """
    from replicad.work import setup

    datasets = [_dataset(text) for text in dataset]
    lines = [parse_replica_line(text) for text in replica]
    made = setup.init_primary(setup.Node(config, name, state, http), datasets=datasets, replicas=lines)
    output.line(str(PrimaryLine(made.config.node.name, made.key, tuple(name for name, _ in datasets))))
    _tell_made(made.config)
    for line in lines:
        output.note(f"next, on {line.name} ({line.address}):\n  replicad authorize 'THE LINE ABOVE'")
    _tell_start(config)


def authorize(
    line: Annotated[str, typer.Argument(metavar="LINE", help="The line that `init primary` printed.")],
    dataset: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Allow this dataset only. Repeatable.", show_default="those in the line"),
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="The primary has a new key: forget the old one.")] = False,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Let a primary store its datasets on this replica.

    Adds it to the configuration, or changes what it may store. A running daemon looks there at each connection: there
    is nothing to restart. A session that is open on a dataset it may not have any more ends when the daemon is
    reloaded.
    """
    from replicad.work import setup

    primary = parse_primary_line(line)
    done = setup.authorize(config, primary, datasets=[_name(text) for text in dataset or ()], replace=replace)
    output.note(f"{primary.name} may store {', '.join(done.datasets)}" + ("" if done.changed else " (as before)"))
    output.note("a daemon that runs takes it up by itself with the next connection; if none runs yet,")
    _tell_start(config)


def check_config(config: ConfigOption = DEFAULT_CONFIG, json: JsonOption = False) -> None:
    """Show every problem in the configuration at once, with file, line and key; exit code 2 when there is one.

    Looks at keys, directories and programs as well, as the user that it runs as: run it as the daemon's user.
    """
    report = examine(config)
    if json:
        output.json_document({"ok": report.config is not None, "file": config} | _findings(report))
        if report.config is None:
            raise typer.Exit(ConfigError.exit_code)
        return
    if report.config is None:
        raise ConfigError(report.problems + report.warnings)
    for warning in report.warnings:
        output.note(f"{warning} (a warning)")
    for text in _summary(report.config):
        output.line(text)


def _findings(report: Report) -> dict[str, object]:
    return {"problems": report.problems, "warnings": report.warnings}


def _summary(config: Config) -> list[str]:
    """What the daemon would do."""
    node = config.node
    metrics = f"http://{node.http}/metrics" if node.http else "no metrics"
    lines = [f"{config.file}: ok", f"node {node.name}: state in {node.state}, {metrics}"]
    if config.listen:
        door = f"listens on {config.listen.address}" if config.listen.address else "waits behind an OpenSSH server"
        reserve = format_size(config.listen.reserve_bytes)
        lines.append(f"replica: {door}, stores in {config.listen.store}, stops when {reserve} would not stay free")
    lines += [f"  client {c.name}: {', '.join(c.datasets) or 'any dataset of its own'}" for c in config.clients]
    lines += [f"  viewer {v.name}: may look at {', '.join(v.datasets)}" for v in config.viewers]
    for dataset in config.datasets:
        copies = ", ".join(f"{replica.name} ({replica.address})" for replica in config.replicas_of(dataset))
        every = format_duration(dataset.rpo_s)
        lines.append(f"dataset {dataset.name}: {dataset.path} to {copies}, a snapshot every {every} at the latest")
    if not config.listen and not config.datasets:
        lines.append("nothing to replicate: neither a [listen] table nor a [[dataset]]")
    return lines


def _dataset(text: str) -> tuple[str, Path]:
    """NAME=PATH."""
    name, equals, path = text.partition("=")
    if not equals or not path:
        raise UsageError(f'"{text}" is no NAME=PATH', where="--dataset", hint="such as --dataset www=/srv/www")
    return _name(name), Path(path)


def _name(text: str) -> str:
    try:
        return parse_name(text)
    except ValueError as error:
        raise UsageError(str(error), where="--dataset") from None


def _tell_made(config: Config) -> None:
    output.note(f"wrote {config.file}; this node is {config.node.name}, its key is {config.node.key}")


def _tell_start(config: Path) -> None:
    if config == DEFAULT_CONFIG:
        output.note("start the daemon:\n  systemctl enable --now replicad")
    else:
        output.note(f"start the daemon:\n  replicad run{config_words(config)}")
