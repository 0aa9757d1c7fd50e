"""Every error that replicad raises on purpose, in one hierarchy.

Each class answers three questions by its type, never by its message: what does the process exit with
(`exit_code`), is it worth trying again by itself (`retry`), and what should the operator do (`hint`).
Foreign exceptions are mapped to these once, at the boundary where they appear.
Never raised for damage: damage is a value that is counted, judged and reported.
"""

from __future__ import annotations

from dataclasses import dataclass


class ReplicadError(Exception):
    """Base class: `what` happened, `where` (file:key, path or peer; may be empty) and a `hint` on what to do."""

    exit_code = 3
    retry = True

    def __init__(self, what: str, *, where: str = "", hint: str = "") -> None:
        self.what, self.where, self.hint = what, where, hint
        super().__init__(what)

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text} ({self.hint})" if self.hint else text


class UsageError(ReplicadError):
    """The command line asks for something impossible; nothing was changed."""

    exit_code = 2
    retry = False


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong in a configuration file. `line` is 0 and `key` "" where it concerns the file as a whole."""

    file: str
    line: int
    key: str
    text: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return ": ".join(part for part in (place, self.key, self.text) if part)


class ConfigError(ReplicadError):
    """The configuration is invalid; `problems` holds every problem found, not only the first."""

    exit_code = 2
    retry = False

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        super().__init__("\n".join(map(str, problems)), hint="")


class LockedError(ReplicadError):
    """Another process already works on this state or store directory."""

    exit_code = 2
    retry = False


class LinkError(ReplicadError):
    """The peer cannot be reached, or the connection broke; the next attempt may succeed."""


class RefusedError(ReplicadError):
    """The peer answered and said no (key, host key, right, version); a person has to change something first."""


class PeerError(ReplicadError):
    """The peer sent bytes or messages that break the protocol; the session is over."""


class DiskFullError(ReplicadError):
    """There is no room: on the store beyond its reserve, on the state directory or at a restore target."""


class SourceError(ReplicadError):
    """The dataset cannot be walked at all, or a hook failed; the pass ended without a result."""


class HeldError(ReplicadError):
    """The dataset is held by a guard (root identity, mass change) until a person releases it."""

    exit_code = 1
    retry = False


class BookDamagedError(ReplicadError):
    """A page of the ledger or the catalog fails its checksum or is no database; the book must be rebuilt."""

    exit_code = 1
    retry = False


class StoreDamagedError(ReplicadError):
    """A store's own structure (segment header, commit chain) is damaged so that the request cannot be answered."""

    exit_code = 1
    retry = False


class DivergedError(ReplicadError):
    """Primary and replica disagree about the history they share; nothing may be written until that is settled."""

    exit_code = 1
    retry = False
