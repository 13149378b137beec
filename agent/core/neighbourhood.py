"""What a node knows of its neighbours: who they are, who can be reached, what they sent, and whom to wait for."""

from __future__ import annotations

from collections.abc import Mapping

from agent.core.epochs import Epochs
from agent.core.inbox import Inbox
from agent.core.round_state import MachineConfig
from agent.core.types import LOOKING, ModelUpdate, NodeId, Roster

LAG_ROUNDS = 2
"""A node this many rounds behind the majority has been given up on by it: one round ahead is normal."""

_NEVER, _ALWAYS = float("-inf"), float("inf")


class Neighbourhood:
    """Roster and graph, presence, and the models that arrived; it decides nothing of the node's own rounds."""

    def __init__(self, config: MachineConfig) -> None:
        self._config = config
        self._rounds = config.run.schedule.total_rounds
        self.epochs = Epochs(config.node, config.run)
        self.inbox = Inbox(config.lookahead_rounds)
        self.live: Mapping[NodeId, str] = {}
        """Everybody who can be reached, with the roster digest that each is ready for."""
        self._said_since: dict[NodeId, float] = {}
        """When each neighbour that says anything began to say what it says, where that was after it became one."""
        self._gone_since: dict[NodeId, float] = {}
        self._ahead_since: dict[NodeId, float] = {}
        """When each neighbour was first heard in the round that it is in."""

    @property
    def here(self) -> set[NodeId]:
        """The nodes that can be reached, and this one."""
        return {self._config.node, *self.live}

    def take_peers(self, live: Mapping[NodeId, str], now: float) -> None:
        """Note who can be reached, and since when those who left cannot."""
        for node in (self.live.keys() - live.keys()) & self.epochs.watched:
            self._gone_since[node] = now
        for node in self._gone_since.keys() & live.keys():
            del self._gone_since[node]
        said = {node: live[node] for node in self.epochs.watched if live.get(node)}
        self._said_since = {
            node: self._said_since.get(node, _NEVER) if self.live.get(node) == word else now
            for node, word in said.items()
        }
        self.live = live

    def take_update(self, update: ModelUpdate, n_params: int, round_: int, now: float, *, floating: bool) -> None:
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
        self.note_round(update.sender, update.round, now)

    def note_round(self, sender: NodeId, round_: int, now: float) -> None:
        """Note how far a neighbour says that it is."""
        if sender in self.epochs.watched and round_ < self._rounds and self.inbox.announce(sender, round_):
            self._ahead_since[sender] = now

    def live_neighbours(self) -> frozenset[NodeId]:
        """Return the neighbours of the roster in force that can be reached."""
        return self.epochs.peers & self.live.keys()

    def majority_round(self) -> int | None:
        """Return the round that more than half of the live neighbours have reached; None if there is none."""
        return self.inbox.majority_round(self.live_neighbours())

    def lags(self, round_: int) -> bool:
        """Say whether the majority is so far ahead of `round_` that nothing is worth waiting for."""
        ahead = round_ + LAG_ROUNDS
        return self.inbox.highest_round >= ahead and (self.majority_round() or 0) >= ahead

    def all_ready(self) -> bool:
        """Say whether the whole roster is here, and every neighbour ready for this very roster."""
        roster = self.epochs.roster
        if roster is None or len(self.live) + 1 < len(roster.members):
            return False
        if roster.everybody.difference(self.live) - {self._config.node}:
            return False
        return all(self.live[node] == roster.digest().hex() for node in self.epochs.peers)

    def anybody_ready_for(self, roster: Roster) -> bool:
        """Say whether another node that can be reached is ready for this very roster."""
        return roster.digest().hex() in self.live.values()

    def nobody_can_tell(self) -> bool:
        """Say whether all neighbours are here, but too many of them look for the run themselves to make a majority."""
        watched = self.epochs.watched
        if not watched or not watched <= self.live.keys():
            return False
        return sum(self.live[node] != LOOKING for node in watched) < len(watched) // 2 + 1

    def to_mix(self, round_: int) -> dict[NodeId, ModelUpdate]:
        """Return the models of `round_` whose senders computed their graph from the roster in force."""
        epoch = self.epochs.roster.epoch if self.epochs.roster else -1
        return {node: update for node, update in self.inbox.arrived(round_).items() if update.epoch == epoch}

    def awaited_until(self, round_: int, started_s: float) -> float:
        """Return until when the missing models of `round_` are worth waiting for, at most until its deadline.

        Whoever has gone offline, or is a round ahead, is awaited a moment longer: its message may be under way. Whoever
        is `LAG_ROUNDS` ahead is not. Who looks for the run will not send a model of this round, and finds the run only
        when others go on: it is awaited for a moment, too, so that nobody runs away from it. Where nothing has come and
        no neighbour can be reached, it is this node that is cut off: it keeps the pace of deadlines rather than race
        through the run alone.
        """
        deadline, until, cut_off = started_s + self._config.run.round_deadline_s, _NEVER, False
        for node in self.epochs.peers:
            if not self.inbox.holds(node, round_) and self.inbox.newest_round(node) < round_ + LAG_ROUNDS:
                cut_off = True
                until = max(until, self._worth_until(node, round_, started_s))
                if until >= deadline:
                    return deadline
        if cut_off and not (self.inbox.arrived(round_) or self.live_neighbours()):
            return deadline
        return until

    def _worth_until(self, node: NodeId, round_: int, started_s: float) -> float:
        grace = self._config.offline_grace_s
        if self.inbox.newest_round(node) > round_:
            return self._ahead_since[node] + grace
        if node not in self.live:
            return self._gone_since.get(node, _NEVER) + grace
        return max(started_s, self._said_since.get(node, _NEVER)) + grace if self._is_looking(node, round_) else _ALWAYS

    def _is_looking(self, node: NodeId, round_: int) -> bool:
        """Say whether a live node has not found the run yet, or, past round 0, has not begun it."""
        word = self.live[node]
        return word == LOOKING or bool(word and round_ > 0 and self.inbox.newest_round(node) < 0)

    def awaited_to_join(self, round_: int) -> frozenset[NodeId]:
        """Return the live neighbours whose model of `round_` may still come."""
        arrived = self.inbox.arrived(round_)
        return frozenset(
            node for node in self.live_neighbours() if node not in arrived and self.inbox.newest_round(node) <= round_
        )
