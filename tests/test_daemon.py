"""The real daemon, journal and machine over the in-memory transport, with a few lines in place of torch."""

from __future__ import annotations

import errno
import logging
import math
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from agent import durable, keeper
from agent.config import AgentConfig, EvaluationSection, LearningSection, PolicySection, RunSection
from agent.core.budget import Cost, Ledger, Reservation
from agent.core.costs import CostHistory
from agent.core.mixing import mix, mixing_weights
from agent.core.participation import POLICIES, Participant, effective_schedule
from agent.core.seeding import generator, seed64
from agent.core.topology import neighbours
from agent.core.types import Decision, NodeId, Params, Quality, Roster, Snapshot, WindowDetail, params_digest
from agent.daemon import Daemon
from agent.energy.allowance import Allowance
from agent.energy.meter import Reading
from agent.energy.open import open_meter
from agent.energy_config import EnergySection
from agent.errors import AgentError, ConfigError, EnergyError, JournalError, NetworkError
from agent.journal import Journal, Recovered, read_evaluations, read_records
from agent.learning.factory import ModelInfo
from agent.learning.trainer import Evaluation, TrainOutcome, TrainTask
from agent.mailbox import Mailbox
from agent.network.memory import MemoryHub, MemoryTransport
from agent.network.transport import Presence, PresenceSeen, Transport, TransportStats
from agent.reach import identity
from agent.service import Notifier
from agent.status import read_status
from agent.treasury import Rules, Treasury
from tests.device_rig import device_config

INFO = ModelInfo(12, b"toyshape", np.arange(12, dtype=np.float32) / np.float32(8))
COST_UJ = 23_518_350
"""Of a training round of the default device."""
TIMEOUT_S = 60.0


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    """Fail where a test leaves a thread behind."""
    before = set(threading.enumerate())
    yield
    assert not [thread for thread in threading.enumerate() if thread not in before]


def step(params: Params, seed: int, number: int) -> Params:
    """Return `params` after one local step: a function of its arguments, with the same bits everywhere."""
    noise = generator(seed, number).integers(-512, 512, size=params.shape).astype(np.float32) / np.float32(1024)
    return np.asarray(params * np.float32(0.75) + noise, dtype=np.float32)


@dataclass
class ToyTrainer:
    """An AsyncTrainer that works in a thread of its own for each request."""

    failing: frozenset[int] = frozenset()
    """Rounds whose training ends in NaN."""
    held: int = -1
    """The round whose training waits after its first step until it is asked to end."""
    hold_evaluations: bool = False
    trained: list[tuple[int, int]] = field(default_factory=list)
    """(round, local steps done) of each training."""
    holding: threading.Event = field(default_factory=threading.Event)
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)
    steps: int = 0
    """Local steps done of the training under way."""
    closed: bool = False

    def submit_train(
        self, task: TrainTask, done: Callable[[TrainOutcome], None], progress: Callable[[int], None] | None = None
    ) -> None:
        """Train in the background."""
        self._stop.clear()
        self._start(lambda: self._train(task, done, progress))

    def submit_evaluate(self, params: Params, samples: int, done: Callable[[Evaluation], None]) -> None:
        """Return the mean as accuracy."""

        def evaluate() -> None:
            if self.hold_evaluations:
                self.holding.set()
                assert self._stop.wait(TIMEOUT_S)
            done(Evaluation(float(params.mean()), None, None, samples))

        self._start(evaluate)

    def stop(self) -> None:
        """End before the next step."""
        self._stop.set()

    def kill(self) -> None:
        """Do the same."""
        self._stop.set()

    def close(self) -> None:
        """Leave no thread behind."""
        self.closed = True
        self._stop.set()
        for thread in self._threads:
            thread.join(TIMEOUT_S)

    def _start(self, work: Callable[[], None]) -> None:
        self._threads.append(threading.Thread(target=work))
        self._threads[-1].start()

    def _train(
        self, task: TrainTask, done: Callable[[TrainOutcome], None], progress: Callable[[int], None] | None
    ) -> None:
        params, steps = task.params, 0
        while steps < task.local_steps and not self._stop.is_set():
            params, steps = step(params, task.seed, steps), steps + 1
            self.steps = steps
            if progress:
                progress(steps)
            if task.round == self.held:
                self.holding.set()
                assert self._stop.wait(TIMEOUT_S)
        self.trained.append((task.round, steps))
        if task.round in self.failing:
            done(TrainOutcome(task.params, None, steps, 0.0, "the loss was nan"))
        else:
            done(TrainOutcome(params, float(params.mean()), steps, 0.0))


