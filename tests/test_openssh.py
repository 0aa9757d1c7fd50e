"""OpenSSH as the door: a real sshd on loopback whose forced command is `replicad stdio`."""

from __future__ import annotations

import asyncio
import getpass
import os
import random
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kit_link import WINDOW_BYTES, Node, open_writing, wait_for
from kit_pair import free_port
from kit_ssh import carried
from replicad.config import ClientConfig, ReplicaConfig
from replicad.link.channel import KEEPALIVE_S
from replicad.link.messages import Blocks, Offer, OpenRead
from replicad.link.ssh import Dialler, generate_key
from replicad.link.unix import SOCKET_NAME, UnixListener, serve_unix
from replicad.model.errors import LinkError, RefusedError
from replicad.model.pairing import fingerprint

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
ROOT = Path(__file__).parent.parent
SSHD_CONFIG = """
Port {port}
ListenAddress 127.0.0.1
HostKey {directory}/host
AuthorizedKeysFile {directory}/authorized_keys
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
PrintMotd no
MaxSessions 2
Subsystem sftp internal-sftp
ClientAliveInterval 1
"""
DOOR = """#!{python}
import os, pathlib, sys
pathlib.Path("{directory}/pid").write_text(str(os.getpid()))
sys.path.insert(0, "{root}")
from replicad.cli.app import main
sys.exit(main(["stdio", "--client", "ams1", "--config", "{directory}/config.toml"]))
"""


class Door:
    """A node behind its unix socket, an sshd before it, and a primary's configuration for that."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        state = directory / "state"
        state.mkdir()
        self.node = Node(state)
        self.client_key = directory / "client"
        self.host_line = generate_key(directory / "host", "fra1")
        self.client_line = generate_key(self.client_key, "ams1")
        self.node.clients.append(ClientConfig("ams1", self.client_line))
        (directory / "config.toml").write_text(f'[node]\nname = "fra1"\nstate = "{state}"\n')
        script = directory / "door"
        script.write_text(DOOR.format(python=sys.executable, root=ROOT, directory=directory))
        script.chmod(0o755)
        authorised = f'restrict,command="{script}" {self.client_line}\n'
        (directory / "authorized_keys").write_text(authorised)
        self._diallers: list[Dialler] = []

    async def start(self) -> None:
        self.unix: UnixListener = await serve_unix(self.node.socket, self.node.reception)
        self.port = free_port()
        (self.directory / "sshd_config").write_text(SSHD_CONFIG.format(port=self.port, directory=self.directory))
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # Debian's sshd insists on it
        assert SSHD
        self.log = (self.directory / "sshd.log").open("w+b")
        self.sshd = await asyncio.create_subprocess_exec(
            SSHD, "-D", "-e", "-f", str(self.directory / "sshd_config"), stderr=self.log
        )
        await wait_for(self._listening)

    def _listening(self) -> bool:
        assert self.sshd.returncode is None, (self.directory / "sshd.log").read_text()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def dialler(
        self, *, key: Path | None = None, host_key: str = "", via: str = "openssh", keepalive_s: float = KEEPALIVE_S
    ) -> Dialler:
        replica = ReplicaConfig(
            name="fra1",
            address=f"127.0.0.1:{self.port}",
            key=host_key or self.host_line,
            via=via,
            user=getpass.getuser(),
            window_bytes=WINDOW_BYTES,
            keepalive_s=keepalive_s,
        )
        dialler = Dialler(replica, key or self.client_key, "replicad test")
        self._diallers.append(dialler)
        return dialler

    async def close(self) -> None:
        for dialler in self._diallers:
            await dialler.close()
        self.sshd.terminate()
        await self.sshd.wait()
        self.log.close()
        await self.node.reception.close()
        await self.unix.close()


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[Door]:
    door = Door(tmp_path)
    await door.start()
    yield door
    await door.close()


def test_sshd_is_installed() -> None:
    """Without it the rest of this file could not be tried."""
    assert SSHD, "install openssh-server"


async def test_data_passes_unchanged_to_the_replica(door: Door) -> None:
    """Through sshd, the forced command and the socket; the name of the client is the forced command's."""
    await carried(door, random.Random(1), 40, [1, 4096, 65_536, 1_048_576, 2_000_000])
    assert door.node.served == ["ams1"] and door.node.reports == []


