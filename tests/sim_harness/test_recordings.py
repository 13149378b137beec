"""A recording replayed in the harness: the plan, the machine, and the budget take the recorded rounds one by one."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.core.budget import Cost, Ledger
from agent.core.types import RoundRecord
from agent.energy.recording import Head, Window, Writer, read_recording
from agent.errors import ConfigError
from sim_harness.planning import plan, rounds_trained
from sim_harness.scenario import Scenario, dump_scenario, load_scenario
from tests.core.alone import ME, Alone, lone_run

COSTS = tuple(900_000 + 37_000 * (i * i % 11) for i in range(23))


def recorded(path: Path, records: list[RoundRecord] | None = None) -> Path:
    """Write the recording of a device whose rounds cost COSTS, or what its records say."""
    windows = [Window(cost, cost, 2.5, i) for i, cost in enumerate(COSTS)]
    if records is not None:
        windows = [
            Window(r.energy_uj, r.window.whole_uj if r.window else None, r.window.seconds if r.window else 0.0, r.round)
            for r in records
            if r.decision.train
        ]
    with path.open("w", encoding="utf-8") as file:
        writer = Writer(file, Head(source="rapl", scope="package", rails=("package-0",), quality="measured"))
        writer.sample(0.0, 0)
        writer.sample(100.0, sum(COSTS))
        for window in windows:
            writer.window(window)
    return path


def scenario(file: Path, *settings: str) -> Scenario:
    """Return the demo with this recording."""
    return load_scenario(
        "demo",
        (
            "energy.source=recording",
            f"energy.files=[{file}]",
            "energy.budget={joules: 12}",
            "rounds=60",
            *settings,
        ),
    )


def test_a_recording_comes_back_as_it_was_written(tmp_path: Path) -> None:
    """Head, samples and windows."""
    got = read_recording(recorded(tmp_path / "pi.csv"))
    assert (got.head.source, got.head.rails, len(got.windows)) == ("rapl", ("package-0",), len(COSTS))
    assert [window.energy_uj for window in got.windows] == list(COSTS)
    assert got.samples == ((0.0, 0), (100.0, sum(COSTS)))


@pytest.mark.parametrize("policy", ["greedy", "skiptrain-constrained", "skiptrain-replanned"])
def test_the_plan_trains_in_the_same_rounds_as_the_measured_machine(tmp_path: Path, policy: str) -> None:
    """A machine that measured, recorded, and planned from its recording: the same rounds, bit for bit."""
    alone = Alone(lone_run(policy, 60, seed=7), COSTS, Ledger(12_000_000))
    alone.go()
    got = scenario(
        recorded(tmp_path / "pi.csv", alone.records),
        f"policy={{name: {policy}, train_rounds: 2, sync_rounds: 1}}",
        "seed=7",
    )
    trained = [record.round for record in alone.records if record.decision.train]
    assert rounds_trained(got, 0, ME) == trained


@pytest.mark.parametrize("recording", [True, False])
@pytest.mark.parametrize("policy", ["greedy", "skiptrain-constrained", "skiptrain-replanned"])
def test_a_budget_of_rounds_is_planned_as_the_machine_spends_it(tmp_path: Path, policy: str, recording: bool) -> None:
    """No joules bound it: what is left is counted in rounds, for a published row as for a recording."""
    settings = ["rounds=60", "seed=7", "energy.budget={rounds: 8}"]
    settings += [f"policy={{name: {policy}, train_rounds: 2, sync_rounds: 1}}"]
    if recording:
        alone = Alone(lone_run(policy, 60, seed=7), COSTS, Ledger(None, limit_rounds=8))
    else:
        got = load_scenario("demo", settings)
        cost = got.device(0).cost
        run = lone_run(policy, 60, seed=7)
        alone = Alone(run, (cost.expected_uj,), Ledger(None, limit_rounds=8), cost, learns=False)
    alone.go()
    if recording:
        got = scenario(recorded(tmp_path / "pi.csv", alone.records), *settings)
    trained = [record.round for record in alone.records if record.decision.train]
    assert rounds_trained(got, 0, ME) == trained
    most = plan(got)["training_rounds"]
    assert most["max"] == 8 * got.nodes
    assert most["total"] <= most["max"]
    assert 0 < most["expected"] <= most["max"]


def test_a_plan_adds_up_what_the_windows_cost(tmp_path: Path) -> None:
    """Not rounds times a mean: the first so many windows of the recording, for each node."""
    got = scenario(recorded(tmp_path / "pi.csv"), "policy.name=greedy", "nodes=2", "topology.degree=1")
    values = plan(got)
    counts = [len(rounds_trained(got, i, node)) for i, node in enumerate(got.node_ids())]
    assert values["energy_wh"]["total"] == pytest.approx(sum(sum(COSTS[:n]) for n in counts) / 3.6e9)
    assert values["energy_wh"]["total"] * 3600 <= 24
    assert values["budget_rounds"] == {"pi": 12_000_000 // (sum(COSTS) // len(COSTS))}


def test_samples_alone_are_cut_into_rounds(tmp_path: Path) -> None:
    """No agent was training: 100 s are 40 rounds of 2.5 s."""
    path = tmp_path / "idle.csv"
    with path.open("w", encoding="utf-8") as file:
        writer = Writer(file, Head(source="ina", scope="board", rails=("ina226",), quality="measured"))
        for i in range(101):
            writer.sample(float(i), 3_000_000 * i)
    with pytest.raises(ConfigError, match=r"set energy\.round_s"):
        scenario(path)
    device = scenario(path, "energy.round_s=2.5").device(0)
    assert {window.energy_uj for window in device.windows} == {7_500_000}
    assert len(device.windows) == 40


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("energy.files=[]",), "needs `files"),
        (("energy.budget={}",), "needs a budget"),
        (("energy.budget={joules_per_day: 5}",), "a scenario has no days"),
        (("energy.budget={battery_share: 0.5}",), "set battery_wh"),
        (("energy.source=rapl",), "energy.source"),
        (("energy.budget={joules: 5, rounds: 3}",), "one of joules, rounds"),
    ],
)
def test_what_a_recording_lacks_is_said(tmp_path: Path, settings: tuple[str, ...], message: str) -> None:
    """With the key that is wrong."""
    with pytest.raises(ConfigError, match="energy") as error:
        scenario(recorded(tmp_path / "pi.csv"), *settings)
    assert message in str(error.value)


def test_a_scenario_with_a_recording_is_written_whole(tmp_path: Path) -> None:
    """The resolved scenario reads again."""
    got = scenario(recorded(tmp_path / "pi.csv"))
    path = tmp_path / "again.yaml"
    path.write_text(dump_scenario(got))
    assert load_scenario(str(path)) == got


def test_a_known_cost_is_the_prior(tmp_path: Path) -> None:
    """Where somebody says what a round costs, the first one need not tell."""
    got = scenario(recorded(tmp_path / "pi.csv"), "energy.round_j=1.0")
    assert got.device(0).meter(got.energy.round_j).prior == Cost(1_000_000, 1_500_000)
