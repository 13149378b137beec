"""What a run came to, for people: a table of its nodes, its totals, and the picture `report.png`.

Everything is read from rounds.csv, evaluation.csv and summary.json in the run's folder, so a run can be shown again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sim_harness.folders import writing
from sim_harness.run_files import EvaluationRow, RoundRow, Run, load_run
from sim_harness.shortfall import commonest, missing_rounds

MAX_ROWS: Final = 40
"""Nodes that the table shows; a larger fleet is in summary.json."""

_HEADINGS: Final = (
    *("node", "device", "training\nrounds", "spent\nJ", "limit\nJ", "budget\nused"),
    *("final\naccuracy", "own\naccuracy", "messages\nreceived"),
)
_DISPENSABLE: Final = ("own\naccuracy", "limit\nJ", "messages\nreceived", "budget\nused", "device", "training\nrounds")
"""Columns that a narrow terminal does without, the first one first."""
_NAMES: Final = 2
"""Columns of words; all others are numbers."""
_WIDE: Final = 10_000


def show_report(folder: Path, console: Console) -> Path:
    """Print the report of the run in `folder`, draw `report.png` there and return its path.

    Raises `DataError` if the folder does not hold a finished run, `OutputError` if the picture cannot be written.
    """
    from sim_harness.report_plot import draw

    run = load_run(folder)
    with writing(folder):
        path = draw(run, folder / "report.png")
    console.print(fitting(run, console))
    console.print(totals(run))
    return path


def fitting(run: Run, console: Console) -> Table:
    """Return the table with as many columns as the terminal has room for."""
    options = console.options.update(max_width=_WIDE)
    tables = (node_table(run, _DISPENSABLE[:count]) for count in range(len(_DISPENSABLE) + 1))
    for table in tables:
        if console.measure(table, options=options).maximum <= console.width:
            break
    return table


def node_table(run: Run, hidden: Sequence[str] = ()) -> Table:
    """Return one row a node: what it trained, spent, learned and received, without the columns of those headings."""
    table = Table(title=title(run), title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    shown = [i for i, heading in enumerate(_HEADINGS) if heading not in hidden]
    for i in shown:
        table.add_column(_HEADINGS[i], justify="left" if i < _NAMES else "right", overflow="fold")
    by_node: dict[str, list[RoundRow]] = {entry["node"]: [] for entry in run.summary["per_node"]}
    for row in run.rounds:
        by_node.setdefault(row.node, []).append(row)
    last = {row.node: row for row in sorted(run.evaluations, key=lambda row: row.round)}
    for entry in run.summary["per_node"][:MAX_ROWS]:
        cells = _cells(entry, by_node[entry["node"]], last.get(entry["node"]))
        table.add_row(*(cells[i] for i in shown))
    notes = []
    if len(run.summary["per_node"]) > MAX_ROWS:
        notes.append(f"{MAX_ROWS} of {len(run.summary['per_node'])} nodes; all are in summary.json")
    if hidden:
        notes.append(f"no room for {', '.join(heading.replace(chr(10), ' ') for heading in hidden)}")
    table.caption = "; ".join(notes) or None
    return table


def totals(run: Run) -> Table:
    """Return the lines under the table: accuracy, joules against D-PSGD, messages, files."""
    values = run.summary
    accuracy, energy, budget, messages = (values[key] for key in ("accuracy", "energy_j", "budget", "messages"))
    lines = Table.grid(padding=(0, 2))
    if incomplete := missing_rounds(values):
        label, _, words = incomplete.partition(": ")
        lines.add_row(Text(label, style="bold red"), Text(words, style="bold red"))
    tested = "nothing was evaluated"
    if accuracy["mean"] is not None:
        tested = ", ".join(f"{name} {_percent(accuracy[name])}" for name in ("mean", "std", "min", "max"))
        tested += f"; the average of all models {_percent(accuracy['consensus'])}"
    limit = ", no budget" if budget["limit_j"] is None else f" of a budget of {joules(budget['limit_j'])}"
    lines.add_row("accuracy", tested)
    lines.add_row("training energy", f"{joules(energy['train'])}{limit}; {against_d_psgd(values)}")
    if budget["overspent_nodes"]:
        lines.add_row("over budget", Text(", ".join(budget["overspent_nodes"]), style="bold red"))
    errors = [row.error for row in run.rounds if row.error]
    if errors:
        words = f"{len(errors):,} of {sum(row.trained for row in run.rounds):,} trainings gave no model"
        lines.add_row("failed", Text(f"{words}: {commonest(errors)}", style="bold red"))
    lines.add_row(
        "messages",
        f"{messages['mixed']:,} mixed of {messages['expected']:,} expected, {messages['missing']:,} missing, "
        f"{messages['rejected']:,} rejected; {messages['delivered']:,.0f} delivered, counted by the "
        f"{messages['counted_by']}",
    )
    names = ["report.png", "rounds.csv", "evaluation.csv", "consensus.csv", "summary.json"]
    there = [name for name in names if name != "consensus.csv" or (run.folder / name).exists()]
    lines.add_row("files", Text(f"{run.folder}: {', '.join(there)}"))
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
    """Return the comparison with D-PSGD, in which every node trains in every one of the rounds that ended."""
    spent, d_psgd = values["energy_j"]["train"], values["energy_j"]["d_psgd_equivalent"]
    ratio = f", {d_psgd / spent:.2f} times as much" if spent else ""
    where = " in the rounds that ended" if missing_rounds(values) else ""
    return f"D-PSGD would have spent {joules(d_psgd)}{where}{ratio}"


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
