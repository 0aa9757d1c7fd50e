"""Rules: what must hold across the tables of a configuration, and of the files that it names.

`across` looks at the values alone (and, with `resolve`, at symbolic links); `files` looks at keys, directories and
programs. Both report through callbacks and go on, whatever they find. A dataset whose root is missing is a doubt
and no problem: it may be unmounted, and the daemon holds it until it is back. A store that is missing is a problem:
intake into an empty mount point would fill the wrong file system.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from replicad.config.lines import Place
from replicad.config.values import shipped_levels
from replicad.model.order import Order

KEY_NAME = "key"
"""The private key's file name in the state directory, unless `node.key` says otherwise."""
_PRIVATE_KEY_HEAD = b"-----BEGIN OPENSSH PRIVATE KEY-----"

Finding = Callable[[Place, str], None]
"""Called with the place of a finding and its text."""


@dataclass(frozen=True, slots=True)
class Section:
    """One occurrence of a table: its name, where it stands, and the fields that were read."""

    table: str
    place: Place
    values: dict[str, Any]


def completed(section: Section) -> dict[str, Any]:
    """The section's values with the one default that depends on another value."""
    if section.table == "node" and "state" in section.values:
        return {"key": section.values["state"] / KEY_NAME} | section.values
    return section.values


def across(sections: list[Section], wrong: Finding, *, resolve: bool) -> None:
    """What must hold between tables: names, references, directories. `resolve`: follow symbolic links."""
    for table, field, text in (
        ("client", "name", "the name"),
        ("client", "key", "the key"),
        ("viewer", "name", "the name"),
        ("viewer", "key", "the key"),
        ("replica", "name", "the name"),
        ("replica", "key", "the host key"),
        ("level", "name", "the name"),
        ("dataset", "name", "the name"),
    ):
        _unique(sections, table, field, text, wrong)
    _references(sections, wrong)
    _retentions(sections, wrong)
    _levels(sections, wrong)
    canonical: Callable[[Path], str] = os.path.realpath if resolve else os.path.normpath
    _directories(sections, wrong, canonical)
    _key_apart(sections, wrong, canonical)


def files(sections: list[Section], wrong: Finding, doubt: Finding) -> None:
    """What must hold of the files that the configuration names, for the user that this process runs as."""
    for section in sections:
        values = completed(section)
        match section.table:
            case "node" if "key" in values:
                _private_key(values["key"], (*section.place, "key"), wrong)
            case "listen" if "store" in values:
                _store(values["store"], (*section.place, "store"), wrong)
            case "dataset":
                _dataset(section, wrong, doubt)


def _named(sections: list[Section], table: str) -> Iterator[Section]:
    return (section for section in sections if section.table == table)


def _unique(sections: list[Section], table: str, field: str, what: str, wrong: Finding) -> None:
    """Clients, viewers and replicas are told apart by name and by key, datasets by name. A key may be a client's and a
    viewer's."""
    first: dict[Any, Section] = {}
    for section in _named(sections, table):
        value = section.values.get(field)
        if value is not None and first.setdefault(value, section) is not section:
            other = first[value].values.get("name", "?")
            wrong((*section.place, field), f'has {what} of {table} "{other}" above')


def _references(sections: list[Section], wrong: Finding) -> None:
    replicas = {section.values.get("name") for section in _named(sections, "replica")}
    has_listen = any(_named(sections, "listen"))
    for section in _named(sections, "client"):
        if not has_listen:
            wrong(section.place, "a client needs a [listen] table with a store")
            break
    for section in _named(sections, "viewer"):
        if not has_listen:
            wrong(section.place, "a viewer needs a [listen] table with a store")
            break
        if section.values.get("datasets") == ():
            wrong((*section.place, "datasets"), "is empty: name what it may view")
    for section in _named(sections, "dataset"):
        if not replicas:
            wrong(section.place, "is not protected: there is no [[replica]] to copy it to")
        for index, name in enumerate(section.values.get("replicas", ())):
            if name not in replicas:
                wrong((*section.place, "replicas", index), f'there is no [[replica]] named "{name}"')
        if is_excluded(section.values.get("canary", ""), section.values.get("exclude", ())):
            wrong((*section.place, "canary"), "is left out by exclude, so that it would never be copied")
        try:
            Order(section.values.get("restore_order", ()))
        except ValueError as error:
            wrong((*section.place, "restore_order"), str(error))
        for hook in ("hook_pre", "hook_post"):
            if section.values.get(hook, ("program",))[:1] == ("",):
                wrong((*section.place, hook, 0), "the program's name is empty")


