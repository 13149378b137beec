"""The contract of every transport: in memory, over mosquitto (MQTT 5), over amqtt (MQTT 3.1.1)."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from network_rig import ANY_TIME, RUN, Mailbox, Net

from agent.core.types import NODE_ID, NodeId
from agent.errors import ConfigError, ContractViolation
from agent.network.outlet import Outlet
from agent.network.transport import (
    PRESENCE_BYTES,
    Connected,
    Identity,
    ModelChunk,
    Presence,
    PresenceSeen,
    Subscribed,
    decode_presence,
    encode_presence,
)

NODES = st.from_regex(NODE_ID, fullmatch=True).map(NodeId)
HEX = st.text("0123456789abcdef", max_size=64)
PRESENCES = st.builds(
    Presence, NODES, st.booleans(), HEX, HEX, HEX, st.text("0123456789.a+", max_size=32), st.text(max_size=300)
)


def test_models_reach_who_watches_and_nobody_else(net: Net) -> None:
    """A model's chunks arrive whole, in order, with their sender, at the neighbours that watch it."""
    a, _ = net.join("a")
    _, watching = net.join("b", "a", "c")
    _, other = net.join("d", "c")
    assert a.publish([b"one", b"\x00" * 5000, b"three"]) == 3
    chunks = watching.of(ModelChunk, 3)
    assert chunks == [
        ModelChunk(NodeId("a"), b"one"),
        ModelChunk(NodeId("a"), b"\x00" * 5000),
        ModelChunk("a", b"three"),
    ]
    c, _ = net.join("c")
    c.publish([b"last"])
    assert other.of(ModelChunk) == [ModelChunk(NodeId("c"), b"last")]


def test_watch_changes_what_arrives(net: Net) -> None:
    """After a change of neighbours only the models of the new ones arrive."""
    a, _ = net.join("a")
    c, _ = net.join("c")
    b, box = net.join("b", "a")
    b.watch(frozenset({NodeId("c")}))
    box.wait(lambda item: isinstance(item, Subscribed) and item.peers == {"c"})
    a.publish([b"of a"])
    c.publish([b"of c"])
    box.of(ModelChunk)
    b.watch(frozenset())
    box.wait(lambda item: isinstance(item, Subscribed) and not item.peers)
    c.publish([b"unheard"])
    c.announce("cc")
    box.wait(lambda item: isinstance(item, PresenceSeen) and item.presence.ready == "cc")
    assert [item for item in box.items if isinstance(item, ModelChunk)] == [ModelChunk(NodeId("c"), b"of c")]


def test_presence_is_retained_and_updated(net: Net) -> None:
    """Who comes later learns who is there; who was there hears each announcement and the goodbye with its reason."""
    a, _ = net.join("a")
    a.announce("aa11")
    _, box = net.join("b")
    box.wait(lambda item: isinstance(item, PresenceSeen) and item.presence.ready == "aa11")
    a.close("switched off")
    gone = box.wait(lambda item: isinstance(item, PresenceSeen) and not item.presence.online)[-1].presence
    assert (gone.node, gone.reason, gone.run, gone.agent) == ("a", "switched off", RUN, "0.1.0")
    online = [item.presence.session for item in box.items if isinstance(item, PresenceSeen) and item.presence.online]
    assert set(online) == {gone.session}


def test_connected_comes_first_and_the_own_presence_is_not_posted(net: Net) -> None:
    """A session begins with Connected; a node is not told about itself."""
    _, box = net.join("a")
    assert isinstance(box.items[0], Connected)
    assert not [item for item in box.items if isinstance(item, PresenceSeen)]


def test_a_full_mailbox_costs_messages_and_is_counted(net: Net) -> None:
    """A node that does not empty its mailbox loses messages, each of them counted, and keeps its session."""
    a, _ = net.join("a")
    b, box = net.join("b", "a")
    box.room = len(box.items) + 2
    a.publish([bytes([i]) for i in range(10)])
    box.of(ModelChunk, 1)
    box.room = 1000
    c, _ = net.join("c")
    c.announce("cc")
    box.wait(lambda item: isinstance(item, PresenceSeen) and item.presence.ready == "cc")
    assert b.stats().dropped == 10 - len([item for item in box.items if isinstance(item, ModelChunk)])
    assert b.stats().reconnects == 0


