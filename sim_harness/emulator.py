"""The third driver of the RoundMachine: a whole fleet of them on a virtual clock, with a network in memory.

Events are handled one after the other, ordered by virtual time and, at equal times, by when they were put there: a run
depends on its scenario and on nothing else. What a machine computes with models is put off (`arithmetic`), and so is
training (`trainings`): neither changes who does what when.

A node's disk is its last snapshot and its last saved model: who is switched off goes on from there, as a device does.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final, Protocol

from agent.core import effects as fx
from agent.core import events as ev
from agent.core.round_machine import RoundMachine
from agent.core.round_state import MachineConfig, Phase
from agent.core.topology import neighbours
from agent.core.types import ModelUpdate, NodeId, Params, RoundRecord, Snapshot
from agent.core.wire import HEADER_BYTES, Assembler, Format, Refused, chunk_count, encode
from sim_harness.arithmetic import Deferred
from sim_harness.network_model import NetworkModel, Sent
from sim_harness.powered import Powered, VirtualClock
from sim_harness.trainings import Trainings

_PATIENCE = 4
"""So many of the longest time that a node waits for others."""
_IDLE_EVENTS = 1_000
"""So many events for each node that has not finished, and no end of a round among them, are enough."""
_POWER = ("_switch_on", "_network_changed")
_NEWS = ("_deliver", "_tell_presence")


class Observer(Protocol):
    """What becomes of the things that a fleet does and that change nothing in it."""

    def record(self, node: int, record: RoundRecord) -> None:
        """Take the account of a round that a node has ended."""

    def evaluate(self, node: int, round_: int, params: Params) -> None:
        """Test a node's model some time; its numbers may not be computed yet."""

    def notice(self, node: int, message: str) -> None:
        """Tell people what a machine has to say."""


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
    absences: int = 0
    """How often it has been gone, or is about to be."""
    watching: frozenset[NodeId] = frozenset()
    ready: str = ""
    armed: float | None = None
    """When the earliest timer of this life goes off."""
    training: fx.StartTraining | None = None
    training_since_s: float = 0.0
    training_s: float = 0.0
    """How long it lasts, to its last local step."""
    assembler: Assembler | None = None
    """What puts messages together; None where models are handed over whole."""
    finished: str = ""
    """Why its run has ended."""


@dataclass(slots=True)
class Traffic:
    """What the network has carried: messages and bytes, from nodes (`in`) and to nodes (`out`)."""

    messages_in: int = 0
    bytes_in: int = 0
    messages_out: int = 0
    bytes_out: int = 0


@dataclass(slots=True)
class State:
    """All of an emulation that a checkpoint must keep, besides what its observer has seen."""

    nodes: list[VirtualNode]
    clock: VirtualClock
    queue: list[tuple[float, int, str, tuple[Any, ...]]] = field(default_factory=list)
    """What is to come: when, in which order, which of _EVENTS, and with what."""
    pushed: int = 0
    waiting: Counter[str] = field(default_factory=Counter)
    """How much of each kind there is in the queue."""
    unfinished: int = 0
    stirred_s: float = 0.0
    """When a node last ended a round or came back, or the network changed."""
    idle: int = 0
    """How many events there were since the last end of a round."""
    changed: set[NodeId] = field(default_factory=set)
    """Nodes that have come, gone, or said something new, and nobody has heard of it yet."""
    traffic: Traffic = field(default_factory=Traffic)


