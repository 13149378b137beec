"""A fleet laid out on disk: every node's share of the data and its agent.yaml, as a device would have them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import yaml

from agent.config import (
    AgentConfig,
    DataSection,
    DiscoverySection,
    JournalSection,
    ModelSection,
    MqttSection,
    NodeSection,
    RunSection,
)
from agent.core.types import ModelShape, NodeId
from agent.errors import ConfigError, DataError
from agent.learning.data import Dataset, Indices, check, held_out
from agent.learning.sources import NEED_NO_PATH, load
from sim_harness.cohort.engine import Corpus
from sim_harness.partition.deal import Deal
from sim_harness.partition.registry import PARTITIONS
from sim_harness.scenario import Scenario

LOOPBACK = "127.0.0.1"
_BASE_S, _PER_NODE_S = 60.0, 6.0
"""Default deadlines: every trainer process on this machine imports torch in the first round."""
_ANSWER_S = 1.0
"""The embedded broker speaks MQTT 3.1.1 only, and leaves an offer of MQTT 5 unanswered."""


@dataclass(frozen=True, slots=True)
class FleetData:
    """The fleet's data, dealt out."""

    model: ModelShape
    train: Dataset
    """All training samples."""
    parts: tuple[Indices, ...]
    """Each node's samples, as ascending indices into `train`, in node order."""
    test: Dataset

    def share(self, index: int) -> Dataset:
        """Return the training set of the node with that index, as a copy."""
        return self.train.take(self.parts[index])

    def corpus(self, scenario: Scenario) -> Corpus:
        """Return the data as the engines take it, each node's own test samples apart as on a device."""
        train, own = [], []
        for node, part in zip(scenario.node_ids(), self.parts, strict=True):
            apart = held_out(self.train.y[part], scenario.data.held_out, scenario.seed, node)
            own.append(part[apart])
            train.append(np.delete(part, apart))
        return Corpus(self.model, self.train, tuple(train), tuple(own), self.test)


@dataclass(frozen=True, slots=True)
class NodeFiles:
    """Where one node of a fleet lives."""

    node: NodeId
    folder: Path

    @property
    def config(self) -> Path:
        """Its agent.yaml."""
        return self.folder / "agent.yaml"

    @property
    def state(self) -> Path:
        """Its journal."""
        return self.folder / "state"

    @property
    def energy(self) -> Path:
        """What a board replays: the recording of its one training round."""
        return self.folder / "energy.csv"

    @property
    def log(self) -> Path:
        """What its agent printed."""
        return self.folder / "agent.log"


def load_data(scenario: Scenario) -> FleetData:
    """Read the scenario's data and deal the training set out; DataError or ConfigError says what does not fit."""
    data = scenario.data
    if data.source not in NEED_NO_PATH and not data.path:
        raise ConfigError(f"scenario {scenario.name}: data.source {data.source} needs the data: --set data.path=FILE")
    shape = scenario.model.input_shape
    train = load(data.source, data.path, "train", input_shape=shape, layout=data.layout)
    test = load(data.source, data.path, "test", input_shape=shape, layout=data.layout)
    classes = scenario.model.classes or _classes(train, test)
    channels, height, width = (int(size) for size in train.x.shape[1:])
    model = ModelShape(scenario.model.name, shape or (channels, height, width), classes)
    for part in (train, test):
        check(part, model)
    deal = Deal(train.y, scenario.nodes, scenario.seed, data.partition, train.user)
    parts = PARTITIONS[data.partition.kind](deal)
    return FleetData(model, train, tuple(parts), test)


def _classes(*parts: Dataset) -> int:
    """Return how many classes the labels tell of, 0 without samples; DataError where they are no classes."""
    classes, samples = max((int(part.y.max()) + 1 for part in parts if len(part)), default=0), sum(map(len, parts))
    if classes > samples:
        raise DataError(
            f"{parts[0].origin}: labels go up to {classes - 1}, with {samples} samples in all; number the classes from "
            "0 on, or set model.classes"
        )
    return classes


def lay_out(
    scenario: Scenario, data: FleetData, folder: Path, fleet: str, broker: tuple[str, int] | None
) -> list[NodeFiles]:
    """Write every node's data and configuration under `folder`; without `broker` the agents look for one over mDNS."""
    test_path = folder / "data" / "test.npz"
    test_path.parent.mkdir(parents=True)
    np.savez(test_path, x=data.test.x, y=data.test.y)
    nodes = []
    for i, node in enumerate(scenario.node_ids()):
        files = NodeFiles(node, folder / "nodes" / node)
        files.folder.mkdir(parents=True)
        share = data.share(i)
        np.savez(files.folder / "data.npz", x=share.x, y=share.y)
        if scenario.energy.source == "board":
            scenario.device(i).write(files.energy)
        config = node_config(scenario, i, data.model, files, test_path, fleet, broker)
        files.config.write_text(yaml.safe_dump(msgspec.to_builtins(config), sort_keys=False), encoding="utf-8")
        nodes.append(files)
    return nodes


def node_config(  # noqa: PLR0917
    scenario: Scenario,
    index: int,
    model: ModelShape,
    files: NodeFiles,
    test_path: Path,
    fleet: str,
    broker: tuple[str, int] | None,
) -> AgentConfig:
    """Return the configuration of the node with that index."""
    ids, timing = scenario.node_ids(), scenario.timing
    seconds = _BASE_S + _PER_NODE_S * scenario.nodes
    host, port = broker or ("", 1883)
    return AgentConfig(
        version=1,
        node=NodeSection(id=files.node, fleet=fleet, state_dir=str(files.state), runtime_dir=str(files.folder / "run")),
        run=RunSection(
            id=scenario.name,
            rounds=scenario.rounds,
            seed=scenario.seed,
            expect_nodes=scenario.nodes,
            start_timeout_s=timing.start_timeout_s or seconds,
            round_deadline_s=timing.round_deadline_s or seconds,
        ),
        policy=scenario.policy,
        topology=scenario.topology,
        model=ModelSection(name=model.name, input_shape=model.input_shape, classes=model.classes),
        learning=scenario.learning,
        data=DataSection(
            source="npz",
            path=str(files.folder / "data.npz"),
            layout="nchw",
            held_out=scenario.data.held_out,
            test_source="npz",
            test_path=str(test_path),
        ),
        energy=scenario.energy_section(index, str(files.energy)),
        mqtt=MqttSection(host=host, port=port, answer_timeout_s=_ANSWER_S),
        discovery=DiscoverySection(
            mdns=scenario.discovery.mdns,
            interfaces=(LOOPBACK,),
            peers=tuple(ids) if scenario.discovery.static else (),
        ),
        journal=JournalSection(lines_bytes=0),
        evaluation=scenario.evaluation,
    )
