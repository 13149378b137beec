"""A scenario: one learning job for a fleet on this machine, in YAML that is checked like a device's configuration."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated

import msgspec
import yaml
from msgspec import Meta

from agent.config import (
    Count,
    CountOrNone,
    EvaluationSection,
    LearningSection,
    PolicySection,
    Seconds,
    Seed,
    TopologySection,
    name_problem,
    shared_problems,
)
from agent.core.participation import POLICIES, effective_schedule
from agent.core.topology import feasible_degree
from agent.core.types import NodeId, Schedule, TopologySpec
from agent.energy.allowance import Allowance
from agent.energy.trace import published_rows
from agent.energy_config import BudgetSection, EnergySection, Scale, budget_terms, energy_problems
from agent.errors import ConfigError
from agent.learning.sources import SOURCES
from agent.yaml_file import Document, Section, choose
from sim_harness.devices import FleetDevice, published_device, recorded_device
from sim_harness.partition import PARTITIONS

MAX_NODES = 100_000
ENGINE_KINDS = ("default", "auto", "sequential", "native", "stacked")
"""`sequential` trains as a device does; the others train many nodes at once, see sim_harness/cohort."""


class PartitionSection(Section, frozen=True, kw_only=True):
    """How the training data is dealt out; `shards` for `kind: shard`."""

    kind: str = "shard"
    shards: Count = 2


class FleetDataSection(Section, frozen=True, kw_only=True):
    """The whole fleet's data; each node gets its part of the training set as data of its own."""

    source: str = "digits"
    path: str = ""
    layout: str = "auto"
    held_out: Annotated[float, Meta(ge=0, lt=1)] = 0.1
    """Share of its own samples that a node tests itself on and never trains on."""
    partition: PartitionSection = PartitionSection()


class FleetModelSection(Section, frozen=True, kw_only=True):
    """The model; input shape and classes are the data's where they are left out."""

    name: str = "small-cnn"
    input_shape: tuple[Count, Count, Count] | None = None
    classes: Annotated[int, Meta(ge=2)] | None = None


class FleetEnergySection(Section, frozen=True, kw_only=True):
    """Replayed energy: node i has the device i modulo their number; `budget_scale` multiplies published budgets."""

    devices: Annotated[tuple[str, ...], Meta(min_length=1)] = (
        "xiaomi-12-pro",
        "galaxy-s22-ultra",
        "oneplus-nord-2",
        "poco-x3",
    )
    workload: str = "cifar10"
    budget_scale: Scale = 1.0
    source: str = "trace"
    """`recording`: node i replays the file i modulo their number, and `budget` says what it may spend."""
    files: tuple[str, ...] = ()
    round_s: Seconds | None = None
    """Length of a training round, where a recording has no windows of its own."""
    round_j: Annotated[float, Meta(gt=0)] | None = None
    """What a training round is believed to cost before any was measured; left out: what the recording says."""
    budget: BudgetSection = BudgetSection()


class EngineSection(Section, frozen=True, kw_only=True):
    """How training is done; `live` trains as a device does, which is `sequential` in fp32."""

    kind: str = "default"
    """An engine's name; `default`: by model and CPU features; `auto`: the fastest of a short trial."""
    workers: CountOrNone = 0
    """`live`: processes that host the agents, 0: one each up to 32 nodes. `emulate`: threads or processes that train,
    0: one a core."""
    precision: str = "default"
    """fp32 or bf16; `default`: what the engine's rule says."""


class DiscoverySettings(Section, frozen=True, kw_only=True):
    """How the agents find each other: over mDNS, or by a list in their configuration."""

    mdns: bool = True
    static: bool = False


class Timing(Section, frozen=True, kw_only=True):
    """Deadlines; left out, they grow with the number of nodes that share this machine."""

    start_timeout_s: Seconds | None = None
    round_deadline_s: Seconds | None = None


class Scenario(Section, frozen=True, kw_only=True):
    """One scenario file."""

    version: Annotated[int, Meta(ge=1, le=1)] = 1
    name: str
    about: str = ""
    nodes: Annotated[int, Meta(ge=1, le=MAX_NODES)]
    rounds: Annotated[int, Meta(ge=1, le=10_000_000)]
    seed: Seed = 1
    policy: PolicySection = PolicySection()
    topology: TopologySection = TopologySection()
    data: FleetDataSection = FleetDataSection()
    model: FleetModelSection = FleetModelSection()
    learning: LearningSection = LearningSection()
    energy: FleetEnergySection = FleetEnergySection()
    evaluation: EvaluationSection = EvaluationSection()
    engine: EngineSection = EngineSection()
    discovery: DiscoverySettings = DiscoverySettings()
    timing: Timing = Timing()

    def node_ids(self) -> list[NodeId]:
        """Return the nodes' names, in order."""
        digits = max(3, len(str(self.nodes - 1)))
        return [NodeId(f"n{i:0{digits}d}") for i in range(self.nodes)]

    def device_types(self) -> int:
        """Return how many types of device there are."""
        return len(self.energy.files if self.energy.source == "recording" else self.energy.devices)

    def device(self, index: int) -> FleetDevice:
        """Return what the node with that index replays; ConfigError."""
        energy, which = self.energy, index % self.device_types()
        if energy.source == "recording":
            return recorded_device(energy.files[which], energy.round_s)
        return published_device(energy.workload, energy.devices[which], energy.budget_scale)

    def limits(self, index: int) -> tuple[int | None, int | None]:
        """Return a node's budget in microjoules and in rounds; None where the policy ignores budgets."""
        if not POLICIES[self.policy.name].obeys_budget:
            return None, None
        allowance = Allowance(budget_terms(self.energy_section(index)), self.device(index).published_uj)
        return allowance.limit_uj, allowance.limit_rounds

    def limit_uj(self, index: int) -> int | None:
        """Return a node's budget in microjoules; None where it has none, or the policy ignores it."""
        return self.limits(index)[0]

    def energy_section(self, index: int) -> EnergySection:
        """Return the section `energy` of a node's configuration."""
        energy, which = self.energy, index % self.device_types()
        if energy.source == "recording":
            return EnergySection(
                source="recording",
                file=str(Path(energy.files[which]).absolute()),
                round_s=energy.round_s,
                round_j=energy.round_j,
                budget=energy.budget,
            )
        return EnergySection(
            source="trace",
            device=energy.devices[which],
            workload=energy.workload,
            budget_scale=energy.budget_scale,
            budget=energy.budget,
        )

    def schedule(self) -> Schedule:
        """Return the schedule that the policy follows."""
        schedule = Schedule(self.policy.train_rounds, self.policy.sync_rounds, self.rounds)
        return effective_schedule(POLICIES[self.policy.name], schedule)

    def topology_spec(self) -> TopologySpec:
        """Return the graph's kind and the degree that this number of nodes can have."""
        topology = self.topology
        spec = TopologySpec(topology.kind, topology.degree, topology.edges)
        return TopologySpec(topology.kind, feasible_degree(spec, self.nodes), topology.edges)


