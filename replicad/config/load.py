"""Load: a configuration file into a `Config`, or every problem in it at once.

Three passes that never stop at the first finding: each table is read by its schema into a `Section` of the values
that are right; the rules across sections and the checks of files look at those; and only when nothing was wrong do the
sections become values. So one run shows all there is to mend, each with file, line and key.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from replicad.config import rules
from replicad.config.lines import Place, TooDeepError, find_lines
from replicad.config.schema import MAX_TEXT_CHARACTERS, TABLES, Key, Table
from replicad.config.values import Config
from replicad.model.errors import ConfigError, Problem

MAX_FILE_BYTES = 1024 * 1024
"""A configuration is a few KiB; anything this large is some other file, given by mistake."""
MAX_ELEMENTS = 1000
"""In one array: patterns are matched against every path, and nobody reads a longer list."""
_LONG_NUMBER = re.compile(rf"(?<!\w)(\d(?:_?\d){{{MAX_TEXT_CHARACTERS}}})[\d_]+", re.ASCII)
"""More digits than int() takes. What is left of them is as wrong for every key, be it a number or a text."""


@dataclass(frozen=True, slots=True)
class Report:
    """What came of reading a file: a `config` when there are no `problems`; `warnings` do not stop anything."""

    config: Config | None
    problems: list[Problem]
    warnings: list[Problem]


def load(path: Path, *, check_files: bool = True) -> Config:
    """The configuration in the file `path`. Raises ConfigError with every problem in it.

    `check_files` looks at what the file names as well: keys and their modes, store, programs of hooks, and overlaps
    through symbolic links. Without it nothing but the file itself is touched, so that a dead mount cannot hang a
    verb that only talks to the daemon.
    """
    report = examine(path, check_files=check_files)
    if report.config is None:
        raise ConfigError(report.problems)
    return report.config


def examine(path: Path, *, check_files: bool = True) -> Report:
    """Like `load`, but problems and warnings are values."""
    try:
        text = _read(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        hint = "; replicad init makes one" if isinstance(error, FileNotFoundError) else ""
        return Report(None, [Problem(str(path), 0, "", f"cannot be read: {reason}{hint}")], [])
    return examine_text(text, path, check_files=check_files, follow_links=check_files)


def examine_text(text: str, path: Path, *, check_files: bool, follow_links: bool = True) -> Report:
    """Judge `text` as if it stood in the file `path`. `follow_links`: find overlaps through symbolic links too."""
    try:
        document, lines = _parsed(_LONG_NUMBER.sub(r"\1", text))
    except ValueError as error:
        return Report(None, [_syntax_problem(text, path, error)], [])
    findings = _Findings(path, lines)
    sections = _sections(document, findings)
    rules.across(sections, findings.wrong, resolve=follow_links)
    if check_files:
        rules.files(sections, findings.wrong, findings.doubt)
    config = None if findings.problems else _config(path, sections)
    return Report(config, _sorted(findings.problems), _sorted(findings.warnings))


def _read(path: Path) -> str:
    with path.open("rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise ValueError(f"is larger than {MAX_FILE_BYTES} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"is not UTF-8 (line {line})") from error


def _parsed(text: str) -> tuple[dict[str, Any], dict[Place, int]]:
    """The document, and where its keys stand. Raises ValueError."""
    try:
        document = tomllib.loads(text)
    except RecursionError:
        document = {}  # it went far deeper than `find_lines` does, which says where
    return document, find_lines(text)


def _syntax_problem(text: str, path: Path, error: ValueError) -> Problem:
    if isinstance(error, TooDeepError):
        return Problem(str(path), error.line, _name_of(error.place), str(error))
    reason, _, position = str(error).rpartition(" (at ")
    match = re.match(r"line (\d+), column (\d+)", position)
    if match:
        return Problem(str(path), int(match[1]), "", f"{reason} at column {match[2]}")
    return Problem(str(path), max(1, len(text.splitlines())), "", f"{reason or error} at the end of the file")


def _sorted(problems: list[Problem]) -> list[Problem]:
    return sorted(problems, key=lambda p: (p.line, p.key))


@dataclass(slots=True)
class _Findings:
    """Collects problems, finding the line of each."""

    path: Path
    lines: dict[Place, int]
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)

    def wrong(self, place: Place, text: str) -> None:
        self.problems.append(self._problem(place, text))

    def doubt(self, place: Place, text: str) -> None:
        self.warnings.append(self._problem(place, text))

    def _problem(self, place: Place, text: str) -> Problem:
        known = place
        while known and known not in self.lines:
            known = known[:-1]
        return Problem(str(self.path), self.lines.get(known, 1), _name_of(place), text)


def _name_of(place: Place) -> str:
    return ".".join(part for part in place if isinstance(part, str))


def _sections(document: dict[str, Any], findings: _Findings) -> list[rules.Section]:
    """The document's tables, each with the values that could be read."""
    for name in document.keys() - {table.name for table in TABLES}:
        findings.wrong((name,), "unknown table" + _did_you_mean(name, [table.name for table in TABLES]))
    sections = []
    for table in TABLES:
        for place, content in _instances(document, table, findings):
            sections.append(rules.Section(table.name, place, _values(table, place, content, findings)))
    if "node" not in document:
        findings.wrong(("node",), "the table [node] is missing")
    return sections


