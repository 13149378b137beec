"""Freed memory that the C library keeps: what it gives back costs a page fault each time it is needed again."""

from __future__ import annotations

import contextlib
import ctypes
from typing import Final

_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
_MMAP_BYTES: Final = 32 << 20
"""What is as large as that is given back at once all the same."""


def keep_freed(most_bytes: int) -> None:
    """Have this process keep so much freed memory at the top of its heap; `agent.learning.link` says what it saves."""
    with contextlib.suppress(OSError, AttributeError):  # not every C library has it
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, _MMAP_BYTES)
        mallopt(_TRIM_THRESHOLD, most_bytes)
