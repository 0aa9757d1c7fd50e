"""Head: which snapshot speaks for a whole history. Pure, and imported fast: a status holds heads."""

from __future__ import annotations

import msgspec

NO_PARENT = bytes(32)
"""The parent digest of a dataset's first commit."""


class Head(msgspec.Struct, frozen=True, array_like=True):
    """The last acknowledged commit of a dataset on a replica; number 0 and NO_PARENT when there is none."""

    number: int = 0
    digest: bytes = NO_PARENT
