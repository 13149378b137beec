"""The words of the core as frozen values: nodes, runs, models on their way, decisions and records."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import NewType, TypeAlias

import numpy as np
import numpy.typing as npt

from agent.core.budget import Ledger
from agent.core.costs import CostHistory

NodeId = NewType("NodeId", str)
"""Globally unique name of a device, stable over reboots; never a rank."""

Params: TypeAlias = npt.NDArray[np.float32]
"""All parameters of one model as one flat vector, shape (n_params,), read-only by convention."""

LOOKING = "00"
"""What a node says instead of the roster that it is ready for, while it looks for the round that the run is in."""

NODE_ID = re.compile(r"(?!.{32})[a-z0-9](-?[a-z0-9])*")
"""At most 31 characters, for the 32 bytes that a header has for them; use `fullmatch`."""


class RoundKind(str, Enum):
    """What the schedule says of a round; a function of the round's number only."""

    TRAINING = "training"
    SYNCHRONISATION = "synchronisation"


class Quality(str, Enum):
    """How a number of joules came to be known."""

    MEASURED = "measured"
    ESTIMATED = "estimated"
    REPLAYED = "replayed"
    NONE = "none"
    """No energy was spent on training in this round."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """`train_rounds` training rounds (Γtrain), then `sync_rounds` synchronisation rounds (Γsync), over and over."""

    train_rounds: int
    sync_rounds: int
    total_rounds: int

    def kind(self, round_: int) -> RoundKind:
        """Return what kind of round the one numbered `round_` (from 0) is."""
        period = self.train_rounds + self.sync_rounds
        return RoundKind.TRAINING if round_ % period < self.train_rounds else RoundKind.SYNCHRONISATION

    def training_slots(self, start: int = 0) -> int:
        """Return the exact number of training rounds in [start, total_rounds)."""
        return max(0, self._slots_before(self.total_rounds) - self._slots_before(start))

    def _slots_before(self, round_: int) -> int:
        whole, rest = divmod(round_, self.train_rounds + self.sync_rounds)
        return whole * self.train_rounds + min(rest, self.train_rounds)


@dataclass(frozen=True, slots=True)
class TopologySpec:
    """Which graph the roster forms; `edges` only for `kind: file`, as pairs of node ids."""

    kind: str
    degree: int = 0
    edges: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What every node must agree on to average: the model's name, its input (channels, height, width), its classes."""

    name: str
    input_shape: tuple[int, int, int]
    classes: int


