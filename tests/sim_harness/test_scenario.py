"""Scenarios: the shipped ones, what can be set, and where a mistake is pointed at."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from agent.errors import ConfigError, DataError
from sim_harness.__main__ import main
from sim_harness.fleet import load_data
from sim_harness.planning import plan
from sim_harness.scenario import dump_scenario, load_scenario, shipped

every_shipped = pytest.mark.parametrize("name", sorted(shipped()))

SETTINGS = {
    "nodes": 6,
    "rounds": 12,
    "seed": 9,
    "topology.kind": "rings",
    "topology.degree": 2,
    "policy.name": "skiptrain-replanned",
    "policy.train_rounds": 3,
    "policy.sync_rounds": 0,
    "data.source": "npz",
    "data.path": "some/data.npz",
    "data.partition.kind": "iid",
    "data.partition.shards": 3,
    "data.partition.alpha": 0.1,
    "data.partition.min_samples": 5,
    "data.partition.classes": 3,
    "data.partition.groups": 2,
    "data.partition.users_per_node": 1,
    "model.name": "gn-lenet",
    "learning.lr": 0.001,
    "learning.batch_size": 8,
    "learning.local_steps": 5,
    "energy.devices": ["poco-x3", "oneplus-nord-2"],
    "energy.workload": "femnist",
    "energy.budget_scale": 0.25,
    "energy.recharge.watts": 0.5,
    "evaluation.every": 0,
    "evaluation.samples": 100,
    "engine.kind": "sequential",
    "engine.workers": 2,
    "engine.precision": "fp32",
    "network.delay_s": [0.1, 0.5],
    "network.loss": 0.5,
    "network.bandwidth_bytes_s": 1000,
    "network.churn.share": 0.5,
    "network.stragglers.share": 0.5,
    "discovery.mdns": True,
    "discovery.static": True,
    "timing.round_deadline_s": 45.0,
}
"""Everything that documentation and scripts set, with a value that the demo does not have (where there is one)."""


def test_the_shipped_scenarios() -> None:
    """The demo, the paper's three graphs, and what else a fleet may meet come with the package."""
    assert sorted(shipped()) == [
        *("churn", "demo", "fashion-10-regular", "fashion-6-regular", "fashion-8-regular", "fleet", "lossy-wifi"),
        *("mnist-writers", "paper-10-regular", "paper-6-regular", "paper-8-regular", "pi-jetson-mix", "smoke-256"),
        "solar",
    ]


@every_shipped
def test_a_shipped_scenario_says_what_was_not_measured(name: str) -> None:
    """Numbers that are nobody's measurements are marked; the first line of the file is for people."""
    text = shipped()[name]
    assert text.startswith("# ")
    assert name in {"demo", "smoke-256"} or "ASSUMED HERE" in text or "NOT CHECKED" in text
    assert f"\nname: {name}\n" in text


@pytest.mark.parametrize(
    ("samples", "tested", "labels", "words"),
    [
        (0, 4, [0], "holds no samples"),
        (4, 0, [0], "holds no samples"),
        (4, 4, [10**9], "labels go up to 1000000000, with 8 samples in all"),
    ],
)
def test_data_that_cannot_be_learnt_is_said(
    samples: int, tested: int, labels: list[int], words: str, tmp_path: Path
) -> None:
    """Nothing to train on or to test with, and labels that are no classes: before anything is made of them."""
    path, x = tmp_path / "data.npz", np.zeros((4, 1, 8, 8), np.float32)
    y = np.resize(labels, 4)
    np.savez(path, x_train=x[:samples], y_train=y[:samples], x_test=x[:tested], y_test=y[:tested])
    settings = ("data.source=npz", f"data.path={path}", "data.layout=nchw", "data.partition.kind=iid")
    with pytest.raises(DataError, match=words):
        load_data(load_scenario("demo", settings))


@every_shipped
def test_a_shipped_scenario_on_the_bundled_digits_has_its_data(name: str) -> None:
    """Without a download there is enough for all of its nodes; the others ask for their data by name."""
    scenario = load_scenario(name)
    if scenario.data.source == "digits":
        assert len(load_data(scenario).parts) == scenario.nodes
    elif scenario.data.source == "npz":
        with pytest.raises(ConfigError, match=r"needs the data: --set data\.path=FILE"):
            load_data(scenario)
    else:
        assert "dataset-fashion-mnist" in shipped()[name]


@every_shipped
@pytest.mark.parametrize("nodes", [2, 3, 5, 7, 32, 256])
def test_a_shipped_scenario_can_be_planned_at_any_size(name: str, nodes: int) -> None:
    """Any number of nodes gets the nearest degree that it can have, and a plan."""
    scenario = load_scenario(name, [f"nodes={nodes}", "rounds=40"])
    degree = scenario.topology_spec().degree
    assert degree == min(scenario.topology.degree, nodes - 1)
    assert degree * nodes % 2 == 0
    assert len(set(scenario.node_ids())) == nodes
    planned = plan(scenario)
    assert planned["topology"]["degree"] == degree
    assert 0 < planned["energy_wh"]["total"] <= planned["energy_wh"]["max"] <= planned["energy_wh"]["d_psgd"]


def test_an_impossible_degree_is_lowered() -> None:
    """Three neighbours each among five nodes cannot be; two can."""
    assert load_scenario("demo", ["nodes=5", "topology.degree=3"]).topology_spec().degree == 2


