"""One model's compiled kernels as functions on arrays, compared with torch once before they are trusted."""

from __future__ import annotations

import ctypes
import math
import threading
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from agent.core.seeding import generator
from agent.core.types import ModelShape, Params
from agent.errors import TrainingError
from agent.learning.data import Dataset, Indices
from agent.learning.model import initial_params, model_spec
from agent.learning.trainer import TorchTrainer, TrainTask
from sim_harness.cohort.engine import Learning, Work, batch_indices
from sim_harness.cohort.native_build import Build, Compiler, build
from sim_harness.cohort.native_source import model_source

_CHECK_STEPS: Final = 2
_CHECK_LR: Final = 0.01
TOLERANCE: Final = {"fp32": 1e-2, "bf16": 0.5}
"""How far from torch's may be what a build changes in two steps, as a part of torch's change.

Right ones were seen at 4e-6 and 0.33 at most; one that leaves out every second product is at 0.68 and more.
"""


@dataclass(frozen=True, slots=True)
class Kernels:
    """One model's compiled functions; each thread has its own memory for what stands between input and scores."""

    build: Build
    memory: threading.local

    @staticmethod
    def source(model: ModelShape, batch: int, precision: str, compiler: Compiler, *, amx: bool = False) -> str:
        """Return a model's model.c; ConfigError."""
        bf16 = precision == "bf16"
        return model_source(model_spec(model), lanes=compiler.lanes, batch=batch, bf16=bf16, amx=amx)

    @classmethod
    def unchecked(
        cls, model: ModelShape, batch: int, precision: str, compiler: Compiler, *, amx: bool = False
    ) -> Kernels:
        """Compile or find the kernels of a model; ConfigError."""
        return cls(build(cls.source(model, batch, precision, compiler, amx=amx), compiler), threading.local())

    @classmethod
    def of(cls, model: ModelShape, batch: int, precision: str, compiler: Compiler) -> Kernels:
        """Compile or find the kernels of a model, checked against torch once; ConfigError, TrainingError."""
        kernels = cls.unchecked(model, batch, precision, compiler)
        if not kernels.build.checked:
            off = kernels.off(model, batch)
            if not off <= TOLERANCE[precision]:
                raise TrainingError(
                    f"engine.kind native: what {compiler.version} made for {model.name} is {off:.2g} off what "
                    f"torch makes of it in {_CHECK_STEPS} steps ({precision}: up to {TOLERANCE[precision]} is right); "
                    "name another compiler in CC, or use engine.kind stacked or sequential"
                )
            kernels.build.remember()
        return kernels

    def train(
        self, params: Params, data: Dataset, indices: Indices, lr: float, loss_limit: float
    ) -> npt.NDArray[np.float64]:
        """Train `params` in place on batches, shape (steps, n); return the losses of the steps that were done."""
        steps, n = indices.shape
        indices, losses = np.ascontiguousarray(indices, np.int64), np.empty(steps)
        arrays = [_address(array) for array in (params, data.x, data.y, indices)]
        done = self.build.library.train_round(*arrays, steps, n, lr, loss_limit, _address(losses), self._scratch())
        return losses[:done]

    def finite(self, params: Params) -> bool:
        """Return whether all parameters are."""
        return bool(self.build.library.all_finite(_address(params)))

    def test(self, params: Params, data: Dataset, chosen: Indices) -> tuple[int, float]:
        """Return how many of the chosen samples a model has right, and the sum of their losses."""
        params, chosen = np.ascontiguousarray(params, np.float32), np.ascontiguousarray(chosen, np.int64)
        loss = ctypes.c_double()
        arrays = [_address(array) for array in (params, data.x, data.y, chosen)]
        right = self.build.library.test_model(*arrays, len(chosen), ctypes.byref(loss), self._scratch())
        return int(right), loss.value

    def _scratch(self) -> int:
        """Return the address of this thread's memory, aligned to a line of the cache, zero when it is made."""
        if not hasattr(self.memory, "block"):
            self.memory.block = np.zeros(self.build.library.scratch_bytes() + 64, np.uint8)
        address = _address(self.memory.block)
        return address + -address % 64

    def off(self, model: ModelShape, batch: int) -> float:
        """Return how far from torch's is what a short round on random samples changes, as a part of torch's change."""
        data, work, indices = _short_round(model, batch)
        self.train(work.out, data, indices, _CHECK_LR, math.inf)
        trainer = TorchTrainer(model, data, data, seed=0, loss_limit=math.inf)
        wanted = trainer.train(TrainTask(0, work.params, 0, _CHECK_STEPS, batch, _CHECK_LR)).params
        return _distance(work, wanted)

    def apart(self, other: Kernels, model: ModelShape, batch: int) -> float:
        """Return the same against other kernels of the model."""
        data, work, indices = _short_round(model, batch)
        wanted = work.out.copy()
        other.train(wanted, data, indices, _CHECK_LR, math.inf)
        self.train(work.out, data, indices, _CHECK_LR, math.inf)
        return _distance(work, wanted)


def _short_round(model: ModelShape, batch: int) -> tuple[Dataset, Work, Indices]:
    """Return random samples, a round to be done in place of `out`, and its batches."""
    rng, n = generator(0, "kernel check"), 2 * batch
    x = rng.standard_normal((n, *model.input_shape)).astype(np.float32)
    data = Dataset(x, rng.integers(0, model.classes, n), "the check of the kernels")
    start = initial_params(model_spec(model), 0)
    work = Work(0, 0, 0, start, start.copy())
    return data, work, batch_indices(Learning(_CHECK_STEPS, batch, _CHECK_LR, 0), work, n)


def _distance(work: Work, wanted: Params) -> float:
    """Return the root of the squares' sum of all differences, divided by that of the changes that were wanted."""
    return float(np.linalg.norm(work.out - wanted) / np.linalg.norm(wanted - work.params))


def _address(array: npt.NDArray[Any]) -> int:
    return int(array.ctypes.data)
