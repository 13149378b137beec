"""Everything that can happen to a node: past tense, frozen, handed to `RoundMachine.handle` by a driver."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from agent.core.types import ModelUpdate, NodeId, Params, Quality, Roster, WindowDetail


@dataclass(frozen=True, slots=True)
class Started:
    """The driver is up: journal open, transport started."""


@dataclass(frozen=True, slots=True)
class PeersChanged:
    """Who can be reached now: peer -> digest (hex) of the roster that it says it is ready for, LOOKING, or "".

    The mapping is kept as it is: who hands it in does not change it afterwards.
    """

    live: Mapping[NodeId, str]


@dataclass(frozen=True, slots=True)
class RosterChanged:
    """The fleet's membership changes at the future round that the roster names."""

    roster: Roster


@dataclass(frozen=True, slots=True)
class TrainingFinished:
    """The training that `StartTraining` asked for ended well; `energy_uj` is the gross cost of its window."""

    round: int
    params: Params = field(compare=False)
    loss: float
    energy_uj: int
    quality: Quality
    window: WindowDetail | None = None


@dataclass(frozen=True, slots=True)
class TrainingFailed:
    """The training gave no usable model; what it cost is charged all the same.

    No energy, of quality NONE: it did not begin.
    """

    round: int
    reason: str
    energy_uj: int
    quality: Quality
    window: WindowDetail | None = None


@dataclass(frozen=True, slots=True)
class BudgetRenewed:
    """A budget period has begun, or it is known better when the present one ends; microjoules and seconds."""

    period: str
    limit_uj: int | None
    limit_rounds: int | None = None
    renews_in_s: float | None = None
    """When the next period begins; None: it is not known, or never."""


@dataclass(frozen=True, slots=True)
class EnergyFlowed:
    """Energy came or went outside of training windows: recharged, and spent where the run charges that, too."""

    credit_uj: int = 0
    background_uj: int = 0


@dataclass(frozen=True, slots=True)
class UpdateReceived:
    """A whole, checked model of a neighbour."""

    update: ModelUpdate


@dataclass(frozen=True, slots=True)
class RoundAnnounced:
    """A valid header said which round its sender is in; its model is not whole, or not wanted."""

    sender: NodeId
    round: int


@dataclass(frozen=True, slots=True)
class UpdateRejected:
    """Bytes from a peer were refused before they became an update."""

    reason: str


@dataclass(frozen=True, slots=True)
class DeadlineReached:
    """`RoundMachine.deadline` has passed."""


@dataclass(frozen=True, slots=True)
class StopRequested:
    """The node is to stop cleanly, with its work saved."""

    reason: str


Event: TypeAlias = (
    Started
    | PeersChanged
    | RosterChanged
    | TrainingFinished
    | TrainingFailed
    | BudgetRenewed
    | EnergyFlowed
    | UpdateReceived
    | RoundAnnounced
    | UpdateRejected
    | DeadlineReached
    | StopRequested
)
