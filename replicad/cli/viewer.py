"""`replicad viewer add|list|remove`: who may look at history over SFTP. On the replica.

For scripts, stdout of `add` carries one line alone: what the viewer puts into known_hosts, so that it talks to this
replica and to nobody else. What to type there goes to stderr.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from replicad.cli import offered, output
from replicad.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption
from replicad.config import Config, ViewerConfig, load
from replicad.config.schema import viewed
from replicad.model.errors import UsageError
from replicad.model.pairing import fingerprint, known_hosts_line, parse_key, parse_name, split_address

MAX_KEY_FILE_BYTES = 16 * 1024
"""A public key has 80 characters and a comment."""

viewer = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="A viewer looks at snapshots over SFTP (sftp, scp, sshfs, rclone) and can do nothing else. Typed on the "
    "replica; a running daemon takes changes up by itself.",
)

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The viewer's name, for the log.")]


@viewer.command("add")
def add(
    name: NameArgument,
    key: Annotated[
        str, typer.Argument(metavar="KEY", help="The viewer's Ed25519 public key: its file, or 'ssh-ed25519 AAAA…'.")
    ],
    dataset: Annotated[
        list[str],
        typer.Option(
            metavar="CLIENT/DATASET",
            help="What it may view; CLIENT/* is all of a client. Repeatable.",
            autocompletion=offered.stored,
        ),
    ],
    replace: Annotated[bool, typer.Option("--replace", help="The viewer has a new key: forget the old one.")] = False,
    advertise: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where viewers find this node.", show_default="as it listens")
    ] = "",
    config: ConfigOption = DEFAULT_CONFIG,
    json: JsonOption = False,
) -> None:
    """Let somebody look at snapshots: every file of these datasets, whatever its mode, read-only.

    Prints the line for the viewer's known_hosts. A viewer that is known gets these datasets instead of those it had.

    For example: replicad viewer add ada ada.pub --dataset ams1/www
    """
    from replicad.link.ssh import public_key  # asyncssh is slow to import
    from replicad.work import setup

    wanted = [_checked(viewed, text, "--dataset") for text in dataset]
    public = _checked(parse_key, _key_text(key), "KEY")
    _checked(parse_name, name, "NAME")
    loaded = load(config, check_files=False)
    address = setup.viewed_at(loaded, advertise)
    changed = setup.add_viewer(config, name, public, wanted, replace=replace)
    pin = known_hosts_line(address, public_key(loaded.node.key))
    if json:
        output.json_document({"viewer": name, "datasets": wanted, "changed": changed, "known_hosts": pin})
        return
    output.line(pin)
    _tell(loaded, name, wanted, address, changed=changed)


@viewer.command("list")
def list_viewers(config: ConfigOption = DEFAULT_CONFIG, json: JsonOption = False) -> None:
    """List who may view what."""
    found = load(config, check_files=False).viewers
    if json:
        output.json_document([_document(one) for one in found])
    elif not found:
        output.line("nobody may view anything")
    else:
        rows = [(one.name, fingerprint(one.key), ", ".join(one.datasets)) for one in found]
        output.table(("NAME", "KEY", "DATASETS"), rows)


@viewer.command("remove")
def remove(name: NameArgument, config: ConfigOption = DEFAULT_CONFIG, json: JsonOption = False) -> None:
    """Let a viewer view nothing any more, from now on. Exit code 2 when there is no such viewer."""
    from replicad.work import setup

    setup.remove_viewer(config, name)
    if json:
        output.json_document({"removed": name})
    else:
        output.line(f"{name} may view nothing any more")


def _tell(config: Config, name: str, datasets: list[str], address: str, *, changed: bool) -> None:
    host, port = split_address(address)
    output.note(f"{name} may view {', '.join(datasets)}" + ("" if changed else " (as before)"))
    for text in datasets:
        assert config.listen
        if "*" not in text and not (config.listen.store / text).is_dir():
            output.note(f"nothing of {text} is stored here yet")
    output.note("the viewer appends the line above to ~/.ssh/known_hosts, and types:")
    output.note(f"  sftp -P {port} -i KEY view@{host}")
    output.note(f"  sshfs -p {port} -o IdentityFile=KEY,ro view@{host}:/ MOUNTPOINT")


def _document(one: ViewerConfig) -> dict[str, object]:
    return {"name": one.name, "key": one.key, "fingerprint": fingerprint(one.key), "datasets": one.datasets}


def _key_text(text: str) -> str:
    """The key itself, or what stands in its file. Raises UsageError."""
    if text.startswith("ssh-"):
        return text
    try:
        with Path(text).open("rb") as file:
            found = file.read(MAX_KEY_FILE_BYTES).decode(errors="replace")
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}", where=text, hint="name the file with .pub") from None
    if "PRIVATE KEY" in found:
        raise UsageError("is a private key, which stays with the viewer", where=text, hint="name the file with .pub")
    return found


def _checked(read: object, value: str, where: str) -> str:
    assert callable(read)
    try:
        return str(read(value))
    except ValueError as error:
        raise UsageError(str(error), where=where) from None