class Locked:
    """A MemoryTransport that daemons in several threads can use: the hub wants one at a time."""

    def __init__(self, transport: Transport, lock: Any) -> None:
        self._transport, self._lock = transport, lock

    def start(self) -> None:
        """Join."""
        with self._lock:
            self._transport.start()

    def watch(self, peers: frozenset[NodeId]) -> None:
        """Subscribe."""
        with self._lock:
            self._transport.watch(peers)

    def announce(self, ready: str) -> None:
        """Say it."""
        with self._lock:
            self._transport.announce(ready)

    def publish(self, chunks: Sequence[bytes]) -> int:
        """Send."""
        with self._lock:
            return self._transport.publish(chunks)

    def metrics(self, payload: bytes) -> None:
        """Count."""
        with self._lock:
            self._transport.metrics(payload)

    def stats(self) -> TransportStats:
        """Return the counters."""
        return self._transport.stats()

    def close(self, reason: str) -> None:
        """Leave."""
        with self._lock:
            self._transport.close(reason)


@dataclass
class Running:
    """A daemon in a thread."""

    daemon: Daemon
    trainer: ToyTrainer
    mailbox: Mailbox
    thread: threading.Thread
    results: list[str | AgentError]

    def end(self) -> str:
        """Wait for the end; return the reason, or raise what it died of."""
        self.thread.join(TIMEOUT_S)
        assert not self.thread.is_alive(), "the daemon does not end"
        (result,) = self.results
        if isinstance(result, AgentError):
            raise result
        return result


@dataclass
class Rig:
    """A hub and the daemons on it."""

    hub: MemoryHub = field(default_factory=MemoryHub)
    lock: Any = field(default_factory=threading.RLock)

    def make(self, config: AgentConfig, trainer: ToyTrainer | None = None, **options: Any) -> tuple[Daemon, Mailbox]:
        """Return a daemon that is ready to run."""
        mailbox = Mailbox()
        me = identity(config, config.descriptor().digest())

        def transport(_host: str, _port: int) -> Transport:
            return Locked(MemoryTransport(self.hub, me, mailbox.post), self.lock)

        meter, rules = options.pop("meter", None) or open_meter(config.energy_settings()), options.pop("rules", None)
        allowance = Allowance(config.budget_terms(), meter.limit_uj)
        treasury = Treasury(meter, allowance, options.get("clock", time.monotonic), rules)
        return Daemon(config, INFO, trainer or ToyTrainer(), transport, mailbox, treasury, **options), mailbox

    def start(self, config: AgentConfig, trainer: ToyTrainer | None = None, **options: Any) -> Running:
        """Run a daemon in a thread."""
        trainer = trainer or ToyTrainer()
        daemon, mailbox = self.make(config, trainer, **options)
        results: list[str | AgentError] = []
        thread = threading.Thread(target=partial(_run, daemon, results))
        running = Running(daemon, trainer, mailbox, thread, results)
        thread.start()
        return running


def _run(daemon: Daemon, results: list[str | AgentError]) -> None:
    try:
        results.append(daemon.run())
    except AgentError as error:
        results.append(error)


@pytest.fixture
def rig() -> Rig:
    """Give an empty hub."""
    return Rig()


def alone(folder: Path, **run: Any) -> AgentConfig:
    """Return the configuration of a node that has nobody to wait for."""
    fields = {"id": "toy", "rounds": 3, "roster": ("a",), "round_deadline_s": 60.0, **run}
    return device_config(folder, run=RunSection(**fields), policy=PolicySection(name="skiptrain", train_rounds=9))


def state_of(config: AgentConfig) -> Path:
    """Return the folder of a node's journal."""
    return Path(config.node.state_dir)


def recovered(config: AgentConfig) -> Recovered:
    """Return what a node's journal holds."""
    journal = Journal(state_of(config))
    try:
        return journal.recover()
    finally:
        journal.close()


def ledger_of(config: AgentConfig) -> Ledger:
    """Return what a node's journal says was spent."""
    snapshot = recovered(config).snapshot
    assert snapshot is not None
    return snapshot.ledger


def snapshot_of(config: AgentConfig, **changes: Any) -> Snapshot:
    """Return what a journal holds when the node dies while it trains in round 1."""
    run = config.descriptor().digest().hex()
    fields: dict[str, Any] = {
        "run": run,
        "round": 1,
        "begun": True,
        "finished": False,
        "ledger": Ledger(272 * COST_UJ, COST_UJ, 0, 1, Reservation(run, 1, COST_UJ)),
        "roster": Roster(0, (NodeId("a"),)),
        "first_round": 0,
        "affordable_at_start": 272,
        "trained": 1,
        "decision": Decision(True, 1.0, 0.5, "drawn to train"),
        "energy_uj": 0,
        "energy_quality": Quality.NONE,
    }
    return Snapshot(**{**fields, **changes})


def write_states(config: AgentConfig, *snapshots: Snapshot, model: Params | None = None) -> None:
    """Leave a journal behind."""
    journal = Journal(state_of(config))
    for snapshot in snapshots:
        journal.save_state(snapshot)
    if model is not None:
        journal.save_model(config.descriptor().digest().hex(), 0, model)
    journal.close()


