"""agent.yaml: what one device must be told, as frozen values; the same sections stand in a scenario of the harness."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from socket import AF_INET, inet_pton
from typing import Annotated

from msgspec import Meta

from agent.core.participation import POLICIES
from agent.core.topology import TOPOLOGIES
from agent.core.types import NODE_ID, ModelShape, NodeId, RunDescriptor, Schedule, TopologySpec
from agent.core.wire import HEADER_BYTES, MAX_MESSAGE_BYTES, chunk_count
from agent.energy.allowance import Terms
from agent.energy.settings import EnergySettings
from agent.energy_config import EnergySection, budget_terms, energy_problems, energy_settings, found_settings
from agent.errors import ConfigError
from agent.journal import ROTATE_BYTES
from agent.learning.factory import is_factory
from agent.learning.model import MODELS, model_spec, n_params, parameters
from agent.learning.sources import LAYOUTS, NEED_NO_PATH, SOURCES
from agent.network.topics import no_name
from agent.profile import Profile, load_profile
from agent.yaml_file import Document, Section, choose

Count = Annotated[int, Meta(ge=1, le=1_000_000_000)]
CountOrNone = Annotated[int, Meta(ge=0, le=1_000_000_000)]
Seed = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Seconds = Annotated[float, Meta(gt=0, le=86_400 * 365)]
Port = Annotated[int, Meta(ge=1, le=65_535)]
Edge = tuple[str, str]

MAX_PARAMS = 16_000_000
"""A model of 64 MB: whole, it must fit into the 64 MiB that a peer's mailbox has for the chunks of models."""


class NodeSection(Section, frozen=True, kw_only=True):
    """Who this device is and where it keeps its state."""

    id: str
    fleet: str
    state_dir: str = "/var/lib/skiptrain"
    runtime_dir: str = "/run/skiptrain"
    profile: str = ""
    """What kind of board this is: the name of a shipped profile, or the path of one (docs/profiles.md)."""
    role: str = ""
    """`train`, or `relay`: shares and averages, and never trains. Left out: as the profile says, else `train`."""


class RunSection(Section, frozen=True, kw_only=True):
    """The learning job, the same on all of its nodes."""

    id: str
    rounds: Annotated[int, Meta(ge=1, le=10_000_000)]
    seed: Seed = 1
    roster: tuple[str, ...] = ()
    """Who belongs to the run; left out: `discovered`, whoever is there when `expect_nodes` are."""
    expect_nodes: CountOrNone = 0
    start_timeout_s: Seconds = 300.0
    round_deadline_s: Seconds = 120.0
    mode: str = "barrier"


class PolicySection(Section, frozen=True, kw_only=True):
    """Who trains when."""

    name: str = "skiptrain-constrained"
    train_rounds: Count = 4
    sync_rounds: CountOrNone = 4


class TopologySection(Section, frozen=True, kw_only=True):
    """Who is whose neighbour."""

    kind: str = "regular"
    degree: CountOrNone = 4
    edges: tuple[Edge, ...] = ()
    """For `kind: file`: pairs of node ids."""


class ModelSection(Section, frozen=True, kw_only=True):
    """The model; `name` may be a factory of yours, `package.module:function`."""

    name: str = "small-cnn"
    input_shape: tuple[Count, Count, Count]
    """Channels, height, width."""
    classes: Annotated[int, Meta(ge=2, le=1_000_000_000)]


class LearningSection(Section, frozen=True, kw_only=True):
    """Local training: plain SGD."""

    lr: Annotated[float, Meta(gt=0, le=1000)] = 0.1
    batch_size: Count = 32
    local_steps: Count = 20
    threads: Count = 1
    loss_limit: Annotated[float, Meta(gt=0, le=1e30)] = 1e4


class DataSection(Section, frozen=True, kw_only=True):
    """This device's own data, and the test set that is the same everywhere."""

    source: str
    path: str = ""
    layout: str = "auto"
    class_names: tuple[str, ...] = ()
    held_out: Annotated[float, Meta(ge=0, lt=1)] = 0.1
    test_source: str = ""
    test_path: str = ""