def is_excluded(path: str, patterns: Sequence[str]) -> bool:
    """Whether these patterns leave out what is called so in the dataset; "" is nothing."""
    if not path or not patterns:
        return False
    from pathspec import GitIgnoreSpec  # slow to import, and most files have no patterns

    return GitIgnoreSpec.from_lines(patterns).match_file(path)


def _retentions(sections: list[Section], wrong: Finding) -> None:
    """Rules are for clients that there are, once for each, on a node that keeps copies."""
    clients = {section.values.get("name") for section in _named(sections, "client")}
    seen: set[str] = set()
    for section in _named(sections, "retention"):
        client = section.values.get("client", "")
        whom = f'client "{client}"' if client else "all clients"
        if not any(_named(sections, "listen")):
            wrong(section.place, "retention is the replica's: it needs a [listen] table with a store")
        if client and client not in clients:
            wrong((*section.place, "client"), f'there is no [[client]] named "{client}"')
        if client in seen:
            wrong((*section.place, "client"), f"there is a [[retention]] for {whom} above")
        seen.add(client)


def levels(sections: list[Section]) -> dict[str, dict[str, Any]]:
    """The fields that each service level sets: the shipped ones, and those of the file in their place or beside them.

    What a table does not say is as for a dataset without a level."""
    own = {s.values["name"]: s.values for s in _named(sections, "level") if "name" in s.values}
    given = {name: {key: value for key, value in values.items() if key != "name"} for name, values in own.items()}
    return shipped_levels() | given


def _levels(sections: list[Section], wrong: Finding) -> None:
    """A dataset's level exists, and the dataset does not switch off what every level has."""
    known = levels(sections)
    for section in _named(sections, "dataset"):
        level = section.values.get("level", "")
        if not level:
            continue
        if level not in known:
            wrong((*section.place, "level"), f'there is no level "{level}"; there are {", ".join(known)}')
        if section.values.get("drill_every_s") == 0:
            wrong((*section.place, "drill_every"), f'no dataset of level "{level}" can switch off the drills')
        if section.values.get("drill_scratch") is None:
            wrong((*section.place, "level"), f'level "{level}" has drills: set drill_scratch, a directory for them')


@dataclass(frozen=True, slots=True)
class _Directory:
    """A directory of the configuration, in the words of a message."""

    what: str
    path: str
    place: Place

    def contains(self, other: _Directory) -> bool:
        return os.path.commonpath((self.path, other.path)) == self.path


def _directories(sections: list[Section], wrong: Finding, canonical: Callable[[Path], str]) -> None:
    """No dataset inside another, nor anything of replicad's inside a dataset, nor a dataset inside that."""
    own: list[_Directory] = []
    datasets: list[_Directory] = []
    for section in sections:
        for table, field, what in (
            ("node", "state", "the state directory"),
            ("listen", "store", "the store"),
            ("dataset", "path", f'dataset "{section.values.get("name", "?")}"'),
        ):
            if section.table == table and field in section.values:
                directory = _Directory(what, canonical(section.values[field]), (*section.place, field))
                (datasets if table == "dataset" else own).append(directory)
    for index, dataset in enumerate(datasets):
        for earlier in datasets[:index]:
            _apart(dataset, earlier, wrong)
        for directory in own:
            _apart(dataset, directory, wrong)
    for section in _named(sections, "dataset"):
        if scratch := section.values.get("drill_scratch"):
            place = _Directory("a scratch directory", canonical(scratch), (*section.place, "drill_scratch"))
            for live in (*datasets, *own):  # a drill writes and removes there
                _clear_of(place, live, wrong)
    state, store = own if len(own) == 2 else (None, None)
    if state and store and store.contains(state):
        wrong(state.place, f"{state.path} lies inside {store.what} {store.path}, where clients' directories are")


