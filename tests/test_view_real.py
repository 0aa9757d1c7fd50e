"""The SFTP view as a user has it: a real daemon, and OpenSSH's sftp and scp, sshfs and rclone, the host key pinned."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from kit_pair import make_pair, replicad, running, wait_until
from kit_restore import Writer, damage_block
from kit_tree import build_tree
from kit_viewer import Viewer, let_in
from replicad.model.block import block_id

FILES = 100_000
MANY = 10_000
BIG = b"".join(number.to_bytes(8, "big") for number in range(400_000))
NO_FUSE = not os.access("/dev/fuse", os.R_OK | os.W_OK)


@pytest.fixture(scope="module")
def viewer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Viewer]:
    """A tree of all kinds of entries in two snapshots, with a viewer who was let in while the replica ran, and a store
    of very many files beside it."""
    base = tmp_path_factory.mktemp("view")
    root, home = base / "live" / "tree", base / "home"
    build_tree(root, deep=False)
    (root / "big").write_bytes(BIG)
    make_plain(root / "plain")
    (root / "secret").write_bytes(b"for root alone\n")
    (root / "secret").chmod(0o600)
    pair = make_pair(base, root, dataset_options="watch = false\nmax_change = 1.0")
    with Writer(pair.store / "other" / "many") as writer:
        writer.put(b"")
        for number in range(FILES):
            if number % 1000 == 0 and number >= MANY:
                writer.put(b"d%03d" % (number // 1000))
            directory = b"d%03d/" % (number // 1000) if number >= MANY else b""
            writer.put(directory + b"%06d" % number, b"%d" % number)
        writer.seal(1)
    with running(pair) as made:
        ada = let_in(made, home, "ams1/www", "other/*")
        made.sync(code=None)
        (root / "big").write_bytes(BIG[: len(BIG) // 2])
        made.sync(code=None)
        yield ada


def make_plain(root: Path) -> None:
    """What every program can copy: directories and files, of several modes and sizes, some time ago."""
    for number, mode in enumerate((0o600, 0o640, 0o444, 0o755)):
        directory = root / f"d{number}" / "below"
        directory.mkdir(parents=True)
        for size in (0, 1, 65536, 200_000):
            path = directory / f"f{size}"
            path.write_bytes(BIG[:size])
            path.chmod(mode)
            os.utime(path, ns=(0, (1_500_000_000 + size) * 1_000_000_000))
        directory.chmod(0o750)


def numbers(viewer: Viewer) -> list[int]:
    """The snapshots of www."""
    listed = replicad("snapshots", "www", "--config", viewer.pair.primary.config, "--json").stdout
    return [line["number"] for line in json.loads(listed)]


def test_sftp_looks_around_and_fetches(viewer: Viewer) -> None:
    """As a person types it: ls, cd, pwd, get of a file and of a tree; and put, rm, mkdir are refused."""
    first = numbers(viewer)[0]
    said = viewer.sftp("ls -l /", "cd www", "ls", "cd latest", "pwd", "get secret", f"get /www/{first}/big before")
    shown = said.stdout.decode()
    assert "www" in shown and "many" in shown and f"Remote working directory: /www/{numbers(viewer)[-1]}" in shown
    assert (viewer.home / "secret").read_bytes() == b"for root alone\n"
    assert (viewer.home / "before").read_bytes() == BIG
    for line in ("put batch /www/latest/new", "rm /www/latest/big", "mkdir /www/new", "rename /www/1 /www/9"):
        assert b"denied" in viewer.sftp(line, code=1).stderr


def test_scp_fetches_a_whole_tree(viewer: Viewer) -> None:
    """Content, modes and times of regular files and directories are those of the source."""
    viewer.scp("-rp", "view@127.0.0.1:/www/latest/plain", viewer.home / "plain")
    done = viewer.run("rsync", "-rtpn", "--checksum", "--itemize-changes", f"{viewer.pair.root}/plain/", "plain/")
    assert done.stdout == b"", done.stdout
    viewer.scp("batch", "view@127.0.0.1:/www/latest/batch", code=1)


@pytest.mark.skipif(NO_FUSE, reason="this kernel, or this container, has no FUSE: sshfs cannot mount anything")
def test_sshfs_mounts_a_snapshot(viewer: Viewer) -> None:
    """The mounted tree is the source's, read by rsync; it cannot be written."""
    place = viewer.home / "mounted"
    place.mkdir()
    options = viewer.options(f"port={viewer.pair.port}", "ro", "idmap=none", "ssh_command=ssh -F /dev/null")
    viewer.run("sshfs", *options, "view@127.0.0.1:/www/latest/", place)
    try:
        words = ["-rtpogn", "--checksum", "--itemize-changes", "--delete", f"{viewer.pair.root}/plain/"]
        assert viewer.run("rsync", *words, f"{place}/plain/").stdout == b""
        live = {path.relative_to(viewer.pair.root): path for path in viewer.pair.root.rglob("*")}
        assert live.keys() == {path.relative_to(place) for path in place.rglob("*")}
        for name, path in live.items():
            seen, real = (place / name).lstat(), path.lstat()
            assert (seen.st_mode, seen.st_uid, seen.st_gid) == (real.st_mode, real.st_uid, real.st_gid), name
            if path.is_file() and not path.is_symlink():
                assert (place / name).read_bytes() == path.read_bytes() and seen.st_size == real.st_size, name
        for name in ("relative", "absolute"):  # the second one leads out of the mount: sshfs does not follow it
            link = next(path for path in live if path.name == name and path.parent.name == "links")
            assert (place / link).is_symlink()
        with pytest.raises(OSError, match="Read-only"):
            (place / "new").write_bytes(b"")
        with (place / "big").open("rb") as file:
            file.seek(123_456)
            assert file.read(1000) == BIG[123_456:124_456]
    finally:
        viewer.run("fusermount3", "-u", place)


