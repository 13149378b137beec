"""The reference: one node after the other, by the trainer that a device has; equal bits for equal inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agent.errors import AgentError, ConfigError
from agent.learning.data import Dataset
from agent.learning.factory import describe
from agent.learning.trainer import Evaluation, TorchTrainer, TrainTask
from sim_harness.cohort.engine import Corpus, Engine, Learning, Outcome, Test, Work
from sim_harness.cohort.processes import Processes, worker_count
from sim_harness.scenario_sections import EngineSection


def open_sequential(corpus: Corpus, learning: Learning, settings: EngineSection) -> Engine:
    """Return the reference, in worker processes unless the settings want one worker; ConfigError."""
    if settings.precision == "bf16":
        raise ConfigError("engine.precision: sequential trains as a device does, in fp32; other engines know bf16")
    engine, workers = SequentialEngine(corpus, learning), worker_count(settings.workers)
    if workers == 1:
        return engine
    return Processes(engine, describe(corpus.model, learning.seed).n_params, workers)


class SequentialEngine:
    """One TorchTrainer for all nodes, in this process."""

    def __init__(self, corpus: Corpus, learning: Learning) -> None:
        self._corpus, self._learning = corpus, learning
        self._nothing = Dataset(corpus.test.x[:0], corpus.test.y[:0], "none")
        options: dict[str, Any] = {"threads": learning.threads, "loss_limit": learning.loss_limit}
        self._trainer = TorchTrainer(
            corpus.model, corpus.data, self._nothing, corpus.test, seed=learning.seed, **options
        )

    def train(self, works: Sequence[Work]) -> list[Outcome]:
        """Train one after the other."""
        return [self._train(work) for work in works]

    def _train(self, work: Work) -> Outcome:
        how, corpus = self._learning, self._corpus
        task = TrainTask(work.round, work.params, work.seed, how.steps(work), how.batch_size, how.lr)
        self._trainer.use(corpus.data.take(corpus.train[work.node]), self._nothing)
        try:
            outcome = self._trainer.train(task)
        except AgentError:
            raise
        except (Exception, SystemExit) as error:  # noqa: BLE001  a user's model may raise anything; a device skips the round, too
            return Outcome(None, 0, " ".join(f"the trainer failed: {type(error).__name__}: {error}".split()))
        if not outcome.error:
            work.out[:] = outcome.params
        return Outcome(outcome.loss, outcome.steps, outcome.error)

    def evaluate(self, tests: Sequence[Test], samples: int) -> list[Evaluation]:
        """Test one after the other."""
        return [self._evaluate(test, samples) for test in tests]

    def _evaluate(self, test: Test, samples: int) -> Evaluation:
        corpus = self._corpus
        own = self._nothing if test.node is None else corpus.data.take(corpus.own_test[test.node])
        self._trainer.use(self._nothing, own)
        return self._trainer.evaluate(test.params, samples)

    def describe(self) -> dict[str, Any]:
        """Return the kind; nothing else depends on anything."""
        return {"kind": "sequential", "precision": "fp32", "workers": 1}

    def close(self) -> None:
        """Forget the model."""
        self._trainer.close()
