"""The HTTP server: what a scraper sees over TCP, and what nobody can make it do."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from kit_daemon import FakeDaemon, Served, a_dataset, a_job, a_node, a_store
from replicad.http.server import MAX_CONNECTIONS, HttpServer, ailments
from replicad.model.errors import LockedError, ReplicadError
from replicad.system.clock import Clock


def get(address: str, path: str, method: str = "GET", data: bytes | None = None) -> tuple[int, str]:
    """Code and body of one request over TCP."""
    request = urllib.request.Request(f"http://{address}{path}", method=method, data=data)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_index_names_the_pages(tmp_path: Path) -> None:
    """The first page is plain text and points at the two that matter."""
    with Served(FakeDaemon(a_node(a_dataset())), tmp_path) as served:
        code, text = get(served.address, "/")
    assert code == 200
    assert "replicad 0.1.0 on ams1" in text and "/metrics" in text and "/healthz" in text


def test_metrics_show_the_state_of_now(tmp_path: Path) -> None:
    """Each scrape renders the status of that moment."""
    daemon = FakeDaemon(a_node(a_dataset()))
    with Served(daemon, tmp_path) as served:
        assert 'replicad_held{dataset="www",replica="fra1"} 0.0' in get(served.address, "/metrics")[1]
        daemon.node.datasets[0].held = True
        assert 'replicad_held{dataset="www",replica="fra1"} 1.0' in get(served.address, "/metrics")[1]


def test_healthz_is_200_while_every_job_lives(tmp_path: Path) -> None:
    """A held dataset or a link that is down is no ailment of the daemon."""
    node = a_node(a_dataset(held=True, state="held"), a_dataset("db", link_up=False, state="waiting"))
    with Served(FakeDaemon(node), tmp_path) as served:
        assert get(served.address, "/healthz") == (200, "ok\n")


def test_healthz_is_503_and_names_the_job_but_not_its_error(tmp_path: Path) -> None:
    """What a hook printed or which path failed is for who may ask the control socket, not for all on the network."""
    dead = a_job("scan", running=False, last_error="/srv/hr: boom")
    looping = a_job("listen", failures_in_row=3, last_error="hook_pre: password=hunter2")
    with Served(FakeDaemon(a_node(dead, looping, a_job("well"))), tmp_path) as served:
        code, text = get(served.address, "/healthz")
    assert code == 503
    why = "(replicad status says why)"
    assert text == f"job scan is not running {why}\njob listen failed 3 times in a row {why}\n"


def test_nothing_over_tcp_shows_an_error(tmp_path: Path) -> None:
    """No page that a scraper can get holds the text of one, wherever in the status it stands."""
    store, job = a_store(state="full", reason="secret"), a_job("hook", failures_in_row=9, last_error="secret")
    with Served(FakeDaemon(a_node(a_dataset(reason="secret"), store, job)), tmp_path) as served:
        pages = [get(served.address, path)[1] for path in ("/", "/metrics", "/healthz")]
    assert not any("secret" in page for page in pages)


def test_a_daemon_without_jobs_is_not_healthy() -> None:
    """A daemon that does nothing never says that it is well."""
    node = a_node()
    node.jobs = []
    assert ailments(node) == ["no job has started"]


@pytest.mark.parametrize("path", ["/status", "/sync", "/release", "/reload", "/scrub", "/nothing"])
def test_tcp_commands_nothing(tmp_path: Path, path: str) -> None:
    """The commands of the control socket do not exist over TCP."""
    daemon = FakeDaemon(a_node(a_dataset()))
    with Served(daemon, tmp_path) as served:
        assert get(served.address, path, "POST")[0] in (404, 405)
        assert get(served.address, path)[0] in (404, 405)
    assert daemon.asked == []


def test_tcp_takes_only_get(tmp_path: Path) -> None:
    """Other methods are refused."""
    with Served(FakeDaemon(a_node()), tmp_path) as served:
        assert [get(served.address, "/metrics", method)[0] for method in ("POST", "PUT", "DELETE")] == [405] * 3


def test_a_body_is_refused(tmp_path: Path) -> None:
    """No request has a body, so one that has is answered 413 whatever its size."""
    with Served(FakeDaemon(a_node()), tmp_path) as served:
        assert get(served.address, "/metrics", "POST", b"x" * 100_000)[0] == 413
        assert get(served.address, "/metrics")[0] == 200


def test_long_request_lines_are_refused(tmp_path: Path) -> None:
    """A header beyond its limit ends in 400, and the next request is answered."""
    with Served(FakeDaemon(a_node()), tmp_path) as served:
        assert get(served.address, "/metrics?" + "x" * 40_000)[0] == 400
        assert get(served.address, "/metrics")[0] == 200


def test_rubbish_is_refused(tmp_path: Path) -> None:
    """Bytes that are no HTTP end the connection and nothing else."""
    with Served(FakeDaemon(a_node()), tmp_path) as served:
        host, port = served.address.split(":")
        with socket.create_connection((host, int(port)), timeout=10) as stream:
            stream.sendall(b"\x00\xff\xfe rubbish \r\n\r\n")
            assert stream.recv(1000).startswith(b"HTTP/1.0 400")
        assert get(served.address, "/metrics")[0] == 200


def test_connections_are_bounded(tmp_path: Path) -> None:
    """Beyond its limit a connection is hung up on; when others end there is room again."""
    with Served(FakeDaemon(a_node()), tmp_path) as served:
        kept = [_kept_open(served.address) for _ in range(MAX_CONNECTIONS)]
        try:
            host, port = served.address.split(":")
            with socket.create_connection((host, int(port)), timeout=10) as one_more:
                assert one_more.recv(1) == b""
        finally:
            for stream in kept:
                stream.close()
        _until_answered(served.address)


def _kept_open(address: str) -> socket.socket:
    """A connection that was answered and stays open for the next request."""
    host, port = address.split(":")
    stream = socket.create_connection((host, int(port)), timeout=10)
    stream.sendall(b"GET /healthz HTTP/1.1\r\nHost: replicad\r\n\r\n")
    assert stream.recv(1000).startswith(b"HTTP/1.1 200")
    return stream


def _until_answered(address: str) -> None:
    for _ in range(1000):
        try:
            assert get(address, "/metrics")[0] == 200
            return
        except (urllib.error.URLError, ConnectionError):
            continue
    raise AssertionError("no answer although all connections were closed")


async def test_no_tcp_when_switched_off(tmp_path: Path) -> None:
    """An empty address leaves the control socket alone."""
    server = HttpServer(FakeDaemon(a_node()), address="", state=tmp_path, clock=Clock())
    await server.start()
    assert server.address == "" and (tmp_path / "control.sock").is_socket()
    await server.stop()


async def test_ipv6_address_stands_in_brackets(tmp_path: Path) -> None:
    """An IPv6 listener says its address so that it can be pasted into a URL."""
    server = HttpServer(FakeDaemon(a_node()), address="[::1]:0", state=tmp_path, clock=Clock())
    await server.start()
    assert server.address.startswith("[::1]:")
    await server.stop()


async def test_an_address_in_use_is_named(tmp_path: Path) -> None:
    """A port that somebody else has is one clear error, and nothing stays behind."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        server = HttpServer(FakeDaemon(a_node()), address=address, state=tmp_path, clock=Clock())
        with pytest.raises(LockedError) as caught:
            await server.start()
    assert address in str(caught.value) and "node.http" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


