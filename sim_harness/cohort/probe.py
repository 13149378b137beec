"""The choice of `engine.kind: auto`: a short trial of every engine in every precision, on the run's own data."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec
import numpy as np

from agent.errors import ConfigError
from agent.learning.factory import describe
from agent.learning.trainer import Evaluation
from sim_harness.cohort.engine import Corpus, Engine, Learning, Outcome, Test, Work
from sim_harness.cohort.processes import worker_count
from sim_harness.scenario_sections import EngineSection

_PRECISIONS: Final = ("fp32", "bf16")
_STEPS: Final = 2
_NODES_A_WORKER: Final = 32
"""Enough for two full stacks."""
_ENOUGH_S: Final = 1.0
"""An engine is not tried again when it has taken so long."""
_TURNS: Final = 3


@dataclass(frozen=True, slots=True)
class Probed:
    """The engine that was the fastest, and what all of them did."""

    engine: Engine
    steps_s: Mapping[str, float]
    """Kind and precision -> local steps per second."""

    def train(self, works: Sequence[Work]) -> list[Outcome]:
        """Train as the engine does."""
        return self.engine.train(works)

    def evaluate(self, tests: Sequence[Test], samples: int) -> list[Evaluation]:
        """Test as the engine does."""
        return self.engine.evaluate(tests, samples)

    def describe(self) -> dict[str, Any]:
        """Return what the engine says, and the trial's speeds."""
        return {**self.engine.describe(), "auto": {name: round(speed, 1) for name, speed in self.steps_s.items()}}

    def close(self) -> None:
        """Close the engine."""
        self.engine.close()


def fastest(
    makers: Mapping[str, Callable[[Corpus, Learning, EngineSection], Engine]],
    corpus: Corpus,
    learning: Learning,
    settings: EngineSection,
) -> Probed:
    """Return the fastest engine for this data; ConfigError where there is none, with what each lacks."""
    short = replace(learning, local_steps=min(_STEPS, learning.local_steps))
    works = _trial_works(corpus, short, worker_count(settings.workers) * _NODES_A_WORKER)
    speeds: dict[str, float] = {}
    chosen: dict[str, EngineSection] = {}
    reasons: list[str] = []
    for candidate in _candidates(makers, settings):
        try:
            engine = makers[candidate.kind](corpus, short, candidate)
        except ConfigError as error:
            reasons.append(str(error))
            continue
        name = f"{candidate.kind} {candidate.precision}"
        chosen[name] = candidate
        try:
            speeds[name] = len(works) * short.local_steps / _seconds(engine, works)
        finally:
            engine.close()
    if not speeds:
        raise ConfigError("engine: none can do this: " + "; ".join(reasons))
    best = chosen[max(speeds, key=lambda name: speeds[name])]
    return Probed(makers[best.kind](corpus, learning, best), speeds)


def _candidates(makers: Mapping[str, Any], settings: EngineSection) -> Iterator[EngineSection]:
    for kind in makers:
        for precision in _PRECISIONS if settings.precision == "default" else (settings.precision,):
            yield msgspec.structs.replace(settings, kind=kind, precision=precision)


def _trial_works(corpus: Corpus, learning: Learning, most: int) -> list[Work]:
    start = describe(corpus.model, learning.seed).initial_params
    return [Work(node, 0, node, start, np.empty_like(start)) for node in range(min(most, len(corpus.train)))]


def _seconds(engine: Engine, works: Sequence[Work]) -> float:
    """Return how long the best of a few turns takes, after one that nobody looks at."""
    engine.train(works[: len(works) // 4 + 1])
    best = spent = 0.0
    for _ in range(_TURNS):
        started = time.perf_counter()
        engine.train(works)
        seconds = time.perf_counter() - started
        best, spent = min(best or seconds, seconds), spent + seconds
        if spent > _ENOUGH_S:
            break
    return best
