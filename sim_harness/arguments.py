"""What several commands of the harness take and need: a scenario with its overrides, and a console."""

from __future__ import annotations

import argparse
import os
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

from agent.errors import ConfigError
from sim_harness.scenario import Scenario, load_scenario

if TYPE_CHECKING:
    from rich.console import Console

_WIDTH: Final = 160
"""Of what is printed to a file or a pipe: no table is cut to the width of a terminal that is not there."""


def add_scenario(parser: argparse.ArgumentParser) -> None:
    """Add the scenario and the flags that win over its file."""
    parser.add_argument("scenario", help="a shipped scenario's name, or a .yaml file")
    parser.add_argument("--nodes", type=int, metavar="N")
    parser.add_argument("--rounds", type=int, metavar="T")
    parser.add_argument("--seed", type=int)
    parser.add_argument(
        "--set", action="append", default=[], dest="overrides", metavar="SECTION.KEY=VALUE", help="win over the file"
    )


def resolve(args: argparse.Namespace) -> Scenario:
    """Return the scenario that the arguments of `add_scenario` name; ConfigError."""
    given = {name: getattr(args, name) for name in ("nodes", "rounds", "seed")}
    flags = [f"{name}={value}" for name, value in given.items() if value is not None]
    return load_scenario(args.scenario, [*args.overrides, *flags])


def console_with(*packages: str) -> Console:
    """Return a console; ConfigError where it, or one of `packages` of the extra `sim`, is not installed."""
    missing = [package for package in ("rich", *packages) if find_spec(package) is None]
    if missing:
        raise ConfigError(f"this needs {', '.join(missing)}: pip install 'skiptrain-agent[sim]'")
    from rich.console import Console

    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _WIDTH
    return console
