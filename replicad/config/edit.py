"""Edit: additions to a configuration that keep every comment and the order of what is there. Sole owner of tomlkit.

Text in, text out; the caller judges the new text (`examine_text`) before it writes it, so nothing here has to be
careful. Values are in the file's own notation ("5m", not 300.0).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import tomlkit
from tomlkit.items import Table

from replicad.model.errors import UsageError

Values = Mapping[str, str | Sequence[str]]
"""Keys of one table with their values."""

NEW_FILE = """\
# Configuration of replicad, written by `replicad init`. Every key with its default and meaning stands in
# config.example.toml, which comes with replicad. After a change: replicad check-config, then reload the daemon.
"""


def set_table(text: str, name: str, values: Values) -> str:
    """`text` with a table [name] behind everything else; there must be none yet."""
    document = tomlkit.parse(text)
    document[name] = _table(values)
    return tomlkit.dumps(document)


def append_table(text: str, name: str, values: Values) -> str:
    """`text` with one more [[name]]. Raises UsageError where these tables are written as an inline array."""
    document = tomlkit.parse(text)
    tables = document.setdefault(name, tomlkit.aot())
    if not isinstance(tables, tomlkit.items.AoT):
        raise UsageError(f"{name} is written as an inline array", hint=f"write its elements as [[{name}]] tables")
    tables.append(_table(values))
    return tomlkit.dumps(document)


def change_table(text: str, name: str, index: int, values: Values) -> str:
    """`text` with keys of the [[name]] number `index` (from 0) set to `values`; its other keys stay."""
    document = tomlkit.parse(text)
    table = document[name][index]
    for key, value in values.items():
        table[key] = value
    return tomlkit.dumps(document)


def remove_table(text: str, name: str, index: int) -> str:
    """`text` without the [[name]] number `index` (from 0)."""
    document = tomlkit.parse(text)
    del document[name][index]
    if not document[name]:
        del document[name]
    return tomlkit.dumps(document)


def _table(values: Values) -> Table:
    table = tomlkit.table()
    for key, value in values.items():
        table.add(key, value if isinstance(value, str) else list(value))
    table.add(tomlkit.nl())
    return table