class MqttSection(Section, frozen=True, kw_only=True):
    """The broker; without a host it is looked for over mDNS."""

    host: str = ""
    port: Port = 1883
    username: str = ""
    password_file: str = ""
    keepalive_s: Annotated[int, Meta(ge=5, le=3600)] = 60
    answer_timeout_s: Seconds = 5.0
    """How long a broker may take to answer MQTT 5 before 3.1.1 is tried: some never answer what they do not speak."""
    max_message_bytes: Annotated[int, Meta(ge=HEADER_BYTES + 1024, le=MAX_MESSAGE_BYTES)] = MAX_MESSAGE_BYTES


class DiscoverySection(Section, frozen=True, kw_only=True):
    """How peers are found: over mDNS, and by the list `peers`."""

    mdns: bool = True
    interfaces: tuple[str, ...] = ()
    """Addresses to speak mDNS on; left out: where the system says."""
    peers: tuple[str, ...] = ()


class JournalSection(Section, frozen=True, kw_only=True):
    """What is written to disk, and how often."""

    model_every_rounds: Count = 5
    lines_bytes: CountOrNone = ROTATE_BYTES
    """How long rounds.jsonl and evaluations.jsonl may get before they begin anew, one older file kept; 0: for ever."""


class EvaluationSection(Section, frozen=True, kw_only=True):
    """How often the model is tested (0: never), and on how many samples (0: all)."""

    every: CountOrNone = 0
    samples: CountOrNone = 0


class AgentConfig(Section, frozen=True, kw_only=True):
    """One device's configuration file."""

    version: Annotated[int, Meta(ge=1, le=1)]
    node: NodeSection
    run: RunSection
    policy: PolicySection = PolicySection()
    topology: TopologySection = TopologySection()
    model: ModelSection
    learning: LearningSection = LearningSection()
    data: DataSection
    energy: EnergySection = EnergySection()
    mqtt: MqttSection = MqttSection()
    discovery: DiscoverySection = DiscoverySection()
    journal: JournalSection = JournalSection()
    evaluation: EvaluationSection = EvaluationSection()

    @property
    def node_id(self) -> NodeId:
        """The device's name."""
        return NodeId(self.node.id)

    def descriptor(self) -> RunDescriptor:
        """Return what all nodes of the run must agree on."""
        run, policy, topology = self.run, self.policy, self.topology
        return RunDescriptor(
            run_id=run.id,
            seed=run.seed,
            model=ModelShape(self.model.name, self.model.input_shape, self.model.classes),
            schedule=Schedule(policy.train_rounds, policy.sync_rounds, run.rounds),
            policy=policy.name,
            topology=TopologySpec(topology.kind, topology.degree, topology.edges),
            roster=tuple(NodeId(node) for node in sorted(run.roster)),
            expect_nodes=run.expect_nodes or len(run.roster),
            start_timeout_s=run.start_timeout_s,
            round_deadline_s=run.round_deadline_s,
            mode=run.mode,
        )

    @property
    def board(self) -> Profile | None:
        """The profile of this kind of board, if one is named; ConfigError."""
        return load_profile(self.node.profile) if self.node.profile else None

    @property
    def is_relay(self) -> bool:
        """Whether this node shares and averages, and never trains."""
        board = self.board
        return (self.node.role or ("relay" if board and board.support == "relay" else "train")) == "relay"

    def energy_settings(self) -> EnergySettings:
        """Return what the source of energy needs to know; the source may be `auto`."""
        return energy_settings(self.energy, self.board)

    def found_energy(self) -> EnergySettings:
        """Return the same with the source that `auto` finds; EnergyError where it finds none."""
        return found_settings(self.energy, self.board)

    def budget_terms(self) -> Terms:
        """Return how much may be spent."""
        return budget_terms(self.energy)

    def workload(self, source: str) -> str:
        """Return all that the cost of a training round depends on, as far as the configuration says it."""
        model, learning, energy = self.model, self.learning, self.energy
        shape = "x".join(map(str, (*model.input_shape, model.classes)))
        steps = f"{learning.local_steps}x{learning.batch_size} on {learning.threads}"
        return " ".join([model.name, shape, steps, source, self.node.profile, *energy.rails]).strip()


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> AgentConfig:
    """Read and check a device's configuration; ConfigError names file, line, column and what to do."""
    document = Document.read(path, overrides)
    config = document.to(AgentConfig)
    for where, message in problems(config):
        raise document.error(where, message)
    return config


