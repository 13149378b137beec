"""One function a decoder, bytes in and nothing out: an exception is a finding."""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import cache

import numpy as np
from zeroconf.asyncio import AsyncServiceInfo

from agent.core.types import NODE_ID, NodeId, params_digest
from agent.core.wire import HEADER_BYTES
from agent.network.mdns import NODE_TYPE, Mdns, OtherFleet, PeerFound
from agent.network.topics import Topics
from agent.network.transport import decode_presence, encode_presence
from tests.core.wire_bytes import AT, sealed
from tests.fuzz.payloads import Scene, seeded
from tests.fuzz.victim import SENDERS, SHAPES, Victim

FLEET, ME = "fleet", NodeId("a")
SENDER_BITS, FIT, FIT_DIGEST, SEAL, TRAIN = 0x07, 0x08, 0x10, 0x20, 0x40
"""What the first byte of a message in the wire's input says: whose topic, and which fields are made right."""
MAX_MESSAGES = 64


def wire(data: bytes) -> None:
    """Send messages to a node; the first byte is its model's shape, then each has 1 byte of bits, 2 of length."""
    victim, rest, rng = Victim(SHAPES[data[0] % len(SHAPES)] if data else SHAPES[0]), data[1:], seeded(0)
    for _ in range(MAX_MESSAGES):
        if len(rest) < 3:
            break
        bits, size = struct.unpack_from("<BH", rest)
        message, rest = rest[3 : 3 + size], rest[3 + size :]
        sender = (*SENDERS, NodeId("nobody"))[(bits & SENDER_BITS) % (len(SENDERS) + 1)]
        victim.take(sender, _repaired(bits, message, sender, victim.scene))
        if bits & TRAIN:
            victim.go_on(rng)


def _repaired(bits: int, message: bytes, sender: NodeId, scene: Scene) -> bytes:
    """Return a message with those things made right that `bits` names: a fuzzer finds no digest by itself."""
    if len(message) < HEADER_BYTES:
        return message
    if bits & FIT:
        form = scene.form
        head = struct.pack("<4sBBH16s8s32s", b"SKTR", 1, 0, 0, form.run, form.schema, sender.encode())
        size = struct.pack("<I", form.n_params)
        at, after = AT["n_params"], AT["n_params"] + len(size)
        message = head + message[len(head) : at] + size + message[after:]
    if bits & FIT_DIGEST:
        numbers = message[HEADER_BYTES : len(message) - (len(message) - HEADER_BYTES) % 4]
        digest = bytes.fromhex(params_digest(np.frombuffer(numbers, "<f4")))
        message = message[: AT["digest"]] + digest + message[AT["digest"] + 8 :]
    return sealed(message) if bits & SEAL else message


def presence(data: bytes) -> None:
    """Decode a node's name up to the first line feed, and its presence after it."""
    name, _, payload = data.partition(b"\n")
    found = decode_presence(name.decode(errors="replace"), payload)
    if found is not None:
        assert NODE_ID.fullmatch(found.node)
        assert decode_presence(found.node, encode_presence(found)) == found
        assert found.reason.isprintable()
        assert len(found.session) <= 64


def topic(data: bytes) -> None:
    """Parse a topic: what comes out makes the same topic again."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return  # paho says so too, and the message is counted
    topics = Topics(FLEET, "r1")
    found = topics.parse(text)
    if found is not None:
        kind, node = found
        assert {"status": topics.status(node), "model": topics.model(node)}[kind] == text


def txt(data: bytes) -> None:
    """Judge an instance: its name up to the first line feed, and its TXT record after it."""
    label, _, record = data.partition(b"\n")
    mdns, posted = _discovery()
    posted.clear()
    name = f"{label.decode(errors='replace')}.{NODE_TYPE}"
    info = AsyncServiceInfo(NODE_TYPE, f"x.{NODE_TYPE}", port=9, properties=record, addresses=[b"\x7f\0\0\1"])
    mdns._found(name, info)
    for item in posted:
        assert isinstance(item, PeerFound | OtherFleet)
        assert NODE_ID.fullmatch(item.node)
        fleet = item.fleet if isinstance(item, OtherFleet) else FLEET
        assert NODE_ID.fullmatch(fleet)
        assert (item.node, fleet) != (ME, FLEET)
        assert (fleet == FLEET) is isinstance(item, PeerFound)
        assert name == f"{fleet}-{item.node}.{NODE_TYPE}"
    mdns._lost(name)
    assert not mdns._nodes


@cache
def _discovery() -> tuple[Mdns, list[object]]:
    """Return a discovery that was never started, and what it posts."""
    posted: list[object] = []

    def post(item: object) -> bool:
        posted.append(item)
        return True

    mdns = Mdns(FLEET, ME, post)
    mdns.close()
    return mdns, posted


TARGETS: dict[str, Callable[[bytes], None]] = {"wire": wire, "presence": presence, "topic": topic, "txt": txt}
