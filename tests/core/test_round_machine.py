"""The machine's own rules, one at a time: liars, deadlines, starts, stops and restarts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from agent.core import effects as fx
from agent.core import events as ev
from agent.core.budget import Ledger, Reservation
from agent.core.round_machine import RoundMachine
from agent.core.round_state import MachineConfig, Phase
from agent.core.types import ModelUpdate, NodeId, Quality, Roster, RoundRecord, Snapshot
from tests.core.cluster import COST, N_PARAMS, make_run
from tests.core.machines import ME, NODES, OTHERS, machine_in, other, ready, start, update_for

LIAR = OTHERS[0]


def state_of(machine: RoundMachine) -> tuple[object, ...]:
    """Return all of a machine that a message may change, but its counters."""
    return (
        machine.phase,
        machine.deadline,
        machine.snapshot(),
        machine.params.tobytes(),
        len(machine.around.inbox),
        machine.around.live,
    )


LISTENING = (Phase.WAITING, Phase.TRAINING, Phase.COLLECTING, Phase.JOINING)
LIES: dict[str, tuple[dict[str, object], str]] = {
    "a round that the run does not have": ({"round": 30}, "no such round"),
    "the largest round there is": ({"round": 2**32 - 1}, "no such round"),
    "a round far ahead": ({"round": 29}, "too early"),
    "its degree": ({"degree": 1}, "wrong degree"),
    "its degree, vastly": ({"degree": 2**32 - 1}, "wrong degree"),
    "its epoch": ({"epoch": 7}, "other roster"),
    "its roster": ({"roster": b"12345678"}, "other roster"),
    "its size": ({"params": np.zeros(N_PARAMS + 1, np.float32)}, "wrong size"),
    "its shape": ({"params": np.zeros((N_PARAMS, 1), np.float32)}, "wrong size"),
    "its name": ({"sender": NodeId("mallory")}, "not a neighbour"),
    "being me": ({"sender": ME}, "not a neighbour"),
}


@pytest.mark.parametrize(
    ("lie", "phase"),
    [(lie, phase) for lie in LIES for phase in LISTENING if (lie, phase) != ("a round far ahead", Phase.WAITING)],
)
def test_a_liar_changes_nothing_but_a_counter(lie: str, phase: Phase) -> None:
    """One neighbour or stranger that lies costs a counter, and no round, model or wait."""
    machine, (changes, reason) = machine_in(phase), LIES[lie]
    update = other(update_for(machine, LIAR), **changes)
    before = state_of(machine)
    assert machine.handle(ev.UpdateReceived(update), 2.5) == ()
    assert state_of(machine) == before
    assert machine.around.inbox.rejected == {reason: 1}


def test_one_liar_moves_nobody_and_many_words_are_one_voice() -> None:
    """A round counts when more than half of the live neighbours announce it, however often one of them does."""
    machine = machine_in(Phase.COLLECTING)
    for round_ in range(1, 30):
        machine.handle(ev.RoundAnnounced(LIAR, round_), 2.5)
    assert (machine.phase, machine.round) == (Phase.COLLECTING, 0)
    machine.handle(ev.RoundAnnounced(OTHERS[1], 9), 2.6)
    assert machine.round == 9


def test_a_jump_leaves_one_record_of_the_round_that_it_leaves() -> None:
    """A lagging node mixes what it has, writes one record, and skips training in the round that it jumps to."""
    machine = machine_in(Phase.COLLECTING)
    machine.handle(ev.RoundAnnounced(OTHERS[0], 9), 2.5)
    effects = machine.handle(ev.RoundAnnounced(OTHERS[1], 9), 2.5)
    assert [effect.record.round for effect in effects if isinstance(effect, fx.AppendRecord)] == [0]
    assert machine.decision is not None
    assert machine.decision.reason == "catching up"
    assert not any(isinstance(effect, fx.StartTraining) for effect in effects)


def test_a_jump_cannot_end_the_run() -> None:
    """Not even a majority of liars announces a round beyond the last: such words are not noted."""
    machine = machine_in(Phase.COLLECTING)
    for node in OTHERS:
        machine.handle(ev.RoundAnnounced(node, 30), 2.5)
    assert (machine.phase, machine.round) == (Phase.COLLECTING, 0)


def test_words_of_strangers_are_not_noted() -> None:
    """A round announced by a node that is no neighbour moves nobody."""
    machine = machine_in(Phase.COLLECTING)
    for i in range(9):
        machine.handle(ev.RoundAnnounced(NodeId(f"x{i}"), 9), 2.5)
    assert machine.round == 0


def test_the_first_model_of_a_sender_and_round_is_kept() -> None:
    """A second, different model of the same round is a duplicate: nobody votes twice."""
    machine = machine_in(Phase.COLLECTING)
    machine.handle(ev.UpdateReceived(update_for(machine, LIAR)), 2.5)
    machine.handle(ev.UpdateReceived(update_for(machine, LIAR, params=np.full(N_PARAMS, 9e9, np.float32))), 2.5)
    assert machine.around.inbox.rejected == {"duplicate": 1}
    for node in OTHERS[1:]:
        machine.handle(ev.UpdateReceived(update_for(machine, node, 0)), 2.6)
    assert machine.round == 1
    assert np.abs(machine.params).max() < 200


def test_who_sends_ahead_is_kept_for_two_rounds_and_no_more() -> None:
    """Early models wait in the inbox within the look-ahead; the one after that is refused."""
    machine = machine_in(Phase.COLLECTING)
    for round_ in (1, 2, 3):
        machine.handle(ev.UpdateReceived(update_for(machine, LIAR, round_)), 2.5)
    assert len(machine.around.inbox) == 2
    assert machine.around.inbox.rejected == {"too early": 1}


def test_a_node_that_knows_nobody_yet_keeps_a_bounded_window() -> None:
    """While it waits, a node keeps the newest rounds of each sender, whatever they claim to be."""
    machine = machine_in(Phase.WAITING)
    for round_ in range(29, 0, -1):
        machine.handle(ev.UpdateReceived(update_for(machine, LIAR, round_)), 2.5)
    for round_ in range(1, 30):
        machine.handle(ev.UpdateReceived(update_for(machine, LIAR, round_)), 2.5)
    assert len(machine.around.inbox) == 3


def test_readiness_is_withdrawn_once_round_0_is_over() -> None:
    """A node in round 1 says that nobody can begin round 0 with it any more."""
    machine = machine_in(Phase.COLLECTING)
    effects: list[fx.Effect] = []
    for node in OTHERS:
        effects += machine.handle(ev.UpdateReceived(update_for(machine, node, 0)), 2.5)
    assert [effect.ready for effect in effects if isinstance(effect, fx.WatchNeighbours)] == [""]


def test_a_fresh_node_does_not_begin_with_neighbours_that_are_past_round_0() -> None:
    """Everybody online is not enough: those who are in the middle of the run are not ready."""
    machine = start()
    machine.handle(ev.PeersChanged(dict.fromkeys(OTHERS, "")), 1.0)
    assert machine.phase is Phase.WAITING


def test_the_word_of_most_neighbours_begins_round_0() -> None:
    """Who missed the moment of readiness begins when more than half of its neighbours are seen in round 0."""
    machine = start()
    machine.handle(ev.PeersChanged(dict.fromkeys(OTHERS, "")), 1.0)
    machine.handle(ev.RoundAnnounced(OTHERS[0], 0), 1.5)
    assert machine.phase is Phase.WAITING
    machine.handle(ev.RoundAnnounced(OTHERS[1], 0), 1.5)
    assert (machine.phase, machine.round) == (Phase.TRAINING, 0)


def lonely_effects(machine: RoundMachine) -> list[fx.Effect]:
    """Drive a node without peers to its end as a driver would: each deadline is now."""
    effects = list(machine.handle(ev.Started(), 0.0))
    while machine.phase is not Phase.DONE:
        assert machine.deadline == 0.0
        more = machine.handle(ev.DeadlineReached(), 0.0)
        assert sum(isinstance(effect, fx.AppendRecord) for effect in more) <= 1
        effects += more
    return effects


def test_a_node_without_peers_ends_at_most_one_round_in_a_call() -> None:
    """A lone node with nothing to train leaves its driver time for signals and the watchdog between two rounds."""
    run = make_run((ME,), rounds=2_000, policy="greedy")
    machine = RoundMachine(MachineConfig(ME, run, COST), np.ones(N_PARAMS, np.float32), Ledger(0))
    effects = lonely_effects(machine)
    assert sum(isinstance(effect, fx.AppendRecord) for effect in effects) == 2_000


def records(effects: tuple[fx.Effect, ...]) -> list[RoundRecord]:
    """Return the records among effects."""
    return [effect.record for effect in effects if isinstance(effect, fx.AppendRecord)]


def test_times_of_a_round_that_began_at_time_zero() -> None:
    """Zero is a time like any other: a model published at 0 s was collected for as long as it took."""
    machine = start(make_run(NODES, policy="greedy", rounds=5), limit=0)
    machine.handle(ready(machine), 0.0)
    effects: tuple[fx.Effect, ...] = ()
    for node in OTHERS:
        effects = machine.handle(ev.UpdateReceived(update_for(machine, node, 0)), 4.0)
    (record,) = records(effects)
    assert (record.train_s, record.collect_s) == (0.0, 4.0)


def crashed(*, reserved: bool, energy: int = 0, begun: bool = True) -> tuple[Snapshot, MachineConfig]:
    """Return what a node left that died in round 4 of a run, in mid-training or after it."""
    machine = machine_in(Phase.TRAINING)
    ledger = replace(Ledger(9_000, charged_uj=2_000 + energy), reservation=Reservation(machine.run_hex, 4, 1_000))
    snapshot = replace(machine.snapshot(), round=4, begun=begun, energy_uj=energy, affordable_at_start=9)
    return replace(snapshot, ledger=ledger if reserved else replace(ledger, reservation=None)), machine.config


def resume(snapshot: Snapshot, config: MachineConfig) -> RoundMachine:
    """Return the machine that a driver makes after a crash, with all neighbours in its round."""
    machine = RoundMachine(config, np.ones(N_PARAMS, np.float32), snapshot.ledger, snapshot)
    machine.handle(ev.Started(), 100.0)
    machine.handle(ev.PeersChanged(dict.fromkeys(OTHERS, "")), 101.0)
    return machine


def test_an_open_reservation_stays_charged_once_however_often_the_power_goes() -> None:
    """Each start forfeits it from the same disk, and the first durable state settles it for good."""
    snapshot, config = crashed(reserved=True)
    for _ in range(3):
        machine = resume(snapshot, config)
        assert (machine.ledger.charged_uj, machine.ledger.forfeited_uj) == (3_000, 1_000)
    for node in OTHERS[:2]:
        effects = machine.handle(ev.RoundAnnounced(node, 4), 102.0)
    saved = next(effect.snapshot for effect in effects if isinstance(effect, fx.SaveState))
    again = resume(saved, config)
    assert (again.ledger.charged_uj, again.snapshot().energy_uj) == (3_000, 1_000)


def test_a_round_that_was_decided_is_shared_and_not_trained_again() -> None:
    """After a crash in mid-training the round goes on with the decision that stands, without a second training."""
    machine = resume(*crashed(reserved=True))
    effects: list[fx.Effect] = []
    for node in OTHERS:
        effects += machine.handle(ev.UpdateReceived(update_for(machine, node, 4)), 102.0)
    kinds = [type(effect) for effect in effects]
    assert fx.PublishUpdate in kinds
    assert not any(isinstance(effect, fx.StartTraining) and effect.round == 4 for effect in effects)
    (record,) = records(tuple(effects))
    assert (record.round, record.energy_uj, record.energy_quality) == (4, 1_000, Quality.ESTIMATED)
    assert record.decision.train
    assert "interrupted" in record.error


def test_a_resumed_node_does_not_go_back_to_a_slower_fleet() -> None:
    """Who was a round ahead waits for the others to come, and goes on in its own round."""
    machine = resume(*crashed(reserved=False))
    for node in OTHERS:
        machine.handle(ev.RoundAnnounced(node, 3), 102.0)
    assert machine.phase is Phase.WAITING
    machine.handle(ev.DeadlineReached(), 120.0)
    assert (machine.phase, machine.round) == (Phase.COLLECTING, 4)


def test_a_node_stopped_before_it_took_part_is_fresh_again() -> None:
    """A joiner that was stopped before it adopted starts from round 0 again, to look for the run anew."""
    snapshot, config = crashed(reserved=False, begun=False)
    machine = RoundMachine(config, np.ones(N_PARAMS, np.float32), snapshot.ledger, snapshot)
    assert machine.round == 0
    assert not machine.snapshot().begun


def test_a_joiner_of_the_last_round_ends_with_the_run() -> None:
    """Where the last round's models do not come there is nothing left to join: the node says so and ends."""
    machine = start()
    machine.handle(ev.PeersChanged(dict.fromkeys(OTHERS, "")), 1.0)
    for node in OTHERS:
        machine.handle(ev.RoundAnnounced(node, 29), 2.0)
    assert machine.phase is Phase.JOINING
    *_, finished = machine.handle(ev.DeadlineReached(), 30.0)
    assert finished == fx.RunFinished("the run ended before this node could join it")
    assert machine.snapshot().finished


