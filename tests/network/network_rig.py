"""What the network tests stand on: real brokers, a mailbox to wait on, one way to join any kind of transport."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
from hypothesis import settings

from agent.core.types import NodeId
from agent.network.mqtt import MqttConfig, MqttTransport
from agent.network.transport import TRANSPORTS, Identity, Subscribed, Transport

MOSQUITTO = "/usr/sbin/mosquitto"
WAIT_S = 20.0
RUN = "ab" * 16
ANY_TIME = settings(deadline=None, max_examples=50)
"""For properties: no timed assertion, whatever else the machine does."""

AMQTT = """
import asyncio, sys
from amqtt.broker import Broker

async def main(port):
    anonymous = {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}}
    listeners = {"default": {"type": "tcp", "bind": f"127.0.0.1:{port}"}}
    broker = Broker({"listeners": listeners, "plugins": anonymous})
    await broker.start()
    await asyncio.Event().wait()

asyncio.run(main(sys.argv[1]))
"""


class Mailbox:
    """What was posted, in order; `wait` blocks until something in it satisfies a predicate."""

    def __init__(self, room: int = 100_000) -> None:
        self.items: list[Any] = []
        self.room = room
        self._changed = threading.Condition()

    def post(self, item: object) -> bool:
        """Take `item` if there is room."""
        with self._changed:
            if len(self.items) >= self.room:
                return False
            self.items.append(item)
            self._changed.notify_all()
            return True

    def wait(self, wanted: Callable[[Any], bool], count: int = 1) -> list[Any]:
        """Return all items that are `wanted` once there are `count` of them."""
        with self._changed:
            if not self._changed.wait_for(lambda: sum(map(wanted, self.items)) >= count, WAIT_S):
                raise AssertionError(f"waited {WAIT_S} s in vain; last posted: {self.items[-8:]}")
            return [item for item in self.items if wanted(item)]

    def of(self, kind: type, count: int = 1) -> list[Any]:
        """Return all items of `kind` once there are `count` of them."""
        return self.wait(lambda item: isinstance(item, kind), count)


class LogBox(logging.Handler):
    """What was logged, as a mailbox to wait on."""

    def __init__(self) -> None:
        super().__init__()
        self.box = Mailbox()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the text."""
        self.box.post(record.getMessage())

    def wait(self, text: str) -> None:
        """Wait until something with `text` in it is logged."""
        self.box.wait(lambda line: text in line)

    def count(self, text: str) -> int:
        """Return how many lines so far have `text` in them."""
        return sum(text in line for line in self.box.items)


class Broker:
    """One broker process on a loopback port of its own; `start` after `stop` takes the same port again."""

    def __init__(self, command: Callable[[int], list[str]], log: Path) -> None:
        self.port = free_port()
        self._command = command
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Broker:
        """Start it and wait until it accepts connections."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command(self.port), stdout=log, stderr=log)
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline and self._process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return self
            threading.Event().wait(0.02)
        raise AssertionError(f"the broker did not start: {self._log.read_text()}")

    def signal(self, number: int) -> None:
        """Send a signal, such as SIGSTOP for a broker that stalls."""
        assert self._process is not None
        self._process.send_signal(number)

    def stop(self) -> None:
        """Kill it without a word to its clients, as a power cut does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


@dataclass
class Net:
    """A fleet on one link: makes transports of one kind, and closes what the test leaves open."""

    kind: str
    link: Any
    fleet: str = field(default_factory=lambda: f"f{uuid.uuid4().hex[:8]}")
    opened: list[Transport] = field(default_factory=list)
    old_broker: bool = False
    """It knows no MQTT 5: say so beforehand, since finding it out is slow and has a test of its own."""

    def close(self) -> None:
        """Close every transport that was made here."""
        for transport in self.opened:
            transport.close("end of the test")

    def make(self, node: str, box: Mailbox, *, run_id: str = "r1") -> Transport:
        """Return a transport that is not started yet."""
        me = Identity(self.fleet, NodeId(node), run_id, RUN, "0.1.0")
        transport = TRANSPORTS[self.kind](self.link, me, box.post)
        if self.old_broker and isinstance(transport, MqttTransport):
            transport._choice.refused()
        self.opened.append(transport)
        return transport

    def join(self, node: str, *watched: str, **options: Any) -> tuple[Transport, Mailbox]:
        """Return a started transport whose subscriptions stand."""
        box = Mailbox()
        transport = self.make(node, box, **options)
        transport.watch(frozenset(map(NodeId, watched)))
        transport.start()
        box.wait(lambda item: isinstance(item, Subscribed) and item.peers == frozenset(watched))
        return transport, box


def free_port() -> int:
    """Return a TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def mosquitto(folder: Path, *lines: str) -> Broker:
    """Return a mosquitto that is not started yet; `lines` are added to its configuration."""

    def command(port: int) -> list[str]:
        head = [f"listener {port} 127.0.0.1", "allow_anonymous true", "persistence false", "set_tcp_nodelay true"]
        root = ["user root"] if os.geteuid() == 0 else []
        limit = [] if any("max_packet_size" in line for line in lines) else ["max_packet_size 8388608"]
        path = folder / f"mosquitto-{port}.conf"
        path.write_text("\n".join([*head, *root, *limit, *lines, ""]))
        return [MOSQUITTO, "-c", str(path)]

    return Broker(command, folder / "mosquitto.log")


def amqtt(folder: Path) -> Broker:
    """Return an amqtt (MQTT 3.1.1 only) that is not started yet."""
    return Broker(lambda port: [sys.executable, "-c", AMQTT, str(port)], folder / "amqtt.log")


def config(broker: Broker, **options: Any) -> MqttConfig:
    """Return a configuration for `broker` that reconnects fast."""
    return MqttConfig("127.0.0.1", broker.port, reconnect_min_s=0.05, reconnect_max_s=0.2, **options)


class Stranger:
    """A client that follows no rule of ours: it publishes what it likes, and hears what it likes."""

    def __init__(self, broker: Broker, *topics: str) -> None:
        self.heard: list[paho.MQTTMessage] = []
        self._changed = threading.Condition()
        self._client = paho.Client(paho.CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        self._client.on_message = self._on_message
        self._client.on_connect = lambda client, *_: [client.subscribe(topic, 1) for topic in topics]
        self._client.connect("127.0.0.1", broker.port)
        self._client.loop_start()

    def close(self) -> None:
        """Leave, and end the thread."""
        self._client.disconnect()
        self._client.loop_stop()

    def say(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Publish and wait until the broker has it."""
        self._client.publish(topic, payload, qos=1, retain=retain).wait_for_publish(WAIT_S)

    def wait(self, wanted: Callable[[paho.MQTTMessage], bool]) -> paho.MQTTMessage:
        """Return the first message that is `wanted`."""
        with self._changed:
            assert self._changed.wait_for(lambda: any(map(wanted, self.heard)), WAIT_S), self.heard
            return next(filter(wanted, self.heard))

    def _on_message(self, _client: object, _userdata: object, message: paho.MQTTMessage) -> None:
        with self._changed:
            self.heard.append(message)
            self._changed.notify_all()
