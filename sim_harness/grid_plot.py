"""The heatmap of a sweep: final mean accuracy and training energy for each Γtrain and Γsync."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from sim_harness.comparison import NOTHING, Group
from sim_harness.outcome import Array
from sim_harness.plot_style import new_figure, plain

_DARK_BELOW = 0.5
"""Luminance of a cell's colour below which its number is white."""


@dataclass(frozen=True, slots=True)
class _Looks:
    """Heading, colour map, and how a number is written, given the panel's largest one."""

    heading: str
    colours: str
    show: Callable[[float, float], str]


def draw_grid(results: Mapping[tuple[int, int], Group], title: str, path: Path) -> Path:
    """Draw both panels as a PNG, rows Γsync and columns Γtrain, and return its path."""
    rows = len({sync for _, sync in results})
    figure = new_figure(2.4 + 0.95 * max(2, rows))
    figure.suptitle(plain(title), fontsize=13, fontweight="bold")
    accuracy, energy = figure.subplots(1, 2)
    _panel(accuracy, results, "accuracy_mean", _Looks("Final accuracy, mean of the nodes (%)", "viridis", _percents))
    _panel(energy, results, "train_wh", _Looks("Training energy of all nodes (Wh)", "cividis", _watt_hours))
    figure.savefig(path)
    return path


def _panel(axes: Axes, results: Mapping[tuple[int, int], Group], name: str, looks: _Looks) -> None:
    """Draw one measure: a coloured cell for each pair, with its number, and ± over seeds where there are several."""
    train, sync = (sorted({pair[i] for pair in results}) for i in (0, 1))
    values = _matrix(results, train, sync, name)
    image = axes.imshow(values, cmap=looks.colours, aspect="auto")
    axes.set_title(looks.heading, loc="left", fontsize=12.5, fontweight="bold", pad=10)
    axes.set_xticks(range(len(train)), [str(count) for count in train], fontsize=11)
    axes.set_yticks(range(len(sync)), [str(count) for count in sync], fontsize=11)
    axes.set_xlabel("Γtrain, training rounds of a period", fontsize=12)
    axes.set_ylabel("Γsync, synchronisation rounds", fontsize=12)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for (t, s), group in results.items():
        column, row = train.index(t), sync.index(s)
        dark = group.mean(name) is not None and _luminance(image.to_rgba(values[row, column])) < _DARK_BELOW
        text = _text(group, name, looks.show, float(np.nanmax(values, initial=0.0)))
        axes.text(column, row, text, ha="center", va="center", fontsize=12, color="white" if dark else "black")


def _matrix(results: Mapping[tuple[int, int], Group], train: list[int], sync: list[int], name: str) -> Array:
    values = np.full((len(sync), len(train)), np.nan)
    for (t, s), group in results.items():
        mean = group.mean(name)
        if mean is not None:
            values[sync.index(s), train.index(t)] = mean
    return values


def _text(group: Group, name: str, show: Callable[[float, float], str], largest: float) -> str:
    mean, std = group.mean(name), group.std(name)
    if mean is None:
        return NOTHING
    return show(mean, largest) if not std else f"{show(mean, largest)}\n± {show(std, largest)}"


def _percents(fraction: float, _: float) -> str:
    return f"{fraction * 100:.1f}"


def _watt_hours(amount_wh: float, largest_wh: float) -> str:
    """Return the amount with as many decimals as the largest needs for three digits or more."""
    decimals = 1 if largest_wh >= 100 else 2 if largest_wh >= 10 else 3  # noqa: PLR2004
    return f"{amount_wh:,.{decimals}f}"


def _luminance(colour: Array) -> float:
    """Return how bright a colour of red, green, blue and opacity is, 0 to 1."""
    return float(np.dot(colour[:3], (0.299, 0.587, 0.114)))
