"""`replicad policy`: whether what is demanded of each dataset holds, objective by objective, with the evidence.

The daemon's status has the facts; the judgement is the one that the metrics give too (model/policy.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from replicad.cli import offered, output
from replicad.cli.control import state_of
from replicad.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption, note_config
from replicad.http.api import Client
from replicad.model.errors import UsageError
from replicad.model.policy import Grade, Judgement, Result, worst
from replicad.work.policy_facts import judgements

EXIT_CODES = {Grade.PASS: 0, Grade.FAIL: 1, Grade.UNKNOWN: 3}
_STYLES: dict[Grade, output.Style] = {Grade.PASS: "ok", Grade.UNKNOWN: "warn", Grade.FAIL: "bad"}
_NEXT = {
    "rpo": "replicad sync {0} --wait",
    "rto": "replicad drill history {0}",
    "scrub_every": "replicad scrub status {0}",
    "drill_every": "replicad drill run {0}",
    "copies": "replicad status, replicad divergence list",
    "sites": "[node] and [[replica]] site in the configuration",
    "min_distance": "[node] and [[replica]] coordinates in the configuration",
    "keep_younger_than": "[[retention]] on the replica: docs/RETENTION.md",
    "keep_at_least": "[[retention]] on the replica: docs/RETENTION.md",
}
"""What to type, or where to look, when an objective does not pass."""

DatasetsArgument = Annotated[
    list[str] | None, typer.Argument(metavar="[DATASET]...", help="All when left out.", autocompletion=offered.own)
]


def policy(
    datasets: DatasetsArgument = None,
    config: ConfigOption = DEFAULT_CONFIG,
    json: JsonOption = False,
) -> None:
    """Show for each objective of each dataset whether it holds: PASS, FAIL, or UNKNOWN where it could not be found out.

    Exit codes: 0 every objective passes, 1 one fails, 2 there is no such dataset, 3 the daemon is out of reach, or
    something could not be found out and nothing fails.
    """
    found = chosen(judgements(Client(state_of(config)).status()), datasets or ())
    if json:
        output.json_document({"datasets": found})
    else:
        for one in found:
            _show(one)
        if any(one.grade is not Grade.PASS for one in found):
            note_config(config)
    if code := EXIT_CODES[worst(one.grade for one in found)]:
        raise typer.Exit(code)


def chosen(found: Sequence[Judgement], names: Sequence[str]) -> list[Judgement]:
    """Those of these names, or all. Raises UsageError for a name that is not there, and when there is no dataset."""
    known = [one.dataset for one in found]
    unknown = [name for name in names if name not in known]
    if unknown or not found:
        what = f"there is no dataset {unknown[0]!r} here" if unknown else "this node has no dataset"
        raise UsageError(what, hint=f"configured: {', '.join(known) or 'none; type it on the primary'}")
    return [one for one in found if not names or one.dataset in names]


def _show(one: Judgement) -> None:
    level = f" ({one.level})" if one.level else ""
    output.line(f"{one.dataset}{level}: {_mark(one.grade)}")
    for result in one.results:
        first, *more = output.wrapped(" " * 37, result.evidence, " " * 37)
        head = f"  {result.objective:<17} {result.target:<8} "
        output.line(head + _mark(result.grade) + " " * (8 - len(result.grade)) + first.lstrip())
        for text in more:
            output.line(text)
    for step, objectives in _next_steps(one.dataset, one.results).items():
        output.line(f"  next, for {', '.join(objectives)}: {step}")


def _next_steps(dataset: str, results: Sequence[Result]) -> dict[str, list[str]]:
    """What to type, and for which objectives."""
    steps: dict[str, list[str]] = {}
    for result in results:
        if result.grade is not Grade.PASS:
            steps.setdefault(_NEXT[result.objective].format(dataset), []).append(result.objective)
    return steps


def _mark(grade: Grade) -> str:
    return output.mark(grade.upper(), _STYLES[grade])
