"""Lines: where each key of a TOML document stands. Pure.

The standard parser says what a document means but not where; this scanner says where and nothing else. It reads
only documents that the parser has accepted, so it need not judge them: it skips over comments, strings, arrays and
inline tables, and keeps the tables' paths. The two are held together by a property test: for every document, the
places found here are exactly the keys that the parser sees.
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_right

Place = tuple[str | int, ...]
"""Keys from the top, with the index behind the name of an array: ("dataset", 0, "exclude", 2)."""

MAX_DEPTH = 100
"""Names and indices of one place: no key of a configuration needs ten, and the scanner has a stack."""

_BLANK = re.compile(r"(?:[ \t\n]|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_SCALAR = re.compile(r"[^,\]}#\n]+")
_STRING = re.compile(
    r'"""(?:[^\\]|\\.)*?"{3,5}(?!")'  # the closing quotes may be preceded by up to two that belong to the text
    r"|'''.*?'{3,5}(?!')"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'[^'\n]*'",
    re.DOTALL,
)


class TooDeepError(ValueError):
    """A value stands deeper than MAX_DEPTH."""

    def __init__(self, place: Place, line: int) -> None:
        self.place, self.line = place, line
        super().__init__("is nested too deeply")


def find_lines(text: str) -> dict[Place, int]:
    """Line number, from 1, of every table, key and array element of the valid TOML document `text`. Raises
    TooDeepError at the first place that is nested so deeply, whatever comes behind it."""
    return _Scanner(text.replace("\r\n", "\n")).scan()


class _Scanner:
    """One pass over a document; `_at` is the position of the next character."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._newlines = [i for i, c in enumerate(text) if c == "\n"]
        self._lines: dict[Place, int] = {}
        self._last: dict[Place, int] = {}  # index of the newest element of each array of tables

    def scan(self) -> dict[Place, int]:
        table: Place = ()
        while self._skip(_BLANK) < len(self._text):
            table = self._header() if self._peek("[") else self._pair(table)
        return self._lines

    def _header(self) -> Place:
        """[a.b] or [[a.b]]; the path that the following keys belong to."""
        start, array = self._at, self._peek("[[")
        self._at += 2 if array else 1
        keys = self._dotted_key()
        self._at += 2 if array else 1
        place: Place = ()
        for key in keys[:-1]:
            place = self._newest((*place, key))
            self._lines.setdefault(place, self._line(start))
        place = (*place, keys[-1])
        if array:
            self._lines.setdefault(place, self._line(start))
            self._last[place] = self._last.get(place, -1) + 1
            place = self._newest(place)
        self._lines[place] = self._line(start)
        return place

    def _newest(self, place: Place) -> Place:
        return (*place, self._last[place]) if place in self._last else place

    def _pair(self, table: Place) -> Place:
        """key = value; `table`, to which the next pair belongs as well."""
        start, place = self._at, table
        for key in self._dotted_key():
            place = (*place, key)
            self._lines.setdefault(place, self._line(start))
        self._at += 1  # the equals sign
        self._skip(_SPACE)
        self._value(place)
        return table

    def _dotted_key(self) -> list[str]:
        keys = [self._key()]
        while self._peek("."):
            self._at += 1
            keys.append(self._key())
        return keys

    def _key(self) -> str:
        self._skip(_SPACE)
        raw = self._take(_STRING if self._text[self._at] in "\"'" else _BARE_KEY)
        self._skip(_SPACE)
        return str(tomllib.loads(f"key = {raw}")["key"]) if raw[0] in "\"'" else raw

    def _value(self, place: Place) -> None:
        if len(place) > MAX_DEPTH:
            raise TooDeepError(place, self._line(self._at))
        match self._text[self._at]:
            case "[":
                self._array(place)
            case "{":
                self._inline_table(place)
            case '"' | "'":
                self._take(_STRING)
            case _:
                self._take(_SCALAR)

    def _array(self, place: Place) -> None:
        self._at += 1
        index = 0
        while not self._closed("]"):
            self._lines[*place, index] = self._line(self._at)
            self._value((*place, index))
            index += 1

    def _inline_table(self, place: Place) -> None:
        self._at += 1
        while not self._closed("}"):
            self._pair(place)

    def _closed(self, bracket: str) -> bool:
        """Skip to the next element (and over the comma before it), or over the closing bracket."""
        self._skip(_BLANK)
        if self._peek(","):
            self._at += 1
            self._skip(_BLANK)
        if not self._peek(bracket):
            return False
        self._at += 1
        return True

    def _peek(self, text: str) -> bool:
        return self._text.startswith(text, self._at)

    def _skip(self, pattern: re.Pattern[str]) -> int:
        match = pattern.match(self._text, self._at)
        assert match, "these patterns match the empty text"
        self._at = match.end()
        return self._at

    def _take(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self._text, self._at)
        assert match, f"not TOML at line {self._line(self._at)}, although the parser took it"
        self._at = match.end()
        return match.group()

    def _line(self, position: int) -> int:
        return bisect_right(self._newlines, position - 1) + 1
