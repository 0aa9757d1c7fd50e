"""Speed of the link alone: 1 MiB Blocks from one process to another, through SSH, at will over a simulated line.

`python tests/bench_link.py` measures loopback, `--round-trip-ms 100 --bandwidth-mbit 1000` a long line.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from kit_link import open_writing
from replicad.config import ClientConfig, ReplicaConfig
from replicad.link.channel import Channel
from replicad.link.messages import Blocks, Bye, Opened
from replicad.link.reception import House, Reception
from replicad.link.ssh import Dialler, generate_key, listen, public_key
from replicad.model.errors import ReplicadError
from replicad.model.snapshot import Head
from replicad.system.heap import suit_bulk

MEBIBYTE = 1024 * 1024
WINDOW_BYTES = 32 * MEBIBYTE


async def serve(directory: Path) -> None:
    """The receiving process: prints its port, then a line for each session."""

    async def take(channel: Channel, client: str) -> None:
        await channel.receive()
        await channel.send(Opened(Head(), WINDOW_BYTES))
        while not isinstance(await channel.receive(), Bye):
            pass

    clients = [ClientConfig("ams1", public_key(directory / "client"))]
    house = House("fra1", "bench", lambda: clients, take, report, window_bytes=WINDOW_BYTES)
    listener = await listen("127.0.0.1:0", directory / "host", Reception(house))
    print(listener.port, flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await listener.close()
    print(f"receiver: peak memory {peak_mib()} MiB, CPU {time.process_time():.1f} s", flush=True)


async def measure(arguments: argparse.Namespace) -> None:
    """The sending process."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        host_key = generate_key(directory / "host", "fra1")
        generate_key(directory / "client", "ams1")
        receiver, port = await started(__file__, "--serve", name)
        relay = None
        if arguments.round_trip_ms or arguments.bandwidth_mbit:
            line = ["--round-trip-ms", str(arguments.round_trip_ms), "--bandwidth-mbit", str(arguments.bandwidth_mbit)]
            relay, port = await started(str(Path(__file__).with_name("kit_link.py")), f"127.0.0.1:{port}", *line)
        replica = ReplicaConfig("fra1", f"127.0.0.1:{port}", host_key, window_bytes=WINDOW_BYTES)
        dialler = Dialler(replica, directory / "client", "bench")
        for _ in range(arguments.rounds):
            print(f"{await send(dialler, arguments.mib):7.0f} MB/s", flush=True)
        await dialler.close()
        print(f"sender:   peak memory {peak_mib()} MiB, CPU {time.process_time():.1f} s", flush=True)
        output, _ = await receiver.communicate(b"")
        print(output.decode().strip())
        if relay:
            relay.terminate()
            await relay.wait()


async def send(dialler: Dialler, count: int) -> float:
    """MB/s of `count` MiB, from the first Blocks to the end of the session."""
    channel = await open_writing(await dialler.dial())
    block = Blocks(os.urandom(MEBIBYTE))
    start = time.perf_counter()
    for _ in range(count):
        await channel.send(block)
    await channel.close()
    return count * MEBIBYTE / 1e6 / (time.perf_counter() - start)


async def started(*arguments: str) -> tuple[asyncio.subprocess.Process, int]:
    """A Python process that prints a port first."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdin=pipe, stdout=pipe)
    assert process.stdout
    return process, int(await process.stdout.readline())


def peak_mib() -> int:
    """Peak resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def report(error: ReplicadError) -> None:
    """Whatever went wrong at the receiver."""
    print(error, file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=1500, help="MiB a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--round-trip-ms", type=float, default=0.0)
    parser.add_argument("--bandwidth-mbit", type=float, default=0.0)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parsed = parser.parse_args(arguments)
    suit_bulk()  # as the daemon does
    asyncio.run(serve(parsed.serve) if parsed.serve else measure(parsed))


if __name__ == "__main__":
    main()
