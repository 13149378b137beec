"""Nodes stacked in torch: the same layer of several models is one grouped convolution, in channels_last memory.

For machines without a C compiler, and for CUDA. A big model is a stack of its own, and gains by channels_last and bf16;
small ones gain by sharing what a call of torch costs. Everything that a node's numbers depend on is within its groups.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from agent.errors import ConfigError
from agent.learning.factory import is_factory
from agent.learning.layers import HALVE, RELU, Conv, GroupNorm, Layer, Linear, Plain, require_torch
from agent.learning.model import ModelSpec, model_spec, n_params, parameters
from agent.learning.trainer import Evaluation, why_diverged, why_not_finite
from sim_harness.cohort.cpu import CpuFeatures, cpu_features
from sim_harness.cohort.engine import Corpus, Engine, Learning, Outcome, Test, Work, batch_indices
from sim_harness.cohort.processes import Processes, worker_count
from sim_harness.cohort.sequential import SequentialEngine
from sim_harness.cohort.shapes import sample_shapes
from sim_harness.scenario_sections import EngineSection

MAX_STACK: Final = 16
_STACK_VALUES: Final = 3 << 18
"""Values of a stack's largest layer, about: fewer leave calls of torch that cost more than their work, more leave the
caches. Measured with small-cnn at 28x28 (4 nodes are best), at 8x8 (16) and with GN-LeNet (1)."""
_CUDA_STACK_VALUES: Final = 1 << 26
"""Bounds a device's memory to about a gigabyte."""
_CUDA_MAX_STACK: Final = 256


def open_stacked(corpus: Corpus, learning: Learning, settings: EngineSection) -> Engine:
    """Return the engine, on CUDA if there is a device, else in worker processes; ConfigError for a user's model."""
    if is_factory(corpus.model.name):
        raise ConfigError(
            f"engine.kind: stacked knows the layers of the shipped models only, not those of {corpus.model.name}; "
            "use sequential"
        )
    engine, workers = StackedEngine(corpus, learning, settings.precision), worker_count(settings.workers)
    if workers == 1 or engine.device != "cpu":
        return engine
    return Processes(engine, n_params(parameters(model_spec(corpus.model))), workers, engine.stack)


def stack_size(spec: ModelSpec, batch_size: int, device: str) -> int:
    """Return how many nodes are trained together; it depends on nothing but these."""
    largest = batch_size * max(math.prod(shape) for shape in sample_shapes(spec))
    values, most = (_STACK_VALUES, MAX_STACK) if device == "cpu" else (_CUDA_STACK_VALUES, _CUDA_MAX_STACK)
    return min(most, 1 << max(0, round(math.log2(values / largest))))


def precision_for(wanted: str, stack: int, device: str, cpu: CpuFeatures) -> str:
    """Return fp32 or bf16: what is wanted, or bf16 where it pays, which grouped convolutions in bf16 did nowhere."""
    if wanted != "default":
        return wanted
    return "bf16" if stack == 1 and device == "cpu" and cpu.bf16 else "fp32"


@dataclass(frozen=True, slots=True, eq=False)
class _Batches:
    """The batches of one stack; a batch with fewer samples than others is filled up with samples of weight 0."""

    indices: np.ndarray[Any, np.dtype[np.int64]]
    """Into the fleet's samples, shape (steps, stack, batch); those of a round that ends earlier do not count."""
    weights: np.ndarray[Any, np.dtype[np.float32]]
    """Of a sample's loss in its node's mean, shape (steps, stack, batch)."""


