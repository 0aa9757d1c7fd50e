"""`replicad gate` against a daemon that only says: exit codes, reasons, and the patience of --wait."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit_daemon import NOW_NS, FakeDaemon, Served, a_dataset, a_drill, a_node, a_scrub
from replicad.cli import gate as cli
from replicad.cli.app import main
from replicad.http.contract import CONTROL_SOCKET, GateRequest, gate_query, parse_gate_untrusted
from replicad.model.errors import UsageError
from replicad.model.gate import Check, Judged

WELL = [Check(name, True, "as it should be") for name in ("fresh", "verified", "drilled", "undisputed")]
SHUT = {
    "fresh": Check("fresh", False, "too old", "sync"),
    "verified": Check("verified", False, "never", "scrub"),
    "drilled": Check("drilled", False, "never", "drill"),
    "undisputed": Check("undisputed", False, "2 are open"),
}


def copy(*missing: str, replica: str = "fra1", **more: str) -> Judged:
    """A copy before the gate, of which these checks do not hold."""
    checks = [SHUT[check.name] if check.name in missing else check for check in WELL]
    return Judged("www", replica, snapshot=41, checks=checks, **more)  # type: ignore[arg-type]


def daemon(*copies: Judged) -> FakeDaemon:
    """A primary with these copies before its gate."""
    parts = (a_dataset(), a_scrub(), a_scrub(side="replica", peer="fra1"), a_drill())
    fake = FakeDaemon(a_node(*parts))
    fake.copies = list(copies)
    return fake


def typed(fake: FakeDaemon, tmp_path: Path, *words: str) -> int:
    """`replicad gate` asked of this daemon."""
    with Served(fake, tmp_path) as served:
        return main(["gate", *words, "--config", str(served.config())])


@pytest.mark.parametrize(
    ("copies", "code", "words"),
    [
        ([copy()], 0, "The gate is open: it is safe to begin."),
        ([copy("drilled")], 1, "next: replicad gate www --wait 30m"),
        ([copy("undisputed")], 1, "next: replicad divergence list"),
        ([Judged("www", "fra1", unknown="fra1: no route to host")], 3, "next: on fra1: systemctl status replicad"),
        ([copy(), Judged("www", "osl1", unknown="silent")], 3, "The gate is SHUT: do not begin."),
        ([copy("fresh"), Judged("www", "osl1", unknown="silent")], 1, "answer      NO  silent"),
        ([copy(pin_problem="the name is taken")], 1, "is not kept: the name is taken"),
        ([copy(pinned="before-san")], 0, "snapshot 41 is kept as before-san"),
    ],
)  # fmt: skip
def test_the_exit_code_is_the_answer(
    copies: list[Judged], code: int, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """0 only when all copies are well; a known reason is 1, mere silence 3; every reason is printed."""
    fake = daemon(*copies)
    assert typed(fake, tmp_path) == code
    shown = capsys.readouterr().out
    assert words in shown and all(len(line) <= 80 for line in shown.splitlines())
    assert typed(fake, tmp_path, "--json") == code
    document = json.loads(capsys.readouterr().out)
    assert document["open"] is (code == 0) and len(document["copies"]) == len(copies)


def test_no_copy_is_no_safety(tmp_path: Path) -> None:
    """An answer without any copy is not open."""
    assert typed(daemon(), tmp_path) == 1


def test_what_was_typed_reaches_the_daemon(tmp_path: Path) -> None:
    """Names, ages, the pin; with --wait only a pass from now on counts, unless a lag is allowed."""
    fake = daemon(copy())
    words = ("www", "--max-lag", "1h", "--max-scrub-age", "2d", "--max-drill-age", "30d", "--pin", "before-san")
    assert typed(fake, tmp_path, *words) == 0
    assert typed(fake, tmp_path) == 0
    assert typed(fake, tmp_path, "--wait", "1m") == 0
    assert typed(fake, tmp_path, "--wait", "1m", "--max-lag", "5m") == 0
    assert fake.gated == [
        GateRequest(["www"], 3600, 2 * 86400, 30 * 86400, pin="before-san"),
        GateRequest(),
        GateRequest(max_lag_s=0),
        GateRequest(max_lag_s=300),
    ]


@pytest.mark.parametrize(
    "words", [("--wait", "30"), ("--max-lag", "soon"), ("--pin", "a/b"), ("--pin", "-x"), ("--max-drill-age", "-1d")]
)
def test_bad_words_ask_nothing(words: tuple[str, str], tmp_path: Path) -> None:
    """A usage error, exit code 2, before the daemon is asked."""
    fake = daemon(copy())
    assert typed(fake, tmp_path, *words) == 2 and not fake.gated


def test_an_unknown_dataset_is_a_usage_error(tmp_path: Path) -> None:
    """What the daemon refuses by name is exit code 2; a daemon that is not there 3."""
    fake = daemon(copy())
    fake.refusal = UsageError("there is no dataset 'nope' here")
    assert typed(fake, tmp_path, "nope") == 2
    config = tmp_path / "dead.toml"
    config.write_text(f'[node]\nname = "ams1"\nstate = "{tmp_path / "nowhere"}"\n')
    assert main(["gate", "--config", str(config)]) == 3


# ----------------------------------------------------------------------------------------------------------- waiting


@pytest.fixture
def in_haste(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody rests between two looks."""
    monkeypatch.setattr(cli, "ASK_AGAIN_S", 0.0)


