"""Quota: what all stores of one client may take together, so that no client can fill the disk that others share.

**Owns** the count of what each store takes, segments and books: measured when a session begins and at each snapshot,
added up in between. Only what a client sends is refused: a repair takes the place of what is damaged, and retention
gives back. **Never** opens a store.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from replicad.config import ClientConfig
from replicad.config.units import format_size
from replicad.model.errors import DiskFullError
from replicad.store.format import SYNC_BYTES, Frame
from replicad.store.store import book_bytes, segment_bytes


class Allowance:
    """What one store may take. Belongs to the store's thread."""

    def __init__(self, quotas: Quotas, client: str, directory: Path) -> None:
        self._quotas, self._client, self._directory = quotas, client, directory
        self._segments = self._books = 0

    def measure(self) -> int:
        """Count anew what the store takes, in bytes."""
        self._count(segment_bytes(self._directory), book_bytes(self._directory))
        return self._segments + self._books

    def take(self, size: int, *, books: int = 0) -> None:
        """Count `size` bytes more in segments, and in the books what is expected of them; books that have grown beyond
        that count as what they are. Raises DiskFullError when it is more than the client may take."""
        self._count(self._segments, max(self._books, book_bytes(self._directory)))
        together, quota = sum(list(self._quotas.taken(self._client).values())), self._quotas.of(self._client)
        if quota and together + size + books > quota:
            text = f"client {self._client} takes {together:,} bytes here and may take {format_size(quota)}"
            raise DiskFullError(text, hint="raise client.quota, or let retention drop snapshots")
        self._count(self._segments + size, self._books + books)

    def _count(self, segments: int, books: int) -> None:
        self._segments, self._books = segments, books
        self._quotas.taken(self._client)[self._directory] = segments + books


class Quotas:
    """The quotas of all clients. The stores of a client are counted in several threads: together they may be over by
    what one message of each carries."""

    def __init__(self, clients: Callable[[], Sequence[ClientConfig]]) -> None:
        self._clients = clients
        self._taken: dict[str, dict[Path, int]] = {}

    def of(self, client: str) -> int:
        """What a client may take, in bytes; 0 = as much as there is."""
        return next((config.quota_bytes for config in self._clients() if config.name == client), 0)

    def taken(self, client: str) -> dict[Path, int]:
        """What each store of a client takes, in bytes."""
        return self._taken.setdefault(client, {})


def catalog_bytes(record: Frame) -> int:
    """What a record takes in the catalog: its rows, and as much in the log until they are moved from there."""
    return 2 * record.plain


def sealed_bytes(commit: bytes) -> int:
    """What a commit takes: its frame, which fills a sector, and the frame's copy in the catalog and its log."""
    return SYNC_BYTES + 3 * len(commit)
