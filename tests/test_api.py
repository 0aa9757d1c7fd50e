"""The control socket: client and server of the contract on a real unix socket, and every way not to get an answer."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit_daemon import NOW_NS, FakeDaemon, S, Served, a_dataset, a_node, a_scrub, a_store, troubles
from replicad.http import api
from replicad.http.api import Client
from replicad.http.contract import (
    Directed,
    Freed,
    RepairResult,
    RetainResult,
    ScrubRequest,
    SyncRequest,
    has_served,
    parse_scrubbed_untrusted,
    parse_served_untrusted,
    status_query,
)
from replicad.model.errors import HeldError, LinkError, UsageError


def test_status_arrives_whole(tmp_path: Path) -> None:
    """What the client decodes equals what the daemon has, however large."""
    lines = [a_dataset(f"d{number}", unread=500, troubles=troubles(100)) for number in range(100)]
    daemon = FakeDaemon(a_node(*lines, a_store()))
    with Served(daemon, tmp_path):
        assert Client(tmp_path).status() == daemon.node


def test_sync_asks_for_one_or_all(tmp_path: Path) -> None:
    """A pass is asked for by name or for all, and the answer says what to wait for."""
    daemon = FakeDaemon(a_node(a_dataset("www"), a_dataset("www", "lon1"), a_dataset("db")))
    with Served(daemon, tmp_path):
        client = Client(tmp_path)
        assert client.sync("www") == [SyncRequest("www", "fra1", 1), SyncRequest("www", "lon1", 1)]
        assert [request.number for request in client.sync()] == [2, 2, 1]
    assert daemon.asked == ["sync www", "sync None"]


@pytest.mark.parametrize("name", ["nope", "", "a b&dataset=www", "../../etc", "ü\udcff", "x" * 300])
def test_unknown_datasets_are_refused(tmp_path: Path, name: str) -> None:
    """A name that is not configured is a usage error that names those that are, and the daemon is asked nothing."""
    daemon = FakeDaemon(a_node(a_dataset("www"), a_dataset("db")))
    with Served(daemon, tmp_path):
        for ask in (Client(tmp_path).sync, Client(tmp_path).release):
            with pytest.raises(UsageError, match="no dataset") as caught:
                ask(name)
            assert "db, www" in caught.value.hint
            assert caught.value.exit_code == 2
    assert daemon.asked == []


def test_release_says_what_was_held(tmp_path: Path) -> None:
    """Releasing answers with the replicas that were held and why; a second time there is nothing to release."""
    daemon = FakeDaemon(a_node(a_dataset(held=True, reason="too much gone"), a_dataset("www", "lon1")))
    with Served(daemon, tmp_path):
        assert Client(tmp_path).release("www") == [Freed("www", "fra1", "too much gone")]
        assert Client(tmp_path).release("www") == []


def test_reload_answers_with_the_problems(tmp_path: Path) -> None:
    """Reloading gives back every problem, or none."""
    daemon = FakeDaemon(a_node())
    with Served(daemon, tmp_path):
        assert Client(tmp_path).reload() == []
        daemon.problems = ["c.toml:3: node.nam: unknown key"]
        assert Client(tmp_path).reload() == daemon.problems


A_RESULT = RepairResult("7c1e90ab", "mend_primary", "repaired", "64 KiB written back and read again")


def test_repairs_answer_with_what_became_of_each(tmp_path: Path) -> None:
    """One divergence or all are repaired, tried dry, or taken back, and each is told with its result."""
    daemon = FakeDaemon(a_node())
    other = RepairResult("0abc1234", "mend_replica", "waiting", "ams1 has not connected yet")
    daemon.results = {"7c1e": [A_RESULT], "0a": [other]}
    with Served(daemon, tmp_path):
        client = Client(tmp_path)
        assert client.repair("7c1e") == [A_RESULT] == client.undo_repair("7c1e")
        assert client.repair(None, dry_run=True) == [A_RESULT, other]
    asked = ["repair 7c1e", "repaired", "undo 7c1e", "repair None dry run", "repaired"]
    assert daemon.asked == asked


def test_retention_answers_with_what_was_done(tmp_path: Path) -> None:
    """One dataset's or all stores'; a name that is not there is a usage error, anything else in the query a 400."""
    daemon = FakeDaemon(a_node())
    daemon.retained = [RetainResult("ams1", "www", "", 41, [1, 2, 3], 2, 900, ["segment 4: a finding is open"])]
    with Served(daemon, tmp_path):
        client = Client(tmp_path)
        assert client.retain() == daemon.retained == client.retain("ams1/www")
        assert _raw(tmp_path, "POST /retain?force=1").startswith(b"HTTP/1.0 400")
        daemon.refusal = UsageError("there is no store of 'x' here")
        with pytest.raises(UsageError, match="no store of"):
            client.retain("x")
    assert daemon.asked == ["retain None", "retain ams1/www", "retain x"]


@pytest.mark.parametrize("name", ["ffff", "", "a b&all=1", "../../etc", "ü\udcff", "x" * 300, "undo"])
def test_unknown_divergences_are_refused(tmp_path: Path, name: str) -> None:
    """An id that is none, whatever it is made of, is a usage error with a hint, and never means all."""
    daemon = FakeDaemon(a_node())
    daemon.results = {"7c1e": [A_RESULT]}
    with Served(daemon, tmp_path):
        for ask in (Client(tmp_path).repair, Client(tmp_path).undo_repair):
            with pytest.raises(UsageError, match="no divergence") as caught:
                ask(name)
            assert "divergence list" in caught.value.hint
    assert all("None" not in asked for asked in daemon.asked)


@pytest.mark.parametrize(
    "query",
    [
        "",
        "dry_run=1",
        "all=0",
        "id=7c1e&all=1",
        "id=7c1e&undo=7c1e",
        "undo=7c1e&dry_run=1",
        "id=7c1e&dry_run=yes",
        "id=7c1e&id=0a",
        "x=1",
    ],
)
def test_a_malformed_repair_repairs_nothing(tmp_path: Path, query: str) -> None:
    """What does not say clearly what is to be repaired, and how, is answered 400, and nothing is begun."""
    daemon = FakeDaemon(a_node())
    daemon.results = {"7c1e": [A_RESULT]}
    with Served(daemon, tmp_path):
        assert _raw(tmp_path, f"POST /repair?{query}").startswith(b"HTTP/1.0 400")
    assert daemon.asked == []


def test_a_repair_goes_on_when_who_asked_goes_away(tmp_path: Path) -> None:
    """A command that is interrupted leaves no half-done repair: it is finished all the same."""
    daemon = FakeDaemon(a_node())
    daemon.results = {"7c1e": [A_RESULT]}
    begun, goes_on, done = threading.Event(), threading.Event(), threading.Event()

    async def take_time() -> None:
        begun.set()
        await asyncio.to_thread(goes_on.wait, 10)
        done.set()

    daemon.on_repair = take_time
    with Served(daemon, tmp_path):
        with socket.socket(socket.AF_UNIX) as stream:
            stream.connect(str(tmp_path / "control.sock"))
            stream.sendall(b"POST /repair?id=7c1e HTTP/1.0\r\n\r\n")
            assert begun.wait(10)
        Client(tmp_path).status()  # the server has turned to others since
        goes_on.set()
        assert done.wait(10)
        Client(tmp_path).status()
    assert daemon.asked == ["repair 7c1e", "repaired"]


def test_a_refusal_keeps_its_words(tmp_path: Path) -> None:
    """What the daemon refuses reaches the person with its hint."""
    daemon = FakeDaemon(a_node(a_dataset()))
    daemon.refusal = HeldError("not while a drill runs", hint="wait for it")
    with Served(daemon, tmp_path), pytest.raises(UsageError, match="not while a drill runs") as caught:
        Client(tmp_path).sync("www")
    assert caught.value.hint == "wait for it"


def test_a_peer_out_of_reach_is_no_mistake_of_who_typed(tmp_path: Path) -> None:
    """What the daemon could not do because a replica is away exits with 3, and its hint stands there once."""
    daemon = FakeDaemon(a_node(a_dataset(), a_scrub()))
    daemon.refusal = LinkError("no answer within 20 s", where="fra1", hint="is it running?")
    with Served(daemon, tmp_path), pytest.raises(LinkError) as caught:
        Client(tmp_path).scrub("start", "www", "replica")
    assert caught.value.exit_code == 3
    assert str(caught.value) == "fra1: no answer within 20 s (is it running?)"


def test_a_wait_that_is_no_number_is_refused(tmp_path: Path) -> None:
    """A question must not stay open for ever."""
    request = b"GET /status?served=www/fra1/99&timeout_s=nan HTTP/1.0\r\nHost: replicad\r\n\r\n"
    with Served(FakeDaemon(a_node(a_dataset())), tmp_path):
        code, body = Client(tmp_path)._exchange(request, 5.0)
    assert code == 400 and b"no length of time" in body


def test_waiting_returns_when_the_pass_has_ended(tmp_path: Path) -> None:
    """A question about a pass is answered once that pass and all others asked about have ended."""
    www, db = a_dataset("www"), a_dataset("db")
    daemon = FakeDaemon(a_node(www, db))
    with Served(daemon, tmp_path) as served:
        client = Client(tmp_path)
        requests = client.sync()
        served.later(0.02, lambda: daemon.serve(www))
        served.later(0.06, lambda: daemon.serve(db))
        assert has_served(client.status(requests, timeout_s=10), requests)


def test_waiting_ends_with_its_time(tmp_path: Path) -> None:
    """When the time is up the status comes as it is."""
    daemon = FakeDaemon(a_node(a_dataset()))
    with Served(daemon, tmp_path):
        client = Client(tmp_path)
        requests = client.sync()
        assert not has_served(client.status(requests, timeout_s=0.03), requests)


def _raw(state: Path, request: str) -> bytes:
    """The answer to a request line as somebody may write it by hand."""
    with socket.socket(socket.AF_UNIX) as stream:
        stream.connect(str(state / "control.sock"))
        stream.sendall(f"{request} HTTP/1.0\r\n\r\n".encode())
        return b"".join(iter(lambda: stream.recv(65536), b""))


@pytest.mark.parametrize("query", ["served=x", "served=a/b/c", "served=a/b/-1", "served=a/b/1&timeout_s=soon"])
def test_malformed_questions_are_refused(tmp_path: Path, query: str) -> None:
    """A question that is not of the contract's form is answered 400 with a reason in JSON."""
    with Served(FakeDaemon(a_node()), tmp_path):
        answer = _raw(tmp_path, f"GET /status?{query}")
    assert answer.startswith(b"HTTP/1.0 400") and b'{"error":"GET /status: ' in answer


