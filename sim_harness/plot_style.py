"""The looks that all pictures of the harness share: palette, size, headings, legends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

WIDTH_INCHES: Final = 12.0
_DPI: Final = 100

# The Okabe-Ito palette, which the colour-blind can tell apart too; its yellow is too pale for a line on white.
BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, BLACK, GREY = "#CC79A7", "#56B4E9", "#000000", "#666666"
_COLOURS: Final = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, BLACK, GREY)
_DASHES: Final = ("-", "--", ":", "-.")


def new_figure(height_inches: float) -> Figure:
    """Return an empty figure, 1200 pixels wide; no state of matplotlib's is touched."""
    layout = ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.12)
    figure = Figure(figsize=(WIDTH_INCHES, height_inches), dpi=_DPI, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def line_style(index: int) -> tuple[str, str]:
    """Return colour and dashes of the line with that index; they differ for the first 32."""
    return _COLOURS[index % len(_COLOURS)], _DASHES[index // len(_COLOURS) % len(_DASHES)]


def head(axes: Axes, heading: str, label: str, pad: float = 10) -> None:
    """Give a panel its heading on the left, the label of its y axis, and a light frame."""
    axes.set_title(heading, loc="left", fontsize=12.5, fontweight="bold", pad=pad)
    axes.set_ylabel(label, fontsize=12)
    axes.tick_params(labelsize=10.5)
    axes.grid(visible=True, color="#D0D0D0", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def dress(axes: Axes, heading: str, label: str, handles: Sequence[Artist] | None = None) -> None:
    """Do as `head`, and put a legend between heading and panel."""
    head(axes, heading, label, pad=28)
    axes.legend(
        handles=axes.get_legend_handles_labels()[0] if handles is None else handles,
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        ncols=5,
        frameon=False,
        fontsize=10.5,
        borderaxespad=0.2,
        borderpad=0,
    )


def plain(text: str) -> str:
    """Return `text` as matplotlib shows it letter by letter: a dollar sign would begin a formula."""
    return text.replace("$", r"\$")