# --- a fleet


@dataclass
class Pure:
    """One node of the same run, computed with the functions of the core and nothing else."""

    participant: Participant
    ledger: Ledger
    peers: frozenset[NodeId]
    params: Params = field(default_factory=lambda: INFO.initial_params)
    rows: list[tuple[Decision, str, int]] = field(default_factory=list)
    """(decision, digest published, microjoules) of each round."""


def recompute(configs: Sequence[AgentConfig]) -> dict[NodeId, Pure]:
    """Return what each node of a fleet must have done when nothing is missing."""
    run, steps = configs[0].descriptor(), configs[0].learning.local_steps
    policy = POLICIES[run.policy]
    schedule = effective_schedule(policy, run.schedule)
    graph = neighbours(run.topology, run.roster, run.seed)
    nodes: dict[NodeId, Pure] = {}
    for config in configs:
        meter = open_meter(config.energy_settings())
        ledger, cost = Ledger(meter.limit_uj), cast("Cost", meter.prior)
        who = Participant(policy, schedule, run.seed, config.node_id, cost, 0, ledger.affordable(cost))
        nodes[config.node_id] = Pure(who, ledger, graph[config.node_id])
    for round_ in range(schedule.total_rounds):
        for name, node in nodes.items():
            decision, cost = node.participant.decide(round_, node.ledger), cast("Cost", node.participant.cost)
            if decision.train:
                node.ledger = node.ledger.reserve(Reservation("", round_, cost.upper_uj)).settle(cost.expected_uj)
                for number in range(steps):
                    node.params = step(node.params, seed64(run.seed, name, round_, "training"), number)
            node.rows.append((decision, params_digest(node.params), cost.expected_uj if decision.train else 0))
        models = {name: node.params for name, node in nodes.items()}
        for name, node in nodes.items():
            weights = mixing_weights(name, len(node.peers), {peer: len(graph[peer]) for peer in node.peers})
            node.params = mix({other: models[other] for other in weights}, weights)
    return nodes


@pytest.mark.parametrize("names", [("a", "b", "c"), ("a", "b", "c", "d")])
def test_a_fleet_does_what_the_pure_functions_say(tmp_path: Path, rig: Rig, names: tuple[str, ...]) -> None:
    """Decisions, published digests, charges and final models are those of a computation without any daemon."""
    devices = ["xiaomi-12-pro", "galaxy-s22-ultra", "oneplus-nord-2", "poco-x3"]
    configs = [
        device_config(
            tmp_path,
            name,
            names,
            run=RunSection(id="toy", rounds=9, seed=3, roster=names, round_deadline_s=60.0),
            energy=EnergySection(device=devices[i], budget_scale=0.012),
            evaluation=EvaluationSection(every=4),
        )
        for i, name in enumerate(names)
    ]
    running = [rig.start(config) for config in configs]
    assert {node.end() for node in running} == {"all rounds are done"}
    expected = recompute(configs)
    assert 0 < sum(decision.train for node in expected.values() for decision, _, _ in node.rows) < 6 * len(names)
    for config in configs:
        records, pure = read_records(state_of(config)), expected[config.node_id]
        assert [record.round for record in records] == list(range(9))
        assert [(r.decision, r.digest_published, r.energy_uj) for r in records] == pure.rows
        assert {record.peers_received for record in records} == {len(names) - 1}
        assert {record.rejected for record in records} == {0}
        found = recovered(config)
        assert found.snapshot is not None
        assert found.snapshot.finished
        assert found.snapshot.ledger == pure.ledger
        assert (found.model_round, found.model is not None and found.model.tobytes()) == (8, pure.params.tobytes())
        assert [row.round for row in read_evaluations(state_of(config))] == [3, 7, 8]
    assert all(node.trainer.closed for node in running)


def test_a_finished_run_is_not_run_again(tmp_path: Path, rig: Rig) -> None:
    """A restart of the service after the end says so and ends well."""
    config = alone(tmp_path)
    assert rig.start(config).end() == "all rounds are done"
    again = rig.start(config)
    assert again.end() == "this run is already finished on this node"
    assert again.trainer.trained == []
    assert len(read_records(state_of(config))) == 3


# --- energy


