"""Report pictures: coverage over time, the age map, and the recovery time, drawn as SVG. Sole owner of matplotlib.

Drawn without a screen and the same for the same facts, byte by byte: no dates, no random names. What a picture says
does not hang on colour: states differ in brightness and hatching too, so that it can be read in print and by whoever
sees colours otherwise; its title and description say in words what it shows. matplotlib comes with `replicad[report]`.
"""

from __future__ import annotations

import io
import logging
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from replicad.model.coverage import AgeMap, Cell, Day
from replicad.model.drill import DrillRecord, Outcome
from replicad.model.errors import UsageError
from replicad.model.report import Drills, SideReport
from replicad.model.show import short_duration

if TYPE_CHECKING:  # slow to import, and an extra
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH_IN = 7.0
"""What A4 leaves between margins of 15 mm."""
COLUMNS, ROWS = 64, 8
"""The age map's cells are laid out so, line by line: model.coverage.CELLS of them."""
DATE_TICKS = 6
_INK, _PALE = "#222222", "#bbbbbb"
_FONT = "DejaVu Sans"
"""Comes with matplotlib, so that the same space is left for text everywhere; the page's style names what to show."""
_SVG = "http://www.w3.org/2000/svg"
_XLINK = "http://www.w3.org/1999/xlink"


class Look(NamedTuple):
    """How a state is drawn, and what it is called."""

    label: str
    face: str
    hatch: str = ""


class Box(NamedTuple):
    """A rectangle in the coordinates of its axes."""

    x: float
    y: float
    width: float
    height: float


IN_TIME = Look("verified within the deadline", "#9ecae1")
NEW = Look("recorded, not verified yet", "#ffffff", "////")
OVERDUE = Look("overdue", "#4a0a0a")
NO_RECORD = Look("no record of that day", "#ffffff", "..")
AGES = (
    Look("last verified within ¼ of the deadline", "#e3eef8"),
    Look("within ½", "#a9cde8"),
    Look("within ¾", "#64a5d3"),
    Look("within the deadline", "#1f6bb0"),
)
"""Lighter is fresher."""
UNDATED = Look("verified; within which deadline is not known", "#ffffff", "xx")


def coverage(sides: Sequence[SideReport], first: int, last: int, prefix: str) -> str:
    """How much of each side was verified within its deadline, day by day."""
    figure = _figure(0.55 + 1.05 * len(sides))
    axes = figure.subplots(len(sides), 1, squeeze=False, sharex=True)
    for place, side in zip(axes[:, 0], sides, strict=True):
        _draw_days(place, side, first, last)
    _date_axis(axes[-1, 0], first, last)
    _legend(figure, [IN_TIME, NEW, OVERDUE, NO_RECORD])
    said = "; ".join(f"{side.title}: {_days_in_words(side.days, first, last)}" for side in sides)
    return _inline(figure, prefix, "Verification coverage day by day", said)


def age_maps(sides: Sequence[SideReport], prefix: str) -> str:
    """When each part of each side was verified last. Only sides that have a map."""
    figure = _figure(0.85 + 1.15 * len(sides))
    axes = figure.subplots(len(sides), 1, squeeze=False)
    for place, side in zip(axes[:, 0], sides, strict=True):
        assert side.map is not None
        _draw_map(place, side.title, side.map, side.scrub_every_s)
    undated = [] if all(side.scrub_every_s for side in sides) else [UNDATED]
    _legend(figure, [*AGES, OVERDUE, NEW, *undated], marks=(("open divergence", "X"),))
    said = "; ".join(f"{side.title}: {_map_in_words(side)}" for side in sides)
    return _inline(figure, prefix, "Age of the last verification, from the first byte to the last", said)


def recovery(drills: Drills, prefix: str) -> str:
    """What a restore of everything would take, by each drill, against the objective."""
    figure = _figure(2.3)
    place = figure.subplots()
    _draw_drills(place, drills)
    records = drills.records
    said = f"{len(records)} drills; the last one {records[-1].outcome.value}; the trend is {drills.trend.word}"
    if drills.estimate_s:
        said += f"; a restore of everything takes about {short_duration(drills.estimate_s)}"
    if drills.rto_s:
        said += f"; the objective is {short_duration(drills.rto_s)}"
    return _inline(figure, prefix, f"Estimated recovery time, drills from {drills.replica}", said)


# ------------------------------------------------------------------------------------------------------------- days


def _draw_days(place: Axes, side: SideReport, first: int, last: int) -> None:
    known = {day.day: day for day in side.days}
    numbers = range(first, last + 1)
    missing = [number for number in numbers if number not in known]
    days = [known[number] for number in numbers if number in known]
    _bars(place, missing, [100.0] * len(missing), [0.0] * len(missing), NO_RECORD)
    shares = [_shares(day) for day in days]
    at = [day.day for day in days]
    _bars(place, at, [one[0] for one in shares], [0.0] * len(at), IN_TIME)
    _bars(place, at, [one[1] for one in shares], [one[0] for one in shares], NEW)
    _bars(place, at, [one[2] for one in shares], [one[0] + one[1] for one in shares], OVERDUE)
    if bad := [day.day for day in days if day.open]:  # an empty line would count as standing at zero, in 1970
        place.plot(bad, [109.0] * len(bad), linestyle="", marker="v", markersize=4, color=_INK, clip_on=False)
    place.set_ylim(0, 118)
    place.set_yticks([0, 50, 100], ["0 %", "50 %", "100 %"])
    _plain(place, side.title)