def _key_apart(sections: list[Section], wrong: Finding, canonical: Callable[[Path], str]) -> None:
    """No dataset takes this node's private key to its replicas, where it would let them pass for this node."""
    datasets = [(s, Path(canonical(s.values["path"]))) for s in _named(sections, "dataset") if "path" in s.values]
    for node in _named(sections, "node"):
        key = Path(canonical(node.values["key"])) if "key" in node.values else Path()
        for dataset, root in datasets:
            inside = str(key.relative_to(root)) if key.is_relative_to(root) else ""
            if inside and not is_excluded(inside, dataset.values.get("exclude", ())):
                text = f'lies inside dataset "{dataset.values.get("name", "?")}" and would be copied'
                wrong((*node.place, "key"), f"{text}; move it, or exclude it there")


def _apart(one: _Directory, other: _Directory, wrong: Finding) -> None:
    if one.path == other.path:
        wrong(one.place, f"{one.path} is also {other.what}")
    elif other.contains(one):
        wrong(one.place, f"{one.path} lies inside {other.what}, {other.path}")
    elif one.contains(other):
        wrong(other.place, f"{other.path} lies inside {one.what}, {one.path}")


def _clear_of(one: _Directory, live: _Directory, wrong: Finding) -> None:
    """`one` is no live directory, and neither lies in the other; the fault is always with `one`."""
    if one.contains(live) or live.contains(one):
        wrong(one.place, f"{one.path} overlaps {live.what}, {live.path}")


def _private_key(path: Path, place: Place, wrong: Finding) -> None:
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            head = file.read(len(_PRIVATE_KEY_HEAD))
    except OSError as error:
        hint = "; replicad init makes it" if isinstance(error, FileNotFoundError) else ""
        wrong(place, f"{path} cannot be read: {error.strerror}{hint}")
        return
    if status.st_mode & 0o077:
        wrong(place, f"{path} can be read by others (mode {stat.S_IMODE(status.st_mode):04o}); chmod 600 {path}")
    if head != _PRIVATE_KEY_HEAD:
        wrong(place, f"{path} is no private key in OpenSSH format")


def _store(path: Path, place: Place, wrong: Finding) -> None:
    if not os.path.isdir(path):
        wrong(place, f"{path} is no directory; is its file system mounted?")
    elif not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        wrong(place, f"{path} is not writable for this user (under systemd it also has to stand in ReadWritePaths=)")


def _dataset(section: Section, wrong: Finding, doubt: Finding) -> None:
    path = section.values.get("path")
    if path is not None and not os.path.isdir(path):
        doubt((*section.place, "path"), f"{path} is no directory now; the dataset is held until it is")
    scratch = section.values.get("drill_scratch")
    if scratch is not None and not os.path.isdir(scratch):
        doubt((*section.place, "drill_scratch"), f"{scratch} is no directory now; there are no drills until it is")
    for index, validator in enumerate(section.values.get("validators", ())):
        if validator.command and not shutil.which(validator.command[0]):
            text = f'there is no program "{validator.command[0]}"; drills that need it find nothing out'
            doubt((*section.place, "validators", index), text)
    for hook in ("hook_pre", "hook_post"):
        program = section.values.get(hook, ())[:1]
        if program and program[0] and not shutil.which(program[0]):
            wrong((*section.place, hook, 0), f'there is no program "{program[0]}"')
