"""`replicad report`: the evidence, as a page to hand to an auditor, as Markdown, or as JSON.

Gathers (cli/report_facts.py), renders (cli/report_page.py), writes and signs. What is written to a file is signed with
the node's key, in the form that `ssh-keygen -Y verify` checks; a signature is never left beside a page that it does not
belong to: the old one is gone before the new page is there.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from replicad.cli import offered, output
from replicad.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption
from replicad.model.coverage import MAX_DAYS
from replicad.model.report import Report
from replicad.system.clock import Clock

MODE = 0o600
"""Of what is written: names of files are nobody else's business until somebody hands them on."""
PERIOD_DAYS = 90


class Format(StrEnum):
    """What a report looks like."""

    HTML = "html"
    MD = "md"
    JSON = "json"


def report(
    datasets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[DATASET]...",
            help="DATASET or CLIENT/DATASET; all when left out.",
            autocompletion=offered.on_either_side,
        ),
    ] = None,
    shape: Annotated[Format, typer.Option("--format", help="html, md or json.")] = Format.MD,
    file: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="Write it there, and its signature to FILE.sig.")
    ] = None,
    days: Annotated[int, typer.Option("--days", min=1, max=MAX_DAYS, help="How far back it looks.")] = PERIOD_DAYS,
    sign: Annotated[bool, typer.Option(help="Sign what is written with the node's key.")] = True,
    config: ConfigOption = DEFAULT_CONFIG,
    json: JsonOption = False,
) -> None:
    """Say what is protected, where, how fresh, how well verified, and whether everything can be recovered.

    On a replica: what it keeps for its clients. What cannot be found out is named, and when it was last known.

    For example: replicad report --format html --output report.html

    Exit codes: 0 everything is recoverable, 1 it is not, it is not proven, or something is to be done, 2 usage, 3
    something could not be found out and nothing else is the matter.
    """
    from replicad.cli.report_facts import gather
    from replicad.config import load

    loaded = load(config, check_files=False)
    found = gather(loaded, datasets or [], days, Clock().now_ns())
    page = render(found, Format.JSON if json else shape)
    if file is None:
        output.data(page)
    else:
        _write(file, page, loaded.node.key if sign else None)
        output.note(f"{file}: {found.headline}")
    if found.exit_code:
        raise typer.Exit(found.exit_code)


def render(found: Report, shape: Format) -> bytes:
    """The report in that shape. Raises UsageError when something that it needs is not installed."""
    if shape is Format.JSON:
        return msgspec.json.format(msgspec.json.encode(found)) + b"\n"
    from replicad.cli import report_page  # slow to import

    return report_page.as_html(found) if shape is Format.HTML else report_page.as_markdown(found)


def _write(file: Path, page: bytes, key: Path | None) -> None:
    """The page, and its signature. Raises ConfigError when the key cannot be used, before anything is written."""
    from replicad.system.disk import Disk

    signature = _signature(page, key) if key else b""
    beside, disk = file.with_name(f"{file.name}.sig"), Disk()
    beside.unlink(missing_ok=True)
    disk.write_durable(file, page, MODE)
    if signature:
        disk.write_durable(beside, signature, MODE)


def _signature(page: bytes, key: Path) -> bytes:
    from replicad.link.ssh import sign_with
    from replicad.model.sshsig import armoured, to_sign

    return armoured(*sign_with(key, to_sign(page)))
