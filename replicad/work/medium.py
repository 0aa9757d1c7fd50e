"""Medium: whether it is the medium that gave no bytes, or something that a person can switch off.

What the medium refuses is damage (`UNREADABLE`); a file that may not be opened, or an empty table of descriptors, says
nothing about it.
"""

from __future__ import annotations

import errno
import os

from replicad.source.root import Trouble

OF_THE_MEDIUM = (errno.EIO, errno.EBADMSG, errno.EUCLEAN, errno.ENODATA, errno.EREMOTEIO, errno.EILSEQ)
"""What file systems say of bytes that are not there any more: a bad sector, or a block that fails their own check."""
_WORDS = tuple(os.strerror(number) for number in OF_THE_MEDIUM)


def is_medium(trouble: Trouble) -> bool:
    """Whether the medium's answer was an error."""
    return trouble.reason.endswith(_WORDS)
