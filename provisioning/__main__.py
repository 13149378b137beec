"""The operator's command line: `skiptrain-provision render` makes every device's agent.yaml from one inventory."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import yaml

from agent import __version__
from agent.config import AgentConfig
from agent.errors import AgentError, ConfigError
from provisioning.inventory import load_inventory


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code (see docs/exit-codes.md)."""
    parser = argparse.ArgumentParser(prog="skiptrain-provision", description=__doc__)
    parser.add_argument("--version", action="version", version=f"skiptrain-provision {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    render = commands.add_parser("render", help="write OUT/nodes/ID/agent.yaml for every device, where it changed")
    render.add_argument("--inventory", "-i", type=Path, default=Path("fleet.yaml"), help="the inventory (fleet.yaml)")
    render.add_argument("--out", type=Path, default=Path("out"), metavar="DIR", help="where to write to (out)")
    args = parser.parse_args(argv)
    try:
        configs = load_inventory(args.inventory)
        written = sum(write_config(args.out, config) for config in configs)
        print(f"{len(configs)} devices, {written} files written to {args.out}/nodes", flush=True)
    except AgentError as error:
        print(f"skiptrain-provision: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # who read our output has gone; Python must not try again at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def write_config(out: Path, config: AgentConfig) -> bool:
    """Write one device's agent.yaml, whole or not at all; return whether that changed anything."""
    path = out / "nodes" / config.node.id / "agent.yaml"
    text = yaml.safe_dump(msgspec.to_builtins(config), sort_keys=False, allow_unicode=True)
    try:
        if path.exists() and path.read_text(encoding="utf-8") == text:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise ConfigError(f"--out {out}: {path} cannot be written: {error.strerror}") from None
    return True


if __name__ == "__main__":
    sys.exit(main())