def test_a_finished_run_is_not_begun_again() -> None:
    """A node that is started after its run says so and ends."""
    snapshot, config = crashed(reserved=False)
    machine = RoundMachine(config, np.ones(N_PARAMS, np.float32), snapshot.ledger, replace(snapshot, finished=True))
    effects = machine.handle(ev.Started(), 0.0)
    assert [type(effect) for effect in effects] == [fx.SaveState, fx.RunFinished]


def test_a_stop_asks_then_insists() -> None:
    """A stop in mid-training asks, insists after the grace, and then waits for the answer that the driver owes."""
    machine = machine_in(Phase.TRAINING)
    (asked,) = machine.handle(ev.StopRequested("SIGTERM"), 3.0)
    assert machine.deadline == 8.0
    (insisted,) = machine.handle(ev.DeadlineReached(), 8.0)
    assert (asked, insisted) == (fx.StopTraining(0, at_once=False), fx.StopTraining(0, at_once=True))
    effects = machine.handle(ev.TrainingFailed(0, "killed", 10, Quality.REPLAYED), 8.1)
    assert [type(effect) for effect in effects] == [fx.SaveState, fx.SaveModel, fx.SaveState, fx.RunFinished]


def test_mixing_weighs_what_arrived_and_gives_the_rest_to_self() -> None:
    """At the deadline the weights of those who did not deliver stay with self."""
    machine = machine_in(Phase.COLLECTING)
    machine.handle(ev.UpdateReceived(update_for(machine, OTHERS[2])), 2.5)
    (record,) = records(machine.handle(ev.DeadlineReached(), 21.0))
    assert [(node, weight) for node, _, weight in record.mixed] == [(ME, 0.75), (OTHERS[2], 0.25)]
    assert (record.peers_received, record.peers_expected) == (1, 3)


