"""What only the in-memory hub can do: lose what a test wants lost, crash a member, restart."""

from __future__ import annotations

from network_rig import Mailbox, Net

from agent.core.types import NodeId
from agent.network.memory import MemoryHub, MemoryTransport
from agent.network.transport import Connected, Disconnected, ModelChunk, PresenceSeen, SessionConflict, Subscribed


def test_the_predicate_decides_what_arrives() -> None:
    """A loss between two nodes hits the messages that the predicate names, and no others."""
    hub = MemoryHub(deliver=lambda sender, receiver, payload: (sender, receiver, payload) != ("a", "b", b"lost"))
    net = Net("memory", hub)
    a, _ = net.join("a")
    _, b = net.join("b", "a")
    _, c = net.join("c", "a")
    a.publish([b"lost", b"kept"])
    assert [item.payload for item in b.of(ModelChunk)] == [b"kept"]
    assert [item.payload for item in c.of(ModelChunk)] == [b"lost", b"kept"]


def test_a_crash_speaks_through_the_will() -> None:
    """Peers hear offline with the session that crashed; the crashed transport posts nothing more."""
    net = Net("memory", MemoryHub())
    a, box_a = net.join("a")
    _, box_b = net.join("b", "a")
    assert isinstance(a, MemoryTransport)
    before = list(box_a.items)
    a.crash()
    last = box_b.of(PresenceSeen)[-1].presence
    assert (last.online, last.session, last.reason) == (False, a.session, "connection lost")
    assert box_a.items == before
    assert a.publish([b"x"]) == 0


def test_a_restart_gives_new_sessions_and_keeps_what_was_said() -> None:
    """After a restart all members are back with new sessions, their subscriptions and their presence."""
    hub = MemoryHub()
    net = Net("memory", hub)
    a, _ = net.join("a")
    a.announce("aa")
    b, box = net.join("b", "a")
    hub.restart()
    kinds = [type(item) for item in box.items]
    assert kinds.index(Disconnected) < len(kinds) - kinds[::-1].index(Connected)
    a.publish([b"after"])
    assert box.of(ModelChunk) == [ModelChunk(NodeId("a"), b"after")]
    assert box.wait(lambda item: isinstance(item, PresenceSeen))[-1].presence.ready == "aa"
    assert b.stats().reconnects == 1
    assert len({item.session for item in box.of(Connected)}) == 2


def test_a_twin_takes_the_session_over() -> None:
    """Who joins with a node id in use throws the other out, who is told."""
    net = Net("memory", MemoryHub())
    _, box = net.join("a")
    net.join("a")
    assert [type(item) for item in box.items[-2:]] == [Disconnected, SessionConflict]


def test_a_chunk_above_the_limit_is_refused() -> None:
    """The hub's limit is announced and kept, as a broker's."""
    net = Net("memory", MemoryHub(max_packet_bytes=1000))
    a, box = net.join("a")
    assert box.of(Connected)[0].max_packet_bytes == 1000
    assert a.publish([b"x" * 1000]) == 0
    assert a.stats().refused == 1


def test_delivery_is_immediate_and_repeats_itself() -> None:
    """Two equal stories post equal values in equal order, within the call that caused them."""

    def story() -> list[object]:
        net, boxes = Net("memory", MemoryHub(), fleet="f0"), []
        members = [net.make(node, box) for node in "abc" for box in [Mailbox()] if not boxes.append(box)]
        for member in members:
            member.watch(frozenset(map(NodeId, "abc")))
            member.start()
        for member in members:
            member.publish([b"1", b"2"])
            member.announce("aa")
        members[0].close("done")
        return [item for box in boxes for item in box.items]

    assert story() == story()
    assert [type(item) for item in story()][:3] == [Connected, Subscribed, PresenceSeen]