class StackedEngine:
    """Trains stacks one after the other, in this process; tests models as a device does."""

    def __init__(self, corpus: Corpus, learning: Learning, precision: str) -> None:
        self._torch = require_torch()
        self._corpus, self._learning = corpus, learning
        self.device = "cuda" if self._torch.cuda.is_available() else "cpu"
        spec = model_spec(corpus.model)
        self.stack = stack_size(spec, learning.batch_size, self.device)
        self._precision = precision_for(precision, self.stack, self.device, cpu_features())
        self._layers = pools_first(spec.layers)
        self._shapes = [tensor.shape for tensor in parameters(spec)]
        self._reference = SequentialEngine(corpus, learning)

    def train(self, works: Sequence[Work]) -> list[Outcome]:
        """Train stack after stack; the last is filled up with copies, so that all are alike."""
        self._torch.set_num_threads(1)
        found: list[Outcome] = []
        for start in range(0, len(works), self.stack):
            found += self._train(works[start : start + self.stack])
        return found

    def evaluate(self, tests: Sequence[Test], samples: int) -> list[Evaluation]:
        """Test one after the other."""
        return self._reference.evaluate(tests, samples)

    def describe(self) -> dict[str, Any]:
        """Return what training depends on."""
        about = {"kind": "stacked", "precision": self._precision, "workers": 1}
        return {**about, "nodes_a_stack": self.stack, "device": self.device}

    def close(self) -> None:
        """Forget the reference."""
        self._reference.close()

    def _train(self, works: Sequence[Work]) -> list[Outcome]:
        filled = [*works, *[works[0]] * (self.stack - len(works))]
        params, batches = self._load(filled), self._batches(filled)
        weights = self._torch.from_numpy(batches.weights).to(self.device)
        steps = zip(batches.indices, weights, strict=True)
        losses = np.array([self._step(params, indices, weight) for indices, weight in steps])
        flat = self._torch.cat([tensor.detach().flatten(1) for tensor in params], dim=1).cpu().numpy()
        return [self._outcome(work, losses[: self._learning.steps(work), i], flat[i]) for i, work in enumerate(works)]

    def _outcome(self, work: Work, losses: Any, params: Any) -> Outcome:
        """Judge the losses, shape (steps,), and the parameters of one node, and write them to the work."""
        how = self._learning
        for step, loss in enumerate(losses, start=1):
            if error := why_diverged(work.round, float(loss), step, how.loss_limit, how.lr):
                return Outcome(None, step, error)
        if not np.isfinite(params).all():
            return Outcome(None, len(losses), why_not_finite(work.round, len(losses), how.lr))
        work.out[:] = params
        return Outcome(math.fsum(losses) / len(losses), len(losses))

    def _load(self, works: Sequence[Work]) -> list[Any]:
        """Return the stack's fp32 parameters, one leaf for each of the model's tensors."""
        flat = self._torch.from_numpy(np.stack([work.params for work in works])).to(self.device)
        parts = flat.split([math.prod(shape) for shape in self._shapes], dim=1)
        return [
            part.reshape(len(works), *shape).requires_grad_() for part, shape in zip(parts, self._shapes, strict=True)
        ]

    def _batches(self, works: Sequence[Work]) -> _Batches:
        how = self._learning
        shape = max(how.steps(work) for work in works), len(works), how.batch_size
        indices, weights = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.float32)
        for i, work in enumerate(works):
            own = self._corpus.train[work.node]
            drawn = own[batch_indices(how, work, len(own))]
            steps, size = drawn.shape
            indices[:, i] = own[0]
            indices[:steps, i, :size] = drawn
            weights[:steps, i, :size] = 1.0 / size
        return _Batches(indices, weights)

    def _step(self, params: list[Any], indices: Any, weights: Any) -> Any:
        """Take one SGD step with the samples at `indices`, shape (stack, batch); return the losses, shape (stack,)."""
        torch, data = self._torch, self._corpus.data
        x = torch.from_numpy(data.x[indices.T]).to(self.device).flatten(1, 2)
        y = torch.from_numpy(data.y[indices]).to(self.device)
        scores = self._forward(x, params).float()
        each = torch.nn.functional.cross_entropy(scores.flatten(0, 1), y.flatten(), reduction="none")
        losses = (each.view_as(weights) * weights).sum(dim=1)
        gradients = torch.autograd.grad(losses.sum(), params)
        with torch.no_grad():
            for tensor, gradient in zip(params, gradients, strict=True):
                tensor.add_(gradient, alpha=-self._learning.lr)
        return losses.detach().cpu().numpy()

    def _forward(self, x: Any, params: list[Any]) -> Any:
        """Return scores, shape (stack, batch, classes), of samples of shape (batch, stack * channels, ...)."""
        torch = self._torch
        dtype = torch.bfloat16 if self._precision == "bf16" else torch.float32
        tensors = iter([tensor.to(dtype) for tensor in params])
        x = x.to(dtype).contiguous(memory_format=torch.channels_last)
        for layer in self._layers:
            x = _apply(torch, layer, x, tensors, self.stack)
        return x


def pools_first(layers: Sequence[Layer]) -> list[Layer]:
    """Return the layers, each ReLU behind the pool that follows it: the same function on a quarter of the values."""
    order = list(layers)
    for i in range(len(order) - 1):
        if order[i] == RELU and order[i + 1] == HALVE:
            order[i], order[i + 1] = order[i + 1], order[i]
    return order


def _apply(torch: Any, layer: Layer, x: Any, tensors: Iterator[Any], stack: int) -> Any:
    """Return what the same layer of all models of a stack makes of `x`."""
    functional = torch.nn.functional
    if isinstance(layer, Conv):
        weight = next(tensors).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        return functional.conv2d(x, weight, next(tensors).flatten(), padding=layer.padding, groups=stack)
    if isinstance(layer, GroupNorm):
        return functional.group_norm(x, layer.groups * stack, next(tensors).flatten(), next(tensors).flatten())
    if isinstance(layer, Linear):
        weight, bias = next(tensors), next(tensors)
        return torch.baddbmm(bias[:, None], x, weight.transpose(1, 2))
    if isinstance(layer, Plain) and layer.kind == "Flatten":
        return x.unflatten(1, (stack, -1)).flatten(2).transpose(0, 1)
    kind, arguments = layer.call()
    return getattr(torch.nn, kind)(*arguments)(x)
