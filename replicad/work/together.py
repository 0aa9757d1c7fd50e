"""Together: several things awaited at once, and the care that each needs when the wait ends early."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

Result = TypeVar("Result")


async def together(works: Iterable[Coroutine[None, None, None]]) -> None:
    """Do pieces of work at once; when one fails the others are ended first. Raises what the first of them raised, in
    their order."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        for task in tasks:
            await task
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def first_of(*waits: Coroutine[Any, Any, object]) -> None:
    """Wait until one of these is over, and end the others."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def in_own_thread(work: Callable[[], Result]) -> asyncio.Future[Result]:
    """What a call gives that may never return, as a question to a dead mount may not: its thread is none that others
    need, and ends with the call."""
    thread = ThreadPoolExecutor(1, "own")
    call = asyncio.get_running_loop().run_in_executor(thread, work)
    thread.shutdown(wait=False)
    return call


async def to_its_end(call: asyncio.Future[Result], stop: Callable[[], None] = lambda: None) -> Result:
    """What a call in a thread gives. A thread cannot be interrupted: when cancelled, this waits for the call to end,
    after `stop`, which may have it end early."""
    try:
        return await asyncio.shield(call)
    except asyncio.CancelledError:
        stop()
        await asyncio.wait([call])
        if not call.cancelled():
            call.exception()  # what it came to does not matter any more
        raise
