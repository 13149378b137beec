"""Values that a driver may leave out: the file is not there, or the hardware has no data for it."""

from __future__ import annotations

import errno
from pathlib import Path

from agent.energy.sysfs import read_int, read_text

_NOTHING = (errno.ENOENT, errno.ENODATA, errno.ENODEV, errno.ENOTDIR)
"""A channel that is switched off, or a gauge that does not know, answers ENODATA."""


def has(path: Path) -> bool:
    """Return whether there is a value; what cannot be read for another reason is there, and reading it says why not."""
    try:
        with path.open("rb", buffering=0) as file:
            file.read(1)
    except OSError as error:
        return error.errno not in _NOTHING
    return True


def optional_int(path: Path, what: str) -> int | None:
    """Return a whole number as `read_int` does, or None where there is none; EnergyError."""
    return read_int(path, what) if has(path) else None


def optional_text(path: Path) -> str:
    """Return a text as `read_text` does, or "" where there is none; EnergyError."""
    return read_text(path) if has(path) else ""
