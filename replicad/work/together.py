"""Together: pieces of work done at once; when one fails the others are ended first."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable


async def together(works: Iterable[Coroutine[None, None, None]]) -> None:
    """Raises what the first of them raised, in their order."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        for task in tasks:
            await task
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
