"""Whether the state folder can be written and synced, how fast, and if there is room for what is kept there."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

from agent.checks.check import Bench, Finding, failed, ok, warning

GENERATIONS = 3
"""Two of the model, and the one being written."""
OTHER_BYTES = 4 << 20
"""The state in as many, its lock, and what file systems add."""
LINES_FILES = 4
"""rounds.jsonl and evaluations.jsonl, each with an older one."""
SLOW_MS = 1000.0
"""A disk that takes longer holds up rounds."""
_MIB = 1 << 20


def check(bench: Bench) -> Finding:
    """Write a small file beside the journal, whose lock is not touched."""
    state = Path(bench.config.node.state_dir)
    folder = next((path for path in (state, *state.parents) if path.exists()), Path("/"))
    new = "" if folder == state else f" (not there yet; it will be made below {folder})"
    try:
        sync_ms = _write(folder)
        room = os.statvfs(folder)
    except OSError as error:
        return _refused(folder, state, error)
    free, needed = room.f_bavail * room.f_frsize, _needed(bench)
    line = f"{state}{new}: fsync in {sync_ms:.1f} ms, {free // _MIB} MiB free of {needed // _MIB + 1} MiB needed"
    if room.f_blocks and free < needed:
        return failed(
            line, "free some space, or set node.state_dir to a larger disk; journal.lines_bytes bounds the logs"
        )
    if sync_ms > SLOW_MS:
        return warning(line, "the disk is slow or failing: use a better card, or write the model less often (journal)")
    return ok(line)


def _write(folder: Path) -> float:
    """Write, sync and remove a file of a few kilobytes; return the milliseconds of the sync. OSError."""
    path = folder / f".doctor-{os.getpid()}.tmp"
    try:
        with path.open("xb") as file:
            file.write(bytes(4096))
            file.flush()
            began = time.monotonic()
            os.fsync(file.fileno())
            return 1000 * (time.monotonic() - began)
    finally:
        with suppress(OSError):
            path.unlink()


def _refused(folder: Path, state: Path, error: OSError) -> Finding:
    """Say why nothing can be written."""
    read_only = False
    with suppress(OSError):
        read_only = bool(os.statvfs(folder).f_flag & os.ST_RDONLY)
    why = f"{state}: {folder} cannot be written ({error.strerror or error})"
    if read_only:
        return failed(
            f"{why}: it is mounted read-only",
            "mount it for writing; a card that turns read-only by itself is dying (dmesg tells): replace it",
        )
    return failed(why, "check node.state_dir, its rights and its owner; run this as the agent's user")


def _needed(bench: Bench) -> int:
    """Return how many bytes the journal may grow to; of a factory's model that was not built nothing is known."""
    return GENERATIONS * (bench.model_bytes or 0) + LINES_FILES * bench.config.journal.lines_bytes + OTHER_BYTES