@dataclass(frozen=True)
class RunDescriptor:
    """One learning job, the same on all of its nodes; every message carries its digest."""

    run_id: str
    seed: int
    model: ModelShape
    schedule: Schedule
    policy: str
    topology: TopologySpec
    roster: tuple[NodeId, ...] = ()
    """Who belongs to the fleet; empty means `discovered`: whoever is there when `expect_nodes` are."""
    expect_nodes: int = 0
    start_timeout_s: float = 120.0
    round_deadline_s: float = 60.0
    mode: str = "barrier"

    def digest(self) -> bytes:
        """Return 16 bytes that differ whenever anything in the descriptor differs."""
        return self._digest

    @cached_property
    def _digest(self) -> bytes:
        text = json.dumps(_plain(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).digest()[:16]

    @cached_property
    def listed(self) -> Roster | None:
        """The roster that the descriptor lists; None where it is to be discovered."""
        return Roster(0, tuple(sorted(self.roster))) if self.roster else None


def _plain(value: object) -> object:
    """Return a frozen dataclass as plain JSON values, names included."""
    names = getattr(type(value), "__dataclass_fields__", None)
    if names is not None:
        return {name: _plain(getattr(value, name)) for name in names}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


@dataclass(frozen=True)
class Roster:
    """Who belongs to the fleet from `from_round` on; a change is a new epoch that names a future round."""

    epoch: int
    members: tuple[NodeId, ...]
    from_round: int = 0

    @cached_property
    def everybody(self) -> frozenset[NodeId]:
        """The members, to be looked up."""
        return frozenset(self.members)

    def digest(self) -> bytes:
        """Return 8 bytes that tell this roster from any other of the same epoch."""
        return self._digest

    @cached_property
    def _digest(self) -> bytes:
        text = json.dumps([self.epoch, self.from_round, list(self.members)])
        return hashlib.sha256(text.encode()).digest()[:8]


@dataclass(frozen=True, slots=True)
class ModelUpdate:
    """One node's model of one round, as it is shared with the neighbours."""

    sender: NodeId
    round: int
    epoch: int
    roster: bytes
    """Digest of the roster that the sender computed its graph from."""
    degree: int
    trained: int
    """Training rounds that this model's node has done so far."""
    params: Params = field(compare=False)
    digest: str
    """`params_digest` of the parameters."""


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a node trains in a round, and why; kept whole, so that a run explains itself."""

    train: bool
    probability: float
    draw: float
    reason: str


@dataclass(frozen=True, slots=True)
class Account:
    """What a decision was taken from: the ledger before it, and what a training round was believed to cost.

    `skiptrain-agent energy audit` takes every decision again from these.
    """

    ledger: Ledger
    expected_uj: int | None
    """None: nobody knew yet."""
    upper_uj: int | None
    seen: int
    """How many measured rounds that belief is learnt from."""
    first_round: int
    """Of the plan: the node's first round, or the one in which the budget was last renewed."""
    affordable_at_start: int | None
    until_round: int | None
    relay: bool = False
    load_uj: int = 0
    """What loading torch and data was believed to cost besides; 0 where they were loaded, or nobody knew."""


@dataclass(frozen=True, slots=True)
class WindowDetail:
    """What a meter knows of a training window besides its gross joules."""

    source: str
    seconds: float
    coverage: float
    """Share of the window, in [0, 1], in which the source was really observed."""
    bound_uj: int
    """By how much the gross energy may be wrong."""
    net_uj: int | None = None
    """Gross, less what the idle device would have drawn; None where that is not known."""
    whole_uj: int | None = None
    """What the round would have cost with all of its local steps; None where the window does not tell."""
    load_uj: int | None = None
    """What was spent besides on loading torch and data; None where they were loaded, or the window does not tell."""
    warm: bool = True
    """Whether they are loaded now: not where the trainer was ended, or died."""


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """One node's account of one finished round; one row of rounds.csv."""

    run: str
    """Digest of the run in hex."""
    node: NodeId
    round: int
    kind: RoundKind
    decision: Decision
    energy_uj: int
    energy_quality: Quality
    loss: float | None
    """Mean training loss over the local steps; None where nothing was trained."""
    peers_expected: int
    peers_received: int
    rejected: int
    digest_published: str
    mixed: tuple[tuple[NodeId, str, float], ...]
    """(sender, digest, weight) of each model mixed, self included."""
    train_s: float
    collect_s: float
    error: str = ""
    account: Account | None = None
    """None where no decision was taken."""
    window: WindowDetail | None = None
    """None where nothing was trained, or the energy is replayed."""
    charged_uj: int | None = None
    """What the ledger had charged when the round ended; None in records of releases that did not write it."""
    period: str = ""
    """The budget period then."""
    share_uj: int | None = None
    """Energy from the end of training to the end of the round; None where the source does not measure it."""
    idle_uj: int | None = None
    """Energy spent before this round in no round at all; None as above, and where there was no such time."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What must survive a power cut, besides the model: small, and durable before the next effect."""

    run: str
    """Digest of the run in hex; the ledger outlives it."""
    round: int
    begun: bool
    """Whether this node has taken part in any round of the run."""
    finished: bool
    ledger: Ledger
    roster: Roster | None
    first_round: int
    """The first round of this node: 0, or the one that it joined in."""
    affordable_at_start: int | None
    trained: int
    """Training rounds that ended well."""
    decision: Decision | None
    """The decision of `round`, once it is taken; it is never taken twice."""
    energy_uj: int
    """Charged so far for training in `round`."""
    energy_quality: Quality
    account: Account | None = None
    costs: CostHistory = field(default_factory=CostHistory)
    """Of the device, as the ledger: it outlives the run."""
    plan_from: int | None = None
    """The round in which the budget was last renewed; None: not in this run."""


def params_sha256(params: Params) -> str:
    """Return SHA-256 in hex over `params`, shape (n,), as little-endian float32."""
    return hashlib.sha256(np.ascontiguousarray(params, dtype="<f4").data).hexdigest()


def params_digest(params: Params) -> str:
    """Return the first 16 hex digits of `params_sha256`."""
    return params_sha256(params)[:16]
