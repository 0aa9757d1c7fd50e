"""`replicad report`: of a real pair, from real books, checked with the tools that an auditor has."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from kit_drill import scratch_of
from kit_pair import Pair, make_pair, replicad, running, wait_until
from kit_report import a_dataset, a_hostile_report, a_report, a_store
from kit_store import flip
from replicad.cli.report_page import as_html
from replicad.db.findings import Findings
from replicad.model.divergence import Side
from replicad.model.report import Report

NAME = b"dir/\xff<img src=x onerror=alert(1)>.bin"
DOCUMENT = (Path(__file__).parent.parent / "docs" / "REPORT.md").read_text()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """A pair that has replicated, scrubbed both sides, and drilled everything."""
    directory = tmp_path_factory.mktemp("report")
    root = directory / "srv"
    (root / "dir").mkdir(parents=True)
    (root / "big.bin").write_bytes(random.Random(1).randbytes(2_000_000))
    with open(bytes(root) + b"/" + NAME, "wb") as file:
        file.write(b"x" * 70_000)
    scratch_of(directory).mkdir()
    lines = f'drill_scratch = "{scratch_of(directory)}"\nscrub_duty = 1.0\ntend_every = "1s"'
    with running(make_pair(directory / "pair", root, dataset_options=lines)) as made:
        made.sync()
        for node in (made.primary, made.replica):
            replicad("scrub", "start", "--wait", "--config", node.config)
        replicad("drill", "run", "--full", "--config", made.primary.config)
        replicad("pin", "add", "before-upgrade", "www", "--reason", "ticket <4711>", "--config", made.replica.config)
        wait_until(lambda: told(made), "the replica has told how its side stands")
        yield made


def told(pair: Pair) -> bool:
    """Whether the primary knows the replica's side, verified, with a map."""
    line = next(one for one in pair.primary.status().scrubs if one.side == "replica")
    with closing(Findings(pair.primary.state / "findings" / "www.db", readonly=True)) as book:
        found = book.coverage.map(Side.REPLICA, "fra1")
    return bool(line.total_bytes and line.oldest_verified_ns and found and found.total_bytes and line.structure_ns)


def report(config: Path, *words: object, code: int | None = 0) -> dict[str, Any]:
    """The report as JSON."""
    found: dict[str, Any] = json.loads(replicad("report", "--json", "--config", config, *words, code=code).stdout)
    return found


def verify(page: Path, signers: Path, who: str = "ams1") -> subprocess.CompletedProcess[str]:
    """What an auditor types."""
    command = ["ssh-keygen", "-Y", "verify", "-f", signers, "-I", who, "-n", "replicad-report", "-s", f"{page}.sig"]
    with page.open("rb") as file:
        return subprocess.run(command, stdin=file, capture_output=True, text=True, check=False)


def signers_of(pair: Pair, directory: Path) -> Path:
    """The file of known signers, with the key that the replica has configured for the primary."""
    key = re.search(r'key = "(ssh-ed25519 [^"]+)"', pair.replica.config.read_text())
    assert key
    file = directory / "signers"
    file.write_text(f"ams1 {key[1]}\n")
    return file


# ------------------------------------------------------------------------------------------------------------ facts


def test_a_pair_that_is_well_is_recoverable(pair: Pair) -> None:
    """The primary's report says yes, by a complete copy, both sides verified with days and maps, and a drill."""
    found = report(pair.primary.config)
    assert (found["answer"], found["is_live"], found["unknowns"]) == ("yes", True, [])
    assert found["headline"].startswith("Yes: everything in 1 dataset can be recovered")
    (dataset,) = found["subjects"]
    (replica,) = dataset["replicas"]
    assert replica["snapshots"]["complete"] >= 1 and replica["last_complete_ns"]
    assert [(side["side"], side["peer"]) for side in dataset["sides"]] == [("primary", ""), ("replica", "fra1")]
    for side in dataset["sides"]:
        assert side["days"] and side["total_bytes"] and side["overdue_bytes"] == 0
        assert sum(cell[0] for cell in side["map"]["cells"]) == side["map"]["total_bytes"] > 0
    (drills,) = dataset["drills"]
    assert {record["outcome"] for record in drills["records"]} == {"proven"}
    assert {one["grade"] for one in dataset["policy"]} == {"pass"}


