"""Report page: a report as HTML or Markdown. Sole owner of jinja2; the words and their order stand in the templates.

Everything that is put into a page is hostile until it is escaped: names of files are bytes that somebody chose. HTML is
escaped by the template library, always; Markdown by `_marked_down`. Control characters, and those that turn the
direction of text, are shown as "?" in both. The page loads nothing, and its own policy forbids it to.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from replicad.cli.output import show_bytes, show_rate
from replicad.model.coverage import day_of
from replicad.model.report import Report, Subject
from replicad.model.show import counted, short_duration
from replicad.model.sshsig import NAMESPACE
from replicad.model.when import show_time
from replicad.status import printable

HERE = Path(__file__).parent
WORDS = {"yes": "Yes", "unproven": "Not proven", "unknown": "Not known", "no": "No"}
GRADES = {"pass": "met", "fail": "not met", "unknown": "not known"}
_SPECIAL = re.compile(r"([\\`*_{}\[\]()#+!|<>~&$])")


def as_html(report: Report) -> bytes:
    """The page. Raises UsageError when what draws its pictures is not installed."""
    shown = _environment(autoescape=True, finalize=_printable)
    pictures = _pictures(report)
    css = Markup((HERE / "report.css").read_text())  # our own file, and no element can be closed by it
    return shown.get_template("report.html.jinja").render(report=report, pictures=pictures, css=css).encode()


def as_markdown(report: Report) -> bytes:
    """The same without pictures, readable as it is."""
    shown = _environment(autoescape=False, finalize=_marked_down)
    return shown.get_template("report.md.jinja").render(report=report).encode()


def _environment(*, autoescape: bool, finalize: Callable[[Any], Any]) -> Environment:
    made = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=autoescape,
        finalize=finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= {
        "time": lambda at_ns: show_time(at_ns) if at_ns else "never",
        "brief": lambda at_ns: show_time(at_ns).replace("T", " ") if at_ns else "never",
        "size": show_bytes,
        "rate": show_rate,
        "duration": lambda seconds: short_duration(seconds) if seconds else "none",
        "number": lambda count: f"{count:,}",
        "counted": counted,
        "share": lambda part, whole: f"{100 * part / whole:.2f} %" if whole else "–",
    }
    made.globals |= {"words": WORDS, "grades": GRADES, "namespace": NAMESPACE, "age": _age}
    return made


def _printable(value: Any) -> Any:
    """Text without control characters; what is marked as safe is ours."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _marked_down(value: Any) -> Any:
    """Text that Markdown takes for text; what is marked as safe was made of such."""
    plain = isinstance(value, str) and not isinstance(value, Markup)
    return _SPECIAL.sub(r"\\\1", printable(value)) if plain else value


def _age(now_ns: int, at_ns: int) -> str:
    """How long ago a moment was, in words."""
    return f"{short_duration(max(0, now_ns - at_ns) / 1e9)} ago" if at_ns else "never"


# --------------------------------------------------------------------------------------------------------- pictures


def _pictures(report: Report) -> dict[str, dict[str, Any]]:
    """By the number of the subject: its pictures, drawn by us and escaped by what draws them."""
    last = day_of(report.generated_ns)
    first = last - report.period_days + 1
    return {str(number): _pictures_of(one, number, first, last) for number, one in enumerate(report.subjects)}


def _pictures_of(subject: Subject, number: int, first: int, last: int) -> dict[str, Any]:
    from replicad.cli import report_pictures  # slow to import, and an extra

    prefix, mapped = f"p{number}", [side for side in subject.sides if side.map and side.map.cells]
    return {
        "coverage": _drawn(report_pictures.coverage(subject.sides, first, last, f"{prefix}c")),
        "map": _drawn(report_pictures.age_maps(mapped, f"{prefix}m")) if mapped else "",
        "drills": [
            _drawn(report_pictures.recovery(one, f"{prefix}d{place}")) if one.records else ""
            for place, one in enumerate(subject.drills)
        ],
    }


def _drawn(svg: str) -> Markup:
    return Markup(svg)