class Emulator:
    """Drives all machines to the end of their runs."""

    def __init__(  # noqa: PLR0917
        self,
        state: State,
        initial: Params,
        network: NetworkModel,
        trainings: Trainings,
        arithmetic: Deferred,
        observer: Observer,
        form: Format | None = None,
    ) -> None:
        """Take a fleet that is off, or one from a checkpoint; with `form`, models travel as bytes."""
        self.state, self._clock = state, state.clock
        self._initial, self._network, self._trainings = initial, network, trainings
        self._arithmetic, self._observer, self._form = arithmetic, observer, form
        self._by_id = {node.id: node for node in state.nodes}
        run = state.nodes[0].config.run
        graph = neighbours(run.topology, run.roster, run.seed)
        self._edges = [[self._by_id[other] for other in sorted(graph[node.id])] for node in state.nodes]
        self._patience_s = _PATIENCE * max(run.start_timeout_s, run.round_deadline_s)
        self._chunks = chunk_count(len(initial))
        self._message_bytes = initial.nbytes + self._chunks * HEADER_BYTES
        self._absences = [islice(network.absences(node.index), node.absences, None) for node in state.nodes]

    def begin(self) -> None:
        """Switch the fleet on."""
        self.state.unfinished = len(self.state.nodes)
        for node in self.state.nodes:
            self._at(0.0, "_switch_on", node.index)
        for moment in self._network.changes:
            self._at(moment, "_network_changed")

    def run(self, between: Callable[[], bool] = lambda: True) -> bool:
        """Handle events until all nodes have finished that ever will; return False where `between` two events said no.

        A device that comes back when the run is over waits for ever.
        """
        state = self.state
        while state.unfinished and state.queue and not self._is_over():
            if not between():
                return False
            self._clock.now, _, name, arguments = heapq.heappop(state.queue)
            state.waiting[name] -= 1
            state.idle += 1
            _EVENTS[name](self, *arguments)
            if self._arithmetic.waiting >= len(state.nodes):
                self._arithmetic.start()  # models that wait to be mixed hold those that they are mixed from
        return True

    def _is_over(self) -> bool:
        """Say whether no round will end any more.

        It is over when a single node is left that looks for the run, and nothing is under way to it; where no round
        has ended for long and nobody is to come back; and where nodes come and go too fast to get on.
        """
        state = self.state
        if state.unfinished == 1 and len(state.nodes) > 1 and not any(state.waiting[name] for name in _NEWS):
            machine = next(node for node in state.nodes if not node.finished).machine
            return machine is None or machine.phase is Phase.WAITING
        if any(state.waiting[name] for name in _POWER):
            return state.idle > 2 * len(state.queue) + _IDLE_EVENTS * state.unfinished
        return state.queue[0][0] - state.stirred_s > self._patience_s

    def _at(self, when: float, name: str, *arguments: Any) -> None:
        state = self.state
        state.pushed += 1
        state.waiting[name] += 1
        heapq.heappush(state.queue, (max(self._clock.now, when), state.pushed, name, arguments))

    # --- power

    def _switch_on(self, index: int) -> None:
        """Start a machine from what the disk holds; who is gone from this very moment on stays off."""
        node = self.state.nodes[index]
        if node.machine is not None or node.finished:
            return
        absence = next(self._absences[index], None)
        if absence is not None:
            node.absences += 1
            self._at(absence[1], "_switch_on", index)
            if absence[0] <= self._clock.now:
                return
            self._at(absence[0], "_switch_off", index)
        saved, params = node.snapshot, self._initial if node.model is None else node.model
        history = saved.costs if saved else node.powered.history(node.config.workload)
        self.state.stirred_s = self._clock.now
        node.powered.switch_on()
        arithmetic = self._arithmetic.of(index)
        node.machine = RoundMachine(node.config, params, node.powered.ledger(saved), saved, history, arithmetic)
        node.life += 1
        node.watching, node.ready, node.armed = frozenset(), "", None
        node.assembler = Assembler(self._form) if self._form else None
        self._step(node, ev.Started())
        self._presence_changed(node)

    def _switch_off(self, index: int) -> None:
        node = self.state.nodes[index]
        if node.machine is None:
            return
        if node.training is not None:
            node.training = None
            self._trainings.cancel(index)
        node.machine, node.watching = None, frozenset()
        self._presence_changed(node)

    # --- one step

    def _step(self, node: VirtualNode, event: ev.Event) -> None:
        """Hand one event to a machine, do what it asks for in order, and arm its timer."""
        machine = node.machine
        if machine is None:
            return
        now = self._clock.now
        if node.powered.recharges and machine.phase is not Phase.IDLE:
            for flow in node.powered.flows():
                self._do_all(node, machine.handle(flow, now))
        self._do_all(node, machine.handle(event, now))
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
        if deadline <= self._clock.now:
            self._step(node, ev.DeadlineReached())
        else:
            node.armed = deadline
            self._at(deadline, "_timer", index, life, deadline)

    def _do_all(self, node: VirtualNode, effects: Sequence[fx.Effect]) -> None:
        for effect in effects:
            _DO[type(effect)](self, effect, node)

    def _save_state(self, effect: fx.SaveState, node: VirtualNode) -> None:
        node.snapshot = effect.snapshot

    def _save_model(self, effect: fx.SaveModel, node: VirtualNode) -> None:
        node.model = effect.params

    def _watch(self, effect: fx.WatchNeighbours, node: VirtualNode) -> None:
        node.watching, node.ready = effect.peers, effect.ready
        self._presence_changed(node)

    def _start_training(self, effect: fx.StartTraining, node: VirtualNode) -> None:
        node.training, node.training_since_s = effect, self._clock.now
        self._trainings.begin(node.index, effect)
        node.training_s = node.powered.round_s() * self._network.slowness(node.index, effect.round)
        self._at(self._clock.now + node.training_s, "_trained", node.index, node.life, effect.round)

    def _stop_training(self, effect: fx.StopTraining, node: VirtualNode) -> None:
        """End a training that did not end by its deadline, with the local steps that are done."""
        if node.training is not None:
            self._trainings.cut(node.index, (self._clock.now - node.training_since_s) / node.training_s)
            self._at(self._clock.now, "_trained", node.index, node.life, effect.round)

    def _publish(self, effect: fx.PublishUpdate, node: VirtualNode) -> None:
        self._send(node, effect.update)

    def _append(self, effect: fx.AppendRecord, node: VirtualNode) -> None:
        self.state.stirred_s, self.state.idle = self._clock.now, 0
        self._observer.record(node.index, effect.record)

    def _evaluate(self, effect: fx.Evaluate, node: VirtualNode) -> None:
        self._observer.evaluate(node.index, effect.round, effect.params)

    def _notify(self, effect: fx.Notify, node: VirtualNode) -> None:
        self._observer.notice(node.index, effect.message)

    def _finish(self, effect: fx.RunFinished, node: VirtualNode) -> None:
        node.finished = effect.reason
        if node.machine is not None:
            node.model = node.machine.params
        node.machine, node.watching = None, frozenset()
        self.state.unfinished -= 1
        self._presence_changed(node)

    # --- training

    def _trained(self, index: int, life: int, round_: int) -> None:
        node = self.state.nodes[index]
        if node.life != life or node.training is None or node.training.round != round_:
            return
        params, outcome = self._trainings.finish(index)
        node.training = None
        cost = node.powered.charge()
        detail = node.powered.detail(cost)
        if outcome.error or outcome.loss is None:
            self._step(node, ev.TrainingFailed(round_, outcome.error, cost.energy_uj, cost.quality, detail))
        else:
            self._step(node, ev.TrainingFinished(round_, params, outcome.loss, cost.energy_uj, cost.quality, detail))

    # --- the network

    def _send(self, sender: VirtualNode, update: ModelUpdate) -> None:
        """Put a model on its way to everybody who watches its sender, all of them together where it takes as long."""
        now, network = self._clock.now, self._network
        together: dict[Sent, list[int]] = {}
        turn = 0
        for node in self._edges[sender.index]:
            if sender.id in node.watching and network.reaches(sender.index, node.index, now):
                turn += 1
                size = self._message_bytes
                sent = network.send(sender.index, node.index, turn, update.round, self._chunks, size)
                together.setdefault(sent, []).append(node.index)
        messages = self._encoded(update)
        for sent, indices in together.items():
            arriving = tuple(messages[i] for i in sent.arriving) if messages else len(sent.arriving)
            self._at(now + sent.delay_s, "_deliver", tuple(indices), None if messages else update, sender.id, arriving)
        self.state.traffic.messages_in += self._chunks
        self.state.traffic.bytes_in += self._message_bytes

    def _encoded(self, update: ModelUpdate) -> list[bytes]:
        """Return a model's messages; nothing where it travels whole."""
        if self._form is None:
            return []
        self._arithmetic.flush()
        return encode(update, self._form)

    def _deliver(
        self, indices: tuple[int, ...], update: ModelUpdate | None, sender: NodeId, arriving: int | tuple[bytes, ...]
    ) -> None:
        """Hand over a model, as a whole or as messages, some of which may be missing."""
        now, nodes, traffic = self._clock.now, self.state.nodes, self.state.traffic
        place, count = self._by_id[sender].index, arriving if isinstance(arriving, int) else len(arriving)
        for index in indices:
            node = nodes[index]
            if count and sender in node.watching and self._network.reaches(place, index, now):
                traffic.messages_out += count
                traffic.bytes_out += self._message_bytes * count // self._chunks
                for event in self._received(node, update, sender, arriving):
                    self._step(node, event)

    def _received(
        self, node: VirtualNode, update: ModelUpdate | None, sender: NodeId, arriving: int | tuple[bytes, ...]
    ) -> Iterator[ev.Event]:
        """Yield what a machine must hear; of a model that is not whole, which round its sender is in."""
        if update is not None:
            yield ev.UpdateReceived(update) if arriving == self._chunks else ev.RoundAnnounced(sender, update.round)
        elif node.assembler is not None and not isinstance(arriving, int):
            yield from (_assembled(node.assembler, sender, message) for message in arriving)

    # --- presence

    def _network_changed(self) -> None:
        self.state.stirred_s = self._clock.now
        for node in self.state.nodes:
            self._presence_changed(node)

    def _presence_changed(self, node: VirtualNode) -> None:
        """Tell others a moment later that a node has come, gone, or says something else."""
        if not self.state.changed:
            self._at(self._clock.now + self._network.presence_s, "_tell_presence")
        self.state.changed.add(node.id)

    def _tell_presence(self) -> None:
        changed, self.state.changed = self.state.changed, set()
        nodes, listening = self.state.nodes, set()
        for name in changed:
            listening.add(self._by_id[name].index)
            listening.update(node.index for node in self._edges[self._by_id[name].index])
        waiting = {node.index for node in nodes if node.machine is not None and node.machine.phase is Phase.WAITING}
        here = {node.id: node.ready for node in nodes if node.machine is not None} if waiting else {}
        for index in sorted(listening | waiting):
            node = nodes[index]
            if node.machine is not None:
                live = self._seen_by(node, here if index in waiting else None)
                if live is not node.machine.around.live and live != node.machine.around.live:
                    self._step(node, ev.PeersChanged(live))

    def _seen_by(self, node: VirtualNode, here: dict[NodeId, str] | None) -> dict[NodeId, str]:
        """Return who a node can reach: all of the fleet while it waits for its run, its neighbours from then on.

        A machine asks for no more, and telling everybody of everybody all along would take the square of the fleet's
        size. One mapping serves all who wait; that a node finds itself in it does no harm, unless nobody else is there.
        """
        now, reaches = self._clock.now, self._network.reaches
        if here is None:
            known = {other.id: other.ready for other in self._edges[node.index] if other.machine is not None}
        else:
            known = here if len(here) > 1 else {}
        if not self._network.parted(now):
            return known
        places = ((self._by_id[name].index, name) for name in known if name != node.id)
        return {name: known[name] for place, name in places if reaches(place, node.index, now)}


