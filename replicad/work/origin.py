"""Origin: where a restore reads from, and where it may not write to.

Three ways lead to a dataset's history: the replicas of a configuration, one replica by its line and a key (a fresh
host), and a store directory of this host (no daemon needed). Each ends in an open `HistoryReader`.
**Never** asks a person anything, and never changes a store.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

from replicad import __version__
from replicad.config import Config, ReplicaConfig
from replicad.model.errors import ReplicadError, UsageError
from replicad.model.pairing import ReplicaLine
from replicad.store.store import stores_in
from replicad.work.archive import catalog_path
from replicad.work.read_local import LocalReader
from replicad.work.read_remote import RemoteReader
from replicad.work.reader import HistoryReader
from replicad.work.rebuild import catch_up, rebuild_catalog


def replicas_for(config: Config, dataset: str, wanted: str = "") -> tuple[ReplicaConfig, ...]:
    """The configured replicas that may have `dataset`, or the one called `wanted`. Raises UsageError.

    A dataset that is not configured any more may still be on any of them.
    """
    known = next((d for d in config.datasets if d.name == dataset), None)
    replicas = config.replicas_of(known) if known else config.replicas
    if wanted:
        replicas = tuple(replica for replica in config.replicas if replica.name == wanted)
    if replicas:
        return replicas
    names = ", ".join(replica.name for replica in config.replicas) or "none"
    what = f"there is no replica {wanted!r}" if wanted else "no replica is configured"
    raise UsageError(what, where=str(config.file), hint=f"configured are: {names}")


def replica_of(line: ReplicaLine) -> ReplicaConfig:
    """A replica as its line describes it."""
    return ReplicaConfig(line.name, line.address, line.key)


@asynccontextmanager
async def reading_replica(
    replicas: Sequence[ReplicaConfig], key: Path, dataset: str, passed_over: Callable[[ReplicadError], None]
) -> AsyncIterator[HistoryReader]:
    """A reader of `dataset` on the first of `replicas` that can be reached, has it and can read it.

    `passed_over` is told why another one was not taken. Raises the last one's error when none is left.
    """
    from replicad.link.ssh import Dialler  # slow to import

    assert replicas
    for number, replica in enumerate(replicas, 1):
        dialler = Dialler(replica, key, f"replicad {__version__}")
        try:
            try:
                reader = await RemoteReader.open(await dialler.dial(), dataset)
            except ReplicadError as error:
                if number == len(replicas):
                    raise
                passed_over(error)
                continue
            try:
                yield reader
            finally:
                await reader.close()
            return
        finally:
            await dialler.close()


@asynccontextmanager
async def reading_store(store: Path, dataset: str) -> AsyncIterator[HistoryReader]:
    """A reader of `dataset` in the store directory `store` of this host, whether a daemon works on it or not.

    A store that cannot be written (its disk is mounted read-only, or it is another user's) is read with a catalog that
    is brought up to date elsewhere, in the system's directory for temporary files.
    """
    directory = store_of(store, dataset)
    with ExitStack() as stack:
        catalog: Path | None = None
        if not os.access(directory, os.W_OK):
            place = stack.enter_context(tempfile.TemporaryDirectory(prefix="replicad-catalog-"))
            catalog = await asyncio.to_thread(_catalog_elsewhere, directory, Path(place) / "catalog.db")
        reader = await LocalReader.open(directory, str(directory), mend=True, catalog=catalog)
        try:
            yield reader
        finally:
            await reader.close()


def store_of(store: Path, dataset: str) -> Path:
    """The directory of DATASET or CLIENT/DATASET below `store`, which is what `init replica` was given.

    Raises UsageError when there is none or more than one, listing what there is.
    """
    every = stores_in(store)
    found = [path for path in every if dataset in (path.name, _name(path))]
    if len(found) == 1:
        return found[0]
    if found:
        names = " or ".join(map(_name, found))
        raise UsageError(f"several clients have a dataset {dataset!r}", where=str(store), hint=f"say {names}")
    names = ", ".join(map(_name, every)) or "nothing; name the directory that `init replica` was given"
    raise UsageError(f"holds no dataset {dataset!r}", where=str(store), hint=f"there is {names}")


def check_target(target: Path, config: Config | None, store: Path | None, *, in_place: bool) -> None:
    """Raises UsageError for a target where a restore could destroy what it restores from, or what is live.

    `in_place` allows a dataset's own root.
    """
    where = target.resolve()
    kept = [store] if store else []
    if config:
        kept += [config.node.state, *([config.listen.store] if config.listen else [])]
    for directory in kept:
        if _overlap(where, directory.resolve()):
            what = f"overlaps {directory}, where replicad keeps its own data"
            raise UsageError(what, where=str(target), hint="restore to another place")
    for dataset in config.datasets if config else ():
        if dataset.path.resolve().is_relative_to(where) and not in_place:
            what = f"is the live dataset {dataset.name} or holds it ({dataset.path})"
            hint = "restore to another directory and compare, or say --in-place to change the live files"
            raise UsageError(what, where=str(target), hint=hint)


def _catalog_elsewhere(directory: Path, into: Path) -> Path:
    """A copy of the catalog of a store that cannot be written, caught up with the segments; a new one if there is none.

    Raises UsageError when a daemon works on the store: what it changes cannot be copied as a whole.
    """
    with _held_still(directory):
        known = catalog_path(directory)
        if not known.exists():
            return rebuild_catalog(directory, into=into).catalog
        for end in ("", "-wal"):
            if (source := known.with_name(known.name + end)).exists():
                shutil.copyfile(source, into.with_name(into.name + end))
        catch_up(directory, into)
        return into


@contextmanager
def _held_still(directory: Path) -> Iterator[None]:
    """Keep daemons from working on the store for a while; the lock needs no right to write."""
    try:
        lock = os.open(directory / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield
        return
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            what, hint = "a daemon works on this store, which you may not write", "restore over the link, or as root"
            raise UsageError(what, where=str(directory), hint=hint) from None
        yield
    finally:
        os.close(lock)


def _name(directory: Path) -> str:
    return f"{directory.parent.name}/{directory.name}"


def _overlap(one: Path, other: Path) -> bool:
    return one.is_relative_to(other) or other.is_relative_to(one)
