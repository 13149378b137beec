"""Whether the configuration loads, and what the board's profile says that this device can do."""

from __future__ import annotations

import json

from agent.checks.check import Bench, Finding, ok, warning
from agent.config import load_config


def check(bench: Bench) -> Finding:
    """Load it, and keep it for all other checks; ConfigError."""
    overrides = list(bench.overrides)
    if bench.sysfs_root:
        overrides.append(f"energy.sysfs_root={json.dumps(bench.sysfs_root)}")
    config = bench.loaded = load_config(bench.path, overrides)
    board = config.board
    who = f"{bench.path}: node {config.node.id} of fleet {config.node.fleet}, run {config.run.id}"
    if board is None:
        what = "relay" if config.is_relay else "train"
        return warning(
            f"{who}; no profile of the board, so nothing is known of its watts and its memory (role: {what})",
            "name it in node.profile, or with --profile (docs/profiles.md lists them)",
        )
    reason = f" ({board.reason})" if board.reason else ""
    role = "; its role here is relay" if config.is_relay and board.support == "train" else ""
    return ok(f"{who}; profile {config.node.profile}: support {board.support}{reason}{role}")
