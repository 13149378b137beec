"""Discovery over mDNS: say that we are here, hear who else is, find the broker. A hint, never the truth."""

from __future__ import annotations

from collections.abc import Mapping

from zeroconf import IPVersion
from zeroconf.asyncio import AsyncServiceInfo

from agent.core.types import NODE_ID, NodeId
from agent.errors import ConfigError
from agent.network.discovery import BrokerFound, DiscoveryFailed, NameConflict, PeerFound, PeerLost
from agent.network.mdns_link import Browse, MdnsLink, Service
from agent.network.outlet import Outlet
from agent.network.topics import no_name
from agent.network.transport import Post

__all__ = ["BrokerFound", "DiscoveryFailed", "Mdns", "NameConflict", "PeerFound", "PeerLost", "advertise_broker"]

NODE_TYPE = "_skiptrain._tcp.local."
BROKER_TYPE = "_mqtt._tcp.local."
PROTO = "1"
NO_PORT = 9
"""A node serves nothing: the port of discard, since some resolvers take 0 for a missing answer."""


class Mdns:
    """Announces one node and browses for its fleet, in one thread of its own.

    Posts PeerFound, PeerLost, BrokerFound (with `find_broker`), NameConflict and DiscoveryFailed.
    """

    def __init__(
        self, fleet: str, node: NodeId, post: Post, *, interfaces: tuple[str, ...] = (), find_broker: bool = False
    ) -> None:
        self._fleet = fleet
        self._me = node
        self._out = Outlet(post)
        self._nodes: dict[str, NodeId] = {}
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

    def dropped(self) -> int:
        """Return how many values the mailbox, and names the table, had no room for."""
        return self._out.stats().dropped

    def _wants(self, name: str) -> bool:
        """Return whether an instance may be of our fleet; a broker's name says nothing of it."""
        return name.endswith(BROKER_TYPE) or name.startswith(f"{self._fleet}-")

    def _found(self, name: str, info: AsyncServiceInfo) -> None:
        """Judge one resolved instance: its name, and the fleet, id and protocol in its TXT record must agree."""
        txt = _text(info.properties)
        address = next(iter(info.parsed_addresses(IPVersion.V4Only)), "")
        if txt.get("fleet") != self._fleet or not address or not info.port:
            return
        if name.endswith(BROKER_TYPE):
            self._out.emit(BrokerFound(address, info.port))
            return
        node = NodeId(txt.get("id", ""))
        right = NODE_ID.fullmatch(node) and name == f"{self._fleet}-{node}.{NODE_TYPE}" and txt.get("proto") == PROTO
        if right and node != self._me:
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
