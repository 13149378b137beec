"""Two agents with one node id, as after copying an SD card: real processes on a real mosquitto."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from msgspec.structs import replace as changed

from agent.config import MqttSection, RunSection, load_config
from agent.core.budget import Ledger
from agent.core.types import NodeId, Quality, Snapshot
from agent.journal import Journal
from agent.network.mqtt_client import EPISODE_S, MqttConfig, Twins, new_client
from agent.network.transport import Presence, decode_presence, encode_presence
from sim_harness.brokers import Broker, open_broker
from tests.device_rig import device_config, write_config
from tests.network.network_rig import Stranger
from tests.test_cli import running

USED = "node id a is used by another agent"


@pytest.fixture(scope="module")
def mosquitto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """Give a mosquitto to the tests of this file."""
    opened = open_broker("mosquitto", tmp_path_factory.mktemp("mosquitto"))
    yield opened
    opened.close()


def waiting(broker: Broker, folder: Path, fleet: str) -> Path:
    """Write the configuration of node a, which waits for a node b that never comes; return its path."""
    folder.mkdir()
    config = device_config(
        folder,
        run=RunSection(id="toy", rounds=6, roster=("a", "b"), start_timeout_s=600.0, round_deadline_s=600.0),
        mqtt=MqttSection(host=broker.host, port=broker.port),
    )
    config = changed(config, node=changed(config.node, fleet=fleet))
    return write_config(config, folder / "agent.yaml")


def begin(path: Path) -> Snapshot:
    """Let the journal say that the agent is in round 3 of its run; return what it says."""
    config = load_config(path)
    ledger = Ledger(6_396_991_200, charged_uj=47_036_700, windows=2)
    run = config.descriptor().digest().hex()
    snapshot = Snapshot(run, 3, True, False, ledger, None, 0, 272, 2, None, 0, Quality.NONE)
    journal = Journal(Path(config.node.state_dir))
    journal.save_state(snapshot)
    journal.close()
    return snapshot


def ledger(path: Path) -> Ledger:
    """Return the ledger in the journal of an agent."""
    journal = Journal(Path(load_config(path).node.state_dir))
    found = journal.recover().snapshot
    journal.close()
    assert found is not None
    return found.ledger


def test_of_two_agents_with_one_name_the_one_that_has_not_begun_ends(tmp_path: Path, mosquitto: Broker) -> None:
    """The copy of a device in its run ends with 69 and one line; the one in its run says it once and goes on."""
    original, copy = (waiting(mosquitto, tmp_path / name, "clones") for name in ("original", "copy"))
    kept = begin(original).ledger
    with running(original) as first:
        first.wait_for("connected to the broker")
        with running(copy) as second:
            assert second.end() == 69
            last = second.log.splitlines()[-1]
            assert re.fullmatch(rf"skiptrain-agent: {USED} \(.*\); give each device an id of its own \(node.id\)", last)
            assert "Traceback" not in second.log
        sessions = first.log.count("connected to the broker (")
        first.wait_for(rf"(?s)(connected to the broker \(.*){{{sessions + 1}}}")
        first.handle.send_signal(signal.SIGTERM)
        assert first.end() == 0
        assert first.log.count(USED) == 1
        assert "ended: stopped by SIGTERM" in first.log
    assert replace(ledger(original), limit_uj=kept.limit_uj) == kept


def take_over(broker: Broker, name: str) -> None:
    """Connect with an agent's name, as anybody can on an open broker, and leave without a word."""
    client = paho.Client(paho.CallbackAPIVersion.VERSION2, client_id=name, protocol=paho.MQTTv5)
    client.connect(broker.host, broker.port)
    while not client.is_connected():
        assert client.loop() == paho.MQTT_ERR_SUCCESS
    client.socket().close()


def test_whoever_takes_the_session_of_an_agent_in_its_run_does_not_end_it(tmp_path: Path, mosquitto: Broker) -> None:
    """Four sessions are taken, one more than ends an agent that has not begun: it comes back after each."""
    path = waiting(mosquitto, tmp_path / "robbed", "robbed")
    kept = begin(path).ledger
    topic, stolen = "skiptrain/v1/robbed/a/status", {"f" * 32}
    fake = encode_presence(Presence(NodeId("a"), True, "f" * 32, "", "00", "0.1.0"))
    with running(path) as process, closing(Stranger(mosquitto, topic)) as stranger:

        def session() -> str:
            """Return the agent's session once it is none that was taken: by then the agent has heard the fake word."""
            message = stranger.wait(lambda message: _said(message).online and _said(message).session not in stolen)
            return _said(message).session

        for _ in range(4):
            stolen.add(session())
            take_over(mosquitto, "a")
            stranger.say(topic, fake, retain=True)
        assert session() not in stolen
        process.handle.send_signal(signal.SIGTERM)
        assert process.end() == 0
        assert process.log.count(USED) == 1
    assert replace(ledger(path), limit_uj=kept.limit_uj) == kept


def _said(message: paho.MQTTMessage) -> Presence:
    presence = decode_presence("a", message.payload)
    assert presence is not None
    return presence


def test_twins_come_back_ever_later_and_forget_it_in_time() -> None:
    """Each dispute doubles the shortest wait up to the longest; a session counts once; a quiet time ends it."""
    now = [0.0]
    config = MqttConfig("h", reconnect_min_s=1.0, reconnect_max_s=30.0)
    client, twins = new_client(config, NodeId("a"), paho.MQTTv5), Twins(config, lambda: now[0])

    def wait() -> tuple[float, float]:
        twins.pace(client)
        return client._reconnect_min_delay, client._reconnect_max_delay

    assert 1 <= wait()[0] <= 2
    for number, least in enumerate((2, 4, 8, 16, 30, 30), 1):
        now[0] += EPISODE_S - 1
        assert twins.dispute(f"s{number}") == number
        assert twins.dispute(f"s{number}") == 0
        low, high = wait()
        assert least <= low <= min(2 * 2**number, 60)
        assert low <= high <= 60
    now[0] += EPISODE_S
    assert wait()[0] <= 2
    assert twins.dispute("s7") == 1