async def test_moving_keeps_the_control_socket(tmp_path: Path) -> None:
    """A changed address is answered at once, the old one no more, and the control socket stays as it is."""
    server = HttpServer(FakeDaemon(a_node()), address="127.0.0.1:0", state=tmp_path, clock=Clock())
    await server.start()
    old, control = server.address, (tmp_path / "control.sock").stat()
    await server.move("[::1]:0")
    assert server.address.startswith("[::1]:")
    assert (await asyncio.to_thread(get, server.address, "/healthz"))[0] == 200
    with pytest.raises(urllib.error.URLError):
        await asyncio.to_thread(get, old, "/healthz")
    assert (tmp_path / "control.sock").stat() == control
    await server.move("")
    assert server.address == ""
    await server.stop()


async def test_moving_to_an_address_in_use_changes_nothing(tmp_path: Path) -> None:
    """When the new address cannot be had, the old one goes on answering."""
    server = HttpServer(FakeDaemon(a_node()), address="127.0.0.1:0", state=tmp_path, clock=Clock())
    await server.start()
    await server.move(server.address)
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(LockedError):
        await server.move(f"127.0.0.1:{other.getsockname()[1]}")
    assert (await asyncio.to_thread(get, server.address, "/healthz"))[0] == 200
    await server.stop()


