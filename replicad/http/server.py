"""Server: what scrapers see over TCP, and what the CLI commands over the control socket.

Owns what is made of aiohttp. Two listeners that share nothing but the daemon: TCP answers GET /metrics, /healthz and
/ and can change nothing; STATE/control.sock (mode 0600) answers the contract's requests. Requests carry no body, and
every connection, header and wait has a limit, so nobody who can connect can make the daemon grow.
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path

import msgspec

from replicad.config.schema import split_address
from replicad.http.aiohttp_web import web
from replicad.http.contract import (
    CONTROL_SOCKET,
    MAX_WAIT_S,
    Accepted,
    Daemon,
    Drilled,
    Failure,
    Freed,
    Released,
    Reloaded,
    Repaired,
    RepairResult,
    RetainedAll,
    RetainResult,
    ScrubRequest,
    SyncRequest,
    has_served,
    parse_gate_untrusted,
    parse_scrubbed_untrusted,
    parse_served_untrusted,
)
from replicad.http.metrics import CONTENT_TYPE, Exposition
from replicad.model.errors import LockedError, ReplicadError, UsageError
from replicad.model.glob import compile_globs
from replicad.status import NodeStatus, encode, job_trouble, to_json
from replicad.system.clock import Clock
from replicad.system.sockets import socket_address

MAX_HEADER_BYTES = 16 * 1024
"""Longest request line or header field: a wait for a hundred passes fits."""
MAX_CONNECTIONS = 64
"""TCP connections at once, and a few times BACKLOG more where they come in one burst; a scraper needs one, and each
costs a file descriptor that replication needs too."""
IDLE_S = 30.0
"""A connection that asks nothing for this long is closed."""
LINGER_S = 1.0
"""How long an unwanted body is read and thrown away so that the sender gets to see the refusal."""
STOP_S = 2.0
"""How long answers under way may take when the daemon stops."""
BACKLOG = 16
WAIT_POLL_S = 0.01
"""How often a waiting GET /status looks again: jobs write plain values and wake nobody, so this is all the delay that
`replicad sync --wait` adds, at less than a thousandth of a CPU."""

SCRUB_ACTIONS = ("start", "pause", "resume")

ASK_THERE = "replicad status says why"

INDEX = """replicad {version} on {node}

/metrics   what Prometheus scrapes
/healthz   200 when every job is alive, 503 with reasons otherwise

