"""The words between the agent and its trainer child: length-prefixed msgpack headers, each with raw array bytes."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, BinaryIO, Literal, TypeAlias

import msgspec
import numpy as np

from agent.core.types import ModelShape
from agent.errors import AgentError, ConfigError, DataError, TrainingError
from agent.learning.trainer import LOSS_LIMIT

if TYPE_CHECKING:
    from agent.core.types import Params

MAX_HEADER_BYTES = 2**20
MAX_PAYLOAD_BYTES = 2**31

_LENGTHS = struct.Struct("<IQ")

Fatal: TypeAlias = Literal["", "ConfigError", "DataError", "TrainingError"]
FATAL: dict[Fatal, type[AgentError] | None] = {
    "": None,
    "ConfigError": ConfigError,
    "DataError": DataError,
    "TrainingError": TrainingError,
}
"""Why no training can ever work with this configuration on this device, as it is written in a frame."""


class WorkerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """All that the child needs to know, and its first frame; it alone loads the data."""

    model: ModelShape
    seed: int
    """The run's."""
    node: str
    source: str
    """A name in sources.SOURCES."""
    path: str = ""
    layout: str = "auto"
    class_names: tuple[str, ...] = ()
    held_out: float = 0.1
    """Share of the node's own samples that it never trains on."""
    test_source: str = ""
    """The common test set; "" for none."""
    test_path: str = ""
    threads: int = 1
    loss_limit: float = LOSS_LIMIT


class Train(msgspec.Struct, frozen=True, tag="train"):
    """A TrainTask; the payload is its params."""

    id: int
    round: int
    seed: int
    local_steps: int
    batch_size: int
    lr: float


class Evaluate(msgspec.Struct, frozen=True, tag="evaluate"):
    """A wish for an Evaluation; the payload is the params. It makes way for every Train."""

    id: int
    samples: int


class Describe(msgspec.Struct, frozen=True, tag="describe"):
    """A wish for a ModelInfo."""

    id: int


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    """Every training up to this id is to end before its next local step; an evaluation under way is to be given up."""

    upto: int


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """Local steps done so far."""

    id: int
    steps: int


class Trained(msgspec.Struct, frozen=True, tag="trained"):
    """A TrainOutcome; the payload is its params, empty with an error."""

    id: int
    loss: float | None
    steps: int
    seconds: float
    error: str


class Evaluated(msgspec.Struct, frozen=True, tag="evaluated"):
    """An Evaluation."""

    id: int
    accuracy: float | None
    own_accuracy: float | None
    loss: float | None
    samples: int


class Described(msgspec.Struct, frozen=True, tag="described"):
    """A ModelInfo; the payload is its initial params."""

    id: int
    n_params: int
    schema_hash: bytes


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The request could not be served at all."""

    id: int
    error: str
    fatal: Fatal = ""
    """Set where no other request can be served either."""


Request: TypeAlias = Train | Evaluate | Describe | Stop
Reply: TypeAlias = Progress | Trained | Evaluated | Described | Failed

REQUESTS: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
REPLIES: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)


def pack_frame(message: WorkerConfig | Request | Reply, payload: bytes = b"") -> bytes:
    """Return one frame; TrainingError where the other side would refuse it."""
    header = msgspec.msgpack.encode(message)
    if len(header) > MAX_HEADER_BYTES or len(payload) > MAX_PAYLOAD_BYTES:
        raise TrainingError(f"{len(header)} + {len(payload)} bytes are too many for the trainer; use a smaller model")
    return _LENGTHS.pack(len(header), len(payload)) + header + payload


def read_frame(stream: BinaryIO) -> tuple[bytes, bytes] | None:
    """Return the next frame's header and payload, or None where the stream ends; TrainingError for a broken frame."""
    lengths = stream.read(_LENGTHS.size)
    if not lengths:
        return None
    if len(lengths) < _LENGTHS.size:
        raise TrainingError("a frame between agent and trainer was cut off")
    header_bytes, payload_bytes = _LENGTHS.unpack(lengths)
    if header_bytes > MAX_HEADER_BYTES or payload_bytes > MAX_PAYLOAD_BYTES:
        raise TrainingError(
            f"a frame between agent and trainer claims {header_bytes} + {payload_bytes} bytes: not one of ours"
        )
    header, payload = stream.read(header_bytes), stream.read(payload_bytes)
    if len(header) < header_bytes or len(payload) < payload_bytes:
        raise TrainingError("a frame between agent and trainer was cut off")
    return header, payload


def fatal_name(error: AgentError) -> Fatal:
    """Return the name in FATAL for what kept a trainer from being made."""
    if isinstance(error, ConfigError):
        return "ConfigError"
    return "DataError" if isinstance(error, DataError) else "TrainingError"


def pack_params(params: Params) -> bytes:
    """Return the parameters, shape (n,), as little-endian float32."""
    return np.ascontiguousarray(params, dtype="<f4").tobytes()


def unpack_params(payload: bytes) -> Params:
    """Return the parameters in a payload as a read-only vector."""
    if len(payload) % 4:
        raise TrainingError(f"{len(payload)} bytes are no whole number of float32 parameters")
    return np.frombuffer(payload, dtype="<f4")
