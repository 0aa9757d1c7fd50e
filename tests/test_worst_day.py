"""The runbook of the worst day is followed to the letter, on hosts that share nothing but a network."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kit_pair import assert_same_tree
from kit_tree import build_tree, is_root

PAGE = Path(__file__).parent.parent / "docs" / "WORST-DAY.md"
STEP = re.compile(r"<!-- (.*?) -->(?:\n```sh\n(.*?)^```$)?", re.MULTILINE | re.DOTALL)
ABBREVIATED = {"bIl94": "fra1", "3zaB4": "ams3", "Rb7Qx": "fra2"}
"""Ends of the keys in the page, and the host that printed the key which is meant."""
PRIVATE = ("etc", "var/lib", "srv", "mnt", "run")
"""Directories that each host has for itself."""
REPLICAD = f"""#!/bin/sh
[ "$1" != init ] || set -- "$@" --http 127.0.0.1:0  # all hosts have one loopback here
exec "{sys.executable}" -m replicad "$@"
"""
SYSTEMCTL = """#!/bin/sh
case "$*" in
"stop replicad")
    kill "$(cat /run/replicad.pid)"
    while kill -0 "$(cat /run/replicad.pid)" 2>/dev/null; do sleep 0.1; done ;;
"reload replicad") kill -HUP "$(cat /run/replicad.pid)" ;;
"start replicad" | "enable --now replicad")
    setsid replicad run >>/run/replicad.log 2>&1 </dev/null &
    echo $! >/run/replicad.pid
    for i in $(seq 300); do
        replicad status >/dev/null 2>&1
        [ $? -eq 3 ] || exit 0
        kill -0 "$(cat /run/replicad.pid)" || break
        sleep 0.2
    done
    cat /run/replicad.log >&2
    exit 1 ;;
