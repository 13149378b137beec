"""Training windows: the meter opens, the trainer works elsewhere, the meter closes, and the machine gets its answer."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from agent.config import LearningSection
from agent.core import effects as fx
from agent.core import events as ev
from agent.core.types import Params, Quality
from agent.energy.meter import Meter
from agent.errors import AgentError, ContractViolation
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


class TrainingWindow:
    """At most one training at a time, its energy watched between local steps."""

    def __init__(
        self, trainer: AsyncTrainer, meter: Meter, learning: LearningSection, post: Callable[[object], None]
    ) -> None:
        self._trainer, self._meter, self._learning, self._post = trainer, meter, learning, post
        self._open: fx.StartTraining | None = None
        self.stopped_for_energy = False

    def start(self, effect: fx.StartTraining) -> None:
        """Open the meter's window and train in the background."""
        if self._open is not None:
            raise ContractViolation(f"round {self._open.round} is still training")
        self._open, self.stopped_for_energy = effect, False
        learning = self._learning
        task = TrainTask(
            effect.round, effect.params, effect.seed, learning.local_steps, learning.batch_size, learning.lr
        )
        self._meter.open()
        self._trainer.submit_train(
            task,
            lambda outcome: self._post(TrainingAnswered(effect.round, outcome)),
            lambda _step: self._watch(effect.upper_uj),
        )

    def stop(self, *, at_once: bool) -> None:
        """End the training between two local steps, or at once."""
        if at_once:
            self._trainer.kill()
        else:
            self._trainer.stop()

    def answer(self, answered: TrainingAnswered) -> ev.TrainingFinished | ev.TrainingFailed:
        """Close the meter's window and return what the machine must hear."""
        if self._open is None or self._open.round != answered.round:
            raise ContractViolation(f"an answer for round {answered.round}, which is not training")
        self._open = None
        reading, outcome = self._meter.close(), answered.outcome
        if outcome.fatal:
            return ev.TrainingFailed(answered.round, outcome.error, 0, Quality.NONE)  # there was nothing to train with
        if outcome.error or outcome.steps == 0 or outcome.loss is None:
            reason = outcome.error or "stopped before the first local step"
            return ev.TrainingFailed(answered.round, reason, reading.energy_uj, reading.quality)
        return ev.TrainingFinished(answered.round, outcome.params, outcome.loss, reading.energy_uj, reading.quality)

    def _watch(self, upper_uj: int) -> None:
        """End the training before its next local step when it has cost what was reserved, or when nobody can tell."""
        if self.stopped_for_energy:
            return
        try:
            self.stopped_for_energy = self._meter.spent_uj() >= upper_uj
        except AgentError:
            _log.exception("the energy of a training cannot be watched any more: it ends")
            self.stopped_for_energy = True
        if self.stopped_for_energy:
            self._trainer.stop()
