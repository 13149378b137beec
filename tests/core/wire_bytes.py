"""Chunks changed by hand: the header's layout written down a second time, and checksums made right again."""

from __future__ import annotations

import struct
import zlib

from agent.core.wire import HEADER_BYTES


def sealed(message: bytes) -> bytes:
    """Return a message with its checksum made right again."""
    bare, payload = message[: HEADER_BYTES - 4], message[HEADER_BYTES:]
    return bare + struct.pack("<I", zlib.crc32(payload, zlib.crc32(bare))) + payload


def patched(message: bytes, at: int, value: bytes) -> bytes:
    """Return a message with some header bytes replaced, and a right checksum."""
    return sealed(message[:at] + value + message[at + len(value) :])


AT = {
    "magic": 0,
    "version": 4,
    "codec": 5,
    "flags": 6,
    "run": 8,
    "schema": 24,
    "sender": 32,
    "epoch": 64,
    "roster": 68,
    "degree": 76,
    "round": 80,
    "trained": 84,
    "digest": 88,
    "n_params": 96,
    "offset": 100,
    "index": 104,
    "count": 106,
}
"""Byte offsets of the header's fields, written down a second time."""
