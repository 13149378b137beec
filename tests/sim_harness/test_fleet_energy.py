"""Boards by their watts: what each node gets, what it costs, and that a device replays the same."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest

from agent.core.budget import Cost, Ledger
from agent.energy.open import METERS
from agent.energy.recording import RecordedMeter
from agent.energy.trace import published_rows
from agent.energy_config import energy_settings
from agent.errors import ConfigError
from agent.profile import load_profile
from sim_harness.fleet import NodeFiles, lay_out, load_data
from sim_harness.planning import rounds_trained
from sim_harness.scenario import Scenario, dump_scenario, load_scenario
from tests.core.alone import ME, Alone, lone_run

PI, JETSON = "{profile: raspberry-pi-4b, round_s: 9}", "{profile: jetson-orin-nx, round_s: 1.5, battery_wh: 20}"
BUDGET = "budget: {battery_share: 0.03, battery_wh: 10}, recharge: {watts: 1}"


def scenario(*boards: str, more: str = BUDGET, **settings: object) -> Scenario:
    """Return the demo with these boards."""
    others = [f"{key}={value}" for key, value in settings.items()]
    return load_scenario("demo", [f"energy={{source: board, boards: [{', '.join(boards)}], {more}}}", *others])


def test_boards_are_dealt_in_turn() -> None:
    """Round and round until each has its count, and then anew."""
    got = scenario(PI.replace("}", ", count: 3, name: a}"), JETSON, PI.replace("}", ", count: 2, name: c}"), nodes=14)
    names = [got.device(i).device for i in range(14)]
    assert names == ["a", "jetson-orin-nx", "c", "a", "c", "a"] * 2 + ["a", "jetson-orin-nx"]
    assert got.device_types() == 6


def test_a_round_costs_watts_times_seconds() -> None:
    """The profile's watts, or those that are given; and every device says how long a round lasts."""
    profile = load_profile("raspberry-pi-4b").power.load_w
    assert profile is not None
    got = scenario(PI, JETSON, PI.replace("}", ", load_w: 2.5, name: slow}"))
    assert [got.device(i).cost_uj for i in range(3)] == [round(profile.value * 9e6), 44_100_000, 22_500_000]
    assert [got.device(i).train_s for i in range(3)] == [9, 1.5, 9]
    assert got.device(0).round_s(100) == 9
    assert got.device(0).spent_uj(3) == 3 * got.device(0).cost_uj


def test_rows_last_as_long_as_their_energy_at_full_power() -> None:
    """The authors made the energy of the watts and of three inferences for each of 640 or 112 samples."""
    rows = {(row.workload, row.device): row.seconds for row in published_rows()}
    assert rows["cifar10", "xiaomi-12-pro"] == pytest.approx(0.027 * 89_834 / 3_504_872 * 3 * 640, rel=1e-6)
    assert rows["femnist", "poco-x3"] == pytest.approx(0.076 * 1_690_046 / 3_504_872 * 3 * 112, rel=1e-6)
    assert load_scenario("demo").device(3).train_s == rows["cifar10", "poco-x3"]


def test_a_board_has_its_own_battery_and_panel() -> None:
    """Where it says none it has the section's."""
    got = scenario(PI, JETSON.replace("}", ", recharge_w: 0}"))
    assert [got.limit_uj(i) for i in range(2)] == [1_080_000_000, 2_160_000_000]
    assert [got.energy_section(i).recharge.watts for i in range(2)] == [1, 0]


def test_a_device_replays_what_the_harness_counts(tmp_path: Path) -> None:
    """The recording beside a laid-out node's configuration, opened as the agent does, costs the same for ever."""
    got = scenario(PI, JETSON)
    nodes = lay_out(got, load_data(got), tmp_path, "fleet", ("127.0.0.1", 1883))
    for i, files in enumerate(islice(nodes, 2)):
        meter = _opened(got, i, files)
        device = got.device(i)
        assert meter.prior == device.meter().prior == Cost(device.cost_uj, device.cost_uj)
        assert [meter.close() for _ in range(3)] == [device.meter().close()] * 3
        assert str(files.energy) in files.config.read_text(encoding="utf-8")


def _opened(got: Scenario, index: int, files: NodeFiles) -> RecordedMeter:
    settings = energy_settings(got.energy_section(index, str(files.energy)), None)
    meter = METERS[settings.source](settings)
    assert isinstance(meter, RecordedMeter)
    return meter


@pytest.mark.parametrize("policy", ["greedy", "skiptrain-constrained", "skiptrain-replanned"])
def test_the_plan_trains_in_the_same_rounds_as_the_machine(policy: str) -> None:
    """What a board costs is known before, and learnt again from each round."""
    got = scenario(
        PI,
        more="budget: {joules: 1000}",
        rounds=60,
        seed=7,
        policy=f"{{name: {policy}, train_rounds: 2, sync_rounds: 1}}",
    )
    cost = got.device(0).cost
    alone = Alone(lone_run(policy, 60, seed=7), (cost.expected_uj,), Ledger(1_000_000_000), cost, learns=True)
    alone.go()
    assert rounds_trained(got, 0, ME) == [record.round for record in alone.records if record.decision.train]


def test_boards_are_written_and_read_back(tmp_path: Path) -> None:
    """The resolved scenario gives an equal one."""
    path = tmp_path / "scenario.yaml"
    got = scenario(PI, JETSON)
    path.write_text(dump_scenario(got), encoding="utf-8")
    assert load_scenario(str(path)) == got


@pytest.mark.parametrize(
    ("energy", "message"),
    [
        ("{source: board}", "source `board` needs `boards: [...]` (at energy)"),
        ("{source: boards}", "did you mean board?"),
        (f"{{boards: [{PI}]}}", "this is for `source: board`, not for trace: leave it out (at energy.boards)"),
        ("{files: [a.csv]}", "this is for `source: recording`, not for trace: leave it out (at energy.files)"),
        (f"{{source: board, boards: [{PI}, {PI}]}}", "there is a raspberry-pi-4b already; give this one a `name`"),
        (f"{{source: board, boards: [{PI}]}}", "skiptrain-constrained needs a budget"),
        (f"{{source: board, boards: [{PI}], budget: {{battery_share: 0.1}}}}", "set battery_wh"),
        (f"{{source: board, boards: [{PI}], recharge: {{battery: true}}}}", "set recharge.watts"),
        ("{source: board, boards: [{profile: pi, round_s: 9}]}", "there is no 'pi'"),
        (
            "{source: board, boards: [{profile: x86, round_s: 9}]}",
            "nobody has said what x86 draws under load; set load_w",
        ),
        ("{source: board, boards: [{profile: jetson-nano, round_s: 9, load_w: 5}]}", "jetson-nano does not train: "),
        ("{source: board, boards: [{profile: x86, load_w: 5}]}", "missing"),
        ("{source: board, boards: [{profile: x86, round_s: 0, load_w: 5}]}", "> 0"),
    ],
)
def test_what_is_wrong_with_boards_is_said(energy: str, message: str) -> None:
    """With the key that is wrong."""
    with pytest.raises(ConfigError) as caught:
        load_scenario("demo", [f"energy={energy}"])
    assert str(caught.value).startswith("--set energy=")
    assert message in str(caught.value)