def test_counters_add_up(net: Net) -> None:
    """What one node published is what its only listener received."""
    a, _ = net.join("a")
    b, box = net.join("b", "a")
    before = b.stats().received_bytes
    a.publish([b"x" * 100_000, b"y" * 28_000])
    a.metrics(b"m" * 10)
    box.of(ModelChunk, 2)
    assert (a.stats().published_messages, a.stats().published_bytes) == (3, 128_010)
    assert 128_000 <= b.stats().received_bytes - before < 130_000  # a few presences are in it
    assert (a.stats().refused, b.stats().reconnects, b.stats().callback_errors) == (0, 0, 0)


def test_another_run_and_another_fleet_are_not_heard(net: Net) -> None:
    """Models of another run do not arrive, though the node's name is the same."""
    foreign, _ = net.join("a", run_id="r2")
    _, box = net.join("b", "a")
    foreign.publish([b"foreign"])
    own, _ = net.join("c")
    own.announce("cc")
    box.wait(lambda item: isinstance(item, PresenceSeen) and item.presence.ready == "cc")
    assert not [item for item in box.items if isinstance(item, ModelChunk)]


def test_close_is_idempotent_and_final(net: Net) -> None:
    """A closed transport refuses to publish and to start again, and closing twice does nothing."""
    a, _ = net.join("a")
    a.close("once")
    a.close("twice")
    assert a.publish([b"x"]) == 0
    a.metrics(b"x")
    assert a.stats().refused == 2
    with pytest.raises(ContractViolation):
        a.start()


def test_close_without_start(net: Net) -> None:
    """A transport that never started can be closed."""
    net.make("a", Mailbox()).close("never there")


def test_names_are_checked() -> None:
    """Names that would change a topic's meaning are refused before anything is sent."""
    good = ("fleet0", NodeId("n1"), "r1", RUN, "0.1.0")
    Identity(*good).topics()
    for place, bad in [
        (0, "a/b"),
        (0, "+"),
        (1, "#"),
        (1, "N1"),
        (1, ""),
        (2, "r/1"),
        (2, ""),
        (3, "no hex"),
        (4, " "),
    ]:
        with pytest.raises(ConfigError):
            Identity(*(bad if i == place else value for i, value in enumerate(good))).topics()  # type: ignore[arg-type]


@ANY_TIME
@given(PRESENCES)
def test_presence_round_trip(presence: Presence) -> None:
    """Every presence that a node can say fits its bound and is understood, its reason made printable and short."""
    payload = encode_presence(presence)
    seen = decode_presence(presence.node, payload)
    assert len(payload) <= PRESENCE_BYTES
    assert seen is not None
    assert (seen.node, seen.online, seen.session) == (presence.node, presence.online, presence.session)
    assert len(seen.reason) <= 200
    assert seen.reason.isascii()


@ANY_TIME
@given(st.text(), st.binary() | st.text().map(str.encode))
@example("a", b"[" * 1000)
@example("a", b'{"online":1,"session":"","ready":"","run":"","agent":"","reason":""}')
@example("a", b'{"online":true,"session":"","ready":"","run":"","agent":"","reason":"","more":1}')
@example("a", b'{"online":true,"session":"","ready":"","run":"","agent":"","reason":"two\\nlines"}')
@example("a", b'{"online":true,"session":"ab\\n","ready":"","run":"","agent":"","reason":""}')
@example("a", b'{"online":true,"session":"\xff","ready":"","run":"","agent":"","reason":""}')
def test_hostile_presence_is_none(node: str, payload: bytes) -> None:
    """Bytes that are not exactly a presence give None and never an exception."""
    assert decode_presence(node, payload) is None


@ANY_TIME
@given(PRESENCES, st.integers(0, 2000), st.integers(0, 255))
def test_damaged_presence_is_safe(presence: Presence, where: int, byte: int) -> None:
    """A presence with one byte changed is refused or still has only fields of the right form."""
    payload = bytearray(encode_presence(presence))
    payload[where % len(payload)] = byte
    seen = decode_presence(presence.node, bytes(payload))
    assert seen is None or (seen.reason.isprintable() and len(seen.session) <= 64)


def test_a_failing_callback_is_counted_not_raised(caplog: pytest.LogCaptureFixture) -> None:
    """An exception in a callback is logged and counted: the library's thread must live."""

    def broken(_value: int) -> None:
        raise ValueError("broken")

    out = Outlet(lambda _item: True)
    out.guard(broken)(1)
    assert out.stats().callback_errors == 1
    assert "broken" in caplog.text
