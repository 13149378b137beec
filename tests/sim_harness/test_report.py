"""The report of a finished run, from its files alone."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console

from agent.errors import DataError
from sim_harness.evidence import EVALUATION_COLUMNS, ROUND_COLUMNS
from sim_harness.report import MAX_ROWS, fitting, node_table, show_report, totals
from sim_harness.run_files import load_run
from sim_harness.shortfall import missing_rounds

BLUE = (0, 0x72, 0xB2)
"""The colour of a cell of a node that trained."""


DEVICES = (("xiaomi-12-pro", 23.5), ("galaxy-s22-ultra", 21.6), ("oneplus-nord-2", 9.2), ("poco-x3", 30.7))


@dataclass(frozen=True, slots=True)
class MadeUpRun:
    """The files of a made-up finished run: two training rounds, then one synchronisation round, and so on."""

    nodes: int = 8
    rounds: int = 30
    evaluated: bool = True
    limited: bool = True

    def write(self, folder: Path) -> dict[str, Any]:
        """Write rounds.csv, evaluation.csv and summary.json, and return the summary."""
        rng = np.random.default_rng(5)
        names = [f"n{i:03d}" for i in range(self.nodes)]
        rows, spent = [], dict.fromkeys(names, 0.0)
        for i, name in enumerate(names):
            for round_ in range(self.rounds):
                training = round_ % 3 < 2
                trained = training and rng.random() < 0.55
                energy_j = DEVICES[i % 4][1] if trained else 0.0
                spent[name] += energy_j
                rows.append(self._row(name, round_, training=training, trained=trained, energy_j=energy_j))
        _write(folder / "rounds.csv", ROUND_COLUMNS, rows)
        _write(folder / "evaluation.csv", EVALUATION_COLUMNS, self._evaluations(names, rng))
        summary = self._summary(names, spent)
        (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
        return summary

    @staticmethod
    def _row(name: str, round_: int, *, training: bool, trained: bool, energy_j: float) -> dict[str, object]:
        row: dict[str, object] = dict.fromkeys(ROUND_COLUMNS, "")
        kind, decision = "training" if training else "synchronisation", "train" if trained else "skip"
        row.update(node=name, round=round_, kind=kind, decision=decision, energy_j=f"{energy_j:.6f}")
        row.update(peers_expected=4, peers_received=3 if round_ == 7 else 4, rejected=0)
        return row

    def _evaluations(self, names: list[str], rng: np.random.Generator) -> list[dict[str, object]]:
        if not self.evaluated:
            return []
        rounds = [round_ for round_ in range(self.rounds) if round_ % 3 == 2]
        rise = {round_: 0.1 + 0.82 * (1 - np.exp(-round_ / 9)) for round_ in rounds}
        return [
            {
                "round": round_,
                "node": name,
                "accuracy": f"{min(1.0, rise[round_] + rng.normal(0, 0.04)):.6f}",
                "own_accuracy": f"{min(1.0, rise[round_] + 0.06):.6f}",
                "loss": "0.5",
            }
            for round_ in rounds
            for name in names
        ]

    def _summary(self, names: list[str], spent: dict[str, float]) -> dict[str, Any]:
        limits = [1.05 * spent[name] if self.limited else None for name in names]
        known = {"mean": 0.912, "std": 0.021, "min": 0.866, "max": 0.941, "consensus": 0.934}
        unknown = dict.fromkeys(known)
        total, expected = sum(spent.values()), 4 * self.nodes * self.rounds
        return {
            "scenario": "demo",
            "engine": "live",
            "nodes": self.nodes,
            "rounds": self.rounds,
            "seed": 1,
            "policy": "skiptrain-constrained" if self.limited else "skiptrain",
            "topology": {"kind": "regular", "degree": 4},
            "accuracy": known if self.evaluated else unknown,
            "energy_j": {
                "train": total,
                "total": total,
                "d_psgd_equivalent": self.rounds * sum(DEVICES[i % 4][1] for i in range(self.nodes)),
            },
            "budget": {
                "limit_j": sum(limit for limit in limits if limit) if self.limited else None,
                "spent_j": total,
                "overspent_nodes": [],
            },
            "messages": {
                "delivered": expected,
                "missing": self.nodes,
                "rejected": 0,
                "expected": expected,
                "mixed": expected - self.nodes,
                "counted_by": "broker",
            },
            "training_rounds": {"total": 0, "max": 0, "failed": 0},
            "per_node": [
                {"node": name, "device": DEVICES[i % 4][0], "limit_j": limits[i], "spent_j": spent[name]}
                for i, name in enumerate(names)
            ],
        }


def _write(path: Path, columns: tuple[str, ...], rows: list[dict[str, object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def text_of(folder: Path) -> str:
    """Return what a wide terminal shows of the run."""
    shown = StringIO()
    console = Console(file=shown, width=160)
    run = load_run(folder)
    console.print(node_table(run))
    console.print(totals(run))
    return shown.getvalue()


def change(folder: Path, **values: Any) -> None:
    """Replace top-level values of summary.json."""
    path = folder / "summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}), encoding="utf-8")


def rewrite_rounds(folder: Path, edit: Callable[[list[dict[str, str]]], list[dict[str, str]]]) -> None:
    """Write rounds.csv anew, with what `edit` makes of its rows."""
    with (folder / "rounds.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    _write(folder / "rounds.csv", ROUND_COLUMNS, [{**row} for row in edit(rows)])


def test_a_run_that_is_not_complete_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Text and picture name the nodes that are short of the end; D-PSGD has the same rounds to train in."""
    MadeUpRun().write(tmp_path)
    rewrite_rounds(tmp_path, lambda rows: [row for row in rows if row["node"] != "n003" or int(row["round"]) < 20])
    change(tmp_path, rounds_ended=230, unfinished_nodes=["n003"])
    text = text_of(tmp_path)
    assert "incomplete       230 of 240 rounds of all nodes ended; n003 did not come to the end" in text
    assert "D-PSGD would have spent 5,100.0 J in the rounds that ended" in text
    titles: list[str] = []
    monkeypatch.setattr(Figure, "suptitle", lambda _, words, **__: titles.append(words))
    show_report(tmp_path, Console(file=StringIO()))
    assert titles[0].endswith("\nincomplete: 230 of 240 rounds of all nodes ended; n003 did not come to the end")


