"""Schema: every table and key that a configuration file may hold, and how each value is read. Pure.

One table, `TABLES`: the file's name for a key, the field it becomes, and a reader that turns the TOML value into the
field's value or says in words what is wrong. Defaults are the defaults of the values' fields and stand nowhere else.
Keys carry no unit in their name: the unit is part of the value ("5m", "64KiB").
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import msgspec

from replicad.config import units
from replicad.config.values import (
    EVERY_DATASET,
    MAX_WINDOW_BYTES,
    VALIDATOR_KINDS,
    ClientConfig,
    Coordinates,
    DatasetConfig,
    Hours,
    LevelConfig,
    ListenConfig,
    NodeConfig,
    ReplicaConfig,
    RetentionConfig,
    ValidatorConfig,
    ViewerConfig,
)
from replicad.model import pairing
from replicad.model.block import LARGEST_BLOCK_BYTES, MIN_BLOCK_BYTES
from replicad.model.glob import compile_globs
from replicad.model.order import Order, RestoreClass
from replicad.model.policy import MIN_COPIES

Reader = Callable[[object], Any]
"""Turns a TOML value into a field's value; raises ValueError with what is wrong."""

DAY_S = 86400.0
MIN_RATE_BYTES = 1024
"""A line that carries less a second carries nothing."""
MIN_QUOTA_BYTES = 1024**2
"""Less holds no snapshot of anything."""
MAX_KEPT = 100_000
"""Hours of eleven years: who wants more has a rule for days, weeks or months."""
MAX_KEPT_S = 36_500 * DAY_S
"""A century; longer is a slip of the finger."""
MAX_NAME_BYTES = 255
"""No file system has longer names."""
MAX_SITES = 5
"""Nobody keeps one dataset at more; and whether so many lie apart from each other is found out by trying."""
MAX_DISTANCE_M = 20_000_000.0
MAX_TEXT_CHARACTERS = 4096
"""No text in a configuration file is longer: the longest path the kernel takes."""


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a table."""

    name: str
    field: str
    read: Reader
    each: bool = False
    """The value is an array, and `read` reads each element."""


@dataclass(frozen=True, slots=True)
class Table:
    """`[name]`, or `[[name]]` where `many`."""

    name: str
    value: type
    keys: tuple[Key, ...]
    many: bool = False

    def default(self, key: Key) -> Any:
        """The default of `key`, or dataclasses.MISSING where it has to be given."""
        return next(f.default for f in fields(self.value) if f.name == key.field)

    def required(self) -> list[Key]:
        """The keys that have to be given (the private key's place follows from the state directory)."""
        return [k for k in self.keys if self.default(k) is MISSING and (self.name, k.name) != ("node", "key")]


# ------------------------------------------------------------------------------------------------------- readers


def text(value: object) -> str:
    """A text of one line."""
    if not isinstance(value, str):
        raise ValueError(f"must be a text in quotes, not {_kind(value)}")
    if len(value) > MAX_TEXT_CHARACTERS:
        raise ValueError(f"is longer than {MAX_TEXT_CHARACTERS} characters")
    if any(ord(c) < 32 or ord(c) == 127 for c in value):
        raise ValueError("holds a control character")
    return value


def name(value: object) -> str:
    """A name that is safe as a file name, a metric label and an argument."""
    return pairing.parse_name(text(value))


def optional_name(value: object) -> str:
    """A name, or an empty text for none."""
    return name(value) if text(value) else ""


def viewed(value: object) -> str:
    """CLIENT/DATASET, or CLIENT/* for all of a client."""
    client, slash, dataset = text(value).partition("/")
    if not slash:
        raise ValueError(f'"{value}" is no CLIENT/DATASET, nor CLIENT/{EVERY_DATASET}')
    pairing.parse_name(client)
    if dataset != EVERY_DATASET:
        pairing.parse_name(dataset)
    return text(value)


def path(value: object) -> Path:
    """An absolute path."""
    if not text(value).startswith("/"):
        raise ValueError(f'"{value}" is not an absolute path')
    return Path(text(value))


def path_or_none(value: object) -> Path | None:
    """An absolute path, or an empty text for none."""
    return path(value) if text(value) else None


def address(value: object) -> str:
    """HOST:PORT of a peer."""
    pairing.split_address(text(value))
    return text(value)


def listen_address(value: object) -> str:
    """ADDR:PORT to listen on, as `split_address` takes it; an empty text switches the listener off."""
    if text(value):
        split_address(text(value))
    return text(value)


def split_address(value: str) -> tuple[str, int]:
    """Host and port of ADDR:PORT to listen on. Raises ValueError.

    More is allowed than in a peer's address: no host (:7022) means all addresses of this host, port 0 any free port.
    """
    host, _, port = value.rpartition(":")
    named = f"{host or 'localhost'}:{'1' if port == '0' else port}"
    try:
        pairing.split_address(named)
    except ValueError as error:
        raise ValueError(str(error).replace(named, value)) from error
    return host.strip("[]"), int(port)


def public_key(value: object) -> str:
    """ "ssh-ed25519 AAAA…", without the comment that may follow."""
    return pairing.parse_key(text(value))


def yes_no(value: object) -> bool:
    """true or false."""
    if not isinstance(value, bool):
        raise ValueError(f"must be true or false, not {_kind(value)}")
    return value


def choice(*allowed: str) -> Reader:
    """One of the texts `allowed`."""

    def read(value: object) -> str:
        if value not in allowed:
            raise ValueError("must be " + " or ".join(f'"{one}"' for one in allowed))
        return text(value)

    return read


def whole(low: int, high: int) -> Reader:
    """A whole number from `low` to `high`."""

    def read(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError(f"must be a whole number, not {_kind(value)}")
        if not low <= value <= high:
            raise ValueError(f"must lie between {low} and {high}")
        return value

    return read


def share(value: object) -> float:
    """A number above 0, 1 at most."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise ValueError(f"must be a number, not {_kind(value)}")
    if not 0 < value <= 1:
        raise ValueError("must lie above 0 and be 1.0 at most")
    return float(value)


def size(low: int, high: int = 2**60, *, zero: bool = False) -> Reader:
    """Bytes, from `low` to `high`, or none where `zero`."""

    def read(value: object) -> int:
        number = units.parse_size(_with_unit(value, '"64KiB"'))
        if not (low <= number <= high or (zero and not number)):
            raise ValueError(f'must lie between "{units.format_size(low)}" and "{units.format_size(high)}"')
        return number

    return read


def duration(low: float, high: float) -> Reader:
    """Seconds, from `low` to `high`."""

    def read(value: object) -> float:
        seconds = units.parse_duration(_with_unit(value, '"5m"'))
        if not low <= seconds <= high:
            raise ValueError(f'must lie between "{units.format_duration(low)}" and "{units.format_duration(high)}"')
        return seconds

    return read


def never_off(what: str, read: Reader) -> Reader:
    """What `read` gives; a zero is refused in words that say what it would switch off."""

    def checked(value: object) -> Any:
        if value in (0, "0"):
            raise ValueError(f"no level can switch off {what}")
        return read(value)

    return checked


def copies(value: object) -> int:
    """How many copies there have to be, counting the dataset itself."""
    if isinstance(value, int) and value < MIN_COPIES:
        raise ValueError(f"nothing can switch off the second copy: {MIN_COPIES} at least, the dataset itself counted")
    number: int = whole(MIN_COPIES, 100)(value)
    return number


def distance(value: object) -> float:
    """Metres, half the way around the Earth at most, or 0 for no objective."""
    metres = units.parse_distance(_with_unit(value, '"100km"'))
    if metres > MAX_DISTANCE_M:
        raise ValueError('must lie between 0 and "20000km"')
    return metres


def coordinates(value: object) -> Coordinates:
    """Degrees north and east, or an empty text for none."""
    return units.parse_coordinates(text(value)) if text(value) else (None, None)


def block_size(value: object) -> int:
    """Bytes of a block: a power of two, or 0 for a size that follows the file's."""
    number: int = size(MIN_BLOCK_BYTES, LARGEST_BLOCK_BYTES, zero=True)(value)
    if number & (number - 1):
        raise ValueError(f'"{value}" is no power of two')
    return number


def pattern(value: object) -> str:
    """A pattern in gitignore syntax."""
    from pathspec import GitIgnoreSpec  # slow to import, and most files have no patterns

    written = text(value)
    try:
        GitIgnoreSpec.from_lines([written])
    except (ValueError, re.error) as error:  # a range that runs backwards is left to `re`
        raise ValueError(f'"{written}" is no pattern in gitignore syntax') from error
    return written


def hours(value: object) -> str:
    """HH:MM-HH:MM, or an empty text for none."""
    if text(value):
        units.parse_hours(text(value))
    return text(value)


def limited_hours(value: object) -> Hours:
    """HH:MM-HH:MM and the size that may be sent in each of their seconds."""
    span, _, rate = text(value).partition(" ")
    if not rate:
        raise ValueError(f'"{value}" are no hours with a limit; write them like "08:00-18:00 2MiB"')
    return Hours(*units.parse_hours(span), size(MIN_RATE_BYTES, zero=True)(rate))


def glob(value: object) -> str:
    """A pattern that paths are chosen with, as `restore --path` takes it."""
    compile_globs([text(value).encode()])
    return text(value)


def file_name(value: object) -> str:
    """The name of a file in a directory that is given elsewhere, or an empty text for none."""
    named = text(value)
    if "/" in named or named in (".", "..") or len(named.encode()) > MAX_NAME_BYTES:
        raise ValueError(f'"{value}" is not the name of a file')
    return named


def validator(value: object) -> ValidatorConfig:
    """A table {kind, pattern, command, timeout}."""
    if not isinstance(value, dict):
        raise ValueError(f'must be a table, like {{kind = "sqlite", pattern = "*.db"}}, not {_kind(value)}')
    read = {"kind": choice(*VALIDATOR_KINDS), "pattern": glob, "timeout": duration(1, 7 * DAY_S)}
    if unknown := value.keys() - read.keys() - {"command"}:
        raise ValueError(f"has an unknown key {min(unknown)!r}; known are kind, pattern, command, timeout")
    if missing := {"kind", "pattern"} - value.keys():
        raise ValueError(f"lacks {min(missing)!r}")
    given = {key: reader(value[key]) for key, reader in read.items() if key in value}
    command = value.get("command", [])
    if not isinstance(command, list) or (given["kind"] == "command") != bool(command):
        raise ValueError('needs command = ["program", "argument"] with kind "command", and with no other')
    timeout = {"timeout_s": given.pop("timeout")} if "timeout" in given else {}
    return ValidatorConfig(**given, command=tuple(map(text, command)), **timeout)


def restore_class(value: object) -> RestoreClass:
    """A table {name, patterns}."""
    try:
        found = msgspec.convert(value, RestoreClass)
    except msgspec.ValidationError as error:
        raise ValueError(f'must be a table {{name = "…", patterns = ["…"]}}: {error}') from None
    Order([found])
    return found


def _with_unit(value: object, example: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and value == 0:
        return "0"
    if not isinstance(value, str):
        raise ValueError(f"must be a text with a unit, like {example}, not {_kind(value)}")
    return value


def _kind(value: object) -> str:
    """What a TOML value is, in TOML's words."""
    kinds = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "a text",
        list: "an array",
        dict: "a table",
    }
    return kinds.get(type(value), "a date or time")


# --------------------------------------------------------------------------------------------------------- table

TABLES = (
    Table(
        "node",
        NodeConfig,
        (
            Key("name", "name", name),
            Key("state", "state", path),
            Key("key", "key", path),
            Key("http", "http", listen_address),
            Key("log_level", "log_level", choice("debug", "info", "warning", "error")),
            Key("log_format", "log_format", choice("text", "json")),
            Key("threads", "threads", whole(1, 64)),
            Key("site", "site", optional_name),
            Key("coordinates", "coordinates", coordinates),
        ),
    ),
    Table(
        "listen",
        ListenConfig,
        (
            Key("store", "store", path),
            Key("address", "address", listen_address),
            Key("reserve", "reserve_bytes", size(0)),
            Key("max_sessions", "max_sessions", whole(1, 4096)),
            Key("max_views", "max_views", whole(0, 4096)),
            Key("max_view_handles", "max_view_handles", whole(1, 10_000)),
            Key("window", "window_bytes", size(64 * 1024, MAX_WINDOW_BYTES)),
            Key("scrub_every", "scrub_every_s", duration(1, 365 * DAY_S)),
            Key("scrub_duty", "scrub_duty", share),
            Key("quiet_hours", "quiet_hours", hours),
            Key("repair", "repair", choice("auto", "ask")),
            Key("repair_limit", "repair_limit", whole(0, 1_000_000)),
        ),
    ),
    Table(
        "client",
        ClientConfig,
        (
            Key("name", "name", name),
            Key("key", "key", public_key),
            Key("datasets", "datasets", name, each=True),
            Key("quota", "quota_bytes", size(MIN_QUOTA_BYTES, zero=True)),
        ),
        many=True,
    ),
    Table(
        "viewer",
        ViewerConfig,
        (
            Key("name", "name", name),
            Key("key", "key", public_key),
            Key("datasets", "datasets", viewed, each=True),
        ),
        many=True,
    ),
    Table(
        "retention",
        RetentionConfig,
        (
            Key("client", "client", optional_name),
            Key("keep_within", "within_s", duration(0, MAX_KEPT_S)),
            Key("keep_hourly", "hourly", whole(0, MAX_KEPT)),
            Key("keep_daily", "daily", whole(0, MAX_KEPT)),
            Key("keep_weekly", "weekly", whole(0, MAX_KEPT)),
            Key("keep_monthly", "monthly", whole(0, MAX_KEPT)),
            Key("keep_at_least", "at_least", whole(1, MAX_KEPT)),
            Key("keep_younger_than", "younger_than_s", duration(DAY_S, MAX_KEPT_S)),
        ),
        many=True,
    ),
    Table(
        "replica",
        ReplicaConfig,
        (
            Key("name", "name", name),
            Key("address", "address", address),
            Key("key", "key", public_key),
            Key("via", "via", choice("replicad", "openssh")),
            Key("user", "user", name),
            Key("bandwidth", "bandwidth_bytes", size(MIN_RATE_BYTES, zero=True)),
            Key("bandwidth_hours", "bandwidth_hours", limited_hours, each=True),
            Key("window", "window_bytes", size(64 * 1024, MAX_WINDOW_BYTES)),
            Key("keepalive", "keepalive_s", duration(1, 3600)),
            Key("site", "site", optional_name),
            Key("coordinates", "coordinates", coordinates),
        ),
        many=True,
    ),
    Table(
        "level",
        LevelConfig,
        (
            Key("name", "name", name),
            Key("rpo", "rpo_s", duration(1, 30 * DAY_S)),
            Key("rto", "rto_s", duration(0, 365 * DAY_S)),
            Key("scrub_every", "scrub_every_s", never_off("the verification", duration(1, 365 * DAY_S))),
            Key("drill_every", "drill_every_s", never_off("the drills", duration(1, 365 * DAY_S))),
            Key("copies", "copies", copies),
            Key("sites", "sites", whole(1, MAX_SITES)),
            Key("min_distance", "min_distance_m", distance),
            Key("keep_younger_than", "keep_younger_than_s", duration(0, MAX_KEPT_S)),
            Key("keep_at_least", "keep_at_least", whole(0, MAX_KEPT)),
        ),
        many=True,
    ),
    Table(
        "dataset",
        DatasetConfig,
        (
            Key("name", "name", name),
            Key("path", "path", path),
            Key("replicas", "replicas", name, each=True),
            Key("level", "level", optional_name),
            Key("rpo", "rpo_s", duration(1, 30 * DAY_S)),
            Key("walk_every", "walk_every_s", duration(1, 30 * DAY_S)),
            Key("watch", "watch", yes_no),
            Key("debounce", "debounce_s", duration(0, 3600)),
            Key("exclude", "exclude", pattern, each=True),
            Key("one_filesystem", "one_filesystem", yes_no),
            Key("block_size", "block_bytes", block_size),
            Key("on_change", "on_change", choice("fuzzy", "skip")),
            Key("max_change", "max_change", share),
            Key("hook_pre", "hook_pre", text, each=True),
            Key("hook_post", "hook_post", text, each=True),
            Key("hook_timeout", "hook_timeout_s", duration(1, 7 * DAY_S)),
            Key("compression", "compression", whole(0, 19)),
            Key("tend_every", "tend_every_s", duration(1, DAY_S)),
            Key("scrub_every", "scrub_every_s", duration(1, 365 * DAY_S)),
            Key("scrub_duty", "scrub_duty", share),
            Key("quiet_hours", "quiet_hours", hours),
            Key("repair", "repair", choice("auto", "ask")),
            Key("repair_limit", "repair_limit", whole(0, 1_000_000)),
            Key("drill_every", "drill_every_s", duration(0, 365 * DAY_S)),
            Key("drill_scratch", "drill_scratch", path_or_none),
            Key("drill_within", "drill_within_s", duration(1, 3650 * DAY_S)),
            Key("drill_limit", "drill_limit_bytes", size(1024)),
            Key("rto", "rto_s", duration(0, 365 * DAY_S)),
            Key("validators", "validators", validator, each=True),
            Key("canary", "canary", file_name),
            Key("canary_every", "canary_every_s", duration(1, 30 * DAY_S)),
            Key("canary_within", "canary_within_s", duration(1, 30 * DAY_S)),
            Key("copies", "copies", copies),
            Key("sites", "sites", whole(1, MAX_SITES)),
            Key("min_distance", "min_distance_m", distance),
            Key("keep_younger_than", "keep_younger_than_s", duration(0, MAX_KEPT_S)),
            Key("keep_at_least", "keep_at_least", whole(0, MAX_KEPT)),
            Key("restore_order", "restore_order", restore_class, each=True),
        ),
        many=True,
    ),
)
"""In the order in which the example file shows them."""
