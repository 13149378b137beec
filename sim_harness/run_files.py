"""The files of a finished run, read back and checked: summary.json, rounds.csv and evaluation.csv."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from agent.core.types import RoundKind
from agent.errors import DataError

_KEYS: Final = (
    *("scenario", "nodes", "rounds", "seed", "policy", "topology"),
    *("accuracy", "energy_j", "budget", "messages", "per_node"),
)

_BEGUN: Final = ("checkpoint", "rounds.part.csv")
"""What an emulation keeps until it is finished."""

_LONGEST_FIELD: Final = 1 << 30
"""`mixed` names all neighbours: of thousands that is more than csv takes by itself."""
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class RoundRow:
    """The columns of one row of rounds.csv that a report needs."""

    node: str
    round: int
    kind: RoundKind
    trained: bool
    """Whether it was to train."""
    error: str
    """Why that training gave no model, or nothing."""
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


def _round_row(cells: Mapping[str, str]) -> RoundRow:
    trained = cells["decision"] == "train"
    return RoundRow(
        cells["node"],
        int(cells["round"]),
        RoundKind(cells["kind"]),
        trained,
        cells["error"] if trained and not cells["loss"] else "",
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
    line, usual = 1, csv.field_size_limit(_LONGEST_FIELD)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for line, cells in enumerate(csv.DictReader(file), start=2):  # noqa: B007  # the error names it
                yield parse(cells)
    except OSError as error:
        raise no_run(path.parent, error) from error
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise DataError(f"{path}:{line}: {error!r}; the file was cut or changed, run the scenario again") from error
    finally:
        csv.field_size_limit(usual)


def _check(run: Run) -> Run:
    """Return `run` if its files belong together."""
    check_whole(run.folder, run.summary, len(run.rounds))
    nodes, rounds = {entry["node"] for entry in run.summary["per_node"]}, range(run.summary["rounds"])
    stray = next((row for row in run.rounds if row.node not in nodes or row.round not in rounds), None)
    if stray is not None:
        where = f"{run.folder / 'rounds.csv'}: node {stray.node}, round {stray.round}"
        raise DataError(f"{where} is not of the run in summary.json; run the scenario again")
    return run


def check_whole(folder: Path, summary: Mapping[str, Any], rows: int) -> None:
    """Raise `DataError` unless rounds.csv has as many rows as rounds ended; older summaries don't tell."""
    ended = summary.get("rounds_ended", rows)
    if rows != ended:
        raise DataError(
            f"{folder / 'rounds.csv'} has {rows} rows, but summary.json tells of {ended} rounds that ended; the "
            "file was cut or changed, run the scenario again"
        )


def no_run(folder: Path, error: OSError) -> DataError:
    """Return the error for a folder that lacks a file of a finished run."""
    absent = isinstance(error, FileNotFoundError) and not (folder / "summary.json").exists()
    if absent and any((folder / name).exists() for name in _BEGUN):
        return DataError(
            f"{folder} holds a run that is not finished; go on with the command that began it and --resume"
        )
    where = Path(error.filename or folder)
    return DataError(f"{folder} holds no finished run: {where}: {error.strerror}; give the folder of --out")
