"""Daemon: the only place where objects are built.

**Owns** the life of one node: state lock, thread pool, replica side (shelves and their doors), primary side
(datasets and their jobs), HTTP server, signals. What runs is decided by the configuration alone; a reload builds
the parts anew whose configuration changed and leaves the others running.

`ReplicaSide` is what a node does for others, a `Protected` (protected.py) what it does for one dataset of its own; a
node may have both.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from replicad import __version__
from replicad.config import ClientConfig, Config, ReplicaConfig, load
from replicad.db.findings import Findings
from replicad.http import contract
from replicad.http.contract import (
    Directed,
    DrillRequest,
    Gated,
    GateRequest,
    RepairResult,
    RetainResult,
    SyncRequest,
)
from replicad.http.server import HttpServer
from replicad.link.reception import House, Reception
from replicad.link.ssh import Dialler, Listener, listen
from replicad.link.unix import SOCKET_NAME, serve_unix
from replicad.model.block import self_test
from replicad.model.divergence import Side
from replicad.model.errors import ConfigError, ReplicadError, UsageError
from replicad.protected import Protected
from replicad.status import JobStatus, NodeStatus, ScrubStatus
from replicad.store.store import store_path
from replicad.system.clock import Clock
from replicad.system.disk import Disk, Lock
from replicad.system.logs import configure, logger
from replicad.system.notify import Notifier
from replicad.work import directing, gate, orders
from replicad.work.clients import Clients
from replicad.work.free_space import FreeSpace
from replicad.work.job import Job, Runner, log_failure, log_session_end, words_of
from replicad.work.last_status import write_down
from replicad.work.lookouts import Lookouts
from replicad.work.retain import Place
from replicad.work.retentions import Retentions
from replicad.work.scouts import Scouts
from replicad.work.scratch import live_places
from replicad.work.scrub import Scrubbing, Turns, policy_of
from replicad.work.scrubs import Scrubs
from replicad.work.shelves import Shelves
from replicad.work.surfaces import SURFACES, Surfaces
from replicad.work.suspect import Examining
from replicad.work.tendings import Tendings
from replicad.work.together import in_own_thread
from replicad.work.view import OnView

log = logger("daemon")

SOFTWARE = f"replicad {__version__}"
SCRUB_THREADS = 3
"""Threads of their own for scrubs of this node's datasets: reading and hashing of one turn go on side by side, also
beside the check of a ledger; replication never waits for a thread that scrubs."""
RETUNED = ("scrub_every_s", "scrub_duty", "quiet_hours", "repair", "repair_limit")
"""Keys of [listen] that are in force at once, with every session left alone."""
REMEMBER_S = 30.0
"""How often the status is written down for `replicad status` of a dead daemon; an idle disk may sleep in between."""
LOAD_S = 30.0
"""How long a reload may take to read and check the configuration; service managers wait longer for a stop."""

Result = TypeVar("Result")


class Daemon:
    """One node. `run` lives until it is told to stop."""

    def __init__(
        self,
        config: Config,
        clock: Clock | None = None,
        disk: Disk | None = None,
        surfaces: Surfaces = SURFACES,
    ) -> None:
        self._config = config
        self._clock, self._disk = clock or Clock(), disk or Disk()
        self._status = NodeStatus(node=config.node.name, version=__version__, config_file=str(config.file))
        self._threads = config.node.threads
        self._pool = ThreadPoolExecutor(self._threads, "work")
        self._scouts, self._lookouts = Scouts(), Lookouts()
        self.scrub_pool = ThreadPoolExecutor(SCRUB_THREADS, "scrub")
        self._turns, self._drill_turn = Turns(), asyncio.Lock()
        self.surfaces = surfaces
        self._replica: ReplicaSide | None = None
        self._datasets: dict[str, Protected] = {}
        self._diallers: dict[ReplicaConfig, Dialler] = {}
        self._dialled_with: Path | None = None
        self._http: HttpServer | None = None
        self._http_wanted = ""
        self._stop = asyncio.Event()
        self._reloading = asyncio.Lock()

    async def run(self, notifier: Notifier) -> None:
        """Start everything, tell the service manager, live until SIGTERM or SIGINT, stop everything.

        Raises ReplicadError when it cannot start: another daemon on the same state or store, an address in use.
        """
        self_test()
        async with AsyncExitStack() as stack:
            self._config.node.state.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = Lock(self._config.node.state / "lock")
            stack.callback(lock.release)
            stack.push_async_callback(self._stop_all)
            self._status.started_ns = self._clock.now_ns()
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._on_hangup)  # it would end the process
            async with self._reloading:
                await self._apply(self._config, Clients(self._config))
            self._handle_signals()
            notifier.ready(f"{len(self._datasets)} datasets")
            log.info("ready", node=self._config.node.name, http=self._status.http, listen=self._status.listen)
            await self._live(notifier)
            notifier.stopping()
            log.info("stopping")

    def stop(self) -> None:
        """End `run`."""
        self._stop.set()

    # what the HTTP server asks

    def status(self) -> NodeStatus:
        """The state of now."""
        status = self._status
        status.now_ns = self._clock.now_ns()
        status.datasets = [line for part in self._datasets.values() for line in part.statuses]
        parts = list(self._datasets.values())
        status.jobs = [line for part in parts for line in part.job_lines()]
        status.drills = [line for part in parts for line in part.drills.statuses]
        status.canaries = [line for part in parts for line in part.canaries.statuses]
        status.copies = [line for part in parts for line in part.tendings.copies]
        status.policies = [part.policy for part in parts]
        status.scrubs = [line for p in parts for line in (*p.scrubs.statuses, *p.tendings.statuses)]
        self._describe_replica_side(status)
        return status

    def _describe_replica_side(self, status: NodeStatus) -> None:
        """Nothing of one that there is no more is left in the status."""
        side = self._replica
        status.stores, status.retentions = (side.shelves.statuses, side.retentions.statuses) if side else ([], [])
        status.sessions, status.views = (side.reception.sessions, len(side.reception.views)) if side else (0, 0)
        status.store_free_bytes, status.store_problem = side.free_space.now if side else (-1, "")
        status.store_reserve_bytes = side.config.reserve_bytes if side else -1
        if side:
            status.scrubs = status.scrubs + side.scrubs.statuses
            status.jobs = status.jobs + side.jobs + side.scrubs.jobs

    def request_sync(self, dataset: str | None) -> list[SyncRequest]:
        """Ask for a pass of one dataset, or of all. Raises UsageError."""
        chosen = [self._protected(dataset)] if dataset else list(self._datasets.values())
        return [request for part in chosen for request in part.request()]

    def request_drill(self, dataset: str | None, *, full: bool, globs: Sequence[bytes]) -> list[DrillRequest]:
        """Ask for a drill of one dataset, or of all, from each replica. Raises UsageError."""
        kind = "paths" if globs else "full" if full else "sampled"
        chosen = [self._protected(dataset)] if dataset else list(self._datasets.values())
        lines = [line for part in chosen for line in part.drills.request(kind, globs)]
        return [DrillRequest(line.dataset, line.replica, line.requested) for line in lines]

    async def gate(self, asked: GateRequest) -> Gated:
        """Ask every replica of these datasets, or of all, what it holds, and judge it. Raises UsageError."""
        parts = [self._protected(name) for name in dict.fromkeys(asked.datasets)] or list(self._datasets.values())
        if not parts:
            raise UsageError("this node has no dataset", hint="type it on the primary")
        asked_ns = asked.asked_ns or self._clock.now_ns()
        ages = (asked.max_lag_s, asked.max_scrub_age_s, asked.max_drill_age_s)
        copies = [one for p in parts for one in p.gated(gate.demands(p.config.objectives, asked_ns, *ages))]
        return Gated(asked_ns, await gate.pass_through(copies, asked.pin))

    async def release(self, dataset: str) -> None:
        """Let a held dataset go on. Raises ReplicadError when that cannot be written down."""
        await self._protected(dataset).release()

    async def direct_scrub(self, action: str, dataset: str | None, side: str | None, for_s: float) -> Directed:
        """Start, pause or resume the scrubs of one dataset or all, of one side or both, on this node; with side
        "replica" a primary passes "start" on to the replicas of its own datasets. Raises ReplicadError."""
        parts = self._datasets.items()
        scrubs = [part.scrubs for _, part in parts] + ([self._replica.scrubs] if self._replica else [])
        meant = directing.Meant(action, dataset, side, for_s)
        answers = await directing.direct(meant, scrubs, {name: part.tendings for name, part in parts})
        until_ns = min((answer.until_ns for answer in answers), default=0)
        return Directed([contract.scrub_request(answer.status, answer.number) for answer in answers], until_ns)

    async def repair(self, id: str | None, *, dry_run: bool) -> list[RepairResult]:
        """Repair one finding, or all that are open, of whichever side; in a dry run only say what would be done. Raises
        UsageError when there is no such finding, or more than one."""
        meant = await self._meant(id)
        if id is None and not dry_run:
            await orders.close_breakers(*self._holders())
        done = await orders.repair(meant, dry_run=dry_run)
        return [contract.repair_result(found, one) for found, one in done if id is not None or one.result != "nothing"]

    async def undo_repair(self, id: str) -> list[RepairResult]:
        """Put back what the last repair of a finding took away. Raises UsageError as `repair`."""
        return [contract.repair_result(found, mended) for found, mended in await orders.undo(await self._meant(id))]

    async def retain(self, dataset: str | None) -> list[RetainResult]:
        """Run retention of the stores of one dataset, or of all, now. Raises UsageError."""
        if self._replica is None:
            raise UsageError("retention is the replica's, and this node keeps no copies", hint="type it on the replica")
        return [contract.retain_result(*one) for one in await self._replica.retentions.run(dataset)]

    async def _meant(self, id: str | None) -> list[orders.Order]:
        return await orders.meant(id, *self._holders(), self._clock)

    def _holders(self) -> tuple[list[Tendings], Shelves | None]:
        """Who has findings here: of datasets, and of stores."""
        return [part.tendings for part in self._datasets.values()], self._replica.shelves if self._replica else None

    async def reload(self) -> list[str]:
        """Read the configuration file again; an invalid one changes nothing. The problems, in words."""
        async with self._reloading:
            if self._stop.is_set():
                return ["the daemon stops"]
            try:
                config = await self._loaded()
                if config.node.state != self._config.node.state:
                    raise UsageError("the state directory cannot change while the daemon runs", hint="restart it")
                await self._replace(config)
            except ConfigError as error:
                return self._refused([str(problem) for problem in error.problems])
            except ReplicadError as error:
                return self._refused([str(error)])
            except Exception as error:  # a defect of ours: whoever waits for the end of the reload hears of it as well
                log.error("reload failed", exc_info=error)
                return self._refused([words_of(error)])
            self._status.config_error = ""
            log.info("configuration reloaded", file=config.file)
            if config.node.threads != self._threads:
                log.warning("node.threads is another number from the next start on", threads=self._threads)
            return []

    async def _loaded(self) -> Config:
        """The configuration as its file has it now. Raises ConfigError, ReplicadError when it takes too long: what the
        file names may lie on a dead mount."""
        file = self._config.file
        try:
            async with asyncio.timeout(LOAD_S):
                return await in_own_thread(partial(load, file))
        except TimeoutError:
            text = f"a file or directory that it names does not answer within {LOAD_S:.0f} s"
            raise ReplicadError(text, where=str(file), hint="findmnt and dmesg name a dead mount") from None

    def clients(self) -> Sequence[ClientConfig]:
        """The clients that may connect now; a changed file is read at once, so an authorisation needs no restart."""
        return self.authorised.current()

    # building

    async def _replace(self, config: Config) -> None:
        """Put `config` in force; when it cannot be (an address in use), what was before is put in force again, with
        every client that was let in since."""
        old, authorised = self._config, self.authorised
        try:
            await self._apply(config, Clients(config))
        except Exception as refused:
            try:
                await self._apply(old, authorised)
            except Exception as error:
                text = f"{refused}; and of the old one not all could be put in force again: {error}"
                raise ReplicadError(text, hint="systemctl restart replicad") from error
            raise
        configure(config.node.log_level, config.node.log_format)

    async def _apply(self, config: Config, authorised: Clients) -> None:
        """Make what runs agree with `config`; parts that are configured as before are left alone. The datasets, which
        cannot refuse, come last."""
        self._config, self.authorised = config, authorised
        await self._apply_replica_side(config)
        await self._apply_http(config)
        await self._apply_datasets(config)
        self._status.node = config.node.name

    async def _apply_replica_side(self, config: Config) -> None:
        if self._replica and self._replica.fits(config):
            self._replica.retune(config)
            await self._replica.recheck()
            return
        if self._replica:
            await self._replica.close()
            self._replica = None
        self._status.listen = ""
        if config.listen:
            side = ReplicaSide(self, config, self._disk, self._clock)
            try:
                self._status.listen = await side.start()
            except BaseException:
                await side.close()
                raise
            self._replica = side

    async def _apply_datasets(self, config: Config) -> None:
        key = config.node.key
        wanted = {dataset.name: (dataset, config.replicas_of(dataset)) for dataset in config.datasets}
        has_new_key, self._dialled_with = key != self._dialled_with, key
        before = {
            name: p for name, p in self._datasets.items() if has_new_key or (p.config, p.replicas) != wanted.get(name)
        }
        for part in before.values():
            await part.close()
        for replica in set(self._diallers) - (set() if has_new_key else set(config.replicas)):
            await self._diallers.pop(replica).close()
        for replica in config.replicas:
            self._diallers.setdefault(replica, Dialler(replica, key, SOFTWARE))
        parts = {}
        for name, (dataset, replicas) in wanted.items():
            if name in self._datasets and name not in before:
                parts[name] = self._datasets[name]
                continue
            diallers = [self._diallers[replica] for replica in replicas]
            parts[name] = Protected(config, dataset, diallers, self._pool, self._scouts, self._clock, self._disk)
            opening = partial(self.surfaces.primary, parts[name].dataset, self.scrub_pool, self._lookouts, self._clock)
            parts[name].scrub(opening, self._turns)
            parts[name].drill(config.node.state, diallers, lambda: live_places(self._config), self._drill_turn)
            if name in before:
                parts[name].take_over(before[name])
            parts[name].start()
        for part in parts.values():
            part.policy.place = config.node.place
        self._datasets = parts

    async def _apply_http(self, config: Config) -> None:
        address = config.node.http
        if self._http is None:
            self._http = HttpServer(self, address=address, state=config.node.state, clock=self._clock)
            await self._http.start()
        elif address != self._http_wanted:
            await self._http.move(address)
        self._http_wanted, self._status.http = address, self._http.address

    # living and stopping

    async def _live(self, notifier: Notifier) -> None:
        """Feed the service manager's watchdog until told to stop, and have the status written down beside that: a disk
        that stands still is no event loop that does."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._remember())
            while not self._stop.is_set():
                notifier.watchdog()
                await self._stopped_within(notifier.watchdog_s or REMEMBER_S)

    async def _remember(self) -> None:
        """Write the status down now and then, and once more when told to stop."""
        while not self._stop.is_set():
            await write_down(self._config.node.state, self.status(), self._disk)
            await self._stopped_within(REMEMBER_S)
        await write_down(self._config.node.state, self.status(), self._disk)

    async def _stopped_within(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), seconds)

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)

    def _on_hangup(self) -> None:
        if not self._stop.is_set():
            self._hangup = asyncio.get_running_loop().create_task(self._reload_for_systemd())

    async def _reload_for_systemd(self) -> None:
        notifier = Notifier()
        notifier.reloading()
        await self.reload()
        notifier.ready("configuration refused" if self._status.config_error else "configuration reloaded")

    async def _stop_all(self) -> None:
        """Primary first, so that what it has under way can still be acknowledged or is cut cleanly. A reload under way
        comes to its end before; what fails to end keeps nothing else from ending."""
        self._stop.set()
        async with self._reloading, AsyncExitStack() as stack:
            stack.callback(self.scrub_pool.shutdown)
            stack.callback(self._pool.shutdown)
            if self._http:
                stack.push_async_callback(self._http.stop)
            if self._replica:
                stack.push_async_callback(self._replica.close)
            for dialler in self._diallers.values():
                stack.push_async_callback(dialler.close)
            stack.push_async_callback(self._lookouts.close)
            stack.push_async_callback(self._scouts.close)
            ended = await asyncio.gather(*(part.close() for part in self._datasets.values()), return_exceptions=True)
            for error in ended:
                if error is not None:
                    raise error

    def _protected(self, dataset: str) -> Protected:
        if dataset not in self._datasets:
            names = ", ".join(self._datasets) or "none"
            raise UsageError(f"there is no dataset {dataset!r} here", hint=f"configured: {names}")
        return self._datasets[dataset]

    def _refused(self, problems: list[str]) -> list[str]:
        self._status.config_error = "; ".join(problems)
        for problem in problems:
            log.error("configuration refused, the old one is in force", problem=problem)
        return problems


