"""The third driver of the RoundMachine: a whole fleet of them on a virtual clock, with a network in memory.

Events are handled one after the other, ordered by virtual time and, at equal times, by when they were put there: a run
depends on its scenario and on nothing else. What a machine computes with models is put off (`arithmetic`), and so is
training (`trainings`): neither changes who does what when.

A node's disk is its last snapshot and its last saved model: who is switched off goes on from there, as a device does.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, Protocol

from agent.core import effects as fx
from agent.core import events as ev
from agent.core.round_machine import RoundMachine
from agent.core.round_state import Phase
from agent.core.types import Params, RoundRecord
from agent.core.wire import Assembler, Format
from sim_harness.arithmetic import Deferred
from sim_harness.carrier import Carrier
from sim_harness.emulated_state import State, VirtualNode
from sim_harness.network_model import NetworkModel
from sim_harness.trainings import Trainings

_PATIENCE = 4
"""So many of the longest time that a node waits for others."""
_IDLE_EVENTS = 1_000
"""So many events for each node that has not finished, and no end of a round among them, are enough."""
_POWER = ("switch_on", "network_changed")
_NEWS = ("deliver", "tell_presence")


class Observer(Protocol):
    """What becomes of the things that a fleet does and that change nothing in it."""

    def record(self, node: int, record: RoundRecord) -> None:
        """Take the account of a round that a node has ended."""

    def evaluate(self, node: int, round_: int, params: Params) -> None:
        """Test a node's model some time; its numbers may not be computed yet."""

    def notice(self, node: int, message: str) -> None:
        """Tell people what a machine has to say."""


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
        run = state.nodes[0].config.run
        self._patience_s = _PATIENCE * max(run.start_timeout_s, run.round_deadline_s)
        self._absences = [islice(network.absences(node.index), node.absences, None) for node in state.nodes]
        self._carrier = carrier = Carrier(state, network, arithmetic, self._step, len(initial), form)
        self._events: dict[str, Callable[..., None]] = {
            "switch_on": self._switch_on,
            "switch_off": self._switch_off,
            "timer": self._timer,
            "trained": self._trained,
            "deliver": carrier.deliver,
            "network_changed": carrier.network_changed,
            "tell_presence": carrier.tell_presence,
        }
        self._do: dict[type[fx.Effect], Callable[[Any, VirtualNode], None]] = {
            fx.SaveState: self._save_state,
            fx.SaveModel: self._save_model,
            fx.WatchNeighbours: self._watch,
            fx.StartTraining: self._start_training,
            fx.StopTraining: self._stop_training,
            fx.PublishUpdate: self._publish,
            fx.AppendRecord: self._append,
            fx.Evaluate: self._evaluate,
            fx.Notify: self._notify,
            fx.RunFinished: self._finish,
        }

    def begin(self) -> None:
        """Switch the fleet on."""
        self.state.unfinished = len(self.state.nodes)
        for node in self.state.nodes:
            self.state.at(0.0, "switch_on", node.index)
        for moment in self._network.changes:
            self.state.at(moment, "network_changed")

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
            self._events[name](*arguments)
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

    # --- power

    def _switch_on(self, index: int) -> None:
        """Start a machine from what the disk holds; who is gone from this very moment on stays off."""
        node = self.state.nodes[index]
        if node.machine is not None or node.finished:
            return
        absence = next(self._absences[index], None)
        if absence is not None:
            node.absences += 1
            self.state.at(absence[1], "switch_on", index)
            if absence[0] <= self._clock.now:
                return
            self.state.at(absence[0], "switch_off", index)
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
        self._carrier.presence_changed(node)

    def _switch_off(self, index: int) -> None:
        node = self.state.nodes[index]
        if node.machine is None:
            return
        if node.training is not None:
            node.training = None
            self._trainings.cancel(index)
        node.machine, node.watching = None, frozenset()
        self._carrier.presence_changed(node)

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
            self.state.at(machine.deadline, "timer", node.index, node.life, machine.deadline)

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
            self.state.at(deadline, "timer", index, life, deadline)

    def _do_all(self, node: VirtualNode, effects: Sequence[fx.Effect]) -> None:
        for effect in effects:
            self._do[type(effect)](effect, node)

    def _save_state(self, effect: fx.SaveState, node: VirtualNode) -> None:
        node.snapshot = effect.snapshot

    def _save_model(self, effect: fx.SaveModel, node: VirtualNode) -> None:
        node.model = effect.params

    def _watch(self, effect: fx.WatchNeighbours, node: VirtualNode) -> None:
        node.watching, node.ready = effect.peers, effect.ready
        self._carrier.presence_changed(node)

    def _start_training(self, effect: fx.StartTraining, node: VirtualNode) -> None:
        node.training, node.training_since_s = effect, self._clock.now
        self._trainings.begin(node.index, effect)
        node.training_s = node.powered.round_s() * self._network.slowness(node.index, effect.round)
        self.state.at(self._clock.now + node.training_s, "trained", node.index, node.life, effect.round)

    def _stop_training(self, effect: fx.StopTraining, node: VirtualNode) -> None:
        """End a training that did not end by its deadline, with the local steps that are done."""
        if node.training is not None:
            self._trainings.cut(node.index, (self._clock.now - node.training_since_s) / node.training_s)
            self.state.at(self._clock.now, "trained", node.index, node.life, effect.round)

    def _publish(self, effect: fx.PublishUpdate, node: VirtualNode) -> None:
        self._carrier.send(node, effect.update)

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
        self._carrier.presence_changed(node)

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
