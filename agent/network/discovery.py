"""What discovery has to say, as values; they need no zeroconf, so that a device without mDNS never loads it."""

from __future__ import annotations

from dataclasses import dataclass

from agent.core.types import NodeId

MAX_STRANGERS = 32
"""Nodes of other fleets that are looked at, for a word on a wrong `node.fleet`; the link may have any number."""


@dataclass(frozen=True, slots=True)
class PeerFound:
    """A node of our fleet is on the link; its word, not proven."""

    node: NodeId
    address: str
    port: int
    source: str = "mdns"


@dataclass(frozen=True, slots=True)
class PeerLost:
    """A node said goodbye, or its records expired."""

    node: NodeId
    source: str = "mdns"


@dataclass(frozen=True, slots=True)
class OtherFleet:
    """A node of another fleet is on the link: that is all right, or one of the two has the wrong `node.fleet`."""

    node: NodeId
    fleet: str


@dataclass(frozen=True, slots=True)
class BrokerFound:
    """Somebody on the link offers a broker for our fleet; only TLS can prove it."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class NameConflict:
    """Another host on the link has our instance name: we go on without being announced."""

    detail: str


@dataclass(frozen=True, slots=True)
class DiscoveryFailed:
    """There is no multicast here now; it is tried again in the background."""

    reason: str
