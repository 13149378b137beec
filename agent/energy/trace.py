"""Replayed energy: the eight published per-device rows of SkipTrain, as budgets and as the cost of a training round.

The rows are the authors' data (sacs-epfl/SkipTrain, two CSV files); energy_mwh_per_round is max_power_w times the time
of a training round, modelled and not measured. The budget is `rounds` x the cost of a round: the FEMNIST file's battery
column contradicts its rounds column (100 % against 50 %), so the rounds column counts.
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

from agent.core.budget import Cost
from agent.core.costs import CostHistory
from agent.core.types import Quality
from agent.energy.authors_csv import find_row
from agent.energy.meter import Reading
from agent.energy.settings import EnergySettings
from agent.errors import ConfigError

_UJ_PER_MWH = 3_600_000
_S_PER_MH = Decimal("3.6")
_PUBLISHED = Path(__file__).with_name("published.csv")


@dataclass(frozen=True, slots=True)
class PublishedRow:
    """One device of the paper under one workload; the published cost, rounded to a microjoule."""

    workload: str
    device: str
    cost_uj: int
    rounds: int
    seconds: float = 0.0
    """Of a training round, at its full power; 0 where the table has no watts."""

    def limit_uj(self, scale: float = 1.0) -> int:
        """Return the budget in microjoules: the published rounds, times `scale` (taken as the decimal it is)."""
        if not 0 <= scale < math.inf:
            raise ConfigError(f"energy.budget_scale is {scale}; a budget is a finite number of joules, from 0 on")
        return int(Fraction(str(scale)) * self.rounds * self.cost_uj)


def published_rows() -> tuple[PublishedRow, ...]:
    """Return the eight rows, in the order of the authors' files."""
    text = _PUBLISHED.read_text(encoding="utf-8")
    return tuple(
        PublishedRow(
            workload=row["workload"],
            device=row["device"],
            cost_uj=int((Decimal(row["energy_mwh_per_round"]) * _UJ_PER_MWH).to_integral_value()),
            rounds=int(row["rounds"]),
            seconds=float(Decimal(row["energy_mwh_per_round"]) / Decimal(row["max_power_w"]) * _S_PER_MH),
        )
        for row in csv.DictReader(text.splitlines())
    )


def published_row(workload: str, device: str) -> PublishedRow:
    """Return one row; ConfigError names those that there are."""
    rows = {(row.workload, row.device): row for row in published_rows()}
    try:
        return rows[workload, device]
    except KeyError:
        known = ", ".join(sorted(f"{a}/{b}" for a, b in rows))
        raise ConfigError(f"energy: no published row for {workload}/{device}; there are {known}") from None


class TraceMeter:
    """A device whose every training window costs exactly what the trace says, finished or not."""

    source = "trace"
    measured = learns = False
    history = CostHistory()

    def __init__(self, limit_uj: int | None, cost: Cost) -> None:
        self.limit_uj, self.prior = limit_uj, cost

    def trouble(self) -> str:
        """Return "": a row is always there."""
        return ""

    def open(self) -> None:
        """Nothing is measured."""

    def spent_uj(self) -> int:
        """Return 0: a replayed window is charged as a whole when it closes."""
        return 0

    def close(self) -> Reading:
        """Return the published cost."""
        return Reading(self.prior.expected_uj, Quality.REPLAYED)

    def lap(self) -> None:
        """Return None: rows know training only."""

    def mark(self) -> str:
        """Return "": there is no counter."""
        return ""

    def since(self, mark: str) -> None:
        """Return None: there is no counter."""

    def end(self) -> None:
        """Nothing was started."""


def open_trace(settings: EnergySettings) -> TraceMeter:
    """Return the meter of a published row, or of one in another file of that form; its budget as published, scaled."""
    if settings.file:
        other = find_row(Path(settings.file), settings.device)
        row = PublishedRow(settings.workload, other.device, other.cost_uj, other.rounds)
    else:
        row = published_row(settings.workload, settings.device)
    return TraceMeter(row.limit_uj(settings.budget_scale), Cost(row.cost_uj, row.cost_uj))


def no_meter() -> TraceMeter:
    """Return the meter of a device that never trains."""
    meter = TraceMeter(None, Cost(1, 1))
    meter.source = "none"
    return meter
