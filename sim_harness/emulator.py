"""The third driver of the RoundMachine: a whole fleet of them on a virtual clock, with a network in memory.

Events are handled one after the other, ordered by virtual time and, at equal times, by when they were put there, so that
a run depends on its scenario and on nothing else. What a machine computes with models is put off (`arithmetic`), and so
is training (`trainings`): neither changes who does what when.

A node's disk is its last snapshot and its last saved model: who is switched off goes on from there, as a device does.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import singledispatchmethod
from typing import Any, Protocol

from agent.core import effects as fx
from agent.core import events as ev
from agent.core.budget import Ledger
from agent.core.round_machine import RoundMachine
from agent.core.round_state import MachineConfig, Phase
from agent.core.types import ModelUpdate, NodeId, Params, Quality, RoundRecord, Snapshot
from agent.core.wire import HEADER_BYTES, chunk_count
from agent.errors import ContractViolation
from sim_harness.arithmetic import Deferred
from sim_harness.broker_counts import BrokerCounts
from sim_harness.network_model import NetworkModel
from sim_harness.powered import Powered
from sim_harness.trainings import Trainings


class Observer(Protocol):
    """What becomes of the things that a fleet does and that change nothing in it."""

    def record(self, node: int, record: RoundRecord) -> None:
        """A node has ended a round."""

    def evaluate(self, node: int, round_: int, params: Params) -> None:
        """A node's model is to be tested; its numbers may not be computed yet."""

    def notice(self, node: int, now: float, message: str) -> None:
        """A machine has something to say to people."""


@dataclass(slots=True)
class VirtualNode:
    """One device: the machine, which is lost when it is switched off, and the disk, which is not."""

    index: int
    id: NodeId
    config: MachineConfig
    powered: Powered
    snapshot: Snapshot | None = None
    model: Params | None = None
    """The model that was saved last."""
    machine: RoundMachine | None = None
    """None while the device is off."""
    life: int = 0
    watching: frozenset[NodeId] = frozenset()
    ready: str = ""
    armed: float | None = None
    """When the earliest timer of this life goes off."""
    training: fx.StartTraining | None = None
    finished: str = ""
    """Why its run has ended."""


@dataclass(slots=True)
class State:
    """All of an emulation that a checkpoint must keep; see `checkpoint`."""

    nodes: list[VirtualNode]
    now: float = 0.0
    queue: list[tuple[float, int, str, tuple[Any, ...]]] = field(default_factory=list)
    """What is to come: when, in which order, the method of Emulator to call, and with what."""
    pushed: int = 0
    presence_due: bool = False
    counts: BrokerCounts = field(default_factory=BrokerCounts)


