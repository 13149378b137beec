"""Replayed energy: the eight published rows, against the formula that they came from."""

from __future__ import annotations

import csv
from decimal import Decimal
from fractions import Fraction
from importlib import resources

import pytest

from agent.core.budget import Ledger, Reservation
from agent.core.types import Quality
from agent.energy.settings import EnergySettings
from agent.energy.trace import PublishedRow, open_trace, published_row, published_rows
from agent.errors import ConfigError

MOBILENET_PARAMETERS = 3_504_872
WORKLOADS = {"cifar10": (89_834, 640), "femnist": (1_690_046, 112)}
"""Parameters of the workload's model, and samples in a training round."""
ROUNDS = {
    "cifar10": {"xiaomi-12-pro": 272, "galaxy-s22-ultra": 324, "oneplus-nord-2": 681, "poco-x3": 272},
    "femnist": {"xiaomi-12-pro": 413, "galaxy-s22-ultra": 492, "oneplus-nord-2": 1034, "poco-x3": 413},
}
PUBLISHED_MWH = {
    ("cifar10", "xiaomi-12-pro"): Decimal("6.532875"),
    ("cifar10", "galaxy-s22-ultra"): Decimal("5.986076"),
    ("cifar10", "oneplus-nord-2"): Decimal("2.556283"),
    ("cifar10", "poco-x3"): Decimal("8.519120"),
    ("femnist", "xiaomi-12-pro"): Decimal("21.508007"),
    ("femnist", "galaxy-s22-ultra"): Decimal("19.707797"),
    ("femnist", "oneplus-nord-2"): Decimal("8.415981"),
    ("femnist", "poco-x3"): Decimal("28.047269"),
}


def test_each_published_cost_follows_from_its_columns() -> None:
    """E = t x P with t = time of MobileNet x share of its parameters x 3 (forward and backward) x samples, in mWh."""
    text = resources.files("agent.energy").joinpath("published.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    assert len(rows) == 8
    for row in rows:
        parameters, samples = WORKLOADS[row["workload"]]
        time_ms = Fraction(row["mobilenet_ms"]) * Fraction(parameters, MOBILENET_PARAMETERS) * 3 * samples
        energy_mwh = time_ms * Fraction(row["max_power_w"]) / 3600
        assert abs(energy_mwh - Fraction(row["energy_mwh_per_round"])) <= Fraction(1, 2 * 10**6)


def test_the_rows_are_those_of_the_paper() -> None:
    """Eight devices and workloads, with their rounds, and costs that are whole microjoules."""
    got = {(row.workload, row.device): row.rounds for row in published_rows()}
    assert got == {(w, device): rounds for w, devices in ROUNDS.items() for device, rounds in devices.items()}
    assert published_row("cifar10", "xiaomi-12-pro").cost_uj == 23_518_350
    for row in published_rows():
        assert isinstance(row.cost_uj, int)
        assert round(Decimal(row.cost_uj) / 3_600_000, 6) == PUBLISHED_MWH[row.workload, row.device]


@pytest.mark.parametrize("row", published_rows(), ids=lambda row: f"{row.workload}-{row.device}")
def test_a_budget_pays_for_exactly_its_rounds(row: PublishedRow) -> None:
    """272 rounds fit into the budget of 272 rounds, and not one more; in floats one of them would be lost."""
    meter = open_trace(EnergySettings("trace", row.device, row.workload, 1.0))
    ledger, rounds = Ledger(meter.limit_uj), 0
    while ledger.affords(meter.prior.upper_uj):
        ledger = ledger.reserve(Reservation("run", rounds, meter.prior.upper_uj))
        meter.open()
        ledger = ledger.settle(meter.close().energy_uj)
        rounds += 1
    assert rounds == row.rounds
    assert (ledger.left_uj, ledger.overspent_uj) == (0, 0)


@pytest.mark.parametrize("scale", ["0", "1", "0.1", "0.3", "1e-7", "2.5", "1000"])
def test_a_scaled_budget_is_an_exact_fraction(scale: str) -> None:
    """The scale counts as the decimal that was written: a third of a round less is no round less."""
    for row in published_rows():
        exact = Fraction(scale) * row.rounds * row.cost_uj
        assert row.limit_uj(float(scale)) == exact.numerator // exact.denominator


@pytest.mark.parametrize("scale", [-0.1, float("inf"), float("nan")])
def test_a_budget_that_is_no_number_of_joules_is_refused(scale: float) -> None:
    """The message names the setting."""
    with pytest.raises(ConfigError, match=r"energy.budget_scale is"):
        published_rows()[0].limit_uj(scale)


@pytest.mark.parametrize(("workload", "device"), [("cifar10", "pixel"), ("mnist", "poco-x3"), ("", "")])
def test_an_unknown_device_is_answered_with_those_that_there_are(workload: str, device: str) -> None:
    """All eight rows are named."""
    with pytest.raises(ConfigError) as error:
        open_trace(EnergySettings("trace", device, workload, 1.0))
    assert f"no published row for {workload}/{device}; there are cifar10/galaxy-s22-ultra, " in str(error.value)
    assert all(f"{row.workload}/{row.device}" in str(error.value) for row in published_rows())


def test_replayed_energy_is_the_same_however_the_training_went() -> None:
    """A window is charged as a whole when it closes, and calls itself replayed."""
    meter = open_trace(EnergySettings("trace", "xiaomi-12-pro", "cifar10", 1.0))
    meter.open()
    assert meter.spent_uj() == 0
    reading = meter.close()
    assert (reading.energy_uj, reading.quality) == (23_518_350, Quality.REPLAYED)
    assert (meter.measured, meter.learns, meter.lap(), meter.mark(), meter.trouble()) == (False, False, None, "", "")
