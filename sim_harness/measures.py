"""The numbers that runs are compared by: where each comes from, and how people and programs see it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from sim_harness.report import joules

J_PER_WH: Final = 3.6e3
_LARGE_WH: Final = 1e4
_WHOLE_FROM: Final = 99.95
"""What is less has decimals among its first three digits."""

Summary = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ConsensusRow:
    """One row of consensus.csv: the average of all models after a round, and how far the nodes are from it."""

    round: int
    accuracy: float
    loss: float
    distance_rms: float


Consensus = Sequence[ConsensusRow]


@dataclass(frozen=True, slots=True)
class Measure:
    """One number of a run: its name for programs, its heading for people, and where it comes from."""

    name: str
    heading: str
    of: Callable[[Summary, Consensus], float | None]
    """From summary.json and consensus.csv; None where the run does not tell it."""
    show: Callable[[float], str]


def jain(values: Iterable[float]) -> float | None:
    """Return Jain's fairness index (sum x)^2 / (n sum x^2): 1 if all are equal, 1/n if one has everything.

    None where there are no values, or all are 0. Source: R. Jain, D. Chiu, W. Hawe, DEC-TR-301, 1984.
    """
    x = np.asarray(list(values), dtype=np.float64)
    squares = float(x @ x)
    return float(x.sum()) ** 2 / (len(x) * squares) if squares else None


def fairness(summary: Summary, key: str) -> float | None:
    """Return Jain's index over the types of device, each with the mean of its nodes; None if a node has no value."""
    by_device: dict[str, list[float]] = {}
    for entry in summary["per_node"]:
        if entry[key] is None:
            return None
        by_device.setdefault(entry["device"], []).append(entry[key])
    return jain(float(np.mean(values)) for values in by_device.values())


def percent(fraction: float) -> str:
    """Return a share for people."""
    return f"{fraction:.1%}"


def watt_hours(amount_wh: float) -> str:
    """Return an energy with the unit that suits it."""
    return f"{amount_wh / 1e3:,.2f} kWh" if amount_wh >= _LARGE_WH else f"{amount_wh:,.2f} Wh"


def _points_per_kwh(summary: Summary, _: Consensus) -> float | None:
    mean, train_j = summary["accuracy"]["mean"], summary["energy_j"]["train"]
    return None if mean is None or not train_j else 100 * mean / (train_j / J_PER_WH / 1e3)


def _share_of_d_psgd(summary: Summary, _: Consensus) -> float | None:
    whole_j = summary["energy_j"]["d_psgd_equivalent"]
    return summary["energy_j"]["train"] / whole_j if whole_j else None


def _at(*keys: str) -> Callable[[Summary, Consensus], float | None]:
    """Return how to read one number of summary.json."""

    def read(summary: Summary, _: Consensus) -> float | None:
        value: Any = summary
        for key in keys:
            value = value[key]
        return None if value is None else float(value)

    return read


def significant(value: float) -> str:
    """Return three significant digits, zeros at the end too; whole numbers from 100 on, without exponents."""
    return f"{value:#.3g}" if abs(value) < _WHOLE_FROM else f"{value:,.0f}"


def _whole(value: float) -> str:
    return f"{value:,.0f}"


def _size(amount_bytes: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if amount_bytes >= size:
            return f"{amount_bytes / size:,.2f} {unit}"
    return f"{amount_bytes / 1e3:,.1f} kB"


MEASURES: Final = (
    Measure("accuracy_mean", "accuracy, mean of nodes", _at("accuracy", "mean"), percent),
    Measure("accuracy_std", "accuracy, std of nodes", _at("accuracy", "std"), percent),
    Measure("accuracy_min", "accuracy, worst node", _at("accuracy", "min"), percent),
    Measure("accuracy_max", "accuracy, best node", _at("accuracy", "max"), percent),
    Measure("accuracy_consensus", "accuracy, average model", _at("accuracy", "consensus"), percent),
    Measure("distance_rms", "distance to average model", lambda _, c: c[-1].distance_rms if c else None, significant),
    Measure("train_j", "training energy, joules", _at("energy_j", "train"), joules),
    Measure("train_wh", "training energy, Wh", lambda s, _: s["energy_j"]["train"] / J_PER_WH, watt_hours),
    Measure("share_of_d_psgd", "share of D-PSGD's energy", _share_of_d_psgd, percent),
    Measure("points_per_kwh", "accuracy points per kWh", _points_per_kwh, significant),
    Measure("training_rounds", "training rounds, all nodes", _at("training_rounds", "total"), _whole),
    Measure(
        "jain_training_rounds",
        "Jain index, device types' training rounds",
        lambda s, _: fairness(s, "training_rounds"),
        "{:.4f}".format,
    ),
    Measure(
        "jain_accuracy", "Jain index, device types' accuracy", lambda s, _: fairness(s, "accuracy"), "{:.4f}".format
    ),
    Measure("messages_delivered", "models delivered", _at("messages", "delivered"), _whole),
    Measure("messages_missing", "models missing", _at("messages", "missing"), _whole),
    Measure("bytes_delivered", "bytes delivered", _at("bytes", "delivered"), _size),
)
