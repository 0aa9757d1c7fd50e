"""Hooks: do something with a dataset's root between its hooks, which may mount it, freeze it or dump into it.

**Never** lets a failed pre hook pass for nothing: then nothing is done. The post hook runs in any case.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from replicad.config import DatasetConfig
from replicad.source.hook import run_hook


def _ignore() -> None:
    """For those who show no state."""


@asynccontextmanager
async def hooks(
    config: DatasetConfig, replica: str, begins: Callable[[], None] = _ignore, *, owner_of: Path | None = None
) -> AsyncIterator[None]:
    """Between the hooks of a dataset; `begins` is told when one begins. Root runs them as the owner of `owner_of`.
    Raises SourceError when a hook fails."""
    environment = {"REPLICAD_DATASET": config.name, "REPLICAD_REPLICA": replica, "REPLICAD_PATH": str(config.path)}
    timeout_s = config.hook_timeout_s
    try:
        if config.hook_pre:
            begins()
            await run_hook(config.hook_pre, timeout_s=timeout_s, environment=environment, owner_of=owner_of)
        yield
    finally:
        if config.hook_post:
            begins()
            await run_hook(config.hook_post, timeout_s=timeout_s, environment=environment, owner_of=owner_of)
