"""The alert rules: each fires when it should, not before, and leads to a section of the runbook."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from replicad.cli.app import VERBS
from replicad.http.metrics import FAMILIES
from replicad.link.messages import REFUSALS
from replicad.model import errors

ROOT = Path(__file__).parents[1]
RULES = (ROOT / "replicad/monitoring/alerts.yml").read_text()
TEST_FILES = ("tests/alerts_test.yml", "tests/alerts_long_test.yml")
TESTS = "\n".join((ROOT / file).read_text() for file in TEST_FILES)
RUNBOOK = (ROOT / "docs/RUNBOOK.md").read_text()
ALERTS = re.findall(r"- alert: (\w+)", RULES)


def test_promtool_accepts_the_rules() -> None:
    """The file is one that Prometheus loads."""
    _promtool("check", "rules", "replicad/monitoring/alerts.yml")


def test_each_alert_fires_when_it_should() -> None:
    """promtool plays time series through the rules; every test says exactly which alerts fire at a moment."""
    _promtool("test", "rules", *TEST_FILES)


def test_each_alert_is_tested() -> None:
    """No rule is without a test in which it fires, and the tests know no other."""
    assert set(re.findall(r'alertname="(\w+)"', TESTS)) == set(ALERTS)
    assert len(set(ALERTS)) == len(ALERTS)


def test_rules_use_metrics_that_exist() -> None:
    """Every metric in a rule and in its test is one that the daemon exposes."""
    exposed = {family.name for family in FAMILIES}
    expressions = "\n".join(re.findall(r"expr: (?:>-\n)?((?:.+\n)(?: {10}\w.*\n)*)", RULES))
    used = set(re.findall(r"\b(replicad_\w+)", expressions))
    assert used and used <= exposed
    assert set(re.findall(r"series: '(replicad_\w+)", TESTS)) <= exposed


def test_each_alert_says_what_to_do() -> None:
    """Every alert has a severity, a summary, a description and a link to its section of the runbook."""
    for rule in RULES.split("- alert: ")[1:]:
        name = rule.split("\n", 1)[0]
        assert re.search(r"labels: \{severity: (page|ticket)\}", rule), name
        assert "summary:" in rule and "description:" in rule, name
        assert f"runbook: docs/RUNBOOK.md#{name.lower()}\n" in rule + "\n", name
        assert f"\n### {name}\n" in RUNBOOK, name


def test_each_alert_section_says_what_is_safe() -> None:
    """A section of the runbook answers all three questions."""
    for name in ALERTS:
        section = RUNBOOK.split(f"\n### {name}\n")[1].split("\n#")[0]
        assert all(f"**{question}:**" in section for question in ("Broken", "Safe", "Type")), name


def test_the_runbook_knows_every_refusal_and_error() -> None:
    """Each code that a replica refuses with and each class of error has its row."""
    for code in REFUSALS:
        assert f"\n| `{code}` |" in RUNBOOK, code
    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.ReplicadError)]
    for error in classes:
        if error is not errors.ReplicadError:
            assert f"\n| {error.__name__} | {error.exit_code} |" in RUNBOOK, error


def test_the_runbook_types_what_exists() -> None:
    """Every command that it tells to type is one that replicad has, and every link leads somewhere."""
    verbs = {verb.name for verb in VERBS}
    assert set(re.findall(r"`replicad ([a-z-]+)", RUNBOOK)) <= verbs
    anchors = {_anchor(title) for title in re.findall(r"^#+ (.+)$", RUNBOOK, re.MULTILINE)}
    assert set(re.findall(r"\]\(#([^)]+)\)", RUNBOOK)) <= anchors


def _anchor(title: str) -> str:
    """A heading's anchor as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def _promtool(*words: str) -> None:
    result = subprocess.run(["promtool", *words], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stdout + result.stderr
