"""What only a broker can do to us: die, stall, limit, refuse, speak an old version, deliver a will too late."""

from __future__ import annotations

import signal
import socket
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from network_rig import ANY_TIME, RUN, Broker, LogBox, Mailbox, Net, Stranger, config, free_port

from agent.core.types import NODE_ID, NodeId
from agent.core.wire import MAX_CHUNKS
from agent.errors import ConfigError
from agent.network.membership import Membership
from agent.network.mqtt import PAST_SESSIONS, MqttConfig, MqttTransport, TlsFiles
from agent.network.mqtt_client import MQTT5, MQTT311, ProtocolChoice
from agent.network.mqtt_outbox import Window
from agent.network.topics import Topics
from agent.network.transport import (
    PACKET_OVERHEAD_BYTES,
    Connected,
    Disconnected,
    Identity,
    ModelChunk,
    Presence,
    PresenceSeen,
    SessionConflict,
    Subscribed,
    decode_presence,
    encode_presence,
)

FALLBACK = "knows no MQTT 5"


def online(node: str, *, session_not: str = "") -> Any:
    """Return the predicate of an online presence of `node`."""

    def wanted(item: object) -> bool:
        seen = item.presence if isinstance(item, PresenceSeen) else None
        return seen is not None and seen.node == node and seen.online and seen.session != session_not

    return wanted


def test_boot_order_does_not_matter(make_net: Any, log: LogBox) -> None:
    """A node that starts before its broker says so once and connects when the broker is there."""
    broker, net = make_net()
    box = Mailbox()
    node = net.make("a", box)
    node.start()
    log.wait("cannot be reached")
    broker.start()
    connected = box.of(Connected)[0]
    assert connected.protocol == "MQTT 5"
    assert log.count("cannot be reached") == 1


def test_who_sees_a_returned_node_can_send_to_it(make_net: Any) -> None:
    """After a restart of the broker a node subscribes before it announces itself, so no model after that is lost."""
    broker, fleet = make_net()
    broker.start()
    a, box_a = fleet.join("a", "b")
    b, box_b = fleet.join("b", "a")
    b.announce("bb")
    first = box_a.wait(online("b"))[0].presence.session
    broker.stop()
    box_a.of(Disconnected)
    broker.start()
    seen = box_a.wait(online("b", session_not=first))[0].presence
    a.publish([b"after"])
    assert box_b.of(ModelChunk) == [ModelChunk(NodeId("a"), b"after")]
    assert seen.ready == "bb"
    assert (a.stats().reconnects, b.stats().reconnects) == (1, 1)
    assert len({item.session for item in box_b.of(Connected, 2)}) == 2


def test_a_model_published_without_connection_waits_for_the_next_session(make_net: Any) -> None:
    """A short outage in mid-round loses no model: the chunks go out, and nothing twice that was acknowledged."""
    broker, fleet = make_net()
    broker.start()
    a, box_a = fleet.join("a")
    _, box_b = fleet.join("b", "a")
    broker.stop()
    box_a.of(Disconnected)
    box_b.of(Disconnected)
    assert a.publish([b"1", b"2"]) == 2
    broker.start()
    # b may come back after a has sent: then it has missed them, as any node has that was away
    box_a.of(Subscribed, 2)
    box_b.of(Subscribed, 2)
    a.publish([b"3"])
    box_b.wait(lambda item: isinstance(item, ModelChunk) and item.payload == b"3")
    assert a.stats().refused == 0


