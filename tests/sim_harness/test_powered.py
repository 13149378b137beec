"""An emulated device's joules: what it replays, what recharging gives back, and what a power cut does to both."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from agent.core.events import EnergyFlowed
from agent.core.types import Quality
from agent.treasury import POLL_S
from sim_harness.powered import Powered, VirtualClock
from sim_harness.scenario import Scenario, load_scenario
from tests.sim_harness.toy_fleet import ToyFleet, toy_scenario

BOARD = ("energy.source=board", "energy.boards=[{profile: raspberry-pi-4b, round_s: 9.0}]", "energy.budget.joules=120")


def board(watts: float) -> Scenario:
    """Return boards that get so many watts back."""
    return load_scenario("demo", [*BOARD, f"energy.recharge.watts={watts}"])


@given(watts=st.sampled_from([0.1, 0.3, 1.0, 2.5]), steps=st.lists(st.floats(0.0, 40.0), max_size=30))
def test_recharging_gives_watts_times_seconds(watts: float, steps: list[float]) -> None:
    """To the microjoule, up to the last look at it, however the time is cut up."""
    clock = VirtualClock()
    powered = Powered(board(watts), 0, clock)
    credited = looked = 0
    for step in steps:
        clock.now += step
        flows = powered.flows()
        if flows:
            looked = clock.now
            assert all(isinstance(flow, EnergyFlowed) for flow in flows)
            credited += sum(flow.credit_uj for flow in flows if isinstance(flow, EnergyFlowed))
    assert credited == int(Fraction(str(watts)) * 1_000_000 * Fraction(looked))
    assert clock.now - looked <= POLL_S + max(steps, default=0.0)


def test_a_device_that_is_switched_on_begins_anew() -> None:
    """As its agent does: nothing is credited for the time that it was off."""
    clock = VirtualClock()
    powered = Powered(board(1.0), 0, clock)
    clock.now = 5_000.0
    powered.switch_on()
    assert powered.flows() == []
    clock.now += 20.0
    assert powered.flows() == [EnergyFlowed(credit_uj=20_000_000)]


def test_a_row_costs_what_was_published() -> None:
    """Every round the same, in quality `replayed`, with nothing to learn from."""
    scenario = toy_scenario()
    powered = Powered(scenario, 1, VirtualClock())
    readings = [powered.charge() for _ in range(3)]
    assert {reading.energy_uj for reading in readings} == {scenario.device(1).cost_uj}
    assert {reading.quality for reading in readings} == {Quality.REPLAYED}
    assert powered.detail(readings[0]) is None
    assert powered.round_s() == scenario.device(1).train_s
    assert powered.ledger(None).limit_uj == scenario.limit_uj(1)


def test_a_board_tells_what_its_rounds_cost() -> None:
    """6 W for 9 s, and a window from which the machine learns."""
    powered = Powered(board(0.0), 0, VirtualClock())
    assert (powered.recharges, powered.round_s()) == (False, 9.0)
    reading = powered.charge()
    detail = powered.detail(reading)
    assert reading.energy_uj == 54_000_000
    assert detail is not None
    assert (detail.seconds, detail.whole_uj) == (9.0, 54_000_000)


def test_a_fleet_spends_what_it_gets_back_and_no_more() -> None:
    """Boards with a panel train more rounds than their joules alone pay for, and never before they have them."""
    settings = (*BOARD, "policy.name=skiptrain-replanned", "rounds=40", "timing.round_deadline_s=60")
    poor = ToyFleet(toy_scenario(*settings)).run()
    sunny = ToyFleet(toy_scenario(*settings, "energy.recharge.watts=2.0")).run()
    for node, other in zip(poor.nodes, sunny.nodes, strict=True):
        assert node.snapshot is not None
        assert other.snapshot is not None
        assert node.snapshot.ledger.windows <= 2 < other.snapshot.ledger.windows
        ledger = other.snapshot.ledger
        assert ledger.credited_uj <= 2_000_000 * sunny.emulator.state.clock.now
        assert ledger.charged_uj <= 120_000_000 + ledger.credited_uj
