"""The native engine's kernels for aarch64, compiled here and run by qemu: `python -m tests.sim_harness.cohort.aarch64`.

Needs Debian's gcc-aarch64-linux-gnu and qemu-user-static. Prints how far from this machine's kernels a round comes out.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from tests.sim_harness.cohort.alone import ROUNDS, Round

LANES = 4
"""Of NEON's vectors, as `Compiler.lanes` says."""


def main() -> None:
    """Compile and run each model's round for a Pi 4's instructions, and for newer ones."""
    for name in ROUNDS:
        for architecture in ("armv8-a", "armv8.2-a"):
            with tempfile.TemporaryDirectory() as folder:
                print(f"{name}, {architecture}: {off(name, architecture, Path(folder)):.2g}", flush=True)


def off(name: str, architecture: str, folder: Path) -> float:
    """Return what `Kernels.apart` returns of kernels for that architecture against those of this machine."""
    done = Round.at(name, "fp32", folder)
    done.compile(folder / "round", "aarch64-linux-gnu-gcc", architecture, lanes=LANES)
    command = ["qemu-aarch64-static", "./round", *done.arguments]
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return done.off((folder / "out").read_bytes())


if __name__ == "__main__":
    main()
