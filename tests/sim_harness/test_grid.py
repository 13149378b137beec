"""The sweep over Γtrain x Γsync, with an emulation that is made up; its energy half against the plan's numbers."""

from __future__ import annotations

import argparse
import csv
import json
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from agent.errors import ConfigError
from sim_harness.__main__ import main
from sim_harness.emulation import run_emulated
from sim_harness.grid import Cell, cells, run_cells, time_left
from sim_harness.grid_command import whole_numbers
from sim_harness.grid_report import load_results, write_grid
from sim_harness.planning import plan
from sim_harness.scenario import Scenario, dump_scenario, load_scenario
from tests.sim_harness.made_up_runs import scenario_of, write_run

PUBLISHED_WH = (
    (755.0, 1007.2, 1132.5, 1208.0),
    (504.4, 755.0, 906.0, 1008.7),
    (377.5, 604.0, 756.5, 863.7),
    (302.0, 504.4, 647.8, 755.0),
)
"""What 256 nodes spend in 1,000 rounds of the published CIFAR-10 traces; rows Γsync 1 to 4, columns Γtrain 1 to 4."""


class MadeUpEmulation:
    """Stands in for the emulator: writes a run's files; is interrupted in the run numbered `stop`."""

    def __init__(self, stop: int | None = None, *, saves: bool = True) -> None:
        self.stop, self.saves = stop, saves
        self.ran: list[str] = []
        self.resumed: list[str] = []

    def __call__(self, scenario: Scenario, out: Path, _console: Console, *, resume: bool = False) -> dict[str, Any]:
        """Write the run to `out`."""
        if len(self.ran) == self.stop:
            (out / "checkpoint").mkdir(parents=True)
            (out / "scenario.yaml").write_text(dump_scenario(scenario), encoding="utf-8")
            if self.saves:
                (out / "checkpoint" / "current").touch()
            raise KeyboardInterrupt
        self.ran.append(out.name)
        if resume:
            self.resumed.append(out.name)
        return write_run(out, scenario, accuracy=0.5 + scenario.policy.train_rounds / 20 + scenario.seed / 100)


def quiet() -> Console:
    """Return a console that shows nothing."""
    return Console(file=StringIO(), width=100)


def sweep(out: Path, *settings: str, seeds: tuple[int, ...] = ()) -> list[Cell]:
    """Return a sweep of 2 x 2 small runs."""
    return cells(scenario_of(*settings), [1, 2], [1, 3], seeds, out)


def test_the_published_energy_grid_is_the_plans() -> None:
    """All 16 cells of the table, to the digit, told without learning anything."""
    paper = load_scenario("paper-6-regular", ["policy.name=skiptrain", "nodes=4", "rounds=1000"])
    sweep_ = cells(paper, range(1, 5), range(1, 5), (), Path("nowhere"))
    spent = {(cell.sync_rounds, cell.train_rounds): 64 * plan(cell.scenario)["energy_wh"]["total"] for cell in sweep_}
    table = [[spent[s, t] for t in range(1, 5)] for s in range(1, 5)]
    assert np.round(table, 1).tolist() == [list(row) for row in PUBLISHED_WH]