def test_no_daemon_is_a_link_error(tmp_path: Path) -> None:
    """Without a daemon the error says so, exits with 3 and tells how to start it."""
    with pytest.raises(LinkError, match="not running") as caught:
        Client(tmp_path / "never").status()
    assert caught.value.exit_code == 3 and "systemctl start replicad" in caught.value.hint


def test_a_socket_left_over_is_no_daemon(tmp_path: Path) -> None:
    """After kill -9 the socket file is still there; the error is the same."""
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "control.sock"))
    with pytest.raises(LinkError, match="not running"):
        Client(tmp_path).status()


def test_a_daemon_that_stops_while_asked_is_out_of_reach(tmp_path: Path) -> None:
    """When the daemon stops, who waits for it learns so at the next question at the latest."""
    daemon = FakeDaemon(a_node(a_dataset()))
    asking = threading.Event()
    daemon.on_status = asking.set
    with Served(daemon, tmp_path):
        caught: list[LinkError] = []
        thread = threading.Thread(target=_ask_until_refused, args=(tmp_path, caught))
        thread.start()
        assert asking.wait(10)
    thread.join(10)
    assert caught


def _ask_until_refused(state: Path, caught: list[LinkError]) -> None:
    while not caught:
        try:
            Client(state).status([SyncRequest("www", "fra1", 99)], timeout_s=10)
        except LinkError as error:
            caught.append(error)