@dataclass
class StepMeter:
    """A meter that sees 400 uJ for each local step of its trainer, and may break."""

    trainer: ToyTrainer
    breaks: bool = False
    limit_uj: int | None = 100_000
    prior: Cost = field(default_factory=lambda: Cost(1_000, 1_000))
    source: str = "steps"
    measured: bool = True
    learns: bool = False
    history: CostHistory = field(default_factory=CostHistory)
    broken: bool = False

    def trouble(self) -> str:
        """Say whether it is broken."""
        return "steps: the sensor is gone" if self.broken else ""

    def open(self) -> None:
        """Begin at zero."""
        self.trainer.steps = 0

    def spent_uj(self) -> int:
        """Return what the steps cost."""
        if self.breaks and self.trainer.steps:
            self.broken = True
            raise EnergyError("the sensor is gone")
        return 400 * self.trainer.steps

    def close(self) -> Reading:
        """Return what was seen."""
        if self.broken:
            return Reading(400, Quality.ESTIMATED, 2.0, 0.5, 0, error="the sensor is gone")
        return Reading(400 * self.trainer.steps, Quality.MEASURED, 2.0, 1.0, 7)

    def lap(self) -> int | None:
        """Return 30 uJ each time, until it breaks."""
        return None if self.broken else 30

    def mark(self) -> str:
        """Return what `since` knows again."""
        return "boot 1"

    def since(self, mark: str) -> int | None:
        """Return 77 uJ of the same boot."""
        return 77 if mark == "boot 1" else None

    def end(self) -> None:
        """Nothing was started."""


def metered(rig: Rig, config: AgentConfig, *, breaks: bool = False, rules: Rules | None = None) -> Running:
    """Run a daemon whose meter counts its trainer's steps."""
    trainer = ToyTrainer()
    return rig.start(config, trainer, meter=StepMeter(trainer, breaks), rules=rules)


def greedy(folder: Path, rounds: int, deadline_s: float = 60.0, **learning: Any) -> AgentConfig:
    """Return the configuration of a node alone that obeys a budget and has many local steps."""
    config = alone(folder, rounds=rounds, round_deadline_s=deadline_s)
    sections = {name: getattr(config, name) for name in config.__struct_fields__}
    policy, section = PolicySection(name="greedy"), LearningSection(batch_size=8, lr=0.05, **learning)
    return AgentConfig(**{**sections, "policy": policy, "learning": section})


def test_the_guard_ends_a_training_before_it_passes_its_reservation(tmp_path: Path, rig: Rig) -> None:
    """Of 10 local steps at 400 uJ each 2 are done for 1,000 uJ, as a third would pass them; they are charged."""
    config = greedy(tmp_path, rounds=2, local_steps=10)
    running = metered(rig, config)
    assert running.end() == "all rounds are done"
    assert running.trainer.trained == [(0, 2), (1, 2)]
    records = read_records(state_of(config))
    assert [(r.energy_uj, r.energy_quality, r.error) for r in records] == [(800, Quality.MEASURED, "")] * 2
    ledger = ledger_of(config)
    assert (ledger.charged_uj, ledger.windows, ledger.limit_uj) == (1_600, 2, 100_000)


def test_a_policy_without_a_budget_is_not_guarded(tmp_path: Path, rig: Rig) -> None:
    """`skiptrain` trains all of its local steps, whatever they cost; the ledger says so."""
    config = replace_learning(alone(tmp_path, rounds=1), local_steps=10)
    running = metered(rig, config)
    assert running.end() == "all rounds are done"
    assert running.trainer.trained == [(0, 10)]
    assert ledger_of(config).charged_uj == 4_000


def test_each_record_says_what_a_round_cost_and_what_was_decided_from(tmp_path: Path, rig: Rig) -> None:
    """Training, sharing and idling; the window's coverage and bound; the ledger before and after."""
    config = greedy(tmp_path, rounds=2, local_steps=2)
    assert metered(rig, config).end() == "all rounds are done"
    first, second = read_records(state_of(config))
    assert (first.idle_uj, second.idle_uj) == (30, None)
    assert first.share_uj in {30, 60}  # the daemon looks after the meter every 10 s, too
    assert second.share_uj in {30, 60}
    assert first.window == WindowDetail("steps", 2.0, 1.0, 7, None, 800, 0)
    assert first.account is not None
    assert second.account is not None
    assert (first.account.ledger.charged_uj, first.charged_uj, second.account.ledger.charged_uj) == (0, 800, 800)
    assert (first.account.expected_uj, first.account.upper_uj) == (1_000, 1_000)


def test_a_run_may_charge_what_sharing_and_idling_cost(tmp_path: Path, rig: Rig) -> None:
    """Each lap of 30 uJ is charged once: idling, the share of round 0, and that of round 1 before the end."""
    config = greedy(tmp_path, rounds=3, local_steps=2)
    rules = Rules(charge_background=True)
    assert metered(rig, config, rules=rules).end() == "all rounds are done"
    ledger, records = ledger_of(config), read_records(state_of(config))
    charged = [record.charged_uj for record in records]
    assert ledger.background_uj == ledger.charged_uj - 3 * 800
    assert 90 <= ledger.background_uj <= 180  # looks of the daemon come in between
    assert charged == sorted(charged, key=lambda value: value or 0)


