"""Everything a node can ask of its driver: imperative, frozen, to be done in the order returned."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from agent.core.types import ModelUpdate, NodeId, Params, RoundRecord, Snapshot


@dataclass(frozen=True, slots=True)
class SaveState:
    """Make the snapshot durable before any later effect starts."""

    snapshot: Snapshot


@dataclass(frozen=True, slots=True)
class SaveModel:
    """Make the model after round `round` durable."""

    round: int
    params: Params = field(compare=False)


@dataclass(frozen=True, slots=True)
class WatchNeighbours:
    """Listen to exactly these peers; once that holds, tell everybody that this node is ready for `ready`."""

    peers: frozenset[NodeId]
    ready: str
    """Digest (hex) of the roster that it can begin round 0 with; LOOKING while it looks for the run; else ""."""


@dataclass(frozen=True, slots=True)
class StartTraining:
    """Train from `params`; answer once, with TrainingFinished or TrainingFailed of the same round.

    End between two local steps before the window's cost exceeds `upper_uj`; None: no budget bounds it.
    """

    round: int
    params: Params = field(compare=False)
    seed: int
    upper_uj: int | None


@dataclass(frozen=True, slots=True)
class StopTraining:
    """End the training between two local steps, or at once; the answer to StartTraining still comes."""

    round: int
    at_once: bool


@dataclass(frozen=True, slots=True)
class PublishUpdate:
    """Share the node's model of this round with whoever watches it."""

    update: ModelUpdate


@dataclass(frozen=True, slots=True)
class AppendRecord:
    """Write the account of a finished round."""

    record: RoundRecord


@dataclass(frozen=True, slots=True)
class Evaluate:
    """Measure the model after round `round`; nothing waits for the result."""

    round: int
    params: Params = field(compare=False)


@dataclass(frozen=True, slots=True)
class Notify:
    """Tell a person something that the node can live with."""

    message: str


@dataclass(frozen=True, slots=True)
class RunFinished:
    """Nothing more will come from this machine."""

    reason: str


Effect: TypeAlias = (
    SaveState
    | SaveModel
    | WatchNeighbours
    | StartTraining
    | StopTraining
    | PublishUpdate
    | AppendRecord
    | Evaluate
    | Notify
    | RunFinished
)