def _assembled(assembler: Assembler, sender: NodeId, message: bytes) -> ev.Event:
    """Return what one message is to a machine."""
    try:
        header, whole = assembler.add(sender, message)
    except Refused as refusal:
        return ev.UpdateRejected(refusal.reason)
    return ev.UpdateReceived(whole) if whole else ev.RoundAnnounced(sender, header.round)


_EVENTS: Final[dict[str, Callable[..., None]]] = {
    "_switch_on": Emulator._switch_on,
    "_switch_off": Emulator._switch_off,
    "_timer": Emulator._timer,
    "_trained": Emulator._trained,
    "_deliver": Emulator._deliver,
    "_network_changed": Emulator._network_changed,
    "_tell_presence": Emulator._tell_presence,
}
"""What may stand in a queue: names, so that a checkpoint can hold it."""
_DO: dict[type[fx.Effect], Callable[..., None]] = {
    fx.SaveState: Emulator._save_state,
    fx.SaveModel: Emulator._save_model,
    fx.WatchNeighbours: Emulator._watch,
    fx.StartTraining: Emulator._start_training,
    fx.StopTraining: Emulator._stop_training,
    fx.PublishUpdate: Emulator._publish,
    fx.AppendRecord: Emulator._append,
    fx.Evaluate: Emulator._evaluate,
    fx.Notify: Emulator._notify,
    fx.RunFinished: Emulator._finish,
}
