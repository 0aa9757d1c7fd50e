"""The page shows what it is given and nothing that it is given can act; it says in words what its pictures show."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest

from kit_report import (
    HOSTILE,
    NOW_NS,
    a_dataset,
    a_hostile_report,
    a_replica,
    a_report,
    a_side,
    a_store,
    some_drills,
)
from replicad.cli import report_pictures
from replicad.cli.report_page import HERE, as_html, as_markdown
from replicad.model.coverage import day_of
from replicad.model.errors import UsageError
from replicad.model.report import Answer, Drills, Report, Snapshots, Unknown, judged

GOLDEN = Path(__file__).parent / "golden"
MADE = {
    "html", "head", "meta", "link", "title", "style", "body", "header", "main", "section", "div", "h1", "h2", "h3", "p",
    "ul", "li", "span", "strong", "em", "code", "pre", "br", "a", "time", "table", "caption", "thead", "tbody", "tr",
    "th", "td", "dl", "dt", "dd", "figure", "figcaption", "svg", "desc", "g", "path", "defs", "use", "text", "tspan",
    "clippath", "rect", "pattern",
}  # fmt: skip
"""Elements that the templates and the pictures are made of; none of them runs or loads anything by itself."""


class Elements(HTMLParser):
    """What a browser would see."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.open.append(tag)

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.texts.append(data)


def seen(report: Report) -> Elements:
    """The page of a report, parsed."""
    return Elements(as_html(report).decode())


def test_nothing_that_is_put_into_a_page_can_act() -> None:
    """Hostile names make no element, no attribute that runs something, and no address but those of the page itself."""
    page = seen(a_hostile_report())
    assert set(page.tags) <= MADE
    assert not [one for one in page.attributes if one[1].startswith("on")]
    addresses = [value for _, name, value in page.attributes if name in ("href", "xlink:href", "src", "action", "data")]
    assert addresses
    assert all(value.startswith("#") or value == "data:," for value in addresses)
    assert page.tags["meta"] == 4 and any("default-src 'none'" in value for _, _, value in page.attributes)


def test_what_is_put_into_a_page_is_shown() -> None:
    """Each hostile text stands in the page as text, with what cannot be shown as a question mark."""
    text = " ".join(seen(a_hostile_report()).texts)
    for one in HOSTILE:
        shown = "".join(c if c.isprintable() else "?" for c in one)
        assert shown in text, shown
    assert not set(text) & {"\u202e", "\x1b", "\x00"}


def test_templates_are_not_made_by_what_is_put_into_them() -> None:
    """What looks like a template in a name is not computed."""
    assert (
        b"49"
        not in as_markdown(a_report(a_dataset(place="{{ 7*7 }}"), generated_ns=NOW_NS)).split(b"directory")[1][:30]
    )
    assert "{{ 7*7 }}" in "".join(seen(a_report(a_dataset(place="{{ 7*7 }}"))).texts)


def test_markdown_takes_names_for_text() -> None:
    """No hostile text begins a tag, a link, a table cell or a line of its own."""
    page = as_markdown(a_hostile_report()).decode()
    assert not re.search(r"(?<!\\)<\w", page)
    assert not re.search(r"(?<!\\)\]\(", page)
    rows = [line for line in page.splitlines() if line.startswith("| ") and not line.startswith("| ---")]
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in rows}
    assert rows
    assert widths <= {4, 5, 6, 9}
    assert not set(page) & {"\u202e", "\x1b", "\x00"}


def test_markdown_lists_what_was_not_found_out_line_by_line() -> None:
    """Each of several has a line of its own, escaped once."""
    silent = [Unknown("replica fra1", "out of reach (no route)"), Unknown("findings", "a_b cannot be read", NOW_NS)]
    page = as_markdown(a_report(a_dataset(unknowns=silent))).decode()
    assert "\n- replica fra1: out of reach \\(no route\\) (last known: never)\n" in page
    assert "\n- findings: a\\_b cannot be read (last known: 2027-01-15T08:00:00Z)\n" in page


def test_markdown_counts_as_people_do() -> None:
    """One snapshot is one, and what was never measured is said so."""
    kept = Snapshots(1, 1, NOW_NS, NOW_NS)
    drills = Drills("fra1")
    page = as_markdown(a_report(a_dataset(replicas=[a_replica(snapshots=kept)], drills=[drills]))).decode()
    assert "| 1 snapshot, 1 complete, " in page
    assert "A restore of everything takes: not known; objective: none" in page


def test_every_picture_has_words_and_every_table_its_heads() -> None:
    """A picture has the role of one, a title and a description; columns and rows have scoped heads; ids are unique."""
    page = seen(a_report(judged(a_dataset()), judged(a_store())))
    pictures = [value for tag, name, value in page.attributes if (tag, name) == ("svg", "aria-labelledby")]
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(pictures) == page.tags["svg"] == page.tags["figure"] == page.tags["figcaption"] == 5
    assert all(one in ids for value in pictures for one in value.split())
    assert len(ids) == len(set(ids))
    scopes = [value for tag, name, value in page.attributes if (tag, name) == ("th", "scope")]
    assert len(scopes) == page.tags["th"]
    assert page.tags["h1"] == 1 and page.tags["html"] == 1
    assert ("html", "lang", "en") in page.attributes


