"""Models as bytes: a fixed header, raw little-endian float32, cut into chunks that every broker takes.

Whatever arrives is hostile until shown otherwise: sized before anything is allocated, checked (length, version, codec,
checksum, run, sender against topic, schema, chunk bounds, digest of the whole, finite numbers) before it is used, and
never unpickled. A refusal is `Refused` with a short reason, which costs a counter.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Container
from dataclasses import dataclass, replace

import numpy as np

from agent.core.types import ModelUpdate, NodeId, Params

MAGIC = b"SKTR"
VERSION = 1
FLOAT32 = 0
"""Codec: the parameters as they are, 4 bytes each."""
MAX_MESSAGE_BYTES = 960 * 1024
"""Below the 1 MB that hosted brokers take and the 2 MB default of mosquitto 2.1."""
MAX_CHUNKS = 4096
PARTIAL_PER_SENDER = 2
"""Models of one sender that may be in assembly at a time; a further one drops the oldest."""

LARGEST = 2.0**127
"""Half of what a float32 can hold: the average of any number of models that stay below it is finite."""

_HEADER = struct.Struct("<4sBBH16s8s32sI8sIII8sIIHHI")
_CRC_BYTES = 4
HEADER_BYTES = _HEADER.size
_DIGEST_BYTES = 8
_ID_BYTES = 32


class Refused(Exception):  # noqa: N818  it is not an error of this program
    """A message cannot become an update; `reason` is the name of a counter."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Format:
    """What all models of a run have in common on the wire."""

    run: bytes
    """Digest of the run descriptor, 16 bytes."""
    schema: bytes
    """Hash of the parameters' names and shapes, 8 bytes."""
    n_params: int


@dataclass(frozen=True, slots=True)
class Header:
    """The fields of one chunk's header that are its own; byte layout in docs/wire.md."""

    sender: NodeId
    epoch: int
    roster: bytes
    degree: int
    round: int
    trained: int
    digest: bytes
    offset: int
    index: int
    count: int


