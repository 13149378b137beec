"""Everything that connects a node to others: discovery, membership, transport and wire, turned into machine events."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import singledispatchmethod
from typing import TYPE_CHECKING

from agent import __version__
from agent.config import AgentConfig
from agent.core import effects as fx
from agent.core import events as ev
from agent.core.types import NodeId
from agent.core.wire import MAX_MESSAGE_BYTES, Assembler, Format, Refused, encode
from agent.errors import NetworkError
from agent.network import transport as net
from agent.network.discovery import (
    MAX_STRANGERS,
    BrokerFound,
    DiscoveryFailed,
    NameConflict,
    OtherFleet,
    PeerFound,
    PeerLost,
)
from agent.network.membership import MAX_NODES, Membership, PeerView

if TYPE_CHECKING:
    from agent.network.mdns import Mdns

_log = logging.getLogger(__name__)

TransportMaker = Callable[[str, int], net.Transport]
"""Makes the transport to a broker at (host, port)."""


class Reach:
    """One node's view of its fleet, and its voice in it; lives in the daemon's thread."""

    def __init__(
        self,
        config: AgentConfig,
        form: Format,
        post: net.Post,
        make_transport: TransportMaker,
    ) -> None:
        self._config, self._form, self._make_transport = config, form, make_transport
        static = {*config.run.roster, *config.discovery.peers} - {config.node.id}
        self._membership = Membership(config.node_id, [NodeId(node) for node in sorted(static)])
        self._assembler = Assembler(form)
        self._run = form.run.hex()
        self._other_runs: set[str] = set()
        self._other_fleets: set[str] = set()
        self._live: dict[NodeId, str] = {}
        self._wish: fx.WatchNeighbours | None = None
        self._transport: net.Transport | None = None
        self._max_message = config.mqtt.max_message_bytes
        self.connection = "looking for a broker"
        self._address = ("", 0)
        self._online = False
        self._mdns: Mdns | None = None
        if config.discovery.mdns:
            from agent.network.mdns import Mdns  # zeroconf and asyncio take memory that a device without mDNS can save

            self._mdns = Mdns(
                config.node.fleet,
                config.node_id,
                post,
                interfaces=config.discovery.interfaces,
                find_broker=not config.mqtt.host,
            )

    def start(self) -> None:
        """Begin to look for peers and to connect; returns at once."""
        if self._mdns is not None:
            self._mdns.start()
        if self._config.mqtt.host:
            self._connect(self._config.mqtt.host, self._config.mqtt.port)
        else:
            _log.info("looking for a broker of fleet %s over mDNS", self._config.node.fleet)

    def watch(self, wish: fx.WatchNeighbours) -> None:
        """Listen to exactly these peers, and say so once it holds."""
        self._wish = wish
        self._assembler.keep_senders(wish.peers)
        if self._transport is not None:
            self._transport.watch(wish.peers)

    def publish(self, effect: fx.PublishUpdate) -> None:
        """Share the node's model of a round."""
        if self._transport is None:
            return
        try:
            chunks = encode(effect.update, self._form, self._max_message)
        except ValueError as error:
            raise NetworkError(
                f"the model does not fit into the broker's messages: {error}; raise the broker's packet size, or "
                "mqtt.max_message_bytes"
            ) from None
        self._transport.publish(chunks)

    def peers(self, now: float) -> tuple[PeerView, ...]:
        """Return all nodes that were ever heard of, with each one's sources and their ages."""
        return self._membership.peers(now)

    def stats(self) -> net.TransportStats:
        """Return what the transport has counted, with what discovery dropped and rejected."""
        stats = self._transport.stats() if self._transport is not None else net.TransportStats()
        if self._mdns is None:
            return stats
        found = self._mdns.stats()
        return replace(stats, dropped=stats.dropped + found.dropped, rejected=stats.rejected + found.rejected)

    def close(self, reason: str) -> None:
        """Say goodbye everywhere."""
        if self._transport is not None:
            self._transport.close(reason)
        if self._mdns is not None:
            self._mdns.close()

    def _connect(self, host: str, port: int) -> None:
        self.connection = f"connecting to {host}:{port}"
        self._address = (host, port)
        self._transport = self._make_transport(host, port)
        if self._wish is not None:
            self._transport.watch(self._wish.peers)
        self._transport.start()

    # --- what the network's threads posted, one handler a kind

    @singledispatchmethod
    def take(self, _item: object, _now: float) -> Iterator[ev.Event]:
        """Return the machine events that one posted item means."""
        return iter(())

    @take.register
    def _chunk(self, item: net.ModelChunk, _now: float) -> Iterator[ev.Event]:
        if self._wish is None or item.sender not in self._wish.peers:
            yield ev.UpdateRejected("not a neighbour")  # it waited in the mailbox while the roster changed
            return
        try:
            header, update = self._assembler.add(item.sender, item.payload)
        except Refused as refusal:
            yield ev.UpdateRejected(refusal.reason)
            return
        yield ev.UpdateReceived(update) if update is not None else ev.RoundAnnounced(header.sender, header.round)

    @take.register
    def _presence(self, item: net.PresenceSeen, now: float) -> Iterator[ev.Event]:
        presence = item.presence
        if presence.online and presence.run != self._run:
            if presence.node not in self._other_runs and len(self._other_runs) < MAX_NODES:
                _log.warning(
                    "%s takes part in another run: run, model, policy or topology differ here and there", presence.node
                )
                self._other_runs.add(presence.node)
            return
        self._membership.presence(presence, now)
        yield from self._changes()

    @take.register
    def _found(self, item: PeerFound, now: float) -> Iterator[ev.Event]:
        self._membership.found(item.node, item.source, now, item.address)
        yield from self._changes()

    @take.register
    def _lost(self, item: PeerLost, now: float) -> Iterator[ev.Event]:
        self._membership.lost(item.node, "mdns", now)
        yield from self._changes()

    @take.register
    def _broker(self, item: BrokerFound, _now: float) -> Iterator[ev.Event]:
        address = (item.host, item.port)
        if self._transport is None or (address != self._address and not self._online):
            _log.info("broker of fleet %s found over mDNS at %s:%d", self._config.node.fleet, *address)
            if self._transport is not None:
                self._transport.close("the broker has moved")
            self._connect(*address)
        return iter(())

    @take.register
    def _connected(self, item: net.Connected, _now: float) -> Iterator[ev.Event]:
        self.connection, self._online = f"connected ({item.protocol})", True
        _log.info("connected to the broker (%s)", item.protocol)
        limit = item.max_packet_bytes
        allowed = MAX_MESSAGE_BYTES if limit is None else limit - net.PACKET_OVERHEAD_BYTES
        self._max_message = min(self._config.mqtt.max_message_bytes, allowed)
        return iter(())

    @take.register
    def _disconnected(self, item: net.Disconnected, _now: float) -> Iterator[ev.Event]:
        self.connection, self._online = f"not connected: {item.reason}", False
        _log.warning("not connected to the broker: %s; trying again", item.reason)
        return iter(())

    @take.register
    def _subscribed(self, item: net.Subscribed, _now: float) -> Iterator[ev.Event]:
        if self._wish is not None and self._transport is not None and item.peers == self._wish.peers:
            self._transport.announce(self._wish.ready)
        return iter(())

    @take.register
    def _twin(self, item: net.SessionConflict, _now: float) -> Iterator[ev.Event]:
        if item.count == 1:
            _log.error("%s", self.twin(item))
        return iter(())

    def twin(self, item: net.SessionConflict | NameConflict) -> str:
        """Return what to say of another device with our name."""
        me = self._config.node.id
        return f"node id {me} is used by another agent ({item.detail}); give each device an id of its own (node.id)"

    @take.register
    def _double(self, item: NameConflict, _now: float) -> Iterator[ev.Event]:
        _log.error("%s", self.twin(item))
        return iter(())

    @take.register
    def _other_fleet(self, item: OtherFleet, _now: float) -> Iterator[ev.Event]:
        if not self._live and item.fleet not in self._other_fleets and len(self._other_fleets) < MAX_STRANGERS:
            self._other_fleets.add(item.fleet)
            me = self._config.node.fleet
            _log.warning(
                "%s of fleet %s is on this network, and nobody of fleet %s so far: is node.fleet right?",
                item.node,
                item.fleet,
                me,
            )
        return iter(())

    @take.register
    def _no_discovery(self, item: DiscoveryFailed, _now: float) -> Iterator[ev.Event]:
        _log.error("mDNS does not work here: %s; peers come from discovery.peers and run.roster only", item.reason)
        return iter(())

    def _changes(self) -> Iterator[ev.Event]:
        live = self._membership.live()
        if live != self._live:
            self._live = live
            yield ev.PeersChanged(dict(live))


def identity(config: AgentConfig, run: bytes) -> net.Identity:
    """Return how this node introduces itself."""
    return net.Identity(config.node.fleet, config.node_id, config.run.id, run.hex(), __version__)
