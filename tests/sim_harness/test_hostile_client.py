"""A client that follows no rule of ours, on the broker of a real fleet: the run is the same as without it."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from contextlib import closing
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import paho.mqtt.client as paho
from rich.console import Console

from agent.core.types import NodeId, params_digest
from agent.core.wire import HEADER_BYTES
from agent.network.transport import Presence, encode_presence
from sim_harness.brokers import open_broker
from sim_harness.live import run_live
from sim_harness.scenario import load_scenario
from tests.core.wire_bytes import AT, patched
from tests.fuzz.payloads import seeded

SETTINGS = (
    *("nodes=3", "rounds=8", "topology.degree=2", "energy.budget_scale=0.02"),
    *("discovery.mdns=false", "discovery.static=true", "engine.workers=1"),
)
SAME = ("node", "round", "kind", "decision", "reason", "energy_j", "loss", "digest_published", "mixed", "error")
NODES = ("n000", "n001", "n002")
TO_BE_COUNTED = {"truncated", "not ours", "checksum", "other sender", "other run", "wrong size", "not finite"}
GIANT_BYTES = 3_000_000
"""More than an agent takes in one packet; a third of it is still more than any chunk."""


class Hostile:
    """Answers each model that a node shares with lies of all kinds, under its own, the nodes' and unknown names."""

    def __init__(self, port: int) -> None:
        self.heard = 0
        self._rng = seeded(3)
        self._client = paho.Client(paho.CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        self._client.on_connect = lambda client, *_: client.subscribe("skiptrain/v1/+/+/model/+", 1)
        self._client.on_message = self._on_message
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()

    def close(self) -> None:
        """Leave, and end the thread."""
        self._client.disconnect()
        self._client.loop_stop()

    def _on_message(self, client: paho.Client, _userdata: object, message: paho.MQTTMessage) -> None:
        *head, node, _, run = message.topic.split("/")
        if node not in NODES or len(message.payload) < HEADER_BYTES or message.properties is None:
            return
        if getattr(message.properties, "UserProperty", None):
            return  # one of our own
        self.heard += 1
        for name, kind, payload in self._lies(NodeId(node), message.payload):
            told = paho.Properties(paho.PacketTypes.PUBLISH)
            told.UserProperty = ("from", "hostile")
            client.publish("/".join((*head, name, kind.format(run=run))), payload, qos=1, properties=told)

    def _lies(self, node: NodeId, chunk: bytes) -> Iterator[tuple[str, str, bytes]]:
        """Yield (node of the topic, rest of the topic, payload)."""
        rng, other = self._rng, NODES[(NODES.index(node) + 1) % len(NODES)]
        numbers = np.full((len(chunk) - HEADER_BYTES) // 4, np.nan, np.float32)
        spoiled = chunk[:HEADER_BYTES] + numbers.tobytes()
        for payload in (
            rng.randbytes(rng.randrange(1_000)),
            rng.randbytes(GIANT_BYTES),
            rng.randbytes(GIANT_BYTES // 2),
            chunk[: rng.randrange(HEADER_BYTES)],
            chunk[: rng.randrange(HEADER_BYTES, len(chunk))],
            chunk[:-1] + bytes([chunk[-1] ^ 1]),
            patched(chunk, AT["run"], b"another"),
            patched(chunk, AT["n_params"], b"\xff" * 4),
            patched(spoiled, AT["digest"], bytes.fromhex(params_digest(numbers))),
        ):
            yield node, "model/{run}", payload
        yield other, "model/{run}", chunk
        yield "stranger", "model/{run}", patched(chunk, AT["sender"], b"stranger".ljust(32, b"\0"))
        yield "stranger", "model/{run}", chunk
        yield node, "model/{run}/more", chunk
        late_will = encode_presence(Presence(node, False, "ab" * 16, "", "cd" * 16, "0.1.0", "gone"))
        for name in (node, "stranger", "No-Name", f"s{rng.randrange(10_000)}"):
            yield name, "status", late_will
            yield name, "status", b'{"online": tru'
            yield name, "status", b"[" * 100_000
        yield "stranger", "status", late_will.replace(b"false", b"true")


def run(out: Path, address: str) -> tuple[dict[str, Any], list[tuple[str, ...]], list[dict[str, Any]]]:
    """Run the fleet; return its summary, its rounds without times, and the last status page of each node."""
    run_live(load_scenario("demo", SETTINGS), address, out, Console(file=StringIO()))
    with (out / "rounds.csv").open(newline="", encoding="utf-8") as file:
        rounds = [tuple(row[key] for key in SAME) for row in csv.DictReader(file)]
    pages = [json.loads((out / "nodes" / node / "run" / "status.json").read_text()) for node in NODES]
    logs = "".join(path.read_text() for path in out.glob("nodes/*/agent.log"))
    assert "ended: all rounds are done" in logs
    assert "Traceback" not in logs
    return json.loads((out / "summary.json").read_text()), rounds, pages


def test_a_hostile_client_changes_nothing_but_counters(tmp_path: Path) -> None:
    """Decisions, models, joules and params_sha256 are those of a run without it; every node counts what it refused."""
    with closing(open_broker("mosquitto", tmp_path / "broker")) as broker:
        address = f"{broker.host}:{broker.port}"
        calm, calm_rounds, calm_pages = run(tmp_path / "calm", address)
        with closing(Hostile(broker.port)) as hostile:
            lied, lied_rounds, lied_pages = run(tmp_path / "lied", address)
        assert hostile.heard
    assert lied_rounds == calm_rounds
    assert lied["params_sha256"] == calm["params_sha256"]
    assert lied["per_node"] == calm["per_node"]
    for page in calm_pages:
        assert (page["refused"], page["network"]["rejected"]) == ({}, 0)
    for page in lied_pages:
        assert set(page["refused"]) >= TO_BE_COUNTED
        assert page["network"]["rejected"] > 0
        assert page["network"]["callback_errors"] == 0
