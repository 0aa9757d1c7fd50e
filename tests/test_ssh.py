"""SSH: pinned keys both ways, one subsystem and nothing else, limits, and endings that are noticed."""

from __future__ import annotations

import asyncio
import os
import random
import stat
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncssh
import pytest
from asyncssh.constants import MSG_GLOBAL_REQUEST
from asyncssh.kex import get_kex_algs
from asyncssh.packet import Boolean, String
from asyncssh.public_key import load_keypairs

from kit_engine import JumpingClock
from kit_link import WINDOW_BYTES, Relay, open_writing, wait_for
from kit_ssh import KEEPALIVE_S, Link, carried, linked
from replicad.config import ClientConfig
from replicad.config.values import Hours
from replicad.link import carrier as carrier_module
from replicad.link import channel as channel_module
from replicad.link import reception as reception_module
from replicad.link import ssh, ssh_options
from replicad.link.carrier import UNSENT_BYTES
from replicad.link.channel import QUEUE_BYTES, Channel
from replicad.link.messages import Blocks, OpenRead
from replicad.link.sealing import Gcm
from replicad.link.session import State
from replicad.link.ssh import Dialler, generate_key, listen, public_key
from replicad.model.errors import ConfigError, LinkError, RefusedError, UsageError
from replicad.model.pairing import fingerprint, parse_key

MEBIBYTE = 1024 * 1024
COSTLY_KEX = [name for name in map(bytes.decode, get_kex_algs()) if not name.startswith("gss-") and name not in ssh.KEX]


@pytest.fixture
async def link(tmp_path: Path) -> AsyncIterator[Link]:
    async with linked(tmp_path) as link:
        yield link


# ------------------------------------------------------------------------------------------------------------ keys


def test_a_new_key_is_private_and_never_overwrites(tmp_path: Path) -> None:
    """Mode 0600, an Ed25519 public line, and the second attempt is refused and changes nothing."""
    path = tmp_path / "key"
    line = generate_key(path, "ams1")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert line == parse_key(line) == public_key(path)
    with pytest.raises(UsageError, match="already there"):
        generate_key(path, "ams1")
    assert public_key(path) == line


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_key_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    """The error says what to type."""
    path = tmp_path / "key"
    generate_key(path, "ams1")
    path.chmod(mode)
    with pytest.raises(ConfigError, match=f"chmod 600 {path}"):
        public_key(path)


def test_what_is_no_key_of_ours_is_refused(tmp_path: Path) -> None:
    """A missing file, rubbish, another type and a key with a passphrase each say what they are."""
    path = tmp_path / "key"
    with pytest.raises(ConfigError, match="cannot be read"):
        public_key(path)
    encrypted = tmp_path / "encrypted"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", encrypted], check=True)
    ecdsa = asyncssh.generate_private_key("ecdsa-sha2-nistp256").export_private_key()
    cases = {b"rubbish": "no private key", ecdsa: "ecdsa", encrypted.read_bytes(): "passphrase"}
    for content, said in cases.items():
        path.write_bytes(content)
        path.chmod(0o600)
        with pytest.raises(ConfigError, match=said):
            public_key(path)


async def test_a_key_file_with_wrong_mode_stops_both_ends(link: Link) -> None:
    """Neither dialling nor listening uses a key that others can read."""
    link.client_key.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        await link.dialler().dial()
    link.host_key.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        await listen("127.0.0.1:0", link.host_key, link.node.reception)


# ------------------------------------------------------------------------------------------------------- good sessions


async def test_a_channel_carries_what_was_sent(link: Link) -> None:
    """Messages of all sizes arrive unchanged and in order, and the server knows the client by its key."""
    channel = await carried(link, random.Random(1), 60, [1, 100, 65_535, 65_536, 262_144, 1_048_576, 3_000_000])
    assert link.node.served == ["ams1"] and channel.peer == "fra1"