def problems(config: AgentConfig) -> Iterator[tuple[str, str]]:
    """Yield what the types cannot tell, as (path, message)."""
    yield from shared_problems(config.policy, config.topology, config.model.name)
    yield from _board_problems(config)
    yield from _name_problems(config)
    yield from _roster_problems(config.run, config.node.id)
    yield from _model_problems(config.model, config.mqtt)
    yield from _data_problems(config.data)
    yield from _discovery_problems(config)


def _board_problems(config: AgentConfig) -> Iterator[tuple[str, str]]:
    """Yield what does not fit the board, or its sensor."""
    if config.node.role not in {"", "train", "relay"}:
        yield "$.node.role", choose(config.node.role, ["train", "relay"])
        return
    try:
        board = config.board
    except ConfigError as error:
        yield "$.node.profile", str(error)
        return
    if board is not None:
        yield from _ceiling_problems(config, board)
    yield from energy_problems(config.energy, board)
    yield from _budget_problems(config)


def _ceiling_problems(config: AgentConfig, board: Profile) -> Iterator[tuple[str, str]]:
    name, ceilings, learning = config.node.profile, board.learning, config.learning
    if board.support == "none":
        yield "$.node.profile", f"{name} is not supported: {board.reason}"
    if board.support == "relay" and config.node.role == "train":
        yield "$.node.role", f"{name} cannot train: {board.reason}"
    if config.is_relay:
        return
    if ceilings.threads is not None and learning.threads > ceilings.threads:
        yield "$.learning.threads", f"{name} has {ceilings.threads} at most"
    if ceilings.max_batch_size is not None and learning.batch_size > ceilings.max_batch_size:
        yield "$.learning.batch_size", f"{name} takes {ceilings.max_batch_size} at most"


def _budget_problems(config: AgentConfig) -> Iterator[tuple[str, str]]:
    """Yield where a policy that obeys a budget is given none."""
    policy, terms = POLICIES.get(config.policy.name), config.budget_terms()
    if policy is None or not policy.obeys_budget or config.is_relay or terms.is_given:
        return
    if config.energy_settings().source != "trace":
        yield (
            "$.energy",
            f"{config.policy.name} needs a budget: energy.budget.joules, joules_per_day, battery_share or rounds",
        )


def _name_problems(config: AgentConfig) -> Iterator[tuple[str, str]]:
    named = {"$.node.id": config.node.id, "$.node.fleet": config.node.fleet, "$.run.id": config.run.id}
    named |= {f"$.run.roster[{i}]": node for i, node in enumerate(config.run.roster)}
    named |= {f"$.discovery.peers[{i}]": node for i, node in enumerate(config.discovery.peers)}
    for where, name in named.items():
        if problem := name_problem(name):
            yield where, problem


def name_problem(name: str) -> str:
    """Return why `name` can be no fleet's, node's, run's or scenario's, or ""."""
    return "" if NODE_ID.fullmatch(name) else no_name(name)


def _roster_problems(run: RunSection, me: str) -> Iterator[tuple[str, str]]:
    if run.roster and me not in run.roster:
        yield "$.run.roster", f"the roster does not list this node, {me}"
    if len(set(run.roster)) != len(run.roster):
        yield "$.run.roster", "a node stands here twice"
    if not run.roster and not run.expect_nodes:
        yield "$.run", "say who belongs to the run: `roster: [ids]`, or `expect_nodes: N` to take whoever is found"
    if run.roster and run.expect_nodes not in (0, len(run.roster)):
        yield "$.run.expect_nodes", f"the roster has {len(run.roster)} nodes; leave expect_nodes out"
    if run.mode != "barrier":
        yield "$.run.mode", choose(run.mode, ["barrier"])


