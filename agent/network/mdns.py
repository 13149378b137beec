"""Discovery over mDNS: say that we are here, hear who else is, find the broker. A hint, never the truth."""

from __future__ import annotations

from collections.abc import Mapping

from zeroconf import IPVersion
from zeroconf.asyncio import AsyncServiceInfo

from agent.core.types import NODE_ID, NodeId
from agent.errors import ConfigError
from agent.network.discovery import (
    MAX_STRANGERS,
    BrokerFound,
    DiscoveryFailed,
    NameConflict,
    OtherFleet,
    PeerFound,
    PeerLost,
)
from agent.network.mdns_link import Browse, MdnsLink, Service
from agent.network.outlet import Outlet
from agent.network.topics import no_name
from agent.network.transport import Post, TransportStats

__all__ = [
    "BrokerFound",
    "DiscoveryFailed",
    "Mdns",
    "NameConflict",
    "OtherFleet",
    "PeerFound",
    "PeerLost",
    "advertise_broker",
]

NODE_TYPE = "_skiptrain._tcp.local."
BROKER_TYPE = "_mqtt._tcp.local."
PROTO = "1"
NO_PORT = 9
"""A node serves nothing: the port of discard, since some resolvers take 0 for a missing answer."""


class Mdns:
    """Announces one node and browses for its fleet, in one thread of its own.

    Posts PeerFound, PeerLost, BrokerFound (with `find_broker`), OtherFleet, NameConflict and DiscoveryFailed.
    """

    def __init__(
        self, fleet: str, node: NodeId, post: Post, *, interfaces: tuple[str, ...] = (), find_broker: bool = False
    ) -> None:
        self._fleet = fleet
        self._me = node
        self._out = Outlet(post)
        self._nodes: dict[str, NodeId] = {}
        self._foreign: set[str] = set()
        types = (NODE_TYPE, BROKER_TYPE) if find_broker else (NODE_TYPE,)
        txt = {"txtvers": "1", "fleet": fleet, "id": node, "proto": PROTO, "role": "node"}
        service = Service(NODE_TYPE, _label(fleet, node), NO_PORT, txt)
        browse = Browse(types, self._wants, self._found, self._lost)
        self._link = MdnsLink(service, self._out, interfaces=interfaces, browse=browse)

    def start(self) -> None:
        """Begin in the background: announcing alone takes about two seconds."""
        self._link.start()

    def close(self) -> None:
        """Say goodbye and end the thread; idempotent."""
        self._link.close()

    def stats(self) -> TransportStats:
        """Return what was dropped (no room in mailbox or table) and rejected (a record that lies); the rest is 0."""
        return self._out.stats()

    def _wants(self, name: str) -> bool:
        """Return whether to look at an instance: it may be of our fleet, is a broker, or one of a few foreign nodes."""
        if name.endswith(BROKER_TYPE) or name.startswith(f"{self._fleet}-"):
            return True
        if len(self._foreign) < MAX_STRANGERS:
            self._foreign.add(name)
        return name in self._foreign

    def _found(self, name: str, info: AsyncServiceInfo) -> None:
        """Judge one resolved instance: its name, and the fleet, id and protocol in its TXT record must agree."""
        txt = _text(info.properties)
        address = next(iter(info.parsed_addresses(IPVersion.V4Only)), "")
        fleet, ours = txt.get("fleet", ""), txt.get("fleet") == self._fleet
        if not address or not info.port:
            return
        if name.endswith(BROKER_TYPE):
            if ours:
                self._out.emit(BrokerFound(address, info.port))
            return
        node = NodeId(txt.get("id", ""))
        named = NODE_ID.fullmatch(node) and NODE_ID.fullmatch(fleet) and name == f"{fleet}-{node}.{NODE_TYPE}"
        if not named or txt.get("proto") != PROTO:
            self._out.count(rejected=1)
        elif not ours:
            self._out.emit(OtherFleet(node, fleet))
        elif node != self._me:
            self._nodes[name] = node
            self._out.emit(PeerFound(node, address, info.port))

    def _lost(self, name: str) -> None:
        node = self._nodes.pop(name, None)
        if node is not None:
            self._out.emit(PeerLost(node))


def advertise_broker(fleet: str, port: int, post: Post, *, interfaces: tuple[str, ...] = ()) -> MdnsLink:
    """Announce a broker on this host in the background, until `close` of the result; posts only its troubles."""
    service = Service(BROKER_TYPE, _label(fleet, "broker"), port, {"txtvers": "1", "fleet": fleet, "role": "broker"})
    link = MdnsLink(service, Outlet(post), interfaces=interfaces)
    link.start()
    return link


def _label(fleet: str, name: str) -> str:
    """Return the DNS label of an instance: two names of 31 characters make the 63 that a label may have."""
    for word in (fleet, name):
        if not NODE_ID.fullmatch(word):
            raise ConfigError(f"mDNS: {no_name(word)}")
    return f"{fleet}-{name}"


def _text(properties: Mapping[bytes, bytes | None]) -> dict[str, str]:
    """Return a TXT record as text; whatever is not ASCII cannot be ours."""
    return {
        key.decode("ascii", "replace"): (value or b"").decode("ascii", "replace") for key, value in properties.items()
    }
