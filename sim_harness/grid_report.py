"""What a sweep came to: grid.csv, the heatmap grid.png and grid.html."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from sim_harness import html_page
from sim_harness.compare_report import explained, write_page, write_rows
from sim_harness.comparison import Group, as_row, shortfalls
from sim_harness.folders import writing
from sim_harness.grid import Cell
from sim_harness.measures import MEASURES
from sim_harness.outcome import load_outcome

Results = Mapping[tuple[int, int], Group]
"""For each pair of train_rounds and sync_rounds its runs, one a seed."""


def load_results(sweep: Sequence[Cell]) -> dict[tuple[int, int], Group]:
    """Read the runs of a sweep that is finished; `DataError` names a folder that holds none."""
    pairs = dict.fromkeys((cell.train_rounds, cell.sync_rounds) for cell in sweep)
    results = {}
    for pair in pairs:
        runs = tuple(load_outcome(cell.folder) for cell in sweep if (cell.train_rounds, cell.sync_rounds) == pair)
        results[pair] = Group(f"Γtrain {pair[0]}, Γsync {pair[1]}", runs, shortfalls(runs))
    return results


def write_grid(results: Results, out: Path) -> Path:
    """Write the files of a sweep to `out`, beside its runs, and return the path of its page."""
    from sim_harness.grid_plot import draw_grid

    with writing(out):
        write_rows(
            out / "grid.csv",
            [{"train_rounds": t, "sync_rounds": s, **as_row(group)} for (t, s), group in results.items()],
        )
        image = draw_grid(results, sweep_title(results), out / "grid.png")
    groups = list(results.values())
    shown = [measure for measure in MEASURES if any(group.mean(measure.name) is not None for group in groups)]
    noted = any(group.note for group in groups)
    parts = [
        html_page.picture(image, "Final mean accuracy and training energy for each Γtrain and Γsync"),
        html_page.table(
            ["", *(measure.heading for measure in shown), *(["note"] if noted else [])],
            [
                [group.label, *(group.shown(measure) for measure in shown), *([group.note] if noted else [])]
                for group in groups
            ],
        ),
        *map(html_page.paragraph, explained(groups)),
        html_page.heading("Scenario"),
        html_page.folded(f"that of {groups[0].label}; the others differ in the schedule", groups[0].first.text),
    ]
    return write_page(out / "grid.html", sweep_title(results), parts)


def sweep_title(results: Results) -> str:
    """Return what was swept, in one line."""
    group = next(iter(results.values()))
    values, seeds = group.first.summary, group.seeds
    graph = f"{values['topology']['kind']} degree {values['topology']['degree']}"
    return (
        f"{values['scenario']}: {values['policy']}, {values['nodes']} nodes, {values['rounds']} rounds, {graph}, "
        f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}"
    )
