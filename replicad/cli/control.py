"""Control: where the running daemon listens, for verbs that only talk to it.

**Owns** a short look into the configuration: the state directory and nothing else. **Never** judges the file: the
daemon runs by what it read and judged, and importing the judge (`replicad.config`) takes a sixth of what a short verb
takes. Where there is no plain answer the judge is asked after all, and says what is wrong.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

MAX_BYTES = 1024 * 1024
"""No configuration is longer; what is cut off here is judged as a whole below."""


def state_of(config: Path) -> Path:
    """The daemon's state directory. Raises ConfigError."""
    try:
        with config.open("rb") as file:
            state = tomllib.loads(file.read(MAX_BYTES).decode())["node"]["state"]
        if state.startswith("/"):
            return Path(state)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        pass  # told below, in the words of the configuration
    from replicad.config import load

    return load(config, check_files=False).node.state