def replace_learning(config: AgentConfig, **changes: Any) -> AgentConfig:
    """Return `config` with other keys in its section `learning`."""
    sections = {name: getattr(config, name) for name in config.__struct_fields__}
    return AgentConfig(**{**sections, "learning": LearningSection(batch_size=8, lr=0.05, **changes)})


def test_a_meter_that_breaks_ends_the_training_and_the_node_shares_on(tmp_path: Path, rig: Rig) -> None:
    """Energy that nobody can read is not spent on: what was reserved is charged, and no round is trained any more."""
    config = greedy(tmp_path, rounds=3, local_steps=1_000_000)
    running = metered(rig, config, breaks=True)
    assert running.end() == "all rounds are done"
    assert running.trainer.trained == [(0, 1)]
    records = read_records(state_of(config))
    assert [(r.energy_uj, r.energy_quality) for r in records] == [
        (1_000, Quality.ESTIMATED),
        (0, Quality.NONE),
        (0, Quality.NONE),
    ]
    assert records[1].error == "not trained: steps: the sensor is gone"
    ledger = ledger_of(config)
    assert (ledger.charged_uj, ledger.windows, ledger.reservation) == (1_000, 1, None)


@pytest.mark.parametrize(("mark", "charged"), [("boot 1", 77), ("boot 0", 900), ("", 900)])
def test_a_counter_of_the_same_boot_settles_what_a_crash_left_open(
    tmp_path: Path, rig: Rig, mark: str, charged: int
) -> None:
    """77 uJ were counted since the window opened; another boot's counter, or none, leaves the reservation charged."""
    config = greedy(tmp_path, rounds=3, deadline_s=0.2, local_steps=2)
    run = config.descriptor().digest().hex()
    ledger = Ledger(100_000, reservation=Reservation(run, 0, 900, mark), period="")
    leave_state(config, ledger)
    assert metered(rig, config).end() == "all rounds are done"
    ended = ledger_of(config)
    assert ended.forfeited_uj == charged


def leave_state(config: AgentConfig, ledger: Ledger) -> None:
    """Write the journal of a node that died in round 0."""
    journal = Journal(state_of(config))
    decision = Decision(True, 1.0, 0.5, "drawn to train")
    journal.save_state(
        Snapshot(
            run=config.descriptor().digest().hex(),
            round=0,
            begun=True,
            finished=False,
            ledger=ledger,
            roster=Roster(0, (config.node_id,)),
            first_round=0,
            affordable_at_start=None,
            trained=0,
            decision=decision,
            energy_uj=0,
            energy_quality=Quality.NONE,
        )
    )
    journal.close()


def test_a_failed_training_shares_the_old_model_and_costs_what_it_cost(tmp_path: Path, rig: Rig) -> None:
    """NaN in round 0: the first weights are published, the energy is charged, and the record says why."""
    config = alone(tmp_path, rounds=2)
    assert rig.start(config, ToyTrainer(failing=frozenset({0}))).end() == "all rounds are done"
    first, second = read_records(state_of(config))
    assert (first.digest_published, first.error) == (params_digest(INFO.initial_params), "the loss was nan")
    assert (first.energy_uj, first.loss, second.energy_uj, second.error) == (COST_UJ, None, COST_UJ, "")
    assert ledger_of(config).charged_uj == 2 * COST_UJ


# --- stops and restarts


def test_a_stop_in_mid_training_ends_it_between_two_steps_and_saves(tmp_path: Path, rig: Rig) -> None:
    """The training under way is settled, its model saved, the ledger has nothing open, and a restart goes on."""
    config = alone(tmp_path, round_deadline_s=0.2)
    running = rig.start(config, ToyTrainer(held=1))
    assert running.trainer.holding.wait(TIMEOUT_S)
    running.daemon.stop("stopped by SIGTERM")
    assert running.end() == "stopped by SIGTERM"
    assert running.trainer.trained == [(0, 4), (1, 1)]
    found = recovered(config)
    assert found.snapshot is not None
    assert (found.snapshot.round, found.snapshot.finished, found.model_round) == (1, False, 1)
    assert (found.snapshot.ledger.charged_uj, found.snapshot.ledger.reservation) == (2 * COST_UJ, None)
    again = rig.start(config)
    assert again.end() == "all rounds are done"
    assert [round_ for round_, _ in again.trainer.trained] == [2]
    assert [record.round for record in read_records(state_of(config))] == [0, 1, 2]


def test_a_stop_before_the_run_begins_ends_at_once(tmp_path: Path, rig: Rig) -> None:
    """Waiting for others does not hold up a stop."""
    running = rig.start(device_config(tmp_path, "a", ("a", "b")))
    running.daemon.stop("enough")
    assert running.end() == "enough"