@contextmanager
def _answering(state: Path, answer: bytes) -> Iterator[None]:
    """Something at the control socket that answers each connection with these bytes."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(state / "control.sock"))
        listening.listen()

        def answer_one() -> None:
            stream, _ = listening.accept()
            with stream:
                stream.recv(65536)
                stream.sendall(answer)

        thread = threading.Thread(target=answer_one)
        thread.start()
        yield
        thread.join(10)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"", "too early"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}", "too early"),
        (b"HTTP/1.1 200 OK\r\n", "too early"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "does not understand"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]", "does not understand"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n\xff\xfe\xfd", "does not understand"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\n\r\n404", "does not understand"),
        (b'HTTP/1.1 500 Oh\r\nContent-Length: 13\r\n\r\n{"error":"x"}', "daemon failed: x"),
    ],
)
def test_strange_answers_are_link_errors(tmp_path: Path, answer: bytes, says: str) -> None:
    """Whatever answers at the socket, the client either has a status or says that it has none."""
    with _answering(tmp_path, answer), pytest.raises(LinkError, match=says):
        Client(tmp_path).status()


@given(st.binary(max_size=200))
def test_answers_are_split_or_refused(answer: bytes) -> None:
    """Arbitrary bytes end in an answer, a ConnectionError or a ValueError, nothing else."""
    try:
        code, _ = api._split_answer(answer)
    except (ConnectionError, ValueError):
        return
    assert code >= 0


def test_an_endless_answer_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client takes no more than its limit into memory."""
    monkeypatch.setattr(api, "MAX_ANSWER_BYTES", 1000)
    with _answering(tmp_path, b"x" * 5000), pytest.raises(LinkError, match="more than 1000 bytes"):
        Client(tmp_path).status()


