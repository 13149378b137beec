"""Whole training rounds in compiled kernels, one node a thread: the fastest engine on a CPU.

A node's result depends on nothing but its own work, so neither the other works nor the number of threads change a bit.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np

from agent.core.types import ModelShape, Params
from agent.errors import ConfigError
from agent.learning.data import Dataset, Indices, check
from agent.learning.factory import is_factory
from agent.learning.model import model_spec
from agent.learning.trainer import Evaluation, sampled, why_diverged, why_not_finite
from sim_harness.cohort.engine import Corpus, Learning, Outcome, Test, Work, batch_indices
from sim_harness.cohort.native_amx import amx_kernels
from sim_harness.cohort.native_build import Compiler, find_compiler
from sim_harness.cohort.native_kernels import Kernels
from sim_harness.cohort.native_steps import Block, steps_of
from sim_harness.scenario_sections import EngineSection

BF16_PAYS: Final = 250_000
"""Products of convolutions a sample from which bf16 is worth its rounding: 1.4 times as fast and more."""
_PART: Final = 2048
"""Samples that one thread tests at a time; sums are taken in this order, whatever the number of threads."""


def default_precision(model: ModelShape, compiler: Compiler) -> str:
    """Return bf16 where the CPU has it and it pays for this model, else fp32."""
    products = sum(
        math.prod(step.sides()) * step.conv.outputs * step.conv.inputs * step.conv.kernel**2
        for step in steps_of(model_spec(model))
        if isinstance(step, Block)
    )
    return "bf16" if compiler.bf16 and products >= BF16_PAYS else "fp32"


class NativeEngine:
    """Compiles the model's kernels when it is made; ConfigError, DataError or TrainingError where it cannot."""

    def __init__(self, corpus: Corpus, learning: Learning, settings: EngineSection) -> None:
        if is_factory(corpus.model.name):
            raise ConfigError(
                f"engine.kind native knows the layers of the models that come along, not those of {corpus.model.name}; "
                "use engine.kind sequential"
            )
        for dataset in (corpus.data, corpus.test):
            check(dataset, corpus.model)
        self._corpus, self._learning = corpus, learning
        self._compiler = find_compiler()
        self._precision = _precision(corpus.model, settings, self._compiler)
        self._kernels, self._tests, self._why_no_amx = self._make()
        self._data, self._test = _contiguous(corpus.data), _contiguous(corpus.test)
        self._workers = settings.workers or len(os.sched_getaffinity(0))
        self._pool = ThreadPoolExecutor(self._workers, "native")

    def _make(self) -> tuple[Kernels, Kernels, str]:
        """Return the kernels to train with, those to test with, which are in fp32, and why the former use no AMX."""
        model, batch, compiler = self._corpus.model, self._learning.batch_size, self._compiler
        exact = Kernels.of(model, batch, "fp32", compiler)
        if self._precision == "fp32":
            return exact, exact, "it is for bf16"
        plain = Kernels.of(model, batch, "bf16", compiler)
        tiled, why = amx_kernels(model, batch, compiler, plain)
        return tiled or plain, exact, why

    def train(self, works: Sequence[Work]) -> list[Outcome]:
        """Train the nodes, each in one thread."""
        return list(self._pool.map(self._train, works))

    def _train(self, work: Work) -> Outcome:
        how, own = self._learning, self._corpus.train[work.node]
        indices = own[batch_indices(how, work, len(own))]
        params = np.array(work.params, dtype=np.float32)
        losses = self._kernels.train(params, self._data, indices, how.lr, how.loss_limit)
        error = why_diverged(work.round, losses[-1], len(losses), how.loss_limit, how.lr)
        if not error and not self._kernels.finite(params):
            error = why_not_finite(work.round, len(losses), how.lr)
        if error:
            return Outcome(None, len(losses), error)
        work.out[:] = params
        return Outcome(math.fsum(losses) / len(losses), len(losses))

    def evaluate(self, tests: Sequence[Test], samples: int) -> list[Evaluation]:
        """Test the models in fp32, parts of the test sets at once."""
        common = sampled(len(self._test), samples)
        scores = self._scores([(test.params, self._test, common) for test in tests])
        own = [(test, self._own_test(test.node, samples)) for test in tests]
        own_scores = iter(self._scores([(test.params, self._data, chosen) for test, chosen in own if len(chosen)]))
        return [
            Evaluation(accuracy, next(own_scores)[0] if len(chosen) else None, loss, len(common))
            for (accuracy, loss), (_, chosen) in zip(scores, own, strict=True)
        ]

    def _own_test(self, node: int | None, samples: int) -> Indices:
        """Return what a node is tested with of its own, as indices into all data."""
        held_out = np.zeros(0, np.int64) if node is None else self._corpus.own_test[node]
        return held_out[sampled(len(held_out), samples)]

    def _scores(self, tests: Sequence[tuple[Params, Dataset, Indices]]) -> list[tuple[float, float]]:
        """Return accuracy and mean loss of each model on each of its own samples."""
        parts = [
            [(params, data, chosen[start : start + _PART]) for start in range(0, len(chosen), _PART)]
            for params, data, chosen in tests
        ]
        found = self._pool.map(lambda part: self._tests.test(*part), [part for test in parts for part in test])
        scores = []
        for test, (_, _, chosen) in zip(parts, tests, strict=True):
            results = [next(found) for _ in test]
            right, loss = sum(result[0] for result in results), math.fsum(result[1] for result in results)
            scores.append((right / len(chosen), loss / len(chosen)))
        return scores

    def describe(self) -> dict[str, Any]:
        """Return kind, precision and number of threads, vector instructions, whether AMX is used, and compiler."""
        return {
            "kind": "native",
            "precision": self._precision,
            "workers": self._workers,
            "isa": self._compiler.isa + ("" if self._why_no_amx else "+amx"),
            "amx": f"not used: {self._why_no_amx}" if self._why_no_amx else "used",
            "compiler": self._compiler.version,
        }

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()


def _precision(model: ModelShape, settings: EngineSection, compiler: Compiler) -> str:
    """Return fp32 or bf16; ConfigError where this CPU has no bf16."""
    if settings.precision == "default":
        return default_precision(model, compiler)
    if settings.precision == "bf16" and not compiler.bf16:
        raise ConfigError(
            "engine.precision is bf16, but this CPU (or this compiler) has no AVX512-BF16, which engine.kind native "
            "needs for it; use fp32"
        )
    return settings.precision


def _contiguous(data: Dataset) -> Dataset:
    """Return the same samples as the kernels read them; a copy only where they stand otherwise."""
    return Dataset(np.ascontiguousarray(data.x, np.float32), np.ascontiguousarray(data.y, np.int64), data.origin)
