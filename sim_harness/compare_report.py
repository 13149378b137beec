"""The files of a comparison: tables, pictures and compare.html; and the same numbers as JSON."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from sim_harness import html_page
from sim_harness.comparison import Group, as_row, table_rows
from sim_harness.folders import made, writing
from sim_harness.outcome import Curves, finite

EXPLAINED: Final = (
    """Accuracies are top-1 of the last models on the whole common test set. The average model is the plain average of
    all nodes' last models; the distance to it is the root mean square over the nodes, in L2.""",
    """Energy is that of training, all nodes together. D-PSGD's is what it would have cost had every node trained in
    every one of its rounds that ended. Accuracy points per kWh: 100 times the mean accuracy, divided by the kWh of
    training.""",
    """Jain index: (sum of x)² / (n · sum of x²) over the n types of device, where x is the mean over a type's nodes of
    their training rounds, or of their accuracies. 1: all types are equal; 1/n: one type has everything.""",
)
SEEDS: Final = "After ±: the sample standard deviation over seeds."


def as_json(groups: Sequence[Group], curves: Mapping[str, Curves]) -> list[dict[str, Any]]:
    """Return all numbers of all groups, of each of their runs, and their mean curves; energies in joules."""
    return [
        {
            **as_row(group),
            "seeds": group.seeds,
            "runs": [{"folder": str(run.folder), "seed": run.summary["seed"], **run.numbers} for run in group.outcomes],
            "curve": _curve(curves[group.label]),
            "consensus": [_finite(asdict(row)) for row in group.first.consensus],
        }
        for group in groups
    ]


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows with the same keys as a table; None is an empty field."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_comparison(groups: Sequence[Group], curves: Mapping[str, Curves], out: Path) -> Path:
    """Write all files of a comparison to `out` and return the path of its page; ConfigError, OutputError."""
    from sim_harness.compare_plot import draw_all

    made(out)
    with writing(out):
        write_rows(out / "compare.csv", [as_row(group) for group in groups])
        if rows := list(_curve_rows(groups, curves)):
            write_rows(out / "compare-curves.csv", rows)
        pictures = draw_all(groups, curves, out)
    parts = [
        html_page.table(
            ["", *(group.label for group in groups)], [[name, *cells] for name, cells in table_rows(groups)]
        ),
        *map(html_page.paragraph, explained(groups)),
        *(html_page.picture(path, name) for name, path in pictures.items()),
        html_page.heading("Scenarios"),
        *scenario_texts(groups),
    ]
    return write_page(out / "compare.html", title(groups), parts)


def title(groups: Sequence[Group]) -> str:
    """Return what is compared, in one line."""
    names = ", ".join(dict.fromkeys(str(group.first.summary["scenario"]) for group in groups))
    runs = sum(len(group.outcomes) for group in groups)
    return f"{names}: {runs} runs compared" if runs > 1 else f"{groups[0].label}: one run"


def explained(groups: Sequence[Group]) -> list[str]:
    """Return what the numbers mean."""
    texts = [" ".join(text.split()) for text in EXPLAINED]
    return [*texts, SEEDS] if any(len(group.outcomes) > 1 for group in groups) else texts


def scenario_texts(groups: Sequence[Group]) -> list[str]:
    """Return the scenario of each group for the page; of several seeds that of the lowest."""
    names = [", ".join(run.folder.name for run in group.outcomes) for group in groups]
    return [
        html_page.folded(f"{group.label} ({folders})", group.first.text)
        for group, folders in zip(groups, names, strict=True)
    ]


def write_page(path: Path, heading: str, parts: Sequence[str]) -> Path:
    """Write a page and return its path."""
    with writing(path.parent):
        path.write_text(html_page.page(heading, parts), encoding="utf-8")
    return path


def _curve(curves: Curves) -> list[dict[str, float | None]]:
    arrays = (curves.rounds, curves.mean, curves.std, curves.worst, curves.spent_j)
    names = ("round", "accuracy_mean", "accuracy_std", "accuracy_min", "spent_j")
    return [_finite(dict(zip(names, row, strict=True))) for row in zip(*(a.tolist() for a in arrays), strict=True)]


def _curve_rows(groups: Sequence[Group], curves: Mapping[str, Curves]) -> Iterator[dict[str, Any]]:
    """Yield the points of all curves, with what the lowest seed's consensus.csv says of the same round."""
    for group in groups:
        average = {row.round: row for row in group.first.consensus}
        for point in _curve(curves[group.label]):
            row = average.get(int(point["round"] or 0))
            told = {
                "accuracy_consensus": row and finite(row.accuracy),
                "distance_rms": row and finite(row.distance_rms),
            }
            yield {"label": group.label, **point, **told}


def _finite(row: Mapping[str, float]) -> dict[str, float | None]:
    """Return the same with None for what JSON has no number for."""
    return {name: finite(value) for name, value in row.items()}