@every_shipped
def test_a_dumped_scenario_is_read_back_as_it_was(name: str, tmp_path: Path) -> None:
    """scenario.yaml of a run holds the resolved scenario: reading it gives an equal one."""
    path = tmp_path / "scenario.yaml"
    for overrides in ([], ["seed=7", "learning.lr=1e-3", "energy.devices=[poco-x3]", "timing.start_timeout_s=9.5"]):
        scenario = load_scenario(name, overrides)
        path.write_text(dump_scenario(scenario), encoding="utf-8")
        assert load_scenario(str(path)) == scenario


@pytest.mark.parametrize("key", SETTINGS)
def test_a_setting_reaches_the_scenario(key: str) -> None:
    """Each documented --set key is taken, and stands where it says."""
    value = msgspec.json.encode(SETTINGS[key]).decode()
    found = msgspec.to_builtins(load_scenario("demo", [f"{key}={value}"]))
    for part in key.split("."):
        found = found[part]
    assert (list(found) if isinstance(found, tuple) else found) == SETTINGS[key]


def test_all_settings_together_can_be_planned() -> None:
    """They do not exclude each other; the last of two settings of one key wins, and flags win over --set."""
    overrides = [f"{key}={msgspec.json.encode(value).decode()}" for key, value in SETTINGS.items()]
    scenario = load_scenario("demo", [*overrides, "seed=10"])
    assert scenario.seed == 10
    assert plan(scenario)["schedule"] == {"train_rounds": 3, "sync_rounds": 0, "training_slots": 12}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("nope=1", "unknown key `nope`"),
        ("policy.names=greedy", "unknown key `names`"),
        ("policy.name=skiptran", "did you mean skiptrain?"),
        ("topology.kind=regula", "did you mean regular?"),
        ("data.source=digit", "did you mean digits?"),
        ("data.partition.kind=shards", "did you mean shard?"),
        ("model.name=small", "small-cnn"),
        ("engine.kind=fast", "there is no 'fast' (known: auto, default, native, sequential, stacked)"),
        ("engine.precision=fp16", "there is no 'fp16'; did you mean bf16?"),
        ("energy.devices=[poco-x3,poco-x4]", "no published row for cifar10/poco-x4"),
        ("energy.workload=mnist", "no published row for mnist/xiaomi-12-pro"),
        ("energy.budget_scale=-1", ">= 0"),
        ("energy.budget_scale=.inf", "<= 1000000"),
        ("energy.budget_scale=1e7", "<= 1000000"),
        ("energy.devices=[]", "length >= 1"),
        ("nodes=0", ">= 1"),
        ("rounds=1.5", "got `float`"),
        ("seed=-1", ">= 0"),
        ("seed=1e30", "got `float`"),
        ("policy.train_rounds=0", ">= 1"),
        ("learning.lr=.nan", "> 0"),
        ("topology.degree=-2", ">= 0"),
        ("name=Demo", "'Demo' is no name"),
        ("discovery.mdns=false", "no way to find peers"),
    ],
)
def test_a_wrong_setting_is_named(setting: str, message: str) -> None:
    """The error repeats the setting, says what is wrong with it, and offers what is near or known."""
    with pytest.raises(ConfigError) as caught:
        load_scenario("demo", [setting])
    assert str(caught.value).startswith(f"--set {setting}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("train_rounds: 2", "trainrounds: 2", "7:39: unknown key `trainrounds`"),
        ("train_rounds: 2", "train_rounds: two", "7:39: Expected `int`, got `str`"),
        ("kind: regular", "kind: regulra", "8:12: there is no 'regulra'; did you mean regular?"),
        ("seed: 1", "seed: 1\nseed: 2", "7:1: `seed` stands here twice"),
        ("poco-x3]", "poco]", "13:62: energy: no published row for cifar10/poco"),
        ("nodes: 8\n", "", "1:1: the key `nodes` is missing here"),
        ("rounds: 30", "rounds: [30", ""),
    ],
)
def test_a_wrong_file_is_named_with_line_and_column(old: str, new: str, message: str, tmp_path: Path) -> None:
    """The error begins with file:line:column."""
    path = tmp_path / "mine.yaml"
    text = shipped()["demo"]
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_scenario(str(path))
    assert str(caught.value).startswith(f"{path}:{message}")


@pytest.mark.parametrize(("name", "message"), [("demos", "did you mean demo?"), ("no/such.yaml", "cannot be read")])
def test_a_scenario_that_is_not_there(name: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A name that is none, or a path to nothing, ends with EX_CONFIG and one line."""
    assert main(["plan", name]) == 78
    said = capsys.readouterr()
    assert said.err.startswith("skiptrain-sim: ")
    assert message in said.err
    assert said.err.count("\n") == 1
    assert not said.out


@pytest.mark.parametrize("degree", [6, 8, 10])
def test_the_paper_scenarios_say_what_was_not_checked(degree: int) -> None:
    """What stands in them from memory is marked as such, in the file and where they are listed."""
    name = f"paper-{degree}-regular"
    assert "RECALLED FROM THE PAPER AND NOT CHECKED" in shipped()[name]
    scenario = load_scenario(name)
    assert "recalled, not checked" in scenario.about
    assert (scenario.nodes, scenario.rounds, scenario.topology.degree) == (256, 1000, degree)
    assert (scenario.learning.batch_size, scenario.learning.local_steps, scenario.learning.lr) == (32, 20, 0.1)


def test_scenarios_lists_them_all(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """`skiptrain-sim scenarios` shows each shipped name with its size."""
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["scenarios"]) == 0
    shown = capsys.readouterr().out
    for name in shipped():
        assert name in shown
    assert "recalled, not checked" in shown