@pytest.mark.parametrize("policy", ["skiptrain", "skiptrain-constrained"])
def test_the_energies_of_a_sweep_are_those_of_the_plan(policy: str, tmp_path: Path) -> None:
    """The emulator spends in each cell what `plan` says of the same scenario, and grid.csv tells it."""
    small = ("learning.local_steps=1", "learning.batch_size=2", f"policy.name={policy}", "energy.budget_scale=0.02")
    runs = sweep(tmp_path, *small)
    run_cells(runs, run_emulated, quiet())
    write_grid(load_results(runs), tmp_path)
    with (tmp_path / "grid.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    pairs = [("1", "1"), ("1", "3"), ("2", "1"), ("2", "3")]
    assert [(row["train_rounds"], row["sync_rounds"]) for row in rows] == pairs
    for row, cell in zip(rows, runs, strict=True):
        assert float(row["train_wh"]) == pytest.approx(plan(cell.scenario)["energy_wh"]["total"])


def test_the_files_of_a_sweep(tmp_path: Path) -> None:
    """A folder for each run and seed; the heatmap, alone and in a page that needs nothing else."""
    runs = sweep(tmp_path, seeds=(1, 2))
    run_cells(runs, MadeUpEmulation(), quiet())
    results = load_results(runs)
    page = write_grid(results, tmp_path).read_text(encoding="utf-8")
    assert len(list(tmp_path.glob("t*-s*-seed*/summary.json"))) == 8
    assert results[2, 3].seeds == [1, 2]
    assert results[2, 3].std("accuracy_max") == pytest.approx(0.01 / 2**0.5)
    assert page.count("src=") == page.count('src="data:image/png;base64,') == 1
    assert "Γtrain 2, Γsync 3" in page
    with Image.open(tmp_path / "grid.png") as image:
        assert image.width == 1200


def test_what_a_run_of_a_sweep_lacks_is_noted(tmp_path: Path) -> None:
    """Page and table have a note for the run that did not come to the end, and for no other."""
    runs = sweep(tmp_path)
    run_cells(runs, MadeUpEmulation(), quiet())
    assert ">note<" not in write_grid(load_results(runs), tmp_path).read_text(encoding="utf-8")
    path = tmp_path / "t1-s3" / "summary.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "rounds_ended": 40, "unfinished_nodes": ["n002"]}))
    lacks = "incomplete: 40 of 48 rounds of all nodes ended; n002 did not come to the end"
    assert lacks in write_grid(load_results(runs), tmp_path).read_text(encoding="utf-8")
    with (tmp_path / "grid.csv").open(newline="", encoding="utf-8") as file:
        assert [row["note"] for row in csv.DictReader(file)] == ["", lacks, "", ""]


def test_a_sweep_in_which_nothing_was_evaluated(tmp_path: Path) -> None:
    """Its energies are shown all the same."""
    runs = sweep(tmp_path)
    run_cells(runs, MadeUpEmulation(), quiet())
    for cell in runs:
        path = cell.folder / "summary.json"
        values = json.loads(path.read_text())
        path.write_text(json.dumps({**values, "accuracy": dict.fromkeys(values["accuracy"])}))
    assert "training energy, Wh" in write_grid(load_results(runs), tmp_path).read_text(encoding="utf-8")


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """From its arguments to its files."""
    monkeypatch.setattr("sim_harness.emulation.run_emulated", MadeUpEmulation())
    small = ["--nodes", "4", "--rounds", "6", "--set", "policy.name=skiptrain", "--set", "topology.degree=2"]
    words = ["grid", "demo", *small, "--train", "2", "--sync", "1-2", "--seeds", "4,5", "--out", str(tmp_path / "new")]
    assert main(words) == 0
    assert {path.name for path in (tmp_path / "new").iterdir()} == {
        *(f"t2-s{sync}-seed{seed}" for sync in (1, 2) for seed in (4, 5)),
        *("grid.csv", "grid.png", "grid.html"),
    }
    assert "run 4 of 4, t2-s2-seed5" in capsys.readouterr().out


def test_models_are_tested_at_the_end_of_each_period_unless_told_otherwise(tmp_path: Path) -> None:
    """`evaluation.every` of the scenario wins."""
    assert [cell.scenario.evaluation.every for cell in sweep(tmp_path, "evaluation.every=0")] == [2, 4, 3, 5]
    assert [cell.scenario.evaluation.every for cell in sweep(tmp_path, "evaluation.every=6")] == [6] * 4


def test_an_interrupted_sweep_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """What is finished is left alone; what was begun is resumed; the rest is run."""
    first, second, third = MadeUpEmulation(stop=2), MadeUpEmulation(), MadeUpEmulation()
    with pytest.raises(KeyboardInterrupt, match=r"t2-s1; go on with the same command"):
        run_cells(sweep(tmp_path), first, quiet())
    run_cells(sweep(tmp_path), second, quiet())
    run_cells(sweep(tmp_path), third, quiet())
    assert (first.ran, second.ran, third.ran) == (["t1-s1", "t1-s3"], ["t2-s1", "t2-s3"], [])
    assert second.resumed == ["t2-s1"]


def test_what_left_no_checkpoint_is_begun_anew(tmp_path: Path) -> None:
    """Its folder is emptied, as the emulator asks for; it holds nothing but that run."""
    with pytest.raises(KeyboardInterrupt):
        run_cells(sweep(tmp_path), MadeUpEmulation(stop=0, saves=False), quiet())
    again = MadeUpEmulation()
    run_cells(sweep(tmp_path), again, quiet())
    assert (again.ran[0], again.resumed) == ("t1-s1", [])
    assert not (tmp_path / "t1-s1" / "checkpoint").exists()


def test_what_is_not_a_sweeps_is_not_removed(tmp_path: Path) -> None:
    """Real agents' runs have a scenario.yaml and no checkpoint, too."""
    with pytest.raises(KeyboardInterrupt):
        run_cells(sweep(tmp_path), MadeUpEmulation(0, saves=False), quiet())
    journal = tmp_path / "t1-s1" / "nodes" / "n000"
    journal.mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"t1-s1/nodes is not a sweep's; give another --out, or remove"):
        run_cells(sweep(tmp_path), MadeUpEmulation(), quiet())
    assert journal.exists()


