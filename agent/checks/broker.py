"""Whether the broker is there, speaks MQTT, lets this device in, and how fast it answers.

The session has a client id that no agent can have, no will, and publishes nothing: a running agent does not notice it.
"""

from __future__ import annotations

import queue
import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from agent.checks.check import Bench, Finding, failed, ok, warning
from agent.checks.mdns import surveyed
from agent.core.types import NodeId
from agent.device import password_of
from agent.network.mqtt import UNSUPPORTED_VERSION, WRONG_WHO
from agent.network.mqtt_client import (
    CONNECT_TIMEOUT_S,
    MQTT5,
    MQTT311,
    PROTOCOL_NAMES,
    MqttConfig,
    connect,
    new_client,
    prepare_socket,
    stop,
)
from agent.network.topics import Topics
from agent.network.transport import decode_presence

REFUSED = 0x80
"""Reason codes from here on are failures."""
GOODBYE_S = 1.0


@dataclass(frozen=True, slots=True)
class Answers:
    """What a broker answered, as far as it came; None: nothing."""

    connected: Any = None
    granted: list[Any] | None = None
    round_trip_ms: float = 0.0
    online: int = 0
    """Retained presences of the fleet that say so."""


def check(bench: Bench) -> Finding:
    """Find the broker, reach it, begin a session and subscribe as an agent does; ConfigError."""
    mqtt = bench.config.mqtt
    host, port, found = mqtt.host, mqtt.port, ""
    if not host:
        brokers = surveyed(bench).brokers
        if not brokers:
            return failed(
                f"no broker of fleet {bench.config.node.fleet} answers over mDNS within {bench.host.listen_s:g} s",
                "start it with its announcement on this network, or set mqtt.host and mqtt.port",
            )
        (host, port), found = brokers[0], " (found over mDNS)"
    address = f"{host}:{port}{found}"
    return _unreachable(host, port, address) or _session(bench, host, port, address)


def _unreachable(host: str, port: int, address: str) -> Finding | None:
    """Return why no TCP connection can be made, if so."""
    try:
        socket.create_connection((host, port), CONNECT_TIMEOUT_S).close()
    except socket.gaierror as error:
        return failed(
            f"{address}: the name {host} is not known here ({error.strerror})", "correct mqtt.host, or look after DNS"
        )
    except ConnectionRefusedError:
        return failed(
            f"{address}: the host is there, and nothing listens on port {port}",
            "start the broker, or correct mqtt.port",
        )
    except TimeoutError:
        return failed(
            f"{address}: no answer within {CONNECT_TIMEOUT_S:g} s",
            "is mqtt.host right and that machine on, and does no firewall drop the port?",
        )
    except (OSError, UnicodeError) as error:
        return failed(f"{address}: cannot be reached ({error})", "check mqtt.host and this device's network")
    return None


def _session(bench: Bench, host: str, port: int, address: str) -> Finding:
    """Speak MQTT 5 with it, or 3.1.1 where it does not know that."""
    mqtt, node = bench.config.mqtt, bench.config.node
    link = MqttConfig(
        host,
        port,
        keepalive_s=mqtt.keepalive_s,
        answer_timeout_s=mqtt.answer_timeout_s,
        username=mqtt.username or None,
        password=password_of(mqtt.password_file) if mqtt.password_file else None,
    )
    topics = Topics(node.fleet, bench.config.run.id)
    for protocol in (MQTT5, MQTT311):
        answers = _ask(link, topics, protocol)
        if answers.connected is not None and answers.connected.value != UNSUPPORTED_VERSION:
            return _judge(answers, topics, f"{address}, {PROTOCOL_NAMES[protocol]}", protocol == MQTT311)
    return failed(
        f"{address}: takes connections, and does not answer as a broker does",
        "is mqtt.port the broker's for MQTT without TLS? Something else listens there, or the broker hangs",
    )


def _judge(answers: Answers, topics: Topics, line: str, old: bool) -> Finding:
    code = answers.connected
    if code.is_failure:
        fix = "look into the broker's log"
        if code.value in WRONG_WHO:
            fix = "check mqtt.username and mqtt.password_file, and that the broker knows this user"
        return failed(f"{line}: refuses the session ({code})", fix)
    if answers.granted is None:
        return failed(f"{line}: takes the session, and does not answer a subscription", "look into the broker's log")
    refused = [code for code in answers.granted if code.value >= REFUSED]
    if refused:
        return failed(
            f"{line}: refuses the subscription to {topics.every_status()} ({refused[0]})",
            "let this user read and write the fleet's topics in the broker's ACL",
        )
    line = f"{line}: round trip {answers.round_trip_ms:.1f} ms, {answers.online} agents of fleet {topics.fleet} online"
    if old:
        return warning(line, "a broker with MQTT 5 (mosquitto 1.6 or later) drops stale models and says why it refuses")
    return ok(line)


def _ask(link: MqttConfig, topics: Topics, protocol: Any) -> Answers:
    """Begin a session, subscribe, unsubscribe and leave."""
    events: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
    online: set[str] = set()
    client = new_client(link, NodeId(f"doctor_{secrets.token_hex(6)}"), protocol)

    def heard(_client: object, _userdata: object, message: Any) -> None:
        parsed = topics.parse(message.topic)
        presence = decode_presence(parsed[1], bytes(message.payload)) if parsed else None
        if presence is not None and presence.online:
            online.add(presence.node)

    client.on_socket_open = lambda _client, _userdata, sock: prepare_socket(sock)
    client.on_connect = lambda _client, _userdata, _flags, code, _properties: events.put(("connected", code))
    client.on_disconnect = lambda *_: events.put(("gone", None))
    client.on_subscribe = lambda _client, _userdata, _mid, codes, _properties: events.put(("granted", codes))
    client.on_unsubscribe = lambda *_: events.put(("ended", None))
    client.on_message = heard

    def answer(kind: str, seconds: float) -> Any:
        return _next(events, kind, seconds)

    connect(client, link)
    try:
        code = answer("connected", link.answer_timeout_s)
        if code is None or code.is_failure:
            return Answers(code)
        granted, round_trip_ms = _subscribe(client, topics, lambda kind: answer(kind, link.answer_timeout_s))
        return Answers(code, granted, round_trip_ms, len(online))
    finally:
        client.disconnect()
        answer("gone", GOODBYE_S)
        stop(client, set())


def _subscribe(client: Any, topics: Topics, answer: Callable[[str], Any]) -> tuple[list[Any] | None, float]:
    """Subscribe to the fleet's presences; return what was granted, and the milliseconds of a round trip.

    The presences that the broker keeps come before its answer to the second request, which is the one that is timed.
    """
    client.subscribe(topics.every_status(), qos=0)
    granted = answer("granted")
    if granted is None:
        return None, 0.0
    began = time.monotonic()
    client.unsubscribe(topics.every_status())
    answer("ended")
    return granted, 1000 * (time.monotonic() - began)


def _next(events: queue.SimpleQueue[tuple[str, Any]], kind: str, seconds: float) -> Any:
    """Return what came with the next event of this kind; None where the connection ends first, or nothing comes."""
    until = time.monotonic() + seconds
    while True:
        try:
            name, value = events.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            return None
        if name == kind:
            return value
        if name == "gone":
            return None