On this host: replicad status
"""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class HttpServer:
    """Both listeners of one daemon. `address` is ADDR:PORT, or "" for no TCP; port 0 takes any free one."""

    def __init__(self, daemon: Daemon, *, address: str, state: Path, clock: Clock) -> None:
        self._daemon, self._clock = daemon, clock
        self._wanted, self._control = address, state / CONTROL_SOCKET
        self._exposition = Exposition(daemon.status)
        self._over_tcp: _Listening | None = None
        self._over_socket: _Listening | None = None
        self._reload_task: asyncio.Future[list[str]] | None = None
        self._repairs: set[asyncio.Task[list[RepairResult]]] = set()
        self._retaining: set[asyncio.Task[list[RetainResult]]] = set()
        self._stopping = False
        self.address = ""
        """Where /metrics is, ADDR:PORT; "" until `start` and when there is no TCP listener."""

    async def start(self) -> None:
        """Listen. Raises LockedError (address in use) or ReplicadError; then nothing is left listening."""
        try:
            await self._start_tcp(self._wanted)
            await self._start_control()
        except BaseException:
            await self.stop()
            raise

    async def move(self, address: str) -> None:
        """Answer at another TCP address from now on; the control socket is not touched. Raises LockedError when that
        address cannot be had; then the old one is in force."""
        old = self._wanted
        await self._stop_tcp()
        try:
            await self._start_tcp(address)
        except LockedError:
            await self._start_tcp(old)
            raise

    async def stop(self) -> None:
        """Stop listening and end what is under way, waits at once. Does nothing when it never started."""
        self._stopping = True
        await self._stop_tcp()
        if self._over_socket:
            await self._over_socket.stop()
            self._over_socket = None
            self._control.unlink(missing_ok=True)

    async def _start_tcp(self, address: str) -> None:
        self._wanted = address
        if not address:
            return
        host, port = split_address(address)  # the configuration has been checked
        runner = await _set_up(
            {("GET", "/"): self._index, ("GET", "/metrics"): self._metrics, ("GET", "/healthz"): self._health}
        )
        answer = _server_of(runner)

        def accept() -> asyncio.Protocol:
            return _Refusal() if len(answer.connections) >= MAX_CONNECTIONS else answer()

        try:
            listener = await asyncio.get_running_loop().create_server(accept, host or None, port, backlog=BACKLOG)
        except OSError as error:
            await runner.cleanup()
            raise LockedError(
                f"cannot listen for /metrics: {error.strerror or error}",
                where=address,
                hint="another process has this port? choose one with node.http",
            ) from error
        self._over_tcp = _Listening(listener, runner)
        bound = listener.sockets[0].getsockname()
        self.address = f"[{bound[0]}]:{bound[1]}" if ":" in bound[0] else f"{bound[0]}:{bound[1]}"

    async def _stop_tcp(self) -> None:
        if self._over_tcp:
            await self._over_tcp.stop()
        self._over_tcp, self.address = None, ""

    async def _start_control(self) -> None:
        try:
            listening = _bind_private(self._control)
        except OSError as error:
            raise ReplicadError(
                f"cannot make the control socket: {error.strerror or error}",
                where=str(self._control),
                hint="the state directory must exist and belong to the daemon's user",
            ) from error
        runner = await _set_up(
            {
                ("GET", "/status"): self._status,
                ("POST", "/sync"): self._sync,
                ("POST", "/release"): self._release,
                ("POST", "/reload"): self._reload,
                ("POST", "/repair"): self._repair,
                ("POST", "/scrub"): self._scrub,
                ("POST", "/drill"): self._drill,
                ("POST", "/gate"): self._gate,
                ("POST", "/retain"): self._retain,
            }
        )
        listener = await asyncio.get_running_loop().create_unix_server(
            _server_of(runner), sock=listening, backlog=BACKLOG
        )
        self._over_socket = _Listening(listener, runner)

    async def _index(self, request: web.Request) -> web.Response:
        status = self._daemon.status()
        return web.Response(text=INDEX.format(version=status.version, node=status.node))

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=self._exposition.render(), headers={"Content-Type": CONTENT_TYPE})

    async def _health(self, request: web.Request) -> web.Response:
        reasons = ailments(self._daemon.status())
        return web.Response(status=503 if reasons else 200, text="\n".join(reasons or ["ok"]) + "\n")

    async def _status(self, request: web.Request) -> web.Response:
        await self._wait(*_wait_asked_untrusted(request))
        return web.Response(body=encode(self._daemon.status()), content_type="application/json")

    async def _wait(self, requests: list[SyncRequest], scrubs: list[ScrubRequest], timeout_s: float) -> None:
        end = self._clock.monotonic_s() + timeout_s
        while not has_served(self._daemon.status(), requests, scrubs) and not self._stopping:
            if self._clock.monotonic_s() >= end:
                return
            await self._clock.sleep(WAIT_POLL_S)

    async def _sync(self, request: web.Request) -> web.Response:
        dataset = request.query.get("dataset")
        if dataset is not None:
            self._check_dataset(dataset)
        return _json(Accepted(self._daemon.request_sync(dataset)))

    async def _release(self, request: web.Request) -> web.Response:
        dataset = request.query.get("dataset", "")
        self._check_dataset(dataset)
        held = [
            Freed(dataset=line.dataset, replica=line.replica, reason=line.reason)
            for line in self._daemon.status().datasets
            if line.dataset == dataset and line.held
        ]
        await self._daemon.release(dataset)
        return _json(Released(held))

    async def _reload(self, request: web.Request) -> web.Response:
        self._reload_task = asyncio.ensure_future(self._daemon.reload())
        return _json(
            Reloaded(await asyncio.shield(self._reload_task))
        )  # who asked may go away; half a reload may not be

    async def _repair(self, request: web.Request) -> web.Response:
        task = asyncio.get_running_loop().create_task(self._repair_asked_untrusted(request))
        self._repairs.add(task)
        task.add_done_callback(self._repairs.discard)
        return _json(Repaired(await asyncio.shield(task)))  # who asked may go away; half a repair may not be

    async def _retain(self, request: web.Request) -> web.Response:
        if set(request.query) - {"dataset"}:
            raise web.HTTPBadRequest(reason="a run of retention takes a dataset, and nothing else")
        task = asyncio.ensure_future(self._daemon.retain(request.query.get("dataset")))
        self._retaining.add(task)
        task.add_done_callback(self._retaining.discard)
        return _json(RetainedAll(await asyncio.shield(task)))  # who asked may go away; the run goes on

    def _repair_asked_untrusted(self, request: web.Request) -> Coroutine[None, None, list[RepairResult]]:
        query = dict(request.query) if len(set(request.query)) == len(request.query) else {}
        dry_run = query.pop("dry_run", None)
        match query:
            case {"id": name, **others} if not others and dry_run in (None, "1"):
                return self._daemon.repair(name, dry_run=bool(dry_run))
            case {"all": "1", **others} if not others and dry_run in (None, "1"):
                return self._daemon.repair(None, dry_run=bool(dry_run))
            case {"undo": name, **others} if not others and dry_run is None:
                return self._daemon.undo_repair(name)
        raise web.HTTPBadRequest(reason="what to repair is id=ID, all=1 or undo=ID")

    async def _scrub(self, request: web.Request) -> web.Response:
        action, side = request.query.get("action", ""), request.query.get("side")
        if action not in SCRUB_ACTIONS or side not in (None, "primary", "replica"):
            raise web.HTTPBadRequest(reason="action is start, pause or resume; side is primary or replica")
        try:
            for_s = float(request.query.get("for_s", "0"))
        except ValueError:
            raise web.HTTPBadRequest(reason="for_s is no number") from None
        if not 0 <= for_s < float("inf"):
            raise web.HTTPBadRequest(reason="for_s is no length of time")
        return _json(await self._daemon.direct_scrub(action, request.query.get("dataset"), side, for_s))

    async def _drill(self, request: web.Request) -> web.Response:
        full, globs = request.query.get("full"), [os.fsencode(g) for g in request.query.getall("path", [])]
        if full not in (None, "1") or (full and globs):
            raise web.HTTPBadRequest(reason="full is 1 or left out, and excludes path")
        try:
            compile_globs(globs)
        except ValueError as error:
            raise UsageError(str(error)) from None
        dataset = request.query.get("dataset")
        return _json(Drilled(self._daemon.request_drill(dataset, full=bool(full), globs=globs)))

    async def _gate(self, request: web.Request) -> web.Response:
        try:
            asked = parse_gate_untrusted(list(request.query.items()))
        except ValueError as error:
            raise web.HTTPBadRequest(reason=str(error).replace("\n", " ")[:200]) from None
        return _json(await self._daemon.gate(asked))

    def _check_dataset(self, dataset: str) -> None:
        known = sorted({line.dataset for line in self._daemon.status().datasets})
        if dataset not in known:
            names = ", ".join(known[:20]) or "none"
            raise UsageError(f"no dataset {dataset!r} here", hint=f"datasets of this node: {names}")


def ailments(status: NodeStatus) -> list[str]:
    """Why this daemon does not do its work, one sentence each; empty when every job is alive. A link that is down or
    a held dataset is no ailment of the daemon: that is what the metrics and alerts are for. Errors are left out: they
    hold paths and what hooks say, and whoever reaches the TCP address may ask."""
    if not status.jobs:
        return ["no job has started"]
    return [f"job {job.name} {trouble} ({ASK_THERE})" for job in status.jobs if (trouble := job_trouble(job))]


@dataclass(frozen=True, slots=True)
class _Listening:
    """A listener and what answers its connections."""

    listener: asyncio.Server
    runner: web.AppRunner

    async def stop(self) -> None:
        self.listener.close()
        await self.runner.cleanup()


async def _set_up(routes: dict[tuple[str, str], Handler]) -> web.AppRunner:
    app = web.Application(middlewares=[_refuse_in_json])
    for (verb, path), handler in routes.items():
        app.router.add_route(verb, path, handler)
    runner = web.AppRunner(
        app,
        handle_signals=False,
        access_log=None,
        handler_cancellation=True,
        keepalive_timeout=IDLE_S,
        lingering_time=LINGER_S,
        shutdown_timeout=STOP_S,
        max_line_size=MAX_HEADER_BYTES,
        max_field_size=MAX_HEADER_BYTES,
    )
    await runner.setup()
    return runner


def _server_of(runner: web.AppRunner) -> web.Server:
    assert runner.server is not None, "a runner has a server once it is set up"
    return runner.server


class _Refusal(asyncio.Protocol):
    """Hangs up at once."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


