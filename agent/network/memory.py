"""The transport of tests: a hub in one process with a broker's semantics, where delivery is immediate and in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from agent.core.types import NodeId
from agent.errors import ContractViolation
from agent.network.outlet import Outlet
from agent.network.transport import (
    PACKET_OVERHEAD_BYTES,
    Connected,
    Disconnected,
    Identity,
    ModelChunk,
    Post,
    PresenceSeen,
    SessionConflict,
    Subscribed,
    TransportStats,
    decode_presence,
    encode_presence,
    own_presence,
)

Deliver: TypeAlias = Callable[[NodeId, NodeId, bytes], bool]
"""(sender, receiver, payload) -> whether it arrives; for presences and models alike."""


class MemoryHub:
    """The broker: retained presences, wills, exact subscriptions. One thread drives the hub and all its members."""

    def __init__(self, *, deliver: Deliver | None = None, max_packet_bytes: int | None = None) -> None:
        self.max_packet_bytes = max_packet_bytes
        self._deliver = deliver
        self._members: dict[tuple[str, NodeId], MemoryTransport] = {}
        self._retained: dict[tuple[str, NodeId], bytes] = {}
        self._sessions = 0

    def join(self, member: MemoryTransport) -> str:
        """Take `member` in and return its session; who holds its node id already is thrown out, as a broker does."""
        key = member.identity.fleet, member.identity.node
        other = self._members.get(key)
        if other is not None:
            self.leave(other, will="connection lost")
            other.lost("session taken over")
            other.conflict("the hub gave our session to another client with our node id")
        self._members[key] = member
        self._sessions += 1
        return f"{self._sessions:x}"

    def leave(self, member: MemoryTransport, *, will: str | None) -> None:
        """Let `member` go; `will` is the reason in its last will, None where it has said goodbye itself."""
        if will is not None:
            self.present(member, encode_presence(own_presence(member.identity, member.session, offline=will)))
        self._members.pop((member.identity.fleet, member.identity.node), None)

    def replay(self, member: MemoryTransport) -> None:
        """Deliver the retained presences of the fleet to `member`, in node order."""
        for (fleet, node), payload in sorted(self._retained.items()):
            if fleet == member.identity.fleet and self._arrives(node, member, payload):
                member.hear(node, payload)

    def present(self, sender: MemoryTransport, payload: bytes) -> None:
        """Retain and deliver the presence of `sender`."""
        self._retained[sender.identity.fleet, sender.identity.node] = payload
        for member in self._fleet(sender):
            if self._arrives(sender.identity.node, member, payload):
                member.hear(sender.identity.node, payload)

    def share(self, sender: MemoryTransport, chunk: bytes) -> None:
        """Deliver one chunk to who watches `sender` in its run."""
        for member in self._fleet(sender):
            watches = member.identity.run_id == sender.identity.run_id and sender.identity.node in member.watched
            if watches and self._arrives(sender.identity.node, member, chunk):
                member.receive(sender.identity.node, chunk)

    def restart(self) -> None:
        """Be a broker that dies without a word, forgets everything, and comes back; all members find it again."""
        members = list(self._members.values())
        self._members.clear()
        self._retained.clear()
        for member in members:
            member.lost("the hub restarts")
        for member in members:
            member.connect()

    def _fleet(self, sender: MemoryTransport) -> list[MemoryTransport]:
        """Return the other members of the sender's fleet, in node order."""
        fleet = sender.identity.fleet
        return [member for key, member in sorted(self._members.items()) if key[0] == fleet and member is not sender]

    def _arrives(self, sender: NodeId, member: MemoryTransport, payload: bytes) -> bool:
        return self._deliver is None or self._deliver(sender, member.identity.node, payload)


class MemoryTransport:
    """One member of a hub."""

    def __init__(self, hub: MemoryHub, identity: Identity, post: Post) -> None:
        identity.topics()
        self.identity = identity
        self.session = ""
        self.watched: frozenset[NodeId] = frozenset()
        self._hub = hub
        self._out = Outlet(post)
        self._ready = ""
        self._connected = False
        self._closed = False

    # ---- the Transport

    def start(self) -> None:
        """Join the hub."""
        if self.session or self._closed:
            raise ContractViolation("this transport was started or closed before: make a new one")
        self.connect()

    def watch(self, peers: frozenset[NodeId]) -> None:
        """Receive the models of exactly `peers`."""
        self.watched = peers
        if self._connected:
            self._out.emit(Subscribed(peers))

    def announce(self, ready: str) -> None:
        """Set the own retained presence."""
        self._ready = ready
        if self._connected:
            self._say()

    def publish(self, chunks: Sequence[bytes]) -> int:
        """Deliver the chunks at once, all or none."""
        limit = self._hub.max_packet_bytes
        too_large = limit is not None and max(map(len, chunks), default=0) + PACKET_OVERHEAD_BYTES > limit
        if not self._connected or too_large:
            self._out.count(refused=len(chunks))
            return 0
        for chunk in chunks:
            self._out.count(published_messages=1, published_bytes=len(chunk))
            self._hub.share(self, chunk)
        return len(chunks)

    def metrics(self, payload: bytes) -> None:
        """Count only: nobody in the hub listens to metrics."""
        if self._connected:
            self._out.count(published_messages=1, published_bytes=len(payload))
        else:
            self._out.count(refused=1)

    def stats(self) -> TransportStats:
        """Return the counters."""
        return self._out.stats()

    def close(self, reason: str) -> None:
        """Say goodbye and leave."""
        if self._connected:
            self._hub.present(self, encode_presence(own_presence(self.identity, self.session, offline=reason)))
            self._hub.leave(self, will=None)
        self._connected, self._closed = False, True

    # ---- what tests and the hub do to it

    def crash(self) -> None:
        """Vanish without a goodbye: the hub publishes the will, and nothing is posted here any more."""
        if self._connected:
            self._hub.leave(self, will="connection lost")
        self._connected, self._closed = False, True

    def connect(self) -> None:
        """Begin a session: subscriptions first, then the presence, as over MQTT."""
        again = bool(self.session)
        self.session = self._hub.join(self)
        self._connected = True
        self._out.count(reconnects=int(again))
        self._out.emit(Connected(self.session, self._hub.max_packet_bytes, "memory"))
        self._hub.replay(self)
        self._say()
        self._out.emit(Subscribed(self.watched))

    def lost(self, reason: str) -> None:
        """Take note that the hub dropped us."""
        self._connected = False
        self._out.emit(Disconnected(reason))

    def conflict(self, detail: str) -> None:
        """Take note that somebody else uses our node id."""
        self._out.emit(SessionConflict(detail))

    def hear(self, node: NodeId, payload: bytes) -> None:
        """Take a presence from the hub."""
        self._received(payload)
        presence = decode_presence(node, payload)
        if presence is None:
            self._out.count(rejected=1)
        elif node != self.identity.node:
            self._out.emit(PresenceSeen(presence))

    def receive(self, sender: NodeId, chunk: bytes) -> None:
        """Take a chunk of a watched peer's model from the hub."""
        self._received(chunk)
        self._out.emit(ModelChunk(sender, chunk))

    def _received(self, payload: bytes) -> None:
        self._out.count(received_messages=1, received_bytes=len(payload))

    def _say(self) -> None:
        self._hub.present(self, encode_presence(own_presence(self.identity, self.session, ready=self._ready)))
