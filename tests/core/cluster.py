"""A fleet of RoundMachines on a virtual clock: real wire bytes in between, seeded faults, checks after every step.

It is the smallest driver that keeps the contract of agent/core/round_machine.py, with the agent's own Keeper for disks
that are full for a while. `Disk` survives a crash, a machine does not; `Node.spent_uj` is what training physically
cost, whatever the ledger says.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

import numpy as np

from agent.core import effects as fx
from agent.core import events as ev
from agent.core.budget import Cost, Ledger
from agent.core.participation import POLICIES
from agent.core.round_machine import RoundMachine
from agent.core.round_state import MachineConfig, Phase
from agent.core.seeding import generator, uniform
from agent.core.topology import neighbours
from agent.core.types import (
    ModelShape,
    NodeId,
    Params,
    Quality,
    Roster,
    RoundRecord,
    RunDescriptor,
    Schedule,
    Snapshot,
    TopologySpec,
)
from agent.core.wire import HEADER_BYTES, Assembler, Format, Refused, encode
from agent.journal import Journal
from agent.keeper import Keeper
from tests.core.transcript import describe_effect, describe_event

N_PARAMS = 12
COST = Cost(1_000, 1_000)
POLITE_STOP_S = 0.2
CHUNK_BYTES = HEADER_BYTES + 20  # so that a model of 48 bytes takes three chunks


def names(count: int) -> tuple[NodeId, ...]:
    """Return `count` node ids: a, b, c and so on."""
    return tuple(NodeId(chr(ord("a") + i)) for i in range(count))


def make_run(
    roster: tuple[NodeId, ...],
    *,
    rounds: int = 6,
    policy: str = "skiptrain-constrained",
    topology: TopologySpec | None = None,
    seed: int = 7,
    schedule: tuple[int, int] = (2, 1),
    expect_nodes: int = 0,
) -> RunDescriptor:
    """Return a small run: start timeout 30 s, round deadline 20 s, two training rounds to one synchronisation round."""
    return RunDescriptor(
        run_id="toy",
        seed=seed,
        model=ModelShape("toy", (1, 1, 1), 2),
        schedule=Schedule(*schedule, rounds),
        policy=policy,
        topology=topology or TopologySpec("complete"),
        roster=roster,
        expect_nodes=expect_nodes,
        start_timeout_s=30.0,
        round_deadline_s=20.0,
    )


def toy_training(params: Params, seed: int) -> Params:
    """Return a deterministic function of `params` and `seed`, with the same bits on every machine."""
    noise = generator(seed).integers(-512, 512, size=params.shape).astype(np.float32) / np.float32(1024)
    return np.asarray(params * np.float32(0.75) + noise, dtype=np.float32)


@dataclass(frozen=True)
class Crash:
    """A power cut: at a time, or right after the driver has done a number of effects; then `down_s` of silence."""

    node: NodeId
    down_s: float
    at_s: float | None = None
    after_effects: int | None = None


@dataclass(frozen=True)
class Cut:
    """A node that nobody reaches and that reaches nobody for a while, and is told so."""

    node: NodeId
    from_s: float
    to_s: float


@dataclass(frozen=True)
class Full:
    """A disk that takes nothing for a while, or just no model."""

    node: NodeId
    from_s: float
    to_s: float
    model_only: bool = False


@dataclass(frozen=True)
class Faults:
    """All that goes wrong, as a function of `seed`; times in seconds."""

    seed: int = 0
    delay_s: tuple[float, float] = (0.01, 0.05)
    training_s: tuple[float, float] = (0.5, 1.5)
    presence_s: float = 0.02
    timer_late_s: float = 0.0
    loss: float = 0.0
    crashes: tuple[Crash, ...] = ()
    cuts: tuple[Cut, ...] = ()
    full: tuple[Full, ...] = ()
    late: Mapping[NodeId, float] = field(default_factory=dict)
    """When a node is first switched on; infinity: never."""
    failing: frozenset[tuple[NodeId, int]] = frozenset()
    """Trainings that end in NaN."""
    stubborn: frozenset[tuple[NodeId, int]] = frozenset()
    """Trainings that would last for ever and do not listen to a polite stop."""


@dataclass
class Disk:
    """The fake journal: what a power cut leaves; OSError while it is full."""

    full: Callable[[bool], bool]
    """Whether a model, or anything else, finds no room."""
    folder: str = "disk"
    snapshot: Snapshot | None = None
    model: tuple[int, Params] | None = None
    records: list[RoundRecord] = field(default_factory=list)

    def save_state(self, snapshot: Snapshot) -> None:
        """Keep the state."""
        self._take()
        self.snapshot = snapshot

    def save_model(self, _run: str, round_: int, params: Params) -> None:
        """Keep the model."""
        self._take(model=True)
        self.model = (round_, params.copy())

    def append(self, record: Any) -> None:
        """Keep a record."""
        self._take()
        self.records.append(record)

    def _take(self, *, model: bool = False) -> None:
        if self.full(model):
            raise OSError("full")

    def last_records(self) -> dict[int, RoundRecord]:
        """Return the newest record of each round: a crash between record and state makes a round end twice."""
        return {record.round: record for record in self.records}


@dataclass
class Training:
    """A training under way."""

    start: fx.StartTraining
    began_s: float
    lasts_s: float


@dataclass
class Node:
    """One device: the machine that a crash destroys, and the disk that it does not."""

    id: NodeId
    config: MachineConfig
    ledger: Ledger
    disk: Disk
    keeper: Keeper | None = None
    machine: RoundMachine | None = None
    assembler: Assembler | None = None
    online: bool = False
    life: int = 0
    watching: frozenset[NodeId] = frozenset()
    ready: str = ""
    armed: float | None = None
    training: Training | None = None
    stop_polite: bool = False
    killed: bool = False
    effects_done: int = 0
    spent_uj: int = 0
    told_of_peers: bool = False
    highest_round: int = 0
    recorded: set[int] = field(default_factory=set)
    """Rounds that this life has recorded."""
    trainings: Counter[int] = field(default_factory=Counter)
    """StartTraining effects by round, over all lives."""
    finished: str = ""
    notices: list[str] = field(default_factory=list)


class Cluster:
    """The driver of all nodes; `run` hands in events in the order of their times until nothing is left to do."""

    def __init__(
        self,
        run: RunDescriptor,
        nodes: Iterable[NodeId],
        faults: Faults | None = None,
        *,
        limits: Mapping[NodeId, int] | None = None,
        lookahead: int = 2,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> None:
        self.run_ = run
        self.faults = faults or Faults()
        self.now = 0.0
        self.trace: list[str] = []
        self.form = Format(run.digest(), b"toyshape", N_PARAMS)
        self.chunk_bytes = chunk_bytes
        self.graphs = [neighbours(run.topology, run.roster, run.seed)] if run.roster else []
        self.published: dict[tuple[NodeId, int], dict[str, Params]] = {}
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._sent = itertools.count()
        self.nodes = {node: self._make(node, (limits or {}).get(node), lookahead) for node in nodes}
        for node in self.nodes.values():
            self.at(self.faults.late.get(node.id, 0.0), partial(self.switch_on, node))
        for crash in self.faults.crashes:
            if crash.at_s is not None:
                self.at(crash.at_s, partial(self.crash, self.nodes[crash.node], crash.down_s))
        for cut in self.faults.cuts:
            self.at(cut.from_s, self.presence_changed)
            self.at(cut.to_s, self.presence_changed)

    def _make(self, node: NodeId, limit: int | None, lookahead: int) -> Node:
        config = MachineConfig(node, self.run_, COST, lookahead_rounds=lookahead, save_model_every=1)
        return Node(node, config, Ledger(limit), Disk(partial(self.is_full, node)))

    # --- the clock

    def at(self, when: float, action: Callable[[], None]) -> None:
        """Do `action` at virtual time `when`."""
        if when != float("inf"):
            heapq.heappush(self._queue, (max(self.now, when), next(self._order), action))

    def run(self, until: float) -> Cluster:
        """Go on until every node that was ever switched on is done, nothing is left to do, or `until` has come."""
        while self._queue and self._queue[0][0] <= until and not self.all_done:
            self.now, _, action = heapq.heappop(self._queue)
            action()
        return self

    @property
    def all_done(self) -> bool:
        """Whether every node that is ever to be switched on has finished."""
        return all(node.finished for node in self.nodes.values() if self.faults.late.get(node.id, 0.0) != float("inf"))

    # --- power

    def switch_on(self, node: Node) -> None:
        """Start a machine from what the disk holds."""
        if node.online or node.finished:
            return
        disk, initial = node.disk, np.zeros(N_PARAMS, dtype=np.float32)
        params = disk.model[1] if disk.model else initial
        node.ledger = disk.snapshot.ledger if disk.snapshot else node.ledger
        node.machine = RoundMachine(node.config, params, node.ledger, disk.snapshot)
        node.keeper = Keeper(cast("Journal", disk), node.machine.run_hex, lambda: self.now)
        node.assembler = Assembler(self.form)
        node.online, node.watching, node.ready, node.armed = True, frozenset(), "", None
        node.training, node.recorded = None, set()
        node.highest_round = disk.snapshot.round if disk.snapshot and disk.snapshot.begun else 0
        self.trace.append(f"{self.now:9.3f} {node.id} on")
        self.step(node, ev.Started())
        self.presence_changed()

    def crash(self, node: Node, down_s: float) -> None:
        """Cut the power; switch it on again `down_s` later."""
        if not node.online or node.machine is None:
            return
        if node.training is not None:
            node.spent_uj += self._cost_so_far(node.training)
        saved = node.disk.snapshot.ledger if node.disk.snapshot else node.ledger
        reserved = saved.reservation.upper_uj if saved.reservation else 0
        assert saved.charged_uj + reserved >= node.spent_uj, f"{node.id}: a crash gave energy back"
        self.trace.append(f"{self.now:9.3f} {node.id} power cut")
        node.online, node.machine, node.training = False, None, None
        node.life += 1
        self.presence_changed()
        self.at(self.now + down_s, lambda: self.switch_on(node))

    # --- one step

    def step(self, node: Node, event: ev.Event) -> None:
        """Hand one event to a machine, do what it asks for in order, check everything, and arm its timer."""
        machine = node.machine
        assert machine is not None
        effects = machine.handle(event, self.now)
        self.trace.append(f"{self.now:9.3f} {node.id} < {describe_event(event)}")
        self.trace += [f"{'':9} {node.id}     > {describe_effect(effect)}" for effect in effects]
        for effect in effects:
            self._do(node, effect)
            node.effects_done += 1
            for crash in self.faults.crashes:
                if crash.node == node.id and crash.after_effects == node.effects_done:
                    self.crash(node, crash.down_s)
                    return
        self._check(node, machine)
        self._arm(node, machine)

    def _arm(self, node: Node, machine: RoundMachine) -> None:
        deadline, life = machine.deadline, node.life
        if deadline is None or deadline == node.armed:
            node.armed = deadline
            return
        node.armed = deadline

        def fire() -> None:
            if node.online and node.life == life and node.armed == deadline:
                node.armed = None
                node.armed = None
                self.step(node, ev.DeadlineReached())

        late = self.faults.timer_late_s * uniform(self.faults.seed, "timer", node.id, next(self._sent))
        self.at(deadline + late, fire)

    # --- effects

    def _do(self, node: Node, effect: fx.Effect) -> None:  # noqa: C901  one line a kind of effect
        assert node.keeper is not None
        match effect:
            case fx.SaveState(snapshot):
                node.keeper.save_state(snapshot)
            case fx.SaveModel(round_, params):
                node.keeper.save_model(round_, params)
            case fx.WatchNeighbours(peers, ready):
                node.watching, node.ready = peers, ready
                self.presence_changed()
            case fx.StartTraining():
                if node.keeper.behind:
                    self.at(self.now, partial(self._refuse, node, node.life, effect.round))
                else:
                    self._start_training(node, effect)
            case fx.StopTraining(_, at_once):
                self._stop_training(node, at_once=at_once)
            case fx.PublishUpdate():
                self._publish(node, effect)
            case fx.AppendRecord(record):
                self._append(node, record)
            case fx.Notify(message):
                node.notices.append(message)
            case fx.RunFinished(reason):
                node.online = False
                self.presence_changed()
                self._end(node, reason)
            case fx.Evaluate():
                pass

    def _start_training(self, node: Node, start: fx.StartTraining) -> None:
        saved = node.disk.snapshot
        assert node.training is None, f"{node.id} trains twice at a time"
        assert saved is not None
        assert saved.round == start.round, "training began before its round was durable"
        assert saved.decision is not None
        assert saved.decision.train
        assert saved.ledger.reservation is not None, "training began before its reservation was durable"
        assert (saved.ledger.reservation.run, saved.ledger.reservation.round) == (saved.run, start.round)
        node.trainings[start.round] += 1
        assert node.trainings[start.round] == 1, f"{node.id} trains again in round {start.round}"
        key = (node.id, start.round)
        low, high = self.faults.training_s
        lasts = low + (high - low) * uniform(self.faults.seed, "training", *key)
        training = Training(start, self.now, float("inf") if key in self.faults.stubborn else lasts)
        node.training = training
        self.at(self.now + training.lasts_s, lambda: self._answer(node, training))

    def _end(self, node: Node, reason: str) -> None:
        """Finish once the disk has taken everything."""
        assert node.keeper is not None
        if node.keeper.trouble and self.is_full(node.id, True):
            self.at(
                max(full.to_s for full in self.faults.full if full.node == node.id), partial(self._end, node, reason)
            )
            return
        node.keeper.close()
        node.finished = reason

    def _refuse(self, node: Node, life: int, round_: int) -> None:
        if node.online and node.life == life:
            self.step(node, ev.TrainingFailed(round_, "the disk is full", 0, Quality.NONE))

    def _stop_training(self, node: Node, *, at_once: bool) -> None:
        training = node.training
        if training is None:
            assert node.keeper is not None
            assert node.keeper.behind, f"{node.id}: a training that does not exist was asked to end"
            return
        if at_once:
            self.at(self.now, lambda: self._answer(node, training, "killed"))
        elif (node.id, training.start.round) not in self.faults.stubborn:
            self.at(self.now + POLITE_STOP_S, lambda: self._answer(node, training))

    def _cost_so_far(self, training: Training) -> int:
        share = (self.now - training.began_s) / training.lasts_s if training.lasts_s else 1.0
        return min(COST.upper_uj, round(COST.expected_uj * min(1.0, share)))

    def _answer(self, node: Node, training: Training, failure: str = "") -> None:
        if node.training is not training or not node.online:
            return
        node.training = None
        round_, energy = training.start.round, self._cost_so_far(training)
        node.spent_uj += energy
        if (node.id, round_) in self.faults.failing:
            failure = "the loss is not finite"
        if failure:
            self.step(node, ev.TrainingFailed(round_, failure, energy, Quality.REPLAYED))
            return
        params = toy_training(training.start.params, training.start.seed)
        self.step(node, ev.TrainingFinished(round_, params, float(np.abs(params).mean()), energy, Quality.REPLAYED))

    def _append(self, node: Node, record: RoundRecord) -> None:
        assert record.round not in node.recorded, f"{node.id} ended round {record.round} twice in one life"
        node.recorded.add(record.round)
        assert node.keeper is not None
        node.keeper.append(record)
        if not record.mixed:
            assert record.error, "a round without a mix must say why"
            return
        weights = [weight for _, _, weight in record.mixed]
        assert abs(sum(weights) - 1.0) < 1e-9
        assert min(weights) >= -1e-12
        allowed = {node.id}.union(*(graph.get(node.id, frozenset()) for graph in self.graphs))
        for sender, digest, _ in record.mixed:
            assert digest in self.published.get((sender, record.round), {}) or sender == node.id
            assert not self.graphs or sender in allowed, f"{node.id} mixed the model of {sender}, no neighbour"

    # --- the network

    def _publish(self, node: Node, effect: fx.PublishUpdate) -> None:
        update, saved = effect.update, node.disk.snapshot
        assert node.keeper is not None
        if not node.keeper.trouble:
            assert saved is not None
            assert (saved.round, saved.begun) == (update.round, True), "a model was shared before its round was durable"
        self.published.setdefault((node.id, update.round), {})[update.digest] = update.params.copy()
        for message in encode(update, self.form, self.chunk_bytes):
            for other in self.nodes:
                if other != node.id:
                    self.send(node.id, other, message)

    def send(self, sender: NodeId, receiver: NodeId, message: bytes) -> None:
        """Put one message on its way, unless it is lost."""
        seed, number = self.faults.seed, next(self._sent)
        if self.is_cut(sender) or uniform(seed, "loss", number) < self.faults.loss:
            return
        low, high = self.faults.delay_s
        delay = low + (high - low) * uniform(seed, "delay", number)
        self.at(self.now + delay, lambda: self._deliver(self.nodes[receiver], sender, message))

    def _deliver(self, node: Node, sender: NodeId, message: bytes) -> None:
        if not node.online or node.assembler is None or sender not in node.watching or self.is_cut(node.id):
            return
        try:
            header, update = node.assembler.add(sender, message)
        except Refused as refusal:
            self.step(node, ev.UpdateRejected(refusal.reason))
            return
        self.step(node, ev.UpdateReceived(update) if update else ev.RoundAnnounced(sender, header.round))

    # --- presence

    def is_cut(self, node: NodeId) -> bool:
        """Say whether a node is cut off now."""
        return any(cut.node == node and cut.from_s <= self.now < cut.to_s for cut in self.faults.cuts)

    def is_full(self, node: NodeId, model: bool) -> bool:
        """Say whether a node's disk has no room now, for a model or for anything else."""
        now = [full for full in self.faults.full if full.node == node and full.from_s <= self.now < full.to_s]
        return any(model or not full.model_only for full in now)

    def presence_changed(self) -> None:
        """Tell everybody a little later who is there by then."""
        for node in self.nodes.values():
            if not node.told_of_peers:
                node.told_of_peers = True
                self.at(self.now + self.faults.presence_s, partial(self._tell, node))

    def _tell(self, node: Node) -> None:
        node.told_of_peers = False
        if not node.online or node.machine is None:
            return
        others = (other for other in self.nodes.values() if other is not node and other.online)
        live = {other.id: other.ready for other in others if not self.is_cut(other.id) and not self.is_cut(node.id)}
        if live != node.machine.around.live:
            self.step(node, ev.PeersChanged(live))

    def change_roster(self, roster: Roster, *, leave_out: frozenset[NodeId] = frozenset()) -> None:
        """Announce a roster to everybody who is switched on, but `leave_out`."""
        self.graphs.append(neighbours(self.run_.topology, roster.members, self.run_.seed))
        for node in self.nodes.values():
            if node.online and node.id not in leave_out:
                self.step(node, ev.RosterChanged(roster))

    # --- what must hold after every step

    def _check(self, node: Node, machine: RoundMachine) -> None:
        ledger, config = machine.ledger, node.config
        if ledger.left_uj is not None and ledger.limit_uj is not None:
            assert ledger.left_uj >= 0
            reserved = ledger.reservation.upper_uj if ledger.reservation else 0
            if POLICIES[config.run.policy].obeys_budget:
                assert ledger.charged_uj + reserved <= ledger.limit_uj, f"{node.id} spends more than its budget"
        assert (ledger.reservation is not None) == (machine.phase is Phase.TRAINING or node.training is not None)
        assert ledger.charged_uj >= node.spent_uj, f"{node.id}: energy was spent that is not charged"
        assert machine.round >= node.highest_round, f"{node.id} went back in time"
        node.highest_round = machine.round
        assert machine.round <= machine.schedule.total_rounds
        # one sender more or less: a roster to come adds neighbours
        assert len(machine.around.inbox) <= len(node.watching) * (config.lookahead_rounds + 1)
        if machine.phase in {Phase.WAITING, Phase.JOINING, Phase.COLLECTING}:
            assert machine.deadline is not None
            late_s = 0.0 if machine.phase is Phase.COLLECTING else self.faults.timer_late_s
            assert machine.deadline + late_s >= self.now, f"{node.id} waits {machine.phase.value} for what is past"
        elif machine.phase is Phase.TRAINING:
            assert node.training is not None or (node.keeper and node.keeper.behind)
            assert machine.deadline is not None or machine._state.stop_asked
        else:
            assert machine.deadline is None

    # --- what tests read

    def decisions(self) -> dict[tuple[NodeId, int], bool]:
        """Return who decided to train when."""
        nodes = self.nodes.values()
        return {(n.id, r): record.decision.train for n in nodes for r, record in n.disk.last_records().items()}

    def models(self) -> dict[NodeId, bytes]:
        """Return the last durable model of each node, to the bit."""
        return {node.id: node.disk.model[1].tobytes() for node in self.nodes.values() if node.disk.model}


def restart_fleet(cluster: Cluster, rounds: Mapping[NodeId, int]) -> None:
    """Give each disk what a node leaves that was cut off at the beginning of its round."""
    roster = Roster(0, tuple(sorted(cluster.run_.roster)))
    for name, round_ in rounds.items():
        node = cluster.nodes[name]
        machine = RoundMachine(node.config, np.zeros(N_PARAMS, np.float32), node.ledger)
        node.disk.snapshot = replace(machine.snapshot(), round=round_, begun=True, roster=roster)
        node.highest_round = round_
