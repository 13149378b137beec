"""What a daemon says of its energy when it starts."""

from __future__ import annotations

from agent.core.budget import Cost, Ledger
from agent.energy.open import open_meter
from agent.energy.settings import EnergySettings
from agent.energy.source import Place, Wanted
from agent.page import budget_line


def test_an_estimate_is_not_called_measured() -> None:
    """Nor is a replayed row; only a sensor measures."""
    place, wanted = Place(), Wanted(idle_w=2.9, max_w=6.4)
    meter = open_meter(EnergySettings(source="estimate", place=place, wanted=wanted))
    try:
        line = budget_line(meter, Ledger(5_000_000, limit_rounds=3), Cost(1_000_000, 1_000_000))
    finally:
        meter.end()
    assert line == (
        "estimate (estimated, not measured), 5.0 of 5.0 J left, 3 training rounds left, "
        "a training round takes about 1.000 J"
    )
    replayed = open_meter(EnergySettings(source="trace", device="poco-x3", workload="cifar10"))
    assert budget_line(replayed, Ledger(None), None).startswith("trace (replayed, not measured), no budget")
