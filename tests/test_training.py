"""A training window by itself: what it tells of a round's cost, with and without loading torch and data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pytest

from agent.config import LearningSection
from agent.core.costs import CostHistory
from agent.core.effects import StartTraining
from agent.core.events import TrainingFailed, TrainingFinished
from agent.core.types import Params, Quality
from agent.energy.meter import Reading
from agent.learning.trainer import Evaluation, TrainOutcome, TrainTask
from agent.training import GRACE_S, TrainingAnswered, TrainingWindow

PARAMS = np.zeros(3, np.float32)


@dataclass
class Bench:
    """A trainer and a meter in one, on a clock that a test sets."""

    measured: bool = True
    learns: bool = True
    source: str = "bench"
    limit_uj: int | None = None
    prior: None = None
    history: CostHistory = field(default_factory=CostHistory)
    now: float = 0.0
    spent: int = 0
    said: list[object] = field(default_factory=list)
    progress: Callable[[int], None] = print

    def __post_init__(self) -> None:
        self.window = TrainingWindow(
            cast("Any", self), cast("Any", self), LearningSection(local_steps=5), self.said.append, lambda: self.now
        )

    def train(self, spent: tuple[int, ...], upper: int | None = 10_000) -> TrainingFinished | TrainingFailed:
        """Train until so much was spent after each local step."""
        self.window.start(StartTraining(0, PARAMS, 1, upper))
        for step, amount in enumerate(spent, 1):
            self.spent = amount
            self.progress(step)
        loss = 0.5 if spent else None
        return self.window.answer(TrainingAnswered(0, TrainOutcome(PARAMS, loss, len(spent), 1.0)))

    # --- the trainer

    def submit_train(
        self, task: TrainTask, done: Callable[[TrainOutcome], None], progress: Callable[[int], None] | None = None
    ) -> None:
        """Take note of whom to tell."""
        del task, done
        self.progress = cast("Callable[[int], None]", progress)

    def submit_evaluate(self, params: Params, samples: int, done: Callable[[Evaluation], None]) -> None:
        """Evaluate nothing."""

    def stop(self) -> None:
        """Say that it was called."""
        self.said.append("stop")

    def kill(self) -> None:
        """Say that it was called."""
        self.said.append("kill")

    # --- the meter

    def trouble(self) -> str:
        """Be well."""
        return ""

    def open(self) -> None:
        """Begin at zero."""
        self.spent = 0

    def spent_uj(self) -> int:
        """Return what was set."""
        return self.spent

    def close(self) -> Reading:
        """Return it."""
        return Reading(self.spent, Quality.MEASURED, 1.0, whole_uj=7, load_uj=3)

    def lap(self) -> int | None:
        """Know nothing."""
        return None

    def mark(self) -> str:
        """Have no counter."""
        return ""

    def since(self, mark: str) -> int | None:
        """Know nothing of it."""
        del mark
        return None

    def end(self) -> None:
        """Nothing was started."""


def told(answer: TrainingFinished | TrainingFailed) -> tuple[int | None, int | None]:
    """Return what a window told of a whole round and of loading."""
    assert answer.window is not None
    return answer.window.whole_uj, answer.window.load_uj


def test_the_first_training_tells_loading_and_steps_apart() -> None:
    """1,000 uJ until the first step had ended, then 100 a step: a round costs 500, loading 900."""
    assert told(Bench().train((1000, 1100, 1200, 1300, 1400))) == (500, 900)


def test_a_trainer_that_has_loaded_tells_rounds_only() -> None:
    """The second training: what all five steps cost; of a cut one what five would have."""
    bench = Bench()
    bench.train((1000, 1100))
    assert told(bench.train((100, 200, 300, 400, 500))) == (500, None)
    assert told(bench.train((100, 200))) == (500, None)


def test_one_step_does_not_tell_what_the_others_cost() -> None:
    """Of a first training: only that loading took no more."""
    assert told(Bench().train((1000,))) == (None, 1000)


def test_a_training_that_the_guard_ended_in_loading_is_killed_and_told() -> None:
    """It cannot hear a stop: killed after the grace, and loading is believed to take twice as much."""
    bench = Bench()
    bench.window.start(StartTraining(0, PARAMS, 1, 400))
    bench.spent = 500
    bench.window.tick()
    assert bench.said == ["stop"]
    bench.now, bench.spent = GRACE_S, 700
    bench.window.tick()
    assert bench.said == ["stop", "kill"]
    answer = bench.window.answer(TrainingAnswered(0, TrainOutcome(PARAMS, None, 0, 0.0, "killed")))
    assert told(answer) == (None, 1400)
    assert told(bench.train((1000, 1100, 1200, 1300, 1400))) == (500, 900)


def test_a_start_that_was_asked_to_end_and_answered_has_loaded() -> None:
    """It cost too much for a step, but the next round need not load again."""
    bench = Bench()
    bench.window.start(StartTraining(0, PARAMS, 1, 400))
    bench.spent = 900
    bench.window.tick()
    answer = bench.window.answer(TrainingAnswered(0, TrainOutcome(PARAMS, None, 0, 0.5)))
    assert told(answer) == (None, 900)
    assert answer.window is not None
    assert answer.window.warm
    assert told(bench.train((100, 200, 300, 400, 500))) == (500, None)


def test_without_a_budget_nothing_is_ended() -> None:
    """However much it takes."""
    bench = Bench()
    bench.train((10**9, 2 * 10**9, 3 * 10**9, 4 * 10**9, 5 * 10**9), None)
    assert bench.said == []


@pytest.mark.parametrize("upper", [399, 400])
def test_the_guard_sees_one_step_ahead(upper: int) -> None:
    """After the third step, at 300, another hundred would pass 399 and not 400."""
    bench = Bench()
    bench.train((100, 200, 300), upper)
    assert bench.said == (["stop"] if upper == 399 else [])


def test_a_replay_tells_what_was_recorded() -> None:
    """Not what its steps look like."""
    assert told(Bench(measured=False).train((1000, 1100))) == (7, 3)