def _bars(place: Axes, at: Sequence[int], heights: Sequence[float], bottoms: Sequence[float], look: Look) -> None:
    drawn = zip(at, heights, bottoms, strict=True)
    _boxes(place, [Box(x - 0.5, bottom, 1.0, height) for x, height, bottom in drawn if height > 0], look)


def _shares(day: Day) -> tuple[float, float, float]:
    """Percentages in time, new, overdue; of a side that had nothing to verify all is in time."""
    if day.total_bytes <= 0:
        return 100.0, 0.0, 0.0
    new, overdue = (min(100.0, 100.0 * part / day.total_bytes) for part in (day.never_bytes, day.overdue_bytes))
    return max(0.0, 100.0 - new - overdue), new, overdue


def _date_axis(place: Axes, first: int, last: int) -> None:
    step = max(1, -(-(last - first + 1) // DATE_TICKS))
    ticks = list(range(last, first - 1, -step))[::-1]
    place.set_xlim(first - 0.5, last + 0.5)
    place.set_xticks(ticks, [_iso(number) for number in ticks])


def _days_in_words(days: Sequence[Day], first: int, last: int) -> str:
    if not days:
        return "no day has a record"
    worst = max(days, key=lambda day: day.overdue_share)
    text = f"{len(days)} of {last - first + 1} days have a record; "
    text += f"on the worst of them, {_iso(worst.day)}, {worst.overdue_share:.1%} was overdue"
    return text + f"; on the last, {_iso(days[-1].day)}, {days[-1].in_time_share:.1%} was verified within the deadline"


# -------------------------------------------------------------------------------------------------------------- map


def _draw_map(place: Axes, title: str, found: AgeMap, every_s: float) -> None:
    drawn: dict[Look, list[Box]] = {}
    for number, cell in enumerate(found.cells[: COLUMNS * ROWS]):
        if look := look_of(cell, found.at_ns, every_s):
            drawn.setdefault(look, []).append(Box(number % COLUMNS, number // COLUMNS, 1, 1))
    for look, boxes in drawn.items():
        _boxes(place, boxes, look, "#ffffff")
    bad = [number for number, cell in enumerate(found.cells[: COLUMNS * ROWS]) if cell.bad]
    x, y = [number % COLUMNS + 0.5 for number in bad], [number // COLUMNS + 0.5 for number in bad]
    place.plot(x, y, linestyle="", marker="X", markersize=8, color=_INK, markeredgecolor="#ffffff", zorder=3)
    place.set_xlim(0, COLUMNS)
    place.set_ylim(ROWS, 0)
    place.set_xticks([])
    place.set_yticks([])
    _plain(place, f"{title}, as of {_moment(found.at_ns)}")


def look_of(cell: Cell, at_ns: int, every_s: float) -> Look | None:
    """How a cell is drawn: by what was verified longest ago in it; None when there is nothing in it."""
    if not cell.bytes:
        return None
    if not cell.oldest_ns or 2 * cell.never_bytes >= cell.bytes:
        return NEW
    if not every_s:
        return UNDATED
    share = max(0.0, (at_ns - cell.oldest_ns) / 1e9 / every_s)
    return AGES[min(int(share * len(AGES)), len(AGES) - 1)] if share <= 1 else OVERDUE


def _map_in_words(side: SideReport) -> str:
    assert side.map is not None
    looks = [look_of(cell, side.map.at_ns, side.scrub_every_s) for cell in side.map.cells]
    total = sum(look is not None for look in looks) or 1
    all_looks = (*AGES, OVERDUE, NEW, UNDATED)
    said = [f"{looks.count(look) / total:.0%} {look.label}" for look in all_looks if look in looks]
    bad = sum(cell.bad for cell in side.map.cells)
    return ", ".join(said) + (f", {bad} open divergences" if bad else "")


# ----------------------------------------------------------------------------------------------------------- drills

_MARKS = {Outcome.PROVEN: ("o", _INK), Outcome.INCONCLUSIVE: ("^", "#ffffff"), Outcome.FAILED: ("X", "#b00000")}


def _draw_drills(place: Axes, drills: Drills) -> None:
    records = drills.records
    largest_s = max([drills.rto_s, *(record.estimate_s for record in records)])
    unit_s, unit = next(
        pair
        for pair in ((3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))
        if largest_s >= pair[0] * 2 or pair[0] == 1.0
    )
    proven = [record for record in records if record.outcome is Outcome.PROVEN and record.kind != "paths"]
    place.plot([_days(r) for r in proven], [r.estimate_s / unit_s for r in proven], color=_PALE, linewidth=1)
    for outcome, (marker, face) in _MARKS.items():
        some = [record for record in records if record.outcome is outcome]
        if some:
            place.plot(
                [_days(record) for record in some],
                [record.estimate_s / unit_s for record in some],
                linestyle="", marker=marker, color=face, markeredgecolor=_INK, label=outcome.value, clip_on=False,
                zorder=3,
            )  # fmt: skip
    if drills.rto_s:
        place.axhline(drills.rto_s / unit_s, color=_INK, linestyle="--", linewidth=1, label="objective (rto)")
    place.set_ylim(0, max(largest_s, 1e-3) / unit_s * 1.15)
    place.set_ylabel(unit)
    first, last = int(_days(records[0])), int(_days(records[-1])) + 1
    _date_axis(place, first, last)
    place.figure.legend(loc="outside lower left", ncols=4, frameon=False, fontsize=7)
    _plain(place, f"a restore of everything from {drills.replica} would take")


def _days(record: DrillRecord) -> float:
    return record.ended_ns / 86_400e9


# -------------------------------------------------------------------------------------------------------------- how


def _figure(height_in: float) -> Figure:
    try:
        from matplotlib import rcParams
        from matplotlib.figure import Figure
    except ImportError:
        hint = "pip install 'replicad[report]', or --format md or json, which need no pictures"
        raise UsageError("the pictures of an HTML report need matplotlib, which is not installed", hint=hint) from None
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # where it keeps its caches is nobody's concern here
    rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "replicad", "font.family": _FONT, "font.size": 8})
    rcParams.update({"hatch.linewidth": 0.5, "hatch.color": "#777777", "axes.linewidth": 0.6})
    return Figure(figsize=(WIDTH_IN, height_in), layout="constrained")


def _boxes(place: Axes, boxes: Sequence[Box], look: Look, edge: str = "") -> None:
    from matplotlib.collections import PolyCollection

    corners = [[(x, y), (x + wide, y), (x + wide, y + high), (x, y + high)] for x, y, wide, high in boxes]
    line = _PALE if look.hatch else edge or look.face
    place.add_collection(
        PolyCollection(corners, facecolor=look.face, edgecolor=line, hatch=look.hatch or None, linewidth=0.3),
        autolim=False,
    )


def _plain(place: Axes, title: str) -> None:
    place.set_title(_unmathematical(title), loc="left", fontsize=8, fontweight="bold")
    for side in ("top", "right"):
        place.spines[side].set_visible(False)
    place.tick_params(length=2, width=0.6)


def _unmathematical(text: str) -> str:
    """A dollar sign in a name is no formula."""
    return text.replace("$", r"\$")


def _legend(figure: Figure, looks: Sequence[Look], marks: Sequence[tuple[str, str]] = ()) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    shown: list[Any] = [
        Patch(facecolor=look.face, edgecolor="#777777", hatch=look.hatch, linewidth=0.4, label=look.label)
        for look in looks
    ]
    for label, marker in marks or (("open divergences", "v"),):
        shown.append(Line2D([], [], linestyle="", marker=marker, color=_INK, markeredgecolor="#ffffff", label=label))
    figure.legend(handles=shown, loc="outside lower left", ncols=4, frameon=False, fontsize=7)


def _inline(figure: Figure, prefix: str, title: str, description: str) -> str:
    """The figure as SVG that can stand in an HTML page: names that are unique in it, a title, nothing fetched."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    root = ET.fromstring(drawn.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):
                parent.remove(child)
    for element in root.iter():
        _rename(element, prefix)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.attrib |= {"class": "picture", "role": "img", "aria-labelledby": f"{prefix}-title {prefix}-desc"}
    root.attrib |= {"style": "stroke-linejoin:round;stroke-linecap:butt"}
    for at, (name, text) in enumerate((("title", title), ("desc", description))):
        said = ET.Element(f"{{{_SVG}}}{name}", {"id": f"{prefix}-{name}"})
        said.text = text
        root.insert(at, said)
    ET.register_namespace("", _SVG)
    ET.register_namespace("xlink", _XLINK)
    return ET.tostring(root, encoding="unicode")


def _rename(element: ET.Element, prefix: str) -> None:
    for key, value in list(element.attrib.items()):
        if key == "id":
            element.attrib[key] = f"{prefix}-{value}"
        elif key == f"{{{_XLINK}}}href" and value.startswith("#"):
            element.attrib[key] = f"#{prefix}-{value[1:]}"
        elif "url(#" in value:
            element.attrib[key] = value.replace("url(#", f"url(#{prefix}-")


def _iso(day: int) -> str:
    return (date(1970, 1, 1) + timedelta(days=day)).isoformat()


def _moment(at_ns: int) -> str:
    return datetime.fromtimestamp(at_ns // 10**9, UTC).strftime("%Y-%m-%d %H:%M UTC")
