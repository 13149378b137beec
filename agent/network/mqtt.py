"""The transport over an MQTT broker: one session that paho connects and reconnects, and nobody else."""

from __future__ import annotations

import logging
import sys
import threading
import uuid
from collections import deque
from collections.abc import Sequence
from typing import Any

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from agent.core.types import NodeId
from agent.errors import ContractViolation
from agent.network.mqtt_client import (
    MQTT311,
    PROTOCOL_NAMES,
    MqttConfig,
    ProtocolChoice,
    TlsFiles,
    Twins,
    connect,
    cut,
    new_client,
    prepare_socket,
    stop,
)
from agent.network.mqtt_outbox import Outbox
from agent.network.mqtt_subscriptions import Subscriptions
from agent.network.outlet import Outlet
from agent.network.transport import (
    Connected,
    Disconnected,
    Identity,
    ModelChunk,
    Post,
    Presence,
    PresenceSeen,
    SessionConflict,
    Subscribed,
    TransportStats,
    decode_presence,
    encode_presence,
    own_presence,
)

__all__ = ["MqttConfig", "MqttTransport", "TlsFiles"]

_log = logging.getLogger(__name__)

GOODBYE_S = 3.0
"""How long `close` waits for the broker to take the offline presence."""
UNSPECIFIED = 0x80
UNSUPPORTED_VERSION = 0x84
SESSION_TAKEN_OVER = 0x8E
WRONG_WHO = (0x86, 0x87)
"""Bad user name or password; not authorised."""
PAST_SESSIONS = 16
"""Own sessions that a late will can still be of."""


