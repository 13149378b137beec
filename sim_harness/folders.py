"""The folder that a run writes its files to."""

from __future__ import annotations

from pathlib import Path

from agent.errors import ConfigError


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
