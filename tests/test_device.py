"""How a device's parts are put together from its configuration."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from agent import device
from agent.config import AgentConfig, ModelSection, MqttSection, RunSection, TopologySection
from agent.core.wire import chunk_count
from agent.device import model_info, mqtt_transport, open_daemon, open_treasury, worker_config
from agent.energy_config import BudgetSection, EnergySection
from agent.errors import AgentError, ConfigError, TrainingError
from agent.learning.factory import ModelInfo
from agent.learning.worker import Description, TrainerWorker
from agent.mailbox import Mailbox
from agent.network.mqtt import MqttTransport
from tests.device_rig import device_config


@pytest.mark.parametrize(("n_params", "max_message_bytes", "window"), [(1000, 983_040, 64), (10**6, 100_000, 82)])
def test_two_models_may_wait_for_the_broker(tmp_path: Path, n_params: int, max_message_bytes: int, window: int) -> None:
    """The window of unacknowledged chunks grows with the model, since half a model is of no use to a peer."""
    config = device_config(tmp_path, mqtt=MqttSection(host="127.0.0.1", max_message_bytes=max_message_bytes))
    transport = mqtt_transport(config, n_params, Mailbox())("127.0.0.1", 1883)
    assert isinstance(transport, MqttTransport)
    assert transport._config.max_unacked == window >= 2 * chunk_count(n_params, max_message_bytes)
    transport.close("")


@pytest.mark.parametrize(
    ("topology", "run", "warned"),
    [
        (TopologySection(degree=0), RunSection(id="r", rounds=1, expect_nodes=2), True),
        (TopologySection(degree=0), RunSection(id="r", rounds=1, roster=("a", "b")), True),
        (TopologySection(degree=0), RunSection(id="r", rounds=1, roster=("a",)), False),
        (TopologySection(degree=1), RunSection(id="r", rounds=1, roster=("a", "b")), False),
        (TopologySection(kind="complete", degree=0), RunSection(id="r", rounds=1, roster=("a", "b")), False),
    ],
)
def test_a_node_without_neighbours_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, topology: TopologySection, run: RunSection, warned: bool
) -> None:
    """Degree 0 is how an experiment shows what no mixing does; a device says at each start that it learns alone."""
    with caplog.at_level(logging.WARNING, "agent.device"):
        open_daemon(device_config(tmp_path, topology=topology, run=run)).journal.close()
    assert [record.levelname for record in caplog.records] == ["WARNING"] * warned
    assert ("learns alone" in caplog.text) is warned


def test_a_relay_needs_no_gauge_for_the_budget_of_its_fleet(tmp_path: Path) -> None:
    """A share of a battery that nobody can tell ends an agent that trains; one that never trains spends nothing."""
    share = EnergySection(budget=BudgetSection(battery_share=0.5), sysfs_root=str(tmp_path))
    node = device_config(tmp_path).node
    with pytest.raises(ConfigError, match="no gauge tells"):
        open_treasury(device_config(tmp_path, energy=share))
    relay = open_treasury(device_config(tmp_path, energy=share, node=replace(node, role="relay")))
    assert (relay.allowance.limit_uj, relay.allowance.limit_rounds) == (None, None)
    relay.meter.end()


class Answering(TrainerWorker):
    """A worker whose child has described a user's model, or could not."""

    def __init__(self, config: AgentConfig, answer: Description) -> None:
        super().__init__(worker_config(config))
        self._answer = answer

    def submit_describe(self, done: object) -> None:
        """Answer at once."""
        assert callable(done)
        done(self._answer)


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (Description(None, "no module 'mine'", ConfigError), ConfigError, "mine:make: no module 'mine'"),
        (Description(None, "in a layer"), TrainingError, "mine:make: in a layer"),
        (Description(ModelInfo(16_000_001, b"", np.zeros(0, np.float32))), ConfigError, "16000001 parameters are more"),
    ],
)
def test_a_users_model_that_cannot_be_shared_is_refused(
    tmp_path: Path, answer: Description, kind: type[AgentError], message: str
) -> None:
    """What the child found out about it ends the start with the right class, and so the right exit code."""
    config = device_config(tmp_path, model=ModelSection(name="mine:make", input_shape=(1, 8, 8), classes=10))
    with pytest.raises(kind, match=message) as caught:
        model_info(config, Answering(config, answer))
    assert type(caught.value) is kind


def test_a_start_that_describes_a_model_is_shorter_than_systemd_waits() -> None:
    """Else the service would be killed before it could say why it does not come up."""
    unit = (Path(__file__).parents[1] / "systemd" / "skiptrain-agent.service").read_text(encoding="utf-8")
    assert "TimeoutStartSec=3min" in unit
    assert device.DESCRIBE_S <= 150