def test_a_replica_reports_what_it_keeps(pair: Pair) -> None:
    """Its report is about the store: snapshots, its own side, retention, pins, and what it was told of drills."""
    wait_until(lambda: report(pair.replica.config, code=None)["subjects"][0]["told_outcome"], "the drill was told")
    found = report(pair.replica.config)
    (store,) = found["subjects"]
    assert (found["answer"], store["kind"], store["name"], store["told_outcome"]) == (
        "yes",
        "store",
        "ams1/www",
        "proven",
    )
    assert store["snapshots"]["count"] >= 1
    assert [pin["name"] for pin in store["retention"]["pins"]] == ["before-upgrade"]
    (side,) = store["sides"]
    assert side["days"] and side["map"]["cells"]


def test_damage_is_told_and_what_came_of_it(pair: Pair) -> None:
    """A block that rots in the store is a divergence of the report, and stands there with its receipt once repaired."""
    segment = sorted((pair.store / "ams1/www/segments").iterdir())[0]
    flip(segment, 30_000)
    replicad("scrub", "start", "--wait", "--config", pair.replica.config, code=None)

    def settled() -> bool:
        return bool(report(pair.replica.config, code=None)["subjects"][0]["divergences"]["settled_count"])

    wait_until(settled, "the block is repaired")
    (store,) = report(pair.replica.config, code=None)["subjects"]
    (case,) = store["divergences"]["settled"]
    assert (case["verdict"], case["state"], case["lost"]) == ("replica_rot", "repaired", False)
    assert "repaired" in case["repairs"][0]
    assert store["divergences"]["repair_totals"] == {"repaired": 1}


def test_one_dataset_can_be_chosen_and_none_that_is_not_there(pair: Pair) -> None:
    """A name that is not here is a usage error that lists what is."""
    assert len(report(pair.primary.config, "www", code=None)["subjects"]) == 1
    said = replicad("report", "mail", "--config", pair.primary.config, code=2)
    assert "www" in said.stderr
    assert not said.stdout


def test_every_key_is_documented(pair: Pair) -> None:
    """Each key of the JSON document stands in docs/REPORT.md."""
    keys: set[str] = set()

    def collect(value: object, inside: str = "") -> None:
        if isinstance(value, dict):
            if inside not in ("records", "found_totals", "repair_totals", "reasons_by", "trend"):
                keys.update(value)
            for key, part in value.items():
                collect(part, key)
        elif isinstance(value, list):
            for part in value:
                collect(part, inside)

    collect(report(pair.primary.config, code=None))
    collect({"subjects": report(pair.replica.config, code=None)["subjects"][0]["sides"]})
    missing = sorted(key for key in keys if f"`{key}`" not in DOCUMENT and f"`{key}[]`" not in DOCUMENT)
    assert not missing
    assert set(Report.__struct_fields__) - {"subjects"} <= keys


# -------------------------------------------------------------------------------------------------------- signature


def test_an_auditor_can_check_the_signature_and_a_changed_page_fails(pair: Pair, tmp_path: Path) -> None:
    """ssh-keygen, with the key that the replica has, says good; of a page with one byte changed, or signed by another
    node, it does not."""
    page, signers = tmp_path / "report.html", signers_of(pair, tmp_path)
    replicad("report", "--format", "html", "--output", page, "--config", pair.primary.config, code=None)
    good = verify(page, signers)
    assert good.returncode == 0, good.stderr
    assert 'Good "replicad-report" signature for ams1' in good.stdout
    text = page.read_bytes()
    page.write_bytes(text.replace(b"Yes", b"No!", 1))
    assert verify(page, signers).returncode != 0
    page.write_bytes(text)
    replicad("report", "--format", "html", "--output", tmp_path / "r.html", "--config", pair.replica.config, code=None)
    assert verify(tmp_path / "r.html", signers).returncode != 0
    assert page.stat().st_mode & 0o777 == 0o600


def test_a_signature_is_for_a_report_and_nothing_else(pair: Pair, tmp_path: Path) -> None:
    """The same signature does not verify as one of a file or a commit."""
    page, signers = tmp_path / "report.json", signers_of(pair, tmp_path)
    replicad("report", "--format", "json", "--output", page, "--config", pair.primary.config, code=None)
    assert verify(page, signers).returncode == 0
    command = ["ssh-keygen", "-Y", "verify", "-f", signers, "-I", "ams1", "-n", "file", "-s", f"{page}.sig"]
    with page.open("rb") as file:
        assert subprocess.run(command, stdin=file, capture_output=True, check=False).returncode != 0


