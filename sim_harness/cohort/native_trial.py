"""`python -m ....native_trial TILED PLAIN MODEL CHANNELS HEIGHT WIDTH CLASSES BATCH`: a build with AMX, tried.

It prints how far what a short round changes is from the plain build's. A process of its own, because it may crash.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from agent.core.types import ModelShape
from sim_harness.cohort.native_amx import ask_linux
from sim_harness.cohort.native_build import Build
from sim_harness.cohort.native_kernels import Kernels


def main(arguments: Sequence[str]) -> None:
    """Try it; what Linux does not grant shows as a crash."""
    tiled, plain = (Kernels(Build.at(Path(path)), threading.local()) for path in arguments[:2])
    channels, height, width, classes, batch = map(int, arguments[3:])
    ask_linux()
    print(tiled.apart(plain, ModelShape(arguments[2], (channels, height, width), classes), batch))


if __name__ == "__main__":
    main(sys.argv[1:])
