"""The documents tell the truth: what can be typed is typed, what is named exists, what is linked is there."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

from kit_daemon import a_dataset, a_node
from kit_pair import free_port, replicad
from replicad.cli.app import VERBS
from replicad.cli.status import render
from replicad.config.schema import TABLES
from replicad.http.metrics import FAMILIES
from replicad.status import findings
from replicad.work.survey import Survey

PROJECT = Path(__file__).parent.parent
README = PROJECT / "README.md"
DOCUMENTS = sorted([*PROJECT.glob("*.md"), *PROJECT.glob("docs/*.md")])
PORTS = ("7022", "9817", "9818")
"""Ports in the try-out, which may be taken on the machine that runs the tests."""
END_OF_BLOCK = "-- end of a block --"
BLOCK = re.compile(r"<!-- (try-out|prints) -->\n```(?:sh|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ids = [str(path.relative_to(PROJECT)) for path in DOCUMENTS]


def shape(text: str) -> list[str]:
    """Lines without what differs from run to run: numbers, sizes, times, places."""
    text = re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", "TIME", text)
    text = re.sub(r"/tmp/[\w./-]*?/(?=rescued|store)", "/PLACE/", text)
    text = re.sub(r"\b\d[\d,.]*[dhms]( \d+[dhms])?\b", "SPAN", text)
    text = re.sub(r"\b\d[\d,.]*( (B|KiB|MiB|GiB))?(?=\W)", "N", text)
    text = re.sub(r"\bN files?\b", "N files", text)
    text = re.sub(r"^(  verified    (here|replica):) .*$", r"\1 STATE", text, flags=re.MULTILINE)
    text = re.sub(r"(www -> fra1): (idle|survey|copying|committing)$", r"\1: STATE", text, flags=re.MULTILINE)
    return [re.sub(" +", " ", line).rstrip() for line in text.splitlines()]


def test_the_try_out_runs_and_prints_what_the_readme_shows(tmp_path: Path) -> None:
    """The blocks of README's try-out, pasted one after the other into a shell."""
    blocks: list[tuple[str, str]] = BLOCK.findall(README.read_text())
    commands = [text for kind, text in blocks if kind == "try-out"]
    script = f"echo '{END_OF_BLOCK}'\n".join(commands)
    for port in PORTS:
        assert port in script
        script = script.replace(port, str(free_port()))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    # A session of its own, so that nothing that a failed try-out started stays behind.
    with subprocess.Popen(
        ["bash", "-eu", "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PATH": path, "TMPDIR": str(tmp_path)},
        start_new_session=True,
    ) as shell:
        try:
            printed, remarks = shell.communicate(timeout=150)
        finally:
            if shell.poll() != 0:
                os.killpg(shell.pid, signal.SIGKILL)
    assert shell.returncode == 0, printed + remarks
    assert list(tmp_path.iterdir()) == [], "the try-out leaves nothing behind"
    parts = iter(printed.split(f"{END_OF_BLOCK}\n"))
    for kind, text in blocks:
        if kind == "try-out":
            part = next(parts)
        else:
            assert shape(part.replace(str(tmp_path), "/tmp")) == shape(text)


def test_a_held_dataset_looks_as_the_readme_shows() -> None:
    """The example of a status with something wrong is what the command would print."""
    reason = Survey(drops=3041, known=5645).held_because(0.5)
    now = a_node(a_dataset(held=True, reason=reason, state="held"))
    lines = render(now, findings(now))
    example = "\n".join(lines[1:4])
    assert example in README.read_text(), example


def test_the_readme_names_every_verb() -> None:
    """Its table and `replicad --help` have the same verbs."""
    named = set(re.findall(r"^\| .*`replicad ([a-z-]+)", README.read_text(), re.MULTILINE))
    told = re.findall(r"^  ([a-z][a-z-]+)  ", replicad("--help").stdout.partition("Commands:")[2], re.MULTILINE)
    assert named == set(told) == {verb.name for verb in VERBS}


def test_the_readme_lists_every_document() -> None:
    """Its table of documents leaves none out."""
    listed = re.findall(r"^\| \[([\w./-]+)\]", README.read_text().partition("## Documents")[2], re.MULTILINE)
    assert {*map(str, (path.relative_to(PROJECT) for path in DOCUMENTS))} - {"README.md"} <= set(listed)


