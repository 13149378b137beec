"""The folder that a run writes its files to, and what is said where that fails."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from agent.errors import ConfigError, OutputError

_T = TypeVar("_T")


def check_empty(out: Path) -> None:
    """Raise ConfigError if there is anything in `out` already."""
    if looked_at(lambda: out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise ConfigError(f"--out {out}: there is something in it already; give a new folder, or remove that one")


def looked_at(look: Callable[[], _T]) -> _T:
    """Return what a look at the file system gives; ConfigError where nobody may look, or a name cannot be."""
    try:
        return look()
    except OSError as error:
        raise ConfigError(
            f"{error.filename}: {error.strerror}; give another folder, or let this user read it"
        ) from None


def made(out: Path) -> Path:
    """Make the folder and return its absolute path; ConfigError."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be made: {error.strerror}; give a folder that can") from None
    return out.resolve()


@contextmanager
def claimed(out: Path) -> Iterator[None]:
    """Hold the folder for this process alone; ConfigError where another one writes to it."""
    handle = os.open(out, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise ConfigError(f"--out {out}: another emulation is writing there; wait for its end, or stop it") from None
    finally:
        os.close(handle)


@contextmanager
def writing(folder: Path, otherwise: str = "or give another folder") -> Iterator[None]:
    """Write files to `folder` in this block; OutputError where that fails, with what to do."""
    try:
        yield
    except OSError as error:
        where, why = error.filename or folder, error.strerror or error
        raise OutputError(f"{where}: cannot be written: {why}; make room, {otherwise}") from error
