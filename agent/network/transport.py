"""What every transport does and the values that it posts: the daemon knows this module, never a library."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, Protocol, TypeAlias

import msgspec

from agent.core.types import NODE_ID, NodeId
from agent.errors import ConfigError
from agent.network.topics import Topics

PRESENCE_BYTES = 1024
"""No presence is longer; a longer one is not even parsed."""
REASON_CHARS = 200
PACKET_OVERHEAD_BYTES = 256
"""A chunk of `max_packet_bytes - PACKET_OVERHEAD_BYTES` fits into one packet, whatever the names in its topic."""

Post: TypeAlias = Callable[[object], bool]
"""Puts one value into the daemon's mailbox: thread-safe, never blocks, False when the mailbox is full."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who speaks: one node of one fleet in one run."""

    fleet: str
    node: NodeId
    run_id: str
    run: str
    """Digest of the run's descriptor in hex; peers of another run are told by it."""
    agent: str
    """Version of the agent."""

    def topics(self) -> Topics:
        """Return the topics of the run, all names checked (ConfigError)."""
        topics = Topics(self.fleet, self.run_id)
        topics.status(self.node)
        if decode_presence(self.node, encode_presence(own_presence(self, ""))) is None:
            raise ConfigError(f"run digest {self.run!r} or agent version {self.agent!r}: no peer would accept it")
        return topics


@dataclass(frozen=True, slots=True)
class Presence:
    """One node's retained word on whether it is there; also its last will."""

    node: NodeId
    online: bool
    session: str
    """New with every connection: the late will of an old session is told from the present one by it."""
    ready: str
    """Digest in hex of the roster that the node is ready to start with; empty while it is not."""
    run: str
    agent: str
    reason: str = ""
    """Why it is offline; empty while it is online."""


@dataclass(frozen=True, slots=True)
class Connected:
    """A session with the broker began; `max_packet_bytes` is the broker's limit, None where it names none."""

    session: str
    max_packet_bytes: int | None
    protocol: str


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The session ended; the transport is already trying again."""

    reason: str


@dataclass(frozen=True, slots=True)
class Subscribed:
    """The models of exactly these peers now come in: the broker has acknowledged it."""

    peers: frozenset[NodeId]


@dataclass(frozen=True, slots=True)
class ModelChunk:
    """One message of a peer's model; nothing of the payload has been checked but its topic."""

    sender: NodeId
    payload: bytes


@dataclass(frozen=True, slots=True)
class PresenceSeen:
    """A peer said, or its last will says, whether it is there."""

    presence: Presence


@dataclass(frozen=True, slots=True)
class SessionConflict:
    """Somebody else uses our node id: most likely a cloned SD card."""

    detail: str
    count: int = 1
    """How many sessions of ours it was that somebody disputed, one soon after the other; 1 begins an episode."""


@dataclass(frozen=True, slots=True)
class TransportStats:
    """What one transport has counted since its start; bytes are of payloads."""

    published_messages: int = 0
    published_bytes: int = 0
    received_messages: int = 0
    received_bytes: int = 0
    dropped: int = 0
    """Posted values that the mailbox had no room for."""
    rejected: int = 0
    """Incoming messages with a bad topic, a bad presence, or of a peer that is not watched."""
    refused: int = 0
    """Own messages not sent: too large, no room among the unacknowledged ones, or refused by the broker."""
    reconnects: int = 0
    callback_errors: int = 0


class Transport(Protocol):
    """Moves presences and models between nodes; one thread calls all methods, and none of them blocks but `close`."""

    def start(self) -> None:
        """Begin to connect, for ever until `close`; posts Connected when there."""

    def watch(self, peers: frozenset[NodeId]) -> None:
        """Receive the models of exactly `peers`, also after each reconnect; posts Subscribed when the broker agreed."""

    def announce(self, ready: str) -> None:
        """Set the own retained presence; said again after each reconnect, once the subscriptions stand."""

    def publish(self, chunks: Sequence[bytes]) -> int:
        """Send the own model of one round, whole or not at all; return how many chunks were taken (0 = refused)."""

    def metrics(self, payload: bytes) -> None:
        """Send metrics to whom it may concern; lost when there is no connection."""

    def stats(self) -> TransportStats:
        """Return the counters."""

    def close(self, reason: str) -> None:
        """Say goodbye with `reason`, wait a few seconds at most for its delivery, and end; again: nothing."""


_Hex = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{0,64}\Z")]
_Version = Annotated[str, msgspec.Meta(pattern=r"\A[0-9A-Za-z.+_-]{0,32}\Z")]
_Reason = Annotated[str, msgspec.Meta(pattern=rf"\A[ -~]{{0,{REASON_CHARS}}}\Z")]


class _Wire(msgspec.Struct, forbid_unknown_fields=True):
    """A presence as JSON; the node stands in the topic, where the broker's access rules hold it."""

    online: bool
    session: _Hex
    ready: _Hex
    run: _Hex
    agent: _Version
    reason: _Reason


_decoder = msgspec.json.Decoder(_Wire)


def encode_presence(presence: Presence) -> bytes:
    """Return `presence` as compact JSON; what cannot be printed as ASCII in the reason becomes a question mark."""
    reason = "".join(c if " " <= c <= "~" else "?" for c in presence.reason[:REASON_CHARS])
    wire = _Wire(presence.online, presence.session, presence.ready, presence.run, presence.agent, reason)
    return msgspec.json.encode(wire)


def decode_presence(node_from_topic: str, payload: bytes) -> Presence | None:
    """Return the presence in `payload`, or None for anything that is not exactly one; never raises."""
    if len(payload) > PRESENCE_BYTES or not NODE_ID.fullmatch(node_from_topic):
        return None
    try:
        wire = _decoder.decode(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    node = NodeId(node_from_topic)
    return Presence(node, wire.online, wire.session, wire.ready, wire.run, wire.agent, wire.reason)


def own_presence(identity: Identity, session: str, *, ready: str = "", offline: str | None = None) -> Presence:
    """Return what a node says of itself: online, or `offline` with that reason."""
    online = offline is None
    return Presence(identity.node, online, session, ready, identity.run, identity.agent, offline or "")


def _mqtt(link: Any, identity: Identity, post: Post) -> Transport:
    from agent.network.mqtt import MqttTransport

    return MqttTransport(link, identity, post)


def _memory(link: Any, identity: Identity, post: Post) -> Transport:
    from agent.network.memory import MemoryTransport

    return MemoryTransport(link, identity, post)


TRANSPORTS: Mapping[str, Callable[[Any, Identity, Post], Transport]] = MappingProxyType(
    {"mqtt": _mqtt, "memory": _memory}
)
"""Name to maker; the first argument is the link: an MqttConfig, or a MemoryHub."""
