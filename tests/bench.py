"""Benchmarks: replicad against rsync over ssh, in turn, in one run. `make bench` runs all of them.

    python tests/bench.py [CASE]... [--rounds N] [--scale F] [--json FILE]
    python tests/bench.py scrub [CASE]...             (bench_scrub.py: reading and judging instead of copying)
    python tests/bench.py restore [CASE]...           (bench_restore.py: bringing it back, looking into history)

Each case prepares a tree, then lets both programs do the same work N times in turn with cold caches, and prints the
median seconds of each, the median of the pairwise ratios, bytes on the wire and peak memory. Absolute times say
little on a shared machine; the ratios are what docs/PERFORMANCE.md keeps. `--scale 0.1` shrinks every tree.
"""

from __future__ import annotations

import argparse
import compileall
import importlib
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import replicad as replicad_package
from kit_pair import Pair, free_port, make_pair, replicad, running, wait_until

GIB = 1024**3
MIB = 1024**2
ROUND_TRIP_MS, LINE_MBIT = 100, 1000
"""The long line, made by a relay in user space."""


@dataclass
class Result:
    """What one case gave."""

    case: str
    replicad_s: list[float] = field(default_factory=list)
    rival_s: dict[str, list[float]] = field(default_factory=dict)
    wire_bytes: dict[str, int] = field(default_factory=dict)
    peak_mib: dict[str, float] = field(default_factory=dict)
    notes: dict[str, float] = field(default_factory=dict)

    def ratio(self, rival: str) -> float:
        """How many times faster replicad was: median over the pairs."""
        return statistics.median(b / a for a, b in zip(self.replicad_s, self.rival_s[rival], strict=True))

    def __str__(self) -> str:
        lines = [f"{self.case}: replicad {_spread(self.replicad_s)}" if self.replicad_s else self.case]
        for rival, seconds in self.rival_s.items():
            lines.append(f"    {rival}: {_spread(seconds)}; replicad is {self.ratio(rival):.2f} x as fast")
        for name, size in self.wire_bytes.items():
            lines.append(f"    {name} on the wire: {size / 1e6:.1f} MB")
        for name, mib in self.peak_mib.items():
            lines.append(f"    peak memory of the {name}: {mib:.0f} MiB")
        lines += [f"    {name}: {value:.1f}" for name, value in self.notes.items()]
        return "\n".join(lines)


def _spread(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.2f} s ({min(seconds):.2f}-{max(seconds):.2f})"


# ------------------------------------------------------------------------------------------------------------- trees


