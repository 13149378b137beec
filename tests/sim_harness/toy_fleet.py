"""A fleet of emulated nodes with toy models, and what must hold after every event, whatever the network does."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from agent.core.effects import PublishUpdate
from agent.core.participation import POLICIES
from agent.core.round_state import Phase
from agent.core.topology import neighbours
from agent.core.types import ModelShape, NodeId, Params, RoundRecord
from sim_harness.arithmetic import Deferred
from sim_harness.cohort.engine import Outcome, Work
from sim_harness.emulated_fleet import fleet_of
from sim_harness.emulated_state import State, VirtualNode
from sim_harness.emulator import Emulator
from sim_harness.network_model import NetworkModel
from sim_harness.scenario import Scenario, load_scenario
from sim_harness.trainings import Trainings

N_PARAMS = 8


def toy_scenario(*settings: str) -> Scenario:
    """Return six nodes with tight budgets, twelve rounds, two neighbours each, and the settings given."""
    small = ("nodes=6", "rounds=12", "topology.degree=2", "energy.budget_scale=0.01", "timing.round_deadline_s=20")
    return load_scenario("demo", [*small, *settings])


def toy_train(works: Sequence[Work]) -> list[Outcome]:
    """Train without torch: a function of a work's seed and parameters, the same bits wherever it runs."""
    for work in works:
        np.multiply(work.params, np.float32(0.75), out=work.out)
        np.add(work.out, np.float32(work.seed % 1024 / 1024), out=work.out)
    return [Outcome(0.5, 1) for _ in works]


@dataclass
class Seen:
    """The observer: what the fleet has done."""

    records: dict[NodeId, list[RoundRecord]] = field(default_factory=lambda: defaultdict(list))
    notices: list[tuple[int, str]] = field(default_factory=list)
    evaluated: list[tuple[int, int]] = field(default_factory=list)

    def record(self, node: int, record: RoundRecord) -> None:  # noqa: ARG002
        """Keep a record."""
        self.records[record.node].append(record)

    def evaluate(self, node: int, round_: int, params: Params) -> None:  # noqa: ARG002
        """Keep who was to be tested."""
        self.evaluated.append((round_, node))

    def notice(self, node: int, message: str) -> None:
        """Keep a notice."""
        self.notices.append((node, message))


class Watched(Emulator):
    """An emulator that notes what nodes publish: a digest that one of them mixes has to be among it."""

    published: dict[tuple[NodeId, int], list[str]]

    def _publish(self, effect: PublishUpdate, node: VirtualNode) -> None:
        update = effect.update
        self.published.setdefault((update.sender, update.round), []).append(update.digest)
        super()._publish(effect, node)


class ToyFleet:
    """An emulator of toy models that can be run with all checks on."""

    def __init__(
        self,
        scenario: Scenario,
        train: Callable[[Sequence[Work]], list[Outcome]] = toy_train,
        initial: Params | None = None,
    ) -> None:
        self.scenario, self.seen = scenario, Seen()
        self.initial = np.linspace(-1, 1, N_PARAMS, dtype=np.float32) if initial is None else initial
        self.published: dict[tuple[NodeId, int], list[str]] = {}
        self.arithmetic = Deferred(1)
        self.trainings = Trainings(train, self.arithmetic.flush, local_steps=scenario.learning.local_steps)
        self.network = NetworkModel(scenario.network, scenario.node_ids(), scenario.seed)
        self.emulator = self.wired(fleet_of(scenario, ModelShape("toy", (1, 1, 1), 2)))
        self._clock_s, self._rounds = 0.0, [0] * scenario.nodes
        self.emulator.begin()

    def wired(self, state: State) -> Emulator:
        """Return an emulator of that state that tells this fleet's observer."""
        emulator = Watched(state, self.initial, self.network, self.trainings, self.arithmetic, self.seen)
        emulator.published = self.published
        return emulator

    @property
    def nodes(self) -> list[VirtualNode]:
        """All nodes, in order."""
        return self.emulator.state.nodes

    @property
    def unfinished(self) -> list[NodeId]:
        """Who has not come to the end."""
        return [node.id for node in self.nodes if not node.finished]

    def run(self) -> ToyFleet:
        """Go to the end with a check before every event, then check the whole."""
        assert self.emulator.run(self.check)
        self.arithmetic.settle()
        self.check()
        self._check_records()
        self.arithmetic.close()
        return self

    def check(self) -> bool:
        """Check what must hold between two events; return True, as `between` does."""
        state = self.emulator.state
        assert state.clock.now >= self._clock_s, "time went back"
        self._clock_s = state.clock.now
        assert not state.queue or state.queue[0][0] >= state.clock.now
        obeys = POLICIES[self.scenario.policy.name].obeys_budget
        for node in self.nodes:
            if node.machine is None:
                assert not node.watching
                continue
            ledger, machine = node.machine.ledger, node.machine
            if obeys:
                assert ledger.overspent_uj == 0
                assert ledger.left_uj is None or ledger.left_uj >= 0
            assert (ledger.reservation is not None) == (machine.phase is Phase.TRAINING) == (node.training is not None)
            assert machine.round >= self._rounds[node.index], f"{node.id} went back to an earlier round"
            self._rounds[node.index] = machine.round
            assert machine.deadline is not None
            assert node.armed is not None
            assert node.armed <= machine.deadline, "nothing would wake it"
        return True

    def _check_records(self) -> None:
        scenario, state = self.scenario, self.emulator.state
        run = self.nodes[0].config.run
        graph = neighbours(run.topology, run.roster, run.seed)
        published = {key: {str(digest) for digest in digests} for key, digests in self.published.items()}
        for node in self.nodes:
            own = self.seen.records[node.id]
            rounds = [record.round for record in own]
            assert rounds == sorted(set(rounds))
            ledger = node.snapshot.ledger if node.snapshot else node.powered.ledger(None)
            if node.finished:
                assert rounds[-1] == scenario.rounds - 1 or "ended before" in node.finished
                assert ledger.charged_uj == sum(record.energy_uj for record in own)
            for record in own:
                assert not record.mixed or math.isclose(sum(weight for *_, weight in record.mixed), 1.0)
                for sender, digest, weight in record.mixed:
                    assert weight >= -1e-12
                    assert sender == node.id or sender in graph[node.id]
                    assert sender == node.id or str(digest) in published[sender, record.round]
        most = max(len(near) for near in graph.values())
        assert state.traffic.messages_out <= state.traffic.messages_in * most


def same_end(fleet: ToyFleet, other: ToyFleet) -> None:
    """Assert that two fleets did the same things, to the bit."""
    assert fleet.seen == other.seen
    assert fleet.emulator.state.traffic == other.emulator.state.traffic
    assert fleet.emulator.state.clock == other.emulator.state.clock
    for node, twin in zip(fleet.nodes, other.nodes, strict=True):
        assert (node.finished, node.snapshot, node.absences) == (twin.finished, twin.snapshot, twin.absences)
        assert (node.model is None) == (twin.model is None)
        assert node.model is None or twin.model is None or node.model.tobytes() == twin.model.tobytes()