def chunk_count(n_params: int, max_message_bytes: int = MAX_MESSAGE_BYTES) -> int:
    """Return into how many messages a model is cut; ValueError when that cannot be done."""
    room = max_message_bytes - HEADER_BYTES
    if room <= 0:
        raise ValueError(f"a message of {max_message_bytes} bytes has no room beside its {HEADER_BYTES} byte header")
    count = max(1, -(-4 * n_params // room))
    if count > MAX_CHUNKS:
        raise ValueError(f"{count} chunks are more than {MAX_CHUNKS}: raise the broker's packet size")
    return count


def encode(update: ModelUpdate, form: Format, max_message_bytes: int = MAX_MESSAGE_BYTES) -> list[bytes]:
    """Return the chunks of `update`, each at most `max_message_bytes` long, header included."""
    count, room = chunk_count(form.n_params, max_message_bytes), max_message_bytes - HEADER_BYTES
    payload = np.ascontiguousarray(update.params, dtype="<f4").tobytes()
    parts = [payload[i * room : (i + 1) * room] for i in range(count)]
    digest = hashlib.sha256(payload).digest()[:_DIGEST_BYTES]
    return [_chunk(update, form, digest, part, i * room, i, len(parts)) for i, part in enumerate(parts)]


def _chunk(  # noqa: PLR0917
    update: ModelUpdate, form: Format, digest: bytes, part: bytes, offset: int, index: int, count: int
) -> bytes:
    head = _HEADER.pack(
        MAGIC,
        VERSION,
        FLOAT32,
        0,
        form.run,
        form.schema,
        update.sender.encode(),
        update.epoch,
        update.roster,
        update.degree,
        update.round,
        update.trained,
        digest,
        form.n_params,
        offset,
        index,
        count,
        0,
    )
    bare = head[:-_CRC_BYTES]
    return bare + struct.pack("<I", zlib.crc32(part, zlib.crc32(bare))) + part


def parse_header(message: bytes, form: Format, topic_sender: NodeId) -> Header:
    """Return the checked header of one chunk; `topic_sender` is the node that the broker's topic names."""
    if len(message) < HEADER_BYTES:
        raise Refused("truncated")
    fields = _HEADER.unpack_from(message)
    magic, version, codec, flags, run, schema, sender, epoch, roster, degree, round_, trained = fields[:12]
    digest, n_params, offset, index, count, crc = fields[12:]
    if magic != MAGIC:
        raise Refused("not ours")
    if version != VERSION or flags & 0xFF00:
        raise Refused("other version")
    if codec != FLOAT32:
        raise Refused("unknown codec")
    size = len(message) - HEADER_BYTES
    if n_params != form.n_params or offset + size > n_params * 4 or not index < count <= MAX_CHUNKS:
        raise Refused("wrong size")
    if zlib.crc32(memoryview(message)[HEADER_BYTES:], zlib.crc32(message[: HEADER_BYTES - _CRC_BYTES])) != crc:
        raise Refused("checksum")
    if sender != topic_sender.encode().ljust(_ID_BYTES, b"\0"):
        raise Refused("other sender")
    if run != form.run:
        raise Refused("other run")
    if schema != form.schema:
        raise Refused("other schema")
    return Header(topic_sender, epoch, roster, degree, round_, trained, digest, offset, index, count)


@dataclass(slots=True)
class _Partial:
    """A model whose chunks have not all arrived."""

    header: Header
    buffer: bytearray
    missing: int
    """One bit a chunk: a set of numbers would take far more than a small model, at the price of a header."""


class Assembler:
    """Puts chunks together into updates, in memory bounded by senders x `PARTIAL_PER_SENDER` models."""

    def __init__(self, form: Format) -> None:
        self._form = form
        self._partial: dict[NodeId, dict[tuple[int, bytes], _Partial]] = {}

    def add(self, sender: NodeId, message: bytes) -> tuple[Header, ModelUpdate | None]:
        """Take one message; return its header, and the update when this was its last missing chunk."""
        header = parse_header(message, self._form, sender)
        payload = memoryview(message)[HEADER_BYTES:]
        if header.count == 1:
            return header, self._finish(header, payload)
        partial = self._partial_of(header)
        partial.buffer[header.offset : header.offset + len(payload)] = payload
        partial.missing &= ~(1 << header.index)
        if partial.missing:
            return header, None
        del self._partial[sender][header.round, header.digest]
        return header, self._finish(header, memoryview(partial.buffer))

    def keep_senders(self, senders: Container[NodeId]) -> None:
        """Drop what is under way from nodes that are neighbours no more."""
        self._partial = {node: kept for node, kept in self._partial.items() if node in senders}

    @property
    def pending_bytes(self) -> int:
        """Memory held by models that are not whole yet."""
        return sum(len(part.buffer) for kept in self._partial.values() for part in kept.values())

    def _partial_of(self, header: Header) -> _Partial:
        """Return the model that a chunk belongs to; its chunks must agree on everything but their place."""
        kept = self._partial.setdefault(header.sender, {})
        place = header.round, header.digest  # a model that did not change has one digest in many rounds
        partial = kept.get(place)
        if partial is None:
            if len(kept) >= PARTIAL_PER_SENDER:
                del kept[next(iter(kept))]
            partial = _Partial(header, bytearray(self._form.n_params * 4), (1 << header.count) - 1)
            kept[place] = partial
        if replace(header, offset=0, index=0) != replace(partial.header, offset=0, index=0):
            raise Refused("chunks disagree")
        return partial

    def _finish(self, header: Header, payload: memoryview) -> ModelUpdate:
        if len(payload) != self._form.n_params * 4:
            raise Refused("wrong size")
        if hashlib.sha256(payload).digest()[:_DIGEST_BYTES] != header.digest:
            raise Refused("digest")
        params: Params = np.frombuffer(payload, dtype="<f4").astype(np.float32, copy=False)
        if not np.isfinite(params).all() or params.max(initial=0.0) > LARGEST or params.min(initial=0.0) < -LARGEST:
            raise Refused("not finite")
        return ModelUpdate(
            sender=header.sender,
            round=header.round,
            epoch=header.epoch,
            roster=header.roster,
            degree=header.degree,
            trained=header.trained,
            params=params,
            digest=header.digest.hex(),
        )