def _model_problems(model: ModelSection, mqtt: MqttSection) -> Iterator[tuple[str, str]]:
    if is_factory(model.name) or model.name not in MODELS:
        return
    try:
        size = n_params(parameters(model_spec(ModelShape(model.name, model.input_shape, model.classes))))
    except ConfigError as error:
        yield "$.model", str(error)
        return
    yield from size_problems(size, mqtt)


def size_problems(n_params: int, mqtt: MqttSection) -> Iterator[tuple[str, str]]:
    """Yield why a model of so many parameters cannot be shared, as (path, message)."""
    if n_params > MAX_PARAMS:
        yield "$.model", f"{n_params} parameters are more than {MAX_PARAMS}, what peers can take in: make it smaller"
        return
    try:
        chunk_count(n_params, mqtt.max_message_bytes)
    except ValueError as error:
        yield "$.mqtt.max_message_bytes", f"too small for a model of {n_params} parameters: {error}"


def _data_problems(data: DataSection) -> Iterator[tuple[str, str]]:
    if data.source not in SOURCES:
        yield "$.data.source", choose(data.source, SOURCES)
    if data.test_source and data.test_source not in SOURCES:
        yield "$.data.test_source", choose(data.test_source, SOURCES)
    if data.layout not in LAYOUTS:
        yield "$.data.layout", choose(data.layout, LAYOUTS)
    if data.source not in NEED_NO_PATH and not data.path:
        yield "$.data", f"data.source {data.source} needs data.path"


def _discovery_problems(config: AgentConfig) -> Iterator[tuple[str, str]]:
    run, discovery, mqtt = config.run, config.discovery, config.mqtt
    alone = max(run.expect_nodes, len(run.roster)) == 1
    if not (discovery.mdns or discovery.peers or run.roster or alone):
        yield (
            "$.discovery",
            "no way to find peers: discovery.mdns is off, and neither discovery.peers nor run.roster lists any",
        )
    if "/" in mqtt.host:
        yield "$.mqtt.host", "a name or an address is wanted here, without mqtt:// or the like; the port is mqtt.port"
    if not (discovery.mdns or mqtt.host):
        yield "$.mqtt", "no way to find the broker: set mqtt.host, or leave discovery.mdns on"
    for i, address in enumerate(discovery.interfaces):
        if not _is_address(address):
            yield f"$.discovery.interfaces[{i}]", f"{address!r} is no IPv4 address; give that of the interface"
    if mqtt.password_file and not mqtt.username:
        yield "$.mqtt.password_file", "a password needs mqtt.username"


def _is_address(text: str) -> bool:
    try:
        return bool(inet_pton(AF_INET, text))
    except (OSError, ValueError):
        return False


def shared_problems(policy: PolicySection, topology: TopologySection, model: str) -> Iterator[tuple[str, str]]:
    """Yield the problems of the sections that a scenario has, too."""
    names = (
        ("$.policy.name", policy.name, POLICIES),
        ("$.topology.kind", topology.kind, TOPOLOGIES),
    )
    for where, name, known in names:
        if name not in known:
            yield where, choose(name, known)
    if not is_factory(model) and model not in MODELS:
        yield "$.model.name", f"{choose(model, MODELS)}; or your own factory, `package.module:function`"
    if topology.kind == "file" and not topology.edges:
        yield "$.topology", "kind `file` needs `edges: [[a, b], ...]`"
    if topology.kind != "file" and topology.edges:
        yield "$.topology.edges", f"these are for kind `file`, not for {topology.kind}: leave them out"
    for i, (a, b) in enumerate(topology.edges):
        if a == b:
            yield f"$.topology.edges[{i}]", f"{a} is no neighbour of its own; every node mixes its own model anyway"
    if topology.kind == "rings" and (topology.degree % 2 or not topology.degree):
        yield "$.topology.degree", f"kind `rings` makes degree / 2 rings: {topology.degree} is no even number from 2 on"