async def test_each_packet_is_sealed_alone(link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    """No empty packet goes before each one: it would protect ciphers that are not on offer."""
    assert all("gcm" in cipher or "poly1305" in cipher for cipher in ssh_options.CIPHERS)
    channel = await open_writing(await link.dialler().dial())
    sizes: list[int] = []
    seal = Gcm.seal

    def noted(gcm: Gcm, header: bytes, plain: bytes) -> bytes:
        sizes.append(len(plain))
        return seal(gcm, header, plain)

    monkeypatch.setattr(Gcm, "seal", noted)
    await channel.send(Blocks(bytes(4 * ssh.PACKET_BYTES - 100)))
    await wait_for(lambda: link.node.received)
    large = [size for size in sizes if size > ssh.PACKET_BYTES // 4]
    assert len(large) == 5 and sum(large) < 4 * ssh.PACKET_BYTES + 5 * 64
    assert len(sizes) < 9  # and perhaps a sign of life, or a window
    await channel.close()


async def test_channels_share_one_connection(link: Link) -> None:
    """One connection carries all channels of a dialler, and one bandwidth limit holds for all of them."""
    dialler = link.dialler()
    channels = await asyncio.gather(*(dialler.dial() for _ in range(3)))
    assert len(link.listener.doors) == 1
    assert channels[0]._bandwidth is channels[1]._bandwidth is channels[2]._bandwidth
    await channels[0].close()
    await open_writing(channels[1])
    assert channels[1].error is None


async def test_the_hour_of_the_day_says_what_may_be_sent(link: Link) -> None:
    """Over a connection that stands: what is sent within the hours waits for its share, what comes later does not."""
    clock = JumpingClock(0)
    link.replica = replace(link.replica, bandwidth_hours=(Hours(0, 8 * 60, 1024),))
    dialler = Dialler(link.replica, link.client_key, "replicad test", clock)
    channel = await open_writing(await dialler.dial())
    await channel.send(Blocks(bytes(3600 * 1024)))
    waiting = asyncio.create_task(channel.send(Blocks(b"at night")))
    await wait_for(lambda: link.node.received != [])
    assert not waiting.done()
    clock.ns = 8 * 3600 * 10**9
    await channel.send(Blocks(b"by day"))
    await wait_for(lambda: Blocks(b"by day") in link.node.received)
    assert not waiting.done() and Blocks(b"at night") not in link.node.received
    waiting.cancel()
    await dialler.close()


async def test_authenticated_encryption_without_compression(link: Link) -> None:
    """The fastest AEAD cipher is chosen, and nothing is compressed twice."""
    dialler = link.dialler()
    await dialler.dial()
    (caller,) = dialler._callers
    info = caller.line.connection.get_extra_info
    assert (info("send_cipher"), info("send_compression")) == ("aes128-gcm@openssh.com", "none")


@pytest.mark.parametrize("algorithm", ssh.KEX)
async def test_a_cheap_key_exchange_is_offered(link: Link, algorithm: str) -> None:
    """Each of those that are named can be had, and with it a session."""
    async with link.connection(kex_algs=[algorithm]) as connection:
        await connection.create_session(asyncssh.SSHClientSession, subsystem="replicad")


@pytest.mark.parametrize("algorithm", COSTLY_KEX)
async def test_a_costly_key_exchange_is_offered_to_nobody(link: Link, algorithm: str) -> None:
    """A stranger who asks for RSA, a large group or an old hash gets none, whatever the SSH library could do."""
    with pytest.raises(asyncssh.KeyExchangeFailed):
        async with link.connection(kex_algs=[algorithm]):
            pass


async def test_a_server_that_wants_a_costly_key_exchange_is_refused(link: Link) -> None:
    """The side that dials is as strict."""
    host_key = asyncssh.read_private_key(link.host_key)
    server = await asyncssh.listen(
        "127.0.0.1", 0, server_factory=asyncssh.SSHServer, server_host_keys=[host_key], kex_algs=["rsa2048-sha256"]
    )
    with pytest.raises(RefusedError, match="no common ground"):
        await link.dialler(port=server.get_port()).dial()
    server.close()


async def test_the_environment_has_no_influence(link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither ~/.ssh/config nor keys, known hosts or an agent of the account are looked at."""
    home = link.directory / "home" / ".ssh"
    home.mkdir(parents=True)
    (home / "config").write_text("Host *\n  ProxyCommand false\n  User nobody\n  HostKeyAlgorithms ssh-rsa\n")
    (home / "known_hosts").write_text(f"* {link.node.clients[0].key}\n")
    generate_key(home / "id_ed25519", "other")
    monkeypatch.setenv("HOME", str(home.parent))
    monkeypatch.setenv("SSH_AUTH_SOCK", str(home / "no-agent"))
    await (await link.dialler().dial()).close()


async def test_a_new_authorisation_needs_no_restart(link: Link) -> None:
    """Who is let in is asked at each authentication."""
    other = link.directory / "other"
    line = generate_key(other, "lon1")
    with pytest.raises(RefusedError):
        await link.dialler(key=other).dial()
    link.node.clients.append(ClientConfig("lon1", f"{line} a comment"))
    await link.dialler(key=other).dial()
    await wait_for(lambda: link.node.served == ["lon1"])


async def test_a_withdrawn_authorisation_opens_no_more_sessions(link: Link) -> None:
    """Also on a connection that stands."""
    dialler = link.dialler()
    await dialler.dial()
    link.node.clients.clear()
    with pytest.raises(RefusedError):
        await dialler.dial()


# ------------------------------------------------------------------------------------------------------- wrong keys


async def test_an_unknown_client_key_is_refused(link: Link) -> None:
    """The client is told which key and what to run; the server reports the same fingerprint."""
    other = link.directory / "other"
    shown = fingerprint(generate_key(other, "lon1"))
    with pytest.raises(RefusedError) as caught:
        await link.dialler(key=other).dial()
    assert shown in str(caught.value) and "replicad authorize" in str(caught.value)
    await wait_for(lambda: link.node.reports)
    assert shown in str(link.node.reports[0]) and link.node.served == []


async def test_a_wrong_host_key_is_refused(link: Link) -> None:
    """The error names the expected and the seen fingerprint, and nothing was sent to the impostor."""
    expected = generate_key(link.directory / "other", "other")
    with pytest.raises(RefusedError) as caught:
        await link.dialler(host_key=expected).dial()
    assert fingerprint(expected) in str(caught.value) and fingerprint(link.replica.key) in str(caught.value)
    assert link.node.served == [] and link.node.reports == []


async def test_a_stolen_public_key_is_no_key(link: Link) -> None:
    """Offering an authorised public key and signing with another one lets nobody in."""
    mine = asyncssh.generate_private_key("ssh-ed25519")
    theirs = asyncssh.import_public_key(link.node.clients[0].key)

    thief = load_keypairs([mine])[0]
    thief.public_data = theirs.public_data
    with pytest.raises(asyncssh.PermissionDenied):
        await asyncssh.connect("127.0.0.1", link.listener.port, known_hosts=None, client_keys=[thief], config=None)
    assert link.node.served == [] and link.node.reports == []  # the key that was offered is an authorised one


def new_keys(count: int) -> list[asyncssh.SSHKey]:
    return [asyncssh.generate_private_key("ssh-ed25519") for _ in range(count)]


async def test_a_stranger_shows_few_keys(link: Link) -> None:
    """Then the connection is cut, and one line tells which keys it were."""
    keys = new_keys(3 * ssh.MAX_TRIES)
    with pytest.raises((asyncssh.ConnectionLost, asyncssh.PermissionDenied)):
        async with link.connection(client_keys=keys):
            pass
    await wait_for(lambda: not link.listener.doors)
    (report,) = link.node.reports
    assert [key for key in keys if key.get_fingerprint() in str(report)] == keys[: ssh.MAX_TRIES]
    await link.dialler().dial()


async def test_a_key_among_others_lets_in_and_nothing_is_told(link: Link) -> None:
    """Who has several keys and shows some before the right one is no stranger."""
    mine = asyncssh.read_private_key(link.client_key)
    async with link.connection(client_keys=[*new_keys(ssh.MAX_TRIES - 2), mine, *new_keys(2)]) as connection:
        await connection.create_session(asyncssh.SSHClientSession, subsystem="replicad")
    await wait_for(lambda: not link.listener.doors)
    assert not any("authorised" in str(report) for report in link.node.reports)


async def test_the_third_of_five_keys_in_an_agent_lets_in(link: Link) -> None:
    """OpenSSH's client offers all keys that its agent holds, one after the other."""
    agent = link.directory / "agent"
    process = await asyncio.create_subprocess_exec("ssh-agent", "-D", "-a", agent, stdout=asyncio.subprocess.DEVNULL)
    try:
        await wait_for(agent.exists)
        for number in range(5):
            key = link.client_key if number == 2 else link.directory / f"other{number}"
            if key != link.client_key:
                generate_key(key, "other")
            add = await asyncio.create_subprocess_exec(
                "ssh-add", "-q", key, env={**os.environ, "SSH_AUTH_SOCK": str(agent)}, stderr=asyncio.subprocess.DEVNULL
            )
            assert await add.wait() == 0
        await link.openssh("ssh", "-s", "127.0.0.1", "replicad", agent=agent)
    finally:
        process.terminate()
        await process.wait()
    await wait_for(lambda: not link.listener.doors)
    assert [report.where for report in link.node.reports] == ["ams1"]


async def test_a_stranger_fills_no_log(link: Link) -> None:
    """Many connections of one address are one line at once and one later that counts them; others are told apart."""
    for _ in range(20):
        with pytest.raises(asyncssh.PermissionDenied):
            async with link.connection(client_keys=new_keys(1)):
                pass
    other = link.directory / "other"
    generate_key(other, "lon1")
    with pytest.raises(asyncssh.PermissionDenied):
        async with link.connection(client_keys=[str(other)], local_addr=("127.0.0.2", 0)):
            pass
    await wait_for(lambda: not link.listener.doors)
    assert [report.where for report in link.node.reports] == ["127.0.0.1", "127.0.0.2"]
    await link.listener.close()
    assert "19 more" in str(link.node.reports[-1]) and len(link.node.reports) == 3


# ------------------------------------------------------------------------------------- nothing else is offered


@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        ("ssh", ("127.0.0.1", "id")),
        ("ssh", ("-T", "127.0.0.1")),
        ("ssh", ("-tt", "127.0.0.1")),
        ("ssh", ("-s", "127.0.0.1", "sftp")),
        ("ssh", ("-W", "127.0.0.1:22", "127.0.0.1")),
        ("ssh", ("-N", "-R", "0:127.0.0.1:22", "127.0.0.1")),
        ("ssh", ("-N", "-R", "/tmp/replicad-test.sock:127.0.0.1:22", "127.0.0.1")),
        ("sftp", ("127.0.0.1",)),
    ],
    ids=["exec", "shell", "pty", "sftp-subsystem", "forward", "remote-forward", "unix-forward", "sftp"],
)
async def test_openssh_s_client_gets_nothing_but_the_subsystem(
    link: Link, program: str, arguments: tuple[str, ...]
) -> None:
    """With an authorised key: no command, shell, terminal, file transfer or forwarding."""
    status, said = await link.openssh(program, *arguments)
    assert status not in (0, None)
    assert "uid=" not in said and "Permission denied" not in said
    assert link.node.served == [] and not Path("/tmp/replicad-test.sock").exists()


async def test_openssh_s_client_reaches_the_subsystem(link: Link) -> None:
    """The counter-check: the same client, key and options do reach what is offered, by algorithms that are named."""
    status, said = await link.openssh("ssh", "-v", "-s", "127.0.0.1", "replicad")
    assert status != 0 or said
    assert "server-sig-algs=<ssh-ed25519>" in said and any(f"kex: algorithm: {name}\r" in said for name in ssh.KEX)
    await wait_for(lambda: link.node.reports)
    assert "ams1" in str(link.node.reports[0])


async def test_a_client_that_ends_its_input_has_ended(link: Link) -> None:
    """The session goes at once, and the end is not called silence."""
    async with link.connection() as connection:
        channel, _ = await connection.create_session(asyncssh.SSHClientSession, subsystem="replicad", encoding=None)
        channel.write_eof()
        await asyncio.wait_for(channel.wait_closed(), 5)
        await wait_for(lambda: link.node.reports)
    assert "closed the connection" in str(link.node.reports[0])


async def test_requests_beside_the_subsystem_are_refused(link: Link) -> None:
    """Terminals, variables, agents, displays and tunnels: each is asked for by an authenticated client and refused."""
    async with asyncssh.connect(
        "127.0.0.1", link.listener.port, known_hosts=None, client_keys=[str(link.client_key)], config=None
    ) as connection:
        for attempt in (
            lambda: connection.create_session(asyncssh.SSHClientSession, subsystem="replicad", request_pty="force"),
            lambda: connection.open_unix_connection("/run/x.sock"),
            lambda: connection.open_connection("127.0.0.1", 22),
            lambda: connection.open_tun(0),
            lambda: connection.open_tap(0),
            lambda: connection.run("true"),
        ):
            with pytest.raises(asyncssh.ChannelOpenError):
                await attempt()
        await connection.create_session(asyncssh.SSHClientSession, subsystem="replicad", env={"LD_PRELOAD": "/x"})
        carriers = [carrier for door in link.listener.doors for carrier in door.line.carriers]
        assert [carrier._ssh.get_environment() for carrier in carriers] == [{}]


async def test_passwords_and_empty_authentication_are_not_offered(link: Link) -> None:
    """Public key is the only method there is."""
    methods = await asyncssh.get_server_auth_methods("127.0.0.1", link.listener.port)
    assert methods == ["publickey"]


# ------------------------------------------------------------------------------------------------------------ limits


async def is_cut(reader: asyncio.StreamReader) -> bool:
    try:
        async with asyncio.timeout(5):
            return await reader.read(1) == b""
    except ConnectionError:
        return True


async def test_a_flood_of_unauthenticated_connections_is_bounded(link: Link) -> None:
    """Per address and in all; those let in before stay, and when they go an honest client is let in again."""
    per_address, total = ssh.MAX_UNAUTHENTICATED_PER_ADDRESS, ssh.MAX_UNAUTHENTICATED
    streams = [await link.raw() for _ in range(per_address)]
    await wait_for(lambda: link.listener.unauthenticated.total() == per_address)
    reader, writer = await link.raw()
    assert await is_cut(reader)
    writer.close()
    for host in range(2, 1 + total // per_address):
        streams += [await link.raw(f"127.0.0.{host}") for _ in range(per_address)]
    await wait_for(lambda: link.listener.unauthenticated.total() == total)
    reader, writer = await link.raw("127.0.0.99")
    assert await is_cut(reader)
    writer.close()
    assert [await reader.read(4) for reader, _ in streams] == [b"SSH-"] * total
    for _, writer in streams:
        writer.close()
    await wait_for(lambda: not link.listener.unauthenticated)
    await link.dialler().dial()
    assert not link.listener.unauthenticated


async def test_a_connection_that_never_authenticates_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The login timeout frees its place."""
    monkeypatch.setattr(ssh, "LOGIN_S", 0.05)
    link = Link(tmp_path)
    await link.start()
    reader, writer = await link.raw()
    await reader.readline()
    await wait_for(lambda: not link.listener.doors)
    writer.close()
    await link.close()


async def test_channels_and_connections_of_one_client_are_bounded(link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that takes no more channels has another one beside it; at the end of both the others live on."""
    monkeypatch.setattr(ssh, "MAX_CHANNELS", 4)
    monkeypatch.setattr(ssh, "MAX_CONNECTIONS_PER_CLIENT", 3)
    dialler = link.dialler()
    channels = [await dialler.dial() for _ in range(8)]
    assert len(link.listener.doors) == 2
    await channels[0].close()
    channels[0] = await dialler.dial()
    channels += await asyncio.gather(*(dialler.dial() for _ in range(4)))
    assert len(link.listener.doors) == 3
    with pytest.raises((LinkError, RefusedError)):
        await dialler.dial()
    assert all(channel.error is None for channel in channels)


async def test_a_channel_that_asks_for_nothing_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An authenticated client cannot hold a place without a session."""
    monkeypatch.setattr(ssh, "GREETING_S", 0.05)
    link = Link(tmp_path)
    await link.start()
    connection = await asyncssh.connect(
        "127.0.0.1", link.listener.port, known_hosts=None, client_keys=[str(link.client_key)], config=None
    )
    channel = asyncssh.SSHClientChannel(connection, asyncio.get_running_loop(), "strict", None, "strict", 65536, 32768)
    await channel._open(b"session")
    await asyncio.wait_for(connection.wait_closed(), 5)
    await link.close()


async def test_a_channel_that_cannot_flush_ends_alone(link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a peer takes nothing on one channel, closing that one takes none of the others with it."""
    monkeypatch.setattr(channel_module, "CLOSE_S", 0.05)
    dialler = link.dialler()
    other = await open_writing(await dialler.dial())
    stuck = await open_writing(await dialler.dial(), "idle")
    flooding = asyncio.create_task(flood(stuck))
    await wait_for(lambda: not stuck._writable.is_set() and stuck._stream._full)  # type: ignore[attr-defined]
    await stuck.close()
    with pytest.raises(LinkError):
        await flooding
    await wait_for(lambda: link.node.reception.sessions == 1)
    await other.send(Blocks(b"goes on"))
    await wait_for(lambda: link.node.received)
    assert other.error is None and (await dialler.dial()).error is None and len(link.listener.doors) == 1


async def test_sessions_cut_without_a_word_cost_the_others_nothing(link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that asks for more sessions than there are keeps those that it has."""
    monkeypatch.setattr(reception_module, "MAX_TURNED_AWAY", 0)
    link.node.reception.house = replace(link.node.reception.house, max_sessions=1)
    dialler = link.dialler()
    channel = await open_writing(await dialler.dial())
    with pytest.raises(LinkError):
        await dialler.dial()
    await channel.send(Blocks(b"goes on"))
    await wait_for(lambda: link.node.received)
    assert channel.error is None


async def test_a_dial_that_is_given_up_leaves_no_channel_behind(link: Link) -> None:
    """Also where the replica was only just asked for one; the others on the connection go on."""
    dialler = link.dialler()
    channel = await open_writing(await dialler.dial())
    (door,) = link.listener.doors
    dialling = asyncio.create_task(dialler.dial())
    await asyncio.sleep(0)  # it has asked for a channel and waits for the answer
    dialling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await dialling
    await wait_for(lambda: link.node.reports and len(door.line.carriers) == 1)
    assert "cancelled" in str(link.node.reports[0]) and channel.error is None


async def test_channels_take_turns_on_a_line_that_is_full(link: Link) -> None:
    """Where each has more to send than the line carries, none waits for another one to end."""
    patient(link)
    relay = Relay(("127.0.0.1", link.listener.port))
    await relay.start()
    dialler = link.dialler(port=relay.port)
    channels = [await open_writing(await dialler.dial()) for _ in range(4)]
    relay.bandwidth_bytes = 32 * MEBIBYTE
    floods = [asyncio.create_task(flood(channel)) for channel in channels]
    await wait_for(lambda: sum(channel.sent_bytes for channel in channels) >= 40 * MEBIBYTE, seconds=60)
    assert min(channel.sent_bytes for channel in channels) >= 8 * MEBIBYTE
    for flooding in floods:
        flooding.cancel()
    await relay.close()


async def flood(channel: Channel) -> None:
    while True:
        await channel.send(Blocks(bytes(MEBIBYTE)))


def patient(link: Link) -> None:
    """Let neither side judge the other by its silence."""
    link.replica = replace(link.replica, keepalive_s=60.0)
    link.node.reception.house = replace(link.node.reception.house, keepalive_s=60.0)


async def test_a_receiver_that_does_not_take_stops_the_sender(link: Link) -> None:
    """What one channel holds is bounded by its window, its queue and small buffers, at both ends together."""
    channel = await open_writing(await link.dialler().dial(), "idle")
    sent = 0

    async def flood() -> None:
        nonlocal sent
        while True:
            await channel.send(Blocks(bytes(MEBIBYTE)))
            sent += 1

    flooding = asyncio.create_task(flood())
    await wait_for(lambda: not channel._writable.is_set() and channel._stream._full)  # type: ignore[attr-defined]
    assert WINDOW_BYTES <= sent * MEBIBYTE <= WINDOW_BYTES + QUEUE_BYTES + UNSENT_BYTES + 3 * MEBIBYTE
    flooding.cancel()


async def test_a_receiver_that_takes_slowly_holds_no_more_than_one_that_takes_nothing(link: Link) -> None:
    """Each time that it goes on, the sender may send as much as was taken, not a whole window anew."""
    channel = await open_writing(await link.dialler().dial(), "idle")
    (there,) = link.node.channels
    sent = taken = most = 0

    async def flood() -> None:
        nonlocal sent, most
        while True:
            await channel.send(Blocks(bytes(MEBIBYTE)))
            sent += 1
            most = max(most, sent - taken)

    flooding = asyncio.create_task(flood())
    for _ in range(6):
        before = -1
        while before < sent:  # until it is held up again
            before = sent
            for _ in range(200):
                await asyncio.sleep(0)
        for _ in range(4):
            await there.receive()
            taken += 1
    await wait_for(lambda: sent - taken >= WINDOW_BYTES // MEBIBYTE // 2)
    assert most * MEBIBYTE <= WINDOW_BYTES + QUEUE_BYTES + UNSENT_BYTES + 3 * MEBIBYTE
    flooding.cancel()


class Hoarder(asyncssh.SSHClientSession[bytes]):
    def data_received(self, data: bytes, datatype: int | None) -> None: ...


async def test_a_peer_with_a_huge_window_that_reads_nothing_fills_no_memory(link: Link) -> None:
    """Its window allows a gigabyte; what is buffered for it stays within the socket and a message."""

    async with hoarding(link) as (connection, stream):
        connection._transport.pause_reading()
        stream.write(bytes(ssh_open_read("source")))
        channel = link.node.channels[0]
        await wait_for(lambda: not channel._writable.is_set() and channel.sent_bytes > MEBIBYTE)
        before = channel.sent_bytes
        for _ in range(200):
            await asyncio.sleep(0)
        (door,) = link.listener.doors
        assert door.line.connection._transport.get_write_buffer_size() <= 2 * MEBIBYTE
        assert channel.sent_bytes == before
        connection._transport.resume_reading()
        await wait_for(lambda: channel.sent_bytes > before + 8 * MEBIBYTE)


async def test_a_peer_that_leaves_a_key_exchange_open_fills_no_memory(link: Link) -> None:
    """What the SSH library keeps until there are new keys is bounded as well."""
    patient(link)
    async with hoarding(link) as (connection, stream):
        stream.write(bytes(ssh_open_read("idle")))
        await wait_for(lambda: link.node.channels and link.node.channels[0].state is State.READING)
        (channel,) = link.node.channels
        connection._send_kexinit()
        connection.data_received = lambda data, datatype=None: None
        (door,) = link.listener.doors
        await wait_for(lambda: not door.line.connection._kex_complete)
        flooding = asyncio.create_task(flood(channel))
        await wait_for(lambda: not channel._writable.is_set())
        assert channel.sent_bytes <= 4 * MEBIBYTE
        flooding.cancel()


async def test_a_peer_that_asks_and_takes_no_answer_is_cut_off(link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    """What SSH answers by itself waits for nobody, so there is an end to it."""
    monkeypatch.setattr(carrier_module, "MAX_ANSWERS", 100)
    patient(link)
    async with hoarding(link) as (connection, stream):
        connection._transport.pause_reading()
        stream.write(bytes(ssh_open_read("source")))
        await wait_for(lambda: link.node.channels and not link.node.channels[0]._writable.is_set())
        (door,) = link.listener.doors
        door.line.connection.set_keepalive(60)
        for _ in range(101):
            connection.send_packet(MSG_GLOBAL_REQUEST, String(b"keepalive@openssh.com"), Boolean(True))
        await wait_for(lambda: not link.listener.doors)
    await link.dialler().dial()


@asynccontextmanager
async def hoarding(link: Link) -> AsyncIterator[tuple[Any, Any]]:
    """A connection, and a greeted channel on it whose window allows a gigabyte."""
    async with link.connection() as connection:
        stream, _ = await connection.create_session(
            Hoarder, subsystem="replicad", encoding=None, window=1024**3, max_pktsize=65536
        )
        stream.write(bytes(ssh_hello()))
        await wait_for(lambda: link.node.channels)
        yield connection, stream


def ssh_hello() -> bytearray:
    from replicad.link.frames import pack
    from replicad.link.messages import PROTOCOL, Hello

    return pack(Hello(PROTOCOL, "test"))


def ssh_open_read(dataset: str) -> bytearray:
    from replicad.link.frames import pack

    return pack(OpenRead(dataset))


# ----------------------------------------------------------------------------------------------------------- endings


async def test_a_half_open_connection_is_noticed_at_both_ends(link: Link) -> None:
    """When nothing passes and nobody is told, both ends find out by the keep-alive, and dialling works again."""
    relay = Relay(("127.0.0.1", link.listener.port))
    await relay.start()
    dialler = link.dialler(port=relay.port)
    channels = [await open_writing(await dialler.dial()) for _ in range(2)]
    relay.black_hole()
    for channel in channels:
        with pytest.raises(LinkError, match="silent"):
            await asyncio.wait_for(channel.receive(), 5)
    await wait_for(lambda: ["silent" in str(report) for report in link.node.reports] == [True, True])
    await wait_for(lambda: not link.listener.doors)
    relay.cut()
    relay.restore()
    await open_writing(await dialler.dial())
    await relay.close()


async def test_signs_of_life_of_ssh_itself_are_not_the_peer_s(link: Link) -> None:
    """An sshd that asks and answers for a program behind it which has hung does not keep its session alive."""
    async with link.connection(keepalive_interval=KEEPALIVE_S / 4) as connection:
        channel, _ = await connection.create_session(asyncssh.SSHClientSession, subsystem="replicad", encoding=None)
        await wait_for(lambda: link.node.reports)
        await asyncio.wait_for(channel.wait_closed(), 5)
    assert "silent" in str(link.node.reports[0])


async def test_a_slow_line_is_not_a_dead_one(link: Link) -> None:
    """Where one packet takes longer than three keep-alives, the bytes of it count as heard at both ends."""
    relay = Relay(("127.0.0.1", link.listener.port))
    await relay.start()
    channel = await open_writing(await link.dialler(port=relay.port).dial())
    relay.bandwidth_bytes = 300_000
    await channel.send(Blocks(bytes(3 * ssh.PACKET_BYTES)))
    await wait_for(lambda: link.node.received)
    assert channel.error is None and link.node.reports == []
    await relay.close()


async def test_a_half_open_connection_without_channels_is_noticed(link: Link) -> None:
    """It frees its place at the server, and the client's next dial does not wait for it."""
    relay = Relay(("127.0.0.1", link.listener.port))
    await relay.start()
    dialler = link.dialler(port=relay.port)
    await (await dialler.dial()).close()
    relay.black_hole()
    (caller,) = dialler._callers
    connection = caller.line.connection
    await wait_for(lambda: connection.is_closed() and not link.listener.doors)
    relay.cut()
    relay.restore()
    assert (await dialler.dial()).error is None
    await relay.close()


async def test_a_cut_connection_ends_all_its_channels(link: Link) -> None:
    """Each channel raises LinkError, and the next dial makes a new connection."""
    relay = Relay(("127.0.0.1", link.listener.port))
    await relay.start()
    dialler = link.dialler(port=relay.port)
    channels = [await dialler.dial() for _ in range(2)]
    relay.cut()
    for channel in channels:
        with pytest.raises(LinkError, match="fra1"):
            await asyncio.wait_for(channel.receive(), 5)
    assert (await dialler.dial()).error is None
    await relay.close()


async def test_a_connection_that_is_lost_while_a_channel_is_opened_is_no_refusal(link: Link) -> None:
    """Nobody said no, and nobody has to change anything."""
    patient(link)
    relay = Relay(("127.0.0.1", link.listener.port))
    await relay.start()
    dialler = link.dialler(port=relay.port)
    await dialler.dial()
    relay.black_hole()
    dialling = asyncio.create_task(dialler.dial())
    for _ in range(10):
        await asyncio.sleep(0)
    relay.cut()
    with pytest.raises(LinkError, match="lost"):
        await dialling
    await relay.close()


async def test_a_listener_that_closes_ends_its_clients(link: Link) -> None:
    """The client is told that the daemon stops, and afterwards the address refuses."""
    channel = await open_writing(await link.dialler().dial())
    await link.node.reception.close()
    await link.listener.close()
    assert type(await channel.receive()).__name__ == "Refuse"
    with pytest.raises(LinkError, match="cannot connect"):
        await link.dialler().dial()


async def answering(answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> asyncio.Server:
    return await asyncio.start_server(answer, "127.0.0.1", 0)


async def test_a_host_that_does_not_answer_is_given_up(link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that is accepted and then silent ends in LinkError after a bounded time."""
    monkeypatch.setattr(ssh, "CONNECT_S", 0.05)
    writers = []

    async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        await reader.read()

    server = await answering(silence)
    with pytest.raises(LinkError, match=r"fra1.*no answer"):
        await link.dialler(port=server.sockets[0].getsockname()[1]).dial()
    for writer in writers:
        writer.close()
    server.close()


@pytest.mark.parametrize(
    "banner", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-1.5-old\r\n", b"SSH-2.0-\xff\xfe\r\n", os.urandom(4000), b""]
)
async def test_what_is_no_ssh_server_is_an_error_of_ours(link: Link, banner: bytes) -> None:
    """No exception of the SSH library gets out, whatever answers."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(banner)
        writer.close()

    server = await answering(answer)
    with pytest.raises((LinkError, RefusedError), match="fra1"):
        await link.dialler(port=server.sockets[0].getsockname()[1]).dial()
    server.close()


async def test_garbage_at_the_listener_harms_nobody(link: Link) -> None:
    """Random bytes instead of SSH end that connection alone."""
    channel = await open_writing(await link.dialler().dial())
    source = random.Random(3)
    for size in (1, 100, 100_000):
        reader, writer = await link.raw()
        writer.write(b"SSH-2.0-x\r\n" + source.randbytes(size))
        writer.write_eof()
        while not await is_cut(reader):
            pass
        writer.close()
    assert channel.error is None
    assert isinstance(channel, Channel)


async def test_a_taken_address_is_said(link: Link) -> None:
    """Listening where another program listens names the address."""
    with pytest.raises(LinkError, match=f"127.0.0.1:{link.listener.port}.*cannot listen"):
        await listen(f"127.0.0.1:{link.listener.port}", link.host_key, link.node.reception)
