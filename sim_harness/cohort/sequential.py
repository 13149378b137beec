"""The reference: one node after the other, by the trainer that a device has; equal bits for equal inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agent.learning.data import Dataset
from agent.learning.trainer import Evaluation, TorchTrainer, TrainTask
from sim_harness.cohort.engine import Corpus, Learning, Outcome, Test, Work
from sim_harness.scenario_sections import EngineSection


class SequentialEngine:
    """One TorchTrainer a node, in this process."""

    def __init__(self, corpus: Corpus, learning: Learning, settings: EngineSection) -> None:
        self._corpus, self._learning, self._settings = corpus, learning, settings
        self._trainers: dict[int, TorchTrainer] = {}
        self._nothing = Dataset(corpus.test.x[:0], corpus.test.y[:0], "none")

    def train(self, works: Sequence[Work]) -> list[Outcome]:
        """Train one after the other."""
        return [self._train(work) for work in works]

    def _train(self, work: Work) -> Outcome:
        how = self._learning
        task = TrainTask(work.round, work.params, work.seed, how.local_steps, how.batch_size, how.lr)
        outcome = self._trainer(work.node).train(task)
        if not outcome.error:
            work.out[:] = outcome.params
        return Outcome(outcome.loss, outcome.steps, outcome.error)

    def evaluate(self, tests: Sequence[Test], samples: int) -> list[Evaluation]:
        """Test one after the other."""
        return [self._trainer(test.node).evaluate(test.params, samples) for test in tests]

    def _trainer(self, node: int | None) -> TorchTrainer:
        corpus, key = self._corpus, -1 if node is None else node
        if key not in self._trainers:
            train = corpus.test if node is None else corpus.data.take(corpus.train[node])
            own = self._nothing if node is None else corpus.data.take(corpus.own_test[node])
            self._trainers[key] = TorchTrainer(
                corpus.model, train, own, corpus.test, seed=self._learning.seed, loss_limit=self._learning.loss_limit
            )
        return self._trainers[key]

    def describe(self) -> dict[str, Any]:
        """Return the kind; nothing else depends on anything."""
        return {"kind": "sequential", "precision": "fp32", "workers": 1}

    def close(self) -> None:
        """Forget all models."""
        self._trainers.clear()
