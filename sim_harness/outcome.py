"""One finished run as it stands beside others: its settings, its numbers, and its curves read row by row."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from agent.errors import ConfigError, DataError
from agent.yaml_file import Document
from sim_harness.measures import MEASURES, ConsensusRow
from sim_harness.run_files import check_whole, evaluation_row, load_summary, no_run, read_rows

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finished run without its curves."""

    folder: Path
    summary: Mapping[str, Any]
    text: str
    """scenario.yaml as it stands there."""
    settings: Mapping[str, Any]
    """The same as dotted keys with their values."""
    consensus: Sequence[ConsensusRow]
    """Empty where the run left no consensus.csv, as real agents do not."""
    numbers: Mapping[str, float | None]
    """The value of each of `MEASURES` by its name; None where the run does not tell it."""


@dataclass(frozen=True, slots=True)
class Curves:
    """What a run did over its rounds; all arrays have one entry for each evaluated round."""

    rounds: npt.NDArray[np.int64]
    """The rounds after which models were tested, ascending."""
    mean: Array
    """Accuracy over the nodes, 0 to 1."""
    std: Array
    worst: Array
    """Of the worst node, 0 to 1."""
    spent_j: Array
    """For training, of all nodes, from the run's beginning to the end of each of those rounds."""


def load_outcome(folder: Path) -> Outcome:
    """Read all of a run but its long tables; `DataError` if the folder holds no finished run."""
    summary = load_summary(folder)
    text, settings = _scenario(folder)
    path = folder / "consensus.csv"
    consensus = tuple(read_rows(path, _consensus_row)) if path.exists() else ()
    try:
        numbers = {measure.name: finite(measure.of(summary, consensus)) for measure in MEASURES}
    except (KeyError, TypeError, ValueError) as error:
        where = folder / "summary.json"
        raise DataError(f"{where} lacks a number, or has another there: {error!r}; run the scenario again") from error
    return Outcome(folder, summary, text, settings, consensus, numbers)


def load_curves(outcome: Outcome) -> Curves:
    """Read rounds.csv and evaluation.csv and keep their sums only: of 256 nodes and 1,000 rounds they have 90 MB."""
    total = outcome.summary["rounds"]
    spent_j = np.cumsum(_round_energy_j(outcome))
    tested: dict[int, list[float]] = {}
    for row in read_rows(outcome.folder / "evaluation.csv", evaluation_row):
        if row.accuracy is not None:
            tested.setdefault(row.round, []).append(row.accuracy)
    rounds = sorted(tested)
    if rounds and not 0 <= rounds[0] <= rounds[-1] < total:
        raise DataError(f"{outcome.folder / 'evaluation.csv'} has rounds that are not of the run in summary.json")
    evaluated = np.asarray(rounds, dtype=np.int64)
    mean, std, worst = (np.asarray([over(tested[round_]) for round_ in rounds]) for over in (np.mean, np.std, np.min))
    return Curves(evaluated, mean, std, worst, spent_j[evaluated])


def mean_curves(curves: Sequence[Curves]) -> Curves:
    """Return the mean over runs of the same experiment, at the rounds that all of them evaluated."""
    rounds = reduce(np.intersect1d, [found.rounds for found in curves])
    at = [np.searchsorted(found.rounds, rounds) for found in curves]

    def mean(columns: Iterable[Array]) -> Array:
        return np.asarray(np.mean([column[where] for column, where in zip(columns, at, strict=True)], axis=0))

    columns = zip(*((run.mean, run.std, run.worst, run.spent_j) for run in curves), strict=True)
    return Curves(rounds, *map(mean, columns))


def finite(value: float | None) -> float | None:
    """Return `value`, or None where it is no number: that of a model which has diverged."""
    return value if value is not None and math.isfinite(value) else None


def settings_of(text: str, name: str) -> dict[str, Any]:
    """Return the settings of a scenario's YAML as dotted keys with their values; ConfigError where it is no YAML."""
    return dict(_leaves(Document(name, text).data))


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict):
        yield prefix, value
        return
    for key, below in value.items():
        yield from _leaves(below, f"{prefix}.{key}" if prefix else str(key))


def _scenario(folder: Path) -> tuple[str, dict[str, Any]]:
    """Return scenario.yaml and its settings, read plainly: a run of another release may have other keys."""
    path = folder / "scenario.yaml"
    try:
        text = path.read_text(encoding="utf-8")
        return text, settings_of(text, str(path))
    except OSError as error:
        raise no_run(folder, error) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not text in UTF-8; run the scenario again") from error
    except ConfigError as error:
        raise DataError(f"{error}; run the scenario again") from error


def _round_energy_j(outcome: Outcome) -> Array:
    """Return what all nodes spent in each round; `DataError` where rows are missing."""
    rounds = outcome.summary["rounds"]
    spent_j = [0.0] * rounds

    def add(cells: Mapping[str, str]) -> None:
        round_ = int(cells["round"])
        if not 0 <= round_ < rounds:
            raise ValueError(f"round {round_} is not of the run in summary.json")
        spent_j[round_] += float(cells["energy_j"])

    rows = sum(1 for _ in read_rows(outcome.folder / "rounds.csv", add))
    check_whole(outcome.folder, outcome.summary, rows)
    return np.asarray(spent_j)


def _consensus_row(cells: Mapping[str, str]) -> ConsensusRow:
    accuracy, loss, distance = (float(cells[key]) for key in ("accuracy", "loss", "distance_rms"))
    return ConsensusRow(int(cells["round"]), accuracy, loss, distance)
