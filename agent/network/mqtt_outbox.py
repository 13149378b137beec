"""What leaves over MQTT, and its bounds: a stalled broker must not fill the memory of the node."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

from paho.mqtt.client import MQTT_ERR_QUEUE_SIZE, Client
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from agent.network.mqtt_client import MQTT5
from agent.network.outlet import Outlet

_log = logging.getLogger(__name__)

METRICS_WAITING = 16
"""QoS 0 messages that wait for the socket; paho itself has no bound for them."""
FRUITLESS_SESSIONS = 3
FIXED_PACKET_BYTES = 16
"""Of a PUBLISH packet under MQTT 5: header 5, topic length 2, packet id 2, properties (message expiry) 7."""


class Outbox:
    """Own models (QoS 1, to `model_topic`) and metrics (QoS 0, to `metrics_topic`) on their way to the broker."""

    def __init__(self, model_topic: str, metrics_topic: str, out: Outlet, *, max_unacked: int, expiry_s: int) -> None:
        self._model_topic = model_topic
        self._metrics_topic = metrics_topic
        self._out = out
        self._expiry_s = expiry_s
        self._chunks = Window(max_unacked)
        self._metrics = Window(METRICS_WAITING)
        self._fruitless = 0
        self._said: set[str] = set()

    def send_model(self, client: Client, chunks: Sequence[bytes], max_packet_bytes: int | None) -> int:
        """Queue the chunks of one model; a part of a model is of no use to a peer, so it is all of them or none."""
        packet_bytes = max(map(len, chunks), default=0) + len(self._model_topic) + FIXED_PACKET_BYTES
        if max_packet_bytes is not None and packet_bytes > max_packet_bytes:
            why = f"a chunk makes a packet of {packet_bytes} bytes, the broker takes {max_packet_bytes}: cut it smaller"
            return self.refuse(len(chunks), "size", why)
        if not self._chunks.room(len(chunks)):
            why = f"{self._chunks.waiting()} earlier chunks still wait for the broker's acknowledgement"
            return self.refuse(len(chunks), "room", why)
        for sent, chunk in enumerate(chunks):
            mid = self._queue(client, chunk)
            if mid is None:
                return sent + self.refuse(len(chunks) - sent, "queue", "paho's queue is full")
            self._chunks.opened(mid)
            self._out.count(published_messages=1, published_bytes=len(chunk))
        return len(chunks)

    def send_metrics(self, client: Client, payload: bytes) -> None:
        """Send one QoS 0 message, or count it as refused while too many wait for the socket."""
        if not self._metrics.room(1):
            self.refuse(1, "metrics", "earlier metrics still wait for the socket")
            return
        self._metrics.opened(client.publish(self._metrics_topic, payload).mid)
        self._out.count(published_messages=1, published_bytes=len(payload))

    def refuse(self, messages: int, kind: str, why: str) -> int:
        """Count messages that are not sent, and say why once a session for each kind of reason; return 0."""
        self._out.count(refused=messages)
        if kind not in self._said:
            self._said.add(kind)
            _log.warning("not published to %s: %s", self._model_topic, why)
        return 0

    def settled(self, mid: int, code: ReasonCode) -> None:
        """Note paho's word on message `mid`; called with paho's lock on messages held, so it only notes."""
        self._fruitless = 0
        self._chunks.settled(mid)
        self._metrics.settled(mid)
        if code.is_failure:
            self.refuse(1, str(code), f"the broker answered {code}")

    def session_began(self, client: Client) -> None:
        """Drop what ended several sessions in a row: a broker cuts the connection at a packet that it finds too large.

        paho would send it again in every session for ever, and MQTT 3.1.1 brokers cannot say what their limit is.
        """
        self._said.clear()
        if self._fruitless >= FRUITLESS_SESSIONS:
            self.drop(
                client, f"{self._fruitless} sessions in a row ended before the broker took one; too large for it?"
            )

    def drop(self, client: Client, why: str) -> None:
        """Give up all messages that the broker has not acknowledged."""
        dropped = client.drop_out_messages()
        for message in dropped:
            self._chunks.settled(message.mid)
        self._fruitless = 0
        chunks = sum(message.topic == self._model_topic for message in dropped)  # the others are presences
        if chunks:
            self.refuse(chunks, "dropped", why)

    def session_ended(self) -> None:
        """Note that the connection is gone; chunks stay queued for the next session, metrics are lost."""
        self._metrics.clear()
        if self._chunks.waiting():
            self._fruitless += 1

    def _queue(self, client: Client, chunk: bytes) -> int | None:
        """Return the packet id of `chunk`, None where paho's own queue is full."""
        properties = None
        if client.protocol == MQTT5:
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            properties.MessageExpiryInterval = self._expiry_s
        info = client.publish(self._model_topic, chunk, qos=1, properties=properties)
        return None if info.rc == MQTT_ERR_QUEUE_SIZE else info.mid


class Window:
    """How many own messages the broker has not taken yet: opened by the caller's thread, settled by paho's."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._open: set[int] = set()
        self._settled: set[int] = set()

    def room(self, count: int) -> bool:
        """Return whether `count` more messages may be sent; when none is on its way, any number may."""
        with self._lock:
            self._open -= self._settled
            self._settled.clear()
            return not self._open or len(self._open) + count <= self._limit

    def opened(self, mid: int) -> None:
        """Note that message `mid` is on its way; its acknowledgement may have been faster."""
        with self._lock:
            self._open.add(mid)

    def settled(self, mid: int) -> None:
        """Note that message `mid`, of this window or not, is not on its way any more."""
        with self._lock:
            self._settled.add(mid)

    def clear(self) -> None:
        """Note that no message of this window is on its way any more."""
        with self._lock:
            self._settled |= self._open

    def waiting(self) -> int:
        """Return how many messages are on their way."""
        with self._lock:
            return len(self._open - self._settled)
