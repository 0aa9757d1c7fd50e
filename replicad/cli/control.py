"""Control: where the running daemon listens, for verbs that only talk to it.

**Owns** the short look into the configuration. **Never** judges the file: the daemon runs by what it read and judged,
and importing the judge (`replicad.config`) takes a sixth of what a short verb takes. Where there is no plain answer
the judge is asked after all, and says what is wrong.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

MAX_BYTES = 1024 * 1024
"""No configuration is longer; what is cut off here is judged as a whole below."""


def glance(config: Path) -> dict[str, Any]:
    """What the file says, unjudged; nothing where it cannot be read."""
    try:
        with config.open("rb") as file:
            return tomllib.loads(file.read(MAX_BYTES).decode())
    except (OSError, ValueError, RecursionError):
        return {}


def state_of(config: Path) -> Path:
    """The daemon's state directory. Raises ConfigError."""
    node = glance(config).get("node")
    state = node.get("state") if isinstance(node, dict) else None
    if isinstance(state, str) and state.startswith("/"):
        return Path(state)
    from replicad.config import load

    return load(config, check_files=False).node.state