def test_a_late_will_does_not_take_a_node_away(mosquitto_broker: Broker, mqtt_net: Net) -> None:
    """The will of an old session, come late, is no news to the peers, and is overwritten for who comes after."""
    a, _ = mqtt_net.join("a")
    a.announce("aa")
    _, box = mqtt_net.join("b")
    now = box.wait(online("a"))[-1].presence
    members = Membership(NodeId("b"), ["a"])
    late = encode_presence(Presence(NodeId("a"), False, "0" * 32, "", RUN, "0.1.0", "connection lost"))
    with closing(Stranger(mosquitto_broker)) as stranger:
        stranger.say(f"skiptrain/v1/{mqtt_net.fleet}/a/status", late, retain=True)
    box.wait(lambda item: isinstance(item, PresenceSeen) and not item.presence.online)
    box.wait(online("a"), count=sum(map(online("a"), box.items[: box.items.index(PresenceSeen(now)) + 1])) + 1)
    for item in box.items:
        if isinstance(item, PresenceSeen):
            members.presence(item.presence, 0.0)
            assert members.live() == {"a": item.presence.ready if item.presence.online else "aa"}
    _, later = mqtt_net.join("c")
    assert later.wait(online("a"))[0].presence == now


def test_a_lost_connection_speaks_through_the_will(make_net: Any) -> None:
    """A node whose connection breaks is reported offline with the session that broke, then online with the next."""
    broker, fleet = make_net()
    broker.start()
    a, _ = fleet.join("a")
    _, box = fleet.join("b")
    first = box.wait(online("a"))[0].presence
    assert isinstance(a, MqttTransport)
    a._client.socket().shutdown(2)  # type: ignore[union-attr]
    box.wait(online("a", session_not=first.session))
    story = [
        (item.presence.online, item.presence.session) for item in box.of(PresenceSeen) if item.presence.node == "a"
    ]
    assert story[:2] == [(True, first.session), (False, first.session)]
    assert story[-1][0]


def test_a_second_agent_with_our_name_is_a_conflict(mqtt_net: Net) -> None:
    """Two agents with one node id, as after copying an SD card, both hear of it."""
    _, box = mqtt_net.join("a")
    twin_box = Mailbox()
    twin = mqtt_net.make("a", twin_box)
    twin.start()
    box.of(SessionConflict)
    twin_box.of(SessionConflict)


def test_somebody_who_speaks_in_our_name_is_a_conflict(mosquitto_broker: Broker, mqtt_net: Net) -> None:
    """An online presence of our own node with a session that was never ours is a conflict."""
    _, box = mqtt_net.join("a")
    fake = encode_presence(Presence(NodeId("a"), True, "f" * 32, "", RUN, "0.1.0"))
    with closing(Stranger(mosquitto_broker)) as stranger:
        stranger.say(f"skiptrain/v1/{mqtt_net.fleet}/a/status", fake)
    assert "calls itself a" in box.of(SessionConflict)[0].detail


def test_what_a_life_before_left_is_no_conflict(mosquitto_broker: Broker, mqtt_net: Net) -> None:
    """A stored `online` of an unknown session at our first connection proves nothing, and is replaced."""
    topic = f"skiptrain/v1/{mqtt_net.fleet}/a/status"
    old = encode_presence(Presence(NodeId("a"), True, "e" * 32, "", RUN, "0.1.0"))
    with closing(Stranger(mosquitto_broker, topic)) as stranger:
        stranger.say(topic, old, retain=True)
        _, box = mqtt_net.join("a")
        session = box.of(Connected)[0].session
        stranger.wait(lambda message: session.encode() in message.payload)
    assert not [item for item in box.items if isinstance(item, SessionConflict)]


def test_a_chunk_above_the_brokers_limit_is_refused_before_it_costs_the_session(make_net: Any, log: LogBox) -> None:
    """MQTT 5 brokers name their limit: we refuse what is larger, say it once, and keep the session."""
    broker, net = make_net("max_packet_size 2000")
    broker.start()
    a, box_a = net.join("a")
    _, box_b = net.join("b", "a")
    limit = box_a.of(Connected)[0].max_packet_bytes
    assert limit == 2000
    fits = b"x" * (limit - PACKET_OVERHEAD_BYTES)
    for _ in range(3):
        assert a.publish([b"small", b"x" * limit]) == 0
    assert a.publish([fits]) == 1
    assert box_b.of(ModelChunk) == [ModelChunk(NodeId("a"), fits)]
    assert (a.stats().refused, a.stats().reconnects, a.stats().callback_errors) == (6, 0, 0)
    assert log.count("cut it smaller") == 1