def test_the_first_thing_said_is_the_answer() -> None:
    """Question and sentence come before anything else, and the answer is a word, not only a colour."""
    for answer, word in (("no", "No"), ("unknown", "Not known"), ("unproven", "Not proven"), ("yes", "Yes")):
        report = a_report(a_dataset(answer=Answer(answer)), answer=Answer(answer), headline="It is so.")
        page = seen(report)
        text = " ".join(" ".join(page.texts).split())
        assert text.index("Can everything be recovered?") < text.index("It is so.") < text.index("At a glance")
        assert f"www {word}" in text


def test_colours_can_be_read() -> None:
    """Every colour of text has at least 4.5 to 1 against white (WCAG 2, level AA)."""
    css = (HERE / "report.css").read_text()
    colours = set(re.findall(r"(?:[ {;]color|--ink|--soft):\s*(#[0-9a-f]{3,6})", css))
    assert len(colours) >= 5
    for colour in colours:
        assert 1.05 / (luminance(colour) + 0.05) >= 4.5, colour


def luminance(colour: str) -> float:
    """Relative luminance of a colour, as WCAG defines it."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_states_differ_in_brightness_or_hatching() -> None:
    """In black and white no two states of a picture look alike."""
    for looks in (
        (report_pictures.IN_TIME, report_pictures.NEW, report_pictures.OVERDUE, report_pictures.NO_RECORD),
        (*report_pictures.AGES, report_pictures.OVERDUE, report_pictures.NEW),
    ):
        plain = sorted(luminance(look.face) for look in looks if not look.hatch)
        assert all(brighter - darker > 0.1 for darker, brighter in itertools.pairwise(plain))
        hatches = [look.hatch for look in looks if look.hatch]
        assert len(hatches) == len(set(hatches))


# --------------------------------------------------------------------------------------------------------- pictures


def the_pictures() -> dict[str, str]:
    """Each kind of picture, of the same facts at every run."""
    last = day_of(NOW_NS)
    subject = a_dataset()
    return {
        "coverage": report_pictures.coverage(subject.sides, last - 89, last, "a"),
        "age_map": report_pictures.age_maps(subject.sides, "b"),
        "recovery": report_pictures.recovery(some_drills(), "c"),
    }


def skeleton(svg: str) -> list[str]:
    """What of a picture does not hang on the version of what draws it: its texts, and how many shapes have which
    colour."""
    root = ET.fromstring(svg)
    texts = [(one.text or "").strip() for one in root.iter() if one.tag.endswith(("}text", "}title", "}desc"))]
    fills = Counter(re.findall(r"fill: (#[0-9a-f]{6}|url)", svg))
    return texts + [f"{count} x {fill}" for fill, count in sorted(fills.items()) if fill in COUNTED]


COUNTED = {report_pictures.IN_TIME.face, report_pictures.OVERDUE.face, *(look.face for look in report_pictures.AGES)}


@pytest.mark.parametrize("name", ["coverage", "age_map", "recovery"])
def test_a_picture_shows_what_it_showed(name: str) -> None:
    """The texts and the numbers of coloured shapes are those that were looked at and found good."""
    golden = GOLDEN / f"report_{name}.txt"
    assert "\n".join(skeleton(the_pictures()[name])) + "\n" == golden.read_text()


def test_the_same_facts_give_the_same_bytes() -> None:
    """Two processes with different hash seeds draw the same pictures and the same page."""
    code = (
        "import sys, hashlib; sys.path.insert(0, 'tests'); from kit_report import a_dataset, a_report;"
        "from replicad.cli.report_page import as_html; page = as_html(a_report(a_dataset()));"
        "print(hashlib.sha256(page).hexdigest())"
    )
    root = Path(__file__).parent.parent
    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=root,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(root), "PATH": "/usr/bin:/bin", "HOME": "/nonexistent"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(said) == 1


def test_a_picture_of_nothing_says_so() -> None:
    """Sides without a history, drills without an estimate and a store without segments are drawn, not refused."""
    last = day_of(NOW_NS)
    bare = a_side(days=[], map=None, total_bytes=0)
    assert "no day has a record" in report_pictures.coverage([bare, bare], last - 89, last, "x")
    assert "unknown" in as_html(a_report(a_dataset(sides=[bare], drills=[]))).decode()


def test_pictures_load_nothing_and_carry_no_date() -> None:
    """No picture names an address, a date of its making, or a style for the whole page."""
    for svg in the_pictures().values():
        assert not re.search(r"https?://(?!www\.w3\.org/(2000/svg|1999/xlink))", svg)
        assert "<style" not in svg
        assert "<metadata" not in svg


def test_without_what_draws_the_pictures_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """HTML needs the extra, and the error says how to get it; Markdown and JSON need nothing."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match=r"pip install 'replicad\[report\]'"):
        as_html(a_report(a_dataset()))
    assert as_markdown(a_report(a_dataset()))
    assert msgspec.json.encode(a_report(a_dataset()))