def early_epoch(machine: RoundMachine, sender: NodeId) -> ModelUpdate:
    """Return this round's model of a sender that put the coming roster in force too early."""
    roster = Roster(1, NODES, 9)
    return other(update_for(machine, sender), epoch=1, roster=roster.digest())


def test_an_edge_mixes_only_within_one_epoch() -> None:
    """A model of this round that was made under the coming roster is not mixed."""
    machine = machine_in(Phase.COLLECTING)
    machine.handle(ev.RosterChanged(Roster(1, NODES, 9)), 2.1)
    machine.handle(ev.UpdateReceived(early_epoch(machine, OTHERS[0])), 2.2)
    for node in OTHERS[1:]:
        effects = machine.handle(ev.UpdateReceived(update_for(machine, node, 0)), 2.5)
    (record,) = records(effects)
    assert [node for node, _, _ in record.mixed] == [ME, *OTHERS[1:]]


def test_the_model_is_kept_and_measured_at_its_intervals_and_at_the_end() -> None:
    """SaveModel comes after the first round, and it and Evaluate every so many rounds, and after the last one."""
    run = make_run((ME,), rounds=7, policy="greedy")
    config = MachineConfig(ME, run, COST, save_model_every=3, evaluate_every=2)
    effects = lonely_effects(RoundMachine(config, np.ones(N_PARAMS, np.float32), Ledger(0)))
    assert [effect.round for effect in effects if isinstance(effect, fx.SaveModel)] == [0, 2, 5, 6]
    assert [effect.round for effect in effects if isinstance(effect, fx.Evaluate)] == [1, 3, 5, 6]


def test_a_roster_that_was_found_before_the_run_began_is_found_anew_after_a_restart() -> None:
    """Who was stopped while waiting may come back to other nodes: only a roster that a run began with stays."""
    run = make_run((), expect_nodes=3, rounds=3)
    config = MachineConfig(ME, run, COST)
    machine = RoundMachine(config, np.ones(N_PARAMS, np.float32), Ledger(None))
    machine.handle(ev.Started(), 0.0)
    machine.handle(ev.PeersChanged(dict.fromkeys(OTHERS[:2], "")), 1.0)
    assert machine.roster is not None
    machine.handle(ev.StopRequested("power"), 2.0)
    again = RoundMachine(config, machine.params, machine.ledger, machine.snapshot())
    again.handle(ev.Started(), 0.0)
    assert again.roster is None
    again.handle(ev.PeersChanged(dict.fromkeys(OTHERS, "")), 1.0)
    assert again.roster is not None
    assert set(again.roster.members) == {ME, *OTHERS}