@pytest.mark.parametrize("document", DOCUMENTS, ids=ids)
def test_verbs_and_options_in_documents_exist(document: Path) -> None:
    """Whatever a document tells to type can be typed, with all that it needs."""
    for words in commands(document.read_text()):
        if words[0].startswith("-"):
            continue
        assert words[0] in {verb.name for verb in VERBS}, words
        options = {word for word in words if re.fullmatch("--[a-z-]+", word)}
        if len(words) > 1 and "|" not in words[1]:
            has_verbs = "COMMAND [ARGS]" in help_of(words[0])
            name = words[:2] if has_verbs else words[:1]
            told = help_of(*name)
            assert options - set(re.findall("--[a-z-]+", told)) == set(), words
            if len(words) > len(name):  # a command, and not the name of a verb alone
                needed = re.findall(r"^  (--[a-z-]+) .*(?:\n   .*)*\[required\]", told, re.MULTILINE)
                assert set(needed) <= options, words


@cache
def help_of(*words: str) -> str:
    """What a verb says of itself."""
    return replicad(*words, "--help").stdout


def commands(text: str) -> list[list[str]]:
    """The words behind `replicad` in each command of a document."""
    fenced = "\n".join(re.findall(r"^```(?:sh)?\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)).replace("\\\n", " ")
    found = re.findall(r"`replicad ([^`\n]+)`", text) + re.findall(
        r"(?:^|[(/ ])replicad ([a-z].*)", fenced, re.MULTILINE
    )
    return [words.split() for words in found]


@pytest.mark.parametrize("document", DOCUMENTS, ids=ids)
def test_keys_in_documents_exist(document: Path) -> None:
    """A key in the text (`dataset.rpo`) or in an example in TOML is one of the schema."""
    schema = {table.name: {key.name for key in table.keys} for table in TABLES}
    text = document.read_text()
    for table, key in re.findall(rf"`({'|'.join(schema)})\.([a-z_]+)\b", text):
        assert key in schema[table], f"{table}.{key}"
    for example in re.findall(r"^```toml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        for name, tables in tomllib.loads(example).items():
            for table in tables if isinstance(tables, list) else [tables]:
                assert set(table) <= schema[name]


@pytest.mark.parametrize("document", DOCUMENTS, ids=ids)
def test_links_lead_somewhere(document: Path) -> None:
    """Relative links name files that exist, and headings in them."""
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), link
        if anchor:
            assert anchor in headings(target), link


def headings(document: Path) -> set[str]:
    """Anchors of a document's headings, as GitHub and GitLab make them."""
    titles = re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS, ids=ids)
def test_tests_and_files_in_documents_exist(document: Path) -> None:
    """A test or a source file that a document names is there."""
    text = document.read_text()
    tests = "\n".join(path.read_text() for path in (PROJECT / "tests").glob("*.py"))
    for name in re.findall(r"`(test_\w+)`", text):
        assert f"def {name}(" in tests or (PROJECT / "tests" / f"{name}.py").exists(), name
    for name in re.findall(r"`((?:replicad|tests|systemd|docs)/[\w./-]+)`", text):
        assert (PROJECT / name).exists(), name
    for name in re.findall(r"`((?:cli|config|model|source|link|store|db|work|http|system)/\w+\.py)`", text):
        assert (PROJECT / "replicad" / name).exists(), name


@pytest.mark.parametrize("document", DOCUMENTS, ids=ids)
def test_metrics_in_documents_exist(document: Path) -> None:
    """A metric that a document names is one that the daemon tells."""
    names = {family.name for family in FAMILIES}
    for name in re.findall(r"`(replicad_\w+)", document.read_text()):
        assert name in names, name


def test_the_map_of_the_source_is_complete() -> None:
    """Every package and every document has its line."""
    text = README.read_text()
    packages = {f"`replicad/{path.parent.name}/`" for path in (PROJECT / "replicad").glob("*/__init__.py")}
    assert packages - set(re.findall(r"^\| (`replicad/\w+/`)", text, re.MULTILINE)) == set()
    assert [path.name for path in DOCUMENTS if path != README and f"]({path.relative_to(PROJECT)})" not in text] == []
