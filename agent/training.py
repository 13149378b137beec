"""Training windows: the meter opens, the trainer works elsewhere, the meter closes, and the machine gets its answer."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from agent.config import LearningSection
from agent.core import effects as fx
from agent.core import events as ev
from agent.core.types import Params, Quality, WindowDetail
from agent.energy.meter import Meter, Reading
from agent.errors import ContractViolation, EnergyError
from agent.learning.trainer import Evaluation, TrainOutcome, TrainTask

_log = logging.getLogger(__name__)


class AsyncTrainer(Protocol):
    """A trainer that works outside of the daemon's thread and answers through callbacks from its own."""

    def submit_train(
        self, task: TrainTask, done: Callable[[TrainOutcome], None], progress: Callable[[int], None] | None = None
    ) -> None:
        """Train; `progress` hears of each local step, then `done` gets the outcome."""

    def submit_evaluate(self, params: Params, samples: int, done: Callable[[Evaluation], None]) -> None:
        """Evaluate on `samples` of each test set; 0 means all."""

    def stop(self) -> None:
        """Ask the training under way to end before its next local step."""

    def kill(self) -> None:
        """End the training under way at once; it is answered all the same."""

    def close(self) -> None:
        """End for good."""


@dataclass(frozen=True, slots=True)
class TrainingAnswered:
    """The trainer is done with a round; goes to the daemon's mailbox."""

    round: int
    outcome: TrainOutcome


TICK_S = 1.0
"""How often a training is watched whose local steps take longer; looking costs a little."""
_LOOKING_SHARE = 0.05
"""Of the time at most so much goes into looking at the meter: one look at a Pi's power chip takes a whole process."""
_QUICK_S = 0.005
"""A look that is shorter is taken after every local step."""
GRACE_S = 5.0
"""How long a training that was asked to end for its energy may take to do so; then the trainer is killed."""


