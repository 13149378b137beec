"""The seeds that fuzzing starts from: small files, made here; those named `found-...` once were findings."""

from __future__ import annotations

import struct
from pathlib import Path

from agent.core.types import NodeId
from agent.core.wire import HEADER_BYTES
from agent.network.transport import Presence, encode_presence
from tests.fuzz.payloads import KINDS, seeded
from tests.fuzz.targets import FIT, FIT_DIGEST, FLEET, SEAL, SENDERS, SHAPES, TRAIN
from tests.fuzz.victim import Victim

FOLDER = Path(__file__).parent / "corpus"
FOUND = "found-"
SMALL_SHAPES = 4
"""Seeds are of the first shapes only: the last one's models are large."""
ATTEMPTS = 3


def seeds() -> dict[str, dict[str, bytes]]:
    """Return each target's files, name to content."""
    ready = Presence(NodeId("b"), True, "ab" * 16, "cd" * 8, "ef" * 16, "0.1.0")
    gone = Presence(NodeId("b"), False, "ab" * 16, "", "ef" * 16, "0.1.0", "stopped by SIGTERM")
    good = _record(txtvers="1", fleet=FLEET, id="b", proto="1", role="node")
    return {
        "wire": _wire(),
        "presence": {
            "online": b"b\n" + encode_presence(ready),
            "offline": b"b\n" + encode_presence(gone),
            "no-name": b"B/#\n" + encode_presence(ready),
            "deep": b"b\n" + b"[" * 600,
            "not-utf-8": b'b\n{"online":true,"session":"\xff"}',
            "surrogate": b'b\n{"online":true,"session":"\\ud800","ready":"","run":"","agent":"","reason":""}',
            "twice": b'b\n{"online":true,"online":false,"session":"","ready":"","run":"","agent":"","reason":""}',
            "number": b'b\n{"online":1e999,"session":-0}',
        },
        "topic": {
            "status": b"skiptrain/v1/fleet/b/status",
            "model": b"skiptrain/v1/fleet/b/model/r1",
            "metrics": b"skiptrain/v1/fleet/b/metrics",
            "other-run": b"skiptrain/v1/fleet/b/model/r2",
            "other-fleet": b"skiptrain/v1/fleets/b/status",
            "wildcards": b"skiptrain/v1/fleet/+/#",
            "nul": b"skiptrain/v1/fleet/b\0/status",
            "not-utf-8": b"skiptrain/v1/fleet/\xff/status",
        },
        "txt": {
            "other-fleet": b"fleut-a\n" + _record(fleet="fleut", id="a", proto="1"),
            "peer": b"fleet-b\n" + good,
            "other-id": b"fleet-c\n" + good,
            "ourselves": b"fleet-a\n" + _record(fleet=FLEET, id="a", proto="1"),
            "twice": b"fleet-b\n" + good + _record(id="c"),
            "cut": b"fleet-b\n" + good[:-3],
            "no-values": b"fleet-b\n\x05fleet\x02id\x00\x01=",
            "not-ascii": b"fleet-\xff\n" + _record(fleet=FLEET) + b"\x05id=\xff\xfe",
        },
    }


def write() -> int:
    """Write all seeds; return how many. Findings stay as they are."""
    count = 0
    for target, files in seeds().items():
        folder = FOLDER / target
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.iterdir():
            if not old.name.startswith(FOUND):
                old.unlink()
        for name, content in files.items():
            (folder / name).write_bytes(content)
            count += 1
    return count


def _record(**items: str) -> bytes:
    """Return a TXT record."""
    texts = [f"{key}={value}".encode() for key, value in items.items()]
    return b"".join(bytes([len(text)]) + text for text in texts)


def _wire() -> dict[str, bytes]:
    """Return a few attempts of each kind as they are, and messages of zeros that the target makes right."""
    files = {}
    for number, (kind, (_, make)) in enumerate(KINDS.items()):
        index, rng = number % SMALL_SHAPES, seeded(number)
        scene = Victim(SHAPES[index]).scene
        found = [item for _ in range(ATTEMPTS) for item in make(rng, scene)]
        packed = [_packed(TRAIN, sender, message) for sender, message in found[: 4 * ATTEMPTS]]
        files["".join(c if c.isalnum() else "-" for c in kind)] = bytes([index]) + b"".join(packed)
    for index, shape in enumerate(SHAPES[:SMALL_SHAPES]):
        zeros = bytearray(HEADER_BYTES + 4 * shape.n_params // shape.chunks)
        struct.pack_into("<HH", zeros, 104, 0, shape.chunks)
        bits = FIT | FIT_DIGEST | SEAL | TRAIN
        files[f"made-right-{index}"] = bytes([index]) + _packed(bits, SENDERS[0], bytes(zeros)) * 2
    return files


def _packed(bits: int, sender: NodeId, message: bytes) -> bytes:
    """Return one message as the wire target reads it."""
    place = SENDERS.index(sender) if sender in SENDERS else len(SENDERS)
    return struct.pack("<BH", bits | place, len(message)) + message
