"""`replicad status`: the one-minute answer for whoever is woken at night.

Renders the daemon's NodeStatus and nothing else: first what is wrong and what to type, then each dataset on its way
out and each store on its way in, as plain text for 80 columns. Never says that all is well about something it could
not see: a daemon out of reach is an error (exit code 3), and so is a replica out of reach when nothing else is wrong.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from replicad.cli import output
from replicad.cli.control import state_of
from replicad.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption, note_config
from replicad.cli.output import COLUMNS as COLUMNS
from replicad.cli.output import wrapped as _wrapped
from replicad.http.api import Client
from replicad.model.canary import is_late as is_canary_late
from replicad.model.drill import is_overdue
from replicad.model.errors import LinkError
from replicad.model.policy import Grade, Judgement
from replicad.status import (
    LAST_STATUS,
    CanaryStatus,
    DatasetStatus,
    DrillStatus,
    Finding,
    NodeStatus,
    ScrubStatus,
    StoreStatus,
    decode,
    findings,
    is_here,
    is_late,
    lag_s,
)
from replicad.system.clock import format_ns
from replicad.work.policy_facts import judgements

LABEL_COLUMNS = 14
"""Where the values of a block begin."""
NAMED_TROUBLES = 10
"""Unread paths shown; more would push what matters off the screen. --json names all that the daemon remembers."""
WATCH_EVERY_S = 2.0
_CLEAR_SCREEN = "\x1b[H\x1b[2J"

FINDING, OUT_OF_REACH = 1, 3


def status(
    config: ConfigOption = DEFAULT_CONFIG,
    json: JsonOption = False,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again every 2 seconds until Ctrl-C.")] = False,
) -> None:
    """What is replicated, what is not, and what to type next.

    Exit codes: 0 all is well, 1 something is wrong (held, unread, rotten, damaged, late or failing), 3 the daemon is
    out of reach, or a replica is and nothing else is wrong.
    """
    state = state_of(config)
    client = Client(state)
    if watch:
        _watch(client, json)
    try:
        now = client.status()
    except LinkError:
        if not json:
            _show_last(state / LAST_STATUS)
        raise
    found = findings(now)
    if json:
        output.json_document(as_document(now, found))
    else:
        output.line("\n".join(render(now, found)))
        if found:
            note_config(config)
    if code := exit_code(found):
        raise typer.Exit(code)


def _show_last(path: Path) -> None:
    """What a daemon that cannot be asked said last, if it ever wrote that down."""
    try:
        last = decode(path.read_bytes())
    except (OSError, ValueError):
        return
    output.line(output.mark(f"The daemon does not answer. At {format_ns(last.now_ns)} it said:", "bad"))
    output.line()
    output.line("\n".join(f"  {line}" for line in render(last, findings(last))))
    output.line()


def as_document(now: NodeStatus, found: list[Finding]) -> dict[str, object]:
    """The status as `--json` prints it: the daemon's own words, and what follows from them."""
    document: dict[str, object] = msgspec.to_builtins(now)
    return document | {"findings": msgspec.to_builtins(found)}


def exit_code(found: list[Finding]) -> int:
    """What the findings make of the process's exit."""
    if any(finding.kind != "link" for finding in found):
        return FINDING
    return OUT_OF_REACH if found else 0


