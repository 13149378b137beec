"""The merge of mDNS, presence and the static list."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from network_rig import ANY_TIME

from agent.core.types import NodeId
from agent.network.membership import MAX_NODES, Membership
from agent.network.transport import Presence

ME, A, B = NodeId("me"), NodeId("a"), NodeId("b")
NODES = st.sampled_from([ME, A, B, NodeId("c")])
EVENTS = st.lists(
    st.tuples(st.sampled_from(["found", "lost", "online", "offline"]), NODES, st.sampled_from(["s1", "s2"])),
    max_size=40,
)


def says(node: NodeId, session: str, *, online: bool = True, ready: str = "") -> Presence:
    """Return a presence of `node`."""
    return Presence(node, online, session, ready, "", "0.1.0")


def play(members: Membership, events: list[tuple[str, NodeId, str]]) -> None:
    """Let events happen, one a second."""
    for now, (kind, node, session) in enumerate(events):
        if kind == "found":
            members.found(node, "mdns", now, f"10.0.0.{now}")
        elif kind == "lost":
            members.lost(node, "mdns", now)
        else:
            members.presence(says(node, session, online=kind == "online"), now)


def test_live_needs_both_discovery_and_presence() -> None:
    """A node is live when the static list or mDNS knows it and its presence says online; one alone is not enough."""
    members = Membership(ME, [A])
    members.found(B, "mdns", 0.0)
    members.presence(says(NodeId("c"), "s"), 1.0)
    assert members.live() == {}
    members.presence(says(B, "s", ready="bb"), 1.0)
    members.presence(says(A, "s"), 1.0)
    assert members.live() == {A: "", B: "bb"}
    assert [(view.node, view.online) for view in members.peers(2.0)] == [(A, True), (B, True), ("c", True)]


def test_a_late_will_is_ignored() -> None:
    """The end of an old session is no news once a newer one is online; the end of that one is."""
    members = Membership(ME, [A])
    members.presence(says(A, "old"), 0.0)
    members.presence(says(A, "new", ready="aa"), 1.0)
    members.presence(says(A, "old", online=False), 2.0)
    assert members.live() == {A: "aa"}
    members.presence(says(A, "new", online=False), 3.0)
    assert members.live() == {}


def test_mdns_alone_does_not_take_an_online_node_away() -> None:
    """A lost multicast record leaves a node that is online live; it is gone when its presence ends too."""
    members = Membership(ME)
    members.found(A, "mdns", 0.0)
    members.presence(says(A, "s"), 0.0)
    members.lost(A, "mdns", 1.0)
    assert members.live() == {A: ""}
    assert members.peers(1.0)[0].sources == {"mqtt": 1.0}
    members.presence(says(A, "s", online=False), 2.0)
    assert members.peers(2.0) == ()
    members.presence(says(A, "t"), 3.0)
    assert members.live() == {}


def test_peers_tell_sources_ages_and_address() -> None:
    """The table shows who spoke of a node, how long ago, and where it was found."""
    members = Membership(ME, [A])
    members.found(A, "mdns", 10.0, "192.168.1.7")
    members.presence(says(A, "s", ready="aa"), 14.0)
    (view,) = members.peers(15.0)
    assert view.sources == {"static": 0.0, "mdns": 5.0, "mqtt": 1.0}
    assert (view.address, view.session, view.ready, view.online) == ("192.168.1.7", "s", "aa", True)


def test_a_flood_of_names_is_bounded() -> None:
    """Invented nodes fill the table up to its bound, the rest is counted, and the static list always has room."""
    members = Membership(ME, [A])
    for i in range(MAX_NODES + 10):
        members.found(NodeId(f"n{i}"), "mdns", 0.0)
    members.presence(says(A, "s"), 1.0)
    assert len(members.peers(1.0)) == MAX_NODES + 1
    assert members.overflow == 10
    assert members.live() == {A: ""}
    members.lost(NodeId("n0"), "mdns", 2.0)
    members.found(B, "mdns", 3.0)
    assert members.overflow == 10


@ANY_TIME
@given(EVENTS)
def test_rules_that_hold_whatever_happens(events: list[tuple[str, NodeId, str]]) -> None:
    """We are never our own peer, the static list is always there, who is live is online, ages are not negative."""
    members = Membership(ME, [A, ME])
    play(members, events)
    views = {view.node: view for view in members.peers(float(len(events)))}
    assert ME not in views
    assert A in views
    assert list(views) == sorted(views)
    assert all(views[node].online for node in members.live())
    assert all(age >= 0 for view in views.values() for age in view.sources.values())
    assert all(view.sources for view in views.values())


@ANY_TIME
@given(EVENTS)
def test_presence_alone_never_makes_live(events: list[tuple[str, NodeId, str]]) -> None:
    """Without mDNS, only the static list can be live, whatever presences say."""
    members = Membership(ME, [A])
    play(members, [event for event in events if event[0] != "found"])
    assert set(members.live()) <= {A}