def test_a_reservation_that_a_crash_left_open_stays_charged(tmp_path: Path, rig: Rig) -> None:
    """The round is not trained again; its record carries the reserved joules and says why."""
    config = alone(tmp_path, round_deadline_s=0.2)
    write_states(config, snapshot_of(config), model=INFO.initial_params)
    running = rig.start(config)
    assert running.end() == "all rounds are done"
    assert [round_ for round_, _ in running.trainer.trained] == [2]
    first, second = read_records(state_of(config))
    assert (first.round, first.energy_uj, first.energy_quality) == (1, COST_UJ, Quality.ESTIMATED)
    assert first.error == "interrupted while training: what was reserved stays charged"
    assert (second.round, second.energy_uj) == (2, COST_UJ)
    ledger = ledger_of(config)
    assert (ledger.charged_uj, ledger.forfeited_uj, ledger.windows) == (3 * COST_UJ, COST_UJ, 3)


def test_the_folder_of_another_run_keeps_the_ledger_and_not_the_round(tmp_path: Path, rig: Rig) -> None:
    """A new run begins at round 0 with its own weights, whatever size the old model had, and with the old spending."""
    config = alone(tmp_path)
    other = snapshot_of(config, run="ef" * 16, round=7, finished=True)
    write_states(config, other, model=np.ones(99, np.float32))
    running = rig.start(config)
    assert running.end() == "all rounds are done"
    assert [round_ for round_, _ in running.trainer.trained] == [0, 1, 2]
    ledger = ledger_of(config)
    assert (ledger.charged_uj, ledger.forfeited_uj) == (5 * COST_UJ, COST_UJ)
    assert ledger.limit_uj == 272 * COST_UJ


def test_a_new_period_is_a_new_budget(tmp_path: Path, rig: Rig) -> None:
    """Only another name of the period empties the ledger."""
    config = alone(tmp_path)
    old = snapshot_of(config, ledger=Ledger(1, 99 * COST_UJ, period="april"), run="ef" * 16)
    write_states(config, old)
    daemon, _ = rig.make(config)
    assert daemon.machine.ledger == Ledger(272 * COST_UJ)
    daemon.journal.close()


