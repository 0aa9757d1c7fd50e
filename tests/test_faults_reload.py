"""Two real daemons that are reloaded and stopped: what can change changes, what cannot says so, nothing gets lost."""

from __future__ import annotations

import asyncio
import random
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kit_faults import MIB, archive_of, ask, assert_quiet, configure, during, served, synced, tree_at, tree_now
from kit_pair import COMMAND, PATIENCE_S, Pair, free_port, make_pair, replicad, running, wait_until
from kit_rig import differences
from replicad.config import Config, load
from replicad.daemon import Daemon
from replicad.system.notify import Notifier

STOP_S = 20.0
"""What a daemon may take to end, whatever it does."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "www"
    path.mkdir()
    (path / "file").write_text("file")
    return path


@pytest.fixture
def pair(tmp_path: Path, root: Path) -> Iterator[Pair]:
    made = make_pair(tmp_path / "pair", root, dataset_options="watch = false\nmax_change = 1.0")
    with running(made):
        yield made


def _add_dataset(pair: Pair, name: str, path: Path) -> None:
    path.mkdir()
    (path / "inside").write_text(name)
    text = f'\n[[dataset]]\nname = "{name}"\npath = "{path}"\nwatch = false\n'
    pair.primary.config.write_text(pair.primary.config.read_text() + text)


def test_a_dataset_is_added_and_taken_out_by_a_reload(pair: Pair, tmp_path: Path, root: Path) -> None:
    """After SIGHUP a new dataset is copied, the others run on as they were, and one that is gone stops."""
    configure(pair.replica, "client", datasets=[])
    synced(pair)
    number = pair.line.pass_number
    text = pair.primary.config.read_text()
    _add_dataset(pair, "more", tmp_path / "more")
    pair.primary.hang_up()
    wait_until(lambda: [s.dataset for s in pair.primary.status().datasets if s.pass_ok] == ["www", "more"], "added")
    assert pair.line.pass_number == number
    more = archive_of(pair).with_name("more")
    assert differences(tree_at(more), tree_now(tmp_path / "more")) == []
    pair.primary.config.write_text(text)
    pair.primary.hang_up()
    wait_until(lambda: [s.dataset for s in pair.primary.status().datasets] == ["www"], "taken out")
    assert synced(pair).pass_number == number + 1
    assert_quiet(pair.primary, pair.replica)


@pytest.mark.parametrize(
    "broken",
    [
        "not toml at all [",
        "\n[nonsense]\nx = 1\n",
        '\n[[dataset]]\nname = "www"\npath = "/nowhere"\n',
        '\n[[dataset]]\nname = "more"\npath = "/nowhere"\nexclude = ["[z-a]"]\n',
    ],
)
def test_an_invalid_configuration_leaves_the_old_one_in_force(pair: Pair, root: Path, broken: str) -> None:
    """Status and log say what is wrong with the file, replication goes on, and a mended file clears it."""
    synced(pair)
    text = pair.primary.config.read_text()
    pair.primary.config.write_text(text + broken)
    pair.primary.hang_up()
    wait_until(lambda: pair.primary.status().config_error, "it is refused")
    assert "configuration refused" in pair.primary.log.read_text()
    assert replicad("check-config", "--config", pair.primary.config, code=2).stderr
    shown = replicad("status", "--json", "--config", _valid(pair, text), code=1).stdout
    assert '"kind": "config"' in shown or '"kind":"config"' in shown
    (root / "new").write_text("new")
    assert synced(pair).last_snapshot == 2
    pair.primary.config.write_text(text)
    pair.primary.hang_up()
    wait_until(lambda: not pair.primary.status().config_error, "it is in force")
    assert_quiet(pair.primary, pair.replica)


def _unloadable(*_: object) -> Config:
    raise RuntimeError("no loader raises this")


async def _unmovable(*_: object) -> None:
    raise OSError("no server raises this")


@pytest.mark.parametrize(
    ("defect", "said"),
    [
        ((), "configuration reloaded"),
        (("replicad.daemon.load", _unloadable), "configuration refused"),
        (("replicad.http.server.HttpServer.move", _unmovable), "configuration refused"),
    ],
    ids=["none", "load", "apply"],
)
async def test_systemd_hears_the_end_of_a_reload_whatever_it_comes_to(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch, defect: tuple[str, object], said: str
) -> None:
    """READY follows RELOADING also when a defect of ours ends it; then the status says so, and the old configuration is
    in force."""
    node = make_pair(tmp_path / "pair", root).primary
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        daemon = Daemon(load(node.config))
        running_daemon = asyncio.create_task(daemon.run(Notifier()))
        assert (await _heard(manager)).startswith("READY=1")
        before = daemon.status().http
        configure(node, "node", http=f"127.0.0.1:{free_port()}")
        if defect:
            monkeypatch.setattr(*defect)
        signal.raise_signal(signal.SIGHUP)
        assert (await _heard(manager)).startswith("RELOADING=1")
        assert await _heard(manager) == f"READY=1\nSTATUS={said}"
        assert daemon.status().config_error.startswith("defect: ") == bool(defect)
        assert (daemon.status().http == before) == bool(defect)
        daemon.stop()
        await running_daemon


async def _heard(manager: socket.socket) -> str:
    """What the service manager hears next, signs of life aside."""
    async with asyncio.timeout(PATIENCE_S):
        while (said := (await asyncio.get_running_loop().sock_recv(manager, 4096)).decode()) == "WATCHDOG=1":
            pass
    return said


def test_a_reload_ends_the_sessions_of_a_right_that_was_narrowed(pair: Pair, root: Path) -> None:
    """Nothing more of the dataset is taken in over a session that was open, until the right is given again."""
    synced(pair)
    configure(pair.replica, "client", datasets=["other"])
    pair.replica.hang_up()
    wait_until(lambda: "has no right to dataset" in pair.replica.log.read_text(), "the open session has ended")
    (root / "new").write_text("new")
    line = served(pair)
    assert not line.pass_ok and "no right to dataset" in line.reason, line
    configure(pair.replica, "client", datasets=["www"])
    assert synced(pair).last_snapshot == 2
    assert_quiet(pair.primary, pair.replica)


def _valid(pair: Pair, text: str) -> Path:
    """A configuration file that the command line can read meanwhile."""
    path = pair.primary.config.with_name("valid.toml")
    path.write_text(text)
    return path


@pytest.mark.parametrize(("table", "key"), [("listen", "address"), ("node", "http")])
def test_an_address_that_is_taken_leaves_the_old_one_in_force(pair: Pair, root: Path, table: str, key: str) -> None:
    """A reload that cannot have an address is refused as a whole: the old listener goes on, sessions come again."""
    synced(pair)
    text = pair.replica.config.read_text()
    before = pair.replica.status()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        configure(pair.replica, table, **{key: f"127.0.0.1:{taken.getsockname()[1]}"})
        if table == "node":
            configure(pair.replica, "listen", max_sessions=63)
        pair.replica.hang_up()
        wait_until(lambda: pair.replica.status().config_error, "it is refused")
    assert pair.replica.status().listen == before.listen
    (root / "new").write_text("new")
    during(pair, lambda line: line.state == "idle" or not line.link_up, "the session's end has been noticed")
    line = served(pair)
    assert line.pass_ok or served(pair).pass_ok, line
    assert differences(tree_at(archive_of(pair)), tree_now(root)) == []
    pair.replica.config.write_text(text)
    pair.replica.hang_up()
    wait_until(lambda: not pair.replica.status().config_error, "the old file is in force again")
    assert synced(pair)
    assert_quiet(pair.primary, pair.replica)


def test_who_waits_for_a_pass_gets_one_across_a_reload(pair: Pair, root: Path) -> None:
    """A reload that changes the dataset amid `sync --wait` begins its pass anew; the waiting command ends well."""
    source = random.Random(1)
    for number in range(12):
        (root / f"{number}").write_bytes(source.randbytes(MIB))
    configure(pair.primary, "replica", bandwidth="6MiB")
    pair.primary.hang_up()
    during(pair, lambda line: line.sent_bytes > 2 * MIB, "the pass has begun")
    words = [*COMMAND, "sync", "www", "--wait", "--config", str(pair.primary.config)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as waiting:
        during(pair, lambda line: line.pass_requested > 0, "it is asked for")
        configure(pair.primary, "dataset", rpo="77s")
        configure(pair.primary, "replica", bandwidth=0)
        pair.primary.hang_up()
        during(pair, lambda line: line.rpo_s == 77, "the reload is done")
        output = waiting.communicate(timeout=30)[0]
        assert waiting.returncode == 0, output
    assert differences(tree_at(archive_of(pair)), tree_now(root)) == []
    assert_quiet(pair.primary, pair.replica)


@pytest.mark.parametrize("side", ["primary", "replica"])
def test_a_stop_amid_a_pass_is_orderly_and_the_pass_goes_on_later(pair: Pair, root: Path, side: str) -> None:
    """SIGTERM ends either daemon in time with exit code 0; after its start the rest is sent, and only the rest."""
    source = random.Random(2)
    for number in range(16):
        (root / f"{number}").write_bytes(source.randbytes(MIB))
    (root / "large").write_bytes(source.randbytes(16 * MIB))
    configure(pair.primary, "replica", bandwidth="10MiB")
    pair.primary.hang_up()
    ask(pair)
    during(pair, lambda line: line.sent_bytes > 12 * MIB, "the pass has begun")
    node = getattr(pair, side)
    began = time.monotonic()
    assert node.stop() == 0
    assert time.monotonic() - began < STOP_S
    configure(pair.primary, "replica", bandwidth=0)
    node.start()
    if side == "replica":
        pair.primary.hang_up()
    synced(pair)
    assert differences(tree_at(archive_of(pair)), tree_now(root)) == []
    assert sum(p.stat().st_size for p in (archive_of(pair) / "segments").iterdir()) < 34 * MIB
    assert "stopping" in node.log.read_text()
    assert_quiet(pair.primary, pair.replica)


@pytest.mark.parametrize("post", ["trap : TERM; sleep 300; sleep 300", "exit 3"], ids=["hangs", "fails"])
def test_a_stop_lets_the_post_hook_run_but_not_for_ever(pair: Pair, tmp_path: Path, post: str) -> None:
    """SIGTERM amid a pass with hooks: the pre hook is ended, the post hook has its chance to clean up, and one that
    hangs or fails does not keep the daemon from ending in time."""
    synced(pair)
    for name, script in (("pre", "exec sleep 300"), ("post", post)):
        (tmp_path / f"{name}.sh").write_text(f"echo ran >> {tmp_path / name}-ran\n{script}")
        configure(pair.primary, "dataset", **{f"hook_{name}": ["sh", str(tmp_path / f"{name}.sh")]})
    pair.primary.hang_up()
    wait_until((tmp_path / "pre-ran").exists, "the pre hook runs")
    began = time.monotonic()
    assert pair.primary.stop() == 0
    assert time.monotonic() - began < STOP_S
    assert (tmp_path / "post-ran").read_text() == (tmp_path / "pre-ran").read_text() == "ran\n"
    assert ("hook ended with exit code 3" in pair.primary.log.read_text()) == (post == "exit 3")
    assert_quiet(pair.primary, pair.replica)
