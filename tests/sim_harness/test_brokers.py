"""The harness's brokers: really started, really used by paho, counted exactly, and gone after close."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from agent.errors import ConfigError, NetworkError
from sim_harness import mosquitto
from sim_harness.broker_counts import BrokerCounts
from sim_harness.brokers import BROKERS, open_broker

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sim_harness.brokers import Broker

TIMEOUT_S = 20.0
MODEL = "skiptrain/v1/lab/n{}/model/run1"
NOT_MODELS = ("skiptrain/v1/lab/n0/status", "skiptrain/v1/lab/n0/model/run1/extra", "other/v1/lab/n0/model/run1")

every_own_broker = pytest.mark.parametrize("kind", sorted(BROKERS))


@contextmanager
def client(broker: Broker, *filters: str) -> Iterator[tuple[mqtt.Client, threading.Semaphore]]:
    """Yield a connected client, and a semaphore that is released for each message it gets."""
    ready, messages = threading.Event(), threading.Semaphore(0)
    paho = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv311)
    paho.on_subscribe = lambda *_: ready.set()
    paho.on_message = lambda *_: messages.release()
    paho.on_connect = lambda *_: None if subscribe(paho, filters) else ready.set()
    paho.connect(broker.host, broker.port)
    paho.loop_start()
    try:
        assert ready.wait(TIMEOUT_S)
        yield paho, messages
    finally:
        paho.disconnect()
        paho.loop_stop()


def subscribe(paho: mqtt.Client, filters: tuple[str, ...]) -> bool:
    """Ask for all `filters`; False if there are none."""
    if filters:
        paho.subscribe([(topic, 1) for topic in filters])
    return bool(filters)


def process_of(broker: Any) -> subprocess.Popen[bytes]:
    """Return the process behind a broker that we started."""
    process: subprocess.Popen[bytes] = broker._process
    return process


def publish(paho: mqtt.Client, topic: str, size: int, *, retain: bool = False) -> None:
    """Publish `size` bytes and wait until the broker has them."""
    info = paho.publish(topic, bytes(size), qos=1, retain=retain)
    info.wait_for_publish(TIMEOUT_S)
    assert info.is_published()


@every_own_broker
def test_counts_are_exactly_the_model_messages_and_payload_bytes(kind: str, tmp_path: Path) -> None:
    """Each model message counts once in and once a subscriber out; other topics and the packets' heads never do."""
    with (
        closing(open_broker(kind, tmp_path)) as broker,
        client(broker) as (publisher, _),
        client(broker, "skiptrain/v1/lab/+/model/#", "other/#") as (_, first),
        client(broker, MODEL.format(0), MODEL.format(1)) as (_, second),
    ):
        assert broker.counts() == BrokerCounts()
        for size in (1000, 250_000, 0):
            for node in (0, 1):
                publish(publisher, MODEL.format(node), size)
        for topic in NOT_MODELS:
            publish(publisher, topic, 77)
        assert all(first.acquire(timeout=TIMEOUT_S) for _ in range(6 + 2))
        assert all(second.acquire(timeout=TIMEOUT_S) for _ in range(6))
        assert broker.counts() == BrokerCounts(6, 502_000, 12, 1_004_000)


@every_own_broker
def test_close_leaves_no_process_and_no_thread(kind: str, tmp_path: Path) -> None:
    """After close, and a second close, everything that the broker started is gone."""
    before = set(threading.enumerate())
    broker = open_broker(kind, tmp_path / "made" / "when needed")
    assert broker.name == kind
    broker.close()
    broker.close()
    with pytest.raises(ProcessLookupError):
        os.kill(process_of(broker).pid, 0)
    assert set(threading.enumerate()) == before
    with pytest.raises(NetworkError):
        open_broker(f"{broker.host}:{broker.port}", tmp_path)


@every_own_broker
def test_the_counts_of_a_dead_broker_are_an_error(kind: str, tmp_path: Path) -> None:
    """A broker that died is reported as such; no number is made up."""
    with closing(open_broker(kind, tmp_path)) as broker:
        process_of(broker).kill()
        process_of(broker).wait()
        with pytest.raises(NetworkError, match=f"{kind}.* does not answer"):
            broker.counts()


