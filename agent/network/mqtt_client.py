"""One paho client, set up as this project needs it; what paho lets pile up without bound is bounded here."""

from __future__ import annotations

import contextlib
import logging
import math
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from agent.core.types import NodeId
from agent.core.wire import MAX_CHUNKS
from agent.errors import ConfigError, NetworkError

_log = logging.getLogger(__name__)

MQTT5 = paho.MQTTv5
MQTT311 = paho.MQTTv311
ONLY_IN_MQTT5 = "message expiry, receive maximum, reasons of refused publishes, the broker's packet limit"
PROTOCOL_NAMES = {MQTT5: "MQTT 5", MQTT311: "MQTT 3.1.1"}

CONNECT_TIMEOUT_S = 5.0
INFLIGHT = 4
"""Own messages that the broker may owe an acknowledgement for at once; the rest waits in paho's queue."""
RECEIVE_MAXIMUM = 8
MAX_PORT = 65535
EPISODE_S = 300.0
"""Disputes over the node id that are less than so far apart belong together."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Paths of PEM files: whom to trust, and, for a client certificate, who we are."""

    ca: str
    cert: str | None = None
    key: str | None = None


@dataclass(frozen=True, slots=True)
class MqttConfig:
    """How to reach the broker; bounds are per node."""

    host: str
    port: int = 1883
    keepalive_s: int = 60
    username: str | None = None
    password: str | None = None
    tls: TlsFiles | None = None
    max_unacked: int = 64
    """Own chunks that the broker may owe an acknowledgement for: two models' (one goes out, however many it has)."""
    max_packet_bytes: int = 2 * 1024 * 1024
    """No longer packet is accepted (under MQTT 5 the broker does not even send one)."""
    expiry_s: int = 120
    """A model chunk that the broker could not deliver by then is dropped there; two round deadlines are right."""
    answer_timeout_s: float = 5.0
    """How long a new connection may stay without an answer; amqtt, asked for MQTT 5, gives none at all."""
    reconnect_min_s: float = 1.0
    reconnect_max_s: float = 30.0

    def __post_init__(self) -> None:
        if not self.host.strip() or not 0 < self.port <= MAX_PORT:
            raise ConfigError(f"mqtt broker {self.host!r} port {self.port}: name a host, and a port from 1 to 65535")
        if self.max_unacked < 1 or self.keepalive_s < 1 or not 0 < self.reconnect_min_s <= self.reconnect_max_s:
            raise ConfigError("mqtt: max_unacked, keepalive_s and reconnect_min_s must be positive, min at most max")


def new_client(config: MqttConfig, node: NodeId, protocol: MQTTProtocolVersion) -> paho.Client:
    """Return a client that is not connected yet and has no callbacks."""
    clean = None if protocol == MQTT5 else True
    api = CallbackAPIVersion.VERSION2
    client = paho.Client(api, client_id=node, clean_session=clean, protocol=protocol, reconnect_on_failure=True)
    client.connect_timeout = CONNECT_TIMEOUT_S
    client.max_inflight_messages_set(INFLIGHT)
    client.max_queued_messages_set(max(config.max_unacked, MAX_CHUNKS) + 8)  # any model, and 8 presences
    pace(client, config)
    if config.username is not None:
        client.username_pw_set(config.username, config.password)
    if config.tls is not None:
        _secure(client, config.tls)
    return client


def connect(client: paho.Client, config: MqttConfig) -> None:
    """Start the client's thread, which connects and reconnects for ever; returns at once. NetworkError without lo."""
    options: dict[str, Any] = {}
    if client.protocol == MQTT5:
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = 0
        properties.ReceiveMaximum = RECEIVE_MAXIMUM
        properties.MaximumPacketSize = config.max_packet_bytes
        options = {"clean_start": True, "properties": properties}
    client.connect_async(config.host, config.port, config.keepalive_s, **options)
    try:
        client.loop_start()
    except OSError as error:  # its threads wake each other over a connection to 127.0.0.1
        reason = f"the MQTT client cannot start ({error.strerror}); is the loopback interface up?"
        raise NetworkError(reason) from error