*) exit 1 ;;
esac
"""


@dataclass
class Host:
    """A host: directories of its own in a mount namespace, and the network that all of them share."""

    name: str
    base: Path
    network: int
    """Process id of whoever holds the network."""
    has_replicad: bool = True

    def __post_init__(self) -> None:
        for directory in (*PRIVATE, "home", "bin"):
            (self.base / directory).mkdir(parents=True)
        subprocess.run(["cp", "-a", "/etc/.", str(self.base / "etc")], check=True)
        (self.base / "etc" / "hosts").write_text("127.0.0.1 localhost fra1.example.org\n")
        shutil.rmtree(self.base / "etc" / "replicad", ignore_errors=True)
        programs = {"systemctl": SYSTEMCTL}
        if self.has_replicad:
            programs["replicad"] = REPLICAD
        for name, text in programs.items():
            (self.base / "bin" / name).write_text(text)
            (self.base / "bin" / name).chmod(0o755)

    def type(self, commands: str) -> str:
        """Type commands into a shell that ends at the first that fails; what they print."""
        mounts = "".join(f'mount --bind "{self.base}/{directory}" /{directory}\n' for directory in PRIVATE)
        script = f'set -eu\n{mounts}cd "{self.base}/home"\n{commands}'
        path = f"{self.base}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        enter = ["nsenter", f"--net=/proc/{self.network}/ns/net", "unshare", "--mount", "--propagation", "private"]
        done = subprocess.run(
            [*enter, "bash", "-c", script],
            capture_output=True, text=True, check=False, timeout=150, cwd=PAGE.parent.parent,
            env={"PATH": path, "LC_ALL": "C.UTF-8", "PYTHONPATH": str(PAGE.parent.parent)},
        )  # fmt: skip
        assert done.returncode == 0, f"on {self.name}:\n{commands}\n{done.stdout}{done.stderr}"
        return done.stdout

    @property
    def srv(self) -> Path:
        """Its /srv."""
        return self.base / "srv"

    def die(self) -> None:
        """The daemon, if one runs, is gone without a word."""
        pid = self.base / "run" / "replicad.pid"
        if pid.exists():
            try:
                os.kill(int(pid.read_text()), signal.SIGKILL)
            except ProcessLookupError:
                pass  # it was stopped before
            pid.unlink()


class World:
    """All hosts, what they printed, and the accidents that the page speaks of."""

    def __init__(self, base: Path, network: int) -> None:
        self.base, self.network = base, network
        self.hosts: dict[str, Host] = {}
        self.keys: dict[str, str] = {}
        self.accidents: dict[str, Callable[[], None]] = {
            "ams2 is lost, and the key": self.host("ams2").die,
            "the catalog is damaged": self.damage_catalog,
            "fra1 is lost, its disk is here": self.move_disk,
        }

    def host(self, name: str) -> Host:
        """A host, made when it is first named; nothing is installed on disk2."""
        if name not in self.hosts:
            self.hosts[name] = Host(name, self.base / name, self.network, name != "disk2")
        return self.hosts[name]

    def type(self, name: str, commands: str) -> str:
        """Type commands of the page, with the keys in full."""
        for end, printer in ABBREVIATED.items():
            commands = commands.replace(f"AAAAC3Nza…{end}", self.keys.get(printer, f"AAAAC3Nza…{end}"))
        printed = self.host(name).type(commands)
        if found := re.search(r"^replicad-(?:replica|primary) .*ssh-ed25519 (\S+)", printed, re.MULTILINE):
            self.keys[name] = found[1]
        return printed

    def damage_catalog(self) -> None:
        """Bytes in the middle of the catalog rot."""
        with (self.host("fra1").srv / "replicad/ams1/www/catalog.db").open("r+b") as file:
            for page in range(2, 6):
                file.seek(page * 4096 + 100)
                file.write(os.urandom(300))

    def move_disk(self) -> None:
        """The replica's host dies; its disk is looked at elsewhere, and then belongs to another host."""
        self.host("fra1").die()
        store = self.host("fra1").srv / "replicad"
        for name in ("disk1", "disk2"):
            shutil.copytree(store, self.host(name).base / "mnt" / "replicad")
        shutil.copytree(store, self.host("fra2").srv / "replicad")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A replica with a dataset in it, and no primary any more."""
    with subprocess.Popen(["unshare", "--net", "sh", "-c", "ip link set lo up && echo up && exec sleep 1000"],
                          stdout=subprocess.PIPE, text=True) as holder:  # fmt: skip
        assert holder.stdout and holder.stdout.readline() == "up\n"
        made = World(tmp_path, holder.pid)
        try:
            yield made
        finally:
            for host in made.hosts.values():
                host.die()
            holder.kill()


@pytest.mark.skipif(not is_root(), reason="hosts of its own need root")
def test_the_runbook_of_the_worst_day_brings_everything_back(world: World) -> None:
    """Each command in the page, in its order, on the host that the page names; every tree is the one that was lost."""
    live = world.host("ams1").srv / "www"
    build_tree(live, deep=False)
    os.unlink(live / "links" / "hard-symlink")  # records know hard links of files only
    replica = "replicad init replica --name fra1 --listen :7022 --advertise fra1.example.org:7022 --store /srv/replicad"
    line = world.type("fra1", f"install -d /srv/replicad; {replica}").strip()
    primary = world.type("ams1", f"replicad init primary --name ams1 --dataset www=/srv/www --replica '{line}'").strip()
    world.type("fra1", f"replicad authorize '{primary}'; systemctl start replicad")
    world.type("ams1", "systemctl start replicad; replicad sync www --wait")
    world.host("ams1").die()
    shutil.copy(world.host("ams1").base / "var/lib/replicad/key", world.host("ams2").base / "home/key")

    for place, commands in STEP.findall(PAGE.read_text()):
        if commands:
            world.type(place.removeprefix("on "), commands)
        else:
            world.accidents[place]()
    for name, directory in (("ams2", "www"), ("ams3", "www"), ("disk1", "restored"), ("disk2", "rescued")):
        assert_same_tree(live, world.host(name).srv / directory)
    assert_same_tree(live / "docs", world.host("disk2").srv / "docs" / "docs")
    listed = world.host("fra2").type("replicad restore --store /srv/replicad www /srv/last")
    assert "complete" in listed
    assert_same_tree(live, world.host("fra2").srv / "last")


def test_every_command_in_the_page_is_one_that_the_test_types() -> None:
    """No block stands without its host, and no accident is one that the test does not know."""
    text = PAGE.read_text()
    typed = [commands for _, commands in STEP.findall(text) if commands]
    assert len(typed) == text.count("```sh") == text.count("```") / 2