def test_a_lost_state_is_charged_as_one_more_reservation(
    tmp_path: Path, rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    """What the damaged newest state had reserved is unknown: the device pays for it rather than train for nothing."""
    config = alone(tmp_path, round_deadline_s=0.2)
    settled = Ledger(272 * COST_UJ, COST_UJ, 0, 1)
    write_states(config, snapshot_of(config, round=0, ledger=settled), snapshot_of(config))
    newest = state_of(config) / "state.0"
    newest.write_bytes(newest.read_bytes()[:-1])
    running = rig.start(config)
    assert running.end() == "all rounds are done"
    assert "the newest state was damaged" in caplog.text
    assert "23.518 J are charged for it" in caplog.text
    trainings = len(running.trainer.trained)
    ledger = ledger_of(config)
    assert (ledger.charged_uj, ledger.forfeited_uj) == ((2 + trainings) * COST_UJ, COST_UJ)


def test_a_model_of_another_size_is_refused_and_the_folder_set_free(tmp_path: Path, rig: Rig) -> None:
    """The same run with another model can't be: the message says what to do, and the lock is not kept."""
    config = alone(tmp_path)
    write_states(config, snapshot_of(config), model=np.ones(99, np.float32))
    for _ in range(2):
        with pytest.raises(JournalError, match=r"the model there has another size; give the new run a new run\.id"):
            rig.make(config)


# --- what fails around it


@dataclass
class FailingDisk:
    """Stands in for `os` under the journals: for some tries, nothing below `folder` can be forced to the disk."""

    folder: Path
    failures: float = math.inf
    """How many tries are left that fail."""

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def fsync(self, handle: int) -> None:
        """Fail as a full disk does, or do it."""
        if self.failures > 0 and Path(f"/proc/self/fd/{handle}").readlink().is_relative_to(self.folder):
            if math.isfinite(self.failures):  # else a test sets it, while this thread must not
                self.failures -= 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(handle)


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FailingDisk:
    """Give the full disk of the node `a`, which tries again at each opportunity."""
    disk = FailingDisk(tmp_path / "a" / "state")
    disk.folder.mkdir(parents=True)
    monkeypatch.setattr(durable, "os", disk)
    monkeypatch.setattr(keeper, "RETRY_S", 0.0)
    return disk


def test_on_a_full_disk_a_node_shares_but_does_not_train_and_recovers_by_itself(
    tmp_path: Path, rig: Rig, disk: FailingDisk, caplog: pytest.LogCaptureFixture
) -> None:
    """The first rounds cost nothing and their models are mixed all the same; then it trains; no record is missing."""
    disk.failures = 12
    policy, names = PolicySection(name="skiptrain", train_rounds=9), ("a", "b")
    configs = [device_config(tmp_path, name, names, policy=policy) for name in names]
    full, other = [rig.start(config) for config in configs]
    assert {full.end(), other.end()} == {"all rounds are done"}
    assert disk.failures == 0
    records = read_records(state_of(configs[0]))
    assert [record.round for record in records] == list(range(6))
    refused = [record for record in records if record.error]
    assert 0 < len(refused) < 6
    assert records[: len(refused)] == refused
    why = "cannot be written: No space left on device; free some space, or mend it"
    causes = {f"not trained: {disk.folder}: {what} {why}" for what in ("the state", "the model")}
    assert {record.error for record in refused} <= causes
    assert {(record.energy_uj, record.energy_quality) for record in refused} == {(0, Quality.NONE)}
    trained = [record.round for record in records[len(refused) :]]
    assert [round_ for round_, _ in full.trainer.trained] == trained
    ledger = ledger_of(configs[0])
    assert (ledger.charged_uj, ledger.windows) == (len(trained) * COST_UJ, len(trained))
    for record, own in zip(read_records(state_of(configs[1])), records, strict=True):
        assert {(node, digest) for node, digest, _ in record.mixed} >= {(NodeId("a"), own.digest_published)}
    assert [line for line in caplog.messages if str(disk.folder) in line and "round=" not in line] == [
        f"{disk.folder}: the state {why}; until then this node shares and averages, but does not train",
        f"{disk.folder}: takes writes again; 0 records of past rounds are lost",
    ]


@pytest.fixture
def held(tmp_path: Path, rig: Rig, disk: FailingDisk) -> Iterator[tuple[Running, AgentConfig]]:
    """Give a lone node whose run is over, and whose disk has taken nothing of it."""
    assert disk.failures
    config = alone(tmp_path)
    daemon, mailbox = rig.make(config)
    waits, wait = threading.Event(), daemon._wait_for_disk

    def note() -> None:
        waits.set()
        wait()

    daemon._wait_for_disk = note  # type: ignore[method-assign]
    results: list[str | AgentError] = []
    thread = threading.Thread(target=_run, args=(daemon, results))
    thread.start()
    assert waits.wait(TIMEOUT_S)
    yield Running(daemon, cast("ToyTrainer", daemon._trainer), mailbox, thread, results), config
    daemon.stop("the test is over")
    thread.join(TIMEOUT_S)


def test_a_finished_run_is_held_until_the_disk_takes_it(held: tuple[Running, AgentConfig], disk: FailingDisk) -> None:
    """Model, state and records wait in memory, the status page says why, and the agent ends well once there is room."""
    running, config = held
    page = read_status(Path(config.node.runtime_dir))
    assert not page.ended
    assert page.disk.startswith(f"{disk.folder}: the ")
    assert "cannot be written: No space left on device; free some space" in page.disk
    disk.failures = 0
    assert running.end() == "all rounds are done"
    assert running.trainer.trained == []
    found = recovered(config)
    assert found.snapshot is not None
    assert (found.snapshot.finished, found.snapshot.ledger.charged_uj, found.model_round) == (True, 0, 2)
    assert [record.round for record in read_records(state_of(config))] == [0, 1, 2]


def test_who_asks_to_stop_is_told_what_the_disk_did_not_take(held: tuple[Running, AgentConfig]) -> None:
    """The code is 74; nothing was spent that the disk does not know of."""
    running, config = held
    running.daemon.stop("enough")
    lost = "the state, the model after round 2, 3 records; the ledger there stays true"
    with pytest.raises(JournalError, match=rf"free some space, or mend it; lost with this process: {lost}") as error:
        running.end()
    assert error.value.exit_code == 74
    assert running.trainer.closed
    assert recovered(config) == Recovered(None, -1, None, (), state_lost=False)


def test_a_status_page_that_cannot_be_written_is_said_once(
    tmp_path: Path, rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    """The page is for people; the run goes on without it."""
    config = alone(tmp_path)
    daemon, _ = rig.make(config)
    shutil.rmtree(config.node.runtime_dir)
    assert daemon.run() == "all rounds are done"
    assert caplog.text.count("the status page cannot be written") == 1


def test_a_runtime_folder_that_cannot_be_made_is_an_error(tmp_path: Path, rig: Rig) -> None:
    """The message names the setting."""
    config = alone(tmp_path)
    (tmp_path / "a").write_text("")
    with pytest.raises(ConfigError, match=r"node.runtime_dir .*: cannot be made: Not a directory"):
        rig.make(config)


def test_a_broker_whose_packets_are_too_small_ends_the_agent(tmp_path: Path) -> None:
    """A model that can never be shared is not trained on for ever: the code is 69 and the message names the setting."""
    rig = Rig(MemoryHub(max_packet_bytes=300))
    running = [rig.start(device_config(tmp_path, name, ("a", "b"))) for name in "ab"]
    for node in running:
        node.mailbox.post("nothing that anybody knows")
    with pytest.raises(NetworkError, match=r"does not fit into the broker's messages.*mqtt.max_message_bytes") as error:
        running[0].end()
    assert error.value.exit_code == 69
    running[1].daemon.stop("the other one has gone")
    running[1].thread.join(TIMEOUT_S)


def test_what_nobody_knows_is_passed_over(tmp_path: Path, rig: Rig) -> None:
    """An item of an unknown kind, or of a peer outside the roster, changes nothing."""
    config = device_config(tmp_path, "a", ("a", "b"))
    running = rig.start(config)
    stranger = Presence(NodeId("z"), True, "1", "", config.descriptor().digest().hex(), "1")
    running.mailbox.post(object())
    running.mailbox.post(PresenceSeen(stranger))
    running.daemon.stop("enough")
    assert running.end() == "enough"
    assert running.daemon.machine.around.live == {}


def test_a_peer_of_another_run_is_told_of_once(tmp_path: Path, rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """A neighbour whose run section differs is no peer, and the log says so once, not at each of its words."""
    running = rig.start(device_config(tmp_path, "a", ("a", "b")))
    for session in ("1", "2"):
        running.mailbox.post(PresenceSeen(Presence(NodeId("b"), True, session, "", "ef" * 16, "1")))
    running.daemon.stop("enough")
    assert running.end() == "enough"
    assert running.daemon.machine.around.live == {}
    assert caplog.text.count("b takes part in another run") == 1


def test_peers_that_come_and_go_reach_the_machine(tmp_path: Path, rig: Rig) -> None:
    """The presence of a listed peer makes it live, its goodbye takes it away, and the status page shows both."""
    config = device_config(tmp_path, "a", ("a", "b"))
    daemon, mailbox = rig.make(config)
    run = config.descriptor().digest().hex()
    here = Presence(NodeId("b"), True, "1", "", run, "1")
    seen: list[dict[NodeId, str]] = []

    def look() -> float:
        if not seen or seen[-1] != daemon.machine.around.live:
            seen.append(daemon.machine.around.live)
        return 0.0

    daemon._clock = look
    mailbox.post(PresenceSeen(here))
    mailbox.post(PresenceSeen(replace(here, online=False, reason="goodbye")))
    daemon.stop("enough")
    assert daemon.run() == "enough"
    assert seen == [{}, {NodeId("b"): ""}, {}]


# --- the end of a run, and systemd


def test_a_finished_run_waits_for_its_evaluations_but_not_when_asked_to_stop(tmp_path: Path, rig: Rig) -> None:
    """A stop has 45 s before systemd kills; an evaluation that is still being made must not take them."""
    config = alone(tmp_path, rounds=1)
    sections = {name: getattr(config, name) for name in config.__struct_fields__}
    config = AgentConfig(**{**sections, "evaluation": EvaluationSection(every=1)})
    running = rig.start(config, ToyTrainer(hold_evaluations=True))
    assert running.trainer.holding.wait(TIMEOUT_S)
    running.daemon.stop("stopped by SIGTERM")
    assert running.end() == "all rounds are done"
    assert read_evaluations(state_of(config)) == []


def test_systemd_hears_ready_alive_and_stopping(tmp_path: Path, rig: Rig) -> None:
    """READY comes once the daemon waits; a node with nothing to do feeds a watchdog of 0.2 s in time; then STOPPING."""
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(TIMEOUT_S)
        manager.bind(path)
        notifier = Notifier({"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "200000"})
        running = rig.start(device_config(tmp_path, "a", ("a", "b")), notifier=notifier)
        words: list[str] = []
        while words.count("WATCHDOG=1") < 4:
            words.append(manager.recv(4096).decode())
        running.daemon.stop("enough")
        while not words[-1].startswith("STOPPING=1"):
            words.append(manager.recv(4096).decode())
        assert running.end() == "enough"
        manager.setblocking(False)
        with pytest.raises(BlockingIOError):
            manager.recv(4096)
    ready = "READY=1\nSTATUS=run toy: waiting for the fleet"
    assert words.count(ready) == 1
    assert "WATCHDOG=1" not in words[: words.index(ready)]
    assert words[-1] == "STOPPING=1\nSTATUS=enough"
    assert any(word.startswith("STATUS=round 0/6 waiting, 0 peers") for word in words)


def test_records_are_logged_as_one_line(tmp_path: Path, rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """`journalctl` shows a round as key=value pairs."""
    with caplog.at_level(logging.INFO, "agent"):
        rig.start(alone(tmp_path, rounds=1)).end()
    (line,) = [record.getMessage() for record in caplog.records if record.getMessage().startswith("round=0 ")]
    assert 'kind=training train=1 p=1.000 reason="drawn to train" energy_j=23.518 ' in line
    assert " peers=0/0 rejected=0 " in line
