"""Rescue kit: what each store carries so that it can be read without replicad: a README and the rescue script.

**Owns** these two files, in the directory of each dataset: that is what is copied, moved or found on a disk as one
thing, and its segments say themselves whose they are. They are written when a daemon opens the store and their text
is missing or another release's.
**Never** a reason for intake to fail: a store without them is as good, so what goes wrong is logged, and that is all.
"""

from __future__ import annotations

from pathlib import Path

from replicad import __version__, store
from replicad.model.errors import ReplicadError
from replicad.system.disk import Disk
from replicad.system.logs import logger

log = logger("work.rescue_kit")

SCRIPT, README = "rescue.py", "README.txt"
_README = """\
This directory holds dataset {dataset} of the host {client}, with all its snapshots, as replicad {version} stored it.
Do not change or delete anything in segments/: that is the data. Everything else here can be made anew.

To get files out of it, with replicad installed (it also reads what is damaged best):

    replicad restore --store STORE {client}/{dataset} TARGET      STORE is the directory two levels above this one

Without replicad, with Python 3.8 or newer and the program zstd, on any Linux host:

    python3 rescue.py --list            the snapshots
    python3 rescue.py TARGET            the newest complete one, into a directory that is empty or not there yet
    python3 rescue.py --help            other snapshots, parts of one

Run it as root if owners and devices are to come back. It writes nothing in here. Exit code 0: everything is there and
each byte was proven by its BLAKE3 hash. 1: something is missing or damaged; each path and byte range is named.
"""


def leave_rescue_kit(directory: Path, client: str, dataset: str, disk: Disk) -> None:
    """Write README and script into a store's directory, durably, unless they are there as they should be."""
    readme = _README.format(client=client, dataset=dataset, version=__version__)
    for name, text in ((README, readme.encode()), (SCRIPT, packaged_script())):
        try:
            if directory.is_dir() and _content(directory / name) != text:
                disk.write_durable(directory / name, text, mode=0o644)
        except (ReplicadError, OSError) as error:
            log.warning("the rescue kit of a store cannot be written", store=str(directory), reason=str(error))


def packaged_script() -> bytes:
    """The rescue script of this release. It is read, never imported: the daemon has no use for what it does."""
    return (Path(store.__file__).parent / SCRIPT).read_bytes()


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
