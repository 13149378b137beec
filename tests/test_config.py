"""agent.yaml: what it takes, what it refuses, and with which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agent.config import (
    MAX_PARAMS,
    AgentConfig,
    DataSection,
    DiscoverySection,
    ModelSection,
    MqttSection,
    NodeSection,
    PolicySection,
    RunSection,
    TopologySection,
    load_config,
    problems,
    size_problems,
)
from agent.core.types import ModelShape, Schedule, TopologySpec
from agent.core.wire import HEADER_BYTES, chunk_count
from agent.energy.settings import EnergySettings
from agent.energy_config import EnergySection
from agent.errors import ConfigError
from agent.mailbox import MAX_BYTES
from tests.device_rig import as_yaml, device_config, write_config

TEXT = """\
version: 1
node: {id: kitchen, fleet: home}
run:
  id: digits
  rounds: 20
  roster: [kitchen, hall]
model: {input_shape: [1, 8, 8], classes: 10}
data:
  source: digits
mqtt:
  host: broker.lan
learning:
  lr: 1e-3
"""


def load(folder: Path, text: str, *overrides: str) -> AgentConfig:
    """Return what an agent.yaml with that text says."""
    path = folder / "agent.yaml"
    path.write_text(text, encoding="utf-8")
    return load_config(path, overrides)


def refusal(folder: Path, text: str, *overrides: str) -> str:
    """Return the words with which that is refused, without the folder."""
    with pytest.raises(ConfigError) as error:
        load(folder, text, *overrides)
    return str(error.value).removeprefix(f"{folder}/")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("energy.budget_scale=.inf", "<= 1000000"),
        ("energy.budget_scale=1000001", "<= 1000000"),
        ("energy.max_w=0", "> 0"),
    ],
)
def test_numbers_that_no_board_has_are_refused(tmp_path: Path, override: str, message: str) -> None:
    """A budget without an end, a board that draws nothing."""
    assert message in refusal(tmp_path, TEXT, override)


def test_a_short_file_is_filled_up_with_defaults(tmp_path: Path) -> None:
    """What a person must write is short; the rest is the published setting."""
    config = load(tmp_path, TEXT)
    assert config.learning.lr == 0.001
    assert (config.node_id, config.mqtt.port, config.energy.period) == ("kitchen", 1883, "")
    assert config.energy_settings() == EnergySettings("trace", "xiaomi-12-pro", "cifar10", 1.0)
    run = config.descriptor()
    assert run.roster == ("hall", "kitchen")
    assert (run.expect_nodes, run.policy) == (2, "skiptrain-constrained")
    assert run.schedule == Schedule(4, 4, 20)
    assert run.topology == TopologySpec("regular", 4)
    assert run.model == ModelShape("small-cnn", (1, 8, 8), 10)


def test_overrides_win_over_the_file(tmp_path: Path) -> None:
    """--set changes one key and leaves its neighbours."""
    config = load(tmp_path, TEXT, "run.rounds=7", "energy.budget_scale=0.5")
    assert (config.run.rounds, config.run.id, config.energy.budget_scale) == (7, "digits", 0.5)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  rounds:", "  round:", "agent.yaml:5:3: unknown key `round` (at run.round)"),
        ("rounds: 20", "rounds: many", "agent.yaml:5:3: Expected `int`, got `str` (at run.rounds)"),
        ("rounds: 20", "rounds: 0", "agent.yaml:5:3: Expected `int` >= 1 (at run.rounds)"),
        ("  rounds: 20\n", "", "agent.yaml:3:1: the key `rounds` is missing here (at run)"),
        ("  id: digits\n", "  id: a\n  id: b\n", "agent.yaml:5:3: `id` stands here twice"),
        ("home}", "home", "agent.yaml:3:4: did not find expected ',' or '}'"),
        ("version: 1", "version: 2", "agent.yaml:1:1: Expected `int` <= 1 (at version)"),
        ("lr: 1e-3", "lr: .nan", "agent.yaml:13:3: Expected `float` > 0.0 (at learning.lr)"),
        ("lr: 1e-3", "local_steps: 1e30", "agent.yaml:13:3: Expected `int`, got `float` (at learning.local_steps)"),
        ("rounds: 20", f"rounds: 20\n  seed: {2**63}", "agent.yaml:6:3: Expected `int` <= 9223372036854775807"),
        ("[1, 8, 8]", "[1, 8]", "agent.yaml:7:9: Expected `array` of length 3, got 2 (at model.input_shape)"),
        ("host: broker.lan", "max_message_bytes: 983041", "agent.yaml:11:3: Expected `int` <= 983040"),
        ("fleet: home", "fleet: no", "agent.yaml:2:21: Expected `str`, got `bool` (at node.fleet)"),
    ],
)
def test_a_mistake_is_shown_where_it_stands(tmp_path: Path, old: str, new: str, message: str) -> None:
    """File, line and column of the key, in the file that the operator wrote."""
    got = refusal(tmp_path, TEXT.replace(old, new))
    if "did not find" in message:  # PyYAML's own words differ between its releases
        assert got.startswith("agent.yaml:3:")
    else:
        assert got.startswith(message)


def test_an_error_of_an_override_names_the_setting(tmp_path: Path) -> None:
    """Types and meaning alike."""
    assert refusal(tmp_path, TEXT, "run.rounds=x").startswith("--set run.rounds=x: Expected `int`")
    assert refusal(tmp_path, TEXT, "policy.name=x").startswith("--set policy.name=x: there is no 'x'")
    assert refusal(tmp_path, TEXT, "run.roster=[hall]").startswith("--set run.roster=[hall]: the roster does not list")


NAMES = "is no name: use a-z, 0-9 and single hyphens inside, at most 31 characters"
PROBLEMS: list[tuple[dict[str, Any], str, str]] = [
    ({"node": NodeSection(id="A", fleet="f")}, "$.node.id", f"'A' {NAMES}"),
    ({"node": NodeSection(id="a", fleet="f/g")}, "$.node.fleet", f"'f/g' {NAMES}"),
    ({"run": RunSection(id="x" * 32, rounds=1, roster=("a",))}, "$.run.id", NAMES),
    ({"run": RunSection(id="r", rounds=1, roster=("a", "b\n"))}, "$.run.roster[1]", NAMES),
    ({"discovery": DiscoverySection(mdns=False, peers=("ok", "+"))}, "$.discovery.peers[1]", NAMES),
    ({"run": RunSection(id="r", rounds=1, roster=("b",))}, "$.run.roster", "does not list this node, a"),
    ({"run": RunSection(id="r", rounds=1, roster=("a", "a"))}, "$.run.roster", "stands here twice"),
    ({"run": RunSection(id="r", rounds=1)}, "$.run", "say who belongs to the run"),
    (
        {"run": RunSection(id="r", rounds=1, roster=("a",), expect_nodes=2)},
        "$.run.expect_nodes",
        "the roster has 1 nodes; leave expect_nodes out",
    ),
    ({"run": RunSection(id="r", rounds=1, roster=("a",), mode="async")}, "$.run.mode", "(known: barrier)"),
    ({"policy": PolicySection(name="skiptrane")}, "$.policy.name", "did you mean skiptrain?"),
    ({"topology": TopologySection(kind="rings-")}, "$.topology.kind", "did you mean rings?"),
    ({"topology": TopologySection(kind="file")}, "$.topology", "needs `edges: [[a, b], ...]`"),
    ({"topology": TopologySection(edges=(("a", "b"),))}, "$.topology.edges", "for kind `file`, not for regular"),
    (
        {"topology": TopologySection(kind="file", edges=(("a", "b"), ("c", "c")))},
        "$.topology.edges[1]",
        "c is no neighbour of its own",
    ),
    ({"topology": TopologySection(kind="rings", degree=3)}, "$.topology.degree", "3 is no even number from 2 on"),
    ({"topology": TopologySection(kind="rings", degree=0)}, "$.topology.degree", "0 is no even number from 2 on"),
    ({"model": ModelSection(name="lenet", input_shape=(1, 8, 8), classes=2)}, "$.model.name", "your own factory"),
    ({"data": DataSection(source="digit")}, "$.data.source", "did you mean digits?"),
    ({"data": DataSection(source="digits", test_source="x")}, "$.data.test_source", "there is no 'x'"),
    ({"data": DataSection(source="npz")}, "$.data", "data.source npz needs data.path"),
    ({"energy": EnergySection(source="solar")}, "$.energy.source", "there is no 'solar'"),
    ({"energy": EnergySection(device="toaster")}, "$.energy", "no published row for cifar10/toaster"),
    (
        {"energy": EnergySection(idle_w=6.4, max_w=6.4)},
        "$.energy.idle_w",
        "energy.idle_w is not below energy.max_w: 6.4 and 6.4 W",
    ),
    (
        {"node": NodeSection(id="a", fleet="f", profile="raspberry-pi-5"), "energy": EnergySection(max_w=2.0)},
        "$.energy.max_w",
        "energy.idle_w is not below energy.max_w: 2.36 and 2 W; the other one is the profile's",
    ),
    (
        {"run": RunSection(id="r", rounds=1, expect_nodes=2)},
        "$.discovery",
        "no way to find peers: discovery.mdns is off, and neither discovery.peers nor run.roster lists any",
    ),
    (
        {
            "mqtt": MqttSection(host="h", max_message_bytes=2048),
            "model": ModelSection(name="gn-lenet", input_shape=(3, 256, 256), classes=100),
        },
        "$.mqtt.max_message_bytes",
        "chunks are more than 4096",
    ),
    ({"mqtt": MqttSection()}, "$.mqtt", "no way to find the broker: set mqtt.host, or leave discovery.mdns on"),
    (
        {"mqtt": MqttSection(host="h", password_file="p")},  # noqa: S106  it names a file
        "$.mqtt.password_file",
        "a password needs mqtt.username",
    ),
]


@pytest.mark.parametrize(("sections", "where", "message"), PROBLEMS, ids=[f"{p[1]} {p[2]:.20}" for p in PROBLEMS])
def test_what_types_cannot_tell_is_found(tmp_path: Path, sections: dict[str, Any], where: str, message: str) -> None:
    """Each problem is found first, at its path, with what to do; and `load_config` raises it."""
    config = device_config(tmp_path, **sections)
    at, said = next(problems(config))
    assert (at, message in said) == (where, True)
    with pytest.raises(ConfigError, match=r"agent.yaml:\d+:\d+: "):
        load_config(write_config(config, tmp_path / "agent.yaml"))


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"run": RunSection(id="r", rounds=1, expect_nodes=1)},
        {"run": RunSection(id="r", rounds=1, expect_nodes=2), "discovery": DiscoverySection(mdns=False, peers=("b",))},
        {"discovery": DiscoverySection(), "mqtt": MqttSection(), "run": RunSection(id="r", rounds=1, expect_nodes=9)},
        {"model": ModelSection(name="mine:make", input_shape=(1, 8, 8), classes=2)},
        {"topology": TopologySection(kind="file", edges=(("a", "b"),)), "data": DataSection(source="npz", path="x")},
    ],
)
def test_a_right_configuration_survives_the_way_through_yaml(tmp_path: Path, sections: dict[str, Any]) -> None:
    """What provisioning and the harness write, an agent reads back as the same value."""
    config = device_config(tmp_path, **sections)
    assert list(problems(config)) == []
    assert load_config(write_config(config, tmp_path / "agent.yaml")) == config


SECTIONS: dict[str, Any] = yaml.safe_load(as_yaml(device_config(Path("/x"))))
KEYS = [*SECTIONS, *(f"{name}.{key}" for name, keys in SECTIONS.items() if isinstance(keys, dict) for key in keys)]
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.binary(max_size=4)
VALUES = SCALARS | st.lists(SCALARS, max_size=4) | st.dictionaries(st.text(max_size=5), SCALARS, max_size=2)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS), VALUES, min_size=1, max_size=3))
@example({"energy.budget_scale": float("inf")})
@example({"run.seed": 10**30})
@example({"node.id": "\ud800"})
def test_no_value_in_a_right_file_raises_anything_but_a_config_error(
    tmp_path_factory: pytest.TempPathFactory, changes: dict[str, Any]
) -> None:
    """A file with a few keys gone wild is a configuration that loads again equal, or one ConfigError."""
    path = tmp_path_factory.getbasetemp() / "wild.yaml"
    data = msgspec.to_builtins(device_config(Path("/x")))
    for key, value in changes.items():
        section, _, last = key.rpartition(".")
        target = data[section] if section else data
        if isinstance(target, dict):
            target[last] = value
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    try:
        config = load_config(path)
    except ConfigError as error:
        assert str(error).startswith(str(path))  # noqa: PT017  both outcomes are right
    else:
        assert load_config(write_config(config, path)) == config


@given(st.binary(max_size=200))
@example(TEXT.encode())
def test_no_bytes_raise_anything_but_a_config_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    """A file of noise is refused."""
    path = tmp_path_factory.getbasetemp() / "noise.yaml"
    path.write_bytes(content)
    try:
        assert load_config(path).node.id == "kitchen"
    except ConfigError as error:
        assert str(path) in str(error)  # noqa: PT017  both outcomes are right


def test_a_model_that_no_device_can_hold_is_refused_before_it_is_drawn(tmp_path: Path) -> None:
    """An input of ten million pixels a side is a slip of the pen, not a reason to run out of memory."""
    model = ModelSection(name="gn-lenet", input_shape=(3, 10**7, 10**7), classes=10)
    config = device_config(tmp_path, model=model)
    assert [where for where, _ in problems(config)] == ["$.model"]


def test_the_largest_model_fits_into_the_mailbox_of_a_peer() -> None:
    """`MAX_PARAMS` parameters in chunks, headers included, are less than a mailbox holds; one more is refused."""
    assert 4 * MAX_PARAMS + chunk_count(MAX_PARAMS) * HEADER_BYTES <= MAX_BYTES
    assert list(size_problems(MAX_PARAMS, MqttSection())) == []
    ((where, message),) = size_problems(MAX_PARAMS + 1, MqttSection())
    assert (where, "make it smaller" in message) == ("$.model", True)
