"""`skiptrain-sim plan SCENARIO`: what a schedule costs, as two tables or as JSON."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any, Final

from sim_harness.arguments import add_scenario, console_with, resolve
from sim_harness.planning import plan

if TYPE_CHECKING:
    from rich.console import Console

_WHOLE_FROM: Final = 100
"""Rounds from which on nobody cares for a part of one."""


def add_plan(commands: Any) -> None:
    """Add the command to the parser of `skiptrain-sim`."""
    parser = commands.add_parser("plan", help="what a schedule costs, told without learning anything")
    add_scenario(parser)
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(command=_plan)


def _plan(args: argparse.Namespace) -> None:
    values = plan(resolve(args))
    if args.json:
        print(json.dumps(values, indent=2))
    else:
        _print_plan(values, console_with())


def _print_plan(values: dict[str, Any], console: Console) -> None:
    from rich.table import Table

    energy, rounds = values["energy_wh"], values["training_rounds"]
    source = f"workload {values['workload']}" if values["workload"] else f"energy.source {values['energy_source']}"
    console.print(
        f"{values['scenario']}: {values['nodes']} nodes, T={values['rounds']}, {values['policy']}, "
        f"{values['schedule']['training_slots']} training rounds in the schedule, {source}"
    )
    for setting in values["left_out"]:
        console.print(f"{setting} is left out of this plan: with it, nodes may train more and spend more")
    table = Table("", "this seed", "expected", "at most", "D-PSGD")
    table.add_row("training rounds", *(_decimal(rounds[key]) for key in ("total", "expected", "max")), "")
    table.add_row("training energy, Wh", *(f"{energy[key]:.2f}" for key in ("total", "expected", "max", "d_psgd")))
    console.print(table)
    devices = Table("device", "budget, rounds", "p", "training rounds of one node")
    for name, probability in values["probability"].items():
        own = rounds["per_device"][name]
        devices.add_row(name, str(values["budget_rounds"][name]), f"{probability:.4f}", _decimal(own))
    console.print(devices)


def _decimal(count: float) -> str:
    """Return a mean number of rounds with one decimal, a large or whole one with none."""
    return f"{count:.1f}".removesuffix(".0") if count < _WHOLE_FROM else f"{count:.0f}"