def big_file(root: Path, size: int) -> None:
    """One incompressible file."""
    source = random.Random(1)
    with (root / "big").open("wb") as file:
        for _ in range(size // MIB):
            file.write(source.randbytes(MIB))


def small_files(root: Path, count: int) -> None:
    """`count` files of 1 to 16 KiB in directories of a hundred; half of each file is text-like."""
    source = random.Random(2)
    for number in range(count):
        if number % 100 == 0:
            directory = root / f"{number // 10000:03d}" / f"{number // 100 % 100:02d}"
            directory.mkdir(parents=True)
        size = source.randrange(1024, 16384)
        (directory / f"file{number:07d}").write_bytes(source.randbytes(size // 2) + b"replicad " * (size // 18))


def scatter(root: Path, count: int) -> None:
    """Overwrite `count` aligned pieces of 4 KiB, anywhere in the big file."""
    path = root / "big"
    pieces = path.stat().st_size // 4096
    with path.open("r+b") as file:
        for _ in range(count):
            file.seek(random.randrange(pieces) * 4096)
            file.write(os.urandom(4096))


def drop_caches() -> None:
    """Cold caches for whoever comes next."""
    subprocess.run(["sync"], check=True)
    Path("/proc/sys/vm/drop_caches").write_text("3")


# ------------------------------------------------------------------------------------------------------------ rivals


class Rsync:
    """rsync over a real sshd on loopback, with the fastest cipher; optionally through a relay."""

    def __init__(self, directory: Path, stack: ExitStack, relay: Callable[[int], int] | None = None) -> None:
        directory.mkdir()
        for name in ("host", "user"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", directory / name], check=True)
        port = free_port()
        (directory / "authorized").write_text((directory / "user.pub").read_text())
        settings = {
            "Port": port,
            "ListenAddress": "127.0.0.1",
            "HostKey": directory / "host",
            "AuthorizedKeysFile": directory / "authorized",
            "StrictModes": "no",
            "UsePAM": "no",
            "PidFile": "none",
            "PermitRootLogin": "yes",
            "Ciphers": "aes128-gcm@openssh.com",
            "Subsystem": "sftp internal-sftp",
        }
        (directory / "config").write_text("".join(f"{key} {value}\n" for key, value in settings.items()))
        Path("/run/sshd").mkdir(exist_ok=True)
        daemon = subprocess.Popen(["/usr/sbin/sshd", "-D", "-f", directory / "config"], stderr=subprocess.DEVNULL)
        stack.callback(daemon.wait)
        stack.callback(daemon.terminate)
        self.port = relay(port) if relay else port
        self.shell = (
            f"ssh -p {self.port} -i {directory}/user -c aes128-gcm@openssh.com -o StrictHostKeyChecking=no"
            f" -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
        )
        self._copy = directory / "copy"
        wait_until(self._answers, "sshd answers")

    def sync(self, root: Path, *options: str) -> int:
        """One run; bytes on the wire."""
        done = subprocess.run(self._command(root, "--stats", *options), capture_output=True, text=True, check=True)
        numbers = [line for line in done.stdout.splitlines() if line.startswith("Total bytes")]
        return sum(int("".join(c for c in line.partition(":")[2] if c.isdigit())) for line in numbers)

    def pull(self, target: Path) -> None:
        """Bring the copy back."""
        subprocess.run(["rsync", "-a", "-e", self.shell, f"127.0.0.1:{self._copy}/", f"{target}/"], check=True)

    def forget(self) -> None:
        """Remove the copy."""
        shutil.rmtree(self._copy, ignore_errors=True)

    def _answers(self) -> bool:
        words = [*self.shell.split(), "127.0.0.1", "true"]
        return subprocess.run(words, check=False, stderr=subprocess.DEVNULL).returncode == 0

    def _command(self, root: Path, *options: str) -> list[str]:
        return ["rsync", "-a", "--delete", *options, "-e", self.shell, f"{root}/", f"127.0.0.1:{self._copy}/"]


def long_line(stack: ExitStack) -> Callable[[int], int]:
    """Puts a relay with a long line in front of a port, and gives the port to use instead."""

    def start(port: int) -> int:
        entry = free_port()
        words = [f"127.0.0.1:{port}", "--listen", str(entry)]
        words += ["--round-trip-ms", str(ROUND_TRIP_MS), "--bandwidth-mbit", str(LINE_MBIT)]
        relay = subprocess.Popen([sys.executable, str(Path(__file__).with_name("kit_link.py")), *words])
        stack.callback(relay.wait)
        stack.callback(relay.terminate)
        return entry

    return start


class Timed:
    """Seconds of a piece of work."""

    def __init__(self, work: Callable[[], object]) -> None:
        start = time.perf_counter()
        self.value = work()
        self.seconds = time.perf_counter() - start


def peak_mib(pid: int) -> float:
    """Peak resident memory of a process, MiB (VmHWM)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no VmHWM in /proc")


def children(pid: int) -> list[int]:
    """The processes that a daemon has started and that run now."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def note_memory(result: Result, pair: Pair) -> None:
    """Keep the highest peak of each daemon, its children's peaks added."""
    for name, node in (("primary", pair.primary), ("replica", pair.replica)):
        assert node.process is not None
        pids = [node.process.pid, *children(node.process.pid)]
        result.peak_mib[name] = max(result.peak_mib.get(name, 0.0), sum(map(peak_mib, pids)))


@contextmanager
def a_pair(directory: Path, **options: str) -> Iterator[Pair]:
    """A running pair whose dataset holds nothing yet and that does nothing by itself."""
    root = directory / "www"
    root.mkdir(parents=True)
    quiet = 'watch = false\nrpo = "7d"\nwalk_every = "7d"\nmax_change = 1.0'
    with running(make_pair(directory / "pair", root, dataset_options=quiet, **options)) as pair:
        pair.sync()
        yield pair


def sent(pair: Pair) -> int:
    """Bytes that the primary has sent so far."""
    return pair.line.sent_bytes


# ------------------------------------------------------------------------------------------------------------- cases


class Bench:
    """All cases. Each is a method; its docstring's first line is what the table says."""

    def __init__(self, directory: Path, rounds: int, scale: float) -> None:
        self.directory, self.rounds, self.scale = directory, rounds, scale

    def initial_big(self) -> Result:
        """initial copy, one incompressible file of 2 GiB"""
        return self._initial("initial_big", lambda root: big_file(root, int(2 * GIB * self.scale)), ("", "--fsync"))

    def initial_small(self) -> Result:
        """initial copy, 100,000 files of 1-16 KiB"""
        count = int(100_000 * self.scale)
        return self._initial("initial_small", lambda root: small_files(root, count), ("", "--fsync"))

    def unchanged(self) -> Result:
        """nothing changed, 100,000 files"""
        return self._repeated("unchanged", lambda root: small_files(root, int(100_000 * self.scale)), lambda root: None)

    def unchanged_warm(self) -> Result:
        """nothing changed, 100,000 files, caches warm as on a host that passes every few minutes"""
        count = int(100_000 * self.scale)
        return self._repeated("unchanged_warm", lambda root: small_files(root, count), lambda root: None, cold=False)

    def scattered(self) -> Result:
        """200 scattered changes of 4 KiB in a file of 2 GiB"""
        return self._repeated(
            "scattered",
            lambda root: big_file(root, int(2 * GIB * self.scale)),
            lambda root: scatter(root, 200),
            ("", "--inplace --no-whole-file"),
        )

    def renamed(self) -> Result:
        """directory of 10,000 files renamed"""

        def make(root: Path) -> None:
            (root / "name0").mkdir()
            small_files(root / "name0", int(10_000 * self.scale))

        def rename(root: Path) -> None:
            (old,) = root.glob("name*")
            old.rename(root / f"name{random.randrange(10**9)}")

        return self._repeated("renamed", make, rename)

    def line_big(self) -> Result:
        """initial copy of 512 MiB over 100 ms and 1 Gbit/s"""
        return self._initial("line_big", lambda root: big_file(root, int(512 * MIB * self.scale)), ("",), line=True)

    def line_small(self) -> Result:
        """initial copy of 10,000 files over 100 ms and 1 Gbit/s"""
        return self._initial("line_small", lambda root: small_files(root, int(10_000 * self.scale)), ("",), line=True)

    def million(self) -> Result:
        """memory and size of the books with 1,000,000 entries (no rival)"""
        result = Result(Bench.million.__doc__ or "")
        with a_pair(self.directory / "million") as pair:
            count = int(1_000_000 * self.scale)
            for number in range(count):
                if number % 1000 == 0:
                    directory = pair.root / f"d{number // 1000:04d}"
                    directory.mkdir()
                (directory / f"f{number:07d}").write_bytes(b"%d" % number)
            result.replicad_s.append(Timed(pair.sync).seconds)
            result.notes["seconds of a pass with nothing changed"] = Timed(pair.sync).seconds
            note_memory(result, pair)
            pair.primary.stop()
            pair.replica.stop()
            self._note_books(result, pair, count)
        return result

    def _note_books(self, result: Result, pair: Pair, entries: int) -> None:
        ledger = sum(p.stat().st_size for p in (pair.primary.state / "ledger").iterdir())
        catalog = sum(p.stat().st_size for p in pair.store.glob("*/*/catalog.db*"))
        result.notes["ledger bytes per entry and its block"] = ledger / entries
        result.notes["catalog bytes per entry and its block"] = catalog / entries

    def _initial(
        self, name: str, make: Callable[[Path], None], variants: tuple[str, ...], *, line: bool = False
    ) -> Result:
        result = Result((getattr(Bench, name).__doc__ or "").strip())
        tree = self.directory / name / "tree"
        tree.mkdir(parents=True)
        make(tree)
        with ExitStack() as stack:
            rsync = Rsync(self.directory / name / "rsync", stack, long_line(stack) if line else None)
            for number in range(self.rounds):
                with self._fresh_pair(self.directory / name / f"round{number}", stack, line) as pair:
                    before = sent(pair)
                    tree.rename(pair.root / "tree")
                    drop_caches()
                    result.replicad_s.append(Timed(pair.sync).seconds)
                    result.wire_bytes["replicad"] = sent(pair) - before
                    note_memory(result, pair)
                    (pair.root / "tree").rename(tree)
                shutil.rmtree(self.directory / name / f"round{number}")
                for variant in variants:
                    drop_caches()
                    timed = Timed(lambda v=variant: rsync.sync(tree, *v.split()))  # type: ignore[misc]
                    self._note(result, f"rsync {variant}".strip(), timed)
                    rsync.forget()
        return result

    def _repeated(
        self,
        name: str,
        make: Callable[[Path], None],
        change: Callable[[Path], None],
        variants: tuple[str, ...] = ("",),
        *,
        cold: bool = True,
    ) -> Result:
        settle = drop_caches if cold else os.sync
        result = Result((getattr(Bench, name).__doc__ or "").strip())
        with ExitStack() as stack:
            pair = stack.enter_context(a_pair(self.directory / name))
            make(pair.root)
            pair.sync()
            rivals = {}
            for number, variant in enumerate(variants):
                rivals[variant] = Rsync(self.directory / name / f"rsync{number}", stack)
                rivals[variant].sync(pair.root)
            for _ in range(self.rounds):
                change(pair.root)
                settle()
                before = sent(pair)
                result.replicad_s.append(Timed(pair.sync).seconds)
                result.wire_bytes["replicad"] = sent(pair) - before
                for variant, rsync in rivals.items():
                    settle()
                    timed = Timed(lambda r=rsync, v=variant: r.sync(pair.root, *v.split()))  # type: ignore[misc]
                    self._note(result, f"rsync {variant}".strip(), timed)
            note_memory(result, pair)
            if name == "scattered":
                self._note_per_block(result, pair)
        return result

    def _note_per_block(self, result: Result, pair: Pair) -> None:
        blocks = (pair.root / "big").stat().st_size / 65536
        ledger = sum(p.stat().st_size for p in (pair.primary.state / "ledger").iterdir())
        catalog = sum(p.stat().st_size for p in pair.store.glob("*/*/catalog.db*"))
        result.notes["ledger bytes per block (with its log)"] = ledger / blocks
        result.notes["catalog bytes per block (with its log)"] = catalog / blocks

    def _note(self, result: Result, rival: str, timed: Timed) -> None:
        result.rival_s.setdefault(rival, []).append(timed.seconds)
        assert isinstance(timed.value, int)
        result.wire_bytes[rival] = timed.value

    @contextmanager
    def _fresh_pair(self, directory: Path, stack: ExitStack, line: bool) -> Iterator[Pair]:
        with ExitStack() as inner:
            options = {}
            if line:
                port = free_port()
                options = {"replica_port": port, "replica_address": f"127.0.0.1:{long_line(inner)(port)}"}
            with a_pair(directory, **options) as pair:  # type: ignore[arg-type]
                yield pair


def main() -> None:
    """Run the cases named, all by default."""
    if sys.argv[1:2] in (["scrub"], ["restore"]):
        bench = importlib.import_module(f"bench_{sys.argv[1]}")  # which imports this module
        return bench.main(sys.argv[2:])  # type: ignore[no-any-return]  # both have it
    names = [name for name in vars(Bench) if not name.startswith("_")]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(names))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--directory", type=Path, help="where the trees go (needs about 12 GiB)")
    words = parser.parse_args()
    unknown = set(words.cases) - set(names)
    if unknown:
        parser.error(f"no such case: {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    results = []
    for name in words.cases or names:
        with tempfile.TemporaryDirectory(dir=words.directory, ignore_cleanup_errors=True) as directory:
            results.append(getattr(Bench(Path(directory), words.rounds, words.scale), name)())
            print(results[-1], flush=True)
    if words.json:
        words.json.write_text(json.dumps([asdict(result) for result in results], indent=2))


if __name__ == "__main__":
    compileall.compile_dir(replicad_package.__path__[0], quiet=1)  # as an installed package is
    replicad("--version")
    main()