def helped(fake: FakeDaemon, by: str, still: list[str]) -> Callable[[], None]:
    """What happens when the daemon is asked for a remedy: that check holds from then on."""

    def end() -> None:
        if by in still:
            still.remove(by)
        fake.copies = [copy(*still)]
        fake.node.datasets[0].pass_served = fake.node.datasets[0].pass_requested
        for line in (*fake.node.scrubs, *fake.node.drills):
            line.served = line.requested

    return end


@pytest.mark.usefixtures("in_haste")
def test_waiting_does_what_helps_and_no_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A pass, scrubs of both sides and then a drill are asked for, each once, and the same moment is kept to."""
    still = ["fresh", "verified", "drilled"]
    fake = daemon(copy(*still))
    fake.on_sync, fake.on_scrub = helped(fake, "fresh", still), helped(fake, "verified", still)
    fake.on_drill = helped(fake, "drilled", still)
    assert typed(fake, tmp_path, "www", "--wait", "1m", "--pin", "before-san") == 0
    asked = [what for what in fake.asked if what != "gate"]
    assert asked == ["start www replica 0", "start www primary 0", "sync www", "drill www"]
    assert {one.asked_ns for one in fake.gated[1:]} == {NOW_NS}, "what is fresh is judged by when it was asked first"
    assert "waiting for www on fra1: fresh, verified, drilled" in capsys.readouterr().err


@pytest.mark.usefixtures("in_haste")
def test_nothing_is_asked_for_twice_while_it_is_under_way(tmp_path: Path) -> None:
    """A pass that runs is waited for; the time over, the gate is still shut, and what is missing is said."""
    fake = daemon(copy("fresh"))
    assert typed(fake, tmp_path, "--wait", "300ms") == 1
    assert fake.asked.count("sync www") == 1 and len(fake.gated) > 2


@pytest.mark.usefixtures("in_haste")
def test_what_cannot_be_asked_for_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A remedy that the daemon refuses stands among the reasons."""
    fake = daemon(copy("drilled"))

    def refuse() -> None:
        raise UsageError("no drill_scratch is set", where="www")

    fake.on_drill = refuse
    assert typed(fake, tmp_path, "--wait", "200ms") == 1
    shown = capsys.readouterr().out
    assert "tried       NO  www: drill: " in shown and "no drill_scratch is set" in shown
    assert "SHUT after waiting 200ms" in shown


@pytest.mark.usefixtures("in_haste")
def test_waiting_ends_where_only_a_person_can_help(tmp_path: Path) -> None:
    """An open divergence is waited for (a repair may settle it) and nothing is asked for; a pin that is refused is not
    waited for."""
    fake = daemon(copy("undisputed"))
    assert typed(fake, tmp_path, "--wait", "200ms") == 1
    assert set(fake.asked) == {"gate"}
    fake = daemon(copy(pin_problem="the name is taken"))
    assert typed(fake, tmp_path, "--wait", "1h", "--pin", "x") == 1


# -------------------------------------------------------------------------------------------------------- the socket

AGES = st.none() | st.integers(0, 10**9).map(lambda ms: ms / 1000)
NAMES = st.lists(st.sampled_from(["www", "db", "größe"]), max_size=3)


@given(st.builds(GateRequest, NAMES, AGES, AGES, AGES, st.integers(0, 2**62), st.sampled_from(["", "before-san"])))
def test_a_request_survives_its_notation(asked: GateRequest) -> None:
    """What the command asks is what the daemon is asked."""
    assert parse_gate_untrusted(gate_query(asked)) == asked


@given(st.lists(st.tuples(st.sampled_from(["dataset", "max_lag_s", "pin", "asked_ns", "x"]), st.text(max_size=8))))
def test_any_query_is_a_request_or_a_value_error(query: list[tuple[str, str]]) -> None:
    """Nothing else comes of what somebody sends."""
    try:
        asked = parse_gate_untrusted(query)
    except ValueError:
        return
    assert asked.max_lag_s is None or 0 <= asked.max_lag_s < float("inf")


@pytest.mark.parametrize("query", ["max_lag_s=x", "max_lag_s=-1", "max_lag_s=nan", "pin=a&pin=b", "colour=blue"])
def test_a_query_that_is_none_is_refused(query: str, tmp_path: Path) -> None:
    """Over the socket as well: a refusal in words, and the daemon is not asked."""
    fake = daemon(copy())
    with Served(fake, tmp_path), socket.socket(socket.AF_UNIX) as stream:
        stream.connect(str(tmp_path / CONTROL_SOCKET))
        stream.sendall(f"POST /gate?{query} HTTP/1.0\r\nHost: replicad\r\nContent-Length: 0\r\n\r\n".encode())
        answer = b"".join(iter(lambda: stream.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.0 400 ") and b'"error":"POST /gate: ' in answer and not fake.gated
