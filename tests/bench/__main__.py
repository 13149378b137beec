"""Prints one line a measurement: `python -m tests.bench [--only PART ...] [--idle-minutes N]`."""

from __future__ import annotations

import argparse
import compileall
from collections.abc import Callable, Iterator
from functools import partial

from tests.bench import boards, energy, footprint, overhead, parts
from tests.bench.agents import ROOT
from tests.bench.lines import Line


def main() -> None:
    """Print all measurements, each as soon as it is made."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=sorted(known(1.0)), help="leave the other parts out")
    parser.add_argument("--idle-minutes", type=float, default=footprint.IDLE_MINUTES, help="how long an agent idles")
    arguments = parser.parse_args()
    compileall.compile_dir(ROOT / "agent", quiet=1)  # as an installation is: compiling takes time and 8 MB
    for name, part in known(arguments.idle_minutes).items():
        if not arguments.only or name in arguments.only:
            for what, value in part():
                print(f"{what:<64} {value}", flush=True)


def known(idle_minutes: float) -> dict[str, Callable[[], Iterator[Line]]]:
    """Return all parts of the bench by name, in their order."""
    return {
        "wire": parts.wire,
        "mixing": parts.mixing,
        "machine": parts.machine,
        "topology": parts.topology,
        "journal": parts.journal,
        "energy": energy.energy,
        "boards": boards.boards,
        "light-start": parts.light_start,
        "waiting": footprint.waiting,
        "start": footprint.start,
        "training": footprint.training,
        "overhead": overhead.overhead,
        "idle": partial(footprint.idle, idle_minutes),
    }


if __name__ == "__main__":
    main()