async def test_a_missing_state_directory_is_named(tmp_path: Path) -> None:
    """Without its state directory the server does not start, and gives its TCP port back."""
    server = HttpServer(FakeDaemon(a_node()), address="127.0.0.1:0", state=tmp_path / "gone", clock=Clock())
    with pytest.raises(ReplicadError, match="control socket"):
        await server.start()
    assert server.address == ""


async def test_control_socket_is_private_and_goes_away(tmp_path: Path) -> None:
    """The control socket is 0600 whatever the umask, and is removed when the daemon stops."""
    before = os.umask(0)
    try:
        server = HttpServer(FakeDaemon(a_node()), address="", state=tmp_path, clock=Clock())
        await server.start()
    finally:
        os.umask(before)
    control = tmp_path / "control.sock"
    assert stat.S_IMODE(control.stat().st_mode) == 0o600
    await server.stop()
    assert not control.exists()


async def test_a_socket_left_over_is_replaced(tmp_path: Path) -> None:
    """After kill -9 the next daemon takes the socket over."""
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "control.sock"))
    server = HttpServer(FakeDaemon(a_node()), address="", state=tmp_path, clock=Clock())
    await server.start()
    reader, writer = await asyncio.open_unix_connection(str(tmp_path / "control.sock"))
    writer.write(b"GET /status HTTP/1.0\r\n\r\n")
    assert (await reader.readline()).startswith(b"HTTP/1.0 200")
    writer.close()
    await writer.wait_closed()
    await server.stop()


async def test_a_file_in_the_sockets_place_is_left_alone(tmp_path: Path) -> None:
    """Something that is no socket is nothing of ours: one error, and it is still there."""
    (tmp_path / "control.sock").write_text("precious")
    server = HttpServer(FakeDaemon(a_node()), address="", state=tmp_path, clock=Clock())
    with pytest.raises(ReplicadError, match="in use"):
        await server.start()
    assert (tmp_path / "control.sock").read_text() == "precious"


async def test_stop_ends_a_wait(tmp_path: Path) -> None:
    """A daemon that stops does not wait for those who wait for it."""
    line = a_dataset(pass_requested=1)
    daemon = FakeDaemon(a_node(line))
    server = HttpServer(daemon, address="", state=tmp_path, clock=Clock())
    await server.start()
    asked = asyncio.Event()
    daemon.on_status = asked.set
    reader, writer = await asyncio.open_unix_connection(str(tmp_path / "control.sock"))
    writer.write(b"GET /status?served=www/fra1/1&timeout_s=10 HTTP/1.0\r\n\r\n")
    await asked.wait()
    await asyncio.wait_for(server.stop(), timeout=8)
    await reader.read()
    writer.close()


def test_a_daemon_s_start_loads_no_authorities_and_leaves_the_environment_as_it_was() -> None:
    """They would be a tenth of its start, and nothing here speaks TLS as a client; a hook's own programs may."""
    code = """
import os
before = dict(os.environ)
import replicad.daemon
import aiohttp.connector
assert dict(os.environ) == before, os.environ
print(aiohttp.connector._SSL_CONTEXT_VERIFIED.cert_store_stats()["x509"])
"""
    for environment in ({}, {"SSL_CERT_FILE": "/etc/ssl/cert.pem"}):
        done = subprocess.run(
            [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, check=False
        )
        assert (done.stdout, done.stderr) == ("0\n", "")
