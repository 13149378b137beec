"""What a node knows of its neighbours: who they are, who can be reached, what they sent, and whom to wait for."""

from __future__ import annotations

from collections.abc import Mapping

from agent.core.epochs import Epochs
from agent.core.inbox import Inbox
from agent.core.round_state import MachineConfig
from agent.core.types import ModelUpdate, NodeId

LAG_ROUNDS = 2
"""A node this many rounds behind the majority has been given up on by it: one round ahead is normal."""

_NEVER = float("-inf")


class Neighbourhood:
    """Roster and graph, presence, and the models that arrived; it decides nothing of the node's own rounds."""

    def __init__(self, config: MachineConfig) -> None:
        self._config = config
        self._rounds = config.run.schedule.total_rounds
        self.epochs = Epochs(config.node, config.run)
        self.inbox = Inbox(config.lookahead_rounds)
        self.live: dict[NodeId, str] = {}
        """Everybody who can be reached, with the roster digest that each is ready for."""
        self._gone_since: dict[NodeId, float] = {}

    @property
    def here(self) -> set[NodeId]:
        """The nodes that can be reached, and this one."""
        return {self._config.node, *self.live}

    def take_peers(self, live: Mapping[NodeId, str], now: float) -> None:
        """Note who can be reached, and since when those who left cannot."""
        for node in self.live.keys() - live.keys():
            self._gone_since[node] = now
        for node in live:
            self._gone_since.pop(node, None)
        self.live = dict(live)

    def take_update(self, update: ModelUpdate, n_params: int, round_: int, *, floating: bool) -> None:
        """Keep a model that lies on an edge and fits into the window, or count why not."""
        reason = self.epochs.refusal(update)
        if not reason and update.params.shape != (n_params,):
            reason = "wrong size"
        if not reason and update.round >= self._rounds:
            reason = "no such round"
        if reason:
            self.inbox.rejected[reason] += 1
        else:
            self.inbox.offer(update, round_, floating=floating)
        self.note_round(update.sender, update.round)

    def note_round(self, sender: NodeId, round_: int) -> None:
        """Note how far a neighbour says that it is."""
        if sender in self.epochs.watched and round_ < self._rounds:
            self.inbox.announce(sender, round_)

    def live_neighbours(self) -> frozenset[NodeId]:
        """Return the neighbours of the roster in force that can be reached."""
        return self.epochs.peers & self.live.keys()

    def majority_round(self) -> int | None:
        """Return the round that more than half of the live neighbours have reached; None if there is none."""
        return self.inbox.majority_round(self.live_neighbours())

    def all_ready(self) -> bool:
        """Say whether the whole roster is here, and every neighbour ready for this very roster."""
        roster = self.epochs.roster
        if roster is None or not set(roster.members) <= self.here:
            return False
        return all(self.live[node] == roster.digest().hex() for node in self.epochs.peers)

    def to_mix(self, round_: int) -> dict[NodeId, ModelUpdate]:
        """Return the models of `round_` whose senders computed their graph from the roster in force."""
        epoch = self.epochs.roster.epoch if self.epochs.roster else -1
        return {node: update for node, update in self.inbox.arrived(round_).items() if update.epoch == epoch}

    def awaited_until(self, round_: int, deadline: float) -> float:
        """Return until when the missing models of `round_` are worth waiting for, at most until `deadline`.

        Whoever is `LAG_ROUNDS` ahead will not send them any more. Where nothing has come and no neighbour can be
        reached, it is this node that is cut off: it keeps the pace of deadlines rather than race through the run alone.
        """
        arrived, passed = self.inbox.arrived(round_), round_ + LAG_ROUNDS
        missing = {node for node in self.epochs.peers - arrived.keys() if self.inbox.newest_round(node) < passed}
        if not missing:
            return _NEVER
        if missing & self.live.keys() or not (arrived or self.live_neighbours()):
            return deadline
        gone = max(self._gone_since.get(node, _NEVER) for node in missing)
        return min(deadline, gone + self._config.offline_grace_s)
