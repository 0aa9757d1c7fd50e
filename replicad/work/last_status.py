"""Last status: what the daemon says of itself, written down now and then, for `replicad status` of a dead daemon."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiofiles

from replicad.model.errors import ReplicadError
from replicad.status import LAST_STATUS, NodeStatus, encode
from replicad.system.disk import Disk
from replicad.system.logs import logger

log = logger("daemon")


async def write_down(state: Path, status: NodeStatus, disk: Disk) -> None:
    """Write the status down. That the disk has no room for it is shown by the jobs that need the room."""
    path = state / LAST_STATUS
    fresh = path.with_suffix(".new")
    try:
        async with aiofiles.open(fresh, "wb") as file:
            await file.write(encode(status))
        await asyncio.to_thread(disk.rename_durable, fresh, path)
    except (OSError, ReplicadError) as error:
        log.warning("the status could not be written down", file=path, reason=str(error))