async def test_data_passes_from_the_replica(door: Door) -> None:
    """The other direction, as a restore uses it; ending it in the middle leaves no session behind."""
    channel = await door.dialler().dial()
    await channel.send(OpenRead("source"))
    await channel.receive()
    for _ in range(30):
        assert await channel.receive() == Blocks(bytes(1024 * 1024))
    await channel.close()
    await wait_for(lambda: door.node.reception.sessions == 0)


async def test_several_channels_share_the_connection(door: Door) -> None:
    """Each has its own forced command and its own session."""
    dialler = door.dialler()
    channels = [await open_writing(await dialler.dial()) for _ in range(2)]
    for number, channel in enumerate(channels):
        await channel.send(Offer(bytes([number]) * 32))
    await wait_for(lambda: len(door.node.received) == 2)
    assert door.node.served == ["ams1", "ams1"]


async def test_more_channels_than_a_connection_takes_have_another_one(door: Door) -> None:
    """An sshd takes few sessions on a connection (MaxSessions); no dataset waits for another one's to end."""
    dialler = door.dialler()
    channels = await asyncio.gather(*(dialler.dial() for _ in range(3)))
    await channels[0].close()
    channels.append(await dialler.dial())
    assert len(dialler._callers) == 2 and [channel.error is None for channel in channels] == [False, True, True, True]


async def test_a_daemon_that_is_down_is_told_in_words(door: Door) -> None:
    """What the forced command says on its standard error reaches the primary's error."""
    await door.unix.close()
    with pytest.raises(LinkError, match=r"status 3: .*link\.sock.*the daemon does not answer"):
        await door.dialler().dial()
    assert SOCKET_NAME == "link.sock"


async def test_a_client_that_is_not_configured_is_told_so(door: Door) -> None:
    """sshd lets the key in, the daemon's configuration does not know the name."""
    door.node.clients.clear()
    with pytest.raises(RefusedError, match="'ams1' is not configured"):
        await door.dialler().dial()


async def test_a_wrong_host_key_is_refused(door: Door) -> None:
    """The host key of an OpenSSH server is pinned in the same way."""
    expected = generate_key(door.directory / "other", "other")
    with pytest.raises(RefusedError) as caught:
        await door.dialler(host_key=expected).dial()
    assert fingerprint(expected) in str(caught.value) and fingerprint(door.host_line) in str(caught.value)


async def test_an_unknown_key_is_refused(door: Door) -> None:
    """A key that is not in authorized_keys opens nothing."""
    other = door.directory / "other"
    line = generate_key(other, "lon1")
    with pytest.raises(RefusedError, match="not authorised") as caught:
        await door.dialler(key=other).dial()
    assert fingerprint(line) in str(caught.value)


async def test_an_openssh_server_taken_for_a_listener_is_explained(door: Door) -> None:
    """The error says which setting is wrong."""
    with pytest.raises(RefusedError, match='via = "openssh"'):
        await door.dialler(via="replicad").dial()


async def test_the_end_of_the_daemon_s_side_ends_the_channel(door: Door) -> None:
    """When the daemon cuts the session, the bridge ends and the primary notices at once."""
    channel = await open_writing(await door.dialler().dial())
    door.node.channels[0].abort()
    with pytest.raises(LinkError, match="fra1"):
        await asyncio.wait_for(channel.receive(), 5)


async def test_a_program_that_hangs_behind_an_sshd_is_noticed(door: Door) -> None:
    """The sshd goes on asking and answering by itself: the end comes by the keep-alive of the channel."""
    channel = await open_writing(await door.dialler(keepalive_s=0.4).dial())
    pid = int((door.directory / "pid").read_text())
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(LinkError, match="silent"):
            await asyncio.wait_for(channel.receive(), 10)
    finally:
        os.kill(pid, signal.SIGCONT)


async def test_the_end_of_the_primary_s_side_ends_the_session(door: Door) -> None:
    """When the primary's connection breaks, the bridge ends and the daemon notices at once."""
    dialler = door.dialler()
    await open_writing(await dialler.dial())
    await dialler.close()
    await wait_for(lambda: door.node.reception.sessions == 0)
    assert isinstance(door.node.reports[0], LinkError)