@web.middleware
async def _refuse_in_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every refusal as a Failure: what the daemon refuses is the caller's to change, so it is a 4xx."""
    if request.body_exists:
        return _json(Failure("no request here has a body"), 413)
    try:
        return await handler(request)
    except UsageError as error:
        return _json(Failure(error.what, error.hint), 404)
    except ReplicadError as error:
        text = f"{error.where}: {error.what}" if error.where else error.what
        return _json(Failure(text, error.hint, error.exit_code), 409)
    except web.HTTPException as error:
        return _json(Failure(f"{request.method} {request.path[:80]}: {error.reason}"), error.status)


def _json(value: msgspec.Struct, code: int = 200) -> web.Response:
    return web.Response(body=to_json(value), status=code, content_type="application/json")


def _wait_asked_untrusted(request: web.Request) -> tuple[list[SyncRequest], list[ScrubRequest], float]:
    try:
        requests = parse_served_untrusted(request.query.getall("served", []))
        scrubs = parse_scrubbed_untrusted(request.query.getall("scrubbed", []))
        timeout_s = float(request.query.get("timeout_s", "0"))
    except ValueError as error:
        raise web.HTTPBadRequest(reason=str(error).replace("\n", " ")[:200]) from None
    if timeout_s != timeout_s:
        raise web.HTTPBadRequest(reason="timeout_s is no length of time")
    return requests, scrubs, min(max(timeout_s, 0.0), MAX_WAIT_S)


def _bind_private(path: Path) -> socket.socket:
    """A listening unix socket that never had any other mode than 0600: the mode is set before the name exists (Linux
    takes it over when binding). A socket left over is replaced; the state directory's lock says that nobody uses it."""
    if path.is_socket():
        path.unlink()
    listening = socket.socket(socket.AF_UNIX)
    try:
        os.fchmod(listening.fileno(), stat.S_IRUSR | stat.S_IWUSR)
        with socket_address(path) as address:
            listening.bind(address)
        listening.setblocking(False)
        listening.listen(BACKLOG)
    except BaseException:
        listening.close()
        raise
    return listening
