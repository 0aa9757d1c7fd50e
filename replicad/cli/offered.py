"""Offered: what a shell offers for a DATASET that is being typed, by the configuration that the line names.

Each is `autocompletion=` of an argument. **Never** judges the configuration and never complains: where it gives no
plain answer, nothing is offered.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from replicad.cli.control import glance


def own(context: typer.Context) -> list[str]:
    """The datasets that live here, for what is typed on a primary."""
    return [name for name, _ in _tables(context, "dataset")]


def stored(context: typer.Context) -> list[str]:
    """CLIENT/DATASET of what named clients keep here, for what is typed on a replica."""
    return [
        f"{client}/{name}"
        for client, table in _tables(context, "client")
        for name in _listed(table.get("datasets"))
        if isinstance(name, str)
    ]


def on_either_side(context: typer.Context) -> list[str]:
    """Both, for what takes DATASET or CLIENT/DATASET."""
    return own(context) + stored(context)


def scrubbed(context: typer.Context) -> list[str]:
    """Both without their clients, as scrubs call them."""
    return list(dict.fromkeys(name.rpartition("/")[2] for name in on_either_side(context)))


def _tables(context: typer.Context, key: str) -> list[tuple[str, dict[str, Any]]]:
    """The tables of this key that have a name, with it."""
    config = context.params.get("config")
    found = glance(Path(config).expanduser()) if config else {}
    tables = [table for table in _listed(found.get(key)) if isinstance(table, dict)]
    return [(table["name"], table) for table in tables if isinstance(table.get("name"), str)]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
