"""A sweep over Γtrain x Γsync: the runs that it takes, those that are finished already, and the time the rest takes."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Final, Protocol

from msgspec.structs import replace
from rich.console import Console

from agent.core.participation import POLICIES
from agent.errors import ConfigError
from sim_harness import checkpoint
from sim_harness.comparison import differences, within
from sim_harness.folders import looked_at
from sim_harness.measures import J_PER_WH, percent, watt_hours
from sim_harness.outcome import settings_of
from sim_harness.scenario import Scenario, dump_scenario
from sim_harness.shortfall import failed_trainings, missing_rounds

MAX_RUNS: Final = 1000
_MAY_DIFFER: Final = ("about", "engine", "discovery")
"""What a run may have settled for itself, and what an emulation has none of."""
_LEFT: Final = {"scenario.yaml", "checkpoint"}
"""What an emulation that ended before its first checkpoint leaves, besides its unfinished tables."""


class Runner(Protocol):
    """Runs a scenario to its end, in a folder that holds a begun run if `resume`; returns its summary."""

    def __call__(self, scenario: Scenario, out: Path, console: Console, *, resume: bool = False) -> dict[str, Any]:
        """Do that."""
        ...


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of the sweep."""

    train_rounds: int
    sync_rounds: int
    scenario: Scenario
    folder: Path

    @property
    def finished(self) -> bool:
        """Whether its summary, which is written last, is there."""
        return (self.folder / "summary.json").exists()

    @property
    def work(self) -> int:
        """What it costs beside other cells: its training rounds, which take by far the most time."""
        return max(1, self.scenario.schedule().training_slots())


def cells(scenario: Scenario, train: Sequence[int], sync: Sequence[int], seeds: Sequence[int], out: Path) -> list[Cell]:
    """Return the runs of a sweep in `out`; ConfigError where a sweep makes no sense.

    Without `seeds` the scenario's own one is taken, and does not show in the folders' names. Models are tested at the
    end of each period where the scenario does not say when.
    """
    if not POLICIES[scenario.policy.name].obeys_schedule:
        raise ConfigError(f"{scenario.policy.name} has no synchronisation rounds to sweep over; use --set policy.name=")
    if min(train) < 1:
        raise ConfigError("--train 0: nobody would ever train; give 1 or more")
    if len(train) * len(sync) * max(1, len(seeds)) > MAX_RUNS:
        raise ConfigError(f"the sweep has more than {MAX_RUNS} runs; give fewer of --train, --sync, --seeds")
    return [
        Cell(t, s, _scenario(scenario, t, s, seed), out / f"t{t}-s{s}{'' if not seeds else f'-seed{seed}'}")
        for t, s, seed in product(train, sync, seeds or [scenario.seed])
    ]


def run_cells(sweep: Sequence[Cell], run: Runner, console: Console) -> None:
    """Run what is not finished yet, and tell how much time is left; ConfigError where a folder holds another run."""
    for cell in sweep:
        _check_same(cell)
    begun = [cell for cell in sweep if not cell.finished]
    if len(begun) < len(sweep):
        console.print(f"{len(sweep) - len(begun)} of {len(sweep)} runs are finished already")
    started, done, left = time.monotonic(), 0, sum(cell.work for cell in begun)
    for number, cell in enumerate(begun, start=len(sweep) - len(begun) + 1):
        words = time_left(time.monotonic() - started, done, left)
        console.print(f"run {number} of {len(sweep)}, {cell.folder.name}{words}", markup=False, highlight=False)
        values = _run(cell, run, console)
        done, left = done + cell.work, left - cell.work
        console.print(f"  {_result(values)}", markup=False, highlight=False)


def _run(cell: Cell, run: Runner, console: Console) -> dict[str, Any]:
    """Run or resume one; what ended before its first checkpoint is begun anew."""
    resume = checkpoint.exists(cell.folder / "checkpoint")
    if not resume and (cell.folder / "scenario.yaml").exists():
        foreign = [path for path in cell.folder.iterdir() if not _is_left(path)]
        if foreign:
            raise ConfigError(f"{foreign[0]} is not a sweep's; give another --out, or remove {cell.folder}")
        shutil.rmtree(cell.folder)
    try:
        return run(cell.scenario, cell.folder, console, resume=resume)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped in {cell.folder}; go on with the same command") from None


def _is_left(path: Path) -> bool:
    return path.name in _LEFT or path.name.endswith(".part.csv")


def time_left(elapsed_s: float, done: int, left: int) -> str:
    """Return in words how long the rest will take at the pace so far; nothing before there is one."""
    if not done:
        return ""
    minutes = round(elapsed_s / done * left / 60)
    if not minutes:
        return "; less than a minute left"
    hours, rest = divmod(minutes, 60)
    return f"; about {hours} h {rest:02d} min left" if hours else f"; about {rest} min left"


def _scenario(scenario: Scenario, train_rounds: int, sync_rounds: int, seed: int) -> Scenario:
    policy = replace(scenario.policy, train_rounds=train_rounds, sync_rounds=sync_rounds)
    every = scenario.evaluation.every or train_rounds + sync_rounds
    return replace(scenario, seed=seed, policy=policy, evaluation=replace(scenario.evaluation, every=every))


def _check_same(cell: Cell) -> None:
    """Refuse a folder whose run, finished or not, is of other settings: its numbers would stand in the wrong cell."""
    path = cell.folder / "scenario.yaml"
    if not looked_at(path.exists):
        return
    there = settings_of(looked_at(lambda: path.read_text(encoding="utf-8")), str(path))
    wanted = settings_of(dump_scenario(cell.scenario), cell.scenario.name)
    keys = [key for key in differences(there, wanted) if not within(key, _MAY_DIFFER)]
    if keys:
        what = ", ".join(f"{key} {there.get(key)}, not {wanted.get(key)}" for key in keys[:3])
        raise ConfigError(f"{cell.folder} holds a run with {what}; give another --out, or remove that folder")


def _result(values: dict[str, Any]) -> str:
    mean, train_wh = values["accuracy"]["mean"], values["energy_j"]["train"] / J_PER_WH
    tested = "nothing was evaluated" if mean is None else f"accuracy {percent(mean)}"
    lacks = "; ".join(filter(None, [missing_rounds(values), failed_trainings(values)]))
    return f"{tested}, training energy {watt_hours(train_wh)}{lacks and f'; {lacks}'}"
