"""Which models the broker sends us: what is watched, what was asked for, and what the broker granted."""

from __future__ import annotations

import logging
from typing import Any

from paho.mqtt.client import Client
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from agent.core.types import NodeId
from agent.network.mqtt_client import MQTT5
from agent.network.topics import Topics

_log = logging.getLogger(__name__)


class Subscriptions:
    """The subscriptions of one session after another; the caller holds the lock that orders them."""

    def __init__(self, topics: Topics) -> None:
        self._topics = topics
        self.watched: frozenset[NodeId] = frozenset()
        self.granted: frozenset[NodeId] = frozenset()
        self.settled = False
        """The broker has acknowledged what this session began with."""
        self._asked: dict[int, list[NodeId]] = {}
        """Packet id of each subscription that is not acknowledged yet, to the peers in it."""

    def begin(self, client: Client) -> None:
        """Subscribe anew in a new session: to all presences, and to the models of who is watched."""
        self.end()
        self._ask(client, sorted(self.watched), self._topics.every_status())

    def end(self) -> None:
        """Forget what the session before was granted."""
        self.granted, self.settled, self._asked = frozenset(), False, {}

    def change(self, peers: frozenset[NodeId], client: Client | None) -> bool:
        """Watch exactly `peers`; return whether the broker owes no acknowledgement (`client` None: no session)."""
        new, old = sorted(peers - self.watched), sorted(self.watched - peers)
        self.watched = peers
        self.granted &= peers
        if client is None:
            return False
        if old:
            client.unsubscribe([self._topics.model(peer) for peer in old])
        if new:
            self._ask(client, new)
        return not self._asked

    def acknowledged(self, mid: int, codes: list[ReasonCode]) -> bool:
        """Take the broker's answer to packet `mid`; return False where it belongs to a session before."""
        asked = self._asked.pop(mid, None)
        if asked is None:
            return False
        failed = sorted({str(code) for code in codes if code.is_failure})
        if failed:
            _log.warning(
                "the broker refuses some of our subscriptions: %s; look at its access rules", ", ".join(failed)
            )
        # from the end, because the presences come first in the first packet of a session
        answers = zip(reversed(asked), reversed(codes), strict=False)
        self.granted |= {peer for peer, code in answers if not code.is_failure and peer in self.watched}
        self.settled = True
        return True

    def _ask(self, client: Client, peers: list[NodeId], *first: str) -> None:
        """Subscribe with QoS 1, in one packet, to the topics `first` and to the models of `peers`."""
        five = client.protocol == MQTT5
        topics = [*first, *map(self._topics.model, peers)]
        filters: list[Any] = [(topic, SubscribeOptions(qos=1) if five else 1) for topic in topics]
        mid = client.subscribe(filters)[1]
        if mid is not None:  # else the connection has just gone, and the next session subscribes
            self._asked[mid] = peers