def test_of_many_nodes_short_of_the_end_some_are_named(tmp_path: Path) -> None:
    """The line stays a line; rounds may be missing of nodes that came to the end, too."""
    summary = MadeUpRun().write(tmp_path)
    names = [f"n{i:03d}" for i in range(8)]
    words = missing_rounds({**summary, "rounds_ended": 200, "unfinished_nodes": names})
    assert words.endswith("ended; n000, n001, n002, n003 and 4 more did not come to the end")
    missed = {**summary, "rounds_ended": 200}
    assert missing_rounds({**missed, "unfinished_nodes": []}).endswith("ended; all nodes came to the end")
    assert missing_rounds(missed).endswith("200 of 240 rounds of all nodes ended")
    assert not missing_rounds({**summary, "rounds_ended": 240, "unfinished_nodes": []})


def test_trainings_that_gave_no_model_are_counted_with_their_commonest_reason(tmp_path: Path) -> None:
    """Reasons that differ in their numbers only are one; a round that others left is no failed training."""

    def fail(rows: list[dict[str, str]]) -> list[dict[str, str]]:
        trained = [row for row in rows if row["decision"] == "train"]
        for row, error in zip(trained, ["worker died", "round 1: loss nan", "round 4: loss 3e+08"], strict=False):
            row["error"] = error
        trained[3].update(error="left unfinished", loss="0.5")
        return rows

    MadeUpRun().write(tmp_path)
    assert "gave no model" not in text_of(tmp_path)
    rewrite_rounds(tmp_path, fail)
    trained = sum(row.trained for row in load_run(tmp_path).rounds)
    assert f"3 of {trained} trainings gave no model: round 1: loss nan" in text_of(tmp_path)


