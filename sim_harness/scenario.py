"""A scenario: one learning job for a fleet on this machine, in YAML that is checked like a device's configuration."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import resources
from typing import Annotated

import msgspec
import yaml
from msgspec import Meta

from agent.config import (
    EvaluationSection,
    LearningSection,
    PolicySection,
    Seed,
    TopologySection,
    name_problem,
    shared_problems,
)
from agent.core.participation import POLICIES, effective_schedule
from agent.core.topology import feasible_degree
from agent.core.types import NodeId, Schedule, TopologySpec
from agent.energy.allowance import Allowance
from agent.energy_config import EnergySection, budget_terms
from agent.errors import ConfigError
from agent.learning.sources import SOURCES
from agent.yaml_file import Document, Section, choose
from sim_harness.devices import FleetDevice
from sim_harness.fleet_energy import FleetEnergySection, fleet_energy_problems
from sim_harness.network_sections import NetworkSection, network_problems
from sim_harness.partition.registry import PARTITIONS
from sim_harness.scenario_sections import (
    ENGINE_KINDS,
    DiscoverySettings,
    EngineSection,
    FleetDataSection,
    FleetModelSection,
    Timing,
)

MAX_NODES = 100_000


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
    network: NetworkSection = NetworkSection()
    engine: EngineSection = EngineSection()
    discovery: DiscoverySettings = DiscoverySettings()
    timing: Timing = Timing()

    def node_ids(self) -> list[NodeId]:
        """Return the nodes' names, in order."""
        digits = max(3, len(str(self.nodes - 1)))
        return [NodeId(f"n{i:0{digits}d}") for i in range(self.nodes)]

    def device_types(self) -> int:
        """Return after how many nodes the devices begin anew."""
        return self.energy.device_types()

    def device(self, index: int) -> FleetDevice:
        """Return what the node with that index replays; ConfigError."""
        return self.energy.device(index)

    def limits(self, index: int) -> tuple[int | None, int | None]:
        """Return a node's budget in microjoules and in rounds; None where the policy ignores budgets."""
        if not POLICIES[self.policy.name].obeys_budget:
            return None, None
        allowance = Allowance(budget_terms(self.energy_section(index)), self.device(index).published_uj)
        return allowance.limit_uj, allowance.limit_rounds

    def limit_uj(self, index: int) -> int | None:
        """Return a node's budget in microjoules; None where it has none, or the policy ignores it."""
        return self.limits(index)[0]

    def energy_section(self, index: int, file: str = "") -> EnergySection:
        """Return the section `energy` of a node's configuration; `file` is where a board's recording is written."""
        return self.energy.section(index, file)

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
    yield from fleet_energy_problems(scenario.energy, scenario.policy.name)
    yield from network_problems(scenario.network, scenario.node_ids())
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
