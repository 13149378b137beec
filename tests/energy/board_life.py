"""A lone agent on a simulated board: all of it that decides, measures, guards and charges, driven as on a device.

It is the smallest driver that does what agent/daemon.py does with a RoundMachine, a Treasury and a TrainingWindow, in
the same order; there is no network, and the disk is the last state, encoded and decoded as the journal does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, cast

import msgspec
import numpy as np

from agent.config import LearningSection
from agent.core import effects as fx
from agent.core import events as ev
from agent.core.budget import Cost, Ledger
from agent.core.costs import CostHistory
from agent.core.round_machine import RoundMachine
from agent.core.round_state import MachineConfig, Phase
from agent.core.types import (
    ModelShape,
    NodeId,
    Quality,
    RunDescriptor,
    Schedule,
    Snapshot,
    TopologySpec,
)
from agent.daemon import TrainingRefused
from agent.energy.allowance import Allowance, Now, Terms
from agent.energy.device import CounterDevice, SampledDevice
from agent.energy.meter import MeasuredMeter, Meter
from agent.energy.trace import TraceMeter
from agent.errors import EnergyError
from agent.training import TrainingAnswered, TrainingWindow
from agent.treasury import Treasury
from tests.energy.board import Board, BoardTrainer, Counter, Power, PowerCutError, S

if TYPE_CHECKING:
    from pathlib import Path

ME = NodeId("board")
TICK_S = 1.0
"""The longest that the daemon waits for its mailbox."""
STALE_S = 2.0
"""How long a sensor of power at 10 Hz may give nothing."""
_OUTSIDE = frozenset({Phase.IDLE, Phase.WAITING, Phase.JOINING})
_WALL = datetime(2026, 5, 1, 23, 0, tzinfo=timezone.utc)
_ENCODE = msgspec.json.Encoder().encode
_DECODE = msgspec.json.Decoder(Snapshot).decode


@dataclass(frozen=True, slots=True)
class Job:
    """What the agent is to do, and what it is told of its energy."""

    policy: str
    rounds: int
    terms: Terms
    prior: Cost | None
    max_w: float | None
    seed: int
    replayed_uj: int | None = None
    """What a replayed round costs; None: measured."""
    sync_rounds: int = 0


@dataclass(slots=True)
class Window:
    """One reservation that was made durable, and what became of it."""

    round: int
    reserved_uj: int
    true_uj: int = 0
    """What the board drew between the real begin and the real end of the training."""
    began: bool = False
    charged_uj: int = 0
    bound_uj: int = 0
    stop_s: float = 0.0
    """From the word to stop to the real end; 0: it was never asked to."""
    seconds: float = 0.0
    crashed: bool = False
    lost: bool = False
    """The sensor could not be read to the end."""
    period: str = ""
    faults: frozenset[str] = frozenset()
    """What was wrong with the sensor at any time of the window."""
    calibrates: bool = False


@dataclass
class Life:
    """All lives of one agent on one board, until its run is done or its sensor is gone for good."""

    board: Board
    job: Job
    sensor: Counter | Power
    cut: Callable[[str], bool] = lambda _where: False
    """Says whether the power fails at a named point of the driver."""
    down: Callable[[], tuple[float, bool]] = lambda: (30.0, False)
    """Seconds that a crash lasts, and whether the board boots anew."""
    began: Callable[[], None] = lambda: None
    """Called when a training has begun."""
    windows: list[Window] = field(default_factory=list)
    disk: bytes | None = None
    crashes: int = 0
    trained_blind: list[str] = field(default_factory=list)
    """Trainings that began though the sensor was known to be unwell."""

    def __post_init__(self) -> None:
        self.unsettled: Window | None = None
        self._mail: deque[object] = deque()
        self._up = self._finished = False
        self._frozen_since_ns = -1
        self._true_from_uj: int | None = None
        self._began_ns = 0
        self.run = RunDescriptor(
            run_id="boards",
            seed=self.job.seed,
            model=ModelShape("toy", (1, 1, 1), 2),
            schedule=Schedule(1, self.job.sync_rounds, self.job.rounds),
            policy=self.job.policy,
            topology=TopologySpec("complete"),
            roster=(ME,),
            round_deadline_s=300.0,
        )
        self.run_hex = self.run.digest().hex()

    @property
    def true_uj(self) -> int:
        """All that training has really used."""
        return sum(window.true_uj for window in self.windows)

    def live(self) -> None:
        """Live on after each crash, until the run is done; a sensor that does not come back ends it, too."""
        for _ in range(200):
            if self._one_life():
                return

    def _one_life(self) -> bool:
        """Return whether the run is done."""
        try:
            self._begin()
            self._go_on()
        except PowerCutError:
            self.crashes += 1
            self._die()
        except EnergyError:  # the agent ends with an error, and systemd starts it again
            self._die()
            self.board.pass_s(60.0)
        return self._finished

    # --- as agent.device and Daemon.__init__ do

    def _meter(self) -> Meter:
        job, board = self.job, self.board
        if job.replayed_uj is not None:
            return TraceMeter(None, Cost(job.replayed_uj, job.replayed_uj))
        device: CounterDevice | SampledDevice
        if isinstance(self.sensor, Counter):
            device = CounterDevice(self.sensor, max_w=job.max_w, clocks=board.clocks(), sleep=board.pass_s)
        else:
            device = SampledDevice(self.sensor, max_w=job.max_w, clocks=board.clocks(), thread=False)
        device.check_moving()
        return MeasuredMeter(
            "board",
            device,
            Quality.MEASURED,
            prior=job.prior,
            max_w=job.max_w,
            boot_id=cast("Path", board),
            clock=board.monotonic_s,
        )

    def _begin(self) -> None:
        board, job = self.board, self.job
        self._up = True
        meter = self.meter = self._meter()
        self._allowance = Allowance(job.terms, clock=self._now)
        self.treasury = Treasury(meter, self._allowance, board.monotonic_s)
        self.trainer = BoardTrainer(board, self._training_ended)
        learning = LearningSection(local_steps=board.physics.local_steps)
        self.window = TrainingWindow(self.trainer, meter, learning, self._mail.append, board.monotonic_s)
        found = None if self.disk is None else _DECODE(self.disk)
        config = MachineConfig(ME, self.run, meter.prior, learns_cost=meter.learns, workload="toy@board")
        ledger = self.treasury.ledger(found, state_lost=False)
        charged_uj = ledger.charged_uj
        costs = found.costs if found is not None else CostHistory(config.workload)
        self.machine = RoundMachine(config, np.zeros(1, np.float32), ledger, found, costs)
        if self.unsettled is not None:
            window = self.unsettled
            window.charged_uj, window.period = self.machine.ledger.charged_uj - charged_uj, ledger.period
        self._finished = False
        if found is not None and found.ledger.reservation is not None:
            self._save(self.machine.snapshot())

    def _now(self) -> Now:
        return Now(_WALL + timedelta(seconds=self.board.now_ns / S - 1_000), self.board.monotonic_s())

    def _die(self) -> None:
        """Lose all but the disk; the trainer's child dies with the agent."""
        self._up = False
        if self._true_from_uj is not None:
            self._training_ended()
        self.board.crash()
        self._mail.clear()
        if self.unsettled is not None:
            self.unsettled.crashed = True
        seconds, reboots = self.down()
        self.board.pass_s(seconds)
        if reboots:
            self.board.reboot()

    # --- as Daemon.run, _step, _look_after and _handle do

    def _go_on(self) -> None:
        self._handle(ev.Started())
        while not self._finished:
            self._step()

    def _step(self) -> None:
        self._look_after()
        deadline, now = self.machine.deadline, self.board.monotonic_s()
        if deadline is not None and now >= deadline:
            self._handle(ev.DeadlineReached())
            deadline = now
        wait_s = TICK_S if deadline is None else min(TICK_S, deadline - now)
        if not self._mail and wait_s > 0:
            self.board.wait(self.board.now_ns + 1 + round(wait_s * S), lambda: self._mail)
        if self._mail:
            self._take(self._mail.popleft())

    def _look_after(self) -> None:
        self.window.tick()
        for event in self.treasury.poll():
            self._handle(event)

    def _take(self, item: object) -> None:
        if isinstance(item, TrainingRefused):
            self._handle(ev.TrainingFailed(item.round, item.reason, 0, Quality.NONE))
        elif isinstance(item, TrainingAnswered):
            answer = self.window.answer(item)
            self._note(answer)
            self._cut("answered")
            self._handle(answer)

    def _handle(self, event: ev.Event) -> None:
        phase = self.machine.phase
        effects = self.machine.handle(event, self.board.monotonic_s())
        if phase in _OUTSIDE and self.machine.phase not in _OUTSIDE:
            self.treasury.begin_rounds()
        _check(self.machine.ledger)
        for effect in effects:
            self._do(effect)

    # --- effects, in the order that the machine gives them in

    def _do(self, effect: fx.Effect) -> None:
        match effect:
            case fx.SaveState(snapshot):
                self._cut("before saving")
                self._save(snapshot)
                self._cut("after saving")
            case fx.StartTraining():
                self._train(effect)
            case fx.StopTraining(_, at_once):
                self.window.stop(at_once=at_once)
            case fx.AppendRecord(record):
                self.treasury.account(record)
                self.board.pass_s(0.05)
            case fx.RunFinished():
                self._finished = True
            case _:
                pass

    def _save(self, snapshot: Snapshot) -> None:
        snapshot = self.treasury.marked(snapshot)
        self.board.pass_s(0.01)
        self.disk = _ENCODE(snapshot)
        open_ = snapshot.ledger.reservation
        if open_ is None:
            self.unsettled = None
        elif self.unsettled is None:
            self.unsettled = Window(open_.round, open_.upper_uj, calibrates=self.machine.purse.cost is None)
            self.windows.append(self.unsettled)

    def _train(self, effect: fx.StartTraining) -> None:
        trouble = self.treasury.unfit()
        if not trouble:
            try:
                self.window.start(effect)
            except EnergyError as error:
                trouble = str(error)
        if trouble:
            self._mail.append(TrainingRefused(effect.round, f"not trained: {trouble}"))
            return
        self._true_from_uj, self._began_ns = self.board.energy_uj, self.board.now_ns
        assert self.unsettled is not None, "training began before its reservation was durable"
        self.unsettled.began = True
        self.began()
        self.noted(self.sensor.fault)
        if self.job.replayed_uj is None and self._is_known_unwell():
            self.trained_blind.append(f"round {effect.round}: {self.sensor.fault}")
        if isinstance(self.sensor, Power) and self.job.replayed_uj is None:
            self._look_often()

    def crash(self) -> None:
        """Let the power fail at this instant, where it has not failed already."""
        if self._up:
            raise PowerCutError("at any instant")

    def _is_known_unwell(self) -> bool:
        """Say whether the agent can know by now that the sensor is unwell; a power may miss its looks for 2 s."""
        sensor = self.sensor
        for_s = (self.board.now_ns - sensor.since_ns) / S
        if sensor.fault in {"raises", "negative", "beyond"}:
            return isinstance(sensor, Counter) or for_s > STALE_S
        return sensor.fault == "frozen" and sensor.since_ns == self._frozen_since_ns

    def noted(self, fault: str) -> None:
        """Remember that the sensor is, or was, unwell in the window of now."""
        window = self.unsettled
        if fault and window is not None:
            window.faults |= {fault}

    def _look_often(self) -> None:
        """Do what the sampler's thread does while a window is open."""
        wait_s = cast("SampledDevice", cast("MeasuredMeter", self.meter).device).sampler.step()
        if wait_s is not None:
            self.board.after(round(wait_s * S), self._look_often)

    def _training_ended(self) -> None:
        """Note what the board has really used, at the instant of the end."""
        window, board = self.unsettled, self.board
        assert window is not None
        assert self._true_from_uj is not None
        cost_uj = self.job.replayed_uj
        window.true_uj = board.energy_uj - self._true_from_uj if cost_uj is None else cost_uj
        window.seconds = (board.now_ns - self._began_ns) / S
        asked_ns = self.trainer.stop_asked_ns
        window.stop_s = 0.0 if asked_ns is None else (board.now_ns - asked_ns) / S
        self._true_from_uj = None

    def _note(self, answer: ev.TrainingFinished | ev.TrainingFailed) -> None:
        window = self.unsettled
        assert window is not None
        window.charged_uj, window.period = answer.energy_uj, self.machine.ledger.period
        window.bound_uj = 0 if answer.window is None else answer.window.bound_uj
        if answer.quality is Quality.ESTIMATED:
            window.lost, self._frozen_since_ns = True, self.sensor.since_ns

    def _cut(self, where: str) -> None:
        if self.cut(where):
            raise PowerCutError(where)


def _check(ledger: Ledger) -> None:
    """Hold what is left against what it is made of."""
    if ledger.limit_uj is None:
        return
    reserved = ledger.reservation.upper_uj if ledger.reservation else 0
    assert ledger.left_uj == max(0, ledger.limit_uj + ledger.credited_uj - ledger.charged_uj - reserved)
    assert ledger.charged_uj >= ledger.forfeited_uj