def test_rounds_that_were_cut_off_are_refused(tmp_path: Path) -> None:
    """A table with fewer rows than rounds ended names both numbers."""
    MadeUpRun(nodes=2, rounds=3).write(tmp_path)
    change(tmp_path, rounds_ended=6)
    rewrite_rounds(tmp_path, lambda rows: rows[:-2])
    with pytest.raises(DataError, match=r"rounds\.csv has 4 rows, but summary\.json tells of 6 rounds that ended"):
        load_run(tmp_path)


@pytest.mark.parametrize("left", ["checkpoint", "rounds.part.csv"])
def test_a_run_that_is_not_finished_can_go_on(left: str, tmp_path: Path) -> None:
    """What an emulation leaves before its end is told from a folder without any run."""
    (tmp_path / left).mkdir()
    with pytest.raises(DataError, match="is not finished; go on with the command that began it and --resume"):
        load_run(tmp_path)


def test_the_average_model_has_a_file_in_emulations_only(tmp_path: Path) -> None:
    """The last line names the files that are there."""
    MadeUpRun(nodes=2, rounds=3).write(tmp_path)
    assert "consensus.csv" not in text_of(tmp_path)
    (tmp_path / "consensus.csv").touch()
    assert "evaluation.csv, consensus.csv, summary.json" in text_of(tmp_path)


def test_a_node_is_shown_with_its_rounds_joules_accuracy_and_messages(tmp_path: Path) -> None:
    """The row of a node holds its own sums over rounds.csv, and its last own accuracy."""
    MadeUpRun().write(tmp_path)
    rows = [row for row in load_run(tmp_path).rounds if row.node == "n002"]
    trained, spent_j = sum(row.trained for row in rows), sum(row.energy_j for row in rows)
    (line,) = (line.split() for line in text_of(tmp_path).splitlines() if "n002" in line)
    assert line[:5] == ["n002", "oneplus-nord-2", str(trained), f"{spent_j:.1f}", f"{1.05 * spent_j:.1f}"]
    assert line[5:] == ["95.2%", "87.2%", "94.7%", "119/120"]


def test_the_totals_compare_with_d_psgd_and_say_where_the_files_are(tmp_path: Path) -> None:
    """Accuracy, joules with their ratio, messages and folder stand under the table."""
    summary = MadeUpRun().write(tmp_path)
    text = text_of(tmp_path)
    energy = summary["energy_j"]
    assert "mean 91.2%, std 2.1%, min 86.6%, max 94.1%; the average of all models 93.4%" in text
    assert f"{energy['train']:,.1f} J of a budget of {summary['budget']['limit_j']:,.1f} J" in text
    assert f"5,100.0 J, {energy['d_psgd_equivalent'] / energy['train']:.2f} times as much" in text
    assert "952 mixed of 960 expected, 8 missing, 0 rejected; 960 delivered, counted by the broker" in text
    assert f"{tmp_path}: report.png" in text
    assert "over budget" not in text


def test_who_spent_too_much_is_named(tmp_path: Path) -> None:
    """Nodes over their budget have a line of their own."""
    summary = MadeUpRun().write(tmp_path)
    change(tmp_path, budget={**summary["budget"], "overspent_nodes": ["n001", "n003"]})
    assert "over budget      n001, n003" in text_of(tmp_path)


def test_what_was_not_limited_evaluated_or_spent_is_said_in_words(tmp_path: Path) -> None:
    """Null limits and accuracies, and a run in which nobody trained, are no errors."""
    summary = MadeUpRun(evaluated=False, limited=False).write(tmp_path)
    change(tmp_path, energy_j={**summary["energy_j"], "train": 0.0})
    text = text_of(tmp_path)
    assert "nothing was evaluated" in text
    assert "0.0 J, no budget; D-PSGD would have spent 5,100.0 J\n" in "\n".join(map(str.rstrip, text.splitlines()))
    assert "none" in text


