"""The bounded store of neighbours' models that have arrived and are not mixed yet, and of what their rounds tell.

Per sender at most `lookahead + 1` rounds are kept, whatever its messages claim. While the node does not know which
round the fleet is in (it waits, or has just restarted) the window floats: the newest rounds of each sender stay. In a
round it is fixed: [round, round + lookahead].
"""

from __future__ import annotations

from collections import Counter

from agent.core.types import ModelUpdate, NodeId


class Inbox:
    """Models by round and sender, announcements by sender, refusals by reason."""

    def __init__(self, lookahead: int) -> None:
        self._lookahead = lookahead
        self._models: dict[NodeId, dict[int, ModelUpdate]] = {}
        self._announced: dict[NodeId, int] = {}
        self.highest_round = -1
        """The highest round that any sender has ever announced."""
        self.rejected: Counter[str] = Counter()
        """Refusals since the record of the last round, by reason."""
        self._rejected_before: Counter[str] = Counter()

    def announce(self, sender: NodeId, round_: int) -> bool:
        """Note the round that a neighbour's newest message came from; return whether it is news."""
        if round_ <= self.newest_round(sender):
            return False
        self._announced[sender] = round_
        self.highest_round = max(self.highest_round, round_)
        return True

    def newest_round(self, sender: NodeId) -> int:
        """Return the highest round that `sender` has announced; -1 if none."""
        return self._announced.get(sender, -1)

    def offer(self, update: ModelUpdate, round_: int, *, floating: bool) -> None:
        """Keep a checked update, or count why not; the first of a sender and round wins."""
        kept = self._models.setdefault(update.sender, {})
        reason = self._refusal(update, kept, round_, floating=floating)
        if reason:
            self.rejected[reason] += 1
            return
        kept[update.round] = update
        if len(kept) > self._lookahead + 1:
            del kept[min(kept)]

    def _refusal(self, update: ModelUpdate, kept: dict[int, ModelUpdate], round_: int, *, floating: bool) -> str:
        if update.round in kept:
            return "duplicate"
        if update.round < round_:
            return "late"
        if floating:
            full = len(kept) > self._lookahead
            return "late" if full and update.round < min(kept) else ""
        return "too early" if update.round > round_ + self._lookahead else ""

    def holds(self, sender: NodeId, round_: int) -> bool:
        """Say whether the sender's model of that round is here."""
        return round_ in self._models.get(sender, ())

    def arrived(self, round_: int) -> dict[NodeId, ModelUpdate]:
        """Return the updates of one round by sender."""
        return {node: kept[round_] for node, kept in self._models.items() if round_ in kept}

    def keep_window(self, round_: int) -> None:
        """Drop what lies outside [round, round + lookahead]."""
        for kept in self._models.values():
            for other in [number for number in kept if not 0 <= number - round_ <= self._lookahead]:
                del kept[other]

    def keep_senders(self, senders: frozenset[NodeId]) -> None:
        """Drop everything of nodes that are neighbours no more."""
        self._models = {node: kept for node, kept in self._models.items() if node in senders}
        self._announced = {node: number for node, number in self._announced.items() if node in senders}

    def majority_round(self, live: frozenset[NodeId], among: frozenset[NodeId] | None = None) -> int | None:
        """Return the highest round that live neighbours have announced who are more than half of `among`; or None.

        `among` is `live` where it is not given. One liar cannot move it: it takes more than half of those who can be
        reached.
        """
        rounds = sorted((self._announced[node] for node in live if node in self._announced), reverse=True)
        needed = len(live if among is None else among) // 2 + 1
        return rounds[needed - 1] if len(rounds) >= needed else None

    def take_rejected(self) -> int:
        """Return the number of refusals since the last call, and begin to count anew."""
        total = sum(self.rejected.values())
        self._rejected_before += self.rejected
        self.rejected.clear()
        return total

    @property
    def refusals(self) -> dict[str, int]:
        """All refusals since the start, by reason, in the order of the reasons' names."""
        return dict(sorted((self._rejected_before + self.rejected).items()))

    def __len__(self) -> int:
        return sum(len(kept) for kept in self._models.values())
