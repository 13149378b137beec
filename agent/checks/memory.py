"""Whether there is as much free memory as the agent takes, by the profile or by the size of its model."""

from __future__ import annotations

import re

from agent.checks.check import Bench, Finding, failed, ok, skipped, warning

MB = 1_000_000
RELAY_MB, TRAINER_MB = 150, 500
"""Without a profile: what agent, and agent with trainer, take for a small model."""
COPIES = 12
"""Copies of a model that agent, trainer and messages hold at once."""
_LINE = re.compile(r"^(\w+):\s+(\d+) kB$", re.MULTILINE)


def check(bench: Bench) -> Finding:
    """Hold MemAvailable against what is needed; what a running agent has already is not free, and not missing."""
    path = bench.host.proc / "meminfo"
    try:
        found = {name: int(kb) * 1024 for name, kb in _LINE.findall(path.read_text(encoding="ascii"))}
        total, free = found["MemTotal"], found["MemAvailable"]
    except (OSError, KeyError, UnicodeDecodeError):
        return skipped(f"{path} does not say how much memory there is")
    needed, by = _needed(bench)
    swap, swap_free = found.get("SwapTotal", 0), found.get("SwapFree", 0)
    swapped = f"swap {(swap - swap_free) // MB} of {swap // MB} MB used" if swap else "no swap"
    line = f"{free // MB} MB of {total // MB} MB available, {needed // MB} MB needed ({by}); {swapped}"
    if free >= needed:
        return ok(line)
    if bench.agent_runs and total >= needed:
        return ok(f"{line}; an agent is running and has its part")
    fix = "end other programs, use a smaller model or learning.batch_size, or make the device a relay (node.role)"
    return warning(line, fix) if free + swap_free >= needed else failed(line, fix)


def _needed(bench: Bench) -> tuple[int, str]:
    """Return the bytes that the agent takes with its trainer, and who says so."""
    board = bench.config.board
    if board is not None:
        return board.learning.memory_mb * MB, "by the profile"
    base = RELAY_MB if bench.config.is_relay else TRAINER_MB
    return base * MB + COPIES * (bench.model_bytes or 0), "by the size of the model"
