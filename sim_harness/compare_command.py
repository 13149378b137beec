"""`skiptrain-sim compare DIR...`: finished runs side by side, as a table, pictures and one HTML page."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sim_harness.arguments import console_with

if TYPE_CHECKING:
    from rich.table import Table

    from sim_harness.comparison import Group
    from sim_harness.outcome import Curves

OUT: Final = Path("build/compare")
_HEADING_WIDTH: Final = 26
_CELL_WIDTH: Final = 24


def add_compare(commands: Any) -> None:
    """Add the command to the parser of `skiptrain-sim`."""
    about = "finished runs side by side: table, pictures, HTML; one DIR makes the page of a single run"
    parser = commands.add_parser("compare", help=about, description=about)
    parser.add_argument("dirs", nargs="+", type=Path, metavar="DIR", help="the folder of a run; docs/compare.md")
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"where the files go ({OUT}; with --json nowhere)")
    parser.add_argument("--json", action="store_true", help="for programs: every number and the curves")
    parser.set_defaults(command=_compare)


def _compare(args: argparse.Namespace) -> None:
    console = console_with("matplotlib")
    from sim_harness.compare_report import as_json, explained, write_comparison
    from sim_harness.comparison import load_groups

    groups = load_groups(list(dict.fromkeys(path.resolve() for path in args.dirs)))
    curves = _load_curves(groups)
    out = args.out or (None if args.json else OUT)
    page = None if out is None else write_comparison(groups, curves, out)
    if args.json:
        print(json.dumps(as_json(groups, curves), indent=2))
        return
    for table in tables(groups, console.width):
        console.print(table)
    for line in explained(groups):
        console.print(line, style="dim", markup=False, highlight=False)
    console.print(f"files in {out}: {page.name if page else ''}, compare.csv, compare-*", markup=False)


def _load_curves(groups: Sequence[Group]) -> dict[str, Curves]:
    from sim_harness.outcome import load_curves, mean_curves

    return {group.label: mean_curves([load_curves(run) for run in group.outcomes]) for group in groups}


def tables(groups: Sequence[Group], width: int) -> Iterator[Table]:
    """Yield the table of the groups, in several parts where the terminal is too narrow for all."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from sim_harness.comparison import table_rows

    at_once = max(1, (width - _HEADING_WIDTH) // _CELL_WIDTH)
    rows = list(table_rows(groups))
    for start in range(0, len(groups), at_once):
        part = slice(start, start + at_once)
        table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.add_column("", min_width=_HEADING_WIDTH - 2)
        for group in groups[part]:
            table.add_column(Text(group.label), justify="right", max_width=2 * _CELL_WIDTH, overflow="fold")
        for name, cells in rows:
            table.add_row(name, *(Text(cell) for cell in cells[part]))
        yield table