class Emulator:
    """Drives all machines to the end of their runs."""

    def __init__(
        self,
        nodes: Sequence[VirtualNode],
        initial: Params,
        network: NetworkModel,
        trainings: Trainings,
        arithmetic: Deferred,
        observer: Observer,
    ) -> None:
        self.state = State(list(nodes))
        self._initial, self._network, self._trainings = initial, network, trainings
        self._arithmetic, self._observer = arithmetic, observer
        self._by_id = {node.id: node for node in nodes}
        self._chunks = chunk_count(len(initial))
        self._message_bytes = initial.nbytes + self._chunks * HEADER_BYTES

    def begin(self) -> None:
        """Switch the fleet on, each node when the network model says so."""
        for node in self.state.nodes:
            for at_s, on in self._network.power(node.index):
                self._at(at_s, "_switch", node.index, on)

    def resume(self, state: State) -> None:
        """Go on from a checkpoint."""
        self.state = state
        self._by_id = {node.id: node for node in state.nodes}

    def run(self, between: Callable[[], bool] = lambda: True) -> bool:
        """Handle events until all nodes have finished; return whether they have, or `between` two events said no."""
        state = self.state
        while state.queue and between():
            state.now, _, name, arguments = heapq.heappop(state.queue)
            getattr(self, name)(*arguments)
            if self._arithmetic.waiting >= len(state.nodes):
                self._arithmetic.flush()  # models that wait to be mixed hold those that they are mixed from
        return not state.queue

    def _at(self, when: float, name: str, *arguments: Any) -> None:
        state = self.state
        state.pushed += 1
        heapq.heappush(state.queue, (max(state.now, when), state.pushed, name, arguments))

    # --- power

    def _switch(self, index: int, on: bool) -> None:
        node = self.state.nodes[index]
        if on and node.machine is None and not node.finished:
            self._switch_on(node)
        elif not on and node.machine is not None:
            self._switch_off(node)

    def _switch_on(self, node: VirtualNode) -> None:
        saved = node.snapshot
        ledger = saved.ledger if saved else node.powered.ledger()
        params = self._initial if node.model is None else node.model
        history = saved.costs if saved else node.powered.history(node.config.workload)
        node.machine = RoundMachine(
            node.config, params, ledger, saved, history, arithmetic=self._arithmetic.of(node.index)
        )
        node.life += 1
        node.watching, node.ready, node.armed = frozenset(), "", None
        node.powered.wake(self.state.now)
        self._step(node, ev.Started())
        self._presence_changed()

    def _switch_off(self, node: VirtualNode) -> None:
        if node.training is not None:
            node.training = None
            self._trainings.cancel(node.index)
        node.machine, node.watching = None, frozenset()
        self._presence_changed()

    # --- one step

    def _step(self, node: VirtualNode, event: ev.Event) -> None:
        """Hand one event to a machine, do what it asks for in order, and arm its timer."""
        machine = node.machine
        if machine is None:
            return
        for flow in node.powered.flows(self.state.now) if machine.phase is not Phase.IDLE else ():
            self._do_all(node, machine.handle(flow, self.state.now))
        self._do_all(node, machine.handle(event, self.state.now))
        if machine.deadline is not None and (node.armed is None or machine.deadline < node.armed):
            node.armed = machine.deadline
            self._at(machine.deadline, "_timer", node.index, node.life, machine.deadline)

    def _timer(self, index: int, life: int, armed: float) -> None:
        """Hand in a deadline that has passed; one that was put off since is armed anew."""
        node = self.state.nodes[index]
        if node.life != life or node.armed != armed or node.machine is None:
            return
        node.armed = None
        deadline = node.machine.deadline
        if deadline is None:
            return
        if deadline <= self.state.now:
            self._step(node, ev.DeadlineReached())
        else:
            node.armed = deadline
            self._at(deadline, "_timer", index, life, deadline)

    def _do_all(self, node: VirtualNode, effects: Sequence[fx.Effect]) -> None:
        for effect in effects:
            self._do(effect, node)

    @singledispatchmethod
    def _do(self, effect: fx.Effect, _node: VirtualNode) -> None:
        raise ContractViolation(f"no way to do {type(effect).__name__}")

    @_do.register
    def _save_state(self, effect: fx.SaveState, node: VirtualNode) -> None:
        node.snapshot = effect.snapshot

    @_do.register
    def _save_model(self, effect: fx.SaveModel, node: VirtualNode) -> None:
        node.model = effect.params

    @_do.register
    def _watch(self, effect: fx.WatchNeighbours, node: VirtualNode) -> None:
        node.watching, node.ready = effect.peers, effect.ready
        self._presence_changed()

    @_do.register
    def _start_training(self, effect: fx.StartTraining, node: VirtualNode) -> None:
        node.training = effect
        self._trainings.begin(node.index, effect)
        lasts_s = node.powered.train_s * self._network.slowness(node.index)
        self._at(self.state.now + lasts_s, "_trained", node.index, node.life, effect.round)

    @_do.register
    def _stop_training(self, effect: fx.StopTraining, node: VirtualNode) -> None:
        """End a training that did not end by its deadline; its work is lost."""
        if node.training is not None:
            self._trainings.cancel(node.index)
            self._at(self.state.now, "_stopped", node.index, node.life, effect.round)

    @_do.register
    def _publish(self, effect: fx.PublishUpdate, node: VirtualNode) -> None:
        self._send(node, effect.update)

    @_do.register
    def _append(self, effect: fx.AppendRecord, node: VirtualNode) -> None:
        self._observer.record(node.index, effect.record)

    @_do.register
    def _evaluate(self, effect: fx.Evaluate, node: VirtualNode) -> None:
        self._observer.evaluate(node.index, effect.round, effect.params)

    @_do.register
    def _notify(self, effect: fx.Notify, node: VirtualNode) -> None:
        self._observer.notice(node.index, self.state.now, effect.message)

    @_do.register
    def _finish(self, effect: fx.RunFinished, node: VirtualNode) -> None:
        node.finished = effect.reason
        if node.machine is not None:
            node.model = node.machine.params
        node.machine, node.watching = None, frozenset()
        self._presence_changed()

    # --- training

    def _trained(self, index: int, life: int, round_: int) -> None:
        node = self.state.nodes[index]
        if node.life != life or node.training is None or node.training.round != round_:
            return
        params, outcome = self._trainings.finish(index)
        self._answer(node, round_, params, outcome.loss, outcome.error)

    def _stopped(self, index: int, life: int, round_: int) -> None:
        node = self.state.nodes[index]
        if node.life == life and node.training is not None and node.training.round == round_:
            self._answer(node, round_, node.training.params, None, "not done by the round's deadline")

    def _answer(self, node: VirtualNode, round_: int, params: Params, loss: float | None, error: str) -> None:
        node.training = None
        cost = node.powered.charge()
        if error or loss is None:
            self._step(node, ev.TrainingFailed(round_, error, cost.energy_uj, cost.quality, cost.detail))
        else:
            self._step(node, ev.TrainingFinished(round_, params, loss, cost.energy_uj, cost.quality, cost.detail))

    # --- the network

    def _send(self, sender: VirtualNode, update: ModelUpdate) -> None:
        """Put a model on its way to everybody who watches its sender, all of them together where it takes as long."""
        state, network = self.state, self._network
        receivers = [node for node in self._neighbours(sender, update) if sender.id in node.watching]
        together: dict[tuple[float, int], list[int]] = {}
        for node in receivers:
            if not network.reaches(sender.index, node.index, state.now):
                continue
            sent = network.send(sender.index, node.index, update.round, self._chunks, self._message_bytes)
            together.setdefault((sent.delay_s, sent.chunks), []).append(node.index)
        for (delay_s, chunks), indices in together.items():
            self._at(state.now + delay_s, "_deliver", tuple(indices), update, chunks)
        counts = state.counts
        state.counts = BrokerCounts(
            counts.model_messages_in + self._chunks,
            counts.model_bytes_in + self._message_bytes,
            counts.model_messages_out,
            counts.model_bytes_out,
        )

    def _neighbours(self, sender: VirtualNode, update: ModelUpdate) -> list[VirtualNode]:  # noqa: ARG002
        """Return who may watch a node: its neighbours in the graph, for an edge has two ends."""
        machine = sender.machine
        if machine is None:
            return []
        return [self._by_id[node] for node in sorted(machine.around.epochs.watched)]

    def _deliver(self, indices: tuple[int, ...], update: ModelUpdate, chunks: int) -> None:
        """Hand a model over, or, where chunks of it are missing, what the first one said of its sender's round."""
        state, whole = self.state, chunks == self._chunks
        sender = self._by_id[update.sender]
        for index in indices:
            node = state.nodes[index]
            if node.machine is None or update.sender not in node.watching:
                continue
            if not self._network.reaches(sender.index, index, state.now):
                continue
            share = self._message_bytes * chunks // self._chunks
            counts = state.counts
            state.counts = BrokerCounts(
                counts.model_messages_in,
                counts.model_bytes_in,
                counts.model_messages_out + chunks,
                counts.model_bytes_out + share,
            )
            if whole:
                self._step(node, ev.UpdateReceived(update))
            elif chunks:
                self._step(node, ev.RoundAnnounced(update.sender, update.round))

    # --- presence

    def _presence_changed(self) -> None:
        """Tell everybody a moment later who is there by then."""
        if not self.state.presence_due:
            self.state.presence_due = True
            self._at(self.state.now + self._network.presence_s, "_tell_presence")

    def _tell_presence(self) -> None:
        self.state.presence_due = False
        here = {node.id: node.ready for node in self.state.nodes if node.machine is not None}
        for node in self.state.nodes:
            machine = node.machine
            if machine is None:
                continue
            live = self._seen_by(node, machine, here)
            if live != machine.around.live:
                self._step(node, ev.PeersChanged(live))

    def _seen_by(self, node: VirtualNode, machine: RoundMachine, here: dict[NodeId, str]) -> dict[NodeId, str]:
        """Return who a node can reach: all of the fleet until its run begins, its neighbours from then on.

        A machine asks for no more; telling everybody of everybody all along would take the square of the fleet's size.
        """
        fresh = machine.phase is Phase.WAITING and not machine.snapshot().begun
        known = here if fresh else {other: here[other] for other in node.watching if other in here}
        if not self._network.parted(self.state.now):
            return known
        reached = self._network.reaches
        return {
            other: word for other, word in known.items() if reached(self._by_id[other].index, node.index, self.state.now)
        }


def fully_charged(limit_uj: int | None, limit_rounds: int | None) -> Ledger:
    """Return the ledger of a device before its first round."""
    return Ledger(limit_uj, limit_rounds=limit_rounds)


__all__ = ["Emulator", "Observer", "Quality", "State", "VirtualNode", "fully_charged"]