def test_the_largest_packet_that_fits_is_let_through(make_net: Any) -> None:
    """Our count of a packet's bytes is the broker's: one byte less than refused arrives, and the session lives."""
    broker, net = make_net("max_packet_size 2000")
    broker.start()
    a, _ = net.join("a")
    _, box = net.join("b", "a")
    sizes = [size for size in range(1800, 2001) if a.publish([b"x" * size])]
    box.wait(lambda item: isinstance(item, ModelChunk) and len(item.payload) == sizes[-1])
    assert a.stats().reconnects == 0


def test_what_ends_every_session_is_given_up(make_net: Any) -> None:
    """Under MQTT 3.1.1 no limit is named and paho would send a packet that is too large in each session for ever."""
    broker, net = make_net("max_packet_size 2000")
    broker.start()
    box = Mailbox()
    a = net.make("a", box)
    assert isinstance(a, MqttTransport)
    a._choice.refused()
    a.start()
    assert box.of(Connected)[0].protocol == "MQTT 3.1.1"
    a.publish([b"x" * 3000])
    _, heard = net.join("b", "a")
    box.of(Connected, 4)
    a.publish([b"small"])
    assert heard.of(ModelChunk) == [ModelChunk(NodeId("a"), b"small")]
    assert a.stats().refused == 1


def test_amqtt_takes_one_fallback_and_one_line(amqtt_broker: Broker, no_thread_left: None, log: LogBox) -> None:
    """A broker without MQTT 5 is found out once; the line says what is lost, and a reconnect does not ask again."""
    del no_thread_left
    net = Net("mqtt", config(amqtt_broker, answer_timeout_s=0.3))
    a, box = net.join("a")
    assert box.of(Connected)[0] == Connected(box.items[0].session, None, "MQTT 3.1.1")
    assert isinstance(a, MqttTransport)
    a._client.socket().shutdown(2)  # type: ignore[union-attr]
    assert box.of(Connected, 2)[1].protocol == "MQTT 3.1.1"
    a.close("done")
    assert log.count(FALLBACK) == 1
    assert log.count("message expiry") == 1


def test_a_refused_session_is_no_reason_to_fall_back(make_net: Any, log: LogBox) -> None:
    """A broker that wants a password is told apart from one that knows no MQTT 5; it is tried on."""
    broker, net = make_net("allow_anonymous false", username="a", password="wrong")  # noqa: S106  # the wrong one
    broker.start()
    node = net.make("a", Mailbox())
    node.start()
    log.wait("refuses the session (Not authorized)")
    assert not log.count(FALLBACK)


def test_the_choice_of_a_version_returns_from_a_wrong_guess() -> None:
    """Silence to MQTT 3.1.1 as well means that the version was not the fault: back to 5, with twice the patience."""
    choice = ProtocolChoice()
    assert [choice.silent() for _ in range(3)] == [False, True, True]
    assert [choice.silent() for _ in range(4)] == [False, False, False, True]
    assert choice.protocol == MQTT311
    assert choice.silent()
    assert choice.protocol == MQTT5
    choice.answered()
    assert [choice.silent() for _ in range(99)] == [False] * 99
    assert choice.refused()
    assert not choice.refused()


