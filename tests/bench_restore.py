"""Benchmarks of what brings data back: replicad against rsync, restic and borg over ssh, and looks into history.

    python tests/bench_restore.py [CASE]... [--rounds N] [--scale F] [--json FILE]     (make bench ARGS="restore big")

All programs bring the same tree back N times in turn, with cold caches and each into a directory that is not there
yet. restic and borg read their repositories over the sshd that rsync uses: a copy on the same host is no copy. What
replicad brings in the first round is compared with the tree. `first_byte` and `listing` have no rival but one second.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from bench import GIB, Result, Rsync, Timed, a_pair, big_file, drop_caches, long_line, small_files
from kit_pair import COMMAND, Pair, assert_same_tree, free_port
from kit_viewer import let_in

REAL = Path("/usr/share")
"""What `tree` copies: pages, tables, scripts, pictures, and a great many links."""
Bring = Callable[[Path], object]


class Restic:
    """A restic repository behind an sshd."""

    def __init__(self, directory: Path, tree: Path, sshd: Rsync) -> None:
        self._words = ["restic", "-q", "-o", f"sftp.command={sshd.shell} 127.0.0.1 -s sftp"]
        self._env = os.environ | {
            "RESTIC_REPOSITORY": f"sftp:127.0.0.1:{directory / 'restic'}",
            "RESTIC_PASSWORD": "bench",
            "RESTIC_CACHE_DIR": str(directory / "restic-cache"),
        }
        self._run("init")
        self._run("backup", ".", inside=tree)

    def restore(self, target: Path) -> None:
        """All of it."""
        self._run("restore", "latest", "--target", str(target))

    def _run(self, *words: str, inside: Path | None = None) -> None:
        subprocess.run([*self._words, *words], env=self._env, cwd=inside, check=True)


class Borg:
    """A borg repository behind an sshd, not encrypted: it is not slower than the others for that."""

    def __init__(self, directory: Path, tree: Path, sshd: Rsync) -> None:
        self._env = os.environ | {
            "BORG_REPO": f"ssh://127.0.0.1:{sshd.port}{directory / 'borg'}",
            "BORG_RSH": sshd.shell,
            "BORG_BASE_DIR": str(directory / "borg-home"),
        }
        self._run(tree, "init", "--encryption=none")
        self._run(tree, "create", "::tree", ".")

    def extract(self, target: Path) -> None:
        """All of it."""
        target.mkdir()
        self._run(target, "extract", "::tree")

    def _run(self, inside: Path, *words: str) -> None:
        subprocess.run(["borg", *words], env=self._env, cwd=inside, check=True)


class Restores:
    """All cases; the docstring's first line is what the table says."""

    def __init__(self, directory: Path, rounds: int, scale: float) -> None:
        self.directory, self.rounds, self.scale = directory, rounds, scale

    def big(self) -> Result:
        """full restore of one incompressible file of 2 GiB"""
        return self._restored("big", lambda root: big_file(root, int(2 * GIB * self.scale)))

    def tree(self) -> Result:
        """full restore of a real system tree, /usr/share"""
        return self._restored("tree", lambda root: _copy(REAL, root / "share"))

    def small(self) -> Result:
        """full restore of 100,000 files of 1-16 KiB"""
        return self._restored("small", lambda root: small_files(root, int(100_000 * self.scale)))

    def line(self) -> Result:
        """full restore of one incompressible file of 2 GiB over 100 ms and 1 Gbit/s"""
        return self._restored("line", lambda root: big_file(root, int(2 * GIB * self.scale)), is_long=True)

    def line_small(self) -> Result:
        """full restore of 10,000 files of 1-16 KiB over 100 ms and 1 Gbit/s"""
        return self._restored("line_small", lambda root: small_files(root, int(10_000 * self.scale)), is_long=True)

    def first_byte(self) -> Result:
        """one small file out of an older snapshot of 100,000 files, cold"""
        result = self._result("first_byte")
        with a_pair(self.directory) as pair:
            small_files(pair.root, int(100_000 * self.scale))
            pair.sync()
            path = sorted(path for path in pair.root.rglob("*") if path.is_file())[-1]
            said = path.read_bytes()
            path.write_bytes(b"what came after")
            pair.sync()
            name = path.relative_to(pair.root)
            viewer = let_in(pair, self.directory / "viewer", "ams1/www")
            self._looked(result, pair, lambda place: _captured("cat", "www@2", name, *place) == said)
            self._timed(result, "over SFTP", lambda: viewer.sftp(f"get /www/2/{name} got"))
            assert (viewer.home / "got").read_bytes() == said
        return result

    def listing(self) -> Result:
        """a directory of 10,000 entries in an older snapshot, cold"""
        result = self._result("listing")
        with a_pair(self.directory) as pair:
            wide = pair.root / "wide"
            wide.mkdir()
            count = int(10_000 * self.scale)
            for number in range(count):
                (wide / f"file-{number:05d}").write_bytes(b"%d" % number)
            pair.sync()
            shutil.rmtree(wide)
            pair.sync()
            viewer = let_in(pair, self.directory / "viewer", "ams1/www")
            self._looked(result, pair, lambda place: _captured("ls", "www@2", "wide", *place).count(b"\n") >= count)
            self._timed(result, "over SFTP", lambda: viewer.sftp("ls -1f /www/2/wide"))
        return result

    def _restored(self, name: str, make: Callable[[Path], None], *, is_long: bool = False) -> Result:
        result = self._result(name)
        with ExitStack() as stack:
            relay = long_line(stack) if is_long else None
            options: dict[str, object] = {}
            if relay:
                port = free_port()
                options = {"replica_port": port, "replica_address": f"127.0.0.1:{relay(port)}"}
            pair = stack.enter_context(a_pair(self.directory, **options))
            make(pair.root)
            pair.sync()
            rsync = Rsync(self.directory / "rsync", stack, relay)
            rsync.sync(pair.root)
            rivals: dict[str, Bring] = {"rsync": rsync.pull}
            if not is_long:
                rivals["restic"] = Restic(self.directory, pair.root, rsync).restore
                rivals["borg"] = Borg(self.directory, pair.root, rsync).extract
            for number in range(self.rounds):
                result.replicad_s.append(self._brought(pair, "replicad", pair.restore, number))
                for rival, bring in rivals.items():
                    result.rival_s.setdefault(rival, []).append(self._brought(pair, rival, bring, number))
        return result

    def _brought(self, pair: Pair, name: str, bring: Bring, number: int) -> float:
        target = self.directory / f"{name}-{number}"
        drop_caches()
        timed = Timed(lambda: bring(target))
        if name == "replicad" and not number:
            assert_same_tree(pair.root, target)
        shutil.rmtree(target)
        return timed.seconds

    def _looked(self, result: Result, pair: Pair, is_right: Callable[[tuple[object, ...]], bool]) -> None:
        places = {"from the primary": ("--config", pair.primary.config), "at the store": ("--store", pair.store)}
        for where, place in places.items():
            self._timed(result, where, lambda place=place: is_right(place))  # type: ignore[misc]

    def _timed(self, result: Result, where: str, look: Callable[[], object]) -> None:
        """The worst of all rounds, which a person has to wait for as well."""
        times = []
        for _ in range(self.rounds):
            drop_caches()
            timed = Timed(look)
            assert timed.value, where
            times.append(1000 * timed.seconds)
        result.notes[f"milliseconds {where}, at worst"] = max(times)

    def _result(self, name: str) -> Result:
        return Result((getattr(Restores, name).__doc__ or "").strip())


def _copy(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-a", source, target], check=True)


def _captured(*words: object) -> bytes:
    return subprocess.run([*COMMAND, *map(str, words)], stdout=subprocess.PIPE, check=True).stdout


def main(arguments: list[str] | None = None) -> None:
    """Run the cases named, all by default."""
    names = [name for name in vars(Restores) if not name.startswith("_")]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(names))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--directory", type=Path, help="where the trees go (needs about 15 GiB)")
    words = parser.parse_args(arguments)
    if unknown := set(words.cases) - set(names):
        parser.error(f"no such case: {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    results = []
    for name in words.cases or names:
        with tempfile.TemporaryDirectory(dir=words.directory, ignore_cleanup_errors=True) as directory:
            results.append(getattr(Restores(Path(directory), words.rounds, words.scale), name)())
            print(results[-1], flush=True)
    if words.json:
        words.json.write_text(json.dumps([asdict(result) for result in results], indent=2))


if __name__ == "__main__":
    main()
