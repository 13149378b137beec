"""What a run came to, for people: a table of its nodes, its totals, and the picture `report.png`.

Everything is read from rounds.csv, evaluation.csv and summary.json in the run's folder, so a run can be shown again.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from agent.core.types import RoundKind
from agent.errors import DataError

MAX_ROWS: Final = 40
"""Nodes that the table shows; a larger fleet is in summary.json."""

_KEYS: Final = (
    *("scenario", "nodes", "rounds", "seed", "policy", "topology"),
    *("accuracy", "energy_j", "budget", "messages", "per_node"),
)

_HEADINGS: Final = (
    *("training\nrounds", "spent\nJ", "limit\nJ", "budget\nused"),
    *("final\naccuracy", "own\naccuracy", "messages\nreceived"),
)

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class RoundRow:
    """The columns of one row of rounds.csv that a report needs."""

    node: str
    round: int
    kind: RoundKind
    trained: bool
    energy_j: float
    peers_expected: int
    peers_received: int


@dataclass(frozen=True, slots=True)
class EvaluationRow:
    """One row of evaluation.csv; top-1 in [0, 1], None where there was nothing to test with."""

    round: int
    node: str
    accuracy: float | None
    own_accuracy: float | None


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run as its files tell it."""

    folder: Path
    summary: Mapping[str, Any]
    rounds: Sequence[RoundRow]
    evaluations: Sequence[EvaluationRow]


def show_report(folder: Path, console: Console) -> Path:
    """Print the report of the run in `folder`, draw `report.png` there and return its path.

    Raises `DataError` if the folder does not hold a finished run.
    """
    from sim_harness.report_plot import draw

    run = load_run(folder)
    path = draw(run, folder / "report.png")
    console.print(node_table(run))
    console.print(totals(run))
    return path


def load_run(folder: Path) -> Run:
    """Read the files of a run; raises `DataError` that names the file, and the line if it is one."""
    summary, rounds = load_summary(folder), list(read_rows(folder / "rounds.csv", _round_row))
    return _check(Run(folder, summary, rounds, list(read_rows(folder / "evaluation.csv", evaluation_row))))


def load_summary(folder: Path) -> dict[str, Any]:
    """Read summary.json; `DataError` if there is none, or none that has all a report needs."""
    path = folder / "summary.json"
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise no_run(folder, error) from error
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}; run the scenario again") from error
    missing = [key for key in _KEYS if not isinstance(summary, dict) or key not in summary]
    if missing:
        raise DataError(f"{path} lacks {', '.join(missing)}; run the scenario again")
    return dict(summary)