def render(now: NodeStatus, found: list[Finding], earlier: NodeStatus | None = None) -> list[str]:
    """The lines of `replicad status`. With an `earlier` status the rates are those between the two."""
    lines, judged = list(_head(now, found)), judgements(now)
    for line in now.datasets:
        before = _same(line, earlier)
        rate = _rate_between(line, now, before, earlier) if before and earlier else _rate_of_pass(line, now)
        scrubs = [s for s in now.scrubs if s.dataset == line.dataset and (s.side == "primary" or not is_here(s, now))]
        lines += ["", *_dataset(line, now.now_ns, rate)]
        lines += [text for s in scrubs if s.peer in ("", line.replica) for text in _verified(s, now.now_ns)]
        drills = [d for d in now.drills if (d.dataset, d.replica) == (line.dataset, line.replica)]
        lines += [text for d in drills for text in _drilled(d, now.now_ns)]
        canaries = [c for c in now.canaries if (c.dataset, c.replica) == (line.dataset, line.replica)]
        lines += [text for c in canaries for text in _canary(c, now.now_ns)]
        lines += [text for one in judged if one.dataset == line.dataset for text in _policy(one)]
    for store in now.stores:
        lines += ["", *_store(store, now.now_ns)]
        scrubs = [s for s in now.scrubs if (s.peer, s.dataset) == (store.client, store.dataset)]
        lines += [text for s in scrubs if is_here(s, now) for text in _verified(s, now.now_ns)]
    if now.store_free_bytes >= 0:
        room = f"{output.show_bytes(now.store_free_bytes)} free"
        if now.store_reserve_bytes >= 0:
            room += f"; intake stops below {output.show_bytes(now.store_reserve_bytes)}"
        lines += ["", *value_lines("store room", room)]
    return lines


def _watch(client: Client, json: bool) -> None:
    """For ever; a daemon that is restarted meanwhile is waited for."""
    earlier: NodeStatus | None = None
    while True:
        try:
            now = client.status()
        except LinkError as error:
            earlier = None
            output.line(output.mark(str(error), "bad"))
        else:
            found = findings(now)
            if json:
                output.json_line(as_document(now, found))
            else:
                clear = _CLEAR_SCREEN if sys.stdout.isatty() else ""
                output.line(clear + "\n".join(render(now, found, earlier)))
            earlier = now
        time.sleep(WATCH_EVERY_S)


def _head(now: NodeStatus, found: list[Finding]) -> Iterator[str]:
    count = len(found)
    verdict = output.mark(output.counted(count, "finding"), "bad") if found else output.mark("all is well", "ok")
    uptime = output.show_duration(max(0, now.now_ns - now.started_ns) / 1e9)
    yield f"{now.node}: {verdict} (replicad {now.version}, up {uptime})"
    if not now.datasets and not now.stores:
        yield "  nothing is replicated from or to this node yet"
    for number, finding in enumerate(found, 1):
        yield from _wrapped(f"  {number}. ", f"{finding.where}: {finding.what}", "     ")
        yield from _wrapped("     -> ", finding.next_step, "        ")


def _dataset(line: DatasetStatus, now_ns: int, rate: float) -> Iterator[str]:
    yield f"{line.dataset} -> {line.replica}: {_state(line)}"
    yield from value_lines("replicated", _replicated(line, now_ns), bad=is_late(line, now_ns))
    yield from value_lines("snapshot", _snapshot(line.last_snapshot, line.last_snapshot_ns, now_ns))
    if line.pending_files or line.pending_bytes:
        yield from value_lines("backlog", _backlog(line, rate))
    if line.reason and not line.held:
        yield from value_lines("why", line.reason)
    yield from value_lines("size", f"{output.entries(line.entries)}, {output.show_bytes(line.size)}")
    if line.unread:
        yield from value_lines("unread", f"{line.unread:,} in the last pass:")
        yield from _troubles(line)
    if line.fuzzy:
        files = output.counted(line.fuzzy, "file that kept", "files that kept")
        yield from value_lines("fuzzy", f"{files} changing while being read")
    if line.rotten:
        text = f"{output.counted(line.rotten, 'block')} not as written; nothing of that was sent"
        yield from value_lines("rotten", text)
    if line.watch.startswith("degraded"):
        yield from value_lines("watch", line.watch)