@pytest.mark.parametrize("width", range(30, 130, 10))
def test_a_narrow_terminal_shows_fewer_columns_and_cuts_nothing(width: int, tmp_path: Path) -> None:
    """Node, joules and accuracy stay to the last; what is left out is named."""
    MadeUpRun(nodes=4, rounds=6).write(tmp_path)
    shown = StringIO()
    console = Console(file=shown, width=width)
    console.print(fitting(load_run(tmp_path), console))
    text = shown.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert all(sum(line.split()[:1] == [f"n00{i}"] for line in text.splitlines()) == 1 for i in range(4))
    assert "…" not in text
    whole = all(device in text for device, _ in DEVICES)
    assert whole != ("device" in " ".join(text.partition("no room for")[2].split()))
    assert whole == (width >= 60)


def test_a_large_fleet_is_cut_and_says_so(tmp_path: Path) -> None:
    """The terminal is not flooded; the caption tells where all nodes are."""
    MadeUpRun(nodes=64, rounds=6).write(tmp_path)
    text = text_of(tmp_path)
    assert "n039" in text
    assert "n040" not in text
    assert f"{MAX_ROWS} of 64 nodes; all are in summary.json" in text


@pytest.mark.parametrize(
    "run",
    [MadeUpRun(), MadeUpRun(nodes=64, rounds=90), MadeUpRun(nodes=1, rounds=1, evaluated=False, limited=False)],
    ids=["demo", "large", "smallest"],
)
def test_the_picture_is_drawn_at_1200_pixels(run: MadeUpRun, tmp_path: Path) -> None:
    """report.png is there, 1200 pixels wide, and as blue as the nodes trained."""
    run.write(tmp_path)
    path = show_report(tmp_path, Console(file=StringIO()))
    assert path == tmp_path / "report.png"
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape[1] == 1200
    assert pixels.shape[0] <= 1400
    assert np.any(np.all(pixels == BLUE, axis=-1))


def test_drawing_leaves_matplotlib_as_it_was(tmp_path: Path) -> None:
    """No pyplot, no chosen backend, no changed setting: a notebook that draws a report keeps its own."""
    MadeUpRun(nodes=2, rounds=3).write(tmp_path)
    program = (
        "import sys, matplotlib\n"
        "before = list(dict.items(matplotlib.rcParams))\n"
        "from pathlib import Path\n"
        "from sim_harness.run_files import load_run; from sim_harness.report_plot import draw\n"
        "folder = Path(sys.argv[1]); draw(load_run(folder), folder / 'report.png')\n"
        "assert list(dict.items(matplotlib.rcParams)) == before\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=root, check=True)


@pytest.mark.parametrize("name", ["summary.json", "rounds.csv", "evaluation.csv"])
def test_a_missing_file_is_named(name: str, tmp_path: Path) -> None:
    """A folder that holds no finished run says which file it lacks, and what to give instead."""
    MadeUpRun(nodes=2, rounds=3).write(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(DataError, match=rf"no finished run.*{name}.*--out"):
        load_run(tmp_path)


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("rounds.csv", "n000,1,training", "n000,one,training", r"rounds\.csv:3: .*'one'"),
        ("rounds.csv", "n000,1,training", "n000,1,idling", r"rounds\.csv:3: .*'idling'"),
        ("rounds.csv", "energy_j", "energy", r"rounds\.csv:2: KeyError\('energy_j'\)"),
        ("rounds.csv", "n001,2,", "n001,99,", "node n001, round 99 is not of the run"),
        ("rounds.csv", "n001,2,", "n009,2,", "node n009, round 2 is not of the run"),
        ("evaluation.csv", "2,n000", "2.5,n000", r"evaluation\.csv:2: .*'2\.5'"),
        ("summary.json", '"budget"', '"allowance"', r"summary\.json lacks budget"),
        ("summary.json", "{", "", r"summary\.json is not JSON"),
    ],
)
def test_a_damaged_file_is_named_with_its_line(name: str, old: str, new: str, message: str, tmp_path: Path) -> None:
    """Files that were cut, edited or mixed are refused, not shown half."""
    MadeUpRun(nodes=2, rounds=3).write(tmp_path)
    path = tmp_path / name
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(DataError, match=message):
        load_run(tmp_path)
