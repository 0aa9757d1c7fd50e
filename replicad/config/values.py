"""Values: the configuration as the rest of replicad sees it. Frozen; no I/O, no rules.

Defaults stand here and nowhere else. Units stand last in the names (`rpo_s`, `reserve_bytes`); the file's own keys
carry none (`rpo = "5m"`), see schema.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from replicad.model.order import RestoreClass
from replicad.model.pace import is_within
from replicad.model.place import Place
from replicad.model.policy import LEVELS, Objectives
from replicad.model.retention import Rules

MAX_WINDOW_BYTES = 256 * 1024**2
"""Largest window: the bandwidth-delay product of 10 Gbit/s at 200 ms. The link grants no more credit than this
(MAX_CREDIT_BYTES in link/messages.py)."""
_DEFAULT = Rules()
_PLAIN = Objectives()
_NOWHERE = (None, None)
Coordinates = tuple[float | None, float | None]
"""Degrees north and east, or neither."""


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """`[node]`: this host."""

    name: str
    state: Path
    """Directory of ledgers, keys, lock and the control socket."""
    key: Path
    """Private Ed25519 key in OpenSSH format, mode 0600; both host key and client key. Default: STATE/key."""
    http: str = "127.0.0.1:9817"
    """ADDR:PORT of /metrics and /healthz; "" switches the TCP listener off."""
    log_level: str = "info"
    log_format: str = "text"
    """"text" or "json"."""
    threads: int = 4
    """Worker threads for disk and hashing work; most of it waits or runs outside the interpreter lock."""
    site: str = ""
    """Where this host stands, as people call it; "" = not declared."""
    coordinates: Coordinates = _NOWHERE

    @property
    def place(self) -> Place:
        """Where it stands."""
        return Place(self.site, *self.coordinates)


@dataclass(frozen=True, slots=True)
class ListenConfig:
    """`[listen]`: this host is a replica."""

    store: Path
    address: str = ""
    """ADDR:PORT of the embedded SSH listener; "" when only an OpenSSH server is the door."""
    reserve_bytes: int = 1024**3
    """Intake stops when less than this would stay free on the store's file system."""
    max_sessions: int = 64
    max_views: int = 32
    """SFTP views at the same time."""
    max_view_handles: int = 256
    """Files and directories that one of them may have open."""
    window_bytes: int = 32 * 1024**2
    """Credit granted to each writing session, and SSH channel window."""
    scrub_every_s: float = 7 * 86400.0
    """Every stored byte is read again within this."""
    scrub_duty: float = 0.5
    """Share of the time that a scrub may keep the disk busy, unless its deadline needs more."""
    quiet_hours: str = ""
    """"HH:MM-HH:MM" of the local day in which no scrub reads; "" = none."""
    repair: str = "auto"
    """Whether stored blocks are repaired by themselves: "auto" or "ask"."""
    repair_limit: int = 100
    """Blocks repaired by themselves within an hour; more, and a person is asked: rot comes in clusters."""


@dataclass(frozen=True, slots=True)
class ClientConfig:
    """`[[client]]`: a primary that may store here."""

    name: str
    key: str
    """Public key, "ssh-ed25519 AAAA…"."""
    datasets: tuple[str, ...] = ()
    """Datasets it may write and read; empty = all of its own."""
    quota_bytes: int = 0
    """What its stores may take together; 0 = as much as there is."""

    def may_have(self, dataset: str) -> bool:
        """Whether it may write and read that dataset."""
        return not self.datasets or dataset in self.datasets


@dataclass(frozen=True, slots=True)
class ViewerConfig:
    """`[[viewer]]`: somebody who may look at copies here over SFTP, and do nothing else."""

    name: str
    key: str
    """Public key, "ssh-ed25519 AAAA…"."""
    datasets: tuple[str, ...]
    """"CLIENT/DATASET", or "CLIENT/*" for all of a client."""


EVERY_DATASET = "*"
"""In place of a dataset's name: all of the client's."""


