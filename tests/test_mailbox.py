"""The mailbox: bounded for the network, never full for the daemon's own parts."""

from __future__ import annotations

from agent.core.types import NodeId
from agent.mailbox import MAX_BYTES, MAX_ITEMS, MAX_WAITING_CHUNKS, Mailbox
from agent.network.transport import Disconnected, ModelChunk

PEER = NodeId("n1")


def test_items_come_out_in_the_order_in_which_they_went_in() -> None:
    """First in, first out, and None when there is nothing."""
    box = Mailbox()
    assert box.post("one")
    box.post_own("two")
    assert [box.take(0), box.take(0), box.take(0)] == ["one", "two", None]


def test_chunks_are_bounded_in_bytes_and_the_bytes_come_back() -> None:
    """No more than MAX_BYTES of models wait; taking one makes room for another."""
    box, chunk = Mailbox(), ModelChunk(PEER, bytes(MAX_BYTES // 2))
    assert [box.post(chunk), box.post(chunk), box.post(chunk)] == [True, True, False]
    assert box.take(0) is chunk
    assert box.post(chunk)


def test_a_flood_of_small_chunks_leaves_room_for_everything_else() -> None:
    """Chunks fill half of the places at most; presences and acknowledgements still get in."""
    box, chunk = Mailbox(), ModelChunk(PEER, b"x")
    assert sum(box.post(chunk) for _ in range(MAX_ITEMS)) == MAX_WAITING_CHUNKS
    assert box.post(Disconnected("gone"))


def test_what_the_daemon_posts_itself_always_gets_in() -> None:
    """A full mailbox refuses the network, and takes the trainer's answer."""
    box = Mailbox()
    while box.post("noise"):
        pass
    box.post_own("answer")
    taken = [box.take(0) for _ in range(MAX_ITEMS + 1)]
    assert taken[-1] == "answer"
