"""Real brokers on loopback for the network tests."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from network_rig import Broker, LogBox, Net, amqtt, config, mosquitto

from agent.network.memory import MemoryHub

MakeNet: TypeAlias = Callable[..., tuple[Broker, Net]]


@pytest.fixture(scope="session")
def mosquitto_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """Give one mosquitto to all tests that do not break it."""
    broker = mosquitto(tmp_path_factory.mktemp("mosquitto")).start()
    yield broker
    broker.stop()


@pytest.fixture(scope="session")
def amqtt_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """Give one amqtt to all tests that do not break it."""
    broker = amqtt(tmp_path_factory.mktemp("amqtt")).start()
    yield broker
    broker.stop()


@pytest.fixture
def no_thread_left() -> Iterator[None]:
    """Fail where a test leaves a thread behind."""
    before = set(threading.enumerate())
    yield
    assert not [thread for thread in threading.enumerate() if thread not in before]


@pytest.fixture(params=["memory", "mosquitto", "amqtt"])
def net(request: pytest.FixtureRequest, no_thread_left: None) -> Iterator[Net]:
    """Give a fleet on each kind of link in turn."""
    del no_thread_left
    if request.param == "memory":
        net = Net("memory", MemoryHub())
    else:
        broker = request.getfixturevalue(f"{request.param}_broker")
        net = Net("mqtt", config(broker), old_broker=request.param == "amqtt")
    yield net
    net.close()


@pytest.fixture
def mqtt_net(mosquitto_broker: Broker, no_thread_left: None) -> Iterator[Net]:
    """Give a fleet on mosquitto, for what only MQTT 5 shows."""
    del no_thread_left
    net = Net("mqtt", config(mosquitto_broker))
    yield net
    net.close()


@pytest.fixture
def make_net(tmp_path: Path, no_thread_left: None) -> Iterator[MakeNet]:
    """Give a maker of fleets, each with a mosquitto of its own that the test may break; not started yet."""
    del no_thread_left
    with ExitStack() as stack:

        def make(*lines: str, **options: Any) -> tuple[Broker, Net]:
            broker = mosquitto(tmp_path, *lines)
            net = Net("mqtt", config(broker, **options))
            stack.callback(broker.stop)
            stack.callback(net.close)
            return broker, net

        yield make


@pytest.fixture
def log() -> Iterator[LogBox]:
    """Give what the network package logs."""
    handler, logger = LogBox(), logging.getLogger("agent.network")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)