def _store(store: StoreStatus, now_ns: int) -> Iterator[str]:
    bad = store.damaged or store.state in ("damaged", "full")
    yield f"store {store.client}/{store.dataset}: {output.mark(store.state, 'bad' if bad else 'ok')}"
    yield from value_lines("received", _age(store.received_ns, now_ns))
    yield from value_lines("snapshot", _snapshot(store.last_snapshot, store.last_snapshot_ns, now_ns))
    on_disk = f"{output.show_bytes(store.stored_bytes)} on disk with all history"
    yield from value_lines("size", f"{output.entries(store.entries)}, {output.show_bytes(store.size)}; {on_disk}")
    if store.quota_bytes:
        yield from value_lines("quota", f"{output.show_bytes(store.quota_bytes)} for all of {store.client}")
    if store.damaged:
        yield from value_lines("damaged", output.counted(store.damaged, "frame"))
    if store.reason:
        yield from value_lines("why", store.reason)


def _verified(line: ScrubStatus, now_ns: int) -> Iterator[str]:
    """One line for each side: how old the oldest verification is, what is new, what was found."""
    where = "here" if line.side == "primary" else "replica"
    parts = [f"{where}: {scrub_age(line, now_ns)}"]
    if line.state in ("paused", "failed", "waiting"):
        parts.append(line.state)
    unclear = line.divergent.get("inconclusive", 0)
    count = sum(line.divergent.values()) - unclear
    found = [f"{output.counted(count, 'divergence')} open"] if count else []
    found += [f"{unclear:,} in doubt, not settled yet"] if unclear else []
    text = ", ".join([*parts, *found]) + (": replicad divergence list" if found else "")
    yield from value_lines("verified", text, bad=bool(count) or not line.on_track)


def _drilled(line: DrillStatus, now_ns: int) -> Iterator[str]:
    """One line: what the last drill came to, what stands of those before, and how long a restore takes."""
    last, failure, parts = line.last, line.failure, list[str]()
    if line.started_ns:
        parts.append(f"{line.state} now")
    if last is not None:
        parts.append(f"{last.outcome.value} {_age(last.ended_ns, now_ns)}")
    else:
        parts.append("never")
    if failure is not None and failure != last:
        parts.append(f"failed {_age(failure.ended_ns, now_ns)}")
    if last is not None and (failure is not None or last.outcome != "proven"):
        parts.append(f"last proven {_age(line.last_success_ns, now_ns)}")
    if line.estimate_s:
        parts.append(f"a restore of everything takes about {output.show_duration(line.estimate_s)}")
    if line.state in ("off", "waiting", "failed") and line.reason:
        parts.append(line.reason)
    is_late = is_overdue(line.last_success_ns, line.since_ns, now_ns, line.drill_every_s)
    yield from value_lines("drilled", "; ".join(parts), bad=is_late or failure is not None)


def _canary(line: CanaryStatus, now_ns: int) -> Iterator[str]:
    """One line: how long the last one took, all the way; how long the one under way has been awaited."""
    parts = list[str]()
    if line.lags is not None:
        took, read = output.show_duration(line.lags.restored_s), "" if line.source == "media" else " (through a cache)"
        parts.append(f"stored, verified{read} and restored within {took}, {_age(line.last_success_ns, now_ns)}")
    else:
        parts.append("none has come through yet")
    if line.oldest_awaited_ns:
        parts.append(f"one written {_age(line.oldest_awaited_ns, now_ns)} is awaited")
    if line.state in ("paused", "refused", "failed", "waiting") and line.reason:
        parts.append(f"{line.state}: {line.reason}" if line.state != "waiting" else line.reason)
    late = is_canary_late(line.oldest_awaited_ns, now_ns, line.within_s) and line.state != "paused"
    yield from value_lines("canary", "; ".join(parts), bad=late or bool(line.failure) or line.state == "refused")


def _policy(judged: Judgement) -> Iterator[str]:
    """One line for a dataset with a service level: which objectives do not hold."""
    if not judged.level:
        return
    parts = [f"{one.objective} {_NOT_MET[one.grade]}" for one in judged.results if one.grade in _NOT_MET]
    text = f"{', '.join(parts)}: replicad policy {judged.dataset}" if parts else "every objective holds"
    yield from value_lines("policy", f"{judged.level}: {text}", bad=judged.grade is Grade.FAIL)


