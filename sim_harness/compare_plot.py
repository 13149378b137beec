"""The pictures of a comparison: accuracy over rounds and over energy, energy bars, distance to the average model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter

from sim_harness.comparison import Group
from sim_harness.measures import J_PER_WH, percent, watt_hours
from sim_harness.outcome import Array, Curves
from sim_harness.plot_style import GREY, head, line_style, new_figure, plain
from sim_harness.shortfall import missing_rounds

_MARKED: Final = 40
"""Points up to which each is marked: of more, the line tells as much."""
_SHADED: Final = 5
"""Lines up to which each has a band: more bands hide each other, and the lines."""
_HALF_A_WIDTH: Final = 50
"""Letters up to which two columns of labels stand beside each other in a legend."""
_GAP_POINTS: Final = 8
"""Between a bar and its label, and behind the label."""


def draw_all(groups: Sequence[Group], curves: Mapping[str, Curves], folder: Path) -> dict[str, Path]:
    """Draw what there is to draw as PNG files in `folder`; return heading -> file, in the order to show them.

    `curves` are those of each group by its label, means over its seeds.
    """
    drawn: dict[str, Path] = {}

    def save(heading: str, name: str, figure: Figure) -> None:
        drawn[heading] = folder / name
        figure.savefig(drawn[heading])

    if any(len(found.rounds) for found in curves.values()):
        save("Accuracy over rounds", "compare-rounds.png", _lines(groups, curves, _over_rounds))
        save("Accuracy over energy", "compare-energy.png", _lines(groups, curves, _over_energy))
    save("Training energy", "compare-bars.png", _bars(groups))
    if any(group.first.consensus for group in groups):
        save("Distance to the average model", "compare-consensus.png", _lines(groups, curves, _distance))
    return drawn


def tested_on(groups: Sequence[Group]) -> str:
    """Return on how many test samples the curves rest."""
    samples = dict.fromkeys(group.first.settings.get("evaluation.samples", 0) for group in groups)
    names = ["the whole test set" if not count else f"{count:,} test samples" for count in samples]
    return " or ".join(names)


def _lines(
    groups: Sequence[Group],
    curves: Mapping[str, Curves],
    panel: Callable[[Axes, Sequence[Group], Mapping[str, Curves]], None],
) -> Figure:
    """Return a figure of one panel with a line for each group, and the legend below."""
    columns = 2 if max(len(group.label) for group in groups) <= _HALF_A_WIDTH else 1
    figure = new_figure(5.6 + 0.27 * -(-len(groups) // columns))
    axes = figure.subplots()
    panel(axes, groups, curves)
    figure.legend(loc="outside lower left", ncols=columns, frameon=False, fontsize=10.5)
    return figure


def _over_rounds(axes: Axes, groups: Sequence[Group], curves: Mapping[str, Curves]) -> None:
    shaded = len(groups) <= _SHADED
    for i, group in enumerate(groups):
        found = curves[group.label]
        if shaded:
            low, high = found.mean - found.std, found.mean + found.std
            axes.fill_between(found.rounds, low, high, color=line_style(i)[0], alpha=0.15, linewidth=0)
        _line(axes, i, group, found.rounds.astype(float), found.mean)
    band = "; band: standard deviation of the nodes" if shaded else ""
    _accuracy_axis(axes, f"Accuracy over rounds, mean of the nodes{band}", tested_on(groups))
    _round_axis(axes)


def _over_energy(axes: Axes, groups: Sequence[Group], curves: Mapping[str, Curves]) -> None:
    scale, unit = _energy_scale(max(float(found.spent_j.max(initial=0)) for found in curves.values()))
    for i, group in enumerate(groups):
        found = curves[group.label]
        _line(axes, i, group, found.spent_j / scale, found.mean)
    _accuracy_axis(axes, "Accuracy over training energy, mean of the nodes", tested_on(groups))
    axes.set_xlabel(f"training energy spent by all nodes ({unit})", fontsize=12)
    axes.set_xlim(left=0)


def _distance(axes: Axes, groups: Sequence[Group], _: Mapping[str, Curves]) -> None:
    """Draw the first seed's distances: a mean over seeds of what spans decades would be the largest one's."""
    for i, group in enumerate(groups):
        rows = [row for row in group.first.consensus if 0 < row.distance_rms < math.inf]
        if rows:
            rounds = np.asarray([row.round for row in rows], dtype=float)
            _line(axes, i, group, rounds, np.asarray([row.distance_rms for row in rows]))
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    several = any(len(group.outcomes) > 1 for group in groups)
    seed = ", lowest seed of each" if several else ""
    head(axes, f"Distance of the nodes' models to their average{seed}", "root mean square (L2)")
    _round_axis(axes)


def _bars(groups: Sequence[Group]) -> Figure:
    """Return a bar for each group, in front of what D-PSGD would have cost."""
    figure = new_figure(1.4 + 0.62 * len(groups))
    axes = figure.subplots()
    whole_j = [float(np.mean([run.summary["energy_j"]["d_psgd_equivalent"] for run in g.outcomes])) for g in groups]
    spent_j = [group.mean("train_j") or 0.0 for group in groups]
    ends: list[float] = []
    scale, unit = _energy_scale(max(*whole_j, *spent_j))
    for i, (group, whole, spent) in enumerate(zip(groups, whole_j, spent_j, strict=True)):
        axes.barh(i, whole / scale, height=0.72, facecolor="#F2F2F2", edgecolor=GREY, linewidth=0.8)
        axes.barh(
            i, spent / scale, height=0.5, color=line_style(i)[0], xerr=(group.std("train_j") or 0.0) / scale or None
        )
        share = group.mean("share_of_d_psgd")
        ends.append(max(whole, spent) / scale)
        words = watt_hours(spent / J_PER_WH) + ("" if share is None else f", {percent(share)} of D-PSGD")
        label = axes.annotate(words, (ends[i], i), (_GAP_POINTS, 0), textcoords="offset points", va="center")
        label.set(fontsize=10.5, in_layout=False)
    incomplete = any(missing_rounds(run.summary) for group in groups for run in group.outcomes)
    frame = "D-PSGD's in the rounds that ended" if incomplete else "what D-PSGD would have spent"
    heading = f"Training energy of all nodes; the frame is {frame}"
    figure.suptitle(heading, x=0.015, ha="left", fontsize=12.5, fontweight="bold")  # as labels may leave no room above
    head(axes, "", "")
    axes.set_yticks(range(len(groups)), [plain(group.label) for group in groups], fontsize=10.5)
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.set_xlabel(unit, fontsize=12)
    _make_room(figure, axes, ends)
    return figure


def _make_room(figure: Figure, axes: Axes, ends: Sequence[float]) -> None:
    """Let the axis end behind the longest label: each begins where its bar ends."""
    axes.set_xlim(0, max(ends) or 1.0)
    figure.draw_without_rendering()
    whole = axes.get_window_extent().width
    gap = 2 * _GAP_POINTS * figure.dpi / 72
    label_pixels = [text.get_window_extent().width for text in axes.texts]
    shares = [max(whole - pixels - gap, 0.1 * whole) / whole for pixels in label_pixels]
    axes.set_xlim(0, max(end / share for end, share in zip(ends, shares, strict=True)) or 1.0)


def _line(axes: Axes, index: int, group: Group, x: Array, y: Array) -> None:
    colour, dashes = line_style(index)
    width = max(1.6, 3.4 - 0.5 * index)  # the one below shows where two lines are the same
    marker = "o" if len(x) <= _MARKED else ""
    axes.plot(x, y, dashes, marker=marker, markersize=4, color=colour, linewidth=width, label=plain(group.label))


def _accuracy_axis(axes: Axes, heading: str, tested: str) -> None:
    head(axes, heading, "top-1 accuracy (%)")
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    low, high = axes.get_ylim()
    axes.set_ylim(max(0.0, low), min(1.02, high))
    axes.text(0.99, 0.02, f"tested on {tested}", ha="right", transform=axes.transAxes, fontsize=10, color=GREY)


def _round_axis(axes: Axes) -> None:
    axes.set_xlabel("round", fontsize=12)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=16, integer=True))


def _energy_scale(largest_j: float) -> tuple[float, str]:
    """Return joules in one unit, and the unit's name, for amounts up to `largest_j`."""
    if largest_j < J_PER_WH:
        return 1.0, "J"
    return (J_PER_WH, "Wh") if largest_j < 1e4 * J_PER_WH else (1e3 * J_PER_WH, "kWh")