class TrainingWindow:
    """At most one training at a time, its energy watched between local steps and by the daemon's clock."""

    def __init__(
        self,
        trainer: AsyncTrainer,
        meter: Meter,
        learning: LearningSection,
        post: Callable[[object], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._trainer, self._meter, self._learning, self._post = trainer, meter, learning, post
        self._clock = clock
        self._open: fx.StartTraining | None = None
        self._lock = threading.Lock()
        self._spent_uj = self._largest_step_uj = 0
        self._first_uj: int | None = None
        """What was spent when the first local step had ended."""
        self._stopped_at: float | None = None
        self._tick_at = self._look_at = 0.0
        self._killed = False
        self._cold = True
        self.stopped = ""
        """Why the guard ended the training of the window; "" where it did not."""

    def start(self, effect: fx.StartTraining) -> None:
        """Open the meter's window and train in the background; EnergyError where the meter cannot be read."""
        if self._open is not None:
            raise ContractViolation(f"round {self._open.round} is still training")
        self._meter.open()
        self._open, self.stopped, self._stopped_at, self._killed = effect, "", None, False
        self._spent_uj = self._largest_step_uj = 0
        self._first_uj = None
        self._look_at = 0.0
        learning = self._learning
        task = TrainTask(
            effect.round, effect.params, effect.seed, learning.local_steps, learning.batch_size, learning.lr
        )
        self._trainer.submit_train(
            task,
            lambda outcome: self._post(TrainingAnswered(effect.round, outcome)),
            lambda step: self._watch(effect, step),
        )

    def stop(self, *, at_once: bool) -> None:
        """End the training between two local steps, or at once."""
        if at_once:
            self._cold = True  # the next trainer has to load everything anew
            self._trainer.kill()
        else:
            self._trainer.stop()

    def tick(self) -> None:
        """Watch a training whose local steps take long, and end one at once that does not end when it is asked to."""
        effect, now = self._open, self._clock()
        if effect is None or now < self._tick_at:
            return
        self._watch(effect)
        self._tick_at = self._clock() + TICK_S
        if self._stopped_at is not None and now - self._stopped_at >= GRACE_S and not self._killed:
            self._killed = True
            self.stop(at_once=True)

    def answer(self, answered: TrainingAnswered) -> ev.TrainingFinished | ev.TrainingFailed:
        """Close the meter's window and return what the machine must hear."""
        effect = self._open
        if effect is None or effect.round != answered.round:
            raise ContractViolation(f"an answer for round {answered.round}, which is not training")
        self._open = None
        reading, outcome = self._meter.close(), answered.outcome
        if outcome.fatal and not self._meter.measured:
            return ev.TrainingFailed(answered.round, outcome.error, 0, Quality.NONE)  # there was nothing to train with
        energy_uj = max(reading.energy_uj, effect.upper_uj or 0) if reading.error else reading.energy_uj
        detail = self._detail(reading, outcome)
        if reading.error:
            _log.error("energy: %s: %s; what was reserved is charged", self._meter.source, reading.error)
        if outcome.error or outcome.steps == 0 or outcome.loss is None:
            reason = outcome.error or self.stopped or "stopped before the first local step"
            return ev.TrainingFailed(answered.round, reason, energy_uj, reading.quality, detail)
        return ev.TrainingFinished(answered.round, outcome.params, outcome.loss, energy_uj, reading.quality, detail)

    def _detail(self, reading: Reading, outcome: TrainOutcome) -> WindowDetail | None:
        if not (self._meter.measured or self._meter.learns):
            return None
        whole_uj, load_uj = self._told(reading, outcome)
        return WindowDetail(
            source=self._meter.source,
            seconds=round(reading.seconds, 6),
            coverage=round(reading.coverage, 6),
            bound_uj=reading.bound_uj,
            net_uj=reading.net_uj,
            whole_uj=whole_uj,
            load_uj=load_uj,
            warm=not self._cold if self._meter.measured else reading.warm,
        )

    def _told(self, reading: Reading, outcome: TrainOutcome) -> tuple[int | None, int | None]:
        """Return what a whole round would have cost, torch and data already loaded, and what loading them cost."""
        if not self._meter.measured:
            return reading.whole_uj, reading.load_uj
        cold, self._cold = self._cold, bool(outcome.error)
        if reading.error:
            return None, None
        if cold:
            return self._told_by_the_first(reading.energy_uj, outcome)
        if outcome.error or not outcome.steps:
            return None, None
        return max(1, round(reading.energy_uj * self._learning.local_steps / outcome.steps)), None

    def _told_by_the_first(self, energy_uj: int, outcome: TrainOutcome) -> tuple[int | None, int | None]:
        """Return the same of a trainer's first training; one ended while loading is taken to need twice that."""
        first_uj = self._first_uj
        if not outcome.error and not outcome.steps:
            return None, energy_uj  # asked to end before its first step, it answered when it had loaded
        if first_uj is None:
            return None, 2 * energy_uj if self.stopped else None
        if outcome.error or outcome.steps < 2:  # noqa: PLR2004  the first step does not tell what the others cost
            return None, first_uj
        step_uj = (energy_uj - first_uj) / (outcome.steps - 1)
        return max(1, round(step_uj * self._learning.local_steps)), max(0, round(first_uj - step_uj))

    def _note_step(self, spent_uj: int) -> None:
        """Remember what was dearest between two looks so far; the first step has loaded torch and data, too."""
        if self._first_uj is None:
            self._first_uj = spent_uj
        else:
            self._largest_step_uj = max(self._largest_step_uj, spent_uj - self._spent_uj)
        self._spent_uj = spent_uj

    def _watch(self, effect: fx.StartTraining, step: int | None = None) -> None:
        """End the training when another local step would pass what was reserved, or when nobody can tell any more.

        `step` is the number of the local step that has just ended; None in the midst of one.
        """
        began = self._clock()
        if step is not None and (step >= self._learning.local_steps or began < self._look_at):
            return
        with self._lock:  # asked by the trainer's thread and by the daemon's
            if self.stopped or self._open is not effect:
                return
            try:
                spent_uj = self._meter.spent_uj()
            except EnergyError as error:
                self.stopped = f"its energy cannot be watched any more: {error}"
            else:
                if step is not None:
                    self._note_step(spent_uj)
                lasted = self._clock() - began
                self._look_at = began + (lasted / _LOOKING_SHARE if lasted > _QUICK_S else 0.0)
                if effect.upper_uj is not None and spent_uj + self._largest_step_uj > effect.upper_uj:
                    self.stopped = f"{spent_uj / 1e6:.3f} of the {effect.upper_uj / 1e6:.3f} J reserved are spent"
            if not self.stopped:
                return
            self._stopped_at = self._clock()
        _log.warning("round %d: the training ends early: %s", effect.round, self.stopped)
        self._trainer.stop()
