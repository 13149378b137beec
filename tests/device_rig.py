"""Configurations of devices that are ready to run, for the tests of the agent's own modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import yaml

from agent.config import (
    AgentConfig,
    DataSection,
    DiscoverySection,
    JournalSection,
    LearningSection,
    ModelSection,
    MqttSection,
    NodeSection,
    PolicySection,
    RunSection,
    TopologySection,
)
from agent.energy_config import EnergySection


def device_config(folder: Path, me: str = "a", roster: tuple[str, ...] = ("a",), **sections: Any) -> AgentConfig:
    """Return the configuration of the node `me`, all of whose files stay below `folder`; `sections` win."""
    defaults: dict[str, Any] = {
        "node": NodeSection(
            id=me, fleet="fleet", state_dir=str(folder / me / "state"), runtime_dir=str(folder / me / "run")
        ),
        "run": RunSection(id="toy", rounds=6, roster=roster, start_timeout_s=60.0, round_deadline_s=60.0),
        "policy": PolicySection(train_rounds=2, sync_rounds=1),
        "topology": TopologySection(kind="complete"),
        "model": ModelSection(name="small-cnn", input_shape=(1, 8, 8), classes=10),
        "learning": LearningSection(local_steps=4, batch_size=8, lr=0.05),
        "data": DataSection(source="digits", test_source="digits"),
        "energy": EnergySection(),
        "mqtt": MqttSection(host="127.0.0.1"),
        "discovery": DiscoverySection(mdns=False),
        "journal": JournalSection(model_every_rounds=2),
    }
    return AgentConfig(version=1, **{**defaults, **sections})


def as_yaml(config: AgentConfig) -> str:
    """Return `config` as the text of an agent.yaml."""
    text: str = yaml.safe_dump(msgspec.to_builtins(config), sort_keys=False)
    return text


def write_config(config: AgentConfig, path: Path) -> Path:
    """Write `config` to `path`, and return that."""
    path.write_text(as_yaml(config), encoding="utf-8")
    return path