_NOT_MET = {Grade.FAIL: "fails", Grade.UNKNOWN: "is not known"}


def scrub_age(line: ScrubStatus, now_ns: int) -> str:
    """How long ago everything had been read again, in words."""
    if not line.total_bytes:
        return "nothing to verify yet"
    new = f"{output.show_bytes(line.never_bytes)} new" if line.never_bytes else ""
    if not line.oldest_verified_ns:
        return f"never yet, {new or output.show_bytes(line.total_bytes)}"
    age = output.show_duration(max(0, now_ns - line.oldest_verified_ns) / 1e9)
    return f"everything within {age}" + (f", {new}" if new else "")


def _state(line: DatasetStatus) -> str:
    if line.held or line.rotten or line.unread or line.state == "failed":
        return output.mark(line.state, "bad")
    unsure = line.state == "waiting" or not line.link_up
    return output.mark(line.state if line.link_up else f"{line.state}, not connected", "warn" if unsure else "ok")


def _replicated(line: DatasetStatus, now_ns: int) -> str:
    from replicad.config.units import format_duration

    objective = f" (objective {format_duration(line.rpo_s)})" if line.rpo_s else ""
    if not line.last_complete_ns:
        return "never completely yet" + objective
    when = "ahead of the clock" if line.last_complete_ns > now_ns else "ago"
    return f"everything as of {output.show_duration(lag_s(line, now_ns))} {when}{objective}"


def _backlog(line: DatasetStatus, rate: float) -> str:
    text = f"{output.counted(line.pending_files, 'file')}, {output.show_bytes(line.pending_bytes)}"
    if rate > 0:
        text += f"; {output.show_rate(rate)}, about {output.show_duration(line.pending_bytes / rate)} left"
    return text


def _snapshot(number: int, created_ns: int, now_ns: int) -> str:
    if not number or not created_ns:
        return str(number or "none yet")
    from replicad.model.when import show_time

    return f"{number} of {show_time(created_ns)}, {_age(created_ns, now_ns)}"


def _age(time_ns: int, now_ns: int) -> str:
    return f"{output.show_duration(max(0, now_ns - time_ns) / 1e9)} ago" if time_ns else "never"


def _troubles(line: DatasetStatus) -> Iterator[str]:
    indent = " " * LABEL_COLUMNS
    for trouble in line.troubles[:NAMED_TROUBLES]:
        yield from _wrapped(indent, f"{trouble.path}: {trouble.reason}", indent + "  ")
    if line.unread > NAMED_TROUBLES:
        yield f"{indent}and {line.unread - NAMED_TROUBLES:,} more: replicad status --json"


def _same(line: DatasetStatus, earlier: NodeStatus | None) -> DatasetStatus | None:
    lines = earlier.datasets if earlier else []
    return next((old for old in lines if (old.dataset, old.replica) == (line.dataset, line.replica)), None)


def _rate_between(line: DatasetStatus, now: NodeStatus, before: DatasetStatus, earlier: NodeStatus) -> float:
    """Bytes a second that the backlog shrank by."""
    elapsed_s = (now.now_ns - earlier.now_ns) / 1e9
    return max(0.0, (before.pending_bytes - line.pending_bytes) / elapsed_s) if elapsed_s > 0 else 0.0


def _rate_of_pass(line: DatasetStatus, now: NodeStatus) -> float:
    """Bytes a second of the running pass on average."""
    elapsed_s = (now.now_ns - line.pass_started_ns) / 1e9
    return max(0.0, (line.total_bytes - line.pending_bytes) / elapsed_s) if elapsed_s > 0 else 0.0


def value_lines(label: str, text: str, *, bad: bool = False) -> Iterator[str]:
    """A labelled value in COLUMNS columns."""
    for line in _wrapped(f"  {label:<{LABEL_COLUMNS - 2}}", text, " " * LABEL_COLUMNS):
        yield output.mark(line, "bad") if bad else line
