"""The picture of a run: accuracy, joules against D-PSGD, and who trained when, over the same rounds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter

from agent.core.types import RoundKind
from sim_harness.plot_style import BLUE, GREY, ORANGE, VERMILION, dress, new_figure
from sim_harness.report import against_d_psgd, joules, title
from sim_harness.run_files import EvaluationRow, Run
from sim_harness.shortfall import missing_rounds

_LABELLED_NODES: Final = 40
_KILOJOULES_FROM_J: Final = 1e4

_SHADE: Final = "#ECECEC"
_CELLS: Final = {
    "no record": "#FFFFFF",
    "synchronisation round": "#DADADA",
    "training round, skipped": "#F3D9A4",
    "trained": BLUE,
}


def draw(run: Run, path: Path) -> Path:
    """Draw `run` as a PNG, 1200 pixels wide, and return its path; no state of matplotlib's is touched."""
    nodes = len(run.summary["per_node"])
    heat_inches = min(max(1.6, 0.26 * nodes), 5.5)
    figure = new_figure(7.4 + heat_inches)
    heading = "\n".join(filter(None, [title(run), missing_rounds(run.summary)]))
    figure.suptitle(heading, fontsize=15, fontweight="bold")
    accuracy, energy, heat = figure.subplots(3, 1, sharex=True, height_ratios=[3.3, 3.3, heat_inches])
    _accuracy(accuracy, run)
    _energy(energy, run)
    _training(heat, run)
    figure.align_ylabels()
    heat.set_xlabel("round", fontsize=12)
    heat.set_xlim(-0.5, run.summary["rounds"] - 0.5)
    heat.xaxis.set_major_locator(MaxNLocator(nbins=16, integer=True))
    figure.savefig(path)
    return path


def _accuracy(axes: Axes, run: Run) -> None:
    """Mean over the nodes with the band from the worst to the best, and the mean on the nodes' own data."""
    _shade(axes, run)
    tested = _by_round(run.evaluations, "accuracy")
    own = _by_round(run.evaluations, "own_accuracy")
    if own:
        means = [np.mean(values) for values in own.values()]
        axes.plot(list(own), means, "--", color=ORANGE, linewidth=1.6, label="mean on own data")
    if tested:
        rounds = list(tested)
        lows, highs = ([pick(values) for values in tested.values()] for pick in (min, max))
        axes.fill_between(rounds, lows, highs, color=BLUE, alpha=0.2, linewidth=0, label="worst to best node")
        means = [np.mean(values) for values in tested.values()]
        axes.plot(rounds, means, "o-", color=BLUE, linewidth=2, markersize=4, label="mean of all nodes")
    else:
        axes.text(0.5, 0.5, "nothing was evaluated", ha="center", va="center", transform=axes.transAxes, fontsize=12)
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    dress(axes, "Accuracy on the common test set", "top-1 accuracy (%)")


def _energy(axes: Axes, run: Run) -> None:
    """Joules of all nodes after each round, D-PSGD's, and the budget of all nodes."""
    _shade(axes, run)
    rounds, d_psgd_j = run.summary["rounds"], run.summary["energy_j"]["d_psgd_equivalent"]
    spent_j, ended = np.zeros(rounds), np.zeros(rounds)
    for row in run.rounds:
        spent_j[row.round] += row.energy_j
        ended[row.round] += 1
    ends = np.arange(-0.5, rounds)
    limit_j = run.summary["budget"]["limit_j"]
    scale, unit = (1e-3, "kJ") if max(d_psgd_j, limit_j or 0.0) >= _KILOJOULES_FROM_J else (1.0, "J")
    d_psgd = np.concatenate([[0.0], np.cumsum(ended)]) * d_psgd_j * scale / max(1.0, ended.sum())
    axes.plot(ends, d_psgd, "--", color=GREY, linewidth=1.8, label="D-PSGD")
    if limit_j is not None:
        axes.axhline(limit_j * scale, color=VERMILION, linewidth=1.8, label=f"budget, {joules(limit_j)}")
    total = np.concatenate([[0.0], np.cumsum(spent_j)]) * scale
    axes.plot(ends, total, color=BLUE, linewidth=2.4, label=f"spent, {joules(float(spent_j.sum()))}")
    axes.set_ylim(bottom=0)
    dress(axes, f"Training energy; {against_d_psgd(run.summary)}", f"all nodes, cumulative ({unit})")


def _training(axes: Axes, run: Run) -> None:
    """One cell a node and round: trained, skipped or not a training round."""
    names = [entry["node"] for entry in run.summary["per_node"]]
    line = {name: i for i, name in enumerate(names)}
    cells = np.zeros((len(names), run.summary["rounds"]), dtype=int)
    for row in run.rounds:
        in_training_round = row.kind is RoundKind.TRAINING
        cells[line[row.node], row.round] = 3 if row.trained else 2 if in_training_round else 1
    edges = "white" if cells.size <= _LABELLED_NODES * 100 else "none"
    x, y = np.arange(-0.5, cells.shape[1]), np.arange(-0.5, len(names))
    colours = ListedColormap(list(_CELLS.values()))
    axes.pcolormesh(x, y, cells, cmap=colours, vmin=-0.5, vmax=3.5, edgecolors=edges, linewidth=0.6)
    axes.set_ylim(len(names) - 0.5, -0.5)
    if len(names) <= _LABELLED_NODES:
        axes.set_yticks(range(len(names)), names, fontsize=10)
    axes.tick_params(length=0)
    shown = [Patch(facecolor=colour, edgecolor=GREY, linewidth=0.5, label=name) for name, colour in _CELLS.items()]
    dress(axes, "Who trained when", "node", shown if (cells == 0).any() else shown[1:])
    axes.grid(visible=False)


def _shade(axes: Axes, run: Run) -> None:
    """Shade the blocks of synchronisation rounds."""
    label = "synchronisation rounds"
    for first, last in _blocks(sorted({row.round for row in run.rounds if row.kind is RoundKind.SYNCHRONISATION})):
        axes.axvspan(first - 0.5, last + 0.5, color=_SHADE, linewidth=0, zorder=0, label=label)
        label = "_"


def _blocks(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield first and last of each run of consecutive numbers."""
    starts = [number for i, number in enumerate(numbers) if i == 0 or numbers[i - 1] != number - 1]
    ends = [number for i, number in enumerate(numbers) if i == len(numbers) - 1 or numbers[i + 1] != number + 1]
    yield from zip(starts, ends, strict=True)


def _by_round(rows: Sequence[EvaluationRow], name: str) -> dict[int, list[float]]:
    """Return the values of one column by round, in ascending order, without the missing ones."""
    found: dict[int, list[float]] = {}
    for row in sorted(rows, key=lambda row: row.round):
        value = getattr(row, name)
        if value is not None:
            found.setdefault(row.round, []).append(value)
    return found
