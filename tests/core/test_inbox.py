"""The inbox: bounded by sender, first come first kept, and a majority that one liar cannot move."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core.inbox import Inbox
from agent.core.types import ModelUpdate, NodeId
from tests.core.cluster import names

A, B, C, D = names(4)


def update(sender: NodeId, round_: int, value: float = 0.0) -> ModelUpdate:
    """Return some update."""
    return ModelUpdate(sender, round_, 0, b"", 1, 0, np.full(2, value, np.float32), str(value))


def test_window_is_round_to_lookahead() -> None:
    """In a round, updates of this one and of `lookahead` more are kept; the others are counted by reason."""
    inbox = Inbox(2)
    for round_ in (4, 5, 6, 7, 8):
        inbox.offer(update(A, round_), 5, floating=False)
    assert [round_ for round_ in range(10) if inbox.arrived(round_)] == [5, 6, 7]
    assert inbox.rejected == {"late": 1, "too early": 1}
    assert inbox.take_rejected() == 2
    assert inbox.take_rejected() == 0
    inbox.offer(update(A, 4), 5, floating=False)
    assert inbox.refusals == {"late": 2, "too early": 1}


def test_first_of_a_sender_and_round_wins() -> None:
    """A second model of the same sender and round is a duplicate."""
    inbox = Inbox(2)
    inbox.offer(update(A, 1, 1.0), 1, floating=False)
    inbox.offer(update(A, 1, 2.0), 1, floating=False)
    assert inbox.arrived(1)[A].digest == "1.0"
    assert inbox.rejected == {"duplicate": 1}


def test_floating_window_keeps_the_newest_rounds() -> None:
    """Who does not know the fleet's round keeps the newest of each sender."""
    inbox = Inbox(1)
    for round_ in (10, 30, 20, 5, 40):
        inbox.offer(update(A, round_), 0, floating=True)
    assert [round_ for round_ in range(50) if inbox.arrived(round_)] == [30, 40]
    assert inbox.rejected == {"late": 1}


@settings(deadline=None, derandomize=True, max_examples=100)
@given(
    st.integers(0, 3),
    st.lists(st.tuples(st.sampled_from(names(3)), st.integers(0, 2**32 - 1), st.booleans()), max_size=80),
)
def test_memory_is_bounded_by_senders(lookahead: int, offers: list[tuple[NodeId, int, bool]]) -> None:
    """Whatever rounds are claimed, at most lookahead + 1 models of a sender are held."""
    inbox = Inbox(lookahead)
    for sender, round_, floating in offers:
        inbox.offer(update(sender, round_), 3, floating=floating)
        assert len(inbox) <= 3 * (lookahead + 1)


def test_keep_window_and_keep_senders_drop_the_rest() -> None:
    """A new round drops what is past or too far; a new roster drops who is no neighbour, announcements included."""
    inbox = Inbox(2)
    for node in (A, B):
        inbox.announce(node, 9)
        for round_ in (1, 2, 3):
            inbox.offer(update(node, round_), 1, floating=False)
    inbox.keep_window(3)
    assert len(inbox) == 2
    inbox.keep_senders(frozenset({A}))
    assert set(inbox.arrived(3)) == {A}
    assert (inbox.newest_round(A), inbox.newest_round(B)) == (9, -1)


def test_majority_is_more_than_half_of_the_live_neighbours() -> None:
    """Two of three agree on what they have both reached; two of four are not enough."""
    inbox = Inbox(2)
    inbox.announce(A, 100)
    inbox.announce(B, 7)
    assert inbox.majority_round(frozenset({A, B, C})) == 7
    assert inbox.majority_round(frozenset({A, B, C, D})) is None
    assert inbox.majority_round(frozenset({B, C})) is None
    assert inbox.majority_round(frozenset()) is None


@settings(deadline=None, derandomize=True, max_examples=100)
@given(st.integers(2, 9), st.integers(0, 2**32 - 1), st.integers(0, 50), st.booleans())
def test_one_liar_cannot_raise_the_majority(count: int, lie: int, truth: int, silent: bool) -> None:
    """With two live neighbours or more, one liar raises it above no round that an honest one has announced."""
    inbox, nodes = Inbox(2), names(count)
    for node in nodes[1:]:
        inbox.announce(node, truth)
    if not silent:
        inbox.announce(nodes[0], lie)
    found = inbox.majority_round(frozenset(nodes))
    assert found is None or found <= truth


def test_announcements_do_not_go_back() -> None:
    """A message that arrives late does not make its sender younger."""
    inbox = Inbox(2)
    inbox.announce(A, 9)
    inbox.announce(A, 3)
    assert inbox.newest_round(A) == 9