def prepare_socket(sock: Any) -> None:
    """Send small packets at once; paho never asks for that."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def cut(sock: Any) -> None:
    """End a connection from outside paho's thread, which then finds it lost."""
    with contextlib.suppress(OSError):  # it was gone already
        sock.shutdown(socket.SHUT_RDWR)


def stop(client: paho.Client, threads: set[threading.Thread]) -> None:
    """End the client's thread whatever state it is in, its connection cut if it still has one."""
    client.drop_out_messages()  # the thread does not end while messages wait for an acknowledgement
    sock = client.socket()
    if sock is not None:
        cut(sock)
    with contextlib.suppress(AttributeError):  # the thread ended between paho's test for it and paho's join
        client.loop_stop()
    for thread in threads:
        thread.join(2 * CONNECT_TIMEOUT_S)


class Twins:
    """How often our sessions are disputed, and how long we wait before the next: twins would never let go else.

    paho forgets its growing delay with each session, so that two agents with one node id would throw each other off the
    broker every second for ever.
    """

    def __init__(self, config: MqttConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._config, self._clock = config, clock
        self._count, self._last_s, self._session = 0, -math.inf, ""

    def dispute(self, session: str) -> int:
        """Note that somebody claims our node id in this session of ours; return how many in a row, 0 if known."""
        if session == self._session:
            return 0
        now = self._clock()
        self._count = self._count + 1 if now - self._last_s < EPISODE_S else 1
        self._session, self._last_s = session, now
        return self._count

    def pace(self, client: paho.Client) -> None:
        """Let the next session wait twice as long after each dispute of an episode, at most `reconnect_max_s`."""
        count = self._count if self._clock() - self._last_s < EPISODE_S else 0
        pace(client, self._config, 2.0 ** min(count, 30))


def pace(client: paho.Client, config: MqttConfig, factor: float = 1.0) -> None:
    """Set between which bounds the client's growing delay before a new connection lies, each with its own jitter."""
    high = config.reconnect_max_s * _jitter()
    low = min(config.reconnect_min_s * factor * _jitter(), high)
    client.reconnect_delay_set(low, high)  # type: ignore[arg-type]  # paho only adds and compares: floats are fine


class ProtocolChoice:
    """Which MQTT to speak: 5 first, and 3.1.1 for good once the broker showed that it knows no other.

    A broker shows it in its answer, or by leaving us unanswered twice and then answering to 3.1.1 (amqtt does). If it
    does not answer to that either, it is something else (a proxy before a broker that is down does the same): 5 again.
    """

    def __init__(self) -> None:
        self.protocol = MQTT5
        self._known = False
        self._silent = 0
        self._patience = 2

    def answered(self) -> None:
        """Note that the broker accepted a session; say it once where that took 3.1.1."""
        if self.protocol == MQTT311 and not self._known:
            _log.warning("the mqtt broker knows no MQTT 5: MQTT 3.1.1 from now on, without %s", ONLY_IN_MQTT5)
        self._known = True

    def refused(self) -> bool:
        """Note that the broker said it does not know this version; return whether to connect anew with another."""
        if self.protocol == MQTT311:
            return False
        self.protocol, self._known = MQTT311, False
        return True

    def silent(self) -> bool:
        """Note a connection that ended before any answer; return whether to connect anew with another version."""
        self._silent += 1
        if self._known or (self.protocol == MQTT5 and self._silent < self._patience):
            return False
        if self.protocol == MQTT311:
            self._patience *= 2
        self.protocol = MQTT311 if self.protocol == MQTT5 else MQTT5
        self._silent = 0
        return True


def _jitter() -> float:
    """Return a factor from 1 to 2: paho's backoff has none, and 256 nodes must not return at the same moment."""
    return 1.0 + secrets.randbelow(1000) / 1000.0


def _secure(client: paho.Client, tls: TlsFiles) -> None:
    try:
        client.tls_set(ca_certs=tls.ca, certfile=tls.cert, keyfile=tls.key)
    except (OSError, ValueError) as error:
        raise ConfigError(f"mqtt tls files {tls.ca}, {tls.cert}, {tls.key} cannot be used: {error}") from error