class ReplicaSide:
    """What a node does for the primaries that store here."""

    def __init__(self, daemon: Daemon, config: Config, disk: Disk, clock: Clock) -> None:
        assert config.listen is not None
        self.config, self._node = config.listen, config.node
        self.scrubs = Scrubs(clock, log_failure)
        self.shelves = Shelves(
            config.listen,
            daemon.clients,
            disk,
            clock,
            appeared=self._judge,
            scrub_of=lambda client, dataset: self.scrubs.find(dataset, client),
            rules_of=lambda client: self._whole.rules_of(client),
        )
        self._clock, self._surface, self._turns = clock, daemon.surfaces.replica, Turns()
        self._pool, self._whole = daemon.scrub_pool, config
        self.retentions = Retentions(self.shelves, lambda client: self._whole.rules_of(client), self._pool, clock, disk)
        house = House(
            node=config.node.name,
            software=SOFTWARE,
            clients=daemon.clients,
            serve=self.shelves.serve,
            report=log_session_end,
            on_view=OnView(config.listen, lambda: daemon.authorised.viewers(), clock, disk, self.shelves.note_damage),
            max_sessions=config.listen.max_sessions,
            window_bytes=config.listen.window_bytes,
        )
        self.reception = Reception(house)
        self.free_space = FreeSpace(config.listen.store, disk, clock)
        self.jobs: list[JobStatus] = [JobStatus("receive", running=False)]
        self._tasks: list[asyncio.Task[None]] = []
        self._listener: Listener | None = None
        self._stack = AsyncExitStack()

    def fits(self, config: Config) -> bool:
        """Whether this is what `config` asks for."""
        node = self._node
        retuned = {name: getattr(config.listen, name) for name in RETUNED} if config.listen else {}
        return replace(self.config, **retuned) == config.listen and (node.name, node.key) == (
            config.node.name,
            config.node.key,
        )

    def retune(self, config: Config) -> None:
        """Go by the keys that `fits` does not mind."""
        assert config.listen is not None
        self.config, self._whole = config.listen, config
        self.shelves.adjust(config.listen)

    async def recheck(self) -> None:
        """End the sessions of clients that may not connect any more."""
        await (self._listener or self.reception).recheck()

    async def start(self) -> str:
        """Open all stores and doors; the listener's address, "" without one."""
        self.config.store.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._stack.push_async_callback(self.shelves.close)
        self._stack.push_async_callback(self.scrubs.close)
        self._stack.push_async_callback(self._stop_jobs)
        await self.shelves.open_all()
        await self.free_space.step()
        self._run(self.free_space)
        self._stack.push_async_callback(self.reception.close)
        unix = await serve_unix(self._node.state / SOCKET_NAME, self.reception)
        self._stack.push_async_callback(unix.close)
        address = ""
        if self.config.address:
            self._listener = await listen(self.config.address, self._node.key, self.reception)
            self._stack.push_async_callback(self._listener.close)
            address = f"{self.config.address.rpartition(':')[0]}:{self._listener.port}"
        self.jobs[0].running = True
        return address

    async def close(self) -> None:
        """Close the doors, end the sessions, close the stores."""
        self.jobs[0].running = False
        await self._stack.aclose()

    def _judge(self, client: str, dataset: str) -> None:
        """A store has appeared: scrub it from now on, and look at what its snapshots change."""

        async def in_book(work: Callable[[Findings], Result]) -> Result:
            return await self.shelves.in_findings(client, dataset, work)

        self.scrubs.start(
            Scrubbing(
                partial(self._surface, self.shelves, client, dataset),
                in_book,
                ScrubStatus(dataset, Side.REPLICA, client),
                lambda: policy_of(self.config),
                self._clock,
                turns=self._turns,
            )
        )
        directory = store_path(self.config.store, client, dataset)
        self._run(Examining(client, dataset, directory, in_book, self._pool, self._clock))
        self._run(self.retentions.add(Place(client, dataset, directory)))

    def _run(self, job: Job) -> None:
        line = JobStatus(job.name)
        self.jobs.append(line)
        self._tasks.append(asyncio.create_task(Runner(job, line, self._clock, log_failure).run()))

    async def _stop_jobs(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
