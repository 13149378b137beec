"""The native engine's kernels for aarch64, compiled here and run by qemu: `python -m tests.sim_harness.cohort.aarch64`.

Needs Debian's gcc-aarch64-linux-gnu and qemu-user-static. Prints how far from this machine's kernels a round comes out.
"""

from __future__ import annotations

import math
import shutil
import subprocess
import tempfile
from importlib import resources
from pathlib import Path

import numpy as np

from agent.core.types import ModelShape
from agent.learning.model import model_spec
from sim_harness.cohort.native_build import _FLAGS, find_compiler
from sim_harness.cohort.native_kernels import _CHECK_LR, Kernels, _distance, _short_round
from sim_harness.cohort.native_source import model_source

LANES = 4
"""Of NEON's vectors, as `Compiler.lanes` says."""
ROUNDS = {
    "small-cnn": ((1, 8, 8), 8),
    "small-cnn of 28x28": ((1, 28, 28), 16),
    "femnist-cnn": ((1, 28, 28), 16),
    "gn-lenet": ((3, 32, 32), 32),
}


def main() -> None:
    """Compile and run each model's round for a Pi 4's instructions, and for newer ones."""
    for name, (shape, batch) in ROUNDS.items():
        model = ModelShape(name.split()[0], shape, 10)
        for architecture in ("armv8-a", "armv8.2-a"):
            with tempfile.TemporaryDirectory() as folder:
                print(f"{name}, {architecture}: {off(model, batch, architecture, Path(folder)):.2g}", flush=True)


def off(model: ModelShape, batch: int, architecture: str, folder: Path) -> float:
    """Return what `Kernels.apart` returns of kernels for that architecture against those of this machine."""
    data, work, indices = _short_round(model, batch)
    arrays = {"params": work.out, "x": data.x, "y": data.y.astype(np.int64), "indices": indices.astype(np.int64)}
    for name, array in arrays.items():
        (folder / name).write_bytes(np.ascontiguousarray(array).tobytes())
    for file in resources.files("sim_harness.cohort").joinpath("kernels").iterdir():
        (folder / file.name).write_text(file.read_text())
    (folder / "model.c").write_text(model_source(model_spec(model), lanes=LANES, batch=batch, bf16=False, amx=False))
    shutil.copy(Path(__file__).with_name("aarch64_main.c"), folder / "main.c")
    flags = [flag.replace("native", architecture) for flag in _FLAGS]
    for command in (
        ["aarch64-linux-gnu-gcc", *flags, "-static", "main.c", "-o", "round", "-lm"],
        ["qemu-aarch64-static", "./round", *map(str, (*indices.shape, _CHECK_LR))],
    ):
        subprocess.run(command, cwd=folder, check=True)
    wanted = work.out.copy()
    Kernels.of(model, batch, "fp32", find_compiler()).train(wanted, data, indices, _CHECK_LR, math.inf)
    work.out[:] = np.frombuffer((folder / "out").read_bytes(), np.float32)
    return _distance(work, wanted)


if __name__ == "__main__":
    main()
