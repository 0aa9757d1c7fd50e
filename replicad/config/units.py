"""Units: sizes, durations and distances as people write them in a configuration file. Pure.

A size is a whole number and a unit ("64KiB", "1GB"), a duration likewise ("5m", "500ms"); fractions are allowed
("1.5GiB") where the result is a whole number of bytes. Zero needs no unit. Nothing else is guessed: a bare number
is an error, because a reader cannot tell seconds from minutes.
"""

from __future__ import annotations

import re
from fractions import Fraction

SIZE_UNITS = {
    "B": 1,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
}
"""Bytes of each unit of size."""
DURATION_UNITS = {
    "ms": Fraction(1, 1000),
    "s": Fraction(1),
    "m": Fraction(60),
    "h": Fraction(3600),
    "d": Fraction(86400),
    "w": Fraction(7 * 86400),
}
"""Seconds of each unit of duration."""
DISTANCE_UNITS = {"m": 1, "km": 1000}
"""Metres of each unit of distance."""
_HOURS = re.compile(r"(\d\d):(\d\d)-(\d\d):(\d\d)", re.ASCII)
_COORDINATES = re.compile(r"(-?[0-9]{1,3}(?:\.[0-9]{1,9})?) ?[, ] ?(-?[0-9]{1,3}(?:\.[0-9]{1,9})?)", re.ASCII)
_NUMBER_AND_UNIT = re.compile(r"([0-9]{1,19}(?:\.[0-9]{1,9})?) ?([A-Za-z]+)", re.ASCII)


def parse_size(text: str) -> int:
    """`text` in bytes. Raises ValueError with what is wrong and what to write instead."""
    size = _parse(text, SIZE_UNITS, '"64KiB"')
    if size.denominator != 1:
        raise ValueError(f'"{text}" is no whole number of bytes')
    return size.numerator


def parse_duration(text: str) -> float:
    """`text` in seconds. Raises ValueError with what is wrong and what to write instead."""
    return float(_parse(text, DURATION_UNITS, '"5m"'))


def parse_distance(text: str) -> float:
    """`text` in metres. Raises ValueError with what is wrong and what to write instead."""
    return float(_parse(text, DISTANCE_UNITS, '"100km"'))


def parse_coordinates(text: str) -> tuple[float, float]:
    """ "52.37, 4.90" as degrees north and east. Raises ValueError with what to write instead."""
    match = _COORDINATES.fullmatch(text)
    north, east = map(float, match.groups()) if match else (91.0, 0.0)
    if not (-90 <= north <= 90 and -180 <= east <= 180):
        raise ValueError(f'"{text}" are no degrees north and east; write them like "52.37, 4.90"')
    return north, east


def format_size(size: int) -> str:
    """`size` in bytes as the shortest text that `parse_size` reads back exactly."""
    return _format(Fraction(size), SIZE_UNITS) if size else "0"


def format_duration(seconds: float) -> str:
    """`seconds` as the shortest text that `parse_duration` reads back exactly (to the millisecond)."""
    return _format(Fraction(round(seconds * 1000), 1000), DURATION_UNITS) if seconds else "0"


def parse_hours(text: str) -> tuple[int, int]:
    """ "HH:MM-HH:MM" as two numbers of minutes since midnight; the end may lie before the begin (over midnight).

    Raises ValueError with what to write instead."""
    match = _HOURS.fullmatch(text)
    begin_h, begin_m, end_h, end_m = map(int, match.groups()) if match else (24, 0, 24, 0)
    begin, end = begin_h * 60 + begin_m, end_h * 60 + end_m
    if begin_h > 23 or end_h > 23 or begin_m > 59 or end_m > 59 or begin == end:
        raise ValueError(f'"{text}" are no hours of a day; write them like "08:00-18:30"')
    return begin, end


def _parse(text: str, units: dict[str, int] | dict[str, Fraction], example: str) -> Fraction:
    if text == "0":
        return Fraction(0)
    match = _NUMBER_AND_UNIT.fullmatch(text)
    if not match:
        raise ValueError(f'"{text}" is not a number and a unit; write it like {example}')
    number, unit = match.groups()
    if unit not in units:
        raise ValueError(f'"{text}" has an unknown unit; known are {", ".join(units)}')
    return Fraction(number) * units[unit]


def _format(value: Fraction, units: dict[str, int] | dict[str, Fraction]) -> str:
    whole = [(value / factor, unit) for unit, factor in units.items() if (value / factor).denominator == 1]
    number, unit = min(whole, key=lambda pair: pair[0])
    return f"{number.numerator}{unit}"