def test_a_run_of_other_settings_is_not_taken_for_one_of_the_sweep(tmp_path: Path) -> None:
    """Nothing is run, and the message names the folder and what differs; another engine is no difference."""
    run_cells(sweep(tmp_path), MadeUpEmulation(), quiet())
    run_cells(sweep(tmp_path, "engine.kind=sequential"), MadeUpEmulation(), quiet())
    emulation = MadeUpEmulation()
    with pytest.raises(ConfigError, match=r"t1-s1 holds a run with rounds 12, not 24; give another --out"):
        run_cells(sweep(tmp_path, "rounds=24"), emulation, quiet())
    with pytest.raises(ConfigError, match=r"t1-s1 holds a run with timing.round_deadline_s "):
        run_cells(sweep(tmp_path, "timing.round_deadline_s=5"), emulation, quiet())
    assert not emulation.ran


def test_progress_is_told_over_the_whole_sweep(tmp_path: Path) -> None:
    """Each run says which of how many it is, and what came of it."""
    shown = StringIO()
    run_cells(sweep(tmp_path), MadeUpEmulation(), Console(file=shown, width=100))
    lines = shown.getvalue().splitlines()
    assert lines[0] == "run 1 of 4, t1-s1"
    assert lines[1].startswith("  accuracy 54.5%, training energy ")
    assert lines[6].startswith("run 4 of 4, t2-s3; less than a minute left")


@pytest.mark.parametrize(
    ("elapsed_s", "done", "left", "words"),
    [
        (0.0, 0, 10, ""),
        (600.0, 10, 20, "; about 20 min left"),
        (3600.0, 10, 25, "; about 2 h 30 min left"),
        (10.0, 10, 10, "; less than a minute left"),
    ],
)
def test_time_left_goes_by_the_training_rounds_that_are_left(
    elapsed_s: float, done: int, left: int, words: str
) -> None:
    """The pace so far, for what is left."""
    assert time_left(elapsed_s, done, left) == words


@pytest.mark.parametrize(
    ("settings", "train", "message"),
    [
        (["policy.name=greedy"], [1], "greedy has no synchronisation rounds"),
        ([], [0, 1], "--train 0"),
        ([], list(range(1, 1000)), "more than 1000 runs"),
    ],
)
def test_a_sweep_that_makes_no_sense_is_refused(
    settings: list[str], train: list[int], message: str, tmp_path: Path
) -> None:
    """Before anything is run."""
    with pytest.raises(ConfigError, match=message):
        cells(scenario_of(*settings), train, [1, 2], (), tmp_path)


@pytest.mark.parametrize(("text", "numbers"), [("1-4", [1, 2, 3, 4]), ("2", [2]), ("4,1-2,2", [1, 2, 4]), ("0", [0])])
def test_ranges_are_read(text: str, numbers: list[int]) -> None:
    """Numbers and ranges, sorted, each once."""
    assert whole_numbers(text) == numbers


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "3-1", "1,,2", "1-1000000000000", "²"])
def test_what_is_no_range_is_refused(text: str) -> None:
    """The message says how to write one."""
    with pytest.raises(argparse.ArgumentTypeError, match=r"write whole numbers|is empty, or longer"):
        whole_numbers(text)