def test_rclone_lists_and_copies(viewer: Viewer) -> None:
    """A tree of regular files is copied over several connections, compared with the source, and not written."""
    viewer.rclone("copy", "view:/www/latest/plain", viewer.home / "cloned")
    viewer.rclone(
        "check", "--download", viewer.pair.root / "plain", "view:/www/latest/plain", "--one-way", "--skip-links"
    )
    viewer.rclone("copyto", viewer.home / "batch", "view:/www/latest/batch", code=1)
    assert viewer.rclone("cat", "view:/www/latest/secret").stdout == b"for root alone\n"


def test_pins_and_times_are_names(viewer: Viewer) -> None:
    """Both lead to the snapshot that the other verbs mean by them."""
    first = numbers(viewer)[0]
    replicad("pin", "add", "before-upgrade", "www", "--at", first, "--config", viewer.pair.replica.config)
    last = json.loads(replicad("snapshots", "www", "--config", viewer.pair.primary.config, "--json").stdout)[-1]
    lines = ("cd /www/before-upgrade", "pwd", f"cd /www/{last['created']}", "pwd", "ls /www")
    said = viewer.sftp(*lines).stdout.decode()
    for number in (first, last["number"]):
        assert f"Remote working directory: /www/{number}\n" in said
    assert "/www/before-upgrade" in said


def test_one_file_of_very_many_and_a_long_listing(viewer: Viewer) -> None:
    """Out of a snapshot of 100,000 files, and of a directory of 10,000 entries. How long it takes: bench_restore.py."""
    viewer.sftp("get /many/latest/d077/077123 small")
    assert (viewer.home / "small").read_bytes() == b"77123"
    assert len(viewer.sftp("ls -1f /many/latest").stdout.splitlines()) >= MANY


def test_a_damaged_block_breaks_a_copy_off(viewer: Viewer) -> None:
    """`sftp` fails, what it has fetched is right, the rest of the tree can be had, and the log says what was met."""
    store = viewer.pair.store / "other" / "hurt"
    with Writer(store) as writer:
        writer.put(b"")
        writer.put(b"big", BIG)
        writer.put(b"well", b"well")
        writer.seal(1)
    damage_block(store, block_id(BIG[10 * 65536 : 11 * 65536]))
    done = viewer.sftp("get /hurt/latest/big hurt", code=1)
    assert b"Failure" in done.stderr or b"failure" in done.stderr
    got = (viewer.home / "hurt").read_bytes()
    assert len(got) < len(BIG) and BIG.startswith(got[: 10 * 65536])
    viewer.sftp("get /hurt/latest/well")
    assert "damage in bytes 655360 to 720895 of big" in viewer.pair.replica.log.read_text()


