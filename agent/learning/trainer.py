"""Local training and evaluation: plain SGD in fp32, bit-equal for equal inputs whatever ran before."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from agent.core.seeding import generator, seed64
from agent.learning.data import check
from agent.learning.factory import build_module
from agent.learning.layers import require_torch
from agent.learning.model import dump_params, load_params

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agent.core.types import ModelShape, Params
    from agent.errors import AgentError
    from agent.learning.data import Dataset, Indices

LOSS_LIMIT = 1e4
_EVALUATION_BATCH = 1024
_EVALUATION_VALUES = 2**20
"""Input values in one evaluation batch at most, so that large images don't exhaust a small board's memory."""


@dataclass(frozen=True, slots=True)
class TrainTask:
    """What one node trains in one round."""

    round: int
    params: Params = field(compare=False, repr=False)
    seed: int
    """Any 64 bits of this node's own; in the same round, equal seeds draw equal batches and equal dropout."""
    local_steps: int
    batch_size: int
    lr: float


@dataclass(frozen=True, slots=True)
class TrainOutcome:
    """What came of a task; with an `error` the params are the ones that the task brought."""

    params: Params = field(compare=False, repr=False)
    loss: float | None
    """Mean over the local steps done; None without any, or with an error."""
    steps: int
    seconds: float
    error: str = ""
    fatal: type[AgentError] | None = None
    """The class of an error after which no training can ever work with this configuration on this device."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Top-1 accuracy in [0, 1] and mean cross entropy; None where there is no such test set."""

    accuracy: float | None
    """On the common test set."""
    own_accuracy: float | None
    """On the node's own held-out samples."""
    loss: float | None
    """On the common test set."""
    samples: int
    """Of the common test set."""
    error: str = ""
    fatal: type[AgentError] | None = None
    """As in TrainOutcome."""


class _GivenUpError(Exception):
    """An evaluation was asked to stop."""


