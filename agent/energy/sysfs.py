"""One value a file, as kernels print them: read anew each time, and every way that it can go wrong in one line."""

from __future__ import annotations

import re
import time
from pathlib import Path

from agent.errors import EnergyError

_MAX_BYTES = 4096
_TRIES = 5
_PAUSE_S = 0.002
_INT = re.compile(r"[+-]?[0-9]+", re.ASCII)


class DeniedError(EnergyError):
    """The file is there, and this user may not read it."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path}: may not be read by this user; give its group the right to read it")
        self.path = path


def read_text(path: Path) -> str:
    """Return what a file says, without the spaces around it.

    An empty file is looked at a few times more, for some 10 ms: whoever writes it may be between cutting it and filling
    it. EnergyError names the file: missing, not to be read (DeniedError), empty, no answer of the hardware.
    """
    for attempt in range(_TRIES):
        if attempt:
            time.sleep(_PAUSE_S)
        text = _read(path)
        if text:
            return text
    raise EnergyError(f"{path}: is empty; check the driver that writes it")


def read_int(path: Path, what: str) -> int:
    """Return the whole number that a file begins with (what comes behind it, as in "32760 ma", does not count).

    `what` says in the error what the number would have been: "the energy of package-0". EnergyError as in read_text,
    and where the file holds something else.
    """
    text = read_text(path)
    token = text.split()[0]
    if not _INT.fullmatch(token):
        raise EnergyError(f"{path}: {what} must be a whole number, not {_shown(text)}; check the driver that writes it")
    return int(token)


def _read(path: Path) -> str:
    try:
        with path.open("rb", buffering=0) as file:
            return (file.read(_MAX_BYTES) or b"").decode("utf-8", "replace").strip("\0 \t\r\n")
    except PermissionError:
        raise DeniedError(path) from None
    except FileNotFoundError:
        raise EnergyError(f"{path}: is not there; check that the driver is loaded and the sensor connected") from None
    except OSError as error:
        why = error.strerror or error
        raise EnergyError(f"{path}: cannot be read ({why}); check the sensor and its driver") from None


def _shown(text: str, length: int = 40) -> str:
    return repr(text if len(text) <= length else f"{text[:length]}...")
