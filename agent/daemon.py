"""The device's driver of the RoundMachine: real clock, network, trainer, meter, journal and systemd around it.

One thread takes items from a mailbox, turns them into events, and executes the effects in order; everything that may
take long (training, the network) works in threads and processes of its own and posts what it has to say.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import singledispatchmethod
from pathlib import Path

from agent import __version__
from agent.config import AgentConfig
from agent.core import effects as fx
from agent.core import events as ev
from agent.core.costs import CostHistory
from agent.core.participation import POLICIES
from agent.core.round_machine import RoundMachine
from agent.core.round_state import MachineConfig, Phase
from agent.core.types import NodeId, Quality, Snapshot
from agent.core.wire import Format
from agent.errors import AgentError, ContractViolation, EnergyError, JournalError, NetworkError
from agent.journal import EvaluationRecord, Journal
from agent.keeper import Keeper
from agent.learning.factory import ModelInfo
from agent.learning.trainer import Evaluation
from agent.mailbox import Mailbox
from agent.network.transport import SessionConflict, TransportStats
from agent.page import EVERY_S, Health, Page, budget_line, one_line
from agent.reach import Reach, TransportMaker
from agent.service import Notifier
from agent.training import AsyncTrainer, TrainingAnswered, TrainingWindow
from agent.treasury import Treasury

_log = logging.getLogger(__name__)

IDLE_S = EVERY_S
"""The longest wait for the mailbox, so that the page is fresh and systemd hears of an idle daemon."""
MAX_EVALUATIONS = 4
"""Evaluations that may wait for the trainer at a time; each holds a copy of the model."""
TWIN_SESSIONS = 3
"""Sessions that another agent with our name disputes before an agent that has not begun ends."""
_OUTSIDE = frozenset({Phase.IDLE, Phase.WAITING, Phase.JOINING})
"""Phases in no round."""
LAST_EVALUATIONS_S = 60.0
"""How long a finished run waits for evaluations that are still being made."""


@dataclass(frozen=True, slots=True)
class Evaluated:
    """An evaluation is done; goes to the mailbox."""

    round: int
    evaluation: Evaluation


@dataclass(frozen=True, slots=True)
class TrainingRefused:
    """A training must not begin; goes to the mailbox, as its answer."""

    round: int
    reason: str


@dataclass(frozen=True, slots=True)
class StopAsked:
    """Somebody wants the daemon to end."""

    reason: str


class Daemon:
    """One agent; `run` returns when its run is finished or `stop` was called."""

    def __init__(  # noqa: PLR0917
        self,
        config: AgentConfig,
        model: ModelInfo,
        trainer: AsyncTrainer,
        make_transport: TransportMaker,
        mailbox: Mailbox,
        treasury: Treasury,
        *,
        notifier: Notifier | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open the journal and take up where it ends; raises JournalError, ConfigError."""
        self._config, self._trainer, self._clock = config, trainer, clock
        self._mailbox = mailbox
        self._notifier = notifier or Notifier({})
        self._treasury = treasury
        self._page = Page(config, self._notifier)
        form = Format(config.descriptor().digest(), model.schema_hash, model.n_params)
        self._reach = Reach(config, form, mailbox.post, make_transport)
        self._window = TrainingWindow(trainer, treasury.meter, config.learning, mailbox.post_own, clock)
        self._wait_s = min(IDLE_S, self._notifier.watchdog_period_s or IDLE_S)
        self._evaluating = 0
        self._finished = ""
        self._fault: AgentError | None = None
        self._stopping = False
        self._losses = TransportStats()
        self._neighbours: frozenset[NodeId] | None = None
        self.journal = Journal(Path(config.node.state_dir), config.journal.lines_bytes)
        try:
            self.machine = self._restore(model)
            self._keeper = Keeper(self.journal, self.machine.run_hex, clock)
            if self._forfeits:  # else the run's first reservation would stand where a damaged state falls back to this
                self._keeper.save_state(treasury.marked(self.machine.snapshot()))
        except BaseException:
            self.journal.close()
            raise

    def run(self) -> str:
        """Drive the machine to its end; return why it ended."""
        with ExitStack() as stack:
            stack.callback(self.journal.close)
            stack.callback(self._treasury.meter.end)
            stack.callback(self._trainer.close)
            stack.callback(self._say_goodbye)
            self._introduce()
            self._reach.start()
            self._handle(ev.Started())
            self._notifier.ready(f"run {self._config.run.id}: waiting for the fleet")
            while not self._finished:
                self._step()
            if self._fault is None:
                self._wait_for_evaluations()
            self._wait_for_disk()
            if self._fault is not None:
                raise self._fault
            return self._finished

    def _introduce(self) -> None:
        config, machine = self._config, self.machine
        _log.info(
            "skiptrain-agent %s: node %s of fleet %s, run %s, %d rounds, %s, model %s of %d parameters",
            __version__,
            config.node.id,
            config.node.fleet,
            config.run.id,
            config.run.rounds,
            config.policy.name,
            config.model.name,
            len(machine.params),
        )
        snapshot = machine.snapshot()
        if snapshot.begun and not snapshot.finished:
            _log.info(
                "the journal is at round %d: going on where the fleet is, asking the neighbours for at most %.0f s",
                machine.round,
                config.run.round_deadline_s,
            )
        self._introduce_energy()

    def _introduce_energy(self) -> None:
        ledger, cost = self.machine.ledger, self.machine.purse.cost
        _log.info("energy: %s", budget_line(self._treasury.meter, ledger, cost))
        expected_uj = 1 if cost is None else cost.expected_uj
        if POLICIES[self._config.policy.name].obeys_budget and not ledger.affords(expected_uj):
            _log.warning(
                "energy: %.1f J are left in this budget period, a training round takes %.1f J: this node will share "
                "and average, but not train; a new energy.period is a new budget, a new run is not",
                (ledger.left_uj or 0) / 1e6,
                expected_uj / 1e6,
            )

    def stop(self, reason: str) -> None:
        """Ask the daemon to end cleanly; from any thread, or from a signal handler's thread."""
        self._mailbox.post_own(StopAsked(reason))

    def _say_goodbye(self) -> None:
        reason = self._finished or "failed"
        self._page.write(self._clock(), self.machine, self._reach, self._health(), ended=reason)
        self._notifier.stopping(reason)
        self._reach.close(reason)

    # --- start

    def _restore(self, model: ModelInfo) -> RoundMachine:
        found = self.journal.recover()
        for warning in found.warnings:
            _log.warning("%s", warning)
        config, run, meter = self._config, self._config.descriptor(), self._treasury.meter
        self._forfeits = found.state_lost or bool(found.snapshot and found.snapshot.ledger.reservation)
        same = found.snapshot if found.snapshot and found.snapshot.run == run.digest().hex() else None
        if found.model is not None and same is None:
            _log.warning(
                "%s: run %s begins anew: run.id or settings are not those of before; its models replace the old one",
                self.journal.folder,
                config.run.id,
            )
        params = found.model if same and found.model is not None else model.initial_params
        if params.shape != model.initial_params.shape:
            raise JournalError(
                f"{self.journal.folder}: the model there has another size; give the new run a new run.id"
            )
        machine = MachineConfig(
            config.node_id,
            run,
            meter.prior,
            learns_cost=meter.learns,
            workload=config.workload(meter.source),
            relay=config.is_relay,
            save_model_every=config.journal.model_every_rounds,
            evaluate_every=config.evaluation.every,
        )
        ledger = self._treasury.ledger(found.snapshot, state_lost=found.state_lost)
        return RoundMachine(machine, params, ledger, same, self._costs(found.snapshot, machine.workload))

    def _costs(self, snapshot: Snapshot | None, workload: str) -> CostHistory:
        """Return what is known of the cost of this workload's rounds, from whatever run."""
        if snapshot is not None and snapshot.costs.workload == workload:
            return snapshot.costs
        return replace(self._treasury.meter.history, workload=workload)

    # --- the loop

    def _step(self) -> None:
        """Hand in one item, or the deadline when it has passed."""
        self._look_after()
        deadline, now = self.machine.deadline, self._clock()
        if deadline is not None and now >= deadline:
            self._handle(ev.DeadlineReached())
            deadline = now  # a machine whose deadlines are all due must not keep the mailbox waiting
        item = self._mailbox.take(self._wait_s if deadline is None else min(self._wait_s, deadline - now))
        if item is not None:
            self._take(item)

    def _look_after(self) -> None:
        """Do what is due now and then, whatever else happens."""
        self._notifier.watchdog()
        self._keeper.retry()
        self._window.tick()
        for event in self._treasury.poll():
            self._handle(event)
        self._page.keep_fresh(self._clock(), self.machine, self._reach, self._health())

    def _health(self) -> Health:
        treasury = self._treasury
        return Health(self.journal.bytes_written, self._keeper.trouble, treasury.meter.source, treasury.trouble)

    @singledispatchmethod
    def _take(self, item: object) -> None:
        """Turn what came from the network into events."""
        for event in self._reach.take(item, self._clock()):
            self._handle(event)

    @_take.register
    def _take_stop(self, item: StopAsked) -> None:
        self._stopping = True
        for event in self._treasury.last_charge():
            self._handle(event)
        self._handle(ev.StopRequested(item.reason))

    @_take.register
    def _take_conflict(self, item: SessionConflict) -> None:
        """End an agent whose name is disputed again and again, but none that is in its run: anybody could end it so."""
        if item.count >= TWIN_SESSIONS and self.machine.phase is Phase.WAITING and not self.machine.snapshot().begun:
            self._fault = NetworkError(self._reach.twin(item))
            self._handle(ev.StopRequested(str(self._fault)))
        for event in self._reach.take(item, self._clock()):
            self._handle(event)

    @_take.register
    def _take_training(self, item: TrainingAnswered) -> None:
        if item.outcome.fatal is not None:
            self._give_up(item.outcome.fatal(item.outcome.error))
        self._handle(self._window.answer(item))

    @_take.register
    def _take_refusal(self, item: TrainingRefused) -> None:
        self._handle(ev.TrainingFailed(item.round, item.reason, 0, Quality.NONE))

    def _give_up(self, fault: AgentError) -> None:
        """Stop cleanly, so that nothing stays reserved, and end with `fault`."""
        self._fault = fault
        self._handle(ev.StopRequested(f"nothing can be trained here: {fault}"))

    @_take.register
    def _take_evaluation(self, item: Evaluated) -> None:
        self._evaluating -= 1
        result = item.evaluation
        if result.fatal is not None:
            self._give_up(result.fatal(result.error))
        if result.error:
            _log.warning("round %d could not be evaluated: %s", item.round, result.error)
        node = self._config.node.id
        self._keeper.append(EvaluationRecord(item.round, node, result.accuracy, result.own_accuracy, result.loss))

    def _handle(self, event: ev.Event) -> None:
        phase = self.machine.phase
        before = self.machine.around.live.keys() if phase is Phase.WAITING else None
        effects = self.machine.handle(event, self._clock())
        if phase in _OUTSIDE and self.machine.phase not in _OUTSIDE:
            self._treasury.begin_rounds()
        for effect in effects:
            self._do(effect)
        if before is not None and before != self.machine.around.live.keys():
            here, expected = len(self.machine.around.here), self._config.descriptor().expect_nodes
            _log.info("%d of %d nodes are here", here, expected)

    def _wait_for_evaluations(self) -> None:
        """Wait for what a finished run still evaluates; who asks to stop has no time for that."""
        until = self._clock() + LAST_EVALUATIONS_S
        while self._evaluating and not self._stopping and self._clock() < until:
            self._look_after()
            item = self._mailbox.take(self._wait_s)
            if isinstance(item, Evaluated | StopAsked):
                self._take(item)

    def _wait_for_disk(self) -> None:
        """Hold on to what a finished run has learnt until the disk takes it; who asks to stop has no time for that."""
        while self._keeper.behind and not self._stopping and self._fault is None:
            self._look_after()
            item = self._mailbox.take(self._wait_s)
            if isinstance(item, StopAsked):
                self._take(item)
        try:
            self._keeper.close()
        except JournalError as error:
            _log.error("%s", error)  # another fault may hide it
            self._fault = self._fault or error

    # --- effects, one handler a kind

    @singledispatchmethod
    def _do(self, effect: fx.Effect) -> None:
        raise ContractViolation(f"no way to do {type(effect).__name__}")

    @_do.register
    def _save_state(self, effect: fx.SaveState) -> None:
        self._keeper.save_state(self._treasury.marked(effect.snapshot))

    @_do.register
    def _save_model(self, effect: fx.SaveModel) -> None:
        self._keeper.save_model(effect.round, effect.params)

    @_do.register
    def _watch(self, effect: fx.WatchNeighbours) -> None:
        if effect.peers != self._neighbours:
            _log.info("neighbours: %s", ", ".join(sorted(effect.peers)) or "none")
            self._neighbours = effect.peers
        self._reach.watch(effect)

    @_do.register
    def _train(self, effect: fx.StartTraining) -> None:
        trouble = self._keeper.trouble if self._keeper.behind else self._treasury.unfit()
        if not trouble:
            try:
                self._window.start(effect)
            except EnergyError as error:
                trouble = str(error)
        if trouble:
            self._mailbox.post_own(TrainingRefused(effect.round, f"not trained: {trouble}"))

    @_do.register
    def _stop_training(self, effect: fx.StopTraining) -> None:
        self._window.stop(at_once=effect.at_once)

    @_do.register
    def _publish(self, effect: fx.PublishUpdate) -> None:
        self._reach.publish(effect)

    @_do.register
    def _append(self, effect: fx.AppendRecord) -> None:
        self._keeper.append(self._treasury.account(effect.record))
        level = logging.WARNING if effect.record.error else logging.INFO
        _log.log(level, "%s", one_line(effect.record))
        self._tell_losses()

    @_do.register
    def _evaluate(self, effect: fx.Evaluate) -> None:
        if self._evaluating >= MAX_EVALUATIONS:
            _log.warning("round %d is not evaluated: earlier evaluations have not ended", effect.round)
            return
        self._evaluating += 1
        round_ = effect.round
        self._trainer.submit_evaluate(
            effect.params,
            self._config.evaluation.samples,
            lambda result: self._mailbox.post_own(Evaluated(round_, result)),
        )

    @_do.register
    def _tell(self, effect: fx.Notify) -> None:
        _log.warning("%s", effect.message)

    @_do.register
    def _finish(self, effect: fx.RunFinished) -> None:
        self._finished = effect.reason

    def _tell_losses(self) -> None:
        """Say once a round what got lost on the way in or out since the last time."""
        stats = self._reach.stats()
        dropped, refused = stats.dropped - self._losses.dropped, stats.refused - self._losses.refused
        self._losses = stats
        if dropped > 0 or refused > 0:  # a new transport counts from 0
            _log.warning("%d messages from peers were dropped, %d chunks of own models not sent", dropped, refused)
