"""Load: how much everybody on this host waits for its disks, so that background work can step aside.

The kernel says it (/proc/pressure/io); where it does not, the length of the run queue stands in for it.
"""

from __future__ import annotations

import os
from pathlib import Path

PRESSURE = Path("/proc/pressure/io")


def io_strain(pressure: Path = PRESSURE) -> float:
    """Share of the last seconds in which some task waited for a disk, 0 to 1. Without that figure: how far the load
    average goes beyond one task for each processor, 1 where it is twice as many."""
    try:
        return parse_pressure(pressure.read_text())
    except (OSError, ValueError):  # a kernel without it, or with it switched off
        return min(1.0, max(0.0, os.getloadavg()[0] / (os.cpu_count() or 1) - 1.0))


def parse_pressure(text: str) -> float:
    """The ten-second average of the line "some". Raises ValueError."""
    for line in text.splitlines():
        kind, _, figures = line.partition(" ")
        if kind == "some":
            values = dict(figure.split("=", 1) for figure in figures.split())
            if "avg10" in values:
                return float(values["avg10"]) / 100
    raise ValueError("no line of pressure")
