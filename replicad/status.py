"""Status: what every job is doing, as plain values. Logs, metrics, the HTTP API and the CLI render this one object.

Jobs write into it (through the mutable records below), everything else only reads. It knows no clock: times are
ns since 1970 written by whoever knows them, 0 meaning "never". `encode` gives the JSON whose keys are API.
"""

from __future__ import annotations

import msgspec

MAX_NAMED = 100
"""Paths that are named one by one in a list of what could not be copied; the counters count all."""


class Trouble(msgspec.Struct):
    """One path that could not be copied in the last pass, and why."""

    path: str
    reason: str


class DatasetStatus(msgspec.Struct):
    """One dataset on its way to one replica (primary side)."""

    dataset: str
    replica: str
    state: str = "starting"
    """starting, idle, hook, survey, copying, catching-up, committing, held, waiting (for the link or a retry), stopped."""
    reason: str = ""
    """Why it is held or waiting, in words, with what to do."""
    held: bool = False
    link_up: bool = False
    pass_number: int = 0
    """Passes ended since the daemon started, well or not."""
    pass_requested: int = 0
    """Raised by each request for a pass; `pass_served` follows it."""
    pass_served: int = 0
    pass_started_ns: int = 0
    pass_ok: bool = False
    """Whether the last ended pass copied everything."""
    total_files: int = 0
    total_bytes: int = 0
    pending_files: int = 0
    pending_bytes: int = 0
    """Bytes of source files of the running pass that are not yet read."""
    sent_bytes: int = 0
    """Bytes of frames and records given to the link since the daemon started."""
    read_bytes: int = 0
    last_snapshot: int = 0
    last_snapshot_ns: int = 0
    """Creation time of the last acknowledged snapshot."""
    last_complete_ns: int = 0
    """When the last pass began of which everything is acknowledged; the lag is the age of this."""
    last_error: str = ""
    unread: int = 0
    """Entries that could not be copied in the last pass."""
    fuzzy: int = 0
    """Files recorded although they kept changing."""
    troubles: list[Trouble] = []
    """The first MAX_NAMED of them."""
    rotten: int = 0
    """Blocks whose bytes differ from the ledger under an unchanged identity; not sent."""
    watch: str = "off"
    """on, off, or degraded: and why."""
    entries: int = 0
    size: int = 0
    """Entries and bytes of the dataset as the ledger knows it."""


class StoreStatus(msgspec.Struct):
    """One client's dataset on this node (replica side)."""

    client: str
    dataset: str
    state: str = "closed"
    """closed, idle, receiving, full, damaged."""
    reason: str = ""
    last_snapshot: int = 0
    last_snapshot_ns: int = 0
    received_ns: int = 0
    entries: int = 0
    size: int = 0
    stored_bytes: int = 0
    received_bytes: int = 0
    damaged: int = 0
    """Frames found damaged when the store was opened or read."""


class JobStatus(msgspec.Struct):
    """One loop of the daemon."""

    name: str
    running: bool = False
    failures: int = 0
    last_success_ns: int = 0
    last_error: str = ""
    next_try_ns: int = 0


class NodeStatus(msgspec.Struct):
    """Everything one daemon knows about itself."""

    node: str
    version: str
    started_ns: int = 0
    now_ns: int = 0
    config_file: str = ""
    config_error: str = ""
    """Why the last reload was refused; the old configuration is still in force."""
    listen: str = ""
    http: str = ""
    store_free_bytes: int = -1
    """Free bytes on the store's file system; -1 when this node has no store."""
    sessions: int = 0
    datasets: list[DatasetStatus] = []
    stores: list[StoreStatus] = []
    jobs: list[JobStatus] = []


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(NodeStatus)


def encode(status: NodeStatus) -> bytes:
    """The status as JSON."""
    return _encoder.encode(status)


def decode(data: bytes) -> NodeStatus:
    """The inverse of `encode`. Raises ValueError."""
    return _decoder.decode(data)
