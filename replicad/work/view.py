"""View: what one viewer sees of the stores of this node, over one session of the SFTP view.

**Owns** a thread, in which everything is asked and proven, and the readers of the stores that were looked at last. It
holds no lock and no transaction between two questions, and nothing open at all when it rests: a client that falls
asleep holds up neither retention nor replication. What the viewer may see is asked of the configuration each time.
**Never** changes anything.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from replicad.config import ListenConfig, ViewerConfig
from replicad.link.sftp import Attributes
from replicad.link.viewing import OpenDirectory, OpenFile
from replicad.model.entry import Kind
from replicad.model.errors import BookDamagedError, RefusedError, ReplicadError, UsageError
from replicad.model.show import show_path
from replicad.system.clock import Clock
from replicad.system.disk import Disk
from replicad.system.logs import logger
from replicad.work.archive_reader import ArchiveReader, Room
from replicad.work.gallery import Gallery, halls
from replicad.work.view_content import Content, ViewedFile
from replicad.work.view_paths import Paths, Place, ViewedDirectory

log = logger("work.view")

ROOM = Room(cache_kib=1024, open_segments=2)
"""What each reader may hold: there are many views, and each looks at little at a time."""
OPEN_STORES = 2
"""Stores that one view has open: somebody compares two of them."""
MAX_REPORTED = 20
"""Failures of one view in the log: a client that tries again and again must not fill it."""
HALLS_S = 1.0
"""How old a view's list of stores may be."""

Result = TypeVar("Result")
Damaged = Callable[[str, str, BookDamagedError], Awaitable[None]]
"""Told of a catalog that a view found damaged: client, dataset, what is wrong."""


