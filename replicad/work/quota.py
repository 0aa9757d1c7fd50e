"""Quota: what all stores of one client may take together, so that no client can fill the disk that others share.

**Owns** the count of what each store takes: measured when a session begins and at each snapshot, added up in between.
Only what a client sends is refused: a repair takes the place of what is damaged, and retention gives back. **Never**
opens a store.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from replicad.config import ClientConfig
from replicad.config.units import format_size
from replicad.model.errors import DiskFullError
from replicad.store.store import stored_bytes


class Allowance:
    """What one store may take. Belongs to the store's thread."""

    def __init__(self, quotas: Quotas, client: str, directory: Path) -> None:
        self._quotas, self._client, self._directory = quotas, client, directory

    def measure(self) -> int:
        """Count anew what the store takes, in bytes."""
        size = stored_bytes(self._directory)
        self._quotas.taken(self._client)[self._directory] = size
        return size

    def take(self, size: int) -> None:
        """Count `size` bytes more. Raises DiskFullError when that is more than the client may take."""
        taken, quota = self._quotas.taken(self._client), self._quotas.of(self._client)
        if quota and (together := sum(list(taken.values()))) + size > quota:
            text = f"client {self._client} takes {together:,} bytes here and may take {format_size(quota)}"
            raise DiskFullError(text, hint="raise client.quota, or let retention drop snapshots")
        taken[self._directory] = taken.get(self._directory, 0) + size


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
