"""The process of the embedded broker: amqtt on a free loopback port, and a plugin that counts what passes.

Its parent owns it through two pipes: the first line out is the port; each line in is answered by a line of counts; when
the way in ends, the process ends. Nothing outlives it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from amqtt.broker import Broker
from amqtt.mqtt.publish import PublishPacket
from amqtt.plugins.base import BasePlugin

from sim_harness.broker_counts import BrokerCounts

if TYPE_CHECKING:
    from amqtt.session import Session

_CONFIG: Final[dict[str, Any]] = {
    "listeners": {"default": {"type": "tcp", "bind": "127.0.0.1:0"}},
    "plugins": {
        "amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True},
        "sim_harness.embedded.ModelCounter": {},
    },
}

_SETTLE_TURNS: Final = 10
"""Turns of the event loop from a packet's last byte to its being counted; amqtt 0.12 needs three."""


class ModelCounter(BasePlugin):  # type: ignore[misc]  # amqtt's types are not followed
    """Counts PUBLISH packets as amqtt reads and writes them."""

    def __init__(self, context: Any) -> None:
        super().__init__(context)
        self.counts = BrokerCounts()

    async def on_mqtt_packet_received(self, *, packet: Any, session: Session | None = None) -> None:
        """Count a packet from a client."""
        del session
        if isinstance(packet, PublishPacket):
            self.counts = self.counts.received(packet.topic_name, len(packet.data))

    async def on_mqtt_packet_sent(self, *, packet: Any, session: Session | None = None) -> None:
        """Count a packet to a client."""
        del session
        if isinstance(packet, PublishPacket):
            self.counts = self.counts.sent(packet.topic_name, len(packet.data))


class LoopbackBroker(Broker):  # type: ignore[misc]  # amqtt's types are not followed
    """amqtt's broker, which tells the port that the system chose, and sends no client what it didn't ask for."""

    @property
    def port(self) -> int:
        """Return the port it listens on."""
        port: int = self._servers["default"].instance.sockets[0].getsockname()[1]
        return port

    async def _publish_retained_messages_for_subscription(
        self, subscription: tuple[str, int], session: Session
    ) -> None:
        """Send retained messages to a subscriber only; amqtt 0.12 sends each new client all that anybody asked for."""
        if any(subscriber is session for subscriber, _ in self.subscriptions.get(subscription[0], ())):
            await super()._publish_retained_messages_for_subscription(subscription, session)


async def serve() -> None:
    """Run the broker until the parent closes our standard input."""
    broker = LoopbackBroker(_CONFIG)
    await broker.start()
    _tell({"port": broker.port})
    counter = broker.plugins_manager.get_plugin("ModelCounter")
    requests = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(requests), sys.stdin)
    while await requests.readline():
        for _ in range(_SETTLE_TURNS):
            await asyncio.sleep(0)
        _tell(asdict(counter.counts))


def _tell(answer: dict[str, int]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    asyncio.run(serve())