def node_table(run: Run) -> Table:
    """Return one row a node: what it trained, spent, learned and received."""
    table = Table(title=title(run), title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("node", no_wrap=True)
    table.add_column("device", overflow="ellipsis")
    for heading in _HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    by_node: dict[str, list[RoundRow]] = {entry["node"]: [] for entry in run.summary["per_node"]}
    for row in run.rounds:
        by_node.setdefault(row.node, []).append(row)
    last = {row.node: row for row in sorted(run.evaluations, key=lambda row: row.round)}
    for entry in run.summary["per_node"][:MAX_ROWS]:
        table.add_row(*_cells(entry, by_node[entry["node"]], last.get(entry["node"])))
    if len(run.summary["per_node"]) > MAX_ROWS:
        table.caption = f"{MAX_ROWS} of {len(run.summary['per_node'])} nodes; all are in summary.json"
    return table


def totals(run: Run) -> Table:
    """Return the lines under the table: accuracy, joules against D-PSGD, messages, files."""
    values = run.summary
    accuracy, energy, budget, messages = (values[key] for key in ("accuracy", "energy_j", "budget", "messages"))
    lines = Table.grid(padding=(0, 2))
    tested = "nothing was evaluated"
    if accuracy["mean"] is not None:
        tested = ", ".join(f"{name} {_percent(accuracy[name])}" for name in ("mean", "std", "min", "max"))
        tested += f"; the average of all models {_percent(accuracy['consensus'])}"
    limit = ", no budget" if budget["limit_j"] is None else f" of a budget of {joules(budget['limit_j'])}"
    lines.add_row("accuracy", tested)
    lines.add_row("training energy", f"{joules(energy['train'])}{limit}; {against_d_psgd(values)}")
    if budget["overspent_nodes"]:
        lines.add_row("over budget", Text(", ".join(budget["overspent_nodes"]), style="bold red"))
    lines.add_row(
        "messages",
        f"{messages['mixed']:,} mixed of {messages['expected']:,} expected, {messages['missing']:,} missing, "
        f"{messages['rejected']:,} rejected; {messages['delivered']:,.0f} delivered, counted by the "
        f"{messages['counted_by']}",
    )
    lines.add_row("files", f"{run.folder}: report.png, rounds.csv, evaluation.csv, summary.json")
    return lines


def title(run: Run) -> str:
    """Return the run in one line."""
    values = run.summary
    topology = values["topology"]
    graph = f"{topology['kind']} degree {topology['degree']}" if topology["degree"] else topology["kind"]
    return (
        f"{values['scenario']}: {values['nodes']} nodes, {values['rounds']} rounds, {values['policy']}, {graph}, "
        f"seed {values['seed']}"
    )


def against_d_psgd(values: Mapping[str, Any]) -> str:
    """Return the comparison with D-PSGD, in which every node trains in every round."""
    spent, d_psgd = values["energy_j"]["train"], values["energy_j"]["d_psgd_equivalent"]
    ratio = f", {d_psgd / spent:.2f} times as much" if spent else ""
    return f"D-PSGD would have spent {joules(d_psgd)}{ratio}"


def joules(amount_j: float) -> str:
    """Return an amount with the unit that suits it."""
    for unit, size in (("MJ", 1e6), ("kJ", 1e3)):
        if amount_j >= 10 * size:
            return f"{amount_j / size:,.1f} {unit}"
    return f"{amount_j:,.1f} J"


def _cells(entry: Mapping[str, Any], rows: Sequence[RoundRow], last: EvaluationRow | None) -> list[str | Text]:
    limit, spent = entry["limit_j"], entry["spent_j"]
    tested = entry.get("accuracy")
    if tested is None and last is not None:
        tested = last.accuracy
    return [
        entry["node"],
        entry["device"],
        str(sum(row.trained for row in rows)),
        f"{spent:,.1f}",
        "none" if limit is None else f"{limit:,.1f}",
        _share(spent, limit, entry.get("credited_j", 0.0)),
        _percent(tested),
        _percent(None if last is None else last.own_accuracy),
        f"{sum(row.peers_received for row in rows)}/{sum(row.peers_expected for row in rows)}",
    ]


def _share(spent_j: float, limit_j: float | None, credited_j: float) -> Text:
    """Return how much of a budget and of what was recharged is spent."""
    if not limit_j:
        return Text("-")
    given_j = limit_j + credited_j
    return Text(f"{spent_j / given_j:.1%}", style="bold red" if spent_j > given_j else "")


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None or math.isnan(fraction) else f"{fraction:.1%}"


def _round_row(cells: Mapping[str, str]) -> RoundRow:
    return RoundRow(
        cells["node"],
        int(cells["round"]),
        RoundKind(cells["kind"]),
        cells["decision"] == "train",
        float(cells["energy_j"]),
        int(cells["peers_expected"]),
        int(cells["peers_received"]),
    )


def evaluation_row(cells: Mapping[str, str]) -> EvaluationRow:
    """Return one row of evaluation.csv."""
    accuracy, own = (float(cells[key]) if cells[key] else None for key in ("accuracy", "own_accuracy"))
    return EvaluationRow(int(cells["round"]), cells["node"], accuracy, own)


def read_rows(path: Path, parse: Callable[[Mapping[str, str]], _T]) -> Iterator[_T]:
    """Yield the rows of a table, one after the other; `DataError` names the line that is wrong."""
    line = 1
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for line, cells in enumerate(csv.DictReader(file), start=2):  # noqa: B007  # the error names it
                yield parse(cells)
    except OSError as error:
        raise no_run(path.parent, error) from error
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}:{line}: {error!r}; the file was cut or changed, run the scenario again") from error


def _check(run: Run) -> Run:
    """Return `run` if its files belong together."""
    nodes, rounds = {entry["node"] for entry in run.summary["per_node"]}, range(run.summary["rounds"])
    stray = next((row for row in run.rounds if row.node not in nodes or row.round not in rounds), None)
    if stray is not None:
        where = f"{run.folder / 'rounds.csv'}: node {stray.node}, round {stray.round}"
        raise DataError(f"{where} is not of the run in summary.json; run the scenario again")
    return run


def no_run(folder: Path, error: OSError) -> DataError:
    """Return the error for a folder that lacks a file of a finished run."""
    return DataError(f"{folder} holds no finished run: {error}; give the folder of --out")
