"""The folder that a run writes its files to, and what is said where that fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agent.errors import ConfigError, OutputError


def check_empty(out: Path) -> None:
    """Raise ConfigError if there is anything in `out` already."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out {out}: there is something in it already; give a new folder, or remove that one")


def made(out: Path) -> Path:
    """Make the folder and return its absolute path; ConfigError."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be made: {error.strerror}; give a folder that can") from None
    return out.resolve()


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Write files to `folder` in this block; OutputError where that fails."""
    try:
        yield
    except OSError as error:
        where = error.filename or folder
        raise OutputError(f"{where}: cannot be written: {error.strerror}; make room, or give another folder") from error