def test_a_slow_viewer_holds_up_nothing(viewer: Viewer) -> None:
    """While one has a file open and is stopped, passes go through and the node says how many look."""
    words = ["ssh", "-F", "/dev/null", "-p", str(viewer.pair.port), *viewer.options(), "-s", "view@127.0.0.1", "sftp"]
    said = b"\0\0\0\x05\x01\0\0\0\x03"
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parked:
        assert parked.stdin and parked.stdout
        parked.stdin.write(said)
        parked.stdin.flush()
        assert parked.stdout.read(4)
        name = b"/www/latest/big"
        body = b"\x03\0\0\0\1" + len(name).to_bytes(4, "big") + name + b"\0\0\0\1\0\0\0\0"
        parked.stdin.write(len(body).to_bytes(4, "big") + body)
        ask = b"\x05\0\0\0\2\0\0\0\x011" + bytes(8) + (200_000).to_bytes(4, "big")
        parked.stdin.write((len(ask).to_bytes(4, "big") + ask) * 1000)
        parked.stdin.flush()
        wait_until(lambda: viewer.pair.replica.status().views == 1, "the view is counted")
        (viewer.pair.root / "late").write_bytes(b"late")
        viewer.pair.sync(code=None)
        assert viewer.sftp("ls /www").returncode == 0
        parked.kill()
    wait_until(lambda: viewer.pair.replica.status().views == 0, "the view is over")


def test_who_is_removed_is_out_at_once(viewer: Viewer) -> None:
    """Without a restart, and so is whoever never was in."""
    other = viewer.home / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(other)], check=True)
    config = ("--config", viewer.pair.replica.config)
    replicad("viewer", "add", "bob", f"{other}.pub", "--dataset", "ams1/www", *config)
    guest = Viewer(viewer.pair, viewer.home / "guest")
    guest.home.mkdir()
    for name, source in (("key", other), ("known_hosts", viewer.home / "known_hosts")):
        shutil.copy2(source, guest.home / name)
    assert b"many" not in guest.sftp("ls /").stdout
    assert tomllib.loads(viewer.pair.replica.config.read_text())["viewer"][1]["name"] == "bob"
    replicad("viewer", "remove", "bob", *config)
    assert b"Permission denied" in guest.sftp("ls /", code=255).stderr
    assert b"many" in viewer.sftp("ls /").stdout


def test_the_primarys_key_views_nothing(viewer: Viewer) -> None:
    """It replicates, and that is all."""
    key = viewer.home / "primary"
    shutil.copy2(viewer.pair.primary.state / "key", key)
    done = viewer.run(
        "sftp", "-F", "/dev/null", "-P", viewer.pair.port, "-i", key, "-o", "StrictHostKeyChecking=yes", "-o",
        f"UserKnownHostsFile={viewer.home}/known_hosts", "-o", "IdentitiesOnly=yes", "-b", "batch", "view@127.0.0.1",
        code=255,
    )  # fmt: skip
    assert b"subsystem request failed" in done.stderr


def test_another_host_is_not_taken_for_the_replica(viewer: Viewer, tmp_path: Path) -> None:
    """The printed line pins the host key: with another one in its place nothing is asked of the host."""
    good = (viewer.home / "known_hosts").read_text()
    wrong = good.rpartition(" ")[0] + " " + (viewer.home / "key.pub").read_text().split()[1] + "\n"
    (viewer.home / "known_hosts").write_text(wrong)
    try:
        assert b"HOST IDENTIFICATION HAS CHANGED" in viewer.sftp("ls /", code=255).stderr
    finally:
        (viewer.home / "known_hosts").write_text(good)