@every_own_broker
def test_a_newcomer_gets_only_the_retained_messages_it_asked_for(kind: str, tmp_path: Path) -> None:
    """A retained status that another node subscribed to is not sent to who did not (amqtt alone would)."""
    with (
        closing(open_broker(kind, tmp_path)) as broker,
        client(broker, "skiptrain/v1/lab/+/status") as (one, _),
    ):
        for node in ("a", "b"):
            publish(one, f"skiptrain/v1/lab/{node}/status", 2, retain=True)
        with client(broker, "skiptrain/v1/lab/b/status") as (two, messages):
            assert messages.acquire(timeout=TIMEOUT_S)
            publish(two, "skiptrain/v1/lab/b/status", 2)
            assert messages.acquire(timeout=TIMEOUT_S)
            assert not messages.acquire(blocking=False)


def test_the_embedded_broker_ends_with_its_parent(tmp_path: Path) -> None:
    """When the pipe from the parent closes, as it does when the parent is killed, the process ends by itself."""
    with closing(open_broker("embedded", tmp_path)) as broker, client(broker, MODEL.format(0)):
        way_in = process_of(broker).stdin
        assert way_in is not None
        way_in.close()
        assert process_of(broker).wait(TIMEOUT_S) == 0


def test_a_broker_of_others_is_reached_but_not_counted(tmp_path: Path) -> None:
    """HOST:PORT gives the broker that runs there, no counts, and leaves it running."""
    with closing(open_broker("mosquitto", tmp_path)) as own:
        given = open_broker(f"127.0.0.1:{own.port}", tmp_path)
        assert (given.host, given.port, given.name) == ("127.0.0.1", own.port, f"127.0.0.1:{own.port}")
        assert given.counts() is None
        given.close()
        assert own.counts() == BrokerCounts()


@pytest.mark.parametrize("kind", ["rabbit", "host:", ":1883", "host:70000", "host:1a", "host:0"])
def test_a_broker_that_is_none_names_the_choices(kind: str, tmp_path: Path) -> None:
    """A wrong word is a configuration error that lists what can be said instead."""
    with pytest.raises(ConfigError, match=r"'embedded', 'mosquitto' or HOST:PORT"):
        open_broker(kind, tmp_path)


def test_a_missing_mosquitto_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the program the error names the command that installs it and the broker that needs none."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(mosquitto, "SBIN", ())
    with pytest.raises(ConfigError, match=r"apt-get install mosquitto.*'embedded'"):
        open_broker("mosquitto", tmp_path)


def test_a_port_taken_in_the_meantime_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losing the race for a free port costs a retry, not the run."""
    with closing(open_broker("mosquitto", tmp_path / "first")) as first:
        ports = iter([first.port, mosquitto.free_port()])
        monkeypatch.setattr(mosquitto, "free_port", lambda: next(ports))
        with closing(open_broker("mosquitto", tmp_path / "second")) as second:
            assert second.port != first.port
            assert second.counts() == BrokerCounts()


def test_a_mosquitto_that_refuses_to_start_shows_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of the broker's log is in the error."""
    monkeypatch.setattr(mosquitto, "_CONFIG", "no_such_option {port}\n")
    with pytest.raises(NetworkError, match=r"mosquitto\.conf(.|\n)*no_such_option"):
        open_broker("mosquitto", tmp_path)


def test_a_log_line_of_another_form_is_an_error_not_a_zero() -> None:
    """If a later mosquitto words its PUBLISH lines otherwise, counting refuses rather than undercounts."""
    says = "Received PUBLISH from n0: topic=skiptrain/v1/lab/n0/model/run1 bytes=5"
    with subprocess.Popen([sys.executable, "-c", f"import sys; sys.stderr.write({says!r})"], stderr=-1) as process:
        log = mosquitto._Log(process)
        log.run()
    with pytest.raises(NetworkError, match="unknown way"):
        log.counts()
