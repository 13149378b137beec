"""Rosters and their rounds: when each comes into force, who is watched, and which update lies on an edge."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from agent.core.epochs import Epochs
from agent.core.types import ModelUpdate, NodeId, Roster
from tests.core.cluster import make_run, names

A, B, C, D, E = NODES = names(5)
NOW = Roster(0, (A, B, C))
LATER = Roster(1, (A, B, D), 10)


def epochs(me: NodeId = A) -> Epochs:
    """Return the epochs of a node in a complete graph of a, b and c."""
    found = Epochs(me, make_run(NOW.members))
    found.begin(NOW)
    return found


def update(sender: NodeId, roster: Roster) -> ModelUpdate:
    """Return a right update under `roster`."""
    degree = len(roster.members) - 1
    return ModelUpdate(sender, 3, roster.epoch, roster.digest(), degree, 0, np.zeros(1, np.float32), "")


def test_a_roster_comes_into_force_at_the_round_that_it_names() -> None:
    """Until then nothing changes but who is watched."""
    found = epochs()
    assert found.announce(LATER)
    assert (set(found.peers), set(found.watched)) == ({B, C}, {B, C, D})
    assert not found.advance(9)
    assert found.advance(10)
    assert found.roster == LATER
    assert set(found.peers) == set(found.watched) == {B, D}
    assert not found.advance(11)


def test_a_jump_over_the_round_puts_the_roster_in_force() -> None:
    """It need not be met exactly."""
    found = epochs()
    found.announce(LATER)
    assert found.advance(99)
    assert found.roster == LATER


def test_only_newer_epochs_count() -> None:
    """A replayed or equal epoch is not taken."""
    found = epochs()
    assert not found.announce(Roster(0, (A, E), 50))
    found.announce(LATER)
    assert not found.announce(Roster(1, (A, E), 50))
    found.advance(10)
    assert not found.announce(LATER)


def test_a_newer_epoch_for_an_earlier_round_takes_the_place_of_the_older_one() -> None:
    """The older roster must not come back when its round comes."""
    found = epochs()
    found.announce(LATER)
    newest = Roster(2, (A, E), 5)
    found.announce(newest)
    found.advance(5)
    assert not found.advance(10)
    assert found.roster == newest


def test_epochs_in_order_come_into_force_in_order() -> None:
    """Two announced rosters each hold from their own round on."""
    found, newest = epochs(), Roster(2, (A, E), 20)
    found.announce(LATER)
    found.announce(newest)
    assert found.watched == {B, C, D, E}
    found.advance(12)
    assert found.roster == LATER
    found.advance(20)
    assert found.roster == newest


def test_a_roster_that_is_past_comes_into_force_next() -> None:
    """Who hears of it late follows at the next round."""
    found = epochs()
    assert found.announce(LATER)
    assert found.advance(15)


def test_belonging_is_asked_for_a_round() -> None:
    """A node knows whether it will be in the roster of a later round."""
    joiner, leaver = epochs(D), epochs(C)
    for found in (joiner, leaver):
        found.announce(LATER)
    assert (joiner.belongs_in(9), joiner.belongs_in(10)) == (False, True)
    assert (leaver.belongs_in(9), leaver.belongs_in(10)) == (True, False)


def test_before_a_roster_is_known_nobody_belongs_and_all_are_strangers() -> None:
    """A discovered roster is unknown at first."""
    found = Epochs(A, make_run(()))
    assert not found.belongs_in(0)
    assert not found.watched
    assert found.refusal(update(B, NOW)) == "not a neighbour"


def test_an_update_must_lie_on_an_edge_of_its_own_epoch() -> None:
    """Sender, epoch, roster and degree are checked against the graph that both ends compute."""
    found = epochs()
    found.announce(LATER)
    right = update(B, NOW)
    assert found.refusal(right) == ""
    assert found.refusal(update(D, LATER)) == ""
    assert found.refusal(replace(right, degree=1)) == "wrong degree"
    assert found.refusal(replace(right, epoch=1)) == "other roster"
    assert found.refusal(replace(right, roster=b"whatever")) == "other roster"
    assert found.refusal(update(D, NOW)) == "not a neighbour"
    assert found.refusal(update(C, LATER)) == "not a neighbour"
    assert found.refusal(update(A, NOW)) == "not a neighbour"
    assert found.refusal(update(E, Roster(7, (A, E)))) == "not a neighbour"