@dataclass(frozen=True, slots=True)
class RetentionConfig:
    """`[[retention]]`: which snapshots of a client stay here. Without one that is meant for a client, all of its do."""

    client: str = ""
    """Name of a `[[client]]`; "" = every client that has no table of its own."""
    within_s: float = 0.0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    at_least: int = _DEFAULT.at_least
    younger_than_s: float = _DEFAULT.younger_than_s

    @property
    def rules(self) -> Rules:
        """What is asked for, as model/retention.py takes it."""
        counts = (self.hourly, self.daily, self.weekly, self.monthly)
        return Rules(self.within_s, *counts, self.at_least, self.younger_than_s)


class Hours(NamedTuple):
    """A part of every local day in which another limit holds."""

    begin: int
    """Minutes since midnight."""
    end: int
    """The first minute that is not part of it; not after `begin` when it lies in the next day."""
    rate_bytes: int
    """Bytes a second at most; 0 = unlimited."""

    def hold_at(self, second_of_day: float) -> bool:
        """Whether that second of a day is within."""
        return is_within((self.begin, self.end), second_of_day)


@dataclass(frozen=True, slots=True)
class ReplicaConfig:
    """`[[replica]]`: a node that keeps copies of this host's datasets."""

    name: str
    address: str
    """HOST:PORT."""
    key: str
    """Pinned public host key, "ssh-ed25519 AAAA…"."""
    via: str = "replicad"
    """"replicad" (embedded listener) or "openssh" (sshd with a forced command)."""
    user: str = "replicad"
    """Login name at an OpenSSH door."""
    bandwidth_bytes: int = 0
    """Bytes a second at most; 0 = unlimited."""
    bandwidth_hours: tuple[Hours, ...] = ()
    """The first of them that hold count instead."""
    window_bytes: int = 32 * 1024**2
    """SSH channel window: at least bandwidth x round-trip time."""
    keepalive_s: float = 15.0
    """A peer that is silent for three times this long counts as gone."""
    site: str = ""
    """Where it stands; "" = not declared."""
    coordinates: Coordinates = _NOWHERE

    @property
    def place(self) -> Place:
        """Where it stands."""
        return Place(self.site, *self.coordinates)

    def bandwidth_at(self, second_of_day: float) -> int:
        """Bytes a second that may be sent at that second of the local day; 0 = unlimited."""
        rates = (hours.rate_bytes for hours in self.bandwidth_hours if hours.hold_at(second_of_day))
        return next(rates, self.bandwidth_bytes)


@dataclass(frozen=True, slots=True)
class LevelConfig:
    """`[[level]]`: objectives under a name, for datasets to choose. One that is shipped may be given anew."""

    name: str
    rpo_s: float = _PLAIN.rpo_s
    rto_s: float = _PLAIN.rto_s
    scrub_every_s: float = _PLAIN.scrub_every_s
    drill_every_s: float = _PLAIN.drill_every_s
    copies: int = _PLAIN.copies
    sites: int = _PLAIN.sites
    min_distance_m: float = _PLAIN.min_distance_m
    keep_younger_than_s: float = _PLAIN.keep_younger_than_s
    keep_at_least: int = _PLAIN.keep_at_least


@dataclass(frozen=True, slots=True)
class ValidatorConfig:
    """An element of `validators`: what looks at restored data in a drill."""

    kind: str
    """One of VALIDATOR_KINDS."""
    pattern: str
    """Which paths it looks at (model/glob.py); a directory is looked at as a whole."""
    command: tuple[str, ...] = ()
    """Argument vector of kind "command", which is given the restored path as its last argument; no shell."""
    timeout_s: float = 3600.0
    """A validator that takes longer has found nothing out."""


VALIDATOR_KINDS = ("sqlite", "postgresql", "gzip", "zip", "tar", "zstd", "qcow2", "command")


