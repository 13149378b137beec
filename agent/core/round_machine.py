"""The heart: one node's life as a pure state machine, `handle(event, now) -> effects`, with one `deadline`.

Theory of operation
-------------------
A node WAITs until the roster is complete and its neighbours are ready (or the start timeout), then goes through rounds.
In each round it decides (participation), trains or does not (TRAINING), publishes its model, waits for its neighbours'
models of the same round (COLLECTING), mixes, writes a record, and begins the next. Nothing is awaited without a
deadline: a neighbour that did not deliver gives its weight back to self. A node that lags two rounds or more behind
what most of its live neighbours announce jumps to their round, and does not train in that round, so that nobody has to
wait for it. A node that has never mixed and finds the run going is JOINING: it adopts its neighbours' average, with no
weight of its own, and publishes nothing before that. After a restart a node waits for the same announcements, and goes
on by itself where none come.

What a driver owes the machine
------------------------------
1. Effects are executed in the order returned.
2. `SaveState` is durable before a later effect starts: energy is reserved on disk before it is spent. Where the disk
   does not take it, all but a StartTraining may start: that is answered by TrainingFailed, without any energy.
3. Every `StartTraining` is answered once, by TrainingFinished or TrainingFailed of the same round.
4. After each call the driver reads `deadline` and arms one timer, which hands in DeadlineReached.
5. `now` never goes back.
6. One thread, and `Started` first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from agent.core import effects as fx
from agent.core import events as ev
from agent.core.budget import Ledger
from agent.core.costs import CostHistory
from agent.core.mixing import Arithmetic, AtOnce, mixing_weights
from agent.core.neighbourhood import LAG_ROUNDS, Neighbourhood
from agent.core.purse import Purse
from agent.core.round_state import MachineConfig, Phase, RoundState, restored_round
from agent.core.seeding import seed64
from agent.core.transitions import TRANSITIONS, Do
from agent.core.types import (
    LOOKING,
    Decision,
    ModelUpdate,
    NodeId,
    Params,
    Roster,
    Snapshot,
)
from agent.errors import ContractViolation


class RoundMachine:
    """One node; the module's docstring has its rules and what a driver owes it."""

    def __init__(  # noqa: PLR0917
        self,
        config: MachineConfig,
        params: Params,
        ledger: Ledger,
        snapshot: Snapshot | None = None,
        costs: CostHistory | None = None,
        arithmetic: Arithmetic | None = None,
    ) -> None:
        """Take the model to start from, the device's ledger, and what the journal kept of this same run, if anything.

        A reservation that the ledger still holds was left by a crash: it stays charged. `costs` are the device's, of
        whatever run; those of another workload are left behind.
        """
        self.config = config
        self.params = params
        self.phase = Phase.IDLE
        self.deadline: float | None = None
        self._arithmetic = arithmetic or AtOnce()
        self.purse = Purse(config, ledger, snapshot, costs or CostHistory())
        self.trained = snapshot.trained if snapshot else 0
        self.run_hex = config.run.digest().hex()
        self.schedule = self.purse.schedule
        self._state = restored_round(ledger, snapshot)
        self.around = Neighbourhood(config)
        self._epochs = self.around.epochs
        self._known_roster = snapshot.roster if snapshot and snapshot.begun else None
        self._effects: list[fx.Effect] = []
        self._now = 0.0
        self._stopping = ""
        self._fresh = not (snapshot and snapshot.begun)
        self._looking = not self._fresh
        self._told = ""
        self._over = bool(snapshot and snapshot.finished)
        self._first_round = snapshot.first_round if snapshot else 0

    def handle(self, event: ev.Event, now: float) -> tuple[fx.Effect, ...]:
        """Take one event at time `now` (seconds, never going back); return what the driver must do, in order."""
        rule = TRANSITIONS[self.phase][type(event)]
        self._now, self._effects, before = now, [], self.phase
        early = isinstance(event, ev.DeadlineReached) and (self.deadline is None or now < self.deadline)
        if early and rule.do is not Do.REFUSE:
            return ()
        _HANDLERS[rule.do](self, event)
        self._advance()
        if self.phase is not before and self.phase not in rule.leads_to:
            raise ContractViolation(f"{before.value} + {type(event).__name__} led to {self.phase.value}")
        return tuple(self._effects)

    # --- what a driver and a status page may read

    @property
    def round(self) -> int:
        """Number of the round under way, or of the one to come."""
        return self._state.number

    @property
    def ledger(self) -> Ledger:
        """The device's account of its budget."""
        return self.purse.ledger

    @property
    def decision(self) -> Decision | None:
        """The decision of the round under way, once it is taken."""
        return self._state.decision

    @property
    def roster(self) -> Roster | None:
        """Who belongs to the run now; None before a discovered roster is complete."""
        return self._epochs.roster

    @property
    def peers(self) -> frozenset[NodeId]:
        """The neighbours in the graph of the current epoch."""
        return self._epochs.peers

    @property
    def refusals(self) -> dict[str, int]:
        """How many messages of peers were refused since the start, by reason."""
        return self.around.inbox.refusals

    def snapshot(self) -> Snapshot:
        """Return what the journal must keep of this moment."""
        state = self._state
        return Snapshot(
            run=self.run_hex,
            round=state.number,
            begun=not self._fresh,
            finished=self._over,
            ledger=self.ledger,
            roster=self.roster,
            first_round=self._first_round,
            affordable_at_start=self.purse.affordable,
            trained=self.trained,
            decision=state.decision,
            energy_uj=state.energy_uj,
            energy_quality=state.quality,
            account=state.account,
            costs=self.purse.costs,
            plan_from=self.purse.plan_from,
        )

    # --- waiting for the run to begin, or to be found

    def _on_started(self, _event: ev.Event) -> None:
        if self._over:
            self._finish("this run is already finished on this node")
            return
        self.phase = Phase.WAITING
        run = self.config.run
        self.deadline = self._now + (run.start_timeout_s if self._fresh else run.round_deadline_s)
        alone = None if run.expect_nodes > 1 else Roster(0, (self.config.node,))
        members = self._known_roster or run.listed or alone
        if members is not None:
            self._take_roster(members)
            self._begin_if_ready()

    def _on_peers(self, event: ev.PeersChanged) -> None:
        self.around.take_peers(event.live, self._now)
        if self.phase is Phase.WAITING:
            self._discover()
            self._begin_if_ready()

    def _discover(self) -> None:
        """Take who is here for the roster once enough are, or another one has, and go on adding until the run begins.

        Nodes find each other in any order: they are ready for the same roster only when all have seen the same ones.
        """
        if not self._fresh or self.config.run.roster or self._known_roster is not None:
            return
        here, known = self.around.here, set(self.roster.members) if self.roster else set()
        roster = Roster(0, tuple(sorted(here)))
        decided = known or len(here) >= self.config.run.expect_nodes or self.around.anybody_ready_for(roster)
        if here > known and decided:
            self._take_roster(roster)

    def _on_roster(self, event: ev.RosterChanged) -> None:
        if self._epochs.announce(event.roster):
            self._watch()
        else:
            self._notify(f"roster epoch {event.roster.epoch} ignored: it is not newer than those known")

    def _take_roster(self, roster: Roster) -> None:
        self._epochs.begin(roster)
        self._watch()

    def _watch(self) -> None:
        """Listen to the neighbours of now and of the rosters to come, and say what they may expect of this node."""
        if self.roster is not None:
            self.around.inbox.keep_senders(self._epochs.watched)
            self._told = self._ready()
            self._do(fx.WatchNeighbours(self._epochs.watched, self._told))

    def _ready(self) -> str:
        """Return the roster that round 0 can begin with; past it nobody can begin with this node."""
        if self._looking:
            return LOOKING
        return "" if self.round or self.roster is None else self.roster.digest().hex()

    def _begin_if_ready(self, *, late: bool = False) -> None:
        """Begin round 0 when all are here and ready; find the run where the neighbours' messages say it is going.

        Who has just come may see one neighbour only: before it is `late`, more than half of all of them must say so.
        """
        if self.roster is None:
            return
        watched = self._epochs.watched
        majority = self.around.inbox.majority_round(watched & self.around.live.keys(), None if late else watched)
        if not self._fresh:
            self._resume(majority)
            return
        if not self._epochs.belongs_in(majority or 0):
            return
        if majority is not None and majority > 0:
            self._join(majority)
        elif majority == 0 or self.around.all_ready():
            self._begin(0)

    def _resume(self, majority: int | None) -> None:
        """After a restart, go on where the neighbours are; in the own round where they have restarted, too."""
        if majority is None or majority < self.round:
            if self.around.nobody_can_tell():
                self._leave_round(self.round)
            return
        if self.round == 0 < majority:  # it never mixed: its model is the one that everybody began with
            self._record(())
            self._join(majority)
        else:
            self._leave_round(majority)

    def _on_start_timeout(self, _event: ev.Event) -> None:
        """Begin with who is there; alone nobody begins, for there is nobody to learn with."""
        run = self.config.run
        others = run.expect_nodes > 1 or bool(self.roster and set(self.roster.members) - {self.config.node})
        if others and not self.around.live:
            self._wait_on("no other node of the run can be reached; check the broker, mDNS and the fleet's name")
            return
        self._begin_if_ready(late=True)
        if self.phase is not Phase.WAITING:
            return
        if not self._fresh:
            self._leave_round(self.round)
        elif self.roster is None:
            self._take_roster(Roster(0, tuple(sorted(self.around.here))))
            self.deadline = self._now + run.round_deadline_s
            self._begin_if_ready()
        elif self._epochs.belongs_in(0):
            self._begin(0)
        else:
            self._wait_on("this node is not in the roster; add it to the fleet, or wait for the round that it joins in")

    def _wait_on(self, why: str) -> None:
        self._notify(f"still waiting: {why}")
        self.deadline = self._now + self.config.run.start_timeout_s

    # --- joining a run that is going

    def _join(self, round_: int) -> None:
        self.phase, self._looking = Phase.JOINING, True
        self._go_to(round_)

    def _adopt_if_complete(self, *, at_deadline: bool = False) -> None:
        arrived = {node: update.params for node, update in self.around.inbox.arrived(self.round).items()}
        awaited, majority = self.around.awaited_to_join(self.round), self.around.majority_round() or 0
        if arrived and (at_deadline or not awaited):
            self.params = self._arithmetic.adopt(arrived)
            self._first_round = self.round + 1
            self._notify(f"joined the run in round {self.round} with the average of {len(arrived)} neighbours")
            self._do(fx.SaveModel(self.round, self.params))
            self._begin(self.round + 1)
        elif not arrived and not awaited and majority > self.round:
            deadline = self.deadline
            self._join(majority)
            self.deadline = deadline  # a fleet that runs ahead shall not put off the word that this node has not joined
            self._adopt_if_complete()
        elif at_deadline and self.round + 1 >= self.schedule.total_rounds:
            self._over = True
            self._finish("the run ended before this node could join it")
        elif at_deadline:
            stranger = self.around.inbox.rejected["other roster"]
            why = (
                "the run goes on with another roster, without this node"
                if stranger
                else "no neighbour's model has come"
            )
            self._notify(f"still waiting to join in round {self.round}: {why}")
            self._join(max(self.round, majority))

    # --- a round

    def _begin(self, round_: int) -> None:
        """Take up round `round_`: decide, and either train or share."""
        self._enter(round_)
        if self._over:
            return
        state = self._state
        state.decision, state.account = self.purse.decide(round_, self._first_round, self.trained, self._now)
        if not state.decision.train:
            self._do(fx.SaveState(self.snapshot()))
            self._share()
            return
        guard_uj = self.purse.reserve(self.run_hex, round_)
        self.phase = Phase.TRAINING
        seed = seed64(self.config.run.seed, self.config.node, round_, "training")
        self._do(fx.SaveState(self.snapshot()))
        self._do(fx.StartTraining(round_, self.params, seed, guard_uj))

    def _on_budget(self, event: ev.BudgetRenewed) -> None:
        next_round = self.round + (self._state.decision is not None)
        if self.purse.renew(event, next_round, self._now):
            self._notify(f"a new budget period has begun: {event.period}")
            self._do(fx.SaveState(self.snapshot()))

    def _on_energy(self, event: ev.EnergyFlowed) -> None:
        self.purse.flow(event)
        if event.background_uj:  # what was credited may be forgotten
            self._do(fx.SaveState(self.snapshot()))

    def _enter(self, round_: int) -> None:
        """Move to the beginning of `round_`, or to the end of the run."""
        self._looking = False
        self._go_to(round_)
        self._fresh = False
        if round_ >= self.schedule.total_rounds:
            self._over = True
            self._finish("all rounds are done")
        elif not self._epochs.belongs_in(round_):
            self._over = True
            self._do(fx.SaveModel(round_ - 1, self.params))
            self._finish(f"this node is not in the roster of round {round_}")

    def _go_to(self, round_: int) -> None:
        """Make `round_` the one under way, with the roster that is in force in it."""
        if self.round != round_ or self._state.decision is None:
            self._state = RoundState(round_)
        self._state.started_s = self._now
        self.purse.keep_pace(round_, self._now)
        self.deadline = self._now + self.config.run.round_deadline_s
        self.around.inbox.keep_window(round_)
        if self._epochs.advance(round_) or self._ready() != self._told:
            self._watch()

    def _leave_round(self, target: int) -> None:
        """Go to round `target`, where the fleet is, without training in it: nobody shall wait for a late node."""
        if self.phase is Phase.WAITING and target != self.round and self._state.decision is not None:
            self._record(())
        self._enter(target)
        if self._over:
            return
        if self._state.decision is None:
            self._state.decision = Decision(False, 0.0, 0.0, "catching up")
        self._do(fx.SaveState(self.snapshot()))
        self._share()

    def _on_trained(self, event: ev.TrainingFinished) -> None:
        self._settle(event)
        self.params, self._state.loss = event.params, event.loss
        self.trained += 1
        self._after_training()

    def _on_training_failed(self, event: ev.TrainingFailed) -> None:
        self._settle(event)
        self._state.error = event.reason
        self._after_training()

    def _settle(self, event: ev.TrainingFinished | ev.TrainingFailed) -> None:
        if event.round != self.round:
            raise ContractViolation(f"an answer for round {event.round} came while round {self.round} was training")
        self._state.charge(self.purse.settle(event), event.quality, event.window)

    def _after_training(self) -> None:
        self._do(fx.SaveState(self.snapshot()))
        if self._stopping:
            self._stop()
        else:
            self._share()

    def _on_training_deadline(self, _event: ev.Event) -> None:
        """Ask the training to end; if it does not within the grace, end it."""
        self._do(fx.StopTraining(self.round, at_once=self._state.stop_asked))
        self.deadline = None if self._state.stop_asked else self._now + self.config.stop_grace_s
        self._state.stop_asked = True

    def _share(self) -> None:
        self.phase = Phase.COLLECTING
        self._state.published, self._state.published_s = self._arithmetic.digest(self.params), self._now
        if self.peers and self.roster is not None:
            update = ModelUpdate(
                sender=self.config.node,
                round=self.round,
                epoch=self.roster.epoch,
                roster=self.roster.digest(),
                degree=len(self.peers),
                trained=self.trained,
                params=self.params,
                digest=self._state.published,
            )
            self._do(fx.PublishUpdate(update))

    # --- what neighbours send

    def _on_update(self, event: ev.UpdateReceived) -> None:
        waiting = self.phase is Phase.WAITING
        self.around.take_update(event.update, len(self.params), self.round, self._now, floating=waiting)
        self._look_around()

    def _on_announced(self, event: ev.RoundAnnounced) -> None:
        self.around.note_round(event.sender, event.round, self._now)
        self._look_around()

    def _on_rejected(self, event: ev.UpdateRejected) -> None:
        self.around.inbox.rejected[event.reason] += 1

    def _look_around(self) -> None:
        if self.phase is Phase.WAITING:
            self._begin_if_ready()

    # --- the end of a round

    def _advance(self) -> None:
        """End the round if nothing more has to be waited for: one in a call, or a lone node would never return."""
        if self.phase is Phase.JOINING:
            self._adopt_if_complete()
        if self.phase is not Phase.COLLECTING:
            return
        until = self._awaited_until()
        if until <= self._now:
            self._mix()
            majority = self.around.majority_round() or 0
            if majority >= self.round + LAG_ROUNDS:
                self._leave_round(majority)
            else:
                self._begin(self.round + 1)
            until = self._awaited_until()
        if self.phase is Phase.COLLECTING:  # mypy: the next round may be one
            self.deadline = max(self._now, until)

    def _awaited_until(self) -> float:
        """Return until when this round waits; a node that lags waits for nothing."""
        if self.around.lags(self.round):
            return self._now
        started_s = self._now if self._state.started_s is None else self._state.started_s
        return self.around.awaited_until(self.round, started_s)

    def _mix(self) -> None:
        """Average what arrived, write the account of the round, and keep and measure the model when that is due."""
        arrived, me = self.around.to_mix(self.round), self.config.node
        weights = mixing_weights(me, len(self.peers), {node: update.degree for node, update in arrived.items()})
        digests = {node: update.digest for node, update in arrived.items()} | {me: self._state.published}
        models = {node: update.params for node, update in arrived.items()} | {me: self.params}
        self.params = self._arithmetic.mix(models, weights)
        self._record(tuple((node, digests[node], weights[node]) for node in weights))
        self._keep_and_measure()

    def _keep_and_measure(self) -> None:
        done, last = self.round + 1, self.round + 1 >= self.schedule.total_rounds
        if last or self.round == 0 or done % self.config.save_model_every == 0:
            self._do(fx.SaveModel(self.round, self.params))
        every = self.config.evaluate_every
        if every and (last or done % every == 0):
            self._do(fx.Evaluate(self.round, self.params))

    def _record(self, mixed: tuple[tuple[NodeId, str, float], ...]) -> None:
        kind, rejected = self.schedule.kind(self.round), self.around.inbox.take_rejected()
        me, expected = self.config.node, len(self.peers)
        record = self._state.record(self.run_hex, me, kind, expected, mixed, rejected, self._now)
        self._do(fx.AppendRecord(replace(record, charged_uj=self.ledger.charged_uj, period=self.ledger.period)))

    # --- the end of the run

    def _on_stop(self, event: ev.StopRequested) -> None:
        self._stopping = event.reason
        if self.phase is Phase.TRAINING:
            self._do(fx.StopTraining(self.round, at_once=False))
            self._state.stop_asked = True
            self.deadline = self._now + self.config.stop_grace_s
        else:
            self._stop()

    def _stop(self) -> None:
        if not self._fresh:  # first weights are no model to keep: they would push an earlier run's out
            self._do(fx.SaveModel(self.round, self.params))
        self._finish(self._stopping)

    def _finish(self, reason: str) -> None:
        self.phase = Phase.DONE
        self.deadline = None
        self._do(fx.SaveState(self.snapshot()))
        self._do(fx.RunFinished(reason))

    def _on_join_deadline(self, _event: ev.Event) -> None:
        self._adopt_if_complete(at_deadline=True)

    def _nothing(self, _event: ev.Event) -> None:
        """Take note of nothing: what happens here is done by `_advance`, or does not matter any more."""

    def _refuse(self, event: ev.Event) -> None:
        raise ContractViolation(f"{type(event).__name__} cannot happen while {self.phase.value}: a driver's fault")

    def _do(self, effect: fx.Effect) -> None:
        self._effects.append(effect)

    def _notify(self, message: str) -> None:
        self._do(fx.Notify(message))


_HANDLERS: dict[Do, Callable[..., None]] = {
    Do.START: RoundMachine._on_started,
    Do.TAKE_PEERS: RoundMachine._on_peers,
    Do.TAKE_ROSTER: RoundMachine._on_roster,
    Do.BEGIN_LATE: RoundMachine._on_start_timeout,
    Do.ADOPT_LATE: RoundMachine._on_join_deadline,
    Do.TAKE_TRAINED: RoundMachine._on_trained,
    Do.TAKE_FAILURE: RoundMachine._on_training_failed,
    Do.END_TRAINING: RoundMachine._on_training_deadline,
    Do.TAKE_BUDGET: RoundMachine._on_budget,
    Do.TAKE_ENERGY: RoundMachine._on_energy,
    Do.TAKE_UPDATE: RoundMachine._on_update,
    Do.TAKE_ROUND: RoundMachine._on_announced,
    Do.COUNT_REFUSAL: RoundMachine._on_rejected,
    Do.STOP: RoundMachine._on_stop,
    Do.NOTHING: RoundMachine._nothing,
    Do.REFUSE: RoundMachine._refuse,
}
