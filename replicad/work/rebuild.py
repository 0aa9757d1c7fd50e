"""Rebuild: make a catalog from the segments alone.

**Owns** the exchange of the catalog: the new one is complete and durable before it takes the old one's place, and
the old one is kept beside it.
"""

from __future__ import annotations

from pathlib import Path

from replicad.db.catalog import Catalog
from replicad.model.errors import StoreDamagedError, UsageError
from replicad.model.position import Position
from replicad.model.snapshot import Head
from replicad.store.format import Frame
from replicad.store.segments import Damage, SegmentFiles, SegmentScan, Torn, segment_numbers
from replicad.store.store import Owner, Store
from replicad.system.disk import Disk, Lock
from replicad.work.replay import Progress, Replay