class Trainer(Protocol):
    """Trains and evaluates parameters on one node's data."""

    def train(
        self,
        task: TrainTask,
        on_step: Callable[[int], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> TrainOutcome:
        """Do the local steps; `on_step` hears how many are done, `should_stop` is asked before each."""

    def evaluate(self, params: Params, samples: int, should_stop: Callable[[], bool] | None = None) -> Evaluation:
        """Test `params` on `samples` of each test set, always the same ones; 0 means all.

        `should_stop` is asked before each batch; yes gives the evaluation up, with an error.
        """

    def close(self) -> None:
        """Free what the trainer holds."""


def batches(seed: int, round_: int, samples: int, batch_size: int) -> Iterator[Indices]:
    """Yield indices of shape (min(batch_size, samples),) without end, cut from one stream of permutations.

    A batch may straddle two permutations, so that none is small (2 samples at an epoch's end take a full step too).
    """
    rng = generator(seed, "batches", round_)
    size = min(batch_size, samples)
    stream = rng.permutation(samples)
    while True:
        if len(stream) < size:
            stream = np.concatenate([stream, rng.permutation(samples)])
        yield stream[:size]
        stream = stream[size:]


def sampled(count: int, samples: int) -> Indices:
    """Return which of `count` samples a test takes, ascending: `samples` of them, always the same; 0 means all."""
    if 0 < samples < count:
        return np.sort(generator(0, "evaluation", count, samples).permutation(count)[:samples])
    return np.arange(count)


def why_diverged(round_: int, loss: float, steps: int, limit: float, lr: float) -> str:
    """Return why training cannot go on after a local step with this loss, or ""."""
    if loss <= limit:  # false for NaN, too
        return ""
    return f"round {round_}: the loss was {loss:.4g} at local step {steps} (limit {limit:.4g}); lower lr ({lr})"


def why_not_finite(round_: int, steps: int, lr: float) -> str:
    """Return what is said of parameters that are not finite after a round."""
    return f"round {round_}: parameters are not finite after {steps} steps; lower lr ({lr})"


class TorchTrainer:
    """The reference engine; sets torch's number of threads and deterministic mode for the whole process.

    Raises ConfigError, DataError or TrainingError where model, data and torch don't fit.
    """

    def __init__(
        self,
        model: ModelShape,
        train: Dataset,
        own_test: Dataset,
        test: Dataset | None = None,
        *,
        seed: int,
        threads: int = 1,
        loss_limit: float = LOSS_LIMIT,
    ) -> None:
        for dataset in (train, own_test, test):
            if dataset is not None and (dataset is not own_test or len(own_test)):
                check(dataset, model)
        self._torch = require_torch()
        self._threads, self._loss_limit = threads, loss_limit
        self._set_up()
        self._module: Any = build_module(model, seed)
        self._train, self._own_test, self._test = train, own_test, test

    def use(self, train: Dataset, own_test: Dataset) -> None:
        """Go on with another node's samples; as checked as those at the start."""
        self._train, self._own_test = train, own_test

    def train(
        self,
        task: TrainTask,
        on_step: Callable[[int], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> TrainOutcome:
        """Do the task's local steps; NaN, infinity or a loss above the limit end it with an error, old params kept."""
        started = time.perf_counter()
        self._set_up()
        self._torch.manual_seed(seed64(task.seed, "torch", task.round))
        load_params(self._module, task.params)
        self._module.train()
        losses: list[float] = []
        error = ""
        stream = batches(task.seed, task.round, len(self._train), task.batch_size)
        while len(losses) < task.local_steps and not error and not (should_stop and should_stop()):
            losses.append(self._step(next(stream), task.lr))
            error = why_diverged(task.round, losses[-1], len(losses), self._loss_limit, task.lr)
            if on_step:
                on_step(len(losses))
        params = dump_params(self._module)
        if not error and not np.isfinite(params).all():
            error = why_not_finite(task.round, len(losses), task.lr)
        seconds = time.perf_counter() - started
        if error:
            return TrainOutcome(task.params, None, len(losses), seconds, error)
        return TrainOutcome(params, math.fsum(losses) / len(losses) if losses else None, len(losses), seconds)

    def evaluate(self, params: Params, samples: int, should_stop: Callable[[], bool] | None = None) -> Evaluation:
        """Return top-1 accuracy on the common and on the own test set, or an error where it was given up."""
        self._set_up()
        load_params(self._module, params)
        self._module.eval()
        accuracy, loss, count, own_accuracy = None, None, 0, None
        try:
            if self._test is not None:
                accuracy, loss, count = self._score(self._test, samples, should_stop)
            if len(self._own_test):
                own_accuracy = self._score(self._own_test, samples, should_stop)[0]
        except _GivenUpError:
            return Evaluation(None, None, None, 0, "given up before its end")
        return Evaluation(accuracy, own_accuracy, loss, count)

    def close(self) -> None:
        """Forget model and data."""
        del self._module, self._train, self._own_test, self._test

    def _set_up(self) -> None:
        """Set what is global to the process, which another trainer may have changed."""
        torch = self._torch
        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        torch.use_deterministic_algorithms(mode=True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False

    def _step(self, indices: Indices, lr: float) -> float:
        """Take one SGD step on a batch, shape (m,); return its loss."""
        torch = self._torch
        x = torch.from_numpy(self._train.x[indices])
        y = torch.from_numpy(self._train.y[indices])
        self._module.zero_grad(set_to_none=True)
        loss = torch.nn.functional.cross_entropy(self._module(x), y)
        loss.backward()
        with torch.no_grad():
            for tensor in self._module.parameters():
                if tensor.grad is not None:
                    tensor.add_(tensor.grad, alpha=-lr)
        return float(loss.item())

    def _score(
        self, dataset: Dataset, samples: int, should_stop: Callable[[], bool] | None
    ) -> tuple[float, float, int]:
        """Return accuracy, mean loss and the number of samples they are over."""
        torch, chosen = self._torch, sampled(len(dataset), samples)
        size = max(1, min(_EVALUATION_BATCH, _EVALUATION_VALUES // math.prod(dataset.x.shape[1:])))
        right, loss = 0, 0.0
        with torch.no_grad():
            for start in range(0, len(chosen), size):
                if should_stop and should_stop():
                    raise _GivenUpError
                part = chosen[start : start + size]
                scores, y = self._module(torch.from_numpy(dataset.x[part])), torch.from_numpy(dataset.y[part])
                right += int((scores.argmax(dim=1) == y).sum().item())
                loss += float(torch.nn.functional.cross_entropy(scores, y, reduction="sum").item())
        return right / len(chosen), loss / len(chosen), len(chosen)
