"""Logs and notifications: what journald, a collector and systemd get to read."""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicad.system import logs
from replicad.system.notify import Notifier


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """No test leaves handlers or levels behind."""
    root = logging.getLogger()
    before = list(root.handlers), root.level
    yield
    logs.configure("warning", "text")
    root.handlers[:], root.level = before


def test_text_is_one_line_with_time_level_part_and_fields(capsys: pytest.CaptureFixture[str]) -> None:
    """Outside the journal a record is TIME LEVEL PART: EVENT KEY=VALUE, with quotes where a reader needs them."""
    logs.configure("info", "text")
    logs.logger("work.replicate").info("pass ended", dataset="www", files=3, why="two words", none="")
    line = capsys.readouterr().err
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ info    work\.replicate: pass ended "
        r'dataset=www files=3 why="two words" none=""\n',
        line,
    )


def test_json_is_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    """As JSON every record is an object with time, level, logger and event; values keep their types."""
    logs.configure("debug", "json")
    logs.logger("link").debug(
        "dialled", replica="fra1", seconds=0.5, path=Path("/x"), name=b"\xff", error=OSError("no")
    )
    record = json.loads(capsys.readouterr().err)
    assert record.pop("time").endswith("Z")
    assert record == {
        "level": "debug",
        "logger": "link",
        "event": "dialled",
        "replica": "fra1",
        "seconds": 0.5,
        "path": "/x",
        "name": "\\xff",
        "error": "no",
    }


