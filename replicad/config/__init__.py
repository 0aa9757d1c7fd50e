"""Configuration: a TOML file into frozen values, or every problem in it at once.

values.py says what the rest of replicad sees, schema.py what the file may hold, lines.py where each key stands,
rules.py what must hold across tables and of files, load.py puts them together, edit.py changes a file and keeps its
comments (imported by name where needed: it is slow to import).
"""

from __future__ import annotations

from replicad.config.load import Report, examine, examine_text, load
from replicad.config.values import (
    ClientConfig,
    Config,
    DatasetConfig,
    LevelConfig,
    ListenConfig,
    NodeConfig,
    ReplicaConfig,
    RetentionConfig,
)

__all__ = [
    "ClientConfig",
    "Config",
    "DatasetConfig",
    "LevelConfig",
    "ListenConfig",
    "NodeConfig",
    "ReplicaConfig",
    "Report",
    "RetentionConfig",
    "examine",
    "examine_text",
    "load",
]