def test_no_signature_is_left_beside_a_page_that_is_not_signed(pair: Pair, tmp_path: Path) -> None:
    """Written again without a signature, the page has none beside it."""
    page = tmp_path / "report.md"
    replicad("report", "--output", page, "--config", pair.primary.config, code=None)
    assert (tmp_path / "report.md.sig").exists()
    replicad("report", "--no-sign", "--output", page, "--config", pair.primary.config, code=None)
    assert not (tmp_path / "report.md.sig").exists()
    assert page.read_text().startswith("# Recoverability report of ams1")


def test_where_nothing_can_be_written_one_error_says_so(pair: Pair, tmp_path: Path) -> None:
    """A directory that is not there is named, and no traceback."""
    said = replicad("report", "--output", tmp_path / "no" / "r.md", "--config", pair.primary.config, code=None)
    assert said.returncode in (2, 3)
    assert str(tmp_path / "no") in said.stderr
    assert "Traceback" not in said.stderr


# ---------------------------------------------------------------------------------------------------------- browser

QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-features=NetworkTimeServiceQuerying,OptimizationHints,MediaRouter",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
"""A browser that does nothing by itself."""
ITS_MAKERS = (".google.com", ".googleapis.com", ".gvt1.com")
"""Whom the browser asks about itself, whatever page it shows; no name is resolved, so that none of that leaves."""


@contextmanager
def served(page: bytes) -> Iterator[tuple[str, list[str]]]:
    """The page behind an address of loopback, and what is asked for there."""
    asked: list[str] = []

    class Door(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Door) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/report.html", asked
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("name", ["well", "hostile"])
def test_a_browser_shows_it_without_a_word_and_fetches_nothing(name: str, tmp_path: Path) -> None:
    """Chromium opens the page, asks for nothing but the page, writes nothing to its console, and prints it."""
    assert shutil.which("chromium"), "tests/install-packages installs it"
    log, pdf = tmp_path / "net.json", tmp_path / "page.pdf"
    made = a_hostile_report() if name == "hostile" else a_report(a_dataset(), a_store())
    with served(as_html(made)) as (address, served_paths):
        options = (f"--user-data-dir={tmp_path / 'profile'}", f"--log-net-log={log}", "--enable-logging=stderr")
        done = subprocess.run(
            ["chromium", *QUIET, *options, f"--print-to-pdf={pdf}", address],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
    assert served_paths == ["/report.html"]
    hosts = {urlsplit(url).hostname or "" for url in re.findall(r'"url":"(https?:[^"]+)"', log.read_text())}
    assert [host for host in hosts if not host.endswith(ITS_MAKERS)] == ["127.0.0.1"]
    assert pdf.read_bytes().startswith(b"%PDF")


# -------------------------------------------------------------------------------- what is not there; ends the daemons


def test_with_nobody_to_ask_it_says_what_is_not_known(pair: Pair, tmp_path: Path) -> None:
    """With the replica away, then with the daemon off, then without what it said last, the report comes out, names what
    could not be found out and when it was last known, never says yes, and exits 3 or 1; it is signed as ever."""
    pair.replica.stop()
    wait_until(lambda: not pair.line.link_up, "the link is down")
    away = report(pair.primary.config, code=None)
    assert away["answer"] == "unknown"
    unknown = [one for one in away["subjects"][0]["unknowns"] if one["replica"] == "fra1"]
    assert any("restored" in one["what"] for one in unknown)
    assert away["subjects"][0]["replicas"][0]["snapshots"] is None
    assert away["subjects"][0]["sides"][1]["days"]

    pair.primary.stop()
    page = tmp_path / "report.html"
    said = replicad("report", "--format", "html", "--output", page, "--config", pair.primary.config, code=None)
    assert said.returncode in (1, 3)
    assert "The daemon did not answer." in page.read_text()
    assert verify(page, signers_of(pair, tmp_path)).returncode == 0
    off = report(pair.primary.config, code=None)
    assert (off["answer"], off["is_live"]) == ("unknown", False)
    assert off["unknowns"][0]["known_ns"] == off["status_ns"] > 0
    assert "pass" not in {one["grade"] for one in off["subjects"][0]["policy"]}

    (pair.primary.state / "last-status.json").unlink()
    nothing = replicad("report", "--json", "--config", pair.primary.config, code=3)
    assert json.loads(nothing.stdout)["answer"] == "unknown"
    (pair.primary.state / "findings" / "www.db").write_bytes(b"this is no book" * 1000)
    damaged = report(pair.primary.config, code=None)
    assert any(one["where"] == "findings" for one in damaged["subjects"][0]["unknowns"])
    assert damaged["answer"] == "unknown"
