"""What a RoundMachine is given and what it remembers of the round under way."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from agent.core.budget import Cost, Ledger
from agent.core.types import (
    Account,
    Decision,
    NodeId,
    Quality,
    RoundKind,
    RoundRecord,
    RunDescriptor,
    Snapshot,
    WindowDetail,
)


class Phase(str, Enum):
    """Where in its life a node is."""

    IDLE = "idle"
    WAITING = "waiting"
    JOINING = "joining"
    TRAINING = "training"
    COLLECTING = "collecting"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class MachineConfig:
    """What one node's machine must know; times in seconds."""

    node: NodeId
    run: RunDescriptor
    cost: Cost | None
    """What a training round costs as far as is known beforehand; None: nothing."""
    learns_cost: bool = False
    """Whether measured rounds tell better; replayed rows are exact."""
    workload: str = ""
    """What is trained and measured, in the driver's words: costs of another workload tell nothing."""
    relay: bool = False
    """Whether this node shares and averages, and never trains."""
    lookahead_rounds: int = 2
    stop_grace_s: float = 5.0
    """How long a training that was asked to end may take to do so."""
    offline_grace_s: float = 2.0
    """How long a neighbour that went offline is still awaited: its last message may be under way."""
    save_model_every: int = 5
    """Rounds between two models written to the journal; the last round is always written."""
    evaluate_every: int = 0
    """Rounds between two evaluations, the last round included; 0: none at all."""


@dataclass(slots=True)
class RoundState:
    """The round under way: decided once, charged, published, and at its end written as a RoundRecord."""

    number: int
    started_s: float | None = None
    """None after a restart: when it began is not known any more."""
    decision: Decision | None = None
    energy_uj: int = 0
    quality: Quality = Quality.NONE
    loss: float | None = None
    error: str = ""
    account: Account | None = None
    window: WindowDetail | None = None
    published: str = ""
    published_s: float | None = None
    stop_asked: bool = False

    def charge(self, energy_uj: int, quality: Quality, window: WindowDetail | None = None) -> None:
        """Add what a training window cost."""
        self.energy_uj += energy_uj
        self.quality, self.window = quality, window

    def record(  # noqa: PLR0917
        self,
        run: str,
        node: NodeId,
        kind: RoundKind,
        expected: int,
        mixed: tuple[tuple[NodeId, str, float], ...],
        rejected: int,
        now: float,
    ) -> RoundRecord:
        """Return the account of this round as it ends at `now`; nothing mixed at all means it is left unfinished."""
        published_s = now if self.published_s is None else self.published_s
        started_s = published_s if self.started_s is None else self.started_s
        return RoundRecord(
            run=run,
            node=node,
            round=self.number,
            kind=kind,
            decision=self.decision or Decision(False, 0.0, 0.0, "none taken"),
            energy_uj=self.energy_uj,
            energy_quality=self.quality,
            loss=self.loss,
            peers_expected=expected,
            peers_received=max(0, len(mixed) - 1),
            rejected=rejected,
            digest_published=self.published,
            mixed=mixed,
            train_s=published_s - started_s,
            collect_s=now - published_s,
            error=self.error or ("" if mixed else "left unfinished"),
            account=self.account,
            window=self.window,
        )


def restored_round(ledger: Ledger, snapshot: Snapshot | None) -> RoundState:
    """Return the round to go on with after a start; a reservation that a crash left open is this round's cost."""
    if snapshot is None or not snapshot.begun:
        return RoundState(0)
    state = RoundState(snapshot.round, None, snapshot.decision, snapshot.energy_uj, snapshot.energy_quality)
    state.account = snapshot.account
    lost = ledger.reservation
    if lost is not None and (lost.run, lost.round) == (snapshot.run, snapshot.round):
        state.charge(lost.upper_uj, Quality.ESTIMATED)
        state.error = "interrupted while training: what was reserved stays charged"
    return state