def test_a_stalled_broker_costs_bounded_memory_and_no_hang(make_net: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the broker does not acknowledge, at most `max_unacked` chunks wait, the rest is refused, and close ends."""
    monkeypatch.setattr("agent.network.mqtt.GOODBYE_S", 0.2)
    broker, net = make_net(max_unacked=6)
    broker.start()
    a, _ = net.join("a")
    broker.signal(signal.SIGSTOP)
    assert [a.publish([b"x" * 10_000] * 3) for _ in range(4)] == [3, 3, 0, 0]
    for _ in range(1000):
        a.metrics(b"m" * 100_000)
    assert a.stats().refused > 6 + 900
    a.close("stalled")
    broker.signal(signal.SIGCONT)


def test_a_model_larger_than_the_window_goes_out_alone(make_net: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With nothing on its way any model is taken, the largest too; until it is through, no other is."""
    monkeypatch.setattr("agent.network.mqtt.GOODBYE_S", 0.2)
    broker, net = make_net(max_unacked=6)
    broker.start()
    a, _ = net.join("a")
    _, box = net.join("b", "a")
    model = [bytes([number]) for number in range(70)]
    assert a.publish(model) == 70
    assert [item.payload for item in box.of(ModelChunk, 70)] == model
    broker.signal(signal.SIGSTOP)
    assert [a.publish([b"x"] * MAX_CHUNKS), a.publish([b"x"])] == [MAX_CHUNKS, 0]
    assert a.stats().refused == 1
    a.close("stalled")
    broker.signal(signal.SIGCONT)


def test_sessions_of_long_ago_are_forgotten(mqtt_net: Net) -> None:
    """However often the connection breaks, a fixed number of own sessions is remembered, and none is a conflict."""
    a, box = mqtt_net.join("a")
    assert isinstance(a, MqttTransport)
    for sessions in range(2, PAST_SESSIONS + 4):
        a._client.socket().shutdown(2)  # type: ignore[union-attr]
        box.of(Subscribed, sessions)
    assert list(a._past) == [item.session for item in box.of(Connected)][-PAST_SESSIONS:]
    assert a.stats().reconnects == PAST_SESSIONS + 2
    assert not [item for item in box.items if isinstance(item, SessionConflict)]


MOMENTS: dict[str, tuple[type, ...]] = {
    "never started": (),
    "just started": (),
    "at a port without a broker": (),
    "before any answer": (),
    "connected": (Connected,),
    "subscribed": (Subscribed,),
    "just cut": (Subscribed,),
    "cut and noticed": (Subscribed,),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_transport_can_be_replaced_at_any_moment(mosquitto_broker: Broker, mqtt_net: Net, moment: str) -> None:
    """The old one ends with its threads and says nothing more; the new one with the same name is on its own at once."""
    box = Mailbox()
    with socket.create_server(("127.0.0.1", 0)) as mute:
        port = {"at a port without a broker": free_port(), "before any answer": mute.getsockname()[1]}
        link = replace(mqtt_net.link, port=port.get(moment, mosquitto_broker.port))
        old = MqttTransport(link, Identity(mqtt_net.fleet, NodeId("a"), "r1", RUN, "0.1.0"), box.post)
        if moment != "never started":
            old.start()
        if moment == "before any answer":
            mute.accept()[0].close()
        for kind in MOMENTS[moment]:
            box.of(kind)
        if "cut" in moment:
            old._client.socket().shutdown(2)  # type: ignore[union-attr]
        if "noticed" in moment:
            box.of(Disconnected)
        old.close("replaced")
        said = list(box.items)
        _, watcher = mqtt_net.join("b")
        new, heard = mqtt_net.join("a")
        new.announce("aa")
        session = heard.of(Connected)[0].session
        watcher.wait(lambda item: online("a")(item) and item.presence.session == session)
    assert box.items == said
    assert (old.stats().callback_errors, new.stats().callback_errors, new.stats().reconnects) == (0, 0, 0)
    assert not [item for item in [*box.items, *heard.items] if isinstance(item, SessionConflict)]


def test_models_expire_in_the_broker(mosquitto_broker: Broker, mqtt_net: Net) -> None:
    """Model chunks are not retained, and carry a message expiry under MQTT 5."""
    with closing(Stranger(mosquitto_broker, f"skiptrain/v1/{mqtt_net.fleet}/a/model/r1")) as stranger:
        a, _ = mqtt_net.join("a")
        a.publish([b"x"])
        message = stranger.wait(lambda message: message.payload == b"x")
    assert (message.retain, message.qos) == (False, 1)
    assert 0 < message.properties.MessageExpiryInterval <= 120


def test_hostile_messages_cost_a_counter_each(mosquitto_broker: Broker, mqtt_net: Net) -> None:
    """Bad presences and topics with names that are none are counted, and the session goes on."""
    a, box = mqtt_net.join("a", "b")
    base = f"skiptrain/v1/{mqtt_net.fleet}"
    with closing(Stranger(mosquitto_broker)) as stranger:
        for topic, payload in [
            (f"{base}/b/status", b"not json"),
            (f"{base}/b/status", b"{}" * 5000),
            (f"{base}/_ctl/status", b"{}"),
            (f"{base}/B b/status", b"{}"),
            (f"{base}/b/status", b""),
        ]:
            stranger.say(topic, payload)
        stranger.say(f"{base}/b/model/r1", b"any bytes")
    assert box.of(ModelChunk) == [ModelChunk(NodeId("b"), b"any bytes")]
    assert (a.stats().rejected, a.stats().callback_errors, a.stats().reconnects) == (5, 0, 0)


@ANY_TIME
@given(st.text() | st.from_regex(r"skiptrain/v1/f0/.*", fullmatch=True))
def test_topics_parse_never_raises(topic: str) -> None:
    """Any text is a topic of ours or None, and what is ours makes the same text again."""
    topics = Topics("f0", "r1")
    parsed = topics.parse(topic)
    if parsed is not None:
        kind, node = parsed
        assert topic == (topics.status(node) if kind == "status" else topics.model(node))


@ANY_TIME
@given(st.from_regex(NODE_ID, fullmatch=True).map(NodeId))
def test_topics_round_trip(node: NodeId) -> None:
    """Every node id gives topics that name it again, and no longer ones than the packet overhead allows for."""
    topics = Topics("f0", "r1")
    assert topics.parse(topics.status(node)) == ("status", node)
    assert topics.parse(topics.model(node)) == ("model", node)
    assert topics.parse(topics.metrics(node)) is None


def test_the_window_counts_acknowledgements_that_were_faster() -> None:
    """A message settled before the caller could note it as sent leaves no place taken."""
    window = Window(2)
    assert window.room(2)
    window.settled(7)
    window.opened(7)
    window.opened(8)
    assert window.waiting() == 1
    assert window.room(1)
    assert not window.room(2)
    window.clear()
    assert window.room(99)


def test_a_configuration_that_cannot_work_is_refused(no_thread_left: None) -> None:
    """A missing host, a port out of range and files that are not there are errors before any connection."""
    del no_thread_left
    for bad in ({"host": " "}, {"host": "h", "port": 0}, {"host": "h", "max_unacked": 0}):
        with pytest.raises(ConfigError):
            MqttConfig(**bad)  # type: ignore[arg-type]
    node = Net("mqtt", MqttConfig("127.0.0.1", tls=TlsFiles("/nowhere/ca.pem"))).make("a", Mailbox())
    with pytest.raises(ConfigError, match=r"ca\.pem"):
        node.start()


def test_a_goodbye_is_the_last_word(mosquitto_broker: Broker, mqtt_net: Net) -> None:
    """What is retained after a clean stop is the offline presence with its reason, and no will follows it."""
    topic = f"skiptrain/v1/{mqtt_net.fleet}/a/status"
    with closing(Stranger(mosquitto_broker, topic)) as stranger:
        a, _ = mqtt_net.join("a")
        a.close("stop")
        stranger.wait(lambda message: b"stop" in message.payload)
        stranger.say(topic, b"fence")
        stranger.wait(lambda message: message.payload == b"fence")
        last = decode_presence("a", stranger.heard[-2].payload)
    assert last is not None
    assert (last.online, last.reason) == (False, "stop")