class View:
    """See `link.viewing.View`."""

    def __init__(
        self,
        viewer: str,
        store: Path,
        viewers: Callable[[], Sequence[ViewerConfig]],
        gallery: Gallery,
        clock: Clock,
        disk: Disk,
        damaged: Damaged,
    ) -> None:
        self._viewer, self._root, self._viewers = viewer, store, viewers
        self._gallery, self._clock, self._disk, self._damaged = gallery, clock, disk, damaged
        self._thread = ThreadPoolExecutor(1, "view")
        self._readers: OrderedDict[Path, ArchiveReader] = OrderedDict()
        self._content = Content()
        self._datasets: tuple[str, ...] = ()
        self._paths: Paths | None = None
        self._paths_until_s = 0.0
        self._reported = 0

    async def canonical(self, path: bytes) -> bytes:
        """See `link.viewing.View`."""
        return await self._ask(lambda paths: _canonical(paths, path))

    async def look(self, path: bytes, *, follow: bool) -> Attributes:
        """See `link.viewing.View`."""
        return (await self._find(path, follow=follow)).attributes

    async def target(self, path: bytes) -> bytes:
        """See `link.viewing.View`."""
        place = await self._find(path, follow=False)
        if place.target is None:
            raise ReplicadError(f"{show_path(place.path)} is no link")
        return place.target

    async def open_file(self, path: bytes) -> ViewedFile:
        """See `link.viewing.View`."""
        place = await self._find(path)
        if place.store is None or place.put is None or place.put.kind is not Kind.FILE:
            kind = place.put.kind if place.put else Kind.DIRECTORY
            raise ReplicadError(f"{show_path(place.path)} is a {kind.name.lower().replace('_', ' ')}, no file")
        return ViewedFile(place.store, place.snapshot, place.put, place.attributes)

    async def open_directory(self, path: bytes) -> ViewedDirectory:
        """See `link.viewing.View`."""
        place = await self._find(path)
        if place.put is not None and place.put.kind is not Kind.DIRECTORY:
            raise ReplicadError(f"{show_path(place.path)} is no directory")
        return ViewedDirectory(place)

    async def read(self, file: OpenFile, offset: int, size: int) -> bytes:
        """See `link.viewing.View`."""
        assert isinstance(file, ViewedFile)
        datasets = self._allowed()
        if self._is_fresh(datasets) and (kept := self._content.kept(file, offset, size)) is not None:
            return kept  # without a hop into the thread: clients read in pieces far smaller than a block
        return await self._ask(lambda _: self._content.read(self._reader(file.store), file, offset, size))

    async def page(self, directory: OpenDirectory) -> list[tuple[bytes, Attributes]]:
        """See `link.viewing.View`."""
        assert isinstance(directory, ViewedDirectory)
        return await self._ask(lambda paths: paths.page(directory))

    def rest(self) -> None:
        """See `link.viewing.View`."""
        self._thread.submit(self._let_go)

    async def close(self) -> None:
        """See `link.viewing.View`."""
        self.rest()
        await asyncio.to_thread(self._thread.shutdown)

    async def _find(self, path: bytes, *, follow: bool = True) -> Place:
        return await self._ask(lambda paths: paths.find(path, follow=follow))

    async def _ask(self, question: Callable[[Paths], Result]) -> Result:
        datasets = self._allowed()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._answer, datasets, question)
        except BookDamagedError as error:
            client, dataset = Path(error.where).parent.parts[-2:]
            await self._damaged(client, dataset, error)
            raise

    def _allowed(self) -> tuple[str, ...]:
        """What the viewer may see now."""
        for viewer in self._viewers():
            if viewer.name == self._viewer:
                return viewer.datasets
        raise RefusedError(f"{self._viewer} may not view anything here any more")

    # in the thread

    def _answer(self, datasets: tuple[str, ...], question: Callable[[Paths], Result]) -> Result:
        try:
            return question(self._fresh(datasets))
        except UsageError:
            raise
        except ReplicadError as error:
            self._report(error)
            self._let_go()  # what is open may be what is wrong
            raise
        except OSError as error:
            raise ReplicadError(f"cannot be read: {error.strerror}") from error

    def _report(self, error: ReplicadError) -> None:
        """Into the log, unless this view has filled it enough."""
        self._reported += 1
        if self._reported <= MAX_REPORTED:
            log.warning("a view could not show something", viewer=self._viewer, reason=str(error))

    def _fresh(self, datasets: tuple[str, ...]) -> Paths:
        if self._paths is None or not self._is_fresh(datasets):
            found = halls(self._root, datasets)
            self._paths = Paths(self._viewer, self._root, found, self._gallery, self._reader)
            self._datasets, self._paths_until_s = datasets, self._clock.monotonic_s() + HALLS_S
        return self._paths

    def _is_fresh(self, datasets: tuple[str, ...]) -> bool:
        return self._datasets == datasets and self._clock.monotonic_s() < self._paths_until_s

    def _reader(self, directory: Path) -> ArchiveReader:
        """The reader of a store that this viewer may see."""
        if self._paths is None or not self._paths.may_view(directory):
            raise RefusedError(f"{self._viewer} may not view this any more")
        reader = self._readers.get(directory)
        if reader is None:
            reader = self._readers[directory] = ArchiveReader(directory, self._disk, room=ROOM)
            if len(self._readers) > OPEN_STORES:
                self._readers.popitem(last=False)[1].close()
        self._readers.move_to_end(directory)
        return reader

    def _let_go(self) -> None:
        self._content.drop()
        while self._readers:
            self._readers.popitem()[1].close()


class OnView:
    """What this node has on view: see `link.reception.OnView`."""

    def __init__(
        self,
        config: ListenConfig,
        viewers: Callable[[], Sequence[ViewerConfig]],
        clock: Clock,
        disk: Disk,
        damaged: Damaged,
    ) -> None:
        self.max_views, self.max_handles, self.viewers = config.max_views, config.max_view_handles, viewers
        self._parts = config.store, viewers, Gallery(clock), clock, disk, damaged

    def view(self, viewer: str) -> View:
        """See `link.reception.OnView`."""
        return View(viewer, *self._parts)


def _canonical(paths: Paths, path: bytes) -> bytes:
    with suppress(UsageError):
        return paths.find(path).path
    names: list[bytes] = []
    for name in path.split(b"/"):
        if name == b"..":
            names = names[:-1]
        elif name not in (b"", b"."):
            names.append(name)
    return b"/" + b"/".join(names)