class MqttTransport:
    """One node's session with the broker.

    Two threads meet here: the caller's, and paho's, which runs the callbacks. `_lock` orders what both of them say of
    the session. `_on_publish` must not take it: paho calls that with its lock on messages held, which publishing takes.
    """

    def __init__(self, config: MqttConfig, identity: Identity, post: Post) -> None:
        self._config = config
        self._me = identity
        self._topics = identity.topics()
        self._status = self._topics.status(identity.node)
        self._out = Outlet(post)
        model, metrics = self._topics.model(identity.node), self._topics.metrics(identity.node)
        bounds = {"max_unacked": config.max_unacked, "expiry_s": config.expiry_s}
        self._outbox = Outbox(model, metrics, self._out, **bounds)
        self._lock = threading.RLock()
        self._choice = ProtocolChoice()
        self._twins = Twins(config)
        self._client: Client | None = None
        self._threads: set[threading.Thread] = set()
        self._closed = False
        self._gone = threading.Event()
        self._session = ""
        self._past: deque[str] = deque(maxlen=PAST_SESSIONS)
        """The last sessions of this transport that were accepted, the present one included."""
        self._connected = False
        self._answered = False
        self._patience: threading.Timer | None = None
        """Cuts the connection when it stays without an answer; paho itself would wait for the keepalive."""
        self._max_packet_bytes: int | None = None
        self._subscriptions = Subscriptions(self._topics)
        self._ready = ""
        self._trouble = ""

    # ---- the caller's thread

    def start(self) -> None:
        """Begin to connect; paho retries for ever, also where the broker was never there."""
        with self._lock:
            if self._client is not None or self._closed:
                raise ContractViolation("this transport was started or closed before: make a new one")
            self._open()

    def watch(self, peers: frozenset[NodeId]) -> None:
        """Subscribe to the models of exactly `peers`."""
        with self._lock:
            if self._subscriptions.change(peers, self._client if self._connected else None):
                self._out.emit(Subscribed(self._subscriptions.granted))

    def announce(self, ready: str) -> None:
        """Set the retained presence, now or as soon as the subscriptions stand."""
        with self._lock:
            self._ready = ready
            if self._client is not None and self._subscriptions.settled:
                self._say(self._client)

    def publish(self, chunks: Sequence[bytes]) -> int:
        """Queue one model's chunks, all or none; without a connection they wait for the next session."""
        client = self._client
        if client is None or not self._past:
            return self._outbox.refuse(len(chunks), "session", "there is no session with the broker")
        return self._outbox.send_model(client, chunks, self._max_packet_bytes)

    def metrics(self, payload: bytes) -> None:
        """Send with QoS 0."""
        client = self._client
        if client is None or not self._connected:
            self._outbox.refuse(1, "session", "there is no session with the broker")
            return
        self._outbox.send_metrics(client, payload)

    def stats(self) -> TransportStats:
        """Return the counters."""
        return self._out.stats()

    def close(self, reason: str) -> None:
        """Publish the offline presence, then disconnect; where the broker does not take it, the last will speaks."""
        with self._lock:
            client, connected, closed, self._closed = self._client, self._connected, self._closed, True
        if client is None or closed:
            return
        if connected and self._say_goodbye(client, reason):
            client.disconnect()
            self._gone.wait(GOODBYE_S)
        self._heard()
        stop(client, self._threads)
        self._client = None  # it holds our callbacks: the ring would keep its sockets until the collector comes

    # ---- parts of both

    def _open(self) -> None:
        """Start a client that speaks the chosen version; its thread ends with it."""
        client = new_client(self._config, self._me.node, self._choice.protocol)
        client.on_pre_connect = self._out.guard(self._on_pre_connect)
        client.on_socket_open = self._out.guard(self._on_socket_open)
        client.on_connect = self._out.guard(self._on_connect)
        client.on_connect_fail = self._out.guard(self._on_connect_fail)
        client.on_disconnect = self._out.guard(self._on_disconnect)
        client.on_subscribe = self._out.guard(self._on_subscribe)
        client.on_publish = self._out.guard(self._on_publish)
        client.on_message = self._out.guard(self._on_message)
        self._client = client
        connect(client, self._config)

    def _reopen(self, old: Client) -> None:
        """Replace `old`, in whose thread this runs, by a client of the version now chosen."""
        old.loop_stop()
        self._outbox.drop(old, "they waited in a session of another MQTT version")
        if not self._closed:
            self._open()

    def _say(self, client: Client) -> None:
        """Publish the retained presence of this session, unless the goodbye has been said."""
        if self._closed:
            return
        payload = encode_presence(own_presence(self._me, self._session, ready=self._ready))
        client.publish(self._status, payload, qos=1, retain=True)

    def _say_goodbye(self, client: Client, reason: str) -> bool:
        """Return whether the broker took the offline presence in time."""
        payload = encode_presence(own_presence(self._me, self._session, offline=reason))
        info = client.publish(self._status, payload, qos=1, retain=True)
        try:
            info.wait_for_publish(GOODBYE_S)
            return info.is_published()
        except (ValueError, RuntimeError):
            return False  # the connection went just now, or paho's queue is full

    def _heard(self) -> None:
        """Stop waiting for an answer."""
        if self._patience is not None:
            self._patience.cancel()

    def _warn(self, trouble: str) -> None:
        """Log what keeps us from a session, once for as long as it stays the same."""
        if trouble != self._trouble:
            self._trouble = trouble
            _log.warning("mqtt broker %s:%d: %s; trying on for ever", self._config.host, self._config.port, trouble)

    # ---- paho's thread

    def _on_pre_connect(self, client: Client, _userdata: object) -> None:
        """Give every connection a session id of its own, in the will as in the presence."""
        with self._lock:
            self._threads = {thread for thread in self._threads if thread.is_alive()} | {threading.current_thread()}
            self._session = uuid.uuid4().hex
            self._answered = False
            self._gone.clear()
            will = own_presence(self._me, self._session, offline="connection lost")
        client.will_set(self._status, encode_presence(will), qos=1, retain=True)

    def _on_socket_open(self, _client: Client, _userdata: object, sock: Any) -> None:
        prepare_socket(sock)
        with self._lock:
            if self._closed:
                cut(sock)  # `close` waits for this thread, and may have counted the timers already
                return
            self._patience = threading.Timer(self._config.answer_timeout_s, cut, [sock])
            self._threads.add(self._patience)
            self._patience.start()

    def _on_connect_fail(self, _client: Client, _userdata: object) -> None:
        self._warn(f"cannot be reached ({sys.exc_info()[1]})")  # paho calls this while it handles the OSError

    def _on_connect(
        self, client: Client, _userdata: object, _flags: ConnectFlags, code: ReasonCode, properties: Properties
    ) -> None:
        with self._lock:
            self._heard()
            self._answered = True
            if code.is_failure:
                self._on_refusal(client, code)
                return
            if self._closed:
                client.disconnect()
                return
            self._choice.answered()
            self._out.count(reconnects=int(bool(self._past)))
            self._past.append(self._session)
            self._connected, self._trouble = True, ""
            self._max_packet_bytes = getattr(properties, "MaximumPacketSize", None)
            self._outbox.session_began(client)
            self._out.emit(Connected(self._session, self._max_packet_bytes, PROTOCOL_NAMES[client.protocol]))
            self._subscriptions.begin(client)

    def _on_refusal(self, client: Client, code: ReasonCode) -> None:
        if code.value == UNSUPPORTED_VERSION and self._choice.refused():
            self._reopen(client)
        else:
            hint = "; check mqtt.username and mqtt.password_file" if code.value in WRONG_WHO else ""
            self._warn(f"refuses the session ({code}){hint}")

    def _on_silence(self, client: Client) -> None:
        """Try the other version where a connection ended unanswered; say so once both were met with silence."""
        old = self._choice.protocol
        if self._choice.silent():
            if old == MQTT311:
                self._warn("takes connections, but gives no answer that a broker gives")
            self._reopen(client)

    def _on_disconnect(
        self, client: Client, _userdata: object, _flags: DisconnectFlags, code: ReasonCode, _properties: Properties
    ) -> None:
        with self._lock:
            if client is not self._client:
                return  # one that spoke the other version
            self._gone.set()
            self._heard()
            if self._connected:
                self._connected = False
                if code.value == SESSION_TAKEN_OVER:
                    self._dispute("the broker gave our session to another client with our node id")
                self._twins.pace(client)
                self._subscriptions.end()
                self._outbox.session_ended()
                self._out.emit(Disconnected("the connection was closed" if code.value == UNSPECIFIED else str(code)))
            elif not self._answered:
                self._on_silence(client)

    def _dispute(self, detail: str) -> None:
        """Say once a session that somebody else has our name."""
        count = self._twins.dispute(self._session)
        if count:
            self._out.emit(SessionConflict(detail, count))

    def _on_subscribe(
        self, client: Client, _userdata: object, mid: int, codes: list[ReasonCode], _properties: Properties
    ) -> None:
        with self._lock:
            first = not self._subscriptions.settled
            if self._subscriptions.acknowledged(mid, codes):
                if first:
                    self._say(client)
                self._out.emit(Subscribed(self._subscriptions.granted))

    def _on_publish(
        self, _client: Client, _userdata: object, mid: int, code: ReasonCode, _properties: Properties
    ) -> None:
        self._outbox.settled(mid, code)

    def _on_message(self, client: Client, _userdata: object, message: MQTTMessage) -> None:
        payload = bytes(message.payload)
        self._out.count(received_messages=1, received_bytes=len(payload))
        try:
            parsed = self._topics.parse(message.topic)
        except UnicodeDecodeError:
            parsed = None
        kind, sender = parsed or ("", NodeId(""))
        if kind == "model" and sender in self._subscriptions.watched and len(payload) <= self._config.max_packet_bytes:
            self._out.emit(ModelChunk(sender, payload))
            return
        presence = decode_presence(sender, payload) if kind == "status" else None
        if presence is None:
            self._out.count(rejected=1)
        elif presence.node == self._me.node:
            self._on_own_status(client, presence, stored=message.retain)
        else:
            self._out.emit(PresenceSeen(presence))

    def _on_own_status(self, client: Client, presence: Presence, *, stored: bool) -> None:
        """Hear what the broker holds about ourselves: our own word, a late will of ours, or somebody else's word.

        In the first session of a process, the word of an unknown session may be what is left of a life before: only who
        says `online` right now is another agent. Later any such word is; mosquitto takes a session over without notice.
        """
        with self._lock:
            if presence.session == self._session:
                return
            unknown, first = presence.session not in self._past, len(self._past) == 1
            if unknown and (not first or (presence.online and not stored)):
                self._dispute(f"another agent calls itself {self._me.node}")
            if not presence.online and not stored and self._subscriptions.settled:
                self._say(client)  # a late will has overwritten our retained presence
