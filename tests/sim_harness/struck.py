"""`skiptrain-sim`, whose process of one rank is struck by a signal when a round ends: RANK SIGNAL ROUND COMMAND..."""

from __future__ import annotations

import os
import signal
import sys

from agent.core.types import RoundRecord
from sim_harness.__main__ import main
from sim_harness.emulated_evidence import EmulatedEvidence

record = EmulatedEvidence.record


def strike(rank: str, number: int, round_: int) -> None:
    """Have the first record of that round strike the process."""

    def struck(self: EmulatedEvidence, node: int, ended: RoundRecord) -> None:
        record(self, node, ended)
        if os.environ["RANK"] == rank and ended.round == round_:
            EmulatedEvidence.record = record  # type: ignore[method-assign]
            os.kill(os.getpid(), number)

    EmulatedEvidence.record = struck  # type: ignore[method-assign]


if __name__ == "__main__":
    strike(sys.argv[1], signal.Signals[sys.argv[2]], int(sys.argv[3]))
    sys.exit(main(sys.argv[4:]))
