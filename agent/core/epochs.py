"""The rosters of a run, each from the round that it names on, and the graph that every node computes from each."""

from __future__ import annotations

from agent.core.topology import Graph, neighbours
from agent.core.types import ModelUpdate, NodeId, Roster, RunDescriptor


class Epochs:
    """The roster in force, those announced for later rounds, and this node's neighbours in them."""

    def __init__(self, me: NodeId, run: RunDescriptor) -> None:
        self._me = me
        self._run = run
        self._coming: list[tuple[Roster, Graph]] = []
        self.roster: Roster | None = None
        self._graph: Graph = {}

    @property
    def peers(self) -> frozenset[NodeId]:
        """This node's neighbours in the roster in force."""
        return self._graph.get(self._me, frozenset())

    @property
    def watched(self) -> frozenset[NodeId]:
        """The neighbours of now and of the rosters to come, whose first models must not be missed."""
        return self.peers.union(*(graph.get(self._me, frozenset()) for _, graph in self._coming))

    def belongs_in(self, round_: int) -> bool:
        """Say whether this node is in the roster that is in force in `round_`, as far as is known."""
        _, graph = self._in_force(round_)
        return self._me in graph

    def begin(self, roster: Roster) -> None:
        """Put `roster` in force."""
        self.roster, self._graph = roster, self._graph_of(roster)

    def announce(self, roster: Roster) -> bool:
        """Keep a roster for the round that it names, or for the next one if that is past; return whether it is newer.

        It takes the place of older ones that have not come into force by then.
        """
        if roster.epoch <= max([known.epoch for known, _ in self._coming] + [self.roster.epoch if self.roster else -1]):
            return False
        earlier = [pair for pair in self._coming if pair[0].from_round < roster.from_round]
        self._coming = [*earlier, (roster, self._graph_of(roster))]
        return True

    def advance(self, round_: int) -> bool:
        """Put the newest roster in force whose round has come; return whether anything changed."""
        before = self.roster
        self.roster, self._graph = self._in_force(round_)
        self._coming = [pair for pair in self._coming if pair[0].from_round > round_]
        return self.roster is not before

    def _in_force(self, round_: int) -> tuple[Roster | None, Graph]:
        due = [pair for pair in self._coming if pair[0].from_round <= round_]
        return due[-1] if due else (self.roster, self._graph)

    def refusal(self, update: ModelUpdate) -> str:
        """Say why an update lies on no edge; an edge mixes only if both of its ends list it in the same epoch."""
        rosters = [*self._coming, *([(self.roster, self._graph)] if self.roster else [])]
        for roster, graph in rosters:
            if roster.epoch == update.epoch and roster.digest() == update.roster:
                if update.sender not in graph.get(self._me, frozenset()):
                    return "not a neighbour"
                return "" if update.degree == len(graph[update.sender]) else "wrong degree"
        return "other roster" if update.sender in self.watched else "not a neighbour"

    def _graph_of(self, roster: Roster) -> Graph:
        return neighbours(self._run.topology, roster.members, self._run.seed)
