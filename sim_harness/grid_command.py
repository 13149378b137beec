"""`skiptrain-sim grid SCENARIO`: an emulation for each Γtrain and Γsync, and the heatmap of what they came to."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Final

from sim_harness.arguments import add_scenario, console_with, resolve

_EXPLAINED: Final = (
    "Runs one emulation for each pair of --train and --sync (and each of --seeds). What is finished is not run again: "
    "give the same command to go on after an interruption. docs/compare.md says what the numbers mean."
)


def add_grid(commands: Any) -> None:
    """Add the command to the parser of `skiptrain-sim`."""
    parser = commands.add_parser("grid", help="sweep Γtrain x Γsync and draw the heatmap", description=_EXPLAINED)
    add_scenario(parser)
    counts = {"type": whole_numbers, "metavar": "A-B,C"}
    parser.add_argument("--train", default="1-4", help="Γtrain, such as 1-4 or 1,2,4 (1-4)", **counts)
    parser.add_argument("--sync", default="1-4", help="Γsync, the same (1-4)", **counts)
    parser.add_argument("--seeds", default=[], help="several seeds for each pair", **counts)
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="a folder for all runs and the results")
    parser.set_defaults(command=_grid)


def whole_numbers(text: str) -> list[int]:
    """Return what "1-3,8" means: 1, 2, 3, 8; ArgumentTypeError tells how to write it."""
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = (piece.strip() for piece in part.partition("-"))
        last = last if dash else first
        if not (first.isdecimal() and last.isdecimal()) or len(first + last) > len("4294967295") * 2:
            raise argparse.ArgumentTypeError(f"{text!r}: write whole numbers such as 1-4 or 1,2,4")
        if not 0 <= int(last) - int(first) < _LONGEST_RANGE:
            raise argparse.ArgumentTypeError(f"{text!r}: {part.strip()!r} is empty, or longer than {_LONGEST_RANGE}")
        found.update(range(int(first), int(last) + 1))
    return sorted(found)


_LONGEST_RANGE: Final = 1000


def _grid(args: argparse.Namespace) -> None:
    console = console_with("matplotlib")
    from sim_harness.emulation import run_emulated
    from sim_harness.folders import made
    from sim_harness.grid import cells, run_cells
    from sim_harness.grid_report import load_results, write_grid

    sweep = cells(resolve(args), args.train, args.sync, args.seeds, made(args.out))
    run_cells(sweep, run_emulated, console)
    page = write_grid(load_results(sweep), args.out)
    console.print(f"files in {args.out}: {page.name}, grid.png, grid.csv; a folder for each run", markup=False)
