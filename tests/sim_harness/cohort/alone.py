"""A round of the native engine's kernels as a program without Python, for machines that are emulated."""

from __future__ import annotations

import math
import shutil
import subprocess
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np

from agent.core.types import ModelShape, Params
from agent.learning.model import model_spec
from sim_harness.cohort.engine import Work
from sim_harness.cohort.native_build import _FLAGS, find_compiler
from sim_harness.cohort.native_kernels import _CHECK_LR, Kernels, _distance, _short_round
from sim_harness.cohort.native_source import model_source

ROUNDS = {
    "small-cnn": ((1, 8, 8), 8),
    "small-cnn of 28x28": ((1, 28, 28), 16),
    "femnist-cnn": ((1, 28, 28), 16),
    "gn-lenet": ((3, 32, 32), 32),
}
"""Models with the shape of their input, and samples in a batch."""


@dataclass(frozen=True, slots=True)
class Round:
    """A model's short round on random samples, and what this machine's kernels make of it."""

    model: ModelShape
    batch: int
    arguments: tuple[str, ...]
    work: Work
    wanted: Params

    @classmethod
    def at(cls, name: str, precision: str, folder: Path) -> Round:
        """Write the program's input to a folder, and train here."""
        shape, batch = ROUNDS[name]
        model = ModelShape(name.partition(" ")[0], shape, 10)
        data, work, indices = _short_round(model, batch)
        arrays = {"params": work.out, "x": data.x, "y": data.y.astype(np.int64), "indices": indices.astype(np.int64)}
        for file, array in arrays.items():
            (folder / file).write_bytes(np.ascontiguousarray(array).tobytes())
        wanted = work.out.copy()
        Kernels.of(model, batch, precision, find_compiler()).train(wanted, data, indices, _CHECK_LR, math.inf)
        return cls(model, batch, (*map(str, indices.shape), str(_CHECK_LR)), work, wanted)

    def compile(
        self,
        program: Path,
        compiler: str,
        architecture: str,
        *flags: str,
        lanes: int,
        bf16: bool = False,
        amx: bool = False,
    ) -> None:
        """Make the program; its sources stand beside it afterwards."""
        folder = program.parent
        for file in resources.files("sim_harness.cohort").joinpath("kernels").iterdir():
            (folder / file.name).write_text(file.read_text())
        source = model_source(model_spec(self.model), lanes=lanes, batch=self.batch, bf16=bf16, amx=amx)
        (folder / "model.c").write_text(source)
        shutil.copy(Path(__file__).with_name("alone_main.c"), folder / "main.c")
        usual = [flag.replace("native", architecture) for flag in _FLAGS]
        command = [compiler, *usual, *flags, "-static", "main.c", "-o", str(program.name), "-lm"]
        subprocess.run(command, cwd=folder, check=True)

    def off(self, out: bytes) -> float:
        """Return how far what the program wrote is from what was wanted, as a part of what changed."""
        self.work.out[:] = np.frombuffer(out, np.float32)
        return _distance(self.work, self.wanted)