def shipped() -> dict[str, str]:
    """Return the shipped scenarios: name -> text of its file."""
    folder = resources.files("sim_harness").joinpath("scenarios")
    files = sorted((item for item in folder.iterdir() if item.name.endswith(".yaml")), key=lambda item: item.name)
    return {item.name.removesuffix(".yaml"): item.read_text(encoding="utf-8") for item in files}


def load_scenario(name: str, overrides: Sequence[str] = ()) -> Scenario:
    """Read a shipped scenario by its name, or a file by its path; ConfigError says what is wrong, and where."""
    texts = shipped()
    if name in texts:
        document = Document(f"{name}.yaml", texts[name], overrides)
    elif name.endswith((".yaml", ".yml")) or "/" in name:
        document = Document.read(name, overrides)
    else:
        raise ConfigError(f"{choose(name, texts)}; or give the path of a .yaml file")
    scenario = document.to(Scenario)
    for where, message in _problems(scenario):
        raise document.error(where, message)
    return scenario


def dump_scenario(scenario: Scenario) -> str:
    """Return the resolved scenario as YAML that `load_scenario` reads again."""
    return yaml.safe_dump(msgspec.to_builtins(scenario), sort_keys=False, allow_unicode=True)


def _problems(scenario: Scenario) -> Iterator[tuple[str, str]]:
    yield from shared_problems(scenario.policy, scenario.topology, scenario.model.name)
    yield from _energy_problems(scenario)
    names = (
        ("$.data.source", scenario.data.source, list(SOURCES)),
        ("$.data.partition.kind", scenario.data.partition.kind, list(PARTITIONS)),
        ("$.engine.kind", scenario.engine.kind, list(ENGINE_KINDS)),
        ("$.engine.precision", scenario.engine.precision, ["default", "fp32", "bf16"]),
    )
    for where, name, known in names:
        if name not in known:
            yield where, choose(name, known)
    strangers = {node for edge in scenario.topology.edges for node in edge} - set(scenario.node_ids())
    if strangers:
        yield "$.topology.edges", f"no such nodes: {', '.join(sorted(strangers))}"
    if problem := name_problem(scenario.name):
        yield "$.name", problem
    if scenario.nodes > 1 and not (scenario.discovery.mdns or scenario.discovery.static):
        yield "$.discovery", "no way to find peers: set discovery.mdns, or discovery.static for a list, to true"


def _energy_problems(scenario: Scenario) -> Iterator[tuple[str, str]]:
    energy, budget = scenario.energy, scenario.energy.budget
    if energy.source not in {"trace", "recording"}:
        yield "$.energy.source", choose(energy.source, ["trace", "recording"])
        return
    if energy.source == "recording" and not energy.files:
        yield "$.energy", "source `recording` needs `files: [...]`"
        return
    if budget.joules_per_day is not None:
        yield "$.energy.budget.joules_per_day", "a scenario has no days; give `joules`, `battery_share` or `rounds`"
    if budget.battery_share is not None and budget.battery_wh is None:
        yield "$.energy.budget.battery_share", "no gauge here tells how much a battery holds; set battery_wh"
    for i in range(scenario.device_types()):
        for where, message in energy_problems(scenario.energy_section(i), None):
            yield (_energy_key(energy, i) if where == "$.energy" else where), message
        if energy.source == "recording":
            try:
                scenario.device(i)
            except ConfigError as error:
                yield f"$.energy.files[{i}]", str(error)
    given = budget_terms(scenario.energy_section(0)).is_given
    policy = POLICIES.get(scenario.policy.name)
    if energy.source == "recording" and policy is not None and policy.obeys_budget and not given:
        yield "$.energy", f"{scenario.policy.name} needs a budget: energy.budget.joules, battery_share or rounds"


def _energy_key(energy: FleetEnergySection, index: int) -> str:
    """Return which setting is wrong where the device with that index has no budget."""
    if not math.isfinite(energy.budget_scale):
        return "$.energy.budget_scale"
    if energy.workload not in {row.workload for row in published_rows()}:
        return "$.energy.workload"
    return f"$.energy.devices[{index}]"