def _instances(document: dict[str, Any], table: Table, findings: _Findings) -> list[tuple[Place, dict[str, Any]]]:
    """The occurrences of `table` and where they stand."""
    found = document.get(table.name, [] if table.many else None)
    if not table.many:
        if found is None or isinstance(found, dict):
            return [((table.name,), found)] if found is not None else []
    elif isinstance(found, list) and all(isinstance(element, dict) for element in found):
        return [((table.name, index), element) for index, element in enumerate(found)]
    findings.wrong(
        (table.name,), f"must be written {'[[' if table.many else '['}{table.name}{']]' if table.many else ']'}"
    )
    return []


def _values(table: Table, place: Place, content: dict[str, Any], findings: _Findings) -> dict[str, Any]:
    """The fields that `content` gives rightly; everything else becomes a finding."""
    keys = {key.name: key for key in table.keys}
    values: dict[str, Any] = {}
    for name, raw in content.items():
        if name not in keys:
            findings.wrong((*place, name), "unknown key" + _did_you_mean(name, list(keys)))
        else:
            values |= _value(keys[name], (*place, name), raw, findings)
    for key in table.required():
        if key.name not in content:
            findings.wrong((*place, key.name), "is missing")
    return values


def _value(key: Key, place: Place, raw: object, findings: _Findings) -> dict[str, Any]:
    """{field: value}, or nothing when `raw` is wrong."""
    try:
        if not key.each:
            return {key.field: key.read(raw)}
    except ValueError as error:
        findings.wrong(place, str(error))
        return {}
    if not isinstance(raw, list):
        findings.wrong(place, 'must be an array, like ["…", "…"]')
        return {}
    if len(raw) > MAX_ELEMENTS:
        findings.wrong(place, f"has {len(raw)} elements, {MAX_ELEMENTS} at most are possible")
        return {}
    elements = []
    for index, element in enumerate(raw):
        try:
            elements.append(key.read(element))
        except ValueError as error:
            findings.wrong((*place, index), str(error))
    return {key.field: tuple(elements)} if len(elements) == len(raw) else {}


def _did_you_mean(name: str, known: list[str]) -> str:
    close = get_close_matches(name, known, n=1)
    return f'; did you mean "{close[0]}"?' if close else f"; known are {', '.join(known)}"


def _config(path: Path, sections: list[rules.Section]) -> Config:
    """The sections as values; called only when nothing is wrong with them."""
    built: dict[str, list[Any]] = {table.name: [] for table in TABLES}
    levels = rules.levels(sections)
    for table in TABLES:
        for section in sections:
            if section.table == table.name:
                level = levels.get(section.values.get("level", ""), {})
                built[table.name].append(table.value(**level | rules.completed(section)))
    return Config(
        file=path,
        node=built["node"][0],
        listen=built["listen"][0] if built["listen"] else None,
        clients=tuple(built["client"]),
        viewers=tuple(built["viewer"]),
        retentions=tuple(built["retention"]),
        replicas=tuple(built["replica"]),
        levels=tuple(built["level"]),
        datasets=tuple(built["dataset"]),
    )