def test_a_silent_daemon_is_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon that accepts and never answers is given up on."""
    monkeypatch.setattr(api, "ANSWER_TIMEOUT_S", 0.05)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "control.sock"))
        listening.listen()
        with pytest.raises(LinkError, match="does not answer"):
            Client(tmp_path).status()


def test_long_state_paths_work(tmp_path: Path) -> None:
    """A state directory whose path is longer than a socket address is served and reached all the same."""
    state = tmp_path / ("d" * 100) / ("e" * 100)
    state.mkdir(parents=True)
    daemon = FakeDaemon(a_node())
    with Served(daemon, state):
        assert Client(state).status() == daemon.node
    assert list(state.iterdir()) == []


def test_scrubs_are_directed(tmp_path: Path) -> None:
    """Action, dataset, side and length of a pause arrive; what is answered is what to wait for."""
    daemon = FakeDaemon(a_node(a_dataset(), a_scrub(), a_scrub("www", "replica", "fra1"), a_scrub("db")))
    with Served(daemon, tmp_path):
        client = Client(tmp_path)
        assert client.scrub("start", "www") == Directed(
            [ScrubRequest("www", "primary", "", 1), ScrubRequest("www", "replica", "fra1", 1)]
        )
        assert client.scrub("pause", "db", "primary", 3600.0).until_ns == NOW_NS + 3600 * S
        assert client.scrub("resume").until_ns == 0
    assert daemon.asked == ["start www None 0", "pause db primary 3600", "resume None None 0"]


@pytest.mark.parametrize(
    ("action", "side", "for_s"), [("stop", None, 0.0), ("start", "both", 0.0), ("pause", None, float("nan"))]
)
def test_nonsense_about_scrubs_is_refused(tmp_path: Path, action: str, side: str | None, for_s: float) -> None:
    """An unknown action or side, or a length that is none, ends in an error and asks the daemon for nothing."""
    daemon = FakeDaemon(a_node(a_scrub()))
    with Served(daemon, tmp_path), pytest.raises(UsageError):
        Client(tmp_path).scrub(action, None, side, for_s)
    assert daemon.asked == []


def test_the_end_of_a_scrub_is_waited_for(tmp_path: Path) -> None:
    """The question is answered as soon as the scrub that was asked for has ended, and not before."""
    line = a_scrub()
    daemon = FakeDaemon(a_node(a_dataset(), line))
    with Served(daemon, tmp_path) as served:
        [request] = Client(tmp_path).scrub("start").requests
        assert Client(tmp_path).status(scrubbed=[request], timeout_s=0.05).scrubs[0].served == 0

        def end() -> None:
            line.served = line.requested

        served.later(0.2, end)
        assert Client(tmp_path).status(scrubbed=[request], timeout_s=10.0).scrubs[0].served == 1


@given(
    st.lists(
        st.builds(
            ScrubRequest,
            st.text("ab/ü.-", min_size=1),
            st.sampled_from(["primary", "replica"]),
            st.sampled_from(["", "fra1"]),
            st.integers(0, 2**60),
        )
    )
)
def test_questions_about_scrubs_survive_the_wire(requests: list[ScrubRequest]) -> None:
    """What is waited for is read back as it was written."""
    texts = [value for key, value in status_query([], 1.0, requests) if key == "scrubbed"]
    assert parse_scrubbed_untrusted(texts) == requests


@pytest.mark.parametrize("text", ["", "www/primary/1", "www/primary//x", "www/primary//-1"])
def test_bad_questions_about_scrubs_are_refused(text: str) -> None:
    """What names no scrub and number is an error with the text in it."""
    with pytest.raises(ValueError, match="is not DATASET/SIDE/PEER/NUMBER"):
        parse_scrubbed_untrusted([text])


@given(
    st.lists(st.builds(SyncRequest, st.text("ab/ü.-", min_size=1), st.text("cd.-", min_size=1), st.integers(0, 2**60)))
)
def test_questions_survive_the_wire(requests: list[SyncRequest]) -> None:
    """What is waited for is read back as it was written."""
    texts = [value for key, value in status_query(requests, 1.0) if key == "served"]
    assert parse_served_untrusted(texts) == requests


def test_the_client_loads_nothing_heavy() -> None:
    """A verb that asks the daemon pays for no event loop, no HTTP library, no SSH and no progress bar."""
    heavy = ("aiohttp", "asyncio", "http.client", "asyncssh", "rich", "prometheus_client", "blake3", "structlog")
    code = f"import sys, replicad.http.api; print([name for name in {heavy!r} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
