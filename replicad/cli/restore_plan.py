"""How a restore's plan is shown, and how a person confirms it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from replicad.cli import output
from replicad.model.errors import UsageError

if TYPE_CHECKING:  # slow to import, and needed when a verb runs only
    from replicad.work.restore_plan import RestorePlan

SHOWN_UNSAVED = 10
"""Files whose content would be lost that the plan itself names again; all were named on stderr."""


def lines(plan: RestorePlan) -> list[str]:
    """The plan for a person."""
    found = [
        f"plan: {plan.dataset}: snapshot {plan.snapshot} of {plan.created} from {plan.source}",
        f"to {plan.target}",
    ]
    for title, text in [*_what(plan), *_how(plan), *_problems(plan)]:
        found.append(f"  {title:<12}{text}")
    found.append(_verdict(plan))
    return found


def _what(plan: RestorePlan) -> list[tuple[str, str]]:
    size, rows = output.show_bytes, list[tuple[str, str]]()
    rows.append(("snapshot", f"{output.counted(plan.files, 'file')}, {size(plan.bytes)}"))
    if plan.right_files or plan.right_bytes:
        right = output.counted(plan.right_files, "file")
        rows.append(("right", f"{right}, {size(plan.right_bytes)}: there and right already"))
    fetched = f"{size(plan.to_restore_bytes)}; {output.counted(plan.to_fetch_blocks, 'block')} to fetch"
    rows.append(("to restore", f"{output.show_counts(plan.to_restore)}; {fetched}"))
    for number, (name, amount) in enumerate(plan.classes.items(), 1):
        rows.append((f"  {number}.", f"{name}: {output.counted(amount['files'], 'file')}, {size(amount['bytes'])}"))
    return rows


def _how(plan: RestorePlan) -> list[tuple[str, str]]:
    size = output.show_bytes
    if plan.rate is None or plan.estimate_s is None:
        rows = [("time", "unknown: nothing was measured; drills from this replica measure it (replicad drill run)")]
    else:
        rate, limit = plan.rate, ""
        if plan.bandwidth_bytes:
            limit = f", limited to {output.show_rate(plan.bandwidth_bytes)}"
        measured = f"{output.show_rate(rate.bytes_s)} and {rate.files_s:,.0f} files a second"
        drills = f"the median of {output.counted(rate.drills, 'drill')} from {rate.replica}{limit}"
        rows = [("time", f"about {output.show_duration(plan.estimate_s)} at {measured}, {drills}")]
    if not plan.room.is_writable:
        rows.append(("target", output.mark("cannot be written", "bad") + f": {plan.room.problem}"))
    inodes = "" if plan.room.free_inodes is None else f" and {plan.room.free_inodes:,} inodes"
    enough = "enough" if plan.is_room_enough else output.mark("too little", "bad")
    rows.append(("room", f"{size(plan.room.free_bytes)}{inodes} free: {enough}"))
    return rows


def _problems(plan: RestorePlan) -> list[tuple[str, str]]:
    size, rows = output.show_bytes, list[tuple[str, str]]()
    if plan.damaged_files:
        ranges = f"{output.counted(plan.damaged_ranges, 'byte range')}, {size(plan.damaged_bytes)}"
        files = output.counted(plan.damaged_files, "file")
        rows.append(("damaged", f"{files}: {ranges} cannot be had from {plan.source}"))
    if plan.lost_records:
        pieces = output.counted(plan.lost_records, "piece")
        rows.append(("lost", f"{pieces} of the record: entries may be missing that nothing can name"))
    if plan.newest_gone:
        rows.append(("lost", f"a newer snapshot than {plan.snapshot}, perhaps: the store's newest segment is gone"))
    if plan.unread:
        rows.append(("not copied", f"{output.entries(plan.unread)} could not be read when the snapshot was made"))
    if plan.would_fail:
        rows.append(("would fail", output.show_counts(plan.would_fail)))
    if plan.not_settable:
        what = ", ".join(f"{name} of {output.entries(count)}" for name, count in sorted(plan.not_settable.items()))
        rows.append(("metadata", f"as {plan.user}: {what} could not be set"))
    if plan.conflicts:
        text = f"{output.entries(plan.conflicts)} with another content or of another kind: replaced"
        rows.append(("in the way", text))
    if plan.extra:
        rows.append(("extra", f"{output.entries(plan.extra)} not in the snapshot: left alone"))
    if plan.extra_removed:
        rows.append(("extra", f"{output.entries(plan.extra_removed)} not in the snapshot: removed"))
    rows += _losses(plan)
    return rows


def _losses(plan: RestorePlan) -> list[tuple[str, str]]:
    if not (plan.conflicts or plan.extra_removed):
        return []
    if not plan.unsaved:
        snapshots = " or ".join(map(str, sorted({plan.snapshot, plan.newest_snapshot})))
        return [("would lose", f"nothing: what is replaced is in snapshot {snapshots} as well")]
    text = f"{output.counted(plan.unsaved, 'file')} whose present content is in no snapshot that was looked at"
    rows = [("would lose", output.mark(text, "bad") + "; --set-aside DIR keeps it")]
    named = [one.path for one in plan.findings if one.sort == "unsaved"]
    rows += [("", path) for path in named[:SHOWN_UNSAVED]]
    if plan.unsaved > SHOWN_UNSAVED:
        rows.append(("", f"… and {plan.unsaved - SHOWN_UNSAVED:,} more"))
    return rows


def _verdict(plan: RestorePlan) -> str:
    if not plan.room.is_writable or not plan.is_room_enough:
        return output.mark("not possible", "bad") + " as it is"
    if plan.exit_code:
        return output.mark("possible, with losses", "warn") + ": they are named above"
    return output.mark("possible", "ok")


def confirm(plan: RestorePlan, *, is_yes: bool, token: str, keeps: bool) -> None:
    """Have a restore over live data confirmed. Raises UsageError: nothing was changed."""
    if token:
        if token != plan.confirm:
            text = f"--confirm {token} is of another plan: what would be done has changed since"
            raise UsageError(text, hint=f"read this one; it is confirmed with --confirm {plan.confirm}")
        return
    if is_yes and (not plan.unsaved or keeps):
        return
    if is_yes:
        files = output.counted(plan.unsaved, "file holds", "files hold")
        text = f"{files} what no snapshot has, and --yes does not stretch to that"
        hint = f"add --set-aside DIR to keep them, or say --confirm {plan.confirm} to give them up"
        raise UsageError(text, hint=hint)
    if not sys.stdin.isatty():
        hint = f"read the plan, then add --confirm {plan.confirm}; or --yes, which takes any plan that loses nothing"
        raise UsageError("a restore over live data has to be confirmed; nothing was changed", hint=hint)
    output.note("Type yes to restore over what is there; anything else changes nothing.")
    if sys.stdin.readline().strip() != "yes":
        raise UsageError("not confirmed; nothing was changed")