@pytest.mark.parametrize("style", ["text", "json"])
def test_levels_below_the_configured_one_are_silent(style: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Only records of the configured level and above come out, of our own loggers and of libraries alike."""
    logs.configure("warning", style)
    for log in (logs.logger("x"), logging.getLogger("library")):
        log.debug("quiet")
        log.info("quiet")
        log.warning("heard")
        log.error("heard")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert all("heard" in line for line in lines)


def test_libraries_that_chat_are_heard_from_warnings_on(capsys: pytest.CaptureFixture[str]) -> None:
    """asyncssh and the access log of the HTTP server say nothing about each connection, even at level debug."""
    logs.configure("debug", "text")
    logging.getLogger("aiohttp.access").info("GET /metrics")
    logging.getLogger("aiohttp.access").warning("odd request")
    [line] = capsys.readouterr().err.splitlines()
    assert line.endswith("warning aiohttp.access: odd request")


def test_records_of_libraries_look_alike(capsys: pytest.CaptureFixture[str]) -> None:
    """A library's record with arguments and an exception comes out as one of ours."""
    logs.configure("info", "json")
    try:
        raise ValueError("boom")
    except ValueError:
        logging.getLogger("lib.part").exception("failed %s times", 3)
    record = json.loads(capsys.readouterr().err)
    assert (record["logger"], record["level"], record["event"]) == ("lib.part", "error", "failed 3 times")
    assert record["exception"].endswith("ValueError: boom")


def test_a_traceback_follows_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    """In text a traceback stands indented under the record; it is for bugs, and complete."""
    logs.configure("info", "text")
    try:
        raise ValueError("boom")
    except ValueError:
        logs.logger("job").exception("step failed", job="scrub")
    first, *rest = capsys.readouterr().err.splitlines()
    assert first.endswith("error   job: step failed job=scrub")
    assert all(line.startswith("    ") for line in rest)
    assert rest[-1] == "    ValueError: boom"


@given(st.text(), st.text() | st.binary())
def test_no_text_forges_a_line(event: str, value: str | bytes) -> None:
    """Whatever a file name or a peer's text holds, a record stays one line of printable characters."""
    record = {"level": "info", "logger": "x", "event": event, "name": value}
    text = logs._with_priority(None, "info", logs._text(None, "info", logs._plain_values(None, "info", record)))
    assert text.endswith("\n")
    assert text[:-1].isprintable()


WRITER = """
import os, sys
status = os.fstat(2)
os.environ["JOURNAL_STREAM"] = sys.argv[1].format(device=status.st_dev, inode=status.st_ino)
from replicad.system import logs
logs.configure("debug", sys.argv[2])
log = logs.logger("x")
log.debug("d"); log.info("i"); log.warning("w"); log.error("e")
try:
    1 / 0
except ZeroDivisionError:
    log.exception("bug")
"""


def written(stream: str, style: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", WRITER, stream, style], stderr=subprocess.PIPE, text=True, check=True, timeout=60
    )
    return done.stderr.splitlines()


def test_under_journald_each_line_has_its_priority_and_no_time() -> None:
    """When stderr is the journal, lines begin with <N>, those of a traceback too, and leave the time to the journal."""
    lines = written("{device}:{inode}", "text")
    assert lines[:4] == ["<7>x: d", "<6>x: i", "<4>x: w", "<3>x: e"]
    assert lines[4] == "<3>x: bug"
    assert len(lines) > 6
    assert all(line.startswith("<3>    ") for line in lines[5:])


def test_json_under_journald_has_priorities_too() -> None:
    """The journal takes the prefix off again: what it keeps is the object."""
    for line in written("{device}:{inode}", "json"):
        assert re.match(r"<[3467]>\{", line)
        json.loads(line[3:])


def test_a_stderr_that_is_not_the_journal_gets_no_priorities() -> None:
    """A child whose stderr was redirected inherits JOURNAL_STREAM, but is not read by the journal."""
    assert all(line[0] == "2" for line in written("8:1234567", "text")[:4])


def test_logs_are_imported_without_their_library() -> None:
    """A verb that logs nothing does not pay for structlog, nor for an event loop."""
    code = "import sys; from replicad.system import logs; logs.configure('info', 'text'); logs.logger('x').debug('no')"
    code += "; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert not {"structlog", "asyncio", "rich"} & set(loaded.stdout.split())


# --------------------------------------------------------------------------------------------------------- systemd


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The service manager's end of the notification socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield manager


def test_systemd_is_told_each_state(systemd: socket.socket) -> None:
    """Ready, reloading with its time, status, watchdog and stopping arrive as sd_notify(3) spells them."""
    notifier = Notifier()
    notifier.ready("2 datasets, größer")
    assert systemd.recv(4096).decode() == "READY=1\nSTATUS=2 datasets, größer"
    before = time.monotonic_ns() // 1000
    notifier.reloading()
    first, second = systemd.recv(4096).decode().splitlines()
    assert first == "RELOADING=1"
    assert before <= int(second.removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000
    notifier.status("copying")
    notifier.watchdog()
    notifier.stopping()
    assert [systemd.recv(4096) for _ in range(3)] == [b"STATUS=copying", b"WATCHDOG=1", b"STOPPING=1"]


def test_a_status_is_one_line(systemd: socket.socket) -> None:
    """No text can smuggle another assignment to systemd."""
    Notifier().status("held:\nREADY=1")
    assert systemd.recv(4096) == b"STATUS=held: READY=1"


def test_without_systemd_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a terminal every notification is a no-op."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notifier = Notifier()
    notifier.ready("x")
    notifier.stopping()
    assert notifier.watchdog_s == 0.0


@pytest.mark.parametrize(
    ("microseconds", "process", "seconds"),
    [
        ("120000000", "own", 60.0),
        ("120000000", None, 60.0),
        ("120000000", "1", 0.0),
        (None, None, 0.0),
        ("x", "own", 0.0),
    ],
)
def test_the_watchdog_is_fed_twice_a_timeout(
    microseconds: str | None, process: str | None, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interval is half of what systemd allows, and nothing in a process that only inherited the variables."""
    for name, value in ("WATCHDOG_USEC", microseconds), ("WATCHDOG_PID", process):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, str(os.getpid()) if value == "own" else value)
    assert Notifier().watchdog_s == seconds