@dataclass(frozen=True, slots=True)
class DatasetConfig:
    """`[[dataset]]`: a directory tree to protect."""

    name: str
    path: Path
    replicas: tuple[str, ...] = ()
    """Names of `[[replica]]`s; empty = all."""
    level: str = ""
    """The service level whose objectives it has, but for those that it sets itself; "" = none."""
    rpo_s: float = _PLAIN.rpo_s
    """A snapshot at this interval at the latest."""
    walk_every_s: float = 900.0
    """A full walk at this interval at the latest, whatever the watch says."""
    watch: bool = True
    debounce_s: float = 1.0
    exclude: tuple[str, ...] = ()
    """Patterns in gitignore syntax, relative to the root."""
    one_filesystem: bool = True
    block_bytes: int = 0
    """Block size for new files; 0 = by file size (model.block.block_size_for)."""
    on_change: str = "fuzzy"
    """What to do with a file that keeps changing while it is read: "fuzzy" or "skip"."""
    max_change: float = 0.5
    """Share of the dataset's entries that one pass may drop or rewrite before it is held; 1.0 = never hold."""
    hook_pre: tuple[str, ...] = ()
    """Argument vector run before a pass; no shell."""
    hook_post: tuple[str, ...] = ()
    """Argument vector run after a pass, whatever its outcome."""
    hook_timeout_s: float = 600.0
    compression: int = 1
    """zstd level, 0 = off."""
    tend_every_s: float = 60.0
    """How often a replica is asked for its findings: short against an hour in which a person should hear of one."""
    scrub_every_s: float = _PLAIN.scrub_every_s
    """Every byte of the dataset is read again within this."""
    scrub_duty: float = 0.25
    """Share of the time that a scrub may keep the disk busy, unless its deadline needs more."""
    quiet_hours: str = ""
    """"HH:MM-HH:MM" of the local day in which no scrub reads; "" = none."""
    repair: str = "ask"
    """Whether rot in the dataset itself is repaired from a replica by itself ("auto"), or on command ("ask")."""
    repair_limit: int = 100
    """Blocks repaired by themselves within an hour; more, and a person is asked."""
    drill_every_s: float = _PLAIN.drill_every_s
    """A drill from each replica at this interval; 0 = none by itself."""
    drill_scratch: Path | None = None
    """Directory that drills restore into; without one there are no drills."""
    drill_within_s: float = 90 * 86400.0
    """Every file is drilled within this."""
    drill_limit_bytes: int = 10 * 1024**3
    """Bytes of scratch space that one drill takes at most."""
    rto_s: float = _PLAIN.rto_s
    """The objective for a restore of the whole dataset; 0 = none."""
    validators: tuple[ValidatorConfig, ...] = ()
    restore_order: tuple[RestoreClass, ...] = ()
    """What a restore brings back first."""
    canary: str = ""
    """Name of the canary file in the root; "" = none, and nothing is ever written into the dataset by itself."""
    canary_every_s: float = 900.0
    """A canary at this interval."""
    canary_within_s: float = 1800.0
    """How long a canary may take to come all the way through."""
    copies: int = _PLAIN.copies
    """Copies that there have to be, counting the dataset itself."""
    sites: int = _PLAIN.sites
    min_distance_m: float = _PLAIN.min_distance_m
    keep_younger_than_s: float = _PLAIN.keep_younger_than_s
    """What every replica's own retention has to keep, at least."""
    keep_at_least: int = _PLAIN.keep_at_least

    @property
    def objectives(self) -> Objectives:
        """What is demanded, as model/policy.py takes it."""
        return Objectives(**{name: getattr(self, name) for name in Objectives.__struct_fields__})


@dataclass(frozen=True, slots=True)
class Config:
    """The whole file."""

    file: Path
    node: NodeConfig
    listen: ListenConfig | None = None
    clients: tuple[ClientConfig, ...] = ()
    viewers: tuple[ViewerConfig, ...] = ()
    retentions: tuple[RetentionConfig, ...] = ()
    replicas: tuple[ReplicaConfig, ...] = ()
    levels: tuple[LevelConfig, ...] = ()
    datasets: tuple[DatasetConfig, ...] = field(default=())

    def replicas_of(self, dataset: DatasetConfig) -> tuple[ReplicaConfig, ...]:
        """The replicas that `dataset` is copied to."""
        return tuple(r for r in self.replicas if not dataset.replicas or r.name in dataset.replicas)

    def rules_of(self, client: str) -> Rules:
        """By which rules a client's snapshots stay: by the table of its own, else by the one for all, else by none."""
        tables = {table.client: table.rules for table in self.retentions}
        return tables.get(client) or tables.get("") or _DEFAULT


def shipped_levels() -> dict[str, dict[str, object]]:
    """The fields of the levels that need no table."""
    names = [name for name in Objectives.__struct_fields__ if name != "level"]
    return {level: {name: getattr(one, name) for name in names} for level, one in LEVELS.items()}
