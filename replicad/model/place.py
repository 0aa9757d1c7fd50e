"""Place: where a copy stands, and whether one disaster could take several. Pure.

Sites are names and coordinates that people declare; nothing here finds out whether they are true. A place without a
name counts for no site, one without coordinates for no distance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

EARTH_RADIUS_M = 6_371_008.8
"""Mean radius R1 of the IUGG (H. Moritz, Geodetic Reference System 1980, Journal of Geodesy 74, 2000): (2a + b) / 3.
A sphere is wrong by 0.6 % at most, which no objective for a distance between sites minds."""


class Place(msgspec.Struct, frozen=True):
    """A site: a name, and degrees north and east; NaN-free, both or neither."""

    site: str = ""
    latitude: float | None = None
    longitude: float | None = None

    @property
    def is_on_the_map(self) -> bool:
        """Whether its distance to others can be told."""
        return self.latitude is not None and self.longitude is not None


def distance_m(one: Place, other: Place) -> float:
    """The great-circle distance of two places that are on the map.

    The haversine formula (R. W. Sinnott, Virtues of the Haversine, Sky & Telescope 68, 1984, p. 159): exact for near
    places too, where the law of cosines loses its digits."""
    assert one.latitude is not None and one.longitude is not None, "asked for a distance from nowhere"
    assert other.latitude is not None and other.longitude is not None, "asked for a distance to nowhere"
    north, south = math.radians(one.latitude), math.radians(other.latitude)
    turned = math.radians(other.longitude - one.longitude)
    half = math.sin((south - north) / 2) ** 2 + math.cos(north) * math.cos(south) * math.sin(turned / 2) ** 2
    return 2 * EARTH_RADIUS_M * math.asin(min(1.0, math.sqrt(half)))  # rounding must not lead beyond the antipodes


def sites(places: Sequence[Place]) -> list[str]:
    """The names of distinct sites, in order."""
    return sorted({place.site for place in places if place.site})


def are_apart(places: Sequence[Place], count: int, least_m: float) -> bool:
    """Whether `count` of these places lie `least_m` from one another, each from each: no disaster of a smaller extent
    takes more than one of them. A place more never makes it false."""
    return _chosen([place for place in places if place.is_on_the_map], count, least_m, [])


def widest_m(places: Sequence[Place]) -> float:
    """The greatest distance between two of these places; 0 where no two are on the map."""
    there = [place for place in places if place.is_on_the_map]
    pairs = ((one, other) for at, one in enumerate(there) for other in there[:at])
    return max((distance_m(one, other) for one, other in pairs), default=0.0)


def _chosen(left: Sequence[Place], count: int, least_m: float, chosen: list[Place]) -> bool:
    """Whether `chosen` can be filled up to `count` with some of those that are `left`."""
    if len(chosen) >= count:
        return True
    return any(
        all(distance_m(place, other) >= least_m for other in chosen)
        and _chosen(left[at + 1 :], count, least_m, [*chosen, place])
        for at, place in enumerate(left)
    )
